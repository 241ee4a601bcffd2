"""The layers take no longer than torch's built-ins: one table, one JSON file.

    python scripts/benchmark.py                                  # convolutions, pools, local layers; about ten minutes
    python scripts/benchmark.py --what conv --only 3x3           # some of them
    python scripts/benchmark.py --what survey                    # 74 convolutions that networks are made of
    python scripts/benchmark.py --what small step                # what a call costs before it computes; a training step of MNIST
    python scripts/benchmark.py --what transposed between        # also unfold and fold; layers between local and convolution
    python scripts/benchmark.py --what local                     # also against JAX and Keras 2: `pip install jax tensorflow-cpu tf_keras`

Rivals are timed in turn, call by call, in one process, so a busy machine slows all of them alike. The table shows medians in milliseconds
and the ratio of ours to theirs (below 1: ours is faster). `roofline` is the time that the measured rates of products and copies allow, over
ours.
"""

import ctypes
import json
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

if __name__ == "__main__":  # the claim is said before torch is imported, which takes seconds
    from cnn425.lab.errors import need_lab

    need_lab()
    from cnn425.lab.progress import opening_before_imports

    opening_before_imports(sys.argv, lambda: __doc__)

import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch import Tensor

import cnn425.nn
import cnn425.nn.functional as ours
from cnn425.lab.errors import LabError, command, refuse_foreign
from cnn425.lab.folder import write_whole
from cnn425.lab.options import MOST_THREADS
from cnn425.lab.progress import compilation_told, opening, watched
from cnn425.lab.verdict import Finding, conclude

theirs = torch.nn.functional
LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


@dataclass(frozen=True)
class Options:
    """What to time, how long, and where to put the results."""

    what: tuple[Literal["conv", "survey", "pool", "local", "between", "transposed", "small", "rows", "step"], ...] = (
        "conv",
        "pool",
        "local",
    )
    """which of them"""
    only: str = ""
    """cases whose name contains this text"""
    dtype: Literal["float32", "float64", "bfloat16"] = "float32"
    """of all numbers"""
    seconds: float = 0.5
    """for each rival of each case, forward and backward"""
    threads: int = torch.get_num_threads()
    """threads of torch"""
    json: Path | None = None
    """file for all numbers"""


class Conv(NamedTuple):
    """A convolution: input (N, C, *size), O outputs, kernel, stride, padding, dilation, groups."""

    name: str
    shape: tuple[int, ...]
    outputs: int
    kernel: tuple[int, ...]
    stride: int = 1
    padding: int | tuple[int, ...] = 0
    dilation: int = 1
    groups: int = 1


CONVOLUTIONS = (
    Conv("1x1 64 to 256", (16, 64, 56, 56), 256, (1, 1)),
    Conv("1x1 512 to 128", (8, 512, 14, 14), 128, (1, 1)),
    Conv("1x1 stride 2", (16, 128, 28, 28), 256, (1, 1), 2),
    Conv("3x3 MNIST first", (64, 1, 28, 28), 32, (3, 3)),
    Conv("3x3 MNIST second", (64, 32, 26, 26), 64, (3, 3)),
    Conv("3x3 ResNet 64", (16, 64, 56, 56), 64, (3, 3), 1, 1),
    Conv("3x3 ResNet 128", (16, 128, 28, 28), 128, (3, 3), 1, 1),
    Conv("3x3 ResNet 256", (8, 256, 14, 14), 256, (3, 3), 1, 1),
    Conv("3x3 stride 2", (16, 64, 56, 56), 128, (3, 3), 2, 1),
    Conv("3x3 CIFAR first", (32, 3, 32, 32), 64, (3, 3), 1, 1),
    Conv("7x7 stem stride 2", (8, 3, 224, 224), 64, (7, 7), 2, 3),
    Conv("4x4 patches", (8, 3, 224, 224), 96, (4, 4), 4),
    Conv("5x5", (16, 32, 32, 32), 64, (5, 5), 1, 2),
    Conv("7x7", (8, 16, 32, 32), 16, (7, 7), 1, 3),
    Conv("3x3 dilation 2", (8, 64, 28, 28), 64, (3, 3), 1, 2, 2),
    Conv("3x3 groups 4", (16, 64, 28, 28), 64, (3, 3), 1, 1, 1, 4),
    Conv("3x3 groups 32", (8, 128, 28, 28), 128, (3, 3), 1, 1, 1, 32),
    Conv("3x3 depthwise", (8, 128, 56, 56), 128, (3, 3), 1, 1, 1, 128),
    Conv("1-D k3", (16, 64, 256), 128, (3,), 1, 1),
    Conv("1-D k9 audio", (32, 1, 1024), 16, (9,), 1, 4),
    Conv("3-D k3", (2, 16, 16, 32, 32), 32, (3, 3, 3), 1, 1),
    Conv("10x10 lecture", (1, 1, 200, 200), 20, (10, 10)),
    Conv("15x15", (4, 8, 64, 64), 8, (15, 15), 1, 7),
    Conv("3x3 batch 1", (1, 64, 56, 56), 64, (3, 3), 1, 1),
    Conv("3x3 tiny", (1, 1, 8, 8), 1, (3, 3)),
)
# What common networks are made of, and odd sizes: input, outputs, kernel, stride, padding, dilation, groups.
SURVEY = tuple(
    Conv(
        " ".join(["x".join(map(str, shape)), "to", str(outputs), "x".join(map(str, kernel)), *map("{}{}".format, "spdg", rest)]),
        shape,
        outputs,
        kernel,
        *rest,
    )
    for shape, outputs, kernel, *rest in (
        ((16, 64, 56, 56), 64, (3, 3), 1, 1),
        ((8, 128, 28, 28), 128, (3, 3), 1, 1),
        ((4, 256, 14, 14), 256, (3, 3), 1, 1),
        ((8, 512, 7, 7), 512, (3, 3), 1, 1),
        ((1, 64, 56, 56), 64, (3, 3), 1, 1),
        ((1, 128, 28, 28), 128, (3, 3), 1, 1),
        ((1, 256, 14, 14), 256, (3, 3), 1, 1),
        ((32, 16, 32, 32), 16, (3, 3), 1, 1),
        ((32, 16, 32, 32), 32, (3, 3), 1, 1),
        ((64, 32, 26, 26), 64, (3, 3)),
        ((32, 32, 16, 16), 32, (3, 3), 1, 1),
        ((32, 64, 8, 8), 64, (3, 3), 1, 1),
        ((64, 64, 14, 14), 64, (3, 3), 1, 1),
        ((8, 32, 112, 112), 32, (3, 3), 1, 1),
        ((4, 64, 112, 112), 64, (3, 3), 1, 1),
        ((32, 3, 32, 32), 32, (3, 3), 1, 1),
        ((16, 3, 64, 64), 16, (3, 3), 1, 1),
        ((64, 1, 28, 28), 6, (5, 5), 1, 2),
        ((64, 6, 14, 14), 16, (5, 5)),
        ((2, 3, 224, 224), 64, (3, 3), 1, 1),
        ((8, 3, 224, 224), 32, (3, 3), 2, 1),
        ((4, 3, 224, 224), 64, (7, 7), 2, 3),
        ((4, 3, 224, 224), 96, (11, 11), 4, 2),
        ((16, 64, 56, 56), 128, (3, 3), 2, 1),
        ((16, 128, 28, 28), 256, (3, 3), 2, 1),
        ((32, 32, 32, 32), 64, (3, 3), 2, 1),
        ((8, 256, 14, 14), 512, (3, 3), 2, 1),
        ((32, 16, 32, 32), 32, (3, 3), 2, 1),
        ((16, 64, 56, 56), 256, (1, 1)),
        ((16, 256, 28, 28), 128, (1, 1)),
        ((8, 1024, 14, 14), 256, (1, 1)),
        ((16, 128, 28, 28), 256, (1, 1), 2),
        ((8, 512, 7, 7), 2048, (1, 1)),
        ((32, 16, 32, 32), 96, (1, 1)),
        ((4, 256, 56, 56), 64, (1, 1)),
        ((16, 32, 32, 32), 64, (5, 5), 1, 2),
        ((16, 64, 14, 14), 64, (5, 5), 1, 2),
        ((8, 16, 28, 28), 32, (5, 5), 1, 2),
        ((8, 96, 27, 27), 256, (5, 5), 1, 2, 1, 2),
        ((16, 48, 28, 28), 64, (5, 5), 1, 2),
        ((8, 64, 56, 56), 64, (5, 5), 2, 2),
        ((8, 16, 32, 32), 16, (7, 7), 1, 3),
        ((8, 64, 28, 28), 64, (7, 7), 1, 3),
        ((8, 32, 56, 56), 64, (7, 7), 2, 3),
        ((8, 128, 17, 17), 128, (1, 7), 1, (0, 3)),
        ((8, 128, 17, 17), 128, (7, 1), 1, (3, 0)),
        ((8, 64, 28, 28), 64, (3, 3), 1, 2, 2),
        ((4, 128, 33, 33), 128, (3, 3), 1, 4, 4),
        ((16, 64, 28, 28), 64, (3, 3), 1, 1, 1, 4),
        ((8, 128, 28, 28), 128, (3, 3), 1, 1, 1, 32),
        ((8, 128, 56, 56), 128, (3, 3), 1, 1, 1, 2),
        ((8, 256, 14, 14), 256, (3, 3), 1, 1, 1, 8),
        ((8, 128, 56, 56), 128, (3, 3), 1, 1, 1, 128),
        ((16, 480, 14, 14), 480, (3, 3), 1, 1, 1, 480),
        ((8, 96, 56, 56), 96, (3, 3), 2, 1, 1, 96),
        ((8, 32, 112, 112), 32, (3, 3), 1, 1, 1, 32),
        ((8, 240, 28, 28), 240, (5, 5), 1, 2, 1, 240),
        ((8, 672, 14, 14), 672, (5, 5), 1, 2, 1, 672),
        ((4, 96, 56, 56), 96, (7, 7), 1, 3, 1, 96),
        ((16, 512, 7, 7), 512, (3, 3), 1, 1, 1, 512),
        ((32, 32, 32, 32), 32, (3, 3), 1, 1, 1, 32),
        ((16, 64, 256), 128, (3,), 1, 1),
        ((32, 128, 128), 128, (3,), 1, 1),
        ((16, 32, 1000), 64, (5,), 1, 2),
        ((8, 1, 16000), 64, (80,), 4, 38),
        ((16, 64, 512), 64, (7,), 1, 3),
        ((8, 256, 200), 256, (3,), 2, 1),
        ((8, 64, 1000), 64, (3,), 1, 4, 4),
        ((2, 16, 16, 32, 32), 32, (3, 3, 3), 1, 1),
        ((2, 3, 16, 56, 56), 32, (3, 3, 3), 1, 1),
        ((4, 32, 8, 16, 16), 32, (3, 3, 3), 1, 1),
        ((1, 64, 8, 28, 28), 64, (3, 3, 3), 1, 1),
        ((2, 32, 16, 28, 28), 64, (3, 3, 3), 2, 1),
        ((2, 64, 8, 14, 14), 128, (1, 3, 3), 1, (0, 1, 1)),
    )
)
POOLS = (
    ("max 2x2", "max_pool2d", (64, 64, 24, 24), {"kernel_size": 2}),
    ("max 2x2 VGG", "max_pool2d", (4, 64, 112, 112), {"kernel_size": 2}),
    ("max 2x2 odd, ceil", "max_pool2d", (8, 64, 27, 27), {"kernel_size": 2, "ceil_mode": True}),
    ("max 2x2 / 3", "max_pool2d", (8, 32, 60, 60), {"kernel_size": 2, "stride": 3}),
    ("max 2x2 tiny", "max_pool2d", (1, 1, 8, 8), {"kernel_size": 2}),
    ("max 3x3 / 2", "max_pool2d", (16, 64, 112, 112), {"kernel_size": 3, "stride": 2, "padding": 1}),
    ("max 3x3 / 1", "max_pool2d", (8, 64, 28, 28), {"kernel_size": 3, "stride": 1, "padding": 1}),
    ("max 3x3 dilation 2", "max_pool2d", (8, 32, 32, 32), {"kernel_size": 3, "stride": 2, "padding": 1, "dilation": 2}),
    ("max 5x5 / 1", "max_pool2d", (4, 64, 20, 20), {"kernel_size": 5, "stride": 1, "padding": 2}),
    ("max 7x7", "max_pool2d", (8, 64, 28, 28), {"kernel_size": 7}),
    ("max 8x8 global", "max_pool2d", (32, 256, 8, 8), {"kernel_size": 8}),
    ("max 1-D 3 / 2", "max_pool1d", (16, 32, 1000), {"kernel_size": 3, "stride": 2, "padding": 1}),
    ("max 1-D 4", "max_pool1d", (32, 64, 1000), {"kernel_size": 4}),
    ("max 3-D 2", "max_pool3d", (4, 32, 16, 32, 32), {"kernel_size": 2}),
    ("max 3-D 3 / 2", "max_pool3d", (2, 32, 16, 28, 28), {"kernel_size": 3, "stride": 2, "padding": 1}),
    ("avg 2x2", "avg_pool2d", (64, 64, 24, 24), {"kernel_size": 2}),
    ("avg 2x2 tiny", "avg_pool2d", (1, 1, 8, 8), {"kernel_size": 2}),
    ("avg 3x3 / 2", "avg_pool2d", (16, 64, 56, 56), {"kernel_size": 3, "stride": 2, "padding": 1}),
    ("avg 3x3 / 1", "avg_pool2d", (8, 64, 35, 35), {"kernel_size": 3, "stride": 1, "padding": 1, "count_include_pad": False}),
    ("avg 5x5 / 3", "avg_pool2d", (8, 32, 48, 48), {"kernel_size": 5, "stride": 3}),
    ("avg 1-D 3 / 1", "avg_pool1d", (16, 64, 500), {"kernel_size": 3, "stride": 1, "padding": 1}),
    ("avg 3-D 2", "avg_pool3d", (4, 32, 16, 32, 32), {"kernel_size": 2}),
    ("adaptive avg 1", "adaptive_avg_pool2d", (16, 512, 7, 7), {"output_size": 1}),
    ("adaptive avg 6", "adaptive_avg_pool2d", (16, 128, 13, 13), {"output_size": 6}),
    ("adaptive avg 1-D 8", "adaptive_avg_pool1d", (16, 64, 500), {"output_size": 8}),
    ("adaptive avg 3-D 2", "adaptive_avg_pool3d", (2, 32, 8, 15, 15), {"output_size": (2, 4, 4)}),
    ("adaptive max 1", "adaptive_max_pool2d", (16, 512, 7, 7), {"output_size": 1}),
    ("adaptive max 7", "adaptive_max_pool2d", (8, 256, 14, 14), {"output_size": 7}),
    ("adaptive max 5", "adaptive_max_pool2d", (8, 64, 32, 32), {"output_size": 5}),
    ("adaptive max 3-D 3", "adaptive_max_pool3d", (2, 32, 8, 15, 15), {"output_size": 3}),
    ("lp 2x2", "lp_pool2d", (16, 64, 28, 28), {"norm_type": 2.0, "kernel_size": 2}),
    ("lp 3x3 / 2", "lp_pool2d", (8, 64, 33, 33), {"norm_type": 2.0, "kernel_size": 3, "stride": 2}),
    ("lp 1-D 3", "lp_pool1d", (16, 64, 500), {"norm_type": 2.0, "kernel_size": 3}),
)
SMALL: tuple[tuple[str, str, tuple[tuple[int, ...], ...], dict[str, Any]], ...] = (
    ("conv 1x1x8x8", "conv2d", ((1, 1, 8, 8), (1, 1, 3, 3)), {}),
    ("conv, bias, padding", "conv2d", ((1, 1, 8, 8), (1, 1, 3, 3), (1,)), {"padding": 1}),
    ("conv, stride 2", "conv2d", ((1, 1, 9, 9), (1, 1, 3, 3), (1,)), {"stride": 2}),
    ("conv, 2 groups", "conv2d", ((1, 2, 8, 8), (2, 1, 3, 3), (2,)), {"groups": 2}),
    ("conv 1-D", "conv1d", ((1, 1, 8), (1, 1, 3), (1,)), {"padding": 1}),
    ("conv 3-D", "conv3d", ((1, 1, 4, 4, 4), (1, 1, 3, 3, 3), (1,)), {"padding": 1}),
    ("linear 8 to 4", "linear", ((1, 8), (4, 8), (4,)), {}),
    ("relu 4x4", "relu", ((4, 4),), {}),
    ("sigmoid 4x4", "sigmoid", ((4, 4),), {}),
    ("softmax 4x4", "softmax", ((4, 4),), {"dim": 1}),
    ("cross-entropy 4x4", "cross_entropy", ((4, 4),), {"target": torch.tensor([0, 1, 3, 2])}),
)
ROWS: tuple[tuple[str, str, tuple[tuple[int, ...], ...], dict[str, Any]], ...] = (
    ("linear 9216 to 128", "linear", ((64, 9216), (128, 9216), (128,)), {}),
    ("linear 1024 to 1024", "linear", ((256, 1024), (1024, 1024), (1024,)), {}),
    ("relu 64x64x24x24", "relu", ((64, 64, 24, 24),), {}),
    ("sigmoid 64x64x24x24", "sigmoid", ((64, 64, 24, 24),), {}),
    ("softmax 128x1000", "softmax", ((128, 1000),), {"dim": 1}),
    ("softmax 8x21x64x64", "softmax", ((8, 21, 64, 64),), {"dim": 1}),
    ("cross-entropy 64x10", "cross_entropy", ((64, 10),), {"target": torch.arange(64) % 10}),
    ("cross-entropy 128x1000", "cross_entropy", ((128, 1000),), {"target": torch.arange(128)}),
    ("cross-entropy 8x21x64x64", "cross_entropy", ((8, 21, 64, 64),), {"target": torch.arange(8 * 64 * 64).view(8, 64, 64) % 21}),
)
TRANSPOSED: tuple[tuple[str, str, tuple[tuple[int, ...], ...], dict[str, Any]], ...] = (
    ("transposed 4x4 / 2", "conv_transpose2d", ((8, 64, 14, 14), (64, 32, 4, 4), (32,)), {"stride": 2, "padding": 1}),
    ("transposed 3x3", "conv_transpose2d", ((8, 64, 28, 28), (64, 64, 3, 3), (64,)), {"padding": 1}),
    ("transposed 2x2 / 2", "conv_transpose2d", ((4, 128, 28, 28), (128, 64, 2, 2), (64,)), {"stride": 2}),
    ("transposed 1-D 4 / 2", "conv_transpose1d", ((8, 64, 500), (64, 32, 4), (32,)), {"stride": 2, "padding": 1}),
    ("transposed 3-D 2 / 2", "conv_transpose3d", ((2, 32, 8, 14, 14), (32, 16, 2, 2, 2), (16,)), {"stride": 2}),
    ("unfold 3x3", "unfold", ((16, 32, 28, 28),), {"kernel_size": 3, "padding": 1}),
    ("fold 3x3", "fold", ((16, 288, 784),), {"output_size": 28, "kernel_size": 3, "padding": 1}),
)
BETWEEN: tuple[tuple[str, tuple[int, ...], int, dict[str, Any]], ...] = (
    *((f"share {n}", (32, 16, 28, 28), 32, {"share": n}) for n in (2, 4, 7)),
    ("tile 2", (32, 16, 28, 28), 32, {"tile": 2}),
    *((f"rank {n}", (32, 16, 28, 28), 32, {"rank": n}) for n in (1, 2, 4, 8)),
    ("rank 1, not normalised", (32, 16, 28, 28), 32, {"rank": 1, "normalise": None}),
)  # batch and channels, outputs; all with windows of 3x3
LOCALS = (
    Conv("local 3x3 MNIST", (64, 32, 26, 26), 64, (3, 3)),
    Conv("local 3x3 MNIST first", (64, 1, 28, 28), 32, (3, 3)),
    Conv("local 3x3 128 images", (128, 8, 20, 20), 16, (3, 3)),
    Conv("local 3x3 many channels", (8, 64, 14, 14), 64, (3, 3)),
    Conv("local 5x5", (16, 8, 32, 32), 16, (5, 5)),
    Conv("local 5x5 256 images", (256, 3, 32, 32), 8, (5, 5)),
    Conv("local 3x3 one image", (1, 16, 28, 28), 16, (3, 3)),
    Conv("local lecture", (1, 1, 200, 200), 20, (10, 10)),
)
UNROLLED = 1000  # positions; Keras 2 writes a product per position into its graph
# By name: the cases, each with its name first; what they are called while they are timed; the title of their table.
CASES: dict[str, tuple[Sequence[Any], str, str]] = {
    "conv": (CONVOLUTIONS, "convolutions", "convolution, ours / torch"),
    "survey": (SURVEY, "convolutions", "convolution, ours / torch"),
    "pool": (POOLS, "pools", "pooling, ours / torch"),
    "local": (LOCALS, "local layers", "local layers"),
    "between": (BETWEEN, "between local and convolution", "between local and convolution"),
    **{name: (cases, name, f"{name}, ours / torch") for name, cases in (("transposed", TRANSPOSED), ("small", SMALL), ("rows", ROWS))},
}


def interleaved(rivals: dict[str, Callable[[], Any]], seconds: float) -> dict[str, float]:
    """The median time of each rival in milliseconds; they take turns until `seconds` for each are over, at least five times."""
    times: dict[str, list[float]] = {name: [] for name in rivals}
    for run in rivals.values():
        run()
        run()
    start = time.perf_counter()
    while len(next(iter(times.values()))) < 5 or time.perf_counter() - start < seconds * len(rivals):
        for name, run in rivals.items():
            before = time.perf_counter()
            run()
            times[name].append(1e3 * (time.perf_counter() - before))
    return {name: statistics.median(values) for name, values in times.items()}


def peak_megabytes(run: Callable[[], Any]) -> float:
    """The most resident memory that `run` added, in MB, with nothing kept from before; NaN where the system does not say (Linux does)."""
    try:
        run()
        ctypes.CDLL(None).malloc_trim(0)  # what earlier calls left in the heap would hide what this one needs
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
        before = _status("VmRSS")
        run()
        return (_status("VmHWM") - before) / 1024
    except (OSError, AttributeError):
        return math.nan


def _status(key: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1])


def layout(x: Tensor, last: bool) -> Tensor:
    """`x` in channels-last memory, if asked for and if there is such a thing."""
    return x.contiguous(memory_format=LAST[x.ndim]) if last and x.ndim in LAST else x


def passes(function: Callable[..., Tensor], tensors: Sequence[Tensor], **arguments: Any) -> dict[str, Callable[[], Any]]:
    """Forward, backward, and both together of a function of tensors."""
    leaves = [t.detach().clone(memory_format=torch.preserve_format).requires_grad_() for t in tensors]
    y = function(*leaves, **arguments)
    gy = torch.randn_like(y)
    return {
        "forward": lambda: function(*tensors, **arguments),
        "backward": lambda: torch.autograd.grad(y, leaves, gy, retain_graph=True),
        "both": lambda: torch.autograd.grad(function(*leaves, **arguments), leaves, gy),
    }


def race(rivals: dict[str, dict[str, Callable[[], Any]]], seconds: float) -> dict[str, dict[str, float]]:
    """Medians for forward, backward and both: `{pass: {rival: ms}}`."""
    return {p: interleaved({name: runs[p] for name, runs in rivals.items()}, seconds) for p in ("forward", "backward", "both")}


def keep_freed_memory() -> None:
    """Let glibc keep what is freed; otherwise a call may pay for pages that an earlier one gave back, depending on what ran before."""
    trim, largest_mapped = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).mallopt(trim, 1 << 30)
        ctypes.CDLL(None).mallopt(largest_mapped, 1 << 25)


def roofline(dtype: torch.dtype) -> tuple[float, float]:
    """Measured operations per second of a large matrix product, and bytes per second of a large copy (read plus written)."""
    a, b = torch.randn(2, 1536, 1536).to(dtype)
    x = torch.randn(16 << 20).to(dtype)
    y = torch.empty_like(x)
    times = interleaved({"product": lambda: a @ b, "copy": lambda: y.copy_(x)}, 1.0)
    return 2 * 1536**3 / times["product"] * 1e3, 2 * x.numel() * x.element_size() / times["copy"] * 1e3


def convolution(case: Conv, options: Options, rates: tuple[float, float]) -> dict[str, Any]:
    """One row: a convolution by ours and torch, in both layouts."""
    dtype, d = getattr(torch, options.dtype), len(case.kernel)
    arguments = {"stride": case.stride, "padding": case.padding, "dilation": case.dilation, "groups": case.groups}
    x = torch.randn(case.shape).to(dtype)
    w = torch.randn(case.outputs, case.shape[1] // case.groups, *case.kernel).to(dtype)
    rivals = {}
    for last in (False, True) if d > 1 else (False,):
        for side, library in (("ours", ours), ("torch", theirs)):
            function = getattr(library, f"conv{d}d")
            rivals[side + (" last" if last else "")] = passes(function, [layout(x, last), layout(w, last)], **arguments)
    y = theirs.__dict__[f"conv{d}d"](x, w, **arguments)
    operations = 2 * y.numel() * w[0].numel()
    bytes_moved = (x.numel() + w.numel() + y.numel()) * x.element_size()
    row: dict[str, Any] = {"name": case.name, "case": case._asdict(), "ms": race(rivals, options.seconds)}
    row["MB"] = {side: peak_megabytes(runs["both"]) for side, runs in rivals.items()}
    row["MB allowed"] = bytes_moved / 2**20 + 16
    fastest = min(v for k, v in row["ms"]["both"].items() if k.startswith("ours"))
    row["roofline"] = 3 * max(operations / rates[0], bytes_moved / rates[1]) * 1e3 / fastest
    return row


def pool(case: tuple[str, str, tuple[int, ...], dict[str, Any]], options: Options) -> dict[str, Any]:
    """One row: a pool by ours and torch, in both layouts."""
    name, function, shape, arguments = case
    x = torch.randn(shape).to(getattr(torch, options.dtype))
    rivals = {}
    for last in (False, True) if x.ndim in LAST else (False,):
        for side, library in (("ours", ours), ("torch", theirs)):
            rivals[side + (" last" if last else "")] = passes(getattr(library, function), [layout(x, last)], **arguments)
    return {"name": name, "ms": race(rivals, options.seconds)}


def function_of(case: tuple[str, str, tuple[tuple[int, ...], ...], dict[str, Any]], options: Options) -> dict[str, Any]:
    """One row: a function by ours and torch."""
    name, function, shapes, arguments = case
    tensors = [torch.randn(shape).to(getattr(torch, options.dtype)) for shape in shapes]
    rivals = {side: passes(getattr(library, function), tensors, **arguments) for side, library in (("ours", ours), ("torch", theirs))}
    return {"name": name, "ms": race(rivals, options.seconds)}


def network(library: Any) -> torch.nn.Sequential:
    """The network of the MNIST step: convolutions of 32 and 64 filters, a pool, 128 units, 10 classes."""
    nn = library
    first, second = nn.Linear(64 * 12 * 12, 128), nn.Linear(128, 10)
    convolutions = nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2)
    return torch.nn.Sequential(*convolutions, torch.nn.Flatten(), first, nn.ReLU(), second)


def step(options: Options) -> dict[str, Any]:
    """One row: the loss of 64 images (forward), its gradients (backward), and both, by the network of our layers and torch's."""
    images, labels = torch.randn(64, 1, 28, 28), torch.arange(64) % 10
    rivals = {}
    for side, library in (("ours", cnn425.nn), ("torch", torch.nn)):
        net, surprise = network(library), library.CrossEntropyLoss()
        weights = list(net.parameters())
        rivals[side] = passes(
            lambda *w, net=net, surprise=surprise: surprise(
                torch.func.functional_call(net, dict(zip(dict(net.named_parameters()), w, strict=True)), images), labels
            ),
            weights,
        )
    return {"name": "MNIST step", "ms": race(rivals, options.seconds)}


def unfold_and_einsum(x: Tensor, w: Tensor) -> Tensor:
    """A local layer the usual way: every window copied out, one einsum."""
    I, J, _, C, U, V = w.shape
    columns = theirs.unfold(x, (U, V)).view(len(x), C, U, V, I, J)
    return torch.einsum("ncuvij,ijocuv->noij", columns, w)


def forum_snippet(x: Tensor, w: Tensor) -> Tensor:
    """A local layer as the forums have it: windows times weights with broadcasting, then a sum."""
    _, _, _, _, U, V = w.shape
    windows = x.unfold(2, U, 1).unfold(3, V, 1)
    return (windows.unsqueeze(1) * w.permute(2, 3, 0, 1, 4, 5).unsqueeze(0)).sum([2, -1, -2])


def jax_rival(x: Tensor, w: Tensor) -> dict[str, Callable[[], Any]]:
    """The same layer in JAX, compiled; empty where JAX is not installed."""
    try:
        import jax
    except ImportError:
        return {}
    I, J, O, C, U, V = w.shape
    a = jax.numpy.asarray(x.numpy())
    b = jax.numpy.asarray(w.permute(2, 3, 4, 5, 0, 1).reshape(O, C * U * V, I, J).contiguous().numpy())

    def layer(a: Any, b: Any) -> Any:
        return jax.lax.conv_general_dilated_local(a, b, (1, 1), "VALID", (U, V))

    forward, gradients = jax.jit(layer), jax.jit(lambda a, b, gy: jax.vjp(layer, a, b)[1](gy))
    y = forward(a, b)
    return whole_runs(lambda: jax.block_until_ready(forward(a, b)), lambda: jax.block_until_ready(gradients(a, b, y)))


def keras_rival(x: Tensor, w: Tensor) -> dict[str, Callable[[], Any]]:
    """The same layer in Keras 2 on TensorFlow, compiled; empty where they are not installed, or where tracing would take minutes."""
    if w.shape[0] * w.shape[1] > UNROLLED:
        return {}
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        import tensorflow as tf
        import tf_keras
    except ImportError:
        return {}
    _, _, O, _, U, V = w.shape
    layer = tf_keras.layers.LocallyConnected2D(O, (U, V), use_bias=False)
    images = tf.constant(x.movedim(1, -1).contiguous().numpy())
    layer(images)
    forward = tf.function(layer)

    def gradients(images: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(images)
            y = layer(images)
        return tape.gradient(y, [images, layer.kernel])

    both = tf.function(gradients)
    return whole_runs(lambda: forward(images).numpy(), lambda: [g.numpy() for g in both(images)])


def whole_runs(forward: Callable[[], Any], both: Callable[[], Any]) -> dict[str, Callable[[], Any]]:
    """The passes of a rival that has no backward pass of its own: compiled gradients compute forward and backward."""
    return {"forward": forward, "backward": both, "both": both}


def local(case: Conv, options: Options, rates: tuple[float, float]) -> dict[str, Any]:
    """One row: a local layer by ours, by unfold + einsum, by the forum snippet where it fits, by JAX and Keras if installed."""
    dtype = getattr(torch, options.dtype)
    positions = [n - k + 1 for n, k in zip(case.shape[2:], case.kernel, strict=True)]
    x = torch.randn(case.shape).to(dtype)
    w = torch.randn(*positions, case.outputs, case.shape[1], *case.kernel).to(dtype)
    rivals = {"ours": passes(ours.locally_connected2d, [x, w]), "unfold + einsum": passes(unfold_and_einsum, [x, w])}
    if case.shape[0] * w.numel() * x.element_size() < 2 << 30:
        rivals["forum snippet"] = passes(forum_snippet, [x, w])
    if dtype == torch.float32:
        for name, rival in (("JAX", jax_rival), ("tf_keras", keras_rival)):
            if runs := rival(x, w):
                rivals[name] = runs
    row: dict[str, Any] = {"name": case.name, "ms": race(rivals, options.seconds), "MB": {"ours": peak_megabytes(rivals["ours"]["both"])}}
    numbers = x.numel() + w.numel() + case.shape[0] * case.outputs * math.prod(positions)
    row["MB allowed"] = numbers * x.element_size() / 2**20 + 16
    operations, moved = 2 * case.shape[0] * w.numel(), numbers * x.element_size()
    row["roofline"] = 3 * max(operations / rates[0], moved / rates[1]) * 1e3 / row["ms"]["both"]["ours"]
    return row


def between(case: tuple[str, tuple[int, ...], int, dict[str, Any]], options: Options) -> dict[str, Any]:
    """One row: a layer between local and convolution, the local layer and the convolution of its shape; of rank r, r convolutions."""
    name, (n, c, *size), outputs, sharing = case
    kind = cnn425.nn.LowRankLocal2d if "rank" in sharing else cnn425.nn.LocallyConnected2d
    x, dtype = torch.randn(n, c, *size), getattr(torch, options.dtype)
    layer = kind(c, outputs, tuple(size), 3, **sharing)
    convolution = cnn425.nn.Conv2d(c, outputs * sharing.get("rank", 1), 3)
    rivals = {}
    for rival, module in (("ours", layer), ("local", layer.unshared()), ("convolutions", convolution)):
        named = dict(module.to(dtype).named_parameters())

        def call(x: Tensor, *parameters: Tensor, module: torch.nn.Module = module, names: Sequence[str] = tuple(named)) -> Tensor:
            found: Tensor = torch.func.functional_call(module, dict(zip(names, parameters, strict=True)), (x,))
            return found

        rivals[rival] = passes(call, [x.to(dtype), *named.values()])
    return {"name": name, "ms": race(rivals, options.seconds)}


def geometric_mean(values: Sequence[float]) -> float:
    """The geometric mean, NaN of nothing."""
    return math.exp(statistics.fmean(map(math.log, values))) if values else math.nan


def ratio(row: dict[str, Any], which: str, last: bool = False) -> float | None:
    """Ours over torch's time in one layout."""
    suffix = " last" if last else ""
    times = row["ms"][which]
    return times["ours" + suffix] / times["torch" + suffix] if "torch" + suffix in times else None


def best_ratio(row: dict[str, Any]) -> float:
    """Ours over torch's time, each in its better layout, forward and backward."""
    times = row["ms"]["both"]
    return min(v for k, v in times.items() if k.startswith("ours")) / min(v for k, v in times.items() if k.startswith("torch"))


def versus_torch(title: str, rows: list[dict[str, Any]]) -> Iterator[Table | str]:
    """A table of layers that torch has, and their geometric means."""
    heads = ("", "fwd", "bwd", "both", "ours\nms", "torch\nms", "both,\nlast", "better\nlayout", "roof-\nline", "MB", "of\nMB")
    cells = []
    for row in rows:
        show = [ratio(row, p) for p in ("forward", "backward", "both")]
        times = row["ms"]["both"]
        last = ratio(row, "both", last=True)
        extra = [f"{row['roofline']:.0%}", f"{row['MB']['ours']:.0f}", f"{row['MB allowed']:.0f}"] if "MB" in row else ["", "", ""]
        cells.append([
            row["name"], *(f"{r:.2f}" for r in show), f"{times['ours']:.2f}", f"{times['torch']:.2f}",
            "" if last is None else f"{last:.2f}", f"{best_ratio(row):.2f}", *extra,
        ])  # fmt: skip
    kept = [i for i in range(len(heads)) if any(row[i] for row in cells)]
    yield narrow(title, [heads[i] for i in kept], [[row[i] for i in kept] for row in cells])
    default = [r for row in rows if (r := ratio(row, "both")) is not None]
    lasts = [r for row in rows if (r := ratio(row, "both", last=True)) is not None]
    yield "geometric mean of ours / torch, forward + backward:"
    layouts = (
        f"; {geometric_mean(lasts):.2f} in channels last, {geometric_mean([best_ratio(r) for r in rows]):.2f} each in its better layout"
    )
    yield f"{geometric_mean(default):.2f} in the default layout, worst {max(default):.2f}{layouts if lasts else ''}"


def found(results: dict[str, Any]) -> Finding:
    """Whether ours took at most torch's time, as geometric means, by kind of layer; local layers have no twin in torch."""
    kinds = {
        "conv": "convolutions",
        "survey": "surveyed convolutions",
        "pool": "pools",
        "small": "small calls",
        "rows": "rows",
        "step": "a training step",
        "transposed": "transposed convolutions and unfold",
    }
    means = {
        kind: geometric_mean([r for row in results[what] if (r := ratio(row, "both")) is not None])
        for what, kind in kinds.items()
        if results.get(what)
    }
    words = ", ".join(f"{mean:.2f} times torch's time for {kind}" for kind, mean in means.items())
    said = f"ours take {words} (geometric means, forward and backward)"
    return Finding(all(mean <= 1.005 for mean in means.values()), said if means else "torch has no local layers to compare with")


def versus_others(title: str, rows: list[dict[str, Any]]) -> Table:
    """A table of layers that torch does not have: milliseconds of forward + backward."""
    names = list(dict.fromkeys(name for row in rows for name in row["ms"]["both"]))
    cells = []
    for row in rows:
        times = row["ms"]["both"]
        ratios = {n: "" if n == "ours" else f" ({times[n] / times['ours']:.1f} x)" for n in times}
        each = (f"{times[n]:.1f}{ratios[n]}" if n in times else "" for n in names)
        extra = [f"{row['roofline']:.0%}", f"{row['MB']['ours']:.0f} / {row['MB allowed']:.0f}"] if "MB" in row else ["", ""]
        cells.append([row["name"], *each, *extra])
    heads = (name.replace(" ", "\n", 1) for name in names)
    return narrow(f"{title}, forward + backward, ms", ["", *heads, "roof-\nline", "MB /\nallowed"], cells)


def narrow(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A table of at most 80 columns of text."""
    table = Table(title=title, box=None, padding=(0, 1, 0, 0))
    for head in heads:
        table.add_column(head, justify="left" if head == "" else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table


def means_of_others(rows: list[dict[str, Any]]) -> str:
    """How many times as long as ours each rival takes, geometric means of forward + backward."""
    times = [row["ms"]["both"] for row in rows]
    names = dict.fromkeys(name for t in times for name in t if name != "ours")
    means = {name: geometric_mean([t[name] / t["ours"] for t in times if name in t]) for name in names}
    return "geometric means, times as long as ours: " + ", ".join(f"{name} {mean:.1f}" for name, mean in means.items())


def wrong(options: Options) -> str | None:
    """What is wrong with the options, in one sentence; the folder of the results is made before anything is timed."""
    for what in options.what:
        if what in CASES and not any(options.only in case[0] for case in CASES[what][0]):
            return f"--only {options.only!r} is in no name of a case of {what}; run without --only to see the names"
    if not 1 <= options.threads <= MOST_THREADS or not 0 <= options.seconds < math.inf:
        return f"--threads {options.threads} --seconds {options.seconds}: 1 to {MOST_THREADS} threads and a time are wanted"
    try:
        if options.json:
            refuse_foreign(options.json, b'"command": "python ')
            options.json.parent.mkdir(parents=True, exist_ok=True)
    except LabError as error:
        return str(error)
    except OSError as error:
        return f"cannot make the folder {error.filename}: {error.strerror}; name another one in --json"
    return None


def main(options: Options) -> dict[str, Any]:
    if (mistake := wrong(options)) is not None:
        Console(stderr=True).print(f"error: {mistake}", soft_wrap=True, markup=False, highlight=False)
        raise SystemExit(2)
    console = Console() if sys.stdout.isatty() else Console(width=80)
    opening(__doc__)
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    rates = roofline(getattr(torch, options.dtype))
    results: dict[str, Any] = {
        "command": " ".join(["python", *sys.argv]),
        "versions": {"torch": torch.__version__, "python": platform.python_version(), "machine": platform.machine()},
        "capability": torch.backends.cpu.get_cpu_capability(), "threads": options.threads, "dtype": options.dtype,
        "GFLOP/s": rates[0] / 1e9, "GB/s": rates[1] / 1e9,
    }  # fmt: skip
    console.print(f"{options.threads} threads, {options.dtype}: products {rates[0] / 1e9:.0f} GFLOP/s, copies {rates[1] / 1e9:.0f} GB/s")
    conv = partial(convolution, rates=rates)
    timed: dict[str, Callable[[Any, Options], dict[str, Any]]] = {"conv": conv, "survey": conv, "pool": pool, "between": between}
    timed["local"] = partial(local, rates=rates)
    for what, (cases, words, title) in CASES.items():
        if what in options.what:
            chosen = [case for case in cases if options.only in case[0]]
            rows = [timed.get(what, function_of)(case, options) for case in watched(chosen, words, len(chosen))]
            others = what in ("local", "between")  # what torch does not have
            for part in (versus_others(title, rows), means_of_others(rows)) if others else versus_torch(title, rows):
                console.print(part)
            results[what] = rows
    if "step" in options.what:
        results["step"] = [step(options)]
        for part in versus_torch("training step, ours / torch", results["step"]):
            console.print(part)
    if options.json:
        write_whole(options.json, json.dumps(results, indent=1).encode())
    conclude(found(results))
    print("next: docs/performance.md says what the columns mean and what came out elsewhere")
    return results


if __name__ == "__main__":
    with compilation_told():
        command(lambda: main(tyro.cli(Options, prog="python scripts/benchmark.py", description=__doc__)))
