"""How large the answer of a convolution is: change a stride and predict the size."""


def positions(size, kernel, stride=1, padding=0, dilation=1):
    """How many windows fit along a side of `size` pixels."""
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
