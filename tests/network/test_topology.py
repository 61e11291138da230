"""The table of names is the network: every tensor of it, in every naming, and in the order of the network's modules."""

import timm
from torch import nn

import xception_hub
from xception_hub.topology import LAYERS, LEGACY_NAMES, MODULES, TAPS

TENSORS = {'conv': 1, 'sepconv': 2, 'bn': 4}


def layer_names(model: nn.Module) -> set[str]:
    """Layers with weights of a backbone."""
    return {
        name for name, layer in model.named_modules()
        if isinstance(layer, (nn.Conv2d, nn.BatchNorm2d)) and not name.startswith('head.')
    }  # fmt: skip


def test_counts() -> None:
    kinds = [layer.kind for layer in LAYERS]
    assert {kind: kinds.count(kind) for kind in TENSORS} == {'conv': 6, 'sepconv': 34, 'bn': 40}
    assert sum(TENSORS[kind] for kind in kinds) == 234
    assert sum(module.convs for module in MODULES) == 36  # the paper's convolutional layers


def test_is_this_network() -> None:
    model = xception_hub.Xception(device='meta')
    assert set(LEGACY_NAMES.values()) == layer_names(model)
    strided = [module.torch for module in MODULES if module.strided]
    assert strided == [
        name for name, layer in model.named_modules() if isinstance(getattr(layer, 'shortcut', None), nn.Sequential)
    ]
    for module in MODULES[1:]:
        convs = [name for name, _ in model.get_submodule(module.torch).stack.named_children() if 'conv' in name]
        assert len(convs) == module.convs
    assert all(model.get_submodule(tap) is not None for tap in TAPS)


def test_is_the_legacy_network() -> None:
    assert set(LEGACY_NAMES) == layer_names(timm.create_model('legacy_xception'))
