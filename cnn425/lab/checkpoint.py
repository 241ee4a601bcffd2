"""Checkpoints: everything a run needs to go on as if it had never stopped, in a file that is whole or not there.

The name carries the step and the digest of the content: `checkpoint-0000000938-1f2e3d4c5b6a7980.pt`. So one rename makes a checkpoint
valid, a truncated or altered file is recognised before it is opened, and the file stays one that plain `torch.load(...,
weights_only=True)` reads.
"""

import hashlib
import io
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import torch

from cnn425.lab.errors import LabError
from cnn425.lab.folder import claim, ours, write_whole

FORMAT = 1
KEEP = 2
NAME = re.compile(r"checkpoint-(\d{10})-([0-9a-f]{16})\.pt")


class UnreadableError(LabError):
    """The operating system does not give the file out: that says nothing about its content."""


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run, newest first."""
    return sorted(ours(folder, NAME), key=lambda path: (int(path.name.split("-")[1]), path.stat().st_mtime_ns), reverse=True)


def save(folder: Path, step: int, state: dict[str, Any]) -> Path:
    """Write a checkpoint and let go of all but the last two; returns its path."""
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **state}, buffer)
    content = buffer.getvalue()
    path = claim(folder, f"checkpoint-{step:010d}-{hashlib.sha256(content).hexdigest()[:16]}.pt")
    write_whole(path, content)
    for old in [other for other in checkpoints(folder) if other != path][KEEP - 1 :]:
        old.unlink(missing_ok=True)
    return path


def read(path: Path) -> dict[str, Any]:
    """The content of one checkpoint file; a LabError says what is wrong with it."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UnreadableError(f"{path} cannot be read: {error.strerror}") from None
    named = NAME.fullmatch(path.name)
    if named and hashlib.sha256(content).hexdigest()[:16] != named[2]:
        raise LabError(f"{path} is damaged: its content is not what its name says ({len(content)} bytes)")
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception:  # torch.load raises many types on foreign files
        raise LabError(f"{path} is not a checkpoint: torch.load cannot read it") from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise LabError(f"{path} is not a checkpoint of this program (format {FORMAT})")
    return state


def newest(folder: Path, warn: Callable[[str], None]) -> dict[str, Any] | None:
    """The newest whole checkpoint of a run, None if there is none; damaged ones are set aside, and `warn` says so.

    An `UnreadableError` stops the run: what it did so far is still there.
    """
    found = checkpoints(folder)
    for k, path in enumerate(found, 1):
        try:
            return read(path)
        except UnreadableError as error:
            raise UnreadableError(f"{error}; the run needs it to go on, and nothing was changed") from None
        except LabError as error:
            aside = path.with_suffix(".damaged")
            path.rename(aside)
            then = "going on from the one before" if k < len(found) else "there is no other, so the run starts again"
            warn(f"warning: {error}; set aside as {aside.name}, {then}")
    return None


def seed(number: int, rank: int = 0) -> None:
    """Seed the random generators of this process, torch's, NumPy's and Python's: each process of a run with numbers of its own."""
    words = [int(word) for word in numpy.random.SeedSequence((number % 2**64, rank)).generate_state(3)]
    torch.manual_seed(words[0])
    numpy.random.seed(words[1])  # noqa: NPY002 - the global state is what a network or an augmentation may draw from
    random.seed(words[2])


def random_state() -> dict[str, Any]:
    """The state of every random generator of this process: torch on CPU and GPUs, Python, NumPy."""
    algorithm, keys, *rest = numpy.random.get_state(legacy=True)  # noqa: NPY002 - the global state is the one to save
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else [],
        "python": random.getstate(),
        "numpy": (algorithm, torch.from_numpy(numpy.asarray(keys).astype(numpy.int64)), *rest),
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Go back to where `random_state` was called."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    version, keys, gauss = state["python"]
    random.setstate((version, tuple(keys), gauss))
    algorithm, keys, *rest = state["numpy"]
    numpy.random.set_state((algorithm, keys.numpy().astype(numpy.uint32), *rest))  # noqa: NPY002
