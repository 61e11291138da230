"""Reads any file that `torch.save` wrote by `torch.load`, and runs no code in it.

`torch.load` takes the unpickler of this module: Python's own, in the version that is written in Python, which no pickle
can make reserve memory. Each class that a pickle names becomes an inert stand-in, which keeps what it is given. The
functions by which torch rebuilds plain tensors are known. `weights_only=True` would refuse all other classes, and
pickled modules are full of them.
"""

import io
import os
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import CheckpointError, DamagedCheckpointError

__all__ = ['Inert', 'Saved', 'array_of', 'is_module', 'read_pickle']

MAX_STEPS = 2_000_000  # steps of a pickle, each of which can make a list; an Xception with its optimizer has 60,000
MAX_CLASSES = 10_000  # a pickled Xception names about 30
MAX_REPEATED = 2**20  # values of a tensor that repeats those of a smaller storage
FORCED = 'TORCH_FORCE_WEIGHTS_ONLY_LOAD'


class Inert:
    """An object of a class that was not looked up.

    Attributes:
        kind: Full name of the class.
        args: Arguments that the class would have been called with.
        state: State that the object would have been given.
    """

    kind = ''
    args: tuple[Any, ...]
    state: Any = None

    def __new__(cls, *args: Any, **kwargs: Any) -> 'Inert':
        made = super().__new__(cls)
        made.args = args
        return made

    def append(self, value: Any) -> None:
        """Ignores an item: sequences of unknown classes stay empty."""

    extend = append

    def __setitem__(self, key: Any, value: Any) -> None:
        """Ignores an item: mappings of unknown classes stay empty."""

    def __repr__(self) -> str:
        return f'<{self.kind}>'


class Saved(dict[Any, Any]):
    """An OrderedDict. Its state holds the metadata that `state_dict()` gives it."""

    state: Any = None

    @property
    def metadata(self) -> dict[str, Any]:
        found = self.state.get('_metadata') if isinstance(self.state, dict) else None
        return found if isinstance(found, dict) else {}


class Tuple(tuple[Any, ...]):
    """A tuple whose hash ignores its parts: that of nested tuples can take the stack and all time."""

    __hash__ = object.__hash__


def is_module(value: Any) -> bool:
    return isinstance(value, Inert) and isinstance(value.state, dict) and '_modules' in value.state


def array_of(value: Inert) -> Tensor | None:
    """The values of numpy's array of numbers, in its shape; None for any other object."""
    if not value.kind.endswith('multiarray._reconstruct') or not isinstance(value.state, tuple):
        return None
    _, shape, dtype, is_fortran, content = value.state
    code, order = dtype.args[0], dtype.state[1]
    if not re.fullmatch('[fiu][1248]|b1', code) or order not in '<>|':
        return None
    array = np.frombuffer(content, f'{order}{code}').reshape(shape, order='F' if is_fortran else 'C')
    return torch.from_numpy(array.astype(array.dtype.newbyteorder('=')))


def read_pickle(path: str | Path) -> Any:
    """Reads a file of torch's zip format or of the one before it.

    Returns:
        The object that was saved: containers, numbers and texts as they are, tensors on the CPU, each other object as
        `Inert`.

    Raises:
        DamagedCheckpointError: The file is damaged, or asks for more than it can hold.
        CheckpointError: The file is of another format, or torch may not read it.
    """
    path = Path(path)
    try:
        with io.BufferedReader(_File(path)) as file:
            module: Any = _pickle_module(_sizes(file, path))
            if os.environ.get(FORCED, '0').lower() in ('1', 'y', 'yes', 'true'):
                raise CheckpointError(
                    f'{path} cannot be read while {FORCED} is set. Unset it, or write the tensors as safetensors: '
                    f"safetensors.torch.save_file(torch.load({str(path)!r}), 'weights.safetensors')."
                )
            file.seek(0)
            return torch.load(
                file, map_location='cpu', pickle_module=module, weights_only=False, mmap=False, encoding='latin1'
            )
    except CheckpointError:
        raise
    except Exception as e:  # a damaged pickle can make the unpickler raise any error
        reason = ' '.join(f'{type(e).__name__}: {e}'.split())[:300]
        raise DamagedCheckpointError(
            f'{path} is damaged, or was not written by torch.save; nothing in it was run ({reason}).'
        ) from e


class _File(io.FileIO):
    """A file without a descriptor. torch unpacks tar archives from files that have one."""

    def fileno(self) -> int:
        raise io.UnsupportedOperation


def _sizes(file: Any, path: Path) -> dict[str, int] | None:
    """Makes the checks that torch leaves out. Returns the bytes of each part of a zip archive."""
    start = file.read(12)
    if re.match(rb'(\x80.)?\x8a\x0a', start, re.DOTALL):  # the magic number, as a long of ten bytes
        return None  # torch compares the sizes
    if start[:2] == b'PK' and not zipfile.is_zipfile(file):
        raise DamagedCheckpointError(f'{path} is truncated: a zip archive that lacks its end.')
    if start[:2] != b'PK':
        raise ValueError('neither a whole file of torch.save nor a safetensors file')
    with zipfile.ZipFile(file) as archive:
        names = {info.filename.partition('/')[2]: info for info in archive.infolist()}
        file.seek(0)
        records = torch._C.PyTorchFileReader(file).get_all_records() if 'version' in names else []
        if 'constants.pkl' in {*names, *records} or any(name.startswith('code/') for name in names):
            raise CheckpointError(f'{path} holds a program of TorchScript, which is not run.')  # behind another archive
        if 'data.pkl' not in names or any(info.compress_type != zipfile.ZIP_STORED for info in names.values()):
            raise CheckpointError(f'{path} is a zip archive, but none that torch.save wrote.')
        if sum(info.file_size for info in archive.infolist()) > path.stat().st_size:
            raise ValueError('its parts lie over each other')
        if any(info.external_attr & 0x10 for info in names.values()):  # torch reads no values of such
            raise ValueError('one of its parts claims to be a folder')
        if damaged := archive.testzip():
            raise ValueError(f'the checksum of {damaged} is another')
    return {name: info.file_size for name, info in names.items()}


class _Steps(dict[int, Callable[..., None]]):
    """The table of an unpickler's steps, which counts them."""

    left = MAX_STEPS

    def __getitem__(self, code: int) -> Callable[..., None]:
        self.left -= 1
        if self.left < 0:
            raise ValueError(f'a pickle of more than {MAX_STEPS} steps')
        return super().__getitem__(code)


_Python: Any = pickle._Unpickler  # typeshed leaves most of it out


class _Unpickler(_Python):
    """Python's unpickler, with stand-ins of its own: no pickle can change those of another."""

    sizes: dict[str, int] | None
    keys: set[str]

    def __init__(self, file: Any, **options: Any) -> None:
        super().__init__(file, **options)
        self.dispatch = _Steps(_STEPS)
        self.kinds: dict[tuple[str, str], Any] = {}

    def find_class(self, module: str, name: str) -> Any:
        if len(self.kinds) > MAX_CLASSES:
            raise ValueError(f'a pickle of more than {MAX_CLASSES} classes')
        if (module, name) not in self.kinds:
            self.kinds[module, name] = _stand_in(module, name)
        return self.kinds[module, name]

    def load_reference(self) -> None:
        """Checks a reference to a storage before torch does. Old files refer to classes too, with their source."""
        reference = self.stack.pop()
        if reference[0] == 'module':
            self.append(reference[1])
            return
        kind, storage_type, key, location, count, *view = reference
        if {*map(type, (kind, key, location))} != {str} or type(count) is not int or view not in ([], [None]):
            raise ValueError('a reference of an unknown kind')
        if getattr(storage_type, 'kind', '') == 'torch.storage.UntypedStorage':
            storage_type, size = torch.UntypedStorage, count
        else:
            size = count * storage_type.dtype.itemsize
        if size < 0 or (self.sizes is not None and size != self.sizes[f'data/{key}']):
            raise ValueError(f'a storage of another size than {size} bytes')
        self.keys.add(key)
        self.append(self.persistent_load((kind, storage_type, key, location, count, *view)))

    def load_build(self) -> None:
        state, made = self.stack.pop(), self.stack[-1]
        if not isinstance(made, (Inert, Saved)):
            raise ValueError('a state of an object that has none')
        made.state = state


def _with_tuple(code: int) -> Callable[[Any], None]:
    def step(unpickler: Any) -> None:
        _Python.dispatch[code](unpickler)
        unpickler.stack[-1] = Tuple(unpickler.stack[-1])

    return step


_UNUSED = (pickle.LONG4, pickle.EXT1, pickle.EXT2, pickle.EXT4)  # huge integers, and classes by number
_STEPS: dict[int, Any] = {
    **{code: step for code, step in _Python.dispatch.items() if bytes([code]) not in _UNUSED},
    pickle.BINPERSID[0]: _Unpickler.load_reference,
    pickle.BUILD[0]: _Unpickler.load_build,
    **{code: _with_tuple(code) for code in (*pickle.TUPLE, *pickle.TUPLE1, *pickle.TUPLE2, *pickle.TUPLE3)},
    pickle.BYTEARRAY8[0]: _Python.load_binbytes8,  # Python makes an array before it reads it
}


def _pickle_module(sizes: dict[str, int] | None) -> SimpleNamespace:
    """What torch takes as `pickle_module`, for one file."""
    keys: set[str] = set()
    unpickler = type('Unpickler', (_Unpickler,), dict(sizes=sizes, keys=keys))

    def load(file: Any, **options: Any) -> Any:
        """Reads the parts of an old file around its object: two numbers, a dict, and last the keys of all storages."""
        part = unpickler(file, **options).load()
        if isinstance(part, (int, dict)) and not keys:
            return part
        if type(part) is not list or {*map(type, part)} - {str} or sorted(part) != sorted(keys):
            raise ValueError('other storages than those that its tensors need')
        return part

    return SimpleNamespace(__name__='pickle', Unpickler=unpickler, load=load)


def _stand_in(module: str, name: str) -> Any:
    """The stand-in for a class or function: plain tensors and containers are built, all else is inert."""
    function = _FUNCTIONS.get(kind := f'{module}.{name}')
    if function:
        return lambda *args: function(*args)
    if module == 'torch' and isinstance(dtype := getattr(torch, name, None), torch.dtype):
        return dtype
    return type(name, (Saved,) if kind == 'collections.OrderedDict' else (Inert,), {'kind': kind})


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, dtype: Any = None, metadata: Any = None) -> Tensor:
    """The tensor [*size] in a storage."""
    values = storage._untyped_storage
    tensor = torch.empty(0, dtype=dtype or storage.dtype).set_(values, offset, size, stride)
    if tensor.numel() > MAX_REPEATED and tensor.nbytes > values.nbytes():
        raise ValueError(f'a tensor of {tensor.numel()} values in a storage of {values.nbytes()} bytes')
    if metadata:  # whether the values are conjugated or negated
        torch._utils.set_tensor_metadata(tensor, metadata)
    return tensor


# Functions that pickles may call. None of them calls what a pickle gives, but for another one of them.
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    'torch._utils._rebuild_tensor': _tensor,
    'torch._utils._rebuild_tensor_v2': lambda *args: _tensor(*args[:4], *[None, *args[6:]]),
    'torch._utils._rebuild_tensor_v3': lambda *args: _tensor(*args[:4], *args[6:]),
    'torch._utils._rebuild_parameter': lambda data, *_: data,
    'torch._utils._rebuild_parameter_with_state': lambda data, *_: data,
    'torch._tensor._rebuild_from_type_v2': lambda function, kind, args, state: function(*args),
    'torch.Size': Tuple,
    '_codecs.encode': lambda text, *_: text.encode('latin1'),  # bytes, in protocol 2
    **{f'{module}.set': set for module in ('builtins', '__builtin__')},
    **{f'{module}.tuple': Tuple for module in ('builtins', '__builtin__')},
}
