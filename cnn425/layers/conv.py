"""Convolution: all windows of the image share one set of weights.

    forward                    y[n,o,i,j]          = sum over c, u, v  of  windows[n,c,i,j,u,v] * w[o,c,u,v]  + b[o]      ncijuv,ocuv->noij
    gradient of the weight     gw[o,c,u,v]         = sum over n, i, j  of  gy[n,o,i,j] * windows[n,c,i,j,u,v]             noij,ncijuv->ocuv
    gradient of the windows    gwin[n,c,i,j,u,v]   = sum over o        of  gy[n,o,i,j] * w[o,c,u,v]                       noij,ocuv->ncijuv
    gradient of the image      gx = scatter(gwin): each pixel is the sum over all windows that contain it
    gradient of the bias       gb[o]               = sum over n, i, j  of  gy[n,o,i,j]

This is a cross-correlation, as in every framework: the kernel is not flipped. The first three lines are bilinear, and the derivative of
each is made of the other two. `cnn425.layers.bilinear` defines them once, as Functions, for this layer and for the local layer, whose
weight has the additional letters i, j. `cnn425.algorithms` decides how the sums are computed.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cnn425 import compat
from cnn425.layers import arguments
from cnn425.layers.arguments import applied
from cnn425.layers.bilinear import is_signal_channels_last, output
from cnn425.windows import Geometry

# ---- The functions: arguments and checks -------------------------------------------------------------------------------------------------


@arguments.remembered
def _checked(dimensions: int, input: torch.Size, weight: torch.Size, bias: torch.Size | None, *settings: Any) -> tuple[Geometry, int]:
    """The windows, and the number of groups as an int."""
    function, (stride, padding, dilation, groups) = f"conv{dimensions}d", settings
    arguments.check_types(function, dimensions, groups, stride=stride, padding=padding, dilation=dilation)
    if len(weight) < 3:
        raise RuntimeError(f"weight should have at least three dimensions, but got weight of size {list(weight)}")
    geometry = arguments.geometry(function, weight[2:], stride, padding, dilation)
    groups = arguments.check_groups(groups)
    x = arguments.check_input(function, input, dimensions)
    if len(weight) != len(x):
        raise RuntimeError(
            f"Expected {len(weight)}-dimensional input for {len(weight)}-dimensional weight {list(weight)}, "
            f"but got {len(x)}-dimensional input of size {list(x)} instead"
        )
    arguments.check_channels(x, weight, groups, outputs=weight[0], inputs=weight[1])
    if bias is not None and bias != weight[:1]:
        raise RuntimeError(
            f"Given weight of size {list(weight)}, expected bias to be 1-dimensional with {weight[0]} elements, "
            f"but got bias of size {list(bias)} instead"
        )
    arguments.check_fits(x, geometry)
    return geometry, groups


def _convolution(x: Tensor, w: Tensor, b: Tensor | None, geometry: Geometry, groups: int) -> Tensor:
    """The convolution; for complex32 and for channels-last weights of signals in the precision and memory layout of torch."""
    arguments.check_same_type(x, w, b, geometry)
    if x.dtype == torch.complex32:  # torch has no matrix product of complex32
        x, w, b = x.to(torch.complex64), w.to(torch.complex64), None if b is None else b.to(torch.complex64)
        return _convolution(x, w, b, geometry, groups).to(torch.complex32)
    if w.ndim == 3 and is_signal_channels_last(w):
        y = output(x.contiguous().unsqueeze(2), w.unsqueeze(2), geometry.as_row(), groups, None, b).squeeze(2)
    else:
        y = output(x, w, geometry, groups, None, b)
    return y if x.shape[1] else y[:, :0]  # as in torch: no input channels, no output channels, whatever the shape of the weight


CONV = "conv", _checked, _convolution


def conv1d(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> Tensor:
    """The convolution of a signal: `(N, C, H)` or `(C, H)` with weight `(O, C/groups, U) -> (N, O, I)`. See `conv2d`."""
    return applied(CONV, conv1d, 1, input, weight, bias, stride, padding, dilation, groups)


def conv2d(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> Tensor:
    """The convolution of an image, `y[n,o,i,j] = b[o] + sum over c,u,v of x[n, c, i*s + u*d - p, j*s + v*d - p] * w[o,c,u,v]`.

    Slides "Convolution"; LeCun et al. 1989. A drop-in for `torch.nn.functional.conv2d`.

    input     `(N, C, H, W)` or `(C, H, W)`
    weight    `(O, C/groups, U, V)`
    bias      `(O,)` or None
    stride    pixels from window to window; an int or one per dimension
    padding   pixels of zeros around the image: an int, one per dimension, 'valid' (none), or 'same' (output as large as input; stride 1)
    dilation  pixels from cell to cell inside a window
    groups    number of groups of channels, each computed on its own; groups = C is a depthwise convolution
    returns   `(N, O, I, J)` or `(O, I, J)`, with `I = (H + 2p - d(U - 1) - 1) // s + 1`

    Raises TypeError for an argument of the wrong type and RuntimeError for shapes, sizes or dtypes that do not fit, as torch does.
    """
    return applied(CONV, conv2d, 2, input, weight, bias, stride, padding, dilation, groups)


def conv3d(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> Tensor:
    """The convolution of a volume: `(N, C, D, H, W)` or `(C, D, H, W)` with weight `(O, C/groups, T, U, V)`. See `conv2d`."""
    return applied(CONV, conv3d, 3, input, weight, bias, stride, padding, dilation, groups)


# ---- The Modules: parameters -------------------------------------------------------------------------------------------------------------


class _Convolution(compat.ConvNd):
    """A convolution that owns its weight `(O, C/groups, *kernel)` and bias `(O,)`.

    Constructor, parameters and state_dict are those of the torch.nn namesake, which is the base class: weights and bias start uniform in
    +-1/sqrt(fan-in), fan-in = C/groups * prod(kernel). Only the computation is ours.
    """

    _function: Callable[..., Tensor]

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        padding: Any = self.padding
        if self.padding_mode != "zeros":
            input = torch.nn.functional.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            padding = 0
        return self._function(input, weight, bias, self.stride, padding, self.dilation, self.groups)

    def forward(self, input: Tensor) -> Tensor:
        """The convolution of `input` with this layer's weight and bias."""
        return self._conv_forward(input, self.weight, self.bias)


class Conv1d(_Convolution, torch.nn.Conv1d):
    """`(N, C, H) -> (N, O, I)`; see `conv1d` and `torch.nn.Conv1d`."""

    _function = staticmethod(conv1d)


class Conv2d(_Convolution, torch.nn.Conv2d):
    """`(N, C, H, W) -> (N, O, I, J)`; see `conv2d` and `torch.nn.Conv2d`."""

    _function = staticmethod(conv2d)


class Conv3d(_Convolution, torch.nn.Conv3d):
    """`(N, C, D, H, W) -> (N, O, I, J, K)`; see `conv3d` and `torch.nn.Conv3d`."""

    _function = staticmethod(conv3d)
