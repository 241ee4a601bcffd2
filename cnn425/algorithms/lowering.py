"""Lowering: the windows of some images as matrices, one matrix per shift of the first dimension.

    im2col      every cell of a window is copied out:                          K = C*U*V numbers per window, one matrix
    shifted     the cells of one row of a window are copied out, row by row:   K = C*V numbers per row of a window, and
                row u of all windows is the same memory from u*d rows on:      U matrices that are views of one

Memory order of what is copied (p: phase, if rows are strided; h: rows; the other dimensions are like j):

                    image by image                                    images together
    contiguous      n g  (c v)  p h j     matrices (n*g, K, L)        g  (c v)  p h n j     matrices (g, K, L)
    channels last   n g  p h j  (v c)     matrices (n*g, L, K)        g  p h n j  (v c)     matrices (g, L, K)

With the images one by one a product writes straight to the output; together, small images make one large product, whose result is then
copied to its place. If windows lie in memory as the matrices want them (1x1 kernels), nothing is copied.
"""

from collections.abc import Iterator, Sequence
from math import prod

import torch
from torch import Tensor

from cnn425.algorithms.blocks import Block, Slabs, blocks
from cnn425.algorithms.memory import in_order, scratch
from cnn425.windows import Geometry

BYTES = 5 << 20  # of one block: two cores read their halves from the second-level cache or near it
FEW_POSITIONS = 60  # with fewer windows per image, a product per image would be thin


class Lowering:
    """The matrices of all blocks of `x`, one block after the other in the same memory."""

    def __init__(
        self, x: Tensor, geometry: Geometry, groups: int, last: bool, shifted: bool, together: bool | None = None, copies: bool = True
    ):
        self.x, self.geometry, self.groups, self.last, self.shifted = x, geometry, groups, last, shifted
        self.positions = geometry.positions(x.shape[2:])
        self.row = prod(self.positions[1:])
        self.channels = x.shape[1] // groups
        # The windows that are copied out, and for every shift the phase and the number of rows it skips.
        self.windows, self.steps = row_by_row(geometry, x.shape[2:]) if shifted else (geometry, [(0, 0)])
        self.lag = self.steps[-1][1]
        self.phases = self.windows.kernel[0] if shifted else 1
        self.cells = self.channels * prod(self.windows.kernel) // self.phases
        row_bytes = groups * self.cells * self.phases * self.row * x.element_size()
        few = prod(self.positions) < FEW_POSITIONS and x.shape[0] > 1
        free = copies and self._is_view(x, self.windows) and (last or not (few if together is None else together))
        if together is None:
            together = (last and groups > 1) or few
        room = 1 << 40 if free else max(BYTES - self.lag * row_bytes, row_bytes)
        self.blocks = list(blocks(x.shape[0], self.positions[0], row_bytes, room))
        part_of_image = self.blocks[0].rows < self.positions[0]
        self.together = together or (part_of_image and groups > 1)
        self.order = self._order(geometry.dimensions)
        self.buffer: Tensor | None = None
        self.slabs = Slabs(x, self.windows, self.lines(self.blocks[0]), last) if copies else None

    def _is_view(self, x: Tensor, windows: Geometry) -> bool:
        """Whether the image is its own matrices: nothing to copy, whatever the number of images."""
        if prod(windows.kernel) > 1 or any(s > 1 for s in windows.stride) or any(a or b for a, b in windows.overhang(x.shape[2:])):
            return False
        return x.movedim(1, -1).is_contiguous() and self.groups == 1 if self.last else x.is_contiguous()

    def lines(self, block: Block) -> Block:
        """The rows of windows that a block needs: with shifts a few more than it has."""
        return block._replace(rows=block.rows + self.lag)

    def _order(self, d: int) -> tuple[int, ...]:
        """Memory order of (n, g, c, h, *j, p, *v) as returned by `Slabs.windows`."""
        j, p, v = range(4, 3 + d), 3 + d, range(4 + d, 3 + 2 * d)
        if self.shifted:
            lines = (p, 3, 0, *j) if self.together else (p, 3, *j)
            cells: tuple[int, ...] = (*v, 2) if self.last else (2, *v)
        else:
            lines = (0, 3, *j) if self.together else (3, *j)
            cells = (p, *v, 2) if self.last else (2, p, *v)
        inner = (*lines, *cells) if self.last else (*cells, *lines)
        return (1, *inner) if self.together else (0, 1, *inner)

    def matrices(self, block: Block) -> list[Tensor]:
        """One matrix per shift: `(B, K, L)`, or `(B, L, K)` with the channels last; B images and groups, or groups only."""
        assert self.slabs is not None
        source = self.slabs.windows(self.lines(block)).unflatten(1, (self.groups, self.channels)).permute(self.order)
        if source.is_contiguous():
            return self.views(source, block)
        if self.buffer is None:
            self.buffer = scratch(self.x, source.numel())
        return self.views(self.buffer[: source.numel()].view(source.shape).copy_(source), block)

    def shape(self, block: Block) -> tuple[int, ...]:
        """The size of the lines of a block, in memory order."""
        sizes = (block.images, self.groups, self.channels, block.rows + self.lag, *self.positions[1:], *self.windows.kernel)
        return tuple(sizes[k] for k in self.order)

    def windows_of(self, lines: Tensor) -> Tensor:
        """Lines as windows `(n, C, h, *j, p, *v)`."""
        return lines.permute(sorted(range(lines.ndim), key=self.order.__getitem__)).flatten(1, 2)

    def views(self, lines: Tensor, block: Block) -> list[Tensor]:
        """The matrices in lines that lie in memory order."""
        batch = self.groups if self.together else block.images * self.groups
        unit = self.row * block.images if self.together else self.row  # numbers of one row of all images
        rows = block.rows + self.lag
        length, height = unit * block.rows, unit * rows
        start, size = lines.storage_offset(), self.cells * self.phases * height
        if not self.last:
            return [
                lines.as_strided(
                    (batch, self.cells, length), (size, self.phases * height, 1), start + phase * height + row * unit
                )
                for phase, row in self.steps
            ]  # fmt: skip
        return [
            lines.as_strided((batch, length, self.cells), (size, self.cells, 1), start + (phase * height + row * unit) * self.cells)
            for phase, row in self.steps
        ]

    def weights(self, w: Tensor) -> list[Tensor]:
        """The weight as one matrix `(G, O/G, K)` per shift, its cells in the order of the matrices."""
        w = self._per_shift(w.unflatten(0, (self.groups, -1)))  # u g o c v
        w = w.movedim(3, -1) if self.last else w
        return list(in_order(w).flatten(3).unbind(0))

    def turned_weights(self, w: Tensor) -> list[Tensor]:
        """The same of the weight `(O, C/G, *kernel)` turned around, inputs and outputs exchanged, as `(G, C/G, K)` per shift.

        The inputs stay innermost in memory, where they are close together or else would have to be fetched from far apart.
        """
        w = w.unflatten(0, (self.groups, -1))
        w = self._per_shift(w.flip(*range(3, w.ndim)) if prod(w.shape[3:]) > 1 else w)  # u g o c v
        w = w.movedim(3, -1)  # u g o v c
        w = w if not self.last else w.movedim(2, -2)  # u g v o c
        return list(in_order(w).flatten(2, -2).mT.unbind(0))

    def _per_shift(self, w: Tensor) -> Tensor:
        """The weight `(g, o, c, u, *v)` as `(u, g, o, c, *v)`, with a single u where all cells belong to one matrix."""
        return w.movedim(3, 0) if self.shifted else w.unsqueeze(0)

    def weight(self, matrices: Tensor, w: Tensor) -> Tensor:
        """The inverse of `weights`: matrices `(shifts, G, O/G, K)` written to the weight `w`."""
        kernel = self.geometry.kernel
        g = w.unflatten(0, (self.groups, -1))
        if self.shifted:
            g = g.movedim(3, 0)
            kernel = kernel[1:]
        else:
            g = g.unsqueeze(0)
        shape = matrices.shape[:3]
        g.copy_(matrices.view(*shape, *kernel, -1).movedim(-1, 3) if self.last else matrices.view(*shape, -1, *kernel))
        return w

    def part(self, y: Tensor, block: Block) -> Tensor:
        """The part of an output, or of its gradient, that belongs to a block, its dimensions in the order of a product's result."""
        d = self.geometry.dimensions
        part = y[block.n : block.n + block.images, :, block.i : block.i + block.rows].unflatten(1, (self.groups, -1))  # n g o i j
        lines: tuple[int, ...] = tuple(range(3, 3 + d))
        if self.together:
            lines = (3, 0, *range(4, 3 + d)) if self.shifted else (0, *lines)
        inner = (*lines, 2) if self.last else (2, *lines)
        return part.permute((1, *inner) if self.together else (0, 1, *inner))

    def as_matrices(self, part: Tensor) -> Tensor | None:
        """A part as matrices `(B, O, L)`, or `(B, L, O)` with the channels last; None if it does not lie so in memory."""
        batch = 1 if self.together else 2
        split = part.ndim - 1 if self.last else batch + 1
        shape = (prod(part.shape[:batch]), prod(part.shape[batch:split]), prod(part.shape[split:]))
        if part.is_contiguous():
            return part.view(shape)
        if shape[0] > 1:
            return None
        flat = part.reshape(part.shape[batch:]) if batch == 1 else part[0, 0]
        at = split - batch
        rows, columns = mergeable(flat.shape[:at], flat.stride()[:at]), mergeable(flat.shape[at:], flat.stride()[at:])
        if rows is None or columns != 1 or rows < shape[2]:
            return None
        return part.as_strided(shape, (rows * shape[1], rows, 1))

    def __iter__(self) -> Iterator[tuple[Block, list[Tensor]]]:
        """Every block with its matrices."""
        for block in self.blocks:
            yield block, self.matrices(block)


def row_by_row(geometry: Geometry, size: Sequence[int]) -> tuple[Geometry, list[tuple[int, int]]]:
    """Windows of one row each, at every row of the image; and for each row u of the kernel, where its rows begin: phase and row."""
    step, dilation, low = geometry.stride[0], geometry.dilation[0], geometry.padding[0][0]
    steps = [(u * dilation % step, u * dilation // step) for u in range(geometry.kernel[0])]
    rows = (geometry.positions(size)[0] + steps[-1][1]) * step
    windows = geometry._replace(
        kernel=(step, *geometry.kernel[1:]),
        dilation=(1, *geometry.dilation[1:]),
        padding=((low, rows - low - size[0]), *geometry.padding[1:]),
        ceil_mode=False,
    )
    return windows, steps


def mergeable(size: Sequence[int], stride: Sequence[int]) -> int | None:
    """The step of these dimensions taken as one, None if they do not lie one behind the other; 1 for a single number."""
    step: int | None = None
    whole = 1
    for n, s in zip(reversed(size), reversed(stride), strict=True):
        if n == 1:
            continue
        if step is None:
            step, whole = s, s * n
        elif s != whole:
            return None
        else:
            whole = s * n
    return 1 if step is None else step


def accumulate(out: Tensor, left: Sequence[Tensor], right: Sequence[Tensor], start: Tensor | None = None) -> None:
    """`out = start + sum of left[k] @ right[k]`, matrices `(B, ., .)`; `start` may be smaller than `out`, None is zero."""
    single = len(out) == 1
    for k, (a, b) in enumerate(zip(left, right, strict=True)):
        if single:
            a, b, c = a[0], b[0], out[0]
            if k:
                c.addmm_(a, b)
            elif start is None:
                torch.mm(a, b, out=c)
            else:
                torch.addmm(start[0], a, b, out=c)
        elif k:
            out.baddbmm_(a, b)
        elif start is None:
            torch.bmm(a, b, out=out)
        else:
            torch.baddbmm(start, a, b, out=out)
