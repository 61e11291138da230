"""Estimates the cost of a phase from one batch."""

from contextlib import closing
from typing import Any

from torch import Tensor

from ..models.build import evaluating
from ..models.classifier import set_mode
from .batches import Batching, InOrder, TrainingBatches
from .memory import measure
from .optimization import make_optimizer
from .phase import Phase


def cost(phase: Phase) -> str:
    """The throughput of a phase, and the memory of a training step. The model changes."""
    s, machine, data, module = phase.settings, phase.task.machine, phase.task.data, phase.module
    throughput, images = machine.throughput(), phase.validation
    order: Any = InOrder(data.validation, s.batch_size)
    if phase.training:
        images, order = phase.training, TrainingBatches(data.train, Batching(len(data.train), s.batch_size), s.seed)
    memory: dict[str, int] = {}
    with closing(throughput.timed(machine.loader(images, order))) as feed:
        batch = machine.put(next(feed))

        def loss() -> Tensor:  # []
            with machine.accelerator.autocast():
                inputs, targets = phase.objective.prepare(batch.inputs, batch.labels)
                return phase.objective.losses(module(inputs), targets).mean()

        if phase.training:
            set_mode(module, s.batch_norm == 'frozen')
            memory = measure(module, make_optimizer(s, module), loss)
        else:
            with evaluating(module):
                loss()
    minutes = (len(data.train) + len(data.validation)) / (throughput.model or 1) / 60
    lines = [f'One batch: {throughput}; about {minutes:.0f} minutes for one pass over all images']
    if memory:
        memory['averages'] = memory['weights'] if s.ema_decay else 0
        parts = ', '.join(f'{part} {count / 1e6:.0f} MB' for part, count in memory.items())
        total = sum(memory.values()) / 1e6
        lines.append(f'Memory of a step: {parts}; {total:.0f} MB in total, without the libraries')
    return '\n'.join(lines)
