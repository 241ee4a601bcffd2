"""Small networks, each buildable from this project's layers or from torch's, with the same initial weights under one seed.

| name       | 28x28 digits, what one unit of the first layer sees | weights in the first layer      |
|------------|------------------------------------------------------|---------------------------------|
| smallest   | everything (3x3 pictures)                            | 9 per class                     |
| linear     | everything                                           | 784 per class                   |
| mlp        | everything                                           | 784 per hidden unit             |
| local      | a 5x5 window, with weights of its own                | 25 per unit, 16 units per pixel |
| conv       | a 5x5 window, with weights that all pixels share     | 25 per filter, 16 filters       |
"""

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor, nn

Layers = Literal["custom", "torch"]
Name = Literal["smallest", "linear", "mlp", "local", "conv"]
HIDDEN = 256  # units of mlp


def namespace(layers: Layers) -> ModuleType:
    """`cnn425.nn` or `torch.nn`: the two offer the same names."""
    if layers == "torch":
        return nn
    import cnn425.nn

    return cnn425.nn


def local_layer(layers: Layers) -> Any:
    """The class of locally connected layer: ours, or one that computes the same from torch's own operators.

    Torch has no such layer. Who needs one writes `unfold` and an einsum; that is the peer here, with our parameters and initial weights.
    """
    from cnn425.nn import LocallyConnected2d

    if layers == "custom":
        return LocallyConnected2d

    class LocalByUnfold(LocallyConnected2d):
        """A locally connected layer as torch users write it: `unfold` copies all windows, an einsum weighs each position's own."""

        def forward(self, input: Tensor) -> Tensor:
            weight: Tensor = self.weight
            i, j, o = weight.shape[:3]
            columns = nn.functional.unfold(input, self.kernel_size, self.dilation, self.padding, self.stride)
            output = torch.einsum("ncp,poc->nop", columns, weight.reshape(i * j, o, -1)).unflatten(2, (i, j))
            return output if self.bias is None else output + self.bias

    return LocalByUnfold


def build(
    name: Name,
    layers: Layers,
    seed: int,
    size: tuple[int, int] = (28, 28),
    classes: int = 10,
    channels: tuple[int, int] = (16, 32),
) -> nn.Sequential:
    """The network called `name`: images `(N, 1, *size) -> (N, classes)`. The random state outside is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(*_stages(name, layers, size, classes, channels))


def _stages(name: Name, layers: Layers, size: tuple[int, int], classes: int, channels: tuple[int, int]) -> list[nn.Module]:
    ours = namespace(layers)
    h, w = size
    if name in ("smallest", "linear"):
        return [nn.Flatten(), ours.Linear(h * w, classes)]
    if name == "mlp":
        return [nn.Flatten(), ours.Linear(h * w, HIDDEN), ours.ReLU(), ours.Linear(HIDDEN, classes)]

    def windowed(c: int, o: int, size: tuple[int, int]) -> nn.Module:
        if name == "conv":
            return ours.Conv2d(c, o, 5, padding=2)
        return local_layer(layers)(c, o, size, 5, padding=2)

    c, o = channels
    return [
        *(windowed(1, c, (h, w)), ours.ReLU(), ours.MaxPool2d(2)),
        *(windowed(c, o, (h // 2, w // 2)), ours.ReLU(), ours.MaxPool2d(2)),
        *(nn.Flatten(), ours.Linear(o * (h // 4) * (w // 4), classes)),
    ]


@contextlib.contextmanager
def looked_at(model: nn.Module) -> Iterator[None]:
    """The model as it is evaluated, without gradients: a look must not draw from a random generator or move a running mean."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


@contextlib.contextmanager
def hooked(model: nn.Module, hook: Callable[[str, nn.Module, Any, Any], None]) -> Iterator[None]:
    """While it lasts, `hook(name, layer, inputs, output)` is called after each layer that has no layers inside."""
    leaves = [(name, layer) for name, layer in model.named_modules() if not list(layer.children())]
    handles = [layer.register_forward_hook(partial(hook, name)) for name, layer in leaves]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def parameters(model: nn.Module) -> int:
    """How many numbers the model can learn."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
