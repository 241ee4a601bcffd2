"""A network of our layers recognises 99 % of MNIST's test digits before pytorch/examples' script has seen each training picture once.

    python scripts/race.py --laps 10 --threads 2                (about nine minutes)
    python scripts/race.py --laps 3 --threads 2 --epochs 6      (the example, too, until it recognises 99 %)

A lap is a process of its own, from its start to its end: Python and torch are imported, the data loaded, the recipe `sprint` of
experiments/leaderboard.py trained from new initial weights, the test set read once. The epoch is of the network, batch size and optimiser
of https://github.com/pytorch/examples/blob/main/mnist/main.py; its way is a DataLoader in one process that turns each picture into a
tensor and normalises it, our way indexes one tensor of all pictures. The order is that of the table, so nothing runs at the same time.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # the claim is said before torch is imported, which takes seconds
    from cnn425.lab.errors import need_lab

    need_lab()
    from cnn425.lab.progress import opening_before_imports

    opening_before_imports(sys.argv, lambda: __doc__)

import torch
import tyro

from cnn425.lab import digits
from cnn425.lab.errors import LabError, command
from cnn425.lab.models import Layers, namespace
from cnn425.lab.options import at_least
from cnn425.lab.pictures import Pictures
from cnn425.lab.progress import opening, say
from cnn425.lab.recipes import DEVIATION, MEAN, Recipe, accuracy, build, train
from cnn425.lab.verdict import Finding, conclude, percent

ROOT = Path(__file__).parents[1]
AIM = 0.99
EXAMPLE = Recipe(
    "conv 32 3 valid bias, relu, conv 64 3 valid bias, relu, pool, dropout 0.25, linear 128, relu, dropout 0.5, linear 10", batch_size=64
)


@dataclass(frozen=True)
class RaceOptions:
    """How much to measure."""

    laps: int = 3
    """Runs to 99 %, of each kind of layers."""
    threads: int = 0
    """CPU threads. 0: torch's own choice."""
    examples: int = 60_000
    """Training pictures, the first ones."""
    epochs: int = 1
    """Also train pytorch/examples' network: an epoch our way, and its own way until 99 % or for so many epochs at most. 0: not at all."""
    data_dir: Path | None = None
    """The folder that holds MNIST/raw/... Default: CNN425_DATA_DIR, else a cache with download."""
    json: bool = False
    """Print JSON instead of lines."""
    lap: str = ""
    """What a lap is told by the process that starts it."""


def lap(told: str, options: RaceOptions) -> float:
    """Data, training, test: the accuracy."""
    words = json.loads(told)
    training, test = digits.load("mnist", options.data_dir)
    learnt = train(Recipe(**words["recipe"]), training.first(options.examples), words["layers"], words["seed"])
    return accuracy(learnt.model, test.images, test.labels)


def told_so_far(options: RaceOptions, words: str) -> None:
    """Say how far the race is, unless JSON is wanted."""
    if not options.json:
        say(words)


def laps(layers: Layers, options: RaceOptions) -> list[tuple[float, float]]:
    """Seconds and accuracy of each lap."""
    sys.path.insert(0, str(ROOT))
    from experiments.leaderboard import ENTRIES

    found = []
    for seed in range(options.laps):
        told = json.dumps({"recipe": asdict(ENTRIES["sprint"].recipe), "layers": layers, "seed": seed})
        words = ["--threads", str(options.threads), "--examples", str(options.examples), "--lap", told]
        where = [] if options.data_dir is None else ["--data-dir", str(options.data_dir.absolute())]
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        begun = time.perf_counter()
        done = subprocess.run([sys.executable, __file__, *words, *where], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": path})
        if done.returncode:
            raise LabError(f"a lap ended with exit code {done.returncode}: see above", done.returncode)
        found.append((time.perf_counter() - begun, float(done.stdout)))
        told_so_far(options, f"{layers} layers, lap {seed + 1} of {options.laps}: {found[-1][0]:.1f} s, {percent(found[-1][1], 2)}")
    return found


def tensors(pictures: Pictures) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Our way to batches: one tensor, indexed."""
    for indices in torch.randperm(len(pictures.labels)).split(EXAMPLE.batch_size):
        yield pictures.batch(indices)


def loader(pictures: Pictures) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The example's way: a picture at a time, through torchvision's transforms, which normalise, too."""
    from PIL import Image
    from torch.utils.data import DataLoader, Dataset
    from torchvision import transforms

    class Digits(Dataset[Any]):
        """As torchvision.datasets.MNIST hands pictures out."""

        change = transforms.Compose([transforms.ToTensor(), transforms.Normalize((MEAN,), (DEVIATION,))])

        def __len__(self) -> int:
            return len(pictures.labels)

        def __getitem__(self, index: int) -> Any:
            return self.change(Image.fromarray(pictures.images[index, 0].numpy())), int(pictures.labels[index])

    yield from DataLoader(Digits(), batch_size=EXAMPLE.batch_size, shuffle=True)


def epochs(layers: Layers, batches: Any, training: Pictures, test: Pictures, most: int = 1) -> list[tuple[float, float]]:
    """Seconds from the start to the end of each epoch, and the accuracy then, until it is 99 % or there were `most` epochs."""
    whole = build(EXAMPLE, layers)
    model = whole[1:] if batches is loader else whole  # there the pictures come normalised
    loss = namespace(layers).CrossEntropyLoss()
    optimizer = torch.optim.Adadelta(model.parameters(), lr=1.0)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.7)

    def once(some: Pictures) -> None:
        model.train()
        for images, labels in batches(some):
            optimizer.zero_grad()
            loss(model(images), labels).backward()
            optimizer.step()

    once(training.first(2 * EXAMPLE.batch_size))  # what is compiled at the first call
    found: list[tuple[float, float]] = []
    begun = time.perf_counter()
    while len(found) < most and (not found or found[-1][1] < AIM):
        once(training)
        seconds = time.perf_counter() - begun
        found.append((seconds, accuracy(whole, test.images, test.labels)))
        schedule.step()
    return found


def measure(options: RaceOptions) -> dict[str, Any]:
    """Everything, as numbers."""
    kinds: tuple[Layers, ...] = ("custom", "torch")
    raced = {layers: laps(layers, options) for layers in kinds} if options.laps else {}
    found: dict[str, Any] = {"threads": torch.get_num_threads(), "torch": torch.__version__}
    for layers, numbers in raced.items():
        seconds, shares = zip(*numbers, strict=True)
        found[f"sprint, {layers} layers"] = {
            "seconds": seconds,
            "mean seconds": statistics.fmean(seconds),
            "mean accuracy": statistics.fmean(shares),
        }
    if options.epochs:
        training, test = digits.load("mnist", options.data_dir)
        training = training.first(options.examples)
        for name, layers, batches in (
            ("our layers, pictures as one tensor", "custom", tensors),
            ("torch's layers, pictures as one tensor", "torch", tensors),
            ("torch's layers, DataLoader", "torch", loader),
        ):
            done = epochs(layers, batches, training, test, options.epochs if batches is loader else 1)
            found[f"epoch of pytorch/examples: {name}, seconds"] = done[0][0]
            found[f"pytorch/examples after each epoch: {name}, (seconds, accuracy)"] = done
            for number, (took, share) in enumerate(done, 1):
                told_so_far(options, f"pytorch/examples' network, {name}, after epoch {number}: {took:.1f} s, {percent(share, 2)}")
    return found


def judged(found: dict[str, Any]) -> Finding:
    """Whether the claim holds, as far as it was measured."""
    ours, epoch_ = found.get("sprint, custom layers"), found.get("epoch of pytorch/examples: torch's layers, DataLoader, seconds")
    words = (
        [f"{percent(ours['mean accuracy'], 2)} after {ours['mean seconds']:.1f} s, the mean of {len(ours['seconds'])} laps"] if ours else []
    )
    words += [f"the example's epoch takes {epoch_:.1f} s"] if epoch_ else []
    holds = not ours or (ours["mean accuracy"] >= AIM and (not epoch_ or ours["mean seconds"] < epoch_))
    return Finding(holds, "; ".join(words) or "nothing was measured")


def main(options: RaceOptions) -> dict[str, Any] | float:
    """Race, and say how long it took."""
    at_least(options, laps=0, threads=0, examples=1, epochs=0)
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.lap:
        share = lap(options.lap, options)
        print(share)
        return share
    if not options.json:
        opening(__doc__)
    found = measure(options)
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        conclude(judged(found))
        say("next: python -m experiments leaderboard --recipes sprint     (what the recipe is, and its accuracy over seeds)")
    return found


if __name__ == "__main__":
    command(lambda: main(tyro.cli(RaceOptions, prog="python scripts/race.py", description=__doc__)))
