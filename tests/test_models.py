import pytest
import torch

from cnn425.lab.models import build, hooked, parameters

COUNTS = {
    "linear": 7850,
    "mlp": 784 * 256 + 256 + 256 * 10 + 10,
    "conv": 16 * 25 + 16 + 32 * 16 * 25 + 32 + 32 * 49 * 10 + 10,
}


@pytest.mark.parametrize("name", ["linear", "mlp", "local", "conv"])
def test_same_seed_same_weights_whoever_built_the_layers(name):
    ours, theirs, other = build(name, "custom", 4), build(name, "torch", 4), build(name, "custom", 5)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(ours.parameters(), other.parameters(), strict=True))
    images = torch.rand(3, 1, 28, 28)
    torch.testing.assert_close(ours(images), theirs(images))


@pytest.mark.parametrize("name", COUNTS)
def test_parameters_are_counted(name):
    assert parameters(build(name, "custom", 0)) == COUNTS[name]


def test_smallest_network_has_thirty_parameters():
    assert parameters(build("smallest", "custom", 0, size=(3, 3), classes=3)) == 30


@pytest.mark.parametrize("name", ["linear", "mlp", "local", "conv"])
def test_every_layer_with_mathematics_is_ours(name):
    foreign = {type(m).__name__ for m in build(name, "custom", 0).modules() if not type(m).__module__.startswith("cnn425")}
    assert foreign == {"Sequential", "Flatten"}


def test_building_leaves_the_random_state_alone():
    before = torch.get_rng_state()
    build("linear", "custom", 0)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_hook_sees_each_layer_that_has_none_inside_once_and_is_removed():
    model, images, seen = torch.nn.Sequential(torch.nn.Sequential(torch.nn.Flatten()), torch.nn.ReLU()), torch.rand(2, 1, 3, 3), []
    with hooked(model, lambda name, layer, inputs, output: seen.append((name, type(layer).__name__, output.shape))):
        model(images)
    model(images)
    assert seen == [("0.0", "Flatten", (2, 9)), ("1", "ReLU", (2, 9))]
