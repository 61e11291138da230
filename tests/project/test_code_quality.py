"""The linter and the type checker have nothing to say, and the arrows between the modules point one way."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

# Module of the package -> those of the package that it may import.
ARROWS = {
    'checkpoints': set(),
    'fingerprints': {'checkpoints'},
    'inception': set(),
    'sources': {'checkpoints', 'fingerprints'},
    'xception_paper': {'inception', 'sources'},
    'xception_variants': {'xception_paper'},
}


@pytest.mark.parametrize('command', [['ruff', 'check', '.'], ['mypy']], ids=lambda command: command[0])
def test_tool(command: list[str]) -> None:
    result = subprocess.run([sys.executable, '-m', *command], cwd=ROOT, text=True, capture_output=True)
    assert result.returncode == 0, result.stdout + result.stderr


def imported(path: Path) -> set[str]:
    """Modules of the same package that a module imports."""
    nodes = ast.walk(ast.parse(path.read_text()))
    return {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.level == 1 and node.module}


@pytest.mark.parametrize('module', ARROWS)
def test_arrows(module: str) -> None:
    assert imported(ROOT / 'xception_hub' / f'{module}.py') <= ARROWS[module]


@pytest.mark.parametrize('folder', ['paper', 'training'])
def test_nobody_imports_what_stands_on_the_network(folder: str) -> None:
    for path in (ROOT / 'xception_hub').rglob('*.py'):
        if path.parent.name != folder:
            assert not re.search(rf'^ *(from|import) [\w.]*\b{folder}\b', path.read_text(), re.MULTILINE)


def test_the_package_knows_nothing_of_conversion() -> None:
    for path in (ROOT / 'xception_hub').rglob('*.py'):
        assert 'import conversion' not in path.read_text()
        assert 'from conversion' not in path.read_text()
