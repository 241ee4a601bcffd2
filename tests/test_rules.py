"""The rules one by one: value, pushed tangent and pulled adjoint against torch, and the dot-product test <g, J t> = <Jᵀ g, t>."""

import numpy as np
import pytest
import torch

from cnn425.autodiff import Trace, cross_entropy, forward, reverse, rules
from cnn425.autodiff.rules import cos, exp, ln, maximum, relu, sigmoid, sin, softmax, tanh

T = torch.from_numpy


def random(*shape, seed=0):
    return np.random.default_rng(seed).uniform(0.5, 1.5, shape)


def signed(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


CASES = {
    "sum": (lambda a, b: a + b, lambda a, b: a + b, random(2, 3), random(2, 3, seed=1)),
    "difference": (lambda a, b: a - b, lambda a, b: a - b, random(2, 3), random(2, 3, seed=1)),
    "product": (lambda a, b: a * b, lambda a, b: a * b, random(2, 3), random(2, 3, seed=1)),
    "quotient": (lambda a, b: a / b, lambda a, b: a / b, random(2, 3), random(2, 3, seed=1)),
    "power": (lambda a, b: a**b, lambda a, b: a**b, random(2, 3), random(2, 3, seed=1)),
    "constant integer exponent, negative base": (lambda a: a**3, lambda a: a**3, signed(2, 3)),
    "constant on the left": (lambda a: 2 - 3 / a + 2**a + (1 + a) * 4, lambda a: 2 - 3 / a + 2**a + (1 + a) * 4, random(2, 3)),
    "negative": (lambda a: -a, lambda a: -a, random(3)),
    "ln": (ln, torch.log, random(3)),
    "exp": (exp, torch.exp, random(3)),
    "sin": (sin, torch.sin, random(3)),
    "cos": (cos, torch.cos, random(3)),
    "tanh": (tanh, torch.tanh, random(3)),
    "sigmoid": (sigmoid, torch.sigmoid, signed(5)),
    "sigmoid far out, where exp overflows": (sigmoid, torch.sigmoid, np.array([-800.0, -30.0, 30.0, 800.0])),
    "relu, with a zero": (relu, torch.relu, np.array([-1.0, 0.0, 2.0])),
    "maximum, with a tie": (maximum, torch.maximum, np.array([1.0, 2.0, 3.0]), np.array([1.0, 3.0, 2.0])),
    "matrix times matrix": (lambda a, b: a @ b, lambda a, b: a @ b, random(2, 3), random(3, 4)),
    "matrix times vector": (lambda a, b: a @ b, lambda a, b: a @ b, random(2, 3), random(3)),
    "vector times matrix": (lambda a, b: a @ b, lambda a, b: a @ b, random(3), random(3, 4)),
    "vector times vector": (lambda a, b: a @ b, lambda a, b: a @ b, random(3), random(3, seed=1)),
    "constant matrix on the left": (lambda a: random(2, 3) @ a, lambda a: T(random(2, 3)) @ a, random(3)),
    "bias over a batch: broadcast, gradient summed": (lambda a, b: a + b, lambda a, b: a + b, random(4, 3), random(3)),
    "row and column: both broadcast": (lambda a, b: a * b, lambda a, b: a * b, random(4, 1), random(1, 3)),
    "scalar over a matrix": (lambda a, b: a * b, lambda a, b: a * b, random(), random(2, 3)),
    "constant larger than the node": (lambda a: a * random(2, 3), lambda a: a * T(random(2, 3)), random(3)),
    "sum of all": (lambda a: a.sum(), lambda a: a.sum(), random(2, 3)),
    "sum over rows": (lambda a: a.sum(axis=0), lambda a: a.sum(dim=0), random(2, 3)),
    "sum over columns": (lambda a: a.sum(axis=1), lambda a: a.sum(dim=1), random(2, 3)),
    "sum, axis from the end, kept": (lambda a: a.sum(axis=-1, keepdims=True), lambda a: a.sum(dim=-1, keepdim=True), random(2, 3)),
    "sum of an axis of size 1": (lambda a: a.sum(axis=0), lambda a: a.sum(dim=0), random(1, 3)),
    "max of all": (lambda a: a.max(), lambda a: a.max(), random(2, 3)),
    "max over columns": (lambda a: a.max(axis=1), lambda a: a.max(dim=1)[0], random(2, 3)),
    "max over rows, kept": (lambda a: a.max(axis=0, keepdims=True), lambda a: a.max(dim=0, keepdim=True)[0], random(2, 3)),
    "max, on a tie the first": (lambda a: a.max(axis=0), lambda a: a.max(dim=0)[0], np.array([[1.0, 5.0], [3.0, 5.0], [3.0, 5.0]])),
    "one entry": (lambda a: a[1, 2], lambda a: a[1, 2], random(2, 3)),
    "a slice": (lambda a: a[:, 1:], lambda a: a[:, 1:], random(2, 3)),
    "an entry taken twice": (lambda a: a[np.array([0, 0, 1])], lambda a: a[torch.tensor([0, 0, 1])], random(2, 3)),
    "softmax": (softmax, lambda a: a.softmax(-1), signed(2, 3)),
    "softmax of large scores": (softmax, lambda a: a.softmax(-1), 1000 * signed(2, 3)),
    "cross entropy": (
        lambda a: cross_entropy(a, [2, 0]),
        lambda a: torch.nn.functional.cross_entropy(a, torch.tensor([2, 0])),
        signed(2, 3),
    ),
    "cross entropy of one vector": (
        lambda a: cross_entropy(a, 2),
        lambda a: torch.nn.functional.cross_entropy(a, torch.tensor(2)),
        signed(3),
    ),
    "identity": (rules.same, lambda a: a.clone(), random(3)),
}


def same_numbers(ours, theirs):
    np.testing.assert_allclose(np.asarray(ours, dtype=float), theirs.detach().numpy(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", CASES)
def test_rule_equals_torch(name):
    ours, theirs, *inputs = CASES[name]
    tensors = [T(np.array(x)).clone().requires_grad_() for x in inputs]
    expected = theirs(*tensors)
    upstream = signed(*expected.shape, seed=7)
    value, pulled = reverse.vjp(ours, inputs, upstream)
    same_numbers(value, expected)
    for g, e in zip(pulled, torch.autograd.grad(expected, tensors, T(np.array(upstream))), strict=True):
        assert np.shape(g) == tuple(e.shape)
        same_numbers(g, e)

    directions = [signed(*x.shape, seed=k) for k, x in enumerate(inputs)]
    value, pushed = forward.jvp(ours, inputs, directions)
    same_numbers(value, expected)
    left = np.sum(upstream * pushed)
    right = sum(np.sum(g * d) for g, d in zip(pulled, directions, strict=True))
    assert left == pytest.approx(right, rel=1e-12, abs=1e-13), "<g, J t> = <J' g, t>"


# A linear rule has no second derivative that a random number could show; its sine has.
SMOOTH = [n for n in CASES if not n.startswith(("sigmoid far", "relu", "maximum", "softmax of large"))]


@pytest.mark.parametrize("name", SMOOTH)
def test_second_derivative_of_a_rule_equals_torch(name):
    ours, theirs, *inputs = CASES[name]

    def slope_along(*x):
        gradients = reverse.gradient(lambda *x: sin(ours(*x)).sum(), *x)
        return sum(((g * g).sum() if hasattr(g, "sum") else g * g for g in gradients), 0.0)

    tensors = [T(np.array(x)).clone().requires_grad_() for x in inputs]
    first = torch.autograd.grad(theirs(*tensors).sin().sum(), tensors, create_graph=True)
    expected = torch.autograd.grad(sum((g * g).sum() for g in first), tensors)
    for g, e in zip(reverse.gradient(slope_along, *inputs), expected, strict=True):
        same_numbers(g, e)


# ---- the slide


def test_softmax_and_loss_of_the_slide():
    scores = np.array([-2.85, 0.86, 0.28])
    assert softmax(scores) == pytest.approx([0.016, 0.631, 0.353], abs=1e-3)
    assert cross_entropy(scores, 2) == pytest.approx(1.04, abs=5e-3)
    gradient = reverse.gradient(lambda s: cross_entropy(s, 2), scores)[0]
    assert gradient == pytest.approx(softmax(scores) - [0, 0, 1], abs=1e-15), "what the network says minus what is true"


# ---- edges


def test_zero_to_the_power_zero_has_slope_zero():
    assert reverse.gradient(lambda x: x**0, 0.0) == [0.0]
    second = reverse.gradient(lambda x: reverse.gradient(lambda x: x**1, x)[0], 0.0)
    third = reverse.gradient(lambda x: reverse.gradient(lambda x: reverse.gradient(lambda x: x**2, x)[0], x)[0], 0.0)
    assert second == third == [0.0]


def test_an_integer_constant_is_not_taken_for_a_sign():
    assert reverse.gradient(lambda x: x * 2 + 3 * x, 1.0) == [5.0]


ERRORS = {
    "ln of a negative number": (lambda x: ln(-x), "ln needs a positive number, got -2"),
    "ln of zero": (lambda x: ln(x - x), "ln needs a positive number, got 0"),
    "ln of an array with a negative number": (
        lambda x: ln(x - np.array([1.0, 3.0])),
        r"ln needs a positive number, got an array of shape \(2,\)",
    ),
    "division by zero": (lambda x: 1 / (x - x), "/ needs a divisor other than 0, got 1, 0"),
    "root of a negative number": (lambda x: (-x) ** 0.5, r"\*\* needs a positive base or a whole exponent, got -2, 0.5"),
    "zero to a negative power": (lambda x: (x - x) ** -1, r"\*\* needs a positive base"),
    "adding shapes that do not broadcast": (lambda x: x * np.ones(2) + np.ones(3), r"\+ does not fit operands of shape \(2,\), \(3,\)"),
    "inner sizes of a product": (lambda x: (x * np.ones((2, 3))) @ np.ones(2), r"@ wants .* got shapes \(2, 3\) and \(2,\)"),
    "product of a scalar": (lambda x: x @ np.ones(2), r"@ wants vectors or matrices .* \(\) and \(2,\)"),
    "an axis that does not exist": (lambda x: (x * np.ones(2)).sum(axis=1), r"axis 1 does not exist in shape \(2,\)"),
    "softmax of a scalar": (softmax, r"softmax does not fit operands of shape \(\)"),
    "a class per row": (lambda x: cross_entropy(x * np.ones((2, 3)), [0]), r"scores \(2, 3\) want classes of shape \(2,\), got \(1,\)"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_error(name):
    function, words = ERRORS[name]
    with pytest.raises(ValueError, match=words):
        function(Trace().variable(2.0))


def test_numbers_get_the_same_errors_as_nodes():
    with pytest.raises(ValueError, match="ln needs a positive number, got -2"):
        ln(-2.0)


def test_an_operand_that_cannot_record_says_so():
    with pytest.raises(TypeError, match="does not say how to record sin"):
        sin(rules.Operand())
