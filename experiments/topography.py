"""A penalty on unlike neighbours draws maps: units side by side come to prefer one orientation, distant ones not, at little cost.

    python -m experiments.topography            (about 50 seconds; `--full`: more steps and seeds, about 10 minutes)

After Z. Lu, A. Doerig, V. Bosch, B. Krahmer, D. Kaiser, R. Cichy, T. Kietzmann, "End-to-end topographic networks as models of cortical map
formation and human visual behaviour" (All-TNN), 2025: locally connected layers are trained with the loss of the task and a weight times the
mean distance of neighbouring units' filters, 1 - cosine (`cnn425.nn.neighbour_similarity`), and smooth maps of preferred orientation
appear, as in the visual cortex. Here: the locally connected network of `samples` on MNIST's digits at 16x16 pixels, the penalty on both of
its layers, and one map per channel. In the paper: photographs, six layers, and one map per layer, in which the channels of a position lie
side by side.

The preferred orientation of a unit is read off its 5x5 filter w: its answers to gratings of 36 orientations t, periods of 3, 4 and 5 pixels
and any phase have the energy E(t) = sum over periods of |sum over u,v of w[u,v] exp(2 pi i (u cos t + v sin t) / period)|^2, and the
orientation is half the angle of sum over t of E(t) exp(2 i t), as physiologists read it off a tuning curve. Orientations repeat after 180
degrees, so two differ by 0 to 90 degrees, and by 45 if there is no order. `neighbours` is the mean difference of neighbours in a map,
`pairs` that of all pairs in a map; in a convolution both are 0. Positions whose windows reach into the padding are left out.

Figures:

    topography.png    Local networks learn digits with growing weights of the penalty. Colours are preferred orientations, four maps of
                      12x12 units each: without a penalty a patchwork, with it smooth. Look at the lower right: where the red curve is
                      below the grey one there is a map; where both are near 0 the layer would be a convolution.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import matplotlib
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from rich.table import Table
from torch import Tensor, nn

from cnn425.lab import figures
from cnn425.lab.errors import LabError, command
from cnn425.lab.models import namespace
from cnn425.lab.pictures import Pictures
from cnn425.lab.progress import say_table, watched
from cnn425.lab.study import at_least, in_full, parse, study
from cnn425.lab.verdict import percent
from cnn425.nn import neighbour_similarity

from .samples import SmallOptions, accuracy, fit, network, small, subset
from .shift import KERNEL
from .sleep import local_layers

TINY = ("--dataset", "bars", "--steps", "2", "--examples", "16", "--weights", "0", "1", "--seeds", "1", "--test-examples", "20")

ORIENTATIONS, PERIODS = 36, (3.0, 4.0, 5.0)  # of gratings; pixels


@dataclass(frozen=True)
class TopographyOptions(SmallOptions):
    """What can be changed; see --help."""

    steps: int = 300
    """Steps of each run."""
    examples: int = 1000
    """Training examples."""
    weights: tuple[float, ...] = (0.0, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
    """Weights of the penalty, ascending, the first 0."""

    def __post_init__(self) -> None:
        """Refuses numbers that mean nothing; `--full` has numbers of its own."""
        in_full(self, steps=2000, seeds=5, examples=10000, test_examples=0)
        super().__post_init__()
        at_least(self, steps=1, examples=1)
        if len(self.weights) < 2 or self.weights[0] != 0 or list(self.weights) != sorted(set(self.weights)):
            raise LabError(f"--weights is {self.weights}; ascending numbers are wanted, the first of them 0", 2)


class TopographyVerdict(NamedTuple):
    """Means over seeds by weight of the penalty; holds if at some weight there is a map, and accuracy is at most one point lower.

    A map: neighbours differ by at most half as much as all pairs. `best` is the weight with the clearest map, the least neighbours / pairs,
    among those at which accuracy is at most one point lower than without a penalty (if there is none, the least weight).
    """

    holds: bool
    weights: tuple[float, ...]
    """weights of the penalty"""
    accuracy: tuple[float, ...]
    """test digits recognised [%]"""
    spread: tuple[float, ...]
    """their standard deviation over seeds [%]"""
    neighbours: tuple[float, ...]
    """difference of neighbours' preferred orientations, in degrees"""
    pairs: tuple[float, ...]
    """the same, all pairs in a map"""
    best: float
    """the weight with the clearest map at a cost of one point at most"""

    def sentence(self) -> str:
        """What came out."""
        k = self.weights.index(self.best)
        return (
            f"without a penalty neighbours' orientations differ by {self.neighbours[0]:.0f} degrees, with weight {self.best:g} by "
            f"{self.neighbours[k]:.0f}, all pairs by {self.pairs[k]:.0f}; accuracy goes from {percent(self.accuracy[0], 1)} to "
            f"{percent(self.accuracy[k], 1)}"
        )


def orientations(filters: Tensor) -> Tensor:
    """Preferred orientations of filters `(..., U, V)`, in radians from 0 to pi: 0 is a horizontal bar, pi/4 a rising one."""
    turns = torch.arange(ORIENTATIONS, dtype=torch.float64) * torch.pi / ORIENTATIONS
    u, v = (torch.arange(n, dtype=torch.float64) - (n - 1) / 2 for n in filters.shape[-2:])
    across = u[:, None] * turns.cos()[:, None, None] + v * turns.sin()[:, None, None]  # t u v; rows go down, so a bar rises with t
    energy = torch.zeros(*filters.shape[:-2], ORIENTATIONS, dtype=torch.float64)
    for period in PERIODS:
        wave = torch.exp(2j * torch.pi / period * across)
        energy += torch.einsum("...uv,tuv->...t", filters.to(wave.dtype), wave).abs().square()
    return (energy * torch.exp(2j * turns)).sum(-1).angle().remainder(2 * torch.pi) / 2


def apart(a: Tensor, b: Tensor) -> Tensor:
    """How far orientations differ, in degrees from 0 to 90."""
    return torch.rad2deg((a - b + torch.pi / 2).remainder(torch.pi) - torch.pi / 2).abs()


def maps(model: nn.Module) -> Tensor:
    """Preferred orientations of the first layer's units `(O, I, J)`, those left out whose windows reach into the padding."""
    edge = KERNEL // 2
    weight = figures.first_layer(model).get_parameter("weight").detach()[edge:-edge, edge:-edge, :, 0]
    return orientations(weight).permute(2, 0, 1)


def order(found: Tensor) -> tuple[float, float]:
    """The mean difference of neighbours, and of all pairs of one map, in degrees; maps `(O, I, J)`."""
    beside = [apart(found[:, 1:], found[:, :-1]).flatten(), apart(found[:, :, 1:], found[:, :, :-1]).flatten()]
    flat = found.flatten(1)
    units = flat.shape[1]
    return float(torch.cat(beside).mean()), float(apart(flat[:, :, None], flat[:, None]).sum((1, 2)).mean()) / (units * (units - 1))


def trained(weight: float, options: TopographyOptions, pictures: Pictures, seed: int) -> nn.Sequential:
    """A local network that learnt the digits and, by so much, to have neighbours alike."""
    model = network("locally connected", options.layers, seed, len(pictures.classes))
    mistakes, layers = namespace(options.layers).CrossEntropyLoss(), local_layers(model)

    def loss(outputs: Tensor, labels: Tensor) -> Tensor:
        found: Tensor = mistakes(outputs, labels)
        return found + weight * torch.stack([neighbour_similarity(layer) for layer in layers]).sum() if weight else found

    fit(model, pictures, options.steps, options, seed, loss=loss)
    return model


def main(argv: Sequence[str] | None = None) -> TopographyVerdict:
    """Train a local network with every weight of the penalty; the verdict."""
    options = parse(TopographyOptions, argv)
    training, test = small(options)
    runs = [(k, repeat) for repeat in range(options.seeds) for k in range(len(options.weights))]
    measured = torch.zeros(3, len(options.weights), options.seeds, dtype=torch.float64)
    drawn: list[Tensor] = []
    with study("topography", options) as record:
        for k, repeat in watched(runs, "topography", len(runs)):
            seed = options.seed + repeat
            model = trained(options.weights[k], options, subset(training, options.examples, seed), seed)
            found = maps(model)
            drawn += [found] if repeat == 0 else []
            measured[:, k, repeat] = torch.tensor([accuracy(model, test), *order(found)])
        mean, spread = measured.mean(2), measured[0].std(1, correction=min(1, options.seeds - 1))
        table = Table(
            "weight", "test accuracy", "neighbours differ", "all pairs", title=f"{options.examples} examples, {options.seeds} seeds"
        )
        for k, weight in enumerate(options.weights):
            table.add_row(f"{weight:g}", f"{mean[0, k]:.1%} ± {spread[k]:.1%}", f"{mean[1, k]:.0f} degrees", f"{mean[2, k]:.0f} degrees")
        say_table(table)
        verdict = judged(options.weights, measured)
        for name, row in (("accuracy", verdict.accuracy), ("neighbours", verdict.neighbours), ("pairs", verdict.pairs)):
            record.curve(f"{name} by number of the weight", range(len(row)), row)
        record.figure("topography", draw(measured, drawn, verdict))
        return record.verdict(verdict)


def judged(weights: Sequence[float], measured: Tensor) -> TopographyVerdict:
    """The verdict on accuracies and on differences of neighbours and pairs, `(3, weights, seeds)`."""
    seeds = measured.shape[2]
    mean, spread = measured.mean(2), measured[0].std(1, correction=min(1, seeds - 1))
    clear = mean[1] / mean[2].clamp(min=1e-12)
    cheap = mean[0, 0] - mean[0] <= 0.01
    best = min((k for k in range(1, len(weights)) if cheap[k]), key=lambda k: float(clear[k]), default=1)
    rows = [tuple(row) for row in (mean[0].tolist(), spread.tolist(), mean[1].tolist(), mean[2].tolist())]
    return TopographyVerdict(bool(cheap[best] and clear[best] <= 0.5), tuple(weights), rows[0], rows[1], rows[2], rows[3], weights[best])


def coloured(found: Tensor) -> Any:
    """Orientations as colours `(..., 4)`, equal again after half a turn."""
    return matplotlib.colormaps["hsv"]((found / torch.pi).numpy())


def draw(measured: Tensor, drawn: Sequence[Tensor], verdict: TopographyVerdict) -> Figure:
    """Maps without a penalty, with a middle weight and with the largest; accuracy and order against the weight."""
    made = figures.figure(11, 5.2)
    k = verdict.weights.index(verdict.best)
    made.suptitle(
        f"Neighbours differ by {verdict.neighbours[0]:.0f} degrees without a penalty, by {verdict.neighbours[k]:.0f} with weight "
        f"{verdict.best:g}; accuracy {percent(verdict.accuracy[0], 1)} and {percent(verdict.accuracy[k], 1)}",
        fontsize=13,
    )
    grid = made.add_gridspec(2, 4, width_ratios=[1, 1, 1, 1.35], height_ratios=[1.6, 1])
    shown = list(dict.fromkeys([0, len(verdict.weights) // 2, len(verdict.weights) - 1]))
    for column, k in enumerate(shown):
        axes = made.add_subplot(grid[0, column])
        gap = torch.full((drawn[k].shape[1], 1), torch.nan)
        rows = [torch.cat([drawn[k][o], gap, drawn[k][o + 1]], 1) for o in (0, 2)]
        sheet = torch.cat([rows[0], torch.full((1, rows[0].shape[1]), torch.nan), rows[1]])
        colours = torch.as_tensor(coloured(sheet.nan_to_num()))
        colours[sheet.isnan()] = 1.0
        axes.imshow(colours.numpy())
        axes.axis("off")
        axes.set_title(f"penalty times {verdict.weights[k]:g}" if k else "no penalty", fontsize=11)
    key = made.add_subplot(grid[1, :3], aspect="equal", xlim=(-1, 17), ylim=(-1.2, 3))
    key.axis("off")
    key.text(8, 2.2, "preferred orientation of a unit", ha="center", fontsize=10)
    for k in range(9):
        turn = torch.tensor(torch.pi * k / 9)
        x, y = 0.8 * float(turn.cos()), 0.8 * float(turn.sin())
        key.plot([2 * k - x, 2 * k + x], [-y, y], color=coloured(turn), linewidth=5, solid_capstyle="round")
    places = range(len(verdict.weights))
    upper, lower = made.add_subplot(grid[0, 3]), made.add_subplot(grid[1, 3])
    for axes, values, colour, name in (
        (upper, measured[0], "#00798c", None),
        (lower, measured[1], "#d1495b", "neighbours"),
        (lower, measured[2], "#777777", "all pairs"),
    ):
        axes.plot(places, values.mean(1), color=colour, linewidth=2, label=name)
        for k in places:
            axes.plot([k] * values.shape[1], values[k], "o", color=colour, markersize=3, alpha=0.5)
        axes.set_xticks(places, [f"{weight:g}" for weight in verdict.weights])
        axes.grid(color="#e5e5e5")
    upper.yaxis.set_major_formatter(PercentFormatter(1.0))
    upper.set_title("Recognised test pictures", fontsize=11)
    lower.set(ylim=(0, 50), yticks=[0, 15, 30, 45], xlabel="weight of the penalty", ylabel="degrees apart")
    lower.legend(fontsize=8, loc="lower left")
    return made


if __name__ == "__main__":
    command(main)
