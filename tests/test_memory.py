"""Scratch comes from one arena, in pieces that do not overlap, and from elsewhere once the arena is full."""

import threading

import torch

from cnn425.algorithms import memory


def test_pieces_do_not_overlap():
    memory.begin()
    first, second = (memory.scratch(torch.empty(0), 5).fill_(n) for n in (1, 2))
    assert first.tolist() == [1.0] * 5
    assert second.tolist() == [2.0] * 5


def test_begin_takes_the_memory_back():
    memory.begin()
    first = memory.scratch(torch.empty(0), 5).data_ptr()
    memory.begin()
    assert memory.scratch(torch.empty(0, dtype=torch.float64), 3).data_ptr() == first


def test_what_does_not_fit_is_allocated():
    memory.begin()
    assert memory.scratch(torch.empty(0), memory.BYTES).shape == (memory.BYTES,)
    assert memory.arena.used == 0


def test_threads_do_not_share_it():
    memory.begin()
    mine = memory.scratch(torch.empty(0), 8).zero_()
    thread = threading.Thread(target=lambda: memory.scratch(torch.empty(0), 8).fill_(7.0))
    thread.start()
    thread.join()
    assert not mine.any()
