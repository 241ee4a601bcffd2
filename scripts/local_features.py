"""What each locally connected layer in existence can do: ours is tried, the others' columns are from their sources."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from compare_layers import small

import cnn425.nn as nn
from cnn425.agreement import derivatives, describe, transforms

PEERS = ("feature", "cnn425", "flax ConvLocal", "Keras 2", "forum snippet")


def makes(**options: Any) -> Callable[[], bool]:
    """Whether our two-dimensional Module with these options computes something."""

    def check() -> bool:
        layer = nn.LocallyConnected2d(2, 4, (6, 5), 3, **options)
        return bool(layer(torch.randn(2, 2, 6, 5)).isfinite().all())

    return check


def starts_like_a_convolution() -> bool:
    """Output standard deviations of a local layer and a convolution, before training, within a tenth."""
    torch.manual_seed(0)
    x = torch.randn(64, 3, 28, 28)
    deviations = [layer(x).std() for layer in (nn.LocallyConnected2d(3, 8, 28, 5, bias=False), nn.Conv2d(3, 8, 5, bias=False))]
    return abs(deviations[0] / deviations[1] - 1) < 0.1


def every_dimension() -> bool:
    """One, two and three dimensions."""
    kinds = (nn.LocallyConnected1d, nn.LocallyConnected2d, nn.LocallyConnected3d)
    return all(kind(1, 2, 5, 3)(torch.randn(2, 1, *[5] * d)).shape == (2, 2, *[3] * d) for d, kind in enumerate(kinds, 1))


def converts() -> bool:
    """From a convolution and back."""
    conv = nn.Conv2d(2, 3, 3)
    layer, x = nn.LocallyConnected2d.from_conv(conv, 6), torch.randn(2, 2, 6, 6)
    return torch.allclose(layer(x), conv(x), atol=1e-5) and torch.allclose(layer.to_conv().weight, conv.weight, atol=1e-6)


def lazy() -> bool:
    """An input size learnt from the first image."""
    return nn.LazyLocallyConnected2d(3, 3)(torch.randn(1, 2, 6, 6)).shape == (1, 3, 4, 4)


def differentiates() -> bool:
    """First and second derivatives."""
    function, _, inputs = small("local2d")
    return not any(derivatives(function, inputs).values())


def transforms_well() -> bool:
    """torch.func."""
    return not any(transforms(*small("local2d")).values())


# Feature, ours (tried when the table is made), flax.linen.ConvLocal, Keras 2's LocallyConnected1D/2D, the snippet of PyTorch's forum.
# What the others can do was read from their sources: flax 0.12.8, tf_keras 2.21; docs/locally_connected.md says more.
LOCAL: tuple[tuple[str, Callable[[], bool], str, str, str], ...] = (
    ("1, 2 and 3 dimensions", every_dimension, "any", "1, 2", "2"),
    ("stride", makes(stride=(2, 1)), "yes", "yes", "yes"),
    ("dilation", makes(dilation=2, padding=1), "yes", "no", "no"),
    ("groups", makes(groups=2), "no", "no", "no"),
    ("padding in pixels", makes(padding=(1, 2)), "yes", "no", "no"),
    ("padding low and high apart", makes(padding=((0, 1), (2, 0))), "yes", "no", "no"),
    ("'same', also strided", makes(padding="same", stride=2), "yes", "2 of 3 implementations", "no"),
    ("padding modes: reflect, replicate, circular", makes(padding=1, padding_mode="reflect"), "circular, reflect", "no", "no"),
    ("bias per position", makes(bias=True), "yes", "yes", "yes"),
    ("bias per channel", makes(bias="channel"), "no", "no", "no"),
    ("input size from the first image", lazy, "yes", "yes", "no"),
    ("starts like a convolution (fan-in without positions)", starts_like_a_convolution, "no", "no", "no"),
    ("from a convolution and back", converts, "no", "no", "no"),
    ("derivatives of every order", differentiates, "yes", "first order", "yes"),
    ("vmap, forward mode, per-sample gradients", transforms_well, "yes", "no", "yes"),
)


def local_features() -> list[tuple[str, str, str, str, str]]:
    """The feature table of locally connected layers, ours tried now."""
    rows = []
    for name, check, flax, keras, forum in LOCAL:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                ours = "yes" if check() else "no"
            except Exception as error:
                ours = f"no: {describe(error)}"
        rows.append((name, ours, flax, keras, forum))
    return rows
