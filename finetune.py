"""xception-hub finetune --recipe transfer --dataset photos --output DIR

Trains xception_paper, or any timm model, on a Hugging Face dataset or a folder of images, with a CPU, a GPU or many
machines. DIR becomes a model directory for timm, with a report. An interrupted run continues when the same command is
run again; its final weights are bit-identical. For several processes: accelerate launch -m xception_hub finetune. In a
clone: accelerate launch finetune.py.
"""

import math
import time
from collections.abc import Iterator
from contextlib import closing, nullcontext
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from xception_hub.data.labelled import Data
from xception_hub.errors import Diverged, ResumeError
from xception_hub.models import classifier
from xception_hub.models.build import TimmModel, Transforms, build, evaluating
from xception_hub.models.matching import Selected, on_all_outputs, outputs_of
from xception_hub.training import batch_norm, processes, results, run_checkpoints
from xception_hub.training.batches import Batch, Batching, Images, InOrder, TrainingBatches, seed_all
from xception_hub.training.command import command
from xception_hub.training.dry_run import dry_run
from xception_hub.training.features import frozen_features
from xception_hub.training.metrics import Predictions, is_better, summary
from xception_hub.training.objective import Objective, balanced_class_weights
from xception_hub.training.optimization import check_optimizer, make_optimizer, make_schedule
from xception_hub.training.phase import Phase, Task
from xception_hub.training.processes import Machine
from xception_hub.training.run_checkpoints import Checkpoint
from xception_hub.training.run_data import check_finished, checked, divided, read, scanned, seen_by
from xception_hub.training.run_directory import Interrupted, Progress, Run, Stop, stop_on_signals
from xception_hub.training.settings import RESUME_MAY_CHANGE, Settings, phases
from xception_hub.training.throughput import Throughput


def run(settings: Settings) -> None:
    """Runs the whole training: data, model, phases, results."""
    if Path(settings.model.model).is_dir():
        settings = replace(settings, model=replace(settings.model, model=f'local-dir:{settings.model.model}'))
    machine = processes.start(settings)
    output = settings.output
    directory = Run(output.output, settings.flat(), machine.processes, RESUME_MAY_CHANGE, output.keep_checkpoints)
    if directory.finished:
        check_finished(settings, directory, machine)
        results.show_finished(directory, output.push, machine)
        return
    check_optimizer(settings.optimization)
    seen = seen_by(settings)
    data = read(settings)
    manifest = checked(settings, data, directory)
    data = scanned(data, settings.data, manifest, machine)
    data = divided(settings, data, seen, manifest, machine)
    checkpoint = directory.checkpoints.newest()
    model, transforms = build_model(settings, data, machine, checkpoint)
    selected = None
    if output.eval_only:
        selected = outputs_of(model, data.class_names)
        if not output.restrict_classes:
            data, selected = on_all_outputs(data, model, selected), None
    task = Task(settings, machine, directory, data, manifest, model, transforms)
    if output.dry_run:
        machine.print(dry_run(task, whole_phase))
        return
    if len(set(machine.gather([checkpoint and checkpoint.path.name]))) > 1:
        raise ResumeError(f'{output.output} differs between processes. Choose an --output that all machines share.')
    progress = Progress(**checkpoint.state['progress']) if checkpoint else Progress()
    if checkpoint:
        machine.print(f'Going on from {checkpoint.path}')
    machine.accelerator.wait_for_everyone()  # all processes have read the directory; only now the main one writes
    if machine.is_main:
        directory.start(manifest)
        if len(data.train.digests):  # of a run that was not scanned, nothing is known
            seen.after(data).write(directory.directory)
    machine.accelerator.init_trackers('xception_hub', {name: str(value) for name, value in settings.flat().items()})
    phase = evaluation_phase(task, selected) if output.eval_only else None
    stages = phases(settings)
    for number in range(progress.phase, len(stages)):
        name, phase_settings = stages[number]
        prepare = probe_phase if name == 'probe' else whole_phase
        phase = prepare(replace(task, settings=phase_settings))
        Training(phase, progress, checkpoint).run()
        restore_best(phase)
        checkpoint, progress = None, replace(progress, phase=number + 1, epoch=0, update=0, loss_sum=0.0, images=0)
    assert phase is not None
    results.finish(task, evaluate(phase, phase.module), progress)
    machine.accelerator.end_training()


def build_model(
    settings: Settings, data: Data, machine: Machine, resumed: Checkpoint | None
) -> tuple[TimmModel, Transforms]:
    """Builds the network, equal in all processes, and the transforms of its images."""
    s = settings.model
    seed_all(settings.optimization.seed)  # for the new classifier
    args = {name.replace('-', '_'): value for name, value in s.model_args.items()}
    args |= dict(drop_rate=s.drop_rate or None, drop_path_rate=s.drop_path_rate or None)
    pretrained = s.pretrained and not (resumed and 'model' in resumed.tensors)
    if settings.output.eval_only:
        model = build(s.model, None, pretrained, args, s.image_size)
    else:
        model, kept = classifier.build_for(s.model, data.class_names, pretrained, args, s.image_size)
        if 0 < len(kept) < len(data.class_names):
            machine.print(f'The classifier keeps its weights for {len(kept)} known classes; the others are new.')
    if settings.machine.gradient_checkpointing:
        model.set_grad_checkpointing(True)
    return model.to(machine.device).to(memory_format=machine.memory_format), Transforms(model, s.image_size)


# The phases of a recipe


def probe_phase(task: Task) -> Phase:
    """Trains only the classifier, on features that the frozen network computes once."""
    module = classifier.ProbeHead(task.model, task.settings.model.drop_rate)
    training, validation = (frozen_features(task.images(split), task) for split in ('train', 'validation'))
    return Phase('probe', task, module, 'head', training, validation, make_objective(task))


def whole_phase(task: Task) -> Phase:
    """Trains the whole network on augmented images."""
    a, transforms = task.settings.augmentation, task.transforms
    transform = transforms.training(
        a.crop_scale,
        hflip=a.flip,
        vflip=a.vertical_flip,
        color_jitter=a.color_jitter,
        auto_augment=a.auto_augment,
        re_prob=a.random_erasing,
    )
    seed = task.settings.optimization.seed
    training = Images(task.data.train, transform, transforms.min_side_for(a.crop_scale), seed)
    objective = replace(make_objective(task), mixup=a.mixup, cutmix=a.cutmix)
    return Phase('everything', task, task.model, 'model', training, task.images('validation'), objective)


def evaluation_phase(task: Task, outputs: list[int] | None) -> Phase:
    """Evaluates the model unchanged, with all or some of its outputs."""
    module = task.model if outputs is None else Selected(task.model, outputs).to(task.machine.device)
    objective = Objective(len(task.data.class_names), task.data.multi_label)
    return Phase('evaluation', task, module, 'model', None, task.images('validation'), objective)


def make_objective(task: Task) -> Objective:
    s, data = task.settings.optimization, task.data
    weights = balanced_class_weights(data.train.labels, len(data.class_names)) if s.class_weights else None
    return Objective(len(data.class_names), data.multi_label, s.label_smoothing, weights)


# Training


class Training:
    """Trains a phase from its start, or from a checkpoint, to its end.

    Args:
        phase: The phase.
        progress: Progress of the run, which the training updates.
        checkpoint: The checkpoint to continue from; None at the start of the phase.
    """

    def __init__(self, phase: Phase, progress: Progress, checkpoint: Checkpoint | None) -> None:
        task, module = phase.task, phase.module
        s, machine, train = task.settings.optimization, task.machine, task.data.train
        self.phase, self.progress, self.settings, self.machine = phase, progress, s, machine
        self.checkpoints = task.run.checkpoints
        least = 2 if s.batch_norm == 'train' and s.batch_size > 1 else 1
        self.batching = Batching(len(train), s.batch_size, s.accumulation, machine.processes, machine.rank, least)
        self.averages = ModelEmaV3(module, s.ema_decay, use_warmup=True) if s.ema_decay else None
        self.optimizer = make_optimizer(s, module)
        self.schedule = make_schedule(s, self.optimizer, self.batching)
        if checkpoint:
            self.restore(checkpoint)
        trains_statistics = s.batch_norm == 'train' and batch_norm.has_statistics(module)
        self.precise_bn_images = s.precise_bn_images if trains_statistics else 0
        if s.precise_bn_images and not trains_statistics:
            machine.print('--precise-bn-images has no effect: no batch normalization is trained.')
        if task.settings.machine.compile:
            module.compile()
        # each phase is prepared anew, because it trains other weights
        machine.accelerator.free_memory()
        self.wrapped, self.prepared_optimizer = machine.accelerator.prepare(module, self.optimizer)
        self.order = TrainingBatches(train, self.batching, s.seed, s.balanced_sampling)
        self.batches = machine.loader(phase.training, self.order)
        self.saved_at = time.monotonic()
        if not checkpoint:
            self.save()

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
            while progress.epoch < self.settings.epochs and not self.is_out_of_patience():
                throughput = self.machine.throughput()
                self.run_epoch(throughput, stop)
                self.machine.share(self.phase.module.buffers())  # moving statistics, which differ a little
                if self.precise_bn_images:
                    batch_norm.recompute(self.evaluated, self.training_inputs(), self.machine)
                self.end_epoch(evaluate(self.phase, self.evaluated), throughput)
                self.save()
                if stop.asked and self.machine.processes == 1:
                    raise Interrupted

    def run_epoch(self, throughput: Throughput, stop: Stop) -> None:
        """Trains for the rest of an epoch."""
        progress, batching, machine = self.progress, self.batching, self.machine
        self.order.epoch, self.order.first_update = progress.epoch, progress.update
        classifier.set_mode(self.phase.module, self.settings.batch_norm == 'frozen')
        name = f'{self.phase.name} {progress.epoch + 1}/{self.settings.epochs}'
        minutes = self.phase.task.settings.output.checkpoint_minutes
        with (
            closing(throughput.timed(self.batches)) as feed,
            machine.progress(name, batching.images, progress.images) as bar,
        ):
            for update in range(progress.update, batching.updates):
                loss_sum = self.run_update(feed, update)
                # all processes see the same sums, and stop at the same update
                sums = torch.stack([loss_sum, loss_sum.new_tensor(float(stop.asked))])
                loss, stopping = machine.accelerator.reduce(sums).tolist()
                if not math.isfinite(loss):
                    raise self.diverged()
                size = batching.size(update)
                progress.update, progress.loss_sum = update + 1, progress.loss_sum + loss
                progress.images += size
                bar.update(size)
                bar.set_postfix(loss=f'{loss / size:.4f}', refresh=False)
                is_due = time.monotonic() - self.saved_at >= 60 * minutes
                if stopping or (is_due and update + 1 < batching.updates):
                    self.save()
                if stopping:
                    raise Interrupted

    def run_update(self, feed: Iterator[Batch], update: int) -> Tensor:
        """Takes one optimizer step; returns the sum of the losses in this process [] (a scalar)."""
        accelerator, objective = self.machine.accelerator, self.phase.objective
        size, steps = self.batching.size(update), self.batching.steps(update)
        number = self.progress.epoch * self.batching.updates + update
        self.schedule.step_update(number)
        loss_sum = torch.zeros((), device=accelerator.device)
        for step in range(steps):
            batch = self.machine.put(next(feed))
            # for dropout and mixup
            seed_all(self.settings.seed, self.progress.phase, number, step, self.machine.rank)
            inputs, targets = objective.prepare(batch.inputs, batch.labels)
            with nullcontext() if step + 1 == steps else accelerator.no_sync(self.wrapped):
                losses = objective.losses(self.wrapped(inputs), targets) * batch.weights
                # accelerate averages gradients over processes; the factor makes it the mean over all images
                accelerator.backward(losses.sum() * accelerator.num_processes / size)
            loss_sum += losses.detach().sum()
        if self.settings.clip_grad:
            accelerator.clip_grad_norm_(self.wrapped.parameters(), self.settings.clip_grad)
        self.prepared_optimizer.step()
        self.prepared_optimizer.zero_grad()
        if self.averages:
            self.averages.update(self.phase.module, step=number + 1)
        return loss_sum

    def training_inputs(self) -> Iterator[Tensor]:
        """Yields the inputs [B, 3, H, W] of the first updates of the epoch again, for precise BN."""
        progress, batching, machine = self.progress, self.batching, self.machine
        self.order.epoch, self.order.first_update = progress.epoch, 0
        updates = min(math.ceil(self.precise_bn_images / batching.group), batching.updates)
        batches = islice(self.order, sum(map(batching.steps, range(updates))))
        with machine.progress('Batch normalization', min(updates * batching.group, batching.images)) as bar:
            for step, batch in enumerate(map(machine.put, machine.loader(self.phase.training, batches))):
                # for dropout and mixup
                seed_all(self.settings.seed, progress.phase, progress.epoch, step, machine.rank)
                yield self.phase.objective.prepare(batch.inputs, batch.labels)[0]
                bar.update(len(batch.indices) * machine.processes)

    def end_epoch(self, predictions: Predictions, throughput: Throughput) -> None:
        """Records the metrics of an epoch, and saves its weights if they are the best so far."""
        progress, accelerator = self.progress, self.machine.accelerator
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
            if self.machine.is_main:
                run_checkpoints.write(self.checkpoints.best, {self.phase.kind: self.evaluated.state_dict()}, row)
        progress.history.append(row)
        progress.epoch, progress.update, progress.loss_sum, progress.images = progress.epoch + 1, 0, 0.0, 0
        figures = {name: value for name, value in row.items() if isinstance(value, (int, float))}
        accelerator.log(figures, step=len(progress.history))
        self.machine.print(results.row(row, best=progress.best is row, heading=progress.epoch == 1))
        if throughput.input and progress.epoch == 1:
            self.machine.print(f'Throughput: {throughput}')

    def is_out_of_patience(self) -> bool:
        """Whether as many epochs as `early_stopping` have passed without a better one."""
        best, since = None, 0
        for row in self.progress.history:
            if row['phase'] == self.phase.name:
                best, since = (row, 0) if is_better(self.settings.metric, row, best) else (best, since + 1)
        return self.settings.early_stopping is not None and since >= self.settings.early_stopping

    def save(self) -> None:
        """Writes a checkpoint, or raises Diverged if a weight is not a finite number."""
        self.saved_at = time.monotonic()
        if not self.machine.is_main:
            return
        progress, scaler = self.progress, self.machine.accelerator.scaler
        tensors = {self.phase.kind: self.phase.module.state_dict()}
        if not all(tensor.isfinite().all() for tensor in tensors[self.phase.kind].values()):
            raise self.diverged()
        if self.averages:
            tensors['averages'] = self.averages.module.state_dict()
        tensors['optimizer'], rest = run_checkpoints.pack_optimizer(self.optimizer)
        state = dict(progress=progress.as_dict(), optimizer=rest, scaler=scaler.state_dict() if scaler else None)
        self.checkpoints.save(progress.phase, progress.epoch * self.batching.updates + progress.update, tensors, state)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Restores weights, averages and optimizer from a checkpoint."""
        tensors, state = checkpoint.tensors, checkpoint.state
        run_checkpoints.restore(self.phase.module, tensors[self.phase.kind], checkpoint.path)
        if self.averages:
            run_checkpoints.restore(self.averages.module, tensors['averages'], checkpoint.path)
        run_checkpoints.unpack_optimizer(self.optimizer, tensors.get('optimizer', {}), state['optimizer'])
        if self.machine.accelerator.scaler:
            self.machine.accelerator.scaler.load_state_dict(state['scaler'])

    def diverged(self) -> Diverged:
        return Diverged(
            f'The training has diverged in epoch {self.progress.epoch + 1}: the loss is not a finite number. Choose '
            f'another output, and a smaller --learning-rate than {self.settings.learning_rate:g}, a longer '
            f'--warmup-epochs, or --clip-grad 1. The last good weights are kept in {self.checkpoints.last_good}.'
        )


def evaluate(phase: Phase, module: nn.Module) -> Predictions:
    """Predicts the validation split with all processes together, each image exactly once."""
    machine, split = phase.task.machine, phase.task.data.validation
    order = InOrder(split, phase.task.settings.optimization.batch_size, machine.processes, machine.rank)
    parts = []
    machine.share(module.buffers())
    with evaluating(module), machine.accelerator.autocast(), machine.progress('Evaluation', len(split)) as bar:
        for batch in map(machine.put, machine.loader(phase.validation, order)):
            parts.append(Predictions.of(module(batch.inputs), batch.labels, batch.indices))
            bar.update(len(batch.indices) * machine.processes)
    return Predictions.joined(machine.gather(parts))


def restore_best(phase: Phase) -> None:
    """Loads the best weights, and saves them for the whole model, because the next phase changes more than the head."""
    model, machine = phase.task.model, phase.task.machine
    if machine.is_main:
        file = phase.task.run.checkpoints.best
        best = run_checkpoints.read(file)
        kind = 'model' if 'model' in best.tensors else 'head'
        run_checkpoints.restore(model if kind == 'model' else phase.module, best.tensors[kind], file)
        run_checkpoints.write(file, {'model': model.state_dict()}, best.state)
    machine.share(model.state_dict().values())


app = command(run)

if __name__ == '__main__':
    app.meta()
