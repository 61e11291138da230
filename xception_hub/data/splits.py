"""Training and validation: the dataset's own splits, a column's, or a part with about the same share of each class.

Ours, because that of `datasets` fails on a class with one image, and knows neither multi-label nor groups.
"""

import shlex
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from datasets import Dataset, concatenate_datasets

from ..errors import DataError, listed
from .columns import cells, distinct, existing, meanings
from .data_settings import DataSettings
from .known_names import SPLIT_COLUMNS, SPLIT_FLAGS, UNCLEAR_FLAGS, VALIDATION_SPLITS, plain, split_of
from .table import Table

BOOLEANS = {'false': 0, '0': 0, '0.0': 0, 'true': 1, '1': 1, '1.0': 1}


def divided(splits: dict[str, Table], settings: DataSettings) -> dict[str, Table]:
    """The splits that a column names, if the dataset has only one itself."""
    column = settings.split_column
    table, *others = splits.values()
    rows, dataset = table.rows, table.dataset
    if column == '' or (column is None and others):
        return splits
    known = {*SPLIT_COLUMNS, *SPLIT_FLAGS}
    if column is None:
        by_cells = rows.features if isinstance(rows, Dataset) else ()
        found = [n for n in rows.features if plain(n) in known] or [n for n in by_cells if _names_splits(rows, n)]
        if not found:
            return splits
    chosen = existing(column or found[0], rows.features, dataset, 'split')
    if not isinstance(rows, Dataset):
        raise DataError(
            f'{dataset} is a stream, which its column {chosen!r} cannot divide. Leave out --streaming, or ignore the '
            f'column with --split-column "".'
        )
    codes, raw = distinct(cells(rows, chosen))
    raw = [*raw, None] if (codes < 0).any() else raw  # the last one is that of no cell
    values = ['none' if value in (None, '') else str(value) for value in raw]
    if (flags := SPLIT_FLAGS.get(plain(chosen))) and {value.lower() for value in values} <= {*BOOLEANS}:
        values = [flags[BOOLEANS[value.lower()]] for value in values]
    is_fold = settings.fold in values and not settings.folds
    is_clear = plain(chosen) in known - {*UNCLEAR_FLAGS} and (is_fold or all(map(split_of, values)))
    if column is None and not is_clear:
        unknown = sorted(value for value in values if not split_of(value) and value != 'none')
        fold = f', or --fold {shlex.quote(unknown[0])} for a fold' if unknown else ''
        raise DataError(
            f'The column {chosen!r} of {dataset} may name the splits: {listed(sorted({*values}))}. If it does: '
            f'--split-column {shlex.quote(chosen)}, with --train-split and --validation-split if these are others than '
            f'train and validation{fold}. If it does not: --split-column "".'
        )
    of_row = np.array(values, object)[codes]
    return {value: replace(table, rows=rows.select(np.flatnonzero(of_row == value))) for value in dict.fromkeys(values)}


def _names_splits(rows: Dataset, column: str) -> bool:
    """Whether all cells of a column are names of splits, of which one is that of training."""
    meant = meanings(rows, column, split_of)
    return 'train' in meant and len(meant) > 1


def folded(splits: dict[str, Table], settings: DataSettings) -> tuple[dict[str, Table], DataSettings]:
    """The fold that validates, and all others as one training split."""
    fold, dataset = settings.fold, next(iter(splits.values())).dataset
    if fold is None or settings.folds:
        return splits, settings
    others = [table for name, table in splits.items() if name != fold and split_of(name) not in ('test', 'prediction')]
    if fold not in splits or not others:
        raise DataError(
            f'{dataset} has no fold {fold!r} beside others. It has: {listed(splits, 20)}. Pass the column of folds as '
            f'--split-column, or let them be made: --fold 1 --folds 5.'
        )
    try:
        rows = concatenate_datasets([table.rows for table in others])
    except ValueError as e:
        raise DataError(f'The folds of {dataset} have columns that do not fit together ({e}).') from e
    places = tuple(dict.fromkeys(place for table in others for place in table.folders))
    train = replace(others[0], split='train', rows=rows, folders=places)
    return {'train': train, fold: splits[fold]}, replace(settings, train_split='train', validation_split=fold)


def choose(splits: Mapping[str, Table], settings: DataSettings, evaluation: bool) -> tuple[str | None, str | None]:
    """The names of the splits for training and for validation; None for none."""
    dataset = next(iter(splits.values())).dataset
    train = None if evaluation else _named(settings.train_split, splits)
    own = _named(settings.validation_split, splits) if settings.validation_split else None
    if own is None and (settings.validation_split is None or evaluation):
        others = [name for name in splits if name != train]
        by_meaning = [name for meaning in ('validation', 'test') for name in others if split_of(name) == meaning]
        own = next(iter([name for name in VALIDATION_SPLITS if name in others] or by_meaning), None)
    if train is None and own is None and len(splits) == 1:
        own = next(iter(splits))
    if train is None and own is None:
        raise DataError(f'{dataset} has the splits {listed(splits)}. Pass one as --validation-split to evaluate on it.')
    for name, option in ((train, '--train-split'), (own, '--validation-split')):
        if name and name not in splits:
            raise DataError(f'{dataset} has no split {name!r}. It has: {listed(splits, 20)}. Pass one as {option}.')
    if train is not None and train == own:
        raise DataError(f'The split {own!r} of {dataset} cannot be used for both training and validation.')
    return train, own


def beside(
    splits: dict[str, Table], others: dict[str, Table], settings: DataSettings, evaluation: bool
) -> tuple[dict[str, Table], DataSettings]:
    """The training split of a dataset, and the validation split of another."""
    wanted = settings.validation_split
    name = _named(wanted, others) if wanted else next(iter(others))
    if name not in others or (len(others) > 1 and not wanted):
        raise DataError(
            f'{settings.validation_table} has the splits {listed(others)}. Pass one of these as --validation-split.'
        )
    train = None if evaluation else _named(settings.train_split, splits)
    chosen = {train: splits[train]} if train in splits else {} if evaluation else splits
    return {**chosen, 'validation': others[name]}, replace(settings, validation_split='validation')


def _named(name: str, splits: Mapping[str, Any]) -> str:
    """The split of this name, or the only one whose name means the same: Training for train."""
    same = [split for split in splits if split_of(name) and split_of(split) == split_of(name)]
    return same[0] if name not in splits and len(same) == 1 else name


# A share of the images


def stratified(
    labels: Sequence[int] | np.ndarray,
    class_names: Sequence[str],
    share: float,
    seed: int,
    groups: Sequence[int] | np.ndarray = (),
) -> list[int]:
    """Positions of a validation split with about the same share of each class.

    Args:
        labels: Labels of all images: [N] class numbers, of which each with two images or more is in both parts; or
            [N, C] of 0 and 1, of which the rarest class of each image counts.
        class_names: For the warning about classes that are missing in one of the parts.
        share: Share of the images, in (0, 1).
        seed: Seed; it decides the rows on any machine and in any process.
        groups: [N] number of each image's group, which is in one of the parts as a whole; empty without groups.

    Returns:
        In rising order.
    """
    if not 0 < share < 1:
        raise DataError(f'The share of the validation split is {share}; it must lie between 0 and 1.')
    generator = np.random.default_rng(seed)
    labels = np.asarray(labels)
    if len(groups):
        names, numbers, sizes = np.unique(groups, return_inverse=True, return_counts=True)
        if len(names) < 2:
            raise DataError('All images are of one group, so that none is left for validation: --group-column "".')
        is_held = _dealt(labels, numbers, np.array([share, 1 - share]), generator) == 0
        held_out = np.flatnonzero(is_held if is_held.any() else numbers == sizes.argmin()).tolist()
        warn_of_missing(labels, held_out, class_names)
        return held_out
    values = _strata(labels)
    indices: list[int] = []
    for label, count in zip(*np.unique(values, return_counts=True)):
        if count > 1:
            held = min(max(round(share * count), 1), count - 1)
            indices += generator.permutation(np.flatnonzero(values == label))[:held].tolist()
    if not indices:
        raise DataError('Every class has a single image, so that none is left for validation. Name a validation split.')
    indices.sort()
    warn_of_missing(labels, indices, class_names)
    return indices


def folds(labels: np.ndarray, count: int, seed: int, groups: Sequence[int] | np.ndarray = ()) -> np.ndarray:
    """[N], the fold of each image, from 0: about the same share of each class in all of them.

    Labels, seed and groups are those of `stratified`.
    """
    generator = np.random.default_rng(seed)
    found = np.empty(len(labels), np.int64)
    if len(groups):
        found = _dealt(labels, np.asarray(groups), np.full(count, 1 / count), generator)
    else:
        strata, first = _strata(labels), 0
        for stratum in np.unique(strata):
            own = generator.permutation(np.flatnonzero(strata == stratum))
            found[own] = (first + np.arange(len(own))) % count
            first += len(own)
    if len(np.unique(found)) < count:
        raise DataError(f'There are fewer images or groups than --folds {count}. Name fewer folds.')
    return found


def _dealt(labels: np.ndarray, groups: np.ndarray, shares: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """[N], the part of each image: whole groups, so that each part has about its share of each class."""
    one_hot = labels if labels.ndim == 2 else np.eye(labels.max() + 1, dtype=np.int64)[labels]
    one_hot = np.column_stack([one_hot, ~one_hot.any(1)])  # no class at all is one more
    order = np.argsort(groups, kind='stable')
    members = np.split(order, np.flatnonzero(np.diff(groups[order])) + 1)
    goal, weights = np.outer(shares, one_hot.sum(0)), 1 / one_hot.sum(0).clip(1)
    held, parts = np.zeros(goal.shape), np.empty(len(groups), np.int64)
    # large groups first, those of one size in a random order
    for group in sorted((members[number] for number in generator.permutation(len(members))), key=len, reverse=True):
        more = one_hot[group].sum(0)
        part = int(((2 * (held - goal) + more) * more @ weights).argmin())  # what the squares of the error grow by
        held[part] += more
        parts[group] = part
    return parts


def _strata(labels: np.ndarray) -> np.ndarray:
    """[N] to stratify by: the class, or in multi-label the rarest of an image's classes; -1 for none."""
    if labels.ndim == 1:
        return labels
    counts = labels.sum(0)
    rarest = np.where(labels, counts, counts.max() + 1).argmin(1)
    return np.where(labels.any(1), rarest, -1)


def warn_of_missing(labels: np.ndarray, held_out: Sequence[int], class_names: Sequence[str]) -> None:
    """Warns of classes that are missing in one of the parts."""
    total, held = (
        part.sum(0) if part.ndim == 2 else np.bincount(part, minlength=len(class_names))
        for part in (labels, labels[held_out])
    )
    for found, meaning in (
        (total == 0, 'have no image'),
        ((total == 1) & (held == 0), 'have a single image, which is in training only'),
        ((total > 1) & (held == 0), 'are in training only, because they occur with rarer ones only'),
        ((total > 0) & (held == total), 'are in validation only, because they occur with rarer ones only'),
    ):
        if found.any():
            names = listed(class_names[label] for label in np.flatnonzero(found)[:6])
            warnings.warn(f'{found.sum()} classes {meaning}: {names}.', stacklevel=3)
