"""Which of a trained model's outputs are a dataset's classes, told by their names."""
from collections.abc import Sequence

import torch
from timm.data import ImageNetInfo
from torch import Tensor, nn

from .models import ModelError, TimmModel

__all__ = ['Selected', 'outputs_of']

IMAGENET_CLASSES = 1000


class Selected(nn.Module):
    """A model's logits of some of its outputs, [B, len(outputs)]."""

    def __init__(self, model: nn.Module, outputs: Sequence[int]) -> None:
        super().__init__()
        self.model = model
        self.register_buffer('outputs', torch.tensor(outputs), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)[:, self.outputs]


def outputs_of(model: TimmModel, class_names: Sequence[str]) -> list[int]:
    """The model's output for each class of a dataset.

    Args:
        model: With the names of its outputs in its pretrained cfg, or one of ImageNet-1k, whose classes are known by
            their WordNet ids (n01440764) or by one or all of their names (tench, Tinca tinca).
        class_names: Of the dataset.

    Raises:
        ModelError: A class is none of its outputs; or the names are not known and the counts differ.
    """
    spellings = _spellings(model)
    if not spellings:
        if len(class_names) != model.num_classes:
            raise ModelError(f'The model has {model.num_classes} outputs without names, and the dataset '
                             f'{len(class_names)} classes.')
        return list(range(len(class_names)))
    places: dict[str, int] = {}
    for names in spellings:  # the surest spelling first
        for output, name in enumerate(names):
            for known in (name, _folded(name)):
                places.setdefault(known, output)
    found = [places.get(name, places.get(_folded(name))) for name in class_names]
    unknown = [name for name, output in zip(class_names, found) if output is None]
    if unknown and [str(number) for number in range(model.num_classes)] == list(class_names):
        return list(range(model.num_classes))  # numbers instead of names
    if unknown:
        raise ModelError(f'{len(unknown)} classes of the dataset are none of the model\'s: {", ".join(unknown[:6])}. '
                         f'Its own are {", ".join(spellings[0][:6])}, ...')
    outputs = [output for output in found if output is not None]
    if len(set(outputs)) < len(outputs):
        twice = next(name for name, output in zip(class_names, outputs) if outputs.count(output) > 1)
        raise ModelError(f'The class {twice!r} and another one of the dataset are the same output of the model.')
    return outputs


def _spellings(model: TimmModel) -> list[list[str]]:
    """Names of all outputs, in one or more spellings; none if they are not known."""
    names = model.pretrained_cfg.get('label_names')
    if names:
        names = list(names.values() if isinstance(names, dict) else names)
        descriptions = model.pretrained_cfg.get('label_descriptions') or {}
        return [names] + ([[descriptions.get(name, name) for name in names]] if descriptions else [])
    if model.num_classes == IMAGENET_CLASSES:
        info = ImageNetInfo()
        ids = info.label_names()
        descriptions = [info.index_to_description(output) for output in range(IMAGENET_CLASSES)]
        lemmas = [description.split(', ') for description in descriptions]
        most = max(map(len, lemmas))
        return [ids, descriptions, *([words[i] if i < len(words) else words[0] for words in lemmas]
                                     for i in range(most))]
    return []


def _folded(name: str) -> str:
    return name.casefold().replace('_', ' ').replace('-', ' ').strip()
