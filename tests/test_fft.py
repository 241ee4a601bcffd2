"""Convolutions by spectra: sizes without large prime factors, what a transform may do, and the errors that the docstring admits."""

import pytest
import torch

from cnn425 import algorithms
from cnn425.algorithms import fft
from cnn425.nn import functional as F
from cnn425.windows import Geometry


def geometry(kernel, stride=(1, 1), padding=((0, 0), (0, 0)), dilation=(1, 1)):
    return Geometry(kernel, stride, padding, dilation)


@pytest.mark.parametrize(("size", "expected"), [(1, 1), (7, 8), (11, 12), (17, 18), (31, 32), (49, 50), (97, 100), (1021, 1024)])
def test_sizes_are_rounded_up_to_products_of_2_3_and_5(size, expected):
    assert fft.fast_size(size) == expected


@pytest.mark.parametrize(
    ("dtype", "windows", "expected"),
    [
        (torch.float32, geometry((31, 31)), True),
        (torch.float64, geometry((3, 3), dilation=(2, 1)), True),
        (torch.float32, geometry((3, 3), stride=(1, 2)), False),
        (torch.bfloat16, geometry((3, 3)), False),
        (torch.complex64, geometry((3, 3)), False),
    ],
)
def test_where_it_applies(dtype, windows, expected):
    assert fft.applies(dtype, windows) is expected


@pytest.mark.parametrize("kernel", [(9, 8), (1, 13), (15, 2)], ids=str)
@pytest.mark.parametrize("groups", [1, 3])
def test_a_product_of_spectra_is_the_convolution(groups, kernel):
    x = torch.randn(2, 6, 15, 13, dtype=torch.float64, requires_grad=True)
    w = torch.randn(9, 6 // groups, *kernel, dtype=torch.float64, requires_grad=True)
    y = torch.nn.functional.conv2d(x, w, padding=(2, 1), groups=groups)
    gy = torch.randn_like(y)
    windows = geometry(kernel, padding=((2, 2), (1, 1)))
    expected = (y.detach(), *torch.autograd.grad(y, (x, w), gy))
    x, w = x.detach(), w.detach()
    mine = (
        fft.output(x, w, windows, groups),
        fft.input_gradient(gy, w, windows, groups, (15, 13)),
        fft.weight_gradient(gy, x, windows, groups),
    )
    for a, b in zip(mine, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_a_dim_pixel_beside_a_bright_one_is_lost_only_on_request():
    """Why it does not run by default (rule 4)."""
    x, w = torch.full((1, 1, 16, 16), 1e-3), torch.ones(1, 1, 3, 3)
    x[0, 0, 0, 0] = 1e6
    default = F.conv2d(x, w)[0, 0, 8, 8]
    with algorithms.use("fft"):
        asked = F.conv2d(x, w)[0, 0, 8, 8]
    assert abs(default - 9e-3) < 1e-8
    assert abs(asked - 9e-3) > 1e-4
