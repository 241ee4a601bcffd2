"""Unfold and fold: torch in two dimensions, the view of windows in one and three, one the other's adjoint, derivatives, errors."""

import pytest
import torch
import torch.nn.functional as builtin
from hypothesis import given
from hypothesis import strategies as st

from cnn425 import nn
from cnn425.agreement import compare, transforms
from cnn425.nn import functional as F
from cnn425.windows import Geometry, windows

float64 = {"dtype": torch.float64}
SIZE = (7, 6, 8)


@st.composite
def arguments(draw, dimensions=None):
    """Kernel, dilation, padding and stride, for some dimensions."""
    d = dimensions or draw(st.integers(1, 3))
    return [tuple(draw(st.integers(low, 3 if name == "stride" else 2)) for _ in range(d)) for name, low in NAMES.items()]


NAMES = {"kernel": 1, "dilation": 1, "padding": 0, "stride": 1}


@given(arguments(2))
def test_images_are_torchs(settings):
    x = torch.randn(2, 3, *SIZE[:2], **float64)
    assert compare(F.unfold, builtin.unfold, (x, *settings), strides=True)
    assert compare(F.fold, builtin.fold, (builtin.unfold(x, *settings), SIZE[:2], *settings), strides=True)


@given(arguments())
def test_columns_are_the_windows_and_folding_is_the_adjoint(settings):
    kernel, dilation, padding, stride = settings
    d = len(kernel)
    x = torch.randn(2, 3, *SIZE[:d], **float64)
    y = F.unfold(x, *settings)
    view = windows(x, Geometry(kernel, stride, tuple((p, p) for p in padding), dilation))
    assert torch.equal(y, view.permute(0, 1, *range(2 + d, 2 + 2 * d), *range(2, 2 + d)).reshape(y.shape))
    r = torch.randn_like(y)
    torch.testing.assert_close((y * r).sum(), (x * F.fold(r, SIZE[:d], *settings)).sum())


@given(arguments())
def test_folding_what_was_unfolded_counts_the_windows_of_each_pixel(settings):
    size = SIZE[: len(settings[0])]
    x = torch.randn(2, 3, *size, **float64)
    again, times = (F.fold(F.unfold(t, *settings), size, *settings) for t in (x, torch.ones_like(x)))
    torch.testing.assert_close((again / times)[times > 0], x[times > 0])


def test_a_convolution_is_a_matrix_product_between_them():
    x, w = torch.randn(2, 3, 6, 7, **float64), torch.randn(4, 3, 3, 2, **float64)
    torch.testing.assert_close((w.flatten(1) @ F.unfold(x, (3, 2))).unflatten(2, (4, 6)), F.conv2d(x, w))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.complex64, torch.bool])
def test_every_dtype(dtype):
    x = torch.randn(2, 3, 5, 6).to(dtype)
    assert compare(F.unfold, builtin.unfold, (x, 3))
    assert compare(F.fold, builtin.fold, (builtin.unfold(x, 3), (5, 6), 3))


@pytest.mark.parametrize("d", [1, 2, 3])
def test_every_order_of_derivative_exists(d):
    size, kernel = (4,) * d, (2,) * d
    x = torch.randn(1, 2, *size, **float64, requires_grad=True)
    for function in (lambda x: F.unfold(x, kernel, stride=2).sin(), lambda x: F.fold(F.unfold(x, kernel), size, kernel).sin()):
        assert torch.autograd.gradcheck(function, x, check_forward_ad=True, check_batched_grad=True, fast_mode=True)
        assert torch.autograd.gradgradcheck(function, x, fast_mode=True)


@pytest.mark.parametrize("name", ["unfold", "fold"])
def test_transforms_and_the_compiler(name):
    settings = (3, 1, 1, 2) if name == "unfold" else ((5, 4), 3, 1, 1, 2)
    functions = [getattr(library, name) for library in (F, builtin)]
    ours, theirs = (lambda x, f=f: f(x, *settings) for f in functions)
    x = torch.randn(2, 2, 5, 4, **float64) if name == "unfold" else torch.randn(2, 18, 6, **float64)
    assert not any(transforms(ours, theirs, [x]).values())
    torch._dynamo.reset()
    assert compare(torch.compile(ours, fullgraph=True, backend="aot_eager"), theirs, [x])


X, Y = torch.zeros(1, 2, 5, 5), torch.zeros(1, 18, 9)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ((X, 2.0), TypeError, "'kernel_size' must be an int or a tuple of 2 ints, but got float"),
        ((X, True), TypeError, "'kernel_size'.*bool"),
        (([1], 2), TypeError, "'input' must be a Tensor, but got list"),
        ((X, 0), RuntimeError, "kernel size should be greater than zero"),
        ((X, 2, 0), RuntimeError, "dilation should be greater than zero"),
        ((X, 2, 1, -1), RuntimeError, "padding should be non-negative"),
        ((X, 2, 1, 0, 0), RuntimeError, "stride should be greater than zero"),
        ((X, 2, (1, 1, 1)), RuntimeError, "It is expected dilation equals to 2, but got size 3"),
        ((X, (2, 2, 2, 2)), RuntimeError, "It is expected kernel_size equals to 2, but got size 4"),
        ((X, 6), RuntimeError, r"calculated shape of the array of sliding blocks as \(0, 0\), but its components must be at least one"),
        ((X[:, :0], 2), RuntimeError, "Expected 3D or 4D .batch mode. tensor with possibly 0 batch size and other non-zero dimensions"),
        ((X[0, 0], 2), IndexError, "Expected 3D or 4D"),
        ((X.int(), 2), NotImplementedError, "unfold is not implemented for 'Int'"),
        ((Y, (6, 5), 3), RuntimeError, "the calculated number of sliding blocks 4 . 3 = 12, but got input.size.2.=9"),
        ((Y, (5, 5), 4), RuntimeError, "input's dimension 1 to be divisible by the product of kernel_size"),
        ((Y[None], (5, 5), 3), RuntimeError, "Expected 2D or 3D .batch mode. tensor for input"),
        ((Y.int(), (5, 5), 3), NotImplementedError, "fold is not implemented for 'Int'"),
    ],
    ids=str,
)
def test_refusals_name_the_argument_and_have_torchs_type(given, error, message):
    name = "fold" if given[0] is not X and getattr(given[0], "shape", (0,))[-1] == 9 else "unfold"
    with pytest.raises(error, match=message):
        getattr(F, name)(*given)
    with pytest.raises(error):
        getattr(builtin, name)(*given)


@pytest.mark.parametrize("name", ["Unfold", "Fold"])
def test_modules_are_their_namesakes(name):
    given = (2, 1, 1, 2) if name == "Unfold" else ((5, 5), 3)
    mine, theirs = (getattr(library, name)(*given) for library in (nn, torch.nn))
    assert repr(mine) == repr(theirs)
    assert compare(mine, theirs, [X if name == "Unfold" else Y])
    assert type(nn.convert(theirs)) is type(mine)
    assert type(nn.revert(mine)) is type(theirs)
