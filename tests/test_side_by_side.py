"""Two networks layer by layer: who differs, by how many roundings, and where they part first."""

import copy
import time

import pytest
import torch
from torch import nn

import cnn425.nn as ours
from cnn425.lab.errors import LabError
from cnn425.lab.models import build
from cnn425.lab.side_by_side import first_parting, parted, side_by_side, units

ALLOWED = dict.fromkeys((torch.float64, torch.float32, torch.bfloat16), 100.0)


def clock(call):
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def report(first, second, images=None):
    images = torch.rand(3, 1, 8, 8) if images is None else images
    layers = side_by_side(first, second, images, torch.arange(3) % 2)
    return [parted(layer, ALLOWED, 1, clock, lambda call: 7) for layer in layers]


def small():
    return nn.Sequential(ours.Conv2d(1, 2, 3), ours.ReLU(), ours.MaxPool2d(2), nn.Flatten(), ours.Linear(18, 2))


def test_a_network_does_not_part_from_itself():
    model = small()
    layers = report(model, copy.deepcopy(model))
    assert {q["so_far"] for layer in layers for q in layer["quantities"]} == {0.0}
    assert first_parting(layers).startswith("they do not part: the largest difference is 0 units")
    assert [q["name"] for q in layers[0]["quantities"]] == ["output", "adjoint of the input", "gradient of weight", "gradient of bias"]
    assert layers[0]["bytes"] == [7, 7]


def test_one_changed_weight_is_found_and_the_layers_behind_it_are_not_to_blame():
    model = small()
    changed = copy.deepcopy(model)
    with torch.no_grad():
        changed[4].weight[1, 3] += 0.1
    layers = report(model, changed)
    assert first_parting(layers).startswith("they part first at layer 4 (Linear), output")
    assert first_parting(layers).endswith("the layer itself makes the difference")
    assert all(q["alone"] <= 1 for layer in layers[:4] for q in layer["quantities"])
    worst = layers[4]["quantities"][0]
    assert worst["first"] != worst["second"]
    assert len(worst["at"]) == 2


def test_a_winner_that_rounding_changed_is_told_from_a_wrong_layer():
    """Two pixels a rounding apart win in turn: nobody is wrong, and yet the adjoint goes to another place."""

    class Rounded(nn.Identity):
        def forward(self, x):
            return x.bfloat16().float()

    images = torch.zeros(3, 1, 2, 2)
    images[:, 0, 0] = torch.tensor([1.0, 1.001])
    first = nn.Sequential(nn.Identity(), ours.MaxPool2d(2), nn.Flatten(), ours.Linear(1, 2))
    second = copy.deepcopy(first)
    second[0] = Rounded()
    first[0].__class__ = type("Rounded", (nn.Identity,), {})
    layers = report(first, second, images)
    sentence = first_parting([layers[1]])
    assert sentence.startswith("they part first at layer 1 (MaxPool2d)")
    assert sentence.endswith("given the same numbers the layer agrees, but it was given others, and another cell wins a window")
    adjoint = layers[1]["quantities"][1]
    assert adjoint["so_far"] > 1e6
    assert adjoint["alone"] == 0


@pytest.mark.parametrize("other", ["torch", "bfloat16"])
def test_the_networks_of_the_project(other):
    model = build("conv", "custom", 0, size=(8, 8), classes=2, channels=(2, 2))
    if other == "torch":
        second = build("conv", "torch", 0, size=(8, 8), classes=2, channels=(2, 2))
        second.load_state_dict(model.state_dict())
    else:
        second = copy.deepcopy(model).bfloat16()
    layers = report(model, second)
    assert max(q["alone"] for layer in layers for q in layer["quantities"]) < 30


def test_units_are_of_the_coarser_dtype():
    a = torch.tensor([1.0, 0.5])
    assert units(a, a) == 0
    assert units(torch.tensor([1.0 + 2**-23, 0.5]), a) == 2
    assert units((a * 1.01).double(), a.bfloat16()) == pytest.approx(0.01 / 2**-8, rel=1e-2)
    assert units(a, torch.zeros(2)) == float("inf")
    assert units(torch.zeros(2), torch.zeros(2)) == 0


def test_networks_of_other_layers_are_one_sentence():
    with pytest.raises(LabError, match="the two networks have other layers"):
        report(small(), small()[:3])
    with pytest.raises(LabError, match="cannot be applied to these images"):
        report(small(), small(), torch.rand(3, 2, 8, 8))
