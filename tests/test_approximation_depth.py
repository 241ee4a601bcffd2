"""The experiment on depth: constructions pinned at the points they go through, and the cage of one unit per layer."""

import pytest
import torch

from cnn425 import nn
from cnn425.lab.errors import LabError
from experiments import approximation_depth
from experiments.approximation_depth import BUILDERS, TARGETS, Residual, error, monotone_floor, one_unit, residual, three_units, two_units
from experiments.approximation_width import constructed

X = torch.linspace(0, 1, 501, dtype=torch.float64)


def answers(model, x=X):
    return model(x[:, None])[:, 0].detach()


@pytest.mark.parametrize("target", TARGETS)
def test_the_zigzag_of_two_units_meets_the_target_at_the_end_of_every_cell(target):
    ends = torch.arange(9, dtype=torch.float64) / 8
    torch.testing.assert_close(answers(two_units("custom", 16, TARGETS[target]), ends), TARGETS[target](ends))


@pytest.mark.parametrize("target", TARGETS)
def test_deep_and_narrow_is_wide_and_shallow_laid_on_its_side(target):
    wide, deep = (build("custom", 12, TARGETS[target]) for build in (lambda *a: constructed("ReLU", *a), three_units))
    torch.testing.assert_close(answers(deep), answers(wide))


@pytest.mark.parametrize("target", TARGETS)
def test_every_step_of_the_residual_network_drops_to_its_place(target):
    middles = (torch.arange(7, dtype=torch.float64) + 0.5) / 7
    torch.testing.assert_close(answers(residual("custom", 21, TARGETS[target]), middles), TARGETS[target](middles), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", BUILDERS)
def test_no_layer_is_wider_than_its_name_says(name):
    model = BUILDERS[name]("custom", 24, TARGETS["wave"])
    widths = {layer.out_features for layer in model[:-1] if isinstance(layer, nn.Linear)} | {
        block.into.out_features for block in model if isinstance(block, Residual)
    }
    assert widths == {{"two units": 2, "three units": 3}.get(name, 1)}


def random_one_unit(depth):
    parts = []
    for _ in range(depth):
        layer = nn.Linear(1, 1).double()
        layer.weight.data.mul_(3)
        parts += [layer, nn.ReLU()]
    return torch.nn.Sequential(*parts, nn.Linear(1, 1).double())


@pytest.mark.parametrize("depth", [1, 3, 6])
def test_any_plain_network_of_one_unit_is_a_line_cut_off_twice(depth):
    """Monotone, and of its 500 slopes all that are neither zero nor next to a corner are one and the same."""
    moving = 0
    for _ in range(20):
        slopes = answers(random_one_unit(depth)).diff()
        assert (slopes >= 0).all() or (slopes <= 0).all()
        inside = slopes[slopes.abs() > 1e-14][1:-1]
        if len(inside):
            torch.testing.assert_close(inside, inside[:1].expand_as(inside), atol=1e-12, rtol=1e-6)
            moving += len(inside) < len(slopes) - 2
    assert moving or depth > 1, "no network was cut off: the test would say nothing"


def test_a_monotone_target_has_no_floor_and_a_tent_has_one_sixth():
    """The best rising function follows the tent up to x = 1/3 and stays there: it misses a triangle of 1/18 and one of 1/9."""
    assert monotone_floor(torch.square) == 0
    assert monotone_floor(lambda x: 1 - (2 * x - 1).abs()) == pytest.approx(1 / 6, abs=1e-3)


def test_the_plain_network_stays_above_the_floor_and_depth_does_not_help_it():
    f = TARGETS["wave"]
    shallow, deep = (error(one_unit("custom", depth, f), f) for depth in (2, 30))
    assert deep == pytest.approx(shallow, abs=1e-12)
    assert deep > monotone_floor(f)


def test_bad_options_are_one_sentence():
    with pytest.raises(LabError, match="--deepest is 4; it must be at least 32"):
        approximation_depth.main(["--deepest", "4"])
