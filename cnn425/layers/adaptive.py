"""Adaptive pooling: the output size is given, the windows follow from it.

    window i of m along n pixels shows the pixels from floor(i n / m) to ceil((i + 1) n / m) - 1

Windows overlap where m does not divide n. With one window the result is the largest number or the mean of the whole image, whatever its
size, as at the end of many convolutional networks. The maximum is computed by `cnn425.layers.pool`, with the same rules for ties and
NaNs, and the mean by `cnn425.layers.pool_average`.
"""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary

from cnn425.kernels.threads import is_traced
from cnn425.layers import pool_arguments as arguments
from cnn425.layers.arguments import check_dense, is_int, remembered
from cnn425.layers.function import computed_by
from cnn425.layers.pool import channels_last, max_pool, upcast
from cnn425.layers.pool_average import average_pool
from cnn425.windows import Adaptive

LARGEST = 2**24  # windows

# ---- The functions: arguments and checks -----------------------------------------------------------------------------------------------


def _check_input(function: str, input: object, dimensions: int) -> None:
    """Refuse anything that is not a dense tensor, with the exception types of torch's adaptive pools."""
    if dimensions > 1 and not isinstance(input, Tensor):
        raise AttributeError(f"{function}(): argument 'input' must be Tensor: {type(input).__name__!r} object has no attribute 'size'")
    check_dense(function, input)


def _output_size(function: str, size: torch.Size, value: Any, dimensions: int) -> tuple[int, ...]:
    """The number of windows per dimension: an int counts for all of them, None (in two and three dimensions) means one per pixel."""
    if dimensions == 1:
        return arguments.for_each_side(function, "output_size", value, 1)
    if isinstance(value, (int, torch.SymInt)):
        return arguments.entries(function, "output_size", value) * dimensions
    if is_int(value) or not hasattr(value, "__len__"):
        raise TypeError(
            f"{function}(): argument 'output_size' must be an int or a tuple, but object of type {type(value).__name__!r} has no len()"
        )
    if len(value) >= len(size):
        raise ValueError(
            f"Input dimension should be at least {len(value) + 1}: {function}() got output_size {value} for input {list(size)}"
        )
    pixels = size[len(size) - len(value) :]
    sizes = arguments.entries(function, "output_size", tuple(n if v is None else v for v, n in zip(value, pixels, strict=True)))
    if len(sizes) != dimensions:
        raise RuntimeError(
            f"{function}: output_size must be {dimensions}: internal error: output_size.size() must be {dimensions}, not {list(sizes)}"
        )
    return sizes


def _check_sizes(function: str, size: torch.Size, dimensions: int, positions: Sequence[int], nonempty: Sequence[int]) -> None:
    """The input must be (C, *size) or (N, C, *size) without empty dimensions among `nonempty`, and no output size negative."""
    d, shape = dimensions, list(size)
    if len(shape) not in (d + 1, d + 2):
        raise RuntimeError(
            f"{function}(): Expected {d + 1}D or {d + 2}D tensor, but got {shape}. "
            f"Expected {d + 1} to {d + 2} dimensions, but got {len(shape)}-dimensional tensor"
        )
    if any(count < 0 for count in positions):
        raise RuntimeError(
            f"{function}: elements of output_size must be greater than or equal to 0 but received {list(positions)} "
            f"(Trying to create tensor with negative dimension {min(positions)})"
        )
    if 0 in nonempty:
        raise RuntimeError(
            f"{function}(): Expected input to have non-zero size for non-batch dimensions, but input has sizes {shape} "
            f"with dimension {shape.index(0, len(shape) - len(nonempty))} being empty"
        )


def _check_memory(input: Tensor, windows: Adaptive) -> None:
    """Allocate a very large output once, so that torch raises its own error before the windows are listed."""
    if prod(windows.output) > LARGEST:
        input.new_empty((*input.shape[: input.ndim - windows.dimensions], *windows.output))


def _adaptive_max_pool(public: Callable[..., Any], dimensions: int, input: Any, output_size: Any, return_indices: Any) -> Any:
    if has_torch_function_unary(input):
        return handle_torch_function(public, (input,), input, output_size, return_indices)
    _check_input(f"adaptive_max_pool{dimensions}d", input, dimensions)
    windows = _checked_max(dimensions, input.shape, input.dtype, output_size)
    _check_memory(input, windows)
    last = dimensions < 3 and channels_last(input, dimensions)
    found = max_pool(upcast(input, dimensions), windows, last, bool(return_indices))
    return found if return_indices else found[0]


@remembered
def _checked_max(dimensions: int, size: torch.Size, dtype: torch.dtype, output_size: Any) -> Adaptive:
    function = f"adaptive_max_pool{dimensions}d"
    windows = Adaptive(_output_size(function, size, output_size, dimensions))
    _check_sizes(function, size, dimensions, windows.output, size[1:])
    arguments.check_dtype(function, dtype, arguments.FLOATS)
    return windows


def adaptive_max_pool1d(input: Tensor, output_size: Any, return_indices: bool = False) -> Any:
    """The largest number of each of `output_size` windows of a signal: `(N, C, H) -> (N, C, I)`; see `adaptive_max_pool2d`."""
    return _adaptive_max_pool(adaptive_max_pool1d, 1, input, output_size, return_indices)


def adaptive_max_pool2d(input: Tensor, output_size: Any, return_indices: bool = False) -> Any:
    """The largest numbers of `output_size` windows of an image: `(N, C, H, W) -> (N, C, I, J)`, with or without N.

    Args:
        input: the image, floating point
        output_size: the number of windows, an int or one per dimension; None for one window per pixel
        return_indices: whether to return also the pixel numbers of the maxima in the image, counted in reading order
    """
    return _adaptive_max_pool(adaptive_max_pool2d, 2, input, output_size, return_indices)


def adaptive_max_pool3d(input: Tensor, output_size: Any, return_indices: bool = False) -> Any:
    """The largest numbers of `output_size` windows of a volume: `(N, C, D, H, W) -> (N, C, I, J, K)`; see `adaptive_max_pool2d`."""
    return _adaptive_max_pool(adaptive_max_pool3d, 3, input, output_size, return_indices)


def _adaptive_avg_pool(public: Callable[..., Any], dimensions: int, input: Any, output_size: Any) -> Tensor:
    if has_torch_function_unary(input):
        return handle_torch_function(public, (input,), input, output_size)
    _check_input(f"adaptive_avg_pool{dimensions}d", input, dimensions)
    windows, cells = _checked_average(dimensions, input.shape, input.dtype, input.requires_grad, output_size)
    _check_memory(input, windows)
    if not (windows.is_global or input.is_floating_point()):
        return input.new_empty((*input.shape[:-dimensions], *windows.output))  # torch does not check the dtype of an empty input
    last = (dimensions < 3 or windows.is_global) and channels_last(input, dimensions)
    size = tuple(input.shape[input.ndim - dimensions :])
    return average_pool(upcast(input, dimensions), size, windows, last, cells, False)


@remembered
def _checked_average(dimensions: int, size: torch.Size, dtype: torch.dtype, requires_grad: bool, output_size: Any) -> tuple[Adaptive, int]:
    """The windows, and the number of cells of each if they all have as many, else 0."""
    function = f"adaptive_avg_pool{dimensions}d"
    windows = Adaptive(_output_size(function, size, output_size, dimensions))
    pixels = size[len(size) - dimensions :]
    _check_sizes(function, size, dimensions, windows.output, () if windows.is_global else pixels if dimensions < 3 else size[1:])
    if windows.is_global:  # takes the dtypes of torch.mean, complex numbers too
        if not (dtype.is_floating_point or dtype.is_complex):
            try:
                torch.ones(1, dtype=dtype).mean()
            except RuntimeError as error:  # or its subclass NotImplementedError, in torch 2.15
                raise type(error)(f"{function}(): {error}") from None
    elif dimensions == 3 or 0 not in (*size, *windows.output) or (dtype.is_complex and requires_grad):
        arguments.check_dtype(function, dtype, arguments.FLOATS)
    if is_traced() or any(count == 0 or n % count for n, count in zip(pixels, windows.output, strict=True)):
        return windows, 0  # a trace serves images of any size
    return windows, prod(n // count for n, count in zip(pixels, windows.output, strict=True))


def adaptive_avg_pool1d(input: Tensor, output_size: Any) -> Tensor:
    """The means of `output_size` windows of a signal: `(N, C, H) -> (N, C, I)`; see `adaptive_avg_pool2d`."""
    return _adaptive_avg_pool(adaptive_avg_pool1d, 1, input, output_size)


def adaptive_avg_pool2d(input: Tensor, output_size: Any) -> Tensor:
    """The means of `output_size` windows of an image: `(N, C, H, W) -> (N, C, I, J)`, with or without N.

    Args:
        input: the image, floating point
        output_size: as in `adaptive_max_pool2d`
    """
    return _adaptive_avg_pool(adaptive_avg_pool2d, 2, input, output_size)


def adaptive_avg_pool3d(input: Tensor, output_size: Any) -> Tensor:
    """The means of `output_size` windows of a volume: `(N, C, D, H, W) -> (N, C, I, J, K)`; see `adaptive_avg_pool2d`."""
    return _adaptive_avg_pool(adaptive_avg_pool3d, 3, input, output_size)


# ---- The Modules -----------------------------------------------------------------------------------------------------------------------

# The base class keeps the arguments; only the computation is ours.


class AdaptiveMaxPool1d(torch.nn.AdaptiveMaxPool1d):
    """`adaptive_max_pool1d` as a Module: `(N, C, H) -> (N, C, I)`."""

    forward = computed_by(adaptive_max_pool1d, "output_size", "return_indices")


class AdaptiveMaxPool2d(torch.nn.AdaptiveMaxPool2d):
    """`adaptive_max_pool2d` as a Module: `(N, C, H, W) -> (N, C, I, J)`."""

    forward = computed_by(adaptive_max_pool2d, "output_size", "return_indices")


class AdaptiveMaxPool3d(torch.nn.AdaptiveMaxPool3d):
    """`adaptive_max_pool3d` as a Module: `(N, C, D, H, W) -> (N, C, I, J, K)`."""

    forward = computed_by(adaptive_max_pool3d, "output_size", "return_indices")


class AdaptiveAvgPool1d(torch.nn.AdaptiveAvgPool1d):
    """`adaptive_avg_pool1d` as a Module: `(N, C, H) -> (N, C, I)`."""

    forward = computed_by(adaptive_avg_pool1d, "output_size")


class AdaptiveAvgPool2d(torch.nn.AdaptiveAvgPool2d):
    """`adaptive_avg_pool2d` as a Module: `(N, C, H, W) -> (N, C, I, J)`."""

    forward = computed_by(adaptive_avg_pool2d, "output_size")


class AdaptiveAvgPool3d(torch.nn.AdaptiveAvgPool3d):
    """`adaptive_avg_pool3d` as a Module: `(N, C, D, H, W) -> (N, C, I, J, K)`."""

    forward = computed_by(adaptive_avg_pool3d, "output_size")
