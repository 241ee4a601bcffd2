"""Which pixel won each window: the fast way, for numbers that can be looked at.

Numbers and the pixels they came from travel together, one side of the window after the other, cell u of all windows at once:

    win = cell > best, as 0 and 1;        best = max(best, cell);        pixel = pixel + win * (its pixel - pixel)

three passes of plain arithmetic, as fast as memory, on a block of images that stays in the cache. Arithmetic is fast only along neighbours
in memory, and the cells of neighbouring windows are none; so the planes (images and channels) of a block are laid innermost, where
channels_last has them anyway.

Two conditions: a NaN is not larger than anything, and minus infinity not larger than a window nobody has won yet. Pools of images with such
numbers go the general way of `cnn425.algorithms.pool`; so do integers, traced and fake tensors, and other devices, which would wait.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from math import isfinite
from sys import byteorder
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.nn import Parameter

from cnn425.algorithms import pool
from cnn425.algorithms.memory import begin, scratch
from cnn425.algorithms.pool import Bins, Pooling, Side
from cnn425.windows import Geometry

Index = tuple[Any, ...]

BLOCK = 2**18  # numbers of the image in a block
PLANES = 32, 1024  # laid innermost together, at least and at most
SMALL = 2**8  # numbers of an image that is not worth a block
EXACT = 2**24  # whole numbers below are exact in float32


class Visit(NamedTuple):
    """A cell of the windows: its place in the image, the windows that have it (None: all), how it wins, pixels from the first cell."""

    cell: Index
    windows: Index | None
    beats: Callable[..., Tensor]
    distance: int
    number: Tensor


class Line(NamedTuple):
    """The visits along one axis: a first cell that all windows have (None: there is none), its pixels into the window, and the others."""

    axis: int
    positions: int
    first: Index | None
    origin: int
    visits: tuple[Visit, ...]


class Part(NamedTuple):
    """Rows of windows: their places along the first dimension, the rows of pixels they show, and the visits seen from there."""

    windows: slice
    pixels: slice
    lines: tuple[Line, ...]


def line(axis: int, side: Side, dtype: torch.dtype, halved: bool = False) -> Line:
    """The visits of a side; those of cells before the first win ties. With `halved` the cells are those of `halves` of the image."""
    common = next((n for n, visit in enumerate(side.visits) if side.place(axis, visit) is None), -1)
    origin, others = (side.visits[common][0] if common >= 0 else 0), []
    cells = [half(axis, visit[2]) if halved else pool.at(axis, visit[2]) for visit in side.visits]
    for n in (*range(common + 1, len(side.visits)), *range(common - 1, -1, -1)):
        u = side.visits[n][0]
        distance, beats = (u - origin) * side.step, torch.ge if n < common else torch.gt
        others.append(Visit(cells[n], side.place(axis, side.visits[n]), beats, distance, torch.tensor(distance, dtype=dtype, device="cpu")))
    first = cells[common] if common >= 0 else None
    return Line(axis, side.positions, first, origin * side.step, tuple(others))


def halves(x: Tensor) -> Tensor:
    """The even and the odd columns of a contiguous float32 image apart, `(N, *size) -> (2, N, *size[:-1], W / 2)`.

    Two neighbours are read as one 64-bit number, of which the processor keeps one half or the other of many at a time.
    """
    pairs = x.view(torch.int64)
    apart = scratch(x, 2, *pairs.shape).view(torch.int32)
    apart[0].copy_(pairs)
    apart[1].copy_(torch.bitwise_right_shift(pairs, 32, out=scratch(pairs, *pairs.shape)))
    return apart.view(torch.float32)


def half(axis: int, columns: slice) -> Index:
    """Every second column, as an index of `halves` of the image."""
    start = columns.start // 2
    return (columns.start % 2, *pool.at(axis, slice(start, start + len(range(columns.start, columns.stop, 2)))))


def can_be_halved(images: Tensor, side: Side) -> bool:
    """Whether windows begin at every second column of an image that `halves` takes."""
    even = images.shape[-1] % 2 == 0 and images.storage_offset() % 2 == 0 and byteorder == "little"
    return (
        bool(even) and images.dtype == torch.float32 and images.is_contiguous() and all(columns.step == 2 for _, _, columns in side.visits)
    )


def visible(*tensors: Tensor) -> bool:
    """Whether the numbers of all tensors can be looked at without waiting."""
    return not torch.compiler.is_compiling() and all(type(t) in (Tensor, Parameter) and t.device.type == "cpu" for t in tensors)


def finite(t: Tensor) -> bool:
    """Whether all numbers are finite, going by their sum: now and then False though they are."""
    try:
        return isfinite(t.sum(dtype=torch.float64 if t.dtype == torch.float64 else torch.float32).item())
    except RuntimeError:  # a tracer that records what is done with tensors does not give out their numbers
        return False


@lru_cache(maxsize=1024)
def parts(geometry: Geometry | Bins, size: tuple[int, ...], rows: int, dtype: torch.dtype, halved: bool) -> tuple[Part, ...]:
    """The windows cut into parts of about `rows` rows of pixels; adaptive windows stay together."""
    sides = [side for _, side in pool.sides(geometry, size)]
    lines = [line(axis, side, dtype, halved and axis == -2) for axis, side in zip(range(-len(size) - 1, -1), sides, strict=True)]
    if isinstance(geometry, Bins) or rows >= size[0]:
        return (Part(slice(None), slice(None), tuple(lines)),)
    (low, _), stride, extent, positions = geometry.padding[0], geometry.stride[0], geometry.extent[0], sides[0].positions
    step, found = max(1, (rows - extent) // stride + 1), []
    for i in range(0, positions, step):
        count = min(step, positions - i)
        a, b = max(0, i * stride - low), min(size[0], (i + count - 1) * stride - low + extent)
        side = pool.even(b - a, geometry.kernel[0], stride, a + low - i * stride, geometry.dilation[0], count)
        found.append(Part(slice(i, i + count), slice(a, b), (line(-len(size) - 1, side, dtype, halved and len(size) == 1), *lines[1:])))
    return tuple(found)


@lru_cache(maxsize=1024)
def origins(geometry: Geometry | Bins, size: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The numbers of the first pixel of every row of the image, `(*size[:-1], 1, 1)`, and the columns where windows begin, `(J, 1)`."""
    rows = torch.arange(0, torch.Size(size).numel(), size[-1], dtype=dtype, device="cpu").view(*size[:-1], 1, 1)
    if isinstance(geometry, Bins):
        starts = [j * size[-1] // geometry.positions[-1] for j in range(geometry.positions[-1])]
    else:
        first, count, stride = -geometry.padding[-1][0], geometry.positions(size)[-1], geometry.stride[-1]
        starts = list(range(first, first + count * stride, stride))
    return rows, torch.tensor(starts, dtype=dtype, device="cpu").view(-1, 1)


@lru_cache(maxsize=1024)
def repeated(size: tuple[int, ...], positions: tuple[int, ...]) -> tuple[Geometry, tuple[Tensor, ...]]:
    """Even windows in place of adaptive ones, and the pixels to lay side by side for them, which is cheap with the channels last.

    Shorter windows show their first pixel again.
    """
    places, lengths = [], []
    for n, count in zip(size, positions, strict=True):
        shown = [range(i * n // count, -(-(i + 1) * n // count)) for i in range(count)]
        lengths.append(max(map(len, shown)))
        places.append(torch.tensor([p for w in shown for p in (*w, *[w[0]] * (lengths[-1] - len(w)))], device="cpu"))
    kernel = tuple(lengths)
    return Geometry(kernel, kernel, ((0, 0),) * len(size), (1,) * len(size)), tuple(places)


def along(line: Line, x: Tensor, pixels: Tensor | None, out: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """The largest numbers of windows along an axis (in `out`, where they had to be computed), and their pixels.

    Without `pixels` to choose from they are counted from the first cell visited (None: it is that one).
    """
    source: Tensor | None
    if line.first is None:  # minus infinity loses to every number
        shape = list(x[line.visits[0].cell].shape)
        shape[line.axis] = line.positions
        best, source, own = (scratch(x, *shape) if out is None else out).fill_(-torch.inf), scratch(x, *shape).zero_(), True
    else:
        best, source, own = x[line.first], None if pixels is None else pixels[line.first], False
    for there, windows, beats, distance, number in line.visits:
        cell = x[there]
        pixel = number if pixels is None else pixels[there]
        win = beats(cell, best if windows is None else best[windows], out=scratch(cell, *cell.shape))
        if windows is None and not own:
            best, own = torch.maximum(best, cell, out=scratch(best, *best.shape) if out is None else out), True
            if source is not None:
                source = torch.lerp(source, pixel, win, out=win)
            else:
                source = win if distance == 1 else win.mul_(distance)
            continue
        if not own:
            fresh = scratch(best, *best.shape)
            source = fresh.zero_() if source is None else fresh.copy_(source)
            best, own = (scratch(best, *best.shape) if out is None else out).copy_(best), True
        leading, at_stake = (best, source) if windows is None else (best[windows], cast(Tensor, source)[windows])
        torch.maximum(leading, cell, out=leading)
        torch.lerp(cast(Tensor, at_stake), pixel, win, out=at_stake)
    return best, source


def of_block(x: Tensor, lines: Sequence[Line], base: Tensor, out: Tensor | None) -> tuple[Tensor, Tensor]:
    """The largest numbers and the winning pixels' numbers of a block, `(N, *size, planes) -> (N, *positions, planes)`."""
    x, pixels = along(lines[-1], x, None, out if len(lines) == 1 else None)
    pixels = base.expand_as(x) if pixels is None else pixels.add_(base)
    for line in lines[-2::-1]:
        x, pixels = along(line, x, pixels, out if line is lines[0] else None)
    return x, cast(Tensor, pixels)


@lru_cache(maxsize=1024)
def cells(geometry: Geometry | Bins, size: tuple[int, ...]) -> tuple[tuple[int, ...], Tensor]:
    """The output size, and the numbers of the pixels of every window, `(positions, cells)`.

    Windows with fewer pixels than others show their first one again.
    """
    found = [[0]]
    for (_, side), n in zip(pool.sides(geometry, size), size, strict=True):
        shown: list[list[int]] = [[] for _ in range(side.positions)]
        for _, position, there in side.visits:
            for window, pixel in zip(range(side.positions)[position], range(n)[there], strict=True):
                shown[window].append(pixel)
        found = [[row * n + pixel for row in rows for pixel in pixels] for rows in found for pixels in shown]
    most = max(map(len, found))
    positions = tuple(side.positions for _, side in pool.sides(geometry, size))
    return positions, torch.tensor([window + window[:1] * (most - len(window)) for window in found], device="cpu")


def small(x: Tensor, geometry: Geometry | Bins, size: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Winners of a small image, where calls cost more than numbers: all cells of all windows at once."""
    positions, table = cells(geometry, size)
    shape = (*x.shape[: x.ndim - len(size)], *positions)
    y, cell = (
        x.reshape(-1, 1, torch.Size(size).numel())
        .expand(-1, len(table), -1)
        .gather(-1, table.expand(x.numel() // torch.Size(size).numel(), -1, -1))
        .max(-1, keepdim=True)
    )
    return y.view(shape), table.expand(len(y), -1, -1).gather(-1, cell).view(shape).to(dtype)


def whole(x: Tensor, pooling: Pooling, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Winners where one window is the whole image."""
    d = len(pooling.geometry[0])
    y, pixels = pool.blank(x, pooling, (1,) * d), pool.blank(x, pooling, (1,) * d, dtype)
    best, winning = pool.planes(x, pooling).flatten(1, d).max(1)
    pool.planes(y, pooling).flatten(1).copy_(best.flatten(1) if best.ndim > 1 else best.unsqueeze(1))
    pool.planes(pixels, pooling).flatten(1).copy_(winning.flatten(1) if best.ndim > 1 else winning.unsqueeze(1))
    return y, pixels


def winners(x: Tensor, pooling: Pooling, dtype: torch.dtype) -> tuple[Tensor, Tensor] | None:
    """The largest number of every window and, as `dtype`, the winning pixel's number; None where only the general way leads there."""
    geometry, d = pooling.geometry, len(pooling.geometry[0])
    size = tuple(x.shape[x.ndim - d :])
    if not (visible(x) and x.is_floating_point() and x.numel() and torch.Size(size).numel() < EXACT) or 0 in geometry[0]:
        return None
    sides = [side for _, side in pool.sides(geometry, size)]
    if not all(side.visits for side in sides):
        return None
    if all(side.whole for side in sides):
        y, indices = whole(x, pooling, dtype)
        return (y, indices) if finite(y) else None
    if x.numel() <= SMALL and not pooling.channels_last and pool.someone_everywhere(geometry):
        y, indices = small(x, geometry, size, dtype)
        return (y, indices) if finite(y) else None
    precise = torch.float64 if x.dtype == torch.float64 else torch.float32
    positions = [side.positions for side in sides]
    y, indices = pool.blank(x, pooling, positions), pool.blank(x, pooling, positions, dtype)
    images, values, places = (pool.planes(t, pooling) for t in (x, y, indices))
    halved = not pooling.channels_last and can_be_halved(images, sides[-1])
    if innermost := pooling.channels_last or halved or images.shape[0] < PLANES[0] // 2:
        images, values, places = (t if pooling.channels_last else t.unsqueeze(-1) for t in (images, values, places))
    rows, columns = origins(geometry, size, precise)
    if pooling.channels_last and isinstance(geometry, Bins) and any(n % count for n, count in zip(size, geometry.positions, strict=True)):
        geometry, chosen = repeated(size, geometry.positions)
        for axis, pixels in enumerate(chosen):
            images = images.index_select(axis + 1, pixels)
            rows = rows.index_select(axis, pixels) if axis < d - 1 else rows
        size = tuple(map(len, chosen))
    n, row = images.shape[0], images[0, 0].numel()
    fitting = BLOCK // (row * size[0])
    step = max(1, fitting) if innermost else min(max(PLANES[0], fitting), PLANES[1])
    for part in parts(geometry, size, max(1, BLOCK // (row if innermost else row * step)), precise, halved):
        base = rows[part.pixels] + (columns + part.lines[-1].origin)
        for start in range(0, n, step):
            block, best, pixels = (
                t[start : start + step, at] for t, at in ((images, part.pixels), (values, part.windows), (places, part.windows))
            )
            if not innermost:
                block, best, pixels = (t.movedim(0, -1).unsqueeze(0) for t in (block, best, pixels))
            begin()
            if halved:
                block = halves(block.squeeze(-1)).unsqueeze(-1)
            elif not innermost or x.dtype != precise:
                block = scratch(columns, *block.shape).copy_(block)
            out = best if innermost and x.dtype == precise else None
            largest, winning = of_block(block, part.lines, base, out)
            pixels.copy_(winning)
            if largest is not out:
                best.copy_(largest)
    return (y, indices) if finite(y) else None
