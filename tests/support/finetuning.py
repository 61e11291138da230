"""Runs of finetune.py in processes of their own."""

import contextlib
import glob
import multiprocessing
import os
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from commands import words
from forked import CONTEXT, write_into
from patience import patience

# A small network of timm's, from scratch, on small images: a run takes a few seconds.
SMALL = ('--model', 'test_resnet', '--no-pretrained', '--image-size', '32')


@dataclass(frozen=True)
class Ended:
    """What a run left: its exit status, negative if a signal has ended it, and all it has printed."""

    status: int
    text: str


class Running:
    """finetune.py, with one process or several that work together."""

    def __init__(self, arguments: tuple[Any, ...], log: Path, processes: int = 1, environment: Any = ()) -> None:
        self.log = log
        with socket.socket() as free:
            free.bind(('127.0.0.1', 0))
            port = free.getsockname()[1]
        self.processes = []
        for rank in range(processes):
            variables = dict(environment)
            if processes > 1:  # what `accelerate launch` sets
                variables.update(
                    ACCELERATE_USE_CPU='true',
                    RANK=str(rank),
                    LOCAL_RANK=str(rank),
                    WORLD_SIZE=str(processes),
                    LOCAL_WORLD_SIZE=str(processes),
                    MASTER_ADDR='127.0.0.1',
                    MASTER_PORT=str(port),
                )
            process = CONTEXT.Process(target=_main, args=(words(*arguments), log, variables))
            process.start()
            self.processes.append(process)

    def kill(self, number: int) -> None:
        """Sends a signal to all of its processes and their workers, as a terminal does it."""
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)

    def until(self, pattern: str, timeout: float = 60) -> None:
        """Waits for a file whose path matches."""
        end = time.monotonic() + patience(timeout)
        while not glob.glob(pattern):
            assert self.processes[0].is_alive() and time.monotonic() < end, self.log.read_text()
            time.sleep(0.02)

    def wait(self, timeout: float = 120) -> Ended:
        """Until all have ended; where one fails, the others are ended, as a launcher does it."""
        self.processes[0].join(patience(timeout))
        for process in self.processes[1:]:
            process.join(patience(timeout) if self.processes[0].exitcode == 0 else 5)
            process.kill()
            process.join()
        assert not self.processes[0].is_alive(), self.log.read_text()
        return Ended(self.processes[0].exitcode, self.log.read_text() if self.log.exists() else '')


def run(*arguments: Any, log: Path, processes: int = 1, environment: Any = ()) -> Ended:
    """Runs finetune.py to its end, whatever that is."""
    return Running(arguments, log, processes, environment).wait()


def finetune(*arguments: Any, log: Path, processes: int = 1, environment: Any = ()) -> str:
    """Runs finetune.py, which has to end well, and returns what it has printed."""
    ended = run(*arguments, log=log, processes=processes, environment=environment)
    assert ended.status == 0, ended.text
    return ended.text


def _main(arguments: list[str], log: Path, variables: dict[str, str]) -> None:
    os.setpgrp()
    multiprocessing.set_start_method('fork', force=True)  # of workers; the server's own is slower
    os.environ.update(variables)
    write_into(log)
    import finetune  # imported by the server already

    sys.argv = ['finetune.py', *arguments]
    finetune.app.meta(arguments)
