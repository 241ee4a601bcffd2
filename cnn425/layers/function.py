"""One way to call an autograd Function: `operation(SomeFunction)` makes a plain function of it.

A layer writes `forward`, `setup_context`, `backward`, `jvp` and `vmap` once, as mathematics. Torch needs the class in three forms:

| form      | when                              | why                                                                                   |
|-----------|-----------------------------------|---------------------------------------------------------------------------------------|
| new style | under a transform of `torch.func` | transforms ask for a `forward` without `ctx`                                          |
| eager     | otherwise                         | `forward` and `setup_context` in one call save torch the binding of a signature       |
| traced    | under `torch.compile`, `export`   | a Function that has a `jvp` is refused; this form has none                            |

Where nothing will be differentiated, as in most backward passes, and in `torch.jit.trace`, the plain `forward` is called.
"""

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from cnn425 import compat
from cnn425.kernels.threads import is_traced

# Traced by the compiler of these versions, a Function whose output was written in place has a gradient of zero.
LOSES_WRITTEN_OUTPUTS = tuple(map(int, torch.__version__.split(".")[:2])) < (2, 14)


def operation(function: type[Function]) -> Callable[..., Any]:
    """`function.apply`, in the form that the present mode of torch wants; positional arguments only."""

    def forward(ctx: Any, *args: Any) -> Any:
        legacy = any(isinstance(arg, Tensor) and compat.is_legacy_batched(arg) for arg in args)
        output = over_legacy_batch(function, args) if legacy else owned(plain(*args), args)
        function.setup_context(ctx, args, output)
        return output

    plain: Callable[..., Any] = function.forward
    single = {"forward": staticmethod(forward), "setup_context": staticmethod(Function.setup_context)}
    eager: Any = type(function.__name__, (function,), single)
    followed = {"forward": staticmethod(unwritten(function.forward))} if LOSES_WRITTEN_OUTPUTS else {}
    traced: Any = type(function.__name__, (function,), {"jvp": staticmethod(Function.jvp), **followed})

    def apply(*args: Any) -> Any:
        if torch.compiler.is_compiling():
            return traced.apply(*args)
        if is_traced():
            return plain(*args)
        if compat.are_transforms_active():
            return function.apply(*args)
        return eager.apply(*args) if is_followed(args) else owned(plain(*args), args)

    return apply


def owned(output: Any, args: Sequence[Any]) -> Any:
    """`output` as a tensor of its own and no view of one that nobody else knows: torch lets nobody write into a view made in a Function."""
    if isinstance(output, tuple):
        return tuple(owned(part, args) for part in output)
    return output.detach() if compat.is_view(output) and output is not args[0] else output


def unwritten(forward: Callable[..., Any]) -> Callable[..., Any]:
    """`forward` with copies of its outputs, which nothing was written into."""

    def copied(*args: Any) -> Any:
        outputs = forward(*(args if isinstance(args[0], Tensor) else args[1:]))  # in a backward these compilers pass the class, too
        return outputs.clone() if isinstance(outputs, Tensor) else tuple(output.clone() for output in outputs)

    return copied


def is_followed(args: Sequence[Any]) -> bool:
    """Whether autograd, forward mode or the older vmap has to know of a computation with these arguments."""
    if compat.forward_mode._current_level >= 0:
        return True
    recording = torch.is_grad_enabled()
    for arg in args:  # noqa: SIM110  any() takes longer
        if isinstance(arg, Tensor) and ((recording and arg.requires_grad) or compat.is_legacy_batched(arg)):
            return True
    return False


def is_last(*args: Any) -> bool:
    """Whether nothing follows a computation with these arguments, as in most backward passes: it may be done in any way."""
    return not (is_traced() or compat.are_transforms_active() or is_followed(args))


def over_legacy_batch(function: type[Function], args: Sequence[Any]) -> Any:
    """`function.forward` under the older vmap, which knows nothing of Functions: its batches are taken off, and the vmap rule applied."""
    level = compat.legacy_level()
    in_dims = tuple(0 if isinstance(arg, Tensor) and compat.is_legacy_batched(arg) else None for arg in args)
    plain = [arg if dim is None else compat.remove_legacy_batch(arg, level, 0, dim) for arg, dim in zip(args, in_dims, strict=True)]
    size = next(arg.shape[0] for arg, dim in zip(plain, in_dims, strict=True) if dim is not None)
    outputs, dims = function.vmap(SimpleNamespace(batch_size=size, randomness="error"), in_dims, *plain)

    def batch(output: Tensor, dim: int | None) -> Tensor:
        return output if dim is None else compat.add_legacy_batch(output.movedim(dim, 0).contiguous(), 0, level)

    return batch(outputs, dims) if isinstance(outputs, Tensor) else tuple(map(batch, outputs, dims))


class FromOutput(Function):
    """A Function of one output whose derivative is written with that output alone."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(output)
        ctx.save_for_forward(output)


# ---- Pairs of linear maps ----------------------------------------------------------------------------------------------------------------


class LinearMap(Function):
    """A map linear in its first argument, a batch of images; the others say which map: the size of the images, tensors, anything else.

    A subclass gives `forward`, and `adjoints` makes the operations of two of them.
    """

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, ctx.size, *rest = inputs
        tensors = [value for value in rest if isinstance(value, Tensor)]
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)
        ctx.rest = rest[len(tensors) :]


def adjoints(first: type[LinearMap], second: type[LinearMap]) -> list[Callable[..., Tensor]]:
    """The operations of two linear maps that take the same arguments, each the adjoint of the other.

    The tangent of a linear map is the map itself, and its gradient is the adjoint: so both have derivatives of every order.
    """

    def differentiable(function: type[LinearMap], itself: int, adjoint: int) -> Callable[..., Tensor]:
        def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
            tensors = ctx.saved_tensors
            return operations[adjoint](g, ctx.size, *tensors, *ctx.rest), None, *(None for _ in (*tensors, *ctx.rest))

        def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
            return operations[itself](tangent, ctx.size, *ctx.saved_tensors, *ctx.rest)

        def vmap(info: Any, in_dims: Any, x: Tensor, size: Sequence[int], *rest: Any) -> tuple[Tensor, int]:
            return over_batch(operations[itself], len(size) + 2, info, in_dims, x, size, *rest), 0

        rules = {rule.__name__: staticmethod(rule) for rule in (backward, jvp, vmap)}
        return operation(type(function.__name__, (function,), rules))

    operations = [differentiable(first, 0, 1), differentiable(second, 1, 0)]
    return operations


def over_batch(function: Callable[..., Any], dimensions: int, info: Any, in_dims: Any, *args: Any) -> Any:
    """`function(*args)` over an extra batch of the tensors: it joins the batch that is there, or is it if they have too few dimensions."""
    batch = info.batch_size
    moved = [
        value if not isinstance(value, Tensor) else value.expand(batch, *value.shape) if dim is None else value.movedim(dim, 0)
        for value, dim in zip(args, in_dims, strict=True)
    ]
    if moved[0].ndim == dimensions:
        return function(*moved)
    results = function(*(value.flatten(0, 1) if isinstance(value, Tensor) else value for value in moved))
    if isinstance(results, tuple):
        return tuple(y.unflatten(0, (batch, y.shape[0] // batch)) for y in results)
    return results.unflatten(0, (batch, results.shape[0] // batch))


# ---- Autocast ----------------------------------------------------------------------------------------------------------------------------


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """The lower precision that autocast asks for on this device, or None where autocast is off."""
    if not compat.is_autocast_enabled_anywhere():
        return None
    kind = device.type
    return torch.get_autocast_dtype(kind) if kind != "meta" and torch.is_autocast_enabled(kind) else None


def cast_for_autocast(*tensors: Tensor | None) -> Sequence[Any]:
    """The tensors in autocast's lower precision, where autocast is on: float64, integers and complex numbers stay as they are."""
    if not compat.is_autocast_enabled_anywhere():
        return tensors
    dtype = autocast_dtype(next(t.device for t in tensors if t is not None))
    if dtype is None:
        return tensors
    return [t.to(dtype) if t is not None and t.is_floating_point() and t.dtype != torch.float64 else t for t in tensors]


def without_autocast(function: Callable[..., Any], device: torch.device, *args: Any) -> Any:
    """`function(*args)` with autocast off: once the arguments are cast, or in a backward, mathematics keeps the precision it was given.

    Not for the compiler: it would leave autocast off for good, and the arguments that it sees are cast.
    """
    if torch.compiler.is_compiling() or autocast_dtype(device) is None:
        return function(*args)
    with torch.autocast(device.type, enabled=False):
        return function(*args)


def computed_by(function: Callable[..., Any], *names: str) -> Any:
    """The `forward` of a Module without parameters: `function` of the input and of the Module's attributes of these names."""

    def forward(self: Any, input: Tensor) -> Any:
        return function(input, *[getattr(self, name) for name in names])

    forward.__doc__ = f"`{function.__name__}` of `input`, with the Module's arguments."
    return forward
