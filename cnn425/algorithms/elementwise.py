"""Formulas of several steps over large tensors, a block at a time: from one step to the next the numbers stay in the cache.

Each step over a tensor larger than the cache is a trip to memory and back. In blocks a formula of four steps costs little more than one,
and its temporaries are small. A formula is a function `formula(*tensors, out=None)` whose last step writes to `out`.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cnn425.algorithms import memory
from cnn425.algorithms.tracing import PLAIN, is_traced

BYTES = 1 << 20


def elementwise(formula: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """`formula(*tensors)`, which treats every number alike, of tensors of one shape and dtype."""
    first = tensors[0]
    if is_traced() or first.numel() * first.itemsize <= 2 * BYTES:
        return formula(*tensors)
    if all(t.is_contiguous() for t in tensors):
        return by_rows(formula, *(t.view(-1) for t in tensors)).view(first.shape)
    if first.ndim == 4 and all(t.is_contiguous(memory_format=torch.channels_last) for t in tensors):
        return elementwise(formula, *(t.permute(0, 2, 3, 1) for t in tensors)).permute(0, 3, 1, 2)
    return formula(*tensors)


def by_rows(formula: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """`formula(*tensors)`, which treats every entry of the first dimension by itself, of contiguous tensors of one shape and dtype."""
    first: Any = tensors[0]
    if is_traced() or first.numel() * first.itemsize <= 2 * BYTES or not first.is_cpu or type(first) not in PLAIN:
        return formula(*tensors)
    result = memory.result(first, first.shape)
    rows = max(1, BYTES * len(first) // (first.numel() * first.itemsize))
    for block, *blocks in zip(result.split(rows), *(t.split(rows) for t in tensors), strict=True):
        formula(*blocks, out=block)
    return result
