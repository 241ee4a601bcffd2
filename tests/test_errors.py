import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from cnn425.lab.errors import LabError, command, first_line, sentence


class Verdict(NamedTuple):
    holds: bool


class Task(NamedTuple):
    MUST_HOLD = True
    holds: bool


def raising(error):
    def main():
        raise error

    return main


@pytest.mark.parametrize(
    ("main", "code", "words"),
    [
        (lambda: Verdict(True), 0, ""),
        (lambda: Verdict(False), 0, ""),
        (lambda: Task(True), 0, ""),
        (lambda: Task(False), 1, ""),
        (raising(LabError("put it there", 2)), 2, "put it there\n"),
        (raising(OSError(errno.ENOSPC, "x", "a.csv")), 1, "stopped: a.csv: the disk is full\n"),
        (raising(KeyboardInterrupt()), 130, "stopped by Ctrl-C\n"),
    ],
    ids=["claim holds", "claim fails", "task done", "task fails", "one sentence", "disk", "Ctrl-C"],
)
def test_exit_code_and_one_line(main, code, words, capsys):
    with pytest.raises(SystemExit) as end:
        command(main)
    assert end.value.code == code
    assert capsys.readouterr().err == words


ASCII = {"PYTHONIOENCODING": "ascii"}
C = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}


def started(name, *words, **around):
    command = [sys.executable, "-m", f"experiments.{name}", *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1], env={**os.environ, **around})


@pytest.mark.parametrize(("name", "around"), [("mnist", ASCII), ("mnist", C), ("counting", C)], ids=["run", "run, C", "study, C"])
def test_a_name_that_the_output_cannot_show_is_escaped(name, around, tmp_path):
    words = ["--dataset", "patterns", "--examples", "96", "--model", "linear"] if name == "mnist" else []
    run = started(name, *words, "--log-dir", str(tmp_path / "läufe"), **around)
    assert run.returncode == 0, run.stderr
    assert "ufe" in run.stdout
    assert (tmp_path / "läufe/options.json").exists()


@pytest.mark.parametrize("words", [["--help"], ["--dry-run"]], ids=" ".join)
def test_a_log_file_has_no_escape_codes(words):
    run = started("counting", *words, FORCE_COLOR="1", TTY_COMPATIBLE="1", CLICOLOR_FORCE="1", TERM="xterm-256color")
    assert run.returncode == 0, run.stderr
    assert "\x1b" not in run.stdout + run.stderr


def test_bugs_are_not_hidden():
    with pytest.raises(ZeroDivisionError):
        command(lambda: 1 / 0)


@pytest.mark.parametrize(("number", "words"), [(errno.EROFS, "read-only"), (errno.EACCES, "no permission"), (errno.EPIPE, "Broken pipe")])
def test_what_the_system_says(number, words):
    import os

    assert words in sentence(OSError(number, os.strerror(number)))


def test_first_line_is_never_empty():
    assert first_line(EOFError()) == "EOFError"
    assert first_line(ValueError("one\ntwo")) == "one"
