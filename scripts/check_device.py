#!/usr/bin/env python
"""A report on a device: whether all layers compute, differentiate and train there as torch's do, and how much they take.

    python scripts/check_device.py --device cuda --minutes 6      torch and numpy are enough; nothing is downloaded
    python scripts/check_device.py --device cpu --minutes 1       the same on the CPU
    python scripts/check_device.py --only layers training         some of the sections below
    python scripts/check_device.py --data-dir DATA                train on DATA/MNIST/raw/...; without it, on three patterns of 28x28 pixels

    layers         every layer, four dtypes, both memory layouts, autocast: as torch on this device, and as torch in float64 on the CPU
    algorithms     convolutions by every algorithm that `cnn425.algorithms.use` can ask for there, in both directions
    deterministic  every layer under torch.use_deterministic_algorithms(True): nothing raises, and a second call gives the same bits
    training       patterns and digits with our layers and with torch's: the same losses
    resume         training that is saved and loaded in the middle: the same bits as without
    processes      two processes share every batch: by NCCL on two GPUs, else by gloo; as one process to rounding
    memory         the most bytes at once and the time, forward and backward, beside torch's; numbers, not a verdict
    transforms, derivatives, arguments, samples, errors, modules      as scripts/conformance.py, on this device
    experiments    experiments.patterns and experiments.mnist themselves, where what they need is installed
    compile        torch.compile and torch.export

The time is shared among the sections; one that has used up its share says so. `--out` (runs/check_device) holds the page, report.txt, and
the same as report.json, written as it goes: a run that is killed keeps what it found. The exit code is 0 if everything that was tried
passed, 1 if not, 2 if the device or an option is impossible.
"""

import argparse
import contextlib
import gzip
import io
import json
import math
import os
import platform
import shlex
import signal
import statistics
import sys
import tempfile
import time
import types
import unittest
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # where nothing is installed, the checkout is the package

from cnn425.lab.errors import LabError, end_at_ctrl_c, raise_at_ctrl_c, refuse_foreign

if __name__ == "__main__":
    end_at_ctrl_c()

import compare_layers
import conformance
import numpy
import torch
import torch.distributed as dist
from compare_layers import clock, peak_bytes, problem, step
from torch import Tensor

from cnn425 import algorithms
from cnn425.agreement import COMPILERS, TOLERANCES, compare, describe, refusal, under
from cnn425.lab.group import Group, torch_device
from cnn425.lab.models import Layers, Name, build, namespace
from cnn425.lab.order import Order
from cnn425.lab.pictures import Pictures, pattern_images, patterns

LAYERS = conformance.LAYERS
PLAIN = compare_layers.Options(in_channels=4, out_channels=8, size=9)
SHAPES = (replace(PLAIN, padding=1), replace(PLAIN, stride=2, groups=2, dilation=2))  # of the windows that are tried
BF16 = TOLERANCES[torch.bfloat16]
UNDER_AUTOCAST = {**TOLERANCES, torch.float32: BF16}  # gradients of float32 that were computed in bfloat16
ENOUGH = 120.0  # seconds in which two processes have met and taken five steps, if they ever will
LARGE = {  # batch, channels, pixels along a side by number of dimensions
    "cpu": (4, 8, (16, 256, 16, 6)),
    "device": (64, 64, (256, 1024, 56, 16)),
}


class OutOfTime(BaseException):
    """The time for all of it is over: no Exception, so that no check takes it for one."""


class LeftOut(Exception):  # noqa: N818  no error: a section that has nothing to try
    """Why a section has nothing to try here."""


@dataclass
class Run:
    """What a section needs to know; `until` is the end of its time."""

    device: torch.device
    minutes: float
    data_dir: Path | None
    until: float = math.inf
    stopped: bool = False

    @property
    def name(self) -> str:
        """The device as an argument."""
        return str(self.device)

    @property
    def is_cpu(self) -> bool:
        """Whether this is the CPU, where loops compute."""
        return self.device.type == "cpu"

    def left(self) -> float:
        """Seconds that are left to the section."""
        return self.until - time.monotonic()


@dataclass
class Section:
    """What came of a section."""

    name: str
    state: str = "not begun"
    passed: int = 0
    tried: int = 0
    seconds: float = 0.0
    failures: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


Case = tuple[str, str]  # what was tried, and what is wrong; a name that begins with NOTE is a number to report
Cases = Iterator[Case]
NOTE = "note: "


# ---- layers ------------------------------------------------------------------------------------------------------------------------------


def exactly(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`function` in float64 on the CPU; the result and the gradients come back in the dtype and on the device of the inputs."""

    def computed(*x: Tensor) -> Tensor:
        return function(*(t.double().cpu() if t.is_floating_point() else t.cpu() for t in x)).to(x[0].device, x[0].dtype)

    return computed


def last(x: Tensor) -> Tensor:
    """An image with its channels last in memory."""
    return x.to(memory_format={4: torch.channels_last, 5: torch.channels_last_3d}[x.ndim])


def both(name: str, pair: tuple[Callable[..., Tensor], Callable[..., Tensor]], inputs: list[Tensor], **how: Any) -> Cases:
    """Ours beside torch's on the device (not where torch refuses), and beside torch's in float64 on the CPU."""
    yield f"{name}, beside torch there", beside(*pair, inputs, **how)
    yield f"{name}, beside float64 on the CPU", beside(pair[0], exactly(pair[1]), inputs, **(how | {"strides": False}))


def beside(ours: Callable[..., Tensor], theirs: Callable[..., Tensor], inputs: list[Tensor], **how: Any) -> str:
    """What is different, values and gradients; empty too where torch refuses, as it does half precision here and there."""
    try:
        return compare(ours, theirs, inputs, **how).wrong
    except Exception as error:
        return describe(error) if refusal(lambda: compare(theirs, theirs, inputs)) is None else ""


def wrong_with(check: Callable[[], str]) -> str:
    """What the check says, or what it raises."""
    try:
        return check()
    except Exception as error:
        return describe(error)


def layers(run: Run) -> Cases:
    """Every layer: the plain case of all of them first."""
    for dtype in ("float32", "bfloat16", "float16", "float64"):
        for number, shape in enumerate(SHAPES):
            for name in LAYERS:
                torch.manual_seed(0)
                ours, theirs, inputs = problem(name, replace(shape, dtype=dtype, device=run.name))
                yield from both(f"{name} {dtype} {number}", (ours, theirs), inputs, strides="local" not in name)
                if dtype == "float32" and inputs[0].ndim in (4, 5):
                    other = [last(inputs[0]), *inputs[1:]]
                    yield from both(f"{name} {dtype} {number} channels last", (ours, theirs), other, strides="local" not in name)
                if dtype == "float32" and not number:
                    # to add a local layer's bias of float32 would make torch's result float32
                    ours, theirs, given = problem(name, replace(shape, dtype=dtype, device=run.name, bias="local" not in name))
                    pair = (autocast(ours, run), autocast(theirs, run))
                    yield f"{name} autocast, beside torch there", beside(*pair, given, tolerances=UNDER_AUTOCAST)


def autocast(function: Callable[..., Tensor], run: Run) -> Callable[..., Tensor]:
    """`function` under autocast to bfloat16."""

    def computed(*x: Tensor) -> Tensor:
        with torch.autocast(x[0].device.type, torch.bfloat16):
            return function(*x)

    return computed


def every_algorithm(run: Run) -> Cases:
    """Convolutions, and on the CPU local layers, by every algorithm."""
    kinds = {"convolution": ("conv1d", "conv2d", "conv3d")} | ({"local": ("local1d", "local2d", "local3d")} if run.is_cpu else {})
    for kind, names in kinds.items():
        for algorithm in algorithms.names(kind):
            for name in names:
                for dtype in ("float64", "float32"):
                    torch.manual_seed(0)
                    ours, theirs, inputs = problem(name, replace(PLAIN, dtype=dtype, device=run.name))
                    rough = algorithm in ("winograd", "fft")  # their rounding error is that of the largest pixel around
                    allowed = {d: t._replace(absolute=(20 if rough else 1) * t.absolute) for d, t in TOLERANCES.items()}
                    with algorithms.use(algorithm):
                        found = list(both(f"{name} by {algorithm} {dtype}", (ours, theirs), inputs, tolerances=allowed))
                    yield from found


@contextlib.contextmanager
def deterministically() -> Iterator[None]:
    """Torch's deterministic mode, in which what has no fixed order raises."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def deterministic(run: Run) -> Cases:
    """Every layer twice, bit by bit."""
    for number, shape in enumerate(SHAPES):
        for name in LAYERS:
            torch.manual_seed(0)
            ours, _, inputs = problem(name, replace(shape, batch=16, device=run.name))
            with deterministically():
                yield f"{name} {number} twice", wrong_with(partial(twice, ours, inputs))


def twice(function: Callable[..., Tensor], inputs: list[Tensor]) -> str:
    """What a second call gives other bits of."""
    return other_bits(*(step_of(function, inputs) for _ in "12"))


def step_of(function: Callable[..., Tensor], inputs: list[Tensor]) -> list[Tensor]:
    """The output and all gradients."""
    leaves = [t.detach().clone().requires_grad_(t.is_floating_point()) for t in inputs]
    y = function(*leaves)
    upstream = torch.linspace(-1, 1, y.numel(), device="cpu").to(y.device, y.dtype).view(y.shape)
    return [y.detach(), *torch.autograd.grad(y, [t for t in leaves if t.requires_grad], upstream)]


def other_bits(first: list[Tensor], second: list[Tensor]) -> str:
    """Empty if all tensors have the same bits."""
    different = [i for i, (a, b) in enumerate(zip(first, second, strict=True)) if not torch.equal(a, b)]
    return f"tensors {different} of {len(first)} have other bits" if different else ""


# ---- training ----------------------------------------------------------------------------------------------------------------------------


class Trainer:
    """A network of the lab, its optimiser and the order of its examples: a training run without files."""

    def __init__(self, run: Run, pictures: Pictures, model: Name, sort: Layers, dtype: torch.dtype, batch: int = 64, plain: bool = False):
        side = pictures.images.shape[-2:]
        network: Any = build(model, sort, 0, size=(int(side[0]), int(side[1])), classes=len(pictures.classes))
        self.network = network.to(run.device, dtype)
        self.loss = namespace(sort).CrossEntropyLoss()
        self.optimizer: Any = (
            torch.optim.SGD(self.network.parameters(), lr=0.5) if plain else torch.optim.Adam(self.network.parameters(), lr=0.001)
        )
        self.pictures, self.dtype = pictures.to(run.device), dtype
        self.order = Order(len(pictures.labels), batch, 0)
        self.group = Group(0, 1, run.device)
        self.called: Any = self.network

    def steps(self, count: int, until: float = math.inf) -> list[float]:
        """The loss of each of the next steps, of which there is at least one."""
        losses: list[float] = []
        while len(losses) < count and (time.monotonic() < until or not losses):
            if self.order.epoch_is_over:
                self.order.next_epoch()
            indices = self.order.current()
            images, labels = self.pictures.batch(self.group.share(indices).to(self.group.device), self.dtype)
            self.optimizer.zero_grad()
            loss = self.loss(self.called(images), labels) * (len(labels) * self.group.world / len(indices))
            loss.backward()
            self.optimizer.step()
            self.order.advance()
            losses.append(self.group.total(loss.detach() / self.group.world).item())
        return losses

    def accuracy(self, pictures: Pictures) -> float:
        """The share of right answers."""
        pictures = pictures.to(self.group.device)
        with torch.no_grad():
            right = [
                (self.network(images).argmax(1) == labels).sum().item()
                for images, labels in (pictures.batch(part, self.dtype) for part in slices(len(pictures.labels), 500))
            ]
        return sum(right) / len(pictures.labels)

    def state(self) -> bytes:
        """Everything that the next step depends on, as a file."""
        file = io.BytesIO()
        torch.save([thing.state_dict() for thing in (self.network, self.optimizer, self.order)], file)
        return file.getvalue()

    def load(self, state: bytes) -> None:
        """Go back to where `state` was called."""
        found = torch.load(io.BytesIO(state), map_location="cpu", weights_only=True)
        for thing, kept in zip((self.network, self.optimizer, self.order), found, strict=True):
            thing.load_state_dict(kept)


def slices(count: int, step: int) -> Iterator[slice]:
    """Numbers up to `count`, some at a time."""
    return (slice(first, first + step) for first in range(0, count, step))


def digits(run: Run) -> tuple[Pictures, Pictures, str]:
    """MNIST for training and for testing, or the patterns that stand for it; and which of them it is."""
    place = run.data_dir or (Path(os.environ["CNN425_DATA_DIR"]) if os.environ.get("CNN425_DATA_DIR") else None)
    if place is None:
        return pattern_images(4096), pattern_images(1024, seed=1), "patterns of 28x28 pixels (no --data-dir)"
    raw, names = place / "MNIST" / "raw", tuple("0123456789")
    parts = []
    for part in ("train", "t10k"):
        images, labels = (numbers(raw / f"{part}-{what}-ubyte") for what in ("images-idx3", "labels-idx1"))
        parts.append(Pictures(images[16:].view(-1, 1, 28, 28), labels[8:].long(), names))
    return parts[0], parts[1], "MNIST"


def numbers(path: Path) -> Tensor:
    """The bytes of a published file, packed or not."""
    for file, opened in ((path, Path.read_bytes), (path.with_name(f"{path.name}.gz"), lambda p: gzip.decompress(p.read_bytes()))):
        if file.is_file():
            return torch.from_numpy(numpy.frombuffer(opened(file), numpy.uint8).copy())
    raise LabError(f"{path} is missing; --data-dir must hold MNIST/raw/...", 2)


def apart(first: list[float], second: list[float]) -> float:
    """The largest difference of two losses, relative to the first loss."""
    return max((abs(a - b) for a, b in zip(first, second, strict=False)), default=math.inf) / abs(first[0])


def training(run: Run) -> Cases:
    """The same losses with our layers as with torch's."""
    found = [Trainer(run, patterns(), "smallest", sort, torch.float64, batch=3, plain=True) for sort in ("custom", "torch")]
    losses = [trainer.steps(100) for trainer in found]
    yield "patterns, 100 steps in float64", differ_by(apart(*losses), 1e-9)
    yield "patterns, all recognised", "" if found[0].accuracy(patterns()) == 1 else "not all of them are"
    examples, held_out, data = digits(run)
    yield f"{NOTE}digits are {data}", ""
    for model in ("mlp", "conv", "local"):
        pair = [Trainer(run, examples, model, sort, torch.float64).steps(5) for sort in ("custom", "torch")]
        yield f"{model} of digits, 5 steps in float64", differ_by(apart(*pair), 1e-7)
    share, pair, answers = run.left() / 2, [], []
    for sort in ("custom", "torch"):
        trainer = Trainer(run, examples, "conv", sort, torch.float32)
        trainer.steps(2)
        begun = time.monotonic()
        pair.append(trainer.steps(len(pair[0]) if pair else 900, until=begun + share * 0.8 if not pair else begun + share))
        each = (time.monotonic() - begun) / len(pair[-1])
        answers.append(trainer.accuracy(held_out.first(2000)))
        yield f"{NOTE}conv, {sort}: {len(pair[-1])} steps, {each * 1e3:.2f} ms each, {answers[-1]:.2%} of the test right", ""
    yield "conv of digits in float32, first 20 losses", differ_by(apart(pair[0][:20], pair[1][:20]), 1e-2)
    if min(map(len, pair)) >= 300:
        yield "conv of digits in float32, right answers", differ_by(abs(answers[0] - answers[1]), 0.02)


def differ_by(difference: float, allowed: float) -> str:
    """Empty if a difference is allowed."""
    return "" if difference <= allowed else f"they differ by {difference:.2e}, allowed is {allowed:.0e}"


def resume(run: Run) -> Cases:
    """Ten steps, and five, a file, and five."""
    examples, _, _ = digits(run)
    with deterministically():
        for model in ("mlp", "conv", "local"):
            whole, first, second = (Trainer(run, examples, model, "custom", torch.float32, batch=16) for _ in range(3))
            losses = whole.steps(10)
            losses_again = first.steps(5)
            second.load(first.state())
            losses_again += second.steps(5)
            bits = other_bits(*([*t.network.parameters()] for t in (whole, second)))
            yield f"{model}, saved and loaded in the middle", bits or ("" if losses == losses_again else "other losses")


# ---- processes ---------------------------------------------------------------------------------------------------------------------------


def processes(run: Run) -> Cases:
    """Two processes beside one."""
    several = not run.is_cpu and torch.accelerator.device_count() > 1
    backend = "nccl" if several and run.device.type == "cuda" else "gloo"
    if run.device.type not in ("cpu", "cuda"):
        raise LeftOut(f"torch has no process group that is known here for {run.device.type}")
    alone = Trainer(run, examples_of_processes(), "conv", "custom", torch.float64, batch=50).steps(5)
    with tempfile.TemporaryDirectory() as folder:
        words = Path(folder, "losses.json")
        devices = [f"{run.device.type}:{k}" if several else run.name for k in range(2)]
        context = torch.multiprocessing.get_context("spawn")
        started = [
            context.Process(target=one_of_two, args=(rank, backend, devices[rank], f"file://{folder}/meeting", str(words)), daemon=True)
            for rank in range(2)
        ]
        for process in started:
            process.start()
        given = run.left()
        for process in started:
            process.join(max(1.0, run.left()))
        for process in started:
            process.kill()
            process.join()
        codes = [process.exitcode for process in started]
        found = json.loads(words.read_text()) if words.is_file() else []
    name = f"{backend}, {' and '.join(dict.fromkeys(devices))}"
    if not found and -9 in codes and given < ENOUGH:
        raise LeftOut(f"two processes did not end in {max(given, 0):.0f} s, all that was left for them")
    if not found:
        yield name, f"no result; exit codes {codes}" + (f", killed after {given:.0f} s" if -9 in codes else "")
        return
    yield name, differ_by(apart(alone, found), 1e-9)


def examples_of_processes() -> Pictures:
    """Few pictures, in batches that two processes cannot share evenly at the end."""
    return pattern_images(125)


def one_of_two(rank: int, backend: str, device: str, meeting: str, words: str) -> None:
    """What each of the processes does."""
    place = prepared(device)
    dist.init_process_group(backend, init_method=meeting, rank=rank, world_size=2)
    trainer = Trainer(Run(place, 1, None), examples_of_processes(), "conv", "custom", torch.float64, batch=50)
    trainer.called = torch.nn.parallel.DistributedDataParallel(trainer.network, device_ids=[place] if backend == "nccl" else None)
    trainer.group = Group(rank, 2, place)
    losses = trainer.steps(5)
    if rank == 0:
        Path(words).write_text(json.dumps(losses))
    dist.destroy_process_group()


# ---- memory and time ---------------------------------------------------------------------------------------------------------------------


def memory(run: Run) -> Cases:
    """Bytes and milliseconds beside torch's."""
    batch, channels, sides = LARGE["cpu" if run.is_cpu else "device"]
    for name in sorted(LAYERS, key=lambda n: "2d" not in n):
        d = compare_layers.dimensions(name)
        few = channels // 4 if "local" in name and d > 1 else channels
        shape = compare_layers.Options(batch=batch, in_channels=few, out_channels=few, size=sides[d], device=run.name)
        torch.manual_seed(0)
        try:
            ours, theirs, inputs = problem(name, shape)
            found = [taken(step(function, inputs), run) for function in (ours, theirs)]
        except torch.OutOfMemoryError:
            yield f"{NOTE}{name}: does not fit into the memory", ""
            continue
        (mine, my_ms), (others, others_ms) = found
        words = f"ours {mine / 2**20:.1f} MiB, {my_ms:.2f} ms; torch {others / 2**20:.1f} MiB, {others_ms:.2f} ms"
        yield f"{NOTE}{name} {'x'.join(map(str, inputs[0].shape))}: {words}", ""


def taken(call: Callable[[], Any], run: Run) -> tuple[int, float]:
    """The most bytes at once, and the median of some times in milliseconds."""
    call()
    most = peak_bytes(call, run.name)
    return most, statistics.median(clock(call, run.name) for _ in range(7))


# ---- what scripts/conformance.py tries ---------------------------------------------------------------------------------------------------


def conforms(feature: str, run: Run) -> Cases:
    """A feature of the scorecard, one case of each layer after the other."""
    if feature in ("samples", "errors", "modules"):
        if run.minutes < 1:
            raise LeftOut("to read torch's own samples takes a quarter of a minute: --minutes 1 or more")
        with_samples()
    tried = conformance.Options(device=run.name, samples=10**9 if run.minutes > 3 else 10, examples=10**6)
    cases = {layer: conformance.FEATURES[feature](layer, tried) for layer in LAYERS}
    while cases:
        for layer in list(cases):
            try:
                yield next(cases[layer])
            except StopIteration:
                del cases[layer]
            except Exception as error:
                del cases[layer]
                yield f"{layer}: the rest", describe(error)


def with_samples() -> None:
    """Torch's samples can be imported without the library of tests that they share a file with."""
    try:
        import expecttest  # noqa: F401
    except ImportError:
        stand_in: Any = types.ModuleType("expecttest")
        stand_in.TestCase = unittest.TestCase  # the base class of torch's tests, none of which runs here
        sys.modules["expecttest"] = stand_in


def experiments(run: Run) -> Cases:
    """The lab itself: its loop, checkpoints and logs."""
    try:
        from experiments import mnist
        from experiments import patterns as smallest
    except ImportError as error:
        raise LeftOut(f"{error}") from None
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        place = ["--device", run.name, "--log-dir"]
        yield "experiments.patterns", wrong_with(lambda: "" if smallest.main([*place, f"{folder}/smallest"]).holds else "it does not hold")
        words = ["--dataset", "patterns", "--examples", "320", "--model", "conv"]
        losses = [mnist.main([*words, "--layers", sort, *place, f"{folder}/{sort}"]).train_loss for sort in ("custom", "torch")]
        yield "experiments.mnist, ours beside torch's", differ_by(apart(losses[:1], losses[1:]), 1e-2)
        yield "experiments.mnist --compile", wrong_with(lambda: mnist.main([*words, "--compile", *place, f"{folder}/compiled"]) and "")


def compiled(run: Run) -> Cases:
    """The compilers."""
    if run.minutes < 1:
        raise LeftOut("a compiler takes its time: --minutes 1 or more")
    plain = refusal(lambda: torch.compile(lambda x: x * 2 + 1)(torch.ones(3, device=run.device)))
    if plain is not None:
        raise LeftOut(f"torch.compile does not work here: {describe(plain)}")
    for layer in LAYERS:
        for name, wrong in under(COMPILERS, *compare_layers.small(layer, run.name)):
            yield f"{layer} {name}", wrong


SECTIONS: dict[str, tuple[int, Callable[[Run], Cases]]] = {  # by name: a share of the time, and what is tried
    "layers": (8, layers),
    "training": (6, training),
    "resume": (2, resume),
    "deterministic": (2, deterministic),
    "algorithms": (2, every_algorithm),
    "memory": (3, memory),
    "processes": (4, processes),
    "transforms": (6, partial(conforms, "transforms")),
    "arguments": (5, partial(conforms, "arguments")),
    "samples": (8, partial(conforms, "samples")),
    "errors": (1, partial(conforms, "errors")),
    "modules": (2, partial(conforms, "modules")),
    "derivatives": (4, partial(conforms, "derivatives")),
    "experiments": (4, experiments),
    "compile": (8, compiled),
}

# ---- the page ----------------------------------------------------------------------------------------------------------------------------


class Page:
    """The results so far, on the screen and in two files."""

    def __init__(self, folder: Path, about: dict[str, Any], names: list[str]):
        self.folder, self.about = folder, about
        self.sections = [Section(name) for name in names]
        self.written = -math.inf

    def write(self, at_once: bool = True) -> None:
        """Bring the files up to date; not more than once a second, unless it must be."""
        if not at_once and time.monotonic() < self.written + 1:
            return
        content = {**self.about, "verdict": self.verdict(), "sections": [asdict(section) for section in self.sections]}
        for name, text in (("report.json", json.dumps(content, indent=1)), ("report.txt", self.text())):
            half = self.folder / f"{name}.new"
            half.write_text(text + "\n")
            half.replace(self.folder / name)
        self.written = time.monotonic()

    def text(self) -> str:
        """The page."""
        lines = [f"{name:<10} {value}" for name, value in self.about.items()]
        lines += ["", *(row(section) for section in self.sections)]
        for what in ("notes", "failures"):
            found = [f"{section.name}: {words}" for section in self.sections for words in getattr(section, what)]
            lines += ["", f"{what}:", *found] if found else []
        return "\n".join([*lines, "", self.verdict()])

    def failed(self) -> int:
        """How many checks did not pass."""
        return sum(section.tried - section.passed for section in self.sections)

    def verdict(self) -> str:
        """All of it in a line."""
        tried = sum(section.tried for section in self.sections)
        return f"{tried - self.failed()} of {tried} checks passed" + ("" if tried else ": nothing was tried")


def row(section: Section) -> str:
    """A section in a line."""
    return f"{section.name:<14} {section.passed:>5} / {section.tried:<5} {section.seconds:6.1f} s   {section.state}"


def try_all(run: Run, page: Page, end: float) -> None:
    """Every section in its share of the time that is left."""
    todo = [(section, *SECTIONS[section.name]) for section in page.sections]
    for k, (section, weight, function) in enumerate(todo):
        begun = time.monotonic()
        run.until = begun + max(0.0, end - begun) * weight / sum(w for _, w, _ in todo[k:])
        section.state = "cut off"  # what a killed run leaves
        try:
            try_one(section, function, run, page, end)
        finally:
            section.seconds = time.monotonic() - begun
        print(row(section), flush=True)
        page.write()
        if gone := refusal(lambda: torch.ones(1, device=run.device).sum().item()):
            section.failures.append(f"the device does not answer any more: {describe(gone)}")
            section.tried += 1
            for later, *_ in todo[k + 1 :]:
                later.state = "left out: the device does not answer any more"
            break
    page.write()


def try_one(section: Section, function: Callable[[Run], Cases], run: Run, page: Page, end: float) -> None:
    """The cases of a section, until its time is over."""
    if time.monotonic() >= end:
        section.state = "left out: no time is left"
        return
    try:
        for name, wrong in function(run):
            if name.startswith(NOTE):
                section.notes.append(name.removeprefix(NOTE))
            else:
                section.tried += 1
                section.passed += not wrong
                section.failures += [f"{name}: {wrong}"] if wrong else []
            page.write(at_once=False)
            if run.stopped:  # by Ctrl-C in a place that swallowed it
                raise KeyboardInterrupt
            if run.left() <= 0:
                section.state = "as far as its time went"
                return
        section.state = "complete"
    except LeftOut as reason:
        section.state = f"left out: {reason}"
    except LabError:
        raise
    except Exception as error:
        if run.stopped:  # an import that was cut short, and what it broke
            raise KeyboardInterrupt from None
        section.tried += 1
        section.failures.append(f"the rest: {describe(error)}")
        section.state = "ended by an error"


@contextlib.contextmanager
def remembered(run: Run) -> Iterator[None]:
    """Ctrl-C is a KeyboardInterrupt, and the run knows of it, whoever catches that."""

    def stop(*_: Any) -> None:
        run.stopped = True
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:
        signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def alarm(end: float) -> Iterator[None]:
    """An OutOfTime at the end of the time, whatever goes on, where the system has such a signal."""

    def ring(*_: Any) -> None:
        raise OutOfTime

    if not hasattr(signal, "setitimer"):
        yield
        return
    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, max(1e-3, end - time.monotonic()))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# ---- the command -------------------------------------------------------------------------------------------------------------------------


def prepared(name: str) -> torch.device:
    """The device, with sums in full precision and in one order, as on the CPU."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before the first product: deterministic mode wants it
    torch.backends.cudnn.allow_tf32 = False  # else torch's own convolutions round inputs to 10 bits
    torch.set_num_threads(min(4, torch.get_num_threads()))  # the tensors are small
    device = torch_device(name)
    if device.type != "cpu" and device.index is None:
        device = torch.device(device.type, torch.accelerator.current_device_index())
    if device.type == "cuda":
        torch.cuda.set_device(device)  # memory and clocks are those of the current device
    return device


def warmed(run: Run) -> None:
    """The first gradient, for which torch imports a lot, and the device loads its libraries: seconds that belong to no section."""
    x = torch.ones(4, 4, device=run.device, requires_grad=True)
    torch.autograd.grad((x @ x).sum(), x)


def about(run: Run, words: list[str]) -> dict[str, Any]:
    """What the numbers depend on."""
    card = torch.cuda.get_device_properties(run.device) if run.device.type == "cuda" else None
    has_numba = refusal(lambda: __import__("numba")) is None
    return {
        "device": run.name + (f", {card.name}, {card.total_memory / 2**30:.0f} GiB" if card else ""),
        "torch": f"{torch.__version__}" + (f", CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}" if card else ""),
        "python": f"{platform.python_version()}, numpy {numpy.__version__}, {'with' if has_numba else 'without'} numba",
        "machine": f"{platform.platform()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
        "command": shlex.join(["python", "scripts/check_device.py", *words]),
        "begun": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


def refuse(message: str) -> NoReturn:
    """A command line that is wrong."""
    raise LabError(message, 2)


def parsed(words: list[str]) -> argparse.Namespace:
    """The command line; a LabError says what is wrong with it."""
    parser = argparse.ArgumentParser(prog="check_device.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.error = refuse  # type: ignore[method-assign]
    parser.add_argument("--device", default="cuda", help="where to compute: cuda, cuda:1, cpu, ... (default: cuda)")
    parser.add_argument("--minutes", type=float, default=6.0, help="time for all of it (default: 6)")
    parser.add_argument("--only", nargs="+", default=list(SECTIONS), metavar="SECTION", help="some of the sections above (default: all)")
    parser.add_argument("--data-dir", type=Path, help="the folder that holds MNIST/raw/... (default: CNN425_DATA_DIR)")
    parser.add_argument("--out", type=Path, default=Path("runs/check_device"), help="where the page goes (default: runs/check_device)")
    options = parser.parse_args(words)
    if not 0 < options.minutes < math.inf:
        raise LabError(f"--minutes is {options.minutes:g}; it must be more than 0", 2)
    if unknown := [name for name in options.only if name not in SECTIONS]:
        raise LabError(f"--only has no {', '.join(unknown)}; choose from {', '.join(SECTIONS)}", 2)
    return options


def main(argv: list[str] | None = None) -> int:
    """Try everything; 0 if all that was tried passed."""
    begun = time.monotonic()
    words = sys.argv[1:] if argv is None else argv
    try:
        options = parsed(words)
        run = Run(prepared(options.device), options.minutes, options.data_dir)
        if run.data_dir is not None:
            digits(run)
        options.out.mkdir(parents=True, exist_ok=True)
        refuse_foreign(options.out / "report.txt", b"device     ")
        refuse_foreign(options.out / "report.json", b'"device": ')
        page = Page(options.out, about(run, words), [name for name in SECTIONS if name in options.only])
        page.write()
    except LabError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.code
    except OSError as error:
        print(f"error: --out {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    for name, value in page.about.items():
        print(f"{name:<10} {value}", flush=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warmed(run)  # before the alarm: what loads libraries may not be interrupted
        raise_at_ctrl_c()
        with warnings.catch_warnings(), remembered(run), alarm(begun + 60 * options.minutes):
            warnings.simplefilter("ignore")
            try_all(run, page, begun + 60 * options.minutes)
    except OutOfTime:
        page.write()
    except KeyboardInterrupt:
        page.write()
        print(f"stopped; {options.out / 'report.txt'} holds what was found", file=sys.stderr)
        return 130
    failures = [f"{section.name}: {words}" for section in page.sections for words in section.failures]
    print("\n".join([*(f"  {words[:300]}" for words in failures[:20]), page.verdict(), f"all of it: {options.out / 'report.txt'}"]))
    return 1 if page.failed() or not any(section.tried for section in page.sections) else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BrokenPipeError:  # `... | head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
