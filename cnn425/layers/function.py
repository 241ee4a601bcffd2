"""What every autograd Function of a layer needs: `operation(SomeFunction)` returns a plain function that computes and differentiates it.

A layer writes `forward`, `setup_context`, `backward`, `jvp` and `vmap` once, as mathematics. Torch needs the class in three forms:

| form      | when                              | why                                                                                   |
|-----------|-----------------------------------|---------------------------------------------------------------------------------------|
| new style | under a transform of `torch.func` | transforms require a `forward` without `ctx`                                          |
| eager     | otherwise                         | `forward` and `setup_context` in one call save torch the binding of a signature       |
| traced    | under `torch.compile`, `export`   | a Function that has a `jvp` is refused; this form has none                            |

Where nothing will be differentiated, as in most backward passes, and in `torch.jit.trace`, the plain `forward` is called: autograd costs
more than a small layer. The same holds for linear maps under `torch.compile`, which differentiates them itself.
"""

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from cnn425 import compat
from cnn425.kernels.threads import is_traced

# In older compilers a Function whose output was written in place has a gradient of zero (before torch 2.14), and a Function applied in a
# backward pass is also given the context (before 2.15).
OLDER_COMPILER = tuple(map(int, torch.__version__.split(".")[:2])) < (2, 15)

ASKED_FOR = 1 << 16  # numbers of the operands: a gradient of fewer costs less than to ask whether it is needed, up to 15 us


def operation(function: type[Function]) -> Callable[..., Any]:
    """`function.apply` in the form that torch needs where it is called; positional arguments only."""

    def forward(ctx: Any, *args: Any) -> Any:
        legacy = any(isinstance(arg, Tensor) and compat.is_legacy_batched(arg) for arg in args)
        output = over_legacy_batch(function, args) if legacy else owned(plain(*args), args)
        function.setup_context(ctx, args, output)
        return output

    plain: Callable[..., Any] = function.forward
    linear = issubclass(function, LinearMap)  # compilers lose a size that only `backward` uses, and differentiate these themselves
    single = {"forward": staticmethod(forward), "setup_context": staticmethod(Function.setup_context)}
    eager: Any = type(function.__name__, (function,), single)
    new_style: Any = type(function.__name__, (function,), {"jvp": staticmethod(at_every_level(function.jvp))})
    copying = {"forward": staticmethod(unwritten(function.forward))} if OLDER_COMPILER else {}
    traced: Any = type(function.__name__, (function,), {"jvp": staticmethod(Function.jvp), **copying})

    def apply(*args: Any) -> Any:
        if is_traced():
            return traced.apply(*args) if torch.compiler.is_compiling() and not linear else plain(*args)
        if compat.are_transforms_active():
            return new_style.apply(*args)
        return eager.apply(*args) if is_recorded(args) else owned(plain(*args), args)

    return apply


def owned(output: Any, args: Sequence[Any]) -> Any:
    """`output`, detached if it is a view made inside `forward`: torch forbids writing into such a view."""
    if isinstance(output, tuple):
        return tuple(owned(part, args) for part in output)
    return output.detach() if compat.is_view(output) and output is not args[0] else output


def at_every_level(jvp: Callable[..., Any]) -> Callable[..., Any]:
    """`jvp` with forward mode on, for nested `torch.func.jvp`: torch turns it off, and a tangent would have no tangent."""

    def with_forward_mode(ctx: Any, *tangents: Any) -> Any:
        with compat.set_forward_mode(True):
            return jvp(Primals(ctx), *tangents)

    return with_forward_mode


class Primals:
    """The context of a `jvp`, its saved tensors without this level's tangents, which `jvp` gets as arguments."""

    def __init__(self, ctx: Any) -> None:
        self.ctx, self.saved_tensors = ctx, tuple(compat.forward_mode.unpack_dual(t).primal for t in ctx.saved_tensors)

    def __getattr__(self, name: str) -> Any:
        """Everything else."""
        return getattr(self.ctx, name)


def unwritten(forward: Callable[..., Any]) -> Callable[..., Any]:
    """`forward` with its outputs copied, so that none has been written in place."""

    def copied(*args: Any) -> Any:
        outputs = forward(*(args if isinstance(args[0], Tensor) else args[1:]))
        return outputs.clone() if isinstance(outputs, Tensor) else tuple(output.clone() for output in outputs)

    return copied


def is_recorded(args: Sequence[Any]) -> bool:
    """Whether autograd, forward mode or the older vmap must record a computation with these arguments."""
    if compat.forward_mode._current_level >= 0:
        return True
    recording = torch.is_grad_enabled()
    for arg in args:  # noqa: SIM110  any() takes longer
        if isinstance(arg, Tensor) and ((recording and arg.requires_grad) or compat.is_legacy_batched(arg)):
            return True
    return False


def is_differentiated(*args: Any) -> bool:
    """Whether a computation with these arguments may be differentiated. In most backward passes it is not, and loops may compute it."""
    return is_traced() or compat.are_transforms_active() or is_recorded(args)


def needed(ctx: Any, count: int, numbers: int) -> tuple[bool, ...]:
    """Which gradients of the first `count` arguments, all tensors of so many `numbers`, the backward pass at work uses.

    `torch.autograd.grad` may have been asked for some of them only.
    """
    wanted = ctx.needs_input_grad[:count]
    if is_traced() or compat.are_transforms_active() or numbers < ASKED_FOR:  # a symbolic number must not be compared
        return tuple(wanted)
    return tuple(need and is_used(node) for need, (node, _) in zip(wanted, ctx.next_functions, strict=False))


def is_used(node: Any) -> bool:
    """Whether the backward pass at work uses what it would give to a node of the graph."""
    try:
        return compat.goes_on_to(node)
    except RuntimeError:
        return True


def over_legacy_batch(function: type[Function], args: Sequence[Any]) -> Any:
    """`function.forward` under the older vmap, which does not support Functions: its batches are removed and the vmap rule is applied."""
    level = compat.legacy_level()
    in_dims = tuple(0 if isinstance(arg, Tensor) and compat.is_legacy_batched(arg) else None for arg in args)
    plain = [arg if dim is None else compat.remove_legacy_batch(arg, level, 0, dim) for arg, dim in zip(args, in_dims, strict=True)]
    size = next(arg.shape[0] for arg, dim in zip(plain, in_dims, strict=True) if dim is not None)
    outputs, dims = function.vmap(SimpleNamespace(batch_size=size, randomness="error"), in_dims, *plain)

    def batch(output: Tensor, dim: int | None) -> Tensor:
        return output if dim is None else compat.add_legacy_batch(output.movedim(dim, 0).contiguous(), 0, level)

    return batch(outputs, dims) if isinstance(outputs, Tensor) else tuple(map(batch, outputs, dims))


class FromOutput(Function):
    """A Function with one output, whose derivative needs only that output."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(output)
        ctx.save_for_forward(output)


class LinearMap(Function):
    """A map linear in its first argument, a batch of images. The others specify the map: the size of the images, tensors, other settings.

    Its adjoint takes the same other arguments, so the gradient is `adjoint(g, *others(ctx))` and the tangent `map(dx, *others(ctx))`.
    """

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, ctx.size, *rest = inputs
        tensors = [value for value in rest if isinstance(value, Tensor)]
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)
        ctx.rest = rest[len(tensors) :]


def others(ctx: Any) -> tuple[Any, ...]:
    """The arguments of a linear map after the first."""
    return ctx.size, *ctx.saved_tensors, *ctx.rest


def linear_map(function: type[LinearMap]) -> Callable[..., Any]:
    """`operation` of a linear map: its tangent is the map itself, and an extra batch joins that of the images."""

    def jvp(ctx: Any, dx: Tensor, *_: None) -> Tensor:
        return apply(dx, *others(ctx))

    def vmap(info: Any, in_dims: Any, x: Tensor, size: tuple[int, ...], *rest: Any) -> tuple[Tensor, int]:
        return over_batch(apply, len(size) + 2, info, in_dims, x, size, *rest), 0

    function.jvp, function.vmap = staticmethod(jvp), staticmethod(vmap)  # type: ignore[method-assign]
    apply = operation(function)
    return apply


def over_batch(function: Callable[..., Any], dimensions: int, info: Any, in_dims: Any, *args: Any) -> Any:
    """`function(*args)` over an extra batch of the tensors: it joins the batch that is there, or becomes the batch if there is none."""
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
    """`function(*args)` with autocast off, so that it computes in the dtype of its arguments.

    While compiling, autocast stays as it is: the compiler would leave it off afterwards, and its arguments are cast already.
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
