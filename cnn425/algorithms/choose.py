"""One algorithm for each convolution: the three maps, and `use` to force an algorithm by name."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from cnn425.algorithms import definition, layout
from cnn425.windows import Geometry

ALGORITHMS = {"definition": definition}
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
    return definition.convolve(x, w, geometry, groups, bias).clone(memory_format=layout.memory_format(x, w))


def convolve_input_gradient(
    gy: Tensor, w: Tensor, geometry: Geometry, groups: int, size: Sequence[int], memory_format: torch.memory_format | None = None
) -> Tensor:
    """The gradient of the input, `(N, O, *positions), (O, C/G, *kernel) -> (N, C, *size)`; laid out as `gy` and `w`, or as given."""
    memory_format = memory_format or layout.memory_format(gy, w)
    return definition.convolve_input_gradient(gy, w, geometry, groups, size).clone(memory_format=memory_format)


def convolve_weight_gradient(
    gy: Tensor, x: Tensor, geometry: Geometry, groups: int, memory_format: torch.memory_format | None = None
) -> Tensor:
    """The gradient of the weight, `(N, O, *positions), (N, C, *size) -> (O, C/G, *kernel)`; laid out as `gy` and `x`, or as given."""
    memory_format = memory_format or layout.memory_format(gy, x)
    return definition.convolve_weight_gradient(gy, x, geometry, groups).clone(memory_format=memory_format)
