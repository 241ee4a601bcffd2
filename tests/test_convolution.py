"""Every algorithm gives torch's convolution and both gradients, at every call the same bits, and keeps out of tracing; what runs by
default is as accurate as torch, and knows no pixel outside a window."""

import contextlib
import threading
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from cnn425 import algorithms
from cnn425.algorithms import convolution
from cnn425.windows import Geometry

LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


@dataclass(frozen=True)
class Case:
    bug: str
    shape: tuple[int, ...]
    outputs: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int = 1

    @property
    def geometry(self):
        return Geometry(self.kernel, self.stride, tuple((p, p) for p in self.padding), self.dilation)

    def tensors(self, dtype=torch.float64, last=False):
        generator = torch.Generator().manual_seed(425)
        x = torch.randn(self.shape, generator=generator, dtype=dtype)
        w = torch.randn(self.outputs, self.shape[1] // self.groups, *self.kernel, generator=generator, dtype=dtype)
        if last and x.ndim in LAST:
            x, w = (t.contiguous(memory_format=LAST[t.ndim]) for t in (x, w))
        y = self.torch(x, w)
        return x, w, torch.randn(self.outputs, generator=generator, dtype=dtype), torch.randn(y.shape, generator=generator, dtype=dtype)

    def torch(self, x, w, bias=None):
        function = getattr(torch.nn.functional, f"conv{len(self.kernel)}d")
        return function(x, w, bias, self.stride, self.padding, self.dilation, self.groups)


class Subclass(torch.Tensor):
    """A tensor that may mean something else by its operations."""


CASES = [
    Case("strides, paddings and dilations of the two axes exchanged", (2, 4, 9, 8), 6, (3, 2), (1, 2), (1, 0), (2, 1), 2),
    Case("last, smaller block of images", (9, 16, 7, 6), 6, (3, 3), (1, 1), (1, 2), (1, 1)),
    Case("padding larger than the kernel", (3, 16, 9, 20), 8, (5, 5), (1, 1), (5, 5), (1, 1)),
    Case("groups exchanged", (3, 16, 9, 20), 8, (5, 5), (1, 1), (1, 2), (1, 1), 2),
    Case("edge tiles not dropped", (2, 8, 13, 14), 8, (3, 3), (1, 1), (1, 1), (1, 1)),
    Case("tiles that fit exactly", (2, 8, 8, 12), 8, (3, 3), (1, 1), (1, 1), (1, 1)),
    Case("kernel of one row", (2, 8, 9, 12), 8, (1, 5), (1, 1), (0, 2), (1, 1)),
    Case("rows of one image in several blocks", (1, 32, 129, 70), 8, (3, 3), (1, 1), (1, 0), (2, 3), 2),
    Case("strided rows in several blocks", (1, 32, 129, 70), 8, (3, 3), (2, 2), (1, 0), (1, 1)),
    Case("patches that do not overlap", (2, 3, 13, 12), 8, (4, 4), (4, 4), (0, 0), (1, 1)),
    Case("image as its own columns", (3, 16, 9, 10), 8, (1, 1), (1, 1), (0, 0), (1, 1)),
    Case("image as its own columns, in groups", (3, 16, 9, 10), 8, (1, 1), (1, 1), (0, 0), (1, 1), 2),
    Case("pixels that no window sees keep an old gradient", (3, 16, 9, 10), 8, (1, 1), (2, 3), (1, 0), (1, 1)),
    Case("many channels to few", (2, 16, 9, 10), 3, (3, 3), (1, 1), (1, 1), (1, 1)),
    Case("few channels to many", (2, 2, 9, 10), 16, (3, 3), (1, 1), (1, 1), (1, 1)),
    Case("one dimension", (3, 3, 50), 8, (5,), (1,), (2,), (1,)),
    Case("one dimension, dilated", (3, 8, 50), 8, (3,), (1,), (4,), (4,)),
    Case("three dimensions", (2, 8, 7, 6, 8), 8, (3, 3, 3), (1, 1, 1), (1, 1, 1), (1, 1, 1)),
    Case("three dimensions, strided", (2, 4, 5, 6, 7), 4, (3, 2, 1), (1, 2, 3), (1, 0, 0), (2, 1, 1), 4),
    Case("depthwise", (2, 4, 15, 16), 4, (3, 3), (1, 1), (1, 1), (1, 1), 4),
    Case("depthwise with a multiplier", (2, 4, 15, 16), 8, (3, 5), (2, 1), (1, 2), (1, 1), 4),
    Case("depthwise, tiles that overlap", (3, 2, 40, 33), 2, (5, 3), (1, 1), (2, 1), (1, 1), 2),
    Case("depthwise, a last tile with fewer rows", (2, 3, 37, 31), 3, (3, 5), (2, 3), (4, 0), (3, 2), 3),
    Case("depthwise, more padding than kernel", (2, 3, 9, 8), 3, (2, 3), (3, 2), (4, 5), (1, 1), 3),
    Case("depthwise, strips of the gradient that end with the image", (3, 2, 8, 8), 2, (3, 3), (2, 2), (1, 1), (1, 1), 2),
    Case("strided lines under a kernel of one row, which nobody wrote", (2, 3, 10, 12), 12, (1, 3), (2, 2), (0, 1), (1, 1)),
    Case("a last block of one image, which lies as a matrix as it is", (9, 64, 14, 14), 8, (5, 5), (2, 2), (2, 2), (1, 1)),
    Case("few channels in each of many groups", (3, 32, 9, 10), 16, (3, 3), (1, 1), (1, 1), (1, 1), 8),
    Case("one channel to two outputs, groups and outputs exchanged", (2, 8, 9, 10), 16, (3, 3), (2, 1), (1, 1), (1, 1), 8),
    Case("two channels to one output", (2, 32, 9, 10), 16, (3, 2), (1, 2), (2, 1), (1, 1), 16),
    Case("depthwise, a kernel that is no multiple of three", (2, 16, 15, 17), 16, (5, 7), (1, 1), (2, 3), (1, 1), 16),
    Case("depthwise, a kernel wider than the image", (2, 8, 5, 3), 8, (3, 7), (1, 1), (1, 4), (1, 1), 8),
    Case("depthwise, dilated and strided", (3, 8, 14, 15), 8, (3, 3), (2, 3), (2, 3), (3, 2), 8),
    Case("depthwise, padding alone on both sides", (1, 8, 4, 5), 8, (2, 2), (1, 1), (3, 3), (2, 2), 8),
    Case("depthwise, fewer lines than parts of a sum", (1, 9, 3, 4), 9, (1, 2), (1, 1), (0, 0), (1, 1), 9),
    Case("depthwise, one dimension", (3, 8, 50), 8, (4,), (2,), (3,), (2,), 8),
    Case("depthwise, three dimensions", (2, 8, 5, 6, 7), 8, (3, 2, 4), (1, 2, 1), (1, 0, 2), (1, 1, 2), 8),
    Case("smallest", (1, 1, 3, 3), 1, (3, 3), (1, 1), (0, 0), (1, 1)),
]
case = pytest.mark.parametrize("case", CASES, ids=lambda c: c.bug)


def maps(case, x, w, bias, gy):
    """Output and both gradients, by ours."""
    return (
        convolution.output(x, w, case.geometry, case.groups, bias),
        convolution.input_gradient(gy, w, case.geometry, case.groups, x.shape[2:]),
        convolution.weight_gradient(gy, x, case.geometry, case.groups),
    )


def reference(case, x, w, bias, gy):
    """The same by torch, in float64."""
    x, w = x.double().detach().requires_grad_(), w.double().detach().requires_grad_()
    y = case.torch(x, w, bias.double())
    return y.detach(), *torch.autograd.grad(y, [x, w], gy.double())


@case
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("name", algorithms.names("convolution"))
def test_every_algorithm_gives_torchs_convolution(name, last, case):
    tensors = case.tensors(last=last)
    with algorithms.use(name):
        for mine, expected in zip(maps(case, *tensors), reference(case, *tensors), strict=True):
            torch.testing.assert_close(mine, expected, rtol=1e-9, atol=1e-9)


@case
def test_what_runs_by_default_gives_torchs_convolution(case):
    tensors = case.tensors()
    for mine, expected in zip(maps(case, *tensors), reference(case, *tensors), strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-9, atol=1e-9)
        assert mine.stride() == expected.stride()


@st.composite
def convolutions(draw):
    """Convolutions of up to some ten thousand numbers, dense, depthwise or in groups, of sizes and strides that do not match."""
    d = draw(st.sampled_from([1, 2, 2, 2, 3]))
    groups, inputs, outputs = draw(
        st.one_of(
            st.tuples(st.just(1), st.sampled_from([1, 2, 3, 8, 16, 48]), st.sampled_from([1, 2, 3, 8, 16, 64])),
            st.sampled_from([1, 2, 3, 8, 33]).flatmap(lambda g: st.tuples(st.just(g), st.just(1), st.sampled_from([1, 1, 2]))),
            st.tuples(st.sampled_from([2, 3, 4]), st.sampled_from([1, 2, 8]), st.sampled_from([1, 2, 3, 8])),
        )
    )

    def sides(choices):
        return draw(st.one_of(st.sampled_from(choices).map(lambda n: (n,) * d), st.tuples(*[st.sampled_from(choices)] * d)))

    kernel, stride, dilation = sides([1, 2, 3, 3, 4, 5, 7][: 7 if d < 3 else 5]), sides([1, 1, 2, 3, 4]), sides([1, 1, 1, 2, 3])
    padding = tuple(draw(st.integers(0, k)) for k in kernel)
    least = [max(1, (k - 1) * a + 1 - 2 * p) for k, a, p in zip(kernel, dilation, padding, strict=True)]
    size = tuple(draw(st.integers(n, n + {1: 150, 2: 30, 3: 8}[d])) for n in least)
    images = draw(st.sampled_from([1, 2, 3, 8, 17] if inputs * groups < 32 else [1, 3]))
    return Case("random", (images, inputs * groups, *size), outputs * groups, kernel, stride, padding, dilation, groups)


@settings(max_examples=max(300, settings().max_examples))
@given(convolutions(), st.booleans())
@pytest.mark.parametrize("name", [None, *algorithms.names("convolution")])
def test_random_convolutions(name, case, last):
    tensors = case.tensors(last=last)
    with algorithms.use(name) if name else contextlib.nullcontext():
        for mine, expected in zip(maps(case, *tensors), reference(case, *tensors), strict=True):
            torch.testing.assert_close(mine, expected, rtol=1e-9, atol=1e-9)


@case
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
def test_layout_of_the_output_is_torchs(last, case):
    x, w, bias, _ = case.tensors(torch.float32, last)
    assert convolution.output(x, w, case.geometry, case.groups, bias).stride() == case.torch(x, w, bias).stride()


@case
@pytest.mark.parametrize("name", algorithms.names("convolution"))
def test_float32_error_stays_within_a_few_roundings(name, case):
    tensors = case.tensors(torch.float32)
    with algorithms.use(name):
        for mine, expected in zip(maps(case, *tensors), reference(case, *tensors), strict=True):
            assert (mine - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", CASES[:4] + CASES[8:10] + CASES[19:21], ids=lambda c: c.bug)
def test_half_precision_sums_in_float32(case, dtype):
    tensors = case.tensors(dtype)
    for mine, expected in zip(maps(case, *tensors), reference(case, *tensors), strict=True):
        assert mine.dtype == dtype
        assert (mine - expected).abs().max() <= 2 * torch.finfo(dtype).eps * expected.abs().max()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", [*CASES[:4], *CASES[8:10], *CASES[12:15]], ids=lambda c: c.bug)
def test_half_precision_gradients_round_once(case, dtype):
    """Every number, also one that is the small difference of large ones, not only in relation to the largest."""
    tensors = case.tensors(dtype)
    for mine, expected in zip(maps(case, *tensors), reference(case, *tensors), strict=True):
        rounding = torch.finfo(dtype).eps * expected.abs() + 1e-5 * expected.abs().max()
        assert ((mine - expected).abs() <= rounding).all()


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64])
def test_numbers_that_no_loop_knows_follow_the_definition(dtype):
    x, w = torch.ones(1, 2, 4, 4, dtype=dtype), torch.ones(3, 2, 3, 3, dtype=dtype)
    geometry = Geometry((3, 3), (1, 1), ((0, 0), (0, 0)), (1, 1))
    assert torch.equal(convolution.output(x, w, geometry, 1), torch.full((1, 3, 2, 2), 18, dtype=dtype))


SMALL = [
    Case("every window in the padding reads the last pixel", (1, 1, 2, 2), 1, (3, 3), (1, 1), (2, 2), (1, 1)),
    Case("images and channels of the output exchanged", (3, 2, 5, 4), 4, (3, 2), (1, 1), (1, 0), (1, 1)),
    Case("gradient between the strides not zero", (2, 2, 8, 9), 4, (3, 3), (2, 3), (1, 1), (1, 1)),
    Case("pixels that no strided window sees", (1, 2, 8, 8), 2, (1, 2), (3, 3), (0, 0), (1, 1)),
    Case("one kernel for all groups", (2, 4, 5, 6), 6, (3, 3), (1, 1), (1, 1), (2, 2), 2),
    Case("one channel per group", (1, 3, 6, 6), 3, (3, 3), (2, 1), (1, 1), (1, 1), 3),
    Case("one dimension", (2, 2, 9), 3, (3,), (2,), (1,), (1,)),
    Case("three dimensions", (1, 2, 4, 3, 5), 2, (2, 2, 3), (1, 2, 1), (1, 0, 1), (1, 1, 2)),
]


@pytest.mark.parametrize("case", SMALL, ids=lambda c: c.bug)
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
def test_small_convolutions(last, case):
    """In float32, since the definition computes small ones in float64."""
    tensors = [None if t is None else t.float() for t in case.tensors(last=last)]
    exact = reference(case, *(None if t is None else t.double() for t in tensors))
    for mine, expected in zip(maps(case, *tensors), exact, strict=True):
        torch.testing.assert_close(mine.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", [SMALL[1], CASES[29], CASES[31]], ids=lambda c: c.bug)
@pytest.mark.parametrize("name", algorithms.names("convolution"))
def test_images_and_gradients_of_any_strides(name, case):
    """Views with gaps, transposed images, expanded gradients and weights."""
    x, w, bias, gy = case.tensors()
    gapped = torch.zeros(*x.shape, 2, dtype=x.dtype)[..., 0].copy_(x)
    turned = x.transpose(2, 3).contiguous().transpose(2, 3)
    once = gy[:1, :1, :1, :1].expand(gy.shape)
    shared = w[:1].expand(w.shape)
    with algorithms.use(name):
        for image, weight in ((gapped, w), (turned, shared)):
            for mine, expected in zip(maps(case, image, weight, bias, once), reference(case, x, weight, bias, once), strict=True):
                torch.testing.assert_close(mine, expected, rtol=1e-9, atol=1e-9)


def test_what_is_remembered_under_fake_tensors_or_inference_serves_outside():
    case = Case("made inside a mode, used outside", (1, 1, 7, 5), 1, (2, 3), (1, 1), (1, 0), (1, 1))
    x, w, bias, gy = case.tensors()
    with FakeTensorMode(allow_non_fake_inputs=True), contextlib.suppress(Exception):
        maps(case, x, w, bias, gy)
    with torch.inference_mode():
        maps(case, x, w, bias, gy)
    for mine, expected in zip(maps(case, x, w, bias, gy), reference(case, x, w, bias, gy), strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-9, atol=1e-9)
        assert type(mine) is torch.Tensor


def test_empty_batch():
    x, w = torch.ones(0, 2, 4, 4), torch.ones(3, 2, 3, 3)
    geometry = Geometry((3, 3), (1, 1), ((0, 0), (0, 0)), (1, 1))
    for name in algorithms.names("convolution"):
        with algorithms.use(name):
            y = convolution.output(x, w, geometry, 1)
            assert y.shape == (0, 3, 2, 2)
            assert not convolution.weight_gradient(y, x, geometry, 1).any()


def test_a_result_is_never_written_again():
    for case in CASES:
        for name in algorithms.names("convolution"):
            x, w, bias, gy = case.tensors(torch.float32)
            with algorithms.use(name):
                first = maps(case, x, w, bias, gy)
                kept = [t.clone() for t in first]
                maps(case, x + 1, w - 1, bias, gy * 2)
            assert all(torch.equal(a, b) for a, b in zip(first, kept, strict=True)), (name, case)


def test_same_bits_at_every_run():
    for case in CASES[:8]:
        tensors = case.tensors(torch.float32)
        assert all(torch.equal(a, b) for a, b in zip(maps(case, *tensors), maps(case, *tensors), strict=True))


def test_inference_mode_changes_no_bit():
    tensors = CASES[1].tensors(torch.float32)
    with torch.inference_mode():
        inside = maps(CASES[1], *tensors)
    for a, b in zip(inside, maps(CASES[1], *tensors), strict=True):
        assert torch.equal(a, b)


def test_use_refuses_unknown_names():
    known = r"no algorithm 'magic'; .*convolution: definition, im2col, winograd, fft; local: definition, matmul, sweep; pool: definition"
    with pytest.raises(ValueError, match=known), algorithms.use("magic"):
        pass


def test_names_of_every_kind():
    assert algorithms.names("convolution") == ("definition", "im2col", "winograd", "fft")
    assert set(algorithms.names()) == {*algorithms.names("convolution"), *algorithms.names("local"), *algorithms.names("pool")}


def test_use_ends_with_its_context_even_after_an_error():
    case = CASES[0]
    tensors = case.tensors(torch.float32)
    before = maps(case, *tensors)
    with pytest.raises(KeyError), algorithms.use("definition"), algorithms.use("fft"):
        raise KeyError
    assert all(torch.equal(a, b) for a, b in zip(maps(case, *tensors), before, strict=True))


def test_use_holds_for_the_thread_that_asks():
    """A transform rounds in another way than the loops, so bits tell which of the two ran."""
    case = CASES[4]
    tensors = case.tensors(torch.float32)
    plain, inside, elsewhere = maps(case, *tensors), [], []
    with algorithms.use("fft"):
        inside += maps(case, *tensors)
        thread = threading.Thread(target=lambda: elsewhere.extend(maps(case, *tensors)))
        thread.start()
        thread.join()
    assert not any(torch.equal(a, b) for a, b in zip(inside, plain, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(elsewhere, plain, strict=True))


def test_use_holds_for_few_float64_numbers():
    """Which the definition computes otherwise."""
    x, w = torch.randn(1, 2, 6, 6, dtype=torch.float64), torch.randn(2, 2, 3, 3, dtype=torch.float64)
    geometry = Geometry((3, 3), (1, 1), ((0, 0), (0, 0)), (1, 1))
    plain = convolution.output(x, w, geometry, 1)
    with algorithms.use("fft"):
        y = convolution.output(x, w, geometry, 1)
    assert not torch.equal(y, plain)
    torch.testing.assert_close(y, plain)


@pytest.mark.parametrize("make", [lambda x: x.to("meta"), lambda x: x.as_subclass(Subclass)], ids=["meta", "subclass"])
def test_tensors_that_are_not_plain_numbers_are_computed_by_operations(make):
    x, w = make(torch.ones(1, 2, 8, 8)), make(torch.ones(3, 2, 3, 3))
    geometry = Geometry((3, 3), (1, 1), ((0, 0), (0, 0)), (1, 1))
    y = convolution.output(x, w, geometry, 1)
    assert y.shape == (1, 3, 6, 6)
    assert type(y) is type(x)
    assert y.device == x.device


@pytest.mark.parametrize("name", [None, "definition", "im2col"])
@pytest.mark.parametrize("groups", [1, 8])
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
def test_infinity_and_nan_reach_only_the_windows_that_see_them(last, groups, name):
    """Winograd and FFT, on request, spread them, as their files say."""
    case = Case("", (3, 16, 12, 11), 16, (3, 3), (1, 1), (1, 1), (1, 1), groups)
    x, w, bias, gy = case.tensors(torch.float32, last)
    x[0, 0, 5, 5], x[1, 2, 11, 3], gy[2, 1, 7, 9] = float("inf"), float("nan"), float("-inf")
    with algorithms.use(name) if name else contextlib.nullcontext():
        mine = maps(case, x, w, bias, gy)
    for ours, theirs in zip(mine, reference(case, x, w, bias, gy), strict=True):
        assert torch.equal(ours.isnan(), theirs.isnan())
        assert torch.equal(ours.isinf(), theirs.isinf())
