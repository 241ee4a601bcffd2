"""Adaptive pooling: the output size is given, the windows follow from it.

    window i of m along n pixels shows the pixels from floor(i n / m) to ceil((i + 1) n / m)

Windows share pixels where m does not divide n. With one window this is the largest number or the mean of the whole image, however large
it is: how a convolutional network ends. Both pools are those of `cnn425.layers.pool` with other windows, ties and NaNs included.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary

from cnn425.layers import pool_arguments as arguments
from cnn425.layers.function import computed_by
from cnn425.layers.pool import max_pool
from cnn425.layers.pool_average import average_pool
from cnn425.windows import Adaptive

# ---- The functions: arguments and checks -----------------------------------------------------------------------------------------------


def _adaptive_max_pool(dimensions: int, input: Any, output_size: Any, return_indices: Any) -> Any:
    if has_torch_function_unary(input):
        return handle_torch_function(ADAPTIVE_MAX[dimensions], (input,), input, output_size, return_indices)
    function = f"adaptive_max_pool{dimensions}d"
    windows = Adaptive(arguments.output_size(function, input, output_size, dimensions))
    arguments.check_adaptive(function, input, dimensions, windows.output, input.shape[1:])
    arguments.check_dtype(function, input.dtype, arguments.FLOATS)
    last = dimensions < 3 and arguments.channels_last(input, dimensions)
    found = max_pool(arguments.upcast(input, dimensions), windows, last, bool(return_indices))
    return found if return_indices else found[0]


def adaptive_max_pool1d(input: Tensor, output_size: Any, return_indices: bool = False) -> Any:
    """The largest numbers of `output_size` windows of a signal: `(N, C, H) -> (N, C, I)`; see `adaptive_max_pool2d`."""
    return _adaptive_max_pool(1, input, output_size, return_indices)


def adaptive_max_pool2d(input: Tensor, output_size: Any, return_indices: bool = False) -> Any:
    """The largest numbers of `output_size` windows of an image: `(N, C, H, W) -> (N, C, I, J)`, with or without N.

    Args:
        input: the image, floating point
        output_size: the number of windows, an int or one per dimension; None for as many as pixels
        return_indices: whether to return, beside the numbers, where in the image they were, as pixel numbers in reading order
    """
    return _adaptive_max_pool(2, input, output_size, return_indices)


def adaptive_max_pool3d(input: Tensor, output_size: Any, return_indices: bool = False) -> Any:
    """The largest numbers of `output_size` windows of a volume: `(N, C, D, H, W) -> (N, C, I, J, K)`; see `adaptive_max_pool2d`."""
    return _adaptive_max_pool(3, input, output_size, return_indices)


def _adaptive_avg_pool(dimensions: int, input: Any, output_size: Any) -> Tensor:
    if has_torch_function_unary(input):
        return handle_torch_function(ADAPTIVE_AVERAGE[dimensions], (input,), input, output_size)
    function = f"adaptive_avg_pool{dimensions}d"
    windows = Adaptive(arguments.output_size(function, input, output_size, dimensions))
    size = tuple(input.shape[input.ndim - dimensions :])
    whole = all(count == 1 for count in windows.output)
    nonempty = () if whole else size if dimensions < 3 else input.shape[1:]
    arguments.check_adaptive(function, input, dimensions, windows.output, nonempty)
    if whole:
        arguments.check_mean(function, input)
    elif dimensions == 3 or (input.numel() and 0 not in windows.output) or (input.is_complex() and input.requires_grad):
        arguments.check_dtype(function, input.dtype, arguments.FLOATS)
    elif not input.is_floating_point():
        return input.new_empty((*input.shape[:-dimensions], *windows.output))  # torch does not look at the dtype of nothing
    last = (dimensions < 3 or whole) and arguments.channels_last(input, dimensions)
    return average_pool(arguments.upcast(input, dimensions), size, windows, last, arguments.equal_cells(windows.output, size), False)


def adaptive_avg_pool1d(input: Tensor, output_size: Any) -> Tensor:
    """The means of `output_size` windows of a signal: `(N, C, H) -> (N, C, I)`; see `adaptive_avg_pool2d`."""
    return _adaptive_avg_pool(1, input, output_size)


def adaptive_avg_pool2d(input: Tensor, output_size: Any) -> Tensor:
    """The means of `output_size` windows of an image: `(N, C, H, W) -> (N, C, I, J)`, with or without N.

    Args:
        input: the image, floating point
        output_size: the number of windows, an int or one per dimension; None for as many as pixels
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
