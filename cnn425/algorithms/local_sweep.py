"""A local layer as one sweep over the positions per cell of the window: elementwise products, for layers of one or two channels.

    output            y[n,o]        +=  x[n,c, shifted by u,v]  *  w[o,c,u,v]           each term an image of I*J positions
    input gradient    gx[n,c, shifted by u,v]  +=  gy[n,o]  *  w[o,c,u,v]
    weight gradient   gw[o,c,u,v]    =  sum over n  of  gy[n,o]  *  x[n,c, shifted by u,v]

With one channel in and out, a matrix product per position is a single row times a single column: all overhead. Here the weight is read
once, from end to end, if positions lie innermost in its memory (what the Module chooses for such layers; others are copied so, block by
block), while the block of image and output stays in the cache. The lecture's 200 x 200 image with 10 x 10 filters is such a layer: as
fast as memory delivers.

Cost per map: N*O*C/G*I*J*U*V products at the rate of elementwise operations, C/G*U*V calls per block. Extra memory: the padded image, and a
block. Accuracy: that of adding C/G*U*V terms one by one.
"""

from collections.abc import Iterator
from itertools import product
from typing import Any

import torch
from torch import Tensor

from cnn425.algorithms.local_blocks import blocks, real_pixels, split
from cnn425.windows import Geometry, pad, windows

BLOCK = 1 << 18  # numbers of output at a time: small beside the caches, large beside the cost of a call


def output(x: Tensor, w: Tensor, geometry: Geometry, groups: int, bias: Tensor | None, y: Tensor) -> None:
    """Fill `y` `(N, O, *positions)`; the bias is `(1, O, *positions)`."""
    cells, weights = window_cells(pad(x, geometry.overhang(x.shape[2:])), geometry, groups), weight_cells(w, geometry, groups)
    outputs = split(y, 1, groups)
    if bias is None:
        y.zero_()
    else:
        y.copy_(bias.expand(y.shape))
    for block in fitting(y):
        target, sources, factors = outputs[block], cells[block], positions_innermost(weights[block], geometry.dimensions)
        for cell in product(*map(range, factors.shape[: geometry.dimensions + 1])):
            target.addcmul_(sources[cell].unsqueeze(2), factors[cell])


def input_gradient(gy: Tensor, w: Tensor, geometry: Geometry, groups: int, gx: Tensor) -> None:
    """Fill `gx` `(N, C, *size)`."""
    size = (low + n + high for n, (low, high) in zip(gx.shape[2:], geometry.overhang(gx.shape[2:]), strict=True))
    padded = gx.new_zeros(*gx.shape[:2], *size)
    cells, weights, gradients = window_cells(padded, geometry, groups), weight_cells(w, geometry, groups), split(gy, 1, groups)
    for block in fitting(gy):
        targets, source, factors = cells[block], gradients[block], positions_innermost(weights[block], geometry.dimensions)
        for cell in product(*map(range, factors.shape[: geometry.dimensions + 1])):
            for o in range(source.shape[2]):
                targets[cell].addcmul_(source[:, :, o], factors[cell][:, o])
    inside, seen = real_pixels(padded, gx, geometry)
    if seen.shape != gx.shape:
        gx.zero_()
    seen.copy_(inside)


def weight_gradient(gy: Tensor, x: Tensor, geometry: Geometry, groups: int, gw: Tensor) -> None:
    """Fill `gw` `(*positions, O, C/G, *kernel)`."""
    cells, weights = window_cells(pad(x, geometry.overhang(x.shape[2:])), geometry, groups), weight_cells(gw, geometry, groups)
    gradients = split(gy, 1, groups)
    for block in fitting(gy):
        source, factors, target = gradients[block], cells[block], weights[block]
        filled = target if target.stride(-1) == 1 else torch.empty_like(target, memory_format=torch.contiguous_format)
        for cell in product(*map(range, filled.shape[: geometry.dimensions + 1])):
            if len(source) == 1:
                torch.mul(source[0], factors[cell][0].unsqueeze(1), out=filled[cell])
            else:
                torch.sum(source * factors[cell].unsqueeze(2), 0, out=filled[cell])
        if filled is not target:
            target.copy_(filled)


def fitting(y: Tensor) -> Iterator[tuple[Any, ...]]:
    """Blocks of positions, as indices of the last dimensions."""
    for block in blocks(y.shape[2:], BLOCK // (y.shape[0] * y.shape[1])):
        yield (..., *block)


def window_cells(padded: Tensor, geometry: Geometry, groups: int) -> Tensor:
    """The windows of a padded image as `(c, *offsets, n, g, *positions)`, a view: one shifted image per cell."""
    d = geometry.dimensions
    view = windows(split(padded, 1, groups), geometry._replace(padding=((0, 0),) * d))
    return view.permute(2, *range(3 + d, 3 + 2 * d), 0, 1, *range(3, 3 + d))


def weight_cells(w: Tensor, geometry: Geometry, groups: int) -> Tensor:
    """The weight as `(c, *offsets, g, o, *positions)`, a view: one image of weights per cell."""
    d = geometry.dimensions
    return split(w, d, groups).permute(*range(d + 2, 2 * d + 3), d, d + 1, *range(d))


def positions_innermost(weights: Tensor, dimensions: int) -> Tensor:
    """`weights` `(cells, *positions)`, copied if positions are not neighbours in memory (as a matrix, which torch transposes fast)."""
    if weights.stride(-1) == 1:
        return weights
    cells = weights.ndim - dimensions
    order = sorted(range(cells), key=weights.stride().__getitem__, reverse=True)
    ordered = weights.permute(*order, *range(cells, weights.ndim))
    copied = ordered.flatten(cells).flatten(0, cells - 1).contiguous().view(ordered.shape)
    return copied.permute(*sorted(range(cells), key=lambda dim: order[dim]), *range(cells, weights.ndim))
