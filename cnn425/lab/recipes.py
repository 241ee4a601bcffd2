"""A recipe: a network in one line of words, and how it is trained; a short loop for small networks that need many epochs.

    Recipe("conv 8 3, pool, norm, relu, conv 16 3, norm, relu, mean, linear 10", epochs=15)

| words                                  | layer                                                                     |
|----------------------------------------|---------------------------------------------------------------------------|
| `conv 8 3`                             | convolution, 8 outputs, 3x3 window                                        |
| `depthwise 3`                          | one window per channel                                                    |
| `local 8 3`                            | locally connected: windows at all positions differ                        |
| `blocks 8 3 share 7`                   | locally connected, 7x7 positions share a window                           |
| `lowrank 8 3 rank 2`                   | locally connected, windows are mixtures of two                            |
| `... stride 2`, `... valid`, `... bias`| every other position; no padding (else half a window); with a bias        |
| `crop 4`                               | the image without the four pixels at each edge                            |
| `pool`, `mean`, `relu`, `linear 10`    | maximum of 2x2, mean of everything, rectifier, fully connected            |
| `norm`, `norm unscaled`                | torch's batch normalisation; without scale where the next layer has one   |
| `dropout 0.2`                          | torch's dropout                                                           |

The loop of training.py writes every step down and runs on many machines. This one keeps the data as one tensor, distorts whole batches,
averages weights, and writes one checkpoint per epoch: a run that is killed and started again ends with the same bits.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from cnn425.lab import checkpoint
from cnn425.lab.distortions import warped
from cnn425.lab.models import Layers, hooked, local_layer, looked_at, namespace
from cnn425.lab.options import digest
from cnn425.lab.pictures import Pictures
from cnn425.lab.progress import say

MEAN, DEVIATION = 0.1307, 0.3081  # of the brightness of MNIST's training pixels
EVALUATED = 1000  # pictures at once
KEPT = "of", "targets", "losses", "seconds", "processor_seconds"  # of a run, besides what has a state of its own


@dataclass(frozen=True)
class Recipe:
    """A network and how it is trained: AdamW, one-cycle learning rate, distorted pictures, an average of the weights."""

    network: str
    epochs: int = 15
    lr: float = 0.02
    """Peak of the learning rate; it starts at a 25th of it and ends at nearly zero."""
    warmup: float = 0.2
    """The share of all steps in which it rises."""
    batch_size: int = 128
    decay: float = 0.0
    """Weight decay."""
    smoothing: float = 0.0
    """Label smoothing."""
    average: float = 0.998
    """The share of the averaged weights that each step keeps; 0: no average."""
    rotation: float = 10.0
    """Degrees; this and what follows as in distortions.warped."""
    shift: float = 2.0
    scale: float = 0.1
    shear: float = 0.1
    elastic: float = 0.0
    teacher: "Teacher | None" = None
    """What it learns from besides the labels; default: nothing."""

    @property
    def facts(self) -> dict[str, Any]:
        """All that can change the result, for digests; without a teacher where there is none."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Teacher:
    """A larger network, which is trained first (distillation, Hinton, Vinyals, Dean 2015, arXiv 1503.02531).

    Targets are `share * softmax(what it says of a picture / temperature) + (1 - share) * label`; pictures are not distorted for that.
    """

    recipe: Recipe
    temperature: float = 2.0
    share: float = 0.9


class Learnt(NamedTuple):
    """A trained network, the mean loss of each epoch in nats, and the seconds it took: of the clock, of the processors."""

    model: nn.Sequential
    losses: list[float]
    seconds: float
    processor_seconds: float


class Standardise(nn.Module):
    """Brightness from 0 to 1 becomes a number of mean 0 and deviation 1 over the training pixels."""

    def forward(self, images: Tensor) -> Tensor:
        """Same shape."""
        return (images - MEAN) / DEVIATION


def windowed(words: list[str], ours: Any, layers: Layers, c: int, side: int) -> tuple[nn.Module, int, int]:
    """A layer that slides a window over `(c, side, side)`; the layer, its channels and its side."""
    kind, *rest = words
    numbers = [int(word) for word in rest if word.isdigit()]
    o, k = (c, numbers[0]) if kind == "depthwise" else (numbers[0], numbers[1])
    named = {name: int(rest[rest.index(name) + 1]) for name in ("stride", "share", "rank") if name in rest}
    stride, padding, bias = named.pop("stride", 1), 0 if "valid" in rest else k // 2, "bias" in rest
    if kind in ("conv", "depthwise"):
        layer = ours.Conv2d(c, o, k, stride, padding, groups=c if kind == "depthwise" else 1, bias=bias)
    elif kind == "local":
        layer = local_layer(layers)(c, o, side, k, stride=stride, padding=padding, bias=bias)
    else:  # torch has none of its own
        from cnn425.nn import LocallyConnected2d, LowRankLocal2d

        kinds: dict[str, Any] = {"blocks": LocallyConnected2d, "lowrank": LowRankLocal2d}
        layer = kinds[kind](c, o, side, k, stride=stride, padding=padding, bias=bias, **named)
    return layer, o, (side + 2 * padding - k) // stride + 1


def stages(network: str, layers: Layers, side: int) -> Iterator[nn.Module]:
    """The layers that the words name, for pictures of one channel."""
    ours: Any = namespace(layers)
    c = 1
    yield Standardise()
    for words in (each.split() for each in network.split(",")):
        if words[0] == "norm":
            norm = nn.BatchNorm2d(c)
            if "unscaled" in words:
                norm.register_parameter("weight", None)
            yield norm
        elif words[0] == "relu":
            yield ours.ReLU()
        elif words[0] == "dropout":
            yield nn.Dropout(float(words[1]))
        elif words[0] == "crop":
            yield nn.ZeroPad2d(-int(words[1]))
            side -= 2 * int(words[1])
        elif words[0] == "pool":
            yield ours.MaxPool2d(2)
            side //= 2
        elif words[0] == "mean":
            yield ours.AvgPool2d(side)
            side = 1
        elif words[0] == "linear":
            if side:
                yield nn.Flatten()
                c, side = c * side**2, 0
            yield ours.Linear(c, int(words[1]))
            c = int(words[1])
        else:
            layer, c, side = windowed(words, ours, layers, c, side)
            yield layer


def build(recipe: Recipe, layers: Layers = "custom", seed: int = 0, side: int = 28) -> nn.Sequential:
    """Brightness `(N, 1, side, side) -> (N, 10)`. The random state outside is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(*stages(recipe.network, layers, side))


def multiply_adds(model: nn.Module, side: int = 28) -> int:
    """Products of a weight and a value, for one picture, in layers that have no layers inside."""
    found = 0

    def count(name: str, layer: Any, inputs: Any, output: Tensor) -> None:
        nonlocal found
        if hasattr(layer, "kernel_size") and hasattr(layer, "in_channels"):
            window = layer.in_channels // layer.groups * math.prod(layer.kernel_size)
            found += output[0].numel() * (window + 1) * layer.rank if hasattr(layer, "rank") else output[0].numel() * window
        elif hasattr(layer, "in_features"):
            found += layer.in_features * layer.out_features

    with looked_at(model), hooked(model, count):
        model(torch.zeros(1, 1, side, side))
    return found


class Run:
    """One training run between two epochs: everything that a checkpoint holds."""

    def __init__(self, recipe: Recipe, layers: Layers, seed: int, batches: int, side: int):
        self.recipe, self.of = recipe, digest({**recipe.facts, "layers": layers, "seed": seed, "batches": batches})
        self.model = build(recipe, layers, seed, side)
        self.loss: nn.Module = namespace(layers).CrossEntropyLoss(label_smoothing=recipe.smoothing)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=recipe.lr, weight_decay=recipe.decay)
        steps = max(2, recipe.epochs * batches)
        self.schedule = OneCycleLR(self.optimizer, recipe.lr, steps, pct_start=recipe.warmup, cycle_momentum=False)
        self.average = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(recipe.average), use_buffers=True)
        self.targets: Tensor | None = None  # of a teacher, (pictures, classes)
        self.losses: list[float] = []
        self.seconds = self.processor_seconds = 0.0

    @property
    def parts(self) -> dict[str, Any]:
        """What has a state of its own."""
        return {"model": self.model, "average": self.average, "optimizer": self.optimizer, "schedule": self.schedule}

    def state(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {**{name: part.state_dict() for name, part in self.parts.items()}, **{name: getattr(self, name) for name in KEPT}}

    def go_on(self, state: dict[str, Any] | None) -> None:
        """Continue from a checkpoint of this very run; that of another is left alone."""
        if state and state.get("of") == self.of:
            for name, part in self.parts.items():
                part.load_state_dict(state[name])
            for name in KEPT:
                setattr(self, name, state.get(name))

    def learn_from(self, teacher: Teacher, learnt: Learnt, pictures: Pictures) -> None:
        """Set the targets; the time that the teacher took belongs to this run."""
        said = answers(learnt.model, pictures.images)
        self.targets = teacher.share * (said / teacher.temperature).softmax(1)
        self.targets[torch.arange(len(said)), pictures.labels] += 1 - teacher.share
        self.seconds, self.processor_seconds = learnt.seconds, learnt.processor_seconds

    def epoch(self, pictures: Pictures, generator: Generator) -> None:
        """Every picture once, in a new order, each distorted anew."""
        begun, begun_processor = time.perf_counter(), time.process_time()
        r, total = self.recipe, 0.0
        warp = {name: getattr(r, name) for name in ("rotation", "shift", "scale", "shear", "elastic")}
        self.model.train()
        for indices in torch.randperm(len(pictures.labels), generator=generator).split(r.batch_size):
            images, labels = pictures.batch(indices)
            if any(warp.values()):
                images = warped(images, generator, **warp)
            loss = self.loss(self.model(images), labels if self.targets is None else self.targets[indices])
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.schedule.step()
            if r.average:
                self.average.update_parameters(self.model)
            total += float(loss.detach()) * len(indices)
        self.losses.append(total / len(pictures.labels))
        self.seconds += time.perf_counter() - begun
        self.processor_seconds += time.process_time() - begun_processor

    @property
    def result(self) -> nn.Sequential:
        """The network that is to be used."""
        found = self.average.module if self.recipe.average else self.model
        assert isinstance(found, nn.Sequential)
        return found.eval()


def train(
    recipe: Recipe,
    pictures: Pictures,
    layers: Layers = "custom",
    seed: int = 0,
    folder: Path | None = None,
    after: Callable[[Run], None] | None = None,
) -> Learnt:
    """Train from the initial weights of this seed, or go on from the checkpoint in the folder; `after` is called after every epoch.

    A teacher is trained first, from the same seed.
    """
    run = Run(recipe, layers, seed, -(-len(pictures.labels) // recipe.batch_size), pictures.images.shape[-1])
    before = recipe.teacher.recipe.epochs if recipe.teacher else 0
    if folder:
        run.go_on(checkpoint.newest(folder, say))
    if recipe.teacher and run.targets is None:
        say(f"seed {seed}: a teacher is trained first")
        run.learn_from(recipe.teacher, train(recipe.teacher.recipe, pictures, layers, seed, folder), pictures)
    while len(run.losses) < recipe.epochs:
        number = seed * 1000 + len(run.losses)  # all that is random in an epoch follows from it: none of it is in the checkpoint
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(number)  # dropout
            run.epoch(pictures, torch.Generator().manual_seed(number))
        if folder:
            checkpoint.save(folder, before + len(run.losses), run.state())
        if after:
            after(run)
    return Learnt(run.result, run.losses, run.seconds, run.processor_seconds)


def answers(model: nn.Module, images: Tensor) -> Tensor:
    """What the network says of pictures, uint8 or brightness: `(N, 1, side, side) -> (N, classes)`."""
    shown, some = Pictures(images, torch.zeros(len(images)), ()), next(model.parameters())
    with looked_at(model):
        batches = (shown.batch(part, some.dtype)[0] for part in torch.arange(len(images)).split(EVALUATED))
        return torch.cat([model(batch.to(some.device)).cpu() for batch in batches])


def right(said: Tensor, labels: Tensor) -> float:
    """The share of answers `(N, classes)` that are right."""
    return int((said.argmax(1) == labels).sum()) / len(labels)


def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """The share of pictures, uint8 or brightness, that are recognised."""
    return right(answers(model, images), labels)
