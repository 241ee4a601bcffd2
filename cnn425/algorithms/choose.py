"""One algorithm for each convolution: the three maps, and `use` to force an algorithm by name."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from math import prod
from types import ModuleType

import torch
from torch import Tensor

from cnn425.algorithms import definition, depthwise, im2col, layout, memory, shifted, winograd
from cnn425.windows import Geometry

ALGORITHMS: dict[str, ModuleType] = {
    "definition": definition,
    "im2col": im2col,
    "shifted": shifted,
    "winograd": winograd,
    "depthwise": depthwise,
}
PLAIN = (Tensor, torch.nn.Parameter)
REAL = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
forced: list[str] = []


def names() -> tuple[str, ...]:
    """The names of all algorithms, as `use` takes them."""
    return tuple(ALGORITHMS)


@contextmanager
def use(name: str) -> Iterator[None]:
    """Within this context every convolution is computed by the algorithm of this name, where it applies."""
    if name not in ALGORITHMS:
        raise ValueError(f"use: there is no algorithm {name!r}; the algorithms are {', '.join(ALGORITHMS)}")
    forced.append(name)
    try:
        yield
    finally:
        forced.pop()


def convolve(x: Tensor, w: Tensor, geometry: Geometry, groups: int, bias: Tensor | None = None) -> Tensor:
    """The output, `(N, C, *size), (O, C/G, *kernel), (O,) -> (N, O, *positions)`."""
    algorithm = chosen("output", x, w, x.shape, w.shape[0], geometry, groups)
    return algorithm.convolve(x, w, geometry, groups, bias, layout.memory_format(x, w))


def convolve_input_gradient(
    gy: Tensor, w: Tensor, geometry: Geometry, groups: int, size: Sequence[int], memory_format: torch.memory_format | None = None
) -> Tensor:
    """The gradient of the input, `(N, O, *positions), (O, C/G, *kernel) -> (N, C, *size)`; laid out as `gy` and `w`, or as given."""
    shape = (gy.shape[0], w.shape[1] * groups, *size)
    algorithm = chosen("input gradient", gy, w, shape, w.shape[0], geometry, groups)
    return algorithm.convolve_input_gradient(gy, w, geometry, groups, size, memory_format or layout.memory_format(gy, w))


def convolve_weight_gradient(
    gy: Tensor, x: Tensor, geometry: Geometry, groups: int, memory_format: torch.memory_format | None = None
) -> Tensor:
    """The gradient of the weight, `(N, O, *positions), (N, C, *size) -> (O, C/G, *kernel)`; laid out as `gy` and `x`, or as given."""
    algorithm = chosen("weight gradient", gy, x, x.shape, gy.shape[1], geometry, groups)
    return algorithm.convolve_weight_gradient(gy, x, geometry, groups, memory_format or layout.memory_format(gy, x))


def chosen(result: str, a: Tensor, b: Tensor, shape: Sequence[int], outputs: int, geometry: Geometry, groups: int) -> ModuleType:
    """The algorithm for one of the three maps, given its two operands."""
    if torch.compiler.is_compiling() or not (plain(a) and plain(b) and a.numel() and b.numel()):
        return definition
    memory.begin()
    if forced:
        return ALGORITHMS[forced[-1]] if applicable(forced[-1], a.dtype, geometry, shape[1], groups) else im2col
    return cheapest(result, tuple(shape), outputs, geometry, groups, a.dtype, a.is_cuda)


def plain(x: Tensor) -> bool:
    """Whether `x` is numbers in memory, real and with a matrix product: not a tensor being traced, a subclass, or one without data."""
    return type(x) in PLAIN and x.dtype in REAL and x.device.type in ("cpu", "cuda")


def applicable(name: str, dtype: torch.dtype, geometry: Geometry, channels: int, groups: int) -> bool:
    """Whether the algorithm of this name can compute such a convolution."""
    if name == "depthwise":
        return channels == groups
    return name not in ("shifted", "winograd") or bool(ALGORITHMS[name].applies(dtype, geometry))


@lru_cache(maxsize=4096)
def cheapest(
    result: str, shape: tuple[int, ...], outputs: int, geometry: Geometry, groups: int, dtype: torch.dtype, cuda: bool
) -> ModuleType:
    """The algorithm that the model of costs below expects to be fastest; the same for the same shapes, on every machine."""
    N, C, O = shape[0], shape[1] // groups, outputs // groups
    M = N * prod(geometry.positions(shape[2:]))
    if not cuda and dtype == torch.float32 and winograd.applies(dtype, geometry) and min(C, O) >= 48 and geometry.dimensions == 2:
        if prod(geometry.kernel) == 9 and 36 * C * O * 4 <= 10 << 20 and M >= 512 and M * 9 > 4 * C:
            return winograd
    return im2col
