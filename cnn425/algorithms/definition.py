"""The definition: a convolution and its two gradients as three einsums over the windows. Every other algorithm is judged by this one.

    output            noij,  from  ncijuv,ocuv     every window times the one shared weight
    weight gradient   ocuv,  from  noij,ncijuv     the same string with output and weight exchanged
    window gradient   ncijuv, from noij,ocuv       the same string with output and windows exchanged; `scatter` returns windows to pixels

Groups are one letter more, g, in front of the channels of both operands.

Cost: 2*N*O*C/G*I*J*U*V operations per map. Einsum copies the windows before it multiplies, so U*V copies of the image are
written and read. Right for every dtype (integers too; complex numbers without conjugation), any dimension, empty batches and channels;
slow.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from cnn425.windows import Geometry, in_dimensions, scatter, windows


def convolve(x: Tensor, w: Tensor, geometry: Geometry, groups: int, bias: Tensor | None, layout: torch.memory_format) -> Tensor:
    """The output, `(N, C, *size), (O, C/G, *kernel), (O,) -> (N, O, *positions)`."""
    equation = in_dimensions("ngcijuv,gocuv->ngoij", geometry.dimensions)
    y = torch.einsum(equation, split(windows(x, geometry), 1, groups), split(w, 0, groups)).flatten(1, 2)
    if bias is not None:
        y = y + bias.view(-1, *(1,) * geometry.dimensions)
    return y.clone(memory_format=layout)


def convolve_input_gradient(
    gy: Tensor, w: Tensor, geometry: Geometry, groups: int, size: Sequence[int], layout: torch.memory_format
) -> Tensor:
    """The gradient of the input, `(N, O, *positions), (O, C/G, *kernel) -> (N, C, *size)`."""
    equation = in_dimensions("ngoij,gocuv->ngcijuv", geometry.dimensions)
    gw = torch.einsum(equation, split(gy, 1, groups), split(w, 0, groups))
    exact = gw.float() if gw.dtype in (torch.bfloat16, torch.float16) else gw  # many small additions: they would round each time
    return scatter(exact.flatten(1, 2), geometry, size).to(gw.dtype).clone(memory_format=layout)


def convolve_weight_gradient(gy: Tensor, x: Tensor, geometry: Geometry, groups: int, layout: torch.memory_format) -> Tensor:
    """The gradient of the weight, `(N, O, *positions), (N, C, *size) -> (O, C/G, *kernel)`."""
    equation = in_dimensions("ngoij,ngcijuv->gocuv", geometry.dimensions)
    gw = torch.einsum(equation, split(gy, 1, groups), split(windows(x, geometry), 1, groups))
    return gw.flatten(0, 1).clone(memory_format=layout)


def split(x: Tensor, dim: int, groups: int) -> Tensor:
    """The channels of dimension `dim` in `groups` equal groups, as a new dimension before it; a view."""
    return x.unflatten(dim, (groups, -1))
