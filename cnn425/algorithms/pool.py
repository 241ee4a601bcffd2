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

This is the general way, `sides`, for every device, dtype and number. What can be looked at is pooled faster by `pool_winners` and
`pool_average`; `with cnn425.algorithms.use("sides"):` forces this one.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from math import gcd, isfinite
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cnn425.algorithms import memory, registry
from cnn425.algorithms.layout import channels_last_strides
from cnn425.algorithms.tracing import PLAIN, is_traced
from cnn425.windows import Geometry, windows

BLOCK = 2**18  # numbers
PLACES = 2**16  # numbers whose addresses are known at a time: they take twice their memory
VISITS = 2**15  # of uneven windows
LONG = 2**10  # cells of a window along one side
NOBODY = -1  # the pixel number of a window without pixels (a dilated window may lie wholly in the padding)


registry.register("pool", ("sides",))


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
    even: bool = False  # all windows are equal, but for the edges
    stride: int = 1  # pixels from one even window to the next
    step: int = 1  # pixels from one cell to the next

    def place(self, axis: int, visit: tuple[int, slice, slice]) -> tuple[Any, ...] | None:
        """The index along `axis` of the windows of a visit; None if they are all windows."""
        return None if visit[1] == slice(0, self.positions) else at(axis, visit[1])


def even(size: int, kernel: int, stride: int, low: int, dilation: int, count: int) -> Side:
    """Windows of equal length at equal distances."""
    if count == dilation == 1 and low == 0 and kernel == size:  # a long signal has many cells: written down in one go
        visits = [(u, slice(0, 1), slice(u, u + 1, stride)) for u in range(size)]
        return Side(1, kernel, tuple(visits), True, True, True, size == 1, True, stride, 1)
    visits = []
    for u in range(kernel):
        first = u * dilation - low
        a, b = max(0, -(first // stride)), min(count, (size - 1 - first) // stride + 1)
        if a < b:
            visits.append((u, slice(a, b), slice(first + a * stride, first + (b - 1) * stride + 1, stride)))
    disjoint = (kernel - 1) * dilation < stride
    cover = disjoint and sum([b.stop - b.start for _, b, _ in visits]) == size
    return Side(count, kernel, tuple(visits), disjoint, cover, cover and count == 1, cover and kernel == 1, True, stride, dilation)


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


def many_visits(geometry: Geometry | Bins, size: Sequence[int]) -> bool:
    """Whether the visits of a side are too many to be written down, and a table of its pixels is not large."""
    if isinstance(geometry, Bins):
        return any(m and n % m and (n + m) // gcd(n, m) > VISITS for n, m in zip(size, geometry.positions, strict=True))
    sides = zip(size, geometry.kernel, geometry.positions(size), strict=True)
    return any(kernel > LONG and 1 < count <= 4 * n // kernel for n, kernel, count in sides)


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
    found = (_sides if is_traced() else _remembered)(geometry, size)
    return tuple((axis, found[axis]) for axis in range(-d, 0))


def at(axis: int, cells: slice) -> tuple[Any, ...]:
    """The index of `cells` along `axis`, counted from the end."""
    return (..., cells, *(slice(None),) * (-1 - axis))


def blank(x: Tensor, pooling: Pooling, size: Sequence[int], dtype: torch.dtype | None = None) -> Tensor:
    """Memory for images like `x` of `size` pixels, in the layout of the results."""
    dtype = dtype or x.dtype
    shape = (*x.shape[: x.ndim - len(size)], *size)
    ours = type(x) is Tensor  # other kinds of tensors make memory of their kind, which numbers of their kind may be written to
    if not pooling.channels_last:
        return memory.result(x, shape, dtype) if ours else x.new_empty(shape, dtype=dtype)
    batch = (1,) * (len(size) + 2 - x.ndim)
    strides = channels_last_strides((*batch, *shape))[len(batch) :]
    return memory.result(x, shape, dtype, strides) if ours else x.new_empty_strided(shape, strides, dtype=dtype)


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


def lowest(dtype: torch.dtype) -> float:
    """The number that never wins: minus infinity, or the least integer."""
    return -torch.inf if dtype.is_floating_point else torch.iinfo(dtype).min


# ---- What may be looked at ---------------------------------------------------------------------------------------------------------------


def visible(*tensors: Tensor) -> bool:
    """Whether the numbers of all tensors can be looked at without waiting, and nobody wants the general way."""
    for t in tensors:
        if type(t) not in PLAIN or not t.is_cpu:
            return False
    return not (is_traced() or (registry.forced and registry.forced_for("pool")))


def finite(t: Tensor) -> bool:
    """Whether all numbers are finite, going by their sum: now and then False though they are."""
    try:
        return isfinite(t.sum(dtype=torch.float64 if t.dtype == torch.float64 else torch.float32).item())
    except RuntimeError:  # a tracer that records what is done with tensors does not give out their numbers
        return False


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
    """Values do not depend on the order of sides."""
    lines = sides(pooling.geometry, x.shape)
    if all(side.whole for _, side in lines):
        return blank(x, pooling, (1,) * len(lines)).copy_(reduce(x, [axis for axis, _ in lines], keepdim=True))
    for axis, side in lines:
        y = blank(x, pooling, resized(x, pooling, axis, side.positions)).fill_(neutral)
        for _, places, pixels in side.visits:
            place = y[at(axis, places)]
            place.copy_(combine(place, x[at(axis, pixels)]))
        x = y
    return x


# ---- Winners -----------------------------------------------------------------------------------------------------------------------------


def winners(x: Tensor, pooling: Pooling) -> tuple[Tensor, Tensor]:
    """The largest number of every window and the winning pixel's number, counted in reading order from 0."""
    size = torch.Size(x.shape[x.ndim - len(pooling.geometry[0]) :])
    pixels = torch.arange(size.numel(), device=x.device).view(size).expand_as(x)
    for axis, side in reversed(sides(pooling.geometry, size)):
        count = resized(x, pooling, axis, side.positions)
        best = blank(x, pooling, count).fill_(lowest(x.dtype))
        chosen = blank(x, pooling, count, torch.int64).fill_(NOBODY)
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


known_to_be_complete = lru_cache(maxsize=1024)(someone_everywhere)


# ---- Averages ----------------------------------------------------------------------------------------------------------------------------


def spread(g: Tensor, pooling: Pooling, size: Sequence[int]) -> Tensor:
    """The adjoint of `total`: every number goes to all pixels of its window, `(*batch, *positions) -> (*batch, *size)`."""
    lines = sides(pooling.geometry, size)
    if all(side.whole for _, side in lines):
        gx = blank(g, pooling, size)
        return gx.copy_(g.expand_as(gx))
    for axis, side in reversed(lines):
        gx = blank(g, pooling, resized(g, pooling, axis, size[axis])).zero_()
        for _, places, pixels in side.visits:
            gx[at(axis, pixels)].add_(g[at(axis, places)])
        g = gx
    return g


def counts(geometry: Geometry | Bins, size: Sequence[int], padding: bool, dtype: torch.dtype, device: torch.device) -> Tensor:
    """How many cells each window has in the image or, with `padding`, in the padded image: `(*positions)`."""
    product = torch.ones((), dtype=dtype, device=device)
    for dim, n in enumerate(size):
        if isinstance(geometry, Bins):
            i, m = torch.arange(geometry.positions[dim], device=device), geometry.positions[dim]
            length = ((i + 1) * n + m - 1) // m - i * n // m
        else:
            i, (low, high) = torch.arange(geometry.positions(size)[dim], device=device), geometry.padding[dim]
            start = i * geometry.stride[dim] - low
            end = start + geometry.kernel[dim]
            length = end.clamp(max=n + high) - start if padding else end.clamp(max=n) - start.clamp(min=0)
        product = product.unsqueeze(-1) * length
    return product


known_counts = lru_cache(maxsize=1024)(counts)
