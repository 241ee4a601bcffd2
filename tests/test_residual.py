"""The experiment on residual blocks: the points, the fence, and a fence of four blocks written down."""

import pytest
import torch

from cnn425 import nn
from cnn425.lab.errors import LabError
from experiments import residual
from experiments.residual import KINDS, Residual, fenced, network, points


def test_points_are_half_in_the_disc_and_half_in_the_ring():
    x, labels = points(500, seed=3)
    radius = x.norm(dim=1)
    assert labels.sum() == 250
    assert radius[labels == 1].max() <= 1
    assert 2 <= radius[labels == 0].min() <= radius[labels == 0].max() <= 3


def block(u, b, v):
    made = Residual("custom", 2).double()
    made.load_state_dict({"into.weight": torch.tensor([u]), "into.bias": torch.tensor([b]), "out.weight": torch.tensor(v)[:, None]})
    return made


def test_two_blocks_written_down_fence_the_disc_in():
    """Fold the plane twice: x1 becomes -|x1| and x2 becomes -|x2|; then -|x1| - |x2| > -1.6 is a diamond."""
    fold = [block([1.0, 0.0], 0.0, [-2.0, 0.0]), block([0.0, 1.0], 0.0, [0.0, -2.0])]
    last = nn.Linear(2, 2).double()
    last.load_state_dict({"weight": torch.tensor([[0.0, 0.0], [1.0, 1.0]]), "bias": torch.tensor([0.0, 1.6])})
    model = torch.nn.Sequential(*fold, last)
    x, labels = points(500, seed=0)
    assert fenced(model)
    assert torch.equal(model(x).argmax(1), labels)


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_no_plain_network_fences_anything_in(depth):
    """Random weights; many of these networks do call something near the centre a disc."""
    models = [network(KINDS[0], depth, "custom", seed) for seed in range(60)]
    x, _ = points(200, seed=1)
    assert any(0 < model(x).argmax(1).sum() < 200 for model in models)
    assert not any(map(fenced, models))


def test_bad_options_are_one_sentence():
    with pytest.raises(LabError, match="--depths is 0; it must be at least 1"):
        residual.main(["--depths", "2", "0"])
