"""Cross-entropy: pencil, torch, finite differences, properties, errors, transforms."""

import copy
import math
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as builtin
from hypothesis import given
from hypothesis import strategies as st

from cnn425 import nn
from cnn425.agreement import TOLERANCES, compare, derivatives, same_refusal, transforms
from cnn425.nn import functional as F

NAN, INF = torch.nan, torch.inf
OPTIONS = {
    "plain": {},
    "summed where a mean is wanted": {"reduction": "sum"},
    "reduced where nothing is to be": {"reduction": "none"},
    "weight": {"weight": [0.5, 2.0, 0.0]},
    "weight, each": {"weight": [0.5, 2.0, 0.0], "reduction": "none"},
    "label smoothing": {"label_smoothing": 0.2},
    "label smoothing, weighted": {"label_smoothing": 0.2, "weight": [0.5, 2.0, 0.1]},
    "label smoothing, each": {"label_smoothing": 1.0, "reduction": "none"},
    "ignored class counted": {"ignore_index": 1},
    "ignored class counted in the smoothing": {"ignore_index": 1, "label_smoothing": 0.3, "weight": [0.5, 2.0, 1.0]},
}
SIZES = {
    "batch": (4, 3),
    "one": (3,),
    "sequence": (2, 3, 5),
    "image": (2, 3, 4, 5),
    "volume": (2, 3, 2, 1, 3),
    "nobody": (0, 3),
    "empty image": (2, 3, 0, 4),
}


def options(name, dtype=torch.float64):
    found = dict(OPTIONS[name])
    if "weight" in found:
        found["weight"] = torch.tensor(found["weight"], dtype=dtype)
    return found


def pair(arguments):
    return (lambda x, t: F.cross_entropy(x, t, **arguments)), (lambda x, t: builtin.cross_entropy(x, t, **arguments))


def classes(size, ignored=-100):
    t = torch.randint(3, (size[:1] if len(size) > 1 else ()) + size[2:])
    return torch.where(torch.rand(t.shape) < 0.2, ignored, t) if t.ndim else t


def test_the_slides_loss_is_1_04():
    assert round(F.cross_entropy(torch.tensor([-2.85, 0.86, 0.28]), torch.tensor(2)).item(), 2) == 1.04


def test_pencil():
    assert math.isclose(F.cross_entropy(torch.zeros(2, 4), torch.tensor([0, 3])).item(), math.log(4), rel_tol=1e-6)


def test_the_gradient_is_softmax_minus_one_hot():
    x, t = torch.randn(5, 3, dtype=torch.float64, requires_grad=True), torch.tensor([0, 1, 2, 2, 0])
    upstream = torch.randn(5, dtype=torch.float64)
    (gx,) = torch.autograd.grad(F.cross_entropy(x, t, reduction="none"), x, upstream)
    torch.testing.assert_close(gx, upstream[:, None] * (torch.softmax(x, 1) - builtin.one_hot(t, 3)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", OPTIONS)
def test_values_and_gradients_are_torchs(name, size, dtype):
    arguments = options(name, dtype)
    x = torch.randn(SIZES[size], dtype=dtype) * 3
    # torch rounds half precision after the log-softmax, ours only at the end
    tolerances = {d: t._replace(absolute=4 * t.absolute) if d.itemsize == 2 else t for d, t in TOLERANCES.items()}
    verdict = compare(*pair(arguments), [x, classes(x.shape, arguments.get("ignore_index", -100))], tolerances=tolerances, strides=True)
    assert verdict, verdict.wrong


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", [n for n in OPTIONS if "ignored" not in n])
def test_uncertain_truth(name, size, dtype):
    x, q = torch.randn(SIZES[size], dtype=dtype), torch.rand(SIZES[size], dtype=dtype)
    tolerances = {d: t._replace(absolute=4 * t.absolute) if d.itemsize == 2 else t for d, t in TOLERANCES.items()}
    verdict = compare(*pair(options(name, dtype)), [x, q], tolerances=tolerances, strides=True)
    assert verdict, verdict.wrong


def test_dtypes_of_uncertain_truth_are_promoted():
    for x, q, w in [
        ("float32", "float64", None),
        ("float16", "float32", None),
        ("float16", "float16", "float32"),
        ("float32", "float16", "int64"),
    ]:
        tensors = [torch.rand(4, 3).to(getattr(torch, d)) for d in (x, q)]
        weight = None if w is None else torch.tensor([1, 2, 3], dtype=getattr(torch, w))
        ours, theirs = (f.cross_entropy(*tensors, weight) for f in (F, builtin))
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, rtol=2e-3, atol=2e-3)


def test_gradients_of_uncertain_truth_and_its_weight():
    inputs = [torch.randn(4, 3), torch.rand(4, 3), torch.rand(3)]
    verdict = compare(F.cross_entropy, builtin.cross_entropy, inputs)
    assert verdict, verdict.wrong


@pytest.mark.parametrize("layout", ["channels last", "expanded", "permuted"])
def test_any_strides(layout):
    x = torch.randn(2, 3, 4, 5)
    x = {"channels last": x.to(memory_format=torch.channels_last), "expanded": x[:1].expand(2, 3, 4, 5), "permuted": x.permute(3, 1, 2, 0)}[
        layout
    ]
    verdict = compare(*pair({}), [x, classes(tuple(x.shape)).mT.contiguous().mT], strides=True)
    assert verdict, verdict.wrong


SPECIAL = {
    "huge scores overflow": ([[1e30, -1e30, 0.0], [300, -300, 0]], [0, 1], {}),
    "a class that cannot be": ([[1.0, -INF, 2], [0, -INF, -INF]], [0, 0], {"reduction": "none"}),
    "the truth cannot be": ([[1.0, -INF, 2]], [1], {}),
    "infinite score": ([[INF, 0.0, 1.0]], [0], {}),
    "not a number": ([[NAN, 0.0, 1.0], [1, 2, 3]], [0, 1], {"reduction": "none"}),
    "not a number, ignored": ([[NAN, 0.0, 1.0], [1, 2, 3]], [-100, 1], {"reduction": "none"}),
    "all ignored: the mean of nothing": ([[1.0, 2, 3], [1, 2, 3]], [-100, -100], {}),
    "all ignored, smoothed": ([[1.0, 2, 3], [1, 2, 3]], [-100, -100], {"label_smoothing": 0.1}),
    "all ignored, summed": ([[1.0, 2, 3], [1, 2, 3]], [-100, -100], {"reduction": "sum"}),
    "all weights zero": ([[1.0, 2, 3], [1, 2, 3]], [0, 2], {"weight": torch.zeros(3)}),
    "two classes, both huge": ([[1e30, 1e30, 0.0], [-1e30, -1e30, -1e30]], [0, 2], {"reduction": "none"}),
    "one class": ([[1.0], [2.0]], [0, 0], {}),
    "ignored index is a class": ([[1.0, 2, 3], [1, 2, 3]], [2, 1], {"ignore_index": 2}),
    "ignored index beyond the classes": ([[1.0, 2, 3], [1, 2, 3]], [7, 1], {"ignore_index": 7}),
}


@pytest.mark.parametrize("case", SPECIAL)
def test_edges_are_torchs(case):
    scores, targets, arguments = SPECIAL[case]
    verdict = compare(*pair(arguments), [torch.tensor(scores), torch.tensor(targets)])
    assert verdict, verdict.wrong


def test_bytes_are_targets_too():
    assert compare(*pair({"label_smoothing": 0.1}), [torch.randn(4, 3), torch.tensor([0, 1, 2, 1], dtype=torch.uint8)])


SMOOTH = [("plain", "batch"), ("weight, each", "image"), ("ignored class counted in the smoothing", "batch"), ("plain", "one")]


@pytest.mark.parametrize(("name", "size"), SMOOTH)
def test_derivatives_of_every_order_by_finite_differences(name, size):
    arguments = options(name)
    t = classes(SIZES[size], arguments.get("ignore_index", -100))
    assert set(derivatives(lambda x: F.cross_entropy(x, t, **arguments), [torch.randn(SIZES[size])]).values()) == {""}


def test_derivatives_of_uncertain_truth():
    assert set(derivatives(F.cross_entropy, [torch.randn(4, 3), torch.rand(4, 3), torch.rand(3)]).values()) == {""}


@pytest.mark.parametrize(("name", "size"), SMOOTH)
def test_transforms(name, size):
    arguments = options(name)
    inputs = [torch.randn(SIZES[size], dtype=torch.float64), classes(SIZES[size], arguments.get("ignore_index", -100))]
    wrong = {k: v for k, v in transforms(*pair(arguments), inputs).items() if v}
    assert not wrong


def test_transforms_of_uncertain_truth():
    inputs = [torch.randn(4, 3, dtype=torch.float64), torch.rand(4, 3, dtype=torch.float64)]
    wrong = {k: v for k, v in transforms(*pair({"label_smoothing": 0.1}), inputs).items() if v}
    assert not wrong


def test_each_example_with_its_own_target():
    x, t = torch.randn(5, 4, 3), torch.randint(3, (5, 4))
    torch.testing.assert_close(
        torch.func.vmap(F.cross_entropy)(x, t), torch.stack([builtin.cross_entropy(*p) for p in zip(x, t, strict=True)])
    )
    torch.testing.assert_close(
        torch.func.vmap(F.cross_entropy, (None, 1))(x[0], t[:4]), torch.stack([builtin.cross_entropy(x[0], t[:4, i]) for i in range(4)])
    )


def test_compile_and_export():
    t = torch.tensor([0, 2, -100, 1])

    def loss(library):
        return lambda x, t: library.cross_entropy(x, t, weight=torch.ones(3), label_smoothing=0.1)

    wrong = {k: v for k, v in transforms(loss(F), loss(builtin), [torch.randn(4, 3), t], compiled=True).items() if v}
    assert not wrong


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_autocast_computes_losses_in_full_precision(dtype):
    for truth in (torch.tensor([0, 2, 1, 1]), torch.rand(4, 3).to(dtype)):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            verdict = compare(*pair({"weight": torch.tensor([1.0, 2, 3], dtype=dtype)}), [torch.randn(4, 3).to(dtype), truth])
        assert verdict, verdict.wrong


WRITTEN_OVER = [
    ("classes", "input", {}),
    ("classes", "input", {"reduction": "sum", "label_smoothing": 0.1}),
    ("classes", "input", {"weight": torch.tensor([1.0, 2, 3]), "reduction": "none"}),
    ("probabilities", "input", {"label_smoothing": 0.1}),
    ("probabilities", "truth", {"weight": torch.tensor([1.0, 2, 3], requires_grad=True)}),
]


@pytest.mark.parametrize(("truth", "written", "arguments"), WRITTEN_OVER, ids=str)
def test_scores_and_truth_may_be_written_over_before_backward_where_torch_lets_them(truth, written, arguments):
    def gradients(library):
        torch.manual_seed(425)
        scores, t = torch.randn(4, 3, requires_grad=written == "input"), torch.tensor([0, 2, 1, 1])
        x, t = scores * 2, t if truth == "classes" else torch.rand(4, 3)
        loss = library.cross_entropy(x, t, **arguments)
        (x if written == "input" else t).zero_()
        return torch.autograd.grad(loss.sum(), scores if written == "input" else arguments["weight"])

    torch.testing.assert_close(gradients(F), gradients(builtin))


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_other_kinds_of_tensors_are_written_only_into_their_own_kind(reduction):
    from torch.testing._internal.composite_compliance import check_all_permutations, check_backward_formula, check_forward_ad_formula

    def loss(x, t):
        return F.cross_entropy(x, t, reduction=reduction)

    x, t = torch.randn(4, 3), torch.tensor([0, 2, -100, 1])
    check_all_permutations(loss, (x, t), {}, torch.testing.assert_close)
    for check in (check_backward_formula, check_forward_ad_formula):
        check(loss, (x.requires_grad_(), t), {}, assert_equal_fn=torch.testing.assert_close)


# ---- errors -----------------------------------------------------------------------------------------------------------------------------


def zeros(*size):
    return torch.zeros(size, dtype=torch.int64)


X = torch.zeros(4, 3)
ERRORS = {
    "class too large": ((X, zeros(4) + 5), {}, IndexError, "Target 5 is out of bounds."),
    "class negative": ((X, zeros(4) - 1), {}, IndexError, "Target -1 is out of bounds."),
    "class too large in an image": ((torch.zeros(2, 3, 4, 4), zeros(2, 4, 4) + 3), {}, IndexError, "Target 3 is out of bounds."),
    "no classes": ((X[:, :0], zeros(4)), {}, IndexError, "Target 0 is out of bounds."),
    "batches differ": ((X, zeros(3)), {}, ValueError, r"Expected input batch_size \(4\) to match target batch_size \(3\)."),
    "target without batch": ((X, zeros()), {}, ValueError, r"to match target batch_size \(0\)"),
    "column of targets": ((X, zeros(4, 1)), {}, RuntimeError, "0D or 1D target tensor expected, multi-target not supported"),
    "sequence of another length": ((torch.zeros(2, 3, 5), zeros(2, 4)), {}, RuntimeError, r"Expected target size \[2, 5\], got \[2, 4\]"),
    "image of another size": ((torch.zeros(2, 3, 5, 6), zeros(2, 6, 5)), {}, RuntimeError, "size mismatch"),
    "several targets for one": ((X[0], zeros(2)), {}, ValueError, "must have size 1, but got target size: 2"),
    "targets of int32": ((X, zeros(4).int()), {}, RuntimeError, "expected target dtype to be Long or Byte, but got Int"),
    "bytes, weighted and smoothed": ((X, zeros(4).byte(), torch.ones(3)), {"label_smoothing": 0.1}, RuntimeError, "to be Long .*got Byte"),
    "one-hot of integers": (
        (X, zeros(4, 3)),
        {},
        RuntimeError,
        "Expected floating point type for target with class probabilities, got Long",
    ),
    "ignored probabilities": ((X, X), {"ignore_index": 1}, RuntimeError, "ignore_index is not supported for floating point target"),
    "weights of another number": ((X, zeros(4), torch.ones(4)), {}, RuntimeError, "either for all 3 classes or no classes"),
    "weights of another dtype": ((X, zeros(4), torch.ones(3).double()), {}, RuntimeError, "expected scalar type Float .*but found Double"),
    "weights that learn": ((X, zeros(4), torch.ones(3, requires_grad=True)), {}, RuntimeError, "not differentiable with respect to"),
    "too smooth": ((X, zeros(4)), {"label_smoothing": 2.0}, RuntimeError, "label_smoothing must be between 0.0 and 1.0. Got: 2"),
    "smoothing is a word": ((X, zeros(4)), {"label_smoothing": "a"}, TypeError, "argument 'label_smoothing' .* must be float, not str"),
    "unknown reduction": ((X, zeros(4)), {"reduction": "max"}, ValueError, "max is not a valid value for reduction"),
    "ignore_index is no int": ((X, zeros(4)), {"ignore_index": 1.5}, TypeError, "argument 'ignore_index' .* must be int, not float"),
    "target is a list": ((X, [0, 1, 2, 0]), {}, TypeError, r"argument 'target' \(position 2\) must be Tensor, not list"),
    "integers": ((X.long(), zeros(4)), {}, NotImplementedError, "not implemented for 'Long'"),
    "complex": ((X + 0j, zeros(4)), {}, NotImplementedError, "not implemented for 'ComplexFloat'"),
    "no dimensions": ((X.sum(), X.sum()), {}, IndexError, "Dimension"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_refusals(case):
    tensors, arguments, error, words = ERRORS[case]
    with pytest.raises(error, match=words):
        F.cross_entropy(*tensors, **arguments)
    with pytest.raises(error):
        builtin.cross_entropy(*tensors, **arguments)


@pytest.mark.parametrize("arguments", [{"size_average": False}, {"reduce": False}, {"size_average": True, "reduce": True}], ids=str)
def test_the_old_spelling_of_reductions_warns_and_works(arguments):
    x, t = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    with pytest.warns(UserWarning, match="size_average and reduce args will be deprecated"):
        ours = F.cross_entropy(x, t, **arguments)
    with pytest.warns(UserWarning, match="size_average and reduce"):
        torch.testing.assert_close(ours, builtin.cross_entropy(x, t, **arguments))
    with pytest.warns(UserWarning, match="size_average and reduce"):
        torch.testing.assert_close(nn.CrossEntropyLoss(**arguments)(x, t), ours)


sizes = st.lists(st.integers(0, 3), max_size=4)


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=4),
    st.one_of(st.none(), sizes),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.int64]),
    st.sampled_from([torch.int64, torch.uint8, torch.int32, torch.float32]),
    st.integers(-1, 3),
    st.sampled_from([None, 1, 2, 3]),
    st.sampled_from([-100, -1, 0, 2]),
    st.sampled_from(["mean", "sum", "none", "max"]),
    st.sampled_from([0.0, 0.0, 0.3, 1.0, 1.5, -0.5]),
)
def test_legal_or_not_both_agree_or_both_refuse(size, other, dtype, kind, top, weights, ignored, reduction, smoothing):
    x = torch.randn(size).mul(3).to(dtype)
    fitting = size if kind == torch.float32 else size[:1] * (len(size) > 1) + size[2:]
    t = torch.randint(-1 if kind == torch.int64 else 0, max(1, top), fitting if other is None else other).to(kind)
    t = t.to(dtype) if kind == torch.float32 and dtype == torch.bfloat16 else t  # mixed: torch rounds on the way, ours does not
    weight = None if weights is None else torch.rand(weights).to(dtype)
    if x.numel() == 0 and (len(size) > 2 or kind == torch.uint8 or t.ndim == 0 or dtype == torch.int64):
        return  # torch looks at neither the dtypes nor the targets of an empty batch, and then cannot differentiate
    if len(size) == 1 and t.shape == (1,) and smoothing > 0:
        return  # torch 2.15 refuses an unbatched target of shape (1,) when smoothing, by accident; ours does not
    arguments = {"weight": weight, "ignore_index": ignored, "reduction": reduction, "label_smoothing": smoothing}
    ours, theirs = pair(arguments)
    difference = same_refusal(lambda: ours(x, t), lambda: theirs(x, t))
    assert not difference
    if not same_refusal(lambda: ours(x, t), lambda: None):
        tolerances = {d: k._replace(absolute=4 * k.absolute) if d.itemsize == 2 else k for d, k in TOLERANCES.items()}
        verdict = compare(ours, theirs, [x, t], strides=True, tolerances=tolerances)
        assert verdict, verdict.wrong


# ---- the Module -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [{}, {"reduction": "sum", "label_smoothing": 0.1}, {"weight": torch.tensor([1.0, 2, 3])}], ids=str)
def test_the_module_is_torchs_but_for_what_is_computed(arguments):
    ours, theirs = nn.CrossEntropyLoss(**arguments), torch.nn.CrossEntropyLoss(**arguments)
    assert repr(ours) == repr(theirs)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for twin in (ours, copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        verdict = compare(twin, theirs, [torch.randn(4, 3), torch.tensor([0, 2, 1, 1])])
        assert verdict, verdict.wrong


# ---- the lecture's sentences ------------------------------------------------------------------------------------------------------------


def test_certain_probabilities_are_classes():
    x, t = torch.randn(6, 4, dtype=torch.float64), torch.randint(4, (6,))
    torch.testing.assert_close(F.cross_entropy(x, builtin.one_hot(t, 4).double()), F.cross_entropy(x, t))


def test_adding_a_number_to_all_scores_changes_nothing():
    x, t = torch.randn(6, 4, dtype=torch.float64), torch.randint(4, (6,))
    torch.testing.assert_close(F.cross_entropy(x + 1000, t), F.cross_entropy(x, t), rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [(200, 10), (7, 10, 300)], ids=str)
def test_scores_far_from_zero_cost_no_digits(size):
    """The largest score is subtracted from the others before the logarithm is added: 1000 + log(2) has four digits less than log(2)."""
    x = torch.randn(size) + 1000
    t = torch.randint(10, (size[0], *size[2:]))
    exact = builtin.cross_entropy(x.double(), t, reduction="none")
    ours, theirs = ((f.cross_entropy(x, t, reduction="none") - exact).abs().max() for f in (F, builtin))
    assert ours <= 2 * theirs


def test_a_step_against_the_gradient_lowers_the_loss():
    x, t = torch.randn(6, 4, requires_grad=True), torch.randint(4, (6,))
    loss = F.cross_entropy(x, t)
    (gx,) = torch.autograd.grad(loss, x)
    assert F.cross_entropy(x - 0.1 * gx, t) < loss


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_loss_and_a_penalty_on_its_gradient_have_one_gradient(reduction):
    """Backward then gets gradients of the loss and of what it keeps for its own derivative, at the same time."""

    def gradient(cross_entropy):
        x = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
        loss = cross_entropy(x, torch.tensor([0, 1, 2, 3, 0]), reduction=reduction)
        (slope,) = torch.autograd.grad(loss, x, create_graph=True)
        return torch.autograd.grad(loss + slope.pow(2).sum(), x)[0]

    torch.testing.assert_close(gradient(F.cross_entropy), gradient(torch.nn.functional.cross_entropy))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_the_mean_over_no_weight_is_nan(reduction):
    arguments = torch.tensor([[0.5, 0.2]]), torch.tensor([0]), torch.tensor([0.0, 1.0])
    for smoothing in (0.0, 0.1):
        ours, theirs = (f.cross_entropy(*arguments, reduction=reduction, label_smoothing=smoothing) for f in (F, builtin))
        torch.testing.assert_close(ours, theirs, equal_nan=True)


def test_options_may_be_numbers_of_other_kinds():
    x, target = torch.randn(4, 3), torch.tensor([0, 1, 2, 1])
    for options in (
        {"ignore_index": np.int64(1)},
        {"ignore_index": torch.tensor(1)},
        {"label_smoothing": np.int64(1)},
        {"label_smoothing": True},
        {"label_smoothing": np.float32(0.1)},
        {"label_smoothing": torch.tensor(0.1)},
    ):
        torch.testing.assert_close(F.cross_entropy(x, target, **options), builtin.cross_entropy(x, target, **options))


@pytest.mark.parametrize("index", [10**9, -1, 3])
@pytest.mark.parametrize("size", [(), (5,)], ids=["classes last", "classes first"])
def test_targets_that_a_loader_overwrote_are_out_of_bounds(index, size):
    """Autograd does not notice what NumPy writes; the gradient would be written behind the tensor."""
    x, target = torch.randn(4, 3, *size, requires_grad=True), torch.zeros(4, *size, dtype=torch.long)
    loss = F.cross_entropy(x, target)
    target.numpy()[...] = index
    with pytest.raises(IndexError, match=f"Target {index} is out of bounds"):
        loss.backward()
