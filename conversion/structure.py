"""What a Keras model's config says: where Xception is in it, what stands after it, and where the arrays are kept."""
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from xception_hub.xception_paper import MIN_IMG_SIZE

from .hdf5 import KerasFileError
from .names import LAYERS

__all__ = ['Dense', 'Structure', 'parse']

CONTAINERS = ('Functional', 'Model', 'Sequential')
POOLS = {'GlobalAveragePooling2D': 'avg', 'GlobalMaxPooling2D': 'max'}
FINAL_ACTIVATIONS = ('linear', 'softmax', 'sigmoid')
MAX_UNITS = 1_000_000  # the paper's largest head has 17,000
MAX_CHANNELS = 1024
LAST_ACTIVATION = 'block14_sepconv2_act'
BACKBONE_CLASSES = (
    'InputLayer', 'Conv2D', 'SeparableConv2D', 'BatchNormalization', 'Activation', 'MaxPooling2D', 'Add')


@dataclass(frozen=True)
class Placed:
    """A layer and the group of the weight file that holds its arrays."""

    name: str
    class_name: str
    config: dict[str, Any]
    inbound: tuple[str, ...]
    path: str


@dataclass(frozen=True)
class Dense:
    """A fully connected layer of the head."""

    layer: Placed
    units: int
    activation: str


@dataclass
class Structure:
    """An Xception with its head.

    Attributes:
        layers: Key of `names.LAYERS` -> the file's layer.
        dense: The fully connected layers, the classifier last.
        global_pool: 'avg' or 'max'; '' if the model ends in feature maps.
        drop_rate: Of the dropout before the classifier.
        final_activation: What Keras applies to the logits: 'linear', 'softmax' or 'sigmoid'.
        image_size: Height and width in pixels, None if the model takes any.
        channels: Of the images.
    """

    layers: dict[str, Placed]
    dense: list[Dense] = field(default_factory=list)
    global_pool: str = ''
    drop_rate: float = 0.
    final_activation: str = 'linear'
    image_size: tuple[int, int] | None = None
    channels: int = 3


def parse(config: Any, source: str) -> Structure:
    """Reads a model's config as data; nothing in it is deserialised.

    Raises:
        KerasFileError: It is no Xception, or has a layer that the conversion doesn't know.
    """
    try:
        containers = list(_containers(config['config'], 'layers'))
        backbone = next((c for c in containers if any(layer.name == 'block1_conv1' for layer in c)), None)
        if backbone is None:
            raise KerasFileError(f"{source}: no layer is called 'block1_conv1', so this is no Xception of Keras.")
        structure = Structure(_backbone_layers(backbone, source))
        structure.image_size, structure.channels = _input_of(containers, source)
        _add_head(structure, containers, backbone, source)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RecursionError) as e:
        if isinstance(e, KerasFileError):
            raise
        raise KerasFileError(f'{source}: its config is not that of a Keras model ({type(e).__name__}: {e}).') from e
    return structure


def _containers(config: dict[str, Any], path: str) -> Iterator[list[Placed]]:
    """The layers of the model and of each model nested in it, outermost first, with their places in the weight file."""
    counts: dict[str, int] = {}
    layers, nested = [], []
    for layer in config['layers']:
        # Keras keeps arrays under the snake-case name of the class, numbered within the model
        group = re.sub(r'(?<=[a-z])(?=[A-Z])', '_', layer['class_name']).lower()
        counts[group] = counts.get(group, -1) + 1
        place = f'{path}/{group}' + (f'_{counts[group]}' if counts[group] else '')
        name = layer.get('name') or layer['config']['name']
        layers.append(Placed(name, layer['class_name'], layer['config'], tuple(_inbound(layer)), place))
        if layer['class_name'] in CONTAINERS:
            nested.append((layer['config'], f'{place}/layers'))
    yield layers
    for nested_config, nested_path in nested:
        yield from _containers(nested_config, nested_path)


def _inbound(layer: dict[str, Any]) -> Iterator[str]:
    """Names of the layers that feed a layer; Keras 2 lists them, Keras 3 hides them in the call's arguments."""
    def search(node: Any) -> Iterator[str]:
        if isinstance(node, dict):
            if 'keras_history' in node:
                yield node['keras_history'][0]
            else:
                for value in node.values():
                    yield from search(value)
        elif isinstance(node, (list, tuple)):
            if len(node) >= 3 and isinstance(node[0], str) and all(isinstance(i, int) for i in node[1:3]):
                yield node[0]
            else:
                for value in node:
                    yield from search(value)
    return search(layer.get('inbound_nodes', []))


def _backbone_layers(backbone: list[Placed], source: str) -> dict[str, Placed]:
    by_name = {layer.name: layer for layer in backbone}
    found = {name: by_name[name] for name in LAYERS if name in by_name}
    # Keras leaves the residual layers unnamed: each is what is added to a block's pooled output
    for block in (2, 3, 4, 13):
        for add in backbone:
            if add.class_name == 'Add' and f'block{block}_pool' in add.inbound:
                norm, = (by_name[name] for name in add.inbound if name != f'block{block}_pool')
                conv, = (by_name[name] for name in norm.inbound)
                found[f'block{block}_residual_bn'], found[f'block{block}_residual_conv'] = norm, conv
    missing = [name for name in LAYERS if name not in found]
    if missing:
        raise KerasFileError(f'{source}: its Xception lacks {", ".join(missing[:6])}, {len(missing)} layers in all.')
    return found


def _input_of(containers: list[list[Placed]], source: str) -> tuple[tuple[int, int] | None, int]:
    for layers in containers:
        for layer in layers:
            shape = layer.config.get('batch_shape') or layer.config.get('batch_input_shape')
            if isinstance(shape, list) and len(shape) == 4 and shape[3] in range(1, MAX_CHANNELS + 1):
                _, height, width, channels = shape
                known = all(isinstance(side, int) and side > 0 for side in (height, width))
                if known and min(height, width) < MIN_IMG_SIZE:
                    raise KerasFileError(
                        f'{source}: its images are {height}x{width}, but Xception takes at least {MIN_IMG_SIZE}.')
                return ((height, width) if known else None), channels
    raise KerasFileError(f'{source}: its config has no input layer with [batch, height, width, channels].')


def _add_head(structure: Structure, containers: list[list[Placed]], backbone: list[Placed], source: str) -> None:
    """Reads what follows the backbone, in the model that holds it and then in those that hold that one."""
    end = [layer.name for layer in backbone].index(LAST_ACTIVATION) + 1
    alien = next((layer for layer in backbone[:end] if layer.class_name not in BACKBONE_CLASSES), None)
    head = [alien] if alien else backbone[end:]
    head += [layer for layers in containers if layers is not backbone for layer in layers]
    rate = 0.
    for layer in head:
        if layer.class_name in ('InputLayer', *CONTAINERS):
            continue
        if structure.final_activation != 'linear':
            raise KerasFileError(f'{source}: {layer.name!r} follows a final {structure.final_activation!r}.')
        if layer.class_name in POOLS and not structure.global_pool:
            structure.global_pool = POOLS[layer.class_name]
        elif layer.class_name == 'Dense' and structure.global_pool and layer.config.get('use_bias', True):
            _check_hidden(structure.dense, source)
            structure.dense.append(Dense(layer, _units(layer, source), layer.config['activation']))
            structure.drop_rate, rate = rate, 0.  # of several dropouts the one before the classifier
        elif layer.class_name == 'Dropout' and structure.global_pool:
            rate = float(layer.config['rate'])
            if not 0 <= rate < 1:
                raise KerasFileError(f'{source}: the Dropout layer {layer.name!r} has rate {rate}.')
        elif layer.class_name == 'Activation' and structure.dense:
            structure.final_activation = layer.config['activation']
        else:
            raise KerasFileError(
                f'{source}: the {layer.class_name} layer {layer.name!r} can not be converted. '
                f'Heads of global pooling, Dense with bias, Dropout and a final activation can: build such a model '
                f'in Keras, copy the weights, save it, and convert that.')
    if structure.dense and structure.final_activation == 'linear':
        structure.final_activation = structure.dense[-1].activation
    if structure.final_activation not in FINAL_ACTIVATIONS:
        raise KerasFileError(
            f'{source}: its classifier ends in {structure.final_activation!r}, not in one of {FINAL_ACTIVATIONS}.')


def _units(layer: Placed, source: str) -> int:
    units = layer.config['units']
    if not isinstance(units, int) or not 0 < units <= MAX_UNITS:
        raise KerasFileError(f'{source}: the Dense layer {layer.name!r} has {units!r} units.')
    return units


def _check_hidden(hidden: list[Dense], source: str) -> None:
    if hidden and hidden[-1].activation != 'relu':
        raise KerasFileError(
            f'{source}: the hidden Dense layer {hidden[-1].layer.name!r} has activation {hidden[-1].activation!r}; '
            f"this network's fully connected layers have 'relu'.")
