"""Classes of datasets, found among the outputs of models by whatever they are called, or not at all."""

import itertools
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import timm
import torch
from random_model import images
from timm.data import ImageNetInfo
from torch import Tensor, nn

from xception_hub.data.labelled import Data, Split
from xception_hub.errors import ModelError
from xception_hub.models.matching import Selected, for_evaluation, outputs_of

IDS = ImageNetInfo().label_names()
DESCRIPTIONS = list(ImageNetInfo().label_descriptions(as_dict=True).values())


@pytest.fixture(scope='module')
def imagenet() -> nn.Module:
    return timm.create_model('test_resnet')


def named(names: Any, descriptions: dict[str, str] | None = None, num_classes: int | None = None) -> nn.Module:
    """A model that knows the names of its outputs."""
    overlay = dict(label_names=names, label_descriptions=descriptions)
    return timm.create_model(
        'test_resnet', num_classes=len(names) if num_classes is None else num_classes, pretrained_cfg_overlay=overlay
    )


# Models with names


@pytest.mark.parametrize('names', [['cat', 'dog', 'Great Dane'], {'0': 'cat', '1': 'dog', '2': 'Great Dane'}])
def test_names_of_the_model(names: Any) -> None:
    """In any order, some of them, as they are written by people and by file systems."""
    model = named(names)
    for classes, outputs in (
        (['cat', 'dog', 'Great Dane'], [0, 1, 2]),
        (['dog', 'cat'], [1, 0]),
        (['great_dane', 'CAT'], [2, 0]),
        (['Great-Dane', ' dog '], [2, 1]),
    ):
        assert outputs_of(model, classes) == outputs


def test_names_that_differ_in_little() -> None:
    """An exact name is surer than one of another case; without one, both are meant."""
    model = named(['turkey', 'Turkey', 'dark_red', 'dark-red'])
    assert outputs_of(model, ['Turkey', 'turkey', 'dark-red']) == [1, 0, 3]
    with pytest.raises(ModelError, match='TURKEY.*turkey.*Turkey'):
        outputs_of(model, ['TURKEY'])
    with pytest.raises(ModelError, match='dark red.*dark_red.*dark-red'):
        outputs_of(model, ['dark red', 'turkey'])


def test_descriptions_of_the_model() -> None:
    model = named(['n1', 'n2'], dict(n1='tench, Tinca tinca', n2='goldfish'))
    for names in (['n2', 'n1'], ['goldfish', 'tench, Tinca tinca'], ['Goldfish', 'Tinca_tinca'], ['goldfish', 'tench']):
        assert outputs_of(model, names) == [1, 0]


@pytest.mark.parametrize(
    ('names', 'reason'),
    [
        (['cat', 'cow', 'hen'], 'match no output of the model: cow, hen. The model has: cat, dog'),
        (['cat', 'dog', 'Cat'], "The class 'cat' and another class match the same output of the model"),
        ([str(i) for i in range(3)], 'match no output of the model'),
    ],
)
def test_classes_that_are_none_of_the_model(names: list[str], reason: str) -> None:
    with pytest.raises(ModelError, match=reason):
        outputs_of(named(['cat', 'dog']), names)


def test_numbers_for_names() -> None:
    """If they are all of the model's; names that are numbers are names."""
    assert outputs_of(named(['cat', 'dog']), ['0', '1']) == [0, 1]
    assert outputs_of(named(['1', '0']), ['0', '1']) == [1, 0]
    assert outputs_of(named(['cat', 'dog']), ['1', '0']) == [1, 0]
    numbers = sorted(str(i) for i in range(12))  # as folders are: 0, 1, 10, 11, 2, ...
    assert outputs_of(named([f'class {i}' for i in range(12)]), numbers) == [int(name) for name in numbers]
    with pytest.raises(ModelError, match='match no output of the model'):
        outputs_of(named(['cat', 'dog']), ['1', '2'])  # counted from one, or a part: nobody knows


def test_on_all_outputs() -> None:
    """Labels are the model's outputs; the dataset's names stay."""
    model = named(['cat', 'dog', 'cow'])
    for labels, expected in (([0, 1, 1], [2, 0, 0]), ([[1, 0], [0, 1], [1, 1]], [[0, 0, 1], [1, 0, 0], [1, 0, 1]])):
        split = Split('train', [], np.arange(3), np.array(labels))
        data = Data(split.select([]), split, ['Cow', 'cat'], split.labels.ndim == 2, True)
        found, outputs = for_evaluation(data, model, restricted=False)
        assert outputs is None and for_evaluation(data, model, restricted=True) == (data, [2, 0])
        assert found.class_names == ['cat', 'dog', 'Cow']
        assert found.validation.labels.tolist() == expected


def test_models_without_names() -> None:
    """Have as many classes, in the same order, or cannot be evaluated."""
    model = timm.create_model('test_resnet', num_classes=3)
    assert outputs_of(model, ['x', 'y', 'z']) == [0, 1, 2]
    with pytest.raises(ModelError, match='3 outputs.*2 classes'):
        outputs_of(model, ['x', 'y'])


def test_names_of_another_classifier() -> None:
    """A model with another number of classes than its weights does not have their names."""
    model = named(['cat', 'dog'], num_classes=3)
    assert outputs_of(model, ['cat', 'dog', 'cow']) == [0, 1, 2]
    with pytest.raises(ModelError, match='3 outputs'):
        outputs_of(model, ['cat', 'dog'])


# Models of ImageNet


@pytest.mark.parametrize(
    'spelled',
    [
        IDS,
        DESCRIPTIONS,
        [str(i) for i in range(1000)],
        [name.upper() for name in IDS],
        [name.replace(' ', '_').replace('-', '_').lower() for name in DESCRIPTIONS],
    ],
    ids=['ids', 'descriptions', 'numbers', 'upper case', 'underscores'],
)
def test_all_of_imagenet(spelled: Sequence[str], imagenet: nn.Module) -> None:
    """In any spelling; the two cranes are the only classes that share all of their names."""
    cranes = [134, 517]
    by_description = 'tench' in spelled[0].lower()
    classes = [name for i, name in enumerate(spelled) if not (by_description and i in cranes)]
    assert outputs_of(imagenet, classes) == [i for i in range(1000) if not (by_description and i in cranes)]


@pytest.mark.parametrize(
    ('name', 'output'),
    [
        ('missile', 657),  # all of its names; also one of 'projectile, missile'
        ('maillot', 638),  # the same, beside 'maillot, tank suit'
        ('tub', 876),  # the first of its names, and the last of a bathtub's
        ('cardigan', 474),  # the garment, beside
        ('Cardigan', 264),  # the dog
        ('CARDIGAN', 474),
        ('hen-of-the-woods', 996),
        ('Hen of the Woods', 996),
    ],
)
def test_the_surest_spelling_decides(name: str, output: int, imagenet: nn.Module) -> None:
    assert outputs_of(imagenet, [name]) == [output]


@pytest.mark.parametrize(
    ('name', 'choices'),
    [
        ('crane', r'n02012849 \(crane\) or n03126707 \(crane\)'),
        ('Crane', r'n02012849 \(crane\) or n03126707 \(crane\)'),
        ('panda', r'n02509815 \(lesser panda\) or n02510455 \(giant panda\)'),
        ('horn', r'n03110669 \(cornet\) or n03394916 \(French horn\)'),
    ],
)
def test_names_of_two_classes(name: str, choices: str, imagenet: nn.Module) -> None:
    """Neither is taken silently."""
    with pytest.raises(ModelError, match=f'{name!r}.*{choices}.*[Nn]ame it'):
        outputs_of(imagenet, ['tench', name])
    assert outputs_of(imagenet, ['n02012849', 'n03126707']) == [134, 517]


@pytest.mark.parametrize('index', [0, 1, 2, -1])
def test_every_name_of_one_class(index: int, imagenet: nn.Module) -> None:
    """Leads to it."""
    lemmas = [description.split(', ') for description in DESCRIPTIONS]
    counts = Counter(itertools.chain.from_iterable(lemmas))
    expected = {
        output: words[index] for output, words in enumerate(lemmas) if index < len(words) and counts[words[index]] == 1
    }
    assert outputs_of(imagenet, list(expected.values())) == list(expected)


# Outputs


def test_selected() -> None:
    """The logits in the dataset's order; nothing of it is part of a checkpoint."""
    torch.manual_seed(0)
    model = timm.create_model('test_resnet', num_classes=5).eval()
    batch = images(32, 32, batch=2)
    selected = Selected(model, [3, 0, 4]).eval()
    with torch.no_grad():
        found: Tensor = selected(batch)
        assert torch.equal(found, model(batch)[:, [3, 0, 4]])
    assert {name.removeprefix('model.') for name in selected.state_dict()} == set(model.state_dict())
    assert selected.to('meta').outputs.device.type == 'meta'
