"""What a frozen network makes of images, computed once and kept.

A vector is kept under the sha256 of its image file, in a folder for the weights and the preparation that it was made
with: another split of the same images, more of them, or another head need no second pass over those seen before.
"""

import hashlib
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from huggingface_hub import cached_assets_path
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import ResumeError
from .data import Split
from .resume import read, write
from .samples import Batch, Images, Item, in_order, loader
from .throughput import Throughput

__all__ = ['FeatureCache', 'Features', 'cache_folder', 'context_of']

SHARD = 256  # images in a file: what an interruption can cost
BATCH = 32  # images at a time; divides SHARD, so that no batch depends on what was there before
DIGEST = 32  # bytes


def cache_folder() -> Path:
    """Where features are kept, in the cache of the Hugging Face libraries."""
    return cached_assets_path('xception_hub', namespace='features')


def context_of(tensors: Mapping[str, Tensor], preparation: Mapping[str, Any]) -> str:
    """A name that is the same only for the same weights and the same preparation of images."""
    digest = hashlib.sha256(json.dumps(preparation, sort_keys=True, default=str).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f'{name} {tensor.dtype} {tuple(tensor.shape)}'.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class FeatureCache:
    """Vectors on disk, by the sha256 of their images.

    Args:
        folder: Of all caches.
        context: See `context_of`.
    """

    def __init__(self, folder: Path, context: str) -> None:
        self.folder = folder / context
        self._files: set[Path] = set()
        self._shards: list[Tensor] = []
        self._places: dict[bytes, tuple[int, int]] = {}
        self.refresh()

    def refresh(self) -> None:
        """Takes up files that other processes have written; removes damaged ones, whose features are missing then."""
        for path in sorted(self.folder.glob('*.safetensors')):
            if path not in self._files:
                try:
                    shard = read(path).tensors['shard']  # mapped: read as it is used
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
        """Keeps vectors [N, D]."""
        name = hashlib.sha256(b''.join(digests)).hexdigest()[:16]
        keys = torch.from_numpy(np.frombuffer(b''.join(digests), np.uint8).reshape(-1, DIGEST).copy())
        write(self.folder / f'{name}.safetensors', {'shard': {'digests': keys, 'features': features}}, {})

    def fill(
        self,
        images: Images,
        digests: Sequence[bytes],
        compute: Callable[[Tensor], Tensor],
        accelerator: Accelerator,
        throughput: Throughput,
        workers: int = 0,
        memory_format: torch.memory_format = torch.preserve_format,
        step: Callable[[int], Any] = lambda count: None,
    ) -> None:
        """Computes what is missing, each image once, by all processes together.

        Args:
            images: Whose features are wanted, transformed without random choices.
            digests: Of their files.
            compute: Images [B, 3, H, W] on the accelerator's device -> vectors [B, D].
            accelerator: Of the processes.
            throughput: To be measured.
            workers: Processes that decode images.
            memory_format: Of images.
            step: Called with the number of images just seen.
        """
        # the second round finds nothing to do, unless the machines that work together don't share their caches
        for processes, rank in ((accelerator.num_processes, accelerator.process_index), (1, 0)):
            missing = self._missing(digests)
            shards = _Shards(images.split, missing, processes, rank)
            kept: list[Tensor] = []
            positions: list[int] = []
            batches = loader(images, shards, workers, accelerator.device.type == 'cuda') if missing else ()
            for batch in throughput.timed(batches):
                kept.append(compute(batch.to(accelerator.device, memory_format).inputs).float().cpu())
                positions += batch.positions.tolist()
                step(len(batch.positions))
                if shards.complete(positions):
                    self.add([digests[position] for position in positions], torch.cat(kept))
                    kept, positions = [], []
            accelerator.wait_for_everyone()
            self.refresh()

    def _missing(self, digests: Sequence[bytes]) -> list[int]:
        """Positions of images that have no vector yet, each image once."""
        first = {digest: position for position, digest in reversed(list(enumerate(digests))) if digest not in self}
        return sorted(first.values())


class _Shards:
    """Batches of the missing images of a split, in order; each run of `SHARD` of them belongs to one process."""

    def __init__(self, split: Split, missing: Sequence[int], processes: int, rank: int) -> None:
        self.split = split
        self.missing = missing
        self.mine = {
            position
            for shard in range(rank, -(-len(missing) // SHARD), processes)
            for position in missing[shard * SHARD : (shard + 1) * SHARD]
        }

    def complete(self, positions: Sequence[int]) -> bool:
        """Whether these are all of a file."""
        return len(positions) == SHARD or positions[-1] == self.missing[-1]

    def __len__(self) -> int:
        return -(-len(self.mine) // BATCH)

    def __iter__(self) -> Iterator[list[Item]]:
        batch: list[Item] = []
        items = in_order(self.split) if self.split.streamed else map(Item, sorted(self.mine))
        for item in items:
            if item.position in self.mine:
                batch.append(item)
                if len(batch) == BATCH or item.position == self.missing[-1]:
                    yield batch
                    batch = []


class Features(Dataset):
    """The kept vectors of a split, whole batches at a time.

    Args:
        split: Whose labels go with them.
        digests: Of its files.
        cache: That was filled with them.
    """

    def __init__(self, split: Split, digests: Sequence[bytes], cache: FeatureCache) -> None:
        self.split = split
        self.digests = digests
        self.cache = cache

    def __getitems__(self, items: Sequence[Item]) -> Batch:
        positions = [item.position for item in items]
        return Batch(
            torch.stack([self.cache[self.digests[position]] for position in positions]),
            torch.from_numpy(self.split.labels[positions]),
            torch.tensor(positions),
            torch.tensor([item.weight for item in items]),
            0.0,
        )
