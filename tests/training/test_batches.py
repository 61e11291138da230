"""The order of images and what is done to each: the same whoever asks, from wherever it is begun."""

import gc
import itertools
import random
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_images import encoded, photo, save_pieces, split_of
from timm.data import create_transform
from torch import Tensor

from xception_hub.data.items import Item
from xception_hub.data.labelled import Split
from xception_hub.errors import ImageError
from xception_hub.training import batches as batches_module
from xception_hub.training.batches import (
    Batch,
    Batching,
    Images,
    InOrder,
    TrainingBatches,
    loader,
    sampling_weights,
    seed_all,
    seed_of,
)

SIZES = (1, 2, 5, 16, 33)


def numbered(images: int, labels: Any = None, streamed: bool = False) -> Split:
    """A split of which only the order matters."""
    return split_of([{'bytes': b'%d' % i, 'path': None} for i in range(images)], labels, streamed)


def order_of(split: Split, epoch: int = 0, seed: int = 0, balanced: bool = False) -> list[int]:
    """Of an epoch, by one process that takes one image at a time."""
    batches = TrainingBatches(split, Batching(len(split), 1), seed, balanced)
    batches.epoch = epoch
    return [item.index for batch in batches for item in batch]


def indices(batches: Iterable[list[Item]]) -> list[list[int]]:
    return [[item.index for item in batch if item.weight] for batch in batches]


# Dealing


@pytest.mark.parametrize('images', SIZES)
def test_plan(images: int) -> None:
    """All ranks together see each group of the epoch's order, each image once, in as many steps and evenly."""
    split = numbered(images)
    order = order_of(split)
    assert sorted(order) == list(range(images))
    for batch_size, accumulation, processes in itertools.product((1, 2, 3, 7), (1, 2, 3), (1, 2, 3, 5)):
        plans = [Batching(images, batch_size, accumulation, processes, rank) for rank in range(processes)]
        plan = plans[0]
        assert plan.group == batch_size * accumulation * processes
        assert plan.updates == -(-images // plan.group)
        ranks = [list(TrainingBatches(split, own, seed=0)) for own in plans]
        assert (
            {len(batches) for batches in ranks}
            == {len(TrainingBatches(split, plan, seed=0))}
            == {sum(plan.steps(update) for update in range(plan.updates))}
        )
        start = first = 0
        for update in range(plan.updates):
            group = order[first : first + plan.group]
            steps = slice(start, start + plan.steps(update))
            dealt = [batch for batches in ranks for batch in batches[steps]]
            real = [[item for item in batch if item.weight] for batch in dealt]
            assert plan.size(update) == len(group) == sum(map(len, real))
            assert Counter(item.index for batch in real for item in batch) == Counter(group)
            assert {item.epoch for batch in dealt for item in batch} == {0}
            sizes = {len(batch) for batch in real}
            assert max(sizes) - min(sizes) <= 1 and max(sizes) <= batch_size
            assert 1 <= plan.steps(update) <= accumulation
            filled = [batch for batch in dealt if not all(item.weight for item in batch)]
            assert all(len(batch) == 1 and batch[0].index == group[0] for batch in filled)
            assert len(filled) == max(plan.steps(update) * processes - len(group), 0)
            assert not filled or len(group) < processes or batch_size == 1
            start, first = steps.stop, first + plan.group
        assert (start, first >= images) == (len(ranks[0]), True)


@pytest.mark.parametrize('images', range(4, 60, 5))
def test_no_step_of_one_image(images: int) -> None:
    """Where batch normalization trains; every image is still seen once, and hardly more than asked for at a time."""
    split = numbered(images)
    for batch_size, accumulation, processes in itertools.product((2, 3, 7, 32), (1, 2, 3), (1, 2)):
        plans = [Batching(images, batch_size, accumulation, processes, rank, least=2) for rank in range(processes)]
        ranks = [list(TrainingBatches(split, plan, seed=0)) for plan in plans]
        dealt = [batch for batches in ranks for batch in batches]
        assert Counter(item.index for batch in dealt for item in batch) == Counter(range(images))
        assert all(2 <= len(batch) <= batch_size + 2 for batch in dealt)
        assert {len(batches) for batches in ranks} == {sum(map(plans[0].steps, range(plans[0].updates)))}


@pytest.mark.parametrize('streamed', [False, True])
def test_beginning_in_the_middle(streamed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exactly what is left of the epoch, files of a stream included."""
    monkeypatch.setattr(batches_module, 'SHUFFLE_BUFFER', 5)
    split = numbered(23, streamed=streamed)
    for rank in range(2):
        plan = Batching(23, 2, 2, processes=2, rank=rank)
        batches = TrainingBatches(split, plan, seed=3)
        batches.epoch = 2
        whole = list(batches)
        for update in range(plan.updates + 1):
            batches.first_update = update
            done = sum(plan.steps(number) for number in range(update))
            assert list(batches) == whole[done:]
            assert len(batches) == len(whole) - done
        batches.first_update = 0
        assert list(batches) == whole


@pytest.mark.parametrize('streamed', [False, True])
def test_orders_differ(streamed: bool) -> None:
    """With the seed and the epoch, also where those exchange their values."""
    split = numbered(40, streamed=streamed)
    orders = {(seed, epoch): tuple(order_of(split, epoch, seed)) for seed in range(4) for epoch in range(4)}
    assert len(set(orders.values())) == 16
    assert all(sorted(order) == list(range(40)) for order in orders.values())
    assert orders[3, 2] == tuple(order_of(split, epoch=2, seed=3))


# Streams


@pytest.mark.parametrize('buffer', [1, 4, 100])
def test_stream(buffer: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shuffled as far as the buffer allows; every image comes with its own file; all ranks agree."""
    monkeypatch.setattr(batches_module, 'SHUFFLE_BUFFER', buffer)
    split = numbered(30, streamed=True)
    order = order_of(split)
    assert sorted(order) == list(range(30)) and order == order_of(split)
    assert all(index <= place + buffer for place, index in enumerate(order))
    assert (order == sorted(order)) == (buffer == 1)
    ranks = [TrainingBatches(split, Batching(30, 4, 1, 3, rank), seed=0) for rank in range(3)]
    items = [item for batches in ranks for batch in batches for item in batch]
    assert sorted(item.index for item in items) == sorted(order)
    assert all(item.cell == {'bytes': b'%d' % item.index, 'path': None} for item in items)


# Balanced sampling


def test_balanced() -> None:
    """All classes equally often, however rare; within a class, all images."""
    labels = np.repeat([0, 1, 2, 3], [2000, 400, 90, 10])
    split = numbered(2500, labels)
    order = order_of(split, balanced=True)
    assert order == order_of(split, balanced=True) != order_of(split, balanced=True, epoch=1)
    counts = np.bincount(labels[order])
    # 625 expected of each, with a standard deviation of sqrt(2500 * 1/4 * 3/4) = 22
    assert np.abs(counts - 625).max() < 100
    assert set(np.flatnonzero(labels == 3)) <= set(order)
    whole = TrainingBatches(split, Batching(2500, 8), seed=0, balanced=True)
    ranks = [TrainingBatches(split, Batching(2500, 2, 2, 2, rank), seed=0, balanced=True) for rank in range(2)]
    assert Counter(itertools.chain(*indices(whole))) == Counter(
        itertools.chain(*map(itertools.chain.from_iterable, map(indices, ranks)))
    )


def test_class_weights() -> None:
    """Of mean 1, the same sum for each class; in multi-label by the rarest class, images without one together."""
    weights = sampling_weights(np.array([0, 0, 0, 1, 3, 3]))
    np.testing.assert_allclose(weights, np.array([1 / 3, 1 / 3, 1 / 3, 1, 1 / 2, 1 / 2]) * 2)
    labels = np.array([[1, 0, 0], [1, 1, 0], [1, 0, 0], [0, 0, 0], [0, 0, 0]])
    weights = sampling_weights(labels)
    np.testing.assert_allclose(weights, np.array([1 / 3, 1, 1 / 3, 1 / 2, 1 / 2]) / (8 / 3) * 5)
    np.testing.assert_allclose(sampling_weights(np.zeros((3, 2), np.int64)), 1)
    np.testing.assert_allclose(sampling_weights(np.ones((3, 2), np.int64)), 1)


# A whole split in order


@pytest.mark.parametrize('streamed', [False, True])
def test_in_order(streamed: bool) -> None:
    """Each image once over all ranks, whatever the length; each rank's own in rising order."""
    for images, batch_size, processes in itertools.product(SIZES, (1, 3, 8), (1, 2, 3, 5)):
        split = numbered(images, streamed=streamed)
        ranks = [InOrder(split, batch_size, processes, rank) for rank in range(processes)]
        own = [list(itertools.chain(*indices(batches))) for batches in ranks]
        assert sorted(itertools.chain(*own)) == list(range(images))
        assert all(numbers == sorted(numbers) for numbers in own)
        assert [len(list(batches)) for batches in ranks] == [len(batches) for batches in ranks]
        assert all(1 <= len(batch) <= batch_size for batches in ranks for batch in batches)


# Seeds


def test_seeds() -> None:
    """No two alike, with more numbers or fewer, larger or smaller, in any order."""
    tuples = [*itertools.chain(*(itertools.product(range(12), repeat=count) for count in range(4)))]
    tuples += [(2**32,), (2**63,), (2**64,), (-1,), (1, 23), (12, 3), *itertools.product([0, 1], repeat=5)]
    seeds = {seed_of(*numbers) for numbers in set(tuples)}
    assert len(seeds) == len(set(tuples))
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert seed_of(*np.arange(3), np.int64(7)) == seed_of(0, 1, 2, 7)


def test_seed_all() -> None:
    """All three generators; what was drawn before doesn't matter."""

    def draw() -> tuple[Any, ...]:
        return random.random(), np.random.random(), torch.rand(1).item()

    seed_all(1, 2)
    first = draw()
    seed_all(1, 3)
    other = draw()
    seed_all(1, 2)
    assert draw() == first
    assert all(a != b for a, b in zip(first, other))


# Images


@pytest.fixture(scope='module')
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return save_pieces(tmp_path_factory.mktemp('pieces'), 11, size=48)


def augmentation() -> Any:
    return create_transform(
        (3, 32, 32),
        is_training=True,
        scale=(0.3, 1.0),
        hflip=0.5,
        vflip=0.5,
        auto_augment='rand-m9-mstd0.5-inc1',
        re_prob=0.5,
        re_mode='pixel',
    )


def batches_of(images: Images, epoch: int, workers: int, first_update: int = 0) -> list[Batch]:
    sampler = TrainingBatches(images.split, Batching(len(images.split), 2, 2), seed=5)
    sampler.epoch, sampler.first_update = epoch, first_update
    return list(loader(images, sampler, workers))


def by_position(batches: list[Batch]) -> dict[int, Tensor]:
    return {index: inputs for batch in batches for index, inputs in zip(batch.indices.tolist(), batch.inputs)}


@pytest.mark.parametrize('streamed', [False, True])
def test_augmentation_depends_on_seed_epoch_and_image_alone(files: list[Path], streamed: bool) -> None:
    """Not on workers, ranks, batches, where an epoch is begun, or what was drawn before."""
    split = split_of(files, streamed=streamed)
    images = Images(split, augmentation(), seed=1)
    expected = batches_of(images, epoch=3, workers=0)
    assert all(batch.inputs.shape[1:] == (3, 32, 32) and batch.seconds > 0 for batch in expected)
    for workers, first_update in ((0, 0), (2, 0), (0, 1), (2, 2)):
        seed_all(first_update)
        found = batches_of(images, 3, workers, first_update)
        assert len(found) == len(expected[2 * first_update :])
        for batch, same in zip(found, expected[2 * first_update :]):
            assert batch.indices.tolist() == same.indices.tolist()
            assert batch.labels.tolist() == same.labels.tolist() == [i % 2 for i in batch.indices.tolist()]
            assert batch.weights.tolist() == [1.0] * len(batch.indices)
            assert torch.equal(batch.inputs, same.inputs)
    one, other, seed = (
        by_position(batches)
        for batches in (expected, batches_of(images, 4, 0), batches_of(Images(split, augmentation(), seed=2), 3, 0))
    )
    assert not any(torch.equal(one[index], other[index]) for index in one)
    assert not any(torch.equal(one[index], seed[index]) for index in one)


def test_workers_are_used_for_all_epochs(files: list[Path]) -> None:
    """A loader follows the epoch of its batch sampler."""
    images = Images(split_of(files), augmentation(), seed=1)
    sampler = TrainingBatches(images.split, Batching(11, 3), seed=5)
    kept = loader(images, sampler, 2)
    for epoch in (0, 1, 0):
        sampler.epoch = epoch
        found, expected = by_position(list(kept)), by_position(batches_of(images, epoch, 0))
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[index], expected[index]) for index in expected)


def test_evaluation_is_the_same_in_every_epoch(files: list[Path]) -> None:
    images = Images(split_of(files), create_transform((3, 32, 32)))
    one, other = (by_position(batches_of(images, epoch, 0)) for epoch in (0, 1))
    assert all(torch.equal(one[index], other[index]) for index in range(11))
    parts = [batch for rank in range(3) for batch in loader(images, InOrder(images.split, 2, 3, rank), 2 * (rank == 1))]
    assert all(torch.equal(one[index], image) for index, image in by_position(parts).items())


def test_filler(files: list[Path]) -> None:
    """A rank without an image computes one that doesn't count."""
    images = Images(split_of(files[:1]), create_transform((3, 32, 32)))
    (batch,) = loader(images, TrainingBatches(images.split, Batching(1, 4, 1, 3, rank=2), 0))
    assert (batch.indices.tolist(), batch.weights.tolist()) == ([0], [0.0])


def test_large_jpegs_are_decoded_smaller() -> None:
    content = encoded(photo().resize((1280, 856)), 'JPEG')
    sizes = []
    images = Images(
        split_of([{'bytes': content, 'path': None}]),
        lambda image: sizes.append(image.size) or torch.zeros(3),
        min_side=100,
    )
    assert images[Item(0)][2:4] == (0, 1.0)
    assert sizes == [(320, 214)]


@pytest.mark.parametrize(('workers', 'streamed'), [(0, False), (0, True), (2, True)])
def test_bad_images_are_named(
    files: list[Path], workers: int, streamed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # after an error torch waits this long, in seconds, for each worker before it ends it
    monkeypatch.setattr('torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL', 0.1)
    (tmp_path / 'bad.png').write_bytes(files[0].read_bytes()[:100])
    cut: Any = {'bytes': files[0].read_bytes()[:100], 'path': None}
    transform = create_transform((3, 32, 32))
    for bad, name in (
        (tmp_path / 'bad.png', rf'{tmp_path}/bad.png: damaged'),
        (tmp_path / 'none.png', rf'{tmp_path}/none.png: there is no such file'),
        (cut, "row 2 of the split 'train': damaged"),
        ({}, "row 2 of the split 'train': no image"),
    ):
        images = Images(split_of([*files[:2], bad, *files[3:]], streamed=streamed), transform)
        with pytest.raises(ImageError, match=name):
            list(loader(images, InOrder(images.split, 4), workers))
        if workers:
            gc.collect()


def test_batch_on_a_device(files: list[Path]) -> None:
    """Images in the memory format, features as they are, indices where they were."""
    images = Images(split_of(files, [[0, 1]] * 11), create_transform((3, 32, 32)))
    (batch,) = loader(images, InOrder(images.split, 16))
    assert (batch.labels.shape, batch.labels.dtype) == ((11, 2), torch.int64)
    moved = batch.to(torch.device('cpu'), torch.channels_last)
    assert moved.inputs.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(moved.inputs, batch.inputs) and torch.equal(moved.labels, batch.labels)
    features = Batch(torch.ones(2, 5), torch.zeros(2), torch.arange(2), torch.ones(2), 0.0)
    assert features.to(torch.device('cpu'), torch.channels_last).inputs.shape == (2, 5)
    assert (features.to(torch.device('meta')).inputs.device.type, features.indices.device.type) == ('meta', 'cpu')
