import json
import random
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from cnn425.lab.errors import LabError
from cnn425.lab.options import Options, as_words, changed, difference, digest, meaning, parse, run_name


@dataclass(frozen=True)
class More(Options):
    noise: float = 0.5


def test_words_become_options():
    options = parse(More, ["--lr", "0.1", "--layers", "torch", "--noise", "0", "--compile", "--log-dir", "a/b"])
    assert (options.lr, options.layers, options.noise, options.compile, options.log_dir) == (0.1, "torch", 0.0, True, Path("a/b"))


@pytest.mark.parametrize("written", ["~/a/b", "~/a/b/", "$HOME/a/b", "${HOME}//a/./b"])
def test_paths_are_taken_as_the_shell_takes_them(written, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert parse(More, [f"--log-dir={written}"]).log_dir == tmp_path / "a/b"
    kept(tmp_path / "run", More(lr=0.3))
    assert parse(More, ["--resume", "~/run/", "--log-dir", "$HOME/run"]).lr == 0.3


@pytest.mark.parametrize("written", ["a$b", "a~b", "~nobody-of-this-name/x", "$NOBODY/x", "käse", "a b"])
def test_what_the_shell_leaves_alone_is_left_alone(written, monkeypatch):
    for name in ("b", "NOBODY"):
        monkeypatch.delenv(name, raising=False)
    assert parse(More, ["--log-dir", written]).log_dir == Path(written)


def test_reading_options_draws_no_random_number():
    before = random.getstate()
    for _ in range(20):
        parse(More, ["--lr", "0.1"])
    assert random.getstate() == before


def test_digest_changes_with_meaning_and_not_with_place():
    base = digest(meaning(More()))
    assert base == digest(meaning(More(log_dir=Path("x"), checkpoint_seconds=1)))
    for change in ({"lr": 0.1}, {"seed": 1}, {"noise": 0.1}, {"device": "cuda"}, {"threads": 2}, {"amp": "bf16"}):
        assert base != digest(meaning(More(**change))), change


def test_a_run_is_called_by_what_differs():
    assert run_name(More(), "conv") == "conv-custom-seed-0"
    assert run_name(More(layers="torch", seed=3, lr=0.1, compile=True, log_dir=Path("x")), "conv") == "conv-torch-seed-3-lr-0.1-compile"
    odd = run_name(More(device="cuda:1"), "conv")
    assert re.fullmatch(r"conv-custom-[0-9a-f]{8}", odd), "what makes no folder's name is told apart by a digest"
    assert changed(More(lr=0.1)) == {"lr": 0.1}


def test_difference_names_what_changed():
    assert difference(meaning(More()), meaning(More(lr=0.2, batch_size=3))) == "--batch-size 64 -> 3, --lr 0.005 -> 0.2"


def test_words_are_plain():
    assert as_words(More(log_dir=Path("x")))["log_dir"] == "x"


def kept(folder, options):
    folder.mkdir(exist_ok=True)
    (folder / "options.json").write_text(json.dumps({"options": as_words(options)}))
    return str(folder)


def test_resume_brings_the_options_of_the_run(tmp_path):
    begun = More(lr=0.3, noise=0.1, compile=True, log_dir=Path("elsewhere"), log_every=7)
    options = parse(More, ["--resume", kept(tmp_path / "run", begun)])
    assert meaning(options) == meaning(begun)
    assert options.log_dir == tmp_path / "run", "a run folder may be moved"


def test_resume_with_another_option_shows_the_difference_later(tmp_path):
    options = parse(More, ["--resume", kept(tmp_path / "run", More(lr=0.3)), "--seed", "4", "--checkpoint-seconds", "1"])
    assert (options.lr, options.seed, options.checkpoint_seconds) == (0.3, 4, 1.0)


def test_resume_of_nothing_is_one_sentence(tmp_path):
    with pytest.raises(LabError, match="there is no run to go on with"):
        parse(More, ["--resume", str(tmp_path / "none")])
    (tmp_path / "options.json").write_text("{}")
    with pytest.raises(LabError, match="is not what a run writes"):
        parse(More, ["--resume", str(tmp_path)])
    with pytest.raises(LabError, match=r"another experiment \(--noise is unknown here"):
        parse(Options, ["--resume", kept(tmp_path / "run", More())])
    with pytest.raises(LabError, match="name two run folders"):
        parse(More, ["--resume", kept(tmp_path / "run", More()), "--log-dir", "other"])


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["--epochs", "-1"], "--epochs is -1"),
        (["--batch-size", "0"], "at least 1"),
        (["--lr", "0"], "must be positive"),
        (["--lr", "nan"], "positive"),
        (["--clip", "-1"], "--clip is -1.0; it must be at least 0"),
        (["--checkpoint-seconds", "nan"], "--checkpoint-seconds is nan"),
    ],
)
def test_numbers_that_mean_nothing_are_refused(words, match):
    with pytest.raises(LabError, match=match):
        parse(Options, words)


@pytest.mark.parametrize("seed", ["4294967296", "-99999999999999999999"])
def test_a_seed_that_no_generator_takes_is_one_sentence(seed):
    with pytest.raises(LabError, match=rf"^--seed is {seed}; it must lie between -4294967295 and 4294967295$"):
        parse(More, ["--seed", seed])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--threads", "1000000"), "--threads is 1000000; it must be at most 1024"),
        (("--lr", "inf"), "--lr is inf; a learning rate must be positive and finite"),
        (("--lr", "1e300"), r"--lr is 1e\+300; it must lie between -1e\+30 and 1e\+30"),
        (("--noise", "inf"), r"--noise is inf; it must lie between -1e\+30 and 1e\+30"),
        (("--epochs", "4294967296"), "--epochs is 4294967296; it must lie between -4294967295 and 4294967295"),
        (("--warmup", "1"), "--warmup is 1.0; it must be more than 0 and less than 1"),
    ],
    ids=str,
)
def test_numbers_out_of_range_are_one_sentence(words, message):
    with pytest.raises(LabError, match=f"^{message}$"):
        parse(More, words)


@pytest.mark.parametrize("options", [5, [], {}, {"epochs": "x"}, {"seed": "mean of 2"}, {"lr": None}, {"compile": 3}], ids=str)
def test_options_of_a_run_that_somebody_changed_are_one_sentence(tmp_path, options):
    (tmp_path / "options.json").write_text(json.dumps({"options": options}))
    with pytest.raises(LabError, match="is not what a run writes"):
        parse(More, ["--resume", str(tmp_path)])
