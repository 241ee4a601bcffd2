"""Memory that algorithms write again at every call, which the operating system has to provide only once.

A fresh megabyte costs 256 page faults, more time than a matrix product spends on it. `scratch` hands out pieces of one arena per thread,
one behind the other; `begin` takes all of them back at the start of the next computation. So nothing that is returned to a caller may lie
in scratch.

`again` is for large results that come at every step of training and are thrown away before the next, as gradients of weights: the memory
of a former one that nobody holds any more, neither a tensor nor an array, a view, or a storage. (The C library keeps what is freed in
smaller pieces itself, and returns larger ones to the system at once.)
"""

import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod

import torch
from torch import Tensor

BYTES = 16 << 20
ALIGNMENT = 64
Holders = tuple[int, int]
LARGE = 32 << 20  # bytes of a result from which the C library keeps nothing
KEPT = 4  # results that are remembered, per thread


class Arena(threading.local):
    """The arena of a thread, also seen as numbers of each kind, and how many of its bytes are in use."""

    def __init__(self) -> None:
        self.memory: Tensor | None = None
        self.numbers: dict[torch.dtype, Tensor] = {}
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
    """The memory of the last large results of a thread, each with its holders when it was new."""

    def __init__(self) -> None:
        self.kept: list[tuple[Tensor, Holders]] = []


results = Results()


def again(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Memory for a result of this shape, any content: that of a former one of the same size if nobody holds it, or else new."""
    size = prod(shape) * dtype.itemsize
    if device.type != "cpu" or size < LARGE:
        return torch.empty(tuple(shape), dtype=dtype, device=device)
    free = (k for k, (memory, alone) in enumerate(results.kept) if memory.nbytes == size and is_free(memory, alone))
    if (k := next(free, None)) is not None:
        memory, alone = results.kept.pop(k)
    else:
        with torch.inference_mode(False):
            memory = torch.empty(size, dtype=torch.uint8, device=device)
        alone = holders(memory)
    results.kept = [*results.kept, (memory, alone)][-KEPT:]
    return torch.empty(0, dtype=dtype, device=device).set_(memory.untyped_storage()).resize_(tuple(shape))


def holders(memory: Tensor) -> Holders:
    """How many tensors hold the storage of `memory`, and how many Python objects hold that storage by itself."""
    storage = memory.untyped_storage()
    return torch._C._storage_Use_Count(storage._cdata), sys.getrefcount(storage)


def is_free(memory: Tensor, alone: Holders) -> bool:
    """Whether nobody else holds it, no other process may see it, and nobody changed its size."""
    return holders(memory) == alone and not memory.is_shared() and memory.untyped_storage().nbytes() == memory.nbytes
