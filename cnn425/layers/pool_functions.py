"""The autograd Functions of the pools: mathematics only; the story is told in `cnn425.layers.pool`.

MaxPool, MaxPoolWithIndices   image -> largest numbers          their tangent is Pick, their gradient Route
Pick                          another image where this one has its winners; its gradient is Route
Route                         every number to the pixel that won; its gradient is Pick
AveragePool                   image -> means; its gradient is Share
Share                         every number to all pixels of its window; its gradient is AveragePool
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from cnn425.algorithms import pool as algorithm
from cnn425.algorithms import pool_masks
from cnn425.algorithms.pool import Bins, Pooling
from cnn425.layers.function import operation


def spatial(x: Tensor, pooling: Pooling) -> tuple[int, ...]:
    """The image size in pixels."""
    return tuple(x.shape[x.ndim - len(pooling.geometry[0]) :])


def wide(x: Tensor) -> Tensor:
    """`x` in the precision in which its numbers are added up: half precision adds in float32 and is rounded once."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


class MaxPool(Function):
    """Image -> the largest number of every window: `(N, C, *size) -> (N, C, *positions)`."""

    @staticmethod
    def forward(x: Tensor, pooling: Pooling) -> Tensor:
        return algorithm.largest(x, pooling)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, ctx.pooling = inputs
        ctx.save_for_backward(x, output)
        ctx.save_for_forward(x)

    @staticmethod
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor | None, ...]:
        return route(gy, *ctx.saved_tensors, ctx.pooling), None

    @staticmethod
    def jvp(ctx: Any, dx: Tensor, _: None) -> Tensor:
        return pick(dx, ctx.saved_tensors[0], ctx.pooling)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], x: Tensor, pooling: Pooling) -> tuple[Tensor, int]:
        return over_batch(max_pool, info.batch_size, in_dims[:1], (x,), pooling), 0


class MaxPoolWithIndices(Function):
    """Image -> the largest number of every window, and where it was: its number among the image's pixels in reading order."""

    @staticmethod
    def forward(x: Tensor, pooling: Pooling) -> tuple[Tensor, Tensor]:
        y = algorithm.largest(x, pooling)
        indices = pool_masks.numbers(x, y, pooling)
        if indices is None:
            indices = algorithm.numbers(algorithm.winners(x, pooling)[1], pooling, spatial(x, pooling))
        return y, indices

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, ctx.pooling = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(x, output[0])
        ctx.save_for_forward(x)

    @staticmethod
    def backward(ctx: Any, gy: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        return route(gy, *ctx.saved_tensors, ctx.pooling), None

    @staticmethod
    def jvp(ctx: Any, dx: Tensor, _: None) -> tuple[Tensor, None]:
        return pick(dx, ctx.saved_tensors[0], ctx.pooling), None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], x: Tensor, pooling: Pooling) -> tuple[tuple[Tensor, ...], tuple[int, int]]:
        return over_batch(max_pool_with_indices, info.batch_size, in_dims[:1], (x,), pooling), (0, 0)


class Pick(Function):
    """(another image, image) -> the other image where this one has its winners: `(N, C, *size) -> (N, C, *positions)`."""

    @staticmethod
    def forward(t: Tensor, x: Tensor, pooling: Pooling) -> Tensor:
        return algorithm.pick(t, algorithm.winners(x, pooling)[1], pooling)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, x, ctx.pooling = inputs
        ctx.save_for_backward(x)
        ctx.save_for_forward(x)

    @staticmethod
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor | None, ...]:
        x = ctx.saved_tensors[0]
        return route(gy, x, max_pool(x, ctx.pooling), ctx.pooling), None, None

    @staticmethod
    def jvp(ctx: Any, dt: Tensor | None, *_: Any) -> Tensor | None:
        return None if dt is None else pick(dt, ctx.saved_tensors[0], ctx.pooling)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], t: Tensor, x: Tensor, pooling: Pooling) -> tuple[Tensor, int]:
        return over_batch(pick, info.batch_size, in_dims[:2], (t, x), pooling), 0


class Route(Function):
    """(gradient of the output, image, its max pool) -> gradient of the image: `(N, C, *positions) -> (N, C, *size)`, each to the winner."""

    @staticmethod
    def forward(gy: Tensor, x: Tensor, y: Tensor, pooling: Pooling) -> Tensor:
        g = wide(gy)
        gx = pool_masks.route(g, x.to(g.dtype), y.to(g.dtype), pooling)
        if gx is None:
            gx = algorithm.route(g, algorithm.winners(x, pooling)[1], pooling, spatial(x, pooling))
        return gx.to(gy.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, x, y, ctx.pooling = inputs
        ctx.save_for_backward(x)
        ctx.save_for_forward(x, y)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        return pick(g, ctx.saved_tensors[0], ctx.pooling), None, None, None

    @staticmethod
    def jvp(ctx: Any, dgy: Tensor | None, *_: Any) -> Tensor | None:
        return None if dgy is None else route(dgy, *ctx.saved_tensors, ctx.pooling)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], gy: Tensor, x: Tensor, y: Tensor, pooling: Pooling) -> tuple[Tensor, int]:
        return over_batch(route, info.batch_size, in_dims[:3], (gy, x, y), pooling), 0


class AveragePool(Function):
    """Image -> the mean of every window: `(N, C, *size) -> (N, C, *positions)`; `divisor` 0 stands for the number of cells."""

    @staticmethod
    def forward(x: Tensor, pooling: Pooling, divisor: int, count_include_pad: bool) -> Tensor:
        y = algorithm.total(wide(x), pooling)
        return divided(y, pooling, spatial(x, pooling), divisor, count_include_pad, in_place=True).to(x.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, *ctx.arguments = inputs
        ctx.size = spatial(x, ctx.arguments[0])

    @staticmethod
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor | None, ...]:
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
        return algorithm.spread(g, pooling, size).to(gy.dtype)

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


def divided(y: Tensor, pooling: Pooling, size: tuple[int, ...], divisor: int, count_include_pad: bool, in_place: bool = False) -> Tensor:
    """`y` divided by `divisor`, or if that is 0 by the number of cells in each window; integers are cut off towards zero."""
    if divisor == 1:
        return y
    cells = divisor or algorithm.counts(pooling.geometry, size, count_include_pad, y)
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


max_pool, max_pool_with_indices, pick, route = map(operation, (MaxPool, MaxPoolWithIndices, Pick, Route))
average_pool, share = map(operation, (AveragePool, Share))
