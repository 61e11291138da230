"""Pickles that people hold are read without their classes; hostile ones run nothing, hang nothing and crash nothing."""

import io
import os
import pickle
import pickletools
import struct
import tarfile
import time
import zipfile
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from patience import patience
from torch import nn
from torch.serialization import MAGIC_NUMBER

from xception_hub.errors import CheckpointError, DamagedCheckpointError
from xception_hub.weights.checkpoint_files import read_checkpoint
from xception_hub.weights.lineages import recognise
from xception_hub.weights.pickles import Inert, is_module, read_pickle

FORMATS = {'zip': True, 'before torch 1.6': False}


class Wrapped(nn.Module):
    """A module of a class that its reader does not have."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4))
        self.model.last_linear = nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 2))
        self.register_buffer('mean', torch.zeros(3))
        self.note = {'size': (299, 299), 'names': ['real', 'fake']}


def save(value: Any, path: Path, zipped: bool) -> Path:
    torch.save(value, path, _use_new_zipfile_serialization=zipped)
    return path


@pytest.mark.parametrize('zipped', FORMATS.values(), ids=FORMATS)
def test_module(zipped: bool, tmp_path: Path) -> None:
    module = Wrapped()
    read = read_pickle(save(module, tmp_path / 'full.p', zipped))
    assert isinstance(read, Inert) and is_module(read) and read.kind.endswith('Wrapped')
    assert not hasattr(read, 'forward')
    tensors = read_checkpoint(tmp_path / 'full.p').tensors
    expected = module.state_dict()
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)
    assert read.state['note'] == module.note


@pytest.mark.parametrize('zipped', FORMATS.values(), ids=FORMATS)
def test_tensors_of_every_kind(zipped: bool, tmp_path: Path) -> None:
    """Types, strides, offsets, empty ones, parameters, and two views of one storage."""
    base = torch.arange(24.0).reshape(4, 6)
    saved = OrderedDict(
        half=base.half(), bf16=base.bfloat16(), double=base.double(), long=base.long(), flag=base > 5,
        transposed=base.t(), part=base[1:3, 2:], row=base[3], empty=torch.empty(0, 3), number=torch.tensor(7),
        parameter=nn.Parameter(base.clone()), size=base.shape, scalar=3, text='é', nothing=None,
    )  # fmt: skip
    read = read_pickle(save(saved, tmp_path / 'model.pth', zipped))
    assert list(read) == list(saved)
    for name, value in saved.items():
        if isinstance(value, torch.Tensor):
            assert read[name].dtype == value.dtype and torch.equal(read[name], value.detach()), name
        else:
            assert read[name] == value
    assert read['row'].data_ptr() == read['transposed'].data_ptr() + 18 * 4


class Runs:
    """What a pickle runs where it is loaded as pickle does."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> Any:
        return self.call


def test_nothing_runs(tmp_path: Path) -> None:
    mark = tmp_path / 'ran'
    hostile = {
        'os.system': Runs(os.system, f'touch {mark}'),
        'eval': Runs(eval, f'open({str(mark)!r}, "w")'),
        'open': Runs(open, str(mark), 'w'),
        'torch.load': Runs(torch.load, str(tmp_path / 'other')),
    }
    for name, value in hostile.items():
        for zipped in FORMATS.values():
            read = read_pickle(save(dict(value=value), tmp_path / 'model.pth', zipped))
            assert isinstance(read['value'], Inert), name
    assert not mark.exists()


def packed(content: bytes, path: Path, zipped: bool = True, keys: Any = ('0',)) -> Path:
    """A file of one of torch's formats with a pickle of one's own, and one storage of 64 bytes."""
    if zipped:
        with zipfile.ZipFile(path, 'w') as archive:
            for name, part in {'data.pkl': content, 'version': b'3\n', 'data/0': b'\0' * 64}.items():
                archive.writestr(f'archive/{name}', part)
        return path
    parts = [pickle.dumps(part, 2) for part in (MAGIC_NUMBER, 1001, dict(little_endian=True))]
    parts += [content, keys if isinstance(keys, bytes) else pickle.dumps([*keys], 2)]
    path.write_bytes(b''.join([*parts, struct.pack('<q', 16), b'\0' * 64]))
    return path


BOMBS = {
    'a number of an object that fills the memory': b'\x80\x02Nr' + struct.pack('<I', 2**32 - 1) + b'.',
    'a text of 4 GB': b'\x80\x04\x8d' + struct.pack('<Q', 2**32) + b'x.',
    'bytes of an exabyte': b'\x80\x04\x8e' + struct.pack('<Q', 2**60) + b'x.',
    'a number of a billion digits': b'\x80\x02\x8b' + struct.pack('<i', 2**30) + b'x.',
    'tuples in tuples as a key': b'\x80\x02}(' + b')' + b'\x85' * 200_000 + b'K\1u.',
    'lists in lists': b'\x80\x02' + b']' * 100_000 + b'a' * 99_999 + b'.',
    'steps without end': b'\x80\x02' + b'N0' * 3_000_000 + b'N.',
    'a frame of an exabyte': b'\x80\x04\x95' + struct.pack('<Q', 2**60) + b'N.',
    'an empty stack': b'\x80\x02000.',
    'no end': b'\x80\x02N',
    'an extension': b'\x80\x02\x82\x01.',
}  # fmt: skip


def tensor_pickle(count: int, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *view: Any) -> bytes:
    """One tensor in a storage of `count` floats; the old format has a view too."""
    storage = object()

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: Any) -> Any:
            return ('storage', torch.FloatStorage, '0', 'cpu', count, *view) if value is storage else None

    class Rebuilt:
        def __reduce__(self) -> Any:
            return torch._utils._rebuild_tensor_v2, (storage, offset, size, stride, False, OrderedDict())

    out = io.BytesIO()
    Pickler(out, 2).dump(Rebuilt())
    return out.getvalue()


TENSORS = {
    'beyond its storage': (16, 15, (2,), (1,)),
    'before its storage': (16, -1, (2,), (1,)),
    'one value repeated': (16, 0, (2**20, 2**20), (0, 0)),
    'negative sizes': (16, 0, (-1, -1), (1, 1)),
    'a negative stride': (16, 4, (4,), (-1,)),
    'a stride without end': (16, 0, (2,), (2**62,)),
    'more values than numbers': (16, 0, (2**62, 4), (1, 1)),
    'more than the file has': (2**40, 0, (2**40,), (1,)),
    'a storage of another length': (15, 0, (15,), (1,)),
}


def nested(levels: int) -> bytes:
    """A tuple of twice a tuple of twice a tuple: small in memory, and 2**levels to whom it looks at all of it."""
    return b')' + b'2\x86' * levels


BOMBS |= {
    'a key that takes all time': b'\x80\x02}' + nested(60) + b'Ns.',
    'a set of what takes all time': b'\x80\x04\x8f(' + nested(60) + b'\x90.',
    'a dict of it, in the oldest way': b'\x80\x02(' + nested(60) + b'Nd.',
    'an OrderedDict of it': b'\x80\x02ccollections\nOrderedDict\n]' + nested(60) + b'N\x86a\x85R.',
    'a storage named so': b'\x80\x02(' + nested(60) + b'NNNNtQ.',
    'the key of a storage': b'\x80\x02(U\x07storagectorch\nFloatStorage\n' + nested(60) + b'U\x03cpuK\x10NtQ.',
    'an array of 64 GB': b'\x80\x05\x96' + struct.pack('<Q', 2**36) + b'x.',
    'a million classes': b'\x80\x02' + b''.join(b'ca\n%d\n0' % i for i in range(700_000)) + b'N.',
    'modules in modules': b'\x80\x02' + b'ca\nb\n)\x81}U\x08_modules}U\1m' * 20_000 + b'N' + b'ssb' * 20_000 + b'.',
}  # fmt: skip


@pytest.mark.parametrize('zipped', FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize('kind', [*BOMBS, *TENSORS])
def test_bombs(kind: str, zipped: bool, tmp_path: Path) -> None:
    """No tensor comes out, soon, and in the memory that there is."""
    view = [] if zipped else [None]
    content = BOMBS[kind] if kind in BOMBS else tensor_pickle(*TENSORS[kind], *view)
    path, start = packed(content, tmp_path / 'model.pth', zipped, '0' if kind in TENSORS else ''), time.perf_counter()
    with pytest.raises(CheckpointError, match=str(path)):
        recognise(read_checkpoint(path).tensors, str(path))
    assert time.perf_counter() - start < patience(10)
    fine = tensor_pickle(16, 3, (2, 2), (4, 1), *view)
    assert torch.equal(read_pickle(packed(fine, path, zipped)), torch.zeros(2, 2))


STOLEN = {
    'a function of torch': b"ctorch._utils\n_rebuild_tensor_v2\n(N}U\x0c__defaults__)su" + b'tb.',
    'a class': b'ccollections\nOrderedDict\n}U\x06updateNsb.',
    'a type': b'ctorch\nfloat32\n}U\1aNsb.',
    'a class of storages': b'ctorch.storage\nUntypedStorage\n(N}U\3newNstb.',
    'a list': b'](N}U\1aNstb.',
}  # fmt: skip


@pytest.mark.parametrize('kind', STOLEN)
def test_nothing_is_changed(kind: str, tmp_path: Path) -> None:
    """No pickle gives a state to what is not its own."""
    before = vars(torch.UntypedStorage).keys(), torch._utils._rebuild_tensor_v2.__defaults__
    with pytest.raises(CheckpointError):
        read_pickle(packed(b'\x80\x02' + STOLEN[kind], tmp_path / 'model.pth'))
    assert before == (vars(torch.UntypedStorage).keys(), torch._utils._rebuild_tensor_v2.__defaults__)


def test_large_storages_of_nothing_are_not_called(tmp_path: Path) -> None:
    content = b'\x80\x02ctorch.storage\nUntypedStorage\n\x8a\x05\0\0\0\0\x10\x85R.'
    assert isinstance(read_pickle(packed(content, tmp_path / 'model.pth')), Inert)


@pytest.mark.parametrize('keys', [(), ('0', '0'), ('1',), (0,), {'0': 1}, [[]]], ids=str)
def test_storages_that_an_old_file_leaves_out(keys: Any, tmp_path: Path) -> None:
    """torch would give them whatever is in the memory."""
    content = tensor_pickle(16, 0, (16,), (1,), None)
    with pytest.raises(CheckpointError):
        read_pickle(packed(content, tmp_path / 'model.pth', False, pickle.dumps(keys, 2)))


def test_archives_in_disguise(tmp_path: Path) -> None:
    """A file that is a tar archive too is not unpacked, and a program behind another archive is not compiled."""
    parts = b''.join(pickle.dumps(part, 2) for part in (MAGIC_NUMBER, 1001, {}, {'weight': 1}, []))
    header = bytearray(tarfile.TarInfo('x').tobuf())
    header[:100] = parts.ljust(100, b'\0')
    header[148:156] = b'%06o\0 ' % tarfile.calc_chksums(bytes(header))[0]
    path = tmp_path / 'model.pth'
    path.write_bytes(bytes(header).ljust(10240, b'\0'))
    assert tarfile.is_tarfile(path)
    assert read_pickle(path) == {'weight': 1}
    torch.jit.script(nn.Linear(2, 3)).save(str(path))
    visible = packed(pickle.dumps({'weight': 1}, 2), tmp_path / 'visible.pth').read_bytes()
    path.write_bytes(path.read_bytes() + visible)
    with pytest.raises(CheckpointError):
        read_pickle(path)


def test_parts_that_lie_over_each_other(tmp_path: Path) -> None:
    """A directory that names the same bytes many times would have them read as often."""
    path = packed(pickle.dumps({}, 2), tmp_path / 'model.pth')
    with zipfile.ZipFile(path, 'a') as archive:
        archive.writestr('archive/data/1', bytes(100_000))
        archive.filelist += [archive.getinfo('archive/data/1')] * 100
    with pytest.raises(CheckpointError, match='over each other'):
        read_pickle(path)


@pytest.mark.parametrize('value', ['1', 'true'])
def test_forced_weights_only(value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch then takes no unpickler; the error names the variable, and both ways out work."""
    path = save(dict(weight=torch.ones(2)), tmp_path / 'model.pth', True)
    monkeypatch.setenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', value)
    with pytest.raises(CheckpointError, match='TORCH_FORCE_WEIGHTS_ONLY_LOAD') as error:
        read_pickle(path)
    assert not isinstance(error.value, DamagedCheckpointError)
    safetensors.torch.save_file(torch.load(path), tmp_path / 'weights.safetensors')
    assert read_checkpoint(tmp_path / 'weights.safetensors').tensors.keys() == {'weight'}
    monkeypatch.delenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD')
    assert read_pickle(path).keys() == {'weight'}


@pytest.mark.parametrize('count', [300, pytest.param(3_400, marks=pytest.mark.slow)])
@pytest.mark.parametrize('kind', [*FORMATS, 'safetensors'])
def test_damaged_anywhere(kind: str, count: int, tmp_path: Path) -> None:
    """Bytes changed, cut and put in at random: an error of ours, or tensors; nothing runs, and nothing hangs.

    What the zip format reads is what was saved: it has checksums. The others have none for the values.
    """
    path, mark = tmp_path / 'model.bin', tmp_path / 'ran'
    state, calls = Wrapped().state_dict(), [Runs(os.system, f'touch {mark}'), Runs(eval, f'open({str(mark)!r}, "w")')]
    if kind == 'safetensors':
        safetensors.torch.save_file(state, path)
    else:
        save(dict(state_dict=state, calls=calls, module=Wrapped(), epoch=3), path, FORMATS[kind])
    content, generator = path.read_bytes(), np.random.default_rng(count)
    whole = read_checkpoint(path).tensors
    opcodes = [ord(opcode.code) for opcode in pickletools.opcodes]
    places = len(content) if kind != 'safetensors' else 8 + int.from_bytes(content[:8], 'little')
    read, slowest = 0, 0.0
    for _ in range(count):
        damaged = bytearray(content)
        for place in generator.integers(0, places, generator.integers(1, 4)):
            damaged[place] = generator.choice(opcodes)
        if generator.random() < 0.2:
            del damaged[generator.integers(0, len(content)) :]
        path.write_bytes(damaged)
        start = time.perf_counter()
        with suppress(CheckpointError):
            tensors = read_checkpoint(path).tensors
            read += 1
            if kind == 'zip':
                assert tensors.keys() == whole.keys()
                assert all(torch.equal(tensor, whole[name]) for name, tensor in tensors.items())
        slowest = max(slowest, time.perf_counter() - start)
    assert read < count
    assert slowest < patience(5)
    assert not mark.exists()
