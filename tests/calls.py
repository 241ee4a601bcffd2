"""Small calls of every layer that loops compute, for tests that run them in another way: as Python, in other threads, in other processes.

`python calls.py FILE` computes all of them and writes the results, and which loops ran, to FILE.
"""

import importlib
import pkgutil
import sys

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from cnn425 import kernels
from cnn425.kernels.threads import Loop
from cnn425.layers.local import shared_local
from cnn425.layers.local_low_rank import low_rank_local
from cnn425.nn import functional as F

LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def loops():
    """Every loop of the package by name, `pool.route`."""
    found = {}
    for module in pkgutil.iter_modules(kernels.__path__):
        for name, value in vars(importlib.import_module(f"cnn425.kernels.{module.name}")).items():
            if isinstance(value, Loop):
                found[f"{module.name}.{name}"] = value
    return found


def passes(function, *shapes, last=False, dtype=torch.float32, twice=True):
    """The output and the gradients of every tensor, and with `twice` the second derivative for the first one."""
    generator = torch.Generator().manual_seed(425)

    def numbers(shape):
        return 2 * torch.rand(shape, generator=generator).to(dtype) - 1  # not randn, whose rounding depends on the processor

    leaves = [numbers(shape) for shape in shapes]
    if last:
        leaves[0] = leaves[0].to(memory_format=LAST[leaves[0].ndim])
    leaves = [t.requires_grad_() for t in leaves]
    y = function(*leaves)
    upstream = numbers(y.shape).requires_grad_()
    gradients = torch.autograd.grad(y, leaves, upstream, create_graph=twice)
    again = torch.autograd.grad(gradients[0], upstream, numbers(shapes[0]), allow_unused=True) if twice else ()
    return [t.detach() for t in (y, *gradients, *again) if t is not None]


class Largest(TorchDispatchMode):
    """The most numbers that any operator's result has."""

    def __init__(self):
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for t in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(t, torch.Tensor):
                self.numbers = max(self.numbers, t.untyped_storage().nbytes() // t.element_size())
        return result


def classes(shape, size=()):
    """Scores and targets of some classes, one of them ignored."""
    target = torch.arange(shape[0] * torch.Size(size).numel()).view(shape[0], *size) % shape[1]
    target[0] = -100
    return lambda x: F.cross_entropy(x, target, reduction="none")


CALLS = {
    "conv2d": lambda: passes(lambda x, w, b: F.conv2d(x, w, b, padding=1, stride=2), (2, 9, 17, 16), (11, 9, 3, 3), (11,)),
    "conv2d, channels last": lambda: passes(lambda x, w, b: F.conv2d(x, w, b, padding=1), (2, 9, 6, 7), (40, 9, 2, 3), (40,), last=True),
    "conv2d of few channels": lambda: passes(F.conv2d, (2, 3, 9, 12), (20, 3, 3, 2)),
    "conv2d of a tiny image": lambda: passes(F.conv2d, (2, 3, 5, 6), (7, 3, 3, 2)),
    "conv2d in groups": lambda: passes(lambda x, w: F.conv2d(x, w, groups=4), (2, 24, 9, 8), (28, 6, 2, 2)),
    "conv1d in float64": lambda: passes(lambda x, w: F.conv1d(x, w, dilation=2), (4, 16, 90), (19, 16, 3), dtype=torch.float64),
    "conv3d": lambda: passes(lambda x, w: F.conv3d(x, w, stride=(1, 2, 1)), (1, 5, 3, 4, 4), (3, 5, 2, 2, 3)),
    **{
        f"conv2d in groups of {G}": lambda G=G: passes(
            lambda x, w, b: F.conv2d(x, w, b, stride=2, padding=1, groups=40 // G), (2, 40, 9, 8), (40, G, 3, 2), (40,)
        )
        for G in (2, 4, 8)
    },
    "depthwise conv2d": lambda: passes(lambda x, w, b: F.conv2d(x, w, b, padding=1, groups=16), (2, 16, 9, 11), (16, 1, 3, 4), (16,)),
    "depthwise conv2d, strided": lambda: passes(
        lambda x, w: F.conv2d(x, w, stride=2, groups=16), (3, 16, 17, 15), (16, 1, 3, 3), last=True
    ),
    "locally_connected2d": lambda: passes(lambda x, w: F.locally_connected2d(x, w, padding=1), (3, 3, 4, 4), (4, 4, 5, 3, 3, 3)),
    "locally_connected2d of one channel": lambda: passes(F.locally_connected2d, (2, 1, 5, 5), (3, 3, 2, 1, 3, 3)),
    "blocks": lambda: passes(lambda x, w: shared_local(x, w, None, (2, 5), None, 1, 1, 1, 1), (3, 4, 4, 7), (2, 2, 5, 4, 3, 3)),
    "tiles": lambda: passes(lambda x, w, b: shared_local(x, w, b, (1, 1), (2, 3), 1, 1, 1, 1), (3, 4, 5, 7), (2, 3, 5, 4, 3, 3), (5, 2, 3)),
    **{
        f"low rank, derived {times}": lambda twice=times == "twice": passes(
            lambda x, w, m, b: low_rank_local(2, x, w, m, b, 1, 1, 1, 1), (2, 3, 5, 6), (2, 4, 3, 3, 3), (2, 5, 6), (4,), twice=twice
        )
        for times in ("once", "twice")
    },
    "low rank of many images": lambda: passes(
        lambda x, w, m: low_rank_local(2, x, w, m, None, 1, 0, 1, 1), (33, 2, 6, 5), (4, 3, 2, 3, 3), (4, 4, 3), twice=False
    ),
    "locally_connected1d in groups": lambda: passes(lambda x, w: F.locally_connected1d(x, w, groups=2), (1, 2, 9), (8, 4, 1, 2)),
    "max_pool2d": lambda: passes(lambda x: F.max_pool2d(x, 3, 2, 1), (2, 9, 7, 6)),
    "max_pool2d, channels last": lambda: passes(lambda x: F.max_pool2d(x, 3, 2, 1, ceil_mode=True), (2, 5, 8, 6), last=True),
    "max_pool3d in float64": lambda: passes(lambda x: F.max_pool3d(x, 2, 1, dilation=2), (2, 8, 6, 8, 8), dtype=torch.float64),
    "adaptive_max_pool2d": lambda: passes(lambda x: F.adaptive_max_pool2d(x, (3, 2)), (2, 3, 7, 5)),
    "avg_pool2d": lambda: passes(lambda x: F.avg_pool2d(x, 3, 2, 1), (2, 9, 7, 6)),
    "avg_pool2d, channels last": lambda: passes(lambda x: F.avg_pool2d(x, 2, count_include_pad=False), (2, 5, 8, 6), last=True),
    "adaptive_avg_pool1d": lambda: passes(lambda x: F.adaptive_avg_pool1d(x, 4), (2, 3, 9)),
    "lp_pool2d": lambda: passes(lambda x: F.lp_pool2d(x.exp(), 2.0, 2), (2, 3, 6, 4)),
    "relu": lambda: passes(F.relu, (3, 7)),
    "sigmoid": lambda: passes(F.sigmoid, (3, 7)),
    "softmax": lambda: passes(lambda x: F.softmax(x, 1), (3, 21)),
    "softmax along pixels": lambda: passes(lambda x: F.softmax(x, 1), (2, 4, 3, 2)),
    "cross_entropy": lambda: passes(classes((4, 19)), (4, 19)),
    "cross_entropy of pixels": lambda: passes(classes((2, 4), (3, 2)), (2, 4, 3, 2)),
}


def results():
    """The results of all calls; also backward passes that nobody differentiates again, which are loops of their own."""
    found = {name: call() for name, call in CALLS.items()}
    for name, function in {"sigmoid": F.sigmoid, "softmax": lambda x: F.softmax(x, 1), "cross_entropy": classes((3, 18))}.items():
        x = torch.randn(3, 18, generator=torch.Generator().manual_seed(1)).requires_grad_()
        y = function(x)
        found[f"{name}, backward"] = list(torch.autograd.grad(y, x, torch.randn(y.shape, generator=torch.Generator().manual_seed(2))))
    return found


if __name__ == "__main__":
    found = results()
    torch.save({"results": found, "ran": [name for name, loop in loops().items() if loop.compiled is not None]}, sys.argv[1])
