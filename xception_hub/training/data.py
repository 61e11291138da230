"""Datasets of labelled images: found, read and checked. Images stay undecoded, label names keep their order to the end.

    a name on the Hub | a folder of images | a table (.csv, .tsv, .json, .jsonl, .parquet) | a save_to_disk directory
        -> columns -> class names -> a validation split, the dataset's own or a stratified one
"""
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image
from PIL import Image as PillowImage

from .images import ImageError, decode

__all__ = ['BadImage', 'Data', 'DataError', 'bad_images', 'load', 'stratified']

TABLES = {'.csv': 'csv', '.tsv': 'csv', '.json': 'json', '.jsonl': 'json', '.parquet': 'parquet'}
IMAGE_COLUMNS = ('image', 'img', 'file_name', 'filename', 'file', 'path', 'image_path')
LABEL_COLUMNS = ('label', 'labels', 'class', 'class_name', 'category', 'target', 'fine_label')
VALIDATION_SPLITS = ('validation', 'val', 'valid', 'dev', 'test')
IMAGE_SUFFIXES = frozenset(suffix for suffix, format in PillowImage.registered_extensions().items()
                           if format in PillowImage.OPEN)


class DataError(ValueError):
    """A dataset can't be trained on; the message says which, why, and what to do."""


@dataclass(frozen=True)
class Data:
    """What a model is trained and judged on.

    Attributes:
        train: With the columns `image`, a file or its content, and `label`, a class number.
        validation: The same, of other rows.
        class_names: In the order of the numbers.
        validation_rows: Rows of the training split that became the validation split; None if the dataset has its own.
    """

    train: Dataset
    validation: Dataset
    class_names: list[str]
    validation_rows: list[int] | None


def load(
        dataset: str, config: str | None = None, *, image_column: str | None = None, label_column: str | None = None,
        train_split: str = 'train', validation_split: str | None = None, validation_share: float = 0.2, seed: int = 0,
) -> Data:
    """Reads a dataset; the same arguments give the same rows in the same order in every process.

    Args:
        dataset: A name on the Hub, or a path: of a folder with a folder of images for each class (or, above these, one
            for each split), of a table with a column of paths or images, or of what `save_to_disk` wrote.
        config: Of a dataset on the Hub.
        image_column: If there is more than one that could be it, or none.
        label_column: The same.
        train_split: Name of the split that is trained on.
        validation_split: Of the split that is judged on. By default the first of `VALIDATION_SPLITS` that there is, or
            else a part of the training split that has about the same share of each class.
        validation_share: Of that part, in (0, 1).
        seed: Of that part.

    Raises:
        DataError: It is missing or empty, its columns can't be told, or its labels can't be trained on.
    """
    splits = _read(dataset, config)
    if train_split not in splits:
        raise DataError(f'{dataset} has no split {train_split!r}, but {", ".join(splits)}. Name one as the training '
                        f'split.')
    own = validation_split or next((name for name in VALIDATION_SPLITS if name in splits and name != train_split), None)
    if own is not None and own not in splits:
        raise DataError(f'{dataset} has no split {own!r}, but {", ".join(splits)}.')
    names = [train_split] + ([own] if own else [])
    for name in names:
        if not len(splits[name]):
            raise DataError(f'The split {name!r} of {dataset} is empty.')
    image, label = _columns(splits[train_split].features, dataset, image_column, label_column)
    chosen = {name: _two_columns(splits[name], name, dataset, image, label) for name in names}
    class_names = _class_names(chosen, dataset, label)
    encoded = {name: _encoded(split, class_names, name, dataset) for name, split in chosen.items()}
    if own:
        return Data(encoded[train_split], encoded[own], class_names, None)
    rows = stratified(encoded[train_split]['label'], class_names, validation_share, seed)
    others = np.setdiff1d(np.arange(len(encoded[train_split])), rows)
    return Data(encoded[train_split].select(others), encoded[train_split].select(rows), class_names, rows)


def _read(dataset: str, config: str | None) -> DatasetDict:
    path = Path(dataset)
    if path.is_dir():
        if (path / 'state.json').is_file() or (path / 'dataset_dict.json').is_file():
            found = datasets.load_from_disk(dataset)
        else:
            return _image_folder(path)
    elif path.is_file():
        if path.suffix.lower() not in TABLES:
            raise DataError(f'{dataset} ends in {path.suffix!r}; a table ends in one of {", ".join(TABLES)}.')
        options = {'sep': '\t'} if path.suffix.lower() == '.tsv' else {}
        found = datasets.load_dataset(TABLES[path.suffix.lower()], data_files=str(path), **options)
        found = DatasetDict({name: _with_paths(split, path.parent) for name, split in found.items()})
    else:
        try:
            found = datasets.load_dataset(dataset, config)
        except Exception as e:  # of the dataset's library, of the Hub's and of the network: no error in common
            raise DataError(
                f'{dataset} is neither a path here nor a dataset that can be had from the Hub ({e}).') from e
    return found if isinstance(found, DatasetDict) else DatasetDict(train=found)


def _image_folder(folder: Path) -> DatasetDict:
    """A folder for each class, in the order of their names as strings; or such folders below one for each split."""
    inside = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith('.'))
    splits = [path for path in inside if path.name in ('train', *VALIDATION_SPLITS)]
    roots = {path.name: path for path in splits} if splits and splits == inside else {'train': folder}
    found = {}
    for name, root in roots.items():
        classes = sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith('.'))
        if not classes:
            raise DataError(f'{root} has no folders, of which there should be one for each class.')
        rows: dict[str, list[Any]] = dict(image=[], label=[])
        for class_name in classes:
            for path in sorted((root / class_name).rglob('*')):
                if path.suffix.lower() in IMAGE_SUFFIXES:
                    rows['image'].append({'path': str(path), 'bytes': None})
                    rows['label'].append(class_name)
        features = Features(image=Image(decode=False), label=datasets.Value('string'))
        found[name] = Dataset.from_dict(rows, features=features)
    return DatasetDict(found)


def _with_paths(table: Dataset, folder: Path) -> Dataset:
    """Paths in a table are relative to it."""
    for column in IMAGE_COLUMNS:
        feature = table.features.get(column)
        if isinstance(feature, datasets.Value) and 'string' in feature.dtype:
            paths = [{'path': str(folder / path), 'bytes': None} if path else None for path in table[column]]
            rest = table.remove_columns(column)
            return rest.add_column(column, paths, feature=Image(decode=False)).select_columns(table.column_names)
    return table


def _columns(features: Features, dataset: str, image: str | None, label: str | None) -> tuple[str, str]:
    found = []
    for kind, given, known, feature in (
            ('image', image, IMAGE_COLUMNS, Image), ('label', label, LABEL_COLUMNS, ClassLabel)):
        by_type = [name for name, value in features.items() if isinstance(value, feature)]
        by_name = [name for name in known if name in features]
        choices = by_type if len(by_type) == 1 else by_name
        if given is not None and given not in features:
            raise DataError(f'{dataset} has no column {given!r}, but {", ".join(features)}.')
        if given is None and not choices:
            raise DataError(f'No column of {dataset} can be told to be the {kind}: it has {", ".join(features)}. '
                            f'Name one as the {kind} column.')
        found.append(given or choices[0])
    return found[0], found[1]


def _two_columns(split: Dataset, name: str, dataset: str, image: str, label: str) -> Dataset:
    missing = [column for column in (image, label) if column not in split.features]
    if missing:
        raise DataError(f'The split {name!r} of {dataset} has no column {missing[0]!r}.')
    split = split.select_columns([image, label])
    split = split.rename_columns({old: new for old, new in ((image, 'image'), (label, 'label')) if old != new})
    return split.cast_column('image', Image(decode=False))


def _class_names(splits: dict[str, Dataset], dataset: str, column: str) -> list[str]:
    """The dataset's own, in its own order; else those that occur, sorted, numbers as numbers."""
    declared = {name: split.features['label'].names for name, split in splits.items()
                if isinstance(split.features['label'], ClassLabel)}
    if declared:
        first, *others = declared.values()
        if any(names != first for names in others):
            raise DataError(f'The splits of {dataset} name their classes differently: '
                            f'{"; ".join(f"{name}: {names[:6]}" for name, names in declared.items())}.')
        class_names = list(first)
    else:
        values = {name: {value for value in split['label'] if value is not None} for name, split in splits.items()}
        train, *others = values.values()
        if not all(isinstance(value, (str, int)) for value in train):
            raise DataError(f'The column {column!r} of {dataset} holds {type(next(iter(train))).__name__} instead of '
                            f'class names or numbers.')
        unknown = sorted({str(value) for other in others for value in other - train})
        if unknown:
            raise DataError(f'{dataset} has classes that are not in its training split: {", ".join(unknown[:6])}.')
        class_names = [str(value) for value in sorted(train)]
    if len(class_names) < 2:
        raise DataError(f'{dataset} has {len(class_names)} class ({", ".join(class_names) or "none"}); '
                        f'there is nothing to learn from less than two.')
    return class_names


def _encoded(split: Dataset, class_names: list[str], name: str, dataset: str) -> Dataset:
    """Labels as numbers of the class names."""
    labels, feature = split['label'], split.features['label']
    count = len(class_names)
    missing = [i for i, value in enumerate(labels) if value is None or (isinstance(feature, ClassLabel) and (
        not 0 <= value < count))]
    if missing:
        raise DataError(f'{len(missing)} rows of the split {name!r} of {dataset} have no label, the first of them row '
                        f'{missing[0]}. Remove them, or label them.')
    if isinstance(feature, ClassLabel):
        return split
    numbers = {class_name: number for number, class_name in enumerate(class_names)}
    values = [numbers[str(value)] for value in labels]
    return split.remove_columns('label').add_column('label', values, feature=ClassLabel(names=class_names))


def stratified(labels: Sequence[int], class_names: Sequence[str], share: float, seed: int) -> list[int]:
    """Rows of a validation split with about the same share of each class, and at least one of each.

    Args:
        labels: Of all rows.
        class_names: For the warning about classes of a single member, which stay in the training split.
        share: In (0, 1).
        seed: The same seed gives the same rows, on any machine and in any process.

    Returns:
        Row numbers in rising order.
    """
    if not 0 < share < 1:
        raise DataError(f'The share of the validation split is {share}; it must lie between 0 and 1.')
    generator = np.random.default_rng(seed)
    values = np.asarray(labels)
    rows: list[int] = []
    alone, empty = [], []
    for label, name in enumerate(class_names):
        members = np.flatnonzero(values == label)
        if not len(members):
            empty.append(name)
        elif len(members) == 1:
            alone.append(name)
        else:
            count = min(max(round(share * len(members)), 1), len(members) - 1)
            rows += generator.permutation(members)[:count].tolist()
    if alone:
        warnings.warn(f'{len(alone)} classes have a single image, which is trained on and never judged: '
                      f'{", ".join(alone[:6])}.', stacklevel=2)
    if empty:
        warnings.warn(f'{len(empty)} classes have no image: {", ".join(empty[:6])}.', stacklevel=2)
    if not rows:
        raise DataError('Every class has a single image, so that none can be judged on. Name a validation split.')
    return sorted(rows)


@dataclass(frozen=True)
class BadImage:
    """An image that can't be used.

    Attributes:
        row: In its split.
        name: Its path, if it has one.
        reason: As `images.decode` gives it.
    """

    row: int
    name: str
    reason: str


def bad_images(split: Dataset, needed: int | None = None) -> Iterator[BadImage]:
    """Decodes every image of a split, completely, and names those that can't be.

    Args:
        split: Of `Data`.
        needed: As in `images.decode`.
    """
    for row, cell in enumerate(split['image']):
        cell = cell or {}
        name = cell.get('path') or f'row {row}'
        try:
            if not cell:
                raise ImageError('no image in this row')
            decode(cell['bytes'] if cell.get('bytes') is not None else Path(cell['path']), needed)
        except ImageError as e:
            yield BadImage(row, name, str(e))
