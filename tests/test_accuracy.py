"""The table of rounding errors has every algorithm, and every error is that of float32, not of a mistake."""

import importlib.util
import sys
from pathlib import Path

PATH = Path(__file__).parents[1] / "scripts" / "accuracy.py"
spec = importlib.util.spec_from_file_location("accuracy", PATH)
accuracy = importlib.util.module_from_spec(spec)
sys.modules["accuracy"] = accuracy  # dataclasses look their module up
spec.loader.exec_module(accuracy)


def test_every_algorithm_rounds_as_float32_does(monkeypatch, capsys):
    monkeypatch.setattr(accuracy, "CASES", (("small", (2, 16, 9, 9), 16, 3, 2), ("large kernel", (1, 4, 20, 20), 4, 9, 1)))
    table = accuracy.main(accuracy.Options())
    assert set(table["small"]) == {"torch", "im2col", "shifted", "winograd", "fft", "merged"}
    assert set(table["large kernel"]) == {"torch", "im2col", "shifted", "fft"}
    assert all(1e-8 < error < 3e-5 for rows in table.values() for errors in rows.values() for error in errors)
    assert capsys.readouterr().out.count("\n") == 2 + 6 + 4
