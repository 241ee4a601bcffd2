"""One way to call an autograd Function: `operation(SomeFunction)` makes a plain function of it.

A layer writes `forward`, `setup_context`, `backward`, `jvp` and `vmap` once, as mathematics. Torch needs three forms of that one class:

    new style   the class itself: `torch.func` transforms ask for a forward without `ctx`
    eager       outside of transforms: forward and setup_context in one call, which saves torch binding the signature (17 of 20 microseconds)
    traced      `torch.compile` and `torch.export` refuse a Function that has a `jvp`; this twin has none
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function


def operation(function: type[Function]) -> Callable[..., Any]:
    """`function.apply`, in the form that the present mode of torch wants; positional arguments only."""

    def forward(ctx: Any, *args: Any) -> Any:
        output = function.forward(*args)
        function.setup_context(ctx, args, output)
        return output

    single = {"forward": staticmethod(forward), "setup_context": staticmethod(Function.setup_context)}
    eager: Any = type(function.__name__, (function,), single)
    traced: Any = type(function.__name__, (function,), {"jvp": staticmethod(Function.jvp)})

    def apply(*args: Any) -> Any:
        if torch.compiler.is_compiling():
            return traced.apply(*args)
        if torch._C._are_functorch_transforms_active():
            return function.apply(*args)
        return eager.apply(*args)

    return apply


def cast_for_autocast(*tensors: Tensor | None) -> Sequence[Tensor | None]:
    """The tensors in autocast's lower precision, where autocast is on: float64, integers and complex numbers stay as they are."""
    device = next(t.device.type for t in tensors if t is not None)
    if not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return [t.to(dtype) if t is not None and t.is_floating_point() and t.dtype != torch.float64 else t for t in tensors]


def without_autocast(function: Callable[..., Any], device: str, *args: Any) -> Any:
    """`function(*args)` with autocast off: once the arguments are cast, or in a backward, mathematics keeps the precision it was given."""
    if not torch.is_autocast_enabled(device):
        return function(*args)
    with torch.autocast(device, enabled=False):
        return function(*args)
