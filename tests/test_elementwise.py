"""Formulas in blocks give what they give in one piece: the last, smaller block, every layout, and gradients in another layout."""

import pytest
import torch

from cnn425.algorithms import elementwise
from cnn425.nn import functional as F

LAYOUTS = {
    "last block smaller": lambda x: x,
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "neither layout": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "gaps between the numbers": lambda x: torch.stack((x, x), -1)[..., 0],
}
LAYERS = {
    "relu": (F.relu, torch.relu),
    "sigmoid": (F.sigmoid, torch.sigmoid),
    "softmax": (lambda x: F.softmax(x, 1), lambda x: torch.softmax(x, 1)),
    "softmax, last": (lambda x: F.softmax(x, -1), lambda x: torch.softmax(x, -1)),
    "softmax, first": (lambda x: F.softmax(x, 0), lambda x: torch.softmax(x, 0)),
    "cross_entropy": (
        lambda x: F.cross_entropy(x, torch.arange(3, 3 + x.shape[0] * 7 * 10).view(-1, 7, 10) % 5, ignore_index=4),
        lambda x: torch.nn.functional.cross_entropy(x, torch.arange(3, 3 + x.shape[0] * 7 * 10).view(-1, 7, 10) % 5, ignore_index=4),
    ),
}


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(elementwise, "BYTES", 1 << 10)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("gradient", LAYOUTS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("layer", LAYERS)
def test_blocks_give_torchs_values_gradients_and_layout(layer, layout, gradient):
    ours, theirs = LAYERS[layer]
    x = LAYOUTS[layout](torch.randn(11, 5, 7, 10)).requires_grad_()
    y, expected = ours(x), theirs(x)
    gy = torch.randn_like(y)
    gy = LAYOUTS[gradient](gy) if gy.ndim == 4 else gy
    torch.testing.assert_close(y, expected)
    assert y.stride() == expected.stride()
    torch.testing.assert_close(*(torch.autograd.grad(out, x, gy)[0] for out in (y, expected)))


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("layer", LAYERS)
def test_blocks_are_not_written_where_a_transform_follows(layer):
    """`out=` has no derivative and no batch: second derivatives, torch.func and the older vmap take the formula in one piece."""
    ours, theirs = LAYERS[layer]
    x = torch.randn(11, 5, 7, 10, dtype=torch.float64, requires_grad=True)
    results = []
    for layer_of in (ours, theirs):
        y = layer_of(x)
        gy = torch.linspace(-1, 1, 3 * y.numel(), dtype=y.dtype).view(3, *y.shape)
        (batched,) = torch.autograd.grad(y, x, gy, is_grads_batched=True, retain_graph=True)
        (first,) = torch.autograd.grad(y, x, gy[0].cos(), create_graph=True)
        second = torch.autograd.grad(first.square().sum(), x, allow_unused=True)[0]
        single = torch.func.vmap(torch.func.grad(lambda x, f=layer_of: f(x[None]).cos().sum()))(x) if layer != "cross_entropy" else None
        results.append((batched, first.detach(), second, single))
    for mine, expected in zip(*results, strict=True):
        assert (mine is None) == (expected is None) or layer == "relu"
        if mine is not None and expected is not None:
            torch.testing.assert_close(mine, expected)


@pytest.mark.usefixtures("small_blocks")
def test_infinite_gradients_do_not_pass_a_closed_gate_in_any_block():
    x = torch.randn(999, requires_grad=True)
    (g,) = torch.autograd.grad(F.relu(x), x, torch.full_like(x, float("inf")))
    assert torch.equal(g, torch.where(x > 0, float("inf"), 0))


def test_mean_of_every_problem_of_a_batch_divides_by_its_own_count():
    x, t = torch.randn(3, 4, 5), torch.tensor([[0, 1, 2, 3], [0, -100, -100, 1], [-100, 4, 4, 4]])
    mine = torch.func.vmap(torch.func.grad(F.cross_entropy))(x, t)
    for i in range(3):
        leaf = x[i].clone().requires_grad_()
        torch.testing.assert_close(mine[i], torch.autograd.grad(torch.nn.functional.cross_entropy(leaf, t[i]), leaf)[0])
    torch.testing.assert_close(
        torch.func.vmap(F.cross_entropy)(x, t), torch.stack([torch.nn.functional.cross_entropy(*pair) for pair in zip(x, t, strict=True)])
    )
