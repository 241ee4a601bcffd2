"""When loops may run at all, and how they are shared among torch's threads."""

import contextlib
import threading

import numpy as np
import pytest
import torch
from torch.func import grad, vmap
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from cnn425 import algorithms
from cnn425.kernels.threads import loop, loops_run, memory, step
from cnn425.nn import functional as F

MUCH = 1 << 20  # steps: worth waking a thread


@step
def length(lo, hi):
    """The number of units of a thread."""
    return hi - lo


@loop
def share(lo, hi, y):
    """y[unit] = the number of units that its thread computes."""
    for unit in range(lo, hi):
        y[unit] = length(lo, hi)


@loop
def greedy(lo, hi, numbers, y):
    """y[unit] = how many numbers fit into the memory of a thread."""
    for unit in range(lo, hi):
        y[unit] = np.empty(numbers).size


def shares(units, steps=MUCH):
    y = torch.zeros(units, dtype=torch.int64)
    share(units, steps, memory(y, units))
    return y.tolist()


@contextlib.contextmanager
def threads(number):
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
        assert torch.get_num_threads() == number, "a loop changed the number of threads"
    finally:
        torch.set_num_threads(before)


# ---- sharing


@pytest.mark.parametrize(("number", "expected"), [(1, [12] * 12), (2, [6] * 12), (3, [4] * 12)])
def test_loops_obey_torchs_number_of_threads(number, expected):
    with threads(number):
        assert shares(12) == expected


def test_every_unit_is_computed_once_where_threads_do_not_divide_them():
    with threads(2):
        assert sorted(shares(5)) == [2, 2, 3, 3, 3]
        assert shares(1) == [1]
        assert shares(0) == []


def test_little_work_wakes_no_thread():
    with threads(2):
        assert shares(12, steps=100) == [12] * 12


def test_a_thread_of_python_has_its_share_too():
    """Torch's number of threads is one for the whole process, or, by some versions, one for each thread: it is obeyed as torch tells it."""
    found = []

    def run():
        torch.set_num_threads(2)
        found.extend(shares(12))

    before = torch.get_num_threads()
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    torch.set_num_threads(before)
    assert found == [6] * 12


def test_loops_run_within_torchs_deterministic_mode():
    torch.use_deterministic_algorithms(True)
    try:
        with threads(2):
            assert shares(12) == [6] * 12
    finally:
        torch.use_deterministic_algorithms(False)


def test_the_compiled_loop_is_the_loop_as_python():
    y, z = torch.zeros(3, dtype=torch.int64), torch.zeros(3, dtype=torch.int64)
    share(3, 1, memory(y, 3))
    share.python(3, 1, (memory(z, 3),))
    assert y.tolist() == z.tolist() == [3, 3, 3]


def test_a_loop_keeps_its_name_and_its_formula():
    assert share.__name__ == "share"
    assert share.__doc__ == "y[unit] = the number of units that its thread computes."
    assert length(2, 5) == 3


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool]
)
def test_memory_of_every_type_that_loops_know(dtype):
    y = torch.zeros(2, 3, dtype=dtype)
    share.python(2, 1, (memory(y, 6),))
    assert y.flatten().tolist() == [2, 2, 0, 0, 0, 0] if dtype != torch.bool else y.any()


# ---- when loops may run


@pytest.mark.parametrize("number", [1, 2])
def test_a_thread_that_finds_no_memory_is_an_error(number):
    """Its part of the result would stay unwritten."""
    y = torch.zeros(4, dtype=torch.int64)
    with threads(number):
        greedy(4, MUCH, 10, memory(y, 4))
        assert y.tolist() == [10] * 4
        with pytest.raises(MemoryError):
            greedy(4, MUCH, 1 << 50, memory(y, 4))


class Subclass(torch.Tensor):
    """A tensor that may mean something else by its operations."""


class Mode(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


X = torch.ones(2, 3)


@pytest.mark.parametrize(
    "tensors",
    [
        (X,),
        (X, X.double()),
        (torch.nn.Parameter(X.clone()),),
        (X.clone().requires_grad_(),),
        (X.mT[:, ::2],),
        (X[:0],),
        (X.long(), X.bool(), X.to(torch.uint8)),
        (X.expand(4, 2, 3),),
    ],
    ids=["plain", "two types", "parameter", "leaf", "view", "empty", "whole numbers", "expanded"],
)
def test_loops_run_on_numbers_in_memory(tensors):
    assert loops_run(*tensors)


def given_back(x):
    """The tensor, whose storage has no memory any more, as FSDP leaves parameters."""
    x.untyped_storage().resize_(0)
    return x


NOT_IN_MEMORY = {
    "subclass": lambda: X.as_subclass(Subclass),
    "another device": lambda: X.to("meta"),
    "half precision": lambda: X.half(),
    "complex": lambda: X.cfloat(),
    "sparse": lambda: X.to_sparse(),
    "negative bit": lambda: torch.complex(X, X).conj().imag,
    "a part of a storage that was given back": lambda: given_back(torch.ones(100)[16:22].view(2, 3)),
    "zeros that nobody wrote": lambda: torch._efficientzerotensor((2, 3)),
}


@pytest.mark.parametrize("kind", NOT_IN_MEMORY)
def test_loops_do_not_read_what_is_not_there(kind):
    assert not loops_run(NOT_IN_MEMORY[kind]())
    assert not loops_run(X, NOT_IN_MEMORY[kind]())


@pytest.mark.parametrize("mode", [Mode, lambda: FlopCounterMode(display=False), lambda: algorithms.use("definition")])
def test_loops_stand_back_where_operations_are_recorded(mode):
    with mode():
        assert not loops_run(X)
    assert loops_run(X)


def test_the_definition_runs_in_the_task_that_asks_for_it():
    found = []
    with algorithms.use("definition"):
        thread = threading.Thread(target=lambda: found.append(loops_run(X)))
        thread.start()
        thread.join()
    assert found == [True]


@pytest.mark.parametrize("transform", [vmap, grad, lambda f: lambda x: torch.func.jvp(f, (x,), (x,))], ids=["vmap", "grad", "jvp"])
def test_loops_do_not_read_the_tensors_of_a_transform(transform):
    found = []

    def function(x):
        found.append(loops_run(x))
        return x.sum()

    transform(function)(X)
    assert found == [False]


def test_a_tensor_that_outlives_its_transform_is_none_of_ours():
    kept = []
    vmap(lambda x: kept.append(x) or x)(X)
    assert not loops_run(kept[0])


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace.* is deprecated")
def test_loops_stand_back_in_every_trace():
    def function(x):
        return x + 1 if loops_run(x) else x - 1

    class Module(torch.nn.Module):
        def forward(self, x):
            return function(x)

    torch._dynamo.reset()
    assert torch.equal(torch.compile(function, backend="eager", fullgraph=True)(X), X - 1)
    assert torch.equal(torch.jit.trace(function, X, check_trace=False)(X), X - 1)
    for strict in (False, True):
        assert torch.equal(torch.export.export(Module(), (X,), strict=strict).module()(X), X - 1)
    assert torch.equal(function(X), X + 1)


def test_tensors_with_a_negative_bit_and_unwritten_zeros_are_computed_right():
    x, w = torch.randn(2, 3, 6, 6), torch.randn(4, 3, 3, 3)
    negative = torch.complex(x, x).conj().imag
    assert negative.is_neg()
    torch.testing.assert_close(F.conv2d(negative, w), F.conv2d(-x, w))
    assert torch.equal(F.max_pool2d(negative, 2), F.max_pool2d(-x, 2))
    zeros = torch._efficientzerotensor((2, 3, 6, 6))
    assert not F.conv2d(zeros, w).any()
    assert not F.avg_pool2d(zeros, 2).any()
