"""The layers as functions, under the names of `torch.nn.functional`; local layers, and transposed ones, which torch does not have."""

from cnn425.layers.activation import relu, sigmoid, softmax
from cnn425.layers.adaptive import (
    adaptive_avg_pool1d,
    adaptive_avg_pool2d,
    adaptive_avg_pool3d,
    adaptive_max_pool1d,
    adaptive_max_pool2d,
    adaptive_max_pool3d,
)
from cnn425.layers.conv import conv1d, conv2d, conv3d
from cnn425.layers.conv_transpose import conv_transpose1d, conv_transpose2d, conv_transpose3d
from cnn425.layers.linear import linear
from cnn425.layers.local import locally_connected1d, locally_connected2d, locally_connected3d
from cnn425.layers.local_transpose import (
    locally_connected_transpose1d,
    locally_connected_transpose2d,
    locally_connected_transpose3d,
)
from cnn425.layers.loss import cross_entropy
from cnn425.layers.lp_pool import lp_pool1d, lp_pool2d, lp_pool3d
from cnn425.layers.pool import max_pool1d, max_pool2d, max_pool3d
from cnn425.layers.pool_average import avg_pool1d, avg_pool2d, avg_pool3d
from cnn425.layers.unfold import fold, unfold

__all__ = ["cross_entropy", "fold", "linear", "relu", "sigmoid", "softmax", "unfold"]
__all__ += ["conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"]
__all__ += ["locally_connected1d", "locally_connected2d", "locally_connected3d"]
__all__ += ["locally_connected_transpose1d", "locally_connected_transpose2d", "locally_connected_transpose3d"]
__all__ += ["avg_pool1d", "avg_pool2d", "avg_pool3d", "lp_pool1d", "lp_pool2d", "lp_pool3d", "max_pool1d", "max_pool2d", "max_pool3d"]
__all__ += ["adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d"]
__all__ += ["adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d"]
