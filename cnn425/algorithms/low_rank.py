"""How a local layer of low rank is computed: the weight of position p is a mixture of R convolutions, `sum over r of m[r,p] * w[r]`.

| what comes                                                                    | how it is computed                              |
|-------------------------------------------------------------------------------|-------------------------------------------------|
| R >= RANK and (R - 1) * N >= SAVED, N the number of images, for loops         | in bands of positions, whose weights are mixed  |
| everything else, and what may be differentiated again                         | one convolution with R*O outputs, then mixed    |

A product of an image and a weight costs as much in either; the second way computes R times as many, the first also mixes weights, which
costs as much as a few images. Neither makes a tensor of the size of the unshared weight.
"""

from collections.abc import Iterator, Sequence
from math import prod

import torch
from torch import Tensor

from cnn425.algorithms import layout, local
from cnn425.algorithms.layout import FLOATS
from cnn425.kernels import elementwise as loops
from cnn425.kernels.threads import forced, is_traced, loops_run, memory
from cnn425.windows import Geometry, each_its_own

RANK, SAVED = 3, 96  # from so many convolutions, and images that need not meet all of them, on it pays to mix weights
BAND, BANDS = 1 << 22, 4  # bytes of the mixed weights of a band, and the least number of bands


def is_banded(geometry: Geometry, x: Tensor, w: Tensor, m: Tensor, *others: Tensor | None) -> bool:
    """Whether weights are mixed, for image `(N, C, *size)`, weights `(R, O, C/G, *kernel)` and coefficients `(R, *positions)`.

    Every band must see a pixel, so padding must be smaller than the windows.
    """
    tensors = x, w, m, *others
    if is_traced() or forced.get() is not None or len(w) < RANK or (len(w) - 1) * len(x) < SAVED or m.shape[1] < BANDS:
        return False
    if max(geometry.padding[0]) >= geometry.extent[0] or 0 in (x.numel(), w.numel(), m.numel()) or x.dtype not in FLOATS:
        return False
    return all(t is None or t.dtype == x.dtype for t in tensors) and loops_run(*tensors)


def bands(geometry: Geometry, size: Sequence[int], w: Tensor, m: Tensor) -> Iterator[tuple[slice, slice, Geometry, Tensor, Tensor]]:
    """Bands along the first side: positions, the pixels they see, the windows there, coefficients `(R, P)` and mixed weights.

    The mixed weights are `(*positions of the band, O, C/G, *kernel)`.
    """
    (low, _), stride, extent, rows = geometry.padding[0], geometry.stride[0], geometry.extent[0], m.shape[1]
    count = min(rows, max(BANDS, -(-m[0].numel() * w[0].numel() * w.itemsize // BAND)))
    for k in range(count):
        here = slice(k * rows // count, (k + 1) * rows // count)
        begin, end = here.start * stride - low, (here.stop - 1) * stride + extent - low
        seen = slice(max(begin, 0), min(end, size[0]))
        windows = geometry._replace(padding=((seen.start - begin, end - seen.stop), *geometry.padding[1:]))
        mixing = m[:, here].flatten(1)
        yield here, seen, windows, mixing, (mixing.t() @ w.flatten(1)).view(*m[0, here].shape, *w.shape[1:])


def output(x: Tensor, w: Tensor, m: Tensor, b: Tensor | None, geometry: Geometry, groups: int) -> Tensor:
    """The output, band by band: `(N, C, *size) -> (N, O, *positions)`."""
    y, sharing = x.new_empty(len(x), w.shape[1], *m.shape[1:]), each_its_own(geometry.dimensions)
    for here, seen, windows, _, weight in bands(geometry, x.shape[2:], w, m):
        y[:, :, here] = local.output(x[:, :, seen], weight, windows, groups, sharing, b)
    return layout.stored(y, layout.like(x))


def gradients(
    gy: Tensor, x: Tensor, w: Tensor, m: Tensor, geometry: Geometry, groups: int, of_image: bool, of_weights: bool
) -> tuple[Tensor, ...]:
    """The gradients of image, weights and coefficients, band by band; zeros for what is not asked for."""
    sharing, flat = each_its_own(geometry.dimensions), w.flatten(1)
    gx, gw, gm = x.new_zeros(x.shape), torch.zeros_like(flat), torch.zeros_like(m)
    for here, seen, windows, mixing, weight in bands(geometry, x.shape[2:], w, m):
        image, upstream = x[:, :, seen].contiguous(), gy[:, :, here].contiguous()
        if of_image:
            gx[:, :, seen] += local.input_gradient(upstream, weight, windows, groups, sharing, image.shape[2:])
        if of_weights:
            mixed = local.weight_gradient(upstream, image, windows, groups, sharing).view(-1, flat.shape[1])
            gm[:, here] = (flat @ mixed.t()).view_as(m[:, here])
            gw.addmm_(mixing, mixed)
    return layout.stored(gx, layout.like(x)), gw.view_as(w), gm


def mixture(a: Tensor, m: Tensor, b: Tensor | None) -> Tensor:
    """`y[n,o,p] = b[o] + sum over r of m[r,p] * a[n,o,r,p]`: `(N, O*R, *positions), (R, *positions), (O,) -> (N, O, *positions)`."""
    if not is_mixed_by_loops(a, m, b):
        return layout.stored(mixture_by_definition(a, m, b), layout.like(a))
    (N, OR), (R, *positions), order = a.shape[:2], m.shape, layout.like(a)
    a, m, P, O = a.contiguous(), m.contiguous(), prod(positions), OR // R
    y, b = a.new_empty(N, O, *positions), a.new_zeros(1) if b is None else b.contiguous()
    loops.mix(N * O, a.numel(), memory(a, N * O, R, P), memory(m, R, P), memory(b, len(b)), memory(y, N * O, P))
    return layout.stored(y, order)


def mixture_gradients(gy: Tensor, a: Tensor, m: Tensor, recorded: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of `mixture`: `ga[n,o,r,p] = m[r,p] * gy[n,o,p]`, `gm[r,p] = sum over n, o of gy[n,o,p] * a[n,o,r,p]`, and of b.

    If autograd records them, they are made by operations of torch, which have derivatives.
    """
    (N, O), (R, *positions), order = gy.shape[:2], m.shape, layout.like(gy)
    if recorded or a.shape != (N, O * R, *positions) or not is_mixed_by_loops(gy, a, m):
        by_r = gy.unsqueeze(2)
        ga = (by_r * m.conj()).reshape(N, O * R, *positions)
        return ga, (by_r * a.conj().reshape(N, O, *m.shape)).sum((0, 1)), gy.sum((0, *range(2, gy.ndim)))
    gy, a, m, rows, P = gy.contiguous(), a.contiguous(), m.contiguous(), N * O, prod(positions)
    chunks, blocks = -(-rows // loops.ROWS), -(-P // loops.LINE)
    ga, gm, gb = torch.empty_like(a), a.new_empty(chunks, *m.shape), a.new_empty(N, O, blocks)
    given = memory(gy, rows, P), memory(a, rows, R, P), memory(m, R, P)
    loops.mix_gradients(chunks * blocks, a.numel(), *given, memory(ga, rows, R, P), memory(gm, chunks, R, P), memory(gb, rows, blocks))
    return layout.stored(ga, order), gm.sum(0), gb.sum((0, 2))


def mixture_by_definition(a: Tensor, m: Tensor, b: Tensor | None) -> Tensor:
    """`mixture` in operations that have derivatives of their own."""
    y = (a.reshape(-1, a.shape[1] // m.shape[0], *m.shape) * m).sum(2)  # a legacy vmap has no unflatten
    return y if b is None else y + b.view(-1, *(1,) * (m.ndim - 1))


def is_mixed_by_loops(a: Tensor, b: Tensor, bias: Tensor | None = None) -> bool:
    """Whether loops compute a map of mixtures of `a` and `b`, to which a bias may be added."""
    alike = a.dtype == b.dtype and (bias is None or bias.dtype == a.dtype)
    return a.dtype in FLOATS and alike and loops_run(a, b, bias) and 0 not in (a.numel(), b.numel())
