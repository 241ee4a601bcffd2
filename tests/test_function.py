"""One Function, written once, in every mode of torch: eager, transforms, traces, and where nothing is differentiated."""

import pytest
import torch
from torch.autograd import Function, forward_ad
from torch.func import grad, jvp, vmap

from cnn425.layers.function import autocast_dtype, cast_for_autocast, is_not_differentiated, is_recorded, operation, without_autocast

X = torch.tensor([1.0, 2.0, 3.0])


class Square(Function):
    """x * x, as a layer would write it."""

    @staticmethod
    def forward(x):
        return x * x

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx, gy):
        (x,) = ctx.saved_tensors
        return 2 * x * gy

    @staticmethod
    def jvp(ctx, dx):
        (x,) = ctx.saved_tensors
        return 2 * x * dx

    @staticmethod
    def vmap(info, in_dims, x):
        return square(x), in_dims[0]


square = operation(Square)


class View(Function):
    """The numbers of x as a view, which torch would refuse to write into."""

    @staticmethod
    def forward(x):
        return x.clone().view(-1)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.shape = inputs[0].shape

    @staticmethod
    def backward(ctx, gy):
        return gy.view(ctx.shape)


def test_eager_and_its_derivatives():
    x = X.clone().requires_grad_()
    y = square(x)
    (gx,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    assert torch.equal(y, X * X)
    assert torch.equal(gx, 2 * X)
    assert torch.equal(torch.autograd.grad(gx.sum(), x)[0], torch.full((3,), 2.0))


def test_transforms():
    assert torch.equal(grad(lambda x: square(x).sum())(X), 2 * X)
    assert torch.equal(vmap(square)(X), X * X)
    assert torch.equal(jvp(square, (X,), (torch.ones(3),))[1], 2 * X)
    assert torch.equal(vmap(grad(square))(X), 2 * X)


def test_forward_mode():
    with forward_ad.dual_level():
        assert torch.equal(forward_ad.unpack_dual(square(forward_ad.make_dual(X, torch.ones(3)))).tangent, 2 * X)


def test_a_batch_of_gradients_by_the_older_vmap():
    x = X.clone().requires_grad_()
    gradients = torch.autograd.grad(square(x), x, torch.eye(3), is_grads_batched=True)[0]
    assert torch.equal(gradients, torch.diag(2 * X))


def test_the_compiler_sees_one_graph_and_the_gradient():
    torch._dynamo.reset()
    x = X.clone().requires_grad_()
    y = torch.compile(square, fullgraph=True, backend="aot_eager")(x)
    assert torch.equal(torch.autograd.grad(y.sum(), x)[0], 2 * X)


def test_where_nothing_is_differentiated_no_graph_is_made():
    with torch.no_grad():
        assert square(X.clone().requires_grad_()).grad_fn is None
    assert square(X).grad_fn is None


def test_forward_runs_once_for_each_call():
    calls = []

    class Counted(Square):
        @staticmethod
        def forward(x):
            calls.append(1)
            return x * x

    counted = operation(Counted)
    counted(X.clone().requires_grad_()).sum().backward()
    counted(X)
    assert len(calls) == 2


def test_a_result_may_be_written_into():
    y = operation(View)(torch.ones(2, 2, requires_grad=True))
    y.add_(1)
    assert y.tolist() == [2, 2, 2, 2]


def test_who_follows():
    leaf = X.clone().requires_grad_()
    assert is_recorded((X, leaf))
    assert not is_recorded((X, None, 3))
    assert is_not_differentiated(X)
    assert not is_not_differentiated(leaf)
    with torch.no_grad():
        assert is_not_differentiated(leaf)
    with forward_ad.dual_level():
        assert is_recorded((X,))


@pytest.mark.parametrize(
    ("dtype", "expected"), [(torch.float32, torch.bfloat16), (torch.float64, torch.float64), (torch.int64, torch.int64)]
)
def test_autocast_lowers_what_it_lowers(dtype, expected):
    x = X.to(dtype)
    assert cast_for_autocast(x, None)[0] is x
    assert autocast_dtype(x.device) is None
    with torch.autocast("cpu", torch.bfloat16):
        lowered, nothing = cast_for_autocast(x, None)
        assert (lowered.dtype, nothing) == (expected, None)
        assert autocast_dtype(x.device) == torch.bfloat16
        assert without_autocast(lambda: torch.is_autocast_enabled("cpu"), x.device) is False
