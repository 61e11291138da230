"""Keras' weights by name: what happens to a download on the way, on a server of this machine."""

import contextlib
import hashlib
import importlib.util
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import astuple
from pathlib import Path
from threading import Event
from typing import IO

import pytest
from conftest import ROOT
from hub_server import Fault, Handler, HubServer
from patience import patience

from xception_hub.errors import ReleaseError
from xception_hub.porting import release as release_module
from xception_hub.porting.release import RELEASES, Release, fetch

NAME = 'stand-in'
CONTENT = random.Random(0).randbytes(2**20)
HALF = len(CONTENT) // 2


class ReleaseHandler(Handler):
    """Serves as `Handler` does, apart from what the server is told."""

    server: 'ReleaseServer'

    def do_GET(self) -> None:
        self.server.ranges.append(self.headers.get('Range'))
        if self.server.script:
            fault = self.server.script.pop(0)
            self.server.faults = {'': fault} if fault else {}
        if not self.server.knows_ranges:
            del self.headers['Range']
        super().do_GET()

    def plain_file(self, name: str) -> None:
        if self.server.goes_on.is_set():
            super().plain_file(name)
        else:
            self.stop_in_the_middle((self.server.root / 'files' / name).read_bytes())

    def stop_in_the_middle(self, content: bytes) -> None:
        self.send_head(200, {'Content-Length': str(len(content))})
        self.wfile.write(content[: len(content) // 2])
        self.server.goes_on.wait()
        with contextlib.suppress(ConnectionError):  # the other side was killed
            self.wfile.write(content[len(content) // 2 :])

    def answer(self, status: int, headers: dict[str, str] | None = None) -> None:
        super().answer(self.server.status or status, headers)


class ReleaseServer(HubServer):
    """Serves the stand-in for a release.

    Attributes:
        ranges: The Range header of each request so far.
        script: What goes wrong with the next requests, one after the other.
        knows_ranges: Else the whole file is the answer to everything.
        goes_on: While it isn't set, answers stop in the middle.
        status: Instead of that of a fault.
    """

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.RequestHandlerClass = ReleaseHandler
        self.ranges: list[str | None] = []
        self.script: list[Fault | None] = []
        self.knows_ranges = True
        self.goes_on = Event()
        self.goes_on.set()
        self.status: int | None = None

    @property
    def file(self) -> Path:
        return self.root / 'files' / 'weights.h5'


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ReleaseServer]:
    """Has the stand-in, which the table knows; Keras has downloaded nothing, and nobody waits between attempts."""
    monkeypatch.setenv('KERAS_HOME', str(tmp_path / 'keras'))
    monkeypatch.setattr(release_module, 'RETRY_DELAYS', (0, 0))
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


def part(cache: Path) -> Path:
    return cache / 'weights.h5.part'


def assert_complete(path: Path, cache: Path) -> None:
    """The file is in the cache, and no part of it."""
    assert path == cache / 'weights.h5'
    assert path.read_bytes() == CONTENT
    assert {p.name for p in cache.iterdir()} <= {'weights.h5', 'weights.h5.lock'}


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
    assert {name: (release.filename, release.md5) for name, release in RELEASES.items()} == {
        'keras-imagenet': ('xception_weights_tf_dim_ordering_tf_kernels.h5', '0a58e3b7378bc2990ea3b43d5981f1f6'),
        'keras-imagenet-notop': (
            'xception_weights_tf_dim_ordering_tf_kernels_notop.h5',
            'b0042744bf5b25fce3cb969f33bebb97',
        ),
    }


def test_unknown_name(cache: Path) -> None:
    with pytest.raises(ReleaseError, match="no release 'imagenet'. Choose from: keras-imagenet, keras-imagenet-notop"):
        fetch('imagenet', cache)
    assert not cache.exists()


# What arrives


def test_download(server: ReleaseServer, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Once; the file is readable by others. There is nothing to say where progress bars are switched off."""
    for _ in range(2):
        assert_complete(fetch(NAME, cache), cache)
    assert server.ranges == [None]
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
    cache.mkdir(parents=True)
    (cache / 'weights.h5').write_bytes(CONTENT[:-1] + b'x')
    assert_complete(fetch(NAME, cache), cache)
    assert server.ranges == [None]


def test_corrupt_file_in_the_cache_without_network(server: ReleaseServer, cache: Path) -> None:
    """It doesn't stay."""
    cache.mkdir(parents=True)
    (cache / 'weights.h5').write_bytes(b'')
    server.faults[''] = Fault.NOT_FOUND
    with pytest.raises(ReleaseError):
        fetch(NAME, cache)
    assert not (cache / 'weights.h5').exists()


# Interruptions


@pytest.mark.parametrize(
    'script',
    [
        [Fault.HALF, None],
        [Fault.SERVER_ERROR, Fault.CLOSED, None],
        [Fault.SERVER_ERROR, Fault.HALF, Fault.CLOSED, None],
    ],
    ids=str,
)
def test_goes_on_by_itself(
    script: list[Fault | None], server: ReleaseServer, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two more attempts after each that got on; what arrived isn't asked for again."""
    server.script = list(script)
    assert_complete(fetch(NAME, cache), cache)
    asked_again = script.index(Fault.HALF) + 1 if Fault.HALF in script else len(script)
    assert server.ranges == [None] * asked_again + [f'bytes={HALF}-'] * (len(script) - asked_again)
    assert capsys.readouterr().err.count('next attempt in 0 s') == len(script) - 1


def test_goes_on_with_the_next_call(server: ReleaseServer, cache: Path) -> None:
    server.faults[''] = Fault.HALF
    with pytest.raises(ReleaseError, match=f'The {HALF:,} bytes that arrived are kept'):
        fetch(NAME, cache)
    assert part(cache).read_bytes() == CONTENT[:HALF]
    server.faults.clear()
    server.ranges.clear()
    assert_complete(fetch(NAME, cache), cache)
    assert server.ranges == [f'bytes={HALF}-']


@pytest.mark.parametrize('status', [206, 416])
def test_complete_part(status: int, server: ReleaseServer, cache: Path) -> None:
    """Only the name was missing; servers answer differently when asked for what lies beyond the end."""
    cache.mkdir(parents=True)
    part(cache).write_bytes(CONTENT)
    if status == 416:
        server.status, server.faults[''] = 416, Fault.NOT_FOUND
    assert_complete(fetch(NAME, cache), cache)
    assert server.ranges == [f'bytes={len(CONTENT)}-']


def test_ignored_range(server: ReleaseServer, cache: Path) -> None:
    """The whole file comes once more, and isn't appended to the half."""
    server.script, server.knows_ranges = [Fault.HALF, None], False
    assert_complete(fetch(NAME, cache), cache)
    assert server.ranges == [None, f'bytes={HALF}-']


# Other content


@pytest.mark.parametrize('content', [b'', b'<html>Sign in</html>', CONTENT[:-1] + b'x', CONTENT + b'x'], ids=len)
def test_wrong_md5(content: bytes, server: ReleaseServer, cache: Path) -> None:
    """Nothing of it stays; the error names both sums."""
    server.file.write_bytes(content)
    found, right = hashlib.md5(content).hexdigest(), hashlib.md5(CONTENT).hexdigest()
    with pytest.raises(ReleaseError, match=f'not what Keras published.*md5 {found} instead of {right}'):
        fetch(NAME, cache)
    assert not part(cache).exists() and not (cache / 'weights.h5').exists()
    server.file.write_bytes(CONTENT)
    assert_complete(fetch(NAME, cache), cache)


@pytest.mark.parametrize('arrived', [b'x' * HALF, b'x' * 2 * len(CONTENT)], ids=len)
def test_part_of_something_else(arrived: bytes, server: ReleaseServer, cache: Path) -> None:
    """As after the content changed: the next try starts anew."""
    cache.mkdir(parents=True)
    part(cache).write_bytes(arrived)
    with pytest.raises(ReleaseError, match='not what Keras published.*The next try starts anew'):
        fetch(NAME, cache)
    assert_complete(fetch(NAME, cache), cache)
    assert server.ranges == [f'bytes={len(arrived)}-', None]


# Without the file, and without a network


@pytest.mark.parametrize(
    ('fault', 'reason', 'attempts'),
    [
        (Fault.NOT_FOUND, 'HTTP Error 404: Not Found', 1),
        (Fault.SERVER_ERROR, 'HTTP Error 500: Internal Server Error', 3),
        (Fault.CLOSED, 'RemoteProtocolError: Server disconnected without sending a response', 3),
    ],
)
def test_refused(fault: Fault, reason: str, attempts: int, server: ReleaseServer, cache: Path) -> None:
    """One error with the cause; what may pass by itself is tried again."""
    server.faults[''] = fault
    with pytest.raises(ReleaseError, match=re.escape(f'{RELEASES[NAME].url} cannot be downloaded: {reason}.\n')):
        fetch(NAME, cache)
    assert len(server.requests) == attempts
    assert not part(cache).exists()


def test_server_down(server: ReleaseServer, cache: Path) -> None:
    """The error says what to do instead, which works."""
    server.shutdown()
    server.server_close()
    with pytest.raises(ReleaseError) as error:
        fetch(NAME, cache)
    message, target, (url, md5) = str(error.value), cache / 'weights.h5', astuple(RELEASES[NAME])
    assert re.match(rf'{url} cannot be downloaded: .*Connection refused\.\n', message)
    assert message.endswith(
        f'(md5 {md5}) and put it at {target}, or pass its path to the conversion instead of {NAME!r}.'
    )
    target.write_bytes(CONTENT)
    assert fetch(NAME, cache) == target


def test_silent_server(server: ReleaseServer, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection on which nothing comes any more is given up."""
    monkeypatch.setattr(release_module, 'TIMEOUT', 0.5)
    monkeypatch.setattr(release_module, 'RETRY_DELAYS', ())
    server.goes_on.clear()
    with pytest.raises(ReleaseError, match='timed out'):
        fetch(NAME, cache)
    assert part(cache).read_bytes() == CONTENT[:HALF]


def test_offline_mode(server: ReleaseServer, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
    with pytest.raises(ReleaseError, match='HF_HUB_OFFLINE forbids it'):
        fetch(NAME, cache)
    assert server.requests == []


def test_disk_full(server: ReleaseServer, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Is the disk's error, not the network's."""

    def fail(file: Path, mode: str) -> IO[bytes]:
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(release_module, 'open', fail, raising=False)
    with pytest.raises(OSError, match='No space left'):
        fetch(NAME, cache)
    assert len(server.requests) == 1


# Several processes


def start(server: ReleaseServer, cache: Path) -> subprocess.Popen[str]:
    """A process that fetches into the default cache, and prints the path."""
    script = (
        f'from xception_hub.porting.release import RELEASES, Release, fetch\n'
        f'RELEASES[{NAME!r}] = {RELEASES[NAME]!r}\n'
        f'print(fetch({NAME!r}))'
    )
    environment = {**os.environ, 'XDG_CACHE_HOME': str(cache.parent)}
    environment.pop('HF_HUB_DISABLE_PROGRESS_BARS')
    return subprocess.Popen(
        [sys.executable, '-c', script],
        cwd=ROOT,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def wait_for_half(cache: Path) -> None:
    deadline = time.monotonic() + patience(20)
    while not part(cache).exists() or part(cache).stat().st_size < HALF:
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.slow
def test_killed(server: ReleaseServer, cache: Path) -> None:
    """Another process goes on where one was killed; its progress bar starts there, and has a rate and the time left."""
    server.goes_on.clear()
    with start(server, cache) as first:
        wait_for_half(cache)
        os.kill(first.pid, signal.SIGKILL)
    server.goes_on.set()
    with start(server, cache) as second:
        out, err = second.communicate()
    assert (first.returncode, second.returncode) == (-signal.SIGKILL, 0), err
    assert_complete(Path(out.strip()), cache)
    assert server.ranges == [None, f'bytes={HALF}-']
    assert re.search(r'stand-in: +50%.* 524k/1\.05M \[00:00<\?, \?B/s\]', err)
    assert re.search(r'stand-in: 100%.* 1\.05M/1\.05M \[\d\d:\d\d<00:00, [\d.]+[kMG]?B/s\]', err)


@pytest.mark.slow
def test_two_processes(server: ReleaseServer, cache: Path) -> None:
    """One downloads, the other waits and says so."""
    server.goes_on.clear()
    with start(server, cache) as first:
        wait_for_half(cache)
        with start(server, cache) as second:
            assert second.stderr is not None
            assert second.stderr.readline() == 'stand-in: waiting for another process that downloads it\n'
            server.goes_on.set()
            results = [process.communicate() for process in (first, second)]
    assert [process.returncode for process in (first, second)] == [0, 0], results
    for out, _ in results:
        assert_complete(Path(out.strip()), cache)
    assert server.ranges == [None]
