"""Locally connected: every window of the image has its own weights.

    forward                    y[n,o,i,j]          = sum over c,u,v of  windows[n,c,i,j,u,v] * w[i,j,o,c,u,v] + b[o,i,j] ncijuv,ijocuv->noij
    gradient of the weight     gw[i,j,o,c,u,v]     = sum over n     of  gy[n,o,i,j] * windows[n,c,i,j,u,v]               noij,ncijuv->ijocuv
    gradient of the windows    gwin[n,c,i,j,u,v]   = sum over o     of  gy[n,o,i,j] * w[i,j,o,c,u,v]                     noij,ijocuv->ncijuv
    gradient of the image      gx = scatter(gwin): each pixel is the sum over all windows that contain it
    gradient of the bias       gb[o,i,j]           = sum over n     of  gy[n,o,i,j]

A convolution is this with the letters i, j of the weight deleted: the gradient of its weight then sums over i, j. The first three lines are
bilinear, and the derivative of each is made of the other two. `cnn425.layers.bilinear` defines them once, as Functions, for both layers.
`cnn425.algorithms` decides how the sums are computed.

Between a local layer and a convolution, positions share sets of weights: (a, b) takes the place of (i, j) in the weight, and the gradient
of a set is the sum over its positions. Position (i, j) uses

    in blocks of s x t         the set (i // s, j // t)       Taigman et al. 2014, "DeepFace"; Sun et al. 2014, "DeepID"
    in tiles of s x t          the set (i % s, j % t)         Ngiam et al. 2010, "Tiled convolutional neural networks"
"""

import math
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor

from cnn425 import compat
from cnn425.layers import arguments
from cnn425.layers.arguments import applied
from cnn425.layers.bilinear import output
from cnn425.layers.local_arguments import checked, checked_shared, local_geometry
from cnn425.layers.local_conversion import copied_from, shared, unshared
from cnn425.windows import Geometry, Sharing

# ---- The functions: arguments and checks -------------------------------------------------------------------------------------------------


def _connected(x: Tensor, w: Tensor, b: Tensor | None, geometry: Geometry, groups: int, sharing: Sharing) -> Tensor:
    arguments.check_same_type(x, w, b)
    return output(x, w, geometry, groups, sharing, b)


LOCALLY_CONNECTED = "locally_connected", checked, _connected


def locally_connected1d(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> Tensor:
    """The local layer of a signal: `(N, C, H)` or `(C, H)` with weight `(I, O, C/groups, U) -> (N, O, I)`. See `locally_connected2d`."""
    return applied(LOCALLY_CONNECTED, locally_connected1d, 1, input, weight, bias, stride, padding, dilation, groups)


def locally_connected2d(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> Tensor:
    """The local layer of an image, `y[n,o,i,j] = b[o,i,j] + sum over c,u,v of x[n, c, i*s + u*d - p, j*s + v*d - p] * w[i,j,o,c,u,v]`.

    Slides "Locally connected layer"; Gregor and LeCun 2010. Arguments as for a convolution; with `weight.expand(I, J, ...)` it is one.

    input     `(N, C, H, W)` or `(C, H, W)`
    weight    `(I, J, O, C/groups, U, V)`, of any strides
    bias      `(O, I, J)`: one per neuron; `(O,)`: one per channel; or None
    stride, dilation, groups    as in `conv2d`
    padding   pixels of zeros around the image: an int, one per dimension, one (low, high) pair per dimension, 'valid' (none), or 'same'
              (`I = ceil(H / s)`, with any stride; an odd pixel goes to the high side)
    returns   `(N, O, I, J)` or `(O, I, J)`, with `I = (H + p_low + p_high - d(U - 1) - 1) // s + 1`

    Raises TypeError for an argument of the wrong type and RuntimeError for shapes, sizes or dtypes that do not fit, as a convolution does.
    """
    return applied(LOCALLY_CONNECTED, locally_connected2d, 2, input, weight, bias, stride, padding, dilation, groups)


def locally_connected3d(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> Tensor:
    """The local layer of a volume: `(N, C, D, H, W)` with weight `(I, J, K, O, C/groups, T, U, V)`. See `locally_connected2d`."""
    return applied(LOCALLY_CONNECTED, locally_connected3d, 3, input, weight, bias, stride, padding, dilation, groups)


FUNCTIONS = {1: locally_connected1d, 2: locally_connected2d, 3: locally_connected3d}


def shared_local(input: Tensor, weight: Tensor, bias: Tensor | None, share: tuple[int, ...], tile: Any, *settings: Any) -> Tensor:
    """The local layer whose weight `(*sets, O, C/groups, *kernel)` and bias `(O, *sets)` or `(O,)` belong to sets of positions.

    `settings` are the stride, padding, dilation and groups of `locally_connectedNd`. No weight is repeated.
    """
    layer = "LocallyConnected", checked_shared, _connected
    return applied(layer, shared_local, len(share), input, weight, bias, share, tile, *settings)


# ---- The Modules: parameters -------------------------------------------------------------------------------------------------------------

PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


class LocallyConnected(torch.nn.Module):
    """A local layer that owns its weight `(*sets, O, C/groups, *kernel)` and bias; without `share` and `tile` each position is a set.

    in_channels, out_channels, kernel_size, stride, dilation, groups, padding_mode    as in `torch.nn.ConvNd`
    input_size    pixels of the image along each dimension (an int: the same for all); weights belong to positions, so it is fixed
    padding       as in `locally_connectedNd`: int, one per dimension, (low, high) pairs, 'valid', 'same' (also with strides)
    share         positions per block of neighbours that use one set of weights: an int or one per dimension; the last may be smaller
    tile          instead of share: positions whose indices are equal modulo `tile` use one set; an int or one per dimension
    bias          True: one per channel and set, `(O, *sets)`; 'channel': one per output channel, `(O,)`, as in a convolution; False: none

    Weights and biases start uniform in +-1/sqrt(fan-in), fan-in = C/groups * prod(kernel): the distribution of torch's convolution. The
    number of positions does not matter, since each neuron is connected to one window.
    """

    dimensions: int
    _convolution = "Conv"  # of torch.nn, without its dimensions
    weight: torch.nn.Parameter
    bias: torch.nn.Parameter | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        input_size: int | Sequence[int],
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: Any = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        bias: bool | str = True,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: torch.dtype | None = None,
        share: int | Sequence[int] = 1,
        tile: int | Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        if groups <= 0:
            raise ValueError("groups must be a positive integer")
        if in_channels % groups:
            raise ValueError("in_channels must be divisible by groups")
        if out_channels % groups:
            raise ValueError("out_channels must be divisible by groups")
        if isinstance(padding, str) and padding not in ("same", "valid"):
            raise ValueError(f"Invalid padding string {padding!r}, should be one of {{'same', 'valid'}}")
        if padding_mode not in PADDING_MODES:
            raise ValueError(f"padding_mode must be one of {PADDING_MODES}, but got padding_mode={padding_mode!r}")
        if bias not in (True, False, "channel"):
            raise ValueError(f"bias must be True (one per neuron), 'channel' (one per output channel) or False, but got bias={bias!r}")
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size, self.stride, self.dilation, self.input_size = (
            arguments.per_dimension(name, argument, value, self.dimensions)
            for argument, value in (("kernel_size", kernel_size), ("stride", stride), ("dilation", dilation), ("input_size", input_size))
        )
        if isinstance(padding, str):
            self.padding: Any = padding
        elif isinstance(padding, (tuple, list)) and padding and all(isinstance(pair, (tuple, list)) for pair in padding):
            self.padding = tuple(map(tuple, padding))
        else:
            self.padding = arguments.per_dimension(name, "padding", padding, self.dimensions)
        self.padding_mode = padding_mode
        self.share = arguments.per_dimension(name, "share", share, self.dimensions)
        self.tile = None if tile is None else arguments.per_dimension(name, "tile", tile, self.dimensions)
        if min(self.share + (self.tile or (1,))) < 1 or (self.tile and max(self.share) > 1):
            raise ValueError(f"share and tile must be positive, and one of them at most may be given, but got share={share}, tile={tile}")
        self._create_parameters(bias, device, dtype)

    def _create_parameters(self, bias: bool | str, device: Any, dtype: torch.dtype | None) -> None:
        self.weight = torch.nn.Parameter(torch.empty(self.weight_shape, device=device, dtype=dtype))
        shape = (self.out_channels,) if bias == "channel" else self.bias_shape
        self.register_parameter("bias", torch.nn.Parameter(torch.empty(shape, device=device, dtype=dtype)) if bias else None)
        self.reset_parameters()

    @property
    def geometry(self) -> Geometry:
        """The windows of an image of `input_size` pixels."""
        return local_geometry(type(self).__name__, self.kernel_size, self.stride, self.padding, self.dilation, self.input_size)

    @property
    def output_size(self) -> tuple[int, ...]:
        """The number of positions along each dimension."""
        positions = self.geometry.positions(self.input_size)
        if min(positions) <= 0:
            raise ValueError(
                f"{type(self).__name__}: no window of kernel_size={self.kernel_size}, dilation={self.dilation}, padding={self.padding} "
                f"fits into an image of {arguments.times(self.input_size)} pixels"
            )
        return positions

    @property
    def sets(self) -> tuple[int, ...]:
        """The number of sets of weights along each dimension."""
        if self.tile and any(n > p for n, p in zip(self.tile, self.output_size, strict=True)):
            raise ValueError(f"tile={self.tile} is larger than the output of {arguments.times(self.output_size)} positions")
        return Sharing(self.share, self.tile).sets(self.output_size)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """`(*sets, O, C/groups, *kernel)`."""
        return (*self.sets, self.out_channels, self.in_channels // self.groups, *self.kernel_size)

    @property
    def bias_shape(self) -> tuple[int, ...]:
        """`(O, *sets)`."""
        return (self.out_channels, *self.sets)

    @property
    def fan_in(self) -> int:
        """The number of inputs of a unit: `C/groups * prod(kernel)`."""
        return self.in_channels // self.groups * math.prod(self.kernel_size)

    def reset_parameters(self) -> None:
        """Draw weight and bias anew, uniform in +-1/sqrt(fan-in)."""
        bound = 1 / math.sqrt(self.fan_in) if self.fan_in else 0.0
        for parameter in (self.weight, self.bias):
            if parameter is not None:
                torch.nn.init.uniform_(parameter, -bound, bound)

    def forward(self, input: Tensor) -> Tensor:
        """The local layer of `input` with this layer's weight and bias."""
        d = self.dimensions
        if isinstance(input, Tensor) and input.ndim > d and input.shape[input.ndim - d :] != self.input_size:
            raise RuntimeError(
                f"{type(self).__name__} was made for an input of {arguments.times(self.input_size)} pixels (its input_size), "
                f"but got an input of {arguments.times(input.shape[input.ndim - d :])} pixels (input{list(input.shape)})"
            )
        padding = self.padding
        if self.padding_mode != "zeros":
            pads = [pixels for pair in reversed(self.geometry.padding) for pixels in pair]
            input = torch.nn.functional.pad(input, pads, mode=self.padding_mode)
            padding = 0
        return self.connect(input, padding)

    def connect(self, input: Tensor, padding: Any) -> Tensor:
        """The layer's output for an image of the right size, already padded unless the padding is zeros."""
        settings = self.stride, padding, self.dilation, self.groups
        if self.tile or max(self.share) > 1:
            return shared_local(input, self.weight, self.bias, self.share, self.tile, *settings)
        return FUNCTIONS[self.dimensions](input, self.weight, self.bias, *settings)

    def extra_repr(self) -> str:
        """The arguments that differ from their defaults, the number of parameters and the memory they take."""
        text = (
            f"{self.in_channels}, {self.out_channels}, input_size={self.input_size}, kernel_size={self.kernel_size}, stride={self.stride}"
        )
        defaults = {"padding": (0,) * self.dimensions, "dilation": (1,) * self.dimensions, "groups": 1, "padding_mode": "zeros"}
        defaults |= {"share": (1,) * self.dimensions, "tile": None}
        text += "".join(f", {name}={getattr(self, name)!r}" for name, default in defaults.items() if getattr(self, name) != default)
        if self.bias is None:
            text += ", bias=False"
        elif self.bias.ndim == 1:
            text += ", bias='channel'"
        owned = list(self.parameters())
        memory = sum(parameter.numel() * parameter.element_size() for parameter in owned)
        return f"{text}, parameters={sum(parameter.numel() for parameter in owned):,}, memory={memory / 2**20:.3g} MiB"

    @classmethod
    def from_conv(cls, conv: compat.ConvNd, input_size: int | Sequence[int], share: Any = 1, tile: Any = None) -> Self:
        """The local layer that computes what `conv` does on images of `input_size` pixels, each set with its own copy of the weights.

        The bias stays one per channel. Device, dtype, training flag and `requires_grad` are kept.
        """
        return copied_from(conv, cls, input_size, share=share, tile=tile)

    def to_conv(self) -> compat.ConvNd:
        """The `torch.nn.ConvNd` whose weight and bias are the averages of this layer's over all positions: the inverse of `from_conv`."""
        return shared(self)

    def unshared(self) -> "LocallyConnected":
        """The layer that computes the same with separate weights at each position, copied from these weights."""
        return unshared(self, LOCAL[self.dimensions])


class LocallyConnected1d(LocallyConnected):
    """`(N, C, H) -> (N, O, I)`; see `locally_connected1d`, and the base class for the arguments."""

    dimensions = 1


class LocallyConnected2d(LocallyConnected):
    """`(N, C, H, W) -> (N, O, I, J)`; see `locally_connected2d`, and the base class for the arguments."""

    dimensions = 2


class LocallyConnected3d(LocallyConnected):
    """`(N, C, D, H, W) -> (N, O, I, J, K)`; see `locally_connected3d`, and the base class for the arguments."""

    dimensions = 3


LOCAL = {1: LocallyConnected1d, 2: LocallyConnected2d, 3: LocallyConnected3d}
