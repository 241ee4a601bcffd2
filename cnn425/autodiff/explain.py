"""The traces of the slides for torch itself: what its autograd recorded, and what flowed back.

    print(explain(lambda x1, x2: x1.log() + x1 * x2 - x2.sin(), 2, 5))
    print(explain(model, images))

Torch keeps only the backward half: every tensor points to the node that made it (`grad_fn`), every node to those it sends adjoints to.
The values are collected while the function runs, the adjoints while torch's own backward sweep runs. This file computes nothing.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from cnn425.autodiff.traces import Line, Traces, names_of, shown


class _Watch(TorchFunctionMode):
    """Keeps the value of every node of the autograd graph that appears as an argument or a result."""

    def __init__(self) -> None:
        super().__init__()
        self.values: dict[Any, Tensor] = {}

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.see(args)
        result = function(*args, **(kwargs or {}))
        self.see([result])
        return result

    def see(self, things: Iterable[Any]) -> None:
        for thing in things:
            if isinstance(thing, tuple | list):
                self.see(thing)
            elif isinstance(thing, Tensor) and thing.grad_fn is not None and thing.output_nr == 0:
                self.values.setdefault(thing.grad_fn, thing.detach().clone())


def explain(function: Callable[..., Any], *inputs: Any) -> Traces:
    """The evaluation and adjoint traces of a torch function or module at the inputs, from torch's own graph.

    Numbers become float64 tensors; floating-point tensors are copied and differentiated; anything else is passed on. Parameters are leaves
    like the inputs; their `.grad` is left alone. An output that is not a scalar gets an adjoint of ones.
    """
    given = [_leaf(x) for x in inputs]
    names = names_of(function.forward if isinstance(function, nn.Module) else function, len(given))
    variables = {n: x for n, x in zip(names, given, strict=True) if isinstance(x, Tensor) and x.requires_grad}
    with torch.enable_grad(), _Watch() as watch:
        output = function(*given)
    if not isinstance(output, Tensor) or output.grad_fn is None:
        raise ValueError(f"explain wants a function whose result is one tensor made from its inputs, got {type(output).__name__}")
    watch.see([output])
    order, depths = _graph(output.grad_fn)
    for node in order:
        watch.see(_saved(node))
    parameters = {n: p for n, p in function.named_parameters() if p.requires_grad} if isinstance(function, nn.Module) else {}
    leaves = _named_leaves(order, variables | parameters)
    adjoints = _adjoints(output, order, leaves)
    return _table(
        order,
        depths,
        leaves,
        watch.values,
        adjoints,
        f"torch's own graph at {', '.join(f'{n} = {_brief(x)}' for n, x in variables.items())}",
    )


def _leaf(x: Any) -> Any:
    if isinstance(x, int | float) and not isinstance(x, bool):
        x = torch.tensor(float(x), dtype=torch.float64)
    return x.detach().clone().requires_grad_() if isinstance(x, Tensor) and x.is_floating_point() else x


def _brief(x: Any) -> str:
    return shown(x.detach().double().cpu().numpy()) if isinstance(x, Tensor) else str(x)


def _graph(root: Any) -> tuple[list[Any], dict[Any, int]]:
    """The nodes of torch's graph, operands first, and the longest way from a leaf to each; without recursion."""
    depths: dict[Any, int] = {}
    waiting = [root]
    while waiting:
        operands = [node for node, _ in waiting[-1].next_functions if node is not None]
        missing = [node for node in operands if node not in depths]
        if missing:
            waiting.extend(missing)
        else:
            depths[waiting.pop()] = max((depths[node] + 1 for node in operands), default=0)
    return list(depths), depths


def _saved(node: Any) -> list[Any]:
    """The tensors that a node saved for backward, which know the nodes that made them."""
    return [getattr(node, name) for name in dir(node) if name.startswith("_saved_")] + list(getattr(node, "saved_tensors", ()))


def _named_leaves(order: list[Any], known: dict[str, Any]) -> dict[Any, tuple[str, Tensor]]:
    """For every leaf of the graph, its name and tensor; a known tensor that the output does not depend on is its own key."""
    names = {id(tensor): name for name, tensor in known.items()}
    reached = {id(node.variable): node for node in order if hasattr(node, "variable")}
    unnamed = [node for key, node in reached.items() if key not in names]
    leaves = {reached.get(id(x), x): (name, x) for name, x in known.items()}
    return leaves | {node: (f"leaf {k}", node.variable) for k, node in enumerate(unnamed, start=1)}


def _adjoints(output: Tensor, order: list[Any], leaves: dict[Any, tuple[str, Tensor]]) -> dict[Any, Any]:
    """What reaches every node when torch sweeps back from the output."""
    found: dict[Any, Any] = {}

    def listen(node: Any) -> Any:
        return node.register_prehook(lambda adjoints: found.__setitem__(node, _joined(adjoints)))

    handles = [listen(node) for node in order if node not in leaves]
    try:
        tensors = [tensor for _, tensor in leaves.values()]
        gradients = torch.autograd.grad(output, tensors, torch.ones_like(output), allow_unused=True)
    finally:
        for handle in handles:
            handle.remove()
    return found | dict(zip(leaves, gradients, strict=True))


def _joined(adjoints: Sequence[Tensor | None]) -> Tensor | None:
    """The adjoint of a node: of its one output, or of all its outputs in a row."""
    present = [a for a in adjoints if a is not None]
    return present[0] if len(present) <= 1 else torch.cat([a.flatten() for a in present])


def _table(
    order: list[Any],
    depths: dict[Any, int],
    leaves: dict[Any, tuple[str, Tensor]],
    values: dict[Any, Tensor],
    adjoints: dict[Any, Any],
    title: str,
) -> Traces:
    """The lines in the order of the slides: leaves first, then by depth and by time."""
    inner = sorted((node for node in order if node not in leaves), key=lambda node: (depths[node], node._sequence_nr()))
    nodes = [*leaves, *inner]
    names = {node: f"v{k}" for k, node in enumerate(nodes)}
    several = {node for reader in inner for node, number in reader.next_functions if number > 0}
    readers: dict[Any, list[Any]] = {node: [] for node in nodes}
    for reader in inner:
        for node, _ in reader.next_functions:
            if node is not None:
                readers[node].append(reader)
    lines = []
    for node in nodes:
        edges = [] if node in leaves else node.next_functions
        operands = [names.get(o, "_") + (f"[{number}]" if o in several else "") for o, number in edges]
        operation = leaves[node][0] if node in leaves else node.name().split("Backward")[0]
        value = leaves[node][1] if node in leaves else values.get(node)
        pulled = " + ".join(f"{reader.name()}(v\u0304{names[reader][1:]})" for reader in readers[node])
        lines.append(
            Line(
                name=names[node],
                operation=operation,
                sources=tuple(names[o] for o, _ in edges if o is not None),
                depth=depths.get(node, 0),
                formula=f"{operation}({', '.join(operands)})" if operands else operation,
                value=_shapes(node) if value is None or node in several else _numbers(value),
                adjoint_formula=pulled or ("1" if node is inner[-1] else ""),
                adjoint=0.0 if adjoints.get(node) is None else _numbers(adjoints[node]),
            )
        )
    return Traces(lines, title)


def _shapes(node: Any) -> str:
    """The shapes of a node's outputs, which torch keeps even where it frees the values."""
    return "; ".join("×".join(map(str, output.shape)) or "scalar" for output in node._input_metadata)


def _numbers(tensor: Tensor) -> Any:
    return tensor.detach().double().cpu().numpy()
