"""One file, one claim of the lecture; `python -m experiments` lists them.

Every file here has the same four parts, so that tests/test_experiments.py can run each one it finds:

    docstring       its first line is the claim; then the command and how long it takes on a laptop CPU; it is also the head of the `--help`
    Options         a frozen dataclass (cnn425/lab/options.py) of every number that can change the result; the rest of the `--help`
    main(argv=None) runs it, prints what a reader wants to see, and returns the verdict: a NamedTuple of numbers with `holds` and `sentence`
    TINY            the words of a command line that runs in seconds, often too small for the claim; the test adds `--log-dir`

They are installed as `cnn425.experiments`, so they import one another relatively.
"""

import ast
import sys
from pathlib import Path

from cnn425.lab.errors import end_at_ctrl_c, need_lab

if sys.argv[:1] == ["-m"]:
    need_lab()
    end_at_ctrl_c()

from cnn425.lab.progress import opening_before_imports

ORDER = (  # of the lecture; what is not named here follows in the order of the alphabet
    "nonlinearity", "approximation_width", "approximation_depth", "residual", "counting", "descent", "smallest", "patterns", "derivatives",
    "derivative_costs", "sharing", "shift", "samples", "ladder", "filters", "pooling", "relaxing", "spectrum", "sleep", "topography",
    "locality", "reading", "mnist", "leaderboard", "predict", "explore",
)  # fmt: skip


def docstring(name: str) -> str:
    """The docstring of an experiment, without importing it."""
    return ast.get_docstring(ast.parse((Path(__file__).parent / f"{name}.py").read_text("utf-8"))) or ""


if sys.argv[:1] == ["-m"]:  # while Python looks for the module of `python -m experiments.shift`
    package, _, name = sys.orig_argv[sys.orig_argv.index("-m") + 1].rpartition(".") if "-m" in sys.orig_argv else ("", "", "")
    if package.endswith("experiments") and (Path(__file__).parent / f"{name}.py").exists():
        opening_before_imports(sys.orig_argv, lambda: docstring(name))

from cnn425.lab import backend as backend  # noqa: E402  before any other import of matplotlib, which fails if MPLBACKEND names a notebook's backend
