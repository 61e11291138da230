"""Damaged and hostile files: each gives the right arrays, or one error that names the file and what is wrong in it.

Nothing else comes of any: no other exception, no crash, no loop without end, no more than a gigabyte, nothing read,
written or run outside. Files are read in a process that such things would happen to.
"""

import base64
import io
import json
import marshal
import os
import re
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import h5py
import keras_files
import numpy as np
import pytest
from watched import Outcome, Watched

from xception_hub.porting.port import port

SEED = int(os.environ.get('FUZZ_SEED', 20161007))
FAST, SLOW = 48, 500  # cases of the fuzz, each of which follows from the seed and its number
LARGE = 1024  # elements from which on an array has one value throughout, which HDF5 doesn't store
MOST_CHARACTERS = 2100  # of a message
WEIGHTS = 'model.weights.h5'  # in an archive

XCEPTIONS: dict[str, tuple[Callable[[Any, Path], Path], Callable[[], Any]]] = {
    'archive': (keras_files.archive, keras_files.nested),
    'HDF5': (keras_files.whole_h5, keras_files.flat_with_head),
}


@dataclass(frozen=True)
class Source:
    """A source, whole or damaged.

    Attributes:
        file: The file, alone in its folder.
        places: Name of a tensor -> path of its array in HDF5.
    """

    file: Path
    places: dict[str, str]

    @property
    def is_archive(self) -> bool:
        return self.file.suffix == '.keras'

    def hdf5(self) -> bytes:
        return members_of(self.file)[WEIGHTS] if self.is_archive else self.file.read_bytes()

    def write_hdf5(self, content: bytes | bytearray) -> None:
        """A member of an archive gets the right checksum."""
        if self.is_archive:
            write_archive(self.file, {**members_of(self.file), WEIGHTS: bytes(content)})
        else:
            self.file.write_bytes(content)

    @contextmanager
    def opened(self) -> Iterator[h5py.File]:
        """For changes, in an old format of HDF5."""
        buffer = io.BytesIO(self.hdf5())
        with h5py.File(buffer, 'r+', libver='earliest') as content:
            yield content
        self.write_hdf5(buffer.getvalue())

    def text(self) -> str:
        """Of the model's config, wherever it is."""
        if self.is_archive:
            return members_of(self.file)['config.json'].decode()
        with h5py.File(self.file) as file:
            return str(file.attrs['model_config'])

    def write_text(self, text: str) -> None:
        content = text.encode(errors='surrogatepass')
        if self.is_archive:
            write_archive(self.file, {**members_of(self.file), 'config.json': content})
        else:
            with h5py.File(self.file, 'r+') as file:
                file.attrs['model_config'] = content


def members_of(archive: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(archive) as opened:
        return {name: opened.read(name) for name in opened.namelist()}


def write_archive(path: Path, members: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, 'w') as archive:
        for name, content in members.items():
            archive.writestr(name, content)


# Whole sources -------------------------------------------------------------------------------------------------------


def with_few_values(model: Any) -> Any:
    """The model with arrays none of which is like another: small ones are random, of large ones all elements equal."""
    generator, count = np.random.default_rng(0), 0
    for layer in keras_files.flat(model):
        values = []
        for value in layer.get_weights():
            count += 1
            few = value.size < LARGE and value.dtype.kind == 'f'
            values.append(generator.uniform(0.5, 1.5, value.shape) if few else np.full(value.shape, 1 + count / 1000))
        if any(value.dtype.kind == 'f' for value in layer.get_weights()):
            layer.set_weights(values)
    return model


def shrunk(content: bytes) -> bytes:
    """A file of HDF5 whose large arrays are one value to fill with, all else as it is."""
    buffer = io.BytesIO()
    with h5py.File(io.BytesIO(content)) as whole, h5py.File(buffer, 'w') as small:
        small.attrs.update(whole.attrs)

        def copy(path: str, node: Any) -> None:
            if isinstance(node, h5py.Group):
                copied = small.require_group(path)
            elif node.size < LARGE:
                copied = small.create_dataset(path, data=node[()])
            else:
                copied = small.create_dataset(path, node.shape, node.dtype, fillvalue=node[(0,) * node.ndim])
            copied.attrs.update(node.attrs)

        whole.visititems(copy)
    return buffer.getvalue()


def xception(folder: Path, kind: str) -> Source:
    """A few hundred kilobytes."""
    write, make = XCEPTIONS[kind]
    model = with_few_values(make())
    source = Source(write(model, folder), {})
    values = keras_files.expected_tensors(model)
    names = {(float(tensor.flatten()[0]), tensor.numel()): name for name, tensor in values.items()}
    source.write_hdf5(shrunk(source.hdf5()))

    def visit(path: str, node: Any) -> None:
        number = isinstance(node, h5py.Dataset) and node.dtype.kind == 'f'
        if number and (name := names.get((float(node[(0,) * node.ndim]), node.size))):
            source.places[name] = path

    with h5py.File(io.BytesIO(source.hdf5())) as content:
        content.visititems(visit)
    assert source.places.keys() == values.keys()
    return source


@pytest.fixture(scope='module')
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Source]:
    return {kind: xception(tmp_path_factory.mktemp('whole'), kind) for kind in XCEPTIONS}


class Outside(NamedTuple):
    """What no file may touch: a pipe that nobody writes into, a file with values, one that code would create."""

    pipe: Path
    secret: Path
    proof: Path


@pytest.fixture(scope='module')
def outside(tmp_path_factory: pytest.TempPathFactory) -> Outside:
    folder = tmp_path_factory.mktemp('outside')
    found = Outside(folder / 'pipe', folder / 'secret.h5', folder / 'proof')
    os.mkfifo(found.pipe)
    with h5py.File(found.secret, 'w') as file:
        file['secret'] = np.full(100_000, 7, 'f4')
    return found


# Reading them --------------------------------------------------------------------------------------------------------


def read(source: Source, moved: bool) -> str:
    """Names of arrays that are not those in the file, by way of h5py; in a process that is watched.

    An array that was moved may have the values of any other of its size.
    """
    found = {name: tensor.numpy() for name, tensor in port(source.file).tensors.items()}
    read_again: dict[str, np.ndarray] = {}
    with h5py.File(io.BytesIO(source.hdf5())) as content:
        for name, path in source.places.items():
            values = np.asarray(content.get(path, np.nan), 'f4')
            axes = (2, 3, 0, 1) if name.endswith('conv_dw.weight') else (3, 2, 0, 1)
            read_again[name] = values.transpose(axes) if values.ndim == 4 else values.T
    if moved:
        return ' '.join(
            name for name, values in found.items() if not any(np.array_equal(values, v) for v in read_again.values())
        )
    names = found.keys() | source.places.keys()
    return ' '.join(name for name in names if not np.array_equal(found.get(name, np.nan), read_again[name]))


@pytest.fixture(scope='module')
def watched(sources: dict[str, Source]) -> Iterator[Watched]:
    process = Watched()
    for source in sources.values():  # imports all that is imported on the way
        assert process(read, source.file.parent, source, False, watch=False) == Outcome('returned', '', [])
    yield process
    process.close()


def must_be(outcome: Outcome, source: Source, named: str | None) -> None:
    """The right arrays; or, and in any case if there is something to be named, an error that names it and the file."""
    assert outcome.events == []
    if outcome.kind == 'returned':
        assert outcome.text == '' and named is None
        return
    assert outcome.kind == 'KerasFileError', outcome.text
    assert str(source.file.parent) in outcome.text and (named or '') in outcome.text
    assert outcome.text.isprintable() and len(outcome.text) <= MOST_CHARACTERS


def test_watched(watched: Watched, tmp_path: Path) -> None:
    """What must not happen is seen."""
    assert watched(Path.read_text, tmp_path, Path(__file__)).events
    assert watched(Path.touch, tmp_path, tmp_path / 'proof').events
    assert watched(int, tmp_path, 'x').kind == 'ValueError'
    assert watched(bytearray, tmp_path, 2**31).kind == 'MemoryError'


# Named damages -------------------------------------------------------------------------------------------------------

Damage = Callable[[h5py.File, str, Outside], object]  # to a file of HDF5 and the path of an array in it


def anew(**storage: Any) -> Damage:
    """The same array, created in another way."""

    def damage(file: h5py.File, path: str, outside: Outside) -> h5py.Dataset:
        shape = file[path].shape
        del file[path]
        return file.create_dataset(path, **{'shape': shape, 'dtype': 'f4', **storage})

    return damage


def linked(make: Callable[[h5py.File, str, Outside], Any]) -> Damage:
    """Something else at its place."""

    def damage(file: h5py.File, path: str, outside: Outside) -> None:
        made = make(file, path, outside)
        del file[path]
        file[path] = made

    return damage


def one_chunk(values: bytes, **filters: Any) -> Damage:
    """In one chunk, whose bytes are not those that the filters make of the values."""

    def damage(file: h5py.File, path: str, outside: Outside) -> None:
        shape = file[path].shape
        anew(chunks=shape, **filters)(file, path, outside).id.write_direct_chunk((0,) * len(shape), values)

    return damage


def virtual(file: h5py.File, path: str, outside: Outside) -> None:
    layout = h5py.VirtualLayout(file[path].shape, 'f4')
    layout[...] = h5py.VirtualSource(str(outside.pipe), 'secret', file[path].shape)
    del file[path]
    file.create_virtual_dataset(path, layout)


def unknown_filter(file: h5py.File, path: str, outside: Outside) -> None:
    shape = file[path].shape
    del file[path]
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plan.set_chunk(shape)
    plan.set_filter(32001, h5py.h5z.FLAG_OPTIONAL, (1, 2, 3))
    h5py.h5d.create(file.id, path.encode(), h5py.h5t.IEEE_F32LE, h5py.h5s.create_simple(shape), plan)


def crowded(file: h5py.File, path: str, outside: Outside) -> None:
    for i in range(11_000):
        file.create_group(f'many/{i}')


ARRAYS: dict[str, Damage] = {  # the error names the array
    'NaN': lambda file, path, outside: file[path].write_direct(np.full(file[path].shape, np.nan, 'f4')),
    'no values': linked(lambda *_: h5py.Empty('f4')),
    'of another shape': anew(shape=(7, 5)),
    'huge': anew(shape=(2**50,)),
    'huge chunks': anew(shape=(2**40, 2**20), chunks=(64, 64)),
    'integers': anew(dtype='i4'),
    'records': anew(dtype=[('a', 'f4'), ('b', 'i2')]),
    'lists': anew(dtype=h5py.vlen_dtype('f4')),
    'a group': linked(lambda file, *_: file.create_group('elsewhere')),
    'a soft link': linked(lambda *_: h5py.SoftLink('/')),
    'an external link': linked(lambda file, path, outside: h5py.ExternalLink(str(outside.secret), 'secret')),
    'an external link to a pipe': linked(lambda file, path, outside: h5py.ExternalLink(str(outside.pipe), '/')),
    'external storage': lambda file, path, outside: anew(
        external=[(str(outside.secret), 0, file[path].size * 4)]
    )(file, path, outside),
    'virtual': virtual,
    'in two places': lambda file, path, outside: file.__setitem__(f'{path} again', file[path]),
    'an unknown filter': unknown_filter,
    'gzip, cut off': one_chunk(zlib.compress(bytes(1000))[:-5], compression='gzip'),
    'gzip, a bomb': one_chunk(zlib.compress(bytes(2**28)), compression='gzip'),
    'fletcher32, too short': one_chunk(b'12', fletcher32=True),
}  # fmt: skip
GROUPS: dict[str, Damage] = {  # it names the file at least
    'an array is missing': lambda file, path, outside: file.__delitem__(path),
    'a cycle': lambda file, path, outside: file[path].parent.__setitem__('cycle', file['/']),
    'very deep groups': lambda file, path, outside: file.create_group('/'.join('x' * 2000)),
    'many groups': crowded,
    'a type': lambda file, path, outside: file[path].parent.__setitem__('type', np.dtype('f4')),
    'a name to print twice over': lambda file, path, outside: file[path].parent.create_group('a\x1b[2J\nb'),
    'a name of no characters': lambda file, path, outside: h5py.h5g.create(file[path].parent.id, b'\xff\xfe'),
    'called 5': lambda file, path, outside: file[path].parent.attrs.update(name=5),
}


# Other ways in which HDF5 stores an array, which are read.
STORED: dict[str, dict[str, Any]] = {
    'big endian': dict(dtype='>f4'),
    'float64': dict(dtype='f8'),
    'float16': dict(dtype='f2'),
    'in chunks': dict(chunks=(16,)),
    'in growing chunks': dict(chunks=(16,), maxshape=(None,)),
}


def with_field(at: int, value: int) -> Callable[[Path, Outside], None]:
    """Two bytes in the last entry of an archive's table of contents."""

    def damage(path: Path, outside: Outside) -> None:
        content = bytearray(path.read_bytes())
        struct.pack_into('<H', content, content.rfind(b'PK\1\2') + at, value)
        path.write_bytes(content)

    return damage


def with_members(**compressed: int) -> Callable[[Path, Outside], None]:
    """Members of some megabytes of zeros, by the first part of their names."""

    def damage(path: Path, outside: Outside) -> None:
        members = members_of(path)
        with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            for name, content in members.items():
                with archive.open(name, 'w') as member:
                    member.write(content if name.partition('.')[0] not in compressed else b'')
                    for _ in range(compressed.get(name.partition('.')[0], 0)):
                        member.write(bytes(2**20))

    return damage


def twice(path: Path, outside: Outside) -> None:
    with zipfile.ZipFile(path, 'a') as archive:
        del archive.NameToInfo['config.json']  # or there would be a warning
        archive.writestr('config.json', b'{}')


ARCHIVES: dict[str, tuple[Callable[[Path, Outside], object], str]] = {  # damage, and what the error names
    'a member is missing': (
        lambda path, outside: write_archive(path, {k: v for k, v in members_of(path).items() if k != WEIGHTS}), WEIGHTS
    ),
    'a member twice': (twice, 'config.json'),
    'outwards': (lambda path, outside: write_archive(path, {**members_of(path), '../proof': b'x'}), ''),
    'a bomb of weights': (with_members(model=600), ''),
    'a bomb of a config': (with_members(config=50), ''),
    'encrypted': (with_field(8, 1), ''),
    'of another method': (with_field(10, 77), ''),
}  # fmt: skip


def with_code(text: str, outside: Outside) -> str:
    """A Lambda layer, which Keras would run."""
    root = json.loads(text)
    code = compile(f"open({str(outside.proof)!r}, 'w').close()", 'code', 'eval')
    function = {'class_name': '__lambda__', 'config': {'code': base64.b64encode(marshal.dumps(code)).decode()}}
    config = {'name': 'code', 'function': function}
    root['config']['layers'].insert(1, dict(class_name='Lambda', name='code', inbound_nodes=[], config=config))
    return json.dumps(root)


CONFIGS: dict[str, Callable[[str, Outside], str]] = {  # what it becomes
    'code': with_code,
    'cut off': lambda text, outside: text[:1000],
    'a list': lambda text, outside: '[]',
    'deep lists': lambda text, outside: text.replace('[', '[' * 10**5, 1),
    'deep lists, closed': lambda text, outside: text.replace('[]', '[' * 5000 + ']' * 5000, 1),
    'a number of many digits': lambda text, outside: text.replace(': 1,', f': {"9" * 10**6},', 1),
    'no text': lambda text, outside: text.replace('"Dense"', '"\ud800"'),
}


def copied(whole: Source, folder: Path) -> Source:
    folder.mkdir()
    return replace(whole, file=Path(shutil.copy(whole.file, folder)))


@pytest.mark.parametrize('kind', [*ARRAYS, *GROUPS])
def test_hdf5(kind: str, sources: dict[str, Source], watched: Watched, outside: Outside, tmp_path: Path) -> None:
    source = copied(sources['archive' if kind in GROUPS else 'HDF5'], tmp_path / 'case')
    path = source.places['entry_flow.1.stack.bn1.weight']
    with source.opened() as content:
        {**ARRAYS, **GROUPS}[kind](content, path, outside)
    must_be(watched(read, source.file.parent, source, False), source, path if kind in ARRAYS else '')


@pytest.mark.parametrize('kind', STORED)
def test_storage(kind: str, sources: dict[str, Source], outside: Outside, tmp_path: Path) -> None:
    source = copied(sources['HDF5'], tmp_path / 'case')
    path = source.places['entry_flow.1.stack.bn1.weight']
    with source.opened() as content:
        values = np.random.default_rng(0).uniform(0.5, 1.5, content[path].shape)
        anew(data=values, **STORED[kind])(content, path, outside)
    assert read(source, False) == ''


@pytest.mark.parametrize('kind', ARCHIVES)
def test_archive(kind: str, sources: dict[str, Source], watched: Watched, outside: Outside, tmp_path: Path) -> None:
    source = copied(sources['archive'], tmp_path / 'case')
    damage, named = ARCHIVES[kind]
    damage(source.file, outside)
    must_be(watched(read, source.file.parent, source, False), source, named)
    assert not (tmp_path / 'proof').exists()


@pytest.mark.parametrize('kind', CONFIGS)
def test_config(kind: str, sources: dict[str, Source], watched: Watched, outside: Outside, tmp_path: Path) -> None:
    source = copied(sources['HDF5'], tmp_path / 'case')
    text = source.text()
    changed = CONFIGS[kind](text, outside)
    assert changed != text
    source.write_text(changed)
    must_be(watched(read, source.file.parent, source, False), source, '')
    assert not outside.proof.exists()


SHARDS: dict[str, Callable[[Path, Outside], Any]] = {  # what the index names
    'outwards': lambda folder, outside: '../secret.h5',
    'elsewhere': lambda folder, outside: str(outside.secret),
    'a folder': lambda folder, outside: '..',
    'none': lambda folder, outside: 'none.h5',
    'a zero': lambda folder, outside: 'a\0.h5',
    'no name': lambda folder, outside: {},
    'many': lambda folder, outside: [f'{i}.h5' for i in range(1000)],
    'the same again': lambda folder, outside: shutil.copy(min(folder.glob('*.h5')), folder / 'again.h5').name,
    'cut off': lambda folder, outside: (
        (folder / 'cut.h5').write_bytes(min(folder.glob('*.h5')).read_bytes()[:999]) and 'cut.h5'
    ),
}


@pytest.fixture(scope='module')
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    index = keras_files.shards(keras_files.flat_with_top(), tmp_path_factory.mktemp('shards'))
    for file in index.parent.glob('*.h5'):
        file.write_bytes(shrunk(file.read_bytes()))
    return index


@pytest.mark.parametrize('kind', SHARDS)
def test_shard(kind: str, shards: Path, watched: Watched, outside: Outside, tmp_path: Path) -> None:
    index = Path(shutil.copytree(shards.parent, tmp_path / 'case')) / shards.name
    source = Source(index, {})
    root = json.loads(index.read_text())
    root['weight_map'][next(iter(root['weight_map']))] = SHARDS[kind](index.parent, outside)
    index.write_text(json.dumps(root))
    must_be(watched(read, index.parent, source, False), source, '')


# The fuzz ------------------------------------------------------------------------------------------------------------

NUMBERS = [0, 1, 2, 3, 4, 7, 8, 16, *(2**bits + d for bits in (7, 8, 15, 16, 31, 32, 40, 63, 64) for d in (-1, 0))]
SIGNATURES = b'\x89HDF TREE SNOD HEAP GCOL'.split()  # what HDF5 begins a piece of its own data with
NODES: list[Any] = [  # what may stand where something else is expected in a config
    None, True, 0, -1, 3, 2**31, 10**29, 0.5, float('nan'), '', 'x', 'relu', '\x1b[2J\n', '\ud800', 'x' * 5000, [],
    [[]], [None, 10**6, 3], [['a', 0, 0]], {}, {'class_name': 'function', 'config': 'exec', 'module': 'builtins'},
]  # fmt: skip


def of_bytes(content: bytearray, random: Random) -> None:
    """Bytes that are lost, added or others."""
    start = random.randrange(len(content))
    count = random.choice((1, 8, 64, 512))
    noise = random.randbytes(min(count, len(content) - start))
    match random.choice(('flipped', 'flipped', 'noise', 'zeros', 'inserted', 'removed', 'cut off')):
        case 'flipped':
            content[start] ^= 1 << random.randrange(8)
        case 'noise':
            content[start : start + len(noise)] = noise
        case 'zeros':
            content[start : start + len(noise)] = bytes(len(noise))
        case 'inserted':
            content[start:start] = noise
        case 'removed':
            del content[start : start + count]
        case 'cut off':
            del content[start:]


def of_numbers(content: bytearray, random: Random) -> None:
    """Numbers in a piece of HDF5's own data become others."""
    starts = [m.start() for m in re.finditer(b'|'.join(map(re.escape, SIGNATURES)), content)]
    with h5py.File(io.BytesIO(content)) as file:
        file.visititems(lambda path, node: starts.append(h5py.h5o.get_info(node.id).addr))
    for _ in range(random.choice((1, 1, 2, 3))):
        block = random.choice(starts)
        end = min(block + 300, len(content))
        width = random.choice((1, 1, 2, 4, 8))
        start = random.randrange(block, max(end - width, block + 1))
        old = int.from_bytes(content[start : start + width], 'little')
        numbers = (random.choice(NUMBERS), random.getrandbits(8 * width), old + 1, old - 1, old + 8)
        new = random.choice((*numbers, random.choice(starts)))
        content[start : start + width] = (new % (1 << 8 * width)).to_bytes(width, 'little')


def of_nodes(root: Any, random: Random) -> None:
    """Values of a config are replaced, lost or exchanged."""
    for _ in range(random.choice((1, 1, 2, 5))):
        places = [*places_in(root)]
        (one, i), (other, k) = random.choice(places), random.choice(places)
        match random.choice(('replaced', 'lost', 'exchanged')):
            case 'replaced':
                one[i] = random.choice(NODES)
            case 'lost':
                del one[i]
            case 'exchanged':
                one[i], other[k] = deepcopy(other[k]), deepcopy(one[i])


def places_in(node: Any) -> Iterator[tuple[Any, Any]]:
    """Each container with each of its keys."""
    for key, value in list(node.items() if isinstance(node, dict) else enumerate(node)):
        yield node, key
        if isinstance(value, (dict, list)):
            yield from places_in(value)


def damage(source: Source, random: Random) -> bool:
    """Whether arrays may have been moved."""
    change = random.choice((of_bytes, of_numbers, of_numbers, of_nodes))
    if change is of_nodes:
        root = json.loads(source.text())
        of_nodes(root, random)
        source.write_text(json.dumps(root, ensure_ascii=False))
        return True
    if change is of_bytes and random.random() < 0.5:
        content = bytearray(source.file.read_bytes())
        of_bytes(content, random)
        source.file.write_bytes(content)
    else:
        content = bytearray(source.hdf5())
        change(content, random)
        source.write_hdf5(content)
    return False


@pytest.mark.parametrize('numbers', [range(FAST), pytest.param(range(FAST, SLOW), marks=pytest.mark.slow)])
def test_fuzz(numbers: range, sources: dict[str, Source], watched: Watched, tmp_path: Path) -> None:
    for number in numbers:
        random = Random(f'{SEED} {number}')
        source = copied(sources[random.choice([*XCEPTIONS])], tmp_path / str(number))
        moved = damage(source, random)
        try:
            must_be(watched(read, source.file.parent, source, moved), source, None)
        except (AssertionError, EOFError) as e:
            raise AssertionError(f'case {number} of FUZZ_SEED={SEED}, {source.file}: {e}') from e
        shutil.rmtree(source.file.parent)
