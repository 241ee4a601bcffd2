"""Layers of low rank, between a local layer and a convolution, are ahead of both ends, whether places mean something or nothing.

    python -m experiments.spectrum            (about 100 seconds; `--full`: more steps and seeds, about 40 minutes)

After G. Elsayed, P. Ramachandran, J. Shlens, S. Kornblith, "Revisiting spatial invariance with low-rank local connectivity", 2020: there
low rank is ahead of both ends on MNIST, CIFAR-10 and CelebA. Eleven networks of equal width, 8 x 16 x 16, 16 x 8 x 8 and 32 x 4 x 4
units, which differ in what connects them to what lies before: everything (fully connected), or a 3x3 window with weights of its own
(local), shared in blocks of 2x2, 4x4 or 7x7 neighbours, shared in tiles (by every second position), mixed of 8, 4, 2 or 1 convolutions
(low rank; of rank 1 it is a convolution), or shared by all (convolution). After each: batch normalisation, ReLU, a 2x2 maximum; at the end,
as in the paper, the mean over all positions, so that no later layer can tell places apart, and one linear layer.

Three sets of pictures, 16x16 pixels each. As it is: MNIST, averaged down. Jittered: the digits at 10x10 pixels, anywhere on the canvas, so
that a place means nothing. Framed: the same small digits, always centred, in a bright frame, so that a place means most. `gain` is the
accuracy of the best low rank (2 to 8) less that of the better of local layer and convolution, with the standard error over seeds (the
seeds share digits, so it is of the differences). The best of several is chosen on the test set, which favours low rank a little.

Figures:

    spectrum.png    Eleven networks, ordered from no sharing to sharing everywhere, learn three sets of digits; black points are single
                    seeds, coloured ones their mean. Look at what lies right of the dashed line, ahead of the convolution: of low
                    rank, in red, ranks 8 and 4 mostly do, rank 1 hardly; on MNIST as it is blocks of 2x2 lie furthest.
    sets.png        Who shares with whom, read off the layers themselves: each square is one of 8x8 positions, and those of one colour use
                    one set of weights. Look from left to right: from 64 sets to one; at low rank each position has a mixture of its own.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import matplotlib
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from rich.table import Table
from torch import Tensor, nn

from cnn425 import nn as ours
from cnn425.lab import figures
from cnn425.lab.errors import LabError, command
from cnn425.lab.models import parameters
from cnn425.lab.pictures import Pictures
from cnn425.lab.progress import say_table, watched
from cnn425.lab.study import at_least, in_full, parse, study
from cnn425.lab.verdict import percent
from cnn425.nn import functional

from .samples import SIDE, SmallOptions, accuracy, fit, small, subset

TINY = ("--dataset", "bars", "--steps", "1", "--examples", "8", "--seeds", "1", "--test-examples", "20", "--batch-size", "4")

CHANNELS, KERNEL, DIGIT = (8, 16, 32), 3, 10  # of the three stages; pixels; pixels of a small digit
Layer = Callable[[int, int, int], nn.Module]  # of channels in, channels out, pixels of a side


def everything(c: int, o: int, side: int) -> nn.Module:
    """As many units as the others have, each connected to all pixels."""
    return nn.Sequential(nn.Flatten(), ours.Linear(c * side**2, o * side**2), nn.Unflatten(1, (o, side, side)))


def windows(**sharing: Any) -> Layer:
    """Windows whose weights are shared in blocks or tiles, or not at all."""
    return lambda c, o, side: ours.LocallyConnected2d(c, o, side, KERNEL, padding=KERNEL // 2, **sharing)


def mixture(rank: int) -> Layer:
    """Windows whose weights are mixtures of so many convolutions."""
    return lambda c, o, side: ours.LowRankLocal2d(c, o, side, KERNEL, rank, padding=KERNEL // 2)


LAYERS: dict[str, Layer] = {
    "fully connected": everything,
    "local": windows(),
    "blocks of 2": windows(share=2),
    "blocks of 4": windows(share=4),
    "blocks of 7": windows(share=7),
    "tiles of 2": windows(tile=2),
    "rank 8": mixture(8),
    "rank 4": mixture(4),
    "rank 2": mixture(2),
    "rank 1": mixture(1),
    "convolution": lambda c, o, side: ours.Conv2d(c, o, KERNEL, padding=KERNEL // 2),
}
NAMES = tuple(LAYERS)
BETWEEN = [NAMES.index(f"rank {rank}") for rank in (8, 4, 2)]
ENDS = [NAMES.index("local"), NAMES.index("convolution")]


@dataclass(frozen=True)
class SpectrumOptions(SmallOptions):
    """What can be changed; see --help."""

    steps: int = 120
    """Steps of each run."""
    examples: int = 2000
    """Training examples."""

    def __post_init__(self) -> None:
        """Refuses numbers that mean nothing; `--full` has numbers of its own."""
        in_full(self, steps=1200, seeds=5, examples=10000, test_examples=0)
        super().__post_init__()
        at_least(self, steps=1, examples=1)
        if self.layers == "torch":
            raise LabError("--layers torch: torch has no layers between a local one and a convolution", 2)


class SpectrumVerdict(NamedTuple):
    """Mean test accuracy from 0 to 1 of the eleven networks on each set; holds if low rank leads both ends by two errors on all three."""

    holds: bool
    as_it_is: tuple[float, ...]
    """recognised by the eleven networks, fully connected to convolution, MNIST as it is [%]"""
    jittered: tuple[float, ...]
    """the same, digits anywhere [%]"""
    framed: tuple[float, ...]
    """the same, centred in a frame [%]"""
    gain: tuple[float, ...]
    """lead of the best rank from 2 to 8 over the better of local layer and convolution, on each set [%]"""
    error: tuple[float, ...]
    """its standard error [%]"""
    parameters: tuple[int, ...]
    """weights and biases of the eleven networks"""

    def sentence(self) -> str:
        """What came out."""
        ahead = ", ".join(
            f"{title.lower()} {100 * gain:+.1f} ± {100 * error:.1f}" for title, gain, error in zip(SETS, self.gain, self.error, strict=True)
        )
        rows = (self.as_it_is, self.jittered, self.framed)
        best = ", ".join(NAMES[max(range(len(row)), key=row.__getitem__)] for row in rows)
        return f"low rank leads the better end by so many points: {ahead}; best of all on the three sets: {best}"


def network(name: str, seed: int, classes: int) -> nn.Sequential:
    """Images `(N, 1, 16, 16) -> (N, classes)`: three stages of units, and the mean over all positions."""
    stages: list[nn.Module] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        c, side = 1, SIDE
        for o in CHANNELS:
            stages += [LAYERS[name](c, o, side), nn.BatchNorm2d(o), ours.ReLU(), ours.MaxPool2d(2)]
            c, side = o, side // 2
        return nn.Sequential(*stages[:-1], ours.AdaptiveAvgPool2d(1), nn.Flatten(), ours.Linear(c, classes))


def set_down(pictures: Pictures, corners: Tensor) -> Pictures:
    """The pictures at 10x10 pixels, each with its upper left corner at row and column `corners (N, 2)` of a 16x16 canvas."""
    digits = functional.adaptive_avg_pool2d(pictures.images, DIGIT)
    canvas, which = torch.zeros(len(digits), SIDE, SIDE), torch.arange(len(digits))
    rows, columns = corners[:, :1] + torch.arange(DIGIT), corners[:, 1:] + torch.arange(DIGIT)
    canvas[which[:, None, None], rows[:, :, None], columns[:, None, :]] = digits[:, 0]
    return pictures._replace(images=canvas.unsqueeze(1))


def jittered(pictures: Pictures, seed: int) -> Pictures:
    """Small pictures, each anywhere on the canvas."""
    return set_down(pictures, torch.randint(SIDE - DIGIT + 1, (len(pictures.labels), 2), generator=torch.Generator().manual_seed(seed)))


def framed(pictures: Pictures, seed: int) -> Pictures:
    """Small pictures in the middle, by their ink, of a bright frame one pixel wide."""
    ink = functional.adaptive_avg_pool2d(pictures.images, DIGIT)[:, 0] > 0.1
    lines = torch.stack([ink.any(2), ink.any(1)], 1).int()  # rows and columns with ink
    first, last = lines.argmax(2), DIGIT - 1 - lines.flip(2).argmax(2)
    corners = ((SIDE - 1 - first - last) / 2).floor().long().clamp(0, SIDE - DIGIT)
    placed = set_down(pictures, corners)
    for side in (2, 3):
        placed.images.index_fill_(side, torch.tensor([0, SIDE - 1]), 1.0)
    return placed


SETS: dict[str, Callable[[Pictures, int], Pictures]] = {"As it is": lambda pictures, seed: pictures, "Jittered": jittered, "Framed": framed}


def main(argv: Sequence[str] | None = None) -> SpectrumVerdict:
    """Train every network on every set; the verdict."""
    options = parse(SpectrumOptions, argv)
    training, test = small(options)
    classes = len(training.classes)
    runs = [(s, k, repeat) for repeat in range(options.seeds) for s in range(len(SETS)) for k in range(len(NAMES))]
    reached = torch.zeros(len(SETS), len(NAMES), options.seeds, dtype=torch.float64)
    tests = [change(test, -1) for change in SETS.values()]
    counts = tuple(parameters(network(name, 0, classes)) for name in NAMES)
    with study("spectrum", options) as record:
        for s, k, repeat in watched(runs, "spectrum", len(runs)):
            seed = options.seed + repeat
            known = list(SETS.values())[s](subset(training, options.examples, seed), seed)
            model = network(NAMES[k], seed, classes)
            fit(model, known, options.steps, options, seed)
            reached[s, k, repeat] = accuracy(model, tests[s])
        mean, spread = reached.mean(2), reached.std(2, correction=min(1, options.seeds - 1))
        table = Table("network", "parameters", *SETS, title=f"{options.examples} examples, {options.seeds} seeds: mean and spread")
        for k, name in enumerate(NAMES):
            table.add_row(name, f"{counts[k]:,}", *(f"{mean[s, k]:.1%} ± {spread[s, k]:.1%}" for s in range(len(SETS))))
        say_table(table)
        for s, title in enumerate(SETS):
            record.curve(f"accuracy from fully connected to convolution/{title}", range(len(NAMES)), mean[s].tolist())
        gains = [
            reached[s, max(BETWEEN, key=mean[s].tolist().__getitem__)] - reached[s, max(ENDS, key=mean[s].tolist().__getitem__)]
            for s in range(len(SETS))
        ]
        gain = tuple(float(each.mean()) for each in gains)
        error = tuple(float(each.std(correction=min(1, options.seeds - 1))) / options.seeds**0.5 for each in gains)
        plain, moved, centred = (tuple(row) for row in mean.tolist())
        holds = all(g > 2 * e for g, e in zip(gain, error, strict=True))
        verdict = SpectrumVerdict(holds, plain, moved, centred, gain, error, counts)
        record.figure("spectrum", draw(reached, tests, verdict))
        record.figure("sets", draw_sets())
        return record.verdict(verdict)


def draw(reached: Tensor, tests: Sequence[Pictures], verdict: SpectrumVerdict) -> Figure:
    """Accuracy from no sharing to sharing everywhere, one panel per set, each with four of its pictures."""
    made = figures.figure(11, 5.4)
    made.suptitle(
        "Low rank against the better of local layer and convolution: "
        + ", ".join(f"{title.lower()} {100 * gain:+.1f}" for title, gain in zip(SETS, verdict.gain, strict=True))
        + " points",
        fontsize=13,
    )
    colours = ["#999999", "#edae49", *["#66a182"] * 3, "#6a4c93", *["#d1495b"] * 4, "#00798c"]
    labels = [f"{name}  ({count:,})" for name, count in zip(NAMES, verdict.parameters, strict=True)]
    grid = made.add_gridspec(2, len(SETS), height_ratios=[1, 4.2])
    for s, title in enumerate(SETS):
        axes = made.add_subplot(grid[0, s], xticks=[], yticks=[])
        axes.imshow(torch.cat([1 - picture[0] for picture in tests[s].images[:4]], 1).numpy(), cmap="gray", vmin=0, vmax=1)
        axes.set_title(title, fontsize=12)
        axes = made.add_subplot(grid[1, s])
        mean = reached[s].mean(1)
        low = max(0.0, float(mean[1:].min()) - 0.05)  # a fully connected network may be far behind
        axes.axvline(float(mean[-1]), color="#00798c", linewidth=1, linestyle="--")
        for k, colour in enumerate(colours):
            axes.plot(reached[s, k], [k] * reached.shape[2], "o", color="black", markersize=3, alpha=0.6)
            axes.plot([mean[k]], [k], "D", color=colour, markeredgecolor="black", markersize=9, alpha=0.9)
            if mean[k] < low:
                axes.text(low, k, f"  ← {percent(float(mean[k]))}", va="center", color="#555555", fontsize=9)
        axes.set(xlim=(low, min(1.0, float(reached[s].max()) + 0.02)), ylim=(len(NAMES) - 0.5, -0.5))
        axes.set_yticks(range(len(NAMES)), labels if s == 0 else [""] * len(NAMES), fontsize=9)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))
        axes.set_xlabel("recognised test pictures", fontsize=9)
        axes.grid(color="#e5e5e5")
        axes.set_axisbelow(True)
    return made


def sets(layer: nn.Module, positions: int) -> Tensor:
    """Which set of weights each position uses, from 0: `(I, J)`; its one weight per set is its number, and the image is 1 everywhere."""
    weight = layer.get_parameter("weight")
    with torch.no_grad():
        weight.copy_(torch.arange(weight.numel()).reshape(weight.shape))
        found: Tensor = layer(torch.ones(1, 1, positions, positions))[0, 0]
    return found.long()


def draw_sets(positions: int = 8) -> Figure:
    """Positions coloured by the set of weights they use, from the local layer to the convolution."""
    made = figures.figure(11, 2.1)
    bare: dict[str, Any] = {"kernel_size": 1, "bias": False}
    layers: dict[str, nn.Module] = {
        "local": ours.LocallyConnected2d(1, 1, positions, **bare),
        **{f"share={n}": ours.LocallyConnected2d(1, 1, positions, share=n, **bare) for n in (2, 4, 7)},
        "tile=2": ours.LocallyConnected2d(1, 1, positions, tile=2, **bare),
        "rank=3": ours.LowRankLocal2d(1, 1, positions, rank=3, **bare),
        "convolution": ours.Conv2d(1, 1, **bare),
    }
    for axes, (name, layer) in zip(made.subplots(1, len(layers)).flat, layers.items(), strict=True):
        if isinstance(layer, ours.LowRankLocal2d):
            random = torch.Generator().manual_seed(1)
            for name_of_side in layer.mixing_shapes:
                nn.init.normal_(layer.get_parameter(name_of_side), std=2.0, generator=random)
            cells = layer.coefficients().detach().permute(1, 2, 0)  # a mixture of three is a mixture of red, green and blue
            words = "3 sets, mixed"
        else:
            used = sets(layer, positions)
            count = int(used.max()) + 1
            order = torch.randperm(count, generator=torch.Generator().manual_seed(0))  # so that neighbours differ
            cells = torch.as_tensor(matplotlib.colormaps["turbo"](((order[used] + 0.5) / count).numpy()))
            words = f"{count} {'sets' if count > 1 else 'set'}"
        axes.imshow(cells.numpy())
        lines = [k - 0.5 for k in range(positions + 1)]
        axes.set(xticks=lines, yticks=lines, xticklabels=[], yticklabels=[])
        axes.tick_params(length=0)
        axes.grid(color="white", linewidth=1)
        axes.set_title(f"{name}\n{words}", fontsize=11)
    return made


if __name__ == "__main__":
    command(main)
