"""Order and augmentation of the images. accelerate's samplers are not used, because they do not resume bit by bit.

A run must be able to continue in the middle of an epoch, and be the same for any number of workers. So the order and
every random choice depend only on the seed, the epoch and the image.

    order of an epoch -> groups, one for each update -> batches of this process -> images, decoded and augmented
"""

import hashlib
import itertools
import random
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..data.labelled import Item, Split

SHUFFLE_BUFFER = 1000  # image files of a stream among which the next one is drawn


@dataclass(frozen=True)
class Batch:
    """A batch of inputs and labels.

    Attributes:
        inputs: Images [B, 3, H, W] or features [B, D].
        labels: [B] class numbers, or [B, C] of 0 and 1 in multi-label.
        indices: [B] numbers of the images in the split.
        weights: [B], see `Item`.
        seconds: Seconds that one worker took to prepare the batch.
    """

    inputs: Tensor
    labels: Tensor
    indices: Tensor
    weights: Tensor
    seconds: float

    def to(self, device: torch.device, memory_format: torch.memory_format = torch.preserve_format) -> 'Batch':
        """Moves the batch to a device, images in a memory format."""
        inputs, labels, weights = (x.to(device, non_blocking=True) for x in (self.inputs, self.labels, self.weights))
        if inputs.dim() == 4:
            inputs = inputs.contiguous(memory_format=memory_format)
        return replace(self, inputs=inputs, labels=labels, weights=weights)

    def pin_memory(self) -> 'Batch':
        """As torch's loaders do it for faster copies to a GPU."""
        inputs, labels, weights = (x.pin_memory() for x in (self.inputs, self.labels, self.weights))
        return replace(self, inputs=inputs, labels=labels, weights=weights)


def seed_of(*numbers: int) -> int:
    """A seed in [0, 2**63) that depends on all of the numbers, and on how many they are."""
    digest = hashlib.sha256(' '.join(map(str, numbers)).encode()).digest()
    return int.from_bytes(digest[:8], 'little') >> 1


def seed_all(*numbers: int) -> None:
    """Seeds the generators that augmentations, dropout and mixup draw from."""
    seed = seed_of(*numbers)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    if torch.cuda.is_available():
        torch.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)  # without the stack that torch keeps for a GPU that may come


@dataclass(frozen=True)
class Batching:
    """Distribution of the images of an epoch over updates, steps and processes.

    An update takes the next `group` images. All processes get equal parts of them, in steps of at most `batch_size`
    images. The last, shorter group has fewer steps or smaller batches. No image is left out or used twice.

    Attributes:
        images: Number of images in the split.
        batch_size: Largest number of images in a step of one process.
        accumulation: Steps of an update.
        processes: Number of processes.
        rank: Number of this process, from 0.
        least: Smallest number of images in a step, if the split is large enough: 2 if batch normalization trains,
            because one image has no statistics. The last update, or a step of it, then takes more images.
    """

    images: int
    batch_size: int
    accumulation: int = 1
    processes: int = 1
    rank: int = 0
    least: int = 1

    @property
    def group(self) -> int:
        """Images of an update."""
        return self.batch_size * self.accumulation * self.processes

    @property
    def updates(self) -> int:
        """Updates in an epoch."""
        whole, rest = divmod(self.images, self.group)
        is_enough = rest >= self.least * self.processes or (rest > 0 and self.least == 1)
        return max(whole + is_enough, min(self.images, 1))

    def size(self, update: int) -> int:
        """Images of an update of the epoch, counted from 0."""
        return self.images - update * self.group if update == self.updates - 1 else self.group

    def steps(self, update: int) -> int:
        """Steps of an update."""
        return self._steps(self.size(update))

    def _steps(self, images: int) -> int:
        fewest = -(-images // (self.batch_size * self.processes))
        return fewest if self.least == 1 else max(min(fewest, images // (self.least * self.processes)), 1)

    def deal(self, group: Sequence[Item]) -> Iterator[list[Item]]:
        """This process' batches of a group."""
        steps = self._steps(len(group))
        for step in range(steps):
            batch = list(group[step * self.processes + self.rank :: steps * self.processes])
            yield batch or [replace(group[0], weight=0.0)]


@dataclass
class TrainingBatches:
    """Batch sampler of this process for an epoch of training.

    Attributes:
        split: The training split.
        batching: How to deal it out.
        seed: Seed of the order.
        balanced: Whether all classes are drawn equally often, so that some images occur several times and others never.
            A stream cannot be balanced.
        epoch: Number of the epoch; set it before each.
        first_update: Number of the first update of the epoch, from 0.
    """

    split: Split
    batching: Batching
    seed: int
    balanced: bool = False
    epoch: int = field(default=0, init=False)
    first_update: int = field(default=0, init=False)

    def __len__(self) -> int:
        return sum(self.batching.steps(update) for update in range(self.first_update, self.batching.updates))

    def __iter__(self) -> Iterator[list[Item]]:
        order = itertools.islice(self._order(), self.first_update * self.batching.group, None)
        for update in range(self.first_update, self.batching.updates):
            yield from self.batching.deal([next(order) for _ in range(self.batching.size(update))])

    def _order(self) -> Iterator[Item]:
        generator = np.random.default_rng([self.seed, self.epoch])
        count = len(self.split)
        if self.split.streamed:
            return self._buffered(generator)
        if self.balanced:
            weights = sampling_weights(self.split.labels)
            indices = generator.choice(count, count, p=weights / weights.sum())
        else:
            indices = generator.permutation(count)
        return (Item(index, self.epoch) for index in indices.tolist())

    def _buffered(self, generator: np.random.Generator) -> Iterator[Item]:
        """Yields a stream in an order that a buffer shuffles."""
        buffer: list[Item] = []
        for index, cell in self.split.cells():
            item = Item(index, self.epoch, cell=cell)
            if len(buffer) < SHUFFLE_BUFFER:
                buffer.append(item)
            else:
                drawn = int(generator.integers(SHUFFLE_BUFFER))
                yield buffer[drawn]
                buffer[drawn] = item
        for drawn in generator.permutation(len(buffer)):
            yield buffer[drawn]


def sampling_weights(labels: np.ndarray) -> np.ndarray:
    """[N], of mean 1, inversely proportional to the size of each image's class; in multi-label of its rarest."""
    if labels.ndim == 1:
        weights = 1 / np.bincount(labels)[labels]
    else:
        none = ~labels.any(1)
        weights = np.where(none, 1 / max(none.sum(), 1), (labels / labels.sum(0).clip(1)).max(1))
    return weights / weights.mean()


@dataclass(frozen=True)
class InOrder:
    """Batch sampler of this process for a whole split in order, each image once; the last batches are not padded."""

    split: Split
    batch_size: int
    processes: int = 1
    rank: int = 0

    def __len__(self) -> int:
        return -(-len(range(self.rank, len(self.split), self.processes)) // self.batch_size)

    def __iter__(self) -> Iterator[list[Item]]:
        batch: list[Item] = []
        for item in self.split.items():
            if item.index % self.processes == self.rank:
                batch.append(item)
            if len(batch) == self.batch_size:
                yield batch
                batch = []
        if batch:
            yield batch


class Images(Dataset):
    """Images of a split, decoded and transformed.

    Args:
        split: The labelled images.
        transform: Function of Pillow's image to a tensor [3, H, W].
        min_side: Shorter side in pixels, as in `images.open_image`.
        seed: Seed of the transform's random choices; they depend on it, the epoch and the image.

    Raises (when an item is asked for):
        ImageError: The image can't be used; the message names it.
    """

    def __init__(
        self, split: Split, transform: Callable[[Image.Image], Tensor], min_side: int | None = None, seed: int = 0
    ) -> None:  # transform returns [3, H, W]
        self.split = split
        self.transform = transform
        self.min_side = min_side
        self.seed = seed

    def __getitem__(self, item: Item) -> tuple[Tensor, Tensor, int, float, float]:  # [3, H, W], [] or [C], seconds
        start = time.perf_counter()
        image = self.split.image(item.index, self.min_side, item.cell)
        seed_all(self.seed, item.epoch, item.index)
        inputs = self.transform(image)
        label = torch.as_tensor(self.split.labels[item.index])
        return inputs, label, item.index, item.weight, time.perf_counter() - start


def _collate(samples: Batch | list[tuple[Tensor, Tensor, int, float, float]]) -> Batch:  # [3, H, W], [] or [C] each
    if isinstance(samples, Batch):
        return samples
    inputs, labels, indices, weights, seconds = zip(*samples)
    return Batch(torch.stack(inputs), torch.stack(labels), torch.tensor(indices), torch.tensor(weights), sum(seconds))


def loader(dataset: Any, batches: Any, workers: int = 0, pin_memory: bool = False) -> DataLoader:
    """Batches of a dataset in the order of a batch sampler, made by this process or by workers."""
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=_collate,
        pin_memory=pin_memory,
        persistent_workers=workers > 0,
        worker_init_fn=_leave_signals,
    )


def _leave_signals(worker: int) -> None:
    """Ignores Ctrl-C in a worker, because the training process still needs it to save, and ends it later."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
