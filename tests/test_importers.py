"""Weights of Keras 2, flax and the forum's snippet: the same output as the library's own, and back without the loss of a bit."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.utils import prune

from cnn425 import nn
from cnn425.nn import importers

# Written by scripts/make_importer_fixtures.py, which ran the libraries themselves.
PEERS = np.load(Path(__file__).parent / "fixtures" / "local_peers.npz")

# how the layer is built (kernel, stride, padding, dilation), and how its weights are named
KERAS = {
    "keras 1d, implementation 1": ((3,), (2,), "valid", {"implementation": 1}),
    "keras 1d, implementation 3, same": ((4,), (2,), "keras", {"implementation": 3}),
    "keras 2d, implementation 1": ((3, 2), (1, 2), "valid", {"implementation": 1}),
    "keras 2d, implementation 1, channels first": ((3, 2), (1, 2), "valid", {"implementation": 1, "data_format": "channels_first"}),
    "keras 2d, implementation 3": ((3, 2), (1, 2), "valid", {"implementation": 3}),
    "keras 2d, implementation 3, same": ((3, 2), (1, 2), "keras", {"implementation": 3}),
    "keras 2d, implementation 3, same, channels first": ((2, 3), (2, 1), "keras", {"implementation": 3, "data_format": "channels_first"}),
}
FLAX = {
    "flax 1d": ((3,), (2,), "valid", 1),
    "flax 2d": ((3, 2), (1, 2), "same", 1),
    "flax 2d, dilated": ((2, 3), (1, 1), ((1, 0), (2, 1)), (2, 1)),
    "flax 3d": ((2, 2, 2), (1, 2, 1), "valid", 1),
}


def case(name):
    return {part: PEERS[f"{name}/{part}"] for part in ("x", "y", "kernel", "bias")}


def layer_for(peer, kernel, stride, padding, dilation=1, **arguments):
    size = peer["x"].shape[2:]
    if padding == "keras":
        padding = importers.keras_same(size, kernel, stride)
    layer_type = getattr(nn, f"LocallyConnected{len(size)}d")
    return layer_type(peer["x"].shape[1], peer["y"].shape[1], size, kernel, stride, padding, dilation, **arguments)


def assert_computes(layer, peer):
    torch.testing.assert_close(layer(torch.tensor(peer["x"])), torch.tensor(peer["y"]), rtol=1e-5, atol=1e-5)


def assert_same_bits(array, tensor):
    assert np.array_equal(array, tensor.numpy())


@pytest.mark.parametrize("name", KERAS)
def test_keras_there_and_back(name):
    kernel, stride, padding, form = KERAS[name]
    peer = case(name)
    layer = importers.load_keras(layer_for(peer, kernel, stride, padding), peer["kernel"], peer["bias"], **form)
    assert_computes(layer, peer)
    kernel, bias = importers.keras_weights(layer, **form)
    assert_same_bits(peer["kernel"], kernel)
    assert_same_bits(peer["bias"], bias)


@pytest.mark.parametrize("name", FLAX)
def test_flax_there_and_back(name):
    peer = case(name)
    layer = importers.load_flax(layer_for(peer, *FLAX[name]), peer)
    assert_computes(layer, peer)
    back = importers.flax_params(layer)
    assert back.keys() == {"kernel", "bias"}
    for part, tensor in back.items():
        assert_same_bits(peer[part], tensor)


def test_forum_there_and_back():
    peer = case("forum")
    layer = importers.load_forum(layer_for(peer, (3, 3), (2, 2), "valid"), {"weight": peer["kernel"], "bias": peer["bias"]})
    assert_computes(layer, peer)
    back = importers.forum_state(layer)
    assert_same_bits(peer["kernel"], back["weight"])
    assert_same_bits(peer["bias"], back["bias"])


def test_every_peer_has_a_test():
    assert {key.split("/")[0] for key in PEERS} == {*KERAS, *FLAX, "forum"}


@pytest.mark.parametrize(("channels", "size", "kernel"), [(1, 100, 6), (3, 6, 3)], ids=["positions innermost", "contiguous"])
def test_our_weights_survive_every_form_whatever_their_order_in_memory(channels, size, kernel):
    source, x = nn.LocallyConnected2d(channels, channels, size, kernel), torch.randn(2, channels, size, size)
    for there in (
        lambda layer: importers.load_keras(layer, *importers.keras_weights(source)),
        lambda layer: importers.load_keras(layer, *importers.keras_weights(source, implementation=3), implementation=3),
        lambda layer: importers.load_flax(layer, importers.flax_params(source)),
        lambda layer: importers.load_forum(layer, importers.forum_state(source)),
    ):
        layer = there(nn.LocallyConnected2d(channels, channels, size, kernel))
        assert torch.equal(layer(x), source(x))
        assert layer.weight.stride() == source.weight.stride()


def test_without_bias():
    source = nn.LocallyConnected1d(2, 3, 6, 2, bias=False)
    assert importers.keras_weights(source)[1] is None
    assert importers.flax_params(source).keys() == {"kernel"}
    assert importers.forum_state(source).keys() == {"weight"}
    layer = importers.load_forum(nn.LocallyConnected1d(2, 3, 6, 2, bias=False), importers.forum_state(source))
    assert torch.equal(layer.weight, source.weight)


def test_a_bias_per_channel_leaves_as_one_per_neuron():
    source = nn.LocallyConnected1d(2, 3, 6, 2, bias="channel")
    layer = importers.load_flax(nn.LocallyConnected1d(2, 3, 6, 2), importers.flax_params(source))
    x = torch.randn(1, 2, 6)
    torch.testing.assert_close(layer(x), source(x))


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (lambda layer: importers.load_keras(layer, np.zeros((16, 9, 1))), r"kernel of shape \[16, 8, 3\], but got \[16, 9, 1\]"),
        (lambda layer: importers.load_keras(layer, np.zeros(5), implementation=3), r"kernel of shape \[384\], but got \[5\]"),
        (lambda layer: importers.load_keras(layer, np.zeros((16, 8, 3))), "the layer comes with a bias, the other without"),
        (lambda layer: importers.load_keras(layer, 0, implementation=2), r"implementation must be one of \(1, 3\), but got 2"),
        (lambda layer: importers.keras_weights(layer, data_format="NHWC"), "data_format must be one of .*'NHWC'"),
        (
            lambda layer: importers.load_flax(layer, {"kernel": np.zeros((4, 4, 8, 3)), "bias": np.zeros(3)}),
            r"bias of shape \[4, 4, 3\], but got \[3\]",
        ),
        (lambda _: importers.flax_params(nn.LocallyConnected1d(2, 2, 5, 3, groups=2)), "has no groups, but the layer has groups=2"),
        (
            lambda _: importers.load_flax(
                nn.LocallyConnected1d(1, 1, 3, 3, bias="channel"), {"kernel": np.zeros((1, 3, 1)), "bias": np.zeros((1, 1))}
            ),
            "one bias per channel",
        ),
    ],
)
def test_refusals(action, message):
    with pytest.raises(ValueError, match=message):
        action(nn.LocallyConnected2d(2, 3, 5, 2))


def test_keras_same_is_not_tensorflows_same():
    assert importers.keras_same((6,), (4,)) == ((2, 1),)
    assert nn.LocallyConnected1d(1, 1, 6, 4, padding="same").geometry.padding == ((1, 2),)
    assert importers.keras_same((7, 7), (3, 2), (4, 3)) == ((1, 0), (1, 0))


@pytest.mark.parametrize("normalise", ["softmax", "norm", None])
@pytest.mark.parametrize("mixing", ["sides", "positions"])
def test_low_rank_there_and_back(mixing, normalise):
    """Against the formula of LowRankLocallyConnected2D, with its letters: i image, j k place, l basis, m filter; TensorFlow 1 is gone."""
    random = np.random.default_rng(0)
    layer = nn.LowRankLocal2d(2, 4, (6, 7), (3, 2), 3, mixing=mixing, normalise=normalise, dtype=torch.float64)
    rows, columns = layer.output_size
    bases, bias, x = random.normal(size=(3, 2, 2, 3 * 4)), random.normal(size=(1, 1, 4)), random.normal(size=(2, 6, 7, 2))
    given = [random.normal(size=(n, 3)) for n in (rows, columns)] if mixing == "sides" else [random.normal(size=(rows, columns, 3))]
    combining = given[0][:, None] + given[1] if mixing == "sides" else given[0]
    if normalise == "softmax":
        combining = np.exp(combining) / np.exp(combining).sum(-1, keepdims=True)
    elif normalise == "norm":
        combining = combining / np.linalg.norm(combining, axis=-1, keepdims=True)
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 2), (1, 2))  # i j k c u v
    convs = np.einsum("ijkcuv,uvcp->ijkp", windows, bases).reshape(2, rows, columns, 3, 4)
    y = np.einsum("ijklm,jkl->ijkm", convs, combining) + bias
    importers.load_low_rank(layer, bases, given, bias)
    torch.testing.assert_close(layer(torch.tensor(x).permute(0, 3, 1, 2)), torch.tensor(y).permute(0, 3, 1, 2))
    back, weights, per_channel = importers.low_rank_weights(layer)
    for array, tensor in zip((bases, *given, bias), (back, *weights, per_channel), strict=True):
        assert_same_bits(array, tensor)


def test_low_rank_of_another_form_is_refused():
    layer = nn.LowRankLocal2d(1, 2, 4, 3, 2)
    bases, sides = np.zeros((3, 3, 1, 4)), [np.zeros((2, 2))] * 2
    with pytest.raises(ValueError, match=r"load_low_rank: the layer wants a kernel_bases of shape \[3, 3, 1, 4\]"):
        importers.load_low_rank(layer, bases[..., :3], sides, np.zeros(2))
    with pytest.raises(ValueError, match="the layer takes 2 combining_weights and a bias, but got 1 and one"):
        importers.load_low_rank(layer, bases, sides[:1], np.zeros(2))
    with pytest.raises(ValueError, match="the layer takes 2 combining_weights and a bias, but got 2 and none"):
        importers.load_low_rank(layer, bases, sides)
    with pytest.raises(ValueError, match="load_low_rank: the layer wants a mixing_j of shape"):
        importers.load_low_rank(layer, bases, [sides[0], np.zeros((3, 2))], np.zeros(2))
    with pytest.raises(ValueError, match=r"load_low_rank: the layer wants a bias of shape \[2\], but got \[1\]"):
        importers.load_low_rank(layer, bases, sides, np.zeros(1))


NOT_TAKEN = {
    "shared": (lambda: nn.LocallyConnected1d(2, 1, 5, 2, share=2), ValueError, "take layer.unshared()"),
    "tiled": (lambda: nn.LocallyConnected1d(2, 1, 5, 2, tile=2), ValueError, "take layer.unshared()"),
    "transposed": (lambda: nn.LocallyConnectedTranspose1d(2, 1, 5, 2), TypeError, "layer must be a LocallyConnectedNd"),
    "low rank": (lambda: nn.LowRankLocal1d(2, 1, 5, 2, 2), TypeError, "layer must be a LocallyConnectedNd"),
    "a convolution": (lambda: nn.Conv1d(2, 1, 2), TypeError, "layer must be a LocallyConnectedNd"),
}


@pytest.mark.parametrize("name", NOT_TAKEN)
def test_layers_that_the_peers_do_not_have(name):
    layer, error, words = NOT_TAKEN[name]
    for call in (importers.keras_weights, importers.flax_params, importers.forum_state):
        with pytest.raises(error, match=re.escape(words)):
            call(layer())
    for load in (importers.load_keras, importers.load_flax, importers.load_forum):
        with pytest.raises(error, match=re.escape(words)):
            load(layer(), {})
    if name != "low rank":
        with pytest.raises(TypeError, match="layer must be a LowRankLocalNd"):
            importers.low_rank_weights(layer())
        with pytest.raises(TypeError, match="layer must be a LowRankLocalNd"):
            importers.load_low_rank(layer(), torch.ones(1), [])


def test_weights_are_not_loaded_into_a_pruned_layer():
    """What is computed from other tensors would be overwritten by them."""
    layer = prune.l1_unstructured(nn.LocallyConnected1d(1, 1, 4, 2, bias=False), "weight", 0.5)
    with pytest.raises(RuntimeError, match="load_keras: weight of layer is computed from other tensors"):
        importers.load_keras(layer, torch.ones(3, 2, 1))


@pytest.mark.parametrize("state", [{}, {"bias": 1}, [1], None], ids=str)
def test_a_state_without_weights(state):
    layer = nn.LocallyConnected1d(1, 1, 4, 2)
    with pytest.raises(ValueError, match="load_flax: the weights must be a dict that holds 'kernel', but got"):
        importers.load_flax(layer, state)
    with pytest.raises(ValueError, match="load_forum: the weights must be a dict that holds 'weight', but got"):
        importers.load_forum(layer, state)
