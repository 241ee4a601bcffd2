"""Tiny: im2col in as few operations as there are, for convolutions so small that calling torch costs more than computing.

    output           W (O, K) @ columns (K, M)                       the columns: numbers of the image, gathered through a table
    input gradient   the same of the output gradient, with the kernel turned around: every pixel gathers what the windows say that saw it
    weight gradient  gy (O, M) @ columns' (M, K)

Every call of torch costs about a microsecond, and so do a few lines of Python. So everything that follows from shapes alone is worked out
once and kept in a plan: above all a table with the place in memory of every cell of every window, which is made by cutting windows from an
image of places. Padding is one zero behind the image, which many places name; a stride is nothing but another table.

Cost: five to ten microseconds per map. Accuracy: that of im2col. Applies to real numbers with at most a few thousand cells in all windows.
"""

from collections.abc import Sequence
from functools import lru_cache
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._mode_utils import no_dispatch

from cnn425.algorithms import layout
from cnn425.algorithms.blocks import flip, flipped
from cnn425.windows import Geometry, windows

CELLS = 1 << 14
FEW = 1 << 11  # so few are gathered faster by one call of `take`, more by `index_select`
PLANS = 512  # at most so many are kept, each with tables of some 4 * CELLS bytes


class Table(NamedTuple):
    """The columns of an image as places in its memory: a matrix, or one per group."""

    places: Tensor
    shape: tuple[int, ...]
    zero: Tensor | None  # what stands behind the image, if a place names it

    def gather(self, x: Tensor) -> Tensor:
        """The columns of `x`."""
        if self.zero is not None:
            x = torch.cat((x.reshape(-1), self.zero))
        if self.places.ndim > 1:
            return x.take(self.places)
        return x.reshape(-1).index_select(0, self.places).view(self.shape)


class Plan(NamedTuple):
    """How to make a tensor of `shape` from a product with this table's columns."""

    table: Table
    rows: tuple[int, ...]  # the shape of the other factor: a matrix, or one per group
    shape: tuple[int, ...]
    order: torch.memory_format | None  # None: as the product lies
    exchange: bool  # the channels stand before the images in the product, and there are several of both
    turned: Tensor | None = None  # the places of the numbers of the turned kernel, in the shape of `rows`


def convolve(x: Tensor, w: Tensor, plan: Plan, bias: Tensor | None) -> Tensor:
    """The output, `(N, C, *size), (O, C/G, *kernel), (O,) -> (N, O, *positions)`."""
    return image(w.reshape(plan.rows), plan.table.gather(x), plan, bias)


def convolve_input_gradient(gy: Tensor, w: Tensor, plan: Plan) -> Tensor:
    """The gradient of the input, `(N, O, *positions), (O, C/G, *kernel) -> (N, C, *size)`."""
    assert plan.turned is not None
    return image(w.take(plan.turned), plan.table.gather(gy), plan, None)


def convolve_weight_gradient(gy: Tensor, x: Tensor, plan: Plan) -> Tensor:
    """The gradient of the weight, `(N, O, *positions), (N, C, *size) -> (O, C/G, *kernel)`."""
    gy = (gy.transpose(0, 1) if plan.exchange else gy).reshape(plan.rows)
    columns = plan.table.gather(x)
    return arranged((gy.mm(columns) if gy.ndim == 2 else gy.bmm(columns)).view(plan.shape), plan)


def image(w: Tensor, columns: Tensor, plan: Plan, bias: Tensor | None) -> Tensor:
    """The image that these columns make with this kernel."""
    if w.ndim == 3:
        y = w.bmm(columns) if bias is None else torch.baddbmm(bias.view(w.shape[0], -1, 1), w, columns)
    else:
        y = w.mm(columns) if bias is None else torch.addmm(bias.view(-1, 1), w, columns)
    if not plan.exchange:
        return y.view(plan.shape) if plan.order is None else arranged(y.view(plan.shape), plan)
    images, channels, *size = plan.shape
    return arranged(y.view(channels, images, *size).transpose(0, 1), plan)


def arranged(y: Tensor, plan: Plan) -> Tensor:
    """`y` with the strides that torch gives."""
    return y.contiguous() if plan.order is None else layout.empty(y, plan.shape, plan.order).copy_(y)


# ---- The plans: None where this algorithm is not worth while


class Like(NamedTuple):
    """What a plan depends on in a tensor."""

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    def places(self) -> Tensor:
        """The place of each number of a contiguous tensor of this shape."""
        return torch.arange(prod(self.shape), device=self.device).view(self.shape)


def for_output(x: Tensor, w: Tensor, geometry: Geometry, groups: int) -> Plan | None:
    """The plan of the output."""
    a, b = (x.shape, x.stride(), x.dtype, x.device), (w.shape, w.stride(), w.dtype, w.device)
    return _for_output(a, b, geometry, groups, torch.get_num_threads() if x.ndim == 5 else 0)


@lru_cache(maxsize=PLANS)
def _for_output(a: tuple[Any, ...], b: tuple[Any, ...], geometry: Geometry, groups: int, threads: int) -> Plan | None:
    """The layout of a volume depends on the number of threads, too: it is part of the key."""
    x, w = Like(*a), Like(*b)
    shape = (x.shape[0], w.shape[0], *geometry.positions(x.shape[2:]))
    if not worth_while(x, w, x.shape[1] * prod(shape) // max(1, shape[1]) * prod(geometry.kernel)):
        return None
    with no_dispatch(), torch.inference_mode(False):
        columns = table(x.places(), x, geometry, groups)
        return Plan(columns, matrix(shape[1], groups), shape, order(x, w, None, geometry, groups), min(shape[:2]) > 1)


def for_input_gradient(
    gy: Tensor, w: Tensor, geometry: Geometry, groups: int, size: Sequence[int], wanted: torch.memory_format | None
) -> Plan | None:
    """The plan of the gradient of an input of `size` pixels, in the memory format that is `wanted`, or torch's."""
    a, b = (gy.shape, gy.stride(), gy.dtype, gy.device), (w.shape, w.stride(), w.dtype, w.device)
    return _for_input_gradient(a, b, geometry, groups, tuple(size), wanted)


@lru_cache(maxsize=PLANS)
def _for_input_gradient(
    a: tuple[Any, ...], b: tuple[Any, ...], geometry: Geometry, groups: int, size: tuple[int, ...], wanted: torch.memory_format | None
) -> Plan | None:
    gy, w = Like(*a), Like(*b)
    shape = (gy.shape[0], w.shape[1] * groups, *size)
    if not worth_while(gy, w, prod(gy.shape[:2]) * prod(size) * prod(geometry.kernel)):
        return None
    with no_dispatch(), torch.inference_mode(False):
        columns = table(spread(gy.places(), geometry), gy, turned(geometry, size, gy.shape[2:]), groups)
        kernel = flip(w.places(), groups).reshape(matrix(shape[1], groups))
        return Plan(columns, kernel.shape, shape, order(gy, w, wanted), min(shape[:2]) > 1, kernel)


def for_weight_gradient(gy: Tensor, x: Tensor, geometry: Geometry, groups: int, wanted: torch.memory_format | None) -> Plan | None:
    """The plan of the gradient of the weight, in the memory format that is `wanted`, or torch's."""
    a, b = (gy.shape, gy.stride(), gy.dtype, gy.device), (x.shape, x.stride(), x.dtype, x.device)
    return _for_weight_gradient(a, b, geometry, groups, wanted)


@lru_cache(maxsize=PLANS)
def _for_weight_gradient(
    a: tuple[Any, ...], b: tuple[Any, ...], geometry: Geometry, groups: int, wanted: torch.memory_format | None
) -> Plan | None:
    gy, x = Like(*a), Like(*b)
    if not worth_while(gy, x, prod(x.shape[:2]) * prod(gy.shape[2:]) * prod(geometry.kernel)):
        return None
    shape = (gy.shape[1], x.shape[1] // groups, *geometry.kernel)
    with no_dispatch(), torch.inference_mode(False):
        rows = table(x.places(), x, geometry, groups, transposed=True)
        return Plan(rows, matrix(shape[0], groups), shape, order(gy, x, wanted), min(gy.shape[:2]) > 1)


def worth_while(a: Like, b: Like, cells: int) -> bool:
    """Whether there are few numbers, and a matrix product for them."""
    real = a.dtype == b.dtype and a.dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16)
    return real and a.device == b.device and a.device.type in ("cpu", "cuda") and 0 < cells <= CELLS and 0 < prod(b.shape) <= CELLS


def spread(places: Tensor, geometry: Geometry) -> Tensor:
    """The image of places with the stride put back: -1, no place, between the numbers."""
    between = places.new_full((*places.shape[:2], *((n - 1) * s + 1 for n, s in zip(places.shape[2:], geometry.stride, strict=True))), -1)
    at: list[Any] = [slice(None, None, s) for s in geometry.stride]
    between[(..., *at)] = places
    return between


def turned(geometry: Geometry, size: Sequence[int], positions: Sequence[int]) -> Geometry:
    """The geometry of the input gradient, once the stride is put back."""
    reached = [(n - 1) * s + 1 for n, s in zip(positions, geometry.stride, strict=True)]
    return flipped(geometry._replace(stride=(1,) * len(size)), size, reached)


def table(places: Tensor, x: Like, geometry: Geometry, groups: int, transposed: bool = False) -> Table:
    """The columns `(K, N*M)` that the windows of an image of places make (-1: none), one matrix per group, or their transposes."""
    d = geometry.dimensions
    cells = windows(places, geometry, fill=-1).permute(1, *range(2 + d, 2 + 2 * d), 0, *range(2, 2 + d))
    columns = cells.reshape(groups, x.shape[1] // groups * prod(geometry.kernel), -1)
    columns = columns.mT if transposed else columns
    columns = columns[0] if groups == 1 else columns
    padding = columns < 0
    zero = torch.zeros(1, dtype=x.dtype, device=x.device) if padding.any() else None
    columns = columns.masked_fill(padding, prod(x.shape)).contiguous()
    return Table(columns if columns.numel() <= FEW else columns.flatten().int(), columns.shape, zero)


def matrix(channels: int, groups: int) -> tuple[int, ...]:
    """The shape of a matrix of so many rows, or of one matrix per group."""
    return (channels, -1) if groups == 1 else (groups, channels // groups, -1)


def order(
    a: Like, b: Like, wanted: torch.memory_format | None, geometry: Geometry | None = None, groups: int = 1
) -> torch.memory_format | None:
    """The memory format of a result made from `a` and `b`; of their convolution, if its geometry is given. None: contiguous."""
    first, second = (torch.empty_strided(t.shape, t.stride, dtype=t.dtype, device=t.device) for t in (a, b))
    found = wanted or layout.memory_format(first, second, geometry, groups)
    return None if found is torch.contiguous_format else found
