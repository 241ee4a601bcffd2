"""The slides' numbers, each test named after its slide. Large layers are counted on the meta device: nothing is allocated."""

import math

import pytest
import torch

from cnn425 import nn
from cnn425.nn import functional as F


def parameters(module):
    return sum(p.numel() for p in module.parameters())


def test_softmax_and_cross_entropy_of_three_scores():
    """Slide "Loss": scores (-2.85, 0.86, 0.28), the third class is the true one.

    The slide divides exponentials it has already rounded, 0.058 / (0.058 + 2.36 + 1.32) = 0.0155; exactly it is 0.0154.
    """
    scores = torch.tensor([-2.85, 0.86, 0.28])
    assert F.softmax(scores, dim=0).tolist() == pytest.approx([0.016, 0.631, 0.353], abs=0.001)
    assert [round(e, 3) for e in scores.exp().tolist()] == [0.058, 2.363, 1.323]
    assert F.cross_entropy(scores, torch.tensor(2)).item() == pytest.approx(1.04, abs=0.005)
    assert F.cross_entropy(scores, torch.tensor(2)).item() == pytest.approx(-math.log(0.353), abs=0.002)


def test_neurons_weights_parameters_of_the_3_4_2_network():
    """Slide "Neural network": 4 + 2 = 6 neurons, 3*4 + 4*2 = 20 weights, 26 parameters."""
    layers = [nn.Linear(3, 4), nn.Linear(4, 2)]
    assert sum(layer.out_features for layer in layers) == 6
    assert sum(layer.weight.numel() for layer in layers) == 20
    assert sum(map(parameters, layers)) == 26


def test_fully_connected_on_a_200x200_image():
    """Slide "Fully connected layer": 40,000 hidden units see 40,000 pixels each; the slide rounds to 2 billion."""
    assert nn.Linear(200 * 200, 40_000, device="meta").weight.numel() == 1_600_000_000


def test_locally_connected_on_a_200x200_image():
    """Slide "Locally connected layer": 40,000 hidden units see 10x10 pixels each; 4 million weights."""
    layer = nn.LocallyConnected2d(1, 1, 200, 10, padding="same", device="meta")
    assert math.prod(layer(torch.empty(1, 1, 200, 200, device="meta")).shape) == 40_000
    assert layer.weight.numel() == 4_000_000


def test_convolution_on_a_200x200_image():
    """Slide "Convolutional layer": one shared 10x10 filter, 100 + 1; slide "Multiple filters": twenty of them, 2,000 weights."""
    assert parameters(nn.Conv2d(1, 1, 10)) == 100 + 1
    assert nn.Conv2d(1, 20, 10).weight.numel() == 2_000


def test_parameters_on_the_4x4_example():
    """Slide "Weight sharing": four hidden units over a 4x4 image: 4 x 17, 4 x 10 and 10 parameters."""
    assert parameters(nn.Linear(16, 4)) == 4 * 17
    assert parameters(nn.LocallyConnected2d(1, 1, 4, 3)) == 4 * 10
    assert parameters(nn.Conv2d(1, 1, 3)) == 10


def test_interpretation_1_a_convolution_is_neurons_with_shared_weights():
    """Slide "Convolution, interpretation 1": local neurons with equal weights; the shared gradient is the sum of theirs."""
    x = torch.randn(2, 3, 6, 7, dtype=torch.float64)
    w = torch.randn(4, 3, 3, 2, dtype=torch.float64, requires_grad=True)
    b = torch.randn(4, dtype=torch.float64)
    unshared = w.detach().expand(4, 6, *w.shape).clone().requires_grad_()
    y, local = F.conv2d(x, w, b), F.locally_connected2d(x, unshared, b)
    torch.testing.assert_close(local, y)
    upstream = torch.randn_like(y)
    (shared_gradient,) = torch.autograd.grad(y, w, upstream)
    (gradients,) = torch.autograd.grad(local, unshared, upstream)
    torch.testing.assert_close(gradients.sum((0, 1)), shared_gradient)


def test_interpretation_2_a_convolution_is_one_filter_shifted():
    """Slide "Convolution, interpretation 2": an explicit loop over the positions of the filter."""
    x, w = torch.randn(1, 1, 5, 6, dtype=torch.float64), torch.randn(1, 1, 3, 2, dtype=torch.float64)
    shifted = [[(x[0, 0, i : i + 3, j : j + 2] * w[0, 0]).sum() for j in range(5)] for i in range(3)]
    torch.testing.assert_close(F.conv2d(x, w)[0, 0], torch.stack([torch.stack(row) for row in shifted]))


def test_a_local_layer_whose_kernel_is_the_image_is_fully_connected():
    """Slide "From fully connected to locally connected": widen the window until it is the image."""
    x, w = torch.randn(2, 3, 4, 5, dtype=torch.float64), torch.randn(1, 1, 7, 3, 4, 5, dtype=torch.float64)
    torch.testing.assert_close(F.locally_connected2d(x, w).flatten(1), F.linear(x.flatten(1), w.view(7, -1)))


def test_the_convolution_commutes_with_shifts_and_the_local_layer_does_not():
    """Slide "Why share weights"."""
    x, w = torch.randn(1, 1, 8, 8, dtype=torch.float64), torch.randn(1, 1, 3, 3, dtype=torch.float64)
    unshared = torch.randn(6, 6, 1, 1, 3, 3, dtype=torch.float64)
    shifted = x.roll(1, 3)
    torch.testing.assert_close(F.conv2d(shifted, w)[..., 1:], F.conv2d(x, w)[..., :-1])
    assert not torch.allclose(F.locally_connected2d(shifted, unshared)[..., 1:], F.locally_connected2d(x, unshared)[..., :-1])


def test_pooling_conserves_or_spreads_the_gradient():
    """Slide "Pooling": max pooling sends each gradient to one pixel, average pooling to all of them in equal parts; none is lost."""
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(2, 3, 3, 3, dtype=torch.float64)
    for pool, receivers in ((F.max_pool2d, 1), (F.avg_pool2d, 4)):
        (gx,) = torch.autograd.grad(pool(x, 2), x, upstream)
        torch.testing.assert_close(gx.sum(), upstream.sum())
        assert (gx != 0).sum() == receivers * upstream.numel()


def test_average_pooling_is_a_convolution_with_a_constant_kernel():
    """Slide "Pooling": nothing to learn."""
    x = torch.randn(2, 1, 6, 6, dtype=torch.float64)
    torch.testing.assert_close(F.avg_pool2d(x, 3, 1), F.conv2d(x, torch.full((1, 1, 3, 3), 1 / 9, dtype=torch.float64)))


def test_a_local_layer_starts_as_wide_as_a_convolution():
    """Fan-in counts the pixels of one window, not the positions: weights and outputs start as those of a convolution."""
    local, conv = nn.LocallyConnected2d(3, 8, 20, 5, bias=False), nn.Conv2d(3, 800, 5, bias=False)
    x = torch.randn(16, 3, 20, 20)
    assert (local.weight.std() / conv.weight.std()).item() == pytest.approx(1, abs=0.02)
    assert (local(x).std() / conv(x).std()).item() == pytest.approx(1, abs=0.03)
    assert local.weight.abs().max() <= 1 / math.sqrt(3 * 5 * 5)
