import math
import pickle

import pytest
import torch
from torch import nn

from cnn425.lab import guards


def model():
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))


def test_first_culprit_is_the_first_layer_not_the_last():
    broken = model()
    with torch.no_grad():
        broken[1].weight[0, 0] = math.inf
    with pytest.raises(guards.NotFiniteError, match=r"before step 7: the loss is nan, first seen in layer 1 \(Linear\), for examples 4, 9"):
        guards.check_loss(math.nan, lambda: [guards.first_culprit(broken, torch.ones(2, 4))], 7, torch.tensor([4, 9]))


def test_the_culprit_may_be_in_the_part_of_another_process():
    with pytest.raises(guards.NotFiniteError, match="first seen in layer 3"):
        guards.check_loss(math.inf, lambda: [guards.LOSS, "layer 3 (Linear)"], 1, torch.tensor([0]))


def test_bad_pictures_are_named():
    assert guards.first_culprit(model(), torch.full((1, 4), math.nan)) == "the images themselves"


def test_finite_passes():
    guards.check_loss(1.0, lambda: pytest.fail("nobody asks for a culprit"), 1, torch.tensor([0]))
    guards.check_gradients(1.0, model(), 1, torch.tensor([0]))


def test_gradient_culprit_is_the_one_nearest_the_loss():
    net = model()
    net(torch.ones(1, 4)).sum().backward()
    net[1].weight.grad[0, 0] = math.nan
    with pytest.raises(guards.NotFiniteError, match=r"length of the gradient is nan, first seen in 1.weight"):
        guards.check_gradients(guards.gradient_norm(net), net, 3, torch.tensor([0]))


def test_clipping_keeps_direction_and_shortens():
    net = model()
    (net(torch.ones(1, 4)).sum() * 100).backward()
    before = [p.grad.clone() for p in net.parameters()]
    norm = guards.gradient_norm(net, most=0.5)
    assert norm > 0.5
    assert guards.gradient_norm(net) == pytest.approx(0.5, rel=1e-4)
    for p, g in zip(net.parameters(), before, strict=True):
        torch.testing.assert_close(p.grad, g * 0.5 / norm, rtol=1e-3, atol=1e-7)
    assert guards.gradient_norm(net, most=10.0) == pytest.approx(0.5, rel=1e-4), "short gradients are left alone"


def test_a_model_that_was_searched_is_as_it_was():
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    guards.first_culprit(net, torch.ones(2, 4))
    guards.first_culprit(net, torch.full((1, 4), math.nan))
    pickle.dumps(net)  # the hooks of a search could not be
