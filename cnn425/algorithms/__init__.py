"""Ways to compute convolutions, local layers and pools: their outputs, the gradients of their inputs and of their weights.

`definition` is the formula. `convolution`, `local` and `low_rank` choose how to compute it, each by a table; `product` computes
convolutions by default. `pool` and `elementwise` use loops or plain PyTorch. `im2col`, `winograd` and `fft` run on request only. `layout`
gives results the memory format of torch's. `with use(name):` forces an algorithm.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from cnn425.kernels.threads import forced

KINDS = {
    "convolution": ("definition", "im2col", "winograd", "fft"),
    "local": ("definition", "matmul", "sweep"),
    "pool": ("definition",),
}


def names(kind: str | None = None) -> tuple[str, ...]:
    """The names of the algorithms of a kind of layer (`convolution`, `local`, `pool`), or of all of them, as `use` takes them."""
    return tuple(dict.fromkeys(name for k, found in KINDS.items() if kind in (None, k) for name in found))


@contextmanager
def use(name: str) -> Iterator[None]:
    """Within this context layers are computed by the algorithm of this name, where they have one and it applies.

    `use("definition")` switches every loop off. The choice holds for the thread, or the task, that makes it. Backward passes run in
    that thread, too; for other devices torch would give them threads of their own, which do not see the choice.
    """
    if name not in names():
        kinds = "; ".join(f"{kind}: {', '.join(found)}" for kind, found in KINDS.items())
        raise ValueError(f"use: there is no algorithm {name!r}; the algorithms are, for each kind of layer, {kinds}")
    token = forced.set(name)
    try:
        with torch.autograd.set_multithreading_enabled(False):
            yield
    finally:
        forced.reset(token)
