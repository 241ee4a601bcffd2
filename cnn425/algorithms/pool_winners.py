"""Max pools the fast way: the largest numbers, and the offsets of the winning pixels, for numbers that can be looked at.

Images are worked through in blocks that stay in the processor's cache, laid out by `pool_layout`, searched by `pool_program`, one side of
the window after the other: U + V cells per window of U x V pixels, three passes each. Small images are searched by `pool_small`.

Conditions: a NaN is not larger than anything, and minus infinity not larger than a window nobody has won yet. Pools of images with such
numbers go the general way of `cnn425.algorithms.pool`; so do integers, traced and fake tensors, and other devices, which would wait.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from cnn425.algorithms import memory, pool
from cnn425.algorithms.pool import Pooling, finite, visible
from cnn425.algorithms.pool_layout import Part, parts, way
from cnn425.algorithms.pool_places import known_starts
from cnn425.algorithms.pool_program import known
from cnn425.algorithms.pool_search import search, search_values
from cnn425.algorithms.pool_small import small, small_table, small_values

BLOCK = 2**17  # numbers of the image in a block, for each of the first two threads: each reads its share from its own cache
PLANES = 32, 1024  # planes in a block that is turned, at least and at most
EXACT = 2**23  # offsets below are bits of a float32


class Plan(NamedTuple):
    """How a batch of images is worked through: the layout of a block, images in it, its parts (rows of windows), their strides."""

    how: str
    step: int
    parts: tuple[Part, ...]
    stride: int
    like: Tensor


@lru_cache(maxsize=1024)
def plan(pooling: Pooling, size: tuple[int, ...], shape: tuple[int, ...], dtype: torch.dtype, threads: int) -> Plan | None:
    """The plan for images that lie as `shape` in memory; None if a side has windows without pixels only."""
    sides = tuple(side for _, side in pool.sides(pooling.geometry, size))
    if prod(size) >= EXACT or not all(side.visits for side in sides):
        return None
    n, row = shape[0], prod(shape[2:])
    how, like = way(pooling.channels_last, sides, n), torch.empty(0, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    block = BLOCK * min(threads, 2) * 4 // like.element_size()
    step = max(1, block // (row * size[0]))
    if how == "turned":
        step = min(max(PLANES[0], step), PLANES[1])
    step = -(-n // -(-n // step))  # blocks of equal size
    rows = max(1, block // (row * (step if how == "turned" else 1)))
    return Plan(how, step, parts(pooling.geometry, size, rows, like.dtype, how), sides[-1].stride, like)


def winners(x: Tensor, pooling: Pooling, dtype: torch.dtype) -> tuple[Tensor, Tensor] | None:
    """The largest number of every window and, as `dtype`, the winning pixel's offset or (int64) number; None: the general way is needed."""
    size = tuple(x.shape[x.ndim - len(pooling.geometry[0]) :])
    if not (visible(x) and x.is_floating_point() and x.numel()) or 0 in pooling.geometry[0]:
        return None
    if (table := small_table(pooling, x.shape, dtype)) is not None:
        y, where = small(x, pooling, size, table)
    elif all(side.whole for _, side in pool.sides(pooling.geometry, size)):
        y, where = of_everything(x, pooling, dtype)
    else:
        images = pool.planes(x, pooling)
        if (found := plan(pooling, size, tuple(images.shape), x.dtype, torch.get_num_threads())) is None:
            return None
        positions = [side.positions for _, side in pool.sides(pooling.geometry, size)]
        y, where = pool.blank(x, pooling, positions), pool.blank(x, pooling, positions, dtype)
        work([images], [pool.planes(y, pooling), pool.planes(where, pooling)], found, found.like, search)
        if dtype == torch.int64:
            where.add_(known_starts(pooling.geometry, size))
    return (y, where) if finite(y) else None


def largest(x: Tensor, pooling: Pooling) -> Tensor | None:
    """The largest number of every window, where nobody asks who won; None: the general way is needed."""
    size = tuple(x.shape[x.ndim - len(pooling.geometry[0]) :])
    if not (visible(x) and x.is_floating_point() and x.numel()) or 0 in pooling.geometry[0]:
        return None
    if (table := small_table(pooling, x.shape, torch.int64)) is not None:
        return small_values(x, pooling, size, table)
    images = pool.planes(x, pooling)
    if all(side.whole for _, side in pool.sides(pooling.geometry, size)):
        return None
    if (found := plan(pooling, size, tuple(images.shape), x.dtype, torch.get_num_threads())) is None:
        return None
    y = pool.blank(x, pooling, [side.positions for _, side in pool.sides(pooling.geometry, size)])
    work([images], [pool.planes(y, pooling)], found, x.new_empty(0), search_values)
    return y


def of_everything(x: Tensor, pooling: Pooling, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The largest number of every image, where one window shows all of it."""
    d = len(pooling.geometry[0])
    y, where = pool.blank(x, pooling, (1,) * d), pool.blank(x, pooling, (1,) * d, dtype)
    images = pool.planes(x, pooling).flatten(1, d)
    if pooling.channels_last and images.shape[1] < EXACT:
        first_of_the_largest(images, *(pool.planes(out, pooling).flatten(1, d) for out in (y, where)))
        return y, where
    for out, found in zip((y, where), images.max(1), strict=True):
        pool.planes(out, pooling).flatten(1).copy_(found.flatten(1) if found.ndim > 1 else found.unsqueeze(1))
    return y, where


def first_of_the_largest(images: Tensor, values: Tensor, places: Tensor) -> None:
    """The largest number of `(N, pixels, C)` along the pixels, and the first pixel that is as large: the one of the largest countdown."""
    n, pixels, channels = images.shape
    step = max(1, 2 * BLOCK // (pixels * channels))
    countdown = torch.arange(pixels, 0, -1, dtype=torch.float32).unsqueeze(1)
    for start in range(0, n, step):
        memory.begin()
        block, best = images[start : start + step], values[start : start + step]
        torch.amax(block, 1, keepdim=True, out=best)
        hits = torch.eq(block, best, out=memory.scratch(countdown, *block.shape))
        places[start : start + step] = pixels - hits.mul_(countdown).amax(1, keepdim=True)


def work(images: Sequence[Tensor], windows: Sequence[Tensor], plan: Plan, like: Tensor, write: Callable[..., None]) -> None:
    """Does for every block of images, and of rows of windows where an image is larger than a block, what `write` has written down."""
    how, step, parts, stride, _ = plan
    direct, n = images[0].dtype == like.dtype, len(images[0])
    for part in parts:
        tensors, before, cut = [*(t[:, part.pixels] for t in images), *(t[:, part.windows] for t in windows)], None, []
        for start in range(0, n, step):
            number = min(step, n - start)
            shapes = [(number, *t.shape[1:]) for t in tensors]
            key = write, part.name, number, images[0].shape, like.dtype, direct
            given, steps = known(key, like, write, part, how, stride, shapes, direct)
            if given is not before:
                cut, before = [there.of(tensors) for there in given], given
            block = [t[start : start + number] for t in cut]
            for take in steps:
                take(block)
