"""All algorithms by name, and `use` to force one: for convolutions, for local layers and for pools.

A name may stand for one algorithm of each kind: `definition` does. Layers without an algorithm of the forced name compute as usual.
"""

from collections.abc import Iterator
from contextlib import contextmanager

known: dict[str, tuple[str, ...]] = {}
forced: list[str] = []


def register(kind: str, names: tuple[str, ...]) -> None:
    """Make the algorithms of a kind of layer known to `use`."""
    known[kind] = names


def names(kind: str | None = None) -> tuple[str, ...]:
    """The names of the algorithms of a kind of layer (`convolution`, `local`, `pool`), or of all of them, as `use` takes them."""
    return tuple(dict.fromkeys(name for k, found in known.items() if kind in (None, k) for name in found))


@contextmanager
def use(name: str) -> Iterator[None]:
    """Within this context layers are computed by the algorithm of this name, where they have one and it applies."""
    if name not in names():
        kinds = "; ".join(f"{kind}: {', '.join(found)}" for kind, found in known.items())
        raise ValueError(f"use: there is no algorithm {name!r}; the algorithms are, for each kind of layer, {kinds}")
    forced.append(name)
    try:
        yield
    finally:
        forced.pop()


def forced_for(kind: str) -> str | None:
    """The name that `use` forces for a kind of layer, if any."""
    return forced[-1] if forced and forced[-1] in known[kind] else None
