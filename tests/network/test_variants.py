"""The paper's variants: each computes what its figure says, is kept as what it is, and takes nobody else's weights."""

import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from conftest import save_repository
from hub_server import HubServer
from random_model import images as random_images
from random_model import random_model
from timm.models import save_for_hf
from torch import Tensor, nn

import xception_hub
from xception_hub import Xception
from xception_hub.errors import ToKerasError
from xception_hub.layers import SeparableConv2d
from xception_hub.porting.keras_model import build_keras

SMALL = dict(width_multiplier=0.1875, min_img_size=33, num_classes=5)
NAMES = {  # parameters: the classifier's share is (2048 or 4096) * 1000 + 1000, or as many for 17,000 classes
    'xception_paper_fc': 22_855_952 - 2_049_000 + (2048 + 1 + 4096 + 1) * 4096 + 4096 * 1000 + 1000,
    'xception_paper_no_residual': 22_855_952 - 977_072,
    'xception_paper_mid_relu': 22_855_952,
    'xception_paper_mid_elu': 22_855_952,
    'xception_paper_jft': 22_855_952 - 2_049_000 + (2048 + 1) * 17_000,
    'xception_paper_jft_fc': 22_855_952 - 2_049_000 + (2048 + 1 + 4096 + 1) * 4096 + (4096 + 1) * 17_000,
}
VARIANTS: list[dict[str, Any]] = [
    dict(residual=False, mid_act_layer='elu'),
    dict(segments=2, order='pointwise_first', mid_act_layer='relu'),
    dict(segments=1, fc_widths=(16, 8)),
]


def on_meta(**kwargs: Any) -> Xception:
    return Xception(**kwargs, device='meta')


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def small(**kwargs: Any) -> Any:
    return random_model(**{**SMALL, **kwargs})


def images(size: int = 41) -> Tensor:
    return random_images(size, size, batch=2)


def separable(model: nn.Module) -> list[SeparableConv2d]:
    return [module for module in model.modules() if isinstance(module, SeparableConv2d)]


# By name --------------------------------------------------------------------------------------------------------------


def test_names() -> None:
    """All networks that the paper compares Xception with, and none of them pretends to have weights."""
    assert set(timm.list_models('xception_paper*')) == {'xception_paper', 'xception_paper_pyramid', *NAMES}
    pretrained = ['xception_paper.keras_in1k', 'xception_paper_pyramid.keras_in1k']
    assert timm.list_pretrained('xception_paper*') == pretrained


@pytest.mark.parametrize('name', NAMES)
def test_named_network(name: str) -> None:
    model = timm.create_model(name, device='meta')
    assert parameters(model) == NAMES[name]
    classes = 17_000 if 'jft' in name else 1000
    assert model(torch.empty(2, 3, 71, 71, device='meta')).shape == (2, classes)
    assert model.pretrained_cfg['num_classes'] == classes
    assert timm.data.resolve_data_config(model=model)['mean'] == (0.5, 0.5, 0.5)


def test_arguments_replace_those_of_the_name() -> None:
    model = timm.create_model('xception_paper_jft_fc', num_classes=7, fc_widths=(8,), device='meta')
    assert (model.num_classes, model.head_hidden_size) == (7, 8)


def test_named_network_has_no_weights(hub: HubServer) -> None:
    """It says so, without asking anybody."""
    hub.requests.clear()
    with pytest.raises(xception_hub.WeightsError, match='xception_paper_fc.*pretrained=False'):
        timm.create_model('xception_paper_fc', pretrained=True)
    assert hub.requests == []


# What they compute ----------------------------------------------------------------------------------------------------


def test_without_residual_connections() -> None:
    """Figure 9: each module is its stack alone."""
    model = small(residual=False)
    x = model.stem(images())
    modules = [*model.entry_flow, *model.middle_flow, *model.exit_flow]
    assert len(modules) == 13
    for module in modules:
        assert not any('shortcut' in name for name, _ in module.named_parameters())
        x = module.stack(x)
    assert torch.equal(x, model.forward_features(images()))


@pytest.mark.parametrize(('mid_act_layer', 'act'), [('elu', nn.ELU), (nn.Tanh, nn.Tanh)])
def test_activation_in_between(mid_act_layer: Any, act: type[nn.Module]) -> None:
    """Figure 10: after the depthwise convolution, before the pointwise one, in all 34, each with one of its own."""
    model, plain = small(mid_act_layer=mid_act_layer), small()
    assert len({id(conv.act) for conv in separable(model)}) == 34
    plain.load_state_dict(model.state_dict())
    for conv in separable(plain):
        conv.conv_dw = nn.Sequential(conv.conv_dw, act())
    assert torch.equal(model(images()), plain(images()))
    assert not torch.allclose(model(images()), small()(images()))


@pytest.mark.parametrize('segments', [1, 8])
@pytest.mark.parametrize('order', ['depthwise_first', 'pointwise_first'])
def test_depthwise_is_the_sparsest_of_the_continuum(segments: int, order: str) -> None:
    """Fewer segments can compute all that one per channel does: the weights between channels are then zero."""
    extreme, model = small(order=order).double(), small(order=order, segments=segments).double()
    tensors = extreme.state_dict()
    for name, wide in model.state_dict().items():
        if name.endswith('conv_dw.weight'):
            own = torch.arange(len(wide)) % wide.shape[1]  # place of a channel in its segment
            tensors[name] = torch.zeros_like(wide).index_put_((torch.arange(len(wide)), own), tensors[name][:, 0])
    model.load_state_dict(tensors)
    torch.testing.assert_close(model(images().double()), extreme(images().double()), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize('multiplier', [0.1875, 1, 2])
def test_width_multiplier(multiplier: float) -> None:
    """Widths are multiples of 8, those that timm is told are those of the maps, and 1 changes nothing."""
    model = on_meta(width_multiplier=multiplier)
    widths = [norm.num_features for norm in model.modules() if isinstance(norm, nn.BatchNorm2d)]
    plain = [norm.num_features for norm in on_meta().modules() if isinstance(norm, nn.BatchNorm2d)]
    assert all(width % 8 == 0 and abs(width - multiplier * full) <= 4 for width, full in zip(widths, plain))
    if multiplier == 1:
        assert widths == plain
    maps = model.forward_intermediates(torch.empty(1, 3, 71, 71, device='meta'), intermediates_only=True)
    assert [x.shape[1] for x in maps] == [info['num_chs'] for info in model.feature_info]
    assert model.num_features == model.head_hidden_size == model.get_classifier().in_features == maps[-1].shape[1]


@pytest.mark.parametrize('kwargs', [*VARIANTS, dict(act_layer='elu')], ids=str)  # in place, and not idempotent
def test_training(kwargs: dict[str, Any]) -> None:
    """Every weight gets a gradient, the same whether the modules are computed once or twice."""
    model = small(**kwargs).train()
    gradients = []
    for checkpointing in (False, True):
        model.set_grad_checkpointing(checkpointing)
        model.zero_grad()
        model(images()).square().sum().backward()
        gradients.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
    assert all(gradient.abs().sum() > 0 for gradient in gradients[0].values())
    torch.testing.assert_close(gradients[1], gradients[0])


@pytest.mark.parametrize('kwargs', VARIANTS, ids=str)
def test_tools(kwargs: dict[str, Any]) -> None:
    """What deployment needs: TorchScript, torch.export, feature maps."""
    model, x = small(**kwargs), images()
    expected = model(x)
    torch.testing.assert_close(torch.jit.script(model)(x), expected)
    torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), expected)
    backbone = timm.create_model('xception_paper', **{**SMALL, **kwargs}, features_only=True, output_stride=16)
    assert [x.shape[1] for x in backbone(x)] == backbone.feature_info.channels()


# Their weights --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('name', 'args'),
    [('fc', dict(fc_widths=(16, 8))), ('no_residual', dict(residual=False)), ('mid_elu', dict(mid_act_layer='elu'))],
)
def test_named_network_saved_and_loaded(name: str, args: dict[str, Any], tmp_path: Path) -> None:
    """As a directory, and from its file with the arguments of the name."""
    created = timm.create_model(f'xception_paper_{name}', **{**SMALL, **args}).eval()
    save_for_hf(created, tmp_path, safe_serialization=True)
    loaded = timm.create_model(f'local-dir:{tmp_path}', pretrained=True).eval()
    from_file = xception_hub.from_checkpoint(tmp_path / 'model.safetensors', **SMALL, **args)
    for model in (loaded, from_file):
        assert torch.equal(model(images()), created(images()))


@pytest.mark.parametrize(
    ('name', 'value'), [('residual', False), ('mid_act_layer', 'relu'), ('segments', 8), ('width_multiplier', 2.0)]
)
def test_the_weights_of_keras_are_for_none_of_them(name: str, value: Any, hub: HubServer) -> None:
    """Not even where all shapes fit; and nothing is downloaded."""
    hub.requests.clear()
    refused = pytest.raises(xception_hub.WeightsError, match=re.escape(f'{name}={value!r}'))
    with pytest.warns(UserWarning, match='Next'), refused:
        timm.create_model('xception_paper', pretrained=True, **{name: value})
    assert hub.requests == []


@pytest.mark.filterwarnings('ignore:No weights from')
@pytest.mark.parametrize(('saved', 'asked'), [({}, dict(mid_act_layer='relu')), (dict(mid_act_layer='relu'), {})])
def test_weights_of_another_variant(saved: dict[str, Any], asked: dict[str, Any], tmp_path: Path) -> None:
    """Shapes are the same, and config.json says what it is."""
    save_for_hf(timm.create_model('xception_paper', **SMALL, **saved), tmp_path, safe_serialization=True)
    overlay = dict(file=str(tmp_path), num_classes=5)
    with pytest.raises(xception_hub.WeightsError, match='config.json.*mid_act_layer='):
        timm.create_model('xception_paper', pretrained=True, pretrained_cfg_overlay=overlay, **SMALL, **asked)


@pytest.mark.parametrize('kwargs', [dict(residual=False), dict(segments=2), dict(stem_padding=1)], ids=str)
def test_keras_has_none_of_them(kwargs: dict[str, Any], tmp_path: Path) -> None:
    save_for_hf(timm.create_model('xception_paper', **{**SMALL, **kwargs}), tmp_path, safe_serialization=True)
    ((name, value),) = kwargs.items()
    with pytest.raises(ToKerasError, match=re.escape(f'{name}={value!r}')):
        build_keras(tmp_path)


@pytest.mark.filterwarnings('ignore:.*Assumed. the numerics of Keras')
def test_a_file_without_residual_connections_is_no_xception_paper(tmp_path: Path) -> None:
    save_repository(tmp_path / 'model', {**small(residual=False, width_multiplier=1.0, num_classes=1000).state_dict()})
    with pytest.raises(xception_hub.CheckpointError, match='Missing: entry_flow.0.shortcut.conv.weight'):
        xception_hub.from_checkpoint(tmp_path / 'model' / 'model.safetensors')


# timm's tests ---------------------------------------------------------------------------------------------------------


def test_poolings_of_faded_features() -> None:
    """timm tells poolings apart by untrained features, which fade to zero where nothing but the stack carries them.

    Normalized by their own statistics they do not, and `reset_classifier` keeps or changes the pooling as it must.
    """
    x = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    model = timm.create_model('xception_paper_no_residual', global_pool='max').eval()
    with torch.no_grad():
        assert model.forward_features(x).abs().max() < 1e-6  # far below the tolerance of timm's comparison
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.train()
        model.reset_classifier(5)
        assert model.head.global_pool.pool_type == 'max'
        pooled = {'max': model.forward_head(model.forward_features(x), pre_logits=True)}
        model.reset_classifier(5, 'avg')
        pooled['avg'] = model.forward_head(model.forward_features(x), pre_logits=True)
        torch.testing.assert_close(pooled['max'], model.forward_features(x).amax((2, 3)))
    assert not torch.allclose(pooled['avg'], pooled['max'])
