"""The experiment on the smallest network: its gradient by hand against pencil and torch, and what follows from the formula."""

import pytest
import torch

from cnn425.lab.errors import LabError
from cnn425.lab.models import build
from cnn425.lab.pictures import patterns
from experiments import smallest
from experiments.smallest import CENTRE, DARK, ROLES, SHIFTED, UNSEEN, SmallestOptions, gradient, learn, role


def pictures():
    images, labels = patterns().batch(slice(None), torch.float64)
    return images, labels


def test_at_zero_weights_the_gradient_is_written_out():
    """All three probabilities are 1/3: a pixel of one pattern pulls at its unit with (1/3 - 1) / 3 = -2/9 and at the others with 1/9."""
    images, labels = pictures()
    W, b = gradient(torch.zeros(3, 9, dtype=torch.float64), torch.zeros(3, dtype=torch.float64), images.flatten(1), labels)
    expected = torch.tensor([[-2, 1, 0, 1, 0, 1, 0, 1, -2], [1, -2, 0, 1, 0, 1, 0, -2, 1], [1, 1, 0, -2, 0, -2, 0, 1, 1]]) / 9.0
    torch.testing.assert_close(W, expected.double(), atol=1e-7, rtol=0)
    assert b.abs().max() < 1e-15


def test_by_hand_is_torch():
    x, labels = torch.randn(7, 9, dtype=torch.float64), torch.tensor([0, 2, 2, 1, 0, 2, 2])
    W, b = torch.randn(3, 9, dtype=torch.float64, requires_grad=True), torch.randn(3, dtype=torch.float64, requires_grad=True)
    expected = torch.autograd.grad(torch.nn.functional.cross_entropy(torch.nn.functional.linear(x, W, b), labels), (W, b))
    torch.testing.assert_close(gradient(W.detach(), b.detach(), x, labels), expected)


def test_what_follows_from_the_formula_holds_for_every_step():
    model = build("smallest", "custom", 3, size=(3, 3), classes=3).double()
    _, weights = learn(model, SmallestOptions(steps=20), *pictures())
    moved = torch.stack(weights) - weights[0]
    assert moved[:, :, DARK].abs().max() == 0 < moved[:, :, CENTRE].abs().max()
    assert moved.sum(1).abs().max() < 1e-14 < moved.abs().max()


def test_every_weight_has_a_role():
    roles = [role(o, p) for o in range(3) for p in range(9)]
    assert [roles.count(name) for name in ROLES] == [6, 12, 3, 6]


def test_a_moved_bar_shares_no_ink_with_itself():
    images, _ = pictures()
    for name, o in SHIFTED.items():
        assert not (smallest.drawn(UNSEEN[name]) * images[o, 0]).any()


@pytest.mark.parametrize(
    ("words", "sentence"), [(["--noise", "-1"], "--noise is -1.0; it must be at least 0"), (["--steps", "0"], "--steps is 0")]
)
def test_bad_options_are_one_sentence(words, sentence):
    with pytest.raises(LabError, match=sentence):
        smallest.main(words)


def test_the_film_ends_with_the_last_step(tmp_path):
    assert smallest.main(["--film", "--steps", "3", "--log-dir", str(tmp_path)]) == (True, 4)
    assert (tmp_path / "learning.gif").read_bytes().startswith(b"GIF89a")
