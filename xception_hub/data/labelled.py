"""From the settings to what a model is trained on: labelled images, in a training and a validation split.

    table (what the dataset is) -> splits (whose rows) -> columns (images and labels) -> paths (files) -> `Data`

Any dataset can be streamed: then only the labels are read beforehand, and images come in the order of the dataset.
"""

import contextlib
import hashlib
import os
import shlex
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import datasets
import fsspec
import numpy as np
import PIL.Image
import pyarrow
import pyarrow.compute as pc
from datasets import Dataset, Image, IterableDataset

from ..errors import DataError, ImageError, in_one_line, listed
from ..images import open_image
from . import columns, splits
from .columns import NO_LABEL, Labels
from .data_settings import DataSettings
from .known_names import GROUP_COLUMNS, UNCLEAR_GROUPS, by_name, plain
from .paths import locate
from .table import BASE64, IMAGE_CELLS, Table, cells_of, cells_of_texts, name_of, read

# An image file: {'path': ..., 'bytes': ...}, of which one may be None; empty where a row has no image.
Cell = dict[str, Any]


@dataclass(frozen=True)
class Item:
    """What a sampler asks a dataset for.

    Attributes:
        index: Number of the image in the split.
        epoch: For the augmentation, which differs from epoch to epoch.
        weight: 1, or 0 for a padding image that fills an idle rank.
        cell: The image file, of a stream, which can't be asked for an index.
    """

    index: int
    epoch: int = 0
    weight: float = 1.0
    cell: Cell | None = None


@dataclass(frozen=True)
class Split:
    """Labelled images, by index.

    Attributes:
        name: Name in the dataset.
        source: Dataset with a column `image` of `Cell`s.
        source_rows: [N], rising numbers of rows in the source.
        labels: [N] class numbers, or [N, C] of 0 and 1 in multi-label.
        files: Digest of the names and sizes of the source's image files; '' of a stream, whose files are not known.
        grey_maximum: Value that is white in grey images of more than 8 bits, as in `images.open_image`.
        groups: [N] number of each image's group, which no split should cut through; empty without groups.
        digests: [N] the sha256 of each image file, b'' where it cannot be read; empty before a scan.
        pixels: [N] the sha256 of each decoded image; empty before a scan.
    """

    name: str
    source: Dataset | IterableDataset
    source_rows: np.ndarray
    labels: np.ndarray
    files: str = ''
    grey_maximum: int | None = None
    groups: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    digests: np.ndarray = field(default_factory=lambda: np.empty(0, object))
    pixels: np.ndarray = field(default_factory=lambda: np.empty(0, object))

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
        """All indices with their image files, in order."""
        return ((i.index, self.cell(i.index) if i.cell is None else i.cell) for i in self.items())

    def items(self) -> Iterator[Item]:
        """All images in order; only those of a stream come with their files.

        Raises:
            DataError: A stream breaks off.
        """
        if not self.streamed:
            yield from map(Item, range(len(self)))
            return
        rows = enumerate(self.source)
        for index, wanted in enumerate(self.source_rows):
            try:
                cell = next(columns['image'] for row, columns in rows if row == wanted)
            except Exception as e:  # of files, formats and the network: no error in common
                raise DataError(f'The split {self.name!r} breaks off before row {wanted} ({in_one_line(e)}).') from e
            yield Item(index, cell=cell or {})

    def image(self, index: int, min_side: int | None = None, cell: Cell | None = None) -> PIL.Image.Image:
        """An image, decoded by `images.open_image`; that of a stream by its file.

        Raises:
            ImageError: It cannot be used; the message names it.
        """
        cell = self.cell(index) if cell is None else cell
        try:
            return open_image(content(cell), min_side, self.grey_maximum)
        except ImageError as e:
            raise ImageError(f'{self.cell_name(index, cell)}: {e}') from e

    def select(self, indices: Sequence[int] | np.ndarray) -> 'Split':
        """A part of it; the indices must rise."""
        chosen = np.asarray(indices, np.int64)
        kept = [name for name in ('groups', 'digests', 'pixels') if len(getattr(self, name))]
        return replace(self, **{name: getattr(self, name)[chosen] for name in ('source_rows', 'labels', *kept)})

    def names(self) -> list[str]:
        """What all images are called, by `cell_name`, without reading them; those of a stream by their rows."""
        if not isinstance(self.source, Dataset):
            return [self.cell_name(index, {}) for index in range(len(self))]
        paths = pc.struct_field(columns.cells(self.source, 'image'), 'path').to_pylist()
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
        """Takes a part of the training split for validation, the same in every process; see `splits.stratified`."""
        return self.held_out(splits.stratified(self.train.labels, self.class_names, share, seed, self.train.groups))

    def with_fold(self, fold: int, count: int, seed: int) -> 'Data':
        """Takes a fold of the training split for validation, from 1 to `count`; see `splits.folds`."""
        found = splits.folds(self.train.labels, count, seed, self.train.groups)
        return self.held_out(np.flatnonzero(found == fold - 1))

    def with_several_labels(self) -> 'Data':
        """The data with [N, C] labels of 0 and 1, for a model that gives an image any number of classes."""
        if self.multi_label:
            return self
        one_hot = np.eye(len(self.class_names), dtype=np.int64)
        train, validation = (replace(split, labels=one_hot[split.labels]) for split in (self.train, self.validation))
        return replace(self, train=train, validation=validation, multi_label=True)

    def noted(self, *notes: str) -> 'Data':
        """The data with further notes."""
        return replace(self, notes=(*self.notes, *notes))

    def without(self, split: str, indices: Sequence[int] | np.ndarray) -> 'Data':
        """The data without some images of the split 'train' or 'validation'."""
        part = getattr(self, split)
        return replace(self, **{split: part.select(np.setdiff1d(np.arange(len(part)), indices))})

    def held_out(self, indices: Sequence[int] | np.ndarray) -> 'Data':
        """Takes images out of the training split, for validation."""
        rest = np.setdiff1d(np.arange(len(self.train)), indices)
        return replace(self, train=self.train.select(rest), validation=self.train.select(indices), has_validation=True)


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


def load(settings: DataSettings, evaluation: bool = False) -> Data:
    """Reads a dataset; the same settings give the same rows in the same order in every process.

    Args:
        settings: What to read, and how where several readings are possible.
        evaluation: Only the validation split is wanted, or the only one that there is.

    Raises:
        DataError: It is missing or empty, its columns can't be found, or its labels can't be trained on.
    """
    name = name_of(settings)
    tables, train, own, notes = _splits(settings, evaluation)
    image = columns.image_column(next(iter(tables.values())).rows.features, name, settings.image_column)
    tables = {split: _unstreamed(table, image) for split, table in tables.items()}
    given = columns.label_columns({n: t.rows for n, t in tables.items()}, name, settings.label_column, image)
    if train and own and settings.validation_split is None and _is_unlabelled(tables[own], given):
        notes.append(f'The split {own!r} is left aside: it has no labels.')
        del tables[own]
        own = None
    for split, table in tables.items():
        for column, kind in ((image, 'image'), *((column, 'label') for column in given)):
            columns.existing(column, table.rows.features, f'The split {split!r} of {table.dataset}', kind)
    labels, rows = _labels(tables, given, settings, notes)
    first = {split: own_rows[0] for split, own_rows in rows.items()}
    rows = _labelled(labels, rows, settings, notes)
    sources = {split: _images(table, image, notes) for split, table in tables.items()}
    labels, rows = _one_row_for_each(labels, rows, first, sources, settings, notes)
    class_names = _class_names(labels, rows, name, 1 if evaluation else 2)
    groups = _groups(tables, (image, *given), settings, notes) if train else np.empty(0, np.int64)
    found = {}
    for split, source in sources.items():
        files = digest_of_files(source) if isinstance(source, Dataset) else ''
        if settings.streaming and isinstance(source, Dataset):
            source = source.to_iterable_dataset()
        numbers, own_rows = labels.numbers(rows[split], class_names), rows[split] - first[split]
        of_rows = groups[rows[split]] if len(groups) else groups
        found[split] = Split(split, source, own_rows, numbers, files, settings.grey_maximum, of_rows)
    none = next(iter(found.values())).select([])
    one, other = (found.get(split or '', none) for split in (train, own))
    return Data(one, other, class_names, labels.multi_label, bool(own), tuple(notes))


def unlabelled(settings: DataSettings) -> tuple[Split, list[str]]:
    """The images of a table or a dataset whose labels do not matter, and what was left out or assumed.

    Raises:
        DataError: It cannot be read, has no column of images, or has several splits.
    """
    tables, notes = read(settings)
    name, split = name_of(settings), settings.validation_split
    if split is None and len(tables) > 1:
        raise DataError(f'{name} has the splits {listed(tables)}. Pass one as --split.')
    split = split or next(iter(tables))
    if split not in tables:
        raise DataError(f'{name} has no split {split!r}. It has: {listed(tables)}.')
    image = columns.image_column(tables[split].rows.features, name, settings.image_column)
    source, count = _images(tables[split], image, notes), len(tables[split].rows)
    nothing = np.zeros(count, np.int64)
    return Split(split, source, np.arange(count), nothing, digest_of_files(source), settings.grey_maximum), notes


# The steps


def _splits(settings: DataSettings, evaluation: bool) -> tuple[dict[str, Table], str | None, str | None, list[str]]:
    """The tables that are used, the names of those for training and for validation, and notes."""
    settings = replace(settings, validation_split='') if settings.folds and not evaluation else settings
    named = [name for name in (None if evaluation else settings.train_split, settings.validation_split) if name]
    tables, notes = read(settings, named)
    tables, settings = splits.folded(splits.divided(tables, settings), settings)
    if settings.validation_table:
        others, more = read(replace(settings, dataset=settings.validation_table), named)
        tables, settings = splits.beside(tables, others, settings, evaluation)
        notes += more
    train, own = splits.choose(tables, settings, evaluation)
    if unused := [name for name in tables if name not in (train, own)]:
        notes.append(f'Left aside: the splits {listed(unused)}.')
    return {name: tables[name] for name in (train, own) if name}, train, own, notes


def _unstreamed(table: Table, image: str) -> Table:
    """A table with its rows here if it names its images instead of holding them: they are looked up all at once."""
    if isinstance(table.rows, IterableDataset) and table.folders and _names_files(table.rows.features.get(image)):
        return read(replace(table.settings, streaming=False))[0][table.split]
    return table


def _is_unlabelled(table: Table, given: list[str]) -> bool:
    """Whether no image of a split has a label, as in the test splits of competitions."""
    if given[0] not in table.rows.features:
        return True
    values = columns.distinct(_column(table, given[0]))[1] if len(given) == 1 else [0]
    return all(str(value) in ('', NO_LABEL) for value in values)


def _labels(
    tables: dict[str, Table], given: list[str], settings: DataSettings, notes: list[str]
) -> tuple[Labels, dict[str, np.ndarray]]:
    """The labels of all rows, one split after the other, and the numbers of each split's rows among them."""
    name, rows = name_of(settings), {split: table.rows for split, table in tables.items()}
    if len(given) > 1:
        if not all(isinstance(r, Dataset) for r in rows.values()):
            raise DataError(f'{name} is a stream: the columns {listed(given)} cannot be read. Leave out --streaming.')
        labels, note = columns.read_class_columns(rows, given, settings)
        notes.append(note)
        sizes = [*map(len, rows.values())]
    else:
        cells = [_column(table, given[0]) for table in tables.values()]
        is_layout = given == ['label'] and not next(iter(tables.values())).folders
        kinds = [r.features[given[0]] for r in rows.values()]
        labels = columns.read_labels(cells, kinds, settings, name, given[0], is_layout)
        sizes = [*map(len, cells)]
    return labels, dict(zip(tables, np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])))


def _column(table: Table, column: str) -> pyarrow.ChunkedArray:
    """All cells of a column, read without the images."""
    rows = table.rows
    try:
        if isinstance(rows, Dataset):
            cells = columns.cells(rows, column)
        else:
            with contextlib.suppress(DataError):  # of formats that can't be read by columns
                rows = read(table.settings, columns=[column])[0][table.split].rows
            cells = pyarrow.chunked_array([pyarrow.array([row[column] for row in rows.select_columns([column])])])
    except Exception as e:  # of files, formats and the network: no error in common
        raise DataError(f'The column {column!r} of {table.dataset} cannot be read ({in_one_line(e)}).') from e
    if not len(cells):
        raise DataError(f'The split {table.split!r} of {table.dataset} is empty.')
    return cells


def _labelled(
    labels: Labels, parts: dict[str, np.ndarray], settings: DataSettings, notes: list[str]
) -> dict[str, np.ndarray]:
    """The rows of each split that have a label."""
    names = set[str]().union(*(labels.names_in(rows) for rows in parts.values())) - {NO_LABEL}
    numbers = len(names) > 1 and all(name.isdecimal() for name in names) and not labels.declared
    declared = labels.declared and NO_LABEL not in labels.declared
    none = {None, NO_LABEL} if declared or (numbers and settings.unlabelled == 'skip') else {None}
    found = {}
    for split, rows in parts.items():
        where = f'of the split {split!r} of {name_of(settings)}'
        cells = [*labels.cells[rows]]
        if numbers and settings.unlabelled == 'error' and NO_LABEL in cells:
            raise DataError(
                f'{cells.count(NO_LABEL)} rows {where} have the label -1, and others {listed(sorted(names), 4)}. If -1 '
                f'means that there is no label: --unlabelled skip. If it is a class: --unlabelled class.'
            )
        if None in cells and 'skip' not in (settings.unlabelled, settings.blank_label, settings.uncertain):
            raise DataError(
                f'{cells.count(None)} rows {where} have no label, the first of them row {cells.index(None)}. Label '
                f'them, or leave them aside with --unlabelled skip.'
            )
        found[split] = rows[[cell not in none for cell in cells]]
        if missing := len(rows) - len(found[split]):
            notes.append(f'{missing} of {len(rows)} rows of the split {split!r} are left aside: without a label.')
        if not len(found[split]):
            raise DataError(
                f'No row {where} has a label. Name another with --validation-split, or predict the classes of its '
                f'images: xception-hub predict.'
            )
    return found


def _class_names(labels: Labels, parts: dict[str, np.ndarray], dataset: str, least: int) -> list[str]:
    """The dataset's own, in its own order; else those that occur in the first split."""
    class_names = labels.declared or columns.in_order(labels.names_in(next(iter(parts.values()))))
    if len(class_names) < least:
        raise DataError(f'{dataset} has {len(class_names)} class ({listed(class_names)}); training needs two or more.')
    for split, rows in parts.items():
        if unknown := sorted(labels.names_in(rows) - {*class_names}):
            raise DataError(
                f'The split {split!r} of {dataset} has classes that are not trained on: {listed(unknown)}. To validate '
                f'on a share of the training images: --validation-split "".'
            )
    return class_names


def _one_row_for_each(
    labels: Labels,
    parts: dict[str, np.ndarray],
    first: dict[str, int],
    sources: dict[str, Any],
    settings: DataSettings,
    notes: list[str],
) -> tuple[Labels, dict[str, np.ndarray]]:
    """The labels of images that have a row for each of their labels, joined; and the first row of each image."""
    cells, stay = labels.cells.copy(), dict(parts)
    for split, rows in parts.items():
        if settings.repeated_images == 'rows' or not isinstance(sources[split], Dataset):
            continue
        images = columns.cells(sources[split], 'image')
        is_file = pc.is_null(pc.struct_field(images, 'bytes'))  # images inside the dataset may all have one name
        paths = pc.if_else(is_file, pc.struct_field(images, 'path'), None).take(pyarrow.array(rows - first[split]))
        if pc.count_distinct(paths).as_py() + paths.null_count >= len(rows):
            continue
        of_image: dict[Any, list[int]] = {}
        for row, path in zip(rows.tolist(), paths.to_pylist()):
            of_image.setdefault(path or row, []).append(row)
        unlike = [path for path, found in of_image.items() if len({*labels.cells[found]}) > 1]
        if unlike and settings.repeated_images is None:
            both = listed(map(repr, dict.fromkeys(labels.cells[of_image[unlike[0]]])))
            raise DataError(
                f'{len(unlike)} images of {name_of(settings)} have rows with different labels: {unlike[0]} has {both}. '
                f'If an image has all the labels of its rows: --repeated-images labels. If each row is an example: '
                f'--repeated-images rows.'
            )
        stay[split] = np.array([found[0] for found in of_image.values()])
        if settings.repeated_images is None:
            notes.append(
                f'{len(rows) - len(of_image)} rows of the split {split!r} repeat an image with the same label, and are '
                f'left aside; --repeated-images rows keeps them.'
            )
        else:
            for found in of_image.values():
                several = [cell if labels.multi_label else (cell,) for cell in labels.cells[found]]
                cells[found[0]] = tuple(dict.fromkeys(name for names in several for name in names))
    if settings.repeated_images != 'labels':
        return labels, stay
    sets = [cell if cell is None or isinstance(cell, tuple) else (cell,) for cell in cells]
    cells = np.fromiter(sets, object, len(sets))
    return replace(labels, cells=cells, multi_label=True), stay


def _groups(tables: dict[str, Table], used: Sequence[str], settings: DataSettings, notes: list[str]) -> np.ndarray:
    """[N] number of each row's group, one split after the other; empty without groups."""
    name, given, none = name_of(settings), settings.group_column, np.empty(0, np.int64)
    features = [table.rows.features for table in tables.values()]
    column = by_name([name for name in features[0] if name not in used], GROUP_COLUMNS) if given is None else given
    if not column:
        return none
    if given:
        for found in features:
            columns.existing(column, found, name, 'group')
    elif not all(column in found and isinstance(t.rows, Dataset) for found, t in zip(features, tables.values())):
        return none
    parts = [_column(table, column).cast(pyarrow.string()) for table in tables.values()]
    codes, values = columns.distinct(pyarrow.chunked_array([chunk for part in parts for chunk in part.chunks]))
    nothing = np.array([*map(bool, values), False])[codes] == 0  # each image without a group is one
    codes[nothing] = len(values) + np.arange(nothing.sum())
    count, is_unclear = len(np.unique(codes)), plain(column) in UNCLEAR_GROUPS
    if given is None and (count in (1, len(codes)) or (is_unclear and len(tables) > 1)):
        return none
    if given is None and is_unclear:
        raise DataError(
            f'The column {column!r} of {name} may be what images have in common. If all of one {column} belong into '
            f'the same split: --group-column {shlex.quote(column)}. If not: --group-column "".'
        )
    both = np.intersect1d(codes[: len(parts[0])], codes[len(parts[0]) :])
    if len(both):
        warnings.warn(
            f'{len(both)} of the {count} groups by {column!r} have images in the training and in the validation split, '
            f'so that the figures will be better than the model is. To hold out a share of whole groups instead: '
            f'--validation-split "".',
            stacklevel=3,
        )
    if given is None and len(tables) == 1:
        notes.append(f'A share for validation has whole groups of the {count} by {column!r}; none: --group-column "".')
    return codes


# Images


def _names_files(feature: Any) -> bool:
    """Whether a column holds paths, or numbers that may be names of files."""
    return isinstance(feature, datasets.Value) and ('string' in feature.dtype or 'int' in feature.dtype)


def _images(table: Table, column: str, notes: list[str]) -> Dataset | IterableDataset:
    """A split's images, undecoded, as its only column; how they were found is added to the notes."""
    feature, folder = table.rows.features[column], table.settings.image_folder
    if _names_files(feature) and isinstance(table.rows, Dataset):
        written = columns.cells(table.rows, column).cast(pyarrow.string())
        if BASE64.fullmatch(next(filter(None, written.slice(0, 100).to_pylist()), '')):
            return cells_of_texts(written)
        if table.folders or folder:
            files, more = locate(written, table.dataset, table.folders, folder)
            notes += more
            return cells_of(files)
    dtype = feature.dtype if isinstance(feature, datasets.Value) else ''
    file = isinstance(feature, dict) and set(feature) == {'path', 'bytes'}
    if not (isinstance(feature, Image) or file or 'string' in dtype or 'binary' in dtype):
        raise DataError(f'The column {column!r} of {table.dataset} holds {dtype or feature}, and no images or paths.')
    if folder:
        raise DataError(f'{table.dataset} holds the images themselves. Leave out --image-folder {folder}.')
    rows = table.rows.select_columns([column])
    rows = rows if column == 'image' else rows.rename_column(column, 'image')
    return rows.cast_column('image', IMAGE_CELLS['image'])


def digest_of_files(source: Dataset) -> str:
    """Digest of the names of all image files, with their folders', and of their sizes. No file is opened."""
    digest = hashlib.sha256()
    for batch in source.with_format('arrow').iter(batch_size=50_000):
        cells = batch['image'].combine_chunks()
        sizes = pc.binary_length(cells.field('bytes')).to_pylist()
        for path, size in zip(cells.field('path').to_pylist(), sizes):
            name = '/'.join((path or '').rsplit('/', 2)[-2:])
            digest.update(f'{name} {_size(path) if size is None else size}\n'.encode())
    return digest.hexdigest()


def _size(path: str | None) -> int | None:
    """Bytes of a local file."""
    if not path or '://' in path:
        return None
    try:
        return os.stat(path).st_size
    except OSError:
        return None
