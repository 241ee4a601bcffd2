"""One hidden layer approximates any smooth function, the better the wider, if its activation is bounded with two different limits.

    python -m experiments.approximation_width            (about a minute)

Hornik, Stinchcombe and White 1989 and Hornik 1991, "Approximation capabilities of multilayer feedforward networks": a bounded activation
with different limits at minus and plus infinity is enough. Their proofs name no rate and hold for any number of inputs; here the input is
one number in [0, 1], the weights are written down instead of found, and the rate is measured:

    sigmoid   limits 0 and 1     a staircase, one steep unit per step                                        error ~ 1 / width
    ReLU      limits 0 and inf   a polygon, one unit per corner (unbounded: Leshno covers it, Hornik not)    error ~ 1 / width^2
    Gaussian  limits 0 and 0     bumps side by side; output weights by least squares                         falls as well
    z^2, z^3                     the network is a polynomial of degree 2 or 3 at any width                   stuck at the best of those

So the lecture's condition is enough but not needed (the Gaussian), and "bounded" must not be forgotten: z^3 has two different limits,
minus and plus infinity, and fails. The exact condition came later: not a polynomial (Leshno, Lin, Pinkus and Schocken 1993).
That good weights exist does not mean that training finds them: the dashed curve is the same ReLU network, trained.

Figures:

    approximation_width.png    The weights of one hidden layer are written down for growing widths, and the error is measured on 3001
                               points. Look at the slopes: sigmoid and ReLU fall along straight lines, the two polynomials lie on their
                               dotted floors.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from cnn425.lab import figures
from cnn425.lab.errors import command
from cnn425.lab.models import Layers, namespace
from cnn425.lab.progress import Reporter
from cnn425.lab.study import StudyOptions, at_least, parse, study

TINY = ("--largest", "8", "--steps", "2")

TARGETS: dict[str, Callable[[Tensor], Tensor]] = {
    "wave": lambda x: (2 * math.pi * x).sin() + 0.5 * (6 * math.pi * x + 1).sin(),
    "bump": lambda x: (-50 * (x - 0.4) ** 2).exp(),
    "runge": lambda x: 1 / (1 + 25 * (2 * x - 1) ** 2),
}
GRID = torch.linspace(0, 1, 3001, dtype=torch.float64)
STYLES = {"sigmoid": "#00798c", "ReLU": "#6a4c93", "Gaussian": "#edae49", "square": "#d1495b", "cube": "#8c2f39"}
DEGREES = {"square": 2, "cube": 3}


@dataclass(frozen=True)
class WidthOptions(StudyOptions):
    """What can be changed; see --help."""

    target: Literal["wave", "bump", "runge"] = "wave"
    """What to approximate on [0, 1]: a sum of two sines, a Gaussian bump, or 1 / (1 + 25 (2x - 1)^2)."""
    largest: int = 256
    """The largest width; widths are its halves down to 2. `--full`: eight times as many."""
    steps: int = 1000
    """Steps of Adam for the trained networks. `--full`: ten times as many."""
    seeds: int = 3
    """How many initial weights are trained for each width."""

    def __post_init__(self) -> None:
        """Refuses numbers that mean nothing."""
        at_least(self, threads=0, largest=8, steps=1, seeds=1)


class WidthVerdict(NamedTuple):
    """Slopes of log error against log width, and root-mean-square errors at the largest width, where the target's size is about 0.8.

    Holds if the slopes are -1 (sigmoid) and -2 (ReLU) within 0.15, the Gaussian ends below a hundredth of where it began, and the
    polynomials never get below the best polynomial of their degree.
    """

    holds: bool
    sigmoid_slope: float
    """exponent of the error against the width, sigmoid"""
    relu_slope: float
    """exponent of the error against the width, ReLU"""
    sigmoid_error: float
    """error of sigmoids at the largest width"""
    relu_error: float
    """error of ReLUs at the largest width"""
    gaussian_error: float
    """error of Gaussians at the largest width"""
    square_error: float
    """error of z^2 at the largest width"""
    square_floor: float
    """error of the best polynomial of degree 2"""
    cube_error: float
    """error of z^3 at the largest width"""
    cube_floor: float
    """error of the best polynomial of degree 3"""
    trained_error: float
    """error of the best trained ReLU network"""

    def sentence(self) -> str:
        """What came out."""
        return (
            f"the error falls as width^{self.sigmoid_slope:.2f} with sigmoids and as width^{self.relu_slope:.2f} with ReLUs; z^2 and z^3 "
            f"stay at {self.square_error:.2g} and {self.cube_error:.2g}, where the best polynomials of degree 2 and 3 reach "
            f"{self.square_floor:.2g} and {self.cube_floor:.2g}"
        )


class Elementwise(nn.Module):
    """An activation from a formula."""

    def __init__(self, formula: Callable[[Tensor], Tensor]):
        super().__init__()
        self.formula = formula

    def forward(self, z: Tensor) -> Tensor:
        """`formula(z)`."""
        return self.formula(z)


def network(name: str, layers: Layers, width: int) -> nn.Sequential:
    """Numbers `(N, 1) -> (N, 1)` through one hidden layer, in float64."""
    ours = namespace(layers)
    formulas = {"Gaussian": lambda z: (-z * z).exp(), "square": lambda z: z**2, "cube": lambda z: z**3}
    activation = ours.Sigmoid() if name == "sigmoid" else ours.ReLU() if name == "ReLU" else Elementwise(formulas[name])
    return nn.Sequential(ours.Linear(1, width), activation, ours.Linear(width, 1)).double()


def constructed(name: str, layers: Layers, width: int, f: Callable[[Tensor], Tensor]) -> nn.Sequential:
    """The network with its weights written down: unit k computes activation(steepness * (x - centre_k))."""
    model = network(name, layers, width)
    weight, bias, outgoing, offset = model.parameters()
    corners = torch.arange(width + 1, dtype=torch.float64) / width
    steepness = {"sigmoid": 20.0 * width, "Gaussian": 0.8 * width}.get(name, 1.0)
    centres = corners[:-1] + (0 if name == "ReLU" else 0.5 / width)
    with torch.no_grad():
        weight.fill_(steepness)
        bias.copy_(-steepness * centres)
        if name == "sigmoid":
            heights, start = f(corners).diff(), f(corners[:1])
        elif name == "ReLU":
            slopes = f(corners).diff() * width
            heights, start = slopes.diff(prepend=slopes.new_zeros(1)), f(corners[:1])
        else:
            hidden = torch.cat([model[1](model[0](GRID[:, None])), torch.ones_like(GRID)[:, None]], 1)
            *heights, start = torch.linalg.lstsq(hidden, f(GRID)[:, None], driver="gelsd").solution[:, 0]
            heights = torch.stack(heights)
        outgoing.copy_(heights[None])
        offset.copy_(start)
    return model


def error(model: nn.Module, f: Callable[[Tensor], Tensor]) -> float:
    """The root-mean-square difference over [0, 1]."""
    with torch.no_grad():
        return float((model(GRID[:, None])[:, 0] - f(GRID)).square().mean().sqrt())


def floor(degree: int, f: Callable[[Tensor], Tensor]) -> float:
    """The smallest root-mean-square difference between the target and any polynomial of this degree."""
    powers = torch.stack([(2 * GRID - 1) ** k for k in range(degree + 1)], 1)
    best = powers @ torch.linalg.lstsq(powers, f(GRID)[:, None]).solution
    return float((best[:, 0] - f(GRID)).square().mean().sqrt())


def trained(options: WidthOptions, width: int, seed: int, f: Callable[[Tensor], Tensor]) -> float:
    """The error of the ReLU network after training from random weights, on 200 points."""
    torch.manual_seed(seed)
    model = network("ReLU", options.layers, width)
    x = GRID[::15, None]
    steps = options.steps * (10 if options.full else 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        (model(x) - f(x)).square().mean().backward()
        optimizer.step()
        schedule.step()
    return error(model, f)


def slope(widths: Sequence[int], errors: Sequence[float]) -> float:
    """The exponent of the fall: log error against log width, over the wider half of the widths."""
    half = len(widths) // 2
    x, y = torch.tensor(widths[half:], dtype=torch.float64).log(), torch.tensor(errors[half:], dtype=torch.float64).log()
    return float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())


def draw(
    options: WidthOptions,
    widths: Sequence[int],
    errors: dict[str, list[float]],
    floors: dict[str, float],
    training: dict[int, list[float]],
) -> Any:
    """The figure: error against width, and what the networks look like."""
    f = TARGETS[options.target]
    made = figures.figure(13, 6)
    left, right = made.subfigures(1, 2, width_ratios=[1, 1.25])
    axes = left.subplots()
    for name, values in errors.items():
        axes.loglog(widths, values, "o-", markersize=4, color=STYLES[name], label=name)
    middle = [sorted(values)[len(values) // 2] for values in training.values()]
    axes.loglog(
        list(training), middle, "s--", markersize=4, color=STYLES["ReLU"], alpha=0.7, label=f"ReLU, trained ({options.seeds} seeds)"
    )
    axes.fill_between(
        list(training), [min(v) for v in training.values()], [max(v) for v in training.values()], color=STYLES["ReLU"], alpha=0.15
    )
    for name, value in floors.items():
        axes.axhline(value, color=STYLES[name], linewidth=0.8, linestyle=":")
    axes.set(xlabel="width: units in the hidden layer", ylabel="root-mean-square error on [0, 1]")
    axes.set_title("Wider is closer, unless the activation is a polynomial")
    axes.set_xticks(widths, [str(width) for width in widths])
    axes.minorticks_off()
    axes.legend(fontsize=9, loc="lower left")
    most = widths[-1]
    shown = [("sigmoid", 8), ("sigmoid", 32), ("ReLU", 8), ("Gaussian", 8), ("square", most), ("cube", most)]
    for axes, (name, width) in zip(right.subplots(2, 3, sharex=True, sharey=True).T.flat, shown, strict=True):
        model = constructed(name, options.layers, width, f)
        axes.plot(GRID, f(GRID), color="#bbbbbb", linewidth=4)
        axes.plot(GRID, model(GRID[:, None])[:, 0].detach(), color=STYLES[name], linewidth=1.6)
        axes.set_title(f"{name}, width {width}", fontsize=11)
        axes.set(xlim=(0, 1), xticks=[0, 0.5, 1])
    right.supxlabel("input x", fontsize=10)
    right.suptitle("grey: target   coloured: network")
    return made


def main(argv: Sequence[str] | None = None) -> WidthVerdict:
    """Construct networks of growing width with five activations, train one kind, measure; the verdict."""
    options = parse(WidthOptions, argv)
    f = TARGETS[options.target]
    largest = options.largest * (8 if options.full else 1)
    widths = [largest >> k for k in range(largest.bit_length() - 2, -1, -1)]
    with study("approximation_width", options) as record:
        errors = {name: [error(constructed(name, options.layers, width, f), f) for width in widths] for name in STYLES}
        floors = {name: floor(degree, f) for name, degree in DEGREES.items()}
        training: dict[int, list[float]] = {}
        few = [width for width in widths if width <= 256][::2]
        with Reporter("training", len(few) * options.seeds) as reporter:
            for width in few:
                training[width] = []
                for seed in range(options.seed, options.seed + options.seeds):
                    training[width].append(trained(options, width, seed, f))
                    reporter.advance(f"width {width}")
        for name, values in errors.items():
            record.curve(f"error/{name}", widths, values)
            print(f"{name:10} error {values[0]:.2g} at width {widths[0]}, {values[-1]:.2g} at width {widths[-1]}")
        best = min(min(values) for values in training.values())
        print(f"{'trained':10} ReLU networks reach {best:.2g}")
        print(f"the best polynomials of degree 2 and 3 reach {floors['square']:.3g} and {floors['cube']:.3g}")
        record.figure("approximation_width", draw(options, widths, errors, floors, training))
        slopes = [slope(widths, errors[name]) for name in ("sigmoid", "ReLU")]
        holds = (
            abs(slopes[0] + 1) < 0.15
            and abs(slopes[1] + 2) < 0.15
            and errors["Gaussian"][-1] < errors["Gaussian"][0] / 100
            and all(min(errors[name]) > 0.999 * floors[name] for name in DEGREES)
        )
        return record.verdict(
            WidthVerdict(
                holds,
                slopes[0],
                slopes[1],
                errors["sigmoid"][-1],
                errors["ReLU"][-1],
                errors["Gaussian"][-1],
                errors["square"][-1],
                floors["square"],
                errors["cube"][-1],
                floors["cube"],
                best,
            )
        )


if __name__ == "__main__":
    command(main)
