"""Convolution: pencil, torch, finite differences, properties, errors, transforms."""

import copy
import io
import itertools

import pytest
import torch
import torch.nn.functional as builtin
from oldest import loses_sizes
from torch.func import grad, hessian, jacfwd, jacrev, vmap

from cnn425 import nn
from cnn425.nn import functional as F

float64 = {"dtype": torch.float64}

# Each case is named after the bug it kills.
CASES = {
    "plain": {},
    "batch averaged instead of summed": {"n": 3},
    "one stride for both axes": {"stride": (1, 2, 3)},
    "padding of one axis used for the other": {"padding": (0, 1, 2)},
    "dilation forgotten in the gradient": {"dilation": (2, 1, 2), "size": 7},
    "overlaps overwritten instead of added": {"kernel": 3, "stride": 1, "padding": 1},
    "pixels no window reaches get no zero": {"stride": 3, "size": 9},
    "groups see one another": {"groups": 2},
    "depthwise": {"groups": 4, "inputs": 4, "outputs": 8},
    "pointwise": {"kernel": 1},
    "kernel as large as the image": {"kernel": 6, "size": 6},
    "same padding, even kernel": {"padding": "same", "kernel": 2},
    "same padding, odd kernel and dilation": {"padding": "same", "kernel": 3, "dilation": 2},
    "valid": {"padding": "valid"},
    "padding wider than the kernel": {"padding": 4, "kernel": 2},
    "one channel": {"inputs": 1, "outputs": 1},
    "without bias": {"bias": False},
}


def problem(d, n=2, inputs=2, outputs=4, size=6, kernel=2, groups=1, bias=True, **arguments):
    arguments = {k: v[:d] if isinstance(v, tuple) else v for k, v in arguments.items()}
    inputs = max(inputs, groups)
    x = torch.randn(n, inputs, *range(size, size + d), **float64)
    w = torch.randn(outputs, inputs // groups, *[kernel] * d, **float64)
    b = torch.randn(outputs, **float64) if bias else None
    return (x, w, b), {"groups": groups, **arguments}


def both(d):
    return getattr(F, f"conv{d}d"), getattr(builtin, f"conv{d}d")


def with_gradients(function, tensors, arguments):
    leaves = [t.detach().clone().requires_grad_() for t in tensors if t is not None]
    y = function(*leaves, *([None] if len(leaves) == 2 else []), **arguments)
    upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(y.dtype)
    return [y, *torch.autograd.grad(y, leaves, upstream)]


def test_pencil_3x3_image_2x2_kernel():
    x = torch.tensor([[[1.0, 2, 3], [4, 5, 6], [7, 8, 9]]])
    w = torch.tensor([[[[1.0, 0], [0, -1]]]])
    assert F.conv2d(x, w, torch.tensor([10.0])).tolist() == [[[6.0, 6.0], [6.0, 6.0]]]


def test_pencil_gradients():
    x, w = torch.tensor([[[[1.0, 2, 3]]]], requires_grad=True), torch.tensor([[[[1.0, 10]]]], requires_grad=True)
    gx, gw = torch.autograd.grad(F.conv2d(x, w), (x, w), torch.tensor([[[[1.0, 100]]]]))
    assert gx.tolist() == [[[[1.0, 110.0, 1000.0]]]]  # the middle pixel was seen by both windows
    assert gw.tolist() == [[[[201.0, 302.0]]]]  # 1*1 + 100*2 and 1*2 + 100*3


@pytest.mark.parametrize("d", [1, 2, 3])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
def test_values_and_gradients_are_torchs(case, d):
    tensors, arguments = problem(d, **CASES[case])
    ours, theirs = both(d)
    for mine, expected in zip(with_gradients(ours, tensors, arguments), with_gradients(theirs, tensors, arguments), strict=True):
        torch.testing.assert_close(mine, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.complex64, torch.complex128])
def test_every_dtype(dtype):
    (x, w, b), arguments = problem(2, stride=2, padding=1)
    x, w, b = (t.to(dtype) for t in (x, w, b))
    for mine, expected in zip(
        with_gradients(F.conv2d, (x, w, b), arguments), with_gradients(builtin.conv2d, (x, w, b), arguments), strict=True
    ):
        assert mine.dtype == dtype
        tolerance = {torch.float16: 2e-2, torch.bfloat16: 1e-1}.get(dtype, 1e-4)
        torch.testing.assert_close(mine, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("kernel", "channels"), [(1, 16), (3, 64)], ids=["image by image", "block by block"])
def test_half_precision_gradients_that_cancel_are_rounded_once(kernel, channels, dtype):
    # bug: each product was rounded before they were added up, and the roundings stay when the products cancel one another
    x, gy = torch.randn(4, channels, 48, 48).repeat(2, 1, 1, 1), torch.randn(4, channels, 48, 48)
    gy = torch.cat([gy, -gy]) + 0.1 * torch.randn(8, channels, 48, 48)

    def gradient(F, to):
        w = torch.zeros(channels, channels, kernel, kernel, dtype=to, requires_grad=True)
        return torch.autograd.grad(F.conv2d(x.to(dtype).to(to), w, padding=kernel // 2), w, gy.to(dtype).to(to))[0].double()

    exact = gradient(builtin, torch.float64)
    mine, torchs = ((gradient(library, dtype) - exact).norm().item() for library in (F, builtin))
    assert mine < 1.2 * torchs


def test_a_half_precision_gradient_may_be_infinite():
    x, gy = torch.ones(4, 16, 99, 99, dtype=torch.float16), torch.ones(4, 1, 99, 99, dtype=torch.float16)
    w = torch.zeros(1, 16, 1, 1, dtype=torch.float16, requires_grad=True)
    gy[1, 0, 0, 0], x[:, 1] = torch.inf, -1e3  # the second sum is -39 million
    gw = torch.autograd.grad(F.conv2d(x, w), w, gy)[0]
    assert gw.flatten().tolist() == [torch.inf, -torch.inf, *[torch.inf] * 14]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_integers(dtype):
    x, w = torch.randint(0, 5, (1, 2, 5, 5), dtype=dtype), torch.randint(0, 5, (3, 2, 3, 3), dtype=dtype)
    assert torch.equal(F.conv2d(x, w), builtin.conv2d(x, w))


@pytest.mark.parametrize(
    "layout",
    {
        "contiguous": lambda x: x,
        "channels last": lambda x: x.to(memory_format=torch.channels_last),
        "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
        "a slice of something larger": lambda x: torch.cat([x, x], 3)[:, :, :, : x.shape[3]],
        "every second pixel": lambda x: x.repeat_interleave(2, 2)[:, :, ::2],
        "expanded": lambda x: x[:1, :, :1].expand(x.shape),
    }.items(),
    ids=lambda item: item[0],
)
def test_memory_layout(layout):
    _, arrange = layout
    (x, w, b), _ = problem(2)
    for x_, w_ in ((arrange(x), w), (x, arrange(w)), (arrange(x), arrange(w))):
        mine, theirs = F.conv2d(x_, w_, b), builtin.conv2d(x_, w_, b)
        torch.testing.assert_close(mine, theirs)
        assert mine.stride() == theirs.stride()


@pytest.mark.parametrize("d", [1, 2, 3])
def test_unbatched_and_empty_batches(d):
    (x, w, b), _ = problem(d)
    ours, theirs = both(d)
    torch.testing.assert_close(ours(x[0], w, b), theirs(x[0], w, b))
    assert ours(x[:0], w, b).shape == theirs(x[:0], w, b).shape
    _, gx, gw, gb = with_gradients(ours, (x[:0], w, b), {})
    assert gx.shape == x[:0].shape
    assert not gw.any()
    assert not gb.any()


@pytest.mark.parametrize("d", [1, 2, 3])
@pytest.mark.parametrize(("n", "outputs"), [(1, 1), (1, 3), (2, 1), (2, 3)])
def test_strides_of_single_channels_and_images(d, n, outputs):
    (x, w, _), _ = problem(d, n=n, inputs=1, outputs=outputs)
    ours, theirs = both(d)
    assert ours(x, w).stride() == theirs(x, w).stride()


def test_no_gradient_is_computed_that_nobody_asked_for():
    (x, w, b), _ = problem(2)
    frozen = w.requires_grad_()
    y = F.conv2d(x, frozen, b)
    (gw,) = torch.autograd.grad(y.sin().sum(), frozen)
    assert gw.shape == w.shape
    assert x.grad is None


@pytest.mark.parametrize("d", [1, 2, 3])
@pytest.mark.parametrize(
    "case", ["one stride for both axes", "dilation forgotten in the gradient", "groups see one another", "same padding, even kernel"]
)
def test_finite_differences(case, d):
    tensors, arguments = problem(d, **{"n": 1, "outputs": 2, **CASES[case]})
    leaves = [t.requires_grad_() for t in tensors]

    def function(*leaves):
        return both(d)[0](*leaves, **arguments)

    fast = {"fast_mode": True}
    assert torch.autograd.gradcheck(
        function, leaves, check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True, **fast
    )
    assert torch.autograd.gradgradcheck(function, leaves, check_fwd_over_rev=True, check_batched_grad=True, **fast)


def test_finite_differences_complex():
    (x, w, b), _ = problem(2, n=1, outputs=2)
    leaves = [torch.randn(t.shape, dtype=torch.complex128, requires_grad=True) for t in (x, w, b)]
    assert torch.autograd.gradcheck(F.conv2d, leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(F.conv2d, leaves, fast_mode=True)


# ---- properties: the lecture's sentences


def test_interpretation_2_a_filter_shifted_over_the_image():
    """An explicit loop over positions: at each one the filter meets the pixels under it."""
    (x, w, b), _ = problem(2, kernel=3)
    y = F.conv2d(x, w, b)
    for i, j in itertools.product(range(y.shape[2]), range(y.shape[3])):
        under_the_filter = x[:, :, i : i + 3, j : j + 3]
        torch.testing.assert_close(y[:, :, i, j], (under_the_filter[:, None] * w).sum((2, 3, 4)) + b)


def test_a_shifted_image_gives_a_shifted_output():
    (x, w, b), _ = problem(2, kernel=3)
    torch.testing.assert_close(F.conv2d(x, w, b)[..., 1:], F.conv2d(x[..., 1:], w, b))


def test_the_three_maps_are_one_trilinear_form():
    """<conv(x, w), g> = <x, input gradient> = <w, weight gradient>."""
    (x, w, _), arguments = problem(2, stride=2, padding=1)
    y, gx, gw = with_gradients(F.conv2d, (x, w, None), arguments)
    upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), **float64)
    torch.testing.assert_close((y * upstream).sum(), (x * gx).sum())
    torch.testing.assert_close((y * upstream).sum(), (w * gw).sum())


# ---- transforms


@pytest.mark.parametrize("dims", [d for d in itertools.product((0, None), (-1, None), (0, None)) if any(i is not None for i in d)], ids=str)
@pytest.mark.parametrize("groups", [1, 2])
def test_vmap_over_inputs_weights_and_both(dims, groups):
    (x, w, b), arguments = problem(2, groups=groups, stride=2, padding=1)
    batch = [torch.randn(3, *x.shape, **float64), torch.randn(*w.shape, 3, **float64), torch.randn(3, *b.shape, **float64)]
    tensors = [t if dim is None else many for t, many, dim in zip((x, w, b), batch, dims, strict=True)]
    for through in (lambda f: f, lambda f: grad(lambda *t: f(*t).sin().sum(), argnums=(0, 1, 2))):
        mine, theirs = (vmap(through(lambda *t, f=f: f(*t, **arguments)), in_dims=dims)(*tensors) for f in (F.conv2d, builtin.conv2d))
        torch.testing.assert_close(mine, theirs)


def test_jacobians_and_hessians():
    tensors, arguments = problem(2, n=1, size=4, outputs=2)
    for which, transform in itertools.product(range(3), (jacrev, jacfwd)):
        mine, theirs = (transform(lambda *t, f=f: f(*t, **arguments), which)(*tensors) for f in (F.conv2d, builtin.conv2d))
        torch.testing.assert_close(mine, theirs)
    mine, theirs = (hessian(lambda w, f=f: f(tensors[0], w).sin().sum())(tensors[1]) for f in (F.conv2d, builtin.conv2d))
    torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize(
    ("d", "dynamic"), [(1, False), (2, False), (3, False), *(pytest.param(d, True, marks=loses_sizes) for d in (1, 2))]
)
def test_compiles_in_one_graph(d, dynamic):
    tensors, arguments = problem(d, stride=2, padding=1)
    torch._dynamo.reset()
    compiled = torch.compile(both(d)[0], fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for mine, expected in zip(with_gradients(compiled, tensors, arguments), with_gradients(both(d)[1], tensors, arguments), strict=True):
        torch.testing.assert_close(mine, expected)


def test_exports():
    (x, _, _), _ = problem(2)
    layer = nn.Conv2d(2, 4, 2).double()
    program = torch.export.export(layer, (x,), strict=True, dynamic_shapes={"input": {0: torch.export.Dim("n")}})
    torch.testing.assert_close(program.module()(x[:1]), layer(x[:1]))


@pytest.mark.parametrize("case", ["sizes that vary", "autocast"])
def test_compiled_layers_one_after_the_other(case):
    layers = [(2, 4, 3, 2, 1), (4, 3, 3, 1, 1)]
    theirs = torch.nn.Sequential(*(torch.nn.Conv2d(*layer) for layer in layers))
    torch._dynamo.reset()
    compiled = torch.compile(nn.convert(theirs), fullgraph=True, dynamic=case != "autocast", backend="aot_eager")
    with torch.autocast("cpu", torch.bfloat16, enabled=case == "autocast"):
        for size in [(2, 2, 8, 8), (3, 2, 9, 7)]:
            x = torch.randn(size)
            torch.testing.assert_close(compiled(x), theirs(x), **({"rtol": 0.02, "atol": 0.02} if case == "autocast" else {}))


def test_autocast_lowers_what_torch_lowers():
    (x, w, b), _ = problem(2)
    with torch.autocast("cpu"):
        assert F.conv2d(x.float(), w.float(), b.float()).dtype == torch.bfloat16
        assert F.conv2d(x.float(), w.bfloat16(), b.float()).dtype == torch.bfloat16
        assert F.conv2d(x, w, b).dtype == torch.float64


def test_meta_tensors_have_shapes_only():
    y = F.conv2d(torch.empty(2, 3, 9, 9, device="meta"), torch.empty(4, 3, 3, 3, device="meta"), stride=2)
    assert y.shape == (2, 4, 4, 4)
    assert y.device.type == "meta"


def test_activation_checkpointing():
    (x, w, b), _ = problem(2)
    mine = torch.utils.checkpoint.checkpoint(F.conv2d, x.requires_grad_(), w, b, use_reentrant=False)
    (gx,) = torch.autograd.grad(mine.sin().sum(), x)
    (expected,) = torch.autograd.grad(builtin.conv2d(x, w, b).sin().sum(), x)
    torch.testing.assert_close(gx, expected)


# ---- errors

X, W, B = torch.zeros(1, 3, 5, 5), torch.zeros(4, 3, 3, 3), torch.zeros(4)


@pytest.mark.parametrize(
    ("tensors", "arguments", "error", "message"),
    [
        ((X, W), {"stride": "a"}, TypeError, r"conv2d\(\).*'stride' must be an int or a tuple of 2 ints, but got str"),
        ((X, W), {"stride": True}, TypeError, "'stride'.*bool"),
        ((X, W), {"stride": (1.0, 1)}, TypeError, "'stride'"),
        ((X, W), {"groups": 1.0}, TypeError, "'groups' must be an int, but got float"),
        (([1], W), {}, TypeError, "'input' must be a Tensor, but got list"),
        ((X, 3), {}, TypeError, "'weight' must be a Tensor, but got int"),
        ((X, W, 1.0), {}, TypeError, "'bias' must be a Tensor or None, but got float"),
        ((X, W), {"stride": (1, 2, 3)}, RuntimeError, r"expected stride to be a single integer value or a list of 2 values.*\[1, 2, 3\]"),
        ((X, W), {"stride": 0}, RuntimeError, "non-positive stride is not supported"),
        ((X, W), {"padding": -1}, RuntimeError, "negative padding is not supported"),
        ((X, W), {"padding": "full"}, RuntimeError, "Invalid padding string: 'full'"),
        ((X, W), {"padding": "same", "stride": 2}, RuntimeError, "padding='same' is not supported for strided convolutions"),
        ((X, W), {"dilation": 0}, RuntimeError, "dilation should be greater than zero"),
        ((X, W), {"groups": 0}, RuntimeError, "non-positive groups is not supported"),
        ((X, W), {"groups": 2}, RuntimeError, "expected input.* to have 6 channels, but got 3 channels instead"),
        ((X, W[:, :1]), {"groups": 3}, RuntimeError, "expected weight to be divisible by 3 at dimension 0"),
        ((X, W[:, :1]), {"groups": 5}, RuntimeError, "expected weight to be at least 5 at dimension 0"),
        ((X[None], W), {}, RuntimeError, r"Expected 3D \(unbatched\) or 4D \(batched\) input to conv2d"),
        ((X, W[0]), {}, RuntimeError, "3-dimensional weight"),
        ((X, W[0, 0]), {}, RuntimeError, "weight should have at least three dimensions"),
        ((X, W, B[:2]), {}, RuntimeError, "expected bias to be 1-dimensional with 4 elements"),
        ((X[:, :, :2], W), {}, RuntimeError, r"\(2 x 5\). Kernel size: \(3 x 3\). Kernel size can't be greater than actual input size"),
        ((X[:, :, :0], W), {"padding": 2}, RuntimeError, "Only zero batch or zero channel inputs are supported"),
        ((X, W[:, :, :0]), {}, RuntimeError, "kernel size should be greater than zero"),
        ((X.double(), W), {}, RuntimeError, "Input type .*float64.* and weight type .*float32.* should be the same"),
        ((X, W, B.double()), {}, RuntimeError, "Input type .*float32.* and bias type .*float64.* should be the same"),
        ((X, W.to("meta")), {}, RuntimeError, "same device.*input is on cpu and weight is on meta"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, (dict, str)) else "",
)
def test_refusals_name_the_argument(tensors, arguments, error, message):
    with pytest.raises(error, match=message):
        F.conv2d(*tensors, **arguments)
    if "meta" not in message:
        with pytest.raises(error):
            builtin.conv2d(*tensors, **arguments)


# ---- the Module


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("d", [1, 2, 3])
def test_module_is_its_namesake(d, mode):
    def build(module):
        torch.manual_seed(7)
        return getattr(module, f"Conv{d}d")(4, 6, 3, stride=2, padding=1, groups=2, padding_mode=mode)

    mine, theirs = build(nn), build(torch.nn)
    assert repr(mine) == repr(theirs)
    assert mine.state_dict().keys() == theirs.state_dict().keys()
    assert all(torch.equal(a, b) for a, b in zip(mine.parameters(), theirs.parameters(), strict=True))
    x = torch.randn(2, 4, *[7] * d)
    torch.testing.assert_close(mine(x), theirs(x))
    buffer = io.BytesIO()
    torch.save(mine, buffer)
    buffer.seek(0)
    for twin in (copy.deepcopy(mine), torch.load(buffer, weights_only=False)):
        assert type(twin) is type(mine)
        assert torch.equal(twin(x), mine(x))


def test_module_of_a_lazy_device():
    layer = torch.nn.utils.skip_init(nn.Conv2d, 2, 3, 3)
    assert layer.weight.shape == (3, 2, 3, 3)
    assert nn.Conv2d(2, 3, 3, device="meta").to_empty(device="cpu").weight.device.type == "cpu"


def test_parametrized_and_hooked():
    layer = torch.nn.utils.parametrizations.weight_norm(nn.Conv2d(2, 3, 3))
    seen = []
    layer.register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    layer(torch.zeros(1, 2, 4, 4)).sum().backward()
    assert seen == [(1, 3, 2, 2)]
    assert layer.parametrizations.weight.original1.grad is not None


@pytest.mark.parametrize("d", [1, 2])
@pytest.mark.parametrize("pixels", [1, 2, 5])
@pytest.mark.parametrize("stride", [3, 7, 20])
@pytest.mark.parametrize(("kernel", "padding"), [(1, 0), (1, 2), (2, 1), (3, 4)])
@pytest.mark.parametrize("groups", [1, 2, 6])
def test_strides_larger_than_the_image(d, pixels, stride, kernel, padding, groups):
    """Most pixels, or all, are seen by no window; issue 19, case 25."""
    if pixels + 2 * padding < kernel:
        return
    x = torch.randn(2, 6, *[pixels] * d, dtype=torch.float64, requires_grad=True)
    w = torch.randn(6, 6 // groups, *[kernel] * d, dtype=torch.float64, requires_grad=True)
    results = []
    for library in (F, torch.nn.functional):
        y = getattr(library, f"conv{d}d")(x, w, None, stride, padding, 1, groups)
        upstream = torch.arange(y.numel(), dtype=torch.float64).view(y.shape).sin()
        results.append((y, *torch.autograd.grad(y, (x, w), upstream)))
    for mine, expected in zip(*results, strict=True):
        torch.testing.assert_close(mine, expected)
