"""The network by itself: its size, its arguments and their errors, its dilated forms, its head."""

import copy
import math
import re
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from random_model import images, random_model
from torch import Tensor, nn

from xception_hub import Xception
from xception_hub.layers import max_pool_same
from xception_hub.modules import XceptionModule
from xception_hub.porting.parity import one_thread

# Two computations of the same in float64, relative and absolute.
FLOAT64 = dict(rtol=1e-10, atol=1e-12)

# Height and width in every combination of odd and even. The maps at stride 8, which the dilated network pools with
# dilation, have 9, 12, 11, 10 rows and 9, 11, 10, 12 columns: all remainders of the division by 4.
SIZES = [(71, 71), (96, 90), (90, 81), (81, 98)]


NARROW: dict[str, Any] = dict(width_multiplier=0.25)


@pytest.fixture(scope='module')
def model() -> Xception:
    """Read only: a test that changes it works on a copy."""
    return random_model()


def on_meta(**kwargs: Any) -> Xception:
    """A model without values, which costs nothing."""
    return timm.create_model('xception_paper', device='meta', **kwargs)


# Pooling and dilation -------------------------------------------------------------------------------------------------


def tensorflow_same(x: Tensor) -> Tensor:
    """3x3 max pooling with stride 2 and SAME padding, as TensorFlow defines it."""
    pad: list[int] = []
    for n in (x.shape[3], x.shape[2]):
        total = max((-(-n // 2) - 1) * 2 + 3 - n, 0)
        pad += [total // 2, total - total // 2]
    return F.max_pool2d(F.pad(x, pad, value=float('-inf')), 3, 2)


@pytest.mark.parametrize('size', [(3, 3), (3, 4), (4, 3), (4, 4), (9, 12)])
def test_pooling_is_tensorflows(size: tuple[int, int]) -> None:
    """Also where all values are negative, which padding with zeros would show."""
    x = images(*size) - 10
    assert torch.equal(max_pool_same(x, 2, 1, False), tensorflow_same(x))


@pytest.mark.parametrize(('size', 'pool_padding'), [*((size, 'same') for size in SIZES[1:]), (SIZES[2], 'symmetric')])
@pytest.mark.parametrize('output_stride', [16, 8])
def test_dilated_network_is_the_strided_one(output_stride: int, size: tuple[int, int], pool_padding: str) -> None:
    """At the positions that the two share, every map is equal, whatever the parity of the sizes."""
    kwargs: dict[str, Any] = dict(pool_padding=pool_padding, width_multiplier=0.25)
    strided = random_model(**kwargs).double()
    dilated = random_model(**kwargs, output_stride=output_stride).double()
    dilated.load_state_dict(strided.state_dict())
    with torch.no_grad(), one_thread():
        maps = [m.forward_intermediates(images(*size).double(), intermediates_only=True) for m in (strided, dilated)]
    for info, fine_info, coarse, fine in zip(strided.feature_info, dilated.feature_info, *maps):
        k = info['reduction'] // fine_info['reduction']
        torch.testing.assert_close(fine[:, :, ::k, ::k], coarse, **FLOAT64)
    assert max(info['reduction'] for info in dilated.feature_info) == output_stride


# Head, dropout, stochastic depth, activations -------------------------------------------------------------------------


def test_drop_rate_drops_in_training_only(model: Xception) -> None:
    """In training each pooled feature is 0 or twice itself, about half of them 0; in evaluation it is itself."""
    head = copy.deepcopy(model.head)
    head.drop.p = on_meta(drop_rate=0.5).head.drop.p
    pooled = torch.rand(4, 2048, 3, 3)
    expected = pooled.mean((2, 3))
    torch.testing.assert_close(head.eval()(pooled, pre_logits=True), expected)
    ratio = head.train()(pooled, pre_logits=True) / expected
    torch.testing.assert_close(ratio, 2 * ratio.round().clamp(max=1))
    assert 0.45 < (ratio == 0).float().mean() < 0.55


def test_drop_path_rate() -> None:
    """It grows linearly from module 2 to 13, and drops the stack of some samples but never the residual connection."""
    model = random_model(**NARROW, drop_path_rate=0.5)
    modules = [m for m in model.modules() if isinstance(m, XceptionModule)]
    rates = [getattr(m.drop_path, 'drop_prob', 0.0) for m in modules]
    torch.testing.assert_close(torch.tensor(rates), torch.cat([torch.linspace(0, 0.5, 12), torch.zeros(1)]))

    module, x = model.exit_flow[0], torch.randn(32, 184, 5, 5)
    with torch.no_grad():
        torch.testing.assert_close(module(x), module.shortcut(x) + module.stack(x))
        module.drop_path.train()
        share = (module(x) - module.shortcut(x)).flatten(1).norm(dim=1) / module.stack(x).flatten(1).norm(dim=1)
    torch.testing.assert_close(share, 2 * share.round().clamp(max=1))
    assert set(share.round().tolist()) == {0.0, 2.0}


def test_fc_widths() -> None:
    """The fully connected layers stand between pooling and classifier, and survive another classifier."""
    model = random_model(**NARROW, fc_widths=(32, 16), num_classes=5)
    features = torch.rand(2, 512, 3, 3)
    before = model.forward_head(features, pre_logits=True)
    assert (model.head_hidden_size, before.shape, model.forward_head(features).shape) == (16, (2, 16), (2, 5))
    model.reset_classifier(7)
    assert torch.equal(model.forward_head(features, pre_logits=True), before)
    assert (model.head_hidden_size, model.forward_head(features).shape) == (16, (2, 7))


@pytest.mark.parametrize(('pool', 'width'), [('', 512), ('avg', 16), ('max', 16), ('catavgmax', 16)])
def test_fc_widths_and_pooling(pool: str, width: int) -> None:
    """Without pooling there are no fully connected layers; with any pooling, whatever was before, there are."""
    features, kwargs = torch.rand(2, 512, 3, 3), dict(NARROW, fc_widths=(16,))
    created, reset = random_model(**kwargs, num_classes=0, global_pool=pool), random_model(**kwargs)
    reset.reset_classifier(0, '')
    reset.reset_classifier(0, pool)
    for model in (created, reset):
        assert model.head_hidden_size == width
        assert model.forward_head(features).shape == ((2, width) if pool else features.shape)


def test_head_layers() -> None:
    """Numbered by kind, in the order given; a list of the paper's kind is what `fc_widths` is short for."""
    model = random_model(
        **NARROW,
        num_classes=3,
        head_layers=[
            {'bn': 1e-5, 'momentum': 0.9},
            {'drop': 0.3},
            {'fc': 24, 'bias': False},
            {'bn': 1e-3},
            {'act': 'gelu'},
            {'fc': 8},
        ],
    )
    layers = model.head.fc_layers
    assert list(dict(layers.named_children())) == ['bn1', 'drop1', 'fc1', 'bn2', 'act1', 'fc2']
    assert (layers.bn1.eps, layers.bn1.momentum, layers.bn2.eps) == (1e-5, pytest.approx(0.1), 1e-3)
    assert (layers.fc1.bias, layers.drop1.p, model.head_hidden_size) == (None, 0.3, 8)
    features = torch.rand(2, 512, 3, 3)
    expected = model.head.fc(layers.fc2(F.gelu(layers.bn2(layers.fc1(layers.bn1(features.mean((2, 3))))))))
    torch.testing.assert_close(model.forward_head(features), expected)
    torch.testing.assert_close(torch.jit.script(model).forward_head(features), expected)
    short, long = on_meta(fc_widths=(8,)), on_meta(head_layers=[{'fc': 8}, {'act': 'relu'}])
    assert repr(short.head) == repr(long.head)


@pytest.mark.parametrize(('act_layer', 'kind'), [('silu', nn.SiLU), (nn.ELU, nn.ELU)])
def test_act_layer(act_layer: Any, kind: type) -> None:
    """One activation for all 35 places, and two more in the head."""
    model = on_meta(act_layer=act_layer, fc_widths=(8, 8))
    assert sum(isinstance(m, kind) for m in model.modules()) == 37
    assert not [
        m
        for m in model.modules()
        if type(m).__module__.startswith('torch.nn.modules.activation') and not isinstance(m, kind)
    ]


# Errors ---------------------------------------------------------------------------------------------------------------


BAD: list[tuple[str, list[Any], str]] = [  # argument, values, the choices that the error names
    ('output_stride', [4], '(8, 16, 32)'),
    ('pool_padding', ['valid'], "('same', 'symmetric')"),
    ('fc_widths', [[0]], 'positive'),
    ('drop_rate', [1.5], 'in [0, 1)'),
    ('drop_path_rate', [-1], 'in [0, 1)'),
    ('bn_eps', [0], 'positive'),
    ('min_img_size', [3], 'at least 7'),
    ('in_chans', [0], 'at least 1'),
    ('num_classes', [-1], 'at least 0'),
    ('global_pool', ['median'], "'catavgmax'"),
    ('head_layers', [[{'fc': 0}], ['fc'], [{'fc': 8, 'act': 'relu'}], [{'drop': 1}], [{}]], "'flatten'"),
    ('segments', [3, 0, 16], '(None, 1, 2, 4, 8)'),
    ('order', ['both'], "('depthwise_first', 'pointwise_first')"),
    ('mid_act_layer', ['rely'], "'relu' or 'elu'"),
    ('width_multiplier', [0.125, 0.0, -1.0, math.nan, math.inf], 'above 0.125'),
]


@pytest.mark.parametrize(('name', 'values', 'choices'), BAD, ids=[name for name, *_ in BAD])
def test_bad_argument(name: str, values: list[Any], choices: str) -> None:
    """The error names the argument, its value and the choices."""
    for value in values:
        with pytest.raises(ValueError, match=f'{re.escape(f"{name}={value!r}")}.*{re.escape(choices)}'):
            on_meta(**{name: value})


def test_arguments_that_exclude_each_other() -> None:
    with pytest.raises(ValueError, match='residual=False.*True if drop_path_rate'):
        on_meta(residual=False, drop_path_rate=0.1)
    with pytest.raises(ValueError, match='fc_widths'):
        on_meta(fc_widths=(8,), head_layers=[{'fc': 8}])


@pytest.mark.parametrize(
    ('shape', 'named', 'remedy'),
    [
        ((1, 3, 70, 71), '70x71', 'min_img_size='),
        ((1, 3, 71, 70), '71x70', 'min_img_size='),
        ((1, 4, 71, 71), '[1, 4, 71, 71]', 'in_chans='),
        ((3, 71, 71), '[3, 71, 71]', 'Reshape'),
    ],
)
def test_bad_input(shape: tuple[int, ...], named: str, remedy: str, model: Xception) -> None:
    """The error names the size that it got and what to do."""
    with pytest.raises(ValueError, match=f'{re.escape(named)}.*{remedy}'):
        model(torch.zeros(shape))


@pytest.mark.parametrize('min_img_size', [7, 64])
def test_smallest_image(min_img_size: int, model: Xception) -> None:
    """With `min_img_size` the network takes what Keras refuses."""
    small = timm.create_model('xception_paper', min_img_size=min_img_size).eval()
    small.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.isfinite(small(images(min_img_size, min_img_size))).all()
        assert torch.equal(small(images(71, 71)), model(images(71, 71)))
    with pytest.raises(ValueError, match=f'{min_img_size - 1}x{min_img_size}'):
        small(images(min_img_size - 1, min_img_size))
