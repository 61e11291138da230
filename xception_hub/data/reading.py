"""What the name of a dataset means, read as tables with a row for each image; images stay undecoded.

    a name on the Hub, a save_to_disk directory               -> as `datasets` reads it
    tables: one file, several, or a folder of them            -> texts as they stand there
    a folder of images                                        -> by its folders, or by the metadata files in it

Ours where `datasets` would guess: its imagefolder drops the labels of a single class, of mixed depths and beside a
metadata file, without a word; its csv reads 001 as 1.
"""

import glob
from collections.abc import Collection, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import yaml
from datasets import Dataset, Features, Image, IterableDataset
from huggingface_hub import metadata_load

from ..errors import DataError, in_one_line
from ..images import is_lfs_pointer
from ..weights.sources import hub_or_cache
from .columns import label_by_name
from .folders import Folder, listed, read_folder, understand
from .split_names import split_of
from .tables import TABLES, as_text

METADATA = ('metadata.csv', 'metadata.jsonl', 'metadata.parquet')
FILE_NAME = 'file_name'  # the column of a metadata file that names the image
READERS = ('arrow', 'csv', 'hdf5', 'json', 'lance', 'parquet', 'webdataset')  # of `datasets`, for what may hold images
OF_SAVED = ('state.json', 'dataset_dict.json', 'dataset_info.json')  # files that `save_to_disk` writes
ARCHIVES = ('.zip', '.tar', '.tgz', '.gz', '.7z', '.rar')


@dataclass(frozen=True)
class Table:
    """A split, as it is written in the dataset.

    Attributes:
        dataset: Name of the dataset.
        split: Name of the split in it.
        rows: Its rows, a Dataset or an IterableDataset, with a column of images or paths, and one or several of labels.
        folders: Folders that paths may be relative to.
        config: Configuration of the dataset.
    """

    dataset: str
    split: str
    rows: Any
    folders: tuple[Path, ...] = ()
    config: str | None = None


@dataclass(frozen=True)
class Found:
    """The splits of a dataset, and what was left out or assumed, in sentences."""

    tables: dict[str, Table]
    notes: list[str] = field(default_factory=list)


def read(
    dataset: str,
    config: str | None = None,
    *,
    named: Collection[str] = (),
    folders: str | None = None,
    skip_empty: bool = False,
    label_column: str | None = None,
    streaming: bool = False,
    columns: list[str] | None = None,
) -> Found:
    """Reads all splits of a dataset.

    Args:
        dataset: A name on the Hub, or a path: of a folder, of a file, or a pattern (data/*.parquet) of several.
        config: Configuration of a dataset that has several.
        named: Splits that the caller wants.
        folders: What the folders of a folder are where several readings are possible, see `folders.READINGS`.
        skip_empty: Leave out classes of a folder that have no image.
        label_column: Column of the labels, if the caller named one.
        streaming: Do not copy the rows of what holds images inside.
        columns: Columns of a stream that are wanted, if the format can be read by columns; None for all.

    Raises:
        DataError: There is no such dataset, it cannot be read, or it can be read in several ways.
    """
    path = Path(dataset)
    if path.is_dir() and is_saved(path):
        return _whole(dataset, None, lambda: datasets.load_from_disk(dataset))
    if path.is_dir():
        root = read_folder(path)
        metadata = [] if folders not in (None, 'metadata') else _metadata(root)
        declared = root.all_tables() and _declares_files(path)
        if metadata and not declared and (found := _by_metadata(root, metadata, folders, label_column)):
            return found
        if folders == 'metadata':
            raise DataError(
                f'{dataset} has no {", ".join(METADATA)} with a column {FILE_NAME}. Leave out --folders metadata, or '
                f'name a table as the dataset.'
            )
        if root.all_images() and not declared:
            return _by_folders(root, named, folders, skip_empty)
        return _folder_of_tables(root, config, streaming, columns)
    files = [path] if path.is_file() else [Path(name) for name in sorted(glob.glob(dataset, recursive=True))]
    if files:
        return Found({'train': _table(dataset, 'train', files, streaming, columns)})
    return _whole(dataset, config, lambda: _load(streaming, columns, dataset, config))


def is_saved(path: Path) -> bool:
    """Whether `save_to_disk` wrote a directory."""
    return any((path / name).is_file() for name in OF_SAVED if name != 'dataset_info.json')


# What `datasets` reads


def _whole(dataset: str, config: str | None, load: Any) -> Found:
    try:
        with nullcontext() if Path(dataset).exists() else hub_or_cache():
            found = load()
    except Exception as e:  # of the dataset's library, of the Hub's and of the network: no error in common
        if Path(dataset).exists():
            raise DataError(f'{dataset} cannot be read as a dataset ({in_one_line(e.__cause__ or e)}).') from e
        if 'Config name is missing' in str(e):
            raise DataError(f'{dataset} has several configurations: name one with --dataset-config ({e}).') from e
        raise DataError(
            f'{dataset} is neither a path here nor a dataset that can be had from the Hub ({in_one_line(e)}).'
        ) from e
    splits = {'train': found} if isinstance(found, (Dataset, IterableDataset)) else found
    return Found({str(name): Table(dataset, str(name), rows, (), config) for name, rows in splits.items()})


def _load(streaming: bool, columns: list[str] | None, *args: Any, **options: Any) -> Any:
    if columns:
        return datasets.load_dataset(*args, streaming=True, columns=columns, **options)
    found = datasets.load_dataset(*args, streaming=streaming, **options)
    if streaming and all(split.features for split in found.values()):
        return {name: _in_row_groups(split.decode(False)) for name, split in found.items()}
    # the types of a text's columns depend on all of its rows, which have to be read for the labels anyway
    return datasets.load_dataset(*args, **options) if streaming else found


def _in_row_groups(stream: IterableDataset) -> IterableDataset:
    """A stream that reads Parquet by row groups; of a whole file, Arrow reads up to a gigabyte ahead."""
    return stream.reshard() if hasattr(stream, 'reshard') else stream


# Tables


def _table(dataset: str, split: str, files: Sequence[Path], streaming: bool, columns: list[str] | None = None) -> Table:
    """The rows of files of one kind, one after the other."""
    kinds = {file.suffix.lower() for file in files}
    strange = sorted(kinds - {*TABLES})
    if strange:
        unpack = ' Unpack it, and name the folder.' if strange[0] in ARCHIVES else ''
        raise DataError(f'{dataset} ends in {strange[0]!r}; a table ends in one of {", ".join(TABLES)}.{unpack}')
    if len({TABLES[kind] for kind in kinds}) > 1:
        raise DataError(f'{dataset} names tables of several kinds: {", ".join(sorted(kinds))}. Name those of one.')
    for file in files:
        if is_lfs_pointer(file):
            raise DataError(f'{file} is a pointer of Git LFS. Fetch the file itself: git lfs pull, in {file.parent}.')
    kind = TABLES[files[0].suffix.lower()]
    try:
        options = [as_text(file) for file in files] if kind == 'csv' else [{}]
        if any(other != options[0] for other in options):
            raise DataError(f'The tables of {dataset} have different columns. Make them alike, or name one of them.')
        found = _load(streaming and kind == 'parquet', columns, kind, data_files=list(map(str, files)), **options[0])
    except DataError:
        raise
    except Exception as e:  # as above
        raise DataError(f'{dataset} cannot be read as a table ({in_one_line(e.__cause__ or e)}).') from e
    return Table(dataset, split, found['train'], tuple(dict.fromkeys(file.parent for file in files)))


def _folder_of_tables(root: Folder, config: str | None, streaming: bool, columns: list[str] | None) -> Found:
    """A folder without images: tables by their splits, as in a cloned repository; else what `datasets` makes of it."""
    dataset = str(root.path)
    try:
        builder = datasets.load_dataset_builder(dataset, config)
        files = {str(name): list(map(Path, paths)) for name, paths in (builder.config.data_files or {}).items()}
    except Exception as e:  # as above
        several = ' Name one with --dataset-config.' if 'Config name is missing' in str(e) else ''
        raise DataError(
            f'{dataset} holds no image that can be read, and no dataset ({in_one_line(e)}).{several} '
            f'{listed(root.left_out())}'.strip()
        ) from e
    reader = type(builder).__module__.rpartition('.')[2]
    for file in (file for paths in files.values() for file in paths):
        if file.suffix.lower() in ARCHIVES and reader != 'webdataset':
            raise DataError(f'{file} is an archive. Unpack it, and name the folder.')
    if reader not in READERS:
        raise DataError(f'{dataset} holds no image that can be read. {listed(root.left_out())}'.strip())
    if all(file.suffix.lower() in TABLES for paths in files.values() for file in paths):
        found = Found({name: _table(dataset, name, paths, streaming, columns) for name, paths in files.items()})
    else:
        found = _whole(dataset, config, lambda: _load(streaming, columns, dataset, config))
    used = {file.resolve() for paths in files.values() for file in paths}
    aside = [file for file in root.all_tables() if file.resolve() not in used and file.name not in OF_SAVED]
    if aside:
        found.notes.append(f'Left aside in {dataset}: {", ".join(str(f.relative_to(root.path)) for f in aside[:6])}.')
    return found


def _declares_files(path: Path) -> bool:
    """Whether a repository's README.md says how its tables are to be read: then its images are illustrations."""
    try:
        data = metadata_load(path / 'README.md') or {}
    except (OSError, ValueError, yaml.YAMLError):
        return False
    return bool(data.get('configs') or data.get('dataset_info'))


# Folders of images


def _by_folders(root: Folder, named: Collection[str], folders: str | None, skip_empty: bool) -> Found:
    """The splits of a folder, their classes sorted as strings."""
    by_table = ''
    if others := [folder for folder in root.all() if any(table.name not in OF_SAVED for table in folder.tables)]:
        tables_only = len(others[0].tables) > 1 and not others[0].all_images()
        by_table = f' If a table names the images: --dataset {others[0].path if tables_only else others[0].tables[0]}.'
    try:
        tree = understand(root, named, folders, skip_empty)
    except DataError as e:
        raise DataError(f'{e}{by_table}') from e
    single = {name for classes in tree.splits.values() for name in classes}
    if others and len(single) == 1 and folders is None:
        raise DataError(f'{root.path} has a single class, {single.pop()!r}. If so: --folders outer.{by_table}')
    found = {}
    for name, classes in tree.splits.items():
        rows: dict[str, list[Any]] = dict(image=[], label=[])
        for class_name, images in classes.items():
            rows['image'] += [{'path': str(path), 'bytes': None} for path in images]
            rows['label'] += [class_name] * len(images)
        features = Features(image=Image(decode=False), label=datasets.Value('string'))
        found[name] = Table(str(root.path), name, Dataset.from_dict(rows, features=features))
    return Found(found, tree.notes)


def _metadata(root: Folder) -> list[Path]:
    return [folder.path / name for folder in root.all() for name in METADATA if (folder.path / name).is_file()]


def _by_metadata(root: Folder, files: list[Path], folders: str | None, label_column: str | None) -> Found | None:
    """The splits of a folder whose metadata files name images and labels; None if its folders are to be read.

    Raises:
        DataError: The labels may be in the metadata files, and may be the names of folders.
    """
    parts: dict[str, list[Dataset]] = {}
    labels, named = set(), set()
    for file in files:
        rows = _table(str(file), 'train', [file], False).rows
        columns = rows.column_names or []
        if FILE_NAME not in columns:
            return None
        label = label_by_name(rows.features, label_column)
        if label is None and folders is None and len(root.folders) > 1:
            return None  # captions, or boxes
        paths = [_below(file.parent / str(name), root.path) for name in rows[FILE_NAME]]
        named |= {root.path / path for path in paths}
        if label:
            labels |= {(path.parent.name, str(value)) for path, value in zip(paths, rows[label])}
        outer = {path.parts[0] if len(path.parts) > 1 else '' for path in paths}
        rows = rows.map(_with_path, input_columns=FILE_NAME, fn_kwargs=dict(folder=str(file.parent)))
        by_split: dict[str, list[int]] = {}
        for row, path in enumerate(paths):
            name = path.parts[0] if all(split_of(first) for first in outer) else 'train'
            by_split.setdefault(name, []).append(row)
        for name, chosen in by_split.items():
            parts.setdefault(name, []).append(rows.select(chosen))
    inside = {folder for folder, _ in labels if not split_of(folder)}
    if folders is None and len(inside) > 1 and any(folder != label for folder, label in labels):
        first = files[0].relative_to(root.path)
        raise DataError(
            f'{root.path} has labels in {first}, and others in the names of its folders: '
            f'{", ".join(sorted(inside)[:6])}. If {first.name} is right: --folders '
            f'metadata. If the folders are: --folders outer.'
        )
    notes = [f'Images and labels are those of {", ".join(str(f.relative_to(root.path)) for f in files[:6])}.']
    unnamed = [image for image in root.all_images() if image not in named]
    if unnamed:
        notes.append(f'{len(unnamed)} images are left out, which these do not name: {unnamed[0]} ...')
    dataset = str(root.path)
    tables = {name: Table(dataset, name, _joined(dataset, rows), (root.path,)) for name, rows in parts.items()}
    return Found(tables, notes)


def _joined(dataset: str, parts: list[Dataset]) -> Dataset:
    try:
        return datasets.concatenate_datasets(parts)
    except ValueError as e:
        raise DataError(f'The metadata files of {dataset} have columns that do not fit together ({e}).') from e


def _below(path: Path, folder: Path) -> Path:
    return path.relative_to(folder) if path.is_relative_to(folder) else Path(path.name)


def _with_path(name: str, folder: str) -> dict[str, str]:
    return {FILE_NAME: str(Path(folder) / name)}
