"""Datasets of labelled images: read, their columns understood, split.

    reading (what the name means) -> tables (splits by a column) -> columns (images and labels) -> image_paths (files)
        -> classes (names and numbers) -> a validation split, the dataset's own or a stratified one

Any of them can be streamed: then only the labels are read beforehand, and images come in the order of the dataset.
"""

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import fsspec
import numpy as np
import pyarrow.compute
from datasets import Dataset, Image, IterableDataset

from ..errors import DataError, ImageError, in_one_line
from . import classes, columns
from .image_paths import locate
from .reading import Table, read
from .split_names import split_of
from .stratified import stratified
from .tables import divided, several_labels

VALIDATION_SPLITS = ('validation', 'val', 'valid', 'dev', 'test')

# An image file: {'path': ..., 'bytes': ...}, of which one may be None; empty where a row has no image.
Cell = dict[str, Any]


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
                raise DataError(f'The split {self.name!r} breaks off before row {wanted} ({in_one_line(e)}).') from e
            yield index, cell or {}

    def select(self, indices: Sequence[int] | np.ndarray) -> 'Split':
        """A part of it; the indices must rise."""
        chosen = np.asarray(indices, np.int64)
        return replace(self, source_rows=self.source_rows[chosen], labels=self.labels[chosen])

    def names(self) -> list[str]:
        """What all images are called, by `cell_name`, without reading them; those of a stream by their rows."""
        if self.streamed:
            return [self.cell_name(index, {}) for index in range(len(self))]
        if not isinstance(self.source, Dataset):
            return [self.cell_name(index, self.cell(index)) for index in range(len(self))]
        paths: list[str | None] = []
        for batch in self.source.with_format('arrow').iter(batch_size=1000):
            paths += batch['image'].combine_chunks().field('path').to_pylist()
        return [self.cell_name(index, {'path': paths[row]}) for index, row in enumerate(self.source_rows)]

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
        raise ImageError(f'cannot be read: {getattr(e, "strerror", None) or in_one_line(e)}') from e


def load(
    dataset: str,
    config: str | None = None,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    image_folder: Path | None = None,
    train_split: str | None = 'train',
    validation_split: str | None = None,
    validation_table: str | None = None,
    folders: str | None = None,
    skip_empty: bool = False,
    split_column: str | None = None,
    label_separator: str | None = None,
    unlabelled: str = 'error',
    grey_maximum: int | None = None,
    streaming: bool = False,
) -> Data:
    """Reads a dataset; the same arguments give the same rows in the same order in every process.

    Args:
        dataset: A name on the Hub, or a path: of a folder with a folder of images for each class (or, above these, one
            for each split), of a table with a column of paths or images, of a folder of tables, or of what
            `save_to_disk` wrote.
        config: Configuration of a dataset that has several.
        image_column: If there is more than one that could be it, or none.
        label_column: Column of class names or numbers, or of lists of them (multi-label), if it cannot be told by
            itself; or several names with commas between them, of columns that stand for a class each.
        image_folder: Folder of the images that a table names; by default the table's own.
        train_split: Name of the split that is trained on; None for an evaluation, which takes the validation split, or
            the only one that there is.
        validation_split: Name of the validation split; by default the first of `VALIDATION_SPLITS` that there is; ''
            for none of them.
        validation_table: Another dataset, which has the validation images.
        folders: What the folders of a folder are where several readings are possible, see `folders.READINGS`.
        skip_empty: Leave out classes of a folder that have no image.
        split_column: Column of a table with the split of each row; '' for none. None takes one that tells by its name
            and its values that it is one.
        label_separator: Text between the labels of an image that has several in one text; '' for none.
        unlabelled: What to do with rows without a label, see `classes.labelled_rows`.
        grey_maximum: Value that is white in grey images of more than 8 bits, as in `images.open_image`.
        streaming: Read images in the order of the dataset, without a copy of it here.

    Raises:
        DataError: It is missing or empty, its columns can't be told, or its labels can't be trained on.
    """
    options: dict[str, Any] = dict(folders=folders, skip_empty=skip_empty, label_column=label_column)
    named = [name for name in (train_split, validation_split) if name]
    found = read(dataset, config, named=named, streaming=streaming, **options)
    splits, notes = divided(found.tables, split_column), found.notes
    if validation_table:
        other = read(validation_table, config, named=named, streaming=streaming, **options)
        splits, validation_split = _beside(splits, other.tables, train_split, validation_split, validation_table)
        notes = notes + other.notes
    train_split, own = _choose(splits, dataset, train_split, validation_split)
    unused = [name for name in splits if name not in (train_split, own)]
    notes = notes + ([f'Left aside: the splits {", ".join(unused)}.'] if unused else [])
    asked = validation_split
    splits = {name: splits[name] for name in (train_split, own) if name}

    image = columns.image_column(next(iter(splits.values())).rows.features, dataset, image_column)
    splits = {name: _unstreamed_paths(table, image) for name, table in splits.items()}
    splits, label, more = _label_column(splits, dataset, label_column, image)
    notes = notes + more
    if own and asked is None and train_split and label not in splits[own].rows.features:
        notes.append(f'The split {own!r} is left aside: it has no column {label!r}.')
        del splits[own]
        own = None
    for name, table in splits.items():
        missing = [column for column in (image, label) if column not in table.rows.features]
        if missing:
            raise DataError(f'The split {name!r} of {table.dataset} has no column {missing[0]!r}.')

    kinds, multi_label = classes.kinds_of(splits, label)
    values = classes.label_values(splits, label)
    if own and asked is None and train_split and classes.has_no_labels(values[own], kinds[own]):
        notes.append(f'The split {own!r} is left aside: none of its {len(values[own])} images has a label.')
        del splits[own], values[own], kinds[own]
        own = None
    kept, more = classes.labelled_rows(values, kinds, dataset, unlabelled)
    notes = notes + more
    values = {name: [values[name][row] for row in kept[name]] for name in values}
    if not multi_label:
        values, multi_label = several_labels(values, label_separator, dataset)
    classes.check_values(values, dataset, label, multi_label)
    class_names = classes.class_names_of(kinds, values, dataset, multi_label, least=1 if train_split is None else 2)

    parts = {}
    for name, table in splits.items():
        labels = classes.numbers_of(values[name], kinds[name], class_names, multi_label, name, table.dataset)
        source, more = _images(table, image, image_folder)
        notes = notes + more
        files = _digest_of_files(source) if isinstance(source, Dataset) else ''
        if streaming and isinstance(source, Dataset):
            source = source.to_iterable_dataset()
        parts[name] = Split(name, source, kept[name], labels, files, grey_maximum)
    none = next(iter(parts.values())).select([])
    train, validation = (parts.get(name or '', none) for name in (train_split, own))
    return Data(train, validation, class_names, multi_label, bool(own), tuple(notes))


def unlabelled(
    dataset: str, image_column: str | None = None, split: str | None = None, image_folder: Path | None = None
) -> tuple[Split, list[str]]:
    """The images of a table or a dataset whose labels do not matter, and what was left out or assumed.

    Raises:
        DataError: It cannot be read, has no column of images, or has several splits.
    """
    found = read(dataset)
    tables = found.tables
    if split is None and len(tables) > 1:
        raise DataError(f'{dataset} has the splits {", ".join(tables)}. Name one with --split.')
    name = split or next(iter(tables))
    if name not in tables:
        raise DataError(f'{dataset} has no split {name!r}, but {", ".join(tables)}.')
    column = columns.image_column(tables[name].rows.features, dataset, image_column)
    source, notes = _images(tables[name], column, image_folder)
    assert isinstance(source, Dataset)  # nothing was streamed
    return _without_labels(name, source), found.notes + notes


def files_of(paths: Sequence[str]) -> Split:
    """Image files whose labels do not matter.

    Raises:
        DataError: A name is not UTF-8.
    """
    cells = [{'path': path, 'bytes': None} for path in paths]
    try:
        source = Dataset.from_dict({'image': cells}, datasets.Features(image=Image(decode=False)))
    except UnicodeEncodeError as e:
        raise DataError(f'The name of {e.object!a} is not UTF-8, which no table can hold: rename the file.') from e
    return _without_labels('files', source)


def _without_labels(name: str, source: Dataset) -> Split:
    count = len(source)
    return Split(name, source, np.arange(count), np.zeros(count, np.int64), _digest_of_files(source))


# Splits


def _choose(
    splits: dict[str, Table], dataset: str, train_split: str | None, validation_split: str | None
) -> tuple[str | None, str | None]:
    """The names of the splits for training and for validation; None for none."""
    train_split = _named(train_split, splits)
    own = _named(validation_split, splits) if validation_split else None
    if validation_split is None or train_split is None:
        own = own or _validation_split(splits, train_split)
    if train_split is None and own is None:
        if len(splits) > 1:
            raise DataError(
                f'{dataset} has the splits {", ".join(splits)}. Name the one to evaluate on as the validation split.'
            )
        own = next(iter(splits))
    for name, option in ((train_split, '--train-split'), (own, '--validation-split')):
        if name and name not in splits:
            raise DataError(f'{dataset} has no split {name!r}, but {", ".join(splits)}. Name one of these: {option}.')
    if train_split is not None and train_split == own:
        raise DataError(f'The split {own!r} of {dataset} cannot be used for both training and validation.')
    return train_split, own


def _named(name: str | None, splits: dict[str, Table]) -> str | None:
    """The split of this name, or the only one whose name means the same: Training for train."""
    meaning = split_of(name) if name else None
    same = [split for split in splits if meaning and split_of(split) == meaning]
    return same[0] if name not in splits and len(same) == 1 else name


def _validation_split(splits: dict[str, Table], train_split: str | None) -> str | None:
    """The dataset's own: by its name, else by what its name means."""
    others = [name for name in splits if name != train_split]
    by_name = [name for name in VALIDATION_SPLITS if name in others]
    by_meaning = [name for meaning in ('validation', 'test') for name in others if split_of(name) == meaning]
    return next(iter(by_name or by_meaning), None)


def _beside(
    splits: dict[str, Table],
    others: dict[str, Table],
    train_split: str | None,
    validation_split: str | None,
    validation_table: str,
) -> tuple[dict[str, Table], str]:
    """The training split of a dataset, and the validation split of another."""
    name = _named(validation_split, others) if validation_split else next(iter(others))
    if name not in others or (len(others) > 1 and not validation_split):
        raise DataError(
            f'{validation_table} has the splits {", ".join(others)}. Name one of these with --validation-split.'
        )
    train = _named(train_split, splits) if train_split else None
    chosen = {train: splits[train]} if train in splits else {} if train_split is None else splits
    return {**chosen, 'validation': others[name]}, 'validation'


# Columns


def _label_column(
    splits: dict[str, Table], dataset: str, given: str | None, image: str
) -> tuple[dict[str, Table], str, list[str]]:
    """The column of labels, made of columns that stand for a class each where the table has no other."""
    label, several = columns.label_column({name: table.rows for name, table in splits.items()}, dataset, given, image)
    if not several:
        return splits, label, []
    for table in splits.values():
        missing = [name for name in several if name not in table.rows.features]
        if missing or not isinstance(table.rows, Dataset):
            raise DataError(f'{table.dataset} is a stream, or has no column {(missing or several)[0]!r}.')
    yes = {name: columns.classes_of(table.rows, several) for name, table in splits.items()}
    single = all((found.sum(1) == 1).all() for found in yes.values())
    splits = {
        name: replace(table, rows=columns.with_labels(table.rows, several, yes[name], single))
        for name, table in splits.items()
    }
    each = 'one of them for each image' if single else 'any number of them for each image'
    return splits, 'label', [f'The classes are the columns {", ".join(several[:6])} ...: {each}.']


def _unstreamed_paths(table: Table, image: str) -> Table:
    """A table with its rows here if it names its images instead of holding them: they are looked up all at once."""
    if isinstance(table.rows, IterableDataset) and table.folders and _names_files(table.rows.features.get(image)):
        return read(table.dataset).tables[table.split]
    return table


def _names_files(feature: Any) -> bool:
    """Whether a column holds paths, or numbers that may be names of files."""
    return isinstance(feature, datasets.Value) and ('string' in feature.dtype or 'int' in feature.dtype)


def _images(table: Table, column: str, image_folder: Path | None) -> tuple[Dataset | IterableDataset, list[str]]:
    """A split's images, undecoded, as its only column, and notes on how they were found."""
    if column not in table.rows.features:
        raise DataError(f'{table.dataset} has no column {column!r}, but {", ".join(table.rows.features)}.')
    feature = table.rows.features[column]
    rows = table.rows.select_columns([column])
    if column != 'image':
        rows = rows.rename_column(column, 'image')
    if _names_files(feature) and isinstance(rows, Dataset) and (table.folders or image_folder):
        written = ['' if path is None else str(path) for path in rows['image']]
        files, notes = locate(written, table.dataset, table.folders, image_folder)
        cells = [{'path': path, 'bytes': None} if path else None for path in files]
        return Dataset.from_dict({'image': cells}, features=datasets.Features(image=Image(decode=False))), notes
    dtype = feature.dtype if isinstance(feature, datasets.Value) else ''
    file = isinstance(feature, dict) and set(feature) == {'path', 'bytes'}
    if not (isinstance(feature, Image) or file or 'string' in dtype or 'binary' in dtype):
        raise DataError(
            f'The column {column!r} of {table.dataset} holds {dtype or feature} instead of images or paths.'
        )
    if image_folder:
        raise DataError(f'{table.dataset} holds the images themselves. Leave out --image-folder {image_folder}.')
    return rows.cast_column('image', Image(decode=False)), []


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
