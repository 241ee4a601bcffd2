"""What is asked of each exercise: a check gets the module with the answer, and raises AssertionError where it is wrong."""

import math

import torch
from torch.nn import functional as F

from cnn425 import autodiff, nn
from cnn425.autodiff import reverse


def same(answer, expected, what):
    """One sentence: where the answer differs first."""
    answer, expected = (torch.as_tensor(t, dtype=torch.float64) for t in (answer, expected))
    assert answer.shape == expected.shape, f"{what} has the shape {tuple(answer.shape)}, but should have {tuple(expected.shape)}"
    wrong = ((answer - expected).abs() > 1e-8 * (1 + expected.abs())).nonzero().tolist()
    assert not wrong, f"{what} is {float(answer[tuple(wrong[0])]):g} at {wrong[0]}, but should be {float(expected[tuple(wrong[0])]):g}"


def derivative(module):
    for f, x, expected in ((math.sin, 0.5, math.cos(0.5)), (math.exp, 1.0, math.e), (lambda x: x**3, -2.0, 12.0)):
        found = module.slope(f, x)
        assert abs(found - expected) < 1e-8, (
            f"the slope is {found:.12g}, but should be {expected:.12g}; a one-sided difference is not close enough"
        )


def backward(module):
    for x1, x2 in ((2.0, 5.0), (0.5, -1.0)):
        same(module.gradient(x1, x2), reverse.gradient(lambda a, b: autodiff.ln(a) + a * b - autodiff.sin(b), x1, x2), f"at {x1, x2} it")


def softmax(module):
    scores, labels = torch.randn(5, 3, dtype=torch.float64, requires_grad=True), torch.tensor([0, 2, 1, 1, 0])
    expected = torch.autograd.grad(F.cross_entropy(scores, labels), scores)[0]
    same(module.gradient(scores.detach(), labels), expected, "the gradient")


def counting(module):
    for kind, expected in (("fully connected", 64), ("locally connected", 36), ("convolution", 9)):
        found = module.weights(kind, 4, 4, 3)
        assert found == expected, f"{kind}: {found} weights for 4 x 4 pixels and 3 x 3 windows, but should be {expected}"
    assert module.weights("locally connected", 5, 7, 2) == 4 * 6 * 4, "an image need not be square"


def size(module):
    for words in ((28, 5), (28, 5, 2), (28, 5, 2, 2), (7, 3, 3, 1), (10, 3, 1, 0, 2), (10, 3, 2, 1, 3)):
        side, kernel, *more = words
        expected = F.conv1d(torch.zeros(1, 1, side), torch.zeros(1, 1, kernel), None, *more).shape[2]
        assert module.positions(*words) == expected, f"positions{words} is {module.positions(*words)}, but should be {expected}"


def windows(module):
    x = torch.randn(2, 3, 6, 7, dtype=torch.float64)
    for k, s in ((3, 1), (2, 2), (3, 2)):
        found = module.windows(x, k, s)
        same(found, x.unfold(2, k, s).unfold(3, k, s), f"for windows of {k}, {s} apart, it")
        assert found.data_ptr() == x.data_ptr(), "the numbers were copied; a view of x was wanted"


def convolution(module):
    x, weight = (torch.randn(*shape, dtype=torch.float64) for shape in ((2, 3, 6, 5), (4, 3, 3, 2)))
    cut = x.unfold(2, 3, 1).unfold(3, 2, 1)
    weight.requires_grad_()
    y = F.conv2d(x, weight)
    gy = torch.randn_like(y)
    same(module.forward(cut, weight).detach(), y.detach(), "the output")
    same(module.weight_gradient(cut, gy), torch.autograd.grad(y, weight, gy)[0], "the gradient of the weight")


def sharing(module):
    layer = nn.LocallyConnected2d(2, 3, (5, 6), 3, bias=False, dtype=torch.float64)
    mean, x = layer.weight.detach().mean((0, 1)), torch.randn(2, 2, 5, 6, dtype=torch.float64)
    module.share(layer)
    conv = F.conv2d(x, mean.requires_grad_())
    same(layer(x).detach(), conv.detach(), "after sharing, the output")
    gy = torch.randn_like(conv)
    ((copies,), (shared,)) = (torch.autograd.grad(y, w, gy) for y, w in ((layer(x), layer.weight), (conv, mean)))
    same(module.shared_gradient(copies), shared, "the shared gradient")


def pooling(module):
    for side, k, s in (((6, 6), 2, 2), ((5, 7), 3, 1), ((7, 5), 3, 2)):
        x = torch.randn(2, 2, *side, dtype=torch.float64, requires_grad=True)
        y = F.avg_pool2d(x, k, s)
        gy = torch.randn_like(y)
        same(module.gradient(gy, side, k, s), torch.autograd.grad(y, x, gy)[0], f"for windows of {k}, {s} apart, it")


def ties(module):
    x = torch.tensor([[1.0, 2, 0, 0], [0, 3, 0, 0], [5, 5, 1, 2], [5, 5, 2, 2]], dtype=torch.float64)
    gy = torch.tensor([[1.0, 2], [3, 4]], dtype=torch.float64)
    same(module.gradient(x, gy), [[0, 0, 2, 0], [0, 1, 0, 0], [3, 0, 0, 4], [0, 0, 0, 0]], "the gradient")


CHECKS = {check.__name__: check for check in (derivative, backward, softmax, counting, size, windows, convolution, sharing, pooling, ties)}
