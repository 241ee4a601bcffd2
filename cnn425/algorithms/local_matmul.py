"""A local layer as one matrix product per position, the positions of a block in one batched call.

At position (i, j) the layer is a fully connected one: a matrix of O rows of K = C/G*U*V weights meets the N windows there, its columns.

    output            y[ij]     =  w[ij]   x[ij]         (O, K) (K, N)  -> (O, N)
    weight gradient   gw[ij]    =  gy[ij]  x[ij]'        (O, N) (N, K)  -> (O, K)
    window gradient   gx[ij]    =  w[ij]'  gy[ij]        (K, O) (O, N)  -> (K, N)       then added to the pixels the cells came from

The weight is not copied: cells are taken in the order in which they lie in its memory, and the windows are cut in that order too, from an
image laid out in that order, with the batch innermost, (C, H, W, N): what is copied are runs of V*N numbers, and all three products meet
their rows in the order that a matrix product likes best. Of fewer images than fill a vector register the batch stays outermost, and the
columns are rows in memory. Windows exist for one block of positions at a time, small enough to stay in the cache. Their gradients return in
two steps: along each line, as many windows at once as do not overlap; then the lines of all U offsets. That is U + V additions per block.

Cost per map: 2*N*O*K operations per position at the rate of a batched product; one reading (or writing) of the weight; N*K cells moved
within the cache; one change of layout of image and output. Extra memory: an image in the other layout, and a block. Accuracy: that of one
product per position; in half precision the input gradient is added up in float32.
"""

import itertools
from collections.abc import Iterator
from math import prod
from typing import Any

import torch
from torch import Tensor

from cnn425.algorithms import local_blocks as local
from cnn425.algorithms.local_blocks import Block, Cells
from cnn425.algorithms.lowering import mergeable
from cnn425.algorithms.memory import in_order, lent, scratch
from cnn425.windows import Geometry, windows

BLOCK = 4 << 20  # bytes of rows at a time on a CPU: the second-level caches of two cores
BLOCK_ON_DEVICE = 8 << 20
TILE = 64  # positions whose results are turned into the layout of the output at once: the lines of more would not stay in the cache,
TILE_BYTES = 1 << 18  # unless they are so few


def output(x: Tensor, w: Tensor, geometry: Geometry, groups: int, bias: Tensor | None, y: Tensor) -> None:
    """Fill `y` `(N, O, *positions)`; the bias is `(1, O, *positions)`."""
    cells = local.cells_of(local.memory_order(w), w.shape, geometry.dimensions, len(x))
    views = local.window_view(local.padded_image(x, geometry, cells), geometry, groups, cells)
    weights, outputs = local.weight_view(w, geometry.dimensions, groups, cells), local.output_view(y, groups)
    biases = None if bias is None else local.output_view(bias, groups)
    d, numbers = geometry.dimensions, max(1, y.shape[0] * y.shape[1])
    for block in fitting(views, geometry):
        target = outputs[block]
        with lent():
            result = product(matrices(weights[block]), columns(views[block], cells), cells).view(target.shape)
            for tile in local.blocks(target.shape[:d], max(TILE, TILE_BYTES // (numbers * y.element_size()))):
                if biases is None:
                    target[tile].copy_(result[tile])
                else:
                    torch.add(result[tile], biases[block][tile], out=target[tile])


def input_gradient(gy: Tensor, w: Tensor, geometry: Geometry, groups: int, gx: Tensor) -> None:
    """Fill `gx` `(N, C, *size)`."""
    cells = local.cells_of(local.memory_order(w), w.shape, geometry.dimensions, len(gy))
    exact = torch.float32 if gx.dtype in (torch.float16, torch.bfloat16) else gx.dtype
    padded = local.image(gx, gx.shape, geometry, cells, exact).zero_()
    views, lines = local.window_view(padded, geometry, groups, cells), local.line_view(padded, geometry, groups, cells)
    weights = local.weight_view(w, geometry.dimensions, groups, cells)
    for block in fitting(views, geometry):
        with lent():
            result = product(matrices(weights[block]).mT, gradients(gy, block, groups), cells)
            add_windows(lines, (result if cells.batch_inside else result.mT).view(views[block].shape), block, geometry, cells)
    inside, seen = local.real_pixels(padded, gx, geometry)
    if seen.shape != gx.shape:
        gx.zero_()
    local.put(seen, inside)


def weight_gradient(gy: Tensor, x: Tensor, geometry: Geometry, groups: int, gw: Tensor) -> None:
    """Fill `gw` `(*positions, O, C/G, *kernel)`."""
    cells = local.cells_of(local.memory_order(gw), gw.shape, geometry.dimensions, len(x))
    views = local.window_view(local.padded_image(x, geometry, cells), geometry, groups, cells)
    weights = local.weight_view(gw, geometry.dimensions, groups, cells)
    multiply = torch.mul if len(x) == 1 else torch.bmm  # of one image: an outer product
    for block in fitting(views, geometry):
        with lent():
            target, left, right = weights[block], gradients(gy, block, groups), columns(views[block], cells).mT
            shape = (len(left), left.shape[1], right.shape[2])
            product_ = target.view(shape) if target.is_contiguous() else scratch(gw, *shape)
            multiply(left, right, out=product_)
            if not target.is_contiguous():
                target.copy_(product_.view(target.shape))


def fitting(windows: Tensor, geometry: Geometry) -> Iterator[Block]:
    """Blocks of positions whose windows fit into the cache."""
    d = geometry.dimensions
    room = BLOCK if windows.device.type == "cpu" else BLOCK_ON_DEVICE
    return local.blocks(windows.shape[:d], room // max(1, prod(windows.shape[d:]) * windows.element_size()))


def gradients(gy: Tensor, block: Block, groups: int) -> Tensor:
    """The output gradient of a block as one matrix per position and group, `(B, O, N)`: images innermost if many, else the channels."""
    here: Any = (..., *block)
    gy, inner = gy[here], 0 if len(gy) >= local.MANY else 1
    if gy.stride(inner) != 1:
        gy = in_order(gy.movedim(inner, -1)).movedim(-1, inner)
    return packed(local.output_view(gy, groups))


def product(left: Tensor, right: Tensor, cells: Cells) -> Tensor:
    """The products of matrices, in memory with the batch innermost or outermost, as the cells say."""
    first, second = (left, right) if cells.batch_inside else (right.mT, left.mT)
    out = torch.bmm(first, second, out=scratch(left, len(left), first.shape[1], second.shape[2]))
    return out if cells.batch_inside else out.mT


def columns(windows: Tensor, cells: Cells) -> Tensor:
    """The windows of a block as one matrix per position and group, `(B, K, N)`: copied, unless a window is one stretch of memory."""
    k = len(cells.order)
    inner = slice(-k - 1, -1) if cells.batch_inside else slice(-k, None)
    if mergeable(windows.shape[inner], windows.stride()[inner]) is None:
        windows = in_order(windows)
    if cells.batch_inside:
        return packed(windows.flatten(-k - 1, -2))
    return packed(windows.flatten(-k)).mT


def matrices(weights: Tensor) -> Tensor:
    """The weights of a block as one matrix per position and group, `(B, O, K)`: a view, if the positions come first in memory."""
    return packed(weights.flatten((weights.ndim - 3) // 2 + 2))


def packed(t: Tensor) -> Tensor:
    """`t` as matrices `(B, height, width)` with rows or columns that are stretches of memory (others the product copies one by one)."""
    matrix = t.flatten(0, -3)
    _, height, width = matrix.shape
    _, down, across = matrix.stride()
    ready = (across == 1 and (height == 1 or down >= width)) or (down == 1 and (width == 1 or across >= height))
    return matrix if ready else in_order(matrix)


def add_windows(lines: Tensor, result: Tensor, block: Block, geometry: Geometry, cells: Cells) -> None:
    """Add the windows `result` of a block to `lines` of pixels: along a line those at once that do not overlap, then whole lines."""
    d, stride, (start, stop) = geometry.dimensions, geometry.stride[-1], (block[-1].start, block[-1].stop)
    first = d + (not cells.batch_inside)
    across = first + cells.order.index(d)
    target = lines[block[:-1]].narrow(across, start * stride, (stop - start - 1) * stride + geometry.extent[-1])
    rows = scratch(target, *target.shape).zero_()
    seen = windows(rows.movedim(across, -1), Geometry(geometry.kernel[-1:], (stride,), ((0, 0),), geometry.dilation[-1:]))
    said = result.movedim((d - 1, across + 1), (-2, -1))
    apart = -(-geometry.extent[-1] // stride)
    for phase in range(min(apart, stop - start)):
        seen[..., phase::apart, :].add_(said[..., phase::apart, :])
    index: list[slice | int] = [slice(None)] * target.ndim
    for offset in itertools.product(*map(range, geometry.kernel[:-1])):
        for dimension, u in enumerate(offset):
            index[first + cells.order.index(dimension + 1)] = u
        target[tuple(index)].add_(rows[tuple(index)])
