"""A local layer as one matrix product per position, the positions of a block in one batched call.

At position (i, j) the layer is a fully connected one: the N windows there, rows of K = C/G*U*V cells, meet a matrix of O such rows.

    output            y[ij]     =  rows[ij]  w[ij]'         (N, K) (K, O)  -> (N, O)
    weight gradient   gw[ij]    =  gy[ij]'   rows[ij]       (O, N) (N, K)  -> (O, K)
    window gradient   grows[ij] =  gy[ij]    w[ij]          (N, O) (O, K)  -> (N, K)       then added to the pixels the cells came from

The weight is not copied: cells are taken in the order in which they lie in its memory, and the windows are cut in that order too. To cut
them quickly the image is first laid out so that neighbours in a row are neighbours in the image: channels innermost, (N, H, W, C), if the
weight's innermost cells are channels; else the batch innermost, (C, H, W, N), if it is large enough to gain by it. Rows exist for one block
of positions at a time, small enough to stay in the cache.

Cost per map: 2*N*O*K operations per position at the rate of a batched product; one reading (or writing) of the weight; N*K cells moved
within the cache; one change of layout of image and output. Extra memory: an image in the other layout, and a block. Accuracy: that of one
product per position; in half precision the input gradient is added up in float32.
"""

from collections.abc import Iterator
from itertools import product
from math import prod

import torch
from torch import Tensor

from cnn425.algorithms import local_blocks as local
from cnn425.algorithms.local_blocks import Block, Cells
from cnn425.windows import Geometry

BLOCK = 2 << 20  # bytes of rows at a time on a CPU: the second-level caches of two cores
BLOCK_ON_DEVICE = 8 << 20
PIECE = 1 << 16  # numbers


def output(x: Tensor, w: Tensor, geometry: Geometry, groups: int, bias: Tensor | None, y: Tensor) -> None:
    """Fill `y` `(N, O, *positions)`; the bias is `(1, O, *positions)`."""
    cells = local.cells_of(local.memory_order(w), w.shape, geometry.dimensions, len(x))
    windows = local.window_view(local.padded_image(x, geometry, cells), geometry, groups, cells)
    weights, outputs = local.weight_view(w, geometry.dimensions, groups, cells), local.output_view(y, groups)
    n, o = x.shape[0], y.shape[1] // groups
    biases = None if bias is None else local.output_view(bias, groups)
    for block in fitting(windows, geometry):
        target = outputs[block]
        result = torch.bmm(rows(windows[block], cells, n), matrices(weights[block], o).mT).view(target.shape)
        if biases is None:
            target.copy_(result)
        else:
            torch.add(result, biases[block], out=target)


def input_gradient(gy: Tensor, w: Tensor, geometry: Geometry, groups: int, gx: Tensor) -> None:
    """Fill `gx` `(N, C, *size)`."""
    cells = local.cells_of(local.memory_order(w), w.shape, geometry.dimensions, len(gy))
    exact = torch.float32 if gx.dtype in (torch.float16, torch.bfloat16) else gx.dtype
    padded = local.image(gx.shape, geometry, cells, exact, gx.device).zero_()
    windows = local.window_view(padded, geometry, groups, cells)
    weights, gradients = local.weight_view(w, geometry.dimensions, groups, cells), local.output_view(channels_innermost(gy), groups)
    n, o = gy.shape[0], gy.shape[1] // groups
    for block in fitting(windows, geometry):
        left, right = packed(gradients[block], n, o), matrices(weights[block], o)
        target = windows[block]
        result = torch.bmm(right.mT, left.mT) if cells.batch_inside else torch.bmm(left, right)
        add_cells(target, result.view(target.shape), geometry, cells)
    inside, seen = local.real_pixels(padded, gx, geometry)
    if seen.shape != gx.shape:
        gx.zero_()
    step = max(1, PIECE // seen[:, :1].numel()) if cells.batch_inside else gx.shape[1]
    for start in range(0, gx.shape[1], step):  # so many channels at a time that their transposition stays in the cache
        seen[:, start : start + step].copy_(inside[:, start : start + step])


def weight_gradient(gy: Tensor, x: Tensor, geometry: Geometry, groups: int, gw: Tensor) -> None:
    """Fill `gw` `(*positions, O, C/G, *kernel)`."""
    cells = local.cells_of(local.memory_order(gw), gw.shape, geometry.dimensions, len(x))
    windows = local.window_view(local.padded_image(x, geometry, cells), geometry, groups, cells)
    weights, gradients = local.weight_view(gw, geometry.dimensions, groups, cells), local.output_view(channels_innermost(gy), groups)
    n, o = gy.shape[0], gy.shape[1] // groups
    for block in fitting(windows, geometry):
        target = weights[block]
        left, right = packed(gradients[block], n, o).mT, rows(windows[block], cells, n)
        if target.is_contiguous():
            torch.bmm(left, right, out=target.view(-1, o, right.shape[2]))
        else:
            target.copy_(torch.bmm(left, right).view(target.shape))


def fitting(windows: Tensor, geometry: Geometry) -> Iterator[Block]:
    """Blocks of positions whose rows fit into the cache."""
    d = geometry.dimensions
    room = BLOCK if windows.device.type == "cpu" else BLOCK_ON_DEVICE
    return local.blocks(windows.shape[:d], room // max(1, prod(windows.shape[d:]) * windows.element_size()))


def rows(windows: Tensor, cells: Cells, n: int) -> Tensor:
    """The windows of a block as one matrix per position and group, `(B, N, K)`: copied, unless a window is one stretch of memory."""
    k = len(cells.order)
    if cells.batch_inside:
        return packed(windows, prod(windows.shape[-k - 1 : -1]), n).mT
    return packed(windows, n, prod(windows.shape[-k:]))


def matrices(weights: Tensor, o: int) -> Tensor:
    """The weights of a block as one matrix per position and group, `(B, O, K)`: a view, if the positions come first in memory."""
    return packed(weights, o, prod(weights.shape[(weights.ndim - 3) // 2 + 2 :]))


def channels_innermost(y: Tensor) -> Tensor:
    """`y` with its channels innermost in memory, copied if they are not: rows of O numbers can then be taken from it quickly."""
    return y.movedim(1, -1).contiguous().movedim(-1, 1)


def packed(t: Tensor, height: int, width: int) -> Tensor:
    """`t` as matrices `(B, height, width)` with rows or columns that are stretches of memory (others the product copies one by one)."""
    matrix = t.reshape(-1, height, width)
    _, down, across = matrix.stride()
    ready = (across == 1 and (height == 1 or down >= width)) or (down == 1 and (width == 1 or across >= height))
    return matrix if ready else matrix.contiguous()


def add_cells(target: Tensor, result: Tensor, geometry: Geometry, cells: Cells) -> None:
    """Add each cell of the windows `result` to the pixel that it is in the windows `target`, one offset after the other."""
    first = target.ndim - len(cells.order) - cells.batch_inside
    index: list[slice | int] = [slice(None)] * target.ndim
    for offset in product(*map(range, geometry.kernel)):
        for dimension, u in enumerate(offset):
            index[first + cells.order.index(dimension + 1)] = u
        target[tuple(index)].add_(result[tuple(index)])
