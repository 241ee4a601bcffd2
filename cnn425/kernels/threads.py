"""How a loop is compiled, how it is shared among threads, and when loops may run at all.

A loop is a plain Python function `f(lo, hi, *arguments)` that computes the units lo to hi - 1 of its result, for example the planes of an
image. numba compiles it at the first call, and keeps the machine code in a folder where one can be written. Every unit is computed by one
thread in one order, so the bits of a result do not depend on the number of threads.

Threads are torch's own: the compiled code enters the OpenMP library that torch is linked with, by `GOMP_parallel`, which GNU's and LLVM's
libraries both export. So there is no second set of threads in the process, and `torch.set_num_threads` is obeyed. Where that library
cannot be entered (another system), and in a process made by a fork, whose parent's threads are gone, one thread computes everything. A
child of a process that shared loops among threads starts with `torch.set_num_threads(1)`, as the workers of a DataLoader do.
"""

import contextlib
import ctypes
import os
import warnings
from collections.abc import Callable
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from cnn425.compat import dispatch_modes, is_transformed, tracing_state

PLAIN = (Tensor, torch.nn.Parameter)  # types of tensors whose numbers may be read: a subclass may keep none
SHARED = 1 << 15  # steps of an innermost loop; less is not worth waking a thread
forced: ContextVar[str | None] = ContextVar("forced", default=None)  # the algorithm that `cnn425.algorithms.use` asks for
forked = False  # whether this process was made by a fork
shared = False  # whether loops ran on several threads
PARALLEL, THIS, ALL = "cnn425_parallel", "cnn425_thread", "cnn425_threads"  # names in machine code, which may be kept in a file


def _after_fork() -> None:
    """The child has one thread, and OpenMP would wait in it for the threads of its parent for ever, in torch's own operations, too."""
    global forked
    forked = True
    if shared:
        torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def is_traced() -> bool:
    """Whether `torch.compile`, `torch.export` or `torch.jit.trace` is at work: then nothing may depend on the numbers in a tensor."""
    return torch.compiler.is_compiling() or tracing_state() is not None


def loops_run(*tensors: Tensor) -> bool:
    """Whether loops may read these tensors: numbers in this computer's memory, of a type that loops know, and nobody records operations."""
    if is_traced() or dispatch_modes() or forced.get() == "definition":
        return False
    for t in tensors:
        if type(t) not in PLAIN or not t.is_cpu or t.dtype not in _zeros() or t.layout is not torch.strided or t.is_neg():
            return False
        if is_transformed(t) or (t.data_ptr() == 0 and t.numel()):  # zeros that are known to be zeros, and nowhere written
            return False
    return has_numba()


@cache
def has_numba() -> bool:
    """Whether numba can be imported; if not, one warning says what is missing."""
    try:
        import numba  # noqa: F401  (only at the first loop: `import cnn425.nn` needs no compiler)
    except ImportError as error:
        warnings.warn(
            f"cnn425 computes by definition, which is slow: numba cannot be imported ({error}); `pip install numba`", stacklevel=2
        )
        return False
    return True


@cache
def _zeros() -> dict[torch.dtype, Any]:
    """For each type of number that loops know, a zero of it: how the compiler learns the type."""
    import numpy as np

    names = ("float32", "float64", "uint8", "int8", "int16", "int32", "int64", "bool")
    return {getattr(torch, name): getattr(np, name if name != "bool" else "bool_")(0) for name in names}


def number(value: float, dtype: torch.dtype) -> Any:
    """A number of a tensor's type, as an argument for a loop."""
    return type(_zeros()[dtype])(value)


def memory(t: Tensor, *shape: int) -> tuple[Any, ...]:
    """The memory of a dense tensor as an array of `shape`, as an argument for a loop: (zero of its type, address, sizes)."""
    return (_zeros()[t.dtype], t.data_ptr(), *shape)


class Loop:
    """A loop `f(lo, hi, *arguments)`: call it with the number of units, the steps of the innermost loop in all, and the arguments.

    Arguments are numbers, and arrays given as `memory(tensor, *shape)`. `parts` take the place of constants that it names.
    """

    def __init__(self, function: Callable[..., None], fast: bool, **parts: Any) -> None:
        self.function, self.fast, self.parts = function, fast, parts
        self.compiled: Callable[..., None] | None = None
        self.__doc__, self.__name__ = function.__doc__, "_".join([function.__name__, *map(str, parts.values())])

    def __call__(self, units: int, steps: int, *arguments: Any) -> None:
        """Compute all units."""
        global shared
        run, threads = self.compiled or self.compile(), 1
        if steps >= SHARED and not forked and None not in _openmp().values():
            threads = torch.get_num_threads()
            shared = shared or threads > 1
        run(units, threads, arguments)

    def compile(self) -> Callable[..., None]:
        """The machine code behind the loop, or with NUMBA_DISABLE_JIT=1 the Python."""
        from numba import config

        self.compiled = self.python if getattr(config, "DISABLE_JIT", 0) else _compiled(self)
        return self.compiled

    def python(self, units: int, threads: int, arguments: tuple[Any, ...]) -> None:
        """The loop as ordinary Python."""
        _linked(self.function, self.parts, lambda _, function: function)(0, units, *map(_as_array, arguments))


class Step:
    """A part of a loop with a name of its own, compiled into the loops that call it."""

    def __init__(self, function: Callable[..., Any], make: Callable[[], Any] | None = None) -> None:
        self.function, self.make = function, make
        self.__doc__, self.__name__ = function.__doc__, function.__name__

    def __call__(self, *arguments: Any) -> Any:
        """The part as ordinary Python."""
        return self.function(*arguments)


def loop(function: Callable[..., None]) -> Loop:
    """A loop whose numbers keep their rounding, infinities and NaNs; products are fused with additions."""
    return Loop(function, fast=False)


def step(function: Callable[..., Any]) -> Step:
    """A part of a loop: numbers that are known where it is called, like a stride of 1, are constants inside."""
    return Step(function)


def machine_step(make: Callable[[], Any]) -> Callable[[Callable[..., Any]], Step]:
    """A part of a loop for which `make` gives the machine code, where the compiler would not find it by itself."""
    return lambda function: Step(function, make)


def sums(function: Callable[..., None]) -> Loop:
    """A loop whose innermost sum may be added in the order that a vector register likes: the same at every call."""
    return Loop(function, fast=True)


def _as_array(argument: Any) -> Any:
    import numpy as np

    if not isinstance(argument, tuple):
        return argument
    zero, address, *shape = argument
    size = int(np.prod(shape)) * zero.itemsize
    buffer = (ctypes.c_byte * size).from_address(address) if size else bytearray()
    return np.frombuffer(buffer, zero.dtype).reshape(shape)


# ---- Machine code ------------------------------------------------------------------------------------------------------------------------


def _compiled(made_of: Loop) -> Callable[..., None]:
    """`entry(units, threads, arguments)` in machine code; the Python around the loop is a copy of `_entry` that numba finds beside it."""
    from numba import njit

    function = made_of.function
    fastmath = {"contract", "reassoc", "nsz"} if made_of.fast else {"contract"}
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
    compile_, inline = njit(**options, fastmath=fastmath), njit(**options, fastmath=fastmath, forceinline=True)
    inner = compile_(_linked(function, made_of.parts, lambda part, function: part.make() if part.make else inline(function)))
    code = _entry.__code__.replace(co_filename=function.__code__.co_filename, co_firstlineno=function.__code__.co_firstlineno)
    around = {**_numba_functions(), "kernel": inner}
    entry = FunctionType(code, around, function.__name__)
    entry.__module__, entry.__qualname__ = function.__module__, made_of.__name__
    made = njit(**options)(entry)
    with contextlib.suppress(RuntimeError):  # no folder that can be written to
        made._cache = _files()(entry)
    return made


def _linked(function: Callable[..., Any], parts: dict[str, Any], made: Callable[[Step, FunctionType], Any]) -> FunctionType:
    """The function with `parts` in place of constants, and with what is made of them in place of steps."""
    names = {**function.__globals__, **parts}
    for name in function.__code__.co_names:
        part = names.get(name)
        if isinstance(part, Step):
            names[name] = made(part, _linked(part.function, parts, made))
    return FunctionType(function.__code__, names, function.__name__)


@cache
def _files() -> Any:
    """Files of machine code as `cache=True` keeps them, none of which has to be right, or writable: what is wrong is compiled anew."""
    from numba.core.caching import FunctionCache

    here = os.stat(__file__)
    stamp = (here.st_mtime_ns, here.st_size)  # this file is a part of every loop, too

    class Files(FunctionCache):
        def _index_key(self, *arguments: Any) -> Any:
            return (super()._index_key(*arguments), stamp)

        def load_overload(self, signature: Any, context: Any) -> Any:
            try:
                found = super().load_overload(signature, context)
                # two processes that compile for two types at once may put each other's code under one name
                return found if found is None or found.signature.args == signature else None
            except Exception:  # what a damaged file unpickles to may raise anything
                with contextlib.suppress(Exception):
                    self.flush()
                return None

        def save_overload(self, *arguments: Any) -> None:
            with contextlib.suppress(Exception):  # a full disk
                super().save_overload(*arguments)

    return Files


def _entry(units, threads, arguments):  # type: ignore[no-untyped-def]
    made = arrays(arguments)  # type: ignore[name-defined]  # noqa: F821
    if threads < 2 or units < 2:
        kernel(0, units, *made)  # type: ignore[name-defined]  # noqa: F821
    else:
        share(kernel, units, threads, made)  # type: ignore[name-defined]  # noqa: F821


@cache
def _openmp() -> dict[str, int | None]:
    """The addresses of torch's OpenMP library, as torch's own code would find them: of a parallel region, the thread and their number."""
    names = {PARALLEL: "GOMP_parallel", THIS: "omp_get_thread_num", ALL: "omp_get_num_threads"}
    for library in Path(torch.__file__).parent.glob("lib/libtorch_cpu.*"):
        with contextlib.suppress(OSError, AttributeError):
            opened = ctypes.CDLL(str(library))
            return {ours: ctypes.cast(getattr(opened, theirs), ctypes.c_void_p).value for ours, theirs in names.items()}
    return dict.fromkeys(names)


@cache
def _numba_functions() -> dict[str, Any]:
    """`arrays`, which makes arrays of addresses, and `share`, which runs a loop by torch's threads: for use in compiled code."""
    from llvmlite import binding, ir
    from numba.core import cgutils, types
    from numba.extending import intrinsic

    for name, address in _openmp().items():
        binding.add_symbol(name, address or 0)
    word, wide, pointer = ir.IntType(32), ir.IntType(64), ir.IntType(8).as_pointer()

    def array_type(argument: Any) -> Any:
        described = isinstance(argument, types.BaseTuple)
        return types.Array(argument.types[0], len(argument) - 2, "C") if described else argument

    @intrinsic
    def arrays(typing: Any, arguments: Any) -> Any:
        """A tuple of arguments, arrays in place of their descriptions."""
        made = types.Tuple([array_type(argument) for argument in arguments.types])

        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            parts = []
            for position, (given, wanted) in enumerate(zip(arguments.types, made.types, strict=True)):
                value = builder.extract_value(values[0], position)
                parts.append(array(context, builder, value, given, wanted) if given != wanted else value)
            return context.make_tuple(builder, made, parts)

        return made(arguments), generate

    def array(context: Any, builder: Any, value: Any, given: Any, wanted: Any) -> Any:
        from numba.np.arrayobj import make_array, populate_array

        numbers = [builder.extract_value(value, position) for position in range(1, len(given))]
        address, *shape = numbers
        size = context.get_constant(types.intp, context.get_abi_sizeof(context.get_data_type(wanted.dtype)))
        strides: list[Any] = []
        step = size
        for extent in reversed(shape):
            strides.insert(0, step)
            step = builder.mul(step, extent)
        made = make_array(wanted)(context, builder)
        data = builder.inttoptr(address, context.get_data_type(wanted.dtype).as_pointer())
        populate_array(made, data=data, shape=shape, strides=strides, itemsize=size, meminfo=None)
        return made._getvalue()

    @intrinsic(prefer_literal=True)
    def share(typing: Any, kernel: Any, units: Any, threads: Any, arguments: Any) -> Any:
        """`kernel(lo, hi, *arguments)`, once per thread, with an equal share of the units."""

        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            _, units, threads, arguments_ = values
            packed = ir.LiteralStructType([wide, context.get_value_type(arguments)])
            body = ir.Function(builder.module, ir.FunctionType(ir.VoidType(), [pointer]), builder.module.get_unique_name("share"))
            body.linkage = "internal"
            inside = ir.IRBuilder(body.append_basic_block())
            given = inside.load(inside.bitcast(body.args[0], packed.as_pointer()))
            count, unpacked = inside.extract_value(given, 0), inside.extract_value(given, 1)
            asked = ir.FunctionType(word, [])
            this, all_ = (
                inside.sext(inside.call(cgutils.get_or_insert_function(builder.module, asked, name), []), wide) for name in (THIS, ALL)
            )
            lo = inside.sdiv(inside.mul(count, this), all_)
            hi = inside.sdiv(inside.mul(count, inside.add(this, wide(1))), all_)
            types_ = (types.intp, types.intp, *arguments.types)
            resolved = context.typing_context.resolve_function_type(kernel, types_, {})
            compiled = kernel.dispatcher.get_compile_result(resolved)
            context.active_code_library.add_linking_library(compiled.library)
            function = context.declare_function(builder.module, compiled.fndesc)
            parts = [inside.extract_value(unpacked, position) for position in range(len(arguments.types))]
            context.call_conv.call_function(inside, function, resolved.return_type, resolved.args, [lo, hi, *parts])
            inside.ret_void()

            slot = cgutils.alloca_once(builder, packed)
            start = builder.insert_value(ir.Constant(packed, ir.Undefined), units, 0)
            builder.store(builder.insert_value(start, arguments_, 1), slot)
            parallel = ir.FunctionType(ir.VoidType(), [body.type, pointer, word, word])
            enter = cgutils.get_or_insert_function(builder.module, parallel, PARALLEL)
            builder.call(enter, [body, builder.bitcast(slot, pointer), builder.trunc(threads, word), word(0)])
            return context.get_dummy_value()

        return types.void(kernel, types.intp, types.intp, arguments), generate

    return {"arrays": arrays, "share": share}
