"""Distorted pictures: what each number means, and that the fixed sets are fixed."""

import pytest
import torch

from cnn425.lab.distortions import STRESSES, stressed, warped


def generator():
    return torch.Generator().manual_seed(0)


def blob():
    """A 3x3 square off the centre, many times."""
    images = torch.zeros(64, 1, 28, 28)
    images[:, :, 8:11, 16:19] = 1
    return images


def centres(images):
    """The centre of the ink of each picture, (row, column)."""
    ink = images[:, 0] / images.sum((1, 2, 3)).view(-1, 1, 1)
    along = torch.arange(28.0)
    return torch.stack([(ink.sum(2) * along).sum(1), (ink.sum(1) * along).sum(1)], 1)


def test_nothing_asked_is_nothing_done():
    images = torch.rand(5, 1, 28, 28)
    torch.testing.assert_close(warped(images, generator()), images)


def test_shift_is_in_pixels_along_both_axes():
    moved = centres(warped(blob(), generator(), shift=2)) - centres(blob())
    assert moved.abs().max() <= 2 + 1e-4
    assert moved.amax(0).min() > 1.5
    assert moved.amin(0).max() < -1.5


def test_rotation_is_in_degrees_about_the_centre():
    arm = centres(blob()) - 13.5
    turned = centres(warped(blob(), generator(), rotation=30)) - 13.5
    torch.testing.assert_close(turned.norm(dim=1), arm.norm(dim=1), atol=0.2, rtol=0)
    angles = torch.rad2deg(torch.atan2(turned[:, 0], turned[:, 1]) - torch.atan2(arm[:, 0], arm[:, 1]))
    assert 25 < angles.abs().max() < 31


def test_scale_moves_along_the_arm():
    factor = (centres(warped(blob(), generator(), scale=0.25)) - 13.5) / (centres(blob()) - 13.5)
    assert 1.15 < factor.max() <= 1.26
    assert 0.79 <= factor.min() < 0.86


@pytest.mark.parametrize("how", [{"shear": 0.3}, {"elastic": 1.0}])
def test_every_picture_is_distorted_in_its_own_way(how):
    images = warped(blob(), generator(), **how)
    assert (images[0] - images[1:]).abs().amax((1, 2, 3)).median() > 0.1
    assert torch.equal(images, warped(blob(), generator(), **how)), "the generator decides"


@pytest.mark.parametrize("how", STRESSES)
def test_fixed_sets_are_fixed_and_stay_brightnesses(how):
    images = blob() * 0.9
    hard = stressed(images, how)
    assert hard.shape == images.shape
    assert torch.equal(hard, stressed(images, how))
    assert hard.min() >= 0
    assert hard.max() <= 1
    assert (hard - images).abs().max() > 0.1


def test_thick_has_more_ink_thin_less_and_shade_lies_on_the_paper():
    images = blob()
    assert stressed(images, "thick").sum() > images.sum() > stressed(images, "thin").sum() > 0
    shaded = stressed(images, "shaded")
    assert (shaded[:, :, 8:11, 16:19] == 1).all()
    assert shaded.amax((1, 2, 3)).min() > shaded.amin((1, 2, 3)).max()
