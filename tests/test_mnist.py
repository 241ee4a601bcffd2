import shlex

import pytest
import torch

from cnn425.lab import checkpoint, digits, trained
from cnn425.lab.errors import LabError
from experiments import mnist

SMALL = ["--dataset", "patterns", "--examples", "320", "--batch-size", "16"]


def losses(folder):
    rows = [line.split(",") for line in (folder / "metrics.csv").read_text().splitlines()[1:]]
    return [float(row[3]) for row in rows if row[3]]


@pytest.mark.parametrize("model", ["linear", "mlp", "local", "conv"])
def test_custom_and_torch_layers_see_the_same_and_lose_the_same(model, tmp_path):
    argv = [*SMALL, "--model", model]
    mnist.main([*argv, "--layers", "custom", "--log-dir", str(tmp_path / "custom")])
    mnist.main([*argv, "--layers", "torch", "--log-dir", str(tmp_path / "torch")])
    ours, theirs = losses(tmp_path / "custom"), losses(tmp_path / "torch")
    assert len(ours) == 20
    assert max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) < 1e-3


def test_convolution_learns_patterns_anywhere(tmp_path):
    verdict = mnist.main(["--dataset", "patterns", "--examples", "2000", "--epochs", "2", "--log-dir", str(tmp_path)])
    assert verdict.test_accuracy > 0.95


def test_a_notebook_that_computes_in_float64_may_train_and_use_a_network(tmp_path):
    torch.set_default_dtype(torch.float64)
    try:
        mnist.main([*SMALL, "--model", "linear", "--log-dir", str(tmp_path)])
        model = trained.load(tmp_path)
        (answer,) = trained.best(model, torch.rand(1, 1, 28, 28, dtype=torch.float32))
    finally:
        torch.set_default_dtype(torch.float32)
    assert sum(probability for _, probability in answer) == pytest.approx(1)


def test_what_to_do_next_can_be_pasted_into_a_shell(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    mnist.main([*SMALL, "--model", "linear", "--log-dir", "a b's"])
    lines = [line for line in capsys.readouterr().out.splitlines() if "--checkpoint" in line or "--logdir" in line]
    assert [shlex.split(line.partition("     (")[0])[-1 - line.count("digit.png")] for line in lines] == ["a b's"] * 3


def test_dry_run_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    verdict = mnist.main([*SMALL, "--dry-run"])
    assert verdict.steps == 2
    assert not list(tmp_path.iterdir())


def test_a_run_goes_on_with_its_folder_alone(tmp_path, capsys):
    folder = str(tmp_path / "run")
    first = mnist.main([*SMALL, "--model", "linear", "--lr", "0.01", "--log-dir", folder])
    assert mnist.main(["--resume", folder]) == first
    assert "already finished" in capsys.readouterr().out
    with pytest.raises(LabError, match=r"other options \(--lr 0.01 -> 0.02\)"):
        mnist.main(["--resume", folder, "--lr", "0.02"])


def test_missing_digits_are_one_sentence(tmp_path):
    with pytest.raises(LabError, match=r"train-images-idx3-ubyte.* is missing; put .*t10k-labels"):
        mnist.main(["--data-dir", str(tmp_path)])


def test_default_folder_depends_on_every_option_that_matters(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    first = mnist.main([*SMALL, "--model", "linear"]).folder
    again = mnist.main([*SMALL, "--model", "linear"]).folder
    other = mnist.main([*SMALL, "--model", "linear", "--lr", "0.01"]).folder
    assert first == again != other
    out = capsys.readouterr().out
    assert "already finished" in out
    assert "tensorboard --logdir runs/mnist" in out


def test_checkpoint_can_be_used_without_this_project(tmp_path):
    mnist.main([*SMALL, "--model", "linear", "--log-dir", str(tmp_path)])
    weights = torch.load(checkpoint.checkpoints(tmp_path)[0], weights_only=True)["model"]
    assert weights["1.weight"].shape == (3, 784)


def test_examples_are_the_first_ones(monkeypatch):
    whole = digits.Pictures(torch.arange(100, dtype=torch.uint8).view(100, 1, 1, 1), torch.arange(100) % 10, digits.DIGITS)
    monkeypatch.setattr(digits, "load", lambda dataset, folder, download: (whole, whole))
    training, test = mnist.data(mnist.DigitOptions(examples=20))
    assert training.labels.tolist() == list(range(10)) * 2
    assert len(test.labels) == 4
