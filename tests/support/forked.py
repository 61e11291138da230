"""Processes that are forked from one that has imported everything already: an import of PyTorch alone takes seconds."""

import multiprocessing
import os
import sys
import warnings
from pathlib import Path
from typing import Any

CONTEXT: Any = multiprocessing.get_context('forkserver')
CONTEXT.set_forkserver_preload(['finetune'])


def write_into(log: Path) -> None:
    """Lets this process print into a file."""
    with open(log, 'a') as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]


def run_code(code: str, folder: Path, log: Path) -> tuple[int, str]:
    """Status and output of what a user would run by `python -c` in a folder; there, warnings are errors."""
    process = CONTEXT.Process(target=_run_code, args=(code, folder, log))
    process.start()
    process.join()
    return process.exitcode, log.read_text()


def _run_code(code: str, folder: Path, log: Path) -> None:
    write_into(log)
    os.chdir(folder)
    sys.path.insert(0, '')
    warnings.simplefilter('error', UserWarning)
    exec(compile(code, '<block>', 'exec'), {'__name__': '__main__'})
