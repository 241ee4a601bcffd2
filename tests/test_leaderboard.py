"""The leaderboard: sizes as promised, the test set out of reach while tuning, results that are kept and never mixed."""

import csv
import json

import numpy as np
import pytest
import torch

from cnn425.lab import digits, recipes
from cnn425.lab.board import scalars
from cnn425.lab.errors import LabError
from cnn425.lab.models import parameters
from cnn425.lab.pictures import Pictures
from experiments import leaderboard
from experiments.leaderboard import ABLATED, ENTRIES, HELD_OUT, LeaderboardOptions, asked, data

QUICK = ["--quick", "--recipes", "golf"]


@pytest.mark.parametrize("name", ENTRIES)
def test_a_recipe_is_as_small_as_it_says(name):
    recipe, most, _ = ENTRIES[name]
    model = recipes.build(recipe)
    assert most is None or parameters(model) <= most
    assert model.eval()(torch.rand(2, 1, 28, 28)).shape == (2, 10)


def test_the_feature_layers_of_local_are_all_local():
    kinds = {type(layer).__name__ for layer in recipes.build(ENTRIES["local"].recipe)}
    assert "LocallyConnected2d" in kinds
    assert "Conv2d" not in kinds


def test_an_ablation_changes_one_thing():
    as_it_is, *others = asked(LeaderboardOptions(ablation=True)).values()
    assert len(others) == len(ABLATED) - 1
    assert as_it_is not in others


def test_tuning_never_looks_at_the_test_set(monkeypatch):
    images = torch.arange(60_000).view(-1, 1, 1, 1)
    training, test = Pictures(images, images.flatten(), digits.DIGITS), Pictures(-images[:10], -images[:10].flatten(), digits.DIGITS)
    monkeypatch.setattr(digits, "load", lambda *words: (training, test))
    for options in (LeaderboardOptions(tune=True), LeaderboardOptions(ablation=True)):
        learnt, measured, where = data(options)
        assert where == "held-out training digits"
        assert len(measured.labels) == HELD_OUT
        assert sorted(torch.cat([learnt.labels, measured.labels]).tolist()) == list(range(60_000))
    assert data(LeaderboardOptions()) == (training, test, "test digits")


def test_what_is_there_is_not_trained_again_and_all_seeds_are_shown(tmp_path, capsys, monkeypatch):
    words = [*QUICK, "--log-dir", str(tmp_path)]
    first = leaderboard.main([*words, "--seeds", "1"])
    monkeypatch.setattr(recipes, "train", None)
    assert leaderboard.main([*words, "--seeds", "1"]) == first
    monkeypatch.undo()
    with pytest.raises(LabError, match=r"there are no results of golf in .*; say --seeds 1, or more"):  # of another kind of run
        leaderboard.main([*words, "--seeds", "0", "--layers", "torch"])
    assert leaderboard.main([*words, "--seeds", "1", "--seed", "7"]).runs == 2
    rows = list(csv.DictReader((tmp_path / "results.csv").read_text().splitlines()))
    assert [row["seed"] for row in rows] == ["0", "7"]
    found = {tag: value for tag, _, value in scalars(tmp_path)}
    losses = [json.loads(path.read_text())["losses"][-1] for path in tmp_path.glob("golf-*.json")]
    assert found["spread/loss/golf/lower"] == pytest.approx(min(losses))
    assert found["spread/loss/golf/mean"] == pytest.approx(sum(losses) / 2)
    assert not list(tmp_path.glob("checkpoint-*")), "of a seed that is done"


def test_a_killed_seed_goes_on_and_nothing_else_is_touched(tmp_path, monkeypatch):
    """Killed between the last epoch and the result's file: the epoch is not trained again."""
    (tmp_path / "run").mkdir()
    words = [*QUICK, "--seeds", "1", "--log-dir", str(tmp_path / "run")]
    monkeypatch.setattr(recipes, "multiply_adds", lambda model: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        leaderboard.main(words)
    monkeypatch.undo()
    (tmp_path / "run" / "golf-0-mine.json").write_text("{}")
    monkeypatch.setattr(recipes.Run, "epoch", None)
    assert leaderboard.main(words).runs == 1
    assert (tmp_path / "run" / "golf-0-mine.json").read_text() == "{}"


def test_a_committee_says_the_mean_of_what_its_members_say(tmp_path):
    words = ["--quick", "--recipes", "best", "--log-dir", str(tmp_path)]
    assert list(leaderboard.main([*words, "--seeds", "3"]).accuracy) == ["best"]
    verdict = leaderboard.main([*words, "--seeds", "4"])
    said = [torch.from_numpy(np.load(path)[0]).float().softmax(1) for path in tmp_path.glob("best-*.npy")]
    labels = data(LeaderboardOptions(quick=True)).measured.labels
    assert verdict.accuracy["4 x best"] == pytest.approx(float((sum(said).argmax(1) == labels).float().mean()))
    assert verdict.runs == 4
    (row,) = [row for row in csv.DictReader((tmp_path / "results.csv").read_text().splitlines()) if row["name"] == "4 x best"]
    assert int(row["parameters"]) == 4 * parameters(recipes.build(ENTRIES["best"].recipe))
    next(tmp_path.glob("best-*.npy")).unlink()
    assert "4 x best" not in leaderboard.main([*words, "--seeds", "0"]).accuracy, "what one of them says is gone"


def test_the_habit_of_others_is_kept_apart(tmp_path, capsys):
    leaderboard.main([*QUICK, "--seeds", "1", "--habit", "--log-dir", str(tmp_path)])
    assert "if the best epoch on the test set were chosen, which is no test" in capsys.readouterr().out


def test_an_unknown_recipe_is_one_sentence():
    with pytest.raises(LabError, match="there is no recipe huge; there are golf"):
        leaderboard.main(["--recipes", "huge"])
