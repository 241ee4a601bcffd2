"""Residual blocks of one hidden unit learn to fence in a disc; plain layers as wide as the input cannot, however deep.

    python -m experiments.residual            (about 3 minutes)

Lin and Jegelka 2018, "ResNet with one-neuron hidden layers is a universal approximator", compare the two on a task like this: two classes
of points in the plane, inside a disc of radius 1 or in a ring from radius 2 to 3. A plain ReLU network with two units per layer, the width
of its input, cannot call a bounded region "disc": what it calls so runs off to infinity (Johnson 2019, "Deep, skinny neural networks are
not universal approximators"). A residual block adds to its input what one unit says, z + v relu(u . z + b), and a few of them close the
fence; experiments/approximation_depth.py writes such networks down, here they are trained. The points, the optimiser and the depths are
ours, so no number is to be compared with theirs. Training may fail where a solution exists (plain and deep, all units soon are zero
everywhere and stay so), so each network starts from several seeds: the best is drawn, all are counted.

Figures:

    residual.png    Networks of two kinds learn to tell a disc from a ring around it; above, what the best of the seeds calls the disc,
                    below, the loss of all of them. Look at the red regions: those of plain networks run off to the border, or there are
                    none because all units are zero; the residual network closes its own.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from cnn425.lab import figures
from cnn425.lab.errors import command
from cnn425.lab.models import namespace
from cnn425.lab.progress import Reporter
from cnn425.lab.study import StudyOptions, at_least, parse, study
from cnn425.lab.verdict import percent

from .approximation_depth import Residual

TINY = ("--depths", "1", "--steps", "3", "--seeds", "1")

KINDS = ("plain, two units", "residual, one unit")
FAR = 50.0  # radius at which a network is asked whether its disc has an end


@dataclass(frozen=True)
class ResidualOptions(StudyOptions):
    """What can be changed; see --help."""

    depths: tuple[int, ...] = (2, 6)
    """Layers or blocks of the networks to train."""
    points: int = 400
    """Points of the two classes together."""
    steps: int = 500
    """Steps of Adam, each on all points. `--full`: four times as many."""
    lr: float = 0.02
    """Learning rate of Adam."""
    seeds: int = 6
    """Initial weights per network. `--full`: four times as many."""

    def __post_init__(self) -> None:
        """Refuses numbers that mean nothing."""
        at_least(self, threads=0, points=4, steps=1, lr=1e-9, seeds=1)
        for depth in self.depths:
            at_least(Depth(depth), depths=1)


class Depth(NamedTuple):
    """One of `--depths`, for the check of its least value."""

    depths: int


class ResidualVerdict(NamedTuple):
    """The best share of points right: plain of any depth, residual at the greatest; and how many networks fence the disc in.

    Holds if the best residual network gets at least 99 % right and is fenced in, and no plain network, of any depth or seed, is.
    """

    holds: bool
    plain_accuracy: float
    """points right, best plain network [%]"""
    residual_accuracy: float
    """points right, best residual network of the greatest depth [%]"""
    plain_fenced: int
    """plain networks that fence the disc in"""
    residual_fenced: int
    """residual networks of the greatest depth that fence the disc in"""

    def sentence(self) -> str:
        """What came out."""
        return (
            f"{self.residual_fenced} residual networks of the greatest depth fence the disc in, the best with "
            f"{percent(self.residual_accuracy)} of the points right; {self.plain_fenced} plain networks do, of any depth, the best with "
            f"{percent(self.plain_accuracy)}"
        )


def points(many: int, seed: int) -> tuple[Tensor, Tensor]:
    """Points `(many, 2)`, uniform in the disc (label 1) or in the ring (label 0)."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(many) % 2
    low, high = torch.where(labels == 1, 0.0, 4.0), torch.where(labels == 1, 1.0, 9.0)  # squared radii
    radius = (low + (high - low) * torch.rand(many, generator=generator)).sqrt()
    angle = 2 * math.pi * torch.rand(many, generator=generator)
    return torch.stack([radius * angle.cos(), radius * angle.sin()], 1).double(), labels


def network(kind: str, depth: int, layers: Any, seed: int) -> nn.Sequential:
    """Points `(N, 2) -> (N, 2)` scores for ring and disc."""
    ours = namespace(layers)
    torch.manual_seed(seed)
    parts: list[nn.Module] = []
    for _ in range(depth):
        parts += [ours.Linear(2, 2), ours.ReLU()] if kind == KINDS[0] else [Residual(layers, 2)]
    return nn.Sequential(*parts, ours.Linear(2, 2)).double()


def learn(model: nn.Sequential, options: ResidualOptions, x: Tensor, labels: Tensor) -> tuple[float, list[float]]:
    """The share of points right after training, and the loss in nats before every step."""
    loss = namespace(options.layers).CrossEntropyLoss()
    optimizer, losses = torch.optim.Adam(model.parameters(), lr=options.lr), []
    for _ in range(options.steps * (4 if options.full else 1)):
        optimizer.zero_grad()
        value = loss(model(x), labels)
        value.backward()
        optimizer.step()
        losses.append(value.item())
    with torch.no_grad():
        return float((model(x).argmax(1) == labels).double().mean()), losses


def fenced(model: nn.Module) -> bool:
    """Whether the network calls some place near the centre a disc, and no place far away, in 3600 directions."""
    angle = torch.arange(3600, dtype=torch.float64) * (2 * math.pi / 3600)
    side = torch.linspace(-3, 3, 61, dtype=torch.float64)
    with torch.no_grad():
        far = model(FAR * torch.stack([angle.cos(), angle.sin()], 1)).argmax(1)
        near = model(torch.cartesian_prod(side, side)).argmax(1)
    return bool(near.any()) and not bool(far.any())


def draw(
    best: dict[tuple[str, int], tuple[float, nn.Module]],
    courses: dict[tuple[str, int], list[list[float]]],
    ends: dict[tuple[str, int], int],
    x: Tensor,
    labels: Tensor,
) -> Any:
    """The figure: what the best network of each kind and depth calls the disc, and how all of them learnt."""
    made = figures.figure(2.9 * len(best) + 0.9, 6.2)
    closed = {kind: sum(many for (other, _), many in ends.items() if other == kind) for kind in KINDS}
    tried = {kind: sum(len(runs) for (other, _), runs in courses.items() if other == kind) for kind in KINDS}
    words = [f"{closed[kind]} of {tried[kind]} {kind.partition(',')[0]} networks" for kind in (KINDS[1], KINDS[0])]
    made.suptitle(f"{words[0]} fence the disc in, {words[1]}", fontsize=13)
    side = torch.linspace(-5, 5, 201, dtype=torch.float64)
    plane = torch.cartesian_prod(side, side)
    cells = made.subplots(2, len(best), squeeze=False, sharey="row", height_ratios=[1.5, 1])
    for (above, below), ((kind, depth), (accuracy, model)) in zip(cells.T, best.items(), strict=True):
        with torch.no_grad():
            disc = model(plane).softmax(1)[:, 1].reshape(len(side), len(side)).T
        shown = above.imshow(disc.numpy(), origin="lower", extent=(-5, 5, -5, 5), cmap="RdBu_r", vmin=0, vmax=1, alpha=0.7)
        above.scatter(*x.T, s=4, c=["#67001f" if label else "#053061" for label in labels.tolist()])
        above.set_title(f"{kind}\ndepth {depth}, best: {percent(accuracy)} right", fontsize=10)
        above.set(xlabel="$x_1$", xticks=[-4, 0, 4])
        for losses in courses[kind, depth]:
            below.plot(losses, color="#00798c", linewidth=1)
        below.axhline(math.log(2), color="#888888", linewidth=0.8, linestyle="--")
        below.text(len(courses[kind, depth][0]), math.log(2) + 0.02, "guessing", ha="right", fontsize=8, color="#666666")
        below.set(xlabel="step", ylim=(0, 1))
        below.set_title(f"{len(courses[kind, depth])} seeds, {ends[kind, depth]} of them closed", fontsize=10)
    cells[0, 0].set_ylabel("$x_2$")
    cells[1, 0].set_ylabel("loss [nats]")
    made.colorbar(shown, ax=cells[0], label="probability of disc", shrink=0.9, ticks=[0, 0.5, 1])
    return made


def main(argv: Sequence[str] | None = None) -> ResidualVerdict:
    """Train both kinds at every depth from every seed; the verdict."""
    options = parse(ResidualOptions, argv)
    seeds = range(options.seed, options.seed + options.seeds * (4 if options.full else 1))
    x, labels = points(options.points, options.seed)
    best: dict[tuple[str, int], tuple[float, nn.Module]] = {}
    ends: dict[tuple[str, int], int] = {}
    courses: dict[tuple[str, int], list[list[float]]] = {}
    with study("residual", options) as record, Reporter("training", 2 * len(options.depths) * len(seeds)) as reporter:
        for kind in KINDS:
            for depth in sorted(set(options.depths)):
                runs = []
                for seed in seeds:
                    model = network(kind, depth, options.layers, seed)
                    accuracy, losses = learn(model, options, x, labels)
                    runs.append((accuracy, model))
                    courses.setdefault((kind, depth), []).append(losses)
                    reporter.advance(f"{kind}, depth {depth}")
                best[kind, depth] = max(runs, key=lambda run: (run[0], fenced(run[1])))
                ends[kind, depth] = sum(fenced(model) for _, model in runs)
                shares = ", ".join(f"{accuracy:.0%}" for accuracy, _ in runs)
                print(f"{kind:20} depth {depth}: {shares} right; {ends[kind, depth]} of {len(runs)} seeds fence the disc in")
            record.curve(f"accuracy/{kind}", [d for k, d in best if k == kind], [a for (k, _), (a, _) in best.items() if k == kind])
        record.figure("residual", draw(best, courses, ends, x, labels))
        deepest = max(options.depths)
        plain = max(accuracy for (kind, _), (accuracy, _) in best.items() if kind == KINDS[0])
        residual = best[KINDS[1], deepest]
        plain_ends = sum(many for (kind, _), many in ends.items() if kind == KINDS[0])
        holds = residual[0] >= 0.99 and fenced(residual[1]) and plain_ends == 0
        return record.verdict(ResidualVerdict(holds, plain, residual[0], plain_ends, ends[KINDS[1], deepest]))


if __name__ == "__main__":
    command(main)
