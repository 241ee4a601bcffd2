import importlib.util
import json
import sys
from pathlib import Path

import pytest
from forked import Forked

from cnn425.lab.errors import LabError

PATH = Path(__file__).parents[1] / "scripts/benchmark_training.py"
spec = importlib.util.spec_from_file_location("benchmark_training", PATH)
script = importlib.util.module_from_spec(spec)
sys.modules["benchmark_training"] = script  # dataclasses look their module up
spec.loader.exec_module(script)


@pytest.mark.slow
def test_chosen_ways_are_measured(monkeypatch, capsys):
    monkeypatch.setattr(script.subprocess, "Popen", lambda command, **_: Forked(command[1:]))  # five runs, torch imported once
    ways = "plain,--layers torch"
    script.main(script.BenchmarkOptions(examples=64, epochs=20, model="linear", repeats=1, ways=ways, json=True))
    said = capsys.readouterr().out
    result = json.loads(said[said.index("{\n") :])
    assert set(result["images per second"]) == set(result["held-out accuracy"])
    assert set(result["relative to the first"]) == {"plain", "--layers torch"}
    assert result["relative to the first"]["plain"] == 1
    assert min(result["images per second"].values()) > 0
    assert result["checkpoint write, seconds"] > 0
    assert len(result["stop and resume, seconds"]) == 3


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"examples": 0}, "--examples is 0; it must be at least 1"),
        ({"repeats": -1}, "--repeats is -1; it must be at least 1"),
        ({"ways": "plain,faster"}, "--ways has no faster; choose from plain, "),
    ],
)
def test_nonsense_is_refused_before_anything_is_measured(given, words):
    with pytest.raises(LabError, match=words):
        script.main(script.BenchmarkOptions(**given))
