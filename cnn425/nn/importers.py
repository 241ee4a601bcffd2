"""Weights of other libraries' local layers, imported into a `LocallyConnectedNd` and exported again, bit for bit.

Each peer stores the weight `w[i,j,o,c,u,v]` in an order of its own (two spatial dimensions; one or three alike; letters without a comma
between them are joined to one axis):

    Keras 2, implementation 1    (ij, uvc, o)    with data_format='channels_first'    (ij, cuv, o)
    Keras 2, implementation 3    (ijouvc)        with data_format='channels_first'    (oijcuv)
    flax ConvLocal               (i, j, cuv, o)
    LowRankLocallyConnected2D    (u, v, c, ro)    and coefficients (i, r) and (j, r), or (i, j, r)
    PyTorch forum                (1, o, c, i, j, uv)

Implementation 3 leaves out the weights that only see padding. The bias, one number per neuron, is `(i, j, o)` in Keras and flax and
`(1, o, i, j)` in the forum's snippet. (Keras with channels first declares the shape `(i, j, o)`, but reads the numbers in the order o i j.)
None of the peers supports groups.

Build the layer first, with the peer's sizes, strides and padding; flax's 'SAME' is our 'same', Keras's is `keras_same`.
"""

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from cnn425.layers.local import LocallyConnected
from cnn425.layers.local_conversion import check_own_parameters
from cnn425.layers.local_low_rank import LowRankLocal
from cnn425.layers.local_transpose import LocallyConnectedTranspose
from cnn425.windows import Sharing

KERAS_IMPLEMENTATIONS = (1, 3)
DATA_FORMATS = ("channels_last", "channels_first")


def keras_same(input_size: Sequence[int], kernel_size: Sequence[int], stride: Sequence[int] | None = None) -> tuple[tuple[int, int], ...]:
    """The (low, high) padding that Keras 2 means by 'same': half a kernel below, whatever the stride, and what is missing above.

    TensorFlow's rule, which flax and our padding='same' follow, depends on the stride, and puts the odd pixel of an even kernel above.
    """
    pairs = []
    for n, k, s in zip(input_size, kernel_size, stride or (1,) * len(kernel_size), strict=True):
        low = k // 2
        pairs.append((low, max(0, (-(-n // s) - 1) * s + k - n - low)))
    return tuple(pairs)


def load_keras(
    layer: LocallyConnected, kernel: Any, bias: Any = None, *, implementation: int = 1, data_format: str = "channels_last"
) -> LocallyConnected:
    """`layer`, filled with the weights of a Keras 2 `LocallyConnected1D` or `2D` (`keras_layer.get_weights()`)."""
    _check_layer(layer, "load_keras")
    order, real = _keras_order(layer, implementation, data_format)
    kernel, bias = _array(kernel), None if bias is None else _array(bias)
    if bias is not None and data_format == "channels_first":
        _expect("load_keras", "bias", bias, (*layer.output_size, layer.out_channels))
        bias = bias.reshape(layer.out_channels, *layer.output_size).permute(_last(layer))
    if implementation == 1:
        return _load(layer, "load_keras", kernel, (prod(layer.output_size), -1, layer.out_channels), order, bias, _last(layer))
    weights = torch.zeros(layer.weight_shape, dtype=kernel.dtype).permute(order)
    _expect("load_keras", "kernel", kernel, (int(real.sum()),))
    weights[real] = kernel
    return _fill(layer, "load_keras", weights.permute(_inverse(order)), bias, _last(layer))


def keras_weights(layer: LocallyConnected, *, implementation: int = 1, data_format: str = "channels_last") -> tuple[Tensor, Tensor | None]:
    """Kernel and bias of `layer` as Keras 2 stores them; for implementation 3 weights that see only padding are left out."""
    _check_layer(layer, "keras_weights")
    order, real = _keras_order(layer, implementation, data_format)
    weights = _own(layer, "keras_weights").permute(order)
    kernel = weights.reshape(prod(layer.output_size), -1, layer.out_channels) if implementation == 1 else weights[real]
    if layer.bias is not None and data_format == "channels_first":
        return kernel, _bias(layer, range(layer.dimensions + 1)).reshape(*layer.output_size, layer.out_channels)
    return kernel, _bias(layer, _last(layer))


def load_flax(layer: LocallyConnected, params: Mapping[str, Any]) -> LocallyConnected:
    """`layer`, filled with the `{'kernel': ..., 'bias': ...}` of a flax `ConvLocal`."""
    _check_layer(layer, "load_flax")
    shape = (*layer.output_size, -1, layer.out_channels)
    return _load(layer, "load_flax", _entry("load_flax", params, "kernel"), shape, _flax_order(layer), params.get("bias"), _last(layer))


def flax_params(layer: LocallyConnected) -> dict[str, Tensor]:
    """The parameters of `layer` as a flax `ConvLocal` stores them."""
    _check_layer(layer, "flax_params")
    kernel = _own(layer, "flax_params").permute(_flax_order(layer)).reshape(*layer.output_size, -1, layer.out_channels)
    bias = _bias(layer, _last(layer))
    return {"kernel": kernel} if bias is None else {"kernel": kernel, "bias": bias}


def load_forum(layer: LocallyConnected, state: Mapping[str, Any]) -> LocallyConnected:
    """`layer`, filled with the state_dict of the forum's snippet, `{'weight': ..., 'bias': ...}`."""
    _check_layer(layer, "load_forum")
    shape = (1, layer.out_channels, layer.in_channels, *layer.output_size, prod(layer.kernel_size))
    weight = _entry("load_forum", state, "weight")
    bias = None if state.get("bias") is None else _array(state["bias"]).squeeze(0)
    return _load(layer, "load_forum", weight, shape, _forum_order(layer), bias, range(layer.dimensions + 1))


def forum_state(layer: LocallyConnected) -> dict[str, Tensor]:
    """The parameters of `layer` as the forum's snippet stores them."""
    _check_layer(layer, "forum_state")
    shape = (1, layer.out_channels, layer.in_channels, *layer.output_size, prod(layer.kernel_size))
    weight = _own(layer, "forum_state").permute(_forum_order(layer)).reshape(shape)
    bias = _bias(layer, range(layer.dimensions + 1))
    return {"weight": weight} if bias is None else {"weight": weight, "bias": bias[None]}


def load_low_rank(layer: LowRankLocal, kernel_bases: Any, combining_weights: Sequence[Any], bias: Any = None) -> LowRankLocal:
    """`layer`, filled with the weights of Elsayed et al.'s `LowRankLocallyConnected2D` (google-research/low_rank_local_connectivity).

    combining_weights: one array for the rows and one for the columns (`mixing='sides'`), or a single one (`'positions'`), not normalised.
    bias: `bias_channels`. Build theirs with `use_spatial_bias=False`: the layer has no bias per row and column.
    """
    _check_low_rank(layer, "load_low_rank")
    bases, given = _array(kernel_bases), [_array(weights) for weights in combining_weights]
    check_own_parameters(layer, "load_low_rank")
    own = _own(layer, "load_low_rank")
    rank, o, c, *kernel = own.shape
    _expect("load_low_rank", "kernel_bases", bases, (*kernel, c, rank * o))
    wanted = f"{len(layer.mixing_shapes)} combining_weights and {'no' if layer.bias is None else 'a'} bias"
    if len(given) != len(layer.mixing_shapes) or (bias is None) != (layer.bias is None):
        raise ValueError(f"load_low_rank: the layer takes {wanted}, but got {len(given)} and {'none' if bias is None else 'one'}")
    for (name, shape), weights in zip(layer.mixing_shapes.items(), given, strict=True):
        _expect("load_low_rank", name, weights, shape)
    channels = None if bias is None else _array(bias).reshape(-1)
    if channels is not None:
        _expect("load_low_rank", "bias", channels, (o,))
    with torch.no_grad():
        own.copy_(bases.unflatten(-1, (rank, o)).permute(-2, -1, -3, *range(len(kernel))))
        for name, weights in zip(layer.mixing_shapes, given, strict=True):
            getattr(layer, name).copy_(weights)
        if layer.bias is not None and channels is not None:
            layer.bias.copy_(channels)
    return layer


def low_rank_weights(layer: LowRankLocal) -> tuple[Tensor, list[Tensor], Tensor | None]:
    """Kernel bases, combining weights and bias of `layer` as `LowRankLocallyConnected2D` stores them."""
    _check_low_rank(layer, "low_rank_weights")
    weight = _own(layer, "low_rank_weights")
    bases = weight.permute(*range(3, weight.ndim), 2, 0, 1).flatten(-2)
    bias = None if layer.bias is None else layer.bias.detach().reshape(*(1,) * layer.dimensions, -1)
    return bases, [getattr(layer, name).detach() for name in layer.mixing_shapes], bias


# ---- the orders: dimensions of our weight (*positions, O, C, *kernel), as they follow one another in the peer's memory


def _parts(layer: LocallyConnected) -> tuple[list[int], int, int, list[int]]:
    d = layer.dimensions
    return list(range(d)), d, d + 1, list(range(d + 2, 2 * d + 2))


def _flax_order(layer: LocallyConnected) -> tuple[int, ...]:
    positions, o, c, offsets = _parts(layer)
    return (*positions, c, *offsets, o)


def _forum_order(layer: LocallyConnected) -> tuple[int, ...]:
    positions, o, c, offsets = _parts(layer)
    return (o, c, *positions, *offsets)


def _keras_order(layer: LocallyConnected, implementation: int, data_format: str) -> tuple[tuple[int, ...], Tensor]:
    """The order, and for implementation 3 which weights touch a real pixel, in this order."""
    if implementation not in KERAS_IMPLEMENTATIONS:
        raise ValueError(f"implementation must be one of {KERAS_IMPLEMENTATIONS}, but got {implementation!r}")
    if data_format not in DATA_FORMATS:
        raise ValueError(f"data_format must be one of {DATA_FORMATS}, but got {data_format!r}")
    positions, o, c, offsets = _parts(layer)
    last = data_format == "channels_last"
    cells = (*offsets, c) if last else (c, *offsets)
    order = (*positions, *cells, o) if implementation == 1 else (*positions, o, *cells) if last else (o, *positions, *cells)
    return order, _touches_a_pixel(layer).expand(layer.weight_shape).permute(order)


def _touches_a_pixel(layer: LocallyConnected) -> Tensor:
    geometry, d = layer.geometry, layer.dimensions
    real = torch.ones((1,) * (2 * d + 2), dtype=torch.bool)
    for k in range(d):
        offset, position = torch.arange(geometry.kernel[k]) * geometry.dilation[k], torch.arange(layer.output_size[k]) * geometry.stride[k]
        pixel = position[:, None] + offset - geometry.padding[k][0]
        shape = [1] * (2 * d + 2)
        shape[k], shape[d + 2 + k] = pixel.shape
        real = real & ((pixel >= 0) & (pixel < layer.input_size[k])).view(shape)
    return real


def _last(layer: LocallyConnected) -> tuple[int, ...]:
    """The order of a bias `(*positions, O)`."""
    return (*range(1, layer.dimensions + 1), 0)


def _inverse(order: Sequence[int]) -> tuple[int, ...]:
    return tuple(sorted(range(len(order)), key=lambda dim: order[dim]))


# ---- moving numbers, and what is refused


def _load(
    layer: LocallyConnected, function: str, kernel: Tensor, shape: Sequence[int], order: Sequence[int], bias: Any, bias_order: Sequence[int]
) -> LocallyConnected:
    whole = [layer.weight_shape[dim] for dim in order]
    known = prod(n for n in shape if n != -1)
    _expect(function, "kernel", kernel, tuple(prod(whole) // known if n == -1 else n for n in shape))
    return _fill(layer, function, kernel.reshape(whole).permute(_inverse(order)), bias, bias_order)


def _fill(layer: LocallyConnected, function: str, weight: Tensor, bias: Any, bias_order: Sequence[int]) -> LocallyConnected:
    own = _bias(layer, bias_order)
    check_own_parameters(layer, function)
    _own(layer, function)
    if (bias is None) != (own is None):
        owner = "layer" if bias is None else "kernel"
        raise ValueError(f"{function}: the {owner} comes with a bias, the other without: build the layer with bias={bias is not None}")
    with torch.no_grad():
        if own is not None and layer.bias is not None:
            if layer.bias.ndim == 1:
                raise ValueError(f"{function}: the other library has a bias per neuron, but the layer one bias per channel")
            given = _array(bias)
            _expect(function, "bias", given, tuple(own.shape))
            layer.bias.copy_(given.permute(_inverse(bias_order)))
        layer.weight.copy_(weight)
    return layer


def _check_layer(layer: object, function: str) -> None:
    """Refuse all but a `LocallyConnectedNd` whose positions have weights of their own."""
    if not isinstance(layer, LocallyConnected) or isinstance(layer, (LowRankLocal, LocallyConnectedTranspose)):
        raise TypeError(f"{function}: layer must be a LocallyConnectedNd, but got {type(layer).__name__}")
    if not Sharing(layer.share, layer.tile).each:
        raise ValueError(
            f"{function}: the other library has weights for each position, but the layer has share={layer.share} and tile={layer.tile}: "
            "take layer.unshared()"
        )


def _check_low_rank(layer: object, function: str) -> None:
    if not isinstance(layer, LowRankLocal):
        raise TypeError(f"{function}: layer must be a LowRankLocalNd, but got {type(layer).__name__}")


def _entry(function: str, state: Mapping[str, Any], name: str) -> Tensor:
    if not isinstance(state, Mapping) or name not in state:
        found = sorted(state) if isinstance(state, Mapping) else type(state).__name__
        raise ValueError(f"{function}: the weights must be a dict that holds {name!r}, but got {found}")
    return _array(state[name])


def _own(layer: LocallyConnected, function: str) -> Tensor:
    if layer.groups != 1:
        raise ValueError(f"{function}: the other library has no groups, but the layer has groups={layer.groups}")
    return layer.weight.detach()


def _bias(layer: LocallyConnected, order: Sequence[int]) -> Any:
    if layer.bias is None:
        return None
    bias = layer.bias.detach()
    bias = bias if bias.ndim > 1 else bias.view(-1, *(1,) * layer.dimensions)
    return bias.expand(layer.out_channels, *layer.output_size).permute(*order)


def _array(values: Any) -> Tensor:
    return values.detach() if isinstance(values, Tensor) else torch.tensor(values)


def _expect(function: str, name: str, array: Tensor, shape: tuple[int, ...]) -> None:
    if array.shape != shape:
        raise ValueError(f"{function}: the layer wants a {name} of shape {list(shape)}, but got {list(array.shape)}")
