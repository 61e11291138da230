"""Every file and directory in which Keras has kept an Xception, opened as data.

SOURCE                                          opened as
model.keras                                     config, weights
model.h5           whole model of Keras 2 or 3  config (an attribute), weights (a group)
model.h5           weights of Keras 1 or 2      weights
model.weights.h5   Keras 3, tf_keras            weights
model.weights.json Keras 3, in shards           weights of several files
preset/            KerasHub                     weights of several files, and what JSON files say of them
"""

import json
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import KerasFileError
from ..file_kinds import HDF5, KERAS, ZIP, ArchiveFile, foreign, kind_of
from .weight_file import WeightFile

MAX_FILE = 2**31  # bytes; with the state of an optimizer it may be three times as large as its arrays
MAX_SHARDS = 500
METADATA, CONFIG, WEIGHTS = 'metadata.json', 'config.json', 'model.weights.h5'
MAX_JSON = 4 * 2**20  # bytes; in memory JSON takes 20 times as much
MAX_BYTES = {METADATA: 2**20, CONFIG: MAX_JSON, WEIGHTS: 2**29}  # Xception's are 63, 140 thousand, 86 to 280 million
MAX_RATIO = 100  # between the sizes of a member before and after compression; JSON reaches 20
BLOCK = 2**20  # bytes that are read, and unpacked, at once
DAMAGES = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, RuntimeError, ValueError)

ACCEPTED = (
    'a .keras archive, a whole model or weights in .h5 or .weights.h5, a .weights.json with its shards, '
    'the directory of a KerasHub preset, keras-imagenet or keras-imagenet-notop'
)
TASK = 'task.json'
PRESET = (CONFIG, TASK, 'image_converter.json', METADATA)  # JSON files of a preset; only the first is always there


@dataclass
class Opened:
    """A source, open for reading.

    Attributes:
        files: All files that belong to the source.
        weights: The arrays.
        config: The model's config, as Keras serialised it; None for weights alone.
        keras_version: Version of Keras that wrote the source, or 'unknown'.
        preset: The JSON files of a KerasHub preset by their names; None if it is none.
    """

    files: list[Path]
    weights: WeightFile
    config: dict[str, Any] | None = None
    keras_version: str = 'unknown'
    preset: dict[str, dict[str, Any]] | None = None


@contextmanager
def open_source(path: Path) -> Iterator[Opened]:
    """Opens a source of any kind. Nothing in it is deserialised, extracted or run.

    Raises:
        KerasFileError: The source is missing, damaged, unsafe or of another kind.
    """
    if other := foreign(path, KERAS):
        raise KerasFileError(f'{path} {other}')
    if not path.exists():
        raise KerasFileError(f'There is no file {path}. A source is {ACCEPTED}.')
    if path.is_dir():
        preset = {name: read_json(path / name) for name in PRESET if (path / name).is_file()}
        if 'keras_hub' not in str(preset.get(CONFIG)):
            raise KerasFileError(f'{path} is a directory. A source is {ACCEPTED}.')
        index = path / WEIGHTS.replace('.h5', '.json')
        files = _shards(index) if index.is_file() else [path / WEIGHTS]
        files += [path / WEIGHTS.replace('model', 'task')] if TASK in preset else []
        with _weights(path, files) as weights:
            yield Opened(
                [*(path / name for name in preset), *files],
                weights,
                None,
                _version(preset.get(METADATA, {}).get('keras_version')),
                preset,
            )
        return
    with open(path, 'rb') as file:
        start = file.read(len(HDF5))
    if start.startswith(ZIP) or (path.suffix == '.keras' and start != HDF5):
        metadata, model_config, size = read_archive(path)
        with WeightFile(path, content=read_weights(path), size=size) as weights:
            yield Opened([path], weights, model_config, _version(metadata.get('keras_version')))
        return
    files = [path]
    if kind_of(path) == 'keras shards':
        files = _shards(path)
    elif start != HDF5 and path.suffix not in ('.h5', '.hdf5'):  # perhaps a damaged one
        raise KerasFileError(f'{path} is no file of Keras. A source is {ACCEPTED}.')
    with _weights(path, files) as weights:
        text = weights.attribute('', 'model_config')
        config = None if text is None else parse_json(text, f"{path}: its attribute 'model_config'")
        version = _version(weights.attribute('', 'keras_version'))
        yield Opened([*dict.fromkeys([path, *files])], weights, config, version)


def _weights(source: Path, files: list[Path]) -> WeightFile:
    for file in files:
        if not file.is_file():
            raise KerasFileError(f'{source}: there is no file {file}.')
        if file.stat().st_size > MAX_FILE:
            raise KerasFileError(f'{file} is larger than any Xception: {file.stat().st_size} bytes.')
    return WeightFile(source, files)


def _shards(index: Path) -> list[Path]:
    """The files that an index of shards names, all in its own folder."""
    shards = read_json(index).get('weight_map')
    if not isinstance(shards, dict):
        raise KerasFileError(f"{index} has no 'weight_map'.")
    values = shards.values()
    names = [name for value in values for name in (value if isinstance(value, list) else [value])]
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or not name.endswith('.h5') or not name.isprintable():
            raise KerasFileError(f'{index}: its shard {name!r:.200} is not an .h5 file of the same folder.')
    files = [index.with_name(name) for name in dict.fromkeys(names)]
    if not 0 < len(files) <= MAX_SHARDS:
        raise KerasFileError(f'{index} names {len(files)} shards.')
    return files


def read_json(path: Path) -> dict[str, Any]:
    """Reads a file with one object in JSON. A KerasFileError says if it is missing or something else."""
    if not path.is_file():
        raise KerasFileError(f'There is no file {path}.')
    if path.stat().st_size > MAX_JSON:
        raise KerasFileError(f'{path} is larger than any config: {path.stat().st_size} bytes.')
    try:
        return parse_json(path.read_bytes(), str(path))
    except OSError as e:
        raise KerasFileError(f'{path} cannot be read: {e}.') from e


def parse_json(text: str | bytes, place: str) -> dict[str, Any]:
    """Reads an object from JSON. A KerasFileError names the place if the text is something else."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise KerasFileError(f'{place} is not JSON ({e}).') from e
    if not isinstance(data, dict):
        raise KerasFileError(f'{place} holds a {type(data).__name__} instead of an object.')
    return data


def _version(value: Any) -> str:
    return value if isinstance(value, str) and len(value) < 40 and value.isprintable() else 'unknown'


# Archives


def read_archive(path: Path) -> tuple[dict[str, Any], dict[str, Any], int]:
    """Reads metadata.json, config.json and the size of model.weights.h5 in bytes.

    Raises:
        KerasFileError: The file is no such archive, is damaged, or is larger than any Xception.
    """
    with _opened(path) as archive:
        sizes = _check_members(archive, path)
        texts = [b''.join(_blocks(archive, name)) for name in (METADATA, CONFIG)]
    metadata, config = (parse_json(text, f'{path}: {name}') for text, name in zip(texts, (METADATA, CONFIG)))
    return metadata, config, sizes[WEIGHTS]


def read_weights(path: Path) -> Iterator[bytes]:
    """Yields model.weights.h5 in blocks. Its checksum and its size are checked at the end.

    Raises:
        KerasFileError: The archive is damaged.
    """
    with _opened(path) as archive:
        yield from _blocks(archive, WEIGHTS)


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with ArchiveFile(path) as file, zipfile.ZipFile(file) as archive:
            yield archive
    except KerasFileError:
        raise
    except DAMAGES as e:
        raise KerasFileError(f'{path} is not a complete .keras archive ({e}). Save or download it again.') from e


def _check_members(archive: zipfile.ZipFile, path: Path) -> dict[str, int]:
    """Maps the three members to their sizes. Others are refused, because Keras extracts an archive that has them."""
    sizes: dict[str, int] = {}
    for info in archive.infolist():
        name = info.filename
        if name not in MAX_BYTES:
            raise KerasFileError(f'{path} holds {name!r}, which belongs to no Xception.')
        if name in sizes:
            raise KerasFileError(f'{path} holds {name} twice.')
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise KerasFileError(f'{path}: {name} is compressed in a way that Keras does not use.')
        if info.file_size > min(MAX_BYTES[name], MAX_RATIO * max(info.compress_size, 1)):
            raise KerasFileError(f'{path}: {name} declares {info.file_size} bytes, more than any Xception has.')
        sizes[name] = info.file_size
    for name in MAX_BYTES:
        if name not in sizes:
            raise KerasFileError(f'{path} holds no {name}, so it is no .keras archive.')
    return sizes


def _blocks(archive: zipfile.ZipFile, name: str) -> Iterator[bytes]:
    size = 0
    with archive.open(name) as member:
        while block := member.read(BLOCK):
            size += len(block)
            yield block
    if size != archive.getinfo(name).file_size:
        raise EOFError(f'{name} ends after {size} bytes')
