"""Files that are there as a whole or not at all, and the digests of their contents."""

import hashlib
import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

BLOCK = 2**20  # bytes that are read at once
PART_SUFFIX = '.part'  # ends the name of a file that is being written


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields the path of a new file, which takes the place of `path` when the block ends without an error.

    The new file lies in the same folder, which is made if necessary. Its content reaches the disk first, so that a
    power failure leaves the old file or the new one. Any number of processes may replace the same file at once: the
    last one wins.

    Raises:
        OSError: The file cannot be written. The old one is unchanged, and nothing is left of the new one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f'{path.name}.{secrets.token_hex(4)}{PART_SUFFIX}')
    try:
        yield part
        _to_disk(part)
        os.replace(part, path)
        _to_disk(path.parent)
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def _to_disk(path: Path) -> None:
    """Waits until a file or a folder is on the disk. Windows cannot do that for a folder."""
    with suppress(PermissionError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Writes a text file as a whole or not at all, see `replacing`."""
    with replacing(path) as part:
        part.write_text(text, encoding='utf-8')


def sha256_of(paths: Iterable[Path]) -> str:
    """The sha256 of the contents of files, one after the other, in hexadecimal digits."""
    return digest_of(paths, 'sha256')


def digest_of(paths: Iterable[Path], kind: str) -> str:
    """As `sha256_of`; the kind is one of `hashlib`. It recognises files, and secures nothing."""
    digest = hashlib.new(kind, usedforsecurity=False)  # some hardened builds of OpenSSL refuse md5 otherwise
    for path in paths:
        with open(path, 'rb') as file:
            while block := file.read(BLOCK):
                digest.update(block)
    return digest.hexdigest()
