"""The layers as functions, under the names of `torch.nn.functional`, and `locally_connected1d/2d/3d`."""

from cnn425.layers.conv import conv1d, conv2d, conv3d

__all__ = [
    "conv1d",
    "conv2d",
    "conv3d",
]
