"""Power-average pools: by pencil, against torch, against finite differences, under transforms, and where they refuse."""

import copy
import pickle
from math import inf, nan

import pytest
import torch
import torch.nn.functional as TF
from oldest import differs_on_the_oldest
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.func import jacfwd, jacrev, vmap

from cnn425.layers import lp_pool

as_later = differs_on_the_oldest("lp pools with p = 0 or infinity")


def pair(d):
    return getattr(lp_pool, f"lp_pool{d}d"), getattr(TF, f"lp_pool{d}d")


def image(d, dtype=torch.float64):
    return torch.randn(2, 3, *(6,) * d, generator=torch.Generator().manual_seed(d)).to(dtype)


def test_pencil():
    x = torch.tensor([[3.0, 4.0, 0.0, 0.0]], requires_grad=True)
    y = lp_pool.lp_pool1d(x, 2, 2)
    torch.testing.assert_close(y, torch.tensor([[5.0, 0.0]]))
    y.backward(torch.tensor([[5.0, 1.0]]))
    torch.testing.assert_close(x.grad, torch.tensor([[3.0, 4.0, 0.0, 0.0]]))  # zero, not infinity, where the sum is zero


@pytest.mark.parametrize("norm", [1, 2, 2.0, 3, 0.5, -1, *(pytest.param(norm, marks=as_later) for norm in (inf, -inf))])
@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_values_and_gradients_are_torchs(dimensions, norm):
    ours, theirs = pair(dimensions)
    x = image(dimensions)
    x = x.abs() if norm == 0.5 else x
    x[0, 0] = 0
    x.requires_grad_()
    for arguments in [(2,), (3, 1), (4, 3, True)]:
        mine, his = ours(x, norm, *arguments), theirs(x, norm, *arguments)
        torch.testing.assert_close(mine, his, check_stride=True, equal_nan=True)
        upstream = torch.randn(his.shape, dtype=his.dtype, generator=torch.Generator().manual_seed(1))
        for a, b in zip(*(torch.autograd.grad(y, x, upstream) for y in (mine, his)), strict=True):
            torch.testing.assert_close(a, b, check_stride=True, equal_nan=True)


@pytest.mark.parametrize("norm", [1, 2, 3, 0.5, -1, *(pytest.param(norm, marks=as_later) for norm in (inf, -inf))])
@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_gradients_of_nan_infinity_and_zeros_are_torchs(dimensions, norm):
    x = torch.tensor([[nan, 1, 2], [inf, -inf, 1], [inf, 1, 2], [-inf, 1, 2], [0, 0, 0], [-1, 1, 0], [1, 2, 3]])
    x = x.view(7, 1, *[1] * (dimensions - 1), 3).requires_grad_()
    kernel = 3 if dimensions == 1 else (*[1] * (dimensions - 1), 3)
    mine, his = (torch.autograd.grad(f(x, norm, kernel).sum(), x)[0] for f in pair(dimensions))
    torch.testing.assert_close(mine, his, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int64])
def test_dtypes(dtype):
    x = (image(2) * 4).to(dtype)
    torch.testing.assert_close(lp_pool.lp_pool2d(x, 2.0, 2), TF.lp_pool2d(x, 2.0, 2))


def test_difference_volumes_take_half_precision():
    x = image(3, torch.bfloat16)
    expected = TF.lp_pool3d(x.float(), 2.0, 2)
    torch.testing.assert_close(lp_pool.lp_pool3d(x, 2.0, 2).float(), expected, rtol=2e-2, atol=1e-2)


def test_channels_last():
    x = image(2).to(memory_format=torch.channels_last)
    torch.testing.assert_close(lp_pool.lp_pool2d(x, 2, 2), TF.lp_pool2d(x, 2, 2), check_stride=True)


@pytest.mark.parametrize("norm", [2, 2.5, inf])
def test_derivatives_and_transforms(norm):
    x = (torch.randperm(32, generator=torch.Generator().manual_seed(0)).double() / 7 + 0.5).view(1, 2, 4, 4).requires_grad_()

    def f(x):
        return lp_pool.lp_pool2d(x, norm, 2)

    assert gradcheck(f, x, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(f, x, check_fwd_over_rev=True)
    x = x.detach()
    torch.testing.assert_close(jacrev(f)(x), jacfwd(f)(x))
    torch.testing.assert_close(vmap(f)(x), f(x))
    assert f(x.to("meta")).shape == f(x).shape
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(f, fullgraph=True, backend="aot_eager")(x), f(x))


@as_later
@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_modules_are_torchs(dimensions):
    x = image(dimensions)
    for arguments in [(2, 3), (1.0, 2, 1), (inf, 2, None, True)]:
        name = f"LPPool{dimensions}d"
        ours, theirs = getattr(lp_pool, name)(*arguments), getattr(nn, name)(*arguments)
        assert repr(ours) == repr(theirs)
        for module in (ours, copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
            torch.testing.assert_close(module(x), theirs(x))


REFUSALS = {
    "p is zero": (lambda F: F.lp_pool2d(image(2), 0, 2), ValueError, "norm_type must be a non-zero value, but got 0"),
    "one-tuple for an image": (lambda F: F.lp_pool2d(image(2), 2.0, (2,)), ValueError, r"expected 2, got 1"),
    "tuple for a signal": (lambda F: F.lp_pool1d(image(1), 2.0, (2,)), TypeError, "kernel_size"),
    "kernel larger than the image": (lambda F: F.lp_pool2d(image(2), 2.0, 8), RuntimeError, "Output size is too small"),
    "stride zero": (lambda F: F.lp_pool3d(image(3), 2.0, 2, 0), RuntimeError, "stride should not be zero"),
    "no tensor": (lambda F: F.lp_pool2d([1], 2.0, 2), AttributeError, "has no attribute 'pow'"),
}


@pytest.mark.parametrize("which", [pytest.param(which, marks=[as_later] * (which == "p is zero")) for which in REFUSALS])
def test_refusals_are_torchs(which):
    call, error, words = REFUSALS[which]
    with pytest.raises(error):
        call(TF)
    with pytest.raises(error, match=words):
        call(lp_pool)


@as_later
def test_the_module_refuses_p_zero_when_it_is_made():
    with pytest.raises(ValueError, match="norm_type must be a non-zero value"):
        lp_pool.LPPool2d(0, 2)


def test_compiles_with_a_kernel_size_that_varies():
    torch._dynamo.reset()
    compiled = torch.compile(lambda x, k: lp_pool.lp_pool2d(x, 2.0, k), fullgraph=True, dynamic=True, backend="aot_eager")
    x = torch.rand(2, 3, 6, 6)
    for k in (2, 3):
        torch.testing.assert_close(compiled(x, k), lp_pool.lp_pool2d(x, 2.0, k))
