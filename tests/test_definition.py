"""The definition by pencil: what an einsum over windows says, one number after the other; it is the oracle of every other way."""

import itertools

import pytest
import torch

from cnn425.algorithms import convolution, definition, local, use
from cnn425.windows import Geometry, Sharing

GEOMETRY = Geometry((2, 3), (2, 1), ((1, 0), (0, 2)), (1, 2))
SIZE, GROUPS = (5, 6), 2
POSITIONS = GEOMETRY.positions(SIZE)
X, GY = torch.randn(2, 4, *SIZE, dtype=torch.float64), torch.randn(2, 6, *POSITIONS, dtype=torch.float64)
SHARED = torch.randn(6, 2, 2, 3, dtype=torch.float64)
EACH, BLOCKS = Sharing((1, 1)), Sharing((2, 2))
OWN, OF_BLOCKS = (torch.randn(*s.sets(POSITIONS), 6, 2, 2, 3, dtype=torch.float64) for s in (EACH, BLOCKS))


def products(weight, sharing):
    """The three maps as a loop over every product, forward and both ways back."""
    y, gx, gw = torch.zeros_like(GY), torch.zeros_like(X), torch.zeros_like(weight)
    for n, o, i, j, c, u, v in itertools.product(range(2), range(6), *map(range, (*POSITIONS, 2, 2, 3))):
        h, w = i * 2 + u - 1, j + v * 2
        if 0 <= h < SIZE[0] and 0 <= w < SIZE[1]:
            of = () if sharing is None else (i // sharing.share[0], j // sharing.share[1])
            cell, channel = (*of, o, c, u, v), o // 3 * 2 + c
            y[n, o, i, j] += X[n, channel, h, w] * weight[cell]
            gx[n, channel, h, w] += GY[n, o, i, j] * weight[cell]
            gw[cell] += GY[n, o, i, j] * X[n, channel, h, w]
    return y, gx, gw


@pytest.mark.parametrize(
    ("weight", "sharing"), [(SHARED, None), (OWN, EACH), (OF_BLOCKS, BLOCKS)], ids=["convolution", "local layer", "blocks"]
)
def test_every_product_is_added_once(weight, sharing):
    mine = (
        definition.output(X, weight, GEOMETRY, GROUPS, sharing),
        definition.input_gradient(GY, weight, GEOMETRY, GROUPS, SIZE, sharing),
        definition.weight_gradient(GY, X, GEOMETRY, GROUPS, sharing),
    )
    for a, b in zip(mine, products(weight, sharing), strict=True):
        torch.testing.assert_close(a, b)


def test_sharing_is_an_expand_and_its_gradient_the_sum_over_positions():
    expanded = SHARED.expand(*POSITIONS, *SHARED.shape)
    torch.testing.assert_close(
        definition.output(X, SHARED, GEOMETRY, GROUPS), definition.output(X, expanded, GEOMETRY, GROUPS, sharing=EACH)
    )
    unshared = definition.weight_gradient(GY, X, GEOMETRY, GROUPS, sharing=EACH)
    torch.testing.assert_close(definition.weight_gradient(GY, X, GEOMETRY, GROUPS), unshared.sum((0, 1)))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.complex128])
def test_any_type_of_number(dtype):
    x, w = torch.randint(-5, 6, X.shape).to(dtype), torch.randint(-5, 6, SHARED.shape).to(dtype)
    expected = definition.output(x.to(torch.complex128), w.to(torch.complex128), GEOMETRY, GROUPS)
    assert torch.equal(definition.output(x, w, GEOMETRY, GROUPS).to(torch.complex128), expected)


@pytest.mark.parametrize("sharing", [None, Sharing((1,))], ids=["convolution", "local layer"])
def test_sums_of_half_precision_are_rounded_once(sharing):
    """Partial sums beyond 65504, the largest float16, cancel; what is added up in float16 becomes infinite, or NaN."""
    one, geometry = torch.tensor([40000.0, 40000.0, -40000.0, -39008.0], dtype=torch.float16), Geometry((4,), (1,), ((0, 0),), (1,))
    pixels, w, g = one.view(1, 1, 4), torch.ones((1, 1, 1, 4) if sharing else (1, 1, 4), dtype=torch.float16), torch.ones(1, 1, 1).half()
    layer, more = (local, (sharing,)) if sharing else (convolution, ())
    alone, pair = Geometry((1,), (1,), ((0, 0),), (1,)), Geometry((2,), (1,), ((1, 1),), (1,))
    images, upstream = one.view(4, 1, 1), torch.ones(4, 1, 1, dtype=torch.float16)
    outputs, weight = one.view((1, 4, 1, 1) if sharing else (4, 1, 1)), torch.tensor([400.0, -400.0]).half().view(1, 1, 2)
    own = weight.expand(3, 1, 1, 2) if sharing else weight  # each pixel is seen by two windows, which say 80000 and -80000
    with use("definition"):
        assert layer.output(pixels, w, geometry, 1, *more) == 992
        assert layer.weight_gradient(upstream, images, alone, 1, *more) == 992
        assert layer.input_gradient(g.expand(1, 4, 1), outputs, alone, 1, *more, (1,)) == 992
        assert layer.input_gradient(torch.full((1, 1, 3), 200.0).half(), own, pair, 1, *more, (2,)).tolist() == [[[0, 0]]]


def test_channels_in_groups_are_a_view():
    grouped = definition.split(X, 1, 2)
    assert grouped.shape == (2, 2, 2, *SIZE)
    assert grouped.data_ptr() == X.data_ptr()
