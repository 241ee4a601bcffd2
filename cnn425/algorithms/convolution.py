"""How the three maps of a convolution are computed: the table of choices, and what runs by default, im2col and loops.

| what comes                                                                    | how it is computed                                  |
|-------------------------------------------------------------------------------|-----------------------------------------------------|
| within `use("winograd")` or `use("fft")`, where they apply                    | `winograd`, `fft`                                   |
| another device, dtype or kind of tensor; a trace; within `use("definition")`  | `definition`                                        |
| at most FEW products of a pair of channels per group                          | loops over channels (`cnn425.kernels.depthwise`)    |
| everything else                                                               | im2col: windows as columns, one matrix product      |

im2col, for a block of windows at a time, in the layout of the result:

    channels last    y (M, O) = columns (M, K) @ w (K, O)        M windows of K = T*U*V*C/G cells
    contiguous       y (O, M) = w (O, K) @ columns (K, M)

The gradient of the weight is the product of the output gradient and the same columns, summed over blocks; the gradient of the input is the
product of the output gradient and the weight, whose columns are added to the pixels they came from (col2im). Half precision is computed in
float32 and rounded once. Extra memory: a block of columns.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from math import prod
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from cnn425.algorithms import definition, fft, layout, winograd
from cnn425.kernels import columns as loops
from cnn425.kernels import depthwise
from cnn425.kernels.threads import forced, loops_run, memory
from cnn425.windows import Geometry

HALF = (torch.bfloat16, torch.float16)
CONTIGUOUS = torch.contiguous_format
WIDE = 256  # pixels of an image that are enough for a product of its own
FEW = 32  # pairs of channels per group
BLOCK = 1 << 19  # numbers of a block of columns
PARTS = 16  # of the lines of all windows, summed up apart
ON_REQUEST: dict[str | None, ModuleType] = {"winograd": winograd, "fft": fft}


def output(x: Tensor, w: Tensor, geometry: Geometry, groups: int, bias: Tensor | None = None) -> Tensor:
    """The output, `(N, C, *size), (O, C/G, *kernel), (O,) -> (N, O, *positions)`."""
    order = layout.memory_format(x, w, geometry, groups)
    if x.dtype in HALF and loops_run(x.float()):
        y = output(x.float(), w.float(), geometry, groups, None if bias is None else bias.float())
        return layout.stored(y.to(x.dtype), order)
    if (way := chosen(x, w, geometry)) is not None:
        y = way.output(x, w, geometry, groups)
        return layout.stored(y if bias is None else y + bias.view(-1, *(1,) * geometry.dimensions), order)
    y = layout.empty(x, (x.shape[0], w.shape[0], *geometry.positions(x.shape[2:])), order)
    (loops_output if few(w, groups) else im2col_output)(Task(x, w, y, geometry, groups, order), bias)
    return y


def input_gradient(
    gy: Tensor, w: Tensor, geometry: Geometry, groups: int, size: Sequence[int], order: torch.memory_format | None = None
) -> Tensor:
    """The gradient of the input, `(N, O, *positions), (O, C/G, *kernel) -> (N, C, *size)`; laid out as `gy` and `w`, or as given."""
    order = order or layout.memory_format(gy, w)
    if gy.dtype in HALF and loops_run(gy.float()):
        return layout.stored(input_gradient(gy.float(), w.float(), geometry, groups, size, order).to(gy.dtype), order)
    if (way := chosen(gy, w, geometry)) is not None:
        return layout.stored(way.input_gradient(gy, w, geometry, groups, size), order)
    gx = layout.empty(gy, (gy.shape[0], w.shape[1] * groups, *size), order)
    (loops_input_gradient if few(w, groups) else im2col_input_gradient)(Task(gx, w, gy, geometry, groups, order))
    return gx


def weight_gradient(gy: Tensor, x: Tensor, geometry: Geometry, groups: int, order: torch.memory_format | None = None) -> Tensor:
    """The gradient of the weight, `(N, O, *positions), (N, C, *size) -> (O, C/G, *kernel)`; laid out as `gy` and `x`, or as given."""
    order = order or layout.memory_format(gy, x)
    if gy.dtype in HALF and loops_run(gy.float()):
        return layout.stored(weight_gradient(gy.float(), x.float(), geometry, groups, order).to(gy.dtype), order)
    if (way := chosen(gy, x, geometry)) is not None:
        return layout.stored(way.weight_gradient(gy, x, geometry, groups), order)
    gw = layout.empty(x, (gy.shape[1], x.shape[1] // groups, *geometry.kernel), order)
    (loops_weight_gradient if few(gw, groups) else im2col_weight_gradient)(Task(x, gw, gy, geometry, groups, order))
    return gw


# ---- The choice --------------------------------------------------------------------------------------------------------------------------


def chosen(a: Tensor, b: Tensor, geometry: Geometry) -> ModuleType | None:
    """The module that computes a map of `a` and `b`, or None for what runs by default."""
    if not loops_run(a, b) or not a.is_floating_point() or 0 in (a.numel(), b.numel()):
        return definition
    asked = ON_REQUEST.get(forced.get())
    return asked if asked is not None and asked.applies(a.dtype, geometry) else None


def few(w: Tensor, groups: int) -> bool:
    """Whether a group is so small that its matrix product would be all overhead, and the outputs fill a vector register."""
    return groups > 1 and w.shape[0] // groups * w.shape[1] <= FEW and w.shape[0] >= 8 and forced.get() != "im2col"


class Block(NamedTuple):
    """The windows of some lines of some images."""

    image: int
    images: int
    line: int
    lines: int


class Task:
    """One convolution as loops want it: image `x`, weight `w` and output `y`, any of which may be what is computed, and their sizes."""

    def __init__(self, x: Tensor, w: Tensor, y: Tensor, geometry: Geometry, groups: int, order: torch.memory_format) -> None:
        self.x, self.w, self.y, self.groups, self.last = x, w, y, groups, order is not CONTIGUOUS
        self.N, self.C, self.O = x.shape[0], w.shape[1], w.shape[0] // groups
        ones = (1,) * (3 - geometry.dimensions)
        self.size, self.kernel, self.positions = ((*ones, *sizes) for sizes in (x.shape[2:], w.shape[2:], y.shape[2:]))
        self.lines, self.J = self.positions[0] * self.positions[1], self.positions[2]
        self.grid = grid(geometry, tuple(x.shape[2:]), tuple(y.shape[2:]))
        self.cells = self.C * prod(self.kernel)
        plain = all(s == 1 for s in geometry.stride) and all(low == high == 0 for low, high in geometry.padding)
        self.pointwise = prod(self.kernel) == 1 and plain

    def blocks(self) -> Iterator[Block]:
        """Blocks of windows whose columns are not many; the lines of a small image stay together."""
        lines = max(1, BLOCK // max(1, self.cells * self.J))
        if self.pointwise and (self.last or self.lines * self.J >= WIDE):
            lines = self.lines * (self.N if self.last else 1)  # nothing is copied
        if lines >= self.lines:
            images = lines // self.lines
            yield from (Block(n, min(images, self.N - n), 0, self.lines) for n in range(0, self.N, images))
        else:
            yield from (Block(n, 1, line, min(lines, self.lines - line)) for n in range(self.N) for line in range(0, self.lines, lines))

    def buffer(self) -> Tensor:
        """Memory for the columns of a block."""
        block = next(self.blocks())
        return self.x.new_empty(0 if self.pointwise else block.images * block.lines * self.J * self.cells)

    def weights(self) -> Tensor:
        """The weight as one matrix per group: `(G, K, O)` with channels last, otherwise `(G, O, K)`."""
        w = self.w.unflatten(0, (self.groups, self.O))
        return (w.movedim((1, 2), (-1, -2)) if self.last else w).reshape(self.groups, *self.shape_of_weights())

    def shape_of_weights(self) -> tuple[int, int]:
        """Rows and columns of the weight of a group."""
        return (self.cells, self.O) if self.last else (self.O, self.cells)

    def write_weights(self, matrices: Tensor) -> None:
        """The inverse of `weights`."""
        kernel = self.w.shape[2:]
        if self.last:
            w = matrices.view(self.groups, *kernel, self.C, self.O).movedim((-1, -2), (1, 2))
        else:
            w = matrices.view(self.groups, self.O, self.C, *kernel)
        self.w.unflatten(0, (self.groups, self.O)).copy_(w)


@lru_cache(maxsize=1024)
def grid(geometry: Geometry, size: tuple[int, ...], positions: tuple[int, ...]) -> Tensor:
    """The geometry in the form of `cnn425.kernels.columns`, and the size of the image in the last row."""
    low = tuple(pads[0] for pads in geometry.padding)
    rows = ((geometry.kernel, 1), (geometry.stride, 1), (low, 0), (geometry.dilation, 1), (positions, 1), (size, 1))
    return torch.tensor([(*(alone,) * (3 - len(size)), *row) for row, alone in rows], device="cpu")


def stretch(t: Tensor, last: bool) -> Tensor:
    """The numbers in one stretch of memory, channels last or not; itself, if they are so stored."""
    return t.movedim(1, -1).contiguous().movedim(-1, 1) if last else t.contiguous()


def matrix(t: Tensor, task: Task, block: Block, group: int, channels: int) -> Tensor | None:
    """The numbers of `t`, an output or an input like one, in a block and a group: `(M, channels)` or its transpose; None if not a view."""
    own = slice(group * channels, (group + 1) * channels)
    if task.last:
        start = (block.image * task.lines + block.line) * task.J
        return t.movedim(1, -1).flatten(0, -2)[start : start + block.images * block.lines * task.J, own]
    if block.images > 1:
        return None
    return t[block.image, own].flatten(1)[:, block.line * task.J : (block.line + block.lines) * task.J]


def copied(t: Tensor, task: Task, block: Block, group: int, channels: int) -> Tensor:
    """The same as a matrix that may be a copy."""
    found = matrix(t, task, block, group, channels)
    if found is None:
        images = t[block.image : block.image + block.images, group * channels : (group + 1) * channels]
        found = images.transpose(0, 1).reshape(channels, -1)
    return found


def columns(x: Tensor, task: Task, block: Block, group: int, buffer: Tensor) -> Tensor:
    """The windows of a block in a group as columns, `(M, K)` with channels last, otherwise `(K, M)`."""
    if task.pointwise:
        return copied(x, task, block, group, task.C)
    M, J, (T, U, V) = block.images * block.lines * task.J, task.J, task.kernel
    where = memory(task.grid, 6, 3), block.image, block.line, group * task.C
    out = buffer[: M * task.cells]
    if task.last:
        image, shape = (task.N, *task.size, x.shape[1]), (block.images, block.lines, J, T, U, V * task.C)
        loops.gather_interleaved(block.images * block.lines, out.numel(), memory(x, *image), *where, memory(out, *shape))
        return out.view(M, task.cells)
    image, shape = (task.N, x.shape[1], *task.size), (task.cells, block.images, block.lines, J)
    loops.gather(task.cells, out.numel(), memory(x, *image), *where, memory(out, *shape))
    return out.view(task.cells, M)


def add_columns(gradient: Tensor, task: Task, block: Block, group: int) -> None:
    """Add the columns of a block to the pixels of `task.x` that they came from."""
    J, (T, U, V), (D, H, _), x = task.J, task.kernel, task.size, task.x
    where = memory(task.grid, 6, 3), block.image, block.line, group * task.C
    if task.last:
        image, shape = (task.N, *task.size, x.shape[1]), (block.images, block.lines, J, T, U, V * task.C)
        loops.scatter_interleaved(block.images * D * H, gradient.numel(), memory(gradient, *shape), *where, memory(x, *image))
    else:
        image, shape = (task.N, x.shape[1], *task.size), (task.cells, block.images, block.lines, J)
        loops.scatter(block.images * task.C, gradient.numel(), memory(gradient, *shape), *where, memory(x, *image))


# ---- im2col ------------------------------------------------------------------------------------------------------------------------------


def im2col_output(task: Task, bias: Tensor | None) -> None:
    """Write `task.y`."""
    x, w, O, buffer = stretch(task.x, task.last), task.weights(), task.O, task.buffer()
    biases = None if bias is None else bias.view(task.groups, 1, O) if task.last else bias.view(task.groups, O, 1)
    for block in task.blocks():
        for g in range(task.groups):
            windows = columns(x, task, block, g, buffer)
            left, right = (windows, w[g]) if task.last else (w[g], windows)
            target = matrix(task.y, task, block, g, O)
            out = torch.mm(left, right, out=target) if biases is None else torch.addmm(biases[g], left, right, out=target)
            if target is None:
                put(out, task.y, block, g)


def im2col_weight_gradient(task: Task) -> None:
    """Write `task.w`."""
    x, gy, buffer = stretch(task.x, task.last), stretch(task.y, task.last), task.buffer()
    gw = task.x.new_zeros(task.groups, *task.shape_of_weights())
    for block in task.blocks():
        for g in range(task.groups):
            windows, gradient = columns(x, task, block, g, buffer), copied(gy, task, block, g, task.O)
            gw[g].addmm_(windows.t(), gradient) if task.last else gw[g].addmm_(gradient, windows.t())
    task.write_weights(gw)


def im2col_input_gradient(task: Task) -> None:
    """Write `task.x`."""
    gy, w, buffer = stretch(task.y, task.last), task.weights(), task.buffer()
    for block in task.blocks():
        for g in range(task.groups):
            gradient = copied(gy, task, block, g, task.O)
            left, right = (gradient, w[g].t()) if task.last else (w[g].t(), gradient)
            if task.pointwise:
                target = matrix(task.x, task, block, g, task.C)
                out = torch.mm(left, right, out=target)
                if target is None:
                    put(out, task.x, block, g)
            else:
                out = buffer[: gradient.numel() // task.O * task.cells].view(len(left), right.shape[1])
                add_columns(torch.mm(left, right, out=out), task, block, g)


def put(found: Tensor, t: Tensor, block: Block, group: int) -> None:
    """Write the product of several images, `(channels, images * pixels)`, to the images."""
    channels = len(found)
    images = t[block.image : block.image + block.images, group * channels : (group + 1) * channels]
    images.copy_(found.view(channels, block.images, *t.shape[2:]).transpose(0, 1))


# ---- Loops over channels -----------------------------------------------------------------------------------------------------------------


def spread(t: Tensor, task: Task) -> Tensor:
    """The channels that every output sees: `(n, *size, G*C) -> (n, *size, C, G*O)`; the image itself if there is one for each."""
    t = t.unflatten(-1, (task.groups, task.C)).transpose(-1, -2)
    return t.unsqueeze(-1).expand(*t.shape, task.O).flatten(-2).contiguous()


def gathered_up(t: Tensor, task: Task) -> Tensor:
    """The adjoint of `spread`."""
    if task.O > 1:
        t = t.unflatten(-1, (task.groups, task.O)).sum(-1)
    return t.transpose(-1, -2).flatten(-2)


def weights_of_cells(task: Task) -> Tensor:
    """The weight as `(T*U*V, C, G*O)`."""
    return task.w.reshape(task.groups * task.O, task.C, -1).permute(2, 1, 0).contiguous()


def parts_of(task: Task) -> Iterator[slice]:
    """Some images at a time, so that copies are not large."""
    numbers = task.groups * task.O * (task.C * prod(task.size) + task.lines * task.J)
    step = task.N if task.last and task.C == task.O == 1 else max(1, 2 * BLOCK // numbers)
    return (slice(n, min(n + step, task.N)) for n in range(0, task.N, step))


def loops_output(task: Task, bias: Tensor | None) -> None:
    """Write `task.y`."""
    w, GO, E, places = weights_of_cells(task), task.groups * task.O, task.C, memory(task.grid, 6, 3)
    b = task.w.new_zeros(GO) if bias is None else bias.contiguous()
    y = task.y.movedim(1, -1)
    for n in parts_of(task):
        x = spread(task.x[n].movedim(1, -1), task)
        part = y[n] if task.last else y[n].new_empty(y[n].shape)
        lines, weight = len(x) * task.lines, memory(w, *task.kernel, E * GO)
        image = memory(x, len(x), *task.size[:2], task.size[2] * E * GO)
        depthwise.convolve(lines, part.numel() * task.cells, image, weight, memory(b, GO), places, memory(part, lines, task.J, GO))
        if not task.last:
            y[n].copy_(part)


def loops_input_gradient(task: Task) -> None:
    """Write `task.x`."""
    w, GO, E, places = weights_of_cells(task), task.groups * task.O, task.C, memory(task.grid, 6, 3)
    for n in parts_of(task):
        gy, direct = task.y[n].movedim(1, -1).contiguous(), task.last and E == task.O == 1
        target = task.x[n].movedim(1, -1)
        gx = target if direct else gy.new_empty(len(gy), *task.x.shape[2:], E, GO)
        lines, weight = len(gy) * prod(task.size[:2]), memory(w, *task.kernel, E * GO)
        upstream = memory(gy, len(gy), *task.positions[:2], task.J * GO)
        depthwise.input_gradient(lines, gy.numel() * task.cells, upstream, weight, places, memory(gx, lines, task.size[2], E * GO))
        if not direct:
            target.copy_(gathered_up(gx, task))


def loops_weight_gradient(task: Task) -> None:
    """Write `task.w`."""
    GO, E, total = task.groups * task.O, task.C, task.w.new_zeros(prod(task.kernel), task.C, task.groups * task.O)
    for n in parts_of(task):
        gy, x = task.y[n].movedim(1, -1).contiguous(), spread(task.x[n].movedim(1, -1), task)
        lines = len(gy) * task.lines
        parts = min(PARTS, lines)
        gw = gy.new_empty(parts, *total.shape)
        image = memory(x, len(x), *task.size[:2], task.size[2] * E * GO)
        upstream, result = memory(gy, lines, task.J, GO), memory(gw, parts, *task.kernel, E * GO)
        depthwise.weight_gradient(parts, gy.numel() * task.cells, upstream, image, memory(task.grid, 6, 3), parts, result)
        total += gw.sum(0)
    task.w.copy_(total.permute(2, 1, 0).view(task.w.shape))
