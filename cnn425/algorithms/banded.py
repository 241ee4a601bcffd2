"""Banded: a depthwise convolution as small matrix products, one per column of the kernel, by matrices that hold this column along a band.

    y[n, c] (r, J)  = sum over v of  T[c, v] (r, K) @ x[n, c] (K, from pixel v on)        T[c, v][i, k] = w[c, k - i, v] inside the band

An image is cut into tiles of some 14 rows of windows, K rows of pixels, and its rows are padded; then column v of all windows is the
same memory from v pixels on (with a stride, the pixels of a row are dealt out to piles). A product writes where the output belongs. The
matrices come from the weight by one product with zeros and ones, `T (V*C, r*K) = w (V*C, U) @ band (U, r*K)`, and its adjoint turns their
gradient `gy @ x'` into that of the weight.

Cost: 2*N*C*I*J*V*K operations where a sweep (`depthwise`) needs U instead of K, but in products instead of in trips through the
cache; one copy of the image, (r + U - 1) / r as large. Accuracy: that of a sum of U*V products, the others being zero. An infinity or NaN
would spread over its tile: results that are not finite are computed again by `depthwise`. Applies to images when G = C; half precision is
computed in float32.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from math import prod
from typing import Any

import torch
from torch import Tensor

from cnn425.algorithms import depthwise
from cnn425.algorithms.blocks import flip, flipped, phases
from cnn425.algorithms.layout import empty
from cnn425.algorithms.memory import begin, scratch
from cnn425.windows import Geometry

HALF = (torch.bfloat16, torch.float16)
ROWS = 14  # of windows per tile, about
BYTES = 4 << 20  # of the tiles of a block, and of its matrices
MANY = 256  # products in a batch, if there are so many


def rows(count: int) -> int:
    """How many of `count` rows of windows a tile has: a divisor near `ROWS`, or nearly one."""
    near = [r for r in range(1 + ROWS // 2, 2 * ROWS + 1) if count % r == 0]
    return min(near, key=lambda r: abs(r - ROWS)) if near else -(-count // -(-count // ROWS))


@lru_cache(maxsize=64)
def band(kernel: int, stride: int, dilation: int, r: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Ones where window i shows cell u as pixel k, `(U, r*K)`."""
    with torch.inference_mode(False):
        cell = torch.arange(kernel, device=device).view(-1, 1, 1) * dilation
        window = torch.arange(r, device=device).view(1, -1, 1) * stride
        pixel = torch.arange((r - 1) * stride + (kernel - 1) * dilation + 1, device=device)
        return (pixel == window + cell).to(dtype).flatten(1)


class Tiles:
    """The tiles of all images, some channels and images at a time, and the memory for them and their matrices."""

    def __init__(self, x: Tensor, geometry: Geometry):
        self.x, self.geometry = x, geometry
        (self.U, self.V), (s, self.step), (d, self.apart) = geometry.kernel, geometry.stride, geometry.dilation
        self.I, self.J = geometry.positions(x.shape[2:])
        self.r = rows(self.I)
        self.count = -(-self.I // self.r)
        self.height = (self.r - 1) * s + (self.U - 1) * d + 1
        self.pile = self.J + (self.V - 1) * self.apart // self.step  # pixels of a row that are `step` apart
        self.band = band(self.U, s, d, self.r, x.dtype, x.device)
        tiles, matrices = self.count * self.height * self.step * self.pile, self.count * self.height * self.V * self.r
        most = BYTES // x.element_size()
        self.channels = max(1, min(x.shape[1], most // max(tiles, matrices)))
        self.images = max(1, min(x.shape[0], most // (tiles * self.channels)))
        self.batch = 1  # images in a product
        if self.channels == x.shape[1]:
            self.batch = max(1, min(self.images, MANY // (self.channels * self.count), most // (matrices * self.channels)))
        self.pixels = scratch(x, self.images * self.channels * tiles).zero_()
        self.kernels = scratch(x, self.batch * self.channels * matrices)
        self.results = scratch(x, self.batch * self.channels * self.count * self.r * self.J)

    def blocks(self) -> Iterator[slice]:
        """The channels of one block after the other."""
        for c in range(0, self.x.shape[1], self.channels):
            yield slice(c, min(c + self.channels, self.x.shape[1]))

    def images_of(self, c: slice) -> Iterator[tuple[slice, list[Tensor]]]:
        """Some images with the pixels of some of their channels, for each column of the kernel: `(n*c*t, K, J)`."""
        starts = [v * self.apart % self.step * self.pile + v * self.apart // self.step for v in range(self.V)]
        for n in range(0, self.x.shape[0], self.images):
            part = self.x[n : n + self.images, c]
            size = (*part.shape[:2], self.count, self.height, self.step, self.pile)
            block = self.pixels[: prod(size)].view(size)
            self.cut(part, block)
            for k in range(0, len(part), self.batch):
                images = block[k : k + self.batch].flatten(4).flatten(0, 2)
                yield slice(n + k, min(n + k + self.batch, n + len(part))), [images[..., a : a + self.J] for a in starts]

    def cut(self, x: Tensor, block: Tensor) -> None:
        """Copies the tiles of some images to `(n, c, t, K, s, pile)`; the zeros around them lie there already."""
        (low, _), (left, _) = self.geometry.padding
        for t in range(self.count):
            top = t * self.r * self.geometry.stride[0] - low
            a, b = max(0, top), min(x.shape[2], top + self.height)
            for k in range(self.step):
                first = max(0, -((k - left) // self.step))  # the first of the pile inside the image
                start = first * self.step + k - left
                pixels = x[:, :, a : max(a, b), start :: self.step][..., : max(0, self.pile - first)]
                block[:, :, t, a - top : max(a, b) - top, k, first : first + pixels.shape[-1]] = pixels

    def matrices(self, w: Tensor) -> Tensor:
        """The banded matrices of the weight `(c, U, V)`, for all images and tiles of a batch, `(V, n*c*t, r, K)`."""
        small = torch.mm(w.permute(2, 0, 1).reshape(-1, self.U), self.band).view(self.V, 1, len(w), 1, self.r, self.height)
        kernels = self.of_kernels(len(w))
        kernels.view(self.V, self.batch, len(w), self.count, self.r, self.height).copy_(small)
        return kernels

    def of_kernels(self, channels: int) -> Tensor:
        """Memory for the matrices of so many channels."""
        size = (self.V, self.batch * channels * self.count, self.r, self.height)
        return self.kernels[: prod(size)].view(size)

    def of_images(self, images: Tensor, apart: bool = False) -> tuple[Tensor, Tensor]:
        """Where `(n, c, I, J)` lie as matrices `(n*c*t, r, J)`, and as they are: in the images themselves if they may, and not `apart`."""
        if images.is_contiguous() and self.count * self.r == self.I and not apart:
            return images.view(-1, self.r, self.J), images
        size = (*images.shape[:2], self.count * self.r, self.J)
        results = self.results[: prod(size)].view(size)
        return results.view(-1, self.r, self.J), results[:, :, : self.I]


def convolve(x: Tensor, w: Tensor, geometry: Geometry, groups: int, bias: Tensor | None, layout: torch.memory_format) -> Tensor:
    """The output, `(N, C, *size), (O, 1, *kernel), (O,) -> (N, O, *positions)`."""
    if x.dtype in HALF:
        return convolve(x.float(), w.float(), geometry, groups, None if bias is None else bias.float(), layout).to(x.dtype)
    y = empty(x, (x.shape[0], w.shape[0], *geometry.positions(x.shape[2:])), layout)
    times = w.shape[0] // groups
    for m in range(times):
        begin()
        if not write(x, w[m::times, 0], geometry, None if bias is None else bias[m::times], y[:, m::times]):
            begin()
            return depthwise.convolve(x, w, geometry, groups, bias, layout)
    return y


def write(x: Tensor, w: Tensor, geometry: Geometry, bias: Tensor | None, y: Tensor, add: bool = False) -> bool:
    """Writes, or adds, to `y` the image `(N, C, *size)`, each channel with its own kernel of `w` `(C, *kernel)`; whether all is finite."""
    tiles = Tiles(x, geometry)
    total = x.new_zeros(())
    for c in tiles.blocks():
        kernels = tiles.matrices(w[c])
        for n, columns in tiles.images_of(c):
            image = y[n, c]
            out, results = tiles.of_images(image, apart=add)
            for v, (kernel, pixels) in enumerate(zip(kernels[:, : len(out)], columns, strict=True)):
                if v:
                    out.baddbmm_(kernel, pixels)
                else:
                    torch.bmm(kernel, pixels, out=out)
            total += out[:, 0].sum()  # what is not finite has spread over its tile
            if bias is not None:
                results += bias[c].view(-1, 1, 1)
            if add:
                image += results
            elif results is not image:
                image.copy_(results)
    return bool(total.isfinite())


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
            if not write(gy[:, m::times], w[at].flip(1, 2), part or geometry, None, target, add=m > 0):
                begin()
                return depthwise.convolve_input_gradient(gy, w, geometry, groups, size, layout)
    return gx


def convolve_weight_gradient(gy: Tensor, x: Tensor, geometry: Geometry, groups: int, layout: torch.memory_format) -> Tensor:
    """The gradient of the weight, `(N, O, *positions), (N, C, *size) -> (O, 1, *kernel)`."""
    if x.dtype in HALF:
        return convolve_weight_gradient(gy.float(), x.float(), geometry, groups, layout).to(x.dtype)
    gw = empty(x, (gy.shape[1], 1, *geometry.kernel), layout)
    times = gy.shape[1] // groups
    for m in range(times):
        begin()
        _weight_gradient(gy[:, m::times], x, geometry, gw[m::times, 0])
    if not gw.sum().isfinite():
        begin()
        return depthwise.convolve_weight_gradient(gy, x, geometry, groups, layout)
    return gw


def _weight_gradient(gy: Tensor, x: Tensor, geometry: Geometry, gw: Tensor) -> None:
    """The gradient of one kernel per channel, written to `gw` `(C, *kernel)`."""
    tiles = Tiles(x, geometry)
    tiles.results.zero_()
    for c in tiles.blocks():
        channels = c.stop - c.start
        sums = tiles.of_kernels(channels)
        for n, columns in tiles.images_of(c):
            image = gy[n, c]
            gradients, results = tiles.of_images(image)
            if results is not image:
                results.copy_(image)
            for total, pixels in zip(sums[:, : len(gradients)], columns, strict=True):
                if n.start:
                    total.baddbmm_(gradients, pixels.mT)
                else:
                    torch.bmm(gradients, pixels.mT, out=total)
        part = torch.mm(sums.flatten(0, 1).flatten(1), tiles.band.t())
        gw[c] = part.view(tiles.V, -1, channels, tiles.count, tiles.U).sum((1, 3)).permute(1, 2, 0)
