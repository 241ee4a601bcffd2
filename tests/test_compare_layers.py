"""scripts/compare_layers.py: agrees where layers agree, says so by its exit code, and refuses nonsense in one line."""

import json
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import torch

from cnn425.agreement import compare
from cnn425.nn import functional as F

PATH = Path(__file__).parents[1] / "scripts" / "compare_layers.py"
spec = spec_from_file_location("compare_layers", PATH)
script = module_from_spec(spec)
sys.modules["compare_layers"] = script
spec.loader.exec_module(script)

QUICK = ["--repeats", "2", "--no-gradcheck", "--batch", "2", "--size", "8"]


def run(*arguments):
    return script.main([*QUICK, *arguments])


def rows(capsys):
    return json.loads(capsys.readouterr().out)["rows"]


def test_every_layer_agrees(capsys):
    assert run("--json") == 0
    found = rows(capsys)
    assert [row["layer"] for row in found] == list(script.get_args(script.Name))
    assert all(row["agrees"] and row["time_ratio"] > 0 and row["memory_ratio"] > 0 for row in found)


def test_a_typed_configuration(capsys):
    arguments = ["--layer", "conv2d", "--in-channels", "3", "--kernel-size", "5", "--stride", "2", "--dtype", "float64", "--json"]
    assert script.main([*arguments, "--repeats", "1"]) == 0
    (row,) = rows(capsys)
    assert set(row["errors"]) == {"output", "gradient of input 0", "gradient of input 1", "gradient of input 2"}
    assert max(row["errors"].values()) < 1e-10
    assert (row["gradcheck"], row["gradgradcheck"]) == ("", "")


@pytest.mark.parametrize("layer", ["local1d", "local2d", "local3d"])
def test_the_local_oracle_is_a_convolution_when_weights_are_shared(layer):
    d = int(layer[-2])
    x, w, b = torch.randn(2, 4, *[7] * d).double(), torch.randn(6, 2, *[2] * d).double(), torch.randn(6).double()
    arguments = {"stride": 2, "padding": 1, "dilation": 2, "groups": 2}
    conv = getattr(torch.nn.functional, f"conv{d}d")
    shared = w.expand(*conv(x, w, b, **arguments).shape[2:], *w.shape)
    verdict = compare(
        lambda x, w: script.local_by_einsum(x, w, b.view(-1, *[1] * d), **arguments),
        lambda x, w: conv(x, w[(0,) * d], b, **arguments),
        [x, shared],
    )
    assert verdict.quantities[0], verdict.wrong  # the output; gradients of an expanded weight are told apart below
    ours = getattr(F, f"locally_connected{d}d")
    verdict = compare(
        lambda x, w: script.local_by_einsum(x, w, **arguments), lambda x, w: ours(x, w, None, **arguments), [x, shared.clone()]
    )
    assert verdict, verdict.wrong


def test_disagreement_is_found_shown_and_returned(monkeypatch, capsys):
    monkeypatch.setattr(F, "linear", lambda x, w, b: 1.01 * x @ w.t() + b)
    assert run("--layer", "linear") == 1
    shown = capsys.readouterr().out
    assert "differs" in shown
    assert "0 of 1 layers agree" in shown


def test_a_wrong_second_derivative_is_disagreement(monkeypatch, capsys):
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x.sigmoid()

        @staticmethod
        def backward(ctx, gy):
            y = ctx.saved_tensors[0].detach().sigmoid()
            return gy * y * (1 - y)

    monkeypatch.setattr(F, "sigmoid", Once.apply)
    assert script.main(["--layer", "sigmoid", "--repeats", "1", "--json"]) == 1
    (row,) = rows(capsys)
    assert "output" in row["errors"]
    assert row["wrong"] == ""
    assert row["gradgradcheck"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--layer", "conv2d", "--kernel-size", "9"], "a window of 9 pixels, more than the 8 of --size and --padding"),
        (["--layer", "conv2d", "--groups", "3"], "--groups 3 must divide --in-channels 4"),
        (["--stride", "0"], "--stride must be at least 1, but got 0"),
        (["--padding", "-1"], "--padding must be at least 0, but got -1"),
        (["--layer", "max_pool2d", "--padding", "2"], "max_pool2d refuses these arguments"),
        (["--device", "abacus"], "--device abacus cannot be used"),
        (["--device", "meta"], "--device meta cannot be used"),
        (["--layer", "linear", "--groups", "3"], "linear has no --groups"),
        (["--layer", "relu", "--no-bias"], "relu has no --bias"),
        (["--layer", "avg_pool2d", "--dilation", "2"], "avg_pool2d has no --dilation"),
        (["--layer", "adaptive_max_pool1d", "--kernel-size", "2"], "adaptive_max_pool1d has no --kernel-size"),
    ],
)
def test_an_impossible_configuration_is_one_line(arguments, words, capsys):
    assert run(*arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert words in err
    assert len(err.splitlines()) == 1


def test_unknown_layers_are_refused_by_the_command_line():
    with pytest.raises(SystemExit) as stopped:
        run("--layer", "conv4d")
    assert stopped.value.code == 2


def test_help_says_what_it_prints():
    found = subprocess.run([sys.executable, PATH, "--help"], capture_output=True, text=True, check=True).stdout
    assert "torch's" in found
    assert "--kernel-size" in found
    assert "pixels from window to window" in found
