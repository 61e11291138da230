"""The one object that all parts of a run share, and a phase of it."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from ..data.labelled import Data
from ..models.build import TimmModel, Transforms
from .batches import Images
from .objective import Objective
from .processes import Machine
from .run_data import Manifest
from .run_directory import Run
from .settings import Settings


@dataclass
class Task:
    """A network, a dataset and a machine, and what the settings ask of them."""

    settings: Settings
    machine: Machine
    run: Run
    data: Data
    manifest: Manifest
    model: TimmModel
    transforms: Transforms

    def images(self, split: str) -> Images:
        """Images of the split 'train' or 'validation', as an evaluation sees them."""
        return Images(getattr(self.data, split), self.transforms.evaluation(), self.transforms.min_side)


@dataclass
class Phase:
    """A part of a recipe, ready for training.

    Attributes:
        name: Name for the reader.
        task: The task, with the settings of the phase.
        module: What is trained: the model, or its classifier.
        kind: Name of the module's tensors in a checkpoint: 'model' or 'head'.
        training: Dataset of what the module sees of each training image; None for an evaluation.
        validation: Dataset of what the module sees of each validation image.
        objective: The loss.
    """

    name: str
    task: Task
    module: nn.Module
    kind: str
    training: Any
    validation: Any
    objective: Objective
