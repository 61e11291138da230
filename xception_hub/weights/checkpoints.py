"""Loads Xception from a torch checkpoint of any published layout, as the function that was trained."""

import re
import warnings
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import adapt_input_conv
from torch import nn

from ..errors import CheckpointError, DamagedCheckpointError
from ..network import Xception
from .adapters import merge_adapters
from .files import CheckpointFile, StateDict, read_checkpoint
from .fingerprints import compare
from .heads import KNOWN_LAYERS, drop_heads, find_head, take_head
from .layouts import LAYOUTS, LEGACY_NUMERICS, Recognised, listed, recognise
from .normalization import preparation_of

__all__ = ['from_checkpoint']

KERAS_NUMERICS = dict(bn_eps=1e-3, pool_padding='same', stem_padding=0, act_layer='relu', output_stride=32)
# A file does not say where its weights come from.
UNKNOWN_SOURCE = dict(tag=None, license=None, hf_hub_id=None, url=None, file=None, origin_url=None, source=None)
HIDDEN = ('fc_widths', 'head_layers')  # arguments for layers before the classifier


def from_checkpoint(
    path: str | Path, *, prefix: str | None = None, classifier: str | None = None, **kwargs: Any
) -> nn.Module:
    """Loads Xception from a checkpoint of any published layout, with the numerics that it was trained with.

    Args:
        path: A safetensors file, or one of torch.save (.pth, .pt, .ckpt, .p, ...) with a state dict or a pickled
            module in any containers. No code in it is run.
        prefix: Prefix of the network to take if the file holds several.
        classifier: Name of the head to take if the file holds several.
        **kwargs: Arguments of `timm.create_model('xception_paper', ...)` that replace those found in the file: image
            channels, class count (another than the file's means a new classifier on the 2,048 features, 0 none),
            `head_layers` for a head whose activations the file does not name, and the numerics: for the legacy lineage
            `bn_eps=1e-5` and `pool_padding='symmetric'`, for segmentation_models_pytorch also `stem_padding=1`.

    Returns:
        The network in evaluation mode. Its `pretrained_cfg` names no source and no licence, and a mean and a
        standard deviation of 0.5, as in most ports: the file gives none.

    Raises:
        CheckpointError: The file is damaged, is no Xception, does not fit the arguments, or can be read in two ways.

    Warns:
        UserWarning: Tensors were left out, or something about the network was assumed.
    """
    source = str(path)
    file = merge_adapters(read_checkpoint(path), source)
    found = recognise(file.tensors, source, prefix, file.roots)
    assumed: list[str] = []
    backbone = _backbone_args(file, found, source, kwargs, assumed)
    pooling = kwargs.get('global_pool', backbone.get('global_pool'))
    head, classes = _take_head(file, found, source, classifier, kwargs, pooling, assumed)
    preparation = preparation_of(file, found, source, kwargs.get('pretrained_cfg_overlay') or {}, assumed)
    if found.left_out:
        reasons = '; '.join(sorted(set(found.left_out.values())))
        warnings.warn(f'{path}: left out {listed(list(found.left_out))} ({reasons}).', stacklevel=2)
    if assumed:
        warnings.warn(f'{path} does not say everything. Assumed: {"; ".join(assumed)}.', stacklevel=2)

    tensors = dict(found.tensors)
    name = file.architecture if (file.architecture or '').startswith('xception_paper') else 'xception_paper'
    model_args = {**backbone, **{key: value for key, value in kwargs.items() if key != 'num_classes'}, **head}
    in_chans = tensors['stem.conv1.weight'].shape[1]
    if model_args['in_chans'] != in_chans:
        tensors['stem.conv1.weight'] = adapt_input_conv(model_args['in_chans'], tensors['stem.conv1.weight'])
    if kwargs.get('features_only'):
        del model_args['num_classes']
        overlay = dict(state_dict=tensors, input_size=(model_args['in_chans'], 299, 299))
        overlay = {**(model_args.pop('pretrained_cfg_overlay', None) or {}), **overlay}
        model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **model_args)
    else:
        model = timm.create_model(name, **model_args)
        check_against(tensors, model.state_dict(), source)
        model.load_state_dict(tensors)
    model.pretrained_cfg = {**model.pretrained_cfg, **UNKNOWN_SOURCE, **preparation}
    if classes != model_args.get('num_classes', classes):
        model.reset_classifier(classes)
    return model.eval()


def _backbone_args(
    file: CheckpointFile, found: Recognised, source: str, given: Mapping[str, Any], assumed: list[str]
) -> dict[str, Any]:
    """Arguments of the backbone, from what the file records, from its modules, or from its layout."""
    args = dict(in_chans=found.tensors['stem.conv1.weight'].shape[1])
    told = file.arguments_of(found.prefix)
    if told is not None:
        return {**told, **args}
    if pooling := file.pretrained_cfg.get('global_pool'):
        args['global_pool'] = pooling
    modules = file.modules_under(found.prefix)
    if found.layout == 'xception_hub':
        numerics: dict[str, Any] = KERAS_NUMERICS
    elif modules:
        return {**args, **_numerics_of(modules, found.layout, source)}
    else:
        numerics = {**LEGACY_NUMERICS, 'stem_padding': int(found.decoder)}
        if 'stem_padding' not in given and not found.decoder and may_be_padded(found):
            raise CheckpointError(
                f'{source} is the backbone of an older port without a head. segmentation_models_pytorch pads the '
                f'convolutions of the stem, all other ports do not, and the tensors are the same. Pass stem_padding=1 '
                f'for a network of segmentation_models_pytorch, else stem_padding=0.'
            )
    if numerics is KERAS_NUMERICS and (unsaid := [name for name in numerics if name not in given]):
        assumed.append('the numerics of Keras, ' + ', '.join(f'{name}={numerics[name]!r}' for name in unsaid))
    return {**args, **numerics}


def may_be_padded(found: Recognised) -> bool:
    """Whether the tensors may be segmentation_models_pytorch's encoder: it has lost its head, or its decoder."""
    own_head = any(layer.startswith(found.prefix) for layer in found.beside)
    if found.layout != 'legacy' or own_head or (found.beside and not found.prefix.endswith('encoder.')):
        return False
    return not compare(found.tensors).is_genuine  # Keras' own tensors were trained without padding


def _numerics_of(modules: Mapping[str, Any], layout: str, source: str) -> dict[str, Any]:
    """Numerics of a pickled network, from its modules.

    Raises:
        CheckpointError: A module computes in a way that this network has no argument for.
    """
    names = {ours: name for name, ours in LAYOUTS[layout].items()}
    reference, odd = dict(Xception(device='meta').named_modules()), []
    epsilons: list[Any] = []
    paddings: list[Any] = []
    for ours, name in names.items():
        state = modules[name].state if name in modules else {}
        expected: Any = reference[ours]
        if 'eps' in state:
            epsilons.append(state['eps'])
        elif ours.startswith('stem.conv'):
            paddings.append(_pair(state.get('padding')))
        elif _pair(state.get('padding')) != expected.padding:
            odd.append(f'{name}: padding={state.get("padding")}')
        for key in ('stride', 'dilation', 'groups'):
            if hasattr(expected, key) and _pair(state.get(key)) != _pair(getattr(expected, key)):
                odd.append(f'{name}: {key}={state.get(key)}')
    for name, module in modules.items():
        if module.kind.endswith('.MaxPool2d'):
            pool = dict(kernel_size=(3, 3), stride=(2, 2), padding=(1, 1), dilation=(1, 1), ceil_mode=False)
            found = {key: module.state.get(key) for key in pool}
            odd += [f'{name}: {key}={found[key]}' for key in pool if _pair(found[key]) != _pair(pool[key])]
        activation = KNOWN_LAYERS.get(module.kind.rpartition('.')[2], {}).get('act', 'relu')
        if re.search(r'(^|\.)(rep\.\d+|(relu|act)\d*|activ)$', name) and activation != 'relu':
            odd.append(f'{name}: {activation}')
    same_eps = all(isinstance(eps, float) and eps == epsilons[0] for eps in epsilons)
    if odd or not same_eps or paddings not in ([(0, 0)] * 2, [(1, 1)] * 2):
        odd += [f'eps of {epsilons[0]!r:.20}' + ' and others' * (not same_eps), f'padding of the stem {paddings!r:.40}']
        raise CheckpointError(
            f'{source} computes in a way that this network has no arguments for: {listed(odd)}. Use the program that '
            f'saved it; torch.save(model.state_dict(), ...) there gives tensors that load with the numerics you pass.'
        )
    pooling = modules['global_pool'].state.get('pool_type', 'avg') if 'global_pool' in modules else 'avg'
    return {**LEGACY_NUMERICS, 'bn_eps': epsilons[0], 'stem_padding': paddings[0][0], 'global_pool': pooling}


def _pair(value: Any) -> Any:
    return (value, value) if type(value) is int else value


def _take_head(
    file: CheckpointFile,
    found: Recognised,
    source: str,
    classifier: str | None,
    given: Mapping[str, Any],
    pooling: str | None,
    assumed: list[str],
) -> tuple[dict[str, Any], int]:
    """Arguments of the head whose tensors are taken, and the number of classes in the end.

    For another number of classes than the file's, the layers before the classifier go too.
    """
    told = file.arguments_of(found.prefix)
    args: dict[str, Any] = {name: told[name] for name in HIDDEN if name in told} if told else {}
    bare_args = dict(num_classes=0, **dict.fromkeys(HIDDEN, ()))
    if given.get('num_classes') == 0 or given.get('features_only'):
        drop_heads(found, 'what stands beside the backbone, which num_classes=0 and features_only=True do without')
        return bare_args, 0
    layers = head_layers_of(given)
    chain = find_head(found, source, classifier, layers, pooling or 'avg')
    fc = sorted(name for name in found.tensors if re.fullmatch(r'head\.fc_layers\.fc\d+\.weight', name))
    if fc and not args:
        args['fc_widths'] = [found.tensors[name].shape[0] for name in fc]
    own = found.tensors.get('head.fc.weight')
    classes = chain.num_classes if chain else 0 if own is None else own.shape[0]
    wanted = given.get('num_classes', classes)
    is_hidden = chain.is_hidden if chain else bool(args)
    if is_hidden and not layers and (wanted != classes or any(name in given for name in HIDDEN)):
        features = found.num_features
        drop_heads(
            found, f'layers before the classifier; the new one of {wanted} classes takes the {features} features'
        )
        return bare_args, wanted
    if chain:
        args = dict(fc_widths=(), head_layers=take_head(found, chain, source, layers, file.modules, assumed))
    elif layers:
        args = dict(fc_widths=(), head_layers=layers)
    if classes and pooling is None and told is None:
        assumed.append("global_pool='avg'")
    if wanted != classes and classes:
        found.left_out[chain.name if chain else f'{found.prefix}head.fc'] = (
            f'a classifier of {classes} classes; the new one of {wanted} starts at random'
        )
    return {**args, 'num_classes': classes}, wanted


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
