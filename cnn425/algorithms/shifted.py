"""Shifted: im2col without the copies along the first dimension, because a shifted view of lowered rows is already a matrix.

Copy out, for every row h of the padded image, only the cells v of all windows in that row: the lines `(C*V, H', J)`. Then the cells (c, v)
of all windows at row offset u are this matrix from u*d rows on: a view, whose leading dimension is that of the whole.

    y (O, I*J)  = sum over u of  W[:, :, u, :] (O, C*V) @ lines (C*V, H'*J)[:, u*d*J :][:, :I*J]
    gw[u]       = gy (O, I*J) @ lines[:, u*d*J :][:, :I*J]'

Nothing is computed in vain, and the products add up in the output itself. With stride s the rows are dealt out to s piles, so that
every s-th is the next. The input gradient is the convolution with the flipped kernel, phase by phase where there are strides.

Cost: V copies of the image instead of im2col's U*V, none in one dimension; U products, of which all but the first read and write their
result once more. Accuracy: that of im2col. Applies to float32 and float64 (half precision would round between the products). Source: Cho
and Brand, "MEC: memory-efficient convolution for deep neural network", ICML 2017.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from cnn425.algorithms import im2col
from cnn425.windows import Geometry


def applies(dtype: torch.dtype, geometry: Geometry) -> bool:
    """Whether this algorithm can compute a convolution: sums must not be rounded to half precision between products."""
    return dtype in (torch.float32, torch.float64)


def convolve(x: Tensor, w: Tensor, geometry: Geometry, groups: int, bias: Tensor | None, layout: torch.memory_format) -> Tensor:
    """The output, `(N, C, *size), (O, C/G, *kernel), (O,) -> (N, O, *positions)`."""
    return im2col.convolve(x, w, geometry, groups, bias, layout, shifted=True)


def convolve_input_gradient(
    gy: Tensor, w: Tensor, geometry: Geometry, groups: int, size: Sequence[int], layout: torch.memory_format
) -> Tensor:
    """The gradient of the input, `(N, O, *positions), (O, C/G, *kernel) -> (N, C, *size)`."""
    return im2col.convolve_input_gradient(gy, w, geometry, groups, size, layout, shifted=True)


def convolve_weight_gradient(gy: Tensor, x: Tensor, geometry: Geometry, groups: int, layout: torch.memory_format) -> Tensor:
    """The gradient of the weight, `(N, O, *positions), (N, C, *size) -> (O, C/G, *kernel)`."""
    return im2col.convolve_weight_gradient(gy, x, geometry, groups, layout, shifted=True)
