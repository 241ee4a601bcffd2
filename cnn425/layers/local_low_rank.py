"""Between local and convolution: the weight of every position is a mixture of a few convolutions.

    forward    y[n,o,i,j] = b[o] + sum over r  of  m[r,i,j] * (sum over c,u,v  of  windows[n,c,i,j,u,v] * w[r,o,c,u,v])

Elsayed, Ramachandran, Shlens, Kornblith 2020, "Revisiting spatial invariance with low-rank local connectivity", arXiv 2002.02959. It is the
local layer with weight `sum over r of m[r,i,j] * w[r]`, a matrix (positions, weights) of rank R at most: R = 1 with equal coefficients is
a convolution, R = positions any local layer. Either one convolution with R times the outputs is computed and mixed, or weights are mixed
for some positions at a time: that weight is never written out.
"""

import math
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor
from torch.autograd import Function
from torch.overrides import handle_torch_function, has_torch_function_variadic

from cnn425 import compat
from cnn425.algorithms import low_rank as algorithm
from cnn425.algorithms.layout import HALF
from cnn425.layers import arguments
from cnn425.layers.activation import softmax
from cnn425.layers.bilinear import input_gradient, operands, output, save, weight_gradient
from cnn425.layers.function import is_differentiated, needed, operation, without_autocast
from cnn425.layers.local import LOCAL, LocallyConnected
from cnn425.layers.local_arguments import checked_low_rank
from cnn425.layers.local_conversion import SETTINGS, check_convolution, copy_parameters, settings_of, shared, unshared
from cnn425.windows import POSITIONS, Geometry

NORMALISED = ("softmax", "norm", None)


class LowRank(Function):
    """The layer with parameters `w (R, O, C/groups, *kernel), m (R, *positions), b (O,)`; its second output is for its gradients only."""

    @staticmethod
    def forward(x: Tensor, w: Tensor, m: Tensor, b: Tensor | None, geometry: Geometry, groups: int) -> tuple[Tensor, Tensor]:
        found: tuple[Tensor, Tensor] = without_autocast(algorithm.output, x.device, x, w, m, b, geometry, groups)
        return found

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        save(ctx, *inputs[:3], output[1])
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.settings = inputs[4:]

    @staticmethod
    def backward(ctx: Any, gy: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        if gy is None:
            return (None,) * 6
        (x, w, m, a), (geometry, groups) = operands(ctx), ctx.settings
        needs_x, needs_w, needs_m = needed(ctx, 3, x.numel() + w.numel())
        gx = gw = gm = gb = None
        if not is_differentiated(gy, x, w, m) and algorithm.by_loops(gy, x, w, m):
            which = needs_x, needs_w or needs_m
            gx, gw, gm, gb = without_autocast(algorithm.gradients, x.device, gy, x, w, m, a, geometry, groups, *which)
        else:
            weight, each = algorithm.stacked(w), gy.unsqueeze(2)
            ga = (each * m).reshape(len(x), -1, *m.shape[1:])
            if needs_x:
                gx = input_gradient(ga, weight, geometry, groups, None, x.shape[2:])
            if needs_w:
                gw = weight_gradient(ga, x, geometry, groups, None).reshape(-1, *w.shape[:1], *w.shape[2:]).transpose(0, 1)
            if needs_m:
                gm = (each * output(x, weight, geometry, groups, None, None).reshape(len(x), -1, *m.shape)).sum((0, 1))
        if not ctx.needs_input_grad[3]:
            return gx, gw, gm, None, None, None
        return gx, gw, gm, gy.sum((0, *range(2, gy.ndim))) if gb is None else gb, None, None

    @staticmethod
    def jvp(ctx: Any, dx: Tensor | None, dw: Tensor | None, dm: Tensor | None, db: Tensor | None, *_: None) -> tuple[Tensor, None]:
        x, w, m, _ = ctx.saved_tensors
        dx, dw, dm = (torch.zeros_like(t) if d is None else d for d, t in ((dx, x), (dw, w), (dm, m)))
        dy = by_definition(dx, w, m, db, *ctx.settings) + by_definition(x, dw, m, None, *ctx.settings)
        return dy + by_definition(x, w, dm, None, *ctx.settings), None


low_rank = operation(LowRank)


def by_definition(x: Tensor, w: Tensor, m: Tensor, b: Tensor | None, geometry: Geometry, groups: int) -> Tensor:
    """The layer as one convolution, with the outputs of R, and their mixture: output o of convolution r is channel `o*R + r`."""
    return algorithm.mixture(output(x, algorithm.stacked(w), geometry, groups, None, None), m, b)


def low_rank_local(
    dimensions: int, input: Tensor, weight: Tensor, mixing: Tensor, bias: Tensor | None, *settings: Any, equal: bool = False
) -> Tensor:
    """The local layer with weight `sum over r of mixing[r] * weight[r]`: `(R, *positions)` and `(R, O, C/groups, *kernel)`.

    `settings` are the stride, padding, dilation and groups of `locally_connectedNd`; the bias is `(O,)`. Where coefficients are known to be
    `equal` at all positions, the layer is a convolution and computed as one.
    """
    tensors = input, weight, mixing, bias
    if has_torch_function_variadic(*tensors):
        return handle_torch_function(low_rank_local, tensors, dimensions, *tensors, *settings, equal=equal)

    def checked(d: int, x: torch.Size, w: torch.Size, b: torch.Size | None, *settings: Any) -> tuple[Geometry, int]:
        found: tuple[Geometry, int] = checked_low_rank(d, x, w, b, mixing.shape, *settings)
        return found

    def mixed(x: Tensor, w: Tensor, b: Tensor | None, geometry: Geometry, groups: int) -> Tensor:
        arguments.check_same_type(x, w, b)
        dtype = x.dtype
        if dtype in HALF:  # rounded once, at the end, and not between convolution and mixture
            x, w, b = x.float(), w.float(), None if b is None else b.float()
        given = x, w, mixing.to(x.dtype), b
        if equal:
            y: Tensor = output(x, torch.tensordot(given[2].flatten(1).mean(1), w, 1), geometry, groups, None, b)
        else:
            y = low_rank(*given, geometry, groups)[0] if algorithm.by_loops(*given) else by_definition(*given, geometry, groups)
        return y.to(dtype)

    layer = "LocallyConnected", checked, mixed
    return arguments.applied(layer, low_rank_local, dimensions, input, weight, bias, *settings)


class LowRankLocal(LocallyConnected):
    """A local layer whose weights are mixtures of `rank` convolutions, `weight` `(R, O, C/groups, *kernel)`.

    rank         the number of convolutions
    mixing       'sides': coefficients are sums of one per row and one per column, parameters `mixing_i (I, R)`, `mixing_j (J, R)` (and k);
                 'positions': each position has its own, parameter `mixing (I, J, R)`
    normalise    'softmax': a position's coefficients are positive and add up to 1; 'norm': their squares add up to 1; None: as they are
    bias         True: one per channel; False: none. (In the paper there is one per row and column, too.)

    Other arguments as in `LocallyConnectedNd`, without `share` and `tile`. As in the paper, coefficients start equal, so the layer
    starts as a convolution; the weights start so that the mixed weights have the variance of torch's convolution.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        input_size: int | Sequence[int],
        kernel_size: int | Sequence[int],
        rank: int,
        stride: int | Sequence[int] = 1,
        padding: Any = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: torch.dtype | None = None,
        mixing: str = "sides",
        normalise: str | None = "softmax",
    ) -> None:
        if not arguments.is_int(rank) or rank < 1 or mixing not in ("sides", "positions") or normalise not in NORMALISED:
            raise ValueError(
                f"rank must be a positive int, mixing 'sides' or 'positions', and normalise one of {NORMALISED}, "
                f"but got rank={rank!r}, mixing={mixing!r}, normalise={normalise!r}"
            )
        if bias not in (True, False, "channel"):
            raise ValueError(f"bias must be True (one per output channel) or False, but got bias={bias!r}")
        self.rank, self.mixed_by, self.normalise = rank, mixing, normalise
        per_channel = "channel" if bias else False
        super().__init__(
            in_channels, out_channels, input_size, kernel_size, stride, padding, dilation, groups, per_channel, padding_mode, device, dtype
        )

    def _create_parameters(self, bias: bool | str, device: Any, dtype: torch.dtype | None) -> None:
        for name, shape in self.mixing_shapes.items():
            setattr(self, name, torch.nn.Parameter(torch.empty(shape, device=device, dtype=dtype)))
        super()._create_parameters(bias, device, dtype)

    @property
    def mixing_names(self) -> list[str]:
        """The names of the parameters that hold the coefficients."""
        return ["mixing"] if self.mixed_by == "positions" else [f"mixing_{letter}" for letter in POSITIONS[: self.dimensions]]

    @property
    def mixing_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the coefficients, by the name of the parameter."""
        if self.mixed_by == "positions":
            return {"mixing": (*self.output_size, self.rank)}
        return {name: (n, self.rank) for name, n in zip(self.mixing_names, self.output_size, strict=True)}

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """`(R, O, C/groups, *kernel)`."""
        return (self.rank, self.out_channels, self.in_channels // self.groups, *self.kernel_size)

    def reset_parameters(self) -> None:
        """Draw weight and bias anew and make all coefficients equal; a mixed weight has the variance of one uniform in +-1/sqrt(fan-in)."""
        super().reset_parameters()
        with torch.no_grad():
            self.weight.mul_(math.sqrt(self.rank) if self.normalise == "softmax" else 1)
            for name in self.mixing_names:
                getattr(self, name).fill_(1 / (math.sqrt(self.rank) * len(self.mixing_names)))

    def coefficients(self) -> Tensor:
        """The mixing coefficients of each position, `(R, *positions)`, normalised."""
        first, *names = self.mixing_names
        m = getattr(self, first)
        for name in names:
            m = m.unsqueeze(-2) + getattr(self, name)
        m = m.movedim(m.ndim - 1, 0)  # counted from the front: the older ONNX exporter keeps -1 as it is
        if self.normalise == "softmax":
            return softmax(m, 0)
        if self.normalise is None:
            return m
        wide = m.float() if m.dtype in HALF else m  # squares of half precision overflow or vanish
        return (wide / torch.linalg.vector_norm(wide, dim=0, keepdim=True).clamp(min=1e-6)).to(m.dtype)

    def connect(self, input: Tensor, padding: Any) -> Tensor:
        """The layer's output for an image of the right size, already padded unless the padding is zeros."""
        settings = self.stride, padding, self.dilation, self.groups
        one = self.rank == 1 and self.normalise == "softmax"  # then its coefficients are 1
        return low_rank_local(self.dimensions, input, self.weight, self.coefficients(), self.bias, *settings, equal=one)

    def extra_repr(self) -> str:
        """The arguments that differ from their defaults, the number of parameters and the memory they take."""
        more = f"rank={self.rank}, mixing={self.mixed_by!r}, normalise={self.normalise!r}"
        text = super().extra_repr().replace(", bias='channel'", "", 1)  # this is the default, written True
        return text.replace(", parameters=", f", {more}, parameters=", 1)

    @classmethod
    def from_conv(cls, conv: compat.ConvNd, input_size: int | Sequence[int], rank: int = 1, **options: Any) -> Self:  # type: ignore[override]
        """The layer that computes what `conv` does: `rank` random convolutions around `conv`, whose mixture equals it."""
        check_convolution(conv, cls)
        kept = settings_of(conv, SETTINGS)
        if given := sorted(kept.keys() & options.keys()):
            raise TypeError(f"{cls.__name__}.from_conv() takes {given[0]} from the convolution; leave it out")
        layer = cls(input_size=input_size, rank=rank, bias=conv.bias is not None, **kept, **options)
        with torch.no_grad():
            shares = layer.coefficients().flatten(1)[:, 0]
            weight = layer.weight + (conv.weight - torch.tensordot(shares, layer.weight, 1)) / shares.sum()
        copy_parameters(conv, layer, weight, conv.bias)
        return layer

    def to_conv(self) -> compat.ConvNd:
        """The `torch.nn.ConvNd` whose weight is the average of this layer's over all positions."""
        return shared(self, torch.tensordot(self.coefficients().flatten(1).mean(1), self.weight, 1))

    def unshared(self) -> LocallyConnected:
        """The `LocallyConnectedNd` that computes the same, with the mixed weight written out for each position."""
        weight = torch.tensordot(self.coefficients().movedim(0, -1), self.weight, 1)
        return unshared(self, LOCAL[self.dimensions], weight)


class LowRankLocal1d(LowRankLocal):
    """`(N, C, H) -> (N, O, I)`; see `LowRankLocal`."""

    dimensions = 1


class LowRankLocal2d(LowRankLocal):
    """`(N, C, H, W) -> (N, O, I, J)`; see `LowRankLocal`, the base class, for the arguments."""

    dimensions = 2


class LowRankLocal3d(LowRankLocal):
    """`(N, C, D, H, W) -> (N, O, I, J, K)`; see `LowRankLocal`."""

    dimensions = 3
