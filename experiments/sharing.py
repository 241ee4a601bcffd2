"""Delete connections of a fully connected layer and it is locally connected; tie the rest and it is a convolution, gradients added up.

    python -m experiments.sharing            (about 15 seconds)

The slide's example: a 4x4 image, 3x3 windows, 4 units: 64, 36 and 9 weights. Who shares with whom is read off the layers themselves: with
the weights 1, 2, 3, ... the answer to an image with one lit pixel is the number of the weight that connects them. Then, for random sizes,
strides, paddings and channels: all three layers give the same output and the same gradient of the image, and the gradient of a shared
weight is the sum of the gradients of its copies. Differences are in units of float64's rounding, 2.2e-16 of the largest value.

Figures:

    sharing.png    Each line joins a pixel to a unit that sees it; equal colours are equal weights, read off the layers themselves. Look
                   from left to right: lines disappear, then colours.
    equal.png      Left, the gradients of the four copies of a weight window, their sum and the gradient of the shared window; right, how
                   far outputs and gradients of the three layers are apart in random geometries. Look at the last column on the left: its
                   two squares are the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import matplotlib
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from cnn425.lab import figures
from cnn425.lab.errors import command
from cnn425.lab.models import Layers, local_layer, namespace
from cnn425.lab.progress import watched
from cnn425.lab.study import StudyOptions, at_least, parse, study

TINY = ("--draws", "2")

KINDS = ("fully connected", "locally connected", "convolution")
EQUALITIES = (
    "output: local = convolution",
    "output: fully connected = convolution",
    "gradient of the image: local = convolution",
    "sum of local gradients = shared gradient",
    "sum of fully connected gradients = shared gradient",
)
EPS = torch.finfo(torch.float64).eps


@dataclass(frozen=True)
class SharingOptions(StudyOptions):
    """What can be changed; see --help."""

    draws: int = 40
    """How many random geometries the equalities are tested on; `--full`: ten times as many."""
    threads: int = 1
    """CPU threads; small tensors wait for threads more than they compute. 0: torch's own choice."""

    def __post_init__(self) -> None:
        """Refuses a test of nothing."""
        at_least(self, threads=0, draws=1)


class SharingVerdict(NamedTuple):
    """Different weights among the connections of each layer; the largest difference in units of rounding; holds below 100 of them."""

    holds: bool
    fully_connected: int
    """weights of the 4x4 example, fully connected"""
    locally_connected: int
    """the same, locally connected"""
    convolution: int
    """the same, as a convolution"""
    difference: float
    """largest difference of outputs and gradients, in roundings of 2.2e-16"""

    def sentence(self) -> str:
        """What came out."""
        return (
            f"{self.fully_connected} weights fully connected become {self.locally_connected} locally connected and {self.convolution} "
            f"shared; outputs and summed gradients are equal to {self.difference:.1f} roundings"
        )


def lit(shape: Sequence[int]) -> Tensor:
    """All images `(C, H, W)` with one lit pixel: `(C*H*W, C, H, W)`."""
    return torch.eye(torch.Size(shape).numel(), dtype=torch.float64).unflatten(1, tuple(shape))


def connections(layer: nn.Module, shape: Sequence[int]) -> Tensor:
    """Which weight (from 1) joins output r and pixel c, 0 if they are not joined: `(outputs, pixels)`, float64."""
    weight = layer.get_parameter("weight")
    before = weight.detach().clone()
    with torch.no_grad():
        weight.copy_(torch.arange(1.0, before.numel() + 1).reshape(before.shape))
        answers = layer(lit(shape)).flatten(1).T
        weight.copy_(before)
    return answers


def three_layers(layers: Layers, c: int, o: int, size: Sequence[int], k: int, stride: int, padding: int) -> tuple[nn.Module, ...]:
    """Fully connected, locally connected, convolution: one function of the image, the first two with weights copied from the third."""
    ours = namespace(layers)
    conv = ours.Conv2d(c, o, k, stride=stride, padding=padding, bias=False, dtype=torch.float64)
    local = local_layer(layers)(c, o, size, k, stride=stride, padding=padding, bias=False, dtype=torch.float64)
    matrix = conv(lit((c, *size))).detach().flatten(1).T
    linear = ours.Linear(matrix.shape[1], matrix.shape[0], bias=False, dtype=torch.float64)
    full = nn.Sequential(nn.Flatten(), linear, nn.Unflatten(1, (o, *local.output_size)))
    with torch.no_grad():
        linear.weight.copy_(matrix)
        local.weight.copy_(conv.weight.expand(local.weight.shape))
    return full, local, conv


class Outcome(NamedTuple):
    """One layer on one batch under one upstream gradient: output and the gradients of weight and image."""

    output: Tensor
    weight: Tensor
    image: Tensor


def outcome(layer: nn.Module, image: Tensor, upstream: Tensor) -> Outcome:
    """Forward and backward."""
    x = image.clone().requires_grad_()
    y = layer(x)
    return Outcome(y.detach(), *torch.autograd.grad(y, [next(layer.parameters()), x], upstream))


def equalities(layers: Layers, random: torch.Generator) -> list[float]:
    """The five differences for one random geometry, each relative to the largest value compared, in units of rounding."""

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=random))

    c, o, size, k = draw(1, 3), draw(1, 4), (draw(4, 9), draw(4, 9)), draw(1, 4)
    full, local, conv = three_layers(layers, c, o, size, k, draw(1, 2), draw(0, 1))
    image = torch.randn(2, c, *size, generator=random, dtype=torch.float64)
    upstream = torch.randn(conv(image).shape, generator=random, dtype=torch.float64)
    f, l, s = (outcome(layer, image, upstream) for layer in (full, local, conv))
    owner = connections(conv, (c, *size)).long().flatten()  # every cell of the big matrix belongs to one shared weight, or to none
    summed = torch.bincount(owner, f.weight.flatten(), minlength=1 + s.weight.numel())[1:].reshape(s.weight.shape)
    pairs = ((l.output, s.output), (f.output, s.output), (l.image, s.image), (l.weight.sum((0, 1)), s.weight), (summed, s.weight))
    return [float((a - b).abs().max() / b.abs().max()) / EPS for a, b in pairs]


def main(argv: Sequence[str] | None = None) -> SharingVerdict:
    """Count weights on the 4x4 example, test the equalities, draw both; the verdict."""
    options = parse(SharingOptions, argv)
    draws = options.draws * (10 if options.full else 1)
    with study("sharing", options) as record:
        torch.manual_seed(options.seed)
        example = three_layers(options.layers, 1, 1, (4, 4), 3, 1, 0)
        random = torch.Generator().manual_seed(options.seed)
        differences = torch.tensor(
            [equalities(options.layers, random) for _ in watched(range(draws), "geometries", draws)], dtype=torch.float64
        )
        full, *windowed = example
        joined = [connections(full.get_submodule("1"), (16,)), *(connections(layer, (1, 4, 4)) for layer in windowed)]
        counts = [len(owners[owners > 0].unique()) for owners in joined]
        for kind, owners, count in zip(KINDS, joined, counts, strict=True):
            print(f"{kind}: {int((owners > 0).sum())} connections, {count} weights")
        for name, worst in zip(EQUALITIES, differences.amax(0).tolist(), strict=True):
            print(f"{name}: {worst:.1f} roundings apart at most, {draws} geometries")
        record.figure("sharing", draw_connections(joined, counts))
        record.figure("equal", draw_equalities(example, differences, options.seed))
        worst = float(differences.max())
        return record.verdict(SharingVerdict(counts == [64, 36, 9] and worst < 100, counts[0], counts[1], counts[2], worst))


# ---- The figures -------------------------------------------------------------------------------------------------------------------------


def colour(number: Tensor, count: int) -> Any:
    """The colour of weight `number`, from 1 to `count`."""
    return matplotlib.colormaps["turbo"](0.04 + 0.92 * (float(number) - 1) / (count - 1))


def draw_connections(joined: Sequence[Tensor], counts: Sequence[int]) -> Figure:
    """Each layer as neurons over pixels and as a matrix; two connections have the same colour if they are the same weight."""
    made = figures.figure(11, 5.6)
    made.suptitle("One colour, one weight: a 4x4 image, four units", fontsize=14)
    grid = made.add_gridspec(2, 3, height_ratios=[3.4, 1])
    for column, (kind, owners, count) in enumerate(zip(KINDS, joined, counts, strict=True)):
        ranks = torch.zeros_like(owners)  # weights in use, renumbered without gaps
        ranks[owners > 0] = (torch.searchsorted(owners[owners > 0].unique(), owners[owners > 0]) + 1).double()
        axes = made.add_subplot(grid[0, column], aspect="equal")
        axes.axis("off")
        axes.set_title(f"{kind}\n{int((owners > 0).sum())} connections, {count} weights", fontsize=11)
        for pixel in range(16):
            x, y = place(pixel // 4, pixel % 4, 0)
            corners = [place(pixel // 4 + r, pixel % 4 + c, 0) for r, c in ((-0.5, -0.5), (-0.5, 0.5), (0.5, 0.5), (0.5, -0.5))]
            axes.fill(*zip(*corners, strict=True), "#e8e8e8", edgecolor="#888888", linewidth=0.8, zorder=1)
        for unit in range(4):
            x, y = place(1 + unit // 2, 1 + unit % 2, 4.2)
            for pixel in reversed(range(16)):
                if ranks[unit, pixel] > 0:
                    px, py = place(pixel // 4, pixel % 4, 0)
                    axes.plot([px, x], [py, y], color=colour(ranks[unit, pixel], count), linewidth=1.4, zorder=2)
            axes.plot([x], [y], "o", markersize=15, color="white", markeredgecolor="#333333", zorder=3)
            axes.text(x, y, "abcd"[unit], ha="center", va="center", fontsize=9, zorder=4)
        axes = made.add_subplot(grid[1, column])
        cells = torch.tensor([[colour(r, count) if r > 0 else (1, 1, 1, 1) for r in row] for row in ranks])
        axes.imshow(cells.numpy(), aspect="equal")
        axes.set(xticks=[i - 0.5 for i in range(17)], yticks=[i - 0.5 for i in range(5)], xticklabels=[], yticklabels=[])
        axes.grid(color="#bbbbbb", linewidth=0.5)
        axes.tick_params(length=0)
        for unit in range(4):
            axes.text(-1.1, unit, "abcd"[unit], ha="center", va="center", fontsize=9)
        axes.set_xlabel("the same as a matrix: 4 units x 16 pixels", fontsize=9)
    return made


def place(row: float, column: float, height: float) -> tuple[float, float]:
    """Where a point of a plane, seen obliquely from the front, lies on paper."""
    return column + 0.9 * (3 - row) / 2, 0.5 * (3 - row) + height


def draw_equalities(example: Sequence[nn.Module], differences: Tensor, seed: int) -> Figure:
    """The gradients of the four windows and their sum beside the shared gradient; and how equal everything is."""
    random = torch.Generator().manual_seed(seed)
    image, upstream = (torch.randn(1, 1, side, side, generator=random, dtype=torch.float64) for side in (4, 2))
    _, local, conv = (outcome(layer, image, upstream) for layer in example)
    made = figures.figure(11, 4.2)
    left, right = made.subfigures(1, 2, width_ratios=[1.15, 1])
    left.suptitle("The gradient of a shared weight is the sum over its copies", fontsize=11)
    pictures = [(f"window {'abcd'[p]}", local.weight[p // 2, p % 2, 0, 0]) for p in range(4)]
    pictures += [("a + b + c + d", local.weight.sum((0, 1))[0, 0]), ("convolution", conv.weight[0, 0])]
    largest = float(max(p.abs().max() for _, p in pictures))
    for axes, (title, picture) in zip(left.subplots(2, 3).flat, [pictures[k] for k in (0, 1, 4, 2, 3, 5)], strict=True):
        axes.imshow(picture.numpy(), cmap="RdBu_r", vmin=-largest, vmax=largest)
        axes.set(xticks=[], yticks=[])
        axes.set_title(title, fontsize=9)
        for u in range(3):
            for v in range(3):
                value = round(float(picture[u, v]), 2) + 0.0
                axes.text(
                    v, u, f"{value:.2f}", ha="center", va="center", fontsize=7, color="white" if abs(value) > 0.6 * largest else "black"
                )
    axes = right.subplots()
    for row, name in enumerate(EQUALITIES):
        axes.plot(
            differences[:, row].clamp(min=0.1), torch.full((len(differences),), -float(row)), "o", color="#00798c", alpha=0.35, markersize=6
        )
        axes.text(0.09, -row + 0.28, name, fontsize=9)
    axes.axvline(1, color="#d1495b", linewidth=1)
    axes.text(1.05, -4.62, "one rounding, 2.2e-16", color="#d1495b", fontsize=8)
    axes.set(xscale="log", xlim=(0.08, 100), ylim=(-4.8, 0.6), yticks=[])
    axes.set_xlabel(
        f"largest difference in {len(differences)} random geometries, in roundings\n(exact equality is drawn at 0.1)", fontsize=8
    )
    axes.set_title("Equal to rounding", fontsize=11)
    return made


if __name__ == "__main__":
    command(main)
