"""How a block of images is searched for the largest number of every window, one side of the window after the other.

The numbers alone take one pass per cell. Numbers and the offsets they came from travel together, cell u of all windows at once:

    win = cell > best, as 0 and 1;        best = max(best, cell);        offset = offset + win * (its offset - offset)

three passes of plain arithmetic, as fast as memory (a selection by a mask of booleans takes ten times as long).
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from cnn425.algorithms.pool_layout import Line, Part, deal, lay, lie
from cnn425.algorithms.pool_program import Given, Recorder

MANTISSA = {torch.float32: (23, torch.int32), torch.float64: (52, torch.int64)}  # a whole number n below 2^23 is the last bits of 2^23 + n


def search(record: Recorder, part: Part, how: str, stride: int, shapes: Sequence[Sequence[int]], direct: bool) -> None:
    """Values and offsets of a block (image, values, offsets), the last side first: of equal numbers the first in reading order wins."""
    image, values, places = (Given(n, shape) for n, shape in enumerate(shapes))
    x: Any = lay(record, image, how, stride, direct)
    offsets: Tensor | None = None
    for line in part.lines[::-1]:
        room = values if direct and how == "last" and line is part.lines[0] and line.visits else None
        x, offsets = along(record, line, x, offsets, room)
    if x is not values:
        record.copy(values, lie(x, how))
    origin = sum(line.origin for line in part.lines)
    if offsets is None:
        record.copy(places, origin)
    else:
        bits, as_integers = MANTISSA[offsets.dtype]
        offsets = record(torch.add, offsets, 2**bits + origin, out=record.scratch(offsets.shape))
        record(lowest_bits, lie(offsets, how).view(as_integers), 2**bits - 1, out=places)


def search_values(record: Recorder, part: Part, how: str, stride: int, shapes: Sequence[Sequence[int]], direct: bool) -> None:
    """Values of a block (image, values), in any order of sides: columns are dealt last, when rows are few."""
    x: Any
    image, values = (Given(n, shape) for n, shape in enumerate(shapes))
    x = image if how == "split" else lay(record, image, how, stride, direct)
    lines = part.lines if how == "split" else part.lines[::-1]
    for line in lines:
        if how == "split" and line is lines[-1]:
            x = deal(record, x, stride)
        x = values_along(record, line, x, values if line is lines[-1] and how != "turned" else None)
    if how == "turned":
        record.copy(values, lie(x, how))


def lowest_bits(bits: Tensor, mask: int, out: Tensor) -> None:
    """The bits of a mask, or as many as there is room for."""
    out.copy_(bits) if out.itemsize < 3 else torch.bitwise_and(bits, mask, out=out)


def along(record: Recorder, line: Line, x: Any, offsets: Tensor | None, values: Any = None) -> tuple[Any, Tensor | None]:
    """The largest numbers of windows along an axis, and their offsets from the first cell visited, on top of `offsets` (None: zeros).

    The numbers go to `values` if that is given and there is more than one cell.
    """
    if line.chosen is not None:
        x, offsets = side_by_side(record, line, x), None if offsets is None else side_by_side(record, line, offsets)
    best: Any
    source: Tensor | None
    if line.first is None:  # minus infinity loses to every number
        best = record.copy(record.scratch(line.shape(x)) if values is None else values, -torch.inf)
        source, own = record.copy(record.scratch(best.shape), 0), True
    else:
        best, source, own = x[line.first], None if offsets is None else offsets[line.first], False
    room = record.scratch(best.shape) if line.visits else best
    other = record.scratch(best.shape) if line.visits and offsets is not None else room
    for there, windows, beats, distance, number in line.visits:
        if not own and windows is not None:
            best = record.copy(record.scratch(best.shape) if values is None else values, best)
            source, own = record.copy(record.scratch(best.shape), 0 if source is None else source), True
        cell, leading = x[there], best if windows is None else best[windows]
        win, its = record(beats, cell, leading, out=within(room, cell)), number
        if offsets is not None:
            its = record(torch.add, offsets[there], number, out=within(other, cell))
        if own:
            record(torch.maximum, leading, cell, out=leading)
            at_stake = cast(Tensor, source) if windows is None else cast(Tensor, source)[windows]
            record(torch.lerp, at_stake, its, win, out=at_stake)
        else:
            best, own = record(torch.maximum, best, cell, out=record.scratch(best.shape) if values is None else values), True
            if source is None:
                source, room = record(torch.mul, win, distance, out=win) if distance != 1 else win, record.scratch(best.shape)
            else:
                source = record(torch.lerp, source, its, win, out=record.scratch(best.shape))
    return best, source


def values_along(record: Recorder, line: Line, x: Any, room: Any = None) -> Any:
    """The largest numbers of windows along an axis, in `room` if there is any: one pass per cell."""
    if line.chosen is not None:
        x = side_by_side(record, line, x)
    room = record.scratch(line.shape(x)) if room is None else room
    others = line.visits
    if line.first is None:
        record.copy(room, -torch.inf)
    elif others and others[0].windows is None:
        record(torch.maximum, x[line.first], x[others[0].cell], out=room)
        others = others[1:]
    else:
        record.copy(room, x[line.first])
    for there, windows, *_ in others:
        leading = room if windows is None else room[windows]
        record(torch.maximum, leading, x[there], out=leading)
    return room


def within(room: Tensor, like: Any) -> Tensor:
    """The first numbers of `room`, in the shape of `like`."""
    return room.view(-1)[: like.shape.numel()].view(like.shape)


def side_by_side(record: Recorder, line: Line, t: Any) -> Tensor:
    """`t` with the pixels of uneven windows one after the other."""
    shape = list(t.shape)
    pixels = cast(Tensor, line.chosen)
    shape[line.axis] = len(pixels)
    return cast(Tensor, record(torch.index_select, t, line.axis, pixels, out=record.scratch(shape)))
