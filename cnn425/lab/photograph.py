"""Pictures from anywhere as MNIST draws its digits: any format, size and colours, photographed under any light, on any paper.

grey      turned as EXIF says, on paper where it is transparent
ink       what differs from the brightness of the paper around it; without noise, specks and the lines of ruled paper
digit     the ink cut out, scaled and centred
"""

import contextlib
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional as F

from cnn425.lab.errors import LabError, first_line

SIDE, INK = 28, 20  # pixels: MNIST's digits fill 20x20 pixels of 28x28, their centre of mass in the middle
FINE, COARSE = 448, 112  # pixels of the longer side at which a photograph is looked at: for the digit, and for the paper


def picture(path: Path) -> Tensor:
    """Any picture as MNIST draws its digits: bright ink on black, scaled to 20x20 pixels, centred by mass in 28x28; `(1, 1, 28, 28)`."""
    return read_picture(path)[0]


def read_picture(path: Path) -> tuple[Tensor, bool]:
    """The picture `(1, 1, 28, 28)`, and whether there seems to be more than one digit in it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about EXIF that Pillow cannot read: the picture can be
            with Image.open(path) as opened:
                opened.load()
                with contextlib.suppress(Exception):  # many types, on EXIF that cannot be read, or not be packed again once it has turned
                    ImageOps.exif_transpose(opened, in_place=True)
                grey = brightness(opened)
    except OSError as error:
        raise LabError(f"{path} cannot be read as a picture: {error.strerror or first_line(error)}") from None
    except Exception as error:  # Pillow raises many types on damaged files
        raise LabError(f"{path} cannot be read as a picture: {first_line(error)}") from None
    ink, several = inked(shrunk(grey, FINE))
    if ink is None:
        raise LabError(f"{path} is empty: all its pixels have nearly the same brightness")
    lit = (ink > 0.2).nonzero()
    (top, left), (bottom, right) = lit.amin(0).tolist(), (lit.amax(0) + 1).tolist()
    return centred(ink[top:bottom, left:right])[None, None], several


def brightness(image: Image.Image) -> Tensor:
    """The picture in grey `(H, W)`, 0 to 1; where it is transparent, on white paper, or on black if its ink would not be seen there."""
    if image.mode[0] in "IF":  # 16 or 32 bits in units of the file's own: Pillow would cut them at 255
        wide = torch.from_numpy(numpy.array(image, dtype=numpy.float32)).nan_to_num(0.0, 0.0, 0.0)
        low, high = wide.min(), wide.max()
        return (wide - low) / (high - low).clamp(min=1e-6)
    if image.mode == "LAB":  # Pillow cannot convert it; L is brightness
        return grey_values(image.getchannel(0))
    if not image.has_transparency_data:
        return grey_values(image.convert("RGB").convert("L"))
    papers = []
    for colour in ("white", "black"):
        flat = Image.new("RGBA", image.size, colour)
        flat.alpha_composite(image.convert("LA").convert("RGBA") if image.mode == "La" else image.convert("RGBA"))
        papers.append(grey_values(flat.convert("L")))
    white, black = ((paper.max() - paper.min()) for paper in papers)
    return papers[1] if white < black / 4 else papers[0]


def grey_values(image: Image.Image) -> Tensor:
    """A picture of one channel of 8 bits, `(H, W)`; 0 to 1."""
    return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(image.height, image.width).float() / 255


def inked(grey: Tensor) -> tuple[Tensor | None, bool]:
    """How much ink is where, 0 to 1, whatever the light, the grain and the lines of the paper, and whether it seems to be several digits.

    Ink is what differs from the paper's brightness around it, to the side that has more of that; None if nothing does.
    """
    paper = resized(paper_of(shrunk(grey, COARSE)), grey.shape)
    away = grey - paper
    dark = away.clamp(max=0).square().sum() >= away.clamp(min=0).square().sum()
    ink = -away / paper.clamp(min=0.1) if dark else away / (1 - paper).clamp(min=0.1)
    noise = grain(ink)
    ink = without_lines(ink, noise).clamp(min=0)
    rough = shrunk(ink, COARSE)
    peak = smooth(rough).max()
    if peak < 0.05:
        return None, False
    found = parts(rough > 0.25 * peak)
    near = F.max_pool2d(torch.stack(found).any(0)[None, None].float(), 5, 1, 2)[0, 0]  # specks are not
    ink = (ink - 3 * noise).clamp(min=0) * (resized(near, ink.shape) > 0)
    return (ink / (ink.max() if noise < 1e-4 else 0.9 * smooth(ink).max())).clamp(max=1), several(found)


def shrunk(values: Tensor, longest: int) -> Tensor:
    """A picture `(H, W)` whose longer side has at most so many pixels."""
    scale = longest / max(values.shape)
    return values if scale >= 1 else resized(values, [max(1, round(side * scale)) for side in values.shape])


def resized(values: Tensor, size: Sequence[int]) -> Tensor:
    """A picture `(H, W)` in another size, pixels averaged where it becomes smaller."""
    if values.shape == torch.Size(size):
        return values
    return F.interpolate(values[None, None], list(size), mode="bilinear", antialias=True, align_corners=False)[0, 0]


def smooth(values: Tensor) -> Tensor:
    """Means over 3x3 pixels."""
    return F.avg_pool2d(values[None, None], 3, 1, 1)[0, 0]


def grain(values: Tensor) -> float:
    """The standard deviation of the noise, at most 0.1: what is left when everything smooth and every edge is taken away."""
    if min(values.shape) < 3:
        return 0.0
    mask = torch.tensor([[1.0, -2, 1], [-2, 4, -2], [1, -2, 1]]) / 6
    rough = F.conv2d(values[None, None], mask[None, None]).abs().median()
    return float(1.4826 * torch.minimum(rough, values.abs().median()).clamp(max=0.1))


def paper_of(grey: Tensor) -> Tensor:
    """The brightness that the paper has or would have at every pixel `(H, W)`: the same everywhere, or a polynomial of degree 4.

    Both are found at the border, where there is little ink, the polynomial then everywhere, pixels that are far from it counting little
    (iteratively reweighted least squares). The one that explains more pixels is taken: an even paper explains no shadow, a polynomial no
    ink.
    """
    h, w = grey.shape
    near = 0.03 + 2 * grain(grey)
    edge = max(1, round(0.08 * min(h, w)))
    border = torch.ones(h, w, dtype=torch.bool)
    border[edge : h - edge, edge : w - edge] = False
    levels = grey[border].sort().values
    first, last = (torch.searchsorted(levels, levels + sign * near) for sign in (-1, 1))
    most = (last - first).argmax()
    even = levels[first[most] : last[most]].median().expand(h, w)
    y, x = (torch.linspace(-1, 1, side, dtype=torch.float64) for side in (h, w))
    values, weights = grey.double().flatten(), border.flatten().double()
    for degree, times in ((2, 8), (4, 4)):
        basis = torch.stack([(y[:, None] ** a * x**b).flatten() for a in range(degree + 1) for b in range(degree + 1 - a)], 1)
        for _ in range(times):
            weighted = basis * weights[:, None]
            ridge = 1e-6 * weights.sum() * torch.eye(basis.shape[1], dtype=torch.float64)  # a picture of one row has one x too few
            curved = basis @ torch.linalg.solve(weighted.T @ basis + ridge, weighted.T @ values)
            far = (values - curved).abs()
            spread = max(3 * float(far[border.flatten()].median()), 0.01)
            weights = border.flatten() / (far + 0.01) if degree == 2 else 1 / (1 + (far / spread).square()).square()
    papers = (even, curved.view(h, w).float())
    return max(papers, key=lambda paper: int(((grey - paper).abs() < near).sum()))


def without_lines(ink: Tensor, noise: float) -> Tensor:
    """The ink `(H, W)` without thin lines from one side of the picture to the other: each becomes what is above and below it."""
    for _ in range(2):
        h, w = ink.shape
        pieces = torch.stack([piece.median(1).values for piece in ink.tensor_split(min(8, w), 1)]).sort(0).values
        lined = pieces[len(pieces) > 3 and 1] > max(0.03, 3 * noise / max(1, w / 8) ** 0.5)  # in all pieces of the row but one
        ink = ink.clone()
        rows = lined.nonzero().flatten()
        for run in rows.tensor_split((rows.diff() > 1).nonzero().flatten() + 1):  # those that follow one another
            sides = torch.cat((run[:1] - 1, run[-1:] + 1))
            sides = sides[(sides >= 0) & (sides < h)]
            if len(sides) and len(run) <= 0.04 * h:
                ink[run] = torch.minimum(ink[run], ink[sides].amax(0))
        ink = ink.T
    return ink


def parts(mask: Tensor) -> list[Tensor]:
    """The connected parts of a mask `(H, W)`, a mask each, the largest first, without those of less than a twentieth of it."""
    h, w = mask.shape
    labels = torch.arange(1.0, h * w + 1).view(h, w) * mask  # of a part that of its last pixel wins
    while not torch.equal(labels, grown := F.max_pool2d(labels[None, None], 3, 1, 1)[0, 0] * mask):
        labels = grown.flatten()[(grown.long() - 1).clamp(min=0)] * mask  # the label of the pixel that gave it, in ever longer steps
    names, counts = labels[mask].unique(return_counts=True)
    order = counts.argsort(descending=True)
    return [labels == name for name, count in zip(names[order], counts[order], strict=True) if 20 * count >= counts.max()]


def several(found: Sequence[Tensor]) -> bool:
    """Whether two parts lie side by side, or one above the other, and are of similar height and not too different in area."""
    boxes = [(part.nonzero().amin(0), part.nonzero().amax(0) + 1, int(part.sum())) for part in found]
    for k, (low, high, area) in enumerate(boxes):
        for low2, high2, area2 in boxes[k + 1 :]:
            apart = bool(((high < low2) | (high2 < low)).any())
            heights = sorted((int(high[0] - low[0]), int(high2[0] - low2[0])))
            if apart and heights[0] >= 0.5 * heights[1] and min(area, area2) >= 0.2 * max(area, area2):
                return True
    return False


def centred(ink: Tensor) -> Tensor:
    """Ink `(H, W)` scaled so that its longer side has 20 pixels, its centre of mass in the middle of 28x28."""
    scale = INK / max(ink.shape)
    h, w = (max(1, round(side * scale)) for side in ink.shape)
    small = resized(ink, (h, w)).clamp(0, 1)
    mass = small.sum().clamp(min=1e-6)
    row = float((small.sum(1) * torch.arange(h)).sum() / mass)
    column = float((small.sum(0) * torch.arange(w)).sum() / mass)
    top = min(max(0, round((SIDE - 1) / 2 - row)), SIDE - h)
    left = min(max(0, round((SIDE - 1) / 2 - column)), SIDE - w)
    whole = torch.zeros(SIDE, SIDE)
    whole[top : top + h, left : left + w] = small
    return whole
