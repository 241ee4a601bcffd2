"""FFT: a convolution is a product of spectra, whatever the size of the kernel. On request only.

    Y[n,o]  = sum over c of  X[n,c] * conj(W[o,c])          per frequency; X, W, Y the discrete Fourier transforms of the padded
    GX[n,c] = sum over o of  GY[n,o] * W[o,c]               image, of the kernel filled up with zeros to the same size, of the output
    GW[o,c] = sum over n of  conj(GY[n,o]) * X[n,c]

(A cross-correlation, hence the conjugate; the gradient of the image is a true convolution.) It is circular, so sizes are at least those of
the padded image, rounded up to a product of 2, 3 and 5. For real numbers half the spectrum determines the rest, which halves everything.
The sums over channels are one matrix product per frequency.

Cost: 2.5*F*log2(F) operations per image, channel and kernel of F pixels, and 4*F*N*C*O for the products: the size of the kernel does not
matter. Errors, and why it does not run by default: the error of every number is about log2(F) unit roundoffs of the largest number of
the whole image. So a dim pixel beside a bright one is lost, every pixel changes every sum a little, whole numbers do not stay whole,
non-negative products may sum to a negative number, and an infinity or NaN spreads over the image. Applies to float32 and float64 with
stride 1.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cnn425.algorithms.layout import FLOATS
from cnn425.windows import Geometry, pad


def applies(dtype: torch.dtype, geometry: Geometry) -> bool:
    """Whether this algorithm can compute a convolution."""
    return dtype in FLOATS and all(s == 1 for s in geometry.stride)


def fast_size(size: int) -> int:
    """The least product of 2, 3 and 5 that is not below `size`."""
    while True:
        rest = size
        for factor in (2, 3, 5):
            while rest % factor == 0:
                rest //= factor
        if rest == 1:
            return size
        size += 1


class Spectra:
    """The transforms of one convolution: spectra as one matrix per frequency, and back."""

    def __init__(self, size: Sequence[int], geometry: Geometry) -> None:
        self.geometry, self.overhang = geometry, geometry.overhang(size)
        self.size = tuple(fast_size(low + n + high) for n, (low, high) in zip(size, self.overhang, strict=True))
        self.sides = tuple(range(-geometry.dimensions, 0))

    def of(self, t: Tensor) -> Tensor:
        """`(.., A, B, *size) -> (.., F, A, B)`."""
        spectrum = torch.fft.rfftn(t, self.size, self.sides).flatten(-len(self.size))
        return spectrum.movedim(-1, -3)

    def of_kernel(self, w: Tensor) -> Tensor:
        """The spectra of a kernel, its cells as far apart as the dilation says."""
        apart = w.new_zeros(*w.shape[: -len(self.size)], *self.geometry.extent)
        at: Any = (..., *(slice(None, None, step) for step in self.geometry.dilation))
        apart[at] = w
        return self.of(apart)

    def back(self, spectrum: Tensor, count: Sequence[int], step: Sequence[int]) -> Tensor:
        """The inverse of `of`: `count` pixels, every `step`-th."""
        sizes = (*self.size[:-1], self.size[-1] // 2 + 1)
        image = torch.fft.irfftn(spectrum.movedim(-3, -1).unflatten(-1, sizes), self.size, self.sides)
        at: Any = (..., *(slice(0, (n - 1) * s + 1, s) for n, s in zip(count, step, strict=True)))
        return image[at]


def output(x: Tensor, w: Tensor, geometry: Geometry, groups: int) -> Tensor:
    """The output, `(N, C, *size), (O, C/G, *kernel) -> (N, O, *positions)`."""
    spectra, d = Spectra(x.shape[2:], geometry), geometry.dimensions
    X = spectra.of(pad(x, spectra.overhang).unflatten(1, (groups, -1)).transpose(0, 1))
    W = spectra.of_kernel(w.unflatten(0, (groups, -1))).conj().mT
    y = spectra.back(X @ W, geometry.positions(x.shape[2:]), [1] * d)
    return y.transpose(0, 1).flatten(1, 2)


def input_gradient(gy: Tensor, w: Tensor, geometry: Geometry, groups: int, size: Sequence[int]) -> Tensor:
    """The gradient of the input, `(N, O, *positions), (O, C/G, *kernel) -> (N, C, *size)`."""
    spectra, d = Spectra(size, geometry), geometry.dimensions
    GY = spectra.of(gy.unflatten(1, (groups, -1)).transpose(0, 1))
    W = spectra.of_kernel(w.unflatten(0, (groups, -1)))
    padded = [low + n + high for n, (low, high) in zip(size, spectra.overhang, strict=True)]
    gx = spectra.back(GY @ W, padded, [1] * d).transpose(0, 1).flatten(1, 2)
    return pad(gx, [(-low, -high) for low, high in spectra.overhang])


def weight_gradient(gy: Tensor, x: Tensor, geometry: Geometry, groups: int) -> Tensor:
    """The gradient of the weight, `(N, O, *positions), (N, C, *size) -> (O, C/G, *kernel)`."""
    spectra = Spectra(x.shape[2:], geometry)
    X = spectra.of(pad(x, spectra.overhang).unflatten(1, (groups, -1)).transpose(0, 1))
    GY = spectra.of(gy.unflatten(1, (groups, -1)).transpose(0, 1))
    return spectra.back(GY.conj().mT @ X, geometry.kernel, geometry.dilation).flatten(0, 1)
