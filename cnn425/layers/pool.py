"""Pooling: one window in, one number out, nothing to learn.

    max pool      forward    y[n,c,i,j]   = max over u, v of  windows[n,c,i,j,u,v]
                  backward   gx[n,c,h,w]  = sum of gy[n,c,i,j] over the windows that pixel (h, w) won
    average pool  forward    y[n,c,i,j]   = mean over u, v of windows[n,c,i,j,u,v]
                  backward   gx[n,c,h,w]  = sum of gy[n,c,i,j] / (cells of the window) over the windows that show pixel (h, w)

The max pool routes its gradient, the average pool shares it out. On a tie the first cell in reading order wins; after a ReLU whole
windows tie at zero, so this is the common case, not a curiosity. A NaN always wins, the last of several. Padding never wins, and counts
as zeros in an average.

A pool is linear once its winners are known: the tangent of a max pool picks the winners' pixels, the adjoint of picking is routing and
the adjoint of routing is picking, so two linear Functions beside the pool have derivatives of every order.

Differences from torch, on purpose. A window wholly in the padding (possible with dilation) is -inf and has the index -1; torch's index
for it is outside the image, or in another row, and its gradient is written there. In channels_last volumes torch forgets the plane of a
window that is all -inf. Three-dimensional average pools take half precision on the CPU.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.overrides import handle_torch_function, has_torch_function_unary

from cnn425.algorithms import pool as algorithm
from cnn425.layers import pool_arguments as arguments
from cnn425.layers.arguments import written
from cnn425.layers.function import operation
from cnn425.windows import Adaptive, Geometry

# ---- The Functions: mathematics only -----------------------------------------------------------------------------------------------------

# `windows` says which pixels each window shows; `last`, whether results keep their channels last in memory.


class MaxPool(Function):
    """Image -> the largest number of every window, `(N, C, *size) -> (N, C, *positions)`, and the number of its pixel (int64 on request)."""

    @staticmethod
    def forward(x: Tensor, windows: Geometry | Adaptive, last: bool, long: bool) -> tuple[Tensor, Tensor]:
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
        arguments.check_adaptive_gradient(gy, ctx.windows)
        return route(gy, ctx.saved_tensors[0], ctx.size, ctx.last), None, None, None

    @staticmethod
    def jvp(ctx: Any, dx: Tensor, *_: None) -> tuple[Tensor, None]:
        return pick(dx, ctx.saved_tensors[0], len(ctx.size), ctx.last), None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], x: Tensor, *arguments: Any) -> tuple[tuple[Tensor, ...], tuple[int, int]]:
        return over_batch(max_pool, arguments[0].dimensions, info.batch_size, in_dims[:1], (x,), *arguments), (0, 0)


class Pick(Function):
    """(image, numbers of pixels) -> these pixels: `(N, C, *size) -> (N, C, *positions)`."""

    @staticmethod
    def forward(t: Tensor, where: Tensor, dimensions: int, last: bool) -> Tensor:
        return algorithm.pick(t, where, dimensions, last)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        t, where, dimensions, ctx.last = inputs
        ctx.size = t.shape[t.ndim - dimensions :]
        ctx.save_for_backward(where)
        ctx.save_for_forward(where)

    @staticmethod
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor | None, ...]:
        return route(gy, ctx.saved_tensors[0], ctx.size, ctx.last), None, None, None

    @staticmethod
    def jvp(ctx: Any, dt: Tensor, *_: None) -> Tensor:
        return pick(dt, ctx.saved_tensors[0], len(ctx.size), ctx.last)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], t: Tensor, where: Tensor, dimensions: int, last: bool) -> tuple[Tensor, int]:
        return over_batch(pick, dimensions, info.batch_size, in_dims[:2], (t, where), dimensions, last), 0


class Route(Function):
    """(gradient of the output, numbers of pixels) -> gradient of the image: `(N, C, *positions) -> (N, C, *size)`, each to its pixel."""

    @staticmethod
    def forward(gy: Tensor, where: Tensor, size: tuple[int, ...], last: bool) -> Tensor:
        return algorithm.route(gy, where, size, last)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, where, ctx.size, ctx.last = inputs
        ctx.save_for_backward(where)
        ctx.save_for_forward(where)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        return pick(g, ctx.saved_tensors[0], len(ctx.size), ctx.last), None, None, None

    @staticmethod
    def jvp(ctx: Any, dgy: Tensor, *_: None) -> Tensor:
        return route(dgy, ctx.saved_tensors[0], ctx.size, ctx.last)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], gy: Tensor, where: Tensor, size: Any, last: bool) -> tuple[Tensor, int]:
        return over_batch(route, len(size), info.batch_size, in_dims[:2], (gy, where), size, last), 0


class AveragePool(Function):
    """Image -> the mean of every window: `(N, C, *size) -> (N, C, *positions)`; `divisor` 0 stands for the number of cells."""

    @staticmethod
    def forward(x: Tensor, windows: Geometry | Adaptive, last: bool, divisor: int, padding: bool) -> Tensor:
        return algorithm.average(x, windows, last, divisor, padding)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, *ctx.arguments = inputs
        ctx.size = algorithm.spatial(x, ctx.arguments[0])

    @staticmethod
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor | None, ...]:
        windows, last, *rest = ctx.arguments
        arguments.check_adaptive_gradient(gy, windows)
        if isinstance(windows, Adaptive) and set(windows.output) == {1}:
            last = False  # the gradient of a mean of everything is contiguous, in torch
        return share_out(gy, windows, last, *rest, ctx.size), None, None, None, None

    @staticmethod
    def jvp(ctx: Any, dx: Tensor, *_: None) -> Tensor:
        return average_pool(dx, *ctx.arguments)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], x: Tensor, *arguments: Any) -> tuple[Tensor, int]:
        return over_batch(average_pool, arguments[0].dimensions, info.batch_size, in_dims[:1], (x,), *arguments), 0


class ShareOut(Function):
    """Gradient of the output -> gradient of the image: `(N, C, *positions) -> (N, C, *size)`, shared by the cells of each window."""

    @staticmethod
    def forward(gy: Tensor, windows: Geometry | Adaptive, last: bool, divisor: int, padding: bool, size: tuple[int, ...]) -> Tensor:
        return algorithm.share_out(gy, windows, last, divisor, padding, size)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, *ctx.arguments, ctx.size = inputs

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        return average_pool(g, *ctx.arguments), None, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, dgy: Tensor, *_: None) -> Tensor:
        return share_out(dgy, *ctx.arguments, ctx.size)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], gy: Tensor, *arguments: Any) -> tuple[Tensor, int]:
        return over_batch(share_out, arguments[0].dimensions, info.batch_size, in_dims[:1], (gy,), *arguments), 0


def over_batch(function: Any, dimensions: int, batch: int, in_dims: tuple[int | None, ...], images: tuple[Tensor, ...], *rest: Any) -> Any:
    """`function` over an extra batch of images: it joins the batch that is there, or becomes it."""
    moved = [x.expand(batch, *x.shape) if at is None else x.movedim(at, 0) for x, at in zip(images, in_dims, strict=True)]
    if moved[0].ndim == dimensions + 2:
        return function(*moved, *rest)
    results = function(*(x.flatten(0, 1) for x in moved), *rest)
    if isinstance(results, tuple):
        return tuple(y.unflatten(0, (batch, y.shape[0] // batch)) for y in results)
    return results.unflatten(0, (batch, results.shape[0] // batch))


max_pool, pick, route, average_pool, share_out = map(operation, (MaxPool, Pick, Route, AveragePool, ShareOut))

# ---- The functions: arguments and checks -------------------------------------------------------------------------------------------------


def upcast(input: Tensor, dimensions: int) -> Tensor:
    """Half precision volumes in float32 under autocast on the CPU, as in torch; other pools keep the precision they are given."""
    if (
        dimensions == 3
        and input.device.type == "cpu"
        and input.dtype in (torch.float16, torch.bfloat16)
        and torch.is_autocast_enabled("cpu")
    ):
        return input.float()
    return input


def _max_pool(
    dimensions: int, input: Any, kernel_size: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: Any, return_indices: Any
) -> Any:
    if has_torch_function_unary(input):
        settings = (kernel_size, stride, padding, dilation, ceil_mode, return_indices)
        return handle_torch_function(MAX[dimensions], (input,), input, *settings)

    def checked() -> Geometry:
        function = f"max_pool{dimensions}d"
        arguments.check_tensor(function, input)
        geometry = arguments.geometry(function, dimensions, kernel_size, stride, padding, dilation, ceil_mode)
        arguments.check_shape(function, input, dimensions)
        arguments.check_fits(function, input, geometry)
        integers = dimensions > 1 or return_indices
        arguments.check_dtype(function, input, arguments.FLOATS + arguments.INTEGERS if integers else arguments.FLOATS)
        return geometry

    geometry = arguments.once(checked, "max", dimensions, input, kernel_size, stride, padding, dilation, ceil_mode, bool(return_indices))
    last = arguments.channels_last(input, dimensions) and (dimensions > 1 or return_indices or arguments.derived(input))
    found = max_pool(input, geometry, last, True) if return_indices else max_pool(upcast(input, dimensions), geometry, last, False)[0]
    return volume_channels_last(found) if dimensions == 3 and arguments.single_channels_last(input) else found


def volume_channels_last(found: Any) -> Any:
    """Results of a single volume (C, I, J, K), in torch's memory layout: the channels last, as in the volume."""
    if isinstance(found, tuple):
        return tuple(map(volume_channels_last, found))
    return found.unsqueeze(0).contiguous(memory_format=torch.channels_last_3d).squeeze(0)


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
        padding: pixels that never win around the image, at most half the kernel size
        dilation: pixels from one cell of the window to the next
        ceil_mode: whether a last window may hang over the edge, as long as it starts inside the image or its low padding
        return_indices: whether to return, beside the numbers, where in the image they were, as pixel numbers in reading order
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


def _avg_pool(
    dimensions: int, input: Any, kernel_size: Any, stride: Any, padding: Any, ceil_mode: Any, count_include_pad: Any, divisor_override: Any
) -> Tensor:
    if has_torch_function_unary(input):
        divisor = () if dimensions == 1 else (divisor_override,)
        settings = (kernel_size, stride, padding, ceil_mode, count_include_pad, *divisor)
        return handle_torch_function(AVERAGE[dimensions], (input,), input, *settings)

    def checked() -> tuple[Geometry, int]:
        function = f"avg_pool{dimensions}d"
        arguments.check_tensor(function, input)
        arguments.check_average(function, count_include_pad, divisor_override)
        geometry = arguments.geometry(function, dimensions, kernel_size, stride, padding, 1, ceil_mode)
        arguments.check_divisor(divisor_override)
        arguments.check_shape(function, input, dimensions)
        arguments.check_fits(function, input, geometry)
        arguments.check_dtype(function, input, (*arguments.FLOATS, torch.int64))
        return geometry, divisor_override or arguments.cells(geometry, count_include_pad)

    windows = (kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)
    geometry, divisor = arguments.once(checked, "average", dimensions, input, *windows)
    last = dimensions < 3 and arguments.channels_last(input, dimensions)
    return average_pool(upcast(input, dimensions), geometry, last, divisor, count_include_pad)


def avg_pool1d(
    input: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False, count_include_pad: bool = True
) -> Tensor:
    """The mean of every window of a signal: `(N, C, H) -> (N, C, I)` or `(C, H) -> (C, I)`; see `avg_pool2d`."""
    return _avg_pool(1, input, kernel_size, stride, padding, ceil_mode, count_include_pad, None)


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

    Args:
        input: the image; floating point, or int64 (means are cut off towards zero)
        kernel_size: pixels of the window; here and below an int, or one int per dimension
        stride: pixels from one window to the next; the kernel size if None
        padding: pixels of zeros around the image, at most half the kernel size
        ceil_mode: whether a last window may hang over the edge, as long as it starts inside the image or its low padding
        count_include_pad: whether the padding counts as cells of the window
        divisor_override: what to divide sums by, instead of the number of cells
        out: memory for the result, where no gradient is wanted
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


MAX: dict[int, Callable[..., Any]] = {1: max_pool1d, 2: max_pool2d, 3: max_pool3d}
AVERAGE: dict[int, Callable[..., Tensor]] = {1: avg_pool1d, 2: avg_pool2d, 3: avg_pool3d}

# ---- The Modules -------------------------------------------------------------------------------------------------------------------------


class MaxPool1d(torch.nn.MaxPool1d):
    """`max_pool1d` as a Module: `(N, C, H) -> (N, C, I)`; the base class keeps the arguments."""

    def forward(self, input: Tensor) -> Any:
        """The pooled signal, and the indices if asked for."""
        return _max_pool_of(self, 1, input)


class MaxPool2d(torch.nn.MaxPool2d):
    """`max_pool2d` as a Module: `(N, C, H, W) -> (N, C, I, J)`; the base class keeps the arguments."""

    def forward(self, input: Tensor) -> Any:
        """The pooled image, and the indices if asked for."""
        return _max_pool_of(self, 2, input)


class MaxPool3d(torch.nn.MaxPool3d):
    """`max_pool3d` as a Module: `(N, C, D, H, W) -> (N, C, I, J, K)`; the base class keeps the arguments."""

    def forward(self, input: Tensor) -> Any:
        """The pooled volume, and the indices if asked for."""
        return _max_pool_of(self, 3, input)


def _max_pool_of(module: Any, dimensions: int, input: Tensor) -> Any:
    windows = (module.kernel_size, module.stride, module.padding, module.dilation)
    return _max_pool(dimensions, input, *windows, module.ceil_mode, module.return_indices)


class AvgPool1d(torch.nn.AvgPool1d):
    """`avg_pool1d` as a Module: `(N, C, H) -> (N, C, I)`; the base class keeps the arguments."""

    def forward(self, input: Tensor) -> Tensor:
        """The pooled signal."""
        return avg_pool1d(input, self.kernel_size, self.stride, self.padding, self.ceil_mode, self.count_include_pad)


class AvgPool2d(torch.nn.AvgPool2d):
    """`avg_pool2d` as a Module: `(N, C, H, W) -> (N, C, I, J)`; the base class keeps the arguments."""

    def forward(self, input: Tensor) -> Tensor:
        """The pooled image."""
        windows = (self.kernel_size, self.stride, self.padding, self.ceil_mode)
        return avg_pool2d(input, *windows, self.count_include_pad, self.divisor_override)


class AvgPool3d(torch.nn.AvgPool3d):
    """`avg_pool3d` as a Module: `(N, C, D, H, W) -> (N, C, I, J, K)`; the base class keeps the arguments."""

    def forward(self, input: Tensor) -> Tensor:
        """The pooled volume."""
        windows = (self.kernel_size, self.stride, self.padding, self.ceil_mode)
        return avg_pool3d(input, *windows, self.count_include_pad, self.divisor_override)
