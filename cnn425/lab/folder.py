"""A run folder: one run, one folder, one process at a time, only files that are whole, and no file of anybody else's is touched.

    .cnn425        what makes the folder ours: `cnn425 <kind> <version>`, then the name of every file that was made here, before it is made
    options.json   what was asked: options, argv, versions, git commit
    metrics.csv    one row per step, one per evaluation
    events.*       TensorBoard (board.py)
    checkpoint-*   where to go on (checkpoint.py)

A folder that holds something and is not marked is somebody else's: a run makes a folder of its own in it. Only files on the list are
overwritten, cut or removed. Files that grow are cut back, at a resume, to the length they had when the checkpoint was written, so that no
step is there twice.
"""

import contextlib
import csv
import errno
import json
import os
import platform
import re
import subprocess
import sys
import tomllib
from collections.abc import Collection, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any

import torch
from filelock import FileLock, Timeout

from cnn425.lab.errors import LabError, about, expanded, sentence
from cnn425.lab.progress import say

COLUMNS = ["step", "epoch", "learning_rate", "train_loss", "train_accuracy", "gradient_norm", "held_out_loss", "held_out_accuracy"]
MARKER, LOCK, VERSION = ".cnn425", ".lock", 1
LONGEST = 100  # names on the list, beyond which those of files that are gone are left out
EVENTS = re.compile(r"events\.out\.tfevents\.\d{10}\.cnn425")
UNABLE = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EXDEV, errno.ENOLCK, errno.EBADF}  # of a file system
told: set[tuple[str, str]] = set()  # warnings that were given, by folder


# ---- Files that are whole --------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def if_able(folder: Path, what: str, so: str, unable: Collection[int] = UNABLE) -> Iterator[None]:
    """Go on, with one warning, on a file system that cannot do this; other errors (a full disk, a broken one) stay errors."""
    try:
        yield
    except OSError as error:
        if error.errno not in unable:
            raise
        if (str(folder), what) not in told:
            told.add((str(folder), what))
            say(f"warning: the file system of {folder} cannot {what} ({error.strerror}); {so}")


def sync(file: IO[Any], path: Path) -> None:
    """Hand a file to the disk; an error names the file."""
    with about(path), if_able(path.parent, "sync files", "the run goes on, but a power cut may lose its last minutes"):
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Let the disk know that names in this folder have changed, so that a rename survives a power cut."""
    with if_able(folder, "sync a folder", "files are synced, the run goes on", {*UNABLE, errno.EACCES, errno.EPERM, errno.EISDIR}):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_whole(path: Path, content: bytes) -> None:
    """Put a file there in one go: whoever looks, at any moment or after any crash, sees the old content or the new, never a part."""
    temporary = path.parent / f".{path.name}.{os.getpid()}.part"
    renamed = False
    try:
        with about(path):
            with temporary.open("wb") as file:
                file.write(content)
                sync(file, path)
            so = "files are written in place, and the run goes on"
            with if_able(path.parent, "rename a file over another", so, {*UNABLE, errno.EEXIST, errno.EPERM}):
                os.replace(temporary, path)
                renamed = True
            if not renamed:
                with path.open("wb") as file:
                    file.write(content)
                    sync(file, path)
    finally:
        if not renamed:
            with contextlib.suppress(OSError):
                temporary.unlink()
    sync_folder(path.parent)


def sweep(folder: Path, names: Collection[str] | None = None) -> None:
    """Remove what a killed process left half-written of these files (default: those on the folder's list)."""
    known = {*(own(folder) or ()), MARKER} if names is None else names
    for stale in folder.glob(".*.part"):
        written = re.fullmatch(r"\.(.+)\.\d+\.part", stale.name)
        if written and written[1] in known:
            stale.unlink(missing_ok=True)


# ---- Whose folder, whose files ---------------------------------------------------------------------------------------------------------


def marked(folder: Path) -> tuple[str, list[str]] | None:
    """What kind of run a folder is of, and the names on its list; None if it does not say that it is ours."""
    try:
        head, *names = (folder / MARKER).read_bytes().decode("utf-8", "surrogateescape").split("\n")
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None
    written = re.fullmatch(r"cnn425 (\w+) (\d+)", head)
    if not written or not names:  # somebody else's, or a start that was killed while it wrote this very line
        return None
    if int(written[2]) > VERSION:
        raise LabError(f"{folder} was made by a newer version of cnn425 (format {written[2]}); choose another --log-dir", 2)
    return written[1], names[:-1]  # what follows the last line end was not written whole


def own(folder: Path) -> list[str] | None:
    """The names of the files that were made by runs in this folder; None if it is not marked."""
    found = marked(folder)
    return None if found is None else found[1]


def ours(folder: Path, pattern: re.Pattern[str]) -> list[Path]:
    """The files whose whole names match, in order; in a marked folder, those on its list."""
    names = own(folder)
    return sorted(path for path in folder.glob("*") if pattern.fullmatch(path.name) and (names is None or path.name in names))


def claim(folder: Path, name: str) -> Path:
    """The path of a file that is about to be written: its name is on the list before it is there. A file of somebody else's is refused."""
    path, found = folder / name, marked(folder)
    if found is None or name in found[1]:
        return path
    if os.path.lexists(path):
        raise LabError(f"{path} was not made by this run, which would overwrite it; move it, or choose another --log-dir", 2)
    kind, names = found
    if len(names) >= LONGEST:
        _mark(folder, kind, [known for known in names if (folder / known).exists()])
    with about(folder / MARKER), (folder / MARKER).open("r+b") as file:
        content = file.read()
        file.seek(content.rfind(b"\n") + 1)
        file.truncate()
        file.write(name.encode("utf-8", "surrogateescape") + b"\n")
        sync(file, folder / MARKER)
    return path


def _mark(folder: Path, kind: str, names: Sequence[str] = ()) -> None:
    """Write the list anew."""
    write_whole(folder / MARKER, "".join(f"{line}\n" for line in (f"cnn425 {kind} {VERSION}", *names)).encode("utf-8", "surrogateescape"))


def free(folder: Path, kind: str) -> bool:
    """Whether a run of this kind may use the folder: it is new, empty, or marked by another of its kind."""
    found = marked(folder)
    if found:
        if found[0] != kind:
            raise LabError(f"{folder} holds a {found[0]}, whose files a {kind} would replace; choose another --log-dir", 2)
        return True
    if not folder.is_dir():
        return not os.path.lexists(folder)
    return all(_left_by_a_killed_start(path) for path in folder.iterdir())


def _left_by_a_killed_start(path: Path) -> bool:
    """Whether this is what a start leaves that was killed before it could mark the folder: an empty lock, half a list."""
    return (path.name == LOCK and path.is_file() and not path.stat().st_size) or bool(re.fullmatch(r"\.\.cnn425\.\d+\.part", path.name))


def home(folder: Path, kind: str, name: str) -> Path:
    """The folder itself, absolute, if a run of this kind may use it; else, and that is said, one called `name` inside it."""
    folder = expanded(folder).absolute()
    if os.path.lexists(folder) and not folder.is_dir():
        raise LabError(f"{folder} is not a folder; choose another --log-dir", 2)
    if free(folder, kind):
        return folder
    inside = folder / name
    if not free(inside, kind):
        raise LabError(f"{folder} and {inside} hold files that no run made; choose another --log-dir", 2)
    say(f"{folder} holds files that no run made, so this one is written to {inside}")
    return inside


@contextlib.contextmanager
def locked(folder: Path, patience: float = 0, kind: str = "run") -> Iterator[None]:
    """Hold the folder and mark it; a second process is told after `patience` seconds. The system lets go when a process dies."""
    lock = FileLock(folder / LOCK, timeout=patience)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with if_able(folder, "lock files", "the run goes on; do not start a second one in this folder"):
            lock.acquire()
        if own(folder) is None:
            _mark(folder, kind)
    except Timeout:
        raise LabError(f"{folder}: another process is training in this folder; wait for it or choose another --log-dir") from None
    except OSError as error:
        raise LabError(f"cannot write in the run folder {folder}: {sentence(error)}") from None
    try:
        sweep(folder)
        yield
    finally:
        lock.release()


# ---- What a run writes down ------------------------------------------------------------------------------------------------------------


def git_commit() -> str:
    """The commit this code is from, with `+` if files were changed since; `unknown` outside the repository of cnn425."""
    here = Path(__file__)
    root = here.parents[2]
    around = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}  # of a hook in another repository

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=root, env=around, capture_output=True, text=True, check=True, timeout=10)
        return done.stdout.strip()

    try:
        project = tomllib.loads((root / "pyproject.toml").read_text("utf-8")).get("project", {}).get("name")
        if project != "cnn425" or not os.path.samefile(git("rev-parse", "--show-toplevel"), root):
            return "unknown"
        git("ls-files", "--error-unmatch", str(here))
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, ValueError, subprocess.SubprocessError):
        return "unknown"


def installed(package: str) -> str:
    """The version of a package, `unknown` if it was copied and not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def describe(folder: Path, options: dict[str, Any], argv: Sequence[str] | None = None) -> None:
    """Write options.json: enough to start the same run again."""
    content = {
        "options": options,
        "argv": list(sys.argv if argv is None else argv),
        "versions": {name: installed(name) for name in ("cnn425", "torch", "torchvision", "tensorboard", "numpy")}
        | {"python": platform.python_version()},
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
        "git_commit": git_commit(),
    }
    write_whole(claim(folder, "options.json"), json.dumps(content, indent=2).encode() + b"\n")


class Metrics:
    """metrics.csv, a row at a time; numbers are written so that reading them gives the same bits."""

    def __init__(self, folder: Path):
        self.path = claim(folder, "metrics.csv")
        self.file: IO[str] = self.path.open("a", newline="")
        self.rows = csv.DictWriter(self.file, COLUMNS, lineterminator="\n")
        if self.path.stat().st_size == 0:
            self.rows.writeheader()

    def write(self, **row: float) -> None:
        """Append one row; columns that are not named stay empty."""
        with about(self.path):
            self.rows.writerow(row)

    def flush(self) -> None:
        """Hand everything to the disk."""
        sync(self.file, self.path)

    def close(self) -> None:
        """Flush and close."""
        self.file.close()


def lengths(paths: Sequence[Path]) -> dict[str, int]:
    """The length of each file, in bytes, by name."""
    return {path.name: path.stat().st_size for path in paths}


def rewind(folder: Path, kept: dict[str, int]) -> None:
    """Cut metrics.csv and the event files back to these lengths; one that is not named did not exist yet and goes."""
    for path in [*ours(folder, re.compile(r"metrics\.csv")), *ours(folder, EVENTS)]:
        if path.name not in kept:
            path.unlink(missing_ok=True)
    for name, length in kept.items():
        path = folder / name
        if not path.exists() or path.stat().st_size < length:
            raise LabError(f"{path} is shorter than when the checkpoint was written, so the run cannot go on; choose another --log-dir")
        with path.open("r+b") as file:
            file.truncate(length)
