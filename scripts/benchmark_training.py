"""A checkpoint per epoch costs a training run less than 1 % of its time; beside it what the other options of speed and safety do.

    python scripts/benchmark_training.py              (about 5 minutes on two CPU cores; --json for machines)

Every number is the median over `--repeats` runs in processes of their own, which take turns, so that a busy machine hurts all alike.
Times are of the steps alone, from the `speed` curve of a run; accuracy is on held-out pictures after the last epoch.
"""

import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # the claim is said before torch is imported, which takes seconds
    from cnn425.lab.errors import need_lab

    need_lab()
    from cnn425.lab.progress import opening_before_imports

    opening_before_imports(sys.argv, lambda: __doc__)

import torch
import tyro
from rich.table import Table

from cnn425.lab import checkpoint
from cnn425.lab.board import scalars
from cnn425.lab.errors import LabError, command
from cnn425.lab.options import at_least
from cnn425.lab.progress import opening, say_table, watched
from cnn425.lab.signals import CODES
from cnn425.lab.verdict import Finding, conclude, percent

ROOT = Path(__file__).parents[1]
WAYS = {
    "plain": [],
    "--layers torch": ["--layers", "torch"],
    "--compile": ["--compile"],
    "--amp bf16": ["--amp", "bf16"],
    "--channels-last": ["--channels-last"],
    "--threads 1": ["--threads", "1"],
}


@dataclass(frozen=True)
class BenchmarkOptions:
    """How much to measure."""

    dataset: str = "patterns"
    """As in experiments/mnist.py."""
    examples: int = 6400
    """Pictures per epoch."""
    epochs: int = 2
    """The first one warms up, the last one counts."""
    model: str = "conv"
    """As in experiments/mnist.py."""
    repeats: int = 3
    """Runs per way."""
    ways: str = ",".join([*WAYS, "2 processes"])
    """Which ways to compare; the first is the measure of the others."""
    interruption: bool = True
    """Also stop a run half-way, start it again, and tell what that cost."""
    json: bool = False
    """Print JSON instead of tables."""


def mnist(folder: Path, options: BenchmarkOptions, *words: str, processes: int = 1, stop: bool = False) -> float:
    """One training in a process of its own, or several under torchrun; its duration in seconds, start-up included.

    With `stop`, it is asked to end as soon as its first epoch is over.
    """
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)] if processes > 1 else []
    common = ["--dataset", options.dataset, "--examples", str(options.examples), "--epochs", str(options.epochs), "--model", options.model]
    command = [sys.executable, *start, "-m", "experiments.mnist", *common, "--log-dir", str(folder), *words]
    begun = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    while stop and process.poll() is None and not checkpoint.checkpoints(folder):
        time.sleep(0.01)
    if stop:
        process.send_signal(signal.SIGTERM)
    said, _ = process.communicate()
    if stop and process.returncode == 0:
        raise SystemExit("the run was over before it could be stopped: give it more --epochs or --examples")
    if process.returncode != (CODES[signal.SIGTERM] if stop else 0):
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}: {said[-1000:]}")
    return time.perf_counter() - begun


def interruption(options: BenchmarkOptions, folder: Path) -> list[float]:
    """Seconds that a run takes longer when it is stopped after an epoch and started again, once per repeat."""
    costs = []
    for repeat in range(options.repeats):
        whole = mnist(folder / f"whole-{repeat}", options)
        stopped = mnist(folder / f"stopped-{repeat}", options, stop=True)
        costs.append(stopped + mnist(folder / f"stopped-{repeat}", options) - whole)
    return costs


def curve(folder: Path, tag: str) -> list[float]:
    """The values of one curve."""
    return [value for name, _, value in scalars(folder) if name == tag]


def checkpoint_seconds(folder: Path, repeats: int) -> tuple[float, float, int]:
    """Median seconds to write and to read the checkpoint of a run again, and its size in bytes."""
    path = checkpoint.checkpoints(folder)[0]
    write, read = [], []
    for number in range(repeats):
        begun = time.perf_counter()
        state = checkpoint.read(path)
        read.append(time.perf_counter() - begun)
        with tempfile.TemporaryDirectory(dir=folder) as elsewhere:
            begun = time.perf_counter()
            checkpoint.save(Path(elsewhere), number, state)
            write.append(time.perf_counter() - begun)
    return statistics.median(write), statistics.median(read), path.stat().st_size


def measure(options: BenchmarkOptions, folder: Path) -> dict[str, Any]:
    """Everything, as numbers."""
    ways: dict[str, dict[str, list[float]]] = {name: {"images per second": [], "accuracy": []} for name in options.ways.split(",")}
    jobs = [(name, repeat) for repeat in range(options.repeats) for name in ways]
    for name, repeat in jobs if options.json else watched(jobs, "benchmark", len(jobs)):
        place = folder / f"{name}-{repeat}".replace(" ", "-")
        mnist(place, options, *WAYS.get(name, []), processes=2 if name == "2 processes" else 1)
        ways[name]["images per second"].append(curve(place, "speed/images per second")[-1])
        ways[name]["accuracy"].append(curve(place, "accuracy/held-out")[-1])
    first = next(iter(ways))
    speed = {name: statistics.median(numbers["images per second"]) for name, numbers in ways.items()}
    write, read, size = checkpoint_seconds(folder / f"{first}-0".replace(" ", "-"), max(5, options.repeats))
    again = interruption(options, folder) if options.interruption else []
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, torch {torch.__version__}",
        "model": f"{options.model} on {options.examples} of {options.dataset}, {options.epochs} epochs",
        "repeats": options.repeats,
        "images per second": speed,
        "relative to the first": {name: value / speed[first] for name, value in speed.items()},
        "spread": {name: [min(n["images per second"]), max(n["images per second"])] for name, n in ways.items()},
        "held-out accuracy": {name: statistics.median(numbers["accuracy"]) for name, numbers in ways.items()},
        "stop and resume, seconds": [min(again), statistics.median(again), max(again)] if again else None,
        "checkpoint write, seconds": write,
        "checkpoint read, seconds": read,
        "checkpoint size, bytes": size,
        "checkpoint, share of an epoch of 60,000": write / (60_000 / speed[first]),
    }


def show(result: dict[str, Any]) -> None:
    """The tables."""
    speed, relative, spread, accuracy = (result[k] for k in ("images per second", "relative to the first", "spread", "held-out accuracy"))
    table = Table("way", "images per second", "relative", "held-out accuracy", title=f"{result['model']}: {result['machine']}")
    for name in speed:
        low, high = spread[name]
        table.add_row(name, f"{speed[name]:.0f} ({low:.0f} to {high:.0f})", f"{relative[name]:.2f}", f"{accuracy[name]:.1%}")
    say_table(table)
    for name in ("checkpoint write, seconds", "checkpoint read, seconds", "checkpoint size, bytes"):
        print(f"{name}: {result[name]:.4g}")
    if again := result["stop and resume, seconds"]:
        print("a run that is stopped and resumed takes {1:.1f} s longer ({0:.1f} to {2:.1f}), importing torch included".format(*again))
    share = result["checkpoint, share of an epoch of 60,000"]
    conclude(Finding(share < 0.01, f"one checkpoint per epoch of 60,000 pictures takes {percent(share, 2)} of its time"))
    print("next: docs/training.md says what each option does")


def main(options: BenchmarkOptions) -> dict[str, Any]:
    """Measure and show."""
    at_least(options, examples=1, epochs=1, repeats=1)
    known = [*WAYS, "2 processes"]
    if unknown := [name for name in options.ways.split(",") if name not in known]:
        raise LabError(f"--ways has no {', '.join(unknown)}; choose from {', '.join(known)}", 2)
    if not options.json:
        opening(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        result = measure(options, Path(folder))
    print(json.dumps(result, indent=2)) if options.json else show(result)
    return result


if __name__ == "__main__":
    command(lambda: main(tyro.cli(BenchmarkOptions, prog="python scripts/benchmark_training.py", description=__doc__)))
