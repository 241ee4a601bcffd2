import sys

import pytest

from cnn425.lab import digits
from cnn425.lab.errors import LabError
from cnn425.lab.pictures import pattern_images
from experiments import predict


def test_top_three_with_probabilities_and_the_same_accuracy_as_in_training(tmp_path, capsys):
    words = predict.tiny(tmp_path)
    verdict = predict.main(words[:-4])
    (answer,) = verdict.best.values()
    assert len(answer) == 3
    assert sum(probability for _, probability in answer) == pytest.approx(1, abs=1e-5)
    assert answer[0][1] >= answer[1][1] >= answer[2][1]
    told = capsys.readouterr().out
    assert f"{verdict.accuracy:.2%} of 19 test pictures" in told, "as mnist.py said after training"


def test_a_bad_picture_does_not_hide_the_good_one(tmp_path):
    words = predict.tiny(tmp_path)
    (tmp_path / "bad.png").write_bytes(b"?")
    verdict = predict.main([*words[:3], str(tmp_path / "bad.png")])
    assert not verdict.holds
    assert len(verdict.best) == 1
    assert len(verdict.unreadable) == 1


def test_nothing_to_do_is_said(tmp_path):
    words = predict.tiny(tmp_path)
    with pytest.raises(LabError, match="nothing to do"):
        predict.main(words[:2])


def test_without_a_checkpoint_a_small_network_is_trained_first(tmp_path, monkeypatch, capsys):
    pictures = pattern_images(300)._replace(classes=digits.DIGITS)
    monkeypatch.setattr(digits, "load", lambda *words: (pictures, pictures))
    verdict = predict.main(predict.tiny(tmp_path)[2:3])
    assert verdict.holds
    assert len(verdict.best) == 1
    assert "no --checkpoint: the recipe `small` is trained on mnist, 3 epochs" in capsys.readouterr().out


@pytest.mark.parametrize(("formats", "file"), [("torch", "model.pt2"), ("onnx", "model.onnx"), ("both", "model.onnx")])
def test_an_export_overwrites_nothing(tmp_path, formats, file):
    (tmp_path / file).write_text("mine")
    with pytest.raises(LabError, match=rf"{file} exists; move it, or choose another --export"):
        predict.exported(None, tmp_path, formats)
    assert [path.name for path in tmp_path.iterdir()] == [file]
    assert (tmp_path / file).read_text() == "mine"


def test_an_export_for_which_a_package_is_missing_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(LabError, match="export to ONNX needs the package onnxruntime"):
        predict.exported(None, tmp_path, "both")
    assert not list(tmp_path.iterdir())


def test_an_export_into_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(LabError, match="is not a folder; name one"):
        predict.exported(None, tmp_path / "file", "torch")
