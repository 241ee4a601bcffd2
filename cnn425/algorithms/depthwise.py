"""Depthwise: one input channel per group, nothing to sum over channels, so each kernel cell is one multiply-add of shifted images.

    y[n, o]  = sum over u, v of  w[o, u, v] * x[n, c, shifted by (u, v)]          o belongs to channel c = o // (O/C)

A matrix product of width one would waste the machine; this is a sweep over memory, U*V times over blocks that stay in the cache. For
contiguous images with stride 1 the rows of a padded image are one long line (as in `shifted`), so that every sweep runs along memory.

Cost: 2*N*O*I*J*U*V operations, 12 bytes of cache traffic for every two of them. Accuracy: that of a plain sum of U*V products. Applies when
G = C, with any stride and dilation; half precision is computed in float32.
"""

from collections.abc import Iterator, Sequence
from itertools import product
from math import prod
from typing import Any

import torch
from torch import Tensor

from cnn425.algorithms.blocks import Block, Slabs, blocks, flip, flipped, phases
from cnn425.algorithms.layout import empty
from cnn425.algorithms.memory import begin, scratch
from cnn425.windows import Geometry

HALF = (torch.bfloat16, torch.float16)
BYTES = 1 << 19


def cut(x: Tensor, geometry: Geometry, layout: torch.memory_format) -> tuple[Slabs, list[Block]]:
    """The windows of the image, and the blocks to take them in."""
    positions = geometry.positions(x.shape[2:])
    row = x.shape[1] * prod(positions[1:]) * x.element_size()
    parts = list(blocks(x.shape[0], positions[0], row, budget=BYTES))
    return Slabs(x, geometry, parts[0], channels_last=layout is not torch.contiguous_format), parts


def part_of(t: Tensor, block: Block) -> Tensor:
    """The block's part of an output."""
    return t[block.n : block.n + block.images, :, block.i : block.i + block.rows]


def convolve(x: Tensor, w: Tensor, geometry: Geometry, groups: int, bias: Tensor | None, layout: torch.memory_format) -> Tensor:
    """The output, `(N, C, *size), (O, 1, *kernel), (O,) -> (N, O, *positions)`."""
    if x.dtype in HALF:
        return convolve(x.float(), w.float(), geometry, groups, None if bias is None else bias.float(), layout).to(x.dtype)
    if in_lines(geometry, layout) and w.shape[0] == x.shape[1]:
        return _convolve_lines(x, w, geometry, bias)
    y = empty(x, (x.shape[0], w.shape[0], *geometry.positions(x.shape[2:])), layout)
    times = w.shape[0] // groups
    for m in range(times):
        begin()
        sweep(x, w[m::times, 0], geometry, y[:, m::times], layout)
        if bias is not None:
            y[:, m::times] += bias[m::times].view(-1, *(1,) * geometry.dimensions)
    return y


def sweep(x: Tensor, w: Tensor, geometry: Geometry, y: Tensor, layout: torch.memory_format, add: bool = False) -> None:
    """Writes, or adds, to `y` the image `(N, C, *size)`, each channel swept by its own kernel of `w` `(C, *kernel)`."""
    d, width = geometry.dimensions, y.shape[-1] if layout is not torch.contiguous_format else 1
    weight = scratch(x, *geometry.kernel, width, x.shape[1])  # of a whole row of windows, so that a sweep runs on from one to the next
    weight.copy_(w.movedim(0, -1).unsqueeze(-2).expand(weight.shape))
    factors = weight.movedim(-1, d).unflatten(d + 1, (*(1,) * (d - 1), width))  # u v c 1 j
    slabs, parts = cut(x, geometry, layout)
    for block in parts:
        cells, out = slabs.windows(block), part_of(y, block)
        for k, offset in enumerate(product(*map(range, geometry.kernel))):
            at: Any = (..., *offset)
            if k == 0 and not add:
                torch.mul(cells[at], factors[offset], out=out)
            else:
                out.addcmul_(cells[at], factors[offset])


def convolve_input_gradient(
    gy: Tensor, w: Tensor, geometry: Geometry, groups: int, size: Sequence[int], layout: torch.memory_format
) -> Tensor:
    """The gradient of the input, `(N, O, *positions), (O, 1, *kernel) -> (N, C, *size)`."""
    if gy.dtype in HALF:
        return convolve_input_gradient(gy.float(), w.float(), geometry, groups, size, layout).to(gy.dtype)
    if w.shape[0] == groups and all(s == 1 for s in geometry.stride):
        return convolve(gy, flip(w, groups), flipped(geometry, size, gy.shape[2:]), groups, None, layout)
    gx = empty(gy, (gy.shape[0], groups, *size), layout)
    times = w.shape[0] // groups
    for cells, pixels, part in phases(geometry, size, gy.shape[2:]):
        target = gx[(slice(None), slice(None), *pixels)]
        if part is None:
            target.zero_()
        for m in range(times if part is not None and target.numel() else 0):
            begin()
            at: Any = (slice(m, None, times), 0, *cells)
            turned = w[at].flip(*range(1, 1 + geometry.dimensions))
            sweep(gy[:, m::times], turned, part or geometry, target, layout, add=m > 0)
    return gx


def convolve_weight_gradient(gy: Tensor, x: Tensor, geometry: Geometry, groups: int, layout: torch.memory_format) -> Tensor:
    """The gradient of the weight, `(N, O, *positions), (N, C, *size) -> (O, 1, *kernel)`."""
    if x.dtype in HALF:
        return convolve_weight_gradient(gy.float(), x.float(), geometry, groups, layout).to(x.dtype)
    if in_lines(geometry, layout) and gy.shape[1] == groups:
        return _weight_gradient_lines(gy, x, geometry)
    gw = empty(x, (gy.shape[1], 1, *geometry.kernel), layout).zero_()
    times = gy.shape[1] // groups
    slabs, parts = cut(x, geometry, layout)
    last = layout is not torch.contiguous_format
    buffer = scratch(x, part_of(gy, parts[0]).numel() // times)
    for block in parts:
        cells = slabs.windows(block)
        for m in range(times):
            part = part_of(gy, block)[:, m::times]
            products = buffer[: part.numel()]
            products = products.view(part.movedim(1, -1).shape).movedim(-1, 1) if last else products.view(part.shape)
            for offset in product(*map(range, geometry.kernel)):
                at: Any = (..., *offset)
                torch.mul(part, cells[at], out=products)
                gw[m::times, 0][at].add_(products.sum((0, *range(2, products.ndim))))
    return gw


def in_lines(geometry: Geometry, layout: torch.memory_format) -> bool:
    """Whether shifted images are shifted lines."""
    return layout is torch.contiguous_format and all(s == 1 for s in geometry.stride)


def lines(x: Tensor, geometry: Geometry) -> Iterator[tuple[slice, slice, Tensor]]:
    """Some images and channels at a time: which, and their padded images, `(images, channels, *padded)` and contiguous."""
    overhang = geometry.overhang(x.shape[2:])
    padded = [low + n + high for n, (low, high) in zip(x.shape[2:], overhang, strict=True)]
    channels = min(x.shape[1], max(1, BYTES // (prod(padded) * x.element_size())))
    images = min(x.shape[0], max(1, BYTES // (channels * prod(padded) * x.element_size())))
    buffer = scratch(x, images * channels * prod(padded)).zero_()
    inside = tuple(slice(low, low + n) for n, (low, _) in zip(x.shape[2:], overhang, strict=True))
    for c in range(0, x.shape[1], channels):
        for n in range(0, x.shape[0], images):
            some = x[n : n + images, c : c + channels]
            image = buffer[: some.shape[0] * some.shape[1] * prod(padded)].view(*some.shape[:2], *padded)
            if min(min(pair) for pair in overhang) < 0:
                image.copy_(torch.constant_pad_nd(some, [p for pair in reversed(overhang) for p in pair]))
            else:
                at: Any = (..., *inside)
                image[at] = some
            yield slice(n, n + images), slice(c, c + channels), image


def shifts(geometry: Geometry, padded: Sequence[int]) -> list[int]:
    """By how many numbers every offset (u, v) shifts the line, in reading order."""
    steps = [prod(padded[k + 1 :]) * dilation for k, dilation in enumerate(geometry.dilation)]
    return [sum(u * s for u, s in zip(offset, steps, strict=True)) for offset in product(*map(range, geometry.kernel))]


def _convolve_lines(x: Tensor, w: Tensor, geometry: Geometry, bias: Tensor | None) -> Tensor:
    positions = geometry.positions(x.shape[2:])
    y = empty(x, (x.shape[0], w.shape[0], *positions), torch.contiguous_format)
    inside: Any = (..., *(slice(0, p) for p in positions))
    buffer: Tensor | None = None
    for n, c, image in lines(x, geometry):
        line = image.flatten(2)
        buffer = scratch(x, image.numel()) if buffer is None else buffer
        out = buffer[: image.numel()].view(line.shape)
        taps = shifts(geometry, image.shape[2:])
        length = line.shape[2] - taps[-1]
        some = out[..., :length]
        for k, shift in enumerate(taps):
            factor = w[c, 0].flatten(1)[:, k].unsqueeze(1)
            moved = line[..., shift : shift + length]
            torch.mul(moved, factor, out=some) if k == 0 else some.addcmul_(moved, factor)
        if bias is not None:
            some += bias[c].unsqueeze(1)
        y[n, c] = out.view(image.shape)[inside]
    return y


def _weight_gradient_lines(gy: Tensor, x: Tensor, geometry: Geometry) -> Tensor:
    gw = torch.zeros(gy.shape[1], 1, *geometry.kernel, dtype=x.dtype, device=x.device)
    inside: Any = (..., *(slice(0, p) for p in gy.shape[2:]))
    buffers: Tensor | None = None
    for n, c, image in lines(x, geometry):
        line = image.flatten(2)
        buffers = scratch(x, 2, image.numel()) if buffers is None else buffers
        gradient, products = (b[: image.numel()].view(image.shape) for b in buffers)
        gradient.zero_()
        gradient[inside] = gy[n, c]
        taps = shifts(geometry, image.shape[2:])
        length = line.shape[2] - taps[-1]
        left, out = gradient.flatten(2)[..., :length], products.flatten(2)[..., :length]
        for k, shift in enumerate(taps):
            torch.mul(left, line[..., shift : shift + length], out=out)
            gw[c, 0].flatten(1)[:, k].add_(out.sum((0, 2)))
    return gw
