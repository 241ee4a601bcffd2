"""Merged: several small groups as one larger group, whose weight is zero between them.

    w (O, C/G, ...)  ->  (O, m*C/G, ...)    output o of group g keeps its weights at channels (g mod m)*C/G and on; the others are zero

Channels-last images have the channels of a group in short runs of memory, which are slow to copy one by one, and products with few
channels are slow as well. So m groups are computed as one, with m times the multiplications, most of them by zero: worth it up to about
16 channels. The weight gradient of the larger group holds those of the small ones, and more, which is left out.

An infinity or a NaN times zero is not zero: results that are not finite are computed again, group by group.

Cost: that of `shifted` with m*C/G channels per group. Accuracy: that of `shifted`. Applies to float32 and float64.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from cnn425.algorithms import im2col, memory, shifted
from cnn425.windows import Geometry

ENOUGH = 16  # channels


def together(channels: int, outputs: int, groups: int) -> int:
    """How many groups to take as one: a divisor of their number."""
    least = max(1, min(channels, outputs))
    return max(m for m in range(1, max(1, ENOUGH // least) + 1) if groups % m == 0)


def merge(w: Tensor, groups: int, m: int) -> Tensor:
    """The weight of `groups / m` groups, `(O, C/G, *kernel) -> (O, m*C/G, *kernel)`."""
    small = w.unflatten(0, (groups // m, m, -1))  # g m o c u v
    large = small.new_zeros(groups // m, m, small.shape[2], m, *small.shape[3:])
    for k in range(m):
        large[:, k, :, k] = small[:, k]
    return large.flatten(3, 4).flatten(0, 2)


def split(w: Tensor, groups: int, m: int) -> Tensor:
    """The adjoint of `merge`: `(O, m*C/G, *kernel) -> (O, C/G, *kernel)`."""
    large = w.unflatten(1, (m, -1)).unflatten(0, (groups // m, m, -1))  # g m o m c u v
    small = large.new_empty(groups // m, m, large.shape[2], *large.shape[4:])
    for k in range(m):
        small[:, k] = large[:, k, :, k]
    return small.flatten(0, 2)


def convolve(x: Tensor, w: Tensor, geometry: Geometry, groups: int, bias: Tensor | None, layout: torch.memory_format) -> Tensor:
    """The output, `(N, C, *size), (O, C/G, *kernel), (O,) -> (N, O, *positions)`."""
    m = together(w.shape[1], w.shape[0] // groups, groups)
    y = shifted.convolve(x, merge(w, groups, m), geometry, groups // m, bias, layout)
    return y if finite(y) else im2col.convolve(x, w, geometry, groups, bias, layout)


def convolve_input_gradient(
    gy: Tensor, w: Tensor, geometry: Geometry, groups: int, size: Sequence[int], layout: torch.memory_format
) -> Tensor:
    """The gradient of the input, `(N, O, *positions), (O, C/G, *kernel) -> (N, C, *size)`."""
    m = together(w.shape[1], w.shape[0] // groups, groups)
    gx = shifted.convolve_input_gradient(gy, merge(w, groups, m), geometry, groups // m, size, layout)
    return gx if finite(gx) else im2col.convolve_input_gradient(gy, w, geometry, groups, size, layout)


def convolve_weight_gradient(gy: Tensor, x: Tensor, geometry: Geometry, groups: int, layout: torch.memory_format) -> Tensor:
    """The gradient of the weight, `(N, O, *positions), (N, C, *size) -> (O, C/G, *kernel)`."""
    m = together(x.shape[1] // groups, gy.shape[1] // groups, groups)
    gw = split(shifted.convolve_weight_gradient(gy, x, geometry, groups // m, layout), groups, m)
    return gw.contiguous(memory_format=layout)


def finite(y: Tensor) -> bool:
    """Whether all numbers are finite; scratch is free again if not."""
    if y.sum().isfinite():
        return True
    memory.begin()
    return False
