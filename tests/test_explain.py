"""Torch's own graph as a trace table: the slide's numbers, our layers, a whole small network."""

from pathlib import Path

import pytest
import torch

from cnn425 import nn
from cnn425.autodiff import ln, sin
from cnn425.autodiff.drawing import draw
from cnn425.autodiff.explain import explain
from cnn425.autodiff.traces import traces


def test_torch_does_what_the_slide_says():
    theirs = explain(lambda x1, x2: x1.log() + x1 * x2 - x2.sin(), 2, 5)
    ours = traces(lambda x1, x2: ln(x1) + x1 * x2 - sin(x2), 2, 5)
    assert [line.formula for line in theirs.lines] == ["x1", "x2", "Log(v0)", "Mul(v0, v1)", "Sin(v1)", "Add(v2, v3)", "Sub(v5, v4)"]
    for a, b in zip(theirs.lines, ours.lines, strict=True):
        assert (a.name, a.sources, a.depth) == (b.name, b.sources, b.depth)
        assert float(a.value) == pytest.approx(float(b.value), rel=1e-15)
        assert float(a.adjoint) == pytest.approx(float(b.adjoint), rel=1e-15)
    assert "11.652" in str(theirs)
    assert "LogBackward0(v\u03042) + MulBackward0(v\u03043)" in theirs.markdown()


def small_network(library):
    layers = (library.Conv2d(1, 2, 3), library.ReLU(), library.MaxPool2d(2), torch.nn.Flatten(), library.Linear(18, 3))
    return torch.nn.Sequential(*layers)


@pytest.mark.parametrize("library", [nn, torch.nn], ids=["our layers", "torch"])
def test_a_small_convolutional_network_with_its_loss(library):
    torch.manual_seed(1)
    model = small_network(library)
    images, labels = torch.randn(2, 1, 8, 8), torch.tensor([0, 2])
    loss = library.CrossEntropyLoss()

    class Training(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, images):
            return loss(self.model(images), labels)

    table = explain(Training(), images)
    by_name = {line.formula: line for line in table.lines}
    expected = torch.autograd.grad(loss(model(images), labels), list(model.parameters()))
    for (name, parameter), gradient in zip(model.named_parameters(), expected, strict=True):
        line = by_name[f"model.{name}"]
        torch.testing.assert_close(torch.from_numpy(line.adjoint).float(), gradient)
        torch.testing.assert_close(torch.from_numpy(line.value).float(), parameter.detach())
    last = table.lines[-1]
    assert last.adjoint == 1
    assert last.value == pytest.approx(loss(model(images), labels).item())
    assert all(p.grad is None for p in model.parameters())
    assert "2×1×8×8" in str(table)
    unknown = [line.formula for line in table.lines if isinstance(line.value, str)]
    assert len(unknown) <= 3, f"values torch forgot: {unknown}"
    draw(table)


def test_the_chapter_shows_the_rows_of_the_network_that_come_out():
    page = (Path(__file__).parents[1] / "docs/differentiation.md").read_text()
    for line in explain(small_network(nn), torch.randn(2, 1, 8, 8)).lines:
        assert f"| {line.name} = | {line.formula} |" in page, "docs/differentiation.md is stale"


def test_our_convolution_and_local_layer_show_under_their_own_names():
    conv, local = nn.Conv2d(1, 2, 3), nn.LocallyConnected2d(2, 3, 4, 3)
    text = str(explain(torch.nn.Sequential(conv, local), torch.randn(1, 1, 6, 6)))
    for words in ("0.weight", "1.weight", "1×2×4×4", "1×3×2×2"):
        assert words in text


def test_a_custom_function_keeps_value_and_adjoint():
    class Twice(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        def backward(ctx, g):
            return g * 2

    lines = explain(lambda x: Twice.apply(Twice.apply(x)).relu(), torch.tensor([-1.0, 3.0])).lines
    assert [line.formula for line in lines] == ["x", "Twice(v0)", "Twice(v1)", "Relu(v2)"]
    assert [line.value.tolist() for line in lines] == [[-1, 3], [-2, 6], [-4, 12], [0, 12]]
    assert [line.adjoint.tolist() for line in lines] == [[0, 4], [0, 2], [0, 1], [1, 1]]


def test_the_value_of_a_changed_tensor_is_the_one_it_had():
    def f(x):
        y = x * 1
        z = y + 1
        y.mul_(10)
        return z * y

    lines = {line.formula: line for line in explain(f, 3.0).lines}
    assert float(lines["Mul(v0, _)"].value) == 3


def test_several_outputs_of_one_node():
    lines = explain(lambda x: x.unbind()[0] * x.unbind()[1], torch.tensor([2.0, 5.0])).lines
    assert {line.formula for line in lines[1:]} >= {"Unbind(v0)"}
    assert lines[0].adjoint.tolist() == [5, 2]
    assert "[1]" in lines[-1].formula


def test_inputs_without_a_path_and_inputs_that_are_not_numbers():
    table = explain(lambda x, unused, how: x * how["factor"], 2.0, 3.0, {"factor": 7})
    assert [(line.formula, float(line.adjoint)) for line in table.lines] == [("x", 7), ("unused", 0), ("Mul(v0, _)", 1)]


def test_frozen_and_unused_parameters():
    model = torch.nn.Linear(2, 3)
    model.bias.requires_grad_(False)
    model.extra = torch.nn.Parameter(torch.ones(2))
    lines = {line.formula: line for line in explain(model, torch.ones(2)).lines}
    assert "bias" not in lines
    assert lines["extra"].adjoint == 0
    assert lines["weight"].adjoint.tolist() == [[1, 1]] * 3


def test_half_precision_and_images_that_are_integers():
    table = explain(
        lambda x, labels: torch.nn.functional.cross_entropy(x.float(), labels), torch.randn(3, 4).bfloat16(), torch.tensor([0, 1, 3])
    )
    assert table.lines[0].adjoint.shape == (3, 4)


def test_a_parameter_held_by_a_closure_is_a_leaf_without_a_name():
    weight = torch.nn.Parameter(torch.tensor([2.0]))
    assert "leaf 1" in [line.formula for line in explain(lambda x: x * weight, torch.ones(1)).lines]


def test_a_deep_graph_needs_no_recursion():
    def f(x):
        for _ in range(20_000):
            x = x + 1
        return x

    assert len(explain(f, 1.0).lines) == 20_001


def test_errors():
    with pytest.raises(ValueError, match="wants a function whose result is one tensor made from its inputs, got tuple"):
        explain(lambda x: (x, x), 1.0)
    with pytest.raises(ValueError, match="made from its inputs, got Tensor"):
        explain(lambda x: torch.ones(1), 1.0)
