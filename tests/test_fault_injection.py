"""The quick version of scripts/fault_injection.py, with real kills of real processes; the script does fifty and more, and fills disks."""

import subprocess
import sys
from pathlib import Path

import pytest

from cnn425.lab.errors import LabError

SCRIPT = Path(__file__).parents[1] / "scripts/fault_injection.py"


@pytest.mark.parametrize(
    ("given", "words"),
    [({"kills": -1}, "--kills is -1; it must be at least 0"), ({"only": "kills,flood"}, "--only has no flood; choose from kills, save")],
)
def test_nonsense_is_refused_before_anything_is_killed(given, words, monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import fault_injection

    with pytest.raises(LabError, match=words):
        fault_injection.main(fault_injection.FaultOptions(**given))


def test_a_folder_that_holds_something_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import fault_injection

    (tmp_path / "undisturbed.out").write_text("mine")
    for folder in (tmp_path, tmp_path / "undisturbed.out"):
        with pytest.raises(LabError, match="is not an empty folder; name another one"):
            fault_injection.main(fault_injection.FaultOptions(only="clock", folder=folder))
    assert (tmp_path / "undisturbed.out").read_text() == "mine"


@pytest.mark.slow
@pytest.mark.parametrize("faults", ["kills,save,signals,two,damage,clock", "worker,restart,launcher"], ids=["one process", "two workers"])
def test_the_same_command_again_ends_with_the_same_bits(faults):
    command = [sys.executable, SCRIPT, "--kills", "4", "--only", faults]
    done = subprocess.run(command, capture_output=True, text=True, timeout=595, cwd=SCRIPT.parents[1])
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ok  " in done.stdout
    assert "\nHolds: " in done.stdout
    assert "FAIL" not in done.stdout
