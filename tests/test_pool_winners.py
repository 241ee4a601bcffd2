"""The fast way to the winners gives what the general way gives, and steps aside where it would not."""

from contextlib import nullcontext

import pytest
import torch
from torch._subclasses import FakeTensorMode

from cnn425.algorithms import memory, pool, pool_places, pool_winners, use
from cnn425.algorithms.pool import Bins, Pooling
from cnn425.nn import functional as F
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
    "few windows in a row": geometry(5, 4, 1),
    "unequal windows": Bins((5, 7)),
    "one window": Bins((1, 1)),
}
LAYOUTS = ["few planes", "many planes", "channels_last"]


def test_the_general_way_can_be_forced(monkeypatch):
    x, calls = ties(2, 3, 20, 20), []
    expected = F.max_pool2d(x, 3, 2, 1, return_indices=True), F.avg_pool2d(x, 3, 2, 1)
    for way in (pool.winners, pool.total):
        monkeypatch.setattr(pool, way.__name__, lambda *arguments, way=way: calls.append(way.__name__) or way(*arguments))
    with use("sides"):
        forced = F.max_pool2d(x, 3, 2, 1, return_indices=True), F.avg_pool2d(x, 3, 2, 1)
    assert calls == ["winners", "total"]
    torch.testing.assert_close(forced, expected)
    F.max_pool2d(x, 3, 2, 1, return_indices=True)
    assert calls == ["winners", "total"]


@pytest.mark.parametrize("channels_last", [False, True])
def test_without_derivatives_only_the_numbers_are_searched_for(channels_last, monkeypatch):
    x = ties(2, 3, 40, 40).to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    x[0, 0, 5, 5], x[1, :, 7] = torch.nan, -torch.inf
    expected = torch.nn.functional.max_pool2d(x, 3, 2, 1)
    monkeypatch.setattr(pool_winners, "winners", None)
    for tensor in (x, x.clone().requires_grad_()):
        with torch.no_grad():
            torch.testing.assert_close(F.max_pool2d(tensor, 3, 2, 1), expected, rtol=0, atol=0, equal_nan=True, check_stride=True)


@pytest.fixture
def fresh_plans():
    pool_winners.plan.cache_clear()
    yield
    pool_winners.plan.cache_clear()


def ties(*shape):
    return torch.randint(0, 3, shape, generator=torch.Generator().manual_seed(0)).double()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("block", [700, 2**17])
@pytest.mark.parametrize("which", CASES)
def test_the_fast_way_finds_the_general_ways_winners(which, block, layout, monkeypatch, fresh_plans):
    monkeypatch.setattr(pool_winners, "BLOCK", block)  # several blocks, the last one smaller
    pooling = Pooling(CASES[which], layout == "channels_last")
    x = ties(7, 1 if layout == "few planes" else 6, 13, 14)
    x = x.to(memory_format=torch.channels_last) if pooling.channels_last else x
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        y, pixels = pool.winners(x.to(dtype), pooling)
        found = pool_winners.winners(x.to(dtype), pooling, torch.int64)
        torch.testing.assert_close(found, (y, pixels), check_stride=True, rtol=0, atol=0)
        alone = pool_winners.largest(x.to(dtype), pooling)
        if alone is not None or which != "one window":  # which is left to one reduction
            torch.testing.assert_close(alone, y, check_stride=True, rtol=0, atol=0)
        smallest = pool_places.offset_dtype(pooling.geometry, (13, 14))
        y, where = pool_winners.winners(x.to(dtype), pooling, smallest)
        assert where.dtype == smallest
        torch.testing.assert_close(pool_places.pixels_at(where, pooling.geometry, (13, 14)), pixels, rtol=0, atol=0)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("block", [700, 2**17])
@pytest.mark.parametrize(
    ("kernel", "stride", "dilation"),
    [((3,), (2,), (1,)), ((4,), (4,), (1,)), ((2, 3, 2), (2, 1, 2), (1, 1, 2)), ((1, 2, 3), (1, 2, 3), (1, 1, 1))],
)
def test_signals_and_volumes_too(kernel, stride, dilation, block, channels_last, monkeypatch, fresh_plans):
    monkeypatch.setattr(pool_winners, "BLOCK", block)
    windows = Geometry(kernel, stride, ((1, 1) if kernel[0] in (2, 3) else (0, 0),) + ((0, 0),) * (len(kernel) - 1), dilation)
    pooling, size = Pooling(windows, channels_last), (101,) if len(kernel) == 1 else (9, 10, 11)
    x = ties(3, 20, *size)
    x = x.movedim(1, -1).contiguous().movedim(-1, 1) if channels_last else x
    for dtype in (torch.float64, torch.float32, torch.float16):
        y, pixels = pool.winners(x.to(dtype), pooling)
        torch.testing.assert_close(pool_winners.winners(x.to(dtype), pooling, torch.int64), (y, pixels), check_stride=True, rtol=0, atol=0)
        torch.testing.assert_close(pool_winners.largest(x.to(dtype), pooling), y, check_stride=True, rtol=0, atol=0)


@pytest.mark.parametrize("which", CASES)
@pytest.mark.parametrize("channels_last", [False, True])
def test_small_images_have_the_same_winners(which, channels_last):
    pooling, x = Pooling(CASES[which], channels_last), ties(1, 2, 13, 14)
    for dtype in (torch.int64, torch.int16):
        table = pool_winners.small_table(pooling, (1, 1, 13, 14), dtype)
        if table is None:
            continue
        y, where = pool_winners.small(x, pooling, (13, 14), table)
        best, pixels = pool.winners(x, pooling)
        assert torch.equal(y, best)
        assert torch.equal(pool_places.pixels_at(where, pooling.geometry, (13, 14)), pixels)


def test_scratch_is_written_again_at_every_call(fresh_plans):
    pooling, x = Pooling(geometry(3, 2, 1)), ties(4, 8, 40, 40)
    first = pool_winners.winners(x, pooling, torch.int64)
    memory.begin()
    memory.scratch(x, memory.BYTES // 8).fill_(torch.nan)  # what another algorithm leaves there
    assert all(map(torch.equal, pool_winners.winners(x, pooling, torch.int64), first))


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
        assert pool.winners(x, pooling)[0].shape == (1, 1, 2, 2)
