"""The checks of the arguments that several pools share.

Exception types are torch's, and so are the words that other code matches on. Sizes are pixels.
"""

from collections.abc import Sequence
from typing import Any

import torch

from cnn425.algorithms import layout
from cnn425.layers.arguments import dtype_name, ints, is_int, wrong_type
from cnn425.windows import Geometry

FLOATS = layout.HALF + layout.FLOATS
COUNTS = {1: "one int", 2: "two ints", 3: "three ints"}
AXES = {1: ("W",), 2: ("H", "W"), 3: ("T", "H", "W")}


def entries(function: str, name: str, value: Any) -> tuple[int, ...]:
    """`value`, an int or a sequence of ints, as a tuple of ints."""
    found = ints(value)
    if found is not None:
        return found
    if not isinstance(value, (tuple, list)):
        raise wrong_type(function, name, value, "tuple of ints")
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
        raise wrong_type(function, "ceil_mode", ceil_mode, "bool")
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


def check_dtype(function: str, dtype: torch.dtype, accepted: Sequence[torch.dtype]) -> None:
    """The input must have an accepted dtype."""
    if dtype not in accepted:
        raise NotImplementedError(f"\"{function}\" not implemented for '{dtype_name(dtype)}'")


def check_size(function: str, input: torch.Size, windows: Geometry) -> None:
    """The input must be (C, *size) or (N, C, *size), only the batch may be empty, and a window must fit into the padded image."""
    d, shape = windows.dimensions, list(input)
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
    channels, *size = shape[-d - 1 :]
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
