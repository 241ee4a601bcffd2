"""col2im: the input gradient by its definition, every output's gradient times the kernel, added to the pixels under its window.

    columns (K, L)  = W' (K, O) @ gy (O, L)           then every cell of a column is added to its pixel, cell by cell

The adjoint of im2col. Shifted, all rows u of the kernel are added up by the products, in lines u*d rows apart, and what is left to be added
are the cells v of one row.

Cost: 2*N*M*O*K/G operations, and N*M*K additions, twice as dear as copies. So it pays where there are few input channels and many output
channels, as in the first layer of a network. Accuracy: that of dot products of length O and sums of U*V. Applies to
float32 and float64: half precision would round every column.
"""

from math import prod
from typing import Any

from torch import Tensor

from cnn425.algorithms.blocks import Block, Slabs
from cnn425.algorithms.lowering import Lowering, accumulate
from cnn425.algorithms.memory import scratch
from cnn425.windows import Geometry

FEW_POSITIONS = 1000  # with fewer windows per image, the rows of all images are made together
MOVES = 2  # adding a cell to its pixel takes as long as copying so many,
TURNS = 4  # and turning a number of the weight around as copying so many


def pays(inputs: int, outputs: int, geometry: Geometry, windows: int, turned: bool = True) -> bool:
    """Whether adding the windows of few output channels is faster than copying those of many input channels, and turning the weight around.

    `turned`: the weight has to be turned around for this way, too, as if it makes an output instead of a gradient.
    """
    if prod(geometry.kernel) == 1:
        return False
    return MOVES * outputs * windows <= inputs * windows + (0 if turned else TURNS * inputs * outputs)


def spread(gy: Tensor, w: Tensor, geometry: Geometry, groups: int, gx: Tensor, last: bool, shifted: bool) -> None:
    """Fills `gx` `(N, C, *size)` from `gy` `(N, O, *positions)` and `w` `(O, C/G, *kernel)`."""
    gx.zero_()
    few = prod(gy.shape[2:]) < FEW_POSITIONS and shifted
    lowering = Lowering(gx, geometry, groups, last, shifted, together=few or None, copies=False)
    weights = lowering.weights(w)
    buffer: Tensor | None = None
    lines: Tensor | None = None
    for block in lowering.blocks:
        part = lowering.part(gy, block)
        O = weights[0].shape[1]
        right = lowering.as_matrices(part)
        if right is None:
            buffer = scratch(gy, part.numel()) if buffer is None else buffer
            B = groups if lowering.together else block.images * groups
            right = buffer[: part.numel()].view(part.shape).copy_(part).view(B, *((-1, O) if last else (O, -1)))
        repeat = len(right) // groups
        factors = weights if repeat == 1 else [a.expand(repeat, *a.shape).flatten(0, 1) for a in weights]
        shape = lowering.shape(block)
        lines = scratch(gy, prod(shape)) if lines is None else lines
        here = lines[: prod(shape)].view(shape)
        targets = lowering.views(here, block)
        if len(targets) > 1 or targets[0].numel() < here.numel():  # lines that no row of windows is in are not written
            here.zero_()
        for target, factor in zip(targets, factors, strict=True):
            left, other = (right, factor) if last else (factor.mT, right)
            if len(targets) == 1:
                accumulate(target, [left], [other])
            else:
                for c, a, b in zip(target, left, other, strict=True):
                    c.addmm_(a, b)
        add_cells(gx, lowering.windows_of(here), lowering.windows, lowering.lines(block))


def add_cells(gx: Tensor, cells: Tensor, geometry: Geometry, block: Block) -> None:
    """Adds each cell of the windows of a block, `(n, C, h, *j, p, *v)`, to the pixel of `gx` it shows; cells outside are dropped."""
    n, images, i, rows = block
    d = geometry.dimensions
    if all(s >= e for s, e in zip(geometry.stride, geometry.extent, strict=True)) and not any(
        a > 0 or b > 0 for a, b in geometry.overhang(gx.shape[2:])
    ):
        Slabs(gx, geometry, block, channels_last=False, copies=False).windows(block).copy_(cells)  # no windows overlap: one copy
        return
    pixels, counts = gx[n : n + images], (rows, *cells.shape[3 : 2 + d])
    for offset, _ in geometry.shifts([1] * d):
        source, target = [], []
        for k, (u, count) in enumerate(zip(offset, counts, strict=True)):
            s = geometry.stride[k]
            start = u * geometry.dilation[k] - geometry.padding[k][0] + (i * s if k == 0 else 0)
            a, b = max(0, -(start // s)), min(count, (gx.shape[2 + k] - 1 - start) // s + 1)
            source.append(slice(a, max(a, b)))
            target.append(slice(start + a * s, start + max(a, b - 1) * s + 1, s) if a < b else slice(0, 0))
        here: Any = (slice(None), slice(None), *source, *offset)
        there: Any = (slice(None), slice(None), *target)
        pixels[there].add_(cells[here])  # += would also copy the sum onto itself
