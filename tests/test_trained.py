import pytest
import torch
from PIL import Image

from cnn425.lab import checkpoint, trained
from cnn425.lab.errors import LabError
from cnn425.lab.models import build


@pytest.fixture
def stored(tmp_path):
    model = build("linear", "custom", 0)
    options = {"model": "linear", "layers": "custom", "dataset": "mnist"}
    path = checkpoint.save(tmp_path / "", 5, {"model": model.state_dict(), "options": options, "position": {"step": 5}})
    return model, path


def test_a_checkpoint_gives_its_model_back(stored):
    model, path = stored
    for place in (path, path.parent):
        loaded = trained.load(place)
        images = torch.rand(2, 1, 28, 28)
        assert torch.equal(loaded.model(images), model(images))
        assert loaded.classes == tuple("0123456789")


def test_a_folder_that_holds_one_run_is_that_run(stored, tmp_path):
    _, path = stored
    (tmp_path / "above" / "empty").mkdir(parents=True)
    (tmp_path / "above" / "run").mkdir()
    path.rename(tmp_path / "above" / "run" / path.name)
    assert trained.load(tmp_path / "above").step == 5
    (tmp_path / "above" / "second").mkdir()
    (tmp_path / "above" / "second" / path.name).write_bytes((tmp_path / "above" / "run" / path.name).read_bytes())
    with pytest.raises(LabError, match=r"holds 2 runs; name one of them: .*run, .*second"):
        trained.load(tmp_path / "above")


def test_a_damaged_checkpoint_gives_way_to_the_one_before(stored, capsys):
    _, path = stored
    newer = checkpoint.save(path.parent, 9, checkpoint.read(path) | {"position": {"step": 9}})
    assert trained.load(path.parent).step == 9
    newer.write_bytes(newer.read_bytes()[:-1])
    assert trained.load(path.parent).step == 5
    assert f"warning: {newer} is damaged" in capsys.readouterr().out
    path.write_bytes(b"")
    with pytest.raises(LabError, match=r"is damaged: .*; name another checkpoint or run"):
        trained.load(path.parent)


OPTIONS = {"model": "conv", "layers": "custom", "dataset": "mnist"}
POSITION = {"step": 1}


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"model": {}, "options": {"lr": 1}, "position": POSITION}, "is not of experiments/mnist.py"),
        ({"model": {}, "options": [1], "position": POSITION}, "is not of experiments/mnist.py"),
        ({"model": {}, "options": OPTIONS}, "is not of experiments/mnist.py"),
        ({"model": {}, "options": OPTIONS | {"model": "abacus"}, "position": POSITION}, "does not fit the model abacus"),
        ({"model": {}, "options": OPTIONS | {"dataset": "abacus"}, "position": POSITION}, "is not of experiments/mnist.py"),
        ({"model": build("linear", "torch", 0).state_dict(), "options": OPTIONS, "position": POSITION}, "does not fit the model conv"),
        ({"model": 3, "options": OPTIONS, "position": POSITION}, "does not fit the model conv"),
        ({"options": OPTIONS, "position": POSITION}, "does not fit the model conv"),
        (
            {
                "model": {name: w * float("nan") for name, w in build("conv", "torch", 0).state_dict().items()},
                "options": OPTIONS,
                "position": POSITION,
            },
            "holds numbers that are not finite",
        ),
    ],
)
def test_other_checkpoints_are_one_sentence(state, words, tmp_path):
    with pytest.raises(LabError, match="there is no checkpoint in"):
        trained.load(tmp_path)
    with pytest.raises(LabError, match=words) as caught:
        trained.load(checkpoint.save(tmp_path, 1, state))
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("content", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n cut"], ids=["empty", "text", "cut off"])
def test_bad_files_are_one_sentence_each(tmp_path, content):
    bad = tmp_path / "bad.png"
    bad.write_bytes(content)
    page = Image.new("L", (40, 40), 255)
    page.paste(0, (18, 5, 22, 35))
    page.save(tmp_path / "good.png")
    Image.new("L", (30, 30), 128).save(tmp_path / "blank.png")
    good, images, complaints = trained.readable([bad, tmp_path / "good.png", tmp_path / "missing.png", tmp_path / "blank.png"])
    assert good == [tmp_path / "good.png"]
    assert len(images) == 1
    assert [str(tmp_path / name) in line for name, line in zip(("bad.png", "missing.png", "blank.png"), complaints, strict=True)] == [
        True
    ] * 3
    assert not any("\n" in line for line in complaints)


def test_several_digits_are_read_as_one_and_that_is_said(tmp_path):
    page = Image.new("L", (90, 60), 255)
    for left in (20, 60):
        page.paste(0, (left, 10, left + 6, 50))
    page.save(tmp_path / "eleven.png")
    good, images, complaints = trained.readable([tmp_path / "eleven.png"])
    assert good == [tmp_path / "eleven.png"]
    assert len(images) == 1
    assert len(complaints) == 1
    assert "eleven.png: there seems to be more than one digit" in complaints[0]


@pytest.mark.parametrize("name", ["linear", "mlp", "local", "conv"])
def test_exported_program_answers_alike_for_any_number_of_pictures(name, tmp_path):
    model = trained.Trained(build(name, "custom", 0).eval(), tuple("0123456789"), {}, 0)
    assert trained.export_torch(model, tmp_path / "model.pt2") < 1e-4


def test_onnx_without_its_packages_names_them(stored, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(LabError, match=r"needs the package onnxruntime; `pip install onnx onnxscript onnxruntime`"):
        trained.export_onnx(trained.load(stored[1]), tmp_path / "model.onnx")
