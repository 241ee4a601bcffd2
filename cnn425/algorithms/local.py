"""One way to compute each local layer: its output, the gradient of its input, the gradient of its weight.

`definition` says what is computed; `matmul` makes one small matrix product per position; `sweep` passes over all positions once per cell.
"""

from collections.abc import Sequence
from math import prod
from types import ModuleType

import torch
from torch import Tensor

from cnn425.algorithms import layout, local_definition, local_matmul, local_sweep, memory, registry
from cnn425.algorithms.layout import FORMATS, is_channels_last
from cnn425.algorithms.local_blocks import MANY, empty, memory_order
from cnn425.algorithms.tracing import PLAIN, is_traced
from cnn425.windows import Geometry

__all__ = ["laid_out", "local_input_gradient", "local_output", "local_weight_gradient", "memory_order", "storage_order"]

ALGORITHMS: dict[str, ModuleType] = {"definition": local_definition, "matmul": local_matmul, "sweep": local_sweep}
SWEPT = 4  # at most so many pairs of channels: a matrix product per position would be all overhead
SMALL = 8192  # so few cells in all windows are copied faster than any plan is made
HALF = (torch.float16, torch.bfloat16)
LAID = 8 << 20  # bytes of an output gradient in another layout
LARGE = 1 << 18  # weights that fill the caches
registry.register("local", tuple(ALGORITHMS))


def local_output(x: Tensor, w: Tensor, geometry: Geometry, groups: int, bias: Tensor | None = None) -> Tensor:
    """The output, `(N, C, *size), (*positions, O, C/G, *kernel) -> (N, O, *positions)`; the bias is `(O, *positions)` or `(O,)`."""
    d = geometry.dimensions
    if bias is not None:
        bias = (bias if bias.ndim > 1 else bias.view(-1, *(1,) * d)).expand(w.shape[d], *w.shape[:d]).unsqueeze(0)
    y = layout.empty(x, (x.shape[0], w.shape[d], *w.shape[:d]), as_lies(x))
    if x.numel() == 0 or w.numel() == 0:
        return y.copy_(bias.expand(y.shape)) if bias is not None else y.zero_()
    _algorithm(w, geometry, groups, x.shape[0]).output(x, w, geometry, groups, bias, y)
    return y


def local_input_gradient(gy: Tensor, w: Tensor, geometry: Geometry, groups: int, size: Sequence[int]) -> Tensor:
    """The gradient of the input, `(N, O, *positions), (*positions, O, C/G, *kernel) -> (N, C, *size)`."""
    d = geometry.dimensions
    gx = layout.empty(gy, (gy.shape[0], w.shape[d + 1] * groups, *size), as_lies(gy))
    if gy.numel() == 0 or w.numel() == 0:
        return gx.zero_()
    _algorithm(w, geometry, groups, gy.shape[0]).input_gradient(gy, w, geometry, groups, gx)
    return gx


def local_weight_gradient(gy: Tensor, x: Tensor, geometry: Geometry, groups: int, order: Sequence[int] | None = None) -> Tensor:
    """The gradient of the weight, `(N, O, *positions), (N, C, *size) -> (*positions, O, C/G, *kernel)`, in memory in `order`."""
    shape = (*gy.shape[2:], gy.shape[1], x.shape[1] // groups, *geometry.kernel)
    gw = empty(shape, order or range(len(shape)), gy)
    if gy.numel() == 0 or x.numel() == 0:
        return gw.zero_()
    _algorithm(gw, geometry, groups, gy.shape[0]).weight_gradient(gy, x, geometry, groups, gw)
    return gw


def laid_out(gy: Tensor, w: Tensor, geometry: Geometry, groups: int) -> Tensor:
    """The output gradient of many images, if not large, in the memory order in which both of its maps read it: copied only once."""
    if len(gy) < MANY or gy.nbytes > LAID or is_channels_last(gy) or 0 in (gy.numel(), w.numel()):
        return gy
    if _algorithm(w, geometry, groups, len(gy)) is not local_matmul:
        return gy
    return empty(gy.shape, (*range(1, gy.ndim), 0), gy).copy_(gy)


def storage_order(shape: Sequence[int], dimensions: int) -> tuple[int, ...]:
    """The memory order that a Module should choose for a weight of this shape.

    Contiguous, as everybody expects (FSDP, LBFGS and `parameters_to_vector` refuse anything else), except for large layers of few channels,
    which are nothing but one sweep over their weights, and two to three times faster with positions innermost.
    """
    d = dimensions
    few_channels = shape[d] * shape[d + 1] <= SWEPT
    return (*range(d, 2 * d + 2), *range(d)) if few_channels and prod(shape) >= LARGE else tuple(range(2 * d + 2))


def _algorithm(w: Tensor, geometry: Geometry, groups: int, batch: int) -> ModuleType:
    if is_traced() or type(w) not in PLAIN or w.device.type not in ("cpu", "cuda"):
        return local_definition  # a graph that does not grow with the number of positions, for any shape and any kind of tensor
    memory.begin()
    if registry.forced and (name := registry.forced_for("local")):
        return ALGORITHMS[name]
    if w.dtype in HALF:
        return local_matmul  # the only one that adds up in float32
    d = geometry.dimensions
    pairs = w.shape[d] // groups * w.shape[d + 1]
    if batch * groups * w.numel() // w.shape[d] <= SMALL:
        return local_definition
    return local_sweep if pairs == 1 or (pairs <= SWEPT and memory_order(w)[-1] < d) else local_matmul


def as_lies(like: Tensor) -> torch.memory_format:
    """The layout of a result: channels last if `like` lies so."""
    return FORMATS[like.ndim] if is_channels_last(like) else torch.contiguous_format
