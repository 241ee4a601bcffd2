"""Memory that algorithms write again at every call: scratch from one arena per thread, which the operating system has to provide only once.

A fresh megabyte costs 256 page faults, more time than a matrix product spends on it. `scratch` hands out pieces of the arena, one behind
the other; `begin` takes all of them back at the start of the next computation. So nothing that is returned to a caller may lie in
scratch.
"""

import threading
from math import prod

import torch
from torch import Tensor

BYTES = 16 << 20
ALIGNMENT = 64


class Arena(threading.local):
    """The arena of a thread, and how many of its bytes are in use."""

    def __init__(self) -> None:
        self.memory: Tensor | None = None
        self.used = 0


arena = Arena()


def begin() -> None:
    """Takes back all scratch of this thread."""
    arena.used = 0


def scratch(like: Tensor, *shape: int) -> Tensor:
    """Memory of this shape, with the dtype and device of `like` and any content: from the arena on the CPU, while there is room."""
    size = prod(shape) * like.element_size()
    start, stop = arena.used, arena.used + size
    if like.device.type != "cpu" or stop > BYTES:
        return torch.empty(shape, dtype=like.dtype, device=like.device)
    if arena.memory is None:
        with torch.inference_mode(False):
            arena.memory = torch.empty(BYTES, dtype=torch.uint8)
    arena.used = -(-stop // ALIGNMENT) * ALIGNMENT
    return arena.memory[start:stop].view(like.dtype).view(shape)
