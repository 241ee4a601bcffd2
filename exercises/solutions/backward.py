"""The gradient of the slides' function y = ln x1 + x1 x2 - sin x2, by hand, from the end to the beginning."""

from math import cos


def gradient(x1, x2):
    """dy/dx1 and dy/dx2: the adjoint of an input is the sum of what every node that reads it sends back."""
    adjoint_y = 1.0
    return adjoint_y * (1 / x1 + x2), adjoint_y * (x1 - cos(x2))
