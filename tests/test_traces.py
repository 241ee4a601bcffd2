"""The trace tables: numbering, formulas and numbers of the slides, in every format."""

import io
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from cnn425.autodiff import cross_entropy, ln, relu, sigmoid, sin
from cnn425.autodiff.traces import depths_of, shown, traces


def slide(x1, x2):
    return ln(x1) + x1 * x2 - sin(x2)


def test_the_three_traces_of_the_slide():
    table = traces(slide, 2, 5)
    assert [line.name for line in table.lines] == [f"v{k}" for k in range(7)]
    assert [line.formula for line in table.lines] == ["x1", "x2", "ln(v0)", "v0 * v1", "sin(v1)", "v2 + v3", "v5 - v4"]
    assert [float(line.value) for line in table.lines] == pytest.approx([2, 5, 0.693, 10, -0.959, 10.693, 11.652], abs=5e-4)
    assert [float(line.tangent) for line in table.lines] == [1, 0, 0.5, 5, 0, 5.5, 5.5]
    assert [float(line.adjoint) for line in table.lines] == pytest.approx([5.5, 1.716, 1, 1, -1, 1, 1], abs=5e-4)
    bar, dot = "\u0304", "\u0307"
    assert table.lines[0].adjoint_formula == f"1 / v0 * v{bar}2 + v1 * v{bar}3"
    assert table.lines[1].adjoint_formula == f"v0 * v{bar}3 + cos(v1) * v{bar}4"
    assert table.lines[4].adjoint_formula == f"-v{bar}6"
    assert table.lines[6].adjoint_formula == "1"
    assert table.lines[2].tangent_formula == f"1 / v0 * v{dot}0"
    assert table.lines[5].tangent_formula == f"v{dot}2 + v{dot}3"


def test_tangents_by_the_second_input():
    assert [float(line.tangent) for line in traces(slide, 2, 5, by=2).lines] == pytest.approx([0, 1, 0, 2, 0.284, 2, 1.716], abs=5e-4)


def test_markdown_terminal_and_rich_show_the_same_numbers():
    table = traces(slide, 2, 5)
    console = Console(file=io.StringIO(), width=200)
    console.print(table)
    for text in (str(table), repr(table), table.markdown(), console.file.getvalue()):
        for words in ("forward evaluation", "forward derivative by x1", "backward adjoint", "11.652", "1.7163", "ln(v0)", "-0.95892"):
            assert words in text
    lines = table.markdown().splitlines()
    assert lines[1] == "| --- | --- | --- | --- | --- | --- | --- |"
    assert len(lines) == 9
    assert len({line.count("|") for line in lines}) == 1


def test_the_chapter_shows_the_table_that_comes_out():
    page = (Path(__file__).parents[1] / "docs/differentiation.md").read_text()
    shown_there = page.split("<!-- the slide's traces -->\n")[1].split("\n<!-- end -->")[0]
    assert shown_there == traces(slide, 2, 5).markdown()


def test_a_network_is_shown_by_shapes_and_norms():
    def network(W, b, V):
        return cross_entropy(relu(np.ones((2, 5)) @ W + b) @ V, [0, 1])

    W = np.full((5, 4), 0.5)
    text = str(traces(network, W, np.zeros(4), np.eye(4)[:, :2], by=3))
    for words in ("5×4, norm 2.236", "[2×5] @ v0", "broadcast(v1, (2, 4))", "relu(", "by V", "step(", "entropy("):
        assert words in text


def test_names_come_from_the_signature_or_are_counted():
    assert [line.formula for line in traces(lambda pixels, weight: pixels * weight, 1, 2).lines][:2] == ["pixels", "weight"]
    assert [line.formula for line in traces(lambda *x: x[0] * x[1], 1, 2).lines][:2] == ["x1", "x2"]
    assert [line.formula for line in traces(sigmoid, 1.0).lines][:1] == ["x1"]


def test_lines_without_a_path_have_zeros():
    table = traces(lambda a, b: (b * b, a * 3)[1], 1.0, 2.0, by=2)
    assert [(line.formula, float(line.adjoint), float(line.tangent)) for line in table.lines] == [
        ("a", 3, 0),
        ("b", 0, 1),
        ("v1 * v1", 0, 4),
        ("v0 * 3", 1, 0),
    ]


def test_shown():
    assert shown(2.0) == "2"
    assert shown(-0.9589242746) == "-0.95892"
    assert shown(np.array([1.0, -2.5])) == "[1 -2.5]"
    assert shown(np.ones((3, 3))) == "3×3, norm 3"
    assert shown(None) == shown("") == ""


def test_depth_is_the_longest_way():
    from cnn425.autodiff import Trace

    trace = Trace()
    x = trace.variable(1.0)
    y = x * x
    z = y + x
    z * y
    assert depths_of(trace.nodes) == [0, 1, 2, 3]


def test_errors():
    with pytest.raises(ValueError, match="by = 3: the function has inputs 1 to 2"):
        traces(slide, 2, 5, by=3)
