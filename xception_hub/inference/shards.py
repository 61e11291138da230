"""A table in parts, written by any number of processes on all machines that share its directory.

_shards.json                       what the rows depend on; a run with other values stops with an error
part-00000-of-00012.parquet ...    rows of consecutive images; each part is written atomically

pandas and Spark read the directory as one table: they skip names that begin with `_` or `.`.
A process writes its own parts first, then parts that no other process is writing. After a process was killed, the same
command, or another process, writes the missing parts.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow
from filelock import FileLock, Timeout
from pyarrow import parquet

from ..errors import DataError, differences
from ..files import PART_SUFFIX, write_text
from . import prediction_tables

MANIFEST = '_shards.json'
MANIFEST_0_2 = 'shards.json'  # its name in directories that version 0.2 wrote
UNFINISHED = f'{MANIFEST}.*{PART_SUFFIX}'
LEFT = ('.*.lock', UNFINISHED, f'part-*{PART_SUFFIX}')  # patterns of temporary files, removed at the end


@dataclass(frozen=True)
class Shards:
    """The parts of a table in a directory.

    Attributes:
        directory: The directory. It may contain parts of the same table, but no other files.
        images: Number of rows.
        size: Number of rows of each part but the last.
        identity: Everything else that the rows depend on, in types that JSON can express.
    """

    directory: Path
    images: int
    size: int
    identity: Mapping[str, Any]

    def __len__(self) -> int:
        return -(-self.images // self.size)

    def path(self, number: int) -> Path:
        return self.directory / f'part-{number:05}-of-{len(self):05}.parquet'

    def images_of(self, number: int) -> range:
        """Numbers of the images of a part."""
        return range(number * self.size, min((number + 1) * self.size, self.images))

    def missing(self) -> list[int]:
        """Numbers of the parts that are missing or damaged."""
        return [number for number in range(len(self)) if not self._is_there(number)]

    def start(self) -> None:
        """Creates the directory, or checks that it belongs to this table.

        Raises:
            DataError: The directory contains something else, or cannot be written.
        """
        here = json.loads(json.dumps(dict(self.identity, images=self.images, shard_size=self.size)))
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            with self._lock('manifest'):
                file = self.directory / MANIFEST
                with suppress(FileNotFoundError):
                    (self.directory / MANIFEST_0_2).replace(file)
                if file.is_file():
                    self._check(json.loads(file.read_text(encoding='utf-8')), here)
                elif any(
                    not (path.name.startswith('.') or path.match(UNFINISHED)) for path in self.directory.iterdir()
                ):
                    raise DataError(f'{self.directory} contains files that are not shards. Name another --output.')
                else:
                    write_text(file, json.dumps(here, indent=2))
        except NotImplementedError as e:
            raise DataError(
                f'The file system of {self.directory} has no locks, which keep processes from writing the same part. '
                f'Name an --output on another file system.'
            ) from e
        except (OSError, ValueError) as e:
            if isinstance(e, DataError):
                raise
            raise DataError(f'{self.directory} cannot be used: {e}. Name another --output.') from e

    def write(
        self,
        columns: list[str],
        rows: Callable[[range], Iterable[Mapping[str, Any]]],
        rank: int = 0,
        processes: int = 1,
    ) -> Iterator[int]:
        """Writes the missing parts that no other process is writing, and yields the number of each.

        Args:
            columns: Names of the columns, of `prediction_tables.COLUMNS`.
            rows: The rows of a range of images.
            rank: Number of this process. Every `processes`-th part is its own.
            processes: Number of processes that were started together.

        Raises:
            DataError: A part cannot be written.
        """
        for number in sorted(self.missing(), key=lambda number: number % processes != rank):
            with suppress(Timeout), self._lock(number):
                if not self._is_there(number):  # it may have been written since
                    with prediction_tables.table(self.path(number), columns) as write:
                        for row in rows(self.images_of(number)):
                            write(row)
                    yield number
        if not self.missing():
            for file in chain.from_iterable(map(self.directory.glob, LEFT)):
                file.unlink(missing_ok=True)

    def _is_there(self, number: int) -> bool:
        try:
            return parquet.read_metadata(self.path(number)).num_rows == len(self.images_of(number))
        except (OSError, pyarrow.ArrowInvalid):
            return False

    def _lock(self, name: str | int) -> FileLock:
        """A lock that the system releases when its process ends."""
        return FileLock(self.directory / f'.{name}.lock', timeout=-1 if name == 'manifest' else 0)

    def _check(self, there: dict[str, Any], here: dict[str, Any]) -> None:
        if different := differences(there, here):
            raise DataError(
                f'{self.directory} contains shards of another model, other images or other settings: '
                f'{"; ".join(different)}. Name another --output, or use the same settings again.'
            )
