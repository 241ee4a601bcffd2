"""A computational graph as a picture: inputs on the left, the output on the right; in each box the value, and what the traces say about it.

draw(traces(function, 2, 5)).savefig("graph.svg")
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cnn425.autodiff.traces import Line, Traces, shown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_NODES = 200
INPUT, STEP, TANGENT, ADJOINT = "#dbe9f6", "#f6f3ea", "#1f6f43", "#b5342b"
WIDTH, HEIGHT = 0.74, 0.66


def draw(traces: Traces) -> "Figure":
    """The figure of a trace table; save it as SVG or PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if len(traces.lines) > MOST_NODES:
        raise ValueError(f"a picture of {len(traces.lines)} nodes is not readable, at most {MOST_NODES} are drawn; use the table")
    columns, places = columns_of(traces.lines), layout(traces.lines)
    width, height = (max(place[axis] for place in places.values()) + 1 for axis in (0, 1))
    figure = Figure(figsize=(2.2 * width + 0.2, 1.25 * height + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set(xlim=(-0.5, width - 0.5), ylim=(-0.5, height - 0.5), title=traces.title)
    axes.axis("off")
    for line in traces.lines:
        column = columns[line.name]
        _box(axes, line, *places[line.name, column])
        for source in dict.fromkeys(line.sources):
            stops = [places[source, c] for c in range(columns[source], column)]
            ways = [(x + side * WIDTH / 2, y) for x, y in stops[1:] for side in (-1, 1)]
            _arrow(axes, [(stops[0][0] + WIDTH / 2, stops[0][1]), *ways, (column - WIDTH / 2, places[line.name, column][1])])
    return figure


def _arrow(axes: Any, points: Sequence[tuple[float, float]]) -> None:
    """A polyline with an arrowhead at its end."""
    axes.plot(*zip(*points, strict=True), color="0.4", linewidth=1, zorder=1)
    axes.annotate("", points[-1], points[-2], arrowprops={"arrowstyle": "-|>", "color": "0.4", "shrinkA": 0, "shrinkB": 0}, zorder=1)


def _box(axes: Any, line: Line, x: float, y: float) -> None:
    """One node: its name and operation, then value, tangent and adjoint."""
    from matplotlib.patches import FancyBboxPatch

    corner = (x - WIDTH / 2, y - HEIGHT / 2)
    fill = STEP if line.sources else INPUT
    axes.add_patch(FancyBboxPatch(corner, WIDTH, HEIGHT, "round,pad=0,rounding_size=0.05", facecolor=fill, edgecolor="0.4", zorder=2))
    texts = [(f"{line.name}  {line.operation or 'same'}", "black", "bold"), (shown(line.value), "black", "normal")]
    texts += [(f"tangent {shown(line.tangent).split(', ')[-1]}", TANGENT, "normal")] if line.tangent is not None else []
    texts += [(f"adjoint {shown(line.adjoint).split(', ')[-1]}", ADJOINT, "normal")] if line.adjoint is not None else []
    for k, (words, colour, weight) in enumerate(texts):
        height = y + HEIGHT * (0.5 - (k + 0.5) / len(texts))
        size = 9 if len(words) <= 18 else 9 * 18 / len(words)
        axes.text(x, height, words, color=colour, weight=weight, fontsize=size, ha="center", va="center", zorder=3)


def layout(lines: Sequence[Line]) -> dict[tuple[str, int], tuple[int, float]]:
    """A place (column, row) for every node, and for every arrow in each column that it crosses, so that none runs behind a box.

    Keys are (node, column). Rows follow the mean row of the sources, so that few arrows cross.
    """
    columns = columns_of(lines)
    last = dict(columns)
    for line in lines:
        for source in line.sources:
            last[source] = max(last[source], columns[line.name] - 1)
    sources = {line.name: line.sources for line in lines}
    members = [[n for n in columns if columns[n] <= c <= last[n]] for c in range(max(columns.values()) + 1)]
    tallest = max(map(len, members))
    places: dict[tuple[str, int], tuple[int, float]] = {}
    for c, inside in enumerate(members):
        level: dict[str, float] = {}
        for name in inside:
            before = [places[n, c - 1][1] for n in ((name,) if columns[name] < c else sources[name])]
            level[name] = sum(before) / len(before) if before else -1.0
        top = tallest - 1 - (tallest - len(inside)) / 2
        for k, name in enumerate(sorted(inside, key=lambda name: -level[name])):
            places[name, c] = (c, top - k)
    return places


def columns_of(lines: Sequence[Line]) -> dict[str, int]:
    """The column of every node: its depth, or just before its first reader if nothing else reads its sources."""
    readers: dict[str, list[str]] = {line.name: [] for line in lines}
    for line in lines:
        for source in line.sources:
            readers[source].append(line.name)
    columns: dict[str, int] = {}
    for line in sorted(lines, key=lambda line: -line.depth):
        movable = readers[line.name] and all(len(readers[s]) == 1 for s in line.sources)
        columns[line.name] = min(columns[r] for r in readers[line.name]) - 1 if movable else line.depth
    return {line.name: columns[line.name] for line in lines}
