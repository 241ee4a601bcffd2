"""The verdict of experiments/derivatives.py: five ways agree, the two error terms show, one pass suffices."""

import numpy as np
import pytest
import torch

from cnn425.autodiff import reverse
from experiments import derivatives
from experiments.derivatives import TORCH, Way, by_layers, five_ways, judged, network, slide, start


@pytest.fixture(scope="module")
def verdict(tmp_path_factory):
    folder = tmp_path_factory.mktemp("derivatives")
    return derivatives.main(["--largest", "2000", "--log-dir", str(folder)]), folder


def test_the_claim_holds(verdict):
    found, folder = verdict
    assert found.holds
    assert found.disagreement < 1e-14
    assert found.numerical_error < 1e-8
    assert found.forward_slope == pytest.approx(1, abs=0.02)
    assert found.central_slope == pytest.approx(2, abs=0.02)
    assert 1e-6 < found.best_step < 1e-4, "eps ** (1/3) is the best step of central differences"
    assert found.reverse_seconds < found.forward_seconds
    assert {p.name for p in folder.iterdir()} >= {"derivatives.png", "slide_graph.svg", "network_graph.png", "verdict.json", "options.json"}


@pytest.mark.parametrize("seed", [0, -1, 2**32 - 1])
def test_every_seed_that_an_option_may_be_gives_a_point(seed):
    assert start(seed) == start(seed)
    assert len(start(seed)) == 26


def test_the_network_has_26_parameters_and_the_gradient_of_our_layers_and_of_torch():
    at = start(3)
    assert len(at) == 26
    leaves = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in at]
    expected = [float(g) for g in torch.autograd.grad(network(*leaves, library=TORCH), leaves)]
    assert reverse.gradient(network, *at) == pytest.approx(expected, rel=1e-12, abs=1e-15)
    for layers in ("custom", "torch"):
        assert by_layers(layers, at) == pytest.approx(expected, rel=1e-12, abs=1e-15)
    with pytest.raises(StopIteration):
        network(*at[:25])


def test_passes_and_operations_are_counted():
    ways = five_ways(slide, (2.0, 5.0))
    assert [way.passes for way in ways.values()] == ["4 evaluations", "2 formulas", "2 forward", "1 backward", "1 backward"]
    assert ways["numerical"].operations == 4 * 5
    assert ways["reverse"].operations < ways["numerical"].operations


ERRORS = derivatives.errors_against_step()
FAST = ([100], {"numerical": [(3.0, False)], "forward": [(2.0, False)], "reverse": [(1.0, True)]})
SLOW = ([100], {"numerical": [(3.0, False)], "forward": [(2.0, False)], "reverse": [(5.0, True)]})
WRONG_SLOPE = {"forward": ERRORS["forward"], "central": ERRORS["forward"]}


def ways(reverse=5.5, numerical=5.5 + 1e-9):
    return [({"numerical": Way([numerical], "", 1, 1.0), "reverse": Way([reverse], "", 1, 1.0)}, [5.5])]


@pytest.mark.parametrize(
    ("measured", "holds"),
    [
        pytest.param((ways(), ERRORS, FAST), True, id="as it should be"),
        pytest.param((ways(reverse=5.5 + 1e-10), ERRORS, FAST), False, id="one way wrong in the eleventh digit"),
        pytest.param((ways(reverse=float("nan")), ERRORS, FAST), False, id="one way not a number"),
        pytest.param((ways(numerical=5.6), ERRORS, FAST), False, id="differences off"),
        pytest.param((ways(), WRONG_SLOPE, FAST), False, id="central no better than forward"),
        pytest.param((ways(), ERRORS, SLOW), False, id="reverse mode slower"),
    ],
)
def test_the_verdict_can_fail(measured, holds):
    assert judged(*measured).holds is holds


def test_errors_fall_and_rise_again():
    steps, central = ERRORS["central"]
    assert np.argmin(central) not in (0, len(steps) - 1)
    assert central[-1] > 1e4 * min(central)


def test_bad_options_are_one_sentence(capsys):
    with pytest.raises(Exception, match="--largest is 5; it must be at least 100"):
        derivatives.main(["--largest", "5"])
