"""Layers and the lab on a device that is not the CPU, as far as that can be seen without one: nothing here measures a GPU."""

import os
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from cnn425 import algorithms
from cnn425.lab.errors import LabError
from cnn425.lab.group import joined
from cnn425.lab.options import Options
from cnn425.lab.training import settings

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
import compare_layers  # noqa: E402

sys.path.remove(str(ROOT / "scripts"))


def pretend(*words):
    """A program in a process that has the device of pretend.py."""
    command = [sys.executable, "tests/pretend.py", *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_every_layer_computes_and_differentiates_where_its_tensors_are():
    """Values and gradients are torch's; a table or a mask made on the CPU would be refused beside the tensors of the device."""
    assert "37 of 37 layers agree with torch (float32, pretend, " in pretend(
        "scripts/compare_layers.py", "--device", "pretend", "--repeats", "1", "--no-gradcheck"
    )


@pytest.mark.slow
def test_the_labs_own_loop_trains_there(tmp_path):
    assert "recognises 100 % of the three patterns" in pretend(
        "experiments/patterns.py", "--device", "pretend", "--log-dir", str(tmp_path / "run")
    )


ASKED = """
import torch
from cnn425 import algorithms
from cnn425.algorithms import fft, im2col, winograd
from cnn425.nn import functional as F

ran = []
for module in (fft, im2col, winograd):
    for name in ("output", "input_gradient", "weight_gradient"):
        def counted(*a, f=getattr(module, name), words=f"{module.__name__.split('.')[-1]}.{name}"):
            ran.append(words)
            return f(*a)
        setattr(module, name, counted)
x, w = torch.randn(2, 3, 8, 8, device="pretend", requires_grad=True), torch.randn(4, 3, 3, 3, device="pretend", requires_grad=True)
for asked in ("definition", "im2col", "winograd", "fft"):
    with algorithms.use(asked):
        F.conv2d(x, w).sum().backward()
print(*sorted(set(ran)))
"""


def test_an_algorithm_that_is_asked_for_computes_on_any_device(tmp_path):
    (tmp_path / "asked.py").write_text(ASKED)
    maps = ("input_gradient", "output", "weight_gradient")
    assert pretend(str(tmp_path / "asked.py")).split() == [f"{name}.{map_}" for name in ("fft", "im2col", "winograd") for map_ in maps]


def test_an_algorithm_that_is_asked_for_holds_in_the_backward_pass_of_any_device():
    """Torch computes the backward pass of a GPU in threads of its own, in which the choice of this thread is not known."""
    assert torch.autograd.is_multithreading_enabled()
    with algorithms.use("im2col"):
        assert not torch.autograd.is_multithreading_enabled()
    assert torch.autograd.is_multithreading_enabled()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", get_args(compare_layers.Name))
def test_outputs_of_cuda_tensors_are_cuda_tensors(name, dtype):
    """Shapes, dtypes and devices of the forward pass, by torch's tensors without numbers; the backward pass would need a driver."""
    with FakeTensorMode():
        ours, theirs, inputs = compare_layers.problem(name, compare_layers.Options(device="cuda", dtype=dtype))
        last = (
            [inputs[0].to(memory_format={4: torch.channels_last, 5: torch.channels_last_3d}[inputs[0].ndim])] if inputs[0].ndim > 3 else []
        )
        for x in (inputs[0], *last):
            y, expected = ours(x, *inputs[1:]), theirs(x, *inputs[1:])
            assert (y.device, y.dtype, y.shape) == (expected.device, expected.dtype, expected.shape)
            assert y.device.type == "cuda"


def test_a_run_on_a_gpu_asks_for_sums_in_order_and_full_precision_and_leaves_no_trace(monkeypatch):
    """Without the variable, deterministic mode refuses the matrix products of a GPU; TF32 rounds what torch's convolutions read."""
    name = "CUBLAS_WORKSPACE_CONFIG"
    monkeypatch.delenv(name, raising=False)
    before = torch.backends.cudnn.allow_tf32
    with settings(Options(device="cuda")):
        assert os.environ[name] == ":4096:8"
        assert not torch.backends.cudnn.allow_tf32
    assert name not in os.environ
    assert torch.backends.cudnn.allow_tf32 == before
    monkeypatch.setenv(name, ":16:8")
    with settings(Options(device="cuda")):
        assert os.environ[name] == ":16:8"
    assert os.environ[name] == ":16:8"


def test_one_gpu_for_two_processes_is_refused_before_they_meet(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with (
        pytest.raises(LabError, match=r"^--device cuda:0: one GPU for several processes; --device cuda gives each its own$"),
        joined("cuda:0"),
    ):
        pass
