"""What each algorithm is expected to cost, in nanoseconds of one processor core: arithmetic, numbers moved, calls.

The constants were measured once (docs/performance.md) and stay: a choice that depended on the machine or on a stopwatch would give other
roundings from run to run. Only their ratios matter.
"""

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

from cnn425.algorithms import winograd as tiles
from cnn425.algorithms.col2im import MOVES
from cnn425.windows import Geometry

MULTIPLY = 2 / 170  # one multiply-add inside a matrix product
COPY = 0.2  # one number copied along memory, inside the cache
TURN = 0.5  # one number copied across memory (transposed)
ADD = 0.15  # one number added to another inside the cache
CALL = 4000.0  # one operation of torch with its views


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

    @classmethod
    def of(cls, result: str, shape: Sequence[int], outputs: int, geometry: Geometry, groups: int, last: bool) -> "Work":
        """The work for one of the three maps of an input `shape`."""
        size = tuple(shape[2:])
        C, O, positions = shape[1] // groups, outputs // groups, geometry.positions(size)
        if result == "input gradient" and all(s == 1 for s in geometry.stride):
            C, O, size, positions = O, C, positions, size
        return cls(shape[0], C, O, groups, size, positions, geometry, last, result)

    @property
    def windows(self) -> int:
        """Windows of all groups and images."""
        return self.images * self.groups * prod(self.positions)


def im2col(work: Work) -> float:
    """Every window copied, one product; or one product, every cell of a window added to its pixel."""
    cells = prod(work.geometry.kernel)
    inputs, outputs = work.channels * COPY, work.outputs * COPY * MOVES
    strided = any(s > 1 for s in work.geometry.stride)
    moved = outputs / MOVES * 2 if work.result == "weight gradient" and not strided else outputs  # the roles may be exchanged
    moved = inputs if strided and work.result != "input gradient" else min(inputs, moved)
    moved *= 0 if cells == 1 and not strided else cells
    multiplied = cells * work.channels * work.outputs * MULTIPLY
    return work.windows * (moved + multiplied) + CALL * 8


def shifted(work: Work) -> float:
    """One line per row of the kernel copied; as many products as the kernel is wide."""
    *rows, width = work.geometry.kernel
    longer = (work.positions[-1] + work.geometry.extent[-1] - 1) / work.positions[-1]
    lines = prod(rows) * work.channels * (TURN if work.last else COPY)
    added = work.outputs * (width * ADD + (TURN if work.last else COPY))
    multiplied = prod(rows) * width * work.channels * work.outputs * MULTIPLY
    return work.windows * longer * (lines + added + multiplied) + CALL * (8 + 2 * width * work.groups)


def winograd(work: Work) -> float:
    """Tiles copied and transformed, one product per point, and back."""
    d = work.geometry.dimensions
    m = [tiles.tile(d) + 1 - k if k > 1 else 1 for k in work.geometry.kernel]
    a = [n + k - 1 for n, k in zip(m, work.geometry.kernel, strict=True)]
    points, pixels = prod(a), prod(m)
    count = work.images * prod(-(-p // n) for p, n in zip(work.positions, m, strict=True))
    cut = work.channels * points * (COPY + points * MULTIPLY) + work.channels * pixels * (COPY if work.last else TURN)
    back = work.outputs * pixels * (points * MULTIPLY + (COPY if work.last else 2 * TURN))
    multiplied = points * work.channels * work.outputs * MULTIPLY
    kernel = points * work.channels * work.outputs * (prod(work.geometry.kernel) * MULTIPLY + 4 * TURN)
    return work.groups * (count * (cut + multiplied + back) + kernel + CALL * 25)
