"""Every kind of file of a whole Xception in a few hundred kilobytes, and what has to be read from it.

HDF5 doesn't store what it can tell: arrays of one value throughout are a value to fill with.
"""

import io
import json
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import keras_files
import numpy as np

from xception_hub.porting.layouts import KERAS1_VARIABLES
from xception_hub.porting.names import KINDS, LAYERS, PREDICTIONS, to_keras

WEIGHTS = 'model.weights.h5'  # in an archive
LARGE = 1024  # elements from which on an array has one value throughout


@dataclass(frozen=True)
class Base:
    """A source before anything happens to it.

    Attributes:
        folder: Its files, and nothing else, are in folder / 'files'.
        source: Path of the source in there.
        config: Path of what --config is given, if it is.
        contents: Files in there that are HDF5 or, if the second is a name, have a member that is.
        places: Name of a tensor, or of an array if it is no Xception -> file, member and path in HDF5.
    """

    folder: Path
    source: str
    config: str | None
    contents: list[tuple[str, str | None]]
    places: dict[str, tuple[str, str | None, str]]

    @property
    def name(self) -> str:
        return self.folder.name


def with_few_values(model: Any, seed: int = 0) -> Any:
    """The model with arrays none of which is like another: small ones are random, of large ones all elements equal."""
    generator = np.random.default_rng(seed)
    count = 0
    for layer in keras_files.flat(model):
        values = []
        for value in layer.get_weights():
            count += 1
            few = value.size < LARGE and value.dtype.kind == 'f'
            values.append(generator.uniform(0.5, 1.5, value.shape) if few else np.full(value.shape, 1 + count / 1000))
        if any(value.dtype.kind == 'f' for value in layer.get_weights()):
            layer.set_weights(values)
    return model


def shrink(content: Any, target: Any) -> None:
    """Copies an HDF5 file, its groups and attributes as they are, and large arrays as one value."""
    with h5py.File(content, 'r') as source, h5py.File(target, 'w') as small:
        small.attrs.update(source.attrs)

        def copy(path: str, node: Any) -> None:
            if isinstance(node, h5py.Group):
                copied = small.require_group(path)
            elif node.size < LARGE:
                copied = small.create_dataset(path, data=node[()])
            else:
                value = node[(0,) * node.ndim]
                copied = small.create_dataset(path, node.shape, node.dtype, fillvalue=value)
            copied.attrs.update(node.attrs)

        source.visititems(copy)


def make_base(folder: Path, write: Callable[[Any, Path], Path], model: Any, config: bool = False) -> Base:
    """Has a writer of keras_files.py write a model, and makes a base of it."""
    files = folder / 'files'
    files.mkdir(parents=True)
    source = write(model, files)
    contents: list[tuple[str, str | None]] = []
    for file in sorted(files.rglob('*')):
        if file.suffix == '.h5':
            small = file.with_suffix('.small')
            shrink(file, small)
            small.replace(file)
            contents.append((str(file.relative_to(files)), None))
        elif file.suffix == '.keras':
            with zipfile.ZipFile(file) as archive:
                members = {name: archive.read(name) for name in archive.namelist()}
            shrink(io.BytesIO(members[WEIGHTS]), buffer := io.BytesIO())
            write_archive(file, {**members, WEIGHTS: buffer.getvalue()})
            contents.append((file.name, WEIGHTS))
    if config:
        (files / 'config-of-it.json').write_text(model.to_json())
    expected = {name: tensor.numpy() for name, tensor in keras_files.expected_tensors(model).items()}
    return finish(folder, str(source.relative_to(files)), 'config-of-it.json' if config else None, contents, expected)


def finish(
    folder: Path,
    source: str,
    config: str | None,
    contents: list[tuple[str, str | None]],
    expected: dict[str, np.ndarray],
) -> Base:
    """Finds the place of every array by its first value, which no other has, and writes what fuzz_worker.py needs."""
    names = {(float(value.flat[0]), value.size): name for name, value in expected.items()}
    places: dict[str, tuple[str, str | None, str]] = {}
    for file, member in contents:
        with open_content(folder / 'files', file, member) as opened:
            for path in arrays_in(opened):
                node = opened[path]
                name = names.get((float(node[(0,) * node.ndim]), node.size))
                if name:
                    places[name] = (file, member, path)
    assert places.keys() == expected.keys()
    (folder / 'expected.json').write_text(
        json.dumps(
            {
                name: dict(
                    place=places[name],
                    shape=value.shape,
                    values=value.flat[:1].tolist() if (value == value.flat[0]).all() else value.ravel().tolist(),
                )
                for name, value in expected.items()
            }
        )
    )
    return Base(folder, source, config, contents, places)


def arrays_in(file: h5py.File) -> list[str]:
    """Paths of all arrays of floating point numbers."""
    paths: list[str] = []

    def visit(path: str, node: Any) -> None:
        if isinstance(node, h5py.Dataset) and node.size and node.dtype.kind == 'f':
            paths.append(path)

    file.visititems(visit)
    return paths


@contextmanager
def open_content(folder: Path, file: str, member: str | None) -> Iterator[h5py.File]:
    content: Any = folder / file
    if member:
        with zipfile.ZipFile(content) as archive:
            content = io.BytesIO(archive.read(member))
    with h5py.File(content, 'r') as opened:
        yield opened


def release(model: Any, folder: Path) -> Path:
    """In the layout of Keras 1, as Keras publishes its weights."""
    tensors = keras_files.expected_tensors(model)
    with h5py.File(folder / 'release.h5', 'w') as file:
        for layer in [*LAYERS.values(), PREDICTIONS]:
            for (name, _, _), value in zip(KINDS[layer.kind], to_keras(layer, tensors)):
                file[f'{layer.keras1}/{layer.keras1}_{KERAS1_VARIABLES.get(name, name)}:0'] = value
    return folder / 'release.h5'


def every_storage(folder: Path, libver: str) -> Base:
    """A file of no Xception: each way in which HDF5 stores arrays, groups and attributes, in its old or new format."""
    generator = np.random.default_rng(0)
    expected: dict[str, np.ndarray] = {}
    (folder / 'files').mkdir(parents=True)

    def add(path: str, shape: tuple[int, ...], dtype: str = 'f4', **storage: Any) -> None:
        expected[path] = generator.normal(size=shape).astype(dtype)
        file.create_dataset(path, data=expected[path], **storage)

    with h5py.File(folder / 'files' / 'arrays.h5', 'w', libver=libver) as file:
        file.attrs['keras_version'] = '3.15.1'
        file.attrs['fixed'] = np.bytes_(b'x' * 200)
        for i in range(5):
            add(f'layers/conv2d_{i}/vars/0', (3, 3, 2, 4))
            file[f'layers/conv2d_{i}/vars'].attrs['name'] = f'conv_{i}'
        add('chunks/many', (40, 40), chunks=(16, 16))
        add('chunks/one', (20, 20), chunks=(20, 20))
        add('chunks/growing', (40, 10), chunks=(8, 10), maxshape=(None, 10))
        add('chunks/growing both ways', (40, 10), 'f8', chunks=(8, 5), maxshape=(None, None))
        add('chunks/bounded', (40, 10), 'f2', chunks=(8, 5), maxshape=(80, 10))
        add('big endian', (9,), '>f4')
        compact = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        compact.set_layout(h5py.h5d.COMPACT)
        expected['compact'] = np.arange(0.5, 8.5, dtype='f4')
        space, dtype = h5py.h5s.create_simple((8,)), h5py.h5t.IEEE_F32LE
        h5py.h5d.create(file.id, b'compact', dtype, space, compact).write(space, space, expected['compact'])
        for i in range(20):
            add(f'many/{i}', (i + 1,))
            file['many'].attrs[f'a{i}'] = 'v' * i
    return finish(folder, 'arrays.h5', None, [('arrays.h5', None)], expected)


def secret(path: Path) -> None:
    """A file that is none of any case's business, with values for whoever reads it as HDF5 or as bytes."""
    with h5py.File(path, 'w') as file:
        file['secret'] = np.full(100_000, 7, 'f4')


def write_archive(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, 'w', compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
