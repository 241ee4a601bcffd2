import pytest
import torch

from cnn425.lab.errors import LabError
from cnn425.lab.models import parameters
from experiments import shift


def test_only_the_convolution_carries_over(tmp_path):
    verdict = shift.main(["--epochs", "6", "--examples", "1200", "--test-examples", "200", "--log-dir", str(tmp_path)])
    assert verdict.holds, verdict
    assert verdict.convolution.parameters < verdict.locally_connected.parameters < verdict.fully_connected.parameters
    assert (tmp_path / "shift.png").stat().st_size > 10_000


@pytest.mark.parametrize("words", [("--examples", "0"), ("--test-examples", "-1"), ("--noise", "-0.1"), ("--noise", "nan")], ids=str)
def test_numbers_that_mean_nothing_are_refused(words):
    with pytest.raises(LabError, match=rf"^{words[0]} is {words[1]}; it must be at least"):
        shift.main(words)


def test_first_layers_have_the_lectures_counts():
    """16x16 pixels, 8 channels, 5x5 windows: 256 * 2048, 25 * 2048 and 25 * 8 weights, and their biases."""
    counts = [sum(p.numel() for p in shift.figures.first_layer(shift.network(kind, "custom", 0)).parameters()) for kind in shift.KINDS]
    assert counts[0] == 256 * 2048 + 2048
    assert counts[1] in (25 * 2048 + 2048, 25 * 2048 + 8)
    assert counts[2] == 25 * 8 + 8


@pytest.mark.parametrize("kind", shift.KINDS)
def test_custom_and_torch_layers_start_alike_and_agree(kind):
    ours, theirs = shift.network(kind, "custom", 3), shift.network(kind, "torch", 3)
    assert parameters(ours) == parameters(theirs)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b)
    images = torch.rand(2, 1, 16, 16)
    torch.testing.assert_close(ours(images), theirs(images))


def test_a_kind_of_bar_that_was_not_drawn_has_no_picture(tmp_path):
    shift.main(["--examples", "3", "--test-examples", "1", "--epochs", "1", "--log-dir", str(tmp_path)])
    assert (tmp_path / "shift.png").exists()
