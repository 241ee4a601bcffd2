"""One way to compute each local layer: its output, the gradient of its input, the gradient of its weight."""

from collections.abc import Sequence

import torch
from torch import Tensor

from cnn425.algorithms import local_definition as definition
from cnn425.algorithms.layout import FORMATS, is_channels_last
from cnn425.windows import Geometry


def local_output(x: Tensor, w: Tensor, geometry: Geometry, groups: int, bias: Tensor | None = None) -> Tensor:
    """The output, `(N, C, *size), (*positions, O, C/G, *kernel) -> (N, O, *positions)`; the bias is `(O, *positions)` or `(O,)`."""
    y = definition.output(x, w, geometry, groups)
    if bias is not None:
        y = y + (bias if bias.ndim > 1 else bias.view(-1, *(1,) * geometry.dimensions))
    return y.contiguous(memory_format=_format(x))


def local_input_gradient(gy: Tensor, w: Tensor, geometry: Geometry, groups: int, size: Sequence[int]) -> Tensor:
    """The gradient of the input, `(N, O, *positions), (*positions, O, C/G, *kernel) -> (N, C, *size)`."""
    return definition.input_gradient(gy, w, geometry, groups, size).contiguous(memory_format=_format(gy))


def local_weight_gradient(gy: Tensor, x: Tensor, geometry: Geometry, groups: int, order: Sequence[int] | None = None) -> Tensor:
    """The gradient of the weight, `(N, O, *positions), (N, C, *size) -> (*positions, O, C/G, *kernel)`, in memory in `order`."""
    gw = definition.weight_gradient(gy, x, geometry, groups)
    if order is None:
        return gw.contiguous()
    back = sorted(range(gw.ndim), key=lambda dim: order[dim])
    return gw.permute(*order).contiguous().permute(*back)


def memory_order(w: Tensor) -> tuple[int, ...]:
    """The dimensions of `w` from the widest to the narrowest step in memory; repeated dimensions (step 0) count as widest."""
    steps = w.stride()
    return tuple(sorted(range(w.ndim), key=lambda dim: (steps[dim] != 0, -steps[dim])))


def _format(x: Tensor) -> torch.memory_format:
    return FORMATS[x.ndim] if is_channels_last(x) else torch.contiguous_format


def storage_order(shape: Sequence[int], dimensions: int) -> tuple[int, ...]:
    """The memory order in which a weight of this shape is read fastest: what a Module that owns its weight should choose."""
    return tuple(range(len(shape)))
