"""`xception-hub demo` in a process of its own."""

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

from forked import start_code
from patience import patience


def code_of(*arguments: object) -> str:
    return f'from xception_hub.cli import main; main({["demo", *map(str, arguments)]})'


@contextmanager
def demo(folder: Path, *arguments: object) -> Iterator[str]:
    """The address of a page that is served from a folder until the context ends."""
    with socket.create_server(('127.0.0.1', 0)) as free:
        port = free.getsockname()[1]
    process = start_code(code_of(*arguments, '--port', port), folder, folder / 'log')
    address, end = f'http://127.0.0.1:{port}', time.monotonic() + patience(90)
    try:
        while not answers(address):
            assert process.is_alive() and time.monotonic() < end, (folder / 'log').read_text()
            time.sleep(0.2)
        yield address
    finally:
        process.terminate()
        process.join()


def answers(address: str) -> bool:
    try:
        urlopen(address).close()
    except OSError:
        return False
    return True
