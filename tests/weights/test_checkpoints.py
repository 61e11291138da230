"""Checkpoints of the legacy torch lineage: recognised in every layout, and the function they were trained as."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from random_model import images
from torch import Tensor, nn

import xception_hub
from xception_hub.errors import DamagedCheckpointError
from xception_hub.weights.checkpoints import recognise, to_legacy

CLASSES = 7
SIZES = [(299, 299), (224, 224), (150, 180)]


@pytest.fixture(scope='module')
def legacy_model(genuine_state_dict: dict[str, Tensor]) -> nn.Module:
    """timm's port with the genuine backbone and seven classes."""
    model = timm.create_model('legacy_xception', num_classes=CLASSES)
    model.load_state_dict(to_legacy(genuine_state_dict), strict=False)
    return model.eval()


@pytest.fixture(scope='module')
def legacy_state_dict(legacy_model: nn.Module) -> dict[str, Tensor]:
    return legacy_model.state_dict()


def flat(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The lineage's first file: two-dimensional pointwise weights."""
    return {name: tensor.flatten(1) if name.endswith('pointwise.weight') else tensor for name, tensor in state.items()}


def prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


def renamed(state: dict[str, Tensor], classifier: str) -> dict[str, Tensor]:
    return {name.replace('fc.', f'{classifier}.'): tensor for name, tensor in state.items()}


LAYOUTS = {
    'timm, tstandley': lambda state: state,
    'Cadene': lambda state: renamed(state, 'last_linear'),
    'first file': lambda state: flat(renamed(state, 'last_linear')),
    'FaceForensics++': lambda state: prefixed(renamed(state, 'last_linear.1'), 'model.'),
    'data parallel': lambda state: prefixed(state, 'module.'),
    'data parallel of a wrapper': lambda state: prefixed(renamed(state, 'last_linear'), 'module.model.'),
    'DeepfakeBench': lambda state: prefixed(renamed(state, 'last_linear'), 'backbone.'),
    'trainer': lambda state: dict(epoch=3, state_dict=prefixed(state, 'module.'), optimizer={}),
    'nested': lambda state: dict(model=state),
}


@pytest.mark.parametrize('layout', LAYOUTS)
def test_every_layout_loads(layout: str, legacy_state_dict: dict[str, Tensor], tmp_path: Path) -> None:
    """Bit-equal tensors, the head's size from the file, the numerics of the lineage."""
    torch.save(LAYOUTS[layout](legacy_state_dict), tmp_path / 'model.pth')
    model = xception_hub.from_checkpoint(tmp_path / 'model.pth')
    assert model.num_classes == CLASSES
    assert not model.training
    assert model.stem.bn1.eps == 1e-5
    assert model.entry_flow[0].stack.pool.symmetric
    back = to_legacy({k: v for k, v in model.state_dict().items() if not k.endswith('num_batches_tracked')})
    assert all(torch.equal(tensor, legacy_state_dict[name]) for name, tensor in back.items())
    assert len(back) == 236


@pytest.mark.parametrize('size', SIZES, ids=str)
def test_equals_timms_legacy_xception(size: tuple[int, int], legacy_model: nn.Module, tmp_path: Path) -> None:
    """Difference 0 in float64, at even and odd sizes."""
    safetensors.torch.save_file(legacy_model.state_dict(), tmp_path / 'model.safetensors')
    model = xception_hub.from_checkpoint(tmp_path / 'model.safetensors').double()
    x = images(*size).double()
    with torch.inference_mode():
        assert torch.equal(model(x), legacy_model.double()(x))
    legacy_model.float()


def test_own_layout(converted: Path) -> None:
    """A safetensors file of this package, of which the shapes tell the head."""
    model = xception_hub.from_checkpoint(converted / 'model.safetensors')
    assert (model.num_classes, model.head_hidden_size, model.stem.bn1.eps) == (6, 100, 1e-3)
    reloaded = timm.create_model(f'local-dir:{converted}', pretrained=True).eval()
    with torch.inference_mode():
        assert torch.equal(model(images(150, 150)), reloaded(images(150, 150)))


def test_arguments_replace_what_the_file_says(legacy_state_dict: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(legacy_state_dict, tmp_path / 'model.pth')
    model = xception_hub.from_checkpoint(tmp_path / 'model.pth', num_classes=3, bn_eps=1e-3, pool_padding='same')
    assert model.head.fc.weight.shape == (3, 2048)
    assert (model.stem.bn1.eps, model.entry_flow[0].stack.pool.symmetric) == (1e-3, False)


def test_headless(legacy_state_dict: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save({k: v for k, v in legacy_state_dict.items() if not k.startswith('fc.')}, tmp_path / 'model.pth')
    assert xception_hub.from_checkpoint(tmp_path / 'model.pth').num_classes == 0


def test_what_is_left_out_is_said(legacy_state_dict: dict[str, Tensor], tmp_path: Path) -> None:
    """DeepfakeBench saves a projection that its plain detector doesn't use."""
    state = {**legacy_state_dict, 'adjust_channel.0.weight': torch.zeros(512, 2048, 1, 1)}
    torch.save(prefixed(state, 'backbone.'), tmp_path / 'model.pth')
    with pytest.warns(UserWarning, match='left out backbone.adjust_channel.0.weight'):
        xception_hub.from_checkpoint(tmp_path / 'model.pth')


class Code:
    """Runs when it is unpickled carelessly."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self.marker,)


def save(path: Path, state: Any) -> Path:
    torch.save(state, path)
    return path


BAD = {
    'code': lambda state, path: save(path, {**state, 'fc.extra': Code(path.parent / 'marker')}),
    'text': lambda state, path: path.write_text('<html>404</html>'),
    'nothing': lambda state, path: path.write_bytes(b''),
    'truncated': lambda state, path: path.write_bytes(save(path, state).read_bytes()[:1_000_000]),
    'a list': lambda state, path: path.write_bytes(pickle.dumps([1, 2])),
    'another network': lambda state, path: save(path, {'layer1.0.conv1.weight': torch.zeros(1)}),
    'a layer is missing': lambda state, path: save(path, {k: v for k, v in state.items() if 'block5.rep.1.' not in k}),
    'a layer too many': lambda state, path: save(path, {**state, 'block13.rep.0.weight': torch.zeros(1)}),
    'two networks': lambda state, path: save(path, {**prefixed(state, 'a.'), **prefixed(state, 'b.')}),
    'another shape': lambda state, path: save(path, {**state, 'bn3.weight': torch.ones(5)}),
    'NaN': lambda state, path: save(path, {**state, 'bn3.weight': torch.full((1536,), float('nan'))}),
    'integers': lambda state, path: save(path, {**state, 'bn3.weight': torch.ones(1536, dtype=torch.int64)}),
}
SAYS = {
    'code': 'something other than tensors',
    'text': 'damaged',
    'nothing': 'damaged',
    'truncated': 'damaged',
    'a list': '(instead of a state dict|other than tensors)',
    'another network': 'no Xception.*layer1.0.conv1.weight',
    'a layer is missing': 'middle_flow.1.stack.conv1.conv_dw',
    'a layer too many': 'block13.rep.0.weight',
    'two networks': '2 networks, under a., b.',
    'another shape': r'exit_flow.1.stack.bn1.weight is \[5\]',
    'NaN': 'exit_flow.1.stack.bn1.weight holds NaN',
    'integers': 'int64',
}


@pytest.mark.parametrize('kind', BAD)
def test_bad_files(kind: str, legacy_state_dict: dict[str, Tensor], tmp_path: Path) -> None:
    """One clear error that names the file and what is wrong with it; no code runs."""
    path = tmp_path / 'model.pth'
    BAD[kind](legacy_state_dict, path)
    with pytest.raises(xception_hub.CheckpointError, match=SAYS[kind]) as error:
        xception_hub.from_checkpoint(path)
    assert 'model.pth' in str(error.value)
    assert not (tmp_path / 'marker').exists()


@pytest.mark.parametrize('content', [b'', b'\x08', b'\xff' * 64, b'\x02\0\0\0\0\0\0\0{}'])
def test_bad_safetensors(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / 'model.safetensors'
    path.write_bytes(content)
    with pytest.raises(xception_hub.CheckpointError, match='model.safetensors'):
        xception_hub.from_checkpoint(path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(xception_hub.CheckpointError, match='There is no file'):
        xception_hub.from_checkpoint(tmp_path / 'model.pth')


def test_truncated_safetensors(converted: Path, tmp_path: Path) -> None:
    path = tmp_path / 'model.safetensors'
    path.write_bytes((converted / 'model.safetensors').read_bytes()[:-1])
    with pytest.raises(DamagedCheckpointError, match='not a complete safetensors file'):
        xception_hub.from_checkpoint(path)


def test_recognise_does_not_touch_its_argument(legacy_state_dict: dict[str, Tensor]) -> None:
    before = dict(legacy_state_dict)
    recognise(legacy_state_dict)
    assert list(before) == list(legacy_state_dict)
