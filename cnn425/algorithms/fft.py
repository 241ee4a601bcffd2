"""FFT: a convolution is a product of spectra, whatever the size of the kernel.

    Y[n,o]  = sum over c of  X[n,c] * conj(W[o,c])          per frequency; X, W, Y the discrete Fourier transforms of the padded
    GX[n,c] = sum over o of  GY[n,o] * W[o,c]               image, of the kernel filled up with zeros to the same size, of the output
    GW[o,c] = sum over n of  conj(GY[n,o]) * X[n,c]

(A cross-correlation, hence the conjugate; the gradient of the image is a true convolution.) Circular, so sizes are at least those of the
padded image, rounded up to a product of 2, 3 and 5; the spectrum of real numbers is half known, which halves everything. The sums over
channels are one matrix product per frequency. Images and outputs are taken in parts that fit the scratch.

Cost: 2.5*F*log2(F) operations per image, channel and kernel of F pixels, and 4*F*N*C*O for the products: the side of the kernel does
not matter, so it pays for kernels of some 20 pixels a side. Accuracy: the error of a number is that of the whole image's, about
log2(F) roundings of the largest: as good as a dot product for images of one brightness, worse for a dim pixel beside a bright one. An
infinity or NaN spreads over the whole image: results that are not finite are computed again by im2col. Applies to float32 and float64
with stride 1.
"""

from collections.abc import Sequence
from functools import lru_cache
from math import prod
from typing import Any

import torch
from torch import Tensor

from cnn425.algorithms import im2col, memory
from cnn425.algorithms.layout import empty
from cnn425.windows import Geometry, pad

BYTES = 4 << 20  # of one spectrum at a time


def applies(dtype: torch.dtype, geometry: Geometry) -> bool:
    """Whether this algorithm can compute a convolution."""
    return dtype in (torch.float32, torch.float64) and all(s == 1 for s in geometry.stride)


@lru_cache(maxsize=256)
def quick(size: int) -> int:
    """The least product of 2, 3 and 5 that is not below `size`."""
    while True:
        rest = size
        for factor in (2, 3, 5):
            while rest % factor == 0:
                rest //= factor
        if rest == 1:
            return size
        size += 1


class Plan:
    """Sizes of the transforms of one convolution, and how many images and outputs are transformed at a time."""

    def __init__(self, size: Sequence[int], geometry: Geometry, channels: int, bytes_: int):
        self.geometry, self.d = geometry, geometry.dimensions
        self.positions = geometry.positions(size)
        self.overhang = geometry.overhang(size)
        self.size = tuple(quick(low + n + high) for n, (low, high) in zip(size, self.overhang, strict=True))
        one = prod(self.size[:-1]) * (self.size[-1] // 2 + 1) * 2 * bytes_
        self.step = max(1, BYTES // (one * channels))

    def spectrum(self, t: Tensor) -> Tensor:
        """The spectra of `(A, B, *size)` as matrices, one per frequency: `(F, A, B)`."""
        return torch.fft.rfftn(t, self.size, tuple(range(2, 2 + self.d))).flatten(2).permute(2, 0, 1)

    def image(self, spectrum: Tensor) -> Tensor:
        """The inverse of `spectrum`, `(F, A, B) -> (A, B, *size)`."""
        sizes = (*self.size[:-1], self.size[-1] // 2 + 1)
        return torch.fft.irfftn(spectrum.permute(1, 2, 0).unflatten(2, sizes), self.size, tuple(range(2, 2 + self.d)))

    def kernel(self, w: Tensor) -> Tensor:
        """The spectra of a kernel `(O, C, *kernel)`, its cells as far apart as the dilation says."""
        if any(step > 1 for step in self.geometry.dilation):
            apart = w.new_zeros(*w.shape[:2], *self.geometry.extent)
            at: Any = (..., *(slice(None, None, step) for step in self.geometry.dilation))
            apart[at] = w
            w = apart
        return self.spectrum(w)

    def crop(self, y: Tensor, low: Sequence[int], count: Sequence[int], step: Sequence[int]) -> Tensor:
        """`count` pixels from `low` on, every `step`-th."""
        at: Any = (..., *(slice(a, a + (n - 1) * s + 1, s) for a, n, s in zip(low, count, step, strict=True)))
        return y[at]


def parts(count: int, step: int) -> list[slice]:
    """`count` things, `step` at a time."""
    return [slice(a, min(a + step, count)) for a in range(0, count, step)]


def convolve(x: Tensor, w: Tensor, geometry: Geometry, groups: int, bias: Tensor | None, layout: torch.memory_format) -> Tensor:
    """The output, `(N, C, *size), (O, C/G, *kernel), (O,) -> (N, O, *positions)`."""
    y = empty(x, (x.shape[0], w.shape[0], *geometry.positions(x.shape[2:])), layout)
    C, O, d = w.shape[1], w.shape[0] // groups, geometry.dimensions
    plan = Plan(x.shape[2:], geometry, C, x.element_size())
    for g in range(groups):
        for o in parts(O, plan.step):
            out = slice(g * O + o.start, g * O + o.stop)
            W = plan.kernel(w[out]).conj().mT
            for n in parts(len(x), plan.step):
                X = plan.spectrum(pad(x[n, g * C : (g + 1) * C], plan.overhang))
                y[n, out] = plan.crop(plan.image(X @ W), [0] * d, plan.positions, [1] * d)
    if bias is not None:
        y += bias.view(-1, *(1,) * d)
    if y.sum().isfinite():
        return y
    memory.begin()
    return im2col.convolve(x, w, geometry, groups, bias, layout)


def convolve_input_gradient(
    gy: Tensor, w: Tensor, geometry: Geometry, groups: int, size: Sequence[int], layout: torch.memory_format
) -> Tensor:
    """The gradient of the input, `(N, O, *positions), (O, C/G, *kernel) -> (N, C, *size)`."""
    gx = empty(gy, (gy.shape[0], w.shape[1] * groups, *size), layout)
    C, O, d = w.shape[1], w.shape[0] // groups, geometry.dimensions
    plan = Plan(size, geometry, O, gy.element_size())
    inside = [max(low, 0) for low, _ in plan.overhang]
    seen = [n + min(low, 0) + min(high, 0) for n, (low, high) in zip(size, plan.overhang, strict=True)]
    cut = tuple(slice(max(-low, 0), max(-low, 0) + n) for n, (low, _) in zip(seen, plan.overhang, strict=True))
    if tuple(seen) != tuple(size):
        gx.zero_()
    for g in range(groups):
        for c in parts(C, plan.step):
            into = slice(g * C + c.start, g * C + c.stop)
            W = plan.kernel(w[g * O : (g + 1) * O, c])
            for n in parts(len(gy), plan.step):
                GY = plan.spectrum(gy[n, g * O : (g + 1) * O])
                gx[(n, into, *cut)] = plan.crop(plan.image(GY @ W), inside, seen, [1] * d)
    if gx.sum().isfinite():
        return gx
    memory.begin()
    return im2col.convolve_input_gradient(gy, w, geometry, groups, size, layout)


def convolve_weight_gradient(gy: Tensor, x: Tensor, geometry: Geometry, groups: int, layout: torch.memory_format) -> Tensor:
    """The gradient of the weight, `(N, O, *positions), (N, C, *size) -> (O, C/G, *kernel)`."""
    C, O, d = x.shape[1] // groups, gy.shape[1] // groups, geometry.dimensions
    gw = empty(x, (groups * O, C, *geometry.kernel), layout)
    plan = Plan(x.shape[2:], geometry, C, x.element_size())
    for g in range(groups):
        for o in parts(O, plan.step):
            total: Tensor | None = None
            out = slice(g * O + o.start, g * O + o.stop)
            for n in parts(len(x), plan.step):
                X = plan.spectrum(pad(x[n, g * C : (g + 1) * C], plan.overhang))
                part = plan.spectrum(gy[n, out]).conj().mT @ X
                total = part if total is None else total.add_(part)
            assert total is not None
            gw[out] = plan.crop(plan.image(total), [0] * d, geometry.kernel, geometry.dilation)
    if gw.sum().isfinite():
        return gw
    memory.begin()
    return im2col.convolve_weight_gradient(gy, x, geometry, groups, layout)
