"""Estimates the cost of a phase from one batch."""

from contextlib import closing
from typing import Any

import torch

from ..models.build import evaluating
from ..models.classifier import set_mode
from .batches import Batching, InOrder, TrainingBatches
from .optimization import make_optimizer
from .phase import Phase


def cost(phase: Phase) -> str:
    """The speed of a step, and on a GPU the most memory that it takes. The model changes."""
    s, machine, data, module = phase.settings, phase.task.machine, phase.task.data, phase.module
    throughput, images = machine.throughput(), phase.training or phase.validation
    order: Any = InOrder(data.validation, s.batch_size)
    if phase.training:
        order = TrainingBatches(data.train, Batching(len(data.train), s.batch_size), s.seed)
    with closing(throughput.timed(machine.loader(images, order))) as feed:
        batch = machine.put(next(feed))
        inputs, targets = phase.objective.prepare(batch.inputs, batch.labels)
        if phase.training:
            set_mode(module, s.batch_norm == 'frozen')
            optimizer = make_optimizer(s, module)
            with machine.autocast():
                loss = phase.objective.losses(module(inputs), targets).mean()
            loss.backward()
            optimizer.step()
        else:
            with evaluating(module), machine.autocast():
                module(inputs)
    minutes = (len(data.train) + len(data.validation)) / (throughput.model or 1) / 60
    text = f'One batch of {len(inputs)}: {throughput}; about {minutes:.0f} minutes for one pass over all images'
    if machine.device.type == 'cuda':
        text += f'; {torch.cuda.max_memory_allocated(machine.device) / 1e6:.0f} MB at the most'
    return text
