"""What a caller of torch.nn would notice: layouts, dtypes and refusals that torch's own suites look at, and other kinds of tensors."""

import itertools
import warnings

import pytest
import torch
from torch.autograd import forward_ad

import cnn425.nn as nn
import cnn425.nn.functional as F
from cnn425.agreement import compare, same_refusal

TORCH = torch.nn.functional
LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def image(*size, dtype=torch.float32):
    return torch.randn(size, generator=torch.Generator().manual_seed(sum(size))).to(dtype)


def strides(function, tensors, **named):
    """Strides of the output and of every gradient, the upstream gradient contiguous."""
    leaves = [t.detach().requires_grad_() for t in tensors]
    y = function(*leaves, **named)
    gradients = torch.autograd.grad(y, leaves, torch.ones(y.shape, dtype=y.dtype))
    return [t.stride() for t in (y, *gradients)]


# ---- memory layout


@pytest.mark.parametrize("last", ["input", "weight", "both"])
@pytest.mark.parametrize(
    ("shape", "weight", "named"),
    [
        ((2, 4, 5, 6), (6, 4, 3, 3), {}),
        ((2, 1, 5, 6), (1, 1, 3, 3), {"padding": 1}),
        ((16, 4, 5, 6), (6, 4, 1, 1), {}),
        ((2, 4, 5, 6), (4, 1, 3, 3), {"groups": 4}),
        ((2, 3, 4, 5, 6), (4, 3, 3, 3, 3), {}),
        ((1, 4, 4, 5, 6), (4, 4, 3, 3, 3), {}),
        ((1, 4, 4, 5, 6), (4, 4, 1, 4, 4), {}),
    ],
    ids=str,
)
def test_gradients_lie_as_torch_lays_them_whatever_the_layout_of_the_upstream_gradient(shape, weight, named, last):
    x, w = image(*shape), image(*weight)
    x = x.to(memory_format=LAST[x.ndim]) if last != "weight" else x
    w = w.to(memory_format=LAST[w.ndim]) if last != "input" else w
    name = f"conv{x.ndim - 2}d"
    assert strides(getattr(F, name), (x, w), **named) == strides(getattr(TORCH, name), (x, w), **named)


@pytest.mark.parametrize("name", ["conv2d", "conv_transpose2d"])
@pytest.mark.parametrize("last", [(True, False), (False, True), (True, True)], ids=str)
def test_gradients_of_complex_images_lie_as_torch_lays_them(last, name):
    x, w = (torch.complex(image(*s), image(*s)) for s in ((2, 4, 5, 6), (6, 4, 3, 3)))
    x, w = (t.to(memory_format=LAST[4]) if there else t for t, there in zip((x, w), last, strict=True))
    w = w if name == "conv2d" else w.transpose(0, 1).contiguous(memory_format=LAST[4] if last[1] else torch.contiguous_format)
    assert strides(getattr(F, name), (x, w)) == strides(getattr(TORCH, name), (x, w))


def test_the_largest_numbers_of_a_signal_that_has_a_tangent_lie_as_torch_lays_them():
    x = image(2, 6, 3).transpose(1, 2)
    with forward_ad.dual_level():
        ours, theirs = (forward_ad.unpack_dual(f.max_pool1d(forward_ad.make_dual(x, x), 2)) for f in (F, TORCH))
        assert [t.stride() for t in ours] == [t.stride() for t in theirs]


@pytest.mark.parametrize("dtype", [torch.float64, torch.int64, torch.bfloat16])
def test_winners_of_every_dtype_lie_as_torch_lays_them(dtype):
    x = (9 * image(2, 3, 6, 7)).to(dtype).to(memory_format=torch.channels_last)
    ours, theirs = (f.max_pool2d(x, 3, 2, 1, return_indices=True) for f in (F, TORCH))
    assert [t.stride() for t in ours] == [t.stride() for t in theirs]


@pytest.mark.parametrize("transposed", ["input", "weight", "both"])
def test_a_transposed_signal_is_contiguous_again_unless_the_weight_is_transposed_too(transposed):
    x, w = image(2, 7, 4), image(5, 3, 4)
    x = x.transpose(1, 2) if transposed != "weight" else x.transpose(1, 2).contiguous()
    w = w.transpose(1, 2) if transposed != "input" else w.transpose(1, 2).contiguous()
    assert strides(F.conv1d, (x, w), padding=1) == strides(TORCH.conv1d, (x, w), padding=1)
    assert compare(lambda x, w: F.conv1d(x, w, padding=1), lambda x, w: TORCH.conv1d(x, w, padding=1), (x, w))


@pytest.mark.parametrize("indices", [False, True])
def test_a_single_volume_keeps_its_channels_last_and_its_gradient_does_not(indices):
    x = image(1, 4, 5, 6, 7).to(memory_format=torch.channels_last_3d)[0].requires_grad_()
    mine, expected = (f(x, 3, 2, return_indices=indices) for f in (F.max_pool3d, TORCH.max_pool3d))
    for a, b in zip(mine if indices else [mine], expected if indices else [expected], strict=True):
        assert a.stride() == b.stride()
        assert torch.equal(a, b)
    gradients = [torch.autograd.grad(y[0] if indices else y, x, torch.ones(4, 2, 2, 3))[0] for y in (mine, expected)]
    assert gradients[0].stride() == gradients[1].stride()


ROWS = {"rows": lambda t: t, "columns": lambda t: t.t().contiguous().t(), "expanded": lambda t: t[:, :1].expand_as(t)}


@pytest.mark.parametrize("input", ROWS)
@pytest.mark.parametrize("weight", ROWS)
@pytest.mark.parametrize("size", [(4, 5), (1, 5), (4, 1)], ids=str)
def test_gradients_of_matrices_lie_by_rows_or_by_columns_as_torch_lays_them(input, weight, size):
    x, w = ROWS[input](image(*size)), ROWS[weight](image(3, size[1]))
    assert strides(F.linear, (x, w)) == strides(TORCH.linear, (x, w))
    assert strides(F.linear, (x, w[0])) == strides(TORCH.linear, (x, w[0]))
    assert compare(F.linear, TORCH.linear, (x, w))


@pytest.mark.parametrize("name", ["conv2d", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d"])
def test_channels_expanded_from_one_are_not_channels_last(name):
    x = image(2, 1, 5, 5).expand(2, 3, 5, 5)
    second = image(4, 3, 2, 2) if name == "conv2d" else 2
    assert strides(lambda x: getattr(F, name)(x, second), (x,)) == strides(lambda x: getattr(TORCH, name)(x, second), (x,))


def test_the_gradient_of_a_sigmoid_lies_as_its_upstream_gradient():
    x = image(2, 3, 4, 5).to(memory_format=torch.channels_last)
    assert strides(F.sigmoid, (x,)) == strides(TORCH.sigmoid, (x,))


@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("target", ["probabilities", "classes"])
def test_gradients_of_a_loss_are_contiguous(target, reduction):
    x = image(2, 3, 4, 5).to(memory_format=torch.channels_last)
    t = image(2, 3, 4, 5).to(memory_format=torch.channels_last) if target == "probabilities" else torch.ones(2, 5, 4).long().mT
    named = {"target": t, "reduction": reduction}
    assert strides(F.cross_entropy, (x,), **named) == strides(TORCH.cross_entropy, (x,), **named)


# ---- what may be done with a result

WRITTEN = {
    **{f"conv{d}d": lambda f, x: f(x, torch.ones(2, 3, *[2] * (x.ndim - 2))) for d in (1, 2, 3)},
    **{f"locally_connected{d}d": lambda f, x: f(x, torch.ones(*[3] * (x.ndim - 2), 2, 3, *[2] * (x.ndim - 2))) for d in (1, 2, 3)},
    **{f"{kind}_pool{d}d": lambda f, x: f(x, 2) for d in (1, 2, 3) for kind in ("max", "avg", "adaptive_max", "adaptive_avg")},
    **{f"lp_pool{d}d": lambda f, x: f(x, 2, 2) for d in (1, 2, 3)},
    "linear": lambda f, x: f(x, torch.ones(2, x.shape[-1])),
    "cross_entropy": lambda f, x: f(x, torch.zeros(len(x), *x.shape[2:], dtype=torch.int64), reduction="none"),
}


@pytest.mark.parametrize("recorded", [True, False])
@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("name", WRITTEN)
def test_a_result_may_be_written_over_as_an_activation_in_place_does(name, images, recorded):
    d = int(name[-2]) if name[-1] == "d" else 2

    def doubled(double):
        x, factor = image(images, 3, *[4] * d).requires_grad_(recorded), torch.tensor(2.0, requires_grad=True)
        with torch.set_grad_enabled(recorded):
            y = WRITTEN[name](getattr(F, name), x)
        return torch.autograd.grad(double(y, factor).square().sum(), [x, factor] if recorded else factor)

    torch.testing.assert_close(doubled(torch.Tensor.mul_), doubled(torch.mul))


@pytest.mark.parametrize("recorded", [True, False])
def test_the_largest_numbers_of_a_signal_lie_contiguous_unless_their_places_are_wanted(recorded):
    x = image(2, 5, 4).mT.requires_grad_(recorded)
    for indices in (True, False):
        mine, expected = (f(x, 2, return_indices=indices) for f in (F.max_pool1d, TORCH.max_pool1d))
        assert (mine[0] if indices else mine).stride() == (expected[0] if indices else expected).stride()


def test_complex_volumes_keep_their_channels_last_as_real_ones_do():
    x, w = (torch.complex(image(*s), image(*s)).to(memory_format=LAST[5]) for s in ((2, 4, 3, 4, 5), (4, 2, 2, 2, 2)))
    for dtype in (torch.complex64, torch.complex128):
        mine, expected = (f(x.to(dtype), w.to(dtype), groups=2) for f in (F.conv3d, TORCH.conv3d))
        assert mine.stride() == expected.stride()


def test_a_small_volume_lies_as_torch_lays_it_after_the_number_of_threads_has_changed():
    x, w = image(2, 3, 2, 2, 2).to(memory_format=LAST[5]), image(4, 3, 1, 1, 1)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 1):
            torch.set_num_threads(count)
            assert F.conv3d(x, w).stride() == TORCH.conv3d(x, w).stride()
    finally:
        torch.set_num_threads(threads)


# ---- dtypes


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
@pytest.mark.parametrize("d", [1, 2, 3])
def test_half_precision_complex_numbers_are_convolved(d):
    f, g = getattr(F, f"conv{d}d"), getattr(TORCH, f"conv{d}d")
    x, w, b = (torch.complex(image(*s), image(*s).flip(0)).to(torch.complex32) for s in ((2, 4, *[5] * d), (4, 4, *[3] * d), (4,)))
    assert compare(f, g, (x, w, b))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
@pytest.mark.parametrize("dilation", [1, 2])
def test_small_integers_are_refused_where_torch_has_no_dilated_kernel(dtype, dilation):
    x, w = torch.ones(1, 2, 6, 6, dtype=dtype), torch.ones(3, 2, 3, 3, dtype=dtype)
    assert not same_refusal(lambda: F.conv2d(x, w, dilation=dilation), lambda: TORCH.conv2d(x, w, dilation=dilation))


@pytest.mark.parametrize(
    "dtypes", [*itertools.product((torch.bool, torch.uint8), (torch.bool, torch.int64), (None, torch.bool, torch.float32))], ids=str
)
@pytest.mark.parametrize("dilation", [1, 2])
def test_of_several_wrong_dtypes_torchs_is_refused_first(dtypes, dilation):
    x, w, b = (
        torch.ones(size, dtype=dtype) if dtype else None for size, dtype in zip(((1, 2, 6, 6), (2, 2, 3, 3), (2,)), dtypes, strict=True)
    )
    assert not same_refusal(lambda: F.conv2d(x, w, b, dilation=dilation), lambda: TORCH.conv2d(x, w, b, dilation=dilation))


@pytest.mark.parametrize("name", ["max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d"])
@pytest.mark.parametrize("place", [0, 1])
def test_numbers_of_more_than_32_bits_are_refused(name, place):
    x, sizes = image(2, *[6] * int(name[-2])), [2, 2]
    sizes[place] = 2**40
    assert not same_refusal(lambda: getattr(F, name)(x, *sizes), lambda: getattr(TORCH, name)(x, *sizes))


@pytest.mark.parametrize("name", ["conv1d", "conv_transpose1d"])
def test_a_transposed_weight_of_one_channel_makes_channels_last_signals(name):
    x, w = image(2, 8, 20), image(8, 3, 1).transpose(1, 2)
    assert strides(getattr(F, name), (x, w), groups=8) == strides(getattr(TORCH, name), (x, w), groups=8)


@pytest.mark.parametrize("indices", [False, True])
def test_autocast_raises_the_precision_of_volumes_but_not_where_indices_are_asked_for(indices):
    x = image(1, 2, 4, 4, 4, dtype=torch.bfloat16)
    with torch.autocast("cpu"):
        mine, expected = (f(x, 2, return_indices=indices) for f in (F.max_pool3d, TORCH.max_pool3d))
    assert (mine[0] if indices else mine).dtype == (expected[0] if indices else expected).dtype


def test_scores_whose_sign_is_a_bit_may_be_smoothed():
    x, target = torch._neg_view(image(2, 3)), torch.tensor([0, 2])
    mine, expected = (f(x, target, label_smoothing=0.1) for f in (F.cross_entropy, TORCH.cross_entropy))
    torch.testing.assert_close(mine, expected)


@pytest.mark.parametrize("way", ["tiny", "products", "sweep", "many images", "low rank"])
def test_a_bias_whose_sign_is_a_bit_of_the_tensor_is_added_with_its_sign(way):
    x, w, b = image({"many images": 5}.get(way, 2), 4, 6, 6), image(3, 4, 3, 3), torch._neg_view(image(3))
    local = w.expand(4, 4, *w.shape)
    low_rank = nn.LowRankLocal2d(4, 3, 6, 3, rank=1, normalise="norm")
    low_rank.weight.data = w.unsqueeze(0)

    def mine():
        if way == "low rank":
            return torch.func.functional_call(low_rank, {"bias": b}, (x,))
        return (
            F.conv2d(x[..., :4, :3], w, b)
            if way == "tiny"
            else F.conv2d(x, w, b)
            if way == "products"
            else F.locally_connected2d(x, local, b)
        )

    torch.testing.assert_close(mine(), TORCH.conv2d(x[..., :4, :3] if way == "tiny" else x, w, b), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["conv2d", "max_pool2d", "avg_pool2d", "relu", "sigmoid", "softmax", "cross_entropy"])
def test_what_was_saved_may_come_back_from_a_hook_in_another_layout(name):
    def columns_first(t):
        return t.mT.contiguous().mT if t.ndim > 1 else t

    def gradient(f):
        x, w, t = image(2, 3, 6, 5).requires_grad_(), image(2, 3, 3, 3), torch.arange(60).view(2, 6, 5) % 3
        more = {"conv2d": (w,), "max_pool2d": (2,), "avg_pool2d": (2,), "softmax": (1,), "cross_entropy": (t,)}
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t, columns_first if f is F else lambda t: t):
            y = getattr(f, name)(x, *more.get(name, ()))
            return torch.autograd.grad(y, x, image(*y.shape))[0]

    torch.testing.assert_close(gradient(F), gradient(TORCH))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_rounded_once_after_all_additions(dtype):
    x, w, b, columns = (image(*size, dtype=dtype) for size in ((2, 3, 5, 5), (3, 4, 3, 3), (4,), (1, 18, 64)))
    assert torch.equal(F.conv_transpose2d(x, w, b), F.conv_transpose2d(x.float(), w.float(), b.float()).to(dtype))
    assert torch.equal(F.fold(columns, (10, 10), 3), F.fold(columns.float(), (10, 10), 3).to(dtype))


def test_a_weight_of_classes_that_wants_a_gradient_serves_where_none_is_recorded():
    x, target, weight = image(4, 3), torch.tensor([0, 1, 2, 0]), image(3).abs().requires_grad_()
    with torch.no_grad():
        torch.testing.assert_close(F.cross_entropy(x, target, weight), TORCH.cross_entropy(x, target, weight))


@pytest.mark.parametrize("input", [(5,), (2, 5), (2, 3, 5)], ids=str)
@pytest.mark.parametrize("bias", [(1, 4), (2, 4), (3, 4), (1, 1, 4), (2, 3, 4), (1, 1, 1, 4)], ids=str)
def test_a_bias_may_have_dimensions_where_torch_lets_it(input, bias):
    x, w, b = image(*input), image(4, 5), image(*bias)
    assert not same_refusal(lambda: F.linear(x, w, b), lambda: TORCH.linear(x, w, b))


@pytest.mark.filterwarnings("ignore:Sparse C.. tensor support is in beta state")
@pytest.mark.parametrize("shape", [(4,), (2, 3, 4)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("layout", ["coo", "csr", "csc"])
def test_a_weight_may_be_sparse(layout, bias, shape):
    x, w, b = image(*shape), image(3, 4).relu(), image(3) if bias else None
    sparse = [getattr(w, f"to_sparse_{layout}")().requires_grad_() for _ in range(2)]
    mine, expected = F.linear(x, sparse[0], b), TORCH.linear(x, sparse[1], b)
    torch.testing.assert_close(mine, expected)
    gradients = [torch.autograd.grad(y.square().sum(), v)[0].to_dense() for y, v in zip((mine, expected), sparse, strict=True)]
    torch.testing.assert_close(*gradients)


# ---- several mistakes at once


@pytest.mark.parametrize("d", [1, 2, 3])
@pytest.mark.parametrize(
    "named",
    [
        {"stride": (1,) * 4, "padding": 1.5},
        {"padding": "full", "groups": "a"},
        {"padding": -1, "groups": True},
        {"dilation": 0, "stride": None},
        {"stride": 0, "dilation": "a"},
    ],
    ids=str,
)
def test_a_convolution_looks_at_all_types_before_any_value(d, named):
    x, w = image(2, 3, *[5] * d), image(2, 3, *[2] * d)
    f, g = getattr(F, f"conv{d}d"), getattr(TORCH, f"conv{d}d")
    assert not same_refusal(lambda: f(x, w, **named), lambda: g(x, w, **named))
    assert not same_refusal(lambda: f(x, w[0, 0], **named), lambda: g(x, w[0, 0], **named))


@pytest.mark.parametrize("name", [f"{kind}_pool{d}d" for d in (1, 2, 3) for kind in ("max", "avg")])
@pytest.mark.parametrize(
    "named",
    [
        {"kernel_size": (1,) * 4, "padding": "a"},
        {"kernel_size": 2, "stride": (1,) * 4, "padding": None},
        {"kernel_size": 2, "padding": 2, "ceil_mode": 1},
        {"kernel_size": 0, "stride": True},
    ],
    ids=str,
)
def test_a_pool_looks_at_all_types_before_any_value(name, named):
    x = image(2, 3, *[5] * int(name[-2]))
    assert not same_refusal(lambda: getattr(F, name)(x, **named), lambda: getattr(TORCH, name)(x, **named))


@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize("named", [{"padding": 2, "divisor_override": 1.0}, {"kernel_size": "a", "divisor_override": 0}], ids=str)
def test_a_divisor_that_is_no_int_is_found_before_a_value_is_wrong(d, named):
    x, named = image(2, 3, *[5] * d), {"kernel_size": 2} | named
    f, g = getattr(F, f"avg_pool{d}d"), getattr(TORCH, f"avg_pool{d}d")
    assert not same_refusal(lambda: f(x, **named), lambda: g(x, **named))


def test_a_single_unit_may_have_a_bias_where_torch_lets_it():
    x, w = image(2, 3, 4), image(4)
    for b in (image(6)[::2], image(3), image(2, 3), image(1)):
        assert not same_refusal(lambda b=b: F.linear(x, w, b), lambda b=b: TORCH.linear(x, w, b))
    assert compare(F.linear, TORCH.linear, (x, w, image(6)[::2]))


# ---- nothing, and far too much


@pytest.mark.parametrize("dtype", [torch.int32, torch.bool])
def test_no_images_may_have_any_dtype(dtype):
    x, w = torch.ones(0, 2, 6, 6, dtype=dtype), torch.ones(3, 2, 3, 3, dtype=dtype)
    assert not same_refusal(lambda: F.conv2d(x, w, dilation=2), lambda: TORCH.conv2d(x, w, dilation=2))


@pytest.mark.parametrize("d", [1, 2, 3])
@pytest.mark.parametrize("kind", ["avg", "max"])
def test_no_windows_have_an_output_but_no_gradient(d, kind):
    name = f"adaptive_{kind}_pool{d}d"
    x = image(2, 3, *[4] * d).requires_grad_()
    assert getattr(F, name)(x, 0).shape == (2, 3, *[0] * d)
    with pytest.raises(RuntimeError, match="Expected grad_output to have non-zero size for non-batch dimensions"):
        getattr(F, name)(x, 0).sum().backward()


@pytest.mark.parametrize("d", [1, 2, 3])
@pytest.mark.parametrize("kind", ["avg", "max"])
def test_more_windows_than_fit_into_memory_are_refused_at_once(d, kind):
    x = image(2, 2, *[2] * d)
    for count in (0x3FFFFFFFFFFFFFFF, 10**13):
        with pytest.raises(RuntimeError):
            getattr(F, f"adaptive_{kind}_pool{d}d")(x, count)


@pytest.mark.parametrize("d", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
@pytest.mark.parametrize("size", [(2, 3, 4), (0, 3, 4), (2, 0, 4), (2, 3, 0)], ids=str)
def test_the_mean_of_everything_takes_what_a_mean_takes(d, dtype, size):
    name = f"adaptive_avg_pool{d}d"
    x = torch.ones(size[:2] + size[2:] * d, dtype=dtype)
    for output in (1, 2):
        assert not same_refusal(lambda n=output: getattr(F, name)(x, n), lambda n=output: getattr(TORCH, name)(x, n))


# ---- memory for results

OUT = {
    "linear": lambda f, x, **out: f(x, torch.ones(2, 6), **out),
    "avg_pool2d": lambda f, x, **out: f(x, 2, **out),
    "avg_pool3d": lambda f, x, **out: f(x, 2, **out),
}


@pytest.mark.filterwarnings("ignore:An output with one or more elements was resized")
@pytest.mark.parametrize("size", ["right", "wrong", "none"])
@pytest.mark.parametrize("name", OUT)
def test_a_result_is_written_to_the_memory_that_is_given(name, size):
    x = image(2, 4, 4, 6)
    expected = OUT[name](getattr(TORCH, name), x)
    memory = {"right": torch.zeros(expected.mT.shape).mT, "wrong": torch.zeros(2, 3), "none": torch.zeros(0)}[size]
    strides = memory.stride()
    assert OUT[name](getattr(F, name), x, out=memory) is memory
    torch.testing.assert_close(memory, expected)
    assert size != "right" or memory.stride() == strides


@pytest.mark.parametrize("name", OUT)
def test_memory_for_results_is_refused_where_gradients_are_wanted_or_numbers_are_of_another_kind(name):
    ours, theirs = (lambda x, out, f=f: OUT[name](getattr(f, name), x, out=out) for f in (F, TORCH))
    for x, out in ((image(2, 4, 4, 6).requires_grad_(), torch.zeros(0)), (image(2, 4, 4, 6), torch.zeros(0, dtype=torch.float64))):
        assert not same_refusal(lambda x=x, out=out: ours(x, out), lambda x=x, out=out: theirs(x, out))
        with pytest.raises(RuntimeError, match=r"don't support automatic differentiation|Expected out tensor to have dtype"):
            ours(x, out)


def test_a_gradient_whose_sign_is_a_bit_of_the_tensor_passes_the_gate():
    x, gy = image(3, 4), torch._neg_view(image(3, 4))
    mine, expected = (torch.autograd.grad(f(y), y, gy)[0] for f in (F.relu, TORCH.relu) for y in [x.clone().requires_grad_()])
    assert torch.equal(mine, expected)


# ---- other kinds of tensors

CALLS = {
    **{f"conv{d}d": (lambda f, x, d=d: f(x, torch.ones(2, 3, *[2] * d, dtype=x.dtype)), d) for d in (1, 2, 3)},
    **{f"{kind}_pool{d}d": (lambda f, x: f(x, 2), d) for d in (1, 2, 3) for kind in ("max", "avg", "adaptive_max", "adaptive_avg")},
    **{f"lp_pool{d}d": (lambda f, x: f(x, 2, 2), d) for d in (1, 2, 3)},
    "linear": (lambda f, x: f(x, torch.ones(2, x.shape[-1])), 1),
    "relu": (lambda f, x: f(x), 1),
    "sigmoid": (lambda f, x: f(x), 1),
    "softmax": (lambda f, x: f(x, 1), 1),
    "cross_entropy": (lambda f, x: f(x, torch.zeros(2, x.shape[-1], dtype=torch.int64)), 1),
}


class Named(torch.Tensor):
    """A subclass as a user writes it."""


@pytest.mark.parametrize("name", [f"{kind}_pool{d}d" for d in (1, 2, 3) for kind in ("max", "avg", "adaptive_max", "adaptive_avg")])
def test_pools_write_other_kinds_of_tensors_only_into_their_own_kind(name):
    from torch.testing._internal.composite_compliance import check_all_permutations, check_backward_formula

    def pooled(x):
        return getattr(F, name)(x, 2)

    x = image(2, 3, *[4] * int(name[-2]))
    check_all_permutations(pooled, (x,), {}, torch.testing.assert_close)
    check_backward_formula(pooled, (x.requires_grad_(),), {}, assert_equal_fn=torch.testing.assert_close)


class Duck:
    """Not a tensor, but answers for torch's functions."""

    shape = (2, 3, 4)
    dtype = torch.float32

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        return function.__name__


@pytest.mark.parametrize("name", CALLS)
def test_a_subclass_of_tensor_stays_one(name):
    call, d = CALLS[name]
    x = image(2, 3, *[4] * d).as_subclass(Named)
    mine, expected = call(getattr(F, name), x), call(getattr(TORCH, name), x)
    assert type(mine) is type(expected) is Named
    torch.testing.assert_close(mine, expected)


@pytest.mark.parametrize("name", CALLS)
def test_what_answers_for_torch_functions_is_asked(name):
    assert CALLS[name][0](getattr(F, name), Duck()) == name


@pytest.mark.parametrize("name", [name for name in nn.__all__ if isinstance(getattr(torch.nn, name, None), type)])
def test_a_layer_is_an_instance_of_its_namesake_as_code_asks_that_walks_through_a_model(name):
    ours, theirs = getattr(nn, name), getattr(torch.nn, name)
    assert issubclass(ours, theirs)
    computed = getattr(ours, "cls_to_become", ours)  # what a lazy layer becomes
    assert computed.forward.__module__.startswith("cnn425.")


@pytest.mark.parametrize("d", [1, 2, 3])
@pytest.mark.parametrize("kernel_size", [3, (3,), (5, 5)], ids=str)
def test_a_convolution_looks_at_its_weight_and_not_at_what_its_kernel_size_says(kernel_size, d):
    for kind in (f"Conv{d}d", f"ConvTranspose{d}d"):
        mine, expected = getattr(nn, kind)(2, 3, 3), getattr(torch.nn, kind)(2, 3, 3)
        mine.load_state_dict(expected.state_dict())
        mine.kernel_size = expected.kernel_size = kernel_size
        torch.testing.assert_close(mine(image(1, 2, *[5] * d)), expected(image(1, 2, *[5] * d)))


def test_a_model_of_our_layers_can_be_traced_symbolically():
    model = torch.nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(2), torch.nn.Flatten(), nn.Linear(16, 5), nn.Softmax(1)
    )
    graph = torch.fx.symbolic_trace(model)
    x = image(2, 3, 9, 9)
    assert torch.equal(graph(x), model(x))
    calls = [node.target.__name__ for node in graph.graph.nodes if node.op == "call_function"]
    assert calls == ["conv2d", "relu", "max_pool2d", "adaptive_avg_pool2d", "linear", "softmax"]


# ---- traces of torch.jit


def classes(x, function=F.cross_entropy):
    return function(x, torch.arange(len(x)) % x.shape[1])


TRACED = {
    "conv1d": (F.conv1d, TORCH.conv1d, [(2, 4, 9), (6, 4, 3)], {"padding": 1}),
    "conv2d": (F.conv2d, TORCH.conv2d, [(2, 4, 7, 6), (6, 2, 3, 3)], {"stride": 2, "groups": 2}),
    "conv2d, dilated": (F.conv2d, TORCH.conv2d, [(2, 4, 8, 7), (6, 4, 3, 2)], {"dilation": 2}),
    "conv3d": (F.conv3d, TORCH.conv3d, [(2, 2, 5, 4, 5), (3, 2, 2, 2, 2)], {}),
    "max_pool2d": (F.max_pool2d, TORCH.max_pool2d, [(2, 3, 8, 7)], {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True}),
    "max_pool3d": (F.max_pool3d, TORCH.max_pool3d, [(2, 3, 5, 6, 5)], {"kernel_size": 2}),
    "avg_pool2d": (F.avg_pool2d, TORCH.avg_pool2d, [(2, 3, 8, 7)], {"kernel_size": 3, "padding": 1, "count_include_pad": False}),
    "adaptive_max_pool1d": (F.adaptive_max_pool1d, TORCH.adaptive_max_pool1d, [(2, 3, 10)], {"output_size": 4}),
    "adaptive_avg_pool2d": (F.adaptive_avg_pool2d, TORCH.adaptive_avg_pool2d, [(2, 3, 8, 7)], {"output_size": 3}),
    "lp_pool2d": (F.lp_pool2d, TORCH.lp_pool2d, [(2, 3, 8, 7)], {"norm_type": 2.0, "kernel_size": 2}),
    "linear": (F.linear, TORCH.linear, [(5, 4), (3, 4), (3,)], {}),
    "relu": (F.relu, TORCH.relu, [(5, 4)], {}),
    "relu in place": (lambda x: F.relu(x * 2, inplace=True), lambda x: TORCH.relu(x * 2, inplace=True), [(5, 4)], {}),
    "sigmoid": (F.sigmoid, TORCH.sigmoid, [(5, 4)], {}),
    "softmax": (F.softmax, TORCH.softmax, [(5, 4)], {"dim": 1}),
    "cross_entropy": (classes, lambda x: classes(x, TORCH.cross_entropy), [(5, 4)], {}),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit.(trace|script).* is deprecated", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("name", TRACED)
def test_a_trace_serves_other_numbers_and_has_gradients(name):
    ours, theirs, shapes, named = TRACED[name]
    traced = torch.jit.trace(lambda *tensors: ours(*tensors, **named), tuple(image(*shape) for shape in shapes))
    tensors = [3 * image(*shape).flip(-1) for shape in shapes]
    assert compare(traced, lambda *tensors: theirs(*tensors, **named), tensors)


@pytest.mark.filterwarnings("ignore:.*torch.jit.(trace|script).* is deprecated", "ignore::torch.jit.TracerWarning")
def test_a_traced_network_serves_other_images():
    layers = nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), torch.nn.Flatten(), nn.Linear(36, 3), nn.Softmax(1)
    network = torch.nn.Sequential(*layers)
    traced = torch.jit.trace(network, image(2, 1, 8, 8))
    torch.testing.assert_close(traced(image(5, 1, 8, 8)), network(image(5, 1, 8, 8)))


EXPORTED = {
    "conv2d": (lambda x: F.conv2d(x, torch.ones(3, 2, 3, 3), padding=1), 4),
    "max_pool2d": (lambda x: F.max_pool2d(x, 2), 4),
    "avg_pool2d": (lambda x: F.avg_pool2d(x, 2), 4),
    "adaptive_avg_pool2d": (lambda x: F.adaptive_avg_pool2d(x, 1), 4),
    "locally_connected2d": (lambda x: F.locally_connected2d(x, torch.ones(6, 6, 3, 2, 3, 3)), 4),
    "conv1d": (lambda x: F.conv1d(x, torch.ones(3, 2, 3)), 3),
    "LowRankLocal2d": (lambda x: nn.LowRankLocal2d(2, 3, 8, 3, rank=2)(x), 4),
    "shared": (lambda x: nn.LocallyConnected2d(2, 3, 8, 3, share=4)(x), 4),
    "tiled": (lambda x: nn.LocallyConnected2d(2, 3, 8, 3, tile=4)(x), 4),
}


@pytest.mark.parametrize("batch", [2, 1])
@pytest.mark.parametrize("name", EXPORTED)
def test_a_trace_holds_nothing_that_the_older_onnx_exporter_lacks(name, batch):
    """`torch.onnx.export(dynamo=False)` exports a trace, and knows neither strided views nor copies; quotients are rounded towards 0."""
    function, ndim = EXPORTED[name]
    x = torch.randn(batch, 2, *[8] * (ndim - 2))
    x = x.to(memory_format=torch.channels_last) if (batch, ndim) == (1, 4) else x
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trace = torch.jit.trace(function, (x,), check_trace=False)
    graph = trace.inlined_graph
    used = {node.kind() for node in graph.nodes()}
    assert not used & {"aten::as_strided", "aten::copy", "aten::copy_", "aten::new_empty_strided"}
    assert not [node for node in graph.findAllNodes("aten::floor_divide") if next(node.inputs()).node().kind() == "aten::neg"]
    moved = [argument.toIValue() for node in graph.findAllNodes("aten::movedim") for argument in node.inputs()]
    assert all(dim >= 0 for dim in moved if isinstance(dim, int))  # it writes negative ones down as they are


# ---- Half precision: sums that pass 65504 on their way


def falling(*size):
    """300 in the first half of the elements, -300 in the second: products with 300 add up to far more than float16 holds, then to 0."""
    x = torch.full(size, 300.0)
    x.view(-1)[x.numel() // 2 :] *= -1
    return x


BEYOND = {
    "conv2d": (F.conv2d, torch.full((2, 8, 6, 6), 300.0), falling(8, 3, 3).expand(4, 8, 3, 3), torch.ones(4)),
    "depthwise": (lambda x, w: F.conv2d(x, w, groups=4), torch.full((2, 4, 6, 6), 300.0), falling(2, 4).expand(4, 1, 2, 4)),
    "local": (F.locally_connected2d, torch.full((2, 8, 4, 4), 300.0), falling(8, 3, 3).expand(2, 2, 4, 8, 3, 3)),
    "linear": (F.linear, torch.full((64, 64), 300.0), falling(64).expand(5, 64), torch.ones(5)),
    "avg_pool2d": (lambda x: F.avg_pool2d(x, 3, 1), torch.full((2, 3, 6, 6), 60000.0)),
    "adaptive_avg_pool2d": (lambda x: F.adaptive_avg_pool2d(x, 1), torch.full((2, 3, 6, 6), 60000.0)),
    "max_pool2d": (lambda x: F.max_pool2d(x, 3, 1), torch.full((2, 3, 6, 6), 60000.0)),
    "softmax": (lambda x: F.softmax(x, 1), torch.full((4, 5000), 60000.0)),
    "cross_entropy": (lambda x: F.cross_entropy(x, torch.arange(4096) % 3), 20000 * falling(3, 4096).sign().T),
}


@pytest.mark.parametrize("name", BEYOND)
def test_sums_beyond_the_range_of_float16_are_finite_where_their_result_is(name):
    function, *tensors = BEYOND[name]
    half = [t.to(torch.float16).requires_grad_() for t in tensors]
    exact = [t.detach().double().requires_grad_() for t in half]
    y, expected = function(*half), function(*exact)
    upstream = (100 * falling(*y.shape) if y.ndim else torch.tensor(1.0)).to(torch.float16)
    gradients = torch.autograd.grad(y, half, upstream), torch.autograd.grad(expected, exact, upstream.double())
    for mine, right in zip((y, *gradients[0]), (expected, *gradients[1]), strict=True):
        torch.testing.assert_close(mine, right.to(torch.float16), rtol=2e-3, atol=1e-3)  # also where the result itself is too large
