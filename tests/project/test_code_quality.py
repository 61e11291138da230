"""The linter, the formatter and the type checker have nothing to say."""

import subprocess
import sys

import pytest
from conftest import ROOT

COMMANDS = {'lint': ['ruff', 'check', '.'], 'format': ['ruff', 'format', '--check', '.'], 'types': ['mypy']}


@pytest.mark.parametrize('command', COMMANDS.values(), ids=COMMANDS)
def test_tool(command: list[str]) -> None:
    result = subprocess.run([sys.executable, '-m', *command], cwd=ROOT, text=True, capture_output=True)
    assert result.returncode == 0, result.stdout + result.stderr
