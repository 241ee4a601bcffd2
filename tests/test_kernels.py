"""Loops as Python are the loops in machine code, every loop is reached by a layer, and bits do not depend on the number of threads."""

import os
import subprocess
import sys
from pathlib import Path

import calls
import pytest
import torch

from cnn425 import algorithms

ROOT = Path(__file__).parents[1]
ROUNDING = {torch.float32: {"rtol": 1e-4, "atol": 1e-5}, torch.float64: {"rtol": 1e-12, "atol": 1e-12}}  # machine code fuses products


@pytest.fixture(scope="module")
def compiled():
    return calls.results()


def assert_close(found, expected):
    assert found.keys() == expected.keys()
    for name in found:
        for a, b in zip(found[name], expected[name], strict=True):
            exact = {"rtol": 0, "atol": 0} if "max_pool" in name else ROUNDING[b.dtype]
            torch.testing.assert_close(a, b, **exact, check_stride=True, msg=lambda words, name=name: f"{name}: {words}")


@pytest.mark.parametrize("registers", [{}, {"ATEN_CPU_CAPABILITY": "default"}], ids=["of this processor", "few"])
def test_every_loop_as_python_is_the_loop_in_machine_code(compiled, tmp_path, registers):
    """What a reader reads, and what a debugger steps through, is what runs; also with the tiles of a processor that has few registers."""
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1", "PYTHONPATH": str(ROOT), **registers}
    file = tmp_path / "results.pt"
    subprocess.run([sys.executable, "-W", "ignore", ROOT / "tests" / "calls.py", file], env=environment, check=True)
    python = torch.load(file)
    assert set(python["ran"]) == set(calls.loops()), "a loop that no call reaches"
    assert_close(python["results"], compiled)


def test_the_definition_gives_the_same(compiled):
    with algorithms.use("definition"):
        assert_close(calls.results(), compiled)


def wide():
    """Layers with enough to do to be shared among threads."""
    F, passes = calls.F, calls.passes
    return [
        *passes(lambda x, w, b: F.conv2d(x, w, b, padding=1), (3, 16, 23, 21), (24, 16, 3, 3), (24,), last=True),
        *passes(lambda x, w: F.conv2d(x, w, stride=2, groups=4), (2, 16, 23, 21), (24, 4, 3, 3)),
        *passes(lambda x, w: F.conv2d(x, w, padding=1, groups=32), (3, 32, 19, 17), (32, 1, 3, 3)),
        *passes(lambda x, w: F.conv2d(x, w, stride=2, groups=32), (3, 32, 19, 17), (32, 1, 3, 3), last=True),
        *passes(F.locally_connected2d, (1, 2, 40, 37), (38, 35, 2, 2, 3, 3)),
        *passes(F.locally_connected2d, (3, 2, 40, 37), (38, 35, 2, 2, 3, 3)),
        *passes(lambda x, w: calls.shared_local(x, w, None, (2, 3), None, 1, 0, 1, 1), (70, 5, 9, 11), (4, 3, 16, 5, 3, 3), twice=False),
        *passes(lambda x, w: calls.shared_local(x, w, None, (3, 4), None, 1, 0, 1, 1), (3, 4, 40, 37), (13, 9, 9, 4, 3, 3)),
        *passes(lambda x, w: calls.shared_local(x, w, None, (1, 1), (2, 2), 1, 0, 1, 1), (3, 4, 40, 37), (2, 2, 9, 4, 3, 3)),
        *(
            number
            for x, w, m in [((3, 5, 40, 37), (1, 9, 5, 3, 3), (1, 38, 35)), ((33, 16, 12, 11), (4, 20, 16, 3, 3), (4, 10, 9))]
            for number in passes(lambda x, w, m: calls.low_rank_local(2, x, w, m, None, 1, 0, 1, 1), x, w, m, twice=False)
        ),
        *passes(lambda x: F.max_pool2d(x, 3, 2, 1), (7, 13, 31, 29)),
        *passes(lambda x: F.max_pool2d(x, 3, 2, 1), (3, 77, 21, 19), last=True),
        *passes(lambda x: F.avg_pool2d(x, 3, 2, 1), (7, 13, 31, 29)),
        *passes(lambda x: F.avg_pool2d(x, 3, 2, 1), (3, 77, 21, 19), last=True),
        *passes(F.relu, (300, 201)),
        *passes(F.sigmoid, (300, 201)),
        *passes(lambda x: F.softmax(x, 1), (99, 401)),
        *passes(lambda x: F.softmax(x, 1), (5, 21, 33, 17)),
        *passes(calls.classes((99, 401)), (99, 401)),
    ]


def test_the_same_bits_with_any_number_of_threads():
    """Every sum of a loop has one order (rule 5)."""
    found = {}
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found[threads] = wide()
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    for threads in (2, 3):
        assert all(torch.equal(a, b) for a, b in zip(found[threads], found[1], strict=True))


def test_the_same_bits_at_every_call():
    assert all(torch.equal(a, b) for a, b in zip(wide(), wide(), strict=True))
