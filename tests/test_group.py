"""One process or several: the same examples at every step, the same numbers to rounding, one writer."""

import csv
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from forked import FORKED_WORKERS, Forked

from cnn425.lab import checkpoint
from cnn425.lab.board import scalars
from cnn425.lab.errors import LabError
from cnn425.lab.group import Group, joined, torch_device

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("world", [1, 2, 3, 5])
@pytest.mark.parametrize("size", [1, 4, 64])
def test_shares_are_a_partition_in_order(world, size):
    indices = torch.randperm(size)
    shares = [Group(rank, world, torch.device("cpu")).share(indices) for rank in range(world)]
    assert torch.equal(torch.cat(shares), indices)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_without_torchrun_there_is_one_process(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    with joined("cpu") as group:
        assert (group.rank, group.world, group.first) == (0, 1, True)
        assert group.gathered("x") == ["x"]
        assert group.from_first("x") == "x"


@pytest.mark.parametrize("name", ["cuda:99", "abacus", "meta", "hpu", "xla", "vulkan", "mps", "cuda:-1"])
def test_a_device_that_is_not_there_is_one_whole_sentence(name):
    with pytest.raises(LabError, match=rf"^--device {name}: [^\n]{{1,100}}; there is cpu(, \w+:\d+)*$"):
        torch_device(name)


LAUNCHED = []


@pytest.fixture(autouse=True)
def none_goes_on_into_another_test():
    yield
    for process in LAUNCHED:
        process.kill()  # torchrun's workers are sent SIGTERM by the system
        process.communicate()
    LAUNCHED.clear()


def launch(folder, processes, *words, launcher=("--standalone",), forked=True):
    """mnist.py on patterns, alone or under torchrun; 25 examples in the last batch of an epoch, so shares are unequal."""
    training = FORKED_WORKERS if forked else ("-m", "experiments.mnist")
    alone = processes == 1 and len(launcher) == 1
    run = ["experiments.mnist"] if alone else ["torch.distributed.run", *launcher, "--nproc-per-node", str(processes), *training]
    common = ["--dataset", "patterns", "--examples", "125", "--batch-size", "50", "--epochs", "2", "--log-dir", str(folder)]
    command = ["-m", *run, *common, *words]
    if forked:
        LAUNCHED.append(Forked(command))
    else:
        how = {"cwd": ROOT, "env": {**os.environ, "OMP_NUM_THREADS": "1"}, "text": True}
        LAUNCHED.append(subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **how))
    return LAUNCHED[-1]


def train(folder, processes, *words, forked=True):
    process = launch(folder, processes, *words, forked=forked)
    out, _ = process.communicate(timeout=500)
    assert process.returncode == 0, out
    return out, checkpoint.read(checkpoint.checkpoints(folder)[0]), list(csv.DictReader((folder / "metrics.csv").read_text().splitlines()))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "forked"),
    [(("--model", "conv"), False), (("--model", "local", "--shard"), True)],
    ids=["copies (DDP), the command of a user", "shards (FSDP2)"],
)
def test_two_processes_do_what_one_does(words, forked, tmp_path):
    words = (*words, "--optimizer", "sgd", "--lr", "0.2")  # Adam would magnify rounding where a gradient is nearly zero
    _, alone, rows = train(tmp_path / "one", 1, *words)
    out, both, rows_of_two = train(tmp_path / "two", 2, *words, forked=forked)
    assert out.count("tensorboard --logdir") == 1, "one process speaks"
    assert len(rows) == len(rows_of_two)
    for row, other in zip(rows, rows_of_two, strict=True):
        for column in row:
            assert bool(row[column]) == bool(other[column])
            if row[column]:
                assert float(row[column]) == pytest.approx(float(other[column]), rel=1e-3, abs=1e-5), (row, column)
    torch.testing.assert_close(alone["model"], both["model"], rtol=1e-3, atol=1e-5)


def said_by_two(path, program, *words):
    """What two processes of torchrun that run a program say of themselves, in order."""
    path.write_text(program)
    run = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    LAUNCHED.append(Forked([*run, *FORKED_WORKERS[:-1], str(path), *words]))
    out, _ = LAUNCHED[-1].communicate(timeout=500)
    assert LAUNCHED[-1].returncode == 0, out
    return sorted(line for line in out.splitlines() if line.startswith("process"))


SHARDED = """
import sys
import torch
from cnn425.lab import shards
from cnn425.lab.group import joined
from cnn425.lab.models import build
with joined("cpu") as group:
    model = build("local", "custom", 0, classes=3)
    whole = [p.detach().clone() for p in model[0].parameters()]
    shards.shard(model, group.world, "cpu")
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.rand(2, 1, 28, 28)).sum().backward()
    optimizer.step()
    for p, before in zip(model[0].parameters(), whole):
        rows = before.tensor_split(group.world)[group.rank]
        kept = [p.to_local(), p.grad.to_local(), optimizer.state[p]["exp_avg"].to_local()]
        assert [part.shape for part in kept] == [rows.shape] * 3, [part.shape for part in kept]
        assert (p.to_local() - rows).abs().max() < 0.01, "its own rows of positions"
    mine = tuple(model[0].weight.to_local().shape)
    # in one piece, the end of the line too: both processes write to one pipe
    sys.stdout.write(f"process {group.rank} holds {mine[0]} of {len(whole[0])} rows\\n")
    sys.stdout.flush()
"""


@pytest.mark.slow
def test_each_process_holds_the_weights_gradients_and_optimiser_state_of_its_positions(tmp_path):
    assert said_by_two(tmp_path / "sharded.py", SHARDED) == [f"process {rank} holds 14 of 28 rows" for rank in range(2)]


FREED = """
import gc
import sys
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from experiments import patterns
destroy = dist.destroy_process_group
def watched():
    left = sum(isinstance(thing, DistributedDataParallel) for thing in gc.get_objects())
    sys.stdout.write(f"process {dist.get_rank()} leaves with {left} copies\\n")
    sys.stdout.flush()
    destroy()
dist.destroy_process_group = watched
patterns.main(["--epochs", "1", "--log-dir", sys.argv[1]])
"""


@pytest.mark.slow
def test_a_shared_network_is_gone_before_its_process_group(tmp_path):
    """One that is freed later waits for threads that wait for it: with torch 2.11 some processes never ended."""
    said = said_by_two(tmp_path / "freed.py", FREED, str(tmp_path / "run"))
    assert said == [f"process {rank} leaves with 0 copies" for rank in range(2)]


RESUMED = """
import torch
from cnn425.lab.group import joined
from cnn425.lab.models import build
from cnn425.lab.options import Options
from cnn425.lab.pictures import pattern_images
from cnn425.lab.training import Training, settings
with joined("cpu") as group, settings(Options(), group.rank):
    pictures = pattern_images(50, size=28, seed=0)
    run = Training(Options(layers="torch"), build("linear", "torch", 0, classes=3), pictures, pictures, group, None)
    state, drawn = run.state_dict(), torch.rand(3)
    run.load_state_dict(state)
    assert torch.equal(torch.rand(3), drawn), "the numbers of another process"
    assert len(set(group.gathered(tuple(drawn.tolist())))) == group.world
    del run
"""


@pytest.mark.slow
def test_each_process_goes_on_with_its_own_random_numbers(tmp_path):
    said_by_two(tmp_path / "resumed.py", RESUMED)


@pytest.mark.slow
def test_sharded_run_that_was_stopped_ends_with_the_same_bits(tmp_path):
    words = ("--model", "local", "--shard", "--checkpoint-seconds", "0", "--epochs", "8")  # not over before it is stopped
    train(tmp_path / "whole", 2, *words)
    stopped = launch(tmp_path / "stopped", 2, *words)
    deadline = time.monotonic() + 300
    while not checkpoint.checkpoints(tmp_path / "stopped") and time.monotonic() < deadline:
        time.sleep(0.01)
    stopped.send_signal(signal.SIGTERM)
    out, _ = stopped.communicate(timeout=300)
    assert stopped.returncode != 0, out
    assert out.count("stopped by SIGTERM after step") == 1, "one process speaks"
    out, state, _ = train(tmp_path / "stopped", 2, *words)
    whole = checkpoint.read(checkpoint.checkpoints(tmp_path / "whole")[0])
    assert "resuming after step" in out
    torch.testing.assert_close(state["model"], whole["model"], rtol=0, atol=0)
    torch.testing.assert_close(state["optimizer"]["state"], whole["optimizer"]["state"], rtol=0, atol=0)
    assert (tmp_path / "whole/metrics.csv").read_bytes() == (tmp_path / "stopped/metrics.csv").read_bytes()
    curves = [[p for p in scalars(tmp_path / name) if not p[0].startswith("speed")] for name in ("whole", "stopped")]
    assert curves[0] == curves[1]


@pytest.mark.slow
def test_two_machines_of_one_process_are_one_machine_of_two(tmp_path):
    """Two launchers on this machine, which find each other through the rendezvous, as in docs/cluster.md."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = ("--nnodes", "2", "--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-id", "test")
    machines = [launch(tmp_path / "machines", 1, "--model", "linear", launcher=launcher) for _ in range(2)]
    for machine in machines:
        out, _ = machine.communicate(timeout=500)
        assert machine.returncode == 0, out
    train(tmp_path / "two", 2, "--model", "linear")
    assert (tmp_path / "machines/metrics.csv").read_bytes() == (tmp_path / "two/metrics.csv").read_bytes()
