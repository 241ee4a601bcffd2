"""im2col: the windows of a block copied out as the columns of a matrix, and one matrix product per block.

    contiguous      y[n] (O, M)  = W (O, K) @ columns (K, M)        M positions, K = C*U*V cells of a window
    channels last   y (M, O)     = columns (M, K) @ W' (K, O)

Either way the product writes the output where it belongs: nothing is transposed afterwards. The weight gradient is the sum over blocks of
`gy @ columns'`. The input gradient is `W' @ gy`, whose K rows are added to the pixels they came from (`spread`), or, at stride 1, the
convolution of the output gradient with the flipped kernel, whichever has fewer numbers to move; a convolution from many channels to few
is likewise better spread.

Cost: 2*N*M*O*K/G operations, and N*M*K numbers copied (none for a 1x1 kernel), in blocks that stay in the cache. Accuracy:
that of one dot product of length K. Applies to everything that has a matrix product: every dtype, stride, dilation, group and dimension.
"""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from cnn425.algorithms.blocks import BYTES, blocks, flip, flipped
from cnn425.algorithms.columns import FEW_CHANNELS, LARGEST, Columns, add_columns, as_matrices, rows_of
from cnn425.algorithms.layout import empty
from cnn425.algorithms.memory import scratch
from cnn425.windows import Geometry

CONTIGUOUS = torch.contiguous_format
HALF = (torch.bfloat16, torch.float16)
MOVES = 4  # adding a cell to its pixel takes as long as copying this many


def convolve(x: Tensor, w: Tensor, geometry: Geometry, groups: int, bias: Tensor | None, layout: torch.memory_format) -> Tensor:
    """The output, `(N, C, *size), (O, C/G, *kernel), (O,) -> (N, O, *positions)`."""
    positions = geometry.positions(x.shape[2:])
    if all(s == 1 for s in geometry.stride) and prod(geometry.kernel) > 1 and MOVES * w.shape[0] <= x.shape[1]:
        y = spread(x, flip(w, groups), flipped(geometry, x.shape[2:], positions), groups, positions, layout)
        return y if bias is None else y.add_(bias.view(-1, *(1,) * geometry.dimensions))
    y = empty(x, (x.shape[0], w.shape[0], *positions), layout)
    last = layout is not CONTIGUOUS
    columns = Columns(x, geometry, groups, last, batched=True)
    (_write_pixels if last else _write_planes)(columns, columns.weight(w), bias, y)
    return y


def _write_planes(columns: Columns, weight: Tensor, bias: Tensor | None, y: Tensor) -> None:
    """A contiguous output: one matrix (O, M) per image."""
    groups, O, _ = weight.shape
    flat = y.view(y.shape[0], groups, O, -1)
    for (n, images, i, rows), cells in columns:
        out = flat[n : n + images, :, :, i * columns.row : (i + rows) * columns.row]
        if images == 1 and rows < y.shape[2]:
            for a, b, c in zip(weight, cells, out[0], strict=True):
                torch.mm(a, b, out=c)
        elif images == 1:
            torch.bmm(weight, cells, out=out[0])
        elif columns.batched:
            torch.bmm(weight.expand(images, -1, -1), cells, out=out[:, 0])
        else:
            out.copy_(torch.bmm(weight, cells).view(groups, O, images, -1).permute(2, 0, 1, 3))
        if bias is not None:
            out += bias.view(groups, O, 1)


def _write_pixels(columns: Columns, weight: Tensor, bias: Tensor | None, y: Tensor) -> None:
    """A channels-last output: one matrix (N*M, O) in all."""
    groups, O, _ = weight.shape
    flat = y.movedim(1, -1).view(-1, groups, O)
    for (n, images, i, rows), cells in columns:
        start = (n * y.shape[2] + i) * columns.row
        out = flat[start : start + images * rows * columns.row]
        for g in range(groups):
            torch.mm(cells[g], weight[g].t(), out=out[:, g])
        if bias is not None:
            out += bias.view(groups, O)


def convolve_weight_gradient(gy: Tensor, x: Tensor, geometry: Geometry, groups: int, layout: torch.memory_format) -> Tensor:
    """The gradient of the weight, `(N, O, *positions), (N, C, *size) -> (O, C/G, *kernel)`."""
    if gy.shape[1] < x.shape[1] and prod(geometry.kernel) > 1 and all(s == 1 for s in geometry.stride):
        turned = flipped(geometry, x.shape[2:], gy.shape[2:])  # fewer windows to copy: those of the output gradient over the input
        return flip(convolve_weight_gradient(x, gy, turned, groups, CONTIGUOUS), groups).clone(memory_format=layout)
    last = layout is not CONTIGUOUS
    O, cells = gy.shape[1] // groups, x.shape[1] // groups * prod(geometry.kernel)
    weight_bytes = groups * O * cells * x.element_size()  # read and written again for every block
    columns = Columns(x, geometry, groups, last, batched=False, budget=min(LARGEST, max(BYTES, weight_bytes)))
    half = x.dtype in HALF  # the sum over blocks would round each time
    gw = torch.zeros(groups, O, cells, dtype=torch.float32 if half else x.dtype, device=x.device)
    for k, (block, right) in enumerate(columns):
        left = as_matrices(rows_of(gy, block, groups), last)
        right = right if last else right.mT
        if half:
            gw += torch.bmm(left, right)
        elif groups == 1:
            torch.addmm(gw[0], left[0], right[0], beta=float(k > 0), out=gw[0])
        else:
            torch.baddbmm(gw, left, right, beta=float(k > 0), out=gw)
    return columns.kernel(gw.to(x.dtype), layout)


def convolve_input_gradient(
    gy: Tensor, w: Tensor, geometry: Geometry, groups: int, size: Sequence[int], layout: torch.memory_format
) -> Tensor:
    """The gradient of the input, `(N, O, *positions), (O, C/G, *kernel) -> (N, C, *size)`."""
    if all(s == 1 for s in geometry.stride) and (prod(geometry.kernel) == 1 or w.shape[0] < MOVES * w.shape[1] * groups):
        return convolve(gy, flip(w, groups), flipped(geometry, size, gy.shape[2:]), groups, None, layout)
    return spread(gy, w, geometry, groups, size, layout)


def spread(gy: Tensor, w: Tensor, geometry: Geometry, groups: int, size: Sequence[int], layout: torch.memory_format) -> Tensor:
    """The gradient of the input by its definition: every output's gradient times the kernel, added to the pixels under its window."""
    N, C, positions = gy.shape[0], w.shape[1], gy.shape[2:]
    if layout is not CONTIGUOUS and C < FEW_CHANNELS:
        return spread(gy, w, geometry, groups, size, CONTIGUOUS).contiguous(memory_format=layout)
    last = layout is not CONTIGUOUS
    half = gy.dtype in HALF  # many small additions: they would round each time
    gx = torch.empty((N, groups * C, *size), dtype=torch.float32 if half else gy.dtype, device=gy.device, memory_format=layout).zero_()
    weight = (w.movedim(1, -1) if last else w).reshape(groups, -1, C * prod(geometry.kernel)).mT  # (G, K, O/G)
    row = groups * weight.shape[1] * prod(positions[1:])
    buffer = scratch(gy, 0)
    for block in blocks(N, positions[0], row * gy.element_size()):
        buffer = buffer if buffer.numel() else scratch(gy, row * block.images * block.rows)
        part = as_matrices(rows_of(gy, block, groups), last)
        columns = buffer[: row * block.images * block.rows]
        if last:
            columns = torch.bmm(part.mT, weight.mT, out=columns.view(groups, -1, weight.shape[1]))
        else:
            columns = torch.bmm(weight, part, out=columns.view(groups, weight.shape[1], -1))
        add_columns(gx, columns, geometry, block, positions, last)
    return gx.to(gy.dtype)
