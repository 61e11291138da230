"""Ctrl-C while a command is imported, which takes seconds: it ends at once, without a traceback.

An exception in the middle of an import is swallowed, or becomes another one, wherever a package tries its imports.
"""

import os
import signal
import sys
from typing import NoReturn

INTERRUPTED = 130  # exit status of a process that Ctrl-C has ended


def _end(*_: object) -> NoReturn:
    os.write(2, b'\nStopped.\n')
    os._exit(INTERRUPTED)


def end_at_once() -> None:
    """Sets this up in the process of `xception-hub` or `python -m xception_hub`, and in no other."""
    given = sys.orig_argv[1:3]
    is_script = bool(given) and os.path.splitext(os.path.basename(given[0]))[0] == 'xception-hub'
    if is_script or given == ['-m', 'xception_hub']:
        signal.signal(signal.SIGINT, _end)


def as_usual() -> None:
    """Ctrl-C is a KeyboardInterrupt again: from now on a command can report what it keeps."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


end_at_once()
