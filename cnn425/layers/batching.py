"""vmap of the bilinear maps: an extra batch of problems, folded into a letter the maps already have.

A convolution relates three tensors, and each pair of them shares one letter (the group g is shared by all):

    image  n g c        weight  g o c        output  n g o

A map takes two of them to the third. If only one operand is batched, its batch joins the letter which that operand shares with the result
and the other one lacks, so nothing is repeated; if both are, it joins g: B problems are one problem with B times the groups.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from cnn425.windows import Geometry

IMAGE, WEIGHT, OUTPUT = "ngc", "goc", "ngo"


def over_batch(
    bilinear: Callable[..., Tensor],
    letters: tuple[str, str, str],
    info: Any,
    in_dims: tuple[int | None, ...],
    operands: tuple[Tensor, Tensor],
    geometry: Geometry,
    groups: int,
    *rest: Any,
    positions_first: int = 0,
) -> Tensor:
    """`bilinear(first, second, geometry, groups, *rest)` for each problem of a batch: the results, with the batch in front.

    `letters` names the two operands and the result; `positions_first` counts the dimensions before the letters of a local weight.
    """
    result = letters[2]
    batched = [dim is not None for dim in in_dims[:2]]
    letter = (
        "g" if all(batched) else next(a for a in letters[batched.index(True)] if a in result and a not in letters[batched.index(False)])
    )

    def before(name: str) -> int:
        return positions_first if name == WEIGHT else 0

    first, second = (
        t if dim is None else fold(t.movedim(dim, 0), name, letter, groups, before(name))
        for t, name, dim in zip(operands, letters[:2], in_dims[:2], strict=True)
    )
    groups = groups * info.batch_size if letter == "g" else groups
    return unfold(bilinear(first, second, geometry, groups, *rest), result, letter, groups, info.batch_size, before(result))


def fold(t: Tensor, name: str, letter: str, groups: int, before: int) -> Tensor:
    """`t` with the batch it carries in front joined to `letter`, which becomes (batch, letter)."""
    t = split_groups(t, name, groups, before + 1)
    at = before + name.index(letter)
    return join_groups(t.movedim(0, at).flatten(at, at + 1), name, before)


def unfold(t: Tensor, name: str, letter: str, groups: int, batch: int, before: int) -> Tensor:
    """The inverse of `fold`: the batch in front again."""
    t = split_groups(t, name, groups, before)
    at = before + name.index(letter)
    return join_groups(t.unflatten(at, (batch, t.shape[at] // batch)).movedim(at, 0), name, before + 1)


def split_groups(t: Tensor, name: str, groups: int, before: int) -> Tensor:
    """The channel dimension, which holds g and the letter after it, as two dimensions."""
    at = before + name.index("g")
    return t.unflatten(at, (groups, t.shape[at] // groups))


def join_groups(t: Tensor, name: str, before: int) -> Tensor:
    """The inverse of `split_groups`."""
    at = before + name.index("g")
    return t.flatten(at, at + 1)
