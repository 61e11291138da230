"""Features of images, computed once by a frozen network and kept on disk.

Each combination of network, preparation of images, and images of a split in their order has one file. An interrupted
computation starts again.
"""

import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import cached_assets_path
from timm.models import get_model_args
from torch import Tensor
from torch.utils.data import Dataset

from ..data.bad_images import digests
from ..data.items import Item
from ..data.labelled import Split
from ..errors import ResumeError
from ..models.build import TimmModel, evaluating
from ..models.classifier import features_of, without_classifier
from .batches import Batch, Images, InOrder
from .phase import Task
from .run_checkpoints import read, write

BATCH = 32  # images at a time, whatever the number of processes: the last bit depends on it


def digest_of(tensors: Mapping[str, Tensor], preparation: Mapping[str, Any], images: Sequence[bytes]) -> str:
    """The sha256 of all that features depend on, in hexadecimal digits.

    Args:
        tensors: Weights [...] of the network, by name.
        preparation: The network's layers and the preparation of the images, in types that JSON can express.
        images: The sha256 of each image file, in order.
    """
    digest = hashlib.sha256(json.dumps(preparation, sort_keys=True, default=str).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f'{name} {tensor.dtype} {tuple(tensor.shape)}'.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    digest.update(b''.join(images))
    return digest.hexdigest()


def function_of(model: TimmModel) -> list[str]:
    """All that decides features except the weights: arguments and layers, such as an eps or an activation."""
    arguments = {name: value for name, value in get_model_args(model).items() if name != 'num_classes'}
    layers = [
        f'{name}: {layer}'
        for name, layer in model.named_modules()
        if layer is not model.get_classifier() and not [*layer.children()] and 'Drop' not in type(layer).__name__
    ]
    return [type(model).__name__, str(sorted(arguments.items())), *layers]


class Features(Dataset):
    """The features of a split, read as whole batches.

    Args:
        split: The split, which has the labels.
        vectors: [N, D], one for each image of the split.
    """

    def __init__(self, split: Split, vectors: Tensor) -> None:  # [N, D]
        self.split = split
        self.vectors = vectors

    def __getitems__(self, items: Sequence[Item]) -> Batch:
        indices = torch.tensor([item.index for item in items])
        weights = torch.tensor([item.weight for item in items])
        return Batch(self.vectors[indices], torch.from_numpy(self.split.labels[indices.numpy()]), indices, weights, 0.0)


def stored(file: Path, count: int) -> Tensor | None:
    """The vectors [N, D] of a file, memory-mapped; None if there is no such file, or a damaged one."""
    try:
        if file.exists() and len(vectors := read(file).tensors['features']['vectors']) == count:
            return vectors
    except (ResumeError, KeyError) as e:
        warnings.warn(f'{file} is damaged; its features are computed again ({e}).', stacklevel=2)
    return None


def computed(images: Images, task: Task) -> Tensor:
    """Computes the features [N, D] of a split by the frozen network, with all processes, each image exactly once."""
    machine, split, throughput = task.machine, images.split, task.machine.throughput()
    batches = islice(InOrder(split, BATCH), machine.process_index, None, machine.num_processes)
    own: list[tuple[Tensor, Tensor]] = []  # indices and vectors
    with machine.progress(f'Features of {split.name}', len(split)) as bar, evaluating(task.model), machine.autocast():
        for batch in throughput.timed(machine.loader(images, batches)):
            own.append((batch.indices, features_of(task.model, machine.put(batch).inputs).float().cpu()))
            bar.update(len(batch.indices) * machine.num_processes)
    machine.print(f'Features of {split.name}: {throughput}')
    indices, vectors = (torch.cat(parts) for parts in zip(*machine.gather_values(own)))
    return vectors[indices.argsort()]


def frozen_features(images: Images, task: Task, folder: Path | None = None) -> Features:
    """Features of images by the frozen network of a task, from a file or computed and saved.

    Args:
        images: The images.
        task: Network, transforms and machine.
        folder: Folder of the files; None for one in the cache of the Hugging Face libraries.
    """
    machine, split, model = task.machine, images.split, task.model
    preparation = dict(
        task.transforms.config,
        min_side=images.min_side,
        grey_maximum=split.grey_maximum,
        network=function_of(model),
        precision=machine.mixed_precision,
    )
    digest = digest_of(without_classifier(model), preparation, digests(split, machine.workers))
    folder = folder or cached_assets_path('xception_hub', namespace='features')
    file = folder / f'{digest}.safetensors'
    vectors = stored(file, len(split))
    if not all(machine.gather_values([vectors is not None])):  # machines may have separate disks
        vectors = computed(images, task)
        if machine.is_local_main_process:
            write(file, {'features': {'vectors': vectors}}, {})
    assert vectors is not None
    return Features(split, vectors)
