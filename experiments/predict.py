"""What a network learnt from MNIST's digits it can use anywhere: on pictures of other sizes and colours, and in other programs.

    python -m experiments.predict --checkpoint runs/mnist/conv-custom-... digit.png photo.jpg      (about 5 seconds)
    python -m experiments.predict --checkpoint ... --evaluate                                      (its test set again)
    python -m experiments.predict --checkpoint ... --export folder                                 (torch.export and ONNX, run back)
    python -m experiments.predict digit.png                                                        (trains a small network first)

A checkpoint is a run folder of experiments/mnist.py or a file in it. Without one, the recipe `small` of experiments/leaderboard.py is
trained on the spot, for a few epochs. A picture is made like MNIST's: dark ink on bright paper is
inverted, the ink is scaled to 20x20 pixels and centred by its mass in 28x28.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import torch
import tyro
from PIL import Image

from cnn425.lab import digits, recipes, trained
from cnn425.lab.errors import LabError, command
from cnn425.lab.options import parse_any

from . import leaderboard, mnist

EPOCHS = 3  # of the network that is trained on the spot
CLOSE = 1e-4  # largest difference that an exported program may have from the model: float32 sums in another order


@dataclass(frozen=True)
class PredictOptions:
    """What can be asked; see --help."""

    checkpoint: Path | None = None
    """A run folder of experiments/mnist.py, or a checkpoint in it. Default: a small network is trained on MNIST now, in seconds."""
    pictures: Annotated[tuple[Path, ...], tyro.conf.Positional] = field(default=())
    """Picture files of any kind and size."""
    evaluate: bool = False
    """Also measure the accuracy on the test set it was trained for."""
    data_dir: Path | None = None
    """The folder that holds MNIST/raw/... Default: CNN425_DATA_DIR, else a cache with download."""
    export: Path | None = None
    """Also write model.pt2 (torch.export) and model.onnx into this folder, which has none yet; run them back and compare."""
    formats: Literal["both", "torch", "onnx"] = "both"
    """Which of the two to write."""
    log_dir: Path | None = None
    """Not used here: nothing is trained."""


class Prediction(NamedTuple):
    """Top three (class, probability) of each readable picture; holds if all were readable and every exported program agrees."""

    holds: bool
    best: dict[str, list[tuple[str, float]]]
    unreadable: list[str]
    accuracy: float | None
    export_errors: dict[str, float]

    @property
    def MUST_HOLD(self) -> bool:
        """A task, not a claim."""
        return True


def tiny(folder: Path) -> list[str]:
    """A command line for the tests: a checkpoint made on the spot, a picture of a bar on paper."""
    mnist.main([*mnist.TINY, "--model", "linear", "--log-dir", str(folder / "run")])
    page = torch.full((60, 90), 250, dtype=torch.uint8)
    page[10:50, 40:48] = 20
    Image.fromarray(page.numpy()).save(folder / "bar.png")
    return ["--checkpoint", str(folder / "run"), str(folder / "bar.png"), "--evaluate", "--export", str(folder), "--formats", "torch"]


def on_the_spot(data_dir: Path | None) -> trained.Trained:
    """The small network of the leaderboard, with fewer epochs; it saw distorted digits, as pictures of users are."""
    training, _ = digits.load("mnist", data_dir)
    recipe = replace(leaderboard.ENTRIES["small"].recipe, epochs=EPOCHS)
    print(f"no --checkpoint: the recipe `small` is trained on mnist, {recipe.epochs} epochs", flush=True)
    learnt = recipes.train(recipe, training)
    steps = recipe.epochs * -(-len(training.labels) // recipe.batch_size)
    options = {"model": "small", "layers": "custom", "dataset": "mnist", "examples": 0, "seed": 0}
    return trained.Trained(learnt.model, training.classes, options, steps)


def exported(model: trained.Trained, folder: Path, formats: str) -> dict[str, float]:
    """The largest difference of an answer of each exported program, run back, from the model's."""
    if os.path.lexists(folder) and not folder.is_dir():
        raise LabError(f"--export {folder} is not a folder; name one", 2)
    folder.mkdir(parents=True, exist_ok=True)
    writers = {"onnx": (trained.export_onnx, folder / "model.onnx"), "torch": (trained.export_torch, folder / "model.pt2")}
    chosen = [writer for name, writer in writers.items() if formats in ("both", name)]
    for _, path in chosen:
        if os.path.lexists(path):
            raise LabError(f"{path} exists; move it, or choose another --export", 2)
    return {str(path): write(model, path) for write, path in chosen}


def main(argv: Sequence[str] | None = None) -> Prediction:
    """Read the pictures, and whatever else was asked for."""
    options = parse_any(PredictOptions, argv)
    if not (options.pictures or options.evaluate or options.export):
        raise LabError("nothing to do: name pictures, or say --evaluate or --export FOLDER", 2)
    good, images, complaints = trained.readable(options.pictures)
    if not (images or options.evaluate or options.export):
        raise LabError("\n".join(complaints))
    model = trained.load(options.checkpoint) if options.checkpoint else on_the_spot(options.data_dir)
    print(f"{model.options['model']} of {model.options['layers']} layers, trained on {model.options['dataset']} for {model.step} steps")
    answers = trained.best(model, torch.cat(images)) if images else []
    for path, answer in zip(good, answers, strict=True):
        print(f"{path}: " + ", ".join(f"{name} {probability:.1%}" for name, probability in answer))
    for complaint in complaints:
        print(complaint)
    accuracy = None
    if options.evaluate:
        test = mnist.tested_on(model.options, options.data_dir)
        accuracy = recipes.accuracy(model.model, test.images, test.labels)
        print(f"test set: {accuracy:.2%} recognised")
    errors = exported(model, options.export, options.formats) if options.export else {}
    for name, error in errors.items():
        print(f"{name}: run back, differs from the model by at most {error:.1e}")
    holds = len(good) == len(options.pictures) and all(error < CLOSE for error in errors.values())
    return Prediction(holds, dict(zip(map(str, good), answers, strict=True)), complaints, accuracy, errors)


if __name__ == "__main__":
    command(main)
