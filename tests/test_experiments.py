"""Every file in experiments/ keeps its promise of form: a claim, options, a `main` that returns a verdict, a TINY that runs in seconds."""

import ast
import dataclasses
import importlib
import inspect
import json
import os
import re
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import sympy  # noqa: F401 - its first import, wherever that is, adds a warning filter to the process
from rich.cells import cell_len
from test_training import surroundings

NAMES = sorted(path.stem for path in (Path(__file__).parents[1] / "experiments").glob("*.py") if not path.stem.startswith("__"))
TASKS = ("predict", "explore")  # their verdict is of what was asked for, not of a claim


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
    told = capsys.readouterr().out
    assert f"Claim: {claim}\n" in told
    assert "…" not in told, "a table that left out digits"
    assert all(cell_len(line) <= 80 for line in told.splitlines() if {*line} & {*"│┃━─"}), "of a table"
    if name not in TASKS:
        judgements = "Holds" if verdict.holds else "Does not hold", "Not judged"
        assert any(f"\n{judgement}: {verdict.sentence()}.\n" in told for judgement in judgements)
        assert "\nnext: tensorboard --logdir " in told
        assert json.loads((tmp_path / "verdict.json").read_text())["sentence"] == verdict.sentence()
    assert surroundings() == before, "of the process: random states, threads, flags, matplotlib, signals"


@pytest.mark.parametrize("name", NAMES)
def test_help_explains_every_option(name, capsys):
    module = importlib.import_module(f"experiments.{name}")
    with pytest.raises(SystemExit) as end:
        module.main(["--help"])
    assert end.value.code == 0
    told = " ".join(capsys.readouterr().out.split())
    assert told.startswith(f"usage: python -m experiments.{name} [-h]")
    assert module.__doc__.splitlines()[0] in told
    assert "--log-dir" in told
    for options in (kind for kind in vars(module).values() if dataclasses.is_dataclass(kind) and kind.__module__ == module.__name__):
        for field in dataclasses.fields(options):
            assert helptext(options, field.name), f"--{field.name} of {name} is not described"


def helptext(options, name):
    """The words below the field, or those of the class from which it is inherited."""
    for kind in options.__mro__[:-1]:
        body = ast.parse(inspect.getsource(kind)).body[0].body
        for field, after in pairwise(body):
            if isinstance(field, ast.AnnAssign) and field.target.id == name and isinstance(after, ast.Expr):
                return after.value.value
    return None


@pytest.mark.parametrize("name", ["patterns", "shift"])
def test_a_dry_run_is_not_judged(name, capsys):
    module = importlib.import_module(f"experiments.{name}")
    module.main([*module.TINY, "--dry-run"])
    assert "\nNot judged: " in capsys.readouterr().out


def test_an_installed_package_is_told_how_to_call_it(tmp_path, monkeypatch, capsys):
    """Outside a clone there is no `experiments`, only `cnn425.experiments`."""
    monkeypatch.chdir(tmp_path)
    everything, mnist = (importlib.import_module(f"cnn425.experiments.{name}") for name in ("__main__", "mnist"))
    everything.main([])
    everything.main(["--help"])
    with pytest.raises(SystemExit):
        mnist.main(["--help"])
    mnist.main([*mnist.TINY])
    told = capsys.readouterr().out
    assert told.count("python -m cnn425.experiments") > 8
    assert re.search(r"^mnist +half a minute$", told, re.MULTILINE)
    assert "python -m experiments" not in told


def test_options_are_kept_beside_the_run(tmp_path):
    module = importlib.import_module("experiments.mnist")
    module.main([*module.TINY, "--log-dir", str(tmp_path), "--seed", "7"])
    kept = json.loads((tmp_path / "options.json").read_text())
    assert kept["options"]["seed"] == 7
    assert {"argv", "versions", "git_commit"} <= set(kept)
    assert kept["versions"]["torch"]


COMMANDS = [("-m", "experiments.shift"), ("scripts/compare_layers.py",), ("scripts/benchmark.py",)]


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_packages_that_are_missing_are_named_in_one_line(command):
    root = Path(__file__).parents[1]
    words = [sys.executable, "-S", *command]  # -S: without any installed package
    run = subprocess.run(words, cwd=root, env=os.environ | {"PYTHONPATH": str(root)}, capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (2, "")
    (line,) = run.stderr.splitlines()
    assert "rich" in line
    assert "pip install '.[lab]'" in line


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_ctrl_c_while_torch_is_imported_ends_without_a_traceback(command, tmp_path):
    (tmp_path / "torch.py").write_text("import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(60)\n")
    root = Path(__file__).parents[1]
    around = os.environ | {"PYTHONPATH": os.pathsep.join((str(tmp_path), str(root)))}
    words = [str(root / word) if word.endswith(".py") else word for word in command]
    run = subprocess.run([sys.executable, *words], cwd=tmp_path, env=around, capture_output=True, text=True)
    assert run.returncode == -signal.SIGINT
    assert "Traceback" not in run.stderr
