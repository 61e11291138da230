"""The arrays of a source, read in a process of its own, which a damaged file may crash without any harm."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import KerasFileError


class WeightFile:
    """One or more HDF5 files: a list of what is in them, and their arrays. A context manager.

    Nothing is opened before the first call. Every call may raise a KerasFileError.

    Args:
        source: Name of the files in errors.
        files: The files. No two of them hold the same array.
        content: Content of one file in blocks, if there are no files.
        size: Size of the content in bytes.
    """

    def __init__(self, source: Path, files: Sequence[Path] = (), content: Iterable[bytes] = (), size: int = 0) -> None:
        self.source = source
        self._files, self._content, self._size = files, content, size
        self._process: Any = None

    def __enter__(self) -> 'WeightFile':
        return self

    def __exit__(self, *error: object) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()

    def __contains__(self, path: str) -> bool:
        return path in self._index['arrays'] or path in self._index['groups']

    def arrays(self) -> list[str]:
        """The paths of all arrays."""
        return list(self._index['arrays'])

    def groups(self) -> list[str]:
        """The paths of all groups; '' is the root."""
        return list(self._index['groups'])

    def attribute(self, path: str, name: str) -> Any:
        """An attribute of a group, of `hdf5.TEXTS` or `hdf5.LISTS`; None without the attribute or the group."""
        return self._index['groups'].get(path, {}).get(name)

    def shape(self, path: str) -> tuple[int, ...]:
        """The declared shape of an array. No values are read."""
        if path in self._index['groups']:
            raise KerasFileError(f'{self.source}: {path!r} is a group instead of an array.')
        if path not in self._index['arrays']:
            raise KerasFileError(f'{self.source}: there is no {path!r} in its weights.')
        return tuple(self._index['arrays'][path])

    def read(self, path: str) -> np.ndarray:
        """Reads one array, whose `shape` the caller has checked. float16 and bfloat16 keep their values.

        Returns:
            The values in that shape, as float32.
        """
        place = f'{self.source}: {path!r}'
        values = np.empty(self.shape(path), np.float32)
        self._ask(dict(path=path), place)
        if self._process.stdout.readinto(values.data) != values.nbytes:
            raise self._death(place)
        return values

    @cached_property
    def _index(self) -> dict[str, dict[str, Any]]:
        """Groups with their attributes, and arrays with their shapes, of a process with the protocol of hdf5.py."""
        try:
            from . import hdf5  # with h5py, which help does without
        except ImportError as e:
            raise ImportError(f"{e}. Install the keras extra: pip install 'xception-hub[keras]'.") from e
        self._process = subprocess.Popen(
            [sys.executable, str(hdf5.__file__)],  # importing the package would import torch
            env={**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONSAFEPATH': '1'},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        files = [str(file) for file in self._files]
        return self._ask(dict(source=str(self.source), files=files, size=self._size), str(self.source), self._content)

    def _ask(self, request: dict[str, Any], place: str, content: Iterable[bytes] = ()) -> dict[str, Any]:
        with suppress(BrokenPipeError):  # a dead process gives no answer, which is noticed below
            self._process.stdin.write(json.dumps(request).encode() + b'\n')
            for block in content:
                self._process.stdin.write(block)
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line.endswith(b'\n'):
            raise self._death(place)
        answer = json.loads(line)
        if 'error' in answer:
            raise KerasFileError(answer['error'])
        return answer

    def _death(self, place: str) -> KerasFileError:
        code = self._process.wait()
        name = next((known.name for known in signal.Signals if known == -code), f'exit code {code}')
        why = f"HDF5's library does not survive it ({name})"
        if name == 'SIGXCPU':
            from .hdf5 import MAX_SECONDS

            why = f'it takes more than {MAX_SECONDS} s'
        return KerasFileError(f'{place} is damaged: {why}. Save or download it again.')
