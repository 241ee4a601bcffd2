"""Conversions between a convolution and a local layer: its weight copied to every position, or averaged over all positions."""

from collections.abc import Sequence
from typing import Any

import torch

from cnn425.compat import ConvNd


def copied_from(conv: ConvNd, local_type: Any, dimensions: int, input_size: int | Sequence[int]) -> Any:
    """The `local_type` that computes what `conv` does on images of `input_size` pixels."""
    if not isinstance(conv, getattr(torch.nn, f"Conv{dimensions}d")):
        raise TypeError(f"{local_type.__name__}.from_conv: conv must be a Conv{dimensions}d, but got {type(conv).__name__}")
    local = torch.nn.utils.skip_init(
        local_type, conv.in_channels, conv.out_channels, input_size, conv.kernel_size, conv.stride, conv.padding,
        conv.dilation, conv.groups,
        "channel" if conv.bias is not None else False, conv.padding_mode, device=conv.weight.device, dtype=conv.weight.dtype,
    )  # fmt: skip
    _copy(conv, local, conv.weight, conv.bias)
    return local


def shared(local: Any, padding: Sequence[tuple[int, int]]) -> ConvNd:
    """The convolution whose weight and bias are the averages of those of `local`, whose (low, high) padding on its image is `padding`."""
    d = len(padding)
    if isinstance(local.padding, str) and (local.padding == "valid" or max(local.stride) == 1):
        sides: Any = local.padding
    elif any(low != high for low, high in padding):
        raise ValueError(f"to_conv: a convolution pads both sides alike, but this layer's (low, high) padding is {tuple(padding)}")
    else:
        sides = tuple(low for low, _ in padding)
    conv = torch.nn.utils.skip_init(
        getattr(torch.nn, f"Conv{d}d"), local.in_channels, local.out_channels, local.kernel_size, local.stride, sides,
        local.dilation, local.groups,
        local.bias is not None, local.padding_mode, device=local.weight.device, dtype=local.weight.dtype,
    )  # fmt: skip
    bias = local.bias if local.bias is None or local.bias.ndim == 1 else local.bias.flatten(1).mean(1)
    _copy(local, conv, local.weight.mean(tuple(range(d))), bias)
    return conv


def _copy(source: Any, target: Any, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
    with torch.no_grad():
        target.weight.copy_(weight)
        if bias is not None:
            target.bias.copy_(bias)
            target.bias.requires_grad_(source.bias.requires_grad)
    target.weight.requires_grad_(source.weight.requires_grad)
    target.train(source.training)
