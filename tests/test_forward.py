"""Forward mode: the slide's derivative trace, directions, and one sweep per input."""

import numpy as np
import pytest

from cnn425.autodiff import Trace, exp, forward, ln, sin
from cnn425.autodiff import forward as mode


def test_the_forward_derivative_trace_of_the_slide():
    """v0..v6 with respect to x1, in the order of the slide: 1, 0, 0.5, 5, 0, 5.5, 5.5."""
    trace = Trace()
    v0, v1 = trace.variable(2), trace.variable(5)
    v2 = ln(v0)
    v3 = v0 * v1
    v4 = sin(v1)
    v5 = v2 + v3
    v6 = v5 - v4
    found = forward.tangents({v0: 1.0})
    assert [found[v.index] or 0.0 for v in (v0, v1, v2, v3, v4, v5, v6)] == [1, 0, 0.5, 5, 0, 5.5, 5.5]


def test_a_direction_mixes_the_columns_of_the_jacobian():
    value, tangent = forward.jvp(
        lambda x, y: x * y, (np.array([1.0, 2.0]), np.array([3.0, 4.0])), (np.array([1.0, 0.0]), np.array([0.0, 10.0]))
    )
    assert value.tolist() == [3, 8]
    assert tangent.tolist() == [3, 20]


def test_one_sweep_per_number_in_the_input(monkeypatch):
    sweeps = []
    real = mode.tangents
    monkeypatch.setattr(mode, "tangents", lambda *a, **k: (sweeps.append(1), real(*a, **k))[1])
    forward.gradient(lambda W, b: (W + b).sum(), np.ones((2, 3)), np.ones(3))
    assert len(sweeps) == 9


def test_no_path_gives_zero_of_the_right_shape():
    assert forward.jvp(lambda x, y: y * np.ones(2), (1.0, 2.0), (1.0, 0.0))[1].tolist() == [0, 0]
    gradient = forward.gradient(lambda x, y: y, np.ones((2, 2)), 1.0)
    assert gradient[0].tolist() == [[0, 0], [0, 0]]
    assert gradient[1] == 1


def test_second_derivative_forward_over_forward():
    def slope(x):
        return forward.jvp(lambda x: exp(x * x), (x,), (1.0,))[1]

    assert forward.jvp(slope, (0.5,), (1.0,))[1] == pytest.approx(3 * np.exp(0.25), rel=1e-14)


def test_nodes_recorded_after_the_sweep_started_are_not_swept():
    trace = Trace()
    x = trace.variable(2.0)
    y = x * x
    before = len(trace.nodes)
    found = forward.tangents({x: 1.0}, record=True)
    assert len(found) == before
    assert found[y.index].value == 4


def test_errors():
    with pytest.raises(ValueError, match=r"needs a scalar output, got shape \(2,\)"):
        forward.gradient(lambda x: x, np.ones(2))
    with pytest.raises(ValueError, match=r"direction of shape \(3,\) for an input of shape \(2,\)"):
        forward.jvp(lambda x: x, (np.ones(2),), (np.ones(3),))
