"""What a run finds in its data, once, and keeps in its directory: classes, bad images, rows of the validation split."""

import warnings
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from ..data import dataset
from ..data.dataset import Data
from ..data.scan import scan
from ..errors import DataError, SettingsError
from .batches import check_balanced
from .metrics import figure_names
from .processes import Machine
from .run_directory import Run
from .settings import Augmentation, Settings

SCAN_SIZE = 299  # pixels; large JPEGs are decoded at a fraction of their size that is at least twice this

Manifest = dict[str, Any]


def find_data(settings: Settings, run: Run, machine: Machine) -> tuple[Data, Manifest]:
    """Reads the dataset, checks the settings against it, decodes every image, and splits what can be used.

    Returns:
        The data, and the manifest for the run's directory.

    Raises:
        DataError: The data cannot be trained on, holds bad images that are not to be skipped, or has changed.
        SettingsError: Settings do not go together, or with the data.
    """
    s = settings.data
    found = _load(settings)
    _check(settings, found)
    manifest = run.manifest or dict(digest=found.digest(), class_names=found.class_names, bad_images=[])
    _check_unchanged(found, manifest, s.dataset, run)
    digests: dict[str, dict[int, bytes]] = {}
    if run.manifest is None and s.scan:
        manifest['bad_images'], digests = _scan_all(settings, found, machine)
    for name in ('train', 'validation'):
        split = getattr(found, name)
        bad = [image['position'] for image in manifest['bad_images'] if image['split'] == split.name and len(split)]
        if bad:
            found = replace(found, **{name: split.select(np.setdiff1d(np.arange(len(split)), bad))})
    if not found.has_validation:
        found = found.with_validation(s.validation_share, settings.optimization.seed)
        manifest['validation_rows'] = found.validation.source_rows.tolist()
    if s.max_train_samples and s.max_train_samples < len(found.train):
        order = np.random.default_rng(settings.optimization.seed).permutation(len(found.train))
        found = replace(found, train=found.train.select(np.sort(order[: s.max_train_samples])))
    if not len(found.validation) or not (len(found.train) or settings.output.eval_only):
        raise DataError(f'A split of {s.dataset} has no image that can be used.')
    _warn_of_leaks(found, digests)
    for note in found.notes:
        machine.print(note)
    machine.print(class_counts(found))
    machine.print(
        f'{s.dataset}: {len(found.class_names)} classes, {len(found.train)} images for training, '
        f'{len(found.validation)} for validation'
    )
    return found, manifest


def check_finished(settings: Settings, run: Run, machine: Machine) -> None:
    """Raises a DataError if a finished run's data are others by now; says so where they cannot be read any more."""
    try:
        found = _load(settings)
    except DataError as e:
        machine.print(f'Whether the data have changed since the run cannot be told: {e}')
        return
    _check_unchanged(found, run.manifest or {}, settings.data.dataset, run)


def _load(settings: Settings) -> Data:
    s = settings.data
    return dataset.load(
        s.dataset,
        s.dataset_config,
        image_column=s.image_column,
        label_column=s.label_column,
        image_folder=s.image_folder,
        train_split=None if settings.output.eval_only else s.train_split,
        validation_split=s.validation_split,
        validation_table=s.validation_table,
        split_column=s.split_column,
        label_separator=s.label_separator,
        unlabelled=s.unlabelled,
        grey_maximum=s.grey_maximum,
        folders=s.folders,
        skip_empty=s.empty_classes == 'skip',
        streaming=s.streaming,
    )


def _check_unchanged(found: Data, manifest: Manifest, dataset: str, run: Run) -> None:
    if manifest.get('digest') != found.digest():
        start = f' To go on from what was learnt: --model local-dir:{run.directory}.' if run.finished else ''
        raise DataError(
            f'{dataset} has changed since {run.directory} was begun: it has other images, labels or classes. '
            f'Name another --output.{start}'
        )


def class_counts(data: Data, most: int = 20) -> str:
    """A line for each class, with its number of images in each split; of many classes the first and the last."""
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


def _check(settings: Settings, data: Data) -> None:
    """Raises an error for settings that do not go together, before any time is spent."""
    s, figures = settings.optimization, figure_names(len(data.class_names), data.multi_label)
    output = settings.output
    if output.restrict_classes and not output.eval_only:
        raise SettingsError('--restrict-classes belongs to --eval-only: a training knows no other classes.')
    if not output.eval_only and s.metric not in figures:
        raise SettingsError(f'--metric {s.metric} is none of this dataset: {", ".join(figures)}.')
    if s.recipe == 'probe' and settings.augmentation != Augmentation():
        raise SettingsError(
            'The recipe probe computes the features of each image once, so that nothing can be augmented. Choose the '
            'recipe transfer or full.'
        )
    check_balanced(s.balanced_sampling, settings.data.streaming)


def _scan_all(
    settings: Settings, data: Data, machine: Machine
) -> tuple[list[dict[str, Any]], dict[str, dict[int, bytes]]]:
    """Scans all splits, by all processes together, and names what is wrong with them.

    Returns:
        The bad images, and the sha256 of each file, by split and row.

    Raises:
        DataError: There are bad images, and they are not to be skipped.
    """
    bad: list[dict[str, Any]] = []
    digests: dict[str, dict[int, bytes]] = {}
    for split in (split for split in (data.train, data.validation) if len(split)):
        with machine.progress(f'Scanning {split.name}', len(split)) as bar:
            scanned = scan(
                split,
                SCAN_SIZE,
                workers=machine.workers,
                processes=machine.processes,
                rank=machine.rank,
                step=partial(bar.update, machine.processes),
            )
        bad += [
            dict(position=image.index, name=image.name, reason=image.reason, split=split.name)
            for image in machine.gather(scanned.bad)
        ]
        digests[split.name] = {
            split.source_rows[index]: digest
            for part in machine.gather([scanned.digests])
            for index, digest in part.items()
        }
    bad.sort(key=lambda image: (image['split'], image['position']))
    for image in bad:
        machine.print(f'Bad image: {image["name"]}: {image["reason"]}')
    if bad and settings.data.bad_images == 'error':
        raise DataError(
            f'{len(bad)} images cannot be used; they are named above. Mend or remove them, or leave them out with '
            f'--bad-images skip.'
        )
    return bad, digests


def _warn_of_leaks(data: Data, digests: dict[str, dict[int, bytes]]) -> None:
    train, validation = (
        {digests[split.name][row] for row in split.source_rows.tolist()} if split.name in digests else set()
        for split in (data.train, data.validation)
    )
    if train & validation:
        warnings.warn(
            f'{len(train & validation)} image files are in the training and in the validation split: the figures '
            f'will be better than the model is.',
            stacklevel=3,
        )
