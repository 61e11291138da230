"""Which of a trained model's outputs are a dataset's classes, told by their names."""

from collections.abc import Sequence

import torch
from timm.data import ImageNetInfo
from torch import Tensor, nn

from ..errors import ModelError
from .models import TimmModel

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
            their WordNet ids (n01440764), by all of their names (tench, Tinca tinca), by the first or by any one of
            them. The surest spelling that fits decides; upper case, hyphens and underscores count only where needed.
        class_names: Names of the dataset's classes.

    Raises:
        ModelError: A class is none of its outputs, or may be several of them; or the names are not known and the counts
            differ.
    """
    spellings = _spellings(model)
    if not spellings:
        if len(class_names) != model.num_classes:
            raise ModelError(
                f'The model has {model.num_classes} outputs without names, and the dataset {len(class_names)} classes.'
            )
        return list(range(len(class_names)))
    found: list[list[int]] = [[] for _ in class_names]
    for fold in (str, _folded):
        for spelling in spellings:
            places: dict[str, list[int]] = {}
            for output, names in enumerate(spelling):
                for name in {fold(name) for name in names}:
                    places.setdefault(name, []).append(output)
            found = [outputs or places.get(fold(name), []) for name, outputs in zip(class_names, found)]
    unknown = [name for name, outputs in zip(class_names, found) if not outputs]
    if unknown and [str(number) for number in range(model.num_classes)] == list(class_names):
        return list(range(model.num_classes))  # numbers instead of names
    if unknown:
        raise ModelError(
            f"{len(unknown)} classes of the dataset are none of the model's: {', '.join(unknown[:6])}. "
            f'Its own are {", ".join(names[0] for names in spellings[0][:6])}, ...'
        )
    for name, outputs in zip(class_names, found):
        if len(outputs) > 1:
            choices = ' or '.join(f'{spellings[0][output][0]} ({spellings[-1][output][0]})' for output in outputs)
            raise ModelError(f'The class {name!r} of the dataset may be {choices} of the model. Name it as that does.')
    chosen = [outputs[0] for outputs in found]
    if len(set(chosen)) < len(chosen):
        twice = next(name for name, output in zip(class_names, chosen) if chosen.count(output) > 1)
        raise ModelError(f'The class {twice!r} and another one of the dataset are the same output of the model.')
    return chosen


def _spellings(model: TimmModel) -> list[list[list[str]]]:
    """Names of all outputs in each spelling, the surest first; none if they are not known."""
    names = model.pretrained_cfg.get('label_names') or []
    names = list(names.values() if isinstance(names, dict) else names)
    descriptions = model.pretrained_cfg.get('label_descriptions') or {}
    if len(names) != model.num_classes:
        if model.num_classes != IMAGENET_CLASSES:
            return []
        names = ImageNetInfo().label_names()
        descriptions = ImageNetInfo().label_descriptions(as_dict=True)
    if not descriptions:
        return [[[name] for name in names]]
    lemmas = [descriptions.get(name, name).split(', ') for name in names]
    return [
        [[name] for name in names],
        [[', '.join(words)] for words in lemmas],
        [words[:1] for words in lemmas],
        lemmas,
    ]


def _folded(name: str) -> str:
    return name.casefold().replace('_', ' ').replace('-', ' ').strip()
