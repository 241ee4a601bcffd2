import contextlib
import io
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from numba.core import event
from rich.table import Table

from cnn425.lab import progress

ROOT = Path(__file__).parents[1]


def test_plain_lines_when_output_is_not_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(progress, "QUIET_SECONDS", -1.0)
    with progress.Reporter("training", 2) as reporter:
        reporter.advance("loss 1.0")
        reporter.say("a line that stays")
    assert capsys.readouterr().out == "training: 1 of 2  loss 1.0\na line that stays\n"


def test_short_work_is_not_reported(capsys):
    assert list(progress.watched(range(3), "quick", 3)) == [0, 1, 2]
    assert capsys.readouterr().out == ""


def test_silent_says_nothing(capsys):
    with progress.Reporter("training", 1, silent=True) as reporter:
        reporter.advance()
        reporter.say("unheard")
    assert capsys.readouterr().out == ""


def test_a_bar_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    with progress.Reporter("training", 2) as reporter:
        assert reporter.bar is not None
        reporter.advance("loss 0.5")
        reporter.say("[not markup]")
    assert "[not markup]" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["FORCE_COLOR", "TTY_COMPATIBLE", "CLICOLOR_FORCE"])
def test_no_escape_codes_where_no_terminal_is(name, monkeypatch, capsys):
    monkeypatch.setenv(name, "1")
    table = Table("[bold]one[/bold]", title="two")
    table.add_row("[red]three[/red]")
    progress.say_table(table)
    with progress.Reporter("training", 2) as reporter:
        assert reporter.bar is None
        reporter.advance()
    out = capsys.readouterr().out
    assert "three" in out
    assert "\x1b" not in out


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_characters_that_the_output_lacks_are_escaped(encoding):
    out = io.TextIOWrapper(io.BytesIO(), encoding)
    table = Table("±", title="läufe")
    with contextlib.redirect_stdout(out):
        progress.say("läufe/ж/\udcc3")
        progress.say_table(table)
    words = out.buffer.getvalue().decode(encoding)
    assert ("läufe" if encoding != "ascii" else r"l\xe4ufe") in words
    assert r"\udcc3" in words


def test_a_table_leaves_out_no_digit(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    table = Table(*"abcde")
    table.add_row(*["1,600,000,000"] * 5)
    progress.say_table(table)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 40
    assert sum(line.count("6") for line in lines) == 5


def test_without_the_compiler_there_is_nothing_to_tell(monkeypatch):
    monkeypatch.setitem(sys.modules, "numba.core", None)
    with progress.compilation_told():
        pass


def test_a_word_when_loops_are_compiled(capsys, monkeypatch):
    monkeypatch.setattr(progress, "QUIET_SECONDS", -2.0)
    with progress.compilation_told():
        for module in ("cnn425.kernels.pool", "somebody.elses", "cnn425.kernels.local"):
            loop = SimpleNamespace(py_func=SimpleNamespace(__module__=module))
            with event.trigger_event("numba:compile", data={"dispatcher": loop}):
                pass
    with event.trigger_event("numba:compile", data={"dispatcher": loop}):
        pass
    words = "compiling the layers' loops (once, kept on the disk)"
    assert capsys.readouterr().out == f"{words}: 0 parts done\n{words}: 1 parts done\n"


def test_a_command_that_says_nothing_says_that_it_is_running(capsys, monkeypatch):
    monkeypatch.setattr(progress, "QUIET_SECONDS", 0.1)
    progress.say("a first line")
    with progress.never_silent():
        time.sleep(1)
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "a first line"
    assert 2 < len(said) < 16
    assert all(re.fullmatch(r"still running, [01] s", line) for line in said[1:])
    time.sleep(0.5)
    assert capsys.readouterr().out == ""


def test_a_line_that_was_begun_is_begun_again_below_another(capsys):
    for words in ("layer  ", "1.0\n"):
        progress.write(words)
        progress.say("still running, 2 s")
    assert capsys.readouterr().out == "layer  \nstill running, 2 s\nlayer  1.0\nstill running, 2 s\n"


def test_the_claim_is_said_before_the_imports_and_once(tmp_path):
    """`python -m experiments.counting` and `python -m experiments counting`; with a module in torch's place that ends the program."""
    (tmp_path / "torch.py").write_text("raise SystemExit(3)")
    surroundings = {**os.environ, "PYTHONPATH": str(tmp_path)}
    for words in (["experiments.counting"], ["experiments", "counting"]):
        for more, code, count in (((), 3, 1), (("--help",), 3, 0)):
            ended = subprocess.run([sys.executable, "-m", *words, *more], env=surroundings, cwd=ROOT, capture_output=True, text=True)
            assert ended.returncode == code
            assert ended.stdout.count("Claim: Counting: ") == count
    ended = subprocess.run([sys.executable, "-m", "experiments.counting", "--dry-run"], cwd=ROOT, capture_output=True, text=True)
    assert ended.stdout.startswith("Claim: Counting: ")
    assert ended.stdout.count("Claim: ") == 1
