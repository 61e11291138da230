"""Arrays out of HDF5 files that nobody vouches for."""
from collections.abc import Iterator, Sequence
from typing import Any

import h5py
import numpy as np

__all__ = ['KerasFileError', 'WeightFile']

MAX_OBJECTS = 100_000  # groups and arrays; a whole Xception with its optimizer has about 2,000
MAX_DEPTH = 32         # nested models and their layers reach 12
MAX_TEXT = 2**26       # characters of an attribute; a config has some 100 thousand


class KerasFileError(ValueError):
    """The file is damaged, unsafe or of a kind that can't be converted; the message says what, where and what to do."""


class WeightFile:
    """One or more HDF5 files of which only arrays of known shape are read, and which lead nowhere else.

    Args:
        files: Open for reading. Of several, the shards of one model, no two hold the same array.
        source: What the errors call them.

    Raises:
        KerasFileError: A link leads out of a file or back to a group it is in, an array is in two places, or there is
            more in a file than in any model.
    """

    def __init__(self, files: Sequence[h5py.File], source: object) -> None:
        self.source = source
        self._places: dict[str, h5py.File] = {}  # path of an array -> the file that holds it
        self._groups: dict[str, list[h5py.File]] = {}
        for file in files:
            for path, is_array in self._walk(file):
                if is_array and path in self._places:
                    raise KerasFileError(f'{source}: two of its files hold {path!r}.')
                if is_array:
                    self._places[path] = file
                else:
                    self._groups.setdefault(path, []).append(file)

    def _walk(self, file: h5py.File) -> Iterator[tuple[str, bool]]:
        """Path of each group and array, and whether it is an array; every component is a hard link."""
        seen: dict[int, str] = {}
        stack: list[tuple[str, Any]] = [('', file)]
        while stack:
            path, group = stack.pop()
            if path.count('/') > MAX_DEPTH:
                raise KerasFileError(f'{self.source}: {path!r} is deeper than any model.')
            for name in _names(group, path, self.source):
                member = f'{path}/{name}' if path else name
                node = self._node(group, name, member)
                address = h5py.h5o.get_info(node.id).addr
                if address in seen:
                    raise KerasFileError(f'{self.source}: {member!r} and {seen[address]!r} are one and the same.')
                seen[address] = member
                if len(seen) > MAX_OBJECTS:
                    raise KerasFileError(f'{self.source} holds more than {MAX_OBJECTS} groups and arrays.')
                yield member, isinstance(node, h5py.Dataset)
                if isinstance(node, h5py.Group):
                    stack.append((member, node))

    def _node(self, group: Any, name: str, member: str) -> Any:
        try:
            link = group.get(name, getlink=True)
            if not isinstance(link, h5py.HardLink):  # soft and external links lead anywhere, also to other files
                raise KerasFileError(f'{self.source}: {member!r} is a {type(link).__name__}, which is not followed.')
            node = group[name]
        except HDF5_ERRORS as e:
            raise KerasFileError(f'{self.source}: {member!r} can not be read: {e}.') from e
        if not isinstance(node, (h5py.Group, h5py.Dataset)):
            raise KerasFileError(f'{self.source}: {member!r} is a {type(node).__name__}.')
        return node

    def __contains__(self, path: str) -> bool:
        return path in self._places or path in self._groups

    def _dataset(self, path: str) -> h5py.Dataset:
        if path in self._groups:
            raise KerasFileError(f'{self.source}: {path!r} is a group instead of an array.')
        if path not in self._places:
            raise KerasFileError(f'{self.source}: there is no {path!r} in its weights.')
        return self._places[path][path]

    def read(self, path: str, shape: tuple[int, ...]) -> np.ndarray:
        """Reads one array after its place, kind and size were checked.

        Args:
            path: Of the array.
            shape: The only one that is accepted, so that nothing larger is allocated.

        Returns:
            The values in float32; float16 and bfloat16 lose nothing by it, float64 is rounded.

        Raises:
            KerasFileError: There is no such array, or it is not what the network needs.
        """
        place = f'{self.source}: {path!r}'
        try:
            dataset = self._dataset(path)
            if dataset.is_virtual or dataset.external:
                raise KerasFileError(f'{place} keeps its values in another file, which is not read.')
            if dataset.shape != shape:
                raise KerasFileError(f'{place} has shape {dataset.shape}; this network needs {shape}.')
            _check_chunks(dataset, place)
            values = _as_float32(dataset, place)
        except HDF5_ERRORS as e:
            raise KerasFileError(f'{place} can not be read: {e}.') from e
        if not np.isfinite(values).all():
            raise KerasFileError(f'{place} holds NaN or infinite values.')
        return values

    def shape(self, path: str) -> tuple[int, ...]:
        """The declared shape of an array, of which nothing is read."""
        try:
            return self._dataset(path).shape
        except HDF5_ERRORS as e:
            raise KerasFileError(f'{self.source}: {path!r} can not be read: {e}.') from e

    def attribute(self, path: str, name: str) -> str | None:
        """A text attribute of a group; None if it has none, or there is no such group."""
        for file in self._groups.get(path, []):
            value = text_attribute(file[path], name, self.source)
            if value is not None:
                return value
        return None

    def arrays(self) -> list[str]:
        """The paths of all arrays."""
        return list(self._places)

    def groups(self) -> list[str]:
        """The paths of all groups."""
        return list(self._groups)


# What h5py raises for files that are damaged in one of many ways.
HDF5_ERRORS = (OSError, RuntimeError, KeyError, TypeError, ValueError, OverflowError, MemoryError, AttributeError)


def text_attribute(group: Any, name: str, source: object) -> str | None:
    """A text attribute, whose declared size is looked at before anything is read; None if there is none.

    Raises:
        KerasFileError: It is something other than one text, or can't be read.
    """
    try:
        if name not in group.attrs:
            return None
        attribute = group.attrs.get_id(name)
        if attribute.shape not in ((), (1,)) or attribute.get_storage_size() > MAX_TEXT:
            raise KerasFileError(f'{source}: the attribute {name!r} of {group.name!r} has shape {attribute.shape}.')
        value = group.attrs[name]
        if isinstance(value, np.ndarray):
            value = value[0]
        if isinstance(value, bytes):
            value = value.decode()
    except KerasFileError:
        raise
    except HDF5_ERRORS as e:
        raise KerasFileError(f'{source}: the attribute {name!r} of {group.name!r} can not be read: {e}.') from e
    if not isinstance(value, str) or len(value) > MAX_TEXT:
        raise KerasFileError(f'{source}: the attribute {name!r} of {group.name!r} is no text.')
    return value


def _names(group: Any, path: str, source: object) -> list[str]:
    try:
        names = []
        for name in group:
            names.append(name)
            if len(names) > MAX_OBJECTS:
                raise KerasFileError(f'{source}: {path!r} holds more than {MAX_OBJECTS} members.')
    except KerasFileError:
        raise
    except HDF5_ERRORS as e:
        raise KerasFileError(f'{source}: the group {path!r} can not be read: {e}.') from e
    return names


def _check_chunks(dataset: h5py.Dataset, place: str) -> None:
    """A chunk is allocated as a whole: the declared one may be far larger than the array."""
    if dataset.chunks and np.prod(dataset.chunks, dtype=float) > 4 * np.prod(dataset.shape, dtype=float) + 2**20:
        raise KerasFileError(f'{place} is stored in chunks of {dataset.chunks}, far larger than itself.')


def _as_float32(dataset: h5py.Dataset, place: str) -> np.ndarray:
    """Reads it straight into the array that is returned."""
    if dataset.dtype == 'V2' and text_attribute(dataset, 'dtype', place) == 'bfloat16':
        # as Keras writes them; they are the upper halves of float32
        return (dataset[()].view('<u2').astype('<u4') << 16).view('<f4').astype(np.float32, copy=False)
    if dataset.dtype.kind != 'f' or dataset.dtype.itemsize > 8:
        raise KerasFileError(f'{place} holds {dataset.dtype} instead of floating point numbers.')
    values = np.empty(dataset.shape, np.float32)
    dataset.read_direct(values)
    return values
