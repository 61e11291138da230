"""timm's own model tests, of the installed version and unmodified, on the models of this package."""

import hashlib
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path
from xml.etree import ElementTree

import pytest
import timm
from hub_server import HubServer
from patience import patience
from timm_plugin import HARD_CODED, LEFT_OUT

ROOT = Path(__file__).resolve().parents[2]
CACHE = Path(os.environ.get('XDG_CACHE_HOME', '~/.cache')).expanduser() / 'xception_hub'
SDIST = f'timm-{timm.__version__}'
SHA256 = {'timm-1.0.31': 'baa0b333339c46d3d6d4965d99b69f5053afed71210e8f433d7ea5ee6a18f0ec'}
TIMM_FILES = ('tests/test_models.py', 'pyproject.toml')

# timm 1.0.31: tests on all models, those on pretrained ones, and those of `HARD_CODED` with their parameters.
WITHOUT_NAME = 'test_feature_hook_net_grad_checkpointing_order'
MIN_PASSED = 21  # on each model
OTHER_THAN_PASSED = ('failure', 'error', 'skipped')
TIMEOUT = patience(900)
VARIANTS = [name for name in timm.list_models(module='xception_paper') if name != 'xception_paper']


def timm_sdist() -> Path:
    """timm's source distribution, from the cache or from pip: the wheel has no tests."""
    path = CACHE / f'{SDIST}.tar.gz'
    if not path.is_file():
        options = f'-m pip download --quiet --no-deps --no-binary timm timm=={timm.__version__} --dest'
        subprocess.run([sys.executable, *options.split(), CACHE], check=True)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    assert sha256 == SHA256.get(SDIST, sha256), f'{path} has sha256 {sha256}; delete it.'
    return path


def environment(hub: HubServer, folder: Path, names: list[str]) -> dict[str, str]:
    """Ours, without what changes the sources or, as GITHUB_ACTIONS does in timm's file, the selection of tests."""
    left_out = ('GITHUB_', 'HF_', 'PYTEST_', 'XCEPTION_HUB_')
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith(left_out)},
        'PYTHONPATH': os.pathsep.join([str(ROOT), str(ROOT / 'tests' / 'support')]),
        'TIMM_PLUGIN_MODELS': ','.join(names),
        'HF_ENDPOINT': hub.url,
        'HF_HOME': str(folder / 'hf'),
        'TORCH_HOME': str(folder / 'torch'),
    }


@pytest.mark.timeout(TIMEOUT + 60)
@pytest.mark.parametrize('names', [['xception_paper'], pytest.param(VARIANTS, marks=pytest.mark.slow)], ids=len)
def test_timm_accepts(names: list[str], hub: HubServer, tmp_path: Path) -> None:
    """Every test passes and none is skipped, with weights from the local hub; a fallback's warning is an error."""
    with tarfile.open(timm_sdist()) as sdist:
        for file in TIMM_FILES:
            safe = {'filter': 'data'} if hasattr(tarfile, 'data_filter') else {}
            sdist.extract(f'{SDIST}/{file}', tmp_path, **safe)
    before, folder = len(hub.requests), tmp_path / SDIST
    options = '-m pytest -q -p timm_plugin -p no:cacheprovider -W error::UserWarning --junitxml=report.xml'
    process = subprocess.run(
        [sys.executable, *options.split(), TIMM_FILES[0]],
        cwd=folder,
        env=environment(hub, tmp_path, names),
        timeout=TIMEOUT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert process.returncode == 0, process.stdout
    cases = list(ElementTree.parse(folder / 'report.xml').iter('testcase'))
    assert not [case.get('name') for case in cases if any(child.tag in OTHER_THAN_PASSED for child in case)]
    for name in names:
        found = [case.get('name', '') for case in cases if re.search(rf'\b{name}\b', case.get('name', ''))]
        assert len(found) >= MIN_PASSED
        # the tests whose models timm names in its file ran on this one
        ran = {case.partition('[')[0] for case in found}
        assert {test for test in HARD_CODED if test != WITHOUT_NAME} - ran == {
            t for t in LEFT_OUT if LEFT_OUT[t] == name
        }
        # and what timm's tests of pretrained models loaded is what the hub served
        if timm.models.is_model_pretrained(name):
            repo, _, revision = timm.get_pretrained_cfg(name).hf_hub_id.partition('@')
            assert ('GET', f'/{repo}/resolve/{revision}/model.safetensors') in hub.requests[before:]
