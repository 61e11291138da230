"""`xception-hub doctor`: what a report of a bug says, wherever something is missing or broken."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from commands import call
from conftest import save_repository
from hub_server import HubServer
from torch import Tensor

from xception_hub import doctor
from xception_hub.cli import COMMANDS, main


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
    more = {'demo', 'export'}  # need what the extra test-all brings
    ready = {name for name, state in found['Commands'].items() if state == 'ready'}
    assert {*found['Commands']} == ready | more == {*COMMANDS}
    assert re.fullmatch(r'\d+[.\d]*', found['Packages']['h5py'])
    assert found['Pretrained weights']['~/weights'] == 'genuine: 234 of 234 tensors bit-identical'
    assert re.fullmatch(r'status \d+', found['Hub']['answer'])
    assert found['Hub']['huggingface_hub version'] == huggingface_hub.__version__
    assert found['Torch']['torch_version'] == torch.__version__


def test_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By command, with the pip command that brings it: of an installation that is too old and has no h5py."""
    folder = tmp_path / 'xception_hub-9.dist-info'
    folder.mkdir()
    needs = ('torch>=99', 'nothing; extra == "keras"', 'timm; extra == "finetune"')
    lines = ['Metadata-Version: 2.1', 'Name: xception-hub', 'Version: 9', *(f'Requires-Dist: {need}' for need in needs)]
    (folder / 'METADATA').write_text('\n'.join(lines))
    monkeypatch.syspath_prepend(tmp_path)
    found = doctor.commands()
    assert found['verify'] == dict(missing='torch>=99', remedy='pip install xception-hub')
    assert found['convert'] == dict(missing='torch>=99, nothing', remedy="pip install 'xception-hub[keras]'")
    assert found['finetune'] == dict(missing='torch>=99', remedy="pip install 'xception-hub[finetune]'")
    assert '- convert: missing: torch>=99, nothing. pip install' in call(main, 'doctor').stdout


def test_what_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that are none, a Hub that nobody answers for, a section that fails: the others are complete."""
    file = tmp_path / 'model.safetensors'
    file.write_text('no weights')
    monkeypatch.setenv('XCEPTION_HUB_REPO', str(file))
    monkeypatch.setattr(huggingface_hub.constants, 'ENDPOINT', 'http://anna:secret@127.0.0.1:9')
    monkeypatch.setitem(doctor.SECTIONS, 'Packages', lambda: 1 // 0)  # type: ignore[arg-type, return-value]
    found = report()
    assert found['Pretrained weights'][str(file)].startswith('BROKEN: DamagedCheckpointError: ')
    assert found['Hub']['answer'].startswith('NOT reachable: ConnectError')
    assert found['Hub']['ENDPOINT'] == 'http://***@127.0.0.1:9'
    assert found['Packages'].startswith('BROKEN: ZeroDivisionError: ')
