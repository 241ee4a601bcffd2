"""The array arithmetic behind the rules: what NumPy computes when an operation meets numbers. No derivatives here."""

from typing import Any

import numpy as np

PRODUCTS = {(2, 2): "ij,jk->ik", (2, 1): "ij,j->i", (1, 2): "j,jk->k", (1, 1): "j,j->"}


def brief(value: Any) -> str:
    """A scalar as its digits, anything larger as its shape."""
    return f"{value:.6g}" if np.ndim(value) == 0 else f"an array of shape {np.shape(value)}"


def product_equation(a: Any, b: Any) -> str:
    """The letters of `a @ b` for vectors and matrices."""
    sides = (len(a.shape), len(b.shape))
    if sides not in PRODUCTS or a.shape[-1] != b.shape[0]:
        raise ValueError(f"@ wants vectors or matrices whose inner sizes agree, got shapes {a.shape} and {b.shape}")
    return PRODUCTS[sides]


def exchanged(equation: str, operand: int) -> str:
    """The equation with the output and one operand exchanged, which is its gradient: `ij,jk->ik` becomes `ik,jk->ij` for operand 0."""
    operands, output = equation.split("->")
    inputs = operands.split(",")
    inputs[operand], output = output, inputs[operand]
    return ",".join(inputs) + "->" + output


def contracted(a: Any, b: Any, equation: str) -> Any:
    """The einsum of two operands, by matrix products where possible."""
    return np.einsum(equation, a, b, optimize=True)[()]


def reduced(shape: tuple[int, ...], axis: int | None) -> tuple[int, ...]:
    """The shape with one axis (or all) of size 1."""
    if axis is not None and not -len(shape) <= axis < len(shape):
        raise ValueError(f"axis {axis} does not exist in shape {shape}")
    return tuple(1 if axis is None or i == axis % len(shape) else n for i, n in enumerate(shape))


def without(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    """The shape without one axis."""
    return tuple(n for i, n in enumerate(shape) if i != axis % len(shape))


def summed(a: Any, shape: tuple[int, ...]) -> Any:
    """The sum over whatever broadcasting from `shape` to the shape of `a` repeats: the adjoint of broadcasting."""
    lead = np.ndim(a) - len(shape)
    axes = tuple(range(lead)) + tuple(i + lead for i, n in enumerate(shape) if n == 1)
    return np.reshape(np.sum(a, axis=axes), shape)[()]


def reshaped(a: Any, shape: tuple[int, ...]) -> Any:
    """The same numbers in another shape."""
    return np.reshape(a, shape)[()]


def placed(a: Any, key: Any, shape: tuple[int, ...]) -> Any:
    """Zeros with `a` added at `key`: the adjoint of indexing."""
    zeros = np.zeros(shape)
    np.add.at(zeros, key, a)
    return zeros[()]


def row_max(a: Any, axis: int | None) -> Any:
    """The largest entry along the axis (or of all); the axis stays in the shape, with size 1."""
    return np.max(a, axis=axis, keepdims=True)


def first_winner(a: Any, axis: int | None) -> Any:
    """1 at the first largest entry along the axis, 0 elsewhere."""
    best = np.equal(a, np.max(a, axis=axis, keepdims=True))
    count = np.cumsum(best, axis=axis)
    return (best & (np.reshape(count, np.shape(a)) == 1)).astype(float)


def softmax_value(a: Any) -> Any:
    """The probabilities `exp a / sum exp a` along the last axis."""
    if np.ndim(a) == 0:
        raise ValueError("a single score has nothing to be compared with")
    e = np.exp(a - np.max(a, axis=-1, keepdims=True))
    return e / np.sum(e, axis=-1, keepdims=True)


def cross_entropy_value(a: Any, target: Any) -> Any:
    """The mean of `ln sum exp a - a[class]` over the rows."""
    shifted = a - np.max(a, axis=-1, keepdims=True)
    rows = np.log(np.sum(np.exp(shifted), axis=-1)) - np.sum(target * shifted, axis=-1)
    return np.mean(rows)
