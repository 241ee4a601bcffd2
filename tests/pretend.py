"""A device that does not exist, `pretend:0`: its tensors keep their numbers on the CPU, and refuse to be mixed with tensors of the CPU.

`python pretend.py SCRIPT WORDS...` runs a script in a process that has this device. What it shows without a GPU: no layer, script or
training step makes a tensor on another device than its input's, or reads memory that only a loop on the CPU can read. What it cannot show:
the kernels of a GPU, and times.
"""

import runpy
import sys
from functools import partial
from pathlib import Path

import torch
from torch.utils import _pytree as pytree
from torch.utils import backend_registration

NAME = "pretend"


class Pretend(torch.Tensor):
    """A tensor on the device: `numbers` is a tensor on the CPU with its sizes and strides."""

    @staticmethod
    def __new__(cls, numbers):
        like = {"strides": numbers.stride(), "storage_offset": numbers.storage_offset()} if numbers.layout is torch.strided else {}
        made = torch.Tensor._make_wrapper_subclass(
            cls, numbers.shape, **like, dtype=numbers.dtype, layout=numbers.layout, device=f"{NAME}:0"
        )
        made.numbers = numbers
        return made

    def __repr__(self):
        return f"{NAME}({self.numbers})"

    def __reduce_ex__(self, protocol):
        return self.numbers.__reduce_ex__(protocol)  # what torch.load(..., map_location="cpu") gives

    def tolist(self):
        return self.numbers.tolist()

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, operator, types, args=(), kwargs=None):
        return computed(operator, *args, **(kwargs or {}))


COPIES = {"_to_copy", "copy_", "_copy_from", "set_", "_pin_memory"}  # what takes numbers from one device to another
LOOKED_UP = {"index", "index_put", "index_put_", "_index_put_impl_"}  # indices may be on the CPU


def computed(operator, *args, **kwargs):
    """What the operator gives, computed on the CPU."""
    name = operator._schema.name.removeprefix("aten::")
    flat, spec = pytree.tree_flatten((args, kwargs))
    tensors = [t for t in flat if isinstance(t, torch.Tensor)]
    here = any(isinstance(t, Pretend) for t in tensors)
    strangers = [t for t in tensors if not isinstance(t, Pretend) and t.ndim]
    if here and strangers and name not in COPIES | LOOKED_UP:
        raise RuntimeError(f"Expected all tensors to be on the same device, but found at least two devices, {NAME}:0 and cpu! ({name})")
    target = kwargs.get("device")
    there = here if target is None else torch.device(target).type == NAME
    plain = [
        t.numbers if isinstance(t, Pretend) else torch.device("cpu") if isinstance(t, torch.device) and t.type == NAME else t for t in flat
    ]
    args, kwargs = pytree.tree_unflatten(plain, spec)
    results = pytree.tree_map_only(torch.Tensor, lambda t: t.resolve_conj().resolve_neg(), operator(*args, **kwargs))
    given = {id(t.numbers): t for t in tensors if isinstance(t, Pretend)}
    if name in ("copy_", "set_") and not isinstance(tensors[0], Pretend):
        return tensors[0]
    return pytree.tree_map_only(torch.Tensor, lambda t: given.get(id(t)) if id(t) in given else Pretend(t) if there else t, results)


class Module:
    """What torch asks of `torch.pretend`."""

    @staticmethod
    def is_available():
        return True

    @staticmethod
    def device_count():
        return 1

    @staticmethod
    def current_device():
        return 0

    @staticmethod
    def is_initialized():
        return True

    @staticmethod
    def _is_in_bad_fork():
        return False

    @staticmethod
    def manual_seed_all(seed):
        torch.random.default_generator.manual_seed(seed)

    @staticmethod
    def get_amp_supported_dtype():
        return [torch.bfloat16, torch.float16]


def copied(source, target, non_blocking=False):
    """`target` with the numbers of `source`: what `torch.tensor(..., device=...)` calls, past `__torch_dispatch__`."""
    computed(torch.ops.aten.copy_.default, target, source)
    return target


def factories():
    """Operators that make a tensor of no other tensor, `arange` and the like."""
    for name in torch._C._dispatch_get_all_op_names():
        packet, _, overload = name.removeprefix("aten::").partition(".")
        operator = getattr(getattr(torch.ops.aten, packet, None), overload or "default", None) if name.startswith("aten::") else None
        arguments = [] if operator is None else operator._schema.arguments
        if any(a.name == "device" for a in arguments) and not any("Tensor" in str(a.type) for a in arguments):
            yield name.removeprefix("aten::"), operator


def register():
    """Let this process have the device, as long as what is returned lives."""
    backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=Module())
    others, ours = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
    others.fallback(computed, "PrivateUse1")
    for name, operator in factories():
        ours.impl(name, partial(computed, operator), "PrivateUse1")
    ours.impl("_copy_from", copied, "PrivateUse1")
    return others, ours


if __name__ == "__main__":
    kept = register()
    sys.argv = sys.argv[1:]
    sys.path.insert(0, str(Path(sys.argv[0]).parent))
    runpy.run_path(sys.argv[0], run_name="__main__")
