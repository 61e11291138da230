"""A `.keras` archive read as data: its config and its weights. Nothing is extracted and nothing is run."""

import json
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import KerasFileError
from ..file_kinds import ArchiveFile

METADATA, CONFIG, WEIGHTS = 'metadata.json', 'config.json', 'model.weights.h5'
MAX_JSON = 4 * 2**20  # bytes; in memory JSON takes 20 times as much
MAX_BYTES = {METADATA: 2**20, CONFIG: MAX_JSON, WEIGHTS: 2**29}  # Xception's are 63, 140 thousand, 86 to 280 million
MAX_RATIO = 100  # between the sizes of a member before and after compression; JSON reaches 20
BLOCK = 2**20  # bytes that are read, and unpacked, at once
DAMAGES = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, RuntimeError, ValueError)


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


def parse_json(text: str | bytes, place: str) -> dict[str, Any]:
    """Reads an object from JSON. A KerasFileError names the place if the text is something else."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise KerasFileError(f'{place} is not JSON ({e}).') from e
    if not isinstance(data, dict):
        raise KerasFileError(f'{place} holds a {type(data).__name__} instead of an object.')
    return data
