"""Whether the operations on tensors are being written down, to be done again with other numbers, shapes or gradients.

A trace must hold for any numbers: no algorithm may be chosen by looking at them, and nothing be written into memory that was there before.
"""

import torch
from torch import Tensor

PLAIN = (Tensor, torch.nn.Parameter)  # types of tensors whose numbers may be looked at: no subclass, which may keep none


def is_traced() -> bool:
    """Whether `torch.compile`, `torch.export` or `torch.jit.trace` is at work."""
    return torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None
