"""The definition: a convolution or a local layer and its two gradients as einsums over the windows. Every other way is judged by this one.

                      convolution             local layer
    output            ncijuv,ocuv -> noij     ncabijuv,abocuv -> noabij     every window times the weight that it shares
    weight gradient   noij,ncijuv -> ocuv     noabij,ncabijuv -> abocuv     the same string with output and weight exchanged
    window gradient   noij,ocuv -> ncijuv     noabij,abocuv -> ncabijuv     the same string with output and windows exchanged

In a local layer a position is given by its set of weights (a, b) and its number (i, j) among the positions that use this set; without
sharing there is only one. `scatter` returns the window gradient to pixels. Groups add one letter, g, in front of the channels of both
operands.

Cost: 2*N*O*C/G*I*J*U*V operations per map. Einsum copies the windows before it multiplies, so U*V copies of the image are written and
read. It is slow, but right for every dtype (integers too; complex numbers without conjugation; callers give half precision as float32),
any dimension, and empty batches and channels.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from cnn425.windows import Geometry, Sharing, in_dimensions, scatter, windows


def output(x: Tensor, w: Tensor, geometry: Geometry, groups: int, sharing: Sharing | None = None) -> Tensor:
    """The output, `(N, C, *size), (O, C/G, *kernel) -> (N, O, *positions)`; the weight of a local layer is `(*sets, O, C/G, *kernel)`."""
    cells, d = split(windows(x, geometry), 1, groups), geometry.dimensions
    if sharing is None:
        return torch.einsum(in_dimensions("ngcijuv,gocuv->ngoij", d), cells, split(w, 0, groups)).flatten(1, 2)
    equation = in_dimensions("ngcabijuv,abgocuv->ngoabij", d)
    y = torch.einsum(equation, sharing.apart(cells, 3), split(w, d, groups)).flatten(1, 2)
    return sharing.together(y, 2, geometry.positions(x.shape[2:]))


def input_gradient(gy: Tensor, w: Tensor, geometry: Geometry, groups: int, size: Sequence[int], sharing: Sharing | None = None) -> Tensor:
    """The gradient of the input, `(N, O, *positions), weight -> (N, C, *size)`."""
    g, d = split(gy, 1, groups), geometry.dimensions
    if sharing is None:
        gwin = torch.einsum(in_dimensions("ngoij,gocuv->ngcijuv", d), g, split(w, 0, groups))
    else:
        gwin = torch.einsum(in_dimensions("ngoabij,abgocuv->ngcabijuv", d), sharing.apart(g, 3), split(w, d, groups))
        gwin = sharing.together(gwin, 3, gy.shape[2:])
    return scatter(gwin.flatten(1, 2), geometry, size)


def weight_gradient(gy: Tensor, x: Tensor, geometry: Geometry, groups: int, sharing: Sharing | None = None) -> Tensor:
    """The gradient of the weight, `(N, O, *positions), (N, C, *size) -> (O, C/G, *kernel)`, or one for every set of positions."""
    g, cells, d = split(gy, 1, groups), split(windows(x, geometry), 1, groups), geometry.dimensions
    if sharing is None:
        return torch.einsum(in_dimensions("ngoij,ngcijuv->gocuv", d), g, cells).flatten(0, 1)
    equation = in_dimensions("ngoabij,ngcabijuv->abgocuv", d)
    return torch.einsum(equation, sharing.apart(g, 3), sharing.apart(cells, 3)).flatten(d, d + 1)


def split(x: Tensor, dim: int, groups: int) -> Tensor:
    """The channels of dimension `dim` in `groups` equal groups, as a new dimension before it; a view."""
    return x.unflatten(dim, (groups, -1))
