import errno
import importlib.util
import json
import os
import shutil
import stat
import subprocess
from pathlib import Path

import filelock
import pytest
from forked import Forked

import cnn425
from cnn425.lab import folder as folders
from cnn425.lab.errors import LabError
from cnn425.lab.folder import Metrics, claim, describe, git_commit, home, lengths, locked, own, rewind, write_whole


def test_second_process_is_told_in_one_sentence(tmp_path):
    code = f"from pathlib import Path; from cnn425.lab.folder import locked\nwith locked(Path({str(tmp_path)!r})): pass"
    with locked(tmp_path):
        other = Forked(["-c", code])
        said, _ = other.communicate()
    assert other.returncode != 0
    assert "another process is training in this folder" in said
    other = Forked(["-c", code])
    other.communicate()
    assert other.returncode == 0, "the lock is free again"


def test_half_written_files_are_swept(tmp_path):
    mine = [tmp_path / name for name in ("notes.part", ".draft.part", ".letter.7.part", ".checkpoint-2.pt.99.part")]
    with locked(tmp_path):
        claim(tmp_path, "checkpoint-1.pt")
    for path in (*mine, tmp_path / ".checkpoint-1.pt.99.part"):
        path.write_bytes(b"half")
    with locked(tmp_path):
        assert not (tmp_path / ".checkpoint-1.pt.99.part").exists()
    assert all(path.exists() for path in mine), "files that the run has not on its list are somebody's"


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
    assert kept["versions"]["cnn425"]


# ---- Whose folder


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize("name", ["notes.md", "metrics.csv", "options.json", ".lock", ".cnn425", "run.png", ".letter.7.part", "sub/file"])
def test_a_folder_that_holds_anything_is_left_alone(name, tmp_path, capsys):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    inside = home(tmp_path, "run", "run-1")
    assert inside == tmp_path / "run-1"
    assert "holds files that no run made" in capsys.readouterr().out
    with locked(inside):
        assert home(tmp_path, "run", "run-1") == inside, "the same run finds its folder again"
    assert (tmp_path / name).read_text() == "mine"


def test_a_folder_inside_that_is_taken_too_is_one_sentence(tmp_path):
    for name in ("notes.md", "run-1/notes.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("mine")
    with pytest.raises(LabError, match="hold files that no run made; choose another --log-dir"):
        home(tmp_path, "run", "run-1")


def test_new_empty_and_own_folders_are_used(tmp_path):
    assert home(tmp_path / "new" / "er", "run", "x") == tmp_path / "new" / "er"
    assert home(tmp_path, "run", "x") == tmp_path
    (tmp_path / ".lock").touch()  # of a start that was killed before it could mark the folder
    (tmp_path / "..cnn425.12.part").write_text("cnn4")
    assert home(tmp_path, "run", "x") == tmp_path
    with locked(tmp_path):
        (tmp_path / "notes.md").write_text("mine")
    assert home(tmp_path, "run", "x") == tmp_path


def test_other_kinds_and_newer_versions_are_refused(tmp_path):
    with locked(tmp_path, kind="study"):
        pass
    with pytest.raises(LabError, match="holds a study, whose files a run would replace"):
        home(tmp_path, "run", "x")
    (tmp_path / ".cnn425").write_text("cnn425 study 2\n")
    with pytest.raises(LabError, match="made by a newer version of cnn425"):
        home(tmp_path, "study", "x")


def test_only_files_on_the_list_are_overwritten_cut_or_removed(tmp_path):
    with locked(tmp_path):
        assert claim(tmp_path, "verdict.json") == tmp_path / "verdict.json"
        assert claim(tmp_path, "verdict.json"), "once more: it is on the list"
        (tmp_path / "figure.png").write_bytes(b"mine")
        with pytest.raises(LabError, match=r"figure.png was not made by this run"):
            claim(tmp_path, "figure.png")
        for name in ("metrics.csv", "events.out.tfevents.1700000000.host", "events.out.tfevents.0000000009.cnn425"):
            (tmp_path / name).write_bytes(b"mine")
        before = contents(tmp_path)
        rewind(tmp_path, {})
        assert contents(tmp_path) == before


def test_a_list_whose_last_name_was_not_written_whole_goes_on(tmp_path):
    with locked(tmp_path):
        claim(tmp_path, "options.json")
        with (tmp_path / ".cnn425").open("ab") as file:
            file.write(b"metr")
        assert own(tmp_path) == ["options.json"]
        claim(tmp_path, "metrics.csv")
        assert own(tmp_path) == ["options.json", "metrics.csv"]


def test_the_list_stays_short(tmp_path):
    with locked(tmp_path):
        for k in range(3 * folders.LONGEST):
            claim(tmp_path, f"checkpoint-{k}").touch()
            (tmp_path / f"checkpoint-{k - 1}").unlink(missing_ok=True)
        names = own(tmp_path)
    assert len(names) <= folders.LONGEST
    assert names[-1] == f"checkpoint-{k}"


@pytest.mark.parametrize("kind", ["a file", "a link to nowhere"])
def test_what_is_not_a_folder_is_refused_in_one_sentence(kind, tmp_path):
    path = tmp_path / "run"
    path.write_text("mine") if kind == "a file" else path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(LabError, match=f"^{path} is not a folder; choose another --log-dir$"):
        home(path, "run", "inside")


# ---- File systems that cannot do everything


UNABLE = [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS]


@pytest.fixture(autouse=True)
def every_warning_again():
    folders.told.clear()


@pytest.mark.parametrize("number", UNABLE)
def test_a_folder_that_cannot_be_synced_is_one_warning(number, tmp_path, monkeypatch, capsys):
    real, synced = os.fsync, []

    def fsync(fd):
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(number, os.strerror(number))
        synced.append(fd)
        return real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    for k in range(3):
        write_whole(tmp_path / f"file{k}", b"whole")
    assert len(synced) == 3, "files are synced"
    assert capsys.readouterr().out.count("cannot sync a folder") == 1


@pytest.mark.parametrize("number", [*UNABLE, errno.EXDEV, errno.EPERM, errno.EEXIST])
def test_a_file_system_that_cannot_rename_over_is_one_warning(number, tmp_path, monkeypatch, capsys):
    def replace(source, target):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "replace", replace)
    for content in (b"old", b"new", b"newest"):
        write_whole(tmp_path / "file", content)
        assert contents(tmp_path) == {"file": content}, "and no part is left"
    assert capsys.readouterr().out.count("cannot rename a file over another") == 1


@pytest.mark.parametrize("number", [*UNABLE, errno.ENOLCK])
def test_a_file_system_that_cannot_lock_is_one_warning(number, tmp_path, monkeypatch, capsys):
    def acquire(self, *_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(filelock.FileLock, "acquire", acquire)
    for _ in range(2):
        with locked(tmp_path / "run"):
            claim(tmp_path / "run", "metrics.csv")
    assert capsys.readouterr().out.count("cannot lock files") == 1


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_what_is_broken_stays_an_error_and_names_the_file(number, tmp_path, monkeypatch):
    def fsync(fd):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="file") as caught:
        write_whole(tmp_path / "file", b"whole")
    assert caught.value.filename == str(tmp_path / "file")
    assert not contents(tmp_path)


# ---- Whose commit


def git(folder, *words):
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    around = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    return subprocess.run(["git", *who, *words], cwd=folder, capture_output=True, text=True, check=True, env=around).stdout.strip()


@pytest.mark.parametrize("kept", ["ignored", "committed", "the repository itself"])
def test_the_commit_of_somebody_elses_project_is_not_ours(kept, tmp_path):
    """A copy of the package in a .venv that git ignores, one that was committed with the project, site-packages under git."""
    site = tmp_path if kept == "the repository itself" else tmp_path / ".venv/site-packages"
    shutil.copytree(Path(cnn425.__file__).parent, site / "cnn425", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "theirs"\n')
    if kept == "ignored":
        (tmp_path / ".gitignore").write_text(".venv\n")
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "theirs"]):
        git(tmp_path, *words)
    spec = importlib.util.spec_from_file_location("folder_of_theirs", site / "cnn425/lab/folder.py")
    copy = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(copy)
    assert copy.git_commit() == "unknown"


def test_a_hook_of_another_repository_does_not_change_our_commit(tmp_path, monkeypatch):
    ours = git_commit()
    git(tmp_path, "init", "-q")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / ".git"))
    assert git_commit() == ours


def test_a_link_to_nowhere_is_somebody_elses_too(tmp_path):
    with locked(tmp_path):
        (tmp_path / "verdict.json").symlink_to(tmp_path / "elsewhere.json")
        with pytest.raises(LabError, match=r"verdict.json was not made by this run"):
            claim(tmp_path, "verdict.json")
