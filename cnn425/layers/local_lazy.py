"""Local layers that take the number of channels and the input size from their first input."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import UninitializedParameter

from cnn425.layers import arguments
from cnn425.layers.local import LocallyConnected, LocallyConnected1d, LocallyConnected2d, LocallyConnected3d


class _Lazy(LazyModuleMixin, LocallyConnected):
    """A local layer that takes channels and input size from its first input, and then becomes an ordinary local layer."""

    weight: Any
    bias: Any

    def __init__(
        self,
        out_channels: int,
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
        sharing = share, tile
        super().__init__(0, out_channels, 0, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype, *sharing)

    def _create_parameters(self, bias: bool | str, device: Any, dtype: torch.dtype | None) -> None:
        self.bias_per_channel = bias == "channel"
        uninitialized: Any = UninitializedParameter  # torch's stub knows none of its arguments
        self.weight = uninitialized(device=device, dtype=dtype)
        self.register_parameter("bias", uninitialized(device=device, dtype=dtype) if bias else None)

    def initialize_parameters(self, input: Tensor) -> None:
        """Take channels and size from the first image; draw the parameters, unless they have been loaded."""
        arguments.check_input(type(self).__name__, input.shape, self.dimensions)
        loaded = not self.has_uninitialized_params()
        self.in_channels, self.input_size = input.shape[-self.dimensions - 1], tuple(input.shape[-self.dimensions :])
        if self.in_channels % self.groups:
            raise ValueError("in_channels must be divisible by groups")
        if loaded:
            return
        self.weight.materialize(self.weight_shape)
        if self.bias is not None:
            self.bias.materialize((self.out_channels,) if self.bias_per_channel else self.bias_shape)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weight and bias anew, once they exist."""
        if not self.has_uninitialized_params():
            super().reset_parameters()

    def extra_repr(self) -> str:
        """The arguments known so far."""
        return f"{self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding!r}"


class LazyLocallyConnected1d(_Lazy, LocallyConnected1d):
    """`LocallyConnected1d` without in_channels and input_size, which are taken from the first input."""

    cls_to_become = LocallyConnected1d


class LazyLocallyConnected2d(_Lazy, LocallyConnected2d):
    """`LocallyConnected2d` without in_channels and input_size, which are taken from the first input."""

    cls_to_become = LocallyConnected2d


class LazyLocallyConnected3d(_Lazy, LocallyConnected3d):
    """`LocallyConnected3d` without in_channels and input_size, which are taken from the first input."""

    cls_to_become = LocallyConnected3d
