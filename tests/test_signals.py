import os
import signal
import subprocess
import sys

import pytest

from cnn425.lab.signals import Signals

INSISTING = """
import os, signal
from cnn425.lab.signals import Signals
with Signals() as signals:
    os.kill(os.getpid(), signal.{name})
    assert signals.caught == signal.{name}
    print("first one was only noted", flush=True)
    os.kill(os.getpid(), signal.{name})
    print("never", flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_first_signal_is_noted_and_handlers_come_back(number):
    before = signal.getsignal(number)
    with Signals() as signals:
        assert signals.caught is None
        os.kill(os.getpid(), number)
        assert signals.caught == number
    assert signal.getsignal(number) == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_was_ignored_stays_ignored(number):
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with Signals() as signals:
            for _ in range(2):
                os.kill(os.getpid(), number)
            assert signals.caught is None
        assert signal.getsignal(number) is signal.SIG_IGN
    finally:
        signal.signal(number, before)


def test_a_run_started_with_a_signal_ignored_ends_undisturbed():
    code = INSISTING.format(name="SIGINT").replace("assert signals.caught == signal.SIGINT", "assert signals.caught is None")
    done = subprocess.run(["bash", "-c", 'trap \'\' INT; exec "$0" -c "$1"', sys.executable, code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def torchrun(monkeypatch):
    """As if torchrun had started this process; the handlers come back after the test."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "test")
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_under_torchrun_an_echo_does_not_end_a_process_that_says_where_it_stopped(torchrun):
    with Signals():
        os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)  # would end the tests


def test_under_torchrun_the_echo_of_a_signal_does_not_insist(torchrun, monkeypatch):
    with Signals() as signals:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.caught == signal.SIGINT
        ended = []
        monkeypatch.setattr(os, "_exit", ended.append)
        monkeypatch.setattr(signals, "insisting", 0.0)  # the two seconds are over
        os.kill(os.getpid(), signal.SIGTERM)
        assert ended == [143]


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_second_signal_ends_the_process_at_once(name, code):
    done = subprocess.run([sys.executable, "-c", INSISTING.format(name=name)], capture_output=True, text=True)
    assert done.returncode == code
    assert done.stdout == "first one was only noted\n"
