"""Losses beside their formulas written out, and batches that are mixed."""

import numpy as np
import pytest
import torch
from torch import Tensor

from xception_hub.training.batches import seed_all
from xception_hub.training.objective import Objective, balanced_class_weights

CLASSES = 4
WEIGHTS = torch.tensor([0.5, 1.0, 2.0, 0.0])
CLOSE = dict(rtol=1e-6, atol=1e-6)


def logits_of(batch: int, seed: int = 0) -> Tensor:
    return 3 * torch.randn(batch, CLASSES, generator=torch.Generator().manual_seed(seed))


def image_of(value: float, size: int = 8) -> Tensor:
    return torch.full((3, size, size), value)


# Losses


@pytest.mark.parametrize('weights', [None, WEIGHTS])
@pytest.mark.parametrize('smoothing', [0.0, 0.1, 0.5])
def test_exclusive_classes(smoothing: float, weights: Tensor | None) -> None:
    """Cross-entropy with the true class's share of 1 - e + e / C, each class's part times its weight."""
    logits, labels = logits_of(6), torch.tensor([0, 1, 2, 3, 1, 0])
    objective = Objective(CLASSES, label_smoothing=smoothing, class_weights=weights)
    inputs, targets = objective.prepare(torch.zeros(6, 3, 2, 2), labels)
    assert torch.equal(targets, labels) and inputs.shape == (6, 3, 2, 2)
    expected = []
    for row, label in zip(logits.double(), labels):
        probabilities = row.exp() / row.exp().sum()
        shares = [smoothing / CLASSES + (1 - smoothing) * (c == label) for c in range(CLASSES)]
        expected.append(
            -sum((1.0 if weights is None else weights[c]) * shares[c] * probabilities[c].log() for c in range(CLASSES))
        )
    losses = objective.losses(logits, targets)
    torch.testing.assert_close(losses.double(), torch.stack(expected), **CLOSE)
    one_hot = torch.nn.functional.one_hot(labels, CLASSES).float()
    mixed = objective.losses(logits, one_hot * (1 - smoothing) + smoothing / CLASSES)  # as mixup gives them
    torch.testing.assert_close(mixed, losses, **CLOSE)


@pytest.mark.parametrize('weights', [None, WEIGHTS])
@pytest.mark.parametrize('smoothing', [0.0, 0.2])
def test_several_labels(smoothing: float, weights: Tensor | None) -> None:
    """The mean of binary cross-entropies, positives times their class's weight, labels pulled towards 1/2."""
    logits = logits_of(3)
    labels = torch.tensor([[1, 0, 0, 1], [0, 0, 0, 0], [1, 1, 1, 1]])
    objective = Objective(CLASSES, multi_label=True, label_smoothing=smoothing, class_weights=weights)
    _, targets = objective.prepare(torch.zeros(3, 3, 2, 2), labels)
    positive = labels * (1 - smoothing) + smoothing / 2
    torch.testing.assert_close(targets.float(), positive)
    chance = 1 / (1 + (-logits.double()).exp())
    weight = 1.0 if weights is None else weights.double()
    expected = -(weight * positive * chance.log() + (1 - positive) * (1 - chance).log()).mean(1)
    torch.testing.assert_close(objective.losses(logits, targets).double(), expected, **CLOSE)


@pytest.mark.parametrize('multi_label', [False, True])
def test_half_precision(multi_label: bool) -> None:
    """Logits of autocast, weights and labels of any dtype; a gradient for each image."""
    labels = torch.tensor([[1, 0, 0, 1], [0, 1, 0, 0]]) if multi_label else torch.tensor([0, 2])
    objective = Objective(CLASSES, multi_label, 0.1, WEIGHTS.double())
    logits = logits_of(2).bfloat16().requires_grad_()
    losses = objective.losses(logits, objective.prepare(torch.zeros(2, 3, 2, 2), labels)[1])
    assert losses.shape == (2,) and losses.isfinite().all()
    losses.sum().backward()
    assert logits.grad is not None and (logits.grad != 0).any(1).all()


# Mixing


def check_mixed(before: Tensor, labels: Tensor, after: Tensor, targets: Tensor, smoothing: float) -> None:
    """Each image, of one value throughout, is mixed with its partner in the proportion of its targets."""
    even = len(before) // 2 * 2
    for i in range(len(before)):
        partner = even - 1 - i if i < even else i
        one, other = before[i].mean().item(), before[partner].mean().item()
        shares = (after[i] - other) / (one - other) if one != other else torch.ones(())
        share = shares.mean().item()
        assert 0 <= share <= 1 + 1e-5
        expected = share * target_of(labels[i], smoothing) + (1 - share) * target_of(labels[partner], smoothing)
        torch.testing.assert_close(targets[i], expected, rtol=1e-4, atol=1e-4)
        if labels.dim() == 1:
            assert targets[i].sum().item() == pytest.approx(1, abs=1e-5)


def target_of(label: Tensor, smoothing: float) -> Tensor:
    if label.dim():
        return label * (1 - smoothing) + smoothing / 2
    return torch.nn.functional.one_hot(label, CLASSES) * (1 - smoothing) + smoothing / CLASSES


@pytest.mark.parametrize('batch', [1, 2, 7])
@pytest.mark.parametrize(('mixup', 'cutmix'), [(0.8, 0.0), (0.0, 1.0), (0.5, 0.5)])
@pytest.mark.parametrize('multi_label', [False, True])
def test_mixing(batch: int, mixup: float, cutmix: float, multi_label: bool) -> None:
    """Of pairs, in the same proportion as their labels; the last one of an odd batch stays as it is."""
    generator = torch.Generator().manual_seed(batch)
    labels = torch.randint(2, (batch, CLASSES), generator=generator) if multi_label else torch.arange(batch) % CLASSES
    images = torch.stack([image_of(float(i)) for i in range(batch)])
    objective = Objective(CLASSES, multi_label, label_smoothing=0.1, mixup=mixup, cutmix=cutmix)
    kinds = set()
    for seed in range(12):
        seed_all(seed)
        before = images.clone()
        mixed, targets = objective.prepare(before, labels)
        assert torch.equal(before, images)
        assert (mixed.shape, targets.shape) == (images.shape, (batch, CLASSES))
        check_mixed(images, labels, mixed, targets, 0.1)
        if batch % 2:
            assert torch.equal(mixed[-1], images[-1])
        kinds.add(
            'untouched' if torch.equal(mixed, images) else 'cutmix' if torch.equal(mixed, mixed.round()) else 'mixup'
        )
        seed_all(seed)
        again = objective.prepare(images, labels)
        assert torch.equal(mixed, again[0]) and torch.equal(targets, again[1])
        assert objective.losses(logits_of(batch), targets).shape == (batch,)
    assert kinds - {'untouched'} == ({'mixup'} if mixup and batch > 1 else set()) | (
        {'cutmix'} if cutmix and batch > 1 else set()
    )


def test_channels_last_is_kept() -> None:
    images = torch.rand(5, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    for options in (dict(mixup=1.0), dict(cutmix=1.0)):
        mixed, _ = Objective(CLASSES, **options).prepare(images, torch.arange(5) % CLASSES)
        assert mixed.is_contiguous(memory_format=torch.channels_last)


# Weights


@pytest.mark.parametrize('counts', [[5, 5], [1, 9, 90], [3, 0, 7], [4, 0, 0, 0, 2]])
def test_balancing(counts: list[int]) -> None:
    """All classes that there are count the same in all, an image 1 on average, and absent classes nothing."""
    labels = np.repeat(np.arange(len(counts)), counts)
    weights = balanced_class_weights(labels, len(counts))
    assert (weights.shape, weights.dtype) == ((len(counts),), torch.float32)
    assert weights[labels].mean().item() == pytest.approx(1, rel=1e-6)
    sums = weights * torch.tensor(counts)
    present = [i for i, count in enumerate(counts) if count]
    torch.testing.assert_close(sums[present], sums[present].mean().expand(len(present)))
    assert all(weights[i] == 0 for i, count in enumerate(counts) if not count)


def test_balancing_of_several_labels() -> None:
    """The ratio of negatives to positives; a class without positives is no division by zero."""
    labels = np.array([[1, 1, 0], [0, 1, 0], [0, 1, 0], [0, 1, 0]])
    assert balanced_class_weights(labels, 3).tolist() == [3.0, 0.0, 4.0]
