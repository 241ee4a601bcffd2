#!/usr/bin/env python
"""The scorecard: every layer against torch, feature by feature, passed / tried; and what each locally connected layer in existence can do.

    python scripts/conformance.py                          every layer, ten minutes or more; --deep for hours of it
    python scripts/conformance.py --layers conv2d relu     some of them
    python scripts/conformance.py --compile                also torch.compile and torch.export: a minute more per layer
    python scripts/conformance.py --markdown               the tables as the README shows them; --json for machines

    samples       PyTorch's own sample inputs for the operator, every dtype torch supports: values, gradients, dtype, strides
    errors        PyTorch's own wrong inputs: the same type of exception; `wording` asks for a message that also matches torch's pattern
    modules       PyTorch's own Module inputs: same repr, initial weights under a seed, state_dict; same outputs and gradients
    arguments     random arguments, legal and illegal: both raise the same type of error, or both agree in values and gradients
    derivatives   first and second derivatives by finite differences, forward mode and batches of them included
    transforms    jvp, vjp, jacrev, jacfwd, hessian, vmap over each and all inputs, per-sample gradients
    compile       torch.compile(fullgraph=True), static and dynamic shapes, forward and backward; torch.export, strict

The exit code is 0 if everything passed, 1 if not. Run from anywhere; nothing is written.
"""

import json
import random
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, get_args

import torch
import tyro
from compare_layers import Name, local_by_einsum, problem
from compare_layers import Options as Configuration
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor

import cnn425.nn as nn
import cnn425.nn.functional as F
from cnn425.agreement import TOLERANCES, compare, derivatives, describe, refusal, same_refusal, transforms

LAYERS = tuple(get_args(Name))
# Torch rounds half precision between the steps of a layer; ours rounds once, at the end. So theirs is allowed that many roundings more.
ROUNDED_BETWEEN = {d: t._replace(absolute=4 * t.absolute) if d.itemsize == 2 else t for d, t in TOLERANCES.items()}
Check = Iterator[tuple[str, str]]


@dataclass(frozen=True)
class Options:
    """What to try."""

    layers: tuple[str, ...] = LAYERS
    """names as in cnn425.nn.functional; locally connected layers are local1d, local2d, local3d"""
    samples: int = 30
    """at most so many sample inputs per dtype, evenly chosen"""
    examples: int = 60
    """random argument lists per layer"""
    seed: int = 0
    """of the random arguments"""
    deep: bool = False
    """all samples, and fifty times as many random arguments"""
    compile: bool = False
    """also torch.compile and torch.export"""
    failures: bool = False
    """list every failure"""
    markdown: bool = False
    """print Markdown"""
    json: bool = False
    """print JSON"""


@dataclass
class Score:
    """One layer's result in one feature."""

    layer: str
    feature: str
    passed: int = 0
    tried: int = 0
    failures: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.passed} / {self.tried}" if self.tried else "-"


# ---- what is tried ----------------------------------------------------------------------------------------------------------------------


def operators(layer: str) -> list[Any]:
    """PyTorch's description of the operator."""
    from torch.testing._internal.common_methods_invocations import op_db

    return [op for op in op_db if op.name in (f"nn.functional.{layer}", layer)]


def evenly(items: list[Any], count: int) -> list[Any]:
    """`count` of the items, evenly spread."""
    return items if len(items) <= count else [items[i * len(items) // count] for i in range(count)]


def samples(layer: str, o: Options) -> Check:
    """PyTorch's own sample inputs."""
    ours = getattr(F, layer, None)
    for op in operators(layer):
        theirs = getattr(torch.nn.functional, layer)
        for dtype in sorted(op.supported_dtypes("cpu"), key=str):
            wants_gradient = dtype in op.supported_backward_dtypes("cpu")
            for i, sample in enumerate(evenly(list(op.sample_inputs("cpu", dtype, requires_grad=wants_gradient)), o.samples)):
                arguments = (sample.input, *sample.args)
                name = f"{layer} sample {i} {dtype}: {shapes(arguments)} {sample.kwargs}"
                yield name, differ(ours, theirs, arguments, sample.kwargs)


def errors(layer: str, o: Options) -> Check:
    """PyTorch's own wrong inputs: the type of exception."""
    for name, ours, _, error in wrong_inputs(layer):
        yield name, "" if type(ours) is error.error_type or isinstance(ours, error.error_type) else describe(ours)


def wording(layer: str, o: Options) -> Check:
    """PyTorch's own wrong inputs: the words of the message."""
    import re

    for name, ours, _, error in wrong_inputs(layer):
        yield name, "" if re.search(error.error_regex, str(ours)) else f"{describe(ours)} instead of {error.error_regex}"


def wrong_inputs(layer: str) -> Iterator[tuple[str, Exception | None, Exception | None, Any]]:
    """Each of PyTorch's wrong inputs, and what ours and theirs raise."""
    for op in operators(layer):
        for i, error in enumerate(op.error_inputs("cpu") if op.error_inputs_func else ()):
            s = error.sample_input
            ours, theirs = (refusal(partial(getattr(library, layer), s.input, *s.args, **s.kwargs)) for library in (F, torch.nn.functional))
            if theirs is not None:
                yield f"{layer} error {i}: {shapes((s.input, *s.args))} {s.kwargs}", ours, theirs, error


def modules(layer: str, o: Options) -> Check:
    """PyTorch's own Module inputs."""
    from torch.testing._internal.common_modules import module_db

    words = {"relu": "ReLU", "cross_entropy": "CrossEntropyLoss"}
    wanted = words.get(layer, layer.replace("_", "")).lower()
    for info in module_db:
        kind = info.module_cls
        if kind.__name__.lower() != wanted or kind is not getattr(torch.nn, kind.__name__, None):
            continue
        ours = getattr(nn, kind.__name__)
        inputs = info.module_inputs_func(info, device="cpu", dtype=torch.float64, requires_grad=True, training=True)
        for i, entry in enumerate(inputs):
            made = entry.constructor_input
            yield f"{kind.__name__} {i}: {made.args} {made.kwargs}", module_differs(ours, kind, made, entry.forward_input)


def module_differs(ours: Any, theirs: Any, made: Any, given: Any) -> str:
    """What is different about our Module; empty if nothing is."""
    pair = []
    for kind in (ours, theirs):
        torch.manual_seed(0)
        pair.append(kind(*made.args, **made.kwargs).double())
    mine, expected = pair
    if repr(mine) != repr(expected):
        return f"repr {mine!r} instead of {expected!r}"
    if list(mine.state_dict()) != list(expected.state_dict()):
        return f"state_dict {list(mine.state_dict())} instead of {list(expected.state_dict())}"
    if not all(torch.equal(a, b) for a, b in zip(mine.state_dict().values(), expected.state_dict().values(), strict=True)):
        return "other initial weights"
    inputs = (*given.args, *given.kwargs.values())
    wrong = same_refusal(lambda: mine(*inputs), lambda: expected(*inputs))
    return wrong if wrong or refusal(lambda: expected(*inputs)) else compare(mine, expected, inputs).wrong


def arguments(layer: str, o: Options) -> Check:
    """Random arguments, legal and illegal."""
    ours = getattr(F, layer, None)
    theirs = getattr(torch.nn.functional, layer, None)
    for i in range(o.examples * (50 if o.deep else 1)):
        draw = Draw(f"{layer} {o.seed} {i}")
        torch.manual_seed(draw.randrange(2**31))
        if layer.startswith("local"):
            given, named = local_arguments(layer, draw)
            yield f"{layer} {i}: {shapes(given)} {named}", differ(local(layer), local_by_einsum, given, named, strides=False)
        else:
            given, named = drawn(layer, draw)
            yield f"{layer} {i}: {shapes(given)} {named}", differ(ours, theirs, given, named)


def differ(ours: Any, theirs: Any, given: tuple[Any, ...], named: dict[str, Any], strides: bool = True) -> str:
    """What is different about `ours(*given, **named)`: the refusal, a value, a gradient, a dtype, a layout; empty if nothing is."""
    given = tuple(g.detach() if isinstance(g, Tensor) else g for g in given)
    named = {k: v.detach() if isinstance(v, Tensor) else v for k, v in named.items()}
    in_place = named.get("inplace") is True

    def call(f: Any) -> Callable[..., Any]:
        return lambda *x: f(*((x[0] * 1, *x[1:]) if in_place else x), **named)

    wrong = same_refusal(lambda: call(ours)(*given), lambda: call(theirs)(*given))
    if wrong or refusal(lambda: call(theirs)(*given)) is not None:
        return wrong
    if refusal(lambda: compare(call(theirs), call(theirs), given)) is not None:  # torch has no gradient: values alone
        given = tuple(g.detach() for g in given) if all(isinstance(g, Tensor) for g in given) else given
        with torch.no_grad():
            return compare(call(ours), call(theirs), given, tolerances=ROUNDED_BETWEEN, strides=strides).wrong
    try:
        return compare(call(ours), call(theirs), given, tolerances=ROUNDED_BETWEEN, strides=strides).wrong
    except Exception as error:
        return describe(error)


def shapes(values: tuple[Any, ...]) -> str:
    """Arguments in short: tensors by shape and dtype."""
    return ", ".join(f"{list(v.shape)} {str(v.dtype)[6:]}" if isinstance(v, Tensor) else repr(v) for v in values)


# ---- random arguments -------------------------------------------------------------------------------------------------------------------

STRANGE = (0, -1, 1.5, "a", None, True, (1,), (2, 2), (1, 2, 3), (1, 2, 3, 4), [2], [], torch.tensor(2))
DTYPES = (torch.float32,) * 6 + (torch.float64,) * 4 + (torch.int64, torch.bool, torch.complex64)


class Draw(random.Random):
    """Random numbers for one list of arguments, with at most one thing wrong: of two errors, any may be reported first."""

    wrong = False

    def mistake(self, share: float) -> bool:
        """Now and then True, once."""
        found = not self.wrong and self.random() < share
        self.wrong |= found
        return found


def number(draw: Draw, d: int, low: int, high: int) -> Any:
    """An int, one per dimension, or now and then something strange."""
    if draw.mistake(0.06):
        return draw.choice(STRANGE)
    return tuple(draw.randint(low, high) for _ in range(d)) if draw.random() < 0.4 else draw.randint(low, high)


def tensor(draw: Draw, *shape: int, dtype: torch.dtype | None = None, images: bool = True) -> Tensor:
    """Small integers half of the time, so that ties happen; any layout."""
    gaps = len(shape) > 0 and draw.random() < 0.15
    size = (*shape[:-1], 2 * shape[-1]) if gaps else shape
    x = torch.randint(-3, 4, size).double() if draw.random() < 0.5 else torch.randn(size, dtype=torch.float64)
    x = x.to(dtype or draw.choice(DTYPES))
    if gaps:
        return x[..., ::2]
    if images and x.ndim == 4 and draw.random() < 0.2:
        return x.to(memory_format=torch.channels_last)
    return x.t().contiguous().t() if x.ndim == 2 and draw.random() < 0.2 else x


def drawn(layer: str, draw: Draw) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments of a layer that torch has."""
    d = int(layer[-2]) if layer[-1] == "d" and layer[-2].isdigit() else 0
    size = [draw.choice((0, 1, 2, 5, 6, 7, 8) if draw.random() < 0.1 else (5, 6, 7, 8)) for _ in range(max(d, 0))]
    batch = [draw.choice((0, 1, 2, 3))] if draw.random() < 0.8 else []
    if layer.startswith("adaptive_avg"):  # of size 1 it is a plain mean in torch, which looks at nothing
        size = [max(n, 1) for n in size]
    elif draw.mistake(0.04):
        batch = [2, 2]
    if layer.startswith("conv"):
        return conv_arguments(d, size, batch, draw)
    if d:
        return pool_arguments(layer, d, size, batch, draw)
    shape = [draw.randint(0, 4) for _ in range(draw.randint(0, 4))]
    if layer == "linear":
        w = [draw.randint(0, 4), shape[-1] if shape and not draw.mistake(0.1) else 2][draw.random() < 0.1 :]
        dtype = draw.choice(DTYPES)
        bias = [] if draw.random() < 0.4 else [tensor(draw, *([3] if draw.mistake(0.1) else w[:1]), dtype=dtype)]
        return (tensor(draw, *shape, dtype=dtype), tensor(draw, *w, dtype=None if draw.mistake(0.1) else dtype), *bias), {}
    if layer == "cross_entropy":
        return loss_arguments(draw)
    named: dict[str, Any] = {}
    if layer == "softmax":
        named = {"dim": draw.choice((0, 1, -1, -2, 2, 5, "a", True, 1.0))} | ({"dtype": torch.float64} if draw.random() < 0.2 else {})
    if layer == "relu":
        named = {"inplace": draw.random() < 0.3}
    return (tensor(draw, *shape),), named


def conv_arguments(d: int, size: list[int], batch: list[int], draw: Draw) -> tuple[tuple[Any, ...], dict[str, Any]]:
    groups = draw.choice((1, 1, 1, 2, 3))
    c, out = draw.choice((groups, 2 * groups)), draw.choice((groups, 2 * groups))
    # an empty batch is not looked at closely by torch: nothing is wrong with it here
    empty = 0 in (*batch, *size)
    dtype = torch.float32 if empty else draw.choice([t for t in DTYPES if t != torch.int64])
    kernel = [draw.randint(1, 3) for _ in range(d)]
    x = tensor(draw, *batch, c + draw.mistake(0.04), *size, dtype=dtype)
    w = tensor(draw, out, c // groups, *kernel[draw.mistake(0.03) :], dtype=None if not empty and draw.mistake(0.05) else dtype)
    b = [] if draw.random() < 0.4 else [tensor(draw, out + draw.mistake(0.03), dtype=dtype)]
    named = {"stride": number(draw, d, 1, 3), "dilation": number(draw, d, 1, 2)}
    named["groups"] = draw.choice(STRANGE) if draw.mistake(0.05) else groups
    named["padding"] = number(draw, d, 0, 2)
    if draw.random() < 0.2:
        named["padding"] = (
            "full" if draw.mistake(0.3) else "valid" if named["stride"] not in (1, (1,) * d) else draw.choice(("same", "valid"))
        )
    return (x, w, *b), named


def pool_arguments(layer: str, d: int, size: list[int], batch: list[int], draw: Draw) -> tuple[tuple[Any, ...], dict[str, Any]]:
    channels = draw.choice((0, 1, 2, 3)) if draw.random() < 0.1 else 2
    empty = 0 in (*batch, channels, *size)
    dtype = torch.float32 if empty else draw.choice([t for t in DTYPES if t != torch.complex64])
    x = tensor(draw, *batch, channels, *size, dtype=dtype, images=d == 2)
    if layer.startswith("adaptive"):
        target: Any = (None,) * d if draw.random() < 0.1 else number(draw, d, 1, 6)
        target = 1 if target == 0 and not dtype.is_floating_point else target  # torch does not look at the dtype of an empty output
        return (x, target), {"return_indices": True} if "max" in layer and draw.random() < 0.5 else {}
    kernel = number(draw, d, 1, 3)
    named = {"stride": None if draw.random() < 0.3 else number(draw, d, 1, 3), "ceil_mode": draw.random() < 0.4}
    if layer.startswith("lp"):
        return (x, draw.choice((1, 2, 2.0, 3)), kernel), named
    named["padding"] = number(draw, d, 0, 1)
    if layer.startswith("avg"):
        named["count_include_pad"] = draw.random() < 0.5
        named |= {"divisor_override": draw.choice((None, 1, 5, -2, 0))} if d > 1 else {}
    else:
        far = 2 if min(size) > 2 else 1  # a window that sees nothing but padding has no gradient, whatever torch says
        named |= {"dilation": number(draw, d, 1, far), "return_indices": draw.random() < 0.5}
    return (x, kernel), named


def loss_arguments(draw: Draw) -> tuple[tuple[Any, ...], dict[str, Any]]:
    size = [draw.randint(1, 4) for _ in range(draw.randint(1, 4))]
    x = tensor(draw, *size, dtype=draw.choice((torch.float32, torch.float64)))
    classes = size[0] if len(size) == 1 else size[1]
    if draw.random() < 0.3:
        target = torch.rand(size).to(x.dtype)
    else:
        target = torch.randint(
            -1 if draw.random() < 0.1 else 0, classes + (draw.random() < 0.1), (size[:1] if len(size) > 1 else []) + size[2:]
        )
    named = {"reduction": draw.choice(("mean", "sum", "none")), "label_smoothing": draw.choice((0.0, 0.0, 0.1, 1.0, 1.5))}
    named |= {"ignore_index": draw.choice((-100, 0, 1))} | ({"weight": torch.rand(classes).to(x.dtype)} if draw.random() < 0.4 else {})
    return (x, target), named


def local_arguments(layer: str, draw: Draw) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Legal arguments of a local layer; its refusals have no oracle."""
    d, groups = int(layer[-2]), draw.choice((1, 1, 2))
    k, s, p, dilation, size = draw.randint(1, 3), draw.randint(1, 2), draw.randint(0, 1), draw.randint(1, 2), draw.randint(5, 7)
    positions = [(size + 2 * p - dilation * (k - 1) - 1) // s + 1] * d
    dtype = draw.choice((torch.float32, torch.float64))
    c, out = groups * draw.randint(1, 2), groups * draw.randint(1, 2)
    x, w = tensor(draw, draw.randint(0, 3), c, *[size] * d, dtype=dtype), tensor(draw, *positions, out, c // groups, *[k] * d, dtype=dtype)
    b = [tensor(draw, out, *positions, dtype=dtype)] if draw.random() < 0.6 else []
    return (x, w, *b), {"stride": s, "padding": p, "dilation": dilation, "groups": groups}


def local(layer: str) -> Any:
    """The function of a local layer."""
    return getattr(F, f"locally_connected{layer[-2:]}")


# ---- derivatives and transforms ---------------------------------------------------------------------------------------------------------


def small(layer: str) -> Any:
    """A small problem in float64: ours, theirs, inputs."""
    torch.manual_seed(0)
    return problem(layer, Configuration(batch=2, in_channels=4, out_channels=2, size=5, groups=2, stride=2, dtype="float64"))


def orders(layer: str, o: Options) -> Check:
    """First and second derivatives."""
    ours, _, inputs = small(layer)
    yield from ((f"{layer} {name}", wrong) for name, wrong in derivatives(ours, inputs).items())


def transformed(layer: str, o: Options) -> Check:
    """torch.func."""
    yield from ((f"{layer} {name}", wrong) for name, wrong in transforms(*small(layer)).items())


def compiled(layer: str, o: Options) -> Check:
    """torch.compile and torch.export."""
    if o.compile:
        verdicts = transforms(*small(layer), compiled=True)
        yield from ((f"{layer} {name}", wrong) for name, wrong in verdicts.items() if name.startswith(("compile", "export")))


FEATURES: dict[str, Callable[[str, Options], Check]] = {
    "samples": samples,
    "errors": errors,
    "wording": wording,
    "modules": modules,
    "arguments": arguments,
    "derivatives": orders,
    "transforms": transformed,
    "compile": compiled,
}


def score(layer: str, feature: str, o: Options) -> Score:
    """One cell of the scorecard."""
    found = Score(layer, feature)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        checks = FEATURES[feature](layer, o)
        for name, wrong in checks:
            found.tried += 1
            found.passed += not wrong
            if wrong:
                found.failures.append(f"{feature}: {name}: {wrong}")
    return found


# ---- locally connected layers, everywhere -----------------------------------------------------------------------------------------------


def makes(**options: Any) -> Callable[[], bool]:
    """Whether our two-dimensional Module with these options computes something."""

    def check() -> bool:
        layer = nn.LocallyConnected2d(2, 4, (6, 5), 3, **options)
        return bool(layer(torch.randn(2, 2, 6, 5)).isfinite().all())

    return check


def starts_like_a_convolution() -> bool:
    """Output standard deviations of a local layer and a convolution, before training, within a tenth."""
    torch.manual_seed(0)
    x = torch.randn(64, 3, 28, 28)
    deviations = [layer(x).std() for layer in (nn.LocallyConnected2d(3, 8, 28, 5, bias=False), nn.Conv2d(3, 8, 5, bias=False))]
    return abs(deviations[0] / deviations[1] - 1) < 0.1


def every_dimension() -> bool:
    """One, two and three dimensions."""
    kinds = (nn.LocallyConnected1d, nn.LocallyConnected2d, nn.LocallyConnected3d)
    return all(kind(1, 2, 5, 3)(torch.randn(2, 1, *[5] * d)).shape == (2, 2, *[3] * d) for d, kind in enumerate(kinds, 1))


def converts() -> bool:
    """From a convolution and back."""
    conv = nn.Conv2d(2, 3, 3)
    layer, x = nn.LocallyConnected2d.from_conv(conv, 6), torch.randn(2, 2, 6, 6)
    return torch.allclose(layer(x), conv(x), atol=1e-5) and torch.allclose(layer.to_conv().weight, conv.weight, atol=1e-6)


def lazy() -> bool:
    """An input size learnt from the first image."""
    return nn.LazyLocallyConnected2d(3, 3)(torch.randn(1, 2, 6, 6)).shape == (1, 3, 4, 4)


def all_pass(feature: str, layer: str = "local2d") -> Callable[[], bool]:
    """Whether a feature of the scorecard is complete."""
    return lambda: bool((s := score(layer, feature, Options())).tried) and s.passed == s.tried


# Feature, ours (tried when the table is made), flax.linen.ConvLocal, Keras 2's LocallyConnected1D/2D, the snippet of PyTorch's forum.
# What the others can do was read from their sources: flax 0.12.8, tf_keras 2.21; docs/locally_connected.md says more.
LOCAL: tuple[tuple[str, Callable[[], bool], str, str, str], ...] = (
    ("1, 2 and 3 dimensions", every_dimension, "any", "1, 2", "2"),
    ("stride", makes(stride=(2, 1)), "yes", "yes", "yes"),
    ("dilation", makes(dilation=2, padding=1), "yes", "no", "no"),
    ("groups", makes(groups=2), "no", "no", "no"),
    ("padding in pixels", makes(padding=(1, 2)), "yes", "no", "no"),
    ("padding low and high apart", makes(padding=((0, 1), (2, 0))), "yes", "no", "no"),
    ("'same', also strided", makes(padding="same", stride=2), "yes", "2 of 3 implementations", "no"),
    ("padding modes: reflect, replicate, circular", makes(padding=1, padding_mode="reflect"), "circular, reflect", "no", "no"),
    ("bias per position", makes(bias=True), "yes", "yes", "yes"),
    ("bias per channel", makes(bias="channel"), "no", "no", "no"),
    ("input size from the first image", lazy, "yes", "yes", "no"),
    ("starts like a convolution (fan-in without positions)", starts_like_a_convolution, "no", "no", "no"),
    ("from a convolution and back", converts, "no", "no", "no"),
    ("derivatives of every order", all_pass("derivatives"), "yes", "first order", "yes"),
    ("vmap, forward mode, per-sample gradients", all_pass("transforms"), "yes", "no", "yes"),
)


def local_features() -> list[tuple[str, str, str, str, str]]:
    """The feature table of locally connected layers, ours tried now."""
    rows = []
    for name, check, *others in LOCAL:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                ours = "yes" if check() else "no"
            except Exception as error:
                ours = f"no: {describe(error)}"
        rows.append((name, ours, *others))
    return rows


# ---- output -----------------------------------------------------------------------------------------------------------------------------

PEERS = ("feature", "cnn425", "flax ConvLocal", "Keras 2", "forum snippet")


def scorecard(scores: list[Score]) -> tuple[list[str], list[list[str]]]:
    """Header and rows, one row per layer and one for the sums."""
    features = [f for f in FEATURES if any(s.tried for s in scores if s.feature == f)]
    cells = {(s.layer, s.feature): s for s in scores}
    layers = list(dict.fromkeys(s.layer for s in scores))
    rows = [[layer, *(str(cells[layer, f]) for f in features)] for layer in layers]
    sums = [[sum(getattr(cells[layer, f], what) for layer in layers) for what in ("passed", "tried")] for f in features]
    return ["layer", *features], [*rows, ["all", *(f"{passed} / {tried}" for passed, tried in sums)]]


def markdown(header: Any, rows: Any) -> str:
    """A table for the README."""
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *rows))


def rich_table(title: str, header: Any, rows: Any) -> Table:
    """A table for the terminal; what is not complete is red."""
    found = Table(*header, title=title)
    found.columns[0].no_wrap = header[0] == "layer"
    for row in rows:
        incomplete = [(" / " in cell and len(set(cell.split(" / "))) > 1) or cell.startswith("no:") for cell in row]
        found.add_row(*(f"[red]{cell}[/red]" if red else cell for cell, red in zip(row, incomplete, strict=True)))
    return found


def collect(o: Options) -> list[Score]:
    """All cells of the scorecard."""
    if o.deep:
        o = replace(o, samples=10**9)
    scores = []
    errors = Console(stderr=True)
    with Progress(console=errors, transient=True, disable=not errors.is_terminal) as progress:
        task = progress.add_task("", total=len(o.layers) * len(FEATURES))
        for layer in o.layers:
            for feature in FEATURES:
                progress.update(task, advance=1, description=f"{layer} {feature}")
                scores.append(score(layer, feature, o))
    return scores


def main(argv: list[str] | None = None) -> int:
    """Try everything, print the tables, and say by the exit code whether all passed."""
    o = tyro.cli(Options, args=argv, prog="conformance.py", description=__doc__)
    unknown = [layer for layer in o.layers if layer not in LAYERS]
    wrong = f"--layers has no {', '.join(unknown)}; choose from {', '.join(LAYERS)}" if unknown else ""
    wrong = wrong or next(
        (f"--{name} must be at least 1, but got {getattr(o, name)}" for name in ("samples", "examples") if getattr(o, name) < 1), ""
    )
    if wrong:
        Console(stderr=True).print(f"error: {wrong}", soft_wrap=True, markup=False, highlight=False)
        return 2
    try:
        scores, local_rows = collect(o), local_features()
    except KeyboardInterrupt:
        Console(stderr=True).print("stopped; nothing was written")
        return 130
    header, rows = scorecard(scores)
    if o.json:
        features = [dict(zip(PEERS, row, strict=True)) for row in local_rows]
        print(json.dumps({"torch": torch.__version__, "scores": [asdict(s) for s in scores], "locally connected": features}))
    elif o.markdown:
        print(f"{markdown(header, rows)}\n\n{markdown(PEERS, local_rows)}")
    else:
        console = Console()
        console.print(rich_table(f"passed / tried, against torch {torch.__version__}", header, rows))
        console.print(rich_table("locally connected layers", PEERS, local_rows))
    failures = [f for s in scores for f in s.failures]
    if failures and not o.json:
        shown = failures if o.failures else failures[:10]
        more = f"\n... and {len(failures) - len(shown)} more: --failures" if len(shown) < len(failures) else ""
        print("\n".join(shown) + more, file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
