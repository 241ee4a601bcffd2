"""Gradient descent: the step size decides whether it crawls, arrives or explodes; one example a step gets near at a fraction of the cost.

    python -m experiments.descent            (about 15 seconds)

One linear unit, y = w x + b, fits a noisy line; two parameters, so the loss L, the mean squared error, is a landscape one can draw. The
update rule is written out, `p -= lr * p.grad`, on the gradients of our layer. With H the matrix of second derivatives of L, the same
everywhere here:

    step size          along an eigenvector of H the distance to the minimum is multiplied by 1 - lr * eigenvalue in each step: full-batch
                       descent converges if lr < 2 / largest eigenvalue, and explodes above
    batch of B         in the mean the same step, for B / N of the cost; "computing the sum is expensive"
    its price          the gradient of a batch is off by a random part of standard deviation ~ 1 / sqrt(B), so a constant step size ends
                       above the least loss, by about lr * noise^2 * trace(H) / (2 B) if lr is small, where noise is that of the data

Here every method uses one step size. Seconds are measured and depend on the machine; no verdict hangs on them.

Figures:

    descent.png    One linear unit with two parameters descends with three step sizes (above) and three batch sizes (below). Look at the
                   middle below: the whole set gets furthest down, but single examples are near long before it has taken its second step.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from cnn425.lab import figures
from cnn425.lab.errors import LabError, command
from cnn425.lab.models import namespace
from cnn425.lab.progress import Reporter
from cnn425.lab.study import StudyOptions, at_least, parse, study

TINY = ("--examples", "200", "--steps", "20")

SLOPE, OFFSET = 1.0, -0.5  # of the line the data lie around
START = (-2.0, 2.0)
GOOD_ENOUGH = 0.01  # of the first step's distance to the least loss
COLOURS = {"all": "#00798c", "mini": "#b39ddb", "one": "#edae49"}


@dataclass(frozen=True)
class DescentOptions(StudyOptions):
    """What can be changed; see --help."""

    examples: int = 65536
    """Points around the line. `--full`: sixteen times as many."""
    noise: float = 0.5
    """Standard deviation of the data about the line."""
    batch: int = 32
    """Examples in a mini-batch."""
    lr: float = 0.02
    """Step size of the comparison of batches."""
    steps: int = 4000
    """Steps with one example; mini-batches do half as many, the whole set an eighth."""

    def __post_init__(self) -> None:
        """Refuses numbers that mean nothing."""
        at_least(self, threads=0, examples=2, noise=0, batch=1, lr=1e-9, steps=8)


class DescentVerdict(NamedTuple):
    """Losses are above the least one, relative to the start; examples are those looked at until a hundredth of the start is left.

    Holds if the rule by hand is torch.optim.SGD to rounding, full-batch descent shrinks 1 % below the limit and grows 1 % above it, one
    example at a time needs less than a tenth of the examples that the whole set needs, and its last loss is within a factor of two of the
    formula while the whole set's is below a tenth of that.
    """

    holds: bool
    rule_difference: float
    """largest difference between the rule by hand and torch.optim.SGD"""
    step_limit: float
    """step size at which full-batch descent turns from shrinking to growing"""
    below_limit: float
    """loss 1 % below that, after 200 steps, where the start is 1"""
    above_limit: float
    """loss 1 % above it"""
    examples_all: int
    """examples looked at until a hundredth of the start is left, whole set"""
    examples_mini: int
    """the same, mini-batches"""
    examples_one: int
    """the same, single examples"""
    floor_all: float
    """loss at the end, whole set, where the start is 1"""
    floor_mini: float
    """loss at the end, mini-batches"""
    floor_one: float
    """loss at the end, single examples"""
    floor_one_predicted: float
    """the same by the formula lr noise^2 trace(H) / 2"""

    def sentence(self) -> str:
        """What came out."""
        return (
            f"1 % below a step size of {self.step_limit:.3f} the loss shrinks to {self.below_limit:.1g} of its start, 1 % above it grows "
            f"to {self.above_limit:.1g}; to a hundredth of the start it takes {self.examples_one:,} single examples, or "
            f"{self.examples_all:,} in sums over the whole set"
        )


class Path(NamedTuple):
    """Where descent went: (w, b) before every step and after the last, `(steps + 1, 2)`, and the examples each step looked at."""

    places: Tensor
    batch: int


class Landscape:
    """The data, and the loss as a function of (w, b)."""

    def __init__(self, options: DescentOptions):
        self.generator = torch.Generator().manual_seed(options.seed)
        many = options.examples * (16 if options.full else 1)
        self.x = 1 + torch.randn(many, 1, generator=self.generator, dtype=torch.float64)
        self.y = SLOPE * self.x + OFFSET + options.noise * torch.randn(many, 1, generator=self.generator, dtype=torch.float64)
        ones = torch.cat([self.x, torch.ones_like(self.x)], 1)
        self.best = torch.linalg.lstsq(ones, self.y).solution[:, 0]
        self.curvature = 2 * ones.T @ ones / many
        self.layers = options.layers

    def excess(self, places: Tensor) -> Tensor:
        """How far the loss at each (w, b) is above the least one: `(..., 2) -> (...)`; exact, as the loss is a parabola."""
        away = places - self.best
        return 0.5 * ((away @ self.curvature) * away).sum(-1)

    def model(self) -> nn.Linear:
        """The unit at the start."""
        unit: nn.Linear = namespace(self.layers).Linear(1, 1).double()
        unit.load_state_dict({"weight": torch.tensor([[START[0]]]), "bias": torch.tensor([START[1]])})
        return unit

    def descend(self, lr: float, steps: int, batch: int) -> Path:
        """Gradient descent by hand; a batch is drawn from all examples, or is all of them."""
        unit, many = self.model(), len(self.x)
        places = torch.empty(steps + 1, 2, dtype=torch.float64)
        for step in range(steps):
            places[step] = torch.stack([unit.weight.detach()[0, 0], unit.bias.detach()[0]])
            chosen = torch.randint(many, (batch,), generator=self.generator) if batch < many else slice(None)
            descent_step(unit, self.x[chosen], self.y[chosen], lr)
        places[-1] = torch.stack([unit.weight.detach()[0, 0], unit.bias.detach()[0]])
        return Path(places, batch)


def backward(unit: nn.Module, x: Tensor, y: Tensor) -> None:
    """The gradients of the mean squared error, left in `.grad`."""
    unit.zero_grad()
    (unit(x) - y).square().mean().backward()


def descent_step(unit: nn.Module, x: Tensor, y: Tensor, lr: float) -> None:
    """One step of gradient descent: every parameter against its gradient."""
    backward(unit, x, y)
    with torch.no_grad():
        for p in unit.parameters():
            assert p.grad is not None
            p.sub_(lr * p.grad)


def rule_difference(landscape: Landscape, lr: float) -> float:
    """The largest difference between the rule by hand and torch.optim.SGD after 50 steps."""
    ours, theirs = landscape.model(), landscape.model()
    optimizer = torch.optim.SGD(theirs.parameters(), lr=lr)
    for _ in range(50):
        descent_step(ours, landscape.x[:1000], landscape.y[:1000], lr)
        backward(theirs, landscape.x[:1000], landscape.y[:1000])
        optimizer.step()
    return max(float((a - b).detach().abs().max()) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


def cost(landscape: Landscape, batch: int, repeats: int = 30) -> tuple[float, float]:
    """Median milliseconds of one step, and the standard deviation of dL/dw between batches, at the minimum."""
    unit, seconds, slopes = landscape.model(), [], []
    unit.load_state_dict({"weight": landscape.best[:1, None], "bias": landscape.best[1:]})
    for _ in range(repeats):
        chosen = torch.randint(len(landscape.x), (batch,), generator=landscape.generator)
        x, y = landscape.x[chosen], landscape.y[chosen]
        start = time.perf_counter()
        backward(unit, x, y)
        seconds.append(time.perf_counter() - start)
        assert unit.weight.grad is not None
        slopes.append(unit.weight.grad.item())
    return 1000 * sorted(seconds)[repeats // 2], float(torch.tensor(slopes).std())


def reached(landscape: Landscape, path: Path) -> int:
    """Examples looked at until a hundredth of the first excess is left; those of the whole path if it never is."""
    excess = landscape.excess(path.places)
    below = (excess <= GOOD_ENOUGH * excess[0]).nonzero()
    return (int(below[0]) if len(below) else len(excess) - 1) * path.batch


def contours(axes: Any, landscape: Landscape, title: str) -> None:
    """The landscape from above."""
    w, b = torch.linspace(-3, 4, 141, dtype=torch.float64), torch.linspace(-3.5, 3.5, 141, dtype=torch.float64)
    heights = landscape.excess(torch.stack(torch.meshgrid(w, b, indexing="xy"), -1))
    axes.contour(w, b, heights, levels=[0.02, 0.1, 0.3, 1, 2, 4, 8, 16, 32], colors="#bbbbbb", linewidths=0.8)
    axes.plot(*landscape.best.tolist(), "*", color="#d1495b", markersize=13, zorder=4)
    axes.set(xlim=(-3, 4), ylim=(-3.5, 3.5), xlabel="w", ylabel="b")
    axes.set_title(title, fontsize=11)


def draw(landscape: Landscape, sizes: dict[str, Path], batches: dict[str, Path], costs: dict[int, tuple[float, float]], lr: float) -> Any:
    """The figure: three step sizes, three batch sizes, progress against cost, what a larger batch costs and buys."""
    made = figures.figure(14, 8.4)
    cells = made.subplots(2, 3)
    for axes, (title, path) in zip(cells[0], sizes.items(), strict=True):
        contours(axes, landscape, title)
        axes.plot(*path.places.T, "o-", color=COLOURS["all"], markersize=4, linewidth=1.2)
    axes = cells[1, 0]
    contours(axes, landscape, f"Step size {lr:g}: 300 steps of three batch sizes")
    names = {name: "the whole set" if name == "all" else f"batches of {path.batch}" for name, path in batches.items()}
    for name, path in list(batches.items())[::-1]:
        look = {"one": (1, "-"), "mini": (4, "-"), "all": (1.5, "--")}[name]
        axes.plot(*path.places[:300].T, look[1], color=COLOURS[name], linewidth=look[0], label=names[name])
    axes.legend(fontsize=9)
    axes = cells[1, 1]
    for name, path in batches.items():
        excess = landscape.excess(path.places)
        seen = torch.arange(1, len(excess) + 1) * path.batch
        axes.loglog(seen, excess / excess[0], color=COLOURS[name], linewidth=1 if name == "one" else 2, label=names[name])
    axes.axhline(GOOD_ENOUGH, color="#888888", linewidth=0.8, linestyle="--")
    axes.set(xlabel="examples looked at", ylabel="loss above the least one, start = 1", ylim=(1e-6, 3))
    axes.set_title("The whole sum is expensive, single examples are noisy", fontsize=11)
    axes.legend(fontsize=9, loc="lower left")
    axes, other = cells[1, 2], cells[1, 2].twinx()
    axes.loglog(list(costs), [ms for ms, _ in costs.values()], "o-", color="#222222", markersize=4)
    other.loglog(list(costs), [noise for _, noise in costs.values()], "s--", color="#d1495b", markersize=4)
    axes.set(xlabel="examples in a batch", ylabel="time of one gradient [ms], solid")
    other.set_ylabel("noise of dL/dw (standard deviation), dashed", color="#d1495b")
    axes.set_title("A larger batch: what it costs, what it buys", fontsize=11)
    return made


def main(argv: Sequence[str] | None = None) -> DescentVerdict:
    """The rule, the step sizes, the batches; the verdict."""
    options = parse(DescentOptions, argv)
    with study("descent", options) as record:
        landscape = Landscape(options)
        many, few = len(landscape.x), max(8, options.steps // 8)
        limit = 2 / float(torch.linalg.eigvalsh(landscape.curvature)[-1])
        shares = {"too small": 0.02, "good": 0.7, "too large": 1.02}
        sizes = {f"Step size {share * limit:.2g}: {name}": landscape.descend(share * limit, 30, many) for name, share in shares.items()}
        about = [landscape.excess(landscape.descend(share * limit, 200, many).places) for share in (0.99, 1.01)]
        below, above = (float(excess[-1] / excess[0]) for excess in about)
        print(
            f"full batch, after 200 steps: 1 % below the limit {limit:.4f} the excess is {below:.1e} of the start, 1 % above it {above:.1e}"
        )

        plan = {"all": (few, many), "mini": (options.steps // 2, min(options.batch, many)), "one": (options.steps, 1)}
        batches = {}
        with Reporter("descending", len(plan)) as reporter:
            for name, (steps, batch) in plan.items():
                batches[name] = landscape.descend(options.lr, steps, batch)
                reporter.advance(name)
        if not all(path.places.isfinite().all() for path in batches.values()):
            raise LabError(
                f"an --lr of {options.lr:g} is too large: the weights have grown beyond all numbers; try less than {limit / 10:.2g}"
            )
        examples = {name: reached(landscape, path) for name, path in batches.items()}
        start = float(landscape.excess(batches["one"].places[0]))
        floors = {name: float(landscape.excess(path.places[-len(path.places) // 4 :]).mean()) / start for name, path in batches.items()}
        predicted = options.lr * options.noise**2 * float(landscape.curvature.trace()) / 2 / start
        for name, path in batches.items():
            print(
                f"batches of {path.batch}: {examples[name]} examples to a hundredth, the last quarter of the way is at {floors[name]:.1e}"
            )
            excess = (landscape.excess(path.places) / start).tolist()
            record.curve(f"loss above the least one/{name}", range(0, len(excess), 10), excess[::10])
        costs = {4**k: cost(landscape, 4**k) for k in range(12) if 4**k <= many}
        record.figure("descent", draw(landscape, sizes, batches, costs, options.lr))
        same = rule_difference(landscape, options.lr)
        holds = (
            same < 1e-15
            and below < 0.1 < 10 < above
            and 10 * examples["one"] < examples["all"]
            and floors["one"] / 2 < predicted < floors["one"] * 2
            and 10 * floors["all"] < predicted
        )
        return record.verdict(
            DescentVerdict(
                holds,
                same,
                limit,
                below,
                above,
                examples["all"],
                examples["mini"],
                examples["one"],
                floors["all"],
                floors["mini"],
                floors["one"],
                predicted,
            )
        )


if __name__ == "__main__":
    command(main)
