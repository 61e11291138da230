"""Checkpoints that resume bit by bit in the middle of an epoch, which those of accelerate don't.

A checkpoint is one safetensors file, written completely or not at all. Order, augmentation and dropout depend on the
seed and on the counters in the checkpoint alone, so a resumed training ends as if it had never been stopped.
"""

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from ..errors import ResumeError
from ..files import replacing
from ..weights.checkpoint_files import StateDict

if TYPE_CHECKING:  # it needs accelerate, and the help of finetune does not
    from .processes import Machine

NUMBERS = (bool, int, float, type(None))


@dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint file.

    Attributes:
        path: Path of the file.
        tensors: Tensors by kind and name. Kinds are 'model' or 'head', 'averages' and 'optimizer'.
        state: Further values that JSON can express.
    """

    path: Path
    tensors: dict[str, StateDict]
    state: dict[str, Any]


def write(path: Path, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> None:
    """Writes tensors of any shape [...]. The file replaces an earlier one only after it is complete on the disk.

    Raises:
        ResumeError: The disk is full or cannot be written. An earlier file is unchanged.
    """
    flat: StateDict = {}
    storages: set[int] = set()
    for kind, named in tensors.items():
        for name, tensor in named.items():
            tensor = tensor.detach().cpu().contiguous()
            if tensor.untyped_storage().data_ptr() in storages:  # tied weights, which safetensors cannot express
                tensor = tensor.clone()
            storages.add(tensor.untyped_storage().data_ptr())
            flat[f'{kind}.{name}'] = tensor
    try:
        with replacing(path) as part:
            safetensors.torch.save_file(flat, part, metadata={'state': json.dumps(state)})
    except (OSError, safetensors.SafetensorError) as e:
        size = sum(tensor.nbytes for tensor in flat.values()) / 1e6
        raise ResumeError(
            f'{path} ({size:.0f} MB) could not be written: {e}. Earlier files are unchanged. Free some disk space, '
            f'and run the same command again.'
        ) from e


def read(path: Path) -> Checkpoint:
    """Reads a file that `write` wrote.

    Raises:
        ResumeError: The file is missing, damaged or not a checkpoint.
    """
    try:
        with safetensors.safe_open(path, 'pt') as file:
            metadata, names = file.metadata() or {}, list(file.keys())
            tensors: dict[str, StateDict] = {}
            for name in names:
                kind, _, rest = name.partition('.')
                tensors.setdefault(kind, {})[rest] = file.get_tensor(name)
        return Checkpoint(path, tensors, json.loads(metadata['state']))
    except (OSError, safetensors.SafetensorError, KeyError, ValueError) as e:
        raise ResumeError(f'{path} is damaged, or not a checkpoint ({e}).') from e


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of a run, named by phase and update.

    Attributes:
        directory: Directory of the checkpoints, which may not exist yet.
        keep: Number of checkpoints to keep; older ones are removed.
    """

    directory: Path
    keep: int = 2

    @property
    def best(self) -> Path:
        """The file with the weights of the best evaluation, which is never removed."""
        return self.directory / 'best.safetensors'

    def path(self, phase: int, update: int) -> Path:
        """The file of the checkpoint after an update of a phase."""
        return self.directory / f'{phase:02}-{update:09}.safetensors'

    def all(self) -> list[Path]:
        """Files of all checkpoints, the newest first."""
        return sorted(self.directory.glob(f'{"[0-9]" * 2}-{"[0-9]" * 9}.safetensors'), reverse=True)

    def save(
        self, phase: int, update: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]
    ) -> None:
        """Writes a checkpoint with tensors [...], see `write`, then removes all but the newest ones."""
        write(self.path(phase, update), tensors, state)
        for old in self.all()[self.keep :]:
            old.unlink(missing_ok=True)

    def newest(self) -> Checkpoint | None:
        """The newest checkpoint that can be read; None without any. Damaged ones are skipped with a warning."""
        for path in self.all():
            try:
                return read(path)
            except ResumeError as e:
                warnings.warn(f'{e} The checkpoint before it is used.', stacklevel=2)
        return None


def pack_optimizer(optimizer: torch.optim.Optimizer) -> tuple[StateDict, dict[str, Any]]:
    """An optimizer's state in two parts: its tensors, and other values that JSON can express.

    Raises:
        ResumeError: The state holds values other than tensors and numbers.
    """
    packed = optimizer.state_dict()
    tensors: StateDict = {}

    def numbers(values: Mapping[str, Any], owner: str) -> dict[str, Any]:
        """Moves the tensors to `tensors` under the owner's name, and returns the numbers."""
        tensors.update({f'{owner}.{name}': value for name, value in values.items() if isinstance(value, Tensor)})
        return {name: value for name, value in values.items() if isinstance(value, NUMBERS)}

    for value in (value for values in packed['state'].values() for value in values.values()):
        if not isinstance(value, (Tensor, *NUMBERS)):
            raise ResumeError(
                f'The state of {type(optimizer).__name__} contains a {type(value).__name__}, which a checkpoint cannot '
                f'store. Choose another --optimizer.'
            )
    of_state = {str(index): numbers(values, str(index)) for index, values in packed['state'].items()}
    groups = [numbers(group, f'group{i}') for i, group in enumerate(packed['param_groups'])]
    return tensors, dict(numbers=of_state, groups=groups)


def unpack_optimizer(optimizer: torch.optim.Optimizer, tensors: StateDict, rest: Mapping[str, Any]) -> None:
    """Loads a packed state into a new optimizer of the same parameters, made from the same settings."""
    state: dict[int, dict[str, Any]] = {int(index): dict(values) for index, values in rest['numbers'].items()}
    groups = [
        {**new, **{name: value for name, value in old.items() if isinstance(value, NUMBERS)}}
        for new, old in zip(optimizer.state_dict()['param_groups'], rest['groups'])
    ]
    for key, tensor in tensors.items():
        owner, _, name = key.partition('.')
        if owner.startswith('group'):
            groups[int(owner.removeprefix('group'))][name] = tensor
        else:
            state[int(owner)][name] = tensor
    optimizer.load_state_dict(dict(state=state, param_groups=groups))
    # torch has loaded the state in the dtype of the parameters and in the memory format of the file; the last bit of a
    # sum depends on both
    parameters = [parameter for group in optimizer.param_groups for parameter in group['params']]
    for index, values in optimizer.state_dict()['state'].items():
        for name, loaded in values.items():
            if isinstance(loaded, Tensor):
                saved = state[index][name]
                like = parameters[index] if loaded.shape == parameters[index].shape else loaded
                values[name] = torch.empty_like(like, dtype=saved.dtype, device=loaded.device).copy_(saved)


def restore(module: nn.Module, tensors: StateDict, path: Path) -> None:
    """Loads the tensors of a file into a module.

    Raises:
        ResumeError: The tensors belong to another module.
    """
    try:
        module.load_state_dict(tensors)
    except RuntimeError as e:
        raise ResumeError(f'{path} does not fit the model ({" ".join(str(e).split())[:300]}).') from e


def resume(
    checkpoint: Checkpoint, kind: str, module: nn.Module, averages: Any, optimizer: torch.optim.Optimizer, scaler: Any
) -> None:
    """Restores weights, averages, optimizer and the scaler of losses; there may be no averages and no scaler."""
    tensors, state = checkpoint.tensors, checkpoint.state
    restore(module, tensors[kind], checkpoint.path)
    if averages:
        restore(averages.module, tensors['averages'], checkpoint.path)
    unpack_optimizer(optimizer, tensors.get('optimizer', {}), state['optimizer'])
    if scaler:
        scaler.load_state_dict(state['scaler'])


def restore_best(checkpoints: Checkpoints, model: nn.Module, module: nn.Module, machine: 'Machine') -> None:
    """Loads the best weights, and saves them for the whole model, because the next phase changes more than the head."""
    if machine.is_main_process:
        best = read(checkpoints.best)
        whole = 'model' in best.tensors
        restore(model if whole else module, best.tensors['model' if whole else 'head'], best.path)
        write(best.path, {'model': model.state_dict()}, best.state)
    machine.share(model.state_dict().values())
