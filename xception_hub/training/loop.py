"""The training loop: a phase from its start, or from a checkpoint, to its end."""
import math
import os
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3
from torch import nn
from tqdm.auto import tqdm

from . import results, resume
from .data import Data
from .evaluation import evaluate, share_buffers
from .metrics import Predictions, is_better, summary
from .models import ModelError, set_mode
from .objective import Objective
from .pace import Pace
from .resume import Checkpoint
from .runs import Interrupted, Progress, Run, stop_on_signals
from .samples import Plan, TrainingBatches, loader, seed_all
from .settings import Optimization, Settings

__all__ = ['Diverged', 'Phase', 'judge', 'make_optimizer', 'memory_format', 'progress_bar', 'train', 'workers']

MOST_WORKERS = 8


class Diverged(RuntimeError):
    """The loss, or the weights, are no numbers any more."""


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
    """

    name: str
    settings: Settings
    module: nn.Module
    kind: str
    training: Any
    validation: Any
    objective: Objective


def train(
        phase: Phase, data: Data, progress: Progress, checkpoint: Checkpoint | None, folder: Run,
        accelerator: Accelerator,
) -> None:
    """Trains a phase to its end, from its start or from a checkpoint.

    Raises:
        Diverged: The loss is no number any more.
        Interrupted: By a signal; everything is saved.
    """
    s, module, frozen = phase.settings.optimization, phase.module, phase.settings.optimization.batch_norm == 'frozen'
    plan = Plan(len(data.train), s.batch_size, s.accumulation, accelerator.num_processes, accelerator.process_index)
    averages = ModelEmaV3(module, s.ema_decay, use_warmup=True) if s.ema_decay else None
    judged = averages.module if averages else module
    optimizer = make_optimizer(s, module)
    schedule = make_schedule(s, optimizer, plan)
    if checkpoint:
        resume.restore(module, checkpoint.tensors[phase.kind], checkpoint.path)
        if averages:
            resume.restore(averages.module, checkpoint.tensors['averages'], checkpoint.path)
        resume.unpack_optimizer(optimizer, checkpoint.tensors.get('optimizer', {}), checkpoint.state['optimizer'])
        if accelerator.scaler:
            accelerator.scaler.load_state_dict(checkpoint.state['scaler'])
    if phase.settings.machine.compile:
        module.compile()
    accelerator.free_memory()  # a phase is prepared anew: what is trained, and so what processes share, has changed
    wrapped, prepared = accelerator.prepare(module, optimizer)

    batches = TrainingBatches(data.train, plan, s.seed, s.balanced_sampling)
    batch_loader = loader(phase.training, batches, workers(phase.settings, accelerator),
                          accelerator.device.type == 'cuda')

    def save() -> None:
        if accelerator.is_main_process:
            tensors = {phase.kind: module.state_dict()}
            if averages:
                tensors['averages'] = averages.module.state_dict()
            if not all(tensor.isfinite().all() for tensor in module.state_dict().values()):
                raise Diverged(divergence(s, progress, folder))
            tensors['optimizer'], rest = resume.pack_optimizer(optimizer)
            scaler = accelerator.scaler.state_dict() if accelerator.scaler else None
            folder.checkpoints.save(progress.phase, progress.epoch * plan.updates + progress.update, tensors,
                                    dict(progress=progress.as_dict(), optimizer=rest, scaler=scaler))

    if not checkpoint:
        save()
    saved = time.monotonic()
    with stop_on_signals() as stop:
        while progress.epoch < s.epochs and not ran_out_of_patience(phase, progress):
            batches.epoch, batches.first_update = progress.epoch, progress.update
            pace = Pace(workers(phase.settings, accelerator), accelerator.num_processes)
            feed = pace.timed(batch_loader)
            set_mode(module, frozen)
            with progress_bar(f'{phase.name} {progress.epoch + 1}/{s.epochs}', len(data.train), accelerator,
                              progress.images) as bar:
                for update in range(progress.update, plan.updates):
                    number = progress.epoch * plan.updates + update
                    schedule.step_update(number)
                    loss_sum = torch.zeros((), device=accelerator.device)
                    for step in range(plan.steps(update)):
                        batch = next(feed).to(accelerator.device, memory_format(phase.settings))
                        seed_all(s.seed, progress.phase, number, step, accelerator.process_index)  # dropout, mixup
                        inputs, targets = phase.objective.prepare(batch.inputs, batch.labels)
                        last = step + 1 == plan.steps(update)
                        with nullcontext() if last else accelerator.no_sync(wrapped):
                            losses = phase.objective.losses(wrapped(inputs), targets) * batch.weights
                            # gradients become the mean over processes; this makes it that over the images of the group
                            accelerator.backward(losses.sum() * accelerator.num_processes / plan.size(update))
                        loss_sum += losses.detach().sum()
                    if s.clip_grad:
                        accelerator.clip_grad_norm_(wrapped.parameters(), s.clip_grad)
                    prepared.step()
                    prepared.zero_grad()
                    if averages:
                        averages.update(module, step=number + 1)

                    # all processes see the same sum, and stop at the same update
                    loss, stopping = accelerator.reduce(
                        torch.stack([loss_sum, loss_sum.new_tensor(float(stop.asked))])).tolist()
                    if not math.isfinite(loss):
                        raise Diverged(divergence(s, progress, folder))
                    progress.update, progress.loss_sum = update + 1, progress.loss_sum + loss
                    progress.images += plan.size(update)
                    bar.update(plan.size(update))
                    bar.set_postfix(loss=f'{loss / plan.size(update):.4f}', refresh=False)
                    due = time.monotonic() - saved >= 60 * phase.settings.output.checkpoint_minutes
                    if stopping or (due and update + 1 < plan.updates):
                        save()
                        saved = time.monotonic()
                    if stopping:
                        raise Interrupted
            next(feed, None)  # lets the pace stop its clock

            share_buffers(module)
            figures = judge(phase, judged, data, accelerator)
            end_epoch(phase, judged, figures, pace, optimizer, progress, folder, accelerator)
            save()
            saved = time.monotonic()
            if stop.asked and accelerator.num_processes == 1:
                raise Interrupted


def make_optimizer(s: Optimization, module: nn.Module) -> torch.optim.Optimizer:
    """timm's, by name."""
    try:
        return create_optimizer_v2(
            module, opt=s.optimizer, lr=s.learning_rate, weight_decay=s.weight_decay, momentum=s.momentum,
            layer_decay=s.layer_decay, **s.optimizer_args)
    except (ValueError, TypeError, AssertionError) as e:
        raise ModelError(f'The optimizer {s.optimizer!r} can not be made: {e}.') from e


def make_schedule(s: Optimization, optimizer: torch.optim.Optimizer, plan: Plan) -> Any:
    """timm's, by update; a function of the update's number alone, so that it needs no state."""
    decay_epochs = s.decay_images / plan.images if s.decay_images else s.decay_epochs
    schedule, _ = create_scheduler_v2(
        optimizer, s.schedule, num_epochs=s.epochs, decay_epochs=decay_epochs, decay_rate=s.decay_rate,
        warmup_epochs=s.warmup_epochs, warmup_lr=s.learning_rate / 100, step_on_epochs=False,
        updates_per_epoch=plan.updates)
    return schedule


def divergence(s: Optimization, progress: Progress, folder: Run) -> str:
    """What to do about it."""
    best = folder.checkpoints.best
    kept = best if best.exists() else next(iter(folder.checkpoints.all()), None)
    return (f'The training has diverged in epoch {progress.epoch + 1}: the loss is no finite number any more. Choose '
            f'another output, and a smaller --learning-rate than {s.learning_rate:g}, a longer --warmup-epochs, or '
            f'--clip-grad 1. The last good weights are kept in {kept}.')


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
            module, phase.validation, accelerator, memory_format=memory_format(phase.settings), step=bar.update)


def end_epoch(
        phase: Phase, judged: nn.Module, predictions: Predictions, pace: Pace, optimizer: torch.optim.Optimizer,
        progress: Progress, folder: Run, accelerator: Accelerator,
) -> None:
    """Writes an epoch down, and keeps its weights if they are the best so far."""
    s = phase.settings.optimization
    row = dict(
        phase=phase.name, epoch=progress.epoch + 1, train_loss=progress.loss_sum / progress.images,
        learning_rate=max(group['lr'] for group in optimizer.param_groups),
        **summary(predictions, phase.objective.num_classes), images_per_second=pace.model,
        input_images_per_second=pace.input)
    if is_better(s.metric, row, progress.best):
        progress.best = row
        if accelerator.is_main_process:
            resume.write(folder.checkpoints.best, {phase.kind: judged.state_dict()}, row)
    progress.history.append(row)
    progress.epoch, progress.update, progress.loss_sum, progress.images = progress.epoch + 1, 0, 0., 0
    figures = {name: value for name, value in row.items() if isinstance(value, (int, float))}
    accelerator.log(figures, step=len(progress.history))
    accelerator.print(results.row(row, best=progress.best is row, heading=progress.epoch == 1))
    if pace.input and progress.epoch == 1:
        accelerator.print(f'Pace: {pace}')


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
    return tqdm(desc=name, total=total, initial=initial, unit='img', leave=False, dynamic_ncols=True,
                mininterval=0.2 if sys.stderr.isatty() else 30., disable=not accelerator.is_main_process)
