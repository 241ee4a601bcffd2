"""The rules: for every operation its value and its local derivative, side by side.

A rule is written once, as ordinary Python, and so it works on three kinds of operands:

    numbers        a value comes out                                (NumPy, float64)
    nodes          a value comes out and the step is written down   (graph.py: forward and reverse mode, gradients of gradients)
    expressions    a formula comes out                              (symbolic.py: symbolic differentiation, the formulas in tables)

`y` is the operation's own result, `a` and `b` are its operands. A local derivative acts in two directions: it pushes the tangent
of an operand forward to a tangent of y, or it pulls the adjoint of y back to an adjoint of the operand.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from cnn425.autodiff.arrays import (
    brief,
    contracted,
    cross_entropy_value,
    exchanged,
    first_winner,
    placed,
    product_equation,
    reduced,
    reshaped,
    row_max,
    softmax_value,
    summed,
    without,
)

Function = Callable[..., Any]


class Domain(NamedTuple):
    """Where an operation is defined: a test of the operands, and the words for an error."""

    holds: Function
    needs: str


@dataclass(frozen=True, eq=False, slots=True)
class Rule:
    """One operation. `push[k](tangent, y, *operands)` and `pull[k](adjoint, y, *operands)` belong to operand k; None: derivative zero."""

    sign: str
    value: Function
    push: tuple[Function | None, ...]
    pull: tuple[Function | None, ...]
    domain: Domain | None = None
    elementwise: bool = False

    def __call__(self, *operands: Any) -> Any:
        """The operation applied: recorded by the first operand that keeps records, else just computed."""
        for operand in operands:
            if isinstance(operand, Operand):
                return operand.record(self, operands)
        return self.compute(operands)

    def compute(self, numbers: Sequence[Any]) -> Any:
        """The value of the operation on numbers, or a ValueError that says why there is none."""
        if self.domain and not self.domain.holds(*numbers):
            raise ValueError(f"{self.sign} needs {self.domain.needs}, got {', '.join(map(brief, numbers))}")
        try:
            return self.value(*numbers)
        except ValueError as error:
            raise ValueError(f"{self.sign} does not fit operands of shape {', '.join(str(np.shape(n)) for n in numbers)}") from error


class Operand:
    """What nodes and expressions have in common: Python's operators, each leading to its rule."""

    __slots__ = ()
    __array_ufunc__ = None  # so that NumPy leaves `array + node` to our `__radd__`
    shape: tuple[int, ...]

    def record(self, rule: Rule, operands: tuple[Any, ...]) -> Any:
        """The result of a rule applied to operands of which this is one."""
        raise TypeError(f"{type(self).__name__} does not say how to record {rule.sign}")

    # fmt: off
    def __add__(self, other: Any) -> Any:        return add(self, other)
    def __radd__(self, other: Any) -> Any:       return add(other, self)
    def __sub__(self, other: Any) -> Any:        return subtract(self, other)
    def __rsub__(self, other: Any) -> Any:       return subtract(other, self)
    def __mul__(self, other: Any) -> Any:        return multiply(self, other)
    def __rmul__(self, other: Any) -> Any:       return multiply(other, self)
    def __truediv__(self, other: Any) -> Any:    return divide(self, other)
    def __rtruediv__(self, other: Any) -> Any:   return divide(other, self)
    def __pow__(self, other: Any) -> Any:        return power(self, other)
    def __rpow__(self, other: Any) -> Any:       return power(other, self)
    def __matmul__(self, other: Any) -> Any:     return einsum(self, other, product_equation(self, other))
    def __rmatmul__(self, other: Any) -> Any:    return einsum(other, self, product_equation(other, self))
    def __neg__(self) -> Any:                    return negate(self)
    def __getitem__(self, key: Any) -> Any:      return take(self, key)
    # fmt: on

    def sum(self, axis: int | None = None, keepdims: bool = False) -> Any:
        """The sum of all entries, or along one axis."""
        kept = reduced(self.shape, axis)
        total = sum_to(self, () if axis is None and not keepdims else kept)
        return total if axis is None or keepdims else reshape(total, without(kept, axis))

    def max(self, axis: int | None = None, keepdims: bool = False) -> Any:
        """The largest entry of all, or along one axis; on a tie the gradient goes to the first in reading order."""
        best = largest(self, axis)
        return best if keepdims or not self.shape else reshape(best, () if axis is None else without(best.shape, axis))


def elementwise(sign: str, value: Function, *slopes: Function | None, domain: Domain | None = None) -> Rule:
    """The rule of an operation on each entry alone. Its Jacobian is diagonal: pushing and pulling both multiply by the slope."""

    def through(slope: Function) -> Function:
        return lambda change, y, *operands: times(slope(y, *operands), change)

    both = tuple(slope and through(slope) for slope in slopes)
    return Rule(sign, value, both, both, domain, elementwise=True)


def times(slope: Any, change: Any) -> Any:
    """`slope * change`, where the slopes 1 and -1 of sums and differences cost no multiplication."""
    if isinstance(slope, int) and abs(slope) == 1:
        return change if slope == 1 else -change
    return slope * change


def lowered(a: Any, b: Any) -> Any:
    """`b * a ** (b - 1)`, without the 0 / 0 that a constant exponent 0 would give at a = 0."""
    return b * a ** (b - 1) if isinstance(b, Operand) or np.any(b) else 0.0 * a


def unary(sign: str, value: Function, push: Function | None, pull: Function | None) -> Rule:
    """The rule of an operation on one operand (whatever follows it is constant: a shape, an axis) with a Jacobian that is not diagonal."""
    return Rule(sign, value, (push,), (pull,))


POSITIVE = Domain(lambda a: np.all(a > 0), "a positive number")
NONZERO = Domain(lambda a, b: np.all(b != 0), "a divisor other than 0")
REAL = Domain(lambda a, b: np.all((a > 0) | ((np.floor(b) == b) & (a != 0)) | ((a == 0) & (b >= 0))), "a positive base or a whole exponent")

# fmt: off
#                            sign       value                                    slope by a                      slope by b
add: Rule      = elementwise("+",       lambda a, b: a + b,                      lambda y, a, b: 1,              lambda y, a, b: 1)
subtract: Rule = elementwise("-",       lambda a, b: a - b,                      lambda y, a, b: 1,              lambda y, a, b: -1)
multiply: Rule = elementwise("*",       lambda a, b: a * b,                      lambda y, a, b: b,              lambda y, a, b: a)
divide: Rule   = elementwise("/",       lambda a, b: a / b,                      lambda y, a, b: 1 / b,          lambda y, a, b: -y / b,
                             domain=NONZERO)
power: Rule    = elementwise("**",      lambda a, b: a ** b,                     lambda y, a, b: lowered(a, b),  lambda y, a, b: ln(a) * y,
                             domain=REAL)
maximum: Rule  = elementwise("maximum", np.maximum,                              lambda y, a, b: wins(a, b),     lambda y, a, b: wins(b, a))
wins: Rule     = elementwise("wins",    lambda a, b: np.heaviside(a - b, 0.5),   None,                           None)
negate: Rule   = elementwise("-",       lambda a: -a,                            lambda y, a: -1)
same: Rule     = elementwise("",        lambda a: a,                             lambda y, a: 1)
ln: Rule       = elementwise("ln",      np.log,                                  lambda y, a: 1 / a,             domain=POSITIVE)
exp: Rule      = elementwise("exp",     np.exp,                                  lambda y, a: y)
sin: Rule      = elementwise("sin",     np.sin,                                  lambda y, a: cos(a))
cos: Rule      = elementwise("cos",     np.cos,                                  lambda y, a: -sin(a))
tanh: Rule     = elementwise("tanh",    np.tanh,                                 lambda y, a: 1 - y * y)
sigmoid: Rule  = elementwise("sigmoid", lambda a: np.exp(-np.logaddexp(0, -a)),  lambda y, a: y * (1 - y))
relu: Rule     = elementwise("relu",    lambda a: np.maximum(a, 0.0),            lambda y, a: step(a))
step: Rule     = elementwise("step",    lambda a: np.heaviside(a, 0.0),          None)

#                       sign         value                tangent t of a, pushed forward to y    adjoint g of y, pulled back to a
sum_to: Rule    = unary("sum",       summed,              lambda t, y, a, s: sum_to(t, s),       lambda g, y, a, s: broadcast(g, a.shape))
broadcast: Rule = unary("broadcast", np.broadcast_to,     lambda t, y, a, s: broadcast(t, s),    lambda g, y, a, s: sum_to(g, a.shape))
reshape: Rule   = unary("reshape",   reshaped,            lambda t, y, a, s: reshape(t, s),      lambda g, y, a, s: reshape(g, a.shape))
take: Rule      = unary("take",      lambda a, k: a[k],   lambda t, y, a, k: take(t, k),         lambda g, y, a, k: place(g, k, a.shape))
place: Rule     = unary("place",     placed,              lambda t, y, a, k, s: place(t, k, s),  lambda g, y, a, k, s: take(g, k))
largest: Rule   = unary("max",       row_max,             lambda t, y, a, i: picked(a, t, i),    lambda g, y, a, i: winner(a, i) * g)
winner: Rule    = unary("winner",    first_winner,        None,                                  None)
softmax: Rule   = unary("softmax",   softmax_value,       lambda t, y, a: softmax_slope(y, t),   lambda g, y, a: softmax_slope(y, g))
entropy: Rule   = unary("entropy",   cross_entropy_value, lambda t, y, a, p: sum_to(surprise(a, p) * t, ()),
                                                                                              lambda g, y, a, p: surprise(a, p) * g)
einsum: Rule    = Rule("einsum", contracted,
                       push=(lambda t, y, a, b, e: einsum(t, b, e),               lambda t, y, a, b, e: einsum(a, t, e)),
                       pull=(lambda g, y, a, b, e: einsum(g, b, exchanged(e, 0)), lambda g, y, a, b, e: einsum(a, g, exchanged(e, 1))))
# fmt: on


def cross_entropy(scores: Any, classes: Any) -> Any:
    """The mean cross entropy in nats of scores `(N, O)` for the true classes `(N,)`: one node, softmax included."""
    one_hot = np.eye(scores.shape[-1])[np.asarray(classes)]
    if one_hot.shape != scores.shape:
        raise ValueError(f"cross_entropy: scores {scores.shape} want classes of shape {scores.shape[:-1]}, got {np.shape(classes)}")
    return entropy(scores, one_hot)


def softmax_slope(y: Any, change: Any) -> Any:
    """The Jacobian `diag(y) - y yᵀ` times a change, without building it. It is symmetric, so it pushes as it pulls."""
    kept = (*y.shape[:-1], 1)
    return y * (change - sum_to(y * change, kept))


def picked(a: Any, change: Any, axis: int | None) -> Any:
    """The change of the winning entry."""
    return sum_to(winner(a, axis) * change, reduced(a.shape, axis))


def surprise(a: Any, target: Any) -> Any:
    """Probability minus target, over the number of rows: so simple that softmax and cross entropy are one node."""
    rows = target.size // target.shape[-1]
    return (softmax(a) - target) / rows
