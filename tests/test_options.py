from dataclasses import dataclass
from pathlib import Path

import pytest

from cnn425.lab.errors import LabError
from cnn425.lab.options import Options, as_words, difference, digest, meaning, parse


@dataclass(frozen=True)
class More(Options):
    noise: float = 0.5


def test_words_become_options():
    options = parse(More, ["--lr", "0.1", "--layers", "torch", "--noise", "0", "--compile", "--log-dir", "a/b"], "test")
    assert (options.lr, options.layers, options.noise, options.compile, options.log_dir) == (0.1, "torch", 0.0, True, Path("a/b"))


def test_digest_changes_with_meaning_and_not_with_place():
    base = digest(meaning(More()))
    assert base == digest(meaning(More(log_dir=Path("x"), checkpoint_seconds=1)))
    for change in ({"lr": 0.1}, {"seed": 1}, {"noise": 0.1}, {"device": "cuda"}, {"threads": 2}, {"amp": "bf16"}):
        assert base != digest(meaning(More(**change))), change


def test_difference_names_what_changed():
    assert difference(meaning(More()), meaning(More(lr=0.2, batch_size=3))) == "--batch-size 64 -> 3, --lr 0.005 -> 0.2"


def test_words_are_plain():
    assert as_words(More(log_dir=Path("x")))["log_dir"] == "x"


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["--epochs", "-1"], "--epochs is -1"),
        (["--batch-size", "0"], "at least 1"),
        (["--lr", "0"], "must be positive"),
        (["--lr", "nan"], "positive"),
    ],
)
def test_numbers_that_mean_nothing_are_refused(words, match):
    with pytest.raises(LabError, match=match):
        parse(Options, words, "test")
