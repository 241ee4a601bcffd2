"""Blocks cover every row of every image once; slabs show the same windows as the whole image."""

import pytest
import torch

from cnn425.algorithms.blocks import Slabs, blocks, flip, flipped
from cnn425.windows import Geometry, windows


@pytest.mark.parametrize("budget", [1, 10, 35, 70, 1000])
def test_every_row_once(budget):
    seen = [(n, i) for b in blocks(5, 7, 5, budget) for n in range(b.n, b.n + b.images) for i in range(b.i, b.i + b.rows)]
    assert seen == [(n, i) for n in range(5) for i in range(7)]


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("padding", [((0, 0), (0, 0)), ((2, 1), (0, 3)), ((-1, 2), (1, -2)), ((9, 9), (1, 1))])
@pytest.mark.parametrize("budget", [1, 400, 1 << 20])
def test_slabs_are_the_windows_of_the_image(budget, padding, last):
    x = torch.arange(3 * 2 * 9 * 8.0).view(3, 2, 9, 8)
    geometry = Geometry((3, 2), (2, 1), padding, (1, 2))
    expected = windows(x, geometry)
    parts = list(blocks(3, expected.shape[2], 40, budget))
    slabs = Slabs(x, geometry, parts[0], channels_last=last)
    for part in parts:
        assert torch.equal(slabs.windows(part), expected[part.n : part.n + part.images, :, part.i : part.i + part.rows])


def test_flipped_geometry_has_a_window_per_pixel_of_the_input():
    geometry = Geometry((3, 4), (1, 1), ((2, 0), (5, 1)), (2, 1))
    size = (9, 11)
    positions = geometry.positions(size)
    assert flipped(geometry, size, positions).positions(positions) == size


def test_flip_turns_the_kernel_around_and_exchanges_inputs_and_outputs():
    assert flip(torch.tensor([[[1, 2]], [[3, 4]]]), groups=1).tolist() == [[[2, 1], [4, 3]]]
    assert flip(torch.tensor([[[1, 2]], [[3, 4]]]), groups=2).tolist() == [[[2, 1]], [[4, 3]]]
