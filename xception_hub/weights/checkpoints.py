"""Torch checkpoints of Xception in any published layout: finds the network in a file and renames its tensors.

The legacy lineage began with tstandley's port. It includes Cadene's pretrainedmodels, timm's `legacy_xception`,
segmentation_models_pytorch's encoder, FaceForensics++ and DeepfakeBench. Its models compute with BatchNorm eps 1e-5 and
symmetric pool padding, so weights that were *trained* there need these numerics, which `from_checkpoint` sets.
"""

import re
import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import adapt_input_conv
from torch import nn

from ..errors import CheckpointError, DamagedCheckpointError
from ..topology import LEGACY_NAMES
from .files import StateDict, read_checkpoint

__all__ = ['from_checkpoint']

LEGACY_NUMERICS = dict(bn_eps=1e-5, pool_padding='symmetric')
FEATURES = 2048  # features that a classifier takes

# A tensor that only this layout has -> the layout.
ANCHORS = {'block12.skipbn.weight': 'legacy', 'exit_flow.1.stack.bn2.weight': 'xception_hub'}
# Pattern of a tensor's path -> what the tensor is. The network does not need these tensors.
LEFT_OUT = {
    r'(^|\.)adjust_channel\.': "a projection of DeepfakeBench's other detectors, beside the path to the classifier",
    r'(^|[._])optim|exp_avg': "the optimizer's state",
    r'(^|[._])sched': "the scheduler's state",
    r'(^|[._])(scaler|amp)\b': 'the state of mixed precision',
    r'n_averaged$': 'the count of an average',
    r'(^|\.)(pixel_)?(mean|std)$': 'constants of the preprocessing',
    r'(^|[._])(loss|criterion)': 'the state of a loss',
    r'(^|[._])(metric|confmat|accuracy|auroc|f1)': 'the state of a metric',
    r'(^|\.)rng_state|(^|\.)random': 'the state of a random generator',
}
AVERAGES = re.compile(r'(^|[._])(ema|swa|averag\w*|shadow|teacher)([._]|$)')


def to_legacy(tensors: StateDict, classifier: str = 'fc') -> StateDict:
    """Renames this network's tensors to the names of the legacy lineage."""
    names = {ours: legacy for legacy, ours in LEGACY_NAMES.items()} | {'head.fc': classifier}
    split = {name: name.rpartition('.') for name in tensors}
    return {f'{names[layer]}.{kind}': tensors[name] for name, (layer, _, kind) in split.items()}


@dataclass
class Recognised:
    """A checkpoint's tensors under this network's names.

    Attributes:
        layout: 'xception_hub' or 'legacy'.
        prefix: Prefix of the network's names in the file.
        tensors: Name -> tensor, without `num_batches_tracked`.
        left_out: Name in the file -> why the network does not need the tensor.
        classifier: The file's name of the classifier; None if there is none.
    """

    layout: str
    prefix: str
    tensors: StateDict
    left_out: dict[str, str] = field(default_factory=dict)
    classifier: str | None = None

    @property
    def model_args(self) -> dict[str, Any]:
        """Arguments of `Xception`: the sizes follow from the shapes, the numerics from the layout."""
        args: dict[str, Any] = dict(in_chans=self.tensors['stem.conv1.weight'].shape[1], num_classes=0)
        if 'head.fc.weight' in self.tensors:
            args['num_classes'] = self.tensors['head.fc.weight'].shape[0]
        widths: list[int] = []
        while f'head.fc_layers.fc{len(widths) + 1}.weight' in self.tensors:
            widths.append(self.tensors[f'head.fc_layers.fc{len(widths) + 1}.weight'].shape[0])
        if widths:
            args['fc_widths'] = widths
        return {**args, **(LEGACY_NUMERICS if self.layout == 'legacy' else {})}


def recognise(
    checkpoint: StateDict,
    source: str = 'the checkpoint',
    prefix: str | None = None,
    classifier: str | None = None,
    headless: bool = False,
) -> Recognised:
    """Finds the network's tensors among those of a file of any published layout.

    Args:
        checkpoint: Path -> tensor. Containers and wrappers may put any prefix before the network's names.
        source: Name of the checkpoint in errors.
        prefix: Prefix of the network to take if there are several.
        classifier: Name in the file of the classifier to take if there are several.
        headless: Leave out any head.

    Raises:
        CheckpointError: The checkpoint is no Xception, or it holds several networks, several classifiers, or other
            tensors that the network may compute with.
    """
    prefix, layout, left_out = _find_network(checkpoint, source, prefix)
    found = Recognised(layout, prefix, {}, left_out)
    parent = prefix.rpartition('.')[0].rpartition('.')[0]  # a wrapper's head stands beside its backbone
    heads: dict[str, StateDict] = {}
    for name, tensor in checkpoint.items():
        if name in left_out:
            continue
        reason = next((why for pattern, why in LEFT_OUT.items() if re.search(pattern, name, re.IGNORECASE)), None)
        layer, _, kind = name[len(prefix) :].rpartition('.')
        target = _target(layer, layout) if name.startswith(prefix) else None
        if target is not None:
            if kind != 'num_batches_tracked':  # a counter, which the outputs do not depend on
                if target.endswith('.conv_pw') and tensor.dim() == 2:
                    tensor = tensor[:, :, None, None]  # as in the lineage's first file
                found.tensors[f'{target}.{kind}'] = tensor
        elif reason:
            found.left_out[name] = reason
        elif name.startswith((prefix, f'{parent}.' if parent else '')):
            layer, _, kind = name.rpartition('.')
            heads.setdefault(layer, {})[kind] = tensor
        else:
            found.left_out[name] = 'it lies beside the network, in another container'
    _take_head(found, heads, source, classifier, headless)
    # a variant without residual connections has no shortcuts
    missing = [
        layer
        for layer in LEGACY_NAMES.values()
        if f'{layer}.weight' not in found.tensors and not (layout == 'xception_hub' and '.shortcut.' in layer)
    ]
    if missing:
        raise CheckpointError(
            f'{source} is no checkpoint of this network. Layers that are missing: {_listed(missing)}.'
        )
    return found


def _target(layer: str, layout: str) -> str | None:
    """This network's name for a layer of a file, None if it has no such layer."""
    if layout == 'legacy':
        return LEGACY_NAMES.get(layer)
    return layer if layer in LEGACY_NAMES.values() or layer.startswith('head.') else None


def _find_network(checkpoint: StateDict, source: str, prefix: str | None) -> tuple[str, str, dict[str, str]]:
    """Prefix of the network's names, its layout, and the other networks' tensors with the reason to leave them out."""
    layouts = {
        name[: -len(anchor)]: layout
        for anchor, layout in ANCHORS.items()
        for name in checkpoint
        if name == anchor or name.endswith('.' + anchor)
    }
    if not layouts:
        raise CheckpointError(
            f'{source} is no Xception: it has neither {" nor ".join(map(repr, ANCHORS))}. '
            f'It holds {_listed(list(checkpoint))}.{_other_network(checkpoint)}'
        )
    if prefix is not None:
        chosen = prefix if prefix in layouts else f'{prefix}.'
        if chosen not in layouts:
            raise CheckpointError(f'{source} holds no network under prefix={prefix!r}. Choose {_quoted(layouts)}.')
    else:
        raw = [name for name in layouts if not AVERAGES.search(name)]
        if len(raw) != 1 and len(layouts) > 1:
            raise CheckpointError(
                f'{source} holds {len(layouts)} networks, under {_quoted(layouts)}. Choose one with prefix=....'
            )
        chosen = raw[0] if raw else next(iter(layouts))
    others = [name for name in layouts if name != chosen and name != '']
    left_out = {
        name: f'another network; prefix={other!r} takes it'
        for other in others
        for name in checkpoint
        if name.startswith(other) and not (chosen and chosen.startswith(other) and name.startswith(chosen))
    }
    return chosen, layouts[chosen], left_out


def _take_head(
    found: Recognised, heads: dict[str, StateDict], source: str, classifier: str | None, headless: bool
) -> None:
    """Finds the classifier among the layers outside the backbone. Refuses others, which may change the outputs."""
    names = {layer: layer.removeprefix(found.prefix) for layer in heads}
    if headless:
        for layer, tensors in heads.items():
            found.left_out.update({f'{layer}.{kind}': 'a head, which num_classes=0 does without' for kind in tensors})
        found.tensors = {name: tensor for name, tensor in found.tensors.items() if not name.startswith('head.')}
        return
    linear = [
        layer
        for layer, tensors in heads.items()
        if 'weight' in tensors and tensors['weight'].dim() == 2 and tensors['weight'].shape[1] == FEATURES
    ]
    if classifier is not None:
        taken = [layer for layer in heads if classifier in (layer, names[layer])]
        if not taken:
            raise CheckpointError(f'{source} has no classifier {classifier!r}. It has: {_quoted(names.values())}.')
        for layer in set(heads) - set(taken):
            found.left_out.update({f'{layer}.{kind}': f'not the classifier {classifier!r}' for kind in heads[layer]})
    elif len(linear) > 1:
        raise CheckpointError(
            f'{source} holds {len(linear)} classifiers: {_quoted(names[layer] for layer in linear)}. Choose one with '
            f'classifier={names[linear[0]]!r}, or none with num_classes=0.'
        )
    else:
        taken = linear
        others = [f'{layer}.{kind}' for layer in set(heads) - set(taken) for kind in heads[layer]]
        if others:
            raise CheckpointError(
                f'{source} holds tensors that this network has no place for, and may compute with them: '
                f'{_listed(sorted(others))}. num_classes=0 takes the backbone without any head; '
                f"classifier='NAME' takes one layer of {_quoted(names.values())} alone."
            )
    for layer in taken:
        found.classifier = names[layer]
        found.tensors.update({f'head.fc.{kind}': tensor for kind, tensor in heads[layer].items()})


# Beginning of a tensor's name -> the network that it belongs to, which people mistake for this one.
OTHER_NETWORKS = {
    'features.init_block.conv1.conv.weight': "This is pytorchcv's naming",
    'stem.0.conv.weight': 'This is an aligned Xception (timm: xception41, xception65, xception71)',
    'blocks.0.stack.': 'This is an aligned Xception (timm: xception41, xception65, xception71)',
    'block1.skip.weight': 'This may be an aligned Xception of DeepLab',
}


def _other_network(checkpoint: StateDict) -> str:
    for start, what in OTHER_NETWORKS.items():
        if any(name.startswith(start) or f'.{start}' in name for name in checkpoint):
            return f' {what}, which is not read: load it with the library that wrote it.'
    return ''


def _quoted(names: Any) -> str:
    return ', '.join(repr(name) for name in names) or 'none'


def _listed(names: list[str], most: int = 6) -> str:
    more = f' and {len(names) - most} more' if len(names) > most else ''
    return (', '.join(names[:most]) + more) or 'none'


def check_against(
    tensors: StateDict, expected: StateDict, source: str, optional: Sequence[str] = (), verified: Collection[str] = ()
) -> None:
    """Checks that all tensors can be loaded, before any of them is.

    Args:
        tensors: Tensors to load.
        expected: Tensors of the network. Only their names and shapes count; counters are ignored.
        source: Name of the checkpoint in errors.
        optional: Beginnings of names that may be missing.
        verified: Names of tensors whose values are known to be right.

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


def from_checkpoint(
    path: str | Path, *, prefix: str | None = None, classifier: str | None = None, **kwargs: Any
) -> nn.Module:
    """Loads Xception from a checkpoint of any published layout, with the numerics that it was trained with.

    Args:
        path: A safetensors file, or one of torch.save (.pth, .pt, .ckpt, .p, ...) with a state dict or a pickled
            module in any containers. No code in it is run.
        prefix: Prefix of the network to take if the file holds several.
        classifier: Name of the classifier to take if the file holds several.
        **kwargs: Arguments of `timm.create_model('xception_paper', ...)` that replace those found in the file: image
            channels, class count (another than the file's means a new classifier, 0 none) and, for the legacy lineage,
            `bn_eps=1e-5` and `pool_padding='symmetric'`.

    Returns:
        The network in evaluation mode. Its `pretrained_cfg` names no source and no licence: the file gives none.

    Raises:
        CheckpointError: The file is damaged, is no Xception, or does not fit the arguments.

    Warns:
        UserWarning: Tensors were left out, or something about the network was assumed.
    """
    file, given = read_checkpoint(path), set(kwargs)
    headless = kwargs.get('num_classes') == 0
    recognised = recognise(file.tensors, str(path), prefix, classifier, headless)
    if recognised.left_out:
        reasons = '; '.join(sorted(set(recognised.left_out.values())))
        warnings.warn(f'{path}: left out {_listed(list(recognised.left_out))} ({reasons}).', stacklevel=2)
    told = file.arguments_of(recognised.prefix)
    model_args = recognised.model_args
    if told is not None:
        model_args = {**told, 'in_chans': model_args['in_chans'], 'num_classes': model_args['num_classes']}
    if headless:
        model_args = {name: value for name, value in model_args.items() if name not in ('fc_widths', 'head_layers')}
    if 'head_layers' in kwargs:
        model_args.pop('fc_widths', None)  # the shapes give these widths, but not the layers between them
    num_classes = kwargs.pop('num_classes', model_args['num_classes'])
    name = file.architecture if (file.architecture or '').startswith('xception_paper') else 'xception_paper'
    in_chans = kwargs.pop('in_chans', model_args['in_chans'])
    tensors = dict(recognised.tensors)
    if in_chans != model_args['in_chans']:
        tensors['stem.conv1.weight'] = adapt_input_conv(in_chans, tensors['stem.conv1.weight'])
    model_args = {**model_args, 'in_chans': in_chans, **kwargs}
    if kwargs.get('features_only'):
        for key in ('fc_widths', 'head_layers', 'num_classes'):
            model_args.pop(key, None)
        overlay = dict(state_dict=tensors, input_size=(in_chans, 299, 299))
        return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **model_args).eval()
    model = timm.create_model(name, **model_args)
    check_against(tensors, model.state_dict(), str(path))
    model.load_state_dict(tensors)
    assumed = {name: value for name, value in KERAS_NUMERICS.items() if name not in given}
    if told is None and recognised.layout == 'xception_hub' and assumed:
        warnings.warn(
            f'{path} does not say how its network computes. Assumed are the numerics of Keras: '
            f'{", ".join(f"{name}={value!r}" for name, value in assumed.items())}. Pass others as arguments.',
            stacklevel=2,
        )
    model.pretrained_cfg = {**model.pretrained_cfg, **UNKNOWN_SOURCE}
    if num_classes != model_args['num_classes']:
        model.reset_classifier(num_classes)
    return model.eval()


KERAS_NUMERICS = dict(bn_eps=1e-3, pool_padding='same', act_layer='relu', output_stride=32)
# A file does not say where its weights come from.
UNKNOWN_SOURCE = dict(tag=None, license=None, hf_hub_id=None, url=None, file=None, origin_url=None, source=None)
