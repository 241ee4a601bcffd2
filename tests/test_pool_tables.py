"""cnn425/algorithms/pool_tables.py: the general way's results, whatever the windows, and traces that serve images of any size."""

import pytest
import torch

from cnn425 import nn
from cnn425.agreement import compare
from cnn425.algorithms import pool, pool_tables
from cnn425.algorithms.pool import Bins, Pooling
from cnn425.nn import functional as F
from cnn425.windows import Geometry

WINDOWS = {
    "tiles": Geometry((2, 3), (2, 3), ((0, 0), (0, 0)), (1, 1)),
    "overlapping": Geometry((3, 2), (2, 1), ((1, 1), (1, 1)), (1, 1)),
    "overhanging": Geometry((3, 2), (2, 2), ((1, 1), (0, 0)), (1, 1), True),
    "dilated, some without pixels": Geometry((3, 3), (1, 2), ((1, 1), (1, 1)), (3, 5)),
    "adaptive": Bins((3, 5)),
    "adaptive, more windows than pixels": Bins((9, 11)),
    "everything": Bins((1, 1)),
}


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("name", WINDOWS)
def test_results_are_those_of_the_general_way(name, last):
    pooling = Pooling(WINDOWS[name], last)
    x = torch.randint(-2, 3, (2, 3, 7, 8)).float()
    special = torch.rand(2, 2, 3, 7, 8) < 0.1
    for t in (x, x.where(~special[0], -torch.inf).where(~special[1], torch.nan), x.int()):
        for mine, expected in zip(pool_tables.winners(t, pooling), pool.winners(t, pooling), strict=True):
            torch.testing.assert_close(mine, expected, rtol=0, atol=0, equal_nan=True)
            assert mine.stride() == expected.stride()
    sums = pool.total(x, pooling)
    torch.testing.assert_close(pool_tables.total(x, pooling), sums, rtol=0, atol=0)
    torch.testing.assert_close(pool_tables.spread(sums, pooling, (7, 8)), pool.spread(sums, pooling, (7, 8)), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["adaptive_avg_pool1d", "adaptive_max_pool1d", "avg_pool1d", "max_pool1d"])
@pytest.mark.parametrize("windows", [9_999, 100_001])
def test_the_cells_of_many_or_long_windows_are_not_visited_one_by_one(name, windows, monkeypatch):
    def refused(*_):
        raise AssertionError("a visit for every cell")

    monkeypatch.setattr(pool, "uneven", refused)
    monkeypatch.setattr(pool, "even", refused)
    x = torch.randn(1, 1, 1_000_003, dtype=torch.float64)
    assert compare(*(lambda x, f=f: getattr(f, name)(x, windows) for f in (F, torch.nn.functional)), [x])
    with torch.no_grad():
        torch.testing.assert_close(getattr(F, name)(x, windows), getattr(torch.nn.functional, name)(x, windows))


LAYERS = {
    "conv": lambda library, d: getattr(library, f"Conv{d}d")(3, 4, 3, stride=2),
    "conv, padded": lambda library, d: getattr(library, f"Conv{d}d")(3, 4, 3, padding=1),
    "max": lambda library, d: getattr(library, f"MaxPool{d}d")(2),
    "max, padded": lambda library, d: getattr(library, f"MaxPool{d}d")(3, 2, 1),
    "max, overhanging": lambda library, d: getattr(library, f"MaxPool{d}d")(3, 2, ceil_mode=True),
    "average": lambda library, d: getattr(library, f"AvgPool{d}d")(2),
    "average, padded": lambda library, d: getattr(library, f"AvgPool{d}d")(3, 2, 1, count_include_pad=False),
    "adaptive max": lambda library, d: getattr(library, f"AdaptiveMaxPool{d}d")(3),
    "adaptive average": lambda library, d: getattr(library, f"AdaptiveAvgPool{d}d")(3),
    "mean": lambda library, d: getattr(library, f"AdaptiveAvgPool{d}d")(1),
    "power average": lambda library, d: getattr(library, f"LPPool{d}d")(2, 2),
}


def layers(name, d):
    theirs = LAYERS[name](torch.nn, d)
    ours = LAYERS[name](nn, d)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


@pytest.mark.filterwarnings("ignore:.*torch.jit.(trace|script).* is deprecated", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("d", [1, 2, 3])
@pytest.mark.parametrize("name", LAYERS)
def test_a_trace_serves_images_of_other_sizes(name, d):
    ours, theirs = layers(name, d)
    traced = torch.jit.trace(ours, torch.randn(2, 3, *(8, 9, 7)[:d]), check_trace=False)
    assert compare(traced, theirs, [torch.randn(1, 3, *(11, 8, 9)[:d])])


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("name", [name for name in LAYERS if name != "max, overhanging"])  # torch cannot, either
def test_an_exported_layer_serves_images_of_other_sizes(name, strict):
    ours, theirs = layers(name, 2)
    sizes = {0: torch.export.Dim("n"), 2: torch.export.Dim("h", min=6), 3: torch.export.Dim("w", min=6)}
    program = torch.export.export(ours, (torch.randn(2, 3, 8, 9),), dynamic_shapes=(sizes,), strict=strict)
    x = torch.randn(4, 3, 11, 7)
    torch.testing.assert_close(program.module()(x), theirs(x))
