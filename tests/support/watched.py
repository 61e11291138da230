"""A process that reads files which may hold anything, and is watched while it does."""

import os
import resource
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from forked import CONTEXT
from patience import patience

MOST_MEMORY = 2**30  # bytes, beyond what there was before
MOST_SECONDS = 40  # of a quiet machine
WATCHED = ('open', 'os.', 'shutil.', 'subprocess.', 'socket.', 'marshal.', 'pickle.', 'ctypes.', 'import', 'exec')
HARMLESS = ('os.listdir', 'os.scandir', 'os.kill')


class Outcome(NamedTuple):
    """What came of a call.

    Attributes:
        kind: 'returned', or the name of the exception's class.
        text: What was returned, or the message; the traceback of anything but a KerasFileError.
        events: What Python did to the world, or saw of it, beside reading in the folder.
    """

    kind: str
    text: str
    events: list[str]


class Watched:
    """Calls functions of text in the process, one after the other. A crash ends it, and the test that has caused it."""

    def __init__(self) -> None:
        self._here, there = CONTEXT.Pipe()
        self.process = CONTEXT.Process(target=_serve, args=(there,))
        self.process.start()
        there.close()

    def __call__(self, function: Callable[..., str], folder: Path, *args: Any, watch: bool = True) -> Outcome:
        """What comes of `function(*args)`, which may read in the folder, and start the reader of HDF5."""
        self._here.send((function, str(folder), args, watch))
        assert self._here.poll(patience(MOST_SECONDS)), f'no answer in {patience(MOST_SECONDS):.0f} s'
        outcome: Outcome = self._here.recv()
        return outcome

    def close(self) -> None:
        self.process.kill()
        self.process.join()
        self._here.close()


def _serve(requests: Any) -> None:
    folder, events = '', []

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if not folder or not event.startswith(WATCHED) or event in HARMLESS:
            return
        if event == 'open':
            path, _, flags = args
            if isinstance(path, int) or path == os.devnull:  # a pipe that is open already
                return
            writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            if not writes and os.fsdecode(path).startswith((folder, sys.prefix, sys.base_prefix)):
                return
        if event == 'subprocess.Popen' and [Path(arg).name for arg in args[1]][1:] == ['hdf5.py']:
            return
        events.append(f'{event} {str(args)[:200]}')

    sys.addaudithook(hook)
    used = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MOST_MEMORY, resource.RLIM_INFINITY))
    while True:
        function, place, args, watch = requests.recv()
        events.clear()
        folder = place if watch else ''
        try:
            kind, text = 'returned', function(*args)
        except BaseException as e:
            kind = type(e).__name__
            text = str(e) if kind == 'KerasFileError' else ''.join(traceback.format_exception(e))[-3000:]
        finally:
            folder = ''
        requests.send(Outcome(kind, text, [*events]))
