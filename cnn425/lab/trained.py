"""A trained model: from its checkpoint, on pictures from anywhere, and out to other programs."""

import importlib
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn

from cnn425.lab import checkpoint, digits
from cnn425.lab.errors import LabError, first_line
from cnn425.lab.models import build
from cnn425.lab.pictures import PATTERNS

SIDE, INK = 28, 20  # pixels: MNIST's digits fill 20x20 pixels of 28x28, their centre of mass in the middle


class Trained(NamedTuple):
    """A network with its weights, the names of its classes, and the options it was trained with."""

    model: nn.Sequential
    classes: tuple[str, ...]
    options: dict[str, Any]
    step: int


def load(path: Path) -> Trained:
    """The model in a checkpoint of experiments/mnist.py; of a run folder, its newest checkpoint."""
    if path.is_dir():
        found = checkpoint.checkpoints(path)
        if not found:
            raise LabError(f"there is no checkpoint in {path}; train one with `python -m experiments.mnist --log-dir {path}`")
        path = found[0]
    state = checkpoint.read(path)
    options = state.get("options", {})
    if not {"model", "layers", "dataset"} <= set(options):
        raise LabError(f"{path} is not of experiments/mnist.py: it does not say which model and data set it is of")
    classes = tuple(PATTERNS) if options["dataset"] == "patterns" else digits.source(options["dataset"]).classes
    model = build(options["model"], options["layers"], 0, classes=len(classes))
    try:
        model.load_state_dict(state["model"])
    except RuntimeError as error:
        raise LabError(f"{path} does not fit the model {options['model']} of this version: {first_line(error)}") from None
    return Trained(model.eval(), classes, options, state["position"]["step"])


def picture(path: Path) -> Tensor:
    """Any picture as MNIST draws its digits: bright ink on black, scaled to 20x20 pixels, centred by mass in 28x28; `(1, 1, 28, 28)`."""
    try:
        with Image.open(path) as opened:
            ink = brightness(ImageOps.exif_transpose(opened))
    except OSError as error:
        raise LabError(f"{path} cannot be read as a picture: {error.strerror or first_line(error)}") from None
    except (Image.DecompressionBombError, ValueError, SyntaxError, EOFError, MemoryError) as error:
        raise LabError(f"{path} cannot be read as a picture: {first_line(error)}") from None
    border = torch.cat([ink[0], ink[-1], ink[:, 0], ink[:, -1]])
    if border.median() > 0.5:  # dark on bright, as on paper
        ink = 1 - ink
    ink = ink - ink.min()
    if ink.max() < 0.05:
        raise LabError(f"{path} is empty: all its pixels have nearly the same brightness")
    ink = ink / ink.max()
    lit = (ink > 0.2).nonzero()
    (top, left), (bottom, right) = lit.amin(0).tolist(), (lit.amax(0) + 1).tolist()
    return centred(ink[top:bottom, left:right])[None, None]


def brightness(image: Image.Image) -> Tensor:
    """The picture in grey, on white paper where it is transparent, `(H, W)`; 0 to 1."""
    if image.mode[0] in "IF":  # 16 or 32 bits in units of the file's own: Pillow would cut them at 255
        wide = torch.from_numpy(numpy.array(image, dtype=numpy.float32)).nan_to_num(0.0, 0.0, 0.0)
        low, high = wide.min(), wide.max()
        return (wide - low) / (high - low).clamp(min=1e-6)
    flat = Image.new("RGBA", image.size, "white")
    flat.alpha_composite(image.convert("RGBA"))
    grey = flat.convert("L")
    return torch.frombuffer(bytearray(grey.tobytes()), dtype=torch.uint8).view(grey.height, grey.width).float() / 255


def centred(ink: Tensor) -> Tensor:
    """Ink `(H, W)` scaled so that its longer side has 20 pixels, its centre of mass in the middle of 28x28."""
    scale = INK / max(ink.shape)
    h, w = (max(1, round(side * scale)) for side in ink.shape)
    small = nn.functional.interpolate(ink[None, None], (h, w), mode="bilinear", antialias=True, align_corners=False)[0, 0].clamp(0, 1)
    mass = small.sum().clamp(min=1e-6)
    row = float((small.sum(1) * torch.arange(h)).sum() / mass)
    column = float((small.sum(0) * torch.arange(w)).sum() / mass)
    top = min(max(0, round((SIDE - 1) / 2 - row)), SIDE - h)
    left = min(max(0, round((SIDE - 1) / 2 - column)), SIDE - w)
    whole = torch.zeros(SIDE, SIDE)
    whole[top : top + h, left : left + w] = small
    return whole


def best(trained: Trained, images: Tensor, most: int = 3) -> list[list[tuple[str, float]]]:
    """The most probable classes of each picture, with their probabilities."""
    from cnn425.nn import functional as F

    with torch.no_grad():
        probabilities, order = F.softmax(trained.model(images), dim=1).topk(min(most, len(trained.classes)))
    return [
        [(trained.classes[int(c)], float(p)) for p, c in zip(row, places, strict=True)]
        for row, places in zip(probabilities, order, strict=True)
    ]


# ---- Out to other programs -------------------------------------------------------------------------------------------------------------


def probe() -> Tensor:
    """Seven pictures of noise, on which an exported model must answer as the model does."""
    return torch.rand(7, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(425))


def export_torch(trained: Trained, path: Path) -> float:
    """Write a `torch.export` program for any number of pictures, run it back, return the largest difference of an answer."""
    batch = ({0: torch.export.Dim("batch")},)
    torch.export.save(torch.export.export(trained.model, (probe(),), dynamic_shapes=batch), path)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given buffer is not writable")  # torch 2.11 about a buffer of its own
        return float((torch.export.load(path).module()(probe()[:5]) - trained.model(probe()[:5])).abs().max())


def export_onnx(trained: Trained, path: Path) -> float:
    """Write an ONNX program for any number of pictures, run it back, return the largest difference of an answer."""
    try:
        onnxruntime = importlib.import_module("onnxruntime")
        importlib.import_module("onnxscript")  # torch's exporter needs it
    except ImportError as error:
        raise LabError(f"export to ONNX needs the package {error.name}; `pip install onnx onnxscript onnxruntime`", 2) from None
    batch = ({0: torch.export.Dim("batch")},)
    program = torch.onnx.export(trained.model, (probe(),), dynamo=True, dynamic_shapes=batch, verbose=False)
    assert program is not None
    program.save(str(path))
    session = onnxruntime.InferenceSession(str(path))
    with torch.no_grad():
        wanted = trained.model(probe()[:5])
    (answers,) = session.run(None, {session.get_inputs()[0].name: probe()[:5].numpy()})
    return float((torch.from_numpy(answers) - wanted).abs().max())


def readable(paths: Sequence[Path]) -> tuple[list[Path], list[Tensor], list[str]]:
    """The pictures that can be read, as the network wants them, and a sentence for each that cannot."""
    good, images, complaints = [], [], []
    for path in paths:
        try:
            images.append(picture(path))
            good.append(path)
        except LabError as error:
            complaints.append(str(error))
    return good, images, complaints
