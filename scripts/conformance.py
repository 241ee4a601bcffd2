#!/usr/bin/env python
"""Every layer does what torch's does, feature by feature, passed / tried; and what each locally connected layer in existence can do.

    python scripts/conformance.py                          every layer, ten minutes or more; --deep for hours of it (--limit 20: shorter)
    python scripts/conformance.py --layers conv2d relu     some of them
    python scripts/conformance.py --compile                also torch.compile and torch.export: a minute more per layer
    python scripts/conformance.py --features compile       nothing but those
    python scripts/conformance.py --markdown               the tables as docs/conformance.md shows them; --json for machines

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
import math
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, get_args

if __name__ == "__main__":  # the claim is said before torch is imported, which takes seconds
    from cnn425.lab.errors import need_lab

    need_lab()
    from cnn425.lab.progress import opening_before_imports

    opening_before_imports(sys.argv, lambda: __doc__)

import torch
from compare_layers import Name, local_pair, small
from local_features import PEERS, local_features
from random_arguments import Draw, drawn, local_arguments
from torch import Tensor

import cnn425.nn as nn
import cnn425.nn.functional as F
from cnn425.agreement import COMPILERS, FUNC, TOLERANCES, compare, derivatives, describe, refusal, same_refusal, under
from cnn425.lab.errors import LabError, command
from cnn425.lab.group import torch_device

if TYPE_CHECKING:  # check_device.py tries the features below where torch is alone, so what tables need is imported where they are made
    from rich.table import Table

LAYERS = tuple(get_args(Name))
# Torch rounds half precision between the steps of a layer; ours rounds once, at the end. So theirs is allowed that many roundings more.
ROUNDED_BETWEEN = {d: t._replace(absolute=4 * t.absolute) if d.itemsize == 2 else t for d, t in TOLERANCES.items()}
Check = Iterator[tuple[str, str]]


@dataclass(frozen=True)
class Options:
    """What to try."""

    layers: tuple[str, ...] = LAYERS
    """names as in cnn425.nn.functional; locally connected layers are local1d, local_shared1d, local_low_rank1d, and so on"""
    features: tuple[str, ...] = ()
    """some of the features above; all of them if none is named"""
    samples: int = 30
    """at most so many sample inputs per dtype, evenly chosen"""
    examples: int = 60
    """random argument lists per layer"""
    seed: int = 0
    """of the random arguments"""
    device: str = "cpu"
    """where it is tried"""
    deep: bool = False
    """all samples, and fifty times as many random arguments"""
    limit: float = 0.0
    """seconds for each layer and feature, after which no further case is tried; 0 stands for no limit, with --deep for two minutes"""
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
        kind = torch.device(o.device).type
        for dtype in sorted(op.supported_dtypes(kind), key=str):
            wants_gradient = dtype in op.supported_backward_dtypes(kind)
            for i, sample in enumerate(evenly(list(op.sample_inputs(o.device, dtype, requires_grad=wants_gradient)), o.samples)):
                arguments = (sample.input, *sample.args)
                name = f"{layer} sample {i} {dtype}: {shapes(arguments)} {sample.kwargs}"
                yield name, differ(ours, theirs, arguments, sample.kwargs)


def errors(layer: str, o: Options) -> Check:
    """PyTorch's own wrong inputs: the type of exception."""
    for name, ours, error in wrong_inputs(layer, o.device):
        yield name, "" if type(ours) is error.error_type or isinstance(ours, error.error_type) else describe(ours)


def wording(layer: str, o: Options) -> Check:
    """PyTorch's own wrong inputs: the words of the message."""
    import re

    for name, ours, error in wrong_inputs(layer, o.device):
        yield name, "" if re.search(error.error_regex, str(ours)) else f"{describe(ours)} instead of {error.error_regex}"


def wrong_inputs(layer: str, device: str) -> Iterator[tuple[str, Exception | None, Any]]:
    """Each of PyTorch's wrong inputs that torch refuses, what ours raises, and what is wanted."""
    for op in operators(layer):
        for i, error in enumerate(op.error_inputs(device) if op.error_inputs_func else ()):
            s = error.sample_input
            ours, theirs = (refusal(partial(getattr(library, layer), s.input, *s.args, **s.kwargs)) for library in (F, torch.nn.functional))
            if theirs is not None:
                yield f"{layer} error {i}: {shapes((s.input, *s.args))} {s.kwargs}", ours, error


def modules(layer: str, o: Options) -> Check:
    """PyTorch's own Module inputs."""
    from torch.testing._internal.common_modules import module_db

    words = {"relu": "ReLU", "cross_entropy": "CrossEntropyLoss"}
    wanted = words.get(layer, layer.replace("_", "")).lower()
    for info in module_db:
        kind = info.module_cls
        if kind is None or kind.__name__.lower() != wanted or kind not in vars(torch.nn).values():
            continue
        ours = getattr(nn, kind.__name__)
        inputs = info.module_inputs_func(info, device=o.device, dtype=torch.float64, requires_grad=True, training=True)
        for i, entry in enumerate(inputs):
            made = entry.constructor_input
            yield f"{kind.__name__} {i}: {made.args} {made.kwargs}", module_differs(ours, kind, made, entry.forward_input, o.device)


def module_differs(ours: Any, theirs: Any, made: Any, given: Any, device: str = "cpu") -> str:
    """What is different about our Module; empty if nothing is."""
    pair = []
    for kind in (ours, theirs):
        torch.manual_seed(0)
        pair.append(kind(*made.args, **made.kwargs).to(device, torch.float64))
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
    """Random arguments, legal and illegal; every third list may have three mistakes, of which any may be refused first."""
    ours = getattr(F, layer, None)
    theirs = getattr(torch.nn.functional, layer, None)
    for i in range(o.examples * (50 if o.deep else 1)):
        several = i % 3 == 2
        draw = Draw(f"{layer} {o.seed} {i}", 3 if several else 1)
        torch.manual_seed(draw.randrange(2**31))
        if layer.startswith("local"):
            given, named = moved(o.device, *local_arguments(layer, draw))
            yield f"{layer} {i}: {shapes(given)} {named}", differ(*local_pair(layer, given, named), given, {}, strides=False)
        else:
            given, named = moved(o.device, *drawn(layer, draw))
            if o.device != "cpu" and layer == "cross_entropy" and outside(given[0], given[1], named["ignore_index"]):
                continue
            yield f"{layer} {i}: {shapes(given)} {named}", differ(ours, theirs, given, named, types=not several)


def outside(scores: Tensor, target: Tensor, ignored: int) -> bool:
    """Whether a class is out of range: a GPU answers with an assertion, to torch as to us, and no longer works for this process."""
    counted = target[target != ignored]
    return target.dtype == torch.int64 and bool(((counted < 0) | (counted >= scores.shape[min(1, scores.ndim - 1)])).any())


def moved(device: str, given: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments with their tensors on the device."""

    def one(value: Any) -> Any:
        return value.to(device) if isinstance(value, Tensor) else value

    return tuple(map(one, given)), {name: one(value) for name, value in named.items()}


def differ(ours: Any, theirs: Any, given: tuple[Any, ...], named: dict[str, Any], strides: bool = True, types: bool = True) -> str:
    """What is different about `ours(*given, **named)`: the refusal, a value, a gradient, a dtype, a layout; empty if nothing is."""
    given = tuple(g.detach() if isinstance(g, Tensor) else g for g in given)
    named = {k: v.detach() if isinstance(v, Tensor) else v for k, v in named.items()}
    in_place = named.get("inplace") is True

    def call(f: Any) -> Callable[..., Any]:
        return lambda *x: f(*((x[0] * 1, *x[1:]) if in_place else x), **named)

    wrong = same_refusal(lambda: call(ours)(*given), lambda: call(theirs)(*given))
    if wrong and not types and refusal(lambda: call(ours)(*given)) is not None and refusal(lambda: call(theirs)(*given)) is not None:
        return ""
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


# ---- derivatives and transforms ---------------------------------------------------------------------------------------------------------


def orders(layer: str, o: Options) -> Check:
    """First and second derivatives."""
    ours, _, inputs = small(layer, o.device)
    yield from ((f"{layer} {name}", wrong) for name, wrong in derivatives(ours, inputs, fast=True).items())


def transformed(layer: str, o: Options) -> Check:
    """torch.func."""
    yield from ((f"{layer} {name}", wrong) for name, wrong in under(FUNC, *small(layer, o.device)))


def compiled(layer: str, o: Options) -> Check:
    """torch.compile and torch.export."""
    if o.compile or "compile" in o.features:
        yield from ((f"{layer} {name}", wrong) for name, wrong in under(COMPILERS, *small(layer, o.device)))


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


def score(layer: str, feature: str, o: Options, tell: Callable[[Score], None] = lambda found: None) -> Score:
    """One cell of the scorecard; `tell` is called after each of its cases."""
    found = Score(layer, feature)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        checks = FEATURES[feature](layer, o)
        end = time.monotonic() + (o.limit or math.inf)
        for name, wrong in checks:
            found.tried += 1
            found.passed += not wrong
            if wrong:
                found.failures.append(f"{feature}: {name}: {wrong}")
            tell(found)
            if time.monotonic() > end:
                break
    return found


# ---- output -----------------------------------------------------------------------------------------------------------------------------


def scorecard(scores: list[Score]) -> tuple[list[str], list[list[str]]]:
    """Header and rows, one row per layer and one for the sums."""
    features = [f for f in FEATURES if any(s.tried for s in scores if s.feature == f)]
    cells = {(s.layer, s.feature): s for s in scores}
    layers = list(dict.fromkeys(s.layer for s in scores))
    rows = [[layer, *(str(cells[layer, f]) for f in features)] for layer in layers]
    sums = [[sum(getattr(cells[layer, f], what) for layer in layers) for what in ("passed", "tried")] for f in features]
    return ["layer", *features], [*rows, ["all", *(f"{passed} / {tried}" for passed, tried in sums)]]


def markdown(header: Any, rows: Any) -> str:
    """A table for docs/conformance.md."""
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *rows))


def rich_table(title: str, header: Any, rows: Any) -> "Table":
    """A table for the terminal; what is not complete is red."""
    from rich.table import Table

    found = Table(*header, title=title)
    found.columns[0].no_wrap = header[0] == "layer"
    for row in rows:
        incomplete = [(" / " in cell and len(set(cell.split(" / "))) > 1) or cell.startswith("no:") for cell in row]
        found.add_row(*(f"[red]{cell}[/red]" if red else cell for cell, red in zip(row, incomplete, strict=True)))
    return found


def collect(o: Options) -> list[Score]:
    """All cells of the scorecard."""
    from rich.console import Console
    from rich.progress import Progress

    if o.deep:
        o = replace(o, samples=10**9, limit=o.limit or 120.0)
    scores: list[Score] = []
    spoke = time.monotonic()
    errors = Console(stderr=True, force_terminal=sys.stderr.isatty())
    features = [feature for feature in FEATURES if not o.features or feature in o.features]
    with Progress(console=errors, transient=True, disable=not errors.is_terminal) as progress:
        task = progress.add_task("", total=len(o.layers) * len(features))

        def tell(found: Score) -> None:
            """How far it is: a bar on a terminal, a line every second or two anywhere else."""
            nonlocal spoke
            words = f"{found.layer} {found.feature}: {found.tried} tried"
            progress.update(task, completed=len(scores), description=words)
            if not errors.is_terminal and time.monotonic() - spoke > 1:
                errors.print(f"{words} ...", soft_wrap=True, highlight=False)
                spoke = time.monotonic()

        for layer in o.layers:
            for feature in features:
                tell(Score(layer, feature))
                scores.append(score(layer, feature, o, tell))
    return scores


def main(argv: list[str] | None = None) -> int:
    """Try everything, print the tables, and say by the exit code whether all passed."""
    import tyro
    from rich.console import Console

    from cnn425.lab.progress import opening, write
    from cnn425.lab.verdict import Finding, conclude

    o = tyro.cli(Options, args=argv, prog="python scripts/conformance.py", description=__doc__)
    wrong = ""
    for name, known in (("features", tuple(FEATURES)), ("layers", LAYERS)):
        if unknown := [value for value in getattr(o, name) if value not in known]:
            wrong = f"--{name} has no {', '.join(unknown)}; choose from {', '.join(known)}"
    wrong = wrong or next(
        (
            f"--{name} must be at least {least}, but got {getattr(o, name)}"
            for name, least in (("samples", 1), ("examples", 1), ("limit", 0))
            if not getattr(o, name) >= least  # NaN is refused too
        ),
        "",
    )
    try:
        torch_device(o.device)
    except LabError as error:
        wrong = wrong or str(error)
    if wrong:
        Console(stderr=True).print(f"error: {wrong}", soft_wrap=True, markup=False, highlight=False)
        return 2
    if not (o.json or o.markdown):
        opening(__doc__)
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
        console = Console(force_terminal=sys.stdout.isatty())
        console.print(rich_table(f"passed / tried, against torch {torch.__version__}", header, rows))
        console.print(rich_table("locally connected layers", PEERS, local_rows))
    failures = [f for s in scores for f in s.failures]
    if failures and not o.json:
        shown = failures if o.failures else failures[:10]
        more = f"\n... and {len(failures) - len(shown)} more: --failures" if len(shown) < len(failures) else ""
        print("\n".join(shown) + more, file=sys.stderr)
    if not (o.json or o.markdown):
        passed, tried = sum(s.passed for s in scores), sum(s.tried for s in scores)
        words = f"{passed:,} of {tried:,} attempts come out as torch's (torch {torch.__version__})"
        conclude(Finding(not failures, words), judged=tried > 0)
        write("next: --failures shows every difference; docs/conformance.md says what differs on purpose\n")
    return 1 if failures else 0


if __name__ == "__main__":
    command(main)
