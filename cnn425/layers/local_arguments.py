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
    check_bias(w, b, w[d], positions)
    return windows, groups, each_its_own(d)


@arguments.remembered
def checked_shared(
    d: int, input: torch.Size, weight: torch.Size, bias: torch.Size | None, share: Any, tile: Any, *settings: Any
) -> tuple[Geometry, int, Sharing]:
    """The windows, the groups, and which positions share a set of weights `(*sets, O, C/groups, *kernel)`."""
    geometry, groups = windows_of(d, input, weight, 2 * d + 2, *settings)
    sharing, positions = Sharing(share, tile), geometry.positions(input[-d:])
    if not fits(weight[:d], sets := sharing.sets(positions)):
        raise RuntimeError(
            f"LocallyConnected{d}d: the weight of size {list(weight)} holds {arguments.times(weight[:d])} sets, "
            f"but the windows of an input of {arguments.times(input[-d:])} pixels use {arguments.times(sets)} sets"
        )
    check_bias(weight, bias, weight[d], sets, "position" if sets == positions else "set of weights")
    return geometry, groups, sharing


@arguments.remembered
def checked_low_rank(
    d: int, input: torch.Size, weight: torch.Size, bias: torch.Size | None, mixing: torch.Size, *settings: Any
) -> tuple[Geometry, int]:
    """The windows and groups of a layer with a weight `(R, O, C/groups, *kernel)` and coefficients `(R, *positions)`."""
    geometry, groups = windows_of(d, input, weight, d + 3, *settings)
    if not fits(mixing, wanted := (weight[0], *geometry.positions(input[-d:]))):
        raise RuntimeError(
            f"LowRankLocal{d}d: a weight of size {list(weight)} and an input of {arguments.times(input[-d:])} pixels "
            f"need mixing coefficients of size {list(wanted)}, but got size {list(mixing)}"
        )
    check_bias(weight, bias, weight[1], ())
    return geometry, groups


def windows_of(d: int, input: torch.Size, weight: torch.Size, dimensions: int, *settings: Any) -> tuple[Geometry, int]:
    """The windows and groups of a layer whose weight has so many dimensions and ends in `(O, C/groups, *kernel)`."""
    function, (stride, padding, dilation, groups) = f"LocallyConnected{d}d", settings
    if len(weight) != dimensions:
        raise RuntimeError(f"Expected {dimensions}-dimensional weight in {function}, but got weight of size {list(weight)}")
    x = arguments.check_input(function, input, d)
    geometry, groups = local_geometry(function, weight[-d:], stride, padding, dilation, x[2:]), arguments.check_groups(groups)
    arguments.check_channels(x, weight, groups, outputs=weight[-d - 2], inputs=weight[-d - 1])
    arguments.check_fits(x, geometry)
    return geometry, groups


def fits(size: Sequence[int], wanted: Sequence[int]) -> bool:
    """Whether sizes are equal, number by number: compilers before torch 2.14 never take symbolic sizes as equal."""
    return len(size) == len(wanted) and all(n == m for n, m in zip(size, wanted, strict=True))


def check_bias(weight: torch.Size, bias: torch.Size | None, outputs: int, places: Sequence[int], place: str = "position") -> None:
    """A bias is `(O,)`, or where positions or sets of them have their own, `(O, *places)`."""
    if bias is not None and not fits(bias, (outputs,)) and not (places and fits(bias, (outputs, *places))):
        each = f"{[outputs, *places]} (per {place}) or " if places else ""
        raise RuntimeError(
            f"Given weight of size {list(weight)}, expected bias of size {each}[{outputs}] (per channel), "
            f"but got bias of size {list(bias)} instead"
        )


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
    if not isinstance(padding, str) or padding != "same":
        return arguments.geometry(function, kernel, stride, padding, dilation)
    windows = arguments.geometry(function, kernel, stride, 0, dilation)
    totals = [max((-(-n // s) - 1) * s + extent - n, 0) for n, s, extent in zip(size, windows.stride, windows.extent, strict=True)]
    return windows._replace(padding=tuple((total // 2, total - total // 2) for total in totals))
