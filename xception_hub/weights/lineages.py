"""The layouts in which files name the layers of Xception, and the search for one of them among a file's tensors.

The legacy lineage began with tstandley's port. It includes Cadene's pretrainedmodels, timm's `legacy_xception`,
segmentation_models_pytorch's encoder, FaceForensics++ and DeepfakeBench. cnn_finetune and fastai put its layers into a
Sequential, pytorchcv renames them. All compute with BatchNorm eps 1e-5 and symmetric pool padding.
"""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import accumulate

from torch import Tensor

from ..errors import CheckpointError, listed, printable
from ..topology import LEGACY_NAMES, MODULES
from .checkpoint_files import StateDict
from .plain_tensors import without_biases

LEGACY_NUMERICS = dict(bn_eps=1e-5, pool_padding='symmetric')


def _in_sequential(names: Mapping[str, str], *children: str) -> dict[str, str]:
    """Names of a network's layers in a Sequential of the network's children."""
    places = {child: place for place, child in enumerate(children)}
    parts = {name: name.partition('.') for name in names}
    return {f'{places[child]}{dot}{rest}': names[name] for name, (child, dot, rest) in parts.items()}


def _pytorchcv_names() -> Iterator[tuple[str, str]]:
    """Names in pytorchcv's `features`."""
    units = ['', *(f'stage{i}.unit1' for i in (1, 2, 3)), *(f'stage3.unit{i}' for i in range(2, 10)), 'stage4.unit1']
    for ours in LEGACY_NAMES.values():
        module = next(module for module in MODULES if ours.startswith(f'{module.torch}.'))
        layer, unit = ours.removeprefix(f'{module.torch}.'), [*units, 'final_block'][module.number - 1]
        if module.number == 1:
            yield f'init_block.conv{layer[-1]}.{layer[:-1]}', ours
        elif layer.startswith('shortcut.'):
            yield f'{unit}.identity_conv.{layer.removeprefix("shortcut.")}', ours
        else:
            kind, number, part = re.fullmatch(r'stack\.(conv|bn)(\d)\.?(.*)', layer).groups()  # type: ignore[union-attr]
            block = f'{unit}.conv{number}' if module.number == 14 else f'{unit}.body.block{number}'
            yield f'{block}.{kind}' + (f'.{part[-2:]}_conv' if part else ''), ours


BLOCKS = [f'block{i}' for i in range(1, 13)]
PYTORCHCV_NAMES = dict(_pytorchcv_names())
# Layout -> name of each layer in a file -> its name here. A file's layers may have any prefix.
LAYOUTS: dict[str, dict[str, str]] = {
    'xception_hub': {name: name for name in LEGACY_NAMES.values()},
    'legacy': LEGACY_NAMES,
    'sequential': _in_sequential(
        LEGACY_NAMES, 'conv1', 'bn1', '', 'conv2', 'bn2', *BLOCKS, 'conv3', 'bn3', 'conv4', 'bn4'
    ),
    'sequential of timm': _in_sequential(
        LEGACY_NAMES, 'conv1', 'bn1', '', 'conv2', 'bn2', '', *BLOCKS, 'conv3', 'bn3', '', 'conv4', 'bn4'
    ),
    'pytorchcv': PYTORCHCV_NAMES,
    'sequential of pytorchcv': _in_sequential(
        PYTORCHCV_NAMES, 'init_block', 'stage1', 'stage2', 'stage3', 'stage4', 'final_block'
    ),
}
# A layer that only this layout has -> the layout. Variants of this network have no shortcuts.
ANCHORS = {
    'exit_flow.1.stack.bn2' if layout == 'xception_hub' else
    next(name for name, ours in names.items() if ours == 'exit_flow.0.shortcut.bn'): layout
    for layout, names in LAYOUTS.items()
}  # fmt: skip

# Paths of tensors that no layer has.
STATES = re.compile(
    r'(^|\.)state\.\d+\.\w+$|(^|\.)(exp_avg(_sq)?|momentum_buffer|square_avg|total_ops|total_params)$', re.IGNORECASE
)
# Paths of tensors that are not a layer's, unless a layer can have them: by their shape or their neighbours.
LEFT_OUT = re.compile(
    r'(^|[._])(optim|sched|(scaler|amp)\b|loss|criterion|metric|confmat|accuracy|auroc|f1)|n_averaged$|'
    r'(^|\.)(rng_state|random)',
    re.IGNORECASE,
)
TRAINING = 'a state of what trains, averages or measures the network'
NORMALIZATION = re.compile(
    r'(^|\.)((pixel|image|img|norm|input|data|rgb|imagenet)_?)?(?P<what>mean|std)$', re.IGNORECASE
)
PARAMETERS = ('weight', 'bias', 'running_mean', 'running_var')
AVERAGES = re.compile(r'(^|[._])(ema|swa|averag\w*|shadow|teacher)([._]|$)')
ADAPTER = re.compile(r'(^|\.)(lora_\w+|base_layer|modules_to_save)(\.|$)')  # of peft

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
        source: Name of the checkpoint in errors.
        layout: One of `LAYOUTS`.
        prefix: Prefix of the network's names in the file.
        tensors: Name -> tensor, without `num_batches_tracked`. Heads of other layouts than this project's are apart.
        left_out: Name in the file -> why the network does not need the tensor.
        beside: Layer outside the backbone, by its name in the file -> its tensors.
        normalization: Name in the file -> mean or standard deviation of the images.
        decoder: Whether segmentation_models_pytorch's decoder and head lie beside the network.
        assumed: Sentences about what the file does not say.
    """

    source: str
    layout: str
    prefix: str
    tensors: StateDict
    left_out: dict[str, str] = field(default_factory=dict)
    beside: dict[str, StateDict] = field(default_factory=dict)
    normalization: StateDict = field(default_factory=dict)
    decoder: bool = False
    assumed: list[str] = field(default_factory=list)

    @property
    def num_features(self) -> int:
        """Channels of the backbone's last maps."""
        return self.tensors['exit_flow.1.stack.bn2.weight'].shape[0]

    def drop(self, layers: Iterable[str], reason: str) -> None:
        """Leaves out layers beside the backbone."""
        for layer in list(layers):
            self.left_out.update({f'{layer}.{kind}'.lstrip('.'): reason for kind in self.beside.pop(layer)})

    def drop_own_head(self, reason: str) -> None:
        """Leaves out the head of this project's layout."""
        own = {name for name in self.tensors if name.startswith('head.')}
        self.left_out.update({f'{self.prefix}{name}': reason for name in own})
        self.tensors = {name: tensor for name, tensor in self.tensors.items() if name not in own}


def recognise(
    checkpoint: StateDict, source: str = 'the checkpoint', prefix: str | None = None, roots: Collection[str] = ('',)
) -> Recognised:
    """Finds the network's tensors among those of a file of any published layout.

    Args:
        checkpoint: Path -> tensor. Containers and wrappers may put any prefix before the network's names.
        source: Name of the checkpoint in errors.
        prefix: Prefix of the network to take if there are several, or its beginning.
        roots: Paths of the state dicts and modules in the file.

    Raises:
        CheckpointError: The checkpoint is no Xception, it holds several networks, or its backbone has other layers.
    """
    if adapters := [name for name in checkpoint if ADAPTER.search(name)]:
        raise CheckpointError(
            f'{source} holds adapters of peft ({listed(adapters)}). Merge them in the program that trained them: '
            f"torch.save(model.merge_and_unload().state_dict(), 'merged.pth'), then load merged.pth."
        )
    prefix, layout, left_out = _find_network(checkpoint, source, prefix)
    found = Recognised(source, layout, prefix, {}, left_out)
    names = LAYOUTS[layout]
    parent = prefix.rpartition('.')[0].rpartition('.')[0]
    decoder = tuple(f'{parent}.{part}.'.lstrip('.') for part in ('decoder', 'segmentation_head', 'classification_head'))
    found.decoder = prefix.endswith('encoder.') and any(name.startswith(decoder[:2]) for name in checkpoint)
    layers: dict[str, StateDict] = {}
    for name, tensor in checkpoint.items():
        layer, _, kind = name.removeprefix(prefix).rpartition('.')
        target = names.get(layer) if name.startswith(prefix) else None
        if layout == 'xception_hub' and name.startswith(f'{prefix}head.'):
            target = layer
        # a counter, which the outputs do not depend on
        if name in left_out or kind == 'num_batches_tracked':
            continue
        if STATES.search(name):
            found.left_out[name] = TRAINING
        elif target is not None:
            if target.endswith('.conv_pw') and tensor.dim() == 2:
                tensor = tensor[:, :, None, None]  # as in the lineage's first file
            found.tensors[f'{target}.{kind}'] = tensor
        elif found.decoder and name.startswith(decoder):
            found.left_out[name] = "segmentation_models_pytorch's decoder and heads, which follow the encoder"
        else:
            layers.setdefault(name.rpartition('.')[0], {})[kind] = tensor
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
    root = max((root for root in roots if not root or prefix.startswith(f'{root}.')), key=len, default='')
    for layer, tensors in layers.items():
        _sort(found, layer, tensors, is_outside=not f'{layer}.'.startswith(f'{root}.'.lstrip('.')))
    blocks = tuple({f'{prefix}{layer.partition(".")[0]}.' for layer in names})
    if inside := [
        f'{layer}.{kind}' for layer, kinds in found.beside.items() for kind in kinds if layer.startswith(blocks)
    ]:
        raise CheckpointError(
            f'{source} has tensors within the backbone that this network has no place for: {listed(inside)}. The '
            f'backbone computes with them, so no part of it is the one of figure 5. Use the program that wrote it.'
        )
    return found


def _sort(found: Recognised, layer: str, tensors: StateDict, is_outside: bool) -> None:
    """Takes the tensors of a layer beside the backbone for what they are: of a layer, or of no use for the network.

    A name alone never makes a tensor useless that may be of a layer: by its shape, or by the others of the layer.
    """
    weight, channels = tensors.get('weight'), found.tensors['stem.conv1.weight'].shape[1]
    is_layer = (
        {'weight', 'bias'} <= tensors.keys() or 'running_mean' in tensors or (weight is not None and weight.dim() > 1)
    )
    for kind, tensor in tensors.items():
        name = f'{layer}.{kind}'.lstrip('.')
        if takes_features(tensor, found.num_features):
            reason = None
        elif NORMALIZATION.search(name) and tensor.numel() in (1, channels):
            found.normalization[name] = tensor
            reason = 'how images are normalized'
        elif not tensor.is_floating_point():
            reason = 'whole numbers, which no layer computes with'
        elif is_outside and tensor.dim() < 2 and kind not in PARAMETERS:
            reason = 'it lies beside the network, in another container'
        else:
            reason = TRAINING if not is_layer and LEFT_OUT.search(name) else None
        if reason:
            found.left_out[name] = reason
        else:
            found.beside.setdefault(layer, {})[kind] = tensor


def takes_features(tensor: Tensor, features: int) -> bool:
    """Whether one side of a matrix [out, in], or of [out, in, 1, 1], is the features of one pooling or of two."""
    return (
        tensor.dim() in (2, 4)
        and not {features, 2 * features}.isdisjoint(tensor.shape[:2])
        and tensor[0, 0].numel() == 1
    )


def _find_network(checkpoint: StateDict, source: str, prefix: str | None) -> tuple[str, str, dict[str, str]]:
    """Prefix of the network's names, its layout, and the other networks' tensors with the reason to leave them out."""
    layouts = {
        name[: -len(f'{anchor}.weight')]: layout
        for anchor, layout in ANCHORS.items()
        for name in checkpoint
        if name == f'{anchor}.weight' or name.endswith(f'.{anchor}.weight')
    }
    if not layouts:
        patterns = OTHER_NETWORKS.items()
        others = [f'It may be {what}.' for part, what in patterns if any(re.search(part, name) for name in checkpoint)]
        raise CheckpointError(
            f'{source} is no Xception: it has none of {quoted(f"{anchor}.weight" for anchor in ANCHORS)}. '
            f'It holds {listed(list(checkpoint))}. {others[0] if others else "Load it with the library that wrote it."}'
        )
    if prefix is None:
        candidates = [name for name in layouts if not AVERAGES.search(name)] or [*layouts]
    else:
        start = prefix if prefix in layouts or prefix.endswith('.') else f'{prefix}.'
        candidates = [start] if start in layouts else [name for name in layouts if name.startswith(start)]
    if len(candidates) != 1:
        wrong = '' if prefix is None else f', which prefix={prefix!r} does not'
        raise CheckpointError(
            f'{source} holds {len(layouts)} networks, under {quoted(layouts)}. Choose one with prefix=...{wrong}.'
        )
    (chosen,) = candidates
    left_out: dict[str, str] = {}
    for other in layouts:
        if other != chosen:
            # what stands beside the other network, but not beside the chosen one, belongs to the other
            parents = accumulate(f'{part}.' for part in other.split('.')[:-1])
            apart = next((parent for parent in parents if not chosen.startswith(parent)), None)
            own = {f'{other}{layer}' for layer in LAYOUTS[layouts[other]]}  # where the chosen one lies within the other
            left_out |= {
                name: f'another network; prefix={other!r} takes it'
                for name in checkpoint
                if (name.startswith(apart) if apart else name.rpartition('.')[0] in own)
            }
    return chosen, layouts[chosen], left_out


def quoted(names: Iterable[str]) -> str:
    return ', '.join(f"'{printable(name)}'" for name in names) or 'none'
