"""A derivative costs what is written down for it: as a graph little more than its function, as a formula or a Jacobian far more.

python -m experiments.derivative_costs            (about 20 seconds)

swell     operations in the formula of a derivative: written out, they double with every step of l -> 4 l (1 - l); with every distinct
          subexpression written once they grow by eight, which is what forward mode does
depth     reverse mode through a chain of up to a million nodes, without recursion: linear in time and memory
grain     one layer sigmoid(W x + b) as scalar nodes, as three vector nodes, as one complex node: the same gradient, other seconds
Jacobian  the local Jacobian |y| x |x| of a node, built, against the product with an adjoint that reverse mode computes instead: the
          cube against the square of the width for W, the square against the width for sigmoid

Figures:

    derivative_costs.png    Operations, seconds and bytes are counted while formulas, chains and layers grow. Look for the steepest line in
                            the panels: the formula written out, the scalar nodes, the Jacobian that is built; time and memory of
                            reverse mode grow alike.
"""

import gc
import time
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from cnn425 import autodiff
from cnn425.autodiff import Trace, reverse, symbolic
from cnn425.autodiff.jacobians import adjoints_by_jacobians, dense, dense_of_scalars, local_jacobian
from cnn425.autodiff.rules import sigmoid
from cnn425.lab import figures
from cnn425.lab.errors import command
from cnn425.lab.progress import watched
from cnn425.lab.study import StudyOptions, at_least, parse, study

from .derivatives import exponent, pushed_operations, seconds

TINY = ("--nodes", "1000", "--steps", "6", "--width", "8")


@dataclass(frozen=True)
class CostOptions(StudyOptions):
    """What can be changed; see --help."""

    steps: int = 20
    """Steps of the logistic map whose derivative is written out."""
    nodes: int = 1_000_000
    """The most nodes of a chain."""
    width: int = 128
    """The widest layer, in units; the Jacobian by its weights has the cube of that many numbers. `--full`: twice as wide."""

    def __post_init__(self) -> None:
        """Refuses numbers that mean nothing."""
        at_least(self, threads=0, steps=5, nodes=1000, width=8)


class CostVerdict(NamedTuple):
    """Operations of the last derivative; seconds of the longest chain and bytes per node; slopes of log cost against log size.

    Holds if the written-out derivative grows by more than 1.8 per step and the shared one by equally many operations, no more than forward
    mode computes; if memory is linear in depth (exponent 0.9 to 1.1); and if all grains give the same gradient, relative to its
    largest entry, to 1e-12. Seconds are told, not judged: other programs on the machine disturb them.
    """

    holds: bool
    swell_written: int
    """operations in the derivative of the logistic map, written out"""
    swell_simplified: int
    """the same, simplified"""
    swell_shared: int
    """the same, every distinct subexpression once"""
    chain_seconds: float
    """seconds of reverse mode through the longest chain"""
    bytes_per_node: float
    """bytes per node of a chain"""
    time_exponent: float
    """exponent of the seconds against the nodes"""
    memory_exponent: float
    """exponent of the bytes against the nodes"""
    largest_disagreement: float
    """largest relative difference between the gradients of all grains"""
    jacobian_bytes: float
    """bytes at most while the Jacobian of the widest layer by its weights is built"""
    product_bytes: float
    """the same for its product with an adjoint"""

    def sentence(self) -> str:
        """What came out."""
        return (
            f"written out, the derivative of the iterated logistic map has {self.swell_written:,} operations, as a graph "
            f"{self.swell_shared:,}; building the Jacobian of a layer by its weights takes {self.jacobian_bytes / 1e6:.2g} MB, "
            f"computing the product that reverse mode needs {self.product_bytes / 1e6:.2g} MB"
        )


def swell(steps: int) -> dict[str, list[int]]:
    """Operations in the derivative of the logistic map after 1, 2, ... steps."""
    found: dict[str, list[int]] = {"written out": [], "simplified": [], "shared": [], "forward mode": []}
    for name, simplify in (("written out", False), ("simplified", True)):
        algebra = symbolic.Algebra(simplify)
        x = algebra.symbol("x")
        y: Any = x
        for k in range(1, steps + 1):
            y = 4 * y * (1 - y)
            slope = symbolic.derivative(y, x)
            found[name].append(symbolic.size(slope, shared=False))
            if simplify:
                found["shared"].append(symbolic.size(slope, shared=True))
                found["forward mode"].append(3 * k + pushed_operations(lambda x, k=k: _logistic(x, k), [0.3], 0))
    return found


def _logistic(x: Any, steps: int) -> Any:
    for _ in range(steps):
        x = 4 * x * (1 - x)
    return x


def chain_of(nodes: int) -> None:
    """A chain of so many nodes, each made of the one before, and the reverse sweep back through it."""
    y = Trace().variable(0.5)
    for _ in range(nodes // 2):
        y = autodiff.sin(y * 0.999)
    reverse.adjoints(y)


def depth(largest: int, most_bytes: int) -> tuple[list[int], list[float], list[float]]:
    """Nodes of a chain, CPU seconds to build it and sweep back, and peak bytes of chains up to `most_bytes` nodes (counting takes a while).

    Python's cycle collector is paused meanwhile: it looks through all living objects again and again, and about doubles the seconds.
    """
    counts = [int(c) for c in np.logspace(np.log10(largest) - 2, np.log10(largest), 5).round()]
    times, sizes = [], []
    for nodes in watched(counts, "chains", len(counts)):
        gc.collect()
        gc.disable()
        begin = time.process_time()
        chain_of(nodes)
        times.append(time.process_time() - begin)
        gc.enable()
        gc.collect()
        if nodes <= most_bytes:
            sizes.append(peak_bytes(partial(chain_of, nodes)))
    return counts, times, sizes


def by_scalars(W: Any, x: Any, b: Any) -> Any:
    """The gradient by W of the sum of sigmoid(W x + b), from scalar nodes."""
    trace = Trace()
    w, v, c = ([[trace.variable(a) for a in row] for row in np.atleast_2d(array)] for array in (W, x, b))
    total: Any = sum(dense_of_scalars(w, v[0], c[0]), start=0.0)
    found = reverse.adjoints(total)
    return np.array([[found[node.index] for node in row] for row in w])


def by_vectors(W: Any, x: Any, b: Any) -> Any:
    """The same from vector nodes."""
    return reverse.gradient(lambda W: sigmoid(W @ x + b).sum(), W)[0]


def by_complex_node(W: Any, x: Any, b: Any) -> Any:
    """The same from one node for the whole layer."""
    return reverse.gradient(lambda W: dense(W, x, b).sum(), W)[0]


def by_explicit_jacobians(W: Any, x: Any, b: Any) -> Any:
    """The same from vector nodes, with every local Jacobian built."""
    return adjoints_by_jacobians(sigmoid(Trace().variable(W) @ x + b).sum())[0]


GRAINS = {
    "scalar nodes": by_scalars,
    "vector nodes": by_vectors,
    "one complex node": by_complex_node,
    "explicit Jacobians": by_explicit_jacobians,
}


def grain(width: int) -> tuple[list[int], dict[str, list[float]], dict[str, list[float]]]:
    """For layers of n inputs and n units: seconds for a gradient by grain; bytes and seconds with explicit Jacobians and without."""
    widths = [width >> k for k in range(width.bit_length() - 3, -1, -1)]
    times: dict[str, list[float]] = {name: [] for name in GRAINS}
    memory: dict[str, list[float]] = {"Jacobian of W x by W": [], "Jacobian of sigmoid": [], "product by W": [], "product by sigmoid": []}
    for n in watched(widths, "layers", len(widths)):
        random = np.random.default_rng(0)
        layer = (random.standard_normal((n, n)), random.standard_normal(n), random.standard_normal(n))
        for name, gradient in GRAINS.items():
            times[name].append(seconds(partial(gradient, *layer)))
        trace = Trace()
        z = trace.variable(layer[0]) @ trace.variable(layer[1])
        s = sigmoid(z)
        for name, node in (("W", z), ("sigmoid", s)):
            pull, y, operands = node.rule.pull[0], node.value, [getattr(o, "value", o) for o in node.operands]
            whole = "Jacobian of W x by W" if name == "W" else "Jacobian of sigmoid"
            memory[whole].append(peak_bytes(partial(by_jacobian, layer[2], node)))
            memory[f"product by {name}"].append(peak_bytes(partial(pull, layer[2], y, *operands)))
    return widths, times, memory


def by_jacobian(adjoint: Any, node: Any) -> Any:
    """The adjoint of a node's first operand, by the whole Jacobian."""
    return adjoint @ local_jacobian(node, 0)


def peak_bytes(call: Callable[[], Any]) -> float:
    """The most that a call has allocated at any moment."""
    tracemalloc.start()
    call()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return float(peak)


def same_gradients(width: int) -> float:
    """The largest difference between the gradients of all grains, in units of the largest slope."""
    random = np.random.default_rng(1)
    layer = (random.standard_normal((width, width)), random.standard_normal(width), random.standard_normal(width))
    first, *others = (gradient(*layer) for gradient in GRAINS.values())
    return max(float(np.abs(other - first).max() / np.abs(first).max()) for other in others)


def draw(
    swollen: dict[str, list[int]],
    chain: tuple[list[int], list[float], list[float]],
    grains: tuple[list[int], dict[str, list[float]], dict[str, list[float]]],
) -> Any:
    """The figure: swell, depth, grain, Jacobians."""
    made = figures.figure(13, 9)
    (swelling, depths), (grain_of, jacobians) = made.subplots(2, 2)

    for (name, counts), (colour, style) in zip(
        swollen.items(), (("#8c2f39", "o-"), ("#d1495b", "o-"), ("#edae49", "-"), ("#00798c", "o")), strict=True
    ):
        width = 4 if style == "-" else 1.5
        swelling.semilogy(range(1, len(counts) + 1), counts, style, color=colour, linewidth=width, markersize=4, label=name)
    swelling.set(xlabel="steps of the map l -> 4 l (1 - l)", ylabel="operations in the derivative", title="Written out, formulas swell")
    swelling.set_xticks(range(0, len(swollen["shared"]) + 1, 4))
    swelling.legend(fontsize=9)

    nodes, times, sizes = chain
    memory_of = depths.twinx()
    depths.loglog(nodes, times, "o-", color="#00798c")
    depths.loglog(nodes, [times[0] * n / nodes[0] for n in nodes], ":", color="0.6")
    depths.text(0.98, 0.04, "dotted: linear", ha="right", fontsize=9, color="0.4", transform=depths.transAxes)
    memory_of.loglog(nodes[: len(sizes)], [size / 1e6 for size in sizes], "s--", color="#b36b00")
    decades = [bound * sizes[0] / times[0] / 3e6 for bound in depths.get_ylim()]  # as many on both sides, so that slopes compare
    memory_of.set_ylim(*decades)
    memory_of.minorticks_off()
    depths.set(xlabel="nodes in a chain", title="Reverse mode is linear in depth")
    depths.set_ylabel("CPU seconds, evaluation and sweep (solid)", color="#00798c")
    memory_of.set_ylabel("megabytes at the peak (dashed)", color="#b36b00")

    widths, durations, memory = grains
    for (name, values), colour in zip(durations.items(), ("#8c2f39", "#edae49", "#00798c", "#d1495b"), strict=True):
        grain_of.loglog(widths, values, "o-", markersize=4, color=colour, label=name)
    grain_of.set(
        xlabel="inputs and units of a layer, n", ylabel="seconds for its gradient", title="Scalar nodes are slow, vector nodes are not"
    )
    grain_of.legend(fontsize=9)

    styles = (("#8c2f39", "o-"), ("#d1495b", "o-"), ("#8c2f39", "s--"), ("#d1495b", "s--"))
    for (name, values), (colour, style) in zip(memory.items(), styles, strict=True):
        jacobians.loglog(widths, values, style, markersize=4, color=colour, label=name)
    jacobians.set(xlabel="inputs and units of a layer, n", ylabel="bytes at the peak", title="A Jacobian takes far more than its product")
    jacobians.legend(fontsize=9)
    for axes in (grain_of, jacobians):
        axes.set_xticks(widths, [str(n) for n in widths])
        axes.minorticks_off()
    return made


def judged(swollen: dict[str, list[int]], chain: tuple[list[int], list[float], list[float]], grains: Any, difference: float) -> CostVerdict:
    """The verdict on all measurements."""
    nodes, times, sizes = chain
    memory = exponent(nodes[: len(sizes)], sizes)
    written, shared = swollen["written out"], swollen["shared"]
    holds = (
        all(after > 1.8 * before for before, after in pairwise(written[2:]))
        and len({after - before for before, after in pairwise(shared[2:])}) == 1
        and all(few <= swept for few, swept in zip(shared, swollen["forward mode"], strict=True))
        and 0.9 < memory < 1.1
        and difference < 1e-12
    )
    return CostVerdict(
        holds,
        written[-1],
        swollen["simplified"][-1],
        shared[-1],
        times[-1],
        sizes[-1] / nodes[len(sizes) - 1],
        exponent(nodes, times),
        memory,
        difference,
        grains[2]["Jacobian of W x by W"][-1],
        grains[2]["product by W"][-1],
    )


def main(argv: Sequence[str] | None = None) -> CostVerdict:
    """Measure swell, depth, grain and Jacobians; the verdict."""
    options = parse(CostOptions, argv)
    with study("derivative_costs", options) as record:
        width = options.width * (1 + options.full)
        swollen, chain, grains = swell(options.steps), depth(options.nodes, options.nodes // (1 if options.full else 10)), grain(width)
        verdict = judged(swollen, chain, grains, same_gradients(min(width, 32)))
        for name, counts in swollen.items():
            record.curve(f"operations by steps/{name}", range(1, len(counts) + 1), counts)
            print(f"after {len(counts)} steps, {name}: {counts[-1]:,} operations")
        record.curve("by nodes/seconds", chain[0], chain[1])
        record.curve("by nodes/bytes", chain[0][: len(chain[2])], chain[2])
        for k, (nodes, spent) in enumerate(zip(*chain[:2], strict=True)):
            print(f"chain of {nodes:,} nodes: {spent:.3g} s" + (f", {chain[2][k] / 1e6:.4g} MB" if k < len(chain[2]) else ""))
        print(f"seconds grow as nodes^{verdict.time_exponent:.2f}, bytes as nodes^{verdict.memory_exponent:.2f}")
        for kind, lines in (("seconds", grains[1]), ("bytes", grains[2])):
            for name, values in lines.items():
                record.curve(f"{kind} by width/{name}", grains[0], values)
                print(f"layer of {grains[0][-1]} units, {name}: {values[-1]:.3g} {kind}")
        print(f"all gradients agree to {verdict.largest_disagreement:.1e}")
        record.figure("derivative_costs", draw(swollen, chain, grains))
        return record.verdict(verdict)


if __name__ == "__main__":
    command(main)
