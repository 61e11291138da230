"""Loads Xception from a torch checkpoint of any published layout, as the function that was trained."""

import re
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import adapt_input_conv
from torch import nn

from ..errors import CheckpointError, DamagedCheckpointError, listed, printable_lines
from .arguments import NUMERICS, model_name, network_arguments
from .checkpoint_files import CheckpointFile, StateDict
from .fingerprints import compare
from .heads import drop_heads, find_head, take_head
from .lineages import LAYOUTS, LEGACY_NUMERICS, Recognised, recognise
from .normalization import preparation_of
from .pickled_modules import layers_of, settings_of
from .sources import source_of

__all__ = ['from_checkpoint']

KERAS_NUMERICS = dict(NUMERICS, output_stride=32)
# A file does not say where its weights come from.
UNKNOWN_SOURCE = dict(tag=None, license=None, hf_hub_id=None, url=None, file=None, origin_url=None, source=None)
HIDDEN = ('fc_widths', 'head_layers')  # arguments for layers before the classifier


def from_checkpoint(
    path: str | Path, *, prefix: str | None = None, classifier: str | None = None, **kwargs: Any
) -> nn.Module:
    """Loads Xception from a checkpoint of any published layout, with the numerics that it was trained with.

    Args:
        path: A safetensors file, or one of torch.save (.pth, .pt, .ckpt, .p, ...) with a state dict or a pickled
            module in any containers. No code in it is run. Or what leads to such a file: a model directory, a hub id
            ('org/name', 'org/name@revision'), an address.
        prefix: Prefix of the network to take if the file holds several.
        classifier: Name of the head to take if the file holds several.
        **kwargs: Arguments of `timm.create_model('xception_paper', ...)` that replace those found in the file: image
            channels, class count (another than the file's means a new classifier on the 2,048 features, 0 none),
            `head_layers` for a head whose activations the file does not name, and the numerics: for the legacy lineage
            `bn_eps=1e-5` and `pool_padding='symmetric'`, for segmentation_models_pytorch also `stem_padding=1`.

    Returns:
        The network in evaluation mode; images [B, in_chans, H, W] become logits [B, num_classes]. Its `pretrained_cfg`
        names no source and no licence. Its mean and standard deviation are those of the file or of a config beside it,
        else 0.5 as in most ports; a note has the origin.

    Raises:
        CheckpointError: The file is damaged, is no Xception, does not fit the arguments, or can be read in two ways.

    Warns:
        UserWarning: Tensors were left out, or something about the network was assumed.
    """
    source = str(path)
    network = read_network(source_of(path).read(), source, kwargs, prefix, classifier)
    found, tensors = network.found, network.found.tensors
    preparation = preparation_of(network.file, found, kwargs.get('pretrained_cfg_overlay') or {})
    if found.left_out:
        reasons = '; '.join(sorted(set(found.left_out.values())))
        warnings.warn(printable_lines(f'{path}: left out {listed(list(found.left_out))} ({reasons}).'), stacklevel=2)
    network.warn_of_assumptions()

    name = model_name(network.file.architecture, source)
    given = {key: value for key, value in kwargs.items() if key not in ('num_classes', *HIDDEN)}
    model_args = {**network.arguments, **given}
    in_chans = tensors['stem.conv1.weight'].shape[1]
    if model_args['in_chans'] != in_chans:
        tensors['stem.conv1.weight'] = adapt_input_conv(model_args['in_chans'], tensors['stem.conv1.weight'])
    if kwargs.get('features_only'):
        del model_args['num_classes']
        overlay = dict(state_dict=tensors, input_size=(model_args['in_chans'], 299, 299))
        overlay = {**(model_args.pop('pretrained_cfg_overlay', None) or {}), **overlay}
        model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **model_args)
    else:
        device, dtype = model_args.pop('device', None), model_args.pop('dtype', None)
        model = timm.create_model(name, **model_args, device='meta')  # arguments of a file reserve no memory
        check_against(tensors, model.state_dict(), source, optional=['head.'] if network.is_new else [])
        copies = {key: tensor.clone(memory_format=torch.contiguous_format) for key, tensor in tensors.items()}
        model = filled(model, copies, device, dtype)
    model.pretrained_cfg = {**model.pretrained_cfg, **UNKNOWN_SOURCE, **preparation}
    if network.final != 'linear':
        model.final_activation = network.final
        model.pretrained_cfg['notes'] += (f'the saved network ended in {network.final}; this one returns logits',)
    return model.eval()


@dataclass
class NetworkInFile:
    """A network in a file, and what the file says of it.

    Attributes:
        file: The file.
        found: Its tensors under this network's names, with the head that was taken.
        arguments: Arguments of the network.
        own_head: Arguments of the head in the file, as far as they are known.
        is_new: Whether the caller asks for another head, which starts at random.
        final: Activation that the file's modules apply to the logits; 'linear' for none, or for other logits.
    """

    file: CheckpointFile
    found: Recognised
    arguments: dict[str, Any]
    own_head: dict[str, Any]
    is_new: bool
    final: str

    def warn_of_assumptions(self) -> None:
        """Warns of what the file does not say, and of the activation that is left out."""
        source = self.found.source
        if self.found.assumed:
            text = f'{source} does not say everything. Assumed: {"; ".join(self.found.assumed)}.'
            warnings.warn(printable_lines(text), stacklevel=3)
        if self.final != 'linear':
            warnings.warn(
                f'{source}: the saved network ends in {self.final}, which is left out: this one returns the logits '
                f'before it. model.final_activation of xception_hub.from_checkpoint names it.',
                stacklevel=3,
            )


def read_network(
    file: CheckpointFile,
    source: str,
    given: Mapping[str, Any],
    prefix: str | None = None,
    classifier: str | None = None,
) -> NetworkInFile:
    """Finds the network in a file, and all that the file says of its arguments.

    Args:
        file: The file.
        source: Its name in errors.
        given: Arguments of the caller; a `stem_padding` of None stands for no answer.
        prefix: Prefix of the network to take if the file holds several.
        classifier: Name of the head to take if the file holds several.

    Raises:
        CheckpointError: The file is no Xception, or can be read in two ways.
    """
    found = recognise(file.tensors, source, prefix, file.roots)
    backbone, final = _backbone_args(file, found, given)
    pooling = given.get('global_pool', backbone.get('global_pool'))
    head, own_head, is_new = _take_head(file, found, classifier, given, pooling)
    arguments = {**backbone, **head}
    return NetworkInFile(file, found, arguments, own_head, is_new, 'linear' if is_new else final)


def filled(
    model: nn.Module, tensors: StateDict, device: str | torch.device | None, dtype: torch.dtype | None
) -> nn.Module:
    """A network of the meta device with values: these tensors, which are neither initialised before nor copied.

    What the tensors do not have is initialised.
    """
    model.load_state_dict(tensors, strict=False, assign=True)
    for module in model.modules():
        if any(parameter.is_meta for parameter in module.parameters(recurse=False)):
            model.init_weights(module.to_empty(device='cpu', recurse=False))  # type: ignore[operator]
    return model.to(
        device=torch.get_default_device() if device is None else device,
        dtype=torch.get_default_dtype() if dtype is None else dtype,
    )


def _backbone_args(file: CheckpointFile, found: Recognised, given: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """Arguments of the backbone, from what the file records, from its modules, or from its layout.

    Returns:
        The arguments, and the activation that the file's modules apply to the logits: 'linear' for none.
    """
    args, source = dict(in_chans=found.tensors['stem.conv1.weight'].shape[1]), found.source
    recorded = file.arguments_of(found.prefix)
    if any(f'{found.prefix}{name}' in file.modules for name in LAYOUTS[found.layout]):
        with_head = not (given.get('num_classes') == 0 or given.get('features_only') or found.decoder)
        if recorded is not None:
            replaced = {name: given[name] for name in recorded if name in given}
            try:
                recorded = network_arguments(recorded, source)
            except CheckpointError:
                recorded = {**network_arguments(recorded, source, replaced), **replaced}
        read, final = settings_of(found, file.modules, recorded, with_head)
        return {**read, **args}, final
    if recorded is not None:
        return {**network_arguments(recorded, source, given), **args}, 'linear'
    if pooling := file.pretrained_cfg.get('global_pool'):
        args['global_pool'] = pooling
    if found.layout == 'xception_hub':
        if unsaid := [f'{name}={value!r}' for name, value in KERAS_NUMERICS.items() if name not in given]:
            found.assumed.append(f'the numerics of Keras, {", ".join(unsaid)}')
        return {**args, **KERAS_NUMERICS}, 'linear'
    if found.decoder:
        args['stem_padding'] = 1
    elif given.get('stem_padding') is None and may_be_padded(found):
        raise CheckpointError(
            f'{source} is the backbone of an older port without a head. segmentation_models_pytorch pads the '
            f'convolutions of the stem, all other ports do not, and the tensors are the same. Pass stem_padding=1 '
            f'for a network of segmentation_models_pytorch, else stem_padding=0.'
        )
    return {**args, **LEGACY_NUMERICS}, 'linear'


def may_be_padded(found: Recognised) -> bool:
    """Whether the tensors may be segmentation_models_pytorch's encoder: it has lost its head, or its decoder."""
    own_head = any(layer.startswith(found.prefix) for layer in found.beside)
    if found.layout != 'legacy' or own_head or (found.beside and not found.prefix.endswith('encoder.')):
        return False
    return not compare(found.tensors).is_genuine  # Keras' own tensors were trained without padding


def _take_head(
    file: CheckpointFile, found: Recognised, classifier: str | None, given: Mapping[str, Any], pooling: str | None
) -> tuple[dict[str, Any], dict[str, Any], bool]:
    """Arguments of the head, those of the file's, and whether a new one takes its place: for other classes."""
    recorded = file.arguments_of(found.prefix)
    args: dict[str, Any] = {name: recorded[name] for name in HIDDEN if name in recorded} if recorded else {}
    if given.get('num_classes') == 0 or given.get('features_only'):
        drop_heads(found, 'what stands beside the backbone, which num_classes=0 and features_only=True do without')
        return dict(num_classes=0, **dict.fromkeys(HIDDEN, ())), args, False
    layers = head_layers_of(given)
    head = find_head(found, classifier, layers, pooling or 'avg', given.get('num_classes'))
    fc = sorted(name for name in found.tensors if re.fullmatch(r'head\.fc_layers\.fc\d+\.weight', name))
    if fc and not args:
        args['fc_widths'] = [found.tensors[name].shape[0] for name in fc]
    own = found.tensors.get('head.fc.weight')
    classes = head[-1].returns if head else 0 if own is None else own.shape[0]
    wanted = given.get('num_classes', classes)
    is_hidden = len(head) > 1 if head else bool(args)
    if wanted != classes or (is_hidden and not layers and any(name in given for name in HIDDEN)):
        what = f'a head of {classes} classes' + ' with layers before the classifier' * is_hidden
        drop_heads(found, f'{what}; the new one of {wanted} starts at random')
        return dict(num_classes=wanted, fc_widths=(), head_layers=layers), dict(args, num_classes=classes), True
    own_args = args
    if head:
        named = layers or layers_of(head, file.modules, found.source)
        taken = take_head(found, head, named, head[-1].name in file.modules)
        args = own_args = dict(fc_widths=(), head_layers=taken)
    elif layers:
        args = dict(fc_widths=(), head_layers=layers)
    if classes and pooling is None and recorded is None:
        found.assumed.append("global_pool='avg'")
    return {**args, 'num_classes': classes}, {**own_args, 'num_classes': classes}, False


def head_layers_of(given: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The layers before the classifier that arguments of `Xception` name."""
    act = given.get('act_layer', 'relu')
    widths = given.get('fc_widths') or ()
    return list(given.get('head_layers') or [layer for width in widths for layer in ({'fc': width}, {'act': act})])


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
        raise CheckpointError(f'{source} does not fit. Missing: {listed(missing)}. Unknown: {listed(unknown)}.')
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            raise CheckpointError(
                f'{source} does not fit: {name} is {list(tensor.shape)} there and {list(expected[name].shape)} here.'
            )
        if not tensor.is_floating_point():
            raise CheckpointError(f'{source} does not fit: {name} is {tensor.dtype} instead of floating point.')
        if name not in verified and not torch.isfinite(tensor.sum()) and not torch.isfinite(tensor).all():
            raise DamagedCheckpointError(f'{source} is damaged: {name} holds NaN or infinite values.')
