"""Checkpoints of the legacy torch lineage: recognised in every layout, and the function they were trained as."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from conftest import ROOT
from random_model import images, random_model
from timm.models import save_for_hf
from torch import Tensor, nn

import xception_hub
from benchmarks.checkpoints import KINDS, Kind, TransferModel, deep_head, difference, smp, to_legacy, trained
from xception_hub.directory.write import write_model

CLASSES = 7
# of a state dict alone nobody knows the pooling; all other assumptions are errors where no test expects them
pytestmark = pytest.mark.filterwarnings(r"ignore:.*Assumed. global_pool='avg'\.$")


@pytest.fixture(scope='module')
def legacy_model(genuine_state_dict: dict[str, Tensor]) -> nn.Module:
    """timm's port with the genuine backbone and seven classes."""
    model = timm.create_model('legacy_xception', num_classes=CLASSES)
    model.load_state_dict(to_legacy(genuine_state_dict), strict=False)
    return model.eval()


@pytest.fixture(scope='module')
def legacy_state_dict(legacy_model: nn.Module) -> dict[str, Tensor]:
    return legacy_model.state_dict()


def prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


@pytest.fixture(scope='module')
def random_legacy() -> nn.Module:
    return trained()


NEEDED = {  # of the extra test-all
    'pytorchcv': ['pytorchcv'],
    'segmentation_models_pytorch: the features': ['segmentation_models_pytorch'],
    'its encoder alone': ['segmentation_models_pytorch'],
    'pytorchcv within Sequentials': ['pytorchcv'],
}


@pytest.mark.filterwarnings(
    'ignore:.*left out', 'ignore:.*Assumed', 'ignore:.*torch.jit', 'ignore:.*quantized', 'ignore:.*ends in'
)
@pytest.mark.parametrize(
    'kind',
    [
        pytest.param(kind, id=kind.name, marks=[pytest.mark.needs(name) for name in NEEDED.get(kind.name, [])])
        for kind in KINDS
    ],
)
def test_every_kind(kind: Kind, random_legacy: nn.Module, tmp_path: Path) -> None:
    """Exactly the function that was saved, or the reason why not; docs/old_checkpoints.md has the table."""
    sizes = (299, 150) if kind is KINDS[0] else (96,)
    found = difference(kind, random_legacy, tmp_path, sizes)
    if kind.arguments or not kind.refused:
        assert float(found.partition(';')[0]) <= kind.rounding
    else:
        assert found.startswith('refused')
    what = kind.name if not kind.arguments else '`' + ', '.join(f'{k}={v!r}' for k, v in kind.arguments.items()) + '`'
    assert what in (ROOT / 'docs' / 'old_checkpoints.md').read_text()


def test_tensors_of_this_network_alone(tmp_path: Path) -> None:
    """The shapes give the head; the numerics are those of Keras, which a warning says."""
    model = random_model(num_classes=3, fc_widths=[8]).eval()
    safetensors.torch.save_file(model.state_dict(), tmp_path / 'bare.safetensors')
    with pytest.warns(UserWarning, match='Assumed: the numerics of Keras, bn_eps=0.001'):
        read = xception_hub.from_checkpoint(tmp_path / 'bare.safetensors')
    with torch.inference_mode():
        assert torch.equal(read(images(96, 107)), model(images(96, 107)))


def test_arguments_replace_what_the_file_says(legacy_state_dict: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(legacy_state_dict, tmp_path / 'model.pth')
    with pytest.warns(UserWarning, match='new one of 3 starts at random'):
        model = xception_hub.from_checkpoint(
            tmp_path / 'model.pth', num_classes=3, in_chans=1, bn_eps=1e-3, pool_padding='same'
        )
    assert (model.head.fc.weight.shape, model.stem.conv1.weight.shape) == ((3, 2048), (32, 1, 3, 3))
    assert (model.stem.bn1.eps, model.entry_flow[0].stack.pool.symmetric) == (1e-3, False)


def test_headless(legacy_state_dict: dict[str, Tensor], tmp_path: Path) -> None:
    """Keras' own backbone has no padding; of another nobody knows, except who trained it."""
    backbone = {k: v for k, v in legacy_state_dict.items() if not k.startswith('fc.')}
    assert xception_hub.from_checkpoint(save(tmp_path / 'model.pth', backbone)).num_classes == 0
    trained_on = save(tmp_path / 'model.pth', {**backbone, 'bn4.bias': torch.zeros(2048)})
    with pytest.raises(xception_hub.CheckpointError, match='Pass stem_padding=1 .* else stem_padding=0'):
        xception_hub.from_checkpoint(trained_on)
    for padding in (0, 1):
        assert xception_hub.from_checkpoint(trained_on, stem_padding=padding).stem.conv2.padding == (padding, padding)
    encoder = save(tmp_path / 'model.pth', prefixed({**legacy_state_dict, 'bn4.bias': torch.zeros(2048)}, 'encoder.'))
    assert xception_hub.from_checkpoint(encoder).stem.conv2.padding == (0, 0)  # it has its own classifier
    separate = {**prefixed({**backbone, 'bn4.bias': torch.zeros(2048)}, 'encoder.'), 'fc.weight': torch.ones(2, 2048)}
    with pytest.raises(xception_hub.CheckpointError, match='Pass stem_padding=1'):
        xception_hub.from_checkpoint(save(tmp_path / 'model.pth', separate))


class Code:
    """Runs when it is unpickled carelessly."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self.marker,)


def save(path: Path, state: Any) -> Path:
    torch.save(state, path)
    return path


# kind -> what writes it, and what the message names; tests/test_file_kinds.py has files of other kinds
BAD: dict[str, tuple[Callable[[dict[str, Tensor], Path], Any], str]] = {
    'code': (lambda state, path: {**state, 'fc.extra': Code(path.parent / 'marker')}, 'nothing in it was run'),
    'another network': (lambda state, _: {'layer1.0.conv1.weight': torch.zeros(1)}, r'no Xception.*layer1\.0\.conv1'),
    'a layer is missing': (
        lambda state, _: {name: tensor for name, tensor in state.items() if 'block5.rep.1.' not in name},
        'middle_flow.1.stack.conv1.conv_dw',
    ),
    'a layer too many': (lambda state, _: {**state, 'block13.rep.0.weight': torch.zeros(1)}, 'block13.rep.0.weight'),
    'two networks': (
        lambda state, _: {**prefixed(state, 'a.'), **prefixed(state, 'b.')}, r"2 networks, under 'a\.', 'b\.'.*prefix="
    ),
    'another shape': (lambda state, _: {**state, 'bn3.weight': torch.ones(5)}, r'stack.bn1.weight is \[5\]'),
    'NaN': (
        lambda state, _: {**state, 'bn3.weight': torch.full((1536,), float('nan'))},
        'exit_flow.1.stack.bn1.weight holds NaN',
    ),
    'integers': (lambda state, _: {**state, 'bn3.weight': torch.ones(1536, dtype=torch.int64)}, 'int64'),
}  # fmt: skip


@pytest.mark.parametrize('kind', [*BAD, 'truncated'])
def test_bad_files(kind: str, legacy_state_dict: dict[str, Tensor], tmp_path: Path) -> None:
    """One clear error that names the file and what is wrong with it; no code runs."""
    path = tmp_path / 'model.pth'
    change, named = BAD.get(kind, (lambda state, _: state, 'is truncated'))
    save(path, change(legacy_state_dict, path))
    if kind == 'truncated':
        path.write_bytes(path.read_bytes()[:1_000_000])
    with pytest.raises(xception_hub.CheckpointError, match=named) as error:
        xception_hub.from_checkpoint(path)
    assert 'model.pth' in str(error.value)
    assert not (tmp_path / 'marker').exists()


# What the tensors compute travels with them

ARGUMENTS = {
    'legacy': dict(bn_eps=1e-5, pool_padding='symmetric'),
    'mid_act_layer': dict(mid_act_layer='relu'),
    'act_layer': dict(act_layer='silu'),
    'pooling': dict(global_pool='max'),
    'output_stride': dict(output_stride=16),
    'residual': dict(residual=False),
    'order': dict(order='pointwise_first'),
    'head': dict(head_layers=[{'fc': 8}, {'act': 'tanh'}]),
}
WAYS = {
    'state dict': lambda model, folder: save(folder / 'state.pth', model.state_dict()),
    'state dict, old format': lambda model, folder: save_old(folder / 'state.pth', model.state_dict()),
    'wrapped': lambda model, folder: save(folder / 'state.pth', dict(epoch=1, net=nn.DataParallel(model).state_dict())),
    'module': lambda model, folder: save(folder / 'whole.pt', model),
    'directory': lambda model, folder: save_directory(folder, model),
    'safetensors alone': lambda model, folder: save_safetensors(folder, model),
    'safetensors of one': lambda model, folder: save_directory(folder, model) / 'model.safetensors',
}


def save_old(path: Path, state: Any) -> Path:
    torch.save(state, path, _use_new_zipfile_serialization=False)
    return path


def save_safetensors(folder: Path, model: nn.Module) -> Path:
    """The weights of a directory of this project, away from its config.json."""
    (folder / 'model').mkdir()
    write_model(folder / 'model', model, {}, {})
    return (folder / 'model' / 'model.safetensors').rename(folder / 'weights.safetensors')


def save_directory(folder: Path, model: nn.Module) -> Path:
    save_for_hf(model, folder / 'model', safe_serialization=True)
    return folder / 'model'


@pytest.mark.parametrize(
    ('kind', 'way'),
    [  # all kinds in one way, and all ways of one kind, are fast
        pytest.param(kind, way, marks=[pytest.mark.slow] * (kind != 'legacy' and way != 'state dict'))
        for kind in ARGUMENTS
        for way in WAYS
    ],
)
def test_round_trip(kind: str, way: str, tmp_path: Path) -> None:
    """The function is the same, in float64, however a network is kept."""
    arguments = dict(ARGUMENTS[kind], num_classes=5, width_multiplier=0.25)
    model = timm.create_model('xception_paper', **arguments).eval()
    model.load_state_dict(random_model(**arguments).state_dict())
    path = WAYS[way](model, tmp_path)
    if path.is_dir():
        read = timm.create_model(f'local-dir:{path}', pretrained=True).eval()
    else:
        read = xception_hub.from_checkpoint(path)
    x = images(96, 107).double()
    with torch.inference_mode():
        assert torch.equal(read.double()(x), model.double()(x))


def test_named_tensors_with_other_numerics(legacy_state_dict: dict[str, Tensor], tmp_path: Path) -> None:
    model = xception_hub.from_checkpoint(save(tmp_path / 'old.pth', legacy_state_dict))
    overlay = dict(state_dict=model.state_dict(), num_classes=CLASSES)
    with pytest.raises(xception_hub.WeightsError, match=r'Its metadata says bn_eps=1e-05'):
        timm.create_model('xception_paper', pretrained=True, num_classes=CLASSES, pretrained_cfg_overlay=overlay)


def test_provenance_and_features(legacy_model: nn.Module, tmp_path: Path) -> None:
    """The config of a model from an old file names neither Keras' weights nor their licence."""
    model = xception_hub.from_checkpoint(save(tmp_path / 'model.pth', legacy_model.state_dict()))
    with pytest.warns(UserWarning, match='left out'):
        maps = xception_hub.from_checkpoint(tmp_path / 'model.pth', features_only=True)
    for found in (model.pretrained_cfg, maps.pretrained_cfg):
        assert not any(found.get(name) for name in ('tag', 'license', 'hf_hub_id', 'url', 'origin_url'))
        assert 'assumed' in found['notes'][0]
    with torch.inference_mode():
        assert torch.equal(maps(images(150, 150))[-1], legacy_model.forward_features(images(150, 150)))


# Containers, and several of a kind


def test_averages(legacy_state_dict: dict[str, Tensor], tmp_path: Path) -> None:
    """The raw weights are taken, and it is said how to take the others."""
    other = {name: tensor + 1 for name, tensor in legacy_state_dict.items()}
    path = save(tmp_path / 'model.pth', {'state_dict': legacy_state_dict, 'state_dict_ema': other})
    with pytest.warns(UserWarning, match="prefix='state_dict_ema.' takes it"):
        model = xception_hub.from_checkpoint(path)
    assert torch.equal(model.head.fc.weight, legacy_state_dict['fc.weight'])
    with pytest.warns(UserWarning, match="prefix='state_dict.' takes it"):
        model = xception_hub.from_checkpoint(path, prefix='state_dict_ema')
    assert torch.equal(model.head.fc.weight, other['fc.weight'])
    with pytest.raises(xception_hub.CheckpointError, match="'state_dict.', 'state_dict_ema.'.*'other' does not"):
        xception_hub.from_checkpoint(path, prefix='other')


@pytest.mark.parametrize('bare', [dict(num_classes=3), dict(fc_widths=()), dict(head_layers=[])], ids=str)
def test_another_head_than_a_deep_one(bare: dict[str, Any], random_legacy: nn.Module, tmp_path: Path) -> None:
    path = save(tmp_path / 'model.pth', TransferModel(random_legacy, deep_head()).state_dict())
    with pytest.warns(UserWarning, match='layers before the classifier'):
        model = xception_hub.from_checkpoint(path, **bare)
    assert model.head.fc.weight.shape == (bare.get('num_classes', CLASSES), 2048)


def test_a_head_around_this_network(tmp_path: Path) -> None:
    """A wrapper's classifier beside the network counts, and of two the caller chooses."""
    network = random_model(num_classes=0, bn_eps=1e-5)
    wrapper = nn.ModuleDict({'backbone': network, 'fc': nn.Linear(2048, 3)})
    path = save(tmp_path / 'model.pth', wrapper.state_dict())
    assert torch.equal(xception_hub.from_checkpoint(path).head.fc.weight, wrapper['fc'].weight)
    network.reset_classifier(5)
    save(path, wrapper.state_dict())
    with pytest.raises(xception_hub.CheckpointError, match="head.fc, and other layers beside the network: 'fc'"):
        xception_hub.from_checkpoint(path)
    for name, classes in (('head.fc', 5), ('fc', 3)):
        with pytest.warns(UserWarning, match=f"not the classifier '{name}'"):
            model = xception_hub.from_checkpoint(path, classifier=name)
        assert (model.num_classes, model.stem.bn1.eps) == (classes, 1e-5)


@pytest.mark.needs('segmentation_models_pytorch')
def test_a_named_source_of_smp(random_legacy: nn.Module, tmp_path: Path) -> None:
    """create_model, too, wants the padding, and the arguments that its error names are the right ones."""
    reference = smp(random_legacy, tmp_path / 'smp.pth')
    numerics = dict(bn_eps=1e-5, pool_padding='symmetric')
    make = partial(timm.create_model, 'xception_paper', pretrained=True, features_only=True)
    overlay = dict(file=str(tmp_path / 'smp.pth'))
    with pytest.raises(xception_hub.WeightsError, match='stem_padding=1'):
        make(pretrained_cfg_overlay=overlay, **numerics)
    x = images(96, 96).double()
    with torch.inference_mode():
        maps = make(pretrained_cfg_overlay=overlay, stem_padding=1, **numerics).eval().double()(x)
        assert torch.equal(maps[-1].mean((2, 3)), reference(x))
    smp(random_legacy, tmp_path / 'smp.pth', 'encoder')
    with pytest.raises(xception_hub.WeightsError, match='stem_padding=1.* stem_padding=0'):
        make(pretrained_cfg_overlay=overlay, **numerics)
    for padding in (0, 1):
        assert (
            make(pretrained_cfg_overlay=overlay, stem_padding=padding, **numerics).stem.conv1.padding == (padding,) * 2
        )
    assert xception_hub.from_checkpoint(tmp_path / 'smp.pth', stem_padding=0, features_only=True)


def test_many_nodes(tmp_path: Path) -> None:
    """A few lines that stand for a million tensors: one object in many places."""
    node: Any = {'weight': torch.zeros(1)}
    for _ in range(5):
        node = {str(i): node for i in range(20)}
    with pytest.raises(xception_hub.CheckpointError, match='tensors and containers'):
        xception_hub.from_checkpoint(save(tmp_path / 'model.pth', node))
