"""A trained model: from its checkpoint, on pictures from anywhere, and out to other programs."""

import importlib
import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from cnn425.lab import checkpoint, digits
from cnn425.lab.errors import LabError, about, first_line
from cnn425.lab.folder import write_whole
from cnn425.lab.models import build
from cnn425.lab.photograph import SIDE, read_picture
from cnn425.lab.photograph import picture as picture
from cnn425.lab.pictures import PATTERNS


class Trained(NamedTuple):
    """A network with its weights, the names of its classes, and the options it was trained with."""

    model: nn.Sequential
    classes: tuple[str, ...]
    options: dict[str, Any]
    step: int


def newest_in(folder: Path) -> Path:
    """The newest checkpoint of a run folder; of a folder that holds one run, that run's."""
    if found := checkpoint.checkpoints(folder):
        return found[0]
    runs = sorted(inside for inside in folder.iterdir() if inside.is_dir() and checkpoint.checkpoints(inside))
    if not runs:
        raise LabError(f"there is no checkpoint in {folder}; train one with `python -m cnn425.experiments.mnist --log-dir {folder}`")
    if len(runs) > 1:
        raise LabError(f"{folder} holds {len(runs)} runs; name one of them: {', '.join(map(str, runs[:3]))}{', ...' * (len(runs) > 3)}")
    return checkpoint.checkpoints(runs[0])[0]


def load(path: Path) -> Trained:
    """The model in a checkpoint of experiments/mnist.py; of a run folder, its newest checkpoint."""
    if path.is_dir():
        path = newest_in(path)
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


# ---- On pictures -------------------------------------------------------------------------------------------------------------------------


def readable(paths: Sequence[Path]) -> tuple[list[Path], list[Tensor], list[str]]:
    """The pictures that can be read, as the network wants them, and a sentence for each that cannot or holds several digits."""
    good, images, complaints = [], [], []
    for path in paths:
        try:
            image, several_digits = read_picture(path)
        except LabError as error:
            complaints.append(str(error))
            continue
        images.append(image)
        good.append(path)
        if several_digits:
            complaints.append(f"{path}: there seems to be more than one digit in it; it was read as one, so cut them apart")
    return good, images, complaints


def best(trained: Trained, images: Tensor, most: int = 3) -> list[list[tuple[str, float]]]:
    """The most probable classes of each picture, with their probabilities."""
    from cnn425.nn.functional import softmax

    with torch.no_grad():
        probabilities, order = softmax(trained.model(images.to(next(trained.model.parameters()).dtype)), dim=1).topk(
            min(most, len(trained.classes))
        )
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
    packed = io.BytesIO()
    torch.export.save(torch.export.export(trained.model, (probe(),), dynamic_shapes=batch), packed)
    write_whole(path, packed.getvalue())
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
    with about(path):
        program.save(str(path))
    session = onnxruntime.InferenceSession(str(path))
    with torch.no_grad():
        wanted = trained.model(probe()[:5])
    (answers,) = session.run(None, {session.get_inputs()[0].name: probe()[:5].numpy()})
    return float((torch.from_numpy(answers) - wanted).abs().max())
