"""Ctrl-C and SIGTERM: the first asks, the second insists."""

import os
import signal
import threading
from types import FrameType
from typing import Any

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}


class Signals:
    """While this context lasts, a signal only sets `caught`, so that the step is finished; a second one ends the process at once."""

    def __init__(self) -> None:
        self.caught: signal.Signals | None = None
        self.before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():
            self.before = {number: signal.signal(number, self._handle) for number in CODES}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self.caught:
            os._exit(CODES[signal.Signals(number)])
        self.caught = signal.Signals(number)
