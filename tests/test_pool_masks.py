"""Routing by masks gives what the general way gives, and steps aside where it would not."""

import pytest
import torch
from torch._subclasses import FakeTensorMode

from cnn425.algorithms import pool, pool_masks
from cnn425.algorithms.pool import Bins, Pooling
from cnn425.windows import Geometry


def geometry(kernel, stride, padding=0, dilation=1):
    return Geometry((kernel,) * 2, (stride,) * 2, ((padding, padding),) * 2, (dilation,) * 2)


CASES = {
    "tiles": (geometry(2, 2), 1),
    "gaps": (geometry(2, 3), 1),
    "overlaps, all cells at once": (geometry(2, 1), 1),
    "overlaps, side after side": (geometry(4, 1, 2), 2),
    "dilation": (geometry(3, 2, 1, 2), 1),
    "unequal windows": (Bins((5, 7)), 2),
    "one window": (Bins((1, 1)), 2),
}


def ties(*shape):
    return torch.randint(0, 3, shape, generator=torch.Generator().manual_seed(0)).double()


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("which", CASES)
def test_masks_find_the_general_ways_winners(which, channels_last, monkeypatch):
    windows, stages = CASES[which]
    monkeypatch.setattr(pool, "BLOCK", 700)  # several blocks, the last one smaller
    pooling, x = Pooling(windows, channels_last), ties(7, 3, 12, 12)
    x = x.to(memory_format=torch.channels_last) if channels_last else x
    y, chosen = pool.winners(x, pooling)
    g = torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(1))
    assert len(pool_masks.stages(windows, (12, 12))) == stages
    torch.testing.assert_close(pool_masks.route(g, x, y, pooling), pool.route(g, chosen, pooling, (12, 12)), check_stride=True)
    assert torch.equal(pool_masks.numbers(x, y, pooling), pool.numbers(chosen, pooling, (12, 12)))
    assert torch.equal(pool.largest(x, pooling), y)


@pytest.mark.parametrize("spoiled", ["NaN in the image", "infinite gradient", "fake"])
def test_masks_step_aside(spoiled):
    pooling, x = Pooling(geometry(2, 2)), ties(1, 1, 4, 4)
    if spoiled == "NaN in the image":
        x[0, 0, 0, 0] = torch.nan
    y = pool.largest(x, pooling)
    g = torch.full_like(y, torch.inf if spoiled == "infinite gradient" else 1)
    if spoiled == "fake":
        with FakeTensorMode() as mode:
            x, y, g = map(mode.from_tensor, (x, y, g))
            assert pool_masks.route(g, x, y, pooling) is None
            assert pool_masks.numbers(x, y, pooling) is None
    else:
        assert pool_masks.route(g, x, y, pooling) is None
