"""Reads files that may hold anything, one after the other, and says what came of each: `python fuzz_worker.py`.

    stdin   {"task": "port", "folder": "/cases/7", "source": "/cases/7/model.keras", "config": null, "base": "/bases/3"}
    stdout  {"outcome": "read", "message": "", "wrong": [], "events": [], "megabytes": 91, "seconds": 0.4}

A case may kill it or keep it for ever, for test_fuzz.py to see. The readers of HDF5 are forked from a process that has
imported little more than h5py: that takes 3 ms, and `weights.start` 150.
"""

import importlib.util
import io
import json
import os
import resource
import signal
import socket
import sys
import time
import traceback
import zipfile
from contextlib import suppress
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import h5py
import numpy as np

ROOT = Path(__file__).resolve().parents[2]
# by its path, as the readers run it: the package would bring PyTorch into every fork
_SPEC = importlib.util.spec_from_file_location('hdf5', ROOT / 'xception_hub' / 'porting' / 'hdf5.py')
assert _SPEC is not None and _SPEC.loader is not None
hdf5: Any = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(hdf5)

MOST_MEMORY = 2**30  # bytes, beyond what there was before
READER_SECONDS = 2  # instead of `hdf5.MAX_SECONDS`: loops without end shall not take most of the tests' time


class Forks:
    """Forks readers of HDF5 from a process as it is now. Each is used as `subprocess.Popen` would be."""

    def __init__(self) -> None:
        self._here, there = socket.socketpair()
        if os.fork() == 0:
            self._here.close()
            _serve_forks(there)
            os._exit(0)
        there.close()
        self.megabytes, self.seconds = 0, 0.0  # that the last reader took

    def start(self) -> 'Forks':
        (requests, to_reader), (from_reader, answers) = os.pipe(), os.pipe()
        socket.send_fds(self._here, [b'start'], [requests, answers])
        os.close(requests)
        os.close(answers)
        self.stdin, self.stdout = os.fdopen(to_reader, 'wb'), os.fdopen(from_reader, 'rb')
        self.pid = int(self._here.recv(100))
        self.code: int | None = None
        return self

    def kill(self) -> None:
        if self.code is None:
            os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> int:
        if self.code is None:
            self._here.send(b'wait')
            self.code, self.megabytes, self.seconds = json.loads(self._here.recv(100))
        return self.code

    def communicate(self) -> None:
        self.stdout.close()
        with suppress(BrokenPipeError):
            self.stdin.close()
        self.wait()


def _serve_forks(requests: socket.socket) -> None:
    hdf5.MAX_SECONDS = READER_SECONDS
    while message := (received := socket.recv_fds(requests, 100, 2))[0]:
        if message == b'start':
            before, pipes = _resident(), received[1]
            pid = os.fork()
            if pid == 0:
                with suppress(BaseException):
                    hdf5.limit()
                    hdf5.serve(os.fdopen(pipes[0], 'rb'), os.fdopen(pipes[1], 'wb'))
                    os._exit(0)
                os._exit(1)
            for pipe in pipes:
                os.close(pipe)
            requests.send(b'%d' % pid)
        else:
            _, status, usage = os.wait4(pid, 0)
            requests.send(
                json.dumps(
                    [
                        os.waitstatus_to_exitcode(status),
                        usage.ru_maxrss // 1024 - before,
                        usage.ru_utime + usage.ru_stime,
                    ]
                ).encode()
            )


def _resident() -> int:
    """Megabytes."""
    return int(Path('/proc/self/statm').read_text().split()[1]) * resource.getpagesize() // 2**20


# What Python does to the world, or sees of it. HDF5's library opens files behind its back: see the pipe in damages.py.
WATCHED = ('open', 'os.', 'shutil.', 'subprocess.', 'socket.', 'marshal.', 'pickle.', 'ctypes.', 'import', 'exec')
HARMLESS = ('os.listdir', 'os.scandir', 'os.kill', 'socket.sendmsg')  # the latter two are those of Forks


class Watch:
    """Notes what Python does while a case is read."""

    def __init__(self) -> None:
        self.folder = ''
        self.events: list[str] = []
        sys.addaudithook(self._hook)

    def _hook(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.folder or not event.startswith(WATCHED) or event in HARMLESS:
            return
        if event == 'open' and isinstance(args[0], (str, bytes, Path)):
            path, _, flags = args
            reads = not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            if reads and os.fsdecode(path).startswith((self.folder, sys.prefix, sys.base_prefix)):
                return
        elif event == 'open':
            return  # a pipe that is open already
        self.events.append(f'{event} {str(args)[:200]}')


def read(case: dict[str, Any]) -> dict[str, np.ndarray]:
    """What comes of a case: tensors by name; or arrays, of a file that is no Xception."""
    source, config = Path(case['source']), case['config'] and Path(case['config'])
    if case['task'] == 'misbehave':
        misbehave(case['source'])
    if case['task'] == 'arrays':
        with weights.WeightFile(source, [source]) as file:
            paths = file.arrays()
            Random(case['name']).shuffle(paths)
            return {path: file.read(path, file.shape(path)) for path in paths}
    if case['task'] == 'port':
        tensors = port.port(source, config).tensors
    else:
        tensors = through_the_command(source, config, Path(case['folder']) / 'out')
    return {name: tensor.numpy() for name, tensor in tensors.items()}


def through_the_command(source: Path, config: Path | None, output: Path) -> dict[str, Any]:
    """The same by way of the whole command, up to the comparison with Keras, which does not take place."""
    read = {}

    def prove_parity(ported: Any, model: Any, *args: Any) -> None:
        read.update(model.state_dict())
        raise convert.ParityError('not compared')

    convert.prove_parity = prove_parity
    try:
        convert.main(
            str(source),
            output=output,
            input_range='tf',
            interpolation='nearest',
            class_names=['none'],
            size=96,
            config=config,
        )
    except SystemExit as e:
        if e.code != 'error: not compared':
            raise KerasFileError(str(e.code).removeprefix('error: ')) from e
    return {name: tensor for name, tensor in read.items() if not name.endswith('num_batches_tracked')}


def wrong(found: dict[str, np.ndarray], case: dict[str, Any]) -> list[str]:
    """Names whose values are neither those of the base nor those that h5py finds at their place in the file."""
    expected = expected_of(case['base'])
    if case['task'] == 'arrays':  # which may be called otherwise now
        places = {name: ('arrays.h5', None, name) for name in found}
        names = set(found)
    else:
        places = {name: entry['place'] for name, entry in expected.items()}
        names = found.keys() | expected.keys()
    left = []
    for name in names:
        values = found.get(name)
        same = name in expected and np.array_equal(values, expected[name]['values'])
        there = name in places and (same or np.array_equal(values, at_place(case, name, *places[name])))
        moved = case['moves'] and (there or any(np.array_equal(values, other['values']) for other in expected.values()))
        if not there and not moved:
            left.append(name)
    return left


@cache
def expected_of(base: str) -> dict[str, dict[str, Any]]:
    expected = json.loads((Path(base) / 'expected.json').read_text())
    for entry in expected.values():
        values = np.asarray(entry['values'], 'f4')
        entry['values'] = np.full(entry['shape'], values) if len(values) == 1 else values.reshape(entry['shape'])
    return expected


def at_place(case: dict[str, Any], name: str, file: str, member: str | None, path: str) -> np.ndarray | None:
    """What the file holds there, by way of h5py alone, with its axes in the order of torch."""
    content: Any = Path(case['folder']) / file
    if member:
        with zipfile.ZipFile(content) as archive:
            content = io.BytesIO(archive.read(member))
    with h5py.File(content, 'r') as opened:
        if path not in opened:
            return None
        values = np.asarray(opened[path], 'f4')
    if case['task'] == 'arrays':
        return values
    if values.ndim == 4:
        return values.transpose((2, 3, 0, 1) if name.endswith('conv_dw.weight') else (3, 2, 0, 1))
    return values.T


def run(case: dict[str, Any], watch: Watch, forks: Forks) -> dict[str, Any]:
    result: dict[str, Any] = dict(outcome='read', message='', wrong=[])
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024, time.process_time()
    forks.megabytes, forks.seconds = 0, 0.0
    watch.folder, watch.events = case['folder'], []
    try:
        found = read(case)
    except KerasFileError as e:
        found = None
        result.update(outcome='refused', message=str(e))
    except BaseException as e:
        found = None
        result.update(outcome='failed', message=''.join(traceback.format_exception(e))[-3000:])
    finally:
        watch.folder = ''
    result.update(
        seconds=round(time.process_time() - started + forks.seconds, 3),
        events=watch.events,
        megabytes=max(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024 - before, forks.megabytes),
    )
    if found is not None:
        result['wrong'] = wrong(found, case)
    return result


def misbehave(how: str) -> None:
    """What the tests have to see, if it happens."""
    match how:
        case 'crash':
            os.kill(os.getpid(), signal.SIGSEGV)
        case 'hang':
            time.sleep(1000)
        case 'memory':
            bytearray(2 * MOST_MEMORY)
        case 'open':
            Path('/etc/hostname').read_text()
        case 'exception':
            raise KeyError('exception')


if __name__ == '__main__':
    watch, forks = Watch(), Forks()

    from conversion import convert
    from xception_hub.errors import KerasFileError
    from xception_hub.porting import port, weights

    weights.start = forks.start  # type: ignore[assignment]
    for file in sys.argv[1:]:  # whatever is imported on the way shall be there
        with suppress(KerasFileError):
            through_the_command(Path(file), None, Path(file).parent / 'out')
    used = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MOST_MEMORY, resource.RLIM_INFINITY))
    answers = os.fdopen(os.dup(1), 'w', buffering=1)
    os.dup2(2, 1)
    answers.write('ready\n')
    for line in sys.stdin:
        answers.write(json.dumps(run(json.loads(line), watch, forks)) + '\n')
