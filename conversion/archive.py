"""A `.keras` archive as data: its config and its weights, nothing extracted and nothing run."""
import json
import zipfile
import zlib
from pathlib import Path
from typing import Any

from .hdf5 import KerasFileError

__all__ = ['parse_json', 'read_archive']

METADATA, CONFIG, WEIGHTS = 'metadata.json', 'config.json', 'model.weights.h5'
MAX_BYTES = {METADATA: 2**20, CONFIG: 64 * 2**20, WEIGHTS: 2**29}  # Xception's are 63, 120 thousand, 86 to 280 million
MAX_RATIO = 100  # of a compressed member; JSON reaches 20
DAMAGES = (
    zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error, NotImplementedError, EOFError, OSError, RuntimeError,
    ValueError)


def read_archive(path: Path) -> tuple[dict[str, Any], dict[str, Any], bytes]:
    """What metadata.json and config.json hold, and model.weights.h5, read as a whole: that checks its checksum.

    Raises:
        KerasFileError: It is no such archive, is damaged, or is larger than any Xception.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            _check_members(archive, path)
            metadata, config = (parse_json(archive.read(name), f'{path}: {name}') for name in (METADATA, CONFIG))
            return metadata, config, archive.read(WEIGHTS)
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


def parse_json(text: str | bytes, place: str) -> dict[str, Any]:
    """An object in JSON; a KerasFileError that names the place if it is something else."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise KerasFileError(f'{place} is not JSON ({e}).') from e
    if not isinstance(data, dict):
        raise KerasFileError(f'{place} holds a {type(data).__name__} instead of an object.')
    return data
