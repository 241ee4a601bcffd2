"""The layers of the lecture under the names of `torch.nn`, and those that torch does not have: local, partly shared, low rank."""

from cnn425.layers.activation import ReLU, Sigmoid, Softmax
from cnn425.layers.adaptive import (
    AdaptiveAvgPool1d,
    AdaptiveAvgPool2d,
    AdaptiveAvgPool3d,
    AdaptiveMaxPool1d,
    AdaptiveMaxPool2d,
    AdaptiveMaxPool3d,
)
from cnn425.layers.conv import Conv1d, Conv2d, Conv3d
from cnn425.layers.conv_transpose import (
    ConvTranspose1d,
    ConvTranspose2d,
    ConvTranspose3d,
    LazyConvTranspose1d,
    LazyConvTranspose2d,
    LazyConvTranspose3d,
)
from cnn425.layers.linear import Linear
from cnn425.layers.local import LocallyConnected1d, LocallyConnected2d, LocallyConnected3d
from cnn425.layers.local_lazy import LazyLocallyConnected1d, LazyLocallyConnected2d, LazyLocallyConnected3d
from cnn425.layers.local_low_rank import LowRankLocal1d, LowRankLocal2d, LowRankLocal3d
from cnn425.layers.local_transpose import (
    LocallyConnectedTranspose1d,
    LocallyConnectedTranspose2d,
    LocallyConnectedTranspose3d,
)
from cnn425.layers.loss import CrossEntropyLoss
from cnn425.layers.lp_pool import LPPool1d, LPPool2d, LPPool3d
from cnn425.layers.pool import MaxPool1d, MaxPool2d, MaxPool3d
from cnn425.layers.pool_average import AvgPool1d, AvgPool2d, AvgPool3d
from cnn425.layers.unfold import Fold, Unfold
from cnn425.nn import functional
from cnn425.nn.convert import Report, convert, report, revert
from cnn425.nn.sharing import neighbour_similarity, share_, sharing

__all__ = ["Report", "convert", "functional", "neighbour_similarity", "report", "revert", "share_", "sharing"]
__all__ += ["CrossEntropyLoss", "Fold", "Linear", "ReLU", "Sigmoid", "Softmax", "Unfold"]
__all__ += ["Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d"]
__all__ += ["LazyConvTranspose1d", "LazyConvTranspose2d", "LazyConvTranspose3d"]
__all__ += ["LocallyConnected1d", "LocallyConnected2d", "LocallyConnected3d", "LowRankLocal1d", "LowRankLocal2d", "LowRankLocal3d"]
__all__ += ["LazyLocallyConnected1d", "LazyLocallyConnected2d", "LazyLocallyConnected3d"]
__all__ += ["LocallyConnectedTranspose1d", "LocallyConnectedTranspose2d", "LocallyConnectedTranspose3d"]
__all__ += ["AvgPool1d", "AvgPool2d", "AvgPool3d", "LPPool1d", "LPPool2d", "LPPool3d", "MaxPool1d", "MaxPool2d", "MaxPool3d"]
__all__ += ["AdaptiveAvgPool1d", "AdaptiveAvgPool2d", "AdaptiveAvgPool3d", "AdaptiveMaxPool1d", "AdaptiveMaxPool2d", "AdaptiveMaxPool3d"]
