"""What is done with a block of images, written down once and done again for every block of its shape.

Slicing a tensor costs a microsecond, as much as arithmetic on ten thousand numbers, so scratch is cut once per shape of a block and kept,
with the calls on it, by the thread whose scratch it is. What is given (images, the places of results) is cut once per
call, as written down, and its blocks are then runs of the first dimension.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cnn425.algorithms import memory


class Given:
    """A part of a tensor whose blocks are worked through, the first dimension whole: the number of that tensor, and how it is cut."""

    def __init__(self, number: int, shape: Sequence[int], *cuts: Callable[[Tensor], Tensor]) -> None:
        self.number, self.shape, self.cuts = number, torch.Size(shape), cuts

    def cut(self, how: Callable[[Tensor], Tensor]) -> "Given":
        """A part of this part."""
        return Given(self.number, how(torch.empty(self.shape, device="meta")).shape, *self.cuts, how)

    def __getitem__(self, index: Any) -> "Given":
        return self.cut(lambda t: t[index])

    def of(self, tensors: Sequence[Tensor]) -> Tensor:
        """The part of the tensors that there are."""
        t = tensors[self.number]
        for how in self.cuts:
            t = how(t)
        return t


class Program(NamedTuple):
    """The parts of tensors that are given, and the calls on blocks of them."""

    given: tuple[Given, ...]
    steps: tuple[Callable[[Sequence[Tensor]], Any], ...]


class Recorder:
    """Writes down calls, to be made again for every block, and hands out scratch for them."""

    def __init__(self, like: Tensor) -> None:
        self.given: list[Given] = []
        self.steps: list[Callable[[Sequence[Tensor]], Any]] = []
        self.like, self.lasting = like, True
        memory.begin()

    def __call__(self, operation: Callable[..., Any], *operands: Any, out: Any) -> Any:
        """`operation(*operands)`, in `out`."""
        if not any(isinstance(part, Given) for part in (*operands, out)):
            call = partial(operation, *operands, out=out)
            self.steps.append(lambda _: call())
            return out
        places = [self.place(part) for part in (*operands, out)]

        def take(block: Sequence[Tensor]) -> None:
            *parts, target = [known if at is None else block[at] for at, known in places]
            operation(*parts, out=target)

        self.steps.append(take)
        return out

    def place(self, part: Any) -> tuple[int | None, Any]:
        """Where among what is given an operand is, or the operand itself."""
        if not isinstance(part, Given):
            return None, part
        if part not in self.given:
            self.given.append(part)
        return self.given.index(part), None

    def copy(self, target: Any, source: Any) -> Any:
        """`target` with the numbers of `source`."""
        return self(fill if isinstance(source, (int, float)) else copy, source, out=target)

    def scratch(self, shape: Sequence[int]) -> Tensor:
        """Scratch; not `lasting` once the arena is full."""
        room = memory.scratch(self.like, *shape)
        self.lasting &= memory.arena.memory is not None and room.untyped_storage().data_ptr() == memory.arena.memory.data_ptr()
        return room

    def program(self) -> Program:
        """What was written down."""
        return Program(tuple(self.given), tuple(self.steps))


def copy(source: Tensor, out: Tensor) -> None:
    """`source` in `out`."""
    out.copy_(source)


def fill(number: float, out: Tensor) -> None:
    """`number` everywhere in `out`."""
    out.fill_(number)


def known(key: Any, like: Tensor, write: Callable[..., None], *arguments: Any) -> Program:
    """A program by its key; `write(recorder, *arguments)` writes it down if it is new. It goes with the arena whose pieces it writes to."""
    programs = memory.arena.programs
    if (found := programs.get(key)) is None:
        record = Recorder(like)
        write(record, *arguments)
        found = record.program()
        if record.lasting:
            if len(programs) >= 256:
                programs.clear()
            programs[key] = found
    return found
