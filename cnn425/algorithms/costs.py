"""What each algorithm is expected to cost, in nanoseconds of one processor core: arithmetic, numbers moved, calls.

The constants were measured once (docs/performance.md) and stay: a choice that depended on the machine or on a stopwatch would give other
roundings from run to run. Only their ratios matter. The number of threads counts, as it does for the roundings of torch's own kernels.
"""

from collections.abc import Sequence
from math import log2, prod
from typing import NamedTuple

from cnn425.algorithms import banded as bands
from cnn425.algorithms import strips as lanes
from cnn425.algorithms import winograd as tiles
from cnn425.algorithms.col2im import MOVES, pays
from cnn425.windows import Geometry

MULTIPLY = 2 / 165  # one multiply-add inside a matrix product
THIN = 12  # a product with so few outputs runs at half that rate
COPY = 0.17  # one number copied along memory, inside the cache
TURN = 0.6  # one number copied across memory (transposed)
ADD = 0.15  # one number of a result read and written once more by a product
FOURIER = 0.3  # one number, per doubling of the size of a transform
SPECTRA = 1 << 21  # numbers whose spectra stay in the cache; those of more take
UNCACHED = 1.8  # times as long
CALL = 6000.0  # one operation of torch with its views
SWEEP = 0.42  # one multiply-add of a sweep over images
SMALL = 120.0  # one product of a batch of small ones, its
INSIDE = 0.029  # multiply-adds, and
ROUND = 0.022  # those of products of many rows


class Work(NamedTuple):
    """A convolution, with the roles as the algorithm meets them: an input gradient is a convolution from outputs to inputs."""

    images: int
    channels: int  # per group
    outputs: int  # per group
    groups: int
    size: tuple[int, ...]
    positions: tuple[int, ...]
    geometry: Geometry
    last: bool
    result: str
    threads: int

    @classmethod
    def of(cls, result: str, shape: Sequence[int], outputs: int, geometry: Geometry, groups: int, last: bool, threads: int) -> "Work":
        """The work for one of the three maps of an input `shape`."""
        size = tuple(shape[2:])
        C, O, positions = shape[1] // groups, outputs // groups, geometry.positions(size)
        if result == "input gradient" and all(s == 1 for s in geometry.stride):
            C, O, size, positions = O, C, positions, size
        return cls(shape[0], C, O, groups, size, positions, geometry, last, result, threads)

    @property
    def windows(self) -> int:
        """Windows of all groups and images."""
        return self.images * self.groups * prod(self.positions)

    @property
    def spread(self) -> bool:
        """Whether windows are not copied but added to their pixels."""
        return self.result != "weight gradient" and pays(self.channels * self.groups, self.outputs * self.groups, self.geometry)

    def products(self, cells: int, parts: int = 1) -> float:
        """Products of all windows of `cells` cells with the kernel, in so many parts."""
        few = self.channels if self.result == "input gradient" and any(s > 1 for s in self.geometry.stride) else self.outputs
        few = cells // parts * self.outputs if self.spread else few
        return self.windows * cells * self.channels * self.outputs * MULTIPLY * (1 + THIN / few)

    def lowered(self, cells: int) -> float:
        """Copies of `cells` cells of every window: short runs along memory are dear."""
        if cells == 1 and all(s == 1 for s in self.geometry.stride):
            return 0.0
        run = self.positions[-1]
        if self.last:
            run = self.channels * (self.geometry.kernel[-1] if self.groups == 1 else 1)
        numbers = cells * (self.outputs * MOVES if self.spread else self.channels)
        return self.windows * numbers * (COPY + 2 / max(1, run))


def im2col(work: Work) -> float:
    """Every window copied, one product."""
    cells = prod(work.geometry.kernel)
    return work.lowered(cells) + work.products(cells) + CALL * 8


def shifted(work: Work) -> float:
    """Every row of a window copied; as many products as rows, each but the first on top of the one before."""
    rows, *rest = work.geometry.kernel
    extra = 1 + (rows - 1) * work.geometry.dilation[0] / work.geometry.stride[0] / work.positions[0]
    again = work.windows * (rows - 1) * work.outputs * ADD
    return work.lowered(prod(rest)) * extra + work.products(rows * prod(rest), rows) + again + CALL * (8 + rows)


def winograd(work: Work) -> float:
    """Tiles copied and transformed, one product per point, and back."""
    d = work.geometry.dimensions
    m = [tiles.tile(d) + 1 - k if k > 1 else 1 for k in work.geometry.kernel]
    a = [n + k - 1 for n, k in zip(m, work.geometry.kernel, strict=True)]
    points, pixels = prod(a), prod(m)
    count = work.images * prod(-(-p // n) for p, n in zip(work.positions, m, strict=True))
    backwards = tiles.backwards_pays(work.channels, work.outputs, work.geometry.kernel, work.size, work.positions)
    if work.result == "input gradient" and backwards:  # tiles of the output gradient; windows of the image added up
        count = work.images * prod(-(-p // n) for p, n in zip(work.size, m, strict=True))
        cut = work.channels * pixels * (COPY + points * MULTIPLY + (COPY if work.last else TURN))
        back = work.outputs * (points * (points * MULTIPLY + 2 * COPY) + pixels * (COPY if work.last else 2 * TURN))
    else:
        cut = work.channels * (points * (2 * COPY + points * MULTIPLY) + pixels * (COPY if work.last else TURN))
        back = work.outputs * (pixels * points * MULTIPLY + points * COPY + pixels * (COPY if work.last else 2 * TURN))
    multiplied = points * work.channels * work.outputs * MULTIPLY * (1 + THIN / work.outputs)
    kernel = points * work.channels * work.outputs * (prod(work.geometry.kernel) * MULTIPLY + 2 * COPY)
    moves, products = (1.15, 1.15) if work.threads == 1 else (2.4, 1.3)  # its many short steps gain little from a second core
    return work.groups * (count * ((cut + back) * moves + multiplied * products) + kernel + CALL * 25)


def fft(work: Work) -> float:
    """Images, kernels and outputs there and back, and a complex product per frequency."""
    pixels = prod(n + low + high for n, (low, high) in zip(work.size, work.geometry.padding, strict=True))
    pixels = max(
        1, pixels if work.result != "input gradient" else prod(p + e - 1 for p, e in zip(work.positions, work.geometry.extent, strict=True))
    )
    images = work.images * (work.channels + work.outputs) + work.channels * work.outputs
    slow = UNCACHED if images * pixels > SPECTRA else 1.0
    transforms = work.groups * images * pixels * (log2(pixels + 1) * FOURIER + 4 * TURN) * slow
    return transforms + work.groups * pixels * work.images * work.channels * work.outputs * 4 * MULTIPLY + CALL * 20


def depthwise(work: Work) -> float:
    """A sweep per cell, and in the weight gradient a sum; along padded images or, if strided or channels last, row by row."""
    cells, pixels = prod(work.geometry.kernel), work.windows
    if work.last:
        each = 2.2 if work.result == "weight gradient" else 1.05
    elif any(s > 1 for s in work.geometry.stride):
        each = (1.0 if work.result == "output" else 1.4) * (2 + 17 / work.positions[-1])
    else:
        each = 1.4 if work.result == "weight gradient" else 1.0
        pixels = work.images * work.groups * prod(p + e - 1 for p, e in zip(work.positions, work.geometry.extent, strict=True))
    return pixels * cells * each * SWEEP + CALL * (6 + cells)


def banded(work: Work) -> float:
    """Tiles copied, and a small product per image, tile and column of the kernel."""
    I, J = work.positions
    (U, V), (s, t), (d, e) = work.geometry.kernel, work.geometry.stride, work.geometry.dilation
    r = bands.rows(I)
    K, tiles_ = (r - 1) * s + (U - 1) * d + 1, -(-I // r) * work.images * work.groups
    products = tiles_ * V * (SMALL + r * K * J * INSIDE) * (1.4 if work.result == "weight gradient" else 1.0)
    copied = tiles_ * K * (J * t + (V - 1) * e) * 0.8 * (2 if t > 1 else 1)
    turned = (work.windows + work.images * work.groups * prod(work.size)) * 1.5 if work.last else 0.0
    phases = s * t if work.result == "input gradient" else 1  # each with a part of the cells
    return products * (1 + phases) / 2 + copied * phases + turned + CALL * (20 + work.images * (1 + V) * phases / 4)


def strips(work: Work) -> float:
    """Both images copied, a matrix per channel made, and a few products per channel."""
    (U, _), (s, _), (d, _) = work.geometry.kernel, work.geometry.stride, work.geometry.dilation
    (_, W), (I, J) = work.size, work.positions
    r = lanes.height(W)
    matrix = ((r - 1) * s + (U - 1) * d + 1) * W * r * J
    moved = (work.windows + work.images * work.groups * prod(work.size)) * 1.2
    return moved + work.images * work.groups * -(-I // r) * matrix * ROUND + work.groups * matrix * 0.7 + CALL * 25


def alone(work: Work) -> float:
    """What `shifted` takes with one channel per group: its products have one row each."""
    rows, *rest = work.geometry.kernel
    strided = 2 if any(s > 1 for s in work.geometry.stride) else 1
    return work.windows * (rows + prod(rest) * (0.3 + 10 / work.positions[-1])) * strided + CALL * (8 + rows)
