"""Predictions of a model for each image of a split, and metrics of them.

Metrics are computed from the predictions of all images, gathered from all processes. Means of the processes' means
would give images of short batches more weight.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.functional import classification

TOP = 5
LOWER_IS_BETTER = ('loss', 'calibration_error')
CALIBRATION_BINS = 15
THRESHOLD = 0.5  # probability above which a class counts as found, in multi-label
RANKS = 100  # number of ranks of MAP@100
IMAGES_AT_ONCE = 256  # number of images ranked together, which bounds the memory with many classes
MULTI_LABEL_ONLY = ('micro_f1', 'mean_average_precision', 'map_at_100')


@dataclass(frozen=True)
class Predictions:
    """Predictions for N images: the K = min(5, C) most probable of C classes, in multi-label all C.

    Attributes:
        indices: [N], numbers of the images in their split.
        labels: [N] class numbers, or [N, C] of 0 and 1 in multi-label.
        classes: [N, K] class numbers, the most probable first.
        probabilities: [N, K] of these classes; [N, C] in the order of the classes in multi-label.
        losses: [N], cross-entropy, without label smoothing and weights; in multi-label the mean over the classes.
    """

    indices: np.ndarray
    labels: np.ndarray
    classes: np.ndarray
    probabilities: np.ndarray
    losses: np.ndarray

    @classmethod
    def of(cls, logits: Tensor, labels: Tensor, indices: Tensor) -> 'Predictions':
        """Predictions of a batch: logits [B, C], labels [B] or [B, C], indices [B]."""
        logits = logits.double()  # in float32, the last bit depends on an image's position in the batch
        if labels.dim() == 2:
            probabilities = logits.sigmoid()
            classes = probabilities.topk(min(TOP, logits.shape[1])).indices
            losses = F.binary_cross_entropy_with_logits(logits, labels.double(), reduction='none').mean(1)
        else:
            probabilities, classes = logits.softmax(1).topk(min(TOP, logits.shape[1]))
            losses = F.cross_entropy(logits, labels, reduction='none')
        found = (indices, labels, classes, probabilities.float(), losses.float())
        return cls(*(tensor.cpu().numpy() for tensor in found))

    @classmethod
    def joined(cls, parts: Sequence['Predictions']) -> 'Predictions':
        """Predictions of all images of the parts, in the order of their indices."""
        whole = {f.name: np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(cls)}
        order = np.argsort(whole['indices'], kind='stable')
        return cls(**{name: values[order] for name, values in whole.items()})

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def multi_label(self) -> bool:
        return self.labels.ndim == 2

    @property
    def hits(self) -> np.ndarray:
        """[N, K], whether each of these classes is a label of the image."""
        if self.multi_label:
            return np.take_along_axis(self.labels, self.classes, 1).astype(bool)
        return self.classes == self.labels[:, None]

    def worst(self, count: int) -> np.ndarray:
        """Places [<= count] in these arrays of the wrongly classified images, the largest loss first."""
        wrong = (self._found() != self.labels).any(1) if self.multi_label else ~self.hits[:, 0]
        indices = np.flatnonzero(wrong)
        return indices[np.argsort(-self.losses[indices], kind='stable')][:count]

    def confusion(self, num_classes: int) -> np.ndarray:
        """[C, C] counts, a row for each label, a column for each prediction; single-label only."""
        counts = classification.multiclass_confusion_matrix(*self._tensors(), num_classes=num_classes)
        return counts.numpy()

    def _found(self) -> np.ndarray:  # [N, C], multi-label only
        return (self.probabilities > THRESHOLD).astype(self.labels.dtype)

    def _tensors(self) -> tuple[Tensor, Tensor]:
        """The most probable classes [N] (multi-label: the classes found, [N, C]) and the labels, for torchmetrics."""
        found = self._found() if self.multi_label else self.classes[:, 0]
        return torch.from_numpy(found), torch.from_numpy(self.labels)


@dataclass(frozen=True)
class PerClass:
    """Arrays [C], in the order of the classes. `support` counts the labels. A ratio without any cases is 0."""

    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray
    support: np.ndarray

    @classmethod
    def of(cls, predictions: Predictions, num_classes: int) -> 'PerClass':
        found, labels = predictions._tensors()
        if predictions.multi_label:
            counts = classification.multilabel_stat_scores(found, labels, num_labels=num_classes, average=None)
        else:
            counts = classification.multiclass_stat_scores(found, labels, num_classes=num_classes, average=None)
        true_positive, false_positive, _, false_negative, support = counts.double().numpy().T
        return cls(
            _ratio(true_positive, true_positive + false_positive),
            _ratio(true_positive, true_positive + false_negative),
            _ratio(2 * true_positive, 2 * true_positive + false_positive + false_negative),
            support.astype(np.int64),
        )


@dataclass(frozen=True)
class Calibration:
    """Accuracy of the most probable class compared with its probability; arrays [15], NaN in an empty bin.

    Attributes:
        confidence: Mean probability in each bin of [0, 1].
        accuracy: Share of right answers in each.
        count: Images in each.
        error: Expected calibration error: the mean distance of the two, weighted by the count.
    """

    confidence: np.ndarray
    accuracy: np.ndarray
    count: np.ndarray
    error: float

    @classmethod
    def of(cls, predictions: Predictions) -> 'Calibration':
        # NaN, from a network that overflows, counts as confidence 0
        likeliest = np.nan_to_num(predictions.probabilities.max(1)).clip(0, 1).astype(np.float64)
        right = predictions.hits[:, 0]
        bins = np.minimum((likeliest * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
        count = np.bincount(bins, minlength=CALIBRATION_BINS)
        with np.errstate(invalid='ignore'):
            confidence = np.bincount(bins, likeliest, CALIBRATION_BINS) / count
            accuracy = np.bincount(bins, right, CALIBRATION_BINS) / count
        error = float(np.nansum(np.abs(confidence - accuracy) * count) / len(predictions))
        return cls(confidence, accuracy, count, error)


def map_at_100(predictions: Predictions) -> float:
    """Mean average precision of the 100 most probable classes of each image.

    Section 4.1 of arXiv:1610.02357 uses it on FastEval14k, with class weights that the paper does not publish. This is
    the usual MAP@100 of retrieval. The average precision of an image is the sum of precision@k over the ranks k <= 100
    of its labels, divided by the number of its labels (at most 100, so that 1 can be reached).

    Args:
        predictions: Multi-label, of C classes. For equal probabilities, the smaller class number comes first; NaN comes
            last, and never counts as found.

    Returns:
        In [0, 1], the mean over the images that have labels; 0 if there are none.
    """
    labelled = np.flatnonzero(predictions.labels.any(1))
    values = np.zeros(len(labelled))
    for start in range(0, len(labelled), IMAGES_AT_ONCE):
        places = labelled[start : start + IMAGES_AT_ONCE]
        values[start : start + IMAGES_AT_ONCE] = _average_precisions(
            predictions.probabilities[places], predictions.labels[places].astype(bool)
        )
    return _mean(values)


def _average_precisions(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Average precisions [N] of images with at least one label each: probabilities and labels [N, C]."""
    # torchmetrics' retrieval_average_precision divides by the number of labels found, so one found label of 36 would
    # give 1; its multilabel_ranking_average_precision has no last rank.
    probabilities = np.nan_to_num(probabilities, nan=-1.0)
    ranked = np.argsort(-probabilities, 1, kind='stable')[:, :RANKS]
    hits = np.take_along_axis(labels & (probabilities >= 0), ranked, 1)
    precision = hits.cumsum(1) / np.arange(1, ranked.shape[1] + 1)
    return (hits * precision).sum(1) / labels.sum(1).clip(max=RANKS)


def summary(predictions: Predictions, num_classes: int) -> dict[str, float | int]:
    """The figures of a split.

    Args:
        predictions: Predictions on the split.
        num_classes: C.

    Returns:
        top1: Share of images whose most probable class is right; in multi-label, is one of the labels.
        top5: Share of images whose label is among the five most probable; only with more than five classes.
        macro_f1: Mean over the classes that are labels or predictions of some image.
        macro_precision, macro_recall: Means over the same classes.
        micro_f1, mean_average_precision: Only in multi-label; the latter over the classes that occur.
        map_at_100: Only in multi-label, over the images that have labels; see `map_at_100`.
        loss: Mean cross-entropy.
        calibration_error: See `Calibration`.
        num_samples: Number of images.
    """
    per_class = PerClass.of(predictions, num_classes)
    counted = (per_class.support > 0) | (_predicted(predictions, num_classes) > 0)
    hits = predictions.hits
    figures: dict[str, float | int] = dict(top1=float(hits[:, 0].mean()))
    if num_classes > TOP:
        figures['top5'] = float(hits.any(1).mean())
    for name in ('f1', 'precision', 'recall'):
        figures[f'macro_{name}'] = _mean(getattr(per_class, name)[counted])
    if predictions.multi_label:
        found, labels = predictions._tensors()
        figures['micro_f1'] = float(
            classification.multilabel_f1_score(found, labels, num_labels=num_classes, average='micro')
        )
        probabilities = torch.from_numpy(predictions.probabilities)
        figures['mean_average_precision'] = _mean(
            np.array(
                [
                    float(classification.binary_average_precision(probabilities[:, number], labels[:, number].long()))
                    for number in np.flatnonzero(per_class.support)
                ]
            )
        )
        figures['map_at_100'] = map_at_100(predictions)
    figures['loss'] = float(predictions.losses.astype(np.float64).mean())
    figures['calibration_error'] = Calibration.of(predictions).error
    figures['num_samples'] = len(predictions)
    return figures


def figure_names(num_classes: int, multi_label: bool) -> list[str]:
    """What `summary` gives."""
    names = [
        'top1',
        'top5',
        'macro_f1',
        'macro_precision',
        'macro_recall',
        'micro_f1',
        'mean_average_precision',
        'map_at_100',
        'loss',
        'calibration_error',
    ]
    absent = (() if num_classes > TOP else ('top5',)) + (() if multi_label else MULTI_LABEL_ONLY)
    return [name for name in names if name not in absent]


def is_better(metric: str, new: Mapping[str, Any], old: Mapping[str, Any] | None) -> bool:
    """Whether the figures of an epoch are better than those of another: by a metric, and where it is equal by the loss.

    A NaN is worse than any number, and what is equal is not better.
    """
    if old is None:
        return True
    values, others = (
        [figures[name] * (1 if name in LOWER_IS_BETTER else -1) for name in (metric, 'loss')] for figures in (new, old)
    )
    for value, other in zip(values, others):
        if np.isnan(value) or np.isnan(other):
            return bool(np.isnan(other) and not np.isnan(value))
        if value != other:
            return bool(value < other)
    return False


def epochs_since_best(history: Sequence[Mapping[str, Any]], metric: str) -> int:
    """How many epochs have passed since the best one."""
    best, since = None, 0
    for row in history:
        best, since = (row, 0) if is_better(metric, row, best) else (best, since + 1)
    return since


def _predicted(predictions: Predictions, num_classes: int) -> np.ndarray:
    """[C], how many images each class was found in."""
    if predictions.multi_label:
        return predictions._found().sum(0)
    return np.bincount(predictions.classes[:, 0], minlength=num_classes)


def _mean(values: np.ndarray) -> float:  # [N]
    """0 of no values."""
    return float(values.mean()) if len(values) else 0.0


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:  # [C] each
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)
