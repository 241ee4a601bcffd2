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
PLANS = 512  # at most so many are kept, each a table of at most 4 * CELLS bytes


class Table(NamedTuple):
    """The columns of an image as places in its memory, `(G, K, N*M)`."""

    places: Tensor
    shape: tuple[int, ...]
    zero: Tensor | None  # what stands behind the image, if a place names it

    def gather(self, x: Tensor) -> Tensor:
        """The columns of `x`: `(K, N*M)`, or `(G, K, N*M)` of several groups."""
        flat = x.reshape(-1)
        if self.zero is not None:
            flat = torch.cat((flat, self.zero))
        return flat.index_select(0, self.places).view(self.shape)


class Plan(NamedTuple):
    """How a product of this table's columns becomes an image of `shape`; `turned` are the places of the turned kernel, if it is to turn."""

    table: Table
    rows: tuple[int, ...]  # the kernel as a matrix, or as one matrix per group
    shape: tuple[int, ...]
    order: torch.memory_format
    turned: Tensor | None = None


class Like(NamedTuple):
    """What a plan depends on in a tensor."""

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    def places(self) -> Tensor:
        """The place of each number of a contiguous tensor of this shape."""
        return torch.arange(prod(self.shape), device=self.device).view(self.shape)


def like(x: Tensor) -> Like:
    """What a plan depends on in `x`."""
    return Like(x.shape, x.stride(), x.dtype, x.device)


def convolve(x: Tensor, w: Tensor, plan: Plan, bias: Tensor | None) -> Tensor:
    """The output, `(N, C, *size), (O, C/G, *kernel), (O,) -> (N, O, *positions)`."""
    return product(w.reshape(plan.rows), plan.table.gather(x), plan, bias)


def convolve_input_gradient(gy: Tensor, w: Tensor, plan: Plan) -> Tensor:
    """The gradient of the input, `(N, O, *positions), (O, C/G, *kernel) -> (N, C, *size)`."""
    assert plan.turned is not None
    return product(w.reshape(-1).index_select(0, plan.turned).view(plan.rows), plan.table.gather(gy), plan, None)


def convolve_weight_gradient(gy: Tensor, x: Tensor, plan: Plan) -> Tensor:
    """The gradient of the weight, `(N, O, *positions), (N, C, *size) -> (O, C/G, *kernel)`."""
    gy = gy.transpose(0, 1).reshape(plan.rows)
    return arranged((gy @ plan.table.gather(x).mT).view(plan.shape), plan)


def product(w: Tensor, columns: Tensor, plan: Plan, bias: Tensor | None) -> Tensor:
    """The image that these columns and this kernel make."""
    images, channels, *size = plan.shape
    if bias is None:
        y = w.mm(columns) if w.ndim == 2 else w.bmm(columns)
    elif w.ndim == 2:
        y = torch.addmm(bias.unsqueeze(1), w, columns)
    else:
        y = torch.baddbmm(bias.view(w.shape[0], -1, 1), w, columns)
    if images == 1 or channels == 1:
        return arranged(y.view(plan.shape), plan)
    return arranged(y.view(channels, images, *size).transpose(0, 1), plan)


def arranged(y: Tensor, plan: Plan) -> Tensor:
    """`y` with the strides that torch gives."""
    if plan.order is torch.contiguous_format:
        return y.contiguous()
    return layout.empty(y, plan.shape, plan.order).copy_(y)


# ---- The plans: None where this algorithm is not worth while


@lru_cache(maxsize=PLANS)
def for_output(x: Like, w: Like, geometry: Geometry, groups: int) -> Plan | None:
    """The plan of the output."""
    if not worth_while(x, w, prod(x.shape[:2]) * prod(geometry.positions(x.shape[2:])) * prod(geometry.kernel)):
        return None
    shape = (x.shape[0], w.shape[0], *geometry.positions(x.shape[2:]))
    with no_dispatch(), torch.inference_mode(False):
        return Plan(table(x.places(), x, geometry, groups), matrix(w.shape[0], groups), shape, order(x, w, None, geometry, groups))


@lru_cache(maxsize=PLANS)
def for_input_gradient(
    gy: Like, w: Like, geometry: Geometry, groups: int, size: Sequence[int], wanted: torch.memory_format | None
) -> Plan | None:
    """The plan of the gradient of an input of `size` pixels, in the memory format that is `wanted`, or torch's."""
    shape = (gy.shape[0], w.shape[1] * groups, *size)
    if not worth_while(gy, w, prod(gy.shape[:2]) * prod(size) * prod(geometry.kernel)):
        return None
    with no_dispatch(), torch.inference_mode(False):
        places = gy.places()
        spread = [(n - 1) * s + 1 for n, s in zip(gy.shape[2:], geometry.stride, strict=True)]
        between = places.new_full((*gy.shape[:2], *spread), -1)
        at: list[Any] = [slice(None, None, s) for s in geometry.stride]
        between[(..., *at)] = places
        back = flipped(geometry._replace(stride=(1,) * len(size)), size, spread)
        turned = flip(w.places(), groups).reshape(-1).int()
        return Plan(table(between, gy, back, groups), matrix(shape[1], groups), shape, order(gy, w, wanted), turned)


@lru_cache(maxsize=PLANS)
def for_weight_gradient(gy: Like, x: Like, geometry: Geometry, groups: int, wanted: torch.memory_format | None) -> Plan | None:
    """The plan of the gradient of the weight, in the memory format that is `wanted`, or torch's."""
    if not worth_while(gy, x, prod(x.shape[:2]) * prod(gy.shape[2:]) * prod(geometry.kernel)):
        return None
    shape = (gy.shape[1], x.shape[1] // groups, *geometry.kernel)
    with no_dispatch(), torch.inference_mode(False):
        return Plan(table(x.places(), x, geometry, groups), matrix(gy.shape[1], groups), shape, order(gy, x, wanted))


def worth_while(a: Like, b: Like, cells: int) -> bool:
    """Whether there are few numbers, and a matrix product for them."""
    real = a.dtype == b.dtype and a.dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16)
    return real and a.device == b.device and a.device.type in ("cpu", "cuda") and 0 < cells <= CELLS and 0 < prod(b.shape) <= CELLS


def table(places: Tensor, x: Like, geometry: Geometry, groups: int) -> Table:
    """The table of the windows of an image of places, -1 where there is none."""
    cells = windows(places, geometry, fill=-1)
    d = geometry.dimensions
    columns = cells.permute(1, *range(2 + d, 2 + 2 * d), 0, *range(2, 2 + d)).flatten()
    padding = columns < 0
    zero = torch.zeros(1, dtype=x.dtype, device=x.device) if padding.any() else None
    size = x.shape[1] * prod(geometry.kernel)
    shape = (size, len(columns) // size) if groups == 1 else (groups, size // groups, len(columns) // size)
    return Table(columns.masked_fill(padding, prod(x.shape)).int(), shape, zero)


def matrix(channels: int, groups: int) -> tuple[int, ...]:
    """The shape of a matrix of so many rows, or of one matrix per group."""
    return (channels, -1) if groups == 1 else (groups, channels // groups, -1)


def order(a: Like, b: Like, wanted: torch.memory_format | None, geometry: Geometry | None = None, groups: int = 1) -> torch.memory_format:
    """The memory format of a result made from `a` and `b`; of their convolution, if its geometry is given."""
    first, second = (torch.empty_strided(t.shape, t.stride, dtype=t.dtype, device=t.device) for t in (a, b))
    return wanted or layout.memory_format(first, second, geometry, groups)
