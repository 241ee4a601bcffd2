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
from cnn425.lab.progress import say


class Trained(NamedTuple):
    """A network with its weights, the names of its classes, and the options it was trained with."""

    model: nn.Sequential
    classes: tuple[str, ...]
    options: dict[str, Any]
    step: int


def checkpoints_in(folder: Path) -> list[Path]:
    """The checkpoints of a run folder, newest first; of a folder that holds one run, that run's."""
    if found := checkpoint.checkpoints(folder):
        return found
    runs = sorted(inside for inside in folder.iterdir() if inside.is_dir() and checkpoint.checkpoints(inside))
    if not runs:
        raise LabError(f"there is no checkpoint in {folder}; name another run, or train one with `python -m cnn425.experiments.mnist`")
    if len(runs) > 1:
        raise LabError(f"{folder} holds {len(runs)} runs; name one of them: {', '.join(map(str, runs[:3]))}{', ...' * (len(runs) > 3)}")
    return checkpoint.checkpoints(runs[0])


def first_whole(paths: Sequence[Path]) -> tuple[Path, dict[str, Any]]:
    """The first of these checkpoints that can be read, and its content."""
    path, *before = paths
    try:
        return path, checkpoint.read(path)
    except LabError as error:
        if not before:
            raise LabError(f"{error}; name another checkpoint or run") from None
        say(f"warning: {error}; the one before is taken")
    return first_whole(before)


def load(path: Path) -> Trained:
    """The model in a checkpoint of experiments/mnist.py; of a run folder, its newest whole checkpoint."""
    path, state = first_whole(checkpoints_in(path) if path.is_dir() else [path])
    try:
        options = dict(state["options"])
        name, layers, dataset, step = options["model"], options["layers"], options["dataset"], int(state["position"]["step"])
        classes = tuple(PATTERNS) if dataset == "patterns" else digits.source(dataset).classes
        model = build(name, layers, 0, classes=len(classes))
    except (KeyError, TypeError, ValueError, LabError):
        raise LabError(f"{path} is not of experiments/mnist.py: it does not say which model and data set it is of") from None
    try:
        model.load_state_dict(state["model"])
    except (KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise LabError(f"{path} does not fit the model {name} of this version: {first_line(error)}") from None
    for weight, values in model.named_parameters():
        if not bool(values.isfinite().all()):
            raise LabError(f"{path}: {weight} holds numbers that are not finite, so the network answers nothing; name another checkpoint")
    return Trained(model.eval(), classes, options, step)


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
