"""How a block of images lies in memory while its windows are searched, and which cells are visited in which order.

Arithmetic on slices is fast only where neighbours in memory are taken together. Three ways see to that:

    last      channels last: a pixel is a run of channels already
    split     contiguous, even windows: with a stride of s every s-th column is taken, so the columns are dealt into s images, in one copy;
              a cell of all windows of a row is then a run of one of them
    turned    contiguous, uneven or few windows in a row: the planes (images and channels) are laid innermost, where they make the runs

Cells are visited in reading order from the first one that all windows have; those before it come last, and win ties.
Uneven (adaptive) windows are laid out side by side, which makes them even; a window shorter than others shows its first pixel again.
"""

from collections.abc import Callable
from functools import lru_cache
from itertools import count
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cnn425.algorithms import pool
from cnn425.algorithms.pool import Bins, Side
from cnn425.algorithms.pool_program import Given, Recorder
from cnn425.windows import Geometry

Index = tuple[Any, ...]
FEW = 8  # windows in a row that are not worth a run
PLANES = 16  # planes that are


class Visit(NamedTuple):
    """A cell of the windows: its place, the windows that have it (None: all), how it wins, pixels from the first cell visited."""

    cell: Index
    windows: Index | None
    beats: Callable[..., Tensor]
    distance: int
    number: Tensor


class Line(NamedTuple):
    """The visits along one axis: a first cell that all windows have (None: there is none), its distance from the start, the others.

    `chosen` are the pixels to lay side by side before, if any.
    """

    axis: int
    positions: int
    chosen: Tensor | None
    first: Index | None
    origin: int
    visits: tuple[Visit, ...]

    def shape(self, x: Any) -> list[int]:
        """The shape of the largest numbers of `x`."""
        shape = list(x[self.visits[0].cell if self.first is None else self.first].shape)
        shape[self.axis] = self.positions
        return shape


class Part(NamedTuple):
    """Rows of windows: their places along the first dimension, the rows of pixels they show, the lines seen from there, and a name."""

    windows: slice
    pixels: slice
    lines: tuple[Line, ...]
    name: int


names = count()


def way(channels_last: bool, sides: tuple[Side, ...], planes: int) -> str:
    """How a block of such images is laid out."""
    if channels_last:
        return "last"
    few = sides[-1].positions < FEW and planes >= PLANES
    return "turned" if few or not all(side.even for side in sides) else "split"


def lay(record: Recorder, image: Given, way: str, stride: int, direct: bool) -> Any:
    """A block of images `(N, *size, C)` or planes `(N, *size)` as `way` says; as it lies, if that will do, where `direct` allows it."""
    if way == "split":
        return deal(record, image, stride, direct)
    if way == "last":
        return image if direct else record.copy(record.scratch(image.shape), image)
    block = record.scratch((1, *image.shape[1:], image.shape[0]))
    record.copy(lie(block, way), image)
    return block


def lie(block: Tensor, way: str) -> Tensor:
    """A block laid as `way` says (not split), as images lie."""
    return block.squeeze(0).movedim(-1, 0) if way == "turned" else block


def deal(record: Recorder, x: Any, stride: int, direct: bool = True) -> Any:
    """The columns of `x` dealt into `stride` images; with a stride of 1 as they lie, where `direct` allows it."""
    if stride == 1:
        return x if direct else record.copy(record.scratch(x.shape), x)
    columns, rest = divmod(x.shape[-1], stride)
    block = record.scratch((stride, *x.shape[:-1], columns + bool(rest)))
    whole = seen(x[..., : columns * stride], lambda t: t.unflatten(-1, (columns, stride)))
    record.copy(block[..., :columns].movedim(0, -1), whole)
    if rest:
        record.copy(block[:rest, ..., -1].movedim(0, -1), x[..., columns * stride :])
    return block


def seen(x: Any, how: Callable[[Tensor], Tensor]) -> Any:
    """A view of a tensor, or of what will be one."""
    return x.cut(how) if isinstance(x, Given) else how(x)


def line(axis: int, side: Side, pixels: int, dtype: torch.dtype, dealt: bool = False) -> Line:
    """The visits of a side whose neighbours are `pixels` pixel numbers apart; with `dealt` the columns are those of dealt images."""
    chosen = None
    if not side.even:
        side, chosen = laid_side_by_side(side)
    common = next((n for n, visit in enumerate(side.visits) if side.place(axis, visit) is None), -1)
    origin, visits = (side.visits[common][0] if common >= 0 else 0), []
    for n, visit in enumerate(side.visits):
        distance, beats = (visit[0] - origin) * side.step * pixels, torch.ge if n < common else torch.gt
        cell = dealt_columns(visit[2], side.stride) if dealt else pool.at(axis, visit[2])
        number = torch.tensor(distance, dtype=dtype, device="cpu")
        visits.append(Visit(cell, side.place(axis, visit), beats, distance, number))
    first, others = visits[common].cell if common >= 0 else None, (*visits[common + 1 :], *visits[: max(common, 0)][::-1])
    return Line(axis, side.positions, chosen, first, origin * side.step * pixels, others)


def dealt_columns(columns: slice, stride: int) -> Index:
    """Every `stride`-th column, as an index of dealt images."""
    if stride == 1:
        return (..., columns)
    start, number = columns.start // stride, len(range(columns.start, columns.stop, stride))
    return (columns.start % stride, ..., slice(start, start + number))


def laid_side_by_side(side: Side) -> tuple[Side, Tensor]:
    """Even windows that tile, in place of uneven ones, and the pixels to choose for them."""
    shown: list[list[int]] = [[] for _ in range(side.positions)]
    for _, position, there in side.visits:
        for window, pixel in zip(range(side.positions)[position], range(there.start, there.stop, there.step), strict=True):
            shown[window].append(pixel)
    chosen = [pixel for window in shown for pixel in (*window, *window[:1] * (side.length - len(window)))]
    return pool.even(len(chosen), side.length, side.length, 0, 1, side.positions), torch.tensor(chosen, device="cpu")


@lru_cache(maxsize=1024)
def parts(geometry: Geometry | Bins, size: tuple[int, ...], rows: int, dtype: torch.dtype, way: str) -> tuple[Part, ...]:
    """The windows cut into parts of about `rows` rows of pixels; adaptive windows stay together."""
    sides, d = [side for _, side in pool.sides(geometry, size)], len(size)
    apart = [torch.Size(size[n + 1 :]).numel() for n in range(d)]
    axes = range(-d, 0) if way == "split" else range(-d - 1, -1)
    lines = [line(axes[n], sides[n], apart[n], dtype, way == "split" and n == d - 1) for n in range(d)]
    if isinstance(geometry, Bins) or rows >= size[0]:
        return (Part(slice(None), slice(None), tuple(lines), next(names)),)
    (low, _), stride, extent, positions = geometry.padding[0], geometry.stride[0], geometry.extent[0], sides[0].positions
    step, found = max(1, (rows - extent) // stride + 1), []
    for i in range(0, positions, step):
        number = min(step, positions - i)
        a, b = max(0, i * stride - low), min(size[0], (i + number - 1) * stride - low + extent)
        side = pool.even(b - a, geometry.kernel[0], stride, a + low - i * stride, geometry.dilation[0], number)
        first = line(axes[0], side, apart[0], dtype, way == "split" and d == 1)
        found.append(Part(slice(i, i + number), slice(a, b), (first, *lines[1:]), next(names)))
    return tuple(found)
