"""Datasets of labelled images: found, read and split. Ours where `datasets` would drop labels or refuse a split.

Its imagefolder drops the labels of a single class, of mixed depths and beside a metadata file, without a word. Its
stratified split fails on a class with one image, and knows no multi-label. Images stay undecoded.

    a name on the Hub | a folder of images | a table (.csv, .tsv, .json, .jsonl, .parquet) | a save_to_disk directory
        -> columns -> class names -> a validation split, the dataset's own or a stratified one

Any of them can be streamed: then only the labels are read beforehand, and images come in the order of the dataset.
"""

import contextlib
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
import pyarrow.compute
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, IterableDataset

from ..errors import DataError, ImageError
from . import folders as folders_of_images
from . import tables
from .folders import split_of

TABLES = {'.csv': 'csv', '.tsv': 'csv', '.json': 'json', '.jsonl': 'json', '.parquet': 'parquet'}
IMAGE_COLUMNS = ('image', 'img', 'file_name', 'filename', 'file', 'path', 'image_path')
LABEL_COLUMNS = ('label', 'labels', 'class', 'class_name', 'category', 'target', 'fine_label')
LISTS = (datasets.List, datasets.LargeList)
VALIDATION_SPLITS = ('validation', 'val', 'valid', 'dev', 'test')

# An image file: {'path': ..., 'bytes': ...}, of which one may be None; empty where a row has no image.
Cell = dict[str, Any]
Splits = dict[str, Dataset | IterableDataset]


@dataclass(frozen=True)
class Split:
    """Labelled images, by index.

    Attributes:
        name: Name in the dataset.
        source: Dataset with a column `image` of `Cell`s.
        source_rows: [N], rising numbers of rows in the source.
        labels: [N] class numbers, or [N, C] of 0 and 1 in multi-label.
        grey_maximum: Value that is white in grey images of more than 8 bits, as in `images.open_image`.
        files: Digest of the names and sizes of the source's image files; '' of a stream, whose files are not known.
    """

    name: str
    source: Dataset | IterableDataset
    source_rows: np.ndarray
    labels: np.ndarray
    files: str = ''
    grey_maximum: int | None = None

    def __len__(self) -> int:
        return len(self.source_rows)

    @property
    def streamed(self) -> bool:
        """Whether images can only be had in order, by `cells`."""
        return isinstance(self.source, IterableDataset)

    def cell(self, index: int) -> Cell:
        """The image file at an index."""
        return self.source[int(self.source_rows[index])]['image'] or {}

    def cells(self) -> Iterator[tuple[int, Cell]]:
        """All indices with their image files, in order.

        Raises:
            DataError: A stream breaks off.
        """
        if not self.streamed:
            yield from ((index, self.cell(index)) for index in range(len(self)))
            return
        rows = enumerate(self.source)
        for index, wanted in enumerate(self.source_rows):
            try:
                cell = next(columns['image'] for row, columns in rows if row == wanted)
            except Exception as e:  # of files, formats and the network: no error in common
                raise DataError(f'The split {self.name!r} breaks off before row {wanted} ({_line(e)}).') from e
            yield index, cell or {}

    def select(self, indices: Sequence[int] | np.ndarray) -> 'Split':
        """A part of it; the indices must rise."""
        chosen = np.asarray(indices, np.int64)
        return replace(self, source_rows=self.source_rows[chosen], labels=self.labels[chosen])

    def cell_name(self, index: int, cell: Cell) -> str:
        """What an image is called in messages: its path, or its row."""
        return cell.get('path') or f'row {self.source_rows[index]} of the split {self.name!r}'


@dataclass(frozen=True)
class Data:
    """What a model is trained and evaluated on.

    Attributes:
        train: Empty if only an evaluation was asked for.
        validation: Empty until `with_validation` makes one, if the dataset has none of its own.
        class_names: Names in the order of the class numbers.
        multi_label: Whether an image may have any number of labels.
        has_validation: Whether there is one by now.
        notes: What was left out or assumed, in sentences.
    """

    train: Split
    validation: Split
    class_names: list[str]
    multi_label: bool
    has_validation: bool
    notes: tuple[str, ...] = ()

    def digest(self) -> str:
        """Digest of classes, labels and files, by which a run that continues sees that they are the same."""
        digest = hashlib.sha256(repr(self.class_names).encode())
        for split in (self.train, self.validation):
            digest.update(f'{split.name} {split.labels.shape} {split.files}'.encode() + split.labels.tobytes())
        return digest.hexdigest()

    def with_validation(self, share: float, seed: int) -> 'Data':
        """Takes a part of the training split for validation, the same in every process; see `stratified`."""
        part = stratified(self.train.labels, self.class_names, share, seed)
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
    except Exception as e:  # of the network, which have no class in common
        raise ImageError(f'cannot be read: {getattr(e, "strerror", None) or _line(e)}') from e


def _line(error: BaseException) -> str:
    """An error of others in one line."""
    return ' '.join(f'{type(error).__name__}: {error}'.split())


def load(
    dataset: str,
    config: str | None = None,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    train_split: str | None = 'train',
    validation_split: str | None = None,
    folders: str | None = None,
    skip_empty: bool = False,
    split_column: str | None = None,
    label_separator: str | None = None,
    grey_maximum: int | None = None,
    streaming: bool = False,
) -> Data:
    """Reads a dataset; the same arguments give the same rows in the same order in every process.

    Args:
        dataset: A name on the Hub, or a path: of a folder with a folder of images for each class (or, above these, one
            for each split), of a table with a column of paths or images, or of what `save_to_disk` wrote.
        config: Configuration of a dataset on the Hub.
        image_column: If there is more than one that could be it, or none.
        label_column: Column of class names or numbers, or of lists of them (multi-label), if it cannot be told by
            itself.
        train_split: Name of the split that is trained on; None for an evaluation, which takes the validation split, or
            the only one that there is.
        validation_split: Name of the validation split; by default the first of `VALIDATION_SPLITS` that there is.
        folders: What the folders of a folder are where two readings are possible, see `folders.READINGS`.
        skip_empty: Leave out classes of a folder that have no image.
        split_column: Column of a table with the split of each row; '' for none. None takes one that tells by its name
            and its values that it is one.
        label_separator: Text between the labels of an image that has several in one text; '' for none.
        grey_maximum: Value that is white in grey images of more than 8 bits, as in `images.open_image`.
        streaming: Read images in the order of the dataset, without a copy of it here.

    Raises:
        DataError: It is missing or empty, its columns can't be told, or its labels can't be trained on.
    """
    path, notes = Path(dataset), list[str]()
    if path.is_dir() and not any((path / name).is_file() for name in ('state.json', 'dataset_dict.json')):
        named = [name for name in (train_split, validation_split) if name]
        splits, notes = _image_folder(path, named, folders, skip_empty)
    else:
        splits = tables.divided(_read(dataset, config, streaming), split_column, dataset)
    train_split, validation_split = _named(train_split, splits), _named(validation_split, splits)
    own = validation_split or _validation_split(splits, train_split)
    if train_split is None and own is None:
        if len(splits) > 1:
            raise DataError(
                f'{dataset} has the splits {", ".join(splits)}. Name the one to evaluate on as the validation split.'
            )
        own = next(iter(splits))
    wanted = [name for name in (train_split, own) if name]
    for name in wanted:
        if name not in splits:
            raise DataError(f'{dataset} has no split {name!r}, but {", ".join(splits)}. Name one of these.')
    if train_split is not None and train_split == own:
        raise DataError(f'The split {own!r} of {dataset} cannot be used for both training and validation.')
    splits_there = list(splits)
    splits = {name: splits[name] for name in wanted}
    image, label = _columns(splits[wanted[0]].features, dataset, image_column, label_column)
    for name, split in splits.items():
        missing = [column for column in (image, label) if column not in split.features]
        if missing:
            raise DataError(f'The split {name!r} of {dataset} has no column {missing[0]!r}.')
    kinds = {name: _item_feature(split.features[label]) for name, split in splits.items()}
    lists = {isinstance(split.features[label], LISTS) for split in splits.values()}
    if len(lists) > 1:
        raise DataError(f'The column {label!r} of {dataset} holds lists in one split and no lists in another.')
    multi_label = lists.pop()
    values = _label_values(splits, dataset, config, label)
    if not multi_label:
        values, multi_label = tables.several_labels(values, label_separator, dataset)
    _check_values(values, dataset, label, multi_label)
    class_names = _class_names(kinds, values, dataset, multi_label, least=1 if train_split is None else 2)
    found = {}
    for name in wanted:
        labels = _numbers(values[name], kinds[name], class_names, multi_label, name, dataset)
        source = _images(splits[name], dataset, image)
        files = _digest_of_files(source) if isinstance(source, Dataset) else ''
        if streaming and isinstance(source, Dataset):
            source = source.to_iterable_dataset()
        found[name] = Split(name, source, np.arange(len(labels)), labels, files, grey_maximum)
    none = next(iter(found.values())).select([])
    unused = [name for name in splits_there if name not in found]
    if unused:
        notes.append(f'Left aside: the splits {", ".join(unused)}.')
    return Data(
        found.get(train_split or '', none),
        found.get(own or '', none),
        class_names,
        multi_label,
        bool(own),
        tuple(notes),
    )


def _validation_split(splits: Splits, train_split: str | None) -> str | None:
    """The dataset's own: by its name, else by what its name means."""
    others = [name for name in splits if name != train_split]
    by_name = [name for name in VALIDATION_SPLITS if name in others]
    by_meaning = [name for meaning in ('validation', 'test') for name in others if split_of(name) == meaning]
    return next(iter(by_name or by_meaning), None)


def unlabelled(dataset: str, image_column: str | None = None, split: str | None = None) -> Split:
    """The images of a table or a dataset whose labels do not matter.

    Raises:
        DataError: It cannot be read, has no column of images, or has several splits.
    """
    splits = _read(dataset, None, False)
    if split is None and len(splits) > 1:
        raise DataError(f'{dataset} has the splits {", ".join(splits)}. Name one with --split.')
    name = split or next(iter(splits))
    if name not in splits:
        raise DataError(f'{dataset} has no split {name!r}, but {", ".join(splits)}.')
    features = splits[name].features
    column = image_column or _column(features, dataset, 'image', None, IMAGE_COLUMNS, Image)
    if column not in features:
        raise DataError(f'{dataset} has no column {column!r}, but {", ".join(features)}.')
    source = _images(splits[name], dataset, column)
    return Split(name, source, np.arange(len(source)), np.zeros(len(source), np.int64))


def _read(dataset: str, config: str | None, streaming: bool, columns: list[str] | None = None) -> Splits:
    """All splits; streams only of what holds images inside, and with these columns alone if the format allows it."""
    path = Path(dataset)
    found: Any
    if path.is_file() and path.suffix.lower() not in TABLES:
        raise DataError(f'{dataset} ends in {path.suffix!r}; a table ends in one of {", ".join(TABLES)}.')
    try:
        if path.is_dir():
            found = datasets.load_from_disk(dataset)
            return found if isinstance(found, DatasetDict) else DatasetDict(train=found)
        if path.is_file():
            kind = TABLES[path.suffix.lower()]
            options = tables.as_text(path) if kind == 'csv' else {}
            return _load(streaming and kind == 'parquet', columns, kind, data_files=str(path), **options)
        return _load(streaming, columns, dataset, config)
    except Exception as e:  # of the dataset's library, of the Hub's and of the network: no error in common
        if path.exists():
            raise DataError(
                f'{dataset} cannot be read as a {"dataset" if path.is_dir() else "table"} ({_line(e.__cause__ or e)}).'
            ) from e
        raise DataError(
            f'{dataset} is neither a path here nor a dataset that can be had from the Hub ({_line(e)}).'
        ) from e


def _in_row_groups(stream: IterableDataset) -> IterableDataset:
    """A stream that reads Parquet by row groups; of a whole file, Arrow reads up to a gigabyte ahead."""
    return stream.reshard() if hasattr(stream, 'reshard') else stream


def _load(streaming: bool, columns: list[str] | None, *args: Any, **options: Any) -> Splits:
    if columns:
        return datasets.load_dataset(*args, streaming=True, columns=columns, **options)
    found = datasets.load_dataset(*args, streaming=streaming, **options)
    if streaming and all(split.features for split in found.values()):
        return {name: _in_row_groups(split.decode(False)) for name, split in found.items()}
    # the types of a text's columns depend on all of its rows, which have to be read for the labels anyway
    return datasets.load_dataset(*args, **options) if streaming else found


def _image_folder(
    folder: Path, named: Sequence[str], folders: str | None, skip_empty: bool
) -> tuple[Splits, list[str]]:
    """The splits of a folder, their classes sorted as strings, and what was left out."""
    tree = folders_of_images.understand(folder, named, folders, skip_empty)
    found = {}
    for name, classes in tree.splits.items():
        rows: dict[str, list[Any]] = dict(image=[], label=[])
        for class_name, images in classes.items():
            rows['image'] += [{'path': str(path), 'bytes': None} for path in images]
            rows['label'] += [class_name] * len(images)
        features = Features(image=Image(decode=False), label=datasets.Value('string'))
        found[name] = Dataset.from_dict(rows, features=features)
    return DatasetDict(found), tree.notes


def _named(name: str | None, splits: Splits) -> str | None:
    """The split of this name, or the only one whose name means the same: Training for train."""
    meaning = split_of(name) if name else None
    same = [split for split in splits if meaning and split_of(split) == meaning]
    return same[0] if name not in splits and len(same) == 1 else name


def _columns(features: Features, dataset: str, image: str | None, label: str | None) -> tuple[str, str]:
    return (
        _column(features, dataset, 'image', image, IMAGE_COLUMNS, Image),
        _column(features, dataset, 'label', label, LABEL_COLUMNS, ClassLabel),
    )


def _column(features: Features, dataset: str, kind: str, given: str | None, known: Sequence[str], feature: type) -> str:
    by_type = [name for name, value in features.items() if isinstance(_item_feature(value), feature)]
    by_name = [name for name in known if name in features]
    choices = by_type if len(by_type) == 1 else by_name
    if given is not None and given not in features:
        raise DataError(f'{dataset} has no column {given!r}, but {", ".join(features)}.')
    if given is None and not choices:
        raise DataError(
            f'No column of {dataset} can be told to be the {kind}: it has {", ".join(features)}. '
            f'Name one as the {kind} column.'
        )
    return given or choices[0]


def _item_feature(feature: Any) -> Any:
    """The feature of a list's items; that of anything else is itself."""
    return feature.feature if isinstance(feature, LISTS) else feature


def _images(split: Dataset | IterableDataset, dataset: str, column: str) -> Dataset | IterableDataset:
    """A split's images, undecoded, as its only column; paths in a table are relative to it."""
    feature = split.features[column]
    dtype = feature.dtype if isinstance(feature, datasets.Value) else ''
    file = isinstance(feature, dict) and set(feature) == {'path', 'bytes'}
    if not (isinstance(feature, Image) or file or 'string' in dtype or 'binary' in dtype):
        raise DataError(f'The column {column!r} of {dataset} holds {dtype or feature} instead of images or paths.')
    split = split.select_columns([column])
    if column != 'image':
        split = split.rename_column(column, 'image')
    if 'string' in dtype and Path(dataset).is_file():
        return split.map(
            _full_path, features=Features(image=Image(decode=False)), fn_kwargs=dict(folder=str(Path(dataset).parent))
        )
    return split.cast_column('image', Image(decode=False))


def _digest_of_files(source: Dataset) -> str:
    """Digest of the names of all image files, with their folders', and of their sizes. No file is opened."""
    digest = hashlib.sha256()
    for batch in source.with_format('arrow').iter(batch_size=1000):
        cells = batch['image'].combine_chunks()
        lengths = pyarrow.compute.binary_length(cells.field('bytes')).to_pylist()
        for path, length in zip(cells.field('path').to_pylist(), lengths):
            if length is None and path and '://' not in path:
                with contextlib.suppress(OSError):
                    length = Path(path).stat().st_size
            digest.update(f'{"/".join(Path(path or "").parts[-2:])} {length}\n'.encode('utf-8', 'surrogateescape'))
    return digest.hexdigest()


def _full_path(row: dict[str, Any], folder: str) -> dict[str, Any]:
    path = row['image']
    return dict(image={'path': path if '://' in path else str(Path(folder) / path), 'bytes': None} if path else None)


def _label_values(splits: Splits, dataset: str, config: str | None, column: str) -> dict[str, list[Any]]:
    """All labels of each split, read without its images."""
    if any(isinstance(split, IterableDataset) for split in splits.values()):
        with contextlib.suppress(DataError):  # of formats that can't be read by columns
            streams = _read(dataset, config, True, [column])
            splits = {name: streams[name] for name in splits}
        splits = {name: split.select_columns([column]) for name, split in splits.items()}
    values = {}
    for name, split in splits.items():
        try:
            values[name] = list(split[column]) if isinstance(split, Dataset) else [row[column] for row in split]
        except Exception as e:  # as above: streams are read only now
            raise DataError(f'The labels of {dataset} cannot be read ({_line(e)}).') from e
        if not values[name]:
            raise DataError(f'The split {name!r} of {dataset} is empty.')
    return tables.normal(values)


def _check_values(values: dict[str, list[Any]], dataset: str, column: str, multi_label: bool) -> None:
    for name, labels in values.items():
        missing = [row for row, value in enumerate(labels) if value is None]
        if missing:
            raise _without_label(missing, name, dataset)
        strange = next((value for value in _each(labels, multi_label) if not isinstance(value, (str, int))), None)
        if strange is not None:
            raise DataError(
                f'The column {column!r} of {dataset} holds {type(strange).__name__} instead of class names or numbers.'
            )


def _without_label(rows: list[int], name: str, dataset: str) -> DataError:
    return DataError(
        f'{len(rows)} rows of the split {name!r} of {dataset} have no label, the first of them row '
        f'{rows[0]}. Remove them, or label them.'
    )


def _class_names(
    kinds: dict[str, Any], values: dict[str, list[Any]], dataset: str, multi_label: bool, least: int
) -> list[str]:
    """The dataset's own, in its own order; else those that occur in the first split, sorted, numbers as numbers."""
    declared = {name: kind.names for name, kind in kinds.items() if isinstance(kind, ClassLabel)}
    if declared:
        first, *others = declared.values()
        if any(names != first for names in others):
            raise DataError(
                f'The splits of {dataset} name their classes differently: '
                f'{"; ".join(f"{name}: {names[:6]}" for name, names in declared.items())}.'
            )
        class_names = list(first)
    else:
        class_names = [str(value) for value in tables.in_order(set(_each(next(iter(values.values())), multi_label)))]
    if len(class_names) < least:
        raise DataError(
            f'{dataset} has {len(class_names)} class ({", ".join(class_names) or "none"}); '
            f'there is nothing to learn from less than two.'
        )
    return class_names


def _each(labels: Iterable[Any], multi_label: bool) -> Iterator[Any]:
    """The single labels."""
    for value in labels:
        yield from (item for item in value if item is not None) if multi_label else (value,)


def _numbers(
    values: list[Any], kind: Any, class_names: list[str], multi_label: bool, name: str, dataset: str
) -> np.ndarray:
    """Labels as numbers of the class names, [N], or as [N, C] of 0 and 1."""
    count = len(class_names)
    if isinstance(kind, ClassLabel):
        numbers: dict[Any, int] = {number: number for number in range(count)}
    else:
        named = {class_name: number for number, class_name in enumerate(class_names)}
        occurring = set(_each(values, multi_label))
        unknown = sorted(str(value) for value in occurring if str(value) not in named)
        if unknown:
            raise DataError(
                f'The split {name!r} of {dataset} has classes that are not trained on: {", ".join(unknown[:6])}.'
            )
        numbers = {value: named[str(value)] for value in occurring}
    lists = values if multi_label else [[value] for value in values]
    missing = [row for row, items in enumerate(lists) if any(item not in numbers for item in items)]
    if missing:
        raise _without_label(missing, name, dataset)
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
    """Positions of a validation split with about the same share of each class.

    Args:
        labels: Labels of all images: [N] class numbers, of which each with two images or more is in both parts; or [N,
            C] of 0
            and 1, of which the rarest class of each image counts.
        class_names: For the warning about classes that are missing in one of the parts.
        share: Share of the images, in (0, 1).
        seed: Seed; it decides the rows on any machine and in any process.

    Returns:
        In rising order.
    """
    if not 0 < share < 1:
        raise DataError(f'The share of the validation split is {share}; it must lie between 0 and 1.')
    generator = np.random.default_rng(seed)
    labels = np.asarray(labels)
    values = _groups(labels)
    counts = Counter(values.tolist())
    indices: list[int] = []
    for label in sorted(counts):
        if counts[label] > 1:
            count = min(max(round(share * counts[label]), 1), counts[label] - 1)
            indices += generator.permutation(np.flatnonzero(values == label))[:count].tolist()
    if not indices:
        raise DataError('Every class has a single image, so that none is left for validation. Name a validation split.')
    indices.sort()
    total, held_out = (
        part.sum(0) if part.ndim == 2 else np.bincount(part, minlength=len(class_names))
        for part in (labels, labels[indices])
    )
    for found, meaning in (
        (total == 0, 'have no image'),
        ((total == 1) & (held_out == 0), 'have a single image, which is in training only'),
        ((total > 1) & (held_out == 0), 'are in training only, because they occur with rarer ones only'),
        ((total > 0) & (held_out == total), 'are in validation only, because they occur with rarer ones only'),
    ):
        if found.any():
            names = [class_names[label] for label in np.flatnonzero(found)[:6]]
            warnings.warn(f'{found.sum()} classes {meaning}: {", ".join(names)}.', stacklevel=2)
    return indices
