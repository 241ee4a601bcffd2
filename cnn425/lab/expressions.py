"""A function typed as text, such as `ln(x1) + x1*x2 - sin(x2)`: read without running anything else, and made ready for a page."""

import ast
import inspect
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cnn425.lab.errors import LabError

OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
    ast.USub: operator.neg,
    ast.UAdd: lambda a: a,
}
MOST = 200  # parts of an expression; the graph of a longer one cannot be read


def parsed(text: str, functions: Mapping[str, Callable[..., Any]]) -> tuple[list[str], Callable[..., Any]]:
    """The variables of an expression, `x2` before `x10`, and the function of them; a LabError says what cannot be read."""
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise LabError(f"{text!r} is not an expression; write it like ln(x1) + x1*x2 - sin(x2)", 2) from None
    parts = list(ast.walk(tree))
    if len(parts) > MOST:
        raise LabError(f"the expression has {len(parts)} parts, and a page of more than {MOST} cannot be read", 2)
    called = {part.func for part in parts if isinstance(part, ast.Call)}
    for part in parts:
        _check(part, functions)
    variables = {part.id for part in parts if isinstance(part, ast.Name) and part not in called}
    names = sorted(variables, key=lambda name: [int(piece) if piece.isdigit() else piece for piece in re.split(r"(\d+)", name)])
    if not names:
        raise LabError(f"{text!r} has no variable, so there is nothing to differentiate by", 2)

    def function(*values: Any) -> Any:
        return _value(tree, functions, dict(zip(names, values, strict=True)))

    parameters = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in names]
    function.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # the traces take the names from here
    return names, function


def _check(part: ast.AST, functions: Mapping[str, Any]) -> None:
    known = ", ".join(functions)
    if isinstance(part, ast.BitXor):
        raise LabError("a power is written x**2, not x^2", 2)
    if isinstance(part, ast.Call):
        name = part.func.id if isinstance(part.func, ast.Name) else ast.unparse(part.func)
        if name not in functions:
            raise LabError(f"{name} is not a function of this page; it knows {known}", 2)
        if part.keywords or any(isinstance(argument, ast.Starred) for argument in part.args):
            raise LabError(f"{name} takes plain arguments, as in {name}(x1)", 2)
    elif isinstance(part, ast.Constant):
        if isinstance(part.value, bool) or not isinstance(part.value, int | float):
            raise LabError(f"{part.value!r} is not a number", 2)
    elif not isinstance(part, (ast.Name, ast.Load, ast.BinOp, ast.UnaryOp, *OPERATORS)):
        raise LabError(f"{type(part).__name__} is not part of an expression here; it may have numbers, names, + - * / ** and {known}", 2)


def _value(part: Any, functions: Mapping[str, Callable[..., Any]], values: Mapping[str, Any]) -> Any:
    if isinstance(part, ast.Constant):
        return part.value
    if isinstance(part, ast.Name):
        return values[part.id]
    if isinstance(part, ast.UnaryOp):
        return OPERATORS[type(part.op)](_value(part.operand, functions, values))
    if isinstance(part, ast.BinOp):
        return OPERATORS[type(part.op)](_value(part.left, functions, values), _value(part.right, functions, values))
    return functions[part.func.id](*(_value(argument, functions, values) for argument in part.args))


def point(words: Sequence[str], names: Sequence[str]) -> list[float]:
    """The values of the variables from words like `x1=2`; each variable needs one."""
    values: dict[str, float] = {}
    for word in words:
        name, _, number = word.partition("=")
        try:
            values[name.strip()] = float(number)
        except ValueError:
            raise LabError(f"--at {word!r} is not of the form x1=2", 2) from None
    for name in names:
        if name not in values:
            raise LabError(f"--at says nothing about {name}; add {name}=1", 2)
    if foreign := [name for name in values if name not in names]:
        raise LabError(f"--at names {foreign[0]}, which the expression does not have; it has {', '.join(names)}", 2)
    return [values[name] for name in names]


def derivation(
    text: str, names: Sequence[str], tables: Sequence[Any], places: Mapping[tuple[str, int], tuple[int, float]]
) -> dict[str, Any]:
    """What the page of a function shows: its trace tables, one for the tangents by each variable, and where the nodes are drawn."""
    nodes = []
    for lines in zip(*(table.lines for table in tables), strict=True):
        line = lines[0]
        stops = {column: place for (name, column), place in places.items() if name == line.name}
        nodes.append(
            {
                "name": line.name,
                "operation": line.operation,
                "sources": line.sources,
                "formula": line.formula,
                "value": float(line.value),
                "tangents": [{"formula": other.tangent_formula, "value": float(other.tangent)} for other in lines],
                "adjoint": {"formula": line.adjoint_formula, "value": float(line.adjoint)},
                "stops": sorted(stops.values()),
            }
        )
    return {"expression": text, "variables": list(names), "nodes": nodes}
