"""The layers around Xception in a Keras model: what it does to its images, and a head that this network can have.

Each class of layer has a line in a table: who reads it, and which of its settings. Another one that differs from Keras'
default is refused by name, unless no evaluation uses it.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from ..head import head_layer_names
from .figure5 import FIGURE5
from .graph import MODELS, OPERATIONS, FileLayer, operation_of
from .layer_settings import ACTIVATIONS, Refused, checked_settings, is_number
from .names import AUGMENTATIONS, KERAS_CLASSES, KerasLayer
from .preprocessing import Rescaling

POOLS = {'GlobalAveragePooling2D': 'avg', 'GlobalMaxPooling2D': 'max'}
MAP_POOLS = {'AveragePooling2D': 'avg', 'MaxPooling2D': 'max'}
# What joins the poolings of POOLS -> timm's name of both.
JOINS = {'Concatenate': 'catavgmax', 'Average': 'avgmax'}
FINAL_ACTIVATIONS = ('linear', *ACTIVATIONS)
# Xception's own layers without arrays: class -> number.
OWN = dict(Counter(node.class_name for node in FIGURE5.values() if node.class_name not in KERAS_CLASSES.values()))
HINTS = {'Lambda': ' It holds code, which is never run.'}
MAX_UNITS = 1_000_000  # outputs; the paper's largest head has 17,000
MAX_CHANNELS = 1024
BN_MOMENTUM = 0.99  # Keras' default

Settings = dict[str, Any]
MAPS, PLACE, FEATURES, LOGITS = 'before the pooling', 'at the map of one place', 'in the head', 'after the classifier'


def _read_layer(layer: FileLayer, table: Mapping[str, tuple[Callable[..., Any], Sequence[str]]], *to: Any) -> Any:
    """Has a table's reader read a layer.

    Raises:
        Refused: It is not in the table, or another setting than those that are read would change what is computed.
    """
    kind = 'operation' if operation_of(layer) in OPERATIONS else layer.class_name
    if kind not in table:
        raise Refused('cannot be converted')
    reader, read = table[kind]
    return reader(*to, layer, checked_settings(kind, layer.config, read))


class HiddenLayer(NamedTuple):
    """One layer before the classifier, as `xception_hub.Xception` takes it in `head_layers`; its arrays, if it has."""

    spec: dict[str, Any]
    file_layer: FileLayer | None = None


@dataclass
class FileHead:
    """The head of a Keras model: all that follows the feature maps.

    Attributes:
        layers: Layers between pooling and classifier, without the dropout before the classifier.
        classifier: The last Dense layer; None if there is none.
        num_classes: Number of the classifier's outputs, or 0.
        global_pool: A timm name: 'avg', 'max', 'avgmax' or 'catavgmax'; '' if the model ends in feature maps.
        drop_rate: Rate of the dropout before the classifier.
        final_activation: Keras' activation of the logits: 'linear', 'softmax' or 'sigmoid'; 'unknown' for weights
            alone.
        ignored: Names of layers that change nothing in evaluation.
        one_size: Whether Keras' head takes maps of one size: it flattens them, or pools with a window of their size.
        max_first: Whether Keras joins the maxima and the means, in this order; timm's order is the other.
        maps: Height and width of the feature maps, if the file states the size of the images.
        stage: What the next layer takes while they are read: MAPS, the map of one PLACE, FEATURES or LOGITS.
        way_out: What converts at least the features, for errors.
    """

    layers: list[HiddenLayer] = field(default_factory=list)
    classifier: FileLayer | None = None
    num_classes: int = 0
    global_pool: str = ''
    drop_rate: float = 0.0
    final_activation: str = 'linear'
    ignored: list[str] = field(default_factory=list)
    one_size: bool = False
    max_first: bool = False
    maps: list[int] | None = None
    stage: str = MAPS
    way_out: str = ''

    def require(self, *stages: str) -> None:
        """Refuses a layer that stands elsewhere."""
        if self.stage not in stages:
            flat = self.stage == PLACE
            raise Refused(
                f'cannot be converted{": put a Flatten layer before it, which has no arrays" if flat else ""}'
            )

    def pool(self, kind: str, keepdims: bool) -> None:
        """Pools the maps, unless one of their layers may turn the largest value into the smallest."""
        self.require(MAPS)
        if self.layers and kind != 'avg':
            raise Refused('cannot be converted')
        self.global_pool, self.stage = kind, PLACE if keepdims else FEATURES

    def model_args(self, act_layer: str = 'relu') -> dict[str, Any]:
        """The head as arguments of `xception_hub.Xception`, whose other activations are `act_layer`."""
        args: dict[str, Any] = dict(num_classes=self.num_classes, global_pool=self.global_pool or 'avg')
        if self.drop_rate:
            args['drop_rate'] = self.drop_rate
        specs = [layer.spec for layer in self.layers]
        widths = [spec['fc'] for spec in specs[::2] if 'fc' in spec]
        if specs == [spec for width in widths for spec in ({'fc': width}, {'act': act_layer})]:
            return {**args, **({'fc_widths': widths} if widths else {})}
        return {**args, 'head_layers': specs}

    def layers_with_arrays(self) -> list[tuple[KerasLayer, FileLayer]]:
        """Pairs this network's layers that have arrays with the file's. The classifier comes last."""
        found = []
        for name, (spec, layer) in zip(head_layer_names([layer.spec for layer in self.layers]), self.layers):
            kind = 'bn' if 'bn' in spec else 'dense' if spec.get('bias', True) else 'dense without bias'
            found.append((f'head.fc_layers.{name}', kind, layer))
        found.append(('head.fc', 'dense', self.classifier))
        return [
            (KerasLayer(layer.name or layer.path, name, kind), layer)
            for name, kind, layer in found
            if layer is not None
        ]

    def of_pooled(self) -> list[str]:
        """Names of the tensors whose last axis is that of the pooled features."""
        names: list[str] = []
        for layer, _ in self.layers_with_arrays():
            if layer.kind != 'bn':
                return [*names, f'{layer.torch}.weight']
            names += [f'{layer.torch}.{array}' for array in ('weight', 'bias', 'running_mean', 'running_var')]
        return names


def read_head(after: Sequence[FileLayer], image_size: tuple[int, int] | None) -> FileHead:
    """Reads the layers that follow Xception, in the order of computation.

    Args:
        after: Xception's last layer, and those that follow it.
        image_size: Height and width of the images, if the file says it.

    Raises:
        Refused: This network's head cannot have one of them.
    """
    head = FileHead(way_out=f'Pass --output-layer {after[0].name} to convert the features alone.')
    head.maps = [map_side(side) for side in image_size] if image_size else None
    head.classifier = next((layer for layer in reversed(after) if layer.class_name == 'Dense'), None)
    for layer in after[1:]:
        place = f'{layer} {head.stage}'
        try:
            if layer.class_name in AUGMENTATIONS:
                head.ignored.append(layer.name or '')
            else:
                _read_layer(layer, HEAD, head)
        except Refused as e:
            raise Refused(f'{place} {e}.{HINTS.get(layer.class_name, "")} {head.way_out}') from e
    if head.stage == PLACE:
        raise Refused(f'the model ends in maps of one place, {after[-1].name!r}. {head.way_out}')
    if head.max_first and not any(name.endswith('.weight') for name in head.of_pooled()[-1:]):
        raise Refused(f'the model ends in maxima and means, not in means and maxima. {head.way_out}')
    if head.layers and 'drop' in head.layers[-1].spec and head.classifier is not None:
        head.drop_rate = head.layers.pop().spec['drop']
    return head


def map_side(side: int) -> int:
    """Height or width of the feature maps of images of a height or width in pixels."""
    side = (side - 3) // 2 - 1  # the stem, without padding
    return -(-side // 16)


def _global_pool(head: FileHead, layer: FileLayer, settings: Settings) -> None:
    head.pool(POOLS[layer.class_name], settings['keepdims'])


def _map_pool(head: FileHead, layer: FileLayer, settings: Settings) -> None:
    if head.layers or not head.maps or (*head.maps,) != settings['pool_size']:
        raise Refused(f'cannot be converted, for its window is not the whole map ({head.maps})')
    head.pool(MAP_POOLS[layer.class_name], True)
    head.one_size = True


def _join(head: FileHead, layer: FileLayer, settings: Settings) -> None:
    """Global poolings of the same maps, side by side."""
    kinds = [POOLS.get(pool.class_name, pool.class_name) for pool in layer.inputs]
    if sorted(kinds) != ['avg', 'max']:
        raise Refused(f'cannot be converted: it joins {", ".join(kinds)}')
    keepdims = {checked_settings(pool.class_name, pool.config, ['keepdims'])['keepdims'] for pool in layer.inputs}
    last = -1 if True in keepdims else 1
    if len(keepdims) > 1 or settings.get('axis', -1) not in (-1, last):
        raise Refused('cannot be converted: it joins them along another axis')
    head.pool(JOINS[layer.class_name], keepdims.pop())
    head.max_first = layer.class_name == 'Concatenate' and kinds[0] == 'max'


def _flatten(head: FileHead, layer: FileLayer, settings: Settings) -> None:
    if head.stage != MAPS:  # these are flat already, or have one place
        head.ignored.append(layer.name or '')
        head.stage = FEATURES if head.stage == PLACE else head.stage
    elif head.maps and not head.layers:
        head.layers.append(HiddenLayer({'flatten': head.maps}))
        head.global_pool, head.one_size = 'avg', True  # the network's default, which the layer replaces
        head.stage = FEATURES
    else:
        raise Refused('cannot be converted')


def _reshape(head: FileHead, layer: FileLayer, settings: Settings) -> None:
    ones = settings['target_shape'][:-1]
    if ones == (1, 1) and head.stage in (PLACE, FEATURES):
        head.ignored.append(layer.name or '')
        head.stage = PLACE
    elif not ones:
        _flatten(head, layer, settings)
    else:
        raise Refused(f'cannot be converted: it makes {list(settings["target_shape"])} of them')


def _dense(head: FileHead, layer: FileLayer, settings: Settings) -> None:
    head.require(FEATURES)
    units, bias = settings['units'], settings['use_bias']
    if not isinstance(units, int) or isinstance(units, bool) or not 0 < units <= MAX_UNITS:
        raise Refused(f'has {units!r} units')
    if layer is head.classifier:
        if not bias:
            raise Refused(
                "is the classifier and has no bias, which this network's has. In Keras, build it with a bias of zeros "
                'and copy the kernel'
            )
        head.num_classes, head.stage = units, LOGITS
    else:
        head.layers.append(HiddenLayer({'fc': units} if bias else {'fc': units, 'bias': False}, layer))
    _activation(head, layer, settings)


def _dropout(head: FileHead, layer: FileLayer, settings: Settings) -> None:
    rate = settings['rate']
    if not is_number(rate) or not 0 <= rate <= 1:
        raise Refused(f'has rate {rate!r}')
    if head.stage in (MAPS, LOGITS):
        head.ignored.append(layer.name or '')
    elif 0 < rate < 1:  # Keras leaves all as it is at 1, too
        head.layers.append(HiddenLayer({'drop': float(rate)}))


def _norm(head: FileHead, layer: FileLayer, settings: Settings) -> None:
    head.require(MAPS, PLACE, FEATURES)
    if head.stage == MAPS and head.layers:
        raise Refused('cannot be converted')
    eps, momentum = float(settings['epsilon']), float(layer.config.get('momentum', BN_MOMENTUM))
    if settings['axis'] not in (-1, 1 if head.stage == FEATURES else -1):
        raise Refused(f'has axis={settings["axis"]!r:.100}, which is not the last')
    if not (0 < eps < 1 and 0 <= momentum <= 1):
        raise Refused(f'has epsilon {eps} and momentum {momentum}')
    spec = {'bn': eps} if momentum == BN_MOMENTUM else {'bn': eps, 'momentum': momentum}
    head.layers.append(HiddenLayer(spec, layer))  # of means it is the same as the mean of it


def _softmax(head: FileHead, layer: FileLayer, settings: Settings) -> None:
    head.require(FEATURES, LOGITS)
    if settings['axis'] not in (-1, 1):
        raise Refused(f'has axis={settings["axis"]!r:.100}, which is not the last')
    _activation(head, layer, dict(activation='softmax'))


def _elu(head: FileHead, layer: FileLayer, settings: Settings) -> None:
    _activation(head, layer, dict(activation='elu'))


def _relu(head: FileHead, layer: FileLayer, settings: Settings) -> None:
    if settings['max_value'] not in (None, 6):
        raise Refused(f'has max_value={settings["max_value"]!r:.100}')
    _activation(head, layer, dict(activation='relu6' if settings['max_value'] else 'relu'))


def _activation(head: FileHead, layer: FileLayer, settings: Settings) -> None:
    activation = settings['activation']
    if activation == 'linear':
        return
    if head.stage == MAPS:
        if activation != 'relu' or head.layers:
            raise Refused(f'cannot be converted: it applies {activation!r}')
        head.ignored.append(layer.name or '')  # no feature is negative
    elif activation not in ACTIVATIONS:
        where = 'at the end' if head.stage == LOGITS else 'before the classifier'
        raise Refused(f'applies {activation!r:.200} {where}; those that can be converted are {", ".join(ACTIVATIONS)}')
    elif head.stage != LOGITS:
        head.layers.append(HiddenLayer({'act': ACTIVATIONS[activation]}))
    elif head.final_activation != 'linear':
        raise Refused(f'applies {activation!r} after a final {head.final_activation!r}')
    else:
        head.final_activation = activation


# Class of layer -> its reader, and the settings that it reads.
HEAD: dict[str, tuple[Callable[[FileHead, FileLayer, Settings], None], Sequence[str]]] = {
    **dict.fromkeys(POOLS, (_global_pool, ['keepdims'])),
    **dict.fromkeys(MAP_POOLS, (_map_pool, ['pool_size', 'strides'])),
    'Concatenate': (_join, ['axis']),
    'Average': (_join, []),
    'Flatten': (_flatten, []),
    'Reshape': (_reshape, ['target_shape']),
    'Dense': (_dense, ['units', 'activation', 'use_bias']),
    'Dropout': (_dropout, ['rate']),
    'BatchNormalization': (_norm, ['axis', 'epsilon']),
    'Activation': (_activation, ['activation']),
    'ReLU': (_relu, ['max_value']),
    'ELU': (_elu, []),
    'Softmax': (_softmax, ['axis']),
}


def read_bare_head(rest: Sequence[FileLayer]) -> FileHead:
    """Reads the head from weights alone, which name the layers but do not say what they do.

    It is clear only with one pooling and one Dense layer.

    Raises:
        Refused: The layers could be more than one head.
    """
    pools = [layer for layer in rest if layer.class_name in POOLS]
    dense = [layer for layer in rest if layer.class_name == 'Dense']
    neutral = [layer for layer in rest if layer.class_name in ('Dropout', *AUGMENTATIONS)]
    counts = Counter(layer.class_name for layer in rest) - Counter(OWN)
    for name in (*MODELS, *POOLS, 'InputLayer', 'Dense', 'Dropout', *AUGMENTATIONS):
        del counts[name]
    if counts or len(dense) > 1 or len(pools) > 1 or (dense and not pools):
        named = ', '.join(layer.name or layer.path for layer in rest if layer.class_name not in OWN)
        raise Refused(
            f'it holds weights alone, which do not say how its head ({named}) computes. Pass --config FILE with '
            f'what model.to_json() gives in Keras, or save the whole model and convert that.'
        )
    head = FileHead(final_activation='unknown' if dense else 'linear')
    head.global_pool = POOLS[pools[0].class_name] if pools else ''
    head.classifier = dense[0] if dense else None
    head.ignored = [layer.name or layer.path for layer in neutral]
    return head


class Step(NamedTuple):
    """What a layer does to images: x * scale + offset, for all channels or for each.

    Both come from the arrays of a Normalization, if it is one that has them.
    """

    scale: Any = 1.0
    offset: Any = 0.0
    normalization: FileLayer | None = None


def read_steps(before: Sequence[FileLayer], home: str) -> tuple[list[Step], list[str]]:
    """Reads what a model does to its images before Xception.

    Args:
        before: The layers.
        home: Layer of the outermost model that Xception is in.

    Returns:
        The steps, and the names of layers that change nothing in evaluation.

    Raises:
        Refused: A layer does something else.
    """
    steps, ignored = [], []
    for layer in before:
        try:
            if layer.class_name in (*AUGMENTATIONS, 'Dropout'):
                ignored.append(layer.name or '')
            else:
                steps.append(_read_layer(layer, STEPS))
        except Refused as e:
            raise Refused(
                f'{layer} before Xception {e}.{HINTS.get(layer.class_name, "")} Leave it out, and do what it does to '
                f'the images beforehand: in Keras, save {behind(layer, home)}, which keeps the head.'
            ) from e
    return steps, ignored


def behind(layer: FileLayer, home: str) -> str:
    """Code for what follows a layer: of the whole model, or of the one within it that holds both layer and Xception."""
    model, name = ('model', layer.top) if layer.top != home or layer.top == layer.name else (
        f'model.get_layer({home!r})', layer.name
    )  # fmt: skip
    return f'keras.Model({model}.get_layer({name!r}).output, {model}.output)'


def _rescaling(layer: FileLayer, settings: Settings) -> Step:
    return Step(finite(layer.config.get('scale', 1.0)), finite(layer.config.get('offset', 0.0)))


def _arithmetic(layer: FileLayer, settings: Settings) -> Step:
    """`x / 127.5` has its number in position 1, `255 - x` in position 0."""
    if len(layer.constants) != 1:
        raise Refused('cannot be converted')
    (position, value), operation = layer.constants[0], OPERATIONS[operation_of(layer)]
    number, first = finite(value), position == 0
    if operation == 'TrueDivide' and (first or not np.all(number)):
        raise Refused(f'divides {value!r} by the images' if first else f'divides by {value!r}')
    if operation == 'Subtract':
        return Step(-1.0, number) if first else Step(1.0, -number)
    return Step(offset=number) if operation == 'Add' else Step(1 / number if operation == 'TrueDivide' else number)


def _normalization(layer: FileLayer, settings: Settings) -> Step:
    if settings['axis'] not in (-1, None):
        raise Refused(f'has axis={settings["axis"]!r:.100}, which is not the last')
    if settings['mean'] is not None:
        return normalized(finite(layer.config['mean']), finite(layer.config.get('variance')))
    return Step(normalization=layer)


def normalized(mean: Any, variance: Any) -> Step:
    """The step of a Normalization: (x - mean) / deviation, each a number or an array [C]."""
    deviation = np.maximum(np.sqrt(variance), 1e-7)
    return Step(1 / deviation, -mean / deviation)


# As HEAD, for what stands before Xception.
STEPS: dict[str, tuple[Callable[[FileLayer, Settings], Step], Sequence[str]]] = {
    'Rescaling': (_rescaling, ['scale', 'offset']),
    'Normalization': (_normalization, ['axis', 'mean', 'variance']),
    'operation': (_arithmetic, ['function', 'node_def', 'constants']),
}


def rescaling_of(steps: Sequence[Step], channels: int) -> Rescaling:
    """All steps as one scale and one offset; numbers where all channels have the same.

    Raises:
        Refused: They are not finite, or there is neither one nor one for each channel.
    """
    scale, offset = np.ones(1), np.zeros(1)
    for step in steps:
        if not {np.size(step.scale), np.size(step.offset)} <= {1, channels}:
            raise Refused(f'it rescales {channels} channels by {step.scale} and {step.offset}.')
        scale, offset = scale * step.scale, offset * step.scale + step.offset
    scale, offset = np.broadcast_arrays(scale, offset)
    if not (np.isfinite(scale).all() and np.isfinite(offset).all() and scale.all()):
        raise Refused(f'it rescales its images by {scale} and {offset}.')
    if (scale == scale[0]).all() and (offset == offset[0]).all():
        return float(scale[0]), float(offset[0])
    return tuple(scale.tolist()), tuple(offset.tolist())


def finite(value: Any) -> Any:
    """A number, or an array [C] of one for each channel."""
    if isinstance(value, dict) and value.get('class_name') == '__numpy__':
        value = (value.get('config') or {}).get('value')
    values = np.array(value, dtype=object).ravel().tolist()
    if not (1 <= len(values) <= MAX_CHANNELS and all(map(is_number, values)) and np.isfinite(values).all()):
        raise Refused(f'needs a finite number, or one for each channel, not {value!r:.200}')
    return float(values[0]) if len(values) == 1 else np.array(values, float)
