"""How the three maps of a local layer are computed: the table of choices, and what runs by default, products and loops.

| what comes                                                                   | how it is computed                                        |
|------------------------------------------------------------------------------|-----------------------------------------------------------|
| another device, dtype or kind of tensor; a trace; within `use("definition")` | `definition`                                              |
| at most FEW products per weight, N images and few channels: memory decides   | `sweep`: loops over the weight (`cnn425.kernels.local`)   |
| everything else: arithmetic decides                                          | `matmul`: one matrix product per position                 |

At a position the layer is a fully connected one: a matrix of O rows of K = C/G*T*U*V weights meets the N windows there.

    output            y[p]     =  x[p]   w[p]'         (N, K) (K, O)  -> (N, O)
    weight gradient   gw[p]    =  gy[p]' x[p]          (O, N) (N, K)  -> (O, K)
    window gradient   gx[p]    =  gy[p]  w[p]          (N, O) (O, K)  -> (N, K)       then added to the pixels the cells came from

The weight is not copied. Windows exist for one block of positions at a time. Half precision is computed in float32 and rounded once.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from math import prod

import torch
from torch import Tensor

from cnn425.algorithms import definition, layout
from cnn425.kernels import local as loops
from cnn425.kernels.threads import forced, loops_run, memory
from cnn425.windows import Geometry

HALF = (torch.bfloat16, torch.float16)
CPU = torch.device("cpu")
FEW = 4  # images times pairs of channels per group: so few products per pixel of a window
BLOCK = 1 << 19  # numbers of a block of windows


def output(x: Tensor, w: Tensor, geometry: Geometry, groups: int, bias: Tensor | None = None) -> Tensor:
    """The output, `(N, C, *size), (*positions, O, C/G, *kernel) -> (N, O, *positions)`; the bias is `(O, *positions)` or `(O,)`."""
    order, d = layout.like(x), geometry.dimensions
    if bias is not None:
        bias = (bias if bias.ndim > 1 else bias.view(-1, *(1,) * d)).expand(w.shape[d], *w.shape[:d])
    if x.dtype in HALF and x.is_cpu and loops_run(x.float()):
        y = output(x.float(), w.float(), geometry, groups, None if bias is None else bias.float())
        return layout.stored(y.to(x.dtype), order)
    if by_definition(x, w):
        y = definition.output(x, w, geometry, groups, local=True)
        return layout.stored(y if bias is None else y + bias, order)
    task = Task(x, w, x.new_empty(x.shape[0], w.shape[d], *w.shape[:d]), geometry, groups)
    (task.sweep_output if task.swept else task.multiply_output)(bias)
    return layout.stored(task.y, order)


def input_gradient(gy: Tensor, w: Tensor, geometry: Geometry, groups: int, size: Sequence[int], order: object = None) -> Tensor:
    """The gradient of the input, `(N, O, *positions), (*positions, O, C/G, *kernel) -> (N, C, *size)`."""
    order_, d = layout.like(gy), geometry.dimensions
    if gy.dtype in HALF and gy.is_cpu and loops_run(gy.float()):
        return layout.stored(input_gradient(gy.float(), w.float(), geometry, groups, size).to(gy.dtype), order_)
    if by_definition(gy, w):
        return layout.stored(definition.input_gradient(gy, w, geometry, groups, size, local=True), order_)
    task = Task(gy.new_empty(gy.shape[0], w.shape[d + 1] * groups, *size), w, gy, geometry, groups)
    (task.sweep_input_gradient if task.swept else task.multiply_input_gradient)()
    return layout.stored(task.x, order_)


def weight_gradient(gy: Tensor, x: Tensor, geometry: Geometry, groups: int, order: object = None) -> Tensor:
    """The gradient of the weight, `(N, O, *positions), (N, C, *size) -> (*positions, O, C/G, *kernel)`, contiguous."""
    if gy.dtype in HALF and gy.is_cpu and loops_run(gy.float()):
        return weight_gradient(gy.float(), x.float(), geometry, groups).to(gy.dtype)
    if by_definition(gy, x):
        return definition.weight_gradient(gy, x, geometry, groups, local=True).contiguous()
    gw = gy.new_empty(*gy.shape[2:], gy.shape[1], x.shape[1] // groups, *geometry.kernel)
    task = Task(x, gw, gy, geometry, groups)
    (task.sweep_weight_gradient if task.swept else task.multiply_weight_gradient)()
    return gw


def by_definition(a: Tensor, b: Tensor) -> bool:
    """Whether loops have no part in a map of `a` and `b`."""
    return not loops_run(a, b) or not a.is_floating_point() or 0 in (a.numel(), b.numel())


@lru_cache(maxsize=1024)
def grid(geometry: Geometry, size: tuple[int, ...]) -> Tensor:
    """The geometry as loops want it, one row each for cells, strides, low paddings, dilations, positions and pixels, in three columns."""
    low, positions = tuple(pads[0] for pads in geometry.padding), geometry.positions(size)
    rows = ((geometry.kernel, 1), (geometry.stride, 1), (low, 0), (geometry.dilation, 1), (positions, 1), (size, 1))
    return torch.tensor([(*(alone,) * (3 - len(size)), *row) for row, alone in rows], device=CPU)


class Task:
    """One local layer as loops want it: image `x`, weight `w` and output `y`, any of which may be what is computed, and their sizes.

    With `shared` all positions have one set of weights, and the layer is a convolution.
    """

    def __init__(self, x: Tensor, w: Tensor, y: Tensor, geometry: Geometry, groups: int, shared: bool = False) -> None:
        d = 0 if shared else geometry.dimensions
        self.x, self.w, self.y, self.groups, self.N = x.contiguous(), w, y.contiguous(), groups, x.shape[0]
        self.O, self.C, self.Q, self.P = w.shape[d] // groups, w.shape[d + 1], prod(w.shape[:d]), prod(y.shape[2:])
        ones = (1,) * (3 - geometry.dimensions)
        self.size, self.kernel = (*ones, *x.shape[2:]), (*ones, *w.shape[d + 2 :])
        self.grid, self.cells = grid(geometry, tuple(x.shape[2:])), self.C * prod(self.kernel)
        asked = forced.get()
        self.swept = asked == "sweep" or (asked != "matmul" and self.N * self.O * self.C <= FEW)

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

    def places(self) -> tuple[object, ...]:
        """The geometry as an argument for a loop."""
        return memory(self.grid, 6, 3)

    def sweep_output(self, bias: Tensor | None) -> None:
        """Write `y`."""
        w = self.w.contiguous()
        b = self.y.new_zeros(self.y.shape[1] * self.Q) if bias is None else bias.contiguous()
        where = self.groups, self.places(), self.output()
        loops.output(self.P, self.y.numel() * self.cells, self.image(), self.weight(w), memory(b, self.y.shape[1], self.Q), *where)

    def sweep_input_gradient(self) -> None:
        """Write `x`."""
        w = self.w.contiguous()
        lines = self.N * self.x.shape[1] * self.size[0] * self.size[1]
        loops.input_gradient(lines, self.y.numel() * self.cells, self.output(), self.weight(w), self.groups, self.places(), self.image())

    def sweep_weight_gradient(self) -> None:
        """Write `w`."""
        arguments = self.output(), self.image(), self.groups, self.places(), self.weight(self.w)
        loops.weight_gradient(self.Q, self.y.numel() * self.cells, *arguments)

    def blocks(self) -> Iterator[tuple[int, Tensor]]:
        """Blocks of positions: the first one, and memory for its windows, `(positions, G, N, K)`."""
        step = max(1, BLOCK // (self.groups * self.N * self.cells))
        buffer = self.x.new_empty(min(step, self.P), self.groups, self.N, self.cells)
        for p in range(0, self.P, step):
            yield p, buffer[: min(step, self.P - p)]

    def windows(self, p: int, buffer: Tensor) -> Tensor:
        """The windows of a block, one matrix `(N, K)` per position and group."""
        loops.gather(len(buffer), buffer.numel(), self.image(), p, self.places(), self.shape(buffer))
        return buffer.flatten(0, 1)

    def shape(self, buffer: Tensor) -> tuple[object, ...]:
        """Windows of a block as an argument for a loop."""
        T, U, V = self.kernel
        return memory(buffer, len(buffer), self.groups, self.N, self.C, T * U, V)

    def weights(self, p: int, positions: int) -> Tensor:
        """The weights of a block, one matrix `(O, K)` per position and group: a view, if the weight is contiguous."""
        w = self.w.flatten(0, self.y.ndim - 3)[p : p + positions]
        return w.reshape(positions * self.groups, self.O, self.cells)

    def gradients(self, p: int, positions: int) -> Tensor:
        """The output gradient of a block, one matrix `(N, O)` per position and group."""
        gy = self.y.flatten(2)[..., p : p + positions].unflatten(1, (self.groups, self.O))
        return gy.permute(3, 1, 0, 2).reshape(positions * self.groups, self.N, self.O)

    def multiply_output(self, bias: Tensor | None) -> None:
        """Write `y`."""
        for p, buffer in self.blocks():
            found = torch.bmm(self.windows(p, buffer), self.weights(p, len(buffer)).mT).view(len(buffer), self.groups, self.N, self.O)
            target = self.y.flatten(2)[..., p : p + len(buffer)].unflatten(1, (self.groups, self.O))
            if bias is None:
                target.copy_(found.permute(2, 1, 3, 0))
            else:
                b = bias.flatten(1)[:, p : p + len(buffer)].unflatten(0, (self.groups, self.O))
                torch.add(found.permute(2, 1, 3, 0), b, out=target)

    def multiply_input_gradient(self) -> None:
        """Write `x`."""
        self.x.zero_()
        for p, buffer in self.blocks():
            torch.bmm(self.gradients(p, len(buffer)), self.weights(p, len(buffer)), out=buffer.flatten(0, 1))
            loops.scatter(self.N * self.x.shape[1], buffer.numel(), self.shape(buffer), p, self.places(), self.image())

    def multiply_weight_gradient(self) -> None:
        """Write `w`."""
        for p, buffer in self.blocks():
            torch.bmm(self.gradients(p, len(buffer)).mT, self.windows(p, buffer), out=self.weights(p, len(buffer)))
