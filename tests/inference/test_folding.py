"""Batch normalization in the convolutions: the same function, whatever the network is made of."""

import copy
from typing import Any

import pytest
import timm
import torch
from random_model import images, norms_of, random_model

from xception_hub.inference.check import as_list, relative_error
from xception_hub.inference.folding import fold

FLOAT64 = 1e-12  # relative L2 error
SMALL: dict[str, Any] = dict(width_multiplier=0.1875, min_img_size=33, num_classes=5)
VARIANTS = [
    dict(),
    dict(output_stride=8),
    dict(residual=False, mid_act_layer='elu'),
    dict(segments=4, order='pointwise_first', mid_act_layer='relu'),
    dict(bn_eps=1e-5, pool_padding='symmetric', act_layer='silu'),
    dict(head_layers=[{'fc': 16}, {'bn': 1e-3}, {'act': 'relu'}, {'drop': 0.5}]),
    dict(num_classes=0, global_pool=''),
]


@pytest.mark.parametrize('kwargs', VARIANTS, ids=str)
@pytest.mark.parametrize('size', [(41, 54), (96, 80)])
def test_fold(kwargs: dict[str, Any], size: tuple[int, int]) -> None:
    model = random_model(**{**SMALL, **kwargs}).double()
    folded = fold(model)
    assert not norms_of(folded)
    with torch.no_grad():
        x = images(*size, batch=2).double()
        assert relative_error([folded(x)], [model(x)]) < FLOAT64


def test_maps() -> None:
    """`features_only` has several outputs, and one of its maps ends at an activation."""
    model = timm.create_model('xception_paper', features_only=True, **SMALL).eval().double()
    for norm in norms_of(model):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    folded = fold(model)
    assert not norms_of(folded)
    with torch.no_grad():
        x = images(41, 54).double()
        assert relative_error(as_list(folded(x)), as_list(model(x))) < FLOAT64


def test_others() -> None:
    """Another timm model, in float32, in which the copy stays."""
    model = timm.create_model('test_resnet').eval()
    with torch.no_grad():
        assert relative_error([fold(model)(images(64, 64))], [model(images(64, 64))]) < 1e-5


def test_original_stays() -> None:
    model = random_model(**SMALL).train().to(memory_format=torch.channels_last)
    before = copy.deepcopy(model)
    fold(model)
    assert model.training and norms_of(model)
    for (name, tensor), (_, old) in zip(model.state_dict().items(), before.state_dict().items()):
        assert torch.equal(tensor, old) and tensor.stride() == old.stride() and tensor.dtype == old.dtype, name
