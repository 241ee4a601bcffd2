"""cnn425/layers/pool_average.py: averages by pencil, and who counts as a cell; torch's values and gradients are in test_pool.py."""

import torch

import cnn425.nn.functional as F

X = torch.tensor([[[1.0, 2, 3], [4, 5, 6], [7, 8, 9]]])


def test_means_by_pencil():
    assert F.avg_pool2d(X, 2, stride=1).tolist() == [[[3, 4], [6, 7]]]


def test_padding_counts_unless_it_is_told_not_to():
    assert F.avg_pool2d(X, 2, stride=2, padding=1).tolist() == [[[0.25, 1.25], [2.75, 7]]]
    assert F.avg_pool2d(X, 2, stride=2, padding=1, count_include_pad=False).tolist() == [[[1, 2.5], [5.5, 7]]]


def test_a_window_that_hangs_over_counts_the_cells_it_has():
    assert F.avg_pool1d(X[0, :1], 2, ceil_mode=True).tolist() == [[1.5, 3]]


def test_the_gradient_of_overlapping_windows_adds_up():
    x = X.clone().requires_grad_()
    F.avg_pool2d(x, 2, stride=1).backward(torch.tensor([[[4.0, 8], [12, 16]]]))
    assert x.grad.tolist() == [[[1, 3, 2], [4, 10, 6], [3, 7, 4]]]


def test_the_divisor_may_be_a_tensor():
    x = X.clone().requires_grad_()
    y = F.avg_pool2d(x, 2, 1, divisor_override=torch.tensor(3))
    y.sum().backward()
    torch.testing.assert_close(y, torch.tensor([[[12.0, 16], [24, 28]]]) / 3)
    torch.testing.assert_close(x.grad, torch.tensor([[[1.0, 2, 1], [2, 4, 2], [1, 2, 1]]]) / 3)
