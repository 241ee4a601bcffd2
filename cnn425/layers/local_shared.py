"""Between local and convolution: positions that share one set of weights, in blocks of neighbours or in tiles.

    forward                   y[n,o,i,j]        = b[o,a,b] + sum over c,u,v of windows[n,c,i,j,u,v] * w[a,b,o,c,u,v]
    blocks of s x t           (a, b) = (i // s, j // t)    Taigman et al. 2014, "DeepFace"; Sun et al. 2014, "DeepID"
    tiles of s x t            (a, b) = (i % s, j % t)      Ngiam et al. 2010, "Tiled convolutional neural networks"
    gradient of the weight    the sum over the positions that share a set

The positions of one set are a grid, so each set is a convolution of a part of the image. `Cut` cuts out these parts, which overlap, and all
sets are one convolution whose groups are the sets: no weight is repeated. Where the last block is smaller, or some tiles have one position
more than others, the image falls into up to 2 parts per side with equal sets.
"""

from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_variadic

from cnn425.layers import arguments
from cnn425.layers.bilinear import output
from cnn425.layers.function import cast_for_autocast
from cnn425.layers.unfold import cut
from cnn425.windows import Geometry, pad


class Part(NamedTuple):
    """Sets along one side that have equally many positions."""

    first: int
    sets: int
    positions: int  # of each set


class Sharing(NamedTuple):
    """Which positions share a set: blocks of `share` neighbours, or with `tile` those that are equal modulo `tile`."""

    share: tuple[int, ...]
    tile: tuple[int, ...] | None

    def sets(self, positions: tuple[int, ...]) -> tuple[int, ...]:
        """The number of sets along each side."""
        return self.tile or tuple(-(-p // s) for p, s in zip(positions, self.share, strict=True))

    def table(self, side: int, positions: int, device: torch.device | None = None) -> Tensor:
        """The set of each position along a side."""
        p = torch.arange(positions, device=device)
        return p % self.tile[side] if self.tile else p // self.share[side]

    def parts(self, side: int, positions: int) -> list[Part]:
        """The sets along a side, those of equal size together."""
        if self.tile:
            each, more = divmod(positions, self.tile[side])
            found = [Part(0, more, each + 1), Part(more, self.tile[side] - more, each)]
        else:
            whole, rest = divmod(positions, self.share[side])
            found = [Part(0, whole, self.share[side]), Part(whole, 1, rest)]
        return [part for part in found if part.sets and part.positions]


def shared_local(
    dimensions: int, input: Tensor, weight: Tensor, bias: Tensor | None, share: tuple[int, ...], tile: Any, *settings: Any
) -> Tensor:
    """The local layer whose weight `(*sets, O, C/groups, *kernel)` and bias `(O, *sets)` or `(O,)` belong to sets of positions.

    `settings` are the stride, padding, dilation and groups of `locally_connectedNd`.
    """
    if has_torch_function_variadic(input, weight, bias):
        everything = dimensions, input, weight, bias, share, tile, *settings
        return handle_torch_function(shared_local, (input, weight, bias), *everything)
    x, w, b, geometry, groups = prepared(dimensions, input, weight, bias, *settings)
    y = of_sets(x, w, b, geometry, groups, Sharing(share, tile))
    return y.squeeze(0) if input.ndim == dimensions + 1 else y


def prepared(
    dimensions: int, input: Tensor, weight: Tensor, bias: Tensor | None, *settings: Any
) -> tuple[Tensor, Tensor, Tensor | None, Geometry, int]:
    """The tensors as a layer with a weight `(..., O, C/groups, *kernel)` computes with them, checked, the windows and the groups."""
    function, d = f"LocallyConnected{dimensions}d", dimensions
    arguments.check_tensors(function, input, weight, bias)
    geometry, groups = _checked(function, d, input.shape, weight.shape, *settings)
    x, w, b = cast_for_autocast(input.unsqueeze(0) if input.ndim == d + 1 else input, weight, bias)
    arguments.check_same_type(x, w, b)
    return x, w, b, geometry, groups


@arguments.remembered
def _checked(function: str, d: int, input: torch.Size, weight: torch.Size, *settings: Any) -> tuple[Geometry, int]:
    (stride, padding, dilation, groups), x = settings, arguments.check_input(function, input, d)
    geometry = arguments.local_geometry(function, weight[-d:], stride, padding, dilation, x[2:])
    arguments.check_channels(x, weight, groups, outputs=weight[-d - 2], inputs=weight[-d - 1])
    arguments.check_fits(x, geometry)
    return geometry, groups


def of_sets(x: Tensor, w: Tensor, b: Tensor | None, geometry: Geometry, groups: int, sharing: Sharing) -> Tensor:
    """The output of all sets: those of equal size together, then brought in the order of the positions."""
    d, positions = geometry.dimensions, geometry.positions(x.shape[2:])
    parts = [sharing.parts(side, count) for side, count in enumerate(positions)]
    x = pad(x, geometry.overhang(x.shape[2:]))  # so that it ends with the last window

    def along(side: int, chosen: tuple[Part, ...]) -> Tensor:
        """The output `(N, *positions of each set, *sets, O)` of the chosen parts of the first sides and all parts of the others."""
        if side == d:
            return equal_sets(x, w, b, geometry, groups, sharing, chosen)
        longest = max(part.positions for part in parts[side])
        found = [along(side + 1, (*chosen, part)) for part in parts[side]]
        same = [pad(t, [(0, 0)] * side + [(0, longest - t.shape[1 + side])] + [(0, 0)] * (t.ndim - 2 - side)) for t in found]
        return same[0] if len(same) == 1 else torch.cat(same, 1 + d + side)

    y = along(0, ())
    sides = [(1 + side, 1 + d + side) if sharing.tile else (1 + d + side, 1 + side) for side in range(d)]
    y = y.permute(0, 1 + 2 * d, *(dim for pair in sides for dim in pair))
    for side, count in enumerate(positions):
        y = y.flatten(2 + side, 3 + side).narrow(2 + side, 0, count)
    return y.contiguous()


def equal_sets(
    x: Tensor, w: Tensor, b: Tensor | None, geometry: Geometry, groups: int, sharing: Sharing, parts: tuple[Part, ...]
) -> Tensor:
    """The output of a box of sets with equally many positions, `(N, *positions of each set, *sets, O)`: one convolution in groups."""
    d, size, s = geometry.dimensions, x.shape[2:], geometry.stride
    within = tuple(a * t for a, t in zip(s, sharing.tile, strict=True)) if sharing.tile else s  # from position to position of a set
    between = s if sharing.tile else tuple(a * n for a, n in zip(s, sharing.share, strict=True))  # from set to set
    kernel = tuple((part.positions - 1) * step + extent for part, step, extent in zip(parts, within, geometry.extent, strict=True))
    sides = zip(size, parts, between, kernel, strict=True)
    pads = tuple((-part.first * step, (part.first + part.sets - 1) * step + k - n) for n, part, step, k in sides)  # what they do not see
    images = cut(x, tuple(size), Geometry(kernel, between, pads, (1,) * d), True).flatten(1 + d)
    box = tuple(slice(part.first, part.first + part.sets) for part in parts)
    w, sets = w[box], tuple(part.sets for part in parts)
    if b is not None:
        b = (b.expand(*sets, -1) if b.ndim == 1 else b[(slice(None), *box)].movedim(0, -1)).flatten()
    groups, outputs, w = groups * prod(sets), w.shape[d], w.flatten(0, d)
    inner = Geometry(geometry.kernel, within, ((0, 0),) * d, geometry.dilation)
    if d == 3:
        y = output(images.movedim(-1, 1), w, inner, groups, False, b).movedim(1, -1)
    else:  # the images of the batch are one more side, so that a set's positions in all of them are computed together
        inner = Geometry((1, *inner.kernel), (1, *inner.stride), ((0, 0), *inner.padding), (1, *inner.dilation))
        y = output(images.unsqueeze(0).movedim(-1, 1), w.unsqueeze(2), inner, groups, False, b).squeeze(0).movedim(0, -1)
    return y.unflatten(-1, (*sets, outputs))


# ---- Weights of sets and weights of positions --------------------------------------------------------------------------------------------


def of_positions(t: Tensor, sharing: Sharing, positions: tuple[int, ...], before: int = 0) -> Tensor:
    """`t`, whose dimensions from `before` on are sets, with a copy for each position."""
    for side, count in enumerate(positions):
        t = t.index_select(before + side, sharing.table(side, count, t.device))
    return t


def mean_of_positions(t: Tensor, sharing: Sharing, positions: tuple[int, ...]) -> Tensor:
    """The mean over all positions of `t`, whose first dimensions are sets: the mean over the sets, each as often as it is used."""
    for side, count in enumerate(positions):
        share = sharing.table(side, count, t.device).bincount(minlength=t.shape[0]) / count
        t = torch.tensordot(share.to(t.dtype), t, 1)
    return t
