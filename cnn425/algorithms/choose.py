"""One algorithm for each convolution: the three maps, by the algorithm that `use` forces or the cheapest one."""

from collections.abc import Sequence
from functools import lru_cache
from types import ModuleType

import torch
from torch import Tensor

from cnn425.algorithms import (
    banded,
    costs,
    definition,
    depthwise,
    fft,
    im2col,
    layout,
    memory,
    merged,
    registry,
    shifted,
    strips,
    tiny,
    winograd,
)
from cnn425.algorithms.tracing import PLAIN, is_traced
from cnn425.windows import Geometry

ALGORITHMS: dict[str, ModuleType] = {
    "definition": definition,
    "im2col": im2col,
    "shifted": shifted,
    "winograd": winograd,
    "fft": fft,
    "merged": merged,
    "depthwise": depthwise,
    "banded": banded,
    "strips": strips,
}
REAL = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
registry.register("convolution", tuple(ALGORITHMS))


def convolve(x: Tensor, w: Tensor, geometry: Geometry, groups: int, bias: Tensor | None = None) -> Tensor:
    """The output, `(N, C, *size), (O, C/G, *kernel), (O,) -> (N, O, *positions)`."""
    if small(x, w) and (plan := tiny.for_output(x, w, geometry, groups)):
        return tiny.convolve(x, w, plan, bias)
    order = layout.memory_format(x, w, geometry, groups)
    algorithm = chosen("output", x, w, x.shape, w.shape[0], geometry, groups, order)
    return layout.canonical(algorithm.convolve(x, w, geometry, groups, bias, order), order)


def convolve_input_gradient(
    gy: Tensor, w: Tensor, geometry: Geometry, groups: int, size: Sequence[int], memory_format: torch.memory_format | None = None
) -> Tensor:
    """The gradient of the input, `(N, O, *positions), (O, C/G, *kernel) -> (N, C, *size)`; laid out as `gy` and `w`, or as given."""
    if small(gy, w) and (plan := tiny.for_input_gradient(gy, w, geometry, groups, size, memory_format)):
        return tiny.convolve_input_gradient(gy, w, plan)
    shape = (gy.shape[0], w.shape[1] * groups, *size)
    order = memory_format or layout.memory_format(gy, w)
    algorithm = chosen("input gradient", gy, w, shape, w.shape[0], geometry, groups, order)
    return layout.canonical(algorithm.convolve_input_gradient(gy, w, geometry, groups, size, order), order)


def convolve_weight_gradient(
    gy: Tensor, x: Tensor, geometry: Geometry, groups: int, memory_format: torch.memory_format | None = None
) -> Tensor:
    """The gradient of the weight, `(N, O, *positions), (N, C, *size) -> (O, C/G, *kernel)`; laid out as `gy` and `x`, or as given."""
    if small(gy, x) and (plan := tiny.for_weight_gradient(gy, x, geometry, groups, memory_format)):
        return tiny.convolve_weight_gradient(gy, x, plan)
    order = memory_format or layout.memory_format(gy, x)
    algorithm = chosen("weight gradient", gy, x, x.shape, gy.shape[1], geometry, groups, order)
    return layout.canonical(algorithm.convolve_weight_gradient(gy, x, geometry, groups, order), order)


def chosen(
    result: str, a: Tensor, b: Tensor, shape: Sequence[int], outputs: int, geometry: Geometry, groups: int, order: torch.memory_format
) -> ModuleType:
    """The algorithm for one of the three maps, given its two operands."""
    if is_traced() or not (plain(a) and plain(b) and a.numel() and b.numel()):
        return definition
    memory.begin()
    if registry.forced and (name := registry.forced_for("convolution")):
        return ALGORITHMS[name] if applicable(name, a.dtype, geometry, shape[1], groups) else im2col
    return cheapest(
        result, tuple(shape), outputs, geometry, groups, a.dtype, a.is_cuda, order is not torch.contiguous_format, torch.get_num_threads()
    )


def small(a: Tensor, b: Tensor) -> bool:
    """Whether operands are worth a look by `tiny`: few plain numbers."""
    if is_traced() or registry.forced or type(a) not in PLAIN or type(b) not in PLAIN:
        return False
    return a.numel() <= tiny.CELLS and b.numel() <= tiny.CELLS


def plain(x: Tensor) -> bool:
    """Whether `x` is numbers in memory, real and with a matrix product: not a tensor being traced, a subclass, or one without data."""
    return type(x) in PLAIN and x.dtype in REAL and x.device.type in ("cpu", "cuda")


def applicable(name: str, dtype: torch.dtype, geometry: Geometry, channels: int, groups: int) -> bool:
    """Whether the algorithm of this name can compute such a convolution."""
    if name in ("depthwise", "banded", "strips"):
        return channels == groups and (name == "depthwise" or geometry.dimensions == 2)
    if name == "merged":
        return groups > 1 and shifted.applies(dtype, geometry)
    return name not in ("shifted", "winograd", "fft") or bool(ALGORITHMS[name].applies(dtype, geometry))


@lru_cache(maxsize=4096)
def cheapest(
    result: str,
    shape: tuple[int, ...],
    outputs: int,
    geometry: Geometry,
    groups: int,
    dtype: torch.dtype,
    cuda: bool,
    last: bool,
    threads: int = 1,
) -> ModuleType:
    """The algorithm that the model of costs expects to be fastest; the same for the same shapes and threads, on every machine."""
    if shape[1] == groups > 1 and not cuda:
        return cheapest_depthwise(costs.Work.of(result, shape, outputs, geometry, groups, last, threads), dtype)
    if cuda or dtype not in (torch.float32, torch.float64):
        return im2col
    if last and merged.together(shape[1] // groups, outputs // groups, groups) > 1:
        return merged
    work = costs.Work.of(result, shape, outputs, geometry, groups, last, threads)
    estimates = {im2col: costs.im2col(work)}
    if shifted.applies(dtype, geometry):
        estimates[shifted] = costs.shifted(work)
    widest = max(work.channels, work.outputs)
    if dtype == torch.float32 and winograd.applies(dtype, geometry) and winograd.fits(widest, work.positions, geometry):
        estimates[winograd] = costs.winograd(work)
    if fft.applies(dtype, geometry):
        estimates[fft] = costs.fft(work)
    return min(estimates, key=lambda algorithm: estimates[algorithm])


def cheapest_depthwise(work: costs.Work, dtype: torch.dtype) -> ModuleType:
    """The same, where every group has one channel."""
    if work.geometry.dimensions != 2:
        return depthwise
    estimates = {depthwise: costs.depthwise(work), banded: costs.banded(work)}
    if not work.last:
        estimates[strips] = costs.strips(work)
        if shifted.applies(dtype, work.geometry):
            estimates[shifted] = costs.alone(work)
    return min(estimates, key=lambda algorithm: estimates[algorithm])
