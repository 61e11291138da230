"""accelerate launch finetune.py --recipe transfer --dataset photos --output DIR

Adapts xception_paper, or any timm model, to a Hugging Face dataset or a folder of images, on a CPU, a GPU or many
machines. DIR becomes a model directory for timm, with a report. The same command goes on where it was stopped.
"""

import json
import os
import sys
import warnings
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import cyclopts
import numpy as np
import timm
import torch
import yaml
from accelerate import Accelerator, DistributedType
from accelerate.tracking import get_available_trackers
from accelerate.utils import gather_object
from cyclopts import App, Parameter

from xception_hub.directory import card, publish
from xception_hub.errors import DataError, Diverged, ImageError, ModelError, ResumeError, SettingsError
from xception_hub.training import data as datasets_of_images
from xception_hub.training import models, results, resume
from xception_hub.training.data import Data
from xception_hub.training.evaluation import evaluation_loader, share_tensors
from xception_hub.training.features import FeatureCache, Features, cache_folder, context_of
from xception_hub.training.labels import Selected, outputs_of
from xception_hub.training.loop import Phase, Training, judge, make_optimizer, memory_format, progress_bar, workers
from xception_hub.training.memory import measure
from xception_hub.training.metrics import figure_names, summary
from xception_hub.training.models import ProbeHead, TimmModel, Transforms, set_mode, without_classifier
from xception_hub.training.objective import Objective, balanced_class_weights
from xception_hub.training.recipes import RECIPES
from xception_hub.training.resume import Checkpoint
from xception_hub.training.runs import HISTORY_FILE, METRICS_FILE, SETTINGS_FILE, Interrupted, Progress, Run
from xception_hub.training.samples import Batch, Batching, Images, InOrder, TrainingBatches, loader, seed_all
from xception_hub.training.scan import digests, scan
from xception_hub.training.settings import RESUME_MAY_CHANGE, Augmentation, Optimization, Settings, phases
from xception_hub.training.throughput import Throughput, cpu_emulates_bf16

SCAN_SIZE = 299  # pixels; large JPEGs are decoded at a fraction of their size that is at least twice this
INTERRUPTED = 130  # exit status, as of a process that Ctrl-C has ended


def run(settings: Settings) -> None:
    """The whole of it: data, model, phases, results."""
    accelerator = start(settings)
    folder = Run(
        settings.output.output,
        settings.flat(),
        accelerator.num_processes,
        RESUME_MAY_CHANGE,
        settings.output.keep_checkpoints,
    )
    if folder.finished:
        accelerator.print(f'{folder.folder} is finished:\n{(folder.folder / METRICS_FILE).read_text()}')
        if settings.output.push and accelerator.is_main_process:
            push(settings.output.push, folder.folder)
        return
    data, kept = find_data(settings, folder, accelerator)
    importance = kept['class_importance']
    checkpoint = folder.checkpoints.newest()
    model, transforms = build_model(settings, data, accelerator, resumed=checkpoint)
    if settings.output.dry_run:
        accelerator.print(try_one_batch(settings, data, model, transforms, accelerator))
        return
    if len(set(gather_object([checkpoint and checkpoint.path.name]))) > 1:
        raise ResumeError(f'{folder.folder} is not the same for all processes: put it where all machines see it.')
    progress = Progress(**checkpoint.state['progress']) if checkpoint else Progress()
    if checkpoint:
        accelerator.print(f'Going on from {checkpoint.path}')
    accelerator.wait_for_everyone()  # all have read what is there; from here on there will be more
    if accelerator.is_main_process:
        folder.start(kept)
    accelerator.init_trackers('xception_hub', {name: str(value) for name, value in settings.flat().items()})
    stages = phases(settings)
    for number in range(progress.phase, len(stages)):
        phase = prepare(*stages[number], data, model, transforms, accelerator, importance)
        Training(phase, data, progress, checkpoint, folder, accelerator).run()
        restore_best(phase, model, folder, accelerator)
        checkpoint, progress = None, replace(progress, phase=number + 1, epoch=0, update=0, loss_sum=0.0, images=0)
    if settings.output.eval_only:
        phase = prepare_evaluation(settings, data, model, transforms, accelerator, importance)
    finish(phase, progress, data, model, transforms, kept, folder, accelerator)
    accelerator.end_training()


def start(settings: Settings) -> Accelerator:
    """The processes that work together.

    Raises:
        SettingsError: A tracker that isn't installed or fp16 on a CPU, which accelerate would ignore; or a way of
            sharing work that isn't supported.
    """
    available = [str(tracker) for tracker in get_available_trackers()]
    missing = [tracker for tracker in settings.output.tracker if tracker not in available]
    if missing:
        raise SettingsError(
            f'The tracker {missing[0]!r} is not installed (pip install {missing[0]}). '
            f'Available: {", ".join(available) or "none"}.'
        )
    accelerator = Accelerator(
        mixed_precision=settings.machine.mixed_precision,
        log_with=list(settings.output.tracker) or None,
        project_dir=str(settings.output.output),
    )
    if accelerator.distributed_type not in (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU):
        raise SettingsError(f'{accelerator.distributed_type} is not supported. Choose plain data parallelism.')
    if accelerator.mixed_precision == 'fp16' and accelerator.device.type == 'cpu':
        raise SettingsError('fp16 needs a GPU. On a CPU choose --mixed-precision bf16 or no.')
    if not accelerator.is_main_process:
        warnings.simplefilter('ignore')  # all have the same to say
    if accelerator.mixed_precision == 'bf16' and accelerator.device.type == 'cpu' and cpu_emulates_bf16():
        warnings.warn(
            'This CPU has no arithmetic for bf16, which is many times slower than float32 here.', stacklevel=2
        )
    return accelerator


def find_data(settings: Settings, folder: Run, accelerator: Accelerator) -> tuple[Data, dict[str, Any]]:
    """Reads the dataset, checks the settings against it, looks at every image, and splits what can be used.

    Returns:
        The data, and what the run's directory keeps of it.

    Raises:
        DataError: It can't be trained on, holds bad images that are not to be skipped, or has changed.
        SettingsError: Settings don't go together, or with it.
        ModelError: timm has no such optimizer, or it doesn't take the arguments.
    """
    s = settings.data
    found = datasets_of_images.load(
        s.dataset,
        s.dataset_config,
        image_column=s.image_column,
        label_column=s.label_column,
        train_split=None if settings.output.eval_only else s.train_split,
        validation_split=s.validation_split,
        streaming=s.streaming,
    )
    check(settings, found)
    file = settings.optimization.class_importance
    importance = read_importance(file, found) if file else None
    kept = folder.data or dict(
        digest=found.digest(), class_names=found.class_names, class_importance=importance, bad_images=[]
    )
    if kept['digest'] != found.digest():
        raise DataError(
            f'{s.dataset} has changed since {folder.folder} was begun. Name another directory as the output.'
        )
    if kept.setdefault('class_importance') != importance:
        raise SettingsError(
            f'{file} has changed since {folder.folder} was begun. Name another directory as the output.'
        )
    files: dict[str, dict[int, bytes]] = {}
    if folder.data is None and s.scan:
        kept['bad_images'], files = look_at_all(settings, found, accelerator)
    for name in ('train', 'validation'):
        split = getattr(found, name)
        bad = [image['position'] for image in kept['bad_images'] if image['split'] == split.name and len(split)]
        if bad:
            found = replace(found, **{name: split.select(np.setdiff1d(np.arange(len(split)), bad))})
    if not found.has_validation:
        found = found.with_validation(s.validation_share, settings.optimization.seed)
        kept['validation_rows'] = found.validation.rows.tolist()
    if not len(found.validation) or not (len(found.train) or settings.output.eval_only):
        raise DataError(f'A split of {s.dataset} has no image that can be used.')
    train, validation = (
        {files[split.name][row] for row in split.rows.tolist()} if split.name in files else set()
        for split in (found.train, found.validation)
    )
    if train & validation:
        warnings.warn(
            f'{len(train & validation)} image files are both in the training and in the validation split: '
            f'the figures will be better than the model is.',
            stacklevel=2,
        )
    accelerator.print(
        f'{s.dataset}: {len(found.class_names)} classes, {len(found.train)} images to train on, '
        f'{len(found.validation)} to judge on'
    )
    return found, kept


def read_importance(file: Path, data: Data) -> list[float]:
    """Weights [C] of the classes in `metrics.map_at_100`, from a JSON object of a number > 0 for each class's name.

    Raises:
        SettingsError: It holds something else, or the classes are exclusive.
    """
    name = f'--class-importance {file}'
    if not data.multi_label:
        raise SettingsError(f'{name} weights classes in map_at_100, which exclusive classes do not have. Leave it out.')
    try:
        weights = json.loads(file.read_text(encoding='utf-8'))
    except (OSError, ValueError) as e:
        raise SettingsError(f'{name} can not be read as JSON ({e}).') from e
    if not isinstance(weights, dict):
        raise SettingsError(f'{name} holds a {type(weights).__name__} instead of an object: {{"class": weight, ...}}.')
    missing, unknown = sorted({*data.class_names} - {*weights}), sorted({*weights} - {*data.class_names})
    if missing or unknown:
        raise SettingsError(
            f'{name} does not name the classes of the dataset: {listed(missing)} missing, {listed(unknown)} unknown. '
            f'It has to have a weight for each class, and for nothing else.'
        )
    for key, weight in weights.items():
        if type(weight) not in (int, float) or not 0 < weight <= sys.float_info.max:  # NaN isn't, either
            raise SettingsError(f'{name} gives the class {key!r} the weight {weight!r} instead of a finite number > 0.')
    return [float(weights[key]) for key in data.class_names]


def listed(names: list[str]) -> str:
    """How many these are, and the first ones."""
    return f'{len(names)} ({", ".join(names[:6])}{", ..." if len(names) > 6 else ""})' if names else 'none'


def look_at_all(
    settings: Settings, data: Data, accelerator: Accelerator
) -> tuple[list[dict[str, Any]], dict[str, dict[int, bytes]]]:
    """Scans all splits, by all processes together, and says what is wrong with them.

    Returns:
        What is to be left out, and the sha256 of each file, by split and row.

    Raises:
        DataError: There are bad images, which are not to be skipped.
    """
    bad: list[dict[str, Any]] = []
    files: dict[str, dict[int, bytes]] = {}
    for split in (split for split in (data.train, data.validation) if len(split)):
        with progress_bar(f'Scanning {split.name}', len(split), accelerator) as bar:
            scanned = scan(
                split,
                SCAN_SIZE,
                workers=workers(settings, accelerator),
                processes=accelerator.num_processes,
                rank=accelerator.process_index,
                step=partial(bar.update, accelerator.num_processes),
            )
        bad += [dict(asdict(image), split=split.name) for image in gather_object(scanned.bad)]
        files[split.name] = {
            split.rows[position]: digest
            for part in gather_object([scanned.digests])
            for position, digest in part.items()
        }
    bad.sort(key=lambda image: (image['split'], image['position']))
    for image in bad:
        accelerator.print(f'Bad image: {image["name"]}: {image["reason"]}')
    if bad and settings.data.bad_images == 'error':
        raise DataError(
            f'{len(bad)} images can not be used; they are named above. Mend or remove them, or leave them '
            f'out with --bad-images skip.'
        )
    return bad, files


def check(settings: Settings, data: Data) -> None:
    """Looks for settings that don't go together, before any time is spent.

    Raises:
        SettingsError: There are such.
        ModelError: timm has no such optimizer, or it doesn't take the arguments.
    """
    s, figures = settings.optimization, figure_names(len(data.class_names), data.multi_label)
    if s.metric not in figures:
        raise SettingsError(f'--metric {s.metric} is none of this dataset: {", ".join(figures)}.')
    if s.recipe == 'probe' and settings.augmentation != Augmentation():
        raise SettingsError(
            'The recipe probe computes the features of each image once, so that nothing can be '
            'augmented. Choose the recipe transfer or full.'
        )
    make_optimizer(replace(s, layer_decay=None), torch.nn.Linear(1, 1))
    if s.balanced_sampling and settings.data.streaming:
        raise SettingsError('--balanced-sampling can not choose images of a stream. Use --class-weights instead.')


def build_model(
    settings: Settings, data: Data, accelerator: Accelerator, resumed: Checkpoint | None
) -> tuple[TimmModel, Transforms]:
    """The network, the same in every process, and what is done to its images."""
    s = settings.model
    seed_all(settings.optimization.seed)  # of the new classifier
    args = dict(s.model_args, drop_rate=s.drop_rate or None, drop_path_rate=s.drop_path_rate or None)
    whole = resumed is not None and 'model' in resumed.tensors  # then other weights needn't be had first
    model = models.build(
        s.model,
        None if settings.output.eval_only else len(data.class_names),
        s.pretrained and not whole,
        args,
        s.image_size,
    )
    transforms = Transforms(model, s.image_size)
    if settings.machine.gradient_checkpointing:
        model.set_grad_checkpointing(True)
    return model.to(accelerator.device, memory_format=memory_format(settings)), transforms


def prepare(
    name: str,
    settings: Settings,
    data: Data,
    model: TimmModel,
    transforms: Transforms,
    accelerator: Accelerator,
    importance: Sequence[float] | None = None,
) -> Phase:
    """What a phase trains, on what, towards what."""
    s, a = settings.optimization, settings.augmentation
    objective = Objective(
        len(data.class_names),
        data.multi_label,
        s.label_smoothing,
        balanced_class_weights(data.train.labels, len(data.class_names)) if s.class_weights else None,
    )
    plain = [Images(split, transforms.evaluation(), transforms.min_side) for split in (data.train, data.validation)]
    training: Images | Features
    validation: Images | Features
    if name == 'probe':
        module, kind = ProbeHead(model, settings.model.drop_rate), 'head'
        training, validation = (kept_features(images, settings, model, transforms, accelerator) for images in plain)
    else:
        module, kind, validation = model, 'model', plain[1]
        objective = replace(objective, mixup=a.mixup, cutmix=a.cutmix)
        transform = transforms.training(
            a.crop_scale,
            hflip=a.flip,
            vflip=a.vertical_flip,
            color_jitter=a.color_jitter,
            auto_augment=a.auto_augment,
            re_prob=a.random_erasing,
        )
        training = Images(data.train, transform, transforms.min_side_for(a.crop_scale), s.seed)
    judged_on = evaluation_loader(
        validation, data.validation, accelerator, s.batch_size, workers(settings, accelerator)
    )
    return Phase(name, settings, module, kind, training, judged_on, objective, importance)


def prepare_evaluation(
    settings: Settings,
    data: Data,
    model: TimmModel,
    transforms: Transforms,
    accelerator: Accelerator,
    importance: Sequence[float] | None = None,
) -> Phase:
    """The model as it is, of whose outputs those count that are the dataset's classes."""
    images = Images(data.validation, transforms.evaluation(), transforms.min_side)
    module = Selected(model, outputs_of(model, data.class_names)).to(accelerator.device)
    judged_on = evaluation_loader(
        images, data.validation, accelerator, settings.optimization.batch_size, workers(settings, accelerator)
    )
    return Phase(
        'evaluation',
        settings,
        module,
        'model',
        None,
        judged_on,
        Objective(len(data.class_names), data.multi_label),
        importance,
    )


def kept_features(
    images: Images, settings: Settings, model: TimmModel, transforms: Transforms, accelerator: Accelerator
) -> Features:
    """What the network makes of each image, from the cache; what is missing there is computed first."""
    context = context_of(
        without_classifier(model),
        dict(
            transforms.config,
            min_side=images.min_side,
            model=settings.model.model,
            precision=accelerator.mixed_precision,
        ),
    )
    cache = FeatureCache(settings.machine.feature_cache or cache_folder(), context)
    keys = digests(images.split, workers(settings, accelerator))
    throughput = Throughput(workers(settings, accelerator), accelerator.num_processes)
    with (
        progress_bar(f'Features of {images.split.name}', len(images.split), accelerator) as bar,
        models.evaluating(model),
        accelerator.autocast(),
    ):
        cache.fill(
            images,
            keys,
            partial(models.features_of, model),
            accelerator,
            throughput,
            workers(settings, accelerator),
            memory_format(settings),
            lambda count: bar.update(count * accelerator.num_processes),
        )
    if throughput.images:
        accelerator.print(f'Features of {images.split.name}: {throughput}')
    return Features(images.split, keys, cache)


def restore_best(phase: Phase, model: TimmModel, folder: Run, accelerator: Accelerator) -> None:
    """Gives the model the best weights so far, and keeps them whole, for the next phase changes what they rest on."""
    if accelerator.is_main_process:
        best = resume.read(folder.checkpoints.best)
        kind = 'model' if 'model' in best.tensors else 'head'
        resume.restore(model if kind == 'model' else phase.module, best.tensors[kind], best.path)
        resume.write(folder.checkpoints.best, {'model': model.state_dict()}, best.state)
    share_tensors(model.state_dict().values())


def finish(
    phase: Phase,
    progress: Progress,
    data: Data,
    model: TimmModel,
    transforms: Transforms,
    kept: dict[str, Any],
    folder: Run,
    accelerator: Accelerator,
) -> None:
    """Judges the best weights once more, and writes the model, its figures and the report."""
    settings, split = phase.settings, data.validation
    predictions = judge(phase, phase.module, data, accelerator)
    if not accelerator.is_main_process:
        return
    figures: dict[str, Any] = dict(
        summary(predictions, len(data.class_names), phase.importance),
        bad_images=len(kept['bad_images']),
        num_classes=len(data.class_names),
        model=settings.model.model,
        dataset=settings.data.dataset,
        split=f'{settings.data.validation_share:.0%} of {split.name}' if 'validation_rows' in kept else split.name,
    )
    if progress.best:
        figures.update({name: progress.best[name] for name in ('phase', 'epoch')})
    if not settings.output.eval_only:
        base = models.hub_id(model) if settings.model.pretrained else None
        models.save(folder.folder, model, transforms.config, data.class_names, data.multi_label, base)
    bad = [f'{image["name"]}: {image["reason"]}' for image in kept['bad_images']]
    folder.write_text(
        'report.html',
        results.page(
            predictions,
            split,
            data.class_names,
            [dict(row, best=row == progress.best) for row in progress.history],
            settings.flat(),
            figures,
            bad,
            folder.folder,
            accelerator.device,
            phase.importance,
        ),
    )
    folder.write_text(HISTORY_FILE, json.dumps(progress.history, indent=2))
    folder.write_text(METRICS_FILE, json.dumps(figures, indent=2))  # the last one: from here on it is finished
    if not settings.output.eval_only and is_xception(folder.folder):
        folder.write_text('README.md', card.render(folder.folder))
    print(f'\n{results.table(figures)}\nWritten: {folder.folder}, with report.html')
    if settings.output.push:
        push(settings.output.push, folder.folder)


def is_xception(folder: Path) -> bool:
    """Whether a directory is what this project has cards for."""
    return card.is_xception(card.read_json(folder / card.CONFIG_FILE))


def push(repo_id: str, folder: Path) -> None:
    """Publishes a finished run, with this project's model card or, for other networks, timm's."""
    if is_xception(folder):
        published = publish.publish(folder, repo_id, message='Publish a fine-tuned xception_paper')
        print(f'Published: {published.commit_url or "nothing to do, the repository holds all of this"}')
    else:
        model = timm.create_model(f'local-dir:{folder}', pretrained=True)
        config = {'label_names': model.pretrained_cfg['label_names']}
        timm.models.push_to_hf_hub(model, repo_id, model_config=config, safe_serialization=True)
        print(f'Published: {repo_id}')


def try_one_batch(
    settings: Settings, data: Data, model: TimmModel, transforms: Transforms, accelerator: Accelerator
) -> str:
    """What a step of the last phase costs, after the settings that it was made with; changes the model."""
    lines = [f'{name:24} {value}' for name, value in settings.flat().items()]
    s, throughput = settings.optimization, Throughput(0)
    if settings.output.eval_only or s.recipe == 'probe':
        images = Images(data.validation, transforms.evaluation(), transforms.min_side)
        batches = loader(images, InOrder(data.validation, s.batch_size))
        with models.evaluating(model), closing(throughput.timed(batches)) as feed:
            models.features_of(model, next(feed).to(accelerator.device, memory_format(settings)).inputs)
        passes = (len(data.train) + len(data.validation)) / (throughput.model or 1) / accelerator.num_processes
        lines += ['', f'One batch: {throughput}; about {passes / 60:.0f} minutes for one pass over all images']
    else:
        phase = prepare('everything', settings, data, model, transforms, accelerator)
        order = TrainingBatches(data.train, Batching(len(data.train), s.batch_size), s.seed)
        set_mode(model, s.batch_norm == 'frozen')

        def loss_of(batch: Batch) -> torch.Tensor:
            with accelerator.autocast():
                inputs, targets = phase.objective.prepare(batch.inputs, batch.labels)
                return phase.objective.losses(model(inputs), targets).mean()

        with closing(throughput.timed(loader(phase.training, order))) as feed:
            batch = next(feed).to(accelerator.device, memory_format(settings))
            footprint = measure(model, make_optimizer(s, model), partial(loss_of, batch), len(batch.inputs))
        lines += [
            '',
            f'One batch of {footprint.batch_size}: loss {footprint.loss:.4f}; {throughput}',
            f'Memory of a step: {footprint}; {footprint.total(bool(s.ema_decay)) / 1e6:.0f} MB in all, besides '
            f'the libraries',
        ]
    return '\n'.join([*lines, 'Dry run: nothing was written.'])


app = App(name='finetune.py', help=__doc__, version_flags=[])


@app.default
def main(settings: Settings) -> None:
    """Adapts a timm model to a dataset."""
    main_process = int(os.environ.get('RANK', '0')) == 0
    warnings.showwarning = show_warning
    try:
        run(settings)
    except (
        DataError,
        ImageError,
        ModelError,
        ResumeError,
        SettingsError,
        Diverged,
        card.CardError,
        publish.PublishError,
    ) as e:
        text = str(e)
        if isinstance(e, ImageError):  # of a worker's, only the last line is for the user
            text = text.strip().splitlines()[-1].rpartition('ImageError: ')[2]
        sys.exit(f'error: {text}' if main_process else 1)
    except (Interrupted, KeyboardInterrupt):
        file = settings.output.output / SETTINGS_FILE  # not there yet if nothing has been trained
        again = f', or: finetune.py --config {file}' if file.is_file() else ''
        print(f'\nStopped. The same command goes on from here{again}', file=sys.stderr)
        sys.exit(INTERRUPTED)


def show_warning(message: Warning | str, *args: Any, **kwargs: Any) -> None:
    print(f'warning: {message}', file=sys.stderr)


@app.meta.default
def launch(
    *tokens: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)], config: Path | None = None
) -> None:
    """Settings from the command line, before those of a YAML file, before those of the recipe.

    Args:
        config: A YAML file of settings, such as DIR/settings.yaml of another run.
    """
    found: dict[str, Any] = {}
    if config:
        try:
            found = yaml.safe_load(config.read_text(encoding='utf-8'))
        except (OSError, yaml.YAMLError) as e:
            sys.exit(f'error: {config} can not be read ({e}).')
        if not isinstance(found, dict):
            sys.exit(f'error: {config} holds no settings.')
    named = [
        token.partition('=')[2] or following
        for token, following in zip(tokens, [*tokens[1:], ''])
        if token.partition('=')[0] == '--recipe'
    ]
    recipe = (named or [found.get('recipe', Optimization.recipe)])[-1]
    values = {name: value for name, value in found.items() if value is not None and value != {} and value != []}
    presets = RECIPES[recipe]() if recipe in RECIPES else {}
    app.config = [
        cyclopts.config.Dict(values, source=str(config), use_commands_as_keys=False),
        cyclopts.config.Dict(presets, source=f'the recipe {recipe}', use_commands_as_keys=False),
    ]
    app(tokens)


if __name__ == '__main__':
    app.meta()
