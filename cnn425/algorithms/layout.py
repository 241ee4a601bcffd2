"""Memory layout: which order of dimensions torch would give the result of a convolution, and results in that order.

Torch's rule: channels last (`NHWC` in memory) if the input or the weight is, contiguous otherwise; both gradients are stored as the output
is, whatever the layout of the output gradient.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from cnn425.compat import onednn_computes, tracing_state
from cnn425.windows import Geometry

CPU = torch.device("cpu")
HALF = (torch.bfloat16, torch.float16)
FLOATS = (torch.float32, torch.float64)  # numbers that loops compute with
DOUBLE = (torch.float64, torch.complex128)
FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}


def is_channels_last(x: Tensor) -> bool:
    """Whether torch regards the strides of `x` as channels last, even where they fit both layouts."""
    if x.ndim not in FORMATS:
        return False
    if torch.compiler.is_compiling():  # the compiler cannot infer strides if two sizes are variable and equal
        return x.is_contiguous(memory_format=FORMATS[x.ndim]) and not x.is_contiguous()
    size, stride = x.shape, x.stride()
    if stride[1] == 0:  # channels that are all the same, expanded from one
        return False
    least = 0
    for d in (1, *range(x.ndim - 1, 1, -1), 0):
        if size[d] == 0 or stride[d] < least or (d == 0 and least == stride[1]):
            return False
        least = stride[d] * max(size[d], 1)
    return True


def like(x: Tensor) -> torch.memory_format:
    """The layout of `x`: channels last or contiguous."""
    return FORMATS[x.ndim] if is_channels_last(x) else torch.contiguous_format


def memory_format(x: Tensor, w: Tensor, geometry: Geometry | None = None, groups: int = 1) -> torch.memory_format:
    """The layout of the convolution of `x` and `w`; without its geometry, of anything else that is made from two such tensors."""
    if x.ndim == 5 and (x.dtype in DOUBLE or (geometry is not None and not volumes_keep_their_layout(x, w, geometry, groups))):
        return torch.contiguous_format
    return FORMATS[x.ndim] if is_channels_last(x) or is_channels_last(w) else torch.contiguous_format


def volumes_keep_their_layout(x: Tensor, w: Tensor, geometry: Geometry, groups: int) -> bool:
    """Whether torch computes this volume with oneDNN, the one of its two kernels that supports channels last: its conditions, on a CPU.

    The other kernel gets transposed convolutions whose output_padding, subtracted from the high padding, reaches the stride.
    """
    if x.device.type != "cpu":
        return True
    if any(low - high >= stride for (low, high), stride in zip(geometry.padding, geometry.stride, strict=True)):
        return False
    if x.dtype in HALF:
        return onednn_computes[x.dtype]
    if x.dtype not in (torch.float32, torch.complex64, torch.complex32):
        return False
    N, C, D, H, _ = x.shape
    U, V = w.shape[-2:]
    large = groups > 1 or (U > 3 and V > 3) or N > 1 or N * C * D * H > 20480
    alone = max(geometry.stride) == max(geometry.dilation) == U == V == 1 and N < 16 and torch.get_num_threads() == 1
    return large and not alone


class Memory(NamedTuple):
    """How an image is stored."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def in_five(self) -> tuple[list[int], list[int]]:
        """Sizes and strides along n, d, h, w, c."""
        (N, C, *size), (n, c, *strides), more = self.shape, self.stride, 5 - len(self.shape)
        return [N, *[1] * more, *size, C], [n, *[0] * more, *strides, c]

    def numbers(self) -> int:
        """How many numbers the memory spans."""
        return 1 + sum((n - 1) * s for n, s in zip(self.shape, self.stride, strict=True))


def stored_as(x: Tensor) -> Memory:
    """How `x` is stored."""
    return Memory(tuple(x.shape), x.stride())


def strides_of(shape: Sequence[int], order: torch.memory_format) -> tuple[int, ...]:
    """The strides of dense memory in this order, whatever the sizes are."""
    step, strides, dims = 1, [0] * len(shape), range(len(shape) - 1, -1, -1)
    for d in dims if order is torch.contiguous_format else (1, *dims[:-2], 0):
        strides[d], step = step, step * shape[d]
    return tuple(strides)


def stored(x: Tensor, order: torch.memory_format) -> Tensor:
    """`x` in the memory order of a result, with the strides that torch gives along dimensions of size 1 too."""
    if 1 not in x.shape or tracing_state() is not None:  # ONNX has no strides
        return x.contiguous(memory_format=order)
    strides = strides_of(x.shape, order)
    return x if x.stride() == strides else x.new_empty_strided(x.shape, strides).copy_(x)


def empty(like: Tensor, shape: Sequence[int], order: torch.memory_format) -> Tensor:
    """Memory for a result of `shape`, with the dtype and device of `like`."""
    return like.new_empty(shape) if order is torch.contiguous_format else like.new_empty_strided(shape, strides_of(shape, order))


@lru_cache(maxsize=1024)
def grid(geometry: Geometry, size: tuple[int, ...]) -> Tensor:
    """The geometry for loops, one row each for cells, strides, low paddings, dilations, positions and pixels, in three columns."""
    low, positions = tuple(pads[0] for pads in geometry.padding), geometry.positions(size)
    rows = ((geometry.kernel, 1), (geometry.stride, 1), (low, 0), (geometry.dilation, 1), (positions, 1), (size, 1))
    return torch.tensor([(*(alone,) * (3 - len(size)), *row) for row, alone in rows], device=CPU)


@lru_cache(maxsize=256)
def source_of(shape: tuple[int, ...]) -> Tensor:
    """The sizes of contiguous images along n, d, h, w, c, and the strides: `(2, 5)`."""
    return torch.tensor(Memory(shape, strides_of(shape, torch.contiguous_format)).in_five(), device=CPU)
