"""Depth approximates with hardly any width: d + 1 units per layer, or residual blocks of one hidden unit; plain layers of one unit cannot.

    python -m experiments.approximation_depth            (about half a minute)

For d = 1 input in [0, 1] and ReLU; all weights are written down, none is trained (networks this deep and narrow hardly train at all).

    two units (d + 1)      carry x and one remainder: after every layer, the maximum or minimum of the answer so far and one more line, so
                           that a zigzag grows from left to right (after Hanin and Sellke 2017, "Approximating continuous functions by
                           ReLU nets of minimal width")                                                            error ~ 1 / depth
    three units (d + 2)    carry x, a corner, and the sum so far: the polygon of a wide network, laid on its side  error ~ 1 / depth^2
    residual, one unit     z + v relu(u z + b): make the input a staircase, each step at a height of its own, then drop the steps to where
                           they belong, one by one from the top (after Lin and Jegelka 2018, "ResNet with one-neuron hidden layers is a
                           universal approximator")                                                                error ~ 1 / depth
    plain, one unit        any depth is one straight line, cut off below and above: monotone, so it stays away from any target that both
                           rises and falls                                                                         stuck

The error is the mean absolute difference, as in Lu et al. 2017, "The expressive power of neural networks: a view from the width", who show
that width d + 4 is enough and width d is not for any d, and as in Lin and Jegelka. Between two steps the residual network runs through
other heights in a narrow spike, so its largest error does not fall; neither does the theorem promise that.

Figures:

    approximation_depth.png    Narrow networks of growing depth are written down, and the mean error is measured on 20,000 points. Look at
                               the red line: plain layers of one unit stay above the best of all monotone functions, the others fall; a
                               residual network runs through narrow spikes, which are drawn whole.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from cnn425.lab import figures
from cnn425.lab.errors import command
from cnn425.lab.models import Layers, namespace
from cnn425.lab.study import StudyOptions, at_least, parse, study

from .approximation_width import TARGETS, constructed, slope

TINY = ("--deepest", "32")

Target = Callable[[Tensor], Tensor]
POINTS = (torch.arange(20000, dtype=torch.float64) + torch.rand(20000, generator=torch.Generator().manual_seed(0)).double()) / 20000
COLOURS = {"two units": "#00798c", "three units": "#6a4c93", "residual, one unit": "#edae49", "plain, one unit": "#d1495b"}


@dataclass(frozen=True)
class DepthOptions(StudyOptions):
    """What can be changed; see --help."""

    target: Literal["wave", "bump", "runge"] = "wave"
    """What to approximate on [0, 1]: a sum of two sines, a Gaussian bump, or 1 / (1 + 25 (2x - 1)^2)."""
    deepest: int = 256
    """The largest number of hidden layers or residual blocks; depths are its halves down to 8. `--full`: eight times as many."""

    def __post_init__(self) -> None:
        """Refuses numbers that mean nothing."""
        at_least(self, threads=0, deepest=32)


class DepthVerdict(NamedTuple):
    """Slopes of log error against log depth; mean absolute errors at the greatest depth; how far the two polygons are apart.

    Holds if the slopes are -1, -2 and -1 within 0.25, the two polygons are one to 1e-9, and the plain network of one unit is no closer
    than a monotone function can be while the residual one is closer than that.
    """

    holds: bool
    two_units_slope: float
    """exponent of the error against the depth, two units per layer"""
    three_units_slope: float
    """exponent of the error against the depth, three units per layer"""
    residual_slope: float
    """exponent of the error against the depth, residual blocks of one unit"""
    two_units_error: float
    """error of two units per layer at the greatest depth"""
    three_units_error: float
    """error of three units per layer at the greatest depth"""
    residual_error: float
    """error of residual blocks at the greatest depth"""
    one_unit_error: float
    """error of plain layers of one unit at the greatest depth"""
    monotone_floor: float
    """error below which no monotone function comes"""
    polygons_differ: float
    """largest difference between the deep polygon and the wide one"""

    def sentence(self) -> str:
        """What came out."""
        return (
            f"the error falls as depth^{self.two_units_slope:.2f} with two units per layer, as depth^{self.three_units_slope:.2f} with "
            f"three and as depth^{self.residual_slope:.2f} with residual blocks of one unit; plain layers of one unit stay at "
            f"{self.one_unit_error:.2g}"
        )


class Residual(nn.Module):
    """z + v relu(u z + b) with one hidden unit."""

    def __init__(self, layers: Layers, d: int = 1):
        super().__init__()
        ours = namespace(layers)
        self.into, self.activation, self.out = ours.Linear(d, 1), ours.ReLU(), ours.Linear(1, d, bias=False)

    def forward(self, z: Tensor) -> Tensor:
        """`(N, d) -> (N, d)`."""
        return z + self.out(self.activation(self.into(z)))


def linear(layers: Layers, weight: Any, bias: Any) -> nn.Module:
    """A linear layer with these weights, float64."""
    weight, bias = torch.as_tensor(weight, dtype=torch.float64), torch.as_tensor(bias, dtype=torch.float64)
    layer = namespace(layers).Linear(weight.shape[1], weight.shape[0]).double()
    layer.load_state_dict({"weight": weight, "bias": bias})
    return layer


def two_units(layers: Layers, depth: int, f: Target) -> nn.Sequential:
    """A zigzag through the target at the ends of depth / 2 cells: m becomes max(m, l) = l + relu(m - l) or min(m, l) = l - relu(l - m)."""
    cells = (depth + 1) // 2
    ends = torch.arange(cells + 1, dtype=torch.float64) / cells
    dense = torch.linspace(0, 1, 3001, dtype=torch.float64)
    steep = 1.05 * float(f(dense).diff().abs().max()) * 3000  # both slopes of the zigzag, steeper than the target anywhere
    heights = f(ends).tolist()
    a, b, c = steep, heights[0], 0.0  # the answer so far is m = a x + b + c h, where h is the second unit
    parts: list[nn.Module] = []
    for k in range(1, 2 * cells):
        end = (k + 1) // 2
        sign = -1.0 if k % 2 else 1.0  # first down to the end of the cell, then up from there
        slope_, offset = sign * steep, heights[end] - sign * steep * end / cells
        weight = [[1.0], [sign * (a - slope_)]] if k == 1 else [[1.0, 0.0], [sign * (a - slope_), sign * c]]
        parts += [linear(layers, weight, [0.0, sign * (b - offset)]), namespace(layers).ReLU()]
        a, b, c = slope_, offset, sign
    return nn.Sequential(*parts, linear(layers, [[a, c]], [b]))


def three_units(layers: Layers, depth: int, f: Target) -> nn.Sequential:
    """The polygon with `depth` corners, one per layer: units x, relu(x - corner), and the sum of all earlier corners, lifted above zero."""
    corners = torch.arange(depth + 1, dtype=torch.float64) / depth
    slopes = f(corners).diff() * depth
    bends = slopes.diff(prepend=slopes.new_zeros(1)).tolist()
    start, lift = float(f(corners[:1])), float(f(corners).abs().max() + slopes.abs().max())  # no partial sum lies deeper than that
    parts = [linear(layers, [[1.0], [1.0], [0.0]], [0.0, 0.0, start + lift]), namespace(layers).ReLU()]
    for k in range(1, depth):
        parts += [linear(layers, [[1, 0, 0], [1, 0, 0], [0, bends[k - 1], 1]], [0, -k / depth, 0]), namespace(layers).ReLU()]
    return nn.Sequential(*parts, linear(layers, [[0, bends[-1], 1]], [-lift]))


def residual(layers: Layers, depth: int, f: Target) -> nn.Sequential:
    """Three blocks per step. Each block stretches all that lies above a threshold: z + (factor - 1) relu(z - threshold)."""
    steps = depth // 3
    flat, ramp = 1e-5, 0.2 / steps  # the slope of a step; the share of a step's width that leads up to the next
    wanted = f((torch.arange(steps, dtype=torch.float64) + 0.5) / steps)
    gap = float(wanted.max() - wanted.min()) / steps  # between the heights of two steps
    rise = flat * (1 - ramp) / steps
    steep = (gap - rise) / (ramp / steps)
    blocks: list[tuple[float, float]] = []
    slope_ = 1.0
    for k in range(steps):
        blocks += [(k * gap, flat / slope_), (k * gap + rise, steep / flat)]
        slope_ = steep
    lift = float(wanted.max()) + gap  # what has been dropped must lie below every threshold to come
    for k in reversed(range(steps)):
        threshold, height = (k - 0.5) * gap, k * gap + rise / 2
        blocks.append((threshold, (float(wanted[k]) - lift - threshold) / (height - threshold)))
    parts: list[nn.Module] = []
    for threshold, factor in blocks:
        block = Residual(layers).double()
        values = {"into.weight": [[1.0]], "into.bias": [-threshold], "out.weight": [[factor - 1]]}
        block.load_state_dict({name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()})
        parts.append(block)
    return nn.Sequential(*parts, linear(layers, [[1.0]], [lift]))


def one_unit(layers: Layers, depth: int, f: Target) -> nn.Sequential:
    """The best line cut off at both ends, in the mean square: r goes from 0 to 1 between two points; all further layers pass it on."""
    x = torch.linspace(0, 1, 201, dtype=torch.float64)
    best = (float("inf"), 0.0, 1.0, 0.0, 0.0)
    for low in x[:-1:5].tolist():
        for high in x[x > low][4::5].tolist():
            r = ((x - low) / (high - low)).clamp(0, 1)
            sides = torch.stack([1 - r, r], 1)
            left, right = torch.linalg.lstsq(sides, f(x)[:, None]).solution[:, 0].tolist()
            distance = float((left * (1 - r) + right * r - f(x)).square().mean())
            best = min(best, (distance, low, high, left, right))
    _, low, high, left, right = best
    relu = namespace(layers).ReLU
    parts = [linear(layers, [[-1 / (high - low)]], [high / (high - low)]), relu(), linear(layers, [[-1.0]], [1.0]), relu()]
    for _ in range(depth - 2):
        parts += [linear(layers, [[1.0]], [0.0]), relu()]
    return nn.Sequential(*parts, linear(layers, [[right - left]], [left]))


def monotone_floor(f: Target) -> float:
    """A mean absolute difference below which no monotone function comes.

    Let g rise and f fall between x < y: |g(x) - f(x)| + |g(y) - f(y)| >= f(x) - f(y). Here x and y mirror each other in the best centre.
    """
    y = f(torch.linspace(0, 1, 1001, dtype=torch.float64))

    def against_rising(y: Tensor) -> float:
        sums = []
        for centre in range(1, len(y)):
            many = min(centre, len(y) - centre)
            sums.append(float((y[centre - many : centre].flip(0) - y[centre : centre + many]).clamp(min=0).sum()) / len(y))
        return max(sums)

    return min(against_rising(y), against_rising(-y))


def error(model: nn.Module, f: Target) -> float:
    """The mean absolute difference over [0, 1], from 20,000 points, one at random in each equal part."""
    with torch.no_grad():
        return float((model(POINTS[:, None])[:, 0] - f(POINTS)).abs().mean())


BUILDERS = {"two units": two_units, "three units": three_units, "residual, one unit": residual, "plain, one unit": one_unit}


def draw(options: DepthOptions, depths: Sequence[int], errors: dict[str, list[float]], limit: float) -> Any:
    """The figure: error against depth, and what the networks look like."""
    f = TARGETS[options.target]
    made = figures.figure(13, 6)
    left, right = made.subfigures(1, 2, width_ratios=[1, 1.25])
    axes = left.subplots()
    for name, values in errors.items():
        axes.loglog(depths, values, "o-", markersize=4, color=COLOURS[name], label=name)
    axes.axhline(limit, color=COLOURS["plain, one unit"], linewidth=1, linestyle=":", label="no monotone function below")
    axes.set(xlabel="depth: hidden layers or residual blocks", ylabel="mean absolute error on [0, 1]")
    axes.set_title("Deeper is closer, from two units per layer, or one per block")
    axes.set_xticks(depths, [str(depth) for depth in depths])
    axes.minorticks_off()
    axes.legend(fontsize=9, loc="lower left")
    shown = [(name, depth) for name in ("two units", "residual, one unit", "three units") for depth in (depths[2], depths[-1])]
    shown[4:] = [("three units", depths[1]), ("plain, one unit", depths[-1])]
    for axes, (name, depth) in zip(right.subplots(2, 3, sharex=True).T.flat, shown, strict=True):
        model = BUILDERS[name](options.layers, depth, f)
        axes.plot(POINTS, f(POINTS), color="#bbbbbb", linewidth=4)
        answer = model(POINTS[:, None])[:, 0].detach()
        axes.plot(POINTS, answer, color=COLOURS[name], linewidth=0.8 if name.startswith("residual") else 1.2)
        axes.set_title(f"{name}, depth {depth}", fontsize=10)
        middle, half = float(f(POINTS).max() + f(POINTS).min()) / 2, float(f(POINTS).max() - f(POINTS).min()) / 2
        low, high = (float(bound) for bound in answer.aminmax())
        axes.set(xlim=(0, 1), xticks=[0, 0.5, 1], ylim=(min(middle - 1.4 * half, 1.05 * low), max(middle + 1.4 * half, 1.05 * high)))
    right.supxlabel("input x", fontsize=10)
    right.suptitle("grey: target   coloured: network")
    return made


def main(argv: Sequence[str] | None = None) -> DepthVerdict:
    """Construct four kinds of networks of growing depth, measure; the verdict."""
    options = parse(DepthOptions, argv)
    f = TARGETS[options.target]
    deepest = options.deepest * (8 if options.full else 1)
    depths = [deepest >> k for k in range(deepest.bit_length() - 4, -1, -1)]
    with study("approximation_depth", options) as record:
        errors = {name: [error(build(options.layers, depth, f), f) for depth in depths] for name, build in BUILDERS.items()}
        for name, values in errors.items():
            record.curve(f"error/{name}", depths, values)
            print(f"{name:20} error {values[0]:.2g} at depth {depths[0]}, {values[-1]:.2g} at depth {depths[-1]}")
        limit = monotone_floor(f)
        print(f"no monotone function comes closer than {limit:.2g}")
        x = POINTS[:, None]
        with torch.no_grad():
            wide, deep = constructed("ReLU", options.layers, depths[-1], f)(x), three_units(options.layers, depths[-1], f)(x)
        differ = float((wide - deep).abs().max())
        print(f"the polygon of {depths[-1]} units side by side and the one of {depths[-1]} layers differ by at most {differ:.0e}")
        record.figure("approximation_depth", draw(options, depths, errors, limit))
        slopes = [slope(depths, errors[name]) for name in list(BUILDERS)[:3]]
        last = [values[-1] for values in errors.values()]
        right = all(abs(measured - wanted) < 0.25 for measured, wanted in zip(slopes, (-1, -2, -1), strict=True))
        holds = right and differ < 1e-9 and last[2] < limit <= min(errors["plain, one unit"])
        return record.verdict(DepthVerdict(holds, slopes[0], slopes[1], slopes[2], last[0], last[1], last[2], last[3], limit, differ))


if __name__ == "__main__":
    command(main)
