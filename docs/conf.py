"""How Sphinx makes the site; `scripts/site` calls it, with warnings as errors, so that a broken link fails the build."""

import re
from pathlib import Path
from typing import Any

project = "cnn425"
extensions = ["myst_parser", "sphinx.ext.autodoc"]
html_theme = "furo"
html_title = "cnn425"
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
html_static_path = ["site.css"]
html_css_files = ["site.css"]
autodoc_member_order = "bysource"
autodoc_typehints = "none"
myst_heading_anchors = 4
myst_url_schemes = {
    "http": None,
    "https": None,
    "page": "{{path}}",
    "source": "files/{{path}}",
}  # a scheme `file` is no link to newer versions of markdown-it

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"\]\(\.\./([^)#]+)(#[^)]*)?\)")


def restructured(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Docstrings are plain text: prose becomes paragraphs, what is indented or aligned by hand is shown as it is written."""
    found: list[str] = []
    for part in "\n".join(lines).strip("\n").split("\n\n"):
        rows = part.split("\n")
        if any(row.startswith((" ", "- ", "|")) or re.search(r"\S {2,}\S", row) for row in rows):
            found += [".. code-block:: text", "", *(f"   {row}" for row in rows), ""]
        else:
            found += [*map(escaped, rows), ""]
    lines[:] = found


def escaped(row: str) -> str:
    """A row of prose for reStructuredText: code between backticks stays, marks that mean something there do not."""
    pieces = row.split("`")
    if len(pieces) % 2 == 0:
        return re.sub(r"([*_|`\\])", r"\\\1", row)
    return "".join(f"``{piece}``" if k % 2 else re.sub(r"([*_|\\])", r"\\\1", piece) for k, piece in enumerate(pieces))


def source_links(app: Any, name: str, content: list[str]) -> None:
    """Links to files of the repository lead to their copies in the site (scripts/build_site.py); one that is not there is an error."""

    def copied(match: re.Match[str]) -> str:
        path = match[1]
        if path.endswith(".md") and path.startswith("docs/"):
            return f"]({path.removeprefix('docs/')}{match[2] or ''})"
        if not (ROOT / path).exists():
            raise FileNotFoundError(f"docs/{name}.md links to {path}, which is not there")
        return f"](source:{path}{'/' if (ROOT / path).is_dir() else '.txt'})"

    content[0] = LINK.sub(copied, content[0])


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", restructured)
    app.connect("source-read", source_links)
