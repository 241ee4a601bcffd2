"""A network as a list of nodes that a page can compute: what each layer reads, which pixels its windows cover, its weights.

Every tensor is written with three spatial dimensions, `(C, D, H, W)`: an image has D = 1, a signal D = H = 1, a vector of F numbers is
`(F, 1, 1, 1)`. Every layer with windows is then one table, `cells[side][position][cell]`: the pixel along each side that a cell of a window
shows, or -1 in the padding. Stride, dilation, padding of any mode, ceil_mode, adaptive windows and the zeros between the pixels of a
transposed convolution are all in that table. Weights that positions share are written out for each, as `unshared()` does.

A description is believed only if it gives the layer's own output back; otherwise, and for layers that are not known here, the node is
"stored": its numbers come from torch, and the page says so.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf, prod
from typing import Any

import torch
from torch import Tensor, nn

from cnn425.lab.errors import LabError, first_line
from cnn425.nn import LocallyConnected1d, LocallyConnected2d, LocallyConnected3d, LowRankLocal1d, LowRankLocal2d, LowRankLocal3d

CLOSE = 1e-4  # of the largest number of a layer: how far a description may be from what the layer computes, in float32
Cells = list[list[int]]

CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
LOCAL = (LocallyConnected1d, LocallyConnected2d, LocallyConnected3d, LowRankLocal1d, LowRankLocal2d, LowRankLocal3d)
MAX = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
AVERAGE = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
LP = (nn.LPPool1d, nn.LPPool2d, nn.LPPool3d)
ADAPTIVE: dict[type[nn.Module], str] = {
    **dict.fromkeys((nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d), "max"),
    **dict.fromkeys((nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d), "average"),
}
SIMPLE: dict[type[nn.Module], str] = {
    nn.ReLU: "relu",
    nn.Sigmoid: "sigmoid",
    nn.Tanh: "tanh",
    nn.Softmax: "softmax",
    nn.Flatten: "same",
    nn.Identity: "same",
}
DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)


@dataclass
class Node:
    """One layer: what it computes, from which node (-1: from something that is not a layer), and the shape `(C, D, H, W)` of its result.

    `kept`: how many maps the page holds weights for, if not for all.
    """

    kind: str
    name: str
    layer: str
    source: int
    shape: tuple[int, ...]
    cells: list[Cells] = field(default_factory=list)
    groups: int = 1
    norm: float = 0.0
    divisors: list[float] = field(default_factory=list)
    weight: Tensor | None = None
    bias: Tensor | None = None
    output: Tensor | None = None
    kept: int = 0
    why: str = ""


def blocks(shape: Sequence[int]) -> tuple[int, ...]:
    """`(C, *spatial)` with three spatial dimensions."""
    if len(shape) > 4:
        raise LabError(f"a tensor of shape {tuple(shape)} per image has more than three spatial dimensions, which no page shows")
    return (*shape[:1], *[1] * (4 - len(shape)), *shape[1:]) if shape else (1, 1, 1, 1)


# ---- From a model to nodes ---------------------------------------------------------------------------------------------------------------


class Recorder:
    """The layers of a model in the order in which they run, with their outputs for some images."""

    def __init__(self, model: nn.Module, images: Tensor):
        self.model = copy.deepcopy(model).eval()
        for module in self.model.modules():
            if getattr(module, "inplace", False):
                module.inplace = False  # type: ignore[assignment]
        self.nodes = [Node("image", "", "image", -1, blocks(images.shape[1:]), output=images)]
        self.alive: list[Tensor] = [images.requires_grad_()]  # an address is only meaningful while its tensor lives
        self.made: dict[tuple[int, int], int] = {(images.data_ptr(), images.numel()): 0}
        self.read: list[list[Tensor]] = [[]]
        self.same: list[Tensor] = []

    def run(self) -> Tensor:
        """The answer of the model; afterwards `nodes` is filled, and `alive` and `read` hold the outputs of the nodes and who read them."""
        layers = [(n, m) for n, m in self.model.named_modules() if not any(m.children())]
        before = [m.register_forward_pre_hook(own_view) for _, m in layers]
        after = [m.register_forward_hook(lambda m, given, y, n=n: self.add(n, m, given, y)) for n, m in layers]
        try:
            answer = self.model(self.alive[0])
        except Exception as error:  # whatever a foreign model raises
            shape = "×".join(map(str, self.alive[0].shape))
            raise LabError(f"the model cannot be applied to images of shape {shape}: {first_line(error)}") from None
        finally:
            for hook in (*before, *after):
                hook.remove()
        if not isinstance(answer, Tensor):
            raise LabError(f"the model answers with {type(answer).__name__}, and a page needs one tensor")
        if self.made.get((answer.data_ptr(), answer.numel())) != len(self.nodes) - 1:
            self.append(Node("stored", "", "after the last layer", -1, blocks(answer.shape[1:]), why=NOT_A_LAYER), answer)
        return self.alive[-1]

    def append(self, node: Node, output: Tensor) -> None:
        """The new last node."""
        node.output = output.detach()
        self.made[output.data_ptr(), output.numel()] = len(self.nodes)
        self.nodes.append(node)
        self.alive.append(output)
        self.read.append([])

    def add(self, name: str, module: nn.Module, given: tuple[Any, ...], y: Any) -> None:
        """One layer has run: a node for it, and before it one for what came from no layer."""
        if not given or not isinstance(given[0], Tensor) or not isinstance(y, Tensor):
            return
        x = given[0]
        source = self.made.get((x.data_ptr(), x.numel()))
        if source is None:
            self.append(Node("stored", "", f"before {name}", -1, blocks(x.shape[1:]), why=NOT_A_LAYER), x)
            source = len(self.nodes) - 1
        node = checked(described(name, module, source, self.nodes[source].shape, y), x, y)
        if node.kind == "same":  # Flatten, Identity: whoever reads its result reads the numbers of the node before
            self.made[y.data_ptr(), y.numel()] = source
            self.same.append(y)
            return
        if node.kind != "stored":
            self.read[source].append(x)
        self.append(node, y)


def own_view(module: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """The input of a layer as a tensor of its own, so that what this layer sends back can be told from what other readers do."""
    return (given[0].view_as(given[0]), *given[1:]) if given and isinstance(given[0], Tensor) else None


NOT_A_LAYER = "the model computes this itself, without a layer"


def described(name: str, module: nn.Module, source: int, shape: tuple[int, ...], y: Tensor) -> Node:
    """The node of a layer."""
    made = Node("stored", name, type(module).__name__, source, blocks(y.shape[1:]), why="this page does not know the layer")
    kind = next((k for t, k in (SIMPLE | ADAPTIVE).items() if isinstance(module, t)), "")
    try:
        if isinstance(module, nn.Linear):
            made.kind, made.weight, made.bias = "linear", module.weight.detach(), _detached(module.bias)
        elif isinstance(module, (*CONV, *LOCAL)):
            _weighted(made, module, shape)
        elif isinstance(module, (*MAX, *AVERAGE, *LP)):
            _pooled(made, module, shape)
        elif isinstance(module, tuple(ADAPTIVE)):
            made.kind = kind
            made.cells = [adaptive(size, count) for size, count in zip(shape[1:], made.shape[1:], strict=True)]
            made.divisors = counts(made.cells)
        elif kind or isinstance(module, DROPOUT):
            made.kind = kind or "same"
            made.shape = shape if made.kind == "same" and prod(shape) == prod(made.shape) else made.shape
    except (AttributeError, IndexError, TypeError, ValueError, RuntimeError):  # a relative of a known layer with other attributes
        made.kind = "stored"
    return made


def _detached(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.detach()


def _each(value: Any, dimensions: int, front: Any) -> list[Any]:
    """A setting per spatial dimension, for three of them."""
    return [front] * (3 - dimensions) + ([value] * dimensions if isinstance(value, int) else list(value))


def _weighted(made: Node, module: Any, shape: tuple[int, ...]) -> None:
    local, d = isinstance(module, LOCAL), len(module.kernel_size)
    mode = "transposed" if getattr(module, "transposed", False) else module.padding_mode
    module = module.unshared() if local else module
    low = [pair[0] for pair in module.geometry.padding] if local else module._reversed_padding_repeated_twice[-2::-2]
    made.kind, made.groups = ("local" if local else "conv"), module.groups
    kernel, stride, dilation = (_each(value, d, 1) for value in (module.kernel_size, module.stride, module.dilation))
    settings = zip(kernel, stride, dilation, _each(low, d, 0), strict=True)
    made.cells = [windows(size, count, *one, mode) for size, count, one in zip(shape[1:], made.shape[1:], settings, strict=True)]
    weight, bias, lead = module.weight.detach(), _detached(module.bias), prod(made.shape[1:]) if local else 1
    if mode == "transposed":
        weight = weight.unflatten(0, (module.groups, -1)).transpose(1, 2).flatten(0, 1)
    made.weight = weight.reshape(lead, made.shape[0], shape[0] // module.groups, -1)
    made.bias = None if bias is None else bias.reshape(made.shape[0], -1)


def _pooled(made: Node, module: Any, shape: tuple[int, ...]) -> None:
    d = int(made.layer[-2])
    kernel = _each(module.kernel_size, d, 1)
    stride = _each(module.kernel_size if module.stride is None else module.stride, d, 1)
    low = _each(getattr(module, "padding", 0), d, 0)
    made.kind = "max" if isinstance(module, MAX) else "average" if isinstance(module, AVERAGE) else "lp"
    settings = zip(kernel, stride, _each(getattr(module, "dilation", 1), d, 1), low, strict=True)
    made.cells = [windows(size, count, *one) for size, count, one in zip(shape[1:], made.shape[1:], settings, strict=True)]
    made.divisors = counts(made.cells)
    if getattr(module, "count_include_pad", False):  # cells in the padding count, cells beyond it do not
        grown = [size + 2 * p for size, p in zip(shape[1:], low, strict=True)]
        made.divisors = counts([windows(n, c, k, s, 1, 0) for n, c, k, s in zip(grown, made.shape[1:], kernel, stride, strict=True)])
    if override := getattr(module, "divisor_override", None):
        made.divisors = [float(override)] * prod(made.shape[1:])
    if made.kind == "lp":
        made.norm = float(module.norm_type)
        made.divisors = [n / prod(kernel) for n in made.divisors]  # as if missing cells held the average of the others


def windows(size: int, count: int, kernel: int, stride: int, dilation: int, low: int, mode: str = "zeros") -> Cells:
    """The pixels along one side that `count` windows show: `[position][cell]`, -1 in the padding."""
    if mode == "transposed":  # cell u of window i shows pixel (i + low - u*dilation) / stride, if that is whole
        sources = [[i + low - u * dilation for u in range(kernel)] for i in range(count)]
        return [[p // stride if p % stride == 0 and 0 <= p < size * stride else -1 for p in row] for row in sources]

    def pixel(place: int) -> int:
        if 0 <= place < size:
            return place
        if mode == "zeros":
            return -1
        if mode == "circular":
            return place % size
        if mode == "replicate":
            return min(max(place, 0), size - 1)
        return -place if place < 0 else 2 * (size - 1) - place  # reflect

    return [[pixel(i * stride + u * dilation - low) for u in range(kernel)] for i in range(count)]


def adaptive(size: int, count: int) -> Cells:
    """The pixels along one side that `count` adaptive windows show; shorter windows end with -1."""
    rows = [list(range(i * size // count, -(-(i + 1) * size // count))) for i in range(count)]
    longest = max(map(len, rows))
    return [row + [-1] * (longest - len(row)) for row in rows]


def counts(cells: Sequence[Cells]) -> list[float]:
    """How many cells of each window lie inside the image."""
    a, b, c = ([sum(pixel >= 0 for pixel in row) for row in rows] for rows in cells)
    return [float(i * j * k) for i in a for j in b for k in c]


# ---- What a description computes, to be compared with what the layer did -----------------------------------------------------------------


def checked(node: Node, x: Tensor, y: Tensor) -> Node:
    """The node, if its description gives the output `y` of the first image back; otherwise stored."""
    if node.kind == "stored":
        return node
    try:
        mine, theirs = computed(node, x[:1].detach().double().cpu()), y[:1].detach().double().cpu()
        scale = float(theirs[theirs.isfinite()].abs().max()) if theirs.isfinite().any() else 1.0
        same = torch.allclose(mine.flatten(), theirs.flatten(), rtol=0, atol=CLOSE * max(scale, 1e-6), equal_nan=True)
    except (RuntimeError, IndexError, TypeError):
        same = False
    return (
        node if same else Node("stored", node.name, node.layer, node.source, blocks(y.shape[1:]), why="it is not what its class computes")
    )


def computed(node: Node, x: Tensor) -> Tensor:
    """The output of a node as the page computes it, from `x` of shape `(N, ...)`."""
    simple = {"relu": lambda t: t.clamp(min=0), "sigmoid": torch.sigmoid, "tanh": torch.tanh, "same": lambda t: t}
    if node.kind in simple:
        return simple[node.kind](x)
    if node.kind == "softmax":
        if prod(node.shape[1:]) > 1:
            raise TypeError("only vectors")
        return x.flatten(1).softmax(1)
    if node.kind == "linear":
        assert node.weight is not None
        y = x.flatten(1) @ node.weight.double().cpu().T
        return y if node.bias is None else y + node.bias.double().cpu()
    fill = -inf if node.kind == "max" else 0.0
    table = taps(node.cells, x)
    flat = x.flatten(2) if x.ndim > 2 else x.unsqueeze(2)
    cut = torch.cat([flat, flat.new_full((*flat.shape[:2], 1), fill)], 2)[:, :, table]  # n c p k
    if node.kind == "max":
        return cut.amax(3)
    if node.weight is None:
        mean = (cut**node.norm if node.kind == "lp" else cut).sum(3) / torch.tensor(node.divisors, dtype=x.dtype)
        return mean ** (1 / node.norm) if node.kind == "lp" else mean
    weight = node.weight.double().cpu().expand(len(table), -1, -1, -1)
    y = torch.einsum("ngcpk,pgock->ngop", cut.unflatten(1, (node.groups, -1)), weight.unflatten(1, (node.groups, -1))).flatten(1, 2)
    return y if node.bias is None else y + node.bias.double().cpu()


def taps(cells: Sequence[Cells], x: Tensor) -> Tensor:
    """The pixel number that each cell of each window shows, `(P, K)`; -1 in the padding."""
    _, h, w = blocks(x.shape[1:])[1:]
    a, b, c = (torch.tensor(rows) for rows in cells)
    places = (a[:, None, None, :, None, None] * h + b[None, :, None, None, :, None]) * w + c[None, None, :, None, None, :]
    outside = (a < 0)[:, None, None, :, None, None] | (b < 0)[None, :, None, None, :, None] | (c < 0)[None, None, :, None, None, :]
    return places.masked_fill(outside, -1).reshape(len(a) * len(b) * len(c), -1)
