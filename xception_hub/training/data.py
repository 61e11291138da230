"""Datasets of labelled images: found, read and split. Images stay undecoded, label names keep their order to the end.

    a name on the Hub | a folder of images | a table (.csv, .tsv, .json, .jsonl, .parquet) | a save_to_disk directory
        -> columns -> class names -> a validation split, the dataset's own or a stratified one

Any of them can be streamed: then only the labels are read beforehand, and images come in the order of the dataset.
"""
import hashlib
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import fsspec
import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, IterableDataset, IterableDatasetDict
from PIL import Image as PillowImage

from .images import ImageError

__all__ = ['Cell', 'Data', 'DataError', 'Split', 'content', 'load', 'stratified']

TABLES = {'.csv': 'csv', '.tsv': 'csv', '.json': 'json', '.jsonl': 'json', '.parquet': 'parquet'}
IMAGE_COLUMNS = ('image', 'img', 'file_name', 'filename', 'file', 'path', 'image_path')
LABEL_COLUMNS = ('label', 'labels', 'class', 'class_name', 'category', 'target', 'fine_label')
VALIDATION_SPLITS = ('validation', 'val', 'valid', 'dev', 'test')
IMAGE_SUFFIXES = frozenset(suffix for suffix, format in PillowImage.registered_extensions().items()
                           if format in PillowImage.OPEN)

# An image file: {'path': ..., 'bytes': ...}, of which one may be None; empty where a row has no image.
Cell = dict[str, Any]
Splits = dict[str, Dataset | IterableDataset]


class DataError(ValueError):
    """A dataset can't be trained on; the message says which, why, and what to do."""


@dataclass(frozen=True)
class Split:
    """Labelled images, by position.

    Attributes:
        name: In the dataset.
        source: With a column `image` of `Cell`s.
        rows: [N], numbers of the rows of the source, rising.
        labels: [N] class numbers, or [N, C] of 0 and 1 in multi-label.
    """

    name: str
    source: Dataset | IterableDataset
    rows: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def streamed(self) -> bool:
        """Whether images can only be had in order, by `cells`."""
        return isinstance(self.source, IterableDataset)

    def cell(self, position: int) -> Cell:
        """The image file at a position."""
        return self.source[int(self.rows[position])]['image'] or {}

    def cells(self) -> Iterator[tuple[int, Cell]]:
        """All positions with their image files, in order."""
        if not self.streamed:
            yield from ((position, self.cell(position)) for position in range(len(self)))
            return
        position = 0
        for row, columns in enumerate(self.source):
            if position == len(self):
                return
            if row == self.rows[position]:
                yield position, columns['image'] or {}
                position += 1

    def select(self, positions: Sequence[int] | np.ndarray) -> 'Split':
        """A part of it; the positions must rise."""
        chosen = np.asarray(positions, np.int64)
        return replace(self, rows=self.rows[chosen], labels=self.labels[chosen])

    def cell_name(self, position: int, cell: Cell) -> str:
        """What an image is called in messages: its path, or its row."""
        return cell.get('path') or f'row {self.rows[position]} of the split {self.name!r}'


@dataclass(frozen=True)
class Data:
    """What a model is trained and judged on.

    Attributes:
        train: Empty if only an evaluation was asked for.
        validation: Empty until `with_validation` makes one, if the dataset has none of its own.
        class_names: In the order of the numbers.
        multi_label: Whether an image may have any number of labels.
        has_validation: Whether there is one by now.
    """

    train: Split
    validation: Split
    class_names: list[str]
    multi_label: bool
    has_validation: bool

    def digest(self) -> str:
        """Of classes and labels, by which a run that goes on sees that they are still the same."""
        digest = hashlib.sha256(repr(self.class_names).encode())
        for split in (self.train, self.validation):
            digest.update(f'{split.name} {split.labels.shape}'.encode() + split.labels.tobytes())
        return digest.hexdigest()

    def with_validation(self, share: float, seed: int) -> 'Data':
        """Takes a part of the training split for validation, the same in every process; see `stratified`."""
        part = stratified(_groups(self.train.labels), self.class_names, share, seed)
        rest = np.setdiff1d(np.arange(len(self.train)), part)
        return replace(self, train=self.train.select(rest), validation=self.train.select(part), has_validation=True)


def content(cell: Cell) -> bytes:
    """The bytes of an image file, wherever it is.

    Raises:
        ImageError: There is none, or it can't be read.
    """
    if cell.get('bytes') is not None:
        return cell['bytes']
    path = cell.get('path')
    if not path:
        raise ImageError('no image in this row')
    try:
        if '://' in path:
            with fsspec.open(path) as file:
                return file.read()
        return Path(path).read_bytes()
    except FileNotFoundError as e:
        raise ImageError('there is no such file') from e
    except OSError as e:
        raise ImageError(f'can not be read: {e.strerror or e}') from e


def load(
        dataset: str, config: str | None = None, *, image_column: str | None = None, label_column: str | None = None,
        train_split: str | None = 'train', validation_split: str | None = None, streaming: bool = False,
) -> Data:
    """Reads a dataset; the same arguments give the same rows in the same order in every process.

    Args:
        dataset: A name on the Hub, or a path: of a folder with a folder of images for each class (or, above these, one
            for each split), of a table with a column of paths or images, or of what `save_to_disk` wrote.
        config: Of a dataset on the Hub.
        image_column: If there is more than one that could be it, or none.
        label_column: The same. Of class names or numbers; of lists of them in multi-label.
        train_split: Name of the split that is trained on; None for an evaluation, which takes the validation split, or
            the only one that there is.
        validation_split: Of the split that is judged on; by default the first of `VALIDATION_SPLITS` that there is.
        streaming: Read images in the order of the dataset, without a copy of it here.

    Raises:
        DataError: It is missing or empty, its columns can't be told, or its labels can't be trained on.
    """
    splits = _read(dataset, config, streaming)
    own = validation_split or next((name for name in VALIDATION_SPLITS if name in splits and name != train_split), None)
    if train_split is None and own is None:
        if len(splits) > 1:
            raise DataError(f'{dataset} has the splits {", ".join(splits)}. Name the one to evaluate on as the '
                            f'validation split.')
        own = next(iter(splits))
    wanted = [name for name in (train_split, own) if name]
    for name in wanted:
        if name not in splits:
            raise DataError(f'{dataset} has no split {name!r}, but {", ".join(splits)}. Name one of these.')
    if train_split is not None and train_split == own:
        raise DataError(f'The split {own!r} of {dataset} can not be both trained and judged on.')
    image, label = _columns(_features(splits[wanted[0]], wanted[0], dataset), dataset, image_column, label_column)
    columns = {name: _two_columns(splits[name], name, dataset, image, label) for name in wanted}
    features = {name: _features(split, name, dataset) for name, split in columns.items()}
    values = {name: _label_values(split, name, dataset) for name, split in columns.items()}
    kinds = {name: _item_feature(features[name]['label']) for name in wanted}
    multi_label = features[wanted[0]]['label'] is not kinds[wanted[0]]
    class_names = _class_names(kinds, values, dataset, label, multi_label)
    found = {}
    for name in wanted:
        labels = _numbers(values[name], kinds[name], class_names, multi_label, name, dataset)
        found[name] = Split(name, columns[name].select_columns(['image']), np.arange(len(labels)), labels)
    none = next(iter(found.values())).select([])
    return Data(found.get(train_split or '', none), found.get(own or '', none), class_names, multi_label, bool(own))


def _read(dataset: str, config: str | None, streaming: bool) -> Splits:
    path = Path(dataset)
    found: Any
    if path.is_dir():
        if (path / 'state.json').is_file() or (path / 'dataset_dict.json').is_file():
            found = datasets.load_from_disk(dataset)
        else:
            found = _image_folder(path)
        found = found if isinstance(found, DatasetDict) else DatasetDict(train=found)
        return {name: split.to_iterable_dataset() if streaming else split for name, split in found.items()}
    if path.is_file():
        if path.suffix.lower() not in TABLES:
            raise DataError(f'{dataset} ends in {path.suffix!r}; a table ends in one of {", ".join(TABLES)}.')
        options = {'sep': '\t'} if path.suffix.lower() == '.tsv' else {}
        try:
            found = datasets.load_dataset(
                TABLES[path.suffix.lower()], data_files=str(path), streaming=streaming, **options)
            return {name: _with_paths(split, path.parent, name, dataset) for name, split in found.items()}
        except (datasets.exceptions.DatasetGenerationError, ValueError) as e:
            raise DataError(f'{dataset} can not be read as a table ({e.__cause__ or e}).') from e
    try:
        found = datasets.load_dataset(dataset, config, streaming=streaming)
    except Exception as e:  # of the dataset's library, of the Hub's and of the network: no error in common
        raise DataError(f'{dataset} is neither a path here nor a dataset that can be had from the Hub ({e}).') from e
    return found if isinstance(found, (DatasetDict, IterableDatasetDict)) else DatasetDict(train=found)


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


def _with_paths(table: Dataset | IterableDataset, folder: Path, name: str, dataset: str) -> Dataset | IterableDataset:
    """Paths in a table are relative to it."""
    features = _features(table, name, dataset)
    for column in IMAGE_COLUMNS:
        if isinstance(features.get(column), datasets.Value) and 'string' in features[column].dtype:
            described = features.copy()
            described[column] = Image(decode=False)
            return table.map(_full_path, features=described, fn_kwargs=dict(column=column, folder=str(folder)))
    return table


def _full_path(row: dict[str, Any], column: str, folder: str) -> dict[str, Any]:
    path = row[column]
    return {column: {'path': path if '://' in path else str(Path(folder) / path), 'bytes': None} if path else None}


def _features(split: Dataset | IterableDataset, name: str, dataset: str) -> Features:
    """Of a stream that has not been read yet, those of its first row."""
    if split.features is not None and (split.features or isinstance(split, Dataset)):
        return split.features
    first = next(iter(split), None)
    if first is None:
        raise DataError(f'The split {name!r} of {dataset} is empty.')
    return Dataset.from_list([first]).features


def _columns(features: Features, dataset: str, image: str | None, label: str | None) -> tuple[str, str]:
    found = []
    for kind, given, known, feature in (
            ('image', image, IMAGE_COLUMNS, Image), ('label', label, LABEL_COLUMNS, ClassLabel)):
        by_type = [name for name, value in features.items() if isinstance(_item_feature(value), feature)]
        by_name = [name for name in known if name in features]
        choices = by_type if len(by_type) == 1 else by_name
        if given is not None and given not in features:
            raise DataError(f'{dataset} has no column {given!r}, but {", ".join(features)}.')
        if given is None and not choices:
            raise DataError(f'No column of {dataset} can be told to be the {kind}: it has {", ".join(features)}. '
                            f'Name one as the {kind} column.')
        found.append(given or choices[0])
    return found[0], found[1]


def _item_feature(feature: Any) -> Any:
    """Of a list the feature of its items."""
    return feature.feature if isinstance(feature, (datasets.List, datasets.LargeList)) else feature


def _two_columns(
        split: Dataset | IterableDataset, name: str, dataset: str, image: str, label: str,
) -> Dataset | IterableDataset:
    features = _features(split, name, dataset)
    missing = [column for column in (image, label) if column not in features]
    if missing:
        raise DataError(f'The split {name!r} of {dataset} has no column {missing[0]!r}.')
    if isinstance(split, Dataset) and not len(split):
        raise DataError(f'The split {name!r} of {dataset} is empty.')
    split = split.select_columns([image, label])
    split = split.rename_columns({old: new for old, new in ((image, 'image'), (label, 'label')) if old != new})
    if isinstance(features[image], Image) or split.features is not None:
        split = split.cast_column('image', Image(decode=False))
    return split


def _label_values(split: Dataset | IterableDataset, name: str, dataset: str) -> list[Any]:
    """All labels of a split, read without its images."""
    labels = split.select_columns(['label'])
    values = list(labels['label']) if isinstance(labels, Dataset) else [row['label'] for row in labels]
    if not values:
        raise DataError(f'The split {name!r} of {dataset} is empty.')
    return values


def _class_names(
        kinds: dict[str, Any], values: dict[str, list[Any]], dataset: str, column: str, multi_label: bool,
) -> list[str]:
    """The dataset's own, in its own order; else those that occur, sorted, numbers as numbers."""
    declared = {name: kind.names for name, kind in kinds.items() if isinstance(kind, ClassLabel)}
    if declared:
        first, *others = declared.values()
        if any(names != first for names in others):
            raise DataError(f'The splits of {dataset} name their classes differently: '
                            f'{"; ".join(f"{name}: {names[:6]}" for name, names in declared.items())}.')
        class_names = list(first)
    else:
        occurring = {name: set(_each(labels, multi_label)) for name, labels in values.items()}
        train, *others = occurring.values()
        if not all(isinstance(value, (str, int)) for value in train):
            strange = next(value for value in train if not isinstance(value, (str, int)))
            raise DataError(f'The column {column!r} of {dataset} holds {type(strange).__name__} instead of class names '
                            f'or numbers.')
        unknown = sorted({str(value) for other in others for value in other - train})
        if unknown:
            raise DataError(f'{dataset} has classes that are not in its training split: {", ".join(unknown[:6])}.')
        class_names = [str(value) for value in sorted(train)]
    if len(class_names) < 2:
        raise DataError(f'{dataset} has {len(class_names)} class ({", ".join(class_names) or "none"}); '
                        f'there is nothing to learn from less than two.')
    return class_names


def _each(labels: Iterable[Any], multi_label: bool) -> Iterator[Any]:
    """The single labels."""
    for value in labels:
        if value is not None:
            yield from (item for item in value if item is not None) if multi_label else (value,)


def _numbers(
        values: list[Any], kind: Any, class_names: list[str], multi_label: bool, name: str, dataset: str) -> np.ndarray:
    """Labels as numbers of the class names, [N], or as [N, C] of 0 and 1."""
    count = len(class_names)
    if isinstance(kind, ClassLabel):
        numbers: dict[Any, int] = {number: number for number in range(count)}
    else:
        named = {class_name: number for number, class_name in enumerate(class_names)}
        numbers = {value: named[str(value)] for value in set(_each(values, multi_label))}
    lists = values if multi_label else [[value] for value in values]
    missing = [row for row, items in enumerate(lists) if items is None or any(item not in numbers for item in items)]
    if missing:
        raise DataError(f'{len(missing)} rows of the split {name!r} of {dataset} have no label, the first of them row '
                        f'{missing[0]}. Remove them, or label them.')
    if not multi_label:
        return np.array([numbers[value] for value in values], np.int64)
    labels = np.zeros((len(values), count), np.int64)
    for row, items in enumerate(values):
        labels[row, [numbers[item] for item in items]] = 1
    return labels


def _groups(labels: np.ndarray) -> np.ndarray:
    """[N] to stratify by: the class, or in multi-label the rarest of an image's classes; -1 for none."""
    if labels.ndim == 1:
        return labels
    counts = labels.sum(0)
    rarest = np.where(labels, counts, counts.max() + 1).argmin(1)
    return np.where(labels.any(1), rarest, -1)


def stratified(labels: Sequence[int] | np.ndarray, class_names: Sequence[str], share: float, seed: int) -> list[int]:
    """Positions of a validation split with about the same share of each class, and at least one of each.

    Args:
        labels: Of all images; -1 for none.
        class_names: For the warning about classes of a single member, which stay in the training split.
        share: In (0, 1).
        seed: The same seed gives the same rows, on any machine and in any process.

    Returns:
        In rising order.
    """
    if not 0 < share < 1:
        raise DataError(f'The share of the validation split is {share}; it must lie between 0 and 1.')
    generator = np.random.default_rng(seed)
    values = np.asarray(labels)
    counts = Counter(values.tolist())
    positions: list[int] = []
    for label in sorted(counts):
        if counts[label] > 1:
            count = min(max(round(share * counts[label]), 1), counts[label] - 1)
            positions += generator.permutation(np.flatnonzero(values == label))[:count].tolist()
    alone = [name for label, name in enumerate(class_names) if counts[label] == 1]
    empty = [name for label, name in enumerate(class_names) if not counts[label]]
    if alone:
        warnings.warn(f'{len(alone)} classes have a single image, which is trained on and never judged: '
                      f'{", ".join(alone[:6])}.', stacklevel=2)
    if empty:
        warnings.warn(f'{len(empty)} classes have no image: {", ".join(empty[:6])}.', stacklevel=2)
    if not positions:
        raise DataError('Every class has a single image, so that none can be judged on. Name a validation split.')
    return sorted(positions)
