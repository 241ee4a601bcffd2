"""How alike the weights of a local layer's positions are, and how to make them more alike.

    sharing(layer)                 how far the positions' filters are apart; 0 is a convolution
    share_(layer, strength)        pulls all of them towards their mean; may be called repeatedly
    neighbour_similarity(layer)    a penalty: the mean distance between the filters of neighbouring positions
    sets_of_positions(layer)       which set of weights each position uses

All of them take `LocallyConnectedNd`, with shared weights (blocks, tiles) or without; `neighbour_similarity` and `sharing` also
`LowRankLocalNd`, whose unshared weight they do not write out. A filter is the weights of one output channel at one position. Means are over
positions, so a set of weights counts as often as it is used.
"""

from math import prod

import torch
from torch import Tensor

from cnn425.algorithms.layout import HALF
from cnn425.layers.local import LocallyConnected
from cnn425.layers.local_conversion import check_own_parameters
from cnn425.layers.local_low_rank import LowRankLocal
from cnn425.windows import Sharing


def neighbour_similarity(layer: LocallyConnected, distance: str = "cosine") -> Tensor:
    """The mean distance between the filters of neighbouring positions, all channels and sides alike; it can be differentiated.

    Lu et al. 2025, "End-to-end topographic networks as models of cortical map formation and human visual behaviour" (All-TNN), where it
    keeps neighbouring units alike while they learn. distance: 'cosine', 1 - cosine of the angle between them, or 'squared', |a - b|^2.
    """
    if distance not in ("cosine", "squared"):
        raise ValueError(f"neighbour_similarity: distance must be 'cosine' or 'squared', but got {distance!r}")
    filters, form = vectors(layer)
    of, positions = Sharing(layer.share, layer.tile), places(layer)
    total, pairs = filters.abs().new_zeros(()), 0
    for side, count in enumerate(positions):
        if count < 2:
            continue
        table = of.table(side, count, filters.device)
        neighbours, times = torch.stack((table[:-1], table[1:])).unique(dim=1, return_counts=True)
        a, b = (filters.index_select(side, which) for which in neighbours)
        found = product(a - b, a - b, form) if distance == "squared" else 1 - cosine(a, b, form)
        for other, n in enumerate(positions):  # each set counts as often as it is used
            used = times if other == side else of.table(other, n, filters.device).bincount(minlength=found.shape[0])
            found = torch.tensordot(used.to(found.dtype), found, 1)
        here = (count - 1) * torch.Size(n for other, n in enumerate(positions) if other != side).numel()
        total, pairs = total + found.mean(), pairs + here
    return total / max(pairs, 1)


def share_(layer: LocallyConnected, strength: float = 1.0) -> None:
    """Pull the weights, and a bias per position, of all positions towards their mean, in place; strength 1 goes all the way.

    Pogodin, Mehta, Lillicrap, Latham 2021, "Towards biologically plausible convolutional networks": sharing now and then, as in sleep,
    keeps most of what a convolution has. (In experiments/sleep.py only every third step does.)
    """
    if isinstance(layer, LowRankLocal) or not isinstance(layer, LocallyConnected):
        raise TypeError(f"share_: layer must be a LocallyConnectedNd, but got {type(layer).__name__}")
    check_own_parameters(layer, "share_")
    with torch.no_grad():
        of, positions = Sharing(layer.share, layer.tile), places(layer)
        layer.weight.lerp_(of.mean(layer.weight, positions).expand_as(layer.weight), strength)
        if layer.bias is not None and layer.bias.ndim > 1:
            b = layer.bias.movedim(0, -1)
            mean = of.mean(b, positions) if b.shape[:-1] == layer.sets else b.flatten(0, -2).mean(0)
            b.lerp_(mean.expand_as(b), strength)


def sharing(layer: LocallyConnected) -> Tensor:
    """The root mean square over positions of |filters - mean filters| / |mean filters|: 0 for a convolution."""
    filters, form = vectors(layer)
    of, positions = Sharing(layer.share, layer.tile), places(layer)
    mean = of.mean(filters, positions)
    apart = of.mean(product(filters - mean, filters - mean, form).sum(-1), positions)
    return (apart / product(mean, mean, form).sum(-1)).sqrt()


def sets_of_positions(layer: LocallyConnected) -> Tensor:
    """The number of the set of weights that each position uses, `(*positions)`."""
    of, positions = Sharing(layer.share, layer.tile), places(layer)
    sets = of.sets(positions)
    return of.copied(torch.arange(prod(sets)).view(sets), positions)


def vectors(layer: LocallyConnected) -> tuple[Tensor, Tensor | None]:
    """The filters as vectors `(*sets, O or 1, K)`, and the matrices `(O, K, K)` of their inner products, None for the usual one.

    The filters of a low-rank layer are given by their coefficients; the inner products of its convolutions do the rest.
    """
    if isinstance(layer, LowRankLocal):
        basis = wide(layer.weight).flatten(2).transpose(0, 1)
        return wide(layer.coefficients()).movedim(0, -1).unsqueeze(-2), basis @ basis.mH
    if not isinstance(layer, LocallyConnected):
        raise TypeError(f"layer must be a LocallyConnectedNd or a LowRankLocalNd, but got {type(layer).__name__}")
    return wide(layer.weight).flatten(layer.dimensions + 1), None


def wide(t: Tensor) -> Tensor:
    """`t` in float32 if it is in half precision, where products of lengths overflow or vanish."""
    return t.float() if t.dtype in HALF else t


def places(layer: LocallyConnected) -> tuple[int, ...]:
    """The number of positions along each side; of a transposed layer, of pixels of the input."""
    return layer.output_size if layer.tile or max(layer.share) > 1 else layer.sets


def product(a: Tensor, b: Tensor, form: Tensor | None) -> Tensor:
    """The inner products of filters, `(..., O)`."""
    found = (a * b.conj()).sum(-1) if form is None else ((a.unsqueeze(-2) @ form).squeeze(-2) * b.conj()).sum(-1)
    return found.real if found.is_complex() else found


def cosine(a: Tensor, b: Tensor, form: Tensor | None) -> Tensor:
    """The cosines of the angles between filters; 0 where one has no length."""
    lengths = product(a, a, form) * product(b, b, form)
    return product(a, b, form) / lengths.clamp(min=torch.finfo(lengths.dtype).tiny).sqrt()
