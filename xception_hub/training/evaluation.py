"""A module's predictions on a whole split, by all processes together, each image exactly once."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.utils.data import DataLoader

from .data import Split
from .metrics import Predictions
from .models import evaluating
from .samples import Batch, InOrder, loader

__all__ = ['evaluate', 'evaluation_loader', 'share_buffers', 'share_tensors']


def evaluation_loader(
    dataset: Any, split: Split, accelerator: Accelerator, batch_size: int, workers: int = 0
) -> DataLoader:
    """This process' share of a split.

    Args:
        dataset: The split's images or features.
        split: To evaluate on.
        accelerator: Of the processes.
        batch_size: Of each process.
        workers: Processes that make the batches; 0 for none but this one.
    """
    batches = InOrder(split, batch_size, accelerator.num_processes, accelerator.process_index)
    return loader(dataset, batches, workers, accelerator.device.type == 'cuda')


def evaluate(
    module: nn.Module,
    batches: Iterable[Batch],
    accelerator: Accelerator,
    *,
    memory_format: torch.memory_format = torch.preserve_format,
    step: Callable[[int], Any] = lambda count: None,
) -> Predictions:
    """Computes predictions, the same for every number of processes but for rounding.

    Args:
        module: Of inputs to logits, not wrapped for training.
        batches: Of an `evaluation_loader`.
        accelerator: Of the processes.
        memory_format: Of images.
        step: Called with the number of images just seen, of all processes.
    """
    parts = []
    share_buffers(module)
    with evaluating(module), accelerator.autocast():
        for batch in batches:
            batch = batch.to(accelerator.device, memory_format)
            parts.append(Predictions.of(module(batch.inputs), batch.labels, batch.positions))
            step(len(batch.positions) * accelerator.num_processes)
    return Predictions.joined(gather_object(parts))


def share_buffers(module: nn.Module) -> None:
    """Gives all processes the moving statistics of the first, which saves them; their own differ a little."""
    share_tensors(module.buffers())


def share_tensors(tensors: Iterable[Tensor]) -> None:
    """Gives all processes those of the first."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        for tensor in tensors:
            whole = tensor.detach().contiguous()
            torch.distributed.broadcast(whole, 0)
            tensor.detach().copy_(whole)
