"""The loss of each image, and mixup and CutMix of images with their labels."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from timm.data import Mixup
from timm.data.mixup import mixup_target
from torch import Tensor

from ..data.labelled import Data
from .settings import Optimization


@dataclass
class Objective:
    """Cross-entropy for exclusive classes; for multi-label data, binary cross-entropy averaged over the classes.

    Attributes:
        num_classes: Number of classes, C.
        multi_label: Whether labels are [B, C] of 0 and 1 instead of [B] class numbers.
        label_smoothing: Share of each label that is spread over all classes, in [0, 1).
        class_weights: Weight of each class in the loss, [C] (multi-label: of its positives); None for equal weights.
        mixup: Alpha of mixup; 0 turns it off.
        cutmix: Alpha of CutMix; 0 turns it off. If both are on, each batch gets one of them at random.
    """

    num_classes: int
    multi_label: bool = False
    label_smoothing: float = 0.0
    class_weights: Tensor | None = None
    mixup: float = 0.0
    cutmix: float = 0.0

    @classmethod
    def of(cls, data: Data, s: Optimization, mixup: float = 0.0, cutmix: float = 0.0) -> 'Objective':
        """The loss that the settings of a phase ask for."""
        count = len(data.class_names)
        weights = balanced_class_weights(data.train.labels, count) if s.class_weights else None
        return cls(count, data.multi_label, s.label_smoothing, weights, mixup, cutmix)

    def __post_init__(self) -> None:
        self._mixup = None
        if self.mixup or self.cutmix:
            self._mixup = Mixup(
                self.mixup,
                self.cutmix,
                label_smoothing=self.label_smoothing,
                num_classes=self.num_classes,
                multi_label=self.multi_label,
            )

    def prepare(self, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mixes a batch with mixup or CutMix, if either is on. Random numbers come from NumPy's global generator.

        Returns:
            Images [B, 3, H, W], and targets for `losses`: [B] class numbers, or [B, C].
        """
        if self._mixup is None:
            if self.multi_label:
                labels = labels * (1 - self.label_smoothing) + self.label_smoothing / 2
            return inputs, labels
        even = len(inputs) // 2 * 2  # timm mixes pairs; the last image of an odd batch stays as it is
        mixed, targets = self._mixup(inputs[:even].clone(), labels[:even]) if even else (inputs[:0], None)
        rest = mixup_target(labels[even:], self.num_classes, 1.0, self.label_smoothing, self.multi_label)
        return torch.cat([mixed, inputs[even:]]), rest if targets is None else torch.cat([targets, rest])

    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The loss of each image, [B]."""
        weight = None if self.class_weights is None else self.class_weights.to(logits)
        if self.multi_label:
            return F.binary_cross_entropy_with_logits(
                logits, targets.to(logits), pos_weight=weight, reduction='none'
            ).mean(1)
        smoothing = self.label_smoothing if targets.dim() == 1 else 0.0  # mixed targets are smoothed already
        return F.cross_entropy(logits, targets, weight, reduction='none', label_smoothing=smoothing)


def balanced_class_weights(labels: np.ndarray, num_classes: int) -> Tensor:
    """Class weights [C] that give all classes the same share of the loss, and an image the weight 1 on average.

    For multi-label data [N, C], the weight of a class is its ratio of negatives to positives.
    """
    counts = labels.sum(0) if labels.ndim == 2 else np.bincount(labels, minlength=num_classes)
    if labels.ndim == 2:
        weights = (len(labels) - counts) / counts.clip(1)
    else:
        weights = np.where(counts > 0, len(labels) / ((counts > 0).sum() * counts.clip(1)), 0)
    return torch.from_numpy(weights).float()
