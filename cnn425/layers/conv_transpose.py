"""Transposed convolution: the gradient of a convolution's image, as a layer.

    forward                    y = scatter(ywin), ywin[n,o,i,j,u,v] = sum over c of x[n,c,i,j] * w[c,o,u,v], + b[o]       ncij,couv->noijuv
    gradient of the image      gx[n,c,i,j]       = sum over o, u, v  of  gywin[n,o,i,j,u,v] * w[c,o,u,v]                  noijuv,couv->ncij
    gradient of the weight     gw[c,o,u,v]       = sum over n, i, j  of  x[n,c,i,j] * gywin[n,o,i,j,u,v]                  ncij,noijuv->couv
    gradient of the bias       gb[o]             = sum over all pixels of gy[n,o]

Every pixel of the input writes a window of the output, and windows that overlap are added: `x` takes the place of a convolution's output
gradient, `y` that of its image. So nothing new is needed: `InputGradient`, one of the three maps of `cnn425.layers.bilinear`, is the
layer, and its derivatives are the other two, the convolution itself and `WeightGradient`.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from cnn425 import compat
from cnn425.algorithms import layout
from cnn425.layers import arguments
from cnn425.layers.arguments import applied
from cnn425.layers.bilinear import input_gradient, is_signal_channels_last, layer_order
from cnn425.windows import Geometry, Sharing, each_its_own

# ---- The functions: arguments and checks -------------------------------------------------------------------------------------------------


def transposed(
    x: Tensor, w: Tensor, b: Tensor | None, function: str, geometry: Geometry, groups: int, sharing: Sharing | None, size: tuple[int, ...]
) -> Tensor:
    """`InputGradient` and a bias, `(O,)` or `(O, *size)`; for channels-last weights of signals in the memory layout of torch."""
    if x.dtype in arguments.INTEGERS[:-1] or x.dtype == torch.bool:
        raise NotImplementedError(
            f"{function} is not implemented for '{arguments.dtype_name(x.dtype)}': cast input and weight to int64 or floating point"
        )
    arguments.check_same_type(x, w, b)
    if w.ndim == 3 and is_signal_channels_last(w):
        return _rounded_once(x.contiguous().unsqueeze(2), w.unsqueeze(2), b, geometry.as_row(), groups, None, (1, *size)).squeeze(2)
    return _rounded_once(x, w, b, geometry, groups, sharing, size)


def _rounded_once(
    x: Tensor,
    w: Tensor,
    b: Tensor | None,
    geometry: Geometry,
    groups: int,
    sharing: Sharing | None,
    size: tuple[int, ...],
    order: torch.memory_format | None = None,
) -> Tensor:
    """The same in a precision that torch can compute in, but in the memory layout that torch gives the original precision."""
    order = order or layer_order(x, w, geometry, groups, sharing)
    if x.dtype == torch.complex32 or (b is not None and x.dtype in layout.HALF):
        wide = torch.complex64 if x.is_complex() else torch.float32
        x_, w_, b_ = (None if t is None else t.to(wide) for t in (x, w, b))
        return _rounded_once(x_, w_, b_, geometry, groups, sharing, size, order).to(x.dtype)  # type: ignore[arg-type]
    y: Tensor = input_gradient(x, w, geometry, groups, sharing, size, order, True)
    if b is None:
        return y
    return y + (b if b.ndim > 1 else b.view(-1, *(1,) * len(size)))


@arguments.remembered
def checked(
    local: bool, d: int, input: torch.Size, w: torch.Size, bias: torch.Size | None, *settings: Any
) -> tuple[str, Geometry, int, Sharing | None, tuple[int, ...]]:
    """The name of the function, the windows of the output, the groups, how positions share weights, and the size of the output in pixels.

    The weight `w` is `(C, O/groups, *kernel)`; that of a `local` layer has the pixels of the input in front.
    """
    function, (stride, padding, output_padding, groups, dilation) = f"{'locally_connected' if local else 'conv'}_transpose{d}d", settings
    if isinstance(padding, str):
        raise arguments.invalid(function, "padding", padding, f"an int or a tuple of {d} ints")
    arguments.check_types(function, d, groups, stride=stride, padding=padding, output_padding=output_padding, dilation=dilation)
    if local and len(w) != 2 * d + 2:
        raise RuntimeError(
            f"Expected {2 * d + 2}-dimensional weight (*in, C, O/groups, *kernel) in {function}, but got weight of size {list(w)}"
        )
    if len(w) < 3:
        raise RuntimeError(f"weight should have at least three dimensions, but got weight of size {list(w)}")
    x, before = arguments.check_input(function, input, d), d if local else 0
    if len(w) != before + len(x):
        raise RuntimeError(
            f"Expected {len(w)}-dimensional input for {len(w)}-dimensional weight {list(w)}, "
            f"but got {len(x)}-dimensional input of size {list(x)} instead"
        )
    geometry, size = transposed_geometry(function, w[before + 2 :], stride, padding, output_padding, dilation, x)
    groups = arguments.check_groups(groups)
    if w[:before] != x[2 : 2 + before]:
        raise RuntimeError(
            f"{function}: the weight of size {list(w)} belongs to an input of {arguments.times(w[:d])} pixels, "
            f"but the input has {arguments.times(x[2:])} pixels"
        )
    check_sizes(x, w, bias, groups, size)
    return function, geometry, groups, each_its_own(d) if local else None, size


TRANSPOSED = "conv_transpose", partial(checked, False), transposed


def transposed_geometry(
    function: str, kernel: Sequence[int], stride: Any, padding: Any, output_padding: Any, dilation: Any, x: torch.Size
) -> tuple[Geometry, tuple[int, ...]]:
    """The windows that the pixels of `x` write, and the size of the output: `(n - 1) s - 2p + d (k - 1) + 1 + output_padding`."""
    extra = arguments.per_dimension(function, "output_padding", output_padding, len(x) - 2)
    windows = arguments.geometry(function, kernel, stride, padding, dilation)
    if any(more < 0 for more in extra):
        raise RuntimeError("negative output_padding is not supported")
    if any(more >= max(s, step) for more, s, step in zip(extra, windows.stride, windows.dilation, strict=True)):
        raise RuntimeError(
            f"output padding must be smaller than either stride or dilation, but got output_padding={extra}, stride={windows.stride} "
            f"and dilation={windows.dilation}"
        )
    sides = zip(x[2:], windows.stride, windows.padding, windows.extent, extra, strict=True)
    size = tuple((n - 1) * s - 2 * low + extent + more for n, s, (low, _), extent, more in sides)
    # With the extra pixels taken off the padding, the image has as many windows as the input has pixels.
    pads = tuple((low, high - more) for (low, high), more in zip(windows.padding, extra, strict=True))
    return windows._replace(padding=pads), size


def check_sizes(x: torch.Size, w: torch.Size, bias: torch.Size | None, groups: int, size: tuple[int, ...]) -> None:
    """Channels, output size and bias must fit one another; `x` is the size of a batch, `w` ends in (C, O/groups, *kernel)."""
    at = len(w) - len(x)
    arguments.check_channels(x, w, groups, outputs=w[at], inputs=w[at] // groups)
    outputs = w[at + 1] * groups
    if bias is not None and bias not in ((outputs,), (outputs, *size)[: 1 if at == 0 else None]):
        raise RuntimeError(
            f"Given transposed=1, weight of size {list(w)}, expected bias to be 1-dimensional with {outputs} elements"
            f"{f' or of size {[outputs, *size]}' if at else ''}, but got bias of size {list(bias)} instead"
        )
    if 0 in x[2:] or x[1] == 0 or outputs == 0:
        raise RuntimeError(f"Only zero batch inputs are supported, but got input shape {list(x)} and weight shape {list(w)}")
    if min(size) <= 0:
        raise RuntimeError(
            f"Given input size per channel: ({arguments.times(x[2:])}). Calculated output size per channel: "
            f"({arguments.times(size)}). Output size is too small"
        )


def conv_transpose1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Tensor:
    """The transposed convolution of a signal: `(N, C, I)` with weight `(C, O/groups, U) -> (N, O, H)`. See `conv_transpose2d`."""
    return applied(TRANSPOSED, conv_transpose1d, 1, input, weight, bias, stride, padding, output_padding, groups, dilation)


def conv_transpose2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Tensor:
    """The transposed convolution of an image: pixel (i, j) adds `x[n,c,i,j] * w[c,o,u,v]` to `y[n, o, i*s + u*d - p, j*s + v*d - p]`.

    Zeiler et al. 2010, "Deconvolutional networks"; Dumoulin and Visin 2016, arXiv 1603.07285, ch. 4. It is the gradient with respect to the
    image of `conv2d` with the same weight, stride, padding and dilation. A drop-in for `torch.nn.functional.conv_transpose2d`.

    input           `(N, C, I, J)` or `(C, I, J)`
    weight          `(C, O/groups, U, V)`
    bias            `(O,)` or None
    stride          pixels of the output from window to window; an int or one per dimension
    padding         pixels taken off each side of the output; an int or one per dimension
    output_padding  pixels added to the high side of the output, fewer than the larger of stride and dilation: a convolution maps
                    several image sizes to one output size, and this chooses among them
    groups, dilation    as in `conv2d`
    returns         `(N, O, H, W)` or `(O, H, W)`, with `H = (I - 1) s - 2p + d (U - 1) + 1 + output_padding`

    Raises TypeError for an argument of the wrong type and RuntimeError for shapes, sizes or dtypes that do not fit, as torch does.
    """
    return applied(TRANSPOSED, conv_transpose2d, 2, input, weight, bias, stride, padding, output_padding, groups, dilation)


def conv_transpose3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Tensor:
    """The transposed convolution of a volume: `(N, C, I, J, K)` with weight `(C, O/groups, T, U, V)`. See `conv_transpose2d`."""
    return applied(TRANSPOSED, conv_transpose3d, 3, input, weight, bias, stride, padding, output_padding, groups, dilation)


FUNCTIONS = {1: conv_transpose1d, 2: conv_transpose2d, 3: conv_transpose3d}

# ---- The Modules: parameters -------------------------------------------------------------------------------------------------------------


class _Transposed(compat.ConvTransposeNd):
    """A transposed convolution that owns its weight `(C, O/groups, *kernel)` and bias `(O,)`.

    Constructor, parameters and state_dict are those of the torch.nn namesake, which is the base class. Only the computation is ours.
    """

    _dimensions: int

    def forward(self, input: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        """The transposed convolution of `input`; `output_size`, pixels along each dimension, chooses among the sizes that fit."""
        if self.padding_mode != "zeros":  # changed after construction
            raise ValueError(f"Only `zeros` padding mode is supported for ConvTranspose{self._dimensions}d, but got {self.padding_mode!r}")
        sizes: Any = (self.stride, self.padding, self.kernel_size, self._dimensions, self.dilation)
        extra = self._output_padding(input, output_size, *sizes)  # type: ignore[arg-type]
        settings = self.stride, self.padding, extra, self.groups, self.dilation
        return FUNCTIONS[self._dimensions](input, self.weight, self.bias, *settings)


class ConvTranspose1d(_Transposed, torch.nn.ConvTranspose1d):
    """`(N, C, I) -> (N, O, H)`; see `conv_transpose1d` and `torch.nn.ConvTranspose1d`."""

    _dimensions = 1


class ConvTranspose2d(_Transposed, torch.nn.ConvTranspose2d):
    """`(N, C, I, J) -> (N, O, H, W)`; see `conv_transpose2d` and `torch.nn.ConvTranspose2d`."""

    _dimensions = 2


class ConvTranspose3d(_Transposed, torch.nn.ConvTranspose3d):
    """`(N, C, I, J, K) -> (N, O, D, H, W)`; see `conv_transpose3d` and `torch.nn.ConvTranspose3d`."""

    _dimensions = 3


class LazyConvTranspose1d(torch.nn.LazyConvTranspose1d):
    """`ConvTranspose1d` without in_channels, which is taken from the first input."""

    cls_to_become = ConvTranspose1d


class LazyConvTranspose2d(torch.nn.LazyConvTranspose2d):
    """`ConvTranspose2d` without in_channels, which is taken from the first input."""

    cls_to_become = ConvTranspose2d


class LazyConvTranspose3d(torch.nn.LazyConvTranspose3d):
    """`ConvTranspose3d` without in_channels, which is taken from the first input."""

    cls_to_become = ConvTranspose3d
