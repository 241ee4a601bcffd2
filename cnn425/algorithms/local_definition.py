"""The definition of a local layer: its output and two gradients as three einsums over the windows. The other ways are judged by this one.

    output            noij,   from  ncijuv,ijocuv     every window times the weights of its own position
    weight gradient   ijocuv, from  noij,ncijuv       the same string with output and weight exchanged
    window gradient   ncijuv, from  noij,ijocuv       the same string with output and windows exchanged; `scatter` returns windows to pixels

The strings of the convolution with two letters more: the weight knows where it is. Groups are one letter more, g.

Cost: 2*N*O*C/G*I*J*U*V operations per map. Einsum copies the windows before it multiplies, so U*V copies of the image are written and read.
Right for every dtype and any dimension; slow, and hungry for memory.
"""

import torch
from torch import Tensor

from cnn425.algorithms.local_blocks import split
from cnn425.windows import Geometry, in_dimensions, scatter, windows


def output(x: Tensor, w: Tensor, geometry: Geometry, groups: int, bias: Tensor | None, y: Tensor) -> None:
    """Fill `y` `(N, O, *positions)`; the bias is `(1, O, *positions)`."""
    d = geometry.dimensions
    equation = in_dimensions("ngcijuv,ijgocuv->ngoij", d)
    result = torch.einsum(equation, split(windows(x, geometry), 1, groups), split(w, d, groups)).flatten(1, 2)
    y.copy_(result if bias is None else result + bias)


def input_gradient(gy: Tensor, w: Tensor, geometry: Geometry, groups: int, gx: Tensor) -> None:
    """Fill `gx` `(N, C, *size)`."""
    d = geometry.dimensions
    equation = in_dimensions("ngoij,ijgocuv->ngcijuv", d)
    result = torch.einsum(equation, split(gy, 1, groups), split(w, d, groups)).flatten(1, 2)
    gx.copy_(scatter(result, geometry, gx.shape[2:]))


def weight_gradient(gy: Tensor, x: Tensor, geometry: Geometry, groups: int, gw: Tensor) -> None:
    """Fill `gw` `(*positions, O, C/G, *kernel)`."""
    d = geometry.dimensions
    equation = in_dimensions("ngoij,ngcijuv->ijgocuv", d)
    result = torch.einsum(equation, split(gy, 1, groups), split(windows(x, geometry), 1, groups))
    gw.copy_(result.flatten(d, d + 1))
