"""Convolutions as gathered products: the tables that the loops of `cnn425.kernels.product` read, one plan per shape and layout.

The gradient of the input with stride s: every s-th pixel is reached by the same cells of the kernel, so it is s products per dimension over
the output gradient, each with the cells of one phase.
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from cnn425.algorithms.layout import CPU, Memory, stored_as
from cnn425.kernels import product as loops
from cnn425.kernels.box import REGISTER
from cnn425.kernels.threads import memory
from cnn425.kernels.tile import GROUPS, registers
from cnn425.windows import Geometry

Tile = tuple[int, ...] | None  # positions of a local layer whose indices are equal modulo the tile share weights
BOX = 1 << 19  # bytes of a box, which stay in the cache of a core
FEWEST = 96  # positions of a box that are enough to fill tiles
UNITS, FEW = 16, 4  # units of work that keep every thread busy; the same where each unit needs its own sums


class Axis(NamedTuple):
    """The windows along one axis, and which cells of the kernel they show."""

    positions: int = 1
    outputs: int = 1
    hop: int = 1  # outputs from one position to the next
    origin: int = 0  # the pixel where the first window starts
    step: int = 1  # pixels from window to window
    phases: Sequence[tuple[Sequence[int], Sequence[int]]] = (((0,), (0,)),)  # of each output of a hop: pixels to its cells, their numbers

    @property
    def span(self) -> int:
        """The pixels of a window."""
        return max(max(offsets, default=0) for offsets, _ in self.phases) + 1


@dataclass(frozen=True, eq=False)
class Plan:
    """A convolution of C inputs and O outputs per group, in Q panels of V registers, each `width` outputs, in the form that loops take."""

    C: int
    O: int
    V: int
    width: int
    Q: int
    F: int  # phases
    boxes: int
    parts: int  # of the panels
    work: int  # products
    numbers: tuple[int, int]  # in the memory of the two images
    sets: tuple[int, ...]  # of weights, cell by cell, phase by phase
    cells: tuple[int, ...]  # of the kernel
    image: tuple[object, ...]
    panels: tuple[object, ...]
    target: tuple[object, ...]
    kept: tuple[Tensor, ...]  # the memory of the tables


@lru_cache(maxsize=512)
def plan(
    map_: str, geometry: Geometry, groups: int, C: int, O: int, x: Memory, y: Memory, itemsize: int, G: int, tile: Tile = None
) -> Plan:
    """The plan of "output" or "input gradient", from image x to image y, with C inputs and O outputs per group.

    Groups of G inputs and as many outputs share panels. With a `tile`, there are so many sets of weights along each side.
    """
    (O, groups), channels, lanes = (O * groups, 1) if G else (O, groups), x.shape[1], REGISTER // itemsize
    V = registers(O, lanes, G)
    width = V * lanes
    firsts = [(g, o) for g in range(groups) for o in range(0, O, width)]
    Q, inputs, ones = len(firsts), 1 if G else C, (1,) * (5 - len(x.shape))
    panels = [[g * O + o for g, o in firsts], [min(width, O - o) for _, o in firsts], [o if G else g * C for g, o in firsts]]
    side = forward_side if map_ == "output" else backward_side
    tile, kernels = tile or (1,) * geometry.dimensions, (*ones, *geometry.kernel)
    sizes = zip(x.shape[2:], y.shape[2:], strict=True)
    sides = [*[Axis()] * len(ones), *[side(geometry, dim, n, m, tile[dim]) for dim, (n, m) in enumerate(sizes)]]
    images, box = box_of(sides, x.shape[0], channels, Q, width, BOX // itemsize)
    direct = is_direct(x, sides) and not (G and channels % width)
    pixels = x.in_five()[0][1:4] if direct else [(b - 1) * s.step + s.span for b, s in zip(box, sides, strict=True)]
    phases: list[list[int]] = []
    cells: list[int] = []
    sets: list[int] = []
    kernel: list[int] = []
    for outputs in product(*(range(len(s.phases)) for s in sides)):
        found = [s.phases[i] for s, i in zip(sides, outputs, strict=True)]
        more = places_of([offsets for offsets, _ in found], pixels, channels, inputs)
        phases.append([*outputs, len(cells), len(cells) + len(more)])
        cells += more
        sets += places_of([[w // k for w in which] for (_, which), k in zip(found, kernels, strict=True)], (*ones, *tile), 1, 1)
        kernel += places_of([[w % k for w in which] for (_, which), k in zip(found, kernels, strict=True)], kernels, 1, 1)
    rows = [*zip(*(s[:5] for s in sides), strict=True), box, pixels]
    tables = (x.in_five(), rows, list(zip(*phases, strict=True)), cells, panels, y.in_five())
    kept = tuple(torch.tensor(t, dtype=torch.int64, device=CPU) for t in tables)
    source, sides_, phases_, cells_, panels_, target = (memory(t, *t.shape) for t in kept)
    boxes = -(-x.shape[0] // images) * prod(-(-s.positions // b) for s, b in zip(sides, box, strict=True))
    work = x.shape[0] * prod(s.positions for s in sides) * Q * len(cells) * max(G, 1)
    image = source, sides_, images, int(direct), phases_, cells_
    parts = min(Q, -(-UNITS // boxes))
    numbers, weights = (x.numbers(), y.numbers()), (tuple(sets), tuple(kernel))
    return Plan(C, O, V, width, Q, len(phases), boxes, parts, work, numbers, *weights, image, panels_, target, kept)


# ---- Where windows are -------------------------------------------------------------------------------------------------------------------


def forward_side(geometry: Geometry, dim: int, n: int, m: int, tile: int) -> Axis:
    """The windows of the output along a side of n pixels and m positions; position i has the weights of set i % tile."""
    s, d, k = geometry.stride[dim], geometry.dilation[dim], geometry.kernel[dim]
    phases = [([i * s + u * d for u in range(k)], [i * k + u for u in range(k)]) for i in range(min(tile, m))]
    return Axis(-(-m // tile), m, tile, -geometry.padding[dim][0], s * tile, phases)


def backward_side(geometry: Geometry, dim: int, n: int, m: int, tile: int) -> Axis:
    """The windows of the gradient of m pixels: pixel h is reached by the cells u whose position `(h + low - u*d) / s` is an integer."""
    s, d, k, low = geometry.stride[dim], geometry.dilation[dim], geometry.kernel[dim], geometry.padding[dim][0]
    cells = [[u for u in range(k) if (h + low - u * d) % s == 0] for h in range(min(s * tile, m))]
    positions = [[(h + low - u * d) // s for u in which] for h, which in enumerate(cells)]
    origin = min(p for each in positions for p in each) if any(positions) else 0
    weights = [[p % tile * k + u for p, u in zip(*both, strict=True)] for both in zip(positions, cells, strict=True)]
    phases = [([p - origin for p in each], which) for each, which in zip(positions, weights, strict=True)]
    return Axis(-(-m // (s * tile)), m, s * tile, origin, tile, phases)


def places_of(offsets: Sequence[Sequence[int]], pixels: Sequence[int], channels: int, inputs: int) -> list[int]:
    """Where the cells of a window are in a box of so many pixels: in reading order, the inputs of a cell one after the other."""
    return [((t * pixels[1] + u) * pixels[2] + v) * channels + c for t, u, v in product(*offsets) for c in range(inputs)]


def box_of(sides: Sequence[Axis], images: int, channels: int, panels: int, width: int, room: int) -> tuple[int, tuple[int, int, int]]:
    """Images, and positions along d, h and w, of the boxes: as many as fit into a cache, and leave something for every thread."""
    (depth, height, across), (A, I, J) = sides, (s.positions for s in sides)

    def fits(n: int, i: int, j: int) -> bool:
        pixels = n * depth.span * ((i - 1) * height.step + height.span) * ((j - 1) * across.step + across.span)
        return pixels * channels <= room and n * depth.hop * i * height.hop * j * across.hop * panels * width <= room

    j = most(J, lambda m: fits(1, 1, m))
    i = most(I, lambda m: fits(1, m, j)) if j == J else 1
    n = most(images, lambda m: fits(m, i, j)) if (A, i, j) == (1, I, J) else 1
    while -(-images // n) * A * -(-I // i) * -(-J // j) * panels < UNITS and n * i * j > FEWEST:
        n, i, j = (-(-n // 2), i, j) if n > 1 else (1, -(-i // 2), j) if i > 1 else (1, 1, -(-j // 2))
    return even(images, n), (1, even(I, i), even(J, j))


def most(total: int, fits: Callable[[int], bool]) -> int:
    """The largest number up to a total that fits, or 1."""
    return bisect_left(range(2, total + 1), True, key=lambda m: not fits(m)) + 1


def even(total: int, length: int) -> int:
    """The least length that splits a total into no more pieces than `length` does."""
    return -(-total // -(-total // length))


def is_direct(x: Memory, sides: Sequence[Axis]) -> bool:
    """Whether windows may be read from the image in place: channels last, without padding."""
    (_, D, H, W, C), (_, *strides) = x.in_five()
    inside = all(s.origin >= 0 and s.origin + (s.positions - 1) * s.step + s.span <= n for s, n in zip(sides, (D, H, W), strict=True))
    return inside and all(n == 1 or a == b for n, a, b in zip((D, H, W, C), strides, (H * W * C, W * C, C, 1), strict=True))


# ---- Where weights are ------------------------------------------------------------------------------------------------------------------


class Places(NamedTuple):
    """Where a panel finds its numbers in a weight."""

    offset: Tensor  # from an output's first number, ascending
    order: Tensor  # which cell and input each is
    hop: int  # from output to output
    group: int  # from group to group


@lru_cache(maxsize=512)
def places(plan: Plan, numbers: int, cells: int, transposed: bool, last: bool) -> Places:
    """The places in a weight `(sets, G*O, C, cells)`, or with `last` `(G*O, cells, C)`; `transposed` exchanges the roles of O and C.

    Each set has `numbers` weights.
    """
    O, C = (plan.C, plan.O) if transposed else (plan.O, plan.C)
    of_cell, of_channel = (C, 1) if last else (1, cells)
    per_input, per_output = (C * cells, of_channel) if transposed else (of_channel, C * cells)
    offset = [s * numbers + cell * of_cell + c * per_input for s, cell in zip(plan.sets, plan.cells, strict=True) for c in range(plan.C)]
    return Places(*torch.tensor(offset, dtype=torch.int64, device=CPU).sort(), per_output, O * C * cells)


def stored_weight(w: Tensor, d: int) -> tuple[Tensor, bool]:
    """The weight in dense memory, and whether its channels are last there."""
    if w.is_contiguous():
        return w, False
    last = w.movedim(-d - 1, -1)
    return (w, True) if last.is_contiguous() else (w.contiguous(), False)


# ---- The maps ----------------------------------------------------------------------------------------------------------------------------
# The weight is `(O, C, *kernel)`, or with a `tile` of a local layer `(*tile, O, C, *kernel)`.


def small_group(w: Tensor, d: int, groups: int) -> int:
    """The inputs per group, if it has equally many outputs and is so small that several groups share a vector register; else 0."""
    O, C = w.shape[-d - 2 : w.ndim - d]
    return C if C in GROUPS and C * groups == O and groups > 1 else 0


def multiplier(w: Tensor, d: int, groups: int) -> int:
    """The m of a depthwise convolution with m outputs per input, if it is computed as m convolutions, of outputs j, j + m, ...; else 1.

    Together, m outputs would leave most of a vector register empty; apart, they fill it where there are enough inputs.
    """
    (O, C), lanes = w.shape[-d - 2 : w.ndim - d], REGISTER // w.itemsize
    return O // groups if C == 1 and groups * lanes > O and groups >= lanes else 1


def outputs_of(w: Tensor, d: int, j: int, m: int) -> Tensor:
    """The weight of the outputs j, j + m, j + 2m, ..."""
    return w.unflatten(-d - 2, (-1, m)).select(-d - 2, j)


def output(x: Tensor, w: Tensor, bias: Tensor | None, y: Tensor, geometry: Geometry, groups: int, tile: Tile = None) -> None:
    """Write the output `y`. With a `tile`, the bias may be `(O, *tile)`."""
    d = geometry.dimensions
    m = multiplier(w, d, groups)
    for j in range(m if m > 1 else 0):
        output(x, outputs_of(w, d, j, m), None if bias is None else bias[j::m], y[:, j::m], geometry, groups, tile)
    if m > 1:
        return
    G = small_group(w, d, groups)
    sizes = w.shape[-d - 1], w.shape[-d - 2] // groups
    found = plan("output", geometry, groups, *sizes, stored_as(x), stored_as(y), x.itemsize, G, tile)
    multiply(x, w, bias, y, found, d, G, transposed=False)


def input_gradient(gy: Tensor, w: Tensor, gx: Tensor, geometry: Geometry, groups: int, tile: Tile = None) -> None:
    """Write the gradient of the input `gx`: the same product over the output gradient, with inputs and outputs exchanged."""
    d = geometry.dimensions
    m = multiplier(w, d, groups)
    if m > 1:
        part = torch.empty_like(gx)
        for j in range(m):
            input_gradient(gy[:, j::m], outputs_of(w, d, j, m), part if j else gx, geometry, groups, tile)
            if j:
                gx += part
        return
    G = small_group(w, d, groups)
    sizes = w.shape[-d - 2] // groups, w.shape[-d - 1]
    found = plan("input gradient", geometry, groups, *sizes, stored_as(gy), stored_as(gx), gy.itemsize, G, tile)
    w = w.unflatten(-d - 2, (-1, G)).transpose(-d - 2, -d - 1).flatten(-d - 3, -d - 2) if G > 1 else w
    multiply(gy, w, None, gx, found, d, G, transposed=G == 0)


def multiply(x: Tensor, w: Tensor, bias: Tensor | None, y: Tensor, plan: Plan, d: int, G: int, transposed: bool) -> None:
    """Write `y`. The weight's outputs and inputs are those of `plan`, with `transposed` those of the other direction."""
    w, last = stored_weight(w, d)
    numbers, cells = prod(w.shape[-d - 2 :]), prod(w.shape[-d:])
    place, bias = places(plan, numbers, cells, transposed, last), w.new_empty(0) if bias is None else bias.movedim(0, -1).contiguous()
    K = len(place.offset)
    panels = w.new_empty(plan.Q, K, plan.width)
    given = memory(w, w.numel()), memory(place.offset, K), memory(place.order, K), place.hop, place.group, plan.O
    loops.pack(plan.Q * -(-K // loops.BLOCK), panels.numel(), *given, memory(panels, *panels.shape))
    weight = memory(panels, *panels.shape), memory(bias, bias.numel()), plan.panels, plan.V, G, plan.parts
    images = memory(x, plan.numbers[0]), *plan.image, *weight, plan.target, memory(y, plan.numbers[1])
    loops.product(plan.boxes * plan.parts, plan.work, *images)


def weight_gradient(gy: Tensor, x: Tensor, gw: Tensor, geometry: Geometry, groups: int, tile: Tile = None) -> None:
    """Write the gradient of the weight `gw`."""
    d = geometry.dimensions
    m = multiplier(gw, d, groups)
    if m > 1:
        for j in range(m):
            part = torch.empty_like(outputs_of(gw, d, j, m), memory_format=torch.contiguous_format)
            weight_gradient(gy[:, j::m], x, part, geometry, groups, tile)
            outputs_of(gw, d, j, m).copy_(part)
        return
    G = small_group(gw, d, groups)
    sizes = gw.shape[-d - 1], gw.shape[-d - 2] // groups
    found = plan("output", geometry, groups, *sizes, stored_as(x), stored_as(gy), x.itemsize, G, tile)
    place, Q = places(found, prod(gw.shape[-d - 2 :]), prod(gw.shape[-d:]), False, not gw.is_contiguous()), found.Q
    K, F, sums = len(place.offset), found.F, (x.numel() + gy.numel()) // gw.numel()  # so many sums are as large as the images
    # sums must cost less than the images, or with groups as much: then a box has the inputs of all groups, and each piece copies it
    parts = min(found.boxes, max(1, min(UNITS // Q, max(FEW // (Q * F), sums // 16)) if groups == 1 else min(UNITS, sums)))
    pieces = Q * min(F, -(-FEW // (Q * parts))) if groups == 1 else min(Q * F, -(-UNITS // parts))
    part = gw.new_empty(parts, Q, K, found.width)
    upstream = found.boxes, memory(gy, found.numbers[1]), found.panels, found.V, G, found.target, parts, pieces
    loops.weight_gradient(parts * pieces, found.work, memory(x, found.numbers[0]), *found.image, *upstream, memory(part, *part.shape))
    weight = memory(place.offset, K), memory(place.order, K), place.hop, place.group, found.O, memory(gw, gw.numel())
    loops.unpack(Q * -(-K // loops.BLOCK), part.numel(), memory(part, *part.shape), *weight)
