"""How a local layer of low rank is computed: the weight of position p is a mixture of R convolutions, `sum over r of m[r,p] * w[r]`.

| what comes, for loops, with N images                | how it is computed                                                   |
|-----------------------------------------------------|----------------------------------------------------------------------|
| (R - 1) * N >= SAVED, and padding below the window  | band by band: the weights of some positions are mixed, a local layer |
| everything else                                     | one convolution with R*O outputs, which are mixed                    |

A product of an image and a weight costs as much in either; the second way computes R times as many, the first also mixes weights, which
costs as much as a few images. Neither makes a tensor of the size of the unshared weight. What loops do not compute, and what may be
differentiated again, goes the second way, and is mixed by operations of torch.
"""

from collections.abc import Iterator, Sequence
from math import prod

import torch
from torch import Tensor

from cnn425.algorithms import convolution, layout, local
from cnn425.algorithms.layout import FLOATS
from cnn425.compat import are_transforms_active
from cnn425.kernels import low_rank as loops
from cnn425.kernels.threads import forced, is_traced, loops_run, memory
from cnn425.windows import Geometry, each_its_own

SAVED = 64  # from so many products of an image and a convolution on, which are not computed, it pays to mix weights
BAND, BANDS = 1 << 22, 4  # bytes of the mixed weights of a band, and the least number of bands


def by_loops(*tensors: Tensor | None) -> bool:
    """Whether loops compute maps of these tensors; under a transform of `torch.func` the definition does, whose parts support them all."""
    given = [t for t in tensors if t is not None]
    dtype = given[0].dtype
    if is_traced() or are_transforms_active() or dtype not in FLOATS or any(t.dtype != dtype or t.numel() == 0 for t in given):
        return False
    return loops_run(*given)


def is_banded(x: Tensor, w: Tensor, m: Tensor, geometry: Geometry) -> bool:
    """Whether weights are mixed. Every band must see a pixel, so padding must be smaller than the windows."""
    pays = (len(w) - 1) * len(x) >= SAVED and m.shape[1] >= BANDS
    return pays and forced.get() is None and max(geometry.padding[0]) < geometry.extent[0]


def output(x: Tensor, w: Tensor, m: Tensor, b: Tensor | None, geometry: Geometry, groups: int) -> tuple[Tensor, Tensor]:
    """The output, and those of the R convolutions that were mixed, or nothing where weights were.

    `(N, C, *size), (R, O, C/G, *kernel), (R, *positions), (O,) -> (N, O, *positions), (N, O*R, *positions) or (0)`.
    """
    (N, (R, O), P), sharing = (len(x), w.shape[:2], prod(m.shape[1:])), each_its_own(geometry.dimensions)
    y = x.new_empty(N, O, *m.shape[1:])
    if is_banded(x, w, m, geometry):
        for here, seen, windows, _, weight in bands(geometry, x.shape[2:], w, m):
            y[:, :, here] = local.output(x[:, :, seen], weight, windows, groups, sharing, b)
        return layout.stored(y, layout.like(x)), x.new_empty(0)
    a = convolution.output(x, stacked(w), geometry, groups)
    order, apart, m, b = layout.like(a), a.contiguous(), m.contiguous(), a.new_zeros(1) if b is None else b.contiguous()
    loops.mix(N * O, a.numel(), memory(apart, N * O, R, P), memory(m, R, P), memory(b, len(b)), memory(y, N * O, P))
    return layout.stored(y, order), a


def gradients(
    gy: Tensor, x: Tensor, w: Tensor, m: Tensor, a: Tensor, geometry: Geometry, groups: int, of_image: bool, of_weights: bool
) -> tuple[Tensor | None, ...]:
    """The gradients of image, weights, coefficients and bias; None where not asked for, or not found on the way.

    `a` is the second output of `output`.
    """
    if a.numel() == 0:
        return *gradients_by_bands(gy, x, w, m, geometry, groups, of_image, of_weights), None
    (N, (R, O), P), order = (len(x), w.shape[:2], prod(m.shape[1:])), layout.like(gy)
    gy, a, m, rows = gy.contiguous(), a.contiguous(), m.contiguous(), N * O
    chunks, blocks = -(-rows // loops.ROWS), -(-P // loops.LINE)
    ga, gm, gb = torch.empty_like(a), a.new_empty(chunks, *m.shape), a.new_empty(N, O, blocks)
    given = memory(gy, rows, P), memory(a, rows, R, P), memory(m, R, P)
    loops.mix_gradients(chunks * blocks, a.numel(), *given, memory(ga, rows, R, P), memory(gm, chunks, R, P), memory(gb, rows, blocks))
    ga = layout.stored(ga, order)
    gx = convolution.input_gradient(ga, stacked(w), geometry, groups, x.shape[2:]) if of_image else None
    gw = convolution.weight_gradient(ga, x, geometry, groups).view(O, R, *w.shape[2:]).transpose(0, 1) if of_weights else None
    return gx, gw, gm.sum(0), gb.sum((0, 2))


def stacked(w: Tensor) -> Tensor:
    """The weights `(R, O, C/G, *kernel)` as those of one convolution, `(O*R, C/G, *kernel)`: groups stay together."""
    return w.transpose(0, 1).flatten(0, 1)


def mixture(a: Tensor, m: Tensor, b: Tensor | None) -> Tensor:
    """`y[n,o,p] = b[o] + sum over r of m[r,p] * a[n,o,r,p]`, `(N, O*R, *positions), (R, *positions), (O,) -> (N, O, *positions)`.

    In operations of torch, which have derivatives.
    """
    y = (a.reshape(-1, a.shape[1] // m.shape[0], *m.shape) * m).sum(2)  # a legacy vmap has no unflatten
    return layout.stored(y if b is None else y + b.view(-1, *(1,) * (m.ndim - 1)), layout.like(a))


# ---- Bands -------------------------------------------------------------------------------------------------------------------------------


def bands(geometry: Geometry, size: Sequence[int], w: Tensor, m: Tensor) -> Iterator[tuple[slice, slice, Geometry, Tensor, Tensor]]:
    """Bands along the first side: positions, the pixels they see, the windows there, coefficients `(R, P)` and mixed weights.

    The mixed weights are `(*positions of the band, O, C/G, *kernel)`.
    """
    (low, _), stride, extent, rows = geometry.padding[0], geometry.stride[0], geometry.extent[0], m.shape[1]
    w, K = w.contiguous(), w[0].numel()
    count = min(rows, max(BANDS, -(-m[0].numel() * K * w.itemsize // BAND)))
    for k in range(count):
        here = slice(k * rows // count, (k + 1) * rows // count)
        begin, end = here.start * stride - low, (here.stop - 1) * stride + extent - low
        seen = slice(max(begin, 0), min(end, size[0]))
        windows = geometry._replace(padding=((seen.start - begin, end - seen.stop), *geometry.padding[1:]))
        mixing = m[:, here].flatten(1).contiguous()
        P, numbers = mixing.shape[1], w.new_empty(*m[0, here].shape, *w.shape[1:])
        loops.mix_weights(P, len(w) * numbers.numel(), memory(w, len(w), K), memory(mixing, len(w), P), memory(numbers, P, K))
        yield here, seen, windows, mixing, numbers


def gradients_by_bands(
    gy: Tensor, x: Tensor, w: Tensor, m: Tensor, geometry: Geometry, groups: int, of_image: bool, of_weights: bool
) -> tuple[Tensor | None, ...]:
    """The gradients of image, weights and coefficients; None for the image, and zeros for the others, where not asked for."""
    sharing, w, (R, K) = each_its_own(geometry.dimensions), w.contiguous(), (len(w), w[0].numel())
    gx, gw, gm = x.new_zeros(x.shape) if of_image else None, torch.zeros_like(w), torch.zeros_like(m)
    lines = -(-K // loops.SOME)
    for here, seen, windows, mixing, weight in bands(geometry, x.shape[2:], w, m):
        image, upstream = x[:, :, seen].contiguous(), gy[:, :, here].contiguous()
        if gx is not None:
            gx[:, :, seen] += local.input_gradient(upstream, weight, windows, groups, sharing, image.shape[2:])
        if of_weights:
            mixed, P = local.weight_gradient(upstream, image, windows, groups, sharing), mixing.shape[1]
            here_w, here_m = torch.empty_like(w), m.new_empty(lines, R, P)
            given = memory(mixed, P, K), memory(w, R, K), memory(mixing, R, P)
            loops.mix_weights_gradients(lines, R * mixed.numel(), *given, memory(here_w, R, K), memory(here_m, lines, R, P))
            gw += here_w
            gm[:, here] = here_m.sum(0).view_as(m[:, here])
    gw = gw.transpose(0, 1).contiguous().transpose(0, 1)  # stored as in the other way
    return None if gx is None else layout.stored(gx, layout.like(x)), gw, gm
