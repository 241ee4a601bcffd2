"""What a user reads while something runs: lines, tables, a bar on a terminal or a plain line every few seconds anywhere else.

Escape codes go to terminals only, whatever FORCE_COLOR says: a log file is not read by a terminal.
"""

import contextlib
import math
import os
import shlex
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from cnn425.lab.errors import end_at_ctrl_c

T = TypeVar("T")

QUIET_SECONDS = 2.0  # between two plain lines; after two minutes, five times as many

claimed: set[str] = set()  # what was said before the imports
watchers: list[threading.Event] = []  # who watches since before the imports
spoke: float | None = None  # when something was last said
begun = ""  # what stands in a line that was not ended
bars: list[Progress] = []  # what is drawn now, on a terminal


def is_first() -> bool:
    """Whether this is the only process or the first of several: the one that prints and draws."""
    return os.environ.get("RANK", "0") == "0"


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
    """One line for the user, from one process; a line that was begun is begun again below it."""
    if is_first():
        write(f"\n{line}\n{begun}" if begun else f"{line}\n")


def opening(doc: str | None) -> None:
    """Say what is claimed, the first line of a docstring; what `python -m` said before torch was imported is not said again."""
    words = (doc or "").partition("\n")[0]
    if words not in claimed:
        say(f"Claim: {words}\n")
    claimed.clear()


def opening_before_imports(words: Sequence[str], doc: Callable[[], str | None]) -> None:
    """The same, before the imports, which take seconds; not if these words of a command line ask for help, or for something to read on."""
    end_at_ctrl_c()
    if not {"-h", "--help", "--json", "--markdown", "--lap"} & {*words}:
        found = doc() or ""
        with contextlib.suppress(OSError):  # a full disk: what is said next says so
            opening(found)
        claimed.add(found.partition("\n")[0])
        watchers.append(watch())


def write(text: str) -> None:
    """Text to standard output; characters that its encoding lacks are written as escapes, as on standard error."""
    global spoke, begun
    spoke, begun = time.monotonic(), text.rpartition("\n")[2]
    if sys.stdout is None:  # closed by whoever started this
        return
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


def watch() -> threading.Event:
    """After a first line, another one says that work goes on whenever nothing was said for two seconds; the event ends it."""
    ended, began = threading.Event(), time.monotonic()

    def speak() -> None:
        while not ended.wait(QUIET_SECONDS / 8):
            pause = QUIET_SECONDS * (5 if time.monotonic() - began > 120 else 1)
            if spoke is not None and not bars and time.monotonic() - spoke > pause - QUIET_SECONDS / 4:
                with contextlib.suppress(OSError, ValueError):  # nobody reads on; whoever works will meet that too
                    say(f"still running, {time.monotonic() - began:.0f} s")

    threading.Thread(target=speak, daemon=True).start()
    return ended


@contextlib.contextmanager
def never_silent() -> Iterator[None]:
    """While it lasts, somebody watches: the one who was called before the imports, or a new one."""
    ended = watchers.pop() if watchers else watch()
    try:
        yield
    finally:
        ended.set()


class Reporter:
    """Tells how far something has come; a context manager, so that the terminal is left clean on any exit."""

    def __init__(self, title: str, total: int, done: int = 0, silent: bool = False):
        self.title, self.total, self.done, self.silent = title, total, done, silent
        self.console = console()
        self.began = self.spoke = time.monotonic()
        self.bar: Progress | None = None
        if self.console.is_terminal and not silent:
            columns = BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.fields[note]}")
            self.bar = Progress(TextColumn("{task.description}"), *columns, console=self.console, transient=True)
            self.task = self.bar.add_task(title, total=total, completed=done, note="")

    def __enter__(self) -> "Reporter":
        if self.bar:
            self.bar.start()
            bars.append(self.bar)
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar:
            self.bar.stop()
            bars.remove(self.bar)

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
