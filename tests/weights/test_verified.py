"""What is remembered of genuine files never makes another file genuine, and saves the hashing of an unchanged one."""

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from xception_hub.errors import CheckpointError
from xception_hub.weights import files, fingerprints, verified
from xception_hub.weights.files import read_checkpoint
from xception_hub.weights.fingerprints import Verification, genuine
from xception_hub.weights.verified import compare_once


@pytest.fixture(scope='module')
def original(genuine_state_dict: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp('original') / 'model.safetensors'
    safetensors.torch.save_file(genuine_state_dict, path)
    return path


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one entry for each comparison with the fingerprints."""
    comparisons: list[int] = []

    def compare(tensors: dict[str, Tensor]) -> Verification:
        comparisons.append(len(tensors))
        return fingerprints.compare(tensors)

    monkeypatch.setattr(verified, 'compare', compare)
    return comparisons


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache, in which a file counts as settled at once."""
    monkeypatch.setattr('huggingface_hub.utils._cache_assets.HF_ASSETS_CACHE', str(tmp_path / 'assets'))
    monkeypatch.setattr(files, 'SETTLED', 0)
    yield tmp_path / 'assets' / 'xception_hub' / 'verified' / 'default'
    assert not list(tmp_path.glob('assets/xception_hub/verified/default/tmp*'))


@pytest.fixture
def file(original: Path, tmp_path: Path, cache: Path, hashed: list[int]) -> Path:
    """A genuine file that has been remembered."""
    path = tmp_path / 'model.safetensors'
    shutil.copy(original, path)
    assert verification(path).is_genuine and len(hashed) == 1
    return path


def verification(path: Path) -> Verification:
    read = read_checkpoint(path, mapped=True)
    return compare_once(read, dict(read.tensors))


def test_an_unchanged_file_is_hashed_once(file: Path, hashed: list[int]) -> None:
    link = file.with_name('link.safetensors')
    link.symlink_to(file)
    for path in (file, link):
        assert (found := verification(path)).is_genuine
        assert found.identical == [*genuine()['sha256']]
    assert len(hashed) == 1


def flip(path: Path) -> None:
    """Changes a bit of a tensor in place."""
    with open(path, 'r+b') as file:
        file.seek(-1, os.SEEK_END)
        (last,) = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last ^ 1]))


def keeping_times(path: Path, change: Callable[[Path], Any]) -> None:
    before = path.stat()
    change(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)


def replace(path: Path) -> None:
    """Puts another file of the same size and times in its place."""
    other = path.with_name('other')
    shutil.copy2(path, other)
    keeping_times(other, flip)
    other.replace(path)


def follow_another_link(path: Path) -> None:
    """Lets the path lead to another file."""
    genuine_file = path.rename(path.with_name('genuine'))
    path.symlink_to(genuine_file)
    assert verification(path).is_genuine
    replace(shutil.copy2(genuine_file, path.with_name('changed')))
    path.unlink()
    path.symlink_to(path.with_name('changed'))


CHANGES = {
    'overwritten in place, with its times restored': lambda path: keeping_times(path, flip),
    'replaced by a file with its size and times': replace,
    'a link that moves': follow_another_link,
}


@pytest.mark.parametrize('change', CHANGES)
def test_a_changed_file_is_hashed_again(change: str, file: Path) -> None:
    CHANGES[change](file)
    assert str(verification(file)) == '233 of 234 tensors bit-identical, 1 different'


def test_what_does_not_hold_is_not_remembered(file: Path, hashed: list[int]) -> None:
    flip(file)
    assert [verification(file).is_genuine for _ in range(2)] == [False, False]
    assert len(hashed) == 3


def damage(entry: Path) -> None:
    entry.write_text(f'{entry.read_text()[:-1]}x')


INVALID: dict[str, Callable[[Path, pytest.MonkeyPatch], Any]] = {
    'damaged': lambda entry, patch: damage(entry),
    'empty': lambda entry, patch: entry.write_text(''),
    'a directory': lambda entry, patch: (entry.unlink(), entry.mkdir()),
    'writable for others': lambda entry, patch: entry.chmod(0o666),
    'of another machine': lambda entry, patch: patch.setattr(verified.platform, 'node', lambda: 'another'),
    'of other fingerprints': lambda entry, patch: patch.setattr(verified, '_fingerprints', lambda: 'others'),
}


@pytest.mark.parametrize('kind', INVALID)
def test_entry_that_does_not_count(
    kind: str, file: Path, cache: Path, hashed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    (entry,) = cache.iterdir()
    INVALID[kind](entry, monkeypatch)
    assert verification(file).is_genuine and len(hashed) == 2
    assert verification(file).is_genuine and len(hashed) == (2 if entry.is_file() else 3)


def test_other_names_for_the_same_file(file: Path) -> None:
    """Two tensors of one shape exchanged by whoever reads the file."""
    read = read_checkpoint(file)
    one, other = 'middle_flow.0.stack.bn1.bias', 'middle_flow.1.stack.bn1.bias'
    exchanged = {**read.tensors, one: read.tensors[other], other: read.tensors[one]}
    assert compare_once(read, exchanged).different == [one, other]


@pytest.mark.parametrize('change', [flip, replace])
def test_changed_between_hashing_and_remembering(
    change: Callable[[Path], Any], original: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(shutil.copy(original, tmp_path))

    def compare(tensors: dict[str, Tensor]) -> Verification:
        found = fingerprints.compare(tensors)
        change(path)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(verified, 'compare', compare)
        assert verification(path).is_genuine
    assert not list(cache.iterdir())
    assert not verification(path).is_genuine


def test_a_file_of_this_moment_is_not_remembered(
    original: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A later change could have the same time."""
    monkeypatch.setattr(files, 'SETTLED', 1e12)
    assert verification(Path(shutil.copy(original, tmp_path))).is_genuine
    assert not cache.exists()


def test_many_remember_at_once(cache: Path) -> None:
    """Each of them, and each reader, meets a whole entry."""
    seals = [f'{i:064}' for i in range(8)]
    cache.mkdir(parents=True)
    entry = cache / 'entry'
    verified._remember(entry, seals[0])

    def remember(i: int) -> bool:
        verified._remember(entry, seals[i % 8])
        return entry.read_text() in seals

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(remember, range(400)))
    assert [path.name for path in cache.iterdir()] == [entry.name]


def test_a_cache_that_cannot_be_written_is_no_error(original: Path, tmp_path: Path, cache: Path) -> None:
    (tmp_path / 'assets').write_text('no directory')
    assert verification(original).is_genuine
    (tmp_path / 'assets').unlink()


# Reading


@pytest.mark.parametrize('mapped', [True, False])
def test_changed_while_it_is_read(mapped: bool, original: Path, tmp_path: Path) -> None:
    """No mixture of two files."""
    path, done = Path(shutil.copy(original, tmp_path)), threading.Event()

    def write() -> None:
        while not done.is_set():
            flip(path)

    def read() -> None:
        for _ in range(100):  # one is enough, unless it is faster than the clock of the file system
            read_checkpoint(path, mapped)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        with pytest.raises(CheckpointError, match='changed while it was read. Load it again'):
            read()
    finally:
        done.set()
        writer.join()


@pytest.mark.parametrize('mapped', [True, False])
def test_matrices_are_aligned(mapped: bool, tmp_path: Path) -> None:
    """As torch's own are: products of matrices round in another way elsewhere."""
    saved = {f'{i}.{shape}': torch.randn(shape) for i in range(9) for shape in ((3,), (5, 7), (2, 3, 1, 1))}
    safetensors.torch.save_file(saved, tmp_path / 'model.safetensors')
    tensors = read_checkpoint(tmp_path / 'model.safetensors', mapped).tensors
    assert all(torch.equal(tensors[name], tensor) for name, tensor in saved.items())
    assert all(tensor.data_ptr() % 64 == 0 for tensor in tensors.values() if tensor.dim() == 2)
