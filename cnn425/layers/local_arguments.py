"""The checks of the arguments of local layers, and the windows that they describe."""

from collections.abc import Sequence
from typing import Any

import torch

from cnn425.layers import arguments
from cnn425.windows import Geometry, Sharing, each_its_own


@arguments.remembered
def checked(d: int, input: torch.Size, w: torch.Size, b: torch.Size | None, *settings: Any) -> tuple[Geometry, int, Sharing]:
    """The windows, the number of groups as an int, and no sharing, with a weight `(*positions, O, C/groups, *kernel)`."""
    function, (stride, padding, dilation, groups) = f"locally_connected{d}d", settings
    if len(w) != 2 * d + 2:
        raise RuntimeError(
            f"Expected {2 * d + 2}-dimensional weight (*positions, O, C/groups, *kernel) in {function}, but got weight of size {list(w)}"
        )
    x = arguments.check_input(function, input, d)
    arguments.check_types(function, d, groups, stride=stride, dilation=dilation)
    windows = local_geometry(function, w[d + 2 :], stride, padding, dilation, x[2:])
    groups = arguments.check_groups(groups)
    arguments.check_channels(x, w, groups, outputs=w[d], inputs=w[d + 1])
    arguments.check_fits(x, windows)
    positions = windows.positions(x[2:])
    if w[:d] != positions:
        raise RuntimeError(
            f"{function}: the weight of size {list(w)} belongs to {arguments.times(w[:d])} positions, "
            f"but the windows of an input of {arguments.times(x[2:])} pixels have {arguments.times(positions)} positions"
        )
    wanted = ((w[d],), (w[d], *positions))  # number by number: compilers before torch 2.14 never take symbolic sizes as equal
    if b is not None and not any(len(b) == len(size) and all(n == m for n, m in zip(b, size, strict=True)) for size in wanted):
        raise RuntimeError(
            f"Given weight of size {list(w)}, expected bias of size {[w[d], *positions]} (per position) "
            f"or [{w[d]}] (per channel), but got bias of size {list(b)} instead"
        )
    return windows, groups, each_its_own(d)


@arguments.remembered
def checked_shared(
    d: int, input: torch.Size, weight: torch.Size, bias: torch.Size | None, share: Any, tile: Any, *settings: Any
) -> tuple[Geometry, int, Sharing]:
    """The windows, the groups, and which positions share a set of weights `(*sets, O, C/groups, *kernel)`."""
    return *windows_of(d, input, weight, bias, *settings), Sharing(share, tile)


@arguments.remembered
def windows_of(d: int, input: torch.Size, weight: torch.Size, bias: torch.Size | None, *settings: Any) -> tuple[Geometry, int]:
    """The windows and groups of a layer with a weight `(..., O, C/groups, *kernel)`."""
    function, (stride, padding, dilation, groups) = f"LocallyConnected{d}d", settings
    x = arguments.check_input(function, input, d)
    geometry = local_geometry(function, weight[-d:], stride, padding, dilation, x[2:])
    arguments.check_channels(x, weight, groups, outputs=weight[-d - 2], inputs=weight[-d - 1])
    arguments.check_fits(x, geometry)
    return geometry, groups


def local_geometry(function: str, kernel: Sequence[int], stride: Any, padding: Any, dilation: Any, size: Sequence[int]) -> Geometry:
    """The windows that the arguments describe on an image of `size` pixels.

    Padding is a convolution's, or (low, high) pairs, or 'same' with any stride: `ceil(size / stride)` positions, the rule of TensorFlow.
    """
    if isinstance(padding, (tuple, list)) and padding and all(isinstance(pair, (tuple, list)) for pair in padding):
        pairs = [arguments.per_dimension(function, "padding", pair, 2) for pair in padding]
        if len(pairs) != len(kernel):
            raise RuntimeError(
                f"expected padding to hold one (low, high) pair for each of {len(kernel)} dimensions, but got padding={list(padding)}"
            )
        if any(p < 0 for pair in pairs for p in pair):
            raise RuntimeError("negative padding is not supported")
        return arguments.geometry(function, kernel, stride, 0, dilation)._replace(padding=tuple((low, high) for low, high in pairs))
    if padding != "same":
        return arguments.geometry(function, kernel, stride, padding, dilation)
    windows = arguments.geometry(function, kernel, stride, 0, dilation)
    totals = [max((-(-n // s) - 1) * s + extent - n, 0) for n, s, extent in zip(size, windows.stride, windows.extent, strict=True)]
    return windows._replace(padding=tuple((total // 2, total - total // 2) for total in totals))
