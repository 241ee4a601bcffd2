"""The array arithmetic behind the rules, on numbers a pencil can check."""

import numpy as np
import pytest

from cnn425.autodiff import arrays


def test_summed_undoes_what_broadcasting_repeated():
    a = np.arange(6.0).reshape(2, 3)
    assert arrays.summed(a, ()) == 15
    assert arrays.summed(a, (3,)).tolist() == [3, 5, 7]
    assert arrays.summed(a, (2, 1)).tolist() == [[3], [12]]
    assert arrays.summed(a, (1, 1)).tolist() == [[15]]
    assert arrays.summed(a, (2, 3)).tolist() == a.tolist()


def test_placed_adds_where_a_place_is_named_twice():
    assert arrays.placed(np.array([1.0, 2.0, 4.0]), np.array([0, 0, 2]), (3,)).tolist() == [3, 0, 4]


@pytest.mark.parametrize(
    ("axis", "expected"),
    [(None, [[0, 1, 0], [0, 0, 0]]), (0, [[1, 1, 0], [0, 0, 1]]), (1, [[0, 1, 0], [0, 1, 0]]), (-1, [[0, 1, 0], [0, 1, 0]])],
)
def test_first_winner_is_one_cell_also_on_a_tie(axis, expected):
    assert arrays.first_winner(np.array([[1.0, 5.0, 0.0], [1.0, 5.0, 2.0]]), axis).tolist() == expected


@pytest.mark.parametrize("equation", ["ij,jk->ik", "ij,j->i", "j,jk->k", "nd,od->no"])
def test_an_exchanged_equation_computes_the_gradient(equation):
    sizes = dict(zip("ijkndo", (2, 3, 4, 5, 3, 2), strict=True))
    left, right, out = equation.replace("->", ",").split(",")
    a, b, g = (np.random.default_rng(k).random([sizes[c] for c in letters]) for k, letters in enumerate((left, right, out)))
    value = arrays.contracted(a, b, equation)
    assert np.sum(g * value) == pytest.approx(np.sum(a * arrays.contracted(g, b, arrays.exchanged(equation, 0))))
    assert np.sum(g * value) == pytest.approx(np.sum(b * arrays.contracted(a, g, arrays.exchanged(equation, 1))))


def test_brief():
    assert arrays.brief(2.5) == "2.5"
    assert arrays.brief(np.ones((2, 3))) == "an array of shape (2, 3)"
