"""All experiments: what each claims, how long it takes, what came out last.

    python -m experiments                   the list
    python -m experiments shift             run one; what follows its name is passed on to it
    python -m experiments shift --help      its options

The last verdict is that of the newest run under runs/ in this folder, or else that of the gallery (docs/gallery.md).
"""

import importlib
import json
import re
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

from cnn425.lab.errors import command
from cnn425.lab.progress import opening_before_imports

from . import ORDER, docstring

HERE = Path(__file__).parent


def names() -> list[str]:
    """All experiments, in the lecture's order."""
    found = [path.stem for path in HERE.glob("*.py") if not path.stem.startswith("__")]
    return sorted(found, key=lambda name: (ORDER.index(name) if name in ORDER else len(ORDER), name))


def described(name: str) -> tuple[str, str]:
    """The claim, and how long a run takes; both from the docstring, without importing the file."""
    words = docstring(name)
    duration = re.search(r"\(about (half an? \w+|\S+ \w+)", words)
    return words.partition("\n")[0], duration[1] if duration else ""


def last_verdicts() -> dict[str, tuple[bool, str]]:
    """By experiment: whether its claim held when it was run last, and what came out, in a sentence."""
    gallery = HERE.parent / "docs/gallery.json"
    entries = json.loads(gallery.read_text("utf-8")) if gallery.exists() else {}
    found = {name: (bool(entry["holds"]), str(entry.get("sentence", ""))) for name, entry in entries.items()}
    for path in sorted(Path("runs").rglob("verdict.json"), key=lambda path: path.stat().st_mtime):
        try:
            kept = json.loads(path.read_text("utf-8"))
            if kept["holds"] is not None:  # else it was not judged
                found[kept["experiment"]] = bool(kept["holds"]), str(kept["sentence"])
        except (ValueError, KeyError, TypeError):  # of an earlier version
            continue
    return found


def listed() -> str:
    """The list, at most 80 characters wide."""
    verdicts, lines = last_verdicts(), []
    for name in names():
        claim, duration = described(name)
        holds, sentence = verdicts.get(name, (None, ""))
        lines.append(f"{name:<22}{duration}")
        lines += textwrap.wrap(claim, 80, initial_indent="    ", subsequent_indent="    ")
        if holds is not None:
            judgement = ("holds" if holds else "does not hold") + (f": {sentence}" if sentence else "")
            lines += textwrap.wrap(f"last time: {judgement}", 80, initial_indent="    ", subsequent_indent="      ")
        lines.append("")
    return "\n".join([*lines, f"Run one:      python -m {__package__} NAME", f"Its options:  python -m {__package__} NAME --help"])


def main(argv: Sequence[str] | None = None) -> None:
    """List the experiments, or run the one that is named."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words:
        print(listed(), flush=True)
    elif words[0] in ("-h", "--help"):
        print((__doc__ or "").replace("-m experiments", f"-m {__package__}"))
    elif words[0] not in names():
        print(f"there is no experiment {words[0]}; there are {', '.join(names())}", file=sys.stderr)
        raise SystemExit(2)
    else:
        opening_before_imports(words, lambda: docstring(words[0]))
        module = importlib.import_module(f".{words[0]}", __package__)
        command(lambda: module.main(words[1:]))


if __name__ == "__main__":
    command(main)
