"""im2col: the windows of a block copied out as the columns of a matrix, and one matrix product per block.

    contiguous      y[n] (O, M)  = W (O, K) @ columns (K, M)        M positions, K = C*U*V cells of a window
    channels last   y (M, O)     = columns (M, K) @ W' (K, O)

Either way the product writes the output where it belongs: nothing is transposed afterwards. The weight gradient is the sum over blocks of
`gy @ columns'`. For the input gradient every s-th pixel (s the stride) is met by the same cells of the kernel, so it is s convolutions per
dimension of the output gradient, each with the kernel's cells of one phase, turned around, at stride 1. Where inputs are few and outputs
many, `W' @ gy` has fewer numbers to move: its K rows are added to the pixels they came from (`cnn425.algorithms.col2im`).

Cost: 2*N*M*O*K/G operations, and N*M*K numbers copied (none for a 1x1 kernel), in blocks that stay near the cache. Accuracy:
that of one dot product of length K. Applies to everything that has a matrix product: every dtype, stride, dilation, group and dimension.
"""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from cnn425.algorithms import col2im
from cnn425.algorithms.blocks import flip, flipped, phases
from cnn425.algorithms.layout import empty
from cnn425.algorithms.lowering import Lowering, accumulate
from cnn425.algorithms.memory import lent, scratch
from cnn425.windows import Geometry

CONTIGUOUS = torch.contiguous_format
HALF = (torch.bfloat16, torch.float16)
CHANNELS, POSITIONS = 16, 1 << 12  # half-precision products of so many channels, and so few windows, are made with channels last
MANY_WINDOWS = 1 << 11  # the half-precision gradient of a weight is made faster as its transpose, and that turned around
EXACT = 1 << 28  # multiplications; a half-precision sum this short is added up in float32 throughout, a longer one between blocks
SMALL_WEIGHT = 1 << 16  # numbers; so small a weight gradient is summed up image by image,
FEW_POSITIONS = 400  # if it has so many windows


def convolve(
    x: Tensor, w: Tensor, geometry: Geometry, groups: int, bias: Tensor | None, layout: torch.memory_format, shifted: bool = False
) -> Tensor:
    """The output, `(N, C, *size), (O, C/G, *kernel), (O,) -> (N, O, *positions)`."""
    positions = geometry.positions(x.shape[2:])
    y = empty(x, (x.shape[0], w.shape[0], *positions), layout)
    if unit(geometry) and x.dtype not in HALF and col2im.pays(x.shape[1], w.shape[0], geometry, y[:, 0].numel()):
        back = flipped(geometry, x.shape[2:], positions)
        col2im.spread(x, flip(w, groups), back, groups, y, layout is not CONTIGUOUS, shifted)
        return y if bias is None else y.add_(bias.view(-1, *(1,) * geometry.dimensions))
    write(x, w, geometry, groups, bias, y, layout is not CONTIGUOUS, shifted)
    return y


def unit(geometry: Geometry) -> bool:
    """Whether all strides are 1."""
    return all(s == 1 for s in geometry.stride)


def write(
    x: Tensor, w: Tensor, geometry: Geometry, groups: int, bias: Tensor | None, y: Tensor, last: bool, shifted: bool, turned: bool = False
) -> None:
    """The convolution, with the kernel `turned` around if it says so, written to `y`, which may lie in memory with gaps."""
    half = x.dtype in HALF and not x.is_cuda and prod(geometry.kernel) > 1
    half = half and x.shape[1] >= CHANNELS and y[0, 0].numel() <= POSITIONS
    last = last or half
    lowering = Lowering(x, geometry, groups, last, shifted, together=True if half else None)
    weights = lowering.turned_weights(w) if turned else lowering.weights(w)
    start = None if bias is None else bias.view(groups, 1, -1) if last else bias.view(groups, -1, 1)
    buffer: Tensor | None = None
    for block, cells in lowering:
        part = lowering.part(y, block)
        repeat = len(cells[0]) // groups
        factors = weights if repeat == 1 else [a.expand(repeat, *a.shape).flatten(0, 1) for a in weights]
        first = start if start is None or repeat == 1 else start.expand(repeat, *start.shape).flatten(0, 1)
        direct = lowering.as_matrices(part)
        out = direct
        if out is None:
            buffer = scratch(x, part.numel()) if buffer is None else buffer
            out = buffer[: part.numel()].view(len(cells[0]), *((-1, factors[0].shape[1]) if last else (factors[0].shape[1], -1)))
        if last:
            accumulate(out, cells, [a.mT for a in factors], first)
        else:
            accumulate(out, factors, cells, first)
        if direct is None:
            part.copy_(out.view(part.shape))


def convolve_weight_gradient(
    gy: Tensor, x: Tensor, geometry: Geometry, groups: int, layout: torch.memory_format, shifted: bool = False
) -> Tensor:
    """The gradient of the weight, `(N, O, *positions), (N, C, *size) -> (O, C/G, *kernel)`."""
    O, C, last = gy.shape[1] // groups, x.shape[1] // groups, layout is not CONTIGUOUS
    half = x.dtype in HALF  # the sum over blocks would round each time
    last = last and (not half or x.is_cuda)  # and is fastest with the windows in rows
    gw = empty(x, (groups * O, C, *geometry.kernel), layout)
    if (
        unit(geometry) and prod(geometry.kernel) > 1 and 2 * gy.shape[1] <= x.shape[1]
    ):  # fewer windows to copy: those of the output gradient over the input
        turned = flipped(geometry, x.shape[2:], gy.shape[2:])
        return gw.copy_(flip(convolve_weight_gradient(x, gy, turned, groups, layout, shifted), groups))
    weight, positions = groups * O * C * prod(geometry.kernel), prod(gy.shape[2:])
    if prod(geometry.kernel) == 1:
        together = weight > positions * (groups * C + gy.shape[1])  # one product, if to copy both is less than to add up the weight
    else:
        together = weight > SMALL_WEIGHT or positions < FEW_POSITIONS or half
    lowering = Lowering(x, geometry, groups, last, shifted, together=True if together else None)
    if half and len(lowering.blocks) > 1 and weight * gy[:, 0].numel() <= EXACT:
        return convolve_weight_gradient(gy.float(), x.float(), geometry, groups, layout, shifted).to(x.dtype)
    sums, direct = torch.zeros(0), False
    buffer: Tensor | None = None
    for k, (block, cells) in enumerate(lowering):
        part = lowering.part(gy, block)
        left = lowering.as_matrices(part)
        if left is None:
            buffer = scratch(x, part.numel()) if buffer is None else buffer
            left = buffer[: part.numel()].view(part.shape).copy_(part).view(len(cells[0]), *((-1, O) if last else (O, -1)))
        left = left.mT if last else left
        if k == 0:
            direct = not (shifted or half) and len(left) == groups  # the product can write the gradient itself
            if direct:
                sums = (gw.movedim(1, -1) if last else gw).view(1, groups, O, -1)
            elif half and gy[:, 0].numel() >= MANY_WINDOWS:
                sums = torch.empty(len(cells), len(left), lowering.cells, O, dtype=torch.float32, device=x.device).mT
            else:
                sums = torch.empty(len(cells), len(left), O, lowering.cells, dtype=torch.float32 if half else x.dtype, device=x.device)
        for total, right in zip(sums, cells, strict=True):
            several = len(lowering.blocks) > 1 or len(left) > groups  # products that may cancel one another, and not their roundings
            add(total[: len(left)], left, right if last else right.mT, first=k == 0, exact=several and not x.is_cuda)
    if direct:
        return gw
    if sums.shape[1] > groups:
        sums = sums.unflatten(1, (-1, groups)).sum(1)
    return lowering.weight(sums, gw)


def add(total: Tensor, left: Tensor, right: Tensor, first: bool, exact: bool = False) -> None:
    """`total += left @ right`, or `total = left @ right` the first time; `exact` adds what a half-precision product rounds away, too."""
    if total.dtype != left.dtype:
        if not total.is_contiguous():
            total, left, right = total.mT, right.mT, left.mT
        product = torch.bmm(left, right)
        if exact:  # infinity minus infinity would be NaN
            product.clamp_(-torch.finfo(product.dtype).max, torch.finfo(product.dtype).max)
        total.copy_(product) if first else total.add_(product)
        if exact:  # a product minus a matrix is made in float32, and rounded when little is left
            total.add_(torch.baddbmm(product, left, right, beta=-1))
    elif len(total) == 1:
        torch.mm(left[0], right[0], out=total[0]) if first else total[0].addmm_(left[0], right[0])
    elif first:
        torch.bmm(left, right, out=total)
    else:
        total.baddbmm_(left, right)


def convolve_input_gradient(
    gy: Tensor,
    w: Tensor,
    geometry: Geometry,
    groups: int,
    size: Sequence[int],
    layout: torch.memory_format,
    shifted: bool = False,
) -> Tensor:
    """The gradient of the input, `(N, O, *positions), (O, C/G, *kernel) -> (N, C, *size)`."""
    gx = empty(gy, (gy.shape[0], w.shape[1] * groups, *size), layout)
    if gy.dtype not in HALF and col2im.pays(gy.shape[1], gx.shape[1], geometry, gy[:, 0].numel(), turned=groups > 1 or shifted):
        col2im.spread(gy, w, geometry, groups, gx, layout is not CONTIGUOUS, shifted)
        return gx
    for cells, pixels, part in phases(geometry, size, gy.shape[2:]):
        target = gx[(slice(None), slice(None), *pixels)]
        if part is None:
            target.zero_()
        elif target.numel():
            with lent():
                write(gy, w[(slice(None), slice(None), *cells)], part, groups, None, target, layout is not CONTIGUOUS, shifted, turned=True)
    return gx
