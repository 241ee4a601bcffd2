import errno
from typing import NamedTuple

import pytest

from cnn425.lab.errors import LabError, command, first_line, sentence


class Verdict(NamedTuple):
    holds: bool


def raising(error):
    def main():
        raise error

    return main


@pytest.mark.parametrize(
    ("main", "code", "words"),
    [
        (lambda: Verdict(True), 0, ""),
        (lambda: Verdict(False), 1, ""),
        (raising(LabError("put it there", 2)), 2, "put it there\n"),
        (raising(OSError(errno.ENOSPC, "x", "a.csv")), 1, "stopped: a.csv: the disk is full\n"),
        (raising(KeyboardInterrupt()), 130, "stopped by Ctrl-C\n"),
    ],
    ids=["claim holds", "claim fails", "one sentence", "disk", "Ctrl-C"],
)
def test_exit_code_and_one_line(main, code, words, capsys):
    with pytest.raises(SystemExit) as end:
        command(main)
    assert end.value.code == code
    assert capsys.readouterr().err == words


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
