"""What runs by default for a convolution in float32 rounds less than torch's own; beside it every other algorithm.

    python scripts/accuracy.py              # a table in Markdown; under a minute

The number is the largest error of a map (output, input gradient, weight gradient), against float64, over the root mean square of its
exact result.
"""

import contextlib
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass

if __name__ == "__main__":  # the claim is said before torch is imported, which takes seconds
    from cnn425.lab.errors import need_lab

    need_lab()
    from cnn425.lab.progress import opening_before_imports

    opening_before_imports(sys.argv, lambda: __doc__)

import torch
import tyro
from torch import Tensor

from cnn425 import algorithms
from cnn425.algorithms import convolution
from cnn425.lab.errors import command
from cnn425.lab.progress import compilation_told, opening, write
from cnn425.lab.verdict import Finding, conclude
from cnn425.windows import Geometry

CASES = (  # name, input (N, C, *size), outputs, kernel side, groups; padding keeps the size
    ("64 to 64, 3x3, 28x28", (2, 64, 28, 28), 64, 3, 1),
    ("256 to 256, 3x3, 14x14", (2, 256, 14, 14), 256, 3, 1),
    ("32 to 64, 5x5, 32x32", (2, 32, 32, 32), 64, 5, 1),
    ("8 to 8, 15x15, 64x64", (2, 8, 64, 64), 8, 15, 1),
    ("32 to 32 in 8 groups, 3x3, 28x28", (2, 32, 28, 28), 32, 3, 8),
    ("64 depthwise, 3x3, 28x28", (2, 64, 28, 28), 64, 3, 64),
    ("64 to 64, 3x3x3, 8x14x14", (2, 64, 8, 14, 14), 64, 3, 1),
)


@dataclass(frozen=True)
class Options:
    """What to draw."""

    seed: int = 0
    """seed of images, kernels and output gradients, all standard normal"""


def torchs(x: Tensor, w: Tensor, gy: Tensor, side: int, groups: int) -> Sequence[Tensor]:
    """Output, input gradient and weight gradient by torch."""
    x, w = x.clone().requires_grad_(), w.clone().requires_grad_()
    y = getattr(torch.nn.functional, f"conv{x.ndim - 2}d")(x, w, padding=side // 2, groups=groups)
    return y.detach(), *torch.autograd.grad(y, [x, w], gy)


def ours(x: Tensor, w: Tensor, gy: Tensor, side: int, groups: int) -> Sequence[Tensor]:
    """The same by the algorithm in use."""
    d = x.ndim - 2
    geometry = Geometry((side,) * d, (1,) * d, ((side // 2, side // 2),) * d, (1,) * d)
    return (
        convolution.output(x, w, geometry, groups),
        convolution.input_gradient(gy, w, geometry, groups, x.shape[2:]),
        convolution.weight_gradient(gy, x, geometry, groups),
    )


def main(options: Options) -> dict[str, dict[str, list[float]]]:
    opening(__doc__)
    torch.manual_seed(options.seed)
    table: dict[str, dict[str, list[float]]] = {}
    write("| convolution | by | output | input gradient | weight gradient |\n|---|---|--:|--:|--:|\n")
    for name, shape, outputs, side, groups in CASES:
        x, w, gy = (
            torch.randn(shape),
            torch.randn(outputs, shape[1] // groups, *(side,) * (len(shape) - 2)),
            torch.randn(shape[0], outputs, *shape[2:]),
        )
        exact = torchs(x.double(), w.double(), gy.double(), side, groups)
        table[name] = {}
        for by in ("torch", "default", *algorithms.names("convolution")):
            if by == "winograd" and side > 5:  # there it does not apply
                continue
            with algorithms.use(by) if by not in ("torch", "default") else contextlib.nullcontext():
                sums = (torchs if by == "torch" else ours)(x, w, gy, side, groups)
            errors = [float((a - b).abs().max() / b.pow(2).mean().sqrt()) for a, b in zip(sums, exact, strict=True)]
            write(f"| {'' if table[name] else name} | {by} | " + " | ".join(f"{error:.1e}" for error in errors) + " |\n")
            table[name][by] = errors
    ratios = [a / b for rows in table.values() for a, b in zip(rows["default"], rows["torch"], strict=True)]
    mean = statistics.geometric_mean(ratios)
    conclude(
        Finding(
            mean < 1,
            f"the errors are {mean:.2f} times torch's, the geometric mean over {len(table)} convolutions, at most {max(ratios):.2f}",
        )
    )
    print("next: python scripts/benchmark.py --what conv     (how fast they are)")
    return table


if __name__ == "__main__":
    with compilation_told():
        command(lambda: main(tyro.cli(Options, prog="python scripts/accuracy.py", description=__doc__)))
