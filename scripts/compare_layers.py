#!/usr/bin/env python
"""Every layer agrees with torch's, in values, gradients and second derivatives; beside it, time and memory. Also for layers of your own.

    python scripts/compare_layers.py                                                            every layer, small sizes: some 20 seconds
    python scripts/compare_layers.py --layer conv2d --in-channels 3 --kernel-size 5 --stride 2
    python scripts/compare_layers.py --layer local1d --size 40 --dtype float64 --json
    python scripts/compare_layers.py --ours mylayers:Conv2d --theirs torch.nn:Conv2d --padding 1          two layers of your own
    python scripts/compare_layers.py --html report.html                   the same as a page, with bars
    python scripts/compare_layers.py --model RUN --html report.html            a trained network, ours against torch's
    python scripts/compare_layers.py --model RUN --against bfloat16                   or in another precision, or another RUN

Every layer is compared with torch's namesake; a local layer, which torch does not have, with torch's own windows (`Tensor.unfold`) and
`torch.einsum`; one that shares its weights in blocks of two, or mixes two convolutions, with the same and its weight written out.
Errors are the largest of any entry, under a random upstream gradient. Times are medians of forward and backward, taken in turns with
torch's in this process, as a ratio ours / torch (below 1: ours is faster). Memory is the largest amount allocated at once during forward
and backward, beyond what was there before, as a ratio too.

With `--ours` and `--theirs` two classes are built with those of the options that their constructors take, given the same weights, and
called with one tensor, an image of as many dimensions as the name of the second class ends in (`Conv2d`: two, `Linear`: none). They are
looked for as `import` would find them, in the current folder first.

With `--model` two networks run on the same test pictures, and the report says where they part first, layer by layer, forward and backward.

The exit code is 0 if everything agrees (of two networks: each layer, given the same numbers), 1 if not, 2 if the configuration is
impossible.
"""

import copy
import importlib
import inspect
import json
import os
import shlex
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast, get_args

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # before torch: its profiler talks

if __name__ == "__main__":  # the claim is said before torch is imported, which takes seconds
    from cnn425.lab.errors import need_lab

    need_lab()
    from cnn425.lab.progress import opening_before_imports

    opening_before_imports(sys.argv, lambda: f"{(__doc__ or '').partition(';')[0]}.")

import torch
from torch import Tensor
from torch.func import functional_call
from torch.profiler import ProfilerActivity, profile

import cnn425.nn as nn
import cnn425.nn.functional as F
from cnn425.agreement import TOLERANCES, compare, derivatives
from cnn425.lab.errors import LabError, command, first_line
from cnn425.lab.group import torch_device
from cnn425.lab.models import Layers, build

if TYPE_CHECKING:  # check_device.py wants the problems below where torch is alone, so what else is needed is imported where it is used
    from rich.console import Console

    from cnn425.lab.side_by_side import Layer

Name = Literal[
    "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "unfold", "fold",
    "local1d", "local2d", "local3d", "local_shared1d", "local_shared2d", "local_shared3d",
    "local_low_rank1d", "local_low_rank2d", "local_low_rank3d", "linear", "relu", "sigmoid", "softmax", "cross_entropy",
    "max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d", "lp_pool1d", "lp_pool2d", "lp_pool3d",
    "adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d",
    "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d",
]  # fmt: skip


@dataclass(frozen=True)
class Options:
    """Which layer, on what input. Sizes are pixels. Without --layer, an argument is for the layers that have it."""

    layer: Literal[Name, "every"] = "every"
    """which layer"""
    ours: str = ""
    """a Module class of your own, as module:Class, instead of a layer of this project"""
    theirs: str = ""
    """the class it is compared with; default: torch.nn's of the same name"""
    batch: int = 4
    """examples"""
    in_channels: int = 4
    """input channels; features of linear, classes of softmax and cross_entropy"""
    out_channels: int = 8
    """output channels or features"""
    size: int = 12
    """input size along each dimension; output size of adaptive pools is half of it"""
    kernel_size: int = 3
    """kernel size along each dimension"""
    stride: int = 1
    """pixels from window to window"""
    padding: int = 0
    """pixels around the image"""
    dilation: int = 1
    """pixels from cell to cell inside a window"""
    groups: int = 1
    """groups of channels"""
    bias: bool = True
    """with a bias"""
    dtype: Literal["float32", "float64", "bfloat16", "float16"] = "float32"
    """precision of the comparison; gradcheck always uses float64"""
    device: str = "cpu"
    """where it runs"""
    repeats: int = 20
    """timed runs of each"""
    seed: int = 0
    """of input, weights and upstream gradient"""
    gradcheck: bool = True
    """check first and second derivatives by finite differences, on a small version of the input"""
    json: bool = False
    """print JSON instead of a table"""
    html: Path | None = None
    """also write the report as a page, one file for any browser"""
    model: Path | None = None
    """a run folder of experiments/mnist.py, or a checkpoint in it: compare two whole networks"""
    against: str = ""
    """what to compare the model with: custom, torch, float64, bfloat16, float16, or another run; default: the other layers"""
    data_dir: Path | None = None
    """the folder that holds MNIST/raw/..., for --model"""


@dataclass(frozen=True)
class Row:
    """One layer's comparison."""

    layer: str
    agrees: bool
    errors: dict[str, float]
    wrong: str
    gradcheck: str
    gradgradcheck: str
    time_ratio: float
    ours_ms: float
    torch_ms: float
    memory_ratio: float
    shares: dict[str, float]
    case: str
    repeat: str

    @property
    def underivable(self) -> str:
        """What is wrong with the first or second derivative; empty if nothing is."""
        return "; ".join(v for v in (self.gradcheck, self.gradgradcheck) if v not in ("", "not run"))


class ImpossibleError(Exception):
    """The configuration makes no layer; the message is for the user."""


Pair = tuple[Callable[..., Any], Callable[..., Any], list[Tensor]]


def dimensions(name: str) -> int:
    """Spatial dimensions of the layer, 0 if it has none."""
    return int(name[-2]) if name[-1] == "d" and name[-2].isdigit() else 0


SHARE, RANK = 2, 2  # of the layers between a local one and a convolution
OF_WINDOWS = ("kernel_size", "stride", "padding", "dilation")
USELESS_FOR = {
    "linear": (*OF_WINDOWS, "groups"),
    **dict.fromkeys(("unfold", "fold"), ("out_channels", "groups", "bias")),
    **dict.fromkeys(("relu", "sigmoid", "softmax", "cross_entropy"), ("out_channels", *OF_WINDOWS, "groups", "bias")),
    "max_pool": ("out_channels", "groups", "bias"),
    "avg_pool": ("out_channels", "dilation", "groups", "bias"),
    "lp_pool": ("out_channels", "padding", "dilation", "groups", "bias"),
    **dict.fromkeys(("adaptive_max_pool", "adaptive_avg_pool"), ("out_channels", *OF_WINDOWS, "groups", "bias")),
}


def kind_of(name: str | None) -> str:
    """The layer without its number of dimensions."""
    return (name or "").removesuffix("1d").removesuffix("2d").removesuffix("3d")


def problem(name: str, o: Options) -> Pair:
    """Our function, torch's, and tensors to call both with."""
    d, dtype = dimensions(o.theirs.lower() if o.ours else name), getattr(torch, o.dtype)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, device=o.device, dtype=torch.float64 if dtype.itemsize > 2 else torch.float32).to(dtype)

    image = draw(o.batch, o.in_channels, *[o.size] * d)
    if name in ("unfold", "fold"):
        windows: tuple[int, ...] = (o.kernel_size, o.dilation, o.padding, o.stride)
        image = draw(o.batch, o.in_channels, o.size, o.size)
        if name == "fold":
            image, windows = torch.nn.functional.unfold(image, *windows), (o.size, *windows)
        mine, expected = getattr(F, name), getattr(torch.nn.functional, name)
        return (lambda x: mine(x, *windows)), (lambda x: expected(x, *windows)), [image]
    if o.ours:
        return of_classes(o, image)
    if name.startswith(("conv", "local")):
        return weighted(name, o, d, image, draw)
    if d:
        return pooled(name, o, image)
    if name == "linear":
        weights = [draw(o.out_channels, o.in_channels), *([draw(o.out_channels)] if o.bias else [])]
        return F.linear, torch.nn.functional.linear, [image, *weights]
    if name == "cross_entropy":
        return F.cross_entropy, torch.nn.functional.cross_entropy, [image, torch.randint(o.in_channels, (o.batch,), device=o.device)]
    arguments = {"dim": 1} if name == "softmax" else {}
    ours, theirs = getattr(F, name), getattr(torch, name)
    return (lambda x: ours(x, **arguments)), (lambda x: theirs(x, **arguments)), [image]


def of_classes(o: Options, image: Tensor) -> Pair:
    """Two classes of the user's as functions of the image and of the weights, which are the second one's."""
    settings = asdict(o) | {"in_features": o.in_channels, "out_features": o.out_channels, "input_size": o.size}
    kinds = [named(o.ours, "--ours"), named(o.theirs, "--theirs")]
    taken = [inspect.signature(kind).parameters for kind in kinds]
    torch.manual_seed(o.seed)
    try:
        mine, reference = (
            kind(**{key: settings[key] for key in names if key in settings and key not in ("dtype", "device")})
            for kind, names in zip(kinds, taken, strict=True)
        )
        mine.load_state_dict(reference.state_dict())
    except (TypeError, ValueError, RuntimeError) as error:
        raise ImpossibleError(f"--ours {o.ours} and --theirs {o.theirs}: {' '.join(str(error).split())}") from None
    names = [name for name, _ in reference.named_parameters()]
    mine, reference = (module.to(image.device, image.dtype) for module in (mine, reference))
    weights = [p.detach().to(image.device, image.dtype) for p in reference.parameters()]
    ours, theirs = (
        lambda x, *p, module=module: functional_call(module, dict(zip(names, p, strict=True)), (x,)) for module in (mine, reference)
    )
    return ours, theirs, [image, *weights]


def named(words: str, option: str) -> type[torch.nn.Module]:
    """The class that `module:Class` names."""
    place, _, name = words.partition(":")
    try:
        kind = getattr(importlib.import_module(place), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ImpossibleError(f"{option} is {words or 'empty'}; a class is wanted, as torch.nn:Conv2d ({error})") from None
    if not (isinstance(kind, type) and issubclass(kind, torch.nn.Module)):
        raise ImpossibleError(f"{option} {words} is no class of Modules")
    return kind


def weighted(name: str, o: Options, d: int, image: Tensor, draw: Callable[..., Tensor]) -> Pair:
    """A convolution or a local layer, with weights as large as torch would start them."""
    arguments: dict[str, Any] = {"stride": o.stride, "padding": o.padding, "dilation": o.dilation, "groups": o.groups}
    if o.in_channels % o.groups or o.out_channels % o.groups:
        raise ImpossibleError(f"--groups {o.groups} must divide --in-channels {o.in_channels} and --out-channels {o.out_channels}")
    kernel, fan = [o.kernel_size] * d, o.in_channels // o.groups * o.kernel_size**d
    weight_shape = [o.out_channels, o.in_channels // o.groups, *kernel]
    if name.startswith("conv_transpose"):
        weight_shape[:2] = [o.in_channels, o.out_channels // o.groups]
        arguments["output_padding"] = o.stride - 1
    if name.startswith("conv"):
        bias = [draw(o.out_channels)] if o.bias else []
        pair = (getattr(library, name) for library in (F, torch.nn.functional))
        ours, theirs = (lambda x, w, *b, f=f: f(x, w, *b, **arguments) for f in pair)
        return ours, theirs, [image, draw(*weight_shape) / fan**0.5, *bias]
    positions = [positions_along(o.size, o.kernel_size, o.stride, o.padding, o.dilation)] * d
    shapes, last = local_shapes(name, positions, weight_shape)
    inputs = [image, *(draw(*shape) / fan**0.5 for shape in shapes), *([draw(*last)] if o.bias else [])]
    return *local_pair(name, inputs, arguments), inputs


def positions_along(size: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    """The windows along one side."""
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def local_shapes(name: str, positions: list[int], weight: list[int]) -> tuple[list[list[int]], list[int]]:
    """The shapes of a local layer's weights, and of its bias; the windows at one position have the shape `weight`."""
    if kind_of(name) == "local_low_rank":
        return [[*positions, RANK], [RANK, *weight]], weight[:1]
    sets = [-(-p // SHARE) for p in positions] if kind_of(name) == "local_shared" else positions
    return [[*sets, *weight]], [weight[0], *sets]


def local_pair(name: str, tensors: Sequence[Tensor], arguments: dict[str, Any]) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    """Our local layer as a function of image, weights and bias, and the same by einsum, with the weight of every position written out."""
    d, kind = dimensions(name), kind_of(name)
    if kind == "local":
        return partial(getattr(F, f"locally_connected{d}d"), **arguments), partial(local_by_einsum, **arguments)
    x, w, few = tensors[0], tensors[1 if kind == "local_shared" else 2], kind == "local_low_rank"
    sizes = x.shape[1], w.shape[-d - 2], tuple(x.shape[2:]), tuple(w.shape[-d:])
    options: dict[str, Any] = {**arguments, "bias": len(tensors) > 2 + few, "device": "meta"}
    options |= {"rank": RANK, "mixing": "positions", "normalise": None} if few else {"share": SHARE}
    module = getattr(nn, f"{'LowRankLocal' if few else 'LocallyConnected'}{d}d")(*sizes, **options)
    names, positions = [name for name, _ in module.named_parameters()], module.output_size

    def ours(x: Tensor, *learnt: Tensor) -> Tensor:
        return functional_call(module, dict(zip(names, learnt, strict=True)), (x,))

    def shared(x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        for k, count in enumerate(positions):
            own = torch.arange(count, device=x.device) // SHARE
            w, b = w.index_select(k, own), None if b is None else b.index_select(1 + k, own)
        return local_by_einsum(x, w, b, **arguments)

    def low_rank(x: Tensor, m: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        return local_by_einsum(x, torch.tensordot(m, w, 1), None if b is None else b.view(-1, *[1] * d), **arguments)

    return ours, low_rank if few else shared


def local_by_einsum(
    x: Tensor, w: Tensor, b: Tensor | None = None, stride: int = 1, padding: int = 0, dilation: int = 1, groups: int = 1
) -> Tensor:
    """A local layer from torch's parts: windows by `Tensor.unfold`, then one `torch.einsum`."""
    d = x.ndim - 2
    x = torch.nn.functional.pad(x, [padding] * 2 * d).unflatten(1, (groups, -1))
    for k in range(d):
        x = x.unfold(3 + k, dilation * (w.shape[d + 2 + k] - 1) + 1, stride)[..., ::dilation]
    i, u = "ijk"[:d], "uvw"[:d]
    y = torch.einsum(f"ngc{i}{u},{i}goc{u}->ngo{i}", x, w.unflatten(d, (groups, -1))).flatten(1, 2)
    return y if b is None else y + b


def pooled(name: str, o: Options, image: Tensor) -> Pair:
    """A pool."""
    if name.startswith("adaptive"):
        positional: tuple[Any, ...] = (max(1, o.size // 2),)
        arguments: dict[str, Any] = {}
    elif name.startswith("lp"):
        positional, arguments = (2.0, o.kernel_size), {"stride": o.stride}
    else:
        positional, arguments = (o.kernel_size,), {"stride": o.stride, "padding": o.padding}
        arguments |= {"dilation": o.dilation} if name.startswith("max") else {}
    ours, theirs = (getattr(library, name) for library in (F, torch.nn.functional))
    return (lambda x: ours(x, *positional, **arguments)), (lambda x: theirs(x, *positional, **arguments)), [image]


def small(name: str, device: str = "cpu") -> Pair:
    """A small problem in float64, always the same on a device, for checks that take their time."""
    torch.manual_seed(0)
    return problem(name, Options(batch=2, in_channels=4, out_channels=2, size=5, groups=2, stride=2, dtype="float64", device=device))


def checked(o: Options) -> None:
    """Raise ImpossibleError for what no layer can be made of."""
    for name in ("batch", "in_channels", "out_channels", "size", "kernel_size", "stride", "dilation", "groups", "repeats"):
        if getattr(o, name) < 1:
            raise ImpossibleError(f"--{name.replace('_', '-')} must be at least 1, but got {getattr(o, name)}")
    for name in USELESS_FOR.get(kind_of(o.layer), ()) if o.layer != "every" else ():
        if getattr(o, name) != getattr(Options, name):
            raise ImpossibleError(f"{o.layer} has no --{name.replace('_', '-')}")
    if o.html:
        from cnn425.lab import pages

        pages.refuse_others(o.html, "report")
    if o.padding < 0:
        raise ImpossibleError(f"--padding must be at least 0, but got {o.padding}")
    if (o.ours or o.theirs) and o.layer != "every":
        raise ImpossibleError("--layer names a layer of this project, --ours one of yours; leave out one")
    if o.theirs and not o.ours:
        raise ImpossibleError("--theirs is what --ours is compared with; say which class --ours is")
    window, room = o.dilation * (o.kernel_size - 1) + 1, o.size + 2 * o.padding
    if window > room and (o.layer == "every" or dimensions(o.layer)):
        raise ImpossibleError(
            f"--kernel-size and --dilation make a window of {window} pixels, more than the {room} of --size and --padding"
        )
    try:
        torch_device(o.device)
    except LabError as error:
        raise ImpossibleError(str(error).replace(": ", " cannot be used: ", 1)) from None


def step(function: Callable[..., Tensor], inputs: list[Tensor]) -> Callable[[], Any]:
    """A call that computes outputs and all gradients."""
    leaves = [t.detach().clone().requires_grad_(t.is_floating_point()) for t in inputs]
    learn = [t for t in leaves if t.requires_grad]
    upstream = torch.randn_like(function(*leaves))
    return lambda: torch.autograd.grad(function(*leaves), learn, upstream)


def clock(call: Callable[[], Any], device: str) -> float:
    """Milliseconds of one call."""
    start = time.perf_counter()
    call()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return (time.perf_counter() - start) * 1e3


def peak_bytes(call: Callable[[], Any], device: str) -> int:
    """The most bytes that were allocated at once during the call, beyond those before."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        call()
    held = peak = 0
    for event in sorted((e for e in record.profiler.kineto_results.events() if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def measured(name: str, o: Options) -> Row:
    """The comparison of one layer."""
    torch.manual_seed(o.seed)
    ours, theirs, inputs = problem(name, o)
    verdict = compare(ours, theirs, inputs, o.seed)
    orders = {"gradcheck": "not run", "gradgradcheck": "not run"}
    if o.gradcheck:
        smallest = o.dilation * (o.kernel_size - 1) + 1 + o.stride
        few = replace(o, batch=2, in_channels=min(o.in_channels, 2 * o.groups), out_channels=min(o.out_channels, 2 * o.groups))
        small = problem(name, replace(few, size=min(o.size, max(smallest, 3)), dtype="float64"))
        orders = derivatives(small[0], small[2], fast=True)
    mine, reference = step(ours, inputs), step(theirs, inputs)
    mine(), reference()
    pairs = [(clock(mine, o.device), clock(reference, o.device)) for _ in range(o.repeats)]
    ours_ms, torch_ms = (statistics.median(column) for column in zip(*pairs, strict=True))
    memory = peak_bytes(mine, o.device) / max(1, peak_bytes(reference, o.device))
    row = Row(
        layer=name,
        agrees=bool(verdict),
        errors=verdict.errors,
        wrong=verdict.wrong,
        **orders,
        time_ratio=statistics.median(a / b for a, b in pairs),
        ours_ms=ours_ms,
        torch_ms=torch_ms,
        memory_ratio=memory,
        shares={q.name: q.share for q in verdict.quantities},
        case=", ".join("×".join(map(str, t.shape)) for t in inputs),
        repeat=repeated(name, o),
    )
    return replace(row, agrees=row.agrees and not row.underivable)


def repeated(name: str, o: Options) -> str:
    """The command that makes the comparison of this layer again."""
    words = ["python", "scripts/compare_layers.py", *(() if o.ours else ("--layer", name))]
    for option, default in asdict(Options()).items():
        value = getattr(o, option)
        if value == default or option in ("layer", "json", "html", "model", "against", "data_dir"):
            continue
        key = option.replace("_", "-")
        words += [f"--{key}" if value else f"--no-{key}"] if isinstance(value, bool) else [f"--{key}", str(value)]
    return shlex.join(words)


HEAD = """\
                      largest error      1st and 2nd  milliseconds  ours / torch
layer                 output  gradient   derivative    ours  torch   time memory"""


def told(row: Row) -> str:
    """What stands behind the name of a layer in the table; the head above it is 80 characters wide."""
    output, gradient = (
        max((error for name, error in row.errors.items() if name.startswith(kind)), default=float("nan")) for kind in ("output", "gradient")
    )
    orders = "wrong" if row.underivable else "not run" if row.gradcheck == "not run" else "right"
    numbers = f" {output:8.1e} {gradient:8.1e}   {orders:9} {row.ours_ms:7.2f} {row.torch_ms:6.2f}"
    numbers += f" {row.time_ratio:6.2f} {row.memory_ratio:6.2f}"
    return numbers if row.agrees else f"{numbers}\n    differs: {row.wrong} {row.underivable}".rstrip()


class Agreement(NamedTuple):
    """How many layers were compared, and what came out."""

    holds: bool
    agree: int
    layers: int
    where: str

    def sentence(self) -> str:
        """What came out."""
        return f"{self.agree} of {self.layers} layers agree with torch ({self.where}, torch {torch.__version__})"


# ---- Two whole networks ----------------------------------------------------------------------------------------------------------------


def networks(o: Options) -> "tuple[str, str, list[Layer]]":
    """What is compared, in words, and the layers of both networks side by side on the first `--batch` test pictures."""
    from cnn425.lab import trained
    from cnn425.lab.side_by_side import side_by_side
    from experiments import mnist

    assert o.model is not None
    mine = trained.load(o.model)
    against = o.against or ("torch" if mine.options["layers"] == "custom" else "custom")
    words = f"{mine.options['model']} of {mine.options['layers']} layers"
    if against in ("custom", "torch"):
        other = build(mine.options["model"], cast(Layers, against), 0, classes=len(mine.classes))
        other.load_state_dict(mine.model.state_dict())
        second = f"the same with {against} layers"
    elif against in ("float64", "bfloat16", "float16"):
        other, second = copy.deepcopy(mine.model).to(getattr(torch, against)), f"the same in {against}"
    else:
        other, second = trained.load(Path(against)).model, against
    images, labels = mnist.tested_on(mine.options, o.data_dir).first(o.batch).batch(slice(None))
    return words, second, side_by_side(mine.model, other, images, labels)


def compare_networks(o: Options, console: "Console") -> int:
    """The report of two networks; 0 if every layer alone agrees."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Column, Table

    from cnn425.lab import pages
    from cnn425.lab.side_by_side import first_parting, parted

    first, second, sides = networks(o)
    roundings = {dtype: t.absolute / (torch.finfo(dtype).eps / 2) for dtype, t in TOLERANCES.items() if dtype.is_floating_point}
    layers = [
        parted(layer, roundings, o.repeats, lambda call: clock(call, o.device), lambda call: peak_bytes(call, o.device)) for layer in sides
    ]
    where, agree = first_parting(layers), all(q["alone"] <= q["allowed"] for layer in layers for q in layer["quantities"])
    data = {"first": first, "second": second, "where": where, "layers": layers, **about(o)}
    if o.html:
        pages.write(o.html, "report", pages.page("report", data))
    if o.json:
        print(json.dumps(data))
        return 0 if agree else 1
    columns = ("layer", "quantity", "so far", "alone", "worst numbers", "time", "memory")
    shown = Table(*(Column(name, overflow="fold") for name in columns), title=f"{first} | {second}", box=SIMPLE_HEAD, pad_edge=False)
    for layer in layers:
        for k, q in enumerate(layer["quantities"]):
            ratios = [f"{a / b:.2f}" if b else "" for a, b in (layer["ms"], layer["bytes"])]
            title = f"{layer['name']} {layer['kind']}" if k == 0 else ""
            worst = f"{q['first']:.7g}\n{q['second']:.7g}"
            shown.add_row(title, q["name"], f"{q['so_far']:.3g}", f"{q['alone']:.3g}", worst, *(ratios if k == 0 else ["", ""]))
    console.print(shown)
    console.print(
        "differences in units of rounding: of all layers so far, and of the layer alone, given the same numbers; "
        "time and memory as first / second"
    )
    console.print(where)
    if o.html:
        console.print(f"open {o.html}", soft_wrap=True)
    return 0 if agree else 1


def about(o: Options) -> dict[str, Any]:
    """What a report says about how it was made."""
    words = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(o).items()}
    return {"torch": torch.__version__, "threads": torch.get_num_threads(), "options": words}


def main(argv: list[str] | None = None) -> int:
    """Compare, print, and say by the exit code whether everything agrees."""
    import tyro
    from rich.console import Console

    from cnn425.lab import pages
    from cnn425.lab.progress import console, opening, write
    from cnn425.lab.verdict import conclude

    o = tyro.cli(Options, args=argv, prog="python scripts/compare_layers.py", description=__doc__)
    if o.model:
        try:
            checked(o)
            return compare_networks(o, console())
        except (ImpossibleError, LabError) as error:
            Console(stderr=True, force_terminal=sys.stderr.isatty()).print(f"error: {error}", style="red", markup=False, soft_wrap=True)
            return 2
    if o.ours and not o.theirs:
        o = replace(o, theirs=f"torch.nn:{o.ours.partition(':')[2]}")
    sys.path.insert(0, str(Path.cwd()))
    names = [o.ours] if o.ours else [o.layer] if o.layer != "every" else list(get_args(Name))
    errors = Console(stderr=True, force_terminal=sys.stderr.isatty())
    rows = []
    try:
        checked(o)
        name = names[0]
        _, theirs, inputs = problem(name, o)
        theirs(*inputs)  # refused before anything is printed
        if not o.json:
            opening(f"{(__doc__ or '').partition(';')[0]}.")
            write(f"{HEAD}\n")
        for name in names:
            if not o.json:
                write(f"{name:20}")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                rows.append(measured(name, o))
            if not o.json:
                write(f"{told(rows[-1])}\n")
    except (ImpossibleError, LabError) as error:
        errors.print(f"error: {error}", style="red", markup=False, soft_wrap=True)
        return 2
    except (RuntimeError, ValueError, MemoryError, OverflowError) as error:
        errors.print(f"error: {name} refuses these arguments: {first_line(error)}", style="red", markup=False, soft_wrap=True)
        return 2
    except KeyboardInterrupt:
        errors.print("stopped; nothing was written")
        return 130
    data = {**about(o), "rows": [asdict(r) for r in rows]}
    try:
        if o.html:
            pages.write(o.html, "report", pages.page("report", data))
    except LabError as error:
        errors.print(f"error: {error}", style="red", markup=False, soft_wrap=True)
        return 2
    agree = sum(row.agrees for row in rows)
    if o.json:
        print(json.dumps(data))
    else:
        conclude(Agreement(agree == len(rows), agree, len(rows), f"{o.dtype}, {o.device}"))
        write(
            f"next: open {o.html}\n" if o.html else "next: the same as a page, with bars and the command for each row: --html report.html\n"
        )
    return 0 if agree == len(rows) else 1


if __name__ == "__main__":
    command(main)
