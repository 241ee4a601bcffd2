"""Where the processes of one start of a run meet: a part of torchrun's store that no earlier start has written into.

When torchrun starts its workers again (`--max-restarts`), it keeps the store through which they find each other, and torch asks it for
the same names as before. So a new worker may read the address of a dead one, and the restart fails or hangs (pytorch/pytorch issue 135712).
Torch's own count of restarts cannot tell the starts apart, because each machine counts for itself. Here the processes agree:

    process r     hello/r = a word nobody else knows          waits for answer/<its word>, which names this start
    process 0     answers every word it finds under hello/r, until r has said that it has read the answer

A word left by a dead process is answered too, and nobody listens. All workers of a start are dead before torchrun begins the next one.
"""

import time
import uuid
from datetime import timedelta

from torch.distributed import DistStoreError, PrefixStore, Store  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

POLL_SECONDS = 0.01


def meet(patience: timedelta) -> tuple[Store, int, int]:
    """The store of this start, this process's rank, and the number of processes."""
    store, rank, world = next(rendezvous("env://", timeout=patience))
    word = uuid.uuid4().hex
    start = ask(store, rank, word) if rank else answer(store, world, word, time.monotonic() + patience.total_seconds())
    return PrefixStore(start, store), rank, world


def ask(store: Store, rank: int, word: str) -> str:
    """The name of this start, from process 0; waits for it as long as the store's patience lasts."""
    store.set(f"hello/{rank}", word)
    start = store.get(f"answer/{word}").decode()
    store.set(f"read/{start}/{rank}", "")
    return start


def answer(store: Store, world: int, start: str, deadline: float) -> str:
    """The name of this start, once every other process has read it."""
    waiting = set(range(1, world))
    while waiting:
        for rank in list(waiting):
            if store.check([f"hello/{rank}"]):
                store.set(f"answer/{store.get(f'hello/{rank}').decode()}", start)
            if store.check([f"read/{start}/{rank}"]):
                waiting.remove(rank)
        if time.monotonic() > deadline:
            raise DistStoreError(f"waited in vain for process {', '.join(map(str, sorted(waiting)))} of {world}")
        time.sleep(POLL_SECONDS)
    return start
