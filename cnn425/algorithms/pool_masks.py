"""Winners by masks: the fast way to torch's indices and back through a max pool, where the numbers can be looked at.

Going through the cells u of the windows in reading order, with r what is left of a window's gradient (at first all of it):

    mask = (cell u == the window's largest number), as 0 and 1;        gradient of cell u += r * mask;        r -= r * mask

so the first cell that holds the largest number takes everything and the others get exactly zero. These are passes of plain arithmetic, as
fast as memory, and nothing is saved but the pool's own input and output. Indices are written last cell first, so that the first one stays.

Two conditions: a NaN equals nothing, and infinity times zero is NaN. Pools with a NaN, and gradients that are not finite, go the general
way of `cnn425.algorithms.pool`; so do traced and fake tensors, whose numbers cannot be looked at, and other devices, which would wait.

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

MANY = 16  # visits all at once: beyond, calling costs more than computing


class Stage(NamedTuple):
    """Visits along some axes at once: the windows that have the cell (None: all of them) and its pixels, as indices of result and image."""

    axes: tuple[int, ...]
    visits: tuple[tuple[Cells | None, Cells], ...]
    disjoint: bool
    cover: bool


def stage(sides: Sequence[tuple[int, Side]], axes: Sequence[int]) -> Stage:
    """The visits along `axes`, in reading order."""
    chosen = [side for axis, side in sides if axis in axes]
    visits: list[tuple[Cells | None, Cells]] = []
    for cells in product(*(side.visits for side in chosen)):
        windows, pixels = [slice(None)] * len(sides), [slice(None)] * len(sides)
        complete = True
        for axis, side, (_, window, pixel) in zip(sorted(axes), chosen, cells, strict=True):
            windows[axis], pixels[axis] = window, pixel
            complete = complete and window == slice(0, side.positions)
        visits.append((None if complete else (..., *windows), (..., *pixels)))
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
    if prod(len(side.visits) for _, side in sides) <= min(separate, MANY):
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
    pool.in_blocks(pooling, lambda n, *images: _route_blocks(n, images, way, sides, pooling), gx, g, x, y)
    return gx


def _route_blocks(blocks: int, images: Sequence[Tensor], way: Sequence[Stage], sides: dict[int, Side], pooling: Pooling) -> None:
    gx, g, x, y = images
    count = x.shape[0] // blocks
    block = y[:count]
    largest = [x]  # then, for each stage but the last, memory for the largest numbers of one block
    for here in way[:-1]:
        axis = here.axes[0]
        largest.append(pool.blank(block, pooling, pool.resized(largest[-1], pooling, axis, sides[axis].positions)))
    largest.append(y)
    forward, backward = [], []
    for number, here in enumerate(way):
        before, after = largest[number], largest[number + 1]
        first, last = number == 0, number == len(way) - 1
        windows, pixels = [w for w, _ in here.visits], [p for _, p in here.visits]
        cells = (pool.cut if first else pool.fixed)(before, pixels, blocks)
        best = (pool.cut if last else pool.fixed)(after, [None, *windows], blocks)
        target = gx if first else pool.blank(block, pooling, before.shape[before.ndim - len(pooling.geometry[0]) :])
        returned = (pool.cut if first else pool.fixed)(target, [None, *pixels], blocks)
        like = after[:count]
        scratch = [pool.fixed(torch.empty_like(like), [None, *windows], 1) for _ in range(3)]
        if not last:
            forward.append((sides[here.axes[0]], cells, best))
        backward.append((here, cells, best[1:], returned, scratch, target))
    gradients = pool.cut(g, [None], blocks)[0]
    for block_number in range(blocks):
        for side, cells, (whole, *places) in forward:
            there = [[view[block_number] for view in views] for views in (cells, places)]
            pool.combine_cells(side, there[0], whole[block_number], there[1], torch.maximum, -torch.inf)
        gradient = gradients[block_number]
        for here, cells, best, returned, scratch, target in reversed(backward):
            there = [[view[block_number] for view in views] for views in (cells, best, returned)]
            _route(gradient, here, *there, *([view[0] for view in views] for views in scratch))
            gradient = target


def _route(
    g: Tensor,
    here: Stage,
    cells: Sequence[Tensor],
    best: Sequence[Tensor],
    returned: Sequence[Tensor],
    rest: Sequence[Tensor],
    mask: Sequence[Tensor],
    dense: Sequence[Tensor],
) -> None:
    """One stage of one block; the first of `returned`, `rest`, `mask` and `dense` is the whole, the others belong to the visits."""
    if not here.cover:
        returned[0].zero_()
    rest[0].copy_(g)
    visits = zip(cells, best, returned[1:], rest[1:], mask[1:], dense[1:], strict=True)
    for left, (cell, largest, target, r, m, neighbours) in zip(range(len(cells) - 1, -1, -1), visits, strict=True):
        if here.cover and not left:
            target.copy_(r)
            break
        together = 1 in cell.stride()  # arithmetic is slow where neighbours in the slice are not neighbours in memory, copying less so
        torch.eq(cell if together else neighbours.copy_(cell), largest, out=m)
        if here.disjoint and together:
            torch.mul(m, r, out=target)
            r.sub_(target)
        else:
            r.sub_(m.mul_(r))
            target.copy_(m) if here.disjoint else target.add_(m)


def numbers(x: Tensor, y: Tensor, pooling: Pooling) -> Tensor | None:
    """The winning pixels' numbers, counted in reading order from 0; None where only the general way leads there."""
    if not (visible(x, y) and (not y.is_floating_point() or finite(y))):
        return None
    d = len(pooling.geometry[0])
    size = x.shape[x.ndim - d :]
    found = torch.arange(size.numel()).view(size)
    way, sides, neutral = stages(pooling.geometry, tuple(size)), dict(pool.sides(pooling.geometry, size)), pool.lowest(x.dtype)
    for number, here in enumerate(way):
        best = y
        if number < len(way) - 1:
            side = sides[here.axes[0]]
            best = pool.blank(x, pooling, pool.resized(x, pooling, here.axes[0], side.positions))
            cells, places = [x[pixels] for _, pixels in here.visits], [best if w is None else best[w] for w, _ in here.visits]
            pool.combine_cells(side, cells, best, places, torch.maximum, neutral)
        winner = torch.full_like(best, NOBODY, dtype=torch.int64)
        for windows, pixels in reversed(here.visits):
            there, largest = (winner, best) if windows is None else (winner[windows], best[windows])
            torch.where(x[pixels] == largest, found[pixels], there, out=there)
        x, found = best, winner
    return found
