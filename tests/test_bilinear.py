"""Three bilinear maps: each is linear in both operands, the derivatives of each are the other two, and a batch joins a letter they have."""

import itertools

import pytest
import torch
from torch.func import vmap

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
