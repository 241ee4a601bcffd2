"""Winners by masks: the fast way to torch's indices and back through a max pool, where the numbers can be looked at.

Going through the cells u of the windows in reading order, with r what is left of a window's gradient (at first all of it):

    mask = (cell u == the window's largest number), as 0 and 1;        gradient of cell u += r * mask;        r -= r * mask

so the first cell that holds the largest number takes everything and the others get exactly zero. These are passes of plain arithmetic, as
fast as memory, and nothing is saved but the pool's own input and output. Indices are written last cell first, so that the first one stays.

Two conditions: a NaN equals nothing, and infinity times zero is NaN. Pools with a NaN, and gradients that are not finite, go the general way
of `cnn425.algorithms.pool`; so do traced and fake tensors, whose numbers cannot be looked at, and other devices, which would have to wait.

Cells are visited one side after the other (U + V visits, the first for more windows) or all at once (U * V), whichever moves fewer numbers.
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import product
from math import isfinite, prod
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter

from cnn425.algorithms import pool
from cnn425.algorithms.pool import NOBODY, Bins, Pooling, Side
from cnn425.windows import Geometry

Cells = tuple[Any, ...]
AGAIN = 1.4  # the cost of a pass of masks that has to find the largest numbers again, in passes that need not


class Stage(NamedTuple):
    """Visits along some axes at once: the windows that have the cell, and its pixels, as indices of result and image."""

    axes: tuple[int, ...]
    visits: tuple[tuple[Cells, Cells], ...]
    disjoint: bool
    cover: bool


def stage(sides: Sequence[tuple[int, Side]], axes: Sequence[int]) -> Stage:
    """The visits along `axes`, in reading order."""
    chosen = [side for axis, side in sides if axis in axes]
    visits = []
    for cells in product(*(side.visits for side in chosen)):
        windows, pixels = [slice(None)] * len(sides), [slice(None)] * len(sides)
        for axis, (_, window, pixel) in zip(sorted(axes), cells, strict=True):
            windows[axis], pixels[axis] = window, pixel
        visits.append(((..., *windows), (..., *pixels)))
    return Stage(tuple(axes), tuple(visits), all(side.disjoint for side in chosen), all(side.cover for side in chosen))


@lru_cache(maxsize=1024)
def stages(geometry: Geometry | Bins, size: tuple[int, ...]) -> tuple[Stage, ...]:
    """The stages of a pool, the last dimension first if they go one by one."""
    sides = pool.sides(geometry, size)
    separate, windows = 0.0, 1.0  # in passes over all windows of the result
    for axis, side in sides:
        separate += windows * len(side.visits) * (1 if axis == -len(sides) else AGAIN)
        windows *= size[axis] / max(side.positions, 1)
    axes = [axis for axis, _ in sides]
    if prod(len(side.visits) for _, side in sides) <= separate:
        return (stage(sides, axes),)
    return tuple(stage(sides, (axis,)) for axis in reversed(axes))


def visible(*tensors: Tensor) -> bool:
    """Whether the numbers of all tensors can be looked at without waiting."""
    if torch.compiler.is_compiling():
        return False
    return all(type(t) in (Tensor, Parameter) and t.device.type == "cpu" for t in tensors)


def finite(t: Tensor) -> bool:
    """Whether all numbers are finite, going by their sum: now and then False though they are."""
    try:
        return isfinite(t.sum(dtype=torch.float64 if t.dtype == torch.float64 else torch.float32).item())
    except RuntimeError:  # a tracer that records what is done with tensors does not give out their numbers
        return False


def route(g: Tensor, x: Tensor, y: Tensor, pooling: Pooling) -> Tensor | None:
    """Every number of `g` to the pixel that won, `(*batch, *positions) -> (*batch, *size)`; None where only the general way leads there."""
    if not (visible(g, x, y) and finite(g) and finite(y)):
        return None
    size = tuple(x.shape[x.ndim - len(pooling.geometry[0]) :])
    way, sides = stages(pooling.geometry, size), dict(pool.sides(pooling.geometry, size))
    gx = pool.blank(x, pooling, size)
    for result, gradient, image, best in pool.blocks(pooling, gx, g, x, y):
        largest = [image]
        for here in way[:-1]:
            largest.append(pool.along(largest[-1], pooling, here.axes[0], sides[here.axes[0]], torch.maximum, -torch.inf))
        steps = zip(reversed(way), reversed(largest), reversed([*largest[1:], best]), strict=True)
        for here, before, after in steps:
            gradient = _route(
                gradient, before, after, here, result if before is image else pool.blank(before, pooling, before.shape[-len(size) :])
            )
    return gx


def _route(g: Tensor, x: Tensor, y: Tensor, here: Stage, gx: Tensor) -> Tensor:
    if not here.cover:
        gx.zero_()
    rest, mask, cell = torch.empty_like(y).copy_(g), torch.empty_like(y), torch.empty_like(y)
    for number, (windows, pixels) in enumerate(here.visits):
        r, m, target, candidate = rest[windows], mask[windows], gx[pixels], x[pixels]
        if here.cover and number == len(here.visits) - 1:
            target.copy_(r)
            break
        if 1 not in candidate.stride():  # comparing is slow where neighbours in memory are not neighbours in the slice
            candidate = cell[windows].copy_(candidate)
        torch.eq(candidate, y[windows], out=m)
        if here.disjoint:
            torch.mul(m, r, out=target)
            r.sub_(target)
        else:
            m.mul_(r)
            target.add_(m)
            r.sub_(m)
    return gx


def numbers(x: Tensor, y: Tensor, pooling: Pooling) -> Tensor | None:
    """The winning pixels' numbers, counted in reading order from 0; None where only the general way leads there."""
    if not (visible(x, y) and (not y.is_floating_point() or finite(y))):
        return None
    d = len(pooling.geometry[0])
    size = x.shape[x.ndim - d :]
    found = torch.arange(size.numel()).view(size)
    way, sides, neutral = stages(pooling.geometry, tuple(size)), dict(pool.sides(pooling.geometry, size)), pool.lowest(x.dtype)
    for number, here in enumerate(way):
        best = y if number == len(way) - 1 else pool.along(x, pooling, here.axes[0], sides[here.axes[0]], torch.maximum, neutral)
        winner = torch.full_like(best, NOBODY, dtype=torch.int64)
        for windows, pixels in reversed(here.visits):
            there = winner[windows]
            torch.where(x[pixels] == best[windows], found[pixels], there, out=there)
        x, found = best, winner
    return found
