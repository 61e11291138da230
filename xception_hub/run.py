"""xception-hub run SCRIPT ARGUMENTS

Runs a script as `python SCRIPT ARGUMENTS` does, after it registers the models of this package with timm.
"""

import importlib.util
import os
import runpy
import sys
from pathlib import Path
from types import ModuleType
from typing import Annotated

from cyclopts import Parameter

from .errors import SettingsError, exits_with_message, listed


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
    is_module = tokens[:1] == ('-m',)
    arguments = Arguments(tokens[is_module:])
    with exits_with_message():
        if not arguments:
            raise SettingsError('Name a script, or -m and a module: xception-hub run train.py --model xception_paper.')
        path = Path(arguments[0])
        if not is_module and not path.is_file():
            folder = path if path.is_dir() else path.parent
            scripts = listed(sorted(folder.glob('*.py')))
            raise SettingsError(f'There is no script {path}. The folder {folder} has the scripts: {scripts}.')
        if not getattr(sys.flags, 'safe_path', False):  # of Python 3.11
            sys.path[0] = os.getcwd() if is_module else str(path.resolve().parent)
        if is_module and not _has_module(arguments[0]):
            raise SettingsError(f'No module named {arguments[0]}. -m takes what python -m takes.')
    sys.argv = arguments
    if is_module:
        runpy.run_module(arguments[0], run_name='__main__', alter_sys=True)
        return
    # as runpy.run_path, with the absolute `__file__` and the lasting `__main__` of a script that Python starts
    module = sys.modules['__main__'] = ModuleType('__main__')
    module.__file__ = str(path.absolute())
    exec(compile(path.read_bytes(), module.__file__, 'exec'), vars(module))


def _has_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # of the package that it would be in
        return False
