import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from cnn425.lab.errors import LabError, command, first_line, sentence

TOO_LARGE = "stopped: a number in these options is too large for the memory or for its type: "


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
        (lambda: 3, 3, ""),
        (lambda: torch.empty(2**60), 1, f"{TOO_LARGE}[enforce fail at alloc_cpu.cpp"),
        (lambda: torch.empty(2**40, 2**40), 1, f"{TOO_LARGE}"),
        (lambda: bytearray(2**60), 1, f"{TOO_LARGE}MemoryError\n"),
        (lambda: 1e300**2, 1, f"{TOO_LARGE}(34, "),
    ],
    ids=["claim holds", "fails", "task done", "fails", "sentence", "disk", "Ctrl-C", "code", "memory", "elements", "bytes", "number"],
)
def test_exit_code_and_one_line(main, code, words, capsys):
    with pytest.raises(SystemExit) as end:
        command(main)
    assert end.value.code == code
    said = capsys.readouterr().err
    assert said.startswith(words)
    assert said.count("\n") == bool(words)


ASCII = {"PYTHONIOENCODING": "ascii"}
C = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}


COMMANDS = """
import os, runpy, sys
from experiments import counting, mnist
while len(sys.argv) > 1:
    child, end = os.fork(), sys.argv.index("then")  # all is imported once
    if child == 0:
        name, *sys.argv[1:] = sys.argv[1:end]
        runpy.run_module(name, run_name="__main__")
    assert os.waitpid(child, 0)[1] == 0
    del sys.argv[1 : end + 1]
"""


def started(*commands, **around):
    """Several commands, `(module, words)`, in the same surroundings."""
    words = [word for command in commands for word in (*command, "then")]
    run = [sys.executable, "-W", "ignore", "-c", COMMANDS, *words]
    done = subprocess.run(run, capture_output=True, text=True, cwd=Path(__file__).parents[1], env={**os.environ, **around})
    assert done.returncode == 0, done.stderr
    return done


DIGITS = ("experiments.mnist", "--dataset", "patterns", "--examples", "96", "--model", "linear")


@pytest.fixture(scope="module")
def in_ascii(tmp_path_factory):
    """Where Python writes ASCII and everybody asks for colours."""
    folder = tmp_path_factory.mktemp("ascii") / "läufe"
    commands = [("experiments.counting", word) for word in ("--help", "--dry-run")]
    colours = {"FORCE_COLOR": "1", "TTY_COMPATIBLE": "1", "CLICOLOR_FORCE": "1", "TERM": "xterm-256color"}
    return started(*commands, (*DIGITS, "--log-dir", str(folder)), **ASCII, **colours), folder


def test_a_name_that_the_output_cannot_show_is_escaped(in_ascii):
    run, folder = in_ascii
    assert "ufe" in run.stdout
    assert (folder / "options.json").exists()


def test_a_name_that_the_output_cannot_show_is_escaped_in_the_c_locale(tmp_path):
    run = started(
        *((*words, "--log-dir", str(tmp_path / name)) for words, name in ((DIGITS, "läufe"), (("experiments.counting",), "prüfung"))), **C
    )
    assert "ufe" in run.stdout
    assert "fung" in run.stdout
    assert (tmp_path / "läufe/options.json").exists()
    assert (tmp_path / "prüfung/options.json").exists()


def test_a_log_file_has_no_escape_codes(in_ascii):
    run, _ = in_ascii
    assert "--log-dir" in run.stdout
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


def test_ctrl_c_is_one_line_where_it_killed_the_process_while_torch_was_imported():
    code = """
import os, signal
from cnn425.lab.errors import command
signal.signal(signal.SIGINT, signal.SIG_DFL)
command(lambda: os.kill(os.getpid(), signal.SIGINT))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert (run.returncode, run.stderr) == (130, "stopped by Ctrl-C\n")


def test_nobody_reads_on():
    """`python -m experiments | head` ends without a word."""
    words = "import sys; from cnn425.lab.errors import command; command(lambda: print('x' * 10**6, flush=True))"
    with subprocess.Popen([sys.executable, "-c", words], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1
