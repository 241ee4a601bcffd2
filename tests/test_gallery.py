"""The gallery knows what is stale, and runs no more than that; tried on a small project of its own."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
from PIL import Image

SCRIPT = Path(__file__).parents[1] / "scripts/gallery.py"

EXPERIMENT = '''"""Two and two are {what}.

Figures:

    {name}.png      Both were added. Look
                    at the sum.
"""
from pathlib import Path
from typing import NamedTuple
from PIL import Image

class Verdict(NamedTuple):
    holds: bool
    sum: int
    """two and two"""
    errors: tuple[float, ...]
    share: float
    """right [%]"""
    folder: str
    def sentence(self):
        return f"they are {{self.sum}}"

def main(argv):
    folder = Path(argv[argv.index("--log-dir") + 1])
    folder.mkdir(parents=True)
    for name in ("{name}", "more", "sprites"):
        Image.new("RGB", (8, 8), "red").save(folder / f"{{name}}.png")
    return Verdict({holds}, 4, (0.5, 1e-9), 0.987, str(folder))
'''


@pytest.fixture
def gallery(tmp_path, monkeypatch):
    """The script, at work on a project with the experiments `first` (which imports `second`) and `second`."""
    spec = importlib.util.spec_from_file_location("gallery_script", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "gallery_script", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    folder = tmp_path / "experiments"
    folder.mkdir()
    (tmp_path / "docs").mkdir()
    (folder / "__init__.py").touch()
    (folder / "first.py").write_text(
        EXPERIMENT.format(name="first", what="four", holds=True) + "\n\ndef later():\n    from .second import main\n"
    )
    (folder / "second.py").write_text(EXPERIMENT.format(name="second", what="five", holds=False))
    for name in [name for name in sys.modules if name.split(".")[0] == "experiments"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    yield module
    for name in [name for name in sys.modules if name.split(".")[0] == "experiments"]:
        sys.modules.pop(name)


def test_everything_is_stale_before_the_first_run_and_nothing_after_it(gallery, capsys):
    assert gallery.main(["--check"]) == 1
    assert "experiments/first.py: has never been run" in capsys.readouterr().out
    assert gallery.main([]) == 0
    assert gallery.main(["--check"]) == 0
    assert "fresh: 2 experiments" in capsys.readouterr().out


def test_the_page_says_what_came_out_also_when_a_claim_does_not_hold(gallery, capsys):
    gallery.main([])
    page = (gallery.ROOT / "docs/gallery.md").read_text()
    assert "| [first](#first) | Two and two are four. | holds |" in page
    assert "| [second](#second) | Two and two are five. | **does not hold** |" in page
    assert "| two and two | 4 |\n| errors | 0.5, 1e-09 |\n| right | 98.7 % |\n" in page
    assert "\nThe claim **does not hold**: they are 4.\n" in page
    assert "![Both were added. Look at the sum.](images/gallery/first.png)\n\n*Both were added. Look at the sum.*" in page
    assert str(gallery.ROOT) not in page, "no paths of the machine that made it"
    assert sorted(p.name for p in gallery.pictures().iterdir()) == ["first--more.png", "first.png", "second--more.png", "second.png"]
    assert "does not hold: second" in capsys.readouterr().out


def test_a_fresh_experiment_is_not_run_again(gallery, capsys):
    gallery.main([])
    capsys.readouterr()
    gallery.main([])
    assert "0 of 2 experiments run" in capsys.readouterr().out
    gallery.main(["--again", "second"])
    assert "1 of 2 experiments run" in capsys.readouterr().out


def test_an_edit_makes_those_stale_that_use_it(gallery, capsys):
    gallery.main([])
    path = gallery.source("second")
    path.write_text(path.read_text() + "# changed\n")
    capsys.readouterr()
    assert gallery.main(["--check"]) == 1
    out = capsys.readouterr().out
    assert "experiments/second.py: its source has changed" in out
    assert "experiments/first.py: its source has changed" in out, "it imports the other"
    path = gallery.source("first")
    path.write_text(path.read_text() + "# changed\n")
    gallery.main(["second"])
    capsys.readouterr()
    assert gallery.main(["--check"]) == 1
    assert "second" not in capsys.readouterr().out


def test_other_words_in_a_docstring_need_no_other_run(gallery, capsys):
    gallery.main([])
    path = gallery.source("second")
    path.write_text(path.read_text() + '\n"""More words."""\n')
    capsys.readouterr()
    assert gallery.main(["--check"]) == 0


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda g: (g.pictures() / "first.png").unlink(), "first.png is missing"),
        (lambda g: Image.new("RGB", (8, 8), "blue").save(g.pictures() / "first.png"), "first.png is not the picture it drew"),
        (lambda g: (g.pictures() / "stray.png").touch(), "stray.png: no experiment draws it"),
        (lambda g: (g.ROOT / "docs/gallery.md").write_text("nice"), "docs/gallery.md: differs"),
        (lambda g: g.source("first").unlink(), "docs/gallery.json: experiments/first.py is gone"),
    ],
    ids=["picture missing", "picture changed by hand", "picture of nobody", "page edited", "experiment gone"],
)
def test_what_was_changed_from_outside_is_found(gallery, spoil, said, capsys):
    gallery.main([])
    spoil(gallery)
    capsys.readouterr()
    assert gallery.main(["--check"]) == 1
    assert said in capsys.readouterr().out


def test_a_picture_that_is_too_large_becomes_small_enough(gallery, tmp_path):
    path = tmp_path / "noise.png"
    noise = numpy.random.default_rng(0).integers(0, 256, (600, 600), dtype=numpy.uint8)  # grey: few colours are counted quickly
    Image.fromarray(noise).save(path)
    assert path.stat().st_size > gallery.LARGEST
    gallery.shrink(path)
    assert path.stat().st_size <= gallery.LARGEST
    with Image.open(path) as picture:
        assert picture.width > 200


def test_an_unknown_experiment_is_one_line(gallery, capsys):
    assert gallery.main(["third"]) == 2
    assert capsys.readouterr().err == "there is no experiment third; there are first, second\n"


def test_check_needs_no_torch():
    """It may run in a hook: no import of torch, which takes seconds."""
    code = f"""
import runpy, sys
sys.argv = ["gallery", "--check"]
try:
    runpy.run_path({str(SCRIPT)!r}, run_name="__main__")
except SystemExit:
    pass
assert "torch" not in sys.modules
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=300).returncode == 0
