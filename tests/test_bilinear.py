"""Three bilinear maps: each is linear in both operands, the derivatives of each are the other two, and a batch joins a letter they have."""

import itertools

import pytest
import torch
from torch.func import vmap

from cnn425 import nn
from cnn425.layers.bilinear import input_gradient, output, weight_gradient
from cnn425.windows import Geometry, Sharing

GEOMETRY, SIZE, GROUPS = Geometry((2, 2), (2, 1), ((1, 0), (0, 1)), (1, 1)), (5, 4), 2
POSITIONS = GEOMETRY.positions(SIZE)
double = {"dtype": torch.float64}
KINDS = pytest.mark.parametrize(
    "sharing", [None, Sharing((1, 1)), Sharing((2, 3)), Sharing((1, 1), (2, 1))], ids=["convolution", "local", "blocks", "tiles"]
)


def operands(sharing):
    """An image, a weight, an output gradient."""
    own = sharing.sets(POSITIONS) if sharing else ()
    return torch.randn(2, 4, *SIZE, **double), torch.randn(*own, 6, 2, 2, 2, **double), torch.randn(2, 6, *POSITIONS, **double)


def maps(sharing):
    """The three maps of two operands each."""
    where = GEOMETRY, GROUPS, sharing
    return {
        "output": (lambda x, w: output(x, w, *where, None), (0, 1)),
        "input gradient": (lambda gy, w: input_gradient(gy, w, *where, SIZE), (2, 1)),
        "weight gradient": (lambda gy, x: weight_gradient(gy, x, *where), (2, 0)),
    }


@KINDS
def test_one_trilinear_form(sharing):
    """<output(x, w), gy> = <x, input gradient(gy, w)> = <w, weight gradient(gy, x)>."""
    x, w, gy = operands(sharing)
    form = (output(x, w, GEOMETRY, GROUPS, sharing, None) * gy).sum()
    torch.testing.assert_close((input_gradient(gy, w, GEOMETRY, GROUPS, sharing, SIZE) * x).sum(), form)
    torch.testing.assert_close((weight_gradient(gy, x, GEOMETRY, GROUPS, sharing) * w).sum(), form)


@KINDS
@pytest.mark.parametrize("name", ["output", "input gradient", "weight gradient"])
def test_linear_in_both_operands(name, sharing):
    function, which = maps(sharing)[name]
    a, b = (operands(sharing)[i] for i in which)
    c, d = torch.randn_like(a), torch.randn_like(b)
    torch.testing.assert_close(function(a + 2 * c, b), function(a, b) + 2 * function(c, b))
    torch.testing.assert_close(function(a, b + 2 * d), function(a, b) + 2 * function(a, d))


@KINDS
@pytest.mark.parametrize("name", ["output", "input gradient", "weight gradient"])
def test_every_order_of_derivative_exists(name, sharing):
    function, which = maps(sharing)[name]
    leaves = [operands(sharing)[i].requires_grad_() for i in which]
    assert torch.autograd.gradcheck(function, leaves, check_forward_ad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, leaves, fast_mode=True)


@KINDS
@pytest.mark.parametrize("name", ["output", "input gradient", "weight gradient"])
@pytest.mark.parametrize("dims", [d for d in itertools.product((0, 1, None), repeat=2) if d != (None, None)], ids=str)
def test_a_batch_of_problems_is_each_of_them(dims, name, sharing):
    function, which = maps(sharing)[name]
    tensors = [operands(sharing)[i] for i in which]
    batched = [t if dim is None else torch.randn(3, *t.shape, **double) for t, dim in zip(tensors, dims, strict=True)]
    moved = [t if dim is None else t.movedim(0, dim) for t, dim in zip(batched, dims, strict=True)]
    each = [function(*(t if dim is None else t[k] for t, dim in zip(batched, dims, strict=True))) for k in range(3)]
    torch.testing.assert_close(vmap(function, in_dims=dims)(*moved), torch.stack(each))


REPLACED = {
    "a convolution": lambda: (nn.Conv2d(8, 64, 3), (4, 8, 20, 20)),
    "a transposed convolution": lambda: (nn.ConvTranspose2d(8, 64, 3), (4, 8, 20, 20)),
    "a small convolution": lambda: (nn.Conv2d(1, 1, 3), (1, 1, 6, 6)),
    "a local layer": lambda: (nn.LocallyConnected2d(2, 8, 9, 3), (8, 2, 9, 9)),
    "a local layer of one image": lambda: (nn.LocallyConnected2d(2, 8, 9, 3), (1, 2, 9, 9)),
    "tiles": lambda: (nn.LocallyConnected2d(8, 16, 10, 3, tile=2), (16, 8, 10, 10)),
    "low rank": lambda: (nn.LowRankLocal2d(8, 16, 10, 3, 2), (4, 8, 10, 10)),
    "low rank, many images": lambda: (nn.LowRankLocal2d(8, 16, 10, 3, 4), (32, 8, 10, 10)),
}


@pytest.mark.parametrize("name", REPLACED)
def test_operands_that_were_replaced_since_are_refused(name):
    """Loops would read behind them."""
    layer, size = REPLACED[name]()
    x = torch.randn(size, requires_grad=True)
    y = layer(x)
    layer.weight.data = layer.weight.data[..., :1, :1].clone()
    with pytest.raises(RuntimeError, match=r"tensors saved for the gradient have changed|match the broadcast shape"):
        y.sum().backward()
    layer, size = REPLACED[name]()
    x = torch.randn(size)
    y = layer(x)
    x.data = torch.randn(*size[:2], 3, 3)
    with pytest.raises(RuntimeError, match="tensors saved for the gradient have changed"):
        y.sum().backward()


@pytest.mark.parametrize("name", REPLACED)
def test_hooks_may_move_saved_tensors_and_not_change_their_type(name):
    layer, size = REPLACED[name]()
    x = torch.randn(size, requires_grad=True)
    expected = torch.autograd.grad(layer(x).sin().sum(), [x, *layer.parameters()])
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.clone(), lambda t: t.mT.contiguous().mT if t.ndim > 1 else t):
        found = torch.autograd.grad(layer(x).sin().sum(), [x, *layer.parameters()])
    for mine, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, wanted)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t.double()):
        y = layer(x)
    with pytest.raises(RuntimeError):
        y.sum().backward()
