"""Counting: the same 40,000 units on a 200x200 image need 1.6 billion weights fully connected, 4 million locally, 100 as one convolution.

    python -m experiments.counting                                             (about 5 seconds)
    python -m experiments.counting --model conv --size 64 64                   (any of our models, any input size)
    python -m experiments.counting --model 3-4-2                               (a fully connected network: inputs, then units per layer)
    python -m experiments.counting --model resnet18 --size 224 224             (a convolutional network of torchvision, in torch's layers)

Layer by layer: units (the lecture's neurons, inputs not counted), weights, parameters (weights and biases), multiply-adds for one image,
and how often each weight is used, which is what sharing means: once in a fully or locally connected layer, once per position in a
convolution. Sharing saves memory, not work: the convolution has as many multiply-adds as the local layer. (Pixels of the zero padding are
counted like any other.) Everything is counted on torch's
meta device, where a layer has shapes but no numbers, so 6.4 GB of weights cost nothing.

Figures:

    counting.png    The slide's layers are counted on torch's meta device, weights and multiply-adds apart. Look at the two pairs of bars
                    in the middle: sharing shortens the bar of the weights and leaves that of the work as it is.
"""

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple, get_args

import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table
from torch import Tensor, nn

from cnn425.lab import figures, models
from cnn425.lab.errors import LabError, command
from cnn425.lab.models import Layers, hooked, looked_at, namespace
from cnn425.lab.progress import say_table
from cnn425.lab.study import StudyOptions, at_least, parse, study
from cnn425.nn import LocallyConnected2d

TINY = ("--model", "3-4-2")

BYTES = 4  # per float32
LARGEST = 10**9  # units of a layer
OURS = tuple(name for name in get_args(models.Name) if name != "smallest")


@dataclass(frozen=True)
class CountingOptions(StudyOptions):
    """What can be changed; see --help."""

    model: str = "conv"
    """smallest, linear, mlp, local, conv; or units per layer as 3-4-2; or a classifier of torchvision. `--full`: tables of several."""
    size: tuple[int, int] | None = None
    """Height and width of the image in pixels. Default: 28 28 (smallest: 3 3; torchvision: 224 224)."""

    def __post_init__(self) -> None:
        """Refuses numbers that mean nothing."""
        at_least(self, threads=0)
        if self.size and min(self.size) < 1:
            raise LabError(f"--size is {self.size[0]} {self.size[1]}; an image has at least 1 pixel each way", 2)


class CountingVerdict(NamedTuple):
    """The slides' numbers, counted on our layers, then those of the chosen model.

    Holds if the slides' are 6 neurons, 20 weights, 26 parameters, then 1.6e9 and 4e6 weights, 101 parameters, 2000 weights.
    """

    holds: bool
    neurons_3_4_2: int
    """neurons of the network of 3 inputs, 4 and 2 units"""
    weights_3_4_2: int
    """its weights"""
    parameters_3_4_2: int
    """its weights and biases"""
    fully_connected_weights: int
    """weights of 40,000 units on 200x200 pixels, fully connected"""
    locally_connected_weights: int
    """the same, locally connected to 10x10 pixels"""
    convolution_parameters: int
    """the same, as one convolution, with its bias"""
    twenty_filters_weights: int
    """weights of a convolution with twenty filters"""
    model_parameters: int
    """parameters of the chosen model"""
    model_multiply_adds: int
    """its multiply-adds for one image"""

    def sentence(self) -> str:
        """What came out."""
        return (
            f"40,000 units on 200x200 pixels have {self.fully_connected_weights:,} weights fully connected, "
            f"{self.locally_connected_weights:,} locally connected, and {self.convolution_parameters:,} weights and biases as one "
            "convolution"
        )


class Count(NamedTuple):
    """One layer, for one image; output shape without the batch."""

    layer: str
    output: tuple[int, ...]
    weights: int = 0
    biases: int = 0
    multiply_adds: int = 0

    @property
    def units(self) -> int:
        """Numbers the layer puts out; the lecture's neurons where it has weights."""
        return int(torch.Size(self.output).numel())


def count(model: nn.Module, input_shape: Sequence[int]) -> list[Count]:
    """Every layer of a model on the meta device, in the order of one forward pass; `input_shape` is `(C, H, W)` or `(D,)`."""
    counts: list[Count] = []
    seen: set[Tensor] = set()

    def note(name: str, module: nn.Module, inputs: Any, output: Tensor) -> None:
        weight = getattr(module, "weight", None)
        own = [p for p in module.parameters(recurse=False) if p not in seen]
        seen.update(own)
        shape, kind = tuple(output.shape[1:]), type(module).__name__
        if not isinstance(weight, Tensor):
            counts.append(Count(kind, shape))
            return
        units = output[0].numel()
        # fully connected, convolution: weight[o] is what one unit sees; locally connected: each unit has its own part of all weights
        sees = weight.numel() // units if weight.ndim > max(2, output.ndim) else weight[0].numel()
        weights = sum(p.numel() for p in own if p is weight)
        counts.append(Count(kind, shape, weights, sum(p.numel() for p in own) - weights, units * sees))

    with looked_at(model), hooked(model, note):
        model(torch.empty(1, *input_shape, device="meta"))
    missed = sum(p.numel() for p in model.parameters()) - sum(c.weights + c.biases for c in counts)
    if missed:
        raise LabError(f"this model has {missed:,} parameters outside of its layers, which this table does not count", 2)
    return counts


def total(counts: Sequence[Count]) -> tuple[int, int, int, int]:
    """Units of layers with weights, weights, parameters, multiply-adds."""
    weights, biases = sum(c.weights for c in counts), sum(c.biases for c in counts)
    return sum(c.units for c in counts if c.weights), weights, weights + biases, sum(c.multiply_adds for c in counts)


def units_per_layer(widths: Sequence[int], layers: Layers) -> nn.Sequential:
    """A fully connected network: `widths[0]` inputs, then so many units per layer, with ReLU in between."""
    ours = namespace(layers)
    parts: list[nn.Module] = []
    for k, (d, o) in enumerate(pairwise(widths)):
        parts += [ours.Linear(d, o)] + [ours.ReLU()] * (k < len(widths) - 2)
    return nn.Sequential(*parts)


def chosen(name: str, size: tuple[int, int] | None, layers: Layers) -> tuple[str, list[Count]]:
    """The model of `--model`, counted, with a title."""
    try:
        with torch.device("meta"):
            if re.fullmatch(r"\d+(-\d+)+", name):
                widths = [int(width) for width in name.split("-")]
                if min(widths) < 1:
                    raise LabError(f"--model is {name}; every layer needs at least 1 unit", 2)
                if max(widths) > LARGEST:
                    raise LabError(f"--model is {name}; no layer may have more than {LARGEST:,} units", 2)
                return name, count(units_per_layer(widths, layers), widths[:1])
            if name in get_args(models.Name):
                size = size or ((3, 3) if name == "smallest" else (28, 28))
                if name in ("local", "conv") and min(size) < 4:
                    raise LabError(
                        f"--size is {size[0]} {size[1]}; {name} halves the image twice, so it needs at least 4 pixels each way", 2
                    )
                classes = 3 if name == "smallest" else 10
                model: nn.Module = models.build(name, layers, 0, size, classes)  # type: ignore[arg-type]
                return f"{name} on {size[0]}x{size[1]}", count(model, (1, *size))
            from torchvision.models import get_model, list_models

            if name not in list_models():
                raise LabError(
                    f"--model is {name}; it must be one of {', '.join(get_args(models.Name))}, or like 3-4-2, or a name of torchvision", 2
                )
            size = size or (224, 224)
            return f"{name} on 3x{size[0]}x{size[1]}", count(get_model(name), (3, *size))
    except (RuntimeError, ValueError, AttributeError, TypeError) as error:
        raise LabError(
            f"--model {name} cannot take images of {size[0]}x{size[1]} pixels: {error}" if size else f"{name}: {error}", 2
        ) from None


def slides(layers: Layers) -> dict[str, list[Count]]:
    """The lecture's examples, on the 200x200 image with 40,000 units per channel; the local layers are ours, torch has none."""
    ours, image = namespace(layers), (1, 200, 200)
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch copies an image that an even kernel pads unevenly, and says so
        return {
            "3-4-2 network": count(units_per_layer((3, 4, 2), layers), (3,)),
            "200x200, fully connected": count(ours.Linear(40_000, 40_000), (40_000,)),
            "200x200, locally connected": count(LocallyConnected2d(1, 1, (200, 200), 10, padding="same"), image),
            "200x200, convolution": count(ours.Conv2d(1, 1, 10, padding="same"), image),
            "200x200, 20 filters": count(ours.Conv2d(1, 20, 10, padding="same"), image),
            "4x4, fully connected": count(ours.Linear(16, 4), (16,)),
            "4x4, locally connected": count(LocallyConnected2d(1, 1, (4, 4), 3), (1, 4, 4)),
            "4x4, convolution": count(ours.Conv2d(1, 1, 3), (1, 4, 4)),
        }


def in_bytes(number: float) -> str:
    """1 kB is 1000 bytes."""
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:,.3g} TB"


def table(title: str, rows: Sequence[tuple[str, Sequence[Count]]], shape: bool = False) -> Table:
    """A row per entry, which may sum up several layers; 80 characters wide. `shape`: the shape of the output in place of its units."""
    made = Table(title=title, box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    made.add_column("layer" if shape else "network", max_width=18)
    for column in ("output" if shape else "units", "weights", "parameters", "multiply-adds", "uses"):
        made.add_column(column, justify="right", no_wrap=True)
    for name, counts in rows:
        units, weights, parameters, work = total(counts)
        cells = [f"{number:,}" if number else "" for number in (units, weights, parameters, work)]
        if shape:
            cells[0] = "x".join(map(str, counts[-1].output))
        made.add_row(name, *cells, f"{work / weights:,.0f}" if weights and sum(c.weights > 0 for c in counts) == 1 else "")
    return made


def draw(examples: dict[str, list[Count]], title: str, counts: Sequence[Count]) -> Any:
    """The figure: the slides' layers on one scale, and where the chosen model keeps its parameters and does its work."""
    made = figures.figure(13, 5.2)
    left, right = made.subplots(1, 2, width_ratios=[1.15, 1])
    rows = [(name.split(", ")[1], total(counts_)) for name, counts_ in examples.items() if name.startswith("200")][::-1]
    for k, (_, (_, weights, _, work)) in enumerate(rows):
        left.barh(k + 0.2, weights, 0.38, color="#00798c", label="weights" if k == 0 else None)
        left.barh(k - 0.2, work, 0.38, color="#edae49", label="multiply-adds per image" if k == 0 else None)
        left.text(weights * 1.3, k + 0.2, f"{weights:,}  ({in_bytes(BYTES * weights)})", va="center", fontsize=10)
        left.text(work * 1.3, k - 0.2, f"{work:,}", va="center", fontsize=10)
    left.set_yticks(range(len(rows)), [name for name, _ in rows], fontsize=11)
    left.set(xscale="log", xlim=(10, 1e13), xticks=[10.0**k for k in range(2, 11, 2)], xlabel="count (logarithmic)")
    left.set_title("40,000 units on a 200x200 image: sharing saves memory, not work", fontsize=12)
    left.legend(loc="center right", fontsize=10)
    _, _, parameters, work = total(counts)
    learning = [(k + 1, c) for k, c in enumerate(counts) if c.weights > 1e-3 * parameters or c.multiply_adds > 1e-3 * work]
    share = [(100 * (c.weights + c.biases) / parameters, 100 * c.multiply_adds / work) for _, c in learning]
    places = torch.arange(len(learning))
    right.bar(places - 0.2, [s for s, _ in share], 0.38, color="#00798c", label=f"of {parameters:,} parameters")
    right.bar(places + 0.2, [s for _, s in share], 0.38, color="#edae49", label=f"of {work:,} multiply-adds")
    right.set_xticks(places, [f"{k} {c.layer}" for k, c in learning], fontsize=10, rotation=0 if len(learning) < 6 else 90)
    right.set(ylabel="share of the model [%]", xlabel="layer", ylim=(0, 1.3 * max(map(max, share))))
    right.set_title(f"{title}: where parameters are, where work is", fontsize=12)
    right.legend(loc="upper center", fontsize=10)
    return made


def main(argv: Sequence[str] | None = None) -> CountingVerdict:
    """Count the slides' networks and the chosen model; the verdict."""
    options = parse(CountingOptions, argv)
    title, counts = chosen(options.model, options.size, options.layers)
    with study("counting", options) as record:
        examples = slides(options.layers)
        print("each parameter and each output takes 4 bytes in float32")
        say_table(table("the slides", list(examples.items())))
        tables = [(title, counts)]
        if options.full:
            tables += [chosen(name, None, options.layers) for name in (*OURS, "alexnet", "vgg16", "resnet18")]
        for name, layers in tables:
            say_table(table(f"{name}, one image", [*((c.layer, [c]) for c in layers), ("all", layers)], shape=True))
        for name, layers in examples.items():
            record.curve(f"weights/{name}", [0], [total(layers)[1]])
        record.figure("counting", draw(examples, title, counts))
        small = total(examples["3-4-2 network"])[:3]
        fully, local, one, twenty = (total(layers) for name, layers in examples.items() if name.startswith("200"))
        found = (*small, fully[1], local[1], one[2], twenty[1])
        holds = found == (6, 20, 26, 1_600_000_000, 4_000_000, 101, 2000)
        return record.verdict(CountingVerdict(holds, *found, *total(counts)[2:]))


if __name__ == "__main__":
    command(main)
