"""Unsharing changes nothing at first; what the experiments with many short runs draw from."""

import pytest
import torch

from cnn425.lab.errors import LabError
from cnn425.lab.pictures import Pictures, bars
from experiments import ladder, relaxing, samples


def test_an_unshared_network_computes_the_same_with_filters_of_its_own():
    model = samples.network("convolution", "custom", 0, 10)
    images = torch.randn(3, 1, 16, 16)
    free = relaxing.unshared(model, "custom")
    torch.testing.assert_close(free(images), model(images))
    assert free[0].weight.shape == (16, 16, 8, 1, 5, 5)
    assert free[3].weight.shape == (8, 8, 16, 8, 5, 5)


def test_distance_is_zero_for_copies_and_one_for_a_filter_doubled_and_one_deleted():
    model = samples.network("convolution", "custom", 0, 10)
    assert relaxing.distance(model) == 0
    free = relaxing.unshared(model, "custom")
    assert relaxing.distance(free) == pytest.approx(0, abs=1e-6)
    with torch.no_grad():
        for layer in (free[0], free[3]):  # half the positions twice the filter, half of them nothing: the mean stays
            layer.weight[::2] *= 2
            layer.weight[1::2] *= 0
    assert relaxing.distance(free) == pytest.approx(1, rel=1e-5)


def test_a_subset_has_every_class_equally_often_and_no_picture_twice():
    pictures = bars(100, seed=3)._replace(images=torch.arange(100.0).reshape(100, 1, 1, 1))
    chosen = samples.subset(pictures, 20, seed=1)
    assert chosen.labels.bincount().tolist() == [5] * 4
    assert len(chosen.images.unique()) == 20
    assert (pictures.labels[chosen.images.flatten().long()] == chosen.labels).all()
    assert not torch.equal(samples.subset(pictures, 20, seed=2).images, chosen.images)


def test_lecuns_pictures_are_moved_drawings_none_in_both_sets():
    pictures = Pictures(torch.rand(60, 1, 16, 16), torch.arange(60) % 3, ("a", "b", "c"))
    known, asked = ladder.lecuns(pictures, drawings=6, seed=0)
    assert known.labels.bincount().tolist() == [16] * 3
    assert asked.labels.bincount().tolist() == [8] * 3
    both = torch.cat([known.images, asked.images]).flatten(1)
    assert len(both.unique(dim=0)) == 72
    placed = ladder.set_down(pictures.first(1)).images
    for k in range(3):
        torch.testing.assert_close(placed[k, 0, :, k : k + 13], placed[k + 1, 0, :, k + 1 : k + 14])
        assert (placed[k, 0, :, :k] == -1).all()


@pytest.mark.parametrize(
    ("main", "words", "said"),
    [
        (relaxing.main, ("--relax-at", "1.5"), r"--relax-at is \(1.5,\)"),
        (samples.main, ("--sizes", "0"), r"--sizes is \(0,\)"),
        (samples.main, ("--dataset", "cats"), "--dataset is cats; it must be bars or one of mnist"),
        (ladder.main, ("--seeds", "0"), "--seeds is 0; it must be at least 1"),
        (ladder.main, ("--lr", "0"), "--lr is 0.0; a learning rate must be positive"),
    ],
)
def test_bad_options_are_one_sentence(main, words, said):
    with pytest.raises(LabError, match=said):
        main(words)


@pytest.mark.parametrize("accuracies", [(0.86, 0.93), (0.5, 0.9), (0.9701, 0.9709)])
def test_ticks_of_per_cent_are_where_they_say(accuracies):
    courses = relaxing.Courses([1, 2], list(accuracies), [0.1, 0.2])
    free = relaxing.unshared(samples.network("convolution", "custom", 0, 10), "custom")
    made = relaxing.draw({name: [courses] for name in ("shared", "unshared", "free")}, free)
    made.canvas.draw()
    ticks = made.axes[0].get_yticks()
    labels = [label.get_text() for label in made.axes[0].get_yticklabels()]
    assert [float(words.rstrip("%")) / 100 for words in labels] == pytest.approx(list(ticks))
