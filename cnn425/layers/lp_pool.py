"""Power-average pooling: the p-norm of every window; the sum at p = 1, the largest absolute value at p = infinity.

    y[n,c,i,j] = (sum over u, v of windows[n,c,i,j,u,v]^p)^(1/p)

It is computed by the average pool: the average of the p-th powers, times the number of cells. Where that average is zero the gradient is
defined as zero, since the derivative of the root is infinite there. As in torch: the gradient is also zero where p = 1 and the average is
NaN; powers keep their sign, so an odd p needs non-negative numbers; the missing cells of a window beyond the edge (`ceil_mode`) count as
the average of the others.
"""

from collections.abc import Callable
from math import inf, prod
from typing import Any

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary

from cnn425.layers.arguments import wrong_type
from cnn425.layers.pool import MAX
from cnn425.layers.pool_arguments import COUNTS
from cnn425.layers.pool_average import AVERAGE

# ---- The functions: arguments and checks -----------------------------------------------------------------------------------------------


def _lp_pool(
    public: Callable[..., Any], dimensions: int, input: Tensor, norm_type: Any, kernel_size: Any, stride: Any, ceil_mode: Any
) -> Tensor:
    if has_torch_function_unary(input):
        return handle_torch_function(public, (input,), input, norm_type, kernel_size, stride, ceil_mode)
    kernel = _kernel(f"lp_pool{dimensions}d", kernel_size, dimensions)
    if not isinstance(input, Tensor):
        raise AttributeError(
            f"lp_pool{dimensions}d(): argument 'input' must be Tensor: {type(input).__name__!r} object has no attribute 'pow'"
        )
    if isinstance(norm_type, (int, float)):
        if norm_type == 0:
            raise ValueError(f"norm_type must be a non-zero value, but got {norm_type}")
        if norm_type == inf:
            return MAX[dimensions](input.abs(), kernel_size, stride, ceil_mode=ceil_mode)
        if norm_type == -inf:
            return -MAX[dimensions](-input.abs(), kernel_size, stride, ceil_mode=ceil_mode)
    average = AVERAGE[dimensions](input.pow(norm_type), kernel_size, stride, ceil_mode=ceil_mode)
    if isinstance(kernel[0], (tuple, list)):
        raise wrong_type("lp_pool1d", "kernel_size", kernel_size, "an int")
    if norm_type == 1:  # there the power of NaN has a gradient
        average = average.sign() * average.abs()
    return torch.where(average == 0, 0, average).mul(prod(kernel)).pow(1.0 / norm_type)  # unlike masked_fill, where() keeps channels_last


def _kernel(function: str, kernel: Any, dimensions: int) -> tuple[Any, ...]:
    """The kernel size per dimension, in the forms that torch takes: an int, or one int per dimension."""
    if dimensions == 1 or isinstance(kernel, (int, float)) or not (hasattr(kernel, "__iter__") and hasattr(kernel, "__len__")):
        return (kernel,) * dimensions
    if isinstance(kernel, Tensor) and kernel.ndim == 0:
        raise TypeError(f"{function}(): argument 'kernel_size' must be an int or a tuple of ints, not a tensor without dimensions")
    if len(kernel) != dimensions:
        raise ValueError(
            f"{function}(): kernel_size must be an int or a tuple of {COUNTS[dimensions]} (expected {dimensions}, got {len(kernel)})"
        )
    return tuple(kernel)


def lp_pool1d(input: Tensor, norm_type: float, kernel_size: int, stride: Any = None, ceil_mode: bool = False) -> Tensor:
    """The power average of every window of a signal: `(N, C, H) -> (N, C, I)` or `(C, H) -> (C, I)`; see `lp_pool2d`."""
    return _lp_pool(lp_pool1d, 1, input, norm_type, kernel_size, stride, ceil_mode)


def lp_pool2d(input: Tensor, norm_type: float, kernel_size: Any, stride: Any = None, ceil_mode: bool = False) -> Tensor:
    """The power average of every window of an image, `(sum of x**p)**(1/p)`: `(N, C, H, W) -> (N, C, I, J)` or `(C, H, W) -> (C, I, J)`.

    It is the p-norm where p is even or no number is negative; signs are kept, as in torch. `norm_type` is p, any number but zero;
    infinity and minus infinity give the largest and the smallest absolute value. Other arguments as in `max_pool2d`.
    """
    return _lp_pool(lp_pool2d, 2, input, norm_type, kernel_size, stride, ceil_mode)


def lp_pool3d(input: Tensor, norm_type: float, kernel_size: Any, stride: Any = None, ceil_mode: bool = False) -> Tensor:
    """The power average of every window of a volume: `(N, C, D, H, W) -> (N, C, I, J, K)`, with or without N; see `lp_pool2d`."""
    return _lp_pool(lp_pool3d, 3, input, norm_type, kernel_size, stride, ceil_mode)


# ---- The Modules -----------------------------------------------------------------------------------------------------------------------


class LPPool1d(torch.nn.LPPool1d):
    """`lp_pool1d` as a Module: `(N, C, H) -> (N, C, I)`; the base class keeps the arguments."""

    def forward(self, input: Tensor) -> Tensor:
        """The pooled signal."""
        return _lp_pool(lp_pool1d, 1, input, float(self.norm_type), self.kernel_size, self.stride, self.ceil_mode)


class LPPool2d(torch.nn.LPPool2d):
    """`lp_pool2d` as a Module: `(N, C, H, W) -> (N, C, I, J)`; the base class keeps the arguments."""

    def forward(self, input: Tensor) -> Tensor:
        """The pooled image."""
        return lp_pool2d(input, float(self.norm_type), self.kernel_size, self.stride, self.ceil_mode)


class LPPool3d(torch.nn.LPPool3d):
    """`lp_pool3d` as a Module: `(N, C, D, H, W) -> (N, C, I, J, K)`; the base class keeps the arguments."""

    def forward(self, input: Tensor) -> Tensor:
        """The pooled volume."""
        return lp_pool3d(input, float(self.norm_type), self.kernel_size, self.stride, self.ceil_mode)
