"""Filters on the photograph: every response against SciPy's, which shares no code with ours."""

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage, signal

from cnn425 import nn
from cnn425.lab.errors import LabError
from cnn425.nn import functional as F
from experiments import filters


@pytest.fixture(scope="module")
def photograph():
    return filters.photograph()


@pytest.mark.parametrize("number", range(len(filters.FILTERS)), ids=list(filters.FILTERS))
def test_a_filtered_photograph_is_scipys_correlation(photograph, number):
    weight = filters.bank()[number]
    ours = F.conv2d(photograph, weight[None])[0, 0].numpy()
    np.testing.assert_allclose(ours, signal.correlate2d(photograph[0, 0], weight[0], mode="valid"), atol=1e-12)
    np.testing.assert_allclose(ours, ndimage.correlate(photograph[0, 0].numpy(), weight[0].numpy())[1:-1, 1:-1], atol=1e-12)


def test_what_deep_learning_calls_a_convolution_is_not_scipys():
    """The slide's filter is not symmetric: scipy's convolution mirrors it and answers with the opposite sign."""
    x, weight = torch.randn(6, 7, dtype=torch.float64), filters.bank()[0, 0]
    ours = F.conv2d(x[None, None], weight[None, None])[0, 0].numpy()
    np.testing.assert_allclose(signal.convolve2d(x, weight, mode="valid"), -ours, atol=1e-12)


def test_same_padding_is_scipys_zero_border(photograph):
    ours = F.conv2d(photograph, filters.bank()[:1], padding="same")[0, 0].numpy()
    theirs = ndimage.correlate(photograph[0, 0].numpy(), filters.bank()[0, 0].numpy(), mode="constant", cval=0.0)
    np.testing.assert_allclose(ours, theirs, atol=1e-12)


def test_normalised_cross_correlation_is_the_correlation_coefficient_of_each_window():
    x = torch.rand(1, 1, 9, 8, dtype=torch.float64)
    template = torch.rand(3, 4, dtype=torch.float64)
    ours = filters.responses("custom", x, template)[2]
    for i in range(7):
        for j in range(5):
            window = x[0, 0, i : i + 3, j : j + 4]
            assert ours[i, j].item() == pytest.approx(np.corrcoef(window.ravel(), template.ravel())[0, 1], abs=1e-9)


def test_normalised_cross_correlation_ignores_brightness_and_contrast(photograph):
    x, template = photograph[..., 60:110, 80:140], photograph[0, 0, 70:80, 90:104]
    plain, changed = (filters.responses("custom", x, t)[2] for t in (template, 0.3 * template + 0.4))
    torch.testing.assert_close(changed, plain, atol=1e-9, rtol=0)
    assert plain.abs().max() <= 1 + 1e-9


def test_a_flat_window_resembles_nothing_and_is_no_nan():
    x = torch.zeros(1, 1, 6, 6, dtype=torch.float64)
    assert filters.responses("custom", x, torch.rand(3, 3, dtype=torch.float64))[2].abs().max() == 0


def test_a_filter_is_learnt_from_one_pair_of_images(photograph):
    square = photograph[..., 100:148, 100:148]
    torch.testing.assert_close(filters.learnt(nn, square, F.conv2d(square, filters.bank())), filters.bank(), atol=1e-10, rtol=0)


@pytest.mark.parametrize(
    ("words", "said"),
    [(("--template", "290", "0", "20", "20"), "--template is 290 0 20 20"), (("--size", "4"), "--size is 4; it must be from 8")],
)
def test_a_template_outside_the_photograph_is_refused_in_one_sentence(words, said):
    with pytest.raises(LabError, match=said):
        filters.main(words)


@pytest.mark.parametrize(
    ("words", "positions"), [((), 25), (("--side", "5", "--stride", "2", "--padding", "1", "--dilation", "2", "--kernel", "2"), 9)]
)
def test_a_film_has_a_picture_per_window(words, positions, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        filters.figures, "film", lambda frames, path, seconds: drawn.extend(made.axes[2].images[0].get_array() for made in frames)
    )
    assert filters.main(["--film", *words, "--log-dir", str(tmp_path)]) == (True, positions)
    assert [int((~np.isnan(picture)).sum()) for picture in np.ma.filled(drawn, np.nan)] == list(range(1, positions + 1))


def test_a_film_is_a_gif_that_starts_again(tmp_path):
    filters.main(["--film", "--side", "4", "--log-dir", str(tmp_path)])
    with Image.open(tmp_path / "kernel.gif") as film:
        assert (film.n_frames, film.info["loop"]) == (4, 0)


def test_a_film_without_positions_is_refused():
    with pytest.raises(LabError, match="make 0 positions; 1 to 20 are wanted"):
        filters.main(["--film", "--side", "2"])
