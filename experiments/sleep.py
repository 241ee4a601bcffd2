"""Sharing now and then is enough: a local layer whose positions are averaged every ten steps keeps most of a convolution's lead.

    python -m experiments.sleep            (about 60 seconds; `--full`: more steps and seeds, about 15 minutes)

After R. Pogodin, Y. Mehta, T. Lillicrap, P. Latham, "Towards biologically plausible convolutional networks", 2021: the visual cortex
cannot share weights at every moment, but it could pull them together now and then, as in sleep. There, sharing every 10 steps keeps most
of what a convolution has on CIFAR-10 and ImageNet. Here the locally connected network of `spectrum` learns its jittered digits (10x10
pixels, anywhere on a 16x16 canvas), where a convolution is far ahead. Before every k-th step, the first included, all positions of a
layer get their mean (`cnn425.nn.share_`); so all but the one that never shares start with equal filters. `kept` is how much of the lead is
left:

    (accuracy shared every k steps - accuracy never shared) / (accuracy shared every step - accuracy never shared)

Gradient descent has momentum 0.9, and no Adam: sharing every step is then a convolution whose learning rate is divided by the number of
positions, while Adam scales the gradient of each position by itself. The network is tested as the last step leaves it, without a further
sharing. `apart` is the root mean square of |filters - mean| / |mean| at the end (`cnn425.nn.sharing`), averaged over the three layers; the
learning rate falls to zero, so it is small.

Figures:

    sleep.png    Local networks share their weights every k steps. Look at how far to the right the curve stays near the convolution
                 (dashed) before it falls to the network that never shares (dotted), and then below it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from rich.table import Table
from torch import Tensor, nn

from cnn425.lab import figures
from cnn425.lab.errors import LabError, command
from cnn425.lab.pictures import Pictures
from cnn425.lab.progress import say_table, watched
from cnn425.lab.study import in_full, parse, study
from cnn425.lab.verdict import percent
from cnn425.nn import LocallyConnected2d, share_, sharing

from .samples import accuracy, fit, small, subset
from .shift import COLOURS
from .spectrum import SpectrumOptions, jittered, network

TINY = ("--dataset", "bars", "--steps", "3", "--examples", "16", "--every", "1", "2", "--seeds", "1", "--test-examples", "20")

WANTED = 10  # steps between two sharings that the claim is about


@dataclass(frozen=True)
class SleepOptions(SpectrumOptions):
    """What can be changed; see --help."""

    lr: float = 0.1
    """Learning rate at the first step; it falls linearly to zero. The momentum is 0.9."""
    steps: int = 600
    """Steps of each run."""
    every: tuple[int, ...] = (1, 3, 10, 30, 100)
    """Steps from one sharing to the next, ascending; the network that never shares is always trained."""

    def __post_init__(self) -> None:
        """Refuses numbers that mean nothing; `--full` has numbers of its own."""
        super().__post_init__()
        in_full(self, steps=4000, every=(1, 3, 10, 30, 100, 300, 1000))
        if not self.every or self.every[0] != 1 or list(self.every) != sorted(set(self.every)):
            raise LabError(f"--every is {self.every}; ascending numbers are wanted, the first of them 1", 2)


class SleepVerdict(NamedTuple):
    """Mean test accuracy from 0 to 1; holds if at every interval up to ten steps more than half of the lead is kept."""

    holds: bool
    every: tuple[int, ...]
    """steps from one sharing to the next"""
    shared: tuple[float, ...]
    """test digits recognised, by these steps [%]"""
    spread: tuple[float, ...]
    """their standard deviation over seeds [%]"""
    never: float
    """the same, never shared [%]"""
    convolution: float
    """the same, convolution [%]"""
    kept: tuple[float, ...]
    """what is kept of the lead of sharing every step over never [%]"""
    apart: tuple[float, ...]
    """how far the positions' filters are apart at the end; last: never shared"""
    rarest: int
    """the longest interval up to which more than half of the lead is kept, in steps"""

    def sentence(self) -> str:
        """What came out."""
        last = min(range(len(self.every)), key=lambda k: abs(self.every[k] - WANTED))
        return (
            f"sharing every step the network recognises {percent(self.shared[0], 1)} of the test digits, every {self.every[last]} steps "
            f"{percent(self.shared[last], 1)}, never {percent(self.never, 1)}; more than half of the lead is kept when at most "
            f"{self.rarest} steps lie between two sharings"
        )


def local_layers(model: nn.Module) -> list[LocallyConnected2d]:
    """The locally connected layers of a network."""
    return [layer for layer in model.modules() if isinstance(layer, LocallyConnected2d)]


class Momentum(torch.optim.SGD):
    """Gradient descent with momentum."""

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float):
        super().__init__(parameters, lr, momentum=0.9)


def trained(k: int | None, options: SleepOptions, pictures: Pictures, seed: int) -> nn.Sequential:
    """A local network that shares its weights before every k-th step (None: never)."""
    model = network("local", seed, len(pictures.classes))

    def sleep(step: int) -> None:
        if k and step < options.steps and step % k == 0:
            for layer in local_layers(model):
                share_(layer)

    fit(model, pictures, options.steps, options, seed, sleep, kind=Momentum)
    return model


def main(argv: Sequence[str] | None = None) -> SleepVerdict:
    """Train local networks that share every k steps, one that never does, and a convolution; the verdict."""
    options = parse(SleepOptions, argv)
    training, test = small(options)
    test = jittered(test, -1)
    kinds: list[int | None] = [*options.every, None]
    runs = [(k, repeat) for repeat in range(options.seeds) for k in range(len(kinds) + 1)]
    reached, apart = (torch.zeros(len(kinds) + 1, options.seeds, dtype=torch.float64) for _ in range(2))
    with study("sleep", options) as record:
        for k, repeat in watched(runs, "sleep", len(runs)):
            seed = options.seed + repeat
            chosen = jittered(subset(training, options.examples, seed), seed)
            if k < len(kinds):
                model = trained(kinds[k], options, chosen, seed)
                apart[k, repeat] = sum(float(sharing(layer).detach()) for layer in local_layers(model)) / len(local_layers(model))
            else:
                model = network("convolution", seed, len(training.classes))
                fit(model, chosen, options.steps, options, seed, kind=Momentum)
            reached[k, repeat] = accuracy(model, test)
        mean, spread = reached.mean(1), reached.std(1, correction=min(1, options.seeds - 1))
        names = [*(f"every {k} steps" if k > 1 else "every step" for k in options.every), "never", "a convolution"]
        table = Table("shared", "test accuracy", "filters apart", title=f"{options.examples} examples, {options.seeds} seeds")
        for k, name in enumerate(names):
            table.add_row(name, f"{mean[k]:.1%} ± {spread[k]:.1%}", f"{apart[k].mean():.2f}")
        say_table(table)
        record.curve("accuracy by steps between sharings", options.every, mean[:-2].tolist())
        never, lead = float(mean[-2]), float(mean[0] - mean[-2])
        kept = tuple((float(a) - never) / lead if lead > 0 else 0.0 for a in mean[:-2])
        rarest = longest(options.every, kept)
        distances = tuple(apart[:-1].mean(1).tolist())
        shared, spreads = tuple(mean[:-2].tolist()), tuple(spread[:-2].tolist())
        verdict = SleepVerdict(rarest >= WANTED, options.every, shared, spreads, never, float(mean[-1]), kept, distances, rarest)
        record.figure("sleep", draw(reached, apart, verdict))
        return record.verdict(verdict)


def longest(every: Sequence[int], kept: Sequence[float]) -> int:
    """The longest interval up to which more than half of the lead is kept; 0: not even every step."""
    found = 0
    for k, share in zip(every, kept, strict=True):
        if share <= 0.5:
            break
        found = k
    return found


def draw(reached: Tensor, apart: Tensor, verdict: SleepVerdict) -> Figure:
    """Accuracy and distance of the filters against the steps between two sharings."""
    made = figures.figure(10, 4.4)
    made.suptitle(
        f"Shared every step {percent(verdict.shared[0], 1)}, never {percent(verdict.never, 1)}: "
        f"half of the lead is kept with at most {verdict.rarest} steps between two sharings",
        fontsize=13,
    )
    left, right = made.subplots(1, 2, width_ratios=[1.5, 1])
    for axes, values, own in ((left, reached[:-2], reached[-2]), (right, apart[:-2], apart[-2])):
        values = values if axes is left else values.clamp(min=1e-4)  # zero has no place on a logarithmic axis
        axes.plot(verdict.every, values.mean(1), "-", color="#6a4c93", linewidth=2, label="local, shared every so many steps")
        for k, each in zip(verdict.every, values, strict=True):
            axes.plot([k] * len(each), each, "o", color="#6a4c93", markersize=4, alpha=0.5)
        axes.axhline(float(own.mean()), color=COLOURS["locally connected"], linestyle=":", linewidth=2, label="local, never shared")
        axes.set(xscale="log", xlabel="steps from one sharing to the next")
        axes.set_xticks(verdict.every, [str(k) for k in verdict.every])
        axes.minorticks_off()
        axes.grid(color="#e5e5e5")
    left.axhline(verdict.convolution, color=COLOURS["convolution"], linestyle="--", linewidth=2, label="convolution")
    left.yaxis.set_major_formatter(PercentFormatter(1.0))
    left.set_ylabel("recognised test pictures")
    left.legend(fontsize=9)
    left.set_title("Test accuracy (dots: single seeds)", fontsize=11)
    right.set_ylabel("|filters - mean| / |mean|, at least 0.0001")
    right.set_yscale("log")
    right.set_title("How far the filters are apart at the end", fontsize=11)
    return made


if __name__ == "__main__":
    command(main)
