"""The two races, on few pictures: every lap is told its recipe, layers and seed, and both ways to batches hand out the same pictures."""

import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from cnn425.lab.errors import LabError
from cnn425.lab.pictures import pattern_images
from cnn425.lab.recipes import DEVIATION, MEAN

PATH = Path(__file__).parents[1] / "scripts/race.py"
spec = importlib.util.spec_from_file_location("race", PATH)
race = importlib.util.module_from_spec(spec)
sys.modules["race"] = race  # dataclasses look their module up
spec.loader.exec_module(race)

OPTIONS = race.RaceOptions(laps=2, examples=128, json=True)


@pytest.fixture
def drawn(monkeypatch):
    """Drawn patterns in the place of digits, as bytes."""
    pictures = pattern_images(128)
    pictures = pictures._replace(images=(pictures.images * 255).to(torch.uint8))
    monkeypatch.setattr(race.digits, "load", lambda *words: (pictures, pictures))
    return pictures


def test_both_ways_hand_out_every_picture(drawn):
    ours, theirs = (torch.cat([images for images, _ in way(drawn)]) for way in (race.tensors, race.loader))
    sums, normalised = ours.sum((1, 2, 3)).sort()[0], theirs.sum((1, 2, 3)).sort()[0]
    torch.testing.assert_close((sums - 784 * MEAN) / DEVIATION, normalised, rtol=1e-3, atol=1e-2)
    labels = [torch.cat([labels for _, labels in way(drawn)]).bincount().tolist() for way in (race.tensors, race.loader)]
    assert labels[0] == labels[1]


def test_everything_is_measured(drawn, monkeypatch):
    told = []

    def run(command, **_):
        told.append(json.loads(command[-1]))
        return SimpleNamespace(returncode=0, stdout=str(race.main(race.RaceOptions(examples=128, lap=command[-1]))))

    monkeypatch.setattr(race.subprocess, "run", run)
    found = race.main(OPTIONS)
    assert [(words["layers"], words["seed"]) for words in told] == [("custom", 0), ("custom", 1), ("torch", 0), ("torch", 1)]
    assert found["sprint, custom layers"]["mean seconds"] > 0
    assert 0 <= found["sprint, torch layers"]["mean accuracy"] <= 1
    assert sum(name.startswith("epoch of pytorch/examples") for name in found) == 3


def test_the_example_stops_at_its_last_epoch_or_at_99_percent(drawn, monkeypatch):
    arguments = "torch", race.loader, drawn, drawn, 3
    assert len(race.epochs(*arguments)) == 3
    monkeypatch.setattr(race, "AIM", 0.0)
    ((seconds, share),) = race.epochs(*arguments)
    assert seconds > 0
    assert 0 <= share <= 1


def test_numbers_that_mean_nothing_are_one_sentence():
    with pytest.raises(LabError, match="--epochs is -1; it must be at least 0"):
        race.main(race.RaceOptions(epochs=-1))


def test_a_lap_understands_what_it_is_told():
    assert race.tyro.cli(race.RaceOptions, args=["--lap", "{}", "--examples", "7"]).lap == "{}"
