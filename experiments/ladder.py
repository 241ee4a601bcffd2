"""The upper half of LeCun's ladder of 1989: each of two levels of weight sharing generalises better from 320 digits, with fewer weights.

    python -m experiments.ladder            (about 70 seconds; `--full`: twenty seeds, about 5 minutes)

The five networks of Y. LeCun, "Generalization and network design strategies", 1989 (numbers as in Hastie, Tibshirani, Friedman, "The
elements of statistical learning", table 11.1), 16x16 pixels in, 10 classes out:

    net-1   no hidden layer                                                                   2570 connections, 2570 weights   80.0 %
    net-2   12 hidden units that see everything                                               3214              3214           87.0 %
    net-3   8x8 units with 3x3 windows (stride 2), 4x4 units with 5x5 windows (stride 2)      1226              1226           88.5 %
    net-4   two maps of 8x8 units, each with one shared 3x3 window; 4x4 units as before       2266              1132           94.0 %
    net-5   two maps of 8x8, four maps of 4x4, all windows shared                             5194              1060           98.4 %

Units of a map share weights, not biases, as in the paper. The data are made as there: 12 digits per class, 16x13 pixels, each set down at 4
neighbouring columns of a 16x16 image; 32 of the 48 pictures per class to train, the other 16 to test. So the test asks above all whether
a drawing is known again one pixel further on. A second test asks for digits of other writers.

As in the paper: units are 1.7159 tanh(2a/3), the outputs too (made of our sigmoid); the loss is the squared error from 1 for the true class
and -1 for the others; initial weights are uniform in +-2.4/fan-in; 30 epochs. What differs: the paper's drawings, by one person with a
mouse, are lost, ours are MNIST's (others for each seed); its optimiser is a stochastic Newton method, ours plain gradient descent on four
pictures a step with a rate that falls to zero. (A. Karpathy's copy of LeCun's other network of 1989, on zip codes, github.com/karpathy/
lecun1989-repro, has the same loss and plain gradient descent, but 7,291 digits, and 2.4/sqrt(fan-in).)

What comes out with these digits is the upper half of the ladder: with the same windows, sharing the first level gains about 10 points and
sharing both another 7. The lower half does not: a hidden layer hardly helps, and small windows without sharing fall behind both networks
that see everything, by 12 and 14 points, so that net-5 ends only some points above net-2. `whole` says whether every network is better than
the one before.

Figures:

    ladder.png    Five networks learn 320 pictures each, several times with other digits; dots are single runs, diamonds LeCun's numbers.
                  Look at the steps to the last two bars, which share weights, and at the third, local without sharing, which falls behind.
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
from cnn425.lab.errors import command
from cnn425.lab.models import Layers, local_layer, namespace, parameters
from cnn425.lab.pictures import Pictures
from cnn425.lab.progress import say_table, watched
from cnn425.lab.study import at_least, in_full, parse, study
from cnn425.nn import functional

from .samples import SmallOptions, accuracy, fit, small, subset

TINY = ("--dataset", "bars", "--epochs", "1", "--drawings", "2", "--seeds", "1", "--test-examples", "40")

SIDE, PLACES = 16, 4  # pixels; columns at which a drawing is set down
WHAT = ("linear", "fully connected", "local", "local, one level shared", "local, two levels shared")
PAPER_ACCURACY = (0.800, 0.870, 0.885, 0.940, 0.984)


@dataclass(frozen=True)
class LadderOptions(SmallOptions):
    """What can be changed; see --help."""

    epochs: int = 30
    """How often every training example is seen; 30 in the paper."""
    batch_size: int = 4
    """Examples per step; 1 in the paper."""
    lr: float = 0.1
    """Learning rate at the first step; it falls linearly to zero."""
    seeds: int = 5
    """How often every run is repeated with other examples and other initial weights."""
    drawings: int = 12
    """Different digits per class; 12 in the paper. Each is set down at four places; two thirds of the pictures train, the rest tests."""

    def __post_init__(self) -> None:
        """Refuses numbers that mean nothing; `--full` has numbers of its own."""
        in_full(self, seeds=20, test_examples=0)
        super().__post_init__()
        at_least(self, drawings=1, epochs=1)


class LadderVerdict(NamedTuple):
    """Per network: test accuracy from 0 to 1, mean and spread (standard deviation over seeds); weights, connections.

    `others` is the mean accuracy on digits of other writers; `steps` are the differences from network to network, on drawings known from
    other places, and `sure` how many of their standard errors (over seeds, pairwise: the same pictures) each of them is. Holds if net-4 and
    net-5, where weights become shared, gain two errors or more.
    """

    holds: bool
    whole: bool
    """every network is better than the one before"""
    accuracy: tuple[float, ...]
    """the same drawings, moved: recognised by net-1 to net-5 [%]"""
    spread: tuple[float, ...]
    """their standard deviation over seeds [%]"""
    others: tuple[float, ...]
    """digits of other writers recognised [%]"""
    steps: tuple[float, ...]
    """gain of each network over the one before [%]"""
    sure: tuple[float, ...]
    """that gain in standard errors"""
    weights: tuple[int, ...]
    connections: tuple[int, ...]

    def sentence(self) -> str:
        """Whether sharing helps, and which networks are in the way of the whole ladder."""
        flat = [f"net-{k + 2} ({100 * step:+.1f} points)" for k, step in enumerate(self.steps) if step <= 0]
        steps = "every network is better than the one before" if self.whole else f"not better than the one before: {', '.join(flat)}"
        sharing = "both networks that share weights gain" if self.holds else "not both networks that share weights gain"
        return f"{sharing} more than two standard errors over the one before; {steps}"


def set_down(pictures: Pictures) -> Pictures:
    """Pictures squeezed to 16x13 pixels and set down at columns 0, 1, 2, 3 of 16, brightness from -1 to 1: four times as many."""
    narrow = functional.adaptive_avg_pool2d(pictures.images, (SIDE, SIDE - PLACES + 1))
    placed = torch.stack([nn.functional.pad(narrow, (k, PLACES - 1 - k)) for k in range(PLACES)], 1).flatten(0, 1)
    return Pictures(2 * placed - 1, pictures.labels.repeat_interleave(PLACES), pictures.classes)


def lecuns(pictures: Pictures, drawings: int, seed: int) -> tuple[Pictures, Pictures]:
    """Of each class so many drawings at four places each; at random, two thirds of a class's pictures to train, the others to test."""
    placed = set_down(subset(pictures, drawings * len(pictures.classes), seed))
    order = subset(placed, len(placed.labels), seed + 1)  # class by class in turn
    cut = len(order.labels) * 2 // 3 // len(order.classes) * len(order.classes)
    return order.first(cut), order._replace(images=order.images[cut:], labels=order.labels[cut:])


class Squash(nn.Module):
    """LeCun's unit, 1.7159 tanh(2a/3), from our sigmoid: tanh(a) = 2 sigmoid(2a) - 1."""

    def __init__(self, layers: Layers):
        super().__init__()
        self.sigmoid = namespace(layers).Sigmoid()

    def forward(self, a: Tensor) -> Tensor:
        """Any shape, values in +-1.7159."""
        squashed: Tensor = 1.7159 * (2 * self.sigmoid(4 / 3 * a) - 1)
        return squashed


class SharedWindow(nn.Module):
    """A convolution in which the units of a map share their weights but have biases of their own: `(N, C, H, W) -> (N, O, I, J)`."""

    def __init__(self, layers: Layers, c: int, o: int, side: int, kernel: int):
        super().__init__()
        self.conv = namespace(layers).Conv2d(c, o, kernel, stride=2, padding=kernel // 2, bias=False)
        self.bias = nn.Parameter(torch.zeros(o, side, side))

    def forward(self, image: Tensor) -> Tensor:
        """The convolution, and each unit's bias."""
        answer: Tensor = self.conv(image) + self.bias
        return answer


def network(rung: int, layers: Layers, seed: int, classes: int = 10) -> nn.Sequential:
    """Net-1 to net-5: images `(N, 1, 16, 16) -> (N, classes)`."""
    ours = namespace(layers)

    def own(c: int, side: int, kernel: int) -> nn.Module:
        layer: nn.Module = local_layer(layers)(c, 1, side, kernel, stride=2, padding=kernel // 2)
        return layer

    def shared(c: int, o: int, side: int, kernel: int) -> nn.Module:
        return SharedWindow(layers, c, o, side // 2, kernel)

    with torch.random.fork_rng(devices=[]):  # the layers draw weights that `start` replaces
        hidden: list[nn.Module] = {
            1: list,
            2: lambda: [nn.Flatten(), ours.Linear(SIDE * SIDE, 12), Squash(layers)],
            3: lambda: [own(1, SIDE, 3), Squash(layers), own(1, SIDE // 2, 5), Squash(layers)],
            4: lambda: [shared(1, 2, SIDE, 3), Squash(layers), own(2, SIDE // 2, 5), Squash(layers)],
            5: lambda: [shared(1, 2, SIDE, 3), Squash(layers), shared(2, 4, SIDE // 2, 5), Squash(layers)],
        }[rung]()
        model = nn.Sequential(*hidden, nn.Flatten(), ours.Linear((SIDE * SIDE, 12, 16, 16, 64)[rung - 1], classes), Squash(layers))
    start(model, seed)
    return model


def inputs(weight: Tensor) -> int:
    """The fan-in: the weights of one unit."""
    return weight.shape[1] if weight.ndim == 2 else weight.shape[-3:].numel()


def start(model: nn.Module, seed: int) -> None:
    """LeCun's initial weights, uniform in +-2.4/fan-in; biases are zero, as in Karpathy's copy, because the paper does not tell."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("bias"):
                weight.zero_()
            else:
                weight.uniform_(-2.4 / inputs(weight), 2.4 / inputs(weight), generator=random)


def squared_error(outputs: Tensor, labels: Tensor) -> Tensor:
    """The mean of (output - target)^2 over all outputs; the target is 1 for the true class and -1 for the others."""
    return (outputs - (2.0 * nn.functional.one_hot(labels, outputs.shape[1]) - 1)).square().mean()


def connections(model: nn.Sequential) -> int:
    """Products and biases that enter some unit: what the paper calls connections; windows count whole, also at the border."""
    image, total = torch.zeros(1, 1, SIDE, SIDE), 0
    for layer in model:
        image = layer(image)
        weight = layer.conv.weight if isinstance(layer, SharedWindow) else getattr(layer, "weight", None)
        if weight is not None:  # every output has one product per cell of its window (or one per input) and a bias
            total += image[0].numel() * (inputs(weight) + 1)
    return total


def main(argv: Sequence[str] | None = None) -> LadderVerdict:
    """Train the five networks on every seed's digits; the verdict."""
    options = parse(LadderOptions, argv)
    training, test = small(options)
    classes = len(training.classes)
    runs = [(rung, k) for k in range(options.seeds) for rung in range(1, 6)]
    reached, others = (torch.zeros(5, options.seeds, dtype=torch.float64) for _ in range(2))
    models = [network(rung, options.layers, 0, classes) for rung in range(1, 6)]
    counts = [(connections(model), parameters(model)) for model in models]
    strangers = set_down(test)
    strangers = strangers._replace(images=strangers.images[::PLACES], labels=strangers.labels[::PLACES])
    with study("ladder", options) as record:
        for rung, k in watched(runs, "ladder", len(runs)):
            known, asked = lecuns(training, options.drawings, options.seed + k)
            model = network(rung, options.layers, options.seed + k, classes)
            fit(
                model,
                known,
                options.epochs * -(-len(known.labels) // options.batch_size),
                options,
                options.seed + k,
                loss=squared_error,
                kind=torch.optim.SGD,
            )
            reached[rung - 1, k], others[rung - 1, k] = accuracy(model, asked), accuracy(model, strangers)
        mean, spread = reached.mean(1), reached.std(1, correction=min(1, options.seeds - 1))
        gains = reached.diff(dim=0)
        error = gains.std(1, correction=min(1, options.seeds - 1)) / options.seeds**0.5
        title = f"{len(known.labels)} pictures of {options.drawings * classes} drawings, mean and spread over {options.seeds} seeds"
        table = Table("", "network", "connections", "weights", "same drawings, moved", "1989", "other writers", title=title)
        for k, name in enumerate(WHAT):
            here = f"{mean[k]:.1%} ± {spread[k]:.1%}"
            table.add_row(
                f"net-{k + 1}", name, f"{counts[k][0]:,}", f"{counts[k][1]:,}", here, f"{PAPER_ACCURACY[k]:.1%}", f"{others[k].mean():.1%}"
            )
        say_table(table)
        record.curve("accuracy by rung", range(1, 6), mean.tolist())
        record.figure("ladder", draw(reached, others, counts))
        better = gains.mean(1)
        sure = better / error.clamp(min=1e-12)
        numbers = (tuple(row.tolist()) for row in (mean, spread, others.mean(1), better, sure))
        weights_and_connections = (tuple(pair[side] for pair in counts) for side in (1, 0))
        return record.verdict(LadderVerdict(bool((sure[2:] > 2).all()), bool((better > 0).all()), *numbers, *weights_and_connections))


def draw(reached: Tensor, others: Tensor, counts: Sequence[tuple[int, int]]) -> Figure:
    """Accuracy rung by rung beside the paper's, and what each network is made of."""
    made = figures.figure(10.5, 4.8)
    axes = made.subplots()
    places = range(5)
    axes.bar(places, reached.mean(1).tolist(), width=0.55, color=["#999999", "#d1495b", "#edae49", "#66a182", "#00798c"], alpha=0.85)
    for k in places:
        jitter = torch.linspace(-0.15, 0.15, reached.shape[1]) if reached.shape[1] > 1 else torch.zeros(1)
        axes.plot(k + jitter, reached[k], "o", color="black", markersize=3.5, alpha=0.6, label="one seed" if k == 0 else None)
        axes.text(
            k, 0.02, f"{float(reached[k].mean()):.1%}", ha="center", color="white", weight="bold", transform=axes.get_xaxis_transform()
        )
    axes.plot(places, PAPER_ACCURACY, "D", color="white", markeredgecolor="black", markersize=7, label="LeCun 1989, his own drawings")
    axes.plot(places, others.mean(1), "_", color="black", markersize=26, markeredgewidth=2, label="digits of other writers")
    labels = [f"net-{k + 1}\n{WHAT[k]}\n{c:,} connections\n{w:,} weights" for k, (c, w) in enumerate(counts)]
    axes.set_xticks(places, labels, fontsize=9)
    axes.set(ylim=(0, 1.28), yticks=[0, 0.25, 0.5, 0.75, 1], ylabel="recognised: the same drawings, moved")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.legend(loc="upper left", ncols=3)
    gains = ", ".join(f"{100 * gain:+.1f}" for gain in reached.mean(1).diff().tolist())
    axes.set_title(f"LeCun's ladder: {gains} points from rung to rung; the last two share weights", fontsize=12)
    return made


if __name__ == "__main__":
    command(main)
