"""Every file and directory in which Keras has kept an Xception, opened as data.

SOURCE                                          opened as
model.keras                                     config, weights
model.h5           whole model of Keras 2 or 3  config (an attribute), weights (a group)
model.h5           weights of Keras 1 or 2      weights
model.weights.h5   Keras 3, tf_keras            weights
model.weights.json Keras 3, in shards           weights of several files
preset/            KerasHub                     config, weights, image converter
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import KerasFileError
from ..file_kinds import HDF5, KERAS, ZIP, foreign
from .archive import MAX_JSON, parse_json, read_archive, read_weights
from .weight_file import WeightFile

MAX_FILE = 2**31  # bytes; with the state of an optimizer it may be three times as large as its arrays
MAX_SHARDS = 500
SHARDED = '.weights.json'

ACCEPTED = (
    'a .keras archive, a whole model or weights in .h5, .weights.h5, a sharded .weights.json, or the directory of a '
    'KerasHub preset'
)


@dataclass
class Opened:
    """A source, open for reading.

    Attributes:
        path: The file or directory.
        files: All files that belong to the source.
        kind: 'archive', 'whole model', 'weights', 'shards' or 'preset'.
        weights: The arrays.
        config: The model's config, as Keras serialised it; None for weights alone.
        keras_version: Version of Keras that wrote the source, or 'unknown'.
        preset: The JSON files of a KerasHub preset beside the backbone's config: file name -> content.
    """

    path: Path
    files: list[Path]
    kind: str
    weights: WeightFile
    config: dict[str, Any] | None = None
    keras_version: str = 'unknown'
    preset: dict[str, dict[str, Any]] = field(default_factory=dict)


@contextmanager
def open_source(path: Path) -> Iterator[Opened]:
    """Opens a source of any kind. Nothing in it is deserialised, extracted or run.

    Raises:
        KerasFileError: The source is missing, damaged, unsafe or of another kind.
    """
    path = path.expanduser()
    if other := foreign(path, KERAS):
        raise KerasFileError(f'{path} {other}')
    if not path.exists():
        raise KerasFileError(f'There is no file {path}. A source is {ACCEPTED}.')
    opener: Callable[[Path], AbstractContextManager[Opened]] = _open_h5
    if path.is_dir():
        opener = _open_preset
    elif path.name.endswith(SHARDED):
        opener = _open_shards
    elif _start(path).startswith(ZIP) or (path.suffix == '.keras' and not _start(path).startswith(HDF5)):
        opener = _open_keras
    elif not (_start(path).startswith(HDF5) or path.suffix in ('.h5', '.hdf5')):  # perhaps a damaged one
        raise KerasFileError(f'{path} is no file of Keras. A source is {ACCEPTED}.')
    with opener(path) as opened:
        yield opened


def _start(path: Path) -> bytes:
    with open(path, 'rb') as file:
        return file.read(16)


@contextmanager
def _open_keras(path: Path) -> Iterator[Opened]:
    metadata, config, size = read_archive(path)
    with WeightFile(path, content=read_weights(path), size=size) as weights:
        yield Opened(path, [path], 'archive', weights, config, _version(metadata.get('keras_version')))


@contextmanager
def _open_h5(path: Path) -> Iterator[Opened]:
    with _weights(path, [path]) as weights:
        version = _version(weights.attribute('', 'keras_version'))
        text = weights.attribute('', 'model_config')
        if text is None:
            yield Opened(path, [path], 'weights', weights, keras_version=version)
        else:
            config = parse_json(text, f"{path}: its attribute 'model_config'")
            yield Opened(path, [path], 'whole model', weights, config, version)


@contextmanager
def _open_shards(path: Path) -> Iterator[Opened]:
    shards = read_json(path).get('weight_map')
    if not isinstance(shards, dict):
        raise KerasFileError(f"{path} has no 'weight_map'.")
    names: list[Any] = []
    for value in shards.values():
        names += value if isinstance(value, list) else [value]
    paths: dict[Path, None] = {}
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or not name.endswith('.h5') or not name.isprintable():
            raise KerasFileError(f'{path}: its shard {name!r:.200} is not a file of the same folder.')
        paths[path.with_name(name)] = None
    if not 0 < len(paths) <= MAX_SHARDS:
        raise KerasFileError(f'{path} names {len(paths)} shards.')
    with _weights(path, list(paths)) as weights:
        yield Opened(path, [path, *paths], 'shards', weights)


PRESET_WEIGHTS, PRESET_HEAD = 'model.weights.h5', 'task.weights.h5'


@contextmanager
def _open_preset(path: Path) -> Iterator[Opened]:
    if not (path / 'config.json').is_file():
        raise KerasFileError(f'{path} is a directory without a config.json, so no KerasHub preset.')
    files = {
        name: read_json(path / name)
        for name in ('metadata.json', 'task.json', 'image_converter.json')
        if (path / name).is_file()
    }
    weights = path / PRESET_WEIGHTS
    shards = path / PRESET_WEIGHTS.replace('.h5', '.json')
    if not weights.is_file() and shards.is_file():
        raise KerasFileError(f'{path} holds its weights in shards; pass {shards} itself.')
    paths = [weights, *(path / name for name in [PRESET_HEAD] if (path / name).is_file())]
    config = read_json(path / 'config.json')
    version = _version(files.get('metadata.json', {}).get('keras_version'))
    with _weights(path, paths) as opened:
        yield Opened(path, paths, 'preset', opened, config, version, files)


def _weights(source: Path, files: Sequence[Path]) -> WeightFile:
    for file in files:
        if not file.is_file():
            raise KerasFileError(f'{source}: there is no file {file}.')
        if file.stat().st_size > MAX_FILE:
            raise KerasFileError(f'{source}: {file} is larger than any Xception: {file.stat().st_size} bytes.')
    return WeightFile(source, files)


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


def _version(value: Any) -> str:
    return value if isinstance(value, str) and len(value) < 40 and value.isprintable() else 'unknown'
