"""Reading a network: saliency, wiping, neighbours and the projector's files, each on a case that can be checked by hand."""

import pytest
import torch
from google.protobuf import text_format
from tensorboard.plugins.projector import projector_config_pb2
from torch import nn

from cnn425.lab.pictures import Pictures
from experiments import reading


def test_saliency_of_a_linear_network_is_weight_times_pixel_of_the_true_class():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    images, labels = torch.rand(5, 1, 2, 2), torch.tensor([0, 2, 1, 1, 0])
    torch.testing.assert_close(reading.saliency(model, images, labels).flatten(1), model[1].weight.detach()[labels] * images.flatten(1))


def test_exactly_the_most_important_pixels_are_wiped():
    images = torch.rand(2, 1, 8, 8) + 0.1
    importance = torch.stack([torch.arange(64.0), -torch.arange(64.0)]).reshape(2, 1, 8, 8)
    left = reading.wiped(images, importance).flatten(1)
    assert (left[0] == 0).nonzero().flatten().tolist() == list(range(64 - reading.WIPED, 64))
    assert (left[1] == 0).nonzero().flatten().tolist() == list(range(reading.WIPED))
    assert torch.equal(left[1, reading.WIPED :], images[1].flatten()[reading.WIPED :])


def test_neighbours_come_nearest_first():
    known = torch.tensor([[0.0, 0], [3, 0], [1, 0], [0, 10]])
    assert reading.nearest(known, torch.tensor([[0.9, 0.0]]), 3).tolist() == [[2, 0, 1]]


def test_answers_of_every_layer_end_with_the_scores():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    images = torch.rand(2, 1, 2, 2)
    outputs = reading.answers(model, images)
    assert [tuple(y.shape) for y in outputs] == [(2, 4), (2, 6), (2, 6), (2, 3)]
    torch.testing.assert_close(reading.scores(model, images, -2), model[:3](images).detach())


def test_the_projectors_files_fit_together(tmp_path):
    pictures = Pictures(torch.rand(5, 1, 6, 4), torch.tensor([0, 1, 1, 0, 1]), ("no", "yes"))
    reading.project(tmp_path, torch.rand(5, 7), pictures)
    config = text_format.Parse((tmp_path / "projector_config.pbtxt").read_text(), projector_config_pb2.ProjectorConfig())
    (embedding,) = config.embeddings
    rows = (tmp_path / embedding.tensor_path).read_text().splitlines()
    assert len(rows) == 5
    assert all(len(row.split("\t")) == 7 for row in rows)
    assert (tmp_path / embedding.metadata_path).read_text().split() == ["no", "yes", "yes", "no", "yes"]
    assert list(embedding.sprite.single_image_dim) == [4, 6]
    assert (tmp_path / embedding.sprite.image_path).exists()


def test_pictures_side_by_side_are_in_reading_order():
    sheet = reading.side_by_side(torch.arange(3.0).reshape(3, 1, 1).expand(3, 2, 2), columns=2)
    assert sheet.shape == (8, 8)
    assert [sheet[1, 1], sheet[1, 5], sheet[5, 1]] == [0, 1, 2]
    assert sheet[0].isnan().all()
    assert sheet[5, 5].isnan()


def test_too_few_pictures_are_one_sentence():
    with pytest.raises(reading.LabError, match="--examples is 3; it must be at least 10"):
        reading.main(["--examples", "3"])
