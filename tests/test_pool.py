"""Max and average pools: by pencil, against torch, against finite differences, by their properties, and where they refuse."""

import copy
import pickle
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as TF
from hypothesis import given, seed, settings
from hypothesis import strategies as st
from torch import nn
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.func import grad, jacfwd, jacrev, jvp, vmap
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from cnn425 import nn as cnn425_nn
from cnn425.agreement import compare
from cnn425.algorithms import pool as algorithm
from cnn425.algorithms import use
from cnn425.layers import pool, pool_average
from cnn425.nn import functional as F
from cnn425.windows import Adaptive, Geometry

LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


class Case(NamedTuple):
    name: str
    size: tuple[int, ...]
    kernel: int | tuple[int, ...]
    options: dict = {}


SHARED = [
    Case("windows tile the image", (6, 8), 2),
    Case("overlaps overwritten instead of added", (7, 7), 3, {"stride": 1}),
    Case("one stride for both axes", (7, 9), (3, 2), {"stride": (1, 2)}),
    Case("pixels no window reaches get no gradient", (7, 8), 2, {"stride": 3}),
    Case("padding competes or counts twice", (6, 5), 3, {"stride": 2, "padding": 1}),
    Case("ceil_mode window hangs over the edge", (6, 5), 3, {"stride": 2, "ceil_mode": True}),
    Case("ceil_mode window would start in the high padding", (5, 5), 2, {"stride": 4, "padding": 1, "ceil_mode": True}),
    Case("one window is the whole image", (5, 4), (5, 4)),
    Case("a kernel of one pixel", (4, 5), 1),
    Case("large overlapping windows go side after side", (9, 9), 5, {"stride": 1, "padding": 2}),
    Case("signal", (9,), 3, {"stride": 2, "padding": 1}),
    Case("signal, one-tuples", (9,), (2,), {"stride": (1,)}),
    Case("volume", (5, 4, 6), 2, {"ceil_mode": True}),
    Case("volume, overlaps", (4, 4, 5), (3, 2, 3), {"stride": (1, 2, 1), "padding": (1, 0, 1)}),
]
MAX = [
    *SHARED,
    Case("dilation", (7, 8), 2, {"dilation": (2, 3)}),
    Case("dilation and padding", (7, 7), 3, {"stride": 1, "padding": 1, "dilation": 2}),
]
AVERAGE = [
    *SHARED,
    Case("padding does not count", (6, 5), 3, {"stride": 2, "padding": 1, "count_include_pad": False}),
    Case("overhang counts", (6, 5), 3, {"stride": 2, "padding": 1, "ceil_mode": True}),
    Case("overhang and padding do not count", (6, 5), 3, {"stride": 2, "padding": 1, "ceil_mode": True, "count_include_pad": False}),
    Case("negative divisor", (6, 5), 2, {"divisor_override": -3}),
]


def named(cases):
    return pytest.mark.parametrize("case", cases, ids=lambda case: case.name)


def ours_and_torch(kind, size):
    name = f"{kind}_pool{len(size)}d"
    return getattr(pool_average if name.startswith("avg") else pool, name), getattr(TF, name)


def image(size, dtype=torch.float64, ties=True, batch=(2, 3)):
    generator = torch.Generator().manual_seed(len(size) + sum(size))
    x = torch.randint(-3, 4, (*batch, *size), generator=generator) if ties else torch.randn(*batch, *size, generator=generator)
    return x.to(dtype)


def both_layouts(x):
    return [x, x.to(memory_format=LAST[x.ndim]) if x.ndim in LAST else x.mT.contiguous().mT]


def distinct(size, batch=(2, 2)):
    """No two pixels are within 0.1 of one another, so that finite differences meet no corner."""
    count = torch.Size((*batch, *size)).numel()
    return (torch.randperm(count, generator=torch.Generator().manual_seed(0)).double() / 7).view(*batch, *size)


def same(ours, theirs, x, **tolerance):
    """Values, strides and the gradient under a random upstream agree."""
    torch.testing.assert_close(ours, theirs, check_stride=True, equal_nan=True, **tolerance)
    upstream = torch.randn(theirs.shape, generator=torch.Generator().manual_seed(1)).to(theirs)
    mine, his = (torch.autograd.grad(y, x, upstream)[0] for y in (ours, theirs))
    torch.testing.assert_close(mine, his, check_stride=True, **tolerance)


# ---- Pencil ----------------------------------------------------------------------------------------------------------------------------


def test_pencil_max():
    x = torch.tensor([[[1.0, 5, 2], [5, 0, 3], [4, 4, 4]]], requires_grad=True)
    y, where = pool.max_pool2d(x, 2, 1, return_indices=True)
    assert y.tolist() == [[[5, 5], [5, 4]]]
    assert where.tolist() == [[[1, 1], [3, 7]]]
    y.backward(torch.tensor([[[1.0, 10], [100, 1000]]]))
    assert x.grad.tolist() == [[[0, 11, 0], [100, 0, 0], [0, 1000, 0]]]


def test_pencil_average():
    x = torch.tensor([[[1.0, 5, 2], [5, 1, 4], [4, 2, 5]]], requires_grad=True)
    y = pool_average.avg_pool2d(x, 2, 1)
    assert y.tolist() == [[[3, 3], [3, 3]]]
    y.backward(torch.tensor([[[4.0, 8], [12, 16]]]))
    assert x.grad.tolist() == [[[1, 3, 2], [4, 10, 6], [3, 7, 4]]]


# ---- Torch -----------------------------------------------------------------------------------------------------------------------------


@named(MAX)
def test_max_pool_is_torchs(case):
    ours, theirs = ours_and_torch("max", case.size)
    for x in both_layouts(image(case.size)):
        x = x.requires_grad_()
        same(ours(x, case.kernel, **case.options), theirs(x, case.kernel, **case.options), x)
        y, where = ours(x, case.kernel, **case.options, return_indices=True)
        best, there = theirs(x, case.kernel, **case.options, return_indices=True)
        same(y, best, x)
        torch.testing.assert_close(where, there, check_stride=True)


@named(AVERAGE)
def test_average_pool_is_torchs(case):
    ours, theirs = ours_and_torch("avg", case.size)
    for x in both_layouts(image(case.size, ties=False)):
        x = x.requires_grad_()
        same(ours(x, case.kernel, **case.options), theirs(x, case.kernel, **case.options), x)


LAYOUTS = {
    "unbatched": lambda: torch.randn(3, 6, 7),
    "unbatched, channels last": lambda: torch.randn(6, 7, 3).permute(2, 0, 1),
    "expanded": lambda: torch.randn(1, 1, 6, 7).expand(2, 3, 6, 7),
    "every second pixel": lambda: torch.randn(2, 3, 12, 14)[:, :, ::2, ::2],
    "every second pixel, channels last": lambda: torch.randn(2, 3, 12, 14).to(memory_format=torch.channels_last)[:, :, ::2, ::2],
    "transposed": lambda: torch.randn(2, 3, 7, 6).mT,
    "one channel": lambda: torch.randn(2, 1, 6, 7).to(memory_format=torch.channels_last),
    "empty batch": lambda: torch.randn(0, 3, 6, 7),
    "larger than a block": lambda: torch.randn(5, 3, 190, 190),
    "larger than a block, channels last": lambda: torch.randn(5, 3, 190, 190).to(memory_format=torch.channels_last),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["max", "avg"])
def test_every_layout_gives_torchs_layout(kind, layout):
    torch.manual_seed(0)
    x = LAYOUTS[layout]().requires_grad_()
    ours, theirs = ours_and_torch(kind, (6, 7))
    for arguments in [(2,), (3, 2, 1), (3, 1, 1)]:
        same(ours(x, *arguments), theirs(x, *arguments), x)


GRADIENTS = {
    "max_pool3d": ((3, 4, 4, 6), 2),
    "adaptive_max_pool3d": ((3, 4, 4, 6), 2),
    "adaptive_avg_pool3d": ((2, 3, 4, 5, 6), 1),
    "adaptive_avg_pool2d": ((2, 3, 4, 5), 1),
    "adaptive_avg_pool1d": ((2, 3, 4), 1),
}


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("upstream", ["contiguous", "first", "last", "expanded"])
@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_are_stored_as_torchs_whatever_the_layout_of_the_upstream_gradient(name, upstream, last):
    shape, argument = GRADIENTS[name]
    channels = -int(name[-2]) - 1
    x = torch.randn(shape)
    x = (x.movedim(channels, -1).contiguous().movedim(-1, channels) if last else x).requires_grad_()
    for dtype in (torch.float32, torch.bfloat16):
        y, expected = (getattr(library, name)(x.to(dtype), argument) for library in (F, TF))
        gy = torch.randn_like(expected, memory_format=torch.contiguous_format)
        gy = gy.flatten()[0].expand(y.shape) if upstream == "expanded" else gy
        moved = {"first": 0, "last": -1}.get(upstream)
        gy = gy if moved is None else gy.movedim(channels, moved).contiguous().movedim(moved, channels)
        (mine,), (his,) = (torch.autograd.grad(output, x, gy) for output in (y, expected))
        torch.testing.assert_close(mine, his, check_stride=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_low_precision_adds_in_float32(dtype):
    x = image((6, 6), dtype, ties=False).requires_grad_()
    tolerance = {"rtol": 1.6e-2, "atol": 1e-2}
    same(pool_average.avg_pool2d(x, 3, 1, 1), TF.avg_pool2d(x, 3, 1, 1), x, **tolerance)
    same(pool.max_pool2d(x, 3, 1, 1), TF.max_pool2d(x, 3, 1, 1), x, **tolerance)
    y, exact = pool_average.avg_pool2d(x, 5), TF.avg_pool2d(x.double(), 5)
    torch.testing.assert_close(y.double(), exact, rtol=torch.finfo(dtype).eps, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_integers_where_torch_takes_them(dtype):
    x = image((5, 6)).abs().to(dtype)
    for ours, theirs in zip(pool.max_pool2d(x, 3, 2, 1, return_indices=True), TF.max_pool2d(x, 3, 2, 1, return_indices=True), strict=True):
        assert torch.equal(ours, theirs)


def test_integer_means_are_cut_off():
    x = image((5, 6)).long()
    assert torch.equal(pool_average.avg_pool2d(x, 3, 2, 1), TF.avg_pool2d(x, 3, 2, 1))


@pytest.mark.parametrize("spoiled", [torch.nan, torch.inf, -torch.inf])
def test_nan_wins_and_infinity_stays_in_its_window(spoiled):
    x = image((6, 7))
    x[torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) < 0.3] = spoiled
    x.requires_grad_()
    y, where = pool.max_pool2d(x, 3, 1, 1, return_indices=True)
    best, there = TF.max_pool2d(x, 3, 1, 1, return_indices=True)
    assert torch.equal(where, there)
    same(y, best, x)
    same(pool_average.avg_pool2d(x, 2), TF.avg_pool2d(x, 2), x)


def test_infinite_gradient_does_not_reach_the_losers():
    x = image((4, 4)).requires_grad_()
    upstream = torch.full((2, 3, 2, 2), torch.inf, dtype=torch.float64)
    mine, his = (torch.autograd.grad(library.max_pool2d(x, 2), x, upstream)[0] for library in (pool, TF))
    assert torch.equal(mine, his)


@pytest.mark.parametrize("dimensions", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_autocast_widens_volumes_only(dimensions, dtype):
    x = image((4,) * dimensions, dtype)
    for kind in ("max", "avg"):
        ours, theirs = ours_and_torch(kind, (4,) * dimensions)
        with torch.autocast("cpu", torch.bfloat16):
            assert ours(x, 2).dtype == theirs(x, 2).dtype


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_difference_average_volumes_take_half_precision(dtype):
    x = image((4, 4, 4), dtype)
    torch.testing.assert_close(pool_average.avg_pool3d(x, 2), TF.avg_pool3d(x.float(), 2).to(dtype))


def test_difference_a_window_wholly_in_the_padding_has_no_index():
    x = torch.ones(1, 1, 2, 2, dtype=torch.float64, requires_grad=True)
    y, where = pool.max_pool2d(x, 2, 1, 1, 3, return_indices=True)
    assert (y.item(), where.item()) == (-torch.inf, -1)
    assert not torch.autograd.grad(y, x)[0].any()
    y = pool.max_pool3d(torch.ones(1, 2, 2, 2), 2, 1, 1, 3)
    assert y.item() == -torch.inf


def test_deterministic_mode():
    x = image((6, 6)).requires_grad_()
    torch.use_deterministic_algorithms(True)
    try:
        for kind in ("max", "avg"):
            ours, theirs = ours_and_torch(kind, (6, 6))
            same(ours(x, 3, 1), theirs(x, 3, 1), x)
    finally:
        torch.use_deterministic_algorithms(False)


# ---- Finite differences ----------------------------------------------------------------------------------------------------------------

DIFFERENTIABLE = {
    f"{kind}{d}{'' if n == 0 else ', overlapping'}": (kind, d, arguments)
    for kind in ("max", "avg")
    for d in (1, 2, 3)
    for n, arguments in enumerate([(2,), (3, 2, 1)])
}


@pytest.mark.parametrize("which", DIFFERENTIABLE)
def test_derivatives_of_every_order(which):
    kind, d, arguments = DIFFERENTIABLE[which]
    ours, _ = ours_and_torch(kind, (4,) * d)
    x = distinct((4,) * d, (1, 2)).requires_grad_()
    fast = d == 3

    def f(x):
        return ours(x, *arguments)

    assert gradcheck(f, x, check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True, fast_mode=fast)
    assert gradgradcheck(f, x, check_fwd_over_rev=True, fast_mode=fast)


def test_tangent_of_the_indexed_pool():
    x = distinct((5, 5))
    t = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(3))
    with forward_ad.dual_level():
        y, where = pool.max_pool2d(forward_ad.make_dual(x, t), 3, 2, return_indices=True)
        tangent = forward_ad.unpack_dual(y).tangent
    assert torch.equal(tangent.flatten(2), t.flatten(2).gather(2, where.flatten(2)))


# ---- Transforms ------------------------------------------------------------------------------------------------------------------------

TRANSFORMED = {
    "max": lambda x: pool.max_pool2d(x, 3, 2, 1),
    "indexed max": lambda x: pool.max_pool2d(x, 2, 1, return_indices=True)[0],
    "average": lambda x: pool_average.avg_pool2d(x, 3, 2, 1, ceil_mode=True, count_include_pad=False),
    "signal": lambda x: pool.max_pool1d(x.flatten(-2), 2),
    "volume": lambda x: pool_average.avg_pool3d(x.unsqueeze(-3), (1, 2, 2)),
}


@pytest.mark.parametrize("which", TRANSFORMED)
def test_torch_func(which):
    f, x = TRANSFORMED[which], distinct((5, 6), (2, 3))
    t = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(3))

    def loss(x):
        return f(x).sin().sum()

    leaf = x.clone().requires_grad_()
    torch.testing.assert_close(grad(loss)(x), torch.autograd.grad(loss(leaf), leaf)[0])
    torch.testing.assert_close(jacrev(f)(x[0]), jacfwd(f)(x[0]))
    torch.testing.assert_close(jvp(f, (x[0],), (t[0],))[1], torch.einsum("...chw,chw->...", jacrev(f)(x[0]), t[0]))
    torch.testing.assert_close(vmap(f)(x), f(x))
    torch.testing.assert_close(vmap(f, in_dims=2, out_dims=2)(x.unsqueeze(2).expand(2, 3, 4, 5, 6))[:, :, 1], f(x))
    torch.testing.assert_close(vmap(grad(loss))(x), torch.stack([grad(loss)(a) for a in x]))
    assert f(x.to("meta")).shape == f(x).shape
    checkpoint(loss, leaf, use_reentrant=False).backward()
    torch.testing.assert_close(leaf.grad, grad(loss)(x))


def test_single_volumes_with_their_channels_last_are_batched():
    x = torch.randn(2, 4, 4, 4, 3).movedim(-1, 1).requires_grad_()
    y = vmap(lambda volume: F.max_pool3d(volume, 2))(x)
    assert torch.equal(y, TF.max_pool3d(x, 2))
    gy = torch.randn(5, 2, 2, 2, 3).movedim(-1, 1)
    mine, his = (torch.autograd.grad(f(x[0], 2), x, gy, is_grads_batched=True)[0] for f in (F.max_pool3d, TF.max_pool3d))
    assert torch.equal(mine, his)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("which", "dynamic"), [("max", True), ("average", True), ("indexed max", False), ("volume", False)])
def test_compile_without_graph_breaks(which, dynamic):
    f = TRANSFORMED[which]
    torch._dynamo.reset()
    compiled = torch.compile(f, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for size in [(5, 6), (7, 6)] if dynamic else [(5, 6)]:
        x = distinct(size).requires_grad_()
        same(compiled(x), f(x), x)


@pytest.mark.parametrize("which", ["max", "average"])
def test_export(which):
    f = TRANSFORMED[which]

    class Pooled(nn.Module):
        def forward(self, x):
            return f(x)

    x = distinct((5, 6))
    mine = torch.export.export(Pooled(), (x,), strict=True).module()(x)
    torch.testing.assert_close(mine, f(x), **({"rtol": 0, "atol": 0} if which == "max" else {}))  # traced sums take another order


class Record(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.name())
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("nan", [False, True])
@pytest.mark.parametrize("which", TRANSFORMED)
def test_no_peeking(which, nan):
    x = distinct((5, 6), (2, 3))
    if nan:
        x[0, 0, 0, 0] = torch.nan
    x.requires_grad_()
    with Record() as record:
        y = TRANSFORMED[which](x)
        (g,) = torch.autograd.grad(y.sin().sum(), x, create_graph=True)
        torch.autograd.grad(g.sin().sum(), x)
    forbidden = ("pool", "unfold", "im2col", "col2im", "conv")
    assert record.names
    assert [name for name in record.names if any(word in name for word in forbidden)] == []


# ---- Properties ------------------------------------------------------------------------------------------------------------------------


def test_max_pooling_conserves_the_total_gradient():
    x = image((9, 9)).requires_grad_()
    y = pool.max_pool2d(x, 3, 1, 1)
    upstream = torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(torch.autograd.grad(y, x, upstream)[0].sum(), upstream.sum())


def test_average_pooling_is_convolution_with_a_constant_kernel():
    x = image((7, 8), ties=False)
    kernel = torch.full((3, 1, 2, 3), 1 / 6, dtype=x.dtype)
    torch.testing.assert_close(pool_average.avg_pool2d(x, (2, 3), 1), TF.conv2d(x, kernel, groups=3))


WINDOWS = {
    "tiles": Geometry((2, 3), (2, 3), ((0, 0), (0, 0)), (1, 1)),
    "overlapping": Geometry((3, 2), (2, 1), ((1, 1), (1, 1)), (1, 1)),
    "overhanging": Geometry((3, 2), (2, 2), ((1, 1), (0, 0)), (1, 1), True),
    "dilated, some without pixels": Geometry((3, 2), (1, 1), ((1, 1), (1, 2)), (3, 9)),
    "more padding on one side": Geometry((3, 3), (2, 1), ((0, 2), (1, 0)), (2, 1)),
    "pixels between the windows": Geometry((1, 2), (3, 4), ((0, 0), (1, 1)), (1, 1)),
    "adaptive": Adaptive((3, 5)),
    "adaptive, more windows than pixels": Adaptive((9, 11)),
    "everything": Adaptive((1, 1)),
    "dilated, a row of windows without pixels": Geometry((2, 2), (1, 1), ((1, 2), (0, 0)), (8, 1)),
    "volumes": Geometry((2, 3, 2), (1, 2, 1), ((1, 1), (0, 1), (1, 0)), (1, 1, 1)),
    "volumes, dilated": Geometry((2, 2, 3), (2, 1, 2), ((1, 0), (1, 1), (2, 2)), (2, 3, 1)),
    "volumes, adaptive": Adaptive((2, 3, 5)),
}
windows_of_every_kind = pytest.mark.parametrize("name", WINDOWS)


def both_ways(function, *arguments):
    """The results of the loops and of the definition."""
    with use("definition"):
        expected = function(*arguments)
    return function(*arguments), expected


@windows_of_every_kind
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("channels", [1, 3, 19])
def test_loops_compute_the_definition(channels, last, name):
    """Bit for bit where sums are whole numbers; 38 images are no multiple of a vector register."""
    windows, size = WINDOWS[name], (5, 7, 8)[-WINDOWS[name].dimensions :]
    assert min(windows.positions(size)) > 0
    x = torch.randint(-2, 3, (2, channels, *size)).float()
    special = torch.rand(2, *x.shape) < 0.1
    for t in (x, x.where(~special[0], -torch.inf).where(~special[1], torch.nan), x.int(), x.to(torch.int8), x.double()):
        (y, where), (expected, there) = both_ways(algorithm.winners, t, windows, last)
        torch.testing.assert_close(y, expected, rtol=0, atol=0, equal_nan=True, check_stride=True)
        assert torch.equal(where.long(), there.long())
        assert where.stride() == there.stride()
    y, where = algorithm.winners(x, windows, last)
    g = torch.randint(-9, 10, y.shape).float()
    for mine, expected in (
        both_ways(algorithm.route, g, where, size, last),
        both_ways(algorithm.pick, x, where, len(size), last),
        both_ways(algorithm.average, x, windows, last, 1, True),
    ):
        torch.testing.assert_close(mine, expected, rtol=0, atol=0, check_stride=True)
    if isinstance(windows, Geometry) and max(windows.dilation) > 1:
        return  # average pools have no dilation
    for divisor, padding in ((1, True), (0, True), (0, False), (-3, True)):
        arguments = windows, last, divisor, padding
        for mine, expected in (both_ways(algorithm.average, x, *arguments), both_ways(algorithm.share_out, g, *arguments, size)):
            torch.testing.assert_close(mine, expected, check_stride=True)


@windows_of_every_kind
def test_picking_and_routing_are_adjoint(name):
    windows = WINDOWS[name]
    size = (7,) * windows.dimensions
    x, d = image(size), len(size)
    y, winners = algorithm.winners(x, windows, False)
    t, g = torch.randn_like(x), torch.randn_like(y)
    torch.testing.assert_close((algorithm.pick(t, winners, d, False) * g).sum(), (t * algorithm.route(g, winners, size, False)).sum())
    if isinstance(windows, Adaptive) or max(windows.dilation) == 1:
        mean, shared = algorithm.average(t, windows, False, 0, True), algorithm.share_out(g, windows, False, 0, True, size)
        torch.testing.assert_close((mean * g).sum(), (t * shared).sum())


@pytest.mark.parametrize("name", ["adaptive_avg_pool1d", "adaptive_max_pool1d", "avg_pool1d", "max_pool1d"])
@pytest.mark.parametrize("windows", [9_999, 100_001])
def test_many_or_long_windows(name, windows):
    x = torch.randn(1, 1, 1_000_003, dtype=torch.float64)
    assert compare(*(lambda x, f=f: getattr(f, name)(x, windows) for f in (F, TF)), [x])
    with torch.no_grad():
        torch.testing.assert_close(getattr(F, name)(x, windows), getattr(TF, name)(x, windows))


@pytest.mark.parametrize("kind", ["max", "avg"])
def test_a_sum_contains_the_pixels_of_its_window_and_nothing_else(kind):
    """Rule 4: an enormous, infinite or undefined pixel changes no bit of the windows that do not show it."""
    ours, _ = ours_and_torch(kind, (9, 9))
    sees = torch.zeros(3, 5, 4, 4, dtype=torch.bool)
    sees[1, 2, 1:3, 1:3] = True  # the windows that show pixel (4, 4) of one image and channel
    for x in both_layouts(torch.randn(3, 5, 9, 9)):
        before = ours(x, 3, 2)
        for spoiled in (1e30, torch.inf, torch.nan):
            other = x.clone()
            other[1, 2, 4, 4] = spoiled
            after = ours(other, 3, 2)
            assert torch.equal(before[~sees], after[~sees])
            assert not (before[sees] == after[sees]).any()
        x = x.requires_grad_()
        upstream = torch.zeros(3, 5, 4, 4)
        upstream[1, 2, 1, 1] = torch.inf
        (gx,) = torch.autograd.grad(ours(x, 3, 2), x, upstream)
        gx[1, 2, 2:5, 2:5] = 0
        assert not gx.any()


# ---- Modules ---------------------------------------------------------------------------------------------------------------------------

MODULES = [
    *(
        (f"MaxPool{d}d", arguments)
        for d in (1, 2, 3)
        for arguments in [{"kernel_size": 3, "padding": 1}, {"kernel_size": 2, "ceil_mode": True}]
    ),
    *((f"AvgPool{d}d", arguments) for d in (1, 2, 3) for arguments in [{"kernel_size": 3, "padding": 1}, {"kernel_size": 2, "stride": 1}]),
    ("MaxPool2d", {"kernel_size": (3, 2), "stride": (2, 1), "dilation": (1, 2), "return_indices": True}),
    ("AvgPool2d", {"kernel_size": (3, 2), "count_include_pad": False, "divisor_override": 5}),
]


@pytest.mark.parametrize(("name", "arguments"), MODULES)
def test_modules_are_torchs(name, arguments):
    ours, theirs = getattr(cnn425_nn, name)(**arguments), getattr(nn, name)(**arguments)
    assert repr(ours) == repr(theirs)
    attributes = {key: value for key, value in vars(theirs).items() if not key.startswith("_")}
    assert {key: value for key, value in vars(ours).items() if not key.startswith("_")} == attributes
    x = image((6,) * int(name[-2]))
    for module in (ours, copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        torch.testing.assert_close(module(x), theirs(x))


# ---- Legal and illegal arguments alike -------------------------------------------------------------------------------------------------

entry = st.one_of(st.integers(1, 4), st.lists(st.integers(1, 3), min_size=1, max_size=3).map(tuple), st.integers(-1, 0))


@seed(425)
@settings(max_examples=100, deadline=None, database=None)
@given(
    dimensions=st.integers(1, 3),
    kind=st.sampled_from(["max", "avg"]),
    shape=st.lists(st.integers(0, 6), min_size=1, max_size=6),
    kernel=entry,
    stride=st.one_of(st.none(), entry),
    padding=st.one_of(st.just(0), st.integers(-1, 2)),
    extra=st.booleans(),
)
def test_both_agree_or_both_refuse(dimensions, kind, shape, kernel, stride, padding, extra):
    ours, theirs = ours_and_torch(kind, (1,) * dimensions)
    x = torch.arange(torch.Size(shape).numel(), dtype=torch.float64).view(shape).mul(7).remainder(11)
    options = {"return_indices": True, "ceil_mode": extra} if kind == "max" else {"ceil_mode": extra, "count_include_pad": extra}
    try:
        expected = theirs(x, kernel, stride, padding, **options)
    except Exception as error:
        other = RuntimeError if isinstance(error, IndexError) else type(error)  # of two faults at once torch may name the other one
        with pytest.raises((type(error), other)):
            ours(x, kernel, stride, padding, **options)
    else:
        torch.testing.assert_close(ours(x, kernel, stride, padding, **options), expected, check_stride=True)


def test_a_window_in_the_padding_has_no_tangent():
    x, dx = torch.randn(2, 1, 2, 4), torch.ones(1, 2, 4)
    y, dy = jvp(lambda x: pool.max_pool1d(x, 2, 1, 1, dilation=5), (x[0],), (dx,))
    assert (dy == torch.where(y == -torch.inf, 0, 1)).all()
    assert (y == -torch.inf).any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("window", [32, (3, 3)], ids=str)
def test_averages_in_half_precision_are_rounded_once(dtype, window):
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert torch.equal(pool_average.avg_pool2d(x, window, 1), pool_average.avg_pool2d(x.float(), window, 1).to(dtype))


# ---- Traces that serve images of any size -----------------------------------------------------------------------------------------------

LAYERS = {
    "conv": lambda library, d: getattr(library, f"Conv{d}d")(3, 4, 3, stride=2),
    "conv, padded": lambda library, d: getattr(library, f"Conv{d}d")(3, 4, 3, padding=1),
    "max": lambda library, d: getattr(library, f"MaxPool{d}d")(2),
    "max, padded": lambda library, d: getattr(library, f"MaxPool{d}d")(3, 2, 1),
    "max, overhanging": lambda library, d: getattr(library, f"MaxPool{d}d")(3, 2, ceil_mode=True),
    "average": lambda library, d: getattr(library, f"AvgPool{d}d")(2),
    "average, padded": lambda library, d: getattr(library, f"AvgPool{d}d")(3, 2, 1, count_include_pad=False),
    "adaptive max": lambda library, d: getattr(library, f"AdaptiveMaxPool{d}d")(3),
    "adaptive average": lambda library, d: getattr(library, f"AdaptiveAvgPool{d}d")(3),
    "mean": lambda library, d: getattr(library, f"AdaptiveAvgPool{d}d")(1),
    "power average": lambda library, d: getattr(library, f"LPPool{d}d")(2, 2),
}


def layers(name, d):
    theirs, ours = LAYERS[name](nn, d), LAYERS[name](cnn425_nn, d)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


@pytest.mark.filterwarnings("ignore:.*torch.jit.(trace|script).* is deprecated", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("d", [1, 2, 3])
@pytest.mark.parametrize("name", LAYERS)
def test_a_trace_serves_images_of_other_sizes(name, d):
    ours, theirs = layers(name, d)
    traced = torch.jit.trace(ours, torch.randn(2, 3, *(8, 9, 7)[:d]), check_trace=False)
    assert compare(traced, theirs, [torch.randn(1, 3, *(11, 8, 9)[:d])])


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("name", [name for name in LAYERS if name != "max, overhanging"])  # torch cannot, either
def test_an_exported_layer_serves_images_of_other_sizes(name, strict):
    ours, theirs = layers(name, 2)
    sizes = {0: torch.export.Dim("n"), 2: torch.export.Dim("h", min=6), 3: torch.export.Dim("w", min=6)}
    program = torch.export.export(ours, (torch.randn(2, 3, 8, 9),), dynamic_shapes=(sizes,), strict=strict)
    x = torch.randn(4, 3, 11, 7)
    torch.testing.assert_close(program.module()(x), theirs(x))


@pytest.mark.parametrize("name", ["max_pool2d", "avg_pool2d"])
def test_huge_windows_take_no_memory_of_their_own(name):
    """Input, output and 16 MB, however large the window: a window of half the image would have many lines to keep."""
    program = f"""
import ctypes, pathlib, torch, cnn425.nn.functional as F
def status(key):
    return int(next(line for line in pathlib.Path("/proc/self/status").read_text().splitlines() if line.startswith(key)).split()[1]) / 1024
def both(n):
    x = torch.randn(1, 1, n, n).requires_grad_()
    F.{name}(x, n // 2, 1 + n // 2).sum().backward()
both(64)
ctypes.CDLL(None).malloc_trim(0)
pathlib.Path("/proc/self/clear_refs").write_text("5")
before = status("VmRSS")
both(2000)
print(status("VmHWM") - before)
"""
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("this system does not say how much memory a process took")
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    image = 2000 * 2000 * 4 / 2**20
    assert float(run.stdout) < 2 * image + 16  # the image and its gradient


@pytest.mark.parametrize("images", [1, 3, 31, 33])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [1, 2, 7])
def test_windows_of_long_rows_of_few_images(images, stride, kernel):
    """Windows side by side are computed together: ties, NaNs and edges come out as they do one by one."""
    x = torch.randint(-2, 3, (images, 1, 9, 150)).float()
    x[torch.rand(x.shape) < 0.02] = torch.nan
    x[torch.rand(x.shape) < 0.1] = -torch.inf
    for options in ((kernel, stride, kernel // 2), (kernel, stride, 0, 1, True)):
        (y, where), (expected, places) = (f.max_pool2d(x, *options, return_indices=True) for f in (F, torch.nn.functional))
        torch.testing.assert_close(y, expected, rtol=0, atol=0, equal_nan=True)
        assert torch.equal(where, places)
    x = torch.randn(images, 1, 9, 150, dtype=torch.float64, requires_grad=True)
    y, expected = (f.avg_pool2d(x, kernel, stride, kernel // 2, count_include_pad=False) for f in (F, torch.nn.functional))
    torch.testing.assert_close(y, expected)
    g = torch.randn_like(y)
    torch.testing.assert_close(*(torch.autograd.grad(t, x, g)[0] for t in (y, expected)))
