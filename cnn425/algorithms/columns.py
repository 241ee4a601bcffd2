"""Columns: the windows of one block as a matrix, in the order in which the image lies, so that copying them runs along memory.

    positions innermost   (G, C/G*U*V, images*M)   for contiguous images: a column is a window
    channels innermost    (G, images*M, U*V*C/G)   for channels-last images: a row is a window

M positions per image (or per block, if a block is part of an image). A 1x1 kernel needs no copy: the image is its columns.
"""

from collections.abc import Iterator, Sequence
from math import prod

import torch
from torch import Tensor

from cnn425.algorithms.blocks import BYTES, Block, Slabs, blocks
from cnn425.algorithms.memory import scratch
from cnn425.windows import Geometry

FEW_CHANNELS = 8  # below this, runs of channels are too short to copy one by one
FEW_POSITIONS = 64  # below this, the positions of one image make too narrow a matrix
LARGEST = 4 << 20  # bytes of columns where a larger block saves other traffic


class Columns:
    """The columns of all blocks of an image batch, one after the other in the same memory.

    With `batched`, blocks of several contiguous images keep one matrix per image, `(images, K, M)`: the product then writes whole images.
    """

    def __init__(self, x: Tensor, geometry: Geometry, groups: int, last: bool, batched: bool, budget: int = BYTES):
        N, C, *size = x.shape
        self.positions, self.geometry, self.groups, self.last = geometry.positions(size), geometry, groups, last
        self.row = prod(self.positions[1:])
        self.channels = C // groups
        self.inner = last and self.channels >= FEW_CHANNELS
        self.cells = self.channels * prod(geometry.kernel)
        M = self.row * self.positions[0]
        self.image = self._image_as_columns(x, M)
        row_bytes = self.row * groups * self.cells * x.element_size()
        if self.image is not None:  # no copy: all at once if the matrices of all images are one, or are multiplied as a batch
            self.blocks = [Block(n, N if last or (batched and groups == 1) else 1, 0, self.positions[0]) for n in range(N)]
            self.blocks = self.blocks[:1] if self.blocks and self.blocks[0].images == N else self.blocks
        else:
            self.blocks = list(blocks(N, self.positions[0], row_bytes, budget))
        self.batched = batched and not last and groups == 1 and M >= FEW_POSITIONS
        if self.image is None and self.blocks:
            first = self.blocks[0]
            self.slabs = Slabs(x, geometry, first, self.inner)
            self.buffer = scratch(x, groups * self.cells * first.images * first.rows * self.row)

    def _image_as_columns(self, x: Tensor, M: int) -> Tensor | None:
        """The image as (N, G, C/G, M) or (N*M, G, C/G), if its windows are its pixels and no copy is needed."""
        g = self.geometry
        if self.cells != self.channels or any(s != 1 for s in g.stride) or any(low or high for low, high in g.padding) or x.numel() == 0:
            return None
        if self.last:
            pixels = x.movedim(1, -1)
            return pixels.view(-1, self.groups, self.channels) if pixels.is_contiguous() else None
        return x.view(x.shape[0], self.groups, self.channels, M) if x.is_contiguous() and M >= FEW_POSITIONS else None

    def __iter__(self) -> Iterator[tuple[Block, Tensor]]:
        """Each block with its columns: `(G, K, images*M)`, `(G, images*M, K)` if `last`, or `(images, K, M)` if `batched`."""
        for block in self.blocks:
            yield block, self._of(block)

    def _of(self, block: Block) -> Tensor:
        images = block.images
        d, G = self.geometry.dimensions, self.groups
        if self.image is not None:
            if self.last:
                return self.image.transpose(0, 1)
            return self.image[:, 0] if images > 1 else self.image[block.n]
        source = self.slabs.windows(block).unflatten(1, (G, self.channels))  # n g c i j u v
        if self.inner:
            source = source.permute(1, 0, *range(3, 3 + 2 * d), 2)  # g n i j u v c
        elif self.batched and images > 1:
            source = source.permute(0, 1, 2, *range(3 + d, 3 + 2 * d), *range(3, 3 + d))  # n g c u v i j
        else:
            source = source.permute(1, 2, *range(3 + d, 3 + 2 * d), 0, *range(3, 3 + d))  # g c u v n i j
        columns = self.buffer[: source.numel()].view(source.shape)
        columns.copy_(source)
        if self.inner:
            return columns.view(G, -1, self.cells)
        columns = columns.view(images if self.batched and images > 1 else G, self.cells, -1)
        return columns.mT if self.last else columns

    def weight(self, w: Tensor) -> Tensor:
        """The weight as matrices (G, O/G, K), its cells in the order of the columns."""
        w = w.movedim(1, -1) if self.inner else w
        return w.reshape(self.groups, w.shape[0] // self.groups, -1)

    def kernel(self, matrices: Tensor, layout: torch.memory_format) -> Tensor:
        """Matrices (G, O/G, K) as a weight `(O, C/G, *kernel)`: the inverse of `weight`."""
        O = matrices.shape[0] * matrices.shape[1]
        if self.inner:
            return matrices.view(O, *self.geometry.kernel, self.channels).movedim(-1, 1)
        w = matrices.view(O, self.channels, *self.geometry.kernel)
        return w.clone(memory_format=layout) if self.last else w


def rows_of(gy: Tensor, block: Block, groups: int) -> Tensor:
    """The part of an output gradient that belongs to a block, `(images, G, O/G, rows, *positions[1:])`."""
    return gy[block.n : block.n + block.images, :, block.i : block.i + block.rows].unflatten(1, (groups, -1))


def as_matrices(part: Tensor, last: bool, out: Tensor | None = None) -> Tensor:
    """Part of an output gradient as matrices (G, O/G, images*M), stored the other way round if `last`; a view where memory allows."""
    order = (1, 0, *range(3, part.ndim), 2) if last else (1, 2, 0, *range(3, part.ndim))
    G, O = part.shape[1:3]
    part = part.permute(order)
    return part.reshape(G, -1, O).mT if last else part.reshape(G, O, -1)


def add_columns(gx: Tensor, columns: Tensor, geometry: Geometry, block: Block, positions: Sequence[int], last: bool) -> None:
    """Adds each cell of the columns of a block to the pixel of `gx` it shows, offset by offset; cells outside the image are dropped."""
    n, images, i, rows = block
    d = geometry.dimensions
    G, C = columns.shape[0], gx.shape[1] // columns.shape[0]
    if last:
        cells = columns.view(G, images, rows, *positions[1:], *geometry.kernel, C)
        cells = cells.permute(*range(2 + d, 2 + 2 * d), 1, 0, -1, *range(2, 2 + d))
    else:
        cells = columns.view(G, C, *geometry.kernel, images, rows, *positions[1:])
        cells = cells.permute(*range(2, 2 + d), 2 + d, 0, 1, *range(3 + d, 3 + 2 * d))
    if all(s >= e for s, e in zip(geometry.stride, geometry.extent, strict=True)) and not any(map(any, geometry.padding)):
        target = Slabs(gx, geometry, block, channels_last=False).windows(block).unflatten(1, (G, C))  # no windows overlap: one copy
        target.copy_(cells.permute(*range(d, 3 + 2 * d), *range(d)))
        return
    pixels = gx[n : n + images].unflatten(1, (G, C))
    counts, lead = (rows, *positions[1:]), [slice(None)] * 3
    for offset, _ in geometry.shifts([1] * d):
        source, target = [], []
        for k, (u, count) in enumerate(zip(offset, counts, strict=True)):
            s = geometry.stride[k]
            start = u * geometry.dilation[k] - geometry.padding[k][0] + (i * s if k == 0 else 0)
            a, b = max(0, -(start // s)), min(count, (gx.shape[2 + k] - 1 - start) // s + 1)
            source.append(slice(a, max(a, b)))
            target.append(slice(start + a * s, start + max(a, b - 1) * s + 1, s) if a < b else slice(0, 0))
        pixels[(*lead, *target)].add_(cells[offset][(*lead, *source)])  # += would also copy the sum onto itself


__all__ = ["LARGEST", "Columns", "add_columns", "as_matrices", "rows_of"]
