"""Strips: a depthwise convolution of small images as one matrix product per channel, from some rows of pixels to some rows of windows.

    y[n, c] (r*J,)  = x[n, c] (K*W,) @ T[c] (K*W, r*J)        T[c] is w[c, u, v] where window (i, j) shows (k, l) as (u, v)

r rows of windows see K rows of pixels; the next r see the K rows that begin r*s further down, through the same matrix. All images of a
channel lie one below the other, with rows of zeros between them, so that every q-th strip, where strips no longer overlap, is a row
of one matrix: q products per channel, of many rows each. The matrices come from the weight by one product with zeros and ones,
`T (C, K*W * r*J) = w (C, U*V) @ links`, and its adjoint turns their gradient into that of the weight. The input gradient is the same with
pixels and windows exchanged.

Cost: 2*N*C*I*J*K*W operations where a sweep (`depthwise`) needs U*V instead of K*W, so it pays up to some 20 pixels per row; both
images are copied once. Accuracy: that of a sum of U*V products, the others being zero. An infinity or NaN would spread over its strip:
results that are not finite are computed again by `depthwise`. Applies to images when G = C, with any stride and dilation; half precision
is computed in float32.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from cnn425.algorithms import depthwise
from cnn425.algorithms.layout import empty
from cnn425.algorithms.memory import begin, scratch
from cnn425.windows import Geometry

HALF = (torch.bfloat16, torch.float16)
NARROW = 20  # pixels of a row, of which two rows of windows make a strip; of wider images one
BYTES = 8 << 20  # of a block: its matrices, pixels and results


def height(width: int) -> int:
    """Rows of windows in a strip, in images of this width."""
    return 2 if width <= NARROW else 1


class Plan(NamedTuple):
    """A map from images `(H, W)` to images `(I, J)`: strip k, from row `k * r` on, is made from K rows from `k * hop + top` on."""

    size: tuple[int, int]
    out: tuple[int, int]
    r: int
    hop: int
    top: int
    K: int
    links: Tensor  # (U*V, K*W * r*J)

    @property
    def apart(self) -> int:
        """Every so many strips do not overlap."""
        return -(-self.K // self.hop)

    @property
    def strips(self) -> int:
        """Strips of an image, those that only see zeros included: those of the image, and as many as keep it from the next one."""
        count = -(-self.out[0] // self.r)
        seen = (self.out[0] - 1) // self.r * self.hop + self.K  # rows, from `top` on, that the last of them sees
        between = seen - max(0, -self.top)  # rows from the first pixel of an image, or from `top`, to the first of the next one
        count = max(count, -(-max(min(self.size[0] - self.top, seen), between) // self.hop))
        return -(-count // self.apart) * self.apart


def plan(geometry: Geometry, size: Sequence[int], turned: bool, like: Tensor) -> Plan:
    """The plan of the output of images of `size` pixels or, `turned`, of their gradient."""
    return _plan(geometry, tuple(size), turned, like.dtype, like.device)


@lru_cache(maxsize=128)
def _plan(geometry: Geometry, size: tuple[int, int], turned: bool, dtype: torch.dtype, device: torch.device) -> Plan:
    (U, V), (s, t), ((p, _), (q, _)), (d, e), _ = geometry
    I, J = geometry.positions(size)
    with torch.inference_mode(False):
        # Which cell links window i with pixel k of a strip, and window j with pixel l: k + top = i * s + u * d - p.
        few = height(size[1])
        if turned:
            r, hop = few * s, few
            top = -(((U - 1) * d - p) // s)
            K = (r - 1 + p) // s - top + 1
        else:
            r, hop = few, few * s
            top, K = -p, (r - 1) * s + (U - 1) * d + 1
        k, i = torch.arange(K, device=device) + top, torch.arange(r, device=device)
        l, j = torch.arange(size[1], device=device), torch.arange(J, device=device)
        u, v = torch.arange(U, device=device) * d - p, torch.arange(V, device=device) * e - q
        pixel, window = (i.view(1, 1, -1), k.view(1, -1, 1)) if turned else (k.view(1, -1, 1), i.view(1, 1, -1))
        rows = (pixel == window * s + u.view(-1, 1, 1)).to(dtype)
        columns = (l.view(1, -1, 1) == j.view(1, 1, -1) * t + v.view(-1, 1, 1)).to(dtype)
        links = torch.einsum("uki,vlj->uvklij", rows, columns.mT if turned else columns).flatten(2).flatten(0, 1).flatten(1)
    here, there = ((I, J), size) if turned else (size, (I, J))
    return Plan(here, there, r, hop, top, K, links.contiguous())


class Strips:
    """The strips of the images `x`, some channels and images at a time, and the memory for them, their matrices and their results."""

    def __init__(self, x: Tensor, plan: Plan):
        self.x, self.plan = x, plan
        (_, W), (_, J), n = plan.size, plan.out, plan.strips
        self.slack = plan.apart * plan.hop + plan.K
        image, matrix = n * (plan.hop * W + plan.r * J), plan.K * W * plan.r * J
        most = BYTES // x.element_size()
        self.images = max(1, min(x.shape[0], most // (4 * image)))
        self.channels = max(1, min(x.shape[1], most // (self.images * image + matrix)))
        self.pixels = scratch(x, self.channels * (self.images * n * plan.hop + self.slack) * W)
        self.results = scratch(x, self.channels * self.images * n * plan.r * J)
        self.kernels = scratch(x, self.channels * matrix)

    def blocks(self) -> Iterator[slice]:
        """The channels of one block after the other."""
        for c in range(0, self.x.shape[1], self.channels):
            yield slice(c, min(c + self.channels, self.x.shape[1]))

    def __call__(self, c: slice) -> Iterator[tuple[slice, list[Tensor]]]:
        """Some images of these channels, and their pixels in `apart` matrices per channel, `(c, strips, K*W)`."""
        x, (_, _, _, hop, top, K, _), n = self.x, self.plan, self.plan.strips
        (H, W), apart = self.plan.size, self.plan.apart
        low, high = max(0, -top), min(n * hop, H - top)
        for i in range(0, x.shape[0], self.images):
            part = x[i : i + self.images, c].transpose(0, 1)
            channels, images = part.shape[:2]
            rows = images * n * hop
            pixels = self.pixels[: channels * (rows + self.slack) * W].view(channels, -1, W)
            pixels[:, rows:] = 0
            inside = pixels[:, :rows].unflatten(1, (images, -1))
            inside[:, :, :low] = 0
            inside[:, :, high:] = 0
            inside[:, :, low:high] = part[:, :, low + top : high + top]
            size = (channels, images * n // apart, K * W)
            steps = ((rows + self.slack) * W, apart * hop * W, 1)
            yield slice(i, i + images), [pixels.as_strided(size, steps, pixels.storage_offset() + k * hop * W) for k in range(apart)]

    def results_of(self, channels: int, images: int) -> Tensor:
        """Memory for the results of some images, `(apart, c, n, strips, r, J)`."""
        (_, J), n, apart, r = self.plan.out, self.plan.strips, self.plan.apart, self.plan.r
        return self.results[: channels * images * n * r * J].view(apart, channels, images, n // apart, r, J)

    def places(self, results: Tensor, image: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Results, part by part, and where they belong in the image `(n, c, I, J)`."""
        r, apart = self.plan.r, self.plan.apart
        results = results.permute(2, 1, 3, 0, 4, 5)  # n c strips apart r J
        full, rest = divmod(image.shape[2], apart * r)
        if full:
            yield results[:, :, :full], image[:, :, : full * apart * r].unflatten(2, (full, apart, r))
        for k, row in enumerate(range(image.shape[2] - rest, image.shape[2], r)):
            part = image[:, :, row : row + r]
            yield results[:, :, full, k, : part.shape[2]], part

    def matrices(self, w: Tensor) -> Tensor:
        """The matrices of the kernels `(c, U, V)`, `(c, K*W, r*J)`."""
        out = self.of_kernels(len(w))
        torch.mm(w.reshape(len(w), -1), self.plan.links, out=out.flatten(1))
        return out

    def of_kernels(self, channels: int) -> Tensor:
        """Memory for so many matrices."""
        size = (channels, self.plan.K * self.plan.size[1], self.plan.r * self.plan.out[1])
        return self.kernels[: size[0] * size[1] * size[2]].view(size)


def apply(x: Tensor, w: Tensor, plan: Plan, bias: Tensor | None, y: Tensor, add: bool = False) -> bool:
    """Writes, or adds, to `y` the map of the images `x` with the kernels `w` `(C, U, V)`, one per channel; whether all is finite."""
    strips = Strips(x, plan)
    total = x.new_zeros(())
    for c in strips.blocks():
        matrices = strips.matrices(w[c])
        for n, pixels in strips(c):
            results = strips.results_of(c.stop - c.start, n.stop - n.start)
            outs = results.flatten(2, 3).flatten(3)
            for out, part in zip(outs, pixels, strict=True):
                torch.bmm(part, matrices, out=out)
            total += outs.sum()
            for source, target in strips.places(results, y[n, c]):
                if add:
                    target += source
                elif bias is None:
                    target.copy_(source)
                else:
                    torch.add(source, bias[c].view(-1, *(1,) * (source.ndim - 2)), out=target)
    return bool(total.isfinite())


def convolve(x: Tensor, w: Tensor, geometry: Geometry, groups: int, bias: Tensor | None, layout: torch.memory_format) -> Tensor:
    """The output, `(N, C, *size), (O, 1, *kernel), (O,) -> (N, O, *positions)`."""
    if x.dtype in HALF:
        return convolve(x.float(), w.float(), geometry, groups, None if bias is None else bias.float(), layout).to(x.dtype)
    y = empty(x, (x.shape[0], w.shape[0], *geometry.positions(x.shape[2:])), layout)
    times = w.shape[0] // groups
    there = plan(geometry, x.shape[2:], False, x)
    for m in range(times):
        begin()
        if not apply(x, w[m::times, 0], there, None if bias is None else bias[m::times], y[:, m::times]):
            begin()
            return depthwise.convolve(x, w, geometry, groups, bias, layout)
    return y


def convolve_input_gradient(
    gy: Tensor, w: Tensor, geometry: Geometry, groups: int, size: Sequence[int], layout: torch.memory_format
) -> Tensor:
    """The gradient of the input, `(N, O, *positions), (O, 1, *kernel) -> (N, C, *size)`."""
    if gy.dtype in HALF:
        return convolve_input_gradient(gy.float(), w.float(), geometry, groups, size, layout).to(gy.dtype)
    gx = empty(gy, (gy.shape[0], groups, *size), layout)
    times = w.shape[0] // groups
    back = plan(geometry, size, True, gy)
    for m in range(times):
        begin()
        if not apply(gy[:, m::times], w[m::times, 0], back, None, gx, add=m > 0):
            begin()
            return depthwise.convolve_input_gradient(gy, w, geometry, groups, size, layout)
    return gx


def convolve_weight_gradient(gy: Tensor, x: Tensor, geometry: Geometry, groups: int, layout: torch.memory_format) -> Tensor:
    """The gradient of the weight, `(N, O, *positions), (N, C, *size) -> (O, 1, *kernel)`."""
    if x.dtype in HALF:
        return convolve_weight_gradient(gy.float(), x.float(), geometry, groups, layout).to(x.dtype)
    gw = empty(x, (gy.shape[1], 1, *geometry.kernel), layout)
    times = gy.shape[1] // groups
    there = plan(geometry, x.shape[2:], False, x)
    for m in range(times):
        begin()
        _weight_gradient(gy[:, m::times], x, there, gw[m::times, 0])
    if not gw.sum().isfinite():
        begin()
        return depthwise.convolve_weight_gradient(gy, x, geometry, groups, layout)
    return gw


def _weight_gradient(gy: Tensor, x: Tensor, plan: Plan, gw: Tensor) -> None:
    """The gradient of one kernel per channel, written to `gw` `(C, U, V)`."""
    strips = Strips(x, plan)
    for c in strips.blocks():
        sums = strips.of_kernels(c.stop - c.start)
        for n, pixels in strips(c):
            gradients = strips.results_of(c.stop - c.start, n.stop - n.start).zero_()
            for target, source in strips.places(gradients, gy[n, c]):
                target.copy_(source)
            for k, (part, right) in enumerate(zip(pixels, gradients.flatten(2, 3).flatten(3), strict=True)):
                if k or n.start:
                    sums.baddbmm_(part.mT, right)
                else:
                    torch.bmm(part.mT, right, out=sums)
        gw[c] = torch.mm(sums.flatten(1), plan.links.t()).view(gw[c].shape)
