"""The checks of the pools' arguments, and what follows from arguments alone: the windows, their cells, the memory layout of results.

Exception types are torch's, and so are the words that other code matches on. Sizes are pixels.
"""

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from cnn425.algorithms import layout
from cnn425.algorithms.layout import HALF, is_channels_last
from cnn425.compat import forward_mode
from cnn425.kernels.threads import is_traced
from cnn425.layers.arguments import check_dense, dtype_name, ints, is_int
from cnn425.windows import Adaptive, Geometry, Windows

FLOATS = HALF + layout.FLOATS
COUNTS = {1: "one int", 2: "two ints", 3: "three ints"}
LARGEST = 2**24  # windows
AXES = {1: ("W",), 2: ("H", "W"), 3: ("T", "H", "W")}


def entries(function: str, name: str, value: Any) -> tuple[int, ...]:
    """`value`, an int or a sequence of ints, as a tuple of ints."""
    found = ints(value)
    if found is not None:
        return found
    if not isinstance(value, (tuple, list)):
        raise TypeError(f"{function}(): argument '{name}' must be tuple of ints, not {type(value).__name__}")
    place, entry = next((place, entry) for place, entry in enumerate(value) if not is_int(entry))
    raise TypeError(
        f"{function}(): argument '{name}' must be tuple of ints, but found element of type {type(entry).__name__} at pos {place}"
    )


def for_each_side(function: str, name: str, value: Any, dimensions: int, optional: bool = False) -> tuple[int, ...]:
    """`value` for each side of the window: an int or a sequence of one int counts for all of them."""
    found = entries(function, name, value)
    if len(found) == dimensions or (optional and not found):
        return found
    if len(found) == 1:
        return found * dimensions
    if dimensions == 1:
        raise RuntimeError(
            f"{function}() argument '{name}' should contain one int (got {len(found)}): {name} must be an int, list of ints, "
            f"or tuple of ints of size 1 but got size {len(found)}"
        )
    omitted = "be omitted, " if optional else "be "
    raise RuntimeError(
        f"{function}: {name} must either {omitted}a single int, or a tuple of {COUNTS[dimensions]} (got {len(found)} ints: {list(found)})"
    )


def _each(letters: str, values: Sequence[int]) -> str:
    return " ".join(f"{letters}{axis}: {value}" for axis, value in zip(AXES[len(values)], values, strict=True))


def geometry(function: str, dimensions: int, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: Any) -> Geometry:
    """The windows that a pool's arguments describe."""
    if stride is not None:
        entries(function, "stride", stride)
    for name, value in (("kernel_size", kernel), ("padding", padding), ("dilation", dilation)):  # torch checks all types first
        entries(function, name, value)
    if not isinstance(ceil_mode, bool):
        raise TypeError(f"{function}(): argument 'ceil_mode' must be bool, not {type(ceil_mode).__name__}")
    kernels = for_each_side(function, "kernel_size", kernel, dimensions)
    strides = kernels if stride is None else for_each_side(function, "stride", stride, dimensions, optional=True) or kernels
    pads = for_each_side(function, "padding", padding, dimensions)
    dilations = for_each_side(function, "dilation", dilation, dimensions)
    if any(n >= 2**31 for n in kernels + strides + pads + dilations) and function != "max_pool1d":
        raise RuntimeError(f"value cannot be converted to type int without overflow: {function}() takes ints of 32 bits")
    if 0 in strides and not (dimensions == 1 and function.startswith("max")):
        raise RuntimeError(f"stride should not be zero: {function}() got stride {list(strides)}")
    for name, letters, values in (("kernel size", "k", kernels), ("stride", "d", strides), ("dilation", "dilation", dilations)):
        if any(n <= 0 for n in values):
            raise RuntimeError(
                f"{name} should be greater than zero, but got {_each(letters, values)} "
                f"({function}() {name.replace(' ', '_')} must be greater than zero, but got {min(values)})"
            )
    for k, p, d in zip(kernels, pads, dilations, strict=True):
        if p < 0:
            raise RuntimeError(f"pad must be non-negative, but got pad: {p} ({function}() padding must be non-negative)")
        if p > k // 2:
            raise RuntimeError(
                f"pad should be at most half of effective kernel size, but got pad={p}, kernel_size={k} and dilation={d} "
                f"({function}() padding should be at most half of kernel size)"
            )
    return Geometry(kernels, strides, tuple((p, p) for p in pads), dilations, ceil_mode)


def check_tensor(function: str, input: object) -> None:
    """Refuse anything that is not a dense tensor."""
    if not isinstance(input, Tensor):
        raise TypeError(f"{function}(): argument 'input' (position 1) must be Tensor, not {type(input).__name__}")
    check_dense(function, input)


def check_dtype(function: str, dtype: torch.dtype, accepted: Sequence[torch.dtype]) -> None:
    """The input's numbers must be of an accepted kind."""
    if dtype not in accepted:
        raise NotImplementedError(f"\"{function}\" not implemented for '{dtype_name(dtype)}'")


def check_shape(function: str, size: torch.Size, dimensions: int) -> None:
    """The input must be (C, *size) or (N, C, *size), and only the batch may be empty."""
    d, shape = dimensions, list(size)
    if len(shape) not in (d + 1, d + 2):
        if function == "avg_pool2d" and len(shape) < 3:
            raise IndexError(f"Dimension out of range: avg_pool2d() needs a 3D or 4D (batch mode) input, but got: {shape}")
        raise RuntimeError(
            f"{function}: non-empty {d + 1}D or {d + 2}D (batch mode) tensor expected for input. "
            f"Expected {d + 1}D or {d + 2}D (batch mode) tensor with optional 0 dim batch size for input, but got:{shape}. "
            f"Expected {d + 1} to {d + 2} dimensions, but got {len(shape)}-dimensional tensor"
        )
    if 0 in shape[-d - 1 :]:
        raise RuntimeError(
            f"{function}: Expected {d + 1}D or {d + 2}D (batch mode) tensor with optional 0 dim batch size for input, but got:{shape}. "
            "Expected input to have non-zero size for non-batch dimensions: Expected input's non-batch dimensions to have positive length"
        )


def check_fits(function: str, input: torch.Size, windows: Geometry) -> None:
    """At least one window must fit into the padded image."""
    channels, *size = input[len(input) - windows.dimensions - 1 :]
    positions = windows.positions(size)
    if function == "avg_pool3d" and any(n < k for n, k in zip(size, windows.kernel, strict=True)):  # torch ignores the padding here
        raise RuntimeError(f"input image ({_each('', size)}) smaller than kernel size ({_each('k', windows.kernel)})")
    if all(count > 0 for count in positions):
        return
    overflow = "; effective kernel size overflows" if max(windows.extent) >= 2**31 else ""
    got, found = (f"({channels}x{'x'.join(map(str, pixels))})" for pixels in (size, positions))
    raise RuntimeError(
        f"Given input size: {got}. Calculated output size: {found}. Output size is too small "
        f"({function}() Invalid computed output size: {min(positions)}{overflow})"
    )


def channels_last(input: Tensor, dimensions: int) -> bool:
    """Whether torch would keep the channels of this image last in memory: signals count as images of one row."""
    if dimensions == 1:
        return input.ndim == 3 and is_channels_last(input.unsqueeze(-2))
    if dimensions == 3:
        return is_channels_last(input if input.ndim == 5 else input.unsqueeze(0))
    return is_channels_last(input)


def computes_winners(input: Tensor) -> bool:
    """Whether torch would compute the winners of a signal, and not only the largest numbers, whose result is always contiguous."""
    return not input.is_cpu or (input.requires_grad and torch.is_grad_enabled()) or forward_mode._current_level >= 0


def single_channels_last(input: Tensor) -> bool:
    """Whether this is a single volume (C, D, H, W) that keeps its channels last."""
    return input.ndim == 4 and not input.is_contiguous() and input.movedim(0, -1).is_contiguous()


def check_average(function: str, count_include_pad: object, divisor_override: object) -> None:
    """The arguments that only average pools have; torch checks types before values."""
    if not isinstance(count_include_pad, bool):
        raise TypeError(f"{function}(): argument 'count_include_pad' must be bool, not {type(count_include_pad).__name__}")
    if divisor_override is not None and not is_int(divisor_override):
        raise TypeError(f"{function}(): argument 'divisor_override' must be int, not {type(divisor_override).__name__}")


def cells(windows: Geometry, padding: bool) -> int:
    """The number of cells of every window if they all have as many (those in the padding count only with `padding`), else 0."""
    if windows.ceil_mode or not (padding or all(low == high == 0 for low, high in windows.padding)):
        return 0
    return prod(windows.kernel)


def upcast(input: Tensor, dimensions: int) -> Tensor:
    """Half-precision volumes in float32 under autocast on the CPU, as in torch; other inputs unchanged."""
    if dimensions == 3 and input.device.type == "cpu" and input.dtype in HALF and torch.is_autocast_enabled("cpu"):
        return input.float()
    return input


# ---- Adaptive pools ---------------------------------------------------------------------------------------------------------------------


def check_adaptive_input(function: str, input: object, dimensions: int) -> None:
    """Refuse anything that is not a dense tensor, with the exception types of torch's adaptive pools."""
    if dimensions > 1 and not isinstance(input, Tensor):
        raise AttributeError(f"{function}(): argument 'input' must be Tensor: {type(input).__name__!r} object has no attribute 'size'")
    check_tensor(function, input)


def output_size(function: str, size: torch.Size, value: Any, dimensions: int) -> tuple[int, ...]:
    """The number of windows per dimension: an int counts for all of them, None (in two and three dimensions) means one per pixel."""
    if dimensions == 1:
        return for_each_side(function, "output_size", value, 1)
    if isinstance(value, (int, torch.SymInt)):
        return entries(function, "output_size", value) * dimensions
    if is_int(value) or not hasattr(value, "__len__"):
        raise TypeError(
            f"{function}(): argument 'output_size' must be an int or a tuple, but object of type {type(value).__name__!r} has no len()"
        )
    if len(value) >= len(size):
        raise ValueError(
            f"Input dimension should be at least {len(value) + 1}: {function}() got output_size {value} for input {list(size)}"
        )
    pixels = size[len(size) - len(value) :]
    sizes = entries(function, "output_size", tuple(n if v is None else v for v, n in zip(value, pixels, strict=True)))
    if len(sizes) != dimensions:
        raise RuntimeError(
            f"{function}: output_size must be {dimensions}: internal error: output_size.size() must be {dimensions}, not {list(sizes)}"
        )
    return sizes


def check_adaptive(function: str, size: torch.Size, dimensions: int, positions: Sequence[int], nonempty: Sequence[int]) -> None:
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


def check_memory(input: Tensor, windows: Adaptive) -> None:
    """Allocate a very large output once, so that torch raises its own error before the windows are listed."""
    if prod(windows.output) > LARGEST:
        input.new_empty((*input.shape[: input.ndim - windows.dimensions], *windows.output))


def check_adaptive_gradient(gy: Tensor, windows: Windows) -> None:
    """Torch's adaptive pools have an output without windows, but no gradient of it; the mean of everything has one."""
    if isinstance(windows, Adaptive) and 0 in gy.shape[1:] and not windows.is_global:
        raise RuntimeError(
            f"adaptive_pool{windows.dimensions}d_backward(): Expected grad_output to have non-zero size for non-batch dimensions, "
            f"but grad_output has sizes {list(gy.shape)}"
        )


def check_mean(function: str, dtype: torch.dtype) -> None:
    """The mean of the whole image takes the dtypes of torch.mean, complex numbers too."""
    if not (dtype.is_floating_point or dtype.is_complex):
        try:
            torch.ones(1, dtype=dtype).mean()
        except RuntimeError as error:  # or its subclass NotImplementedError, in torch 2.15
            raise type(error)(f"{function}(): {error}") from None


def equal_cells(positions: Sequence[int], size: Sequence[int]) -> int:
    """The number of cells of every adaptive window if they all have as many, else 0; in a trace, which serves images of any size, 0."""
    if is_traced() or any(count == 0 or n % count for n, count in zip(size, positions, strict=True)):
        return 0
    return prod([n // count for n, count in zip(size, positions, strict=True)])


# ---- Power-average pools ----------------------------------------------------------------------------------------------------------------


def lp_kernel(function: str, kernel: Any, dimensions: int) -> tuple[Any, ...]:
    """The kernel size per dimension, in the forms that torch's power-average pools take: an int, or one int per dimension."""
    if dimensions == 1 or isinstance(kernel, (int, float)) or not (hasattr(kernel, "__iter__") and hasattr(kernel, "__len__")):
        return (kernel,) * dimensions
    if isinstance(kernel, Tensor) and kernel.ndim == 0:
        raise TypeError(f"{function}(): argument 'kernel_size' must be an int or a tuple of ints, not a tensor without dimensions")
    if len(kernel) != dimensions:
        raise ValueError(
            f"{function}(): kernel_size must be an int or a tuple of {COUNTS[dimensions]} (expected {dimensions}, got {len(kernel)})"
        )
    return tuple(kernel)
