"""Windows: all positions of a kernel in an image, as a view of the image.

    windows[n,c,i,j,u,v] = x[n, c, i*s + u*d - p, j*s + v*d - p]        (s stride, d dilation, p padding; outside the image: zero)

Letters, used in every docstring, einsum string and test of this project (two spatial dimensions; one or three work alike):

    n  image of the batch      c  input channel       o  output channel      g  group of channels
    i j (k)  position of a window = pixel of the output      u v (w)  offset inside a window      h w  pixel of the input
    a b (d)  set of weights that several positions of a local layer share

Volumes have pixels d h w and kernels of T x U x V cells; loops number their positions a i j and their offsets t u v.

The view copies nothing, so windows may overlap in memory. The gradient of the windows returns to the pixels by the adjoint map, `scatter`:
each pixel is the sum over all windows that contain it. Its defining property is `<windows(x), r> = <x, scatter(r)>`.
Every layer takes its number of windows from here; `layers.conv_transpose` inverts the formula.
"""

import functools
from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cnn425.compat import tracing_state

POSITIONS, OFFSETS, SETS = "ijk", "uvw", "abd"


def in_dimensions(equation: str, dimensions: int) -> str:
    """An einsum equation for two spatial dimensions, rewritten for `dimensions` of them: `ncijuv` becomes `nciu` or `ncijkuvw`."""
    letters = (POSITIONS, OFFSETS, SETS)
    return functools.reduce(lambda found, each: found.replace(each[:2], each[:dimensions]), letters, equation)


class Geometry(NamedTuple):
    """Where the windows are: kernel, stride, padding and dilation in pixels, one entry per spatial dimension.

    `padding` holds (low, high) pairs. With `ceil_mode` a last window may extend beyond the high edge if it starts inside the image or
    its low padding (the rule of torch's pools).
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    ceil_mode: bool = False

    @property
    def dimensions(self) -> int:
        """The number of spatial dimensions."""
        return len(self.kernel)

    @property
    def is_global(self) -> bool:
        """Always False: a window of fixed size does not grow with the image."""
        return False

    def as_row(self) -> "Geometry":
        """The windows of a signal as those of an image of one row."""
        return Geometry((1, *self.kernel), (1, *self.stride), ((0, 0), *self.padding), (1, *self.dilation))

    @property
    def extent(self) -> tuple[int, ...]:
        """The pixels that a window spans, first and last cell included: `(k - 1) * d + 1`."""
        return tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilation, strict=True))

    def positions(self, size: Sequence[int]) -> tuple[int, ...]:
        """The number of windows along each dimension of an image of `size` pixels: the output size. May be zero or negative."""
        return tuple(self.positions_along(dim, n) for dim, n in zip(range(len(self.kernel)), size, strict=True))

    def positions_along(self, dim: int, size: int) -> int:
        """The number of windows along one dimension of `size` pixels."""
        (low, high), stride = self.padding[dim], self.stride[dim]
        room = size + low + high - ((self.kernel[dim] - 1) * self.dilation[dim] + 1)
        if not self.ceil_mode:
            return room // stride + 1
        last = (room + stride - 1) // stride  # not -(-room // stride): ONNX divides integers towards zero
        return last + 1 if last * stride < size + low else last

    def side(self, dim: int, size: int, device: torch.device | None = None) -> "Side":
        """The windows along one dimension of `size` pixels."""
        low, high = self.padding[dim]
        count = self.positions_along(dim, size)
        first = torch.arange(count, device=device) * self.stride[dim] - low
        counted = (first + self.kernel[dim]).clamp(max=size + high) - first
        return Side(first, torch.full_like(first, self.kernel[dim]), self.dilation[dim], counted, self.kernel[dim])

    def overhang(self, size: Sequence[int]) -> tuple[tuple[int, int], ...]:
        """Pixels to add below and above the image so that it ends exactly with the last window; negative: pixels no window reaches."""
        return tuple(
            (low, (count - 1) * stride + extent - n - low)
            for n, count, extent, stride, (low, _) in zip(size, self.positions(size), self.extent, self.stride, self.padding, strict=True)
        )


class Adaptive(NamedTuple):
    """Adaptive windows: of m = `output` windows along n pixels, window i shows pixels floor(i n / m) to ceil((i + 1) n / m) - 1."""

    output: tuple[int, ...]

    @property
    def dimensions(self) -> int:
        """The number of spatial dimensions."""
        return len(self.output)

    @property
    def is_global(self) -> bool:
        """Whether one window shows the whole image, whatever its size: global pooling."""
        return all(count == 1 for count in self.output)

    def positions(self, size: Sequence[int]) -> tuple[int, ...]:
        """The number of windows along each dimension, whatever the size of the image."""
        return self.output

    def side(self, dim: int, size: int, device: torch.device | None = None) -> "Side":
        """The windows along one dimension of `size` pixels."""
        m = self.output[dim]
        i = torch.arange(m, device=device)
        first = i * size // max(m, 1)
        cells = ((i + 1) * size + m - 1) // max(m, 1) - first
        return Side(first, cells, 1, cells, size if m == 1 else size // max(m, 1) + 2)


Windows = Geometry | Adaptive


class Sharing(NamedTuple):
    """Which positions of a local layer share weights: blocks of `share` neighbours, or with `tile` indices equal modulo `tile`."""

    share: tuple[int, ...]
    tile: tuple[int, ...] | None = None

    @property
    def each(self) -> bool:
        """Whether each position has a set of its own."""
        return self.tile is None and max(self.share) == 1

    def sets(self, positions: tuple[int, ...]) -> tuple[int, ...]:
        """The number of sets along each side."""
        return self.tile or tuple((p + s - 1) // s for p, s in zip(positions, self.share, strict=True))

    def table(self, side: int, positions: int, device: torch.device | None = None) -> Tensor:
        """The set of each position along a side."""
        p = torch.arange(positions, device=device)
        return p % self.tile[side] if self.tile else p // self.share[side]

    def copied(self, t: Tensor, positions: tuple[int, ...], before: int = 0) -> Tensor:
        """`t` with each set copied to its positions; its dimensions from `before` on are sets."""
        for side, count in enumerate(() if self.each else positions):
            t = t.index_select(before + side, self.table(side, count, t.device))
        return t

    def bias(self, b: Tensor, positions: tuple[int, ...], before: int = 0) -> Tensor:
        """The bias `(O, *sets)` or `(O,)`, with `before` more dimensions in front, as it is added to the output."""
        alone = b.ndim == before + 1
        return b.reshape(*b.shape, *(1,) * len(positions)) if alone else self.copied(b, positions, before + 1)

    def added_up(self, t: Tensor, before: int) -> Tensor:
        """The adjoint of `copied`: the sum over the positions of each set."""
        t = t if self.each else self.apart(t, before)
        for _ in () if self.each else self.share:  # one side after the other: torch takes three times as long for all at once
            t = t.sum(before + len(self.share))
        return t

    def apart(self, t: Tensor, before: int) -> Tensor:
        """`t` with its positions, from dimension `before` on, split into (*sets, *positions of each set); zeros fill smaller sets."""
        d = len(self.share)
        positions = tuple(t.shape[before : before + d])
        sets, after = self.sets(positions), t.ndim - before - d
        most = [(p + q - 1) // q for p, q in zip(positions, sets, strict=True)] if self.tile else self.share  # ONNX cannot round down
        t = pad(t, [(0, q * m - p) for p, q, m in zip(positions, sets, most, strict=True)] + [(0, 0)] * after)
        for side in reversed(range(d)):
            if self.each:  # ONNX would record the sizes of other dimensions as constants
                t = t.unsqueeze(before + side + 1)
                continue
            sizes = (most[side], sets[side]) if self.tile else (sets[side], most[side])
            t = t.reshape(*t.shape[: before + side], *sizes, *t.shape[before + side + 1 :])  # a legacy vmap has no unflatten
        first, second = range(before, before + 2 * d, 2), range(before + 1, before + 2 * d, 2)
        inner = (*second, *first) if self.tile else (*first, *second)
        return t.permute(*range(before), *inner, *range(before + 2 * d, t.ndim))

    def together(self, t: Tensor, before: int, positions: Sequence[int]) -> Tensor:
        """The inverse of `apart`."""
        for side, count in enumerate(positions):  # a set's positions move behind it, or before
            t = t.movedim(before + len(positions), before + side + (0 if self.tile else 1)).flatten(before + side, before + side + 1)
            t = t.narrow(before + side, 0, count)
        return t

    def mean(self, t: Tensor, positions: tuple[int, ...]) -> Tensor:
        """The mean of `t`, whose first dimensions are sets, over all positions: each set counts as often as it is used."""
        for side, count in enumerate(positions):
            times = self.table(side, count, t.device).bincount(minlength=t.shape[0])
            t = torch.tensordot(times.to(t.dtype), t, 1) / count
        return t


def each_its_own(dimensions: int) -> Sharing:
    """Each position has weights of its own."""
    return Sharing((1,) * dimensions)


class Side(NamedTuple):
    """The windows along one dimension: ordinary, `ceil_mode` or adaptive. Pixels of the image count from 0; padding lies outside."""

    first: Tensor  # the pixel of the first cell of each window
    cells: Tensor  # the number of cells of each window
    step: int  # pixels from cell to cell
    counted: Tensor  # the number of cells that an average divides by, padding included
    longest: int  # an upper bound on `cells`

    def inside(self, size: int) -> tuple[Tensor, Tensor]:
        """The first pixel inside the image of each window, and its number of cells inside."""
        skipped = (-self.first).clamp(min=0)
        skipped = (skipped + self.step - 1) // self.step
        first = self.first + skipped * self.step
        fitting = (size - first + self.step - 1) // self.step
        return first, torch.minimum(self.cells - skipped, fitting).clamp(min=0)

    def showing(self, size: int) -> tuple[Tensor, Tensor]:
        """The windows that show each pixel: the first of them, and their number. Cells must be neighbours, `step` 1."""
        pixels = torch.arange(size, device=self.first.device)
        first = torch.searchsorted(self.first + self.cells, pixels, right=True)
        return first, (torch.searchsorted(self.first, pixels, right=True) - first).clamp(min=0)


def pad(x: Tensor, overhang: Sequence[tuple[int, int]]) -> Tensor:
    """The image with `overhang` (low, high) zeros around its last dimensions; negative numbers crop."""
    if not any(low or high for low, high in overhang):
        return x
    if any(low * high < 0 for low, high in overhang):  # torch would crop first, and there may be too few pixels for that
        x = pad(x, [(max(low, 0), max(high, 0)) for low, high in overhang])
        overhang = [(min(low, 0), min(high, 0)) for low, high in overhang]
    return torch.constant_pad_nd(x, [p for pair in reversed(overhang) for p in pair])


def windows(x: Tensor, geometry: Geometry) -> Tensor:
    """All windows of an image, as a view of the padded image: `(*batch, *size) -> (*batch, *positions, *kernel)`."""
    d = geometry.dimensions
    size = x.shape[x.ndim - d :]
    hanging = [stride - 1 if geometry.ceil_mode else 0 for stride in geometry.stride]  # an upper bound
    x = pad(x, [(low, high + more) for (low, high), more in zip(geometry.padding, hanging, strict=True)])
    if tracing_state() is not None:  # torch.jit.trace records strides as constants, and ONNX has none
        return _looked_up(x, geometry, size)
    if torch.compiler.is_compiling():  # the compiler cannot infer strides if two sizes are variable and equal
        x = x.contiguous()
        strides = tuple(prod(x.shape[dim + 1 :]) for dim in range(x.ndim))
    else:
        strides = x.stride()
    batch, steps = strides[: x.ndim - d], strides[x.ndim - d :]
    return x.as_strided(
        (*x.shape[: x.ndim - d], *geometry.positions(size), *geometry.kernel),
        (
            *batch,
            *(a * s for a, s in zip(steps, geometry.stride, strict=True)),
            *(a * k for a, k in zip(steps, geometry.dilation, strict=True)),
        ),
    )


def _looked_up(x: Tensor, geometry: Geometry, size: Sequence[int]) -> Tensor:
    """All windows of the padded image, gathered by the indices of their cells, one dimension at a time."""
    d = geometry.dimensions
    for dim, count in enumerate(geometry.positions(size)):
        first = torch.arange(count, device=x.device) * geometry.stride[dim]
        cells = torch.arange(geometry.kernel[dim], device=x.device) * geometry.dilation[dim]
        place: Any = (..., first.unsqueeze(1) + cells, *(slice(None),) * (d - 1 - dim))
        x = x[place]
    batch = x.ndim - 2 * d
    return x.permute(*range(batch), *range(batch, x.ndim, 2), *range(batch + 1, x.ndim, 2))


def scatter(w: Tensor, geometry: Geometry, size: Sequence[int]) -> Tensor:
    """The adjoint of `windows`: each pixel is the sum of its window cells, `(*batch, *positions, *kernel) -> (*batch, *size)`.

    It adds along one dimension at a time, the last first, cells in order: U + V additions, in the same order on every run.
    """
    batch, positions = w.ndim - 2 * geometry.dimensions, geometry.positions(size)
    for side in reversed(range(geometry.dimensions)):
        low, high = geometry.overhang(size)[side]
        shape = list(w.shape[:-1])
        shape[batch + side] = max(low, 0) + size[side] + max(high, 0)
        padded = w.new_zeros(shape)
        cells, windows_ = (geometry.kernel[side], geometry.dilation[side]), (positions[side], geometry.stride[side])
        for u in range(cells[0]):
            first = u * cells[1] - min(low, 0)
            pixels: Any = [slice(None)] * (batch + side) + [slice(first, first + (windows_[0] - 1) * windows_[1] + 1, windows_[1])]
            padded[tuple(pixels)].add_(w[..., u])  # += would also copy the sum to itself
        w = padded.narrow(batch + side, max(low, 0), size[side])
    return w
