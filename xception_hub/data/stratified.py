"""A validation split with about the same share of each class. Ours, because that of `datasets` fails on a class with
one image, and knows no multi-label.
"""

import warnings
from collections import Counter
from collections.abc import Sequence

import numpy as np

from ..errors import DataError, printable


def _groups(labels: np.ndarray) -> np.ndarray:
    """[N] to stratify by: the class, or in multi-label the rarest of an image's classes; -1 for none."""
    if labels.ndim == 1:
        return labels
    counts = labels.sum(0)
    rarest = np.where(labels, counts, counts.max() + 1).argmin(1)
    return np.where(labels.any(1), rarest, -1)


def stratified(labels: Sequence[int] | np.ndarray, class_names: Sequence[str], share: float, seed: int) -> list[int]:
    """Positions of a validation split with about the same share of each class.

    Args:
        labels: Labels of all images: [N] class numbers, or [N, C] of 0 and 1. A class number with two images or more is
            in both parts. An image with several classes is counted under the rarest of them.
        class_names: For the warning about classes that are missing in one of the parts.
        share: Share of the images, in (0, 1).
        seed: Seed; it decides the rows on any machine and in any process.

    Returns:
        In rising order.
    """
    if not 0 < share < 1:
        raise DataError(f'The share of the validation split is {share}; it must lie between 0 and 1.')
    generator = np.random.default_rng(seed)
    labels = np.asarray(labels)
    values = _groups(labels)
    counts = Counter(values.tolist())
    indices: list[int] = []
    for label in sorted(counts):
        if counts[label] > 1:
            count = min(max(round(share * counts[label]), 1), counts[label] - 1)
            indices += generator.permutation(np.flatnonzero(values == label))[:count].tolist()
    if not indices:
        raise DataError('Every class has a single image, so that none is left for validation. Name a validation split.')
    indices.sort()
    total, held_out = (
        part.sum(0) if part.ndim == 2 else np.bincount(part, minlength=len(class_names))
        for part in (labels, labels[indices])
    )
    for found, meaning in (
        (total == 0, 'have no image'),
        ((total == 1) & (held_out == 0), 'have a single image, which is in training only'),
        ((total > 1) & (held_out == 0), 'are in training only, because they occur with rarer ones only'),
        ((total > 0) & (held_out == total), 'are in validation only, because they occur with rarer ones only'),
    ):
        if found.any():
            names = [class_names[label] for label in np.flatnonzero(found)[:6]]
            warnings.warn(f'{found.sum()} classes {meaning}: {", ".join(map(printable, names))}.', stacklevel=2)
    return indices
