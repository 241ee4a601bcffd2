"""Shifted: im2col without the copies along the last dimension, because a shifted view of a flat image is already a matrix.

Lay the padded rows of an image one behind the other, one line per channel (and, with a kernel of several rows, per row u of the kernel).
Then the cells (c, u) of all windows at offset v are this matrix from number v * d on: a view, whose leading dimension is that of the
whole.

    out (O, L)  = sum over v of  W[:, :, :, v] (O, C*U) @ lines (C*U, L)[:, v*d :]

The positions at the end of each row, where a window would run on into the next, are computed too and dropped when `out` is copied to `y`.

Cost: U copies of the image instead of im2col's U*V, and none in one dimension; (J + (V-1)*d) / J of its multiplications, in V products
that add into `out`. Accuracy: that of im2col. Applies to float32 and float64 with stride 1 along the last dimension; the input gradient
is the convolution with the flipped kernel where all strides are 1.
"""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from cnn425.algorithms import im2col
from cnn425.algorithms.blocks import BYTES, Block, Slabs, blocks, flip, flipped
from cnn425.algorithms.layout import empty
from cnn425.algorithms.memory import scratch
from cnn425.windows import Geometry


def applies(dtype: torch.dtype, geometry: Geometry) -> bool:
    """Whether this algorithm can compute the output and the weight gradient."""
    return dtype in (torch.float32, torch.float64) and geometry.stride[-1] == 1


class Lines:
    """The lines of one block of images after the other, `(G, C/G*U, L)`, each L numbers: all rows of the block, one behind the other."""

    def __init__(self, x: Tensor, geometry: Geometry, groups: int, outputs: int):
        self.groups, self.d = groups, geometry.dimensions
        self.positions = geometry.positions(x.shape[2:])
        self.width = self.positions[-1] + geometry.extent[-1] - 1
        low = geometry.padding[-1][0]
        padding = (*geometry.padding[:-1], (low, self.width - low - x.shape[-1]))
        once = geometry._replace(kernel=(*geometry.kernel[:-1], 1), padding=padding)
        self.cells = x.shape[1] * prod(once.kernel)
        if self.d > 1:
            row = prod(self.positions[1:-1]) * self.width
            row_bytes = max(self.cells, outputs) * row * x.element_size()
            self.blocks = list(blocks(x.shape[0], self.positions[0], row_bytes, BYTES))
        else:  # a signal is one row
            parts = blocks(x.shape[0], 1, max(self.cells, outputs) * self.width * x.element_size(), BYTES)
            self.blocks = [part._replace(rows=self.width) for part in parts]
        first = self.blocks[0]
        self.slabs = Slabs(x, once, first, channels_last=False)
        self.buffer = scratch(x, self.cells * first.images * self.length(first) // first.images)

    def length(self, block: Block) -> int:
        """L for this block."""
        return block.images * block.rows * (prod(self.positions[1:-1]) * self.width if self.d > 1 else 1)

    def shape(self, block: Block) -> tuple[int, ...]:
        """The rows of a block, `(images, rows, ..., width)`."""
        return (block.images, block.rows, *self.positions[1:-1], self.width) if self.d > 1 else (block.images, self.width)

    def of(self, block: Block) -> Tensor:
        """The lines of a block."""
        d = self.d
        source = self.slabs.windows(block).squeeze(-1).permute(1, *range(2 + d, 1 + 2 * d), 0, *range(2, 2 + d))  # c u n i j
        lines = self.buffer[: source.numel()].view(source.shape).copy_(source)
        return lines.view(self.groups, self.cells // self.groups, -1)

    def part(self, y: Tensor, block: Block) -> Tensor:
        """The part of an output, or of its gradient, that belongs to a block, `(O, images, rows, *positions[1:])`."""
        part = y[block.n : block.n + block.images]
        return (part[:, :, block.i : block.i + block.rows] if self.d > 1 else part).transpose(0, 1)


def convolve(x: Tensor, w: Tensor, geometry: Geometry, groups: int, bias: Tensor | None, layout: torch.memory_format) -> Tensor:
    """The output, `(N, C, *size), (O, C/G, *kernel), (O,) -> (N, O, *positions)`."""
    O = w.shape[0]
    y = empty(x, (x.shape[0], O, *geometry.positions(x.shape[2:])), layout)
    lines = Lines(x, geometry, groups, O)
    weight = w.movedim(-1, 0).reshape(geometry.kernel[-1], groups, O // groups, -1)
    buffer = scratch(x, O * lines.length(lines.blocks[0]))
    for block in lines.blocks:
        cells = lines.of(block)
        out = buffer[: O * cells.shape[-1]].view(groups, O // groups, -1)
        length = cells.shape[-1] - geometry.extent[-1] + 1
        for v in range(geometry.kernel[-1]):
            shift = v * geometry.dilation[-1]
            for g in range(groups):
                some = out[g, :, :length]
                torch.addmm(some, weight[v, g], cells[g, :, shift : shift + length], beta=float(v > 0), out=some)
        result = out.view(O, *lines.shape(block))[..., : y.shape[-1]]
        if bias is not None:
            result += bias.view(-1, *(1,) * (result.ndim - 1))
        lines.part(y, block).copy_(result)
    return y


def convolve_input_gradient(
    gy: Tensor, w: Tensor, geometry: Geometry, groups: int, size: Sequence[int], layout: torch.memory_format
) -> Tensor:
    """The gradient of the input, `(N, O, *positions), (O, C/G, *kernel) -> (N, C, *size)`."""
    if any(s != 1 for s in geometry.stride):
        return im2col.convolve_input_gradient(gy, w, geometry, groups, size, layout)
    return convolve(gy, flip(w, groups), flipped(geometry, size, gy.shape[2:]), groups, None, layout)


def convolve_weight_gradient(gy: Tensor, x: Tensor, geometry: Geometry, groups: int, layout: torch.memory_format) -> Tensor:
    """The gradient of the weight, `(N, O, *positions), (N, C, *size) -> (O, C/G, *kernel)`."""
    O = gy.shape[1]
    lines = Lines(x, geometry, groups, O)
    gw = torch.zeros(geometry.kernel[-1], groups, O // groups, lines.cells // groups, dtype=x.dtype, device=x.device)
    buffer = scratch(x, O * lines.length(lines.blocks[0])).zero_()
    for block in lines.blocks:
        cells = lines.of(block)
        rows = buffer[: O * cells.shape[-1]].view(O, *lines.shape(block))
        if block.images * block.rows < lines.blocks[0].images * lines.blocks[0].rows:
            rows.zero_()
        rows[..., : gy.shape[-1]] = lines.part(gy, block)  # zeros stay where windows would run on
        left = rows.view(groups, O // groups, -1)
        length = cells.shape[-1] - geometry.extent[-1] + 1
        for v in range(geometry.kernel[-1]):
            shift = v * geometry.dilation[-1]
            torch.baddbmm(gw[v], left[..., :length], cells[..., shift : shift + length].mT, out=gw[v])
    gw = gw.view(geometry.kernel[-1], O, -1, *geometry.kernel[:-1])
    return empty(x, (O, gw.shape[2], *geometry.kernel), layout).copy_(gw.movedim(0, -1))
