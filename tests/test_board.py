import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

from cnn425.lab.board import Board, event_files, layer_name, scalars
from cnn425.lab.models import build


def loaded(folder):
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return events


def test_what_is_written_is_read_by_tensorboard(tmp_path):
    board = Board(tmp_path)
    board.scalar("loss/train", 0.5, 3)
    board.histogram("weights/0", torch.tensor([1.0, float("nan"), 2.0]), 3)
    board.image("first layer/filters", torch.rand(4, 4), 3)
    board.text("claim", "words", 0)
    board.flush()
    events = loaded(tmp_path)
    assert [(e.step, e.value) for e in events.Scalars("loss/train")] == [(3, 0.5)]
    assert events.Histograms("weights/0")[0].histogram_value.num == 2, "what is not finite is left out"
    assert events.Images("first layer/filters")[0].width == 4
    assert scalars(tmp_path) == [("loss/train", 3, 0.5)]
    board.close()
    board.close()


@pytest.mark.parametrize("name", ["events.out.tfevents.1700000000.host", "events.out.tfevents", "events.out.tfevents.host.1", "events.md"])
def test_files_of_other_writers_are_not_ours(tmp_path, name):
    (tmp_path / name).write_text("theirs")
    for step in (1, 2):
        board = Board(tmp_path)
        board.scalar("loss", 1.0, step)
        board.close()
    assert [path.name for path in event_files(tmp_path)] == [f"events.out.tfevents.{start:010d}.cnn425" for start in (1, 2)]
    assert scalars(tmp_path) == [("loss", 1, 1.0), ("loss", 2, 1.0)]
    assert (tmp_path / name).read_text() == "theirs"


def test_graph_joins_our_layers_in_order(tmp_path):
    board = Board(tmp_path)
    board.graph(build("conv", "custom", 0), torch.rand(1, 1, 28, 28))
    board.close()
    nodes = {node.name: list(node.input) for node in loaded(tmp_path).Graph().node}
    assert nodes["Conv2d_0/output"] == ["images", layer_name(build("conv", "custom", 0), "0.weight"), "Conv2d_0/bias"]
    assert nodes["ReLU_1/output"] == ["Conv2d_0/output"]
    assert nodes["Linear_7/output"][0] == "Flatten_6/output"


def test_hyper_parameters_are_in_the_same_run(tmp_path):
    board = Board(tmp_path)
    board.hyper_parameters(
        {"lr": 0.1, "layers": "custom", "compile": False, "log_dir": None}, {"loss/held-out": 1.0}, first=["lr", "layers"]
    )
    board.close()
    plugin = loaded(tmp_path).PluginTagToContent("hparams")
    assert "_hparams_/session_start_info" in plugin
    experiment = plugin_data_pb2.HParamsPluginData.FromString(plugin["_hparams_/experiment"]).experiment
    assert {option.name: option.differs for option in experiment.hparam_infos} == {
        "lr": True,
        "layers": True,
        "compile": False,
        "log_dir": False,
    }
    assert [path.is_dir() for path in tmp_path.iterdir()] == [False]


@pytest.mark.parametrize("clock", [lambda: 0.0, lambda: 4e9], ids=["clock back at 1970", "clock in 2096"])
def test_after_a_resume_tensorboard_shows_one_curve_whatever_the_clock_says(tmp_path, monkeypatch, clock):
    """It had already read steps 2 and 3 of the first start; the second start goes on from step 1, in a file that sorts after the first."""
    board = Board(tmp_path)
    for step in (1, 2, 3):
        board.scalar("loss", float(step), step)
    board.close()
    live = loaded(tmp_path)
    monkeypatch.setattr("time.time", clock)
    board = Board(tmp_path, purge_step=2)
    for step in (2, 3, 4):
        board.scalar("loss", float(10 * step), step)
    board.close()
    live.Reload()
    for events in (live, loaded(tmp_path)):
        assert [(e.step, e.value) for e in events.Scalars("loss")] == [(1, 1.0), (2, 20.0), (3, 30.0), (4, 40.0)]
    assert [path.name for path in event_files(tmp_path)] == sorted(path.name for path in event_files(tmp_path))
