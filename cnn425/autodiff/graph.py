"""The computational graph: ordinary Python arithmetic, written down while it is computed.

    trace = Trace()
    x1, x2 = trace.variable(2, "x1"), trace.variable(5, "x2")
    y = ln(x1) + x1 * x2 - sin(x2)          # y.value is 11.652...

Every operation appends one node, so the trace is in topological order by construction: a node comes after all nodes it is made of.
Forward mode walks the list forwards, reverse mode walks it backwards; no recursion, so a graph may be a million nodes deep. A node used
twice is one node with two readers. Numbers and arrays combined with a node are constants: they affect the value but have no derivative.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from cnn425.autodiff.arrays import brief
from cnn425.autodiff.rules import Operand, Rule, broadcast, same


class Trace:
    """The evaluation trace of a computation: all its nodes, in order of their creation."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []

    def variable(self, value: Any, name: str = "") -> "Node":
        """An input: a scalar, vector, matrix or any array, copied as float64."""
        return self.append(None, (), np.array(value, dtype=float)[()], name or f"x{len(self.nodes) + 1}")

    def append(self, rule: Rule | None, operands: tuple[Any, ...], value: Any, name: str = "") -> "Node":
        """The new last node."""
        node = Node(self, len(self.nodes), rule, operands, value, name)
        self.nodes.append(node)
        return node

    def apply(self, rule: Rule, operands: tuple[Any, ...]) -> "Node":
        """The node of one operation; smaller operands are broadcast, by nodes of their own."""
        for operand in operands:
            if isinstance(operand, Node) and operand.trace is not self:
                raise ValueError(f"{rule.sign}: {operand!r} is a node of another trace; use nodes of one trace, or pass its .value")
        value = rule.compute([value_of(operand) for operand in operands])
        if rule.elementwise:
            operands = tuple(broadcast(o, value.shape) if isinstance(o, Node) and o.shape != value.shape else o for o in operands)
        return self.append(rule, operands, value)


class Node(Operand):
    """One line of a trace: the rule, the operands it was applied to (nodes or constants), and the value that came out."""

    __slots__ = ("index", "name", "operands", "rule", "trace", "value")

    def __init__(self, trace: Trace, index: int, rule: Rule | None, operands: tuple[Any, ...], value: Any, name: str = "") -> None:
        self.trace, self.index, self.rule, self.operands, self.value, self.name = trace, index, rule, operands, value, name

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """The shape of the value; () for a scalar."""
        return self.value.shape

    def record(self, rule: Rule, operands: tuple[Any, ...]) -> "Node":
        """The node of a rule applied to operands of which this is one."""
        return self.trace.apply(rule, operands)

    def __repr__(self) -> str:
        return f"<{self.name or (self.rule and self.rule.sign)} = {brief(self.value)}>"

    # A program may branch on values: the trace holds the branch that was taken.
    # fmt: off
    def __lt__(self, other: Any) -> Any:  return self.value < value_of(other)
    def __le__(self, other: Any) -> Any:  return self.value <= value_of(other)
    def __gt__(self, other: Any) -> Any:  return self.value > value_of(other)
    def __ge__(self, other: Any) -> Any:  return self.value >= value_of(other)
    # fmt: on


def value_of(operand: Any) -> Any:
    """The value of a node; a constant is its own value."""
    return operand.value if isinstance(operand, Node) else operand


def recorded(function: Callable[..., Any], inputs: Sequence[Any]) -> tuple[Node, list[Node]]:
    """The output of `function(*inputs)` as a node, and its variables.

    Inputs that are nodes stay in their trace, so that a derivative can be differentiated. Each gets a new node, which stands for this
    argument alone and not for other uses of the same node.
    """
    outer = next((x.trace for x in inputs if isinstance(x, Node)), None)
    trace = outer or Trace()
    variables = [same(x) if isinstance(x, Node) else trace.variable(x) for x in inputs]
    output = function(*variables)
    if not isinstance(output, Node):
        output = trace.append(None, (), np.array(output, dtype=float)[()], "constant")
    return output, variables
