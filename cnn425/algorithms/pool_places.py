"""Where the winners of a max pool are: what is remembered of them, and the two linear maps they make.

    start      the number of the first pixel of a window, counted in reading order of the image (outside the image: where it would be)
    offset     how far from there the winner is: a small number, one byte for most windows
    pick       the winners' pixels of another image: the tangent of a max pool
    route      the adjoint of pick: every number goes to the pixel that won

`where` is a tensor of offsets, or of pixel numbers if it is int64 (which is what a user sees). Cost per window: an address (8 bytes), a
read or an addition there; routing also clears the image. On other devices than the CPU, where a scatter adds in any order, routing is one
addition per cell of the window, in the same order at every run.
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import product
from math import prod
from typing import Any

import torch
from torch import Tensor

from cnn425.algorithms.memory import begin, scratch
from cnn425.algorithms.pool import NOBODY, Bins, Pooling, blank, known_to_be_complete, planes, sides, someone_everywhere, visible
from cnn425.windows import Geometry

ADDRESSES = 2**17  # computed at a time
TOGETHER = 16  # images at least in a block of addresses: threads share them out


def offset_dtype(geometry: Geometry | Bins, size: Sequence[int]) -> torch.dtype:
    """The smallest dtype that holds all offsets, and NOBODY where it may occur."""
    last, apart = 0, 1
    for (_, side), n in zip(reversed(sides(geometry, size)), reversed(size), strict=True):
        last += (side.length - 1) * side.step * apart
        apart *= n
    if last < 2**8 and someone_everywhere(geometry):
        return torch.uint8
    return torch.int16 if last < 2**15 else torch.int32


known_offset_dtype = lru_cache(maxsize=1024)(offset_dtype)


def starts(geometry: Geometry | Bins, size: Sequence[int], device: torch.device | None = None) -> Tensor:
    """The numbers of the windows' first pixels, `(*positions)`; negative in the padding."""
    numbers = torch.zeros((), dtype=torch.int64, device=device)
    for dim, n in enumerate(size):
        if isinstance(geometry, Bins):
            first = torch.arange(geometry.positions[dim], device=device) * n // max(geometry.positions[dim], 1)
        else:
            first = torch.arange(geometry.positions(size)[dim], device=device) * geometry.stride[dim] - geometry.padding[dim][0]
        numbers = numbers.unsqueeze(-1) * n + first
    return numbers


known_starts = lru_cache(maxsize=1024)(starts)


def offsets_of(pixels: Tensor, geometry: Geometry | Bins, size: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Offsets of the pixels of these numbers."""
    offsets = pixels - starts(geometry, size, pixels.device)
    return (offsets if someone_everywhere(geometry) else torch.where(pixels == NOBODY, NOBODY, offsets)).to(dtype)


def pixels_at(where: Tensor, geometry: Geometry | Bins, size: Sequence[int]) -> Tensor:
    """The numbers of the pixels at `where`, NOBODY's last."""
    if where.dtype != torch.int64:
        numbers = where.long() + starts(geometry, size, where.device)
        return numbers if someone_everywhere(geometry) else torch.where(where == NOBODY, NOBODY, numbers)
    return where


def addresses(pixels: Tensor, pooling: Pooling) -> Tensor:
    """Where the pixels of these numbers, as `planes`, lie in memory: one row per image."""
    if pooling.channels_last:
        pixels = torch.add(torch.arange(pixels.shape[-1], device=pixels.device), pixels, alpha=pixels.shape[-1])
    return pixels.flatten(1)


def pick(t: Tensor, where: Tensor, pooling: Pooling) -> Tensor:
    """The pixels at `where` of another image, `(*batch, *size) -> (*batch, *positions)`; 0 for a window without pixels."""
    d = len(pooling.geometry[0])
    pixels = pixels_at(where, pooling.geometry, t.shape[t.ndim - d :])
    y = blank(t if type(t) is not Tensor else pixels, pooling, pixels.shape[pixels.ndim - d :], t.dtype)
    complete = someone_everywhere(pooling.geometry)
    lines = planes(pixels if complete else pixels.clamp(min=0), pooling)
    planes(y, pooling).copy_(planes(t, pooling).flatten(1).gather(1, addresses(lines, pooling)).view(lines.shape))
    return y if complete else torch.where(pixels == NOBODY, 0, y)


def route(g: Tensor, where: Tensor, pooling: Pooling, size: Sequence[int]) -> Tensor:
    """The adjoint of `pick`: every number goes to the pixel at `where`, `(*batch, *positions) -> (*batch, *size)`."""
    readable = visible(g, where) and known_to_be_complete(pooling.geometry) and g.numel() > 0
    if readable and where.dtype == torch.int64 and not pooling.channels_last:
        return by_number(g, where, size)
    gx = blank(g if type(g) is not Tensor else where, pooling, size, g.dtype).zero_()
    if g.numel() == 0:
        return gx
    if g.device.type != "cpu":
        return by_cells(gx, g, pixels_at(where, pooling.geometry, size), pooling)
    if not readable:
        pixels = pixels_at(where, pooling.geometry, size)
        images, upstream, lines = (planes(t, pooling) for t in (gx, torch.where(pixels == NOBODY, 0, g), pixels.clamp(min=0)))
        images.flatten(1).scatter_add_(1, addresses(lines, pooling), upstream.flatten(1))
    else:
        images, upstream, where = (planes(t, pooling) for t in (gx, g, where))
        n, channels = len(images), images.shape[-1] if pooling.channels_last else 1
        shape = (n, -1, channels)
        first = first_addresses(pooling.geometry, tuple(size), where.dtype, channels)
        in_blocks(images.view(n, -1), upstream.reshape(shape), where.reshape(shape), first)
    return gx


def by_number(g: Tensor, where: Tensor, size: Sequence[int]) -> Tensor:
    """`route` for planes and pixel numbers, which are addresses as they are."""
    pixels, windows = prod(size), g.shape[g.ndim - len(size) :].numel()
    gx = torch.zeros((*g.shape[: g.ndim - len(size)], *size), dtype=g.dtype, device=g.device)
    gx.view(-1, pixels).scatter_add_(1, where.reshape(-1, windows), g.reshape(-1, windows))
    return gx


@lru_cache(maxsize=1024)
def first_addresses(geometry: Geometry | Bins, size: tuple[int, ...], dtype: torch.dtype, channels: int) -> Tensor:
    """The addresses from which `where` of this dtype counts, `(windows, 1)`."""
    if dtype == torch.int64:
        return torch.zeros(1, 1, dtype=torch.int64, device="cpu")
    return starts(geometry, size, torch.device("cpu")).view(-1, 1) * channels


def in_blocks(images: Tensor, upstream: Tensor, where: Tensor, first: Tensor) -> None:
    """`route`, some windows of some images `(N, windows, C)` at a time, so that addresses stay in the cache."""
    n, windows, channels = where.shape
    if channels > 1:
        first = first + torch.arange(channels, device="cpu")
    if where.numel() <= ADDRESSES:
        places = where.to(torch.int64, copy=True, memory_format=torch.contiguous_format)
        places = places.add_(first) if channels == 1 else torch.add(first, places, alpha=channels, out=places)
        images.scatter_add_(1, places.view(n, -1), upstream.flatten(1))
        return
    step = min(windows, max(1, ADDRESSES // (channels * min(n, TOGETHER))))
    together = max(1, ADDRESSES // (channels * step))
    for a in range(0, windows, step):
        begins = first if len(first) == 1 else first[a : a + step]
        for b in range(0, n, together):
            begin()
            block = where[b : b + together, a : a + step]
            places = scratch(first, *block.shape).copy_(block)
            places = places.add_(begins) if channels == 1 else torch.add(begins, places, alpha=channels, out=places)
            images[b : b + together].scatter_add_(1, places.flatten(1), upstream[b : b + together, a : a + step].flatten(1))


def by_cells(gx: Tensor, g: Tensor, pixels: Tensor, pooling: Pooling) -> Tensor:
    """`route` in a fixed order of additions, into an image of zeros."""
    lines = sides(pooling.geometry, gx.shape)
    size = gx.shape[gx.ndim - len(lines) :]
    numbers = torch.arange(size.numel(), device=gx.device).view(size)
    for visits in product(*(side.visits for _, side in lines)):
        here: Any = (..., *(visit[1] for visit in visits))
        cells: Any = (..., *(visit[2] for visit in visits))
        gx[cells] += torch.where(pixels[here] == numbers[cells], g[here], 0)
    return gx
