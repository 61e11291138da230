"""Keras' official ImageNet weights by name: downloaded once, known by their md5."""

import os
import shlex
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from urllib.error import URLError

import huggingface_hub
import torch
from huggingface_hub.utils import are_progress_bars_disabled

from ..errors import ReleaseError, in_one_line
from ..files import digest_of, replacing

CACHE = Path(os.environ.get('XDG_CACHE_HOME', '~/.cache')).expanduser() / 'xception_hub'

TIMEOUT = 30  # seconds without an answer


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

    Args:
        name: One of `RELEASES`.
        cache: Directory for the file.

    Returns:
        The path of a file with the release's md5.

    Raises:
        ReleaseError: It can't be downloaded, or it isn't what Keras published.
        OSError: The cache can't be written.
    """
    release = RELEASES[name]
    target = cache / release.filename
    keras_cache = Path(os.environ.get('KERAS_HOME', '~/.keras')).expanduser() / 'models'
    for path in (target, keras_cache / release.filename):
        if _md5(path) == release.md5:
            return path
    with replacing(target) as part:
        _download(name, release, target, part)
    return target


def _md5(path: Path) -> str | None:
    """None if the file can't be read, as when there is none."""
    with suppress(OSError):
        return digest_of([path], 'md5')
    return None


def _download(name: str, release: Release, target: Path, part: Path) -> None:
    """Downloads to `part`, which will be `target`, and checks its md5."""
    otherwise = (
        f'Get it by any other means (md5 {release.md5}) and put it at {target}, or pass its path to the conversion '
        f'instead of {name!r}. On a line that breaks again and again, this command goes on where it stopped:\n'
        f'  curl -L -C - -o {shlex.quote(str(target))} {release.url}'
    )
    try:
        if huggingface_hub.constants.HF_HUB_OFFLINE:
            raise ConnectionError('HF_HUB_OFFLINE forbids it')
        with _timeout(TIMEOUT):
            torch.hub.download_url_to_file(release.url, str(part), progress=not are_progress_bars_disabled())
    except (ConnectionError, TimeoutError, URLError, HTTPException) as e:
        raise ReleaseError(f'{release.url} cannot be downloaded: {in_one_line(e)}.\n{otherwise}') from e
    if (md5 := _md5(part)) != release.md5:
        raise ReleaseError(
            f'{release.url} is not what Keras published: {part.stat().st_size:,} bytes arrived, with md5 {md5} instead '
            f'of {release.md5}, and were removed.\n{otherwise}'
        )


@contextmanager
def _timeout(seconds: float) -> Iterator[None]:
    """Gives up connections that are silent for so long. torch has no argument for it."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
