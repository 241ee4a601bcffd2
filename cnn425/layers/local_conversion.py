"""Conversions between local layers and convolutions: weights copied to every position, or averaged over all positions."""

from collections.abc import Sequence
from typing import Any

import torch

from cnn425.compat import ConvNd
from cnn425.windows import Sharing

SETTINGS = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")


def copied_from(conv: ConvNd, kind: Any, input_size: int | Sequence[int], names: Sequence[str] = SETTINGS, **more: Any) -> Any:
    """The local layer of type `kind` that computes what `conv` does on images of `input_size` pixels."""
    check_convolution(conv, kind)
    local = empty(kind, conv, names, input_size=input_size, bias=False if conv.bias is None else "channel", **more)
    copy_parameters(conv, local, conv.weight, conv.bias)
    return local


def check_convolution(conv: object, kind: Any) -> None:
    """Refuse anything but the convolution, transposed or not, that corresponds to local layers of type `kind`."""
    wanted = f"{kind._convolution}{kind.dimensions}d"
    if not isinstance(conv, getattr(torch.nn, wanted)):
        raise TypeError(f"{kind.__name__}.from_conv: conv must be a {wanted}, but got {type(conv).__name__}")


def shared(local: Any, weight: torch.Tensor | None = None) -> ConvNd:
    """The convolution whose weight and bias are the averages of those of `local`; the average weight may be given."""
    padding = local.geometry.padding
    if isinstance(local.padding, str) and (local.padding == "valid" or max(local.stride) == 1):
        sides: Any = local.padding
    elif any(low != high for low, high in padding):
        raise ValueError(f"to_conv: a convolution pads both sides alike, but this layer's (low, high) padding is {tuple(padding)}")
    else:
        sides = tuple(low for low, _ in padding)
    conv: ConvNd = empty(getattr(torch.nn, f"Conv{local.dimensions}d"), local, padding=sides, bias=local.bias is not None)
    sharing, positions, bias = Sharing(local.share, local.tile), local.output_size, local.bias
    if bias is not None and bias.ndim > 1:
        bias = sharing.mean(bias.movedim(0, -1), positions)
    copy_parameters(local, conv, sharing.mean(local.weight, positions) if weight is None else weight, bias)
    return conv


def unshared(local: Any, kind: Any, weight: torch.Tensor | None = None) -> Any:
    """The local layer of type `kind` that computes what `local` does with weights of its own at each position: copies, or `weight`."""
    sharing, positions, bias = Sharing(local.share, local.tile), local.output_size, local.bias
    found = empty(kind, local, input_size=local.input_size, bias=False if bias is None else "channel" if bias.ndim == 1 else True)
    if bias is not None and bias.ndim > 1:
        bias = sharing.copied(bias, positions, 1)
    copy_parameters(local, found, sharing.copied(local.weight, positions) if weight is None else weight, bias)
    return found


def empty(kind: Any, source: Any, names: Sequence[str] = SETTINGS, **changed: Any) -> Any:
    """A `kind` with the settings of the layer `source`, except those `changed`; its parameters are not initialised."""
    return torch.nn.utils.skip_init(kind, **(settings_of(source, names) | changed))


def settings_of(source: Any, names: Sequence[str]) -> dict[str, Any]:
    """The settings of these names of the layer `source`, its device and its dtype."""
    return {name: getattr(source, name) for name in names} | {"device": source.weight.device, "dtype": source.weight.dtype}


def check_own_parameters(layer: Any, function: str) -> None:
    """Refuse a layer whose weight or bias is computed from other tensors: what is written into it would be lost."""
    if computed := [name for name in ("weight", "bias") if name not in layer._parameters]:
        raise RuntimeError(
            f"{function}: {computed[0]} of layer is computed from other tensors; remove its parametrization or pruning first"
        )


def copy_parameters(source: Any, target: Any, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
    """Weight and bias written into those of `target`; training flag and `requires_grad` as those of `source`."""
    with torch.no_grad():
        target.weight.copy_(weight)
        if bias is not None:
            target.bias.copy_(bias)
            target.bias.requires_grad_(source.bias.requires_grad)
    target.weight.requires_grad_(source.weight.requires_grad)
    target.train(source.training)
