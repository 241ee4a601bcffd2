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

from cnn425.algorithms import im2col
from cnn425.algorithms.blocks import Block, Slabs, blocks, flip, flipped
from cnn425.algorithms.layout import empty
from cnn425.algorithms.memory import scratch
from cnn425.windows import Geometry

HALF = (torch.bfloat16, torch.float16)
BYTES = 1 << 19


def cut(x: Tensor, geometry: Geometry, layout: torch.memory_format) -> tuple[Slabs, list[Block]]:
    """The windows of the image, and the blocks to take them in."""
    positions = geometry.positions(x.shape[2:])
    row = x.shape[1] * prod(positions[1:]) * x.element_size()
    parts = list(blocks(x.shape[0], positions[0], row, budget=BYTES))
    return Slabs(x, geometry, parts[0], channels_last=layout is not torch.contiguous_format), parts


def per_channel(t: Tensor, channels: int, block: Block) -> Tensor:
    """The block's part of an output, `(images, C, O/C, rows, *positions[1:])`."""
    return t[block.n : block.n + block.images, :, block.i : block.i + block.rows].unflatten(1, (channels, -1))


def convolve(x: Tensor, w: Tensor, geometry: Geometry, groups: int, bias: Tensor | None, layout: torch.memory_format) -> Tensor:
    """The output, `(N, C, *size), (O, 1, *kernel), (O,) -> (N, O, *positions)`."""
    if x.dtype in HALF:
        return convolve(x.float(), w.float(), geometry, groups, None if bias is None else bias.float(), layout).to(x.dtype)
    d, C = geometry.dimensions, x.shape[1]
    if in_lines(geometry, layout) and w.shape[0] == C:
        return _convolve_lines(x, w, geometry, bias)
    y = empty(x, (x.shape[0], w.shape[0], *geometry.positions(x.shape[2:])), layout)
    slabs, parts = cut(x, geometry, layout)
    weight = w.view(C, -1, *(1,) * d, *geometry.kernel)
    start = None if bias is None else bias.view(C, -1, *(1,) * d)
    for block in parts:
        cells = slabs.windows(block)
        out = per_channel(y, C, block)
        for m in range(out.shape[2]):
            sum_ = out[:, :, m]
            sum_.copy_(start[:, m].expand_as(sum_)) if start is not None else sum_.zero_()
            for offset in product(*map(range, geometry.kernel)):
                at: Any = (..., *offset)
                sum_.addcmul_(cells[at], weight[:, m][at])
    return y


def convolve_input_gradient(
    gy: Tensor, w: Tensor, geometry: Geometry, groups: int, size: Sequence[int], layout: torch.memory_format
) -> Tensor:
    """The gradient of the input, `(N, O, *positions), (O, 1, *kernel) -> (N, C, *size)`."""
    if gy.dtype in HALF:
        return convolve_input_gradient(gy.float(), w.float(), geometry, groups, size, layout).to(gy.dtype)
    if w.shape[0] == groups and all(s == 1 for s in geometry.stride):
        return convolve(gy, flip(w, groups), flipped(geometry, size, gy.shape[2:]), groups, None, layout)
    return im2col.convolve_input_gradient(gy, w, geometry, groups, size, layout)


def convolve_weight_gradient(gy: Tensor, x: Tensor, geometry: Geometry, groups: int, layout: torch.memory_format) -> Tensor:
    """The gradient of the weight, `(N, O, *positions), (N, C, *size) -> (O, 1, *kernel)`."""
    if x.dtype in HALF:
        return convolve_weight_gradient(gy.float(), x.float(), geometry, groups, layout).to(x.dtype)
    if in_lines(geometry, layout) and gy.shape[1] == groups:
        return _weight_gradient_lines(gy, x, geometry)
    gw = empty(x, (gy.shape[1], 1, *geometry.kernel), layout).zero_()
    weight = gw.view(groups, -1, *geometry.kernel)
    slabs, parts = cut(x, geometry, layout)
    for block in parts:
        cells = slabs.windows(block)
        part = per_channel(gy, groups, block)
        for m in range(part.shape[2]):
            for offset in product(*map(range, geometry.kernel)):
                at: Any = (..., *offset)
                products = part[:, :, m] * cells[at]
                weight[:, m][at].add_(products.sum((0, *range(2, products.ndim))))
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
