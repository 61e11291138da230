"""What can be wrong with a file, by accident or by intent: tables of name -> what does it to a copy of a good one."""

import base64
import copy
import io
import json
import marshal
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import h5py
import numpy as np
from small_files import Base, open_content, write_archive


@dataclass(frozen=True)
class Outside:
    """What no case may touch.

    Attributes:
        pipe: Nobody writes into it: who opens it to read, waits for ever.
        secret: A file with values that shall not be read, also a file of HDF5.
        proof: The file that code in a case would create.
    """

    pipe: Path
    secret: Path
    proof: Path


@dataclass
class Case:
    """A copy of a base, to be damaged.

    Attributes:
        base: Of which it is a copy.
        folder: Where it is.
        random: All choices come from it.
        outside: What it shall not reach.
        content: The file, and the member if it is an archive, of HDF5 that this case is about.
    """

    base: Base
    folder: Path
    random: Random
    outside: Outside
    content: tuple[str, str | None] = field(init=False)

    def __post_init__(self) -> None:
        self.content = self.random.choice(self.base.contents)

    @property
    def source(self) -> Path:
        return self.folder / self.base.source

    def read(self) -> bytearray:
        """HDF5's bytes."""
        file, member = self.content
        return bytearray(self.members()[member] if member else (self.folder / file).read_bytes())

    def write(self, content: bytes | bytearray) -> None:
        file, member = self.content
        if member:
            write_archive(self.source, {**self.members(), member: bytes(content)})
        else:
            (self.folder / file).write_bytes(content)

    @contextmanager
    def hdf5(self, libver: str = 'earliest') -> Iterator[h5py.File]:
        """The same, opened for changes."""
        buffer = io.BytesIO(self.read())
        with h5py.File(buffer, 'r+', libver=libver) as file:
            yield file
        self.write(buffer.getvalue())

    def array(self) -> str:
        """Path of one of the arrays that are read."""
        places = sorted(path for *content, path in self.base.places.values() if tuple(content) == self.content)
        return self.random.choice(places)

    def members(self) -> dict[str, bytes]:
        """Of an archive."""
        with zipfile.ZipFile(self.source) as archive:
            return {name: archive.read(name) for name in archive.namelist()}

    def config(self) -> str:
        """Of the model."""
        if self.base.config:
            return (self.folder / self.base.config).read_text()
        if self.content[1]:
            return self.members()['config.json'].decode()
        with open_content(self.folder, *self.content) as file:
            return str(file.attrs['model_config'])

    def write_config(self, text: str) -> None:
        content = text.encode(errors='surrogatepass')
        if self.base.config:
            (self.folder / self.base.config).write_bytes(content)
        elif self.content[1]:
            write_archive(self.source, {**self.members(), 'config.json': content})
        else:
            with self.hdf5() as file:
                file.attrs['model_config'] = content


# Returns what the error has to name, '' if that can't be said, or None if there need not be an error.
Damage = Callable[[Case], str | None]


# Bytes


def truncated(case: Case, content: bytearray) -> None:
    del content[case.random.randrange(len(content)) :]


def flipped(case: Case, content: bytearray) -> None:
    for _ in range(case.random.choice((1, 1, 4, 64))):
        content[case.random.randrange(len(content))] ^= 1 << case.random.randrange(8)


def zeroed(case: Case, content: bytearray) -> None:
    start = case.random.randrange(len(content))
    end = min(start + case.random.choice((8, 64, 512, 4096)), len(content))
    content[start:end] = bytes(end - start)


def overwritten(case: Case, content: bytearray) -> None:
    start = case.random.randrange(len(content))
    end = min(start + case.random.choice((1, 4, 64, 512)), len(content))
    content[start:end] = case.random.randbytes(end - start)


def inserted(case: Case, content: bytearray) -> None:
    start = case.random.randrange(len(content))
    content[start:start] = case.random.randbytes(case.random.choice((1, 8, 512)))


def removed(case: Case, content: bytearray) -> None:
    start = case.random.randrange(len(content))
    del content[start : start + case.random.choice((1, 8, 512))]


def exchanged(case: Case, content: bytearray) -> None:
    size = min(case.random.choice((8, 512, 4096)), len(content) // 2)
    one, other = case.random.randrange(len(content) // 2 - size + 1), case.random.randrange(len(content) // 2)
    other = min(other + len(content) // 2, len(content) - size)
    content[one : one + size], content[other : other + size] = content[other : other + size], content[one : one + size]


def appended(case: Case, content: bytearray) -> None:
    content += case.random.randbytes(1000)


def emptied(case: Case, content: bytearray) -> None:
    content.clear()


BYTES: dict[str, Callable[[Case, bytearray], None]] = {
    change.__name__: change
    for change in (truncated, flipped, zeroed, overwritten, inserted, removed, exchanged, appended, emptied)
}


def of_a_file(change: Callable[[Case, bytearray], None]) -> Damage:
    """Done to one of the files as it lies there."""

    def damage(case: Case) -> None:
        file = case.random.choice(sorted(path for path in case.folder.rglob('*') if path.is_file()))
        content = bytearray(file.read_bytes())
        change(case, content)
        file.write_bytes(content)

    return damage


def of_hdf5(change: Callable[[Case, bytearray], None]) -> Damage:
    """Done to a file of HDF5; if it is in an archive, that has the right checksum of it."""

    def damage(case: Case) -> None:
        content = case.read()
        change(case, content)
        case.write(content)

    return damage


# What HDF5 keeps beside the values

SIGNATURES = (
    b'\x89HDF',
    b'TREE',
    b'SNOD',
    b'HEAP',
    b'GCOL',
    b'OHDR',
    b'OCHK',
    b'FRHP',
    b'FHDB',
    b'FHIB',
    b'BTHD',
    b'BTLF',
    b'BTIN',
    b'FAHD',
    b'FADB',
    b'EAHD',
    b'EAIB',
    b'EADB',
    b'EASB',
)
SIZES = {b'BTHD': 34, b'FAHD': 24, b'EAHD': 68, b'FRHP': 142}  # bytes before a checksum
NUMBERS = [0, 1, 2, 3, 4, 7, 8, 16, *(2**bits + d for bits in (7, 8, 15, 16, 31, 32, 40, 63, 64) for d in (-1, 0))]


@dataclass(frozen=True)
class Block:
    """A piece of a file: its first byte, the first after it or a guess of it, and whether a checksum follows."""

    start: int
    end: int
    checksum: bool = False


@cache
def blocks_of(content: bytes) -> dict[str, list[Block]]:
    """Pieces by kind: those with a signature, and the headers of groups and arrays without."""
    found: dict[str, list[Block]] = {}
    for signature in SIGNATURES:
        start = content.find(signature)
        while start >= 0:
            end = min(
                start + (header_size(content, start) if signature == b'OHDR' else SIZES.get(signature, 300)),
                len(content),
            )
            checksum = content[end : end + 4] == struct.pack('<I', lookup3(content[start:end]))
            found.setdefault(f'{signature!r}', []).append(Block(start, end, checksum))
            start = content.find(signature, start + 1)
    with h5py.File(io.BytesIO(content), 'r') as file:

        def visit(path: str, node: Any) -> None:
            start = h5py.h5o.get_info(node.id).addr
            if content[start] == 1:  # version
                (size,) = struct.unpack_from('<I', content, start + 8)
                found.setdefault('header', []).append(Block(start, start + 16 + size))

        file.visititems(visit)
    return found


def header_size(content: bytes, start: int) -> int:
    flags = content[start + 5]
    size = 6 + (16 if flags & 32 else 0) + (4 if flags & 16 else 0)
    width = 1 << (flags & 3)
    return size + width + int.from_bytes(content[start + size : start + size + width], 'little')


def lookup3(data: bytes) -> int:
    """Bob Jenkins' hash, by which HDF5 knows that a piece is whole."""

    def rotated(x: int, bits: int) -> int:
        return (x << bits | x >> (32 - bits)) & 0xFFFFFFFF

    a = b = c = (0xDEADBEEF + len(data)) & 0xFFFFFFFF
    padded = data + bytes(-len(data) % 12)
    words = struct.unpack(f'<{len(padded) // 4}I', padded)
    for i in range(0, len(words), 3):
        a, b, c = ((x + word) & 0xFFFFFFFF for x, word in zip((a, b, c), words[i:]))
        if i + 3 < len(words):
            for bits in (4, 6, 8, 16, 19, 4):
                a, c = ((a - c) & 0xFFFFFFFF) ^ rotated(c, bits), (c + b) & 0xFFFFFFFF
                a, b, c = b, c, a
    for bits in (14, 11, 25, 16, 4, 14, 24):
        c = ((c ^ b) - rotated(b, bits)) & 0xFFFFFFFF
        a, b, c = b, c, a
    return b


def of_a_block(kind: str) -> Callable[[Case, bytearray], None]:
    """Numbers in a piece of one kind, or of any if there is none, become others, with a checksum that is right."""

    def change(case: Case, content: bytearray) -> None:
        blocks = blocks_of(bytes(content))
        everywhere = [block for of_kind in blocks.values() for block in of_kind]
        for _ in range(case.random.choice((1, 1, 2, 3))):
            block = case.random.choice(blocks.get(kind, everywhere))
            width = case.random.choice((1, 1, 2, 4, 8))
            start = case.random.randrange(block.start, max(block.end - width, block.start + 1))
            old = int.from_bytes(content[start : start + width], 'little')
            new = case.random.choice(
                (
                    case.random.choice(NUMBERS),
                    case.random.getrandbits(8 * width),
                    old + 1,
                    old - 1,
                    old + 8,
                    case.random.choice(everywhere).start,
                )
            )
            content[start : start + width] = (new % (1 << 8 * width)).to_bytes(width, 'little')
            if block.checksum:
                struct.pack_into('<I', content, block.end, lookup3(bytes(content[block.start : block.end])))

    return change


BLOCKS: dict[str, Damage] = {
    f'numbers in {kind}': of_hdf5(of_a_block(kind)) for kind in ('header', *map(repr, SIGNATURES))
}


# Arrays

Change = Callable[[Case, h5py.File, str], object]


def of_an_array(change: Change, refused: bool = True) -> Damage:
    """Done to one array, which the error has to name."""

    def damage(case: Case) -> str | None:
        path = case.array()
        with case.hdf5() as file:
            change(case, file, path)
        return path if refused else None

    return damage


def anew(file: h5py.File, path: str, **storage: Any) -> h5py.Dataset:
    """The same array, created in another way."""
    shape = file[path].shape
    del file[path]
    return file.create_dataset(path, **{'shape': shape, 'dtype': 'f4', **storage})


def stored(refused: bool = True, **storage: Any) -> Damage:
    return of_an_array(lambda case, file, path: anew(file, path, **storage), refused)


def linked(make: Callable[[Case, h5py.File, str], Any]) -> Damage:
    """Something else at its place."""

    def change(case: Case, file: h5py.File, path: str) -> None:
        made = make(case, file, path)
        del file[path]
        file[path] = made

    return of_an_array(change)


def one_value(value: float) -> Damage:
    def change(case: Case, file: h5py.File, path: str) -> None:
        values = file[path][()]
        values.flat[case.random.randrange(values.size)] = value
        anew(file, path, data=values)

    return of_an_array(change)


def of_native_type(dtype: Any) -> Damage:
    """Of a type that NumPy may not know."""

    def change(case: Case, file: h5py.File, path: str) -> None:
        space = h5py.h5s.create_simple(file[path].shape)
        del file[path]
        h5py.h5d.create(file.id, path.encode(), dtype, space)

    return of_an_array(change)


def reshaped(case: Case, file: h5py.File, path: str) -> None:
    shape = [*file[path].shape]
    shape[case.random.randrange(len(shape))] += case.random.choice((1, 7, 1000))
    anew(file, path, shape=shape)


def huge_chunks(case: Case, file: h5py.File, path: str) -> None:
    rank = file[path].ndim
    anew(file, path, maxshape=(None,) * rank, chunks=(2**28, *[1] * (rank - 1)))


def external(of: str) -> Damage:
    def change(case: Case, file: h5py.File, path: str) -> None:
        anew(file, path, external=[(str(getattr(case.outside, of)), 0, file[path].size * 4)])

    return of_an_array(change)


def virtual(of: str, endless: bool = False) -> Damage:
    def change(case: Case, file: h5py.File, path: str) -> None:
        shape = file[path].shape
        del file[path]
        source = str(getattr(case.outside, of, of))
        if endless:
            bounds = dict(shape=(1, *shape[1:]), maxshape=(None, *shape[1:]))
            everything = (slice(0, h5py.h5s.UNLIMITED), *[slice(None)] * (len(shape) - 1))
            layout = h5py.VirtualLayout(dtype='f4', **bounds)
            layout[everything] = h5py.VirtualSource(source, 'secret', **bounds)[everything]
        else:
            layout = h5py.VirtualLayout(shape, 'f4')
            layout[...] = h5py.VirtualSource(source, 'secret', shape)
        file.create_virtual_dataset(path, layout)

    return of_an_array(change)


def one_chunk(pack: Callable[[bytes], bytes], **filters: Any) -> Damage:
    """In one chunk, whose bytes are not those that the filters make of the values."""

    def change(case: Case, file: h5py.File, path: str) -> None:
        values = file[path][()]
        array = anew(file, path, chunks=values.shape, **filters)
        array.id.write_direct_chunk((0,) * values.ndim, pack(values.tobytes()))

    return of_an_array(change)


@cache
def deflated_zeros(megabytes: int) -> bytes:
    """Zeros in zlib's format, made without having them."""
    packer = zlib.compressobj(9)
    first = packer.compress(bytes(2**20)) + packer.flush(zlib.Z_FULL_FLUSH)
    other = packer.compress(bytes(2**20)) + packer.flush(zlib.Z_FULL_FLUSH)
    checksum = struct.pack('>I', megabytes * 2**20 % 65521 << 16 | 1)
    return first + other * (megabytes - 1) + b'\x03\x00' + checksum


def unknown_filter(case: Case, file: h5py.File, path: str) -> None:
    shape = file[path].shape
    del file[path]
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plan.set_chunk(shape)
    plan.set_filter(32001, h5py.h5z.FLAG_OPTIONAL, (1, 2, 3))
    h5py.h5d.create(file.id, path.encode(), h5py.h5t.IEEE_F32LE, h5py.h5s.create_simple(shape), plan)


ARRAYS: dict[str, Damage] = {
    'NaN': one_value(np.nan),
    'infinite': one_value(-np.inf),
    'no values': linked(lambda case, file, path: h5py.Empty('f4')),
    'huge chunks': of_an_array(huge_chunks),
    'a group': linked(lambda case, file, path: file.create_group('elsewhere')),
    'a soft link': linked(lambda case, file, path: h5py.SoftLink('/')),
    'a soft link to itself': linked(lambda case, file, path: h5py.SoftLink(f'/{path}')),
    'a soft link to nothing': linked(lambda case, file, path: h5py.SoftLink('nothing')),
    'an external link': linked(lambda case, file, path: h5py.ExternalLink(str(case.outside.secret), 'secret')),
    'an external link to a pipe': linked(lambda case, file, path: h5py.ExternalLink(str(case.outside.pipe), '/')),
    'an external link to itself': linked(lambda case, file, path: h5py.ExternalLink(case.content[0], path)),
    'external storage': external('secret'),
    'external storage in a pipe': external('pipe'),
    'virtual': virtual('secret'),
    'virtual, of a pipe': virtual('pipe'),
    'virtual, of itself': virtual('.'),
    'virtual without end': virtual('secret', endless=True),
    'virtual without end, of a pipe': virtual('pipe', endless=True),
    'in two places': of_an_array(lambda case, file, path: file.__setitem__(f'{path} again', file[path])),
    'integers': stored(dtype='i4'),
    'truth values': stored(dtype='?'),
    'complex numbers': stored(dtype='c8'),
    'long double': stored(dtype=np.longdouble),
    'pairs': stored(dtype=np.dtype(('f4', (2,)))),
    'records': stored(dtype=[('a', 'f4'), ('b', 'i2')]),
    'texts': stored(dtype=h5py.string_dtype()),
    'bytes': stored(dtype='S4'),
    'lists': stored(dtype=h5py.vlen_dtype('f4')),
    'references': stored(dtype=h5py.ref_dtype),
    'regions': stored(dtype=h5py.regionref_dtype),
    'opaque': stored(dtype='V4'),
    'bits': of_native_type(h5py.h5t.STD_B32LE),
    'times': of_native_type(h5py.h5t.UNIX_D32LE),
    'half precision': stored(False, dtype='f2', fillvalue=0.5),
    'double precision': stored(False, dtype='f8', fillvalue=0.5),
    'big endian': stored(False, dtype='>f4', fillvalue=0.5),
    'lzf': stored(compression='lzf'),
    'scaleoffset': stored(scaleoffset=2),
    'an unknown filter': of_an_array(unknown_filter),
    'gzip, cut off': one_chunk(lambda values: zlib.compress(values)[:-5], compression='gzip'),
    'gzip, of too little': one_chunk(lambda values: zlib.compress(values[:-4]), compression='gzip'),
    'gzip, one byte': one_chunk(lambda values: b'x', compression='gzip'),
    'gzip, noise': one_chunk(lambda values: values, compression='gzip'),
    'gzip, a bomb': one_chunk(lambda values: deflated_zeros(4000), compression='gzip'),
    'fletcher32, wrong': one_chunk(lambda values: values + b'1234', fletcher32=True),
    'fletcher32, too short': one_chunk(lambda values: b'12', fletcher32=True),
    'shuffle, too short': one_chunk(lambda values: values[:7], shuffle=True),
}

# Only of an Xception is it known what they should be.
SHAPES: dict[str, Damage] = {
    'another shape': of_an_array(reshaped),
    'a scalar': stored(shape=()),
    'no elements': stored(shape=(0,)),
    'huge': stored(shape=(2**50,)),
    'huge in chunks': stored(shape=(2**40, 2**20), chunks=(64, 64)),
}


# Groups


def of_a_group(change: Callable[[Case, h5py.Group], object], libver: str = 'earliest') -> Damage:
    """Done to the group of one layer; there has to be an error."""

    def damage(case: Case) -> str:
        path = case.array()
        with case.hdf5(libver) as file:
            named = change(case, file[path].parent)
        return named if isinstance(named, str) else ''

    return damage


def copied(case: Case, group: h5py.Group) -> None:
    group.file.copy(group, f'{group.name}_1000')


def deep(depth: int) -> Damage:
    return of_a_group(lambda case, group: group.create_group('/'.join('x' * depth)) and None)


def crowded(of: str, count: int) -> Damage:
    def change(case: Case, group: h5py.Group) -> None:
        for i in range(count):
            group.file.create_group(of.format(i))

    return of_a_group(change)


def many_layers(case: Case) -> None:
    """Of which a config knows nothing."""
    crowded('layers/dropout_1{:04}/vars', 3000)(case)


def with_attribute(value: Any) -> Damage:
    def change(case: Case, group: h5py.Group) -> str:
        group.attrs['name'] = value
        return group.name[1:]

    return of_a_group(change)


def huge_attribute(case: Case, group: h5py.Group) -> None:
    group.create_group('huge').attrs['anything'] = np.zeros(2**20)


def member_called(name: str | bytes) -> Damage:
    return of_a_group(
        lambda case, group: h5py.h5g.create(group.id, name.encode() if isinstance(name, str) else name) and None
    )


def more_in_front(case: Case) -> None:
    case.write(bytes(case.random.choice((1, 512, 1024))) + case.read())


GROUPS: dict[str, Damage] = {
    'an array is missing': of_a_group(lambda case, group: group.__delitem__(case.random.choice(sorted(group)))),
    'a layer is missing': of_a_group(lambda case, group: group.parent.__delitem__(group.name)),
    'a layer twice': of_a_group(copied),
    'an array too many': of_a_group(lambda case, group: group.__setitem__('extra', np.ones(3, 'f4'))),
    'a cycle': of_a_group(lambda case, group: group.__setitem__('cycle', group)),
    'a cycle by way of the root': of_a_group(lambda case, group: group.__setitem__('cycle', group.file['/'])),
    'deep groups': deep(40),
    'very deep groups': deep(2000),
    'many groups': crowded('many/{}', 11_000),
    'many layers': many_layers,
    'a type': of_a_group(lambda case, group: group.__setitem__('type', np.dtype('f4'))),
    'a name to print twice over': member_called('a\x1b[2J\nb'),
    'a name of no characters': member_called(b'\xff\xfe'),
    'a long name': member_called('x' * 60_000),
    'called 5': with_attribute(5),
    'called many names': with_attribute(['a', 'b']),
    'called by a record': with_attribute(np.zeros((), [('a', 'f4')])),
    'called nothing': with_attribute(h5py.Empty('S3')),
    'called no characters': with_attribute(np.bytes_(b'\xff\xfe')),
    'a huge attribute': of_a_group(huge_attribute, 'latest'),
    'more in front': more_in_front,
}


# Archives


def of_members(change: Callable[[dict[str, bytes], str], object]) -> Damage:
    """Done to the members of an archive, of which one is given; the error has to name it."""

    def damage(case: Case) -> str:
        members = case.members()
        name = case.random.choice(sorted(members))
        change(members, name)
        write_archive(case.source, members)
        return name

    return damage


def with_member(name: str) -> Damage:
    def damage(case: Case) -> str:
        write_archive(case.source, {**case.members(), name: b'x'})
        return ''

    return damage


def twice(same: bool) -> Damage:
    def damage(case: Case) -> str:
        members = case.members()
        name = case.random.choice(sorted(members))
        with zipfile.ZipFile(case.source, 'a') as archive:
            del archive.NameToInfo[name]  # or there would be a warning
            archive.writestr(name, members[name] if same else b'{}')
        return name

    return damage


def packed(method: int, **changes: Callable[[bytes], Iterator[bytes]]) -> Damage:
    """Written in another way; some members, by the first part of their name, with other content."""

    def damage(case: Case) -> str | None:
        members = case.members()
        with zipfile.ZipFile(case.source, 'w', method, compresslevel=1) as archive:
            for name, content in members.items():
                with archive.open(name, 'w') as member:
                    for block in changes.get(name.partition('.')[0], lambda content: iter([content]))(content):
                        member.write(block)
        return None if method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) and 'bomb' not in changes else ''

    return damage


def zeros(megabytes: int) -> Callable[[bytes], Iterator[bytes]]:
    return lambda content: (bytes(2**20) for _ in range(megabytes))


def filled_up(content: bytes) -> Iterator[bytes]:
    """To the largest size that is read."""
    yield content
    for left in range(2**29 - len(content), 0, -(2**20)):
        yield bytes(min(left, 2**20))


# Fields of an entry in the table of contents: where, where in the header before the member itself, and how many bytes.
FIELDS = {
    'version': (6, 4, 2),
    'flags': (8, 6, 2),
    'method': (10, 8, 2),
    'checksum': (16, 14, 4),
    'packed size': (20, 18, 4),
    'size': (24, 22, 4),
    'length of the name': (28, 26, 2),
    'length of the extra': (30, 28, 2),
    'offset': (42, None, 4),
}


def of_a_field(name: str, *values: int) -> Damage:
    """Of one member, in one or both places."""
    at, in_header, width = FIELDS[name]

    def damage(case: Case) -> None:
        content = bytearray(case.source.read_bytes())
        entry = content.rfind(b'PK\1\2')
        for _ in range(case.random.randrange(3)):
            entry = content.rfind(b'PK\1\2', 0, entry)
        (member,) = struct.unpack_from('<I', content, entry + 42)
        value = case.random.choice(values or (0, 1, 2**31 - 1, 2**32 - 2, case.random.getrandbits(8 * width)))
        field = (value % (1 << 8 * width)).to_bytes(width, 'little')
        if in_header is None or case.random.random() < 0.8:
            content[entry + at : entry + at + width] = field
        if in_header is not None and case.random.random() < 0.8:
            content[member + in_header : member + in_header + width] = field
        case.source.write_bytes(content)

    return damage


def many_members(case: Case) -> str:
    with zipfile.ZipFile(case.source, 'a') as archive:
        for i in range(30_000):
            archive.writestr(f'assets/{i:060}', b'')
    return ''


ARCHIVES: dict[str, Damage] = {
    'a member is missing': of_members(lambda members, name: members.pop(name)),
    'a member is empty': lambda case: of_members(lambda members, name: members.update({name: b''}))(case) and '',
    'a member twice': twice(same=True),
    'a member twice, differently': twice(same=False),
    **{
        f'also {name!r}': with_member(name)
        for name in ('assets/x', '../proof', '../../proof', '/tmp/proof', 'C:\\proof', 'model.weights.h5/')
    },
    'many members': many_members,
    'deflated': packed(zipfile.ZIP_DEFLATED),
    'bzip2': packed(zipfile.ZIP_BZIP2),
    'lzma': packed(zipfile.ZIP_LZMA),
    'a bomb of weights': packed(zipfile.ZIP_DEFLATED, model=zeros(600)),
    'a bomb of a config': packed(zipfile.ZIP_DEFLATED, config=zeros(50)),
    'as large as may be': packed(zipfile.ZIP_STORED, model=filled_up),
    'encrypted': of_a_field('flags', 1, 0x41),
    **{f'another {name}': of_a_field(name) for name in FIELDS},
    'more in front of it': lambda case: case.source.write_bytes(b'x' * 1000 + case.source.read_bytes()) and None,
}


# JSON

# What may stand where something else is expected.
NODES: list[Any] = [
    None,
    True,
    False,
    0,
    1,
    -1,
    3,
    2**31,
    -(2**63),
    10**29,
    0.5,
    -1e308,
    float('nan'),
    float('inf'),
    '',
    'x',
    'relu',
    'channels_first',
    '\x1b[2J\n',
    '\ud800',
    'x' * 5000,
    [],
    [1],
    [None, 10**6, 10**6, 3],
    [[]],
    [['a', 0, 0]],
    {},
    {'class_name': 'Dense', 'config': {}},
    {'class_name': 'function', 'config': 'exec', 'module': 'builtins'},
]


def places_in(node: Any) -> Iterator[tuple[Any, Any]]:
    """Each container with each of its keys."""
    for key, value in list(node.items() if isinstance(node, dict) else enumerate(node)):
        yield node, key
        if isinstance(value, (dict, list)):
            yield from places_in(value)


def replaced(case: Case, root: Any) -> None:
    for _ in range(case.random.choice((1, 1, 2, 5))):
        container, key = case.random.choice(list(places_in(root)))
        container[key] = copy.deepcopy(case.random.choice(NODES))


def dropped(case: Case, root: Any) -> None:
    for _ in range(case.random.choice((1, 2, 5))):
        places = list(places_in(root))
        if places:
            container, key = case.random.choice(places)
            del container[key]


def swapped(case: Case, root: Any) -> None:
    places = list(places_in(root))
    (one, i), (other, k) = case.random.choice(places), case.random.choice(places)
    one[i], other[k] = copy.deepcopy(other[k]), copy.deepcopy(one[i])


TREES: dict[str, Callable[[Case, Any], None]] = {f.__name__: f for f in (replaced, dropped, swapped)}


def as_text(root: Any) -> str:
    return json.dumps(root, ensure_ascii=False)


def of_config(change: Callable[[Case, Any], object]) -> Damage:
    """Done to the config of a model."""

    def damage(case: Case) -> None:
        root = json.loads(case.config())
        change(case, root)
        case.write_config(as_text(root))

    return damage


def of_a_json_file(change: Callable[[Case, Any], object]) -> Damage:
    """Done to a file that is JSON."""

    def damage(case: Case) -> None:
        file = case.random.choice(sorted(case.folder.rglob('*.json')))
        root = json.loads(file.read_text())
        change(case, root)
        file.write_bytes(as_text(root).encode(errors='surrogatepass'))

    return damage


# Layers: all entries of a model in a config


def layers_of(root: Any) -> list[dict[str, Any]]:
    found = []
    for layer in root['config']['layers']:
        found.append(layer)
        if isinstance(layer['config'], dict) and 'layers' in layer['config']:
            found += layers_of(layer)
    return found


def some_layers(case: Case, root: Any) -> list[dict[str, Any]]:
    """Half of the time those of the outermost model, which are few."""
    return case.random.choice((layers_of(root), root['config']['layers']))


def of_a_layer(change: Callable[[Case, dict[str, Any]], object]) -> Damage:
    return of_config(lambda case, root: change(case, case.random.choice(some_layers(case, root))))


def of_the_list(change: Callable[[Case, list[Any]], object]) -> Damage:
    """Done to the list of layers of one of the models."""

    def damage(case: Case, root: Any) -> None:
        models = [root, *(layer for layer in layers_of(root) if 'layers' in layer['config'])]
        change(case, case.random.choice(models)['config']['layers'])

    return of_config(damage)


def renamed(case: Case, layer: dict[str, Any], name: str) -> None:
    layer['name'] = layer['config']['name'] = name


def names_swapped(case: Case, root: Any) -> None:
    one, other = case.random.sample(layers_of(root), 2)
    one_name, other_name = one['config']['name'], other['config']['name']
    renamed(case, one, other_name)
    renamed(case, other, one_name)


def fed_by(case: Case, root: Any) -> None:
    """A layer takes what a random one gives, mostly a later one."""
    names = [layer['config']['name'] for layer in layers_of(root)]
    text = json.dumps(case.random.choice(layers_of(root)).get('inbound_nodes'))
    layer = case.random.choice(layers_of(root))
    for name in names:
        text = text.replace(f'"{name}"', f'"{case.random.choice(names)}"') if case.random.random() < 0.5 else text
    layer['inbound_nodes'] = json.loads(text)


def in_itself(case: Case, layers: list[Any]) -> None:
    """Models in models, deeper than any."""
    for _ in range(case.random.choice((2, 30))):
        layers.append(
            {
                'class_name': 'Functional',
                'name': 'again',
                'inbound_nodes': [],
                'config': {'name': 'again', 'layers': copy.deepcopy(layers[:2])},
            }
        )
        layers = layers[-1]['config']['layers']


def with_code(case: Case, layers: list[Any]) -> None:
    """A Lambda layer, and other ways to name what Keras would run."""
    code = compile(f"open({str(case.outside.proof)!r}, 'w').close()", 'code', 'eval')
    payload = base64.b64encode(marshal.dumps(code)).decode()
    function = case.random.choice(
        (
            {'class_name': '__lambda__', 'config': {'code': payload, 'defaults': None, 'closure': None}},
            [payload, None, None],
            {'class_name': 'function', 'module': 'os', 'config': 'system'},
        )
    )
    name = case.random.choice(('Lambda', 'TFOpLambda', 'Activation', 'Dense'))
    layers.insert(
        case.random.randrange(1, len(layers)),
        {
            'module': 'keras.layers',
            'class_name': name,
            'name': 'code',
            'inbound_nodes': [],
            'config': {
                'name': 'code',
                'function': function,
                'activation': function,
                'units': 3,
                'arguments': {'command': f'touch {case.outside.proof}'},
            },
        },
    )


def of_the_text(change: Callable[[Case, str], str]) -> Damage:
    def damage(case: Case) -> None:
        case.write_config(change(case, case.config()))

    return damage


def at_random(case: Case, text: str, piece: str) -> str:
    at = case.random.randrange(len(text))
    return text[:at] + piece + text[at:]


def instead_of_a_number(case: Case, text: str, number: str) -> str:
    numbers = list(re.finditer(r'(?<=[ \[])\d+(\.\d+)?(?=[,\]}])', text))
    found = case.random.choice(numbers)
    return text[: found.start()] + number + text[found.end() :]


ODD_NAMES = ('', '\x1b[2J\n', '\ud800', 'x' * 10**5, '/', '..')

CONFIGS: dict[str, Damage] = {
    **{f'nodes {name}': of_config(change) for name, change in TREES.items()},
    'settings replaced': of_a_layer(lambda case, layer: replaced(case, layer)),
    'settings dropped': of_a_layer(lambda case, layer: dropped(case, layer)),
    'a layer removed': of_the_list(lambda case, layers: layers.pop(case.random.randrange(len(layers)))),
    'a layer twice': of_the_list(lambda case, layers: layers.append(copy.deepcopy(case.random.choice(layers)))),
    'layers in another order': of_the_list(lambda case, layers: case.random.shuffle(layers)),
    'a layer of another name': of_a_layer(lambda case, layer: renamed(case, layer, 'another')),
    'a layer of an odd name': of_a_layer(lambda case, layer: renamed(case, layer, case.random.choice(ODD_NAMES))),
    'two names swapped': of_config(names_swapped),
    'a layer of another class': of_a_layer(
        lambda case, layer: layer.update(
            class_name=case.random.choice(
                (
                    'Dense',
                    'Conv2D',
                    'BatchNormalization',
                    'Functional',
                    'Sequential',
                    'Add',
                    'ReLU',
                    'Flatten',
                    'Rescaling',
                    'TFOpLambda',
                    'InputLayer',
                    'Dropout',
                    'GlobalMaxPooling2D',
                    'Evil',
                    'x' * 10**5,
                )
            )
        )
    ),
    'a foreign module': of_a_layer(
        lambda case, layer: layer.update(module='os', class_name='system', registered_name='os>system')
    ),
    'code': of_the_list(with_code),
    'fed by others': of_config(fed_by),
    'in itself': of_the_list(in_itself),
    'many layers': of_the_list(
        lambda case, layers: layers.extend(
            {**layers[-1], 'name': f'many{i}', 'config': {'name': f'many{i}'}} for i in range(20_000)
        )
    ),
    'text cut off': of_the_text(lambda case, text: text[: case.random.randrange(len(text))]),
    'text with more': of_the_text(lambda case, text: at_random(case, text, case.random.choice('{}[]",:0\\é'))),
    'deep lists': of_the_text(lambda case, text: at_random(case, text, '[' * case.random.choice((900, 10**5)))),
    'deep lists, closed': of_the_text(
        lambda case, text: instead_of_a_number(
            case, text, '[' * (depth := case.random.choice((300, 900, 5000))) + ']' * depth
        )
    ),
    'a number of many digits': of_the_text(
        lambda case, text: instead_of_a_number(case, text, '9' * case.random.choice((25, 400, 4000, 10**6)))
    ),
    'a huge exponent': of_the_text(lambda case, text: instead_of_a_number(case, text, '1e999999')),
    'no number': of_the_text(lambda case, text: instead_of_a_number(case, text, 'NaN')),
    'another type': of_the_text(lambda case, text: case.random.choice(('[]', '0', 'null', '"x"', '{}', f'[{text}]'))),
    'lists of nothing': of_the_text(lambda case, text: text[:-1] + ', "x": [' + '[],' * 2 * 10**6 + '[]]}'),
}


# Shards and presets


def named_shard(name: Any) -> Damage:
    """An array is said to be in another file."""

    def damage(case: Case) -> str:
        root = json.loads(case.source.read_text())
        root['weight_map'][case.random.choice(sorted(root['weight_map']))] = name
        case.source.write_text(json.dumps(root))
        return ''

    return damage


def absolute_shard(case: Case) -> str:
    return named_shard(str(case.outside.secret))(case) or ''


def shards_exchanged(case: Case) -> None:
    one, other = case.random.sample(sorted(case.folder.glob('*.h5')), 2)
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)


def a_file_less(case: Case) -> None:
    case.random.choice(sorted(path for path in case.folder.rglob('*') if path.is_file())).unlink()


def a_file_as_another(case: Case) -> None:
    one, other = case.random.sample(sorted(path for path in case.folder.rglob('*') if path.is_file()), 2)
    other.write_bytes(one.read_bytes())


FILES: dict[str, Damage] = {
    **{f'JSON {name}': of_a_json_file(change) for name, change in TREES.items()},
    'a file less': a_file_less,
    'a file as another': a_file_as_another,
}

SHARDS: dict[str, Damage] = {
    **{
        f'a shard {name!r}': named_shard(name)
        for name in (
            '../secret.h5',
            '..',
            '',
            'x/../../secret.h5',
            'none.h5',
            'a\0.h5',
            '\ud800.h5',
            None,
            5,
            {},
            [[['a.h5']]],
        )
    },
    'a shard elsewhere': absolute_shard,
    'many shards': lambda case: named_shard([f'{i}.h5' for i in range(10_000)])(case),
    'shards exchanged': shards_exchanged,
}
