"""Guards: a loss or a gradient that is not a finite number stops the run before it can spoil the weights, and says where it came from."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cnn425.lab.models import hooked
from cnn425.lab.shards import whole

LOSS = "the loss itself"


class NotFiniteError(Exception):
    """One sentence: what is not finite, at which step, for which examples, from which layer on."""


def described(indices: Tensor) -> str:
    """The examples of a batch, by their index in the training set."""
    first, more = indices[:16].tolist(), len(indices) - 16
    return "examples " + ", ".join(map(str, first)) + (f" and {more} more" if more > 0 else "")


def first_culprit(model: nn.Module, images: Tensor) -> str:
    """The first layer whose output is not finite on these images, in the order of the computation."""
    culprits: list[str] = []

    def watch(name: str, layer: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor) and not bool(output.isfinite().all()):
            culprits.append(f"layer {name} ({type(layer).__name__})")

    with torch.no_grad(), hooked(model, watch):
        if not bool(images.isfinite().all()):
            return "the images themselves"
        model(images)
    return culprits[0] if culprits else LOSS


def check_loss(loss: float, culprits: Callable[[], Sequence[str]], step: int, indices: Tensor) -> None:
    """Stops if the loss is NaN or infinite; `culprits` tells what each process finds in its part of the batch."""
    if not math.isfinite(loss):
        culprit = next((found for found in culprits() if found != LOSS), LOSS)
        raise NotFiniteError(f"stopped before step {step}: the loss is {loss}, first seen in {culprit}, for {described(indices)}")


def gradient_norm(model: nn.Module, most: float = 0.0) -> float:
    """The length of the whole gradient; if it is more than `most`, the gradient is shortened to that (0: never)."""
    parameters = [p for p in model.parameters() if p.grad is not None]
    total = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    norm = float(whole(total))
    if 0 < most < norm:
        torch.nn.utils.clip_grads_with_norm_(parameters, most, total)
    return norm


def check_gradients(norm: float, model: nn.Module, step: int, indices: Tensor) -> None:
    """Stops if the gradient's length is NaN or infinite."""
    if not math.isfinite(norm):
        backwards = [
            name for name, p in reversed(list(model.named_parameters())) if p.grad is not None and not bool(p.grad.isfinite().all())
        ]
        where = f"first seen in {backwards[0]}" if backwards else "too large to be summed"
        raise NotFiniteError(f"stopped before step {step}: the length of the gradient is {norm}, {where}, for {described(indices)}")
