"""README and docs tell nothing that does not work: Python runs, commands name files that are there and options that they have."""

import dataclasses
import importlib
import json
import os
import re
import shlex
import statistics
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import tyro
from PIL import Image

from cnn425 import nn
from cnn425.lab.options import Options
from cnn425.lab.study import StudyOptions
from cnn425.nn import importers
from experiments import explore, mnist, predict

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(path for path in (ROOT / "docs").glob("*.md") if path.name != "gallery.md")]
README = (ROOT / "README.md").read_text()
COMMAND = re.compile(r"(?:^    |`)((?:\.venv/bin/)?python (?:-m experiments|scripts/)[^`\n]*|torchrun [^`\n]*|scripts/\w[^`\n]*)", re.M)


def commands(page):
    """The commands of a page, without what the shell takes for a remark; one that is continued in the next line is left out."""
    found = [words.split("  #")[0].split(" # ")[0].strip() for words in COMMAND.findall(page.read_text())]
    return [words for words in found if not words.endswith("\\")]


CASES = [(page.name, command) for page in PAGES for command in dict.fromkeys(commands(page))]


def keras_weights():
    """Those of Keras's LocallyConnected2D(8, 3, strides=2) on 32x32 pixels in three channels."""
    return importers.keras_weights(nn.LocallyConnected2d(3, 8, 32, 3, stride=2), implementation=1)


@pytest.mark.parametrize("page", [page for page in PAGES if "```python" in page.read_text()], ids=lambda page: page.name)
def test_the_python_of_a_page_runs_from_top_to_bottom(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": page.stem, "keras_layer": SimpleNamespace(get_weights=keras_weights)}  # what the reader has already
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.S):
        exec(block, names)


@pytest.mark.parametrize(("page", "command"), CASES, ids=[f"{page} {command}" for page, command in CASES])
def test_a_command_names_a_file_and_options_that_are_there(page, command, monkeypatch):
    words = shlex.split(command)
    if words[0].startswith("scripts/"):
        assert (ROOT / words[0]).exists()
        assert os.access(ROOT / words[0], os.X_OK) or words[0].endswith(".py")
        return
    if "-m" in words:
        module, *options = words[words.index("-m") + 1 :]
        if module == "experiments":
            module, *options = [f"experiments.{options[0]}", *options[1:]] if options else ["experiments.__main__"]
        loaded = importlib.import_module(module.rstrip("."))
    else:
        monkeypatch.syspath_prepend(str(ROOT / "scripts"))
        loaded, options = importlib.import_module(Path(words[1]).stem), words[2:]
        assert (ROOT / words[1]).exists()
    if kinds := [kind for kind in vars(loaded).values() if is_options(kind, loaded)]:
        tyro.cli(kinds[-1], args=options)


def is_options(kind, module):
    return (
        isinstance(kind, type)
        and dataclasses.is_dataclass(kind)
        and kind.__module__ == module.__name__
        and (kind.__name__.endswith("Options") or issubclass(kind, Options | StudyOptions))
    )


def test_every_page_is_on_the_site_and_every_picture_is_there():
    index = (ROOT / "docs/index.md").read_text()
    assert [page.stem for page in (ROOT / "docs").glob("*.md") if page.stem != "index" and f"\n{page.stem}\n" not in index] == []
    for page in PAGES:
        for picture in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", page.read_text()):
            assert (page.parent / picture).exists(), f"{page.name} shows {picture}"


def test_the_readme_is_short_and_its_film_small():
    assert len(README.splitlines()) <= 130
    assert (ROOT / "docs/images/gallery/filters--kernel.gif").stat().st_size < 2_000_000
    assert "print(nn.report(model))" in README


def table(name):
    """The last line of the table that follows this mark in docs/performance.md, as numbers."""
    rows = (ROOT / "docs/performance.md").read_text().partition(f"<!-- numbers: {name} -->")[2].partition("<!-- end -->")[0].splitlines()
    return [float(number) for number in re.findall(r"\d+\.\d+", rows[-1])]


def errors_over_torchs():
    """The geometric mean of the default's errors over torch's in the table of docs/performance.md."""
    rows = (ROOT / "docs/performance.md").read_text().partition("<!-- numbers: accuracy -->")[2].partition("<!-- end -->")[0]
    torchs, ours = (
        [float(n) for n in re.findall(r"\d\.\de-\d+", " ".join(re.findall(rf"\| {by} \|.*", rows)))] for by in ("torch", "default")
    )
    return statistics.geometric_mean(a / b for a, b in zip(ours, torchs, strict=True))


def test_the_readmes_numbers_are_those_of_the_pages_that_hold_their_evidence():
    speed = README.partition("## How fast, how exact")[2].partition("\n## ")[0]
    default, channels_last, pools, error = map(float, re.findall(r"\*\*(\d\.\d+)\*\*", speed))
    assert [default, channels_last] == table("conv")[2:4]
    assert pools == table("pool")[2]
    assert float(re.search(r"tiny calls take (\S+) times as long", speed)[1]) == round(table("small")[2], 1)
    assert error == pytest.approx(errors_over_torchs(), abs=0.01)
    ours, theirs = re.search(r"test accuracy is (\S+ %) with our layers, (\S+ %) with torch's", README).groups()
    assert f"test accuracy of {ours} (ours) and {theirs} (torch's)" in (ROOT / "docs/training.md").read_text()
    assert json.loads((ROOT / "docs/gallery.json").read_text())["mnist"]["sentence"].startswith(ours)


def test_all_measurements_are_from_one_version_of_torch():
    pages = [*PAGES, ROOT / "docs/gallery.md"]
    assert len({version for page in pages for version in re.findall(r"torch (2\.\d+\.\d+)", page.read_text())}) == 1


def test_the_readmes_commands_one_after_the_other(tmp_path, monkeypatch, capsys):
    """On small data: both runs, a picture of one's own, the page."""
    monkeypatch.chdir(tmp_path)
    page = torch.full((60, 90), 250, dtype=torch.uint8)
    page[10:50, 40:48] = 20
    Image.fromarray(page.numpy()).save("digit.png")
    done = []
    for command in commands(ROOT / "README.md"):
        words = shlex.split(command)
        for module, more in ((mnist, ["--dataset", "patterns", "--examples", "96", "--model", "linear"]), (predict, []), (explore, [])):
            if words[:4] == ["python", "-m", *module.__name__.split(".")]:
                assert module.main([*words[4:], *more]).holds
                done.append(module.__name__)
    assert done == ["experiments.mnist", "experiments.mnist", "experiments.predict", "experiments.explore"]
    assert sorted(path.name for path in Path("runs").iterdir()) == ["custom", "torch"]
    assert Path("runs/custom/explorer.html").exists()
    assert "digit.png: " in capsys.readouterr().out
