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
from cnn425.algorithms.col2im import FEW_POSITIONS, pays
from cnn425.windows import Geometry

MULTIPLY = 0.012  # one multiply-add inside a matrix product
THIN = 30  # a product with so few outputs runs at half that rate,
SHORT = 9  # and one that sums so few products
COPY = 0.18  # one number copied along memory, inside the cache, and for each
RUN = 4.8  # run of such numbers
TURN = 0.36  # one number copied across memory (transposed)
RESULT = 0.24  # one number of a result
ADD = 0.053  # one number of a result read and written once more by a product
SPREAD = 0.42  # one number added to its pixel
APART = 5  # times as long, if there is a stride
WEIGHT = 1.6  # one number of a weight brought in order
TURNED = 2.25  # and turned around
FOURIER = 0.5  # one number, per doubling of the size of a transform,
SPECTRUM = 4.0  # and all other steps
SPECTRA = 1 << 21  # numbers whose spectra stay in the cache; those of more take
UNCACHED = 1.8  # times as long
CALL = 11000.0  # one operation of torch with its views, per thread
SWEEP = 0.42  # one multiply-add of a sweep over images
SMALL = 120.0  # one product of a batch of small ones, its
INSIDE = 0.029  # multiply-adds, and
ROUND = 0.022  # those of products of many rows


class Work(NamedTuple):
    """A convolution, with the roles as the algorithm meets them: an input gradient at stride 1 is a convolution from outputs to inputs."""

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
    def unit(self) -> bool:
        """Whether all strides are 1."""
        return all(s == 1 for s in self.geometry.stride)

    @property
    def backwards(self) -> bool:
        """Whether pixels are made from strided windows."""
        return self.result == "input gradient" and not self.unit

    @property
    def call(self) -> float:
        """One operation: every thread waits for the slowest."""
        return CALL * self.threads

    def spread(self, shifted: bool) -> bool:
        """Whether windows are not copied but added to their pixels."""
        if self.result == "weight gradient" or not (self.unit or self.backwards):
            return False
        few, many = (self.channels, self.outputs) if self.backwards else (self.outputs, self.channels)
        turned = shifted or self.groups > 1 or self.result == "output"
        return pays(many * self.groups, few * self.groups, self.geometry, self.images * prod(self.positions), turned)


def lowering(work: Work, parts: int, shifted: bool) -> float:
    """The cells of all windows copied, or added to their pixels, and products in so many parts, one on top of the other."""
    kernel, stride, spread = work.geometry.kernel, work.geometry.stride, work.spread(shifted)
    cells, each = prod(kernel), prod(kernel) // parts
    sources, results = (work.outputs, work.channels) if work.backwards else (work.channels, work.outputs)
    weight = work.groups * work.channels * work.outputs * cells
    pixels = work.images * work.groups * prod(work.size) if work.backwards else work.windows

    rows, sums = (results * each, sources) if spread else (results, sources * each)
    if work.result == "weight gradient":
        rows, sums = min(work.outputs, work.channels * each), prod(work.positions)
    time = work.windows * cells * work.channels * work.outputs * MULTIPLY * (1 + THIN / rows + SHORT / sums)

    if each > 1 or not work.unit:  # otherwise the image is its own columns
        run = work.channels * (kernel[-1] if work.groups == 1 else 1) if work.last else work.positions[-1]
        again = 1 + (kernel[0] - 1) * work.geometry.dilation[0] / stride[0] / work.positions[0] if shifted else 1
        if spread:
            numbers, step = results, SPREAD * (1 if work.unit else APART)
        else:
            numbers, step = sources // (prod(stride) if work.backwards else 1), COPY
        time += work.windows * each * max(1, numbers) * (step + RUN / max(1, run)) * again
    if work.result != "weight gradient":
        time += pixels * results * RESULT
    time += (parts - 1) * (work.windows * each if spread else pixels) * results * ADD
    if cells > 1 and work.result == "input gradient" and not (spread and not shifted):
        time += weight * TURNED
    elif cells > 1 and shifted:
        time += weight * WEIGHT
    calls: float = 8 + parts
    if spread:  # an addition for each cell of a row, and products for each row of large images
        calls += each + (work.images * parts / 5 if shifted and prod(work.positions) >= FEW_POSITIONS else 0)
    return time + work.call * calls


def im2col(work: Work) -> float:
    """Every window copied, one product."""
    return lowering(work, 1, shifted=False)


def shifted(work: Work) -> float:
    """Every row of a window copied; as many products as rows."""
    return lowering(work, work.geometry.kernel[0], shifted=True)


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
    kernel = points * work.channels * work.outputs * (prod(work.geometry.kernel) * MULTIPLY + 3 * COPY)
    moves, products = (1.2, 1.2) if work.threads == 1 else (2.2, 1.44)  # its many short steps gain little from a second core,
    moves = min(moves, 1.7) if d == 3 and min(work.geometry.kernel) > 1 else moves  # and those of volumes are longer
    return work.groups * (count * ((cut + back) * moves + multiplied * products) + kernel + work.call * 18)


def fft(work: Work) -> float:
    """Images, kernels and outputs there and back, and a complex product per frequency."""
    pixels = prod(n + low + high for n, (low, high) in zip(work.size, work.geometry.padding, strict=True))
    pixels = max(
        1, pixels if work.result != "input gradient" else prod(p + e - 1 for p, e in zip(work.positions, work.geometry.extent, strict=True))
    )
    images = work.images * (work.channels + work.outputs) + work.channels * work.outputs
    slow = UNCACHED if images * pixels > SPECTRA else 1.0
    transforms = work.groups * images * pixels * (log2(pixels + 1) * FOURIER + SPECTRUM) * slow
    return transforms + work.groups * pixels * work.images * work.channels * work.outputs * 4 * MULTIPLY + work.call * 8


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
    return pixels * cells * each * SWEEP + work.call * (6 + cells) / 4


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
    return products * (1 + phases) / 2 + copied * phases + turned + work.call * (6 + work.images * (1 + V) * phases / 14)


def strips(work: Work) -> float:
    """Both images copied, a matrix per channel made, and a few products per channel."""
    (U, _), (s, _), (d, _) = work.geometry.kernel, work.geometry.stride, work.geometry.dilation
    (_, W), (I, J) = work.size, work.positions
    r = lanes.height(W)
    matrix = ((r - 1) * s + (U - 1) * d + 1) * W * r * J
    moved = (work.windows + work.images * work.groups * prod(work.size)) * 1.2
    return moved + work.images * work.groups * -(-I // r) * matrix * ROUND + work.groups * matrix * 0.7 + work.call * 7


def alone(work: Work) -> float:
    """What `shifted` takes with one channel per group: its products have one row each."""
    rows, *rest = work.geometry.kernel
    strided = 1.0 if work.unit else 3.6 if work.backwards else 2.0
    return work.windows * (rows + prod(rest) * (0.3 + 10 / work.positions[-1])) * strided + work.call * (8 + rows) / 4
