"""Keras' official ImageNet weights by name: downloaded once, resumed after an interruption, known by their md5.

Ours because no library leaves less: huggingface_hub's download resumes, but loses up to 10 MB when a connection breaks,
which a slow line never gets past; those of torch.hub, Keras and pooch start anew.
"""

import hashlib
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import httpx
import huggingface_hub
from filelock import AcquireReturnProxy, FileLock, Timeout
from huggingface_hub.utils import tqdm

from ..errors import ReleaseError

CACHE = Path(os.environ.get('XDG_CACHE_HOME', '~/.cache')).expanduser() / 'xception_hub'

BLOCK = 2**16  # bytes; what is lost when a connection breaks
TIMEOUT = 30  # seconds without an answer
RETRY_DELAYS = (1, 2, 4)  # seconds; from the beginning again after an attempt in which something arrived

RANGE_NOT_SATISFIABLE = 416  # there is nothing beyond what was asked for
TRANSIENT_STATUS = {408, 429, 500, 502, 503, 504}


@dataclass(frozen=True)
class Release:
    """A file that Keras publishes."""

    url: str
    md5: str

    @property
    def filename(self) -> str:
        return self.url.rpartition('/')[2]


_FOLDER = 'https://storage.googleapis.com/tensorflow/keras-applications/xception'

RELEASES = {
    'keras-imagenet': Release(
        f'{_FOLDER}/xception_weights_tf_dim_ordering_tf_kernels.h5', '0a58e3b7378bc2990ea3b43d5981f1f6'
    ),
    'keras-imagenet-notop': Release(
        f'{_FOLDER}/xception_weights_tf_dim_ordering_tf_kernels_notop.h5', 'b0042744bf5b25fce3cb969f33bebb97'
    ),
}


def fetch(name: str, cache: Path = CACHE) -> Path:
    """The file of a release on this machine, downloaded unless it, or the copy of Keras itself, is there already.

    Several processes may call this at once: one downloads, the others wait for it.

    Args:
        name: One of `RELEASES`.
        cache: Directory for the file, and for the part of it that arrived before an interruption.

    Returns:
        The path of a file with the release's md5.

    Raises:
        ReleaseError: There is no release of that name, it can't be downloaded, or it isn't what Keras published.
        OSError: The cache can't be written.
    """
    if name not in RELEASES:
        raise ReleaseError(f'There is no release {name!r}. Choose from: {", ".join(RELEASES)}.')
    release = RELEASES[name]
    target = cache / release.filename
    for path in (target, _keras_cache() / release.filename):
        if _md5(path) == release.md5:
            return path
    cache.mkdir(parents=True, exist_ok=True)
    with _lock(name, target.with_name(f'{target.name}.lock')):
        if _md5(target) != release.md5:  # no other process has fetched it meanwhile
            target.unlink(missing_ok=True)
            _download(name, release, target)
    return target


def _keras_cache() -> Path:
    """Where Keras keeps the files that it downloads."""
    return Path(os.environ.get('KERAS_HOME', '~/.keras')).expanduser() / 'models'


def _md5(path: Path) -> str | None:
    """None if the file can't be read, as when there is none."""
    digest = hashlib.md5(usedforsecurity=False)  # some hardened builds of OpenSSL refuse it otherwise
    try:
        with open(path, 'rb') as file:
            while block := file.read(2**20):
                digest.update(block)
    except OSError:
        return None
    return digest.hexdigest()


def _lock(name: str, path: Path) -> AcquireReturnProxy:
    """One process at a time, so that there is one partial file, which the next process can go on with.

    The operating system takes the lock back from a process that is killed.
    """
    lock = FileLock(path)
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        print(f'{name}: waiting for another process that downloads it', file=sys.stderr, flush=True)
        return lock.acquire()


def _download(name: str, release: Release, target: Path) -> None:
    """The file takes its name when all of it is there and right."""
    part = target.with_name(f'{target.name}.part')
    otherwise = (
        f'Get it by any other means (md5 {release.md5}) and put it at {target}, '
        f'or pass its path to the conversion instead of {name!r}.'
    )
    try:
        if huggingface_hub.constants.HF_HUB_OFFLINE:
            raise httpx.TransportError('HF_HUB_OFFLINE forbids it')
        _receive(name, release.url, part)
    except httpx.HTTPError as e:
        kept = f' The {_size(part):,} bytes that arrived are kept for the next try.' if _size(part) else ''
        raise ReleaseError(f'{release.url} cannot be downloaded: {_described(e)}.{kept}\n{otherwise}') from e
    md5 = _md5(part)
    if md5 != release.md5:
        part.unlink(missing_ok=True)
        raise ReleaseError(
            f'{release.url} is not what Keras published: what arrived has md5 {md5} instead of '
            f'{release.md5}, and was removed. The next try starts anew.\n{otherwise}'
        )
    os.replace(part, target)


def _receive(name: str, url: str, part: Path) -> None:
    """Downloads what is missing of a file, with as many attempts as it takes while they make progress."""
    delays = list(RETRY_DELAYS)
    while True:
        before = _size(part)
        try:
            return _attempt(name, url, part)
        except httpx.HTTPError as e:
            status = e.response.status_code if isinstance(e, httpx.HTTPStatusError) else None
            if before and status == RANGE_NOT_SATISFIABLE:
                return None
            if _size(part) > before:
                delays = list(RETRY_DELAYS)
            if not delays or (status is not None and status not in TRANSIENT_STATUS):
                raise
            delay = delays.pop(0)
            print(f'{name}: {_described(e)}; next attempt in {delay} s', file=sys.stderr, flush=True)
        time.sleep(delay)


def _attempt(name: str, url: str, part: Path) -> None:
    start = _size(part)
    headers = {'Accept-Encoding': 'identity', **({'Range': f'bytes={start}-'} if start else {})}
    with httpx.stream('GET', url, headers=headers, timeout=TIMEOUT, follow_redirects=True) as response:
        response.raise_for_status()
        resumed = response.status_code == 206  # else this is the whole file, whatever was asked for
        with open(part, 'ab' if resumed else 'wb') as file:
            length = response.headers.get('Content-Length')
            total = int(length) + file.tell() if length else None
            # the hub's tqdm, so that HF_HUB_DISABLE_PROGRESS_BARS holds here too
            with tqdm(desc=name, initial=file.tell(), total=total, unit='B', unit_scale=True) as bar:
                for block in response.iter_raw(BLOCK):
                    file.write(block)
                    bar.update(len(block))


def _described(error: httpx.HTTPError) -> str:
    if isinstance(error, httpx.HTTPStatusError):
        return f'HTTP Error {error.response.status_code}: {error.response.reason_phrase}'
    return f'{type(error).__name__}: {error}'.rstrip('.')


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
