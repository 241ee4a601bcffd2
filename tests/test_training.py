"""What a run finds in its process it leaves there, and what it does not depend on may be anything."""

import contextlib
import io
import logging
import random
import signal
import warnings

import matplotlib
import numpy
import pytest
import torch

from cnn425.lab import checkpoint, training
from cnn425.lab.options import Options
from experiments import counting, mnist, patterns, shift


def surroundings():
    """Everything of the process that a run could leave changed."""
    python, (name, keys, *rest) = random.getstate(), numpy.random.get_state()  # noqa: NPY002
    return {
        "deterministic": (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()),
        "fill": torch.utils.deterministic.fill_uninitialized_memory,
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "dtype": torch.get_default_dtype(),
        "gradients": torch.is_grad_enabled(),
        "random": (torch.get_rng_state().tolist(), python, name, keys.tolist(), rest),
        "matplotlib": dict(matplotlib.rcParams),
        "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
        "logging": (logging.root.level, list(logging.root.handlers), logging.root.manager.disable),
        "warnings": list(warnings.filters),
    }


@pytest.fixture
def restored():
    """Changes that a test makes end with it."""
    before = surroundings()
    with matplotlib.rc_context():
        yield
    torch.use_deterministic_algorithms(before["deterministic"][0], warn_only=before["deterministic"][1])
    torch.utils.deterministic.fill_uninitialized_memory = before["fill"]
    torch.set_num_threads(before["threads"][0])


RUNS = {
    "training": lambda folder: mnist.main([*mnist.TINY, "--model", "linear", "--threads", "2", "--log-dir", str(folder)]),
    "dry run": lambda folder: mnist.main([*mnist.TINY, "--model", "linear", "--dry-run"]),
    "study": lambda folder: counting.main(["--threads", "2", "--log-dir", str(folder)]),
    "patterns": lambda folder: patterns.main([*patterns.TINY, "--log-dir", str(folder)]),
    "shift": lambda folder: shift.main([*shift.TINY, "--log-dir", str(folder)]),
}


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize(("mode", "warn"), [(True, True), (True, False), (False, False)])
def test_the_process_is_as_it_was(name, mode, warn, tmp_path, restored):
    torch.use_deterministic_algorithms(mode, warn_only=warn)
    torch.utils.deterministic.fill_uninitialized_memory = True
    matplotlib.rcParams.update({"savefig.format": "pdf", "figure.dpi": 30, "font.size": 3})
    before = surroundings()
    with contextlib.redirect_stdout(io.StringIO()):
        RUNS[name](tmp_path)
    assert surroundings() == before


def test_the_process_is_as_it_was_after_an_error(restored):
    torch.use_deterministic_algorithms(True, warn_only=True)
    before = surroundings()

    def fails():
        with training.settings(Options(threads=2)):
            torch.set_default_dtype(torch.float64)
            return torch.rand(1).item() / 0

    with pytest.raises(ZeroDivisionError):
        fails()
    assert surroundings() == before


def test_a_figure_has_our_style_whatever_matplotlib_is_told(tmp_path, restored):
    counting.main(["--log-dir", str(tmp_path / "plain")])
    strange = {"savefig.format": "pdf", "figure.dpi": 30, "font.size": 3, "axes.facecolor": "black", "savefig.transparent": True}
    matplotlib.rcParams.update(strange)
    counting.main(["--log-dir", str(tmp_path / "strange")])
    assert (tmp_path / "plain/counting.png").read_bytes() == (tmp_path / "strange/counting.png").read_bytes()


def drawn(seed, rank=0):
    with training.settings(Options(seed=seed), rank):
        return torch.rand(3).tolist(), random.random(), numpy.random.rand(3).tolist()  # noqa: NPY002


@pytest.mark.parametrize("seed", [0, 1, -1, 2**40])
def test_a_seed_decides_and_each_process_has_numbers_of_its_own(seed):
    assert drawn(seed) == drawn(seed)
    for mine, theirs in zip(drawn(seed), drawn(seed, rank=1), strict=True):
        assert mine != theirs
    assert drawn(seed) != drawn(seed + 1)


def test_seeding_is_not_the_stream_of_the_initial_weights():
    checkpoint.seed(0)
    first = torch.rand(3)
    torch.manual_seed(0)
    assert not torch.equal(first, torch.rand(3)), "Dropout would be correlated with the weights it drops"
