"""Tiles: sums of every length, and rows and outputs that fill registers or do not."""

import pytest
import torch

from cnn425.nn import functional as F


@pytest.mark.parametrize("channels", [1, 31, 32, 33, 64, 65, 1100])
def test_whole_numbers_stay_whole_in_sums_of_any_length(channels):
    x, w = torch.randint(-9, 10, (2, channels, 11, 12)).float(), torch.randint(-9, 10, (37, channels, 2, 2)).float()
    assert torch.equal(F.conv2d(x, w).double(), torch.nn.functional.conv2d(x.double(), w.double()))


@pytest.mark.parametrize("images", [1, 5, 16, 17, 33, 64])
def test_images_side_by_side_in_registers(images):
    x, w = torch.randint(-9, 10, (images, 4, 7, 6)).float(), torch.randint(-9, 10, (5, 4, 9, 4, 3, 3)).float()
    expected = torch.einsum("ncijuv,ijocuv->noij", x.unfold(2, 3, 1).unfold(3, 3, 1), w)
    assert torch.equal(F.locally_connected2d(x, w), expected)


def test_long_sums_are_made_of_short_ones():
    """A sum of n equal numbers, one after the other, would lose the last digits of each."""
    x, w = torch.full((1, 4096, 3, 3), 0.1), torch.ones(16, 4096, 1, 1)
    exact = 4096 * torch.tensor(0.1).double()
    assert (F.conv2d(x, w).double() - exact).abs().max() <= 1e-6 * exact
