"""From fully connected to convolution: networks of one width, rank 1 is the convolution, and digits lie where they should."""

import pytest
import torch

from cnn425.lab.errors import LabError
from cnn425.lab.models import parameters
from cnn425.lab.pictures import Pictures
from experiments import spectrum


def blots(n=40):
    """Pictures with a blot of 4x6 pixels somewhere."""
    images = torch.zeros(n, 1, 16, 16)
    for k in range(n):
        images[k, 0, k % 12 : k % 12 + 4, k % 10 : k % 10 + 6] = 1
    return Pictures(images, torch.arange(n) % 10, tuple("0123456789"))


def test_all_networks_have_the_same_units_and_fewer_parameters_the_more_they_share():
    counts = {}
    for name in spectrum.NAMES:
        model = spectrum.network(name, 0, 10)
        widths, x = [], torch.rand(2, 1, 16, 16)
        for layer in model:
            x = layer(x)
            if isinstance(layer, torch.nn.BatchNorm2d):
                widths.append(tuple(x.shape[1:]))
        assert widths == [(8, 16, 16), (16, 8, 8), (32, 4, 4)]
        assert x.shape == (2, 10)
        counts[name] = parameters(model)
    for order in (("fully connected", "local", "blocks of 2", "blocks of 4", "blocks of 7", "convolution"), ("rank 8", "rank 4", "rank 2")):
        ordered = [counts[name] for name in order]
        assert ordered == sorted(ordered, reverse=True)
    rank_1 = counts["rank 1"] - counts["convolution"]
    assert rank_1 == 2 * (16 + 8 + 4), "a coefficient per row and column, without effect"


def test_rank_1_starts_as_the_same_network_as_the_convolution():
    images = torch.rand(3, 1, 16, 16)
    torch.testing.assert_close(*(spectrum.network(name, 5, 10)(images) for name in ("rank 1", "convolution")))


def test_jittered_pictures_lie_anywhere_and_framed_ones_in_the_middle():
    pictures = blots()
    small = torch.nn.functional.adaptive_avg_pool2d(pictures.images, 10)
    anywhere = spectrum.jittered(pictures, 0)
    torch.testing.assert_close(anywhere.images.sum((1, 2, 3)), small.sum((1, 2, 3)), msg="all of a picture is on the canvas")
    assert not torch.equal(anywhere.images, spectrum.jittered(pictures, 1).images)
    placed = spectrum.framed(pictures, 0).images[:, 0]
    assert placed.shape == (40, 16, 16)
    assert (placed[:, [0, -1]] == 1).all()
    assert (placed[:, :, [0, -1]] == 1).all()
    for lines in ((placed[:, 1:-1, 1:-1] > 0.1).any(2), (placed[:, 1:-1, 1:-1] > 0.1).any(1)):
        before, after = lines.int().argmax(1), lines.flip(1).int().argmax(1)
        assert (before - after).abs().max() <= 1


def test_torch_has_no_such_layers():
    with pytest.raises(LabError, match="--layers torch: torch has no layers between"):
        spectrum.main(["--layers", "torch"])


@pytest.mark.parametrize(
    ("sharing", "rows"),
    [
        ({}, [[0, 1, 2], [3, 4, 5], [6, 7, 8]]),
        ({"share": 2}, [[0, 0, 1], [0, 0, 1], [2, 2, 3]]),
        ({"tile": 2}, [[0, 1, 0], [2, 3, 2], [0, 1, 0]]),
    ],
)
def test_who_shares_with_whom_is_read_off_the_layer(sharing, rows):
    layer = spectrum.ours.LocallyConnected2d(1, 1, 3, 1, bias=False, **sharing)
    assert spectrum.sets(layer, 3).tolist() == rows
