"""The genuine weights, made available in the ways in which users meet them, and a hub on this machine."""

import gc
import importlib.util
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import safetensors.torch
import torch
from filelock import FileLock
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / 'examples'), str(ROOT / 'tests' / 'support')]

from hub_server import HubServer
from patience import measure, patience

# a thread for each of pytest-xdist's processes, and for those that the tests start
if 'PYTEST_XDIST_WORKER' in os.environ:
    os.environ.setdefault('OMP_NUM_THREADS', '1')
    torch.set_num_threads(1)

# huggingface_hub reads these when it is imported; no test leaves this machine or meets the user's caches
TEMPORARY = tempfile.TemporaryDirectory()
HUB = HubServer(Path(TEMPORARY.name) / 'hub')
os.environ.update(
    HF_ENDPOINT=HUB.url,
    HF_HOME=f'{TEMPORARY.name}/hf',
    TORCH_HOME=f'{TEMPORARY.name}/torch',
    HF_HUB_DISABLE_PROGRESS_BARS='1',
    HF_HUB_DISABLE_TELEMETRY='1',
    HF_HUB_DISABLE_XET='1',
    KERAS_BACKEND='torch',
)
for name in ('XCEPTION_HUB_REPO', 'HF_TOKEN', 'HF_HUB_OFFLINE'):
    os.environ.pop(name, None)

from port_a_keras_model import Checkpoint, download

from benchmarks.checkpoints import to_legacy
from xception_hub.porting.port import Port, port


class Example(NamedTuple):
    """What examples/port_a_keras_model.py leaves."""

    directory: Path
    picture: Path
    printed: Path


@pytest.hookimpl(tryfirst=True)  # before pytest-timeout looks
def pytest_configure(config: pytest.Config) -> None:
    measure()
    config.option.timeout = patience(float(config.getini('timeout')))


def pytest_collection_finish() -> None:
    """What was imported stays: the garbage collector need not look at it again."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)  # before fixtures are made
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips a test whose packages are not there."""
    for mark in item.iter_markers('needs'):
        if missing := [name for name in mark.args if importlib.util.find_spec(name) is None]:
            pytest.skip(f"needs {', '.join(missing)}: pip install -e '.[test-all]'")


@pytest.fixture(scope='session')
def checkpoint() -> Checkpoint:
    """The public Keras checkpoint and its photos."""
    return download()


@pytest.fixture(scope='session')
def ported(checkpoint: Checkpoint) -> Port:
    """What the port reads from the checkpoint."""
    return port(checkpoint.model)


@pytest.fixture(scope='session')
def genuine_state_dict(ported: Port) -> dict[str, Tensor]:
    """The 234 tensors of the backbone that Keras publishes."""
    return {name: tensor for name, tensor in ported.tensors.items() if not name.startswith('head.')}


@pytest.fixture(scope='session')
def example(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Example:
    """The README's main job, done once for all processes."""
    root = tmp_path_factory.getbasetemp()
    folder = (root.parent if 'PYTEST_XDIST_WORKER' in os.environ else root) / 'example'
    made = Example(folder / 'kitchenware', folder / 'photos.png', folder / 'printed')
    with FileLock(f'{folder}.lock'):
        if not made.printed.exists():
            command = [sys.executable, ROOT / 'examples' / 'port_a_keras_model.py', '--output', made.directory]
            folder.mkdir(exist_ok=True)
            result = subprocess.run(command, cwd=folder, text=True, capture_output=True)
            assert result.returncode == 0, result.stderr
            (made.directory / made.picture.name).rename(made.picture)
            made.printed.write_text(result.stdout)
    return made


@pytest.fixture(scope='session')
def converted(example: Example) -> Path:
    """The directory that a conversion of the checkpoint writes, after it was verified."""
    return example.directory


@pytest.fixture(scope='session')
def imagenet_state_dict(genuine_state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """The genuine backbone with a stand-in for the 1000-class classifier, which no package ships."""
    generator = torch.Generator().manual_seed(0)
    classifier = {
        'head.fc.weight': torch.randn(1000, 2048, generator=generator) / 45,
        'head.fc.bias': torch.zeros(1000),
    }
    return {**genuine_state_dict, **classifier}


@pytest.fixture(scope='session')
def hub(imagenet_state_dict: dict[str, Tensor]) -> Iterator[HubServer]:
    """A hub that has the first source of the pretrained weights, in the layout it is known to have."""
    save_repository(HUB.root / 'smp-hub' / 'xception.imagenet', to_legacy(imagenet_state_dict))
    with HUB:
        yield HUB


def save_repository(folder: Path, tensors: dict[str, Tensor], **files: str) -> None:
    """Writes a repository's model.safetensors, and other files by name without suffix .json."""
    folder.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()}, folder / 'model.safetensors'
    )
    for name, text in files.items():
        (folder / f'{name}.json').write_text(text)
