"""Networks made of our own layers read handwritten digits: the convolutional one reaches 98.5 % of the test digits after one epoch.

    python -m experiments.mnist --model conv --layers custom --epochs 1        (about half a minute on two CPU cores)
    python -m experiments.mnist --model conv --layers torch --epochs 1         (same initial weights, same batches)
    python -m experiments.mnist --seeds 5                                      (five runs, and one that shows their mean and spread)

The files of MNIST are looked for in `--data-dir`, else in CNN425_DATA_DIR; without either they are downloaded once into the user's cache.
A run that was ended goes on with the same command, or with `--resume` and its folder.

Figures:

    mnist.png       The convolutional network learns all 60,000 digits once, and is asked about 10,000 others before and after. Look at the
                    first hundred steps, in which most is learnt.
    mistakes.png    The first test digits that it takes for others, with the true class and the one it names. Some of them would puzzle a
                    reader, too.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, NamedTuple

from torch import nn

from cnn425.lab import digits, figures, recipes
from cnn425.lab.board import scalars
from cnn425.lab.errors import LabError, command
from cnn425.lab.folder import claim
from cnn425.lab.loop import default_folder, show_board, train
from cnn425.lab.models import build
from cnn425.lab.options import Options, at_least, meaning, parse
from cnn425.lab.pictures import Pictures, pattern_images
from cnn425.lab.progress import in_a_shell, is_first, say
from cnn425.lab.seeds import write_spread
from cnn425.lab.verdict import conclude, percent

TINY = ("--dataset", "patterns", "--examples", "96", "--batch-size", "32")

GOALS = {"linear": 0.90, "mlp": 0.96, "local": 0.97, "conv": 0.985}  # of MNIST's test digits, after the first epoch


@dataclass(frozen=True)
class DigitOptions(Options):
    """What can be changed; see --help."""

    warmup: float = 0.4  # a slow start: else rounding, ours or torch's, has changed the third digit of the loss after 100 steps
    model: Literal["linear", "mlp", "local", "conv"] = "conv"
    """What a unit of the first layer sees: everything (mlp has a second layer, too), a window of its own weights, or of shared ones."""
    dataset: digits.Dataset | Literal["patterns"] = "mnist"
    """MNIST, a sibling with files of its own, or three patterns drawn on 28x28 pixels (no files needed)."""
    examples: int = 0
    """Use only the first so many training pictures, and a fifth as many for the test. 0: all."""
    data_dir: Path | None = None
    """The folder that holds MNIST/raw/... Default: CNN425_DATA_DIR, else the user's cache, into which missing files are downloaded."""
    seeds: int = 1
    """Train so many times, with --seed and the seeds after it, in folders beside one another; one more shows their mean and spread."""
    download: bool = False
    """Download missing files into --data-dir or CNN425_DATA_DIR too, as `download=True` does in torchvision."""

    def __post_init__(self) -> None:
        """Refuses numbers that mean nothing."""
        super().__post_init__()
        at_least(self, examples=0, seeds=1)


class DigitVerdict(NamedTuple):
    """Accuracy from 0 to 1, mean loss in nats per picture, learnable numbers; holds if the test accuracy reaches the goal of the model."""

    holds: bool
    test_accuracy: float
    """test digits recognised [%]"""
    test_loss: float
    """mean loss on the test digits, in nats"""
    train_accuracy: float
    """training digits recognised in the last epoch, while learning [%]"""
    train_loss: float
    """their mean loss, in nats"""
    parameters: int
    """weights and biases"""
    steps: int
    """steps"""
    folder: str

    def sentence(self) -> str:
        """What came out."""
        return (
            f"{percent(self.test_accuracy, 2)} of the test pictures are recognised after {self.steps:,} steps, by {self.parameters:,} "
            "weights and biases"
        )


def data(options: DigitOptions) -> tuple[Pictures, Pictures]:
    """Training and test pictures."""
    if options.dataset == "patterns":
        many = options.examples or 6000
        return pattern_images(many, seed=options.seed), pattern_images(max(1, many // 5), seed=options.seed + 1)
    training, test = digits.load(options.dataset, options.data_dir, options.download)
    if options.examples:
        training, test = training.first(options.examples), test.first(max(1, options.examples // 5))
    return training, test


def tested_on(options: dict[str, Any], data_dir: Path | None) -> Pictures:
    """The test pictures of a trained network, by the options in its checkpoint."""
    kept = {name: options[name] for name in ("dataset", "examples", "seed") if name in options}
    return data(DigitOptions(**kept, data_dir=data_dir))[1]


def main(argv: Sequence[str] | None = None) -> DigitVerdict:
    """Train one model on one data set; the verdict."""
    options = parse(DigitOptions, argv)
    verdict = with_seeds(options) if options.seeds > 1 else with_seed(options)
    several = options.seeds > 1
    place = None if options.dry_run else Path(verdict.folder, "mean") if several else Path(verdict.folder)
    conclude(verdict, place, judged=goal_of(options) > 0)
    if not options.dry_run:
        show_board(options.log_dir or Path(verdict.folder).parent)
        run = in_a_shell(Path(verdict.folder, f"seed-{options.seed}") if several else Path(verdict.folder))
        say(f"      python -m {__package__}.predict --checkpoint {run} digit.png     (a picture of your own)")
        say(f"      python -m {__package__}.explore --checkpoint {run}     (every number of the network, on a page)")
    return verdict


def goal_of(options: DigitOptions) -> float:
    """The test accuracy that is claimed, from 0 to 1; 0: nothing is claimed of other data, of some of the pictures, or of no training."""
    whole = options.dataset == "mnist" and not (options.examples or options.dry_run)
    return GOALS[options.model] if whole and options.epochs else 0.0


def with_seeds(options: DigitOptions) -> DigitVerdict:
    """Train with several seeds; the verdict has the means, and holds if it does for each of them."""
    if options.resume:
        raise LabError("--resume goes on with one run; to go on with several, say the same command with --seeds again", 2)
    default = default_folder("mnist", options.model, options)
    parent = options.log_dir or default.with_name(f"{default.name}-{options.seeds}-seeds")
    each = [replace(options, seed=options.seed + k, seeds=1, log_dir=parent / f"seed-{options.seed + k}") for k in range(options.seeds)]
    verdicts = [with_seed(one) for one in each]
    if not options.dry_run and is_first():
        write_spread(parent / "mean", [Path(verdict.folder) for verdict in verdicts], meaning(options))
    accuracies = [verdict.test_accuracy for verdict in verdicts]
    say(f"{options.seeds} seeds: {fmean(accuracies):.2%} of the test pictures on average, {min(accuracies):.2%} to {max(accuracies):.2%}")
    means: dict[str, Any] = {
        name: fmean(getattr(v, name) for v in verdicts) for name in ("test_accuracy", "test_loss", "train_accuracy", "train_loss")
    }
    return verdicts[0]._replace(holds=all(v.holds for v in verdicts), folder=str(parent), **means)


def with_seed(options: DigitOptions) -> DigitVerdict:
    """Train once; the verdict."""
    training, test = data(options)
    model = build(options.model, options.layers, options.seed, classes=len(training.classes))
    folder = options.log_dir or default_folder("mnist", options.model, options)
    result = train(options, model, training, test, folder, title=f"{options.model} ({options.layers})")
    if not (options.dry_run or options.shard) and is_first():
        draw(options, model, test, result.folder)
    goal = goal_of(options)
    holds = result.held_out_accuracy >= goal
    say(
        f"{options.model} of {options.layers} layers, {result.parameters} parameters, {result.steps} steps: "
        f"{result.held_out_accuracy:.2%} of {len(test.labels) if not options.dry_run else 'two batches of'} test pictures"
        + (f" ({'at least' if holds else 'below'} the goal of {goal:.1%})" if goal else "")
    )
    return DigitVerdict(
        holds,
        result.held_out_accuracy,
        result.held_out_loss,
        result.train_accuracy,
        result.train_loss,
        result.parameters,
        result.steps,
        str(result.folder),
    )


def draw(options: DigitOptions, model: nn.Sequential, test: Pictures, folder: Path) -> None:
    """Loss and accuracy against the step, as mnist.png, and the pictures that are taken for something else, as mistakes.png."""
    written = {(tag, step): value for tag, step, value in scalars(folder)}
    said = recipes.answers(model, test.images)
    with figures.own_style():
        made = figures.figure(9, 4)
        right = percent(recipes.right(said, test.labels), 2)
        made.suptitle(f"{options.model} of {options.layers} layers: {right} of {len(test.labels):,} test pictures", fontsize=12)
        for axes, name, label in zip(made.subplots(1, 2), ("loss", "accuracy"), ("loss [nats]", "recognised [%]"), strict=True):
            scale = 100 if name == "accuracy" else 1
            for kind, colour, style in (("train", "#bbbbbb", "-"), ("held-out", "#d1495b", "o-")):
                points = [(step, scale * value) for (tag, step), value in sorted(written.items()) if tag == f"{name}/{kind}"]
                label_of = {"train": "batch", "held-out": "test digits"}[kind]
                if points:  # --epochs 0 trains nothing
                    axes.plot(*zip(*points, strict=True), style, markersize=4, color=colour, label=label_of)
            axes.set(xlabel="step", ylabel=label, ylim=(0, None))
            axes.legend()
        figures.save(made, claim(folder, "mnist.png"), dpi=110)
        wrong = figures.mistakes_figure(test, said.argmax(1))
        if wrong is not None:
            figures.save(wrong, claim(folder, "mistakes.png"), dpi=90)


if __name__ == "__main__":
    command(main)
