"""How the three maps of a convolution are computed: the table of choices, and what runs by default.

| what comes                                                                    | how it is computed                              |
|-------------------------------------------------------------------------------|-------------------------------------------------|
| within `use("im2col")`, `use("winograd")` or `use("fft")`, where they apply   | `im2col`, `winograd`, `fft`                     |
| another device, dtype or kind of tensor; a trace; within `use("definition")`  | `definition`                                    |
| at most TINY products                                                         | loops of the local layer, with shared weights   |
| one input and one output channel per group, at least MANY groups              | loops over channels, `cnn425.kernels.depthwise` |
| everything else                                                               | gathered products, `cnn425.kernels.product`     |

Loops read images whose channels are last in memory, padded with zeros, some at a time; where a tensor is stored so, it is not copied.
Half precision is computed in float32 and rounded once.

The gradient of the input with stride s: every s-th pixel is met by the same cells of the kernel, so it is s products per dimension over the
output gradient, each with the cells of one phase.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from math import prod
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from cnn425.algorithms import definition, fft, im2col, layout, winograd
from cnn425.algorithms.local import Task, grid
from cnn425.compat import dispatch_modes, is_transformed
from cnn425.kernels import depthwise
from cnn425.kernels import product as loops
from cnn425.kernels.threads import forced, is_traced, loops_run, memory
from cnn425.windows import Geometry
from cnn425.windows import pad as zeros_around

HALF = (torch.bfloat16, torch.float16)
CPU = torch.device("cpu")
TINY = 1 << 14  # products, which are made faster than anything is brought in order
MANY = 8  # channels that fill a vector register
THIN = 4  # so few outputs of a product would leave most of a vector register empty
NUMBERS = 1 << 20  # of images that are copied at a time
CHUNK, ROWS, SUM = 48, 12, 64  # positions that a thread takes at a time; of the largest tile; that are summed up at a time
ON_REQUEST: dict[str | None, ModuleType] = {"im2col": im2col, "winograd": winograd, "fft": fft}


def output(x: Tensor, w: Tensor, geometry: Geometry, groups: int, bias: Tensor | None = None) -> Tensor:
    """The output, `(N, C, *size), (O, C/G, *kernel), (O,) -> (N, O, *positions)`."""
    order = layout.memory_format(x, w, geometry, groups)
    if x.dtype in HALF and x.is_cpu and loops_run(x.float()):
        y = output(x.float(), w.float(), geometry, groups, None if bias is None else bias.float())
        return layout.stored(y.to(x.dtype), order)
    if (way := chosen(x, w, geometry)) is not None:
        y = way.output(x, w, geometry, groups)
        return layout.stored(y if bias is None else y + bias.view(-1, *(1,) * geometry.dimensions), order)
    y = layout.empty(x, (x.shape[0], w.shape[0], *geometry.positions(x.shape[2:])), order)
    if y.numel() * w[0].numel() <= TINY:
        task = Task(x, w, y, geometry, groups, shared=True)
        task.sweep_output(bias)
        return y if task.y is y else layout.stored(task.y, order)
    if is_depthwise(w, groups):
        depthwise_output(x, w, bias, y, order, geometry)
    else:
        found = plan("output", geometry, tuple(x.shape[2:]), w.shape[1], w.shape[0] // groups, groups, x.itemsize)
        gathered_product(x, w, bias, y, order, found, transposed=False)
    return y


def input_gradient(
    gy: Tensor, w: Tensor, geometry: Geometry, groups: int, size: Sequence[int], order: torch.memory_format | None = None
) -> Tensor:
    """The gradient of the input, `(N, O, *positions), (O, C/G, *kernel) -> (N, C, *size)`; stored as `gy` and `w`, or as given."""
    order = order or layout.memory_format(gy, w)
    if gy.dtype in HALF and gy.is_cpu and loops_run(gy.float()):
        return layout.stored(input_gradient(gy.float(), w.float(), geometry, groups, size, order).to(gy.dtype), order)
    if (way := chosen(gy, w, geometry)) is not None:
        return layout.stored(way.input_gradient(gy, w, geometry, groups, size), order)
    gx = layout.empty(gy, (gy.shape[0], w.shape[1] * groups, *size), order)
    if gy.numel() * w[0].numel() <= TINY:
        task = Task(gx, w, gy, geometry, groups, shared=True)
        task.sweep_input_gradient()
        return gx if task.x is gx else layout.stored(task.x, order)
    if is_depthwise(w, groups):
        depthwise_input_gradient(gy, w, gx, order, geometry)
    elif groups == 1 and w.shape[1] <= THIN:
        scattered_product(gy, w, gx, geometry)
    else:
        found = plan("input gradient", geometry, tuple(size), w.shape[0] // groups, w.shape[1], groups, gy.itemsize)
        gathered_product(gy, w, None, gx, order, found, transposed=True)
    return gx


def weight_gradient(gy: Tensor, x: Tensor, geometry: Geometry, groups: int, order: torch.memory_format | None = None) -> Tensor:
    """The gradient of the weight, `(N, O, *positions), (N, C, *size) -> (O, C/G, *kernel)`; stored as `gy` and `x`, or as given."""
    order = order or layout.memory_format(gy, x)
    if gy.dtype in HALF and gy.is_cpu and loops_run(gy.float()):
        return layout.stored(weight_gradient(gy.float(), x.float(), geometry, groups, order).to(gy.dtype), order)
    if (way := chosen(gy, x, geometry)) is not None:
        return layout.stored(way.weight_gradient(gy, x, geometry, groups), order)
    gw = layout.empty(x, (gy.shape[1], x.shape[1] // groups, *geometry.kernel), order)
    if gy.numel() * gw[0].numel() <= TINY:
        task = Task(x, gw if gw.is_contiguous() else gw.new_empty(gw.shape), gy, geometry, groups, shared=True)
        task.sweep_weight_gradient()
        return gw if task.w is gw else layout.stored(task.w, order)
    if is_depthwise(gw, groups):
        depthwise_weight_gradient(gy, x, gw, order, geometry)
    else:
        found = plan("output", geometry, tuple(x.shape[2:]), gw.shape[1], gw.shape[0] // groups, groups, x.itemsize)
        gathered_weight_gradient(gy, x, gw, order, found)
    return gw


# ---- The choice --------------------------------------------------------------------------------------------------------------------------


def chosen(a: Tensor, b: Tensor, geometry: Geometry) -> ModuleType | None:
    """The module that computes a map of `a` and `b`, or None for what runs by default."""
    if not a.is_floating_point() or 0 in (a.numel(), b.numel()):
        return definition
    asked, loops = ON_REQUEST.get(forced.get()), loops_run(a, b)
    if asked is not None and (loops or computes_elsewhere(a)) and asked.applies(a.dtype, geometry):
        return asked
    return None if loops else definition


def computes_elsewhere(x: Tensor) -> bool:
    """Whether numbers of another device than the CPU are computed, and nobody records or transforms operations."""
    return not (x.is_cpu or is_traced() or dispatch_modes() or is_transformed(x))


def is_depthwise(w: Tensor, groups: int) -> bool:
    """Whether every group has one input and one output, and the groups fill a vector register."""
    return w.shape[0] == groups >= MANY and w.shape[1] == 1


# ---- Gathered products -------------------------------------------------------------------------------------------------------------------


class Phase(NamedTuple):
    """The outputs that are made of the same cells of the kernel, in numbers of an image whose channels are last."""

    P: int  # outputs per channel
    row: Tensor  # (P and some more) where the windows start
    out: Tensor  # (P and some more) where the outputs are
    cell: Tensor  # (panels, K) where the cells of a window are
    more: Tensor  # (panels, K and some more) the same, for tiles of cells
    which: Tensor  # the cells of the kernel


@dataclass(frozen=True, eq=False)
class Plan:
    """One convolution as gathered products: C inputs and O outputs per group, in panels of V registers."""

    C: int
    O: int
    groups: int
    V: int
    width: int  # outputs of a panel
    panels: Tensor  # (2, panels): the first output and their number
    wide: int  # outputs of all panels, those that do not exist included
    low: tuple[int, ...]  # zeros in front of the image
    padded: tuple[int, ...]  # the size of the image with zeros
    phases: tuple[Phase, ...]
    complete: bool  # whether every output is in a phase


@lru_cache(maxsize=512)
def plan(map_: str, geometry: Geometry, size: tuple[int, ...], C: int, O: int, groups: int, itemsize: int) -> Plan:
    """The plan of one of two maps of an image of `size` pixels: "output", or "input gradient" with C and O exchanged."""
    lanes = loops.LANES // itemsize
    V = min((4, 2, 1), key=lambda v: -(-O // (v * lanes)) * v)
    width = V * lanes
    firsts = [(g, o) for g in range(groups) for o in range(0, O, width)]
    outputs = [min(width, O - o) for _, o in firsts]
    panels = torch.tensor([[g * O + o for g, o in firsts], outputs], device=CPU)
    sides = [(forward_side if map_ == "output" else backward_side)(geometry, dim, n) for dim, n in enumerate(size)]
    low, padded = tuple(side[0] for side in sides), tuple(side[1] for side in sides)
    targets = geometry.positions(size) if map_ == "output" else size
    channels = torch.tensor([g * C for g, _ in firsts], device=CPU)
    phases = []
    for rows, outs, cells, which in (zip(*phase, strict=True) for phase in product(*(side[2] for side in sides))):
        if all(len(t) for t in (*rows, *cells)):
            row, out = (torch.cat((t, t[-1:].expand(ROWS))) for t in (flat(rows, padded, groups * C), flat(outs, targets, groups * O)))
            inside = flat(cells, padded, groups * C).unsqueeze(1) + torch.arange(C, device=CPU)
            cell = (channels[:, None, None] + inside).flatten(1)
            more = torch.cat((cell, cell[:, -1:].expand(len(cell), ROWS)), 1)
            phases.append(Phase(len(row) - ROWS, row, out, cell, more, flat(which, geometry.kernel, 1)))
    complete = sum(phase.P for phase in phases) == prod(targets)
    wide = max(g * O + o + width for g, o in firsts)
    return Plan(C, O, groups, V, width, panels, wide, low, padded, tuple(phases), complete)


Side = tuple[int, int, list[tuple[Tensor, Tensor, Tensor, Tensor]]]


def forward_side(geometry: Geometry, dim: int, n: int) -> Side:
    """Zeros in front, the padded size, and the one phase of the output along a side: rows, outputs, cells, and which cells these are."""
    k, s, (low, _), dilation = geometry.kernel[dim], geometry.stride[dim], geometry.padding[dim], geometry.dilation[dim]
    P = geometry.positions_along(dim, n)
    i, u = torch.arange(P, device=CPU), torch.arange(k, device=CPU)
    return low, max(low + n, (P - 1) * s + (k - 1) * dilation + 1), [(i * s, i, u * dilation, u)]


def backward_side(geometry: Geometry, dim: int, n: int) -> Side:
    """The same for the gradient of the input: pixel h of phase h modulo s is met at positions `(h + low - u*d) / s` by the cells u."""
    k, s, (low, _), dilation = geometry.kernel[dim], geometry.stride[dim], geometry.padding[dim], geometry.dilation[dim]
    P, u = geometry.positions_along(dim, n), torch.arange(k, device=CPU)
    phases = []
    for first in range(min(s, n)):
        which = u[(first + low - u * dilation) % s == 0]
        h = torch.arange(first, n, s, device=CPU)
        phases.append((torch.arange(len(h), device=CPU), h, (first + low - which * dilation) // s, which))
    shifts = torch.cat([shift for _, _, shift, _ in phases] + [u.new_zeros(1)])
    front = max(0, -int(shifts.min()))
    last = max((len(rows) - 1 + int(shift.max()) for rows, _, shift, _ in phases if len(shift)), default=0)
    return front, front + max(P, last + 1), [(rows + front, h, shift, which) for rows, h, shift, which in phases]


def flat(parts: Sequence[Tensor], size: Sequence[int], channels: int) -> Tensor:
    """Places along each side as places in memory: in reading order, `channels` numbers per pixel."""
    total = torch.zeros(1, dtype=torch.int64, device=CPU)
    for places, n in zip(parts, size, strict=True):
        total = (total.unsqueeze(1) * n + places).flatten()
    return total * channels


class Places(NamedTuple):
    """Where a panel finds its numbers in a weight: those of the cells and inputs k, and the distances between outputs and groups."""

    offset: Tensor
    hop: int
    group: int


@lru_cache(maxsize=512)
def places(plan: Plan, phase: int, cells: int, transposed: bool, last: bool) -> Places:
    """The places in a weight `(G*O, C, cells)`, or with `last` `(G*O, cells, C)`; `transposed` exchanges the roles of O and C."""
    O, C = (plan.C, plan.O) if transposed else (plan.O, plan.C)
    of_cell, of_channel = (C, 1) if last else (1, cells)
    per_input, per_output = (C * cells, of_channel) if transposed else (of_channel, C * cells)
    inputs = torch.arange(plan.C, device=CPU) * per_input
    return Places((plan.phases[phase].which.unsqueeze(1) * of_cell + inputs).flatten(), per_output, O * C * cells)


def stored_weight(w: Tensor) -> tuple[Tensor, bool]:
    """The weight in one stretch of memory, and whether its channels are last there."""
    if w.is_contiguous():
        return w, False
    last = w.movedim(1, -1)
    return (w, True) if last.is_contiguous() else (w.contiguous(), False)


def padded(t: Tensor, plan: Plan, last: bool, extra: int) -> Iterator[tuple[slice, Tensor]]:
    """Some images at a time with their channels last and the plan's zeros around them, `(images, numbers)`; `extra` more are written."""
    if last and plan.padded == tuple(t.shape[2:]):
        yield slice(0, len(t)), t.movedim(1, -1).contiguous().flatten(1)
        return
    t = t.movedim(1, -1).contiguous().movedim(-1, 1) if last else t.contiguous()
    (N, C), (D, H, W) = t.shape[:2], in_three(plan.padded)
    strides, low = steps(t.shape, t.stride(), plan.low)
    step = min(N, max(1, NUMBERS // (D * H * W * C + extra)))
    buffer = t.new_empty(step, D * H * W * C)
    for n in range(0, N, step):
        images, part = t[n : n + step], buffer[: N - n]
        count = part.shape[0]
        image = memory(low, 3), C, memory(part, count, D, H, W * C)
        loops.pad(count * D * H, images.numel(), memory(images, images.numel()), memory(strides, 2, 5), *image)
        yield slice(n, n + count), part


@lru_cache(maxsize=512)
def steps(shape: tuple[int, ...], stride: tuple[int, ...], low: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Sizes of an image along n, d, h, w, c and numbers from one to the next, and the zeros in front along three sides, for `loops.pad`."""
    ones = (1,) * (3 - len(low))
    sizes = (shape[0], *ones, *shape[2:], shape[1]), (stride[0], *ones, *stride[2:], stride[1])
    return torch.tensor(sizes, device=CPU), torch.tensor((*(0 for _ in ones), *low), device=CPU)


def gathered_product(
    x: Tensor, w: Tensor, bias: Tensor | None, y: Tensor, order: torch.memory_format, plan: Plan, transposed: bool
) -> None:
    """Write `y`: the product of every phase. The weight is `(G*O, C, *kernel)`, with `transposed` that of the other direction."""
    last, Q, width = order is not torch.contiguous_format, plan.panels.shape[1], plan.width
    b, (w, weight_last) = panel_bias(bias, plan, x), stored_weight(w)
    panels = [packed(w, plan, places(plan, i, prod(w.shape[2:]), transposed, weight_last)) for i in range(len(plan.phases))]
    numbers, target, buffer = y[0].numel(), y.movedim(1, -1), y.new_empty(0)
    for n, images in padded(x, plan, last, 0 if last else numbers):
        if not last and not buffer.numel():
            buffer = y.new_empty(target[n].shape)  # the first block is the largest
        part = target[n] if last else buffer[: images.shape[0]]
        if not plan.complete:
            part.zero_()
        for phase, panel in zip(plan.phases, panels, strict=True):
            K, count = panel.shape[1], images.shape[0]
            units = count * -(-phase.P // CHUNK)
            source, cells = memory(images, *images.shape), memory(phase.cell, Q, K)
            where = memory(phase.row, phase.P + ROWS), phase.P, cells, memory(panel, Q, K, width), memory(b, Q * width)
            results = memory(plan.panels, 2, Q), plan.V, CHUNK, memory(phase.out, phase.P + ROWS), memory(part, count, numbers)
            loops.product(units, count * phase.P * Q * K, source, *where, *results)
        if not last:
            target[n].copy_(part)


def panel_bias(bias: Tensor | None, plan: Plan, like: Tensor) -> Tensor:
    """The bias of every panel, `(panels * width)`, or zeros."""
    Q, width = plan.panels.shape[1], plan.width
    if bias is None:
        return like.new_zeros(Q * width)
    b, one, no = like.new_empty(Q * width), bias.contiguous(), plan.panels.new_zeros(1)
    loops.pack(Q, Q, memory(one, one.numel()), memory(no, 1), 1, plan.O, plan.O, memory(b, Q, 1, width))
    return b


def packed(w: Tensor, plan: Plan, place: Places) -> Tensor:
    """The weight in panels `(panels, K, width)`."""
    Q, K = plan.panels.shape[1], place.offset.shape[0]
    p = w.new_empty(Q, K, plan.width)
    weight = memory(w, w.numel()), memory(place.offset, K), place.hop, place.group, plan.O
    loops.pack(Q * -(-K // loops.BLOCK), p.numel(), *weight, memory(p, *p.shape))
    return p


def gathered_weight_gradient(gy: Tensor, x: Tensor, gw: Tensor, order: torch.memory_format, plan: Plan) -> None:
    """Write `gw`."""
    last, Q, width, phase = order is not torch.contiguous_format, plan.panels.shape[1], plan.width, plan.phases[0]
    K, O, P, wide, total = phase.cell.shape[1], gy.shape[1], phase.P, plan.wide, None
    rows = K + ROWS
    for n, images in padded(x, plan, last, P * wide):
        upstream = gy[n].movedim(1, -1)
        if not upstream.is_contiguous() or wide > O:
            upstream = zeros_around(upstream, [(0, wide - O)]) if wide > O else upstream.contiguous()
        count = images.shape[0]
        sums = count * -(-P // SUM)
        parts = min(sums, max(1, 16 // Q))
        found = gw.new_empty(parts, Q, rows, width)
        source, g = memory(images, *images.shape), memory(upstream, count, P * max(O, wide))
        where = memory(phase.row, P + ROWS), P, memory(phase.more, Q, rows), K, g, memory(plan.panels, 2, Q), plan.V, SUM, parts
        loops.weight_gradient(parts * Q, count * P * Q * K, source, *where, memory(found, parts, Q, rows, width))
        total = found if total is None else total.add_(found)
    assert total is not None
    place = places(plan, 0, prod(gw.shape[2:]), False, not gw.is_contiguous())
    weight = memory(place.offset, K), place.hop, place.group, plan.O, memory(gw, gw.numel())
    loops.unpack(Q * -(-K // loops.BLOCK), total.numel(), memory(total, *total.shape), *weight)


def scattered_product(gy: Tensor, w: Tensor, gx: Tensor, geometry: Geometry) -> None:
    """Write `gx` of few channels: what every window says about its cells is one product, `(M, O) (O, cells*C)`, and is added to pixels."""
    (O, C), V = w.shape[:2], geometry.kernel[-1] if geometry.dilation[-1] == 1 else 1
    found = plan("output", geometry, tuple(gx.shape[2:]), C, O, 1, gy.itemsize)
    phase, matrix, numbers = found.phases[0], w.movedim(1, -1).reshape(O, -1), prod(found.padded) * C
    cell = phase.cell[0, :: V * C].contiguous()
    inside = tuple(slice(low, low + n) for low, n in zip(found.low, gx.shape[2:], strict=True))
    step = min(len(gy), max(1, NUMBERS // (numbers + phase.P * (matrix.shape[1] + O))))
    z, pixels = gy.new_empty(step * phase.P, matrix.shape[1]), gy.new_empty(step, *found.padded, C)
    for n in range(0, len(gy), step):
        images = min(step, len(gy) - n)
        torch.mm(gy[n : n + step].movedim(1, -1).reshape(-1, O), matrix, out=z[: images * phase.P])
        source = memory(z, images, phase.P, len(cell), V * C), memory(phase.row, len(phase.row)), phase.P, memory(cell, len(cell))
        loops.scatter(images, z.numel(), *source, memory(pixels, images, numbers))
        gx[n : n + step].copy_(pixels[(slice(images), *inside)].movedim(-1, 1))


# ---- Loops over channels -----------------------------------------------------------------------------------------------------------------


def some_images(*tensors: Tensor, last: bool) -> Iterator[slice]:
    """All images, if their channels are last, otherwise some at a time, so that copies are not large."""
    images = len(tensors[0])
    step = images if last else max(1, NUMBERS // sum(t[0].numel() for t in tensors))
    return (slice(n, min(n + step, images)) for n in range(0, images, step))


def in_three(sizes: Sequence[int]) -> tuple[int, ...]:
    """Sizes along three sides."""
    return (*(1,) * (3 - len(sizes)), *sizes)


def depthwise_output(x: Tensor, w: Tensor, bias: Tensor | None, y: Tensor, order: torch.memory_format, geometry: Geometry) -> None:
    """Write `y`."""
    C, (*lines, J), (*above, W), last = len(w), in_three(y.shape[2:]), in_three(x.shape[2:]), order is not torch.contiguous_format
    cells, b = w.flatten(1).t().contiguous(), w.new_zeros(C) if bias is None else bias.contiguous()
    weight = memory(cells, *in_three(w.shape[2:]), C), memory(b, C), memory(grid(geometry, tuple(x.shape[2:])), 6, 3)
    for n in some_images(x, y, last=last):
        images, target = x[n].movedim(1, -1).contiguous(), y[n].movedim(1, -1)
        part = target if last else y.new_empty(target.shape)
        rows = len(images) * prod(lines)
        arguments = memory(images, len(images), *above, W * C), *weight, memory(part, rows, J, C)
        depthwise.convolve(rows, part.numel() * len(cells), *arguments)
        if not last:
            target.copy_(part)


def depthwise_input_gradient(gy: Tensor, w: Tensor, gx: Tensor, order: torch.memory_format, geometry: Geometry) -> None:
    """Write `gx`."""
    if max(geometry.stride) == 1:  # a convolution of the output gradient with the kernel turned around
        sides = zip(geometry.extent, geometry.padding, gx.shape[2:], gy.shape[2:], strict=True)
        padding = tuple((e - 1 - low, n + low - P) for e, (low, _), n, P in sides)
        depthwise_output(gy, w.flip(tuple(range(2, w.ndim))), None, gx, order, geometry._replace(padding=padding))
        return
    C, (*lines, J), (*above, W), last = len(w), in_three(gy.shape[2:]), in_three(gx.shape[2:]), order is not torch.contiguous_format
    cells = w.flatten(1).t().contiguous()
    weight = memory(cells, *in_three(w.shape[2:]), C), memory(grid(geometry, tuple(gx.shape[2:])), 6, 3)
    for n in some_images(gx, gy, last=last):
        upstream, target = gy[n].movedim(1, -1).contiguous(), gx[n].movedim(1, -1)
        part = target if last else gx.new_empty(target.shape)
        rows = len(upstream) * prod(above)
        arguments = memory(upstream, len(upstream), *lines, J * C), *weight, memory(part, rows, W, C)
        depthwise.input_gradient(rows, upstream.numel() * len(cells), *arguments)
        if not last:
            target.copy_(part)


def depthwise_weight_gradient(gy: Tensor, x: Tensor, gw: Tensor, order: torch.memory_format, geometry: Geometry) -> None:
    """Write `gw`."""
    C, (*lines, J), (*above, W) = len(gw), in_three(gy.shape[2:]), in_three(x.shape[2:])
    places, kernel, total = memory(grid(geometry, tuple(x.shape[2:])), 6, 3), in_three(gw.shape[2:]), gw.new_zeros(prod(gw.shape[2:]), C)
    for n in some_images(x, gy, last=order is not torch.contiguous_format):
        upstream, images = gy[n].movedim(1, -1).contiguous(), x[n].movedim(1, -1).contiguous()
        rows = len(images) * prod(lines)
        parts = min(16, rows)
        found = gw.new_empty(parts, *total.shape)
        arguments = memory(upstream, rows, J, C), memory(images, len(images), *above, W * C), places, parts
        depthwise.weight_gradient(parts, upstream.numel() * len(total), *arguments, memory(found, parts, *kernel, C))
        total += found.sum(0)
    gw.copy_(total.t().reshape(gw.shape))
