"""One Function, written once, in every mode of torch: eager, transforms, traces, and where nothing is differentiated."""

import pytest
import torch
import torch.nn.functional as builtin
from torch.autograd import Function, forward_ad
from torch.func import functional_call, grad, jvp, vmap
from torch.utils.flop_counter import FlopCounterMode

import cnn425.nn.functional as F
from cnn425 import nn
from cnn425.layers.function import autocast_dtype, cast_for_autocast, is_differentiated, is_recorded, operation, without_autocast

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


# ---- tangents of tangents

W, SCORES, IMAGE = (torch.randn(*shape, dtype=torch.float64) for shape in ((2, 2, 3, 3), (4, 3), (2, 2, 5, 5)))
NESTED = {
    "linear": (lambda f, x: f.linear(x, W[0, 0] * x[:3]), SCORES),
    "conv2d": (lambda f, x: f.conv2d(x, W * x[0, 0, :3, :3]), IMAGE),
    "conv_transpose2d": (lambda f, x: f.conv_transpose2d(x, W * x[0, 0, :3, :3]), IMAGE),
    "max_pool2d": (lambda f, x: f.max_pool2d(x.sin(), 2), IMAGE),
    "adaptive_avg_pool2d": (lambda f, x: f.adaptive_avg_pool2d(x.sin(), 2), IMAGE),
    "lp_pool2d": (lambda f, x: f.lp_pool2d(x.abs() + 1, 3.0, 2), IMAGE),
    "unfold": (lambda f, x: f.unfold(x.sin(), 2), IMAGE),
    "relu": (lambda f, x: f.relu(x) ** 2, SCORES),
    "sigmoid": (lambda f, x: f.sigmoid(x), SCORES),
    "softmax": (lambda f, x: f.softmax(x, 1), SCORES),
    "cross_entropy": (lambda f, x: f.cross_entropy(x, torch.tensor([0, 1, 2, 1])), SCORES),
    "cross_entropy, smoothed": (lambda f, x: f.cross_entropy(x, torch.tensor([0, 1, 2, 1]), label_smoothing=0.1), SCORES),
}


def tangent(f, direction):
    """The function whose value is the tangent of `f`."""
    return lambda x: jvp(f, (x,), (direction,))[1]


@pytest.mark.parametrize("name", NESTED)
def test_tangents_have_tangents(name):
    function, x = NESTED[name]
    u, v, w = (torch.randn_like(x) for _ in range(3))
    nested = {
        "twice": lambda f: tangent(tangent(f, u), v)(x),
        "three times": lambda f: tangent(tangent(tangent(f, u), v), w)(x),
        "the gradient of a tangent's": lambda f: grad(lambda x: tangent(tangent(f, u), v)(x).sum())(x),
        "over a batch": lambda f: tangent(vmap(tangent(f, u)), torch.stack((v, w)))(torch.stack((x, x.cos()))),
    }
    for transform in nested.values():
        ours, theirs = (transform(lambda x, f=f: function(f, x)) for f in (F, builtin))
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("kind", ["local", "transposed", "low rank"])
def test_tangents_of_local_layers_have_tangents(kind):
    u, v, layer = torch.randn_like(IMAGE), torch.randn_like(IMAGE), nn.LowRankLocal2d(2, 2, 5, 3, rank=2).double()

    def weight(x):
        return W * x[0, 0, :3, :3]

    ours, same = {
        "local": (lambda x: F.locally_connected2d(x, weight(x).expand(3, 3, 2, 2, 3, 3)), lambda x: builtin.conv2d(x, weight(x))),
        "transposed": (
            lambda x: F.locally_connected_transpose2d(x, weight(x).expand(5, 5, 2, 2, 3, 3)),
            lambda x: builtin.conv_transpose2d(x, weight(x)),
        ),
        "low rank": (  # its coefficients start as a half
            lambda x: functional_call(layer, {"weight": torch.stack((weight(x), weight(x) ** 2))}, (x,)),
            lambda x: builtin.conv2d(x, (weight(x) + weight(x) ** 2) / 2, layer.bias.detach()),
        ),
    }[kind]
    torch.testing.assert_close(tangent(tangent(ours, u), v)(IMAGE), tangent(tangent(same, u), v)(IMAGE))


PARAMETERS = torch.randn(2, 2, 3, 3, dtype=torch.float64, requires_grad=True)
AGAIN = {
    "conv2d": lambda f, x: f.conv2d(x, PARAMETERS),
    "conv_transpose2d": lambda f, x: f.conv_transpose2d(x, PARAMETERS),
    "linear": lambda f, x: f.linear(x.flatten(1), PARAMETERS.view(4, 9).repeat(1, 6)[:, :50]),
    "max_pool2d": lambda f, x: f.max_pool2d(x, 2),
    "avg_pool2d": lambda f, x: f.avg_pool2d(x, 2),
    "adaptive_avg_pool2d": lambda f, x: f.adaptive_avg_pool2d(x, 2),
    "adaptive_avg_pool2d global": lambda f, x: f.adaptive_avg_pool2d(x, 1),
    "adaptive_max_pool2d global": lambda f, x: f.adaptive_max_pool2d(x, 1),
    "unfold": lambda f, x: f.unfold(x, 2),
    "fold": lambda f, x: f.fold(x[:1].view(1, 2, 25)[:, :, :20].repeat(1, 2, 1), (5, 6), 2),
    "relu": lambda f, x: f.relu(x),
    "softmax": lambda f, x: f.softmax(x, 1),
    "cross_entropy": lambda f, x: f.cross_entropy(x, torch.zeros(len(x), 5, 5, dtype=torch.int64)),
}


@pytest.mark.parametrize("name", AGAIN)
def test_a_second_backward_pass_is_allowed_where_torch_allows_it(name):
    def outcome(f):
        x = IMAGE.clone().requires_grad_()
        y = AGAIN[name](f, x).sum()
        y.backward()
        try:
            y.backward()
        except RuntimeError as error:
            return str(error).split("(")[0]
        return x.grad

    ours, theirs = map(outcome, (F, builtin))
    assert ours == theirs if isinstance(theirs, str) else torch.equal(ours, theirs)


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
    assert not is_differentiated(X)
    assert is_differentiated(leaf)
    with torch.no_grad():
        assert not is_differentiated(leaf)
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


SHORTENED = {
    "max_pool2d": lambda x: F.max_pool2d(x, 2),
    "softmax": lambda x: F.softmax(x, 1),
    "cross_entropy": lambda x: F.cross_entropy(x, torch.zeros(8, 6, 6, dtype=torch.long), reduction="none"),
    "conv2d": lambda x: F.conv2d(x, torch.ones(4, 4, 3, 3)),
    "low rank": lambda x: nn.LowRankLocal2d(4, 4, 6, 3, 2)(x),
}


@pytest.mark.parametrize("name", SHORTENED)
def test_saved_tensors_that_a_hook_cut_short_are_an_error(name):
    """Loops would read behind them, before autograd finds that the gradient has another shape."""
    x = torch.randn(8, 4, 6, 6, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t[: len(t) // 2] if t.ndim == 4 else t):
        y = SHORTENED[name](x)
    with pytest.raises((RuntimeError, IndexError), match=r"^(?!.*invalid gradient)"):
        y.sum().backward()


ASKED = {
    "conv2d": lambda x, w: F.conv2d(x, w[0, 0]),
    "conv_transpose2d": lambda x, w: F.conv_transpose2d(x, w[0, 0]),
    "locally_connected2d": lambda x, w: F.locally_connected2d(x, w),
    "linear": lambda x, w: F.linear(x.flatten(1), w.flatten()[: 50 * 6400].view(50, 6400)),
    "a gradient's gradient": lambda x, w: torch.autograd.grad(F.conv2d(x, w[0, 0]).pow(2).sum(), x, create_graph=True)[0],
}


@pytest.mark.parametrize("of", ["leaves", "what was computed"])
@pytest.mark.parametrize("name", ASKED)
def test_only_the_gradients_that_were_asked_for_are_computed(name, of):
    """As torch's own layers do: the gradient of an image alone takes half the work."""
    x, w = torch.randn(16, 16, 20, 20), torch.randn(18, 18, 16, 16, 3, 3).mul_(0.1)
    x, w = (t.requires_grad_() if of == "leaves" else t.requires_grad_() * 1 for t in (x, w))
    y = ASKED[name](x, w)

    def work(*leaves):
        with FlopCounterMode(display=False) as counter:
            torch.autograd.grad(y.sum(), leaves, retain_graph=True)
        return counter.get_total_flops()

    image, weight, both = work(x), work(w), work(x, w)
    assert 0 < image < 0.8 * both
    assert 0 < weight < 0.8 * both
