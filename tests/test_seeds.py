"""Several seeds: the runs, and one that shows their mean and spread."""

import json
from statistics import fmean

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2

from cnn425.lab.board import Board, scalars
from cnn425.lab.errors import LabError
from cnn425.lab.seeds import spread, write_spread
from experiments import mnist

SMALL = ["--dataset", "patterns", "--examples", "320", "--batch-size", "16", "--model", "linear"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("seeds")
    return mnist.main([*SMALL, "--seeds", "3", "--seed", "5", "--log-dir", str(folder)]), folder


def curve(folder, tag):
    return {step: value for name, step, value in scalars(folder) if name == tag}


def test_three_runs_and_the_mean(trained):
    verdict, folder = trained
    assert sorted(path.name for path in folder.iterdir()) == ["mean", "seed-5", "seed-6", "seed-7"]
    assert json.loads((folder / "seed-6" / "options.json").read_text())["options"]["seed"] == 6
    runs = [curve(folder / f"seed-{seed}", "accuracy/held-out") for seed in (5, 6, 7)]
    mean = curve(folder / "mean", "accuracy/held-out")
    assert list(mean) == [0, 4, 8, 16, 20], "the first epoch has points before its end"
    for step, value in mean.items():
        values = [run[step] for run in runs]
        assert value == pytest.approx(fmean(values))
        assert curve(folder / "mean", "spread/accuracy/held-out/lower")[step] == min(values)
        assert curve(folder / "mean", "spread/accuracy/held-out/upper")[step] == max(values)
    assert verdict.test_accuracy == pytest.approx(mean[20])
    assert verdict.folder == str(folder)


def test_tensorboard_finds_margin_charts_and_hyper_parameters(trained):
    _, folder = trained
    events = EventAccumulator(str(folder / "mean"))
    events.Reload()
    layout = layout_pb2.Layout.FromString(events.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0])
    (heading,) = layout.category
    series = [chart.margin.series[0] for chart in heading.chart]
    assert [one.value for one in series][-1] == "spread/loss/train/mean"
    assert {tag for one in series for tag in (one.value, one.lower, one.upper)} <= set(events.Tags()["scalars"])
    assert "_hparams_/session_start_info" in events.PluginTagToContent("hparams")
    one = EventAccumulator(str(folder / "seed-5"))
    one.Reload()
    layout = layout_pb2.Layout.FromString(one.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0])
    assert [category.title for category in layout.category] == ["loss", "accuracy", "gradient", "learning rate", "speed"]


def test_the_same_command_again_trains_nothing_and_a_single_run_is_the_same_run(trained, capsys, tmp_path):
    verdict, folder = trained
    assert mnist.main([*SMALL, "--seeds", "3", "--seed", "5", "--log-dir", str(folder)]) == verdict
    assert capsys.readouterr().out.count("already finished") == 3
    alone = mnist.main([*SMALL, "--seed", "6", "--log-dir", str(tmp_path)])
    assert curve(tmp_path, "loss/train") == curve(folder / "seed-6", "loss/train")
    assert alone.steps == verdict.steps


def test_only_steps_that_all_runs_have_are_averaged(tmp_path):
    for name, points in (("a", {1: 1.0, 2: 2.0, 3: 3.0}), ("b", {1: 3.0, 2: 6.0})):
        (tmp_path / name).mkdir()
        board = Board(tmp_path / name)
        for step, value in points.items():
            board.scalar("loss/train", value, step)
            board.scalar("something else", value, step)
        board.close()
    assert spread([tmp_path / "a", tmp_path / "b"]) == {"loss/train": {1: (2.0, 1.0, 3.0), 2: (4.0, 2.0, 6.0)}}


def test_bad_seeds_are_one_sentence(tmp_path):
    with pytest.raises(LabError, match="--seeds is 0; it must be at least 1"):
        mnist.main([*SMALL, "--seeds", "0"])
    run = str(tmp_path / "run")
    mnist.main([*SMALL, "--log-dir", run])
    with pytest.raises(LabError, match="--resume goes on with one run"):
        mnist.main(["--resume", run, "--seeds", "2"])
    with pytest.raises(LabError, match="holds a training run"):
        write_spread(tmp_path / "run", [], {})


def test_a_dry_run_with_seeds_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert mnist.main([*SMALL, "--seeds", "2", "--dry-run"]).steps == 2
    assert not list(tmp_path.iterdir())
