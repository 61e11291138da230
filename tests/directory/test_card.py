"""The model card: all that a directory tells, nothing that it doesn't, and nothing that breaks the page."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from random_model import random_model

from xception_hub.directory.card import render
from xception_hub.directory.write import write_model
from xception_hub.errors import DirectoryError


@pytest.fixture
def directory(converted: Path, tmp_path: Path) -> Path:
    """A copy of the converted directory, to change; the weights are a link."""
    folder = tmp_path / 'model'
    folder.mkdir()
    (folder / 'model.safetensors').symlink_to(converted / 'model.safetensors')
    for name in ('config.json', 'parity.json'):
        shutil.copy(converted / name, folder)
    return folder


def change(file: Path, **values: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def metadata(card: str) -> dict[str, Any]:
    return yaml.safe_load(card.split('---\n')[1])


def test_of_a_conversion(directory: Path, converted: Path) -> None:
    """Metadata, where it comes from, what it takes and gives, and each proof."""
    card = render(directory, 'org/kitchenware', 'mit')
    assert metadata(card) == dict(
        library_name='timm',
        pipeline_tag='image-classification',
        license='mit',
        tags=['image-classification', 'timm', 'xception', 'keras'],
    )
    parity = json.loads((directory / 'parity.json').read_text())
    assert '# kitchenware\n' in card
    assert f'`{parity["source"]["file"]}`, sha256 `{parity["source"]["sha256"]}`, written by Keras 3.3.3.' in card
    assert '| classes | 6: cup, fork, glass, knife, plate, spoon |' in card
    assert (
        '| images | 150x150 pixels, 3 channels: resized to 150x150 without regard to the aspect ratio; '
        'nearest resampling; values from -1 to 1 |'
    ) in card
    assert '| 234 of 234 tensors bit-identical |' in card
    assert '| float64 | 107x150 | 16 | ' in card
    assert card.count(' | equal |\n') == sum('worst' in proof for proof in parity['proofs'])
    assert 'The weights: `mit`.' in card
    assert card == render(directory, 'org/kitchenware', 'mit')


def test_beside_the_model(converted: Path) -> None:
    """The one that the conversion writes knows no repository, and nothing of the folder it was written in."""
    card = (converted / 'README.md').read_text()
    assert card == render(converted)
    assert '# Xception\n' in card and "'hf-hub:ORG/NAME'" in card
    assert 'No licence of the weights was given' in card and 'license' not in metadata(card)


def test_of_a_fine_tuned_model(directory: Path) -> None:
    """No proofs, no Keras, what it started from; images are opened as in training, by timm and by the pipeline."""
    (directory / 'parity.json').unlink()
    change(directory / 'config.json', keras=None, base_model='org/backbone')
    figures = dict(top1=1.0, num_samples=2, split='test', dataset='photos')
    (directory / 'metrics.json').write_text(json.dumps(figures))
    card = render(directory, 'org/tuned')
    assert metadata(card)['base_model'] == 'org/backbone' and 'keras' not in metadata(card)['tags']
    assert 'converted' not in card and '## Parity' not in card and 'final activation' not in card
    assert all(f"{call}(xception_hub.open_image('photo.jpg'))" in card for call in ('transform', 'compute'))


def test_outputs_that_are_no_classes(directory: Path) -> None:
    """No pipeline, which would make probabilities of them."""
    config = json.loads((directory / 'config.json').read_text())
    change(directory / 'config.json', keras=dict(config['keras'], final_activation='relu'))
    card = render(directory)
    assert 'relu; this network returns the logits' in card and 'transformers' not in card


def test_of_a_branch(directory: Path) -> None:
    card = render(directory, 'org/name@v2')
    for text in ('# name\n', "'hf-hub:org/name@v2'", "hf_hub_id='org/name@v2'", "model='org/name', revision='v2'"):
        assert text in card


def test_of_features(directory: Path) -> None:
    change(directory / 'config.json', num_classes=0)
    card = render(directory)
    assert metadata(card)['pipeline_tag'] == 'image-feature-extraction'
    assert 'print(model(images))' in card
    assert "pipeline('image-feature-extraction', model='ORG/NAME', pool=True)" in card


def test_other_images(directory: Path) -> None:
    """Channels that Pillow has no mode for, another crop, another normalization."""
    config = json.loads((directory / 'config.json').read_text())
    change(
        directory / 'config.json',
        model_args=dict(config['model_args'], in_chans=2),
        pretrained_cfg=dict(
            config['pretrained_cfg'],
            input_size=[2, 299, 299],
            crop_pct=0.8975,
            crop_mode='center',
            mean=[0.4, 0.5],
            std=[1, 1 / 255],
        ),
    )
    card = render(directory)
    change(directory / 'config.json', pretrained_cfg=dict(config['pretrained_cfg'], mean=[0.0] * 3, std=[1 / 255] * 3))
    assert 'values from 0 to 255' in render(directory)
    assert 'images = torch.zeros(1, 2, 299, 299)' in card and 'photo.jpg' not in card
    assert (
        '299x299 pixels, 2 channels: resized to cover 333x333, cropped to the middle; nearest resampling; '
        'values in 0..1, less the mean (0.4, 0.5), divided by (1, 0.00392157)'
    ) in card


def test_many_classes(directory: Path) -> None:
    change(directory / 'config.json', num_classes=1000, label_names=[f'c{i}' for i in range(1000)])
    assert 'c18, c19 and 980 more, in config.json' in render(directory)
    change(directory / 'config.json', label_names=None)
    card = render(directory)
    assert '| classes | 1000, without names |' in card and 'print(model(images).argmax().item())' in card


def test_foreign_text(directory: Path) -> None:
    """Names of classes and files are no Markdown."""
    change(directory / 'config.json', label_names=['a|b', '<b>', '[c](d)', 'e\nf', '*g*', 'h'])
    change(directory / 'parity.json', source=dict(file='a`b|\n# c.keras'))
    card = render(directory)
    assert r'6: a\|b, \<b\>, \[c\](d), e f, \*g\*, h |' in card
    assert '`ab| # c.keras`' in card and '\n# c' not in card


def test_other_proofs(directory: Path) -> None:
    """Those that are no comparison have a line each, with their verdict."""
    proofs = [
        dict(proof='moving statistics', passed=True, figures=[1]),
        dict(proof='fingerprints', passed=False, decisive=False, summary='3 of 234 *differ*'),
        dict(proof='tensors', passed=False),
    ]
    change(directory / 'parity.json', proofs=proofs, reference=None)
    card = render(directory)
    assert '## What was shown\n\n- moving statistics: passed\n' in card
    assert '- fingerprints: not decisive; 3 of 234 \\*differ\\*\n- tensors: **failed**\n' in card


def test_transformers_only_where_it_works(directory: Path) -> None:
    """It passes the number of classes beside the arguments, among which timm writes it."""
    assert '### transformers' in render(directory)
    change(directory / 'config.json', model_args=dict(num_classes=6))
    assert '### transformers' not in render(directory)


@pytest.mark.parametrize(('activation', 'problem'), [('softmax', None), ('sigmoid', 'multi_label_classification')])
def test_what_transformers_makes_of_the_logits(activation: str, problem: str | None, tmp_path: Path) -> None:
    """Exclusive classes, unless Keras took each by itself; and it passes their number itself."""
    model = random_model(num_classes=3, width_multiplier=0.1875)
    model.final_activation = activation
    write_model(tmp_path, model, {}, dict(width_multiplier=0.1875))
    config = json.loads((tmp_path / 'config.json').read_text())
    assert config.get('problem_type') == problem
    assert 'num_classes' not in config['model_args']


@pytest.mark.parametrize(
    ('dataset', 'shown'), [('uoft-cs/cifar10', 'uoft-cs/cifar10'), ('/home/me/photos.csv', 'photos.csv')]
)
def test_results(dataset: str, shown: str, directory: Path) -> None:
    """The figures of a fine-tuning, for readers and for the Hub; of a path only the name."""
    figures = dict(top1=0.75, macro_f1=0.5, num_samples=20, bad_images=3, split='test', dataset=dataset)
    (directory / 'metrics.json').write_text(json.dumps(figures))
    card = render(directory, 'org/mine')
    assert f'Fine-tuned on `{shown}` and evaluated on 20 images (test)' in card
    assert '3 images that could not be decoded were left out' in card
    assert '| top-1 | 0.7500 |\n| macro F1 | 0.5000 |' in card
    [result] = ModelCard(card).data.eval_results[:1]
    assert (result.dataset_type, result.metric_type, result.metric_value) == (shown, 'accuracy', 0.75)
    assert '/home/me' not in card


@pytest.mark.parametrize(
    ('name', 'content', 'reason'),
    [
        ('config.json', None, 'config.json'),
        ('config.json', '[]', 'a list'),
        ('config.json', '{}', "lacks what a card needs (KeyError: 'num_classes')"),
        ('parity.json', '{', 'parity.json'),
        ('parity.json', '{"proofs": [{}]}', "has no attribute 'proof'"),
        ('model.safetensors', None, 'model.safetensors'),
    ],
)
def test_incomplete(name: str, content: str | None, reason: str, directory: Path) -> None:
    (directory / name).unlink()
    if content is not None:
        (directory / name).write_text(content)
    with pytest.raises(DirectoryError) as error:
        render(directory)
    assert reason in str(error.value)
