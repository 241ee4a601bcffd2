"""Every number of a trained network can be followed: forwards from its window and weights, backwards from the windows that saw it.

    python -m experiments.explore --checkpoint runs/mnist/conv-custom-...                      (about 10 seconds)
    python -m experiments.explore --checkpoint runs/mnist/conv-custom-... digit.png photo.jpg  (on your own pictures)

Writes explorer.html into the run folder: one file with the network inside, which opens from disk in any browser and computes forward and
backward passes itself. Without pictures it shows the test set, wrong answers first. From Python, for any network made of our layers or
torch's: `from cnn425.lab.explorer import explore; explore(model, images, "page.html")`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
import tyro
from torch import Tensor

from cnn425.lab import pages, trained
from cnn425.lab.errors import LabError, command
from cnn425.lab.explorer import explore
from cnn425.lab.options import at_least, parse_any

from . import mnist

SUBJECTS = {"fashion": "clothes", "kmnist": "Japanese characters", "emnist-letters": "letters", "patterns": "three patterns"}
WORDS = {"conv": "convolutional", "local": "locally connected", "mlp": "two-layer", "linear": "linear"}


@dataclass(frozen=True)
class ExploreOptions:
    """What can be asked; see --help."""

    checkpoint: Path
    """A run folder of experiments/mnist.py, or a checkpoint in it."""
    pictures: Annotated[tuple[Path, ...], tyro.conf.Positional] = field(default=())
    """Picture files of any kind and size. Default: pictures of the test set."""
    count: int = 16
    """How many test pictures to show; at most half of them are wrong answers."""
    data_dir: Path | None = None
    """The folder that holds MNIST/raw/... Default: CNN425_DATA_DIR, else a cache with download."""
    log_dir: Path | None = None
    """Where to write explorer.html. Default: the run folder."""

    def __post_init__(self) -> None:
        """Refuses numbers that mean nothing."""
        at_least(self, count=1)


class ExploreVerdict(NamedTuple):
    """Where the page is, its bytes and images; holds if all pictures could be read and the page knows every layer."""

    holds: bool
    page: str
    size: int
    images: int
    stored: dict[str, str]
    unreadable: list[str]

    @property
    def MUST_HOLD(self) -> bool:
        """A task, not a claim."""
        return True


def tiny(folder: Path) -> list[str]:
    """A command line for the tests: a checkpoint made on the spot."""
    mnist.main([*mnist.TINY, "--log-dir", str(folder / "run")])
    return ["--checkpoint", str(folder / "run"), "--count", "4"]


def examples(model: trained.Trained, count: int, data_dir: Path | None) -> tuple[Tensor, Tensor]:
    """`count` pictures of the test set the model was trained for, wrong answers first, with their labels."""
    test = mnist.tested_on(model.options, data_dir)
    wrong: list[int] = []
    with torch.no_grad():
        for indices in torch.arange(len(test.labels)).split(1000):
            images, labels = test.batch(indices)
            wrong += indices[model.model(images).argmax(1) != labels].tolist()
            if 2 * len(wrong) >= count:
                break
    wrong = wrong[: max(1, count // 2)]
    right = [k for k in range(len(test.labels)) if k not in set(wrong)][: count - len(wrong)]
    return test.batch(torch.tensor(wrong + right))


def main(argv: Sequence[str] | None = None) -> ExploreVerdict:
    """Write the page; the verdict."""
    options = parse_any(ExploreOptions, argv)
    model = trained.load(options.checkpoint)
    good, pictures, complaints = trained.readable(options.pictures)
    for complaint in complaints:
        print(complaint)
    labels: Tensor | None = None
    if options.pictures:
        if not pictures:
            raise LabError("none of the pictures can be read, so there is nothing to show")
        images, names = torch.cat(pictures), [path.name for path in good]
    else:
        (images, labels), names = examples(model, options.count, options.data_dir), None
    folder = options.log_dir or (options.checkpoint if options.checkpoint.is_dir() else options.checkpoint.parent)
    title = f"the {WORDS[model.options['model']]} network that reads {SUBJECTS.get(model.options['dataset'], 'handwritten digits')}"
    path = folder / "explorer.html"
    pages.refuse_others(path, "explorer")
    page = explore(model.model, images, path, labels, model.classes, names, title)
    for name, why in page.stored.items():
        print(f"{name}: {why}; the page shows its numbers as torch computed them")
    for name, maps in page.partial.items():
        print(f"{name}: too many weights for one page; it holds those of the first {maps} maps")
    print(f"{page.images} image{'s' * (page.images != 1)}, {page.size / 1e6:.2f} MB; open {page.path}")
    return ExploreVerdict(not page.stored and not complaints, str(page.path), page.size, page.images, page.stored, complaints)


if __name__ == "__main__":
    command(main)
