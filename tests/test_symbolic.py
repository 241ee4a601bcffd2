"""Symbolic differentiation: formulas against SymPy, identities, and how long formulas grow."""

from operator import neg

import numpy as np
import pytest
import sympy
from hypothesis import given
from programs import function_of, programs

from cnn425.autodiff import exp, ln, maximum, relu, sigmoid, sin, symbolic, tanh
from cnn425.autodiff.symbolic import Algebra, derivative, evaluate, size, text


def symbols(count=1, **how):
    algebra = Algebra(**how)
    return [algebra.symbol(f"x{k}") for k in range(1, count + 1)]


def same_formula(found, expected):
    return sympy.simplify(sympy.sympify(text(found)) - expected) == 0


X1, X2 = sympy.symbols("x1 x2")


def test_the_slide_formula_and_its_derivatives():
    x1, x2 = symbols(2)
    y = ln(x1) + x1 * x2 - sin(x2)
    assert text(y) == "ln(x1) + x1 * x2 - sin(x2)"
    assert text(derivative(y, x1)) == "1 / x1 + x2"
    assert text(derivative(y, x2)) == "x1 - cos(x2)"


@pytest.mark.parametrize(
    ("rule", "formula", "expected"),
    [
        ("sum", lambda a, b: a + 3 * b - 2 * a, -1),
        ("product", lambda a, b: a * b * a, 2 * X1 * X2),
        ("quotient", lambda a, b: b / a, -X2 / X1**2),
        ("chain", lambda a, b: exp(sin(a * b)), sympy.exp(sympy.sin(X1 * X2)) * sympy.cos(X1 * X2) * X2),
        ("power", lambda a, b: a**b, X2 * X1 ** (X2 - 1)),
        ("exponential", lambda a, b: b**a, X2**X1 * sympy.log(X2)),
        ("hyperbolic", lambda a, b: tanh(2 * a), 2 - 2 * sympy.tanh(2 * X1) ** 2),
        ("negative", lambda a, b: neg(neg(neg(a))), -1),
    ],
)
@pytest.mark.parametrize("simplify", [True, False])
def test_rule_gives_the_formula_of_sympy(rule, formula, expected, simplify):
    a, b = symbols(2, simplify=simplify)
    found = derivative(formula(a, b), a)
    assert same_formula(found, expected) if not isinstance(found, float) else found == expected


@given(programs())
def test_the_text_of_a_formula_computes_its_value(program):
    """Every parenthesis that is needed is there."""
    lines, values = program
    for simplify in (True, False):
        x = symbols(len(values), simplify=simplify)
        y = function_of(lines)(*x)
        names = {f"x{k}": np.float64(v) for k, v in enumerate(values, start=1)}
        known = {"ln": ln, "exp": exp, "sin": sin, "cos": np.cos, "tanh": tanh, "sigmoid": sigmoid, "relu": relu, "maximum": maximum}
        assert eval(text(y), known, names) == pytest.approx(function_of(lines)(*map(np.float64, values)), rel=1e-12, abs=1e-12)


@given(programs())
def test_simplification_and_sharing_never_change_the_value(program):
    lines, values = program
    plain = symbolic.gradient(function_of(lines), *values, algebra=Algebra(simplify=False, share=False))
    for simplify, share in ((True, False), (False, True), (True, True)):
        other = symbolic.gradient(function_of(lines), *values, algebra=Algebra(simplify, share))
        assert other == pytest.approx(plain, rel=1e-10, abs=1e-9)


@pytest.mark.parametrize(
    ("formula", "expected"),
    [
        (lambda x: 0 * x + x, "x1"),
        (lambda x: x + 0.0, "x1"),
        (lambda x: 1 * x * 1, "x1"),
        (lambda x: x - 0, "x1"),
        (lambda x: 0 - x, "-x1"),
        (lambda x: x - x, "0"),
        (lambda x: 0 / x, "0"),
        (lambda x: x / 1, "x1"),
        (lambda x: x**1, "x1"),
        (lambda x: x**0, "1"),
        (lambda x: neg(neg(x)), "x1"),
        (lambda x: x + -sin(x), "x1 - sin(x1)"),
        (lambda x: x - -sin(x), "x1 + sin(x1)"),
        (lambda x: 2 * x + 0.1, "2 * x1 + 0.1"),
    ],
)
def test_simplification(formula, expected):
    assert text(formula(*symbols())) == expected


def test_without_simplification_everything_stays():
    (x,) = symbols(simplify=False)
    assert text((0 * x + x) ** 1) == "(0 * x1 + x1) ** 1"


def test_sharing_makes_equal_formulas_one():
    (x,) = symbols()
    assert sin(x + 1) is sin(x + 1)
    assert sin(x + 1) is not sin(x + 2)
    (x,) = symbols(share=False)
    assert sin(x + 1) is not sin(x + 1)


def test_size_counts_operations_written_out_or_shared():
    (x,) = symbols()
    square = (x + 1) * (x + 1)
    fourth = square * square
    assert size(fourth, shared=False) == 7
    assert size(fourth, shared=True) == 3
    assert size(x, shared=True) == size(2.0, shared=False) == 0


def test_the_derivative_of_a_repeated_map_grows_exponentially_written_out_and_linearly_shared():
    """The logistic map l -> 4 l (1 - l), the example of the literature for expression swell."""
    (x,) = symbols()
    y, written, shared = x, [], []
    for _ in range(24):
        y = 4 * y * (1 - y)
        slope = derivative(y, x)
        written.append(size(slope, shared=False))
        shared.append(size(slope, shared=True))
    assert written[-1] > 1.9 * written[-2] > 2**20
    assert shared[-1] - shared[-2] == shared[-2] - shared[-3] < 20
    small = derivative(4 * x * (1 - x), x)
    assert size(small, shared=False) == sum(text(small).count(f" {sign} ") for sign in "+-*/") + text(small).count("-(")


def test_a_formula_a_hundred_thousand_operations_deep_needs_no_recursion():
    (x,) = symbols()
    y = x
    for _ in range(100_000):
        y = y + 1
    assert derivative(y, x) == 1
    assert evaluate(y, {x: 1.0}) == 100_001


def test_a_symbol_without_a_path_has_derivative_zero():
    x1, x2 = symbols(2)
    assert derivative(sin(x1), x2) == 0
    assert derivative(x1, x1) == 1
    assert derivative(3.0, x1) == 0
    assert symbolic.gradient(lambda x: 3.0, 1.0) == [0.0]


def test_errors():
    x1, x2 = symbols(2)
    with pytest.raises(TypeError, match="sees expressions, not programs"):
        bool(x1 > x2)
    with pytest.raises(TypeError, match="no value to branch on"):
        symbolic.gradient(lambda x: x if x > 0 else -x, 1.0)
    with pytest.raises(ValueError, match="no value given for x2"):
        evaluate(x1 * x2, {x1: 1.0})
    with pytest.raises(ValueError, match=r"here is for scalars, got inputs of shape \(2,\)"):
        symbolic.gradient(lambda x: x.sum(), np.ones(2))
    with pytest.raises(ValueError, match="ln needs a positive number, got -1"):
        evaluate(ln(x1), {x1: -1.0})
