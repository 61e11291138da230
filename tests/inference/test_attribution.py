"""Maps that lie where the network looked, change with its weights, and add up to its logits."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import timm
import torch
from random_model import images, random_model

from xception_hub.errors import ModelError, SettingsError
from xception_hub.inference.attribution import METHODS, explain, in_unit_range

Build = Callable[[], Any]


def tiny(**arguments: Any) -> Any:
    return random_model(**{'num_classes': 3, 'width_multiplier': 0.1875, 'min_img_size': 33, **arguments})


def of_timm(name: str, **arguments: Any) -> Any:
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=3, **arguments).eval()


@pytest.mark.parametrize('quarter', range(4))
def test_looks_where_the_information_is(quarter: int) -> None:
    """A quarter of the image has a texture, and the class is what only the texture brings about."""
    model, image = tiny(width_multiplier=0.25), torch.zeros(1, 3, 256, 256)
    rows, columns = (slice(128 * place, 128 * place + 128) for place in divmod(quarter, 2))
    image[..., rows, columns] = 3 * images(128, 128)
    with torch.no_grad():
        blank, seen = model.forward_features(torch.zeros_like(image)), model.forward_features(image)
        silent = blank.amax((0, 2, 3)) < 0.1 * seen.amax((0, 2, 3))
        model.head.fc.weight[1] = (seen - blank).mean((0, 2, 3)) * silent
    maps = explain(model, image, [1], 'gradcam')
    assert maps[..., rows, columns].sum() > 0.45 * maps.sum()  # cells of a map are 32 pixels wide, and see further
    y, x = divmod(int(maps.argmax()), 256)
    assert (y // 128, x // 128) == divmod(quarter, 2)


def test_nothing_is_due_to_what_is_as_in_the_reference() -> None:
    image = torch.zeros(1, 3, 41, 41)
    image[..., :20, 10:] = images(20, 31)
    maps = explain(tiny(), image, [1], 'integrated-gradients')
    assert maps[..., :20, 10:].abs().sum() > 0
    maps[..., :20, 10:] = 0
    assert not maps.any()


@pytest.mark.parametrize('method', METHODS)
def test_changes_with_the_weights(method: str) -> None:
    x = images(71, 71)
    maps = torch.cat([explain(tiny(seed=seed, width_multiplier=0.25), x, [1], method) for seed in (0, 0, 1)]).flatten(1)
    assert torch.equal(maps[0], maps[1])
    assert torch.corrcoef(maps)[0, 2] < 0.9


@pytest.mark.parametrize(
    ('build', 'error'),
    [
        (partial(tiny, act_layer='silu'), 0.03),  # smooth: of a kink, the steps see little
        (partial(of_timm, 'test_vit', img_size=96), 1e-3),
    ],
)
def test_adds_up(build: Build, error: float) -> None:
    """To the difference of the logits from those of a grey image, of each image of a batch."""
    model = build().double()
    size = 96 if hasattr(model, 'patch_embed') else 48
    x = images(size, size, batch=2).double()
    with torch.no_grad():
        difference = (model(x) - model(torch.zeros_like(x)))[[0, 1], [2, 0]]
    assert explain(model, x, [2, 0], 'integrated-gradients').sum((1, 2)) / difference == pytest.approx(1, abs=error)


@pytest.mark.needs('pytorch_grad_cam')
@pytest.mark.parametrize(
    'build',
    [tiny, partial(of_timm, 'test_resnet'), partial(tiny, head_layers=[{'flatten': [3, 3]}, {'fc': 8}])],
    ids=['average', 'timm', 'flatten'],
)
def test_equals_grad_cam(build: Build) -> None:
    """The package of that name, which scales a map from its least to its largest value."""
    import pytorch_grad_cam as library

    model = build()
    layer = model.exit_flow[-1] if hasattr(model, 'exit_flow') else model.layer4[-1]
    x = images(96, 96, batch=2)
    with library.GradCAM(model, [layer]) as cam:
        expected = torch.from_numpy(cam(x, [library.utils.model_targets.ClassifierOutputTarget(c) for c in (2, 1)]))
    maps = explain(model, x, [2, 1])
    for own, other in zip(maps, expected):
        assert torch.corrcoef(torch.stack([own.flatten(), other.flatten()]))[0, 1] > 0.9999


@pytest.mark.parametrize('name', ['swin_s3_tiny_224', 'test_convnext', 'test_efficientnet'])
def test_any_model_with_feature_maps(name: str) -> None:
    """With channels in any place, and activations in place at the beginning of the head."""
    model = of_timm(name)
    size = model.pretrained_cfg['input_size'][1]
    maps = explain(model, images(size, size, batch=2), [0, 2])
    assert maps.shape == (2, size, size) and maps.isfinite().all() and maps.amax((1, 2)).min() > 0


def test_leaves_the_model_as_it_is() -> None:
    """Also within torch.inference_mode, and without gradients of the parameters."""
    model = tiny()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.inference_mode():
        x = images(96, 96)
        for method in METHODS:
            explain(model, x, model(x).argmax(1), method)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
    assert model.stem.act1.inplace


@pytest.mark.parametrize(
    ('values', 'expected'),
    [
        ([0.0, 0.0, 0.0, 0.0], [0, 0, 0, 0]),
        ([-4.0, 0.0, 1.0, 2.0], [0, 0, 0.5, 1]),
        ([0.0, 0.0, 0.0, 1e-30], [0, 0, 0, 1]),
    ],
)
def test_in_unit_range(values: list[float], expected: list[float]) -> None:
    maps = in_unit_range(torch.tensor(values).reshape(1, 2, 2))
    assert maps.flatten().tolist() == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize(
    ('build', 'classes', 'method', 'said'),
    [
        (tiny, [0], 'lime', "There is no method 'lime'. Choose one of gradcam, "),
        (tiny, [3], 'gradcam', r'The classes are \[3\]. .*0 to 2 for each of the 1 images'),
        (tiny, [0, 1], 'gradcam', 'for each of the 1 images'),
        (lambda: tiny().train(), [0], 'gradcam', r'in training mode.*model.eval\(\)'),
        (
            partial(of_timm, 'test_vit', img_size=96),
            [0],
            'gradcam',
            'has no feature maps .* the method integrated-gradients',
        ),
    ],
)
def test_refused(build: Build, classes: list[int], method: str, said: str) -> None:
    with pytest.raises((ModelError, SettingsError), match=said):
        explain(build(), images(96, 96), classes, method)
