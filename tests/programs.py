"""Random programs for the differentiation tests: straight lines of operations on numbered registers, run by any library.

Registers are reused at will, so programs have shared subexpressions, repeated variables, constants, and lines without a path to the output.
A line that would leave the domain of its operation, or come near a kink, is replaced by a sine.
"""

import math
from types import SimpleNamespace

import sympy
import torch
from hypothesis import strategies as st

from cnn425 import autodiff

UNARY = ("ln", "exp", "sin", "cos", "tanh", "sigmoid", "relu", "negate")
BINARY = ("add", "subtract", "multiply", "divide", "power", "maximum")
CONSTANTS = (2, -1.5, 0.5, 3)

PLAIN = SimpleNamespace(
    ln=math.log,
    exp=math.exp,
    sin=math.sin,
    cos=math.cos,
    tanh=math.tanh,
    sigmoid=lambda a: 1 / (1 + math.exp(-a)),
    relu=lambda a: max(a, 0.0),
    maximum=max,
)
TORCH = SimpleNamespace(
    ln=torch.log,
    exp=torch.exp,
    sin=torch.sin,
    cos=torch.cos,
    tanh=torch.tanh,
    sigmoid=torch.sigmoid,
    relu=torch.relu,
    maximum=lambda a, b: torch.maximum(*(torch.as_tensor(t, dtype=torch.float64) for t in (a, b))),
)
SYMPY = SimpleNamespace(
    ln=sympy.log,
    exp=sympy.exp,
    sin=sympy.sin,
    cos=sympy.cos,
    tanh=sympy.tanh,
    sigmoid=lambda a: 1 / (1 + sympy.exp(-a)),
    relu=lambda a: sympy.Max(a, 0),
    maximum=sympy.Max,
)


def one_line(library, operation, a, b):
    match operation:
        case "add":
            return a + b
        case "subtract":
            return a - b
        case "multiply":
            return a * b
        case "divide":
            return a / b
        case "power":
            return a**b
        case "negate":
            return -a
        case "maximum":
            return library.maximum(a, b)
    return getattr(library, operation)(a)


def allowed(operation, a, b):
    """Away from the edge of the domain, from kinks and from numbers whose rounding would drown the comparison."""
    inside = {
        "ln": a > 0.3,
        "exp": a < 2,
        "divide": abs(b) > 0.3,
        "power": a > 0.3 and 0 < abs(b) <= 3,  # at b = 0 torch calls the mixed derivative of a**b 0, it is 1 / a
        "relu": abs(a) > 0.01,
        "maximum": abs(a - b) > 0.01,
    }
    return inside.get(operation, True) and abs(one_line(PLAIN, operation, a, b)) < 10


@st.composite
def programs(draw, inputs=3, longest=10):
    """The lines `(operation, register, register)` and the input values, which are multiples of 1/8."""
    values = [draw(st.integers(-24, 24)) / 8 for _ in range(inputs)]
    registers, lines = [*CONSTANTS, *values], []
    for _ in range(draw(st.integers(1, longest))):
        operation = draw(st.sampled_from(UNARY + BINARY))
        # constants may be only one of two operands: a line of constants alone has nothing to differentiate
        i, j = draw(st.integers(len(CONSTANTS), len(registers) - 1)), draw(st.integers(0, len(registers) - 1))
        if operation in BINARY and draw(st.booleans()):
            i, j = j, i
        if operation in UNARY and i < len(CONSTANTS):
            i, j = j, i
        if not allowed(operation, registers[i], registers[j]):
            operation = "sin"
            i = max(i, j)
        lines.append((operation, i, j))
        registers.append(one_line(PLAIN, operation, registers[i], registers[j]))
    return lines, values


def function_of(lines, library=autodiff):
    """The program as a Python function; its value is the last line."""

    def function(*inputs):
        registers = [*CONSTANTS, *inputs]
        for operation, i, j in lines:
            registers.append(one_line(library, operation, registers[i], registers[j]))
        return registers[-1]

    return function
