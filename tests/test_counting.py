"""The experiment on counting: against numbers printed elsewhere, and against torch's own counter of multiply-adds."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from cnn425 import nn
from cnn425.lab import models
from cnn425.lab.errors import LabError
from experiments.counting import chosen, count, main, slides, total


def test_the_slides(tmp_path):
    verdict = main(["--log-dir", str(tmp_path), "--model", "3-4-2"])
    assert verdict.holds
    assert verdict[1:8] == (6, 20, 26, 1_600_000_000, 4_000_000, 101, 2000)
    assert (verdict.model_parameters, verdict.model_multiply_adds) == (26, 20)


def test_torchs_layers_have_the_slides_numbers_too():
    assert {name: total(counts) for name, counts in slides("torch").items()} == {
        name: total(counts) for name, counts in slides("custom").items()
    }


@pytest.mark.parametrize("name", ["linear", "mlp", "conv"])
def test_multiply_adds_are_half_of_what_torchs_counter_finds(name):
    model = models.build(name, "torch", seed=0, size=(20, 24))
    with FlopCounterMode(display=False) as counter:
        model(torch.empty(1, 1, 20, 24))
    assert total(chosen(name, (20, 24), "custom")[1])[3] * 2 == counter.get_total_flops()


@pytest.mark.parametrize("name", ["smallest", "linear", "mlp", "local", "conv"])
def test_ours_and_torchs_layers_are_counted_alike_and_nothing_is_missed(name):
    ours, torchs = (chosen(name, (12, 8), layers)[1] for layers in ("custom", "torch"))
    assert total(ours) == total(torchs)
    model = models.build(name, "custom", 0, (12, 8), 3 if name == "smallest" else 10)
    assert total(ours)[2] == models.parameters(model)


def test_strides_groups_and_one_dimension():
    """5 positions x 6 outputs x (4 / 2 channels x 3 offsets); a local layer uses each weight once."""
    conv = nn.Conv1d(4, 6, 3, stride=2, groups=2, device="meta")
    assert total(count(conv, (4, 11))) == (30, 36, 42, 5 * 6 * 2 * 3)
    local = nn.LocallyConnected1d(4, 6, 11, 3, stride=2, device="meta")
    assert total(count(local, (4, 11))) == (30, 5 * 6 * 4 * 3, 5 * 6 * 4 * 3 + 30, 5 * 6 * 4 * 3)


@pytest.mark.parametrize(("name", "parameters", "work"), [("alexnet", 61_100_840, 714_188_480), ("resnet18", 11_689_512, None)])
def test_published_sizes(name, parameters, work):
    """AlexNet, 61.1 million parameters and 0.71 billion multiply-adds; ResNet-18, 11.7 million (torchvision's documentation)."""
    counts = total(chosen(name, None, "custom")[1])
    assert counts[2] == parameters
    assert work in (None, counts[3])


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--model", "3-0-2"], "every layer needs at least 1 unit"),
        (["--model", "no-such"], "--model is no-such; it must be one of smallest, linear, mlp, local, conv"),
        (["--size", "0", "5"], "--size is 0 5; an image has at least 1 pixel each way"),
        (["--size", "3", "5"], "--size is 3 5; conv halves the image twice, so it needs at least 4 pixels"),
        (["--model", "alexnet", "--size", "20", "20"], "--model alexnet cannot take images of 20x20 pixels"),
        (["--model", "vit_b_16"], "parameters outside of its layers"),
    ],
)
def test_bad_options_are_one_sentence(words, sentence):
    with pytest.raises(LabError, match=sentence):
        main(words)
