"""The layout of a result is the one torch gives it."""

import pytest
import torch

from cnn425.algorithms.layout import is_channels_last, memory_format


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
