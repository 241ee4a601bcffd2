import numpy
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


def test_other_checkpoints_are_one_sentence(tmp_path):
    with pytest.raises(LabError, match="there is no checkpoint in"):
        trained.load(tmp_path)
    path = checkpoint.save(tmp_path, 1, {"model": {}, "options": {"lr": 1}})
    with pytest.raises(LabError, match=r"is not of experiments/mnist.py"):
        trained.load(path)
    options = {"model": "conv", "layers": "custom", "dataset": "mnist"}
    with pytest.raises(LabError, match="does not fit the model conv"):
        trained.load(checkpoint.save(tmp_path, 2, {"model": build("linear", "torch", 0).state_dict(), "options": options}))


def stroke(size, box, paper, ink):
    page = torch.full(size, paper, dtype=torch.uint8)
    page[box[0] : box[1], box[2] : box[3]] = ink
    return Image.fromarray(page.numpy())


@pytest.mark.parametrize(("paper", "ink"), [(255, 0), (0, 255), (200, 40)], ids=["black on white", "white on black", "grey on grey"])
@pytest.mark.parametrize("box", [(10, 90, 20, 40), (100, 180, 150, 170)], ids=["upper left", "lower right"])
def test_any_paper_any_place_becomes_the_same_digit(tmp_path, paper, ink, box):
    stroke((200, 180), box, paper, ink).save(tmp_path / "one.png")
    image = trained.picture(tmp_path / "one.png")
    assert image.shape == (1, 1, 28, 28)
    lit = (image[0, 0] > 0.5).nonzero()
    assert lit.amin(0).tolist() == [4, 11] or lit.amin(0).tolist() == [4, 12]
    assert (lit.amax(0) - lit.amin(0) + 1).tolist() == [20, 5]


@pytest.mark.parametrize(("kind", "end"), [("uint16", "png"), ("uint16", "tiff"), ("int32", "tiff"), ("float32", "tiff")])
def test_wide_pixels_are_not_cut_at_255(tmp_path, kind, end):
    page = numpy.full((200, 180), 65000 if kind != "float32" else 0.9, dtype=kind)
    page[10:90, 20:40] = 300 if kind != "float32" else 0.1
    Image.fromarray(page).save(tmp_path / f"one.{end}")
    image = trained.picture(tmp_path / f"one.{end}")
    lit = (image[0, 0] > 0.5).nonzero()
    assert (lit.amax(0) - lit.amin(0) + 1).tolist() == [20, 5]


def test_a_photo_that_lies_on_its_side_is_turned(tmp_path):
    upright = stroke((200, 180), (10, 90, 20, 40), 255, 0)
    sideways = Image.Exif()
    sideways[274] = 6  # "turn by 90 degrees to look at it"
    upright.save(tmp_path / "upright.png")
    upright.rotate(90, expand=True).save(tmp_path / "sideways.png", exif=sideways)
    assert torch.equal(trained.picture(tmp_path / "sideways.png"), trained.picture(tmp_path / "upright.png"))


def test_transparent_paper_is_white(tmp_path):
    page = Image.new("RGBA", (50, 50), (0, 0, 0, 0))
    page.paste((0, 0, 0, 255), (20, 10, 25, 40))
    page.save(tmp_path / "clear.png")
    image = trained.picture(tmp_path / "clear.png")
    assert image[0, 0, 0, 0] == 0
    assert image.max() > 0.9


def test_a_mnist_digit_comes_back_nearly_as_it_was(tmp_path):
    """A digit that fills 20x20 pixels and is centred by mass, drawn five times larger, in colour, dark on bright."""
    digit = torch.zeros(28, 28)
    digit[4:24, 13:15] = 1.0
    large = (255 - 255 * digit.repeat_interleave(5, 0).repeat_interleave(5, 1)).to(torch.uint8)
    Image.fromarray(large.numpy()).convert("RGB").save(tmp_path / "digit.jpg", quality=95)
    assert (trained.picture(tmp_path / "digit.jpg")[0, 0] - digit).abs().mean() < 0.03


@pytest.mark.parametrize("content", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n cut"], ids=["empty", "text", "cut off"])
def test_bad_files_are_one_sentence_each(tmp_path, content):
    bad = tmp_path / "bad.png"
    bad.write_bytes(content)
    stroke((40, 40), (5, 35, 18, 22), 255, 0).save(tmp_path / "good.png")
    Image.new("L", (30, 30), 128).save(tmp_path / "blank.png")
    good, images, complaints = trained.readable([bad, tmp_path / "good.png", tmp_path / "missing.png", tmp_path / "blank.png"])
    assert good == [tmp_path / "good.png"]
    assert len(images) == 1
    assert [str(tmp_path / name) in line for name, line in zip(("bad.png", "missing.png", "blank.png"), complaints, strict=True)] == [
        True
    ] * 3
    assert not any("\n" in line for line in complaints)


@pytest.mark.parametrize("name", ["linear", "mlp", "local", "conv"])
def test_exported_program_answers_alike_for_any_number_of_pictures(name, tmp_path):
    model = trained.Trained(build(name, "custom", 0).eval(), tuple("0123456789"), {}, 0)
    assert trained.export_torch(model, tmp_path / "model.pt2") < 1e-4


def test_onnx_without_its_packages_names_them(stored, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(LabError, match=r"needs the package onnxruntime; `pip install onnx onnxscript onnxruntime`"):
        trained.export_onnx(trained.load(stored[1]), tmp_path / "model.onnx")
