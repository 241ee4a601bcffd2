"""scripts/compare_layers.py: agrees where layers agree, says so by its exit code, and refuses nonsense in one line."""

import json
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import torch
from browser import accessible, chromium, opened

from cnn425.agreement import compare
from cnn425.nn import functional as F
from experiments import mnist

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
        (["--theirs", "torch.nn:Conv2d"], "say which class --ours is"),
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


def test_the_table_fits_80_columns_and_each_row_comes_as_soon_as_it_is_measured(monkeypatch, capsys):
    said = []
    measured = script.measured
    monkeypatch.setattr(script, "measured", lambda *words: [said.append(capsys.readouterr().out), measured(*words)][1])
    monkeypatch.setattr(script, "get_args", lambda _: ("relu", "adaptive_max_pool1d"))
    assert run() == 0
    last = capsys.readouterr().out
    assert said[0].startswith("Claim: Every layer agrees with torch's")
    assert said[0].endswith("\nrelu                ")
    assert said[1].endswith("\nadaptive_max_pool1d ")
    lines = "".join([*said, last]).splitlines()
    assert max(len(line) for line in lines[2:6]) <= 80
    assert any(line.startswith("Holds: 2 of 2 layers agree") for line in lines)


OWN = """
from torch import nn
class Same(nn.Conv2d):
    pass
class Conv2d(nn.Conv2d):
    def forward(self, x):
        return 1.01 * super().forward(x)
"""


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--ours", "own_layers:Same", "--theirs", "torch.nn:Conv2d", "--padding", "1"], 0, "1 of 1 layers agree"),
        (["--ours", "own_layers:Conv2d"], 1, "0 of 1 layers agree"),
        (["--ours", "cnn425.nn:MaxPool2d", "--kernel-size", "2"], 0, "1 of 1 layers agree"),
        (["--ours", "cnn425.nn:Linear"], 0, "1 of 1 layers agree"),
        (["--ours", "own_layers:Nothing"], 2, "--ours is own_layers:Nothing; a class is wanted, as torch.nn:Conv2d"),
        (["--ours", "own_layers:Same"], 2, "--theirs is torch.nn:Same; a class is wanted"),
        (["--ours", "cnn425.nn:LocallyConnected2d", "--theirs", "torch.nn:Conv2d"], 2, "size mismatch for weight"),
        (["--ours", "own_layers:Conv2d", "--layer", "relu"], 2, "leave out one"),
    ],
)
def test_two_classes_of_ones_own(words, code, said, tmp_path, monkeypatch, capsys):
    (tmp_path / "own_layers.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "own_layers", raising=False)
    assert run(*words) == code
    out, err = capsys.readouterr()
    assert said in (err if code == 2 else out)
    assert len(err.splitlines()) == (code == 2)


def test_unknown_layers_are_refused_by_the_command_line():
    with pytest.raises(SystemExit) as stopped:
        run("--layer", "conv4d")
    assert stopped.value.code == 2


def test_help_says_what_it_prints(capsys):
    with pytest.raises(SystemExit) as stopped:
        script.main(["--help"])
    assert stopped.value.code == 0
    found = capsys.readouterr().out
    assert "torch's" in found
    assert "--kernel-size" in found
    assert "pixels from window to window" in found


# ---- the report as a page, and whole networks


@pytest.fixture(scope="module")
def browser():
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    mnist.main([*mnist.TINY, "--log-dir", str(folder)])
    return folder


def test_the_report_is_a_page_with_the_line_that_repeats_each_row(browser, tmp_path, capsys):
    assert run("--layer", "conv2d", "--stride", "2", "--no-bias", "--html", str(tmp_path / "r.html"), "--json") == 0
    (row,) = rows(capsys)
    assert row["repeat"] == (
        "python scripts/compare_layers.py --layer conv2d --batch 2 --size 8 --stride 2 --no-bias --repeats 2 --no-gradcheck"
    )
    for width in (1280, 390):
        with opened(browser, tmp_path / "r.html", width=width) as page:
            assert "1 of 1 layers agree" in page.locator("#summary").inner_text()
            assert not page.get_by_text(row["repeat"]).is_visible()
            page.get_by_role("button", name="agrees").click()
            assert page.get_by_text(row["repeat"]).is_visible()
            assert "inputs 2×4×8×8, 8×4×3×3" in page.locator("#rows").inner_text()
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            assert accessible(page) == []


def test_a_difference_without_end_is_on_the_page_too(browser, tmp_path, monkeypatch):
    monkeypatch.setattr(F, "relu", lambda x: x.double())
    assert run("--layer", "relu", "--html", str(tmp_path / "r.html")) == 1
    with opened(browser, tmp_path / "r.html") as page:
        page.get_by_role("button", name="differs").click()
        assert "dtype torch.float64 instead of torch.float32" in page.locator("#rows").inner_text()


@pytest.mark.parametrize("against", ["torch", "bfloat16"])
def test_two_networks_and_where_they_part(browser, run_folder, tmp_path, capsys, against):
    page_path = tmp_path / "r.html"
    words = ["--model", str(run_folder), "--against", against, "--repeats", "1", "--html", str(page_path)]
    assert script.main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [layer["kind"] for layer in found["layers"]][:3] == ["Conv2d", "ReLU", "MaxPool2d"]
    assert script.main(words) == 0
    assert found["where"].split(":")[0] in " ".join(capsys.readouterr().out.split())
    with opened(browser, page_path) as page:
        assert found["where"] in page.locator("#summary").inner_text()
        assert page.locator("#rows tr").count() == 1 + sum(len(layer["quantities"]) for layer in found["layers"])
        assert accessible(page) == []


def test_a_network_against_another_run(run_folder, tmp_path, capsys):
    mnist.main([*mnist.TINY, "--seed", "1", "--log-dir", str(tmp_path / "other")])
    assert script.main(["--model", str(run_folder), "--against", str(tmp_path / "other"), "--repeats", "1"]) == 1
    assert "they part first at layer 0 (Conv2d), output" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "{tmp}"], "there is no checkpoint in"),
        (["--model", "{run}", "--batch", "0"], "--batch must be at least 1"),
        (["--model", "{run}", "--against", "{tmp}/file"], "is not a checkpoint"),
        (["--model", "{run}", "--repeats", "1", "--html", "{tmp}/file/r.html"], "cannot be written"),
        (["--layer", "relu", "--repeats", "1", "--no-gradcheck", "--html", "{tmp}/file/r.html"], "cannot be written"),
        (["--layer", "relu", "--html", "{tmp}/file"], "was not made by this program"),
        (["--model", "{run}", "--html", "{tmp}/file"], "was not made by this program"),
        (["--layer", "relu", "--html", "{tmp}"], "is a folder; name a file in it"),
    ],
)
def test_what_cannot_be_compared_or_written_is_one_line(words, message, run_folder, tmp_path, capsys):
    (tmp_path / "file").write_text("?")
    capsys.readouterr()
    assert script.main([word.format(tmp=tmp_path, run=run_folder) for word in words]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert len(err.splitlines()) == 1
    assert (tmp_path / "file").read_text() == "?"
