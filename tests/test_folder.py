import json
import os
import subprocess
import sys

import pytest

from cnn425.lab.errors import LabError
from cnn425.lab.folder import Metrics, describe, lengths, locked, rewind, write_whole


def test_second_process_is_told_in_one_sentence(tmp_path):
    code = f"from pathlib import Path; from cnn425.lab.folder import locked\nwith locked(Path({str(tmp_path)!r})): pass"
    with locked(tmp_path):
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert other.returncode != 0
    assert "another process is training in this folder" in other.stderr
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0, "the lock is free again"


def test_half_written_files_are_swept(tmp_path):
    (tmp_path / ".checkpoint-1.pt.99.part").write_bytes(b"half")
    (tmp_path / "notes.part").write_bytes(b"mine")
    with locked(tmp_path):
        assert not (tmp_path / ".checkpoint-1.pt.99.part").exists()
    assert (tmp_path / "notes.part").exists()


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LabError, match="cannot write in the run folder"), locked(tmp_path / "file" / "run"):
        pass


def test_whole_files_replace_whole_files(tmp_path):
    write_whole(tmp_path / "a", b"old")
    write_whole(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"new"
    assert (tmp_path / "a").stat().st_mode & 0o444 == 0o444 & ~_umask(), "readable by whom the umask allows"


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_metrics_are_cut_back_to_the_byte(tmp_path):
    metrics = Metrics(tmp_path)
    metrics.write(step=1, train_loss=0.1 + 0.2)
    metrics.flush()
    kept, content = lengths([metrics.path]), metrics.path.read_bytes()
    metrics.write(step=2, train_loss=1.0)
    metrics.close()
    (tmp_path / "events.out.tfevents.0000000002.cnn425").write_bytes(b"later")
    rewind(tmp_path, kept)
    assert (tmp_path / "metrics.csv").read_bytes() == content
    assert b"0.30000000000000004" in content, "numbers are written with all their bits"
    assert not list(tmp_path.glob("events*"))
    Metrics(tmp_path).close()
    assert content.count(b"step,epoch") == (tmp_path / "metrics.csv").read_bytes().count(b"step,epoch") == 1


def test_a_log_that_lost_bytes_is_refused(tmp_path):
    (tmp_path / "metrics.csv").write_bytes(b"short")
    with pytest.raises(LabError, match="shorter than when the checkpoint was written"):
        rewind(tmp_path, {"metrics.csv": 100})


def test_options_tell_enough_to_start_again(tmp_path):
    describe(tmp_path, {"lr": 0.1}, ["train.py", "--lr", "0.1"])
    kept = json.loads((tmp_path / "options.json").read_text())
    assert kept["argv"] == ["train.py", "--lr", "0.1"]
    assert len(kept["git_commit"].rstrip("+")) in (40, 7)
