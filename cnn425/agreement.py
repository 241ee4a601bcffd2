"""Agreement: whether two implementations compute the same thing, outputs and every gradient, and by how much they differ.

    compare(ours, theirs, inputs)      values, gradients under a random upstream gradient, dtypes, shapes: an Agreement
    same_refusal(ours, theirs)         whether both raise the same type of error, or neither raises
    derivatives(function, inputs)      gradcheck and gradgradcheck in float64, forward mode and batched gradients included
    transforms(ours, theirs, inputs)   the same results under torch.func's transforms, and if asked under torch.compile and torch.export

Two numbers a (ours) and b (theirs) are equal when `|a - b| <= absolute * scale + relative * |b|`, where scale is the largest magnitude of
their tensor, but at least 1: an entry is a sum, and its rounding error grows with the summands, not with their sum. NaN equals NaN, an
infinity equals itself, and integers must be equal exactly. This is the project's one definition of "equal"; it imports no layer.
"""

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

Computation = Callable[..., Any]


class Tolerance(NamedTuple):
    """How far two numbers of a dtype may differ, and why."""

    relative: float
    absolute: float
    reason: str


TOLERANCES: dict[torch.dtype, Tolerance] = {
    torch.float64: Tolerance(1e-7, 1e-10, "torch.testing's relative bound; absolute, a million roundings, still far below any bug"),
    torch.float32: Tolerance(1.3e-6, 1e-5, "torch.testing's; its tests of conv2d need 5e-5: sums in another order, before scaling"),
    torch.bfloat16: Tolerance(1.6e-2, 8e-3, "torch.testing's relative bound; absolute, two roundings of the largest summand to 8 bits"),
    torch.float16: Tolerance(1e-3, 2e-3, "torch.testing's relative bound; absolute, as its tests of linear and conv1d: four roundings"),
}
REAL = {torch.complex128: torch.float64, torch.complex64: torch.float32, torch.complex32: torch.float16}
TOLERANCES |= {dtype: TOLERANCES[real] for dtype, real in REAL.items()}
Tolerances = Mapping[torch.dtype, Tolerance]


@dataclass(frozen=True)
class Quantity:
    """One compared tensor: its largest error, that error as a share of what is allowed, and what is wrong, if anything."""

    name: str
    error: float
    share: float
    wrong: str = ""

    def __bool__(self) -> bool:
        return not self.wrong


@dataclass(frozen=True)
class Agreement:
    """The verdict on all compared tensors: true if all agree; `str()` is a table of them."""

    quantities: tuple[Quantity, ...]

    def __bool__(self) -> bool:
        return bool(self.quantities) and all(self.quantities)

    @property
    def errors(self) -> dict[str, float]:
        """The largest error of each tensor, by name."""
        return {q.name: q.error for q in self.quantities}

    @property
    def wrong(self) -> str:
        """What is wrong, in one line; empty if nothing is."""
        return "; ".join(f"{q.name}: {q.wrong}" for q in self.quantities if q.wrong)

    def __str__(self) -> str:
        width = max((len(q.name) for q in self.quantities), default=0)
        lines = [
            f"{q.name:<{width}}  largest error {q.error:8.1e}  {q.share:7.1%} of the tolerance  {q.wrong or 'agrees'}"
            for q in self.quantities
        ]
        return "\n".join(lines) or "nothing was compared"


def compare(
    ours: Computation, theirs: Computation, inputs: Sequence[Any], seed: int = 0, tolerances: Tolerances = TOLERANCES, strides: bool = False
) -> Agreement:
    """Whether `ours(*inputs)` and `theirs(*inputs)` agree, in outputs and in the gradient of every floating-point input.

    inputs   tensors and anything else; tensors are copied with their strides, and floating-point ones are given a gradient
    seed     of the upstream gradient, which is random: a sum would hide every error that permutes or mirrors gradients
    strides  also ask for the same memory layout of the outputs

    `ours` and `theirs` may be Modules; then the gradients of their parameters, matched by name, are compared too.
    """
    mine, expected = (evaluate(function, inputs, seed) for function in (ours, theirs))
    if mine.keys() != expected.keys():
        return Agreement((Quantity("names", math.inf, math.inf, f"ours has {sorted(mine)}, theirs {sorted(expected)}"),))
    each = (measure(name, mine[name], expected[name], tolerances, strides and name.startswith("output")) for name in expected)
    return Agreement(tuple(each))


def evaluate(function: Computation, inputs: Sequence[Any], seed: int) -> dict[str, Tensor | None]:
    """The outputs of `function` and the gradients of its inputs and parameters, by name."""
    leaves = [copied(value) if isinstance(value, Tensor) else value for value in inputs]
    sources = {f"gradient of input {i}": leaf for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.requires_grad}
    if isinstance(function, torch.nn.Module):
        sources |= {f"gradient of {name}": p for name, p in function.named_parameters() if p.requires_grad}
    outputs = function(*leaves)
    outputs = (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)
    found: dict[str, Tensor | None] = {"output" if len(outputs) == 1 else f"output {i}": y.detach() for i, y in enumerate(outputs)}
    differentiable = [y for y in outputs if y.requires_grad]
    if differentiable and sources:
        upstream = [random_like(y, seed + i) for i, y in enumerate(differentiable)]
        found |= dict(zip(sources, torch.autograd.grad(differentiable, list(sources.values()), upstream, allow_unused=True), strict=True))
    return found


def copied(x: Tensor, exact: bool = False) -> Tensor:
    """A copy of `x` with its strides, overlapping ones included, that asks for a gradient if numbers of its dtype can have one.

    With `exact` it is float64 or complex128; integers stay what they are.
    """
    if exact and (x.is_floating_point() or x.is_complex()):
        x = x.detach().to(torch.promote_types(x.dtype, torch.float64))
    if x.layout != torch.strided or x.is_meta or x.numel() == 0:
        copy = x.detach().clone()
    else:
        extent = 1 + sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True))
        storage = x.detach().as_strided((extent,), (1,)).clone()
        copy = storage.as_strided(x.shape, x.stride())
    return copy.requires_grad_(x.is_floating_point() or x.is_complex())


def random_like(y: Tensor, seed: int) -> Tensor:
    """Normal numbers in the shape, dtype and device of `y`, the same for the same seed."""
    dtype = torch.complex128 if y.is_complex() else torch.float64
    return torch.randn(y.shape, generator=torch.Generator().manual_seed(seed), dtype=dtype).to(y.device, y.dtype)


def measure(name: str, a: Tensor | None, b: Tensor | None, tolerances: Tolerances, strides: bool = False) -> Quantity:
    """How far `a` is from `b`."""
    if a is None or b is None:
        return Quantity(name, 0.0, 0.0) if a is b else Quantity(name, math.inf, math.inf, f"{'ours' if a is None else 'theirs'} has none")
    for what in ("dtype", "shape", "device"):
        if getattr(a, what) != getattr(b, what):
            return Quantity(name, math.inf, math.inf, f"{what} {getattr(a, what)} instead of {getattr(b, what)}")
    if strides and a.numel() and any(n != 1 and step != wanted for n, step, wanted in zip(a.shape, a.stride(), b.stride(), strict=True)):
        return Quantity(name, math.inf, math.inf, f"strides {a.stride()} instead of {b.stride()}")
    if a.is_meta or a.numel() == 0:
        return Quantity(name, 0.0, 0.0)
    tolerance = tolerances.get(a.dtype, Tolerance(0.0, 0.0, "integers are exact"))
    exact = torch.complex128 if a.is_complex() else torch.float64 if a.is_floating_point() else torch.int64
    a, b = a.detach().to(exact), b.detach().to(exact)
    error, sizes = (a - b).abs().double(), b.abs().double().nan_to_num_(0, 0)
    if not error.sum().isfinite():
        same = (a == b) | (a.isnan() & b.isnan())
        error = torch.where(same, 0, error.nan_to_num_(math.inf, math.inf))
    allowed = sizes.mul(tolerance.relative).add_(tolerance.absolute * max(1.0, sizes.max().item()))
    share = allowed.reciprocal_().mul_(error).nan_to_num_(0, math.inf)  # 0 / 0: integers that are equal
    worst = tuple(int(i) for i in torch.unravel_index(share.argmax(), share.shape))
    wrong = f"{b[worst].item():.6g} was expected at {list(worst)}, but ours is {a[worst].item():.6g}" if share.max() > 1 else ""
    return Quantity(name, error.max().item(), share.max().item(), wrong)


def same_refusal(ours: Callable[[], Any], theirs: Callable[[], Any]) -> str:
    """Empty if both calls raise the same type of error or neither raises; otherwise what happened instead, in one line."""
    mine, expected = (refusal(call) for call in (ours, theirs))
    return "" if type(mine) is type(expected) else f"theirs: {describe(expected)}; ours: {describe(mine)}"


def refusal(call: Callable[[], Any]) -> Exception | None:
    """What the call raises, or None."""
    with warnings.catch_warnings(action="ignore"):
        try:
            call()
        except Exception as error:
            return error
    return None


def describe(error: Exception | None) -> str:
    """An error in one line."""
    return "no error" if error is None else f"{type(error).__name__}({str(error).splitlines()[0][:120] if str(error) else ''})"


def derivatives(function: Computation, inputs: Sequence[Any], fast: bool = False) -> dict[str, str]:
    """`gradcheck` and `gradgradcheck` of few inputs, cast to float64: empty, or what is wrong; `fast` compares random sums of numbers."""
    leaves = [copied(value, exact=True) if isinstance(value, Tensor) else value for value in inputs]
    both: dict[str, Any] = {"check_batched_grad": True, "fast_mode": fast}
    first: dict[str, Any] = {**both, "check_forward_ad": True, "check_batched_forward_grad": not fast}
    failures = {
        "gradcheck": refusal(lambda: torch.autograd.gradcheck(function, leaves, **first)),
        "gradgradcheck": refusal(lambda: torch.autograd.gradgradcheck(function, leaves, check_fwd_over_rev=True, **both)),
    }
    return {name: "" if error is None else describe(error) for name, error in failures.items()}


def transforms(ours: Computation, theirs: Computation, inputs: Sequence[Any], compiled: bool = False) -> dict[str, str]:
    """Whether `ours` gives what `theirs` gives under each transform of torch: empty, or what is wrong. `compiled` takes seconds more."""
    return dict(under({**FUNC, **(COMPILERS if compiled else {})}, ours, theirs, inputs))


def under(transforms: "Transforms", ours: Computation, theirs: Computation, inputs: Sequence[Any]) -> Iterator[tuple[str, str]]:
    """The name of each transform and what is wrong with `ours` under it, as soon as it is tried."""
    numbers = [value.detach() for value in inputs if isinstance(value, Tensor) and value.is_floating_point()]

    def closed(function: Computation) -> Callable[..., Any]:
        def over(*given: Tensor) -> Any:
            rest = iter(given)
            return function(*(next(rest) if isinstance(v, Tensor) and v.is_floating_point() else v for v in inputs))

        return over

    mine, expected = closed(ours), closed(theirs)
    for name, transform in transforms.items():
        with warnings.catch_warnings(action="ignore"):
            try:
                pairs = zip(tensors(transform(mine, numbers, True)), tensors(transform(expected, numbers, False)), strict=True)
                wrong = Agreement(tuple(measure(f"{name} {i}", a, b, TOLERANCES) for i, (a, b) in enumerate(pairs))).wrong
            except Exception as error:
                wrong = describe(error)
        yield name, wrong


def weighted(function: Computation) -> Callable[..., Tensor]:
    """`function` as a scalar: its floating-point outputs, squared (so that there is a second derivative) and summed with uneven weights."""

    def scalar(*x: Tensor) -> Tensor:
        parts = [y for y in tensors(function(*x)) if y.is_floating_point()]
        # vmap forbids drawing any
        weights = [torch.arange(1 + i, 1 + i + y.numel(), device=y.device).cos().to(y.dtype).view(y.shape) for i, y in enumerate(parts)]
        return torch.stack([(y * (1 + y) * weight).sum() for y, weight in zip(parts, weights, strict=True)]).sum()

    return scalar


def _all(x: Sequence[Tensor]) -> tuple[int, ...]:
    return tuple(range(len(x)))


def _vjp(f: Computation, x: Sequence[Tensor], _: bool) -> Any:
    scalar, pull = torch.func.vjp(weighted(f), *x)[:2]
    return scalar, pull(torch.full_like(scalar, 0.5))


def mapped(f: Computation, x: Sequence[Tensor], fast: bool, only: int | None, dim: int = 0) -> Any:
    """`f` of three examples: of input `only`, or of all inputs if it is None; with vmap, or (for the oracle) with a loop."""
    batches = [torch.stack([t, t.flip(0) if t.ndim else -t, 2 * t], dim) if only in (None, i) else t for i, t in enumerate(x)]
    dims = tuple(dim if only in (None, i) else None for i in _all(x))
    if fast:
        return torch.func.vmap(f, dims)(*batches)
    runs = [list(tensors(f(*(b if d is None else b.select(d, k) for b, d in zip(batches, dims, strict=True))))) for k in range(3)]
    return [torch.stack(outputs) for outputs in zip(*runs, strict=True)]


def _compile(f: Computation, x: Sequence[Tensor], ours: bool, **options: Any) -> Any:
    torch.compiler.reset()
    leaves = [t.clone().requires_grad_() for t in x]
    function = torch.compile(f, fullgraph=True, **options) if ours else f
    outputs = list(tensors(function(*leaves)))
    return [*(y.detach() for y in outputs), torch.autograd.grad(weighted(lambda *_: outputs)(), leaves)]


def _export(f: Computation, x: Sequence[Tensor], ours: bool) -> Any:
    class Program(torch.nn.Module):
        forward = staticmethod(f)

    return torch.export.export(Program(), tuple(x), strict=True).module()(*x) if ours else f(*x)


Transforms = Mapping[str, Callable[[Computation, Sequence[Tensor], bool], Any]]
FUNC: Transforms = {
    "jvp": lambda f, x, _: torch.func.jvp(f, tuple(x), tuple(random_like(t, 7 + i) for i, t in enumerate(x))),
    "vjp": _vjp,
    "jacrev": lambda f, x, _: torch.func.jacrev(weighted(f), _all(x))(*x),
    "jacfwd": lambda f, x, _: torch.func.jacfwd(weighted(f), _all(x))(*x),
    "hessian": lambda f, x, _: torch.func.hessian(weighted(f), _all(x))(*x),
    "vmap": lambda f, x, fast: [mapped(f, x, fast, only, dim) for only in (None, *_all(x)) for dim in (0, -1)],
    "per-sample gradient": lambda f, x, fast: [mapped(torch.func.grad(weighted(f), _all(x)), x, fast, only) for only in (None, *_all(x))],
}
COMPILERS: Transforms = {
    "compile": lambda f, x, ours: _compile(f, x, ours, dynamic=False),
    "compile, dynamic shapes": lambda f, x, ours: _compile(f, x, ours, dynamic=True),
    "export, strict": _export,
}


def tensors(value: Any) -> Iterator[Tensor]:
    """All tensors of a nested structure, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors(item)
