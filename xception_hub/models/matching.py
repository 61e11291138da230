"""Matches the classes of a dataset with the outputs of a trained model, by their names."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from ..data.labelled import Data, Split
from ..errors import ModelError, listed
from .build import TimmModel
from .class_names import names_of, spellings_of


class Selected(nn.Module):
    """A model reduced to some of its outputs: images -> logits [B, len(outputs)]."""

    def __init__(self, model: nn.Module, outputs: Sequence[int]) -> None:
        super().__init__()
        self.model = model
        self.register_buffer('outputs', torch.tensor(outputs), persistent=False)

    def forward(self, x: Tensor) -> Tensor:  # [B, 3, H, W] -> [B, len(outputs)]
        return self.model(x)[:, self.outputs]


def outputs_of(model: TimmModel, class_names: Sequence[str]) -> list[int]:
    """Finds the model's output for each class of a dataset.

    Args:
        model: A model whose pretrained cfg names its outputs, or one of ImageNet-1k. A class of ImageNet-1k is matched
            by its WordNet id (n01440764), by all of its names (tench, Tinca tinca), by the first or by any of them. The
            most specific match decides. If no name matches exactly, case, hyphens and underscores are ignored.
        class_names: Names of the dataset's classes.

    Raises:
        ModelError: A class matches no output of the model, or several. Or the model's outputs have no names and the
            dataset has another number of classes.
    """
    spellings = spellings_of(model)
    if not spellings:
        if len(class_names) != model.num_classes:
            raise ModelError(
                f'The model has {model.num_classes} outputs without names, but the dataset {len(class_names)} classes.'
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
    if unknown and {str(number) for number in range(model.num_classes)} == {*class_names}:
        return [int(name) for name in class_names]  # classes named by the numbers of the outputs
    if unknown:
        raise ModelError(
            f'{len(unknown)} classes of the dataset match no output of the model: {listed(unknown)}. '
            f'The model has: {listed([names[0] for names in spellings[0]])}.'
        )
    for name, outputs in zip(class_names, found):
        if len(outputs) > 1:
            choices = ' or '.join(f'{spellings[0][output][0]} ({spellings[-1][output][0]})' for output in outputs)
            raise ModelError(f'The class {name!r} matches several outputs of the model: {choices}. Rename it to one.')
    chosen = [outputs[0] for outputs in found]
    if len(set(chosen)) < len(chosen):
        twice = next(name for name, output in zip(class_names, chosen) if chosen.count(output) > 1)
        raise ModelError(f'The class {twice!r} and another class match the same output of the model. Rename one.')
    return chosen


def for_evaluation(data: Data, model: TimmModel, restricted: bool) -> tuple[Data, list[int] | None]:
    """Returns the data, and the outputs of a model that count in an evaluation; None for all.

    Args:
        data: Labelled images.
        model: The model, with or without names of its outputs.
        restricted: Whether only the outputs for classes of the data count. Otherwise the data get a class for each
            output, so that a prediction of a class that they lack is an error.
    """
    outputs, names = outputs_of(model, data.class_names), names_of(model)
    if restricted:
        return data, outputs
    for class_name, output in zip(data.class_names, outputs):
        names[output] = class_name

    def renumbered(split: Split) -> Split:
        if split.labels.ndim == 1:
            return replace(split, labels=np.asarray(outputs)[split.labels])
        labels = np.zeros((len(split), model.num_classes), split.labels.dtype)
        labels[:, outputs] = split.labels
        return replace(split, labels=labels)

    train, validation = renumbered(data.train), renumbered(data.validation)
    return replace(data, class_names=names, train=train, validation=validation), None


def _folded(name: str) -> str:
    return name.casefold().replace('_', ' ').replace('-', ' ').strip()
