"""The processes of a run: one, or several under torchrun, which share every batch and are one run in every other respect.

The batch size is that of all processes together. A process takes its part of each batch; the gradient of the sum of losses divided by the
size of the whole batch, added over processes, is the gradient one process would have computed, to rounding.
"""

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Iterator
from datetime import timedelta
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from cnn425.lab.errors import LabError, first_line
from cnn425.lab.meeting import meet

LOST = ("gloo", "nccl", "connection", "peer")  # what torch's errors about a lost process have in common
PR_SET_PDEATHSIG = 1  # from <linux/prctl.h>


class Group(NamedTuple):
    """One process among those of the run."""

    rank: int
    world: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this is the process that logs, saves and downloads."""
        return self.rank == 0

    def share(self, indices: Tensor) -> Tensor:
        """The part of a batch that falls to this process; may be empty."""
        return indices.tensor_split(self.world)[self.rank]

    def total(self, values: Tensor) -> Tensor:
        """The sum over all processes, the same in each of them."""
        if self.world > 1:
            dist.all_reduce(values)
        return values

    def gathered(self, thing: Any) -> list[Any]:
        """One thing from each process, by rank."""
        if self.world == 1:
            return [thing]
        things: list[Any] = [None] * self.world
        dist.all_gather_object(things, thing)
        return things

    def from_first(self, thing: Any) -> Any:
        """The first process's thing, in all of them."""
        if self.world == 1:
            return thing
        things = [thing]
        dist.broadcast_object_list(things, src=0)
        return things[0]

    def wait(self) -> None:
        """Go on together."""
        self.total(torch.zeros(1, device=self.device))


def under_torchrun() -> bool:
    """Whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


@contextlib.contextmanager
def survivors() -> Iterator[None]:
    """A process that died is one sentence for those that are left, wherever they notice: in a sum, a gradient, a gathered layer."""
    try:
        yield
    except RuntimeError as error:
        reason = first_line(error).split("] ", 1)[-1].split(". ")[0]
        if not isinstance(error, dist.DistError) and not any(word in str(error).lower() for word in LOST):
            raise
        raise LabError(f"another process of this run has died or does not answer ({reason}); the same command resumes") from None


def end_with_parent() -> None:
    """Have the system send SIGTERM when torchrun dies: else its workers train on, in a folder that the next start wants."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM))


def torch_device(name: str) -> torch.device:
    """The device called `name`, if this machine has it."""
    reason = "no numbers are computed there"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
        if device.type != "meta":
            return device
    except (RuntimeError, AssertionError, ImportError) as error:
        said = first_line(error).split(". ")[0]
        reason = said if len(said) < 100 and "Could not run" not in said else "this torch or this machine has none"
    kind = torch.accelerator.current_accelerator(check_available=True)
    there = ["cpu"] + ([f"{kind.type}:{k}" for k in range(torch.accelerator.device_count())] if kind else [])
    raise LabError(f"--device {name}: {reason}; there is {', '.join(there)}", 2)


@contextlib.contextmanager
def joined(device: str, patience: timedelta = timedelta(minutes=5)) -> Iterator[Group]:
    """Join the processes that torchrun started; alone without torchrun."""
    if not under_torchrun():
        yield Group(0, 1, torch_device(device))
        return
    if device.startswith("cuda:") and os.environ.get("LOCAL_WORLD_SIZE", "1") != "1":
        raise LabError(f"--device {device}: one GPU for several processes; --device cuda gives each its own", 2)
    end_with_parent()
    if device == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
    own = torch_device(device)
    if own.type == "cuda":
        torch.cuda.set_device(own)
    here_first = not dist.is_initialized()
    if here_first:
        with survivors():
            store, rank, world = meet(patience)
            backend = "nccl" if own.type == "cuda" else "gloo"
            dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=patience)
    try:
        with survivors():
            yield Group(dist.get_rank(), dist.get_world_size(), own)
    finally:
        if here_first:
            dist.destroy_process_group()
