"""Reverse mode: the slide's adjoint trace, one sweep for all inputs, adjoints that are nodes themselves."""

import numpy as np
import pytest

from cnn425.autodiff import Node, Trace, ln, relu, reverse, sin
from cnn425.autodiff import reverse as mode


def test_the_backward_adjoint_trace_of_the_slide():
    trace = Trace()
    v0, v1 = trace.variable(2), trace.variable(5)
    v2 = ln(v0)
    v3 = v0 * v1
    v4 = sin(v1)
    v5 = v2 + v3
    v6 = v5 - v4
    found = reverse.adjoints(v6)
    assert [float(found[v.index]) for v in (v6, v5, v4, v3, v2)] == [1, 1, -1, 1, 1]
    assert float(found[v0.index]) == 5.5
    assert float(found[v1.index]) == pytest.approx(1.716, abs=5e-4)


def test_one_sweep_for_all_inputs(monkeypatch):
    sweeps = []
    real = mode.adjoints
    monkeypatch.setattr(mode, "adjoints", lambda *a, **k: (sweeps.append(1), real(*a, **k))[1])
    value, gradients = reverse.value_and_gradient(lambda W, b: (W * b).sum(), np.ones((2, 3)), np.arange(3.0))
    assert value == 6
    assert gradients[0].tolist() == [[0, 1, 2], [0, 1, 2]]
    assert gradients[1].tolist() == [2, 2, 2]
    assert len(sweeps) == 1


def test_adjoints_of_several_readers_add_up():
    assert reverse.gradient(lambda x: x * x + 3 * x - x / x + x, 5.0)[0] == pytest.approx(14, rel=1e-15)


def test_a_branch_without_a_path_to_the_output_changes_nothing():
    def f(x, unused):
        sin(x * 100) * unused
        return x * x

    assert reverse.gradient(f, 3.0, np.ones(2))[0] == 6
    assert reverse.gradient(f, 3.0, np.ones(2))[1].tolist() == [0, 0]


def test_recorded_adjoints_are_nodes_of_the_same_trace():
    trace = Trace()
    x = trace.variable(2.0)
    y = x**3
    slope = reverse.adjoints(y, record=True)[x.index]
    assert isinstance(slope, Node)
    assert slope.trace is trace
    assert slope.value == 12
    assert reverse.adjoints(slope)[x.index] == 12
    assert not isinstance(reverse.adjoints(y)[x.index], Node)


def test_newtons_method_finds_a_minimum_by_first_and_second_derivative():
    def f(x):
        return x**4 - 3 * x**3 + 2

    x = 6.0
    for _ in range(20):
        first = reverse.gradient(f, x)[0]
        second = reverse.gradient(lambda x: reverse.gradient(f, x)[0], x)[0]
        x = x - first / second
    assert x == pytest.approx(9 / 4, rel=1e-14)


def test_hessian_of_a_vector_function_row_by_row():
    A = np.array([[2.0, 1.0], [0.0, 3.0]])

    def f(x):
        return x @ (A @ x)

    rows = [reverse.gradient(lambda x, i=i: reverse.gradient(f, x)[0][i], np.array([1.0, -1.0]))[0] for i in range(2)]
    assert np.array(rows).tolist() == (A + A.T).tolist()


def test_an_input_recorded_after_the_output_has_gradient_zero():
    x = Trace().variable(1.0)
    y = x * 2
    assert reverse.gradient(lambda a, b: y, x, x) == [0.0, 0.0]


def test_dead_relu_passes_nothing_back():
    assert reverse.gradient(lambda x: relu(x) * 7, -1.0) == [0.0]


def test_errors():
    with pytest.raises(ValueError, match=r"a gradient needs a scalar output, got shape \(2,\); for a cotangent times its Jacobian use vjp"):
        reverse.gradient(lambda x: x * 2, np.ones(2))
    with pytest.raises(ValueError, match=r"cotangent of shape \(3,\) for an output of shape \(2,\)"):
        reverse.vjp(lambda x: x, (np.ones(2),), np.ones(3))
    with pytest.raises(ValueError, match="ln needs a positive number"):
        reverse.gradient(ln, -1.0)
