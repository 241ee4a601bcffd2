"""How the three maps of a convolution are computed: the table of choices, and what runs by default.

| what comes                                                                    | how it is computed                                  |
|-------------------------------------------------------------------------------|-----------------------------------------------------|
| within `use("im2col")`, `use("winograd")` or `use("fft")`, where they apply   | `im2col`, `winograd`, `fft`                         |
| another device, dtype or kind of tensor; a trace; within `use("definition")`  | `definition`                                        |
| fewer than 4,096 float64 numbers, as in tests by finite differences           | `definition`                                        |
| at most TINY products                                                         | loops of the local layer, with shared weights       |
| the gradient of the input, with a weight that is infinite or NaN              | `definition`                                        |
| the gradient of few channels, by many times as many outputs, in one group     | one matrix product, added to the pixels, `product`  |
| everything else                                                               | gathered products, `product`                        |

Half precision is computed in float32 and rounded once.
"""

from collections.abc import Sequence
from math import isfinite, prod
from types import ModuleType

import torch
from torch import Tensor

from cnn425.algorithms import definition, fft, im2col, layout, product, winograd
from cnn425.algorithms.layout import HALF
from cnn425.algorithms.local import plan_of
from cnn425.compat import dispatch_modes, is_transformed
from cnn425.kernels.product import scatter
from cnn425.kernels.threads import PLAIN, forced, is_traced, loops_run, memory
from cnn425.windows import Geometry

TINY = 1 << 14  # multiplications; up to this many, plain loops are faster than packing weights
THIN, TIMES = 12, 6  # so few channels leave vector registers empty; with TIMES as many outputs, adding to pixels costs less
NUMBERS = 1 << 20  # of the gradient of windows that are stored at a time
ON_REQUEST: dict[str | None, ModuleType] = {"im2col": im2col, "winograd": winograd, "fft": fft}


def output(x: Tensor, w: Tensor, geometry: Geometry, groups: int, bias: Tensor | None = None) -> Tensor:
    """The output, `(N, C, *size), (O, C/G, *kernel), (O,) -> (N, O, *positions)`."""
    order = layout.memory_format(x, w, geometry, groups)
    if x.dtype in HALF:
        y = output(x.float(), w.float(), geometry, groups, None if bias is None else bias.float())
        return layout.stored(y.to(x.dtype), order)
    if (way := chosen(geometry, x, w, bias)) is not None:
        y = way.output(x, w, geometry, groups)
        return layout.stored(y if bias is None else y + bias.view(-1, *(1,) * geometry.dimensions), order)
    y = layout.empty(x, (x.shape[0], w.shape[0], *geometry.positions(x.shape[2:])), order)
    if y.numel() * prod(w.shape[1:]) <= TINY:
        result = y.contiguous()
        plan_of(geometry, groups, None, x.shape[1:], w.shape, y.shape[2:]).sweep_output(x.contiguous(), w.contiguous(), bias, result)
        return y if result is y else layout.stored(result, order)
    product.output(x, w, bias, y, geometry, groups)
    return y


def input_gradient(
    gy: Tensor, w: Tensor, geometry: Geometry, groups: int, size: Sequence[int], order: torch.memory_format | None = None
) -> Tensor:
    """The gradient of the input, `(N, O, *positions), (O, C/G, *kernel) -> (N, C, *size)`; stored as `gy` and `w`, or as given."""
    order = order or layout.memory_format(gy, w)
    if gy.dtype in HALF:
        return layout.stored(input_gradient(gy.float(), w.float(), geometry, groups, size, order).to(gy.dtype), order)
    if (way := chosen(geometry, gy, w)) is not None:
        return layout.stored(way.input_gradient(gy, w, geometry, groups, size), order)
    gx = layout.empty(gy, (gy.shape[0], w.shape[1] * groups, *size), order)
    if gy.numel() * prod(w.shape[1:]) <= TINY:
        result = gx.contiguous()
        plan_of(geometry, groups, None, gx.shape[1:], w.shape, gy.shape[2:]).sweep_input_gradient(gy.contiguous(), w.contiguous(), result)
        return gx if result is gx else layout.stored(result, order)
    if not isfinite(w.sum().item()):  # loops put zeros between and around what they multiply, and zero times infinity is NaN
        return layout.stored(definition.input_gradient(gy, w, geometry, groups, size), order)
    if groups == 1 and w.shape[1] <= min(THIN, w.shape[0] // TIMES):
        scattered_product(gy, w, gx, geometry)
    else:
        product.input_gradient(gy, w, gx, geometry, groups)
    return gx


def weight_gradient(gy: Tensor, x: Tensor, geometry: Geometry, groups: int, order: torch.memory_format | None = None) -> Tensor:
    """The gradient of the weight, `(N, O, *positions), (N, C, *size) -> (O, C/G, *kernel)`; stored as `gy` and `x`, or as given."""
    order = order or layout.memory_format(gy, x)
    if gy.dtype in HALF:
        return layout.stored(weight_gradient(gy.float(), x.float(), geometry, groups, order).to(gy.dtype), order)
    if (way := chosen(geometry, gy, x)) is not None:
        return layout.stored(way.weight_gradient(gy, x, geometry, groups), order)
    gw = layout.empty(x, (gy.shape[1], x.shape[1] // groups, *geometry.kernel), order)
    if gy.numel() * prod(gw.shape[1:]) <= TINY:
        result = gw if gw.is_contiguous() else gw.new_empty(gw.shape)
        plan_of(geometry, groups, None, x.shape[1:], gw.shape, gy.shape[2:]).sweep_weight_gradient(gy.contiguous(), x.contiguous(), result)
        return gw if result is gw else layout.stored(result, order)
    product.weight_gradient(gy, x, gw, geometry, groups)
    return gw


def scattered_product(gy: Tensor, w: Tensor, gx: Tensor, geometry: Geometry) -> None:
    """Write `gx` of few channels: the gradient of all windows is one product, `(C*cells, O) (O, P)`, and is added to pixels (col2im)."""
    matrix, upstream, N = w.flatten(1).t(), gy.flatten(2), len(gy)
    (K, P), numbers_, C = (matrix.shape[0], upstream.shape[2]), gx[0].numel(), gx.shape[1]
    step = min(N, max(1, NUMBERS // (P * K)))
    z, table_ = gy.new_empty(step, K, P), layout.grid(geometry, tuple(gx.shape[2:]))  # kept: another thread may evict it from the cache
    last = gx.stride(1) == 1
    for n in range(0, N, step):
        images = min(step, N - n)
        torch.matmul(matrix, upstream[n : n + step], out=z[:images])
        where = memory(table_, 6, 3), C, numbers_ // C if not last else 1, C if last else 1
        scatter(images, images * K * P, memory(z, images, K, P), *where, memory(gx[n:], images, numbers_))


# ---- The choice --------------------------------------------------------------------------------------------------------------------------


def chosen(geometry: Geometry, a: Tensor, b: Tensor, bias: Tensor | None = None) -> ModuleType | None:
    """The module that computes a map of `a` and `b`, and adds a bias, or None for what runs by default."""
    if not a.is_floating_point() or 0 in (a.numel(), b.numel()):
        return definition
    loops = loops_run(a, b, bias)
    asked = ON_REQUEST.get(forced.get()) if loops or is_eager(a) else None  # torch 2.11 cannot trace a ContextVar
    if asked is not None and asked.applies(a.dtype, geometry):
        return asked
    return None if loops else definition


def is_eager(x: Tensor) -> bool:
    """Whether operations on `x` are neither traced, recorded nor transformed, and on the CPU not those of a subclass."""
    return (type(x) in PLAIN or not x.is_cpu) and not (is_traced() or dispatch_modes() or is_transformed(x))
