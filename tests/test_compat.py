"""Everything private of torch is in one file, is there, and answers as that file says."""

import ast
from pathlib import Path

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import grad, vmap
from torch.utils._python_dispatch import TorchDispatchMode

from cnn425 import compat

SOURCES = sorted((Path(__file__).parents[1] / "cnn425").rglob("*.py"))
X = torch.ones(2, 3)


class Mode(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


def seen(transform, question):
    """What `question` answers about the tensor that a transform passes."""
    answers = []
    transform(lambda x: answers.append(question(x)) or x.sum())(X)
    return answers[0]


def older_vmap(question):
    """What `question` answers about a tensor of the vmap behind `is_grads_batched`."""
    answers = []

    class Asked(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, g):
            answers.append(question(g))
            return g

    x = X.clone().requires_grad_()
    torch.autograd.grad(Asked.apply(x), x, torch.ones(4, 2, 3), is_grads_batched=True)
    return answers[0]


# ---- every name answers as its comment says


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace.* is deprecated")
def test_tracing_state_is_a_state_within_a_trace_and_none_outside():
    inside = []
    torch.jit.trace(lambda x: inside.append(compat.tracing_state()) or x + 1, X, check_trace=False)
    assert inside[0] is not None
    assert compat.tracing_state() is None


def test_a_backward_pass_goes_on_to_what_it_was_asked_for():
    answers = []

    class Asked(torch.autograd.Function):
        @staticmethod
        def forward(ctx, a, b):
            return a + b

        @staticmethod
        def backward(ctx, g):
            for node, _ in ctx.next_functions:
                try:
                    answers.append(compat.goes_on_to(node))
                except RuntimeError:
                    answers.append("a leaf that is asked for")
            return g, g

    a, b = X.clone().requires_grad_(), X.clone().requires_grad_()
    torch.autograd.grad(Asked.apply(a, b).sum(), a)
    torch.autograd.grad(Asked.apply(a * 2, b * 2).sum(), b)
    Asked.apply(a, b).sum().backward()
    assert answers == ["a leaf that is asked for", False, False, True, True, True]


def test_dispatch_modes_are_counted():
    assert compat.dispatch_modes() == 0
    with Mode(), Mode():
        assert compat.dispatch_modes() == 2


def test_transforms_are_active_within_one():
    assert not compat.are_transforms_active()
    assert all(seen(transform, lambda _: compat.are_transforms_active()) for transform in (vmap, grad))


def test_a_tensor_of_a_transform_is_one():
    assert not compat.is_transformed(X)
    assert all(seen(transform, compat.is_transformed) for transform in (vmap, grad))


def test_autocast_is_on_for_any_device():
    assert not compat.is_autocast_enabled_anywhere()
    with torch.autocast("cpu", torch.bfloat16):
        assert compat.is_autocast_enabled_anywhere()
    with torch.autocast("cpu", enabled=False):
        assert not compat.is_autocast_enabled_anywhere()


def test_a_tensor_of_the_older_vmap_is_told_from_others():
    assert older_vmap(compat.is_legacy_batched)
    assert not compat.is_legacy_batched(X)
    assert not seen(vmap, compat.is_legacy_batched)


def test_a_batch_of_the_older_vmap_is_taken_off_and_put_back():
    def off_and_on(g):
        plain = compat.remove_legacy_batch(g, compat.legacy_level(), 0, 0)
        back = compat.add_legacy_batch(plain, 0, compat.legacy_level())
        return tuple(plain.shape), tuple(back.shape), compat.is_legacy_batched(plain), compat.is_legacy_batched(back)

    assert older_vmap(off_and_on) == ((4, 2, 3), (2, 3), False, True)


def test_asking_for_the_level_of_the_older_vmap_leaves_it_as_it_was():
    assert compat.legacy_level() == compat.legacy_level()
    assert older_vmap(lambda _: (compat.legacy_level(), compat.legacy_level())) == (1, 1)


def test_forward_mode_has_a_level():
    assert compat.forward_mode._current_level == -1
    with forward_ad.dual_level():
        assert compat.forward_mode._current_level == 0


def test_forward_mode_can_be_turned_off_and_on_again():
    with forward_ad.dual_level():
        x = forward_ad.make_dual(X, X)
        with compat.set_forward_mode(False):
            off = forward_ad.unpack_dual(2 * x).tangent
            with compat.set_forward_mode(True):
                assert torch.equal(forward_ad.unpack_dual(2 * x).tangent, 2 * X)
        assert off is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_what_onednn_computes_in_half_precision_is_stored_channels_last(dtype):
    """A volume's other kernel gives contiguous results."""
    x = torch.ones(2, 4, 3, 3, 3, dtype=dtype).contiguous(memory_format=torch.channels_last_3d)
    y = torch.nn.functional.conv_transpose3d(x, torch.ones(4, 2, 2, 2, 2, dtype=dtype))
    assert y.is_contiguous(memory_format=torch.channels_last_3d) == compat.onednn_computes[dtype]


def test_reductions_have_names():
    assert [compat.reduction.get_enum(name) for name in ("none", "mean", "sum")] == [0, 1, 2]
    with pytest.warns(UserWarning, match="reduction='sum'"):
        assert compat.reduction.legacy_get_string(False, True) == "sum"


def test_the_base_class_of_convolutions():
    assert issubclass(torch.nn.Conv2d, compat.ConvNd)
    assert issubclass(torch.nn.ConvTranspose2d, compat.ConvTransposeNd)
    assert not issubclass(torch.nn.Linear, compat.ConvNd)


def test_a_view_is_told_from_a_tensor_of_its_own():
    assert compat.is_view(X[0])
    assert not compat.is_view(X)


def test_every_name_has_a_test():
    text = Path(__file__).read_text()
    names = [name for name in vars(compat) if not name.startswith("_") and name not in ("torch", "forward_ad")]
    assert len(names) > 10
    assert not [name for name in names if f"compat.{name}" not in text]


# ---- and nothing private is anywhere else


def private(path):
    """Private names of torch that a file uses: `torch._C`, `from torch.x import _y`, `tensor._is_view`."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "torch":
            names = [*node.module.split("."), *(alias.name for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [name for alias in node.names if alias.name.split(".")[0] == "torch" for name in alias.name.split(".")]
        elif isinstance(node, ast.Attribute) and (hasattr(torch.Tensor, node.attr) or ast.unparse(node).startswith("torch.")):
            names = [node.attr]
        else:
            continue
        yield from (name for name in names if name.startswith("_") and not name.startswith("__"))


@pytest.mark.parametrize("path", [p for p in SOURCES if p.name != "compat.py"], ids=lambda p: str(p.relative_to(SOURCES[0].parents[1])))
def test_nothing_private_of_torch_is_used_anywhere_else(path):
    assert not list(private(path))


def test_the_search_can_find_something_private(tmp_path):
    file = tmp_path / "guilty.py"
    file.write_text("import torch._dynamo\nfrom torch.nn.modules.utils import _pair\ntorch._C._get_tracing_state()\ny._is_view()\n")
    assert {"_dynamo", "_pair", "_C", "_is_view"} <= set(private(file))
