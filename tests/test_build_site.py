"""The site builds, its links lead somewhere, and what is broken fails the build."""

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
from browser import chromium, opened

from cnn425.lab.errors import LabError
from experiments import mnist

ROOT = Path(__file__).parents[1]


def loaded(path):
    spec = spec_from_file_location(path.stem, path)
    module = module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


script = loaded(ROOT / "scripts" / "build_site.py")
conf = loaded(ROOT / "docs" / "conf.py")


@pytest.mark.slow
def test_the_site_builds_and_its_pages_open(tmp_path, capsys):
    for package in ("sphinx", "myst_parser", "furo"):
        pytest.importorskip(package, reason=f"{package} is not installed (dependency group `site`)")
    site = tmp_path / "site"
    site.mkdir()
    picture = tmp_path / "explorer.png"
    script.main(["--quick", "--out", str(site), "--runs", str(tmp_path / "runs"), "--picture", str(picture)])
    assert script.is_replaceable(site)
    assert not script.stale(picture)
    assert "pages" in capsys.readouterr().out
    names = {path.name for path in site.glob("*.html")}
    assert {"index.html", "gallery.html", "api.html", "explorer.html", "smallest.html", "derivatives.html", "layers.html"} <= names
    assert (site / "files" / "cnn425" / "layers" / "conv.py.txt").exists()
    api = (site / "api.html").read_text()
    for name in ("conv2d", "locally_connected2d", "max_pool2d", "MaxPool2d", "LocallyConnected2d"):
        assert f"cnn425.nn.functional.{name}" in api or f"cnn425.nn.{name}" in api
    assert 'href="files/cnn425/kernels/"' in (site / "performance.html").read_text()
    with chromium() as browser, opened(browser, site / "smallest.html") as page:
        assert "world's smallest network" in page.locator("h1").inner_text()


@pytest.mark.slow
def test_tensorboard_is_photographed_after_the_readmes_runs(tmp_path):
    with chromium():  # or skipped
        pass
    script.photograph_board(tmp_path / "runs", [*mnist.TINY], tmp_path / "board.png")
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["custom", "torch"]
    with script.Image.open(tmp_path / "board.png") as image:
        assert image.size == (1440, 885)
        assert (tmp_path / "board.png").stat().st_size < 300_000


def test_readmes_picture_of_the_explorer_is_of_the_page_as_it_is():
    assert not script.stale(script.PICTURE), "make it again: scripts/site --picture docs/images/explorer.png"


def test_a_picture_of_another_page_is_stale_and_fails_the_build(tmp_path, monkeypatch):
    monkeypatch.setattr(script, "PICTURE", tmp_path / "explorer.png")
    monkeypatch.setattr(script.subprocess, "run", lambda *a, **k: script.subprocess.CompletedProcess(a, 0))  # the gallery is not stale
    script.Image.new("RGB", (2, 2)).save(tmp_path / "explorer.png")
    with pytest.raises(LabError, match=r"explorer.png shows the explorer as it was; make it again with scripts/site --picture"):
        script.main(["--out", str(tmp_path / "site")])


def test_links_to_nowhere_and_links_that_are_none_are_found(tmp_path):
    (tmp_path / "index.html").write_text('<a href="nowhere.html">a</a> <a href="index.html#b">b</a> [c](source:c.py.txt)')
    assert script.broken_links(tmp_path / "index.html") == ["index.html -> nowhere.html", "index.html -> source:c.py.txt"]


@pytest.mark.parametrize("name", ["letter.txt", "objects.inv"], ids=["anything", "a site of another project"])
def test_a_folder_that_is_no_site_of_ours_is_left_alone(name, tmp_path):
    (tmp_path / name).write_text("# Sphinx inventory version 2\n# Project: letters\n")
    for out in (tmp_path, tmp_path / name):
        with pytest.raises(LabError, match="is not an empty folder or a site of this project"):
            script.main(["--quick", "--out", str(out)])
    assert "letters" in (tmp_path / name).read_text()


def test_formulas_of_docstrings_stay_as_they_are_written():
    lines = ["The largest *number*: `a_b`.", "", "    y[n,c,i,j] = max over u, v", "", "Args:", "    x: the image", "", "A last word_"]
    conf.restructured(None, "", "", None, None, lines)
    assert lines[0] == "The largest \\*number\\*: ``a_b``."
    assert "       y[n,c,i,j] = max over u, v" in lines
    assert "       x: the image" in lines
    assert lines[-2] == "A last word\\_"


def test_links_to_files_of_the_repository():
    content = ["[conv](../cnn425/layers/conv.py), [all](../cnn425/autodiff), [page](training.md)"]
    conf.source_links(None, "index", content)
    assert content == ["[conv](source:cnn425/layers/conv.py.txt), [all](source:cnn425/autodiff/), [page](training.md)"]
    with pytest.raises(FileNotFoundError, match=r"docs/index.md links to cnn425/nothing.py, which is not there"):
        conf.source_links(None, "index", ["[x](../cnn425/nothing.py)"])
