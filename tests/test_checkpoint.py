import errno
import os
import random
from pathlib import Path

import numpy
import pytest
import torch

from cnn425.lab import checkpoint
from cnn425.lab.errors import LabError
from cnn425.lab.folder import locked


def test_content_comes_back_and_only_the_last_two_stay(tmp_path):
    for step in (1, 2, 3):
        path = checkpoint.save(tmp_path, step, {"weights": torch.arange(3) * step})
    assert [int(p.name.split("-")[1]) for p in checkpoint.checkpoints(tmp_path)] == [3, 2]
    assert checkpoint.read(path)["weights"].tolist() == [0, 3, 6]
    assert not list(tmp_path.glob(".*"))


def damage_truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def damage_flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def damage_empty(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [damage_truncate, damage_flip, damage_empty])
def test_damaged_newest_falls_back_with_a_warning(tmp_path, damage):
    checkpoint.save(tmp_path, 1, {"x": 1})
    newest = checkpoint.save(tmp_path, 2, {"x": 2})
    damage(newest)
    with pytest.raises(LabError, match="is damaged"):
        checkpoint.read(newest)
    warnings = []
    assert checkpoint.newest(tmp_path, warnings.append)["x"] == 1
    assert len(warnings) == 1
    assert str(newest) in warnings[0]
    assert newest.with_suffix(".damaged").exists(), "nothing is thrown away"


def test_every_single_flipped_bit_is_noticed(tmp_path):
    path = checkpoint.save(tmp_path, 1, {"x": 1})
    content = path.read_bytes()
    for place in range(0, len(content), 37):
        path.write_bytes(content[:place] + bytes([content[place] ^ 128]) + content[place + 1 :])
        with pytest.raises(LabError, match="is damaged"):
            checkpoint.read(path)


def test_a_checkpoint_that_may_not_be_read_stops_the_run(tmp_path, monkeypatch):
    """It may be whole: neither is it set aside, nor does the run start again."""
    path = checkpoint.save(tmp_path, 1, {"step": 1})

    real = Path.read_bytes

    def refuse(self):
        if self == path:
            raise PermissionError(errno.EACCES, "Permission denied", str(self))
        return real(self)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(LabError, match="cannot be read: Permission denied; the run needs it"):
        checkpoint.newest(tmp_path, lambda words: pytest.fail(words))
    assert path.exists()


def test_all_damaged_is_a_fresh_start_with_warnings(tmp_path):
    for step in (1, 2):
        damage_flip(checkpoint.save(tmp_path, step, {}))
    warnings = []
    assert checkpoint.newest(tmp_path, warnings.append) is None
    assert [words.split(", ")[-1] for words in warnings] == ["going on from the one before", "so the run starts again"]


def test_the_only_one_damaged_is_not_said_to_have_one_before_it(tmp_path):
    damage_flip(checkpoint.save(tmp_path, 1, {}))
    warnings = []
    assert checkpoint.newest(tmp_path, warnings.append) is None
    assert "there is no other, so the run starts again" in warnings[0]


def test_checkpoints_of_others_are_neither_used_nor_removed(tmp_path):
    theirs = [checkpoint.save(tmp_path, step, {"x": "theirs"}) for step in (8, 9)]
    with locked(tmp_path):
        mine = [checkpoint.save(tmp_path, step, {"x": step}) for step in (1, 2, 3)]
        assert checkpoint.checkpoints(tmp_path) == mine[:0:-1]
        assert checkpoint.newest(tmp_path, print)["x"] == 3
        assert all(path.exists() for path in theirs)


def test_a_foreign_file_cannot_run_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.system, ("touch " + str(tmp_path / "ran"),)

    path = tmp_path / "model.pt"
    torch.save({"format": 1, "x": Evil()}, path)
    with pytest.raises(LabError, match="is not a checkpoint"):
        checkpoint.read(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"hello", b"\x89PNG"])
def test_foreign_files_are_one_sentence(tmp_path, content):
    path = tmp_path / "picture.pt"
    path.write_bytes(content)
    with pytest.raises(LabError, match="is not a checkpoint"):
        checkpoint.read(path)
    with pytest.raises(LabError, match="No such file"):
        checkpoint.read(tmp_path / "none.pt")


def test_foreign_dictionary_is_refused(tmp_path):
    torch.save({"weights": 1}, tmp_path / "other.pt")
    with pytest.raises(LabError, match="not a checkpoint of this program"):
        checkpoint.read(tmp_path / "other.pt")


def test_random_states_come_back(tmp_path):
    path = checkpoint.save(tmp_path, 0, {"random": checkpoint.random_state()})

    def drawn():
        return torch.rand(3).tolist(), random.random(), numpy.random.rand(3).tolist()  # noqa: NPY002

    first = drawn()
    checkpoint.set_random_state(checkpoint.read(path)["random"])
    assert drawn() == first


def test_a_full_disk_leaves_the_old_checkpoint_and_no_part(tmp_path, monkeypatch):
    kept = checkpoint.save(tmp_path, 1, {"x": 1})

    def full(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(tmp_path, 2, {"x": 2})
    assert list(tmp_path.iterdir()) == [kept]


@pytest.mark.parametrize("values", [(1, 2), (2, 1)])
def test_of_two_checkpoints_of_one_step_the_later_is_the_newest(tmp_path, values):
    for seconds, x in enumerate(values):
        os.utime(checkpoint.save(tmp_path, 7, {"x": x}), (seconds, seconds))
    assert checkpoint.newest(tmp_path, print)["x"] == values[-1]


def test_the_second_of_a_pair_of_normal_numbers_comes_back():
    random.gauss(0, 1)  # of a pair: the other waits for the next call
    state = checkpoint.random_state()
    first = [random.gauss(0, 1) for _ in range(3)]
    checkpoint.set_random_state(state)
    assert [random.gauss(0, 1) for _ in range(3)] == first
