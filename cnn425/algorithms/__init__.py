"""Ways to compute convolutions, local layers and pools: their outputs, the gradients of their inputs and of their weights.

`definition` says what is computed; the other files compute the same faster; `choose` picks one by a small model of their costs, `local` one
for local layers; `use` forces one by its name.
"""

from cnn425.algorithms.choose import convolve, convolve_input_gradient, convolve_weight_gradient
from cnn425.algorithms.registry import names, use

__all__ = ["convolve", "convolve_input_gradient", "convolve_weight_gradient", "names", "use"]
