"""scripts/check_device.py: a page that is right, written as it goes, within its time, where torch and numpy are alone."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from oldest import differs_on_the_oldest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
import check_device as script  # noqa: E402

sys.path.remove(str(ROOT / "scripts"))

ABSENT = ("numba", "llvmlite", "torchvision", "tensorboard", "hypothesis", "tyro", "rich", "matplotlib", "PIL", "platformdirs", "scipy")
BARE = f"""
import runpy, sys
sys.modules.update(dict.fromkeys({(*ABSENT, "expecttest", "pytest")!r}))
sys.argv = sys.argv[1:]
sys.path.insert(0, "scripts")
runpy.run_path(sys.argv[0], run_name="__main__")
"""
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}


def report(folder):
    found = json.loads((folder / "report.json").read_text())
    return found, {section["name"]: section for section in found["sections"]}


@pytest.mark.slow
@differs_on_the_oldest("dimensions that are strings, which were names")
def test_a_bare_machine_gets_a_page_without_failures(tmp_path):
    """The subset that a third of a minute allows: torch and numpy alone, as on a rented GPU."""
    words = ["scripts/check_device.py", "--device", "cpu", "--minutes", "0.3", "--out", str(tmp_path / "page")]
    done = subprocess.run([sys.executable, "-c", BARE, *words], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    found, sections = report(tmp_path / "page")
    assert list(sections) == list(script.SECTIONS)
    assert sections["layers"]["tried"] > 0
    assert "without numba" in found["python"]
    page = (tmp_path / "page/report.txt").read_text()
    assert found["verdict"] in page
    assert found["verdict"] in done.stdout


@pytest.mark.slow
def test_a_device_that_is_not_the_cpu(tmp_path):
    """Networks, optimisers, checkpoints and layers of the script on a device whose tensors mix with no other's."""
    words = ["scripts/check_device.py", "--device", "pretend", "--minutes", "0.3", "--out", str(tmp_path), "--only"]
    sections = ["layers", "training", "resume", "deterministic", "algorithms", "arguments"]
    command = [sys.executable, "tests/pretend.py", *words, *sections]
    environment = {**ENVIRONMENT, "PYTHONPATH": str(ROOT)}
    environment.pop("CNN425_DATA_DIR", None)
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    found, tried = report(tmp_path)
    assert found["device"] == "pretend:0"
    assert tried["layers"]["tried"] > 0


def passes(run):
    yield f"{script.NOTE}seven bytes", ""
    yield "one", ""


def fails(run):
    yield "two", ""
    yield "three", "it is four"
    raise RuntimeError("no more")


def left_out(run):
    raise script.LeftOut("there is nothing")
    yield


def sleeps(run):
    yield "before", ""
    time.sleep(60)


def results(folder, monkeypatch, sections, *words):
    monkeypatch.setattr(script, "SECTIONS", {f.__name__: (1, f) for f in sections})
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)
    monkeypatch.setattr(script, "prepared", lambda name: torch.device(name))
    code = script.main(["--device", "cpu", "--out", str(folder), *words])
    return code, *report(folder)


def test_what_failed_is_on_the_page_and_in_the_exit_code(tmp_path, monkeypatch, capsys):
    code, found, sections = results(tmp_path, monkeypatch, [passes, fails, left_out])
    assert code == 1
    assert found["verdict"] == "2 of 4 checks passed"
    assert sections["passes"] | {"seconds": 0} == {
        **vars(script.Section("passes", "complete", 1, 1)),
        "notes": ["seven bytes"],
        "seconds": 0,
    }
    assert sections["fails"]["failures"] == ["three: it is four", "the rest: RuntimeError(no more)"]
    assert sections["left_out"]["state"] == "left out: there is nothing"
    page = (tmp_path / "report.txt").read_text()
    for words in ("passes: seven bytes", "fails: three: it is four", "2 of 4 checks passed"):
        assert words in page
    assert "three: it is four" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["report.txt", "report.json"])
def test_a_page_of_somebody_elses_stays(name, tmp_path, capsys):
    (tmp_path / name).write_text("of last year")
    threads = torch.get_num_threads()
    assert script.main(["--device", "cpu", "--out", str(tmp_path)]) == 2
    torch.set_num_threads(threads)
    assert f"{name} was not made by this program" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "of last year"


def swallows(run):
    yield "six", ""
    try:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(10)
    except KeyboardInterrupt:
        yield "seven", ""
    raise RecursionError


def test_ctrl_c_ends_it_even_if_somebody_swallows_it(tmp_path, monkeypatch, capsys):
    code, found, sections = results(tmp_path, monkeypatch, [swallows, passes])
    assert code == 130
    assert sections["swallows"]["passed"] == found["sections"][0]["tried"] == 2
    assert sections["passes"]["state"] == "not begun"
    assert "stopped; " in capsys.readouterr().err


def test_nothing_tried_is_no_success(tmp_path, monkeypatch, capsys):
    code, found, _ = results(tmp_path, monkeypatch, [left_out])
    assert code == 1
    assert found["verdict"] == "0 of 0 checks passed: nothing was tried"


def test_the_files_hold_what_was_found_so_far(tmp_path, monkeypatch, capsys):
    def reads(run):
        _, sections = report(tmp_path)
        assert sections["passes"]["state"] == "complete"
        assert "1 of 1 checks passed" in (tmp_path / "report.txt").read_text()
        yield "read", ""

    assert results(tmp_path, monkeypatch, [passes, reads])[0] == 0


def test_the_time_is_kept_whatever_goes_on(tmp_path, monkeypatch, capsys):
    begun = time.monotonic()
    code, _, sections = results(tmp_path, monkeypatch, [sleeps, passes], "--minutes", "0.02")
    assert time.monotonic() - begun < 30
    assert code == 0
    assert sections["sleeps"]["state"] == "cut off"
    assert sections["sleeps"]["seconds"] > 1
    assert sections["passes"]["state"] == "not begun"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--device", "mps"], "--device mps: "),
        (["--device", "cuda:7"], "--device cuda:7: "),
        (["--minutes", "-1"], "--minutes is -1; it must be more than 0"),
        (["--minutes", "nan"], "--minutes is nan; it must be more than 0"),
        (["--minutes", "soon"], "argument --minutes: invalid float value: 'soon'"),
        (["--only", "layers", "abacus"], "--only has no abacus; choose from layers, training"),
        (["--device", "cpu", "--data-dir", "/nowhere"], "/nowhere/MNIST/raw/train-images-idx3-ubyte is missing; --data-dir must hold"),
        (["--device", "cpu", "--out", "/proc/none"], "--out /proc/none: "),
    ],
)
def test_nonsense_is_one_sentence(words, sentence, capsys):
    threads = torch.get_num_threads()
    assert script.main(words) == 2
    torch.set_num_threads(threads)
    err = capsys.readouterr().err
    assert err.startswith(f"error: {sentence}")
    assert len(err.splitlines()) == 1
