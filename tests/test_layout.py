"""The layout of a result is the one torch gives it."""

import pytest
import torch

from cnn425.algorithms import layout
from cnn425.algorithms.layout import is_channels_last, memory_format
from cnn425.windows import Geometry

LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


@pytest.mark.parametrize("shape", [(2, 4, 8, 8), (2, 1, 8, 8), (1, 1, 8, 8), (2, 4, 8, 1), (1, 4, 3, 3), (2, 4, 3, 8, 8), (2, 1, 3, 8, 8)])
@pytest.mark.parametrize("last", [False, True])
def test_read_from_the_strides_as_torch_reads_it(shape, last):
    torch.set_num_threads(2)  # with one thread torch's small volumes take another kernel, which forgets the layout
    x = torch.randn(shape)
    format = {4: torch.channels_last, 5: torch.channels_last_3d}[x.ndim]
    if last:
        x = torch.empty(shape, memory_format=format).copy_(x)
    w = torch.randn(3, shape[1], *[1] * (x.ndim - 2))
    try:
        y = getattr(torch.nn.functional, f"conv{x.ndim - 2}d")(x, w)
    finally:
        torch.set_num_threads(1)
    assert y.stride() == torch.empty(y.shape, memory_format=memory_format(x, w)).stride()


def test_one_spatial_dimension_is_never_channels_last():
    assert not is_channels_last(torch.randn(2, 8, 4).mT)


def test_empty_tensors_are_not_channels_last():
    assert not is_channels_last(torch.empty(0, 4, 8, 8, memory_format=torch.channels_last))


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("batch", [1, 2, 16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_volumes_keep_channels_last_where_torchs_do(dtype, batch, kernel, groups):
    """Torch's two kernels for volumes differ in this; which of them runs depends on dtype, threads and size."""
    x = torch.randn(batch, 4, 6, 6, 6, dtype=dtype).to(memory_format=torch.channels_last_3d)
    w = torch.randn(6, 4 // groups, *(kernel,) * 3, dtype=dtype)
    geometry = Geometry((kernel,) * 3, (1,) * 3, ((0, 0),) * 3, (1,) * 3)
    y = torch.nn.functional.conv3d(x, w, groups=groups)
    assert y.stride() == layout.stored(torch.empty(y.shape), memory_format(x, w, geometry, groups)).stride()


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (1, 3, 4, 5), (2, 1, 4, 5), (2, 3, 1, 1), (2, 3, 2, 4, 5), (1, 1, 1, 1, 1)], ids=str)
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
def test_results_are_dense_and_have_torchs_strides(last, shape):
    """Also along dimensions of size 1, which no number uses but programs may print."""
    order = LAST[len(shape)] if last else torch.contiguous_format
    expected = torch.empty(shape, memory_format=order)
    image = torch.randn(shape)
    for like in (image, image.to(memory_format=LAST[len(shape)]), image.flip(2).mT.contiguous().mT):
        stored = layout.stored(like, order)
        assert torch.equal(stored, like)
        for made in (stored, layout.empty(like, shape, order)):
            assert made.is_contiguous(memory_format=order)
            assert made.stride() == expected.stride()


def test_what_is_stored_as_wanted_is_not_copied():
    image = torch.randn(2, 3, 4, 5)
    assert layout.stored(image, torch.contiguous_format) is image
    image = image.to(memory_format=torch.channels_last)
    assert layout.stored(image, torch.channels_last) is image
