"""Weights that were shared while it mattered need not stay shared: a convolution that is unshared and trained on keeps its lead.

    python -m experiments.relaxing            (about 40 seconds; `--full`: more seeds and steps, about 10 minutes)

After S. d'Ascoli, L. Sagun, G. Biroli, J. Bruna, "Finding the needle in the haystack with convolutions: on the benefits of architectural
bias", 2019: a convolutional network is trained for a while, rewritten as an unshared one that computes the same
(`LocallyConnected2d.from_conv`), and trained on. The paper embeds in a fully connected network (whose new weights start at zero) and finds
that the relaxed network stays ahead of one that was free from the start, and that relaxing late can even beat the convolution.

What differs: we free the weights of each position, not the connections; digits of MNIST at 16x16 pixels, few of them, not CIFAR-10; Adam,
so that a weight moves at the same rate whether its gradient is summed over positions or not (it starts anew when the weights are freed:
the dip there). Curves: test accuracy, and how far the filters of the positions have come apart, the root mean square of
|filter of a position - mean filter| / |mean filter|; 0 is a convolution. Here the lead is kept, not enlarged.

Figures:

    relaxing.png    A convolution is unshared after a part of the steps, and then every position learns weights of its own. Look at the
                    green curves in the middle: the filters come apart once they are unshared; the accuracy on the left dips and recovers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from rich.table import Table
from torch import Tensor, nn

from cnn425.lab import figures
from cnn425.lab.errors import LabError, command
from cnn425.lab.models import local_layer
from cnn425.lab.pictures import Pictures
from cnn425.lab.progress import say_table, watched
from cnn425.lab.study import at_least, in_full, parse, study
from cnn425.lab.verdict import percent

from .samples import SIDE, SmallOptions, accuracy, fit, network, small, subset

TINY = (
    "--dataset", "bars", "--steps", "4", "--relax-at", "0.5", "--examples", "32", "--seeds", "1", "--test-examples", "40", "--points", "2",
)  # fmt: skip

SHARED, FREE = "shared throughout", "free from the start"


@dataclass(frozen=True)
class RelaxingOptions(SmallOptions):
    """What can be changed; see --help."""

    steps: int = 300
    """Steps of each run, before and after relaxing together."""
    relax_at: tuple[float, ...] = (0.1, 0.5)
    """When to unshare, as a share of all steps."""
    examples: int = 300
    """Training examples."""
    test_examples: int = 1000
    """Test pictures, the first of the test set. 0: all."""
    points: int = 10
    """How often accuracy and distance are measured."""

    def __post_init__(self) -> None:
        """Refuses numbers that mean nothing; `--full` has numbers of its own."""
        in_full(self, steps=2000, seeds=5, relax_at=(0.02, 0.1, 0.5), test_examples=0)
        super().__post_init__()
        at_least(self, steps=2, examples=1, points=1)
        if not self.relax_at or not all(0 < share < 1 for share in self.relax_at):
            raise LabError(f"--relax-at is {self.relax_at}; shares of the steps, between 0 and 1, are wanted", 2)


class RelaxingVerdict(NamedTuple):
    """Final test accuracy from 0 to 1, mean over seeds, and the filters' final distance from their mean, by when they were relaxed.

    Holds if every relaxed network ends ahead of the one that was free from the start, and its filters have come apart. Whether relaxing
    also beats the convolution itself is told by `gain` (the best relaxed network's accuracy less the convolution's); it is not required.
    """

    holds: bool
    shared: float
    """test digits recognised, shared throughout [%]"""
    relaxed: tuple[float, ...]
    """the same, unshared on the way, by when [%]"""
    free: float
    """the same, free from the start [%]"""
    distance: tuple[float, ...]
    """how far the filters of the positions have come apart, by when"""
    free_distance: float
    """the same, free from the start"""
    gain: float
    """the best unshared network less the shared one [%]"""

    def sentence(self) -> str:
        """What came out."""
        return (
            f"unshared on the way, the network recognises {percent(max(self.relaxed), 1)} of the test digits; shared throughout "
            f"{percent(self.shared, 1)}, free from the start {percent(self.free, 1)}"
        )


class Courses(NamedTuple):
    """Steps at which was measured; accuracy and distance there."""

    steps: list[int]
    accuracy: list[float]
    distance: list[float]


def unshared(model: nn.Sequential, layers: str) -> nn.Sequential:
    """The same function of the image, with every convolution turned into a local layer that starts from its weights."""
    kind, side, stages = local_layer(layers), SIDE, []  # type: ignore[arg-type]
    for layer in model:
        if isinstance(layer, nn.Conv2d):
            stages.append(kind.from_conv(layer, side))
        else:
            stages.append(layer)
            side = side // 2 if hasattr(layer, "kernel_size") else side
    return nn.Sequential(*stages)


def distance(model: nn.Sequential) -> float:
    """Root mean square over positions of |filter - mean filter| / |mean filter|, averaged over local layers; 0 for shared weights."""
    apart = []
    for layer in model:
        weight = getattr(layer, "weight", None)
        if isinstance(weight, Tensor) and weight.ndim == 6:
            filters = weight.detach().flatten(0, 1)
            mean = filters.mean(0)
            apart.append(float((filters - mean).square().sum((1, 2, 3, 4)).mean().sqrt() / mean.norm()))
    return sum(apart) / len(apart) if apart else 0.0


def course(
    options: RelaxingOptions, relax_at: float | None, free: bool, training: Pictures, test: Pictures, seed: int
) -> tuple[Courses, nn.Sequential]:
    """One run: a convolution, relaxed after a share of the steps (None: never), or a local network from the start."""
    model = network("locally connected" if free else "convolution", options.layers, seed, len(training.classes))
    every = max(1, options.steps // options.points)
    seen = Courses([], [], [])
    before = 0 if relax_at is None else max(1, round(relax_at * options.steps))
    for first, last in ((0, before), (before, options.steps)):
        if first == before and relax_at is not None:
            model = unshared(model, options.layers)

        def watch(step: int, model: nn.Sequential = model) -> None:
            if step % every == 0 or step == options.steps:
                seen.steps.append(step)
                seen.accuracy.append(accuracy(model, test))
                seen.distance.append(distance(model))

        if last > first:
            fit(model, training, options.steps, options, seed, watch, first, last)
    return seen, model


def main(argv: Sequence[str] | None = None) -> RelaxingVerdict:
    """Train shared, relaxed and free networks; the verdict."""
    options = parse(RelaxingOptions, argv)
    training, test = small(options)
    kinds: dict[str, tuple[float | None, bool]] = {SHARED: (None, False)}
    kinds |= {f"unshared after {share:.0%} of the steps": (share, False) for share in options.relax_at} | {FREE: (None, True)}
    runs = [(name, repeat) for repeat in range(options.seeds) for name in kinds]
    courses: dict[str, list[Courses]] = {name: [] for name in kinds}
    with study("relaxing", options) as record:
        for name, repeat in watched(runs, "relaxing", len(runs)):
            chosen = subset(training, options.examples, options.seed + repeat)
            seen, model = course(options, *kinds[name], chosen, test, options.seed + repeat)
            courses[name].append(seen)
            if repeat == 0 and name == list(kinds)[1]:
                example = model
        table = Table("network", "test accuracy at the end", "filters apart", title=f"{options.examples} examples, {options.seeds} seeds")
        ends = {name: torch.tensor([[c.accuracy[-1], c.distance[-1]] for c in seen], dtype=torch.float64) for name, seen in courses.items()}
        for name, end in ends.items():
            spread = float(end[:, 0].std(correction=min(1, options.seeds - 1)))
            table.add_row(name, f"{end[:, 0].mean():.1%} ± {spread:.1%}", f"{end[:, 1].mean():.2f}")
            record.curve(f"accuracy/{name}", courses[name][0].steps, mean_of([c.accuracy for c in courses[name]]))
            record.curve(f"distance/{name}", courses[name][0].steps, mean_of([c.distance for c in courses[name]]))
        say_table(table)
        shared, *relaxed, free = (tuple(end.mean(0).tolist()) for end in ends.values())
        holds = all(a > free[0] and d > 0 for a, d in relaxed)
        record.figure("relaxing", draw(courses, example))
        accuracies, distances = zip(*relaxed, strict=True)
        return record.verdict(RelaxingVerdict(holds, shared[0], accuracies, free[0], distances, free[1], max(accuracies) - shared[0]))


def mean_of(rows: Sequence[Sequence[float]]) -> list[float]:
    """Column by column."""
    return torch.tensor(rows, dtype=torch.float64).mean(0).tolist()


def draw(courses: dict[str, list[Courses]], example: nn.Sequential) -> Figure:
    """Accuracy and distance against steps, and the filters of one map after relaxing, each at its place in the image."""
    made = figures.figure(11, 4.4)
    ends = [mean_of([[c.accuracy[-1]] for c in seen])[0] for seen in courses.values()]
    made.suptitle(
        f"Unshared on the way {percent(max(ends[1:-1]), 1)}, shared throughout {percent(ends[0], 1)}, "
        f"free from the start {percent(ends[-1], 1)}",
        fontsize=13,
    )
    left, middle, right = made.subplots(1, 3, width_ratios=[1.25, 1.25, 1])
    colours = ["#00798c", "#66a182", "#a5be00", "#6a4c93", "#444444"][: len(courses) - 1] + ["#edae49"]
    for (name, seen), colour in zip(courses.items(), colours, strict=True):
        for axes, values in ((left, [c.accuracy for c in seen]), (middle, [c.distance for c in seen])):
            axes.plot(seen[0].steps, mean_of(values), color=colour, linewidth=2, label=name)
            if len(seen) > 1:
                bounds = torch.tensor(values).aminmax(dim=0)
                axes.fill_between(seen[0].steps, bounds.min, bounds.max, color=colour, alpha=0.12, linewidth=0)
    final = [c.accuracy[-1] for seen in courses.values() for c in seen]
    left.set(xlabel="step", ylabel="recognised test pictures", ylim=(max(0, min(final) - 0.12), min(1, max(final) + 0.03)))
    left.yaxis.set_major_formatter(PercentFormatter(1.0))
    left.grid(color="#e5e5e5")
    left.legend(fontsize=8, loc="lower right")
    left.set_title("Test accuracy (shade: all seeds)", fontsize=11)
    middle.set(xlabel="step", ylabel="|filter - mean filter| / |mean filter|", yscale="log", ylim=(0.02, None))
    middle.grid(color="#e5e5e5")
    middle.set_title("Distance of the positions' filters", fontsize=11)
    places = 6
    filters = figures.filters(example, (SIDE, SIDE))[0, 5 * 5 : (5 + places) * 5, 5 * 5 : (5 + places) * 5]  # in the middle of the image
    right.imshow(figures.stretched(filters).numpy(), cmap="RdBu_r", vmin=0, vmax=1)
    cells = [5 * k - 0.5 for k in range(places + 1)]
    right.set(xticks=cells, yticks=cells, xticklabels=[], yticklabels=[])
    right.tick_params(length=0)
    right.grid(color="white", linewidth=3)
    right.set_title("One filter at 6x6 positions\n(red: positive)", fontsize=11)
    return made


if __name__ == "__main__":
    command(main)
