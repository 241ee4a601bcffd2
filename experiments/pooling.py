"""A convolution moves with its image, and pooling forgets by how much; a local layer does neither.

    python -m experiments.pooling            (about 5 seconds)

A letter slides over an image of 32x32 pixels, through 16 random 5x5 filters, ReLU and a pool:

    equivariance    shifting the image and shifting the convolution's answer is the same, exactly; for a local layer it is not
    tolerance       the larger the windows of the pool, the less a shift by a pixel or two changes what comes out; with one window over the
                    whole image nothing changes at all. A pool behind a local layer tolerates less, even over the whole image
    max or average  how much they tolerate differs little. What differs is what is left of a small thing in a large window: its full
                    answer (max) or its share of the window (average)
    the gradient    the maximum sends all of it to the winner, the average to everyone alike

Changes are |f(shifted) - f(image)| / |f(image)|, averaged over eight places where the letter may start, because windows make a grid.

Figures:

    pooling.png      Left, how much the answer changes when the letter moves; right, the answer of one unit while a bright dot passes. Look
                     at the curves on the left from top to bottom: the larger the pool, the less changes.
    letter.png       The letter at two places, and what a convolution and a local layer answer. Look at the lowest row: only the
                     convolution's two answers are the same but for the shift.
    gradients.png    The gradient that four pools send back to a small image, as colours and bold numbers. Compare the first two: the
                     maximum sends all to one pixel, the average the same to each.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from cnn425.lab import figures
from cnn425.lab.errors import command
from cnn425.lab.models import local_layer, namespace
from cnn425.lab.pictures import drawn
from cnn425.lab.study import Study, StudyOptions, at_least, parse, study
from cnn425.lab.verdict import percent

TINY = ("--channels", "2")

SIZE, KERNEL, FIRST, PLACES, FURTHEST = 32, 5, 5, 8, 8  # pixels, pixels, column of the first of so many starting places, pixels
POOLS = (1, 2, 4, 8, SIZE)  # side of a pool's window; 1 is no pool
LETTER = ("#######", "##.....", "##.....", "##.....", "######.", "##.....", "##.....", "##.....", "##.....", "##.....")
Network = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class PoolingOptions(StudyOptions):
    """What can be changed; see --help."""

    channels: int = 16
    """Random filters in front of the pool; `--full`: ten times as many."""
    threads: int = 1
    """CPU threads; small tensors wait for threads more than they compute. 0: torch's own choice."""

    def __post_init__(self) -> None:
        """Refuses a layer without filters."""
        at_least(self, threads=0, channels=1)


class PoolingVerdict(NamedTuple):
    """Relative changes of the answer: shift and layer exchanged; and by a shift of one pixel, under max and average pools of rising size.

    Holds if the convolution exchanges with shifts exactly and the local layer does not; if a larger pool always changes less behind the
    convolution, down to nothing for one window over all; and if something is left of that change behind the local layer.
    """

    holds: bool
    convolution_exchanged: float
    """relative change if shift and convolution are exchanged"""
    local_exchanged: float
    """relative change if shift and local layer are exchanged"""
    convolution_max: tuple[float, ...]
    """change by one pixel of shift: convolution, max pools of 1, 2, 4, 8 pixels and of the whole image [%]"""
    convolution_average: tuple[float, ...]
    """the same, average pools [%]"""
    local_max: tuple[float, ...]
    """the same, local layer, max pools [%]"""
    local_average: tuple[float, ...]
    """the same, local layer, average pools [%]"""

    def sentence(self) -> str:
        """What came out."""
        return (
            f"a convolution commutes with a shift (error {self.convolution_exchanged:.1g}), a local layer does not (error "
            f"{percent(self.local_exchanged)}); a shift by one pixel changes the output of a convolution by "
            f"{percent(self.convolution_max[0])}, after one pool over the whole image by {percent(self.convolution_max[-1])}, and that of "
            f"a local layer, after the same pool, by {percent(self.local_max[-1])}"
        )


def letter(column: int) -> Tensor:
    """The image `(1, 1, 32, 32)` with the letter's left edge at `column`."""
    image = torch.zeros(1, 1, SIZE, SIZE, dtype=torch.float64)
    rows = drawn(LETTER)
    image[0, 0, 11 : 11 + rows.shape[0], column : column + rows.shape[1]] = rows
    return image


def change(before: Tensor, after: Tensor) -> float:
    """The length of the difference, relative to the length of what was there."""
    return float((after - before).norm() / before.norm())


def changes(network: Network) -> list[float]:
    """The relative change of the answer when the letter moves 0, 1, ... pixels to the right; mean over where it starts."""
    answers = network(torch.cat([letter(FIRST + k) for k in range(PLACES + FURTHEST)]))
    return [sum(change(answers[k], answers[k + shift]) for k in range(PLACES)) / PLACES for shift in range(FURTHEST + 1)]


def behind(layer: nn.Module, pool: nn.Module, relu: nn.Module) -> Network:
    """Layer, ReLU, pool."""
    return lambda image: pool(relu(layer(image)))


def main(argv: Sequence[str] | None = None) -> PoolingVerdict:
    """Slide the letter; the verdict."""
    options = parse(PoolingOptions, argv)
    with study("pooling", options) as record:
        return tried(options, record)


def tried(options: PoolingOptions, record: Study) -> PoolingVerdict:
    """Shift, pool, compare, draw; the verdict."""
    ours = namespace(options.layers)
    channels = options.channels * (10 if options.full else 1)
    torch.manual_seed(options.seed)
    conv = ours.Conv2d(1, channels, KERNEL, padding=KERNEL // 2, bias=False, dtype=torch.float64)
    local = local_layer(options.layers)(1, channels, SIZE, KERNEL, padding=KERNEL // 2, bias=False, dtype=torch.float64)
    layers = {"convolution": conv, "local layer": local}
    pools = {"max": ours.MaxPool2d, "average": ours.AvgPool2d}
    with torch.no_grad():
        # far from the border, where the padding of zeros is another neighbour than the letter's background
        exchanged = [change(layer(letter(8)).roll(6, -1)[..., 8:-8], layer(letter(14))[..., 8:-8]) for layer in layers.values()]
        curves = {
            (name, pool, side): changes(behind(layer, pools[pool](side), ours.ReLU()))
            for name, layer in layers.items()
            for pool in pools
            for side in POOLS
        }
    steps = {(name, pool): tuple(curves[name, pool, side][1] for side in POOLS) for name in layers for pool in pools}
    print(f"shift, then layer, against layer, then shift: convolution {exchanged[0]:.1e}, local layer {exchanged[1]:.2f} apart")
    print(f"change of the answer by one pixel of shift, for pools of {', '.join(map(str, POOLS))} pixels:")
    for (name, pool), values in steps.items():
        print(f"  {name:12} {pool:8} " + "  ".join(f"{value:6.1%}" for value in values))
    falling = all(a > b for pool in pools for a, b in zip(steps["convolution", pool], steps["convolution", pool][1:], strict=False))
    vanishes = max(steps["convolution", pool][-1] for pool in pools) < 1e-12 < 0.05 < min(steps["local layer", pool][-1] for pool in pools)
    for (name, pool, side), curve in curves.items():
        record.curve(f"change by shift/{name}, {pool} {side}x{side}", range(FURTHEST + 1), curve)
    record.figure("pooling", draw_tolerance(curves, pools))
    record.figure("letter", draw_letter(layers))
    record.figure("gradients", draw_gradients(pools))
    holds = exchanged[0] < 1e-12 and exchanged[1] > 0.1 and falling and vanishes
    return record.verdict(PoolingVerdict(holds, exchanged[0], exchanged[1], *steps.values()))


# ---- The figures -------------------------------------------------------------------------------------------------------------------------


def passing(pool: nn.Module | None) -> list[float]:
    """The answer of the pooled unit over columns 8 to 15 (no pool: of the unit at column 11) while one bright dot passes by."""
    answers = []
    for column in range(4, 20):
        image = torch.zeros(1, 1, SIZE, SIZE, dtype=torch.float64)
        image[0, 0, 12, column] = 1
        answers.append(float(image[0, 0, 12, 11] if pool is None else pool(image)[0, 0, 1, 1]))
    return answers


def draw_letter(layers: dict[str, nn.Module]) -> Figure:
    """Two images, and what a convolution and a local layer make of them."""
    made = figures.figure(8, 7.6)
    made.suptitle("The letter moves 6 pixels: the convolution's answer moves along, the local layer's changes", fontsize=12)
    axes_of = made.subplots(3, 3)
    for axes in axes_of.flat:
        axes.set(xticks=[], yticks=[])
    with torch.no_grad():
        for row, column in enumerate((8, 14)):
            axes_of[row, 0].imshow(letter(column)[0, 0].numpy(), cmap="gray_r", vmin=0, vmax=1)
            for k, layer in enumerate(layers.values(), start=1):
                axes_of[row, k].imshow(layer(letter(column))[0, 0].numpy(), cmap="RdBu_r", vmin=-0.8, vmax=0.8)
        for k, (name, layer) in enumerate(layers.items(), start=1):
            difference = layer(letter(8)).roll(6, -1) - layer(letter(14))
            axes_of[2, k].imshow(difference[0, 0].numpy(), cmap="RdBu_r", vmin=-0.8, vmax=0.8)
            axes_of[0, k].set_title(name, fontsize=11)
    axes_of[0, 0].set_title("image, 32x32 pixels", fontsize=11)
    axes_of[2, 0].axis("off")
    axes_of[2, 0].text(0.97, 0.5, "upper answer, moved\n6 pixels, minus\nthe one below it", ha="right", va="center", fontsize=11)
    return made


def draw_tolerance(curves: dict[tuple[str, str, int], list[float]], pools: dict[str, type[nn.Module]]) -> Figure:
    """Change against shift; a dot that passes one unit."""
    made = figures.figure(11, 4.8)
    first, second = made.subplots(1, 2)
    colours = dict(zip(POOLS, ("#444444", "#7a5195", "#ef5675", "#ffa600", "#00798c"), strict=True))
    for side in POOLS:
        name = {1: "no pool", SIZE: "whole image"}.get(side, f"{side}x{side}")
        first.plot(curves["convolution", "max", side], "o-", markersize=3, color=colours[side], label=name)
    first.plot(curves["local layer", "max", SIZE], "--", color="#777777", linewidth=1.5, label="local layer, whole image")
    first.set(xlabel="shift [pixels]", ylabel="relative change of the answer", xlim=(0, FURTHEST), ylim=(-0.03, 2.0))
    first.legend(fontsize=9, title="max pool behind a convolution", title_fontsize=9, loc="upper left", ncols=2)
    first.set_title("The larger the pool, the more it tolerates", fontsize=12)
    dots = range(4, 20)
    second.axvspan(7.5, 15.5, color="#eeeeee")
    for label, pool, colour in (
        ("no pool: the unit at column 11", None, "#444444"),
        ("max over 8x8", pools["max"](8), "#d1495b"),
        ("average over 8x8", pools["average"](8), "#00798c"),
    ):
        second.plot(dots, passing(pool), "o-", markersize=4, color=colour, label=label)
    second.text(11.5, 1.03, "the pool's window", ha="center", fontsize=9, color="#666666")
    second.text(16, 0.05, "1/64", fontsize=9, color="#00798c")
    second.set(xlabel="column of a bright dot [pixels]", ylabel="answer of one unit", ylim=(-0.04, 1.4), xticks=range(4, 20, 3))
    second.legend(fontsize=9, loc="upper left")
    second.set_title("Max keeps a small thing, the average dilutes it", fontsize=12)
    return made


def draw_gradients(pools: dict[str, type[nn.Module]]) -> Figure:
    """Small images and the gradients of the sum of all pooled pixels: routed, shared out, piled up where windows overlap, and on a tie."""
    random = torch.Generator().manual_seed(3)
    distinct = torch.randperm(36, generator=random).reshape(6, 6).double()
    ties = torch.randint(0, 3, (6, 6), generator=random).double()
    cases = (
        ("max 2x2: all to the winner", distinct, "max", 2, 2),
        ("average 2x2: a quarter each", distinct, "average", 2, 2),
        ("max 3x3, stride 1: once per window won", distinct, "max", 3, 1),
        ("max 2x2 with ties: the first in reading order", ties, "max", 2, 2),
    )
    made = figures.figure(12.5, 3.8)
    made.suptitle(
        "Where the gradient goes (numbers: brightness; colour and bold: gradient, for a gradient of 1 per pooled pixel)", fontsize=11
    )
    for axes, (title, image, pool, side, stride) in zip(made.subplots(1, 4), cases, strict=True):
        x = image[None, None].clone().requires_grad_()
        y = pools[pool](side, stride)(x)
        (gradient,) = torch.autograd.grad(y, x, torch.ones_like(y))
        shares = gradient[0, 0]
        axes.imshow(shares.numpy(), cmap="Oranges", vmin=0, vmax=max(2, float(shares.max()) / 2))
        axes.set(xticks=[], yticks=[])
        axes.set_title(title, fontsize=9)
        for h in range(6):
            for w in range(6):
                share = float(shares[h, w])
                axes.text(
                    w,
                    h - 0.1,
                    f"{int(image[h, w])}",
                    ha="center",
                    va="center",
                    fontsize=9,
                    color="white" if share > 2.5 else "black" if share else "#888888",
                )
                if share:
                    axes.text(
                        w,
                        h + 0.28,
                        f"{share:g}",
                        ha="center",
                        va="center",
                        fontsize=7,
                        weight="bold",
                        color="white" if share > 2.5 else "#7f2704",
                    )
        for line in range(2, 6, 2) if stride == side else ():
            axes.axhline(line - 0.5, color="#333333", linewidth=1.2)
            axes.axvline(line - 0.5, color="#333333", linewidth=1.2)
    return made


if __name__ == "__main__":
    command(main)
