"""timm's models on their way through a fine-tuning: built, taken apart, frozen in part, saved and built again."""

import json
import math
import os
import stat
import time
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from random_model import images, norms_of, random_model
from small_images import photo
from timm.data import ImageNetInfo
from torch import Tensor, nn

from xception_hub.errors import ModelError
from xception_hub.models.build import Transforms, build, evaluating
from xception_hub.models.classifier import ProbeHead, build_for, features_of, hub_id, save, set_mode, without_classifier
from xception_hub.training.batches import seed_all

NAMES = ['cat', 'dog', 'hen', 'fox', 'owl']
SMALL = ('test_resnet', 'test_vit', 'test_convnext', 'test_efficientnet', 'test_byobnet')


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / 'model'
    path.mkdir()
    return path


def small(**options: Any) -> nn.Module:
    """With weights none of which is like another."""
    torch.manual_seed(0)
    model = timm.create_model('test_resnet', **dict(dict(num_classes=5), **options))
    with torch.no_grad():
        for tensor in (*model.parameters(), *(buffer for buffer in model.buffers() if buffer.is_floating_point())):
            tensor.uniform_(0.01, 0.2)
    return model.eval()


def logits(model: nn.Module, batch: Tensor) -> Tensor:
    with torch.inference_mode():
        return model.eval()(batch)


# Building


@pytest.mark.parametrize(
    ('name', 'args', 'size', 'reason'),
    [
        ('test_resnet51', {}, None, "There is no model 'test_resnet51'. Similar names are test_resnet[,.].*hf-hub:ID"),
        ('build/nothing', {}, None, "There is no model 'build/nothing'. Pass a model directory"),
        ('local-dir:/none', {}, None, '/none is no model directory: .* Pass a directory'),
        ('test_resnet', dict(frobnicate=1), None, "test_resnet cannot be built: TypeError: .*'frobnicate'"),
        ('xception_paper', dict(output_stride=7), None, 'xception_paper cannot be built: ValueError: output_stride'),
        ('xception_paper', {}, 64, 'xception_paper takes images of 71 pixels at least, not 64. Choose a larger'),
        ('xception_paper', dict(min_img_size=65), 64, 'takes images of 65 pixels at least, not 64'),
    ],
)
def test_what_can_not_be_built(name: str, args: dict[str, Any], size: int | None, reason: str) -> None:
    with pytest.raises(ModelError, match=reason):
        build(name, 5, False, args, size)


def test_sizes_and_arguments() -> None:
    """An argument of None is the default; the model takes any size from its min_img_size on."""
    model = build('xception_paper', 5, False, dict(min_img_size=32, drop_rate=None, drop_path_rate=0.5), 32)
    assert (model.num_classes, model.drop_rate, model.stem.min_img_size) == (5, 0.0, 32)
    assert build('xception_paper', 5, False, {}, 71).num_classes == 5


def test_a_new_classifier_is_zero(folder: Path) -> None:
    """One that fits the weights is theirs."""
    save(folder, small(), Transforms(small(), 64).config, NAMES, False)
    name = f'local-dir:{folder}'
    whole = small().state_dict()
    for classes, new in ((5, False), (None, False), (3, True)):
        tensors = build(name, classes, True, {}, None).state_dict()
        assert all(torch.equal(tensors[key], whole[key]) for key in whole if not key.startswith('fc.'))
        assert torch.equal(tensors['fc.weight'], torch.zeros(3, 96) if new else whole['fc.weight'])
        assert torch.equal(tensors['fc.bias'], torch.zeros(3) if new else whole['fc.bias'])
    assert not build('test_resnet', 5, False, {}, None).fc.weight.any()
    assert build('test_resnet', 1000, False, {}, None).fc.weight.any()
    assert isinstance(build('test_resnet', 0, False, {}, None).get_classifier(), nn.Identity)


# Transforms


def test_config() -> None:
    """timm's own, with the size that is asked for."""
    model = timm.create_model('xception_paper', num_classes=5)
    expected = timm.data.resolve_data_config(model=model)
    assert Transforms(model).config == expected
    assert Transforms(model, 150).config == dict(expected, input_size=(3, 150, 150))
    assert Transforms(model).min_side == math.ceil(299 / expected['crop_pct'])
    assert Transforms(model, 150).min_side == math.ceil(150 / expected['crop_pct'])
    assert Transforms(model, 150).min_side_for((0.25, 1.0)) == 300
    assert Transforms(model, 150).min_side_for((1.0, 1.0)) == 150


def test_grey_images_are_refused() -> None:
    with pytest.raises(ModelError, match='1 channel'):
        Transforms(timm.create_model('test_resnet', in_chans=1))


def test_transforms() -> None:
    """Evaluation is timm's; training crops at random, as far as the scale allows."""
    transforms = Transforms(small(), 96)
    evaluation = transforms.evaluation()
    assert torch.equal(evaluation(photo()), timm.data.create_transform(**transforms.config)(photo()))
    assert evaluation(photo()).shape == (3, 96, 96)
    mean, std = (np.mean(transforms.config[name]) for name in ('mean', 'std'))
    for scale in ((0.05, 0.06), (0.9, 1.0)):
        training = transforms.training(scale, hflip=0.0, color_jitter=0.0, auto_augment=None)
        seed_all(0)
        square = photo().crop((100, 0, 527, 427))
        found = [training(square) for _ in range(6)]
        assert all(image.shape == (3, 96, 96) for image in found)
        assert not any(torch.equal(found[0], image) for image in found[1:])
        grey = np.array([image.mean().item() * std + mean for image in found]) * 255
        worst = np.abs(grey - np.asarray(square).mean()).max()
        assert worst > 20 if scale[0] < 0.1 else worst < 20


# Two parts


@pytest.mark.parametrize('name', SMALL)
def test_features_and_head(name: str) -> None:
    """Together they are the model, bit by bit."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=5).eval()
    nn.init.normal_(model.get_classifier().weight)
    batch = images(160, 160, batch=2)
    head = ProbeHead(model, 0.5).eval()
    with torch.inference_mode():
        features = features_of(model, batch)
        assert features.shape == (2, model.head_hidden_size)
        assert torch.equal(head(features), model(batch))


def test_features_and_head_of_xception() -> None:
    """Layers before the classifier belong to the features."""
    model = random_model(num_classes=5, width_multiplier=0.1875, fc_widths=(16,), drop_rate=0.5)
    with torch.inference_mode():
        features = features_of(model, images(71, 71))
        assert features.shape == (1, 16)
        assert torch.equal(ProbeHead(model, 0.5).eval()(features), model(images(71, 71)))


def test_a_head_is_the_models_own_classifier() -> None:
    """What it learns, the model knows."""
    model = small()
    head = ProbeHead(model, 0.0)
    assert head.fc is model.get_classifier()
    assert set(head.state_dict()) == {'fc.weight', 'fc.bias'}
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.SGD(head.parameters(), lr=1.0)
    head(torch.ones(2, 96)).sum().backward()
    optimizer.step()
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {'fc.weight', 'fc.bias'}


@pytest.mark.parametrize(
    ('name', 'options', 'kind'),
    [
        ('test_resnet', dict(num_classes=0), 'ResNet ends in Identity'),
        ('deit_tiny_distilled_patch16_224', dict(img_size=32, depth=1), 'VisionTransformerDistilled ends in tuple'),
        ('resnetv2_50', dict(layers=(1, 1, 1, 1)), 'ResNetV2 ends in Conv2d'),
    ],
)
def test_models_that_have_no_head(name: str, options: dict[str, Any], kind: str) -> None:
    model = timm.create_model(name, **options)
    for take_apart in (lambda: ProbeHead(model, 0.0), lambda: without_classifier(model)):
        with pytest.raises(ModelError, match=kind):
            take_apart()


def test_without_classifier() -> None:
    """Moving statistics are part of it."""
    model = small()
    names = set(model.state_dict())
    assert set(without_classifier(model)) == names - {'fc.weight', 'fc.bias'}
    assert any('running_mean' in name for name in without_classifier(model))


# Modes


def update(model: nn.Module, frozen: bool) -> dict[str, Tensor]:
    """The buffers before an update."""
    set_mode(model, frozen)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(images(71, 71, batch=2)).square().sum().backward()
    optimizer.step()
    return before


@pytest.mark.parametrize(
    ('name', 'options'),
    [('xception_paper', dict(width_multiplier=0.1875)), ('test_resnet', dict(zero_init_last=False))],
)
@pytest.mark.parametrize('frozen', [True, False])
def test_frozen_batch_normalization(name: str, options: dict[str, Any], frozen: bool) -> None:
    """Moving statistics stay as they are, to the bit; scale and offset are trained, and all else is in training."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=5, drop_rate=0.5, **options)
    before = update(model, frozen)
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, before[name]) == frozen, name
    for norm in norms_of(model):
        assert norm.training is not frozen
        assert norm.weight.grad is not None and norm.weight.grad.any()
        assert norm.bias.grad is not None and norm.bias.grad.any()
    others = [layer for layer in model.modules() if not isinstance(layer, nn.BatchNorm2d)]
    assert all(layer.training for layer in others)
    set_mode(model.eval(), False)
    assert all(layer.training for layer in model.modules())


def test_all_kinds_of_batch_normalization() -> None:
    model = nn.Sequential(
        nn.BatchNorm1d(2),
        nn.BatchNorm3d(2),
        nn.SyncBatchNorm(2),
        timm.layers.BatchNormAct2d(2),
        nn.LayerNorm(2),
        nn.GroupNorm(1, 2),
    )
    set_mode(model, True)
    assert [layer.training for layer in model] == [False] * 4 + [True] * 2


def test_evaluating() -> None:
    """No gradients, no dropout; each layer has its own mode again, whatever happens."""
    model = small(drop_rate=0.5)
    set_mode(model, True)
    modes = [layer.training for layer in model.modules()]
    with evaluating(model):
        assert not any(layer.training for layer in model.modules())
        assert not model(images(32, 32)).requires_grad
    assert [layer.training for layer in model.modules()] == modes
    assert torch.is_grad_enabled() and len(set(modes)) == 2
    with pytest.raises(KeyError), evaluating(model):
        raise KeyError
    assert [layer.training for layer in model.modules()] == modes


# Saving


def reloaded(folder: Path, model: nn.Module, size: int) -> nn.Module:
    """Checks that the directory gives the same model again."""
    again = timm.create_model(f'local-dir:{folder}', pretrained=True).eval()
    assert type(again) is type(model)
    assert torch.equal(logits(again, images(size, size, batch=2)), logits(model, images(size, size, batch=2)))
    return again


@pytest.mark.parametrize('options', [{}, dict(drop_rate=0.3, drop_path_rate=0.2), dict(global_pool='max')])
def test_saved_and_built_again(options: dict[str, Any], folder: Path) -> None:
    """The same logits to the bit, whatever memory format the training had. The config has the settings of images."""
    model = small(**options)
    transforms = Transforms(model, 64)
    save(folder, model.to(memory_format=torch.channels_last), transforms.config, NAMES, False, 'org/base')
    again = reloaded(folder, model, 64)
    assert again.pretrained_cfg['label_names'] == NAMES
    assert Transforms(again).config == transforms.config
    assert again.drop_rate == options.get('drop_rate', 0.0)
    config = json.loads((folder / 'config.json').read_text())
    assert (config['architecture'], config['num_classes'], config['pretrained_cfg']['label_names']) == (
        'test_resnet',
        5,
        NAMES,
    )
    assert config['base_model'] == 'org/base' and 'problem_type' not in config
    assert config['pretrained_cfg']['input_size'] == [3, 64, 64]
    assert 'num_classes' not in config['model_args']
    assert {name: config['model_args'].get(name) for name in options} == options
    tensors = safetensors.torch.load_file(folder / 'model.safetensors')
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in tensors.items())
    assert tensors.keys() == model.state_dict().keys()


@pytest.mark.parametrize('name', ['test_vit', 'test_efficientnet'])
def test_other_models_are_saved(name: str, folder: Path) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=5, drop_path_rate=0.1).eval()
    save(folder, model, Transforms(model).config, NAMES, False)
    again = reloaded(folder, model, 160)
    assert again.pretrained_cfg['label_names'] == NAMES
    assert json.loads((folder / 'config.json').read_text())['model_args']['drop_path_rate'] == 0.1


@pytest.mark.parametrize('name', ['resnet18', 'hf-hub:timm/resnet18.a1_in1k'])
def test_without_a_network(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At once, with what can be done; the Hub's client would retry for half a minute."""
    monkeypatch.setattr('huggingface_hub.constants.ENDPOINT', 'http://127.0.0.1:9')
    start = time.monotonic()
    with pytest.raises(ModelError, match=r'http://127.0.0.1:9.*--no-pretrained') as error:
        build(name, 5, True, {}, None)
    assert 'local-dir:DIR' in str(error.value) and time.monotonic() - start < 10
    assert not huggingface_hub.constants.HF_HUB_OFFLINE


def test_sizes_that_a_model_does_not_take() -> None:
    """Are refused before anything is trained; both ways out work."""
    model = build('swin_tiny_patch4_window7_224', 2, False, {}, None)
    with pytest.raises(ModelError, match='224, 224.*--model-args.img-size 96'):
        Transforms(model, 96)
    assert Transforms(model, 224).config['input_size'] == (3, 224, 224)
    model = build('swin_tiny_patch4_window7_224', 2, False, dict(img_size=96), 96)
    assert Transforms(model, 96).config['input_size'] == (3, 96, 96)
    model = build('test_vit', 2, False, dict(img_size=97), 97)
    with pytest.raises(ModelError, match='97 pixels.*divisible by patch size'):
        Transforms(model, 97)


@pytest.mark.parametrize('options', [{}, dict(fc_widths=(16,))], ids=['bare', 'hidden'])
@pytest.mark.filterwarnings('ignore:The layers before the classifier are left out', 'ignore:.*starts at random')
def test_classes_that_stay(options: dict[str, Any], folder: Path) -> None:
    """Keep their rows, by name, and all below them; the others start out equal. Nothing is kept for other classes."""
    model = random_model(num_classes=5, width_multiplier=0.1875, min_img_size=32, **options)
    save(folder, model, Transforms(model, 48).config, NAMES, False)
    before, classifier = model.state_dict(), model.get_classifier()
    for class_names, rows in (
        (NAMES, [0, 1, 2, 3, 4]),
        (NAMES[::-1], [4, 3, 2, 1, 0]),
        (NAMES[1:3], [1, 2]),
        (['p', 'q'], [-1] * 2),
        ([*NAMES[:2], 'new', *NAMES[2:]], [0, 1, -1, 2, 3, 4]),
        (['p', 'q', 'r', 's', 't'], [-1] * 5),
    ):
        again, kept = build_for(f'local-dir:{folder}', class_names, True, {}, None)
        assert kept == [name for name in class_names if name in NAMES]
        assert again.num_classes == len(again.get_classifier().weight) == len(rows)
        for name, tensor in again.get_classifier().state_dict().items():
            for found, row in zip(tensor, rows):
                assert torch.equal(found, torch.zeros_like(found) if row < 0 else classifier.state_dict()[name][row])
        assert len(again.head.layers) == (2 if options and kept else 0)
        tensors = again.state_dict()
        assert all(tensor.equal(before[name]) for name, tensor in tensors.items() if not name.startswith('head.fc'))
        (folder / 'again').mkdir(exist_ok=True)
        save(folder / 'again', again, Transforms(again, 48).config, class_names, False)
        assert timm.create_model(f'local-dir:{folder / "again"}', pretrained=True).num_classes == len(rows)


def test_classes_of_other_models_that_stay(folder: Path) -> None:
    torch.manual_seed(0)
    model = timm.create_model('test_resnet', num_classes=5)
    save(folder, model, Transforms(model).config, NAMES, False)
    again, kept = build_for(f'local-dir:{folder}', ['new', *NAMES[2:]], True, {}, None)
    assert (kept, again.fc.weight[0].any()) == (NAMES[2:], False)
    assert torch.equal(again.fc.weight[1:], model.fc.weight[2:])


def test_xception_is_saved(folder: Path) -> None:
    """With all of its arguments; it can be fine-tuned again at the size that it was, and is run by transformers."""
    options = dict(min_img_size=40, drop_rate=0.1, drop_path_rate=0.2, fc_widths=(16,), act_layer='silu')
    model = random_model(num_classes=5, width_multiplier=0.1875, **options)
    transforms = Transforms(model, 48)
    save(folder, model, transforms.config, NAMES, False)
    again = reloaded(folder, model, 48)
    assert (again.drop_rate, again.stem.min_img_size) == (0.1, 40)
    assert any(isinstance(layer, timm.layers.DropPath) for layer in again.modules())
    with pytest.warns(UserWarning, match='fc_widths.*num_classes'):
        more = build(f'local-dir:{folder}', 7, True, {}, 48)
    assert more.head_hidden_size == 384
    assert Transforms(more).config == transforms.config
    with pytest.raises(ModelError, match='40 pixels.*39'):
        build(f'local-dir:{folder}', 5, True, {}, 39)

    transformers = pytest.importorskip('transformers', reason="needs transformers: pip install -e '.[test-all]'")
    classify = transformers.pipeline('image-classification', model=str(folder))
    found = {result['label']: result['score'] for result in classify(photo())}
    expected = logits(model, transforms.evaluation()(photo())[None]).softmax(1)[0].tolist()
    assert found == pytest.approx(dict(zip(NAMES, expected)), abs=1e-5)


@pytest.mark.needs('transformers')
def test_trained_again_by_transformers(folder: Path, tmp_path: Path) -> None:
    """For other classes: transformers and timm name the new ones."""
    import transformers

    model = random_model(num_classes=5, width_multiplier=0.1875, min_img_size=40)
    save(folder, model, Transforms(model, 48).config, NAMES, False)
    new = dict(id2label={0: 'red', 1: 'green', 2: 'blue'}, label2id={'red': 0, 'green': 1, 'blue': 2})
    again = transformers.AutoModelForImageClassification.from_pretrained(
        folder, num_labels=3, ignore_mismatched_sizes=True, **new
    )
    again.save_pretrained(tmp_path / 'again')
    classify = transformers.pipeline('image-classification', model=str(tmp_path / 'again'))
    assert {result['label'] for result in classify(photo())} == {'red', 'green', 'blue'}
    assert classify.model.config.label2id == new['label2id']
    of_timm = timm.create_model(f'local-dir:{tmp_path / "again"}')
    assert (of_timm.num_classes, of_timm.pretrained_cfg['label_names']) == (3, ['red', 'green', 'blue'])


@pytest.mark.needs('transformers')
@pytest.mark.parametrize('names', [[f'c{i}' for i in range(1000)], ImageNetInfo().label_names()])
def test_as_many_classes_as_imagenet(names: list[str], folder: Path) -> None:
    """transformers takes a thousand classes for those of ImageNet only if they are."""
    import transformers

    model = small(num_classes=1000)
    save(folder, model, Transforms(model, 64).config, names, False)
    found = transformers.AutoConfig.from_pretrained(folder).id2label
    descriptions = ImageNetInfo().label_descriptions(as_dict=True)
    assert [*found.values()] == [descriptions.get(name, name) for name in names]
    assert timm.create_model(f'local-dir:{folder}').pretrained_cfg['label_names'] == names


def test_saved_files(folder: Path) -> None:
    """Are readable as others that this user writes, replace older ones, are all that there is, and always the same."""
    (folder / 'config.json').write_text('old')
    (folder / 'notes.txt').write_text('mine')
    before, files = os.umask(0o027), set()
    try:
        for _ in range(3):
            save(folder, small(), Transforms(small(), 64).config, NAMES, multi_label=True)
            files.add((folder / 'model.safetensors').read_bytes())
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)
    assert len(files) == 1
    assert json.loads((folder / 'config.json').read_text())['problem_type'] == 'multi_label_classification'
    assert sorted(path.name for path in folder.iterdir()) == ['config.json', 'model.safetensors', 'notes.txt']
    assert {stat.S_IMODE((folder / name).stat().st_mode) for name in ('config.json', 'model.safetensors')} == {0o640}
    reloaded(folder, small(), 64)


# Where weights come from


def test_hub_id(folder: Path) -> None:
    with torch.device('meta'):
        for name, expected in (
            ('test_resnet', 'timm/test_resnet.r160_in1k'),
            ('xception_paper', 'smp-hub/xception.imagenet'),
            ('vit_base_patch16_clip_224.openai', 'timm/vit_base_patch16_clip_224.openai'),
        ):
            assert hub_id(timm.create_model(name)) == expected
    save(folder, small(), Transforms(small(), 64).config, NAMES, False)
    assert hub_id(build(f'local-dir:{folder}', 5, True, {}, None)) is None
    overlay = dict(hf_hub_id='org/name@v2')
    assert hub_id(timm.create_model('test_resnet', pretrained_cfg_overlay=overlay)) == 'org/name'
