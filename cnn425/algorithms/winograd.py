"""Winograd's minimal filtering: fewer multiplications, because a small convolution is a product of two polynomials. On request only.

One dimension, m outputs from r weights: the correlation of a tile of a = m + r - 1 pixels d with a kernel g is a product of polynomials,
read backwards, and such a product is known from its values at a points (Toom and Cook). Evaluation and interpolation are matrix
products:

    y = A' [ (G g) * (B' d) ]           `*` element by element: a multiplications instead of m * r
    B'   row k: the coefficients of the product of (t - p_j) over all points but p_k
    G    row k: the powers p_k ** u, divided by the product of (p_k - p_j) over the other points
    A'   column k: the powers p_k ** i.   The last point is infinity: it stands for the leading coefficient.

More dimensions apply the matrices along each. With channels, `*` becomes a sum over channels: one matrix product per point. Every step is
linear in each operand, so the gradient of the weight is the chain transposed, `G' [ (B' d)' (A gy) ]`, and the gradient of the input is
the convolution of the output gradient with the kernel flipped.

Cost: a/m multiplications per output and dimension instead of r: F(4x4, 3x3) needs 36 / 16 = 2.25 instead of 9. Errors, and why it does not
run by default: the rounding error is about six times that of a dot product (points 0, 3/4, -3/4, 3/2, -3/2, infinity), and it is that of
the largest pixel of the tile, not of the window. So a pixel outside a window changes the window's sum, whole numbers do not stay whole,
non-negative products may sum to a negative number, and an infinity or NaN spreads over its tile. Applies to float32 and float64, stride 1,
no dilation, kernels of at most five cells (three in three dimensions) along each side; Lavin and Gray 2015, arXiv 1509.09308.
"""

from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from math import prod

import torch
from torch import Tensor

from cnn425.algorithms.layout import FLOATS
from cnn425.windows import Geometry, pad, windows

POINTS = (Fraction(0), Fraction(3, 4), Fraction(-3, 4), Fraction(3, 2), Fraction(-3, 2))
FEW_POINTS = (Fraction(0), Fraction(1), Fraction(-1))


def points(dimensions: int) -> tuple[Fraction, ...]:
    """The points besides infinity; a third dimension would multiply the error again, so there tiles are smaller."""
    return FEW_POINTS if dimensions == 3 else POINTS


def applies(dtype: torch.dtype, geometry: Geometry) -> bool:
    """Whether this algorithm can compute a convolution."""
    ones = all(s == d == 1 for s, d in zip(geometry.stride, geometry.dilation, strict=True))
    return dtype in FLOATS and ones and max(geometry.kernel) <= len(points(geometry.dimensions))


@lru_cache(maxsize=64)
def matrices(r: int, dimensions: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """A' (m, a), G (a, r) and B' (a, a) for kernels of `r` cells; a kernel of one cell is left as it is, with tiles of one pixel."""
    p_k = () if r == 1 else points(dimensions)
    m = len(p_k) + 2 - r
    others = [[q for q in p_k if q != p] for p in p_k]
    A = [[p**i for p in p_k] + [Fraction(i == m - 1)] for i in range(m)]
    G = [[p**u / prod((p - q for q in rest), start=Fraction(1)) for u in range(r)] for p, rest in zip(p_k, others, strict=True)]
    B = [[*coefficients(rest), Fraction(0)] for rest in others]
    G.append([Fraction(u == r - 1) for u in range(r)])
    B.append(coefficients(p_k))
    a_, g_, b_ = (torch.tensor([[float(v) for v in row] for row in rows], dtype=dtype, device=device) for rows in (A, G, B))
    return a_, g_, b_


def coefficients(roots: Sequence[Fraction]) -> list[Fraction]:
    """The coefficients, lowest first, of the product of (t - root) over all roots."""
    c = [Fraction(1)]
    for root in roots:
        c = [high - root * low for high, low in zip([Fraction(0), *c], [*c, Fraction(0)], strict=True)]
    return c


def along(factors: Sequence[Tensor], t: Tensor) -> Tensor:
    """Each matrix applied along one of the last dimensions of `t`."""
    for side, factor in enumerate(factors, -len(factors)):
        t = torch.tensordot(t, factor, ([side], [1])).movedim(-1, side)
    return t


def tiles(t: Tensor, size: Sequence[int], step: Sequence[int], counts: Sequence[int], low: Sequence[int]) -> Tensor:
    """Tiles of `size` pixels, one every `step` pixels, zero outside the image: `(N, C, *image) -> (N, C, *counts, *size)`."""
    ends = [(c - 1) * m + a for c, m, a in zip(counts, step, size, strict=True)]
    t = pad(t, [(p, end - n - p) for p, end, n in zip(low, ends, t.shape[2:], strict=True)])
    none = ((0, 0),) * len(size)
    return windows(t, Geometry(tuple(size), tuple(step), none, (1,) * len(size)))


def transformed(factors: Sequence[Tensor], tiles: Tensor, groups: int) -> Tensor:
    """The matrices applied to tiles `(N, C, *counts, *size)`: `(N, G, C/G, tiles, points)`."""
    d = len(factors)
    return along(factors, tiles).flatten(2 + d).flatten(2, 1 + d).unflatten(1, (groups, -1))


class Tiling:
    """The tiles of one convolution: the matrices per dimension, tile sizes, and how many tiles there are."""

    def __init__(self, t: Tensor, geometry: Geometry, positions: Sequence[int]) -> None:
        self.A, self.G, self.B = zip(*(matrices(k, geometry.dimensions, t.dtype, t.device) for k in geometry.kernel), strict=True)
        self.m, self.a = [len(A) for A in self.A], [len(B) for B in self.B]
        self.counts = [-(-p // m) for p, m in zip(positions, self.m, strict=True)]
        self.low = [low for low, _ in geometry.padding]


def output(x: Tensor, w: Tensor, geometry: Geometry, groups: int) -> Tensor:
    """The output, `(N, C, *size), (O, C/G, *kernel) -> (N, O, *positions)`."""
    positions = geometry.positions(x.shape[2:])
    tiling, d = Tiling(x, geometry, positions), geometry.dimensions
    V = transformed(tiling.B, tiles(x, tiling.a, tiling.m, tiling.counts, tiling.low), groups)
    U = along(tiling.G, w).flatten(2).unflatten(0, (groups, -1))
    M = torch.einsum("ngctk,gock->ngotk", V, U).flatten(1, 2).unflatten(-1, tiling.a)
    Y = along(tiling.A, M).unflatten(2, tiling.counts)
    for side in range(d):  # tiles side by side
        Y = Y.movedim(2 + d + side, 3 + 2 * side)
    Y = Y.reshape(*Y.shape[:2], *(c * m for c, m in zip(tiling.counts, tiling.m, strict=True)))
    return Y[(..., *map(slice, positions))]


def input_gradient(gy: Tensor, w: Tensor, geometry: Geometry, groups: int, size: Sequence[int]) -> Tensor:
    """The gradient of the input, `(N, O, *positions), (O, C/G, *kernel) -> (N, C, *size)`."""
    pairs = zip(geometry.kernel, geometry.padding, size, gy.shape[2:], strict=True)
    padding = tuple((k - 1 - low, n - 1 + low - (p - 1)) for k, (low, _), n, p in pairs)
    turned = w.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1).flip(tuple(range(2, w.ndim)))
    return output(gy, turned, geometry._replace(padding=padding), groups)


def weight_gradient(gy: Tensor, x: Tensor, geometry: Geometry, groups: int) -> Tensor:
    """The gradient of the weight, `(N, O, *positions), (N, C, *size) -> (O, C/G, *kernel)`."""
    tiling = Tiling(x, geometry, gy.shape[2:])
    V = transformed(tiling.B, tiles(x, tiling.a, tiling.m, tiling.counts, tiling.low), groups)
    gM = transformed([A.t() for A in tiling.A], tiles(gy, tiling.m, tiling.m, tiling.counts, [0] * len(tiling.m)), groups)
    gU = torch.einsum("ngotk,ngctk->gock", gM, V).flatten(0, 1).unflatten(-1, tiling.a)
    return along([G.t() for G in tiling.G], gU)
