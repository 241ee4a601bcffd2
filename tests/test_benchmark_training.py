import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts/benchmark_training.py"


@pytest.mark.slow
def test_chosen_ways_are_measured():
    words = ["--examples", "64", "--epochs", "20", "--model", "linear", "--repeats", "1", "--ways", "plain,torch's layers", "--json"]
    done = subprocess.run([sys.executable, SCRIPT, *words], capture_output=True, text=True, timeout=550)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout[done.stdout.index("{\n") :])
    assert set(result["images per second"]) == set(result["held-out accuracy"])
    assert set(result["relative to the first"]) == {"plain", "torch's layers"}
    assert result["relative to the first"]["plain"] == 1
    assert min(result["images per second"].values()) > 0
    assert result["checkpoint write, seconds"] > 0
    assert len(result["stop and resume, seconds"]) == 3
