"""The picture of a graph: a place for every node, no arrow behind a box, every number written."""

import numpy as np
import pytest

from cnn425.autodiff import ln, sin
from cnn425.autodiff.drawing import columns_of, draw, layout
from cnn425.autodiff.traces import traces


def slide(x1, x2):
    return ln(x1) + x1 * x2 - sin(x2)


@pytest.mark.parametrize("kind", ["svg", "png"])
def test_the_slide_graph_can_be_saved(tmp_path, kind):
    path = tmp_path / f"graph.{kind}"
    draw(traces(slide, 2, 5)).savefig(path)
    assert path.stat().st_size > 10_000


def test_the_picture_says_what_the_table_says():
    texts = [t.get_text() for t in draw(traces(slide, 2, 5)).axes[0].texts]
    for words in ("v6  -", "11.652", "adjoint 5.5", "adjoint 1.7163", "tangent 0.5", "v4  sin"):
        assert words in texts


def test_every_box_and_every_passing_arrow_has_a_place_of_its_own():
    lines = traces(lambda x, y: sin(sin(sin(x))) * x + y * (x * y), 2.0, 3.0).lines
    places = layout(lines)
    columns = columns_of(lines)
    assert len(set(places.values())) == len(places)
    for line in lines:
        for source in line.sources:
            assert columns[source] < columns[line.name]
            assert all((source, c) in places for c in range(columns[source], columns[line.name]))


def test_a_weight_waits_for_its_layer():
    def two_layers(x, W, V):
        return (V @ sin(W @ x)).sum()

    lines = traces(two_layers, np.ones(2), np.eye(2), np.eye(2)).lines
    assert [columns_of(lines)[name] for name in ("v0", "v1", "v2")] == [0, 0, 2]


def test_an_input_that_nothing_reads_is_drawn():
    draw(traces(lambda a, b: a * 2, 1.0, 2.0))


def test_too_many_nodes_are_refused():
    def long(x):
        for _ in range(300):
            x = sin(x)
        return x

    with pytest.raises(ValueError, match="a picture of 301 nodes is not readable, at most 200 are drawn"):
        draw(traces(long, 1.0))
