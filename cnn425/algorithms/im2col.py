"""im2col: the windows of all images copied out as the columns of a matrix, and one matrix product. On request only.

    output            y (O, N*M)   =  w (O, K) @ columns (K, N*M)        N images of M windows of K = C/G*U*V cells
    weight gradient   gw (O, K)    =  gy (O, N*M) @ columns (K, N*M)'
    input gradient    columns      =  w' (K, O) @ gy (O, N*M),  and `scatter` adds them to the pixels they came from (col2im)

The classic (Chellapilla, Puri, Simard 2006) in plain PyTorch, for floating-point tensors on any device. Cost: with stride 1 the
columns are U*V copies of the image. What runs by default on a CPU makes the same product without writing the columns down.
"""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from cnn425.windows import Geometry, scatter, windows


def applies(dtype: torch.dtype, geometry: Geometry) -> bool:
    """Whether this algorithm can compute a convolution."""
    return dtype.is_floating_point


def columns(x: Tensor, geometry: Geometry, groups: int) -> Tensor:
    """The windows as columns: `(N, C, *size) -> (G, K, N*M)`."""
    d = geometry.dimensions
    w = windows(x, geometry).unflatten(1, (groups, -1))
    order = (1, 2, *range(3 + d, 3 + 2 * d), 0, *range(3, 3 + d))
    return w.permute(order).reshape(groups, w.shape[2] * prod(geometry.kernel), -1)


def by_group(y: Tensor, groups: int) -> Tensor:
    """Outputs as matrices: `(N, O, *positions) -> (G, O/G, N*M)`."""
    return y.unflatten(1, (groups, -1)).movedim(0, 2).flatten(2)


def output(x: Tensor, w: Tensor, geometry: Geometry, groups: int) -> Tensor:
    """The output, `(N, C, *size), (O, C/G, *kernel) -> (N, O, *positions)`."""
    y = w.unflatten(0, (groups, -1)).flatten(2) @ columns(x, geometry, groups)
    return y.unflatten(2, (x.shape[0], *geometry.positions(x.shape[2:]))).movedim(2, 0).flatten(1, 2)


def input_gradient(gy: Tensor, w: Tensor, geometry: Geometry, groups: int, size: Sequence[int]) -> Tensor:
    """The gradient of the input, `(N, O, *positions), (O, C/G, *kernel) -> (N, C, *size)`."""
    d, matrix = geometry.dimensions, w.unflatten(0, (groups, -1)).flatten(2)
    found = (matrix.mT @ by_group(gy, groups)).unflatten(2, (gy.shape[0], *gy.shape[2:])).unflatten(1, (-1, *geometry.kernel))
    order = (2 + d, 0, 1, *range(3 + d, 3 + 2 * d), *range(2, 2 + d))
    return scatter(found.permute(order).flatten(1, 2), geometry, size)


def weight_gradient(gy: Tensor, x: Tensor, geometry: Geometry, groups: int) -> Tensor:
    """The gradient of the weight, `(N, O, *positions), (N, C, *size) -> (O, C/G, *kernel)`."""
    gw = by_group(gy, groups) @ columns(x, geometry, groups).mT
    return gw.flatten(0, 1).unflatten(1, (-1, *geometry.kernel))
