"""Granularity and local Jacobians: the same numbers, however much a node holds."""

import numpy as np
import pytest

from cnn425.autodiff import Trace, forward, jacobians, numerical, relu, reverse, sigmoid, softmax
from cnn425.autodiff.jacobians import adjoints_by_jacobians, dense, dense_of_scalars, local_jacobian

RANDOM = np.random.default_rng(0)
W, X, B = RANDOM.standard_normal((3, 4)), RANDOM.standard_normal(4), RANDOM.standard_normal(3)


def vectors(W, x, b):
    return sigmoid(W @ x + b)


def test_one_complex_node_has_the_gradients_of_elementary_ones():
    upstream = RANDOM.standard_normal(3)
    y, gradients = reverse.vjp(dense, (W, X, B), upstream)
    expected_y, expected = reverse.vjp(vectors, (W, X, B), upstream)
    np.testing.assert_allclose(y, expected_y, rtol=1e-14)
    for g, e in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(g, e, rtol=1e-13)
    directions = [RANDOM.standard_normal(a.shape) for a in (W, X, B)]
    np.testing.assert_allclose(forward.jvp(dense, (W, X, B), directions)[1], forward.jvp(vectors, (W, X, B), directions)[1], rtol=1e-13)


def test_the_complex_node_can_be_differentiated_twice():
    def f(layer):
        def squared_slopes(W, x, b):
            return sum((g * g).sum() for g in reverse.gradient(lambda *a: layer(*a).sum(), W, x, b))

        return reverse.gradient(squared_slopes, W, X, B)

    for g, e in zip(f(dense), f(vectors), strict=True):
        np.testing.assert_allclose(g, e, rtol=1e-12)


def test_scalar_nodes_have_the_same_gradients_and_count_n_times_2m_plus_1():
    trace = Trace()
    w, x, b = ([[trace.variable(v) for v in row] for row in np.atleast_2d(a)] for a in (W, X, B))
    leaves = len(trace.nodes)
    outputs = dense_of_scalars(w, x[0], b[0])
    assert len(trace.nodes) - leaves == 3 * (2 * 4 + 1)
    total = outputs[0] + outputs[1] + outputs[2]
    found = reverse.adjoints(total)
    expected = reverse.gradient(lambda *a: vectors(*a).sum(), W, X, B)
    np.testing.assert_allclose([[found[v.index] for v in row] for row in w], expected[0], rtol=1e-13)
    np.testing.assert_allclose([found[v.index] for v in x[0]], expected[1], rtol=1e-13)


def test_local_jacobians_of_the_lecture():
    trace = Trace()
    w, x = trace.variable(W), trace.variable(X)
    z = w @ x
    s = sigmoid(z)
    assert local_jacobian(z, 1).tolist() == W.tolist(), "the Jacobian of W x by x is W"
    np.testing.assert_allclose(local_jacobian(z, 0), np.kron(np.eye(3), X), rtol=1e-15)
    np.testing.assert_allclose(local_jacobian(s, 0), np.diag(s.value * (1 - s.value)), rtol=1e-15)
    p = softmax(z)
    np.testing.assert_allclose(local_jacobian(p, 0), np.diag(p.value) - np.outer(p.value, p.value), atol=1e-15)


def test_explicit_jacobians_give_the_adjoints_of_the_products_that_never_build_them():
    def f(W, x, b):
        h = relu(W @ x + b)
        return (softmax(h * h + x.max()) * np.arange(3.0)).sum()

    trace = Trace()
    y = f(*(trace.variable(a) for a in (W, X, B)))
    for a, b in zip(adjoints_by_jacobians(y), reverse.adjoints(y), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-15)
    assert numerical.check(f, reverse.gradient(f, W, X, B), W, X, B)


def test_a_constant_operand_has_no_jacobian():
    y = Trace().variable(X) * 2.0
    with pytest.raises(ValueError, match=r"<\* = an array of shape \(4,\)> has no derivative by its operand 1"):
        local_jacobian(y, 1)
    assert jacobians.dense.sign == "dense"
