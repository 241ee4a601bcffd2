"""Adaptive pooling: the output size is given, the windows follow from it.

    window i of m along n pixels shows the pixels from floor(i n / m) to ceil((i + 1) n / m) - 1

Windows overlap where m does not divide n. With one window the result is the largest number or the mean of the whole image, whatever its
size, as at the end of many convolutional networks. The maximum is that of `cnn425.layers.pool` with other windows, with the same ties and
NaNs; the mean is that of `cnn425.layers.pool_average`.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary

from cnn425.layers import pool_arguments as arguments
from cnn425.layers.arguments import remembered
from cnn425.layers.function import computed_by
from cnn425.layers.pool import max_pool
from cnn425.layers.pool_average import average_pool
from cnn425.windows import Adaptive

# ---- The functions: arguments and checks -----------------------------------------------------------------------------------------------


def _adaptive_max_pool(dimensions: int, input: Any, output_size: Any, return_indices: Any) -> Any:
    if has_torch_function_unary(input):
        return handle_torch_function(ADAPTIVE_MAX[dimensions], (input,), input, output_size, return_indices)
    arguments.check_adaptive_input(f"adaptive_max_pool{dimensions}d", input, dimensions)
    windows = _checked_max(dimensions, input.shape, input.dtype, output_size)
    arguments.check_memory(input, windows)
    last = dimensions < 3 and arguments.channels_last(input, dimensions)
    found = max_pool(arguments.upcast(input, dimensions), windows, last, bool(return_indices))
    return found if return_indices else found[0]


@remembered
def _checked_max(dimensions: int, size: torch.Size, dtype: torch.dtype, output_size: Any) -> Adaptive:
    function = f"adaptive_max_pool{dimensions}d"
    windows = Adaptive(arguments.output_size(function, size, output_size, dimensions))
    arguments.check_adaptive(function, size, dimensions, windows.output, size[1:])
    arguments.check_dtype(function, dtype, arguments.FLOATS)
    return windows


def adaptive_max_pool1d(input: Tensor, output_size: Any, return_indices: bool = False) -> Any:
    """The largest numbers of `output_size` windows, which is not None: `(N, C, H) -> (N, C, I)`; see `adaptive_max_pool2d`."""
    return _adaptive_max_pool(1, input, output_size, return_indices)


def adaptive_max_pool2d(input: Tensor, output_size: Any, return_indices: bool = False) -> Any:
    """The largest numbers of `output_size` windows of an image: `(N, C, H, W) -> (N, C, I, J)`, with or without N.

    Args:
        input: the image, floating point
        output_size: the number of windows, an int or one per dimension; None for one window per pixel
        return_indices: whether to return, beside the numbers, where in the image they were, as pixel numbers in reading order
    """
    return _adaptive_max_pool(2, input, output_size, return_indices)


def adaptive_max_pool3d(input: Tensor, output_size: Any, return_indices: bool = False) -> Any:
    """The largest numbers of `output_size` windows of a volume: `(N, C, D, H, W) -> (N, C, I, J, K)`; see `adaptive_max_pool2d`."""
    return _adaptive_max_pool(3, input, output_size, return_indices)


def _adaptive_avg_pool(dimensions: int, input: Any, output_size: Any) -> Tensor:
    if has_torch_function_unary(input):
        return handle_torch_function(ADAPTIVE_AVERAGE[dimensions], (input,), input, output_size)
    arguments.check_adaptive_input(f"adaptive_avg_pool{dimensions}d", input, dimensions)
    windows, cells = _checked_average(dimensions, input.shape, input.dtype, input.requires_grad, output_size)
    arguments.check_memory(input, windows)
    if not (windows.is_global or input.is_floating_point()):
        return input.new_empty((*input.shape[:-dimensions], *windows.output))  # torch does not check the dtype of an empty input
    last = (dimensions < 3 or windows.is_global) and arguments.channels_last(input, dimensions)
    size = tuple(input.shape[input.ndim - dimensions :])
    return average_pool(arguments.upcast(input, dimensions), size, windows, last, cells, False)


@remembered
def _checked_average(dimensions: int, size: torch.Size, dtype: torch.dtype, requires_grad: bool, output_size: Any) -> tuple[Adaptive, int]:
    """The windows, and the number of cells of each if they all have as many, else 0."""
    function = f"adaptive_avg_pool{dimensions}d"
    windows = Adaptive(arguments.output_size(function, size, output_size, dimensions))
    pixels = size[len(size) - dimensions :]
    arguments.check_adaptive(
        function, size, dimensions, windows.output, () if windows.is_global else pixels if dimensions < 3 else size[1:]
    )
    if windows.is_global:
        arguments.check_mean(function, dtype)
    elif dimensions == 3 or 0 not in (*size, *windows.output) or (dtype.is_complex and requires_grad):
        arguments.check_dtype(function, dtype, arguments.FLOATS)
    return windows, arguments.equal_cells(windows.output, pixels)


def adaptive_avg_pool1d(input: Tensor, output_size: Any) -> Tensor:
    """The means of `output_size` windows of a signal: `(N, C, H) -> (N, C, I)`; see `adaptive_avg_pool2d`."""
    return _adaptive_avg_pool(1, input, output_size)


def adaptive_avg_pool2d(input: Tensor, output_size: Any) -> Tensor:
    """The means of `output_size` windows of an image: `(N, C, H, W) -> (N, C, I, J)`, with or without N.

    Args:
        input: the image, floating point
        output_size: the number of windows, an int or one per dimension; None for one window per pixel
    """
    return _adaptive_avg_pool(2, input, output_size)


def adaptive_avg_pool3d(input: Tensor, output_size: Any) -> Tensor:
    """The means of `output_size` windows of a volume: `(N, C, D, H, W) -> (N, C, I, J, K)`; see `adaptive_avg_pool2d`."""
    return _adaptive_avg_pool(3, input, output_size)


ADAPTIVE_MAX: dict[int, Callable[..., Any]] = {1: adaptive_max_pool1d, 2: adaptive_max_pool2d, 3: adaptive_max_pool3d}
ADAPTIVE_AVERAGE: dict[int, Callable[..., Tensor]] = {1: adaptive_avg_pool1d, 2: adaptive_avg_pool2d, 3: adaptive_avg_pool3d}

# ---- The Modules -----------------------------------------------------------------------------------------------------------------------


# The base class keeps the arguments; only what is computed is ours.


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
