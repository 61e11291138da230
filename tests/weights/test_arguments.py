"""What a file records of its network is compared with the network's signature, and never handed to timm unseen."""

import json
import os
import pickle
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from hub_server import HubServer

import xception_hub
from xception_hub.errors import CheckpointError, ModelError, XceptionHubError
from xception_hub.models.build import build
from xception_hub.network import STORED
from xception_hub.weights.arguments import DEFAULTS, SIGNATURE, model_name, network_arguments

WIDTH = dict(width_multiplier=0.13)


class Touch:
    """Runs when it is unpickled carelessly."""

    def __reduce__(self) -> Any:
        return os.mkdir, ('ran',)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub: HubServer) -> Iterator[Path]:
    """An empty folder and cache; what was named in a file was neither run nor asked for."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_CACHE', str(tmp_path / 'cache'))
    Path('evil.pth').write_bytes(pickle.dumps(Touch()))
    hub.requests.clear()
    yield tmp_path
    assert not Path('ran').exists()
    assert not any('smp-hub' in path for _, path in hub.requests)


@pytest.fixture(scope='module')
def network() -> torch.nn.Module:
    return timm.create_model('xception_paper', num_classes=2, **WIDTH)


# what timm's create_model, its builder and its factory take, and what nobody does
DANGEROUS: dict[str, Any] = dict(
    checkpoint_path='evil.pth', pretrained=True, pretrained_cfg='keras_in1k', pretrained_cfg_overlay={'url': 'x'},
    pretrained_model_args={}, pretrained_strict=False, pretrained_filter_fn='eval', cache_dir='ran', device='meta',
    dtype='float16', features_only=True, out_indices=[0], feature_cfg={}, feature_cls='hook', model_cfg={}, pruned=True,
    kwargs_filter=['num_classes'], scriptable=True, exportable=True, no_jit=True, img_size=299, model_name='resnet18',
    self=1, __class__='x',
)  # fmt: skip
WRONG: dict[str, list[Any]] = dict(
    num_classes=['2', True, 2.0, -1, None, 2**40, [2]], in_chans=[0, '3'], global_pool=['softmax', 1, ['avg']],
    output_stride=[7, '32', 32.0], fc_widths=[3, [0], ['3'], [True], [2**40], {}],
    head_layers=[
        {}, 'fc', ['fc'], [{}], [{'fc': True}], [{'fc': '3'}], [{'fc': 2**40}], [{'act': 'evil'}], [{'act': ['relu']}],
        [{'act': None}], [{'bn': '1'}], [{'flatten': 3}], [{'flatten': ['3', 3]}], [{'exec': 'x'}], [{'drop': 1}],
    ],
    drop_rate=[1, -0.1, '0', float('nan')], drop_path_rate=[1.0, True], act_layer=['evil', '', None, 1, ['relu']],
    bn_eps=[0, -1e-3, '1e-3', float('inf'), True], pool_padding=['valid', None], stem_padding=[2, True, '1'],
    min_img_size=[3, '71', 2**40], residual=[0, 'False', None], mid_act_layer=['evil', 0], segments=[3, True, '1', 1.0],
    order=['x', 0], width_multiplier=[0, float('inf'), '1', 1e9, True],
)  # fmt: skip


@pytest.mark.parametrize('name', [*DANGEROUS, *WRONG])
def test_refused(name: str) -> None:
    """With its name, its value, the choices, and a way out."""
    for value in WRONG.get(name, [DANGEROUS.get(name)]):
        with pytest.raises(CheckpointError, match=rf'^model\.pth records {name}=') as error:
            network_arguments({name: value}, 'model.pth')
        assert f'{value!r}'[:100] in str(error.value)
        assert 'yourself' in str(error.value)
        assert network_arguments({name: value}, 'model.pth', replaced=[name]) == {}


def test_the_table_is_the_signature() -> None:
    """Each argument is tried above, and takes its default."""
    assert [*WRONG] == [*SIGNATURE] == [name for name in DEFAULTS if name not in ('device', 'dtype')]
    assert network_arguments({name: DEFAULTS[name] for name in SIGNATURE}, '').keys() == SIGNATURE.keys()
    assert network_arguments(STORED, '') == STORED
    assert set(DANGEROUS).isdisjoint(SIGNATURE)


@pytest.mark.parametrize('recorded', [[], 'x', 3, None])
def test_no_arguments_at_all(recorded: Any) -> None:
    with pytest.raises(CheckpointError, match='instead of arguments'):
        network_arguments(recorded, 'model.pth')


@pytest.mark.parametrize(
    'together', [dict(fc_widths=[3], head_layers=[{'fc': 3}]), dict(residual=False, drop_path_rate=0.1)]
)
def test_not_together(together: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match='model.pth records'):
        network_arguments(together, 'model.pth')


@pytest.mark.parametrize(
    'name', ['xception_paper:x', 'xception_papers', 'xception_paper/../x', 'xception_paper_fc.evil']
)
def test_names(name: str) -> None:
    with pytest.raises(CheckpointError, match='xception_paper_no_residual'):
        model_name(name, 'model.pth')
    assert (model_name('resnet50', ''), model_name(None, ''), model_name('xception_paper_fc', '')) == (
        'xception_paper', 'xception_paper', 'xception_paper_fc',
    )  # fmt: skip


# Doors


def in_a_header(network: Any, recorded: dict[str, Any]) -> Path:
    header = {'xception_hub': json.dumps({**WIDTH, **recorded})}
    safetensors.torch.save_file(network.state_dict(), 'weights.safetensors', metadata=header)
    return Path('weights.safetensors')


def in_a_state_dict(network: Any, recorded: dict[str, Any]) -> Path:
    state = network.state_dict()
    state._metadata['']['xception_hub'] = json.dumps({**WIDTH, **recorded})
    torch.save(state, 'state.pth')
    return Path('state.pth')


def in_a_module(network: Any, recorded: dict[str, Any]) -> Path:
    before, network.arguments = network.arguments, {**network.arguments, **recorded}
    torch.save(network, 'module.pth')
    network.arguments = before
    return Path('module.pth')


def in_a_config(network: Any, recorded: dict[str, Any], **changed: Any) -> Path:
    directory = Path('directory')
    directory.mkdir(exist_ok=True)
    safetensors.torch.save_file(network.state_dict(), directory / 'model.safetensors')
    config = dict(architecture='xception_paper', num_classes=2, model_args={**WIDTH, **recorded}, pretrained_cfg={})
    (directory / 'config.json').write_text(json.dumps({**config, **changed}))
    return directory


PLACES = [in_a_header, in_a_state_dict, in_a_module, in_a_config]
RECORDED = [*DANGEROUS.items(), ('bn_eps', True), ('act_layer', 'evil'), ('head_layers', [{'act': 'evil'}])]


@pytest.mark.parametrize('place', PLACES)
def test_from_checkpoint(place: Callable[..., Path], network: Any, recwarn: Any) -> None:
    path = place(network, {})
    assert xception_hub.from_checkpoint(path).head.fc.weight.equal(network.head.fc.weight)
    for name, value in RECORDED[: -1 if place is in_a_module else None]:  # a pickled head has its layers itself
        place(network, {name: value})
        with pytest.raises(CheckpointError, match=rf'records {name}='):
            xception_hub.from_checkpoint(path)
    if not path.is_dir():  # the way out
        place(network, dict(act_layer='evil'))
        act = 'relu' if place is in_a_module else 'elu'  # that of its modules, with which arguments are compared
        assert xception_hub.from_checkpoint(path, act_layer=act)


@pytest.mark.parametrize('place', [in_a_header, in_a_state_dict])
@pytest.mark.parametrize('recorded', [dict(width_multiplier=512.0), dict(fc_widths=[2**20, 2**20])])
def test_huge_networks(place: Callable[..., Path], recorded: dict[str, Any], network: Any) -> None:
    """Terabytes that a file asks for are compared with its tensors, and never reserved."""
    with pytest.raises(CheckpointError, match='does not fit'):
        xception_hub.from_checkpoint(place(network, recorded))


@pytest.mark.parametrize('text', ['{"bn_eps": 1e-5', '[1]', 'null', ''])
def test_unreadable_arguments(text: str, network: Any) -> None:
    """What cannot be read may have been another network's numerics, so no default takes its place."""
    safetensors.torch.save_file(network.state_dict(), 'weights.safetensors', metadata={'xception_hub': text})
    state = network.state_dict()
    state._metadata['']['xception_hub'] = text
    torch.save(state, 'state.pth')
    for path in ('weights.safetensors', 'state.pth'):
        with pytest.raises(CheckpointError, match="Remove the entry 'xception_hub'"):
            xception_hub.from_checkpoint(path)


@pytest.mark.parametrize('place', PLACES)
def test_named_source(place: Callable[..., Path], network: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """XCEPTION_HUB_REPO, or timm's overlay."""
    for name, value in RECORDED if place is in_a_header else RECORDED[:3]:
        monkeypatch.setenv('XCEPTION_HUB_REPO', f'./{place(network, {name: value})}')
        with pytest.raises(XceptionHubError, match=rf'records {name}='):
            timm.create_model('xception_paper', pretrained=True, num_classes=2, **WIDTH)


# timm hands these to its own functions before the network is asked: Python's error, and nothing is loaded
BY_TIMM = ('pretrained', 'pretrained_cfg', 'pretrained_cfg_overlay', 'cache_dir')


@pytest.mark.parametrize('pretrained', [True, False])
def test_names_that_timm_resolves(pretrained: bool, network: Any, hub: HubServer) -> None:
    """'local-dir:' and 'hf-hub:', by timm itself and by the commands that build a model."""
    (hub.root / 'org').mkdir(exist_ok=True)
    (hub.root / 'org' / 'recorded').symlink_to(in_a_config(network, {}).absolute())
    try:
        assert timm.create_model('local-dir:directory', pretrained=pretrained).num_classes == 2
        for name, value in RECORDED:
            in_a_config(network, {name: value})
            for model in ('local-dir:directory', 'hf-hub:org/recorded'):
                expected = (TypeError, 'multiple values') if name in BY_TIMM else (CheckpointError, f'records {name}=')
                with pytest.raises(expected[0], match=expected[1]):
                    timm.create_model(model, pretrained=pretrained)
            with pytest.raises(ModelError, match=f'records {name}='):
                build('local-dir:directory', None, pretrained, {}, None)
    finally:
        (hub.root / 'org' / 'recorded').unlink()


@pytest.mark.parametrize(
    'changed', [dict(num_classes='2'), dict(pretrained_cfg=dict(input_size=['3', 299, 299]))], ids=str
)
def test_what_timm_takes_from_a_cfg(changed: dict[str, Any], network: Any) -> None:
    in_a_config(network, {}, **changed)
    with pytest.raises(CheckpointError, match=re.escape('config.json records')):
        timm.create_model('local-dir:directory')
