"""im2col by pencil: windows as columns, one matrix product, and columns added back to their pixels."""

import pytest
import torch

from cnn425.algorithms import im2col
from cnn425.windows import Geometry

PLAIN = Geometry((2, 2), (1, 1), ((0, 0), (0, 0)), (1, 1))


def test_pencil_the_columns_of_a_3x3_image():
    x = torch.arange(9.0).view(1, 1, 3, 3)
    assert im2col.columns(x, PLAIN, 1).tolist() == [[[0, 1, 3, 4], [1, 2, 4, 5], [3, 4, 6, 7], [4, 5, 7, 8]]]


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_columns_are_torchs_unfolded_image(dimensions):
    d, x = dimensions, torch.randn(2, 4, *(7, 6, 5)[:dimensions])
    geometry = Geometry((2,) * d, (2,) * d, ((1, 1),) * d, (1,) * d)
    mine = im2col.columns(x, geometry, 2)
    assert mine.shape == (2, 2 * 2**d, 2 * torch.Size(geometry.positions(x.shape[2:])).numel())
    if d == 2:
        unfolded = torch.nn.functional.unfold(x, 2, stride=2, padding=1)
        assert torch.equal(mine, unfolded.transpose(0, 1).reshape(2, 8, 2, -1).flatten(2))


def test_the_adjoint_adds_columns_to_the_pixels_they_came_from():
    """With a weight and an upstream gradient of ones, a pixel counts the windows that show it."""
    gx = im2col.input_gradient(torch.ones(1, 1, 2, 2), torch.ones(1, 1, 2, 2), PLAIN, 1, (3, 3))
    assert gx[0, 0].tolist() == [[1, 2, 1], [2, 4, 2], [1, 2, 1]]


@pytest.mark.parametrize(("dtype", "expected"), [(torch.float32, True), (torch.bfloat16, True), (torch.int64, False)])
def test_where_it_applies(dtype, expected):
    assert im2col.applies(dtype, PLAIN) is expected
