"""Random arguments for every layer: `drawn(layer, Draw(seed, mistakes))` are those of a call to torch's function, legal or with mistakes.

Small sizes, small integers half of the time (so that ties happen), all dtypes, gaps in memory, channels_last, empty or missing batches.
"""

import random
from typing import Any

import torch
from compare_layers import dimensions, local_shapes, positions_along
from torch import Tensor

STRANGE: tuple[Any, ...] = (0, -1, 1.5, "a", None, True, (1,), (2, 2), (1, 2, 3), (1, 2, 3, 4), [2], [], torch.tensor(2))
DTYPES = (torch.float32,) * 6 + (torch.float64,) * 4 + (torch.int64, torch.bool, torch.complex64)


class Draw(random.Random):
    """Random numbers for one list of arguments, with at most so many things wrong: of two errors, any may be reported first."""

    def __init__(self, seed: Any, mistakes: int = 1):
        super().__init__(seed)
        self.mistakes = mistakes

    def mistake(self, share: float) -> bool:
        """Now and then True, as often as mistakes are allowed; the more are allowed, the more often."""
        found = self.mistakes > 0 and self.random() < share * self.mistakes
        self.mistakes -= found
        return found


def number(draw: Draw, d: int, low: int, high: int) -> Any:
    """An int, one per dimension, or now and then something strange."""
    if draw.mistake(0.06):
        return draw.choice(STRANGE)
    return tuple(draw.randint(low, high) for _ in range(d)) if draw.random() < 0.4 else draw.randint(low, high)


def tensor(draw: Draw, *shape: int, dtype: torch.dtype | None = None, images: bool = True) -> Tensor:
    """Small integers half of the time, so that ties happen; any layout."""
    gaps = len(shape) > 0 and draw.random() < 0.15
    size = (*shape[:-1], 2 * shape[-1]) if gaps else shape
    x = torch.randint(-3, 4, size).double() if draw.random() < 0.5 else torch.randn(size, dtype=torch.float64)
    x = x.to(dtype or draw.choice(DTYPES))
    if gaps:
        return x[..., ::2]
    if images and x.ndim == 4 and draw.random() < 0.2:
        return x.to(memory_format=torch.channels_last)
    return x.t().contiguous().t() if x.ndim == 2 and draw.random() < 0.2 else x


def drawn(layer: str, draw: Draw) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments of a layer that torch has."""
    d = dimensions(layer)
    size = [draw.choice((0, 1, 2, 5, 6, 7, 8) if draw.random() < 0.1 else (5, 6, 7, 8)) for _ in range(d)]
    batch = [draw.choice((0, 1, 2, 3))] if draw.random() < 0.8 else []
    if layer.startswith("adaptive_avg"):  # of size 1 it is a plain mean in torch, which looks at nothing
        size = [max(n, 1) for n in size]
    elif draw.mistake(0.04):
        batch = [2, 2]
    if layer.startswith("conv_transpose"):  # of empty batches and of outputs without pixels torch refuses some, without a rule
        size, draw.mistakes = [max(n, 3) for n in size], draw.mistakes if 0 not in batch else 0
    if layer.startswith("conv"):
        return conv_arguments(d, size, batch, draw, layer.startswith("conv_transpose"))
    if d:
        return pool_arguments(layer, d, size, batch, draw)
    shape = [draw.randint(0, 4) for _ in range(draw.randint(0, 4))]
    if layer in ("unfold", "fold"):
        return window_arguments(layer, draw)
    if layer == "linear":
        w = [draw.randint(0, 4), shape[-1] if shape and not draw.mistake(0.1) else 2][draw.random() < 0.1 :]
        dtype = draw.choice(DTYPES)
        bias = [] if draw.random() < 0.4 else [tensor(draw, *([3] if draw.mistake(0.1) else w[:1]), dtype=dtype)]
        return (tensor(draw, *shape, dtype=dtype), tensor(draw, *w, dtype=None if draw.mistake(0.1) else dtype), *bias), {}
    if layer == "cross_entropy":
        return loss_arguments(draw)
    named: dict[str, Any] = {}
    if layer == "softmax":
        named = {"dim": draw.choice((0, 1, -1, -2, 2, 5, "a", True, 1.0))} | ({"dtype": torch.float64} if draw.random() < 0.2 else {})
    if layer == "relu":
        named = {"inplace": draw.random() < 0.3}
    return (tensor(draw, *shape),), named


def conv_arguments(
    d: int, size: list[int], batch: list[int], draw: Draw, transposed: bool = False
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    groups = draw.choice((1, 1, 1, 2, 3))
    c, out = draw.choice((groups, 2 * groups)), draw.choice((groups, 2 * groups))
    # an empty batch is not looked at closely by torch: nothing is wrong with it here
    empty = 0 in (*batch, *size)
    dtype = torch.float32 if empty else draw.choice([t for t in DTYPES if t != torch.int64])
    kernel = [draw.randint(1, 3) for _ in range(d)]
    x = tensor(draw, *batch, c + draw.mistake(0.04), *size, dtype=dtype)
    channels = (c, out // groups) if transposed else (out, c // groups)
    w = tensor(draw, *channels, *kernel[draw.mistake(0.03) :], dtype=None if not empty and draw.mistake(0.05) else dtype)
    b = [] if draw.random() < 0.4 else [tensor(draw, out + draw.mistake(0.03), dtype=dtype)]
    named = {"stride": number(draw, d, 1, 3), "dilation": number(draw, d, 1, 2)}
    named["groups"] = draw.choice(STRANGE) if draw.mistake(0.05) else groups
    named["padding"] = number(draw, d, 0, 1 if transposed else 2)
    if transposed:
        named["output_padding"] = 0 if empty else number(draw, d, 0, 1)
    elif draw.random() < 0.2:
        named["padding"] = (
            "full" if draw.mistake(0.3) else "valid" if named["stride"] not in (1, (1,) * d) else draw.choice(("same", "valid"))
        )
    return (x, w, *b), named


def pool_arguments(layer: str, d: int, size: list[int], batch: list[int], draw: Draw) -> tuple[tuple[Any, ...], dict[str, Any]]:
    channels = draw.choice((0, 1, 2, 3)) if draw.random() < 0.1 else 2
    empty = 0 in (*batch, channels, *size)
    dtype = torch.float32 if empty else draw.choice([t for t in DTYPES if t != torch.complex64])
    x = tensor(draw, *batch, channels, *size, dtype=dtype, images=d == 2)
    if layer.startswith("adaptive"):
        target: Any = (None,) * d if draw.random() < 0.1 else number(draw, d, 1, 6)
        target = 1 if target == 0 and not dtype.is_floating_point else target  # torch does not look at the dtype of an empty output
        return (x, target), {"return_indices": True} if "max" in layer and draw.random() < 0.5 else {}
    kernel = number(draw, d, 1, 3)
    named = {"stride": None if draw.random() < 0.3 else number(draw, d, 1, 3), "ceil_mode": draw.random() < 0.4}
    if layer.startswith("lp"):
        return (x, draw.choice((1, 2, 2.0, 3)), kernel), named
    named["padding"] = number(draw, d, 0, 1)
    if layer.startswith("avg"):
        named["count_include_pad"] = draw.random() < 0.5
        named |= {"divisor_override": draw.choice((None, 1, 5, -2, 0))} if d > 1 else {}
    else:
        far = 2 if min(size) > 2 else 1  # a window that sees nothing but padding has no gradient, whatever torch says
        named |= {"dilation": number(draw, d, 1, far), "return_indices": draw.random() < 0.5}
    return (x, kernel), named


def window_arguments(layer: str, draw: Draw) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments of unfold and fold for images, the only ones that torch takes."""
    named = {name: pair(draw, low, 2) for name, low in (("kernel_size", 1), ("dilation", 1), ("padding", 0), ("stride", 1))}
    size = [draw.randint(5, 7), draw.randint(5, 7)]
    batch, channels = [draw.randint(0, 2)] if draw.random() < 0.8 else [], draw.randint(1, 2)
    dtype = draw.choice([t for t in DTYPES if t != torch.bool])
    if layer == "unfold":
        channels -= draw.mistake(0.05)
        return (tensor(draw, *([2, 2] if draw.mistake(0.03) else batch), channels, *size, dtype=dtype),), named
    whole = [value if isinstance(value, tuple) else (value,) * 2 for value in named.values()]
    legal = all(len(value) == 2 and all(type(n) is int and n >= 0 for n in value) for value in whole) and 0 not in whole[0] + whole[3]
    k, e, p, s = whole if legal else [(1, 1), (1, 1), (0, 0), (1, 1)]
    count = [(n + 2 * p[i] - e[i] * (k[i] - 1) - 1) // s[i] + 1 for i, n in enumerate(size)]
    columns = channels * k[0] * k[1] + draw.mistake(0.05), count[0] * count[1] + draw.mistake(0.05)
    named["output_size"] = draw.choice(STRANGE[:5]) if draw.mistake(0.05) else tuple(size)
    return (tensor(draw, *batch, *columns, dtype=dtype, images=False),), named


def pair(draw: Draw, low: int, high: int) -> Any:
    """Two numbers or one, or something strange, but no sequence of one or three: ours takes those for a signal or a volume."""
    if draw.mistake(0.06):
        return draw.choice([value for value in STRANGE if not isinstance(value, (tuple, list)) or len(value) not in (0, 1, 3)])
    return (draw.randint(low, high), draw.randint(low, high)) if draw.random() < 0.4 else draw.randint(low, high)


def loss_arguments(draw: Draw) -> tuple[tuple[Any, ...], dict[str, Any]]:
    size = [draw.randint(1, 4) for _ in range(draw.randint(1, 4))]
    x = tensor(draw, *size, dtype=draw.choice((torch.float32, torch.float64)))
    classes = size[0] if len(size) == 1 else size[1]
    if draw.random() < 0.3:
        target = torch.rand(size).to(x.dtype)
    else:
        target = torch.randint(
            -1 if draw.random() < 0.1 else 0, classes + (draw.random() < 0.1), (size[:1] if len(size) > 1 else []) + size[2:]
        )
    named: dict[str, Any] = {"reduction": draw.choice(("mean", "sum", "none")), "label_smoothing": draw.choice((0.0, 0.0, 0.1, 1.0, 1.5))}
    named |= {"ignore_index": draw.choice((-100, 0, 1))} | ({"weight": torch.rand(classes).to(x.dtype)} if draw.random() < 0.4 else {})
    return (x, target), named


def local_arguments(layer: str, draw: Draw) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Legal arguments of a local layer; its refusals have no oracle."""
    d, groups = int(layer[-2]), draw.choice((1, 1, 2))
    k, s, p, dilation, size = draw.randint(1, 3), draw.randint(1, 2), draw.randint(0, 1), draw.randint(1, 2), draw.randint(5, 7)
    dtype = draw.choice((torch.float32, torch.float64))
    c, out = groups * draw.randint(1, 2), groups * draw.randint(1, 2)
    shapes, bias = local_shapes(layer, [positions_along(size, k, s, p, dilation)] * d, [out, c // groups, *[k] * d])
    if draw.random() < 0.6:
        shapes.append(bias)
    given = [tensor(draw, *shape, dtype=dtype) for shape in ([draw.randint(0, 3), c, *[size] * d], *shapes)]
    return tuple(given), {"stride": s, "padding": p, "dilation": dilation, "groups": groups}
