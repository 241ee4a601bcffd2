"""Reverse mode: adjoints flow from one output back to everything it was made of.

    backward adjoint trace        ū = sum over the readers v of u:  v̄ (dv / du),       starting with ȳ = 1

One sweep answers "how does this output depend on every node?": a vector-Jacobian product, at the price of a few evaluations, whatever the
number of inputs. Walking the trace backwards, a node is reached only after all its readers, so its adjoint is complete when its turn comes.
A loss has one output and millions of inputs: this is why reverse mode won. The price is memory: all values wait until the sweep comes back.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from cnn425.autodiff.graph import Node, recorded, value_of


def adjoints(output: Node, seed: Any = 1.0, record: bool = False) -> list[Any]:
    """The adjoint of every node up to `output`, times `seed`, the adjoint of the output; None: no path leads from there to the output.

    With `record` the adjoints are nodes of the same trace and can be differentiated again.
    """
    nodes, found = output.trace.nodes, [None] * (output.index + 1)
    found[output.index] = seed
    for index in range(output.index, -1, -1):
        node, adjoint = nodes[index], found[index]
        if adjoint is None or node.rule is None:
            continue
        y, *operands = (node, *node.operands) if record else map(value_of, (node, *node.operands))
        for pull, operand in zip(node.rule.pull, node.operands, strict=False):
            if pull and isinstance(operand, Node):
                share, before = pull(adjoint, y, *operands), found[operand.index]
                found[operand.index] = share if before is None else before + share
    return found


def vjp(function: Callable[..., Any], inputs: Sequence[Any], cotangent: Any) -> tuple[Any, list[Any]]:
    """The value of `function(*inputs)`, and per input the cotangent times its Jacobian: one sweep. Nodes as inputs give nodes."""
    output, variables = recorded(function, inputs)
    if np.shape(value_of(cotangent)) != output.shape:
        raise ValueError(f"cotangent of shape {np.shape(value_of(cotangent))} for an output of shape {output.shape}")
    record = any(isinstance(x, Node) for x in inputs)
    found = adjoints(output, cotangent, record)
    shares = [found[v.index] if v.index <= output.index else None for v in variables]
    zeros_or = [np.zeros(v.shape)[()] if share is None else share for v, share in zip(variables, shares, strict=True)]
    return (output if record else output.value), zeros_or


def value_and_gradient(function: Callable[..., Any], *inputs: Any) -> tuple[Any, list[Any]]:
    """The value of a scalar function and its gradient by each input: one sweep for all of them."""

    def scalar(*variables: Any) -> Any:
        value = function(*variables)
        if shape := np.shape(value_of(value)):
            raise ValueError(f"a gradient needs a scalar output, got shape {shape}; for a cotangent times its Jacobian use vjp")
        return value

    return vjp(scalar, inputs, 1.0)


def gradient(function: Callable[..., Any], *inputs: Any) -> list[Any]:
    """The gradient of a scalar function by each input: one sweep for all of them."""
    return value_and_gradient(function, *inputs)[1]
