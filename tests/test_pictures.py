import pytest
import torch

from cnn425.lab.pictures import PATTERNS, Pictures, bars, pattern_images, patterns


def test_three_patterns_of_three_lit_pixels_share_only_the_centre():
    images, labels, classes = patterns()
    assert images.shape == (3, 1, 3, 3)
    assert labels.tolist() == [0, 1, 2]
    assert classes == tuple(PATTERNS)
    assert images.sum((1, 2, 3)).tolist() == [3, 3, 3]
    assert images.prod(0)[0].nonzero().tolist() == [[1, 1]]


def test_pattern_noise_has_the_asked_deviation_and_follows_the_seed():
    clean, noisy = patterns(1000), patterns(1000, noise=0.3, seed=1)
    assert (noisy.images - clean.images).std().item() == pytest.approx(0.3, rel=0.02)
    assert torch.equal(noisy.images, patterns(1000, noise=0.3, seed=1).images)
    assert not torch.equal(noisy.images, patterns(1000, noise=0.3, seed=2).images)


@pytest.mark.parametrize(("columns", "empty"), [((0, 8), slice(8, 16)), ((8, 16), slice(0, 8)), ((4, 9), slice(9, 16))])
def test_bars_stay_in_their_columns(columns, empty):
    images, labels, classes = bars(400, columns, noise=0.0)
    assert images[..., empty].sum() == 0
    assert images.sum((1, 2, 3)).eq(5).all(), "a bar has 5 pixels, none cut off or drawn twice"
    assert torch.bincount(labels).tolist() == [100] * len(classes)


def test_bars_reach_both_ends_of_their_columns():
    lit = bars(2000, (2, 9), noise=0.0).images.sum((0, 1, 2)) > 0
    assert lit.nonzero().flatten().tolist() == list(range(2, 9))


def test_bars_point_where_their_label_says():
    images, labels, _ = bars(40, noise=0.0)
    for image, label in zip(images[:, 0], labels, strict=True):
        h, w = image.nonzero().T
        step = {0: (0, 1), 1: (1, 0), 2: (1, 1), 3: (1, -1)}[int(label)]
        order = h.argsort() if label else w.argsort()
        assert h[order].diff().eq(step[0]).all()
        assert w[order].diff().eq(step[1]).all()


def test_a_bar_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"columns is \(0, 4\)"):
        bars(4, (0, 4))


def test_pattern_images_hold_a_whole_pattern_anywhere():
    images, labels, _ = pattern_images(300, noise=0.0)
    assert images.shape == (300, 1, 28, 28)
    assert images.sum((1, 2, 3)).eq(75).all()
    lit = images.sum((0, 1)) > 0
    assert all(edge.any() for edge in (lit[0], lit[-1], lit[:, 0], lit[:, -1])), "an edge is never reached"
    assert torch.bincount(labels).tolist() == [100, 100, 100]


def test_bytes_become_brightness():
    pictures = Pictures(torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1), torch.tensor([0, 1]), ("a", "b"))
    images, labels = pictures.batch(torch.tensor([1, 0]), torch.float64)
    assert images.flatten().tolist() == [1.0, 0.0]
    assert labels.tolist() == [1, 0]
    assert pictures.first(1).labels.tolist() == [0]
