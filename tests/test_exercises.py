"""The solutions of the exercises pass, plausible mistakes do not, and what is not filled in fails nobody's test."""

import importlib
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "tests/exercises"))
from checks import CHECKS  # noqa: E402

NAMES = sorted(path.stem for path in (ROOT / "exercises").glob("*.py") if path.stem != "__init__")
MISTAKES = {  # in the solution, this for that
    "a difference to one side": ("derivative", "(f(x + h) - f(x - h)) / (2 * h)", "(f(x + h) - f(x)) / h"),
    "one path forgotten": ("backward", "(1 / x1 + x2)", "x2"),
    "a sum instead of the mean": ("softmax", " / len(labels)", ""),
    "a window over the whole image": ("counting", "positions * k * k", "positions * h * w"),
    "rounded up": ("size", "// stride + 1", "// stride + 2"),
    "a copy": ("windows", "(c * h * w, h * w, s * w, s, w, 1))", "(c * h * w, h * w, s * w, s, w, 1)).clone()"),
    "the gradient averaged over positions": ("convolution", "gy, windows)", "gy, windows) / gy[0, 0].numel()"),
    "a mean of gradients": ("sharing", ".sum((0, 1))", ".mean((0, 1))"),
    "overlaps overwritten instead of added": ("pooling", "+=", "="),
    "the last of equal pixels wins": ("ties", ".flatten().argmax()", ".flatten().flip(0).argmax()"),
}


@pytest.mark.parametrize("name", NAMES)
def test_the_solution_is_right(name):
    CHECKS[name](importlib.import_module(f"exercises.solutions.{name}"))


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told(mistake):
    name, right, wrong = MISTAKES[mistake]
    source = (ROOT / f"exercises/solutions/{name}.py").read_text()
    assert right in source
    module = ModuleType(name)
    exec(source.replace(right, wrong), vars(module))
    with pytest.raises(AssertionError):
        CHECKS[name](module)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_asked_for_is_the_same_in_exercise_and_solution(name):
    asked, solved = (
        re.findall(r"^def .*?^    \"\"\".*?\"\"\"$", (ROOT / path / f"{name}.py").read_text(), re.M | re.S)
        for path in ("exercises", "exercises/solutions")
    )
    assert asked == solved != []


def test_there_are_ten_each_on_the_page_and_unfilled_ones_are_skipped():
    assert len(NAMES) == 10
    assert sorted(CHECKS) == NAMES
    page = (ROOT / "docs/exercises.md").read_text()
    assert re.findall(r"\(\.\./exercises/(\w+)\.py\)", page) == list(CHECKS), "in the order of the lecture"
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "tests/exercises", "-k", "pooling"]
    run = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout
    assert "exercises/pooling.py is not filled in yet" in run.stdout or "1 passed" in run.stdout
