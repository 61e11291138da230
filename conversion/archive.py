"""A `.keras` archive as data: its config and its weights, nothing extracted and nothing run."""
import io
import json
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py

from .hdf5 import KerasFileError, WeightFile

__all__ = ['open_archive']

METADATA, CONFIG, WEIGHTS = 'metadata.json', 'config.json', 'model.weights.h5'
MAX_BYTES = {METADATA: 2**20, CONFIG: 64 * 2**20, WEIGHTS: 2 * 2**30}  # Xception's are 63, 120 thousand, 86 million
DAMAGES = (
    zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error, NotImplementedError, EOFError, OSError, RuntimeError)
MAX_RATIO = 100  # of a compressed member; JSON reaches 20


@contextmanager
def open_archive(path: Path) -> Iterator[tuple[dict[str, Any], dict[str, Any], WeightFile]]:
    """Opens an archive.

    Yields:
        What metadata.json and config.json hold, and model.weights.h5.

    Raises:
        KerasFileError: It is no such archive, is damaged, or is larger than any Xception.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            _check_members(archive, path)
            metadata, config = (_read_json(archive, name, path) for name in (METADATA, CONFIG))
            # read as a whole, for that is what checks its checksum; HDF5 then finds its arrays in memory
            with h5py.File(io.BytesIO(archive.read(WEIGHTS)), 'r') as weights:
                yield metadata, config, WeightFile(weights, path)
    except KerasFileError:
        raise
    except DAMAGES as e:
        raise KerasFileError(f'{path} is not a complete .keras archive ({e}). Save or download it again.') from e


def _check_members(archive: zipfile.ZipFile, path: Path) -> None:
    """Only three members are ever opened, by name and within bounds; others may lie there unread."""
    members: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        if info.filename in members:
            raise KerasFileError(f'{path} holds {info.filename} twice.')
        members[info.filename] = info
    for name, most in MAX_BYTES.items():
        if name not in members:
            raise KerasFileError(f'{path} holds no {name}, so it is no .keras archive.')
        info = members[name]
        if info.file_size > most or info.file_size > MAX_RATIO * max(info.compress_size, 1):
            raise KerasFileError(f'{path}: {name} declares {info.file_size} bytes, more than any Xception has.')


def _read_json(archive: zipfile.ZipFile, name: str, path: Path) -> dict[str, Any]:
    try:
        data = json.loads(archive.read(name))
    except (ValueError, RecursionError) as e:
        raise KerasFileError(f'{path}: {name} is not JSON ({e}).') from e
    if not isinstance(data, dict):
        raise KerasFileError(f'{path}: {name} holds a {type(data).__name__} instead of an object.')
    return data
