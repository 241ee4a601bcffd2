"""Numerical differentiation: move an input by h, see how far the output moves.

    forward difference    (f(x + h) - f(x)) / h           error about  h   |f''| / 2  +  eps |f| / h
    central difference    (f(x + h) - f(x - h)) / 2h      error about  h²  |f'''| / 6 +  eps |f| / h

The first term is the curvature that a straight line misses, the second is rounding: two nearly equal numbers are subtracted, so a smaller
h is not always better. In float64 (eps = 2e-16) h = 1e-6 leaves the central difference about nine correct digits: good for checking a
gradient. It costs two evaluations per number in the input: too slow to train millions of weights.
Works on any function of NumPy arrays or torch tensors that returns one number.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

STEP = 1e-6


def gradient(function: Callable[..., Any], *inputs: Any, h: float = STEP, central: bool = True) -> list[Any]:
    """The gradient of a scalar function by each input: two evaluations per number (one, and one for all, without `central`)."""
    inputs = tuple(copied(x) for x in inputs)
    here = 0.0 if central else float(function(*inputs))
    return [_gradient_by(x, lambda: float(function(*inputs)), h, here, central) for x in inputs]


def _gradient_by(x: Any, evaluate: Callable[[], float], h: float, here: float, central: bool) -> Any:
    """The differences of `evaluate()` while each number of x in turn is moved, in place."""
    found, numbers = copied(x), x.reshape(-1)
    slopes = found.reshape(-1)
    for i in range(len(numbers)):
        before = float(numbers[i])
        numbers[i] = before + h
        ahead = evaluate()
        numbers[i] = before - h
        slopes[i] = (ahead - evaluate()) / (2 * h) if central else (ahead - here) / h
        numbers[i] = before
    return found[()]


def slope(function: Callable[..., Any], inputs: Sequence[Any], directions: Sequence[Any], h: float = STEP) -> tuple[float, float]:
    """The central difference along one direction through all inputs, and the jump between the slopes ahead and behind: large at a kink."""
    behind, here, ahead = (float(function(*(x + step * d for x, d in zip(inputs, directions, strict=True)))) for step in (-h, 0.0, h))
    return (ahead - behind) / (2 * h), abs(ahead - 2 * here + behind) / h


def copied(x: Any) -> Any:
    """A contiguous copy in float64. Tensors of other dtypes and float32 arrays are refused: h = 1e-6 leaves them no correct digit."""
    if isinstance(x, torch.Tensor):
        if x.dtype != torch.float64:
            raise ValueError(f"numerical differentiation wants float64 inputs, got {x.dtype}; convert with .double()")
        return x.detach().contiguous().clone()
    if isinstance(x, np.ndarray) and x.dtype == np.float32:
        raise ValueError("numerical differentiation wants float64 inputs, got float32; convert with .astype(float)")
    return np.array(x, dtype=float)


@dataclass(frozen=True)
class Check:
    """What a gradient check found: the worst relative error and where, over `compared` slopes; `kinks` were set aside."""

    error: float
    where: str
    compared: int
    kinks: int
    tolerance: float

    def __bool__(self) -> bool:
        return self.compared > 0 and self.error <= self.tolerance

    def __str__(self) -> str:
        verdict = "agree" if self else "DISAGREE"
        compared = f"{self.compared} slopes compared, {self.kinks} kinks set aside"
        return f"gradients {verdict}: relative error {self.error:.1e} at {self.where}, {compared}"


def check(
    function: Callable[..., Any],
    gradients: Sequence[Any],
    *inputs: Any,
    h: float = STEP,
    tolerance: float = 1e-6,
    most: int = 1000,
    directions: int = 20,
    seed: int = 0,
) -> Check:
    """Compare claimed gradients with central differences. Five rules make such a check reliable.

    Double precision only. The error is relative to the larger of the two slopes. A slope that jumps between left and right (the kink of
    a ReLU or a max) is set aside and counted, not compared. h = 1e-6 balances curvature and rounding. Inputs with more than `most`
    numbers are compared along random directions, dozens of evaluations instead of millions: an error shows in almost every direction.
    """
    inputs = tuple(copied(x) for x in inputs)
    gradients = [_like(g, x, k) for k, (g, x) in enumerate(zip(gradients, inputs, strict=True), start=1)]
    scale = max(1.0, *(float(abs(g).max()) for g in gradients))
    worst, where, compared, kinks = 0.0, "none", 0, 0
    for label, probe in _probes(inputs, most, directions, seed):
        measured, jump = slope(function, inputs, probe, h)
        claimed = sum(float((g * d).sum()) for g, d in zip(gradients, probe, strict=True))
        size = max(abs(claimed), abs(measured), 1e-3 * scale)
        if jump > 1e-3 * size and jump > 1e4 * np.finfo(float).eps / h:
            kinks += 1
            continue
        compared += 1
        error = abs(claimed - measured) / size
        if not error <= worst:  # also true of nan
            worst, where = error, f"{label} (claimed {claimed:.6g}, measured {measured:.6g})"
    return Check(worst, where, compared, kinks, tolerance)


def _like(claimed: Any, x: Any, k: int) -> Any:
    """The claimed gradient as float64, of the shape of its input."""
    array = copied(claimed)
    if tuple(array.shape) != tuple(x.shape):
        raise ValueError(f"gradient {k} has shape {tuple(array.shape)}, its input has shape {tuple(x.shape)}")
    return array


def _probes(inputs: Sequence[Any], most: int, directions: int, seed: int) -> Iterator[tuple[str, list[Any]]]:
    """Where it is and the directions to look along: every single number of a small input, random directions for a large one."""
    generator = np.random.default_rng(seed)
    for k, x in enumerate(inputs):
        shape = tuple(x.shape)
        count = int(np.prod(shape))
        for i in range(count if count <= most else directions):
            if count <= most:
                where, probe = f"input {k + 1}{[int(p) for p in np.unravel_index(i, shape)] or ''}", np.eye(1, count, i).reshape(shape)
            else:
                where, probe = f"input {k + 1}, random direction {i}", generator.standard_normal(shape)
            along = [0 * other for other in inputs]
            along[k] = torch.from_numpy(probe).to(x) if isinstance(x, torch.Tensor) else probe
            yield where, along
