"""The promise of the loop: stop it anywhere, run it again, and it ends with the same bits (scripts/fault_injection.py: with real kills)."""

import contextlib
import csv
import errno
import io
import itertools
import math
import os
import random
import signal
from dataclasses import replace
from pathlib import Path

import numpy
import pytest
import torch
from torch import nn

from cnn425.lab import checkpoint, loop, training
from cnn425.lab.board import event_files, scalars
from cnn425.lab.errors import LabError, StoppedError
from cnn425.lab.models import build
from cnn425.lab.options import Options
from cnn425.lab.pictures import Pictures, pattern_images

EXAMPLES = pattern_images(50, size=28, seed=0)
HELD_OUT = pattern_images(30, size=28, seed=1)
OPTIONS = Options(epochs=3, batch_size=16, layers="torch", log_every=1, checkpoint_seconds=1e9)  # 4 steps an epoch


def run(folder, options=OPTIONS, examples=EXAMPLES, model=None):
    words = io.StringIO()
    with contextlib.redirect_stdout(words):
        verdict = loop.train(options, model or build("linear", options.layers, 0, classes=3), examples, HELD_OUT, folder)
    return verdict, words.getvalue()


def outcome(folder):
    """All that must be the same to the bit: weights, optimiser, random states, metrics.csv, every point of every curve but the speed."""
    state = checkpoint.read(checkpoint.checkpoints(folder)[0])
    curves = [point for point in scalars(folder) if not point[0].startswith("speed")]
    random_states = [(s["torch"].tolist(), s["python"], s["numpy"][0], s["numpy"][1].tolist(), s["numpy"][2:]) for s in state["random"]]
    return state["model"], state["optimizer"], random_states, (folder / "metrics.csv").read_bytes(), curves


def assert_same(one, other):
    torch.testing.assert_close(one[:2], other[:2], rtol=0, atol=0)
    assert one[2:] == other[2:]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    run(folder)
    return outcome(folder)


class Killed(BaseException):
    """Stands for a kill -9: nothing in the loop catches it."""


@pytest.fixture
def kill_after(monkeypatch):
    """Let the process die after so many more steps, or not at all."""
    real, left = training.Training.step, [math.inf]

    def step(self, indices):
        if left[0] <= 0:
            raise Killed
        left[0] -= 1
        return real(self, indices)

    monkeypatch.setattr(training.Training, "step", step)
    return lambda steps: left.__setitem__(0, steps)


@pytest.mark.parametrize(
    ("steps", "seconds"),
    [(0, 1e9), (1, 1e9), (4, 1e9), (5, 1e9), (7, 1e9), (8, 1e9), (11, 1e9), (1, 0.0), (3, 0.0), (4, 0.0), (6, 0.0)],
    ids=lambda value: {1e9: "checkpoint per epoch", 0.0: "checkpoint per step"}.get(
        value if isinstance(value, float) else None, str(value)
    ),
)
def test_killed_after_any_step_it_ends_with_the_same_bits(steps, seconds, tmp_path, kill_after, uninterrupted):
    options = Options(**{**vars(OPTIONS), "checkpoint_seconds": seconds})
    kill_after(steps)
    with pytest.raises(Killed):
        run(tmp_path, options)
    kill_after(math.inf)
    run(tmp_path, options)
    assert_same(outcome(tmp_path), uninterrupted)


def test_killed_again_and_again(tmp_path, kill_after, uninterrupted):
    for steps in (6, 0, 3, 2, 1, 5):
        kill_after(steps)
        with contextlib.suppress(Killed):
            run(tmp_path)
    kill_after(math.inf)
    run(tmp_path)
    assert_same(outcome(tmp_path), uninterrupted)


class Drawing(nn.Module):
    """An augmentation that draws from Python's and NumPy's generators, as many do."""

    def forward(self, x):
        return x + 0.1 * random.random() * numpy.random.rand() if self.training else x  # noqa: NPY002


def drawing_network():
    torch.manual_seed(1)
    return nn.Sequential(
        Drawing(), nn.Dropout(0.3), nn.Flatten(), nn.Linear(784, 20), nn.BatchNorm1d(20), nn.Dropout(0.5), nn.Linear(20, 3)
    )


def test_a_network_that_draws_gets_the_same_numbers_from_one_seed_and_others_from_another(tmp_path):
    for name in ("one", "two"):
        random.seed(), numpy.random.seed()  # noqa: NPY002
        run(tmp_path / name, model=drawing_network())
    assert_same(outcome(tmp_path / "one"), outcome(tmp_path / "two"))
    run(tmp_path / "three", Options(**{**vars(OPTIONS), "seed": 1}), model=drawing_network())
    assert outcome(tmp_path / "one")[2] != outcome(tmp_path / "three")[2]


@pytest.mark.parametrize("seconds", [1e9, 0.0], ids=["checkpoint per epoch", "checkpoint per step"])
@pytest.mark.parametrize("steps", [0, 2, 4, 7])
def test_a_network_that_draws_and_is_killed_ends_with_the_same_bits(steps, seconds, tmp_path, kill_after):
    run(tmp_path / "whole", model=drawing_network())
    kill_after(steps)
    options = Options(**{**vars(OPTIONS), "checkpoint_seconds": seconds})
    with pytest.raises(Killed):
        run(tmp_path / "killed", options, model=drawing_network())
    kill_after(math.inf)
    random.seed(), numpy.random.seed(), torch.seed()  # noqa: NPY002
    run(tmp_path / "killed", options, model=drawing_network())
    assert_same(outcome(tmp_path / "killed"), outcome(tmp_path / "whole"))


def test_pictures_and_graphs_draw_nothing(tmp_path, monkeypatch):
    """What is logged must not change what is learnt: Dropout would draw, BatchNorm would move its mean."""
    run(tmp_path / "logged", model=drawing_network())
    monkeypatch.setattr(loop.Loop, "log_pictures", lambda *_: None)
    monkeypatch.setattr(loop.Board, "graph", lambda *_: None)
    run(tmp_path / "plain", model=drawing_network())
    torch.testing.assert_close(outcome(tmp_path / "logged")[:2], outcome(tmp_path / "plain")[:2], rtol=0, atol=0)
    assert outcome(tmp_path / "logged")[2] == outcome(tmp_path / "plain")[2]


def test_files_of_others_survive_a_kill_and_a_resume(tmp_path, kill_after, uninterrupted):
    kill_after(6)
    with pytest.raises(Killed):
        run(tmp_path)
    kill_after(math.inf)
    names = (
        *("events.out.tfevents.1700000000.host", "events.out.tfevents.host", "events.md", "events.out.tfevents.0000000009.cnn425"),
        *(".draft.part", ".notes.12.part", "checkpoint-0000000099-0123456789abcdef.pt", "checkpoint-best.pt", "weights.png"),
    )
    for name in names:
        (tmp_path / name).write_text("mine")
    run(tmp_path)
    assert {(tmp_path / name).read_text() for name in names} == {"mine"}
    assert_same(outcome(tmp_path), uninterrupted)


def test_a_run_in_a_folder_of_files_has_a_folder_of_its_own_and_goes_on_there(tmp_path, kill_after, uninterrupted):
    for name in ("metrics.csv", "options.json", "checkpoint-0000000099-0123456789abcdef.pt"):
        (tmp_path / name).write_text("mine")
    kill_after(6)
    with pytest.raises(Killed):
        run(tmp_path)
    kill_after(math.inf)
    verdict, words = run(tmp_path)
    assert "resuming after step 4" in words
    assert verdict.folder.parent == tmp_path
    assert_same(outcome(verdict.folder), uninterrupted)
    assert {path.read_text() for path in tmp_path.iterdir() if path.is_file()} == {"mine"}
    with pytest.raises(LabError, match="is not the folder of a run"):
        run(tmp_path, Options(**{**vars(OPTIONS), "resume": tmp_path}))


def test_a_relative_folder_stays_where_it_was_when_the_process_moves(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    real = training.Training.step

    def step(self, indices):
        os.chdir(tmp_path / "elsewhere")
        return real(self, indices)

    monkeypatch.setattr(training.Training, "step", step)
    verdict, _ = run(Path("run"))
    assert verdict.folder == tmp_path / "run"
    assert len(checkpoint.checkpoints(tmp_path / "run")) == 2
    assert not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.parametrize("name", ["metrics.csv", "events", "checkpoint"])
def test_a_full_disk_names_the_file(name, tmp_path, monkeypatch):
    real = os.fsync

    def fsync(fd):
        path = os.readlink(f"/proc/self/fd/{fd}")
        if name in Path(path).name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(LabError, match=rf"stopped at step \d+: .*{name}.*: the disk is full; nothing is kept"):
        run(tmp_path / "run")


def test_no_point_of_a_curve_is_there_twice(tmp_path, kill_after):
    kill_after(7)
    with pytest.raises(Killed):
        run(tmp_path)
    kill_after(math.inf)
    run(tmp_path)
    points = [(tag, step) for tag, step, _ in scalars(tmp_path)]
    assert len(points) == len(set(points))
    assert len(event_files(tmp_path)) == 2
    assert [step for tag, step in points if tag == "loss/train"] == list(range(1, 13))


def test_damaged_newest_checkpoint_costs_time_not_bits(tmp_path, kill_after, uninterrupted):
    kill_after(9)
    with pytest.raises(Killed):
        run(tmp_path)
    kill_after(math.inf)
    newest = checkpoint.checkpoints(tmp_path)[0]
    newest.write_bytes(newest.read_bytes()[:-7])
    _, words = run(tmp_path)
    assert "is damaged" in words
    assert "resuming after step 4" in words
    assert_same(outcome(tmp_path), uninterrupted)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_finishes_the_step_saves_and_names_what_is_kept(number, code, tmp_path, monkeypatch, uninterrupted):
    real = training.Training.step

    def step(self, indices):
        if self.at.step == 5:
            signal.raise_signal(number)
        return real(self, indices)

    monkeypatch.setattr(training.Training, "step", step)
    with pytest.raises(StoppedError, match=f"stopped by {number.name} after step 6 .*kept .*checkpoint-0000000006") as stopped:
        run(tmp_path)
    assert stopped.value.code == code
    monkeypatch.setattr(training.Training, "step", real)
    run(tmp_path)
    assert_same(outcome(tmp_path), uninterrupted)


def test_a_signal_at_the_last_batch_of_an_epoch_keeps_its_gradient_curves(tmp_path, monkeypatch, uninterrupted):
    real = training.Training.step

    def step(self, indices):
        if self.at.step == 3:
            signal.raise_signal(signal.SIGINT)
        return real(self, indices)

    monkeypatch.setattr(training.Training, "step", step)
    with pytest.raises(StoppedError, match="after step 4"):
        run(tmp_path)
    monkeypatch.setattr(training.Training, "step", real)
    run(tmp_path)
    assert_same(outcome(tmp_path), uninterrupted)


def test_changed_options_are_refused_with_the_difference(tmp_path):
    run(tmp_path)
    with pytest.raises(LabError, match=r"other options \(--lr 0.005 -> 0.5, --seed 0 -> 1\)"):
        run(tmp_path, Options(**{**vars(OPTIONS), "lr": 0.5, "seed": 1}))


def test_another_number_of_threads_is_not_taken_from_the_surroundings(tmp_path, kill_after, uninterrupted):
    """The number of threads decides about the last bits, and whoever starts the command again may have another one."""
    kill_after(5)
    with pytest.raises(Killed):
        run(tmp_path)
    kill_after(math.inf)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        _, words = run(tmp_path)
        assert torch.get_num_threads() == threads + 1
    finally:
        torch.set_num_threads(threads)
    assert "warning" not in words
    assert checkpoint.read(checkpoint.checkpoints(tmp_path)[0])["surroundings"]["threads"] == threads
    assert_same(outcome(tmp_path), uninterrupted)


def test_another_version_of_torch_is_told(tmp_path, kill_after, monkeypatch):
    monkeypatch.setattr(torch, "__version__", "1.0.0+cpu")
    kill_after(5)
    with pytest.raises(Killed):
        run(tmp_path)
    kill_after(math.inf)
    monkeypatch.setattr(torch, "__version__", "1.0.1+cpu")
    assert "other surroundings (torch 1.0.0 -> 1.0.1)" in run(tmp_path)[1]


def test_a_finished_run_is_told_and_left_alone(tmp_path):
    first, _ = run(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    model = build("linear", "torch", 1, classes=3)
    again, words = run(tmp_path, model=model)
    assert "already finished" in words
    assert again == first
    assert {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


def test_a_loss_that_is_not_finite_stops_before_it_spoils_the_weights(tmp_path):
    images = EXAMPLES.images.clone()
    images[13] = math.nan
    with pytest.raises(
        LabError,
        match=r"stopped before step \d: the loss is nan, first seen in the images themselves, for examples .*13.*kept .*stop here again",
    ):
        run(tmp_path, examples=Pictures(images, EXAMPLES.labels, EXAMPLES.classes))
    state = checkpoint.read(checkpoint.checkpoints(tmp_path)[0])
    assert all(value.isfinite().all() for value in state["model"].values())
    assert 13 in state["order"]["generator"].new_tensor(batch_of(state)).tolist()


def batch_of(state):
    """The indices of the batch that a checkpoint would go on with."""
    from cnn425.lab.order import Order

    order = Order(50, 16, 0)
    order.load_state_dict(state["order"])
    return order.current().tolist()


def test_early_stopping_ends_when_the_held_out_loss_no_longer_falls(tmp_path):
    wild = Options(**{**vars(OPTIONS), "epochs": 50, "patience": 2, "lr": 1e-30, "schedule": "constant", "optimizer": "sgd"})
    verdict, words = run(tmp_path, wild)
    assert "stopped early, the held-out loss has not fallen for 2 epochs" in words
    assert verdict.steps == 3 * 4, "one epoch that is the best so far, two that are not better"


def test_no_epochs_are_an_evaluation(tmp_path):
    verdict, _ = run(tmp_path, Options(**{**vars(OPTIONS), "epochs": 0}))
    assert verdict.steps == 0
    assert 0 < verdict.held_out_loss < math.inf


def test_learning_rate_rises_and_falls_to_nothing(tmp_path):
    run(tmp_path)
    rates = [value for tag, _, value in scalars(tmp_path) if tag == "learning rate"]
    assert max(rates) == pytest.approx(0.005, rel=0.3)
    assert rates[-1] < rates[0] < max(rates)


def test_every_promised_tag_is_there(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(tmp_path, model=build("conv", "torch", 0, classes=3))
    events = EventAccumulator(str(tmp_path), size_guidance={"histograms": 0, "scalars": 0})
    events.Reload()
    tags = events.Tags()
    pairs = {
        "loss/train",
        "loss/held-out",
        "accuracy/train",
        "accuracy/held-out",
        "learning rate",
        "speed/images per second",
        "gradient norm/all",
    }
    assert pairs <= set(tags["scalars"])
    assert {"first layer/filters", "first layer/activations", "held-out/confusion"} <= set(tags["images"])
    assert {"weights/Conv2d_0/weight", "gradients/Conv2d_0/weight"} <= set(tags["histograms"]), "as the graph names them"
    assert len(events.Histograms("gradients/Conv2d_0/weight")) > 2, "a distribution of one step is blank"
    assert len(events.Scalars("gradient norm/Linear_7/bias")) > 2, "a curve"
    assert tags["graph"]
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == [], "no sub-runs"


def test_bf16_channels_last_and_clipping_reach_the_same_accuracy(tmp_path):
    base = {**vars(OPTIONS), "epochs": 6, "batch_size": 8, "lr": 0.01}
    reached = {}
    for name, change in {"plain": {}, "bf16": {"amp": "bf16"}, "channels last": {"channels_last": True}, "clip": {"clip": 1.0}}.items():
        model = build("conv", "custom", 0, classes=3, channels=(4, 8))
        reached[name] = run(tmp_path / name, Options(**{**base, **change, "layers": "custom"}), model=model)[0].held_out_accuracy
    assert min(reached.values()) >= max(reached.values()) - 0.1, reached


def test_the_callers_settings_come_back(tmp_path):
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    run(tmp_path, Options(**{**vars(OPTIONS), "threads": 2, "epochs": 1}))
    assert (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()) == (threads, deterministic)


def test_evaluation_is_that_of_the_whole_set(tmp_path):
    model = build("linear", "torch", 0, classes=3)
    verdict, _ = run(tmp_path, model=model)
    images, labels = HELD_OUT.batch(slice(None))
    with torch.no_grad():
        answers = model(images)
    assert verdict.held_out_loss == pytest.approx(nn.functional.cross_entropy(answers, labels).item(), rel=1e-5)
    assert verdict.held_out_accuracy == pytest.approx((answers.argmax(1) == labels).double().mean().item())


def test_early_stopping_counts_from_the_best_epoch_not_from_the_one_before(tmp_path):
    run(tmp_path, replace(OPTIONS, epochs=30, patience=3, lr=1.0, schedule="constant", optimizer="sgd"))
    rows = csv.DictReader((tmp_path / "metrics.csv").read_text().splitlines())
    _, *losses = [float(row["held_out_loss"]) for row in rows if row["held_out_loss"]]
    assert len(losses) == losses.index(min(losses)) + 1 + 3
    assert any(now < before for before, now in itertools.pairwise(losses[-3:])), "it falls again, but not below the best"


def test_after_a_resume_tensorboard_shows_every_point(tmp_path, kill_after):
    kill_after(7)
    with pytest.raises(Killed):
        run(tmp_path)
    kill_after(math.inf)
    run(tmp_path)
    assert [step for tag, step, _ in scalars(tmp_path) if tag == "loss/train"] == list(range(1, 13))


@pytest.mark.parametrize(("seconds", "step"), [(1e9, 4), (0.0, 6)])
def test_within_an_epoch_a_checkpoint_is_written_when_the_last_one_is_old(seconds, step, tmp_path, kill_after):
    kill_after(6)
    with pytest.raises(Killed):
        run(tmp_path, replace(OPTIONS, checkpoint_seconds=seconds))
    assert checkpoint.checkpoints(tmp_path)[0].name.startswith(f"checkpoint-{step:010d}")


def test_the_verdict_on_training_is_that_of_the_last_epoch(tmp_path):
    verdict, _ = run(tmp_path)
    rows = [row for row in csv.DictReader((tmp_path / "metrics.csv").read_text().splitlines()) if row["train_loss"]][-4:]
    for column, found in (("train_loss", verdict.train_loss), ("train_accuracy", verdict.train_accuracy)):
        assert found == pytest.approx(sum(n * float(row[column]) for n, row in zip((16, 16, 16, 2), rows, strict=True)) / 50)
