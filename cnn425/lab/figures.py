"""Pictures of what a network learnt: filters, activations, mistakes, the confusion matrix; brightness from 0 to 1."""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor, nn

from cnn425.lab.backend import Figure, FigureCanvasAgg, context
from cnn425.lab.errors import about
from cnn425.lab.models import looked_at
from cnn425.lab.pictures import Pictures


def own_style() -> AbstractContextManager[None]:
    """Matplotlib's own defaults while this lasts, whatever a matplotlibrc or a notebook has changed; as before afterwards."""
    return context("default")


def save(figure: Figure, path: Path, dpi: float = 100) -> None:
    """Write a figure in the format of the file's name; an error names the file."""
    with about(path):
        figure.savefig(path, dpi=dpi)


def film(frames: Iterable[Figure], path: Path, seconds: float = 0.4) -> None:
    """Write figures of one size as a GIF that starts again after its last picture; an error names the file."""
    pictures = []
    for made in frames:
        made.canvas.draw()
        shown = Image.frombuffer("RGBA", made.canvas.get_width_height(), bytes(made.canvas.buffer_rgba()), "raw", "RGBA", 0, 1)  # type: ignore[attr-defined]
        pictures.append(shown.convert("RGB").quantize(128, dither=Image.Dither.NONE))
    shown_for = [round(1000 * seconds)] * (len(pictures) - 1) + [2500]  # milliseconds
    with about(path):
        pictures[0].save(path, format="GIF", save_all=True, append_images=pictures[1:], duration=shown_for, loop=0)


def figure(width: float, height: float, layout: Literal["constrained"] | None = "constrained") -> Any:
    """An empty `Figure` of so many inches, drawn without a window system; `Any`: its `subfigures` are declared to be one, not an array."""
    made = Figure(figsize=(width, height), dpi=100, layout=layout)
    FigureCanvasAgg(made)
    return made


def tiled(pictures: Tensor, columns: int = 8, zoom: int = 1) -> Tensor:
    """Pictures `(K, H, W)` side by side with white gaps, each pixel `zoom` times as large: `(rows * ..., columns * ...)`."""
    gap = max(1, zoom // 3)
    pictures = pictures.detach().float().cpu().repeat_interleave(zoom, 1).repeat_interleave(zoom, 2)
    k, h, w = pictures.shape
    columns = min(columns, k)
    rows = -(-k // columns)
    sheet = torch.ones(rows * (h + gap) - gap, columns * (w + gap) - gap)
    for number, picture in enumerate(pictures):
        top, left = number // columns * (h + gap), number % columns * (w + gap)
        sheet[top : top + h, left : left + w] = picture
    return sheet


def stretched(values: Tensor, symmetric: bool = True) -> Tensor:
    """Values as brightness: zero is 0.5 and the largest magnitude 0 or 1; not symmetric: the smallest is 0, the largest 1."""
    values = values.detach().float().nan_to_num()
    if symmetric:
        return 0.5 + values / (2 * values.abs().max().clamp(min=1e-12))
    return (values - values.min()) / (values.max() - values.min()).clamp(min=1e-12)


def first_layer(model: nn.Module) -> nn.Module:
    """The first layer that has weights."""
    return next(module for module in model.modules() if isinstance(getattr(module, "weight", None), Tensor))


def filters(model: nn.Module, size: Sequence[int], most: int = 32) -> Tensor:
    """What the first layer looks for, one picture per output: `(K, H, W)`; a local layer's shows the filters of all positions, in place."""
    weight = first_layer(model).weight
    assert isinstance(weight, Tensor)
    weight = weight.detach().float().cpu()
    if weight.ndim == 2:  # fully connected: one weight per pixel
        return weight[:most].reshape(-1, *size[-2:])
    if weight.ndim == 4:  # convolution: o c u v
        return weight[:most, 0]
    return weight[:, :, : max(1, most // 8), 0].permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2)  # local, i j o c u v -> o (i u) (j v)


def activations(model: nn.Sequential, image: Tensor, most: int = 32) -> Tensor | None:
    """What the first windowed layer answers to one image `(1, C, H, W)`: `(K, I, J)`; None if the first layer is fully connected."""
    layer = first_layer(model)
    caught: list[Tensor] = []
    hook = layer.register_forward_hook(lambda module, inputs, output: caught.append(output))
    try:
        with looked_at(model):
            model(image)
    finally:
        hook.remove()
    return caught[0][0, :most] if caught[0].ndim == 4 else None


def confusion(labels: Tensor, predictions: Tensor, classes: int) -> Tensor:
    """How often class r was called c: `(classes, classes)`, int64."""
    return torch.bincount(labels * classes + predictions, minlength=classes * classes).reshape(classes, classes)


def confusion_figure(counts: Tensor, classes: Sequence[str]) -> Any:
    """The confusion matrix with its counts; rows are coloured by their share, so that rare classes count too."""
    side = max(3.0, 0.4 * len(classes) + 0.8)  # so small that its numbers can be read on TensorBoard's cards
    made = figure(side, side)
    axes = made.subplots()
    axes.imshow((counts / counts.sum(1, keepdim=True).clamp(min=1)).numpy(), cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(classes)), classes, rotation=0 if len(classes) > 5 else 20)
    axes.set_yticks(range(len(classes)), classes)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    for r in range(len(classes)):
        for c in range(len(classes)):
            share = counts[r, c] / counts[r].sum().clamp(min=1)
            axes.text(c, r, str(int(counts[r, c])), ha="center", va="center", fontsize=8, color="white" if share > 0.5 else "black")
    return made


def mistakes_figure(held_out: Pictures, predictions: Tensor, most: int = 24) -> Any:
    """The first misclassified pictures, each with what it is and what it was taken for; None if there are none."""
    wrong = (held_out.labels.cpu() != predictions.cpu()).nonzero().flatten()[:most]
    if not len(wrong):
        return None
    images, labels = held_out.batch(wrong.to(held_out.labels.device))
    columns, (h, w) = min(6, len(wrong)), images.shape[-2:]  # as many as can be read on TensorBoard's cards
    rows = -(-len(wrong) // columns)
    made = figure(1.1 * columns, 1.35 * rows, layout=None)
    axes = made.add_axes((0, 0, 1, 1), xlim=(0, columns), ylim=(rows, 0))  # one pair of axes for all: a pair for each is ten times slower
    axes.axis("off")
    for number, index in enumerate(wrong.tolist()):
        top, left = divmod(number, columns)
        extent = (left + 0.05, left + 0.95, top + 0.98, top + 0.98 - 0.9 * h / w * 1.1 / 1.35)
        axes.imshow(images[number, 0].cpu().numpy(), cmap="gray_r", vmin=0, vmax=1, extent=extent, aspect="auto")
        true, called = held_out.classes[int(labels[number])], held_out.classes[int(predictions[index])]
        words = f"{true}, not {called}"
        axes.text(
            left + 0.5,
            top + 0.2,
            words if len(words) < 14 else words.replace(", ", "\n"),
            ha="center",
            fontsize=9 if len(words) < 14 else 7,
        )
    axes.set(xlim=(0, columns), ylim=(rows, 0))
    return made
