"""LeCun's five networks of 1989: connections and weights as the paper counts them."""

import pytest
import torch

from cnn425.lab.models import parameters
from experiments import ladder

PAPER = {1: (2570, 2570), 2: (3214, 3214), 3: (1226, 1226), 4: (2266, 1132), 5: (5194, 1060)}


@pytest.mark.parametrize("rung", PAPER)
def test_connections_and_weights_are_the_papers(rung):
    model = ladder.network(rung, "custom", seed=0)
    assert (ladder.connections(model), parameters(model)) == PAPER[rung]


def test_lecuns_unit_is_the_scaled_hyperbolic_tangent():
    a = torch.linspace(-20, 20, 401, dtype=torch.float64)
    torch.testing.assert_close(ladder.Squash("custom")(a), 1.7159 * torch.tanh(2 * a / 3), atol=1e-14, rtol=0)


def test_units_of_a_shared_map_have_biases_of_their_own():
    layer = ladder.SharedWindow("custom", 1, 2, 8, 3)
    answer = layer(torch.zeros(1, 1, 16, 16))
    assert answer.shape == (1, 2, 8, 8)
    (gradient,) = torch.autograd.grad(answer[0, 1, 3, 4], layer.bias)
    assert gradient.nonzero().tolist() == [[1, 3, 4]]


@pytest.mark.parametrize(
    ("steps", "helps", "words"),
    [
        ((0.1, -0.002, 0.0, 0.3), True, "not better than the one before: net-3 (-0.2 points), net-4 (+0.0 points)"),
        ((0.1, 0.1, 0.1, 0.1), False, "every network is better than the one before"),
    ],
)
def test_a_ladder_that_does_not_hold_says_which_rungs_are_in_its_way(steps, helps, words):
    verdict = ladder.LadderVerdict(helps, all(step > 0 for step in steps), (), (), (), steps, (), (), ())
    assert verdict.sentence().startswith("both networks that share" if helps else "not both networks that share")
    assert verdict.sentence().endswith(f"; {words}")


@pytest.mark.parametrize("rung", PAPER)
def test_initial_weights_are_within_lecuns_bound_and_biases_zero(rung):
    for name, weight in ladder.network(rung, "custom", seed=3).named_parameters():
        bound = 2.4 / ladder.inputs(weight)
        if name.endswith("bias"):
            assert (weight == 0).all()
        else:
            assert 0.8 * bound < weight.abs().max() <= bound


def test_the_fan_in_is_of_one_unit():
    local, shared = ladder.network(3, "custom", seed=0), ladder.network(5, "custom", seed=0)
    assert [ladder.inputs(net.get_parameter(name)) for net, name in ((local, "2.weight"), (shared, "2.conv.weight"))] == [25, 50]


def test_the_squared_error_is_from_one_for_the_true_class_and_minus_one_for_others():
    outputs, labels = torch.tensor([[1.0, -1.0, 0.0], [0.0, 0.0, 3.0]]), torch.tensor([0, 2])
    assert float(ladder.squared_error(outputs, labels)) == pytest.approx((1 + 1 + 1 + 4) / 6)
