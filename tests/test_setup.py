"""What is installed, and what scripts do when they are only asked what they do."""

import contextlib
import io
import os
import shutil
import subprocess
import sys
import tomllib
import warnings
import zipfile
from pathlib import Path

import pytest
import setuptools.build_meta
import torch

import cnn425

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LAB = {"torchvision", "PIL", "tensorboard", "matplotlib", "tyro", "rich", "filelock", "platformdirs"}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of what git tracks or would track."""
    folder = tmp_path_factory.mktemp("checkout")
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(lambda name: (ROOT / name).is_file() or (ROOT / name).is_symlink(), listed.split("\n")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, folder / name, follow_symlinks=False)
    return folder


def built(checkout, folder, how):
    """The wheel, as pip would build it, without asking the network."""
    with contextlib.chdir(checkout), contextlib.redirect_stdout(io.StringIO()):
        return zipfile.ZipFile(folder / getattr(setuptools.build_meta, how)(str(folder)))


@pytest.fixture(scope="module")
def wheel(checkout, tmp_path_factory):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # setuptools' own
        return built(checkout, tmp_path_factory.mktemp("wheel"), "build_wheel")


def test_a_wheel_holds_cnn425_and_nothing_else(wheel):
    names = wheel.namelist()
    assert {name.split("/")[0] for name in names} == {"cnn425", f"cnn425-{PROJECT['version']}.dist-info"}
    assert "cnn425/py.typed" in names
    assert {path.relative_to(ROOT).as_posix() for path in (ROOT / "cnn425").rglob("*.py")} <= set(names)
    assert {f"cnn425/experiments/{path.name}" for path in (ROOT / "experiments").glob("*.py")} <= set(names)


def test_experiments_run_beside_another_package_of_that_name(wheel, tmp_path):
    wheel.extractall(tmp_path / "site")
    project = tmp_path / "project"
    (project / "experiments").mkdir(parents=True)
    (project / "experiments/__init__.py").write_text("mine = True")
    path = os.pathsep.join(map(str, (tmp_path / "site", Path(torch.__file__).parents[1])))

    def python(*words):  # -S: without the link of the editable install
        return subprocess.run(
            [sys.executable, "-S", *words], cwd=project, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
        )

    for words in (["cnn425.experiments.predict"], ["cnn425.experiments", "predict"]):
        run = python("-m", *words, "--help")
        assert run.returncode == 0, run.stderr
        assert run.stdout.startswith("usage: python -m cnn425.experiments.predict ")
    names = [path.stem for path in (ROOT / "experiments").glob("*.py") if not path.stem.startswith("__")]
    run = python(
        "-c", f"from cnn425.experiments import {', '.join(names)}; import experiments as e; assert e.mine and not hasattr(e, 'mnist')"
    )
    assert run.returncode == 0, run.stderr


@pytest.mark.filterwarnings("ignore")
def test_an_editable_install_finds_the_experiments_too(checkout, tmp_path):
    wheel = built(checkout, tmp_path, "build_editable")
    (path,) = (name for name in wheel.namelist() if name.endswith(".pth"))
    assert wheel.read(path).decode().splitlines() == [str(checkout)]


def test_types_are_visible_to_other_projects():
    assert (Path(cnn425.__file__).parent / "py.typed").exists()


def test_what_is_imported_is_declared():
    """The layers need torch, numpy and numba; the lab's own extra brings the rest, under the names that are imported."""
    needed = {word.split(">")[0] for word in PROJECT["dependencies"]}
    assert needed == {"torch", "numpy", "numba"}
    extra = {word.split(">")[0] for word in PROJECT["optional-dependencies"]["lab"]}
    assert extra == {"pillow" if name == "PIL" else name for name in LAB}


def test_the_layers_do_without_what_the_lab_needs():
    code = f"import sys; sys.modules.update(dict.fromkeys({sorted(LAB)!r})); import cnn425.nn, cnn425.agreement"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_experiments_start_where_another_backend_is_named_for_figures():
    """A notebook exports a backend that only its own environment has; test_figures.py tries others."""
    words = ["-m", "experiments.relaxing", "--help"]
    around = {**os.environ, "MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    run = subprocess.run([sys.executable, *words], capture_output=True, text=True, cwd=ROOT, env=around)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("usage: python -m experiments.relaxing "), "the name under which it was started"


# ---- Scripts


@pytest.fixture
def project(tmp_path):
    """The scripts, in a folder where anything that they did would be seen."""
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    (tmp_path / "runs/demo").mkdir(parents=True)
    (tmp_path / "runs/demo/notes.md").write_text("mine")
    return tmp_path


def started(project, *words):
    before = sorted(project.rglob("*"))
    run = subprocess.run(["bash", *words], cwd=project, capture_output=True, text=True, timeout=300)
    assert sorted(project.rglob("*")) == before, "nothing is made, nothing removed"
    return run


@pytest.mark.parametrize("words", ["--help", "-h", "--fix --help"])
@pytest.mark.parametrize("name", ["demo", "setup", "check", "test", "gallery", "site"])
def test_help_explains_and_does_nothing_else(name, words, project):
    run = started(project, f"scripts/{name}", *words.split())
    assert run.returncode == 0, run.stderr
    assert len(run.stdout) > 80
    assert not {"#", "set -euo", "BASH_SOURCE"} & set(run.stdout.split())
    assert run.stderr == ""


@pytest.mark.parametrize("words", ["setup --torch", "setup --torch newest", "test --torch newest", "setup --torch 2.11 now"])
def test_another_torch_is_named_by_its_version(words, project):
    run = started(project, *f"scripts/{words}".split())
    assert run.returncode == 2
    assert "like 2.11" in run.stderr


@pytest.mark.parametrize("name", ["demo", "setup", "check"])
def test_unknown_arguments_are_refused(name, project):
    run = started(project, f"scripts/{name}", "--hlep")
    assert run.returncode == 2
    assert "--hlep" in run.stderr
