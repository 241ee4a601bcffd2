"""Small networks of the lecture's layers recognise 99 % of MNIST's test digits, which are read once, after the last epoch.

    python -m experiments.leaderboard                                      (about 3 hours: every recipe, 3 seeds)
    python -m experiments.leaderboard --recipes small --seeds 1            (4 minutes)
    python -m experiments.leaderboard --full                               (10 seeds: 11 hours)
    python -m experiments.leaderboard --recipes small --tune               (on 5,000 held-out training pictures instead)
    python -m experiments.leaderboard --ablation                           (what each choice in `small` bought, held out)

Published accuracies of small networks are often the best epoch on the test set, or the best of many models. Here everything was chosen
with 5,000 of the 60,000 training pictures held out. Then the recipe is trained on all 60,000, and the test set is read after the last
epoch. Each (recipe, seed) is a file in the run folder: the same command again goes on where it stopped, `--seeds` more adds more.

Figures:

    leaderboard.png    Accuracy against parameters, and against the time of training. Look at the bars: they span all seeds, and the crosses
                       of other authors, most of them the best of several tries, have none.
"""

import csv
import fnmatch
import io
import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.table import Table
from torch import Tensor

from cnn425.lab import checkpoint, digits, figures, recipes
from cnn425.lab.distortions import STRESSES, stressed
from cnn425.lab.errors import LabError, command
from cnn425.lab.folder import claim, own, write_whole
from cnn425.lab.models import parameters
from cnn425.lab.options import digest
from cnn425.lab.pictures import Pictures, pattern_images
from cnn425.lab.progress import say, say_table
from cnn425.lab.recipes import Recipe, Teacher
from cnn425.lab.seeds import names
from cnn425.lab.study import Study, StudyOptions, at_least, parse, study
from cnn425.lab.verdict import percent

MEMBERS = 4  # networks of a committee
HELD_OUT, SPLIT = 5000, 425  # training pictures on which recipes were tuned, and the seed that chooses them


def tiny(folder: Path) -> list[str]:
    """A command line for the tests. That this is no constant keeps hours of training out of the gallery."""
    return ["--quick", "--seeds", "2", "--recipes", "golf", "small"]


class Entry(NamedTuple):
    """A line of the leaderboard: the recipe, the most parameters it may have, the accuracy it is to reach."""

    recipe: Recipe
    most: int | None
    aim: float


UNDISTORTED: dict[str, Any] = {"rotation": 0, "shift": 0, "scale": 0, "shear": 0}
LIGHTLY: dict[str, Any] = {"rotation": 6, "shift": 1, "scale": 0.05, "shear": 0.05}
MEDIUM = Recipe(
    "conv 12 3, pool, norm, relu, depthwise 3 valid, conv 24 1, norm, relu, depthwise 3 valid, conv 32 1, norm, relu, depthwise 3 valid, "
    "conv 36 1, norm, relu, depthwise 3 valid, conv 40 1, norm, relu, depthwise 3 valid, conv 44 1, norm, relu, mean, linear 10"
)
ENTRIES: dict[str, Entry] = {
    "golf": Entry(
        Recipe(
            "conv 6 3, pool, norm unscaled, relu, depthwise 3 valid, conv 5 1, norm unscaled, relu, depthwise 3 valid, conv 9 1, "
            "norm unscaled, relu, depthwise 3 valid, conv 10 1, norm unscaled, relu, depthwise 3 valid, conv 8 1, norm unscaled, relu, "
            "mean, linear 10",
            epochs=80,
            lr=0.04,
            teacher=Teacher(MEDIUM),
            **UNDISTORTED,
        ),
        700,
        0.985,
    ),
    "small": Entry(
        Recipe(
            "conv 8 3, pool, norm unscaled, relu, depthwise 3 valid, conv 16 1, norm unscaled, relu, depthwise 3 valid, conv 16 1, "
            "norm unscaled, relu, depthwise 3 valid, conv 20 1, norm unscaled, relu, depthwise 3 valid, conv 19 1, norm unscaled, relu, "
            "mean, linear 10",
            epochs=20,
            lr=0.04,
            **LIGHTLY,
        ),
        2000,
        0.991,
    ),
    "medium": Entry(MEDIUM, 8000, 0.994),
    "large": Entry(
        Recipe(
            "conv 16 3, pool, norm, relu, depthwise 3 valid, conv 40 1, norm, relu, depthwise 3 valid, conv 56 1, norm, relu, "
            "depthwise 3 valid, conv 72 1, norm, relu, depthwise 3 valid, conv 72 1, norm, relu, depthwise 3 valid, conv 80 1, norm, relu, "
            "mean, linear 10"
        ),
        25_000,
        0.9955,
    ),
    "local": Entry(
        Recipe(
            "local 16 5 stride 2, norm, relu, local 24 3 stride 2, norm, relu, local 32 3 stride 2, norm, relu, dropout 0.2, linear 10",
            elastic=0.5,
        ),
        None,
        0.992,
    ),
    "between": Entry(
        Recipe(
            "lowrank 8 5 stride 2 rank 2, norm, relu, lowrank 16 3 rank 2, pool, norm, relu, lowrank 16 3 rank 2, norm, relu, "
            "depthwise 7 valid, norm, relu, linear 10",
            epochs=12,
        ),
        None,
        0.992,
    ),
    "sprint": Entry(
        Recipe(
            "crop 4, conv 8 3, pool, norm, relu, conv 24 3, pool, norm, relu, conv 32 3, norm, relu, linear 10",
            epochs=2,
            warmup=0.3,
            average=0,
            **UNDISTORTED,
        ),
        None,
        0.99,
    ),
    "best": Entry(
        Recipe(
            "conv 32 3 valid, norm, relu, conv 32 3 valid, pool, norm, relu, conv 64 3 valid, norm, relu, conv 96 3 valid, norm, relu, "
            "conv 128 3 valid, norm, relu, conv 160 3 valid, norm, relu, linear 10",
            epochs=18,
            lr=0.005,
            elastic=0.5,
        ),
        None,
        0.9975,
    ),
}
PUBLISHED = (  # parameters, accuracy, how it was read, whose; sizes in bytes and quantised networks have no place on this axis
    (575, 0.98, "pruned, best", "hexhowells/NeuralGolfing"),
    (697, 0.9903, "best of about 700 models", "JoshWarn/Parameter-Efficient-MNIST"),
    (1936, 0.9913, "last of 75 epochs, one run", "ruslangrimov/mnist-minimal-model"),
    (9142, 0.994, "last 6 epochs, one run", "sanjeev29/EVA-4"),
)
ABLATION_EPOCHS = 4
NETWORK = ENTRIES["small"].recipe.network
ABLATED: dict[str, dict[str, Any]] = {  # what is changed in `small`
    "as it is": {},
    "no distortion": UNDISTORTED,
    "twice as strong": {name: 2 * how for name, how in LIGHTLY.items()},
    "elastic, too": {"elastic": 0.5},
    "no average": {"average": 0},
    "smoothing 0.1": {"smoothing": 0.1},
    "half the rate": {"lr": 0.02},
    "batches of 64": {"batch_size": 64},
    "no norm": {"network": NETWORK.replace(", norm unscaled", "")},
    "norm and relu behind depthwise, too": {"network": NETWORK.replace("depthwise 3 valid", "depthwise 3 valid, norm unscaled, relu")},
    "two more pixels around": {"network": NETWORK.replace("depthwise 3 valid", "depthwise 3")},
    "weights for places at the end": {"network": NETWORK.replace("mean", "depthwise 6 valid")},
}


@dataclass(frozen=True)
class LeaderboardOptions(StudyOptions):
    """What can be changed; see --help."""

    recipes: tuple[str, ...] = ()
    """Which ones; default: all."""
    seeds: int = 3
    """Runs of each recipe, from `--seed` on; those that are there are shown, too. `--full`: ten. 0: only show what is there."""
    tune: bool = False
    """Train on 55,000 pictures and measure on the other 5,000 of the training set; the test set is not looked at."""
    ablation: bool = False
    """Measure what each choice in the recipe `small` bought, as `--tune` does."""
    habit: bool = False
    """Also keep the best epoch on the test set, as others report it; nothing is chosen by it."""
    quick: bool = False
    """A look at the machinery: one epoch of 256 drawn patterns, no files needed. The accuracies mean nothing."""
    data_dir: Path | None = None
    """The folder that holds MNIST/raw/... Default: CNN425_DATA_DIR, else a cache with download."""
    download: bool = False
    """Download what is missing, also into a folder that was named."""

    def __post_init__(self) -> None:
        """Refuses numbers that mean nothing, and recipes that do not exist."""
        at_least(self, threads=0, seeds=0)
        if unknown := [name for name in self.recipes if name not in ENTRIES]:
            raise LabError(f"there is no recipe {unknown[0]}; there are {', '.join(ENTRIES)}", 2)


class LeaderboardVerdict(NamedTuple):
    """Mean accuracies from 0 to 1, by recipe; holds if every one that was asked for reached 99 %, those below 1,000 parameters 98.5 %."""

    holds: bool
    accuracy: dict[str, float]
    """mean over the seeds [%]"""
    aims_reached: int
    """recipes that reached their own aim"""
    runs: int
    """trained networks"""
    where: str

    def sentence(self) -> str:
        """What came out."""
        found = ", ".join(f"{name} {percent(share, 2)}" for name, share in self.accuracy.items())
        return f"{found} of the {self.where} are recognised, the mean of {self.runs} runs in all"


class Result(NamedTuple):
    """One trained network, as its file says."""

    name: str
    seed: int
    accuracy: float
    stress: dict[str, float]
    """accuracy on distorted pictures"""
    losses: list[float]
    """mean training loss of each epoch, nats"""
    parameters: int
    multiply_adds: int
    seconds: float
    processor_seconds: float
    best_epoch: float | None = None
    """accuracy of the best epoch on the test set; only with --habit"""
    answers: str = ""
    """the file of what it says of every picture, as it is and distorted, `(1 + distortions, pictures, classes)`, float16"""


class Data(NamedTuple):
    """What is learnt from, what is measured on, and its name."""

    training: Pictures
    measured: Pictures
    where: str


def data(options: LeaderboardOptions) -> Data:
    """All of the training pictures and the test set, or the training pictures in two parts; with `--quick`, drawn patterns."""
    if options.quick:
        return Data(pattern_images(256, seed=1), pattern_images(200, seed=2), "drawn patterns")
    training, test = digits.load("mnist", options.data_dir, options.download)
    if not (options.tune or options.ablation):
        return Data(training, test, "test digits")
    order = torch.randperm(len(training.labels), generator=torch.Generator().manual_seed(SPLIT))
    held, rest = (Pictures(training.images[i], training.labels[i], training.classes) for i in (order[:HELD_OUT], order[HELD_OUT:]))
    return Data(rest, held, "held-out training digits")


# ---- One seed ----------------------------------------------------------------------------------------------------------------------------


class Board(NamedTuple):
    """Where results are kept, one file per recipe and seed."""

    folder: Path
    options: LeaderboardOptions
    data: Data

    def file(self, name: str, recipe: Recipe, seed: int | str) -> str:
        """The file of a result: its name changes with everything that can change the result."""
        what = {
            "layers": self.options.layers,
            "examples": len(self.data.training.labels),
            "on": self.data.where,
            "habit": self.options.habit,
        }
        return f"{name.replace(' ', '-')}-{seed}-{digest({**recipe.facts, **what})}.json"

    def kept(self, name: str, recipe: Recipe, seed: int | str = "*") -> list[Result]:
        """The results that are there, of one seed or of all, in the order of the seeds."""
        there = [name for name in own(self.folder) or () if (self.folder / name).exists()]
        files = fnmatch.filter(there, self.file(name, recipe, seed))
        return sorted((Result(**json.loads((self.folder / file).read_text())) for file in files), key=lambda result: result.seed)


def result(name: str, recipe: Recipe, seed: int, board: Board) -> None:
    """Train one seed, or go on with it, unless its file is there."""
    folder, options, known = board
    if board.kept(name, recipe, seed):
        return
    best: list[float] = []

    def after(run: recipes.Run) -> None:
        if options.habit:
            best.append(recipes.accuracy(run.result, known.measured.images, known.measured.labels))
        say(f"{name}, seed {seed}, epoch {len(run.losses)} of {recipe.epochs}: loss {run.losses[-1]:.4f}, {run.seconds:.0f} s")

    learnt = recipes.train(recipe, known.training, options.layers, seed, folder, after)
    images, labels = known.measured.batch(slice(None))
    said = [recipes.answers(learnt.model, shown) for shown in (images, *(stressed(images, how) for how in STRESSES))]
    file = board.file(name, recipe, seed)
    found = Result(
        name,
        seed,
        recipes.right(said[0], labels),
        {how: recipes.right(of, labels) for how, of in zip(STRESSES, said[1:], strict=True)},
        learnt.losses,
        parameters(learnt.model),
        recipes.multiply_adds(learnt.model),
        learnt.seconds,
        learnt.processor_seconds,
        max(best) if len(best) == recipe.epochs else None,
        Path(file).with_suffix(".npy").name,
    )
    numbers = io.BytesIO()
    np.save(numbers, torch.stack(said).half().numpy())
    write_whole(claim(folder, found.answers), numbers.getvalue())
    write_whole(claim(folder, file), json.dumps(found._asdict(), indent=1).encode() + b"\n")
    for path in checkpoint.checkpoints(folder):
        path.unlink()
    say(f"{name}, seed {seed}: {found.accuracy:.2%} of {len(labels):,} {known.where}")


def committees(folder: Path, runs: list[Result], labels: Tensor) -> list[Result]:
    """MEMBERS runs of a recipe taken together, as often as there are so many: the mean of what they say, as probabilities."""
    found, runs = [], [run for run in runs if run.answers and (folder / run.answers).exists()]
    for first in range(0, len(runs) - MEMBERS + 1, MEMBERS):
        members = runs[first : first + MEMBERS]
        said = sum(torch.from_numpy(np.load(folder / run.answers)).float().softmax(-1) for run in members)
        shares = [recipes.right(of, labels) for of in torch.as_tensor(said)]
        together = {
            key: sum(getattr(run, key) for run in members) for key in ("parameters", "multiply_adds", "seconds", "processor_seconds")
        }
        losses = [mean(epoch) for epoch in zip(*(run.losses for run in members), strict=True)]
        name = f"{MEMBERS} x {members[0].name}"
        found.append(Result(name, members[0].seed, shares[0], dict(zip(STRESSES, shares[1:], strict=True)), losses, **together))
    return found


# ---- All seeds ---------------------------------------------------------------------------------------------------------------------------


def mean(numbers: Iterable[float]) -> float:
    """The arithmetic mean."""
    return statistics.fmean(numbers)


def spread(numbers: Sequence[float]) -> str:
    """The standard deviation of single runs, in words for a table: one run has none."""
    return f"{statistics.stdev(numbers):.2f}" if len(numbers) > 1 else "-"


def show(results: dict[str, list[Result]], where: str) -> None:
    """The tables in the terminal; kMACs are thousands of multiply-adds for one picture."""
    columns = ("recipe", "weights", "epochs", "kMACs", "seeds", "mean %", "s.d.", "lowest", "cpu s")
    table = Table(*columns, title=f"right of the {where}")
    for name, runs in results.items():
        shares, first = [100 * run.accuracy for run in runs], runs[0]
        numbers = (f"{first.parameters:,}", str(len(first.losses)), f"{first.multiply_adds / 1000:,.0f}", str(len(runs)))
        seconds = mean(run.processor_seconds for run in runs)
        table.add_row(name, *numbers, f"{mean(shares):.2f}", spread(shares), f"{min(shares):.2f}", f"{seconds:.0f}")
    say_table(table, 80)
    for name, runs in results.items():
        if all(run.best_epoch is not None for run in runs):
            say(f"{name}: {mean(run.best_epoch or 0 for run in runs):.2%} if the best epoch on the test set were chosen, which is no test")
    table = Table("recipe", "as it is", *STRESSES, title="distorted digits, right in %")
    for name, runs in results.items():
        harder = [f"{100 * mean(run.stress[how] for run in runs):.1f}" for how in STRESSES]
        table.add_row(name, f"{100 * mean(run.accuracy for run in runs):.1f}", *harder)
    say_table(table, 80)


def as_csv(results: dict[str, list[Result]]) -> bytes:
    """A row per run."""
    text = io.StringIO()
    kept = [name for name in Result._fields if name not in ("stress", "losses", "answers")]
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow([*kept, "epochs", *STRESSES])
    for run in (run for runs in results.values() for run in runs):
        rows.writerow([*(getattr(run, name) for name in kept), len(run.losses), *(run.stress[how] for how in STRESSES)])
    return text.getvalue().encode()


def curves(results: dict[str, list[Result]], record: Study) -> None:
    """TensorBoard: the training loss of each recipe, mean over its seeds, smallest and largest."""
    for name, runs in results.items():
        tag = f"loss/{name}"
        for epoch, losses in enumerate(zip(*(run.losses for run in runs), strict=True), 1):
            for point, curve in zip((mean(losses), min(losses), max(losses)), names(tag), strict=True):
                record.board.scalar(curve, point, epoch)
        record.charts.setdefault("mean and spread of the seeds", {})[tag] = ["Margin", names(tag)]
        record.board.scalar(f"accuracy/{name}", mean(run.accuracy for run in runs), len(runs[0].losses))


def draw(results: dict[str, list[Result]], where: str) -> Any:
    """The figure: accuracy against parameters, with the published ones, and against the time of training."""
    made = figures.figure(12, 5)
    left, right = made.subplots(1, 2, sharey=True)
    for name, runs in results.items():
        shares = [100 * run.accuracy for run in runs]
        middle = mean(shares)
        error = [[middle - min(shares)], [max(shares) - middle]]
        for axes, x in ((left, runs[0].parameters), (right, mean(run.processor_seconds for run in runs))):
            axes.errorbar([x], [middle], error, fmt="o", color="#00798c", capsize=3)
            axes.annotate(f"{name} ({len(runs)})", (x, middle), (0, 7), textcoords="offset points", fontsize=9, ha="center")
    for k, (x, share, how, whose) in enumerate(PUBLISHED if where == "test digits" else ()):
        left.plot([x], [100 * share], "x", color="#d1495b", label="published, read in another way" if k == 0 else None)
        left.annotate(f"{whose.split('/')[0]}: {how}", (x, 100 * share), (5, -11), textcoords="offset points", fontsize=7, color="#d1495b")
    left.set(xscale="log", xlabel="parameters", ylabel=f"{where} recognised [%]", title="Accuracy against size: mean and all seeds")
    right.set(xscale="log", xlabel="seconds of one processor for the whole training", title="Accuracy against time (number of seeds)")
    if left.get_legend_handles_labels()[0]:
        left.legend(fontsize=8, loc="lower right")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.margins(0.15)
    return made


# ---- What is asked for -------------------------------------------------------------------------------------------------------------------


def asked(options: LeaderboardOptions) -> dict[str, Recipe]:
    """The recipes by name; for the ablation, `small` with one thing changed each."""
    if options.ablation:
        return {how: replace(ENTRIES["small"].recipe, **{"epochs": ABLATION_EPOCHS, **changed}) for how, changed in ABLATED.items()}
    return {name: ENTRIES[name].recipe for name in options.recipes or ENTRIES}


def judged(results: dict[str, list[Result]], where: str) -> LeaderboardVerdict:
    """The verdict."""
    shares = {name: mean(run.accuracy for run in runs) for name, runs in results.items()}
    reached = sum(share >= ENTRIES[name].aim for name, share in shares.items() if name in ENTRIES)
    holds = all(share >= (0.99 if results[name][0].parameters >= 1000 else 0.985) for name, share in shares.items())
    trained = sum(len(runs) for name, runs in results.items() if name in ENTRIES or name in ABLATED)
    return LeaderboardVerdict(holds, shares, reached, trained, where)


def main(argv: Sequence[str] | None = None) -> LeaderboardVerdict:
    """Train what is not there yet, seed by seed; tables, CSV, figure, TensorBoard, verdict."""
    options = parse(LeaderboardOptions, argv)
    options = replace(options, log_dir=options.log_dir or Path("runs/leaderboard"))
    known, chosen = data(options), asked(options)
    if options.quick:
        chosen = {name: replace(recipe, epochs=1) for name, recipe in chosen.items()}
    with study("leaderboard", options) as record:
        board = Board(record.folder, options, known)
        for name, recipe in chosen.items():
            for seed in range(options.seed, options.seed + (10 if options.full else options.seeds)):
                result(name, recipe, seed, board)
        found = {name: runs for name, recipe in chosen.items() if (runs := board.kept(name, recipe))}
        if not found:
            raise LabError(f"there are no results of {', '.join(chosen)} in {record.folder}; say --seeds 1, or more")
        if together := committees(record.folder, found.get("best", []), known.measured.labels):
            found[together[0].name] = together
        show(found, known.where)
        write_whole(claim(record.folder, "results.csv"), as_csv(found))
        curves(found, record)
        record.figure("leaderboard", draw(found, known.where))
        return record.verdict(judged(found, known.where))


if __name__ == "__main__":
    command(main)
