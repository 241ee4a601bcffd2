"""Winograd's minimal filtering: fewer multiplications, because a small convolution is a product of two polynomials.

One dimension, m outputs from r weights: the correlation of a tile of a = m + r - 1 pixels d with a kernel g is a product of polynomials,
read backwards, and such a product is known from its values at a points (Toom and Cook). Evaluating, multiplying and returning are
matrices:

    y = A' [ (G g) * (B' d) ]           `*` element by element: a multiplications instead of m * r
    B'   row k: the coefficients of the product of (t - p_j) over all points but p_k
    G    row k: the powers p_k ** u, divided by the product of (p_k - p_j) over the other points
    A'   column k: the powers p_k ** i.   The last point is infinity: it stands for the leading coefficient.

More dimensions apply the matrices along each. With channels, `*` becomes a sum over channels: one matrix product per point. Every step is
linear in each operand, so the gradients are the same chain transposed: of the weight `G' [ (B' d)' (A gy) ]`, of the tile
`B [ (G g)' (A gy) ]`, whose cells are added to the pixels they came from. The input gradient is also the convolution of the output gradient
with the kernel turned around, which has more tiles and fewer additions.

Cost: a/m multiplications per output and dimension instead of r: F(4x4, 3x3) needs 36 / 16 = 2.25 instead of 9. Cutting and transforming
tiles moves and multiplies about 36 / 16 * 36 numbers per pixel and channel, so it needs some 16 channels on both sides to pay. Accuracy:
the points 0, 3/4, -3/4, 3/2, -3/2, infinity keep the rounding error of F(4x4, 3x3) at about six times that of a dot product (0, 1, -1, 2,
-2: ten times); a third dimension would multiply it again, so there tiles have two outputs. An infinity or NaN spreads over its whole
tile: results that are not finite are computed again by im2col. Applies to float32 and float64, stride 1, no dilation, kernels of
at most five cells (three in three dimensions) along each side.
"""

from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache, reduce
from itertools import product
from math import prod
from typing import Any

import torch
from torch import Tensor

from cnn425.algorithms import im2col, memory
from cnn425.algorithms.blocks import Block, Slabs, blocks, flipped
from cnn425.algorithms.layout import empty
from cnn425.algorithms.lowering import mergeable
from cnn425.algorithms.memory import in_order, lent, scratch
from cnn425.windows import Geometry

POINT_BYTES = 19 << 19  # of the kernel's points, of some outputs at a time if all are more
CELLS = 1 << 18  # of the kernel that are copied at a time
BLOCK_BYTES = 5 << 20  # of the points of a block of tiles, there and back
ROW_BYTES = 11 << 20  # of the points of a row of tiles, in three buffers
POINTS = (Fraction(0), Fraction(3, 4), Fraction(-3, 4), Fraction(3, 2), Fraction(-3, 2))
FEW_POINTS = (Fraction(0), Fraction(1), Fraction(-1))


def tile(dimensions: int) -> int:
    """Pixels along one side of a tile."""
    return len(FEW_POINTS if dimensions == 3 else POINTS) + 1


def applies(dtype: torch.dtype, geometry: Geometry) -> bool:
    """Whether this algorithm can compute a convolution at all; whether it pays is another question."""
    return (
        dtype in (torch.float32, torch.float64)
        and all(s == d == 1 for s, d in zip(geometry.stride, geometry.dilation, strict=True))
        and max(geometry.kernel) < tile(geometry.dimensions)
    )


def fits(channels: int, positions: Sequence[int], geometry: Geometry) -> bool:
    """Whether the points of one row of tiles, of so many channels, have room in the scratch memory, there and back."""
    sides = [tile(geometry.dimensions) if k > 1 else 1 for k in geometry.kernel]
    counts = [-(-p // (a + 1 - k)) for p, a, k in zip(positions, sides, geometry.kernel, strict=True)]
    return 3 * prod(counts[1:]) * channels * prod(sides) * 4 <= ROW_BYTES


@lru_cache(maxsize=64)
def matrices(r: int, dimensions: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """A' (m, a), G (a, r) and B' (a, a) for kernels of `r` cells; a kernel of one cell is left as it is, with tiles of one pixel."""
    points = () if r == 1 else FEW_POINTS if dimensions == 3 else POINTS
    m = len(points) + 2 - r
    others = [[q for q in points if q != p] for p in points]
    A = [[p**i for p in points] + [Fraction(i == m - 1)] for i in range(m)]
    G = [[p**u / prod((p - q for q in rest), start=Fraction(1)) for u in range(r)] for p, rest in zip(points, others, strict=True)]
    B = [[*_coefficients(rest), Fraction(0)] for rest in others]
    G.append([Fraction(u == r - 1) for u in range(r)])
    B.append(_coefficients(points))
    return as_tensor(A, dtype, device), as_tensor(G, dtype, device), as_tensor(B, dtype, device)


def as_tensor(rows: Sequence[Sequence[Fraction]], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A matrix of fractions, rounded once."""
    return torch.tensor([[float(v) for v in row] for row in rows], dtype=dtype, device=device)


def _coefficients(roots: Sequence[Fraction]) -> list[Fraction]:
    """The coefficients, lowest first, of the product of (t - root) over all roots."""
    c = [Fraction(1)]
    for root in roots:
        c = [high - root * low for high, low in zip([Fraction(0), *c], [*c, Fraction(0)], strict=True)]
    return c


@lru_cache(maxsize=64)
def transforms(kernel: tuple[int, ...], dtype: torch.dtype, device: torch.device, turned: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """A', G and B' for all dimensions at once, their Kronecker products: one larger matrix product is faster than several thin ones.

    `turned`: for the kernel turned around, as the output gradient meets it on its way to the pixels.
    """
    each = [matrices(r, len(kernel), dtype, device) for r in kernel]
    each = [(A, G.flip(1), B) for A, G, B in each] if turned else each
    A, G, B = (reduce(torch.kron, [m[k] for m in each]).contiguous() for k in range(3))
    return A, G, B


class Tiles:
    """The tiles of all images, cut into blocks, and the buffers between which the tiles of a block are transformed, there and back.

    `chunks` are the outputs whose kernel points are held at a time.
    """

    def __init__(self, x: Tensor, geometry: Geometry, positions: Sequence[int], outputs: int, buffers: int):
        each = [matrices(k, geometry.dimensions, x.dtype, x.device)[0] for k in geometry.kernel]
        self.d, self.positions = geometry.dimensions, tuple(positions)
        self.m, self.a = [A.shape[0] for A in each], [A.shape[1] for A in each]
        self.points = prod(self.a)
        self.counts = [-(-p // m) for p, m in zip(positions, self.m, strict=True)]
        channels, bytes_ = x.shape[1], x.element_size()
        most = max(1, POINT_BYTES // (self.points * channels * bytes_))
        step = -(-outputs // -(-outputs // most))
        self.chunks = [slice(o, min(o + step, outputs)) for o in range(0, outputs, step)]
        row = prod(self.counts[1:]) * max(channels, step) * self.points
        self.blocks = list(blocks(x.shape[0], self.counts[0], row * bytes_, BLOCK_BYTES // buffers))
        self.buffers = [scratch(x, row * self.blocks[0].images * self.blocks[0].rows) for _ in range(buffers)]
        self.kernel = scratch(x, self.points * step * channels)

    def slabs(self, x: Tensor, side: Sequence[int], low: Sequence[int]) -> Slabs:
        """The tiles of `side` pixels, m pixels apart, of an image that starts `low` pixels after the first tile."""
        padding = [(p, (count - 1) * m + a - n - p) for n, p, count, m, a in zip(x.shape[2:], low, self.counts, self.m, side, strict=True)]
        return Slabs(x, Geometry(tuple(side), tuple(self.m), tuple(padding), (1,) * self.d), self.blocks[0], channels_last=True)

    def transform(self, matrix: Tensor, x: Tensor, to: int) -> Tensor:
        """`matrix` times the pixels or points of every tile, `(cells, ...) -> (cells', ...)`, into buffer `to`."""
        out = self.buffers[to][: matrix.shape[0] * x[0].numel()].view(matrix.shape[0], -1)
        return torch.mm(matrix, x.view(matrix.shape[1], -1), out=out)

    def points_of(self, slabs: Slabs, block: Block, matrix: Tensor, to: int, outputs: slice = slice(None)) -> Tensor:
        """The tiles of a block, transformed by `matrix`: `(points, tiles, channels)`, in buffer `to`, by way of buffer 0."""
        cells, d = slabs.windows(block)[:, outputs], self.d
        cells = cells.permute(*range(2 + d, 2 + 2 * d), 0, *range(2, 2 + d), 1)  # u v n i j c
        x = self.buffers[0][: cells.numel()].view(cells.shape)
        x.copy_(cells)
        return self.transform(matrix, x.flatten(0, d - 1), to).view(self.points, -1, cells.shape[-1])

    def lay(self, tiles: Tensor, block: Block, y: Tensor) -> None:
        """Writes the pixels of the tiles of a block, `(pixels, tiles, O)`, to their places in `y`; what hangs over the edge is dropped."""
        d, counts = self.d, (block.rows, *self.counts[1:])
        tiles = tiles.view(*self.m, block.images, *counts, -1)
        tiles = tiles.permute(d, *(k for pair in zip(range(d + 1, 2 * d + 1), range(d), strict=True) for k in pair), -1)
        start = block.i * self.m[0]
        out = y[block.n : block.n + block.images, :, start : start + block.rows * self.m[0]].movedim(1, -1)
        if out.stride(-1) == 1 and all(p % m == 0 for p, m in zip(self.positions, self.m, strict=True)):
            for k in range(d):
                out = out.unflatten(1 + 2 * k, (-1, self.m[k]))
            out.copy_(tiles)
        else:
            sides = [c * m for c, m in zip(counts, self.m, strict=True)]
            whole = self.buffers[0][: tiles.numel()].view(tiles.shape).copy_(tiles).view(block.images, *sides, -1)
            out.copy_(whole[(slice(None), *(slice(0, n) for n in out.shape[1:-1]))])

    def reach(self) -> list[int]:
        """How many tiles one after the other share a pixel, per dimension."""
        return [-(-a // m) for a, m in zip(self.a, self.m, strict=True)]

    def overlapping(self, block: Block, channels: int) -> int:
        """How many numbers the pixels under the tiles of a block are."""
        counts = (block.rows, *self.counts[1:])
        return block.images * channels * prod((n + q - 1) * m for n, q, m in zip(counts, self.reach(), self.m, strict=True))

    def add_up(self, cells: Tensor, block: Block, memory: Tensor, gx: Tensor, geometry: Geometry, add: bool) -> None:
        """Every cell of the tiles of a block, `(cells, tiles * C)`, added to its pixel of `gx`."""
        d, counts, reach, C = self.d, (block.rows, *self.counts[1:]), self.reach(), gx.shape[1]
        grid = [n for count, q, m in zip(counts, reach, self.m, strict=True) for n in (count + q - 1, m)]
        pixels = memory[: self.overlapping(block, C)].view(block.images, *grid, C).zero_()
        tiles = cells.view(*self.a, block.images, *counts, C)
        tiles = tiles.permute(d, *(k for pair in zip(range(d + 1, 2 * d + 1), range(d), strict=True) for k in pair), -1)
        for shift in product(*map(range, reach)):  # cells beyond the first m of a tile lie in the next tile, or the one after it
            source, target = [], []
            for q, count, m, a in zip(shift, counts, self.m, self.a, strict=True):
                last = min(a, (q + 1) * m)
                source += [slice(None), slice(q * m, last)]
                target += [slice(q, q + count), slice(0, last - q * m)]
            here: Any = (slice(None), *source)
            there: Any = (slice(None), *target)
            pixels[there].add_(tiles[here])
        whole = pixels.view(block.images, *(n * m for n, m in zip(grid[::2], self.m, strict=True)), C).movedim(-1, 1)
        low = [-p for p, _ in geometry.padding]
        low[0] += block.i * self.m[0]
        start = [max(0, a) for a in low]
        stop = [min(n, a + k) for n, a, k in zip(gx.shape[2:], low, whole.shape[2:], strict=True)]
        image: Any = (slice(block.n, block.n + block.images), slice(None), *map(slice, start, stop))
        seen: Any = (..., *(slice(a - b, c - b) for a, b, c in zip(start, low, stop, strict=True)))
        if add:
            gx[image].add_(whole[seen])
        else:
            gx[image].copy_(whole[seen])


def convolve(x: Tensor, w: Tensor, geometry: Geometry, groups: int, bias: Tensor | None, layout: torch.memory_format) -> Tensor:
    """The output, `(N, C, *size), (O, C/G, *kernel), (O,) -> (N, O, *positions)`."""
    y = empty(x, (x.shape[0], w.shape[0], *geometry.positions(x.shape[2:])), layout)
    O, C = w.shape[0] // groups, w.shape[1]
    for g in range(groups):
        o, c = slice(g * O, (g + 1) * O), slice(g * C, (g + 1) * C)
        if not _convolve(x[:, c], w[o], geometry, None if bias is None else bias[o], y[:, o]):
            memory.begin()
            return im2col.convolve(x, w, geometry, groups, bias, layout)
    return y


def convolve_input_gradient(
    gy: Tensor, w: Tensor, geometry: Geometry, groups: int, size: Sequence[int], layout: torch.memory_format
) -> Tensor:
    """The gradient of the input, `(N, O, *positions), (O, C/G, *kernel) -> (N, C, *size)`."""
    O, C = w.shape[0] // groups, w.shape[1]
    gx = empty(gy, (gy.shape[0], groups * C, *size), layout)
    turned = flipped(geometry, size, gy.shape[2:])
    for g in range(groups):
        o, c = slice(g * O, (g + 1) * O), slice(g * C, (g + 1) * C)
        if backwards_pays(O, C, geometry.kernel, gy.shape[2:], size):
            finite = _input_gradient(gy[:, o], w[o], geometry, gx[:, c])
        else:
            finite = _convolve(gy[:, o], w[o].transpose(0, 1), turned, None, gx[:, c], turned=True)
        if not finite:
            memory.begin()
            return im2col.convolve_input_gradient(gy, w, geometry, groups, size, layout)
    return gx


def backwards_pays(O: int, C: int, kernel: Sequence[int], positions: Sequence[int], size: Sequence[int]) -> bool:
    """Whether the input gradient takes fewer steps as the transposed chain than as a convolution of the output gradient."""
    m = [tile(len(kernel)) + 1 - k if k > 1 else 1 for k in kernel]
    few, many = (prod(-(-n // k) for n, k in zip(counts, m, strict=True)) for counts in (positions, size))
    return few * (O * 12 + C * 38) < many * (O * 28 + C * 15)  # nanoseconds per tile of F(4x4, 3x3), measured


def _input_gradient(gy: Tensor, w: Tensor, geometry: Geometry, gx: Tensor) -> bool:
    """The gradient for one group: the chain of `_convolve` transposed, from its end to its beginning; whether all numbers are finite."""
    A, G, B = transforms(geometry.kernel, gy.dtype, gy.device)
    tiles = Tiles(gx, geometry, gy.shape[2:], gy.shape[1], buffers=3)
    gradients = tiles.slabs(gy, tiles.m, [0] * tiles.d)
    several, total = len(tiles.chunks) > 1, gy.new_zeros(())
    U = points_of_kernel(w[tiles.chunks[0]], G, tiles.kernel).mT
    add = tiles.blocks[0].rows < tiles.counts[0]  # tiles of neighbouring blocks overlap
    pixels = scratch(gy, tiles.overlapping(tiles.blocks[0], gx.shape[1]))
    if add:
        gx.zero_()
    for block in tiles.blocks:
        for k, o in enumerate(tiles.chunks):
            U = points_of_kernel(w[o], G, tiles.kernel).mT if several else U
            gM = tiles.points_of(gradients, block, A.t(), to=1, outputs=o)
            gV = tiles.buffers[2][: gM[..., 0].numel() * U.shape[2]].view(*gM.shape[:2], -1)
            if k:
                gV.baddbmm_(gM, U)
            else:
                torch.bmm(gM, U, out=gV)
        cells = tiles.transform(B.t(), gV, to=0)
        total += cells[0].sum()
        tiles.add_up(cells, block, pixels, gx, geometry, add)
    return bool(total.isfinite())


def _convolve(x: Tensor, w: Tensor, geometry: Geometry, bias: Tensor | None, y: Tensor, turned: bool = False) -> bool:
    """The output of one group, `w` is `(O, C, *kernel)`, and to be turned around if it says so; whether all numbers are finite."""
    A, G, B = transforms(geometry.kernel, x.dtype, x.device, turned)
    tiles = Tiles(x, geometry, y.shape[2:], w.shape[0], buffers=2)
    slabs = tiles.slabs(x, tiles.a, [low for low, _ in geometry.padding])
    several = len(tiles.chunks) > 1
    third = scratch(x, tiles.buffers[0].numel()) if several else tiles.buffers[1]  # V stays until all outputs are done
    tiles.buffers.append(third)
    U = points_of_kernel(w[tiles.chunks[0]], G, tiles.kernel)
    total = x.new_zeros(())
    for block in tiles.blocks:
        V = tiles.points_of(slabs, block, B, to=1)
        for o in tiles.chunks:
            U = points_of_kernel(w[o], G, tiles.kernel) if several else U
            M = torch.bmm(V, U, out=tiles.buffers[0][: V[..., 0].numel() * U.shape[2]].view(*V.shape[:2], -1))
            Y = tiles.transform(A, M, to=2).view(A.shape[0], -1, U.shape[2])
            if bias is not None:
                Y += bias[o]
            total += Y[0].sum()  # one pixel of every tile: what is not finite has spread to all of them
            tiles.lay(Y, block, y[:, o])
    return bool(total.isfinite())


def points_of_kernel(w: Tensor, G: Tensor, memory: Tensor) -> Tensor:
    """The kernel `(O, C, *kernel)` at all points, `(points, C, O)`; its two channels keep the order in which they lie in memory."""
    exchanged = w.stride(0) < w.stride(1)
    if exchanged:
        w = w.transpose(0, 1)
    cells = w.flatten(2).permute(2, 0, 1)
    points = memory[: G.shape[0] * cells[0].numel()].view(G.shape[0], *w.shape[:2])
    whole = mergeable(w.shape[:2], w.stride()[:2]) is not None
    few = len(w) if whole else max(1, CELLS // cells[:, 0].numel())  # otherwise the cells are copied, some at a time
    for here, there in zip(cells.split(few, 1), points.split(few, 1), strict=True):
        with lent():
            torch.mm(G, (here if whole else in_order(here)).flatten(1), out=there.flatten(1))
    return points if exchanged else points.mT


def convolve_weight_gradient(gy: Tensor, x: Tensor, geometry: Geometry, groups: int, layout: torch.memory_format) -> Tensor:
    """The gradient of the weight, `(N, O, *positions), (N, C, *size) -> (O, C/G, *kernel)`."""
    O, C = gy.shape[1] // groups, x.shape[1] // groups
    gw = empty(x, (groups * O, C, *geometry.kernel), layout)
    for g in range(groups):
        o = slice(g * O, (g + 1) * O)
        _weight_gradient(gy[:, o], x[:, g * C : (g + 1) * C], geometry, gw[o])
    if not gw.sum().isfinite():
        memory.begin()
        return im2col.convolve_weight_gradient(gy, x, geometry, groups, layout)
    return gw


def _weight_gradient(gy: Tensor, x: Tensor, geometry: Geometry, gw: Tensor) -> None:
    """The gradient for one group, written to `gw` `(O, C, *kernel)`."""
    A, G, B = transforms(geometry.kernel, x.dtype, x.device)
    tiles = Tiles(x, geometry, gy.shape[2:], gy.shape[1], buffers=3)
    pixels = tiles.slabs(x, tiles.a, [low for low, _ in geometry.padding])
    gradients = tiles.slabs(gy, tiles.m, [0] * tiles.d)
    V: Tensor | None = None
    for o in tiles.chunks:
        gU = tiles.kernel[: tiles.points * (o.stop - o.start) * x.shape[1]].view(tiles.points, o.stop - o.start, -1)
        for k, block in enumerate(tiles.blocks):
            V = tiles.points_of(pixels, block, B, to=1) if V is None or len(tiles.blocks) > 1 else V
            gM = tiles.points_of(gradients, block, A.t(), to=2, outputs=o)
            if k:
                gU.baddbmm_(gM.mT, V)
            else:
                torch.bmm(gM.mT, V, out=gU)
        rows = max(1, tiles.buffers[0].numel() // (G.shape[1] * x.shape[1]))
        for gw_rows, points in zip(gw[o].split(rows), gU.split(rows, dim=1), strict=True):
            part = tiles.buffers[0][: G.shape[1] * points[0].numel()].view(G.shape[1], -1)
            torch.mm(G.t(), points.flatten(1), out=part)
            gw_rows.copy_(part.view(*geometry.kernel, *points.shape[1:]).movedim((-2, -1), (0, 1)))
