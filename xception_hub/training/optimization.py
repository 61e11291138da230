"""timm's optimizer and schedule, made from the settings."""

from typing import Any

import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torch import nn

from ..errors import ModelError
from .batches import Batching
from .settings import Optimization

NOT_AN_OPTIMIZER = (ValueError, TypeError, AssertionError)  # what timm and the optimizers raise


def make_optimizer(s: Optimization, module: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of a module.

    Raises:
        ModelError: timm has no optimizer of that name, or it does not take the arguments.
    """
    try:
        return create_optimizer_v2(
            module,
            opt=s.optimizer,
            lr=s.learning_rate,
            weight_decay=s.weight_decay,
            momentum=s.momentum,
            layer_decay=s.layer_decay,
            **s.optimizer_args,
        )
    except NOT_AN_OPTIMIZER as e:
        raise ModelError(f'The optimizer {s.optimizer!r} cannot be made: {e}.') from e


def make_schedule(s: Optimization, optimizer: torch.optim.Optimizer, batching: Batching) -> Any:
    """The learning rate by update: a function of the update's number alone, so that it needs no state."""
    decay_epochs = s.decay_images / batching.images if s.decay_images else s.decay_epochs
    schedule, _ = create_scheduler_v2(
        optimizer,
        s.schedule,
        num_epochs=s.epochs,
        decay_epochs=decay_epochs,
        decay_rate=s.decay_rate,
        warmup_epochs=s.warmup_epochs,
        warmup_lr=s.learning_rate / 100,
        step_on_epochs=False,
        updates_per_epoch=batching.updates,
    )
    return schedule
