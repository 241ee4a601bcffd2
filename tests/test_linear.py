"""The fully connected layer: pencil, torch, finite differences, properties, errors, transforms."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as builtin
from hypothesis import given
from hypothesis import strategies as st

from cnn425 import nn
from cnn425.agreement import compare, derivatives, same_refusal, transforms
from cnn425.nn import functional as F

# Each case is named after the bug it kills: shapes of input, weight, bias.
CASES = {
    "weight gradient averaged over the batch": ((3, 4), (5, 4), (5,)),
    "input and output sizes exchanged": ((2, 7), (3, 7), (3,)),
    "without bias": ((3, 4), (5, 4), None),
    "unbatched": ((4,), (5, 4), (5,)),
    "leading dimensions mixed": ((2, 3, 4), (5, 4), (5,)),
    "four leading dimensions": ((2, 1, 3, 2, 4), (5, 4), (5,)),
    "leading dimensions without bias": ((2, 3, 4), (5, 4), None),
    "one unit, vector weight": ((3, 4), (4,), None),
    "one unit, vector weight, unbatched": ((4,), (4,), None),
    "bias of one number": ((3, 4), (5, 4), (1,)),
    "bias without dimension": ((3, 4), (5, 4), ()),
    "bias per sample": ((3, 4), (5, 4), (3, 5)),
    "bias per sample, leading dimensions": ((2, 3, 4), (5, 4), (3, 5)),
    "empty batch": ((0, 4), (5, 4), (5,)),
    "empty batch in the middle": ((2, 0, 4), (5, 4), (5,)),
    "no inputs": ((3, 0), (5, 0), (5,)),
    "no outputs": ((3, 4), (0, 4), (0,)),
}


def problem(case, dtype=torch.float64):
    return [torch.randn(s, dtype=dtype) for s in CASES[case] if s is not None]


def test_pencil():
    x, w, b = torch.tensor([[1.0, 2], [3, 4]]), torch.tensor([[1.0, 10], [0, -1], [2, 2]]), torch.tensor([0.0, 100, 1])
    assert F.linear(x, w, b).tolist() == [[21.0, 98.0, 7.0], [43.0, 96.0, 15.0]]


def test_pencil_gradients():
    x, w, b = (torch.tensor(t, requires_grad=True) for t in ([[1.0, 2], [3, 4]], [[1.0, 10]], [5.0]))
    gx, gw, gb = torch.autograd.grad(F.linear(x, w, b), (x, w, b), torch.tensor([[1.0], [100]]))
    assert gx.tolist() == [[1.0, 10.0], [100.0, 1000.0]]
    assert gw.tolist() == [[301.0, 402.0]]  # 1*1 + 100*3 and 1*2 + 100*4
    assert gb.tolist() == [101.0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.complex64], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_torchs(case, dtype):
    verdict = compare(F.linear, builtin.linear, problem(case, dtype), strides=True)
    assert verdict, verdict.wrong


def test_integers_have_values():
    x, w = torch.arange(6).view(2, 3), torch.arange(12).view(4, 3)
    assert torch.equal(F.linear(x, w), builtin.linear(x, w))


@pytest.mark.parametrize("case", ["transposed", "expanded", "channels last", "every other"])
def test_any_strides(case):
    x = {
        "transposed": torch.randn(4, 3).t(),
        "expanded": torch.randn(4).expand(3, 4),
        "channels last": torch.randn(2, 4, 3, 4).to(memory_format=torch.channels_last),
        "every other": torch.randn(3, 8)[:, ::2],
    }[case]
    verdict = compare(F.linear, builtin.linear, [x, torch.randn(4, 5).t(), torch.randn(5)], strides=True)
    assert verdict, verdict.wrong


@pytest.mark.parametrize("case", [c for c in CASES if "empty" not in c and "no " not in c])
def test_derivatives_of_every_order_by_finite_differences(case):
    assert set(derivatives(F.linear, problem(case)).values()) == {""}


@pytest.mark.parametrize("case", ["weight gradient averaged over the batch", "without bias", "leading dimensions mixed", "bias per sample"])
def test_transforms(case):
    wrong = {k: v for k, v in transforms(F.linear, builtin.linear, problem(case)).items() if v}
    assert not wrong


def test_compile_and_export():
    case = "leading dimensions mixed"
    wrong = {k: v for k, v in transforms(F.linear, builtin.linear, problem(case), compiled=True).items() if v}
    assert not wrong


def test_only_the_gradients_asked_for_are_computed():
    x, w = torch.randn(3, 4, requires_grad=True), torch.randn(5, 4)
    y = F.linear(x, w)
    assert y.grad_fn.saved_tensors[0] is None  # the input is not kept for a weight that does not learn
    assert torch.autograd.grad(y.sum(), x)[0].shape == x.shape


def test_autocast_lowers_the_precision_and_gives_full_gradients():
    x, w, b = (t.requires_grad_() for t in problem("unbatched", torch.float32))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        verdict = compare(F.linear, builtin.linear, [x, w, b])
        assert F.linear(x, w, b).dtype == torch.bfloat16
    assert verdict, verdict.wrong


def test_a_tensor_subclass_stays_one():
    class Tagged(torch.Tensor):
        pass

    y = F.linear(torch.randn(3, 4).as_subclass(Tagged), torch.randn(5, 4))
    assert type(y) is Tagged


def test_meta_tensors_allocate_nothing():
    y = F.linear(torch.empty(2, 40_000, device="meta"), torch.empty(40_000, 40_000, device="meta"))
    assert (y.shape, y.device.type) == ((2, 40_000), "meta")


# ---- errors ----------------------------------------------------------------------------------------------------------------

ERRORS = {
    "sizes differ": ((3, 4), (5, 6), None, RuntimeError, "mat1 and mat2 shapes cannot be multiplied .3x4 and 6x5."),
    "sizes differ, unbatched": ((4,), (5, 6), None, RuntimeError, "shapes cannot be multiplied .1x4 and 6x5."),
    "no dimensions": ((), (5, 6), None, RuntimeError, "need to be at least 1D, but they are 0D and 2D"),
    "weight of three dimensions": ((3, 4), (1, 5, 4), None, RuntimeError, "<= 2 dimensions, but self is 3D"),
    "vector weight with bias": ((3, 4), (4,), (1,), RuntimeError, "weight must be a matrix"),
    "bias of another size": ((3, 4), (5, 4), (4,), RuntimeError, "must match the existing size"),
    "bias larger than the output": ((4,), (5, 4), (3, 5), RuntimeError, "doesn't match the broadcast shape"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_refusals(case):
    *shapes, error, words = ERRORS[case]
    tensors = [torch.randn(s) for s in shapes if s is not None]
    with pytest.raises(error, match=words):
        F.linear(*tensors)
    with pytest.raises(error):
        builtin.linear(*tensors)


@pytest.mark.parametrize(
    "arguments", [("x", torch.ones(2, 2)), (torch.ones(2, 2), [1.0]), (torch.ones(2, 2), torch.ones(2, 2), 0.0)], ids=str
)
def test_what_is_no_tensor_is_named(arguments):
    with pytest.raises(TypeError, match=r"linear\(\): argument '(input|weight|bias)' \(position \d\) must be Tensor, not (str|list|float)"):
        F.linear(*arguments)


dims = st.integers(0, 3)
shapes = st.lists(dims, max_size=3).map(tuple)
dtypes = st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool, torch.complex64])


@given(st.lists(st.tuples(shapes, dtypes), min_size=2, max_size=3), st.booleans(), st.booleans())
def test_legal_or_not_both_agree_or_both_refuse(tensors, fit, same_type):
    if fit and len(tensors) > 1 and tensors[0][0] and tensors[1][0]:
        tensors[0] = ((*tensors[0][0][:-1], tensors[1][0][-1]), tensors[0][1])
    arguments = [torch.randint(-3, 3, s).to(tensors[0][1] if same_type else d) for s, d in tensors]
    difference = same_refusal(lambda: F.linear(*arguments), lambda: builtin.linear(*arguments))
    assert not difference
    if not same_refusal(lambda: F.linear(*arguments), lambda: None):
        verdict = compare(F.linear, builtin.linear, arguments, strides=True)
        assert verdict, verdict.wrong


# ---- the Module ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"bias": False}, {"dtype": torch.float64}], ids=str)
def test_the_module_is_torchs_but_for_what_is_computed(options):
    modules = []
    for library in (nn, torch.nn):
        torch.manual_seed(3)
        modules.append(library.Linear(4, 5, **options))
    ours, theirs = modules
    assert repr(ours) == repr(theirs)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
    verdict = compare(ours, theirs, [torch.randn(2, 4, dtype=options.get("dtype"))])
    assert verdict, verdict.wrong
    for twin in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert type(twin) is nn.Linear
        assert compare(twin, theirs, [torch.randn(2, 4, dtype=options.get("dtype"))])


def test_the_module_skips_its_initialisation_and_comes_from_meta():
    assert torch.nn.utils.skip_init(nn.Linear, 4, 5).weight.shape == (5, 4)
    assert nn.Linear(4, 5, device="meta").to_empty(device="cpu").weight.device.type == "cpu"


def test_three_four_two_is_six_neurons_twenty_weights_and_twenty_six_parameters():
    layers = nn.Linear(3, 4), nn.Linear(4, 2)
    assert sum(m.out_features for m in layers) == 6
    assert sum(m.weight.numel() for m in layers) == 20
    assert sum(p.numel() for m in layers for p in m.parameters()) == 26
