"""The memory of a training step, measured on one batch."""

from collections.abc import Callable

import torch
from torch import Tensor, nn


def measure(module: nn.Module, optimizer: torch.optim.Optimizer, loss_of: Callable[[], Tensor]) -> dict[str, int]:
    """Takes an update and counts its bytes. This changes the module and the optimizer.

    Args:
        module: The module to train.
        optimizer: Optimizer of the module's parameters.
        loss_of: Function that computes the mean loss of a batch, [].

    Returns:
        Bytes of the weights (parameters and buffers), of the gradients, of the optimizer's state, and of the
        activations that the forward pass saves for the backward pass.
    """
    weights = [*module.parameters(), *module.buffers()]
    own = {tensor.untyped_storage().data_ptr() for tensor in weights}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:  # [...]
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = loss_of()
    loss.backward()
    optimizer.step()
    gradients = sum(parameter.nbytes for parameter in module.parameters() if parameter.grad is not None)
    state = [value for values in optimizer.state.values() for value in values.values() if isinstance(value, Tensor)]
    optimizer.zero_grad()
    return dict(
        weights=sum(tensor.nbytes for tensor in weights),
        gradients=gradients,
        optimizer=sum(tensor.nbytes for tensor in state),
        activations=sum(kept.values()),
    )
