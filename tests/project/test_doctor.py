"""`xception-hub doctor`: a report for a bug, wherever something is missing or broken."""

import json
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


def report(*options: str) -> dict[str, Any]:
    result = call(main, 'doctor', '--json', *options)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_report(hub: HubServer, imagenet_state_dict: Mapping[str, Tensor], tmp_path: Path, monkeypatch: Any) -> None:
    """What is there, and what is genuine; no token, no password and no home folder."""
    home = tmp_path / 'anna'
    save_repository(home / 'weights', {**imagenet_state_dict})
    monkeypatch.setenv('HOME', str(home))
    monkeypatch.setenv('HF_TOKEN', 'hf_never_to_be_seen')
    monkeypatch.setenv('XCEPTION_HUB_REPO', str(home / 'weights'))
    monkeypatch.setenv('NO_PROXY', '*')
    found = report()
    text = json.dumps(found)
    assert 'never_to_be_seen' not in text and str(home) not in text
    assert re.search(r'h5py \d+[.\d]*', found['Extras']['xception-hub[keras]'])
    assert {'xception-hub', 'xception-hub[finetune]'} <= {*found['Extras']} and 'test' not in str([*found['Extras']])
    assert found['Engines']['pytorch'] == 'torch, on cpu and cuda'
    assert found['Pretrained weights']['~/weights'] == 'genuine: 234 of 234 tensors bit-identical'
    assert re.fullmatch(r'status \d+', found['Hub']['answer'])
    assert found['Hub']['huggingface_hub version'] == huggingface_hub.__version__
    assert found['Torch']['torch_version'] == torch.__version__


def test_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By extra, with the pip command that brings it: of an installation that is too old and lacks a package."""
    folder = tmp_path / 'xception_hub-9.dist-info'
    folder.mkdir()
    needs = ('torch>=99', 'nothing; extra == "keras"', 'timm; extra == "finetune"')
    lines = ['Metadata-Version: 2.1', 'Name: xception-hub', 'Version: 9', *(f'Requires-Dist: {need}' for need in needs)]
    lines += [f'Provides-Extra: {extra}' for extra in ('finetune', 'keras', 'test')]
    (folder / 'METADATA').write_text('\n'.join(lines))
    monkeypatch.syspath_prepend(tmp_path)
    assert doctor.extras() == {
        'xception-hub': "missing: torch>=99. pip install 'xception-hub'",
        'xception-hub[finetune]': f'timm {timm.__version__}',
        'xception-hub[keras]': "missing: nothing. pip install 'xception-hub[keras]'",
    }
    assert "- xception-hub[keras]: missing: nothing. pip install 'xception-hub[keras]'" in call(main, 'doctor').stdout


def test_what_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that are none, a Hub that nobody answers for, a section that fails: the others are complete."""
    file = tmp_path / 'model.safetensors'
    file.write_text('no weights')
    monkeypatch.setenv('XCEPTION_HUB_REPO', str(file))
    monkeypatch.setattr(huggingface_hub.constants, 'ENDPOINT', 'http://anna:secret@127.0.0.1:9')
    monkeypatch.setitem(doctor.SECTIONS, 'Extras', lambda: 1 // 0)  # type: ignore[arg-type, return-value]
    found = report()
    assert found['Pretrained weights'][str(file)].startswith('BROKEN: DamagedCheckpointError: ')
    assert found['Hub']['answer'].startswith('NOT reachable: ConnectError')
    assert found['Hub']['ENDPOINT'] == 'http://***@127.0.0.1:9'
    assert found['Extras'].startswith('BROKEN: ZeroDivisionError: ')
