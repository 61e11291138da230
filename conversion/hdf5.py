"""Arrays out of an HDF5 file that nobody vouches for."""
from pathlib import Path
from typing import Any

import h5py
import numpy as np

__all__ = ['KerasFileError', 'WeightFile']


class KerasFileError(ValueError):
    """The file is damaged, unsafe or of a kind that can't be converted; the message says what, where and what to do."""


class WeightFile:
    """An HDF5 file of which only arrays of known shape are read, and which leads nowhere else.

    Args:
        file: Open for reading.
        source: What the errors call it.
    """

    def __init__(self, file: h5py.File, source: Path) -> None:
        self._file = file
        self.source = source

    def _member(self, path: str) -> Any:
        node: Any = self._file
        for name in path.strip('/').split('/'):
            link = node.get(name, getlink=True) if isinstance(node, h5py.Group) else None
            if link is None:
                raise KerasFileError(f'{self.source}: there is no {path!r} in its weights.')
            if not isinstance(link, h5py.HardLink):  # soft and external links lead anywhere, also to other files
                raise KerasFileError(f'{self.source}: {path!r} is a {type(link).__name__}, which is not followed.')
            node = node[name]
        return node

    def _dataset(self, path: str) -> h5py.Dataset:
        dataset = self._member(path)
        if not isinstance(dataset, h5py.Dataset):
            raise KerasFileError(f'{self.source}: {path!r} is a group instead of an array.')
        return dataset

    def __contains__(self, path: str) -> bool:
        try:
            self._member(path)
        except KerasFileError:
            return False
        return True

    def read(self, path: str, shape: tuple[int, ...]) -> np.ndarray:
        """Reads one array after its place, kind and size were checked.

        Args:
            path: Of the array, every component a hard link.
            shape: The only one that is accepted, so that nothing larger is allocated.

        Returns:
            The values in float32; float16 and float64 are converted.

        Raises:
            KerasFileError: There is no such array, or it is not what the network needs.
        """
        dataset, place = self._dataset(path), f'{self.source}: {path!r}'
        if dataset.is_virtual or dataset.external:
            raise KerasFileError(f'{place} keeps its values in another file, which is not read.')
        if dataset.dtype.kind != 'f':
            raise KerasFileError(f'{place} holds {dataset.dtype} instead of floating point numbers.')
        if dataset.shape != shape:
            raise KerasFileError(f'{place} has shape {dataset.shape}; this network needs {shape}.')
        try:
            values = dataset[()].astype(np.float32, copy=False)
        except (OSError, RuntimeError) as e:
            raise KerasFileError(f'{place} can not be read: {e}.') from e
        if not np.isfinite(values).all():
            raise KerasFileError(f'{place} holds NaN or infinite values.')
        return values

    def shape(self, path: str) -> tuple[int, ...]:
        """The declared shape of an array, of which nothing is read."""
        return self._dataset(path).shape

    def attribute(self, path: str, name: str) -> str | None:
        """A text attribute of a group; None if it has none."""
        value = self._member(path).attrs.get(name)
        return value.decode() if isinstance(value, bytes) else value

    def arrays(self) -> list[str]:
        """The paths of all arrays that hard links lead to."""
        paths: list[str] = []
        self._file.visititems(lambda name, node: paths.append(name) if isinstance(node, h5py.Dataset) else None)
        return paths
