"""experiments/explore.py: a page from a run folder, on its test set or on pictures; one sentence where it cannot."""

import pytest
import torch
from PIL import Image

from cnn425.lab.errors import LabError
from experiments import explore, mnist


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    mnist.main([*mnist.TINY, "--model", "linear", "--log-dir", str(folder)])
    return folder


def test_the_page_of_a_run_shows_wrong_answers_first(run):
    verdict = explore.main(["--checkpoint", str(run), "--count", "6"])
    assert verdict.holds
    assert verdict.page == str(run / "explorer.html")
    assert verdict.images == 6
    model = explore.trained.load(run)
    images, labels = explore.examples(model, 6, None)
    wrong = (model.model(images).argmax(1) != labels).tolist()
    assert wrong == sorted(wrong, reverse=True)


def test_own_pictures_and_one_that_is_none(run, tmp_path, capsys):
    page = torch.full((40, 40), 250, dtype=torch.uint8)
    page[5:35, 18:22] = 20
    Image.fromarray(page.numpy()).save(tmp_path / "bar.png")
    (tmp_path / "none.png").write_text("?")
    verdict = explore.main(["--checkpoint", str(run), str(tmp_path / "bar.png"), str(tmp_path / "none.png"), "--log-dir", str(tmp_path)])
    assert not verdict.holds
    assert (verdict.images, len(verdict.unreadable)) == (1, 1)
    assert "none.png cannot be read as a picture" in capsys.readouterr().out
    assert "bar.png" in (tmp_path / "explorer.html").read_text()
    with pytest.raises(LabError, match="none of the pictures can be read"):
        explore.main(["--checkpoint", str(run), str(tmp_path / "none.png")])


def test_a_page_of_somebody_else_is_not_overwritten(run, tmp_path):
    (tmp_path / "explorer.html").write_text("mine")
    with pytest.raises(LabError, match=r"explorer.html was not made by this program, which would overwrite it"):
        explore.main(["--checkpoint", str(run), "--count", "2", "--log-dir", str(tmp_path)])
    assert (tmp_path / "explorer.html").read_text() == "mine"
    (tmp_path / "explorer.html").unlink()
    for _ in range(2):  # one of its own is
        assert explore.main(["--checkpoint", str(run), "--count", "2", "--log-dir", str(tmp_path)]).images == 2


def test_bad_checkpoint_place_and_count_are_one_sentence(run, tmp_path):
    (tmp_path / "file").write_text("?")
    for words, message in (
        (["--checkpoint", str(tmp_path)], "there is no checkpoint in"),
        (["--checkpoint", str(tmp_path / "file")], "is not a checkpoint"),
        (["--checkpoint", str(run), "--log-dir", str(tmp_path / "file")], "cannot be written"),
        (["--checkpoint", str(run), "--count", "0"], "it must be at least 1"),
    ):
        with pytest.raises(LabError, match=message) as caught:
            explore.main(words)
        assert len(str(caught.value).splitlines()) == 1
