"""Features of images, computed once by a frozen network and cached on disk.

A feature vector is stored under the sha256 of its image file. Each combination of weights and preparation of images has
a directory of its own. Another split, further images or another head need no second pass over images seen before.
"""

import hashlib
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import cached_assets_path
from torch import Tensor
from torch.utils.data import Dataset

from ..data.bad_images import digests
from ..data.items import Item, in_order
from ..data.labelled import Split
from ..errors import ResumeError
from ..models.build import evaluating
from ..models.classifier import features_of, without_classifier
from .batches import Batch, Images
from .phase import Task
from .processes import Machine
from .run_checkpoints import read, write
from .throughput import Throughput

SHARD = 256  # images in a file, and so the most that an interruption can lose
BATCH = 32  # images at a time; it divides SHARD, so that batches do not depend on what is cached already
DIGEST = 32  # bytes of a sha256


def cache_directory() -> Path:
    """The default directory of feature caches, inside the cache of the Hugging Face libraries."""
    return cached_assets_path('xception_hub', namespace='features')


def context_of(tensors: Mapping[str, Tensor], preparation: Mapping[str, Any]) -> str:
    """A name that two caches share only if their weights and their preparation of images are the same."""
    digest = hashlib.sha256(json.dumps(preparation, sort_keys=True, default=str).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f'{name} {tensor.dtype} {tuple(tensor.shape)}'.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class FeatureCache:
    """Feature vectors on disk, each found by the sha256 of its image file.

    Args:
        directory: Directory of all caches.
        context: Name of this cache; see `context_of`.
    """

    def __init__(self, directory: Path, context: str) -> None:
        self.directory = directory / context
        self._files: set[Path] = set()
        self._shards: list[Tensor] = []
        self._places: dict[bytes, tuple[int, int]] = {}
        self.refresh()

    def refresh(self) -> None:
        """Reads new files of other processes. A damaged file is removed, and its features are missing then."""
        for path in sorted(self.directory.glob('*.safetensors')):
            if path not in self._files:
                try:
                    shard = read(path).tensors['shard']  # memory-mapped: read from disk when it is used
                    digests, features = shard['digests'].numpy(), shard['features']
                except (ResumeError, KeyError) as e:
                    warnings.warn(
                        f'{path} is damaged and removed; its features are computed again ({e}).', stacklevel=2
                    )
                    path.unlink(missing_ok=True)
                    continue
                self._places.update({row.tobytes(): (len(self._shards), i) for i, row in enumerate(digests)})
                self._shards.append(features)
                self._files.add(path)

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._places

    def __getitem__(self, digest: bytes) -> Tensor:
        shard, row = self._places[digest]
        return self._shards[shard][row]

    def add(self, digests: Sequence[bytes], features: Tensor) -> None:
        """Stores the vectors [N, D] of N digests."""
        name = hashlib.sha256(b''.join(digests)).hexdigest()[:16]
        keys = torch.from_numpy(np.frombuffer(b''.join(digests), np.uint8).reshape(-1, DIGEST).copy())
        write(self.directory / f'{name}.safetensors', {'shard': {'digests': keys, 'features': features}}, {})

    def fill(
        self,
        images: Images,
        digests: Sequence[bytes],
        compute: Callable[[Tensor], Tensor],
        machine: Machine,
        throughput: Throughput,
        step: Callable[[int], Any] = lambda count: None,
    ) -> None:
        """Computes all missing vectors. The processes share the work, and compute each image once.

        Args:
            images: Images whose features are wanted. Their transform makes no random choices.
            digests: The sha256 of each image file.
            compute: Function from images [B, 3, H, W] on the machine's device to vectors [B, D].
            machine: The processes that share the work.
            throughput: Measurement that these images are added to.
            step: Function that is called with the number of images in each finished batch.
        """
        # the second round only has work if the machines do not share a cache
        for processes, rank in ((machine.processes, machine.rank), (1, 0)):
            missing = self._missing(digests)
            machine.accelerator.wait_for_everyone()  # a process that comes late would find what others computed by then
            shards = _Shards(images.split, missing, processes, rank)
            computed: list[Tensor] = []
            indices: list[int] = []
            for batch in throughput.timed(machine.loader(images, shards) if missing else ()):
                computed.append(compute(machine.put(batch).inputs).float().cpu())
                indices += batch.indices.tolist()
                step(len(batch.indices))
                if shards.complete(indices):
                    self.add([digests[index] for index in indices], torch.cat(computed))
                    computed, indices = [], []
            machine.accelerator.wait_for_everyone()
            self.refresh()

    def _missing(self, digests: Sequence[bytes]) -> list[int]:
        """Indices of the images without a vector. Identical images are named once."""
        first = {digest: index for index, digest in reversed(list(enumerate(digests))) if digest not in self}
        return sorted(first.values())


class _Shards:
    """Batches of a split's missing images, in order. Each process takes whole runs of `SHARD` images."""

    def __init__(self, split: Split, missing: Sequence[int], processes: int, rank: int) -> None:
        self.split = split
        self.missing = missing
        self.mine = {
            index
            for shard in range(rank, -(-len(missing) // SHARD), processes)
            for index in missing[shard * SHARD : (shard + 1) * SHARD]
        }

    def complete(self, indices: Sequence[int]) -> bool:
        """Whether these images fill a file, or are the last ones."""
        return len(indices) == SHARD or indices[-1] == self.missing[-1]

    def __len__(self) -> int:
        return -(-len(self.mine) // BATCH)

    def __iter__(self) -> Iterator[list[Item]]:
        batch: list[Item] = []
        items = in_order(self.split) if self.split.streamed else map(Item, sorted(self.mine))
        for item in items:
            if item.index in self.mine:
                batch.append(item)
                if len(batch) == BATCH or item.index == self.missing[-1]:
                    yield batch
                    batch = []


class Features(Dataset):
    """The cached vectors of a split, read as whole batches.

    Args:
        split: The split, which has the labels.
        digests: The sha256 of each image file of the split.
        cache: Cache that holds all vectors of the split.
    """

    def __init__(self, split: Split, digests: Sequence[bytes], cache: FeatureCache) -> None:
        self.split = split
        self.digests = digests
        self.cache = cache

    def __getitems__(self, items: Sequence[Item]) -> Batch:
        indices = [item.index for item in items]
        return Batch(
            torch.stack([self.cache[self.digests[index]] for index in indices]),
            torch.from_numpy(self.split.labels[indices]),
            torch.tensor(indices),
            torch.tensor([item.weight for item in items]),
            0.0,
        )


def frozen_features(images: Images, task: Task) -> Features:
    """Features of images from the frozen network of a task. Those that the cache lacks are computed first."""
    machine, settings, model = task.machine, task.settings, task.model
    preparation = dict(
        task.transforms.config,
        needed=images.min_side,  # the key of existing caches
        model=settings.model.model,
        precision=machine.accelerator.mixed_precision,
        **({'grey_maximum': images.split.grey_maximum} if images.split.grey_maximum else {}),
    )
    directory = settings.machine.feature_cache or cache_directory()
    cache = FeatureCache(directory, context_of(without_classifier(model), preparation))
    keys, throughput, split = digests(images.split, machine.workers), machine.throughput(), images.split
    with (
        machine.progress(f'Features of {split.name}', len(split)) as bar,
        evaluating(model),
        machine.accelerator.autocast(),
    ):
        cache.fill(
            images,
            keys,
            partial(features_of, model),
            machine,
            throughput,
            lambda count: bar.update(count * machine.processes),
        )
    if throughput.images:
        machine.print(f'Features of {split.name}: {throughput}')
    return Features(split, keys, cache)
