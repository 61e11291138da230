"""The genuine weights, made available in the ways in which users meet them."""
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / 'examples')]

from hub_server import HubServer  # noqa: E402
from port_a_keras_model import CLASS_NAMES, PREPROCESSING, Checkpoint, download  # noqa: E402

from conversion.convert import convert  # noqa: E402
from conversion.port import Port, port  # noqa: E402
from xception_hub.checkpoints import LEGACY_NAMES  # noqa: E402


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
def converted(ported: Port, checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory that a conversion of the checkpoint writes, after it was verified."""
    directory = tmp_path_factory.mktemp('converted') / 'kitchenware'
    convert(ported, directory, PREPROCESSING, CLASS_NAMES, checkpoint.photos)
    return directory


def legacy_layout(tensors: dict[str, Tensor], classifier: str = 'fc') -> dict[str, Tensor]:
    """Tensors under the names of the legacy lineage."""
    names = {ours: legacy for legacy, ours in LEGACY_NAMES.items()}
    names['head.fc'] = classifier
    split = {name: name.rpartition('.') for name in tensors}
    return {f'{names[layer]}.{kind}': tensors[name] for name, (layer, _, kind) in split.items()}


@pytest.fixture(scope='session')
def imagenet_state_dict(genuine_state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """The genuine backbone with a stand-in for the 1000-class classifier, which no package ships."""
    generator = torch.Generator().manual_seed(0)
    classifier = {
        'head.fc.weight': torch.randn(1000, 2048, generator=generator) / 45,
        'head.fc.bias': torch.zeros(1000)}
    return {**genuine_state_dict, **classifier}


@pytest.fixture(scope='session')
def hub_root(imagenet_state_dict: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Repositories for a hub server: the first source of the pretrained weights, in the layout it is known to have."""
    root = tmp_path_factory.mktemp('hub')
    repository = root / 'smp-hub' / 'xception.imagenet'
    repository.mkdir(parents=True)
    safetensors.torch.save_file(legacy_layout(imagenet_state_dict), repository / 'model.safetensors')
    return root


@pytest.fixture(scope='session')
def hub(hub_root: Path) -> Iterator[HubServer]:
    """A hub that has the first source of the pretrained weights."""
    with HubServer(hub_root) as server:
        yield server
