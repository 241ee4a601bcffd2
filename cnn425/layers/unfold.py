"""Unfold and fold: all windows of an image as columns, and columns added to an image.

    unfold    y[n, (c,u,v), (i,j)] = windows[n,c,i,j,u,v]
    fold      x[n,c,h,w]           = sum over all (i,j,u,v) that show pixel (h,w)  of  y[n, (c,u,v), (i,j)]

Both are linear and each is the adjoint of the other, so each is the other's gradient. A convolution is one matrix product between them:
`fold(w @ unfold(x))`, with `w` `(O, C*U*V)` and a kernel of one pixel for `fold`, which then only reshapes. Folding does not undo
unfolding, since a pixel returns once for each window that shows it; hence `fold(unfold(x)) / fold(unfold(1)) = x` where any does.
"""

from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary

from cnn425.layers import arguments
from cnn425.layers.function import LinearMap, computed_by, linear_map
from cnn425.windows import Geometry, scatter, windows

# ---- The Functions: mathematics only -----------------------------------------------------------------------------------------------------


class Cut(LinearMap):
    """Image -> its windows: `(N, C, *size) -> (N, C, *kernel, *positions)`."""

    @staticmethod
    def forward(x: Tensor, size: tuple[int, ...], geometry: Geometry) -> Tensor:
        return windows(x, geometry).permute(order(geometry.dimensions)).clone(memory_format=torch.contiguous_format)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        return add(g, ctx.size, *ctx.rest), None, None


class Add(LinearMap):
    """Windows -> the image that is their sum, the adjoint of `Cut`."""

    @staticmethod
    def forward(w: Tensor, size: tuple[int, ...], geometry: Geometry) -> Tensor:
        places = order(geometry.dimensions)
        exact = w.float() if w.dtype in (torch.float16, torch.bfloat16) else w  # many small additions, each of which would round
        found = scatter(exact.permute([places.index(i) for i in range(w.ndim)]), geometry, size)
        return found.to(w.dtype).clone(memory_format=torch.contiguous_format)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        return cut(g, ctx.size, *ctx.rest), None, None


def order(d: int) -> list[int]:
    """The dimensions of windows `(N, C, *positions, *kernel)` in the order of `Cut`."""
    positions, kernel = range(2, 2 + d), range(2 + d, 2 + 2 * d)
    return [0, 1, *kernel, *positions]


cut, add = map(linear_map, (Cut, Add))

# ---- The functions: arguments and checks -------------------------------------------------------------------------------------------------


def unfold(input: Tensor, kernel_size: Any, dilation: Any = 1, padding: Any = 0, stride: Any = 1) -> Tensor:
    """All windows of an image as columns: `(N, C, H, W) -> (N, C*U*V, I*J)`, cells and positions in reading order.

    A drop-in for `torch.nn.functional.unfold`. With a `kernel_size` of one or three ints it takes signals or volumes. Any other
    argument is an int or one per dimension. A single image, `(C, H, W)`, gives `(C*U*V, I*J)`.
    """
    if has_torch_function_unary(input):
        return handle_torch_function(unfold, (input,), input, kernel_size, dilation, padding, stride)
    if not isinstance(input, Tensor):
        raise arguments.invalid("unfold", "input", input, "a Tensor")
    geometry = _windows("unfold", kernel_size, dilation, padding, stride)
    d, size = geometry.dimensions, tuple(input.shape)
    if len(size) not in (d + 1, d + 2) or 0 in size[-d - 1 :]:
        raise (IndexError if len(size) <= d else RuntimeError)(
            f"Expected {d + 1}D or {d + 2}D (batch mode) tensor with possibly 0 batch size and other non-zero dimensions for input, "
            f"but got: {list(size)}"
        )
    if min(geometry.positions(size[-d:])) < 1:
        raise RuntimeError(
            f"Given input with spatial size {size[-d:]}, {_described(geometry)}, calculated shape of the array of sliding blocks as "
            f"{geometry.positions(size[-d:])}, but its components must be at least one."
        )
    _check_dtype("unfold", input.dtype)
    x = input.unsqueeze(0) if len(size) == d + 1 else input
    y: Tensor = cut(x, size[-d:], geometry).flatten(2 + d).flatten(1, 1 + d)
    return y.squeeze(0) if len(size) == d + 1 else y


def fold(input: Tensor, output_size: Any, kernel_size: Any, dilation: Any = 1, padding: Any = 0, stride: Any = 1) -> Tensor:
    """Columns added to the pixels of an image that their windows show: `(N, C*U*V, I*J) -> (N, C, H, W)`, the adjoint of `unfold`.

    A drop-in for `torch.nn.functional.fold`. With an `output_size` of one or three ints it gives signals or volumes. Any other
    argument is an int or one per dimension. Columns of a single image, `(C*U*V, I*J)`, give `(C, H, W)`.
    """
    if has_torch_function_unary(input):
        return handle_torch_function(fold, (input,), input, output_size, kernel_size, dilation, padding, stride)
    if not isinstance(input, Tensor):
        raise arguments.invalid("fold", "input", input, "a Tensor")
    sizes = _sides("fold", "output_size", output_size, len(output_size) if isinstance(output_size, (tuple, list)) else 2)
    geometry = _windows("fold", kernel_size, dilation, padding, stride, len(sizes))
    shape = tuple(input.shape)
    if len(shape) not in (2, 3) or 0 in shape[-2:]:
        raise RuntimeError(
            "Expected 2D or 3D (batch mode) tensor for input with possibly 0 batch size and non-zero dimensions for input, "
            f"but got: {list(shape)}"
        )
    cells, positions = prod(geometry.kernel), geometry.positions(sizes)
    if shape[-2] % cells:
        raise RuntimeError(
            "Expected size of input's dimension 1 to be divisible by the product of kernel_size, "
            f"but got input.size(1)={shape[-2]} and kernel_size={geometry.kernel}."
        )
    if prod(positions) != shape[-1] or min(positions) < 1 or min(sizes) < 1:
        raise RuntimeError(
            f"Given output_size={sizes}, {_described(geometry)}, expected size of input's dimension 2 to match the calculated number of "
            f"sliding blocks {' * '.join(map(str, positions))} = {prod(positions)}, but got input.size(2)={shape[-1]}."
        )
    _check_dtype("fold", input.dtype)
    w = input.unsqueeze(0) if len(shape) == 2 else input
    x: Tensor = add(w.reshape(w.shape[0], shape[-2] // cells, *geometry.kernel, *positions), sizes, geometry)
    return x.squeeze(0) if len(shape) == 2 else x


def _sides(function: str, name: str, value: Any, dimensions: int) -> tuple[int, ...]:
    """`value` for each of the dimensions: unlike a convolution, a sequence of one int counts for one of them."""
    entries = arguments.ints(value)
    if entries is None or isinstance(value, Tensor):
        raise arguments.invalid(function, name, value, f"an int or a tuple of {dimensions} ints")
    if not isinstance(value, (tuple, list)):
        return entries * dimensions
    if len(entries) != dimensions or dimensions not in (1, 2, 3):
        raise RuntimeError(f"It is expected {name} equals to {dimensions if dimensions in (1, 2, 3) else 2}, but got size {len(entries)}")
    return entries


def _windows(function: str, kernel: Any, dilation: Any, padding: Any, stride: Any, dimensions: int | None = None) -> Geometry:
    """The windows that the arguments describe; without `dimensions` the kernel says how many there are."""
    d = dimensions or (len(kernel) if isinstance(kernel, (tuple, list)) else 2)
    names = ("kernel_size", "dilation", "padding", "stride")
    k, step, pads, s = (_sides(function, name, value, d) for name, value in zip(names, (kernel, dilation, padding, stride), strict=True))
    for name, values in (("kernel size", k), ("dilation", step), ("stride", s)):
        if min(values) <= 0:
            raise RuntimeError(f"{name} should be greater than zero, but got {values}")
    if min(pads) < 0:
        raise RuntimeError(f"padding should be non-negative, but got {pads}")
    return Geometry(k, s, tuple((p, p) for p in pads), step)


def _described(g: Geometry) -> str:
    return f"kernel_size={g.kernel}, dilation={g.dilation}, padding={tuple(low for low, _ in g.padding)}, stride={g.stride}"


def _check_dtype(function: str, dtype: torch.dtype) -> None:
    if dtype in (*arguments.INTEGERS, torch.complex32):
        raise NotImplementedError(f"{function} is not implemented for '{arguments.dtype_name(dtype)}': cast the input to floating point")


# ---- The Modules -------------------------------------------------------------------------------------------------------------------------


class Unfold(torch.nn.Unfold):
    """`(N, C, H, W) -> (N, C*U*V, I*J)`; see `unfold` and `torch.nn.Unfold`."""

    forward = computed_by(unfold, "kernel_size", "dilation", "padding", "stride")


class Fold(torch.nn.Fold):
    """`(N, C*U*V, I*J) -> (N, C, H, W)`; see `fold` and `torch.nn.Fold`."""

    forward = computed_by(fold, "output_size", "kernel_size", "dilation", "padding", "stride")
