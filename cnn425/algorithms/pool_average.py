"""Average pools the fast way: sums over windows as products with matrices of zeros and ones, for numbers that can be looked at.

    total      y = x M        M[pixel, window] = 1 where the pixel is in the window
    spread     gx = gy M^T    the adjoint

Two ways, both for any windows (padding, overhang, overlaps, adaptive):

    whole      few windows in all: M covers the image; 2 * windows operations per pixel, one call
    sides      one side after the other, on blocks that stay in the cache. Columns of contiguous images, whose neighbours would be summed
               one by one, by a product with the M of that side, cut into bands of windows; other sides, and channels that lie last, by
               adding slices, or by a product where windows are uneven

Infinity times zero is not zero, so results that are not finite are left to the general way of `cnn425.algorithms.pool`, as are traced
tensors and other devices.
"""

from collections.abc import Sequence
from functools import lru_cache
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from cnn425.algorithms import pool
from cnn425.algorithms.pool import Bins, Pooling, Side, finite, visible
from cnn425.windows import Geometry

BLOCK = 2**18  # numbers of the image in a block
WINDOWS = 64  # at most, for the way `whole`
ENTRIES = 2**16  # of its matrix
BAND = 32  # windows in a band
PAIRS = 2**24  # pixels times windows of a side: beyond, its matrix or its bands take longer to make than what they save


def pairs(side: Side, pixels: int) -> tuple[Tensor, Tensor]:
    """All pairs of a pixel and a window that shows it, as two lists of numbers."""
    window = torch.arange(side.positions, device="cpu").unsqueeze(1)
    if side.even:
        cell, there, here = side.visits[0]
        first = (window - there.start) * side.stride + here.start - cell * side.step
        end = torch.full_like(window, pixels)
    else:
        first = window * pixels // side.positions
        end = ((window + 1) * pixels + side.positions - 1) // side.positions
    pixel = first + torch.arange(side.length, device="cpu") * side.step
    shown = (pixel >= 0) & (pixel < end)
    return pixel[shown], window.expand(pixel.shape)[shown]


def membership(side: Side, pixels: int, dtype: torch.dtype) -> Tensor:
    """1 where the pixel is in the window, `(pixels, windows)`."""
    matrix = torch.zeros(pixels, side.positions, dtype=dtype, device="cpu")
    matrix[pairs(side, pixels)] = 1
    return matrix


class Band(NamedTuple):
    """Columns of a matrix, the rows that have numbers there, and this part of the matrix."""

    columns: slice
    rows: slice
    matrix: Tensor


class Plan(NamedTuple):
    """The matrix of the way `whole`, or the sides with a matrix each (None where slices are added), and the bands of the last one."""

    positions: tuple[int, ...]
    whole: Tensor | None
    sides: tuple[Side, ...]
    matrices: tuple[Tensor | None, ...]
    bands: tuple[Band, ...]
    bands_back: tuple[Band, ...]


@lru_cache(maxsize=256)
def plan(geometry: Geometry | Bins, size: tuple[int, ...], dtype: torch.dtype, channels_last: bool) -> Plan | None:
    """The plan for images of `size` pixels; None where a side is very long or has no pixels in any window."""
    sides = tuple(side for _, side in pool.sides(geometry, size))
    positions = tuple(side.positions for side in sides)
    if not all(side.visits for side in sides):
        return None
    if prod(positions) <= WINDOWS and prod(size) * prod(positions) <= ENTRIES:
        matrix = torch.ones(1, 1, dtype=dtype, device="cpu")
        for side, n in zip(sides, size, strict=True):
            matrix = torch.kron(matrix, membership(side, n, dtype))
        return Plan(positions, matrix, sides, (), (), ())
    if any(n * count > PAIRS for n, count in zip(size, positions, strict=True)):
        return None
    if all(side.whole for side in sides):
        return None  # one sum
    matrices = tuple(None if side.even else membership(side, n, dtype) for side, n in zip(sides, size, strict=True))
    if channels_last:
        return Plan(positions, None, sides, matrices, (), ())
    shown, windows = pairs(sides[-1], size[-1])
    return Plan(positions, None, sides, matrices, bands(shown, windows, positions[-1], dtype), bands(windows, shown, size[-1], dtype))


def bands(rows: Tensor, columns: Tensor, count: int, dtype: torch.dtype) -> tuple[Band, ...]:
    """The matrix of `count` columns with ones at (rows, columns), cut into bands of columns, less the rows that are empty there."""
    found, step = [], -(-count // -(-count // BAND))
    for a in range(0, count, step):
        here = (columns >= a) & (columns < a + step)
        shown, width = rows[here], min(step, count - a)
        first, end = (int(shown.min()), int(shown.max()) + 1) if len(shown) else (0, 1)
        matrix = torch.zeros(end - first, width, dtype=dtype, device="cpu")
        matrix[shown - first, columns[here] - a] = 1
        found.append(Band(slice(a, a + width), slice(first, end), matrix))
    return tuple(found)


def eligible(t: Tensor, pooling: Pooling) -> bool:
    """Whether products are precise and their results can be looked at."""
    if not (visible(t) and t.is_floating_point() and t.numel() and 0 not in pooling.geometry[0]):
        return False
    return t.dtype == torch.float64 or torch.get_float32_matmul_precision() == "highest"


def times(matrix: Tensor, t: Tensor, axis: int) -> Tensor:
    """The product of a matrix with axis `axis` of a contiguous block."""
    flat = t.reshape(prod(t.shape[:axis]), t.shape[axis], -1)
    y = flat.new_empty(flat.shape[0], matrix.shape[0], flat.shape[2])
    torch.bmm(matrix.expand(flat.shape[0], -1, -1), flat, out=y)
    return y.view(*t.shape[:axis], matrix.shape[0], *t.shape[axis + 1 :])


def added(t: Tensor, axis: int, side: Side, matrix: Tensor | None) -> Tensor:
    """The sums of windows along an axis of a block."""
    if side.identity:
        return t
    if matrix is not None:
        return times(matrix.T, t, axis)
    axis -= t.ndim
    full = [t[pool.at(axis, pixels)] for _, windows, pixels in side.visits if windows == slice(0, side.positions)]
    if len(full) > 1:
        y = full[0] + full[1]
    else:
        shape = list(t.shape)
        shape[axis] = side.positions
        y = torch.zeros(shape, dtype=t.dtype) if not full else full[0].clone(memory_format=torch.contiguous_format)
    for cell in full[2:]:
        y.add_(cell)
    for _, windows, pixels in side.visits:
        if windows != slice(0, side.positions):
            y[pool.at(axis, windows)].add_(t[pool.at(axis, pixels)])
    return y


def shared(t: Tensor, axis: int, side: Side, matrix: Tensor | None, out: Tensor) -> Tensor:
    """The adjoint of `added`, in `out`."""
    if side.identity:
        return out.copy_(t)
    if matrix is not None:
        return out.copy_(times(matrix, t, axis))
    axis -= t.ndim
    if not side.cover:
        out.zero_()
    for _, windows, pixels in side.visits:
        cell, number = out[pool.at(axis, pixels)], t[pool.at(axis, windows)]
        if side.disjoint:
            cell.copy_(number)
        else:
            cell.add_(number)
    return out


def by_bands(t: Tensor, bands: Sequence[Band], out: Tensor) -> None:
    """The product of `t` with a matrix cut into bands."""
    for columns, rows, matrix in bands:
        torch.mm(t[:, rows], matrix, out=out[:, columns])


def blocks(t: Tensor) -> range:
    """Where blocks of about BLOCK numbers begin along the first dimension of `t`, and how far apart they are."""
    step = max(1, BLOCK * t.shape[0] // t.numel())
    return range(0, t.shape[0], -(-t.shape[0] // -(-t.shape[0] // step)))


def total(x: Tensor, pooling: Pooling) -> Tensor | None:
    """The sum of every window, `(*batch, *size) -> (*batch, *positions)`; None where only the general way leads there."""
    if not eligible(x, pooling):
        return None
    d = len(pooling.geometry[0])
    found = plan(pooling.geometry, tuple(x.shape[x.ndim - d :]), x.dtype, pooling.channels_last)
    if found is None:
        return None
    if found.whole is not None and not pooling.channels_last:
        y = torch.mm(x.reshape(-1, found.whole.shape[0]), found.whole).view(*x.shape[: x.ndim - d], *found.positions)
        return y if finite(y) else None
    y = pool.blank(x, pooling, found.positions)
    images, values = pool.planes(x, pooling), pool.planes(y, pooling)
    if found.whole is not None:
        torch.bmm(found.whole.T.expand(len(images), -1, -1), images.flatten(1, d), out=values.flatten(1, d))
    else:
        starts = blocks(images)
        for start in starts:
            block, y_block = images[start : start + starts.step], values[start : start + starts.step]
            for axis in range(1, d + pooling.channels_last):
                block = added(block, axis, found.sides[axis - 1], found.matrices[axis - 1])
            if pooling.channels_last:
                y_block.copy_(block)
            else:
                by_bands(block.reshape(-1, block.shape[-1]), found.bands, y_block.view(-1, y_block.shape[-1]))
    return y if finite(y) else None


def spread(g: Tensor, pooling: Pooling, size: tuple[int, ...]) -> Tensor | None:
    """Every number to all pixels of its window, `(*batch, *positions) -> (*batch, *size)`; None where only the general way leads there."""
    if not (eligible(g, pooling) and finite(g)):
        return None
    found = plan(pooling.geometry, size, g.dtype, pooling.channels_last)
    if found is None or all(side.whole for side in found.sides):
        return None
    d = len(size)
    if found.whole is not None and not pooling.channels_last:
        return torch.mm(g.reshape(-1, found.whole.shape[1]), found.whole.T).view(*g.shape[: g.ndim - d], *size)
    gx = pool.blank(g, pooling, size)
    images, values = pool.planes(gx, pooling), pool.planes(g, pooling)
    if found.whole is not None:
        torch.bmm(found.whole.expand(len(images), -1, -1), values.flatten(1, d), out=images.flatten(1, d))
    else:
        starts = blocks(images)
        for start in starts:
            spread_block(values[start : start + starts.step], images[start : start + starts.step], found, size, pooling.channels_last)
    return gx


def spread_block(g: Tensor, gx: Tensor, found: Plan, size: tuple[int, ...], channels_last: bool) -> None:
    """`spread` of one block, the last side first."""
    d = len(size)
    if not channels_last:
        rows = gx if d == 1 else g.new_empty(*g.shape[:-1], size[-1])
        by_bands(g.reshape(-1, g.shape[-1]), found.bands_back, rows.view(-1, size[-1]))
        g = rows
    for axis in range(d - (not channels_last), 0, -1):
        out = gx if axis == 1 else g.new_empty(*g.shape[:axis], size[axis - 1], *g.shape[axis + 1 :])
        g = shared(g, axis, found.sides[axis - 1], found.matrices[axis - 1], out)
