"""The order in which a run sees its examples: decided by a seed alone, whatever the device, the layers or the number of processes."""

from typing import Any

import torch
from torch import Tensor


class Order:
    """Shuffled batches of indices, epoch after epoch, from a generator of its own; can be saved and resumed between any two batches."""

    def __init__(self, examples: int, batch_size: int, seed: int):
        self.examples, self.batch_size = examples, batch_size
        self.generator = torch.Generator().manual_seed(seed)
        self.batch = 0  # batches of this epoch that are done
        self._begin_epoch()

    def _begin_epoch(self) -> None:
        self.before = self.generator.get_state()  # the permutation is not saved, the state that makes it again is
        self.permutation = torch.randperm(self.examples, generator=self.generator)

    @property
    def batches(self) -> int:
        """Batches in an epoch, the last of which may be smaller."""
        return -(-self.examples // self.batch_size)

    @property
    def epoch_is_over(self) -> bool:
        """Whether every batch of this epoch is done."""
        return self.batch >= self.batches

    def current(self) -> Tensor:
        """The indices of the batch whose turn it is; the same ones until `advance`."""
        start = self.batch * self.batch_size
        return self.permutation[start : start + self.batch_size]

    def advance(self) -> None:
        """The current batch is done."""
        self.batch += 1

    def next_epoch(self) -> None:
        """Draw a new permutation."""
        self.batch = 0
        self._begin_epoch()

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs to go on with the current batch."""
        return {"generator": self.before, "batch": self.batch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to where `state_dict` was called."""
        self.generator.set_state(state["generator"].cpu())
        self._begin_epoch()
        self.batch = state["batch"]
