"""The three bilinear maps of a convolution and of a local layer, with their derivatives and vmap.

    output                    y     from  x, w        Output             its gradients:  InputGradient, WeightGradient
    gradient of the image     gx    from  gy, w       InputGradient      its gradients:  Output,        WeightGradient
    gradient of the weight    gw    from  gy, x       WeightGradient     its gradients:  Output,        InputGradient

The derivative of each is made of the other two, so three Functions that call one another have derivatives of every order. A local layer has
the same maps, and its weight has the additional letters i, j. `sharing` says which positions of a local layer use one set of weights; it
is None for a convolution, where all do.

An extra batch of problems (vmap) is folded into a letter the maps already have. A convolution relates three tensors, and each pair of them
shares one letter (the group g is shared by all):

    image  n g c        weight  g o c        output  n g o

A map takes two of them to the third. If only one operand is batched, its batch joins the letter that this operand shares with the result
and the other operand lacks, so nothing is repeated. If both are batched, the batch joins g: B problems are one problem with B times the
groups.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from cnn425 import compat
from cnn425.algorithms import convolution, layout
from cnn425.algorithms import local as local_layer
from cnn425.kernels.threads import is_traced
from cnn425.layers.function import needed, operation, without_autocast
from cnn425.windows import Geometry, Sharing, each_its_own

IMAGE, WEIGHT, OUTPUT = "ngc", "goc", "ngo"
Order = torch.memory_format | None


def maps(*settings: Any) -> tuple[Any, tuple[Any, ...]]:
    """The module that computes the three maps of a layer, and what it must know: the windows, the groups, and how a local layer shares."""
    return (convolution, settings[:2]) if settings[2] is None else (local_layer, settings)


class Output(Function):
    """The output: image, weight and bias `-> (N, O, *positions)`."""

    @staticmethod
    def forward(x: Tensor, w: Tensor, geometry: Geometry, groups: int, sharing: Sharing | None, b: Tensor | None) -> Tensor:
        module, settings = maps(geometry, groups, sharing)
        return without_autocast(module.output, x.device, x, w, *settings, b)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        remember(ctx, *inputs[:5])
        ctx.bias_per_set = isinstance(inputs[5], Tensor) and inputs[5].ndim > 1

    @staticmethod
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor | None, ...]:
        x, w = operands(ctx)
        needs_x, needs_w = needed(ctx, 2, x.numel() + w.numel())
        order = gradient_order(gy, x, w, ctx.settings)
        gx = input_gradient(gy, w.conj(), *ctx.settings, ctx.size, order) if needs_x else None
        gw = weight_gradient(gy, x.conj(), *ctx.settings, order) if needs_w else None
        gb = bias_gradient(gy, ctx.settings[2] if ctx.bias_per_set else None) if ctx.needs_input_grad[5] else None
        return gx, gw, None, None, None, gb

    @staticmethod
    def jvp(ctx: Any, dx: Tensor, dw: Tensor, *rest: Any) -> Tensor:
        x, w = ctx.saved_tensors
        return output(x, dw, *ctx.settings, None) + output(dx, w, *ctx.settings, rest[-1])

    @staticmethod
    def vmap(
        info: Any, in_dims: Any, x: Tensor, w: Tensor, geometry: Geometry, groups: int, sharing: Sharing | None, b: Any
    ) -> tuple[Tensor, int]:
        bias_dim = in_dims[5]
        if in_dims[0] is in_dims[1] is None:
            y = output(x, w, geometry, groups, sharing, None).expand(info.batch_size, *[-1] * x.ndim)
        else:
            y = joined_batch(output, (IMAGE, WEIGHT, OUTPUT), info, in_dims, (x, w), geometry, groups, sharing, None)
        if b is not None:
            b, before = (b, 0) if bias_dim is None else (b.movedim(bias_dim, 0).unsqueeze(1), 2)
            y = y + (sharing or each_its_own(geometry.dimensions)).bias(b, tuple(y.shape[3:]), before)
        return y, 0


class InputGradient(Function):
    """The gradient of the image: output gradient and weight `-> (N, C, *size)`; or, with `layer`, a transposed convolution."""

    @staticmethod
    def forward(
        gy: Tensor,
        w: Tensor,
        geometry: Geometry,
        groups: int,
        sharing: Sharing | None,
        size: tuple[int, ...],
        order: Order = None,
        layer: bool = False,
    ) -> Tensor:
        module, settings = maps(geometry, groups, sharing)
        return without_autocast(module.input_gradient, gy.device, gy, w, *settings, size, order)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        remember(ctx, *inputs[:5])
        ctx.size, ctx.layer = inputs[5], inputs[7:] == (True,)
        ctx.order = inputs[6] if ctx.layer else None

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        gy, w = operands(ctx)
        needs_gy, needs_w = needed(ctx, 2, gy.numel() + w.numel())
        order = gradient_order(g, gy, w, ctx.settings, ctx.order) if ctx.layer else None
        g = g if order is None else layout.stored(g, order)
        ggy = output(g, w.conj(), *ctx.settings, None) if needs_gy else None
        if ggy is not None and order is not None:
            ggy = layout.stored(ggy, order)
        gw = weight_gradient(gy.conj(), g, *ctx.settings, order) if needs_w else None
        return ggy, gw, None, None, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, dgy: Tensor, dw: Tensor, *_: None) -> Tensor:
        gy, w = ctx.saved_tensors
        return input_gradient(dgy, w, *ctx.settings, ctx.size) + input_gradient(gy, dw, *ctx.settings, ctx.size)

    @staticmethod
    def vmap(info: Any, in_dims: Any, gy: Tensor, w: Tensor, *arguments: Any) -> tuple[Tensor, int]:
        return joined_batch(input_gradient, (OUTPUT, WEIGHT, IMAGE), info, in_dims, (gy, w), *arguments), 0


class WeightGradient(Function):
    """The gradient of the weight: output gradient and image `-> (O, C/G, *kernel)`, or with the positions in front."""

    @staticmethod
    def forward(gy: Tensor, x: Tensor, geometry: Geometry, groups: int, sharing: Sharing | None, order: Order = None) -> Tensor:
        module, settings = maps(geometry, groups, sharing)
        return without_autocast(module.weight_gradient, gy.device, gy, x, *settings, order)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        remember(ctx, *inputs[:5])

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        gy, x = operands(ctx)
        needs_gy, needs_x = needed(ctx, 2, gy.numel() + x.numel())
        ggy = output(x.conj(), g, *ctx.settings, None) if needs_gy else None
        gx = input_gradient(gy.conj(), g, *ctx.settings, x.shape[2:]) if needs_x else None
        return ggy, gx, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, dgy: Tensor, dx: Tensor, *_: None) -> Tensor:
        gy, x = ctx.saved_tensors
        return weight_gradient(dgy, x, *ctx.settings) + weight_gradient(gy, dx, *ctx.settings)

    @staticmethod
    def vmap(info: Any, in_dims: Any, gy: Tensor, x: Tensor, *arguments: Any) -> tuple[Tensor, int]:
        return joined_batch(weight_gradient, (OUTPUT, IMAGE, WEIGHT), info, in_dims, (gy, x), *arguments), 0


def remember(ctx: Any, first: Tensor, second: Tensor, geometry: Geometry, groups: int, sharing: Sharing | None) -> None:
    """Save both operands: the gradient of each is computed from the other."""
    save(ctx, first, second)
    ctx.settings, ctx.size = (geometry, groups, sharing), first.shape[2:]


def save(ctx: Any, *tensors: Tensor) -> None:
    """Save the operands of a map."""
    ctx.save_for_backward(*tensors)
    ctx.save_for_forward(*tensors)
    ctx.given = None if is_traced() else [(t.shape, t.dtype) for t in tensors]


def operands(ctx: Any) -> Any:
    """The operands again, unless `.data` was set since, or a hook of saved tensors returned others: loops would read behind them."""
    tensors = ctx.saved_tensors
    if ctx.given and not is_traced() and ctx.given != (found := [(t.shape, t.dtype) for t in tensors]):
        raise RuntimeError(f"tensors saved for the gradient have changed since: they were {ctx.given}, and are {found}")
    return tensors


def bias_gradient(gy: Tensor, sharing: Sharing | None) -> Tensor:
    """The gradient of a bias `(O, *sets)`, or without `sharing` of one `(O,)`: the sum over the outputs to which it is added."""
    return sharing.added_up(gy.sum(0), 1) if sharing else gy.sum((0, *range(2, gy.ndim)))


def layer_order(x: Tensor, w: Tensor, geometry: Geometry, groups: int, sharing: Sharing | None) -> Order:
    """The memory layout that torch gives the output of a convolution, transposed or not; None where it follows from the operands."""
    if sharing or is_traced() or compat.are_transforms_active() or compat.is_legacy_batched(x):
        return None
    return layout.memory_format(x, w, geometry, groups)


def is_signal_channels_last(w: Tensor) -> bool:
    """Whether a weight of signals `(O, C, U)` has its channels last: torch treats it as the weight of an image of one row."""
    return not is_traced() and w.stride(1) <= w.stride(2) and layout.is_channels_last(w.unsqueeze(2))


def gradient_order(gy: Tensor, x: Tensor, w: Tensor, settings: tuple[Geometry, int, Sharing | None], kept: Order = None) -> Order:
    """The memory layout that torch gives both gradients of a convolution: that of the output, where it is `kept`."""
    order = layer_order(x, w, *settings)
    if order is None or compat.is_legacy_batched(gy):
        return None
    return torch.contiguous_format if x.is_complex() else kept or order


output, input_gradient, weight_gradient = map(operation, (Output, InputGradient, WeightGradient))

# ---- vmap: an extra batch joins a letter -------------------------------------------------------------------------------------------------


def joined_batch(
    bilinear: Callable[..., Tensor],
    letters: tuple[str, str, str],
    info: Any,
    in_dims: tuple[int | None, ...],
    operands: tuple[Tensor, Tensor],
    geometry: Geometry,
    groups: int,
    sharing: Sharing | None,
    *rest: Any,
) -> Tensor:
    """`bilinear(first, second, geometry, groups, sharing, *rest)` for each problem of a batch: the results, with the batch in front.

    `letters` names the two operands and the result.
    """
    result = letters[2]
    batched = [dim is not None for dim in in_dims[:2]]
    letter = (
        "g" if all(batched) else next(a for a in letters[batched.index(True)] if a in result and a not in letters[batched.index(False)])
    )

    def before(name: str) -> int:
        return geometry.dimensions if sharing and name == WEIGHT else 0

    first, second = (
        t if dim is None else join_batch(t.movedim(dim, 0), name, letter, groups, before(name))
        for t, name, dim in zip(operands, letters[:2], in_dims[:2], strict=True)
    )
    groups = groups * info.batch_size if letter == "g" else groups
    return split_batch(bilinear(first, second, geometry, groups, sharing, *rest), result, letter, groups, info.batch_size, before(result))


def join_batch(t: Tensor, name: str, letter: str, groups: int, before: int) -> Tensor:
    """`t` with its leading batch joined to `letter`, which becomes (batch, letter)."""
    t = split_groups(t, name, groups, before + 1)
    at = before + name.index(letter)
    return join_groups(t.movedim(0, at).flatten(at, at + 1), name, before)


def split_batch(t: Tensor, name: str, letter: str, groups: int, batch: int, before: int) -> Tensor:
    """The inverse of `join_batch`: the batch in front again."""
    t = split_groups(t, name, groups, before)
    at = before + name.index(letter)
    return join_groups(t.unflatten(at, (batch, t.shape[at] // batch)).movedim(at, 0), name, before + 1)


def split_groups(t: Tensor, name: str, groups: int, before: int) -> Tensor:
    """The channel dimension, which holds g and the letter after it, as two dimensions."""
    at = before + name.index("g")
    return t.unflatten(at, (groups, t.shape[at] // groups))


def join_groups(t: Tensor, name: str, before: int) -> Tensor:
    """The inverse of `split_groups`."""
    at = before + name.index("g")
    return t.flatten(at, at + 1)
