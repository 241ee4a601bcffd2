"""Everything private of torch that this project uses, each with its reason; `tests/test_compat.py` fails when torch takes one away."""

import torch
from torch.autograd import forward_ad
from torch.nn import _reduction

# torch.jit.trace has no public way to tell from inside a layer that it is at work. A state, or None.
tracing_state = torch._C._get_tracing_state

# Dispatch modes (FlopCounterMode, make_fx, a logger) must see every operation; a loop would bypass them. How many are active.
dispatch_modes = torch._C._len_torch_dispatch_stack

# Transforms of torch.func ask for Functions in the new style, which are slower to call. Whether one is at work.
are_transforms_active = torch._C._are_functorch_transforms_active

# Tensors of torch.func's transforms have no storage of their own, and may outlive the transform. Whether a tensor is one.
is_transformed = torch._C._functorch.is_functorch_wrapped_tensor

# `ctx.needs_input_grad` does not know which gradients `torch.autograd.grad` was asked for. Whether the backward pass at work goes on to a
# node of the graph; a leaf whose gradient is asked for raises RuntimeError.
goes_on_to = torch._C._will_engine_execute_node

# Whether autocast is on for any device: one quick question before the slow one about a certain device.
is_autocast_enabled_anywhere = torch._C._is_any_autocast_enabled

# The older vmap, behind torch.autograd.grad(is_grads_batched=True) and gradcheck, knows nothing of Functions: batches are taken off and
# put back by hand. Whether a tensor is of its kind; take the batch of a level off, to the front; put it back.
is_legacy_batched = torch._C._functorch.is_legacy_batchedtensor
remove_legacy_batch = torch._remove_batch_dim
add_legacy_batch = torch._add_batch_dim

# A Function must not return a view of a tensor that nobody else knows. Whether a tensor is a view.
is_view = torch.Tensor._is_view

# Forward mode keeps its level in a variable of this module: -1 when it is off. (A function for it would be one more file to pass through.)
forward_mode = forward_ad

# Torch turns forward mode off in the `jvp` of a Function. What turns it on again, so that there are tangents of tangents.
set_forward_mode = forward_ad._set_fwd_grad_enabled

# oneDNN computes convolutions of half precision where the processor has instructions for it; torch's other kernels store results otherwise.
_ONEDNN = torch.backends.mkldnn.is_available()
onednn_computes = {
    torch.bfloat16: _ONEDNN and torch.ops.mkldnn._is_mkldnn_bf16_supported(),
    torch.float16: _ONEDNN and torch.ops.mkldnn._is_mkldnn_fp16_supported(),
}

# The names of reductions and the warnings about their old spelling.
reduction = _reduction

# The base class of torch's convolutions, which keeps their parameters.
ConvNd = torch.nn.modules.conv._ConvNd

# The base class of torch's transposed convolutions, which turns an output size into an output padding.
ConvTransposeNd = torch.nn.modules.conv._ConvTransposeNd


def legacy_level() -> int:
    """The level of the innermost older vmap."""
    level: int = torch._C._vmapmode_increment_nesting() - 1
    torch._C._vmapmode_decrement_nesting()
    return level
