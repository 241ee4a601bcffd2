"""Winograd's matrices come out right in fractions, and their rounding error is what the docstring says."""

import pytest
import torch

from cnn425 import algorithms
from cnn425.algorithms import winograd
from cnn425.nn import functional as F
from cnn425.windows import Geometry

CPU = torch.device("cpu")


def test_coefficients_of_a_product_of_roots():
    assert winograd.coefficients([1, -1, 2]) == [2, -1, -2, 1]  # (t - 1)(t + 1)(t - 2) = t^3 - 2 t^2 - t + 2


def test_two_outputs_of_three_weights_by_pencil():
    A, G, B = winograd.matrices(3, 3, torch.float64, CPU)
    d, g = torch.tensor([1.0, 2, 3, 4]).double(), torch.tensor([1.0, 10, 100]).double()
    assert torch.allclose(A @ ((G @ g) * (B @ d)), torch.tensor([321.0, 432]).double())


@pytest.mark.parametrize("r", [2, 3, 4, 5])
def test_a_tile_is_the_correlation_it_replaces(r):
    A, G, B = winograd.matrices(r, 2, torch.float64, CPU)
    generator = torch.Generator().manual_seed(r)
    d, g = (torch.randn(n, generator=generator, dtype=torch.float64) for n in (6, r))
    expected = torch.stack([d[i : i + r] @ g for i in range(7 - r)])
    torch.testing.assert_close(A @ ((G @ g) * (B @ d)), expected, rtol=1e-12, atol=1e-12)


def test_kernel_of_one_cell_is_left_alone():
    assert all(torch.equal(m, torch.ones(1, 1)) for m in winograd.matrices(1, 2, torch.float32, CPU))


def test_rounding_error_is_below_ten_times_that_of_the_definition():
    generator = torch.Generator().manual_seed(0)
    x, w = torch.randn(1, 64, 24, 24, generator=generator), torch.randn(64, 64, 3, 3, generator=generator)
    geometry = Geometry((3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1))
    exact = torch.nn.functional.conv2d(x.double(), w.double(), padding=1)
    plain = torch.nn.functional.conv2d(x, w, padding=1)
    fast = winograd.output(x, w, geometry, 1)
    assert (fast - exact).pow(2).mean().sqrt() < 12 * (plain - exact).pow(2).mean().sqrt()
    assert (fast - exact).abs().max() < 1e-5 * exact.abs().max()


@pytest.mark.parametrize(
    ("dtype", "kernel", "stride", "dilation", "expected"),
    [
        (torch.float32, (3, 3), (1, 1), (1, 1), True),
        (torch.float32, (5, 1), (1, 1), (1, 1), True),
        (torch.float32, (6, 1), (1, 1), (1, 1), False),
        (torch.float32, (3, 3), (2, 1), (1, 1), False),
        (torch.float32, (3, 3), (1, 1), (1, 2), False),
        (torch.bfloat16, (3, 3), (1, 1), (1, 1), False),
        (torch.float32, (4, 3, 3), (1, 1, 1), (1, 1, 1), False),
    ],
)
def test_where_it_applies(dtype, kernel, stride, dilation, expected):
    assert winograd.applies(dtype, Geometry(kernel, stride, ((0, 0),) * len(kernel), dilation)) is expected


@pytest.mark.parametrize("size", [(13, 10), (6, 5), (8, 12)], ids=str)
@pytest.mark.parametrize("kernel", [(3, 3), (5, 3), (1, 4)], ids=str)
@pytest.mark.parametrize("groups", [1, 4])
def test_tiles_side_by_side_are_the_convolution(groups, kernel, size):
    """Tiles that fit, tiles that hang over the edge, an image smaller than a tile."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 4, *size, generator=generator, dtype=torch.float64, requires_grad=True)
    w = torch.randn(8, 4 // groups, *kernel, generator=generator, dtype=torch.float64, requires_grad=True)
    y = torch.nn.functional.conv2d(x, w, padding=(1, 0), groups=groups)
    gy = torch.randn(y.shape, generator=generator, dtype=torch.float64)
    geometry = Geometry(kernel, (1, 1), ((1, 1), (0, 0)), (1, 1))
    expected = (y, *torch.autograd.grad(y, [x, w], gy))
    x, w = x.detach(), w.detach()
    mine = (
        winograd.output(x, w, geometry, groups),
        winograd.input_gradient(gy, w, geometry, groups, size),
        winograd.weight_gradient(gy, x, geometry, groups),
    )
    for a, b in zip(mine, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_it_runs_only_on_request_and_where_it_applies():
    """Its rounding is that of its largest pixel, so bits tell where it ran."""
    x, w = torch.randn(2, 8, 12, 12), torch.randn(8, 8, 3, 3)
    for named, applies in (({}, True), ({"stride": 2}, False), ({"dilation": 2}, False)):
        default = F.conv2d(x, w, **named)
        with algorithms.use("winograd"):
            assert torch.equal(F.conv2d(x, w, **named), default) != applies
        assert torch.equal(F.conv2d(x, w, **named), default)
