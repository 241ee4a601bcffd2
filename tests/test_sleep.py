"""Sharing every k steps: what is shared when, and how long most of the lead is kept."""

import pytest
import torch

from cnn425.lab.errors import LabError
from cnn425.lab.pictures import bars
from cnn425.nn import sharing
from experiments import sleep


@pytest.mark.parametrize(("kept", "longest"), [((1.0, 0.9, 0.6, 0.2), 10), ((1.0, 0.4, 0.9, 0.8), 1), ((0.0, 1.0, 1.0, 1.0), 0)])
def test_half_of_the_lead_must_be_kept_at_every_shorter_interval_too(kept, longest):
    assert sleep.longest((1, 3, 10, 30), kept) == longest


def test_filters_start_equal_and_come_apart_between_two_sharings(monkeypatch):
    """Only those that never share start apart; one step after a sharing the filters differ."""
    pictures, seen = bars(16, seed=0), {}

    def watching(model, pictures, steps, options, seed, watch, kind):
        first = sleep.local_layers(model)[0]
        for step in range(steps):
            watch(step)
            seen[step] = float(sharing(first).detach())
            with torch.no_grad():
                first.weight += torch.randn(first.weight.shape)
        watch(steps)
        seen[steps] = float(sharing(first).detach())

    monkeypatch.setattr(sleep, "fit", watching)
    for k, equal in ((2, {0, 2}), (3, {0, 3}), (None, set())):
        sleep.trained(k, sleep.SleepOptions(steps=4), pictures, seed=0)
        assert {step for step, apart in seen.items() if apart < 1e-5} == equal, "and none after the last step"


@pytest.mark.parametrize("every", [("3", "10"), ("1", "10", "3"), ("1", "1")])
def test_intervals_ascend_from_one(every):
    with pytest.raises(LabError, match=r"--every is \(.*\); ascending numbers are wanted, the first of them 1"):
        sleep.main(["--every", *every])


def test_weights_beyond_all_numbers_are_one_sentence(tmp_path):
    with pytest.raises(LabError, match=r"an --lr of 1e\+30 is too large: the weights have grown beyond all numbers"):
        sleep.main([*sleep.TINY, "--lr", "1e30", "--log-dir", str(tmp_path)])
