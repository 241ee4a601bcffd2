"""Distorted pictures, a whole batch at once: at random while a network learns, and fixed sets that ask what it has learnt.

    warped(images, generator, rotation=10, shift=2)     other pictures of the same digits, for training
    stressed(images, "rotated", seed=0)                 the same pictures at every call: how much does a network bear?

A warp is one field of displacements per picture: affine (rotation, scale, shear, shift) plus elastic (Simard, Steinkraus, Platt 2003, "Best
practices for convolutional neural networks applied to visual document analysis"). Each output pixel is read, bilinearly, where the field
points. Brightness runs from 0 (background) to 1 (ink).
"""

import math
from typing import Literal, get_args

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

Stress = Literal["shifted", "rotated", "thick", "thin", "noisy", "shaded"]
STRESSES: tuple[Stress, ...] = get_args(Stress)
COARSE = 5  # points along each side of the elastic field, between which it is interpolated


def warped(
    images: Tensor,
    generator: Generator,
    rotation: float = 0.0,
    shift: float = 0.0,
    scale: float = 0.0,
    shear: float = 0.0,
    elastic: float = 0.0,
) -> Tensor:
    """Images `(N, C, H, W)`, each displaced by a field of its own.

    Uniform: rotation up to so many degrees to either side, shift in pixels per axis, scale per axis from 1/(1+s) to 1+s, shear as the
    tangent of its angle. elastic: the standard deviation of the displacement in pixels.
    """
    n, _, h, w = images.shape
    turn, across, down, wide, high, slant = (2 * torch.rand(6, n, generator=generator) - 1).unbind()
    angle = turn * math.radians(rotation)
    cos, sin, wide, high = angle.cos(), angle.sin(), (1 + scale) ** wide, (1 + scale) ** high
    rows = (cos * wide, (slant * shear - sin) * high, across * 2 * shift / w, sin * wide, cos * high, down * 2 * shift / h)
    field = F.affine_grid(torch.stack(rows, 1).view(n, 2, 3), [n, 1, h, w], align_corners=False)  # where each output pixel is read
    if elastic:
        points = torch.randn(n, 2, COARSE, COARSE, generator=generator) * elastic
        bent = between(h) @ points @ between(w).T
        field = field + bent.permute(0, 2, 3, 1) * torch.tensor((2 / w, 2 / h))
    return F.grid_sample(images, field, align_corners=False)


def between(pixels: int) -> Tensor:
    """How much each of COARSE points counts at each pixel of a side, cubic interpolation: `(pixels, COARSE)`."""
    return F.interpolate(torch.eye(COARSE)[None, None], (pixels, COARSE), mode="bicubic", align_corners=True)[0, 0]


def stressed(images: Tensor, how: Stress, seed: int = 0) -> Tensor:
    """The images `(N, 1, H, W)` made harder, always in the same way under one seed."""
    generator = torch.Generator().manual_seed(seed)
    n, _, h, w = images.shape
    if how == "shifted":
        return warped(images, generator, shift=4)
    if how == "rotated":
        return warped(images, generator, rotation=30)
    if how == "thick":  # each pixel takes the most ink of its 3x3 neighbours
        return F.max_pool2d(images, 3, 1, 1)
    if how == "thin":  # the mean of the picture and of what is left when each pixel takes the least ink of its neighbours
        return (images - F.max_pool2d(-images, 3, 1, 1)) / 2
    if how == "noisy":
        return (images + 0.3 * torch.randn(images.shape, generator=generator)).clamp(0, 1)
    towards = 2 * math.pi * torch.rand(n, generator=generator)  # shaded: a grey ramp over the paper, in a direction of its own per picture
    across, down = torch.linspace(-1, 1, w), torch.linspace(-1, 1, h)
    ramp = towards.cos().view(n, 1, 1, 1) * across + towards.sin().view(n, 1, 1, 1) * down.view(h, 1)
    return images + (1 - images) * (ramp / 2**1.5 + 0.5) * 0.5
