"""The explorer: one HTML file in which every number of a trained network can be followed, forwards and backwards.

    explore(model, images, "explorer.html", labels=labels, classes=("cat", "dog"))

The page holds the weights and computes the network itself, in plain JavaScript (pages/engine.js). What it cannot compute, it is given:
the outputs of layers that it does not know, and the adjoints that such layers send back.
"""

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from cnn425.lab import pages
from cnn425.lab.errors import LabError
from cnn425.lab.nodes import Node, Recorder
from cnn425.nn.sharing import sets_of_positions

LIMIT = 5_000_000  # bytes of a page


class Explored(NamedTuple):
    """What was written: the page, its bytes and images.

    `stored` are the layers whose numbers come from torch, with the reason; of those in `partial` the page has the weights of so many maps.
    """

    path: Path
    size: int
    images: int
    stored: dict[str, str]
    partial: dict[str, int]


class Packer:
    """Float32 numbers of all tensors of a page in one row; each tensor is known by where it starts and how long it is."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.count = 0

    def add(self, tensor: Tensor) -> list[int]:
        """Where the numbers of this tensor are."""
        numbers = tensor.detach().float().cpu().contiguous().numpy().astype("<f4").tobytes()
        self.parts.append(numbers)
        place = [self.count, len(numbers) // 4]
        self.count += place[1]
        return place

    def text(self) -> str:
        """All numbers, for a page to read."""
        return base64.b64encode(b"".join(self.parts)).decode()


def explore(
    model: nn.Module,
    images: Tensor,
    path: str | Path,
    labels: Sequence[int] | Tensor | None = None,
    classes: Sequence[str] | None = None,
    names: Sequence[str] | None = None,
    title: str = "a network",
    limit: int = LIMIT,
) -> Explored:
    """Write the explorer of a model on some images `(N, C, ...)`.

    labels    the true class of each image, if known
    classes   the names of the classes; default: 0, 1, ...
    names     what to call the images; default: their labels
    limit     the most bytes the page may have; with too many images it shows the first that fit
    """
    path = Path(path)
    if not isinstance(images, Tensor) or images.ndim < 2 or not len(images):
        raise LabError("images must be a tensor (N, C, ...) of at least one image")
    for what, given in (("labels", labels), ("names", names)):
        if given is not None and len(given) != len(images):
            raise LabError(f"there are {len(images)} images and {len(given)} {what}; each image needs one")
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
    images = images.to(like.device, like.dtype)
    partial: set[str] = set()
    count = len(images)
    while True:
        recorder = Recorder(model, images[:count].detach().clone())
        with torch.enable_grad():
            recorder.run()
        for node in recorder.nodes:
            if node.name in partial:
                keep_some_maps(node, limit // 5)
        content = pages.page("explorer", content_of(recorder, labels, classes, names, title))
        if len(content) <= limit:
            break
        heavy = [node.name for node in recorder.nodes if not node.kept and node.weight is not None and 4 * node.weight.numel() > limit // 3]
        if heavy:
            partial.update(heavy)
        elif count > 1:
            count -= max(1, count // 4)
        else:
            raise LabError(f"the page of this model would take {len(content) / 1e6:.1f} MB, more than {limit / 1e6:.1f} MB")
    pages.write(path, "explorer", content)
    stored = {node.name or node.layer: node.why for node in recorder.nodes if node.kind == "stored"}
    return Explored(path, len(content), count, stored, {node.name: node.kept for node in recorder.nodes if node.kept})


def keep_some_maps(node: Node, most: int) -> None:
    """Keep the weights of the first few maps only, about `most` bytes: the page is given the layer's numbers, and shows their sums."""
    assert node.weight is not None
    maps = node.shape[0]
    node.kept = max(1, min(maps - 1, most // (4 * (node.weight.numel() // maps))))
    dimension = 0 if node.kind == "linear" else 1
    node.weight = node.weight.narrow(dimension, 0, node.kept)


def content_of(
    recorder: Recorder, labels: Sequence[int] | Tensor | None, classes: Sequence[str] | None, names: Sequence[str] | None, title: str
) -> dict[str, Any]:
    """Everything the page is made of, as JSON can hold it."""
    packer, last = Packer(), recorder.nodes[-1]
    nodes = [described(node, recorder.model.get_submodule(node.name), packer) for node in recorder.nodes]
    count = len(recorder.alive[0])
    given = [k for k, node in enumerate(recorder.nodes) if node.kind in ("image", "stored") or node.kept]
    for k in given:
        output = recorder.nodes[k].output
        assert output is not None
        nodes[k]["values"] = [packer.add(image) for image in output]
    for k, adjoints in stored_adjoints(recorder).items():
        nodes[k]["adjoints"] = [[packer.add(adjoint[n]) for adjoint in adjoints] for n in range(count)]
    said = recorder.alive[-1].detach().flatten(1).unflatten(1, (last.shape[0], -1)).sum(2).argmax(1).tolist()
    true = [None] * count if labels is None else [int(label) for label in labels][:count]
    called = list(classes or map(str, range(last.shape[0])))
    if len(called) != last.shape[0] or any(label is not None and not 0 <= label < len(called) for label in true):
        raise LabError(
            f"the model answers with {last.shape[0]} numbers; classes must name as many, and labels be from 0 to {last.shape[0] - 1}"
        )
    return {
        "title": title,
        "classes": called,
        "nodes": nodes,
        "images": [{"label": label, "predicted": said[k], "name": names[k] if names else ""} for k, label in enumerate(true)],
        "numbers": packer.text(),
    }


def windows_of(layer: nn.Module) -> str:
    """Size, stride and padding of a layer's windows in words, and what else is not as usual: "3×3, stride 1, padding 1"."""
    if not hasattr(layer, "kernel_size"):
        return ""

    def words(value: Any) -> str:
        sides = value if isinstance(value, tuple) else (value,)
        return str(sides[0]) if len(set(sides)) == 1 else "×".join(str(side).replace(", ", "+").strip("()") for side in sides)

    size: Any = layer.kernel_size
    sides = size if isinstance(size, tuple) else (size,) * int(type(layer).__name__[-2])
    stride: Any = size if layer.stride is None else layer.stride
    said = ["×".join(map(str, sides)), f"stride {words(stride)}", f"padding {words(getattr(layer, 'padding', 0))}"]
    others = "output_padding", "dilation", "groups", "share", "tile", "rank"
    said += [
        f"{key.replace('_', ' ')} {words(value)}" for key in others if words(value := getattr(layer, key, 1)) not in ("0", "1", "None")
    ]
    mode: str = getattr(layer, "padding_mode", "zeros")
    return ", ".join(said + ([f"{mode} padding"] if mode != "zeros" else []))


def described(node: Node, layer: Any, packer: Packer) -> dict[str, Any]:
    """A node as JSON can hold it, without what it does not need; `layer` is the module it stands for."""
    words: dict[str, Any] = {"kind": node.kind, "name": node.name, "layer": node.layer, "source": node.source, "shape": node.shape}
    if node.kind not in ("image", "stored") and (window := windows_of(layer)):
        words["window"] = window
    for key in ("cells", "why", "norm", "kept"):
        if getattr(node, key):
            words[key] = getattr(node, key)
    if node.kind in ("average", "lp"):
        words["divisors"] = node.divisors
    if node.weight is not None:
        words |= {"weight": packer.add(node.weight), "groups": node.groups, "parameters": sum(p.numel() for p in layer.parameters())}
    if node.kind == "local":
        sets = sets_of_positions(layer).flatten().tolist()
        words |= {"rank": layer.rank} if hasattr(layer, "rank") else {"sets": sets} if len(set(sets)) < len(sets) else {}
    if node.bias is not None:
        words["bias"] = packer.add(node.bias)
    return words


def stored_adjoints(recorder: Recorder) -> dict[int, list[Tensor]]:
    """For each node whose adjoint is not the sum of what the layers on the page send back: its adjoints by each class, `(N, ...)` each."""
    nodes, outputs = recorder.nodes, recorder.alive
    answer = outputs[-1]
    if not answer.requires_grad:
        return {}
    probe = torch.randn(answer.shape, generator=torch.Generator().manual_seed(0)).to(answer)
    unknown = {node.source for node in nodes if node.kept}

    def complete(k: int) -> bool:
        readers = [] if k in unknown else recorder.read[k]
        whole, *parts = torch.autograd.grad(answer, [outputs[k], *readers], probe, retain_graph=True, allow_unused=True)
        if whole is None:
            return True
        total = sum((part.flatten() for part in parts if part is not None), torch.zeros_like(whole).flatten())
        return torch.allclose(total, whole.flatten(), rtol=0, atol=1e-4 * max(float(whole.abs().max()), 1e-30))

    missing = [k for k in range(len(nodes) - 1) if not complete(k)]
    if not missing:
        return {}
    found: dict[int, list[Tensor]] = {k: [] for k in missing}
    for target in range(nodes[-1].shape[0]):
        start = torch.zeros_like(answer)
        start[:, target] = 1
        gradients = torch.autograd.grad(answer, [outputs[k] for k in missing], start, retain_graph=True)
        for k, gradient in zip(missing, gradients, strict=True):
            found[k].append(gradient)
    return found
