"""Pools, two ways: the loops of `cnn425.kernels.pool`, and the definition in plain PyTorch for every other device, dtype and kind of tensor.

    winners    the largest number of every window, and the number of its pixel, in reading order of the image
    pick       the pixels that won, of another image: the tangent of a max pool
    route      the adjoint of pick: every number is added to the pixel that won
    average    the mean of every window
    share_out  the adjoint of average: every number, divided, is added to all pixels of its window

A window without pixels (a dilated one may lie wholly in the padding) has the lowest number and the pixel `NOBODY`. Half precision is
computed in float32 and rounded once. `last` says that results keep their channels last in memory, as torch's do.

The definition looks the pixels of all windows along one side up in a table, one side after the other. No step depends on the size of the
image or on its numbers, so one trace serves them all.
"""

from collections.abc import Sequence
from functools import lru_cache, partial
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cnn425.algorithms.layout import channels_last_strides
from cnn425.kernels import pool as loops
from cnn425.kernels.threads import loops_run, memory
from cnn425.windows import Adaptive, Geometry, Side

NOBODY = -1
HALF = (torch.float16, torch.bfloat16)
FLOATS = (torch.float32, torch.float64)
Windows = Geometry | Adaptive
LINES = 1 << 19  # numbers


def winners(x: Tensor, windows: Windows, last: bool) -> tuple[Tensor, Tensor]:
    """The largest numbers and their pixels, `(*batch, *size) -> (*batch, *positions)`, twice. The first of equals wins, the last NaN."""
    if x.dtype in HALF:
        y, where = winners(x.float(), windows, last)
        return y.to(x.dtype), where
    size = spatial(x, windows)
    positions = windows.positions(size)
    if not loops_run(x) or 0 in (x.numel(), *positions) or prod(size) >= 2**31:
        return winners_by_definition(x, windows, last)
    sides = known_tables(windows, size)
    y, where = blank(x, positions, last), blank(x, positions, last, torch.int32)
    M, *inside, K = planes(x, size, last)
    rows, J, numbers = y.numel() // (positions[-1] * K), positions[-1], dense(x, len(size), last)
    tables, least = [memory(side, *side.shape) for side in sides.tables], type(memory(x)[0])(lowest(x.dtype))
    if last or sides.large:
        image, results = (M, *inside[:-1], inside[-1] * K), (rows, J * K)
        arguments = memory(numbers, *image), K, *tables, least, memory(y, *results), memory(where, *results)
        loops.max_pool_interleaved(rows, y.numel() * sides.cells, *arguments)
    else:
        results = (M, rows // M, J)
        arguments = memory(numbers, M, *inside), *tables, least, memory(y, *results), memory(where, *results)
        loops.max_pool(-(-M // loops.LANES), y.numel() * sides.cells, *arguments)
    return y, where


def route(g: Tensor, where: Tensor, size: Sequence[int], last: bool) -> Tensor:
    """Every number added to the pixel that won: `(*batch, *positions) -> (*batch, *size)`."""
    if g.dtype in HALF:
        return route(g.float(), where, size, last).to(g.dtype)
    if not loops_run(g, where) or g.numel() == 0:
        return route_by_definition(g, where, size, last)
    gx = blank(g, size, last)
    M, *_, K = planes(gx, size, last)
    parts = cuts(M, K)
    g, where = dense(g, len(size), last), dense(where, len(size), last)
    arguments = memory(g, M, g.numel() // M), memory(where, M, g.numel() // M), parts, memory(gx, M, prod(size), K)
    loops.route(M * parts, g.numel() + gx.numel(), *arguments)
    return gx


def pick(t: Tensor, where: Tensor, dimensions: int, last: bool) -> Tensor:
    """The pixels that won, of another image: `(*batch, *size) -> (*batch, *positions)`; 0 where no pixel won."""
    size, positions = t.shape[t.ndim - dimensions :], where.shape[where.ndim - dimensions :]
    if not loops_run(t, where) or t.dtype not in FLOATS or where.numel() == 0:
        return pick_by_definition(t, where, dimensions, last)
    y = blank(t, positions, last)
    M, *_, K = planes(t, size, last)
    t, where = dense(t, dimensions, last), dense(where, dimensions, last)
    windows = prod(positions)
    loops.pick(M, y.numel(), memory(t, M, prod(size), K), memory(where, M, windows, K), memory(y, M, windows, K))
    return y


def average(x: Tensor, windows: Windows, last: bool, divisor: int, padding: bool) -> Tensor:
    """The sum of every window, divided by `divisor`, or if that is 0 by its cells (in the padding too, with `padding`)."""
    if x.dtype in HALF:
        return average(x.float(), windows, last, divisor, padding).to(x.dtype)
    size = spatial(x, windows)
    positions = windows.positions(size)
    if not loops_run(x) or x.dtype not in FLOATS or 0 in (x.numel(), *positions):
        return average_by_definition(x, windows, last, divisor, padding)
    y = blank(x, positions, last)
    summed(dense(x, len(size), last), size, known_tables(windows, size, padding), last, divisor, y)
    return y


def share_out(g: Tensor, windows: Windows, last: bool, divisor: int, padding: bool, size: Sequence[int]) -> Tensor:
    """The adjoint of `average`: `(*batch, *positions) -> (*batch, *size)`."""
    if g.dtype in HALF:
        return share_out(g.float(), windows, last, divisor, padding, size).to(g.dtype)
    if not loops_run(g) or g.dtype not in FLOATS or g.numel() == 0:
        return share_out_by_definition(g, windows, last, divisor, padding, size)
    if divisor == 0:
        g = divided(g, windows, size, 0, padding)
    gx = blank(g, size, last)
    summed(dense(g, len(size), last), spatial(g, windows), known_adjoint_tables(windows, tuple(size)), last, divisor or 1, gx)
    return gx


def summed(x: Tensor, size: Sequence[int], sides: "Sides", last: bool, divisor: int, y: Tensor) -> None:
    """Write the sums of windows over the image `x`, which is in one stretch of memory, to `y`."""
    K = y.shape[y.ndim - len(size) - 1] if last else 1
    *above, W = (*(1,) * (3 - len(size)), *size)
    J = sides.tables[2].shape[1]
    M, rows, tables = x.numel() // (K * W * prod(above)), y.numel() // (J * K), [memory(side, *side.shape) for side in sides.tables]
    if last or sides.large:
        arguments = memory(x, M, *above, W * K), K, *tables, divisor, memory(y, rows, J * K)
        loops.sum_pool_interleaved(rows, y.numel() * sides.cells, *arguments)
    else:
        loops.sum_pool(-(-M // loops.LANES), y.numel() * sides.cells, memory(x, M, *above, W), *tables, divisor, memory(y, M, rows // M, J))


# ---- Images as loops see them ------------------------------------------------------------------------------------------------------------


def spatial(x: Tensor, windows: Windows) -> tuple[int, ...]:
    """The size of an image in pixels."""
    return tuple(x.shape[x.ndim - windows.dimensions :])


def planes(x: Tensor, size: Sequence[int], last: bool) -> tuple[int, ...]:
    """The shape `(M, D, H, W, K)` in which loops see an image that is not empty, as described in `cnn425.kernels.pool`."""
    K = x.shape[-len(size) - 1] if last else 1
    return (prod(x.shape[: x.ndim - len(size)]) // K, *(1,) * (3 - len(size)), *size, K)


def cuts(images: int, neighbours: int) -> int:
    """Into how many parts the neighbours of few images are cut, so that threads have something to share."""
    return 1 if images >= 8 else max(1, neighbours // 32)


def dense(x: Tensor, dimensions: int, last: bool) -> Tensor:
    """The image in one stretch of memory, its channels last or not: itself, if it is so stored."""
    if not last:
        return x.contiguous()
    return x.movedim(-dimensions - 1, -1).contiguous()


def blank(x: Tensor, size: Sequence[int], last: bool, dtype: torch.dtype | None = None) -> Tensor:
    """Memory for images like `x` of `size` pixels, in the layout of the results."""
    shape = (*x.shape[: x.ndim - len(size)], *size)
    if not last:
        return x.new_empty(shape, dtype=dtype)
    batch = (1,) * (len(size) + 2 - x.ndim)
    return x.new_empty_strided(shape, channels_last_strides((*batch, *shape))[len(batch) :], dtype=dtype)


class Sides(NamedTuple):
    """The windows along three sides as loops want them, the most cells that a window has, and whether interleaved lines would be too many."""

    tables: tuple[Tensor, ...]
    cells: int
    large: bool


def tables(windows: Windows, size: tuple[int, ...], padding: bool = False, adjoint: bool = False) -> Sides:
    """The windows of images of `size` pixels; with `adjoint`, for each pixel the windows that show it."""
    sides = [torch.tensor([[0], [1], [1], [1]], device="cpu")] * (3 - len(size))
    for dim, n in enumerate(size):
        side = windows.side(dim, n, torch.device("cpu"))
        first, cells = side.showing(n) if adjoint else side.inside(n)
        counted = torch.ones_like(cells) if adjoint else side.counted if padding else cells
        sides.append(torch.stack((first, cells, counted, torch.full_like(first, 1 if adjoint else side.step))))
    longest = [int(side[1].max()) if side.numel() else 0 for side in sides]
    width = windows.positions(size)[-1] if adjoint else size[-1]
    lines = prod(longest[:2]) * int(sides[1][3].max() if sides[1].numel() else 0) * width * loops.LANES
    return Sides(tuple(sides), prod(longest), lines > LINES)


known_tables = lru_cache(maxsize=256)(tables)
known_adjoint_tables = lru_cache(maxsize=256)(partial(tables, adjoint=True))


def lowest(dtype: torch.dtype) -> float:
    """The number that never wins: minus infinity, or the least integer."""
    return -torch.inf if dtype.is_floating_point else torch.iinfo(dtype).min


# ---- The definition ----------------------------------------------------------------------------------------------------------------------


def pixels_of(side: Side, size: int) -> tuple[Tensor, Tensor]:
    """The pixels of every window along one side, `(positions, cells)`, and which of them are in the window and in the image."""
    cells = torch.arange(side.longest, device=side.first.device)
    pixels = side.first.unsqueeze(1) + cells * side.step
    return pixels, (pixels >= 0) & (pixels < size) & (cells < side.cells.unsqueeze(1))


def look_up(x: Tensor, axis: int, pixels: Tensor) -> Tensor:
    """`x[..., pixels, ...]` along `axis`, counted from the end: windows and cells in its place, the cells at `axis`."""
    place: Any = (..., pixels, *(slice(None),) * (-1 - axis))
    return x[place]


def before(axis: int, t: Tensor) -> Tensor:
    """`t` with a dimension of one number for each dimension behind `axis`."""
    return t[(..., *(None,) * (-1 - axis))]


def stored(y: Tensor, dimensions: int, last: bool) -> Tensor:
    """`y` in the memory layout of the results."""
    return blank(y, y.shape[y.ndim - dimensions :], last).copy_(y)


def winners_by_definition(x: Tensor, windows: Windows, last: bool) -> tuple[Tensor, Tensor]:
    """`winners`: a cell outside of the image shows a pixel of the same window again, which changes nothing."""
    size = spatial(x, windows)
    numbers = torch.zeros((), dtype=torch.int64, device=x.device)
    for n in size:
        numbers = numbers.unsqueeze(-1) * n + torch.arange(n, device=x.device)
    numbers = numbers.expand_as(x)
    for axis in range(-1, -1 - len(size), -1):
        pixels, counts = pixels_of(windows.side(len(size) + axis, size[axis], x.device), size[axis])
        first = torch.where(counts, pixels, size[axis]).amin(1, keepdim=True)
        final = torch.where(counts, pixels, NOBODY).amax(1, keepdim=True)
        pixels = torch.minimum(torch.maximum(pixels, first), final).clamp(min=0)
        shown, places = look_up(x, axis, pixels), before(axis, torch.arange(pixels.shape[1], device=x.device))
        cell = torch.maximum(shown.argmax(axis), torch.where(shown.isnan(), places, 0).amax(axis)).unsqueeze(axis)
        nobody = before(axis, final.squeeze(1) == NOBODY)
        x = torch.where(nobody, lowest(x.dtype), shown.gather(axis, cell).squeeze(axis))
        numbers = torch.where(nobody, NOBODY, look_up(numbers, axis, pixels).gather(axis, cell).squeeze(axis))
    return stored(x, len(size), last), stored(numbers, len(size), last)


def route_by_definition(g: Tensor, where: Tensor, size: Sequence[int], last: bool) -> Tensor:
    """`route`: one addition per window, along one dimension, which torch can do in a fixed order on every device."""
    d, images = len(size), g.shape[: g.ndim - len(size)]
    start = torch.arange(images.numel(), device=g.device).view(*images, *(1,) * d) * prod(size)
    places, upstream = start + where.clamp(min=0), torch.where(where == NOBODY, 0, g)
    gx = g.new_zeros(images.numel() * prod(size)).scatter_add(0, places.flatten(), upstream.flatten())
    return stored(gx.view(*images, *size), d, last)


def pick_by_definition(t: Tensor, where: Tensor, dimensions: int, last: bool) -> Tensor:
    """`pick`, by one gather."""
    found = t.flatten(-dimensions).gather(-1, where.flatten(-dimensions).clamp(min=0).long()).view(where.shape)
    return stored(torch.where(where == NOBODY, 0, found), dimensions, last)


def average_by_definition(x: Tensor, windows: Windows, last: bool, divisor: int, padding: bool) -> Tensor:
    """`average`: cells outside of the image count as zero; means of integers are cut off towards zero."""
    size = spatial(x, windows)
    for axis in range(-1, -1 - len(size), -1):
        if isinstance(windows, Adaptive) and windows.output[axis] == 1:
            x = x.sum(axis, keepdim=True)
        else:
            pixels, counts = pixels_of(windows.side(len(size) + axis, size[axis], x.device), size[axis])
            shown = look_up(x, axis, torch.where(counts, pixels, 0))
            x = torch.where(before(axis, counts), shown, 0).sum(axis)
    return stored(divided(x, windows, size, divisor, padding), len(size), last)


def share_out_by_definition(g: Tensor, windows: Windows, last: bool, divisor: int, padding: bool, size: Sequence[int]) -> Tensor:
    """`share_out`, one side after the other."""
    g = divided(g, windows, size, divisor, padding)
    for axis in range(-len(size), 0):
        pixels, counts = pixels_of(windows.side(len(size) + axis, size[axis], g.device), size[axis])
        shares = torch.where(before(axis, counts), g.unsqueeze(g.ndim + axis + 1), 0).flatten(axis - 1, axis)
        zeros = g.new_zeros((*g.shape[: g.ndim + axis], size[axis], *g.shape[g.ndim + axis + 1 :]))
        g = zeros.index_add(axis, torch.where(counts, pixels, 0).flatten(), shares)
    return stored(g, len(size), last)


def divided(y: Tensor, windows: Windows, size: Sequence[int], divisor: int, padding: bool) -> Tensor:
    """`y (*batch, *positions)` divided by `divisor`, or if that is 0 by the number of cells in each window."""
    cells: Any = divisor
    if divisor == 0:
        cells = torch.ones((), dtype=torch.int64, device=y.device)
        for dim, n in enumerate(size):
            side = windows.side(dim, n, y.device)
            cells = cells.unsqueeze(-1) * (side.counted if padding else side.inside(n)[1])
    return y.div(cells, rounding_mode=None if y.is_floating_point() or y.is_complex() else "trunc")
