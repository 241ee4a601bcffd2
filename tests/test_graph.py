"""The trace: what is written down, what is shared, what is refused."""

import copy

import numpy as np
import pytest
import torch

from cnn425.autodiff import Trace, ln, reverse, sin
from cnn425.autodiff.graph import recorded, value_of


def test_a_trace_holds_one_node_per_operation_in_order():
    trace = Trace()
    x1, x2 = trace.variable(2, "x1"), trace.variable(5, "x2")
    y = ln(x1) + x1 * x2 - sin(x2)
    assert [node.rule.sign if node.rule else node.name for node in trace.nodes] == ["x1", "x2", "ln", "*", "+", "sin", "-"]
    assert [float(node.value) for node in trace.nodes] == pytest.approx([2, 5, 0.693, 10, 10.693, -0.959, 11.652], abs=5e-4)
    assert all(operand.index < node.index for node in trace.nodes for operand in node.operands)
    assert y is trace.nodes[-1]


def test_a_node_used_twice_is_one_node():
    trace = Trace()
    x = trace.variable(3.0)
    square = x * x
    y = square + square
    assert len(trace.nodes) == 3
    assert reverse.adjoints(y)[x.index] == 12


def test_constants_are_not_nodes():
    trace = Trace()
    y = 2 * trace.variable(3.0) + np.array([1.0, 2.0])
    assert y.value.tolist() == [7, 8]
    assert [n.rule.sign for n in trace.nodes if n.rule] == ["*", "broadcast", "+"]


@pytest.mark.parametrize("array", [np.arange(3.0), np.float64(2), torch.arange(3.0).numpy()], ids=["array", "numpy scalar", "float32"])
def test_numpy_leaves_the_operator_to_the_node(array):
    x = Trace().variable(2.0)
    for y in (array + x, array * x, array - x, array / x, array**x):
        assert type(y) is type(x)
    assert (array - x).value.tolist() == (np.asarray(array) - 2.0).tolist()


def test_a_variable_is_a_float64_copy():
    given = np.arange(3, dtype=np.float32)
    x = Trace().variable(given)
    given[0] = 9
    assert x.value.tolist() == [0, 1, 2]
    assert x.value.dtype == np.float64


def test_a_program_may_branch_on_values_and_the_trace_holds_the_branch_taken():
    def root(a):
        x = a
        while abs(value_of(x * x - a)) > 1e-12:
            x = (x + a / x) / 2
        return -x if a < 0 else x

    assert reverse.gradient(root, 2.0)[0] == pytest.approx(1 / (2 * np.sqrt(2)), rel=1e-9)
    x, y = (Trace().variable(v) for v in (1.0, 2.0))
    assert (x < 2, x <= 1, x > 0, x >= 2, x < y) == (True, True, True, False, True)


def test_nodes_of_two_traces_do_not_mix():
    x, y = Trace().variable(1.0, "mine"), Trace().variable(2.0, "yours")
    with pytest.raises(ValueError, match=r"\*: <yours = 2> is a node of another trace; use nodes of one trace, or pass its \.value"):
        x * y
    with pytest.raises(ValueError, match="another trace"):
        reverse.gradient(lambda a: a * x, 1.0)
    assert (x * y.value).value == 2


def test_a_function_that_ignores_its_inputs_is_a_constant():
    output, variables = recorded(lambda x: 4.0, [1.0])
    assert output.value == 4
    assert reverse.gradient(lambda x: 4.0, np.ones(3))[0].tolist() == [0, 0, 0]
    assert len(variables) == 1


def test_repr_says_what_and_how_much():
    x = Trace().variable(2.0)
    assert repr(x) == "<x1 = 2>"
    assert repr(x * 3) == "<* = 6>"
    assert repr(x * np.ones((2, 3))) == "<* = an array of shape (2, 3)>"


def test_a_trace_of_hundred_thousand_nodes_can_be_freed_and_looked_at():
    y = Trace().variable(0.5)
    for _ in range(100_000):
        y = sin(y)
    assert repr(y).startswith("<sin = 0.00")
    del y
    assert copy.copy(Trace()).nodes == []
