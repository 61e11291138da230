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
from patience import patience

ROOT = Path(__file__).resolve().parents[2]
CACHE = Path(os.environ.get('XDG_CACHE_HOME', '~/.cache')).expanduser() / 'xception_hub'
SDIST = f'timm-{timm.__version__}'
SHA256 = {'timm-1.0.31': 'baa0b333339c46d3d6d4965d99b69f5053afed71210e8f433d7ea5ee6a18f0ec'}
TIMM_FILES = ('tests/test_models.py', 'pyproject.toml')

# timm 1.0.31: tests on all models, those on pretrained ones, and those of `HARD_CODED` with their parameters.
MIN_PASSED = 22
TIMEOUT = patience(900)
HARD_CODED = {
    'test_reset_classifier_keeps_pool',
    'test_features_only_grad_checkpointing_backward',
    'test_feature_hook_net_grad_checkpointing_order',
    'test_model_features_output_stride',
    'test_feature_getter_stage_ends_torchscript',
    'test_prune_intermediate_layers_params_used',
    'test_head_hidden_size',
    'test_forward_after_prune_intermediate_layers',
    'test_prune_intermediate_layers_last_feature',
    'test_prune_to_stem_feature',
}
LEFT_OUT = {  # see timm_plugin.py for the reasons
    'xception_paper_no_residual': {'test_reset_classifier_keeps_pool'},
    'xception_paper_pyramid': {'test_feature_getter_stage_ends_torchscript'},
}
VARIANTS = [name for name in timm.list_models(module='xception_paper') if name != 'xception_paper']


def timm_sdist() -> Path:
    """timm's source distribution, from the cache or from pip: the wheel has no tests."""
    path = CACHE / f'{SDIST}.tar.gz'
    if not path.is_file():
        subprocess.run(
            [
                *(sys.executable, '-m', 'pip', 'download', '--quiet', '--no-deps', '--no-binary', 'timm'),
                *('--dest', str(CACHE), f'timm=={timm.__version__}'),
            ],
            check=True,
        )
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    assert sha256 == SHA256.get(SDIST, sha256), f'{path} has sha256 {sha256}; delete it.'
    return path


class Run(NamedTuple):
    """What timm's tests did, and what they asked the hub for."""

    model: str
    cases: list[ElementTree.Element]
    requests: list[tuple[str, str]]


def environment(hub: HubServer, folder: Path, model: str) -> dict[str, str]:
    """Ours, without what changes the sources or, as GITHUB_ACTIONS does in timm's file, the selection of tests."""
    left_out = ('GITHUB_', 'HF_', 'PYTEST_', 'XCEPTION_HUB_')
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith(left_out)},
        'PYTHONPATH': os.pathsep.join([str(ROOT), str(ROOT / 'tests' / 'support')]),
        'TIMM_PLUGIN_MODEL': model,
        'HF_ENDPOINT': hub.url,
        'HF_HOME': str(folder / 'hf'),
        'TORCH_HOME': str(folder / 'torch'),
    }


@pytest.fixture(
    scope='module', params=['xception_paper', *(pytest.param(name, marks=pytest.mark.slow) for name in VARIANTS)]
)
def run(request: pytest.FixtureRequest, hub: HubServer, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """timm's file in a process of its own, with weights from the local hub; a fallback's warning is an error."""
    folder = tmp_path_factory.mktemp('timm')
    with tarfile.open(timm_sdist()) as sdist:
        for name in TIMM_FILES:
            sdist.extract(f'{SDIST}/{name}', folder, **({'filter': 'data'} if hasattr(tarfile, 'data_filter') else {}))
    before = len(hub.requests)
    process = subprocess.run(
        [
            *(sys.executable, '-m', 'pytest', '-q', '-p', 'timm_plugin', '-p', 'no:cacheprovider'),
            *('-W', 'error::UserWarning', '--junitxml=report.xml', TIMM_FILES[0]),
        ],
        cwd=folder / SDIST,
        env=environment(hub, folder, request.param),
        timeout=TIMEOUT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert process.returncode == 0, process.stdout
    return Run(
        request.param, list(ElementTree.parse(folder / SDIST / 'report.xml').iter('testcase')), hub.requests[before:]
    )


@pytest.mark.timeout(TIMEOUT + 60)
def test_timm_accepts_the_models(run: Run) -> None:
    """Every test passed and none was skipped."""
    not_passed = {
        case.get('name') for case in run.cases if any(child.tag in ('failure', 'error', 'skipped') for child in case)
    }
    assert not_passed == set()
    assert len(run.cases) >= MIN_PASSED


def test_hard_coded_tests_ran(run: Run) -> None:
    """The tests whose models timm names in its file ran on ours."""
    ran = {case.get('name', '').partition('[')[0] for case in run.cases}
    assert HARD_CODED - ran == LEFT_OUT.get(run.model, set())


def test_weights_came_from_the_hub(run: Run) -> None:
    """What timm's tests of pretrained models loaded is what the hub served."""
    if timm.models.is_model_pretrained(run.model):
        repo, _, revision = timm.get_pretrained_cfg(run.model).hf_hub_id.partition('@')
        assert ('GET', f'/{repo}/resolve/{revision}/model.safetensors') in run.requests
