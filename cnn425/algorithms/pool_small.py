"""Max pools of small images, where calls cost more than numbers: all cells of all windows at once, by one table of pixel numbers."""

from functools import lru_cache
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from cnn425.algorithms import pool
from cnn425.algorithms.pool import Bins, Pooling
from cnn425.algorithms.pool_places import starts
from cnn425.windows import Geometry

SMALL = 2**12  # cells of all windows of all planes


class Table(NamedTuple):
    """The output size, the pixels of every window one after the other, the same counted as results are, and where each window begins."""

    positions: tuple[int, ...]
    pixels: Tensor
    places: Tensor
    begins: Tensor  # (*positions)
    cells: int


def table(geometry: Geometry | Bins, size: tuple[int, ...], dtype: torch.dtype) -> Table:
    """The pixels of every window; those with fewer pixels than others show their first one again. Places are offsets or (int64) numbers."""
    found = [[0]]
    for (_, side), n in zip(pool.sides(geometry, size), size, strict=True):
        shown: list[list[int]] = [[] for _ in range(side.positions)]
        for _, position, there in side.visits:
            for window, pixel in zip(range(side.positions)[position], range(n)[there], strict=True):
                shown[window].append(pixel)
        found = [[row * n + pixel for row in rows for pixel in pixels] for rows in found for pixels in shown]
    most = max(map(len, found))
    pixels = torch.tensor([window + window[:1] * (most - len(window)) for window in found], device="cpu")
    first = 0 if dtype == torch.int64 else starts(geometry, size).view(-1, 1)
    positions = tuple(side.positions for _, side in pool.sides(geometry, size))
    begins = torch.arange(0, pixels.numel(), most, device="cpu").view(positions)
    return Table(positions, pixels.flatten(), (pixels - first).to(dtype).flatten(), begins, most)


@lru_cache(maxsize=1024)
def small_table(pooling: Pooling, shape: tuple[int, ...], dtype: torch.dtype) -> Table | None:
    """The table of a small image; None where it is not this file's. Every window must have a pixel."""
    size = shape[len(shape) - len(pooling.geometry[0]) :]
    if prod(shape) > SMALL or not pool.someone_everywhere(pooling.geometry):
        return None
    if isinstance(pooling.geometry, Bins):
        cells = [n + count for n, count in zip(size, pooling.geometry.positions, strict=True)]
    else:
        cells = [k * count for k, count in zip(pooling.geometry.kernel, pooling.geometry.positions(size), strict=True)]
    return table(pooling.geometry, size, dtype) if prod(shape) * prod(cells) <= SMALL * prod(size) else None


def small(x: Tensor, pooling: Pooling, size: tuple[int, ...], found: Table) -> tuple[Tensor, Tensor]:
    """The largest number of every window and the winning pixel's offset or number."""
    positions, pixels, places, begins, cells = found
    if not pooling.channels_last:
        shown = x.reshape(-1, prod(size)).index_select(1, pixels).view(*x.shape[: x.ndim - len(size)], *positions, cells)
        y, cell = shown.max(-1)
        return y, places.take(cell.add_(begins))
    images = pool.planes(x, pooling).flatten(1, -2)
    n, _, channels = images.shape
    y, cell = images.index_select(1, pixels).view(n, *positions, cells, channels).max(-2)
    y, where = y.movedim(-1, 1), places.take(cell.add_(begins.unsqueeze(-1))).movedim(-1, 1)
    return (y, where) if x.ndim == len(size) + 2 else (y.squeeze(0), where.squeeze(0))


def small_values(x: Tensor, pooling: Pooling, size: tuple[int, ...], found: Table) -> Tensor:
    """The largest number of every window."""
    if not pooling.channels_last:
        shown = x.reshape(-1, prod(size)).index_select(1, found.pixels)
        return shown.view(*x.shape[: x.ndim - len(size)], *found.positions, found.cells).amax(-1)
    images = pool.planes(x, pooling).flatten(1, -2)
    y = images.index_select(1, found.pixels).view(len(images), *found.positions, found.cells, -1).amax(-2).movedim(-1, 1)
    return y if x.ndim == len(size) + 2 else y.squeeze(0)
