"""The experiment on activations: its one matrix, its lower bound on XOR, its tiny network with the answer written out."""

import math

import pytest
import torch

from cnn425 import nn
from cnn425.lab.errors import LabError
from experiments import nonlinearity
from experiments.nonlinearity import ODD, XOR, collapse_error, collapsed, network


def test_two_layers_with_the_answer_written_out():
    """W2 W1 = [[1, 2]] [[1, 0], [3, 1]] = [[7, 2]] and W2 b1 + b2 = 1 * 5 + 2 * -1 + 4 = 7."""
    model = torch.nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    for parameter, values in zip(model.parameters(), ([[1.0, 0.0], [3.0, 1.0]], [5.0, -1.0], [[1.0, 2.0]], [4.0]), strict=True):
        parameter.data = torch.tensor(values)
    W, b = collapsed(model)
    assert W.tolist() == [[7.0, 2.0]]
    assert b.tolist() == [7.0]


@pytest.mark.parametrize("depth", [1, 2, 7])
def test_the_order_of_the_product_and_every_bias_count(depth):
    assert collapse_error("custom", depth) < 100


def test_no_affine_answer_beats_guessing_on_xor():
    loss = nn.CrossEntropyLoss()
    lowest = min(loss(XOR @ torch.randn(2, 2, dtype=XOR.dtype) * scale, ODD).item() for scale in (0.01, 0.1, 1, 10) for _ in range(25))
    assert math.log(2) <= lowest < math.log(2) + 0.01


def test_two_rectified_units_are_enough_for_xor():
    """|x1 - x2| = relu(x1 - x2) + relu(x2 - x1)."""
    model = network("two layers, ReLU", "custom", hidden=2, seed=0)
    weights = ([[1.0, -1.0], [-1.0, 1.0]], [0.0, 0.0], [[0.0, 0.0], [1.0, 1.0]], [0.5, 0.0])
    for parameter, values in zip(model.parameters(), weights, strict=True):
        parameter.data = torch.tensor(values, dtype=torch.float64)
    assert torch.equal(model(XOR).argmax(1), ODD)


def test_bad_options_are_one_sentence():
    with pytest.raises(LabError, match="--hidden is 0; it must be at least 1"):
        nonlinearity.main(["--hidden", "0"])
