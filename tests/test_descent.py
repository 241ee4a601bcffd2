"""The experiment on gradient descent: the rule by pencil, the landscape against the loss itself, the limit of the step size."""

import pytest
import torch

from cnn425.lab.errors import LabError
from experiments import descent
from experiments.descent import DescentOptions, Landscape, Path, cost, descent_step, reached, rule_difference


def landscape(**options):
    return Landscape(DescentOptions(**{"examples": 400, **options}))


def test_one_step_with_the_answer_written_out():
    """One example (3, 1) at w = -2, b = 2: answer -4, error -5, gradient 2 * -5 * (3, 1) = (-30, -10)."""
    unit = landscape().model()
    descent_step(unit, torch.full((1, 1), 3.0).double(), torch.ones(1, 1).double(), lr=0.1)
    assert [p.item() for p in unit.parameters()] == pytest.approx([1.0, 3.0])


def test_by_hand_is_sgd():
    assert rule_difference(landscape(), 0.02) < 1e-15


def test_the_parabola_is_the_loss():
    data = landscape()
    places = torch.randn(5, 2, dtype=torch.float64)
    losses = torch.stack([(w * data.x + b - data.y).square().mean() for w, b in [data.best, *places]])
    torch.testing.assert_close(data.excess(places), losses[1:] - losses[0])


@pytest.mark.parametrize(("share", "converges"), [(0.97, True), (1.03, False)])
def test_the_limit_of_the_step_size(share, converges):
    data = landscape()
    limit = 2 / torch.linalg.eigvalsh(data.curvature)[-1].item()
    excess = data.excess(data.descend(share * limit, 300, 400).places)
    assert (excess[-1] < 1e-3 * excess[0]) == converges
    assert (excess[-1] > 1e3 * excess[0]) != converges


def test_examples_are_counted_to_the_first_place_near_enough():
    data = landscape()
    start = torch.tensor(descent.START).double()
    near = data.best + 0.05 * (start - data.best)
    assert reached(data, Path(torch.stack([start, start, near, start]), batch=7)) == 14
    assert reached(data, Path(torch.stack([start, start]), batch=7)) == 7


def test_noise_falls_with_the_root_of_the_batch():
    data = landscape(examples=20000)
    assert cost(data, 4, 400)[1] / cost(data, 400, 400)[1] == pytest.approx(10, rel=0.2)


@pytest.mark.parametrize(("words", "sentence"), [(["--batch", "0"], "--batch is 0"), (["--lr", "3"], "lr of 3 is too large")])
def test_bad_options_are_one_sentence(words, sentence, tmp_path):
    with pytest.raises(LabError, match=sentence):
        descent.main([*words, "--examples", "100", "--log-dir", str(tmp_path)])
