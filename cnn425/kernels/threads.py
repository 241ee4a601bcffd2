"""How a loop is called and shared among threads, and when loops may run at all.

A loop is a plain Python function `f(lo, hi, *arguments)` that computes the units lo to hi - 1 of its result, for example the planes of an
image. numba compiles it at the first call, and caches the machine code in a folder if one is writable. Every unit is computed by one
thread in one order, so the bits of a result do not depend on the number of threads.

Threads are torch's own: the compiled code enters the OpenMP library that torch is linked with, by `GOMP_parallel`, which GNU's and LLVM's
libraries both export. So there is no second set of threads in the process, and `torch.set_num_threads` is obeyed. Where that library
cannot be entered (another system), and in a process made by a fork, whose parent's threads are gone, one thread computes everything. A
child of a process that shared loops among threads starts with `torch.set_num_threads(1)`, as the workers of a DataLoader do.
"""

import ctypes
import os
import warnings
from collections.abc import Callable
from contextvars import ContextVar
from functools import cache
from typing import Any

import torch
from torch import Tensor

from cnn425.compat import dispatch_modes, is_transformed, tracing_state
from cnn425.kernels.machine_code import Step, compiled, linked, openmp

PLAIN = (Tensor, torch.nn.Parameter)  # types of tensors whose numbers may be read: a subclass may keep none
DOUBLES = 1 << 12  # fewer float64 numbers than this are left to the definition, which is as fast
SHARED = 1 << 15  # steps of an innermost loop; less is not worth waking a thread
forced: ContextVar[str | None] = ContextVar("forced", default=None)  # the algorithm that `cnn425.algorithms.use` asks for
forked = False  # whether this process was made by a fork
shared = False  # whether loops ran on several threads


def _after_fork() -> None:
    """Use one thread in the child, also in torch's own operations: OpenMP would wait for ever for the threads of the parent."""
    global forked
    forked = True
    if shared:
        torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def is_traced() -> bool:
    """Whether `torch.compile`, `torch.export` or `torch.jit.trace` is at work: then nothing may depend on the numbers in a tensor."""
    return torch.compiler.is_compiling() or tracing_state() is not None


def loops_run(*tensors: Tensor | None, few: bool = False) -> bool:
    """Whether loops may read these tensors: numbers in CPU memory, of a dtype that loops support, while nothing records operations.

    Without `few`, a few float64 numbers, as in tests by finite differences, are not worth compiling loops for.
    """
    if is_traced() or dispatch_modes() or forced.get() == "definition":
        return False
    given = [t for t in tensors if t is not None]
    if not few and given[0].dtype == torch.float64 and sum(t.numel() for t in given) < DOUBLES:
        return False
    known = _zeros()
    for t in given:
        if type(t) not in PLAIN or not t.is_cpu or t.dtype not in known or t.layout is not torch.strided or t.is_neg():
            return False
        # A tensor of zeros, or one whose storage was given back, has no memory: its address is its offset in nothing.
        if is_transformed(t) or (t.data_ptr() == t.storage_offset() * t.itemsize and t.numel()):
            return False
    return has_numba()


@cache
def has_numba() -> bool:
    """Whether numba can be imported and compiles a loop; if not, one warning says what is missing."""
    try:
        import numba  # only at the first loop: `import cnn425.nn` needs no compiler
    except Exception as error:  # incompatible libraries raise other errors than ImportError
        trouble = f"numba cannot be imported ({error}); `pip install numba`"
    else:
        try:
            trial(0, 0, (_zeros()[torch.float32], 0, 0))
            return True
        except (MemoryError, RecursionError):  # no fault of numba's
            raise
        except Exception as error:  # its next version may differ inside
            reason = f"{type(error).__name__}: {error}".strip().partition("\n")[0]
            trouble = f"numba {numba.__version__} does not compile its loops ({reason}); `pip install 'numba~=0.68.0'`"
    warnings.warn(f"cnn425 computes by definition, which is slow: {trouble}", stacklevel=2)
    return False


@cache
def _zeros() -> dict[torch.dtype, Any]:
    """A zero of each dtype that loops support: it tells the compiler the type."""
    import numpy as np

    names = ("float32", "float64", "uint8", "int8", "int16", "int32", "int64", "bool")
    return {getattr(torch, name): getattr(np, name if name != "bool" else "bool_")(0) for name in names}


def memory(t: Tensor, *shape: int) -> tuple[Any, ...]:
    """The memory of a dense tensor as an array of `shape`, as an argument for a loop: (zero of its type, address, sizes)."""
    return (_zeros()[t.dtype], t.data_ptr(), *shape)


class Loop:
    """A loop `f(lo, hi, *arguments)`: call it with the number of units, the steps of the innermost loop in all, and the arguments.

    Arguments are numbers, and arrays given as `memory(tensor, *shape)`.
    """

    def __init__(self, function: Callable[..., None], fast: bool) -> None:
        self.function, self.fast = function, fast
        self.compiled: Callable[..., None] | None = None
        self.__doc__, self.__name__ = function.__doc__, function.__name__

    def __call__(self, units: int, steps: int, *arguments: Any) -> None:
        """Compute all units."""
        global shared
        run, threads = self.compiled or self.compile(), 1
        if steps >= SHARED and not forked and None not in openmp().values():
            threads = torch.get_num_threads()
            shared = shared or threads > 1
        run(units, threads, arguments)

    def compile(self) -> Callable[..., None]:
        """The machine code of the loop, or with NUMBA_DISABLE_JIT=1 its Python."""
        from numba import config

        self.compiled = self.python if getattr(config, "DISABLE_JIT", 0) else compiled(self.function, self.fast)
        return self.compiled

    def python(self, units: int, threads: int, arguments: tuple[Any, ...]) -> None:
        """The loop as ordinary Python."""

        def made(step: Step) -> Any:
            return linked(step.function, made)

        linked(self.function, made)(0, units, *map(_as_array, arguments))


def loop(function: Callable[..., None]) -> Loop:
    """A loop whose numbers keep their rounding, infinities and NaNs; products are fused with additions."""
    return Loop(function, fast=False)


def step(function: Callable[..., Any]) -> Step:
    """A part of a loop: arguments that are known where it is called, like a stride of 1, become constants."""
    return Step(function)


def machine_step(emit: Callable[[Any, Any], None]) -> Callable[[Callable[..., Any]], Step]:
    """A part of a loop whose machine code `emit` writes, where the compiler would not find it by itself."""
    return lambda function: Step(function, emit)


def sums(function: Callable[..., None]) -> Loop:
    """A loop whose innermost sum may be reordered to suit vector registers; the order is the same at every call."""
    return Loop(function, fast=True)


@machine_step(lambda builder, a: builder.store(a.number(0), builder.gep(a.x, [a.i])))
def clear(x: Any, i: int) -> None:
    """x[i] = 0."""
    x[i] = 0


@loop
def trial(lo: int, hi: int, x: Any) -> None:
    """x[i] = 0 for all i: whether this numba compiles loops, before a layer relies on it. `x (numbers)`, shared out."""
    for i in range(lo, hi):
        clear(x, i)


def _as_array(argument: Any) -> Any:
    import numpy as np

    if not isinstance(argument, tuple):
        return argument
    zero, address, *shape = argument
    size = int(np.prod(shape)) * zero.itemsize
    buffer = (ctypes.c_byte * size).from_address(address) if size else bytearray()
    return np.frombuffer(buffer, zero.dtype).reshape(shape)
