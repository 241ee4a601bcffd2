"""The short way for windows that tile gives what the general way gives, and steps aside where it would not."""

import pytest
import torch

from cnn425.algorithms import pool, pool_tiles
from cnn425.algorithms.pool import Bins, Pooling
from cnn425.windows import Geometry

TILES = {
    "signal": ((12,), Bins((4,))),
    "image": ((8, 6), Geometry((2, 3), (2, 3), ((0, 0),) * 2, (1, 1))),
    "large windows": ((16, 10), Bins((2, 2))),
    "one side whole, one kept": ((5, 6), Bins((1, 6))),
    "volume": ((4, 6, 8), Bins((2, 3, 2))),
}


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("block", [100, 2**17])
@pytest.mark.parametrize("which", TILES)
def test_the_short_way_is_the_general_way(which, block, channels_last, monkeypatch):
    monkeypatch.setattr(pool_tiles, "BLOCK", block)
    monkeypatch.setattr(pool_tiles, "FEW", 1)
    (size, windows), generator = TILES[which], torch.Generator().manual_seed(0)
    pooling, x = Pooling(windows, channels_last), torch.randn(3, 5, *size, generator=generator, dtype=torch.float64)
    y = pool.total(x, pooling)
    short = pool_tiles.total(x, pooling)
    assert short is not None
    torch.testing.assert_close(short, y, check_stride=True)
    g = torch.randn(y.shape, generator=generator, dtype=torch.float64)
    short = pool_tiles.spread(g, pooling, size)
    assert short is not None
    torch.testing.assert_close(short, pool.spread(g, pooling, size), check_stride=True, rtol=0, atol=0)


@pytest.mark.parametrize(
    "spoiled", ["infinite", "overlaps", "pixels in no window", "integers", "meta", "low precision products", "many windows"]
)
def test_it_steps_aside(spoiled, monkeypatch):
    stride = {"overlaps": 1, "pixels in no window": 3}.get(spoiled, 2)
    monkeypatch.setattr(pool_tiles, "FEW", 1)
    pooling = Pooling(Geometry((2, 2), (stride,) * 2, ((0, 0),) * 2, (1, 1)))
    x = torch.ones(1, 1, 8, 8)
    g = torch.ones(1, 1, *pooling.geometry.positions((8, 8)))
    if spoiled == "infinite":
        x[..., 0], g[..., 0] = torch.inf, torch.nan
    elif spoiled in ("integers", "meta"):
        x, g = (t.long() if spoiled == "integers" else t.to("meta") for t in (x, g))
    monkeypatch.setattr(pool_tiles, "MANY", 3 if spoiled == "many windows" else 32)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium" if spoiled == "low precision products" else before)
    try:
        assert pool_tiles.total(x, pooling) is None
        assert pool_tiles.spread(g, pooling, (8, 8)) is None
    finally:
        torch.set_float32_matmul_precision(before)
