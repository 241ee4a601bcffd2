"""Every layer is described so that the description gives its output back; what cannot be described is named."""

import pytest
import torch
from torch import nn

import cnn425.nn as ours
from cnn425.lab.errors import LabError
from cnn425.lab.nodes import Recorder, adaptive, windows

MODES = ("zeros", "reflect", "replicate", "circular")
LAYERS = {
    **{
        f"{package.__name__.split('.')[0]} {name}": (make, shape)
        for package in (ours, nn)
        for name, make, shape in (
            ("conv1d", lambda p=package: p.Conv1d(2, 4, 3, stride=2, padding=1, groups=2), (2, 11)),
            ("conv2d", lambda p=package: p.Conv2d(2, 3, (3, 2), stride=(1, 2), padding=(2, 0), dilation=(1, 2)), (2, 7, 9)),
            ("conv2d same", lambda p=package: p.Conv2d(1, 2, 3, padding="same", bias=False), (1, 6, 5)),
            ("conv3d", lambda p=package: p.Conv3d(2, 2, 2, padding=1), (2, 3, 4, 5)),
            ("conv_transpose1d", lambda p=package: p.ConvTranspose1d(4, 2, 3, 3, padding=1, output_padding=1, groups=2), (4, 5)),
            ("conv_transpose2d", lambda p=package: p.ConvTranspose2d(2, 3, (3, 2), (2, 1), dilation=(1, 2), bias=False), (2, 4, 5)),
            ("conv_transpose3d", lambda p=package: p.ConvTranspose3d(1, 2, 2, stride=2, padding=1), (1, 3, 2, 3)),
            ("max_pool1d", lambda p=package: p.MaxPool1d(3, 2, padding=1), (2, 9)),
            ("max_pool2d", lambda p=package: p.MaxPool2d(2, 2, dilation=2, ceil_mode=True), (2, 8, 7)),
            ("max_pool3d", lambda p=package: p.MaxPool3d(2), (1, 4, 4, 5)),
            ("avg_pool2d", lambda p=package: p.AvgPool2d(3, 2, padding=1, ceil_mode=True), (2, 8, 7)),
            ("avg_pool2d of the image alone", lambda p=package: p.AvgPool2d(3, 2, padding=1, count_include_pad=False), (2, 8, 7)),
            ("avg_pool2d by seven", lambda p=package: p.AvgPool2d(2, divisor_override=7), (1, 4, 4)),
            ("lp_pool2d", lambda p=package: p.LPPool2d(2.0, 2, ceil_mode=True), (1, 5, 5)),
            ("adaptive_max_pool2d", lambda p=package: p.AdaptiveMaxPool2d((3, 2)), (2, 7, 5)),
            ("adaptive_avg_pool1d", lambda p=package: p.AdaptiveAvgPool1d(4), (2, 10)),
            ("relu", lambda p=package: p.ReLU(), (2, 3, 3)),
            ("sigmoid", lambda p=package: p.Sigmoid(), (5,)),
            ("linear", lambda p=package: p.Linear(6, 4), (6,)),
            ("softmax", lambda p=package: p.Softmax(dim=1), (4,)),
        )
    },
    **{f"conv2d {mode}": (lambda m=mode: nn.Conv2d(1, 2, 3, padding=1, padding_mode=m), (1, 5, 5)) for mode in MODES},
    **{
        f"local {mode}": (lambda m=mode: ours.LocallyConnected2d(2, 4, 5, 3, padding=1, groups=2, padding_mode=m), (2, 5, 5))
        for mode in MODES
    },
    "local1d, uneven padding": (lambda: ours.LocallyConnected1d(2, 3, 8, 3, stride=2, padding=((2, 1),), bias="channel"), (2, 8)),
    "local3d": (lambda: ours.LocallyConnected3d(1, 2, 4, 2, bias=False), (1, 4, 4, 4)),
    "local1d, shared by blocks": (lambda: ours.LocallyConnected1d(2, 3, 9, 3, share=3), (2, 9)),
    "local2d, shared by tiles": (lambda: ours.LocallyConnected2d(2, 2, 6, 3, padding=1, tile=(2, 3)), (2, 6, 6)),
    "local2d, of low rank": (lambda: ours.LowRankLocal2d(2, 3, 5, 3, rank=2, stride=2), (2, 5, 5)),
    "tanh": (nn.Tanh, (3, 2, 2)),
}


def recorded(model, *shape):
    recorder = Recorder(model, torch.randn(2, *shape))
    recorder.run()
    return recorder.nodes


@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_is_described_and_the_description_believed(name):
    make, shape = LAYERS[name]
    image, layer = recorded(nn.Sequential(make()), *shape)
    assert layer.kind != "stored", layer.why
    assert layer.source == 0
    assert image.shape == (*shape[:1], *[1] * (4 - len(shape)), *shape[1:])


def test_windows_of_a_pencil():
    assert windows(4, 3, 3, 2, 1, 1) == [[-1, 0, 1], [1, 2, 3], [3, -1, -1]]
    assert windows(4, 4, 3, 1, 1, 1, "reflect") == [[1, 0, 1], [0, 1, 2], [1, 2, 3], [2, 3, 2]]
    assert windows(4, 1, 3, 1, 1, 1, "circular") == [[3, 0, 1]]
    assert windows(4, 1, 3, 1, 1, 1, "replicate") == [[0, 0, 1]]
    assert adaptive(5, 2) == [[0, 1, 2], [2, 3, 4]]
    assert adaptive(5, 3) == [[0, 1, -1], [1, 2, 3], [3, 4, -1]]


def test_an_unknown_layer_is_named_and_the_rest_described():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3))
    nodes = recorded(model, 1, 6, 6)
    assert [node.kind for node in nodes] == ["image", "conv", "stored", "relu", "linear"]
    assert (nodes[2].layer, nodes[2].name) == ("BatchNorm2d", "1")
    assert nodes[2].why == "this page does not know the layer"


def test_a_relative_that_computes_something_else_is_found_out():
    class Doubled(nn.Conv2d):
        def forward(self, x):
            return 2 * super().forward(x)

    _, layer = recorded(nn.Sequential(Doubled(1, 1, 3)), 1, 5, 5)
    assert (layer.kind, layer.why) == ("stored", "it is not what its class computes")


def test_what_a_model_computes_without_layers_is_said():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.last = nn.Conv2d(1, 1, 3, padding=1), nn.Linear(16, 2)

        def forward(self, x):
            return self.last(torch.flatten(x + self.conv(x), 1)).exp()

    nodes = recorded(Model(), 1, 4, 4)
    assert [node.kind for node in nodes] == ["image", "conv", "stored", "linear", "stored"]
    assert [node.layer for node in nodes if node.kind == "stored"] == ["before last", "after the last layer"]
    assert nodes[3].source == 2


def test_flatten_dropout_and_inplace_change_nothing():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(inplace=True), nn.Dropout(), nn.Identity(), nn.Flatten(), nn.Linear(8, 2)).train()
    nodes = recorded(model, 1, 4, 4)
    assert [(node.kind, node.source) for node in nodes] == [("image", -1), ("conv", 0), ("relu", 1), ("linear", 2)]
    assert nodes[1].output.min() < 0, "the sum before the ReLU"
    assert model.training
    assert model[1].inplace, "the caller's model is left as it was"


def test_a_layer_that_is_called_by_keyword_is_no_layer_of_the_page():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.relu = nn.Conv2d(1, 1, 3), nn.ReLU()

        def forward(self, x):
            return self.relu(self.conv(input=x))

    assert [node.kind for node in recorded(Model(), 1, 4, 4)] == ["image", "stored", "relu"]


@pytest.mark.parametrize(
    ("model", "shape", "words"),
    [
        (nn.Linear(4, 2), (5,), "the model cannot be applied to images of shape 2×5"),
        (nn.LSTM(3, 2), (4, 3), "the model answers with tuple, and a page needs one tensor"),
        (nn.Identity(), (1, 1, 1, 1, 1), "more than three spatial dimensions"),
    ],
)
def test_a_model_that_no_page_can_show_is_one_sentence(model, shape, words):
    with pytest.raises(LabError, match=words):
        recorded(model, *shape)
