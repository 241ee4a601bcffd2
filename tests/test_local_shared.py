"""Positions that share weights, in blocks or tiles: everything is that of the local layer with the weights copied to all positions."""

import io

import pytest
import torch
from calls import Largest
from hypothesis import given
from hypothesis import strategies as st

from cnn425 import nn
from cnn425.agreement import compare, transforms
from cnn425.algorithms import use
from cnn425.layers.local import shared_local
from cnn425.nn import functional as F
from cnn425.windows import Sharing

float64 = {"dtype": torch.float64}
WAYS = {"blocks": {"share": 2}, "ragged blocks": {"share": (3, 2, 2)}, "tiles": {"tile": 2}, "uneven tiles": {"tile": (3, 2, 2)}}
# Each case is named after the bug it kills.
CASES = {
    "plain": {},
    "one stride for both axes": {"stride": (1, 2, 1)},
    "padding of the next set": {"padding": (1, 2, 1)},
    "low padding used for the high side": {"padding": ((1, 0), (0, 2), (2, 1))},
    "dilation forgotten": {"dilation": 2},
    "groups see one another": {"groups": 2},
    "pixels no window reaches": {"stride": (2, 2, 1), "dilation": (1, 2, 1)},
    "same with strides": {"padding": "same", "stride": 2},
    "without bias": {"bias": False},
    "bias per channel": {"bias": "channel"},
    "a border that is a mirror": {"padding": 1, "padding_mode": "reflect"},
}


def built(d, n=2, channels=(2, 4), **arguments):
    arguments = {k: v[:d] if isinstance(v, tuple) else v for k, v in arguments.items()}
    layer = getattr(nn, f"LocallyConnected{d}d")(*channels, tuple(range(6, 6 + d)), 2, **arguments, **float64)
    return layer, torch.randn(n, channels[0], *range(6, 6 + d), **float64)


def by_definition(layer):
    """The function of weight, bias and image that first copies the weights to all positions."""
    sharing, twin = Sharing(layer.share, layer.tile), layer.unshared()

    def function(w, b, x):
        bias = b if b is None or b.ndim == 1 else sharing.copied(b, layer.output_size, 1)
        parameters = {"weight": sharing.copied(w, layer.output_size)} | ({} if b is None else {"bias": bias})
        return torch.func.functional_call(twin, parameters, (x,))

    return function


def of_layer(layer):
    """The layer as a function of weight, bias and image."""
    return lambda w, b, x: torch.func.functional_call(layer, {"weight": w} | ({} if b is None else {"bias": b}), (x,))


@pytest.mark.parametrize("d", [1, 2, 3])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_those_of_copied_weights(case, way, d):
    layer, x = built(d, **{**WAYS[way], **CASES[case]})
    assert compare(of_layer(layer), by_definition(layer), (layer.weight, layer.bias, x))
    torch.testing.assert_close(layer.unshared()(x), layer(x))


@st.composite
def layers(draw):
    d = draw(st.integers(1, 3))
    numbers = st.integers(1, 4)
    way = draw(st.sampled_from(["share", "tile"]))
    sets = tuple(draw(st.integers(1, 3)) for _ in range(d))
    settings = {name: tuple(draw(st.integers(low, 3)) for _ in range(d)) for name, low in (("stride", 1), ("padding", 0))}
    return d, {way: sets, **settings, "groups": draw(st.integers(1, 2)), "n": draw(numbers)}


@given(layers())
@pytest.mark.parametrize("algorithm", [None, "definition"])
def test_any_sizes(algorithm, case):
    d, settings = case
    try:
        layer, x = built(d, **settings)
    except ValueError:  # more tiles than positions
        return
    with use(algorithm) if algorithm else torch.enable_grad():
        assert compare(of_layer(layer), by_definition(layer), (layer.weight, layer.bias, x))


def with_threads(threads, function):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return function()
    finally:
        torch.set_num_threads(before)


def test_sets_that_no_position_uses_have_no_gradient():
    x, w = torch.randn(40, 4, 5, 7), torch.randn(7, 2, 16, 4, 3, 3, requires_grad=True)
    for _ in range(5):
        torch.full_like(w, torch.nan)  # so that memory holds something else
        y = shared_local(x, w, None, (1, 1), (7, 2), 1, 1, 1, 1)
        (gw,) = torch.autograd.grad(y.sum(), w)
        assert not gw[5:].any()
        assert all(one.any() for one in gw[:5])


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("way", [*WAYS, "all"])
def test_more_images_than_a_cache_holds(way, threads):
    """Images are brought in order some at a time; a sum of whole numbers is the same in any order, and must not lose a part of them."""
    sharing = {name: t if type(t) is int else t[:2] for name, t in WAYS.get(way, {"share": 16}).items()}
    layer = nn.LocallyConnected2d(8, 80, (16, 12), 3, groups=2, padding=1, **sharing)
    x = torch.randint(-2, 3, (150, 8, 16, 12)).float()
    weight = torch.randint(-2, 3, layer.weight.shape).float().requires_grad_()

    def gradient():
        y = shared_local(x, weight, None, layer.share, layer.tile, 1, 1, 1, 2)
        return torch.autograd.grad(y, weight, (torch.arange(y.numel()) % 5 - 2.0).view_as(y))[0]

    found = with_threads(threads, gradient)
    with use("definition"):
        assert torch.equal(found, gradient())


SIZES = {  # channels, outputs, groups, kernel, stride, dilation, padding, sharing
    "blocks that fill registers": (8, 5, 1, 3, 1, 1, 1, {"share": 4}),
    "the last block is smaller than a register": (8, 5, 1, 3, 1, 1, 1, {"share": (2, 5)}),
    "blocks wider than registers": (4, 3, 1, 3, 1, 2, 2, {"share": (3, 40)}),
    "cells of a window meet in a tile": (1, 3, 1, 3, 1, 1, 1, {"share": 4}),
    "groups of one channel": (4, 4, 4, 3, 1, 1, 1, {"share": 4}),
    "stride": (8, 6, 2, 3, 2, 1, 1, {"share": 4}),
    "tiles": (8, 20, 1, 3, 1, 2, 2, {"tile": 2}),
    "tiles in groups": (4, 8, 4, 3, 1, 1, 1, {"tile": (3, 2)}),
    "tiles with several outputs per channel": (16, 32, 16, 3, 1, 1, 1, {"tile": 2}),
    "tiles with stride": (16, 17, 1, (2, 3), 2, 1, 1, {"tile": (2, 3)}),
}


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("images", [1, 3, 4, 8, 17, 70])
@pytest.mark.parametrize("case", SIZES)
def test_any_number_of_images(case, images, threads):
    """Whole numbers are the same in any order of adding."""
    C, O, groups, kernel, stride, dilation, padding, sharing = SIZES[case]
    layer = nn.LocallyConnected2d(C, O, (9, 26), kernel, stride, padding, dilation, groups, **sharing)
    x, w, b = (torch.randint(-2, 3, shape).float() for shape in ((images, C, 9, 26), layer.weight.shape, layer.bias.shape))

    def found():
        given = [t.clone().requires_grad_() for t in (x, w, b)]
        y = shared_local(*given, layer.share, layer.tile, stride, padding, dilation, groups)
        return y, *torch.autograd.grad(y, given, (torch.arange(y.numel()) % 5 - 2.0).view_as(y))

    ours = with_threads(threads, found)
    with use("definition"):
        for one, other in zip(ours, found(), strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("images", [3, 20, 70])
@pytest.mark.parametrize(("channels", "outputs"), [(1, 3), (4, 5), (3, 150)])
@pytest.mark.parametrize("sharing", [{"share": 1}, {"share": 4}, {"tile": 2}], ids=str)
def test_the_bits_are_the_same_with_any_number_of_threads(sharing, channels, outputs, images):
    layer, x = nn.LocallyConnected2d(channels, outputs, (9, 26), 3, **sharing), torch.randn(images, channels, 9, 26, requires_grad=True)

    def passes():
        y = layer(x)
        upstream = torch.sin(torch.arange(y.numel()).float()).view_as(y)
        return y, *torch.autograd.grad(y, [x, layer.weight, layer.bias], upstream)

    found = [with_threads(threads, passes) for threads in (1, 2, 3, 5)]
    for others in found[1:]:
        assert all(torch.equal(one, other) for one, other in zip(found[0], others, strict=True))


@pytest.mark.parametrize("images", [3, 20])
@pytest.mark.parametrize("sharing", [{"share": 4}, {"share": 5}, {"tile": 2}], ids=str)
def test_an_infinite_weight_reaches_only_the_pixels_of_its_set(sharing, images):
    layer, x = nn.LocallyConnected2d(8, 16, (9, 26), 3, **sharing, bias=False), torch.randn(images, 8, 9, 26, requires_grad=True)
    with torch.no_grad():
        layer.weight[0, 1, 2, 3, 1, 1] = torch.inf
    y = layer(x)
    found = torch.autograd.grad(y, x, torch.ones_like(y))[0]
    with use("definition"):
        assert torch.equal(layer(x).isfinite(), y.isfinite())
        assert torch.equal(torch.autograd.grad(layer(x), x, torch.ones_like(y))[0].isfinite(), found.isfinite())


def test_pencil_who_shares_with_whom():
    x, w = torch.ones(1, 1, 5), torch.tensor([1.0, 2, 3]).view(3, 1, 1, 1)
    assert shared_local(x, w, None, (2,), None, 1, 0, 1, 1).tolist() == [[[1, 1, 2, 2, 3]]]
    assert shared_local(x, w, None, (1,), (3,), 1, 0, 1, 1).tolist() == [[[1, 2, 3, 1, 2]]]


def test_parameters_from_a_local_layer_to_a_convolution():
    shapes = [
        nn.LocallyConnected2d(3, 4, 8, 3, **way).weight.shape[:2]
        for way in ({}, {"share": 2}, {"share": (4, 3)}, {"share": 6}, {"tile": 2})
    ]
    assert shapes == [(6, 6), (3, 3), (2, 2), (1, 1), (2, 2)]
    conv = torch.nn.Conv2d(3, 4, 3)
    assert sum(p.numel() for p in nn.LocallyConnected2d(3, 4, 8, 3, share=6).parameters()) == sum(p.numel() for p in conv.parameters())


@pytest.mark.parametrize("way", WAYS)
def test_from_and_to_a_convolution_and_unshared(way):
    conv = torch.nn.Conv2d(2, 4, 3, padding=1, stride=2, groups=2).double()
    arguments = {k: v[:2] if isinstance(v, tuple) else v for k, v in WAYS[way].items()}
    layer, x = nn.LocallyConnected2d.from_conv(conv, (9, 8), **arguments), torch.randn(2, 2, 9, 8, **float64)
    torch.testing.assert_close(layer(x), conv(x))
    torch.testing.assert_close(layer.to_conv().state_dict(), conv.state_dict())
    layer = nn.LocallyConnected2d(2, 4, (9, 8), 3, **arguments, **float64)
    torch.testing.assert_close(layer.to_conv().state_dict(), layer.unshared().to_conv().state_dict())
    assert type(layer.unshared()) is nn.LocallyConnected2d


@pytest.mark.parametrize("way", ["ragged blocks", "uneven tiles"])
def test_derivatives_transforms_and_the_compiler(way):
    layer, x = built(1, n=1, channels=(2, 2), groups=2, **WAYS[way])
    given = [layer.weight.detach().requires_grad_(), layer.bias.detach().requires_grad_(), x.requires_grad_()]
    ours, theirs = of_layer(layer), by_definition(layer)
    assert torch.autograd.gradcheck(ours, given, check_forward_ad=True, check_batched_grad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(ours, given, fast_mode=True)
    assert not any(transforms(ours, theirs, given).values())
    layer, x = built(2, **WAYS[way])
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend="aot_eager")(x), layer(x))


def test_a_pixel_outside_the_windows_of_a_set_changes_nothing():
    x = torch.ones(1, 1, 6)
    x[0, 0, 5] = torch.inf  # no window shows it
    for share, tile in (((2,), None), ((1,), (2,))):
        w = torch.zeros(2, 1, 1, 1, requires_grad=True)
        y = shared_local(x, w, None, share, tile, 2, ((0, 0),), 1, 1)[..., :2]
        assert torch.autograd.grad(y.sum(), w)[0].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("way", ["blocks", "tiles"])
def test_every_dtype_and_unbatched_images(way, dtype):
    layer, x = built(2, **WAYS[way])
    tolerance = {"rtol": 2e-2, "atol": 2e-2} if dtype.itemsize == 2 else {}
    expected = layer(x).to(dtype)
    layer = layer.to(dtype)
    torch.testing.assert_close(layer(x.to(dtype)), expected, **(tolerance or {"rtol": 1e-4, "atol": 1e-4}))
    torch.testing.assert_close(layer(x[0].to(dtype)), expected[0], **(tolerance or {"rtol": 1e-4, "atol": 1e-4}))


def test_state_lazy_repr_and_symbolic_trace():
    layer, x = nn.LocallyConnected2d(2, 3, 7, 3, share=(2, 3)), torch.randn(2, 2, 7, 7)
    assert "share=(2, 3)" in repr(layer)
    assert "tile=(2, 2)" in repr(nn.LocallyConnected2d(2, 3, 7, 3, tile=2))
    lazy = nn.LazyLocallyConnected2d(3, 3, share=(2, 3))
    lazy(x)
    assert repr(lazy) == repr(layer)
    lazy.load_state_dict(layer.state_dict())
    assert torch.equal(lazy(x), layer(x))
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    assert torch.equal(torch.load(buffer, weights_only=False)(x), layer(x))
    assert torch.equal(torch.fx.symbolic_trace(torch.nn.Sequential(layer))(x), layer(x))
    with torch.autocast("cpu"):
        assert layer(x).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"share": 0}, "share and tile must be positive"),
        ({"share": 2, "tile": 2}, "one of them at most"),
        ({"share": (1, 2), "tile": 2}, "one of them at most"),
        ({"tile": 9}, r"tile=\(9, 9\) is larger than the output of 5 x 5 positions"),
    ],
    ids=str,
)
def test_refusals(arguments, message):
    with pytest.raises(ValueError, match=message):
        nn.LocallyConnected2d(1, 1, 7, 3, **arguments)
    with pytest.raises(RuntimeError, match=r"to have 1 channels, but got 2 channels instead"):
        nn.LocallyConnected2d(1, 1, 7, 3, share=2)(torch.zeros(1, 2, 7, 7))


def test_no_tensor_of_the_size_of_the_copied_weight_is_made():
    layer = nn.LocallyConnected2d(8, 8, 26, 3, share=6)
    x = torch.randn(1, 8, 26, 26, requires_grad=True)
    with Largest() as mode:
        layer(x).sum().backward()
    assert mode.numbers < layer.unshared().weight.numel() / 5


@pytest.mark.parametrize("way", [{"share": 1}, {"tile": 5}], ids=str)
def test_with_a_set_for_each_position_it_is_the_local_layer(way):
    x, layer = torch.randn(1, 2, 7, 7), nn.LocallyConnected2d(2, 3, 7, 3, **way)
    torch.testing.assert_close(layer(x), F.locally_connected2d(x, layer.weight, layer.bias))


@pytest.mark.parametrize("sharing", [{"share": 2}, {"tile": 2}], ids=str)
@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("weight", (1, 1, 4, 2, 3, 3)),
        ("weight", (2, 4, 2, 3, 3)),
        ("weight", (5, 4, 4, 2, 3, 3)),
        ("bias", (4, 1)),
        ("bias", (4, 1, 1)),
        ("bias", (3,)),
        ("bias", (4, 5, 4)),
    ],
    ids=str,
)
def test_parameters_of_other_sets_are_refused(sharing, name, size):
    """Loops would read behind them."""
    layer = nn.LocallyConnected2d(2, 4, 10, 3, **sharing)
    with pytest.raises(RuntimeError, match=r"weight of size .* holds|Expected 6-d|expected bias of size .* \(per set of weights\)"):
        torch.func.functional_call(layer, {name: torch.ones(size)}, (torch.ones(3, 2, 10, 10),))


def test_a_lazy_layer_that_was_loaded_refuses_images_of_another_size():
    lazy = nn.LazyLocallyConnected2d(8, 3, share=2)
    lazy.load_state_dict(nn.LocallyConnected2d(3, 8, 7, 3, share=2).state_dict())
    with pytest.raises(RuntimeError, match="holds 3 x 3 sets, but the windows of an input of 13 x 13 pixels use 6 x 6 sets"):
        lazy(torch.ones(8, 3, 13, 13))


@pytest.mark.parametrize("sharing", [{"share": 2}, {"tile": 2}], ids=str)
def test_groups_may_be_a_tensor(sharing):
    layer = nn.LocallyConnected2d(4, 8, 13, 3, groups=torch.tensor(2), **sharing)
    assert layer(torch.randn(8, 4, 13, 13)).shape == (8, 8, 11, 11)
