"""Activations and losses, two ways: the loops of `cnn425.kernels.elementwise`, and for everything else the definition.

Loops take dense float32 tensors. Those without exponentials, which are all gradients, also take float64.
"""

from math import prod

import torch
from torch import Tensor

from cnn425.algorithms.layout import FLOATS, HALF
from cnn425.kernels import elementwise as loops
from cnn425.kernels.threads import PLAIN, is_traced, loops_run, memory


def alike(*tensors: Tensor) -> bool:
    """Whether tensors are dense and have the same dtype, shape and layout, so that loops may treat them as rows of numbers."""
    first = tensors[0]
    if not loops_run(*tensors) or any(t.dtype != first.dtype or t.shape != first.shape for t in tensors):
        return False
    if all(t.is_contiguous() for t in tensors):
        return True
    return first.ndim == 4 and all(t.is_contiguous(memory_format=torch.channels_last) for t in tensors)


def blank(x: Tensor) -> Tensor:
    """An empty tensor in the layout of `x`; dimensions of size 1 have the strides that torch gives them."""
    return torch.empty_like(x, memory_format=torch.contiguous_format if x.is_contiguous() else torch.channels_last)


def gate(g: Tensor, y: Tensor) -> Tensor:
    """`g` where y > 0 or NaN, else 0."""
    if g.dtype in HALF and type(g) in PLAIN and g.is_cpu and not is_traced():  # `where` takes four times as long in half precision
        return ((y <= 0).to(torch.int16).sub_(1) & g.view(torch.int16)).view(g.dtype)
    if not alike(g, y) or g.dtype not in FLOATS:
        return torch.where(y <= 0, 0, g)
    gx, n = blank(g), g.numel()
    loops.gate(n, n, memory(g, n), memory(y, n), memory(gx, n))
    return gx


def sigmoid(x: Tensor) -> Tensor:
    """`1 / (1 + exp(-x))`: for very negative x the exponential is infinite and the result 0, as it should be."""
    if x.dtype != torch.float32 or not alike(x):
        return 1 / (1 + (-x).exp())
    y, n = blank(x), x.numel()
    loops.sigmoid(n, 4 * n, memory(x, n), memory(y, n))
    return y


def sigmoid_gradient(gy: Tensor, y: Tensor) -> Tensor:
    """`gy * y * (1 - y)`, for complex numbers with the conjugate of the factor."""
    if not alike(gy, y) or y.dtype not in FLOATS:
        return gy * ((1 - y) * y).conj()
    gx, n = blank(gy), gy.numel()
    loops.sigmoid_gradient(n, n, memory(gy, n), memory(y, n), memory(gx, n))
    return gx


def classes(x: Tensor, dim: int) -> tuple[int, int, int]:
    """The shape `(B, C, K)` in which loops see a tensor whose classes are along `dim`."""
    dim %= x.ndim
    return prod(x.shape[:dim]), x.shape[dim], prod(x.shape[dim + 1 :])


def units(shape: tuple[int, int, int]) -> int:
    """How many blocks loops split a shape `(B, C, K)` into."""
    return -(-shape[0] // loops.rows_of(shape[1])) if shape[2] == 1 else shape[0] * -(-shape[2] // loops.BLOCK)


def softmax(x: Tensor, dim: int) -> Tensor:
    """`exp(x) / sum of exp(x)` along `dim`; the largest x is subtracted first, which keeps the exponentials finite."""
    if x.numel() == 0:
        return x.new_empty(x.shape)
    if x.dtype != torch.float32 or not loops_run(x):
        e = (x - x.amax(dim, keepdim=True)).exp()
        return (e / e.sum(dim, keepdim=True)).contiguous()
    x, shape = x.contiguous(), classes(x, dim)
    y = blank(x)
    loops.softmax(units(shape), 4 * x.numel(), memory(x, *shape), memory(y, *shape))
    return y


def softmax_gradient(gy: Tensor, y: Tensor, dim: int) -> Tensor:
    """`y * (gy - sum of gy * y)` along `dim`."""
    if gy.dtype != y.dtype or gy.shape != y.shape or y.dtype not in FLOATS or not loops_run(gy, y) or y.numel() == 0:
        return softmax_gradient_by_definition(gy, y, dim)
    gy, y, shape = gy.contiguous(), y.contiguous(), classes(y, dim)  # what was saved may come back in another layout
    gx = blank(gy)
    loops.softmax_gradient(units(shape), y.numel(), memory(gy, *shape), memory(y, *shape), memory(gx, *shape))
    return gx


def softmax_gradient_by_definition(gy: Tensor, y: Tensor, dim: int) -> Tensor:
    """`softmax_gradient` in operations that have derivatives of their own."""
    return y * (gy - (gy * y).sum(dim, keepdim=True))


def cross_entropy(x: Tensor, target: Tensor, ignored: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The negative log-probability of each target, its mean over those that count, their number, and the softmax.

    `(N, C, *size), (N, *size) -> (N, *size), (), (), (N, C, *size)`.
    """
    if x.dtype != torch.float32 or not loops_run(x, target) or x.numel() == 0:
        y, p = cross_entropy_by_definition(x, target, ignored)
        count = target.numel() - (target == ignored).sum()
        return y, y.sum() / count, count, p
    y, mean, count, p, wrong = x.new_empty(target.shape), x.new_empty(()), target.new_empty(()), blank(x), target.new_empty(2)
    shape, n = classes(x, 1), target.numel()
    each, results = (shape[0], shape[2]), (memory(mean, 1), memory(count, 1), memory(wrong, 2))
    loops.cross_entropy(units(shape), 4 * x.numel(), memory(x, *shape), memory(target, *each), ignored, memory(y, *each), memory(p, *shape))
    loops.mean_of_targets(1, 0, memory(y, n), memory(target, n), shape[1], ignored, *results)
    which, is_wrong = wrong.tolist()
    if is_wrong:
        raise IndexError(f"Target {which} is out of bounds.")
    return y, mean, count, p


def cross_entropy_by_definition(x: Tensor, target: Tensor, ignored: int) -> tuple[Tensor, Tensor]:
    """`cross_entropy` in plain PyTorch. The log is taken of the sum, after subtracting the largest score: nothing overflows."""
    drop, t = dropped(target, ignored)
    z = x - x.amax(1, keepdim=True)
    e = z.exp()
    total = e.sum(1, keepdim=True)
    try:
        own = z.gather(1, t)
    except RuntimeError:
        outside = t[(t < 0) | (t >= x.shape[1])].flatten()
        if len(outside) == 0:
            raise
        raise IndexError(f"Target {outside[0].item()} is out of bounds.") from None
    return (total.log() - own).masked_fill(drop, 0).squeeze(1), e / total


def cross_entropy_gradient(g: Tensor, p: Tensor, target: Tensor, ignored: int) -> Tensor:
    """`g * (p - one-hot)`, 0 where the target is ignored: `(N, *size) and (N, C, *size) -> (N, C, *size)`."""
    fit = g.dtype == p.dtype and g.shape == target.shape == p.shape[:1] + p.shape[2:]  # what was saved may come back changed
    if not fit or p.dtype not in FLOATS or not loops_run(g, p, target) or p.numel() == 0:
        return cross_entropy_gradient_by_definition(g, p, target, ignored)
    g, p, target = g.contiguous(), p.contiguous(), target.contiguous()  # what was saved may come back in another layout
    gx, wrong = torch.empty_like(p), target.new_zeros(2)
    shape = classes(p, 1)
    each, results = (shape[0], shape[2]), (memory(gx, *shape), memory(wrong, 2))
    loops.cross_entropy_gradient(units(shape), p.numel(), memory(g, *each), memory(p, *shape), memory(target, *each), ignored, *results)
    which, is_wrong = wrong.tolist()
    if is_wrong:
        raise IndexError(f"Target {which} is out of bounds.")
    return gx


def cross_entropy_gradient_by_definition(g: Tensor, p: Tensor, target: Tensor, ignored: int) -> Tensor:
    """`cross_entropy_gradient` in operations that have derivatives of their own."""
    drop, t = dropped(target, ignored)
    g = g.unsqueeze(1).masked_fill(drop, 0)
    return (g * p).scatter_add(1, t, -g)


def dropped(target: Tensor, ignored: int) -> tuple[Tensor, Tensor]:
    """Which targets are ignored, and the targets with class 0 in place of those; both `(N, 1, *size)`."""
    target = target.unsqueeze(1)
    drop = target == ignored
    return drop, target.masked_fill(drop, 0)
