"""How alike the positions are, and sharing by force: definitions position by position, and of every kind of layer."""

import copy
import itertools

import pytest
import torch
from torch.nn.utils import prune

from cnn425 import nn
from cnn425.nn.sharing import sets_of_positions

float64 = {"dtype": torch.float64}
LAYERS = {
    "local": lambda: nn.LocallyConnected2d(2, 3, (5, 6), 3, **float64),
    "1-D": lambda: nn.LocallyConnected1d(2, 3, 6, 3, **float64),
    "3-D": lambda: nn.LocallyConnected3d(1, 2, (4, 3, 5), 2, **float64),
    "blocks": lambda: nn.LocallyConnected2d(2, 3, (7, 8), 3, share=(2, 3), **float64),
    "tiles": lambda: nn.LocallyConnected2d(2, 3, (7, 8), 3, tile=(2, 3), **float64),
    "low rank": lambda: nn.LowRankLocal2d(2, 3, (5, 6), 3, rank=2, **float64),
}


def built(name):
    layer = LAYERS[name]()
    for p in layer.parameters():
        torch.nn.init.normal_(p)
    return layer


def filters(layer):
    """The filter of each position and channel, from the unshared layer."""
    return layer.unshared().weight.flatten(layer.dimensions + 1)


@pytest.mark.parametrize("name", LAYERS)
def test_neighbours_one_pair_after_the_other(name):
    layer = built(name)
    w, d = filters(layer), layer.dimensions
    cosines, squares = [], []
    for place in itertools.product(*map(range, w.shape[:d])):
        for side in range(d):
            other = tuple(n + (k == side) for k, n in enumerate(place))
            if other[side] < w.shape[side]:
                cosines.append(1 - torch.cosine_similarity(w[place], w[other], -1))
                squares.append((w[place] - w[other]).square().sum(-1))
    torch.testing.assert_close(nn.neighbour_similarity(layer), torch.stack(cosines).mean())
    torch.testing.assert_close(nn.neighbour_similarity(layer, "squared"), torch.stack(squares).mean())


@pytest.mark.parametrize("name", LAYERS)
def test_how_far_apart(name):
    layer = built(name)
    w = filters(layer).flatten(0, layer.dimensions - 1).flatten(1)
    expected = (w - w.mean(0)).square().sum(1).mean().sqrt() / w.mean(0).norm()
    torch.testing.assert_close(nn.sharing(layer), expected)


def test_the_penalty_makes_neighbours_alike():
    layer = built("local")
    before = nn.neighbour_similarity(layer)
    before.backward()
    with torch.no_grad():
        layer.weight -= layer.weight.grad
    assert nn.neighbour_similarity(layer) < before
    assert nn.neighbour_similarity(nn.LocallyConnected1d(1, 1, 3, 3)) == 0  # one position has no neighbour


@pytest.mark.parametrize("name", [name for name in LAYERS if name != "low rank"])
def test_shared_wholly_it_is_its_convolution_and_shared_by_half_half_as_far(name):
    layer, twin = built(name), built(name)
    twin.load_state_dict(layer.state_dict())
    conv, apart = layer.to_conv(), nn.sharing(layer)
    nn.share_(twin, 0.5)
    torch.testing.assert_close(nn.sharing(twin), apart / 2)
    torch.testing.assert_close(twin.to_conv().state_dict(), conv.state_dict())
    nn.share_(layer)
    x = torch.randn(1, layer.in_channels, *layer.input_size, **float64)
    torch.testing.assert_close(layer(x), conv(x))
    assert nn.sharing(layer) < 1e-6


def test_transposed_layers_and_layers_without_positions():
    layer = nn.LocallyConnectedTranspose2d(2, 3, (3, 4), 2, **float64)
    conv = layer.to_conv()
    assert nn.sharing(layer) > 0.1
    assert 0.1 < nn.neighbour_similarity(layer) < 2
    nn.share_(layer)
    x = torch.randn(1, 2, 3, 4, **float64)
    torch.testing.assert_close(layer(x), conv(x))
    for function in (nn.neighbour_similarity, nn.share_, nn.sharing):
        with pytest.raises(TypeError, match=r"layer must be a LocallyConnectedNd.*, but got Conv2d"):
            function(torch.nn.Conv2d(1, 1, 1))
    with pytest.raises(TypeError, match="but got LowRankLocal1d"):
        nn.share_(nn.LowRankLocal1d(1, 1, 3, 2, rank=1))
    with pytest.raises(ValueError, match="distance must be 'cosine' or 'squared', but got 'l1'"):
        nn.neighbour_similarity(layer, "l1")


def test_which_set_each_position_uses():
    def sets(**shared):
        return sets_of_positions(nn.LocallyConnected1d(1, 1, 7, 3, **shared)).tolist()

    assert sets() == [0, 1, 2, 3, 4]
    assert sets(share=2) == [0, 0, 1, 1, 2]
    assert sets(tile=2) == [0, 1, 0, 1, 0]
    assert sets_of_positions(nn.LocallyConnected2d(1, 1, 4, 2, share=(2, 1))).tolist() == [[0, 1, 2], [0, 1, 2], [3, 4, 5]]


def test_means_are_as_exact_as_the_weights():
    conv = torch.nn.Conv1d(1, 1, 3, dtype=torch.float64)
    torch.testing.assert_close(nn.LocallyConnected1d.from_conv(conv, 9).to_conv().weight, conv.weight, rtol=1e-15, atol=0)
    layer = built("tiles")
    mean = filters(layer).flatten(0, 1).mean(0)
    nn.share_(layer)
    torch.testing.assert_close(layer.weight.flatten(3)[0, 0], mean, rtol=1e-14, atol=1e-16)


@pytest.mark.parametrize(
    "computed",
    [torch.nn.utils.parametrizations.weight_norm, lambda layer: prune.l1_unstructured(layer, "weight", 0.3)],
    ids=["parametrized", "pruned"],
)
def test_a_weight_that_is_computed_is_not_shared(computed):
    with pytest.raises(RuntimeError, match="share_: weight of layer is computed from other tensors"):
        nn.share_(computed(built("local")))


def test_half_precision_is_computed_in_float32():
    layer = nn.LocallyConnected2d(3, 4, 6, 3)
    for scale in (0.03, 1000):
        with torch.no_grad():
            layer.weight.mul_(scale)
        for measure in (nn.neighbour_similarity, nn.sharing):
            assert measure(copy.deepcopy(layer).half()).item() == pytest.approx(measure(layer).item(), rel=2e-2)


def test_complex_layers_are_as_far_apart_as_their_parts_taken_as_channels():
    layer = nn.LocallyConnected1d(1, 2, 4, 2, dtype=torch.complex64)
    twin = nn.LocallyConnected1d(2, 2, 4, 2)
    with torch.no_grad():
        twin.weight.copy_(torch.cat((layer.weight.real, layer.weight.imag), 2))
    for measure in (nn.neighbour_similarity, nn.sharing):
        torch.testing.assert_close(measure(layer), measure(twin))
