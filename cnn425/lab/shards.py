"""Locally connected layers over several processes, each with the weights of some positions (torch's FSDP2), instead of a copy in each.

A local layer's weight is `(I, J, O, C, U, V)`; FSDP2 cuts the first dimension, so a process owns whole rows of positions, their gradients
and their optimiser state. For a forward or backward the rows of one layer are gathered, and let go again. Checkpoints hold whole tensors,
put together on the first process. What this needs of torch takes seconds to import, so it is imported where it is called.
"""

from typing import Any

from torch import Tensor, nn, optim


def shard(model: nn.Sequential, world: int, device: str) -> None:
    """Cut the layers that have a weight for each position, and leave the model one that is called as before."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device, (world,))
    for layer in model:
        if isinstance(weight := getattr(layer, "weight", None), Tensor) and weight.ndim == 6:
            fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)


def whole(tensor: Tensor) -> Tensor:
    """The tensor of which every process has a part; to be called by all of them."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def state(model: nn.Module, optimizer: optim.Optimizer) -> dict[str, Any]:
    """Model and optimiser in whole tensors, on the first process; empty on the others. To be called by all of them."""
    from torch.distributed.checkpoint import state_dict as distributed

    whole = distributed.StateDictOptions(full_state_dict=True, cpu_offload=True)
    return {
        "model": distributed.get_model_state_dict(model, options=whole),
        "optimizer": distributed.get_optimizer_state_dict(model, optimizer, options=whole),
    }


def load(model: nn.Module, optimizer: optim.Optimizer, saved: dict[str, Any]) -> None:
    """The reverse of `state`, from whole tensors that every process has."""
    from torch.distributed.checkpoint import state_dict as distributed

    options = distributed.StateDictOptions(full_state_dict=True)
    distributed.set_model_state_dict(model, saved["model"], options=options)
    distributed.set_optimizer_state_dict(model, optimizer, saved["optimizer"], options=options)
