"""Forward mode: tangents are carried beside the values, from the inputs to the outputs.

    forward derivative trace      v̇ = sum over the operands u of v:  (dv / du) u̇

One sweep answers "how does everything change if the inputs move in this direction?": a Jacobian-vector product, at the price of about
one evaluation, whatever the number of outputs. A gradient by m inputs takes m sweeps.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from cnn425.autodiff.graph import Node, recorded, value_of
from cnn425.autodiff.rules import place


def tangents(seeds: Mapping[Node, Any], record: bool = False) -> list[Any]:
    """The tangent of every node of the trace, given those of some nodes; None: no path leads there.

    With `record` the tangents are nodes themselves and can be differentiated again.
    """
    trace = next(iter(seeds)).trace
    found: list[Any] = [None] * len(trace.nodes)
    for index, node in enumerate(trace.nodes[:]):
        if node in seeds:
            found[index] = seeds[node]
        elif node.rule is not None:
            y, *operands = (node, *node.operands) if record else map(value_of, (node, *node.operands))
            for push, operand in zip(node.rule.push, node.operands, strict=False):
                if push and isinstance(operand, Node) and (tangent := found[operand.index]) is not None:
                    share = push(tangent, y, *operands)
                    found[index] = share if found[index] is None else found[index] + share
    return found


def jvp(function: Callable[..., Any], inputs: Sequence[Any], directions: Sequence[Any]) -> tuple[Any, Any]:
    """The value of `function(*inputs)` and its Jacobian times the directions: one sweep. Nodes as inputs give nodes."""
    output, variables = recorded(function, inputs)
    for variable, direction in zip(variables, directions, strict=True):
        if np.shape(value_of(direction)) != variable.shape:
            raise ValueError(f"direction of shape {np.shape(value_of(direction))} for an input of shape {variable.shape}")
    record = any(isinstance(x, Node) for x in inputs)
    tangent = tangents(dict(zip(variables, directions, strict=True)), record)[output.index]
    return (output if record else output.value), (np.zeros(output.shape)[()] if tangent is None else tangent)


def gradient(function: Callable[..., Any], *inputs: Any) -> list[Any]:
    """The gradient of a scalar function by each input: one sweep for every single number in the inputs."""
    output, variables = recorded(function, inputs)
    if output.shape != ():
        raise ValueError(f"a gradient needs a scalar output, got shape {output.shape}; for its Jacobian times a direction use jvp")
    record = any(isinstance(x, Node) for x in inputs)
    found = []
    for variable in variables:
        total: Any = np.zeros(variable.shape)[()]
        for position in np.ndindex(variable.shape):
            tangent = tangents({variable: place(1.0, position, variable.shape)}, record)[output.index]
            if tangent is not None:
                total = total + place(tangent, position, variable.shape)
        found.append(total)
    return found
