"""Remembers which files hold the tensors that Keras publishes, so that an unchanged file is hashed once."""

import functools
import hashlib
import json
import os
import platform
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import cached_assets_path

from .files import CheckpointFile, FileState, StateDict
from .fingerprints import Verification, compare, genuine


def compare_once(file: CheckpointFile, tensors: StateDict) -> Verification:
    """`compare` for tensors of a file, which is left out if the file has not changed since it was found genuine.

    Args:
        file: The file as it was read.
        tensors: Its tensors, the same objects, under this network's names.
    """
    entry = _entry(file.state)
    if file.state is None or entry is None:
        return compare(tensors)
    seal = _seal(file.state, file.tensors, tensors)
    if _is_own(entry, seal):
        return Verification([*genuine()['sha256']], [], [], [])
    verification = compare(tensors)
    unchanged = FileState.of(file.state.path) == file.state  # a mapped file could change until the last tensor
    if verification.is_genuine and not verification.compensated and unchanged:
        _remember(entry, seal)
    return verification


def _entry(state: FileState | None) -> Path | None:
    """The file with the last seal of a path; None if a later change could go unseen, or if there is no cache."""
    if state is None or not state.is_settled:
        return None
    try:
        directory = cached_assets_path('xception_hub', namespace='verified')
    except (OSError, ValueError):  # the cache cannot be written, or a file has its name
        return None
    return directory / hashlib.sha256(os.fsencode(state.path)).hexdigest()


def _seal(state: FileState, read: StateDict, tensors: StateDict) -> str:
    """A digest of all that a comparison depends on: the file, which of its tensors has which name, the fingerprints."""
    places = {id(tensor): name for name, tensor in read.items()}
    names = {name: places.get(id(tensor)) for name, tensor in tensors.items()}
    known = [_fingerprints(), platform.node(), repr(state), names]
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()


@functools.cache
def _fingerprints() -> str:
    return hashlib.sha256(json.dumps(genuine(), sort_keys=True).encode()).hexdigest()


def _is_own(entry: Path, seal: str) -> bool:
    """Whether this user, and nobody else, can have written the seal."""
    try:
        with open(entry, 'rb') as file:
            status = os.fstat(file.fileno())
            return status.st_uid == os.geteuid() and not status.st_mode & 0o022 and file.read() == seal.encode()
    except OSError:
        return False


def _remember(entry: Path, seal: str) -> None:
    """Writes the whole seal at once. Where that fails, the next use hashes again."""
    with suppress(OSError), TemporaryDirectory(dir=entry.parent) as directory:
        written = Path(directory, 'seal')
        written.write_text(seal)
        written.chmod(0o600)
        written.replace(entry)
