"""The loss of each image, and what is done to images and labels together."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from timm.data import Mixup
from timm.data.mixup import mixup_target
from torch import Tensor


@dataclass
class Objective:
    """Cross-entropy with exclusive classes; in multi-label, binary cross-entropy, the mean over the classes.

    Attributes:
        num_classes: C.
        multi_label: Whether labels are [B, C] of 0 and 1.
        label_smoothing: Share of each label that is spread over all classes, in [0, 1).
        class_weights: [C], of each class's images (in multi-label: of its positives); see `balanced_class_weights`.
        mixup: Alpha; 0 for none.
        cutmix: Alpha; 0 for none. With both, each batch gets one of them.
    """

    num_classes: int
    multi_label: bool = False
    label_smoothing: float = 0.0
    class_weights: Tensor | None = None
    mixup: float = 0.0
    cutmix: float = 0.0

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
        """Mixes a batch; draws from NumPy's global generator.

        Returns:
            Images, and what `losses` takes: [B] class numbers, or [B, C].
        """
        if self._mixup is None:
            if self.multi_label:
                labels = labels * (1 - self.label_smoothing) + self.label_smoothing / 2
            return inputs, labels
        even = len(inputs) // 2 * 2  # timm mixes pairs; the last one of an odd batch stays as it is
        mixed, targets = self._mixup(inputs[:even].clone(), labels[:even]) if even else (inputs[:0], None)
        rest = mixup_target(labels[even:], self.num_classes, 1.0, self.label_smoothing, self.multi_label)
        return torch.cat([mixed, inputs[even:]]), rest if targets is None else torch.cat([targets, rest])

    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Loss of each image, [B]."""
        weight = None if self.class_weights is None else self.class_weights.to(logits)
        if self.multi_label:
            return F.binary_cross_entropy_with_logits(
                logits, targets.to(logits), pos_weight=weight, reduction='none'
            ).mean(1)
        smoothing = self.label_smoothing if targets.dim() == 1 else 0.0  # mixed labels are smooth already
        return F.cross_entropy(logits, targets, weight, reduction='none', label_smoothing=smoothing)


def balanced_class_weights(labels: np.ndarray, num_classes: int) -> Tensor:
    """Weights [C] with which all classes count the same in the loss, and an image 1 on average.

    In multi-label, the ratio of negatives to positives of each class instead.
    """
    counts = labels.sum(0) if labels.ndim == 2 else np.bincount(labels, minlength=num_classes)
    if labels.ndim == 2:
        weights = (len(labels) - counts) / counts.clip(1)
    else:
        weights = np.where(counts > 0, len(labels) / ((counts > 0).sum() * counts.clip(1)), 0)
    return torch.from_numpy(weights).float()
