"""How much one node may hold, and why reverse mode never builds a Jacobian.

Granularity: `sigmoid(W x + b)` for n outputs and m inputs, three times the same numbers:

    scalars     one node per product and sum: n (2 m + 1) nodes              every local derivative is a number
    vectors     three nodes: W @ x, + b, sigmoid                             every local derivative is a Jacobian
    complex     one node, `dense`                                            its Jacobian is written by hand

In vector form the chain rule is a product of local Jacobians of size |y| x |x|. Reverse mode needs only the product of an adjoint with
them. For sigmoid, n numbers each side, that is n multiplications instead of an n x n matrix; for W in W @ x it is an outer product of n m
numbers instead of a Jacobian of n x n m.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from cnn425.autodiff.graph import Node, value_of
from cnn425.autodiff.rules import Rule, einsum, sigmoid


def dense_value(W: Any, x: Any, b: Any) -> Any:
    """`sigmoid(W x + b)`: `(o, d), (d,), (o,) -> (o,)`."""
    return sigmoid(W @ x + b)


# With s = y (1 - y), the slope of the sigmoid: dW ↦ s (dW x), dx ↦ s (W dx), db ↦ s db, and back.
# fmt: off
dense: Rule = Rule("dense", dense_value,
                   push=(lambda t, y, W, x, b: y * (1 - y) * (t @ x),
                         lambda t, y, W, x, b: y * (1 - y) * (W @ t),
                         lambda t, y, W, x, b: y * (1 - y) * t),
                   pull=(lambda g, y, W, x, b: einsum(g * y * (1 - y), x, "o,d->od"),
                         lambda g, y, W, x, b: einsum(W, g * y * (1 - y), "od,o->d"),
                         lambda g, y, W, x, b: g * y * (1 - y)))
# fmt: on


def dense_of_scalars(W: Sequence[Sequence[Any]], x: Sequence[Any], b: Sequence[Any]) -> list[Any]:
    """The same layer from scalar nodes, one per elementary operation; rows and vectors are lists of scalars."""
    outputs = []
    for row, bias in zip(W, b, strict=True):
        total = bias
        for weight, pixel in zip(row, x, strict=True):
            total = total + weight * pixel
        outputs.append(sigmoid(total))
    return outputs


def local_jacobian(node: Node, k: int) -> Any:
    """The Jacobian `|y| x |x|` of a node by its operand k, built row by row: each output entry pulled back alone."""
    operand = node.operands[k]
    if node.rule is None or not isinstance(operand, Node) or (pull := node.rule.pull[k]) is None:
        raise ValueError(f"{node!r} has no derivative by its operand {k}")
    y, *operands = map(value_of, (node, *node.operands))
    rows = np.eye(y.size).reshape(y.size, *y.shape)
    return np.stack([np.ravel(pull(row[()], y, *operands)) for row in rows])


def adjoints_by_jacobians(output: Node) -> list[Any]:
    """What `reverse.adjoints` finds, the expensive way: the adjoint of every node, times explicit local Jacobians."""
    nodes = output.trace.nodes
    found: list[Any] = [None] * (output.index + 1)
    found[output.index] = np.ones(output.shape)[()]
    for index in range(output.index, -1, -1):
        node, adjoint = nodes[index], found[index]
        if adjoint is None or node.rule is None:
            continue
        for k, operand in enumerate(node.operands):
            if isinstance(operand, Node) and node.rule.pull[k]:
                share = np.reshape(np.ravel(adjoint) @ local_jacobian(node, k), operand.shape)[()]
                found[operand.index] = share if found[operand.index] is None else found[operand.index] + share
    return found
