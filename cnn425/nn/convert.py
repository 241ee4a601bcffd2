"""`convert` turns the built-in layers of a model into ours, `revert` turns them back, `report` lists which are which.

A layer stays the same object and becomes an instance of another class with the same attributes. Parameters, buffers, hooks, the training
flag, device, dtype, names in the state_dict, and modules or parameters used in several places are kept; only the computation changes.

Only exact types are exchanged. A subclass may compute something else and is left alone: among these are lazy layers before their first
forward pass, layers with parametrizations (torch makes a subclass for each) and scripted layers. Functions that a model calls itself, like
the `torch.flatten` and `F.relu` in torchvision's models, stay torch's.

Libraries that look layers up by their exact type do not recognise ours, and some skip them silently: give them `revert(model)`.
If captum's DeepLift is imported when a model is converted, the rules for our layers are added to it.
"""

import copy
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch.nn import Module

from cnn425.layers import activation, adaptive, conv, conv_transpose, linear, loss, lp_pool, pool, pool_average, unfold

OURS: tuple[type[Module], ...] = (
    *(conv.Conv1d, conv.Conv2d, conv.Conv3d),
    *(conv_transpose.ConvTranspose1d, conv_transpose.ConvTranspose2d, conv_transpose.ConvTranspose3d),
    *(pool.MaxPool1d, pool.MaxPool2d, pool.MaxPool3d),
    *(pool_average.AvgPool1d, pool_average.AvgPool2d, pool_average.AvgPool3d),
    *(adaptive.AdaptiveMaxPool1d, adaptive.AdaptiveMaxPool2d, adaptive.AdaptiveMaxPool3d),
    *(adaptive.AdaptiveAvgPool1d, adaptive.AdaptiveAvgPool2d, adaptive.AdaptiveAvgPool3d),
    *(lp_pool.LPPool1d, lp_pool.LPPool2d, lp_pool.LPPool3d),
    *(linear.Linear, activation.ReLU, activation.Sigmoid, activation.Softmax, loss.CrossEntropyLoss),
    *(unfold.Unfold, unfold.Fold),
)
COUNTERPART: dict[type[Module], type[Module]] = {getattr(torch.nn, ours.__name__): ours for ours in OURS}
BUILTIN: dict[type[Module], type[Module]] = {ours: builtin for builtin, ours in COUNTERPART.items()}

Model = TypeVar("Model", bound=Module)


def convert(model: Model, inplace: bool = False) -> Model:
    """The model with our layers in place of torch's: a deep copy, or, with `inplace`, the model itself.

    A copied attribute that was computed from parameters, like a weight by `weight_norm`, is a constant until a hook recomputes it.
    """
    rules = getattr(sys.modules.get("captum.attr._core.deep_lift"), "SUPPORTED_NON_LINEAR", {})
    rules.update({ours: rules[builtin] for builtin, ours in COUNTERPART.items() if builtin in rules})
    return _exchange(model, COUNTERPART, inplace)


def revert(model: Model, inplace: bool = False) -> Model:
    """The model with torch's layers in place of ours: a deep copy, or, with `inplace`, the model itself. Local layers stay."""
    return _exchange(model, BUILTIN, inplace)


def check_model(model: object) -> None:
    """Refuse anything but a Module."""
    if not isinstance(model, Module):
        raise TypeError(f"model must be a torch.nn.Module, but got {type(model).__name__}")


def _exchange(model: Model, classes: Mapping[type[Module], type[Module]], inplace: bool) -> Model:
    check_model(model)
    if not inplace:  # torch refuses to copy tensors that are not leaves, like the weight of weight_norm
        values = (value for module in model.modules() for value in vars(module).values() if isinstance(value, torch.Tensor))
        model = copy.deepcopy(model, {id(value): value.detach().clone() for value in values if not value.is_leaf})
    for module in model.modules():
        if type(module) in classes:
            module.__class__ = classes[type(module)]
    return model


@dataclass(frozen=True)
class Report:
    """The layers of a model by name, in three groups; `str()` lists them."""

    ours: dict[str, str]
    """Layers of this project."""
    builtin: dict[str, str]
    """Torch's layers that `convert` would exchange."""
    left_alone: dict[str, str]
    """Other modules that compute something themselves, each with the reason why it is not exchanged."""

    def __str__(self) -> str:
        groups = (("ours", self.ours), ("torch's, can be converted", self.builtin), ("left alone", self.left_alone))
        lines = (
            f"{title}: {len(group)}" + "".join(f"\n  {name or '(the model)'}: {what}" for name, what in group.items())
            for title, group in groups
        )
        return "\n".join(lines)


def report(model: Module) -> Report:
    """Which layers of the model are ours, which can be converted, and which are left alone and why."""
    check_model(model)
    ours: dict[str, str] = {}
    builtin: dict[str, str] = {}
    left_alone: dict[str, str] = {}
    for name, module in model.named_modules():
        kind, title = type(module), type(module).__name__
        base = next((c for c in kind.__mro__[1:] if c in COUNTERPART or c in BUILTIN), None)
        if kind in COUNTERPART:
            builtin[name] = title
        elif kind.__module__.startswith("cnn425."):
            ours[name] = title
        elif base is not None:
            left_alone[name] = f"{title}, a subclass of {base.__name__}, may compute something else"
        elif not any(module.children()):
            left_alone[name] = f"{title} has no counterpart"
    return Report(ours, builtin, left_alone)
