"""Pretrained weights for a model that is being built: several sources in order, each checked before anything is loaded.

`build_model` does what timm's `build_model_with_cfg` does, but finds the weights in its own way. It assigns the
tensors, which needs no initialisation.
"""

import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timm.models import PretrainedCfg, adapt_input_conv, build_model_with_cfg, resolve_pretrained_cfg
from torch import nn

from ..errors import CheckpointError, WeightsError, in_one_line, printable_lines
from .arguments import NUMERICS, VARIANTS, network_arguments
from .checkpoint_files import StateDict
from .checkpoints import HIDDEN, check_against, filled, read_network
from .fingerprints import compare, restore_variances
from .sources import CONFIG_FILE, REPO_VARIABLE, WEIGHT_FILES, PathLike, Source, source_of

GENUINE_TAG = 'keras_in1k'  # pretrained cfgs with this tag promise what Keras publishes
SAME_NETWORK = '_pyramid'  # ends names that differ in what features_only returns

OFFLINE_REMEDY = f"""\
If a mirror of the Hub can be reached, set HF_ENDPOINT to its address. Without a network:
  1. get xception_weights_tf_dim_ordering_tf_kernels.h5 (md5 0a58e3b7378bc2990ea3b43d5981f1f6) by any means from
     https://storage.googleapis.com/tensorflow/keras-applications/xception/
  2. in a clone of xception_hub: python -m conversion.convert xception_weights_tf_dim_ordering_tf_kernels.h5 -o DIR
  3. set {REPO_VARIABLE}=DIR
For random weights: pretrained=False."""


def sources_of(cfg: PretrainedCfg, genuine: bool = False) -> list[Source]:
    """The sources that a pretrained cfg names, in timm's order of preference."""
    if cfg.source == 'local-dir':
        return [Source('path', cfg.file)]
    if cfg.source == 'hf-hub':
        return [Source('hub', cfg.hf_hub_id, filename=cfg.hf_hub_filename)]
    named = [
        Source('tensors', cfg.state_dict),
        Source('path', cfg.file),
        Source('hub', cfg.hf_hub_id, genuine, cfg.hf_hub_filename),
        Source('url', cfg.url, genuine),
    ]
    return [source for source in named if source.location]


def build_model(
    model_cls: Callable[..., nn.Module],
    variant: str,
    pretrained: bool,
    variant_args: dict[str, Any],
    pretrained_cfg: str | dict[str, Any] | PretrainedCfg | None = None,
    pretrained_cfg_overlay: dict[str, Any] | None = None,
    cache_dir: PathLike | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    **kwargs: Any,
) -> nn.Module:
    """`timm.models.build_model_with_cfg` for weights from several sources.

    The sources are, in order: what `pretrained_cfg_overlay` names (`hf_hub_id`, `file`, `url` or `state_dict`), what
    the environment variable XCEPTION_HUB_REPO names, what the model's pretrained cfg names. A model created as
    `hf-hub:` or `local-dir:` has the one source of that name.

    Args:
        model_cls: Class of the network.
        variant: Registered name of the model.
        pretrained: Load weights.
        variant_args: Arguments of the network that the name stands for; `kwargs` override them.
        pretrained_cfg: timm's argument.
        pretrained_cfg_overlay: timm's argument; the sources that it names come first.
        cache_dir: Directory for downloads; None for the default cache.
        device: Device of the parameters.
        dtype: Data type of the parameters.
        **kwargs: Further arguments of the network and of timm's function.

    Raises:
        WeightsError: No source has weights that fit; nothing was loaded.
    """
    # the model's pretrained cfg does not hold a second copy of a state dict
    overlay = pretrained_cfg_overlay and {
        key: value for key, value in pretrained_cfg_overlay.items() if key != 'state_dict'
    }
    cfgs = dict(pretrained_cfg=pretrained_cfg, pretrained_cfg_overlay=overlay)
    _check_recorded(kwargs.get('pretrained_model_args') or {}, resolve_pretrained_cfg(variant, **cfgs))
    kwargs = {**variant_args, **kwargs}
    if not pretrained:
        return build_model_with_cfg(model_cls, variant, False, device=device, dtype=dtype, **cfgs, **kwargs)

    sources = _all_sources(variant, pretrained_cfg, pretrained_cfg_overlay)
    cfg = resolve_pretrained_cfg(variant, **cfgs)
    is_bare = _drops_hidden_layers(kwargs, cfg) or kwargs.get('features_only', False)

    def build_with_weights(**model_args: Any) -> nn.Module:
        model: Any = model_cls(**model_args, device='meta')
        wanted = _Wanted(model, model_args, {**VARIANTS, **variant_args}, cfg, is_bare, cache_dir)
        return filled(model, _first_that_fits(sources, wanted), device, dtype)

    return build_model_with_cfg(build_with_weights, variant, False, **cfgs, **kwargs)


def _check_recorded(model_args: Any, cfg: PretrainedCfg) -> None:
    """Refuses what timm has taken from the config.json of a 'hf-hub:' or 'local-dir:' name and hands to the network."""
    if cfg.source in ('hf-hub', 'local-dir'):
        network_arguments(model_args, CONFIG_FILE)
        channels = cfg.input_size[0] if cfg.input_size else None
        taken = {name: value for name, value in (('num_classes', cfg.num_classes), ('in_chans', channels)) if value}
        network_arguments(taken, CONFIG_FILE)


def _drops_hidden_layers(kwargs: dict[str, Any], cfg: PretrainedCfg) -> bool:
    """Removes the layers before the classifier that a config.json names if they belong to another task.

    That is so for another number of classes, and if the caller asks for none of them.
    """
    recorded = kwargs.get('pretrained_model_args') or {}  # timm fills in those that the caller does not give
    hidden = hidden_layers(dict(model_args=recorded))
    asked = any(not kwargs.get(name, True) for name in HIDDEN)
    kept = {name: kwargs[name] for name in HIDDEN if kwargs.get(name)}
    classes = kwargs.get('num_classes', cfg.num_classes)
    if not hidden or (kept and kept != hidden) or not (asked or classes != cfg.num_classes):
        return False
    for name in HIDDEN:
        kwargs.pop(name, None)
    if not kwargs.get('features_only'):
        _warn_of_lost_head('The model', dict(hidden, num_classes=cfg.num_classes), classes)
    return True


def hidden_layers(config: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a config.json for layers before the classifier."""
    recorded = config.get('model_args') or {}
    return {name: recorded[name] for name in HIDDEN if recorded.get(name)}


def _warn_of_lost_head(place: str, own: Mapping[str, Any], classes: int) -> None:
    new = f'the new one of {classes} starts at random' if classes else 'the model returns features'
    number = f' of {own["num_classes"]} classes' if 'num_classes' in own else ''
    text = f'{place} has a classifier{number}, which is left out: {new}.'
    if hidden := hidden_layers(dict(model_args=own)):
        text += (
            f" To keep the layers before it ({hidden}), create the model by 'local-dir:' or 'hf-hub:' without "
            f'num_classes, and call model.reset_classifier({classes}).'
        )
    warnings.warn(printable_lines(text), stacklevel=3)


@dataclass(frozen=True)
class _Wanted:
    """The model that a source's weights have to fit.

    Attributes:
        model: Network on the meta device: names and shapes without values.
        model_args: Arguments of the model that are given.
        variant_args: Arguments that the model's name stands for; a config.json that does not name them means these.
        cfg: Pretrained cfg, which says how many classes and channels the weights should have.
        is_bare: Whether no source's head is wanted.
        cache_dir: Directory for downloads; None for the default cache.
    """

    model: Any
    model_args: dict[str, Any]
    variant_args: dict[str, Any]
    cfg: PretrainedCfg
    is_bare: bool
    cache_dir: PathLike | None

    @property
    def numerics(self) -> dict[str, Any]:
        return {**NUMERICS, **VARIANTS, **self.model_args}


def _all_sources(variant: str, pretrained_cfg: Any, overlay: dict[str, Any] | None) -> list[Source]:
    cfg = resolve_pretrained_cfg(variant, pretrained_cfg)
    if cfg.source in ('hf-hub', 'local-dir'):
        return sources_of(cfg)
    keys = ('state_dict', 'file', 'hf_hub_id', 'hf_hub_filename', 'url')
    sources = sources_of(PretrainedCfg(**{key: (overlay or {}).get(key) for key in keys}))
    if os.environ.get(REPO_VARIABLE):
        sources.append(source_of(os.environ[REPO_VARIABLE]))
    return sources + sources_of(cfg, genuine=cfg.tag == GENUINE_TAG)


def _first_that_fits(sources: list[Source], wanted: _Wanted) -> StateDict:
    """The tensors of the first source that has what is wanted.

    A source that the user named either loads or raises. Pinned sources stand in for each other: a warning reports each
    that fails, and an error the last.
    """
    causes: list[str] = []
    for source, following in zip(sources, [*sources[1:], None]):
        try:
            return _tensors_that_fit(source, wanted)
        except Exception as e:  # failures of networks have no common class; each is reported
            if not source.genuine:
                raise WeightsError(
                    f'{source} has no weights for this model: {_described(e)} You named this source, so '
                    f'no other source stands in for it. Name another one, or none.'
                ) from e
            causes.append(f'{source}: {_described(e)}')
            if following:
                warnings.warn(printable_lines(f'No weights from {causes[-1]} Next: {following}.'), stacklevel=2)
    if not sources:
        raise WeightsError(
            f'There are no pretrained weights for {wanted.cfg.architecture}; create it with '
            f'pretrained=False, or name a source of your own: pretrained_cfg_overlay=dict(file=...).'
        )
    tried = ''.join(f'  {i}. {cause}\n' for i, cause in enumerate(causes, start=1))
    raise WeightsError(f'No source has pretrained weights for this model. Tried, in order:\n{tried}{OFFLINE_REMEDY}')


def _described(error: BaseException) -> str:
    """An error and its cause in one line. The hub's client says what it could not do; only the cause says why."""
    text = in_one_line(error)
    return f'{text} (because of {_described(error.__cause__)})' if error.__cause__ else text


def _tensors_that_fit(source: Source, wanted: _Wanted) -> StateDict:
    """The source's tensors, after all checks: numerics, genuineness, names, shapes, values."""
    if source.genuine:
        _check_variant(wanted.numerics)
    else:
        _check_config(source.read_config(wanted.cache_dir), wanted)
    classes, model_args = wanted.model.num_classes, wanted.model_args
    is_default = not wanted.is_bare and classes == wanted.cfg.num_classes
    is_bare = wanted.is_bare or (source.genuine and not is_default)
    given = {name: value for name, value in wanted.numerics.items() if value or name not in HIDDEN}
    given = {'global_pool': 'avg', 'output_stride': 32, **given, 'num_classes': 0 if is_bare else classes}
    stem_padding = model_args.get('stem_padding')
    network = read_network(source.read(wanted.cache_dir), str(source), {**given, 'stem_padding': stem_padding})
    tensors, layout, own = network.found.tensors, network.found.layout, network.own_head
    network.warn_of_assumptions()
    heads = [
        {n: t.shape for n, t in s.items() if n.startswith('head.') and not n.endswith('num_batches_tracked')}
        for s in (tensors, wanted.model.state_dict())
    ]
    has_head = not is_bare and heads[0] == heads[1]
    if classes and not (is_bare or has_head) and (is_default or own['num_classes'] == classes):
        hidden = {name: own.get(name) or [] for name in HIDDEN if own.get(name) or model_args.get(name)}
        ways = ', '.join(f'{name}={value}' for name, value in {'num_classes': own['num_classes'], **hidden}.items())
        ways += ', or num_classes=0 for the network without a classifier' if own['num_classes'] else ''
        raise CheckpointError(f'Its head has {own["num_classes"]} classes. Pass {ways}.')
    if not source.genuine and not wanted.is_bare and (not has_head or (own and not classes)):
        _warn_of_lost_head(str(source), own, classes)
    if recorded := network.file.arguments_of(network.found.prefix):
        _check_config(dict(model_args=recorded), wanted, 'Its metadata')
    verified: set[str] = set()
    if source.genuine or layout != 'xception_hub':
        verification = compare(tensors)
        verified.update(verification.identical)
        compared = {*NUMERICS, *VARIANTS, *(['global_pool'] if has_head else [])}
        numerics = {name: value for name, value in network.arguments.items() if name in compared}
        if verification.is_genuine:
            tensors = restore_variances(tensors, verification)
        elif source.genuine:
            anew = source.anew(Path(source.filename or WEIGHT_FILES[0]), wanted.cache_dir)
            raise CheckpointError(f'It holds other weights than Keras publishes: {verification}.{anew}')
        elif any(given[name] != value for name, value in numerics.items()):
            arguments = ', '.join(f'{name}={value!r}' for name, value in numerics.items())
            raise CheckpointError(
                'It was trained in the legacy torch lineage, and in the numerics of this model it would compute '
                f'something else. Load it with xception_hub.from_checkpoint, or pass {arguments}.'
            )

    weight = tensors['stem.conv1.weight']
    if weight.shape[1] == wanted.cfg.input_size[0]:
        tensors['stem.conv1.weight'] = adapt_input_conv(wanted.model.in_chans, weight, wanted.cfg.input_size[0])
    optional = () if has_head else ('head.',)
    check_against(tensors, wanted.model.state_dict(), str(source), optional=optional, verified=verified)
    return tensors


def _check_variant(model_args: dict[str, Any]) -> None:
    """Refuses to load the weights of figure 5 into a variant of the paper, even if the shapes fit."""
    for name, value in VARIANTS.items():
        if model_args[name] != value:
            raise CheckpointError(
                f'These are the weights of the network with {name}={value!r}; there are none for '
                f'{name}={model_args[name]!r}, which has to be trained from scratch (pretrained=False).'
            )


def _check_config(config: dict[str, Any], wanted: _Wanted, place: str = CONFIG_FILE) -> None:
    """Refuses weights whose config.json, or own metadata, says that they belong to something else."""
    architecture = config.get('architecture', wanted.cfg.architecture)
    if str(architecture).removesuffix(SAME_NETWORK) != wanted.cfg.architecture.removesuffix(SAME_NETWORK):
        raise CheckpointError(
            f'{place} says architecture {architecture!r}, not {wanted.cfg.architecture!r}. '
            f'Create the model that it names, or point to another repository.'
        )
    recorded = network_arguments(config.get('model_args') or {}, place)
    if 'num_classes' in config:
        network_arguments(dict(num_classes=config['num_classes']), place)
    args = {**wanted.variant_args, **recorded} if config else {}
    for name, value in args.items():
        if name in {**NUMERICS, **VARIANTS} and wanted.numerics[name] != value:
            raise CheckpointError(
                f'{place} says {name}={value!r}, but the model has {name}={wanted.numerics[name]!r}. '
                f'Pass {name}={value!r}, or create the model by the name of its repository.'
            )
