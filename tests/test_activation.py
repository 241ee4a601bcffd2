"""Activations: pencil, torch, finite differences, properties, errors, transforms."""

import copy
import itertools
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as builtin
from hypothesis import given
from hypothesis import strategies as st

from cnn425 import nn
from cnn425.agreement import TOLERANCES, compare, derivatives, refusal, same_refusal, transforms
from cnn425.nn import functional as F


def softmax_along(library, dim, **options):
    return lambda x: library.softmax(x, dim, **options)


PAIRS = {
    "relu": (F.relu, builtin.relu),
    "relu in place": (lambda x: F.relu(x * 1, inplace=True), lambda x: builtin.relu(x * 1, inplace=True)),
    "sigmoid": (F.sigmoid, builtin.sigmoid),
    "softmax, last": (softmax_along(F, -1), softmax_along(builtin, -1)),
    "softmax, first": (softmax_along(F, 0), softmax_along(builtin, 0)),
}
NAN, INF = torch.nan, torch.inf
SPECIAL = torch.tensor([[-0.0, 0.0, 1e-45, -1e-45], [INF, -INF, NAN, 1], [-INF, -INF, 2, 3], [-1e30, 1e30, 88.8, -88.8], [-INF] * 4])


def test_pencil():
    assert F.relu(torch.tensor([-2.0, 0.0, 3.0])).tolist() == [0.0, 0.0, 3.0]
    assert F.sigmoid(torch.tensor([0.0])).tolist() == [0.5]
    assert F.softmax(torch.tensor([0.0, 0.0, 0.0, 0.0]), 0).tolist() == [0.25] * 4


@pytest.mark.parametrize("name", PAIRS)
def test_a_part_of_a_larger_tensor_gives_a_result_that_is_stored_as_torchs(name):
    x = torch.randn(4, 3, 5, 6)[:1, :1, :, :].detach().requires_grad_()
    results = [function(x) for function in PAIRS[name]]
    assert results[0].stride() == results[1].stride()
    ours, theirs = (torch.autograd.grad(y, x, torch.ones_like(y))[0].stride() for y in results)
    assert ours == theirs


def test_the_slides_softmax():
    probabilities = F.softmax(torch.tensor([-2.85, 0.86, 0.28]), 0)
    torch.testing.assert_close(probabilities, torch.tensor([0.016, 0.631, 0.353]), rtol=0, atol=1e-3)  # the slide rounds on the way


def test_pencil_gradients():
    x = torch.tensor([-2.0, 0.0, 3.0], requires_grad=True)
    assert torch.autograd.grad(F.relu(x), x, torch.tensor([1.0, 10, 100]))[0].tolist() == [0.0, 0.0, 100.0]
    x = torch.zeros(1, requires_grad=True)
    assert torch.autograd.grad(F.sigmoid(x), x, torch.tensor([8.0]))[0].tolist() == [2.0]  # 8 * 1/2 * 1/2
    x = torch.zeros(2, requires_grad=True)
    assert torch.autograd.grad(F.softmax(x, 0), x, torch.tensor([4.0, 0]))[0].tolist() == [1.0, -1.0]  # 1/2 * (4 - 2), 1/2 * (0 - 2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(3, 5), (), (1,), (0, 3), (3, 0), (2, 3, 4, 5)], ids=str)
@pytest.mark.parametrize("name", PAIRS)
def test_values_and_gradients_are_torchs(name, shape, dtype):
    verdict = compare(*PAIRS[name], [torch.randn(shape, dtype=dtype) * 3], strides=True)
    assert verdict, verdict.wrong


@pytest.mark.parametrize("layout", ["channels last", "expanded", "permuted", "every other"])
@pytest.mark.parametrize("name", PAIRS)
def test_memory_layout_is_torchs(name, layout):
    x = torch.randn(2, 4, 3, 5)
    x = {
        "channels last": x.to(memory_format=torch.channels_last),
        "expanded": x[:1].expand(2, 4, 3, 5),
        "permuted": x.permute(3, 0, 1, 2),
        "every other": x[..., ::2],
    }[layout]
    verdict = compare(*PAIRS[name], [x], strides=True)
    assert verdict, verdict.wrong


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 2, 3, 1), (3, 0, 1, 2)], ids=str)
def test_the_gradient_of_relu_is_stored_as_torchs_whatever_the_layout_of_the_upstream_gradient(order, dtype):
    back = [order.index(d) for d in range(4)]
    x, g = torch.randn(2, 4, 3, 5, dtype=dtype).permute(order).contiguous().permute(back), torch.randn(2, 4, 3, 5, dtype=dtype)
    for value, upstream in ((x, g), (g, x)):
        leaf = value.detach().requires_grad_()
        ours, theirs = (torch.autograd.grad(f(leaf), leaf, upstream)[0] for f in (F.relu, builtin.relu))
        assert torch.equal(ours, theirs)
        assert ours.stride() == theirs.stride()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", PAIRS)
def test_nan_infinity_and_zeros_are_torchs(name, dtype):
    verdict = compare(*PAIRS[name], [SPECIAL.to(dtype)])
    assert verdict, verdict.wrong


def test_softmax_of_huge_scores_does_not_overflow():
    assert F.softmax(torch.tensor([1e30, 1e30, -1e30]), 0).tolist() == [0.5, 0.5, 0.0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_no_gradient_passes_a_closed_gate_not_even_infinity_or_nan(dtype):
    values, upstream = zip(*itertools.product([-1.0, -0.0, 0.0, 2.0, NAN, -NAN, INF], [1.0, -0.5, INF, -INF, NAN]), strict=True)
    x, g = torch.tensor(values, dtype=dtype, requires_grad=True), torch.tensor(upstream, dtype=dtype)
    ours, theirs = (torch.autograd.grad(f(x), x, g)[0] for f in (F.relu, builtin.relu))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int8, torch.uint8, torch.bool, torch.complex64, torch.complex128], ids=str)
def test_other_dtypes(dtype):
    x = torch.tensor([[0, 1], [3, -2]]).to(dtype)
    for ours, theirs in PAIRS.values():
        mine, expected = (refusal(lambda f=f: f(x)) for f in (ours, theirs))
        assert isinstance(mine, type(expected)), (mine, expected)  # torch 2.11 has the more general RuntimeError for relu of bool
    assert compare(F.sigmoid, builtin.sigmoid, [x])
    if not dtype.is_complex:
        assert compare(*(softmax_along(library, 0, dtype=torch.float32) for library in (F, builtin)), [x])
    if dtype not in (torch.bool, torch.complex64, torch.complex128):
        assert compare(F.relu, builtin.relu, [x])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("given", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_softmax_casts_before_it_computes(given, dtype):
    lower = max(TOLERANCES[given], TOLERANCES[dtype])  # the gradient of a cast is no better than what was cast to
    pair = (softmax_along(library, 1, dtype=dtype) for library in (F, builtin))
    verdict = compare(*pair, [torch.randn(3, 4).to(given)], tolerances=dict.fromkeys(TOLERANCES, lower))
    assert verdict, verdict.wrong


@pytest.mark.parametrize("name", PAIRS)
def test_derivatives_of_every_order_by_finite_differences(name):
    assert set(derivatives(PAIRS[name][0], [torch.randn(3, 4)]).values()) == {""}


def test_derivatives_of_the_complex_sigmoid():
    assert set(derivatives(F.sigmoid, [torch.randn(3, dtype=torch.complex128)]).values()) == {""}
    assert compare(F.sigmoid, builtin.sigmoid, [torch.randn(3, 4, dtype=torch.complex128)])


@pytest.mark.parametrize("name", PAIRS)
def test_transforms(name):
    wrong = {k: v for k, v in transforms(*PAIRS[name], [torch.randn(3, 4, dtype=torch.float64)]).items() if v}
    assert not wrong


@pytest.mark.parametrize("name", ["relu in place", "softmax, last"])
def test_compile_and_export(name):
    wrong = {k: v for k, v in transforms(*PAIRS[name], [torch.randn(3, 4)], compiled=True).items() if v}
    assert not wrong


# ---- in place ---------------------------------------------------------------------------------------------------------------------------


def test_in_place_writes_over_its_input_and_returns_it():
    x = torch.tensor([-1.0, 2.0])
    assert F.relu(x, inplace=True) is x
    assert x.tolist() == [0.0, 2.0]


def test_in_place_on_a_view_reaches_the_whole():
    def through_a_view(f):
        def run(x):
            y = x * 2
            f(y[1:], inplace=True)
            return y

        return run

    verdict = compare(through_a_view(F.relu), through_a_view(builtin.relu), [torch.randn(4, 3)])
    assert verdict, verdict.wrong
    verdict = compare(*(lambda x, f=f: torch.func.vmap(through_a_view(f))(x) for f in (F.relu, builtin.relu)), [torch.randn(2, 4, 3)])
    assert verdict, verdict.wrong


def test_in_place_on_a_leaf_is_refused():
    for f in (F.relu, builtin.relu):
        with pytest.raises(RuntimeError, match="a leaf Variable that requires grad is being used in an in-place operation"):
            f(torch.ones(2, requires_grad=True), inplace=True)


SPARSE = {
    "coo": lambda x: x.to_sparse(),
    "coo, the last dimension dense": lambda x: x.to_sparse(1),
    "coo, numbers at the same place": lambda x: torch.sparse_coo_tensor([[0, 0, 1], [0, 0, 2]], [3.0, -5.0, 1.0], x.shape, dtype=x.dtype),
    "csr": lambda x: x.to_sparse_csr(),
    "csc": lambda x: x.to_sparse_csc(),
    "bsr": lambda x: x.to_sparse_bsr((1, 2)),
    "bsc": lambda x: x.to_sparse_bsc((1, 2)),
}
HELD = torch.tensor([[-1.0, 0.0, 2.0, 0.0], [3.0, -INF, 0.0, NAN]])
beta = pytest.mark.filterwarnings("ignore:Sparse ... tensor support is in beta state", "ignore:Sparse invariant checks")


@beta
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("layout", SPARSE)
def test_the_rectifier_of_a_sparse_tensor_is_torchs(layout, inplace):
    x, theirs = (SPARSE[layout](HELD) for _ in range(2))
    if inplace and layout == "coo, numbers at the same place":
        assert not same_refusal(lambda: F.relu(x, inplace=True), lambda: builtin.relu(theirs, inplace=True))
        return
    y, expected = F.relu(x, inplace=inplace), builtin.relu(theirs, inplace=inplace)
    assert y.layout == expected.layout
    assert (y is x) == inplace
    torch.testing.assert_close(y, expected, equal_nan=True)


@beta
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("layout", ["coo", "csr"])
def test_the_gradient_of_a_sparse_rectifier_is_torchs(layout, inplace):
    def gradient(library):
        x = SPARSE[layout](HELD.nan_to_num(nan=5.0, neginf=-7.0)).requires_grad_()
        library.relu(x * 2, inplace=inplace).to_dense().square().sum().backward()
        return x.grad.to_dense()

    torch.testing.assert_close(gradient(F), gradient(builtin))


@beta
@pytest.mark.parametrize("call", ["sigmoid", "softmax", "cross_entropy", "relu of a leaf"])
@pytest.mark.parametrize("layout", ["coo", "csr", "csc"])
def test_what_torch_refuses_of_sparse_tensors(layout, call):
    x = SPARSE[layout](torch.rand(2, 4))
    calls = {
        "sigmoid": lambda library: library.sigmoid(x),
        "softmax": lambda library: library.softmax(x, 1),
        "cross_entropy": lambda library: library.cross_entropy(x, torch.tensor([0, 1])),
        "relu of a leaf": lambda library: library.relu(x.requires_grad_(), inplace=True),
    }
    assert not same_refusal(lambda: calls[call](F), lambda: calls[call](builtin))
    assert refusal(lambda: calls[call](F)) is not None


def test_in_place_after_a_layer_that_needs_its_output_is_noticed():
    x = torch.randn(3, requires_grad=True)
    y = F.sigmoid(x)
    F.relu(y - 1, inplace=True)  # a temporary: no harm
    F.relu(y, inplace=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


# ---- arguments --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dimensions", range(5))
def test_the_implicit_dimension_warns_where_it_is_used(dimensions):
    x = torch.randn([2] * dimensions)
    for library, call in itertools.product((F, builtin), ("function", "module")):
        with pytest.warns(UserWarning, match="Implicit dimension choice for softmax has been deprecated") as caught:
            y = library.softmax(x) if call == "function" else (nn if library is F else torch.nn).Softmax()(x)
        assert torch.allclose(y, builtin.softmax(x, 0 if dimensions in (0, 1, 3) else 1))
        assert call == "module" or caught[0].filename == __file__


ERRORS = {
    "softmax along a dimension that is not there": (lambda f: f.softmax(torch.ones(2, 3), 2), IndexError, r"range of \[-2, 1\], but got 2"),
    "softmax along a name": (lambda f: f.softmax(torch.ones(2), "c"), TypeError, "argument 'dim' .* must be int, not str"),
    "softmax along True": (lambda f: f.softmax(torch.ones(2, 2), True), TypeError, "must be int, not bool"),
    "softmax of integers": (lambda f: f.softmax(torch.ones(2).long(), 0), NotImplementedError, "not implemented for 'Long'"),
    "softmax to integers": (lambda f: f.softmax(torch.ones(2), 0, dtype=torch.int64), NotImplementedError, "not implemented for 'Long'"),
    "softmax of complex": (lambda f: f.softmax(torch.ones(2) + 0j, 0), NotImplementedError, "not implemented for 'ComplexFloat'"),
    "softmax of nothing complex that learns": (
        lambda f: f.softmax(torch.zeros(0, 3, dtype=torch.complex64, requires_grad=True), 0),
        RuntimeError,
        "softmax does not support automatic differentiation",
    ),
    "softmax of a list": (lambda f: f.softmax([1.0], 0), AttributeError, "'list' object has no attribute"),
    "relu of bool": (lambda f: f.relu(torch.ones(2).bool()), NotImplementedError, "Boolean inputs not supported for relu"),
    "relu of complex": (lambda f: f.relu(torch.ones(2) + 0j), NotImplementedError, "not supported for complex"),
    "relu of a list": (lambda f: f.relu([1.0]), TypeError, "argument 'input' .* must be Tensor, not list"),
    "sigmoid of a list": (lambda f: f.sigmoid([1.0]), AttributeError, "'list' object has no attribute"),
}
# What torch 2.11 raises, beside newer versions' errors
OLDER = {"softmax along a name": (TypeError, RuntimeError), "relu of bool": RuntimeError}


@pytest.mark.parametrize("case", ERRORS)
def test_refusals(case):
    call, error, words = ERRORS[case]
    with pytest.raises(error, match=words):
        call(F)
    with pytest.raises(OLDER.get(case, error)):
        call(builtin)


@given(
    st.lists(st.integers(0, 3), max_size=4),
    st.sampled_from([torch.float32, torch.float64, torch.float16, torch.int64, torch.bool, torch.complex64]),
    st.one_of(st.none(), st.integers(-5, 5)),
    st.sampled_from([None, torch.float32, torch.float64, torch.int32]),
)
def test_softmax_legal_or_not_both_agree_or_both_refuse(shape, dtype, dim, cast):
    x = torch.randint(-3, 4, shape).to(dtype)
    if dtype.is_complex and cast is not None:
        return  # torch warns that it drops the imaginary part, and so does ours
    ours, theirs = (lambda x, f=f: f.softmax(x, dim, dtype=cast) for f in (F, builtin))
    difference = same_refusal(lambda: ours(x), lambda: theirs(x))
    assert not difference
    if not same_refusal(lambda: ours(x), lambda: None) and dim is not None:
        verdict = compare(ours, theirs, [x], strides=True)
        assert verdict, verdict.wrong


def test_autocast_on_the_cpu_leaves_activations_alone():
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            for ours, theirs in PAIRS.values():
                assert compare(ours, theirs, [torch.randn(3, 4).to(dtype)])


def test_a_tensor_subclass_stays_one():
    class Tagged(torch.Tensor):
        pass

    x = torch.randn(3, 4).as_subclass(Tagged)
    assert all(type(y) is Tagged for y in (F.relu(x), F.sigmoid(x), F.softmax(x, 1)))


# ---- Modules ----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [lambda m: m.ReLU(), lambda m: m.ReLU(inplace=True), lambda m: m.Sigmoid(), lambda m: m.Softmax(dim=1)])
def test_modules_are_torchs_but_for_what_is_computed(make):
    ours, theirs = make(nn), make(torch.nn)
    assert repr(ours) == repr(theirs)
    assert type(ours).__module__.startswith("cnn425")
    for twin in (ours, copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert type(twin) is type(ours)
        assert compare(lambda x, m=twin: m(x * 1), lambda x: theirs(x * 1), [torch.randn(3, 4)])


def test_softmax_module_refuses_the_dimensions_that_torchs_refuses():
    assert same_refusal(lambda: nn.Softmax("c"), lambda: torch.nn.Softmax("c")) == ""  # torch 2.11 refuses it only when called


def test_probabilities_are_positive_and_sum_to_one():
    p = F.softmax(torch.randn(50, 7) * 10, 1)
    assert (p >= 0).all()
    torch.testing.assert_close(p.sum(1), torch.ones(50))


def test_the_dimension_of_a_softmax_may_be_a_number_of_another_kind():
    x = torch.randn(2, 3)
    for dim in (np.int64(1), torch.tensor(1)):
        torch.testing.assert_close(F.softmax(x, dim), torch.softmax(x, 1))
    with pytest.raises(TypeError, match="must be int, not Tensor"):
        F.softmax(x, torch.tensor([1]))
