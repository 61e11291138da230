"""The training loop: a phase from its start, or from a checkpoint, to its end."""

import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..errors import Diverged, ModelError
from . import results, resume
from .data import Data
from .evaluation import evaluate, share_buffers
from .metrics import Predictions, is_better, summary
from .models import set_mode
from .objective import Objective
from .resume import Checkpoint
from .runs import Interrupted, Progress, Run, Stop, stop_on_signals
from .samples import Batch, Batching, TrainingBatches, loader, seed_all
from .settings import Optimization, Settings
from .throughput import Throughput

__all__ = ['Phase', 'Training', 'judge', 'make_optimizer', 'memory_format', 'progress_bar', 'workers']

MOST_WORKERS = 8


@dataclass(frozen=True)
class Phase:
    """A part of a recipe, ready to be trained.

    Attributes:
        name: For the reader.
        settings: Of the phase.
        module: That is trained: the model, or its classifier.
        kind: Of the tensors in a checkpoint: 'model' or 'head'.
        training: What the module sees of each image of `data.train`; None for an evaluation.
        validation: Batches of `data.validation`.
        objective: Its loss.
        importance: [C] weights of the classes in `metrics.map_at_100`; None for equal ones.
    """

    name: str
    settings: Settings
    module: nn.Module
    kind: str
    training: Any
    validation: Any
    objective: Objective
    importance: Sequence[float] | None = None


class Training:
    """A phase on its way.

    Args:
        phase: To be trained.
        data: On its training split, judged on its validation split.
        progress: How far the run has come; it is kept up to date.
        checkpoint: To go on from; None at the start of the phase.
        folder: Of the run.
        accelerator: Of the processes.
    """

    def __init__(
        self,
        phase: Phase,
        data: Data,
        progress: Progress,
        checkpoint: Checkpoint | None,
        folder: Run,
        accelerator: Accelerator,
    ) -> None:
        s, module = phase.settings.optimization, phase.module
        self.phase, self.data, self.progress, self.folder = phase, data, progress, folder
        self.accelerator, self.module, self.settings = accelerator, module, s
        self.batching = Batching(
            len(data.train), s.batch_size, s.accumulation, accelerator.num_processes, accelerator.process_index
        )
        self.averages = ModelEmaV3(module, s.ema_decay, use_warmup=True) if s.ema_decay else None
        self.optimizer = make_optimizer(s, module)
        self.schedule = make_schedule(s, self.optimizer, self.batching)
        if checkpoint:
            self._restore(checkpoint)
        if phase.settings.machine.compile:
            module.compile()
        # a phase is prepared anew: what is trained has changed, and so has what the processes share
        accelerator.free_memory()
        self.wrapped, self.prepared_optimizer = accelerator.prepare(module, self.optimizer)
        self.order = TrainingBatches(data.train, self.batching, s.seed, s.balanced_sampling)
        self.batches = loader(
            phase.training, self.order, workers(phase.settings, accelerator), accelerator.device.type == 'cuda'
        )
        self.saved_at = 0.0
        if not checkpoint:
            self.save()

    @property
    def judged(self) -> nn.Module:
        """The averages, if there are any, else the module itself."""
        return self.averages.module if self.averages else self.module

    def run(self) -> None:
        """Trains to the end.

        Raises:
            Diverged: The loss is no number any more.
            Interrupted: By a signal; everything is saved.
        """
        self.saved_at = time.monotonic()
        with stop_on_signals() as stop:
            while self.progress.epoch < self.settings.epochs and not ran_out_of_patience(self.phase, self.progress):
                throughput = Throughput(workers(self.phase.settings, self.accelerator), self.accelerator.num_processes)
                self._epoch(throughput, stop)
                share_buffers(self.module)
                predictions = judge(self.phase, self.judged, self.data, self.accelerator)
                end_epoch(
                    self.phase,
                    self.judged,
                    predictions,
                    throughput,
                    self.optimizer,
                    self.progress,
                    self.folder,
                    self.accelerator,
                )
                self.save()
                if stop.asked and self.accelerator.num_processes == 1:
                    raise Interrupted

    def _epoch(self, throughput: Throughput, stop: Stop) -> None:
        """What is left of an epoch."""
        progress, batching = self.progress, self.batching
        self.order.epoch, self.order.first_update = progress.epoch, progress.update
        set_mode(self.module, self.settings.batch_norm == 'frozen')
        name = f'{self.phase.name} {progress.epoch + 1}/{self.settings.epochs}'
        with (
            closing(throughput.timed(self.batches)) as feed,
            progress_bar(name, len(self.data.train), self.accelerator, progress.images) as bar,
        ):
            for update in range(progress.update, batching.updates):
                loss_sum = self._update(feed, update)
                # all processes see the same sums, and stop at the same update
                sums = torch.stack([loss_sum, loss_sum.new_tensor(float(stop.asked))])
                loss, stopping = self.accelerator.reduce(sums).tolist()
                if not math.isfinite(loss):
                    raise Diverged(divergence(self.settings, progress, self.folder))
                progress.update, progress.loss_sum = update + 1, progress.loss_sum + loss
                progress.images += batching.size(update)
                bar.update(batching.size(update))
                bar.set_postfix(loss=f'{loss / batching.size(update):.4f}', refresh=False)
                due = time.monotonic() - self.saved_at >= 60 * self.phase.settings.output.checkpoint_minutes
                if stopping or (due and update + 1 < batching.updates):
                    self.save()
                if stopping:
                    raise Interrupted

    def _update(self, feed: Iterator[Batch], update: int) -> Tensor:
        """Takes one step of the optimizer, and returns the sum of this process' losses."""
        accelerator, objective = self.accelerator, self.phase.objective
        size, steps = self.batching.size(update), self.batching.steps(update)
        number = self.progress.epoch * self.batching.updates + update
        self.schedule.step_update(number)
        loss_sum = torch.zeros((), device=accelerator.device)
        for step in range(steps):
            batch = next(feed).to(accelerator.device, memory_format(self.phase.settings))
            # for dropout and mixup
            seed_all(self.settings.seed, self.progress.phase, number, step, accelerator.process_index)
            inputs, targets = objective.prepare(batch.inputs, batch.labels)
            with nullcontext() if step + 1 == steps else accelerator.no_sync(self.wrapped):
                losses = objective.losses(self.wrapped(inputs), targets) * batch.weights
                # gradients become the mean over processes; this makes it that over all images of the update
                accelerator.backward(losses.sum() * accelerator.num_processes / size)
            loss_sum += losses.detach().sum()
        if self.settings.clip_grad:
            accelerator.clip_grad_norm_(self.wrapped.parameters(), self.settings.clip_grad)
        self.prepared_optimizer.step()
        self.prepared_optimizer.zero_grad()
        if self.averages:
            self.averages.update(self.module, step=number + 1)
        return loss_sum

    def save(self) -> None:
        """Writes a checkpoint, unless its weights are no numbers any more."""
        self.saved_at = time.monotonic()
        if not self.accelerator.is_main_process:
            return
        progress, tensors = self.progress, {self.phase.kind: self.module.state_dict()}
        if not all(tensor.isfinite().all() for tensor in tensors[self.phase.kind].values()):
            raise Diverged(divergence(self.settings, progress, self.folder))
        if self.averages:
            tensors['averages'] = self.averages.module.state_dict()
        tensors['optimizer'], rest = resume.pack_optimizer(self.optimizer)
        scaler = self.accelerator.scaler.state_dict() if self.accelerator.scaler else None
        self.folder.checkpoints.save(
            progress.phase,
            progress.epoch * self.batching.updates + progress.update,
            tensors,
            dict(progress=progress.as_dict(), optimizer=rest, scaler=scaler),
        )

    def _restore(self, checkpoint: Checkpoint) -> None:
        tensors, state = checkpoint.tensors, checkpoint.state
        resume.restore(self.module, tensors[self.phase.kind], checkpoint.path)
        if self.averages:
            resume.restore(self.averages.module, tensors['averages'], checkpoint.path)
        resume.unpack_optimizer(self.optimizer, tensors.get('optimizer', {}), state['optimizer'])
        if self.accelerator.scaler:
            self.accelerator.scaler.load_state_dict(state['scaler'])


def make_optimizer(s: Optimization, module: nn.Module) -> torch.optim.Optimizer:
    """timm's, by name."""
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
    except (ValueError, TypeError, AssertionError) as e:
        raise ModelError(f'The optimizer {s.optimizer!r} can not be made: {e}.') from e


def make_schedule(s: Optimization, optimizer: torch.optim.Optimizer, batching: Batching) -> Any:
    """timm's, by update; a function of the update's number alone, so that it needs no state."""
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


def divergence(s: Optimization, progress: Progress, folder: Run) -> str:
    """What to do about it."""
    best = folder.checkpoints.best
    kept = best if best.exists() else next(iter(folder.checkpoints.all()), None)
    return (
        f'The training has diverged in epoch {progress.epoch + 1}: the loss is no finite number any more. Choose '
        f'another output, and a smaller --learning-rate than {s.learning_rate:g}, a longer --warmup-epochs, or '
        f'--clip-grad 1. The last good weights are kept in {kept}.'
    )


def ran_out_of_patience(phase: Phase, progress: Progress) -> bool:
    """Whether the phase has gone on for long enough without a better epoch."""
    s = phase.settings.optimization
    best, since = None, 0
    for row in progress.history:
        if row['phase'] == phase.name:
            best, since = (row, 0) if is_better(s.metric, row, best) else (best, since + 1)
    return s.early_stopping is not None and since >= s.early_stopping


def judge(phase: Phase, module: nn.Module, data: Data, accelerator: Accelerator) -> Predictions:
    """The predictions of a module on the validation split."""
    with progress_bar('Evaluation', len(data.validation), accelerator) as bar:
        return evaluate(
            module, phase.validation, accelerator, memory_format=memory_format(phase.settings), step=bar.update
        )


def end_epoch(
    phase: Phase,
    judged: nn.Module,
    predictions: Predictions,
    throughput: Throughput,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    folder: Run,
    accelerator: Accelerator,
) -> None:
    """Writes an epoch down, and keeps its weights if they are the best so far."""
    s = phase.settings.optimization
    row = dict(
        phase=phase.name,
        epoch=progress.epoch + 1,
        train_loss=progress.loss_sum / progress.images,
        learning_rate=max(group['lr'] for group in optimizer.param_groups),
        **summary(predictions, phase.objective.num_classes, phase.importance),
        images_per_second=throughput.model,
        input_images_per_second=throughput.input,
    )
    if is_better(s.metric, row, progress.best):
        progress.best = row
        if accelerator.is_main_process:
            resume.write(folder.checkpoints.best, {phase.kind: judged.state_dict()}, row)
    progress.history.append(row)
    progress.epoch, progress.update, progress.loss_sum, progress.images = progress.epoch + 1, 0, 0.0, 0
    figures = {name: value for name, value in row.items() if isinstance(value, (int, float))}
    accelerator.log(figures, step=len(progress.history))
    accelerator.print(results.row(row, best=progress.best is row, heading=progress.epoch == 1))
    if throughput.input and progress.epoch == 1:
        accelerator.print(f'Throughput: {throughput}')


def workers(settings: Settings, accelerator: Accelerator) -> int:
    """Processes that decode images, for each process that trains."""
    if settings.machine.workers is not None:
        return settings.machine.workers
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
    return 0 if accelerator.device.type == 'cpu' else min(MOST_WORKERS, cores // accelerator.num_processes)


def memory_format(settings: Settings) -> torch.memory_format:
    return torch.channels_last if settings.machine.channels_last else torch.preserve_format


def progress_bar(name: str, total: int, accelerator: Accelerator, initial: int = 0) -> tqdm:
    """Of images, with rate and remaining time, in one process only; into a file it writes a line now and then."""
    return tqdm(
        desc=name,
        total=total,
        initial=initial,
        unit='img',
        leave=False,
        dynamic_ncols=True,
        mininterval=0.2 if sys.stderr.isatty() else 30.0,
        disable=not accelerator.is_main_process,
    )
