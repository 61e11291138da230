"""Reads the tensors of any file that `torch.save` wrote, and runs no code in it. Our own, because torch's
`weights_only=True` refuses every class that it does not know, and pickled modules are full of them.

Python's unpickler builds the objects. Each class that a pickle names becomes an inert stand-in, which keeps what it is
given. Only the functions by which torch rebuilds tensors are known; ours describe the tensor instead. Each pickle is
checked for excessive demands before any of it is built.
"""

import io
import math
import pickle
import pickletools
import re
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import CheckpointError, DamagedCheckpointError

__all__ = ['Inert', 'Saved', 'is_module', 'read_pickle']

MAX_STEPS = 2_000_000  # steps of a pickle; a pickled Xception with its optimizer has about 60,000
MAX_BYTES = 2**26  # bytes of a pickle without its tensors; a pickled Xception has about 200,000
MAX_DEPTH = 200  # levels of containers in containers
MAX_ELEMENTS = 2**30  # elements of a tensor
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # the first object of a file that torch before 1.6 wrote
LEGACY_PROTOCOL = 1001

# torch's name of a storage -> type of its values
DTYPES = {
    'DoubleStorage': torch.float64,
    'FloatStorage': torch.float32,
    'HalfStorage': torch.float16,
    'BFloat16Storage': torch.bfloat16,
    'LongStorage': torch.int64,
    'IntStorage': torch.int32,
    'ShortStorage': torch.int16,
    'CharStorage': torch.int8,
    'ByteStorage': torch.uint8,
    'BoolStorage': torch.bool,
}


class Inert:
    """An object of a class that was not looked up.

    Attributes:
        kind: Full name of the class.
        args: Arguments that the class would have been called with.
        state: State that the object would have been given.
    """

    kind = ''
    args: tuple[Any, ...]
    state: Any

    def __new__(cls, *args: Any, **kwargs: Any) -> 'Inert':
        made = super().__new__(cls)
        made.args, made.state = args, None
        return made

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        """Ignores an item: mappings and sequences of unknown classes stay empty."""

    def append(self, value: Any) -> None:
        """Ignores an item, as `__setitem__` does."""

    extend = append

    def __repr__(self) -> str:
        return f'<{self.kind}>'


class Saved(dict[Any, Any]):
    """A dict, or an OrderedDict with the metadata that `state_dict()` gives it."""

    def __init__(self) -> None:
        super().__init__()
        self.metadata: dict[str, Any] = {}


class Storage(NamedTuple):
    """A block of values in the file: its key, their type and their number."""

    key: str
    dtype: torch.dtype
    length: int


class Strided(NamedTuple):
    """A tensor whose values are still in the file."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


def read_pickle(path: str | Path) -> Any:
    """Reads a file of torch's zip format or of the one before it.

    Returns:
        The object that was saved: dicts, lists, tuples, numbers and texts as they are, tensors on the CPU, each other
        object as `Inert`.

    Raises:
        DamagedCheckpointError: The file is damaged, or asks for more than it can hold.
        CheckpointError: The file is of another format, or its tensors are of a kind that is not read.
    """
    path = Path(path)
    try:
        with open(path, 'rb') as file:
            if zipfile.is_zipfile(file):
                return _read_zip(path)
            return _read_legacy(file, path)
    except CheckpointError:
        raise
    except Exception as e:  # a damaged pickle can make the unpickler raise any error
        reason = ' '.join(f'{type(e).__name__}: {e}'.split())[:300]
        raise DamagedCheckpointError(
            f'{path} is damaged, or was not written by torch.save; nothing in it was run ({reason}).'
        ) from e


def is_module(value: Any) -> bool:
    return isinstance(value, Inert) and isinstance(value.state, dict) and '_modules' in value.state


def _read_zip(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        names = {info.filename.partition('/')[2]: info for info in archive.infolist()}
        if 'constants.pkl' in names or any(name.startswith('code/') for name in names):
            raise CheckpointError(
                f'{path} is a TorchScript archive, whose program this project does not run. In a process that trusts '
                f"it: torch.save(torch.jit.load({str(path)!r}).state_dict(), 'weights.pth'), then load weights.pth."
            )
        if 'data.pkl' not in names:
            raise CheckpointError(f'{path} is a zip archive, but no file of torch.save: it has no data.pkl.')
        if any(info.compress_type != zipfile.ZIP_STORED for info in names.values()):
            raise CheckpointError(f'{path} is compressed, which torch.save never does.')
        order = archive.read(names['byteorder']) if 'byteorder' in names else b'little'

        def load(storage: Storage) -> Tensor:
            content = archive.read(names[f'data/{storage.key}'])
            return _values(content, storage, order.decode().strip() != sys.byteorder)

        return _built(_unpickled(archive.read(names['data.pkl'])), load)


def _read_legacy(file: Any, path: Path) -> Any:
    file.seek(0)
    content = file.read(512)
    file.seek(0)
    if not re.match(rb'(\x80.)?\x8a\x0a', content, re.DOTALL):  # the magic number, as a long of ten bytes
        raise _foreign(content, path)
    magic, protocol, _, saved, keys = (_unpickled(file) for _ in range(5))
    if magic != LEGACY_MAGIC or protocol != LEGACY_PROTOCOL:
        raise CheckpointError(f'{path} is not a file of torch.save: it begins with {magic!r:.40}.')
    storages = {storage.key: storage for storage in _storages(saved)}
    places: dict[str, int] = {}
    for key in keys:
        count, place = int.from_bytes(file.read(8), 'little'), file.tell()
        storage = storages.get(str(key))
        if storage is None or count != storage.length:
            raise DamagedCheckpointError(f'{path}: the storage {key!r:.40} is not the one that its tensors need.')
        places[str(key)] = place
        file.seek(count * storage.dtype.itemsize, io.SEEK_CUR)

    def load(storage: Storage) -> Tensor:
        file.seek(places[storage.key])
        return _values(file.read(storage.length * storage.dtype.itemsize), storage, sys.byteorder != 'little')

    return _built(saved, load)


def _foreign(content: bytes, path: Path) -> CheckpointError:
    """The error for a file that torch.save did not write. It says what the file is."""
    if content[257:262] == b'ustar':
        return CheckpointError(f'{path} is a tar archive. Unpack it, and name the checkpoint in it.')
    if content[:2] == b'\x1f\x8b':
        return CheckpointError(f'{path} is compressed by gzip. Unpack it (gunzip), and name what comes out.')
    if content[:1] == b'\x80':
        return CheckpointError(
            f'{path} is a pickle, but none that torch.save wrote. In a process that trusts it: torch.save(pickle.load('
            f"open({str(path)!r}, 'rb')), 'weights.pth'), then load weights.pth."
        )
    what = 'empty' if not content else 'truncated' if content[:2] == b'PK' else 'damaged, or no checkpoint at all'
    return DamagedCheckpointError(f'{path} is {what}: it is neither a file of torch.save nor a safetensors file.')


def _values(content: bytes, storage: Storage, swapped: bool) -> Tensor:
    """The values of a storage, [count]."""
    size = storage.dtype.itemsize
    if len(content) != storage.length * size:
        raise ValueError(f'the storage {storage.key!r} has {len(content)} bytes instead of {storage.length * size}')
    buffer = bytearray(content)
    if swapped:
        for i in range(size // 2):
            buffer[i::size], buffer[size - 1 - i :: size] = buffer[size - 1 - i :: size], buffer[i::size]
    return torch.frombuffer(buffer, dtype=storage.dtype) if buffer else torch.empty(0, dtype=storage.dtype)


class _Unpickler(pickle.Unpickler):
    """Builds what a pickle describes from stand-ins of its own: no pickle can change those of another."""

    def __init__(self, file: Any) -> None:
        super().__init__(file, encoding='latin1')
        self.kinds: dict[str, Any] = {}

    def find_class(self, module: str, name: str) -> Any:
        kind = f'{module}.{name}'
        if kind not in self.kinds:
            self.kinds[kind] = _stand_in(module, name)
        return self.kinds[kind]

    def persistent_load(self, pid: Any) -> Any:
        if isinstance(pid, tuple) and pid and pid[0] == 'module':  # in old files: a class and its source text
            return pid[1]
        if not (isinstance(pid, tuple) and len(pid) >= 5 and pid[0] == 'storage'):
            raise ValueError(f'a reference of an unknown kind: {pid!r:.80}')
        _, storage_type, key, _, count = pid[:5]
        dtype = storage_type if isinstance(storage_type, torch.dtype) else None
        if dtype is None or not isinstance(count, int) or count < 0:
            raise ValueError(f'a storage of an unknown type: {pid!r:.80}')
        if len(pid) > 5 and pid[5] is not None:
            raise ValueError('a view of a storage, as only torch before 0.4 saved them')
        return Storage(str(key), dtype, count)


def _stand_in(module: str, name: str) -> Any:
    """The stand-in for a class or function: tensors are described, containers are built, all else is inert."""
    if module in ('torch', 'torch.storage') and name in DTYPES:
        return DTYPES[name]
    if module == 'torch' and isinstance(dtype := getattr(torch, name, None), torch.dtype):
        return dtype
    if (module, name) == ('collections', 'OrderedDict'):
        return type('OrderedDict', (dict,), {})
    if (module, name) in (('torch', 'Size'), ('builtins', 'tuple'), ('__builtin__', 'tuple')):
        return lambda items=(): tuple(items)
    if (module, name) in (('builtins', 'set'), ('__builtin__', 'set')):
        return lambda items=(): list(items)
    rebuild = _REBUILDERS.get(name) if module == 'torch._utils' else None
    if rebuild is not None:
        return lambda *args: rebuild(*args)
    return type(name, (Inert,), {'kind': f'{module}.{name}'})


def _strided(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Strided:
    numbers = [offset, *size, *stride]
    if not isinstance(storage, Storage) or len(size) != len(stride) or not all(type(n) is int for n in numbers):
        raise ValueError('a tensor of an unknown kind')
    if min(numbers) < 0 or math.prod(size) > MAX_ELEMENTS:
        raise ValueError(f'a tensor of size {list(size)} and stride {list(stride)}')
    last = offset + sum((n - 1) * step for n, step in zip(size, stride))
    if math.prod(size) and last >= storage.length:
        raise ValueError(f'a tensor that reaches beyond its storage, to {last} of {storage.length}')
    if math.prod(size) > storage.length:
        raise ValueError(f'a tensor of {math.prod(size)} values in a storage of {storage.length}')
    return Strided(storage, offset, tuple(size), tuple(stride))


_REBUILDERS: dict[str, Callable[..., Any]] = {
    '_rebuild_tensor': _strided,
    '_rebuild_tensor_v2': _strided,
    '_rebuild_parameter': lambda data, *_: data,
    '_rebuild_parameter_with_state': lambda data, *_: data,
}


def _unpickled(source: Any) -> Any:
    """The next object of a file, or the object in bytes. Its steps are checked first."""
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    start = file.tell()
    _check_steps(_Bounded(file))
    end = file.tell()
    file.seek(start)
    return _Unpickler(io.BytesIO(file.read(end - start))).load()


def _check_steps(file: Any) -> None:
    """Raises a ValueError for a pickle that Python's unpickler may not survive. Builds nothing.

    The unpickler makes a list as long as the largest number of a remembered object. A deeply nested tuple overflows
    the stack of the C library when it becomes a key. So this function follows both: the numbers, and the depth of each
    tuple on the unpickler's stack.
    """
    stack: list[int | None] = []  # depth of each object; None is a mark
    memo: dict[Any, int] = {}
    for steps, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        if steps > MAX_STEPS:
            raise ValueError(f'a pickle of more than {MAX_STEPS} steps')
        name = opcode.name
        if name in ('PUT', 'BINPUT', 'LONG_BINPUT', 'MEMOIZE'):
            number: int = len(memo) if name == 'MEMOIZE' else int(argument)  # type: ignore[arg-type]
            if number > steps:
                raise ValueError(f'a pickle that remembers object {number} after {steps} steps')
            memo[number] = stack[-1] or 0
            continue
        if name in ('GET', 'BINGET', 'LONG_BINGET'):
            stack.append(memo[argument])
            continue
        if name == 'MARK':
            stack.append(None)
            continue
        popped: list[int] = []
        if pickletools.markobject in opcode.stack_before:
            while (depth := stack.pop()) is not None:
                popped.append(depth)
            before = opcode.stack_before.index(pickletools.markobject)
        else:
            before = len(opcode.stack_before)
        popped += [stack.pop() or 0 for _ in range(before)]
        deepest = max(popped, default=0)
        if deepest > MAX_DEPTH:
            raise ValueError(f'a pickle of tuples nested more than {MAX_DEPTH} deep')
        if name.startswith('TUPLE') or name == 'FROZENSET':
            stack.append(deepest + 1)
        elif name == 'DUP':
            stack += [deepest, deepest]
        else:
            stack += [0] * len(opcode.stack_after)


class _Bounded:
    """A file that gives at most `MAX_BYTES` bytes for one object, whatever length the object claims."""

    def __init__(self, file: Any) -> None:
        self.file, self.left = file, MAX_BYTES

    def tell(self) -> int:
        return self.file.tell()

    def read(self, size: int = -1) -> bytes:
        if size < 0 or size > self.left:
            raise ValueError(f'a pickle longer than {MAX_BYTES} bytes')
        self.left -= size
        return self.file.read(size)

    def readline(self) -> bytes:
        line = self.file.readline(self.left + 1)
        self.left -= len(line)
        if self.left < 0:
            raise ValueError(f'a pickle longer than {MAX_BYTES} bytes')
        return line


def _walk(value: Any) -> Iterator[Any]:
    """Every object in an object, each once."""
    stack, seen = [value], set()
    while stack:
        value = stack.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        yield value
        if isinstance(value, dict):
            stack += value.values()
        elif isinstance(value, (list, tuple)) and not isinstance(value, (Strided, Storage)):
            stack += value
        elif isinstance(value, Inert):
            stack.append(value.state)


def _storages(saved: Any) -> list[Storage]:
    return [value.storage for value in _walk(saved) if isinstance(value, Strided)]


def _built(saved: Any, load: Callable[[Storage], Tensor]) -> Any:
    """The saved object with its tensors. Tensors that shared memory when they were saved share it again."""
    loaded: dict[str, Tensor] = {}
    made: dict[int, Any] = {}

    def build(value: Any, depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise ValueError(f'objects nested more than {MAX_DEPTH} deep')
        if id(value) in made:
            return made[id(value)]
        if isinstance(value, Strided):
            key = value.storage.key
            if key not in loaded:
                loaded[key] = load(value.storage)
            result: Any = torch.as_strided(loaded[key], value.size, value.stride, value.offset)
        elif isinstance(value, dict):
            result = made[id(value)] = Saved()
            metadata = getattr(value, '_metadata', None)
            if isinstance(metadata, dict):
                result.metadata = metadata
            result.update({key: build(item, depth + 1) for key, item in value.items()})
        elif isinstance(value, list):
            result = made[id(value)] = []
            result += [build(item, depth + 1) for item in value]
        elif isinstance(value, tuple) and not isinstance(value, Storage):
            result = tuple(build(item, depth + 1) for item in value)
        elif isinstance(value, Inert):
            made[id(value)] = result = value
            value.state = build(value.state, depth + 1)
        else:
            result = value
        made[id(value)] = result
        return result

    return build(saved, 0)
