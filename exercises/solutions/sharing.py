"""Share the weights of a locally connected layer by hand."""

import torch


def share(layer):
    """Give every position of a `LocallyConnected2d` the mean of all positions, in place; its weight is `(I, J, O, C, U, V)`."""
    with torch.no_grad():
        layer.weight.copy_(layer.weight.mean((0, 1)).expand(layer.weight.shape))


def shared_gradient(local_gradient):
    """The gradient of the one shared window `(O, C, U, V)` from those of its copies `(I, J, O, C, U, V)`."""
    return local_gradient.sum((0, 1))
