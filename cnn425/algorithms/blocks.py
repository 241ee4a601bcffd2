"""Blocks: the windows of a few images, or of some rows of one image, small enough that a copy of them stays in the cache.

A large fresh temporary costs a page fault for every 4 kB of it, and a trip to memory and back. A block's copies are written again and
again into the same few megabytes (`cnn425.algorithms.memory`), which stay in the cache; zeros around the image exist only there.
"""

from collections.abc import Iterator, Sequence
from itertools import product
from math import gcd, prod
from typing import NamedTuple

from torch import Tensor

from cnn425.algorithms.memory import scratch
from cnn425.windows import Geometry

BYTES = 1 << 20


class Block(NamedTuple):
    """Images `n` to `n + images`, and of each the window rows `i` to `i + rows` (a row: all positions that share the first coordinate)."""

    n: int
    images: int
    i: int
    rows: int


def blocks(images: int, rows: int, row_bytes: int, budget: int = BYTES) -> Iterator[Block]:
    """Blocks that cover all images, in order: as many whole images as fit into `budget` bytes, or else some rows of one image."""
    together = max(1, min(images, budget // max(1, rows * row_bytes)))
    few = min(rows, max(1, budget // max(1, row_bytes)))
    few = -(-rows // -(-rows // few))
    for n in range(0, images, together):
        for i in range(0, rows, few):
            yield Block(n, min(together, images - n), i, min(few, rows - i))


class Slabs:
    """The windows of one block after the other: views of the image itself or, where it needs padding, of a small padded copy.

    `channels_last`: the windows have their channels innermost in memory, which may need a copy too; otherwise a copy lies like a
    contiguous image.
    """

    def __init__(self, x: Tensor, geometry: Geometry, first: Block, channels_last: bool, copies: bool = True):
        size, d = x.shape[2:], geometry.dimensions
        self.x, self.geometry = x, geometry
        self.positions = geometry.positions(size)
        low = [low for low, _ in geometry.overhang(size)]
        extent = geometry.extent
        padded = [(count - 1) * s + e for count, s, e in zip((first.rows, *self.positions[1:]), geometry.stride, extent, strict=True)]
        self.copy: Tensor | None = None
        if copies and (any(a > 0 or b > 0 for a, b in geometry.overhang(size)) or (channels_last and x.stride(1) != 1)):
            shape = (first.images, *padded, x.shape[1]) if channels_last else (first.images, x.shape[1], *padded)
            copy = scratch(x, *shape).zero_()
            self.copy = copy.movedim(-1, 1) if channels_last else copy
        self.low = low[0]
        # Where the pixels of the other dimensions come from and go to: they are the same for every block.
        starts = [(max(-a, 0), max(a, 0)) for a in low[1:]]
        spans = [max(0, min(n - a, p - b)) for n, p, (a, b) in zip(size[1:], padded[1:], starts, strict=True)]
        self.source = tuple(slice(a, a + span) for (a, _), span in zip(starts, spans, strict=True))
        self.target = tuple(slice(b, b + span) for (_, b), span in zip(starts, spans, strict=True))
        self.whole = first.rows == self.positions[0]
        self.d = d

    def windows(self, block: Block) -> Tensor:
        """The windows of a block, `(images, C, rows, *positions[1:], *kernel)`."""
        n, images, i, rows = block
        geometry = self.geometry
        top = i * geometry.stride[0] - self.low
        if self.copy is None:
            x = self.x[n : n + images]
            offset = sum(o * s for o, s in zip((top, *(s.start for s in self.source)), x.stride()[2:], strict=True))
        else:
            x, offset = self.copy[:images], 0
            bottom = top + (rows - 1) * geometry.stride[0] + geometry.extent[0]
            a, b = max(top, 0), min(bottom, self.x.shape[2])
            if not self.whole:
                x[:, :, : max(0, a - top)] = 0
                x[:, :, max(0, b - top) :] = 0
            if a < b:
                x[(slice(None), slice(None), slice(a - top, b - top), *self.target)] = self.x[
                    (slice(n, n + images), slice(None), slice(a, b), *self.source)
                ]
        steps = x.stride()[2:]
        return x.as_strided(
            (images, x.shape[1], rows, *self.positions[1:], *geometry.kernel),
            (
                *x.stride()[:2],
                *(a * s for a, s in zip(steps, geometry.stride, strict=True)),
                *(a * k for a, k in zip(steps, geometry.dilation, strict=True)),
            ),
            x.storage_offset() + offset,
        )


def flipped(geometry: Geometry, size: Sequence[int], positions: Sequence[int]) -> Geometry:
    """The geometry (stride 1) in which the output gradient, met by the flipped kernel, gives the gradient of an input of `size` pixels."""
    low = [e - 1 - low for e, (low, _) in zip(geometry.extent, geometry.padding, strict=True)]
    high = [n + e - 1 - p - a for n, e, p, a in zip(size, geometry.extent, positions, low, strict=True)]
    return geometry._replace(padding=tuple(zip(low, high, strict=True)), ceil_mode=False)


Phase = tuple[tuple[slice, ...], tuple[slice, ...], Geometry | None]


def phases(geometry: Geometry, size: Sequence[int], positions: Sequence[int]) -> Iterator[Phase]:
    """The input gradient as convolutions of stride 1: cells of the kernel, the pixels they reach, and how they meet the output gradient.

    Pixel h = i*s + u*d - p is reached by the cells u that leave the same remainder of u*d, by s, as h + p: every s-th pixel by the same
    ones. No geometry: no cell reaches these pixels.
    """
    each = [
        [_phase(a, *side) for a in range(side[1])]
        for side in zip(geometry.kernel, geometry.stride, geometry.padding, geometry.dilation, size, positions, strict=True)
    ]
    for sides in product(*each):
        cells, pixels, kernel, padding, dilation = zip(*sides, strict=True)
        yield cells, pixels, Geometry(kernel, (1,) * len(kernel), padding, dilation) if all(kernel) else None


def _phase(
    remainder: int, kernel: int, stride: int, padding: tuple[int, int], dilation: int, size: int, positions: int
) -> tuple[slice, slice, int, tuple[int, int], int]:
    """Cells, pixels, number of cells, padding and dilation along one dimension."""
    step, apart = stride // gcd(stride, dilation), dilation // gcd(stride, dilation)
    start = (remainder - padding[0]) % stride
    pixels = slice(start, size, stride)
    first = next((u for u in range(min(kernel, step)) if u * dilation % stride == remainder), None)
    if first is None:
        return slice(0, 0), pixels, 0, (0, 0), 1
    cells = slice(first, kernel, step)
    count = len(range(first, kernel, step))
    reach = (count - 1) * apart
    low = reach - (start + padding[0] - first * dilation) // stride
    return cells, pixels, count, (low, len(range(start, size, stride)) + reach - positions - low), apart


def flip(w: Tensor, groups: int) -> Tensor:
    """The kernel of the input gradient, `(O, C/G, *kernel) -> (C, O/G, *kernel)`: turned around, inputs and outputs exchanged."""
    if prod(w.shape[2:]) > 1:
        w = w.flip(*range(2, w.ndim))
    if groups == 1:
        return w.transpose(0, 1)
    return w.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
