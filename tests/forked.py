"""Python commands as forks of one process that has trained already: importing torch and the first step cost ten seconds of each process.

`torch.distributed.run` is such a command, too; its workers are forks of it with `FORKED_WORKERS`, where others name a module.
"""

import contextlib
import ctypes
import importlib.util
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from multiprocessing import forkserver
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).parents[1]
FORKED_WORKERS = ("--start-method", "fork", "--run-path", str(ROOT / "experiments/mnist.py"))
FIXED = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}  # a process that forks must not have threads, of OpenMP or one per GPU


def served():
    """The context of processes that the server forks; it is started at the first of them."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["warm"])
    path = os.pathsep.join(map(str, (ROOT, ROOT / "tests", ROOT / "scripts")))
    with mock.patch.dict(os.environ, {**FIXED, "PYTHONPATH": path}):
        forkserver.ensure_running()
    return context


def run(words, out, environment, namespaces):
    """What the fork does: `python -m MODULE WORDS` or `python -c CODE WORDS`."""
    if namespaces:
        for kind in ("net", "uts", "mnt"):
            with open(f"/proc/{namespaces}/ns/{kind}") as file:
                assert ctypes.CDLL(None, use_errno=True).setns(file.fileno(), 0) == 0, os.strerror(ctypes.get_errno())
    os.chdir(ROOT)
    os.environ.clear()
    os.environ.update(environment)
    file = os.open(out, os.O_WRONLY | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    how, what, *sys.argv[1:] = words
    if how == "-c":
        exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv[0] = importlib.util.find_spec(what).origin
        runpy.run_path(sys.argv[0], run_name="__main__")


class Forked:
    """The part of `subprocess.Popen` that tests use; what the process says on both streams comes from `communicate`."""

    def __init__(self, words, environment=None, namespaces=None):
        descriptor, self.out = tempfile.mkstemp()
        os.close(descriptor)
        environment = {**os.environ, **FIXED, **(environment or {})}
        self.process = served().Process(target=run, args=(words, self.out, environment, namespaces))
        self.process.start()
        self.pid = self.process.pid

    @property
    def returncode(self):
        return self.process.exitcode

    def poll(self):
        return self.process.exitcode

    def send_signal(self, number):
        if self.returncode is None:
            os.kill(self.pid, number)

    def kill(self):
        self.process.kill()

    def communicate(self, timeout=None):
        self.process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(self.process.name, timeout, Path(self.out).read_bytes())
        said = Path(self.out).read_text() if Path(self.out).exists() else ""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.out)
        return said, ""
