"""A table in parts, written by any number of processes on any machines that see its directory.

shards.json                        what the rows depend on; a run with anything else is refused
part-00000-of-00012.parquet ...    rows of consecutive images; a part is there whole, or not at all

A process takes the parts that are its own, then those that no other is writing. One that is killed leaves nothing that
stands in the way: the same command, or another process, writes what is missing.
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

MANIFEST = 'shards.json'
UNFINISHED = f'{MANIFEST}.*{PART_SUFFIX}'
LEFT = ('.*.lock', UNFINISHED, f'part-*{PART_SUFFIX}')  # patterns of files that processes leave behind


@dataclass(frozen=True)
class Shards:
    """The parts of a table in a directory.

    Attributes:
        directory: The directory, which may hold parts of the same table, and nothing else.
        images: Number of rows.
        size: Rows of each part but the last.
        identity: What else the rows depend on, as JSON has it.
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
        """The images of a part."""
        return range(number * self.size, min((number + 1) * self.size, self.images))

    def missing(self) -> list[int]:
        """Numbers of the parts that are not there, or damaged."""
        return [number for number in range(len(self)) if not self._is_there(number)]

    def start(self) -> None:
        """Makes the directory, or checks what it holds.

        Raises:
            DataError: It holds something else, or cannot be written.
        """
        here = json.loads(json.dumps(dict(self.identity, images=self.images, shard_size=self.size)))
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            with self._lock('manifest'):
                file = self.directory / MANIFEST
                if file.is_file():
                    self._check(json.loads(file.read_text(encoding='utf-8')), here)
                elif any(
                    not (path.name.startswith('.') or path.match(UNFINISHED)) for path in self.directory.iterdir()
                ):
                    raise DataError(f'{self.directory} holds other files than shards: name another --output.')
                else:
                    write_text(file, json.dumps(here, indent=2))
        except NotImplementedError as e:
            raise DataError(
                f'{self.directory} is on a file system without locks, by which processes tell each other what they '
                f'write: name an --output elsewhere.'
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
        """Writes what is missing and no other process is writing, and gives the number of each part.

        Args:
            columns: Names of the columns, of `prediction_tables.TYPES`.
            rows: The rows of a range of images.
            rank: Number of this process: of each `processes` parts, one is its own.
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
        """A lock that ends with its process, however that ends."""
        return FileLock(self.directory / f'.{name}.lock', timeout=-1 if name == 'manifest' else 0)

    def _check(self, there: dict[str, Any], here: dict[str, Any]) -> None:
        if different := differences(there, here):
            raise DataError(
                f'{self.directory} holds shards of another model, other images or other settings: '
                f'{"; ".join(different)}. Name another --output, or give the same again.'
            )
