"""Symbolic differentiation: a formula goes in, the formula of its derivative comes out.

    sum rule       (a + b)' = a' + b'              product rule   (a * b)' = a' * b + a * b'
    chain rule     f(a)'    = f'(a) * a'           all three are one line here, because every rule carries its local derivative

A formula written out is a tree, and the product rule copies both factors into it: a derivative can be exponentially longer than its
function. Two remedies exist: simplify (drop `0 * a`, `1 * a`, `a + 0`), and share (write every distinct subexpression once and point to
it). With both, symbolic differentiation does the work of forward mode, which computes numbers at once instead of writing formulas.
"""

from collections.abc import Callable, Mapping
from functools import reduce
from operator import add as plus
from typing import Any

import numpy as np

from cnn425.autodiff import rules
from cnn425.autodiff.arrays import PRODUCTS
from cnn425.autodiff.rules import Operand, Rule


class Algebra:
    """Makes expressions, with or without simplification, with or without sharing."""

    def __init__(self, simplify: bool = True, share: bool = True) -> None:
        self.simplify, self.share = simplify, share
        self.known: dict[Any, Expression] = {}

    def symbol(self, name: str, shape: tuple[int, ...] = ()) -> "Expression":
        """A letter that stands for a number or an array."""
        return Expression(self, None, (), name, shape)

    def apply(self, rule: Rule, operands: tuple[Any, ...]) -> Any:
        """The formula of one operation: simplified to one of its operands or to a number, or known already, or new."""
        if self.simplify and (short := simplified(rule, operands)) is not None:
            return short
        if not self.share:
            return Expression(self, rule, operands)
        key = (rule, *(operand if isinstance(operand, float | int) else id(operand) for operand in operands))
        return self.known.setdefault(key, Expression(self, rule, operands))


class Expression(Operand):
    """A formula: a symbol, or a rule applied to expressions and numbers."""

    __slots__ = ("algebra", "name", "operands", "rule", "shape")

    def __init__(self, algebra: Algebra, rule: Rule | None, operands: tuple[Any, ...], name: str = "", shape: tuple[int, ...] = ()) -> None:
        self.algebra, self.rule, self.operands, self.name, self.shape = algebra, rule, operands, name, shape

    def record(self, rule: Rule, operands: tuple[Any, ...]) -> Any:
        """The formula of a rule applied to operands of which this is one."""
        return self.algebra.apply(rule, operands)

    def __bool__(self) -> bool:
        raise TypeError("a formula has no value to branch on: symbolic differentiation sees expressions, not programs")

    def _unordered(self, other: Any) -> bool:
        return bool(self)

    __lt__ = __le__ = __gt__ = __ge__ = _unordered

    def __repr__(self) -> str:
        return text(self)


def simplified(rule: Rule, operands: tuple[Any, ...]) -> Any:
    """The simpler form of an operation with 0 or 1, or of a double negation; None if there is none."""
    a, b = (*operands, None)[:2]
    identities = {
        rules.add: [(_is(a, 0), b), (_is(b, 0), a), (_negated(b), lambda: a - b.operands[0])],
        rules.subtract: [(_is(b, 0), a), (a is b, 0.0), (_is(a, 0), lambda: -b), (_negated(b), lambda: a + b.operands[0])],
        rules.multiply: [(_is(a, 0) or _is(b, 0), 0.0), (_is(a, 1), b), (_is(b, 1), a)],
        rules.divide: [(_is(a, 0), 0.0), (_is(b, 1), a)],
        rules.power: [(_is(b, 0), 1.0), (_is(b, 1), a)],
        rules.negate: [(_negated(a), lambda: a.operands[0])],
    }
    for holds, short in identities.get(rule, []):
        if holds:
            return short() if callable(short) else short
    return None


def _is(operand: Any, number: float) -> bool:
    return isinstance(operand, float | int) and operand == number


def _negated(operand: Any) -> bool:
    return isinstance(operand, Expression) and operand.rule is rules.negate


def in_order(expression: Any) -> list["Expression"]:
    """Every distinct expression inside, operands first; without recursion."""
    found: dict[Expression, None] = {}
    waiting = [expression]
    while waiting:
        top = waiting[-1]
        missing = [o for o in getattr(top, "operands", ()) if isinstance(o, Expression) and o not in found]
        if missing:
            waiting.extend(missing)
        else:
            waiting.pop()
            if isinstance(top, Expression):
                found[top] = None
    return list(found)


def derivative(expression: Any, symbol: Expression) -> Any:
    """The formula of the derivative by a symbol: the sum over the operands of local derivative times the operand's derivative.

    Without simplification, numbers and other symbols are differentiated too, which leaves terms `0 * ...`.
    """
    found: dict[Any, Any] = {symbol: 1.0}
    for e in in_order(expression):
        terms = []
        for push, o in zip(e.rule.push if e.rule else (), e.operands, strict=False):
            tangent = found.get(o) if isinstance(o, Expression) else None
            if tangent is None and not e.algebra.simplify and e.rule is not rules.power:
                tangent = 0.0
            if push and tangent is not None:
                terms.append(push(tangent, e, *e.operands))
        if terms:
            found[e] = reduce(plus, terms)
    return found.get(expression, 0.0)


def evaluate(expression: Any, values: Mapping[Expression, Any]) -> Any:
    """The value of a formula; every distinct subexpression is computed once."""
    found: dict[Any, Any] = dict(values)
    for e in in_order(expression):
        if e.rule is not None:
            found[e] = e.rule.compute([found[o] if isinstance(o, Expression) else o for o in e.operands])
        elif e not in found:
            raise ValueError(f"no value given for {e.name}")
    return found[expression] if isinstance(expression, Expression) else expression


def size(expression: Any, shared: bool) -> int:
    """The number of operations in a formula: written out in full, or with every distinct subexpression counted once."""
    counts: dict[Any, int] = {}
    for e in in_order(expression):
        inside = [o for o in e.operands if isinstance(o, Expression)]
        counts[e] = (e.rule is not None) + (0 if shared else sum(counts[o] for o in inside))
    return sum(counts.values()) if shared else counts.get(expression, 0)


def gradient(function: Callable[..., Any], *inputs: Any, algebra: Algebra | None = None) -> list[Any]:
    """The gradient of a scalar function of scalars: one formula per input, then its value."""
    if any(np.ndim(x) for x in inputs):
        raise ValueError(f"symbolic differentiation here is for scalars, got inputs of shape {', '.join(str(np.shape(x)) for x in inputs)}")
    algebra = algebra or Algebra()
    symbols = [algebra.symbol(f"x{k}") for k in range(1, len(inputs) + 1)]
    formula = function(*symbols)
    values = {s: np.float64(x) for s, x in zip(symbols, inputs, strict=True)}
    return [evaluate(derivative(formula, s), values) for s in symbols]


PRECEDENCE = {rules.add: 1, rules.subtract: 1, rules.negate: 1.5, rules.multiply: 2, rules.divide: 2, rules.power: 4}


def text(expression: Any) -> str:
    """The formula in Python's notation, with no more parentheses than it needs."""
    written: dict[Any, tuple[str, float]] = {}
    for e in in_order(expression):
        written[e] = _written(e, written)
    return _operand(expression, written)[0]


def _written(e: Expression, written: Mapping[Any, tuple[str, float]]) -> tuple[str, float]:
    """One expression and the precedence of its outermost operation."""
    if e.rule is None:
        return e.name, 9
    parts = [_operand(o, written) for o in e.operands]
    own = PRECEDENCE.get(e.rule, 9)
    if e.rule is rules.negate:
        return f"-{_enclosed(parts[0], own)}", own
    if e.rule in PRECEDENCE:
        left = _enclosed(parts[0], own + (e.rule is rules.power))
        right = _enclosed(parts[1], own + (0.5 if e.rule is rules.add or e.rule is rules.multiply else 0.75))
        return f"{left} {e.rule.sign} {right}", own
    if e.rule is rules.same:
        return parts[0]
    if e.rule is rules.einsum and e.operands[2] in PRODUCTS.values():
        return f"{_enclosed(parts[0], 2)} @ {_enclosed(parts[1], 2.5)}", 2
    if e.rule is rules.take:
        return f"{_enclosed(parts[0], 9)}[{parts[1][0].strip('()')}]", 9
    return f"{e.rule.sign}({', '.join(part for part, _ in parts if part not in ('None', '()'))})", 9


def _operand(operand: Any, written: Mapping[Any, tuple[str, float]]) -> tuple[str, float]:
    if isinstance(operand, Expression):
        return written[operand]
    if isinstance(operand, np.ndarray) and operand.ndim:
        return f"[{'×'.join(map(str, operand.shape))}]", 9
    if isinstance(operand, float | int):
        return f"{operand:g}" if float(f"{operand:g}") == operand else repr(float(operand)), 1.5 if operand < 0 else 9
    return repr(operand), 9


def _enclosed(part: tuple[str, float], least: float) -> str:
    return part[0] if part[1] >= least else f"({part[0]})"
