"""The experiment on width: constructions that must meet the target where they are pinned, and polynomials that must not."""

import pytest
import torch

from cnn425.lab.errors import LabError
from experiments import approximation_width
from experiments.approximation_width import TARGETS, constructed, error, floor, network


@pytest.mark.parametrize("target", TARGETS)
def test_the_polygon_meets_the_target_at_every_corner(target):
    corners = torch.arange(9, dtype=torch.float64) / 8
    y = constructed("ReLU", "custom", 8, TARGETS[target])(corners[:, None])[:, 0]
    torch.testing.assert_close(y, TARGETS[target](corners))


@pytest.mark.parametrize("target", TARGETS)
def test_the_staircase_meets_the_target_between_its_steps(target):
    """Half a step from the nearest centre, a unit of steepness 20 per step is exp(-10) from its limit."""
    corners = torch.arange(9, dtype=torch.float64) / 8
    y = constructed("sigmoid", "custom", 8, TARGETS[target])(corners[:, None])[:, 0]
    torch.testing.assert_close(y, TARGETS[target](corners), atol=2e-4, rtol=0)


def test_the_polygon_obeys_its_bound():
    """A polygon through n + 1 points of a function is off by at most max |f''| / (8 n^2); here f = x^2, so 1 / (4 n^2)."""
    model = constructed("ReLU", "custom", 10, torch.square)
    x = approximation_width.GRID
    largest = (model(x[:, None])[:, 0] - x**2).abs().max().item()
    assert largest == pytest.approx(1 / 400, rel=1e-3)


@pytest.mark.parametrize(("name", "degree"), [("square", 2), ("cube", 3)])
@pytest.mark.parametrize("width", [1, 5, 40])
def test_a_polynomial_activation_never_leaves_its_degree(name, degree, width):
    """Any weights, not only the constructed ones: the next difference of equally spaced answers vanishes."""
    y = network(name, "custom", width)(torch.linspace(-3, 3, 30, dtype=torch.float64)[:, None])[:, 0].detach()
    assert y.diff(n=degree + 1).abs().max() < 1e-12 * max(1, float(y.abs().max()))
    assert y.diff(n=degree).abs().max() > 1e-6
    f = TARGETS["wave"]
    assert error(constructed(name, "custom", width, f), f) > 0.999 * floor(degree, f)


def test_a_polynomial_is_its_own_best_polynomial():
    assert floor(2, torch.square) < 1e-12 < floor(1, torch.square)


def test_bad_options_are_one_sentence():
    with pytest.raises(LabError, match="--largest is 4; it must be at least 8"):
        approximation_width.main(["--largest", "4"])
