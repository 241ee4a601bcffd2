"""scripts/conformance.py: a scorecard that counts rightly, and every layer complete on a small one."""

import itertools
import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from oldest import differs_on_the_oldest

from cnn425.nn import functional as F

SCRIPTS = Path(__file__).parents[1] / "scripts"
sys.path.insert(0, str(SCRIPTS))
import conformance as script  # noqa: E402
import local_features  # noqa: E402

sys.path.remove(str(SCRIPTS))

FEW = script.Options(samples=6, examples=25)


@pytest.mark.parametrize(
    "layer",
    [pytest.param(layer, marks=[differs_on_the_oldest("the wording of a refusal")] * (layer == "softmax")) for layer in script.LAYERS],
)
def test_random_arguments_legal_and_illegal(layer):
    found = script.score(layer, "arguments", FEW)
    assert found.tried == 25
    assert not found.failures


@pytest.mark.parametrize("layer", script.LAYERS)
def test_transforms(layer):
    found = script.score(layer, "transforms", FEW)
    assert found.tried == 7
    assert not found.failures


@pytest.mark.slow
@pytest.mark.parametrize("feature", ["samples", "errors", "modules", "derivatives"])
@pytest.mark.parametrize("layer", script.LAYERS)
def test_torchs_own_inputs(layer, feature):
    few = replace(FEW, samples=2) if feature == "derivatives" and layer.endswith("3d") else FEW  # finite differences of volumes take long
    assert not script.score(layer, feature, few).failures


@pytest.mark.parametrize("layer", ["conv2d", "max_pool2d", "cross_entropy", "linear"])
def test_random_arguments_are_legal_and_illegal(layer):
    refused = []
    for i in range(200):
        given, named = script.drawn(layer, script.Draw(i))
        refused.append(script.refusal(lambda g=given, n=named: getattr(torch.nn.functional, layer)(*g, **n)) is not None)
    assert 20 < sum(refused) < 180


def test_a_wrong_value_a_wrong_refusal_and_no_refusal_are_counted(monkeypatch):
    monkeypatch.setattr(F, "softmax", lambda x, dim, dtype=None: torch.softmax(x, 0, dtype=dtype))
    found = script.score("softmax", "arguments", FEW)
    assert 0 < found.passed < found.tried == 25
    assert any("was expected" in failure for failure in found.failures)
    assert any("ours: no error" in failure for failure in found.failures)
    assert str(found) == f"{found.passed} / 25"


def test_a_limit_ends_a_cell_but_never_before_its_first_case():
    found = script.score("relu", "arguments", replace(FEW, limit=1e-9))
    assert found.passed == found.tried == 1


def test_several_mistakes_are_drawn_and_any_refusal_of_them_counts():
    def refused(mistakes):
        lists = [script.drawn("conv2d", script.Draw(i, mistakes)) for i in range(200)]
        return sum(script.refusal(lambda g=g, n=n: torch.nn.functional.conv2d(*g, **n)) is not None for g, n in lists)

    assert refused(0) < refused(1) < refused(3)
    two_errors = (torch.zeros(1, 2, 4, 4), torch.zeros(2, 2, 3, 3))
    assert script.differ(torch.nn.functional.conv2d, lambda *_, **__: int("x"), two_errors, {"stride": 0})
    assert not script.differ(torch.nn.functional.conv2d, lambda *_, **__: int("x"), two_errors, {"stride": 0}, types=False)


def test_the_exit_code_and_the_failures_tell(monkeypatch, capsys):
    monkeypatch.setattr(script, "FEATURES", {"arguments": script.arguments, "derivatives": script.orders})
    monkeypatch.setattr(local_features, "LOCAL", local_features.LOCAL[:2])
    assert script.main(["--layers", "relu", "--examples", "5", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(s["feature"], s["passed"], s["tried"]) for s in found["scores"]] == [("arguments", 5, 5), ("derivatives", 2, 2)]
    assert found["locally connected"][0]["cnn425"] == "yes"
    monkeypatch.setattr(F, "relu", lambda x, inplace=False: x.abs())
    assert script.main(["--layers", "relu", "--examples", "5"]) == 1
    out, err = capsys.readouterr()
    assert "relu" in out
    assert "arguments: relu" in err


def test_a_long_cell_tells_how_far_it_is(monkeypatch, capsys):
    seconds = SimpleNamespace(monotonic=itertools.count(0.0, 0.7).__next__)
    monkeypatch.setattr(script, "time", seconds)
    script.collect(replace(FEW, layers=("relu",), features=("arguments",), examples=8))
    assert len(re.findall(r"relu arguments: \d tried \.\.\.\n", capsys.readouterr().err)) >= 3


def test_markdown_is_a_table(monkeypatch, capsys):
    monkeypatch.setattr(script, "FEATURES", {"arguments": script.arguments})
    monkeypatch.setattr(local_features, "LOCAL", local_features.LOCAL[:1])
    assert script.main(["--layers", "relu", "sigmoid", "--examples", "3", "--markdown"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == ["| layer | arguments |", "| --- | --- |", "| relu | 3 / 3 |"]
    assert lines[4] == "| all | 6 / 6 |"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--layers", "conv4d"], "--layers has no conv4d; choose from conv1d"),
        (["--samples", "0"], "--samples must be at least 1, but got 0"),
        (["--limit", "-1"], "--limit must be at least 0, but got -1.0"),
        (["--examples", "-3"], "--examples must be at least 1, but got -3"),
        (["--device", "abacus"], "--device abacus: "),
    ],
)
def test_nonsense_is_one_line(arguments, words, capsys):
    assert script.main(arguments) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: {words}")
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("row", local_features.LOCAL, ids=lambda row: row[0])
def test_our_local_layer_has_every_feature(row):
    assert row[1]()
