"""Reads arrays from HDF5 files that may be damaged or hostile, in a process of its own: `python hdf5.py`.

Given a damaged file, HDF5's library may read beyond its buffers, divide by zero, loop for ever or ask for any amount of
memory, without an exception. `weight_file.WeightFile` runs it here, where only this process is lost.

    stdin   {"source": "model.h5", "files": ["model.h5"], "size": 0}       or a file of that size after the line
    stdout  {"groups": {"": {"keras_version": "3.15.1"}, "layers/conv2d/vars": {}}, "arrays": {"layers/...": [3, 3]}}
    stdin   {"path": "layers/conv2d/vars/0"}      as often as needed
    stdout  {}                                    and after the line the values in float32

Instead of any answer: {"error": "what and where"}.
"""

import io
import itertools
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import h5py
import numpy as np

MAX_SECONDS = 8  # seconds of computing; a whole Xception takes 0.4
MAX_MEMORY = 2**30  # bytes, beside what Python and its libraries take
MAX_OBJECTS = 10_000  # groups and arrays; a whole Xception with its optimizer has about 2,000
MAX_DEPTH = 32  # nested models and their layers reach 12
MAX_PATH = 1000  # characters
MAX_TEXT = 4 * 2**20  # bytes of one attribute; a config has some 140 thousand

TEXTS = ('keras_version', 'model_config', 'name')  # the attributes that are used
LISTS = re.compile(r'(layer_names|weight_names)(\d{0,4})')  # lists of texts; a long one is in parts with numbers


class Unreadable(ValueError):
    """A file cannot be read; the message says what and where. The caller makes a `KerasFileError` of it."""


@contextmanager
def _reading(place: str) -> Iterator[None]:
    """Makes one error of whatever HDF5's library raises at a place."""
    try:
        yield
    except (Unreadable, MemoryError):
        raise
    except Exception as e:
        raise Unreadable(f'{place} cannot be read: {e}.') from e


class Reader:
    """One or more HDF5 files. No link out of them is followed.

    Args:
        files: The files, open for reading.
        source: Their name in errors.

    Attributes:
        groups: Path of each group, '' for the root -> those of its attributes that are used.
        arrays: Path of each array -> its declared shape.

    Raises:
        Unreadable: A link leads out of a file or back to a group that it is in; an array is in two places or files, or
            keeps its values in another file; a file has more in it than any model; or something cannot be read.
    """

    def __init__(self, files: Sequence[h5py.File], source: str) -> None:
        self.source = source
        self.groups: dict[str, dict[str, Any]] = {}
        self.arrays: dict[str, tuple[int, ...]] = {}
        self._files: dict[str, h5py.File] = {}
        for file in files:
            for path, node in self._walk(file):
                attributes = self._attributes(node, path)
                if isinstance(node, h5py.Group):
                    self.groups[path] = attributes | self.groups.get(path, {})  # in shards the first one has the name
                elif path in self.arrays:
                    raise Unreadable(f'{source}: two of its files hold {path!r}.')
                else:
                    self.arrays[path], self._files[path] = self._shape(node, path), file

    def _walk(self, file: h5py.File) -> Iterator[tuple[str, Any]]:
        """Yields each group and array with its path. Every link on the way is a hard link."""
        seen: dict[int, str] = {}
        stack: list[tuple[str, Any]] = [('', file)]
        while stack:
            path, group = stack.pop()
            yield path, group
            if path.count('/') > MAX_DEPTH:
                raise Unreadable(f'{self.source}: {path!r} is deeper than any model.')
            with _reading(f'{self.source}: the group {path!r}'):
                names = list(itertools.islice(group, MAX_OBJECTS + 1))
            for name in names:
                member = f'{path}/{name}' if path else name
                node, address = self._node(group, name, member)
                if address in seen:
                    raise Unreadable(f'{self.source}: {member!r} and {seen[address]!r} are one and the same.')
                seen[address] = member
                if len(seen) > MAX_OBJECTS:
                    raise Unreadable(f'{self.source} holds more than {MAX_OBJECTS} groups and arrays.')
                if isinstance(node, h5py.Group):
                    stack.append((member, node))
                else:
                    yield member, node

    def _node(self, group: Any, name: str, member: str) -> tuple[Any, int]:
        """A member of a group, and its address in the file."""
        place = f'{self.source}: {member!r}'
        if len(member) > MAX_PATH or not member.isprintable():
            raise Unreadable(f'{place} is no name that Keras gives.')
        with _reading(place):
            link = group.get(name, getlink=True)
            if not isinstance(link, h5py.HardLink):  # soft and external links lead anywhere, also to other files
                raise Unreadable(f'{place} is a {type(link).__name__}, which is not followed.')
            node = group[name]
            if not isinstance(node, (h5py.Group, h5py.Dataset)):
                raise Unreadable(f'{place} is a {type(node).__name__}.')
            return node, h5py.h5o.get_info(node.id).addr

    def _shape(self, dataset: Any, path: str) -> tuple[int, ...]:
        """The declared shape of an array. No values are read."""
        place = f'{self.source}: {path!r}'
        with _reading(place):
            if dataset.is_virtual or dataset.external:
                raise Unreadable(f'{place} keeps its values in another file, which is not read.')
            if dataset.shape is None:
                raise Unreadable(f'{place} has no values.')
            return dataset.shape

    def _attributes(self, node: Any, path: str) -> dict[str, Any]:
        """The attributes that are used. All are read, as Keras will read them; one that is too large is refused."""
        texts: dict[str, Any] = {}
        parts: dict[str, dict[int, list[str]]] = {}
        with _reading(f'{self.source}: the attributes of {path!r}'):
            for name in node.attrs:
                place = f'{self.source}: the attribute {name!r} of {path!r}'
                with _reading(place):
                    attribute = node.attrs.get_id(name)
                    size = np.prod(attribute.shape or (), dtype=float) * attribute.dtype.itemsize
                    if size > MAX_TEXT or (name in TEXTS and attribute.shape not in ((), (1,))):
                        raise Unreadable(f'{place} has shape {attribute.shape}.')
                    value = node.attrs[name]
                    if name in TEXTS:
                        texts[name] = _text(value, place)
                    if part := LISTS.fullmatch(name):
                        parts.setdefault(part[1], {})[int(part[2] or 0)] = _texts(value, place)
        for kind, lists in parts.items():
            texts[kind] = [text for number in sorted(lists) for text in lists[number]]
        return texts

    def read(self, path: str) -> np.ndarray:
        """Reads one array, of the shape in `arrays`, as float32. float16 and bfloat16 keep their values.

        Raises:
            Unreadable: It holds no finite floating point numbers, or is stored as Keras never does.
        """
        place = f'{self.source}: {path!r}'
        with _reading(place):
            dataset = self._files[path][path]
            _check_storage(dataset, place)
            values = _as_float32(dataset, place)
        if not np.isfinite(values).all():
            raise Unreadable(f'{place} holds NaN or infinite values.')
        return values


def _text(value: Any, place: str) -> str:
    if isinstance(value, np.ndarray):
        value = value[0]
    if isinstance(value, bytes):
        value = value.decode()
    if not isinstance(value, str) or len(value) > MAX_TEXT:
        raise Unreadable(f'{place} is no text.')
    return value


def _texts(value: Any, place: str) -> list[str]:
    """A list of names; empty ones are stored as numbers."""
    values = np.asarray(value).ravel().tolist()
    texts = [text.decode() if isinstance(text, bytes) else text for text in values]
    if not all(isinstance(text, str) and len(text) <= MAX_PATH and text.isprintable() for text in texts):
        raise Unreadable(f'{place} is no list of names.')
    return texts


def _check_storage(dataset: h5py.Dataset, place: str) -> None:
    # a chunk is allocated as a whole: the declared one may be far larger than the array
    if dataset.chunks and np.prod(dataset.chunks, dtype=float) > 4 * np.prod(dataset.shape, dtype=float) + 2**20:
        raise Unreadable(f'{place} is stored in chunks of {dataset.chunks}, far larger than itself.')
    # HDF5 takes a chunk that unpacks to less than it should, with whatever lay in memory for the rest, and looks for
    # missing filters among plugins
    if dataset.id.get_create_plist().get_nfilters():
        raise Unreadable(f'{place} is compressed, which Keras never does; `h5repack -f NONE` unpacks it.')


def _as_float32(dataset: h5py.Dataset, place: str) -> np.ndarray:
    """Reads an array straight into the one that is returned."""
    if dataset.dtype == 'V2' and dataset.attrs.get('dtype') == 'bfloat16':
        # Keras writes bfloat16 as bytes, the upper halves of float32
        return (dataset[()].view('<u2').astype('<u4') << 16).view('<f4').astype(np.float32, copy=False)
    if dataset.dtype.kind != 'f' or dataset.dtype.itemsize > 8:
        raise Unreadable(f'{place} holds {dataset.dtype} instead of floating point numbers.')
    values = np.zeros(dataset.shape, np.float32)  # zeros, for a file may say that no value is stored and none fills in
    dataset.read_direct(values)
    return values


# The process


def serve(requests: IO[bytes], answers: IO[bytes]) -> None:
    """Opens the files that the first line names, and answers requests until there are none, or with one error."""

    def answer(content: dict[str, Any], values: Any = b'') -> None:
        answers.write(json.dumps(content).encode() + b'\n')
        answers.write(values)
        answers.flush()

    first = json.loads(requests.readline())
    try:
        reader = Reader(_open(first, requests), first['source'])
        answer(dict(groups=reader.groups, arrays=reader.arrays))
        for line in requests:
            answer({}, reader.read(json.loads(line)['path']).data)
    except Unreadable as e:
        answer(dict(error=str(e)))
    except MemoryError:
        answer(dict(error=f'{first["source"]} asks for more memory than any Xception.'))


def _open(first: dict[str, Any], requests: IO[bytes]) -> list[h5py.File]:
    contents: dict[str, Any] = {name: name for name in first['files']}
    if not contents:
        content = io.BytesIO(bytes(first['size']))  # allocated once, at its full size
        requests.readinto(content.getbuffer())  # type: ignore[attr-defined]
        contents[first['source']] = content
    opened = []
    for name, content in contents.items():
        try:
            opened.append(h5py.File(content, 'r'))
        except Exception as e:
            raise Unreadable(f'{name} is not a complete HDF5 file ({e}). Save or download it again.') from e
    return opened


def limit() -> None:
    """Limits time and memory of this process: not on Windows, and memory only on Linux."""
    with suppress(ImportError):
        import resource

        def lower(which: int, most: int) -> None:
            hard = resource.getrlimit(which)[1]
            if hard == resource.RLIM_INFINITY or most < hard:
                resource.setrlimit(which, (most, most))

        lower(resource.RLIMIT_CORE, 0)
        lower(resource.RLIMIT_CPU, MAX_SECONDS)
        with suppress(OSError):
            pages = int(Path('/proc/self/statm').read_text().split()[0])
            lower(resource.RLIMIT_AS, pages * resource.getpagesize() + MAX_MEMORY)


if __name__ == '__main__':
    limit()
    serve(sys.stdin.buffer, sys.stdout.buffer)
    os._exit(0)  # closing damaged files may crash, too
