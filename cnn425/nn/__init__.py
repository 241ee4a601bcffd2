"""The layers of the lecture under the names of `torch.nn`, and the one torch never had: `LocallyConnected`."""

from cnn425.layers.conv import Conv1d, Conv2d, Conv3d
from cnn425.nn import functional

__all__ = [
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "functional",
]
