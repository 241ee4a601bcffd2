"""Pools, two ways: the loops of `cnn425.kernels.pool`, and the definition in plain PyTorch for everything else.

    winners    the largest number of every window, and the number of its pixel, in reading order of the image
    pick       the pixels that won, of another image: the tangent of a max pool
    route      the adjoint of pick: every number is added to the pixel that won
    average    the mean of every window
    share_out  the adjoint of average: every number, divided, is added to all pixels of its window

A window without pixels (a dilated one may lie wholly in the padding) has the lowest number and the pixel `NO_PIXEL`. Half precision is
computed in float32 and rounded once. `last` says that results keep their channels last in memory, as torch's do.

The definition looks up the pixels of all windows in a table, one side after the other. No step depends on the size of the
image or on its numbers, so one trace serves them all.
"""

from collections.abc import Sequence
from functools import lru_cache, partial
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cnn425.algorithms.layout import FLOATS, HALF, strides_of
from cnn425.compat import tracing_state
from cnn425.kernels import pool as loops
from cnn425.kernels.threads import loops_run, memory
from cnn425.windows import Geometry, Side, Windows

NO_PIXEL = -1
LINES = 1 << 19  # numbers of interleaved lines


def winners(x: Tensor, windows: Windows, last: bool) -> tuple[Tensor, Tensor]:
    """The largest numbers and their pixels, `(*batch, *size) -> (*batch, *positions)` twice. Of equals the first wins, of NaNs the last."""
    if x.dtype in HALF:
        y, where = winners(x.float(), windows, last)
        return y.to(x.dtype), where
    if not loops_run(x) or x.dtype not in FLOATS or (plan := known_plan(windows, x.shape, last)) is None:
        return winners_by_definition(x, windows, last)
    where = blank(x, plan.shape, plan.strides, torch.int32)
    return reduced(x, plan, last, 1, where), where


def route(g: Tensor, where: Tensor, size: Sequence[int], last: bool) -> Tensor:
    """Every number added to the pixel that won: `(*batch, *positions) -> (*batch, *size)`."""
    if g.dtype in HALF:
        return route(g.float(), where, size, last).to(g.dtype)
    if not loops_run(g, where) or where.dtype != torch.int32 or where.shape != g.shape or g.dtype not in FLOATS or g.numel() == 0:
        return route_by_definition(g, where, size, last)
    d, numbers, pixels = len(size), g.numel(), prod(size)
    shape = (*g.shape[: g.ndim - d], *size)
    gx, K = blank(g, shape, channels_last(shape, d) if last else None), shape[-d - 1] if last else 1
    M = gx.numel() // (pixels * K)
    upstream, places = dense(g, d, last), dense(where, d, last)
    arguments = memory(upstream, M, numbers // M), memory(places, M, numbers // M), memory(gx, M, pixels, K)
    loops.route(M, numbers + gx.numel(), *arguments)
    return gx


def pick(t: Tensor, where: Tensor, dimensions: int, last: bool) -> Tensor:
    """The pixels that won, of another image: `(*batch, *size) -> (*batch, *positions)`; 0 where no pixel won."""
    if not loops_run(t, where) or where.dtype != torch.int32 or t.dtype not in FLOATS or where.numel() == 0:
        return pick_by_definition(t, where, dimensions, last)
    y = blank(t, where.shape, channels_last(where.shape, dimensions) if last else None)
    K, Q, P = where.shape[-dimensions - 1] if last else 1, prod(where.shape[-dimensions:]), prod(t.shape[-dimensions:])
    M = y.numel() // (Q * K)
    t, where = dense(t, dimensions, last), dense(where, dimensions, last)
    loops.pick(M, y.numel(), memory(t, M, P, K), memory(where, M, Q, K), memory(y, M, Q, K))
    return y


def average(x: Tensor, windows: Windows, last: bool, divisor: int, padding: bool) -> Tensor:
    """The sum of every window, divided by `divisor`, or, if that is 0, by its number of cells (in the padding too, with `padding`)."""
    if x.dtype in HALF:
        return average(x.float(), windows, last, divisor, padding).to(x.dtype)
    if not loops_run(x) or x.dtype not in FLOATS or windows.is_global or (plan := known_plan(windows, x.shape, last, padding)) is None:
        return average_by_definition(x, windows, last, divisor, padding)
    return reduced(x, plan, last, divisor)


def share_out(g: Tensor, windows: Windows, last: bool, divisor: int, padding: bool, size: Sequence[int]) -> Tensor:
    """The adjoint of `average`: `(*batch, *positions) -> (*batch, *size)`."""
    if g.dtype in HALF:
        return share_out(g.float(), windows, last, divisor, padding, size).to(g.dtype)
    shape = (*g.shape[: g.ndim - len(size)], *size)
    if not loops_run(g) or g.dtype not in FLOATS or windows.is_global or (plan := known_adjoint_plan(windows, shape, last)) is None:
        return share_out_by_definition(g, windows, last, divisor, padding, size)
    cells = divisor or known_cells(windows, tuple(size), padding)
    if isinstance(cells, Tensor):
        g, cells = g / cells, 1
    return reduced(g, plan, last, cells)


def reduced(x: Tensor, plan: "Plan", last: bool, divisor: int, where: Tensor | None = None) -> Tensor:
    """The means of the windows, or, if `where` is given to be filled, the maxima; by a loop over rows or over interleaved images."""
    y, numbers = blank(x, plan.shape, plan.strides), dense(x, plan.dimensions, last)
    image = memory(numbers, *plan.image), *plan.neighbours, *plan.tables
    pixels = memory(x.new_empty(0, dtype=torch.int32), 0, 0) if where is None else memory(where, *plan.rows)
    run = loops.pool_rows if plan.neighbours else loops.pool_images
    run(plan.units, plan.steps, *image, int(where is None), divisor, memory(y, *plan.rows), pixels)
    return y


# ---- Images as loops see them ------------------------------------------------------------------------------------------------------------


def spatial(x: Tensor, windows: Windows) -> tuple[int, ...]:
    """The size of an image in pixels."""
    return tuple(x.shape[x.ndim - windows.dimensions :])


def dense(x: Tensor, dimensions: int, last: bool) -> Tensor:
    """The image in dense memory, contiguous or with its channels last; without a copy if it has that layout."""
    if not last:
        return x.contiguous()
    if dimensions == 2 and x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last):
        return x  # two operations less than a view
    return x.movedim(-dimensions - 1, -1).contiguous()


def channels_last(shape: Sequence[int], dimensions: int) -> tuple[int, ...]:
    """The strides of an image, or a batch of them, with the channels last in memory."""
    alone = (1,) * (dimensions + 2 - len(shape))
    return strides_of((*alone, *shape), torch.channels_last)[len(alone) :]


def blank(x: Tensor, shape: Sequence[int], strides: Sequence[int] | None, dtype: torch.dtype | None = None) -> Tensor:
    """Memory for images like `x`, contiguous or in the given strides."""
    return x.new_empty(shape, dtype=dtype) if strides is None else x.new_empty_strided(shape, strides, dtype=dtype)


class Plan(NamedTuple):
    """What loops need to compute a pool."""

    shape: tuple[int, ...]  # of the result
    strides: tuple[int, ...] | None  # of the result, if not contiguous
    dimensions: int
    image: tuple[int, ...]
    rows: tuple[int, ...]
    neighbours: tuple[int, ...]  # K, contiguous numbers of different images; empty if images are interleaved
    tables: list[tuple[object, ...]]
    kept: list[Tensor]  # the memory of the tables
    units: int
    steps: int


def plan(windows: Windows, shape: tuple[int, ...], last: bool, padding: bool = False, adjoint: bool = False) -> Plan | None:
    """The plan for images of a shape; with `adjoint`, over the windows that show each pixel. None where loops compute nothing."""
    d = windows.dimensions
    size, ones = tuple(shape[len(shape) - d :]), (1,) * (3 - d)
    positions = windows.positions(size)
    if 0 in (*shape, *positions) or prod(size) >= 2**31:
        return None
    kept = [torch.tensor([[0], [1], [1], [1]], device="cpu") for _ in ones]
    for dim, n in enumerate(size):
        side = windows.side(dim, n, torch.device("cpu"))
        first, cells = side.showing(n) if adjoint else side.inside(n)
        counted = torch.ones_like(cells) if adjoint else side.counted if padding else cells
        kept.append(torch.stack((first, cells, counted, torch.full_like(first, 1 if adjoint else side.step))))
    source, target = (positions, size) if adjoint else (size, positions)
    result, K = (*shape[: len(shape) - d], *target), shape[-d - 1] if last else 1
    M, longest = prod(shape[: len(shape) - d]) // K, [int(side[1].max()) for side in kept]
    *above, W = (*ones, *source)
    long = prod(longest[:2]) * int(kept[1][3].max()) * W * loops.IMAGES > LINES
    abreast = M == 1 or (M < loops.IMAGES and isinstance(windows, Geometry) and windows.stride[-1] == 1)
    rows = prod(result) // (target[-1] * K)
    tables, steps = [memory(side, *side.shape) for side in kept], prod(result) * prod(longest)
    strides = channels_last(result, d) if last else None
    if K > 1 or long or abreast:  # the windows of a row are computed together
        return Plan(result, strides, d, (M, *above, W * K), (rows, target[-1] * K), (K,), tables, kept, rows, steps)
    return Plan(result, strides, d, (M, *above, W), (M, prod(target)), (), tables, kept, -(-M // loops.IMAGES), steps)


known_plan = lru_cache(maxsize=256)(plan)
known_adjoint_plan = lru_cache(maxsize=256)(partial(plan, adjoint=True))


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
    """`t` with a trailing dimension of size 1 for each dimension after `axis`."""
    return t[(..., *(None,) * (-1 - axis))]


def stored(y: Tensor, dimensions: int, last: bool) -> Tensor:
    """`y` in the memory layout of the results."""
    if tracing_state() is not None:  # ONNX has no layouts and no in-place operations
        return y.contiguous()
    return blank(y, y.shape, channels_last(y.shape, dimensions) if last else None).copy_(y)


def winners_by_definition(x: Tensor, windows: Windows, last: bool) -> tuple[Tensor, Tensor]:
    """`winners`: a cell outside the image repeats a pixel of the same window, which changes nothing."""
    size, lowest = spatial(x, windows), -torch.inf if x.is_floating_point() else torch.iinfo(x.dtype).min
    numbers = torch.zeros((), dtype=torch.int64, device=x.device)
    for n in size:
        numbers = numbers.unsqueeze(-1) * n + torch.arange(n, device=x.device)
    numbers = numbers.expand_as(x)
    for axis in range(-1, -1 - len(size), -1):
        pixels, counts = pixels_of(windows.side(len(size) + axis, size[axis], x.device), size[axis])
        first = torch.where(counts, pixels, size[axis]).amin(1, keepdim=True)
        final = torch.where(counts, pixels, NO_PIXEL).amax(1, keepdim=True)
        pixels = torch.minimum(torch.maximum(pixels, first), final).clamp(min=0)
        shown, places = look_up(x, axis, pixels), before(axis, torch.arange(pixels.shape[1], device=x.device))
        cell = torch.maximum(shown.argmax(axis), torch.where(shown.isnan(), places, 0).amax(axis)).unsqueeze(axis)
        empty = before(axis, final.squeeze(1) == NO_PIXEL)
        x = torch.where(empty, lowest, shown.gather(axis, cell).squeeze(axis))
        numbers = torch.where(empty, NO_PIXEL, look_up(numbers, axis, pixels).gather(axis, cell).squeeze(axis))
    return stored(x, len(size), last), stored(numbers, len(size), last)


def route_by_definition(g: Tensor, where: Tensor, size: Sequence[int], last: bool) -> Tensor:
    """`route`: one addition per window, along one dimension, which torch can do in a fixed order on every device."""
    d, images = len(size), g.shape[: g.ndim - len(size)]
    start = torch.arange(images.numel(), device=g.device).view(*images, *(1,) * d) * prod(size)
    places, upstream = start + where.clamp(min=0), torch.where(where == NO_PIXEL, 0, g)
    gx = g.new_zeros(images.numel() * prod(size)).scatter_add(0, places.flatten(), upstream.flatten())
    return stored(gx.view(*images, *size), d, last)


def pick_by_definition(t: Tensor, where: Tensor, dimensions: int, last: bool) -> Tensor:
    """`pick`, by one gather."""
    found = t.flatten(-dimensions).gather(-1, where.flatten(-dimensions).clamp(min=0).long()).view(where.shape)
    return stored(torch.where(where == NO_PIXEL, 0, found), dimensions, last)


def average_by_definition(x: Tensor, windows: Windows, last: bool, divisor: int, padding: bool) -> Tensor:
    """`average`: cells outside of the image count as zero; means of integers are rounded towards zero."""
    size = spatial(x, windows)
    if windows.is_global:
        x = x.sum(tuple(range(-len(size), 0)), keepdim=True)
        return stored(divided(x, windows, size, divisor, padding), len(size), last)
    for axis in range(-1, -1 - len(size), -1):
        pixels, counts = pixels_of(windows.side(len(size) + axis, size[axis], x.device), size[axis])
        shown = look_up(x, axis, torch.where(counts, pixels, 0))
        x = torch.where(before(axis, counts), shown, 0).sum(axis)
    return stored(divided(x, windows, size, divisor, padding), len(size), last)


def share_out_by_definition(g: Tensor, windows: Windows, last: bool, divisor: int, padding: bool, size: Sequence[int]) -> Tensor:
    """`share_out`, one side after the other."""
    g = divided(g, windows, size, divisor, padding)
    if windows.is_global:  # contiguous, or stored as `g`
        g = g.expand(*g.shape[: g.ndim - len(size)], *size)
        return g.contiguous() if last else g.clone()
    for axis in range(-len(size), 0):
        pixels, counts = pixels_of(windows.side(len(size) + axis, size[axis], g.device), size[axis])
        shares = torch.where(before(axis, counts), g.unsqueeze(g.ndim + axis + 1), 0).flatten(axis - 1, axis)
        zeros = g.new_zeros((*g.shape[: g.ndim + axis], size[axis], *g.shape[g.ndim + axis + 1 :]))
        g = zeros.index_add(axis, torch.where(counts, pixels, 0).flatten(), shares)
    return stored(g, len(size), last)


def cell_counts(windows: Windows, size: Sequence[int], padding: bool, device: torch.device) -> Tensor:
    """The number of cells in each window, `(*positions)`, with `padding` also those in the padding."""
    cells = torch.ones((), dtype=torch.int64, device=device)
    for dim, n in enumerate(size):
        side = windows.side(dim, n, device)
        cells = cells.unsqueeze(-1) * (side.counted if padding else side.inside(n)[1])
    return cells


@lru_cache(maxsize=256)
def known_cells(windows: Windows, size: tuple[int, ...], padding: bool) -> Tensor | int:
    """The same on a CPU, as one number if it is the same for all windows."""
    cells = cell_counts(windows, size, padding, torch.device("cpu"))
    return int(cells.max()) if cells.min() == cells.max() != 0 else cells


def divided(y: Tensor, windows: Windows, size: Sequence[int], divisor: int, padding: bool) -> Tensor:
    """`y (*batch, *positions)` divided by `divisor`, or if that is 0 by the number of cells in each window."""
    cells: Any = divisor or cell_counts(windows, size, padding, y.device)
    return y.div(cells, rounding_mode=None if y.is_floating_point() or y.is_complex() else "trunc")
