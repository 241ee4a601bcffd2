"""Errors a user can do something about: one sentence each, printed without a traceback."""

import contextlib
import errno
import io
import os
import signal
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


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
        errno.EACCES: "no permission to write there",
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


def first_line(error: BaseException) -> str:
    """The first line of what an exception says, or its type if it says nothing."""
    return textwrap.shorten((str(error).strip() or type(error).__name__).splitlines()[0], 200, placeholder=" ...")


def command(main: Callable[[], Any]) -> None:
    """Run an experiment's `main` as a command: exit code 0 unless something went wrong; a LabError is one line on stderr.

    A claim that does not hold is a result. Only a verdict with `MUST_HOLD`, of a task and not of a claim, makes the code 1.
    """
    from cnn425.lab.progress import is_first, never_silent  # which needs rich; errors are also raised where torch is alone

    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # set while the experiment was imported
        signal.signal(signal.SIGINT, signal.default_int_handler)
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
    except KeyboardInterrupt:
        print("stopped by Ctrl-C", file=sys.stderr, flush=True)
        raise SystemExit(130) from None
    raise SystemExit(1 if getattr(verdict, "MUST_HOLD", False) and not verdict.holds else 0)
