"""docs/gallery.md, every figure and number of the experiments: `scripts/gallery` makes again what is stale, `--check` only says so.

An experiment's figures (docs/images/gallery) and verdict (docs/gallery.json) are stored with a digest of what made them: the sources of the
experiment and of the experiments it imports, and the words of its command. Changes in cnn425/ itself do not count: its tests hold the
numbers in place. A page that differs from what its sources say is stale as well, and so is a picture that was changed by hand.
"""

import ast
import hashlib
import importlib
import json
import os
import platform
import re
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import tyro

from experiments import ORDER

ROOT = Path(__file__).parents[1]
LARGEST = 200_000  # bytes of a picture


@dataclass(frozen=True)
class Gallery:
    """Regenerate docs/gallery.md: run the experiments that have changed since, keep the others."""

    names: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Only these experiments (`ladder`, `pooling`, ...). Default: every one in experiments/."""
    check: bool = False
    """Run nothing; list what is stale and end with exit code 1 if anything is."""
    again: bool = False
    """Run them even if nothing has changed."""


# ---- What is stale -----------------------------------------------------------------------------------------------------------------------


def source(name: str) -> Path:
    """The file of an experiment."""
    return ROOT / "experiments" / f"{name}.py"


def experiments() -> list[str]:
    """All experiments in the lecture's order; those that need files of the user's (they define `tiny`) have no place in the gallery."""
    found = [
        path.stem
        for path in (ROOT / "experiments").glob("*.py")
        if not path.stem.startswith("__")
        and not any(isinstance(n, ast.FunctionDef) and n.name == "tiny" for n in ast.parse(path.read_text()).body)
    ]
    return sorted(found, key=lambda name: (ORDER.index(name) if name in ORDER else len(ORDER), name))


def sources(name: str) -> list[Path]:
    """The file of an experiment and of every experiment that it imports, directly or not."""
    known, waiting = [], [name]
    while waiting:
        path = source(waiting.pop())
        if path in known or not path.exists():
            continue
        known.append(path)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level == 1:  # `from . import mnist`, `from .mnist import data`
                waiting += [node.module] if node.module else [alias.name for alias in node.names]
    return sorted(known)


def code(path: Path) -> str:
    """The lines of a file that do something: neither blank nor a docstring."""
    text = path.read_text()
    strings = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant)]
    words = {line for node in strings for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)}
    return "\n".join(line for number, line in enumerate(text.splitlines(), 1) if line.strip() and number not in words)


def digest(name: str) -> str:
    """Changes when the code of the experiment, of one that it imports, or its command does; their words may change."""
    content = [line.encode() for path in sources(name) for line in (path.name, code(path))]
    return hashlib.sha256(b"\0".join([command(name).encode(), *content])).hexdigest()[:16]


def command(name: str) -> str:
    """What a reader types for the same figures."""
    return f"python -m experiments.{name}"


def pictures() -> Path:
    """The folder of the figures."""
    return ROOT / "docs/images/gallery"


def stored() -> dict[str, Any]:
    """What docs/gallery.json knows of each experiment."""
    path = ROOT / "docs/gallery.json"
    return json.loads(path.read_text()) if path.exists() else {}


def stale(name: str, entry: dict[str, Any] | None) -> str | None:
    """Why the experiment must run again; None if it need not."""
    if entry is None:
        return "has never been run for the gallery"
    if entry["digest"] != digest(name):
        return "its source has changed since"
    for figure, was in entry["figures"].items():
        path = pictures() / figure
        if not path.exists():
            return f"docs/images/gallery/{figure} is missing"
        if fingerprint(path) != was:
            return f"docs/images/gallery/{figure} is not the picture it drew"
    return None


def fingerprint(path: Path) -> str:
    """Tells one picture from another."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def problems(entries: dict[str, Any]) -> Iterator[str]:
    """One line for everything that is stale: experiments, pictures of experiments that are gone, the page."""
    names = experiments()
    for name in names:
        reason = stale(name, entries.get(name))
        if reason:
            yield f"experiments/{name}.py: {reason}"
    for name in sorted(set(entries) - set(names)):
        yield f"docs/gallery.json: experiments/{name}.py is gone"
    wanted = {figure for entry in entries.values() for figure in entry["figures"]}
    for path in sorted(pictures().glob("*")):
        if path.name not in wanted:
            yield f"docs/images/gallery/{path.name}: no experiment draws it"
    page = ROOT / "docs/gallery.md"
    if not page.exists() or page.read_text() != rendered(entries):
        yield "docs/gallery.md: differs from what docs/gallery.json and the experiments say"


# ---- Running -----------------------------------------------------------------------------------------------------------------------------


def run(name: str) -> dict[str, Any]:
    """The experiment's entry, after a run with its default options in runs/gallery."""
    folder = ROOT / "runs/gallery" / name
    shutil.rmtree(folder, ignore_errors=True)  # a finished run would only be read, not made again
    module = importlib.import_module(f"experiments.{name}")
    before = digest(name)
    start = time.monotonic()
    verdict = module.main(["--log-dir", str(folder)])
    seconds = time.monotonic() - start
    if "\n    film: bool" in source(name).read_text():
        module.main(["--film", "--log-dir", str(folder)])
    pictures().mkdir(parents=True, exist_ok=True)
    for old in [*pictures().glob(f"{name}.png"), *pictures().glob(f"{name}--*")]:
        old.unlink()
    drawn = sorted([*folder.glob("*.png"), *folder.glob("*.gif")], key=lambda path: (path.stem != name, path.name))
    figures = {}
    for path in drawn:
        if path.stem == "sprites":  # of TensorBoard's projector
            continue
        target = pictures() / (f"{name}.png" if path.stem == name else f"{name}--{path.name}")
        shutil.copyfile(path, target)
        if path.suffix == ".png":
            shrink(target)
        figures[target.name] = fingerprint(target)
    return {
        "digest": before,
        "holds": bool(verdict.holds),
        "sentence": verdict.sentence(),
        "verdict": plain(verdict),
        "figures": figures,
        "seconds": round(seconds),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": {"python": platform.python_version(), "torch": version("torch")},
    }


def plain(value: Any) -> Any:
    """A verdict as JSON can hold it, without the paths of this run."""
    if hasattr(value, "_asdict"):
        return {key: plain(v) for key, v in value._asdict().items() if not isinstance(v, str | Path)}
    if isinstance(value, tuple | list):
        return [plain(v) for v in value]
    if isinstance(value, dict):
        return {str(key): plain(v) for key, v in value.items()}
    return value


def shrink(path: Path) -> None:
    """Make a picture small enough: fewer colours, then fewer pixels."""
    from PIL import Image

    with Image.open(path) as opened:
        picture = opened.convert("RGB")
    colours = 256
    while path.stat().st_size > LARGEST:
        picture.quantize(colours, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(path, optimize=True)
        if colours > 64:
            colours //= 2
        else:
            picture = picture.resize((picture.width * 9 // 10, picture.height * 9 // 10), Image.Resampling.LANCZOS)


# ---- The page ----------------------------------------------------------------------------------------------------------------------------


def rendered(entries: dict[str, Any]) -> str:
    """docs/gallery.md."""
    names = [name for name in experiments() if name in entries]
    lines = [
        "# Gallery: the claims of the lecture, tested",
        "",
        "Made by `scripts/gallery` from the experiments; do not edit. `scripts/gallery --check` says what has gone stale.",
        "",
        "| experiment | claim | verdict |",
        "|---|---|---|",
        *(f"| [{name}](#{name}) | {claim(name)} | {judgement(entries[name])} |" for name in names),
    ]
    for name in names:
        entry, words, said = entries[name], row_words(name), captions(name)
        lines += ["", f"## {name}", "", f"**{claim(name)}**", ""]
        for figure in entry["figures"]:
            caption = said.get(figure.removeprefix(f"{name}--"), claim(name))
            lines += [f"![{caption}](images/gallery/{figure})", "", f"*{caption}*", ""]
        outcome = entry.get("sentence", "")
        lines += [f"The claim {judgement(entry)}{': ' * bool(outcome)}{outcome}.", "", "| measured | value |", "|---|---|"]
        lines += [f"| {title} | {cell} |" for title, cell in rows(entry["verdict"], words)]
        made = f"`{command(name)}`, {entry['seconds']} seconds, {entry['machine']}, "
        made += ", ".join(f"{tool} {number}" for tool, number in entry["versions"].items())
        lines += ["", f"{made}. What is done and what the numbers mean: [experiments/{name}.py](../experiments/{name}.py)."]
    return "\n".join(lines) + "\n"


def judgement(entry: dict[str, Any]) -> str:
    """In words."""
    return "holds" if entry["holds"] else "**does not hold**"


def claim(name: str) -> str:
    """The first line of the experiment's docstring."""
    return (ast.get_docstring(ast.parse(source(name).read_text())) or "").splitlines()[0].replace("|", "\\|")


def row_words(name: str) -> dict[str, str]:
    """What the fields of an experiment's verdict are called: the words below each in its source."""
    found = {}
    for node in ast.parse(source(name).read_text()).body:
        if isinstance(node, ast.ClassDef) and any(isinstance(base, ast.Name) and base.id == "NamedTuple" for base in node.bases):
            for field, after in zip(node.body, [*node.body[1:], None], strict=True):
                if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                    said = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) and str(after.value.value)
                    if said or field.target.id not in found:
                        found[field.target.id] = said or field.target.id.replace("_", " ")
    return found


def captions(name: str) -> dict[str, str]:
    """By picture, what was done and what to look at: the lines of the docstring that begin with the name of a picture."""
    docstring = ast.get_docstring(ast.parse(source(name).read_text())) or ""
    figures = docstring.partition("\nFigures:\n")[2]
    return {m[1]: " ".join(m[2].split()) for m in re.finditer(r"^    (\S+\.(?:png|gif)) +(.*(?:\n {6,}.*)*)", figures, re.M)}


def rows(verdict: dict[str, Any], words: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Title and value of each row of a verdict; a title that ends in [%] is of shares."""
    for key, value in verdict.items():
        title = words.get(key, key.replace("_", " "))
        if key == "holds":
            continue
        if isinstance(value, dict):
            yield title, ", ".join(f"{word} {cell}" for word, cell in rows(value, words))
        elif title.endswith(" [%]"):
            yield title.removesuffix(" [%]"), shown(value, 100) + " %"
        else:
            yield title, shown(value)


def shown(value: Any, scale: float = 1) -> str:
    """A number, or several, for a cell of a table."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "-"}[value]
    if isinstance(value, int) and scale == 1:
        return f"{value:,}"
    if isinstance(value, int | float):
        return f"{scale * value:.3g}"
    return ", ".join(f"({shown(v, scale)})" if isinstance(v, list) else shown(v, scale) for v in value)


# ---- The command -------------------------------------------------------------------------------------------------------------------------


def write(entries: dict[str, Any]) -> None:
    """The page and what it is made from."""
    (ROOT / "docs/gallery.json").write_text(json.dumps(dict(sorted(entries.items())), indent=1) + "\n")
    (ROOT / "docs/gallery.md").write_text(rendered(entries))


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code: 0 if everything is fresh."""
    options = tyro.cli(Gallery, args=argv, description=Gallery.__doc__)
    known = experiments()
    unknown = [name for name in options.names if name not in known]
    if unknown:
        print(f"there is no experiment {unknown[0]}; there are {', '.join(known)}", file=sys.stderr)
        return 2
    entries = stored()
    if options.check:
        found = list(problems(entries))
        print("\n".join(found) if found else f"the gallery is fresh: {len(known)} experiments")
        return 1 if found else 0
    from cnn425.lab.errors import LabError

    chosen = [name for name in options.names or known if options.again or stale(name, entries.get(name))]
    failed = 0
    for number, name in enumerate(chosen, start=1):
        print(f"\n== {number} of {len(chosen)}  {name}: {claim(name)}", flush=True)
        try:
            entries[name] = run(name)
        except LabError as error:
            print(f"{name}: {error}", file=sys.stderr, flush=True)
            failed += 1
            continue
        write(entries)  # after each, so that a run that is cut short loses one experiment at most
    for gone in set(entries) - set(known):
        for figure in entries.pop(gone)["figures"]:
            (pictures() / figure).unlink(missing_ok=True)
    write(entries)
    print(f"\n{len(chosen) - failed} of {len(known)} experiments run, the others left as they were; see docs/gallery.md")
    for name in chosen:
        if name in entries and not entries[name]["holds"]:
            print(f"does not hold: {name}: {claim(name)}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
