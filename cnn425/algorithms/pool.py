"""How pools are computed: one side of the window after the other.

    the largest of a box = the largest along w of x, then the largest along h of those        (then along d, in 3-D)
    the sum of a box     = the sum along w of x, then the sum along h of those

so a kernel of U x V pixels costs U + V passes over the image instead of U * V. The last dimension comes first: of equal numbers the
winner is then in the first row that holds one and there the first cell, which is the first in reading order.

A pass along one side visits the cells of a window in reading order, and cell u of all windows at once, which is a strided slice of the
image. Cells outside the image are left out, nothing is padded. The same visits, read backwards, are the adjoint.

    winners    which cell u of each window is the largest; a later cell wins only if it is larger, or not a number
    pick       the winners' cells of another image: the tangent of a max pool and, from the image of pixel numbers, torch's indices
    route      the adjoint of pick: every number goes to the pixel that won
    total      the sum of every window
    spread     the adjoint of total: every number goes to all pixels of its window
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cnn425.windows import Geometry, windows

NOBODY = -1  # the pixel number of a window without pixels (a dilated window may lie wholly in the padding)


class Bins(NamedTuple):
    """Adaptive windows: of m = `positions` windows along n pixels, window i shows the pixels from floor(i n / m) to ceil((i + 1) n / m)."""

    positions: tuple[int, ...]


class Pooling(NamedTuple):
    """Where the windows lie, and whether results keep the channels last in memory (dimension 1, for a batched image) or lie contiguous."""

    geometry: Geometry | Bins
    channels_last: bool = False


class Side(NamedTuple):
    """The windows along one dimension: how many, the longest length, visits (cell u, windows that have it, its pixels)."""

    positions: int
    length: int
    visits: tuple[tuple[int, slice, slice], ...]

    @property
    def complete(self) -> list[tuple[int, slice, slice]]:
        """The visits that reach every window."""
        return [visit for visit in self.visits if visit[1] == slice(0, self.positions)]


def even(size: int, kernel: int, stride: int, low: int, dilation: int, count: int) -> Side:
    """Windows of equal length at equal distances."""
    visits = []
    for u in range(kernel):
        first = u * dilation - low
        a, b = max(0, -(first // stride)), min(count, (size - 1 - first) // stride + 1)
        if a < b:
            visits.append((u, slice(a, b), slice(first + a * stride, first + (b - 1) * stride + 1, stride)))
    return Side(count, kernel, tuple(visits))


def uneven(size: int, count: int) -> Side:
    """Adaptive windows: `count / gcd` families of even windows, because lengths repeat when `i * size / count` is whole again."""
    if not count:
        return Side(0, 1, ())
    members, rest = count, size % count
    while rest:  # Euclid's gcd of size and count
        members, rest = rest, members % rest
    families, stride = count // members, size // members
    visits = []
    for i in range(families):
        start, end = i * size // count, -(-(i + 1) * size // count)
        for u in range(end - start):
            visits.append((u, slice(i, count, families), slice(start + u, start + u + (members - 1) * stride + 1, stride)))
    visits.sort(key=lambda visit: visit[0])
    return Side(count, visits[-1][0] + 1, tuple(visits))


def _sides(geometry: Geometry | Bins, size: tuple[int, ...]) -> tuple[Side, ...]:
    if isinstance(geometry, Bins):
        return tuple(map(uneven, size, geometry.positions))
    k, s, p, d, _ = geometry
    return tuple(map(even, size, k, s, (low for low, _ in p), d, geometry.positions(size)))


_remembered = lru_cache(maxsize=1024)(_sides)


def sides(geometry: Geometry | Bins, shape: Sequence[int]) -> tuple[tuple[int, Side], ...]:
    """Axis (counted from the end) and windows of each spatial dimension of an image, the last dimension first."""
    d = len(geometry[0])
    size = tuple(shape[len(shape) - d :])
    found = (_sides if torch.compiler.is_compiling() else _remembered)(geometry, size)
    return tuple((axis, found[axis]) for axis in range(-1, -d - 1, -1))


def at(axis: int, cells: slice) -> tuple[Any, ...]:
    """The index of `cells` along `axis`, counted from the end."""
    return (..., cells, *(slice(None),) * (-1 - axis))


def blank(x: Tensor, axis: int, size: int, pooling: Pooling, dtype: torch.dtype | None = None) -> Tensor:
    """Memory for an image like `x` with `size` pixels along `axis`, in the layout of the results."""
    shape = [*x.shape[: x.ndim + axis], size, *x.shape[x.ndim + axis + 1 :]]
    order, channel = list(range(x.ndim)), x.ndim - len(pooling.geometry[0]) - 1
    if pooling.channels_last:
        order = [*order[:channel], *order[channel + 1 :], channel]
    strides, step = [1] * x.ndim, 1
    for dim in reversed(order):
        strides[dim], step = step, step * max(shape[dim], 1)
    return torch.empty_strided(shape, strides, dtype=dtype or x.dtype, device=x.device)


def lowest(dtype: torch.dtype) -> float:
    """The number that never wins: minus infinity, or the least integer."""
    return -torch.inf if dtype.is_floating_point else torch.iinfo(dtype).min


# ---- Values ------------------------------------------------------------------------------------------------------------------------------


def definition(x: Tensor, geometry: Geometry) -> Tensor:
    """The largest number of every window, read off the view of all windows."""
    return windows(x, geometry, lowest(x.dtype)).flatten(-geometry.dimensions).amax(-1)


def largest(x: Tensor, pooling: Pooling) -> Tensor:
    """The largest number of every window: `(*batch, *size) -> (*batch, *positions)`."""
    return _combined(x, pooling, torch.maximum, lowest(x.dtype))


def total(x: Tensor, pooling: Pooling) -> Tensor:
    """The sum of every window: `(*batch, *size) -> (*batch, *positions)`."""
    return _combined(x, pooling, torch.add, 0)


def _combined(x: Tensor, pooling: Pooling, combine: Callable[..., Tensor], neutral: float) -> Tensor:
    for axis, side in sides(pooling.geometry, x.shape):
        y, first = blank(x, axis, side.positions, pooling), side.complete[:2]
        if len(first) == 2:
            into(y, combine, *(x[at(axis, pixel)] for _, _, pixel in first))
        elif first:
            y.copy_(x[at(axis, first[0][2])])
        else:
            y.fill_(neutral)
        for visit in side.visits:
            if visit not in first:
                target = y[at(axis, visit[1])]
                into(target, combine, target, x[at(axis, visit[2])])
        x = y
    return x


def into(target: Tensor, combine: Callable[..., Tensor], *args: Tensor) -> None:
    """`target[...] = combine(*args)`, without a copy where torch can."""
    if torch.compiler.is_compiling():
        target.copy_(combine(*args))
    else:
        combine(*args, out=target)


# ---- Winners -----------------------------------------------------------------------------------------------------------------------------


def winners(x: Tensor, pooling: Pooling) -> tuple[Tensor, list[Tensor]]:
    """The largest number of every window, and for each side, the last first, which cell it came from."""
    chosen = []
    for axis, side in sides(pooling.geometry, x.shape):
        y = blank(x, axis, side.positions, pooling).fill_(lowest(x.dtype))
        winner = torch.full_like(y, side.length, dtype=torch.uint8 if side.length < 256 else torch.int32)
        for u, position, pixel in side.visits:
            best, winner_there, candidate = y[at(axis, position)], winner[at(axis, position)], x[at(axis, pixel)]
            wins = (candidate > best) | candidate.isnan() | (winner_there == side.length)
            best.copy_(torch.where(wins, candidate, best))
            winner_there.masked_fill_(wins, u)
        x = y
        chosen.append(winner)
    return x, chosen


def pick(t: Tensor, chosen: Sequence[Tensor], pooling: Pooling, nobody: float = 0) -> Tensor:
    """Another image where the winners are, `(*batch, *size) -> (*batch, *positions)`; `nobody` for a window without pixels."""
    for (axis, side), winner in zip(sides(pooling.geometry, t.shape), chosen, strict=True):
        y = torch.full_like(winner, nobody, dtype=t.dtype)
        for u, position, pixel in side.visits:
            target = y[at(axis, position)]
            target.copy_(torch.where(winner[at(axis, position)] == u, t[at(axis, pixel)], target))
        t = y
    return t


def numbers(chosen: Sequence[Tensor], pooling: Pooling, size: Sequence[int]) -> Tensor:
    """The winning pixels' numbers, counted in reading order from 0."""
    batch = chosen[0].shape[: chosen[0].ndim - len(size)]
    pixels = torch.arange(torch.Size(size).numel(), device=chosen[0].device).view(*size)
    return pick(pixels.expand(*batch, *size), chosen, pooling, NOBODY)


# ---- Adjoints ----------------------------------------------------------------------------------------------------------------------------


def route(g: Tensor, chosen: Sequence[Tensor], pooling: Pooling, size: Sequence[int]) -> Tensor:
    """The adjoint of `pick`: every number goes to the pixel that won, `(*batch, *positions) -> (*batch, *size)`."""
    for (axis, side), winner in zip(reversed(sides(pooling.geometry, size)), reversed(chosen), strict=True):
        gx = blank(g, axis, size[axis], pooling).zero_()
        for u, position, pixel in side.visits:
            gx[at(axis, pixel)] += torch.where(winner[at(axis, position)] == u, g[at(axis, position)], 0)
        g = gx
    return g


def spread(g: Tensor, pooling: Pooling, size: Sequence[int]) -> Tensor:
    """The adjoint of `total`: every number goes to all pixels of its window, `(*batch, *positions) -> (*batch, *size)`."""
    for axis, side in reversed(sides(pooling.geometry, size)):
        gx = blank(g, axis, size[axis], pooling).zero_()
        for _, position, pixel in side.visits:
            gx[at(axis, pixel)] += g[at(axis, position)]
        g = gx
    return g


def counts(geometry: Geometry | Bins, size: Sequence[int], padding: bool, like: Tensor) -> Tensor:
    """How many cells each window has in the image or, with `padding`, in the padded image: `(*positions)`."""
    product = like.new_ones(())
    for dim, n in enumerate(size):
        if isinstance(geometry, Bins):
            i, m = torch.arange(geometry.positions[dim], device=like.device), geometry.positions[dim]
            length = ((i + 1) * n + m - 1) // m - i * n // m
        else:
            i, (low, high) = torch.arange(geometry.positions(size)[dim], device=like.device), geometry.padding[dim]
            start = i * geometry.stride[dim] - low
            end = start + geometry.kernel[dim]
            length = end.clamp(max=n + high) - start if padding else end.clamp(max=n) - start.clamp(min=0)
        product = product.unsqueeze(-1) * length
    return product
