"""The traces of the slides, for any function: evaluation, forward derivative and backward adjoint, each row with formula and number.

    print(traces(lambda x1, x2: ln(x1) + x1 * x2 - sin(x2), 2, 5))

Rows are numbered as on the slides: inputs first, then by depth, which is the longest way from an input. The formulas are not written by
hand: they are what the rules give for symbols instead of numbers.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import StringIO
from typing import Any

import numpy as np

from cnn425.autodiff.forward import tangents
from cnn425.autodiff.graph import Node, recorded
from cnn425.autodiff.reverse import adjoints
from cnn425.autodiff.symbolic import Algebra, Expression, text


@dataclass(frozen=True)
class Line:
    """One row: a node, what it was made of, and what the three traces say about it. Formulas are text, values are numbers or arrays."""

    name: str
    operation: str
    sources: tuple[str, ...]
    depth: int
    formula: str
    value: Any
    tangent_formula: str = ""
    tangent: Any = None
    adjoint_formula: str = ""
    adjoint: Any = None


@dataclass(frozen=True, repr=False)
class Traces:
    """A table of lines that can print itself: `print(...)`, `.markdown()`, `rich.print(...)`."""

    lines: Sequence[Line]
    title: str
    by: str = ""

    def columns(self) -> tuple[list[str], list[list[str]]]:
        """The header and the cells, without empty columns."""
        header = ["", "forward evaluation", "value", f"forward derivative by {self.by}", "tangent", "backward adjoint", "adjoint"]
        rows = [
            [f"{line.name} =", line.formula, shown(line.value)]
            + [line.tangent_formula, shown(line.tangent), line.adjoint_formula, shown(line.adjoint)]
            for line in self.lines
        ]
        used = [any(row[k] for row in rows) for k in range(len(header))]
        header, *rows = [[cell for cell, u in zip(line, used, strict=True) if u] for line in (header, *rows)]
        return header, rows

    def markdown(self) -> str:
        """The table for a README or a notebook."""
        header, rows = self.columns()
        lines = [header, ["---"] * len(header), *rows]
        return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)

    def __rich__(self) -> Any:
        from rich.table import Table
        from rich.text import Text

        header, rows = self.columns()
        table = Table(title=self.title)
        for name in header:
            table.add_column(name, justify="right" if name in ("", "value", "tangent", "adjoint") else "left")
        for row in rows:
            table.add_row(*map(Text, row))
        return table

    def __str__(self) -> str:
        from rich.console import Console

        console = Console(file=StringIO(), width=200)
        console.print(self)
        return console.file.getvalue().rstrip()  # type: ignore[attr-defined]

    __repr__ = __str__


def shown(value: Any) -> str:
    """A scalar as five digits, a few numbers as a list, more as shape and norm (the square root of the sum of squares)."""
    if value is None or isinstance(value, str):
        return value or ""
    array = np.asarray(value, dtype=float)
    if array.ndim == 0:
        return f"{float(array):.5g}"
    if array.size <= 4:
        return " ".join(f"{float(a):.4g}" for a in array.ravel()).join("[]")
    return f"{'×'.join(map(str, array.shape))}, norm {np.linalg.norm(array):.4g}"


def traces(function: Callable[..., Any], *inputs: Any, by: int = 1) -> Traces:
    """The three traces of a function at the inputs; the tangents are by input number `by` (all its entries move together)."""
    output, variables = recorded(function, [getattr(x, "value", x) for x in inputs])
    if not 1 <= by <= len(variables):
        raise ValueError(f"by = {by}: the function has inputs 1 to {len(variables)}")
    for variable, name in zip(variables, names_of(function, len(variables)), strict=True):
        variable.name = name
    forwards = tangents({variables[by - 1]: np.ones(variables[by - 1].shape)[()]})
    backwards = adjoints(output, np.ones(output.shape)[()])
    nodes = output.trace.nodes[: output.index + 1]
    depths = depths_of(nodes)
    ordered = sorted(nodes, key=lambda node: (depths[node.index], node.index))
    table = _Formulas({node: f"v{k}" for k, node in enumerate(ordered)})
    lines = [
        Line(
            table.names[node],
            node.rule.sign if node.rule else node.name,
            tuple(table.names[o] for o in node.operands if isinstance(o, Node)),
            depths[node.index],
            table.forward(node),
            node.value,
            table.tangent(node, forwards),
            0.0 if forwards[node.index] is None else forwards[node.index],
            "1" if node is output else table.adjoint(node, backwards),
            0.0 if backwards[node.index] is None else backwards[node.index],
        )
        for node in ordered
    ]
    at = ", ".join(f"{v.name} = {shown(v.value)}" for v in variables)
    return Traces(lines, f"traces at {at}", variables[by - 1].name)


def names_of(function: Callable[..., Any], count: int) -> list[str]:
    """The parameter names of a function of `count` inputs, or x1, x2, ..."""
    try:
        names = [p.name for p in inspect.signature(function).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    except (TypeError, ValueError):
        names = []
    return names[:count] if len(names) >= count else [f"x{k}" for k in range(1, count + 1)]


def depths_of(nodes: Sequence[Node]) -> list[int]:
    """The longest way from an input to each node, in steps."""
    depths: list[int] = []
    for node in nodes:
        depths.append(max((depths[o.index] + 1 for o in node.operands if isinstance(o, Node)), default=0))
    return depths


class _Formulas:
    """The rules applied to the symbols v0, v1, ... instead of their numbers."""

    def __init__(self, names: dict[Node, str]) -> None:
        self.names = names
        self.algebra = Algebra(simplify=False, share=False)
        self.symbols = {node: self.algebra.symbol(name, node.shape) for node, name in names.items()}
        self.readers: dict[Node, list[tuple[Node, Any]]] = {node: [] for node in names}
        for reader in names:
            for pull, operand in zip(reader.rule.pull if reader.rule else (), reader.operands, strict=False):
                if isinstance(operand, Node):
                    self.readers[operand].append((reader, pull))

    def _marked(self, node: Node, mark: str) -> Expression:
        """The symbol of a node's tangent (a dot over the v) or adjoint (a bar)."""
        name = self.names[node]
        return self.algebra.symbol(name[0] + mark + name[1:], node.shape)

    def _operands(self, node: Node) -> list[Any]:
        return [self.symbols[o] if isinstance(o, Node) else o for o in node.operands]

    def forward(self, node: Node) -> str:
        """The operation, on the names of its operands."""
        return text(node.rule(*self._operands(node))) if node.rule else node.name

    def tangent(self, node: Node, found: Sequence[Any]) -> str:
        """The sum of what the operands' tangents push here."""
        if node.rule is None:
            return ""
        return " + ".join(
            text(push(self._marked(o, "\u0307"), self.symbols[node], *self._operands(node)))
            for push, o in zip(node.rule.push, node.operands, strict=False)
            if push and isinstance(o, Node) and found[o.index] is not None
        )

    def adjoint(self, node: Node, found: Sequence[Any]) -> str:
        """The sum of what the readers' adjoints pull here."""
        return " + ".join(
            text(pull(self._marked(reader, "\u0304"), self.symbols[reader], *self._operands(reader)))
            for reader, pull in self.readers[node]
            if pull and found[reader.index] is not None
        )
