"""The memory of a training step, measured on one batch."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Footprint:
    """The memory of a training step in bytes, and its loss.

    Attributes:
        weights: Bytes of parameters and buffers.
        gradients: Bytes of the gradients of all trained parameters.
        optimizer: Bytes of the optimizer's state after one update.
        activations: Bytes that the forward pass saves for the backward pass, for the whole batch.
        batch_size: Number of images in the batch.
        loss: Mean loss of the batch.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    batch_size: int
    loss: float

    def total(self, averages: bool = False) -> int:
        """Sum of all bytes. `averages` counts the weights twice, for a copy with their moving averages."""
        return self.weights * (1 + averages) + self.gradients + self.optimizer + self.activations

    def __str__(self) -> str:
        parts = ('weights', 'gradients', 'optimizer', 'activations')
        return ', '.join(f'{part} {getattr(self, part) / 1e6:.0f} MB' for part in parts)


def measure(
    module: nn.Module, optimizer: torch.optim.Optimizer, loss_of: Callable[[], Tensor], batch_size: int
) -> Footprint:
    """Computes one update and counts its memory. This changes the module and the optimizer.

    Args:
        module: The module to train.
        optimizer: Optimizer of the module's parameters.
        loss_of: Function that computes the mean loss of a batch, [].
        batch_size: Number of images in that batch.
    """
    own = {tensor.untyped_storage().data_ptr() for tensor in (*module.parameters(), *module.buffers())}
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
    trained = [parameter for parameter in module.parameters() if parameter.grad is not None]
    state: list[dict[str, Any]] = list(optimizer.state.values())
    optimizer.zero_grad()
    return Footprint(
        sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers())),
        sum(parameter.nbytes for parameter in trained),
        sum(value.nbytes for values in state for value in values.values() if isinstance(value, Tensor)),
        sum(kept.values()),
        batch_size,
        loss.item(),
    )
