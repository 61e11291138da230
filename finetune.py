"""Trains a timm model by its settings: the whole run, its phases and the loop. training/command.py has the help."""

import math
import time
from collections.abc import Iterator
from contextlib import closing, nullcontext
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from threading import Event

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from xception_hub.errors import DataError, Diverged, ResumeError
from xception_hub.models import classifier
from xception_hub.models.build import TimmModel, Transforms, build
from xception_hub.models.matching import Selected, for_evaluation
from xception_hub.training import batch_norm, processes, results, run_checkpoints
from xception_hub.training.batches import Batch, Batching, Images, TrainingBatches, seed_all
from xception_hub.training.command import command
from xception_hub.training.dry_run import cost
from xception_hub.training.features import frozen_features
from xception_hub.training.metrics import Predictions, epochs_since_best, is_better, summary
from xception_hub.training.objective import Objective
from xception_hub.training.optimization import make_optimizer, make_schedule
from xception_hub.training.phase import Phase, Task
from xception_hub.training.processes import Machine
from xception_hub.training.run_checkpoints import Checkpoint
from xception_hub.training.run_data import divided, manifest_of, read, scanned, seen_by
from xception_hub.training.run_directory import Interrupted, Progress, Run, stop_on_signals
from xception_hub.training.settings import Augmentation, ModelSettings, Optimization, Settings, phases
from xception_hub.training.settings_checks import check, check_with
from xception_hub.training.throughput import Throughput


def run(settings: Settings) -> None:
    """Runs the whole training: data, model, phases, results."""
    s, output, evaluation = settings.optimization, settings.output, settings.output.eval_only
    machine = processes.start(settings.machine, output)
    check(settings, machine)
    directory = Run(output, settings.flat(), machine.num_processes)

    # the data: read, checked, scanned, split
    try:
        data = read(settings.data, settings.model, evaluation)
    except DataError as e:
        if not directory.finished:
            raise
        results.show_finished(directory, output.push, machine)
        machine.print(f'Whether the data have changed since then is unknown, because they cannot be read: {e}')
        return
    manifest = manifest_of(data, directory)
    if directory.finished:
        results.show_finished(directory, output.push, machine)
        return
    check_with(data, s, output)
    data = scanned(data, settings.data, manifest, machine)
    seen = seen_by(settings.model)
    data = divided(data, settings.data, s.seed, evaluation, seen, manifest, machine)

    checkpoint = directory.checkpoints.newest()
    pretrained = settings.model.pretrained and not (checkpoint and 'model' in checkpoint.tensors)
    seed_all(s.seed)  # for the new classifier
    model = build_model(settings.model, None if evaluation else data.class_names, pretrained, machine)
    if settings.machine.gradient_checkpointing:
        model.set_grad_checkpointing(True)
    if settings.machine.compile:
        model.compile()
    selected = None
    if evaluation:
        data, selected = for_evaluation(data, model, output.restrict_classes)
    task = Task(machine, directory, data, manifest, model, Transforms(model, settings.model.image_size))

    stages = [] if evaluation else phases(s)
    if output.dry_run:
        trains_all = bool(stages) and stages[-1][0] == 'everything'
        phase = whole_phase(task, s, settings.augmentation) if trains_all else evaluation_phase(task, s, selected)
        machine.print(f'{results.table(settings.flat())}\n\n{cost(phase)}\nDry run: nothing was written.')
        return
    if len(set(machine.gather_values([checkpoint and checkpoint.path.name]))) > 1:
        raise ResumeError(f'{output.output} differs between processes. Choose an --output that all machines share.')
    progress = Progress(**checkpoint.state['progress']) if checkpoint else Progress()
    machine.print(f'Going on from {checkpoint.path}' if checkpoint else f'Writing to {output.output}')
    machine.wait_for_everyone()  # all processes have read the directory; only now the main one writes
    if machine.is_main_process:
        directory.start(manifest)
        if len(data.train.digests):  # of a run that was not scanned, nothing is known
            seen.after(data).write(directory.directory)
    machine.init_trackers('xception_hub', {name: str(value) for name, value in settings.flat().items()})

    phase = evaluation_phase(task, s, selected)
    for number in range(progress.phase, len(stages)):
        name, own = stages[number]
        if name == 'probe':
            phase = probe_phase(task, own, settings.model.drop_rate, settings.machine.feature_cache)
        else:
            phase = whole_phase(task, own, settings.augmentation)
        Training(phase, progress, checkpoint, output.checkpoint_minutes).run()
        phase.restore_best()
        checkpoint, progress = None, replace(progress, phase=number + 1, epoch=0, update=0, loss_sum=0.0, images=0)
    results.finish(task, settings, phase.predict(phase.module), progress)
    machine.end_training()


def build_model(s: ModelSettings, class_names: list[str] | None, pretrained: bool, machine: Machine) -> TimmModel:
    """Builds the network for these classes, or with its own for None."""
    args = {name.replace('-', '_'): value for name, value in s.model_args.items()}
    args |= dict(drop_rate=s.drop_rate or None, drop_path_rate=s.drop_path_rate or None)
    if class_names is None:
        model = build(s.model, None, pretrained, args, s.image_size)
    else:
        model, kept = classifier.build_for(s.model, class_names, pretrained, args, s.image_size)
        if 0 < len(kept) < len(class_names):
            machine.print(f'The classifier keeps its weights for {len(kept)} known classes; the others are new.')
    return model.to(machine.device).to(memory_format=machine.memory_format)


# The phases of a recipe


def probe_phase(task: Task, s: Optimization, drop_rate: float, cache: Path | None) -> Phase:
    """Trains only the classifier, on features that the frozen network computes once."""
    module = classifier.ProbeHead(task.model, drop_rate)
    training, validation = (frozen_features(task.images(split), task, cache) for split in ('train', 'validation'))
    return Phase('probe', task, s, module, 'head', training, validation, Objective.of(task.data, s))


def whole_phase(task: Task, s: Optimization, a: Augmentation) -> Phase:
    """Trains the whole network on augmented images."""
    transform, min_side = task.transforms.training(**a.of_transform()), task.transforms.min_side_for(a.crop_scale)
    training = Images(task.data.train, transform, min_side, s.seed)
    objective = Objective.of(task.data, s, mixup=a.mixup, cutmix=a.cutmix)
    return Phase('everything', task, s, task.model, 'model', training, task.images('validation'), objective)


def evaluation_phase(task: Task, s: Optimization, outputs: list[int] | None) -> Phase:
    """Evaluates the model unchanged, with all or some of its outputs."""
    module = task.model if outputs is None else Selected(task.model, outputs).to(task.machine.device)
    objective = Objective(len(task.data.class_names), task.data.multi_label)
    return Phase('evaluation', task, s, module, 'model', None, task.images('validation'), objective)


# Training


class Training:
    """Trains a phase from its start, or from a checkpoint, to its end.

    Args:
        phase: The phase.
        progress: Progress of the run, which the training updates.
        checkpoint: The checkpoint to continue from; None at the start of the phase.
        minutes: Minutes between two checkpoints within an epoch.
    """

    def __init__(self, phase: Phase, progress: Progress, checkpoint: Checkpoint | None, minutes: float) -> None:
        s, module, machine, train = phase.settings, phase.module, phase.task.machine, phase.task.data.train
        self.phase, self.progress, self.settings, self.machine = phase, progress, s, machine
        self.checkpoints, self.minutes = phase.task.run.checkpoints, minutes
        least = 2 if s.batch_norm == 'train' and s.batch_size > 1 else 1
        self.batching = Batching(
            len(train), s.batch_size, s.accumulation, machine.num_processes, machine.process_index, least
        )
        self.averages = ModelEmaV3(module, s.ema_decay, use_warmup=True) if s.ema_decay else None
        self.optimizer = make_optimizer(s, module)
        self.schedule = make_schedule(s, self.optimizer, self.batching)
        if checkpoint:
            run_checkpoints.resume(checkpoint, phase.kind, module, self.averages, self.optimizer, machine.scaler)
        # each phase is prepared anew, because it trains other weights
        machine.free_memory()
        self.wrapped, self.prepared_optimizer = machine.prepare(module, self.optimizer)
        self.order = TrainingBatches(train, self.batching, s.seed, s.balanced_sampling)
        self.batches = machine.loader(phase.training, self.order)
        self.saved_at = time.monotonic()
        if not checkpoint:
            self.save()

    @property
    def is_out_of_patience(self) -> bool:
        """Whether as many epochs as `early_stopping` have passed without a better one."""
        own = [row for row in self.progress.history if row['phase'] == self.phase.name]
        return epochs_since_best(own, self.settings.metric) >= (self.settings.early_stopping or math.inf)

    @property
    def evaluated(self) -> nn.Module:
        """The averaged weights if there are any, else the module itself."""
        return self.averages.module if self.averages else self.phase.module

    def run(self) -> None:
        """Trains to the end.

        Raises:
            Diverged: The loss is not a finite number.
            Interrupted: A signal asked to stop. A checkpoint is saved first.
        """
        progress = self.progress
        with stop_on_signals() as stop:
            while progress.epoch < self.settings.epochs and not self.is_out_of_patience:
                throughput = self.machine.throughput()
                self.run_epoch(throughput, stop)
                self.machine.share(self.phase.module.buffers())  # moving statistics, which differ a little
                if self.settings.precise_bn_images and self.settings.batch_norm == 'train':
                    batch_norm.recompute(self.evaluated, self.training_inputs(), self.machine)
                self.end_epoch(self.phase.predict(self.evaluated), throughput)
                self.save()
                if stop.is_set() and self.machine.num_processes == 1:
                    raise Interrupted

    def run_epoch(self, throughput: Throughput, stop: Event) -> None:
        """Trains for the rest of an epoch."""
        progress, batching, machine = self.progress, self.batching, self.machine
        self.order.epoch, self.order.first_update = progress.epoch, progress.update
        classifier.set_mode(self.phase.module, self.settings.batch_norm == 'frozen')
        name = f'{self.phase.name} {progress.epoch + 1}/{self.settings.epochs}'
        with (
            closing(throughput.timed(self.batches)) as feed,
            machine.progress(name, batching.images, progress.images) as bar,
        ):
            for update in range(progress.update, batching.updates):
                loss_sum = self.run_update(feed, update)
                # all processes see the same sums, and stop at the same update
                sums = torch.stack([loss_sum, loss_sum.new_tensor(float(stop.is_set()))])
                loss, stopping = machine.reduce(sums).tolist()
                if not math.isfinite(loss):
                    raise self.diverged()
                size = batching.size(update)
                progress.update, progress.loss_sum = update + 1, progress.loss_sum + loss
                progress.images += size
                bar.update(size)
                bar.set_postfix(loss=f'{loss / size:.4f}', refresh=False)
                is_due = time.monotonic() - self.saved_at >= 60 * self.minutes
                if stopping or (is_due and update + 1 < batching.updates):
                    self.save()
                if stopping:
                    raise Interrupted

    def run_update(self, feed: Iterator[Batch], update: int) -> Tensor:
        """Takes one optimizer step; returns the sum of the losses in this process [] (a scalar)."""
        machine, objective = self.machine, self.phase.objective
        size, steps = self.batching.size(update), self.batching.steps(update)
        number = self.progress.epoch * self.batching.updates + update
        self.schedule.step_update(number)
        loss_sum = torch.zeros((), device=machine.device)
        for step in range(steps):
            batch = machine.put(next(feed))
            # for dropout and mixup, by the number of the batch in all processes
            batch_number = step * machine.num_processes + machine.process_index
            seed_all(self.settings.seed, self.progress.phase, number, batch_number)
            inputs, targets = objective.prepare(batch.inputs, batch.labels)
            with nullcontext() if step + 1 == steps else machine.no_sync(self.wrapped):
                losses = objective.losses(self.wrapped(inputs), targets) * batch.weights
                # accelerate averages gradients over processes; the factor makes it the mean over all images
                machine.backward(losses.sum() * machine.num_processes / size)
            loss_sum += losses.detach().sum()
        if self.settings.clip_grad:
            machine.clip_grad_norm_(self.wrapped.parameters(), self.settings.clip_grad)
        self.prepared_optimizer.step()
        self.prepared_optimizer.zero_grad()
        if self.averages:
            self.averages.update(self.phase.module, step=number + 1)
        return loss_sum

    def training_inputs(self) -> Iterator[Tensor]:
        """Yields the inputs [B, 3, H, W] of the first updates of the epoch again, for precise BN."""
        progress, batching, machine = self.progress, self.batching, self.machine
        self.order.epoch, self.order.first_update = progress.epoch, 0
        updates = min(math.ceil(self.settings.precise_bn_images / batching.group), batching.updates)
        batches = islice(self.order, sum(map(batching.steps, range(updates))))
        with machine.progress('Batch normalization', min(updates * batching.group, batching.images)) as bar:
            for step, batch in enumerate(map(machine.put, machine.loader(self.phase.training, batches))):
                seed_all(self.settings.seed, progress.phase, progress.epoch, step, machine.process_index)
                yield self.phase.objective.prepare(batch.inputs, batch.labels)[0]
                bar.update(len(batch.indices) * machine.num_processes)

    def end_epoch(self, predictions: Predictions, throughput: Throughput) -> None:
        """Records the metrics of an epoch, and saves its weights if they are the best so far."""
        progress, machine = self.progress, self.machine
        row = dict(
            phase=self.phase.name,
            epoch=progress.epoch + 1,
            train_loss=progress.loss_sum / progress.images,
            learning_rate=max(group['lr'] for group in self.optimizer.param_groups),
            **summary(predictions, self.phase.objective.num_classes),
            images_per_second=throughput.model,
            input_images_per_second=throughput.input,
        )
        if is_better(self.settings.metric, row, progress.best):
            progress.best = row
            if self.machine.is_main_process:
                run_checkpoints.write(self.checkpoints.best, {self.phase.kind: self.evaluated.state_dict()}, row)
        progress.history.append(row)
        progress.epoch, progress.update, progress.loss_sum, progress.images = progress.epoch + 1, 0, 0.0, 0
        figures = {name: value for name, value in row.items() if isinstance(value, (int, float))}
        machine.log(figures, step=len(progress.history))
        self.machine.print(results.row(row, best=progress.best is row, heading=progress.epoch == 1))
        if throughput.input and progress.epoch == 1:
            self.machine.print(f'Throughput: {throughput}')

    def save(self) -> None:
        """Writes a checkpoint, or raises Diverged if a weight is not a finite number."""
        self.saved_at = time.monotonic()
        if not self.machine.is_main_process:
            return
        progress, scaler = self.progress, self.machine.scaler
        tensors = {self.phase.kind: self.phase.module.state_dict()}
        if not all(tensor.isfinite().all() for tensor in tensors[self.phase.kind].values()):
            raise self.diverged()
        if self.averages:
            tensors['averages'] = self.averages.module.state_dict()
        tensors['optimizer'], rest = run_checkpoints.pack_optimizer(self.optimizer)
        state = dict(progress=asdict(progress), optimizer=rest, scaler=scaler.state_dict() if scaler else None)
        self.checkpoints.save(progress.phase, progress.epoch * self.batching.updates + progress.update, tensors, state)

    def diverged(self) -> Diverged:
        return Diverged(
            f'The training has diverged in epoch {self.progress.epoch + 1}: the loss is not a finite number. Choose '
            f'another output, and a smaller --learning-rate than {self.settings.learning_rate:g}, a longer '
            f'--warmup-epochs, or --clip-grad 1. The last good weights are in {self.checkpoints.directory}.'
        )


app = command(run)

if __name__ == '__main__':
    app.meta()
