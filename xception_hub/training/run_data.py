"""Reads the data of a run once, and saves what it finds: classes, bad images, rows of the validation split."""

import warnings
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from ..data.bad_images import BadImage, copies, scan
from ..data.data_settings import DataSettings
from ..data.labelled import Data, Split, load
from ..data.seen import Seen
from ..directory.write import label_names_of
from ..errors import DataError, ModelError, listed
from ..models.build import recorded_of
from .processes import Machine
from .run_directory import Run
from .settings import ModelSettings

SCAN_SIZE = 299  # pixels; large JPEGs are decoded at a fraction of their size that is at least twice this

Manifest = dict[str, Any]


def read(settings: DataSettings, model: ModelSettings, evaluation: bool) -> Data:
    """The dataset, its images opened and its labels understood as by the model that a run starts from.

    Raises:
        DataError: It cannot be trained on.
        ModelError: The model's classes exclude each other, and an image of the dataset has several.
    """
    recorded = recorded_of(model.model) if model.pretrained else {}
    data = load(replace(settings, grey_maximum=settings.grey_maximum or recorded.get('grey_maximum')), evaluation)
    names = label_names_of(recorded)
    if not names or not (evaluation or {*names} & {*data.class_names}):
        return data
    if recorded.get('problem_type') == 'multi_label_classification':
        return data.with_several_labels()
    if data.multi_label and evaluation:
        raise ModelError(
            f'The classes of {model.model} exclude each other (softmax), and the labels of {settings.dataset} do '
            f'not. Evaluate a model that was trained on such labels.'
        )
    return data


def seen_by(model: ModelSettings) -> Seen:
    """The images that a model has seen before a run starts from it."""
    return Seen.of_model(model.model) if model.pretrained else Seen()


def manifest_of(data: Data, run: Run) -> Manifest:
    """The manifest of a run that goes on, or a new one.

    Raises:
        DataError: The run began with other data.
    """
    manifest = run.manifest or dict(digest=data.digest(), class_names=data.class_names)
    if manifest.get('digest') != data.digest():
        start = f' To train its model further, pass --model local-dir:{run.directory}.' if run.finished else ''
        raise DataError(
            f'The dataset has changed since {run.directory} was begun: it has other images, labels or classes. '
            f'Name another --output.{start}'
        )
    return manifest


def scanned(data: Data, settings: DataSettings, manifest: Manifest, machine: Machine) -> Data:
    """The data without images that cannot be used, which the manifest of a new run gets to name.

    Raises:
        DataError: There are bad images, and they are not to be skipped.
    """
    looked_at: dict[str, Any] = {}
    if 'bad_images' not in manifest:
        manifest['bad_images'] = bad = []
        for name in [n for n in ('train', 'validation') if settings.scan and len(getattr(data, n))]:
            split = getattr(data, name)
            found, looked_at[name] = _scan(split, machine)
            bad += [dict(position=i.index, name=i.name, reason=i.reason, split=split.name) for i in found]
        bad.sort(key=lambda image: (image['split'], image['position']))
        for image in bad:
            machine.print(f'Bad image: {image["name"]}: {image["reason"]}')
        if bad and settings.bad_images == 'error':
            raise DataError(
                f'{len(bad)} images cannot be used; they are named above. Mend or remove them, or leave them out with '
                f'--bad-images skip.'
            )
    data = replace(data, **looked_at)
    for name in ('train', 'validation'):
        split = getattr(data, name)
        rows = [image['position'] for image in manifest['bad_images'] if image['split'] == split.name and len(split)]
        data = data.without(name, rows) if rows else data
    return data


def _scan(split: Split, machine: Machine) -> tuple[list[BadImage], Split]:
    """The bad images of a split, and the split with the digests of its images, by all processes together."""
    with machine.progress(f'Scanning {split.name}', len(split)) as bar:
        own = scan(
            split,
            SCAN_SIZE,
            workers=machine.workers,
            processes=machine.num_processes,
            rank=machine.process_index,
            step=partial(bar.update, machine.num_processes),
        )
    digests, pixels = np.full((2, len(split)), b'', object)
    for part in machine.gather_values([own]):
        digests[[*part.digests]], pixels[[*part.pixels]] = [*part.digests.values()], [*part.pixels.values()]
    return machine.gather_values(own.bad), replace(split, digests=digests, pixels=pixels)


def divided(
    data: Data, s: DataSettings, seed: int, evaluation: bool, seen: Seen, manifest: Manifest, machine: Machine
) -> Data:
    """The data with a validation split, and with as many training images as are wanted.

    Args:
        data: The images that can be used.
        s: The settings of the data.
        seed: Seed of the split.
        evaluation: Whether nothing is trained.
        seen: The images that the model has seen before.
        manifest: The manifest of the run, which gets to name the rows of the validation split.
        machine: Where it is printed.

    Raises:
        DataError: A split has no image, or all were seen.
    """
    is_scanned = any(len(split.digests) for split in (data.train, data.validation))
    if 'validation_rows' in manifest:  # of a run that goes on
        data = data.held_out(np.flatnonzero(np.isin(data.train.source_rows, manifest['validation_rows'])))
    elif s.folds or not data.has_validation:
        data = (
            data.with_fold(int(s.fold or 0), s.folds, seed) if s.folds else seen.share(data, s.validation_share, seed)
        )
        data = seen.without_trained(data, evaluation=True) if s.folds else data
        manifest['validation_rows'] = data.validation.source_rows.tolist()
    elif 'trained_before' in manifest:  # of a run that goes on, whose images are not scanned again
        data = data.without('validation', manifest['trained_before'])
    elif is_scanned:
        whole, data = data, seen.without_trained(data, evaluation)
        left_out = ~np.isin(whole.validation.source_rows, data.validation.source_rows)
        manifest['trained_before'] = np.flatnonzero(left_out).tolist()
    if s.max_train_samples and s.max_train_samples < len(data.train):
        order = np.random.default_rng(seed).permutation(len(data.train))
        before, all_images = data.train.labels, len(data.train)
        data = replace(data, train=data.train.select(np.sort(order[: s.max_train_samples])))
        data = data.noted(f'--max-train-samples takes {len(data.train)} of the {all_images} training images.')
        if lost := _classes_in(before) - _classes_in(data.train.labels):
            names = listed(data.class_names[number] for number in sorted(lost))
            warnings.warn(f'--max-train-samples leaves no image for training of the classes {names}.', stacklevel=2)
    if not len(data.validation) or not (len(data.train) or evaluation):
        raise DataError(f'A split of {s.dataset} has no image that can be used.')
    for text in copies(data):
        warnings.warn(text, stacklevel=2)
    for note in data.notes:
        machine.print(note)
    if seen.trained and not is_scanned:
        machine.print('Whether the model was trained on images of the validation split is not known without the scan.')
    machine.print(class_counts(data))
    machine.print(
        f'{s.dataset}: {len(data.class_names)} classes, {len(data.train)} images for training, '
        f'{len(data.validation)} for validation'
    )
    return data


def _classes_in(labels: np.ndarray) -> set[int]:  # [N] or [N, C]
    return {*np.flatnonzero(labels.any(0) if labels.ndim == 2 else np.bincount(labels)).tolist()}


def class_counts(data: Data, most: int = 20) -> str:
    """Returns a line for each class with its number of images per split; only the first and last of many classes."""
    splits = {name: getattr(data, name).labels for name in ('train', 'validation') if len(getattr(data, name))}
    counts = {
        name: labels.sum(0) if labels.ndim == 2 else np.bincount(labels, minlength=len(data.class_names))
        for name, labels in splits.items()
    }
    lines = [
        f'  {class_name}: ' + ', '.join(f'{count[number]} in {name}' for name, count in counts.items())
        for number, class_name in enumerate(data.class_names)
    ]
    if len(lines) > most:
        lines[most // 2 : -most // 2] = [f'  ... {len(lines) - most} more ...']
    return '\n'.join(lines)
