"""Max pooling: one window in, its largest number out, nothing to learn.

    forward    y[n,c,i,j]   = max over u, v of  windows[n,c,i,j,u,v]
    backward   gx[n,c,h,w]  = sum of gy[n,c,i,j] over the windows that pixel (h, w) won

The gradient is routed to the winners. On a tie the first cell in reading order wins; after a ReLU whole windows tie at zero, so this is
the common case. A NaN always wins; of several, the last. Padding never wins.

A max pool is linear once its winners are known: its tangent picks the winners' pixels, the adjoint of picking is routing and the adjoint of
routing is picking. So the pool and these two linear maps have derivatives of every order.

Intentional differences from torch: a window wholly in the padding (possible with dilation) is -inf and has the index -1; torch's index
is outside the image or in another row, and its gradient is written there. In channels_last volumes torch loses the plane of a window
that is all -inf.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.overrides import handle_torch_function, has_torch_function_unary

from cnn425 import compat
from cnn425.algorithms import pool as algorithm
from cnn425.algorithms.layout import HALF, is_channels_last
from cnn425.layers import pool_arguments as arguments
from cnn425.layers.arguments import INTEGERS, check_dense, remembered
from cnn425.layers.function import LinearMap, computed_by, linear_map, operation, others, over_batch
from cnn425.windows import Adaptive, Geometry, Windows

# ---- The Functions: mathematics only -----------------------------------------------------------------------------------------------------

# `windows` says which pixels each window shows; `last`, whether results keep their channels last in memory.


class MaxPool(Function):
    """Image -> the largest number of every window, `(N, C, *size) -> (N, C, *positions)`, and the number of its pixel, int64 if `long`."""

    @staticmethod
    def forward(x: Tensor, windows: Windows, last: bool, long: bool) -> tuple[Tensor, Tensor]:
        y, where = algorithm.winners(x, windows, last)
        return y, where.long() if long else where

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, ctx.windows, ctx.last, _ = inputs
        ctx.size = algorithm.spatial(x, ctx.windows)
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(output[1])
        ctx.save_for_forward(output[1])

    @staticmethod
    def backward(ctx: Any, gy: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        if gy is None:
            return None, None, None, None
        check_adaptive_gradient(gy, ctx.windows)
        gx = route(gy, ctx.size, *ctx.saved_tensors, ctx.last)
        return stored_like(gy, gx) if len(ctx.size) == 3 and isinstance(ctx.windows, Geometry) else gx, None, None, None

    @staticmethod
    def jvp(ctx: Any, dx: Tensor, *_: None) -> tuple[Tensor, None]:
        return pick(dx, ctx.size, *ctx.saved_tensors, ctx.last), None

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Tensor, windows: Windows, *rest: Any) -> tuple[tuple[Tensor, ...], tuple[int, int]]:
        return over_batch(max_pool, windows.dimensions + 2, info, in_dims, x, windows, *rest), (0, 0)


class Pick(LinearMap):
    """(image, numbers of pixels) -> these pixels: `(N, C, *size) -> (N, C, *positions)`."""

    @staticmethod
    def forward(t: Tensor, size: tuple[int, ...], where: Tensor, last: bool) -> Tensor:
        return algorithm.pick(t, where, len(size), last)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        return route(g, *others(ctx)), None, None, None


class Route(LinearMap):
    """(gradient of the output, numbers of pixels) -> gradient of the image: `(N, C, *positions) -> (N, C, *size)`, each to its pixel."""

    @staticmethod
    def forward(gy: Tensor, size: tuple[int, ...], where: Tensor, last: bool) -> Tensor:
        return algorithm.route(gy, where, size, last)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        return pick(g, *others(ctx)), None, None, None


def check_adaptive_gradient(gy: Tensor, windows: Windows) -> None:
    """As in torch, an adaptive pool without windows has an output but no gradient; only the global mean has one."""
    if isinstance(windows, Adaptive) and 0 in gy.shape[1:] and not windows.is_global:
        raise RuntimeError(
            f"adaptive_pool{windows.dimensions}d_backward(): Expected grad_output to have non-zero size for non-batch dimensions, "
            f"but grad_output has sizes {list(gy.shape)}"
        )


max_pool, pick, route = operation(MaxPool), *map(linear_map, (Pick, Route))

# ---- The functions: arguments and checks -------------------------------------------------------------------------------------------------

# `settings` are the arguments after the input, in the order of the public functions.


def _max_pool(dimensions: int, input: Any, *settings: Any) -> Any:
    if has_torch_function_unary(input):
        return handle_torch_function(MAX[dimensions], (input,), input, *settings)
    check_dense(f"max_pool{dimensions}d", input)
    *windows, indices = settings
    geometry = _checked(dimensions, input.shape, input.dtype, bool(indices), *windows)
    last = channels_last(input, dimensions) and (dimensions > 1 or indices or computes_winners(input))
    found = max_pool(input, geometry, last, True) if indices else max_pool(upcast(input, dimensions), geometry, last, False)[0]
    return stored_like(input, found) if dimensions == 3 else found


@remembered
def _checked(dimensions: int, size: torch.Size, dtype: torch.dtype, indices: bool, *windows: Any) -> Geometry:
    function = f"max_pool{dimensions}d"
    geometry = arguments.geometry(function, dimensions, *windows)
    arguments.check_size(function, size, geometry)
    integers = INTEGERS if dimensions > 1 or indices else ()
    arguments.check_dtype(function, dtype, arguments.FLOATS + integers)
    return geometry


def channels_last(input: Tensor, dimensions: int) -> bool:
    """Whether torch would keep the channels of this image last in memory: signals count as images of one row."""
    if dimensions == 1:
        return input.ndim == 3 and is_channels_last(input.unsqueeze(-2))
    if dimensions == 3:
        return is_channels_last(input if input.ndim == 5 else input.unsqueeze(0))
    return is_channels_last(input)


def computes_winners(input: Tensor) -> bool:
    """Whether torch would compute the winners of a signal. If it finds only the largest numbers, its result is contiguous."""
    return not input.is_cpu or (input.requires_grad and torch.is_grad_enabled()) or compat.forward_mode._current_level >= 0


def upcast(input: Tensor, dimensions: int) -> Tensor:
    """Half-precision volumes in float32 under autocast on the CPU, as in torch; other inputs unchanged."""
    if dimensions == 3 and input.device.type == "cpu" and input.dtype in HALF and torch.is_autocast_enabled("cpu"):
        return input.float()
    return input


def stored_like(x: Tensor, found: Any) -> Any:
    """Results of a single channels-last volume (C, D, H, W), stored like the volume, as in torch."""
    if x.ndim != 4 or x.is_contiguous() or not x.movedim(0, -1).is_contiguous():
        return found
    if isinstance(found, tuple):
        return tuple(stored_like(x, part) for part in found)
    return found.movedim(0, 3).contiguous().movedim(3, 0)  # vmap does not support contiguous(memory_format=)


def max_pool1d(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """The largest number of every window of a signal: `(N, C, H) -> (N, C, I)` or `(C, H) -> (C, I)`; see `max_pool2d`."""
    return _max_pool(1, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)


def max_pool2d(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """The largest number of every window of an image: `(N, C, H, W) -> (N, C, I, J)` or `(C, H, W) -> (C, I, J)`.

    Args:
        input: the image; floating point or integers
        kernel_size: pixels of the window; here and below an int, or one int per dimension
        stride: pixels from one window to the next; the kernel size if None
        padding: pixels around the image that never win, at most half the kernel size
        dilation: pixels from one cell of the window to the next
        ceil_mode: whether a last window may extend beyond the edge if it starts inside the image or its low padding
        return_indices: whether to return also the pixel numbers of the maxima in the image, counted in reading order
    """
    return _max_pool(2, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)


def max_pool3d(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """The largest number of every window of a volume: `(N, C, D, H, W) -> (N, C, I, J, K)`, with or without N; see `max_pool2d`."""
    return _max_pool(3, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)


MAX: dict[int, Callable[..., Any]] = {1: max_pool1d, 2: max_pool2d, 3: max_pool3d}

# ---- The Modules -------------------------------------------------------------------------------------------------------------------------

# The base class keeps the arguments; only the computation is ours.
ARGUMENTS = ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")


class MaxPool1d(torch.nn.MaxPool1d):
    """`max_pool1d` as a Module: `(N, C, H) -> (N, C, I)`."""

    forward = computed_by(max_pool1d, *ARGUMENTS)


class MaxPool2d(torch.nn.MaxPool2d):
    """`max_pool2d` as a Module: `(N, C, H, W) -> (N, C, I, J)`."""

    forward = computed_by(max_pool2d, *ARGUMENTS)


class MaxPool3d(torch.nn.MaxPool3d):
    """`max_pool3d` as a Module: `(N, C, D, H, W) -> (N, C, I, J, K)`."""

    forward = computed_by(max_pool3d, *ARGUMENTS)
