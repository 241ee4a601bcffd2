"""A reference is accurate, and a window is a window (rule 4); scripts/accuracy.py tells the errors of every algorithm."""

import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from cnn425 import algorithms, nn
from cnn425.nn import functional as F

PATH = Path(__file__).parents[1] / "scripts" / "accuracy.py"
spec = importlib.util.spec_from_file_location("accuracy", PATH)
accuracy = importlib.util.module_from_spec(spec)
sys.modules["accuracy"] = accuracy  # dataclasses look their module up
spec.loader.exec_module(accuracy)


TORCH = torch.nn.functional
LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def test_the_table_has_every_algorithm_and_every_error_is_that_of_float32(monkeypatch, capsys):
    monkeypatch.setattr(accuracy, "CASES", (("small", (2, 16, 9, 9), 16, 3, 2), ("large kernel", (1, 4, 20, 20), 4, 9, 1)))
    table = accuracy.main(accuracy.Options())
    assert set(table["small"]) == {"torch", "default", "definition", "im2col", "winograd", "fft"}
    assert set(table["large kernel"]) == {"torch", "default", "definition", "im2col", "fft"}
    assert all(1e-8 < error < 3e-5 for rows in table.values() for errors in rows.values() for error in errors)
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("|") for line in lines) == 2 + 6 + 5
    assert lines[0].startswith("Claim: ")
    assert any(line.startswith(("Holds: the errors are", "Does not hold: the errors are")) for line in lines)
    assert lines[-1].startswith("next: ")


@dataclass(frozen=True)
class Shape:
    name: str
    image: tuple[int, ...]
    outputs: int
    kernel: tuple[int, ...]
    groups: int = 1
    stride: int = 1
    padding: int = 0
    dilation: int = 1

    def tensors(self, draw=torch.randn):
        x, w = draw(self.image), draw((self.outputs, self.image[1] // self.groups, *self.kernel))
        return x, w, draw(self.call(TORCH, x, w).shape)

    def call(self, library, x, w):
        function = getattr(library, f"conv{len(self.kernel)}d")
        return function(x, w, None, self.stride, self.padding, self.dilation, self.groups)

    def maps(self, library, x, w, gy):
        """Output and both gradients."""
        x, w = x.detach().requires_grad_(), w.detach().requires_grad_()
        y = self.call(library, x, w)
        return (y.detach(), *torch.autograd.grad(y, (x, w), gy))


SHAPES = [
    Shape("one cell", (2, 24, 15, 14), 20, (1, 1)),
    Shape("one cell of few channels", (2, 3, 15, 14), 20, (1, 1)),
    Shape("a tiny image", (1, 1, 8, 8), 1, (3, 3)),
    Shape("3x3", (2, 24, 15, 14), 40, (3, 3), padding=1),
    Shape("3x3, wide", (2, 64, 28, 28), 64, (3, 3), padding=1),
    Shape("3x3 of colours", (2, 3, 30, 31), 20, (3, 3), padding=1),
    Shape("3x3 to one channel", (2, 20, 17, 18), 1, (3, 3)),
    Shape("3x3, strided", (2, 16, 21, 20), 24, (3, 3), stride=2, padding=1),
    Shape("3x3, dilated", (2, 16, 21, 20), 24, (3, 3), padding=3, dilation=3),
    Shape("stem", (1, 3, 64, 64), 32, (7, 7), stride=2, padding=3),
    Shape("patches", (1, 3, 48, 48), 32, (8, 8), stride=8),
    Shape("15x15", (1, 6, 40, 40), 8, (15, 15), padding=7),
    Shape("groups", (2, 32, 15, 14), 48, (3, 3), groups=4, padding=1),
    Shape("many groups", (2, 64, 15, 14), 64, (3, 3), groups=32, padding=1),
    Shape("depthwise", (2, 48, 20, 21), 48, (3, 3), groups=48, padding=1),
    Shape("depthwise, strided", (2, 48, 20, 21), 48, (5, 5), groups=48, stride=2, padding=2),
    Shape("depthwise with a multiplier", (2, 24, 20, 21), 48, (3, 3), groups=24),
    Shape("signal", (3, 16, 300), 24, (9,), padding=4),
    Shape("long signal", (1, 1, 3000), 16, (80,), stride=4),
    Shape("volume", (1, 12, 7, 13, 12), 16, (3, 3, 3), padding=1),
    Shape("volume, strided", (1, 12, 7, 13, 12), 16, (3, 2, 3), stride=2),
]
shapes = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
layouts = pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])


def laid(t, last):
    return t.to(memory_format=LAST[t.ndim]) if last and t.ndim in LAST else t


@layouts
@shapes
def test_the_error_is_at_most_twice_torchs(shape, last):
    """The root mean square of the difference from float64, of output and both gradients."""
    x, w, gy = shape.tensors()
    exact = shape.maps(TORCH, x.double(), w.double(), gy.double())
    theirs = shape.maps(TORCH, laid(x, last), w, gy)
    for mine, torchs, expected in zip(shape.maps(F, laid(x, last), w, gy), theirs, exact, strict=True):
        error, allowed, size = (t.pow(2).mean().sqrt() for t in (mine - expected, torchs - expected, expected))
        least = 0.5 * torch.finfo(torch.float32).eps * size  # half a rounding is as good as none, where torch happens to have none
        assert error <= 2 * allowed + least


@layouts
@shapes
def test_whole_numbers_stay_whole(shape, last):
    """Sums below 2**24 are exact in float32, whatever the order."""
    x, w, gy = shape.tensors(lambda size: torch.randint(-8, 9, size).float())
    exact = shape.maps(TORCH, x.double(), w.double(), gy.double())
    assert all(t.abs().max() < 2**24 for t in exact)
    for mine, expected in zip(shape.maps(F, laid(x, last), w, gy), exact, strict=True):
        assert torch.equal(mine.double(), expected)


@layouts
@shapes
def test_products_that_are_not_negative_never_sum_to_a_negative_number(shape, last):
    """As a square root or a logarithm behind the layer expects."""
    sparse = lambda size: torch.rand(size) * (torch.rand(size) < 0.1) * 10 ** torch.randint(-6, 7, size)  # noqa: E731
    for mine in shape.maps(F, *(laid(t, last) if k == 0 else t for k, t in enumerate(shape.tensors(sparse)))):
        assert (mine >= 0).all()


@layouts
@shapes
def test_a_pixel_outside_a_window_never_changes_a_bit_of_its_output(shape, last):
    """However large it is: enormous, infinite or undefined."""
    x, w, _ = shape.tensors()
    middle = (0, 0, *(n // 2 for n in x.shape[2:]))
    where = torch.zeros_like(x)
    where[middle] = 1
    sees = shape.call(TORCH, where, torch.ones_like(w)) > 0.5
    assert sees.any()
    before = shape.call(F, laid(x, last), w)
    for spoiled in (1e30, torch.inf, torch.nan):
        other = x.clone()
        other[middle] = spoiled
        after = shape.call(F, laid(other, last), w)
        assert torch.equal(before[~sees], after[~sees])
        assert not torch.equal(before[sees], after[sees])


@layouts
@shapes
def test_a_pixel_outside_a_window_gets_no_gradient(shape, last):
    """And no other channel, image or kernel does, where the gradient of one output is infinite."""
    x, w, gy = shape.tensors()
    middle = (0, 0, *(n // 2 for n in gy.shape[2:]))
    for gradient in (1.0, 1e30, torch.inf):
        gy = torch.zeros_like(gy)
        gy[middle] = gradient
        _, gx, gw = shape.maps(F, laid(x, last), w, gy)
        _, theirs, torchs = shape.maps(TORCH, x.double(), torch.ones_like(w).double(), gy.double())
        assert not gx[theirs == 0].any()
        assert gx.any()
        assert not gw[1:].any()
        assert not gw[:1][torchs[:1] == 0].any()


@pytest.mark.parametrize("infinity", [torch.inf, -torch.inf])
@shapes
def test_an_infinite_weight_reaches_the_pixels_that_it_meets_and_no_others(shape, infinity):
    """Zero times infinity would be NaN: the gradient of a pixel at the edge has no product with cells that never show it."""
    x, w, gy = shape.tensors()
    w[(0, 0, *(0,) * len(shape.kernel))] = infinity
    gy = gy.abs() + 0.1
    _, mine, _ = shape.maps(F, x, w, gy)
    with algorithms.use("definition"):
        _, expected, _ = shape.maps(F, x, w, gy)
    assert torch.equal(mine.isinf(), expected.isinf())
    assert torch.equal(mine.isnan(), expected.isnan())


@shapes
def test_a_weight_that_is_zero_hides_its_pixel(shape):
    """Masked convolutions (PixelCNN): what comes after a pixel has no part in it, in the last bit."""
    x, w, _ = shape.tensors()
    if torch.Size(shape.kernel).numel() == 1 or max(shape.dilation, shape.stride) > 1:
        return
    cells = torch.arange(torch.Size(shape.kernel).numel()).view(shape.kernel)
    mask = (cells < cells.numel() // 2).float()  # cells before the middle, in reading order
    shown = shape.call(F, x, w * mask)
    later = x.clone()
    line = (shown.shape[2] // 2) + shape.kernel[0] // 2 - shape.padding  # of pixels: the middle of the windows of an output line
    if len(shape.kernel) == 1 or line + 1 >= x.shape[2]:
        return
    later[:, :, line + 1 :] = torch.randn_like(later[:, :, line + 1 :]) * 1e6
    assert torch.equal(shape.call(F, later, w * mask)[:, :, : shown.shape[2] // 2 + 1], shown[:, :, : shown.shape[2] // 2 + 1])


def test_the_receptive_field_of_a_stack_ends_where_it_ends():
    layers = [nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.Conv2d(8, 8, 3, dilation=2, padding=2, groups=8)]
    model, x = torch.nn.Sequential(*layers), torch.randn(1, 4, 41, 41, requires_grad=True)
    field = 1 + 2 + 2 + 2 * 4  # of an output pixel: 3, then 2 more, then 4 steps of 2 pixels
    (gradient,) = torch.autograd.grad(model(x)[0, 3, 10, 10], x)
    touched = gradient[0].abs().sum(0).nonzero()
    assert touched.amin(0).tolist() == [20 - field // 2] * 2
    assert touched.amax(0).tolist() == [20 + field // 2] * 2
    far = x.detach().clone()
    far[:, :, : 20 - field // 2] = torch.inf
    assert torch.equal(model(far)[0, 3, 10:, 10], model(x)[0, 3, 10:, 10])


@pytest.mark.parametrize("ratio", [1e10, 1e20, 1e30])
def test_small_beside_large(ratio):
    """A dim image beside a bright one, a dim half beside a bright half: each has its own rounding."""
    x, w = torch.randn(2, 16, 24, 24), torch.randn(16, 16, 3, 3)
    bright = x.clone()
    bright[1] *= ratio
    bright[0, :, :, 12:] *= ratio
    y, exact = F.conv2d(bright, w), TORCH.conv2d(bright.double(), w.double())
    dim = (0, slice(None), slice(None), slice(0, 10))
    assert torch.equal(y[dim], F.conv2d(x, w)[dim])
    assert ((y - exact).abs()[dim] <= 1e-5 * exact.abs()[dim].max()).all()


LOCAL = {"many": (2, 6, 9, 8), "one": (1, 1, 9, 8)}


@pytest.mark.parametrize("name", LOCAL)
def test_local_layers_are_as_accurate_as_a_sum_in_order(name):
    x = torch.randn(LOCAL[name])
    w = torch.randn(7, 6, 4, x.shape[1], 3, 3)

    def maps(dtype):
        leaves = [t.to(dtype).requires_grad_() for t in (x, w)]
        y = F.locally_connected2d(*leaves)
        return [y.detach(), *torch.autograd.grad(y, leaves, gy.to(dtype))]

    gy = torch.randn(x.shape[0], 4, 7, 6)
    for mine, exact in zip(maps(torch.float32), maps(torch.float64), strict=True):
        assert (mine - exact).abs().max() <= 4 * torch.finfo(torch.float32).eps * exact.abs().max()
    x, w, gy = (torch.randint(-8, 9, t.shape).float() for t in (x, w, gy))
    assert all(torch.equal(mine.double(), exact) for mine, exact in zip(maps(torch.float32), maps(torch.float64), strict=True))


@pytest.mark.parametrize("name", LOCAL)
def test_a_local_layers_window_is_a_window(name):
    x = torch.randn(LOCAL[name])
    w = torch.randn(7, 6, 4, x.shape[1], 3, 3)
    spoiled = x.clone()
    spoiled[0, 0, 4, 4] = torch.nan
    sees = torch.zeros(x.shape[0], 4, 7, 6, dtype=torch.bool)
    sees[0, :, 2:5, 2:5] = True
    before, after = F.locally_connected2d(x, w), F.locally_connected2d(spoiled, w)
    assert torch.equal(before[~sees], after[~sees])
    assert after[sees].isnan().all()
    x, w = x.requires_grad_(), w.requires_grad_()
    upstream = torch.zeros_like(before)
    upstream[0, 1, 3, 3] = torch.inf
    gx, gw = torch.autograd.grad(F.locally_connected2d(x, w), (x, w), upstream)
    assert gx[0, :, 3:6, 3:6].isinf().all()
    assert gw[3, 3, 1].isinf().all()
    gx[0, :, 3:6, 3:6], gw[3, 3, 1] = 0, 0
    assert not gw.any()
    assert not gx.any()


@pytest.mark.parametrize("name", ["softmax", "sigmoid", "cross_entropy", "avg_pool2d", "adaptive_avg_pool2d"])
def test_the_other_layers_round_no_more_than_twice_as_much_as_torch(name):
    x = torch.randn(64, 40, 8, 8) * 4
    target = torch.arange(64 * 64).view(64, 8, 8) % 40
    calls = {
        "softmax": lambda L, x: L.softmax(x, 1),
        "sigmoid": lambda L, x: torch.sigmoid(x) if L is TORCH else L.sigmoid(x),
        "cross_entropy": lambda L, x: L.cross_entropy(x, target, reduction="none"),
        "avg_pool2d": lambda L, x: L.avg_pool2d(x, 3, 2, 1),
        "adaptive_avg_pool2d": lambda L, x: L.adaptive_avg_pool2d(x, 3),
    }

    def maps(library, x):
        x = x.detach().requires_grad_()
        y = calls[name](library, x)
        return [y.detach(), *torch.autograd.grad(y, x, torch.linspace(-1, 1, y.numel()).view(y.shape).to(x.dtype))]

    for mine, theirs, exact in zip(maps(F, x), maps(TORCH, x), maps(TORCH, x.double()), strict=True):
        error, torchs = ((t - exact).pow(2).mean().sqrt() for t in (mine, theirs))
        assert error <= 2 * torchs
