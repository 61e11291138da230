"""torch.hub, through the zip file that GitHub would send and through a clone, without a network."""

import ast
import subprocess
from pathlib import Path

import pytest
import timm
import torch
from conftest import ROOT
from hub_server import HubServer
from random_model import images
from torch import Tensor

from benchmarks.checkpoints import to_legacy

REPOSITORY = 'owner/xception_hub:main'


@pytest.fixture
def github(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """torch.hub's archive link, answered by this machine with what git would archive, working tree included."""
    archive = tmp_path / 'archive.zip'
    commit = (
        subprocess.run(['git', 'stash', 'create'], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()
        or 'HEAD'
    )
    subprocess.run(['git', 'archive', '--prefix=xception_hub-main/', '-o', str(archive), commit], cwd=ROOT, check=True)
    monkeypatch.setattr('torch.hub._git_archive_link', lambda *args: archive.as_uri())
    monkeypatch.setattr('torch.hub._validate_not_a_forked_repo', lambda *args: None)
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    return REPOSITORY


def test_list(github: str) -> None:
    """The model, its variants and the loader of old checkpoints, and no helper beside them."""
    assert torch.hub.list(github, trust_repo=True, verbose=False) == [
        'from_checkpoint',
        *timm.list_models('xception_paper*'),
    ]


def test_help(github: str) -> None:
    assert '22,855,952 parameters' in torch.hub.help(github, 'xception_paper', trust_repo=True)
    assert 'numerics that it was trained with' in torch.hub.help(github, 'from_checkpoint', trust_repo=True)


def test_load(github: str, imagenet_state_dict: dict[str, Tensor]) -> None:
    model = torch.hub.load(github, 'xception_paper', pretrained=True, trust_repo=True, verbose=False)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in imagenet_state_dict.items())


@pytest.mark.filterwarnings("ignore:.*Assumed. global_pool='avg'")
def test_from_checkpoint(imagenet_state_dict: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(to_legacy(imagenet_state_dict), tmp_path / 'legacy.pth')
    model = torch.hub.load(str(ROOT), 'from_checkpoint', tmp_path / 'legacy.pth', source='local')
    with torch.inference_mode():
        assert model(images(71, 71)).shape == (1, 1000)


def test_hubconf_is_imports_only() -> None:
    docstring, dependencies, *imports = ast.parse((ROOT / 'hubconf.py').read_text()).body
    assert isinstance(docstring, ast.Expr)
    assert ast.unparse(dependencies).startswith('dependencies = [')
    assert imports and all(ast.unparse(line).startswith('from xception_hub.') for line in imports)
