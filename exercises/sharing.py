"""Share the weights of a locally connected layer by hand."""


def share(layer):
    """Give every position of a `LocallyConnected2d` the mean of all positions, in place; its weight is `(I, J, O, C, U, V)`."""
    raise NotImplementedError  # yours


def shared_gradient(local_gradient):
    """The gradient of the one shared window `(O, C, U, V)` from those of its copies `(I, J, O, C, U, V)`."""
    raise NotImplementedError  # yours
