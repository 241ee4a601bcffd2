"""Errors a user can do something about: one sentence each, printed without a traceback."""

import errno
import os
import sys
from collections.abc import Callable
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


def first_line(error: BaseException) -> str:
    """The first line of what an exception says, or its type if it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def command(main: Callable[[], Any]) -> None:
    """Run an experiment's `main` as a command: exit code 0 if its verdict holds, else 1; a LabError is one line on stderr."""
    try:
        verdict = main()
    except LabError as error:
        if not isinstance(error, StoppedError) or os.environ.get("RANK", "0") == "0":
            print(error, file=sys.stderr, flush=True)
        raise SystemExit(error.code) from None
    except OSError as error:
        print(f"stopped: {sentence(error)}", file=sys.stderr, flush=True)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print("stopped by Ctrl-C", file=sys.stderr, flush=True)
        raise SystemExit(130) from None
    raise SystemExit(0 if getattr(verdict, "holds", True) else 1)
