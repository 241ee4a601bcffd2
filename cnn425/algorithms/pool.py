"""How pools are computed: one side of the window after the other.

    the largest of a box = the largest along w of x, then the largest along h of those        (then along d, in 3-D)
    the sum of a box     = the sum along w of x, then the sum along h of those

so a kernel of U x V pixels costs U + V passes over the image instead of U * V. The last dimension comes first: of equal numbers the
winner is then in the first row that holds one and there the first cell, which is the first in reading order.

A pass along one side visits the cells of a window in reading order, and cell u of all windows at once, which is a strided slice of the
image. Cells outside the image are left out, nothing is padded. The same visits, read backwards, are the adjoint.

    winners    the number of the pixel that is each window's largest; a later cell wins only if it is larger, or not a number
    pick       the pixels of these numbers of another image: the tangent of a max pool
    route      the adjoint of pick: every number goes to the pixel that won
    total      the sum of every window
    spread     the adjoint of total: every number goes to all pixels of its window
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cnn425.windows import Geometry, windows

BLOCK = 2**18  # numbers
PLACES = 2**16  # numbers whose addresses are known at a time: they take twice their memory
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
    disjoint: bool  # no pixel is in two windows
    cover: bool  # every pixel is in exactly one window
    whole: bool  # one window shows the whole image
    identity: bool  # every pixel is a window
    step: int = 1  # pixels from one cell to the next

    def place(self, axis: int, visit: tuple[int, slice, slice]) -> tuple[Any, ...] | None:
        """The index along `axis` of the windows of a visit; None if they are all windows."""
        return None if visit[1] == slice(0, self.positions) else at(axis, visit[1])


def even(size: int, kernel: int, stride: int, low: int, dilation: int, count: int) -> Side:
    """Windows of equal length at equal distances."""
    visits = []
    for u in range(kernel):
        first = u * dilation - low
        a, b = max(0, -(first // stride)), min(count, (size - 1 - first) // stride + 1)
        if a < b:
            visits.append((u, slice(a, b), slice(first + a * stride, first + (b - 1) * stride + 1, stride)))
    disjoint = (kernel - 1) * dilation < stride
    cover = disjoint and sum([b.stop - b.start for _, b, _ in visits]) == size
    return Side(count, kernel, tuple(visits), disjoint, cover, cover and count == 1, cover and kernel == 1, dilation)


def uneven(size: int, count: int) -> Side:
    """Adaptive windows: `count / gcd` families of even windows, because lengths repeat when `i * size / count` is whole again."""
    if not count:
        return Side(0, 1, (), True, False, False, False)
    if size % count == 0:
        return even(size, size // count, size // count, 0, 1, count)
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
    return Side(count, visits[-1][0] + 1, tuple(visits), False, False, False, False)


def _sides(geometry: Geometry | Bins, size: tuple[int, ...]) -> tuple[Side, ...]:
    if isinstance(geometry, Bins):
        return tuple(map(uneven, size, geometry.positions))
    k, s, p, d, _ = geometry
    return tuple(map(even, size, k, s, (low for low, _ in p), d, geometry.positions(size)))


_remembered = lru_cache(maxsize=1024)(_sides)


def sides(geometry: Geometry | Bins, shape: Sequence[int]) -> tuple[tuple[int, Side], ...]:
    """Axis (counted from the end) and windows of each spatial dimension of an image."""
    d = len(geometry[0])
    size = tuple(shape[len(shape) - d :])
    found = (_sides if torch.compiler.is_compiling() else _remembered)(geometry, size)
    return tuple((axis, found[axis]) for axis in range(-d, 0))


def at(axis: int, cells: slice) -> tuple[Any, ...]:
    """The index of `cells` along `axis`, counted from the end."""
    return (..., cells, *(slice(None),) * (-1 - axis))


def blank(x: Tensor, pooling: Pooling, size: Sequence[int], dtype: torch.dtype | None = None) -> Tensor:
    """Memory for images like `x` of `size` pixels, in the layout of the results."""
    dtype = dtype or x.dtype
    shape = (*x.shape[: x.ndim - len(size)], *size)
    if not pooling.channels_last:
        return torch.empty(shape, dtype=dtype, device=x.device)
    channel = len(shape) - len(size) - 1
    strides, step = [1] * len(shape), shape[channel]
    for dim in reversed(range(len(shape))):
        if dim != channel:
            strides[dim], step = step, step * shape[dim]
    return torch.empty_strided(shape, strides, dtype=dtype, device=x.device)


def planes(x: Tensor, pooling: Pooling) -> Tensor:
    """The image as it lies in memory: `(N, *size, C)` with the channels last, `(N * C, *size)` otherwise; a view if it does lie so."""
    d = len(pooling.geometry[0])
    if pooling.channels_last:
        return (x if x.ndim == d + 2 else x.unsqueeze(0)).movedim(1, -1)
    return x.reshape(-1, *x.shape[x.ndim - d :])


def resized(x: Tensor, pooling: Pooling, axis: int, count: int) -> list[int]:
    """The size in pixels of `x` with `count` of them along `axis`."""
    size = list(x.shape[x.ndim - len(pooling.geometry[0]) :])
    size[axis] = count
    return size


# ---- Blocks: a few images at a time, so that what is computed from them stays in the processor's cache ----


def in_blocks(pooling: Pooling, work: Callable[..., None], *images: Tensor) -> None:
    """`work(blocks, *images)` on all images, where their first dimension is to be cut into so many blocks."""
    numbers, count = max(t.numel() for t in images), images[0].shape[0]
    if torch.compiler.is_compiling() or numbers <= BLOCK:
        work(1, *images)
        return
    if not pooling.channels_last and all(t.is_contiguous() for t in images):
        d = len(pooling.geometry[0])
        images = tuple(t.view(-1, *t.shape[t.ndim - d :]) for t in images)
        count = images[0].shape[0]
    step = max(1, count * BLOCK // numbers)
    even = count - count % step
    work(even // step, *(t[:even] for t in images))
    if even < count:
        work(1, *(t[even:] for t in images))


def cut(t: Tensor, cells: Sequence[Any], blocks: int) -> list[Sequence[Tensor]]:
    """For each of `cells`, its slice of `t` (None: all of it) in every block."""
    return [(t if c is None else t[c]).chunk(blocks) if blocks > 1 else (t if c is None else t[c],) for c in cells]


def fixed(t: Tensor, cells: Sequence[Any], blocks: int) -> list[Sequence[Tensor]]:
    """For each of `cells`, its slice of `t` (None: all of it), the same for every block."""
    return [(t if c is None else t[c],) * blocks for c in cells]


def lowest(dtype: torch.dtype) -> float:
    """The number that never wins: minus infinity, or the least integer."""
    return -torch.inf if dtype.is_floating_point else torch.iinfo(dtype).min


# ---- Values ------------------------------------------------------------------------------------------------------------------------------


def definition(x: Tensor, geometry: Geometry) -> Tensor:
    """The largest number of every window, read off the view of all windows."""
    return windows(x, geometry, lowest(x.dtype)).flatten(-geometry.dimensions).amax(-1)


def largest(x: Tensor, pooling: Pooling) -> Tensor:
    """The largest number of every window: `(*batch, *size) -> (*batch, *positions)`."""
    return _combined(x, pooling, torch.maximum, torch.amax, lowest(x.dtype))


def total(x: Tensor, pooling: Pooling) -> Tensor:
    """The sum of every window: `(*batch, *size) -> (*batch, *positions)`."""
    return _combined(x, pooling, torch.add, torch.sum, 0)


def _combined(x: Tensor, pooling: Pooling, combine: Callable[..., Tensor], reduce: Callable[..., Tensor], neutral: float) -> Tensor:
    """Values do not depend on the order of sides: the first comes first, which leaves neighbours in memory together for longest."""
    lines = sides(pooling.geometry, x.shape)
    y = blank(x, pooling, [side.positions for _, side in lines])
    if all(side.whole for _, side in lines):
        return y.copy_(reduce(x, [axis for axis, _ in lines], keepdim=True))
    lines = tuple((axis, side) for axis, side in lines if not side.identity) or lines[-1:]
    in_blocks(pooling, lambda blocks, x, y: _combine_blocks(blocks, x, y, pooling, lines, combine, neutral), x, y)
    return y


def _combine_blocks(
    blocks: int,
    x: Tensor,
    y: Tensor,
    pooling: Pooling,
    lines: Sequence[tuple[int, Side]],
    combine: Callable[..., Tensor],
    neutral: float,
) -> None:
    steps, source, slices = [], x, cut
    for number, (axis, side) in enumerate(lines):
        last = number == len(lines) - 1
        target = y if last else blank(source[: x.shape[0] // blocks], pooling, resized(source, pooling, axis, side.positions))
        cells = slices(source, [at(axis, pixel) for _, _, pixel in side.visits], blocks)
        places = (cut if last else fixed)(target, [None, *(side.place(axis, visit) for visit in side.visits)], blocks)
        steps.append((side, cells, places))
        source, slices = target, fixed
    for block in range(blocks):
        for side, cells, (whole, *places) in steps:
            combine_cells(side, [cell[block] for cell in cells], whole[block], [place[block] for place in places], combine, neutral)


def combine_cells(
    side: Side, cells: Sequence[Tensor], whole: Tensor, places: Sequence[Tensor], combine: Callable[..., Tensor], neutral: float
) -> None:
    """Every window's cells along one side, combined: cell by cell, all windows at once."""
    first = [number for number, visit in enumerate(side.visits) if visit[1] == slice(0, side.positions)][:2]
    if len(first) == 2:
        into(whole, combine, cells[first[0]], cells[first[1]])
    elif first:
        whole.copy_(cells[first[0]])
    else:
        whole.fill_(neutral)
    for number, (cell, place) in enumerate(zip(cells, places, strict=True)):
        if number not in first:
            into(place, combine, place, cell)


def into(target: Tensor, combine: Callable[..., Tensor], *args: Tensor) -> None:
    """`target[...] = combine(*args)`, without a copy where torch can."""
    if torch.compiler.is_compiling():
        target.copy_(combine(*args))
    else:
        combine(*args, out=target)


# ---- Winners -----------------------------------------------------------------------------------------------------------------------------


def winners(x: Tensor, pooling: Pooling, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The largest number of every window and, as `dtype`, the winning pixel's number, counted in reading order from 0."""
    size = torch.Size(x.shape[x.ndim - len(pooling.geometry[0]) :])
    pixels = torch.arange(size.numel(), device=x.device, dtype=dtype).view(size).expand_as(x)
    for axis, side in reversed(sides(pooling.geometry, size)):
        count = resized(x, pooling, axis, side.positions)
        best = blank(x, pooling, count).fill_(lowest(x.dtype))
        chosen = blank(x, pooling, count, dtype).fill_(NOBODY)
        for _, position, there in side.visits:
            place, cell = at(axis, position), at(axis, there)
            wins = (x[cell] > best[place]) | x[cell].isnan() | (chosen[place] == NOBODY)
            best[place].copy_(torch.where(wins, x[cell], best[place]))
            chosen[place].copy_(torch.where(wins, pixels[cell], chosen[place]))
        x, pixels = best, chosen
    return x, pixels


def someone_everywhere(geometry: Geometry | Bins) -> bool:
    """Whether every window has a pixel; with dilation one may lie wholly in the padding."""
    if isinstance(geometry, Bins):
        return True
    return all(d == 1 or low == high == 0 for d, (low, high) in zip(geometry.dilation, geometry.padding, strict=True))


def addresses(lines: Tensor, pooling: Pooling) -> Tensor:
    """Where the pixels of these numbers, as `planes`, lie in memory: one row per image."""
    places = lines.long()
    if pooling.channels_last:
        places = torch.add(torch.arange(lines.shape[-1], device=lines.device), places, alpha=lines.shape[-1])
    return places.flatten(1)


def pick(t: Tensor, pixels: Tensor, pooling: Pooling) -> Tensor:
    """The pixels of these numbers of another image, `(*batch, *size) -> (*batch, *positions)`; 0 for a window without pixels."""
    y = blank(t, pooling, pixels.shape[pixels.ndim - len(pooling.geometry[0]) :])
    complete = someone_everywhere(pooling.geometry)
    lines = planes(pixels if complete else pixels.clamp(min=0), pooling)
    planes(y, pooling).copy_(planes(t, pooling).flatten(1).gather(1, addresses(lines, pooling)).view(lines.shape))
    return y if complete else torch.where(pixels == NOBODY, 0, y)


# ---- Adjoints ----------------------------------------------------------------------------------------------------------------------------


def route(g: Tensor, pixels: Tensor, pooling: Pooling, size: Sequence[int]) -> Tensor:
    """The adjoint of `pick`: every number goes to the pixel of its number, `(*batch, *positions) -> (*batch, *size)`."""
    gx = blank(g, pooling, size).zero_()
    if g.device.type != "cpu":
        return _route_by_cells(gx, g, pixels, pooling)
    if not someone_everywhere(pooling.geometry):
        g, pixels = torch.where(pixels == NOBODY, 0, g), pixels.clamp(min=0)
    images, upstream, lines = (planes(t, pooling) for t in (gx, g, pixels))
    n = images.shape[0]
    step = n if torch.compiler.is_compiling() or g.numel() <= PLACES else max(1, PLACES * n // g.numel())
    for a in range(0, n, max(step, 1)):
        image = images[a : a + step]
        image.view(image.shape[0], -1).scatter_add_(1, addresses(lines[a : a + step], pooling), upstream[a : a + step].flatten(1))
    return gx


def _route_by_cells(gx: Tensor, g: Tensor, pixels: Tensor, pooling: Pooling) -> Tensor:
    """One addition per cell of the window: where a scatter adds in any order, this one adds in the same at every run."""
    lines = sides(pooling.geometry, gx.shape)
    size = gx.shape[gx.ndim - len(lines) :]
    numbers = torch.arange(size.numel(), device=gx.device).view(size)
    for visits in product(*(side.visits for _, side in lines)):
        here: Any = (..., *(visit[1] for visit in visits))
        cells: Any = (..., *(visit[2] for visit in visits))
        gx[cells] += torch.where(pixels[here] == numbers[cells], g[here], 0)
    return gx


def spread(g: Tensor, pooling: Pooling, size: Sequence[int]) -> Tensor:
    """The adjoint of `total`: every number goes to all pixels of its window, `(*batch, *positions) -> (*batch, *size)`."""
    lines = sides(pooling.geometry, size)
    gx = blank(g, pooling, size)
    if all(side.whole for _, side in lines):
        return gx.copy_(g.expand_as(gx))
    lines = tuple((axis, side) for axis, side in lines if not side.identity) or lines[:1]
    in_blocks(pooling, lambda blocks, gx, g: _spread_blocks(blocks, gx, g, pooling, lines, size), gx, g)
    return gx


def _spread_blocks(blocks: int, gx: Tensor, g: Tensor, pooling: Pooling, lines: Sequence[tuple[int, Side]], size: Sequence[int]) -> None:
    steps, source, slices = [], g, cut
    for number, (axis, side) in enumerate(reversed(lines)):
        last = number == len(lines) - 1
        target = gx if last else blank(source[: g.shape[0] // blocks], pooling, resized(source, pooling, axis, size[axis]))
        places = slices(source, [side.place(axis, visit) for visit in side.visits], blocks)
        cells = (cut if last else fixed)(target, [None, *(at(axis, pixel) for _, _, pixel in side.visits)], blocks)
        steps.append((side, cells, places))
        source, slices = target, fixed
    for block in range(blocks):
        for side, (whole, *cells), places in steps:
            if not side.cover:
                whole[block].zero_()
            for cell, place in zip(cells, places, strict=True):
                if side.disjoint:
                    cell[block].copy_(place[block])
                else:
                    cell[block].add_(place[block])


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
