"""The messages of docs/troubleshooting.md are those of the code."""

import ast
import re
from functools import cache

import pytest
from conftest import ROOT

PAGE = (ROOT / 'docs' / 'troubleshooting.md').read_text()
OWN = PAGE.partition('## Messages of this project')[2].partition('## ')[0]
MESSAGES = re.findall(r'^\| `(.+?)` \|', OWN, re.MULTILINE)


@cache
def texts() -> str:
    """All texts of the package, those of f-strings without what changes."""
    trees = [ast.parse(file.read_text()) for file in (ROOT / 'xception_hub').rglob('*.py')]
    nodes = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    return '\n'.join(node.value for node in nodes if isinstance(node.value, str))


def test_there_are_messages() -> None:
    assert len(MESSAGES) > 10


@pytest.mark.parametrize('message', MESSAGES)
def test_message(message: str) -> None:
    for part in message.split('...'):
        assert part in texts(), part
