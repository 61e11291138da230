"""The task that all parts of a run share, and a phase of it."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from ..data.labelled import Data
from ..models.build import TimmModel, Transforms, evaluating
from .batches import Images, InOrder
from .metrics import Predictions
from .objective import Objective
from .processes import Machine
from .run_data import Manifest
from .run_directory import Run
from .settings import Optimization


@dataclass
class Task:
    """The network, data, machine and directory of a run."""

    machine: Machine
    run: Run
    data: Data
    manifest: Manifest
    model: TimmModel
    transforms: Transforms

    def images(self, split: str) -> Images:
        """Images of the split 'train' or 'validation', prepared for evaluation."""
        return Images(getattr(self.data, split), self.transforms.evaluation(), self.transforms.min_side)


@dataclass
class Phase:
    """A part of a recipe, ready for training.

    Attributes:
        name: Name of the phase in messages.
        task: The task.
        settings: Settings of the phase.
        module: The trained module: the model, or its classifier.
        kind: Name of the module's tensors in a checkpoint: 'model' or 'head'.
        training: Dataset of the module's inputs for each training image; None for an evaluation.
        validation: Dataset of the module's inputs for each validation image.
        objective: The loss.
    """

    name: str
    task: Task
    settings: Optimization
    module: nn.Module
    kind: str
    training: Any
    validation: Any
    objective: Objective

    def predict(self, module: nn.Module) -> Predictions:
        """Predicts the validation split with all processes together, each image exactly once."""
        machine, split = self.task.machine, self.task.data.validation
        order = InOrder(split, self.settings.batch_size, machine.num_processes, machine.process_index)
        parts = []
        machine.share(module.buffers())
        with evaluating(module), machine.autocast(), machine.progress('Evaluation', len(split)) as bar:
            for batch in map(machine.put, machine.loader(self.validation, order)):
                parts.append(Predictions.of(module(batch.inputs), batch.labels, batch.indices))
                bar.update(len(batch.indices) * machine.num_processes)
        return Predictions.joined(machine.gather_values(parts))
