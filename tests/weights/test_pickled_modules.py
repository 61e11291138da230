"""Whole modules: what a pickle names is computed or refused by name; folded tensors are what torch computes with."""

import copy
import operator
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.utils.prune as prune
from random_model import images, norms_of, random_model
from torch import Tensor, nn
from torch.nn.utils import parametrizations, spectral_norm, weight_norm

import xception_hub
from benchmarks.checkpoints import CLASSES, trained
from xception_hub.directory.write import write_model
from xception_hub.errors import CheckpointError, ModelError, WeightsError
from xception_hub.inference.predictor import Predictor

pytestmark = [
    pytest.mark.filterwarnings(
        'ignore:.*(is|are) deprecated',
        'ignore:Validating sparse',
        'ignore:.*weight_norm',
        'ignore:.*torch.ao',
        'ignore:.*left out',
        r"ignore:.*Assumed. global_pool='avg'\.$",  # of state dicts; a pickled module names its pooling
    )
]
Change = Callable[[nn.Module], Any]


@pytest.fixture(scope='module')
def legacy() -> nn.Module:
    return trained()


def changed(model: nn.Module, change: Change) -> nn.Module:
    model = copy.deepcopy(model)
    other = change(model)
    return (other if isinstance(other, nn.Module) else model).eval()


def saved(value: Any, folder: Path) -> Path:
    torch.save(value, folder / 'model.pt')
    return folder / 'model.pt'


def put(model: nn.Module, path: str, layer: nn.Module) -> None:
    parent, _, name = path.rpartition('.')
    model.get_submodule(parent)._modules[name] = layer


def all_acts(layer: Callable[[], nn.Module]) -> Change:
    def change(model: nn.Module) -> None:
        for path in [path for path, module in model.named_modules() if isinstance(module, nn.ReLU)]:
            put(model, path, layer())

    return change


def all_biased(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.bias = nn.Parameter(torch.randn(module.out_channels) / 10)


def all_pruned(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            prune.l1_unstructured(module, 'weight', 0.3)


def head(*layers: nn.Module) -> Change:
    return lambda model: put(model, 'fc', nn.Sequential(*layers))


def ends(layer: nn.Module) -> Change:
    return lambda model: nn.Sequential(model, layer)


def linear() -> nn.Module:
    return nn.Linear(2048, CLASSES)


def other_numerics(model: nn.Module) -> None:
    for norm in norms_of(model):
        norm.eps = 1e-3
    model.conv1.padding = model.conv2.padding = (1, 1)  # type: ignore[union-attr,assignment]


SAME: dict[str, Change] = {
    'eps of Keras, padding of segmentation_models_pytorch': other_numerics,
    'SyncBatchNorm': nn.SyncBatchNorm.convert_sync_batchnorm,
    'SiLU everywhere': all_acts(nn.SiLU),
    'LeakyReLU everywhere': all_acts(nn.LeakyReLU),
    'dropout in a block': lambda model: model.block5.add_module('drop', nn.Dropout2d(0.3)),
    'maximum': lambda model: model.reset_classifier(CLASSES, 'max'),
    'average and maximum': lambda model: model.reset_classifier(CLASSES, 'avgmax'),
    'both poolings': lambda model: model.reset_classifier(CLASSES, 'catavgmax'),
    "torch's maximum": lambda model: put(model, 'global_pool', nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten())),
    "padding 'valid'": lambda model: put(model, 'conv2', _valid(model.conv2)),
    'pruned': all_pruned,
    'weight norm': lambda model: (weight_norm(model.conv1), weight_norm(model.fc, dim=None)),
    'spectral norm': lambda model: (spectral_norm(model.conv1), spectral_norm(model.fc)),
}


def _valid(conv: nn.Module) -> nn.Module:
    new = nn.Conv2d(32, 64, 3, padding='valid', bias=False)
    new.load_state_dict(conv.state_dict())
    return new


@pytest.mark.parametrize('kind', SAME)
def test_modules_of_the_same_function(kind: str, legacy: nn.Module, tmp_path: Path) -> None:
    model = changed(legacy, SAME[kind])
    read = xception_hub.from_checkpoint(saved(model, tmp_path))
    with torch.no_grad():
        assert torch.equal(read(images(96, 107)), model(images(96, 107)))


# Change -> what the message names.
ODD: dict[str, tuple[Change, str]] = {
    'InstanceNorm': (lambda model: put(model, 'bn3', nn.InstanceNorm2d(1536, track_running_stats=True, affine=True)),
                     'bn3.*InstanceNorm2d'),
    'statistics of the batch': (lambda model: setattr(model.bn3, 'track_running_stats', False), 'track_running_stats'),
    'a slope': (all_acts(lambda: nn.LeakyReLU(0.2)), 'negative_slope=0.2'),
    'no activation': (lambda model: put(model, 'act3', nn.Identity()), 'act3.*Identity'),
    'one more activation': (lambda model: model.block5.rep.add_module('9', nn.ReLU()), r'block5.rep.9.*ReLU'),
    'an activation that a shortcut sees': (lambda model: setattr(model.block5.rep[0], 'inplace', True), 'inplace'),
    'padding mode': (lambda model: setattr(model.conv4.conv1, 'padding_mode', 'reflect'), 'padding_mode'),
    'average pooling': (lambda model: put(model, 'block1.rep.5', nn.AvgPool2d(3, 2, 1)), 'block1.rep.5.*AvgPool2d'),
    'no pooling': (lambda model: model.block1.rep._modules.pop('5') and None, 'block1.rep.5: missing'),
    'squeeze and excitation': (lambda model: model.block5.add_module('se', nn.Conv2d(9, 9, 1)), 'block5.se'),
    'an approximate GELU': (all_acts(lambda: nn.GELU('tanh')), 'approximate'),
    'a stride': (lambda model: setattr(model.block12.skip, 'stride', (1, 1)), 'block12.skip: stride'),
    'dilation': (lambda model: setattr(model.conv4.conv1, 'dilation', (2, 2)), 'dilation'),
    'one eps': (lambda model: setattr(model.bn3, 'eps', 1e-3), 'bn3: eps'),
    'another activation': (lambda model: put(model, 'act3', nn.SiLU()), 'SiLU'),
    'padding of a pooling': (lambda model: setattr(model.block1.rep[-1], 'padding', 0), 'padding=0'),
    'padding of one convolution': (lambda model: setattr(model.conv1, 'padding', (1, 1)), 'conv2: padding'),
    'stride of a pooling': (lambda model: setattr(model.block3.rep[-1], 'stride', 1), 'stride=1'),
    'ceil_mode': (lambda model: setattr(model.block3.rep[-1], 'ceil_mode', True), 'ceil_mode'),
    'softmax over images': (ends(nn.Softmax(0)), 'dim=0'),
    'softmax twice': (lambda model: nn.Sequential(model, nn.Softmax(1), nn.Softmax(1)), 'softmax, softmax'),
}  # fmt: skip
UNSURE: dict[str, tuple[Change, str]] = {
    'a pooling to 2x2': (lambda model: put(model, 'global_pool', nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten())),
                         'AdaptiveAvgPool2d'),
    'padding in front': (lambda model: nn.Sequential(nn.ReflectionPad2d(3), model), 'ReflectionPad2d'),
    'a hook': (lambda model: model.bn1.register_forward_hook(operator.itemgetter(0)) and None, 'operator.itemgetter'),
    'a hook in front': (lambda model: model.fc.register_forward_pre_hook(operator.neg) and None, 'operator.neg'),
    'another forward': (lambda model: setattr(model.conv1, 'forward', operator.neg), 'forward'),
    'a head of cosines': (lambda model: put(model, 'fc', Cosine()), 'Cosine'),
}  # fmt: skip


class Cosine(nn.Module):
    """A classifier of normalized features, as in ArcFace."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(CLASSES, 2048))


@pytest.mark.parametrize('kind', [*ODD, *UNSURE])
def test_modules_of_another_function(kind: str, legacy: nn.Module, tmp_path: Path) -> None:
    change, named = {**ODD, **UNSURE}[kind]
    path = saved(changed(legacy, change), tmp_path)
    way_out = 'state_dict' if kind in UNSURE else 'program that (saved|wrote) it'
    with pytest.raises(CheckpointError, match=f'{named}.*{way_out}'):
        xception_hub.from_checkpoint(path)


def test_what_the_message_advises(legacy: nn.Module, tmp_path: Path) -> None:
    """SiLU in modules, and a function in one place: the state dict loads with the argument that is named."""

    def change(model: nn.Module) -> None:
        all_acts(nn.SiLU)(model)
        del model.act4

    model = changed(legacy, all_acts(nn.SiLU))
    with pytest.raises(CheckpointError, match=r'torch.save\(model.state_dict\(\).*act_layer'):
        xception_hub.from_checkpoint(saved(changed(legacy, change), tmp_path))
    read = xception_hub.from_checkpoint(saved(model.state_dict(), tmp_path), act_layer='silu')
    with torch.no_grad():
        assert torch.equal(read(images(96, 107)), model(images(96, 107)))


def test_the_backbone_of_another_head(legacy: nn.Module, tmp_path: Path) -> None:
    """What follows the backbone does not matter to whom it leaves out."""
    path = saved(changed(legacy, UNSURE['a head of cosines'][0]), tmp_path)
    assert xception_hub.from_checkpoint(path, num_classes=0).num_classes == 0


def test_own_modules(tmp_path: Path) -> None:
    """A pickled network of this project with another layer than its arguments say, and one with stochastic depth."""
    model = random_model(
        num_classes=3, width_multiplier=0.25, drop_path_rate=0.1, head_layers=[{'fc': 8}, {'act': 'tanh'}]
    )
    read = xception_hub.from_checkpoint(saved(model, tmp_path))
    with torch.no_grad():
        assert torch.equal(read(images(96, 96)), model.eval()(images(96, 96)))
    for change in (
        lambda: setattr(model.middle_flow[0].stack.bn1, 'eps', 1.0),
        lambda: put(model, 'exit_flow.1.stack.act2', nn.Tanh()),
        lambda: put(model, 'head.fc_layers.act1', nn.ReLU()),
    ):
        change()
        with pytest.raises(CheckpointError, match='computes in a way'):
            xception_hub.from_checkpoint(saved(model, tmp_path))


FINAL: dict[str, tuple[Change, str]] = {
    'softmax after the network': (ends(nn.Softmax(1)), 'softmax'),
    'softmax after a wrapper': (lambda model: nn.Sequential(nn.DataParallel(model), nn.Softmax(-1)), 'softmax'),
    'logarithm of it': (head(linear(), nn.LogSoftmax(1)), 'log_softmax'),
    'sigmoid': (head(nn.Dropout(0.5), linear(), nn.Sigmoid()), 'sigmoid'),
    'tanh': (head(linear(), nn.Tanh()), 'tanh'),
    'relu': (head(linear(), nn.ReLU()), 'relu'),
}
APPLIED: dict[str, Callable[[Tensor], Tensor]] = {
    'softmax': lambda x: x.softmax(1), 'log_softmax': lambda x: x.log_softmax(1), 'sigmoid': torch.sigmoid,
    'tanh': torch.tanh, 'relu': torch.relu,
}  # fmt: skip


@pytest.mark.parametrize('kind', FINAL)
def test_final_activations(kind: str, legacy: nn.Module, tmp_path: Path) -> None:
    """Logits come out; what follows them is said, recorded in the directory, and used by predictions."""
    change, name = FINAL[kind]
    model = changed(legacy, change)
    with pytest.warns(UserWarning, match=f'ends in {name}'):
        read = xception_hub.from_checkpoint(saved(model, tmp_path))
    x = images(96, 107)
    with torch.no_grad():
        assert torch.equal(APPLIED[name](read(x)), model(x))
    assert read.final_activation == name and name in ' '.join(read.pretrained_cfg['notes'])
    predictors = [Predictor(read)]
    if kind in ('sigmoid', 'tanh'):
        (directory := tmp_path / 'directory').mkdir()
        write_model(directory, read, {}, {})
        predictors.append(Predictor(directory))
    for predictor in predictors:
        if name in ('tanh', 'relu'):
            with pytest.raises(ModelError, match=name):
                predictor.loaded  # noqa: B018
        else:
            assert predictor.loaded.multi_label == (name == 'sigmoid')


def test_no_final_activation_of_another_classifier(legacy: nn.Module, tmp_path: Path) -> None:
    path = saved(changed(legacy, ends(nn.Softmax(1))), tmp_path)
    assert not hasattr(xception_hub.from_checkpoint(path, num_classes=3), 'final_activation')
    with pytest.warns(UserWarning, match='ends in softmax'):
        model = xception_hub.from_checkpoint(path)
    model.reset_classifier(3)  # type: ignore[operator]
    assert not hasattr(model, 'final_activation')


def test_named_sources_compare_modules_too(legacy: nn.Module, tmp_path: Path) -> None:
    """timm's overlay reads a pickled network as from_checkpoint does: by its modules, not by its tensors alone."""
    arguments = dict(bn_eps=1e-5, pool_padding='symmetric', num_classes=CLASSES, pretrained=True)
    for change, named in ((all_acts(nn.SiLU), "act_layer='silu'"), (SAME['maximum'], "global_pool='max'")):
        path = saved(changed(legacy, change), tmp_path)
        overlay = dict(file=str(path))
        with pytest.raises(WeightsError, match=named):
            timm.create_model('xception_paper', pretrained_cfg_overlay=overlay, **arguments)
        name, value = eval(f'dict({named})').popitem()
        model = timm.create_model('xception_paper', pretrained_cfg_overlay=overlay, **arguments, **{name: value})
        assert torch.equal(model.head.fc.weight, torch.load(path, weights_only=False).fc.weight)
    odd = saved(changed(legacy, ODD['padding mode'][0]), tmp_path)
    with pytest.raises(WeightsError, match='padding_mode'):
        timm.create_model('xception_paper', pretrained_cfg_overlay=dict(file=str(odd)), **arguments)


# State dicts in which one tensor stands in several

FOLDED: dict[str, Change] = {
    'weight norm': lambda model: (weight_norm(model.conv1), weight_norm(model.block2.skip, dim=1)),
    'parametrized weight norm': lambda model: [
        parametrizations.weight_norm(layer) for layer in (model.conv1, model.conv3.conv1, model.fc)] and None,
    'spectral norm': lambda model: (spectral_norm(model.conv1), spectral_norm(model.fc)),
    'parametrized spectral norm': lambda model: [
        parametrizations.spectral_norm(layer) for layer in (model.conv1, model.fc)] and None,
    'pruned': all_pruned,
    'pruned biases': lambda model: prune.random_unstructured(model.fc, 'bias', 0.5) and None,
    'pruned weight norm': lambda model: (weight_norm(model.fc), prune.l1_unstructured(model.fc, 'weight_v', 0.3)),
}  # fmt: skip


@pytest.mark.parametrize('kind', FOLDED)
def test_folded(kind: str, legacy: nn.Module, tmp_path: Path) -> None:
    model = changed(legacy, FOLDED[kind])
    read = xception_hub.from_checkpoint(saved(model.state_dict(), tmp_path))
    with torch.no_grad():
        assert torch.equal(read(images(96, 107)), model(images(96, 107)))


def test_not_folded(legacy: nn.Module, tmp_path: Path) -> None:
    """Another parametrization is refused by name, and the way out that is named works."""
    model = changed(legacy, lambda model: parametrizations.orthogonal(model.fc) and None)
    with pytest.raises(CheckpointError, match=r'fc\.parametrizations\.weight\.original.*remove_parametrizations'):
        xception_hub.from_checkpoint(saved(model.state_dict(), tmp_path))
    nn.utils.parametrize.remove_parametrizations(model.fc, 'weight')
    read = xception_hub.from_checkpoint(saved(model.state_dict(), tmp_path))
    assert torch.equal(read.head.fc.weight, model.fc.weight)
    spectral = changed(legacy, FOLDED['spectral norm']).state_dict()
    del spectral['conv1.weight_v']  # as the first version of spectral norm did
    with pytest.raises(CheckpointError, match='conv1.weight_'):
        xception_hub.from_checkpoint(saved(spectral, tmp_path))


@pytest.mark.parametrize(
    ('biased', 'whole'),
    [(all_biased, True), (lambda model: setattr(model.conv1, 'bias', nn.Parameter(torch.ones(32))), False)],
)
def test_biases(biased: Change, whole: bool, legacy: nn.Module, tmp_path: Path) -> None:
    """A bias before a normalization is part of its mean, but for rounding; that of a depthwise convolution too."""
    model = changed(legacy, biased).double()
    read = xception_hub.from_checkpoint(saved(model if whole else model.state_dict(), tmp_path)).double()
    x = images(96, 107).double()
    with torch.no_grad():
        assert (model(x) - legacy.double()(x)).abs().max() > 0.01
        torch.testing.assert_close(read(x), model(x), rtol=0, atol=1e-5)
    legacy.float()


# Other kinds of tensors

PLAIN: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    'numpy, transposed': lambda state: {**state, 'fc.weight': state['fc.weight'].t().contiguous().numpy().T},
    'numpy, big-endian': lambda state: {**state, 'fc.weight': state['fc.weight'].numpy().astype('>f4')},
    'float8': lambda state: {**state, 'fc.weight': state['fc.weight'].to(torch.float8_e4m3fn)},
    'Parameter': lambda state: {name: nn.Parameter(tensor, False) for name, tensor in state.items()},
    'negated': lambda state: {**state, 'fc.weight': torch._neg_view(-state['fc.weight'])},
}


@pytest.mark.parametrize('kind', PLAIN)
def test_tensors_of_other_kinds(kind: str, legacy: nn.Module, tmp_path: Path) -> None:
    legacy.float()
    path = saved(PLAIN[kind](legacy.state_dict()), tmp_path)
    expected = legacy.fc.weight if kind != 'float8' else legacy.fc.weight.to(torch.float8_e4m3fn).float()
    assert torch.equal(xception_hub.from_checkpoint(path).head.fc.weight, expected)


REFUSED: dict[str, Callable[[Tensor], Any]] = {
    'qint8': lambda tensor: torch.quantize_per_tensor(tensor, 0.01, 0, torch.qint8),
    'qint8 per channel': lambda tensor: torch.quantize_per_channel(
        tensor, torch.ones(CLASSES) / 99, torch.zeros(CLASSES), 0, torch.qint8
    ),
    'sparse': torch.Tensor.to_sparse,
}


@pytest.mark.parametrize('kind', REFUSED)
def test_tensors_that_are_refused(kind: str, legacy: nn.Module, tmp_path: Path) -> None:
    """By name, and the code of the message makes them plain."""
    state = {**legacy.float().state_dict(), 'fc.weight': REFUSED[kind](legacy.fc.weight.detach())}
    path = saved(state, tmp_path)
    with pytest.raises(CheckpointError, match='fc.weight') as error:
        xception_hub.from_checkpoint(path)
    code = str(error.value).partition('plain by ')[2].partition('. A network')[0]
    exec(code.replace('plain.pth', str(path)), dict(torch=torch, STATE_DICT=torch.load(path)))
    expected = state['fc.weight'].to_dense() if kind == 'sparse' else state['fc.weight'].dequantize()
    assert torch.equal(xception_hub.from_checkpoint(path).head.fc.weight, expected)


def test_a_quantized_module(legacy: nn.Module, tmp_path: Path) -> None:
    model = torch.ao.quantization.quantize_dynamic(copy.deepcopy(legacy).float(), {nn.Linear})
    with pytest.raises(CheckpointError, match='quantized'):
        xception_hub.from_checkpoint(saved(model, tmp_path))


@pytest.mark.needs('pytorchcv')
@pytest.mark.needs('segmentation_models_pytorch')
@pytest.mark.parametrize('library', ['pytorchcv', 'smp'])
def test_modules_of_other_libraries(library: str, tmp_path: Path) -> None:
    """Their own classes, all of whose modules are compared: one that computes otherwise is found."""
    if library == 'pytorchcv':
        from pytorchcv.model_provider import get_model

        model, pool = get_model('xception', num_classes=CLASSES).eval(), 'features.stage2.unit1.body.pool'
    else:
        import segmentation_models_pytorch

        model, pool = segmentation_models_pytorch.Unet('xception', encoder_weights=None), 'encoder.block2.rep.6'
    read = xception_hub.from_checkpoint(saved(model.eval(), tmp_path))
    with torch.no_grad():
        if library == 'pytorchcv':
            x = images(299, 299).double()
            torch.testing.assert_close(read.double()(x), model.double()(x))
        else:
            deepest = model.encoder(images(128, 128))[-1].relu()
            assert torch.equal(read.forward_features(images(128, 128)), deepest)
    put(model, pool, nn.AvgPool2d(3, 2, 1))
    with pytest.raises(CheckpointError, match=f'{pool}.*AvgPool2d'):
        xception_hub.from_checkpoint(saved(model, tmp_path))


def test_children_in_a_sequential(legacy: nn.Module, tmp_path: Path) -> None:
    """As fastai and timm's readers cut a network: all activations are there, or the Sequential is another function."""
    model = copy.deepcopy(legacy).float()
    children = dict(model.named_children())
    read = xception_hub.from_checkpoint(saved(nn.Sequential(*list(children.values())[:-2]), tmp_path), num_classes=0)
    with torch.no_grad():
        assert torch.equal(read.forward_features(images(96, 96)), model.forward_features(images(96, 96)))
    for name in ('act2', 'act3', 'act4'):
        children.pop(name)
    with pytest.raises(CheckpointError, match='without an activation'):
        xception_hub.from_checkpoint(saved(nn.Sequential(*list(children.values())[:-2]), tmp_path), num_classes=0)
