"""timm's own model tests, of the installed version and unmodified, on the models of this package."""

import hashlib
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import pytest
import timm
from hub_server import HubServer
from timm_plugin import HARD_CODED

ROOT = Path(__file__).resolve().parents[2]
CACHE = Path(os.environ.get('XDG_CACHE_HOME', '~/.cache')).expanduser() / 'xception_hub'
SDIST = f'timm-{timm.__version__}'
SHA256 = {'timm-1.0.31': 'baa0b333339c46d3d6d4965d99b69f5053afed71210e8f433d7ea5ee6a18f0ec'}
TIMM_FILES = ('tests/test_models.py', 'pyproject.toml')

# timm 1.0.31: 13 tests on all models, and those of `HARD_CODED` with their parameters.
MIN_PASSED = 25
TIMEOUT = 900  # seconds


def timm_sdist() -> Path:
    """timm's source distribution, from the cache or from pip: the wheel has no tests."""
    path = CACHE / f'{SDIST}.tar.gz'
    if not path.is_file():
        subprocess.run(
            [
                sys.executable,
                '-m',
                'pip',
                'download',
                '--quiet',
                '--no-deps',
                '--no-binary',
                'timm',
                '--dest',
                str(CACHE),
                f'timm=={timm.__version__}',
            ],
            check=True,
        )
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    assert sha256 == SHA256.get(SDIST, sha256), f'{path} has sha256 {sha256}; delete it.'
    return path


class Run(NamedTuple):
    """What timm's tests did, and what they asked the hub for."""

    cases: list[ElementTree.Element]
    requests: list[tuple[str, str]]


def environment(hub: HubServer, folder: Path) -> dict[str, str]:
    """Ours, without what changes the sources or, as GITHUB_ACTIONS does in timm's file, the selection of tests."""
    left_out = ('GITHUB_', 'HF_', 'PYTEST_', 'XCEPTION_HUB_')
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith(left_out)},
        'PYTHONPATH': os.pathsep.join([str(ROOT), str(ROOT / 'tests')]),
        'HF_ENDPOINT': hub.url,
        'HF_HOME': str(folder / 'hf'),
        'TORCH_HOME': str(folder / 'torch'),
    }


@pytest.fixture(scope='module')
def run(hub: HubServer, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """timm's file in a process of its own, with weights from the local hub; a fallback's warning is an error."""
    folder = tmp_path_factory.mktemp('timm')
    with tarfile.open(timm_sdist()) as sdist:
        for name in TIMM_FILES:
            sdist.extract(f'{SDIST}/{name}', folder, **({'filter': 'data'} if hasattr(tarfile, 'data_filter') else {}))
    before = len(hub.requests)
    process = subprocess.run(
        [
            sys.executable,
            '-m',
            'pytest',
            '-q',
            '-p',
            'timm_plugin',
            '-p',
            'no:cacheprovider',
            '-W',
            'error::UserWarning',
            '--junitxml=report.xml',
            TIMM_FILES[0],
        ],
        cwd=folder / SDIST,
        env=environment(hub, folder),
        timeout=TIMEOUT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert process.returncode == 0, process.stdout
    return Run(list(ElementTree.parse(folder / SDIST / 'report.xml').iter('testcase')), hub.requests[before:])


@pytest.mark.timeout(TIMEOUT + 60)
def test_timm_accepts_the_models(run: Run) -> None:
    """Every test passed and none was skipped."""
    not_passed = {
        case.get('name') for case in run.cases if any(child.tag in ('failure', 'error', 'skipped') for child in case)
    }
    assert not_passed == set()
    assert len(run.cases) >= MIN_PASSED


@pytest.mark.parametrize('name', HARD_CODED)
def test_hard_coded_test_ran(name: str, run: Run) -> None:
    """The tests whose models timm names in its file ran on ours."""
    assert name in {case.get('name', '').partition('[')[0] for case in run.cases}


def test_weights_came_from_the_hub(run: Run) -> None:
    """What timm's tests of pretrained models loaded is what the hub served."""
    repo, _, revision = timm.get_pretrained_cfg('xception_paper').hf_hub_id.partition('@')
    assert ('GET', f'/{repo}/resolve/{revision}/model.safetensors') in run.requests
