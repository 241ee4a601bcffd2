"""The differentiation chapter as a whole: the slides' numbers, random programs against torch and SymPy, depth, a network."""

import gc
import sys
import time
import tracemalloc

import mpmath
import numpy as np
import pytest
import sympy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from programs import SYMPY, TORCH, function_of, programs

from cnn425 import autodiff, nn
from cnn425.autodiff import Trace, cross_entropy, forward, ln, numerical, reverse, sin, symbolic


def slide(x1, x2):
    return ln(x1) + x1 * x2 - sin(x2)


EXACT = (symbolic.gradient, forward.gradient, reverse.gradient)


# ---- the slides


def test_the_slide_value_is_11_652_and_not_the_misprinted_9_734():
    assert slide(2, 5) == pytest.approx(11.652, abs=5e-4)


@pytest.mark.parametrize("gradient", EXACT, ids=["symbolic", "forward", "reverse"])
def test_the_slide_gradient_is_5_5_and_1_716(gradient):
    by_x1, by_x2 = gradient(slide, 2, 5)
    assert by_x1 == 5.5
    assert by_x2 == pytest.approx(2 - np.cos(5.0), rel=1e-15)
    assert by_x2 == pytest.approx(1.716, abs=5e-4)


def test_the_slide_gradient_by_differences():
    assert numerical.gradient(slide, 2, 5) == pytest.approx([5.5, 2 - np.cos(5.0)], abs=1e-8)


# ---- random programs


def torch_derivatives(lines, values):
    """Torch's gradient and Hessian."""
    x = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in values]
    y = function_of(lines, TORCH)(*x)
    gradient = torch.autograd.grad(y, x, create_graph=True, materialize_grads=True)
    hessian = [
        [float(h) for h in torch.autograd.grad(g, x, retain_graph=True, materialize_grads=True)] if g.requires_grad else [0.0] * len(x)
        for g in gradient
    ]
    return [float(g.detach()) for g in gradient], hessian


def rounding(lines, values):
    """1e-12 of the largest number that occurs on the way: values, adjoints, and adjoints of adjoints."""
    trace = Trace()
    x = [trace.variable(v) for v in values]
    y = function_of(lines)(*x)
    largest = 1.0
    for g in reverse.adjoints(y, record=True)[: len(x)]:
        if isinstance(g, autodiff.Node):
            largest = max(largest, *(abs(float(getattr(a, "value", a))) for a in reverse.adjoints(g) if a is not None))
    return 1e-12 * max(largest, *(abs(float(node.value)) for node in trace.nodes))


@given(programs())
def test_first_derivatives_equal_torch_in_every_exact_mode(program):
    lines, values = program
    expected, _ = torch_derivatives(lines, values)
    for gradient in EXACT:
        assert gradient(function_of(lines), *values) == pytest.approx(expected, rel=1e-12, abs=rounding(lines, values))


@given(programs())
def test_differences_see_the_same_slopes(program):
    lines, values = program
    expected, hessian = torch_derivatives(lines, values)
    rough = 1e-6 * max(1.0, np.abs(expected).max(), np.abs(hessian).max()) + 1e4 * rounding(lines, values)
    assert numerical.gradient(function_of(lines), *values) == pytest.approx(expected, abs=rough)


def hessian_reverse_over_reverse(f, values):
    return [reverse.gradient(lambda *x, k=k: reverse.gradient(f, *x)[k], *values) for k in range(len(values))]


def hessian_forward_over_forward(f, values):
    return [forward.gradient(lambda *x, k=k: forward.gradient(f, *x)[k], *values) for k in range(len(values))]


def hessian_forward_over_reverse(f, values):
    along = np.eye(len(values))
    return [[forward.jvp(lambda *x, k=k: reverse.gradient(f, *x)[k], values, d)[1] for d in along] for k in range(len(values))]


def hessian_symbolic(f, values):
    algebra = symbolic.Algebra()
    x = [algebra.symbol(f"x{k}") for k in range(len(values))]
    at = {s: np.float64(v) for s, v in zip(x, values, strict=True)}
    y = f(*x)
    return [[symbolic.evaluate(symbolic.derivative(symbolic.derivative(y, a), b), at) for b in x] for a in x]


@given(programs())
@pytest.mark.parametrize(
    "hessian_of",
    [hessian_reverse_over_reverse, hessian_forward_over_forward, hessian_forward_over_reverse, hessian_symbolic],
    ids=lambda f: f.__name__,
)
def test_second_derivatives_equal_torch_in_every_exact_mode(hessian_of, program):
    lines, values = program
    _, expected = torch_derivatives(lines, values)
    found = np.array(hessian_of(function_of(lines), values), dtype=float)
    assert found == pytest.approx(np.array(expected), rel=1e-12, abs=10 * rounding(lines, values))


@settings(max_examples=25)
@given(programs(longest=6))
def test_first_and_second_derivatives_equal_sympy(program):
    lines, values = program
    symbols = sympy.symbols("x1:4", real=True)
    formula = function_of(lines, SYMPY)(*symbols)
    f = function_of(lines)
    first = [forward.gradient(f, *values), reverse.gradient(f, *values), symbolic.gradient(f, *values)]
    second = np.array(hessian_reverse_over_reverse(f, values), dtype=float)
    kinks = {"Heaviside": lambda x, *_: mpmath.mpf(x > 0), "DiracDelta": lambda x, *_: mpmath.mpf(0)}
    tolerance = {"rel": 1e-12, "abs": 10 * rounding(lines, values)}
    with mpmath.workdps(30):
        at = [mpmath.mpf(v) for v in values]
        for i, a in enumerate(symbols):
            slope = sympy.diff(formula, a)
            exact = float(sympy.lambdify(symbols, slope, [kinks, "mpmath"])(*at))
            assert [mode[i] for mode in first] == pytest.approx([exact] * 3, **tolerance)
            for j, b in enumerate(symbols):
                assert second[i, j] == pytest.approx(
                    float(sympy.lambdify(symbols, sympy.diff(slope, b), [kinks, "mpmath"])(*at)), **tolerance
                )


MATRIX_LINES = {
    "product": (lambda a, b: a @ b, lambda a, b: a @ b),
    "sum": (lambda a, b: a + b, lambda a, b: a + b),
    "entrywise product": (lambda a, b: a * b, lambda a, b: a * b),
    "row sums, broadcast": (lambda a, b: b - a.sum(axis=1, keepdims=True), lambda a, b: b - a.sum(dim=1, keepdim=True)),
    "column sums, broadcast": (lambda a, b: b * a.sum(axis=0), lambda a, b: b * a.sum(dim=0)),
    "largest of each row": (lambda a, b: a * b.max(axis=1, keepdims=True), lambda a, b: a * b.max(dim=1, keepdim=True)[0]),
    "first row": (lambda a, b: a + b[0], lambda a, b: a + b[0]),
    "matrix times vector": (lambda a, b: a + (a @ b[1]), lambda a, b: a + (a @ b[1])),
    "sine": (lambda a, b: sin(a), lambda a, b: torch.sin(a)),
    "tanh": (lambda a, b: autodiff.tanh(a), lambda a, b: torch.tanh(a)),
    "sigmoid": (lambda a, b: autodiff.sigmoid(b), lambda a, b: torch.sigmoid(b)),
    "softmax": (lambda a, b: autodiff.softmax(a), lambda a, b: torch.softmax(a, -1)),
}


def matrix_function(lines, ours):
    """Random lines over 3x3 matrices, and at the end a cross entropy; registers are squashed, so that numbers stay near one."""

    def function(*inputs):
        registers = list(inputs)
        for name, i, j in lines:
            result = MATRIX_LINES[name][0 if ours else 1](registers[i % len(registers)], registers[j % len(registers)])
            registers.append((sin if ours else torch.sin)(result))
        loss = cross_entropy if ours else torch.nn.functional.cross_entropy
        return loss(2 * registers[-1], [0, 2, 1] if ours else torch.tensor([0, 2, 1]))

    return function


@given(
    st.lists(st.tuples(st.sampled_from(sorted(MATRIX_LINES)), st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=6),
    st.integers(0, 99),
)
def test_first_and_second_derivatives_of_matrix_programs_equal_torch(lines, seed):
    random = np.random.default_rng(seed)
    inputs, direction = [random.standard_normal((3, 3)) for _ in range(2)], [random.standard_normal((3, 3)) for _ in range(2)]
    ours, theirs = matrix_function(lines, True), matrix_function(lines, False)
    tensors = [torch.tensor(x, requires_grad=True) for x in inputs]
    first = torch.autograd.grad(theirs(*tensors), tensors, create_graph=True, materialize_grads=True)
    along = sum((g * torch.from_numpy(d)).sum() for g, d in zip(first, direction, strict=True))
    second = torch.autograd.grad(along, tensors, materialize_grads=True)

    found = reverse.gradient(ours, *inputs)
    for gradient, expected in zip(found, first, strict=True):
        np.testing.assert_allclose(gradient, expected.detach().numpy(), rtol=1e-12, atol=1e-12)
    assert forward.jvp(ours, inputs, direction)[1] == pytest.approx(float(along.detach()), rel=1e-12, abs=1e-12)

    def slope(*x):
        return sum((g * d).sum() for g, d in zip(reverse.gradient(ours, *x), direction, strict=True))

    forward_over_reverse = forward.jvp(lambda *x: reverse.gradient(ours, *x)[0], inputs, direction)[1]
    np.testing.assert_allclose(forward_over_reverse, second[0].numpy(), rtol=1e-12, atol=1e-11)
    for gradient, expected in zip(reverse.gradient(slope, *inputs), second, strict=True):
        np.testing.assert_allclose(gradient, expected.numpy(), rtol=1e-12, atol=1e-11)


def test_third_derivative_by_three_sweeps():
    def d(f):
        return lambda x: reverse.gradient(f, x)[0]

    assert float(d(d(d(lambda x: sin(x * x))))(0.7)) == pytest.approx(-12 * 0.7 * np.sin(0.49) - 8 * 0.343 * np.cos(0.49), rel=1e-13)


def test_an_inner_derivative_does_not_see_the_outer_use_of_the_same_variable():
    """Perturbation confusion: d/dx (x * d/dy (x + y) at y = x) is 1, not 2."""
    assert reverse.gradient(lambda x: x * reverse.gradient(lambda y: x + y, x)[0], 3.0) == [1.0]
    assert forward.gradient(lambda x: x * forward.gradient(lambda y: x + y, x)[0], 3.0) == [1.0]


# ---- a million nodes


def chain(nodes):
    """A trace of `nodes` scalar nodes, each made of the one before: y -> 0.999 y, then sin."""
    trace = Trace()
    y = x = trace.variable(0.5)
    for _ in range(nodes // 2):
        y = sin(y * 0.999)
    return x, y


def seconds_of_reverse(nodes):
    """CPU seconds, without Python's cycle collector, which looks through a growing heap again and again."""
    gc.collect()
    gc.disable()
    try:
        start = time.process_time()
        x, y = chain(nodes)
        adjoint = reverse.adjoints(y)[x.index]
        return time.process_time() - start, float(adjoint), len(y.trace.nodes)
    finally:
        gc.enable()


@pytest.mark.slow
def test_a_million_nodes_deep_without_recursion_in_linear_time():
    small = min(seconds_of_reverse(100_000)[0] for _ in range(2))
    deep, adjoint, nodes = seconds_of_reverse(1_000_000)
    y, slope = 0.5, 1.0
    for _ in range(500_000):
        slope *= np.cos(0.999 * y) * 0.999
        y = np.sin(0.999 * y)
    assert nodes == 1_000_001 > 100 * sys.getrecursionlimit()
    assert adjoint == pytest.approx(slope, rel=1e-9, abs=1e-300)
    assert deep < 2 * 10 * small, f"ten times the nodes took {deep / small:.0f} times as long"


def test_memory_grows_linearly_with_depth():
    def bytes_of(nodes):
        gc.collect()
        tracemalloc.start()
        x, y = chain(nodes)
        found = reverse.adjoints(y)
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert found[x.index] is not None
        return used

    assert 8 < bytes_of(20_000) / bytes_of(2_000) < 12


# ---- the smallest network


PATTERNS = np.array([[1, 0, 0, 0, 1, 0, 0, 0, 1], [0, 1, 0, 0, 1, 0, 0, 1, 0], [0, 0, 0, 1, 1, 1, 0, 0, 0]], dtype=float)


@pytest.fixture
def one_thread():
    """Three images need no team: on a busy machine its threads wait for one another a hundred times longer than they work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("library", [nn, torch.nn], ids=["our layers", "torch"])
def test_the_smallest_network_trained_with_this_engine_alone_reaches_the_same_weights(library, one_thread):
    layer, loss = library.Linear(9, 3).double(), library.CrossEntropyLoss()
    W, b = (p.detach().numpy().copy() for p in (layer.weight, layer.bias))
    steps, rate, classes = 200, 0.5, [0, 1, 2]
    for _ in range(steps):

        def error(W, b):
            return cross_entropy(autodiff.rules.einsum(PATTERNS, W, "nd,od->no") + b, classes)

        value, (slope_W, slope_b) = reverse.value_and_gradient(error, W, b)
        W, b = W - rate * slope_W, b - rate * slope_b
    for _ in range(steps):
        layer.zero_grad()
        theirs = loss(layer(torch.from_numpy(PATTERNS)), torch.tensor(classes))
        theirs.backward()
        with torch.no_grad():
            for p in layer.parameters():
                p -= rate * p.grad
    assert value == pytest.approx(theirs.item(), abs=1e-10)
    assert value < 0.1
    np.testing.assert_allclose(W, layer.weight.detach().numpy(), rtol=0, atol=1e-10)
    np.testing.assert_allclose(b, layer.bias.detach().numpy(), rtol=0, atol=1e-10)
    assert (PATTERNS @ W.T + b).argmax(1).tolist() == classes
