"""What a dataset is, as tables with a row for each image; images stay undecoded.

    a name on the Hub, a save_to_disk directory               -> as `datasets` reads it
    tables: one file, several, or a folder of them            -> texts as they stand there
    a folder of images                                        -> by its folders, or by the metadata files in it
    a table of pandas, of Arrow or of `datasets`              -> as it is

Ours where `datasets` would guess: its imagefolder drops the labels of a single class, of mixed depths and beside a
metadata file, without a word; its csv reads 001 as 1.
"""

import base64
import csv
import glob
import json
import os
import re
import shlex
import warnings
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.compute as pc
import yaml
from datasets import Dataset, Features, Image, IterableDataset
from huggingface_hub import metadata_load

from ..errors import DataError, in_one_line, listed
from ..images import IMAGE_SUFFIXES, is_lfs_pointer
from ..weights.sources import hub_or_cache
from .columns import label_by_name
from .data_settings import DataSettings
from .folders import Folder, read_folder, understand
from .known_names import IMAGE_COLUMNS, LABEL_COLUMNS, by_name, plain, split_of
from .paths import texts

METADATA = ('metadata.csv', 'metadata.jsonl', 'metadata.parquet')
FILE_NAME = 'file_name'  # the column of a metadata file that names the image
READERS = ('arrow', 'csv', 'hdf5', 'json', 'lance', 'parquet', 'webdataset')  # of `datasets`, for what may hold images
OF_SAVED = ('state.json', 'dataset_dict.json')  # files that `save_to_disk` writes, beside dataset_info.json
ARCHIVES = ('.zip', '.tar', '.tgz', '.gz', '.7z', '.rar')
TRIED, LARGEST_TRIED = 20, 10**8  # tables beside images that are looked into, and bytes of one
DELIMITERS = ',;\t|'
IMAGE_CELLS = Features(image=Image(decode=False))
# The beginning of an image file (JPEG, PNG, GIF, WebP, TIFF) in base64, or an address that is the file.
BASE64 = re.compile(r'(data:image/[\w.+-]+;base64,|/9j/|iVBORw0KGgo|R0lGOD|UklGR|SUkq|TU0AK)[\w+/=\s]{60,}')

OBJECTS = (
    ' Objects in .txt or .xml files (YOLO, VOC, CVAT): export them as COCO (a .json), and name that as the dataset.'
)

# Suffix -> what reads such a table.
TABLES = {'.csv': 'csv', '.tsv': 'csv', '.json': 'json', '.jsonl': 'json', '.parquet': 'parquet', '.xlsx': 'excel'}


@dataclass(frozen=True)
class Table:
    """A split, as it is written in the dataset.

    Attributes:
        dataset: Name of the dataset.
        split: Name of the split in it.
        rows: Its rows, a Dataset or an IterableDataset, with a column of images or paths, and one or several of labels.
        folders: Folders that paths may be relative to.
        settings: What it was read with.
    """

    dataset: str
    split: str
    rows: Any
    folders: tuple[str, ...]
    settings: DataSettings


# The splits of a dataset by name; and what was left out or assumed, in sentences.
Found = tuple[dict[str, Table], list[str]]


# Tables from Python: a column is a function of the image's path


def photo_table(files: Iterable[str | os.PathLike[str]], **columns: Callable[[Path], Any]) -> pyarrow.Table:
    """A table of photos, which `DataSettings(dataset=...)` takes.

    Args:
        files: Paths of the photos, such as `images.find_photos` gives them.
        columns: Functions of a photo's path, such as `label=parent_label, split=grandparent_split`.
    """
    paths = [Path(file) for file in files]
    return pyarrow.table({'image': [*map(str, paths)], **{name: [*map(of, paths)] for name, of in columns.items()}})


def parent_label(path: Path) -> str:
    """The name of the folder that a photo is in."""
    return path.parent.name


def grandparent_split(path: Path) -> str:
    """The name of the folder above the one that a photo is in."""
    return path.parent.parent.name


# Any dataset


def read(settings: DataSettings, named: Collection[str] = (), columns: list[str] | None = None) -> Found:
    """All splits of a dataset, of which the caller wants those that are named.

    Only these columns of a stream are read, if its format can be read by columns.
    """
    dataset = settings.dataset
    if not isinstance(dataset, (str, os.PathLike)):
        return _given(dataset, settings)
    path = Path(dataset)
    if is_saved(path):
        return _whole(settings, lambda: datasets.load_from_disk(dataset))
    if path.is_dir():
        root = read_folder(path)
        is_declared = any(map(is_table, root.all_files())) and _declares_files(path)
        if found := None if is_declared else _by_metadata(root, settings):
            return found
        if root.has_images and not is_declared:
            return _by_folders(root, settings, named)
        return _folder_of_tables(root, settings, columns)
    files = [path] if path.is_file() else sorted(map(Path, glob.glob(str(dataset), recursive=True)))
    if files:
        return {'train': _table(settings, 'train', files, columns)}, _beside(files, settings)
    return _whole(settings, lambda: _load(settings.streaming, columns, dataset, settings.dataset_config))


def _beside(files: list[Path], settings: DataSettings) -> list[str]:
    """A note on the table of a split for validation that lies beside that of training."""
    first, *others = files
    if others or split_of(first.stem) != 'train' or settings.validation_table:
        return []
    found = [file for file in sorted(first.parent.glob(f'*{first.suffix}')) if split_of(file.stem) == 'validation']
    return [f'{file} is not read. To validate on it: --validation-table {file}.' for file in found]


def is_saved(path: Path) -> bool:
    """Whether `save_to_disk` wrote a directory."""
    return any((path / name).is_file() for name in OF_SAVED)


def is_table(file: str) -> bool:
    """Whether a file is a table, by its name."""
    name = os.path.basename(file)
    return os.path.splitext(name)[1].lower() in TABLES and name not in (*OF_SAVED, 'dataset_info.json')


def name_of(settings: DataSettings) -> str:
    """The dataset in messages."""
    given = settings.dataset
    return str(given) if isinstance(given, (str, os.PathLike)) else f'the {type(given).__name__} from Python'


def _given(rows: Any, settings: DataSettings) -> Found:
    """A table from Python; paths in it are relative to the current directory."""
    name = name_of(settings)
    try:
        if type(rows).__module__.partition('.')[0] == 'pandas':
            rows = pyarrow.Table.from_pandas(rows, preserve_index=False)
        rows = Dataset(rows) if isinstance(rows, pyarrow.Table) else rows
    except (pyarrow.ArrowException, TypeError, ValueError) as e:
        raise DataError(f'{name} cannot be a table ({in_one_line(e)}).') from e
    splits = rows if isinstance(rows, dict) else {'train': rows}
    if not all(isinstance(split, (Dataset, IterableDataset)) for split in splits.values()):
        raise DataError(f'{name} is no table of pandas, Arrow or datasets, and no path or name.')
    return {str(split): Table(name, str(split), rows, ('.',), settings) for split, rows in splits.items()}, []


# What `datasets` reads


def _whole(settings: DataSettings, load: Callable[[], Any]) -> Found:
    dataset = str(settings.dataset)
    is_here = Path(dataset).exists()
    try:
        with nullcontext() if is_here else hub_or_cache():
            found = load()
    except Exception as e:  # of the dataset's library, of the Hub's and of the network: no error in common
        if is_here:
            raise DataError(f'{dataset} cannot be read as a dataset ({in_one_line(e.__cause__ or e)}).') from e
        if 'Config name is missing' in str(e):
            raise DataError(f'{dataset} has several configurations: name one with --dataset-config ({e}).') from e
        raise DataError(
            f'{dataset} is neither a path here nor a dataset that can be had from the Hub ({in_one_line(e)}).'
        ) from e
    splits = {'train': found} if isinstance(found, (Dataset, IterableDataset)) else found
    return {str(name): Table(dataset, str(name), rows, (), settings) for name, rows in splits.items()}, []


def _load(streaming: bool, columns: list[str] | None, *args: Any, **options: Any) -> Any:
    if columns:
        return datasets.load_dataset(*args, streaming=True, columns=columns, **options)
    found = datasets.load_dataset(*args, streaming=streaming, **options)
    if streaming and all(split.features for split in found.values()):
        # by row groups; of a whole file, Arrow reads up to a gigabyte ahead
        streams = {name: split.decode(False) for name, split in found.items()}
        return {name: rows.reshard() if hasattr(rows, 'reshard') else rows for name, rows in streams.items()}
    # the types of a text's columns depend on all of its rows, which have to be read for the labels anyway
    return datasets.load_dataset(*args, **options) if streaming else found


# Tables


def _table(settings: DataSettings, split: str, files: Sequence[Path], columns: list[str] | None = None) -> Table:
    """The rows of files of one kind, one after the other."""
    dataset = str(settings.dataset)
    suffixes = {file.suffix.lower() for file in files}
    if strange := sorted(suffixes - {*TABLES}):
        unpack = ' Unpack it, and name the folder.' if strange[0] in ARCHIVES else ''
        if strange == ['.tar']:
            unpack += f' If it is a webdataset, name the folder that it is in: --dataset {files[0].parent}.'
        raise DataError(f'{dataset} ends in {strange[0]!r}; a table ends in one of {", ".join(TABLES)}.{unpack}')
    if len({TABLES[suffix] for suffix in suffixes}) > 1:
        raise DataError(f'{dataset} names tables of several kinds: {", ".join(sorted(suffixes))}. Name those of one.')
    for file in filter(is_lfs_pointer, files):
        raise DataError(f'{file} is a pointer of Git LFS. Fetch the file itself: git lfs pull, in {file.parent}.')
    kind = TABLES[files[0].suffix.lower()]
    try:
        if kind in ('csv', 'excel'):
            rows = _joined([_texts(file, settings.table_encoding) for file in files], dataset)
        elif kind == 'json' and all(objects := [_objects(file) for file in files]):
            rows = _joined(objects, dataset)
        else:
            stream = settings.streaming and kind == 'parquet'
            rows = _load(stream, columns, kind, data_files=list(map(str, files)))['train']
    except DataError:
        raise
    except Exception as e:  # as above
        raise DataError(f'{dataset} cannot be read as a table ({in_one_line(e.__cause__ or e)}).') from e
    return Table(dataset, split, rows, tuple(dict.fromkeys(str(file.parent) for file in files)), settings)


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def _texts(file: Path, encoding: str | None = None) -> pyarrow.Table:
    """A table whose cells are the texts that stand there, 001 and NA too."""
    import pandas  # what it imports in turn is missing where only the help of a command is wanted

    options: dict[str, Any] = dict(dtype=str, keep_default_na=False)
    if file.suffix.lower() == '.xlsx':
        return _without_index(pandas.read_excel(file, engine='openpyxl', **options))
    with open(file, 'rb') as opened:
        is_utf16 = opened.read(2) in (b'\xff\xfe', b'\xfe\xff')
    encoding = encoding or ('utf-16' if is_utf16 else 'utf-8-sig')
    try:
        with open(file, encoding=encoding, newline='') as lines:
            head = lines.readline()
        delimiter = max(DELIMITERS, key=head.count)
        names = [name.strip() for name in next(csv.reader([head], delimiter=delimiter, skipinitialspace=True), [])]
        if not names:
            raise DataError(f'{file} begins with an empty line instead of the names of its columns.')
        is_row = any(map(_is_image, names))  # there is no header
        if is_row:
            others = ['label'] if len(names) == 2 else [f'column {number + 1}' for number in range(len(names))]
            names = ['image' if _is_image(name) else others[n % len(others)] for n, name in enumerate(names)]
        with warnings.catch_warnings():
            warnings.simplefilter('error')  # rows that are longer than the first line would lose cells
            return _without_index(pandas.read_csv(
                file, sep=delimiter, encoding=encoding, skipinitialspace=True, index_col=False,
                header=None if is_row else 0, names=names, **options,
            ))  # fmt: skip
    except (UnicodeError, LookupError) as e:
        raise DataError(
            f'{file} cannot be read as text in {encoding} ({e}). Name its encoding, such as that of Western Windows: '
            f'--table-encoding cp1252 instead of --table-encoding {encoding}.'
        ) from e


def _without_index(rows: Any) -> pyarrow.Table:
    """A table of pandas, without the index that pandas writes as a first column without a name."""
    first = str(next(iter(rows), ''))
    is_index = len(rows.columns) > 1 and (not first or first.startswith('Unnamed: 0'))
    return pyarrow.Table.from_pandas(rows.iloc[:, 1:] if is_index else rows, preserve_index=False)


def _objects(file: Path) -> pyarrow.Table | None:
    """A COCO file as a table: an image has the classes of its objects. None of another file."""
    with open(file, encoding='utf-8') as opened:
        head = opened.read(10_000)
        if head.startswith('[') and '"annotations"' in head and '"data"' in head:
            raise DataError(f'{file} is an export of Label Studio as JSON. Export it as CSV or JSON-MIN instead.')
        if not head.startswith('{'):
            return None
        opened.seek(0)
        try:
            content = json.load(opened)
        except ValueError:
            return None
    if not {'images', 'annotations', 'categories'} <= content.keys():
        return None
    names = {category['id']: category['name'] for category in content['categories']}
    found: dict[Any, set[str]] = {image['id']: set() for image in content['images']}
    for annotation in content['annotations']:
        found[annotation['image_id']].add(names[annotation['category_id']])
    images = content['images']
    return pyarrow.table(
        {'image': [image['file_name'] for image in images], 'labels': [sorted(found[image['id']]) for image in images]}
    )


def _joined(parts: Sequence[pyarrow.Table | None], dataset: str) -> Dataset:
    tables = [part for part in parts if part is not None]
    if any(table.column_names != tables[0].column_names for table in tables):
        raise DataError(f'The tables of {dataset} have different columns. Make them alike, or name one of them.')
    return Dataset(pyarrow.concat_tables(tables))


def _folder_of_tables(root: Folder, settings: DataSettings, columns: list[str] | None) -> Found:
    """A folder without images: tables by their splits, as in a cloned repository; else what `datasets` makes of it."""
    dataset = root.path
    try:
        builder = datasets.load_dataset_builder(dataset, settings.dataset_config)
        files = {str(name): list(map(Path, paths)) for name, paths in (builder.config.data_files or {}).items()}
    except Exception as e:  # as above
        several = ' Name one with --dataset-config.' if 'Config name is missing' in str(e) else ''
        raise DataError(
            f'{dataset} holds no image that can be read, and no dataset ({in_one_line(e)}).{several} '
            f'{root.left_out()}'.strip()
        ) from e
    reader = type(builder).__module__.rpartition('.')[2]
    every = [file for paths in files.values() for file in paths]
    if packed := [file for file in every if file.suffix.lower() in ARCHIVES and reader != 'webdataset']:
        raise DataError(f'{packed[0]} is an archive. Unpack it, and name the folder.')
    if reader not in READERS:
        raise DataError(f'{dataset} holds no image that can be read. {root.left_out()}'.strip())
    if all(file.suffix.lower() in TABLES for file in every):
        tables, notes = {name: _table(settings, name, paths, columns) for name, paths in files.items()}, list[str]()
    else:
        tables, notes = _whole(settings, lambda: _load(settings.streaming, columns, dataset, settings.dataset_config))
    used = {str(file.resolve()) for file in every}
    aside = [file for file in root.all_files() if is_table(file) and os.path.realpath(file) not in used]
    if aside:
        notes.append(f'Left aside in {dataset}: {listed(os.path.relpath(file, dataset) for file in aside)}.')
    return tables, notes


def _declares_files(path: Path) -> bool:
    """Whether a repository's README.md says how its tables are to be read: then its images are illustrations."""
    try:
        data = metadata_load(path / 'README.md') or {}
    except (OSError, ValueError, yaml.YAMLError):
        return False
    return bool(data.get('configs') or data.get('dataset_info'))


# Folders of images


def _by_folders(root: Folder, settings: DataSettings, named: Collection[str]) -> Found:
    """The splits of a folder, their classes sorted as strings."""
    table, labels, hint = _table_of(root)
    try:
        splits, notes = understand(root, settings, named)
    except DataError as e:
        raise DataError(f'{e}{hint}') from e
    names = {name for classes in splits.values() for name in classes}
    if hint and len(names) == 1 and settings.folders is None:
        raise DataError(
            f'{root.path} has a single class, {names.pop()!r}. If so, it can only be evaluated: --folders outer.{hint}'
        )
    if labels and not labels <= names and settings.folders is None:
        raise DataError(
            f'The folders of {root.path} are {listed(sorted(names))}, and the labels in {table} are '
            f'{listed(sorted(labels))}. If the folders are the classes: --folders outer.{hint}'
        )
    found = {}
    for split, classes in splits.items():
        paths = texts([path for images in classes.values() for path in images])
        labels_of_paths = [name for name, images in classes.items() for _ in images]
        found[split] = Table(root.path, split, cells_of(paths).add_column('label', labels_of_paths), (), settings)
    return found, notes


def _table_of(root: Folder) -> tuple[str, set[str], str]:
    """The table in a folder that names its images, the labels in it, and what to do if they are the right ones."""
    files = root.all_files()
    tables = [file for file in files if is_table(file)]
    images = {os.path.basename(image) for image in root.all_images()}
    names = images | {os.path.splitext(name)[0] for name in images}
    for file in sorted(tables, key=lambda file: (split_of(Path(file).stem) != 'train', 'submission' in file))[:TRIED]:
        if TABLES[os.path.splitext(file)[1].lower()] != 'csv' or os.path.getsize(file) > LARGEST_TRIED:
            continue
        with suppress(DataError, ValueError, Warning):
            rows = _texts(Path(file))
            for column in rows.column_names:
                cells = [(cell or '').replace('\\', '/') for cell in rows[column].slice(0, 100).to_pylist()]
                if sum(os.path.basename(cell) in names for cell in cells) <= len(cells) / 2:
                    continue
                option = '' if plain(column) in IMAGE_COLUMNS else f' --image-column {shlex.quote(column)}'
                label = by_name([name for name in rows.column_names if name != column], LABEL_COLUMNS)
                labels = {*pc.unique(rows[label]).to_pylist()} - {'', None} if label else set()
                sentence = f' {file} names images of it. If their labels are in it: --dataset {file}{option}'
                alike = [other for other in tables if os.path.basename(other) == os.path.basename(file)]
                own = [o for o in alike if split_of(os.path.basename(os.path.dirname(o))) == 'validation' and o != file]
                return file, labels, f'{sentence}{f" --validation-table {own[0]}" if own else ""}.'
    if tables:
        place = os.path.dirname(tables[0])
        beside = [file for file in tables if os.path.dirname(file) == place]
        is_alone = len(beside) > 1 and not any(f.images for f in root.all() if f.path == place)
        return '', set(), f' If a table names the images: --dataset {place if is_alone else tables[0]}.'
    objects = any(file.endswith(('.txt', '.xml')) for file in files)
    return '', set(), OBJECTS * objects


def cells_of(paths: pyarrow.ChunkedArray) -> Dataset:
    """A table with a column `image` of files that are not read yet; '' where a row has none."""
    cells = [
        pyarrow.StructArray.from_arrays(
            [pyarrow.nulls(len(path), pyarrow.binary()), path], ['bytes', 'path'], mask=pc.equal(path, '')
        )
        for path in paths.chunks
    ]
    storage = pyarrow.chunked_array(cells, IMAGE_CELLS.arrow_schema.field('image').type)
    return Dataset(pyarrow.table({'image': storage}), info=datasets.DatasetInfo(features=IMAGE_CELLS))


def cells_of_texts(cells: pyarrow.ChunkedArray) -> Dataset:
    """A table with a column `image` of files that are written in base64; an empty one where the text is damaged."""

    def file(text: str) -> bytes:
        with suppress(ValueError):
            return base64.b64decode(text[text.find(',') + 1 :])
        return b''

    files = [{'bytes': file(text), 'path': None} if text else None for text in cells.to_pylist()]
    return Dataset.from_dict({'image': files}, features=IMAGE_CELLS)


def _by_metadata(root: Folder, settings: DataSettings) -> Found | None:
    """The splits of a folder whose metadata files name images and labels; None if its folders are to be read."""
    folders, parts, pairs = settings.folders, list[Dataset](), set[tuple[str, str]]()
    files = [file for file in root.all_files() if os.path.basename(file) in METADATA]
    for file in files if folders in (None, 'metadata') else ():
        rows = _table(replace(settings, dataset=file, streaming=False), 'train', [Path(file)]).rows
        label = settings.label_column if settings.label_column in rows.features else label_by_name(rows.features)
        is_caption = label is None and folders is None and len(root.folders) > 1  # or a box
        if FILE_NAME not in rows.features or is_caption:
            parts = []
            break
        paths = [os.path.normpath(os.path.join(os.path.dirname(file), str(name))) for name in rows[FILE_NAME]]
        if label:
            above = [os.path.dirname(_below(path, root)) for path in paths]
            pairs |= {(os.path.basename(folder), str(value)) for folder, value in zip(above, rows[label])}
        parts.append(rows.remove_columns(FILE_NAME).add_column(FILE_NAME, paths).select_columns(rows.column_names))
    if not parts and folders == 'metadata':
        raise DataError(
            f'{root.path} has no {", ".join(METADATA)} with a column {FILE_NAME}. Leave out --folders metadata, or '
            f'name a table as the dataset.'
        )
    if not parts:
        return None
    inside = {folder for folder, _ in pairs if not split_of(folder)}
    if folders is None and len(inside) > 1 and any(folder != label for folder, label in pairs):
        first = os.path.relpath(files[0], root.path)
        raise DataError(
            f'{root.path} has labels in {first}, and others in the names of its folders: {listed(sorted(inside))}. If '
            f'{os.path.basename(first)} is right: --folders metadata. If the folders are: --folders outer.'
        )
    try:
        rows = datasets.concatenate_datasets(parts)
    except ValueError as e:
        raise DataError(f'The metadata files of {root.path} have columns that do not fit together ({e}).') from e
    outer = [_below(path, root).rpartition('/')[0].partition('/')[0] for path in rows[FILE_NAME]]
    splits = outer if all(map(split_of, {*outer})) else ['train'] * len(outer)
    by_split = {name: rows.select([i for i, s in enumerate(splits) if s == name]) for name in dict.fromkeys(splits)}
    notes = [f'Images and labels are those of {listed(os.path.relpath(file, root.path) for file in files)}.']
    named = {*rows[FILE_NAME]}
    if unnamed := [image for image in root.all_images() if os.path.normpath(image) not in named]:
        notes.append(f'{len(unnamed)} images are left out, which these do not name: {unnamed[0]} ...')
    return {n: Table(root.path, n, part, (root.path,), settings) for n, part in by_split.items()}, notes


def _below(path: str, root: Folder) -> str:
    """A path in the folder; its last part where it leads out of it."""
    relative = os.path.relpath(path, root.path).replace(os.sep, '/')
    return relative.rpartition('/')[2] if relative.startswith(os.pardir) else relative
