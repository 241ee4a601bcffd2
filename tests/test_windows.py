"""Windows and their adjoint: the geometry everything else stands on."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cnn425.windows import Adaptive, Geometry, Side, in_dimensions, pad, scatter, windows

geometries = st.builds(
    lambda dims, ceil: Geometry(*map(tuple, zip(*dims, strict=True)), ceil),
    st.lists(
        st.tuples(st.integers(1, 3), st.integers(1, 3), st.tuples(st.integers(0, 2), st.integers(0, 2)), st.integers(1, 3)),
        min_size=1,
        max_size=3,
    ),
    st.booleans(),
)


def test_pencil_every_window_of_a_3x3_image():
    x = torch.arange(9).view(3, 3)
    expected = torch.tensor([[[[0, 1], [3, 4]], [[1, 2], [4, 5]]], [[[3, 4], [6, 7]], [[4, 5], [7, 8]]]])
    assert torch.equal(windows(x, Geometry((2, 2), (1, 1), ((0, 0), (0, 0)), (1, 1))), expected)


def test_pencil_scatter_counts_how_many_windows_see_each_pixel():
    geometry = Geometry((2, 2), (1, 1), ((0, 0), (0, 0)), (1, 1))
    assert torch.equal(scatter(torch.ones(2, 2, 2, 2), geometry, (3, 3)), torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]]))


def test_windows_are_a_view_of_an_unpadded_image():
    x = torch.zeros(2, 5, 5)
    windows(x, Geometry((3, 3), (1, 1), ((0, 0), (0, 0)), (1, 1)))[:, 1, 1, 0, 0] = 7
    assert x[0, 1, 1] == 7
    assert x.sum() == 14


@given(geometries, st.data())
def test_definition_by_an_explicit_loop(geometry, data):
    """windows[..., i, u] = x[..., i*s + u*d - p], one number after another, zero outside."""
    size = [data.draw(st.integers(max(1, e - low - high), e + 4)) for e, (low, high) in zip(geometry.extent, geometry.padding, strict=True)]
    x = torch.randn(2, *size)
    view = windows(x, geometry)
    assert view.shape == (2, *geometry.positions(size), *geometry.kernel)
    for index in itertools.islice(itertools.product(*map(range, view.shape[1:])), 400):
        i, u = index[: len(size)], index[len(size) :]
        pixel = [
            a * s + b * d - low for a, b, s, d, (low, _) in zip(i, u, geometry.stride, geometry.dilation, geometry.padding, strict=True)
        ]
        inside = all(0 <= p < n for p, n in zip(pixel, size, strict=True))
        assert torch.equal(view[(slice(None), *index)], x[(slice(None), *pixel)] if inside else torch.zeros(2))


@given(geometries, st.data())
def test_scatter_is_the_adjoint_of_windows(geometry, data):
    """<windows(x), r> = <x, scatter(r)> for every x and r."""
    size = [data.draw(st.integers(max(1, e - low - high), e + 4)) for e, (low, high) in zip(geometry.extent, geometry.padding, strict=True)]
    x = torch.randn(2, *size, dtype=torch.float64)
    view = windows(x, geometry)
    r = torch.randn_like(view)
    torch.testing.assert_close((view * r).sum(), (x * scatter(r, geometry, size)).sum())


@pytest.mark.parametrize("ceil_mode", [False, True])
def test_positions_are_those_of_torchs_pools(ceil_mode):
    for n, k, s, p, d in itertools.product(range(1, 9), range(1, 4), range(1, 4), range(2), range(1, 3)):
        if p <= k // 2 and (k - 1) * d + 1 <= n + 2 * p:
            geometry = Geometry((k,), (s,), ((p, p),), (d,), ceil_mode)
            expected = torch.nn.functional.max_pool1d(torch.zeros(1, n), k, s, p, d, ceil_mode)
            assert geometry.positions((n,)) == expected.shape[1:], (n, k, s, p, d)


def test_pad_returns_the_image_itself_when_nothing_is_added():
    x = torch.zeros(3, 3)
    assert pad(x, ((0, 0), (0, 0))) is x
    assert pad(x + 1, ((1, 0), (0, 2))).tolist() == [[0] * 5, *[[1, 1, 1, 0, 0]] * 3]
    assert pad(x, ((-1, 0), (0, -2))).shape == (2, 1)


@pytest.mark.parametrize(("dimensions", "expected"), [(1, "nciu,ocu->noi"), (2, "ncijuv,ocuv->noij"), (3, "ncijkuvw,ocuvw->noijk")])
def test_letters_in_each_number_of_dimensions(dimensions, expected):
    assert in_dimensions("ncijuv,ocuv->noij", dimensions) == expected


def test_channels_last_images_keep_their_strides():
    x = torch.randn(2, 3, 5, 5).to(memory_format=torch.channels_last)
    geometry = Geometry((3, 3), (2, 2), ((1, 1), (1, 1)), (1, 1))
    torch.testing.assert_close(windows(x, geometry), windows(x.contiguous(), geometry))


# ---- The windows along one side ----------------------------------------------------------------------------------------------------------


def pixels(side, i):
    """The pixels that window `i` covers, padding included."""
    first = int(side.first[i])
    return [first + u * side.step for u in range(int(side.cells[i]))]


def test_pencil_adaptive_windows_share_pixels_where_sizes_do_not_divide():
    side = Adaptive((3,)).side(0, 5)
    assert [pixels(side, i) for i in range(3)] == [[0, 1], [1, 2, 3], [3, 4]]


@given(st.integers(1, 12), st.integers(1, 30))
def test_adaptive_windows_are_those_of_their_definition(m, n):
    """Window i of m along n pixels: from floor(i n / m) to ceil((i + 1) n / m), so every pixel is in one."""
    adaptive = Adaptive((m,))
    side = adaptive.side(0, n)
    assert adaptive.positions((n,)) == (m,)
    for i in range(m):
        assert pixels(side, i) == list(range(i * n // m, -(-(i + 1) * n // m)))
        assert len(pixels(side, i)) <= side.longest
        assert int(side.counted[i]) == len(pixels(side, i))
    assert set().union(*(pixels(side, i) for i in range(m))) == set(range(n))


@given(geometries, st.data())
def test_a_side_has_the_first_pixel_and_the_cells_of_each_window(geometry, data):
    size = [data.draw(st.integers(max(1, e - low - high), e + 4)) for e, (low, high) in zip(geometry.extent, geometry.padding, strict=True)]
    for dim, n in enumerate(size):
        side = geometry.side(dim, n)
        count, low, high = geometry.positions(size)[dim], geometry.padding[dim][0], geometry.padding[dim][1]
        assert len(side.first) == count
        for i in range(count):
            start = i * geometry.stride[dim] - low
            assert pixels(side, i) == [start + u * geometry.dilation[dim] for u in range(geometry.kernel[dim])]
            assert int(side.counted[i]) == min(start + geometry.kernel[dim], n + high) - start  # for averages, which have no dilation


@given(st.one_of(geometries, st.builds(Adaptive, st.tuples(st.integers(1, 9)))), st.integers(0, 12))
def test_inside_are_the_pixels_of_the_image(places, more):
    n = max(1, (places.extent[0] if isinstance(places, Geometry) else 1) - 3) + more
    if places.positions((n,) * places.dimensions)[0] < 1:
        return
    side = places.side(0, n)
    first, cells = side.inside(n)
    for i in range(len(side.first)):
        expected = [p for p in pixels(side, i) if 0 <= p < n]
        assert int(cells[i]) == len(expected)
        assert not expected or [int(first[i]) + u * side.step for u in range(int(cells[i]))] == expected


@given(st.one_of(geometries, st.builds(Adaptive, st.tuples(st.integers(1, 9)))), st.integers(0, 12))
def test_showing_are_the_windows_of_a_pixel(places, more):
    """The adjoint of `inside`; cells are neighbours."""
    if isinstance(places, Geometry):
        places = places._replace(dilation=(1,) * places.dimensions)
    n = max(1, (places.extent[0] if isinstance(places, Geometry) else 1) - 3) + more
    if places.positions((n,) * places.dimensions)[0] < 1:
        return
    side = places.side(0, n)
    first, count = side.showing(n)
    for pixel in range(n):
        expected = [i for i in range(len(side.first)) if pixel in pixels(side, i)]
        assert int(count[pixel]) == len(expected)
        assert not expected or list(range(int(first[pixel]), int(first[pixel]) + int(count[pixel]))) == expected


def test_a_side_may_be_written_by_hand():
    side = Side(torch.tensor([-3, 0, 4]), torch.tensor([3, 3, 3]), 2, torch.tensor([3, 3, 3]), 3)
    assert [t.tolist() for t in side.inside(6)] == [[1, 0, 4], [1, 3, 1]]


@pytest.mark.parametrize("output", [(3, 4), (9, 1)])
def test_adaptive_windows_are_torchs(output):
    x = torch.arange(7 * 8.0).view(1, 7, 8)
    sides = [Adaptive(output).side(dim, n) for dim, n in enumerate((7, 8))]
    mine = [[x[0][pixels(sides[0], i)][:, pixels(sides[1], j)].mean() for j in range(output[1])] for i in range(output[0])]
    torch.testing.assert_close(torch.tensor(mine), torch.nn.functional.adaptive_avg_pool2d(x, output)[0])


def test_more_pixels_are_cropped_on_one_side_than_there_were_before_the_other_was_padded():
    assert pad(torch.tensor([1.0, 2.0]), [(2, -3)]).tolist() == [0.0]
    assert pad(torch.tensor([[1.0, 2.0]]), [(1, 0), (-3, 2)]).tolist() == [[0.0], [0.0]]
