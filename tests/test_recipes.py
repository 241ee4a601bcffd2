"""Recipes: words become layers, and a run that is killed between two epochs ends with the same bits."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import cnn425.nn as ours
from cnn425.lab import recipes
from cnn425.lab.models import parameters
from cnn425.lab.pictures import pattern_images
from cnn425.lab.recipes import Recipe, Teacher, build, multiply_adds, train

SMALL = Recipe("conv 4 3, pool, norm unscaled, relu, depthwise 3 stride 2, norm, relu, dropout 0.1, mean, linear 10", epochs=3, elastic=0.3)
EVERYTHING = (
    "conv 4 3 bias, pool, norm, relu, local 3 5 stride 2, blocks 4 3 share 7, lowrank 4 3 rank 2, "
    "depthwise 3 valid, mean, linear 6, linear 10"
)


def test_words_are_layers():
    model = build(Recipe(EVERYTHING))
    kinds = [type(layer) for layer in model][1:]
    named = (ours.Conv2d, ours.MaxPool2d, nn.BatchNorm2d, ours.ReLU, ours.LocallyConnected2d, ours.LocallyConnected2d, ours.LowRankLocal2d)
    assert kinds == [*named, ours.Conv2d, ours.AvgPool2d, nn.Flatten, ours.Linear, ours.Linear]
    assert model(torch.rand(2, 1, 28, 28)).shape == (2, 10)
    assert model[1].bias is not None
    assert model[5].bias is None
    assert tuple(model[5].sets) == (7, 7)
    assert tuple(model[6].sets) == (1, 1)


def test_a_cropped_network_never_sees_the_edge():
    model = build(Recipe("crop 4, conv 4 3, pool, relu, linear 10"))
    x = torch.rand(2, 1, 28, 28)
    edge = x.clone()
    edge[..., 4:24, 4:24] = 0
    assert torch.equal(model(x), model(x - edge))
    assert model[-1].in_features == 4 * 10 * 10
    with pytest.raises(AssertionError):
        torch.testing.assert_close(model(x), model(x.flip(-1)))


def test_a_norm_without_scale_has_a_shift_alone():
    """A scale before a ReLU can be moved behind it, into the next layer: the same function, fewer weights."""
    scaled, unscaled = (build(Recipe(f"conv 4 3, {norm}, relu, mean, linear 10")) for norm in ("norm", "norm unscaled"))
    x, scale = torch.rand(2, 1, 28, 28), torch.tensor([0.5, 1.0, 2.0, 4.0])
    with torch.no_grad():
        scaled[2].weight.copy_(scale)
        unscaled[-1].weight.mul_(scale)
    torch.testing.assert_close(scaled(x), unscaled(x))
    assert parameters(scaled) - parameters(unscaled) == 4


def test_torch_has_the_same_initial_weights():
    for words in ("conv 4 3, norm, relu, pool, mean, linear 10", "local 2 5 stride 4, mean, linear 10"):
        one, other = (build(Recipe(words), layers, 3) for layers in ("custom", "torch"))
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
        x = torch.rand(2, 1, 28, 28)
        torch.testing.assert_close(one(x), other(x), atol=1e-5, rtol=1e-5)


def test_multiply_adds_by_pencil():
    """28*28 positions * 4 outputs * 9; a window per channel at 14*14; twice as many and a coefficient each at rank 2; 4 * 10."""
    assert multiply_adds(build(Recipe("conv 4 3, pool, depthwise 3, mean, linear 10"))) == 784 * 36 + 196 * 36 + 40
    assert multiply_adds(build(Recipe("lowrank 4 3 rank 2, mean, linear 10"))) == 784 * 4 * (9 + 1) * 2 + 40
    assert multiply_adds(build(Recipe("local 4 3, mean, linear 10"))) == 784 * 36 + 40


class KilledError(Exception):
    """In place of a signal."""


@pytest.mark.parametrize("layers", ["custom", "torch"])
def test_a_run_that_is_killed_ends_with_the_same_bits(layers, tmp_path):
    pictures = pattern_images(300)

    def kill(run):
        if len(run.losses) == 2:
            raise KilledError

    whole = train(SMALL, pictures, layers, 5)
    with pytest.raises(KilledError):
        train(SMALL, pictures, layers, 5, tmp_path, kill)
    seen = []
    resumed = train(SMALL, pictures, layers, 5, tmp_path, lambda run: seen.append(len(run.losses)))
    assert seen == [3]
    assert resumed.losses == whole.losses
    state = whole.model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in resumed.model.state_dict().items())


@pytest.mark.parametrize("killed_after", range(1, 5))
def test_a_run_with_a_teacher_that_is_killed_loses_no_epoch(killed_after, tmp_path, monkeypatch):
    """Two epochs of the teacher, then two of the student: a checkpoint each."""
    pictures, saved = pattern_images(200), []
    recipe = replace(SMALL, epochs=2, teacher=Teacher(Recipe("conv 4 3, relu, mean, linear 10", epochs=2)))
    whole, save = train(recipe, pictures, seed=5), recipes.checkpoint.save

    def save_and_die(*arguments):
        save(*arguments)
        saved.append(arguments[1])
        if len(saved) == killed_after:
            raise KilledError

    monkeypatch.setattr(recipes.checkpoint, "save", save_and_die)
    with pytest.raises(KilledError):
        train(recipe, pictures, seed=5, folder=tmp_path)
    resumed = train(recipe, pictures, seed=5, folder=tmp_path)
    assert saved == [1, 2, 3, 4]
    assert resumed.losses == whole.losses
    state = whole.model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in resumed.model.state_dict().items())


def test_a_student_learns_what_its_teacher_says():
    """The loss is the cross-entropy of `share * softmax(what it says / temperature) + (1 - share) * label`."""
    pictures, words = pattern_images(100), "conv 4 3, relu, mean, linear 10"
    first, still = Recipe(words, epochs=2), {"epochs": 1, "batch_size": 100, "rotation": 0, "shift": 0, "scale": 0, "shear": 0}
    teacher = Teacher(first, temperature=3, share=0.7)
    learnt = train(replace(first, teacher=teacher, **still), pictures, seed=5)
    images, labels = pictures.batch(slice(None))
    taught = train(first, pictures, seed=5).model
    with torch.no_grad():
        said = taught(images)
        targets = 0.7 * (said / 3).softmax(1) + 0.3 * nn.functional.one_hot(labels, 10)
        expected = nn.functional.cross_entropy(build(first, seed=5)(images), targets)
    assert learnt.losses == [pytest.approx(expected.item(), rel=1e-5)]
    run = recipes.Run(replace(first, teacher=teacher), "custom", 5, 1, 28)
    run.learn_from(teacher, recipes.Learnt(taught, [], 100.0, 200.0), pictures)
    assert (run.seconds, run.processor_seconds) == (100, 200)  # the teacher's time belongs to the run
    assert learnt.losses != pytest.approx(train(replace(first, **still), pictures, seed=5).losses, rel=1e-3)


def test_a_recipe_without_a_teacher_has_the_digest_it_always_had():
    """Results and checkpoints of runs before there were teachers are still found."""
    assert "teacher" not in SMALL.facts
    assert replace(SMALL, teacher=Teacher(SMALL)).facts["teacher"]["recipe"]["network"] == SMALL.network


def test_the_checkpoint_of_another_run_is_left_alone(tmp_path):
    pictures = pattern_images(200)
    train(SMALL, pictures, seed=1, folder=tmp_path)
    seen = []
    train(SMALL, pictures, seed=2, folder=tmp_path, after=lambda run: seen.append(len(run.losses)))
    assert seen == [1, 2, 3]


def test_it_learns_and_the_random_state_outside_stays():
    pictures = pattern_images(600)
    before = torch.get_rng_state()
    learnt = train(
        Recipe("conv 6 5 stride 2, norm, relu, conv 6 3, pool, norm, relu, linear 10", epochs=4, batch_size=32, average=0), pictures
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert learnt.losses[-1] < 0.5 * learnt.losses[0]
    assert recipes.accuracy(learnt.model, pictures.images, pictures.labels) > 0.8
    assert not learnt.model.training
    assert 0 < parameters(learnt.model) < 5000
