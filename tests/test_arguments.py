"""The door of the layers: what is let in comes out as windows, what is not is refused by torch's type of error and named."""

import pytest
import torch

from cnn425.layers import arguments
from cnn425.nn import functional as F
from cnn425.windows import Geometry


@pytest.mark.parametrize(("value", "expected"), [(2, (2, 2)), ((3,), (3, 3)), ([1, 2], (1, 2)), (torch.tensor(2), (2, 2))], ids=str)
def test_a_number_counts_for_every_dimension(value, expected):
    assert arguments.per_dimension("conv2d", "stride", value, 2) == expected


@pytest.mark.parametrize(
    ("value", "error"), [(1.0, TypeError), (True, TypeError), ("1", TypeError), ((1, 2, 3), RuntimeError), ((1, 2.0), TypeError)], ids=str
)
def test_anything_else_is_refused_by_name(value, error):
    with pytest.raises(error, match="stride"):
        arguments.per_dimension("conv2d", "stride", value, 2)


@pytest.mark.parametrize(
    ("padding", "expected"),
    [(1, ((1, 1), (1, 1))), ((0, 2), ((0, 0), (2, 2))), ("valid", ((0, 0), (0, 0))), ("same", ((0, 1), (3, 3)))],
    ids=str,
)
def test_padding_in_pairs(padding, expected):
    assert arguments.padding_pairs("conv2d", padding, (2, 3), (1, 1), (1, 3)) == expected


def test_windows_of_the_arguments():
    assert arguments.geometry("conv2d", (3, 2), 2, (1, 0), (1, 2)) == Geometry((3, 2), (2, 2), ((1, 1), (0, 0)), (1, 2))


def test_equal_arguments_of_another_type_are_checked_anew():
    """True == 1 == 1.0, but only one of them is a stride; what passed once must not let the others in."""
    x, w = torch.randn(1, 2, 6, 6), torch.randn(3, 2, 3, 3)
    F.conv2d(x, w, stride=1, groups=1)
    for wrong in (True, 1.0):
        with pytest.raises(TypeError, match="stride"):
            F.conv2d(x, w, stride=wrong)
        with pytest.raises(TypeError, match="groups"):
            F.conv2d(x, w, groups=wrong)


def test_what_passed_for_one_input_does_not_let_another_in():
    w = torch.randn(3, 2, 3, 3)
    F.conv2d(torch.randn(1, 2, 6, 6), w)
    with pytest.raises(RuntimeError, match=r"expected input.* to have 2 channels, but got 3 channels instead"):
        F.conv2d(torch.randn(1, 3, 6, 6), w)
    with pytest.raises(RuntimeError, match="should be the same"):
        F.conv2d(torch.randn(1, 2, 6, 6).double(), w)
    with pytest.raises(RuntimeError, match="Kernel size can't be greater than actual input size"):
        F.conv2d(torch.randn(1, 2, 2, 6), w)


def test_a_result_in_the_memory_of_out():
    out = torch.empty(2, 3)
    found = arguments.written("linear", torch.ones(2, 3), out)
    assert found is out
    assert out.tolist() == [[1, 1, 1]] * 2
    with pytest.raises(RuntimeError, match="dtype"):
        arguments.written("linear", torch.ones(2, 3), torch.empty(2, 3, dtype=torch.float64))
    with pytest.raises(RuntimeError, match="don't support automatic differentiation"):
        arguments.written("linear", torch.ones(2, 3), out, torch.ones(1, requires_grad=True))
