"""The project's commands, called in this process: one of its own takes seconds until PyTorch is imported.

That each command runs as a process, too, is what the tests of the README's blocks are for.
"""

import io
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from subprocess import CompletedProcess


def words(*args: object) -> list[str]:
    """The words of a command line. A text that begins with -- may have several, with spaces between them."""
    return [word for arg in args for word in (arg.split() if isinstance(arg, str) and arg[:2] == '--' else [str(arg)])]


def call(app: Callable[[list[str]], object], *args: object) -> CompletedProcess[str]:
    """What the process would print, and its status. An exception that would be a traceback there is one here."""
    argv, code = words(*args), None
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        try:
            app(argv)
        except SystemExit as e:
            code = e.code
    if isinstance(code, str):
        print(code, file=err)
        code = 1
    return CompletedProcess(argv, code or 0, out.getvalue(), err.getvalue())
