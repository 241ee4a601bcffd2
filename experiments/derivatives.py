"""Five ways lead to the same gradient, and only reverse mode gets there in one pass, whatever the number of inputs.

    python -m experiments.derivatives            (about 5 seconds)
    python -m experiments.derivatives --page     (a second: the function of the slides as a page, its three traces step by step)
    python -m experiments.derivatives --page --expression "x1 * exp(-x2**2)" --at x1=3 x2=0.5

The ways: differences with a step h, symbolic differentiation, forward mode, reverse mode (all in cnn425/autodiff), and torch. The
functions: y = ln x1 + x1 x2 - sin x2 of the slides at (2, 5), and the cross entropy of the 3-4-2 network by its 26 parameters. Measured:

    error     of differences against h: curvature makes it fall with h (forward) and h² (central), rounding makes it rise with 1/h.
              h = 1e-6 is good for checking a gradient; for learning it would take two evaluations per parameter and step
    passes    forward mode needs one per input, reverse mode one per output: seconds for a whole gradient of up to a million inputs

Ways that would take longer than a second are timed for one pass and multiplied (dotted lines). What a derivative costs in memory, and
through deep graphs, is the claim of experiments/derivative_costs.py.

Figures:

    derivatives.png      Left, the error of a difference quotient against its step; right, seconds for a whole gradient against the number
                         of inputs, dotted where one pass was timed and multiplied. Look at the right ends: reverse mode stays below a
                         second where the others take hours.
    network_graph.png    The graph that torch recorded for a small convolutional network, in the slides' notation. Read it from left to
                         right, and the arrows backwards for the gradient.
    slide_graph.png      The graph of the slides' function at (2, 5), with the value and the adjoint of every node. Follow the adjoints from
                         right to left: each is the sum over the arrows that leave its node.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.table import Table

from cnn425 import autodiff
from cnn425.autodiff import Trace, forward, numerical, reverse, symbolic
from cnn425.autodiff.drawing import draw as draw_graph
from cnn425.autodiff.drawing import layout
from cnn425.autodiff.explain import explain
from cnn425.autodiff.traces import traces
from cnn425.lab import figures, pages
from cnn425.lab.errors import LabError, command, first_line
from cnn425.lab.expressions import derivation, parsed, point
from cnn425.lab.models import namespace
from cnn425.lab.progress import say_table, watched
from cnn425.lab.study import StudyOptions, at_least, parse, study

TINY = ("--largest", "200")

TORCH = SimpleNamespace(ln=torch.log, sin=torch.sin, exp=torch.exp, sigmoid=torch.sigmoid)
FUNCTIONS = ("ln", "exp", "sin", "cos", "tanh", "sigmoid", "relu", "maximum")
COLOURS = {"numerical": "#8c2f39", "symbolic": "#edae49", "forward": "#d1495b", "reverse": "#00798c", "torch": "#6a4c93"}


@dataclass(frozen=True)
class DerivativeOptions(StudyOptions):
    """What can be changed; see --help."""

    largest: int = 1_000_000
    """The most inputs of a function. `--full`: ten times as many."""
    page: bool = False
    """Measure nothing; write derivatives.html, the graph of one function with its traces, for any browser."""
    expression: str = "ln(x1) + x1*x2 - sin(x2)"
    """The function of the page: numbers, names, + - * / ** and ln, exp, sin, cos, tanh, sigmoid, relu, maximum."""
    at: tuple[str, ...] = ("x1=2", "x2=5")
    """The values of its variables."""

    def __post_init__(self) -> None:
        """Refuses numbers that mean nothing."""
        at_least(self, threads=0, largest=100)


class DerivativeVerdict(NamedTuple):
    """Errors are relative to the largest slope; slopes are of log error against log h; seconds are for a gradient by `inputs` inputs.

    Holds if symbolic, forward and reverse mode and our layers differ from torch by less than 1e-12 on both functions, and differences
    with h = 1e-6 by less than 1e-7; if the error of forward and central differences falls as h and h² (exponents within 0.1); and if
    reverse mode is the fastest way to the largest gradient.
    """

    holds: bool
    disagreement: float
    """largest relative difference of the exact ways from torch"""
    numerical_error: float
    """the same of differences with h = 1e-6"""
    forward_slope: float
    """exponent of the error against h, forward differences"""
    central_slope: float
    """exponent of the error against h, central differences"""
    best_step: float
    """the best step of central differences"""
    error_at_1e_6: float
    """relative error of central differences at h = 1e-6"""
    inputs: int
    """inputs of the function that is timed"""
    reverse_seconds: float
    """seconds for its gradient, reverse mode"""
    forward_seconds: float
    """seconds for its gradient, forward mode"""
    numerical_seconds: float
    """seconds for its gradient, differences"""

    def sentence(self) -> str:
        """What came out."""
        return (
            f"the exact ways differ by at most {self.disagreement:.1g}; for a gradient by {self.inputs:,} inputs reverse mode takes "
            f"{self.reverse_seconds:.2g} s, forward mode {self.forward_seconds:,.1f} s, differences {self.numerical_seconds:,.1f} s"
        )


class PageVerdict(NamedTuple):
    """Where the page is, the value, and the gradient; holds if forward and reverse mode agree to 1e-12 of the largest slope."""

    holds: bool
    page: str
    value: float
    gradient: list[float]

    @property
    def MUST_HOLD(self) -> bool:
        """A task, not a claim."""
        return True


# ---- The functions -----------------------------------------------------------------------------------------------------------------------


def slide(x1: Any, x2: Any, library: Any = autodiff) -> Any:
    """The function of the slides."""
    return library.ln(x1) + x1 * x2 - library.sin(x2)


def network(*parameters: Any, library: Any = autodiff) -> Any:
    """The cross entropy, in nats, of the 3-4-2 network for one example of class 1, in scalar operations: 26 parameters in torch's order."""
    values = iter(parameters)
    answers: Sequence[Any] = (0.5, -1.0, 2.0)
    for outputs in (4, 2):
        weights = [[next(values) for _ in answers] for _ in range(outputs)]
        sums = []
        for row in weights:
            total = next(values)
            for weight, answer in zip(row, answers, strict=True):
                total = total + weight * answer
            sums.append(total)
        answers = [library.sigmoid(total) for total in sums] if outputs == 4 else sums
    return library.ln(library.exp(answers[0]) + library.exp(answers[1])) - answers[1]


def start(seed: int) -> list[float]:
    """Random parameters for the network."""
    return np.random.default_rng(seed % 2**64).standard_normal(26).tolist()


def by_layers(layers: Any, parameters: Sequence[float]) -> list[float]:
    """The network's gradient once more, from Linear, Sigmoid and CrossEntropyLoss, in the same order of parameters."""
    ours = namespace(layers)
    model = torch.nn.Sequential(ours.Linear(3, 4), ours.Sigmoid(), ours.Linear(4, 2)).double()
    values = torch.tensor(parameters, dtype=torch.float64)
    with torch.no_grad():
        torch.nn.utils.vector_to_parameters(values, model.parameters())
    loss = ours.CrossEntropyLoss()(model(torch.tensor([[0.5, -1.0, 2.0]], dtype=torch.float64)), torch.tensor([1]))
    return [float(g) for gradient in torch.autograd.grad(loss, list(model.parameters())) for g in gradient.flatten()]


# ---- The measurements --------------------------------------------------------------------------------------------------------------------


def seconds(call: Callable[[], Any], budget: float = 0.1) -> float:
    """The median time of a call, repeated for as long as `budget` lasts."""
    times: list[float] = []
    while sum(times) < budget and len(times) < 1000:
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return sorted(times)[len(times) // 2]


class Way(NamedTuple):
    """One way to a gradient: the gradient, how many passes and elementary operations it took, and seconds."""

    gradient: list[float]
    passes: str
    operations: int | None
    seconds: float


def five_ways(function: Callable[..., Any], at: Sequence[float]) -> dict[str, Way]:
    """The same gradient five times. Operations are counted, not estimated: nodes of the trace, or of the formulas."""
    m, trace, algebra = len(at), Trace(), symbolic.Algebra()
    x = [trace.variable(v) for v in at]
    y = function(*x)
    plain = len(trace.nodes) - m
    reverse.adjoints(y, record=True)
    swept_back = len(trace.nodes) - m
    symbols = [algebra.symbol(f"x{k}") for k in range(m)]
    formula = function(*symbols)
    slopes = [symbolic.derivative(formula, s) for s in symbols]
    written = len({e for slope in [formula, *slopes] for e in symbolic.in_order(slope) if e.rule})
    pushed = sum(pushed_operations(function, at, k) for k in range(m))

    def by_torch() -> list[float]:
        leaves = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in at]
        return [float(g) for g in torch.autograd.grad(function(*leaves, library=TORCH), leaves)]

    calls: dict[str, tuple[Callable[[], Any], str, int | None]] = {
        "numerical": (lambda: numerical.gradient(function, *at), f"{2 * m} evaluations", 2 * m * plain),
        "symbolic": (lambda: symbolic.gradient(function, *at), f"{m} formulas", written),
        "forward": (lambda: forward.gradient(function, *at), f"{m} forward", plain + pushed),
        "reverse": (lambda: reverse.gradient(function, *at), "1 backward", swept_back),
        "torch": (by_torch, "1 backward", None),
    }
    return {name: Way([float(g) for g in call()], passes, operations, seconds(call)) for name, (call, passes, operations) in calls.items()}


def pushed_operations(function: Callable[..., Any], at: Sequence[float], k: int) -> int:
    """The nodes that one forward sweep, for input k, adds to the evaluation."""
    trace = Trace()
    x = [trace.variable(v) for v in at]
    function(*x)
    before = len(trace.nodes)
    forward.tangents({x[k]: 1.0}, record=True)
    return len(trace.nodes) - before


def relative(found: Sequence[float], expected: Sequence[float]) -> float:
    """The largest difference, in units of the largest slope."""
    return float(np.max(np.abs(np.subtract(found, expected))) / np.max(np.abs(expected)))


def errors_against_step() -> dict[str, tuple[list[float], list[float]]]:
    """For forward and central differences: steps, and the relative errors of the slide's slope by x2, averaged over ten nearby points."""
    steps = np.logspace(-1, -14, 53)
    points = np.linspace(4.5, 5.5, 10)
    found = {}
    for central in (False, True):
        errors = [
            np.mean([abs(numerical.gradient(lambda x2: slide(2.0, x2), p, h=h, central=central)[0] / (2 - np.cos(p)) - 1) for p in points])
            for h in steps
        ]
        found["central" if central else "forward"] = (steps.tolist(), [float(e) for e in errors])
    return found


def exponent(x: Sequence[float], y: Sequence[float]) -> float:
    """The slope of log y against log x."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def passes_against_inputs(largest: int) -> tuple[list[int], dict[str, list[tuple[float, bool]]]]:
    """Seconds for the whole gradient of f(x) = sum of x sin x by all inputs; False: one pass was timed and multiplied."""
    counts = [int(c) for c in np.unique(np.logspace(1, np.log10(largest), 6).round())]
    found: dict[str, list[tuple[float, bool]]] = {"numerical": [], "forward": [], "reverse": []}

    def f(x: Any) -> Any:
        return (autodiff.sin(x) * x).sum()

    for m in watched(counts, "numbers of inputs", len(counts)):
        x, direction = np.linspace(0, 1, m), np.eye(1, m)[0]
        one = {"numerical": seconds(partial(f, x)) * 2 * m, "forward": seconds(partial(forward.jvp, f, (x,), (direction,))) * m}
        for way, module in (("numerical", numerical), ("forward", forward)):
            measure = one[way] < 1
            found[way].append((seconds(partial(module.gradient, f, x)) if measure else one[way], measure))
        found["reverse"].append((seconds(partial(reverse.gradient, f, x)), True))
    return counts, found


# ---- The figures, and what is said -------------------------------------------------------------------------------------------------------


def draw(errors: dict[str, tuple[list[float], list[float]]], passes: tuple[list[int], dict[str, list[tuple[float, bool]]]]) -> Any:
    """The figure: error against h, and seconds against inputs."""
    made = figures.figure(13, 5)
    left, right = made.subplots(1, 2)
    for (name, (steps, values)), colour in zip(errors.items(), ("#d1495b", "#00798c"), strict=True):
        left.loglog(steps, values, "o-", markersize=3, color=colour, label=f"{name} difference")
    h = np.logspace(-14, -1, 50)
    left.loglog(h, 1e-15 / h, color="0.6", linestyle=":", label="rounding, ~ 1/h")
    left.axvline(1e-6, color="0.85", zorder=0)
    left.text(1.3e-6, 0.2, "h = 1e-6", fontsize=9, color="0.4")
    left.set(xlabel="step h", ylabel="relative error of the slope", ylim=(1e-13, 1), title="A smaller step is not a better one")
    left.legend(fontsize=9, loc="lower left")

    counts, ways = passes
    for name, points in ways.items():
        sure = [k for k, (_, measured) in enumerate(points) if measured]
        right.loglog([counts[k] for k in sure], [points[k][0] for k in sure], "o-", markersize=4, color=COLOURS[name], label=name)
        rest = range(max(sure, default=0), len(points))
        right.loglog([counts[k] for k in rest], [points[k][0] for k in rest], ":", color=COLOURS[name])
    for value, words in ((60, "a minute"), (86400, "a day")):
        right.axhline(value, color="0.85", zorder=0)
        right.text(counts[0], value * 1.2, words, fontsize=9, color="0.4")
    right.set(xlabel="inputs m", ylabel="seconds for the whole gradient", title="m passes forward, one pass backward")
    right.legend(fontsize=9, loc="lower right")
    return made


def judged(
    ways: Sequence[tuple[dict[str, Way], Sequence[float]]],
    errors: dict[str, tuple[list[float], list[float]]],
    passes: tuple[list[int], dict[str, list[tuple[float, bool]]]],
) -> DerivativeVerdict:
    """The verdict on all measurements; `ways` pairs the ways to a gradient with the gradient they should find."""
    exact = [relative(way.gradient, truth) for found, truth in ways for name, way in found.items() if name != "numerical"]
    disagreement, rough = float(np.max(exact)), float(np.max([relative(found["numerical"].gradient, truth) for found, truth in ways]))
    slopes = []
    for name, (low, high) in (("forward", (1e-6, 1e-2)), ("central", (1e-4, 1e-1))):
        pairs = [(h, e) for h, e in zip(*errors[name], strict=True) if low <= h <= high]
        slopes.append(exponent([h for h, _ in pairs], [e for _, e in pairs]))
    steps, central = errors["central"]
    last = {name: points[-1][0] for name, points in passes[1].items()}
    alike = disagreement < 1e-12 and rough < 1e-7 and abs(slopes[0] - 1) < 0.1 and abs(slopes[1] - 2) < 0.1
    return DerivativeVerdict(
        alike and last["reverse"] < min(last["forward"], last["numerical"]),
        disagreement,
        rough,
        slopes[0],
        slopes[1],
        best_step=steps[int(np.argmin(central))],
        error_at_1e_6=central[int(np.argmin(np.abs(np.log10(steps) + 6)))],
        inputs=passes[0][-1],
        reverse_seconds=last["reverse"],
        forward_seconds=last["forward"],
        numerical_seconds=last["numerical"],
    )


def say(verdict: DerivativeVerdict) -> None:
    """The verdict in words."""
    print(f"exact ways differ from torch by at most {verdict.disagreement:.1e}, differences with h = 1e-6 by {verdict.numerical_error:.1e}")
    print(
        f"error of differences: h^{verdict.forward_slope:.2f} forward, h^{verdict.central_slope:.2f} central; the best central step is "
        f"{verdict.best_step:.0e}, and 1e-6 leaves an error of {verdict.error_at_1e_6:.0e}"
    )
    print(
        f"gradient by {verdict.inputs:,} inputs: reverse mode {verdict.reverse_seconds:.3g} s, "
        f"forward mode {verdict.forward_seconds:.3g} s, differences {verdict.numerical_seconds:.3g} s"
    )


def show(title: str, ways: dict[str, Way], expected: Sequence[float]) -> None:
    """The five ways as a table in the terminal."""
    table = Table(title=title)
    for name in ("way", "first two slopes", "error", "passes", "operations", "ms"):
        table.add_column(name, justify="left" if name in ("way", "passes") else "right")
    for name, way in ways.items():
        slopes = ", ".join(f"{slope:.6f}" for slope in way.gradient[:2])
        error = f"{relative(way.gradient, expected):.1e}"
        table.add_row(name, slopes, error, way.passes, f"{way.operations:,}" if way.operations else "", f"{way.seconds * 1e3:.3f}")
    say_table(table)


def small_network(layers: Any) -> Any:
    """A whole small convolutional network as torch's own graph, in the slides' table: 8x8 pixels, 2 images."""
    ours = namespace(layers)
    model = torch.nn.Sequential(ours.Conv2d(1, 2, 3), ours.ReLU(), ours.MaxPool2d(2), torch.nn.Flatten(), ours.Linear(18, 3))
    return explain(model, torch.randn(2, 1, 8, 8))


def write_page(options: DerivativeOptions) -> PageVerdict:
    """The page of the expression; the verdict on its gradient."""
    names, function = parsed(options.expression, {name: getattr(autodiff, name) for name in FUNCTIONS})
    values = point(options.at, names)
    try:
        tables = [traces(function, *values, by=k + 1) for k in range(len(names))]
        found = forward.gradient(function, *values), reverse.gradient(function, *values)
    except (ValueError, OverflowError, ZeroDivisionError, TypeError) as error:
        raise LabError(f"{options.expression} cannot be evaluated at {', '.join(options.at)}: {first_line(error)}", 2) from None
    lines = tables[0].lines
    path = (options.log_dir or Path("runs", "derivatives")) / "derivatives.html"
    pages.write(path, "derivatives", pages.page("derivatives", derivation(options.expression, names, tables, layout(lines))))
    gradient = [float(slope) for slope in found[1]]
    print(f"{options.expression} = {float(lines[-1].value):.5g}, gradient {', '.join(f'{slope:.5g}' for slope in gradient)}; open {path}")
    return PageVerdict(relative(found[0], gradient) < 1e-12 if any(gradient) else True, str(path), float(lines[-1].value), gradient)


def main(argv: Sequence[str] | None = None) -> DerivativeVerdict | PageVerdict:
    """Differentiate in five ways, measure error and passes; the verdict. With `--page`, write a page instead."""
    options = parse(DerivativeOptions, argv)
    if options.page:
        return write_page(options)
    with study("derivatives", options) as record:
        torch.manual_seed(options.seed)
        table, theirs = traces(slide, 2, 5), small_network(options.layers)
        say_table(table)
        at, exact = start(options.seed), [5.5, float(2 - np.cos(5.0))]
        simple, layered = five_ways(slide, (2.0, 5.0)), five_ways(network, at)
        layered[f"{options.layers} layers"] = Way(
            by_layers(options.layers, at), "1 backward", None, seconds(lambda: by_layers(options.layers, at))
        )
        truth = layered["torch"].gradient
        show("y = ln x1 + x1 x2 - sin x2 at (2, 5)", simple, exact)
        show("cross entropy of the 3-4-2 network by its 26 parameters", layered, truth)
        errors, passes = errors_against_step(), passes_against_inputs(options.largest * (10 if options.full else 1))
        for name, points in passes[1].items():
            record.curve(f"seconds by inputs/{name}", passes[0], [value for value, _ in points])
        record.figure("derivatives", draw(errors, passes))
        for name, graph in (("slide_graph", table), ("network_graph", theirs)):
            picture = draw_graph(graph)
            record.figure(name, picture)
            record.drawing(name, picture)
            record.board.text(f"traces/{name}", graph.markdown(), 0)
        verdict = judged([(simple, exact), (layered, truth)], errors, passes)
        say(verdict)
        return record.verdict(verdict)


if __name__ == "__main__":
    command(main)
