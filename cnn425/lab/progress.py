"""What a user reads while something runs: lines, tables, a bar on a terminal or a plain line every few seconds anywhere else.

Escape codes go to terminals only, whatever FORCE_COLOR says: a log file is not read by a terminal.
"""

import contextlib
import math
import shlex
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from cnn425.lab.group import is_first

T = TypeVar("T")

QUIET_SECONDS = 2.0  # between two plain lines; after two minutes, five times as many


def console(width: int | None = None) -> Console:
    """Standard output, as a terminal if it is one."""
    return Console(force_terminal=bool(getattr(sys.stdout, "isatty", bool)()), width=width)


def say_table(table: Any, width: int | None = None) -> None:
    """Print a table, by default as wide as the terminal; what does not fit goes on in the next line, no digit is left out."""
    out = console(width)
    table = table.__rich__() if hasattr(table, "__rich__") else table
    for column in table.columns:
        column.overflow = "fold"
    with out.capture() as drawn:
        out.print(table)
    write(drawn.get())


def say(line: str) -> None:
    """One line for the user, from one process."""
    if is_first():
        write(f"{line}\n")


def write(text: str) -> None:
    """Text to standard output; characters that its encoding lacks are written as escapes, as on standard error."""
    try:
        sys.stdout.write(text)
    except UnicodeEncodeError:
        encoding = sys.stdout.encoding
        sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))
    sys.stdout.flush()


def in_a_shell(path: Path) -> str:
    """A path as it is typed: relative to here if it is below, in quotes if it needs them."""
    return shlex.quote(str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path))


def module_of(kind: type) -> tuple[str, str]:
    """Name and docstring of the module that defines a class, also when that module runs as a command."""
    module = sys.modules[kind.__module__]
    spec = getattr(module, "__spec__", None)
    return (spec.name if spec else kind.__module__), module.__doc__ or ""


class Reporter:
    """Tells how far something has come; a context manager, so that the terminal is left clean on any exit."""

    def __init__(self, title: str, total: int, done: int = 0, silent: bool = False):
        self.title, self.total, self.done, self.silent = title, total, done, silent
        self.console = console()
        self.began = self.spoke = time.monotonic()
        self.bar: Progress | None = None
        if self.console.is_terminal and not silent:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
            )
            self.bar = Progress(*columns, console=self.console, transient=True)
            self.task = self.bar.add_task(title, total=total, completed=done, note="")

    def __enter__(self) -> "Reporter":
        if self.bar:
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar:
            self.bar.stop()

    def advance(self, note: str = "") -> None:
        """One more is done; `note` says how it goes."""
        self.done += 1
        if self.bar:
            self.bar.update(self.task, completed=self.done, note=note)
        elif time.monotonic() - self.spoke > QUIET_SECONDS * (5 if self.spoke - self.began > 120 else 1):
            self.say(f"{self.title}: {self.done} of {self.total}  {note}")
            self.spoke = time.monotonic()

    def say(self, line: str) -> None:
        """A line that stays."""
        if self.silent:
            return
        if self.bar:
            self.bar.console.print(line, highlight=False, soft_wrap=True, markup=False)
        else:
            write(f"{line}\n")


@contextlib.contextmanager
def compilation_told() -> Iterator[None]:
    """While it lasts, a line says when numba compiles loops, and how far it is: at a first start users wait for a minute."""
    try:
        from numba.core import event
    except ImportError:  # nothing will be compiled; the layers warn of it
        yield
        return

    class Told(event.Listener):
        """Counts the loops of this library and their parts, not those of others."""

        count, spoke = 0, -math.inf

        def on_start(self, started: Any) -> None:
            """Before one is compiled."""
            if not started.data["dispatcher"].py_func.__module__.startswith("cnn425."):
                return
            if time.monotonic() - self.spoke > QUIET_SECONDS / 2:
                say(f"compiling the layers' loops (once, kept on the disk): {self.count} parts done")
                self.spoke = time.monotonic()
            self.count += 1

        def on_end(self, ended: Any) -> None:
            """The next one is said when it starts."""

    with event.install_listener("numba:compile", Told()):
        yield


def watched(items: Iterable[T], title: str, total: int) -> Iterator[T]:
    """The items, with a progress bar while they last."""
    with Reporter(title, total) as reporter:
        for item in items:
            yield item
            reporter.advance()
