"""Differences: their two error terms, and a gradient check that can fail."""

import numpy as np
import pytest
import torch

from cnn425.autodiff import exp, ln, numerical, relu, reverse, sin


def slide(x1, x2):
    return ln(x1) + x1 * x2 - sin(x2)


def test_a_parabola_has_exact_central_and_shifted_forward_differences():
    assert numerical.gradient(lambda x: x * x, 3.0, h=0.5)[0] == 6
    assert numerical.gradient(lambda x: x * x, 3.0, h=0.5, central=False)[0] == 6.5


@pytest.mark.parametrize(("central", "order"), [(False, 1), (True, 2)])
def test_the_error_falls_with_h_to_the_order_of_the_formula(central, order):
    errors = [abs(numerical.gradient(exp, 1.0, h=h, central=central)[0] - np.e) for h in (1e-2, 1e-3)]
    assert np.log10(errors[0] / errors[1]) == pytest.approx(order, abs=0.05)


def test_a_tiny_h_is_worse_than_a_small_one():
    errors = {h: abs(numerical.gradient(exp, 1.0, h=h)[0] - np.e) for h in (1e-6, 1e-13)}
    assert errors[1e-6] < 1e-8 < 1e-5 < errors[1e-13]


def test_evaluations_are_counted_per_number_in_the_input():
    calls = []
    numerical.gradient(lambda x: (calls.append(1), x.sum())[1], np.ones((2, 3)))
    assert len(calls) == 12
    calls.clear()
    numerical.gradient(lambda x: (calls.append(1), x.sum())[1], np.ones((2, 3)), central=False)
    assert len(calls) in (7, 13)


def test_arrays_and_torch_tensors_keep_their_shape_and_are_left_alone():
    x = np.arange(6.0).reshape(2, 3)
    found = numerical.gradient(lambda x: (x * x).sum(), x)[0]
    np.testing.assert_allclose(found, 2 * x, atol=1e-8)
    assert x.tolist() == [[0, 1, 2], [3, 4, 5]]
    t = torch.arange(6.0, dtype=torch.float64).reshape(2, 3).t().requires_grad_()
    (found,) = numerical.gradient(lambda t: (t.detach() ** 2).sum(), t)
    torch.testing.assert_close(found, 2 * t.detach(), atol=1e-8, rtol=0)


def test_check_agrees_with_a_right_gradient_and_reports():
    found = numerical.check(slide, reverse.gradient(slide, 2, 5), 2, 5)
    assert found
    assert found.error < 1e-8
    assert found.compared == 2
    assert str(found).startswith("gradients agree: relative error")


@pytest.mark.parametrize(
    "wrong",
    {
        "sign": lambda g: -g,
        "a factor": lambda g: 1.01 * g,
        "one entry": lambda g: g + np.eye(1, g.size, 3).reshape(g.shape) * 1e-3,
        "transposed": lambda g: g.T.copy().reshape(g.shape),
        "nan": lambda g: g * np.nan,
    }.items(),
    ids=lambda pair: pair[0],
)
def test_check_catches(wrong):
    W = np.random.default_rng(0).standard_normal((3, 4))

    def f(W):
        return sin(W * np.arange(12.0).reshape(3, 4)).sum()

    right = reverse.gradient(f, W)[0]
    assert numerical.check(f, [right], W)
    found = numerical.check(f, [wrong[1](right)], W)
    assert not found
    assert "DISAGREE" in str(found)


def test_check_looks_along_random_directions_where_there_are_many_numbers():
    x = np.random.default_rng(0).standard_normal(5000)
    calls = []

    def f(x):
        calls.append(1)
        return (x * x * x).sum()

    right = 3 * x * x
    assert numerical.check(f, [right], x)
    assert len(calls) == 60
    wrong = right.copy()
    wrong[1234] += 1
    found = numerical.check(f, [wrong], x)
    assert not found
    assert "random direction" in found.where


def test_check_sets_kinks_aside_and_does_not_pass_on_kinks_alone():
    def f(x):
        return relu(x).sum()

    found = numerical.check(f, [np.array([0.0, 0.0, 1.0])], np.array([-1.0, 0.0, 1.0]))
    assert found
    assert (found.compared, found.kinks) == (2, 1)
    assert not numerical.check(f, [np.array([0.0])], np.array([0.0]))


def test_check_of_a_torch_function():
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    y = torch.tanh(x).pow(2).sum()
    y.backward()
    assert numerical.check(lambda x: torch.tanh(x).pow(2).sum(), [x.grad], x)
    assert not numerical.check(lambda x: torch.tanh(x).pow(2).sum(), [x.grad * 1.001], x)


def test_errors():
    with pytest.raises(ValueError, match=r"wants float64 inputs, got torch.float32; convert with .double\(\)"):
        numerical.gradient(torch.sum, torch.ones(3))
    with pytest.raises(ValueError, match="wants float64 inputs, got float32"):
        numerical.gradient(np.sum, np.ones(3, dtype=np.float32))
    with pytest.raises(ValueError, match=r"gradient 1 has shape \(2,\), its input has shape \(3,\)"):
        numerical.check(np.sum, [np.ones(2)], np.ones(3))
