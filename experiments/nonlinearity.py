"""A network without activation is linear: at any depth it is one matrix and cannot learn XOR; with sigmoid or ReLU in between it can.

    python -m experiments.nonlinearity            (about 10 seconds)

Two layers without activation: W2 (W1 x + b1) + b2 = (W2 W1) x + (W2 b1 + b2), one matrix and one bias; checked here for two to twenty
layers. On XOR such a network, however deep, stays at a loss of at least ln 2 = 0.693 nats, that of guessing. For its answer f is affine
in x, so f(0,0) + f(1,1) = f(0,1) + f(1,0): the four margins sum to zero, and as log(1 + exp(-margin)) is convex, its mean is at least its
value at zero. Three of the four points are the most it can get right. Can learn does not mean will: from some initial weights the same
small network with an activation ends in a local minimum, so the verdict says how many of the seeds succeed.

Figures:

    nonlinearity.png    Four networks learn the four points of XOR; above, the probability that each gives to 1 over the plane, below, its
                        loss. Look at the first two panels: without an activation the plane stays one shade, and the loss stays at ln 2.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from rich.table import Table
from torch import Tensor, nn

from cnn425.lab import figures
from cnn425.lab.errors import command
from cnn425.lab.models import Layers, namespace
from cnn425.lab.progress import Reporter, say_table
from cnn425.lab.study import StudyOptions, at_least, parse, study
from cnn425.lab.verdict import percent

TINY = ("--steps", "3", "--seeds", "1")

XOR = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
ODD = torch.tensor([0, 1, 1, 0])
EPSILON = torch.finfo(torch.float64).eps
NAMES = ("one layer", "two layers, no activation", "two layers, sigmoid", "two layers, ReLU")
COLOURS = ("#edae49", "#d1495b", "#00798c", "#6a4c93")


@dataclass(frozen=True)
class NonlinearityOptions(StudyOptions):
    """What can be changed; see --help."""

    hidden: int = 4
    """Units of the hidden layer."""
    steps: int = 300
    """Steps of Adam, each on all four points."""
    lr: float = 0.05
    """Learning rate of Adam."""
    seeds: int = 5
    """How many initial weights each network is trained from; `--full`: four times as many."""

    def __post_init__(self) -> None:
        """Refuses numbers that mean nothing."""
        at_least(self, threads=0, hidden=1, steps=1, lr=1e-9, seeds=1)


class NonlinearityVerdict(NamedTuple):
    """Relative error of the one matrix in units of rounding (2.2e-16), the best without activation, the share of seeds that learn with one.

    Holds if the matrix is exact to rounding, nothing without activation beats guessing's loss or three points of four, and both
    activations learn XOR from at least one seed.
    """

    holds: bool
    collapse_error: float
    """deep linear networks against their one matrix, in roundings of 2.2e-16"""
    linear_accuracy: float
    """points of XOR right without activation, at best [%]"""
    linear_loss: float
    """the lowest loss without activation, in nats (guessing: ln 2 = 0.693)"""
    sigmoid_learnt: float
    """initial weights from which XOR is learnt with sigmoid [%]"""
    relu_learnt: float
    """initial weights from which XOR is learnt with ReLU [%]"""

    def sentence(self) -> str:
        """What came out."""
        return (
            f"without activation a network gets at most {4 * self.linear_accuracy:.0f} of the 4 points of XOR right; with one, XOR is "
            f"learnt from {percent(self.sigmoid_learnt)} (sigmoid) and {percent(self.relu_learnt)} (ReLU) of the initial weights"
        )


def network(name: str, layers: Layers, hidden: int, seed: int) -> nn.Sequential:
    """Points `(N, 2) -> (N, 2)` scores, in float64."""
    ours = namespace(layers)
    between = {"two layers, sigmoid": [ours.Sigmoid()], "two layers, ReLU": [ours.ReLU()]}.get(name, [])
    torch.manual_seed(seed)
    parts = [ours.Linear(2, 2)] if name == "one layer" else [ours.Linear(2, hidden), *between, ours.Linear(hidden, 2)]
    return nn.Sequential(*parts).double()


def collapsed(model: nn.Sequential) -> tuple[Tensor, Tensor]:
    """The one matrix and the one bias that linear layers without activation amount to: W2 W1 and W2 b1 + b2, and so on for more layers."""
    W, b, *others = (parameter.detach() for parameter in model.parameters())
    for W2, b2 in zip(others[::2], others[1::2], strict=True):
        W, b = W2 @ W, W2 @ b + b2
    return W, b


def collapse_error(layers: Layers, depth: int, width: int = 16) -> float:
    """The largest difference between a network of `depth` linear layers and its one matrix, relative to the answer, in roundings."""
    torch.manual_seed(depth)
    model = nn.Sequential(*(namespace(layers).Linear(width, width) for _ in range(depth))).double()
    W, b = collapsed(model)
    x = torch.randn(200, width, dtype=torch.float64)
    answer = model(x).detach()
    return float((answer - (x @ W.T + b)).abs().max() / answer.abs().max()) / EPSILON


def learn(model: nn.Sequential, options: NonlinearityOptions) -> tuple[list[float], float]:
    """Train on the four points; the loss in nats before every step and after the last, and the share of points it gets right."""
    loss = namespace(options.layers).CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=options.lr)
    losses = []
    for _ in range(options.steps):
        value = loss(model(XOR), ODD)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(value.item())
    with torch.no_grad():
        scores = model(XOR)
        losses.append(loss(scores, ODD).item())
    return losses, float((scores.argmax(1) == ODD).double().mean())


def draw(best: dict[str, tuple[list[float], float, nn.Sequential]]) -> Any:
    """The figure: what each network answers over the plane, how its loss went, and the two matrices that are one."""
    made = figures.figure(13, 6.6)
    top, bottom = made.subfigures(2, 1, height_ratios=[1.15, 1])
    side = torch.linspace(-0.5, 1.5, 121, dtype=torch.float64)
    plane = torch.cartesian_prod(side, side)
    panels = top.subplots(1, 4)
    for axes, (name, (_, accuracy, model)) in zip(panels, best.items(), strict=True):
        with torch.no_grad():
            odd = model(plane).softmax(1)[:, 1].reshape(len(side), len(side))
        shown = axes.imshow(odd.T.numpy(), origin="lower", extent=(-0.5, 1.5, -0.5, 1.5), cmap="RdBu_r", vmin=0, vmax=1, alpha=0.75)
        flat = float(odd.max() - odd.min()) < 0.01  # then the line of 0.5 is drawn by rounding
        if not flat:
            axes.contour(side.numpy(), side.numpy(), odd.T.numpy(), levels=[0.5], colors="black", linewidths=1.5)
        for (a, b), label in zip(XOR.tolist(), ODD.tolist(), strict=True):
            axes.plot(a, b, "o", markersize=13, markerfacecolor="#b2182b" if label else "#2166ac", markeredgecolor="white")
        result = "0.5 everywhere: guessing" if flat else f"{accuracy * 4:.0f} of 4 right"
        axes.set(title=f"{name}\n{result}", xticks=[0, 1], yticks=[0, 1], xlabel="$x_1$")
    panels[0].set_ylabel("$x_2$")
    top.colorbar(shown, ax=panels, label="probability of XOR = 1", fraction=0.02, ticks=[0, 0.5, 1])
    axes, *_ = cells = bottom.subplots(1, 4, width_ratios=[3.2, 0.9, 1.8, 0.9])
    for (name, (losses, _, _)), colour, style in zip(best.items(), COLOURS, ("-", "--", "-", "-"), strict=True):
        axes.plot(losses, style, color=colour, label=name, linewidth=2)
    axes.axhline(math.log(2), color="#888888", linewidth=0.8)
    axes.text(0.98, math.log(2) - 0.02, "ln 2: guessing", ha="right", va="top", fontsize=9, transform=axes.get_yaxis_transform())
    axes.set(xlabel="step", ylabel="loss [nats]", ylim=(0, None), title="Learning XOR")
    axes.legend(fontsize=9)
    linear = best["two layers, no activation"][2]
    W1, W2 = (linear.get_parameter(name).detach() for name in ("0.weight", "1.weight"))
    largest = float(max(W1.abs().max(), W2.abs().max()))
    for axes, matrix, title, sign in zip(cells[1:], (W2 @ W1, W2, W1), ("$W$", "$W_2$", "$W_1$"), " =·", strict=True):
        axes.imshow(matrix.numpy(), cmap="RdBu_r", vmin=-1.3 * largest, vmax=1.3 * largest)
        axes.set(title=title, xticks=[], yticks=[])
        axes.set_ylabel(sign, rotation=0, fontsize=22, labelpad=14, va="center")
        few = matrix if matrix.numel() <= 16 else matrix[:0]
        for (i, j), value in [((i, j), float(matrix[i, j])) for i in range(few.shape[0]) for j in range(matrix.shape[1])]:
            axes.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=9)
    return made


def main(argv: Sequence[str] | None = None) -> NonlinearityVerdict:
    """Collapse deep linear networks, train four networks on XOR; the verdict."""
    options = parse(NonlinearityOptions, argv)
    seeds = range(options.seed, options.seed + options.seeds * (4 if options.full else 1))
    depths = (2, 3, 5, 10, 20)
    with study("nonlinearity", options) as record, Reporter("XOR", len(NAMES) * len(seeds)) as reporter:
        errors = [collapse_error(options.layers, depth) for depth in depths]
        record.curve("roundings between a deep linear network and its one matrix, by depth", depths, errors)
        most = dict.fromkeys(NAMES, 0.0)
        best: dict[str, tuple[list[float], float, nn.Sequential]] = {}
        table = Table("network", "best loss [nats]", "most points right", "seeds that learn XOR")
        learnt, lowest = {}, {}
        for name in NAMES:
            runs = []
            for seed in seeds:
                model = network(name, options.layers, options.hidden, seed)
                runs.append((*learn(model, options), model))
                reporter.advance(name)
            best[name] = min(runs, key=lambda run: run[0][-1])
            lowest[name] = min(min(losses) for losses, _, _ in runs)
            learnt[name] = sum(accuracy == 1 for _, accuracy, _ in runs) / len(runs)
            most[name] = max(accuracy for _, accuracy, _ in runs)
            table.add_row(name, f"{best[name][0][-1]:.4f}", f"{4 * most[name]:.0f} of 4", f"{learnt[name]:.0%} of {len(runs)}")
            record.curve(f"loss/{name}", range(options.steps + 1), best[name][0])
        record.figure("nonlinearity", draw(best))
        print(f"{depths[0]} to {depths[-1]} linear layers are one matrix, to {max(errors):.0f} roundings of 2.2e-16")
        say_table(table)
        accuracy, loss = max(most[name] for name in NAMES[:2]), min(lowest[name] for name in NAMES[:2])
        shares = learnt[NAMES[2]], learnt[NAMES[3]]
        holds = max(errors) < 1000 and accuracy <= 0.75 and loss >= math.log(2) - 1e-12 and min(shares) > 0
        return record.verdict(NonlinearityVerdict(holds, max(errors), accuracy, loss, *shares))


if __name__ == "__main__":
    command(main)
