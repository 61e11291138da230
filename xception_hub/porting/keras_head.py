"""The layers around Xception in a Keras model: rescaling before it, and a head after it that this network can have."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import KerasFileError
from ..head import head_layer_names
from .layouts import FileLayer
from .names import AUGMENTATIONS, KerasLayer
from .preprocessing import Rescaling

POOLS = {'GlobalAveragePooling2D': 'avg', 'GlobalMaxPooling2D': 'max'}
MAP_POOLS = {'AveragePooling2D': 'avg', 'MaxPooling2D': 'max'}
# Keras' activations -> timm's of the same function
ACTIVATIONS = {
    'relu': 'relu',
    'relu6': 'relu6',
    'elu': 'elu',
    'selu': 'selu',
    'gelu': 'gelu',
    'tanh': 'tanh',
    'sigmoid': 'sigmoid',
    'silu': 'silu',
    'swish': 'silu',
    'mish': 'mish',
    'softmax': 'softmax',
}
FINAL_ACTIVATIONS = ('linear', *ACTIVATIONS)
WAY_OUT = (
    'The features alone can be converted: in Keras, save keras.Model(m.input, '
    "m.get_layer('block14_sepconv2_act').output), where m is the model, or within it the layer that is Xception."
)
# Operations that `x / 127.5 - 1` leaves in a config: Keras 3's classes, and the functions of tf_keras' TFOpLambda
OPERATIONS = {
    'TrueDivide': 'divide',
    'Divide': 'divide',
    'math.truediv': 'divide',
    'math.divide': 'divide',
    'Subtract': 'subtract',
    'math.subtract': 'subtract',
    'Add': 'add',
    '__operators__.add': 'add',
    'math.add': 'add',
    'Multiply': 'multiply',
    'math.multiply': 'multiply',
    # TensorFlow before 2.4
    'RealDiv': 'divide',
    'Sub': 'subtract',
    'AddV2': 'add',
    'Mul': 'multiply',
}
HINTS = {'Lambda': ' It holds code, which is never run.'}
MAX_UNITS = 1_000_000  # outputs; the paper's largest head has 17,000
MAX_CHANNELS = 1024
BN_MOMENTUM = 0.99  # Keras' default


@dataclass
class HiddenLayer:
    """One layer between pooling and classifier.

    Attributes:
        spec: The layer as `xception_hub.Xception` takes it in `head_layers`.
        file_layer: Where its arrays are; None for a layer without arrays.
    """

    spec: dict[str, Any]
    file_layer: FileLayer | None = None


@dataclass
class FileHead:
    """The head of a Keras model: all that follows the feature maps.

    Attributes:
        layers: Layers between pooling and classifier, without the dropout before the classifier.
        classifier: The last Dense layer; None if there is none.
        num_classes: Number of the classifier's outputs, or 0.
        global_pool: 'avg' or 'max'; '' if the model ends in feature maps.
        drop_rate: Rate of the dropout before the classifier.
        final_activation: Keras' activation of the logits: 'linear', 'softmax' or 'sigmoid'; 'unknown' for weights
            alone.
        ignored: Names of training-only layers.
        one_size: Whether Keras' head takes maps of one size: it flattens them, or pools with a window of their size.
    """

    layers: list[HiddenLayer] = field(default_factory=list)
    classifier: FileLayer | None = None
    num_classes: int = 0
    global_pool: str = ''
    drop_rate: float = 0.0
    final_activation: str = 'linear'
    ignored: list[str] = field(default_factory=list)
    one_size: bool = False

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
        for name, layer in zip(head_layer_names([layer.spec for layer in self.layers]), self.layers):
            if layer.file_layer is not None:
                kind = 'bn' if 'bn' in layer.spec else 'dense' if layer.spec.get('bias', True) else 'dense without bias'
                found.append((_named(layer.file_layer, f'head.fc_layers.{name}', kind), layer.file_layer))
        if self.classifier is not None:
            found.append((_named(self.classifier, 'head.fc', 'dense'), self.classifier))
        return found


def _named(file_layer: FileLayer, torch_name: str, kind: str) -> KerasLayer:
    name = file_layer.name or file_layer.path
    return KerasLayer(name, torch_name, kind, name)


def read_head(after: Sequence[FileLayer], image_size: tuple[int, int] | None, source: object) -> FileHead:
    """Reads the layers that follow Xception, in the order of computation.

    Args:
        after: The layers.
        image_size: Height and width of the images, if the file says it.
        source: Name of the source in errors.

    Raises:
        KerasFileError: This network's head cannot have one of them.
    """
    head = FileHead()
    dense = [i for i, layer in enumerate(after) if layer.class_name == 'Dense']
    last_dense = dense[-1] if dense else len(after)
    whole_map = ''  # a pooling that leaves one place, whose maps have to be flattened
    for i, layer in enumerate(after):
        place = f'{source}: the {layer.class_name} layer {layer.name!r}'
        if layer.class_name in AUGMENTATIONS:
            head.ignored.append(layer.name or '')
        elif layer.class_name == 'Flatten' and head.global_pool:
            head.ignored.append(layer.name or '')  # pooled features are flat already
            whole_map = ''
        elif whole_map:
            raise KerasFileError(
                f'{place} takes the map of one place that {whole_map!r} leaves. Put a Flatten layer between them; it '
                f'has no arrays. {WAY_OUT}'
            )
        elif not head.global_pool:
            whole_map = _read_before_pooling(head, layer, image_size, f'{place} before the pooling')
        elif i == last_dense:
            _read_classifier(head, layer, place)
        elif layer.class_name in ('Activation', 'ReLU', 'Softmax') and i > last_dense:
            _read_final_activation(head, _activation(layer, place), place)
        elif i > last_dense and layer.class_name != 'Dropout':
            raise KerasFileError(f'{place} follows the classifier, and cannot be converted. {WAY_OUT}')
        else:
            head.layers += _hidden(layer, f'{place} in the head')
    if whole_map:
        raise KerasFileError(f'{source}: the model ends in the map of one place that {whole_map!r} leaves. {WAY_OUT}')
    if head.layers and 'drop' in head.layers[-1].spec and head.classifier is not None:
        head.drop_rate = head.layers.pop().spec['drop']
    return head


def _read_before_pooling(head: FileHead, layer: FileLayer, image_size: tuple[int, int] | None, place: str) -> str:
    """Reads a layer that takes feature maps; returns its name if it leaves maps of one place."""
    config, class_name = layer.config, layer.class_name
    maps = [map_side(side) for side in image_size] if image_size else None
    norms = bool(head.layers)
    if config.get('data_format', 'channels_last') != 'channels_last':
        raise KerasFileError(f'{place} is {config["data_format"]!r}, and its maps are channels_last. {WAY_OUT}')
    if class_name in POOLS and not config.get('keepdims') and not (norms and POOLS[class_name] == 'max'):
        head.global_pool = POOLS[class_name]
        return ''
    whole = maps == _pair(config.get('pool_size')) and config.get('padding', 'valid') == 'valid'
    if class_name in MAP_POOLS and whole and not norms:
        head.global_pool, head.one_size = MAP_POOLS[class_name], True
        return layer.name or class_name
    if class_name == 'Flatten' and maps and not norms:
        head.layers.append(HiddenLayer({'flatten': maps}))
        head.global_pool, head.one_size = 'avg', True  # the network's default, which the layer replaces
        return ''
    if class_name == 'Dropout' or (
        class_name in ('Activation', 'ReLU') and not norms and _keeps_positive(layer, place)
    ):
        head.ignored.append(layer.name or '')  # does nothing in evaluation, or to what is not negative
        return ''
    if class_name == 'BatchNormalization' and not norms:
        head.layers.append(HiddenLayer(_norm(config, place), layer))  # of means the same as the mean of it
        return ''
    raise KerasFileError(f'{place} cannot be converted.{HINTS.get(layer.class_name, "")} {WAY_OUT}')


def map_side(side: int) -> int:
    """Height or width of the feature maps of images of a height or width in pixels."""
    side = (side - 3) // 2 - 1  # the stem, without padding
    return -(-side // 16)


def _pair(value: Any) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value or ())


def _keeps_positive(layer: FileLayer, place: str) -> bool:
    return _activation(layer, place) in ('relu', 'linear')


def _read_classifier(head: FileHead, layer: FileLayer, place: str) -> None:
    if not layer.config.get('use_bias', True):
        raise KerasFileError(
            f"{place} is the classifier and has no bias, which this network's has. "
            f'In Keras, build it with a bias of zeros and copy the kernel.'
        )
    head.classifier, head.num_classes = layer, _units(layer, place)
    _read_final_activation(head, _activation(layer, place), place)


def _read_final_activation(head: FileHead, activation: str, place: str) -> None:
    if activation == 'linear':
        return
    if head.final_activation != 'linear':
        raise KerasFileError(f'{place} applies {activation!r} after a final {head.final_activation!r}.')
    if activation not in FINAL_ACTIVATIONS:
        raise KerasFileError(f'{place} ends the model in {activation!r}, not in one of {FINAL_ACTIVATIONS}.')
    head.final_activation = activation


def _hidden(layer: FileLayer, place: str) -> list[HiddenLayer]:
    """Reads a layer between pooling and classifier. A Dense layer may come with an activation."""
    config = layer.config
    if layer.class_name == 'Dense':
        spec: dict[str, Any] = {'fc': _units(layer, place)}
        if not config.get('use_bias', True):
            spec['bias'] = False
        return [HiddenLayer(spec, layer), *_act(_activation(layer, place), place)]
    if layer.class_name in ('Activation', 'ReLU'):
        return _act(_activation(layer, place), place)
    if layer.class_name == 'Dropout':
        rate = float(config['rate'])
        if not 0 <= rate <= 1:
            raise KerasFileError(f'{place} has rate {rate}.')
        return [HiddenLayer({'drop': rate})] if 0 < rate < 1 else []  # Keras leaves all as it is at 1, too
    if layer.class_name == 'BatchNormalization':
        return [HiddenLayer(_norm(config, place), layer)]
    raise KerasFileError(f'{place} cannot be converted.{HINTS.get(layer.class_name, "")} {WAY_OUT}')


def _norm(config: dict[str, Any], place: str) -> dict[str, Any]:
    eps, momentum = float(config.get('epsilon', 1e-3)), float(config.get('momentum', BN_MOMENTUM))
    whole = config.get('center', True) and config.get('scale', True)
    if not whole or config.get('axis', -1) not in (-1, 1, 3, [-1], [1], [3]):
        raise KerasFileError(f'{place} has no beta or no gamma, or another axis than the last.')
    if not (0 < eps < 1 and 0 <= momentum <= 1):
        raise KerasFileError(f'{place} has epsilon {eps} and momentum {momentum}.')
    return {'bn': eps} if momentum == BN_MOMENTUM else {'bn': eps, 'momentum': momentum}


def _act(activation: str, place: str) -> list[HiddenLayer]:
    if activation == 'linear':
        return []
    if activation not in ACTIVATIONS:
        raise KerasFileError(
            f'{place} applies {activation!r} before the classifier; those that can be converted are '
            f'{", ".join(ACTIVATIONS)}.'
        )
    return [HiddenLayer({'act': ACTIVATIONS[activation]})]


def _activation(layer: FileLayer, place: str) -> str:
    """Keras' name of the activation in a layer."""
    if layer.class_name == 'Softmax':
        return 'softmax'
    if layer.class_name == 'ReLU':
        config = layer.config
        if config.get('max_value') is not None or config.get('negative_slope') or config.get('threshold'):
            raise KerasFileError(f'{place} is not the plain rectifier.')
        return 'relu'
    activation = layer.config.get('activation') or 'linear'
    if isinstance(activation, dict) and activation.get('class_name') == 'function':
        activation = activation.get('config')
    if not isinstance(activation, str):
        raise KerasFileError(f'{place} has an activation of its own, which cannot be converted: {activation!r:.200}.')
    return activation


def _units(layer: FileLayer, place: str) -> int:
    units = layer.config['units']
    if not isinstance(units, int) or isinstance(units, bool) or not 0 < units <= MAX_UNITS:
        raise KerasFileError(f'{place} has {units!r} units.')
    return units


def read_bare_head(rest: Sequence[FileLayer], source: object) -> FileHead:
    """Reads the head from weights alone, which name the layers but do not say what they do.

    It is clear only with one pooling and one Dense layer.

    Raises:
        KerasFileError: The layers could be more than one head.
    """
    pools = [layer for layer in rest if layer.class_name in POOLS]
    dense = [layer for layer in rest if layer.class_name == 'Dense']
    others = [layer for layer in rest if layer.class_name not in (*POOLS, 'Dense', 'Dropout', *AUGMENTATIONS)]
    if others or len(dense) > 1 or len(pools) > 1 or (dense and not pools):
        names = ', '.join(layer.name or layer.path for layer in rest)
        raise KerasFileError(
            f'{source} holds weights alone, which do not say how its head ({names}) computes. Pass --config FILE with '
            f'what model.to_json() gives in Keras, or save the whole model and convert that.'
        )
    head = FileHead(final_activation='unknown' if dense else 'linear')
    head.global_pool = POOLS[pools[0].class_name] if pools else ''
    head.classifier = dense[0] if dense else None
    head.ignored = [layer.name or layer.path for layer in rest if layer.class_name in ('Dropout', *AUGMENTATIONS)]
    return head


@dataclass
class Step:
    """What a layer does to images: x * scale + offset, for all channels or for each.

    Attributes:
        scale: Factor.
        offset: Summand.
        file_layer: A Normalization, whose arrays say both.
    """

    scale: Any = 1.0
    offset: Any = 0.0
    file_layer: FileLayer | None = None


def read_steps(before: Sequence[FileLayer], home: str, source: object) -> tuple[list[Step], list[str]]:
    """Reads what a model does to its images before Xception.

    Args:
        before: The layers.
        home: Layer of the outermost model that Xception is in.
        source: Name of the source in errors.

    Returns:
        The steps, and the names of training-only layers.

    Raises:
        KerasFileError: A layer does something else.
    """
    steps, ignored = [], []
    for layer in before:
        place = f'{source}: the {layer.class_name} layer {layer.name!r} before Xception'
        operation = OPERATIONS.get(operation_of(layer))
        if layer.class_name in AUGMENTATIONS:
            ignored.append(layer.name or '')
        elif layer.class_name == 'Rescaling':
            steps.append(Step(_number(layer, 'scale', 1.0, place), _number(layer, 'offset', 0.0, place)))
        elif layer.class_name == 'Normalization':
            steps.append(_normalization(layer, place))
        elif operation and len(layer.constants) == 1:
            steps.append(_arithmetic(operation, *layer.constants[0], place))
        else:
            raise KerasFileError(
                f'{place} cannot be converted.{HINTS.get(layer.class_name, "")} Leave it out, and do what it does to '
                f'the images beforehand: in Keras, save {_behind(layer, home)}, which keeps the head.'
            )
    return steps, ignored


def _behind(layer: FileLayer, home: str) -> str:
    """Code for what follows a layer: of the whole model, or of the one within it that holds both layer and Xception."""
    model, name = ('model', layer.top) if layer.top != home or layer.top == layer.name else (
        f'model.get_layer({home!r})', layer.name
    )  # fmt: skip
    return f'keras.Model({model}.get_layer({name!r}).output, {model}.output)'


def _arithmetic(operation: str, position: int, value: Any, place: str) -> Step:
    """`x / 127.5` has its number in position 1, `255 - x` in position 0."""
    number = _finite(value, place)
    first = position == 0
    if operation == 'divide' and first:
        raise KerasFileError(f'{place} divides {value!r} by the images, which no scale and offset can do.')
    if operation == 'divide':
        if not np.all(number):
            raise KerasFileError(f'{place} divides by {value!r}.')
        return Step(1 / number)
    if operation == 'multiply':
        return Step(number)
    return Step(offset=number) if operation == 'add' else Step(-1.0, number) if first else Step(1.0, -number)


def _normalization(layer: FileLayer, place: str) -> Step:
    config = layer.config
    axis = config.get('axis', -1)
    if config.get('invert') or axis not in (-1, 3, [-1], [3], None):
        raise KerasFileError(f'{place} is inverted, or has another axis than the last.')
    if config.get('mean') is not None:
        return normalized(_finite(config['mean'], place), _finite(config.get('variance'), place))
    return Step(file_layer=layer)


def normalized(mean: Any, variance: Any) -> Step:
    """The step of a Normalization: (x - mean) / deviation."""
    deviation = np.maximum(np.sqrt(variance), 1e-7)
    return Step(1 / deviation, -mean / deviation)


def rescaling_of(steps: Sequence[Step], channels: int, source: object) -> Rescaling:
    """All steps as one scale and one offset; numbers where all channels have the same.

    Raises:
        KerasFileError: They are not finite, or there is neither one nor one for each channel.
    """
    scale, offset = np.ones(1), np.zeros(1)
    for step in steps:
        if not {np.size(step.scale), np.size(step.offset)} <= {1, channels}:
            raise KerasFileError(f'{source}: it rescales {channels} channels by {step.scale} and {step.offset}.')
        scale, offset = scale * step.scale, offset * step.scale + step.offset
    scale, offset = np.broadcast_arrays(scale, offset)
    if not (np.isfinite(scale).all() and np.isfinite(offset).all() and scale.all()):
        raise KerasFileError(f'{source}: it rescales its images by {scale} and {offset}.')
    if (scale == scale[0]).all() and (offset == offset[0]).all():
        return float(scale[0]), float(offset[0])
    return tuple(scale.tolist()), tuple(offset.tolist())


def operation_of(layer: FileLayer) -> str:
    """What an operation is called that is a layer."""
    if layer.class_name == 'TFOpLambda':
        return str(layer.config.get('function'))
    if layer.class_name == 'TensorFlowOpLayer':
        node = layer.config.get('node_def')
        node = json.loads(node) if isinstance(node, str) else node
        return str(node.get('op')) if isinstance(node, dict) else ''
    return layer.class_name


def is_number(value: Any) -> bool:
    """Whether a value from JSON is a number; true and false are not."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _number(layer: FileLayer, name: str, default: float, place: str) -> Any:
    return _finite(layer.config.get(name, default), f'{place} has {name} {layer.config.get(name)!r:.200}:')


def _finite(value: Any, place: str) -> Any:
    """A number, or an array [C] of one for each channel."""
    if isinstance(value, dict) and value.get('class_name') == '__numpy__':
        value = (value.get('config') or {}).get('value')
    values = np.array(value, dtype=object).ravel().tolist()
    if not (1 <= len(values) <= MAX_CHANNELS and all(map(is_number, values)) and np.isfinite(values).all()):
        raise KerasFileError(f'{place} needs a finite number, or one for each channel, not {value!r:.200}.')
    return float(values[0]) if len(values) == 1 else np.array(values, float)
