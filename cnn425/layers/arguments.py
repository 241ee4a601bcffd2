"""Argument checks: those that all layers share, and those of convolutions. Also how checks are cached, and layers with a weight applied.

Exception types are torch's, and so are the words that other code matches on. Sizes are pixels.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache, wraps
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_variadic

from cnn425.kernels.threads import is_traced
from cnn425.layers.function import cast_for_autocast
from cnn425.windows import Geometry

INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
Result = TypeVar("Result")

# ---- Remembering: a check that passed is not run again ----------------------------------------------------------------------------------

KEYS = frozenset({int, bool, str, type(None), torch.dtype, torch.Size})  # types whose values are equal only if they mean the same
ONLY_INTS = frozenset({int})


def remembered(check: Callable[..., Result]) -> Callable[..., Result]:
    """`check(*arguments)`, run once for each combination of arguments that passes: on small images it costs as much as the layer.

    Arguments are kept as keys if they are sizes, dtypes, strings, ints, tuples of ints, bools or None; with any other, and in a trace,
    the check runs again. No tensor is kept.
    """
    passed: Callable[..., Result] = lru_cache(maxsize=4096, typed=True)(check)  # typed: 1 == True, but only one of them is a stride

    @wraps(check)
    def checked(*arguments: Any) -> Result:
        if is_traced():
            return check(*arguments)
        for value in arguments:
            if type(value) not in KEYS and not (type(value) is tuple and ONLY_INTS.issuperset(map(type, value))):
                return check(*arguments)
        try:
            return passed(*arguments)
        except TypeError:  # raised by the check, or a size is symbolic and cannot be a key
            return check(*arguments)

    return checked


# ---- All layers -------------------------------------------------------------------------------------------------------------------------


def invalid(function: str, name: str, value: object, wanted: str) -> TypeError:
    """The error for an argument of the wrong type: its name, what was given and what is wanted."""
    return TypeError(
        f"{function}() received an invalid combination of arguments: '{name}' must be {wanted}, but got {type(value).__name__}"
    )


def wrong_type(function: str, name: str, value: object, wanted: str, position: int = 0) -> TypeError:
    """The same in the words of torch's functions that are not convolutions; `position` counts arguments from 1."""
    place = f" (position {position})" if position else ""
    return TypeError(f"{function}(): argument '{name}'{place} must be {wanted}, not {type(value).__name__}")


def written(function: str, result: Tensor, out: Tensor, *inputs: Tensor | None) -> Tensor:
    """`result` copied into `out`, which torch resizes if it must, with a warning."""
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (out, *inputs)):
        raise RuntimeError(
            f"{function}(): functions with out=... arguments don't support automatic differentiation, "
            "but one of the arguments requires grad."
        )
    for what in ("dtype", "device"):
        wanted, got = getattr(result, what), getattr(out, what)
        if got != wanted:
            raise RuntimeError(f"Expected out tensor to have {what} {wanted}, but got {got} instead")
    return torch.cat((result,), out=out)


def dtype_name(dtype: torch.dtype) -> str:
    """The name that torch's messages use: `Long` for int64."""
    return torch.empty(0, dtype=dtype, device="cpu").type().rpartition(".")[2].removesuffix("Tensor")


def is_int(value: object) -> bool:
    """Whether torch's own argument parser accepts a value as an int: also a NumPy integer or a tensor with one integer, never a bool."""
    if isinstance(value, (int, torch.SymInt)):
        return not isinstance(value, bool)
    if isinstance(value, Tensor):
        return value.numel() == 1 and value.dtype in INTEGERS
    return hasattr(value, "__index__") and getattr(value, "ndim", 0) == 0  # a NumPy array has it, whatever its size


def integer(value: Any) -> int:
    """`value`, for which `is_int` holds, as an int."""
    if isinstance(value, torch.SymInt):
        return value  # type: ignore[return-value]  # a SymInt stands for an int throughout torch
    value = int(value)
    if not -(2**63) <= value < 2**63:
        raise ValueError(f"Overflow when unpacking long long: {value} does not fit into 64 bits")
    return value


def ints(value: Any) -> tuple[int, ...] | None:
    """`value`, an int or a sequence of ints, as a tuple of ints; None if it is anything else."""
    entries = value if isinstance(value, (tuple, list)) else (value,)
    return tuple(map(integer, entries)) if all(map(is_int, entries)) else None


def times(size: Sequence[int]) -> str:
    """A size in words: `26 x 26`."""
    return " x ".join(map(str, size))


def check_dense(function: str, input: object) -> None:
    """Refuse anything that is not a dense tensor."""
    if not isinstance(input, Tensor):
        raise wrong_type(function, "input", input, "Tensor", 1)
    if input.layout != torch.strided:
        raise NotImplementedError(f"Could not run '{function}' with an input of layout {input.layout}: call .to_dense() first")


# ---- Convolutions and local layers ------------------------------------------------------------------------------------------------------


def applied(
    layer: tuple[str, Callable[..., tuple[Any, ...]], Callable[..., Tensor]],
    public: Callable[..., Tensor],
    dimensions: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *settings: Any,
) -> Tensor:
    """The output of a layer with a weight: it checks arguments, adds a batch to a single image, and casts for autocast.

    layer     its name; the check of sizes and settings; what computes the output from a batch, weight, bias and what the check found
    public    the function that was called, for inputs that override torch's functions
    settings  the arguments after the bias
    """
    if has_torch_function_variadic(input, weight, bias):
        return handle_torch_function(public, (input, weight, bias), input, weight, bias, *settings)
    name, check, compute = layer
    function = f"{name}{dimensions}d"
    for argument, value in (("input", input), ("weight", weight)):
        if not isinstance(value, Tensor):
            raise invalid(function, argument, value, "a Tensor")
    if bias is not None and not isinstance(bias, Tensor):
        raise invalid(function, "bias", bias, "a Tensor or None")
    checked = check(dimensions, input.shape, weight.shape, None if bias is None else bias.shape, *settings)
    single = input.ndim == dimensions + 1
    x, w, b = cast_for_autocast(input.unsqueeze(0) if single else input, weight, bias)
    y = compute(x, w, b, *checked)
    return y.squeeze(0) if single else y


def check_types(function: str, dimensions: int, groups: Any, **others: Any) -> None:
    """Check all types before any value, as torch does: an int, a sequence of ints, or a string for the padding."""
    for name, value in others.items():
        if ints(value) is None and not (name == "padding" and isinstance(value, str)):
            raise invalid(function, name, value, f"an int or a tuple of {dimensions} ints")
    if not is_int(groups):
        raise invalid(function, "groups", groups, "an int")


def per_dimension(function: str, name: str, value: Any, dimensions: int) -> tuple[int, ...]:
    """`value` for each spatial dimension: an int or a sequence of one int counts for all of them."""
    entries = ints(value)
    if entries is None:
        raise invalid(function, name, value, f"an int or a tuple of {dimensions} ints")
    if len(entries) not in (1, dimensions):
        raise RuntimeError(
            f"expected {name} to be a single integer value or a list of {dimensions} values to match the convolution dimensions, "
            f"but got {name}={list(entries)}"
        )
    return entries if len(entries) == dimensions else entries * dimensions


def padding_pairs(
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
    # For a compiler the kernel may be a symbolic size; a number keeps all later sizes simple.
    kernel = tuple(int(k) for k in kernel)
    d = len(kernel)
    strides, dilations = per_dimension(function, "stride", stride, d), per_dimension(function, "dilation", dilation, d)
    if any(s <= 0 for s in strides):
        raise RuntimeError("non-positive stride is not supported")
    if any(step <= 0 for step in dilations):
        raise RuntimeError(f"dilation should be greater than zero, but got {list(dilations)}")
    if any(k <= 0 for k in kernel):
        raise RuntimeError(f"kernel size should be greater than zero, but got {list(kernel)}")
    return Geometry(kernel, strides, padding_pairs(function, padding, kernel, strides, dilations), dilations)


def check_groups(groups: Any) -> int:
    """The number of groups as an int; its type has been checked."""
    groups = integer(groups)
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
    if outputs < groups or outputs % groups:
        wanted = "at least" if outputs < groups else "divisible by"
        raise RuntimeError(
            f"Given groups={groups}, expected weight to be {wanted} {groups} at dimension {at}, "
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
        padded = times([n + low + high for n, (low, high) in zip(size, windows.padding, strict=True)])
        raise RuntimeError(
            f"Calculated padded input size per channel: ({padded}). Kernel size: ({times(windows.extent)}). "
            "Kernel size can't be greater than actual input size"
        )
    if 0 in size and 0 not in input[:2]:
        raise RuntimeError(f"Only zero batch or zero channel inputs are supported, but got input shape: {list(input)}")


def check_same_type(input: Tensor, weight: Tensor, bias: Tensor | None, windows: Geometry | None = None) -> None:
    """Input, weight and bias must agree in dtype, and in device."""
    numbers = input.numel() if bias is None or bias.dtype == input.dtype else 0  # torch looks at the bias first
    if input.dtype == torch.bool and numbers:
        raise NotImplementedError("convolution is not implemented for 'Bool': cast input and weight to a number type")
    if input.dtype in INTEGERS[:-1] and windows is not None and max(windows.dilation) > 1 and numbers:
        refused = f"\"slow_conv_dilated<>\" not implemented for '{dtype_name(input.dtype)}'"
        raise NotImplementedError(f"{refused}: a dilated kernel takes int64 or floating point")
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
