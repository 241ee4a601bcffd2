"""How the three maps of a local layer are computed: the table of choices, and what runs by default, products and loops.

| what comes                                                                    | how it is computed                                  |
|-------------------------------------------------------------------------------|-----------------------------------------------------|
| another device, dtype or kind of tensor; a trace; within `use("definition")`  | `definition`                                        |
| within `use("sweep")`; one or two images; windows of one cell and few outputs | `sweep`: loops over the weight, as the formula says |
| everything else                                                               | `matmul`: one matrix product per position           |

At a position the layer is a fully connected one: a matrix of O rows of K = C/G*T*U*V weights meets the N windows there. q is the set of
weights that position p uses, its own or one that it shares.

    output            y[p]     =  x[p]   w[q]'                               (N, K) (K, O)  -> (N, O)
    weight gradient   gw[q]    =  sum over its positions p of gy[p]' x[p]    (O, N) (N, K)  -> (O, K)
    window gradient   gx[p]    =  gy[p]  w[q]                                (N, O) (O, K)  -> (N, K)       then added to the pixels

The weight is not copied. For products images are interleaved, so that a vector register holds one pixel of several. Half precision is
computed in float32 and rounded once.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from math import prod

import torch
from torch import Tensor

from cnn425.algorithms import definition, layout
from cnn425.algorithms.layout import HALF
from cnn425.kernels import elementwise as pointwise
from cnn425.kernels import local as loops
from cnn425.kernels.box import LANES
from cnn425.kernels.threads import forced, loops_run, memory
from cnn425.windows import Geometry, Sharing, pad

CPU = torch.device("cpu")
FEW = 4  # outputs of a window of one cell, for which a product is not worth it
IMAGES = 2  # so few would leave most of a vector register empty
UPSTREAM = 1 << 18  # numbers of the output's gradient that are brought in order at once


def output(x: Tensor, w: Tensor, geometry: Geometry, groups: int, sharing: Sharing, bias: Tensor | None = None) -> Tensor:
    """The output, `(N, C, *size), (*sets, O, C/G, *kernel) -> (N, O, *positions)`; the bias is `(O, *positions)` or `(O,)`."""
    order, shape = layout.like(x), (w.shape[geometry.dimensions], *geometry.positions(x.shape[2:]))
    if bias is not None:
        bias = (bias if bias.ndim > 1 else bias.view(-1, *(1,) * geometry.dimensions)).expand(shape)
    if x.dtype in HALF:
        y = output(x.float(), w.float(), geometry, groups, sharing, None if bias is None else bias.float())
        return layout.stored(y.to(x.dtype), order)
    if by_definition(x, w):
        y = definition.output(x, w, geometry, groups, sharing)
        return layout.stored(y if bias is None else y + bias, order)
    task = Task(x, w, x.new_empty(x.shape[0], *shape), geometry, groups, sharing)
    (task.sweep_output if task.is_swept(task.N) else task.multiply_output)(bias)
    return layout.stored(task.y, order)


def input_gradient(
    gy: Tensor, w: Tensor, geometry: Geometry, groups: int, sharing: Sharing, size: Sequence[int], order: object = None
) -> Tensor:
    """The gradient of the input, `(N, O, *positions), (*sets, O, C/G, *kernel) -> (N, C, *size)`."""
    order_, d = layout.like(gy), geometry.dimensions
    if gy.dtype in HALF:
        return layout.stored(input_gradient(gy.float(), w.float(), geometry, groups, sharing, size).to(gy.dtype), order_)
    if by_definition(gy, w):
        return layout.stored(definition.input_gradient(gy, w, geometry, groups, size, sharing), order_)
    task = Task(gy.new_empty(gy.shape[0], w.shape[d + 1] * groups, *size), w, gy, geometry, groups, sharing)
    (task.sweep_input_gradient if task.is_swept(task.N) else task.multiply_input_gradient)()
    return layout.stored(task.x, order_)


def weight_gradient(gy: Tensor, x: Tensor, geometry: Geometry, groups: int, sharing: Sharing, order: object = None) -> Tensor:
    """The gradient of the weight, `(N, O, *positions), (N, C, *size) -> (*sets, O, C/G, *kernel)`, contiguous."""
    if gy.dtype in HALF:
        return weight_gradient(gy.float(), x.float(), geometry, groups, sharing).to(gy.dtype)
    if by_definition(gy, x):
        return layout.stored(definition.weight_gradient(gy, x, geometry, groups, sharing), torch.contiguous_format)
    gw = gy.new_empty(*sharing.sets(tuple(gy.shape[2:])), gy.shape[1], x.shape[1] // groups, *geometry.kernel)
    task = Task(x, gw, gy, geometry, groups, sharing)
    (task.sweep_weight_gradient if task.is_swept(task.N * task.P // task.Q) else task.multiply_weight_gradient)()
    return gw


def by_definition(a: Tensor, b: Tensor) -> bool:
    """Whether loops have no part in a map of `a` and `b`."""
    return not loops_run(a, b, few=forced.get() in ("sweep", "matmul")) or not a.is_floating_point() or 0 in (a.numel(), b.numel())


@lru_cache(maxsize=256)
def sets_of(sharing: Sharing, positions: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """The set of each position, `(P)`; the positions set by set, `(P)`; and where among them those of each set begin, `(Q + 1)`."""
    q = sharing.copied(torch.arange(prod(sharing.sets(positions)), device=CPU).view(sharing.sets(positions)), positions).flatten()
    return q, q.argsort(stable=True), torch.cat((q.new_zeros(1), q.bincount().cumsum(0)))


@lru_cache(maxsize=1024)
def grid(geometry: Geometry, size: tuple[int, ...]) -> Tensor:
    """The geometry as loops want it, one row each for cells, strides, low paddings, dilations, positions and pixels, in three columns."""
    low, positions = tuple(pads[0] for pads in geometry.padding), geometry.positions(size)
    rows = ((geometry.kernel, 1), (geometry.stride, 1), (low, 0), (geometry.dilation, 1), (positions, 1), (size, 1))
    return torch.tensor([(*(alone,) * (3 - len(size)), *row) for row, alone in rows], device=CPU)


class Task:
    """One local layer as loops want it: image `x`, weight `w` and output `y`, any of which may be what is computed, and their sizes.

    Without `sharing` all positions have one set of weights, and the layer is a convolution.
    """

    def __init__(self, x: Tensor, w: Tensor, y: Tensor, geometry: Geometry, groups: int, sharing: Sharing | None = None) -> None:
        d, self.geometry, self.positions = geometry.dimensions if sharing else 0, geometry, tuple(y.shape[2:])
        self.sharing = sharing or Sharing((1,) * geometry.dimensions, (1,) * geometry.dimensions)
        self.x, self.w, self.y, self.groups, self.N = x.contiguous(), w, y.contiguous(), groups, x.shape[0]
        self.O, self.C, self.Q, self.P = w.shape[d] // groups, w.shape[d + 1], prod(w.shape[:d]), prod(y.shape[2:])
        ones = (1,) * (3 - geometry.dimensions)
        self.size, self.kernel = (*ones, *x.shape[2:]), (*ones, *w.shape[d + 2 :])
        self.grid, self.cells = grid(geometry, tuple(x.shape[2:])), self.C * prod(self.kernel)
        self.pointwise = self.sharing.each and self.O <= FEW and geometry == Geometry((1,) * d, (1,) * d, ((0, 0),) * d, (1,) * d)

    def is_swept(self, images: int) -> bool:
        """Whether loops over the weight compute a map whose products have so many images to a set of weights."""
        return forced.get() == "sweep" or (forced.get() != "matmul" and (self.pointwise or images <= IMAGES))

    def image(self) -> tuple[object, ...]:
        """The image as an argument for a loop."""
        return memory(self.x, self.N, self.x.shape[1], *self.size)

    def output(self) -> tuple[object, ...]:
        """The output as an argument for a loop."""
        return memory(self.y, self.N, self.y.shape[1], self.P)

    def weight(self, w: Tensor) -> tuple[object, ...]:
        """The weight, contiguous, as an argument for a loop."""
        T, U, V = self.kernel
        return memory(w, self.Q, self.groups * self.O, self.C, T * U, V)

    def places(self) -> tuple[object, object]:
        """The geometry, and the set of each position, as arguments for a loop."""
        return memory(self.grid, 6, 3), memory(self.sets()[0], self.P)

    def sweep_output(self, bias: Tensor | None) -> None:
        """Write `y`."""
        b = self.y.new_zeros(self.y.shape[1]) if bias is None else bias.contiguous()
        if self.pointwise:
            self.mix(self.x, self.along_positions().transpose(1, 2), b.view(self.y.shape[1], -1).expand(-1, self.P).contiguous(), self.y)
            return
        w = self.w.contiguous()  # named, since loops are given its address
        bias_, where = memory(b, self.y.shape[1], b.numel() // self.y.shape[1]), (self.groups, *self.places(), self.output())
        loops.output(self.P, self.y.numel() * self.cells, self.image(), self.weight(w), bias_, *where)

    def sweep_input_gradient(self) -> None:
        """Write `x`."""
        if self.pointwise:
            self.mix(self.y, self.along_positions(), self.x.new_zeros(self.x[0].numel()), self.x)
            return
        w, parts = self.w.contiguous(), min(self.size[0] * self.size[1], -(-torch.get_num_threads() // self.N))
        arguments = self.output(), self.weight(w), self.groups, *self.places(), parts, self.image()
        loops.input_gradient(self.N * parts, self.y.numel() * self.cells, *arguments)

    def sweep_weight_gradient(self) -> None:
        """Write `w`."""
        if self.pointwise:
            w, x = self.w.new_empty(self.groups * self.O, self.C, self.P), memory(self.x, self.N, self.x.shape[1], self.P)
            units = w[..., 0].numel() * -(-self.P // pointwise.LINE)
            pointwise.mix_weights(units, self.y.numel() * self.cells, self.output(), x, self.groups, memory(w, *w.shape))
            self.w.view(self.P, -1).copy_(w.flatten(0, 1).t())
            return
        _, order, bounds = self.sets()
        tables = self.places()[0], memory(order, self.P), memory(bounds, self.Q + 1)
        arguments = self.output(), self.image(), self.groups, *tables, self.weight(self.w)
        loops.weight_gradient(self.Q, self.y.numel() * self.cells, *arguments)

    def along_positions(self) -> Tensor:
        """The weight of windows of one cell, `(*positions, G*O, C, 1, ...) -> (G, C, O, P)`."""
        return self.w.reshape(self.P, self.groups, self.O, self.C).permute(1, 3, 2, 0)

    def mix(self, x: Tensor, w: Tensor, b: Tensor, y: Tensor) -> None:
        """Write `y` as the mixture of the channels of `x` by `w (G, O, C, P)`."""
        w = w.flatten(0, 1).contiguous()
        images = memory(x, self.N, x.shape[1], self.P), memory(w, *w.shape), memory(b, y.shape[1], self.P)
        pointwise.mix(self.N * y.shape[1], y.numel() * w.shape[1], *images, self.groups, memory(y, self.N, y.shape[1], self.P))

    def registers(self, count: int, most: int = 4) -> int:
        """The number of registers, 1, 2 or 4, that hold `count` numbers with the fewest empty lanes."""
        lanes = LANES // self.x.itemsize
        return min((v for v in (4, 2, 1) if v <= most), key=lambda v: -(-count // (v * lanes)) * v)

    def windows(self) -> tuple[Tensor, Tensor]:
        """The pixel of every window's first cell in an image with zeros around, `(P)`, and the pixels from there to its cells, `(K)`."""
        return cells_of(self.geometry, tuple(self.size[3 - self.geometry.dimensions :]), self.C)

    def sets(self) -> tuple[Tensor, Tensor, Tensor]:
        """The set of each position, and the positions set by set; see `sets_of`."""
        return sets_of(self.sharing, self.positions)

    def interleaved(self, V: int) -> tuple[Tensor, tuple[object, ...], tuple[object, ...]]:
        """Memory for images side by side, `(B, C, D, H, W, width)`, the same as an argument for a loop, and the zeros in front of them."""
        padded, width = padded_size(self.geometry, self.size), V * LANES // self.x.itemsize
        image = self.x.new_empty(-(-self.N // width), self.x.shape[1], *padded, width)
        return image, memory(image, *image.shape), memory(self.grid[2], 3)

    def multiply_output(self, bias: Tensor | None) -> None:
        """Write `y`."""
        V, w, (start, cell) = self.registers(self.N), self.w.contiguous(), self.windows()
        image, pixels, low = self.interleaved(V)
        loops.interleave(image.shape[0] * image.shape[1], image.numel(), self.image(), low, pixels)
        b = self.y.new_empty(0, 0) if bias is None else bias.flatten(1).contiguous()
        weight = memory(w, self.Q, self.groups * self.O, self.cells), memory(b, *b.shape), self.groups, memory(self.sets()[0], self.P)
        units = image.shape[0] * -(-self.P // loops.BLOCK)
        loops.multiply(
            units, self.y.numel() * self.cells, pixels, *weight, memory(start, self.P), memory(cell, self.cells), V, self.output()
        )

    def multiply_input_gradient(self) -> None:
        """Write `x`."""
        most = 2 if self.sharing.each else 1  # few images stay in the cache, but weights that are not shared are read for each block
        V, w, (start, cell) = self.registers(self.N, most), self.w.contiguous(), self.windows()
        image, pixels, low = self.interleaved(V)
        parts = min(image.shape[1], -(-torch.get_num_threads() // image.shape[0]))
        weight = memory(w, self.Q, self.groups * self.O, self.cells), self.groups, memory(self.sets()[0], self.P)
        where = memory(start, self.P), memory(cell, self.cells), V, parts
        loops.multiply_gradient(image.shape[0] * parts, self.y.numel() * self.cells, self.output(), *weight, *where, pixels)
        loops.separate(image.shape[0] * image.shape[1], image.numel(), pixels, low, self.image())

    def multiply_weight_gradient(self) -> None:
        """Write `w`."""
        V, (start, cell) = self.registers(self.O), self.windows()
        padded = padded_size(self.geometry, self.size)
        overhang = [(low, n - low - size) for low, n, size in zip(self.grid[2].tolist(), padded, self.size, strict=True)]
        x = pad(self.x.view(*self.x.shape[:2], *self.size), overhang).contiguous()
        _, order, bounds = self.sets()
        w, outputs = self.w.view(self.Q, -1), self.groups * self.O
        for q, units, first, count in stretches(self.sharing, self.positions, self.y.numel()):
            upstream = x.new_empty(self.N * count * outputs + V * LANES // x.itemsize)
            blocks, numbers = self.N * -(-count * x.itemsize // LANES), memory(upstream, *upstream.shape)
            loops.side_by_side(blocks, upstream.numel(), self.output(), first, count, numbers)
            parts = min(self.cells, -(-torch.get_num_threads() // units))
            tables = memory(order, self.P), memory(bounds[q:], units + 1), memory(start, self.P), memory(cell, self.cells)
            images, weight = (numbers, memory(x, x.numel()), self.N, self.groups), memory(w[q:], units, outputs, self.cells)
            loops.multiply_weights(units * parts, upstream.numel() * self.cells, *images, first, count, *tables, V, parts, weight)


def stretches(sharing: Sharing, positions: tuple[int, ...], numbers: int) -> Iterator[tuple[int, int, int, int]]:
    """Rows of sets whose positions are neighbours, about UPSTREAM of all `numbers`: first set, sets, first position, positions."""
    rows, *others = sharing.sets(positions)
    together = rows if sharing.tile else max(1, rows * UPSTREAM // numbers)
    for row in range(0, rows, together):
        end = min(rows, row + together)
        first, last = (0, positions[0]) if sharing.tile else (min(r * sharing.share[0], positions[0]) for r in (row, end))
        yield row * prod(others), (end - row) * prod(others), first * prod(positions[1:]), (last - first) * prod(positions[1:])


def padded_size(geometry: Geometry, size: Sequence[int]) -> tuple[int, ...]:
    """The size of an image along d, h, w with zeros around, as far as windows see it."""
    sides = grid(geometry, tuple(size[3 - geometry.dimensions :])).t().tolist()
    return tuple(max(low + n, (P - 1) * s + (k - 1) * d + 1) for k, s, low, d, P, n in sides)


@lru_cache(maxsize=256)
def cells_of(geometry: Geometry, size: tuple[int, ...], C: int) -> tuple[Tensor, Tensor]:
    """The pixel of every window's first cell in an image with zeros around, `(P)`, and the pixels from there to its C*T*U*V cells."""
    ones = (1,) * (3 - len(size))
    padded, (kernel, stride, _, dilation, positions, _) = padded_size(geometry, (*ones, *size)), grid(geometry, size).tolist()
    volume = prod(padded)

    def pixels(counts: Sequence[int], steps: Sequence[int]) -> Tensor:
        t, u, v = (torch.arange(n, device=CPU) * s for n, s in zip(counts, steps, strict=True))
        return ((t[:, None, None] * padded[1] + u[:, None]) * padded[2] + v).flatten()

    return pixels(positions, stride), (torch.arange(C, device=CPU)[:, None] * volume + pixels(kernel, dilation)).flatten()
