"""How close the pixels of a unit lie, the twin's largest weights, and what beta-lasso prunes."""

import math

import pytest
import torch

from cnn425.lab.errors import LabError
from cnn425.lab.pictures import bars
from experiments import locality


def test_pixels_drawn_at_random_have_locality_one_and_patches_less():
    generator = torch.Generator().manual_seed(0)
    scattered = torch.rand(200, 16, 16, generator=generator) < 0.1
    assert locality.locality(scattered) == pytest.approx(1, abs=0.02)
    patches = torch.zeros(25, 16, 16, dtype=torch.bool)
    for k in range(25):
        patches[k, k // 5 * 3 : k // 5 * 3 + 3, k % 5 * 3 : k % 5 * 3 + 3] = True
    assert locality.locality(patches) < 0.4


def test_locality_of_two_units_by_hand():
    looks = torch.zeros(3, 1, 4, dtype=torch.bool)
    looks[0, 0, [0, 1]] = looks[1, 0, [2, 3]] = looks[2, 0, 0] = True  # one pixel alone is no pair
    assert locality.locality(looks) == pytest.approx(math.sqrt(1 / ((4 + 9 + 1 + 4) / 4)))
    assert locality.locality(looks[:1]) == 1


def test_the_twin_keeps_as_many_of_its_largest_weights():
    weight = torch.tensor([[3.0, -5.0, 1.0, 0.0], [1.0, 2.0, 3.0, -4.0]]).reshape(2, 2, 2)
    kept = locality.largest(weight, torch.tensor([2, 1])).flatten(1)
    assert kept.tolist() == [[True, True, False, False], [False, False, False, True]]


def test_weights_below_beta_times_the_penalty_are_zero_and_none_without_a_penalty():
    options = locality.LocalityOptions(steps=5, beta=50)
    pictures = bars(64, seed=0)
    pruned, plain = (locality.weights(locality.trained(penalty, options, pictures, 0)) for penalty in (5e-4, 0.0))
    assert pruned.shape == (100, 16, 16)
    assert (plain != 0).all()
    left = pruned[pruned != 0].abs()
    assert 0 < len(left) < pruned.numel()
    assert left.min() >= 50 * 5e-4


@pytest.mark.parametrize(("leads", "sure"), [((0.1, 0.11, 0.09), True), ((0.1, 0.3, -0.2), False), ((-0.1, -0.1, -0.1), False)])
def test_a_lead_must_be_sure(leads, sure):
    assert locality.ahead(torch.tensor(leads)) is sure


def test_penalties_are_positive():
    with pytest.raises(LabError, match=r"--penalties is \(0.0, 0.1\); positive numbers, ascending, are wanted"):
        locality.main(["--penalties", "0", "0.1"])
