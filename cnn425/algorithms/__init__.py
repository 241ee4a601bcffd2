"""Ways to compute a convolution: its output, the gradient of its input, the gradient of its weight.

`definition` says what is computed; the other files compute the same faster; `choose` picks one by a small model of their costs.
"""

from cnn425.algorithms.choose import convolve, convolve_input_gradient, convolve_weight_gradient, names, use

__all__ = ["convolve", "convolve_input_gradient", "convolve_weight_gradient", "names", "use"]
