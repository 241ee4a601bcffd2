"""Transposed convolution: torch, the convolution whose gradient it is, finite differences, transforms, errors, the Modules."""

import copy
import functools
import io
import itertools

import pytest
import torch
import torch.nn.functional as builtin
from oldest import loses_sizes

from cnn425 import nn
from cnn425.agreement import compare, transforms
from cnn425.nn import functional as F

float64 = {"dtype": torch.float64}

# Each case is named after the bug it kills.
CASES = {
    "plain": {},
    "one stride for both axes": {"stride": (1, 2, 3)},
    "padding of one axis used for the other": {"padding": (0, 1, 2), "kernel": 3, "size": 5},
    "dilation forgotten": {"dilation": (2, 1, 2)},
    "output padding forgotten": {"stride": (2, 3, 2), "output_padding": (1, 2, 0)},
    "output padding as large as the stride": {"stride": 2, "dilation": 4, "output_padding": 3, "padding": 1},
    "output padding beyond all windows": {"dilation": 3, "kernel": 1, "output_padding": 2},
    "more output padding than pixels, less the padding": {"kernel": 1, "stride": 7, "padding": 2, "output_padding": 5, "size": 1},
    "groups see one another": {"groups": 2},
    "more outputs than inputs in groups": {"groups": 4, "inputs": 4, "outputs": 2},
    "pixels that no window writes": {"kernel": 1, "stride": 3},
    "without bias": {"bias": False},
}


def problem(d, n=2, inputs=4, outputs=3, size=3, kernel=2, groups=1, bias=True, **arguments):
    arguments = {k: v[:d] if isinstance(v, tuple) else v for k, v in arguments.items()}
    x, w = torch.randn(n, inputs, *range(size, size + d), **float64), torch.randn(inputs, outputs, *[kernel] * d, **float64)
    return (x, w, torch.randn(outputs * groups, **float64) if bias else None), {"groups": groups, **arguments}


def both(d, **arguments):
    functions = [getattr(library, f"conv_transpose{d}d") for library in (F, builtin)]
    return [functools.partial(f, **arguments) for f in functions]


def test_pencil_two_pixels_write_windows_that_overlap():
    x, w = torch.tensor([[[1.0, 10]]]), torch.tensor([[[1.0, 2, 3]]])
    assert F.conv_transpose1d(x, w, torch.tensor([100.0])).tolist() == [[[101, 112, 123, 130]]]


@pytest.mark.parametrize("d", [1, 2, 3])
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_torchs(case, d):
    tensors, arguments = problem(d, **CASES[case])
    ours, theirs = both(d, **arguments)
    assert compare(ours, theirs, tensors, strides=True)
    assert compare(ours, theirs, (tensors[0][0], *tensors[1:]), strides=True)  # unbatched


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.complex64, torch.complex128])
def test_every_dtype(dtype):
    tensors, arguments = problem(2, stride=2, padding=1)
    ours, theirs = both(2, **arguments)
    assert compare(ours, theirs, [t.to(dtype) for t in tensors])


@pytest.mark.parametrize("last", list(itertools.product((False, True), repeat=2)), ids=str)
@pytest.mark.parametrize("d", [1, 2, 3])
def test_memory_layout_is_torchs(d, last):
    tensors, arguments = problem(d, n=2, size=4, kernel=3, stride=2)
    tensors = [t.float() for t in tensors]
    tensors[:2] = [t.movedim(1, -1).contiguous().movedim(-1, 1) if yes else t for t, yes in zip(tensors, last, strict=False)]
    assert compare(*both(d, **arguments), tensors, strides=True)


@pytest.mark.parametrize("groups", [1, 2])
def test_it_is_the_gradient_of_the_convolutions_image(groups):
    w, gy = torch.randn(4, 3, 3, 2, **float64), torch.randn(2, 4, 3, 4, **float64)
    image = torch.randn(2, 3 * groups, 8, 5, **float64, requires_grad=True)
    (gx,) = torch.autograd.grad(F.conv2d(image, w, stride=(2, 1), padding=(0, 0), groups=groups), image, gy)
    torch.testing.assert_close(F.conv_transpose2d(gy, w, stride=(2, 1), output_padding=(1, 0), groups=groups), gx)


@pytest.mark.parametrize("case", ["output padding as large as the stride", "groups see one another"])
def test_derivatives_of_two_orders(case):
    tensors, arguments = problem(1, n=1, **CASES[case])
    leaves = [t.requires_grad_() for t in tensors]
    assert torch.autograd.gradcheck(both(1, **arguments)[0], leaves, check_forward_ad=True, check_batched_grad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(both(1, **arguments)[0], leaves, check_fwd_over_rev=True, fast_mode=True)


def test_transforms_of_torch():
    tensors, arguments = problem(2, n=1, size=2, groups=2, stride=2, padding=1, output_padding=1)
    assert not any(transforms(*both(2, **arguments), tensors).values())


@pytest.mark.parametrize("dynamic", [False, pytest.param(True, marks=loses_sizes)])
def test_compiles_in_one_graph(dynamic):
    tensors, arguments = problem(2, stride=2, padding=1, output_padding=1)
    ours, theirs = both(2, **arguments)
    torch._dynamo.reset()
    assert compare(torch.compile(ours, fullgraph=True, dynamic=dynamic, backend="aot_eager"), theirs, tensors)


def test_empty_batches_meta_tensors_autocast_and_subclasses():
    (x, w, b), _ = problem(2)
    assert F.conv_transpose2d(x[:0], w, b).shape == (0, 3, 4, 5)
    assert F.conv_transpose2d(x.to("meta"), w.to("meta")).shape == (2, 3, 4, 5)
    with torch.autocast("cpu"):
        assert F.conv_transpose2d(x.float(), w.float(), b.float()).dtype == torch.bfloat16

    class Named(torch.Tensor):
        pass

    assert type(F.conv_transpose2d(x.as_subclass(Named), w)) is Named


X, W = torch.zeros(1, 4, 5, 5), torch.zeros(4, 3, 3, 3)


@pytest.mark.parametrize(
    ("tensors", "arguments", "error", "message"),
    [
        ((X, W), {"stride": "a"}, TypeError, "'stride' must be an int or a tuple of 2 ints, but got str"),
        ((X, W), {"padding": "same"}, TypeError, "'padding' must be an int or a tuple of 2 ints, but got str"),
        ((X, W), {"output_padding": 1.0}, TypeError, "'output_padding'.*float"),
        ((X, W), {"groups": 1.0}, TypeError, "'groups' must be an int, but got float"),
        (([1], W), {}, TypeError, "'input' must be a Tensor, but got list"),
        ((X, W), {"output_padding": (0, 0, 0)}, RuntimeError, "expected output_padding to be a single integer value or a list of 2"),
        ((X, W), {"output_padding": -1}, RuntimeError, "negative output_padding is not supported"),
        ((X, W), {"output_padding": 1}, RuntimeError, "output padding must be smaller than either stride or dilation"),
        ((X, W), {"stride": 0}, RuntimeError, "non-positive stride is not supported"),
        ((X, W), {"padding": -1}, RuntimeError, "negative padding is not supported"),
        ((X, W), {"dilation": 0}, RuntimeError, "dilation should be greater than zero"),
        ((X, W), {"groups": 0}, RuntimeError, "non-positive groups is not supported"),
        ((X, W), {"groups": 3}, RuntimeError, "expected weight to be divisible by 3 at dimension 0"),
        ((X, W), {"groups": 5}, RuntimeError, "expected weight to be at least 5 at dimension 0"),
        ((X[:, :3], W), {}, RuntimeError, r"expected input\[1, 3, 5, 5\] to have 4 channels, but got 3 channels instead"),
        ((X[None], W), {}, RuntimeError, r"Expected 3D \(unbatched\) or 4D \(batched\) input to conv_transpose2d"),
        ((X, W, W[0, :, 0, 0][:2]), {}, RuntimeError, "expected bias to be 1-dimensional with 3 elements"),
        ((X, W), {"padding": 4}, RuntimeError, r"Calculated output size per channel: \(-1 x -1\). Output size is too small"),
        ((X, W[..., :0]), {}, RuntimeError, "kernel size should be greater than zero"),
        ((X.int(), W.int()), {}, NotImplementedError, "conv_transpose2d is not implemented for 'Int'"),
        ((X.double(), W), {}, RuntimeError, "Input type .*float64.* and weight type .*float32.* should be the same"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, (dict, str)) else "",
)
def test_refusals_name_the_argument_and_have_torchs_type(tensors, arguments, error, message):
    with pytest.raises(error, match=message):
        F.conv_transpose2d(*tensors, **arguments)
    with pytest.raises(error):
        builtin.conv_transpose2d(*tensors, **arguments)


# ---- the Modules


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("d", [1, 2, 3])
def test_module_is_its_namesake(d, lazy):
    def build(module):
        torch.manual_seed(7)
        layer = getattr(module, f"{'Lazy' * lazy}ConvTranspose{d}d")(*[4] * (not lazy), 6, 3, stride=2, padding=1, groups=2)
        layer(torch.zeros(1, 4, *[3] * d))
        return layer

    mine, theirs = build(nn), build(torch.nn)
    assert type(mine) is getattr(nn, f"ConvTranspose{d}d")
    assert repr(mine) == repr(theirs)
    assert mine.state_dict().keys() == theirs.state_dict().keys()
    assert compare(mine, theirs, [torch.randn(2, 4, *[3] * d)])
    for output_size in ([6] * d, [2, 6, *[5] * d]):
        assert compare(mine, theirs, [torch.randn(2, 4, *[3] * d), output_size])
    with pytest.raises(ValueError, match="requested an output size"):
        mine(torch.zeros(1, 4, *[3] * d), [9] * d)
    for layer in (mine, theirs):
        layer.padding_mode = "circular"
        with pytest.raises(ValueError, match=f"Only `zeros` padding mode is supported for ConvTranspose{d}d"):
            layer(torch.zeros(1, 4, *[3] * d))
        layer.padding_mode = "zeros"
    buffer = io.BytesIO()
    torch.save(mine, buffer)
    buffer.seek(0)
    x = torch.randn(1, 4, *[3] * d)
    for twin in (copy.deepcopy(mine), torch.load(buffer, weights_only=False)):
        assert torch.equal(twin(x), mine(x))


def test_convert_and_revert():
    theirs = torch.nn.Sequential(torch.nn.ConvTranspose1d(2, 3, 3, output_padding=1, stride=2), torch.nn.ConvTranspose1d(3, 1, 2))
    ours, x = nn.convert(theirs), torch.randn(2, 2, 5)
    assert [type(layer) for layer in ours] == [nn.ConvTranspose1d] * 2
    assert compare(ours, theirs, [x])
    assert [type(layer) for layer in nn.revert(ours)] == [torch.nn.ConvTranspose1d] * 2


LAYOUTS = {
    "images": (2, {}),
    "volumes": (3, {}),
    "volumes, output padding as large as the stride": (3, {"stride": 2, "dilation": 3, "output_padding": 2}),
    "a volume of one small image": (3, {"n": 1}),
    "a volume of one small image in groups": (3, {"n": 1, "groups": 2}),
    "a volume of one small image in bfloat16": (3, {"n": 1, "dtype": torch.bfloat16}),
    "a volume of one small image in float16": (3, {"n": 1, "dtype": torch.float16}),
}


@pytest.mark.parametrize("upstream_last", [True, False])
@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("case", LAYOUTS)
def test_results_and_gradients_are_stored_as_torch_stores_them_whatever_the_layout_of_the_upstream_gradient(case, last, upstream_last):
    d, arguments = LAYOUTS[case]
    order = {2: torch.channels_last, 3: torch.channels_last_3d}[d]
    dtype = arguments.get("dtype", torch.float32)
    tensors, arguments = problem(d, outputs=2, **{k: v for k, v in arguments.items() if k != "dtype"})
    x, w, b = (t.to(dtype) for t in tensors)
    x = x.contiguous(memory_format=order) if last else x
    strides = []
    for function in both(d, **arguments):
        leaves = [t.detach().requires_grad_() for t in (x, w)]
        y = function(*leaves, b)
        gy = torch.ones_like(y, memory_format=order if upstream_last else torch.contiguous_format)
        strides.append([t.stride() for t in (y, *torch.autograd.grad(y, leaves, gy))])
    assert strides[0] == strides[1]


def test_the_module_is_traced_by_fx():
    layer, x = nn.ConvTranspose2d(3, 4, 3, stride=2), torch.randn(1, 3, 4, 4)
    assert torch.equal(torch.fx.symbolic_trace(torch.nn.Sequential(layer))(x), layer(x))


def test_a_weight_of_another_number_of_dimensions_is_refused_as_by_torch():
    for function in (builtin.conv_transpose2d, F.conv_transpose2d):
        with pytest.raises(RuntimeError):
            function(torch.ones(1, 2, 5, 5), torch.ones(2, 3, 3))
