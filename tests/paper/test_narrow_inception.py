"""timm's Inception V3 at any width: whole, it is timm's; narrow, it is as large as Xception is."""

import pytest
import timm
import torch
from timm.layers import BatchNormAct2d
from torch import nn

import xception_hub.paper  # noqa: F401 (registers the model)


def test_whole_width_is_timms() -> None:
    """The same tensors, and the same function."""
    torch.manual_seed(0)
    ours, timms = (timm.create_model(name, num_classes=5) for name in ('inception_v3_narrow', 'inception_v3'))
    ours.load_state_dict(timms.state_dict())
    x = torch.randn(2, 3, 75, 75)
    assert torch.equal(ours.eval()(x), timms.eval()(x))


def test_narrow() -> None:
    """All layers but the first one's images and the logits, and what timm says of them."""
    sixteenths = 3
    model = timm.create_model('inception_v3_narrow', width_multiplier=sixteenths / 16, num_classes=5)
    whole = timm.create_model('inception_v3', device='meta')
    for name, layer in whole.named_modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear, BatchNormAct2d)):
            widths = [width * sixteenths // 16 for width in layer.weight.shape[:2]]
            if name == 'Conv2d_1a_3x3.conv':
                widths[1] = 3
            elif name == 'fc':
                widths[0] = 5
            assert list(model.get_submodule(name).weight.shape[:2]) == widths
    features = timm.create_model('inception_v3_narrow', width_multiplier=sixteenths / 16, features_only=True).eval()
    maps = features(torch.zeros(1, 3, 75, 75))
    assert [one.shape[1] for one in maps] == features.feature_info.channels()
    assert model.eval().forward_features(torch.zeros(1, 3, 75, 75)).shape == (1, model.num_features, 1, 1)
    model.reset_classifier(7)
    assert model(torch.zeros(1, 3, 75, 75)).shape == (1, 7)


@pytest.mark.parametrize('width_multiplier', [0, 0.1, 1.5, float('nan')])
def test_bad_width(width_multiplier: float) -> None:
    with pytest.raises(ValueError, match=f'width_multiplier={width_multiplier}.*sixteenths'):
        timm.create_model('inception_v3_narrow', width_multiplier=width_multiplier)


def test_no_weights() -> None:
    with pytest.raises(RuntimeError, match='inception_v3_narrow'):
        timm.create_model('inception_v3_narrow', pretrained=True)
