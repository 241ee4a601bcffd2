"""Tiny: im2col in as few operations as there are, for convolutions so small that calling torch costs more than computing.

    output           W (O, K) @ columns (K, M)                       pad, view, copy, product
    input gradient   the same of the padded output gradient, with the kernel flipped (stride 1)
    weight gradient  gy (O, M) @ columns' (M, K)

Every call of torch costs about a microsecond, and so do a few lines of Python; shapes, strides and padding are worked out once.

Cost: ten to twenty microseconds per map. Accuracy: that of im2col. Applies to contiguous images of one group with stride 1 and at most a
few thousand cells in all their windows.
"""

from collections.abc import Sequence
from functools import lru_cache
from math import prod

import torch
from torch import Tensor

from cnn425.algorithms.blocks import flipped
from cnn425.windows import Geometry

CELLS = 1 << 14


class Plan:
    """Where the windows of images of one shape lie: padding, and sizes and strides of the view (K leading, then images and positions)."""

    def __init__(self, shape: torch.Size, geometry: Geometry):
        N, C, *size = shape
        positions = geometry.positions(size)
        overhang = geometry.overhang(size)
        padded = [low + n + high for n, (low, high) in zip(size, overhang, strict=True)]
        steps = [prod(padded[k + 1 :]) for k in range(len(size))]
        self.padding = [p for pair in reversed(overhang) for p in pair]
        self.padding = self.padding if any(self.padding) else []
        self.size = (C, *geometry.kernel, N, *positions)
        self.stride = (
            prod(padded),
            *(a * d for a, d in zip(steps, geometry.dilation, strict=True)),
            C * prod(padded),
            *(a * s for a, s in zip(steps, geometry.stride, strict=True)),
        )
        self.cells = C * prod(geometry.kernel)
        self.images, self.positions = N, positions

    def columns(self, x: Tensor) -> Tensor:
        """The windows as columns, `(K, N*M)`."""
        x = torch.constant_pad_nd(x, self.padding) if self.padding else x
        return x.as_strided(self.size, self.stride, x.storage_offset()).reshape(self.cells, -1)


@lru_cache(maxsize=1024)
def plan(shape: torch.Size, geometry: Geometry) -> Plan | None:
    """The plan for images of this shape, or None where this algorithm is not worth while."""
    made = Plan(shape, geometry)
    small = 0 < made.cells * made.images * prod(made.positions) <= CELLS
    return made if small and all(s == 1 for s in geometry.stride) else None


@lru_cache(maxsize=1024)
def turned(geometry: Geometry, size: tuple[int, ...], positions: torch.Size) -> Geometry:
    """The geometry of the input gradient."""
    return flipped(geometry, size, positions)


def convolve(x: Tensor, w: Tensor, plan: Plan, bias: Tensor | None) -> Tensor:
    """The output, `(N, C, *size), (O, C, *kernel), (O,) -> (N, O, *positions)`."""
    O = w.shape[0]
    w = w.reshape(O, -1)
    columns = plan.columns(x)
    y = w.mm(columns) if bias is None else torch.addmm(bias.unsqueeze(1), w, columns)
    if plan.images == 1 or O == 1:
        return y.view(plan.images, O, *plan.positions)
    return y.view(O, plan.images, *plan.positions).transpose(0, 1).contiguous()


def convolve_input_gradient(gy: Tensor, w: Tensor, plan: Plan) -> Tensor:
    """The gradient of the input, `(N, O, *positions), (O, C, *kernel) -> (N, C, *size)`; `plan` is that of the turned geometry."""
    return convolve(gy, w.flip(*range(2, w.ndim)).transpose(0, 1), plan, None)


def convolve_weight_gradient(gy: Tensor, x: Tensor, plan: Plan, kernel: Sequence[int]) -> Tensor:
    """The gradient of the weight, `(N, O, *positions), (N, C, *size) -> (O, C, *kernel)`."""
    O = gy.shape[1]
    gy = gy.view(O, -1) if plan.images == 1 else gy.transpose(0, 1).reshape(O, -1)
    return gy.mm(plan.columns(x).t()).view(O, x.shape[1], *kernel)
