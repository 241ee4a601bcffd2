"""Two networks of the same layers on the same images: what each layer gives them, forward and backward.

Each quantity is there three times: as the first network has it after all its layers so far, as the first network's layer alone makes it
from what the second had, and as the second network has it. The first against the last says how far the networks are apart, the layer alone
against the last says who is to blame.
"""

from collections.abc import Callable, Mapping
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from cnn425.lab.errors import LabError, first_line


class Quantity(NamedTuple):
    """A tensor of the first network so far, of its layer alone, and of the second network."""

    so_far: Tensor
    alone: Tensor
    other: Tensor


class Layer(NamedTuple):
    """One layer of both: what it gives by name, and a call of forward and backward in each."""

    name: str
    kind: str
    quantities: dict[str, Quantity]
    first: Callable[[], Any]
    second: Callable[[], Any]


class Pass(NamedTuple):
    """The tensors between the layers, their adjoints under the mean cross entropy, and the gradients of the parameters by layer."""

    points: list[Tensor]
    adjoints: list[Tensor]
    gradients: list[dict[str, Tensor]]


def passed(model: nn.Sequential, images: Tensor, labels: Tensor) -> Pass:
    """One forward and one backward pass, with everything in between."""
    dtype = next(model.parameters()).dtype
    points = [images.to(dtype).requires_grad_()]
    for layer in model:
        points.append(layer(points[-1]))
    loss = nn.functional.cross_entropy(points[-1].float() if dtype.itemsize < 4 else points[-1], labels)
    named = [dict(layer.named_parameters()) for layer in model]
    wanted = [*points, *(p for parameters in named for p in parameters.values())]
    found = list(torch.autograd.grad(loss, wanted))
    adjoints, rest = found[: len(points)], iter(found[len(points) :])
    return Pass([point.detach() for point in points], adjoints, [{name: next(rest) for name in parameters} for parameters in named])


def side_by_side(first: nn.Sequential, second: nn.Sequential, images: Tensor, labels: Tensor) -> list[Layer]:
    """The layers of both networks, in order."""
    kinds = [[type(layer).__name__.replace("LocalByUnfold", "LocallyConnected2d") for layer in model] for model in (first, second)]
    shapes = [[tuple(p.shape) for p in model.parameters()] for model in (first, second)]
    if kinds[0] != kinds[1] or shapes[0] != shapes[1]:
        raise LabError(f"the two networks have other layers ({', '.join(kinds[0])}; {', '.join(kinds[1])}), so there is nothing to compare")
    try:
        mine, other = passed(first, images, labels), passed(second, images, labels)
    except (RuntimeError, TypeError, ValueError) as error:
        raise LabError(f"the networks cannot be applied to these images: {first_line(error)}") from None
    return [_layer(k, first[k], second[k], mine, other) for k in range(len(kinds[0]))]


def _layer(k: int, first: nn.Module, second: nn.Module, mine: Pass, other: Pass) -> Layer:
    dtype = mine.points[0].dtype
    x, g = other.points[k].to(dtype), other.adjoints[k + 1].to(dtype)
    y, adjoint, *gradients = _once(first, x, g)()
    found = {
        "output": Quantity(mine.points[k + 1], y, other.points[k + 1]),
        "adjoint of the input": Quantity(mine.adjoints[k], adjoint, other.adjoints[k]),
    }
    for (name, gradient), alone in zip(mine.gradients[k].items(), gradients, strict=True):
        found[f"gradient of {name}"] = Quantity(gradient, alone, other.gradients[k][name])
    return Layer(str(k), type(second).__name__, found, _once(first, x, g), _once(second, other.points[k], other.adjoints[k + 1]))


def _once(layer: nn.Module, x: Tensor, g: Tensor) -> Callable[[], list[Tensor]]:
    """A call of the layer, forward and backward."""
    x = x.detach().requires_grad_()

    def call() -> list[Tensor]:
        y = layer(x)
        return [y.detach(), *torch.autograd.grad(y, [x, *layer.parameters()], g)]

    return call


def units(a: Tensor, b: Tensor) -> float:
    """The largest difference in units of rounding: half the distance of neighbouring numbers at the largest magnitude of the tensor.

    Of two dtypes the coarser one counts.
    """
    step = max(torch.finfo(t.dtype).eps for t in (a, b)) / 2
    a, b = a.double(), b.double()
    scale = float(b.abs().max()) if b.numel() else 0.0
    difference = float((a - b).abs().max()) if b.numel() else 0.0
    return difference / (step * scale) if scale else (0.0 if difference == 0 else float("inf"))


# ---- How far they are apart --------------------------------------------------------------------------------------------------------------


def parted(
    layer: Layer,
    allowed: Mapping[torch.dtype, float],
    repeats: int,
    clock: Callable[[Callable[[], Any]], float],
    peak_bytes: Callable[[Callable[[], Any]], int],
) -> dict[str, Any]:
    """One layer as a report shows it: every quantity so far and by the layer alone, the worst numbers, milliseconds and bytes.

    `allowed` says from how many units of rounding on two numbers of a dtype count as different.
    """
    found = []
    for name, q in layer.quantities.items():
        apart = (q.so_far.double() - q.other.double()).abs()
        worst = tuple(int(i) for i in torch.unravel_index(apart.argmax(), apart.shape))
        found.append(
            {
                "name": name,
                "so_far": units(q.so_far, q.other),
                "alone": units(q.alone, q.other),
                "allowed": min(allowed[q.so_far.dtype], allowed[q.other.dtype]),
                "at": worst,
                "first": float(q.so_far[worst]),
                "second": float(q.other[worst]),
            }
        )
    layer.first(), layer.second()
    pairs = [(clock(layer.first), clock(layer.second)) for _ in range(repeats)]
    ms = [median(column) for column in zip(*pairs, strict=True)]
    return {
        "name": layer.name,
        "kind": layer.kind,
        "quantities": found,
        "ms": ms,
        "bytes": [peak_bytes(layer.first), peak_bytes(layer.second)],
    }


def first_parting(layers: list[dict[str, Any]]) -> str:
    """Where two networks part first, in a sentence: forward through the outputs, then backward."""
    forward = [(layer, q) for layer in layers for q in layer["quantities"] if q["name"] == "output"]
    backward = [(layer, q) for layer in reversed(layers) for q in layer["quantities"] if q["name"] != "output"]
    for layer, q in forward + backward:
        if q["so_far"] > q["allowed"]:
            place = f"they part first at layer {layer['name']} ({layer['kind']}), {q['name']}: {q['so_far']:.3g} units of rounding"
            if q["alone"] > q["allowed"]:
                return f"{place}; the layer itself makes the difference"
            decided = {"MaxPool": "another cell wins a window", "ReLU": "a number changes its sign"}
            why = next((words for kind, words in decided.items() if kind in layer["kind"]), "small differences have added up")
            return f"{place}; given the same numbers the layer agrees, but it was given others, and {why}"
    farthest = max((q["so_far"], layer["name"], layer["kind"], q["name"]) for layer, q in forward + backward)
    return "they do not part: the largest difference is {:.3g} units of rounding, at layer {} ({}), {}".format(*farthest)
