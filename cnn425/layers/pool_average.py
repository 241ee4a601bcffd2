"""Average pooling: one window in, its mean out, nothing to learn.

    forward    y[n,c,i,j]   = mean over u, v of  windows[n,c,i,j,u,v]
    backward   gx[n,c,h,w]  = sum of gy[n,c,i,j] / (cells of the window) over the windows that show pixel (h, w)

The gradient is shared equally by the cells of a window. Padding counts as zeros, or not at all. The average is linear: it and its adjoint
are each other's gradient, so both have derivatives of every order.

Intentional difference from torch: three-dimensional average pools take half precision on the CPU.
"""

from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary

from cnn425.algorithms import pool as algorithm
from cnn425.layers import pool_arguments as arguments
from cnn425.layers.arguments import check_dense, integer, is_int, remembered, written, wrong_type
from cnn425.layers.function import LinearMap, computed_by, linear_map, others
from cnn425.layers.pool import channels_last, check_adaptive_gradient, upcast
from cnn425.windows import Geometry, Windows

# ---- The Functions: mathematics only -----------------------------------------------------------------------------------------------------

# `windows` says which pixels each window shows, of an image of `size` pixels; `last`, whether results keep their channels last in memory.


class AveragePool(LinearMap):
    """Image -> the mean of every window: `(N, C, *size) -> (N, C, *positions)`; `divisor` 0 stands for the number of cells."""

    @staticmethod
    def forward(x: Tensor, size: tuple[int, ...], windows: Windows, last: bool, divisor: int, padding: bool) -> Tensor:
        return algorithm.average(x, windows, last, divisor, padding)

    @staticmethod
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor | None, ...]:
        kept = (ctx.size, *ctx.rest) if ctx.rest[0].is_global else others(ctx)  # torch saves nothing for a global mean: backward again
        return share_out(gy, *kept), None, None, None, None, None


class ShareOut(LinearMap):
    """Gradient of the output -> gradient of the image: `(N, C, *positions) -> (N, C, *size)`, shared by the cells of each window."""

    @staticmethod
    def forward(gy: Tensor, size: tuple[int, ...], windows: Windows, last: bool, divisor: int, padding: bool) -> Tensor:
        check_adaptive_gradient(gy, windows)
        return algorithm.share_out(gy, windows, last, divisor, padding, size)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        return average_pool(g, *others(ctx)), None, None, None, None, None


average_pool, share_out = map(linear_map, (AveragePool, ShareOut))

# ---- The functions: arguments and checks -------------------------------------------------------------------------------------------------

# `settings` are the arguments after the input, in the order of the public functions.


def _avg_pool(dimensions: int, input: Any, *settings: Any) -> Tensor:
    if has_torch_function_unary(input):
        return handle_torch_function(AVERAGE[dimensions], (input,), input, *settings)
    check_dense(f"avg_pool{dimensions}d", input)
    geometry, divisor = _checked(dimensions, input.shape, input.dtype, *settings)
    last = dimensions < 3 and channels_last(input, dimensions)
    size = tuple(input.shape[input.ndim - dimensions :])
    return average_pool(upcast(input, dimensions), size, geometry, last, divisor, settings[4])


@remembered
def _checked(dimensions: int, size: torch.Size, dtype: torch.dtype, *settings: Any) -> tuple[Geometry, int]:
    """The windows, and what to divide their sums by; 0: the number of their cells, which may differ from window to window."""
    function, (kernel, stride, padding, ceil_mode, count_include_pad, *divisor) = f"avg_pool{dimensions}d", settings
    divisor_override = divisor[0] if divisor else None
    if not isinstance(count_include_pad, bool):  # torch checks types before values
        raise wrong_type(function, "count_include_pad", count_include_pad, "bool")
    if divisor_override is not None and not is_int(divisor_override):
        raise wrong_type(function, "divisor_override", divisor_override, "int")
    geometry = arguments.geometry(function, dimensions, kernel, stride, padding, 1, ceil_mode)
    if divisor_override is not None and divisor_override == 0:
        raise RuntimeError("divisor must be not zero: divisor_override is 0")
    arguments.check_size(function, size, geometry)
    arguments.check_dtype(function, dtype, (*arguments.FLOATS, torch.int64))
    if divisor_override is not None:
        return geometry, integer(divisor_override)
    alike = not ceil_mode and (count_include_pad or all(low == high == 0 for low, high in geometry.padding))
    return geometry, prod(geometry.kernel) if alike else 0


def avg_pool1d(
    input: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False, count_include_pad: bool = True
) -> Tensor:
    """The mean of every window of a signal: `(N, C, H) -> (N, C, I)` or `(C, H) -> (C, I)`; see `avg_pool2d`."""
    return _avg_pool(1, input, kernel_size, stride, padding, ceil_mode, count_include_pad)


def avg_pool2d(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """The mean of every window of an image: `(N, C, H, W) -> (N, C, I, J)` or `(C, H, W) -> (C, I, J)`.

    input              the image; floating point, or int64 (means are rounded towards zero)
    padding            pixels of zeros around the image, at most half the kernel size; an int, or one int per dimension
    count_include_pad  whether the padding counts as cells of the window
    divisor_override   what to divide sums by, instead of the number of cells
    out                the tensor to write to, where no gradient is wanted

    Other arguments as in `max_pool2d`.
    """
    y = _avg_pool(2, input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)
    return y if out is None else written("avg_pool2d", y.detach(), out, input)


def avg_pool3d(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """The mean of every window of a volume: `(N, C, D, H, W) -> (N, C, I, J, K)`, with or without N; see `avg_pool2d`."""
    y = _avg_pool(3, input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)
    return y if out is None else written("avg_pool3d", y.detach(), out, input)


AVERAGE: dict[int, Callable[..., Tensor]] = {1: avg_pool1d, 2: avg_pool2d, 3: avg_pool3d}

# ---- The Modules -------------------------------------------------------------------------------------------------------------------------

# The base class keeps the arguments; only the computation is ours.
ARGUMENTS = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad")


class AvgPool1d(torch.nn.AvgPool1d):
    """`avg_pool1d` as a Module: `(N, C, H) -> (N, C, I)`."""

    forward = computed_by(avg_pool1d, *ARGUMENTS)


class AvgPool2d(torch.nn.AvgPool2d):
    """`avg_pool2d` as a Module: `(N, C, H, W) -> (N, C, I, J)`."""

    forward = computed_by(avg_pool2d, *ARGUMENTS, "divisor_override")


class AvgPool3d(torch.nn.AvgPool3d):
    """`avg_pool3d` as a Module: `(N, C, D, H, W) -> (N, C, I, J, K)`."""

    forward = computed_by(avg_pool3d, *ARGUMENTS, "divisor_override")
