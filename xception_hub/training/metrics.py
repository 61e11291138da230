"""Predictions of a model for each image of a split, and metrics of them.

Metrics are computed from the predictions of all images, gathered from all processes. Means of the processes' means
would give images of short batches more weight.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.functional.classification import binary_average_precision, binary_calibration_error

TOP = 5
LOWER_IS_BETTER = ('loss', 'calibration_error')
CALIBRATION_BINS = 15
THRESHOLD = 0.5  # probability above which a class counts as found, in multi-label
RANKS = 100  # number of ranks of MAP@100


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

    @property
    def found(self) -> np.ndarray:
        """[N] the most probable class; in multi-label [N, C], whether each class is found."""
        return self.probabilities > THRESHOLD if self.multi_label else self.classes[:, 0]

    def worst(self, count: int) -> np.ndarray:
        """Places [<= count] in these arrays of the wrongly classified images, the largest loss first."""
        wrong = self.found != self.labels
        indices = np.flatnonzero(wrong.any(1) if self.multi_label else wrong)
        return indices[np.argsort(-self.losses[indices], kind='stable')][:count]

    def confusion(self, num_classes: int) -> np.ndarray:
        """[C, C] counts, a row for each label, a column for each prediction; single-label only."""
        pairs = np.bincount(self.labels * num_classes + self.found, minlength=num_classes**2)
        return pairs.reshape(num_classes, num_classes)


@dataclass(frozen=True)
class PerClass:
    """Counts [C] of each class: its labels, the images that it was found in, and those of both."""

    support: np.ndarray
    found: np.ndarray
    right: np.ndarray

    @classmethod
    def of(cls, predictions: Predictions, num_classes: int) -> 'PerClass':
        found, labels = predictions.found, predictions.labels
        if predictions.multi_label:
            return cls(labels.sum(0).astype(np.int64), found.sum(0), (found & (labels > 0)).sum(0))
        return cls(
            *(np.bincount(classes, minlength=num_classes) for classes in (labels, found, labels[labels == found]))
        )

    @property
    def precision(self) -> np.ndarray:  # [C]
        return _ratio(self.right, self.found)

    @property
    def recall(self) -> np.ndarray:  # [C]
        return _ratio(self.right, self.support)

    @property
    def f1(self) -> np.ndarray:  # [C]
        return _ratio(2 * self.right, self.found + self.support)


def calibration_error(predictions: Predictions) -> float:
    """Expected calibration error: mean distance of probability and accuracy of the likeliest class, over 15 bins."""
    likeliest = np.nan_to_num(predictions.probabilities.max(1)).clip(0, 1)  # NaN, from an overflow, counts as 0
    sure, right = torch.from_numpy(likeliest), torch.from_numpy(predictions.hits[:, 0].astype(np.int64))
    return float(binary_calibration_error(sure, right, n_bins=CALIBRATION_BINS))


def map_at_100(predictions: Predictions) -> float:
    """Mean average precision of the 100 most probable classes of each image.

    Section 4.1 of arXiv:1610.02357 evaluates FastEval14k by it. The average precision of an image is the sum of
    precision@k over the ranks k <= 100 of its labels, divided by the number of its labels (at most 100, so that 1 can
    be reached). All classes count the same.

    Args:
        predictions: Multi-label, of C classes. For equal probabilities, the smaller class number comes first; NaN comes
            last, and never counts as found.

    Returns:
        In [0, 1], the mean over the images that have labels; 0 if there are none.
    """
    # torchmetrics' retrieval_average_precision divides by the number of labels found, so one found label of 36 would
    # give 1; its multilabel_ranking_average_precision has no last rank
    values = []
    for probabilities, labels in zip(predictions.probabilities, predictions.labels.astype(bool)):
        if labels.any():
            ranked = np.argsort(-np.nan_to_num(probabilities, nan=-1.0), kind='stable')[:RANKS]
            hits = labels[ranked] & ~np.isnan(probabilities[ranked])
            values.append((hits * hits.cumsum() / np.arange(1, len(ranked) + 1)).sum() / min(labels.sum(), RANKS))
    return _mean(values)


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
        calibration_error: See `calibration_error`.
        num_samples: Number of images.
    """
    per_class = PerClass.of(predictions, num_classes)
    counted = (per_class.support > 0) | (per_class.found > 0)
    hits = predictions.hits
    figures: dict[str, float | int] = dict(top1=float(hits[:, 0].mean()))
    if num_classes > TOP:
        figures['top5'] = float(hits.any(1).mean())
    for name in ('f1', 'precision', 'recall'):
        figures[f'macro_{name}'] = _mean(getattr(per_class, name)[counted])
    if predictions.multi_label:
        whole = per_class.support.sum() + per_class.found.sum()
        figures['micro_f1'] = float(_ratio(2 * per_class.right.sum(), whole))
        columns = [
            (predictions.probabilities[:, i], predictions.labels[:, i].astype(np.int64))
            for i in np.flatnonzero(per_class.support)
        ]
        figures['mean_average_precision'] = _mean(
            [float(binary_average_precision(*map(torch.from_numpy, column))) for column in columns]
        )
        figures['map_at_100'] = map_at_100(predictions)
    figures['loss'] = float(predictions.losses.astype(np.float64).mean())
    figures['calibration_error'] = calibration_error(predictions)
    figures['num_samples'] = len(predictions)
    return figures


def figure_names(num_classes: int, multi_label: bool) -> list[str]:
    """What `summary` gives, but for the number of images."""
    labels = torch.zeros((1, num_classes) if multi_label else 1, dtype=torch.long)
    one = Predictions.of(torch.zeros(1, num_classes), labels, torch.zeros(1, dtype=torch.long))
    return [name for name in summary(one, num_classes) if name != 'num_samples']


def badness(figures: Mapping[str, Any], metric: str) -> tuple[float, float]:
    """Key for sorting epochs by a metric, then by their loss, the best one first. NaN is worse than any number."""
    values = [figures[name] if name in LOWER_IS_BETTER else -figures[name] for name in (metric, 'loss')]
    first, second = (math.inf if math.isnan(value) else value for value in values)
    return first, second


def is_better(metric: str, new: Mapping[str, Any], old: Mapping[str, Any] | None) -> bool:
    """Whether the figures of an epoch are better than those of another. What is equal is not better."""
    return old is None or badness(new, metric) < badness(old, metric)


def epochs_since_best(history: Sequence[Mapping[str, Any]], metric: str) -> int:
    """How many epochs have passed since the best one."""
    ranked = sorted(range(len(history)), key=lambda epoch: badness(history[epoch], metric))
    return len(history) - 1 - ranked[0] if ranked else 0


def _mean(values: Sequence[float] | np.ndarray) -> float:  # [N]
    """0 of no values."""
    return float(np.mean(values)) if len(values) else 0.0


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:  # [C] each
    """0 where the whole is 0."""
    return part / np.maximum(whole, 1)
