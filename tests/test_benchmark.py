"""The benchmark runs, and its numbers are what their names say."""

import importlib.util
import json
import math
import sys
from pathlib import Path

import pytest
import torch

PATH = Path(__file__).parents[1] / "scripts" / "benchmark.py"
spec = importlib.util.spec_from_file_location("benchmark", PATH)
benchmark = importlib.util.module_from_spec(spec)
sys.modules["benchmark"] = benchmark  # dataclasses look their module up
spec.loader.exec_module(benchmark)


def test_rivals_take_turns():
    calls = []
    times = benchmark.interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, seconds=0)
    assert calls == ["a", "a", "b", "b"] + ["a", "b"] * 5
    assert times.keys() == {"a", "b"}


def test_geometric_mean():
    assert benchmark.geometric_mean([0.5, 2.0]) == pytest.approx(1)
    assert math.isnan(benchmark.geometric_mean([]))


def test_local_rivals_agree_with_ours():
    x, w = torch.randn(2, 3, 6, 5).double(), torch.randn(4, 4, 2, 3, 3, 2).double()
    expected = benchmark.ours.locally_connected2d(x, w)
    torch.testing.assert_close(benchmark.unfold_and_einsum(x, w), expected)
    torch.testing.assert_close(benchmark.forum_snippet(x, w), expected)


def test_one_case_from_command_to_file(tmp_path, capsys):
    before = torch.get_num_threads()
    try:
        file = tmp_path / "results" / "numbers.json"
        options = benchmark.Options(what=("conv",), only="tiny", seconds=0, threads=1, json=file)
        benchmark.main(options)
        benchmark.main(options)  # which replaces its own file
    finally:
        torch.set_num_threads(before)
    row = json.loads(file.read_text())["conv"][0]
    assert row["ms"]["both"].keys() == {"ours", "torch", "ours last", "torch last"}
    said = capsys.readouterr().out
    assert "geometric mean" in said
    assert said.startswith("Claim: ")
    assert "old: ours take" in said or "olds: ours take" in said


def test_small_calls_rows_and_the_step_of_a_network_are_timed(capsys):
    before = torch.get_num_threads()
    try:
        options = benchmark.Options(what=("small", "rows", "step"), only="relu", seconds=0, threads=1)
        results = benchmark.main(options)
    finally:
        torch.set_num_threads(before)
    assert [row["name"] for what in ("small", "rows", "step") for row in results[what]] == ["relu 4x4", "relu 64x64x24x24", "MNIST step"]
    assert "training step" in capsys.readouterr().out


def test_layers_between_local_and_convolution_and_transposed_ones_are_timed():
    options = benchmark.Options(seconds=0)
    row = benchmark.between(("tile 2", (2, 3, 8, 8), 4, {"tile": 2}), options)
    mixed = benchmark.between(("rank 2", (2, 3, 8, 8), 4, {"rank": 2}), options)
    assert row["ms"]["both"].keys() == mixed["ms"]["both"].keys() == {"ours", "local", "convolutions"}
    assert benchmark.versus_others("between", [row, mixed]).row_count == 2
    assert benchmark.means_of_others([row, mixed]).startswith("geometric means, times as long as ours: local")
    transposed = [benchmark.function_of(case, options)["name"] for case in benchmark.TRANSPOSED if "fold" in case[0]]
    assert transposed == ["unfold 3x3", "fold 3x3"]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"what": ("survey",), "only": "nothing like it"}, "--only 'nothing like it' is in no name of a case of survey"),
        ({"threads": 0}, "--threads 0"),
        ({"seconds": -1.0}, "--seconds -1.0"),
        ({"threads": 999_999}, "--threads 999999"),
        ({"json": Path(__file__) / "results.json"}, "results.json cannot be written"),
        ({"json": Path(__file__).parent}, "is a folder; name a file"),
        ({"json": Path(__file__)}, "was not made by this program, which would overwrite it"),
    ],
)
def test_wrong_options_are_refused_in_one_sentence_before_anything_is_timed(options, complaint, capsys):
    with pytest.raises(SystemExit):
        benchmark.main(benchmark.Options(**options))
    printed = capsys.readouterr()
    assert complaint in printed.err
    assert not printed.out
