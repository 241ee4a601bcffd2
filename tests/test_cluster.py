"""Two hosts emulated on this machine, as docs/cluster.md says: own network, own name, one cable between them; needs the rights of root."""

import os
import signal
import subprocess
import time

import pytest
from forked import FORKED_WORKERS, ROOT, Forked

from cnn425.lab import checkpoint

HOSTS = {"first": "10.213.0.1", "second": "10.213.0.2"}
WORDS = ["--dataset", "patterns", "--examples", "160", "--batch-size", "16", "--model", "linear", "--epochs", "40"]
WORDS += ["--checkpoint-seconds", "0.2"]
LAUNCHER = ["--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-endpoint", "first:29500", "--rdzv-id", "test"]


class Host:
    """Namespaces for network, host name and mounts, which last as long as a sleeping process."""

    def __init__(self, name, names):
        begin = f"hostname {name} && mount --bind {names} /etc/hosts && ip link set lo up && echo ready && exec sleep 900"
        self.name = name
        self.holder = subprocess.Popen(
            ["unshare", "--net", "--uts", "--mount", "sh", "-c", begin], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert self.holder.stdout is not None
        self.ready = self.holder.stdout.readline() == "ready\n"

    def start(self, *command, **how):
        inside = ["nsenter", "--target", str(self.holder.pid), "--net", "--uts", "--mount", *command]
        return subprocess.Popen(inside, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT, **how)

    def train(self, folder, *more):
        words = ["-m", "torch.distributed.run", *LAUNCHER, *more, *FORKED_WORKERS, *WORDS, "--log-dir", str(folder)]
        return Forked(words, namespaces=self.holder.pid)

    def close(self):
        self.holder.kill()
        self.holder.communicate()


@pytest.fixture
def hosts(tmp_path):
    names = tmp_path / "hosts"
    names.write_text("127.0.0.1 localhost\n" + "".join(f"{address} {name}\n" for name, address in HOSTS.items()))
    pair = []
    try:
        pair = [Host(name, names) for name in HOSTS]
        ends = [f"c{host.holder.pid}" for host in pair]
        cable = subprocess.run(["ip", "link", "add", ends[0], "type", "veth", "peer", "name", ends[1]], capture_output=True)
        if cable.returncode or not all(host.ready for host in pair):
            pytest.skip("this user may not make namespaces and network cables")
        for host, end in zip(pair, ends, strict=True):
            subprocess.run(["ip", "link", "set", end, "netns", str(host.holder.pid)], check=True)
            plug = f"ip addr add {HOSTS[host.name]}/24 dev {end} && ip link set {end} up"
            assert outputs([host.start("sh", "-c", plug)]) == [("", 0)]
        yield pair
    except FileNotFoundError as error:
        pytest.skip(f"{error.filename} is not installed")
    finally:
        for host in pair:
            host.close()


def outputs(launchers):
    return [(launcher.communicate(timeout=500)[0], launcher.returncode) for launcher in launchers]


@pytest.fixture(scope="module")
def metrics_of_one_host(tmp_path_factory):
    """What two processes on one host write, left alone."""
    folder = tmp_path_factory.mktemp("one")
    run = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *FORKED_WORKERS, *WORDS, "--log-dir", str(folder)]
    ((said, code),) = outputs([Forked(run)])
    assert code == 0, said
    return (folder / "metrics.csv").read_bytes()


@pytest.mark.slow
def test_two_hosts_are_one_run_and_a_worker_killed_on_one_of_them_costs_nothing(hosts, tmp_path, metrics_of_one_host):
    first, second = hosts
    assert "second" in second.start("hostname").communicate()[0]
    folder = tmp_path / "run"
    launchers = [first.train(folder, "--max-restarts", "2"), second.train(folder, "--max-restarts", "2")]
    deadline = time.monotonic() + 300
    while not checkpoint.checkpoints(folder) and time.monotonic() < deadline:
        time.sleep(0.01)
    (worker,) = subprocess.run(["ps", "-o", "pid=", "--ppid", str(launchers[1].pid)], capture_output=True, text=True).stdout.split()
    os.kill(int(worker), signal.SIGKILL)
    told = outputs(launchers)
    assert [code for _, code in told] == [0, 0], told
    assert sum(words.count("resuming after step") for words, _ in told) == 1, told
    assert sum(words.count("tensorboard --logdir") for words, _ in told) == 1, "one process speaks"
    assert (folder / "metrics.csv").read_bytes() == metrics_of_one_host


@pytest.mark.slow
def test_a_host_that_is_lost_ends_the_run_and_the_same_commands_go_on(hosts, tmp_path, metrics_of_one_host):
    first, second = hosts
    folder = tmp_path / "run"
    launchers = [first.train(folder), second.train(folder)]
    deadline = time.monotonic() + 300
    while not checkpoint.checkpoints(folder) and time.monotonic() < deadline:
        time.sleep(0.01)
    launchers[1].kill()  # its worker is sent SIGTERM by the system: both stop at the same step
    (words, code), _ = outputs(launchers)
    assert code != 0
    assert "kept" in words or "has died" in words, words
    told = outputs([first.train(folder), second.train(folder)])
    assert [code for _, code in told] == [0, 0], told
    assert (folder / "metrics.csv").read_bytes() == metrics_of_one_host
