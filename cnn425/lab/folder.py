"""A run folder: one run, one folder, one process at a time, and only files that are whole.

    options.json   what was asked: options, argv, versions, git commit
    metrics.csv    one row per step, one per evaluation
    events.*       TensorBoard (board.py)
    checkpoint-*   where to go on (checkpoint.py)

Files that grow are cut back, at a resume, to the length they had when the checkpoint was written, so that no step is there twice.
"""

import contextlib
import csv
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

import torch
from filelock import FileLock, Timeout

from cnn425.lab.errors import LabError, sentence

COLUMNS = (
    "step",
    "epoch",
    "learning_rate",
    "train_loss",
    "train_accuracy",
    "gradient_norm",
    "held_out_loss",
    "held_out_accuracy",
)


def sync_folder(folder: Path) -> None:
    """Let the disk know that names in this folder have changed, so that a rename survives a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_whole(path: Path, content: bytes) -> None:
    """Put a file there in one go: whoever looks, at any moment or after any crash, sees the old content or the new, never a part."""
    temporary = path.parent / f".{path.name}.{os.getpid()}.part"
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    sync_folder(path.parent)


def sweep(folder: Path) -> None:
    """Remove what a killed process left half-written."""
    for stale in folder.glob(".*.part"):
        stale.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(folder: Path, patience: float = 0) -> Iterator[None]:
    """Hold the folder; a second process is told so after `patience` seconds. The system lets go when a process dies, however it dies."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock", timeout=patience)
        lock.acquire()
    except Timeout:
        raise LabError(f"{folder}: another process is training in this folder; wait for it or choose another --log-dir") from None
    except OSError as error:
        raise LabError(f"cannot write in the run folder {folder}: {sentence(error)}") from None
    try:
        sweep(folder)
        yield
    finally:
        lock.release()


def git_commit() -> str:
    """The commit this code is from, with `+` if files were changed since; `unknown` outside a repository."""
    here = Path(__file__).parent
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()
        changed = subprocess.run(["git", "status", "--porcelain", "-uno"], cwd=here, capture_output=True, text=True, check=True, timeout=10)
        return commit + ("+" if changed.stdout.strip() else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def describe(folder: Path, options: dict[str, Any], argv: Sequence[str] | None = None) -> None:
    """Write options.json: enough to start the same run again."""
    content = {
        "options": options,
        "argv": list(sys.argv if argv is None else argv),
        "versions": {name: version(name) for name in ("torch", "torchvision", "tensorboard", "numpy")}
        | {"python": platform.python_version()},
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
        "git_commit": git_commit(),
    }
    write_whole(folder / "options.json", json.dumps(content, indent=2).encode() + b"\n")


class Metrics:
    """metrics.csv, a row at a time; numbers are written so that reading them gives the same bits."""

    def __init__(self, folder: Path):
        self.path = folder / "metrics.csv"
        self.file: IO[str] = self.path.open("a", newline="")
        self.rows = csv.DictWriter(self.file, COLUMNS, lineterminator="\n")
        if self.path.stat().st_size == 0:
            self.rows.writeheader()

    def write(self, **row: float) -> None:
        """Append one row; columns that are not named stay empty."""
        self.rows.writerow(row)

    def flush(self) -> None:
        """Hand everything to the disk."""
        self.file.flush()
        os.fsync(self.file.fileno())

    def close(self) -> None:
        """Flush and close."""
        self.file.close()


def lengths(paths: Sequence[Path]) -> dict[str, int]:
    """The length of each file, in bytes, by name."""
    return {path.name: path.stat().st_size for path in paths}


def rewind(folder: Path, kept: dict[str, int]) -> None:
    """Cut metrics.csv and the event files back to these lengths; one that is not named did not exist yet and goes."""
    for path in [folder / "metrics.csv", *folder.glob("events.*")]:
        if path.name not in kept:
            path.unlink(missing_ok=True)
    for name, length in kept.items():
        path = folder / name
        if not path.exists() or path.stat().st_size < length:
            raise LabError(
                f"{path} is shorter than when the checkpoint was written; it was changed from outside, so this run cannot be resumed"
            )
        with path.open("r+b") as file:
            file.truncate(length)
