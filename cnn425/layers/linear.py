"""The fully connected layer: every unit is connected to the whole input.

    forward                   y[n,o]   = sum over d of  x[n,d] * w[o,d]  + b[o]        nd,od->no
    gradient of the weight    gw[o,d]  = sum over n of  gy[n,o] * x[n,d]               no,nd->od
    gradient of the input     gx[n,d]  = sum over o of  gy[n,o] * w[o,d]               no,od->nd
    gradient of the bias      gb[o]    = sum over n of  gy[n,o]

Both gradients are matrix products of the same form, `product(a, b) = a @ b.T`, with the operands transposed: gx = product(gy, w.T) and
gw = product(gy.T, x.T). So one Function that calls itself has derivatives of every order.
"""

from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.overrides import handle_torch_function, has_torch_function_variadic

from cnn425.layers import arguments
from cnn425.layers.function import cast_for_autocast, is_differentiated, needed, operation, owned

# ---- The Function: mathematics only -----------------------------------------------------------------------------------------------------


class FullyConnected(Function):
    """The output: `(N, D), (O, D), (O,) -> (N, O)`; the bias may be None, or anything that broadcasts to the output."""

    @staticmethod
    def forward(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        return torch.mm(x, w.t()) if b is None else torch.addmm(b, x, w.t())

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor) -> None:
        x, w, b = inputs
        needs_x, needs_w, _ = ctx.needs_input_grad
        ctx.save_for_backward(x if needs_w else None, w if needs_x else None)
        ctx.save_for_forward(x, w)
        ctx.bias_shape = None if b is None else b.shape
        dense = w.layout is x.layout is torch.strided  # compressed matrices have no strides
        ctx.by_columns = dense and x.stride() == (1, x.shape[0]), dense and w.stride() != (w.shape[1], 1)

    @staticmethod
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor | None, ...]:
        x, w = ctx.saved_tensors
        needs_x, needs_w = needed(ctx, 2, sum(0 if t is None else t.numel() for t in (x, w)))
        gx = product(gy, w.conj().t(), ctx.by_columns[0]) if needs_x else None
        gw = product(gy.t(), x.conj().t(), ctx.by_columns[1]) if needs_w else None
        gb = gy.sum(0) if ctx.needs_input_grad[2] else None
        return gx, gw, gb if gb is None or gb.shape == ctx.bias_shape else gy.sum_to_size(ctx.bias_shape)

    @staticmethod
    def jvp(ctx: Any, dx: Tensor, dw: Tensor, db: Tensor | None) -> Tensor:
        x, w = ctx.saved_tensors
        return fully_connected(x, dw, None) + fully_connected(dx, w, db)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], x: Tensor, w: Tensor, b: Tensor | None) -> tuple[Tensor, int]:
        x, w = (t if dim is None else t.movedim(dim, 0) for t, dim in zip((x, w), in_dims, strict=False))
        if x.ndim == w.ndim == 3:
            y = torch.bmm(x, w.mT)
        elif x.ndim == 3:  # a batch of inputs is more rows of x
            y = fully_connected(x.flatten(0, 1), w, None).unflatten(0, x.shape[:2])
        elif w.ndim == 3:  # a batch of weights is more units
            y = fully_connected(x, w.flatten(0, 1), None).unflatten(1, w.shape[:2]).movedim(1, 0)
        else:
            y = fully_connected(x, w, None).expand(info.batch_size, -1, -1)
        if b is None:
            return y, 0
        if in_dims[2] is not None:
            b = b.movedim(in_dims[2], 0)
            b = b.reshape(b.shape[0], *[1] * (3 - b.ndim), *b.shape[1:])
        return y + b, 0


fully_connected = operation(FullyConnected)


def product(a: Tensor, b: Tensor, by_columns: bool) -> Tensor:
    """`a @ b.T`, a gradient, stored as in torch: column-major if the matrix it belongs to is (`by_columns`), else row-major."""
    return fully_connected(b, a, None).t() if by_columns else fully_connected(a, b, None)


# ---- The function: arguments and checks -------------------------------------------------------------------------------------------------


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None, *, out: Tensor | None = None) -> Tensor:
    """Each output is a weighted sum of all inputs, `y[...,o] = b[o] + sum over d of x[...,d] * w[o,d]`: `(*, D) -> (*, O)`.

    Slides "Fully connected layer". A drop-in for `torch.nn.functional.linear`.

    input   `(*, D)`, any number of leading dimensions, none included
    weight  `(O, D)`; or `(D,)` for a single unit, then the output is `(*,)`
    bias    `(O,)` or None
    out     the tensor to write to, where no gradient is wanted

    Raises TypeError for what is not a tensor and RuntimeError for shapes or dtypes that do not fit, as torch does.
    """
    if has_torch_function_variadic(input, weight, bias):
        written = {} if out is None else {"out": out}
        return handle_torch_function(linear, (input, weight, bias), input, weight, bias, **written)
    if out is not None:
        return arguments.written("linear", linear(input, weight, bias).detach(), out, input, weight, bias)
    _check(input, weight, bias)
    x, w, b = cast_for_autocast(input, weight, bias)
    if weight.layout is torch.sparse_coo and b is not None and x.ndim != 2:  # torch multiplies by a sparse matrix from the left only
        y = (w @ x.reshape(-1, x.shape[-1]).t()).t() + b
        return y.view(*x.shape[:-1], w.shape[0])
    if x.ndim == w.ndim == 2:
        return fully_connected(x, w, b)
    if w.ndim == 1:
        y = linear(x.contiguous(), w.unsqueeze(0)).squeeze(-1)  # the gradient of `x` is row-major
        return y if b is None else y + b
    rows = x.flatten(0, -2) if x.ndim > 2 else x.unsqueeze(0) if x.ndim == 1 else x
    if b is None or b.ndim <= 1 or _added_to_rows(x, b):
        y = fully_connected(rows, w, b).view(*x.shape[:-1], w.shape[0])
        return y if is_differentiated(y) else owned(y, (x,))
    return fully_connected(rows, w, None).view(*x.shape[:-1], w.shape[0]) + b


def _check(input: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    for position, (name, value) in enumerate((("input", input), ("weight", weight), ("bias", bias)), 1):
        if not isinstance(value, Tensor) and not (value is None and name == "bias"):
            raise arguments.wrong_type("linear", name, value, "Tensor", position)
    if input.ndim == 0 or weight.ndim == 0:
        raise RuntimeError(f"both arguments to linear need to be at least 1D, but they are {input.ndim}D and {weight.ndim}D")
    if weight.ndim > 2:
        raise RuntimeError(f"linear: weight must be (O, D) or (D,), t() expects a tensor with <= 2 dimensions, but self is {weight.ndim}D")
    if weight.ndim == 1 and bias is not None and _added_to_rows(input, bias):
        raise RuntimeError("linear: with a bias the weight must be a matrix (O, D), got 1-D tensor")
    if input.shape[-1] != weight.shape[-1]:
        rows, (units, inputs) = prod(input.shape[:-1]), (weight.shape if weight.ndim == 2 else (1, *weight.shape))
        raise RuntimeError(
            f"linear: mat1 and mat2 shapes cannot be multiplied ({rows}x{input.shape[-1]} and {inputs}x{units}): "
            f"input {list(input.shape)} must end in the weight's {inputs} inputs"
        )
    if bias is not None and (bias.ndim > 1 or weight.ndim == 1):
        leading = (prod(input.shape[:-1]),) if _added_to_rows(input, bias) else input.shape[:-1]
        output = torch.Size((*leading, *weight.shape[:-1]))
        if bias.ndim > len(output) or any(n not in (1, m) for n, m in zip(reversed(bias.shape), reversed(output), strict=False)):
            raise RuntimeError(f"linear: output with shape {list(output)} doesn't match the broadcast shape of bias {list(bias.shape)}")


def _added_to_rows(input: Tensor, bias: Tensor) -> bool:
    """Whether torch adds this bias to the rows of a matrix, before the output gets the dimensions of the input."""
    return input.ndim == 2 or (input.is_contiguous() and bias.is_contiguous() and (bias.ndim == 1 or bias.squeeze().ndim == 1))


# ---- The Module: parameters -------------------------------------------------------------------------------------------------------------


class Linear(torch.nn.Linear):
    """A fully connected layer that owns its weight `(O, D)` and bias `(O,)`: `(*, D) -> (*, O)`.

    Constructor, parameters and state_dict are those of `torch.nn.Linear`, the base class: weight and bias start uniform in +-1/sqrt(D).
    Only the computation is ours.
    """

    def forward(self, input: Tensor) -> Tensor:
        """The weighted sums of `input` with this layer's weight and bias."""
        return linear(input, self.weight, self.bias)
