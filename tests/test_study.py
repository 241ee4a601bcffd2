"""Studies: whole folders, one curve however often they are run, nothing left of a dry run, nothing taken from a training run."""

import json
from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cnn425.lab import figures
from cnn425.lab.errors import LabError
from cnn425.lab.folder import locked
from cnn425.lab.study import StudyOptions, at_least, parse, study


@dataclass(frozen=True)
class DepthOptions(StudyOptions):
    """A study of depth."""

    depth: int = 3

    def __post_init__(self):
        at_least(self, threads=0, depth=1)


class Verdict(NamedTuple):
    holds: bool
    slope: float
    words: str


def run(folder, value=0.5, **options):
    with study("a-study", DepthOptions(log_dir=folder, **options)) as record:
        record.curve("error", [1, 2], [1.0, value])
        record.figure("picture", figures.figure(1, 1))
        return record.verdict(Verdict(True, -1.0, "text"))


def scalars(folder, tag):
    events = EventAccumulator(str(folder)).Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def test_all_that_is_handed_in_is_there(tmp_path, capsys):
    verdict = run(tmp_path)
    assert verdict == (True, -1.0, "text")
    assert json.loads((tmp_path / "verdict.json").read_text()) == {"experiment": __name__, "sentence": "", **verdict._asdict()}
    assert json.loads((tmp_path / "options.json").read_text())["options"]["depth"] == 3
    assert scalars(tmp_path, "error") == [(1, 1.0), (2, 0.5)]
    assert scalars(tmp_path, "verdict/slope") == [(0, -1.0)]
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert f"figure: {tmp_path / 'picture.png'}" in printed
    assert f"tensorboard --logdir {tmp_path}" in printed


def test_a_second_study_replaces_the_first(tmp_path):
    run(tmp_path)
    run(tmp_path, value=0.25)
    assert scalars(tmp_path, "error") == [(1, 1.0), (2, 0.25)]


def test_other_options_other_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for depth in (3, 4, 4):
        run(None, depth=depth)
    assert len(list((tmp_path / "runs" / "a-study").iterdir())) == 2


def test_a_dry_run_leaves_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run(tmp_path / "folder", dry_run=True)
    assert not list(tmp_path.iterdir())
    assert capsys.readouterr().out == "\nHolds.\n"


def test_a_training_run_is_not_overwritten(tmp_path):
    (tmp_path / "metrics.csv").write_text("step\n")
    with pytest.raises(LabError, match="holds a training run"):
        run(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} <= {"metrics.csv", ".lock"}


MINE = (
    "events.txt",
    "events.out.tfevents.1700000000.host",
    "events.out.tfevents.host",
    ".draft.part",
    "options.json",
    "verdict.json",
    "picture.png",
)


@pytest.mark.parametrize("name", MINE)
def test_a_folder_that_holds_a_file_is_left_alone(name, tmp_path, capsys):
    (tmp_path / name).write_text("mine")
    for value in (0.5, 0.25):
        run(tmp_path, value)
    assert [path.read_text() for path in tmp_path.iterdir() if path.is_file()] == ["mine"]
    (inside,) = (path for path in tmp_path.iterdir() if path.is_dir())
    assert scalars(inside, "error") == [(1, 1.0), (2, 0.25)]
    printed = capsys.readouterr().out
    assert f"figure: {inside / 'picture.png'}" in printed
    assert f"tensorboard --logdir {inside}" in printed


def test_files_that_came_later_are_left_alone_or_the_study_stops(tmp_path, capsys):
    run(tmp_path)
    capsys.readouterr()
    later = [name for name in MINE if name not in ("options.json", "verdict.json", "picture.png")] + ["other.png"]
    for name in later:
        (tmp_path / name).write_text("mine")
    run(tmp_path)
    assert {(tmp_path / name).read_text() for name in later} == {"mine"}
    assert "other.png" not in capsys.readouterr().out
    with study("a-study", DepthOptions(log_dir=tmp_path)) as record, pytest.raises(LabError, match=r"other.png was not made by this run"):
        record.figure("other", figures.figure(1, 1))


def test_a_study_does_not_replace_a_run_nor_a_run_a_study(tmp_path):
    with locked(tmp_path):
        pass
    with pytest.raises(LabError, match="holds a run, whose files a study would replace"):
        run(tmp_path)


@pytest.mark.parametrize("written", ["~/place", "$HOME/place", "~/place/", "place", "./place"])
def test_the_folder_may_be_written_as_people_do_and_the_process_may_move(written, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    options = parse(DepthOptions, [f"--log-dir={written}"])
    (tmp_path / "elsewhere").mkdir()
    with study("a-study", options) as record:
        monkeypatch.chdir(tmp_path / "elsewhere")
        record.figure("picture", figures.figure(1, 1))
        record.verdict(Verdict(True, -1.0, "text"))
    assert (tmp_path / "place/picture.png").exists()
    assert not list((tmp_path / "elsewhere").iterdir())
    assert {path.name for path in tmp_path.iterdir()} == {"place", "elsewhere"}


def test_the_random_state_and_threads_outside_are_left_as_they_were(tmp_path):
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    with study("a-study", DepthOptions(log_dir=tmp_path, threads=1)):
        torch.manual_seed(7)
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)


def test_options_are_read_and_bad_ones_are_one_sentence():
    assert parse(DepthOptions, ["--depth", "5", "--full"]).depth == 5
    with pytest.raises(LabError, match="--depth is 0; it must be at least 1"):
        parse(DepthOptions, ["--depth", "0"])
    with pytest.raises(LabError, match="--threads is -1"):
        parse(DepthOptions, ["--threads", "-1"])
