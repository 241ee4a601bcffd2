"""The fewer connections and the more sharing, the fewer examples are needed: test accuracy against the number of training digits.

    python -m experiments.samples            (about 40 seconds; `--full`: more examples, steps and seeds, about 10 minutes)

Three networks on MNIST's digits at 16x16 pixels, the same except for what connects their units to what lies before: everything (fully
connected), a 5x5 window with weights of its own (locally connected), a 5x5 window with shared weights (convolution). Each has 8 x 16 x 16
units, ReLU, a 2x2 maximum, 16 x 8 x 8 units, ReLU, a 2x2 maximum, and one linear layer. Every run takes the same number of Adam steps;
seeds differ in examples, initial weights and order. Spread is the standard deviation over seeds.

Two stages are needed: with the first alone (and its maximum, and the linear layer) the three networks were level, 74.3, 75.7, 74.3 % from
100 examples and 89.6, 88.5, 88.3 % from 1000 (200 steps at 0.005 on batches of 50, 3 seeds, spread about 1 point).

Figures:

    samples.png    Three networks learn from growing numbers of digits, with several draws each. Look at the vertical distance between the
                   curves: it is largest where examples are few.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, cast, get_args

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from rich.table import Table
from torch import Tensor, nn

from cnn425.lab import digits, figures, recipes
from cnn425.lab.errors import LabError, command
from cnn425.lab.models import Layers, namespace, parameters
from cnn425.lab.order import Order
from cnn425.lab.pictures import Pictures, bars
from cnn425.lab.progress import say_table, watched
from cnn425.lab.study import StudyOptions, at_least, in_full, parse, study
from cnn425.lab.verdict import percent
from cnn425.nn import functional

from .shift import COLOURS, KINDS, Kind, units

TINY = ("--dataset", "bars", "--sizes", "8", "16", "--steps", "2", "--seeds", "1", "--test-examples", "40")

SIDE, CHANNELS = 16, (8, 16)  # pixels, of the two stages


@dataclass(frozen=True)
class SmallOptions(StudyOptions):
    """What experiments with many short runs on small digits have in common."""

    batch_size: int = 32
    """Examples per step."""
    lr: float = 0.01
    """Adam's learning rate at the first step; it falls linearly to zero."""
    threads: int = 1
    """CPU threads; these networks are so small that threads wait for one another more than they compute. 0: torch's own choice."""
    dataset: digits.Dataset | str = "mnist"
    """MNIST or a sibling, at 16x16 pixels; or `bars`, synthetic pictures of bars in four directions (no files needed)."""
    data_dir: Path | None = None
    """The folder that holds MNIST/raw/... Default: CNN425_DATA_DIR, else a cache with download."""
    test_examples: int = 2000
    """Test pictures, the first of the test set. 0: all."""
    seeds: int = 3
    """How often every run is repeated with other examples and other initial weights."""

    def __post_init__(self) -> None:
        """Refuses numbers that mean nothing."""
        at_least(self, threads=0, seeds=1, batch_size=1, test_examples=0)
        if not self.lr > 0:
            raise LabError(f"--lr is {self.lr}; a learning rate must be positive", 2)


@dataclass(frozen=True)
class SampleOptions(SmallOptions):
    """What can be changed; see --help."""

    sizes: tuple[int, ...] = (30, 100, 300, 1000)
    """Numbers of training examples."""
    steps: int = 200
    """Steps of each run, whatever the number of examples."""

    def __post_init__(self) -> None:
        """Refuses numbers that mean nothing; `--full` has numbers of its own."""
        in_full(self, sizes=(30, 100, 300, 1000, 3000, 10000, 30000), seeds=5, steps=1500, test_examples=0)
        super().__post_init__()
        at_least(self, steps=1)
        if not self.sizes or min(self.sizes) < 1:
            raise LabError(f"--sizes is {self.sizes}; numbers of at least 1 are wanted", 2)


class SampleVerdict(NamedTuple):
    """Mean test accuracy from 0 to 1 for each number of examples; holds if more sharing is better at every number of examples.

    `better` lists, for each number of examples, by how much the convolution leads the local layer, and that the fully connected one.
    """

    holds: bool
    fully_connected: tuple[float, ...]
    """test digits recognised, fully connected, by number of examples [%]"""
    locally_connected: tuple[float, ...]
    """the same, locally connected [%]"""
    convolution: tuple[float, ...]
    """the same, convolution [%]"""
    better: tuple[tuple[float, float], ...]
    """lead of the convolution over the local layer, and of that over the fully connected one [%]"""

    def sentence(self) -> str:
        """What came out."""
        return (
            f"from the fewest examples the convolution recognises {percent(self.convolution[0])} of the test digits, locally connected "
            f"{percent(self.locally_connected[0])}, fully connected {percent(self.fully_connected[0])}; from the most "
            f"{percent(self.convolution[-1])}, {percent(self.locally_connected[-1])}, {percent(self.fully_connected[-1])}"
        )


def small(options: SmallOptions) -> tuple[Pictures, Pictures]:
    """Training and test pictures at 16x16 pixels, brightness 0 to 1: the digits without their margin, averaged down by our own pool."""
    if options.dataset == "bars":
        return bars(6000, seed=options.seed), bars(options.test_examples or 1000, seed=options.seed + 1)
    if options.dataset not in get_args(digits.Dataset):
        raise LabError(f"--dataset is {options.dataset}; it must be bars or one of {', '.join(get_args(digits.Dataset))}", 2)
    training, test = digits.load(cast(digits.Dataset, options.dataset), options.data_dir)
    test = test.first(options.test_examples or len(test.labels))

    def shrunk(pictures: Pictures) -> Pictures:
        middle = pictures.batch(slice(None))[0][..., 2:26, 2:26]
        return pictures._replace(images=functional.adaptive_avg_pool2d(middle, SIDE))

    return shrunk(training), shrunk(test)


def subset(pictures: Pictures, examples: int, seed: int) -> Pictures:
    """So many examples, drawn without replacement, the classes as equally often as possible."""
    random = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(pictures.labels), generator=random)
    labels = pictures.labels[order]
    rank = torch.zeros_like(labels)  # the how-manieth of its class an example is
    for label in range(len(pictures.classes)):
        rank[labels == label] = torch.arange(int((labels == label).sum()))
    chosen = order[rank.argsort(stable=True)[:examples]]
    return Pictures(pictures.images[chosen], pictures.labels[chosen], pictures.classes)


def fit(
    model: nn.Module,
    pictures: Pictures,
    steps: int,
    options: SmallOptions,
    seed: int,
    watch: Callable[[int], object] | None = None,
    first: int = 0,
    last: int | None = None,
    loss: Callable[[Tensor, Tensor], Tensor] | None = None,
    kind: type[torch.optim.Optimizer] = torch.optim.Adam,
) -> None:
    """Adam steps `first` to `last` (default: all) of so many, with a learning rate that falls linearly to zero.

    `watch(step)` is called before each step, and after the last of all; `loss(outputs, labels)` is the cross-entropy by default.
    """
    loss = loss or namespace(options.layers).CrossEntropyLoss()
    optimizer = kind(model.parameters(), lr=options.lr)  # type: ignore[call-arg]
    order = Order(len(pictures.labels), options.batch_size, seed + first)
    last = steps if last is None else last
    for step in range(first, last):
        if watch:
            watch(step)
        if order.epoch_is_over:
            order.next_epoch()
        images, labels = pictures.batch(order.current())
        order.advance()
        optimizer.param_groups[0]["lr"] = options.lr * (1 - step / steps)
        optimizer.zero_grad()
        loss(model(images), labels).backward()
        optimizer.step()
    if not all(bool(weights.isfinite().all()) for weights in model.parameters()):
        raise LabError(f"an --lr of {options.lr:g} is too large: the weights have grown beyond all numbers; try a smaller one")
    if watch and last == steps:
        watch(steps)


def accuracy(model: nn.Module, pictures: Pictures) -> float:
    """The share of pictures that are recognised."""
    return recipes.accuracy(model, pictures.images, pictures.labels)


def network(kind: Kind, layers: Layers, seed: int, classes: int) -> nn.Sequential:
    """Images `(N, 1, 16, 16) -> (N, classes)`: two stages of units, maximum over 2x2 units, whatever connects them to what lies before."""
    ours = namespace(layers)
    stages: list[nn.Module] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        c, side = 1, SIDE
        for o in CHANNELS:
            stages += [*units(kind, layers, c, o, side), ours.ReLU(), ours.MaxPool2d(2)]
            c, side = o, side // 2
        return nn.Sequential(*stages, nn.Flatten(), ours.Linear(c * side**2, classes))


def main(argv: Sequence[str] | None = None) -> SampleVerdict:
    """Train every network on every number of examples; the verdict."""
    options = parse(SampleOptions, argv)
    training, test = small(options)
    classes = len(training.classes)
    runs = [(k, s, repeat) for s in range(len(options.sizes)) for repeat in range(options.seeds) for k in range(len(KINDS))]
    reached = torch.zeros(len(KINDS), len(options.sizes), options.seeds, dtype=torch.float64)
    with study("samples", options) as record:
        for k, s, repeat in watched(runs, "samples", len(runs)):
            seed = options.seed + repeat
            model = network(KINDS[k], options.layers, seed, classes)
            fit(model, subset(training, options.sizes[s], seed), options.steps, options, seed)
            reached[k, s, repeat] = accuracy(model, test)
        mean, spread = reached.mean(2), reached.std(2, correction=min(1, options.seeds - 1))
        table = Table("examples", *KINDS, title=f"test accuracy, mean and spread over {options.seeds} seeds")
        for s, size in enumerate(options.sizes):
            table.add_row(f"{size:,}", *(f"{mean[k, s]:.1%} ± {spread[k, s]:.1%}" for k in range(len(KINDS))))
        say_table(table)
        for k, kind in enumerate(KINDS):
            record.curve(f"accuracy by examples/{kind}", options.sizes, mean[k].tolist())
        record.figure("samples", draw(options, reached, [parameters(network(kind, options.layers, 0, classes)) for kind in KINDS]))
        leads = tuple((float(mean[2, s] - mean[1, s]), float(mean[1, s] - mean[0, s])) for s in range(len(options.sizes)))
        holds = all(lead > 0 for pair in leads for lead in pair)
        full, local, convolution = (tuple(row) for row in mean.tolist())
        return record.verdict(SampleVerdict(holds, full, local, convolution, leads))


def draw(options: SampleOptions, reached: Tensor, counts: Sequence[int]) -> Figure:
    """Test accuracy against the number of training examples, one curve per network, a dot per run."""
    made = figures.figure(8, 4.8)
    axes = made.subplots()
    ends = []
    for k, (kind, count) in enumerate(zip(KINDS, counts, strict=True)):
        axes.plot(options.sizes, reached[k].mean(1), "-", color=COLOURS[kind], linewidth=2, label=f"{kind}: {count:,} parameters")
        for s, size in enumerate(options.sizes):
            axes.plot([size] * options.seeds, reached[k, s], "o", color=COLOURS[kind], markersize=4, alpha=0.5)
        ends.append(float(reached[k].min()))
    axes.set(xscale="log", xlabel="training examples", ylabel="recognised test pictures", ylim=(max(0, min(ends) - 0.03), 1))
    axes.set_xticks(options.sizes, [f"{size:,}" for size in options.sizes])
    axes.minorticks_off()
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.grid(color="#e5e5e5")
    axes.legend(loc="lower right", title="connections")
    axes.set_title("What need not be learnt twice needs fewer examples", fontsize=12)
    return made


if __name__ == "__main__":
    command(main)
