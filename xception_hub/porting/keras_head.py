"""The layers around Xception in a Keras model: rescaling before it, and a head after it that this network can have."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import KerasFileError
from ..head import head_layer_names
from .layouts import FileLayer
from .names import AUGMENTATIONS, KerasLayer

POOLS = {'GlobalAveragePooling2D': 'avg', 'GlobalMaxPooling2D': 'max'}
FINAL_ACTIVATIONS = ('linear', 'softmax', 'sigmoid')
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
}
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
}
# Classes that may stand around Xception; the readers below check where
KNOWN_CLASSES = (
    *POOLS,
    *AUGMENTATIONS,
    'InputLayer',
    'Rescaling',
    'TFOpLambda',
    'TrueDivide',
    'Divide',
    'Subtract',
    'Multiply',
    'Dense',
    'Dropout',
    'Flatten',
    'Softmax',
)
MAX_UNITS = 1_000_000  # outputs; the paper's largest head has 17,000
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
    """

    layers: list[HiddenLayer] = field(default_factory=list)
    classifier: FileLayer | None = None
    num_classes: int = 0
    global_pool: str = ''
    drop_rate: float = 0.0
    final_activation: str = 'linear'
    ignored: list[str] = field(default_factory=list)

    def model_args(self) -> dict[str, Any]:
        """The head as arguments of `xception_hub.Xception`."""
        args: dict[str, Any] = dict(num_classes=self.num_classes, global_pool=self.global_pool or 'avg')
        if self.drop_rate:
            args['drop_rate'] = self.drop_rate
        specs = [layer.spec for layer in self.layers]
        widths = [spec['fc'] for spec in specs[::2] if 'fc' in spec]
        if specs == [spec for width in widths for spec in ({'fc': width}, {'act': 'relu'})]:
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


def read_head(after: Sequence[FileLayer], source: object, way_out: str) -> FileHead:
    """Reads the layers that follow Xception, in the order of computation.

    Raises:
        KerasFileError: This network's head cannot have one of them.
    """
    head = FileHead()
    dense = [i for i, layer in enumerate(after) if layer.class_name == 'Dense']
    last_dense = dense[-1] if dense else len(after)
    for i, layer in enumerate(after):
        config, place = layer.config, f'{source}: the {layer.class_name} layer {layer.name!r}'
        if layer.class_name in AUGMENTATIONS:
            head.ignored.append(layer.name or '')
        elif layer.class_name in POOLS and not head.global_pool and not config.get('keepdims'):
            head.global_pool = POOLS[layer.class_name]
        elif layer.class_name == 'Flatten' and head.global_pool:
            head.ignored.append(layer.name or '')  # pooled features are flat already
        elif layer.class_name == 'Flatten':
            raise KerasFileError(
                f"{place} makes the head depend on the place in the image and on its size, which this network's head "
                f'does not. {way_out}'
            )
        elif not head.global_pool:
            raise KerasFileError(f'{place} cannot be converted. {way_out}')
        elif i == last_dense:
            _read_classifier(head, layer, place)
        elif layer.class_name in ('Activation', 'ReLU', 'Softmax') and i > last_dense:
            _read_final_activation(head, _activation(layer, place), place)
        elif i > last_dense and layer.class_name != 'Dropout':
            raise KerasFileError(f'{place} follows the classifier, and cannot be converted. {way_out}')
        else:
            head.layers += _hidden(layer, place, way_out)
    if head.layers and 'drop' in head.layers[-1].spec and head.classifier is not None:
        head.drop_rate = head.layers.pop().spec['drop']
    return head


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


def _hidden(layer: FileLayer, place: str, way_out: str) -> list[HiddenLayer]:
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
        if not 0 <= rate < 1:
            raise KerasFileError(f'{place} has rate {rate}.')
        return [HiddenLayer({'drop': rate})] if rate else []
    if layer.class_name == 'BatchNormalization':
        return [HiddenLayer(_norm(config, place), layer)]
    raise KerasFileError(f'{place} cannot be converted. {way_out}')


def _norm(config: dict[str, Any], place: str) -> dict[str, Any]:
    eps, momentum = float(config.get('epsilon', 1e-3)), float(config.get('momentum', BN_MOMENTUM))
    whole = config.get('center', True) and config.get('scale', True)
    if not whole or config.get('axis', -1) not in (-1, 1, [-1], [1]):
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


def read_rescaling(before: Sequence[FileLayer], source: object) -> tuple[tuple[float, float], bool, list[str]]:
    """Reads what a model does to its images before Xception.

    Returns:
        Scale and offset, whether any layer rescales, and the names of training-only layers.

    Raises:
        KerasFileError: A layer does something else.
    """
    scale, offset, rescales, ignored = 1.0, 0.0, False, []
    for layer in before:
        operation = OPERATIONS.get(_operation(layer))
        if layer.class_name in AUGMENTATIONS:
            ignored.append(layer.name or '')
            continue
        if layer.class_name == 'Rescaling':
            factor, shift = _number(layer, 'scale', source), _number(layer, 'offset', source)
        elif operation and len(layer.constants) == 1:
            value = layer.constants[0]
            factor, shift = {
                'divide': (1 / value if value else math.nan, 0.0),
                'multiply': (value, 0.0),
                'subtract': (1.0, -value),
                'add': (1.0, value),
            }[operation]
        else:
            raise KerasFileError(
                f'{source}: the {layer.class_name} layer {layer.name!r} before Xception cannot be converted. '
                f'Rescaling, arithmetic with one number, and random augmentation can: rebuild the model without it, '
                f'and do what it does to the images beforehand.'
            )
        scale, offset, rescales = scale * factor, offset * factor + shift, True
    if not (math.isfinite(scale) and math.isfinite(offset) and scale):
        raise KerasFileError(f'{source}: it rescales its images by {scale} and {offset}.')
    return (scale, offset), rescales, ignored


def _operation(layer: FileLayer) -> str:
    return str(layer.config.get('function')) if layer.class_name == 'TFOpLambda' else layer.class_name


def is_number(value: Any) -> bool:
    """Whether a value from JSON is a number; true and false are not."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _number(layer: FileLayer, name: str, source: object) -> float:
    value = layer.config.get(name, 0.0)
    if not is_number(value):
        raise KerasFileError(f'{source}: the Rescaling layer {layer.name!r} has {name} {value!r}, not one number.')
    return float(value)
