"""How a loop becomes machine code: numba compiles it, and code around it turns addresses into arrays and enters torch's OpenMP library.

Compiled code is cached in files until a file of this folder changes.
"""

import contextlib
import ctypes
import inspect
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from types import FunctionType, SimpleNamespace
from typing import Any

import torch

PARALLEL, THIS, ALL = "cnn425_parallel", "cnn425_thread", "cnn425_threads"  # names in machine code, which may be kept in a file
CAPABILITY = torch.backends.cpu.get_cpu_capability()  # the vector registers of this processor: "AVX512", "AVX2" or others
steps: dict[tuple[object, ...], Any] = {}  # compiled once for all loops, by (step, fast)


class Step:
    """A named part of a loop, compiled into the loops that call it, or written by `emit`: see `instructions`."""

    def __init__(self, function: Callable[..., Any], emit: Callable[[Any, Any], None] | None = None) -> None:
        self.function, self.emit = function, emit
        self.__doc__, self.__name__ = function.__doc__, function.__name__

    def __call__(self, *arguments: Any) -> Any:
        """The part as ordinary Python."""
        return self.function(*arguments)


def compiled(function: Callable[..., None], fast: bool) -> Callable[..., None]:
    """`entry(units, threads, arguments)` in machine code: a copy of `_entry` around the loop, which numba locates in the loop's file."""
    from numba import njit

    fastmath = {"contract", "reassoc", "nsz"} if fast else {"contract"}
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "no_cfunc_wrapper": True}
    alone: dict[str, Any] = {**options, "fastmath": fastmath, "no_cpython_wrapper": True}  # Python calls only entries
    around_it, whole, part = _compilers()
    compile_, inline = njit(**alone, pipeline_class=whole), njit(**alone, forceinline=True, pipeline_class=part)

    def once(step: Step) -> Any:
        if (step, fast) not in steps:
            steps[step, fast] = instructions(step, step.emit) if step.emit else inline(linked(step.function, once))
        return steps[step, fast]

    inner = compile_(linked(function, once))
    code = _entry.__code__.replace(co_filename=function.__code__.co_filename, co_firstlineno=function.__code__.co_firstlineno)
    around = {**_numba_functions(), "kernel": inner}
    entry = FunctionType(code, around, function.__name__)
    entry.__module__, entry.__qualname__ = function.__module__, function.__qualname__
    made = njit(**options, pipeline_class=around_it)(entry)
    with contextlib.suppress(RuntimeError):  # no writable folder
        made._cache = _files()(entry)
    return made


def instructions(step: Step, emit: Callable[[Any, Any], None]) -> Any:
    """A step in machine code: `emit(builder, a)` writes it, with its arguments as attributes of `a`.

    An array is passed as the address of its numbers. Those of x have the type `a.number` and `a.size` bytes each. `cases` reads arguments
    that choose among instructions.
    """
    from numba.core import types
    from numba.extending import intrinsic
    from numba.np.arrayobj import make_array

    parameters = inspect.signature(step.function).parameters

    def typed(typing: Any, *arguments: Any) -> Any:
        kinds = dict(zip(parameters, arguments, strict=True))

        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            a = SimpleNamespace(number=context.get_data_type(kinds["x"].dtype), size=kinds["x"].dtype.bitwidth // 8)
            for (name, kind), value in zip(kinds.items(), values, strict=True):
                setattr(a, name, make_array(kind)(context, builder, value).data if isinstance(kind, types.Array) else value)
            emit(builder, a)
            return context.get_dummy_value()

        return types.void(*(types.intp if isinstance(kind, types.Integer) else kind for kind in kinds.values())), generate

    first = inspect.Parameter("typing", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    typed.__signature__ = inspect.Signature([first, *parameters.values()])  # type: ignore[attr-defined]
    return intrinsic(typed)


def cases(builder: Any, value: Any, choices: Iterable[int]) -> Iterator[int]:
    """Yield each value an argument may have; instructions emitted meanwhile run for that value only. A constant yields just itself."""
    from llvmlite import ir

    if isinstance(value, ir.Constant):
        yield value.constant
        return
    end = builder.append_basic_block("end")
    switch = builder.switch(value, end)
    for choice in choices:
        block = builder.append_basic_block()
        switch.add_case(value.type(choice), block)
        builder.position_at_end(block)
        yield choice
        builder.branch(end)
    builder.position_at_end(end)


def linked(function: Callable[..., Any], made: Callable[[Step], Any]) -> FunctionType:
    """The function with each step replaced by `made(step)`."""
    names = dict(function.__globals__)
    for name in function.__code__.co_names:
        if isinstance(step := names.get(name), Step):
            names[name] = made(step)
    return FunctionType(function.__code__, names, function.__name__)


@cache
def _compilers() -> tuple[Any, Any, Any]:
    """Numba's compilers for entries, loops and their parts: loops and parts are linked into entries, and become machine code only there.

    Parts are optimised before linking, since several loops use them; loops are not, since their entries are.
    """
    from llvmlite import binding
    from numba.core.codegen import JITCodeLibrary
    from numba.core.compiler import Compiler

    class Entry(JITCodeLibrary):
        def add_ir_module(self, module: Any) -> None:
            for function in module.functions:  # on some processors LLVM would use half a vector register, to keep the clock rate high
                set.add(function.attributes, '"prefer-vector-width"="512"')
            super().add_ir_module(module)

    class Part(Entry):
        def _finalize_final_module(self) -> None:
            self._finalized = True
            variables = [v.name for v in self._final_module.global_variables if v.linkage == binding.Linkage.common]
            known = "".join(f'@"{name}" = common global i8* null\n' for name in variables)  # numba writes to these
            self._codegen._add_module(binding.parse_assembly(known))

    class Whole(Part):
        def _optimize_final_module(self) -> None:
            pass

    def compiler(library: Any) -> Any:
        class Linked(Compiler):
            def __init__(self, typing: Any, target: Any, _: None, *others: Any) -> None:
                made = library(target.codegen(), "part of a loop")
                made.enable_object_caching()  # entries are kept in files
                super().__init__(typing, target, made, *others)

        return Linked

    return compiler(Entry), compiler(Whole), compiler(Part)


@cache
def _files() -> Any:
    """Machine code cached in files, as by `cache=True`. If a file is damaged or cannot be written, the loop is compiled again."""
    from numba.core.caching import FunctionCache

    files = sorted(Path(__file__).parent.glob("*.py"))  # parts of a loop may be in other files
    stamp = (CAPABILITY, *((file.name, file.stat().st_mtime_ns, file.stat().st_size) for file in files))

    class Files(FunctionCache):
        def _index_key(self, *arguments: Any) -> Any:
            return (super()._index_key(*arguments), stamp)

        def load_overload(self, signature: Any, context: Any) -> Any:
            try:
                found = super().load_overload(signature, context)
                # two processes that compile for different types at once may store code under the same name
                return found if found is None or found.signature.args == signature else None
            except Exception:  # a damaged file may raise any exception
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
def openmp() -> dict[str, int | None]:
    """The addresses, as torch finds them, of OpenMP's functions for a parallel region, the thread number and the number of threads."""
    names = {PARALLEL: "GOMP_parallel", THIS: "omp_get_thread_num", ALL: "omp_get_num_threads"}
    for library in Path(torch.__file__).parent.glob("lib/libtorch_cpu.*"):
        with contextlib.suppress(OSError, AttributeError):
            opened = ctypes.CDLL(str(library))
            return {ours: ctypes.cast(getattr(opened, theirs), ctypes.c_void_p).value for ours, theirs in names.items()}
    return dict.fromkeys(names)


@cache
def _numba_functions() -> dict[str, Any]:
    """For compiled code: `arrays`, which makes arrays from addresses, and `share`, which runs a loop on torch's threads."""
    from llvmlite import binding
    from numba.core import cgutils, types
    from numba.extending import intrinsic

    for name, address in openmp().items():
        binding.add_symbol(name, address or 0)

    def array_type(argument: Any) -> Any:
        described = isinstance(argument, types.BaseTuple)
        return types.Array(argument.types[0], len(argument) - 2, "C") if described else argument

    @intrinsic
    def arrays(typing: Any, arguments: Any) -> Any:
        """A tuple of arguments, arrays in place of their descriptions."""
        made = types.Tuple([array_type(argument) for argument in arguments.types])

        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            given = zip(cgutils.unpack_tuple(builder, values[0]), arguments.types, made.types, strict=True)
            parts = [value if kind == wanted else _array(context, builder, value, wanted) for value, kind, wanted in given]
            return context.make_tuple(builder, made, parts)

        return made(arguments), generate

    @intrinsic(prefer_literal=True)
    def share(typing: Any, kernel: Any, units: Any, threads: Any, arguments: Any) -> Any:
        """`kernel(lo, hi, *arguments)`, once per thread, with an equal share of the units."""

        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            from llvmlite import ir

            packed = ir.LiteralStructType([ir.IntType(64), context.get_value_type(arguments), ir.IntType(64).as_pointer()])
            failed = _enter(builder, _body(context, builder, kernel, arguments, packed), *values[1:])
            with builder.if_then(failed, likely=False):
                context.call_conv.return_user_exc(builder, MemoryError, ("a thread could not allocate memory",))
            return context.get_dummy_value()

        return types.void(kernel, types.intp, types.intp, arguments), generate

    return {"arrays": arrays, "share": share}


def _array(context: Any, builder: Any, value: Any, wanted: Any) -> Any:
    """The instructions that make an array from its description: (zero of its type, address, sizes)."""
    from numba.core import cgutils, types
    from numba.np.arrayobj import make_array, populate_array

    _, address, *shape = cgutils.unpack_tuple(builder, value)
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


def _body(context: Any, builder: Any, kernel: Any, arguments: Any, packed: Any) -> Any:
    """What each thread runs: a function of the packed number of units and arguments, which calls the kernel for its share of the units."""
    from llvmlite import ir
    from numba.core import cgutils, types

    word, wide, pointer = ir.IntType(32), ir.IntType(64), ir.IntType(8).as_pointer()
    body = ir.Function(builder.module, ir.FunctionType(ir.VoidType(), [pointer]), builder.module.get_unique_name("share"))
    body.linkage = "internal"
    inside = ir.IRBuilder(body.append_basic_block())
    count, unpacked, failed = cgutils.unpack_tuple(inside, inside.load(inside.bitcast(body.args[0], packed.as_pointer())))
    asked = ir.FunctionType(word, [])
    this, all_ = (inside.sext(inside.call(cgutils.get_or_insert_function(builder.module, asked, name), []), wide) for name in (THIS, ALL))
    lo, hi = (inside.sdiv(inside.mul(count, bound), all_) for bound in (this, inside.add(this, wide(1))))
    resolved = context.typing_context.resolve_function_type(kernel, (types.intp, types.intp, *arguments.types), {})
    compiled_kernel = kernel.dispatcher.get_compile_result(resolved)
    context.active_code_library.add_linking_library(compiled_kernel.library)
    function = context.declare_function(builder.module, compiled_kernel.fndesc)
    parts = cgutils.unpack_tuple(inside, unpacked)
    status, _ = context.call_conv.call_function(inside, function, resolved.return_type, resolved.args, [lo, hi, *parts])
    with inside.if_then(status.is_error, likely=False):  # a thread found no memory: the only error of loops
        inside.store(wide(1), failed)
    inside.ret_void()
    return body


def _enter(builder: Any, body: Any, units: Any, threads: Any, arguments: Any) -> Any:
    """The instructions that run `body` on `threads` threads of torch's OpenMP library, all of it packed, and ask whether one failed."""
    from llvmlite import ir
    from numba.core import cgutils

    word, wide, pointer = ir.IntType(32), ir.IntType(64), ir.IntType(8).as_pointer()
    failed = cgutils.alloca_once_value(builder, wide(0))
    slot = cgutils.alloca_once_value(builder, cgutils.pack_struct(builder, [units, arguments, failed]))
    enter = cgutils.get_or_insert_function(builder.module, ir.FunctionType(ir.VoidType(), [body.type, pointer, word, word]), PARALLEL)
    builder.call(enter, [body, builder.bitcast(slot, pointer), builder.trunc(threads, word), word(0)])
    return cgutils.is_true(builder, builder.load(failed))
