"""The door of the layers whose windows carry weights: what conv and locally connected functions accept, and what they say when they refuse.

Exception types are torch's, and so are the words that code in the wild matches on. Sizes are pixels.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, cast

import torch
from torch import Tensor

from cnn425.kernels.threads import is_traced
from cnn425.windows import Geometry

SMALL_INTEGERS = {torch.uint8: "Byte", torch.int8: "Char", torch.int16: "Short", torch.int32: "Int"}


def invalid(function: str, name: str, value: object, wanted: str) -> TypeError:
    """The error for an argument of the wrong type, naming argument, what came and what is wanted."""
    return TypeError(
        f"{function}() received an invalid combination of arguments: '{name}' must be {wanted}, but got {type(value).__name__}"
    )


def check_tensors(function: str, input: object, weight: object, bias: object) -> None:
    """Refuse anything that is not a tensor (the bias may be None)."""
    for name, value in (("input", input), ("weight", weight)):
        if not isinstance(value, Tensor):
            raise invalid(function, name, value, "a Tensor")
    if bias is not None and not isinstance(bias, Tensor):
        raise invalid(function, "bias", bias, "a Tensor or None")


def written(function: str, result: Tensor, out: Tensor, *inputs: Tensor | None) -> Tensor:
    """`result` in the memory of `out`, which torch resizes if it must, with a warning."""
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (out, *inputs)):
        raise RuntimeError(
            f"{function}(): functions with out=... arguments don't support automatic differentiation, "
            "but one of the arguments requires grad."
        )
    for what in ("dtype", "device"):
        if getattr(out, what) != getattr(result, what):
            wanted, got = getattr(result, what), getattr(out, what)
            raise RuntimeError(f"Expected out tensor to have {what} {wanted}, but got {got} instead")
    return torch.cat((result,), out=out)


def _is_int(value: object) -> bool:
    if isinstance(value, bool):
        return False
    return isinstance(value, (int, torch.SymInt)) or (hasattr(value, "__index__") and not isinstance(value, Sequence))


def check_int(function: str, name: str, value: Any) -> int:
    """`value` as an int; a bool, a float or a string is a TypeError."""
    if not _is_int(value):
        raise invalid(function, name, value, "an int")
    return int(value) if not isinstance(value, (int, torch.SymInt)) else cast(int, value)


def check_types(function: str, dimensions: int, groups: Any, **others: Any) -> None:
    """Torch looks at all types before it looks at any value: an int, a sequence of ints, or a string for the padding."""
    for name, value in others.items():
        entries = value if isinstance(value, (tuple, list)) else (value,)
        if not all(map(_is_int, entries)) and not (name == "padding" and isinstance(value, str)):
            raise invalid(function, name, value, f"an int or a tuple of {dimensions} ints")
    check_int(function, "groups", groups)


def per_dimension(function: str, name: str, value: Any, dimensions: int) -> tuple[int, ...]:
    """`value` for each spatial dimension: an int or a sequence of one int counts for all of them."""
    if type(value) is int:
        return (value,) * dimensions
    entries = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    if not all(_is_int(entry) for entry in entries):
        raise invalid(function, name, value, f"an int or a tuple of {dimensions} ints")
    entries = tuple(entry if isinstance(entry, (int, torch.SymInt)) else int(entry) for entry in entries)
    if len(entries) == 1:
        return entries * dimensions
    if len(entries) != dimensions:
        raise RuntimeError(
            f"expected {name} to be a single integer value or a list of {dimensions} values to match the convolution dimensions, "
            f"but got {name}={list(entries)}"
        )
    return entries


def symmetric_padding(
    function: str, padding: Any, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> tuple[tuple[int, int], ...]:
    """(low, high) padding of a convolution: an int, one per dimension, 'valid', or 'same' (stride 1; an odd pixel goes high)."""
    if not isinstance(padding, str):
        pads = per_dimension(function, "padding", padding, len(kernel))
        if any(p < 0 for p in pads):
            raise RuntimeError("negative padding is not supported")
        return tuple((p, p) for p in pads)
    if padding == "valid":
        return ((0, 0),) * len(kernel)
    if padding != "same":
        raise RuntimeError(f"Invalid padding string: {padding!r}; it must be 'same' or 'valid'")
    if any(s != 1 for s in stride):
        raise RuntimeError("padding='same' is not supported for strided convolutions")
    totals = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
    return tuple((total // 2, total - total // 2) for total in totals)


def geometry(function: str, kernel: Sequence[int], stride: Any, padding: Any, dilation: Any) -> Geometry:
    """The windows that a convolution's arguments describe."""
    # A compiler may take the kernel for a size that varies; as a number it keeps every later size simple.
    kernel = tuple(int(k) for k in kernel)
    d = len(kernel)
    strides, dilations = per_dimension(function, "stride", stride, d), per_dimension(function, "dilation", dilation, d)
    if any(s <= 0 for s in strides):
        raise RuntimeError("non-positive stride is not supported")
    if any(step <= 0 for step in dilations):
        raise RuntimeError(f"dilation should be greater than zero, but got {list(dilations)}")
    if any(k <= 0 for k in kernel):
        raise RuntimeError(f"kernel size should be greater than zero, but got {list(kernel)}")
    return Geometry(kernel, strides, symmetric_padding(function, padding, kernel, strides, dilations), dilations)


def check_groups(function: str, groups: Any) -> int:
    """The number of groups of channels."""
    groups = check_int(function, "groups", groups)
    if groups <= 0:
        raise RuntimeError("non-positive groups is not supported")
    return groups


def check_input(function: str, input: torch.Size, dimensions: int) -> torch.Size:
    """The size of the input must be (C, *size) or (N, C, *size); the latter is returned, with N = 1 for a single image."""
    if len(input) not in (dimensions + 1, dimensions + 2):
        raise RuntimeError(
            f"Expected {dimensions + 1}D (unbatched) or {dimensions + 2}D (batched) input to {function}, "
            f"but got input of size: {list(input)}"
        )
    return input if len(input) == dimensions + 2 else torch.Size((1, *input))


def check_channels(input: torch.Size, weight: torch.Size, groups: int, outputs: int, inputs: int) -> None:
    """`outputs` and `inputs` (per group) are the weight's channels; `input` is the size of a batch."""
    at = len(weight) - len(input)
    if outputs < groups:
        raise RuntimeError(
            f"Given groups={groups}, expected weight to be at least {groups} at dimension {at}, "
            f"but got weight of size {list(weight)} instead"
        )
    if outputs % groups:
        raise RuntimeError(
            f"Given groups={groups}, expected weight to be divisible by {groups} at dimension {at}, "
            f"but got weight of size {list(weight)} instead"
        )
    if input[1] != inputs * groups:
        raise RuntimeError(
            f"Given groups={groups}, weight of size {list(weight)}, expected input{list(input)} to have {inputs * groups} channels, "
            f"but got {input[1]} channels instead"
        )


def check_fits(input: torch.Size, windows: Geometry) -> None:
    """At least one window must fit into the padded image."""
    size = input[2:]
    if any(count <= 0 for count in windows.positions(size)):
        padded = " x ".join(str(n + low + high) for n, (low, high) in zip(size, windows.padding, strict=True))
        raise RuntimeError(
            f"Calculated padded input size per channel: ({padded}). Kernel size: ({' x '.join(map(str, windows.extent))}). "
            "Kernel size can't be greater than actual input size"
        )
    if 0 in size and 0 not in input[:2]:
        raise RuntimeError(f"Only zero batch or zero channel inputs are supported, but got input shape: {list(input)}")


def check_dense(function: str, input: Tensor) -> None:
    """Refuse sparse tensors."""
    if input.layout != torch.strided:
        raise NotImplementedError(f"Could not run '{function}' with an input of layout {input.layout}: call .to_dense() first")


def check_same_type(input: Tensor, weight: Tensor, bias: Tensor | None, windows: Geometry | None = None) -> None:
    """Input, weight and bias must agree in dtype, and in device."""
    if input.dtype == torch.bool and input.numel():
        raise NotImplementedError("convolution is not implemented for 'Bool': cast input and weight to a number type")
    if input.dtype in SMALL_INTEGERS and windows is not None and max(windows.dilation) > 1 and input.numel():
        name = SMALL_INTEGERS[input.dtype]
        raise NotImplementedError(f"\"slow_conv_dilated<>\" not implemented for '{name}': a dilated kernel takes int64 or floating point")
    for name, other in (("weight", weight), ("bias", bias)):
        if other is None:
            continue
        if other.dtype != input.dtype:
            raise RuntimeError(f"Input type ({input.dtype}) and {name} type ({other.dtype}) should be the same: cast one of them")
        if other.device != input.device:
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but input is on {input.device} and {name} is on {other.device}: "
                "move one of them"
            )


def _plain(value: object) -> bool:
    """Whether equal values are also equal in type, so that they may be a key (True == 1 == 1.0, but only one of them is a stride)."""
    return type(value) is int or type(value) is str or (type(value) is tuple and all(type(entry) is int for entry in value))


def remembered(check: Callable[..., Geometry]) -> Callable[..., Geometry]:
    """`check(function, dimensions, input, weight, bias, *arguments)`, run once for each combination that passes.

    Input, weight and bias are sizes, the bias may be None. On small images the checks would else cost as much as the layer.
    """
    passed = lru_cache(maxsize=4096)(check)

    def checked(
        function: str, dimensions: int, input: torch.Size, weight: torch.Size, bias: torch.Size | None, *arguments: Any
    ) -> Geometry:
        if is_traced() or not all(map(_plain, arguments)):
            return check(function, dimensions, input, weight, bias, *arguments)
        try:
            return passed(function, dimensions, input, weight, bias, *arguments)
        except TypeError:  # a size that is still a symbol cannot be a key
            return check(function, dimensions, input, weight, bias, *arguments)

    return checked
