"""A study: an experiment that is no training run, with its options, its run folder, its figures and its verdict, all shown by TensorBoard.

    options = parse(WidthOptions, argv)
    with study("width", options) as record:
        record.curve("error/sigmoid", widths, errors)
        record.figure("width", drawn)               width.png in the run folder, and the same picture in TensorBoard
        return record.verdict(WidthVerdict(...))    said in a sentence; verdict.json, one number per tag `verdict/...`, and where to look

A study is made afresh each time: what an earlier one made in the same folder is replaced, and nothing else.
"""

import contextlib
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from cnn425.lab import figures
from cnn425.lab.board import Board, event_files
from cnn425.lab.errors import LabError
from cnn425.lab.folder import claim, describe, home, locked, own
from cnn425.lab.loop import show_board
from cnn425.lab.options import as_words, digest, meaning, parse_any, run_name, with_paths
from cnn425.lab.options import at_least as at_least
from cnn425.lab.progress import say
from cnn425.lab.training import settings
from cnn425.lab.verdict import conclude


@dataclass(frozen=True)
class StudyOptions:
    """What every study can be told."""

    layers: Literal["custom", "torch"] = "custom"
    """Whose layers and loss: this project's, or the ones built into torch. Same initial weights."""
    seed: int = 0
    """Fixes the initial weights and any random data."""
    threads: int = 0
    """CPU threads. 0: torch's own choice."""
    full: bool = False
    """More points, more seeds, longer training."""
    log_dir: Path | None = None
    """The run folder. Default: a folder under runs/ named after these options."""
    dry_run: bool = False
    """Leave no files behind."""

    def __post_init__(self) -> None:
        """Refuses numbers that mean nothing."""
        at_least(self, threads=0)


def in_full(options: StudyOptions, **instead: Any) -> None:
    """Puts the numbers of `--full` in the place of the usual ones, if it was said: `in_full(self, steps=2000)`."""
    if options.full:
        for name, value in instead.items():
            object.__setattr__(options, name, value)


SomeOptions = TypeVar("SomeOptions", bound=StudyOptions)
SomeVerdict = TypeVar("SomeVerdict", bound=NamedTuple)


def parse(kind: type[SomeOptions], argv: Sequence[str] | None) -> SomeOptions:
    """The options typed on the command line (`None`) or given as a list of words."""
    return parse_any(kind, argv)


class Study:
    """The open run folder of a study: whatever is handed in is on the disk and in TensorBoard."""

    def __init__(self, folder: Path, board: Board, dry: bool = False):
        self.folder, self.board, self.dry = folder, board, dry
        self.charts: dict[str, dict[str, list[Any]]] = {}

    def curve(self, tag: str, steps: Iterable[int], values: Iterable[float]) -> None:
        """A curve, a point per pair; TensorBoard wants whole numbers on the horizontal axis (a width, a depth, a step)."""
        self.charts.setdefault(tag.partition("/")[0], {"all": ["Multiline", []]})["all"][1].append(tag)  # compared in one chart
        for step, value in zip(steps, values, strict=True):
            self.board.scalar(tag, value, step)

    def figure(self, name: str, figure: Any) -> None:
        """A matplotlib figure as `<name>.png`, and as a picture in TensorBoard."""
        figures.save(figure, claim(self.folder, f"{name}.png"), dpi=120)
        self.board.figure(name, figure, 0)

    def film(self, name: str, frames: Iterable[Any], seconds: float = 0.4) -> None:
        """Matplotlib figures, one after the other, as `<name>.gif`."""
        figures.film(frames, claim(self.folder, f"{name}.gif"), seconds)

    def drawing(self, name: str, figure: Any) -> None:
        """A matplotlib figure as `<name>.svg` too, which can be enlarged."""
        figures.save(figure, claim(self.folder, f"{name}.svg"))

    def verdict(self, verdict: SomeVerdict) -> SomeVerdict:
        """The verdict itself, once it is said and written down."""
        conclude(verdict, None if self.dry else self.folder)
        for name, value in verdict._asdict().items():
            if isinstance(value, bool | int | float):
                self.board.scalar(f"verdict/{name}", float(value), 0)
        return verdict


@contextlib.contextmanager
def study(name: str, options: StudyOptions) -> Iterator[Study]:
    """The run folder `runs/<name>/<layers>-seed-<seed>-...`, or `--log-dir`; at the end, where to find what was drawn."""
    anything: Any = options  # the lab's functions about options want every field of a training run, and use those that are there
    with contextlib.ExitStack() as stack:
        if options.dry_run:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        else:
            folder = options.log_dir or Path("runs", name, run_name(anything))
        if (folder / "metrics.csv").exists():
            raise LabError(f"{folder} holds a training run, whose logs a study would replace; choose another --log-dir", 2)
        shown, folder = folder, home(folder, "study", f"{name}-{digest(meaning(anything))}")
        stack.enter_context(locked(folder, kind="study"))
        stack.enter_context(settings(anything))  # studies seed as they please; the state outside is left as it was
        for stale in event_files(folder):
            stale.unlink()
        describe(folder, as_words(with_paths(anything, Path.absolute)))
        with contextlib.closing(Board(folder)) as board:
            record = Study(folder, board, options.dry_run)
            yield record
            board.layout(record.charts)
            board.flush()
        if not options.dry_run:
            shown = shown if shown.absolute() == folder else folder
            for picture in sorted(name for name in own(folder) or () if name.endswith((".png", ".gif")) and (folder / name).exists()):
                say(f"figure: {shown / picture}")
            show_board(shown)
