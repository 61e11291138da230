"""`xception-hub doctor`: what a report of a bug says, wherever something is missing or broken."""

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
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
    monkeypatch.setenv('HTTPS_PROXY', 'http://anna:never_to_be_seen@proxy:80')
    monkeypatch.setenv('XCEPTION_HUB_REPO', str(home / 'weights'))
    monkeypatch.setenv('KERAS_HOME', '/proc/never')
    monkeypatch.setenv('NO_PROXY', '*')
    found = report()
    text = json.dumps(found)
    assert 'never_to_be_seen' not in text and str(home) not in text
    more = {'demo', 'export'}  # need what the extra test-all brings
    ready = {name for name, state in found['Commands'].items() if state == 'ready'}
    assert {*found['Commands']} == ready | more == {*COMMANDS}
    assert re.fullmatch(r'\d+[.\d]*', found['Packages']['h5py'])
    assert found['Pretrained weights']['~/weights'] == 'genuine: 234 of 234 tensors bit-identical'
    assert re.fullmatch(r'status \d+ in \d+ ms', found['Hub']['answer']) and found['Hub']['token'] == 'found'
    assert found['Caches']['Keras'].startswith('/proc/never, not there yet, NOT writable (')
    assert found['Environment']['HTTPS_PROXY'] == 'http://***@proxy:80' and found['Environment']['HF_TOKEN'] == 'set'


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
    """A package that raises when it is imported, weights that are none, a Hub that nobody answers for."""
    (tmp_path / 'h5py.py').write_text('raise RuntimeError("a library\\nis not found")')
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.partition('.')[0] == 'h5py']:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setenv('XCEPTION_HUB_REPO', str(tmp_path / 'h5py.py'))
    monkeypatch.setattr(huggingface_hub.constants, 'ENDPOINT', 'http://anna:secret@127.0.0.1:9')
    assert re.fullmatch(r'[\d.]+, BROKEN: RuntimeError: a library is not found', doctor.import_error('h5py') or '')
    assert doctor.import_error('timm') is None
    found = report()
    assert found['Pretrained weights'][str(tmp_path / 'h5py.py')].startswith('BROKEN: DamagedCheckpointError: ')
    assert found['Hub']['answer'].startswith('NOT reachable: ConnectError')
    assert found['Hub']['endpoint'] == 'http://***@127.0.0.1:9'
    monkeypatch.setenv('HF_HUB_CACHE', 'no matter')
    monkeypatch.setattr(doctor, 'cache', lambda place: 1 // 0)
    assert report()['Caches'] == {'BROKEN': 'ZeroDivisionError: integer division or modulo by zero'}
