"""The definition: a convolution or a local layer and its two gradients as einsums over the windows. Every other way is judged by this one.

    output            noij    from  ncijuv,ocuv   or  ncijuv,ijocuv      every window times the shared weight, or its own
    weight gradient   ocuv    from  noij,ncijuv   (ijocuv for a local layer)   the same string with output and weight exchanged
    window gradient   ncijuv  from  noij,ocuv     or  noij,ijocuv        the same string with output and windows exchanged

`scatter` returns the window gradient to pixels. Groups are one letter more, g, in front of the channels of both operands.

Cost: 2*N*O*C/G*I*J*U*V operations per map. Einsum copies the windows before it multiplies, so U*V copies of the image are written and
read. Right for every dtype (integers too; complex numbers without conjugation; half precision is computed in float32 and rounded once),
any dimension, empty batches and channels; slow.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from cnn425.windows import Geometry, in_dimensions, scatter, windows

HALF = (torch.bfloat16, torch.float16)


def output(x: Tensor, w: Tensor, geometry: Geometry, groups: int, local: bool = False) -> Tensor:
    """The output, `(N, C, *size), (O, C/G, *kernel) -> (N, O, *positions)`; with `local` the weight is `(*positions, O, C/G, *kernel)`."""
    if x.dtype in HALF:
        return output(x.float(), w.float(), geometry, groups, local).to(x.dtype)
    d = geometry.dimensions
    equation = in_dimensions(f"ngcijuv,{'ij' if local else ''}gocuv->ngoij", d)
    return torch.einsum(equation, split(windows(x, geometry), 1, groups), split(w, d if local else 0, groups)).flatten(1, 2)


def input_gradient(gy: Tensor, w: Tensor, geometry: Geometry, groups: int, size: Sequence[int], local: bool = False) -> Tensor:
    """The gradient of the input, `(N, O, *positions), weight -> (N, C, *size)`."""
    if gy.dtype in HALF:
        return input_gradient(gy.float(), w.float(), geometry, groups, size, local).to(gy.dtype)
    d = geometry.dimensions
    equation = in_dimensions(f"ngoij,{'ij' if local else ''}gocuv->ngcijuv", d)
    gwin = torch.einsum(equation, split(gy, 1, groups), split(w, d if local else 0, groups))
    return scatter(gwin.flatten(1, 2), geometry, size)


def weight_gradient(gy: Tensor, x: Tensor, geometry: Geometry, groups: int, local: bool = False) -> Tensor:
    """The gradient of the weight, `(N, O, *positions), (N, C, *size) -> (O, C/G, *kernel)`, or one for every position."""
    if gy.dtype in HALF:
        return weight_gradient(gy.float(), x.float(), geometry, groups, local).to(gy.dtype)
    d = geometry.dimensions
    equation = in_dimensions(f"ngoij,ngcijuv->{'ij' if local else ''}gocuv", d)
    gw = torch.einsum(equation, split(gy, 1, groups), split(windows(x, geometry), 1, groups))
    return gw.flatten(d if local else 0, d + 1 if local else 1)


def split(x: Tensor, dim: int, groups: int) -> Tensor:
    """The channels of dimension `dim` in `groups` equal groups, as a new dimension before it; a view."""
    return x.unflatten(dim, (groups, -1))
