"""The world's smallest network, 3x3 pixels straight into 3 units, learns three patterns by gradient descent, and its gradient is right.

    python -m experiments.patterns            (about 10 seconds)

The patterns are a falling diagonal, a vertical and a horizontal bar, all through the centre (the pictures of the slides are not in the
lecture's text; these are our choice). Before the first step every one of the 30 derivatives is compared with a central difference,
(L(w + h) - L(w - h)) / 2h with h = 1e-6.

Figures:

    weights.png    Above, the three patterns; below, the nine weights of each unit after 100 steps. Look at the red pixels: they are those
                   of the unit's own pattern.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from cnn425.lab import figures
from cnn425.lab.errors import LabError, command
from cnn425.lab.folder import claim
from cnn425.lab.loop import default_folder, show_board, train
from cnn425.lab.models import build, namespace
from cnn425.lab.options import Options, parse
from cnn425.lab.pictures import PATTERNS, drawn, patterns
from cnn425.lab.progress import is_first, say
from cnn425.lab.verdict import conclude, percent

TINY = ("--epochs", "2")

STEP = 1e-6  # of the central differences; in float64 their error is about h^2 (curvature) plus 1e-16 / h (rounding), below 1e-9
SHADES = " .:-=+*#%@"


@dataclass(frozen=True)
class PatternOptions(Options):
    """What can be changed; see --help."""

    epochs: int = 100
    batch_size: int = 300
    optimizer: Literal["sgd", "adam"] = "sgd"
    schedule: Literal["constant", "one-cycle"] = "constant"
    lr: float = 0.5
    copies: int = 1
    """How often each pattern is in the training set; more than one makes sense with noise."""
    noise: float = 0.0
    """Standard deviation of the noise on every pixel, where 1 is the brightness of the ink."""

    def __post_init__(self) -> None:
        """Refuses numbers that mean nothing."""
        super().__post_init__()
        if self.copies < 1 or not self.noise >= 0:
            raise LabError(f"--copies must be at least 1 and --noise at least 0, but got {self.copies} and {self.noise}", 2)


class PatternVerdict(NamedTuple):
    """Accuracy from 0 to 1 on clean patterns, largest error of a derivative in units of the largest derivative, parameters, steps."""

    holds: bool
    accuracy: float
    """clean patterns recognised [%]"""
    gradient_error: float
    """largest error of a derivative, relative to the largest derivative"""
    parameters: int
    """weights and biases"""
    steps: int
    """steps of gradient descent"""
    folder: str

    def sentence(self) -> str:
        """What came out."""
        return (
            f"after {self.steps} steps the network recognises {percent(self.accuracy)} of the three patterns; its derivatives differ from "
            f"central differences by at most {self.gradient_error:.1g} of the largest"
        )


def gradient_error(model: nn.Module, loss: nn.Module, images: Tensor, labels: Tensor) -> float:
    """The largest difference between backpropagation and central differences, relative to the largest derivative."""
    parameters = list(model.parameters())
    exact = torch.autograd.grad(loss(model(images), labels), parameters)
    largest = max(float(gradient.abs().max()) for gradient in exact)
    worst = 0.0
    with torch.no_grad():
        for parameter, gradient in zip(parameters, exact, strict=True):
            cells, derivatives = parameter.view(-1), gradient.reshape(-1)
            for k in range(len(cells)):
                before = cells[k].item()
                cells[k] = before + STEP
                above = loss(model(images), labels).item()
                cells[k] = before - STEP
                below = loss(model(images), labels).item()
                cells[k] = before
                worst = max(worst, abs((above - below) / (2 * STEP) - derivatives[k].item()))
    return worst / largest


def as_text(picture: Tensor) -> list[str]:
    """A picture of brightness 0 to 1 in characters, two per pixel."""
    return ["".join(2 * SHADES[min(9, int(value * 10))] for value in row) for row in picture.tolist()]


def show(learnt: Tensor, folder: Path | None) -> None:
    """The weights `(3, 3, 3)` of the three units as pictures: characters in the terminal, weights.png in the run folder."""
    weights, limit = figures.stretched(learnt), float(learnt.abs().max())
    print("learnt weights, one picture per unit (dark: negative, bright: positive):")
    print("   " + "   ".join(f"{name:10}" for name in PATTERNS))
    for row in zip(*map(as_text, weights), strict=True):
        print("   " + "   ".join(f"{cells:10}" for cells in row))
    if folder:
        made = figures.figure(7, 4.6)
        made.suptitle("Each unit's largest weights are the pixels of its own pattern", fontsize=12)
        cells = made.subplots(2, 3)
        for column, (name, rows) in enumerate(PATTERNS.items()):
            for axes, picture in zip(cells[:, column], (drawn(rows), learnt[column]), strict=True):
                ink = axes is cells[0, column]
                shown = axes.imshow(
                    picture.numpy(), cmap="gray_r" if ink else "RdBu_r", vmin=0 if ink else -limit, vmax=1 if ink else limit
                )
                axes.set(xticks=[], yticks=[], title=name if ink else "")
        for axes, words in zip(cells[:, 0], ("pattern", "weights learnt"), strict=True):
            axes.set_ylabel(words, fontsize=11)
        made.colorbar(shown, ax=cells[1], label="weight")
        figures.save(made, claim(folder, "weights.png"))


def main(argv: Sequence[str] | None = None) -> PatternVerdict:
    """Check the gradient, train, show the weights; the verdict."""
    options = parse(PatternOptions, argv)
    training = patterns(options.copies, options.noise, options.seed)
    clean = patterns()
    model = build("smallest", options.layers, options.seed, size=(3, 3), classes=3).double()
    images, labels = training.batch(slice(None), torch.float64)
    error = gradient_error(model, namespace(options.layers).CrossEntropyLoss(), images, labels)
    say(f"step 0: the 30 derivatives differ from central differences (h = {STEP:g}) by at most {error:.1e} of the largest one")
    folder = options.log_dir or default_folder("patterns", "smallest", options)
    result = train(options, model, training, clean, folder, title=f"smallest ({options.layers})")
    weights = figures.filters(model, (3, 3))
    if is_first():
        with figures.own_style():
            show(weights, None if options.dry_run else result.folder)
    holds = result.held_out_accuracy == 1.0 and error < 1e-6
    verdict = PatternVerdict(holds, result.held_out_accuracy, error, result.parameters, result.steps, str(result.folder))
    conclude(verdict, None if options.dry_run else result.folder, judged=not options.dry_run)
    if not options.dry_run:
        show_board(options.log_dir or folder.parent)
    return verdict


if __name__ == "__main__":
    command(main)
