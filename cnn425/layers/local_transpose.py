"""Locally connected, transposed: every pixel of the input writes a window with weights of its own.

    forward    y = scatter(ywin) + b, ywin[n,o,i,j,u,v] = sum over c  of  x[n,c,i,j] * w[i,j,c,o,u,v]            ncij,ijcouv->noijuv

It is the gradient of the image of a local layer, as a layer: the Function `InputGradient` of `cnn425.layers.bilinear`, whose derivatives
are the local layer and the gradient of its weight. With `weight.expand(*in, ...)` it is `conv_transposeNd`. pytorch#499 asked for it.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor

from cnn425 import compat
from cnn425.layers import arguments, conv_transpose
from cnn425.layers.arguments import applied
from cnn425.layers.local import LocallyConnected
from cnn425.layers.local_conversion import copied_from, copy_parameters, empty
from cnn425.windows import Geometry

SETTINGS = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "output_padding", "groups", "dilation")


TRANSPOSED = "locally_connected_transpose", partial(conv_transpose.checked, True), conv_transpose.transposed


def locally_connected_transpose1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Tensor:
    """The transposed local layer of a signal, with weight `(I, C, O/groups, U)`: `(N, C, I) -> (N, O, H)`.

    See `locally_connected_transpose2d`.
    """
    return applied(TRANSPOSED, locally_connected_transpose1d, 1, input, weight, bias, stride, padding, output_padding, groups, dilation)


def locally_connected_transpose2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Tensor:
    """The transposed local layer of an image: pixel (i, j) adds `x[n,c,i,j] * w[i,j,c,o,u,v]` to `y[n, o, i*s + u*d - p, j*s + v*d - p]`.

    The gradient with respect to the image of `locally_connected2d` with the same weight. Arguments are those of `conv_transpose2d`.

    input     `(N, C, I, J)` or `(C, I, J)`
    weight    `(I, J, C, O/groups, U, V)`, of any strides
    bias      `(O, H, W)`: one per neuron; `(O,)`: one per channel; or None
    returns   `(N, O, H, W)` or `(O, H, W)`, with `H = (I - 1) s - 2p + d (U - 1) + 1 + output_padding`
    """
    return applied(TRANSPOSED, locally_connected_transpose2d, 2, input, weight, bias, stride, padding, output_padding, groups, dilation)


def locally_connected_transpose3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Tensor:
    """The transposed local layer of a volume: weight `(I, J, K, C, O/groups, T, U, V)`. See `locally_connected_transpose2d`."""
    return applied(TRANSPOSED, locally_connected_transpose3d, 3, input, weight, bias, stride, padding, output_padding, groups, dilation)


FUNCTIONS = {1: locally_connected_transpose1d, 2: locally_connected_transpose2d, 3: locally_connected_transpose3d}


class LocallyConnectedTranspose(LocallyConnected):
    """A transposed local layer that owns its weight `(*input_size, C, O/groups, *kernel)` and bias.

    Arguments as in `torch.nn.ConvTransposeNd`, without `padding_mode`; `input_size` and `bias` (one per neuron, 'channel' or False) as in
    `LocallyConnectedNd`. Weights and biases start uniform in +-1/sqrt(O/groups * prod(kernel)), as those of torch's transposed convolution.
    """

    _convolution = "ConvTranspose"

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        input_size: int | Sequence[int],
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 0,
        output_padding: int | Sequence[int] = 0,
        groups: int = 1,
        bias: bool | str = True,
        dilation: int | Sequence[int] = 1,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        name, sides = type(self).__name__, (("padding", padding), ("output_padding", output_padding))
        pads, self.output_padding = (arguments.per_dimension(name, what, value, self.dimensions) for what, value in sides)
        super().__init__(
            in_channels, out_channels, input_size, kernel_size, stride, pads, dilation, groups, bias, device=device, dtype=dtype
        )

    def _windows(self) -> tuple[Geometry, tuple[int, ...]]:
        settings = self.stride, self.padding, self.output_padding, self.dilation, torch.Size((1, 1, *self.input_size))
        return conv_transpose.transposed_geometry(type(self).__name__, self.kernel_size, *settings)

    @property
    def geometry(self) -> Geometry:
        """The windows of the output that the pixels of the input write."""
        return self._windows()[0]

    @property
    def output_size(self) -> tuple[int, ...]:
        """Pixels of the output along each dimension."""
        name, size = type(self).__name__, self._windows()[1]
        if min(size) <= 0:
            pixels = arguments.times(self.input_size)
            raise ValueError(f"{name}: padding={self.padding} takes away all of the output of an input of {pixels} pixels")
        return size

    @property
    def sets(self) -> tuple[int, ...]:
        """The number of sets of weights along each dimension: one per pixel of the input."""
        return self.input_size

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """`(*input_size, C, O/groups, *kernel)`."""
        return (*self.input_size, self.in_channels, self.out_channels // self.groups, *self.kernel_size)

    @property
    def bias_shape(self) -> tuple[int, ...]:
        """`(O, *output_size)`."""
        return (self.out_channels, *self.output_size)

    @property
    def fan_in(self) -> int:
        """Weights per output, as torch counts them: `O/groups * prod(kernel)`."""
        return self.out_channels // self.groups * math.prod(self.kernel_size)

    def connect(self, input: Tensor, padding: Any) -> Tensor:
        """The transposed local layer of an image that has the right size."""
        settings = self.stride, padding, self.output_padding, self.groups, self.dilation
        return FUNCTIONS[self.dimensions](input, self.weight, self.bias, *settings)

    def extra_repr(self) -> str:
        """The arguments that differ from their defaults, the number of parameters and the memory they take."""
        more = f", output_padding={self.output_padding}" if any(self.output_padding) else ""
        return super().extra_repr().replace(", parameters=", f"{more}, parameters=", 1)

    @classmethod
    def from_conv(cls, conv: compat.ConvNd, input_size: int | Sequence[int]) -> Self:  # type: ignore[override]
        """The layer that computes what the transposed convolution `conv` does on images of `input_size` pixels."""
        return copied_from(conv, cls, input_size, SETTINGS)

    def unshared(self) -> LocallyConnected:
        """A copy of this layer, whose positions share no weights."""
        kind = "channel" if self.bias is not None and self.bias.ndim == 1 else self.bias is not None
        found: LocallyConnected = empty(LOCAL_TRANSPOSE[self.dimensions], self, SETTINGS, input_size=self.input_size, bias=kind)
        copy_parameters(self, found, self.weight, self.bias)
        return found

    def to_conv(self) -> compat.ConvNd:
        """The `torch.nn.ConvTransposeNd` whose weight and bias are this layer's averages over all pixels."""
        kind = getattr(torch.nn, f"ConvTranspose{self.dimensions}d")
        conv: compat.ConvNd = empty(kind, self, SETTINGS, bias=self.bias is not None)
        bias = self.bias if self.bias is None or self.bias.ndim == 1 else self.bias.flatten(1).mean(1)
        copy_parameters(self, conv, self.weight.flatten(0, self.dimensions - 1).mean(0), bias)
        return conv


class LocallyConnectedTranspose1d(LocallyConnectedTranspose):
    """`(N, C, I) -> (N, O, H)`; see `locally_connected_transpose1d`."""

    dimensions = 1


class LocallyConnectedTranspose2d(LocallyConnectedTranspose):
    """`(N, C, I, J) -> (N, O, H, W)`; see `locally_connected_transpose2d`, and the base class for the arguments."""

    dimensions = 2


class LocallyConnectedTranspose3d(LocallyConnectedTranspose):
    """`(N, C, I, J, K) -> (N, O, D, H, W)`; see `locally_connected_transpose3d`."""

    dimensions = 3


LOCAL_TRANSPOSE = {1: LocallyConnectedTranspose1d, 2: LocallyConnectedTranspose2d, 3: LocallyConnectedTranspose3d}
