"""The products give the sums that the general way gives, and step aside where they would not."""

import pytest
import torch

import cnn425.nn.functional as F
from cnn425.algorithms import pool, pool_average
from cnn425.algorithms.pool import Bins, Pooling
from cnn425.windows import Geometry

WINDOWS = {
    "signal": ((40,), Geometry((3,), (1,), ((1, 1),), (1,))),
    "tiles": ((8, 6), Geometry((2, 3), (2, 3), ((0, 0),) * 2, (1, 1))),
    "overlaps and padding": ((9, 10), Geometry((3, 3), (2, 1), ((1, 1),) * 2, (1, 1))),
    "gaps and overhang": ((9, 10), Geometry((2, 2), (3, 3), ((0, 0),) * 2, (1, 1), True)),
    "unequal windows": ((13, 10), Bins((5, 4))),
    "one side whole, one kept": ((5, 6), Bins((1, 6))),
    "volume": ((4, 6, 8), Geometry((3, 3, 3), (2, 2, 2), ((1, 1),) * 3, (1, 1, 1))),
    "unequal volume": ((4, 7, 5), Bins((3, 3, 2))),
}


@pytest.fixture
def fresh_plans():
    pool_average.plan.cache_clear()
    yield
    pool_average.plan.cache_clear()


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(("way", "block"), [("whole", 1), ("sides", 100), ("sides", 2**17)])
@pytest.mark.parametrize("which", WINDOWS)
def test_the_products_are_the_sums(which, way, block, channels_last, monkeypatch, fresh_plans):
    monkeypatch.setattr(pool_average, "BLOCK", block)
    monkeypatch.setattr(pool_average, "BAND", 3)
    monkeypatch.setattr(pool_average, "WINDOWS", 2**10 if way == "whole" else 0)
    (size, geometry), generator = WINDOWS[which], torch.Generator().manual_seed(0)
    pooling, x = Pooling(geometry, channels_last), torch.randn(3, 5, *size, generator=generator, dtype=torch.float64)
    y, found = pool.total(x, pooling), pool_average.total(x, pooling)
    assert found is not None
    torch.testing.assert_close(found, y, check_stride=True)
    g = torch.randn(y.shape, generator=generator, dtype=torch.float64)
    found = pool_average.spread(g, pooling, size)
    assert found is not None
    torch.testing.assert_close(found, pool.spread(g, pooling, size), check_stride=True)


def test_a_long_signal_is_left_to_the_general_way_at_once():
    signal = Geometry((3,), (1,), ((1, 1),), (1,))
    assert pool_average.plan(signal, (2**24 + 1,), torch.float32, False) is None
    assert pool_average.plan(signal, (2**10,), torch.float32, False) is not None
    x = torch.ones(1, 1, 2**20)
    assert torch.equal(F.avg_pool1d(x, 3, 1, 1), torch.nn.functional.avg_pool1d(x, 3, 1, 1))


@pytest.mark.parametrize("spoiled", ["infinite", "integers", "meta", "low precision products"])
def test_it_steps_aside(spoiled):
    pooling = Pooling(Geometry((2, 2), (2, 2), ((0, 0),) * 2, (1, 1)))
    x, g = torch.ones(1, 1, 8, 8), torch.ones(1, 1, 4, 4)
    if spoiled == "infinite":
        x[..., 0], g[..., 0] = torch.inf, torch.nan
    elif spoiled in ("integers", "meta"):
        x, g = (t.long() if spoiled == "integers" else t.to("meta") for t in (x, g))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium" if spoiled == "low precision products" else before)
    try:
        assert pool_average.total(x, pooling) is None
        assert pool_average.spread(g, pooling, (8, 8)) is None
    finally:
        torch.set_float32_matmul_precision(before)
