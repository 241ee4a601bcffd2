"""Pooling: one window in, one number out, nothing to learn.

    max pool      forward    y[n,c,i,j]   = max over u, v of  windows[n,c,i,j,u,v]
                  backward   gx[n,c,h,w]  = sum of gy[n,c,i,j] over the windows that pixel (h, w) won
    average pool  forward    y[n,c,i,j]   = mean over u, v of windows[n,c,i,j,u,v]
                  backward   gx[n,c,h,w]  = sum of gy[n,c,i,j] / (cells of the window) over the windows that show pixel (h, w)

The max pool routes its gradient, the average pool shares it out. On a tie the first cell in reading order wins; after a ReLU whole
windows tie at zero, so this is the common case, not a curiosity. A NaN always wins, the last of several. Padding never wins, and counts
as zeros in an average.

A pool is linear once its winners are known: the tangent of a max pool picks the winners' cells, the adjoint of picking is routing and
the adjoint of routing is picking, so two linear Functions beside the pool have derivatives of every order. How the numbers are found is
the business of `cnn425.algorithms.pool`.

Differences from torch, on purpose. A window wholly in the padding (a dilated one may lie so) is -inf and has the index -1; torch's index
for it lies outside the image, or in another row, and its gradient is written there. In channels_last volumes torch forgets the plane of a
window that is all -inf. Three-dimensional average pools take half precision on the CPU.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import Module

from cnn425.algorithms import pool as algorithm
from cnn425.algorithms import pool_masks
from cnn425.algorithms.pool import Bins, Pooling
from cnn425.layers import pool_arguments as arguments
from cnn425.layers.function import operation

# ---- The Functions: mathematics only -----------------------------------------------------------------------------------------------------


def spatial(x: Tensor, pooling: Pooling) -> tuple[int, ...]:
    """The image size in pixels."""
    return tuple(x.shape[x.ndim - len(pooling.geometry[0]) :])


def wide(x: Tensor) -> Tensor:
    """`x` in the precision in which its numbers are added up: half precision adds in float32 and is rounded once."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


class MaxPool(Function):
    """Image -> the largest number of every window: `(N, C, *size) -> (N, C, *positions)`."""

    @staticmethod
    def forward(x: Tensor, pooling: Pooling) -> Tensor:
        return algorithm.largest(x, pooling)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, ctx.pooling = inputs
        ctx.save_for_backward(x, output)
        ctx.save_for_forward(x)

    @staticmethod
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor | None, ...]:
        return route(gy, *ctx.saved_tensors, ctx.pooling), None

    @staticmethod
    def jvp(ctx: Any, dx: Tensor, _: None) -> Tensor:
        return pick(dx, ctx.saved_tensors[0], ctx.pooling)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], x: Tensor, pooling: Pooling) -> tuple[Tensor, int]:
        return over_batch(max_pool, info.batch_size, in_dims[:1], (x,), pooling), 0


class MaxPoolWithIndices(Function):
    """Image -> the largest number of every window, and where it was: its number among the image's pixels in reading order."""

    @staticmethod
    def forward(x: Tensor, pooling: Pooling) -> tuple[Tensor, Tensor]:
        y = algorithm.largest(x, pooling)
        indices = pool_masks.numbers(x, y, pooling)
        if indices is None:
            indices = algorithm.numbers(algorithm.winners(x, pooling)[1], pooling, spatial(x, pooling))
        return y, indices

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, ctx.pooling = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(x, output[0])
        ctx.save_for_forward(x)

    @staticmethod
    def backward(ctx: Any, gy: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        return route(gy, *ctx.saved_tensors, ctx.pooling), None

    @staticmethod
    def jvp(ctx: Any, dx: Tensor, _: None) -> tuple[Tensor, None]:
        return pick(dx, ctx.saved_tensors[0], ctx.pooling), None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], x: Tensor, pooling: Pooling) -> tuple[tuple[Tensor, ...], tuple[int, int]]:
        return over_batch(max_pool_with_indices, info.batch_size, in_dims[:1], (x,), pooling), (0, 0)


class Pick(Function):
    """(another image, image) -> the other image where this one has its winners: `(N, C, *size) -> (N, C, *positions)`."""

    @staticmethod
    def forward(t: Tensor, x: Tensor, pooling: Pooling) -> Tensor:
        return algorithm.pick(t, algorithm.winners(x, pooling)[1], pooling)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, x, ctx.pooling = inputs
        ctx.save_for_backward(x)
        ctx.save_for_forward(x)

    @staticmethod
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor | None, ...]:
        x = ctx.saved_tensors[0]
        return route(gy, x, max_pool(x, ctx.pooling), ctx.pooling), None, None

    @staticmethod
    def jvp(ctx: Any, dt: Tensor | None, *_: Any) -> Tensor | None:
        return None if dt is None else pick(dt, ctx.saved_tensors[0], ctx.pooling)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], t: Tensor, x: Tensor, pooling: Pooling) -> tuple[Tensor, int]:
        return over_batch(pick, info.batch_size, in_dims[:2], (t, x), pooling), 0


class Route(Function):
    """(gradient of the output, image, its max pool) -> gradient of the image: `(N, C, *positions) -> (N, C, *size)`, each to the winner."""

    @staticmethod
    def forward(gy: Tensor, x: Tensor, y: Tensor, pooling: Pooling) -> Tensor:
        g = wide(gy)
        gx = pool_masks.route(g, x.to(g.dtype), y.to(g.dtype), pooling)
        if gx is None:
            gx = algorithm.route(g, algorithm.winners(x, pooling)[1], pooling, spatial(x, pooling))
        return gx.to(gy.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, x, y, ctx.pooling = inputs
        ctx.save_for_backward(x)
        ctx.save_for_forward(x, y)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        return pick(g, ctx.saved_tensors[0], ctx.pooling), None, None, None

    @staticmethod
    def jvp(ctx: Any, dgy: Tensor | None, *_: Any) -> Tensor | None:
        return None if dgy is None else route(dgy, *ctx.saved_tensors, ctx.pooling)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], gy: Tensor, x: Tensor, y: Tensor, pooling: Pooling) -> tuple[Tensor, int]:
        return over_batch(route, info.batch_size, in_dims[:3], (gy, x, y), pooling), 0


class AveragePool(Function):
    """Image -> the mean of every window: `(N, C, *size) -> (N, C, *positions)`; `divisor` 0 stands for the number of cells."""

    @staticmethod
    def forward(x: Tensor, pooling: Pooling, divisor: int, count_include_pad: bool) -> Tensor:
        y = algorithm.total(wide(x), pooling)
        return divided(y, pooling, spatial(x, pooling), divisor, count_include_pad, in_place=True).to(x.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, *ctx.arguments = inputs
        ctx.size = spatial(x, ctx.arguments[0])

    @staticmethod
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor | None, ...]:
        return share(gy, *ctx.arguments, ctx.size), None, None, None

    @staticmethod
    def jvp(ctx: Any, dx: Tensor, *_: None) -> Tensor:
        return average_pool(dx, *ctx.arguments)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], x: Tensor, *arguments: Any) -> tuple[Tensor, int]:
        return over_batch(average_pool, info.batch_size, in_dims[:1], (x,), *arguments), 0


class Share(Function):
    """Gradient of the output -> gradient of the image: `(N, C, *positions) -> (N, C, *size)`, shared by the cells of each window."""

    @staticmethod
    def forward(gy: Tensor, pooling: Pooling, divisor: int, count_include_pad: bool, size: tuple[int, ...]) -> Tensor:
        if isinstance(pooling.geometry, Bins) and set(pooling.geometry.positions) == {1}:
            pooling = Pooling(pooling.geometry)  # the gradient of a mean of everything is contiguous, in torch
        g = divided(wide(gy), pooling, size, divisor, count_include_pad)
        return algorithm.spread(g, pooling, size).to(gy.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, *ctx.arguments, ctx.size = inputs

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        return average_pool(g, *ctx.arguments), None, None, None, None

    @staticmethod
    def jvp(ctx: Any, dgy: Tensor, *_: None) -> Tensor:
        return share(dgy, *ctx.arguments, ctx.size)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], gy: Tensor, *arguments: Any) -> tuple[Tensor, int]:
        return over_batch(share, info.batch_size, in_dims[:1], (gy,), *arguments), 0


def divided(y: Tensor, pooling: Pooling, size: tuple[int, ...], divisor: int, count_include_pad: bool, in_place: bool = False) -> Tensor:
    """`y` divided by `divisor`, or if that is 0 by the number of cells in each window; integers are cut off towards zero."""
    if divisor == 1:
        return y
    cells = divisor or algorithm.counts(pooling.geometry, size, count_include_pad, y)
    rounding = None if y.is_floating_point() or y.is_complex() else "trunc"
    return y.div_(cells, rounding_mode=rounding) if in_place else y.div(cells, rounding_mode=rounding)


def over_batch(function: Any, batch: int, in_dims: tuple[int | None, ...], images: tuple[Tensor, ...], *arguments: Any) -> Any:
    """`function` over an extra batch of images: it joins the batch that is there, or becomes it."""
    pooling = arguments[0]
    batched = len(pooling.geometry[0]) + 2
    moved = [x.expand(batch, *x.shape) if at is None else x.movedim(at, 0) for x, at in zip(images, in_dims, strict=True)]
    if moved[0].ndim == batched:
        return function(*moved, *arguments)
    results = function(*(x.flatten(0, 1) for x in moved), *arguments)
    if isinstance(results, tuple):
        return tuple(y.unflatten(0, (batch, y.shape[0] // batch)) for y in results)
    return results.unflatten(0, (batch, results.shape[0] // batch))


max_pool, max_pool_with_indices, pick, route = map(operation, (MaxPool, MaxPoolWithIndices, Pick, Route))
average_pool, share = map(operation, (AveragePool, Share))

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
    function = f"max_pool{dimensions}d"
    arguments.check_tensor(function, input)
    geometry = arguments.geometry(function, dimensions, kernel_size, stride, padding, dilation, ceil_mode)
    arguments.check_shape(function, input, dimensions)
    arguments.check_fits(function, input, geometry)
    integers = dimensions > 1 or return_indices
    arguments.check_dtype(function, input, arguments.FLOATS + arguments.INTEGERS if integers else arguments.FLOATS)
    pooling = Pooling(geometry, arguments.channels_last(input, dimensions))
    return (max_pool_with_indices if return_indices else max_pool)(upcast(input, dimensions), pooling)


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
    function = f"avg_pool{dimensions}d"
    arguments.check_tensor(function, input)
    geometry = arguments.geometry(function, dimensions, kernel_size, stride, padding, 1, ceil_mode)
    arguments.check_average(function, count_include_pad, divisor_override)
    arguments.check_shape(function, input, dimensions)
    arguments.check_fits(function, input, geometry)
    arguments.check_dtype(function, input, (*arguments.FLOATS, torch.int64))
    pooling = Pooling(geometry, dimensions < 3 and arguments.channels_last(input, dimensions))
    divisor = divisor_override or arguments.cells(geometry, count_include_pad)
    return average_pool(upcast(input, dimensions), pooling, divisor, count_include_pad)


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
    """
    return _avg_pool(2, input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)


def avg_pool3d(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """The mean of every window of a volume: `(N, C, D, H, W) -> (N, C, I, J, K)`, with or without N; see `avg_pool2d`."""
    return _avg_pool(3, input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)


# ---- The Modules -------------------------------------------------------------------------------------------------------------------------


class _MaxPoolNd(Module):
    def __init__(
        self,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        return_indices: bool = False,
        ceil_mode: bool = False,
    ) -> None:
        super().__init__()
        self.kernel_size = kernel_size
        self.stride = kernel_size if stride is None else stride
        self.padding = padding
        self.dilation = dilation
        self.return_indices = return_indices
        self.ceil_mode = ceil_mode

    def _pool(self, dimensions: int, input: Tensor) -> Any:
        windows = (self.kernel_size, self.stride, self.padding, self.dilation)
        return _max_pool(dimensions, input, *windows, self.ceil_mode, self.return_indices)

    def extra_repr(self) -> str:
        """The arguments, as torch prints them."""
        return "kernel_size={kernel_size}, stride={stride}, padding={padding}, dilation={dilation}, ceil_mode={ceil_mode}".format(
            **self.__dict__
        )


class MaxPool1d(_MaxPoolNd):
    """`max_pool1d` as a Module: `(N, C, H) -> (N, C, I)`."""

    def forward(self, input: Tensor) -> Any:
        """The pooled signal, and the indices if asked for."""
        return self._pool(1, input)


class MaxPool2d(_MaxPoolNd):
    """`max_pool2d` as a Module: `(N, C, H, W) -> (N, C, I, J)`."""

    def forward(self, input: Tensor) -> Any:
        """The pooled image, and the indices if asked for."""
        return self._pool(2, input)


class MaxPool3d(_MaxPoolNd):
    """`max_pool3d` as a Module: `(N, C, D, H, W) -> (N, C, I, J, K)`."""

    def forward(self, input: Tensor) -> Any:
        """The pooled volume, and the indices if asked for."""
        return self._pool(3, input)


class _AvgPoolNd(Module):
    def __init__(
        self,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> None:
        super().__init__()
        self.kernel_size = kernel_size
        self.stride = kernel_size if stride is None else stride
        self.padding = padding
        self.ceil_mode = ceil_mode
        self.count_include_pad = count_include_pad
        self.divisor_override = divisor_override

    def _pool(self, dimensions: int, input: Tensor) -> Tensor:
        windows = (self.kernel_size, self.stride, self.padding, self.ceil_mode)
        return _avg_pool(dimensions, input, *windows, self.count_include_pad, self.divisor_override)

    def extra_repr(self) -> str:
        """The arguments, as torch prints them."""
        return f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"


def _single(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)


class AvgPool1d(_AvgPoolNd):
    """`avg_pool1d` as a Module: `(N, C, H) -> (N, C, I)`."""

    divisor_override = None

    def __init__(
        self, kernel_size: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False, count_include_pad: bool = True
    ) -> None:
        super().__init__(_single(kernel_size), None if stride is None else _single(stride), _single(padding), ceil_mode, count_include_pad)
        del self.__dict__["divisor_override"]

    def forward(self, input: Tensor) -> Tensor:
        """The pooled signal."""
        return self._pool(1, input)


class AvgPool2d(_AvgPoolNd):
    """`avg_pool2d` as a Module: `(N, C, H, W) -> (N, C, I, J)`."""

    def forward(self, input: Tensor) -> Tensor:
        """The pooled image."""
        return self._pool(2, input)


class AvgPool3d(_AvgPoolNd):
    """`avg_pool3d` as a Module: `(N, C, D, H, W) -> (N, C, I, J, K)`."""

    def forward(self, input: Tensor) -> Tensor:
        """The pooled volume."""
        return self._pool(3, input)
