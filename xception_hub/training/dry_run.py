"""Estimates the cost of a run from one batch, and writes nothing."""

from collections.abc import Callable
from contextlib import closing
from functools import partial

from torch import Tensor

from ..models.build import evaluating
from ..models.classifier import features_of, set_mode
from .batches import Batch, Batching, InOrder, TrainingBatches
from .memory import measure
from .optimization import make_optimizer
from .phase import Phase, Task


def dry_run(task: Task, prepare: Callable[[Task], Phase]) -> str:
    """Returns the settings, and the throughput and memory of a step. The model changes.

    Args:
        task: The task.
        prepare: Maker of the phase that trains the whole network.
    """
    s, machine, data, throughput = task.settings.optimization, task.machine, task.data, task.machine.throughput()
    if task.settings.output.eval_only or s.recipe == 'probe':
        batches = machine.loader(task.images('validation'), InOrder(data.validation, s.batch_size))
        with evaluating(task.model), closing(throughput.timed(batches)) as feed:
            features_of(task.model, machine.put(next(feed)).inputs)
        minutes = (len(data.train) + len(data.validation)) / (throughput.model or 1) / 60
        cost = f'One batch: {throughput}; about {minutes:.0f} minutes for one pass over all images'
    else:
        phase = prepare(task)
        set_mode(task.model, s.batch_norm == 'frozen')

        def loss_of(batch: Batch) -> Tensor:  # []
            with machine.accelerator.autocast():
                inputs, targets = phase.objective.prepare(batch.inputs, batch.labels)
                return phase.objective.losses(task.model(inputs), targets).mean()

        order = TrainingBatches(data.train, Batching(len(data.train), s.batch_size), s.seed)
        with closing(throughput.timed(machine.loader(phase.training, order))) as feed:
            batch = machine.put(next(feed))
            footprint = measure(task.model, make_optimizer(s, task.model), partial(loss_of, batch), len(batch.inputs))
        cost = (
            f'One batch of {footprint.batch_size}: loss {footprint.loss:.4f}; {throughput}\nMemory of a step: '
            f'{footprint}; {footprint.total(bool(s.ema_decay)) / 1e6:.0f} MB in total, without the libraries'
        )
    settings = '\n'.join(f'{name:24} {value}' for name, value in task.settings.flat().items())
    return f'{settings}\n\n{cost}\nDry run: nothing was written.'
