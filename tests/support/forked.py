"""Processes that are forked from one that has imported everything already: an import of PyTorch alone takes seconds."""

import gc
import multiprocessing
import os
import runpy
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import huggingface_hub

ROOT = Path(__file__).resolve().parents[2]
OF_TESTS = [str(ROOT / folder) for folder in ('', 'examples', 'tests/support')]  # where they find modules
CONTEXT: Any = multiprocessing.get_context('forkserver')
CONTEXT.set_forkserver_preload(['finetune'])


def write_into(log: Path, errors: Path | None = None) -> None:
    """Lets this process print into a file; its errors into another one, if there is one for them."""
    gc.freeze()  # what was imported before the fork stays: a collection need not look at it
    for number, path in ((1, log), (2, errors or log)):
        with open(path, 'a') as file:
            os.dup2(file.fileno(), number)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]


def run_code(code: str, folder: Path, log: Path, **variables: str) -> tuple[int, str]:
    """Status and output of what a user would run by `python -c` in a folder; there, warnings are errors."""
    process = start_code(code, folder, log, **variables)
    process.join()
    return process.exitcode, log.read_text()


def run_script(script: Path, *arguments: object) -> str:
    """What `python SCRIPT ARGUMENTS` prints, which has to end well."""
    with tempfile.TemporaryDirectory() as folder:
        printed, errors = Path(folder, 'printed'), Path(folder, 'errors')
        process = CONTEXT.Process(target=_run_script, args=(script, [*map(str, arguments)], printed, errors))
        process.start()
        process.join()
        assert process.exitcode == 0, errors.read_text()
        return printed.read_text()


def _run_script(script: Path, arguments: list[str], printed: Path, errors: Path) -> None:
    write_into(printed, errors)
    sys.argv = [str(script), *arguments]
    sys.path[:] = [str(script.parent), *(path for path in sys.path if path not in OF_TESTS)]
    runpy.run_path(str(script), run_name='__main__')


def start_code(code: str, folder: Path, log: Path, **variables: str) -> Any:
    """The process of `run_code`, which goes on."""
    process = CONTEXT.Process(target=_run_code, args=(code, folder, log, variables))
    process.start()
    return process


def _run_code(code: str, folder: Path, log: Path, variables: dict[str, str]) -> None:
    write_into(log)
    os.environ.update(variables)
    if 'HF_HUB_CACHE' in variables:  # was imported already
        huggingface_hub.constants.HF_HUB_CACHE = variables['HF_HUB_CACHE']
    os.chdir(folder)
    sys.path.insert(0, '')
    warnings.simplefilter('error', UserWarning)
    exec(compile(code, '<block>', 'exec'), {'__name__': '__main__'})
