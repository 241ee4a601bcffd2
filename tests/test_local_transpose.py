"""Transposed local layers: torch's transposed convolution with shared weights, the gradient of a local layer's image, errors, Modules."""

import pytest
import torch
import torch.nn.functional as builtin
from torch.nn.utils import prune

from cnn425 import nn
from cnn425.agreement import compare, transforms
from cnn425.nn import functional as F

float64 = {"dtype": torch.float64}
# Each case is named after the bug it kills.
CASES = {
    "plain": {},
    "one stride for both axes": {"stride": (1, 2, 3)},
    "padding of one axis used for the other": {"padding": (0, 1, 1), "kernel": 3},
    "dilation forgotten": {"dilation": 2},
    "output padding forgotten": {"stride": 2, "output_padding": (1, 0, 1)},
    "groups see one another": {"groups": 2},
    "without bias": {"bias": False},
}


def problem(d, n=2, inputs=4, outputs=3, size=3, kernel=2, groups=1, bias=True, **arguments):
    arguments = {k: v[:d] if isinstance(v, tuple) else v for k, v in arguments.items()}
    x, w = torch.randn(n, inputs, *range(size, size + d), **float64), torch.randn(inputs, outputs, *[kernel] * d, **float64)
    return (x, w, torch.randn(outputs * groups, **float64) if bias else None), {"groups": groups, **arguments}


@pytest.mark.parametrize("d", [1, 2, 3])
@pytest.mark.parametrize("case", CASES)
def test_sharing_the_weights_gives_torchs_transposed_convolution(case, d):
    tensors, arguments = problem(d, **CASES[case])
    ours, theirs = getattr(F, f"locally_connected_transpose{d}d"), getattr(builtin, f"conv_transpose{d}d")
    size = tensors[0].shape[2:]
    assert compare(lambda x, w, b: ours(x, w.expand(*size, *w.shape), b, **arguments), lambda *t: theirs(*t, **arguments), tensors)


@pytest.mark.parametrize("d", [1, 2, 3])
def test_each_pixel_alone_is_a_transposed_convolution(d):
    """The layer is linear in the image: with one pixel it is the transposed convolution that has this pixel's weights."""
    (x, w, _), arguments = problem(d, stride=2, padding=1, groups=2)
    size = x.shape[2:]
    w = torch.randn(*size, *w.shape, **float64)
    total = 0
    for place in torch.cartesian_prod(*map(torch.arange, size)).view(-1, d).tolist():
        here = (..., *place)
        alone = torch.zeros_like(x)
        alone[here] = x[here]
        total = total + getattr(builtin, f"conv_transpose{d}d")(alone, w[tuple(place)], **arguments)
    torch.testing.assert_close(getattr(F, f"locally_connected_transpose{d}d")(x, w, **arguments), total)


def test_it_is_the_gradient_of_the_local_layers_image():
    gy, w = torch.randn(2, 4, 3, 4, **float64), torch.randn(3, 4, 4, 3, 3, 2, **float64)
    image = torch.randn(2, 3, 8, 5, **float64, requires_grad=True)
    (gx,) = torch.autograd.grad(F.locally_connected2d(image, w, stride=(2, 1)), image, gy)
    torch.testing.assert_close(F.locally_connected_transpose2d(gy, w, stride=(2, 1), output_padding=(1, 0)), gx)


def test_derivatives_transforms_and_the_compiler():
    (x, w, b), arguments = problem(1, n=1, inputs=2, outputs=1, groups=2, stride=2)
    w = torch.randn(*x.shape[2:], *w.shape, **float64)

    def ours(x, w, b):
        return F.locally_connected_transpose1d(x, w, b, **arguments)

    def theirs(x, w, b):
        cells = [builtin.conv_transpose1d(x[..., i : i + 1], w[i], None, 2, 0, 0, 2) for i in range(3)]
        return sum(builtin.pad(cell, (2 * i, 4 - 2 * i)) for i, cell in enumerate(cells)) + b.view(-1, 1)

    leaves = [t.requires_grad_() for t in (x, w, b)]
    assert torch.autograd.gradcheck(ours, leaves, check_forward_ad=True, check_batched_grad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(ours, leaves, fast_mode=True)
    assert not any(transforms(ours, theirs, leaves).values())
    torch._dynamo.reset()
    assert compare(torch.compile(ours, fullgraph=True, backend="aot_eager"), theirs, leaves)


X, W = torch.zeros(1, 4, 3, 3), torch.zeros(3, 3, 4, 2, 2, 2)


@pytest.mark.parametrize(
    ("tensors", "arguments", "error", "message"),
    [
        ((X, W), {"padding": "same"}, TypeError, "'padding' must be an int or a tuple of 2 ints, but got str"),
        ((X, W[0]), {}, RuntimeError, r"Expected 6-dimensional weight \(\*in, C, O/groups, \*kernel\) in locally_connected_transpose2d"),
        ((X, W[:2]), {}, RuntimeError, "belongs to an input of 2 x 3 pixels, but the input has 3 x 3 pixels"),
        ((X[:, :3], W), {}, RuntimeError, "to have 4 channels, but got 3 channels instead"),
        ((X, W), {"groups": 3}, RuntimeError, "expected weight to be divisible by 3 at dimension 2"),
        ((X, W, X[0, 0, 0]), {}, RuntimeError, r"1-dimensional with 2 elements or of size \[2, 4, 4\], but got bias of size \[3\]"),
        ((X, W), {"output_padding": 1}, RuntimeError, "output padding must be smaller than either stride or dilation"),
        ((X, W), {"padding": 2}, RuntimeError, r"Calculated output size per channel: \(0 x 0\). Output size is too small"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, (dict, str)) else "",
)
def test_refusals_name_the_argument(tensors, arguments, error, message):
    with pytest.raises(error, match=message):
        F.locally_connected_transpose2d(*tensors, **arguments)


@pytest.mark.parametrize("d", [1, 2, 3])
def test_modules_from_and_to_a_transposed_convolution(d):
    conv = getattr(torch.nn, f"ConvTranspose{d}d")(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2).double()
    size = tuple(range(3, 3 + d))
    layer, x = getattr(nn, f"LocallyConnectedTranspose{d}d").from_conv(conv, size), torch.randn(2, 4, *size, **float64)
    torch.testing.assert_close(layer(x), conv(x))
    torch.testing.assert_close(layer(x[0]), conv(x[0]))
    torch.testing.assert_close(layer.to_conv().state_dict(), conv.state_dict())
    assert layer.weight.shape == (*size, 4, 3, *[3] * d)
    assert layer.output_size == conv(x).shape[2:]


def test_the_modules_bias_start_repr_and_refusals():
    layer = nn.LocallyConnectedTranspose2d(2, 3, (3, 4), 2, stride=2, output_padding=1)
    assert layer.bias.shape == (3, 7, 9)
    assert layer.weight.abs().max() <= (3 * 4) ** -0.5
    assert repr(layer).startswith(
        "LocallyConnectedTranspose2d(2, 3, input_size=(3, 4), kernel_size=(2, 2), stride=(2, 2), output_padding=(1, 1), "
    )
    assert layer(torch.zeros(2, 2, 3, 4)).shape == (2, 3, 7, 9)
    torch.testing.assert_close(layer.to_conv().bias, layer.bias.mean((1, 2)))
    twin = layer.unshared()
    twin.load_state_dict(layer.state_dict())
    with pytest.raises(RuntimeError, match="made for an input of 3 x 4 pixels"):
        layer(torch.zeros(1, 2, 4, 3))
    with pytest.raises(ValueError, match="takes away all of the output"):
        nn.LocallyConnectedTranspose1d(1, 1, 2, 2, padding=3)
    with pytest.raises(TypeError, match="conv must be a ConvTranspose2d, but got Conv2d"):
        nn.LocallyConnectedTranspose2d.from_conv(torch.nn.Conv2d(1, 1, 1), 3)


def test_the_windows_of_a_transposed_layer_are_on_its_output():
    layer = nn.LocallyConnectedTranspose2d(2, 3, (3, 4), 2, dilation=3, output_padding=2)  # more windows would fit
    assert layer.geometry.positions(layer.output_size) == layer.input_size


def test_unshared_takes_pruned_layers():
    layer = prune.l1_unstructured(nn.LocallyConnectedTranspose1d(2, 3, 4, 2, bias="channel"), "weight", 0.5)
    x = torch.randn(2, 2, 4)
    assert torch.equal(layer.unshared()(x), layer(x))
    assert type(layer.unshared()) is nn.LocallyConnectedTranspose1d
