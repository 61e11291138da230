"""Keras' weights by name: what happens to a download on the way, on a server of this machine."""

import hashlib
import importlib.util
import random
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from threading import Event

import pytest
from hub_server import Fault, Handler, HubServer

from xception_hub.errors import ReleaseError
from xception_hub.porting import release as release_module
from xception_hub.porting.release import RELEASES, Release, fetch

NAME = 'stand-in'
CONTENT = random.Random(0).randbytes(2**20)
HALF = len(CONTENT) // 2


class ReleaseHandler(Handler):
    """Serves as `Handler` does, and stops in the middle of a file until the server `goes_on`."""

    server: 'ReleaseServer'

    def plain_file(self, name: str) -> None:
        if self.server.goes_on.is_set():
            super().plain_file(name)
        else:
            self.send_head(200, {'Content-Length': str(len(CONTENT))})
            self.wfile.write(CONTENT[:HALF])
            self.server.goes_on.wait()


class ReleaseServer(HubServer):
    """Serves the stand-in for a release."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.RequestHandlerClass = ReleaseHandler
        self.goes_on = Event()
        self.goes_on.set()
        self.file = self.root / 'files' / 'weights.h5'


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ReleaseServer]:
    """Has the stand-in, which the table knows; Keras has downloaded nothing."""
    monkeypatch.setenv('KERAS_HOME', str(tmp_path / 'keras'))
    with ReleaseServer(tmp_path / 'server') as server:
        server.file.parent.mkdir(parents=True)
        server.file.write_bytes(CONTENT)
        release = Release(f'{server.url}/files/{server.file.name}', hashlib.md5(CONTENT).hexdigest())
        monkeypatch.setitem(RELEASES, NAME, release)
        yield server
        server.goes_on.set()


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / 'cache' / 'xception_hub'


def assert_complete(path: Path, cache: Path) -> None:
    """The file is in the cache, and nothing else."""
    assert path == cache / 'weights.h5'
    assert path.read_bytes() == CONTENT
    assert [*cache.iterdir()] == [path]


# The table


def test_table() -> None:
    """What Keras itself has, read from its source."""
    keras = importlib.util.find_spec('keras')
    assert keras is not None and keras.origin is not None
    source = (Path(keras.origin).parent / 'src' / 'applications' / 'xception.py').read_text()
    source = re.sub(r'"\s+"', '', source)  # addresses are written in two parts
    for release in RELEASES.values():
        assert f'"{release.url}"' in source
        assert re.search(rf'"{release.filename}",[^)]*file_hash="{release.md5}"', source)
    assert [name.endswith('notop') for name in RELEASES] == ['notop' in release.url for release in RELEASES.values()]


# What arrives


def test_download(server: ReleaseServer, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Once; the file is readable by others. There is nothing to say where progress bars are switched off."""
    for _ in range(2):
        assert_complete(fetch(NAME, cache), cache)
    assert len(server.requests) == 1
    assert (cache / 'weights.h5').stat().st_mode & 0o044 == 0o044
    assert capsys.readouterr() == ('', '')


def test_keras_own_copy(server: ReleaseServer, cache: Path, tmp_path: Path) -> None:
    """Is used if it is right, and left alone if it isn't."""
    copy = tmp_path / 'keras' / 'models' / 'weights.h5'
    copy.parent.mkdir(parents=True)
    copy.write_bytes(CONTENT)
    assert fetch(NAME, cache) == copy
    assert server.requests == [] and not cache.exists()
    copy.write_bytes(CONTENT[:HALF])
    assert_complete(fetch(NAME, cache), cache)
    assert copy.read_bytes() == CONTENT[:HALF]


def test_corrupt_file_in_the_cache(server: ReleaseServer, cache: Path) -> None:
    """Is replaced by the right one, when that is there."""
    cache.mkdir(parents=True)
    (cache / 'weights.h5').write_bytes(CONTENT[:-1] + b'x')
    server.faults[''] = Fault.NOT_FOUND
    with pytest.raises(ReleaseError):
        fetch(NAME, cache)
    server.faults.clear()
    assert_complete(fetch(NAME, cache), cache)


@pytest.mark.parametrize(
    'content', [b'', b'<html>Sign in</html>', CONTENT[:HALF], CONTENT[:-1] + b'x', CONTENT + b'x'], ids=len
)
def test_wrong_md5(content: bytes, server: ReleaseServer, cache: Path) -> None:
    """Nothing of it stays; the error names both sums."""
    server.file.write_bytes(content)
    found, right = hashlib.md5(content).hexdigest(), hashlib.md5(CONTENT).hexdigest()
    with pytest.raises(ReleaseError, match=f'md5 {found} instead of {right}'):
        fetch(NAME, cache)
    assert not any(cache.iterdir())
    server.file.write_bytes(CONTENT)
    assert_complete(fetch(NAME, cache), cache)


# Without the file, and without a network


@pytest.mark.parametrize(
    ('fault', 'reason'),
    [
        (Fault.NOT_FOUND, 'HTTP Error 404'),
        (Fault.SERVER_ERROR, 'HTTP Error 500'),
        (Fault.CLOSED, 'RemoteDisconnected'),
        (Fault.HALF, 'not what Keras published'),
    ],
)
def test_refused(fault: Fault, reason: str, server: ReleaseServer, cache: Path) -> None:
    """One error with the cause, and nothing of the file."""
    server.faults[''] = fault
    with pytest.raises(ReleaseError, match=reason):
        fetch(NAME, cache)
    assert not any(cache.iterdir())


@pytest.mark.parametrize('offline', ['server down', 'HF_HUB_OFFLINE'])
def test_without_a_network(offline: str, server: ReleaseServer, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names what to do instead, which works."""
    if offline == 'HF_HUB_OFFLINE':
        monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
    else:
        server.shutdown()
        server.server_close()
    with pytest.raises(ReleaseError, match='Connection refused|HF_HUB_OFFLINE') as error:
        fetch(NAME, cache)
    assert server.requests == []
    place = re.search(rf'md5 {RELEASES[NAME].md5}\) and put it at (\S+),', str(error.value))
    assert place
    Path(place[1]).write_bytes(CONTENT)
    assert fetch(NAME, cache) == cache / 'weights.h5'


@pytest.mark.skipif(shutil.which('curl') is None, reason='curl is not installed')
def test_line_that_breaks(server: ReleaseServer, cache: Path) -> None:
    """The command in the error goes on with what arrived."""
    server.faults[''] = Fault.HALF
    with pytest.raises(ReleaseError) as error:
        fetch(NAME, cache)
    command = str(error.value).splitlines()[-1].strip()
    assert subprocess.run(command, shell=True, capture_output=True).returncode
    assert (cache / 'weights.h5').read_bytes() == CONTENT[:HALF]
    server.faults.clear()
    server.sent = 0
    assert subprocess.run(command, shell=True, capture_output=True).returncode == 0
    assert server.sent == HALF
    assert_complete(fetch(NAME, cache), cache)


def test_silent_server(server: ReleaseServer, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection on which nothing comes any more is given up."""
    monkeypatch.setattr(release_module, 'TIMEOUT', 0.5)
    server.goes_on.clear()
    with pytest.raises(ReleaseError, match='timed out'):
        fetch(NAME, cache)
    assert not any(cache.iterdir())


def test_disk_full(server: ReleaseServer, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Is the disk's error, not the network's."""

    def fail(*_: object) -> None:
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr('torch.hub.shutil.move', fail)
    with pytest.raises(OSError, match='No space left'):
        fetch(NAME, cache)
    assert not any(cache.iterdir())
