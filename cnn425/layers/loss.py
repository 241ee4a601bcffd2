"""Cross-entropy: the negative log-probability of the true class, in nats.

    probabilities            p[n,c]    = exp(x[n,c]) / sum over c of exp(x[n,c])                    the softmax of the scores
    loss                     y[n]      = -log p[n,t]                                                t the true class
    gradient of the scores   gx[n,c]   = gy[n] * (p[n,c] - [c = t])                                 softmax minus one-hot
    with probabilities q     y[n]      = - sum over c of q[n,c] * log p[n,c]                        q are target probabilities

The largest score is subtracted first, and the logarithm is taken of the sum, not of the quotient:
`log p[t] = (x[t] - max) - log(sum of exp(x - max))` does not overflow, and keeps small probabilities.
"""

import functools
import math
from numbers import Real
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.overrides import handle_torch_function, has_torch_function_variadic

from cnn425 import compat
from cnn425.algorithms import elementwise as algorithm
from cnn425.algorithms.layout import HALF
from cnn425.layers.arguments import check_dense, dtype_name, integer, is_int, wrong_type
from cnn425.layers.function import FromOutput, autocast_dtype, is_differentiated, operation

# ---- The Functions: mathematics only ----------------------------------------------------------------------------------------------------


class CrossEntropy(Function):
    """The negative log-probability of class `target`, `(N, C, *size), (N, *size) -> (N, *size)`, zero if `ignored`; or the mean of all.

    Further outputs, only for the derivatives: the softmax p of the scores, saved instead of them, and how many targets count.
    """

    @staticmethod
    def forward(x: Tensor, target: Tensor, ignored: int, mean: bool) -> tuple[Tensor, Tensor, Tensor]:
        y, average, count, p = algorithm.cross_entropy(x, target, ignored)
        return average if mean else y, p, count

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        _, target, ctx.ignored, ctx.mean = inputs
        ctx.mark_non_differentiable(output[2])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(target, *output[1:])
        ctx.save_for_forward(target, *output[1:])

    @staticmethod
    def backward(ctx: Any, gy: Tensor | None, gp: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        target, p, count = ctx.saved_tensors
        gx = None if gp is None else algorithm.softmax_gradient_by_definition(gp, p, 1)
        if gy is None:
            return gx, None, None, None
        gy = (gy / count).expand(target.shape) if ctx.mean else gy
        if gx is None and not is_differentiated(gy, p):
            return algorithm.cross_entropy_gradient(gy, p, target, ctx.ignored), None, None, None
        gy = algorithm.cross_entropy_gradient_by_definition(gy, p, target, ctx.ignored)
        return gy if gx is None else gx + gy, None, None, None

    @staticmethod
    def jvp(ctx: Any, dx: Tensor, *_: None) -> tuple[Tensor, Tensor, None]:
        target, p, count = ctx.saved_tensors
        drop, t = algorithm.dropped(target, ctx.ignored)
        average = (p * dx).sum(1, keepdim=True)
        dy = (average - dx.gather(1, t)).masked_fill(drop, 0).squeeze(1)
        return dy.sum() / count if ctx.mean else dy, p * (dx - average), None

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Tensor, target: Tensor, ignored: int, mean: bool) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        x, target = (
            (t.expand(info.batch_size, *t.shape) if dim is None else t.movedim(dim, 0)).flatten(0, 1).contiguous()
            for t, dim in zip((x, target), in_dims, strict=False)
        )
        y, p, _ = negative_log_probability(x, target, ignored, False)
        y, p, target = (t.unflatten(0, (info.batch_size, t.shape[0] // info.batch_size)) for t in (y, p, target))
        count = (target != ignored).flatten(1).sum(1)
        return (y.flatten(1).sum(1) / count if mean else y, p, count), (0, 0, 0)


class LogSoftmax(FromOutput):
    """The logarithm of the probabilities, `(N, C, *size) -> (N, C, *size)`; its gradient is `gy - p * sum of gy`."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        z = x - x.amax(1, keepdim=True)
        return z - z.exp().sum(1, keepdim=True).log_()

    @staticmethod
    def backward(ctx: Any, gy: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        gy = gy.contiguous()
        return gy - y.exp() * gy.sum(1, keepdim=True)

    @staticmethod
    def jvp(ctx: Any, dx: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return dx - (y.exp() * dx).sum(1, keepdim=True)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int], x: Tensor) -> tuple[Tensor, int]:
        x = x.movedim(in_dims[0], 0)
        return log_probabilities(x.flatten(0, 1)).unflatten(0, x.shape[:2]), 0


negative_log_probability, log_probabilities = map(operation, (CrossEntropy, LogSoftmax))

# ---- The function: arguments and checks -------------------------------------------------------------------------------------------------


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """The mean negative log-probability of the true class, in nats: `(N, C, *size)` scores and `(N, *size)` classes `-> ()`.

    Slides "Cross-entropy loss". A drop-in for `torch.nn.functional.cross_entropy`.

    input            scores before the softmax: `(C,)`, `(N, C)` or `(N, C, *size)`
    target           the true class, an integer from 0 to C - 1: `()`, `(N,)` or `(N, *size)`; or probabilities, in the input's shape
    weight           `(C,)`, how much each class counts; with classes as targets a mean is then a weighted mean
    ignore_index     targets of this value count for nothing
    reduction        'mean', 'sum' or 'none' (one loss per target)
    label_smoothing  in [0, 1]: this share of the target probability is spread evenly over all classes
    size_average     deprecated, as is reduce: see reduction

    Half precision is computed in float32 and rounded once. The mean over nothing is NaN. Raises IndexError for a class out of range,
    ValueError for batches that do not match or an unknown reduction, RuntimeError for other shapes and dtypes, as torch does.
    """
    if has_torch_function_variadic(input, target, weight):
        options: dict[str, Any] = {"size_average": size_average, "ignore_index": ignore_index, "reduce": reduce, "reduction": reduction}
        options |= {"weight": weight, "label_smoothing": label_smoothing}
        return handle_torch_function(cross_entropy, (input, target, weight), input, target, **options)
    if size_average is not None or reduce is not None:
        reduction = compat.reduction.legacy_get_string(size_average, reduce)
    compat.reduction.get_enum(reduction)  # refuses other names
    _check_types(input, target, weight, ignore_index, label_smoothing)
    ignore_index, label_smoothing = integer(ignore_index), float(label_smoothing)
    if autocast_dtype(input.device) is not None:  # autocast computes losses in full precision
        input, target, weight = _full(input), _full(target), None if weight is None else _full(weight)
    soft = input.shape == target.shape
    _check(input, target, weight, soft, ignore_index, label_smoothing)
    x, target = _full(input).contiguous(), target.contiguous()
    if x.ndim == 1:
        x, target = x.unsqueeze(0), target.unsqueeze(0) if soft else target.reshape(1)
    if not soft and reduction == "mean" and weight is None and label_smoothing <= 0 and x.shape[1]:
        return negative_log_probability(x, target.long(), ignore_index, True)[0].to(input.dtype)
    if soft:
        each, total = _of_probabilities(x, target, weight, label_smoothing)
    else:
        each, total = _of_classes(x, target, weight, ignore_index, label_smoothing)
    loss = each.sum() / total if reduction == "mean" else each.sum() if reduction == "sum" else each.squeeze(0) if input.ndim == 1 else each
    return loss if input.dtype not in HALF else loss.to(_promoted(input, target, weight) if soft else input.dtype)


def _promoted(*tensors: Tensor | None) -> torch.dtype:
    return functools.reduce(torch.promote_types, [t.dtype for t in tensors if t is not None and t.is_floating_point()])


def _of_classes(x: Tensor, given: Tensor, weight: Tensor | None, ignored: int, smoothing: float) -> tuple[Tensor, Any]:
    """The loss of every target, and the divisor of their mean: how many count, or the sum of their weights."""
    target = given.long()
    keep = target != ignored
    if x.shape[1] == 0:
        if keep.any():
            raise IndexError(f"Target {target[keep][0].item()} is out of bounds.")
        return x.sum(1), keep.sum()
    each, counts = negative_log_probability(x, target, ignored, False)[0], keep
    if weight is not None:
        counts = torch.where(keep, weight.to(x.dtype)[torch.where(keep, target, 0)], 0)
        each = each * counts
    if smoothing > 0:
        if weight is not None and given.dtype == torch.uint8 and given.numel():
            raise RuntimeError("cross_entropy: expected target dtype to be Long with weight and label_smoothing, but got Byte")
        evenly = _of_probabilities(x, torch.full((), smoothing / x.shape[1], dtype=x.dtype, device=x.device), weight, 0)[0]
        each = (1 - smoothing) * each + torch.where(keep, evenly, 0)
    total = counts.sum()
    return each, total if weight is None else torch.where(total == 0, math.nan, total)


def _of_probabilities(x: Tensor, q: Tensor, weight: Tensor | None, smoothing: float) -> tuple[Tensor, Any]:
    """The loss of every target q, and the divisor of their mean: their number, whatever the weight."""
    if x.numel() == 0:
        return (x * q).sum(1), math.nan
    if smoothing > 0:
        q = q * (1 - smoothing) + smoothing / x.shape[1]
    terms = log_probabilities(x) * q
    if weight is not None:
        terms = terms * weight.view(-1, *[1] * (x.ndim - 2))
    return -terms.sum(1), x.numel() // x.shape[1]


def _full(t: Tensor) -> Tensor:
    return t.float() if t.dtype in HALF else t


def _check_types(input: object, target: object, weight: object, ignore_index: object, label_smoothing: object) -> None:
    for position, (name, value) in enumerate((("input", input), ("target", target), ("weight", weight)), 1):
        if not isinstance(value, Tensor) and not (value is None and name == "weight"):
            raise wrong_type("cross_entropy_loss", name, value, "Tensor", position)
    if not is_int(ignore_index):
        raise wrong_type("cross_entropy_loss", "ignore_index", ignore_index, "int", 5)
    if not isinstance(label_smoothing, (float, int, Real)) and not (isinstance(label_smoothing, Tensor) and label_smoothing.ndim == 0):
        raise wrong_type("cross_entropy_loss", "label_smoothing", label_smoothing, "float", 6)


def _check(input: Tensor, target: Tensor, weight: Tensor | None, soft: bool, ignored: int, smoothing: float) -> None:
    if soft and not target.is_floating_point():
        raise RuntimeError(f"Expected floating point type for target with class probabilities, got {dtype_name(target.dtype)}")
    if soft and ignored >= 0:
        raise RuntimeError("ignore_index is not supported for floating point target")
    if input.ndim == 0:
        raise IndexError("Dimension out of range: cross_entropy needs input of shape (C,), (N, C) or (N, C, *size), but got a 0-D tensor")
    if smoothing > 1:
        raise RuntimeError(f"label_smoothing must be between 0.0 and 1.0. Got: {smoothing}")
    if soft:
        _check_weight(input, weight)
    if not input.is_floating_point() or input.itemsize == 1:
        raise NotImplementedError(f"\"log_softmax_kernel_impl\" not implemented for '{dtype_name(input.dtype)}'")
    check_dense("cross_entropy", input)
    if soft:
        return
    _check_classes(input, target)
    _check_weight(input, weight)
    if weight is not None and weight.dtype != input.dtype:
        raise RuntimeError(f"cross_entropy: expected scalar type {dtype_name(input.dtype)} for weight but found {dtype_name(weight.dtype)}")
    if weight is not None and weight.requires_grad and torch.is_grad_enabled():
        raise RuntimeError("cross_entropy is not differentiable with respect to 'weight', which cannot have requires_grad True")


def _check_classes(input: Tensor, target: Tensor) -> None:
    batch, size = target.shape[0] if target.ndim else 0, [*input.shape[:1], *input.shape[2:]]
    if input.ndim > 1 and batch != input.shape[0]:
        raise ValueError(f"Expected input batch_size ({input.shape[0]}) to match target batch_size ({batch}).")
    if input.ndim <= 2 and target.ndim > 1:
        raise RuntimeError(f"0D or 1D target tensor expected, multi-target not supported: got {list(target.shape)}")
    if input.ndim > 1 and list(target.shape) != size:
        words = "size mismatch. " if input.ndim == 4 else ""
        raise RuntimeError(f"{words}Expected target size {size}, got {list(target.shape)}")
    if target.dtype != torch.int64 and not (target.dtype == torch.uint8 and input.ndim <= 2):
        raise RuntimeError(f"expected target dtype to be Long or Byte, but got {dtype_name(target.dtype)}")
    if input.ndim == 1 and target.numel() != 1:
        raise ValueError(f"For 1D input, 1D target must have size 1, but got target size: {target.numel()}")


def _check_weight(input: Tensor, weight: Tensor | None) -> None:
    classes = input.shape[min(1, input.ndim - 1)]
    if weight is not None and weight.shape != (classes,):
        raise RuntimeError(
            f"cross_entropy: weight tensor should be defined either for all {classes} classes or no classes "
            f"but got weight tensor of shape: {list(weight.shape)}"
        )


# ---- The Module: parameters -------------------------------------------------------------------------------------------------------------


class CrossEntropyLoss(torch.nn.CrossEntropyLoss):
    """The cross-entropy of scores and targets; see `cross_entropy` and `torch.nn.CrossEntropyLoss`, the base class."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss of `input` at `target`."""
        return cross_entropy(input, target, self.weight, None, self.ignore_index, None, self.reduction, self.label_smoothing)
