"""Gathered products: convolutions of sizes around those of a tile and of a panel, which nobody would choose by hand."""

import pytest
import torch

from cnn425.nn import functional as F

TORCH = torch.nn.functional


def three_maps(library, x, w, **named):
    x, w = x.clone().requires_grad_(), w.clone().requires_grad_()
    y = library.conv2d(x, w, **named)
    gy = torch.linspace(-1, 1, y.numel(), dtype=x.dtype).view(y.shape)
    return y.detach(), *torch.autograd.grad(y, (x, w), gy)


def agree(x, w, **named):
    exact = three_maps(TORCH, x.double(), w.double(), **named)
    for mine, expected in zip(three_maps(F, x, w, **named), exact, strict=True):
        assert (mine - expected).abs().max() <= (1e-5 if x.dtype == torch.float32 else 1e-13) * expected.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("outputs", [5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 130])
def test_outputs_that_fill_registers_and_panels_or_do_not(outputs, dtype):
    agree(torch.randn(2, 7, 19, 21, dtype=dtype), torch.randn(outputs, 7, 3, 3, dtype=dtype))


@pytest.mark.parametrize("width", range(40, 60))
def test_positions_that_fill_tiles_and_chunks_or_do_not(width):
    agree(torch.randn(1, 8, 5, width), torch.randn(24, 8, 3, 3))


@pytest.mark.parametrize("inputs", [1, 2, 3, 4, 5, 11, 12, 13, 48])
def test_channels_of_a_window_that_fill_tiles_of_the_weight_gradient_or_do_not(inputs):
    agree(torch.randn(3, inputs, 16, 15), torch.randn(20, inputs, 3, 2))


@pytest.mark.parametrize("groups", [2, 3, 5, 8, 16])
@pytest.mark.parametrize("outputs", [1, 3, 16, 20])
def test_groups_that_share_a_panel_or_fill_several(groups, outputs):
    agree(torch.randn(2, 3 * groups, 12, 11), torch.randn(outputs * groups, 3, 3, 3), groups=groups)


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("outputs", [2, 3, 15, 16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_depthwise_convolutions_of_several_outputs_per_input(dtype, outputs, last):
    """Computed one output of each input after the other where inputs fill a vector register, and together where outputs do."""
    order = torch.channels_last if last else torch.contiguous_format
    for inputs in (7, 16, 21):
        x, w = torch.randn(3, inputs, 14, 13, dtype=dtype), torch.randn(outputs * inputs, 1, 3, 2, dtype=dtype)
        x, b = x.contiguous(memory_format=order), torch.randn(outputs * inputs, dtype=dtype)
        agree(x, w, groups=inputs, stride=(2, 1))
        torch.testing.assert_close(F.conv2d(x, w, b, groups=inputs), F.conv2d(x, w, groups=inputs) + b.view(-1, 1, 1))


def test_groups_with_more_weights_than_pixels():
    """Their gradients are summed up once, not once for each part of the images: sixteen times the weight would be written and read."""
    agree(torch.randn(4, 64, 9, 9), torch.randn(64, 16, 7, 7), groups=4, stride=3, padding=3)


@pytest.mark.parametrize("stride", [2, 3, (1, 4), (5, 2)], ids=str)
@pytest.mark.parametrize("kernel", [(1, 1), (2, 3), (5, 4)], ids=str)
@pytest.mark.parametrize("padding", [0, 1])
def test_every_phase_of_a_stride(padding, kernel, stride):
    agree(torch.randn(2, 6, 21, 22), torch.randn(18, 6, *kernel), stride=stride, padding=min(padding, *(k // 2 for k in kernel)))


def test_more_positions_than_are_summed_up_at_a_time():
    agree(torch.randn(3, 5, 65, 47), torch.randn(9, 5, 3, 3))
    agree(torch.randn(40, 3, 37, 35), torch.randn(9, 3, 3, 3), padding=1)


@pytest.mark.parametrize("d", [1, 2])
def test_windows_that_show_nothing_but_padding(d):
    x = torch.ones(128, 16, *[1] * d, requires_grad=True)
    w, b = torch.ones(16, 16, *[1] * d, requires_grad=True), torch.arange(16.0, requires_grad=True)
    y = getattr(F, f"conv{d}d")(x, w, b, stride=2, padding=1)
    assert torch.equal(y, b.view(16, *[1] * d).expand_as(y))
    gx, gw, gb = torch.autograd.grad(y.sum(), (x, w, b))
    assert torch.equal(gb, torch.full((16,), 128.0 * 2**d))
    assert not gx.any()
    assert not gw.any()
