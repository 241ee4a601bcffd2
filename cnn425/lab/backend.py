"""Matplotlib, imported with care: its import fails if MPLBACKEND names a backend that is not installed, as notebooks do for their programs.

Nothing else in the lab, and no experiment, imports matplotlib earlier.
"""

import contextlib
import os
import sys
from typing import Any


def _matplotlib() -> Any:
    """Import matplotlib without its MPLBACKEND, then set the backend if there is one of that name."""
    wanted = None if "matplotlib" in sys.modules else os.environ.pop("MPLBACKEND", None)
    try:
        import matplotlib
    finally:
        if wanted is not None:
            os.environ["MPLBACKEND"] = wanted
    if wanted:
        with contextlib.suppress(ValueError):  # for whoever opens windows: here figures are drawn by Agg
            matplotlib.rcParams["backend"] = wanted
    return matplotlib


matplotlib = _matplotlib()

from matplotlib.backends.backend_agg import FigureCanvasAgg as FigureCanvasAgg  # noqa: E402
from matplotlib.figure import Figure as Figure  # noqa: E402
from matplotlib.style import context as context  # noqa: E402
