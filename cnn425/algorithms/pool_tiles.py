"""Average pools whose windows tile the image: every pixel is in exactly one window.

With the channels last both ways are a matter of shape: cut each side of the image in two, window and cell, and sum over the cells; or copy
the window's number into all its cells. In a contiguous image the neighbours along a row would be summed one by one; there the last side is
a matrix product with a matrix of zeros and ones, where windows are large and few. Infinity times zero is not zero, so images and gradients
that are not finite go the general way of `cnn425.algorithms.pool`, as do traced tensors and other devices.
"""

from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor

from cnn425.algorithms import pool
from cnn425.algorithms.pool import Pooling, Side
from cnn425.algorithms.pool_winners import finite, visible

BLOCK = 2**17  # numbers of the image in a block
FEW = 4  # cells along a side: fewer are added faster than reduced
MANY = 32  # windows along the last side: with more a matrix product, mostly of zeros, takes longer


def tiles(t: Tensor, pooling: Pooling, size: tuple[int, ...]) -> list[Side] | None:
    """The sides of windows that tile an image of `size` pixels; None if they do not, or if `t` is not for this file."""
    if not (visible(t) and t.is_floating_point() and t.numel()) or 0 in pooling.geometry[0]:
        return None
    sides = [side for _, side in pool.sides(pooling.geometry, size)]
    plain = pooling.channels_last or torch.get_float32_matmul_precision() == "highest"
    tiled = all(side.cover and side.positions * len(side.visits) == n for side, n in zip(sides, size, strict=True))
    fitting = pooling.channels_last or (len(sides[-1].visits) >= FEW and sides[-1].positions <= MANY)
    return sides if plain and tiled and fitting and not all(side.whole for side in sides) else None


@lru_cache(maxsize=256)
def membership(pixels: int, windows: int, dtype: torch.dtype) -> Tensor:
    """1 where the pixel is in the window, `(pixels, windows)`."""
    return torch.eye(windows, dtype=dtype, device="cpu").repeat_interleave(pixels // windows, 0)


def blocks(x: Tensor) -> Iterator[slice]:
    """Planes `(planes, *size)` in blocks that stay in the cache."""
    step = max(1, BLOCK * x.shape[0] // x.numel())
    return (slice(n, n + step) for n in range(0, x.shape[0], step))


def summed(x: Tensor, axis: int, side: Side) -> Tensor:
    """The sums of the windows along `axis`."""
    if (count := len(side.visits)) == 1:
        return x
    cells = x.unflatten(axis, (side.positions, count))
    if count >= FEW:
        return cells.sum(axis + 1)
    first, second, *others = cells.unbind(axis + 1)
    total = first + second
    for cell in others:
        total += cell
    return total


def total(x: Tensor, pooling: Pooling) -> Tensor | None:
    """The sum of every window, `(*batch, *size) -> (*batch, *positions)`; None where only the general way leads there."""
    size = tuple(x.shape[x.ndim - len(pooling.geometry[0]) :])
    sides = tiles(x, pooling, size)
    if sides is None or (pooling.channels_last and max(len(side.visits) for side in sides) < FEW):
        return None
    y = pool.blank(x, pooling, [side.positions for side in sides])
    images, values = pool.planes(x, pooling), pool.planes(y, pooling)
    if pooling.channels_last:
        for axis, side in enumerate(sides, 1):
            images = summed(images, axis, side)
        values.copy_(images)
        return y
    matrix = membership(size[-1], sides[-1].positions, x.dtype)
    for block in blocks(images):
        part = images[block]
        for axis, side in enumerate(sides[:-1], 1):
            part = summed(part, axis, side)
        values[block].flatten(0, -2).copy_(part.flatten(0, -2) @ matrix)
    return y if finite(y) else None


def spread(g: Tensor, pooling: Pooling, size: tuple[int, ...]) -> Tensor | None:
    """Every number to all pixels of its window, `(*batch, *positions) -> (*batch, *size)`; None where only the general way leads there."""
    sides = tiles(g, pooling, size)
    if sides is None or not (pooling.channels_last or finite(g)):
        return None
    gx = pool.blank(g, pooling, size)
    images, values = pool.planes(gx, pooling), pool.planes(g, pooling)
    if pooling.channels_last:
        for axis, side in enumerate(sides):
            images = images.unflatten(2 * axis + 1, (side.positions, len(side.visits)))
            values = values.unsqueeze(2 * axis + 2)
        images.copy_(values)
        return gx
    matrix = membership(size[-1], sides[-1].positions, g.dtype).T
    for block in blocks(images):
        cells, lines = images[block], values[block] @ matrix
        for axis, side in enumerate(sides[:-1]):
            cells = cells.unflatten(2 * axis + 1, (side.positions, len(side.visits)))
            lines = lines.unsqueeze(2 * axis + 2)
        cells.copy_(lines)
    return gx
