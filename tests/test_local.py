"""Locally connected layers: pencil, torch, finite differences, properties, errors, transforms, memory."""

import contextlib
import copy
import io
import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as builtin
from hypothesis import given
from hypothesis import strategies as st
from oldest import loses_sizes
from torch.func import grad, hessian, jacfwd, jacrev, vmap

from cnn425 import nn
from cnn425.algorithms import local as algorithms
from cnn425.algorithms import names, use
from cnn425.nn import functional as F
from cnn425.windows import Geometry, Sharing

float64 = {"dtype": torch.float64}

# Each case is named after the bug it kills.
CASES = {
    "plain": {},
    "batch averaged instead of summed": {"n": 3},
    "one stride for both axes": {"stride": (1, 2, 3)},
    "padding of one axis used for the other": {"padding": (0, 1, 2)},
    "low padding used for the high side": {"padding": ((1, 0), (0, 2), (2, 1))},
    "dilation forgotten in the gradient": {"dilation": (2, 1, 2), "size": 7},
    "overlaps overwritten instead of added": {"kernel": 3, "stride": 1, "padding": 1},
    "pixels no window reaches get no zero": {"stride": 3, "size": 8},
    "groups see one another": {"groups": 2},
    "depthwise": {"groups": 4, "inputs": 4, "outputs": 8},
    "pointwise": {"kernel": 1},
    "kernel as large as the image": {"kernel": 6, "size": 6, "same_size": True},
    "padding wider than the kernel": {"padding": 4, "kernel": 2},
    "one channel": {"inputs": 1, "outputs": 1},
    "one image": {"n": 1, "padding": 1},
    "many images": {"n": 9, "padding": 1},
    "many channels": {"inputs": 9, "outputs": 3, "padding": 1},
    "without bias": {"bias": None},
    "bias per channel": {"bias": "channel"},
    "same, even kernel, strides that leave a remainder": {"padding": "same", "kernel": 2, "stride": (2, 3, 1)},
    "same, odd kernel and dilation": {"padding": "same", "kernel": 3, "dilation": 2},
    "valid": {"padding": "valid"},
}


def pairs(padding, size, kernel, stride, dilation):
    """(low, high) padding written out; 'same' by TensorFlow's documented rule."""
    d = len(size)
    if padding == "valid":
        return [(0, 0)] * d
    if padding == "same":
        out = [-(-n // s) for n, s in zip(size, stride, strict=True)]
        totals = [max((o - 1) * s + (k - 1) * e + 1 - n, 0) for o, s, k, e, n in zip(out, stride, kernel, dilation, size, strict=True)]
        return [(t // 2, t - t // 2) for t in totals]
    padding = padding if isinstance(padding, tuple) else (padding,) * d
    return [p if isinstance(p, tuple) else (p, p) for p in padding]


def spread(value, d):
    return value if isinstance(value, tuple) else (value,) * d


def problem(d, n=2, inputs=2, outputs=4, size=5, kernel=2, groups=1, bias="position", same_size=False, **arguments):
    arguments = {k: v[:d] if isinstance(v, tuple) else v for k, v in arguments.items()}
    inputs = max(inputs, groups)
    sizes, kernels = [size] * d if same_size else list(range(size, size + d)), (kernel,) * d
    stride, dilation = spread(arguments.get("stride", 1), d), spread(arguments.get("dilation", 1), d)
    geometry = Geometry(kernels, stride, tuple(pairs(arguments.get("padding", 0), sizes, kernels, stride, dilation)), dilation)
    positions = geometry.positions(sizes)
    x = torch.randn(n, inputs, *sizes, **float64)
    w = torch.randn(*positions, outputs, inputs // groups, *kernels, **float64)
    b = {None: None, "channel": torch.randn(outputs, **float64), "position": torch.randn(outputs, *positions, **float64)}[bias]
    return (x, w, b), {"groups": groups, **arguments}, geometry


def by_hand(x, w, b, geometry, groups):
    """One position after the other: the window, cut out, meets the weights of this position."""
    d = len(geometry.kernel)
    x = builtin.pad(x, [p for pair in reversed(geometry.padding) for p in pair])
    y = []
    for position in itertools.product(*map(range, w.shape[:d])):
        cells = tuple(
            slice(i * s, i * s + (k - 1) * e + 1, e)
            for i, s, k, e in zip(position, geometry.stride, geometry.kernel, geometry.dilation, strict=True)
        )
        window = x[(..., *cells)].unflatten(1, (groups, 1, -1))
        here = w[position].unflatten(0, (groups, -1))
        y.append((window * here).flatten(3).sum(3).flatten(1))
    y = torch.stack(y, -1).unflatten(-1, w.shape[:d])
    return y if b is None else y + (b if b.ndim > 1 else b.view(-1, *[1] * d))


def ours(d):
    return getattr(F, f"locally_connected{d}d")


def with_gradients(function, tensors):
    leaves = [t.detach().clone().requires_grad_() for t in tensors if t is not None]
    y = function(*leaves, *([None] if len(leaves) == 2 else []))
    upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(y.dtype)
    return [y, *torch.autograd.grad(y, leaves, upstream)]


def test_pencil_three_windows_with_weights_of_their_own():
    x, w = torch.tensor([[[1.0, 2, 3]]], requires_grad=True), torch.tensor([[[[1.0, 10]]], [[[100.0, 1000]]]], requires_grad=True)
    y = F.locally_connected1d(x, w, torch.tensor([[0.5, 0.25]]))
    assert y.tolist() == [[[21.5, 3200.25]]]
    gx, gw = torch.autograd.grad(y, (x, w), torch.tensor([[[1.0, 2.0]]]))
    assert gx.tolist() == [[[1.0, 210.0, 2000.0]]]  # the middle pixel hears both windows, through different weights
    assert gw.tolist() == [[[[1.0, 2.0]]], [[[4.0, 6.0]]]]


def test_pencil_the_4x4_image_of_the_lecture():
    """Four 3x3 windows on a 4x4 image: four outputs, 4 x 9 weights, 4 biases."""
    layer = nn.LocallyConnected2d(1, 1, 4, 3)
    assert layer.output_size == (2, 2)
    assert [p.numel() for p in layer.parameters()] == [4 * 9, 4]


@pytest.mark.parametrize("algorithm", names("local"))
@pytest.mark.parametrize("d", [1, 2, 3])
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_those_of_a_loop_over_positions(case, d, algorithm):
    tensors, arguments, geometry = problem(d, **CASES[case])
    with use(algorithm):
        mine = with_gradients(lambda x, w, b: ours(d)(x, w, b, **arguments), tensors)
    theirs = with_gradients(lambda x, w, b: by_hand(x, w, b, geometry, arguments["groups"]), tensors)
    for m, t in zip(mine, theirs, strict=True):
        torch.testing.assert_close(m, t)


@pytest.mark.parametrize("d", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 2])
def test_sharing_the_weights_gives_torchs_convolution(d, groups):
    """Interpretation 1: the same weights at every position; their gradient is the sum over positions."""
    (x, unshared, b), arguments, _ = problem(d, groups=groups, stride=2, padding=1, bias="channel")
    positions, w = unshared.shape[:d], unshared[(0,) * d]
    mine = with_gradients(lambda x, w, b: ours(d)(x, w.expand(*positions, *w.shape), b, **arguments), (x, w, b))
    theirs = with_gradients(lambda x, w, b: getattr(builtin, f"conv{d}d")(x, w, b, **arguments), (x, w, b))
    for m, t in zip(mine, theirs, strict=True):
        torch.testing.assert_close(m, t)


@st.composite
def problems(draw):
    d, groups = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    per_group = st.sampled_from([1, 1, 2, 9])
    pick = {
        "kernel": st.integers(1, 3),
        "stride": st.integers(1, 3),
        "low": st.integers(0, 2),
        "high": st.integers(0, 2),
        "dilation": st.integers(1, 2),
    }
    values = {name: tuple(draw(among) for _ in range(d)) for name, among in pick.items()}
    geometry = Geometry(values["kernel"], values["stride"], tuple(zip(values["low"], values["high"], strict=True)), values["dilation"])
    size = tuple(draw(st.integers(5, 7)) for _ in range(d))
    order = draw(st.permutations(range(2 * d + 2)))
    per_side = tuple(min(draw(st.sampled_from([1, 1, 2, 3, 9])), p) for p in geometry.positions(size))
    sharing = Sharing((1,) * d, per_side) if draw(st.booleans()) else Sharing(per_side)
    return (
        geometry,
        groups,
        sharing,
        size,
        draw(st.sampled_from([1, 2, 9])),
        draw(per_group) * groups,
        draw(per_group),
        order,
    )


def in_order(t, order):
    """A copy whose dimensions are stored in `order`, the last one innermost."""
    return t.permute(*order).contiguous().permute(*(order.index(d) for d in range(t.ndim)))


@given(problems())
@pytest.mark.parametrize("algorithm", [None, "matmul", "sweep"])
def test_every_algorithm_is_the_definition_for_a_weight_of_any_strides(algorithm, case):
    """Small whole numbers, so that sums are exact."""
    geometry, groups, sharing, size, n, outputs, inputs, order = case
    positions = geometry.positions(size)
    sets = sharing.sets(positions)
    shapes = (n, inputs * groups, *size), (n, outputs, *positions), (*sets, outputs, inputs, *geometry.kernel), (outputs, *sets)
    x, gy, w, b = (torch.randint(-4, 5, shape).float() for shape in shapes)
    w = in_order(w, order)

    def maps(name):
        with use(name) if name else contextlib.nullcontext():
            return (
                algorithms.output(x, w, geometry, groups, sharing, b),
                algorithms.input_gradient(gy, w, geometry, groups, sharing, size),
                algorithms.weight_gradient(gy, x, geometry, groups, sharing),
            )

    for mine, definition in zip(maps(algorithm), maps("definition"), strict=True):
        assert torch.equal(mine, definition)
        assert mine.is_contiguous()


@pytest.mark.parametrize("algorithm", [None, "matmul", "sweep"])
def test_windows_of_one_cell_with_one_weight_for_all_groups(algorithm):
    """A weight that is expanded, and nowhere written down for each group; small whole numbers, so that sums are exact."""
    one, x = (1, 1), torch.randint(-4, 5, (5, 8, 9, 9)).float()
    w = torch.randint(-4, 5, (9, 9, 1, 2, 1, 1)).float().expand(9, 9, 4, 2, 1, 1)
    settings = Geometry(one, one, ((0, 0),) * 2, one), 4, Sharing(one)
    with use(algorithm) if algorithm else contextlib.nullcontext():
        y = algorithms.output(x, w, *settings)
        gx = algorithms.input_gradient(y, w, *settings, (9, 9))
    with use("definition"):
        assert torch.equal(y, algorithms.output(x, w, *settings))
        assert torch.equal(gx, algorithms.input_gradient(y, w, *settings, (9, 9)))


@pytest.mark.parametrize("algorithm", [None, "matmul", "sweep"])
def test_more_windows_than_are_kept_at_a_time(algorithm):
    """Positions come in blocks; the last one is smaller, and windows of two blocks overlap."""
    (x, w, b), arguments, _ = problem(2, n=3, inputs=6, outputs=2, size=61, kernel=7, groups=2, stride=(1, 2), padding=2)
    with use(algorithm) if algorithm else contextlib.nullcontext():
        mine = with_gradients(lambda x, w, b: F.locally_connected2d(x, w, b, **arguments), (x, w, b))
    with use("definition"):
        theirs = with_gradients(lambda x, w, b: F.locally_connected2d(x, w, b, **arguments), (x, w, b))
    for m, t in zip(mine, theirs, strict=True):
        torch.testing.assert_close(m, t)


def test_forcing_an_algorithm_that_does_not_exist():
    with pytest.raises(ValueError, match=r"no algorithm 'magic'; the algorithms are.*local: definition, matmul, sweep"):
        use("magic").__enter__()


def test_the_name_of_an_algorithm_for_convolutions_changes_nothing():
    (x, w, b), arguments, _ = problem(2)
    with use("winograd"):
        forced = F.locally_connected2d(x, w, b, **arguments)
    assert torch.equal(forced, F.locally_connected2d(x, w, b, **arguments))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.complex64, torch.complex128])
@pytest.mark.parametrize("algorithm", [None, "matmul", "sweep"])
def test_every_dtype(dtype, algorithm):
    (x, w, b), arguments, geometry = problem(2, stride=2, padding=1)
    x, w, b = (t.to(dtype) for t in (x, w, b))
    exact = {torch.complex64: torch.complex128, torch.complex128: torch.complex128}.get(dtype, torch.float64)
    with use(algorithm) if algorithm else contextlib.nullcontext():
        mine = with_gradients(lambda x, w, b: F.locally_connected2d(x, w, b, **arguments), (x, w, b))
    theirs = with_gradients(lambda x, w, b: by_hand(x, w, b, geometry, 1), [t.to(exact) for t in (x, w, b)])
    tolerance = {torch.float16: 5e-3, torch.bfloat16: 4e-2, torch.float32: 1e-5, torch.complex64: 1e-5}.get(dtype, 1e-10)
    for m, t in zip(mine, theirs, strict=True):
        assert m.dtype == dtype
        torch.testing.assert_close(m.to(exact), t, rtol=tolerance, atol=tolerance)


def test_integers():
    x, w = torch.randint(0, 5, (1, 2, 3, 3)), torch.randint(0, 5, (2, 2, 3, 2, 2, 2))
    assert torch.equal(F.locally_connected2d(x, w), F.locally_connected2d(x.double(), w.double()).long())


LAYOUTS = {
    "contiguous": lambda t: t,
    "reversed": lambda t: t.permute(*reversed(range(t.ndim))).contiguous().permute(*reversed(range(t.ndim))),
    "a slice of something larger": lambda t: torch.cat([t, t], -1)[..., : t.shape[-1]],
    "every second": lambda t: t.repeat_interleave(2, -2)[..., ::2, :],
}


@pytest.mark.parametrize("algorithm", names("local"))
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides(layout, algorithm):
    (x, w, b), _, geometry = problem(2)
    expected = with_gradients(lambda x, w, b: by_hand(x, w, b, geometry, 1), (x, w, b))
    with use(algorithm):
        mine = with_gradients(lambda x, w, b: F.locally_connected2d(LAYOUTS[layout](x), LAYOUTS[layout](w), LAYOUTS[layout](b)), (x, w, b))
    for m, t in zip(mine, expected, strict=True):
        torch.testing.assert_close(m, t)


@pytest.mark.parametrize("channels", [1, 3])
def test_channels_last_stays_channels_last(channels):
    (x, w, b), _, _ = problem(2, inputs=channels)
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    shared = builtin.conv2d(x, w[0, 0])
    y = F.locally_connected2d(x, w, b)
    assert y.stride() == shared.stride()
    assert torch.autograd.grad(y, x, torch.ones_like(y))[0].stride() == torch.autograd.grad(shared, x, torch.ones_like(shared))[0].stride()


@pytest.mark.parametrize("shape", [(1, 1, 100, 6), (1, 1, 28, 3), (16, 16, 9, 3)], ids=str)
def test_parameters_and_their_gradients_are_contiguous(shape):
    """FSDP, LBFGS and parameters_to_vector want contiguous parameters; a gradient in another order is copied at every step."""
    inputs, outputs, size, kernel = shape
    layer = nn.LocallyConnected2d(inputs, outputs, size, kernel)
    gradients = torch.autograd.grad(layer(torch.randn(2, inputs, size, size)).sin().sum(), list(layer.parameters()))
    assert all(t.is_contiguous() for t in (*layer.parameters(), *gradients))


@pytest.mark.parametrize("d", [1, 2, 3])
def test_unbatched_and_empty_batches(d):
    (x, w, b), _, _ = problem(d)
    torch.testing.assert_close(ours(d)(x[0], w, b), ours(d)(x, w, b)[0])
    y, gx, gw, gb = with_gradients(ours(d), (x[:0], w, b))
    assert y.shape == (0, 4, *w.shape[:d])
    assert gx.shape == x[:0].shape
    assert not gw.any()
    assert not gb.any()


@pytest.mark.parametrize("d", [1, 2, 3])
@pytest.mark.parametrize(
    "case", ["one stride for both axes", "dilation forgotten in the gradient", "groups see one another", "bias per channel", "one channel"]
)
def test_finite_differences(case, d):
    tensors, arguments, _ = problem(d, **{"n": 1, "outputs": 2, "size": 4, **CASES[case]})
    leaves = [t.requires_grad_() for t in tensors]

    def function(*leaves):
        return ours(d)(*leaves, **arguments)

    fast = {"fast_mode": True}
    assert torch.autograd.gradcheck(
        function, leaves, check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True, **fast
    )
    assert torch.autograd.gradgradcheck(function, leaves, check_fwd_over_rev=True, check_batched_grad=True, **fast)


@pytest.mark.parametrize("algorithm", names("local"))
def test_finite_differences_of_every_algorithm_on_complex_numbers(algorithm):
    tensors, _, _ = problem(2, n=2, size=3, outputs=2)
    leaves = [torch.randn(t.shape, dtype=torch.complex128, requires_grad=True) for t in tensors]
    with use(algorithm):
        assert torch.autograd.gradcheck(F.locally_connected2d, leaves, fast_mode=True)
        assert torch.autograd.gradgradcheck(F.locally_connected2d, leaves, fast_mode=True)


# ---- properties: the lecture's sentences


def test_a_window_as_large_as_the_image_is_fully_connected():
    (x, w, b), _, _ = problem(2, kernel=6, size=6, same_size=True)
    torch.testing.assert_close(F.locally_connected2d(x, w, b)[:, :, 0, 0], builtin.linear(x.flatten(1), w[0, 0].flatten(1), b[:, 0, 0]))


def test_a_shifted_image_does_not_give_a_shifted_output():
    """What the convolution can and a local layer cannot."""
    (x, w, b), _, _ = problem(2, kernel=3)
    y, shifted = F.locally_connected2d(x, w, b), F.locally_connected2d(x.roll(1, 3), w, b)
    assert not torch.allclose(y[..., :-1], shifted[..., 1:], atol=0.1)


def test_the_three_maps_are_one_trilinear_form():
    """<local(x, w), g> = <x, input gradient> = <w, weight gradient>."""
    (x, w, _), arguments, _ = problem(2, stride=2, padding=1)
    y, gx, gw = with_gradients(lambda x, w, b: F.locally_connected2d(x, w, b, **arguments), (x, w, None))
    upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), **float64)
    torch.testing.assert_close((y * upstream).sum(), (x * gx).sum())
    torch.testing.assert_close((y * upstream).sum(), (w * gw).sum())


# ---- transforms


@pytest.mark.parametrize("dims", [d for d in itertools.product((0, None), (-1, None), (0, None)) if any(i is not None for i in d)], ids=str)
@pytest.mark.parametrize("bias", ["position", "channel"])
@pytest.mark.parametrize("groups", [1, 2])
def test_vmap_over_inputs_weights_and_both(dims, bias, groups):
    (x, w, b), arguments, geometry = problem(2, groups=groups, stride=2, padding=1, bias=bias)
    batch = [torch.randn(3, *x.shape, **float64), torch.randn(*w.shape, 3, **float64), torch.randn(3, *b.shape, **float64)]
    tensors = [t if dim is None else many for t, many, dim in zip((x, w, b), batch, dims, strict=True)]
    pair = (lambda *t: F.locally_connected2d(*t, **arguments)), (lambda *t: by_hand(*t, geometry, groups))
    for through in (lambda f: f, lambda f: grad(lambda *t: f(*t).sin().sum(), argnums=(0, 1, 2))):
        mine, theirs = (vmap(through(f), in_dims=dims)(*tensors) for f in pair)
        torch.testing.assert_close(mine, theirs)


def test_jacobians_and_hessians():
    tensors, _, geometry = problem(2, n=1, size=3, outputs=2)
    pair = F.locally_connected2d, lambda x, w, b: by_hand(x, w, b, geometry, 1)
    for which, transform in itertools.product(range(3), (jacrev, jacfwd)):
        mine, theirs = (transform(f, which)(*tensors) for f in pair)
        torch.testing.assert_close(mine, theirs)
    mine, theirs = (hessian(lambda w, f=f: f(tensors[0], w, None).sin().sum())(tensors[1]) for f in pair)
    torch.testing.assert_close(mine, theirs)


def test_per_sample_gradients():
    layer = nn.LocallyConnected2d(2, 3, 5, 3).double()
    x, parameters = torch.randn(4, 2, 5, 5, **float64), dict(layer.named_parameters())

    def loss(parameters, x):
        return torch.func.functional_call(layer, parameters, (x,)).sin().sum()

    each = vmap(grad(loss), in_dims=(None, 0))(parameters, x)
    for i in range(4):
        torch.testing.assert_close({k: v[i] for k, v in each.items()}, grad(loss)(parameters, x[i]))


@pytest.mark.parametrize(("d", "dynamic"), [(1, False), (2, False), (3, False), pytest.param(1, True, marks=loses_sizes)])
def test_compiles_in_one_graph(d, dynamic):
    tensors, arguments, _ = problem(d, stride=2, padding=1)
    torch._dynamo.reset()
    compiled = torch.compile(ours(d), fullgraph=True, dynamic=dynamic, backend="aot_eager")
    mine = with_gradients(lambda *t: compiled(*t, **arguments), tensors)
    for m, expected in zip(mine, with_gradients(lambda *t: ours(d)(*t, **arguments), tensors), strict=True):
        torch.testing.assert_close(m, expected)


@pytest.mark.parametrize("d", [1, 2])
def test_the_module_compiles_for_any_batch_in_one_graph(d):
    layer = getattr(nn, f"LocallyConnected{d}d")(2, 3, 5, 3, padding="same", stride=2)
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")
    for n in (3, 5):
        x = torch.randn(n, 2, *[5] * d, requires_grad=True)
        upstream = torch.randn_like(layer(x))
        mine, eager = (torch.autograd.grad(f(x), (x, *layer.parameters()), upstream) for f in (compiled, layer))
        torch.testing.assert_close(mine, eager)


@pytest.mark.parametrize("kind", ["LocallyConnected1d", "LocallyConnected2d", "share", "LowRankLocal2d"])
def test_the_module_compiles_for_as_many_images_as_channels_or_pixels(kind):
    layer = {
        "LocallyConnected1d": lambda: nn.LocallyConnected1d(3, 4, 8, 2),
        "LocallyConnected2d": lambda: nn.LocallyConnected2d(3, 4, 8, 3),
        "share": lambda: nn.LocallyConnected2d(3, 4, 8, 3, share=2),
        "LowRankLocal2d": lambda: nn.LowRankLocal2d(3, 4, 8, 3, rank=2),
    }[kind]()
    for n in (3, 8):
        torch._dynamo.reset()
        compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")
        x = torch.randn(n, 3, *[8] * layer.dimensions, requires_grad=True)
        mine, eager = (torch.autograd.grad(f(x).square().sum(), (x, *layer.parameters())) for f in (compiled, layer))
        torch.testing.assert_close(mine, eager, rtol=1e-4, atol=1e-4)


def test_exports():
    layer, x = nn.LocallyConnected2d(2, 4, 5, 2).double(), torch.randn(2, 2, 5, 5, **float64)
    program = torch.export.export(layer, (x,), strict=True, dynamic_shapes={"input": {0: torch.export.Dim("n")}})
    torch.testing.assert_close(program.module()(x[:1]), layer(x[:1]))


def test_autocast_lowers_what_torch_lowers():
    (x, w, b), _, _ = problem(2)
    with torch.autocast("cpu"):
        assert F.locally_connected2d(x.float(), w.float(), b.float()).dtype == torch.bfloat16
        assert F.locally_connected2d(x.float(), w.bfloat16(), b.float()).dtype == torch.bfloat16
        assert F.locally_connected2d(x, w, b).dtype == torch.float64
        layer = nn.LocallyConnected2d(2, 3, 5, 3)
        layer(torch.randn(1, 2, 5, 5)).float().sin().sum().backward()
    assert layer.weight.grad.dtype == torch.float32


def test_meta_and_fake_tensors_have_shapes_only():
    y = F.locally_connected2d(torch.empty(2, 3, 9, 9, device="meta"), torch.empty(4, 4, 4, 3, 3, 3, device="meta"), stride=2)
    assert y.shape == (2, 4, 4, 4)
    assert y.device.type == "meta"
    with torch._subclasses.FakeTensorMode():
        layer = nn.LocallyConnected2d(3, 4, 2000, 5)
        assert layer(torch.empty(1, 3, 2000, 2000)).shape == (1, 4, 1996, 1996)


def test_activation_checkpointing():
    (x, w, b), _, geometry = problem(2)
    mine = torch.utils.checkpoint.checkpoint(F.locally_connected2d, x.requires_grad_(), w, b, use_reentrant=False)
    (gx,) = torch.autograd.grad(mine.sin().sum(), x)
    (expected,) = torch.autograd.grad(by_hand(x, w, b, geometry, 1).sin().sum(), x)
    torch.testing.assert_close(gx, expected)


def test_the_same_bits_at_every_run():
    (x, w, b), arguments, _ = problem(2, n=8, inputs=16, outputs=8, size=9, kernel=3, padding=1)
    first, second = (with_gradients(lambda x, w, b: F.locally_connected2d(x, w, b, **arguments), (x, w, b)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("size", [3, (3, 4), 5])
def test_fewer_positions_than_threads(size):
    """A thread without a position writes nothing: again and again, because the last to write would win."""
    layer, x = nn.LocallyConnected2d(16, 16, size, 3), torch.randn(32, 16, *(size if isinstance(size, tuple) else (size, size)))
    with torch.no_grad():
        with use("definition"):
            expected = layer(x)
        try:
            for threads in (2, 3, 4, 16):
                torch.set_num_threads(threads)
                for _ in range(30):
                    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)
        finally:
            torch.set_num_threads(1)


MEMORY = """
import ctypes, pathlib, torch
from cnn425.nn import LocallyConnected2d
def status(key):
    return int(next(line for line in pathlib.Path("/proc/self/status").read_text().splitlines() if line.startswith(key)).split()[1]) / 1024
torch.set_num_threads(1)
layer = LocallyConnected2d({channels}, {channels}, {size}, {kernel}, tile={tile})
x = torch.randn({n}, {channels}, {size}, {size}, requires_grad=True)
y = layer(x)
y.backward(y)  # loads the loops
layer.zero_grad()
y = x.grad = None
ctypes.CDLL(None).malloc_trim(0)
pathlib.Path("/proc/self/clear_refs").write_text("5")
before = status("VmRSS")
y = layer(x)
y.backward(y)
print(status("VmHWM") - before, *(t.numel() * 4 / 2**20 for t in (layer.weight, x, y)))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="this system does not say how much memory a process took")
@pytest.mark.parametrize(
    "shape",
    [
        pytest.param({"channels": 1, "size": 160, "kernel": 11, "n": 16, "tile": None}, id="large windows"),
        pytest.param({"channels": 8, "size": 28, "kernel": 9, "n": 64, "tile": None}, id="many images"),
        pytest.param({"channels": 8, "size": 28, "kernel": 9, "n": 64, "tile": 2}, id="tiles"),
        pytest.param({"channels": 64, "size": 30, "kernel": 5, "n": 64, "tile": 8}, id="tiles with a large weight"),
    ],
)
def test_no_patch_tensor_is_ever_made(shape):
    """Forward + backward take the memory of output, gradients, copies of image, output and weight for the loops, and a fixed scratch."""
    out = subprocess.run([sys.executable, "-W", "ignore", "-c", MEMORY.format(**shape)], capture_output=True, text=True, check=True).stdout
    peak, weight, image, output = map(float, out.split())
    patches = shape["n"] * shape["channels"] * (shape["size"] - shape["kernel"] + 1) ** 2 * shape["kernel"] ** 2 * 4 / 2**20
    assert peak < min(2 * (image + weight + output) + 16, patches)


# ---- errors

X, W, B = torch.zeros(1, 3, 5, 5), torch.zeros(3, 3, 4, 3, 3, 3), torch.zeros(4, 3, 3)


@pytest.mark.parametrize(
    ("tensors", "arguments", "error", "message"),
    [
        ((X, W), {"stride": "a"}, TypeError, r"locally_connected2d\(\).*'stride' must be an int or a tuple of 2 ints, but got str"),
        ((X, W), {"stride": True}, TypeError, "'stride'.*bool"),
        ((X, W), {"groups": 1.0}, TypeError, "'groups' must be an int, but got float"),
        ((X, W), {"padding": ((1, 1.5), (0, 0))}, TypeError, "'padding'"),
        (([1], W), {}, TypeError, "'input' must be a Tensor, but got list"),
        ((X, 3), {}, TypeError, "'weight' must be a Tensor, but got int"),
        ((X, W, 1.0), {}, TypeError, "'bias' must be a Tensor or None, but got float"),
        ((X, W), {"stride": (1, 2, 3)}, RuntimeError, r"expected stride to be a single integer value or a list of 2 values.*\[1, 2, 3\]"),
        ((X, W), {"stride": 0}, RuntimeError, "non-positive stride is not supported"),
        ((X, W), {"padding": -1}, RuntimeError, "negative padding is not supported"),
        ((X, W), {"padding": ((0, -1), (0, 0))}, RuntimeError, "negative padding is not supported"),
        ((X, W), {"padding": ((0, 1),)}, RuntimeError, r"one \(low, high\) pair for each of 2 dimensions.*\(0, 1\)"),
        ((X, W), {"padding": "full"}, RuntimeError, "Invalid padding string: 'full'"),
        ((X, W), {"dilation": 0}, RuntimeError, "dilation should be greater than zero"),
        ((X, W), {"groups": 0}, RuntimeError, "non-positive groups is not supported"),
        ((X, W), {"groups": 2}, RuntimeError, "expected input.* to have 6 channels, but got 3 channels instead"),
        ((X, W[:, :, :, :1]), {"groups": 3}, RuntimeError, "expected weight to be divisible by 3 at dimension 2"),
        ((X, W[:, :, :, :1]), {"groups": 5}, RuntimeError, "expected weight to be at least 5 at dimension 2"),
        ((X[None], W), {}, RuntimeError, r"Expected 3D \(unbatched\) or 4D \(batched\) input to locally_connected2d"),
        ((X, W[0]), {}, RuntimeError, r"Expected 6-dimensional weight .* in locally_connected2d, but got weight of size \[3, 4, 3, 3, 3\]"),
        ((X, W, B[:2]), {}, RuntimeError, r"expected bias of size \[4, 3, 3\] \(per position\) or \[4\] \(per channel\).*\[2, 3, 3\]"),
        ((X, W), {"padding": 1}, RuntimeError, "belongs to 3 x 3 positions, .* of 5 x 5 pixels have 5 x 5 positions"),
        ((X[:, :, :2], W), {}, RuntimeError, r"\(2 x 5\). Kernel size: \(3 x 3\). Kernel size can't be greater than actual input size"),
        ((X.double(), W), {}, RuntimeError, "Input type .*float64.* and weight type .*float32.* should be the same"),
        ((X, W, B.double()), {}, RuntimeError, "Input type .*float32.* and bias type .*float64.* should be the same"),
        ((X, W.to("meta")), {}, RuntimeError, "same device.*input is on cpu and weight is on meta"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, (dict, str)) else "",
)
def test_refusals_name_the_argument(tensors, arguments, error, message):
    with pytest.raises(error, match=message):
        F.locally_connected2d(*tensors, **arguments)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"groups": 0}, ValueError, "groups must be a positive integer"),
        ({"groups": 2}, ValueError, "in_channels must be divisible by groups"),
        ({"in_channels": 4, "groups": 4}, ValueError, "out_channels must be divisible by groups"),
        ({"padding": "full"}, ValueError, "Invalid padding string 'full'"),
        ({"padding_mode": "mirror"}, ValueError, "padding_mode must be one of .*mirror"),
        ({"bias": "neuron"}, ValueError, r"bias must be True \(one per neuron\), 'channel'.*'neuron'"),
        ({"kernel_size": 9}, ValueError, "no window of kernel_size=\\(9, 9\\).* fits into an image of 5 x 5 pixels"),
        ({"input_size": (5, 5, 5)}, RuntimeError, "expected input_size to be a single integer value or a list of 2 values"),
        ({"stride": "2"}, TypeError, "'stride' must be an int"),
    ],
    ids=str,
)
def test_constructor_refusals(arguments, error, message):
    with pytest.raises(error, match=message):
        nn.LocallyConnected2d(**{"in_channels": 3, "out_channels": 2, "input_size": 5, "kernel_size": 3, **arguments})


def test_same_pads_what_tensorflow_pads():
    x, w = (
        torch.arange(1.0, 7.0).view(1, 1, 6),
        torch.ones(3, 1, 1, 3),
    )  # three windows of three pixels: 1 2 3, 3 4 5, 5 6 and one of padding
    assert F.locally_connected1d(x, w, stride=2, padding="same").flatten().tolist() == [6, 12, 11]


@pytest.mark.parametrize("batch", [1, 16])
def test_windows_are_added_in_more_than_half_precision(batch):
    generator = torch.Generator().manual_seed(0)
    sizes = (batch, 2, 12, 12), (10, 10, 2, 2, 3, 3), (batch, 2, 10, 10)
    x, w, gy = (torch.randint(12, size, generator=generator).double() for size in sizes)  # what one window says is exact in 8 bits

    def gradient(dtype):
        image = x.to(dtype, copy=True).requires_grad_()
        return torch.autograd.grad(F.locally_connected2d(image, w.to(dtype)), image, gy.to(dtype))[0]

    with use("matmul"):
        assert torch.equal(gradient(torch.bfloat16), gradient(torch.float64).bfloat16())


def test_at_the_start_a_neuron_of_a_group_counts_its_own_channels():
    torch.manual_seed(0)
    weight = nn.LocallyConnected1d(16, 16, 10, 1, groups=4).weight
    assert 0.49 < weight.abs().max() <= 0.5  # 1 / sqrt(16 / 4)


def test_another_image_size_is_refused_with_both_sizes():
    layer = nn.LocallyConnected2d(3, 2, (5, 6), 3, padding_mode="circular", padding=1)
    with pytest.raises(RuntimeError, match=r"made for an input of 5 x 6 pixels.*got an input of 6 x 5 pixels"):
        layer(torch.zeros(1, 3, 6, 5))


# ---- the Module


@pytest.mark.parametrize("bias", [True, "channel", False])
@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("d", [1, 2, 3])
def test_made_from_a_convolution_it_computes_the_same_and_becomes_one_again(d, mode, bias):
    conv = getattr(torch.nn, f"Conv{d}d")(4, 6, 3, stride=2, padding=1, groups=2, padding_mode=mode, bias=bool(bias)).double().eval()
    conv.weight.requires_grad_(False)
    layer = getattr(nn, f"LocallyConnected{d}d").from_conv(conv, tuple(range(7, 7 + d)))
    x = torch.randn(2, 4, *range(7, 7 + d), **float64)
    torch.testing.assert_close(layer(x), conv(x))
    assert not layer.training
    assert not layer.weight.requires_grad
    again = layer.to_conv()
    torch.testing.assert_close(again.state_dict(), conv.state_dict())
    assert not again.training
    torch.testing.assert_close(again(x), conv(x))


@pytest.mark.parametrize(("padding", "stride"), [("same", 1), ("valid", 2), ((1, 2), 1), (((1, 1), (2, 2)), 1), ("same", 3)])
def test_every_padding_a_convolution_knows_survives_the_way_back(padding, stride):
    layer = nn.LocallyConnected2d(2, 3, (7, 10), 3, padding=padding, stride=stride)
    assert layer.to_conv()(torch.zeros(1, 2, 7, 10)).shape[2:] == layer.output_size


def test_conversions_that_cannot_be():
    with pytest.raises(ValueError, match=r"pads both sides alike, but this layer's \(low, high\) padding is \(\(1, 0\), \(0, 0\)\)"):
        nn.LocallyConnected2d(2, 3, 5, 3, padding=((1, 0), (0, 0))).to_conv()
    with pytest.raises(TypeError, match=r"LocallyConnected2d.from_conv: conv must be a Conv2d, but got Linear"):
        nn.LocallyConnected2d.from_conv(torch.nn.Linear(1, 1), 5)


def test_a_bias_per_neuron_is_averaged():
    layer = nn.LocallyConnected1d(1, 2, 4, 2)
    torch.testing.assert_close(layer.to_conv().bias, layer.bias.mean(1))


@pytest.mark.parametrize("d", [1, 2, 3])
@pytest.mark.parametrize("channels", [(1, 8), (16, 16)], ids=str)
def test_at_the_start_weight_and_output_spread_as_a_convolutions(channels, d):
    """The number of positions has no part in the fan-in; in every peer it leaks in."""
    inputs, outputs = channels
    size = {1: 400, 2: 28, 3: 10}[d]
    layer = getattr(nn, f"LocallyConnected{d}d")(inputs, outputs, size, 3)
    bound = (inputs * 3**d) ** -0.5
    uniform = bound / 3**0.5  # the standard deviation of torch's convolution: uniform in +-bound
    for p in layer.parameters():
        assert p.abs().max() <= bound
        torch.testing.assert_close(p.std().item(), uniform, rtol=0.05, atol=0)
    x = torch.randn(64, inputs, *[size] * d)
    many = torch.cat([getattr(torch.nn, f"Conv{d}d")(inputs, outputs, 3)(x).flatten(2)[:, :, :50] for _ in range(40)])
    torch.testing.assert_close(layer(x).std().item(), many.std().item(), rtol=0.05, atol=0)


@pytest.mark.parametrize(("channels", "size", "kernel"), [(1, 100, 6), (3, 6, 3)], ids=["few channels", "small"])
def test_state_survives(channels, size, kernel):
    layer, x = nn.LocallyConnected2d(channels, channels, size, kernel), torch.randn(2, channels, size, size)
    buffer = io.BytesIO()
    torch.save(layer.state_dict(), buffer)
    buffer.seek(0)
    twin = nn.LocallyConnected2d(channels, channels, size, kernel)
    twin.load_state_dict(torch.load(buffer, weights_only=True))
    turned = {k: in_order(v, tuple(reversed(range(v.ndim)))) for k, v in layer.state_dict().items()}
    other = nn.LocallyConnected2d(channels, channels, size, kernel)
    other.load_state_dict(turned)
    for each in (twin, other, copy.deepcopy(layer)):
        assert torch.equal(each(x), layer(x))
        assert each.weight.is_contiguous()
    assert layer.double().float().weight.is_contiguous()
    buffer = io.BytesIO()
    torch.save(twin, buffer)
    buffer.seek(0)
    assert torch.equal(torch.load(buffer, weights_only=False)(x), twin(x))


def test_without_memory():
    layer = torch.nn.utils.skip_init(nn.LocallyConnected2d, 2, 3, 5, 3)
    assert layer.weight.shape == (3, 3, 3, 2, 3, 3)
    meta = nn.LocallyConnected2d(1, 1, 100, 6, device="meta")
    assert meta.to_empty(device="cpu").weight.stride() == nn.LocallyConnected2d(1, 1, 100, 6).weight.stride()


def test_parametrized_and_hooked():
    layer = torch.nn.utils.parametrizations.weight_norm(nn.LocallyConnected2d(2, 3, 4, 3), dim=2)
    seen = []
    layer.register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    layer(torch.randn(1, 2, 4, 4)).sum().backward()
    assert seen == [(1, 3, 2, 2)]
    assert layer.parametrizations.weight.original1.grad.abs().sum() > 0


def test_repr_counts_parameters_and_memory():
    """The lecture's image of 200 x 200 pixels with a 10 x 10 filter per hidden unit; nothing is allocated."""
    layer = nn.LocallyConnected2d(1, 1, 200, 10, padding="same", device="meta")
    assert repr(layer) == (
        "LocallyConnected2d(1, 1, input_size=(200, 200), kernel_size=(10, 10), stride=(1, 1), padding='same', "
        "parameters=4,040,000, memory=15.4 MiB)"
    )
    assert "groups=2, padding_mode='circular', bias='channel'" in repr(
        nn.LocallyConnected1d(2, 2, 9, 3, groups=2, bias="channel", padding_mode="circular")
    )


@pytest.mark.parametrize("bias", [True, "channel", False])
@pytest.mark.parametrize("d", [1, 2, 3])
def test_lazy_layers_learn_channels_and_size_from_the_first_image(d, bias):
    lazy = getattr(nn, f"LazyLocallyConnected{d}d")(4, 3, padding="same", stride=2, bias=bias)
    assert "4, kernel_size=" in repr(lazy)
    x = torch.randn(2, 16, *range(5, 5 + d))
    y = lazy(x)
    layer = getattr(nn, f"LocallyConnected{d}d")(16, 4, tuple(range(5, 5 + d)), 3, padding="same", stride=2, bias=bias)
    assert type(lazy) is type(layer)
    assert repr(lazy) == repr(layer)
    assert lazy.weight.stride() == layer.weight.stride()
    layer.load_state_dict(lazy.state_dict())
    torch.testing.assert_close(layer(x), y)
    waiting = getattr(nn, f"LazyLocallyConnected{d}d")(4, 3, padding="same", stride=2, bias=bias)
    waiting.load_state_dict(lazy.state_dict())
    torch.testing.assert_close(waiting(x), y)
    assert repr(waiting) == repr(layer)


def test_lazy_refusals():
    with pytest.raises(ValueError, match="in_channels must be divisible by groups"):
        nn.LazyLocallyConnected1d(4, 3, groups=2)(torch.zeros(1, 3, 9))
    with pytest.raises(RuntimeError, match=r"Expected 2D \(unbatched\) or 3D \(batched\) input to LazyLocallyConnected1d"):
        nn.LazyLocallyConnected1d(4, 3)(torch.zeros(3))


class Named(torch.Tensor):
    """A subclass as a user writes it."""


class Duck:
    """Not a tensor, but answers for torch's functions."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        return function.__name__


@pytest.mark.parametrize("d", [1, 2, 3])
def test_what_answers_for_torch_functions_is_asked(d):
    function = getattr(F, f"locally_connected{d}d")
    x, w = torch.ones(1, 2, *[3] * d), torch.ones(*[2] * d, 4, 2, *[2] * d)
    assert type(function(x.as_subclass(Named), w)) is Named
    assert function(Duck(), w) == function(x, Duck()) == f"locally_connected{d}d"


def test_a_model_with_local_layers_can_be_traced_symbolically():
    model = torch.nn.Sequential(nn.LocallyConnected2d(2, 3, 6, 3), nn.ReLU())
    graph, x = torch.fx.symbolic_trace(model), torch.randn(4, 2, 6, 6)
    assert torch.equal(graph(x), model(x))
    assert [node.target.__name__ for node in graph.graph.nodes if node.op == "call_function"] == ["locally_connected2d", "relu"]


@pytest.mark.parametrize("frozen", ["weight", "bias"])
def test_what_is_frozen_stays_frozen_in_every_conversion(frozen):
    conv = torch.nn.Conv2d(2, 3, 2).eval()
    getattr(conv, frozen).requires_grad_(False)
    local = nn.LocallyConnected2d.from_conv(conv, 4)
    for layer in (local, local.unshared(), local.to_conv(), nn.LowRankLocal2d.from_conv(conv, 4)):
        wanted = {name: name != frozen for name in ("weight", "bias")}
        assert {name: getattr(layer, name).requires_grad for name in wanted} == wanted
        assert not layer.training


@pytest.mark.parametrize("name", ["kernel_size", "stride", "padding", "dilation", "input_size"])
@pytest.mark.parametrize("value", [((1, 1), 1), np.array([1, 1]), "two"], ids=str)
def test_arguments_of_the_constructor_are_named(name, value):
    given = {"input_size": 6, "kernel_size": 3} | {name: value}
    with pytest.raises((TypeError, ValueError), match=name):
        nn.LocallyConnected2d(2, 3, **given)
