"""Errors a user can do something about: one sentence each, printed without a traceback."""

import contextlib
import errno
import importlib.util
import io
import os
import signal
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

LAB = ("PIL", "filelock", "matplotlib", "numpy", "platformdirs", "rich", "tensorboard", "torch", "tyro")  # what commands need


class LabError(Exception):
    """One sentence for the user: what came, what is wanted, where; `code` is the exit code of the command."""

    def __init__(self, sentence: str, code: int = 1):
        super().__init__(sentence)
        self.code = code


class StoppedError(LabError):
    """A run that ends before its time, in all its processes at the same step; what it did so far is kept, and the first process says so."""


def sentence(error: OSError) -> str:
    """What the operating system said, with the file it is about: `runs/a/metrics.csv: No space left on device`."""
    reason = {
        errno.ENOSPC: "the disk is full",
        errno.EDQUOT: "the disk quota is used up",
        errno.EROFS: "the file system is read-only",
        errno.EACCES: "no permission",
    }.get(error.errno or 0, error.strerror or str(error))
    return f"{error.filename}: {reason}" if error.filename else reason


@contextlib.contextmanager
def about(path: Path) -> Iterator[None]:
    """Errors of the operating system name this file if they name none, as those of writing to an open file do."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def expanded(path: str | Path) -> Path:
    """A path as the shell takes it, `~` and `$VAR` replaced: nobody did that if it comes from a file, a notebook or `--log-dir=~/x`."""
    return Path(os.path.expanduser(os.path.expandvars(path)))


def refuse_foreign(path: Path, mark: bytes) -> None:
    """Refuse a path where nothing can be written, or where something is that this program did not write: a folder, a file without `mark`.

    The mark is in the first 1000 bytes of what the program writes there.
    """
    try:
        if path.is_dir():
            raise LabError(f"{path} is a folder; name a file in it", 2)
        if os.path.lexists(path):
            with path.open("rb") as file:
                if mark not in file.read(1000):
                    raise LabError(f"{path} was not made by this program, which would overwrite it; move it, or choose another place", 2)
        with tempfile.TemporaryFile(dir=next(parent for parent in path.absolute().parents if parent.exists())):
            pass  # a file can be made there
    except OSError as error:
        raise LabError(f"{path} cannot be written: {error.strerror}", 2) from None


def first_line(error: BaseException) -> str:
    """The first line of what an exception says, or its type if it says nothing."""
    return textwrap.shorten((str(error).strip() or type(error).__name__).splitlines()[0], 200, placeholder=" ...")


def need_lab() -> None:
    """End a command in one line where what `pip install '.[lab]'` brings is missing."""
    if missing := [name for name in LAB if importlib.util.find_spec(name) is None]:
        print(f"not installed: {', '.join(missing)}; in a clone, `pip install '.[lab]'`", file=sys.stderr)
        raise SystemExit(2)


def end_at_ctrl_c() -> None:
    """Until `raise_at_ctrl_c`, Ctrl-C ends the process at once and without a traceback: for the seconds in which torch is imported."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def raise_at_ctrl_c() -> None:
    """Ctrl-C is a KeyboardInterrupt again."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def is_too_large(error: Exception) -> bool:
    """Whether memory could not hold what was asked for, or a number its type."""
    said = ("not enough memory", "allocate", "bad_alloc", "out of memory", "overflow", "too large")
    return isinstance(error, (MemoryError, OverflowError)) or any(words in str(error).lower() for words in said)


def command(main: Callable[[], Any]) -> None:
    """Run an experiment's `main` as a command: exit code 0 unless something went wrong; a LabError is one line on stderr.

    A claim that does not hold is a result. Only a verdict with `MUST_HOLD`, of a task and not of a claim, makes the code 1; a `main` that
    returns a number returns the code.
    """
    from cnn425.lab.progress import is_first, never_silent  # which needs rich; errors are also raised where torch is alone

    raise_at_ctrl_c()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name that the terminal cannot show is no reason to end
    try:
        with never_silent():
            verdict = main()
    except LabError as error:
        if not isinstance(error, StoppedError) or is_first():
            print(error, file=sys.stderr, flush=True)
        raise SystemExit(error.code) from None
    except BrokenPipeError:  # `... | head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except OSError as error:
        print(f"stopped: {sentence(error)}", file=sys.stderr, flush=True)
        raise SystemExit(1) from None
    except (MemoryError, OverflowError, RuntimeError, ValueError) as error:
        if not is_too_large(error):
            raise
        print(f"stopped: a number in these options is too large for the memory or for its type: {first_line(error)}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print("stopped by Ctrl-C", file=sys.stderr, flush=True)
        raise SystemExit(130) from None
    if isinstance(verdict, int):
        raise SystemExit(verdict)
    raise SystemExit(1 if getattr(verdict, "MUST_HOLD", False) and not verdict.holds else 0)
