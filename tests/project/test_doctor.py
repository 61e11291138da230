"""`xception-hub doctor`: a report for a bug, wherever something is missing or broken."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import timm
import torch
from commands import call
from conftest import save_repository
from hub_server import HubServer
from torch import Tensor

from xception_hub import doctor
from xception_hub.cli import main


def report() -> str:
    result = call(main, 'doctor')
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_report(hub: HubServer, imagenet_state_dict: Mapping[str, Tensor], tmp_path: Path, monkeypatch: Any) -> None:
    """What is there, and what is genuine; no token, no password, no home folder, and nothing is downloaded."""
    home = tmp_path / 'anna'
    save_repository(home / 'weights', {**imagenet_state_dict})
    monkeypatch.setenv('HOME', str(home))
    monkeypatch.setenv('HF_TOKEN', 'hf_never_to_be_seen')
    monkeypatch.setenv('XCEPTION_HUB_REPO', str(home / 'weights'))
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    hub.requests.clear()
    text = report()
    assert 'never_to_be_seen' not in text and str(home) not in text
    assert not [path for _, path in hub.requests if 'resolve' in path]
    for line in (
        r'- xception-hub\[keras\]: h5py \d+[.\d]*, .*',
        r'- pytorch: torch, on cpu and cuda',
        r'- ~/weights: genuine: 234 of 234 tensors bit-identical',
        r'- smp-hub/.*: not on this machine; it is downloaded when it is used',
        r'- https://github.com/.*\.pth: not on this machine; it is downloaded when it is used',
        f'- huggingface_hub version: {huggingface_hub.__version__}',
        f'- torch_version: {re.escape(torch.__version__)}',
    ):
        assert re.search(f'^{line}$', text, re.MULTILINE), line


def test_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By extra, with the pip command that brings it: of an installation that is too old and lacks a package."""
    folder = tmp_path / 'xception_hub-9.dist-info'
    folder.mkdir()
    needs = ('torch>=99', 'nothing; extra == "keras"', 'timm; extra == "finetune"')
    lines = ['Metadata-Version: 2.1', 'Name: xception-hub', 'Version: 9', *(f'Requires-Dist: {need}' for need in needs)]
    lines += [f'Provides-Extra: {extra}' for extra in ('finetune', 'keras', 'test')]
    (folder / 'METADATA').write_text('\n'.join(lines))
    monkeypatch.syspath_prepend(tmp_path)
    found = doctor.extras()
    assert found.pop('version')
    assert found == {
        'xception-hub': "missing: torch>=99. pip install 'xception-hub'",
        'xception-hub[finetune]': f'timm {timm.__version__}',
        'xception-hub[keras]': "missing: nothing. pip install 'xception-hub[keras]'",
    }


def test_what_is_broken(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that are none, an address with a password, a section that fails: the others are complete."""
    file = tmp_path / 'model.safetensors'
    file.write_text('no weights')
    monkeypatch.setenv('XCEPTION_HUB_REPO', str(file))
    monkeypatch.setattr(huggingface_hub.constants, 'ENDPOINT', 'http://anna:secret@127.0.0.1:9')
    monkeypatch.setitem(doctor.SECTIONS, 'Packages', lambda: 1 // 0)  # type: ignore[arg-type, return-value]
    text = report()
    assert f'- {file}: BROKEN: DamagedCheckpointError: ' in text
    assert '- ENDPOINT: http://***@127.0.0.1:9\n' in text and '\n- Packages: BROKEN: ZeroDivisionError: ' in text
