"""Figures beside scikit-learn's and torchmetrics', and beside what can be counted by hand."""

import itertools
import math
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from sklearn import metrics as sklearn_metrics
from torch import Tensor
from torchmetrics.classification import BinaryCalibrationError, MulticlassCalibrationError

from xception_hub.training.metrics import (
    PerClass,
    Predictions,
    calibration_error,
    figure_names,
    is_better,
    map_at_100,
    summary,
)

EXACT = dict(rtol=1e-6, atol=1e-7)  # both sides count in integers or sum a few hundred float32


def random_logits(images: int, classes: int, seed: int = 0) -> Tensor:
    return torch.randn(images, classes, generator=torch.Generator().manual_seed(seed))


def random_labels(images: int, classes: int, multi_label: bool, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if multi_label:
        return (torch.rand(images, classes, generator=generator) < 0.3).long()
    return torch.randint(classes, (images,), generator=generator)


def predictions_of(logits: Tensor, labels: Tensor) -> Predictions:
    return Predictions.of(logits, labels, torch.arange(len(logits)))


def from_probabilities(probabilities: list[list[float]], labels: list[int]) -> Predictions:
    return predictions_of(torch.tensor(probabilities).log(), torch.tensor(labels))


def same(one: Predictions, other: Predictions) -> bool:
    return all(np.array_equal(getattr(one, f.name), getattr(other, f.name)) for f in fields(Predictions))


FOUR = [[0.7, 0.2, 0.1], [0.5, 0.4, 0.1], [0.1, 0.6, 0.3], [0.3, 0.3, 0.4]]  # probabilities of three classes


def test_by_hand() -> None:
    """Four images: right, wrong, right, right."""
    predictions = from_probabilities(FOUR, [0, 1, 1, 2])
    np.testing.assert_array_equal(predictions.classes[:3], [[0, 1, 2], [0, 1, 2], [1, 2, 0]])
    np.testing.assert_array_equal(predictions.hits[:2], [[True, False, False], [False, True, False]])
    np.testing.assert_array_equal(predictions.confusion(3), [[1, 0, 0], [1, 1, 0], [0, 0, 1]])
    per_class = PerClass.of(predictions, 3)
    np.testing.assert_allclose(per_class.precision, [0.5, 1, 1])
    np.testing.assert_allclose(per_class.recall, [1, 0.5, 1])
    np.testing.assert_allclose(per_class.f1, [2 / 3, 2 / 3, 1])
    np.testing.assert_array_equal(per_class.support, [1, 2, 1])
    figures = summary(predictions, 3)
    assert figures == pytest.approx(
        dict(
            top1=0.75,
            macro_f1=7 / 9,
            macro_precision=5 / 6,
            macro_recall=5 / 6,
            loss=-np.log([0.7, 0.4, 0.6, 0.4]).mean(),
            # each is alone in its bin
            calibration_error=(0.3 + 0.5 + 0.4 + 0.6) / 4,
            num_samples=4,
        )
    )
    assert predictions.worst(24).tolist() == [1]


def test_by_hand_in_multi_label() -> None:
    """Three images of three classes; the last one has no label, and nothing is found in it."""
    probabilities = torch.tensor([[0.9, 0.6, 0.2], [0.4, 0.8, 0.1], [0.3, 0.2, 0.1]])
    labels = torch.tensor([[1, 0, 0], [1, 1, 0], [0, 0, 0]])
    predictions = predictions_of(probabilities.logit(), labels)
    np.testing.assert_allclose(predictions.probabilities, probabilities, **EXACT)
    np.testing.assert_array_equal(predictions.hits, [[True, False, False], [True, True, False], [False] * 3])
    per_class = PerClass.of(predictions, 3)
    np.testing.assert_allclose(per_class.precision, [1, 0.5, 0])
    np.testing.assert_allclose(per_class.recall, [0.5, 1, 0])
    np.testing.assert_array_equal(per_class.support, [2, 1, 0])
    figures = summary(predictions, 3)
    assert figures['top1'] == pytest.approx(2 / 3)
    assert figures['macro_f1'] == pytest.approx(2 / 3)  # of two classes; the third is never a label and never found
    assert figures['micro_f1'] == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))
    assert figures['mean_average_precision'] == pytest.approx((1 + 1) / 2)
    assert predictions.losses[2] == pytest.approx(-np.log([0.7, 0.8, 0.9]).mean())
    assert set(predictions.worst(24)) == {0, 1}


@pytest.mark.parametrize('classes', [2, 5, 6, 12])
def test_single_label_as_in_scikit_learn(classes: int) -> None:
    logits, labels = random_logits(300, classes), random_labels(300, classes, False)
    predictions, found = predictions_of(logits, labels), logits.argmax(1)
    figures = summary(predictions, classes)
    np.testing.assert_array_equal(predictions.confusion(classes), sklearn_metrics.confusion_matrix(labels, found))
    assert figures['top1'] == pytest.approx(sklearn_metrics.accuracy_score(labels, found))
    for name in ('f1', 'precision', 'recall'):
        expected = getattr(sklearn_metrics, f'{name}_score')(labels, found, average='macro')
        assert figures[f'macro_{name}'] == pytest.approx(expected)
    probabilities = logits.softmax(1).double()
    assert figures['loss'] == pytest.approx(
        sklearn_metrics.log_loss(labels, probabilities / probabilities.sum(1, keepdim=True)), abs=1e-6
    )
    assert ('top5' in figures) == (classes > 5)
    if classes > 5:
        assert figures['top5'] == pytest.approx(
            sklearn_metrics.top_k_accuracy_score(labels, logits, k=5, labels=range(classes))
        )
    check_per_class(predictions, labels, found, classes)


@pytest.mark.parametrize('classes', [2, 5, 12])
def test_multi_label_as_in_scikit_learn(classes: int) -> None:
    logits, labels = random_logits(300, classes), random_labels(300, classes, True)
    predictions, found = predictions_of(logits, labels), (logits > 0).long()
    figures = summary(predictions, classes)
    for average in ('macro', 'micro'):
        assert figures[f'{average}_f1'] == pytest.approx(sklearn_metrics.f1_score(labels, found, average=average))
    assert figures['mean_average_precision'] == pytest.approx(
        sklearn_metrics.average_precision_score(labels, logits.sigmoid())
    )
    assert figures['loss'] == pytest.approx(
        np.mean([sklearn_metrics.log_loss(one, other) for one, other in zip(labels.T, logits.double().sigmoid().T)])
    )
    check_per_class(predictions, labels, found, classes)


def check_per_class(predictions: Predictions, labels: Tensor, found: Tensor, classes: int) -> None:
    per_class = PerClass.of(predictions, classes)
    expected = sklearn_metrics.precision_recall_fscore_support(labels, found, labels=range(classes), zero_division=0)
    for name, values in zip(('precision', 'recall', 'f1', 'support'), expected):
        np.testing.assert_allclose(getattr(per_class, name), values, **EXACT, err_msg=name)


@pytest.mark.parametrize('multi_label', [False, True])
def test_classes_without_images(multi_label: bool) -> None:
    """Of eight classes, 5 is never predicted, 6 never a label, and 7 neither; the latter has no part in the means."""
    logits, labels = random_logits(200, 8), random_labels(200, 8, multi_label)
    logits[:, [5, 7]] = -20
    if multi_label:
        labels[:, [6, 7]] = 0
        found = (logits > 0).long()
    else:
        labels = labels % 6
        found = logits.argmax(1)
    predictions = predictions_of(logits, labels)
    check_per_class(predictions, labels, found, 8)
    figures = summary(predictions, 8)
    for name in ('f1', 'precision', 'recall'):
        assert figures[f'macro_{name}'] == pytest.approx(
            getattr(sklearn_metrics, f'{name}_score')(labels, found, labels=range(7), average='macro', zero_division=0)
        )
    if multi_label:
        assert figures['mean_average_precision'] == pytest.approx(
            sklearn_metrics.average_precision_score(labels[:, :6], logits[:, :6].sigmoid())
        )
    else:
        assert predictions.confusion(8)[:, [5, 7]].sum() == predictions.confusion(8)[[6, 7]].sum() == 0


def test_nothing_occurs_in_multi_label() -> None:
    """And nothing is found: means of nothing are 0, and there is no mistake."""
    predictions = predictions_of(-random_logits(5, 3).abs(), torch.zeros(5, 3, dtype=torch.long))
    figures = summary(predictions, 3)
    names = ('top1', 'macro_f1', 'macro_precision', 'macro_recall', 'micro_f1', 'mean_average_precision', 'map_at_100')
    assert [figures[name] for name in names] == [0] * 7
    assert len(predictions.worst(24)) == 0


def ranked(classes: int, *images: set[int]) -> Predictions:
    """In each image class 0 is the likeliest, then 1, and so on; the sets are the ranks, from 1, that hold labels."""
    logits = -torch.arange(classes).float().div(classes).expand(len(images), classes)
    labels = torch.tensor([[int(rank in image) for rank in range(1, classes + 1)] for image in images])
    return predictions_of(logits, labels)


@pytest.mark.parametrize(
    ('classes', 'images', 'expected'),
    [
        (4, [{1, 3}, {2}, set()], (5 / 6 + 1 / 2) / 2),  # (1/1 + 2/3) / 2; 1/2; an image without labels doesn't count
        (4, [set()], 0),
        (150, [{100}], 1 / 100),
        (150, [{101}], 0),
        (150, [{1, 100}], (1 + 2 / 100) / 2),
        (150, [{1, 101}], 1 / 2),  # the one at rank 101 is still missed
        (150, [{*range(1, 121)}], 1),  # 100 of 120 labels are all that can be found
        (150, [{*range(1, 100), *range(101, 122)}], 99 / 100),
        (150, [{*range(1, 100)}], 1),
    ],
)
def test_map_by_hand(classes: int, images: list[set[int]], expected: float) -> None:
    predictions = ranked(classes, *images)
    assert map_at_100(predictions) == pytest.approx(expected)
    assert summary(predictions, classes)['map_at_100'] == map_at_100(predictions)


@pytest.mark.parametrize('classes', [2, 12, 100])
def test_map_as_in_scikit_learn(classes: int) -> None:
    """Of images with labels, and as many classes as there are ranks."""
    logits, labels = random_logits(600, classes), random_labels(600, classes, True)
    some = labels.any(1)
    assert map_at_100(predictions_of(logits, labels)) == pytest.approx(
        sklearn_metrics.label_ranking_average_precision_score(labels[some], logits[some].sigmoid()), rel=1e-12
    )


def test_map_of_equal_probabilities() -> None:
    """In the order of the classes: labels 1 and 3 are at ranks 2 and 4. All of 150 alike: the first 100 count."""
    zeros = torch.zeros(1, 150)
    assert map_at_100(predictions_of(zeros[:, :4], torch.tensor([[0, 1, 0, 1]]))) == pytest.approx((1 / 2 + 2 / 4) / 2)
    last = torch.zeros(2, 150, dtype=torch.long)
    last[[0, 1], [99, 100]] = 1
    assert map_at_100(predictions_of(zeros.expand(2, -1), last)) == pytest.approx(1 / 100 / 2)


def test_map_of_what_is_not_a_number() -> None:
    """It is nothing that was found: of labels 0, which is NaN, and 2, which comes first, only the latter counts."""
    logits = torch.tensor([[math.nan, 0.0, 1.0], [math.nan] * 3])
    predictions = predictions_of(logits, torch.tensor([[1, 0, 1], [1, 1, 1]]))
    assert map_at_100(predictions) == pytest.approx((1 / 2 + 0) / 2)


@pytest.mark.parametrize('dtype', [torch.bool, torch.float32])
def test_type_of_multi_labels(dtype: torch.dtype) -> None:
    logits, labels = random_logits(50, 4), random_labels(50, 4, True)
    figures = summary(predictions_of(logits, labels), 4)
    assert summary(predictions_of(logits, labels.to(dtype)), 4) == figures
    assert [*figure_names(4, True), 'num_samples'] == list(figures)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_short_logits(dtype: torch.dtype) -> None:
    """Probabilities and losses of mixed precision are those of the same logits in float32."""
    logits, labels = random_logits(50, 7).to(dtype), random_labels(50, 7, False)
    assert same(predictions_of(logits, labels), predictions_of(logits.float(), labels))


def test_ties() -> None:
    """Equal logits: five different classes, equal probabilities; equal scores of images count as scikit-learn does."""
    labels = torch.arange(8) % 3
    predictions = predictions_of(torch.zeros(8, 6), labels)
    assert all(len(set(classes)) == 5 for classes in predictions.classes)
    np.testing.assert_allclose(predictions.probabilities, 1 / 6, **EXACT)
    figures = summary(predictions, 6)
    assert figures['top1'] == pytest.approx(np.mean(predictions.classes[:, 0] == labels.numpy()))
    assert figures['loss'] == pytest.approx(math.log(6))
    wrong = predictions.worst(24)
    assert wrong.tolist() == sorted(wrong)  # of equal losses, in the order of the images
    coarse, several = random_logits(300, 4).round(), random_labels(300, 4, True)
    assert summary(predictions_of(coarse, several), 4)['mean_average_precision'] == pytest.approx(
        sklearn_metrics.average_precision_score(several, coarse)
    )


@pytest.mark.parametrize('multi_label', [False, True])
def test_joined(multi_label: bool) -> None:
    """Uneven parts, in any order, dealt out in any way, are the whole."""
    logits, labels = random_logits(13, 7), random_labels(13, 7, multi_label)
    whole = predictions_of(logits, labels)
    shuffled = torch.randperm(13, generator=torch.Generator().manual_seed(3))
    for indices in (torch.arange(13), shuffled):
        dealt = [some.numpy() for some in indices.split([1, 7, 0, 5])]
        parts = [Predictions(*(getattr(whole, f.name)[some] for f in fields(Predictions))) for some in dealt]
        for order in itertools.permutations(parts):
            assert same(Predictions.joined(order), whole)
        # computed in parts, the last bit may differ: vectorised functions treat the end of a batch in another way
        computed = Predictions.joined(
            [Predictions.of(logits[some], labels[some], torch.from_numpy(some)) for some in dealt]
        )
        for field in fields(Predictions):
            np.testing.assert_allclose(getattr(computed, field.name), getattr(whole, field.name), rtol=3e-7)
    assert (len(whole), whole.multi_label) == (13, multi_label)


@pytest.mark.parametrize('multi_label', [False, True])
def test_worst(multi_label: bool) -> None:
    """Wrong ones only, by falling loss, and not more than asked for."""
    logits, labels = random_logits(100, 4), random_labels(100, 4, multi_label)
    predictions = predictions_of(logits, labels)
    wrong = (((logits > 0) != labels).any(1) if multi_label else logits.argmax(1) != labels).numpy()
    expected = sorted(np.flatnonzero(wrong), key=lambda index: -predictions.losses[index])
    assert predictions.worst(1000).tolist() == expected
    assert predictions.worst(10).tolist() == expected[:10]


@pytest.mark.parametrize('classes', [2, 3, 12])
def test_calibration_as_in_torchmetrics(classes: int) -> None:
    logits, labels = 2 * random_logits(500, classes), random_labels(500, classes, False)
    logits[torch.arange(500), labels] += 1
    expected = MulticlassCalibrationError(classes, n_bins=15)(logits.softmax(1), labels)
    assert calibration_error(predictions_of(logits, labels)) == pytest.approx(float(expected), abs=1e-6)


def test_calibration_in_multi_label_as_in_torchmetrics() -> None:
    """The likeliest class is one of the labels or it isn't."""
    logits, labels = 2 * random_logits(500, 6), random_labels(500, 6, True)
    likeliest = logits.sigmoid().max(1)
    right = labels.gather(1, likeliest.indices[:, None])[:, 0]
    expected = BinaryCalibrationError(n_bins=15)(likeliest.values, right)
    assert calibration_error(predictions_of(logits, labels)) == pytest.approx(float(expected), abs=1e-6)


@pytest.mark.parametrize('multi_label', [False, True])
def test_not_a_number(multi_label: bool) -> None:
    """A network that overflows has no loss, and is not mistaken for a sure one."""
    logits, labels = random_logits(20, 4), random_labels(20, 4, multi_label)
    logits[3] = math.nan
    predictions = predictions_of(logits, labels)
    assert math.isnan(summary(predictions, 4)['loss'])
    nothing_sure = replace(predictions, probabilities=np.nan_to_num(predictions.probabilities))
    assert calibration_error(predictions) == calibration_error(nothing_sure) > 0


def test_better() -> None:
    """By the metric, then by the loss."""

    def better(metric: str, new: float, old: float, loss: float = 1.0, old_loss: float = 1.0) -> bool:
        return is_better(metric, {'loss': loss, metric: new}, {'loss': old_loss, metric: old})

    assert is_better('macro_f1', {}, None)
    assert better('macro_f1', 0.5, 0.4, loss=9.0)
    assert not better('macro_f1', 0.5, 0.5)
    assert better('macro_f1', 0.5, 0.5, loss=0.9)
    assert not better('macro_f1', 0.5, 0.5, loss=math.nan)
    for metric in ('loss', 'calibration_error'):
        assert better(metric, 0.4, 0.5)
        assert not better(metric, 0.5, 0.5)
        assert not better(metric, 0.6, 0.5)
        assert better(metric, 0.6, math.nan)
        assert not better(metric, math.nan, 0.6)
        assert not better(metric, math.nan, math.nan)
