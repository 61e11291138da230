"""The places that weights come from: files, directories, repositories of the Hugging Face Hub, addresses.

Nothing is ever deleted from a cache of others. An error about a damaged file names what gets it anew.
"""

import functools
import hashlib
import json
import os
import re
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import huggingface_hub
import torch
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, OfflineModeIsEnabled
from timm.models._hub import get_cache_dir, hf_split

from ..errors import CheckpointError, DamagedCheckpointError, in_one_line, listed
from ..file_kinds import NETWORKS, TORCH, foreign
from .checkpoint_files import ARGUMENTS, CheckpointFile, as_arguments, read_checkpoint
from .fingerprints import Verification, compare
from .lineages import recognise

REPO_VARIABLE = 'XCEPTION_HUB_REPO'
WEIGHT_FILES = ('model.safetensors', 'pytorch_model.bin')
CONFIG_FILE = 'config.json'

HASHED = re.compile(r'-([0-9a-f]{8,64})\.\w+$')  # a file's name with the beginning of its sha256, as torch has them
HUB_PAGE = re.compile(
    r'(?!datasets/|spaces/)(?P<id>[^/?#]+/[^/?#]+)'
    r'(/(resolve|blob|raw|tree)/(?P<revision>[^/?#]+)(/(?P<file>[^?#]+))?)?/?([?#].*)?'
)

PathLike = str | Path


@dataclass(frozen=True)
class Source:
    """One place where weights may be.

    Attributes:
        kind: 'hub' (id[@revision]), 'url', 'path' (file or directory) or 'tensors' (a state dict in memory).
        location: The id, address, path or state dict.
        genuine: Whether the source promises the weights that Keras publishes; anything else is then refused.
        filename: Name of the weights on the Hub; None for one of `WEIGHT_FILES`.
        guessed: Whether the id could have been meant as the path of a file or directory, which is not there.
    """

    kind: str
    location: Any
    genuine: bool = False
    filename: str | None = None
    guessed: bool = False

    def __str__(self) -> str:
        return 'the given state dict' if self.kind == 'tensors' else str(self.location)

    def fetch(self, filenames: Sequence[str], cache_dir: PathLike | None = None) -> Path:
        """Path of the first of these files that the source has, downloaded if necessary.

        Raises:
            FileNotFoundError, EntryNotFoundError: The source has none of them.
            CheckpointError: The source is neither a path nor a repository.
            Exception: Any failure of the network.
        """
        find = {'hub': self._on_the_hub, 'url': self._behind_the_address, 'path': self._on_the_disk}[self.kind]
        missing: Exception = FileNotFoundError(f'{self} was asked for no file.')
        for filename in filenames:
            try:
                return find(filename, cache_dir)
            except (EntryNotFoundError, FileNotFoundError) as e:
                missing = e
            except Exception as e:  # of the client's library, which changes with its version
                if not self.guessed:
                    raise
                raise CheckpointError(
                    f'{self} is no file and no directory on this machine. As a repository of the Hub it cannot be had: '
                    f'{in_one_line(e)} Correct the path, or the id.'
                ) from e
        raise missing

    def _on_the_hub(self, filename: str, cache_dir: PathLike | None) -> Path:
        repo, revision = hf_split(self.location)
        cached = huggingface_hub.try_to_load_from_cache(repo, filename, cache_dir, revision)
        if isinstance(cached, str) and re.fullmatch('[0-9a-f]{40}', revision or ''):  # a commit, which never changes
            return Path(cached)
        with hub_or_cache():
            return Path(
                huggingface_hub.hf_hub_download(
                    repo, filename, revision=revision, cache_dir=cache_dir, library_name='xception_hub'
                )
            )

    def _behind_the_address(self, filename: str, cache_dir: PathLike | None) -> Path:
        """A file in torch's cache, under its own name only if that holds the beginning of its sha256."""
        name = Path(urlsplit(self.location).path).name
        digest = HASHED.search(name)
        if not digest:  # other addresses have files of the same name
            name = f'{hashlib.sha256(self.location.encode()).hexdigest()[:16]}_{name}'
        path = Path(cache_dir or get_cache_dir(), name)
        if path.is_file() and (not digest or hashlib.sha256(path.read_bytes()).hexdigest().startswith(digest[1])):
            return path
        if huggingface_hub.constants.HF_HUB_OFFLINE:
            raise FileNotFoundError('The file is not in the cache, and HF_HUB_OFFLINE forbids the download.')
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(self.location, str(path), digest and digest[1], progress=False)
        return path

    def _on_the_disk(self, filename: str, cache_dir: PathLike | None) -> Path:
        path = Path(os.path.expanduser(self.location))
        file = path / filename if path.is_dir() else path
        if file.is_file():
            return file
        if other := foreign(path, TORCH):
            raise FileNotFoundError(f'{path} {other}')
        if not path.is_dir():
            raise FileNotFoundError(f'There is no file {path}.')
        names = sorted(file.name for file in path.iterdir() if NETWORKS.search(file.name))
        raise FileNotFoundError(f'{path} has no {filename}. It has: {listed(names)}. Name the file itself.')

    def read(self, cache_dir: PathLike | None = None) -> CheckpointFile:
        """The tensors under the names in the file, and the network's arguments if the file records them.

        Raises:
            CheckpointError: There is no such file, or it is no checkpoint.
            Exception: Any failure of the network.
        """
        if self.kind == 'tensors':
            arguments = as_arguments(getattr(self.location, '_metadata', {}).get('', {}).get(ARGUMENTS))
            return CheckpointFile(dict(self.location), {} if arguments is None else {'': arguments})
        try:
            path = self.fetch([self.filename] if self.filename else WEIGHT_FILES, cache_dir)
            return read_checkpoint(path, mapped=self.kind == 'hub')
        except FileNotFoundError as e:
            raise CheckpointError(str(e)) from e
        except DamagedCheckpointError as e:
            raise DamagedCheckpointError(f'{e}{self.anew(path, cache_dir)}') from e.__cause__

    def anew(self, path: Path, cache_dir: PathLike | None = None) -> str:
        """What replaces a damaged file in a cache."""
        if self.kind == 'hub':
            repo, revision = hf_split(self.location)
            words = ['hf', 'download', repo, path.name, *(['--revision', revision] if revision else [])]
            words += ['--force-download', *(['--cache-dir', str(cache_dir)] if cache_dir else [])]
            return f' To download it anew: {shlex.join(words)}'
        return f' To download it anew, delete {path}.' if self.kind == 'url' else ''

    def read_config(self, cache_dir: PathLike | None = None) -> dict[str, Any]:
        """The repository's or directory's config.json; {} if there is none."""
        if self.kind != 'hub' and not (self.kind == 'path' and Path(os.path.expanduser(self.location)).is_dir()):
            return {}
        try:
            config = json.loads(self.fetch([CONFIG_FILE], cache_dir).read_text(encoding='utf-8'))
        except (EntryNotFoundError, FileNotFoundError):
            return {}
        except (json.JSONDecodeError, UnicodeDecodeError) as e:
            raise CheckpointError(f'{self}: {CONFIG_FILE} is not JSON ({e}).') from e
        if not isinstance(config, dict):
            raise CheckpointError(f'{self}: {CONFIG_FILE} holds a {type(config).__name__} instead of an object.')
        return config


@functools.cache
def _reach_hub(endpoint: str) -> None:
    """Raises a ConnectionError if the Hub cannot be reached. Its client retries for half a minute before it says so."""
    try:
        huggingface_hub.get_session().head(endpoint, timeout=huggingface_hub.constants.HF_HUB_ETAG_TIMEOUT)
    except Exception as e:  # of the client's library, which changes with its version
        if not re.search('Connect|Timeout|Proxy|Offline', type(e).__name__):
            return  # something answers; the download shows what
        raise ConnectionError(f'{endpoint} cannot be reached ({type(e).__name__}: {e}).') from e


@contextmanager
def hub_or_cache() -> Iterator[None]:
    """While the Hub cannot be reached, code of others takes what is in the cache, at once instead of after retries.

    Raises:
        ConnectionError: Something is not in the cache.
    """
    before, reason = huggingface_hub.constants.HF_HUB_OFFLINE, ''
    try:
        _reach_hub(huggingface_hub.constants.ENDPOINT)
    except ConnectionError as e:
        huggingface_hub.constants.HF_HUB_OFFLINE, reason = True, f', and {e}'
    try:
        yield
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as e:
        raise ConnectionError(f'It is not in the cache{reason or ", and the Hub does not send it."}') from e
    finally:
        huggingface_hub.constants.HF_HUB_OFFLINE = before


def source_of(location: PathLike) -> Source:
    """The source that a text names.

    Args:
        location: A file or directory ('~' is the home directory), with or without 'local-dir:'; a hub id, 'org/name' or
            'org/name@revision', with or without 'hf-hub:'; the address of any file, or of a page of the Hub.
    """
    text = os.fspath(location)
    for prefix, kind in (('hf-hub:', 'hub'), ('local-dir:', 'path')):
        if text.startswith(prefix):
            return Source(kind, text[len(prefix) :])
    for endpoint in (huggingface_hub.constants.ENDPOINT, 'https://huggingface.co', 'https://hf.co'):
        page = HUB_PAGE.fullmatch(text.removeprefix(f'{endpoint}/')) if text.startswith(f'{endpoint}/') else None
        if page and not NETWORKS.search(page['id']):
            revision = f'@{page["revision"]}' if page['revision'] else ''
            return Source('hub', f'{page["id"]}{revision}', filename=page['file'])
    if text.startswith(('https://', 'http://')):
        return Source('url', text)
    is_path = text.count('/') != 1 or text.startswith(('.', '~', '/')) or NETWORKS.search(text)
    if is_path or os.path.exists(text):
        return Source('path', text)
    return Source('hub', text, guessed=True)


def verify(location: PathLike, cache_dir: PathLike | None = None) -> Verification:
    """Compares the weights of any hub id, address, file or directory with those that Keras publishes.

    Raises:
        CheckpointError: The location holds no checkpoint of Xception.
        Exception: Any failure of the network.
    """
    source = source_of(location)
    return compare(recognise(source.read(cache_dir).tensors, str(source)).tensors)
