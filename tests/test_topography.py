"""Preferred orientations of bars, how far orientations differ, and when there is a map."""

import math

import pytest
import torch

from cnn425.lab.errors import LabError
from experiments import topography


@pytest.mark.parametrize("degrees", [0, 20, 45, 90, 135, 170])
def test_a_filter_that_is_a_wave_prefers_its_own_orientation(degrees):
    """A bar at so many degrees: anticlockwise from horizontal; rows count down."""
    turn = math.radians(degrees)
    u, v = torch.meshgrid(torch.arange(5.0) - 2, torch.arange(5.0) - 2, indexing="ij")
    across = u * math.cos(turn) + v * math.sin(turn)
    envelope = torch.exp(-(u.square() + v.square()) / 4)  # as wide as it is high
    found = topography.orientations(torch.stack([envelope * (2 * math.pi * across / 4 + phase).cos() for phase in (0, 1, 2)]))
    assert topography.apart(found, torch.full((3,), turn, dtype=torch.float64)).max() < 3


def test_a_horizontal_line_is_at_0_degrees_and_a_rising_one_at_45():
    horizontal, rising = torch.zeros(5, 5), torch.eye(5).flip(0)
    horizontal[2] = 1
    found = torch.rad2deg(topography.orientations(torch.stack([horizontal, rising]))).tolist()
    assert topography.apart(torch.tensor(math.radians(found[0])), torch.tensor(0.0)) < 1
    assert found[1] == pytest.approx(45, abs=1)


def test_orientations_repeat_after_half_a_turn():
    a, b = (torch.tensor(values).deg2rad() for values in ([10.0, 170.0, 0.0, 30.0], [170.0, 10.0, 90.0, 30.0]))
    torch.testing.assert_close(topography.apart(a, b), torch.tensor([20.0, 20.0, 90.0, 0.0]), atol=1e-4, rtol=0)


def test_order_is_of_neighbours_and_of_all_pairs():
    steps = torch.arange(4.0).mul(10).deg2rad()
    slope = steps.expand(1, 4, 4)  # a map that turns by 10 degrees from column to column
    neighbours, pairs = topography.order(slope)
    assert neighbours == pytest.approx(5, abs=1e-3), "0 from row to row"
    differences = [abs(a - b) * 10 for a in range(4) for b in range(4)]
    assert pairs == pytest.approx(16 * sum(differences) / (16 * 15), abs=1e-3)
    beside, everywhere = topography.order(torch.rand(3, 12, 12) * torch.pi)
    assert beside == pytest.approx(45, abs=4)
    assert everywhere == pytest.approx(45, abs=2)


@pytest.mark.parametrize(
    ("accuracies", "neighbours", "holds", "best"),
    [
        ((0.9, 0.9, 0.895), (44.0, 30.0, 15.0), True, 2.0),
        ((0.9, 0.9, 0.88), (44.0, 20.0, 15.0), True, 1.0),  # the clearest costs too much
        ((0.9, 0.9, 0.9), (44.0, 40.0, 30.0), False, 2.0),  # no map
        ((0.9, 0.8, 0.8), (44.0, 20.0, 10.0), False, 1.0),  # a map, but dear
    ],
)
def test_a_map_must_be_clear_and_cheap(accuracies, neighbours, holds, best):
    measured = torch.tensor([accuracies, neighbours, (44.0, 44.0, 44.0)], dtype=torch.float64).unsqueeze(2).repeat(1, 1, 2)
    verdict = topography.judged((0.0, 1.0, 2.0), measured)
    assert (verdict.holds, verdict.best) == (holds, best)


def test_weights_start_at_zero():
    with pytest.raises(LabError, match=r"--weights is \(1.0, 2.0\); ascending numbers are wanted, the first of them 0"):
        topography.main(["--weights", "1", "2"])
