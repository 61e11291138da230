"""xception-hub run SCRIPT ARGUMENTS

Runs a script as `python SCRIPT ARGUMENTS` does, after it registers the models of this package with timm.
"""

import difflib
import importlib.util
import os
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Annotated

from cyclopts import Parameter

from .errors import ScriptError, exits_with_message

MOST_NAMED = 5  # scripts


class Arguments(list[str]):
    """`sys.argv` of the script. Each spawned worker unpickles it, which imports this package and registers the models.

    With a plain list, such a worker would know only timm's own models.
    """


def run(*tokens: Annotated[str, Parameter(show=False)]) -> None:
    """Run a Python script, such as timm's train.py, with xception_paper registered in timm.

    Write `xception-hub run` instead of `python`: SCRIPT ARGUMENTS, or -m MODULE ARGUMENTS. The models are registered in
    workers of a DataLoader, too. For several processes, write accelerate launch -m xception_hub run SCRIPT ARGUMENTS,
    or torchrun -m xception_hub run SCRIPT ARGUMENTS. The exit status is that of the script.

    Args:
        tokens: The script and its arguments.
    """
    with exits_with_message():
        is_module, arguments = _checked(tokens)
    sys.argv = arguments
    if is_module:
        runpy.run_module(arguments[0], run_name='__main__', alter_sys=True)
    else:
        _run_file(Path(arguments[0]).absolute())


def _checked(tokens: Sequence[str]) -> tuple[bool, Arguments]:
    """Whether tokens name a module, and the command line of it or of the script, whose folder `sys.path` has first.

    Raises:
        ScriptError: There is no such script or module.
    """
    is_module = list(tokens[:1]) == ['-m']
    arguments = Arguments(tokens[is_module:])
    if not arguments:
        raise ScriptError('Name a script, or -m and a module: xception-hub run train.py --model xception_paper.')
    name = arguments[0]
    if not is_module:
        _check_script(Path(name))
    if not getattr(sys.flags, 'safe_path', False):  # of Python 3.11
        sys.path[0] = os.getcwd() if is_module else str(Path(name).resolve().parent)
    if is_module and not _has_module(name):
        raise ScriptError(f'No module named {name}. -m takes what python -m takes.')
    return is_module, arguments


def _has_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # of the package that it would be in
        return False


def _run_file(path: Path) -> None:
    """As runpy.run_path, with the absolute `__file__` and the lasting `__main__` of a script that Python starts."""
    module = sys.modules['__main__'] = ModuleType('__main__')
    module.__file__ = str(path)
    exec(compile(path.read_bytes(), path, 'exec'), vars(module))


def _check_script(path: Path) -> None:
    if path.is_file():
        return
    folder = path if path.is_dir() else path.parent
    names = sorted(file.name for file in folder.glob('*.py'))
    near = difflib.get_close_matches(path.name, names) or names[:MOST_NAMED]
    what = f'{path} is no script but a folder' if path.is_dir() else f'There is no script {path}'
    if not near:
        raise ScriptError(f'{what}, nor any other in {folder}. Give the path of a script.')
    raise ScriptError(f'{what}. Name a script: {", ".join(str(folder / name) for name in near)}.')
