"""The layouts in which files name the layers of Xception, and the search for one of them among a file's tensors.

The legacy lineage began with tstandley's port. It includes Cadene's pretrainedmodels, timm's `legacy_xception`,
segmentation_models_pytorch's encoder, FaceForensics++ and DeepfakeBench. cnn_finetune and fastai put its layers into a
Sequential, pytorchcv renames them. All compute with BatchNorm eps 1e-5 and symmetric pool padding.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from ..errors import CheckpointError, printable
from ..network import Xception
from ..topology import LEGACY_NAMES, MODULES
from .files import StateDict
from .plain_tensors import without_biases

LEGACY_NUMERICS = dict(bn_eps=1e-5, pool_padding='symmetric')


def _in_sequential(*children: str) -> dict[str, str]:
    """Names of the lineage's layers in a Sequential of the network's children."""
    places = {child: place for place, child in enumerate(children)}
    names = {}
    for legacy, ours in LEGACY_NAMES.items():
        child, dot, rest = legacy.partition('.')
        names[f'{places[child]}{dot}{rest}'] = ours
    return names


def _pytorchcv_names() -> Iterator[tuple[str, str]]:
    units = ['', *(f'stage{i}.unit1' for i in (1, 2, 3)), *(f'stage3.unit{i}' for i in range(2, 10)), 'stage4.unit1']
    units = [f'features.{unit}' for unit in units] + ['features.final_block']
    for ours in LEGACY_NAMES.values():
        module = next(module for module in MODULES if ours.startswith(f'{module.torch}.'))
        layer, unit = ours.removeprefix(f'{module.torch}.'), units[module.number - 1]
        if module.number == 1:
            yield f'features.init_block.conv{layer[-1]}.{layer[:-1]}', ours
        elif layer.startswith('shortcut.'):
            yield f'{unit}.identity_conv.{layer.removeprefix("shortcut.")}', ours
        else:
            kind, number, part = re.fullmatch(r'stack\.(conv|bn)(\d)\.?(.*)', layer).groups()  # type: ignore[union-attr]
            block = f'{unit}.conv{number}' if module.number == 14 else f'{unit}.body.block{number}'
            yield f'{block}.{kind}' + (f'.{part[-2:]}_conv' if part else ''), ours


BLOCKS = [f'block{i}' for i in range(1, 13)]
# Layout -> name of each layer in a file -> its name here. A file's layers may have any prefix.
LAYOUTS: dict[str, dict[str, str]] = {
    'xception_hub': {name: name for name in LEGACY_NAMES.values()},
    'legacy': LEGACY_NAMES,
    'pytorchcv': dict(_pytorchcv_names()),
    'sequential': _in_sequential('conv1', 'bn1', '', 'conv2', 'bn2', *BLOCKS, 'conv3', 'bn3', 'conv4', 'bn4'),
    'sequential of timm': _in_sequential(
        'conv1', 'bn1', '', 'conv2', 'bn2', '', *BLOCKS, 'conv3', 'bn3', '', 'conv4', 'bn4'
    ),
}
# A layer that only this layout has -> the layout. Variants of this network have no shortcuts.
ANCHORS = {
    'exit_flow.1.stack.bn2' if layout == 'xception_hub' else
    next(name for name, ours in names.items() if ours == 'exit_flow.0.shortcut.bn'): layout
    for layout, names in LAYOUTS.items()
}  # fmt: skip

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

# Pattern of a tensor's path -> the network that it belongs to, which people mistake for this one.
OTHER_NETWORKS = {
    r'(^|\.)block20\.': "DeepLab's aligned Xception with 20 blocks",
    r'(^|\.)blocks\.\d+\.stack\.|(^|\.)stem\.0\.conv\.weight': 'an aligned Xception (timm: xception41, 65, 71)',
    r'(^|\.)block\d+\.(sepconv|conv)\d*\.|_sepconv1\b': "a Keras model's layers: xception-hub convert reads its file",
}


@dataclass
class Recognised:
    """A checkpoint's tensors under this network's names.

    Attributes:
        layout: One of `LAYOUTS`.
        prefix: Prefix of the network's names in the file.
        tensors: Name -> tensor, without `num_batches_tracked`. Heads of other layouts than this project's are apart.
        left_out: Name in the file -> why the network does not need the tensor.
        heads: Layer outside the backbone, by its name in the file -> its tensors.
        decoder: Whether segmentation_models_pytorch's decoder and head lie beside the network.
    """

    layout: str
    prefix: str
    tensors: StateDict
    left_out: dict[str, str] = field(default_factory=dict)
    heads: dict[str, StateDict] = field(default_factory=dict)
    decoder: bool = False

    def drop_heads(self, reason: str) -> None:
        """Leaves out everything after the global pooling."""
        for layer, tensors in self.heads.items():
            self.left_out.update({f'{layer}.{kind}': reason for kind in tensors})
        own = {name for name in self.tensors if name.startswith('head.')}
        self.left_out.update({f'{self.prefix}{name}': reason for name in own})
        self.tensors = {name: tensor for name, tensor in self.tensors.items() if name not in own}
        self.heads = {}


def recognise(checkpoint: StateDict, source: str = 'the checkpoint', prefix: str | None = None) -> Recognised:
    """Finds the network's tensors among those of a file of any published layout.

    Args:
        checkpoint: Path -> tensor. Containers and wrappers may put any prefix before the network's names.
        source: Name of the checkpoint in errors.
        prefix: Prefix of the network to take if there are several.

    Raises:
        CheckpointError: The checkpoint is no Xception, or it holds several networks.
    """
    prefix, layout, left_out = _find_network(checkpoint, source, prefix)
    found = Recognised(layout, prefix, {}, left_out)
    names = LAYOUTS[layout]
    parent = prefix.rpartition('.')[0].rpartition('.')[0]  # a wrapper's head stands beside its backbone
    beside = f'{parent}.' if parent else ''
    decoder = tuple(f'{beside}{part}.' for part in ('decoder', 'segmentation_head', 'classification_head'))
    found.decoder = prefix.endswith('encoder.') and any(name.startswith(decoder[:2]) for name in checkpoint)
    for name, tensor in checkpoint.items():
        if name in left_out:
            continue
        layer, _, kind = name.removeprefix(prefix).rpartition('.')
        target = names.get(layer) if name.startswith(prefix) else None
        if layout == 'xception_hub' and name.startswith(f'{prefix}head.'):
            target = layer
        reason = next((why for pattern, why in LEFT_OUT.items() if re.search(pattern, name, re.IGNORECASE)), None)
        if target is not None:
            if kind != 'num_batches_tracked':  # a counter, which the outputs do not depend on
                if target.endswith('.conv_pw') and tensor.dim() == 2:
                    tensor = tensor[:, :, None, None]  # as in the lineage's first file
                found.tensors[f'{target}.{kind}'] = tensor
        elif found.decoder and name.startswith(decoder):
            found.left_out[name] = "segmentation_models_pytorch's decoder and heads, which follow the encoder"
        elif reason:
            found.left_out[name] = reason
        elif name.startswith((prefix, beside)):
            layer, _, kind = name.rpartition('.')
            found.heads.setdefault(layer, {})[kind] = tensor
        else:
            found.left_out[name] = 'it lies beside the network, in another container'
    # a variant without residual connections has no shortcuts
    missing = [
        layer
        for layer in LEGACY_NAMES.values()
        if f'{layer}.weight' not in found.tensors and not (layout == 'xception_hub' and '.shortcut.' in layer)
    ]
    if missing:
        raise CheckpointError(f'{source} is no checkpoint of this network. Layers that are missing: {listed(missing)}.')
    if layout != 'xception_hub':  # which has no biases
        found.tensors = without_biases(found.tensors)
    return found


def _find_network(checkpoint: StateDict, source: str, prefix: str | None) -> tuple[str, str, dict[str, str]]:
    """Prefix of the network's names, its layout, and the other networks' tensors with the reason to leave them out."""
    layouts = {
        name[: -len(f'{anchor}.weight')]: layout
        for anchor, layout in ANCHORS.items()
        for name in checkpoint
        if name == f'{anchor}.weight' or name.endswith(f'.{anchor}.weight')
    }
    if not layouts:
        raise CheckpointError(
            f'{source} is no Xception: it has none of {quoted(f"{anchor}.weight" for anchor in ANCHORS)}. '
            f'It holds {listed(list(checkpoint))}. {_what_it_is(checkpoint)}'
        )
    if prefix is not None:
        chosen = prefix if prefix in layouts else f'{prefix}.'
        if chosen not in layouts:
            raise CheckpointError(f'{source} holds no network under prefix={prefix!r}. Choose {quoted(layouts)}.')
    else:
        raw = [name for name in layouts if not AVERAGES.search(name)]
        if len(raw) != 1 and len(layouts) > 1:
            raise CheckpointError(
                f'{source} holds {len(layouts)} networks, under {quoted(layouts)}. Choose one with prefix=....'
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


def _what_it_is(checkpoint: StateDict) -> str:
    for pattern, what in OTHER_NETWORKS.items():
        if any(re.search(pattern, name) for name in checkpoint):
            return f'It may be {what}.'
    if _is_in_order(checkpoint):
        return (
            'The shapes of its layers are those of this network in order, but their names are not known; whether equal '
            'modules stand in their right order, no tensor tells. If you know that they do, rename all tensors: '
            "torch.save(dict(zip(timm.create_model('legacy_xception').state_dict(), STATE_DICT.values())), 'new.pth')."
        )
    return 'Load it with the library that wrote it.'


def _is_in_order(checkpoint: StateDict) -> bool:
    """Whether the shapes of the backbone's layers follow each other as in the legacy lineage."""
    expected = Xception(device='meta').state_dict()
    shapes = [expected[f'{ours}.weight'].shape for ours in LEGACY_NAMES.values()]
    weights = [t for name, t in checkpoint.items() if name.endswith('.weight') and t.dim() in (1, 4)]
    return [tensor.shape for tensor in weights] == shapes


def quoted(names: Iterable[str]) -> str:
    return ', '.join(f"'{printable(name)}'" for name in names) or 'none'


def listed(names: list[str], most: int = 6) -> str:
    more = f' and {len(names) - most} more' if len(names) > most else ''
    return (', '.join(map(printable, names[:most])) + more) or 'none'


def to_legacy(tensors: StateDict, classifier: str = 'fc') -> StateDict:
    """Renames this network's tensors to the names of the legacy lineage."""
    names = {ours: legacy for legacy, ours in LEGACY_NAMES.items()} | {'head.fc': classifier}
    split = {name: name.rpartition('.') for name in tensors}
    return {f'{names[layer]}.{kind}': tensors[name] for name, (layer, _, kind) in split.items()}
