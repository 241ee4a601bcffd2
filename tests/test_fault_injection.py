"""The quick version of scripts/fault_injection.py, with real kills of real processes; the script does fifty and more, and fills disks."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts/fault_injection.py"


@pytest.mark.slow
@pytest.mark.parametrize("faults", ["kills,save,signals,two,damage,clock", "worker,restart,launcher"], ids=["one process", "two workers"])
def test_the_same_command_again_ends_with_the_same_bits(faults):
    command = [sys.executable, SCRIPT, "--kills", "4", "--only", faults]
    done = subprocess.run(command, capture_output=True, text=True, timeout=595, cwd=SCRIPT.parents[1])
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ok  " in done.stdout
    assert "\nHolds: " in done.stdout
    assert "FAIL" not in done.stdout
