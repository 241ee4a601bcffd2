"""Agreement: shown able to fail. Every planted bug of the style guide's table dies, and survives the test that is known to be too weak."""

import pytest
import torch
import torch.nn.functional as builtin

from cnn425.agreement import TOLERANCES, Agreement, compare, derivatives, same_refusal, transforms


class Planted(torch.autograd.Function):
    """A convolution (stride 1, 3x3) whose backward carries one bug."""

    @staticmethod
    def forward(ctx, x, w, bug):
        ctx.save_for_backward(x, w)
        ctx.bug = bug
        return builtin.conv2d(x, w)

    @staticmethod
    def backward(ctx, gy):
        x, w = ctx.saved_tensors
        if ctx.bug == "upstream gradient flipped":
            gy = gy.flip(-1, -2)
        gx = torch.nn.grad.conv2d_input(x.shape, w, gy)
        if ctx.bug == "= for += when windows return to pixels":
            gx = torch.zeros_like(x)
            for u in range(3):
                for v in range(3):
                    gx[..., u : u + gy.shape[-2], v : v + gy.shape[-1]] = torch.einsum("noij,oc->ncij", gy, w[..., u, v])
        gw = torch.nn.grad.conv2d_weight(x, w.shape, gy)
        if ctx.bug == "weight gradient averaged over the batch":
            gw = gw / len(x)
        return gx, gw, None


class EveryTiedCell(torch.autograd.Function):
    """A max pool that sends the gradient to every cell that reaches the maximum."""

    @staticmethod
    def forward(ctx, x):
        y = builtin.max_pool2d(x, 2)
        ctx.save_for_backward(x, y)
        return y

    @staticmethod
    def backward(ctx, gy):
        x, y = ctx.saved_tensors
        up = lambda t: t.repeat_interleave(2, -1).repeat_interleave(2, -2)  # noqa: E731
        return torch.where(x == up(y), up(gy), 0)


def problem(n=2, dtype=torch.float64):
    return torch.randn(n, 3, 7, 6, dtype=dtype), torch.randn(4, 3, 3, 3, dtype=dtype)


BUGS = ["upstream gradient flipped", "= for += when windows return to pixels", "weight gradient averaged over the batch"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_gradient_bug_dies(bug, dtype):
    verdict = compare(lambda x, w: Planted.apply(x, w, bug), builtin.conv2d, problem(dtype=dtype))
    assert not verdict
    assert "gradient of input" in verdict.wrong
    assert "output" not in verdict.wrong  # and the forward is not blamed


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_the_same_layer_without_a_bug_lives(dtype):
    verdict = compare(lambda x, w: Planted.apply(x, w, None), builtin.conv2d, problem(dtype=dtype))
    assert verdict, verdict.wrong
    assert list(verdict.errors) == ["output", "gradient of input 0", "gradient of input 1"]


def test_a_flipped_upstream_gradient_survives_a_sum_which_is_why_ours_is_random():
    x, w = (t.requires_grad_() for t in problem())
    sums = [torch.autograd.grad(f(x, w).sum(), (x, w)) for f in (builtin.conv2d, lambda x, w: Planted.apply(x, w, BUGS[0]))]
    assert all(torch.allclose(a, b) for a, b in zip(*sums, strict=True))


def test_a_batch_average_survives_a_batch_of_one():
    assert compare(lambda x, w: Planted.apply(x, w, BUGS[2]), builtin.conv2d, problem(n=1))


def test_gradient_to_every_tied_cell_dies_by_small_integers_and_survives_random_numbers():
    theirs = lambda x: builtin.max_pool2d(x, 2)  # noqa: E731
    assert compare(EveryTiedCell.apply, theirs, [torch.randn(1, 1, 6, 6)])
    assert not compare(EveryTiedCell.apply, theirs, [torch.randint(0, 3, (1, 1, 6, 6)).float()])


def test_max_padding_with_zero_dies_by_negative_input_and_survives_positive_input():
    ours = lambda x: builtin.max_pool2d(builtin.pad(x, [1, 1, 1, 1]), 3)  # noqa: E731
    theirs = lambda x: builtin.max_pool2d(x, 3, padding=1)  # noqa: E731
    x = torch.rand(1, 1, 7, 7) + 0.1
    assert compare(ours, theirs, [x])
    assert not compare(ours, theirs, [-x])


def test_one_stride_for_both_axes_dies_by_its_shape():
    ours = lambda x, w: builtin.conv2d(x, w, stride=(2, 2))  # noqa: E731
    verdict = compare(ours, lambda x, w: builtin.conv2d(x, w, stride=(1, 2)), problem())
    assert "shape" in verdict.wrong


def off(amount, dtype):
    y = torch.linspace(1, 2, 5, dtype=dtype)
    return compare(lambda: y + amount, lambda: y, [])


@pytest.mark.parametrize("dtype", [d for d in TOLERANCES if not d.is_complex], ids=str)
def test_ten_times_the_tolerance_is_too_much_and_a_tenth_is_not(dtype):
    allowed = 2 * TOLERANCES[dtype].absolute + TOLERANCES[dtype].relative
    assert not off(10 * allowed, dtype)
    assert off(allowed / 10, dtype)


def test_every_dtype_says_why_it_may_differ_so_much():
    assert all(t.reason and 0 < t.relative < 0.1 and 0 < t.absolute < 0.1 for t in TOLERANCES.values())


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ([1.0, torch.nan], [1.0, 2.0]),
        ([1.0, 2.0], [1.0, torch.nan]),
        ([torch.inf], [-torch.inf]),
        ([torch.inf], [1e30]),
        ([torch.nan], [torch.inf]),
    ],
    ids=str,
)
def test_nan_and_infinity_equal_only_themselves(a, b):
    values = [torch.tensor(v, dtype=torch.float32) for v in (a, b)]
    assert not compare(lambda: values[0], lambda: values[1], [])
    assert all(compare(lambda v=v: v, lambda v=v: v.clone(), []) for v in values)


def test_integers_are_exact():
    indices = torch.tensor([10**15, 3])
    assert not compare(lambda: indices + torch.tensor([1, 0]), lambda: indices, [])
    assert compare(lambda: indices, lambda: indices.clone(), [])


def test_dtype_and_strides_count():
    x = torch.randn(2, 3, 4, 4)
    assert "dtype" in compare(lambda x: x.double(), lambda x: x * 1, [x]).wrong
    last = lambda x: (x * 1).to(memory_format=torch.channels_last)  # noqa: E731
    assert compare(last, lambda x: x * 1, [x])
    assert "strides" in compare(last, lambda x: x * 1, [x], strides=True).wrong
    assert compare(last, lambda x: x * 1, [x[:, :1].contiguous()], strides=True)  # one channel: first or last is the same memory


def test_a_missing_gradient_is_no_agreement():
    assert "ours has none" in compare(lambda x, w: x * 1 + 0 * w.detach(), lambda x, w: x + 0 * w, [torch.ones(2), torch.ones(2)]).wrong
    assert not compare(lambda x: x.detach(), lambda x: x * 1, [torch.ones(2)])


def test_nothing_compared_is_no_agreement():
    assert not Agreement(())
    assert str(Agreement(())) == "nothing was compared"


def test_modules_are_compared_with_their_parameters():
    ours, theirs = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    theirs.load_state_dict(ours.state_dict())
    verdict = compare(ours, theirs, [torch.randn(4, 3)])
    assert verdict
    assert {"gradient of weight", "gradient of bias"} < set(verdict.errors)
    assert not compare(ours, torch.nn.Linear(3, 2), [torch.randn(4, 3)])


def test_the_verdict_reads_as_a_table():
    verdict = compare(lambda x: 2 * x, lambda x: 3 * x, [torch.tensor([1.0, -4.0])])
    lines = str(verdict).splitlines()
    assert len(lines) == 2
    assert "-12 was expected at [1], but ours is -8" in lines[0]
    assert "largest error  4.0e+00" in lines[0]
    assert lines[1].startswith("gradient of input 0")


def test_inputs_are_not_touched_and_keep_their_strides():
    seen, x = [], torch.randn(3, 1).expand(3, 4)
    compare(lambda x: seen.append(x.stride()) or x * 1, lambda x: x * 1, [x])
    assert seen == [(1, 0)]
    assert not x.requires_grad


def test_same_refusal_wants_the_same_type():
    def raises(error):
        raise error

    assert same_refusal(lambda: raises(ValueError("a")), lambda: raises(ValueError("b"))) == ""
    assert same_refusal(lambda: 1, lambda: 2) == ""
    assert "theirs: ValueError(a); ours: no error" in same_refusal(lambda: 1, lambda: raises(ValueError("a")))
    assert "ours: KeyError" in same_refusal(lambda: raises(KeyError("a")), lambda: raises(ValueError("a")))


class WrongCurvature(torch.autograd.Function):
    """x**3 with its gradient, whose own gradient takes x for a constant."""

    @staticmethod
    def forward(x):
        return x**3

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[0].detach())

    @staticmethod
    def backward(ctx, gy):
        return gy * 3 * ctx.saved_tensors[0] ** 2


@pytest.mark.parametrize("fast", [False, True])
def test_derivatives_find_a_wrong_gradient(fast):
    assert derivatives(lambda x: x**3, [torch.randn(3)], fast) == {"gradcheck": "", "gradgradcheck": ""}
    inputs = [torch.randn(2, 1, 4, 4), torch.randn(1, 1, 3, 3)]
    for bug in BUGS:
        assert "GradcheckError" in derivatives(lambda x, w, bug=bug: Planted.apply(x, w, bug), inputs, fast)["gradcheck"], bug
    assert "GradcheckError" in derivatives(lambda x: WrongCurvature.apply(x), [torch.randn(3)], fast)["gradgradcheck"]


def test_transforms_find_what_a_function_cannot_do():
    x = torch.randn(3, 2, dtype=torch.float64)
    assert set(transforms(torch.sin, torch.sin, [x]).values()) == {""}
    wrong = transforms(torch.sin, torch.cos, [x])
    assert all(wrong.values())
    old_style = transforms(EveryTiedCell.apply, lambda x: builtin.max_pool2d(x, 2), [torch.randn(1, 1, 4, 4)])
    assert "setup_context" in old_style["vmap"] or "RuntimeError" in old_style["vmap"]


def test_another_device_is_no_agreement():
    x = torch.ones(2)
    assert "device" in compare(lambda: x.to("meta"), lambda: x, []).wrong
    assert "device" in compare(lambda: x, lambda: x.to("meta"), []).wrong


def test_strides_of_sides_of_two_pixels_count():
    x = torch.randn(2, 2)
    assert "strides" in compare(lambda x: (x * 1).t().contiguous().t(), lambda x: x * 1, [x], strides=True).wrong


def test_small_numbers_may_differ_as_numbers_of_size_one():
    y = torch.tensor([1e-3, 0.0])
    assert compare(lambda: y + 5e-6, lambda: y, [])
    assert not compare(lambda: y + 5e-5, lambda: y, [])


class TwiceAndThrice(torch.autograd.Function):
    """2x and 3x, with their gradients exchanged."""

    @staticmethod
    def forward(ctx, x):
        return 2 * x, 3 * x

    @staticmethod
    def backward(ctx, g, h):
        return 3 * g + 2 * h


def test_exchanged_gradients_of_two_outputs_are_found():
    assert not compare(TwiceAndThrice.apply, lambda x: (2 * x, 3 * x), [torch.ones(3)])


def test_same_refusal_wants_the_same_type_and_no_subclass():
    def raises(error):
        raise error

    assert "ours: NotImplementedError" in same_refusal(lambda: raises(NotImplementedError()), lambda: raises(RuntimeError()))
    assert "ours: RuntimeError" in same_refusal(lambda: raises(RuntimeError()), lambda: raises(NotImplementedError()))


def test_transforms_miss_no_output():
    x = torch.randn(3)
    assert transforms(lambda x: x.sin(), lambda x: (x.sin(), x > 0), [x], compiled=True)["export, strict"]
    assert all(transforms(lambda x: (), torch.sin, [x]).values())
