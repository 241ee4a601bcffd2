"""Where gradients come from: one function, five ways to its derivative.

Read in this order:

    rules.py      every operation with its local derivative        graph.py     the computational graph, written down as it is computed
    numerical.py  differences with a step h                        symbolic.py  formulas in, formulas out
    forward.py    tangents beside the values                       reverse.py   adjoints back from the output
    jacobians.py  what a node may be, and local Jacobians          traces.py    the traces of the slides
    drawing.py    the graph as a picture                           explain.py   the same tables for torch's own graph

Every way has the same face: `forward.gradient(function, *inputs)`, `reverse.gradient(function, *inputs)` and so on.
"""

from cnn425.autodiff import forward, reverse
from cnn425.autodiff.graph import Node, Trace
from cnn425.autodiff.rules import cos, cross_entropy, exp, ln, maximum, relu, sigmoid, sin, softmax, tanh

__all__ = [
    "Node",
    "Trace",
    "cos",
    "cross_entropy",
    "exp",
    "forward",
    "ln",
    "maximum",
    "relu",
    "reverse",
    "sigmoid",
    "sin",
    "softmax",
    "tanh",
]
