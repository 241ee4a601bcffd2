"""Activations and losses as loops: exact where torch is, right at the ends of the exponential, the same for any shape and layout."""

import pytest
import torch

from cnn425 import algorithms
from cnn425.algorithms import elementwise
from cnn425.nn import functional as F

TORCH = torch.nn.functional
ENDS = torch.tensor(
    [0.0, -0.0, 1e-38, 1e-45, 87.3, 88.7, 88.8, -87.3, -88.7, -103.9, -104.1, 1e30, -1e30, torch.inf, -torch.inf, torch.nan]
)


def test_sigmoid_at_the_ends():
    mine, theirs = F.sigmoid(ENDS), torch.sigmoid(ENDS)
    torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-44, equal_nan=True)
    assert ((mine >= 0) & (mine <= 1) | mine.isnan()).all()


def test_softmax_at_the_ends():
    x = torch.tensor([0.0, -87.0, -95.0, -103.0, -104.5, -1e4])
    for scores, dim in ((x, 0), (x.view(1, 6, 1).expand(1, 6, 3), 1)):
        torch.testing.assert_close(F.softmax(scores, dim), torch.softmax(scores.double(), dim).float(), rtol=1e-6, atol=3e-45)


def test_sigmoid_everywhere():
    x = torch.linspace(-110, 110, 200_001)
    exact = torch.sigmoid(x.double())
    small = exact.float() < torch.finfo(torch.float32).tiny  # denormal numbers have fewer digits
    assert (F.sigmoid(x) / exact - 1).abs()[~small].max() < 4 * torch.finfo(torch.float32).eps
    assert (F.sigmoid(x) - exact).abs()[small].max() < torch.finfo(torch.float32).tiny


@pytest.mark.parametrize("dim", [0, 1, 2])
def test_softmax_with_infinities_and_nan(dim):
    x = torch.randn(5, 7, 33)
    x[0, 0, 0], x[1, 2, 3], x[2, 3, 4], x[4, 4] = torch.inf, -torch.inf, torch.nan, -torch.inf
    torch.testing.assert_close(F.softmax(x, dim), torch.softmax(x, dim), equal_nan=True)


@pytest.mark.parametrize("classes", [1, 2, 15, 16, 17, 33, 1000])
@pytest.mark.parametrize("behind", [1, 3, 20])
def test_softmax_of_any_number_of_classes(behind, classes):
    x = (torch.randn(4, classes, behind) * 20).requires_grad_()
    gy = torch.randn(4, classes, behind)
    mine, theirs = F.softmax(x, 1), torch.softmax(x, 1)
    torch.testing.assert_close(mine, theirs)
    torch.testing.assert_close(mine.sum(1), torch.ones(4, behind))
    torch.testing.assert_close(torch.autograd.grad(mine, x, gy)[0], torch.autograd.grad(theirs, x, gy)[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("target", [-1, 7, 1000, -99])
@pytest.mark.parametrize("name", [None, "definition"])
def test_a_target_that_is_no_class_is_named(name, target):
    x = torch.randn(3, 7)
    with algorithms.use(name or "im2col"), pytest.raises(IndexError, match=f"Target {target} is out of bounds"):
        F.cross_entropy(x, torch.tensor([0, target, 3]))


def test_an_ignored_target_may_be_any_number_and_has_no_gradient():
    x, target = torch.randn(4, 7, requires_grad=True), torch.tensor([0, 77, 3, 77])
    loss = F.cross_entropy(x, target, ignore_index=77)
    (gx,) = torch.autograd.grad(loss, x)
    (expected,) = torch.autograd.grad(TORCH.cross_entropy(x, target, ignore_index=77), x)
    torch.testing.assert_close(gx, expected)
    assert not gx[[1, 3]].any()


def test_a_closed_gate_stops_infinity_and_an_open_one_lets_nan_pass():
    y = torch.tensor([-1.0, -0.0, 0.0, 1.0, torch.nan, torch.inf])
    for g in (torch.inf, torch.nan, 3.0):
        gradient = torch.full_like(y, g)
        assert torch.equal(elementwise.gate(gradient, y)[:3], torch.zeros(3))
        torch.testing.assert_close(elementwise.gate(gradient, y)[3:], gradient[3:], equal_nan=True)


@pytest.mark.parametrize("layout", [lambda t: t, lambda t: t.to(memory_format=torch.channels_last), lambda t: t.mT, lambda t: t[:, :, ::2]])
def test_any_layout(layout):
    x = layout(torch.randn(2, 3, 8, 6)).detach().requires_grad_()
    gy = torch.randn(2, 3, 8, 6)
    gy = layout(gy)
    for name in ("relu", "sigmoid"):
        mine, theirs = getattr(F, name)(x), getattr(torch, name)(x)
        torch.testing.assert_close(mine, theirs)
        torch.testing.assert_close(torch.autograd.grad(mine, x, gy)[0], torch.autograd.grad(theirs, x, gy)[0])
    mine, theirs = F.softmax(x, 1), torch.softmax(x, 1)
    torch.testing.assert_close(torch.autograd.grad(mine, x, gy)[0], torch.autograd.grad(theirs, x, gy)[0])


@pytest.mark.parametrize("shape", [(0,), (0, 4), (3, 0), (2, 3, 0)], ids=str)
def test_nothing_gives_nothing(shape):
    x = torch.randn(shape, requires_grad=True)
    for function in (F.relu, F.sigmoid, lambda x: F.softmax(x, -1)):
        y = function(x)
        assert y.shape == shape
        assert torch.autograd.grad(y, x, torch.ones_like(y))[0].shape == shape
