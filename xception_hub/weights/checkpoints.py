"""Torch checkpoints of Xception, whoever published them: their layouts, and their tensors under this network's names.

The legacy lineage is that of tstandley's port, with Cadene's pretrainedmodels, timm's `legacy_xception`,
segmentation_models_pytorch's encoder, FaceForensics++ and DeepfakeBench. Its models compute with BatchNorm eps 1e-5 and
symmetric pool padding, so weights that were *trained* there need these numerics, which `from_checkpoint` sets.
"""

import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import timm
import torch
from timm.models import load_state_dict
from torch import Tensor, nn

from ..errors import CheckpointError, DamagedCheckpointError
from ..topology import LEGACY_NAMES

__all__ = ['from_checkpoint']

StateDict = dict[str, Tensor]

LEGACY_NUMERICS = dict(bn_eps=1e-5, pool_padding='symmetric')

# Where a classifier is found in the legacy lineage; FaceForensics++ puts a dropout before it.
LEGACY_CLASSIFIERS = ('fc', 'last_linear', 'last_linear.1')

# Tensors that published checkpoints carry beside the network, and why the network does without them.
LEFT_OUT = {
    'adjust_channel.': "a projection that DeepfakeBench's other detectors use, beside the path to the classifier"
}


def to_legacy(tensors: StateDict, classifier: str = 'fc') -> StateDict:
    """This network's tensors under the names of the legacy lineage; the table read backwards."""
    names = {ours: legacy for legacy, ours in LEGACY_NAMES.items()} | {'head.fc': classifier}
    split = {name: name.rpartition('.') for name in tensors}
    return {f'{names[layer]}.{kind}': tensors[name] for name, (layer, _, kind) in split.items()}


@dataclass
class Recognised:
    """A checkpoint's tensors under this network's names.

    Attributes:
        layout: 'xception_hub' or 'legacy'.
        tensors: Name -> tensor, without `num_batches_tracked`.
        left_out: Name in the file -> why the network does without it.
    """

    layout: str
    tensors: StateDict
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def model_args(self) -> dict[str, Any]:
        """The arguments of `Xception` that the shapes tell, and the numerics that the layout tells."""
        args: dict[str, Any] = dict(in_chans=self.tensors['stem.conv1.weight'].shape[1], num_classes=0)
        if 'head.fc.weight' in self.tensors:
            args['num_classes'] = self.tensors['head.fc.weight'].shape[0]
        widths: list[int] = []
        while f'head.fc_layers.fc{len(widths) + 1}.weight' in self.tensors:
            widths.append(self.tensors[f'head.fc_layers.fc{len(widths) + 1}.weight'].shape[0])
        if widths:
            args['fc_widths'] = widths
        return {**args, **(LEGACY_NUMERICS if self.layout == 'legacy' else {})}


def read_tensors(path: str | Path, mapped: bool = False) -> StateDict:
    """Reads a checkpoint file without running anything in it.

    Args:
        path: A .safetensors file, or a pickle, which is read with `weights_only=True`.
        mapped: Leave a safetensors file on disk, but for its matrices, and map its pages as they are used. Only for
            files that nobody overwrites, such as those of the Hugging Face cache.

    Raises:
        CheckpointError: The file is missing, truncated, foreign, or a pickle with anything but tensors in it.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f'There is no file {path}.')
    try:
        if path.suffix == '.safetensors':
            tensors = safetensors.torch.load_file(path)
            # products of matrices round in another way where these aren't aligned, and in a file they aren't
            keep = {name for name, tensor in tensors.items() if mapped and tensor.dim() != 2}
            return {name: tensor if name in keep else tensor.clone() for name, tensor in tensors.items()}
        checkpoint = load_state_dict(str(path), weights_only=True)
    except safetensors.SafetensorError as e:
        raise DamagedCheckpointError(
            f'{path} is not a complete safetensors file ({e}). Delete it and download or convert it again.'
        ) from e
    except Exception as e:  # torch.load has no error of its own: anything may come out of a damaged or foreign file
        raise DamagedCheckpointError(
            f'{path} holds something other than tensors, or is damaged; nothing in it was run ({e}).'
        ) from e
    if not isinstance(checkpoint, dict):
        raise CheckpointError(f'{path} holds a {type(checkpoint).__name__} instead of a state dict.')
    return checkpoint


def recognise(checkpoint: dict[str, Any], source: str = 'the checkpoint') -> Recognised:
    """Finds the network's tensors in a state dict of any published layout.

    Args:
        checkpoint: Name -> tensor, with whatever prefix a wrapper has put before the names.
        source: What the errors call it.

    Raises:
        CheckpointError: It is no Xception; or it holds, below the prefix, tensors that this network has no place for.
    """
    prefix, layout = _find_network(checkpoint, source)
    found = Recognised(layout, {})
    unknown: list[str] = []
    for name, tensor in checkpoint.items():
        layer, _, kind = name[len(prefix) :].rpartition('.')
        target = _target(layer, layout) if name.startswith(prefix) else None
        reason = next((why for start, why in LEFT_OUT.items() if name.startswith(prefix + start)), None)
        if reason:
            found.left_out[name] = reason
        elif target is None or not isinstance(tensor, Tensor):
            unknown.append(name)
        elif kind != 'num_batches_tracked':  # a counter that nothing computed here depends on
            if target.endswith('.conv_pw') and tensor.dim() == 2:
                tensor = tensor[:, :, None, None]  # the lineage's first file
            found.tensors[f'{target}.{kind}'] = tensor
    missing = [
        layer
        for layer in LEGACY_NAMES.values()
        if f'{layer}.weight' not in found.tensors and not (layout == 'xception_hub' and '.shortcut.' in layer)
    ]  # which a variant does without
    if unknown or missing:
        raise CheckpointError(
            f'{source} is no checkpoint of this network. '
            f'Tensors it has no place for: {_listed(unknown)}. Layers that are missing: {_listed(missing)}.'
        )
    return found


def _target(layer: str, layout: str) -> str | None:
    """This network's name for a layer of a file, None if it has no such layer."""
    if layout == 'legacy':
        return 'head.fc' if layer in LEGACY_CLASSIFIERS else LEGACY_NAMES.get(layer)
    return layer if layer in LEGACY_NAMES.values() or layer.startswith('head.') else None


def _find_network(checkpoint: dict[str, Any], source: str) -> tuple[str, str]:
    """The prefix of the network's names, and its layout."""
    anchors = {'legacy': 'block12.skipbn.weight', 'xception_hub': 'exit_flow.1.stack.bn2.weight'}
    for layout, anchor in anchors.items():
        prefixes = [name[: -len(anchor)] for name in checkpoint if name == anchor or name.endswith('.' + anchor)]
        if len(prefixes) == 1:
            return prefixes[0], layout
        if prefixes:
            raise CheckpointError(f'{source} holds {len(prefixes)} networks, under {_listed(prefixes)}. Save only one.')
    raise CheckpointError(
        f'{source} is no Xception: it has neither {" nor ".join(repr(a) for a in anchors.values())}. '
        f'It holds {_listed(list(checkpoint))}.'
    )


def _listed(names: list[str], most: int = 6) -> str:
    more = f' and {len(names) - most} more' if len(names) > most else ''
    return (', '.join(names[:most]) + more) or 'none'


def check_against(
    tensors: StateDict, expected: StateDict, source: str, optional: Sequence[str] = (), verified: Collection[str] = ()
) -> None:
    """Makes sure that tensors can be loaded as a whole, before any of them is.

    Args:
        tensors: What is to be loaded.
        expected: What the network has; only names and shapes count. Counters are left out.
        source: What the errors call it.
        optional: Beginnings of names that may be missing.
        verified: Names whose values are known to be right.

    Raises:
        CheckpointError: A tensor is missing, unknown, of another shape, not of floats, or not finite.
    """
    expected = {name: t for name, t in expected.items() if not name.endswith('num_batches_tracked')}
    missing = [name for name in expected if name not in tensors and not name.startswith(tuple(optional))]
    unknown = [name for name in tensors if name not in expected]
    if missing or unknown:
        raise CheckpointError(f'{source} does not fit. Missing: {_listed(missing)}. Unknown: {_listed(unknown)}.')
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            raise CheckpointError(
                f'{source} does not fit: {name} is {list(tensor.shape)} there and {list(expected[name].shape)} here.'
            )
        if not tensor.is_floating_point():
            raise CheckpointError(f'{source} does not fit: {name} is {tensor.dtype} instead of floating point.')
        if name not in verified and not torch.isfinite(tensor.sum()) and not torch.isfinite(tensor).all():
            raise DamagedCheckpointError(f'{source} is damaged: {name} holds NaN or infinite values.')


def from_checkpoint(path: str | Path, **kwargs: Any) -> nn.Module:
    """Xception from a checkpoint of any published layout, with the numerics that it was trained with.

    Args:
        path: A .safetensors file or a pickle (.pth, .pt, .ckpt, ...), which is read with `weights_only=True`.
        **kwargs: Arguments of `timm.create_model('xception_paper', ...)` that replace those found in the file: image
            channels, class count (another than the file's means a new classifier) and, for the legacy lineage,
            `bn_eps=1e-5` and `pool_padding='symmetric'`.

    Returns:
        The network in evaluation mode.

    Raises:
        CheckpointError: The file is damaged, is no Xception, or doesn't fit the arguments.
    """
    recognised = recognise(read_tensors(path), str(path))
    if recognised.left_out:
        reasons = '; '.join(sorted(set(recognised.left_out.values())))
        warnings.warn(f'{path}: left out {_listed(list(recognised.left_out))} ({reasons}).', stacklevel=2)
    model_args = recognised.model_args
    if 'head_layers' in kwargs:
        model_args.pop('fc_widths', None)  # which the shapes tell, but not what stands between
    num_classes = kwargs.pop('num_classes', model_args['num_classes'])
    model = timm.create_model('xception_paper', **{**model_args, **kwargs})
    check_against(recognised.tensors, model.state_dict(), str(path))
    model.load_state_dict(recognised.tensors)
    if num_classes != model_args['num_classes']:
        model.reset_classifier(num_classes)
    return model.eval()
