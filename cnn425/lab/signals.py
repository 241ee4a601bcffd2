"""Ctrl-C and SIGTERM: the first finishes the step, saves and ends the run; the second ends the process at once.

A signal that was ignored when the run started (`nohup`, a job in the background of a script) stays ignored.

Under torchrun one Ctrl-C arrives twice, from the terminal and from torchrun, which hands it on; and its death is told once for each of its
threads. So there a signal that follows at once is taken for the echo of the first, until the process has said its last line and ended.
"""

import os
import signal
import threading
import time
from types import FrameType
from typing import Any

from cnn425.lab.group import under_torchrun

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
ECHO_SECONDS = 2.0


class Signals:
    """While this context lasts, a signal only sets `caught`, so that the step is finished; a second one ends the process at once."""

    def __init__(self) -> None:
        self.caught: signal.Signals | None = None
        self.insisting = 0.0  # seconds on the monotonic clock, from which on a signal is a second one
        self.before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():
            before = {number: signal.getsignal(number) for number in CODES}
            self.before = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}
            for number in self.before:  # None: the handler is not Python's and could not be put back
                signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        if self.caught and under_torchrun():
            return  # an echo must not kill the process before it has said where it stopped
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self.caught and time.monotonic() >= self.insisting:
            os._exit(CODES[signal.Signals(number)])
        if not self.caught:
            self.caught = signal.Signals(number)
            self.insisting = time.monotonic() + (ECHO_SECONDS if under_torchrun() else 0.0)
