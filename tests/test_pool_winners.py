"""The fast way to the winners gives what the general way gives, and steps aside where it would not."""

from contextlib import nullcontext

import pytest
import torch
from torch._subclasses import FakeTensorMode

from cnn425.algorithms import pool, pool_winners
from cnn425.algorithms.pool import Bins, Pooling
from cnn425.windows import Geometry


def geometry(kernel, stride, padding=0, dilation=1):
    return Geometry((kernel,) * 2, (stride,) * 2, ((padding, padding),) * 2, (dilation,) * 2)


CASES = {
    "tiles": geometry(2, 2),
    "gaps": geometry(2, 3),
    "overlaps": geometry(4, 1, 2),
    "no cell that all windows have": geometry(2, 14, 1),
    "dilation": geometry(3, 2, 1, 2),
    "a kernel of one pixel": geometry(1, 2),
    "unequal windows": Bins((5, 7)),
    "one window": Bins((1, 1)),
}


def ties(*shape):
    return torch.randint(0, 3, shape, generator=torch.Generator().manual_seed(0)).double()


@pytest.mark.parametrize("layout", ["few planes", "planes laid innermost", "channels_last"])
@pytest.mark.parametrize("block", [700, 2**17])
@pytest.mark.parametrize("which", CASES)
def test_the_fast_way_finds_the_general_ways_winners(which, block, layout, monkeypatch):
    monkeypatch.setattr(pool_winners, "BLOCK", block)  # several blocks, the last one smaller
    pooling = Pooling(CASES[which], layout == "channels_last")
    x = ties(7, 1 if layout == "few planes" else 6, 13, 14)
    x = x.to(memory_format=torch.channels_last) if pooling.channels_last else x
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        found = pool_winners.winners(x.to(dtype), pooling, torch.int64)
        torch.testing.assert_close(found, pool.winners(x.to(dtype), pooling, torch.int64), check_stride=True, rtol=0, atol=0)


@pytest.mark.parametrize("spoiled", ["NaN", "minus infinity", "integers", "fake", "meta"])
def test_it_steps_aside(spoiled):
    pooling, x = Pooling(geometry(2, 2)), ties(1, 1, 4, 4)
    x[0, 0, :2, :2] = {"NaN": torch.nan, "minus infinity": -torch.inf}.get(spoiled, 1)
    if spoiled == "integers":
        x = x.long()
    elif spoiled == "meta":
        x = x.to("meta")
    with FakeTensorMode() if spoiled == "fake" else nullcontext() as fake:
        x = fake.from_tensor(x) if fake else x
        assert pool_winners.winners(x, pooling, torch.int64) is None
        assert pool.winners(x, pooling, torch.int64)[0].shape == (1, 1, 2, 2)


@pytest.mark.parametrize("which", CASES)
@pytest.mark.parametrize("channels_last", [False, True])
def test_routing_by_cells_is_routing(which, channels_last):
    pooling, x = Pooling(CASES[which], channels_last), ties(2, 3, 13, 14)
    y, pixels = pool.winners(x, pooling, torch.int32)
    g = torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(1))
    gx = pool.route(g, pixels, pooling, (13, 14))
    torch.testing.assert_close(pool._route_by_cells(torch.zeros_like(gx), g, pixels, pooling), gx)
