"""Pools by tables of pixels: no step depends on the size of the image or on its numbers, so that one trace serves them all.

One side of the window after the other, the last dimension first, as in `cnn425.algorithms.pool`; but the pixels of all windows along a side
are looked up at once, by a table of their numbers that is computed on the way:

    table    pixels[i, u] = start of window i + u * step, and which of these are in the window and in the image
    winners  the largest of x[..., pixels], by its place; a cell outside of the image shows a pixel of the same window again
    total    the sum of x[..., pixels], where cells outside of the image count as zero
    spread   the adjoint of total: every number is added to the pixels of its window

For traces, and for long sides with uneven windows: a table is made at once, a list of visits one by one.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cnn425.algorithms.pool import NOBODY, Bins, Pooling, blank, lowest
from cnn425.windows import Geometry


def table(geometry: Geometry | Bins, dim: int, size: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """The pixels of every window along one dimension, `(positions, cells)`, and which of them count."""
    n = size[dim]
    if isinstance(geometry, Bins):
        count, step = geometry.positions[dim], 1
        i, m = torch.arange(count, device=device), max(count, 1)
        start, end = i * n // m, ((i + 1) * n + m - 1) // m
        cells = torch.arange(n // m + 2, device=device)  # no window is longer
    else:
        count, step = geometry.positions(size)[dim], geometry.dilation[dim]
        start = torch.arange(count, device=device) * geometry.stride[dim] - geometry.padding[dim][0]
        end = start + geometry.kernel[dim] * step
        cells = torch.arange(geometry.kernel[dim], device=device)
    pixels = start.unsqueeze(1) + cells * step
    return pixels, (pixels >= 0) & (pixels < n) & (pixels < end.unsqueeze(1))


def look_up(x: Tensor, axis: int, pixels: Tensor) -> Tensor:
    """`x[..., pixels, ...]` along `axis`, counted from the end: windows and cells in its place, the cells at `axis`."""
    place: Any = (..., pixels, *(slice(None),) * (-1 - axis))
    return x[place]


def before(axis: int, t: Tensor) -> Tensor:
    """`t` with a dimension of one number for each dimension behind `axis`."""
    return t[(..., *(None,) * (-1 - axis))]


def winners(x: Tensor, pooling: Pooling) -> tuple[Tensor, Tensor]:
    """The largest number of every window, and the number of its pixel: of equal numbers the first, of several NaNs the last."""
    d, like = len(pooling.geometry[0]), x
    size = x.shape[x.ndim - d :]
    numbers = torch.zeros((), dtype=torch.int64, device=x.device)
    for n in size:
        numbers = numbers.unsqueeze(-1) * n + torch.arange(n, device=x.device)
    numbers = numbers.expand_as(x)
    for axis in range(-1, -1 - d, -1):
        pixels, counts = table(pooling.geometry, d + axis, size, x.device)
        first, last = (
            torch.where(counts, pixels, size[axis]).amin(1, keepdim=True),
            torch.where(counts, pixels, NOBODY).amax(1, keepdim=True),
        )
        pixels = torch.minimum(torch.maximum(pixels, first), last).clamp(min=0)
        shown, places = look_up(x, axis, pixels), before(axis, torch.arange(pixels.shape[1], device=x.device))
        cell = torch.maximum(shown.argmax(axis), torch.where(shown.isnan(), places, 0).amax(axis)).unsqueeze(axis)
        nobody = before(axis, last.squeeze(1) == NOBODY)
        x = torch.where(nobody, lowest(x.dtype), shown.gather(axis, cell).squeeze(axis))
        numbers = torch.where(nobody, NOBODY, look_up(numbers, axis, pixels).gather(axis, cell).squeeze(axis))
    positions = x.shape[x.ndim - d :]
    return blank(like, pooling, positions).copy_(x), blank(like, pooling, positions, torch.int64).copy_(numbers)


def total(x: Tensor, pooling: Pooling) -> Tensor:
    """The sum of every window: `(*batch, *size) -> (*batch, *positions)`."""
    d, like = len(pooling.geometry[0]), x
    size = x.shape[x.ndim - d :]
    for axis in range(-1, -1 - d, -1):
        if isinstance(pooling.geometry, Bins) and pooling.geometry.positions[axis] == 1:
            x = x.sum(axis, keepdim=True)
        else:
            pixels, counts = table(pooling.geometry, d + axis, size, x.device)
            shown = look_up(x, axis, torch.where(counts, pixels, 0))
            x = torch.where(before(axis, counts), shown, 0).sum(axis)
    return blank(like, pooling, x.shape[x.ndim - d :]).copy_(x)


def spread(g: Tensor, pooling: Pooling, size: Sequence[int]) -> Tensor:
    """The adjoint of `total`: every number goes to all pixels of its window, `(*batch, *positions) -> (*batch, *size)`."""
    d, like = len(size), g
    for axis in range(-d, 0):
        pixels, counts = table(pooling.geometry, d + axis, size, g.device)
        shares = torch.where(before(axis, counts), g.unsqueeze(g.ndim + axis + 1), 0).flatten(axis - 1, axis)
        zeros = g.new_zeros((*g.shape[: g.ndim + axis], size[axis], *g.shape[g.ndim + axis + 1 :]))
        g = zeros.index_add(axis, torch.where(counts, pixels, 0).flatten(), shares)
    return blank(like, pooling, size).copy_(g)
