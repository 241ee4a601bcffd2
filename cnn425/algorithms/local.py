"""How the three maps of a local layer are computed: the table of choices, and what runs by default, products and loops.

| what comes                                                                    | how it is computed                                  |
|-------------------------------------------------------------------------------|-----------------------------------------------------|
| another device, dtype or kind of tensor; a trace; within `use("definition")`  | `definition`                                        |
| fewer than 4,096 float64 numbers, as in tests by finite differences           | `definition`                                        |
| tiles whose sets are used often, by images and positions                      | `product`: a convolution with a stride for each set |
| within `use("sweep")`; one or two images; the weight gradient of other tiles  | `sweep`: loops over the weight, as the formula says |
| everything else                                                               | `matmul`: one matrix product per position           |

At a position the layer is a fully connected one: a matrix of O rows of K = C/G*T*U*V weights meets the N windows there. q is the set of
weights that position p uses, its own or one that it shares.

    output            y[p]     =  x[p]   w[q]'                               (N, K) (K, O)  -> (N, O)
    weight gradient   gw[q]    =  sum over its positions p of gy[p]' x[p]    (O, N) (N, K)  -> (O, K)
    window gradient   gx[p]    =  gy[p]  w[q]                                (N, O) (O, K)  -> (N, K)       then added to the pixels

The weight is copied only for tiles. For products, images are interleaved: a vector register holds one pixel of several images, also of
neighbouring positions that share weights. For the weight gradient a thread copies the pixels and output gradients of some sets into its own
memory, channels last. Half precision is computed in float32 and rounded once.
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from math import isfinite, prod
from typing import NamedTuple

import torch
from torch import Tensor

from cnn425.algorithms import definition, layout, product
from cnn425.algorithms.layout import CPU, HALF, grid
from cnn425.kernels import local as loops
from cnn425.kernels.box import REGISTER, padded
from cnn425.kernels.threads import forced, is_traced, loops_run, memory
from cnn425.kernels.tile import WIDEST, costs, fits_four, registers, rows_of
from cnn425.windows import Geometry, Sharing

Shape = Sequence[int]
USES = 16  # of a set, by images and positions: with fewer, packing its weights does not pay
COPIED = 1 << 23  # bytes of a weight that may be packed for the output and the gradient of the input: more are read too often
REORDERED = 1.1  # times as long, if threads share channels: each of them reorders all output gradients
FEW_IMAGES = 2  # so few would leave most of a vector register empty
BAND = 1 << 19  # bytes that a thread copies at once for the gradient of the weight


def output(x: Tensor, w: Tensor, geometry: Geometry, groups: int, sharing: Sharing, bias: Tensor | None = None) -> Tensor:
    """The output, `(N, C, *size), (*sets, O, C/G, *kernel) -> (N, O, *positions)`; the bias is `(O, *sets)` or `(O,)`."""
    order, positions = layout.like(x), geometry.positions(x.shape[2:])
    if x.dtype in HALF:
        y = output(x.float(), w.float(), geometry, groups, sharing, None if bias is None else bias.float())
        return layout.stored(y.to(x.dtype), order)
    if by_definition(x, w, bias):
        y = definition.output(x, w, geometry, groups, sharing)
        return layout.stored(y if bias is None else y + sharing.bias(bias, positions), order)
    y = x.new_empty(x.shape[0], w.shape[geometry.dimensions], *positions)
    if is_strided(sharing, w, y, y.shape[1] // groups):
        product.output(x, w, bias, y, geometry, groups, sharing.tile)
        return layout.stored(y, order)
    plan = plan_of(geometry, groups, sharing, x.shape[1:], w.shape, positions)
    (plan.sweep_output if plan.is_swept(len(x)) else plan.multiply_output)(x.contiguous(), w.contiguous(), bias, y)
    return layout.stored(y, order)


def input_gradient(
    gy: Tensor, w: Tensor, geometry: Geometry, groups: int, sharing: Sharing, size: Sequence[int], order: object = None
) -> Tensor:
    """The gradient of the input, `(N, O, *positions), (*sets, O, C/G, *kernel) -> (N, C, *size)`."""
    order_, d = layout.like(gy), geometry.dimensions
    if gy.dtype in HALF:
        return layout.stored(input_gradient(gy.float(), w.float(), geometry, groups, sharing, size).to(gy.dtype), order_)
    if by_definition(gy, w):
        return layout.stored(definition.input_gradient(gy, w, geometry, groups, size, sharing), order_)
    gx = gy.new_empty(gy.shape[0], w.shape[d + 1] * groups, *size)
    if is_strided(sharing, w, gy, w.shape[d + 1]) and isfinite(w.sum().item()):
        product.input_gradient(gy, w, gx, geometry, groups, sharing.tile)
        return layout.stored(gx, order_)
    plan = plan_of(geometry, groups, sharing, gx.shape[1:], w.shape, gy.shape[2:])
    (plan.sweep_input_gradient if plan.is_swept(len(gy)) else plan.multiply_input_gradient)(gy.contiguous(), w.contiguous(), gx)
    return layout.stored(gx, order_)


def weight_gradient(gy: Tensor, x: Tensor, geometry: Geometry, groups: int, sharing: Sharing, order: object = None) -> Tensor:
    """The gradient of the weight, `(N, O, *positions), (N, C, *size) -> (*sets, O, C/G, *kernel)`, contiguous."""
    if gy.dtype in HALF:
        return weight_gradient(gy.float(), x.float(), geometry, groups, sharing).to(gy.dtype)
    if by_definition(gy, x):
        return layout.stored(definition.weight_gradient(gy, x, geometry, groups, sharing), torch.contiguous_format)
    gw = gy.new_empty(*sharing.sets(tuple(gy.shape[2:])), gy.shape[1], x.shape[1] // groups, *geometry.kernel)
    plan = plan_of(geometry, groups, sharing, x.shape[1:], gw.shape, gy.shape[2:])
    uses = len(x) * plan.P // plan.Q
    swept = plan.is_swept(uses, FEW_IMAGES if sharing.tile is None else USES)
    if sharing.tile is not None and not swept:
        product.weight_gradient(gy, x, gw.zero_(), geometry, groups, sharing.tile)  # there may be sets that no position uses
        return gw
    (plan.sweep_weight_gradient if swept else plan.multiply_weight_gradient)(gy.contiguous(), x.contiguous(), gw)
    return gw


def by_definition(a: Tensor, b: Tensor, bias: Tensor | None = None) -> bool:
    """Whether the definition computes a map of `a` and `b`, to which a bias may be added."""
    if is_traced() or not a.is_floating_point() or 0 in (a.numel(), b.numel()):  # torch 2.11 cannot trace a ContextVar
        return True
    return not loops_run(a, b, bias, few=forced.get() in ("sweep", "matmul"))


def is_strided(sharing: Sharing, w: Tensor, y: Tensor, channels: int) -> bool:
    """Whether a layer of weight `w` and output `y` is computed as strided convolutions, one for each set of a tile.

    The weight must be small, its sets used often, and the computed channels must fill vector registers as well as the images do.
    """
    if sharing.tile is None or forced.get() is not None or any(t > p for t, p in zip(sharing.tile, y.shape[2:], strict=True)):
        return False
    lanes, sets = REGISTER // y.itemsize, prod(sharing.tile)
    filled = channels / -(-channels // lanes) >= y.shape[0] / -(-y.shape[0] // lanes)
    return filled and y.shape[0] * prod(y.shape[2:]) >= USES * sets and w.numel() * w.itemsize <= COPIED


@lru_cache(maxsize=256)
def sets_of(sharing: Sharing, positions: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """The set of each position, `(P)`; the positions set by set, `(P)`; and where among them those of each set begin, `(Q + 1)`."""
    q = sharing.copied(torch.arange(prod(sharing.sets(positions)), device=CPU).view(sharing.sets(positions)), positions).flatten()
    return q, q.argsort(stable=True), torch.cat((q.new_zeros(1), q.bincount().cumsum(0)))


class Plan:
    """What loops need to compute a local layer; it depends only on the sizes of the image `(C, *size)`, weight and output.

    Without `sharing` all positions have one set of weights, and the layer is a convolution. Tensors given to the maps are contiguous.
    """

    def __init__(self, geometry: Geometry, groups: int, sharing: Sharing | None, image: Shape, weight: Shape, positions: Shape) -> None:
        d, ones = geometry.dimensions if sharing else 0, (1,) * (3 - geometry.dimensions)
        self.geometry, self.groups, self.positions = geometry, groups, tuple(positions)
        self.sharing = sharing or Sharing((1,) * geometry.dimensions, (1,) * geometry.dimensions)
        self.O, self.C, self.Q, self.P = weight[d] // groups, weight[d + 1], prod(weight[:d]), prod(positions)
        self.size = (*ones, *image[1:])
        self.cells, self.outputs = self.C * prod(weight[d + 2 :]), groups * self.O
        self.grid, self.sets = grid(geometry, tuple(image[1:])), sets_of(self.sharing, self.positions)
        self.padded = tuple(padded(self.grid.tolist(), side) for side in range(3))  # the size of an image with zeros around
        self.where = memory(self.grid, 6, 3), memory(self.sets[0], self.P)  # the geometry and the set of each position, for loops
        self.start, self.cell = self.windows()
        self.starts = memory(self.start, self.P), memory(self.cell, self.cells)

    def is_swept(self, images: int, few: int = FEW_IMAGES) -> bool:
        """Whether loops over the weight compute a map that has so many images per set of weights."""
        return forced.get() == "sweep" or (forced.get() != "matmul" and images <= few)

    def image(self, x: Tensor) -> tuple[object, ...]:
        """The image as an argument for a loop."""
        return memory(x, x.shape[0], x.shape[1], *self.size)

    def output(self, y: Tensor) -> tuple[object, ...]:
        """The output as an argument for a loop."""
        return memory(y, y.shape[0], y.shape[1], self.P)

    def weight(self, w: Tensor) -> tuple[object, ...]:
        """The weight as an argument for a loop."""
        return memory(w, self.Q, self.outputs, self.cells)

    def sweep_output(self, x: Tensor, w: Tensor, bias: Tensor | None, y: Tensor) -> None:
        """Write `y`."""
        b = y.new_zeros(self.outputs) if bias is None else bias.contiguous()
        given = self.image(x), self.weight(w), memory(b, self.outputs, b.numel() // self.outputs)
        loops.output(self.P, y.numel() * self.cells, *given, self.groups, *self.where, *self.starts, self.output(y))

    def sweep_input_gradient(self, gy: Tensor, w: Tensor, gx: Tensor) -> None:
        """Write `gx`."""
        parts = min(self.padded[0] * self.padded[1], -(-torch.get_num_threads() // len(gx)))
        where = self.groups, *self.where, *self.starts, parts
        loops.input_gradient(len(gx) * parts, gy.numel() * self.cells, self.output(gy), self.weight(w), *where, self.image(gx))

    def sweep_weight_gradient(self, gy: Tensor, x: Tensor, gw: Tensor) -> None:
        """Write `gw`."""
        _, order, bounds = self.sets
        where = self.groups, self.where[0], memory(order, self.P), memory(bounds, self.Q + 1), *self.starts
        loops.weight_gradient(self.Q, gy.numel() * self.cells, self.output(gy), self.image(x), *where, self.weight(gw))

    def windows(self) -> tuple[Tensor, Tensor]:
        """The pixel of every window's first cell in an image with zeros around, `(P)`, and the pixels from there to its cells, `(K)`."""
        kernel, stride, _, dilation, positions, _ = self.grid.tolist()
        _, height, width = self.padded

        def pixels(counts: Sequence[int], steps: Sequence[int]) -> Tensor:
            t, u, v = (torch.arange(n, device=CPU) * s for n, s in zip(counts, steps, strict=True))
            return ((t[:, None, None] * height + u[:, None]) * width + v).flatten()

        planes = torch.arange(self.C, device=CPU)[:, None] * prod(self.padded)
        return pixels(positions, stride), (planes + pixels(kernel, dilation)).flatten()

    def interleaved(self, x: Tensor, width: int) -> tuple[Tensor, tuple[object, ...]]:
        """Memory for images side by side, `(B, C, D, H, W, width)`, and the same as an argument for a loop."""
        image = x.new_empty(-(-len(x) // width), x.shape[1], *self.padded, width)
        return image, memory(image, *image.shape)

    def multiply_output(self, x: Tensor, w: Tensor, bias: Tensor | None, y: Tensor) -> None:
        """Write `y`."""
        runs = runs_of(self, len(x), REGISTER // x.itemsize)
        image, pixels = self.interleaved(x, runs.width)
        loops.interleave(image.shape[0] * image.shape[1], image.numel(), self.image(x), self.where[0], pixels, 0)
        b = y.new_zeros(self.outputs, 1) if bias is None else bias.reshape(self.outputs, -1).contiguous()
        threads, longest = torch.get_num_threads(), runs.block(self.outputs * x.itemsize)
        blocks = min(len(runs.table), -(-len(runs.table) * runs.longest // (longest * threads)) * threads)  # none may be empty
        where = self.groups, self.where[1], *self.starts, memory(runs.table, *runs.table.shape), int(runs.overlap), blocks, longest
        given = pixels, self.weight(w), memory(b, *b.shape)
        loops.multiply(image.shape[0] * blocks, y.numel() * self.cells, *given, *where, int(fits_four(self.O)), self.output(y))

    def multiply_input_gradient(self, gy: Tensor, w: Tensor, gx: Tensor) -> None:
        """Write `gx`."""
        given = self, len(gx), REGISTER // gx.itemsize, torch.get_num_threads()
        runs = runs_of(*given)
        least = self.C if self.groups % runs.parts == 0 else self.C // runs.parts if self.groups == 1 else 1  # of a group, for a thread
        if least * prod(self.geometry.kernel[:-1]) < rows_of(1, 0, 0) or (runs.overlap and not isfinite(w.sum().item())):
            runs = runs_of(*given, alone=True)
        image, pixels = self.interleaved(gx, runs.width)
        weight, columns = (self.weight(w), self.groups, self.where[1]), self.geometry.kernel[-1] if runs.longest > 1 else 1
        where = *self.starts, columns, memory(runs.table, *runs.table.shape), runs.block(self.outputs * gx.itemsize), runs.parts
        loops.multiply_gradient(image.shape[0] * runs.parts, gy.numel() * self.cells, self.output(gy), *weight, *where, pixels)
        loops.interleave(image.shape[0] * image.shape[1], image.numel(), self.image(gx), self.where[0], pixels, 1)

    def multiply_weight_gradient(self, gy: Tensor, x: Tensor, gw: Tensor) -> None:
        """Write `gw`."""
        V, (_, order, bounds) = registers(self.O, REGISTER // x.itemsize, 0), self.sets
        bands, parts, images = bands_of(self, len(x), x.itemsize, torch.get_num_threads())
        tables = memory(order, self.P), memory(bounds, self.Q + 1), *self.starts
        table = layout.source_of(tuple(x.shape))  # kept: another thread may evict it from the cache
        source = memory(table, 2, 5), self.groups
        where = self.where[0], memory(bands, *bands.shape), 3 - self.geometry.dimensions
        both, weight = (self.output(gy), memory(x, x.numel())), self.weight(gw)
        loops.multiply_weights(len(bands) * parts, gy.numel() * self.cells, *both, *source, *where, *tables, V, parts, images, weight)


plan_of = lru_cache(maxsize=1024)(Plan)


class Runs(NamedTuple):
    """Neighbouring positions with one set of weights, and the images whose pixels are side by side in vector registers."""

    width: int  # images
    table: Tensor  # the first position of each run, and how many there are, `(R, 2)`
    longest: int  # most positions of a run
    overlap: bool  # whether some run begins in the one before it
    parts: int  # of the channels, so that all threads have some

    def block(self, position: int) -> int:
        """The positions whose outputs are reordered together, of so many bytes each: neighbours in memory are written together."""
        return max(1, min(64, BAND // (position * self.width)) // self.longest) * self.longest


@lru_cache(maxsize=1024)
def runs_of(plan: Plan, N: int, lanes: int, threads: int = 1, alone: bool = False) -> Runs:
    """The runs that take the least time when threads share blocks of the N images, or channels; `alone` makes each position a run."""
    J, along = plan.positions[-1], plan.sharing.tile is None and plan.geometry.stride[-1] == 1 and not alone
    share = min(plan.sharing.share[-1], J) if along else 1

    def run(width: int, left: int) -> int:  # the positions of a run, of `left` in the set
        each = max(1, lanes // width)
        return min(-(-left // each), WIDEST[0] * lanes // (each * width)) * each

    def time(width: int) -> tuple[float, int, int]:  # also the parts, and the width
        count, blocks = run(width, share), -(-N // width)
        parts = min(plan.groups * plan.C, -(-threads // blocks))
        each = -(-share // count) * count * width * costs()[count * width // lanes] * (REORDERED if parts > 1 else 1) / parts
        return -(-blocks * parts // threads) * each, parts, width

    widths = [v * lanes for v in (4, 2, 1) if v <= WIDEST[0]] + [lanes // part for part in (2, 4) if part <= share]
    _, parts, width = min(map(time, widths), key=lambda found: found[0])
    each, line = max(1, lanes // width), []
    for begin in range(0, J, share):
        end = min(J, begin + share)
        while begin < end:
            count = min(run(width, end - begin), end // each * each)
            line.append((min(begin, end - count), count))
            begin += count
    table = torch.tensor([[i * J + first, count] for i in range(plan.P // J) for first, count in line], device=CPU)
    overlap = any(b[0] < sum(a) for a, b in pairwise(line))
    return Runs(width, table, max(count for _, count in line), overlap, parts)


@lru_cache(maxsize=1024)
def bands_of(plan: Plan, N: int, itemsize: int, threads: int) -> tuple[Tensor, int, int]:
    """How the weight gradient of N images is split: bands of sets, `(B, 6)`, the parts of each, and the images computed at a time.

    What one step needs fits into the cache. See `kernels.local.multiply_weights`.
    """
    rows, *others = plan.sharing.sets(plan.positions)
    (A, *size), share, each, stride = plan.positions, plan.sharing.share[0], prod(others), plan.geometry.stride[0]  # sets of a row
    pixels = plan.groups * plan.C * prod(plan.size) // rows  # of an image, that a row of sets sees
    images = max(1, BAND // ((plan.outputs * plan.P // rows + pixels) * itemsize))
    per = -(-rows // (threads * max(1, images // N)))  # bands of a thread: threads have equally many positions, inner bands whole rows
    ends, wanted, bands = plan.sets[2], 2 * plan.P * torch.arange(threads * per + 1, device=CPU) // (threads * per), []
    equal = torch.searchsorted(ends[1:] + ends[:-1], wanted).tolist()  # the nearest set
    for begin, end in pairwise(sorted({q if i % per == 0 else round(q / each) * each for i, q in enumerate(equal)})):
        first, last = begin // each * share, min(-(-end // each) * share, A)
        seen = first * stride - plan.geometry.padding[0][0], plan.geometry.extent[0] + (last - first - 1) * stride
        bands.append([begin, end, first * prod(size), (last - first) * prod(size), *seen])
    sums = each * plan.outputs * plan.cells * itemsize  # bytes kept between steps
    return torch.tensor(bands, device=CPU), min(plan.cells, -(-threads // len(bands))), min(images, N) if sums <= BAND else N
