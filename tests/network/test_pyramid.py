"""`xception_paper_pyramid`: maps whose sizes decoders expect, of the network that computes as Keras does."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from random_model import images, random_model
from timm.models import save_for_hf
from torch import Tensor, nn
from torch.export import Dim

import xception_hub
from xception_hub.xception_paper import xception_paper_mid_relu

NAME = 'xception_paper_pyramid'
TINY: dict[str, Any] = dict(width_multiplier=0.1875, min_img_size=31)
SIZE = (128, 128)  # the smallest that PAN takes
NARROW: dict[str, dict[str, Any]] = {  # networks of segmentation_models_pytorch, and what makes them small
    **{name: {} for name in ('Unet', 'UnetPlusPlus', 'MAnet', 'Linknet', 'FPN', 'PSPNet', 'PAN', 'Segformer')},
    'DeepLabV3': dict(decoder_channels=32),
    'DeepLabV3Plus': dict(decoder_channels=32, encoder_output_stride=8),
    'UPerNet': dict(decoder_channels=32),
    # 'ignore' is what it asks of networks without a class token
    'DPT': dict(decoder_readout='ignore', decoder_intermediate_channels=(8, 16, 32, 64), decoder_fusion_channels=32),
}


def pyramid(**kwargs: Any) -> Any:
    return timm.create_model(NAME, features_only=True, **{**TINY, **kwargs}).eval()


@pytest.fixture
def tiny_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """A network of 64 classes by its other name, whose weights XCEPTION_HUB_REPO names."""
    model = random_model(num_classes=1000, **TINY)
    save_for_hf(model, tmp_path / 'tiny', safe_serialization=True)
    monkeypatch.setenv('XCEPTION_HUB_REPO', str(tmp_path / 'tiny'))
    return model


# The maps -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('output_stride', [8, 16, 32])
def test_sizes(output_stride: int) -> None:
    """Exactly ceil(size / reduction), whatever the remainder of the size."""
    model = pyramid(output_stride=output_stride)
    assert model.feature_info.reduction() == [min(2**i, output_stride) for i in range(1, 6)]
    for size in (64, 65, 66, 67, 70, 77):
        for features, reduction in zip(model(images(size, size + 1)), model.feature_info.reduction(), strict=True):
            assert features.shape[2:] == (math.ceil(size / reduction), math.ceil((size + 1) / reduction))


def test_network_computes_as_before() -> None:
    """The maps of `xception_paper`, with their outermost values around them."""
    plain = timm.create_model('xception_paper', features_only=True, **TINY).eval()
    model = pyramid()
    model.load_state_dict(plain.state_dict())
    x = images(64, 66)
    inside = [
        (slice(1, -2), slice(1, -2)), (slice(-1), slice(1, -1)),
        (slice(None), slice(-1)), (slice(None), slice(-1)), (slice(None), slice(-1)),
    ]  # fmt: skip
    for padded, features, (rows, columns) in zip(model(x), plain(x), inside, strict=True):
        assert torch.equal(padded[:, :, rows, columns], features)
        assert set(padded.unique().tolist()) == set(features.unique().tolist())


def test_chosen_maps() -> None:
    """In the order of the stages; `forward_intermediates` gives the same."""
    x = images(64, 66)
    model = timm.create_model(NAME, **TINY).eval()
    features_only = pyramid(out_indices=(4, 1))
    features_only.load_state_dict({name.replace('flow.', 'flow_'): t for name, t in model.state_dict().items()}, False)
    maps = features_only(x)
    assert [features.shape[2] for features in maps] == [16, 2]
    output, intermediates = model.forward_intermediates(x, indices=[4, 1])
    assert torch.equal(output, model.forward_features(x))
    for found in (intermediates, model.forward_intermediates(x, [1, 4], intermediates_only=True)):
        torch.testing.assert_close(found, maps, rtol=0, atol=0)


@pytest.mark.parametrize('index', [0, 3])
def test_pruned(index: int) -> None:
    """It ends with the padded map that it gave before, and `forward_intermediates` with the same."""
    model, x = timm.create_model(NAME, **TINY).eval(), images(67, 70)
    expected = model.forward_intermediates(x, [index], intermediates_only=True)[0]
    assert model.prune_intermediate_layers([index]) == [index]
    output, maps = model.forward_intermediates(x, [index])
    assert all(torch.equal(found, expected) for found in (model.forward_features(x), model(x), output, *maps))


def test_positions() -> None:
    """The pixel that a position stands for, through residual connections alone and kernels of one tap."""
    model = pyramid()
    size = 128
    column = torch.arange(float(size)).expand(1, 3, size, size)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 4:
            nn.init.zeros_(parameter)
            middle = parameter.shape[2] // 2
            parameter.data[:, 0, middle, middle] = 1
        elif '.stack.' in name:
            nn.init.zeros_(parameter)
    with torch.no_grad():
        for norm in model.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.eps = 0
        maps = model(column)[:4]
    for features, offset, reduction in zip(maps, (1, 3, 3, 3), (2, 4, 8, 16), strict=True):
        pixels = features[0, 0, size // reduction // 2]
        inside = slice(1, -2)  # of what is not repeated
        expected = torch.arange(float(size // reduction)) * reduction + offset
        torch.testing.assert_close(pixels[inside], expected[inside])


@pytest.mark.parametrize('make', [torch.jit.script, torch.fx.symbolic_trace])
def test_programs(make: Any) -> None:
    """Programs for all sizes."""
    model, x = pyramid(), images(67, 81, batch=3)
    torch.testing.assert_close(make(model)(x), model(x), rtol=1e-5, atol=1e-6)


# The weights ----------------------------------------------------------------------------------------------------------


def test_weights_of_a_directory(tiny_weights: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory of either name serves both, and that of another network none."""
    model = timm.create_model(NAME, pretrained=True, **TINY).eval()
    x = images(64, 65)
    assert torch.equal(model(x), tiny_weights(x))
    save_for_hf(model, tmp_path / 'pyramid', safe_serialization=True)
    monkeypatch.setenv('XCEPTION_HUB_REPO', str(tmp_path / 'pyramid'))
    assert torch.equal(timm.create_model('xception_paper', pretrained=True, **TINY).eval()(x), tiny_weights(x))
    save_for_hf(xception_paper_mid_relu(**TINY), tmp_path / 'other', safe_serialization=True)
    monkeypatch.setenv('XCEPTION_HUB_REPO', str(tmp_path / 'other'))
    with pytest.raises(xception_hub.WeightsError, match=f"'xception_paper_mid_relu'.*'{NAME}'"):
        timm.create_model(NAME, pretrained=True, **TINY)


# Decoders -------------------------------------------------------------------------------------------------------------


def segmentation(decoder: str) -> Any:
    """One with pretrained weights and two classes."""
    import segmentation_models_pytorch as smp

    return getattr(smp, decoder)(f'tu-{NAME}', encoder_weights=True, classes=2, **TINY, **NARROW[decoder])


@pytest.mark.needs('segmentation_models_pytorch')
@pytest.mark.parametrize('decoder', NARROW)
def test_decoders_learn(decoder: str, tiny_weights: Any) -> None:
    """With the weights that were named, and logits of the size of the images."""
    torch.manual_seed(0)
    model = segmentation(decoder)
    assert torch.equal(model.encoder.model.state_dict()['stem.conv1.weight'], tiny_weights.stem.conv1.weight)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    masks = (torch.arange(SIZE[1]) < SIZE[1] / 2).long().expand(2, *SIZE)
    x = images(*SIZE, batch=2) + masks[:, None]
    losses = []
    for _ in range(3):
        logits: Tensor = model(x)
        assert logits.shape == (2, 2, *SIZE)
        loss = nn.functional.cross_entropy(logits, masks)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0]


@pytest.mark.needs('segmentation_models_pytorch')
@pytest.mark.parametrize('decoder', ['UnetPlusPlus', 'FPN'])
def test_decoders_on_a_padded_stem(decoder: str) -> None:
    """Its maps fit as they are, which those of the stem of Keras do not."""
    import segmentation_models_pytorch as smp

    make = partial(getattr(smp, decoder), 'tu-xception_paper', encoder_weights=None, classes=2, **TINY)
    model, x = make(stem_padding=1).eval(), images(96, 64)
    network = timm.create_model('xception_paper', features_only=True, stem_padding=1, **TINY).eval()
    network.load_state_dict(model.encoder.model.state_dict())
    maps = model.encoder(x)[1:]
    assert [features.shape[2:] for features in maps] == [(96 >> i, 64 >> i) for i in range(1, 6)]
    assert all(map(torch.equal, maps, network(x)))
    assert model(x).shape == (1, 2, 96, 64)
    with pytest.raises(RuntimeError, match='size'):
        make().eval()(x)


@pytest.mark.slow
@pytest.mark.needs('segmentation_models_pytorch')
def test_decoder_exported(tiny_weights: nn.Module) -> None:
    """One program for images of 32n pixels, of a decoder that joins the maps of all stages."""
    model = segmentation('FPN').eval()
    sizes = {0: Dim('batch'), 2: 32 * Dim('rows', min=2, max=32), 3: 32 * Dim('columns', min=2, max=32)}
    program = torch.export.export(model, (images(64, 96, batch=2),), dynamic_shapes=(sizes,)).module()
    x = images(128, 64, batch=3)
    torch.testing.assert_close(program(x), model(x), rtol=1e-4, atol=1e-5)
