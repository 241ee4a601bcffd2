"""The verdict of experiments/derivative_costs.py: formulas swell, graphs do not."""

import pytest

from experiments import derivative_costs
from experiments.derivative_costs import CostVerdict, by_scalars, depth, judged, peak_bytes, same_gradients, swell


@pytest.fixture(scope="module")
def verdict(tmp_path_factory):
    folder = tmp_path_factory.mktemp("costs")
    options = ["--nodes", "30000", "--steps", "10", "--width", "16", "--log-dir", str(folder)]
    return derivative_costs.main(options), folder


def test_the_claim_holds(verdict):
    found, folder = verdict
    assert isinstance(found, CostVerdict)
    assert found.holds
    assert found.swell_written > found.swell_simplified > 2**10 * 10 > 100 > found.swell_shared
    assert found.memory_exponent == pytest.approx(1, abs=0.05)
    assert found.time_exponent == pytest.approx(1, abs=0.5)
    assert found.bytes_per_node < 1000
    assert found.largest_disagreement < 1e-14
    assert found.jacobian_bytes > 5 * found.product_bytes
    assert {p.name for p in folder.iterdir()} >= {"derivative_costs.png", "verdict.json"}


def test_the_shared_formula_is_forward_mode():
    found = swell(8)
    assert found["written out"][0] > found["simplified"][0] == found["shared"][0]
    assert all(abs(a - b) <= 1 for a, b in zip(found["shared"], found["forward mode"], strict=True))


def test_memory_is_measured_where_it_is_affordable():
    nodes, seconds, sizes = depth(5000, 500)
    assert (nodes[-1], len(seconds), len(sizes)) == (5000, 5, 3)
    assert sizes == sorted(sizes)


def test_peak_counts_what_is_given_back_too():
    assert peak_bytes(lambda: bytearray(1_000_000) and None) == pytest.approx(1e6, rel=0.01)


SWOLLEN = swell(8)
CHAIN = ([100, 1000], [1.0, 10.0], [1e4, 1e5])
GRAINS = ([8], {}, {"Jacobian of W x by W": [1e6], "product by W": [1e4]})


@pytest.mark.parametrize(
    ("measured", "holds"),
    [
        pytest.param((SWOLLEN, CHAIN, GRAINS, 0.0), True, id="as it should be"),
        pytest.param(({**SWOLLEN, "written out": SWOLLEN["shared"]}, CHAIN, GRAINS, 0.0), False, id="no swell"),
        pytest.param(({**SWOLLEN, "shared": SWOLLEN["simplified"]}, CHAIN, GRAINS, 0.0), False, id="sharing that shares nothing"),
        pytest.param((SWOLLEN, ([100, 1000], [1.0, 10.0], [1e4, 1e6]), GRAINS, 0.0), False, id="memory grows with the square"),
        pytest.param((SWOLLEN, CHAIN, GRAINS, 1e-9), False, id="grains disagree"),
    ],
)
def test_the_verdict_can_fail(measured, holds):
    assert judged(*measured).holds is holds


def test_disagreement_is_seen(monkeypatch):
    assert same_gradients(4) < 1e-14
    monkeypatch.setitem(derivative_costs.GRAINS, "vector nodes", lambda W, x, b: by_scalars(W, x, b) * 1.001)
    assert same_gradients(4) == pytest.approx(1e-3, rel=1e-6)
