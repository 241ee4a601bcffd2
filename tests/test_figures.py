import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cnn425.lab import figures
from cnn425.lab.models import build
from cnn425.lab.pictures import Pictures, pattern_images


def test_tiles_keep_every_picture_whole():
    pictures = torch.rand(5, 2, 3)
    sheet = figures.tiled(pictures, columns=3, zoom=2)
    assert sheet.shape == (2 * 5 - 1, 3 * 7 - 1)
    assert torch.equal(sheet[5:9:2, 7:13:2], pictures[4])


def test_zero_is_grey_and_the_largest_magnitude_black_or_white():
    assert figures.stretched(torch.tensor([-2.0, 0.0, 1.0])).tolist() == [0.0, 0.5, 0.75]
    assert figures.stretched(torch.tensor([-2.0, 0.0, 2.0]), symmetric=False).tolist() == [0.0, 0.5, 1.0]
    assert figures.stretched(torch.zeros(2)).tolist() == [0.5, 0.5]


@pytest.mark.parametrize(
    ("name", "shape"), [("linear", (10, 28, 28)), ("mlp", (32, 28, 28)), ("conv", (16, 5, 5)), ("local", (4, 140, 140))]
)
def test_first_layer_filters_are_pictures(name, shape):
    assert figures.filters(build(name, "custom", 0), (1, 1, 28, 28)).shape == shape


def test_a_local_layers_filters_lie_where_they_look():
    model = build("local", "custom", 0)
    i, j, o = 3, 20, 2
    picture = figures.filters(model, (1, 1, 28, 28))[o]
    assert torch.equal(picture[5 * i : 5 * i + 5, 5 * j : 5 * j + 5], model[0].weight[i, j, o, 0])


def test_activations_are_those_of_the_first_windowed_layer():
    model, image = build("conv", "custom", 0), torch.rand(1, 1, 28, 28)
    assert torch.equal(figures.activations(model, image), model[0](image)[0])
    assert figures.activations(build("mlp", "custom", 0), image) is None


def test_confusion_counts_rows_as_truth():
    counts = figures.confusion(torch.tensor([0, 0, 1, 2]), torch.tensor([0, 1, 1, 1]), 3)
    assert counts.tolist() == [[1, 1, 0], [0, 1, 0], [0, 1, 0]]
    assert len(figures.confusion_figure(counts, ("a", "b", "c")).axes[0].texts) == 9


def test_only_mistakes_are_shown():
    pictures = pattern_images(30)
    predictions = pictures.labels.clone()
    assert figures.mistakes_figure(pictures, predictions) is None
    predictions[[3, 7]] = (predictions[[3, 7]] + 1) % 3
    made = figures.mistakes_figure(pictures, predictions)
    made.canvas.draw()
    assert [text.get_text() for text in made.axes[0].texts] == ["diagonal\nnot vertical", "vertical\nnot horizontal"]
    shown = made.axes[0].images[1].get_array()
    assert torch.equal(torch.from_numpy(shown.data), pictures.images[7, 0])


def test_short_names_stay_on_one_line():
    pictures = Pictures(torch.zeros(1, 1, 28, 28), torch.tensor([4]), tuple("0123456789"))
    assert figures.mistakes_figure(pictures, torch.tensor([9])).axes[0].texts[0].get_text() == "4, not 9"


BACKENDS = """
import os, sys
import torch
assert "matplotlib" not in sys.modules
for wanted, chosen in (("pdf", ""), ("pdf", "svg"), ("nonsense", ""), ("", "")):
    child = os.fork()  # torch is imported once
    if child == 0:
        os.environ["MPLBACKEND"] = wanted
        if chosen:
            import matplotlib
            matplotlib.use(chosen)
        from cnn425.lab import figures
        import matplotlib
        print(matplotlib.get_backend(auto_select=False), os.environ["MPLBACKEND"], flush=True)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
"""


def test_the_backend_of_whoever_opens_windows_is_the_one_they_chose():
    """Named by MPLBACKEND; chosen before; named, but not there; named as nothing."""
    done = subprocess.run([sys.executable, "-c", BACKENDS], capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.stdout.splitlines() == ["pdf pdf", "svg pdf", "None nonsense", "None "], done.stderr
