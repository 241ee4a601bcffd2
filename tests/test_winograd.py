"""Winograd's matrices come out right in fractions, and their rounding error is what the docstring says."""

import pytest
import torch

from cnn425.algorithms import winograd
from cnn425.windows import Geometry

CPU = torch.device("cpu")


def test_coefficients_of_a_product_of_roots():
    assert winograd._coefficients([1, -1, 2]) == [2, -1, -2, 1]  # (t - 1)(t + 1)(t - 2) = t^3 - 2 t^2 - t + 2


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
    fast = winograd.convolve(x, w, geometry, 1, None, torch.contiguous_format)
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


@pytest.mark.parametrize("backwards", [False, True], ids=["turned kernel", "transposed chain"])
@pytest.mark.parametrize(
    ("point_bytes", "block_bytes"), [(1 << 30, 1 << 30), (36 * 4 * 8 * 3, 1 << 30), (36 * 4 * 8 * 3, 1), (1 << 30, 20000)]
)
@pytest.mark.parametrize("kernel", [(3, 3), (5, 3), (1, 4)])
def test_parts_of_the_outputs_and_of_the_tiles_add_up(backwards, point_bytes, block_bytes, kernel, monkeypatch):
    """Outputs in parts, tiles in blocks that share pixels, and both ways to the input gradient."""
    monkeypatch.setattr(winograd, "POINT_BYTES", point_bytes)
    monkeypatch.setattr(winograd, "BLOCK_BYTES", block_bytes)
    monkeypatch.setattr(winograd, "backwards_pays", lambda *_: backwards)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 4, 13, 10, generator=generator, dtype=torch.float64, requires_grad=True)
    w = torch.randn(8, 4, *kernel, generator=generator, dtype=torch.float64, requires_grad=True)
    y = torch.nn.functional.conv2d(x, w, padding=(1, 0))
    gy = torch.randn(y.shape, generator=generator, dtype=torch.float64)
    geometry, layout = Geometry(kernel, (1, 1), ((1, 1), (0, 0)), (1, 1)), torch.contiguous_format
    expected = (y, *torch.autograd.grad(y, [x, w], gy))
    x, w = x.detach(), w.detach()
    mine = (
        winograd.convolve(x, w, geometry, 1, None, layout),
        winograd.convolve_input_gradient(gy, w, geometry, 1, (13, 10), layout),
        winograd.convolve_weight_gradient(gy, x, geometry, 1, layout),
    )
    for a, b in zip(mine, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("hole", [float("inf"), float("nan")])
def test_gradients_with_an_infinity_are_those_of_im2col(hole):
    x, w, gy = torch.randn(1, 8, 8, 8), torch.randn(8, 8, 3, 3), torch.randn(1, 8, 6, 6)
    geometry, layout = Geometry((3, 3), (1, 1), ((0, 0), (0, 0)), (1, 1)), torch.contiguous_format
    gy[0, 0, 0, 0] = hole
    gx = winograd.convolve_input_gradient(gy, w, geometry, 1, (8, 8), layout)
    assert gx[:, :, 3:].isfinite().all()
    assert not gx[:, :, :3, :3].isfinite().any()
    assert winograd.convolve_weight_gradient(gy, x, geometry, 1, layout)[1:].isfinite().all()
