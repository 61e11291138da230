"""Adapters of peft in a pickled network: merged into the weights that they change, as peft itself merges them."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from ..errors import CheckpointError
from .checkpoint_files import CheckpointFile, StateDict
from .pickles import Inert


def merge_adapters(file: CheckpointFile, source: str) -> CheckpointFile:
    """The file as if its network had been trained without adapters; the same file if it has none.

    A pickled network says how LoRA is scaled and which adapter is active. A state dict does not, and stays as it is.

    Raises:
        CheckpointError: An adapter is of another kind than LoRA, or several are active.
    """
    layers: dict[str, str] = {}  # path of an adapted layer -> name of the layer within, whose place it takes
    changes: StateDict = {}  # name of a weight -> what is added to it
    for path, module in file.modules.items():
        readers = [reader for child, reader in READERS.items() if child in (module.state.get('_modules') or {})]
        for reader in readers:
            try:
                layers[path], change = reader(path, module, file.tensors)
            except (KeyError, TypeError, ValueError, RuntimeError) as e:
                raise CheckpointError(
                    f'{source}: the adapter of {path}, a {module.kind}, cannot be merged here ({e}). Merge it in the '
                    f"program that trained it: torch.save(model.merge_and_unload().state_dict(), 'merged.pth'), then "
                    f'load merged.pth.'
                ) from e
            if change is not None:
                changes[f'{path}.weight'] = change
    if not layers:
        return file

    def place(name: str) -> str | None:
        """Name without adapters; None for what belongs to an adapter."""
        path, inner = name, ''
        while path and path not in layers:
            path, _, last = path.rpartition('.')
            inner = f'{last}.{inner}' if inner else last
        if not path:
            return name
        _, found, rest = f'{inner}.'.partition(f'{layers[path]}.')
        return f'{path}.{rest}'.rstrip('.') if found else None

    tensors = {new: tensor for name, tensor in file.tensors.items() if (new := place(name))}
    for name, change in changes.items():
        tensors[name] = tensors[name] + change
    modules = {new or '': module for name, module in file.modules.items() if (new := place(name)) is not None}
    return replace(file, tensors=tensors, modules=modules)


def _lora(path: str, module: Inert, tensors: StateDict) -> tuple[str, Tensor | None]:
    """Name of the layer within, and what LoRA adds to its weight: the product of two matrices, scaled."""
    state = module.state
    active = [name for name in _names(state['_active_adapter']) if name in state['scaling']]
    if state['_disable_adapters'] or state['merged_adapters'] or not active:
        return 'base_layer', None
    (name,) = active
    weight = tensors[f'{path}.base_layer.weight']
    down, up = (tensors[f'{path}.lora_{kind}.{name}.weight'] for kind in 'AB')
    change = torch.tensordot(up.flatten(1), down, 1) * state['scaling'][name]
    is_plain = module.kind.endswith(('lora.layer.Linear', 'lora.layer.Conv2d')) and not state.get('fan_in_fan_out')
    if (
        not is_plain
        or state.get('use_dora', {}).get(name)
        or f'{path}.lora_B.{name}.bias' in tensors
        or change.shape != weight.shape
    ):
        raise ValueError('it is not plain LoRA')
    return 'base_layer', change


def _saved(path: str, module: Inert, tensors: StateDict) -> tuple[str, None]:
    """Name of the copy that was trained whole."""
    state = module.state
    (name,) = _names(state['_active_adapter'])
    return 'original_module' if state['_disable_adapters'] else f'modules_to_save.{name}', None


def _names(active: str | list[str]) -> list[str]:
    return [active] if isinstance(active, str) else active


# Child of an adapted layer -> reader of the adapter.
READERS: dict[str, Callable[[str, Inert, StateDict], tuple[str, Tensor | None]]] = {
    'base_layer': _lora,
    'original_module': _saved,
}
