"""`xception-hub` and `python -m xception_hub`."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from commands import call
from conftest import ROOT, save_repository
from hub_server import HubServer
from torch import Tensor

from xception_hub.__main__ import app


def test_verify_genuine(converted: Path) -> None:
    """As a process."""
    result = subprocess.run(
        [sys.executable, '-m', 'xception_hub', 'verify', converted], cwd=ROOT, text=True, capture_output=True
    )
    assert result.returncode == 0, result.stderr
    assert re.search(r'^ +234 +bit-identical$', result.stdout, re.MULTILINE)
    assert 'not verified: the classifier' in result.stdout


def test_verify_on_the_hub(hub: HubServer) -> None:
    assert call(app, 'verify', 'smp-hub/xception.imagenet').returncode == 0


def test_verify_other_weights(imagenet_state_dict: dict[str, Tensor], tmp_path: Path) -> None:
    save_repository(tmp_path, {**imagenet_state_dict, 'stem.bn1.bias': imagenet_state_dict['stem.bn1.bias'] + 1})
    result = call(app, 'verify', tmp_path / 'model.safetensors')
    assert result.returncode == 1
    assert re.search(r'^ +1 +different: stem.bn1.bias', result.stdout, re.MULTILINE)


@pytest.mark.parametrize('source', ['nowhere/model.safetensors', 'org/nothing', str(ROOT / 'README.md')])
def test_verify_what_is_no_checkpoint(source: str, hub: HubServer) -> None:
    result = call(app, 'verify', source)
    assert result.returncode == 1
    assert result.stderr.startswith(f'error: {source}: ')


def test_help_and_version() -> None:
    text = call(app, '--help').stdout
    assert 'verify' in text and '--install-completion' in text
    assert re.fullmatch(r'\d+\.\d+\.\d+', call(app, '--version').stdout.strip())


def test_import_is_light() -> None:
    """Importing the package brings in nothing that timm does not, beside its own modules."""
    code = 'import sys, timm; before = set(sys.modules); import xception_hub; print(*set(sys.modules) - before)'
    result = subprocess.run([sys.executable, '-c', code], cwd=ROOT, text=True, capture_output=True, check=True)
    roots = {name.partition('.')[0] for name in result.stdout.split()}
    assert roots.isdisjoint({'cyclopts', 'rich', 'keras', 'h5py', 'conversion', 'accelerate', 'datasets'})
