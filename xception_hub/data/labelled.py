"""From the settings to what a model is trained on: labelled images, in a training and a validation split.

    table (what the dataset is) -> splits (whose rows) -> columns (images and labels) -> paths (files) -> `Data`

Any dataset can be streamed: then only the labels are read beforehand, and images come in the order of the dataset.
"""

import contextlib
import hashlib
import os
import shlex
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
from .table import IMAGE_CELLS, Table, cells_of, name_of, read

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

    def items(self) -> Iterator[tuple[int, Cell | None]]:
        """All indices in order; only those of a stream come with their image files."""
        return self.cells() if self.streamed else ((index, None) for index in range(len(self)))

    def image(self, index: int, min_side: int | None = None, cell: Cell | None = None) -> PIL.Image.Image:
        """An image, decoded by `images.open_image`; that of a stream by its file.

        Raises:
            ImageError: It cannot be used; the message names it.
        """
        cell = self.cell(index) if cell is None else cell
        try:
            path = cell.get('path') or '://'
            local = cell.get('bytes') is None and '://' not in path
            return open_image(path if local else content(cell), min_side, self.grey_maximum)
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
    features = next(iter(tables.values())).rows.features
    image = columns.image_column(features, name, settings.image_column)
    tables = {split: _unstreamed(table, image) for split, table in tables.items()}
    given = columns.label_columns({n: t.rows for n, t in tables.items()}, name, settings.label_column, image)
    optional = own if own and settings.validation_split is None and train else None
    if optional and given[0] not in tables[optional].rows.features:
        notes.append(f'The split {optional!r} is left aside: it has no column {given[0]!r}.')
        del tables[optional]
        own = optional = None
    for split, table in tables.items():
        for column in (image, *given):
            if column not in table.rows.features:
                raise DataError(f'The split {split!r} of {table.dataset} has no column {column!r}.')
    labels, sizes = _labels(tables, given, settings, notes)
    ends = np.cumsum([*sizes.values()])
    parts = {split: np.arange(end - size, end) for (split, size), end in zip(sizes.items(), ends)}
    if optional and _has_no_labels(labels, parts[optional]):
        notes.append(f'The split {optional!r} is left aside: none of its {sizes[optional]} images has a label.')
        del parts[optional]
        own = None
    kept = _labelled(labels, parts, settings, notes)
    sources = {split: _images(tables[split], image, notes) for split in kept}
    labels, kept = _one_row_for_each(labels, kept, {split: rows[0] for split, rows in parts.items()}, sources, settings)
    class_names = _class_names(labels, kept, name, 1 if evaluation else 2)
    groups = _groups(tables, (image, *given), settings, notes)
    found = {}
    for split, rows in kept.items():
        source, numbers = sources[split], replace(labels, codes=labels.codes[rows]).numbers(class_names)
        files = digest_of_files(source) if isinstance(source, Dataset) else ''
        if settings.streaming and isinstance(source, Dataset):
            source = source.to_iterable_dataset()
        of_rows = groups[rows] if len(groups) else groups
        found[split] = Split(split, source, rows - parts[split][0], numbers, files, settings.grey_maximum, of_rows)
    none = next(iter(found.values())).select([])
    one, other = (found.get(split or '', none) for split in (train, own))
    return Data(one, other, class_names, labels.multi_label, bool(own), tuple(notes))


def unlabelled(settings: DataSettings) -> tuple[Split, list[str]]:
    """The images of a table or a dataset whose labels do not matter, and what was left out or assumed.

    Raises:
        DataError: It cannot be read, has no column of images, or has several splits.
    """
    found = read(settings)
    tables, name = found.tables, name_of(settings)
    split = settings.validation_split
    if split is None and len(tables) > 1:
        raise DataError(f'{name} has the splits {listed(tables)}. Name one with --split.')
    split = split or next(iter(tables))
    if split not in tables:
        raise DataError(f'{name} has no split {split!r}, but {listed(tables)}.')
    image = columns.image_column(tables[split].rows.features, name, settings.image_column)
    source = _images(tables[split], image, found.notes)
    return _without_labels(split, source, settings), found.notes


def files_of(paths: Sequence[str], settings: DataSettings) -> Split:
    """Image files whose labels do not matter.

    Raises:
        DataError: A name is not UTF-8.
    """
    return _without_labels('files', cells_of(paths), settings)


def _without_labels(name: str, source: Any, settings: DataSettings) -> Split:
    nothing = np.zeros(len(source), np.int64)
    return Split(name, source, np.arange(len(source)), nothing, digest_of_files(source), settings.grey_maximum)


# The steps


def _splits(settings: DataSettings, evaluation: bool) -> tuple[dict[str, Table], str | None, str | None, list[str]]:
    """The tables that are used, the names of those for training and for validation, and notes."""
    settings = replace(settings, validation_split='') if settings.folds and not evaluation else settings
    named = [name for name in (None if evaluation else settings.train_split, settings.validation_split) if name]
    found = read(settings, named)
    tables, settings = splits.folded(splits.divided(found.tables, settings), settings)
    notes = [*found.notes]
    if settings.validation_table:
        other = read(replace(settings, dataset=settings.validation_table), named)
        tables, settings = splits.beside(tables, other.tables, settings, evaluation)
        notes += other.notes
    train, own = splits.choose(tables, settings, evaluation)
    if unused := [name for name in tables if name not in (train, own)]:
        notes.append(f'Left aside: the splits {listed(unused)}.')
    return {name: tables[name] for name in (train, own) if name}, train, own, notes


def _unstreamed(table: Table, image: str) -> Table:
    """A table with its rows here if it names its images instead of holding them: they are looked up all at once."""
    if isinstance(table.rows, IterableDataset) and table.folders and _names_files(table.rows.features.get(image)):
        rows = read(replace(table.settings, streaming=False)).tables[table.split].rows
        return replace(table, rows=rows)
    return table


def _labels(
    tables: dict[str, Table], given: list[str], settings: DataSettings, notes: list[str]
) -> tuple[Labels, dict[str, int]]:
    """The labels of all rows, one split after the other, and the number of rows in each."""
    name, first = name_of(settings), next(iter(tables.values()))
    for split, table in tables.items():
        if isinstance(table.rows, Dataset) and not len(table.rows):
            raise DataError(f'The split {split!r} of {table.dataset} is empty.')
    if len(given) > 1:
        rows = {split: table.rows for split, table in tables.items()}
        if not all(isinstance(r, Dataset) for r in rows.values()):
            raise DataError(f'{name} is a stream: the columns {listed(given)} cannot be read. Leave out --streaming.')
        labels, note = columns.read_class_columns(rows, given, settings)
        notes.append(note)
        return labels, {split: len(r) for split, r in rows.items()}
    column = given[0]
    try:
        cells = {split: _column(table, column) for split, table in tables.items()}
    except Exception as e:  # of files, formats and the network: no error in common
        raise DataError(f'The labels of {first.dataset} cannot be read ({in_one_line(e)}).') from e
    for split, values in cells.items():
        if not len(values):
            raise DataError(f'The split {split!r} of {tables[split].dataset} is empty.')
    kinds = [table.rows.features[column] for table in tables.values()]
    layout = not first.folders and column == 'label'
    labels = columns.read_labels([*cells.values()], kinds, settings, name, column, layout)
    return labels, {split: len(values) for split, values in cells.items()}


def _column(table: Table, column: str) -> pyarrow.ChunkedArray:
    """All cells of a column, read without the images."""
    rows = table.rows
    if isinstance(rows, Dataset):
        return columns.cells(rows, column)
    with contextlib.suppress(DataError):  # of formats that can't be read by columns
        rows = read(table.settings, columns=[column]).tables[table.split].rows
    values = [row[column] for row in rows.select_columns([column])]
    return pyarrow.chunked_array([pyarrow.array(values)])


def _has_no_labels(labels: Labels, rows: np.ndarray) -> bool:
    """Whether no image of a split has a label, as in the test splits of competitions."""
    return not labels.multi_label and labels.names_in(rows) <= {NO_LABEL}


def _labelled(
    labels: Labels, parts: dict[str, np.ndarray], settings: DataSettings, notes: list[str]
) -> dict[str, np.ndarray]:
    """The rows of each split that have a label.

    Raises:
        DataError: Rows have no label, or -1 may mean that they have none.
    """
    dataset = name_of(settings)
    is_mark = NO_LABEL in labels.values and NO_LABEL not in (labels.declared or ())
    marked = labels.values.index(NO_LABEL) if is_mark else -2
    others = labels.names_in(np.concatenate([*parts.values()])) - {NO_LABEL}
    numbers = len(others) > 1 and all(text.isdecimal() for text in others) and not labels.declared
    found = {}
    for name, rows in parts.items():
        codes = labels.codes[rows]
        if numbers and settings.unlabelled == 'error' and (count := (codes == marked).sum()):
            raise DataError(
                f'The split {name!r} of {dataset} has {count} labels {NO_LABEL} beside {listed(sorted(others), 4)}. If '
                f'they mean that there is no label: --unlabelled skip. If {NO_LABEL} is a class: --unlabelled class.'
            )
        missing = codes == -1
        if missing.any() and 'skip' not in (settings.unlabelled, settings.blank_label, settings.uncertain):
            raise DataError(
                f'{missing.sum()} rows of the split {name!r} of {dataset} have no label, the first of them row '
                f'{np.flatnonzero(missing)[0]}. Label them, or leave them aside with --unlabelled skip.'
            )
        if labels.declared or (numbers and settings.unlabelled == 'skip'):
            missing |= codes == marked
        found[name] = rows[~missing]
        if missing.any():
            notes.append(f'{missing.sum()} of {len(rows)} rows of the split {name!r} are left aside: without a label.')
        if not len(found[name]):
            raise DataError(
                f'No row of the split {name!r} of {dataset} has a label. Name another with --validation-split, or '
                f'predict the classes of its images: xception-hub predict.'
            )
    return found


def _class_names(labels: Labels, kept: dict[str, np.ndarray], dataset: str, least: int) -> list[str]:
    """The dataset's own, in its own order; else those that occur in the first split.

    Raises:
        DataError: There are fewer than `least`, or another split has more.
    """
    first, *others = kept
    class_names = labels.declared or columns.in_order(labels.names_in(kept[first]))
    if len(class_names) < least:
        raise DataError(
            f'{dataset} has {len(class_names)} class ({listed(class_names) or "none"}); there is nothing to learn from '
            f'less than two.'
        )
    for name in others:
        if unknown := sorted(labels.names_in(kept[name]) - {*class_names}):
            raise DataError(
                f'The split {name!r} of {dataset} has classes that are not trained on: {listed(unknown)}. '
                f'To validate on a share of the training images: --validation-split "".'
            )
    return class_names


def _one_row_for_each(
    labels: Labels, kept: dict[str, np.ndarray], first: dict[str, int], sources: dict[str, Any], settings: DataSettings
) -> tuple[Labels, dict[str, np.ndarray]]:
    """The labels of images that have a row for each of their labels, joined; and the rows that stay.

    Raises:
        DataError: Images are under several labels, which may be all right or a mistake.
    """
    values, codes, stay = list(labels.values), labels.codes.copy(), dict(kept)
    for split, rows in kept.items():
        if settings.repeated_images == 'rows' or not isinstance(sources[split], Dataset):
            continue
        paths = pc.struct_field(columns.cells(sources[split], 'image'), 'path').take(pyarrow.array(rows - first[split]))
        if pc.count_distinct(paths).as_py() + paths.null_count >= len(rows):
            continue
        image, names = columns.distinct(paths)
        pairs = np.unique(np.stack([image, labels.codes[rows]]), axis=1)
        pairs = pairs[:, pairs[0] >= 0]
        several = np.flatnonzero(np.bincount(pairs[0]) > 1)
        if len(several) and settings.repeated_images is None:
            both = [labels.values[code] for code in pairs[1][pairs[0] == several[0]]]
            raise DataError(
                f'{len(several)} images of {name_of(settings)} have rows with different labels: {names[several[0]]} '
                f'has {listed(map(repr, both))}. If an image has all the labels of its rows: --repeated-images labels. '
                f'If each row is an example: --repeated-images rows.'
            )
        if settings.repeated_images == 'labels':
            once, start = np.unique(image, return_index=True)
            stay[split] = np.sort(np.concatenate([rows[start[once >= 0]], rows[image < 0]]))
            of_image = dict(zip(once.tolist(), rows[start].tolist()))
            sets: dict[int, list[str]] = {}
            for number, code in pairs.T.tolist():
                value = labels.values[code]
                sets.setdefault(of_image[number], []).extend(value if labels.multi_label else [value])
            for row, found in sets.items():
                codes[row] = len(values)
                values.append(tuple(dict.fromkeys(found)))
    if settings.repeated_images != 'labels':
        return labels, kept
    values = [value if isinstance(value, tuple) else (value,) for value in values]
    return replace(labels, codes=codes, values=values, multi_label=True), stay


def _groups(tables: dict[str, Table], used: Sequence[str], settings: DataSettings, notes: list[str]) -> np.ndarray:
    """[N] number of each row's group, one split after the other; empty without groups.

    Raises:
        DataError: There is no such column.
    """
    none = np.empty(0, np.int64)
    features, given = next(iter(tables.values())).rows.features, settings.group_column
    column = by_name([name for name in features if name not in used], GROUP_COLUMNS) if given is None else given
    here = [t for t in tables.values() if column in t.rows.features and (given or isinstance(t.rows, Dataset))]
    if given and len(here) < len(tables):
        raise DataError(f'{name_of(settings)} has no column {given!r}, but {listed(features, 20)}.')
    if not column or len(here) < len(tables):
        return none
    codes = columns.joined([columns.distinct(_column(table, column)) for table in here]).codes
    nothing = codes < 0  # each image without a group is one
    codes[nothing] = codes.max() + 1 + np.arange(nothing.sum())
    count = len(np.unique(codes))
    if given is None and count in (1, len(codes)):
        return none
    if given is None and plain(column) in UNCLEAR_GROUPS and len(tables) == 1:
        raise DataError(
            f'The column {column!r} of {name_of(settings)} may be what images have in common. If all of one {column} '
            f'belong into the same split: --group-column {shlex.quote(column)}. If not: --group-column "".'
        )
    if given is None:
        notes.append(f'A share for validation has whole groups of the {count} by {column!r}; none: --group-column "".')
    return codes


# Images


def _names_files(feature: Any) -> bool:
    """Whether a column holds paths, or numbers that may be names of files."""
    return isinstance(feature, datasets.Value) and ('string' in feature.dtype or 'int' in feature.dtype)


def _images(table: Table, column: str, notes: list[str]) -> Dataset | IterableDataset:
    """A split's images, undecoded, as its only column; how they were found is added to the notes."""
    if column not in table.rows.features:
        raise DataError(f'{table.dataset} has no column {column!r}, but {listed(table.rows.features, 20)}.')
    feature, folder = table.rows.features[column], table.settings.image_folder
    if _names_files(feature) and isinstance(table.rows, Dataset) and (table.folders or folder):
        written = columns.cells(table.rows, column).cast(pyarrow.string())
        files, more = locate(written, table.dataset, table.folders, folder)
        notes += more
        return cells_of(files)
    dtype = feature.dtype if isinstance(feature, datasets.Value) else ''
    file = isinstance(feature, dict) and set(feature) == {'path', 'bytes'}
    if not (isinstance(feature, Image) or file or 'string' in dtype or 'binary' in dtype):
        raise DataError(
            f'The column {column!r} of {table.dataset} holds {dtype or feature} instead of images or paths.'
        )
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
        paths, lengths = cells.field('path'), pc.binary_length(cells.field('bytes'))
        if lengths.null_count:
            own = [
                _size(path) if length is None else length
                for path, length in zip(paths.to_pylist(), lengths.to_pylist())
            ]
            lengths = pyarrow.array(own, pyarrow.int64())
        names = pc.replace_substring_regex(pc.fill_null(paths, ''), r'^.*/([^/]*/[^/]*)$', r'\1')
        lines = pc.binary_join_element_wise(names, pc.fill_null(lengths.cast(pyarrow.string()), 'None'), ' ')
        digest.update(''.join(f'{line}\n' for line in lines.to_pylist()).encode())
    return digest.hexdigest()


def _size(path: str | None) -> int | None:
    """Bytes of a local file."""
    if not path or '://' in path:
        return None
    try:
        return os.stat(path).st_size
    except OSError:
        return None
