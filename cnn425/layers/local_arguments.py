"""The door of the locally connected layers: what they accept beyond a convolution's arguments, and what they say when they refuse.

Sizes are pixels.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from cnn425.layers import arguments
from cnn425.windows import Geometry


def local_geometry(function: str, kernel: Sequence[int], stride: Any, padding: Any, dilation: Any, size: Sequence[int]) -> Geometry:
    """The windows that the arguments describe on an image of `size` pixels.

    Padding is a convolution's, or (low, high) pairs, or 'same' with any stride: `ceil(size / stride)` positions, the rule of TensorFlow.
    """
    if isinstance(padding, (tuple, list)) and padding and all(isinstance(pair, (tuple, list)) for pair in padding):
        pairs = tuple(_pair(function, pair) for pair in padding)
        if len(pairs) != len(kernel):
            raise RuntimeError(
                f"expected padding to hold one (low, high) pair for each of {len(kernel)} dimensions, but got padding={list(padding)}"
            )
        if any(p < 0 for pair in pairs for p in pair):
            raise RuntimeError("negative padding is not supported")
        return arguments.geometry(function, kernel, stride, 0, dilation)._replace(padding=pairs)
    if padding != "same":
        return arguments.geometry(function, kernel, stride, padding, dilation)
    windows = arguments.geometry(function, kernel, stride, 0, dilation)
    totals = [max((-(-n // s) - 1) * s + extent - n, 0) for n, s, extent in zip(size, windows.stride, windows.extent, strict=True)]
    return windows._replace(padding=tuple((total // 2, total - total // 2) for total in totals))


def check_shapes(function: str, x: Tensor, w: Tensor, b: Tensor | None, geometry: Geometry, groups: int) -> None:
    """Channels, positions and bias must fit one another."""
    d = geometry.dimensions
    arguments.check_channels(x.shape, w.shape, groups, outputs=w.shape[d], inputs=w.shape[d + 1])
    arguments.check_fits(x.shape, geometry)
    positions = geometry.positions(x.shape[2:])
    if w.shape[:d] != positions:
        raise RuntimeError(
            f"{function}: the weight of size {list(w.shape)} belongs to {times(w.shape[:d])} positions, "
            f"but the windows of an input of {times(x.shape[2:])} pixels have {times(positions)} positions"
        )
    if b is not None and b.shape not in (w.shape[d : d + 1], (w.shape[d], *positions)):
        raise RuntimeError(
            f"Given weight of size {list(w.shape)}, expected bias of size {[w.shape[d], *positions]} (per position) "
            f"or [{w.shape[d]}] (per channel), but got bias of size {list(b.shape)} instead"
        )


def times(size: Sequence[int]) -> str:
    """A size in words: `26 x 26`."""
    return " x ".join(map(str, size))


def _pair(function: str, pair: Any) -> tuple[int, int]:
    low, high = arguments.per_dimension(function, "padding", pair, 2)
    return low, high
