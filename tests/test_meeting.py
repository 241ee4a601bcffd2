"""Where the processes of one start meet, when dead ones have left words behind."""

import threading
import time

import pytest
import torch.distributed as dist

from cnn425.lab import meeting


def met(store, starts):
    """Let the processes of one start, by rank and word, meet in this store; the name of the start that each of them read."""
    names = {}

    def one(rank, word):
        deadline = time.monotonic() + 60
        names[rank] = meeting.ask(store, rank, word) if rank else meeting.answer(store, len(starts), word, deadline)

    threads = [threading.Thread(target=one, args=pair) for pair in starts]
    for thread in threads:
        thread.start()
        time.sleep(0.05)  # the order in which they come is that of `starts`
    for thread in threads:
        thread.join(60)
    return names


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_all_read_the_name_of_their_own_start(order):
    store = dist.HashStore()
    for start in ("a", "b", "c"):  # as torchrun does: one start after the other, with the same store
        assert met(store, [(rank, f"{start}{rank}") for rank in order]) == dict.fromkeys(range(3), f"{start}0")


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_word_of_a_dead_process_is_answered_in_vain(order):
    store = dist.HashStore()
    store.set("hello/1", "word of one that died before it was answered")
    store.set("answer/lost", "another start")
    store.set("read/another start/1", b"")
    assert met(store, [(rank, f"new{rank}") for rank in order]) == {0: "new0", 1: "new0"}


def test_a_process_that_never_comes_is_named():
    with pytest.raises(dist.DistStoreError, match="waited in vain for process 1, 2 of 3"):
        meeting.answer(dist.HashStore(), 3, "start", time.monotonic() + 0.05)


def test_one_process_waits_for_nobody():
    assert meeting.answer(dist.HashStore(), 1, "start", time.monotonic()) == "start"
