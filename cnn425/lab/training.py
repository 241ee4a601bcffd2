"""The training loop: kill it at any moment, run the same command again, and it ends with the bits it would have ended with.

    for every batch of the order:   loss, gradients, step, one row of metrics        (checkpoint if the last one is old, or if asked to end)
    after every epoch:              held-out loss and accuracy, pictures, checkpoint

Nothing that a result depends on lives outside a checkpoint: weights, optimiser, schedule, order of the examples, sums of the epoch,
random states, lengths of the log files. What happens around the steps is in loop.py.
"""

import contextlib
import copy
import dataclasses
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from cnn425.lab import checkpoint, figures, guards, shards
from cnn425.lab.group import Group
from cnn425.lab.models import namespace, parameters
from cnn425.lab.options import Options, digest, meaning
from cnn425.lab.order import Order
from cnn425.lab.pictures import Pictures, moved
from cnn425.lab.progress import compilation_told

HELD_OUT_BATCH = 1000


class Verdict(NamedTuple):
    """What came out of a run: steps taken, mean loss in nats per example, accuracy from 0 to 1, learnable numbers, the run folder."""

    steps: int
    train_loss: float
    train_accuracy: float
    held_out_loss: float
    held_out_accuracy: float
    parameters: int
    folder: Path


class Evaluation(NamedTuple):
    """Mean loss in nats, accuracy from 0 to 1, and the class given to each picture."""

    loss: float
    accuracy: float
    predictions: Tensor


@dataclass
class Position:
    """Where a run stands: what the loop itself counts. Sums are over the epoch so far, or the last whole one."""

    step: int = 0
    epoch: int = 0
    seen: int = 0
    loss: float = 0.0
    correct: int = 0
    held_out_loss: float = float("inf")
    held_out_accuracy: float = 0.0
    best: float = float("inf")
    epochs_without_better: int = 0
    begun: bool = False
    finished: bool = False


class Training:
    """One run in one process: the model, what trains it, and where it stands."""

    def __init__(self, options: Options, model: nn.Sequential, training: Pictures, held_out: Pictures, group: Group, folder: Path):
        self.options, self.group, self.folder = options, group, folder
        layout = torch.channels_last if options.channels_last else torch.contiguous_format
        self.model = model.to(group.device).to(memory_format=layout)
        self.layout = layout
        self.sharded = options.shard and group.world > 1
        self.shown = copy.deepcopy(self.model) if self.sharded else self.model  # whole, for pictures
        self.network = parallel(self.model, options, group).train()
        self.examples, self.held_out = training.to(group.device), held_out.to(group.device)
        self.loss: nn.Module = namespace(options.layers).CrossEntropyLoss(reduction="sum")
        self.order = Order(len(training.labels), options.batch_size, options.seed)
        self.optimizer = optimizer(self.model, options)
        self.schedule = schedule(self.optimizer, options, self.order.batches * options.epochs)
        self.at = Position()
        self.dtype = next(model.parameters()).dtype

    # ---- one step ------------------------------------------------------------------------------------------------------------------------

    def forward(self, images: Tensor) -> Tensor:
        """The network's answers, `(N, classes)`."""
        with torch.autocast(self.group.device.type, torch.bfloat16, enabled=self.options.amp == "bf16"):
            return self.network(images.contiguous(memory_format=self.layout))

    def step(self, indices: Tensor) -> dict[str, float]:
        """Learn from one batch; the row of metrics. Stops before anything is changed if the loss or a gradient is not finite."""
        share = self.group.share(indices)
        images, labels = self.examples.batch(moved(share, self.group.device), self.dtype)
        answers = self.forward(images)
        loss = self.loss(answers.float() if self.options.amp == "bf16" else answers, labels)
        correct = (answers.detach().argmax(1) == labels).sum()
        sums = self.group.total(torch.stack([loss.detach().double(), correct.double()]))
        total, right = sums.tolist()  # the only wait for the device besides that for the norm
        mean, right = total / len(indices), int(right)
        self.optimizer.zero_grad()
        guards.check_loss(mean, lambda: self.group.gathered(guards.first_culprit(self.model, images)), self.at.step + 1, indices)
        (loss * (self.group.world / len(indices))).backward()
        norm = guards.gradient_norm(self.model, self.options.clip)
        guards.check_gradients(norm, self.model, self.at.step + 1, indices)
        rate = self.optimizer.param_groups[0]["lr"]
        self.optimizer.step()
        self.schedule.step()
        self.at.step += 1
        self.at.seen += len(indices)
        self.at.loss += mean * len(indices)
        self.at.correct += right
        return {
            "step": self.at.step,
            "epoch": self.at.epoch + 1,
            "learning_rate": rate,
            "train_loss": mean,
            "train_accuracy": right / len(indices),
            "gradient_norm": norm,
        }

    # ---- between epochs ------------------------------------------------------------------------------------------------------------------

    def evaluate(self, pictures: Pictures) -> Evaluation:
        """Loss and accuracy over all pictures, each process doing its part of every batch."""
        predictions = torch.zeros(len(pictures.labels), dtype=torch.int64, device=self.group.device)
        sums = torch.zeros(2, dtype=torch.float64, device=self.group.device)
        self.network.eval()
        with torch.no_grad():
            for indices in torch.arange(len(pictures.labels), device=self.group.device).split(HELD_OUT_BATCH):
                share = self.group.share(indices)
                if not len(share):
                    continue
                images, labels = pictures.batch(share, self.dtype)
                answers = self.forward(images).float() if self.options.amp == "bf16" else self.forward(images)
                predictions[share] = answers.argmax(1)
                sums += torch.stack([self.loss(answers, labels).double(), (predictions[share] == labels).sum().double()])
        self.network.train()
        self.group.total(sums)
        self.group.total(predictions)
        loss, right = (sums / len(pictures.labels)).tolist()
        return Evaluation(loss, right, predictions)

    def finish_epoch(self) -> Evaluation:
        """Held-out numbers into the position, and on to the next epoch; early stopping ends the run here."""
        result = self.evaluate(self.held_out)
        at = self.at
        at.held_out_loss, at.held_out_accuracy = result.loss, result.accuracy
        at.epochs_without_better = 0 if result.loss < at.best else at.epochs_without_better + 1
        at.best = min(at.best, result.loss)
        at.epoch += 1
        at.finished = at.epoch >= self.options.epochs or 0 < self.options.patience <= at.epochs_without_better
        return result

    # ---- what a checkpoint holds ---------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """All of it, as tensors and plain Python."""
        own = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        return {
            **(shards.state(self.model, self.optimizer) if self.sharded else own),
            "schedule": self.schedule.state_dict(),
            "order": self.order.state_dict(),
            "position": dataclasses.asdict(self.at),
            "random": self.group.gathered(checkpoint.random_state()),
            "options": meaning(self.options),
            "digest": digest(meaning(self.options)),
            "surroundings": self.surroundings(),
        }

    def surroundings(self) -> dict[str, Any]:
        """What decides about the last bits besides the options."""
        return {"torch": torch.__version__.split("+")[0], "threads": torch.get_num_threads(), "processes": self.group.world}

    def adapt(self, before: dict[str, Any]) -> str:
        """Compute with as many threads as before, unless the options say how many; what else is different now, in words."""
        now = self.surroundings()
        if before.get("processes") == now["processes"] and not self.options.threads and before.get("threads"):
            torch.set_num_threads(before["threads"])
            now = self.surroundings()
        return ", ".join(f"{name} {before[name]} -> {value}" for name, value in now.items() if name in before and before[name] != value)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to where `state_dict` was called."""
        if self.sharded:
            shards.load(self.model, self.optimizer, state)
        else:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.order.load_state_dict(state["order"])
        self.at = Position(**state["position"])
        if len(state["random"]) == self.group.world:
            checkpoint.set_random_state(state["random"][self.group.rank])

    def gather_shown(self) -> nn.Sequential:
        """The whole model as it is now, for pictures, on every process; to be called by all of them."""
        if self.sharded:
            with torch.no_grad():
                for shown, parameter in zip(self.shown.parameters(), self.model.parameters(), strict=True):
                    shown.copy_(shards.whole(parameter.detach()))
        return self.shown

    def gradients(self) -> dict[str, Tensor]:
        """The gradient of the last step by parameter, whole; to be called by all processes."""
        return {name: shards.whole(p.grad) for name, p in self.model.named_parameters() if p.grad is not None}

    def verdict(self) -> Verdict:
        """What the run amounts to so far."""
        at, seen = self.at, max(1, self.at.seen)
        return Verdict(
            at.step, at.loss / seen, at.correct / seen, at.held_out_loss, at.held_out_accuracy, parameters(self.model), self.folder
        )


def parallel(model: nn.Sequential, options: Options, group: Group) -> nn.Module:
    """The model as it is called: compiled if asked for, and one of several copies that share their gradients under torchrun."""
    network: nn.Module = model
    if group.world > 1 and options.shard:
        shards.shard(model, group.world, group.device.type)
    elif group.world > 1:
        network = nn.parallel.DistributedDataParallel(model, device_ids=[group.device] if group.device.type == "cuda" else None)
    if options.compile:
        network = torch.compile(network)  # type: ignore[assignment]
    return network


def optimizer(model: nn.Module, options: Options) -> torch.optim.Optimizer:
    """What changes the weights."""
    kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[options.optimizer]
    return kind(model.parameters(), lr=options.lr)


def schedule(optimizer: torch.optim.Optimizer, options: Options, steps: int) -> LRScheduler:
    """How the learning rate moves, one call per step."""
    if options.schedule == "constant" or steps < 2:
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    return torch.optim.lr_scheduler.OneCycleLR(
        optimizer, options.lr, total_steps=steps + 1, pct_start=options.warmup, div_factor=50, cycle_momentum=False
    )


@contextlib.contextmanager
def exact_sums(device: str) -> Iterator[None]:
    """On a GPU, sums in a fixed order and in the precision of their dtype, as on the CPU: cuBLAS and cuDNN promise neither by default."""
    if device == "cpu":
        yield
        return
    name = "CUBLAS_WORKSPACE_CONFIG"  # read at the first matrix product of the process; without it deterministic mode refuses them
    before = os.environ.get(name)
    os.environ.setdefault(name, ":4096:8")
    try:
        with torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled, allow_tf32=False):
            yield
    finally:
        if before is None:
            os.environ.pop(name, None)


@contextlib.contextmanager
def settings(options: Options, rank: int = 0) -> Iterator[None]:
    """Threads, deterministic algorithms, seeds, the style of figures, a word when loops are compiled; everything as before afterwards."""
    flags: Any = torch.utils.deterministic
    threads, dtype, fill = torch.get_num_threads(), torch.get_default_dtype(), flags.fill_uninitialized_memory
    random = checkpoint.random_state()
    deterministic, warn_only = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.use_deterministic_algorithms(True)
    flags.fill_uninitialized_memory = False
    checkpoint.seed(options.seed, rank)
    try:
        with figures.own_style(), exact_sums(getattr(options, "device", "cpu")), compilation_told():
            yield
    finally:
        torch.set_num_threads(threads)
        torch.set_default_dtype(dtype)
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        flags.fill_uninitialized_memory = fill
        checkpoint.set_random_state(random)
