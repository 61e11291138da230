"""Heads of every kind beside a backbone, means and deviations of images, adapters: read for certain, or asked for."""

import copy
import json
import re
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from random_model import images
from timm.models import save_for_hf
from torch import Tensor, nn
from torch.nn.functional import linear as linear_function
from torch.nn.functional import normalize

import xception_hub
from benchmarks.checkpoints import Normalize, linear, pytorchcv, trained
from xception_hub.errors import WeightsError

CLASSES = 3
pytestmark = pytest.mark.filterwarnings(r"ignore:.*Assumed. global_pool='avg'\.$")
Parts = dict[str, nn.Module]


@pytest.fixture(scope='module')
def legacy() -> nn.Module:
    return trained()


@pytest.fixture(scope='module')
def maps(legacy: nn.Module) -> Tensor:
    """The last maps of two images, in float64."""
    with torch.inference_mode():
        return copy.deepcopy(legacy).double().forward_features(images(96, 107, batch=2).double())  # type: ignore[operator]


def backbone(legacy: nn.Module, prefix: str = '') -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in legacy.state_dict().items() if not name.startswith('fc.')}


def tensors(**modules: nn.Module) -> dict[str, Tensor]:
    return {f'{path}.{name}': t for path, module in modules.items() for name, t in module.state_dict().items()}


def save(path: Path, value: Any) -> Path:
    torch.save(value, path)
    return path


def logits(model: nn.Module) -> Tensor:
    with torch.inference_mode():
        return model.double()(images(96, 107, batch=2).double())


def applied(maps: Tensor, *layers: nn.Module, act: Callable[[Tensor], Tensor] = torch.relu) -> Tensor:
    """Layers with activations between them, on averages, as torch computes them."""
    with torch.inference_mode():
        x = maps.mean((2, 3))
        for i, layer in enumerate(layers):
            x = copy.deepcopy(layer).double().eval()(act(x) if i else x)
        return x


def fc(bias: bool = True) -> nn.Module:
    return linear(2048, CLASSES, bias)


def norm(features: int) -> nn.Module:
    made = nn.BatchNorm1d(features)
    made.load_state_dict(
        {name: torch.rand(features) + 0.5 for name in ('weight', 'bias', 'running_mean', 'running_var')}, False
    )
    return made.eval()


# The head wherever it is, whatever it is called

PLACES: dict[str, tuple[str, str]] = {  # prefix of the backbone, name of the classifier
    'mmpretrain': ('backbone.timm_model.', 'head.fc'),
    'features_only': ('net.backbone.body.', 'classifier'),
    'DataParallel': ('module.backbone.timm_model.', 'module.head.fc'),
    'another container': ('backbone.', 'head'),
    'within the prefix': ('model.', 'model.logits.fc'),
    'f1': ('', 'f1'),
    'metric_fc': ('m.', 'metric_fc'),
    'criterion': ('m.', 'criterion.head'),
    'optim': ('m.', 'optim_head'),
    'scaler': ('m.', 'scaler.amp'),
}


@pytest.mark.parametrize('place', PLACES)
def test_places(place: str, legacy: nn.Module, maps: Tensor, tmp_path: Path) -> None:
    """No name and no level hides a head, and no class count makes it a random one."""
    prefix, name = PLACES[place]
    head = fc()
    state: dict[str, Any] = {**backbone(legacy, prefix), **tensors(**{name: head})}
    if place == 'another container':
        state = dict(backbone=backbone(legacy), head=head.state_dict())
    path = save(tmp_path / 'x.pth', dict(state_dict=state, best=torch.tensor(0.5)))
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', '.*left out best')
        for arguments in ({}, dict(num_classes=CLASSES), dict(classifier=name), dict(classifier=f'{name}.weight')):
            assert torch.equal(logits(xception_hub.from_checkpoint(path, **arguments)), applied(maps, head))
    with pytest.warns(UserWarning, match='starts at random'):
        assert xception_hub.from_checkpoint(path, num_classes=5).num_classes == 5


@pytest.mark.filterwarnings('ignore:.*no bias, is a linear layer')
def test_every_classifier_that_is_named(legacy: nn.Module, maps: Tensor, tmp_path: Path) -> None:
    """By layer, Sequential, end of a path or tensor; what is left out is said to change the function perhaps."""
    one, two = fc(), fc()
    arc = nn.ParameterDict({'W': torch.randn(CLASSES, 2048)})
    curricular = nn.ParameterDict({'kernel': torch.randn(2048, CLASSES)})
    parts = tensors(**{'heads.0': one, 'heads.1': two, 'side.arc': arc, 'side.curricular': curricular})
    path = save(tmp_path / 'x.pth', {**backbone(legacy, 'net.'), **parts})
    expected = {
        'heads.0': one,
        'heads.1.bias': two,
        'side.arc.W': partial(linear_function, weight=arc['W'].double()),
        'kernel': partial(linear_function, weight=curricular['kernel'].double().T),
    }
    for name, head in expected.items():
        with pytest.warns(UserWarning, match='if the network computes with them'):
            model = xception_hub.from_checkpoint(path, classifier=name)
        right = applied(maps, head) if isinstance(head, nn.Module) else head(maps.mean((2, 3)))
        torch.testing.assert_close(logits(model), right, rtol=1e-12, atol=1e-12)
    with pytest.raises(xception_hub.CheckpointError, match="'other'.*'heads.0', 'heads.1'"):
        xception_hub.from_checkpoint(path, classifier='other')


# Layers of pytorchcv within Sequentials


@pytest.mark.needs('pytorchcv')
@pytest.mark.parametrize('kind', ['children of the features', 'features alone', 'all children', 'rgb'])
def test_pytorchcv_in_sequentials(kind: str, legacy: nn.Module, tmp_path: Path) -> None:
    from pytorchcv.model_provider import get_model

    pytorchcv(legacy, tmp_path / 'theirs.pth')
    theirs = get_model('xception', num_classes=7).eval()
    theirs.load_state_dict(torch.load(tmp_path / 'theirs.pth'))
    nets: dict[str, nn.Module] = {
        'children of the features': nn.ModuleDict(
            dict(body=nn.Sequential(*theirs.features.children()), fc=theirs.output)
        ),
        'features alone': nn.ModuleDict(dict(net=theirs.features, fc=theirs.output)),
        'all children': nn.Sequential(*theirs.children()),
        'rgb': nn.ModuleDict(dict(rgb=theirs, noise=copy.deepcopy(theirs))),
    }
    path = save(tmp_path / 'x.pth', nets[kind].state_dict())
    arguments = dict(prefix='rgb') if kind == 'rgb' else {}
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', '.*another network')
        assert torch.equal(logits(xception_hub.from_checkpoint(path, **arguments)), logits(copy.deepcopy(legacy)))


# What may compute is named, and no advice drops it silently

UNPLACED: dict[str, tuple[Parts, str]] = {
    'attention': (dict(se=nn.Sequential(linear(2048, 128), nn.ReLU(), linear(128, 2048))), '2048 -> 128 -> 2048'),
    'attention of convolutions': (
        {'se.fc1': nn.Conv2d(2048, 128, 1), 'se.fc2': nn.Conv2d(128, 2048, 1)}, 'as attention does'
    ),
    'F3Net': ({'FAD_head': nn.ParameterDict({'_DCT_all': torch.zeros(299, 299)})}, r'FAD_head._DCT_all \[299, 299\]'),
    'temperature': (dict(calibration=nn.ParameterDict({'scale': torch.tensor(2.0)})), 'calibration.scale'),
    'centers': (dict(criterion=nn.ParameterDict({'centers': torch.zeros(2, 2048)})), 'criterion.centers'),
    'a 3x3 convolution': (dict(neck=nn.Conv2d(2048, 8, 3)), 'neck.weight'),
    'adjust_channel on the path': (
        dict(adjust_channel=nn.Sequential(nn.Conv2d(2048, 512, 1), nn.BatchNorm2d(512)), last_linear=linear(512)),
        'if its convolutions follow the pooling',
    ),
}  # fmt: skip


@pytest.mark.parametrize('kind', UNPLACED)
def test_what_may_compute_is_refused(kind: str, legacy: nn.Module, tmp_path: Path) -> None:
    parts, named = UNPLACED[kind]
    state = {**backbone(legacy, 'net.'), **tensors(**parts)}
    if 'adjust' not in kind:
        state |= tensors(fc=fc())
    path = save(tmp_path / 'x.pth', state)
    with pytest.raises(xception_hub.CheckpointError, match=named) as error:
        xception_hub.from_checkpoint(path)
    assert 'num_classes=0' in str(error.value)
    with pytest.warns(UserWarning, match='num_classes=0 and features_only=True do without'):
        xception_hub.from_checkpoint(path, num_classes=0)
    if way := re.search(r"classifier='(\w+)'", str(error.value)):
        with pytest.warns(UserWarning, match='if the network computes with them, this is another'):
            assert xception_hub.from_checkpoint(path, classifier=way[1]).num_classes == CLASSES


def test_layers_within_the_backbone(legacy: nn.Module, tmp_path: Path) -> None:
    """They cannot be left out: even the features would be others."""
    state = {**backbone(legacy), **tensors(fc=fc()), 'block3.se.fc.weight': torch.zeros(16, 256)}
    for arguments in ({}, dict(num_classes=0), dict(classifier='fc')):
        with pytest.raises(xception_hub.CheckpointError, match='within the backbone.*block3.se.fc.weight'):
            xception_hub.from_checkpoint(save(tmp_path / 'x.pth', state), **arguments)


def test_what_cannot_compute(legacy: nn.Module, maps: Tensor, tmp_path: Path) -> None:
    """States of optimizers, counts and weights of losses go with a warning."""
    head = fc()
    useless = {
        'criterion.weight': torch.ones(3),
        'total_ops': torch.ones(1),
        'm.conv1.total_ops': torch.ones(1),
        'metric.confmat': torch.ones(3, 3),
    }
    state = {**backbone(legacy, 'm.'), **tensors(fc=head), **useless}
    whole = dict(net=state, optimizer=dict(state={0: dict(exp_avg=torch.zeros(3, 2048))}), best=torch.tensor(1.0))
    with pytest.warns(UserWarning, match='left out'):
        model = xception_hub.from_checkpoint(save(tmp_path / 'x.pth', whole))
    assert torch.equal(logits(model), applied(maps, head))


# Heads of several layers


@pytest.mark.parametrize(
    'kind', ['fc1', 'ModuleList', 'a normalization after', 'an embedding', 'convolutions', 'bnneck']
)
def test_several_layers(kind: str, legacy: nn.Module, maps: Tensor, tmp_path: Path) -> None:
    """The caller names them; the call in the error is right as it stands, but for the activation."""
    hidden, last = linear(2048, 32), linear(32, CLASSES)
    after = norm(32)
    parts: dict[str, tuple[Parts, list[nn.Module]]] = {
        'fc1': (dict(fc1=hidden, fc2=last), [hidden, last]),
        'ModuleList': (dict(layers=nn.ModuleList([hidden, last])), [hidden, last]),
        'a normalization after': (dict(fc1=hidden, fc2=last, bn=after), [nn.Sequential(hidden, after), last]),
        'an embedding': (dict(embed=hidden, bn=after, arc=last), [nn.Sequential(hidden, after), last]),
        'convolutions': ({}, [hidden, last]),
        'bnneck': (dict(neck=(neck := norm(2048)), out=(out := fc())), [nn.Sequential(neck, out)]),
    }
    modules, layers = parts[kind]
    state = tensors(**modules)
    if kind == 'convolutions':
        state = {name: t[:, :, None, None] if t.dim() == 2 else t for name, t in tensors(c1=hidden, c2=last).items()}
    path = save(tmp_path / 'x.pth', {**backbone(legacy, 'net.'), **state})
    with pytest.raises(xception_hub.CheckpointError, match='head_layers=') as error:
        xception_hub.from_checkpoint(path)
    call = re.search(r'head_layers=(\[.*?\])[;.]', str(error.value))
    assert call
    proposal = eval(call[1])
    if kind == 'a normalization after':  # the file's order is not the order of the calls
        proposal = [{'fc': 32}, {'bn': 1e-5}, {'act': 'relu'}]
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', '.*convolution c2 after')
        model = xception_hub.from_checkpoint(path, head_layers=proposal)
    torch.testing.assert_close(logits(model), applied(maps, *layers), rtol=1e-12, atol=1e-12)
    for wrong in ([{'fc': 31}], [{'fc': 32}, {'fc': 32}]):
        with pytest.raises(xception_hub.CheckpointError, match='has other layers than head_layers='):
            xception_hub.from_checkpoint(path, head_layers=wrong)


def test_layers_that_could_change_places(legacy: nn.Module, maps: Tensor, tmp_path: Path) -> None:
    """Two layers of one shape before two classifiers: nobody knows which belongs to which."""
    a, b, last = linear(2048, 32), linear(2048, 32), linear(32, CLASSES)
    state = {**backbone(legacy, 'net.'), **tensors(a1=a, b1=b, a2=last, b2=linear(32, 2))}
    named: dict[str, Any] = dict(classifier='a2', head_layers=[{'fc': 32}, {'act': 'relu'}])
    with pytest.raises(xception_hub.CheckpointError, match=r"'a1', 'b1' could stand.*del state"):
        xception_hub.from_checkpoint(save(tmp_path / 'x.pth', state), **named)
    for name in ('b1.weight', 'b1.bias'):
        del state[name]
    with pytest.warns(UserWarning, match='not the classifier'):
        model = xception_hub.from_checkpoint(save(tmp_path / 'x.pth', state), **named)
    assert torch.equal(logits(model), applied(maps, a, last))


def test_a_1x1_convolution(legacy: nn.Module, maps: Tensor, tmp_path: Path) -> None:
    head = nn.Conv2d(2048, CLASSES, 1)
    path = save(tmp_path / 'x.pth', {**backbone(legacy, 'net.'), **tensors(classifier=head)})
    with pytest.warns(UserWarning, match='the convolution classifier'):
        model = xception_hub.from_checkpoint(path)
    with torch.inference_mode():
        expected = copy.deepcopy(head).double()(maps).mean((2, 3))
    torch.testing.assert_close(logits(model), expected, rtol=1e-12, atol=1e-12)


class Functional(nn.Module):
    """A wrapper that is pickled whole, with its layers in order."""

    def __init__(self, model: nn.Module, **parts: nn.Module) -> None:
        super().__init__()
        self.model = copy.deepcopy(model)
        del self.model.fc
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Tensor:
        x = self.model.forward_features(x).mean((2, 3))  # type: ignore[operator]
        for name, part in self.named_children():
            x = x if name == 'model' else part(x)
        return x


def test_pickled_layers_outside_a_sequential(legacy: nn.Module, tmp_path: Path) -> None:
    """Their order stands in the program alone: it is asked for, and what the caller names is computed."""
    layers = dict(fc1=linear(2048, 32), act=nn.Tanh(), fc2=linear(32, CLASSES))
    lists = dict(fcs=nn.ModuleList([linear(2048, 32), linear(32, CLASSES)]))
    for parts in (layers, {name: layers[name] for name in ('fc1', 'fc2')}, lists):
        whole = Functional(legacy, **parts).eval()
        path = save(tmp_path / 'x.pth', whole)
        with pytest.raises(xception_hub.CheckpointError, match='head_layers='):
            xception_hub.from_checkpoint(path)
        if parts is layers:
            read = xception_hub.from_checkpoint(path, head_layers=[{'fc': 32}, {'act': 'tanh'}])
            assert torch.equal(logits(read), logits(whole))


def test_settings_of_pickled_layers(legacy: nn.Module, tmp_path: Path) -> None:
    """A slope, or the form of an activation, is no other than that of the layer in its place here."""
    for act in (nn.LeakyReLU(0.2), nn.GELU('tanh'), nn.ELU(0.5), nn.Softplus()):
        whole = Functional(legacy, fc=nn.Sequential(linear(2048, 32), act, linear(32, CLASSES))).eval()
        with pytest.raises(xception_hub.CheckpointError, match=type(act).__name__):
            xception_hub.from_checkpoint(save(tmp_path / 'x.pth', whole))
    for act in (nn.LeakyReLU(), nn.GELU(), nn.Hardswish(True)):
        whole = Functional(legacy, fc=nn.Sequential(linear(2048, 32), act, nn.Dropout(), linear(32, CLASSES))).eval()
        read = xception_hub.from_checkpoint(save(tmp_path / 'x.pth', whole))
        torch.testing.assert_close(logits(read), logits(whole), rtol=1e-12, atol=1e-12)


class ArcMarginProduct(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(CLASSES, 2048))

    def forward(self, x: Tensor) -> Tensor:
        return linear_function(normalize(x), normalize(self.weight))


def test_heads_without_bias(legacy: nn.Module, tmp_path: Path) -> None:
    """A linear layer, said; the code for cosines in the warning gives those of the head; a pickle names its class."""
    whole = Functional(legacy, arc=ArcMarginProduct()).eval()
    path = save(tmp_path / 'x.pth', whole.state_dict())
    with pytest.warns(UserWarning, match='arc, which has no bias') as said:
        model = xception_hub.from_checkpoint(path)
    code = re.search(r'its cosines are (.*)\); ', str(said[0].message))
    assert code
    x = images(96, 107, batch=2).double()
    with torch.inference_mode():
        torch.testing.assert_close(
            eval(code[1], dict(torch=torch, model=model.double(), x=x)), whole.double()(x), rtol=1e-12, atol=1e-12
        )
    whole.float()
    with pytest.raises(xception_hub.CheckpointError, match='ArcMarginProduct'):
        xception_hub.from_checkpoint(save(path, whole))
    plain = Functional(legacy, last=fc(bias=False)).eval()
    assert torch.equal(logits(xception_hub.from_checkpoint(save(path, plain))), logits(plain))


# Two poolings


def test_poolings_of_fastai(legacy: nn.Module, maps: Tensor, tmp_path: Path) -> None:
    """It has the maxima first; the code in the error exchanges the halves."""
    head = nn.Sequential(norm(4096), linear(4096, 32), nn.ReLU(), linear(32, CLASSES))
    state = {**backbone(legacy, '0.'), **tensors(**{'1': head})}
    path = save(tmp_path / 'x.pth', state)
    with pytest.raises(xception_hub.CheckpointError, match='fastai') as error:
        xception_hub.from_checkpoint(path)
    code = re.search(r'(for name in .*?\)\))\. num', str(error.value))
    assert code
    exec(code[1], dict(state=state))
    layers = [{'bn': 1e-5}, {'fc': 32}, {'act': 'relu'}]
    read = xception_hub.from_checkpoint(save(path, state), global_pool='catavgmax', head_layers=layers)
    with torch.inference_mode():
        expected = head.double()(torch.cat([maps.amax((2, 3)), maps.mean((2, 3))], 1))
    torch.testing.assert_close(logits(read), expected, rtol=1e-12, atol=1e-12)


# How images are normalized

RGB, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TO_255 = tuple(tuple(255 * value for value in values) for values in (RGB, DEVIATION))
CONSTANTS: dict[str, tuple[str, Any, Any, Any]] = {  # kind -> name, mean, deviation, what becomes of them
    'in front': ('0.mean', RGB, DEVIATION, (RGB, DEVIATION)),
    'a layer': ('normalize.mean', RGB, DEVIATION, (RGB, DEVIATION)),
    '0 to 255': ('pixel_mean', *TO_255, (RGB, DEVIATION)),
    'one value': ('data.mean', [0.5], [0.25], ((0.5,) * 3, (0.25,) * 3)),
    'scale alone': ('norm.mean', [0.0] * 3, [255.0] * 3, ((0.0,) * 3, (1.0,) * 3)),
    'images of -1 to 1': ('m.mean', [-1.0] * 3, [2.0] * 3, None),
    'blue first': ('pixel_mean', TO_255[0][::-1], [1.0] * 3, None),
    'no deviation': ('image_mean', RGB, None, None),
    'of which images': ('mean', [2.0] * 3, [3.0] * 3, None),
}


@pytest.mark.filterwarnings('ignore:.*left out')
@pytest.mark.parametrize('kind', CONSTANTS)
def test_normalization(kind: str, legacy: nn.Module, tmp_path: Path) -> None:
    """Known constants become the pretrained cfg's; where they can be read in two ways, the caller is asked."""
    name, mean, std, expected = CONSTANTS[kind]
    state = {**backbone(legacy, '1.'), **tensors(**{'1.fc': fc()}), name: torch.tensor(mean).view(1, -1, 1, 1)}
    if std is not None:
        state[name.replace('mean', 'std')] = torch.tensor(std)
    path = save(tmp_path / 'x.pth', state)
    if expected:
        cfg = xception_hub.from_checkpoint(path).pretrained_cfg
        for found, right in zip((cfg['mean'], cfg['std']), expected):
            assert found == pytest.approx(right, abs=1e-7)
        assert name in cfg['notes'][0]
        assert ('divided by 255' in cfg['notes'][0]) == (kind in ('0 to 255', 'scale alone'))
        return
    with pytest.raises(xception_hub.CheckpointError, match='pretrained_cfg_overlay') as error:
        xception_hub.from_checkpoint(path)
    call = re.search(r'pretrained_cfg_overlay=(dict\(.*?\)\))', str(error.value))
    assert call
    cfg = xception_hub.from_checkpoint(path, pretrained_cfg_overlay=eval(call[1])).pretrained_cfg
    assert (cfg['mean'], cfg['std']) == ((0.5,) * 3, (0.5,) * 3)
    if kind == 'blue first':
        code = str(error.value).rpartition('before: ')[2].rstrip('.')
        exec(code, dict(state=state))
        assert torch.equal(state['1.conv1.weight'], legacy.conv1.weight.flip(1))  # type: ignore[union-attr,operator]


@pytest.mark.filterwarnings('ignore:.*left out')
def test_normalization_gives_the_network_that_was_saved(legacy: nn.Module, tmp_path: Path) -> None:
    """Images prepared as the pretrained cfg says are those that the layer in front made."""
    front = Normalize()
    path = save(tmp_path / 'x.pth', nn.ModuleDict(dict(front=front, net=legacy)).state_dict())
    model = xception_hub.from_checkpoint(path)
    x = torch.rand(2, 3, 96, 107)
    mean, std = (torch.tensor(model.pretrained_cfg[key]).view(1, 3, 1, 1) for key in ('mean', 'std'))
    with torch.inference_mode():
        assert torch.equal(model((x - mean) / std), legacy((x - front.mean) / front.std))


@pytest.mark.parametrize('flat', [False, True], ids=['timm', 'timm before 0.9'])
def test_config_beside_legacy_weights(flat: bool, legacy: nn.Module, tmp_path: Path) -> None:
    model = copy.deepcopy(legacy)
    model.reset_classifier(CLASSES, 'max')  # type: ignore[operator]
    model.pretrained_cfg = {**model.pretrained_cfg, 'mean': RGB, 'std': DEVIATION, 'interpolation': 'bilinear'}  # type: ignore[dict-item]
    save_for_hf(model, tmp_path, safe_serialization=True)
    if flat:
        config = json.loads((tmp_path / 'config.json').read_text())
        (tmp_path / 'config.json').write_text(json.dumps({**config, **config.pop('pretrained_cfg')}))
    read = xception_hub.from_checkpoint(tmp_path / 'model.safetensors')
    assert torch.equal(logits(read), logits(model))
    cfg = read.pretrained_cfg
    assert (tuple(cfg['mean']), tuple(cfg['std']), cfg['interpolation']) == (RGB, DEVIATION, 'bilinear')
    assert 'config beside' in cfg['notes'][0]


@pytest.mark.parametrize(
    'other', [{}, dict(do_rescale=False), dict(do_normalize=False), dict(rescale_factor=1 / 127.5)]
)
def test_preprocessor_config(other: dict[str, Any], legacy: nn.Module, tmp_path: Path) -> None:
    """transformers' mean and deviation, if they are for images of 0 to 1."""
    config = dict(image_mean=RGB, image_std=DEVIATION, **other)
    (tmp_path / 'preprocessor_config.json').write_text(json.dumps(config))
    cfg = xception_hub.from_checkpoint(save(tmp_path / 'x.pth', legacy)).pretrained_cfg
    expected = ((0.5,) * 3, (0.5,) * 3) if other else (RGB, DEVIATION)
    assert (tuple(cfg['mean']), tuple(cfg['std'])) == expected
    assert ('assumed' in cfg['notes'][0]) == bool(other)


# Sources that timm names: the head of the file, or a warning

NUMERICS: dict[str, Any] = dict(pretrained=True, bn_eps=1e-5, pool_padding='symmetric')


@pytest.mark.parametrize('way', ['file', 'state_dict', 'XCEPTION_HUB_REPO', 'own layout', 'several layers'])
def test_a_fitting_head_is_loaded(way: str, legacy: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = copy.deepcopy(legacy)
    model.reset_classifier(5)  # type: ignore[operator]
    given: dict[str, Any] = {}
    if way == 'several layers':
        model.fc = nn.Sequential(linear(2048, 16), nn.ReLU(), linear(16, 5))  # type: ignore[assignment]
        given = dict(head_layers=[{'fc': 16}, {'act': 'relu'}])
    state = model.state_dict()
    if way == 'own layout':
        state = {**xception_hub.from_checkpoint(save(tmp_path / 'old.pth', state)).state_dict()}
    path = save(tmp_path / 'x.pth', state)
    if way == 'XCEPTION_HUB_REPO':
        monkeypatch.setenv('XCEPTION_HUB_REPO', str(path))
    else:
        given['pretrained_cfg_overlay'] = dict(state_dict=state) if way == 'state_dict' else dict(file=str(path))
    create = partial(timm.create_model, 'xception_paper', **NUMERICS)
    assert torch.equal(logits(create(num_classes=5, **given).eval()), logits(model))
    given.pop('head_layers', None)
    with pytest.warns(UserWarning, match='has a classifier of 5 classes.* 4 starts at random'):
        create(num_classes=4, **given)
    with pytest.warns(UserWarning, match='has a classifier of 5 classes.* 4 starts at random'):
        assert create(num_classes=4, fc_widths=[8], **given).head_hidden_size == 8
    with pytest.raises(WeightsError, match='Its head has 5 classes. Pass num_classes=5, fc_widths=') as error:
        create(fc_widths=[8], **given)
    fitting, bare = re.findall(r'num_classes=\d(?:, fc_widths=\[\])?', str(error.value))
    if way != 'several layers':
        read = create(**eval(f'dict({fitting})'), **given)
        assert torch.equal(logits(read.eval()), logits(model))
    with pytest.warns(UserWarning, match='the model returns features'):
        assert create(**eval(f'dict({bare})'), fc_widths=[8], **given).head_hidden_size == 8
    maps = create(features_only=True, **given).eval().double()(images(96, 107, batch=2).double())
    with torch.inference_mode():
        assert torch.equal(maps[-1], model.double().forward_features(images(96, 107, batch=2).double()))  # type: ignore[operator]
    assert create(num_classes=0, **given).num_classes == 0


# Adapters of peft


@pytest.mark.parametrize('whole', [False, True])
def test_adapters(whole: bool, legacy: nn.Module, tmp_path: Path) -> None:
    """LoRA, DoRA and whole copies are refused by name, and peft's own call in the message merges them."""
    peft = pytest.importorskip('peft', reason='needs peft: pip install peft')
    config = partial(peft.LoraConfig, r=4, lora_alpha=8, init_lora_weights=False)
    for arguments in (
        dict(target_modules=['block2.rep.1.pointwise', 'conv2', 'fc'], modules_to_save=['bn4']),
        dict(target_modules=['fc'], use_dora=True),
    ):
        model = peft.get_peft_model(copy.deepcopy(legacy), config(**arguments)).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.add_(0.1 * torch.rand_like(parameter) if 'modules_to_save' in name else 0)
        path = save(tmp_path / 'x.pth', model if whole else model.state_dict())
        with pytest.raises(xception_hub.CheckpointError, match='adapters of peft') as error:
            xception_hub.from_checkpoint(path)
        code = re.search(r'(torch\.save\(.*\.pth.\))', str(error.value))
        assert code
        right = logits(copy.deepcopy(model))
        exec(code[1].replace('merged.pth', str(tmp_path / 'merged.pth')), dict(torch=torch, model=model))
        read = xception_hub.from_checkpoint(tmp_path / 'merged.pth')
        torch.testing.assert_close(logits(read), right, rtol=1e-5, atol=1e-5)
