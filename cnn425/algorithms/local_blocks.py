"""What the algorithms of local layers share: everything seen position by position, in blocks that fit the cache.

A local layer is one small fully connected layer per position, so positions come first, and then the group g, in every view:

    windows   i j  g  n  cells         weight   i j  g  o  cells         output   i j  g  n o             cells: c u v, in any order

Only the padded image is a copy; the views cost nothing, whatever the strides.
"""

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cnn425.algorithms import memory
from cnn425.algorithms.memory import in_order, scratch
from cnn425.windows import Geometry, windows

Block = tuple[slice, ...]
MANY = 8  # so many images fill a vector register


class Cells(NamedTuple):
    """How the cells c u v of a window lie in the weight's memory, and the image that is laid out to match."""

    order: tuple[int, ...]  # 0 is the channel, 1, 2, 3 the offsets
    image: tuple[int, ...]  # the dimensions of (N, C, *size) in memory
    batch_inside: bool  # whether the image of the batch is innermost


def cells_of(order: Sequence[int], shape: Sequence[int], dimensions: int, batch: int) -> Cells:
    """The cells of a weight of `shape` whose dimensions lie in memory in `order`."""
    cells = tuple(dim - dimensions - 1 for dim in order if dim > dimensions)
    image = tuple(cell + 1 for cell in cells)
    return Cells(cells, (*image, 0), True) if batch >= MANY else Cells(cells, (0, *image), False)


def memory_order(w: Tensor) -> tuple[int, ...]:
    """The dimensions of `w` from the widest to the narrowest step in memory; repeated dimensions (step 0) count as widest."""
    steps = w.stride()
    return tuple(sorted(range(w.ndim), key=lambda dim: (steps[dim] != 0, -steps[dim])))


def empty(shape: Sequence[int], order: Sequence[int], like: Tensor) -> Tensor:
    """Memory for a result of `shape` whose dimensions lie in `order`, of the kind of numbers in `like`."""
    return arranged(memory.result(like, [shape[dim] for dim in order]), order)


def arranged(numbers: Tensor, order: Sequence[int]) -> Tensor:
    """Contiguous memory as the tensor whose dimensions lie in it in `order`."""
    return numbers.permute(sorted(range(len(order)), key=lambda dim: order[dim]))


def image(like: Tensor, shape: Sequence[int], geometry: Geometry, cells: Cells, dtype: torch.dtype | None = None) -> Tensor:
    """Scratch for the padded image of `shape` (N, C, *size), in the layout that suits the cells."""
    padded = (low + n + high for n, (low, high) in zip(shape[2:], geometry.overhang(shape[2:]), strict=True))
    sizes = (*shape[:2], *padded)
    return arranged(scratch(like, *(sizes[dim] for dim in cells.image), dtype=dtype), cells.image)


def real_pixels(padded: Tensor, x: Tensor, geometry: Geometry) -> tuple[Tensor, Tensor]:
    """The pixels that the padded image and the image `x` have in common, as views of both (windows may leave the last pixels out)."""
    overhang = geometry.overhang(x.shape[2:])
    sizes: list[int] = [n + min(high, 0) for n, (_, high) in zip(x.shape[2:], overhang, strict=True)]
    inside: Any = tuple(slice(low, low + n) for n, (low, _) in zip(sizes, overhang, strict=True))
    seen: Any = tuple(slice(0, n) for n in sizes)
    return padded[(..., *inside)], x[(..., *seen)]


def padded_image(x: Tensor, geometry: Geometry, cells: Cells) -> Tensor:
    """`x` with its padding, in the layout that suits the cells; `x` itself where it lies so."""
    padded = image(x, x.shape, geometry, cells)
    inside, seen = real_pixels(padded, x, geometry)
    if inside.shape == padded.shape and seen.stride() == padded.stride():
        return seen
    if inside.shape != padded.shape:
        padded.zero_()
    inside.copy_(seen)
    return padded


def put(image: Tensor, inner: Tensor) -> None:
    """Copy to the `image` a padded image's pixels; where the batch is innermost, as one transposition of a matrix."""
    if image.is_contiguous() and inner.stride(0) == 1:
        pixels = in_order(inner.movedim(0, -1))
        image.flatten(1).copy_(pixels.flatten(0, -2).T)
    else:
        image.copy_(inner)


def window_view(padded: Tensor, geometry: Geometry, groups: int, cells: Cells) -> Tensor:
    """The windows of a padded image as `(*positions, g, n, *cells)`, or with n last where the batch is innermost."""
    d = geometry.dimensions
    view = windows(split(padded, 1, groups), geometry._replace(padding=((0, 0),) * d))
    inner = [2 if cell == 0 else 2 + d + cell for cell in cells.order]
    return view.permute(*range(3, 3 + d), 1, *((*inner, 0) if cells.batch_inside else (0, *inner)))


def line_view(padded: Tensor, geometry: Geometry, groups: int, cells: Cells) -> Tensor:
    """The lines of pixels that the windows lie in: `window_view` without its last positions, and all pixels in place of the last offset."""
    d = geometry.dimensions
    kernel, stride, dilation = ((*values[:-1], 1) for values in (geometry.kernel, geometry.stride, geometry.dilation))
    pixels = geometry._replace(kernel=kernel, stride=stride, dilation=dilation)
    view = window_view(padded, pixels, groups, cells)
    return view.transpose(d - 1, d + 1 + (not cells.batch_inside) + cells.order.index(d)).squeeze(d - 1)


def weight_view(w: Tensor, dimensions: int, groups: int, cells: Cells) -> Tensor:
    """The weight as `(*positions, g, o, *cells)`."""
    d = dimensions
    return split(w, d, groups).permute(*range(d + 2), *(d + 2 + cell for cell in cells.order))


def output_view(y: Tensor, groups: int) -> Tensor:
    """The output as `(*positions, g, o, n)`."""
    return split(y, 1, groups).permute(*range(3, y.ndim + 1), 1, 2, 0)


def split(t: Tensor, dim: int, groups: int) -> Tensor:
    """The channels of dimension `dim` in `groups` equal groups, as a new dimension before it; a view."""
    return t.unflatten(dim, (groups, t.shape[dim] // groups))


def blocks(positions: Sequence[int], most: int) -> Iterator[Block]:
    """All positions in blocks of at most `most` (at least one), each a stretch of neighbours in reading order: slices per dimension."""
    steps: list[int] = []
    for n in reversed(positions):
        count = -(-n // max(1, min(n, most)))
        steps.insert(0, -(-n // count))
        most = most // n if count == 1 else 0
    for starts in product(*(range(0, n, step) for n, step in zip(positions, steps, strict=True))):
        yield tuple(slice(a, min(a + step, n)) for a, step, n in zip(starts, steps, positions, strict=True))
