"""Depthwise convolutions: every channel is the convolution of its own image with its own kernel."""

import pytest
import torch

from cnn425.nn import functional as F

TORCH = torch.nn.functional


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("channels", [8, 9, 40])
@pytest.mark.parametrize(
    "named", [{}, {"padding": (2, 3)}, {"stride": 2, "padding": 1}, {"dilation": (2, 3), "padding": 4}, {"stride": (3, 1)}], ids=str
)
@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (2, 7), (5, 4)], ids=str)
def test_each_channel_by_itself(kernel, named, channels, last):
    x, w = torch.randn(2, channels, 19, 18, dtype=torch.float64), torch.randn(channels, 1, *kernel, dtype=torch.float64)
    x = (x.to(memory_format=torch.channels_last) if last else x).requires_grad_()
    w = w.requires_grad_()
    y = F.conv2d(x, w, groups=channels, **named)
    each = torch.cat([TORCH.conv2d(x[:, c : c + 1], w[c : c + 1], **named) for c in range(channels)], 1)
    gy = torch.randn_like(y)
    torch.testing.assert_close(y, each)
    for mine, expected in zip(torch.autograd.grad(y, (x, w), gy), torch.autograd.grad(each, (x, w), gy), strict=True):
        torch.testing.assert_close(mine, expected)


def test_a_channel_knows_nothing_of_its_neighbours():
    x, w = torch.randn(2, 16, 20, 20), torch.randn(16, 1, 3, 3)
    spoiled = x.clone()
    spoiled[:, 5] = torch.nan
    before, after = F.conv2d(x, w, groups=16), F.conv2d(spoiled, w, groups=16)
    others = [c for c in range(16) if c != 5]
    assert torch.equal(before[:, others], after[:, others])
    assert after[:, 5].isnan().all()


def test_one_channel_through_several_images_at_a_time():
    """Images that are copied come in blocks; the sums of a weight go through all of them."""
    x, w = torch.randn(70, 8, 61, 63), torch.randn(8, 1, 3, 3, requires_grad=True)
    mine, theirs = F.conv2d(x, w, groups=8), TORCH.conv2d(x, w, groups=8)
    torch.testing.assert_close(mine, theirs)
    gy = torch.randn_like(mine)
    (gw,) = torch.autograd.grad(mine, w, gy)
    (expected,) = torch.autograd.grad(TORCH.conv2d(x.double(), w.double(), groups=8), w, gy.double())
    assert (gw - expected).abs().max() <= 1e-5 * expected.abs().max()
