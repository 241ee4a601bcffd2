"""How a block of images is searched for the largest number of every window: calls written down once, made again for every block.

Numbers and the offsets they came from travel together, one side of the window after the other, cell u of all windows at once:

    win = cell > best, as 0 and 1;        best = max(best, cell);        offset = offset + win * (its offset - offset)

three passes of plain arithmetic, as fast as memory (a selection by a mask of booleans takes ten times as long). Slicing a tensor costs a
microsecond, as much as the arithmetic on ten thousand numbers, so slices of scratch are made once per shape of a block and kept, with the
calls on them, by the thread whose scratch it is.
"""

import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from cnn425.algorithms import memory
from cnn425.algorithms.pool_layout import Line, lay


class Program(NamedTuple):
    """What is done with every block of a shape: steps on scratch that stays where it is, from the image to numbers and offsets."""

    image: tuple[Tensor, ...]
    steps: tuple[Callable[[], Any], ...]
    best: Tensor
    offsets: Tensor | int


class Recorder:
    """Writes down calls, to be made again for every block, and hands out scratch for them."""

    def __init__(self, like: Tensor) -> None:
        self.steps: list[Callable[[], Any]] = []
        self.like, self.lasting = like, True
        memory.begin()

    def __call__(self, operation: Callable[..., Tensor], *args: Any, out: Tensor) -> Tensor:
        """`operation(*args)`, in `out`."""
        self.steps.append(partial(operation, *args, out=out))
        return out

    def copy(self, target: Tensor, source: Tensor | float) -> Tensor:
        """`target` with the numbers of `source`."""
        self.steps.append(partial(target.copy_, source) if isinstance(source, Tensor) else partial(target.fill_, source))
        return target

    def scratch(self, shape: Sequence[int]) -> Tensor:
        """Scratch; not `lasting` once the arena is full."""
        room = memory.scratch(self.like, *shape)
        self.lasting &= memory.arena.memory is not None and room.untyped_storage().data_ptr() == memory.arena.memory.data_ptr()
        return room


def along(record: Recorder, line: Line, x: Tensor, offsets: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The largest numbers of windows along an axis, and their offsets from the first cell visited, on top of `offsets` (None: zeros)."""
    if line.chosen is not None:
        x, offsets = side_by_side(record, line, x), None if offsets is None else side_by_side(record, line, offsets)
    best: Tensor
    source: Tensor | None
    if line.first is None:  # minus infinity loses to every number
        shape = list(x[line.visits[0].cell].shape)
        shape[line.axis] = line.positions
        best, source, own = record.copy(record.scratch(shape), -torch.inf), record.copy(record.scratch(shape), 0), True
    else:
        best, source, own = x[line.first], None if offsets is None else offsets[line.first], False
    room = record.scratch(best.shape) if line.visits else best
    other = record.scratch(best.shape) if line.visits and offsets is not None else room
    for there, windows, beats, distance, number in line.visits:
        if not own and windows is not None:
            best, source = (
                record.copy(record.scratch(best.shape), best),
                record.copy(record.scratch(best.shape), 0 if source is None else source),
            )
            own = True
        cell, leading = x[there], best if windows is None else best[windows]
        win, its = record(beats, cell, leading, out=within(room, cell)), number
        if offsets is not None:
            its = record(torch.add, offsets[there], number, out=within(other, cell))
        if own:
            record(torch.maximum, leading, cell, out=leading)
            at_stake = cast(Tensor, source) if windows is None else cast(Tensor, source)[windows]
            record(torch.lerp, at_stake, its, win, out=at_stake)
        else:
            best, own = record(torch.maximum, best, cell, out=record.scratch(best.shape)), True
            if source is None:
                source, room = record(torch.mul, win, distance, out=win) if distance != 1 else win, record.scratch(best.shape)
            else:
                source = record(torch.lerp, source, its, win, out=record.scratch(best.shape))
    return best, source


def values_along(record: Recorder, line: Line, x: Tensor) -> Tensor:
    """`along` for the numbers alone: one pass per cell."""
    if line.chosen is not None:
        x = side_by_side(record, line, x)
    best, own = x[line.visits[0].cell] if line.first is None else x[line.first], False
    if line.first is None:
        shape = list(best.shape)
        shape[line.axis] = line.positions
        best, own = record.copy(record.scratch(shape), -torch.inf), True
    for there, windows, *_ in line.visits:
        if not own:
            room = record.scratch(best.shape)
            if windows is None:
                best, own = record(torch.maximum, best, x[there], out=room), True
                continue
            best, own = record.copy(room, best), True
        leading = best if windows is None else best[windows]
        record(torch.maximum, leading, x[there], out=leading)
    return best


def within(room: Tensor, like: Tensor) -> Tensor:
    """The first numbers of `room`, in the shape of `like`."""
    return room.view(-1)[: like.numel()].view(like.shape)


def side_by_side(record: Recorder, line: Line, t: Tensor) -> Tensor:
    """`t` with the pixels of uneven windows one after the other."""
    shape = list(t.shape)
    pixels = cast(Tensor, line.chosen)
    shape[line.axis] = len(pixels)
    return record(torch.index_select, t, line.axis, pixels, out=record.scratch(shape))


def program(
    lines: Sequence[Line], how: str, stride: int, shape: Sequence[int], like: Tensor, values_only: bool = False
) -> tuple[Program, bool]:
    """What is done with blocks of this shape, the last side first: of equal numbers the first in reading order wins. And if it lasts."""
    record = Recorder(like)
    offsets: Tensor | None = None
    x, image = lay(shape, how, stride, record.scratch)
    for line in lines[::-1]:
        if values_only:
            x = values_along(record, line, x)
        else:
            x, offsets = along(record, line, x, offsets)
    origin = sum(line.origin for line in lines)
    if offsets is not None and origin:
        offsets = record(torch.add, offsets, origin, out=record.scratch(offsets.shape))
    if how == "turned":
        x, offsets = x.squeeze(0).movedim(-1, 0), None if offsets is None else offsets.squeeze(0).movedim(-1, 0)
    return Program(image, tuple(record.steps), x, origin if offsets is None else offsets), record.lasting


class Programs(threading.local):
    """The programs of a thread, whose scratch they use."""

    def __init__(self) -> None:
        self.known: dict[Any, Program] = {}

    def get(self, key: Any, *arguments: Any) -> Program:
        """A program by its key; made from the arguments if it is new."""
        if (found := self.known.get(key)) is None:
            found, lasting = program(*arguments)
            if lasting:
                if len(self.known) >= 256:
                    self.known.clear()
                self.known[key] = found
        return found


programs = Programs()
