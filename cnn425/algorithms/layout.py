"""Memory layout: which order of dimensions torch would give the result of a convolution, and results in that order.

Torch's rule: channels last (`NHWC` in memory) if the input or the weight lies so, contiguous otherwise;
both gradients follow the same rule, whatever the layout of the output gradient. One spatial dimension is always contiguous.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}


def is_channels_last(x: Tensor) -> bool:
    """Whether torch takes the strides of `x` as channels last, also where they fit both layouts."""
    if x.ndim not in FORMATS:
        return False
    size, stride = x.shape, x.stride()
    least = 0
    for d in (1, *range(x.ndim - 1, 1, -1), 0):
        if size[d] == 0 or stride[d] < least or (d == 0 and least == stride[1]):
            return False
        least = stride[d] * max(size[d], 1)
    return True


def memory_format(x: Tensor, w: Tensor) -> torch.memory_format:
    """The layout of a result made from `x` and `w`."""
    if x.ndim == 5 and x.dtype == torch.float64:
        return torch.contiguous_format  # torch's three-dimensional kernel for doubles knows no other
    return FORMATS[x.ndim] if is_channels_last(x) or is_channels_last(w) else torch.contiguous_format


def empty(like: Tensor, shape: Sequence[int], layout: torch.memory_format) -> Tensor:
    """Memory for a result of `shape`, with the dtype and device of `like`."""
    return torch.empty(tuple(shape), dtype=like.dtype, device=like.device, memory_format=layout)
