"""Several seeds: one more run for TensorBoard that shows the mean of the others, and how far apart they are.

`loss/held-out` of this run is the mean at each step; `spread/loss/held-out/lower` and `.../upper` are the smallest and the largest of all
runs. The custom-scalars page draws the three as a curve with its margin.
"""

import contextlib
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from cnn425.lab.board import Board, event_files, scalars
from cnn425.lab.errors import LabError
from cnn425.lab.folder import describe, locked

TAGS = ("loss/train", "loss/held-out", "accuracy/train", "accuracy/held-out", "gradient norm/all")


def spread(runs: Sequence[Path]) -> dict[str, dict[int, tuple[float, float, float]]]:
    """By tag and step: mean, smallest and largest value of the runs, where all of them have a point."""
    found: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        for (tag, step), value in {(tag, step): value for tag, step, value in scalars(run)}.items():
            found[tag][step].append(value)
    return {
        tag: {step: (fmean(v), min(v), max(v)) for step, v in sorted(found[tag].items()) if len(v) == len(runs)}
        for tag in TAGS
        if tag in found
    }


def write_spread(folder: Path, runs: Sequence[Path], options: dict[str, Any]) -> None:
    """Write the run of the mean into its own folder; an earlier one is replaced."""
    if (folder / "metrics.csv").exists():
        raise LabError(f"{folder} holds a training run, which the mean of the seeds would replace; choose another --log-dir", 2)
    curves, words = spread(runs), {**options, "seed": f"mean of {len(runs)}"}
    with locked(folder):
        for stale in event_files(folder):
            stale.unlink()
        describe(folder, words)
        with contextlib.closing(Board(folder)) as board:
            margins = {tag: ["Margin", names(tag)] for tag in reversed(curves)}  # TensorBoard shows the last chart of a heading first
            board.layout({"mean and spread of the seeds": margins})
            board.hyper_parameters(words, {tag: 0.0 for tag in curves if tag.endswith("held-out")})
            for tag, points in curves.items():
                for step, values in points.items():
                    for name, value in zip((tag, *names(tag)), (values[0], *values), strict=True):
                        board.scalar(name, value, step)
            board.flush()


def names(tag: str) -> list[str]:
    """The curves of a margin chart: value, lower, upper."""
    return [f"spread/{tag}/{part}" for part in ("mean", "lower", "upper")]
