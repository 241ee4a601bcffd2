"""Adaptive pools: by pencil, against torch, against finite differences, under transforms, and where they refuse."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as TF
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.func import jacfwd, jacrev, vmap

from cnn425.layers import adaptive

SIZES = {
    "m divides n": ((6, 8), (3, 2)),
    "windows of unequal length share pixels": ((7, 10), (3, 4)),
    "lengths repeat": ((10, 9), (4, 6)),
    "more windows than pixels": ((3, 4), (5, 7)),
    "one window": ((5, 4), 1),
    "one window in one dimension": ((5, 4), (1, 3)),
    "None keeps the size": ((5, 4), (None, 2)),
    "as many as pixels": ((5, 4), (5, 4)),
    "no window": ((5, 4), (0, 2)),
    "signal": ((10,), 4),
    "signal, one window": ((10,), (1,)),
    "volume": ((5, 4, 6), (2, 3, 4)),
    "volume, one window": ((5, 4, 6), 1),
}


def pair(kind, size):
    name = f"adaptive_{kind}_pool{len(size)}d"
    return getattr(adaptive, name), getattr(TF, name)


def image(size, batch=(2, 3)):
    return torch.randint(-3, 4, (*batch, *size), generator=torch.Generator().manual_seed(sum(size))).double()


def layouts(x):
    yield x
    yield x[0]
    if x.ndim > 3:
        yield x.to(memory_format=torch.channels_last if x.ndim == 4 else torch.channels_last_3d)


def same(ours, theirs, x):
    torch.testing.assert_close(ours, theirs, check_stride=True)
    upstream = torch.randn(theirs.shape, generator=torch.Generator().manual_seed(1)).to(theirs)
    mine, his = (torch.autograd.grad(y, x, upstream)[0] for y in (ours, theirs))
    torch.testing.assert_close(mine, his, check_stride=True)


def test_pencil():
    x = torch.tensor([[1.0, 5, 5, 2, 8]], requires_grad=True)
    assert adaptive.adaptive_max_pool1d(x, 2).tolist() == [[5, 8]]  # pixels 0 1 2 and 2 3 4
    assert adaptive.adaptive_max_pool1d(x, 2, return_indices=True)[1].tolist() == [[1, 4]]
    y = adaptive.adaptive_avg_pool1d(x, 2)
    torch.testing.assert_close(y, torch.tensor([[11 / 3, 5.0]]))
    y.backward(torch.tensor([[3.0, 30.0]]))
    assert x.grad.tolist() == [[1, 1, 11, 10, 10]]


@pytest.mark.parametrize("which", SIZES)
def test_values_indices_and_gradients_are_torchs(which):
    size, output = SIZES[which]
    for x in layouts(image(size)):
        x = x.detach().requires_grad_()
        for kind in ("avg", "max"):
            ours, theirs = pair(kind, size)
            if which == "no window":  # torch has no gradient for it
                assert ours(x, output).shape == theirs(x, output).shape
            else:
                same(ours(x, output), theirs(x, output), x)
        for mine, his in zip(ours(x, output, return_indices=True), theirs(x, output, return_indices=True), strict=True):
            torch.testing.assert_close(mine, his, check_stride=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_low_precision(dtype):
    x = torch.randn(2, 3, 7, 10, generator=torch.Generator().manual_seed(0)).to(dtype)
    for output in [(3, 4), 1]:
        torch.testing.assert_close(adaptive.adaptive_avg_pool2d(x, output), TF.adaptive_avg_pool2d(x, output))
        assert torch.equal(adaptive.adaptive_max_pool2d(x, output), TF.adaptive_max_pool2d(x, output))


def test_the_mean_of_a_complex_image():
    x = torch.complex(image((3, 4)), image((3, 4)).flip(0))
    torch.testing.assert_close(adaptive.adaptive_avg_pool2d(x, 1), TF.adaptive_avg_pool2d(x, 1))


@pytest.mark.parametrize("output", [(2, 3), 1])
@pytest.mark.parametrize("kind", ["max", "avg"])
def test_derivatives_and_transforms(kind, output):
    ours, _ = pair(kind, (1, 1))
    x = (torch.randperm(40, generator=torch.Generator().manual_seed(0)).double() / 7).view(1, 2, 4, 5).requires_grad_()

    def f(x):
        return ours(x, output)

    assert gradcheck(f, x, check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True)
    assert gradgradcheck(f, x, check_fwd_over_rev=True)
    x = x.detach()
    torch.testing.assert_close(jacrev(f)(x), jacfwd(f)(x))
    torch.testing.assert_close(vmap(f, in_dims=1, out_dims=1)(x), f(x))
    assert f(x.to("meta")).shape == f(x).shape
    torch._dynamo.reset()
    mine = torch.compile(f, fullgraph=True, backend="aot_eager")(x)
    torch.testing.assert_close(mine, f(x), **({"rtol": 0, "atol": 0} if kind == "max" else {}))  # traced sums take another order


MODULES = [(f"Adaptive{kind}Pool{d}d", output) for kind in ("Max", "Avg") for d in (1, 2, 3) for output in (3, (2,) * d)]


@pytest.mark.parametrize(("name", "output"), [*MODULES, ("AdaptiveAvgPool2d", (None, 2))])
def test_modules_are_torchs(name, output):
    ours, theirs = getattr(adaptive, name)(output), getattr(nn, name)(output)
    assert repr(ours) == repr(theirs)
    x = image((6,) * int(name[-2]))
    for module in (ours, copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        torch.testing.assert_close(module(x), theirs(x))


REFUSALS = {
    "too few sizes": (lambda F: F.adaptive_avg_pool2d(torch.ones(1, 1, 4, 4), (2,)), RuntimeError, "output_size must be 2"),
    "more sizes than dimensions": (
        lambda F: F.adaptive_max_pool2d(torch.ones(1, 1, 4, 4), (2, 2, 2, 2)),
        ValueError,
        "should be at least 5",
    ),
    "a float": (lambda F: F.adaptive_avg_pool3d(torch.ones(1, 1, 4, 4, 4), 2.5), TypeError, r"no len\(\)"),
    "a float among ints": (lambda F: F.adaptive_avg_pool2d(torch.ones(1, 1, 4, 4), (2, 2.5)), TypeError, "output_size"),
    "two sizes for a signal": (lambda F: F.adaptive_max_pool1d(torch.ones(1, 1, 4), (2, 2)), RuntimeError, "should contain one int"),
    "negative": (lambda F: F.adaptive_avg_pool2d(torch.ones(1, 1, 4, 4), -1), RuntimeError, "greater than or equal to 0"),
    "an image as a signal": (lambda F: F.adaptive_avg_pool1d(torch.ones(1, 1, 4, 4), 2), RuntimeError, "2 to 3 dimensions"),
    "no pixels": (lambda F: F.adaptive_max_pool2d(torch.ones(1, 1, 0, 4), 2), RuntimeError, "dimension 2 being empty"),
    "integers": (lambda F: F.adaptive_avg_pool2d(torch.ones(1, 1, 4, 4).long(), 2), NotImplementedError, "not implemented for 'Long'"),
    "no tensor": (lambda F: F.adaptive_max_pool2d([1], 2), AttributeError, "has no attribute 'size'"),
}


@pytest.mark.parametrize("which", REFUSALS)
def test_refusals_are_torchs(which):
    call, error, words = REFUSALS[which]
    with pytest.raises(error):
        call(TF)
    with pytest.raises(error, match=words):
        call(adaptive)


@pytest.mark.parametrize("output", [1, (2, 3)])
def test_a_compiled_average_learns_from_images_of_any_size(output):
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: adaptive.adaptive_avg_pool2d(x, output), fullgraph=True, backend="aot_eager")
    for height in (9, 10, 12):
        x = image((height, 7)).requires_grad_()
        mine, eager = (
            torch.autograd.grad(f(x).square().sum(), x)[0] for f in (compiled, lambda x: adaptive.adaptive_avg_pool2d(x, output))
        )
        torch.testing.assert_close(mine, eager)


@pytest.mark.parametrize("name", ["adaptive_avg_pool2d", "adaptive_max_pool2d"])
def test_an_output_that_no_memory_holds_is_refused_before_its_windows_are_listed(name):
    with pytest.raises(RuntimeError, match="Storage size calculation overflowed"):
        getattr(adaptive, name)(torch.ones(1, 1, 4, 4), 2**40)
