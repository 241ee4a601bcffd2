"""Where the winners are: the smallest numbers that say so, and routing in blocks and by cells."""

import pytest
import torch

from cnn425.algorithms import pool, pool_places
from cnn425.algorithms.pool import Bins, Pooling
from cnn425.windows import Geometry


def geometry(kernel, stride, padding=0, dilation=1):
    return Geometry((kernel,) * 2, (stride,) * 2, ((padding, padding),) * 2, (dilation,) * 2)


CASES = {
    "tiles": geometry(2, 2),
    "overlaps": geometry(4, 1, 2),
    "a window wholly in the padding": geometry(2, 14, 1, 3),
    "unequal windows": Bins((5, 7)),
    "one window": Bins((1, 1)),
}


def winners(which, channels_last):
    pooling = Pooling(CASES[which], channels_last)
    x = torch.randint(0, 3, (3, 4, 13, 14), generator=torch.Generator().manual_seed(0)).double()
    return pooling, *pool.winners(x, pooling)


@pytest.mark.parametrize("which", CASES)
@pytest.mark.parametrize("channels_last", [False, True])
def test_every_way_of_routing_is_routing(which, channels_last, monkeypatch):
    pooling, y, pixels = winners(which, channels_last)
    g = torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(1))
    gx = pool_places.by_cells(torch.zeros(3, 4, 13, 14, dtype=y.dtype), g, pixels, pooling)
    where = pool_places.offsets_of(pixels, pooling.geometry, (13, 14), pool_places.offset_dtype(pooling.geometry, (13, 14)))
    for addresses in (10, 100, 2**17):
        monkeypatch.setattr(pool_places, "ADDRESSES", addresses)
        for places in (pixels, where):
            torch.testing.assert_close(pool_places.route(g, places, pooling, (13, 14)), gx)


@pytest.mark.parametrize("which", CASES)
def test_offsets_and_pixel_numbers_say_the_same(which):
    pooling, _, pixels = winners(which, False)
    where = pool_places.offsets_of(pixels, pooling.geometry, (13, 14), pool_places.offset_dtype(pooling.geometry, (13, 14)))
    assert torch.equal(pool_places.pixels_at(where, pooling.geometry, (13, 14)), pixels)


def test_most_windows_take_one_byte():
    assert pool_places.offset_dtype(geometry(3, 2, 1), (112, 112)) == torch.uint8
    assert pool_places.offset_dtype(geometry(3, 2, 1), (224, 224)) == torch.int16
    assert pool_places.offset_dtype(geometry(3, 2, 1, 2), (32, 32)) == torch.int16  # -1 for nobody
    assert pool_places.offset_dtype(Bins((1, 1)), (224, 224)) == torch.int32
