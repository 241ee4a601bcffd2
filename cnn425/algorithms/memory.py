"""Memory that algorithms write again at every call, which the operating system has to provide only once.

A fresh megabyte costs 256 page faults, more time than a matrix product spends on it. `scratch` hands out pieces of one arena per thread,
one behind the other; `begin` takes all of them back at the start of the next computation. So nothing that is returned to a caller may lie
in scratch.

`result` is for what is returned. The results of one step of training are thrown away before the next, which wants as many of the same
sizes: they are written where a former one lay, once nobody holds that any more, neither a tensor nor an array, a view, or a storage. (The C
library returns what is freed to the system, at once if it is large, and else whenever the top of its heap happens to be free.) `forget`
lets go of all memory that is held for this thread and not in use.
"""

import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any

import torch
from torch import Tensor

from cnn425.algorithms.tracing import PLAIN, is_traced

BYTES = 16 << 20
ALIGNMENT = 64
Holders = tuple[int, int]
LARGE = 1 << 20  # bytes of a result that is worth the trouble
KEPT = 384 << 20  # bytes of results that are remembered, per thread; the weights of the lecture's local layer have 292 MB


class Arena(threading.local):
    """The arena of a thread, also seen as numbers of each kind; how many of its bytes are in use; what was written down to work in it."""

    def __init__(self) -> None:
        self.memory: Tensor | None = None
        self.numbers: dict[torch.dtype, Tensor] = {}
        self.programs: dict[Any, Any] = {}
        self.used = 0


arena = Arena()


def begin() -> None:
    """Takes back all scratch of this thread."""
    arena.used = 0


@contextmanager
def lent() -> Iterator[None]:
    """Takes back, at its end, all scratch handed out since its beginning: for the blocks of a loop."""
    used = arena.used
    try:
        yield
    finally:
        arena.used = used


def scratch(like: Tensor, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
    """Memory of this shape, with the dtype and device of `like` and any content: from the arena on the CPU, while there is room."""
    dtype = dtype or like.dtype
    size = prod(shape) * dtype.itemsize
    start, stop = arena.used, arena.used + size
    if like.device.type != "cpu" or stop > BYTES:
        return torch.empty(shape, dtype=dtype, device=like.device)
    if (numbers := arena.numbers.get(dtype)) is None:
        with torch.inference_mode(False):
            arena.memory = torch.empty(BYTES, dtype=torch.uint8, device="cpu") if arena.memory is None else arena.memory
            numbers = arena.numbers[dtype] = arena.memory.view(dtype)
    arena.used = -(-stop // ALIGNMENT) * ALIGNMENT
    return numbers[start // dtype.itemsize : stop // dtype.itemsize].view(shape)


def in_order(t: Tensor) -> Tensor:
    """The tensor with its numbers in the order of its dimensions, copied into scratch if they are not."""
    return t if t.is_contiguous() else scratch(t, *t.shape).copy_(t)


class Results(threading.local):
    """The memory of the last large results of a thread, the latest last: how many bytes, and its holders when it was new."""

    def __init__(self) -> None:
        self.kept: list[tuple[int, Tensor, Holders]] = []


results = Results()


def result(like: Tensor, shape: Sequence[int], dtype: torch.dtype | None = None, strides: Sequence[int] | None = None) -> Tensor:
    """Memory for a result of this shape, any content; contiguous, unless dense `strides` are given. If large, a former one that is free."""
    dtype = dtype or like.dtype
    size = 0 if is_traced() else prod(shape) * dtype.itemsize  # a trace is for images of any size
    kept = LARGE <= size <= KEPT and like.device.type == "cpu" and type(like) in PLAIN
    if not kept or torch._C._len_torch_dispatch_stack():
        if strides is None:
            return torch.empty(tuple(shape), dtype=dtype, device=like.device)
        return torch.empty_strided(tuple(shape), strides, dtype=dtype, device=like.device)
    memory = former(size)
    flat = torch.empty(0, dtype=dtype, device="cpu").set_(memory.untyped_storage())
    return flat.resize_(tuple(shape)) if strides is None else flat.set_(memory.untyped_storage(), 0, tuple(shape), tuple(strides))


def former(size: int) -> Tensor:
    """So many bytes that nobody holds, remembered from now on as the latest."""
    kept = results.kept
    for k in reversed(range(len(kept))):  # the latest is most likely still in a cache
        bytes_, memory, alone = kept[k]
        if bytes_ == size and not is_private(memory):
            del kept[k]
        elif bytes_ == size and holders(memory) == alone:
            kept.append(kept.pop(k))
            return memory
    with torch.inference_mode(False):
        memory = torch.empty(size, dtype=torch.uint8, device="cpu")
    kept.append((size, memory, holders(memory)))
    while sum(bytes_ for bytes_, _, _ in kept) > KEPT:
        del kept[0]
    return memory


def forget() -> None:
    """Returns the memory that is kept for this thread and not in use to the system."""
    results.kept = []
    arena.memory, arena.numbers, arena.programs, arena.used = None, {}, {}, 0


def holders(memory: Tensor) -> Holders:
    """How many tensors hold the storage of `memory`, and how many Python objects hold that storage by itself."""
    storage = memory.untyped_storage()
    return torch._C._storage_Use_Count(storage._cdata), sys.getrefcount(storage)


def is_private(memory: Tensor) -> bool:
    """Whether no other process may see the storage of `memory`, and nobody changed its size."""
    storage = memory.untyped_storage()
    return not storage.is_shared() and storage.nbytes() == memory.nbytes
