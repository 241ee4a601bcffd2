"""Pages: one self-contained HTML file each, script and data inside, no request to anywhere.

`<name>.html` is the skeleton; `<style>` and `<script>` elements with a `data-file` attribute are filled from the files beside it.
"""

import json
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

from cnn425.lab.errors import LabError, refuse_foreign, sentence
from cnn425.lab.folder import write_whole


def page(name: str, data: Any) -> bytes:
    """The page called `name` with its data, as the content of a file."""
    folder = files(__name__)

    def inlined(match: re.Match[str]) -> str:
        return f"<{match[1]}>\n{(folder / match[2]).read_text(encoding='utf-8')}</{match[1]}>"

    html = re.sub(r'<(style|script) data-file="([\w.]+)"></\1>', inlined, (folder / f"{name}.html").read_text(encoding="utf-8"))
    words = json.dumps(data, separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c")  # no text ends the element that holds it
    words = re.sub(r"(?<=[:,\[])(-?)Infinity(?=[,\]}])", r"\g<1>1e999", words)  # JSON has no infinity, and every browser reads 1e999 as one
    words = re.sub(r"(?<=[:,\[])NaN(?=[,\]}])", "null", words)
    return html.replace("{{data}}", words).encode()


def refuse_others(path: Path, name: str) -> None:
    """Refuse to replace what is not a page called `name`: its title tells."""
    title = re.search(r"<title>.*</title>", (files(__name__) / f"{name}.html").read_text(encoding="utf-8"))
    assert title is not None
    refuse_foreign(path, title[0].encode())


def write(path: Path, name: str, content: bytes) -> None:
    """Write a page called `name`; a LabError says why it cannot be."""
    refuse_others(path, name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, content)
    except OSError as error:
        raise LabError(f"{path} cannot be written: {sentence(error)}") from None
