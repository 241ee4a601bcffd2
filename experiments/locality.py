"""A fully connected layer that drops its small weights as it learns becomes local by itself: what is left of a unit lies close together.

    python -m experiments.locality            (about 70 seconds; `--full`: more steps and seeds, about 15 minutes)

After B. Neyshabur, "Towards learning convolutions from scratch", arXiv 2007.13657, 2020. Beta-lasso is gradient descent on the loss plus
`penalty` times the sum of |weights|, and after each step every weight below `beta` times `penalty` becomes zero. There, on CIFAR-10 with
shifted pictures and thousands of epochs, the units of a fully connected layer come to look at small patches. Here: 100 hidden units with
ReLU between 16x16 pixels and 10 classes, the jittered digits of `spectrum` (10x10 pixels, anywhere on the canvas), momentum 0.9.

`locality` is the root mean square distance of two pixels that one unit looks at, over that of a pixel of one unit and a pixel of another,
means over all units and pairs of units with two weights left or more. Were a unit's pixels drawn at random, however often each pixel is
used, it would be 1 (a little more, because a unit has no pixel twice); the smaller, the more they lie in one place. The same number is
computed for a twin that is trained without a penalty, whose units keep as many weights each, their largest: if that is as small, pruning as
one learns has added nothing.

Figures:

    locality.png    A fully connected layer learns digits that lie anywhere, without a penalty (left) and with beta-lasso (middle): one
                    square per hidden unit, its weights at their pixels. Look for squares with one coloured patch, and at the right: below
                    1 the weights of a unit lie closer together than chance, and those in grey, of no penalty, closer still.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from rich.table import Table
from torch import Tensor, nn

from cnn425.lab import figures
from cnn425.lab.errors import LabError, command
from cnn425.lab.models import namespace
from cnn425.lab.pictures import Pictures
from cnn425.lab.progress import say_table, watched
from cnn425.lab.study import at_least, in_full, parse, study
from cnn425.lab.verdict import percent

from .samples import SIDE, SmallOptions, accuracy, fit, small, subset
from .sleep import Momentum
from .spectrum import jittered

TINY = ("--dataset", "bars", "--steps", "2", "--examples", "16", "--penalties", "1e-4", "--seeds", "1", "--test-examples", "20")

HIDDEN = 100


@dataclass(frozen=True)
class LocalityOptions(SmallOptions):
    """What can be changed; see --help."""

    lr: float = 0.1
    """Learning rate at the first step; it falls linearly to zero. The momentum is 0.9."""
    steps: int = 6000
    """Steps of each run."""
    examples: int = 30000
    """Training examples."""
    penalties: tuple[float, ...] = (0.5e-4, 1e-4, 2e-4)
    """Penalties of beta-lasso, ascending; a run without any is always made."""
    beta: float = 50
    """A weight becomes zero below so many times the penalty; 50 in the paper."""

    def __post_init__(self) -> None:
        """Refuses numbers that mean nothing; `--full` has numbers of its own."""
        in_full(self, steps=30000, seeds=5, examples=60000, test_examples=0)
        super().__post_init__()
        at_least(self, steps=1, examples=1, beta=0)
        if not self.penalties or self.penalties[0] <= 0 or list(self.penalties) != sorted(set(self.penalties)):
            raise LabError(f"--penalties is {self.penalties}; positive numbers, ascending, are wanted", 2)


class LocalityVerdict(NamedTuple):
    """By penalty, means over seeds; holds if at some penalty locality is below 1, and below the twin's, by two standard errors each.

    The twin has learnt without a penalty; of each of its units as many weights are kept, the largest.
    """

    holds: bool
    locality: tuple[float, ...]
    """distance of a unit's pixels over that of different units' pixels, by penalty"""
    twin: tuple[float, ...]
    """the same, as many of the largest weights of a network without penalty"""
    spread: tuple[float, ...]
    """standard deviation of the locality over seeds"""
    left: tuple[float, ...]
    """weights left [%]"""
    accuracy: tuple[float, ...]
    """test digits recognised, by penalty [%]"""
    plain: float
    """the same, without a penalty [%]"""

    def sentence(self) -> str:
        """What came out."""
        k = min(range(len(self.locality)), key=self.locality.__getitem__)
        return (
            f"{percent(self.left[k])} of the weights are left; two pixels of one unit are {self.locality[k]:.2f} times as far apart as "
            f"two of different units, and {self.twin[k]:.2f} times without the penalty, where the largest weights are kept; accuracy "
            f"{percent(self.accuracy[k], 1)} with the penalty, {percent(self.plain, 1)} without"
        )


def locality(looks: Tensor) -> float:
    """The number defined above, of units' pixels `(units, H, W)`, true where a unit looks; 1 if no two units have two pixels."""
    rows, columns = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in looks.shape[1:]), indexing="ij")
    places = torch.stack([rows.flatten(), columns.flatten()], 1)
    mask = looks.flatten(1)[looks.flatten(1).sum(1) >= 2].double()
    units, count = len(mask), mask.sum(1)
    if units < 2:
        return 1.0
    sums = mask @ torch.cdist(places, places).square() @ mask.T  # of squared distances, unit by unit
    within = (sums.diagonal() / (count * (count - 1))).mean()
    across = sums / (count[:, None] * count)
    return float((within / ((across.sum() - across.diagonal().sum()) / (units * (units - 1)))).sqrt())


def trained(penalty: float, options: LocalityOptions, pictures: Pictures, seed: int) -> nn.Sequential:
    """A network with one hidden layer, whose weights are pruned by beta-lasso."""
    library = namespace(options.layers)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        hidden, last = library.Linear(SIDE * SIDE, HIDDEN), library.Linear(HIDDEN, len(pictures.classes))
    model, mistakes = nn.Sequential(nn.Flatten(), hidden, library.ReLU(), last), library.CrossEntropyLoss()

    def loss(outputs: Tensor, labels: Tensor) -> Tensor:
        found: Tensor = mistakes(outputs, labels)
        return found + penalty * hidden.weight.abs().sum() if penalty else found

    def prune(step: int) -> None:
        if step:
            with torch.no_grad():
                hidden.weight.mul_(hidden.weight.abs() >= options.beta * penalty)

    fit(model, pictures, options.steps, options, seed, prune, loss=loss, kind=Momentum)
    return model


def weights(model: nn.Module) -> Tensor:
    """The hidden units' weights at their pixels, `(units, H, W)`."""
    return figures.first_layer(model).get_parameter("weight").detach().unflatten(1, (SIDE, SIDE))


def largest(weight: Tensor, count: Tensor) -> Tensor:
    """True at the `count[k]` largest weights of unit k, `(units, H, W)`."""
    ranks = weight.flatten(1).abs().argsort(1, descending=True).argsort(1)
    return (ranks < count[:, None]).unflatten(1, weight.shape[1:])


def main(argv: Sequence[str] | None = None) -> LocalityVerdict:
    """Train with every penalty and without; the verdict."""
    options = parse(LocalityOptions, argv)
    training, test = small(options)
    test = jittered(test, -1)
    strengths = (0.0, *options.penalties)
    runs = [(k, repeat) for repeat in range(options.seeds) for k in range(len(strengths))]
    measured = torch.zeros(4, len(strengths), options.seeds, dtype=torch.float64)
    models: list[nn.Sequential] = []
    with study("locality", options) as record:
        for k, repeat in watched(runs, "locality", len(runs)):
            seed = options.seed + repeat
            model = trained(strengths[k], options, jittered(subset(training, options.examples, seed), seed), seed)
            if k == 0:
                plain = model  # the twin of the runs that follow
            looks = weights(model) != 0
            twin = largest(weights(plain), looks.flatten(1).sum(1))
            measured[:, k, repeat] = torch.tensor([locality(looks), locality(twin), float(looks.double().mean()), accuracy(model, test)])
            models += [model] if repeat == 0 else []
        mean, spread = measured.mean(2), measured.std(2, correction=min(1, options.seeds - 1))
        table = Table(
            "penalty", "weights left", "locality", "twin's", "accuracy", title=f"{options.examples} examples, {options.seeds} seeds"
        )
        for k, strength in enumerate(strengths):
            numbers = [f"{mean[row, k]:.2f} ± {spread[row, k]:.2f}" if k else "-" for row in (0, 1)]
            table.add_row(f"{strength:g}", f"{mean[2, k]:.1%}", *numbers, f"{mean[3, k]:.1%} ± {spread[3, k]:.1%}")
        say_table(table)
        near, twins, left, right = (tuple(row[1:].tolist()) for row in mean)
        record.curve("locality by number of the penalty", range(len(near)), near)
        holds = any(ahead(1 - one) and ahead(two - one) for one, two in zip(measured[0, 1:], measured[1, 1:], strict=True))
        verdict = LocalityVerdict(holds, near, twins, tuple(spread[0, 1:].tolist()), left, right, float(mean[3, 0]))
        record.figure("locality", draw(options, measured, models, verdict))
        return record.verdict(verdict)


def ahead(leads: Tensor) -> bool:
    """Whether leads, one per seed, are positive by two standard errors."""
    return bool(leads.mean() > 2 * leads.std(correction=min(1, len(leads) - 1)) / len(leads) ** 0.5)


def draw(options: LocalityOptions, measured: Tensor, models: Sequence[nn.Module], verdict: LocalityVerdict) -> Figure:
    """Weights of hidden units without and with beta-lasso; locality against the penalty."""
    made = figures.figure(11, 4.6)
    k = 1 + min(range(len(verdict.locality)), key=verdict.locality.__getitem__)
    made.suptitle(
        f"Two weights of a unit are {verdict.locality[k - 1]:.2f} times as far apart as two of different units; "
        f"without penalty, the largest {verdict.twin[k - 1]:.2f} times",
        fontsize=12.5,
    )
    left, middle, right = made.subplots(1, 3, width_ratios=[1.2, 1.2, 1])
    for axes, model, title in (
        (left, models[0], f"No penalty: {percent(verdict.plain, 1)} recognised"),
        (middle, models[k], f"{percent(verdict.left[k - 1])} of the weights left: {percent(verdict.accuracy[k - 1], 1)} recognised"),
    ):
        shown = weights(model)
        shown = shown[shown.flatten(1).norm(dim=1).argsort(descending=True)[:25]]  # those that count most
        shown = shown / shown.flatten(1).abs().amax(1).clamp(min=1e-12)[:, None, None]
        axes.imshow(figures.tiled(0.5 + shown / 2, columns=5, zoom=3).numpy(), cmap="RdBu_r", vmin=0, vmax=1)
        width = 3 * SIDE + 1  # of a unit and the gap behind it
        for line in range(1, 5):
            axes.axhline(width * line - 1, color="#888888", linewidth=1)
            axes.axvline(width * line - 1, color="#888888", linewidth=1)
        axes.set(xticks=[], yticks=[])
        axes.set_title(title, fontsize=11)
    places = range(len(options.penalties))
    for row, colour, name in ((0, "#d1495b", "left by beta-lasso"), (1, "#777777", "largest without penalty")):
        right.plot(places, measured[row, 1:].mean(1), color=colour, linewidth=2, label=name)
        for place in places:
            right.plot([place] * options.seeds, measured[row, 1 + place], "o", color=colour, markersize=4, alpha=0.6)
    right.axhline(1, color="black", linewidth=1, linestyle="--")
    labels = [f"{penalty:g}\n{share:.0%} left" for penalty, share in zip(options.penalties, verdict.left, strict=True)]
    right.set_xticks(places, labels)
    right.set(xlabel="penalty", ylabel="locality (1: by chance)")
    right.grid(color="#e5e5e5")
    right.legend(fontsize=9)
    right.set_title("How close a unit's weights lie", fontsize=11)
    return made


if __name__ == "__main__":
    command(main)
