"""The autograd Functions of the pools: mathematics only; the story is told in `cnn425.layers.pool`.

MaxPool        image -> largest numbers and their pixels; its tangent is Pick, its gradient Route
Pick           the pixels that won, of another image; its gradient is Route
Route          every number to the pixel that won; its gradient is Pick
AveragePool    image -> means; its gradient is Share
Share          every number to all pixels of its window; its gradient is AveragePool
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from cnn425.algorithms import pool as algorithm
from cnn425.algorithms import pool_average, pool_places, pool_small, pool_tables, pool_winners
from cnn425.algorithms.pool import Bins, Pooling
from cnn425.algorithms.tracing import is_traced
from cnn425.layers.function import operation, owned


def spatial(x: Tensor, pooling: Pooling) -> tuple[int, ...]:
    """The image size in pixels."""
    return tuple(x.shape[x.ndim - len(pooling.geometry[0]) :])


def by_tables(pooling: Pooling, size: tuple[int, ...]) -> bool:
    """Whether pixels are looked up in tables: in traces, and where a list of visits would be too long."""
    return is_traced() or algorithm.many_visits(pooling.geometry, size)


def wide(x: Tensor) -> Tensor:
    """`x` in the precision in which its numbers are added up: half precision adds in float32 and is rounded once."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


class MaxPool(Function):
    """Image -> the largest number of every window, `(N, C, *size) -> (N, C, *positions)`, and as `dtype` the number of its pixel."""

    @staticmethod
    def forward(x: Tensor, pooling: Pooling, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        tables = by_tables(pooling, spatial(x, pooling))
        if not tables and (found := pool_winners.winners(x, pooling, dtype)) is not None:
            return found
        y, pixels = (pool_tables if tables else algorithm).winners(x, pooling)
        return y, pixels if dtype == torch.int64 else pool_places.offsets_of(pixels, pooling.geometry, spatial(x, pooling), dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, ctx.pooling, _ = inputs
        ctx.size = spatial(x, ctx.pooling)
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(output[1])
        ctx.save_for_forward(output[1])

    @staticmethod
    def backward(ctx: Any, gy: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        if gy is None:
            return None, None, None
        refuse_nothing(gy, ctx.pooling)
        return route(gy, ctx.saved_tensors[0], ctx.pooling, ctx.size), None, None

    @staticmethod
    def jvp(ctx: Any, dx: Tensor, *_: None) -> tuple[Tensor, None]:
        return pick(dx, ctx.saved_tensors[0], ctx.pooling, ctx.size), None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], x: Tensor, *arguments: Any) -> tuple[tuple[Tensor, ...], tuple[int, int]]:
        return over_batch(max_pool_with_pixels, info.batch_size, in_dims[:1], (x,), *arguments), (0, 0)


class Pick(Function):
    """(image, numbers of pixels) -> these pixels: `(N, C, *size) -> (N, C, *positions)`."""

    @staticmethod
    def forward(t: Tensor, pixels: Tensor, pooling: Pooling, size: tuple[int, ...]) -> Tensor:
        return pool_places.pick(t, pixels, pooling)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, pixels, *ctx.arguments = inputs
        ctx.save_for_backward(pixels)
        ctx.save_for_forward(pixels)

    @staticmethod
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor | None, ...]:
        return route(gy, ctx.saved_tensors[0], *ctx.arguments), None, None, None

    @staticmethod
    def jvp(ctx: Any, dt: Tensor, *_: None) -> Tensor:
        return pick(dt, ctx.saved_tensors[0], *ctx.arguments)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], t: Tensor, pixels: Tensor, *arguments: Any) -> tuple[Tensor, int]:
        return over_batch(pick, info.batch_size, in_dims[:2], (t, pixels), *arguments), 0


class Route(Function):
    """(gradient of the output, numbers of pixels) -> gradient of the image: `(N, C, *positions) -> (N, C, *size)`, each to its pixel."""

    @staticmethod
    def forward(gy: Tensor, pixels: Tensor, pooling: Pooling, size: tuple[int, ...]) -> Tensor:
        return pool_places.route(wide(gy), pixels, pooling, size).to(gy.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, pixels, *ctx.arguments = inputs
        ctx.save_for_backward(pixels)
        ctx.save_for_forward(pixels)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        return pick(g, ctx.saved_tensors[0], *ctx.arguments), None, None, None

    @staticmethod
    def jvp(ctx: Any, dgy: Tensor, *_: None) -> Tensor:
        return route(dgy, ctx.saved_tensors[0], *ctx.arguments)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], gy: Tensor, pixels: Tensor, *arguments: Any) -> tuple[Tensor, int]:
        return over_batch(route, info.batch_size, in_dims[:2], (gy, pixels), *arguments), 0


class AveragePool(Function):
    """Image -> the mean of every window: `(N, C, *size) -> (N, C, *positions)`; `divisor` 0 stands for the number of cells."""

    @staticmethod
    def forward(x: Tensor, pooling: Pooling, divisor: int, count_include_pad: bool) -> Tensor:
        numbers = wide(x)
        tables = by_tables(pooling, spatial(x, pooling))
        y = None if tables else pool_average.total(numbers, pooling)
        y = (pool_tables if tables else algorithm).total(numbers, pooling) if y is None else y
        return divided(y, pooling, spatial(x, pooling), divisor, count_include_pad, in_place=True).to(x.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, *ctx.arguments = inputs
        ctx.size = spatial(x, ctx.arguments[0])

    @staticmethod
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor | None, ...]:
        refuse_nothing(gy, ctx.arguments[0])
        return share(gy, *ctx.arguments, ctx.size), None, None, None

    @staticmethod
    def jvp(ctx: Any, dx: Tensor, *_: None) -> Tensor:
        return average_pool(dx, *ctx.arguments)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], x: Tensor, *arguments: Any) -> tuple[Tensor, int]:
        return over_batch(average_pool, info.batch_size, in_dims[:1], (x,), *arguments), 0


class Share(Function):
    """Gradient of the output -> gradient of the image: `(N, C, *positions) -> (N, C, *size)`, shared by the cells of each window."""

    @staticmethod
    def forward(gy: Tensor, pooling: Pooling, divisor: int, count_include_pad: bool, size: tuple[int, ...]) -> Tensor:
        if isinstance(pooling.geometry, Bins) and set(pooling.geometry.positions) == {1}:
            pooling = Pooling(pooling.geometry)  # the gradient of a mean of everything is contiguous, in torch
        g = divided(wide(gy), pooling, size, divisor, count_include_pad)
        if not is_traced() and by_tables(pooling, size):
            return pool_tables.spread(g, pooling, size).to(gy.dtype)
        gx = pool_average.spread(g, pooling, size)
        return (algorithm.spread(g, pooling, size) if gx is None else gx).to(gy.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, *ctx.arguments, ctx.size = inputs

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        return average_pool(g, *ctx.arguments), None, None, None, None

    @staticmethod
    def jvp(ctx: Any, dgy: Tensor, *_: None) -> Tensor:
        return share(dgy, *ctx.arguments, ctx.size)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], gy: Tensor, *arguments: Any) -> tuple[Tensor, int]:
        return over_batch(share, info.batch_size, in_dims[:1], (gy,), *arguments), 0


def refuse_nothing(gy: Tensor, pooling: Pooling) -> None:
    """Torch's adaptive pools have an output without windows, but no gradient of it; the mean of everything has one."""
    bins = pooling.geometry
    if isinstance(bins, Bins) and 0 in gy.shape[1:] and set(bins.positions) != {1}:
        raise RuntimeError(
            f"adaptive_pool{len(bins.positions)}d_backward(): Expected grad_output to have non-zero size for non-batch dimensions, "
            f"but grad_output has sizes {list(gy.shape)}"
        )


def divided(y: Tensor, pooling: Pooling, size: tuple[int, ...], divisor: int, count_include_pad: bool, in_place: bool = False) -> Tensor:
    """`y` divided by `divisor`, or if that is 0 by the number of cells in each window; integers are cut off towards zero."""
    if divisor == 1:
        return y
    counts = algorithm.known_counts if algorithm.visible(y) else algorithm.counts
    cells = divisor or counts(pooling.geometry, size, count_include_pad, y.dtype, y.device)
    rounding = None if y.is_floating_point() or y.is_complex() else "trunc"
    return y.div_(cells, rounding_mode=rounding) if in_place else y.div(cells, rounding_mode=rounding)


def over_batch(function: Any, batch: int, in_dims: tuple[int | None, ...], images: tuple[Tensor, ...], *arguments: Any) -> Any:
    """`function` over an extra batch of images: it joins the batch that is there, or becomes it."""
    pooling = arguments[0]
    batched = len(pooling.geometry[0]) + 2
    moved = [x.expand(batch, *x.shape) if at is None else x.movedim(at, 0) for x, at in zip(images, in_dims, strict=True)]
    if moved[0].ndim == batched:
        return function(*moved, *arguments)
    results = function(*(x.flatten(0, 1) for x in moved), *arguments)
    if isinstance(results, tuple):
        return tuple(y.unflatten(0, (batch, y.shape[0] // batch)) for y in results)
    return results.unflatten(0, (batch, results.shape[0] // batch))


def transformed() -> bool:
    """Whether the compiler, a transform of `torch.func` or forward mode is at work."""
    return is_traced() or torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def max_pool(x: Tensor, pooling: Pooling) -> Tensor:
    """The largest number of every window; who won is found out only where a derivative may be asked for."""
    tables = by_tables(pooling, spatial(x, pooling))
    if not tables and not ((x.requires_grad and torch.is_grad_enabled()) or transformed()):
        found = pool_winners.largest(x, pooling)
        return owned(algorithm.largest(x, pooling) if found is None else found, (x,))
    if tables or x.numel() <= pool_small.SMALL:
        dtype = torch.int64  # nothing to be saved, and a pixel's number is its address; a trace may serve images of any size
    else:
        dtype = pool_places.known_offset_dtype(pooling.geometry, spatial(x, pooling))
    return max_pool_with_pixels(x, pooling, dtype)[0]


def max_pool_with_indices(x: Tensor, pooling: Pooling) -> tuple[Tensor, Tensor]:
    """The largest number of every window, and where it was: its number among the image's pixels in reading order."""
    return max_pool_with_pixels(x, pooling, torch.int64)


max_pool_with_pixels, pick, route, average_pool, share = map(operation, (MaxPool, Pick, Route, AveragePool, Share))
