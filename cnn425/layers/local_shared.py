"""Between local and convolution: positions that share one set of weights, in blocks of neighbours or in tiles.

    forward                   y[n,o,i,j]        = b[o,a,b] + sum over c,u,v of windows[n,c,i,j,u,v] * w[a,b,o,c,u,v]
    blocks of s x t           (a, b) = (i // s, j // t)    Taigman et al. 2014, "DeepFace"; Sun et al. 2014, "DeepID"
    tiles of s x t            (a, b) = (i % s, j % t)      Ngiam et al. 2010, "Tiled convolutional neural networks"
    gradient of the weight    the sum over the positions that share a set

The three maps are those of the local layer, and `cnn425.windows.Sharing` says which set each position uses: no weight is repeated.
"""

from typing import Any

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_variadic

from cnn425.layers import arguments
from cnn425.layers.bilinear import output
from cnn425.layers.function import cast_for_autocast
from cnn425.windows import Geometry, Sharing


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
    y = output(x, w, geometry, groups, Sharing(share, tile), b)
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
