"""Weight sharing carries what was learnt in one place to every other place: only a convolution recognises bars where it never saw any.

    python -m experiments.shift            (about 20 seconds)

Three networks learn the direction of a bar (horizontal, vertical, falling, rising) that always lies in the left half of the image. All
three are the same except for their first layer: every unit sees the whole image (fully connected), a 5x5 window with weights of its own
(locally connected), or a 5x5 window with the weights of all others (convolution). Behind it: ReLU, the largest answer of each of 8
channels anywhere in the image, one linear layer. On new bars in the left half all three succeed; in the right half only the convolution.

Figures:

    shift.png    Three networks see bars in the left half only and are tested with new bars everywhere. Look right of the middle: one
                 curve stays at 100 %, the two others fall to guessing. Noise on every pixel moves the weights of the fully connected
                 layer in both halves.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from rich.table import Table
from torch import Tensor, nn

from cnn425.lab import figures
from cnn425.lab.errors import command
from cnn425.lab.folder import claim, home, locked
from cnn425.lab.loop import default_folder, show_board, train
from cnn425.lab.models import Layers, local_layer, namespace
from cnn425.lab.options import Options, at_least, digest, meaning, parse
from cnn425.lab.pictures import Pictures, bars
from cnn425.lab.progress import is_first, say, say_table
from cnn425.lab.verdict import conclude, percent

TINY = ("--epochs", "1", "--examples", "64", "--test-examples", "40")

SIZE, LENGTH, CHANNELS, KERNEL = 16, 5, 8, 5  # pixels; one 5x5 window holds a whole bar
LEFT, RIGHT = (0, SIZE // 2), (SIZE // 2, SIZE)
Kind = Literal["fully connected", "locally connected", "convolution"]
KINDS: tuple[Kind, ...] = ("fully connected", "locally connected", "convolution")
COLOURS = {"fully connected": "#d1495b", "locally connected": "#edae49", "convolution": "#00798c"}


@dataclass(frozen=True)
class ShiftOptions(Options):
    """What can be changed; see --help."""

    epochs: int = 12
    batch_size: int = 50
    lr: float = 0.01
    examples: int = 2000
    """Bars in the training set, all in the left half."""
    test_examples: int = 1000
    """Bars in each test set."""
    noise: float = 0.1
    """Standard deviation of the noise on every pixel, where 1 is the brightness of a bar."""

    def __post_init__(self) -> None:
        """Refuses numbers that mean nothing."""
        super().__post_init__()
        at_least(self, epochs=1, examples=1, test_examples=1, noise=0)


class ShiftResult(NamedTuple):
    """One network: accuracy from 0 to 1 on new bars in either half, learnable numbers in its first layer and in all."""

    left: float
    """seen half [%]"""
    right: float
    """other half [%]"""
    first_layer: int
    """weights and biases of the first layer"""
    parameters: int
    """of the network"""


class ShiftVerdict(NamedTuple):
    """A result per network; holds if all reach 95 % on the left and, on the right, the convolution 95 % and the others not even 60 %."""

    holds: bool
    fully_connected: ShiftResult
    locally_connected: ShiftResult
    convolution: ShiftResult
    figure: str

    def sentence(self) -> str:
        """What came out."""
        return (
            f"in the half where no bar ever was, a convolution recognises {percent(self.convolution.right)} of them, locally connected "
            f"{percent(self.locally_connected.right)}, fully connected {percent(self.fully_connected.right)}; guessing is 25 %"
        )


def units(kind: Kind, layers: Layers, c: int, o: int, side: int) -> list[nn.Module]:
    """Images `(N, c, side, side) -> (N, o, side, side)`: units that see everything, or 5x5 windows, with weights of their own or shared."""
    ours = namespace(layers)
    if kind == "fully connected":
        return [nn.Flatten(), ours.Linear(c * side**2, o * side**2), nn.Unflatten(1, (o, side, side))]
    if kind == "locally connected":
        return [local_layer(layers)(c, o, side, KERNEL, padding=KERNEL // 2)]
    return [ours.Conv2d(c, o, KERNEL, padding=KERNEL // 2)]


def network(kind: Kind, layers: Layers, seed: int) -> nn.Sequential:
    """Images `(N, 1, 16, 16) -> (N, 4)`; 2048 units in the first layer, whatever connects them."""
    ours = namespace(layers)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        first = units(kind, layers, 1, CHANNELS, SIZE)
        return nn.Sequential(*first, ours.ReLU(), ours.MaxPool2d(SIZE), nn.Flatten(), ours.Linear(CHANNELS, 4))


def accuracy(model: nn.Module, pictures: Pictures) -> float:
    """The share of pictures that are recognised."""
    images, labels = pictures.batch(slice(None))
    with torch.no_grad():
        return float((model(images).argmax(1) == labels).double().mean())


def change(model: nn.Module, before: nn.Module) -> Tensor:
    """How much the first layer's weights moved, by place: by pixel, by position, or for the one shared window; `(H, W)`."""
    now, then = (figures.first_layer(m).get_parameter("weight").detach() for m in (model, before))
    moved = (now - then).abs()
    if moved.ndim == 2:
        return moved.mean(0).reshape(SIZE, SIZE)
    return moved.mean((2, 3, 4, 5)) if moved.ndim == 6 else moved.mean((0, 1))


def main(argv: Sequence[str] | None = None) -> ShiftVerdict:
    """Train the three networks on the left half, test them on both; the verdict."""
    options = parse(ShiftOptions, argv)
    folder = home(options.log_dir or default_folder("shift", "bars", options), "study", f"shift-{digest(meaning(options))}")
    if options.dry_run or not is_first():
        return run(options, folder)
    with locked(folder, kind="study"):
        return run(options, folder)


def run(options: ShiftOptions, folder: Path) -> ShiftVerdict:
    """The three networks, each in a folder of its own; the verdict."""
    training = bars(options.examples, LEFT, SIZE, LENGTH, options.noise, options.seed)
    left, right = (bars(options.test_examples, half, SIZE, LENGTH, options.noise, options.seed + 1) for half in (LEFT, RIGHT))
    results: list[ShiftResult] = []
    models: list[nn.Sequential] = []
    for kind in KINDS:
        model = network(kind, options.layers, options.seed)
        trained = train(options, model, training, right, folder / kind.replace(" ", "-"), title=f"{kind} ({options.layers})")
        counts = (sum(p.numel() for p in figures.first_layer(model).parameters()), trained.parameters)
        results.append(ShiftResult(accuracy(model, left), accuracy(model, right), *counts))
        models.append(model)
    holds = all(r.left >= 0.95 for r in results) and results[2].right >= 0.95 and max(results[0].right, results[1].right) <= 0.6
    picture = folder / "shift.png"
    full, local, convolution = results
    verdict = ShiftVerdict(holds, full, local, convolution, str(picture))
    if is_first():
        show(results)
    if is_first() and not options.dry_run:
        with figures.own_style():
            draw(claim(folder, picture.name), results, models, options, training, right)
    conclude(verdict, None if options.dry_run else folder, judged=not options.dry_run)
    if is_first() and not options.dry_run:
        say(f"figure: {picture}")
        show_board(folder)
    return verdict


def show(results: Sequence[ShiftResult]) -> None:
    """The table in the terminal."""
    table = Table(
        "first layer", "new bars, left half", "new bars, right half", "weights and biases of it", title="trained on bars in the left half"
    )
    for kind, result in zip(KINDS, results, strict=True):
        table.add_row(kind, f"{result.left:.1%}", f"{result.right:.1%}", f"{result.first_layer:,}")
    say_table(table)


def draw(
    path: Path, results: Sequence[ShiftResult], models: Sequence[nn.Module], options: ShiftOptions, training: Pictures, test: Pictures
) -> None:
    """The figure: what was seen, accuracy by the place of the bar, where the weights moved."""
    made = figures.figure(11, 4.4)
    grid = made.add_gridspec(2, 6, width_ratios=[1, 1, 0.15, 4.2, 0.1, 1.5])
    for row, (pictures, title) in enumerate(((training, "trained on"), (test, "tested on"))):
        for column in range(2):
            axes, which = made.add_subplot(grid[row, column], xticks=[], yticks=[]), 2 * row + column
            for image in pictures.images[pictures.labels == which][:1, 0]:  # none, where few bars were drawn
                axes.imshow(image.numpy(), cmap="gray_r", vmin=0, vmax=1)
            axes.axvline(SIZE / 2 - 0.5, color="#8888ff", linewidth=0.8)
            axes.set_title(pictures.classes[which], fontsize=10)
            axes.set_ylabel(title if column == 0 else "", fontsize=10)
    axes = made.add_subplot(grid[:, 3])
    axes.axvspan(LENGTH / 2, SIZE / 2 - LENGTH / 2, color="#dddddd", zorder=0)
    axes.text(SIZE / 4, 0.04, "as in training", ha="center", fontsize=10, color="#555555")
    axes.axvline(SIZE / 2, color="#8888ff", linewidth=0.8)
    starts = range(SIZE - LENGTH + 1)
    for kind, result, model in zip(KINDS, results, models, strict=True):
        heights = [accuracy(model, bars(400, (c, c + LENGTH), SIZE, LENGTH, options.noise, options.seed + 2)) for c in starts]
        label = f"{kind}: {result.first_layer:,}"
        axes.plot([c + LENGTH / 2 for c in starts], heights, "o-", markersize=4, color=COLOURS[kind], label=label)
    axes.axhline(0.25, color="#999999", linewidth=0.8, linestyle="--")
    axes.text(0.2, 0.27, "guessing among four", fontsize=10, color="#555555")
    axes.set(
        xlim=(0, SIZE),
        ylim=(0, 1.05),
        xlabel="centre of the bar, pixels from the left edge",
        ylabel="recognised",
        yticks=[0, 0.25, 0.5, 0.75, 1],
    )
    axes.set_yticklabels(["0 %", "25 %", "50 %", "75 %", "100 %"])
    axes.legend(loc="center left", bbox_to_anchor=(0, 0.6), fontsize=9, title="first layer: parameters", title_fontsize=9)
    axes.set_title("Trained in the left half: only the convolution knows the right half", fontsize=12)
    learnt = grid[:, 5].subgridspec(3, 1)
    for row, (kind, model) in enumerate(zip(KINDS, models, strict=True)):
        axes = made.add_subplot(learnt[row], xticks=[], yticks=[])
        axes.imshow(change(model, network(kind, options.layers, options.seed)).numpy(), cmap="magma", vmin=0)
        axes.set_title(("Which weights moved?\n(bright: most)\n" if row == 0 else "") + kind, fontsize=9)
        axes.set_xlabel({0: "by pixel", 1: "by position", 2: "the one shared window"}[row], fontsize=9)
    figures.save(made, path, dpi=110)


if __name__ == "__main__":
    command(main)
