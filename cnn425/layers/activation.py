"""Activations: nonlinear functions without parameters.

    rectifier   y = max(0, x)                           gx = gy where y > 0, else 0
    sigmoid     y = 1 / (1 + exp(-x))                   gx = gy * y * (1 - y)
    softmax     y[c] = exp(x[c]) / sum of exp(x)        gx[c] = y[c] * (gy[c] - sum of gy * y)

Each gradient needs only the output, so the input is not saved. The rectifier's gradient at zero is zero, as in torch.
"""

import warnings
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.overrides import handle_torch_function, has_torch_function_unary

from cnn425 import compat
from cnn425.algorithms import elementwise as algorithm
from cnn425.algorithms.layout import HALF
from cnn425.kernels.threads import is_traced
from cnn425.layers.arguments import check_dense, dtype_name, integer, is_int, wrong_type
from cnn425.layers.function import FromOutput, autocast_dtype, is_differentiated, operation

# ---- The Functions: mathematics only ----------------------------------------------------------------------------------------------------


class Rectifier(FromOutput):
    """`max(0, x)`, NaN where x is NaN."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx: Any, gy: Tensor) -> Tensor:
        return gate(gy, *ctx.saved_tensors)

    jvp = backward  # the Jacobian is diagonal

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int], x: Tensor) -> tuple[Tensor, int]:
        return rectify(x), in_dims[0]


class RectifierInPlace(Rectifier):
    """`max(0, x)` in place; called where only backward mode is active."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.clamp_(min=0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.mark_dirty(*inputs)
        FromOutput.setup_context(ctx, inputs, output)


class Gate(Function):
    """`g` where the unit is active (y > 0, or NaN), zero elsewhere: the derivative of the rectifier and, as it is linear, its own."""

    @staticmethod
    def forward(g: Tensor, y: Tensor) -> Tensor:
        return algorithm.gate(g, y)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])
        ctx.save_for_forward(inputs[1])

    @staticmethod
    def backward(ctx: Any, gg: Tensor) -> tuple[Tensor, None]:
        return gate(gg, *ctx.saved_tensors), None

    @staticmethod
    def jvp(ctx: Any, dg: Tensor, dy: Any) -> Tensor:
        return gate(dg, *ctx.saved_tensors)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, int | None], g: Tensor, y: Tensor) -> tuple[Tensor, int]:
        g, y = (t.expand(info.batch_size, *t.shape) if dim is None else t.movedim(dim, 0) for t, dim in zip((g, y), in_dims, strict=True))
        return gate(g, y), 0


class Logistic(FromOutput):
    """`1 / (1 + exp(-x))`."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return algorithm.sigmoid(x)

    @staticmethod
    def backward(ctx: Any, gy: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return gy * ((1 - y) * y).conj() if is_differentiated(gy, y) else algorithm.sigmoid_gradient(gy, y)

    @staticmethod
    def jvp(ctx: Any, dx: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return dx * ((1 - y) * y)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int], x: Tensor) -> tuple[Tensor, int]:
        return logistic(x), in_dims[0]


class Probabilities(FromOutput):
    """`exp(x) / sum of exp(x)` along `dim`."""

    @staticmethod
    def forward(x: Tensor, dim: int) -> Tensor:
        return algorithm.softmax(x, dim)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        FromOutput.setup_context(ctx, inputs, output)
        ctx.dim = inputs[1]

    @staticmethod
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor, None]:
        (y,) = ctx.saved_tensors
        gradient = algorithm.softmax_gradient_by_definition if is_differentiated(gy, y) else algorithm.softmax_gradient
        return gradient(gy, y, ctx.dim), None

    @staticmethod
    def jvp(ctx: Any, dx: Tensor, _: None) -> Tensor:
        (y,) = ctx.saved_tensors
        return algorithm.softmax_gradient_by_definition(dx, y, ctx.dim)  # the Jacobian is symmetric

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int, None], x: Tensor, dim: int) -> tuple[Tensor, int]:
        return softmax_along(x.movedim(in_dims[0], 0), dim % max(1, x.ndim - 1) + 1), 0


rectify, rectify_, gate, logistic, softmax_along = map(operation, (Rectifier, RectifierInPlace, Gate, Logistic, Probabilities))

# ---- The functions: arguments and checks ------------------------------------------------------------------------------------------------

SPARSE = (torch.sparse_coo, torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc)


def relu(input: Tensor, inplace: bool = False) -> Tensor:
    """`max(0, x)` for every number: `(*) -> (*)`. With `inplace` the result is written over `input`, which is returned.

    Slides "Activation functions". A drop-in for `torch.nn.functional.relu`: integers too, and sparse tensors; bool and complex raise
    NotImplementedError.
    """
    if has_torch_function_unary(input):
        return handle_torch_function(relu, (input,), input, inplace=inplace)
    if not isinstance(input, Tensor):
        raise wrong_type("relu", "input", input, "Tensor", 1)
    if input.dtype == torch.bool:
        raise NotImplementedError("Boolean inputs not supported for relu")
    if input.layout in SPARSE:
        return _relu_of_sparse(input, inplace)
    if not inplace:
        return rectify(input)
    if is_traced() or compat.are_transforms_active() or compat.forward_mode._current_level >= 0:
        # None of these supports an in-place Function: they differentiate the steps, which need the original numbers.
        return input.copy_(rectify(input.clone()))
    if input.requires_grad and input.is_leaf and torch.is_grad_enabled():
        raise RuntimeError("a leaf Variable that requires grad is being used in an in-place operation.")
    return rectify_(input)


def _relu_of_sparse(x: Tensor, inplace: bool) -> Tensor:
    """The rectifier of a sparse tensor's stored numbers; the others are zeros and stay zeros."""
    coordinates = x.layout is torch.sparse_coo
    if inplace and coordinates and not x.is_coalesced():
        raise RuntimeError("relu_ requires coalesced input")
    if inplace:
        y = _relu_of_sparse(x.clone(), False)
        return x.zero_().add_(y) if coordinates else x.copy_(y)  # copying coordinates has no derivative
    if coordinates:
        x = x.coalesce()  # entries at the same place are added first
        return torch.sparse_coo_tensor(x.indices().clone(), rectify(x.values()), x.shape, is_coalesced=True, check_invariants=False)
    rows_first = x.layout in (torch.sparse_csr, torch.sparse_bsr)
    starts, places = (x.crow_indices(), x.col_indices()) if rows_first else (x.ccol_indices(), x.row_indices())
    values = rectify(x.values())
    return torch.sparse_compressed_tensor(starts.clone(), places.clone(), values, x.shape, layout=x.layout, check_invariants=False)


def sigmoid(input: Tensor) -> Tensor:
    """`1 / (1 + exp(-x))` for every number: `(*) -> (*)`, from 0 to 1.

    Slides "Activation functions". A drop-in for `torch.nn.functional.sigmoid`: integers and bool give the default dtype, half precision is
    computed in float32 and rounded once, complex numbers are accepted.
    """
    if has_torch_function_unary(input):
        return handle_torch_function(sigmoid, (input,), input)
    if input.dtype in HALF:
        return logistic(input.float()).to(input.dtype)
    if not (input.is_floating_point() or input.is_complex()):
        input = input.to(torch.get_default_dtype())
    return logistic(input)


def softmax(input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: torch.dtype | None = None) -> Tensor:
    """Scores turned into probabilities, `exp(x) / sum of exp(x)` along `dim`: `(*) -> (*)`, in [0, 1], summing to 1.

    Slides "Softmax". A drop-in for `torch.nn.functional.softmax`.

    dim    the dimension that holds the classes; omitting it is deprecated, and means 0 for 0, 1 or 3 dimensions and 1 otherwise
    dtype  cast the input to this first

    Half precision is computed in float32 and rounded once. As in torch, a dimension out of range raises IndexError, one that is not an
    int TypeError, and integer or complex input NotImplementedError.
    """
    if has_torch_function_unary(input):
        return handle_torch_function(softmax, (input,), input, dim=dim, _stacklevel=_stacklevel, dtype=dtype)
    if dim is None:
        words = "Implicit dimension choice for softmax has been deprecated. Change the call to include dim=X as an argument."
        warnings.warn(words, stacklevel=_stacklevel - 1)  # torch counts one call more
        dim = 0 if input.dim() in (0, 1, 3) else 1
    if not is_int(dim) or (isinstance(dim, Tensor) and dim.ndim):
        raise wrong_type("softmax", "dim", dim, "int", 1)
    dim = integer(dim)
    if not -max(1, input.ndim) <= dim < max(1, input.ndim):
        bound = max(1, input.ndim)
        raise IndexError(f"Dimension out of range (expected to be in range of [{-bound}, {bound - 1}], but got {dim})")
    check_dense("softmax", input)
    if dtype is None and input.device.type == "cuda" and input.dtype in HALF and autocast_dtype(input.device) is not None:
        dtype = torch.float32  # on CUDA autocast keeps the softmax in full precision; on the CPU it does not
    x = input if dtype is None else input.to(dtype)
    if not x.is_floating_point():
        if x.numel() == 0:
            if x.requires_grad and torch.is_grad_enabled():  # torch does not differentiate a result without numbers either
                raise RuntimeError("softmax does not support automatic differentiation for outputs with complex dtype")
            return x.clone()
        raise NotImplementedError(f"\"softmax_kernel_impl\" not implemented for '{dtype_name(x.dtype)}'")
    if x.ndim == 0:
        return softmax(x.unsqueeze(0), 0).squeeze(0)
    x = x.contiguous()
    return softmax_along(x.float(), dim).to(x.dtype) if x.dtype in HALF else softmax_along(x, dim)


# ---- The Modules ------------------------------------------------------------------------------------------------------------------------


class ReLU(torch.nn.ReLU):
    """`max(0, x)`; see `relu` and `torch.nn.ReLU`, the base class."""

    def forward(self, input: Tensor) -> Tensor:
        """The rectified input."""
        return relu(input, inplace=self.inplace)


class Sigmoid(torch.nn.Sigmoid):
    """`1 / (1 + exp(-x))`; see `sigmoid` and `torch.nn.Sigmoid`, the base class."""

    def forward(self, input: Tensor) -> Tensor:
        """The sigmoid of the input."""
        return sigmoid(input)


class Softmax(torch.nn.Softmax):
    """Probabilities along `dim`; see `softmax` and `torch.nn.Softmax`, the base class."""

    def forward(self, input: Tensor) -> Tensor:
        """The softmax of the input."""
        return softmax(input, self.dim, _stacklevel=5)
