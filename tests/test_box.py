"""Boxes: images of any size, layout and place in memory are read where they are, and nowhere else."""

import subprocess
import sys
import textwrap

import pytest
import torch

from cnn425.nn import functional as F

TORCH = torch.nn.functional


def agree(x, w, **named):
    """All three maps of whole numbers are torch's, to the last bit."""
    x, w = ((3 * t).round().requires_grad_() for t in (x, w))
    mine, theirs = F.conv2d(x, w, **named), TORCH.conv2d(x.double(), w.double(), **named)
    gy = (3 * torch.randn_like(mine)).round()
    assert torch.equal(mine.double(), theirs)
    for found, expected in zip(torch.autograd.grad(mine, (x, w), gy), torch.autograd.grad(theirs, (x, w), gy.double()), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("channels", [1, 7, 8, 9, 17, 40])
@pytest.mark.parametrize("width", [1, 7, 8, 15, 16, 17, 33])
def test_lines_and_channels_that_fill_blocks_or_do_not(width, channels, last):
    x = torch.randn(2, channels, 6, width)
    agree(x.to(memory_format=torch.channels_last) if last else x, torch.randn(70, channels, 3, 3), padding=(1, 2))


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("size", [1, 2, 4, 8])
@pytest.mark.parametrize(
    "named", [{}, {"padding": (2, 3)}, {"stride": 2, "padding": 1}, {"dilation": (2, 3), "padding": 4}, {"stride": (3, 1)}], ids=str
)
@pytest.mark.parametrize("kernel", [(1, 1), (2, 7), (5, 4)], ids=str)
def test_small_groups(kernel, named, size, last):
    x, w = torch.randn(2, 40, 19, 18), torch.randn(40, size, *kernel)
    agree(x.to(memory_format=torch.channels_last) if last else x, w, groups=40 // size, **named)


def test_an_output_gradient_whose_lines_are_columns_in_memory():
    """Sixteen positions that fill a stretch of memory, in another order."""
    x, w = torch.randint(-3, 4, (2, 20, 10, 4)).float(), torch.randint(-3, 4, (40, 20, 3, 3)).float().requires_grad_()
    gy = torch.randint(-3, 4, (2, 40, 2, 8)).float().transpose(2, 3)
    (mine,), (theirs,) = (torch.autograd.grad(library.conv2d(x, w), w, gy) for library in (F, TORCH))
    assert torch.equal(mine, theirs)


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_a_group_knows_nothing_of_its_neighbours(size):
    x, w = torch.randn(2, 32, 20, 20), torch.randn(32, size, 3, 3)
    spoiled = x.clone()
    spoiled[:, 8] = torch.nan
    before, after = F.conv2d(x, w, groups=32 // size), F.conv2d(spoiled, w, groups=32 // size)
    others = [c for c in range(32) if c // size != 8 // size]
    assert torch.equal(before[:, others], after[:, others])
    assert after[:, [c for c in range(32) if c not in others]].isnan().all()


def test_many_boxes():
    """Of lines that are longer than a box, and of images that share one; the sums of a weight go through all of them."""
    agree(torch.randn(1, 20, 3, 9000), torch.randn(5, 20, 2, 3), stride=(1, 2))
    agree(torch.randn(70, 16, 7, 6), torch.randn(16, 16, 3, 3), padding=1)
    agree(torch.randn(30, 8, 61, 63), torch.randn(8, 1, 3, 3), groups=8)


def test_nothing_behind_a_tensor_is_read_or_written():
    """Every tensor ends where memory may not be touched; a program that does is killed."""
    program = """
        import ctypes, mmap, torch
        from cnn425 import nn
        from cnn425.nn import functional as F
        libc, page = ctypes.CDLL(None, use_errno=True), mmap.PAGESIZE
        kept = []

        def guarded(t):
            size = t.numel() * t.itemsize
            room = -(-size // page) * page
            memory = mmap.mmap(-1, room + page)
            start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
            assert libc.mprotect(ctypes.c_void_p(start + room), page, 0) == 0
            kept.append(memory)
            found = torch.frombuffer(memory, dtype=t.dtype, count=t.numel(), offset=room - size)
            return found.as_strided(t.shape, t.stride()).copy_(t)

        for last in (False, True):
            for C, O, groups, kernel, stride, size in (
                (5, 7, 1, 3, 1, 19), (16, 16, 16, 3, 1, 17), (24, 24, 6, 3, 2, 15), (3, 33, 1, 2, 1, 23), (20, 64, 1, 1, 1, 14)
            ):
                order = torch.channels_last if last else torch.contiguous_format
                x = guarded(torch.randn(2, C, size, size - 1).contiguous(memory_format=order)).requires_grad_()
                w = guarded(torch.randn(O, C // groups, kernel, kernel).contiguous(memory_format=order)).requires_grad_()
                y = F.conv2d(x, w, None, stride, 1 if kernel > 1 else 0, 1, groups)
                gy = guarded(torch.randn_like(y))
                torch.autograd.grad(y, (x, w), gy)
                pooled = F.max_pool2d(x, 3, 2, 1)
                torch.autograd.grad(pooled, x, guarded(torch.randn_like(pooled)))
                pooled = F.avg_pool2d(x, 2)
                torch.autograd.grad(pooled, x, guarded(torch.randn_like(pooled)))
        for images in (1, 9):
            for sharing in ({}, {"share": 2}, {"share": 4}, {"tile": 2}):
                layer = nn.LocallyConnected2d(3, 5, 7, 3, bias=False, **sharing)
                layer.weight = torch.nn.Parameter(guarded(layer.weight.detach()))
                x = guarded(torch.randn(images, 3, 7, 7)).requires_grad_()
                y = layer(x)
                torch.autograd.grad(y, (x, layer.weight), guarded(torch.randn_like(y)))
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True)
