"""The definition of a local layer: its output and two gradients as three einsums over the windows. The other ways are judged by this one.

    output            noij,   from  ncijuv,ijocuv     every window times the weights of its own position
    weight gradient   ijocuv, from  noij,ncijuv       the same string with output and weight exchanged
    window gradient   ncijuv, from  noij,ijocuv       the same string with output and windows exchanged; `scatter` returns windows to pixels

The strings of the convolution with two letters more: the weight knows where it is. Groups are one letter more, g.

Cost: 2*N*O*C/G*I*J*U*V operations per map. Einsum copies the windows before it multiplies, so U*V copies of the image are written and read.
Right for every dtype and any dimension; slow, and hungry for memory.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from cnn425.windows import Geometry, in_dimensions, scatter, windows


def output(x: Tensor, w: Tensor, geometry: Geometry, groups: int) -> Tensor:
    """The output, `(N, C, *size), (*positions, O, C/G, *kernel) -> (N, O, *positions)`."""
    d = geometry.dimensions
    equation = in_dimensions("ngcijuv,ijgocuv->ngoij", d)
    return torch.einsum(equation, split(windows(x, geometry), 1, groups), split(w, d, groups)).flatten(1, 2)


def input_gradient(gy: Tensor, w: Tensor, geometry: Geometry, groups: int, size: Sequence[int]) -> Tensor:
    """The gradient of the input, `(N, O, *positions), (*positions, O, C/G, *kernel) -> (N, C, *size)`."""
    d = geometry.dimensions
    equation = in_dimensions("ngoij,ijgocuv->ngcijuv", d)
    return scatter(torch.einsum(equation, split(gy, 1, groups), split(w, d, groups)).flatten(1, 2), geometry, size)


def weight_gradient(gy: Tensor, x: Tensor, geometry: Geometry, groups: int) -> Tensor:
    """The gradient of the weight, `(N, O, *positions), (N, C, *size) -> (*positions, O, C/G, *kernel)`."""
    d = geometry.dimensions
    equation = in_dimensions("ngoij,ngcijuv->ijgocuv", d)
    return torch.einsum(equation, split(gy, 1, groups), split(windows(x, geometry), 1, groups)).flatten(d, d + 1)


def split(t: Tensor, dim: int, groups: int) -> Tensor:
    """The channels of dimension `dim` in `groups` equal groups, as a new dimension before it; a view."""
    return t.unflatten(dim, (groups, t.shape[dim] // groups))
