"""The site, in `site/`: docs, gallery, explorer pages, comparison reports, API reference; `scripts/site` calls this.

A broken link, a stale figure of the gallery or a stale picture of the explorer fails the build. The networks are trained on the spot (a
minute), or the run folders of an earlier build are used again.
"""

import contextlib
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from cnn425.lab import checkpoint
from cnn425.lab import pages as skeletons
from cnn425.lab.errors import LabError, command
from cnn425.lab.explorer import explore
from cnn425.lab.models import build
from cnn425.lab.pictures import PATTERNS, patterns
from experiments import derivatives, mnist
from experiments import explore as explorer
from experiments import patterns as smallest

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs" / "images" / "explorer.png"


@dataclass(frozen=True)
class SiteOptions:
    """What can be changed."""

    out: Path = ROOT / "site"
    """The folder of the site; what is in it is replaced."""
    runs: Path = ROOT / "runs" / "site"
    """Where the networks are trained, or found."""
    quick: bool = False
    """Networks that have hardly learnt, and no look at the gallery: to try the build."""
    picture: Path | None = None
    """Also make this picture of the explorer, for the README: docs/images/explorer.png. It needs Chromium and playwright."""
    board: Path | None = None
    """Also make this picture of TensorBoard after README's two runs: docs/images/tensorboard.png. It needs Chromium and playwright."""


def main(argv: list[str] | None = None) -> None:
    """Build the site."""
    options = tyro.cli(SiteOptions, args=argv, description=__doc__)
    if os.path.lexists(options.out) and not is_replaceable(options.out):
        raise LabError(f"{options.out} is not an empty folder or a site of this project; name another one with --out", 2)
    if not options.quick and subprocess.run([sys.executable, "scripts/gallery.py", "--check"], cwd=ROOT).returncode:
        raise LabError("the gallery is stale; make it again with scripts/gallery")
    if not options.quick and not options.picture and stale(PICTURE):
        raise LabError(f"{PICTURE} shows the explorer as it was; make it again with scripts/site --picture {PICTURE}")
    shutil.rmtree(options.out, ignore_errors=True)
    folders = [str(options.runs / "doctrees"), str(ROOT / "docs"), str(options.out)]
    words = ["-W", "-E", "--keep-going", "-n", "-q", "-b", "html", "-d", *folders]
    if subprocess.run([sys.executable, "-m", "sphinx", *words], cwd=ROOT).returncode:
        raise LabError("the docs have broken links or other mistakes, see above")
    copy_sources(options.out / "files")
    pages(options)
    if options.picture:
        photograph(options.out / "explorer.html", options.picture)
    if options.board:
        photograph_board(options.runs / "board", [*mnist.TINY] if options.quick else [], options.board)
    broken = [link for page in options.out.glob("*.html") for link in broken_links(page)]
    if broken:
        raise LabError(f"broken links: {', '.join(broken[:10])}")
    size = sum(path.stat().st_size for path in options.out.rglob("*") if path.is_file())
    print(f"{options.out}: {len(list(options.out.glob('*.html')))} pages, {size / 1e6:.1f} MB; open {options.out / 'index.html'}")


def is_replaceable(folder: Path) -> bool:
    """Whether nothing is lost if this folder goes: it is empty, or an earlier build."""
    inventory = folder / "objects.inv"  # Sphinx's list of what a site documents
    if inventory.is_file():
        return b"# Project: cnn425" in inventory.read_bytes()[:100]
    return folder.is_dir() and not any(folder.iterdir())


def copy_sources(folder: Path) -> None:
    """The files of the repository as text, so that links to them work on any host."""
    listed = subprocess.run(
        ["git", "ls-files", "cnn425", "exercises", "experiments", "scripts", "tests"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in listed.stdout.split():
        if (ROOT / name).is_file() and not name.endswith(".npz"):
            copy = folder / f"{name}.txt"
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy)
    for place in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
        names = sorted(path.name + ("/" if path.is_dir() else "") for path in place.iterdir())
        items = "".join(
            f'<li><a href="{name}{"index.html" if name.endswith("/") else ""}">{name.removesuffix(".txt")}</a></li>' for name in names
        )
        title = place.relative_to(folder.parent)
        (place / "index.html").write_text(
            f'<!DOCTYPE html><html lang="en"><meta charset="utf-8"><title>{title}</title><h1>{title}</h1><ul>{items}</ul>'
        )


def pages(options: SiteOptions) -> None:
    """The pages that are looked into rather than read."""
    few = [*mnist.TINY] if options.quick else []
    run = str(options.runs / "mnist")
    mnist.main([*few, "--log-dir", run])
    explorer.main(["--checkpoint", run, "--log-dir", str(options.out)])
    folder = options.runs / "patterns"
    smallest.main(["--log-dir", str(folder), *(["--epochs", "2"] if options.quick else [])])
    model = build("smallest", "custom", 0, size=(3, 3), classes=len(PATTERNS)).double()
    model.load_state_dict(checkpoint.read(checkpoint.checkpoints(folder)[0])["model"])
    shown = patterns()
    explore(model.float(), shown.images, options.out / "smallest.html", shown.labels, shown.classes, title="the world's smallest network")
    derivatives.main(["--page", "--log-dir", str(options.out)])
    compare = [sys.executable, str(ROOT / "scripts" / "compare_layers.py")]
    quick = ["--repeats", "1", "--no-gradcheck"] if options.quick else []
    for words in (
        ["--html", str(options.out / "layers.html"), *quick],
        ["--model", run, "--html", str(options.out / "networks.html"), *quick],
    ):
        if subprocess.run([*compare, *words], cwd=ROOT, stdout=subprocess.DEVNULL).returncode:
            raise LabError(f"compare_layers.py {' '.join(words)} finds a difference or fails")


@contextlib.contextmanager
def chromium(width: int, height: int) -> Iterator[Any]:
    """An empty page of a browser without a window."""
    from playwright.sync_api import sync_playwright

    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        raise LabError("no Chromium is installed (apt-get install chromium)")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        yield browser.new_page(viewport={"width": width, "height": height}, device_scale_factor=1.5)
        browser.close()


def photograph(page: Path, picture: Path) -> None:
    """A picture of an explorer page, so narrow that its words can be read at 700 pixels: the unit that answers most, and its sum."""
    with chromium(720, 1050) as shown:
        shown.goto(page.resolve().as_uri())
        shown.evaluate("select(1, strongest(state.values[1])); scrollTo(0, at('layers').offsetTop)")
        shown.screenshot(path=str(picture))
    made_from = PngInfo()
    made_from.add_text("page", digest())
    with Image.open(picture) as image:
        image.load()
        image.save(picture, pnginfo=made_from, optimize=True)


def photograph_board(runs: Path, few: list[str], picture: Path) -> None:
    """A picture of TensorBoard after README's two runs of mnist: the held-out accuracy and loss of both, without the settings."""
    for layers in ("custom", "torch"):
        mnist.main([*few, "--layers", layers, "--log-dir", str(runs / layers)])
    words = [sys.executable, "-m", "tensorboard.main", "--logdir", str(runs), "--port", "0"]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            address = next(found[0] for line in server.stderr if (found := re.search(r"http://localhost:\d+/", line)))
            with chromium(960, 590) as shown:
                shown.set_default_timeout(120_000)  # milliseconds, for a machine that is busy with other things
                shown.goto(f"{address}?tagFilter=(accuracy|loss)%2Fheld-out#timeseries")
                shown.get_by_label("Toggle settings side pane").click()
                shown.locator("scalar-card tb-data-table-content-row").nth(3).wait_for()
                shown.wait_for_timeout(2000)  # the curves move to their place
                shown.screenshot(path=str(picture))
        finally:
            server.terminate()
    with Image.open(picture) as image:
        image.convert("RGB").quantize(128).save(picture, optimize=True)


def digest() -> str:
    """Of the explorer page without a network: what a picture of it was made from."""
    return hashlib.sha256(skeletons.page("explorer", {})).hexdigest()


def stale(picture: Path) -> bool:
    """Whether a picture of the explorer shows another page than today's."""
    with Image.open(picture) as image:
        return image.info.get("page") != digest()


def broken_links(page: Path) -> list[str]:
    """The links of a page to files of the site that are not there, or that are shown as they were typed."""
    text = page.read_text(encoding="utf-8")
    found = re.findall(r'(?:href|src)="([^"#?:]+)(?:[#?][^"]*)?"', text)
    lost = [link for link in dict.fromkeys(found) if not (page.parent / link).exists()]
    return [f"{page.name} -> {link}" for link in (*lost, *re.findall(r"\]\(((?:source|page):[^)<]*)\)", text))]


if __name__ == "__main__":
    command(main)
