"""Every file in experiments/ keeps its promise of form: a claim, options, a `main` that returns a verdict, a TINY that runs in seconds."""

import importlib
import json
from pathlib import Path

import pytest
from test_training import surroundings

NAMES = sorted(path.stem for path in (Path(__file__).parents[1] / "experiments").glob("*.py") if path.stem != "__init__")


@pytest.mark.parametrize("name", NAMES)
def test_experiment_runs_and_returns_a_verdict(name, tmp_path, capsys):
    module = importlib.import_module(f"experiments.{name}")
    claim = module.__doc__.splitlines()[0]
    assert claim.endswith("."), "the first line is a sentence, the claim"
    assert f"python -m experiments.{name}" in module.__doc__
    words = module.tiny(tmp_path) if hasattr(module, "tiny") else module.TINY  # a function where files must be made first
    before = surroundings()
    verdict = module.main([*words, "--log-dir", str(tmp_path)])
    assert isinstance(verdict.holds, bool)
    assert capsys.readouterr().out.strip()
    assert surroundings() == before, "of the process: random states, threads, flags, matplotlib, signals"


@pytest.mark.parametrize("name", NAMES)
def test_help_explains_every_option(name, capsys):
    module = importlib.import_module(f"experiments.{name}")
    with pytest.raises(SystemExit) as end:
        module.main(["--help"])
    assert end.value.code == 0
    assert "--log-dir" in capsys.readouterr().out


def test_options_are_kept_beside_the_run(tmp_path):
    module = importlib.import_module("experiments.mnist")
    module.main([*module.TINY, "--log-dir", str(tmp_path), "--seed", "7"])
    kept = json.loads((tmp_path / "options.json").read_text())
    assert kept["options"]["seed"] == 7
    assert {"argv", "versions", "git_commit"} <= set(kept)
    assert kept["versions"]["torch"]
