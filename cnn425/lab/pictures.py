"""Labelled pictures in memory, and the synthetic ones: three 3x3 patterns, and bars whose columns can be restricted.

Brightness runs from 0 (background) to 1 (ink). A whole set is one tensor; a batch is made by indexing.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

# The lecture's three patterns are on slides whose pictures are not in the text; these three are this project's choice: the smallest
# shapes that a single pixel cannot tell apart (each pair shares the centre, and each pattern has three lit pixels).
PATTERNS = {
    "diagonal": ("#..", ".#.", "..#"),
    "vertical": (".#.", ".#.", ".#."),
    "horizontal": ("...", "###", "..."),
}


class Pictures(NamedTuple):
    """Labelled pictures: images `(examples, 1, H, W)`, either uint8 from 0 to 255 or floating from 0 to 1; labels `(examples,)`, int64."""

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]

    def batch(self, indices: Tensor | slice, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
        """The pictures at `indices`, brightness from 0 to 1 in `dtype` (default: that of new networks), and their labels."""
        images, dtype = self.images[indices], dtype or torch.get_default_dtype()
        return (images.to(dtype) / 255 if images.dtype == torch.uint8 else images.to(dtype)), self.labels[indices]

    def to(self, device: torch.device) -> "Pictures":
        """The same pictures on another device."""
        return Pictures(moved(self.images, device), moved(self.labels, device), self.classes)

    def first(self, examples: int) -> "Pictures":
        """The first `examples` pictures."""
        return Pictures(self.images[:examples], self.labels[:examples], self.classes)


def moved(t: Tensor, device: torch.device) -> Tensor:
    """The tensor on a device; a GPU copies it by itself from pinned memory, and the program goes on meanwhile."""
    return t.pin_memory().to(device, non_blocking=True) if device.type == "cuda" and t.is_cpu else t.to(device)


def drawn(rows: Sequence[str]) -> Tensor:
    """A picture from text: `#` is 1, anything else 0; `(rows, columns)`."""
    return torch.tensor([[float(cell == "#") for cell in row] for row in rows])


def patterns(copies: int = 1, noise: float = 0.0, seed: int = 0) -> Pictures:
    """The three 3x3 patterns, each `copies` times, with normal noise of standard deviation `noise`: images `(3 * copies, 1, 3, 3)`."""
    clean = torch.stack([drawn(rows) for rows in PATTERNS.values()]).unsqueeze(1).repeat(copies, 1, 1, 1)
    generator = torch.Generator().manual_seed(seed)
    images = clean + noise * torch.randn(clean.shape, generator=generator) if noise else clean
    return Pictures(images, torch.arange(len(PATTERNS)).repeat(copies), tuple(PATTERNS))


def bars(examples: int, columns: tuple[int, int] = (0, 16), size: int = 16, length: int = 5, noise: float = 0.1, seed: int = 0) -> Pictures:
    """Images `(examples, 1, size, size)` with one bar of `length` pixels, wholly in columns [low, high); the label is its direction.

    Four directions, equally often. Noise is normal, of standard deviation `noise`; pixels are cut to [0, 1].
    """
    if not 0 <= columns[0] <= columns[1] - length <= size - length:
        raise ValueError(f"columns is {columns}; a bar of {length} pixels must fit between them, and they in an image of {size} pixels")
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(examples) % 4
    along = torch.arange(length)
    step_h = torch.tensor([0, 1, 1, -1])[labels]
    step_w = torch.tensor([1, 0, 1, 1])[labels]

    def start(step: Tensor, low: int, high: int) -> Tensor:
        """A first pixel for each bar, uniform over those from which the bar stays in [low, high)."""
        reach = (length - 1) * step
        first, last = low - reach.clamp(max=0), high - reach.clamp(min=0)
        return first + (torch.rand(examples, generator=generator) * (last - first)).long()

    h = start(step_h, 0, size)[:, None] + step_h[:, None] * along
    w = start(step_w, *columns)[:, None] + step_w[:, None] * along
    images = torch.zeros(examples, size, size)
    images[torch.arange(examples)[:, None], h, w] = 1.0
    images = (images + noise * torch.randn(images.shape, generator=generator)).clamp(0, 1)
    return Pictures(images.unsqueeze(1), labels, ("horizontal", "vertical", "falling", "rising"))


def pattern_images(examples: int, size: int = 28, zoom: int = 5, noise: float = 0.2, seed: int = 0) -> Pictures:
    """Images `(examples, 1, size, size)` of one of the three patterns, `zoom` times enlarged, anywhere: for networks made for MNIST."""
    generator = torch.Generator().manual_seed(seed)
    enlarged = patterns().images[:, 0].repeat_interleave(zoom, 1).repeat_interleave(zoom, 2)
    labels = torch.arange(examples) % len(PATTERNS)
    corners = torch.randint(size - 3 * zoom + 1, (examples, 2), generator=generator)
    along = torch.arange(3 * zoom)
    rows, columns = corners[:, :1] + along, corners[:, 1:] + along
    images = torch.zeros(examples, size, size)
    images[torch.arange(examples)[:, None, None], rows[:, :, None], columns[:, None, :]] = enlarged[labels]
    images = (images + noise * torch.randn(images.shape, generator=generator)).clamp(0, 1)
    return Pictures(images.unsqueeze(1), labels, tuple(PATTERNS))
