"""The settings of Keras' layers that change what is computed, in one of the several notations that Keras has had."""

import json
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

from ..errors import KerasFileError

# Keras' activations -> timm's of the same function.
SAME_NAME = ('relu', 'relu6', 'elu', 'selu', 'gelu', 'tanh', 'sigmoid', 'silu', 'mish', 'softmax')
ACTIVATIONS = {**{name: name for name in SAME_NAME}, 'swish': 'silu'}

# fmt: off
MAPS: dict[str, Any] = dict(data_format='channels_last')
CONV = dict(
    MAPS, filters=None, kernel_size=None, strides=(1, 1), padding='valid', dilation_rate=(1, 1), groups=1,
    activation='linear', use_bias=True,
)
MAP_POOL = dict(MAPS, pool_size=(2, 2), strides=None, padding='valid')
# Class -> its settings, with Keras' defaults, which hold where a config leaves one out.
_OWN: dict[str, dict[str, Any]] = {
    'Conv2D': CONV,
    'SeparableConv2D': dict(CONV, depth_multiplier=1),
    'BatchNormalization': dict(
        axis=-1, epsilon=1e-3, center=True, scale=True, renorm=False, virtual_batch_size=None, adjustment=None,
    ),
    'Activation': dict(activation='linear'),
    'ReLU': dict(max_value=None, negative_slope=0, threshold=0),
    'ELU': dict(alpha=1),
    'Softmax': dict(axis=-1),
    'MaxPooling2D': MAP_POOL,
    'AveragePooling2D': MAP_POOL,
    'GlobalAveragePooling2D': dict(MAPS, keepdims=False),
    'GlobalMaxPooling2D': dict(MAPS, keepdims=False),
    'Add': {},
    'Average': {},
    'Concatenate': dict(axis=-1),
    'Flatten': MAPS,
    'Reshape': dict(target_shape=None),
    'Dense': dict(units=None, activation='linear', use_bias=True),
    'Dropout': dict(rate=None),
    'Rescaling': dict(scale=None, offset=0),
    'Normalization': dict(axis=-1, mean=None, variance=None, invert=False),
    'XceptionBackbone': dict(MAPS, stackwise_conv_filters=None, stackwise_pooling=None),
    'operation': dict(function=None, node_def=None, constants=None),
}
# fmt: on
SETTINGS = {name: dict(settings, dtype='float') for name, settings in _OWN.items()}

# Settings that change nothing that is computed in evaluation: names, initial values, penalties, chance.
NEUTRAL = re.compile(
    r'name|trainable|momentum|synchronized|fused|renorm_(clipping|momentum)|lora_(rank|alpha)|batch_(input_)?shape|'
    r'input_dim|image_shape|seed|noise_shape|\w+_(initializer|regularizer|constraint)'
)
FLOATS = re.compile(r'(mixed_)?b?float(16|32|64)')
BY_DEFAULT = ('activation', 'data_format', 'negative_slope', 'threshold')  # None stands for the default


WAY_OUT = (
    "Only Keras' own Xception can be converted. To train on from this one's arrays, which compute something else "
    'there: in Keras, x = keras.applications.Xception(weights=None, include_top=False); '
    "x.set_weights(m.get_weights()); x.save('x.keras'), where m is the model up to its last feature maps."
)
QUANTIZED = (
    "If quantize() made it, the layer rounds its inputs, which this network's never does: convert the model as it was "
    'before, or give it floating point numbers by the lines under "Quantized" in docs/port_your_keras_model.md'
)


class Refused(ValueError):
    """What of a file cannot be converted. Who reads the layers adds their names, and `refusals_of` that of the file."""


@contextmanager
def refusals_of(source: object) -> Iterator[None]:
    """Makes a KerasFileError of what is refused, which names the source."""
    try:
        yield
    except Refused as e:
        raise KerasFileError(f'{source}: {e}') from e


def read_settings(class_name: str, config: dict[str, Any]) -> dict[str, Any]:
    """All settings of `SETTINGS` in one notation; those that a config leaves out are Keras' defaults.

    A setting that is not known may be null, with which each version of Keras writes that a feature is not used.

    Raises:
        Refused: The config has a setting that is not known, with another value.
    """
    known = SETTINGS[class_name]
    for name, value in config.items():
        if name not in known and not NEUTRAL.fullmatch(name) and value is not None:
            way_out = f'. {QUANTIZED}' if name == 'quantization_config' else ', which is not known to change nothing'
            raise Refused(f'has {name}={value!r:.100}{way_out}')
    found = {name: _read(name, config[name]) if name in config else default for name, default in known.items()}
    return found | {name: known[name] for name in BY_DEFAULT if name in known and found[name] is None}


def checked_settings(class_name: str, config: dict[str, Any], free: Collection[str]) -> dict[str, Any]:
    """The settings of a layer, of which all but some have Keras' defaults.

    Raises:
        Refused: Another one has another value.
    """
    found = read_settings(class_name, config)
    for name, value in found.items():
        if name == 'dtype' and value != 'float':
            raise Refused(f'has dtype {value!r:.100}. {QUANTIZED}')
        if name not in free and value != SETTINGS[class_name][name]:
            raise Refused(f'has {name}={value!r:.100}')
    return found


def _read(name: str, value: Any) -> Any:
    if name == 'dtype':
        return _dtype(value)
    if isinstance(value, dict):
        inner = value.get('config') if value.get('class_name') == 'function' else None
        value = inner if isinstance(inner, str) else json.dumps(value)
    if name == 'axis':
        value = value[0] if isinstance(value, list) and len(value) == 1 else value
        return -1 if value == 3 else value
    if name in ('kernel_size', 'strides', 'dilation_rate', 'pool_size') and is_number(value):
        return (value, value)
    if name == 'padding':
        return str(value).lower()
    return _as_tuples(value)


def _dtype(value: Any) -> str:
    """'float' for the names and the policies of all floating point numbers. The policy of `quantize()` has a mode."""
    if isinstance(value, dict):
        config = value.get('config') or {}
        is_plain = value.get('class_name') in ('DTypePolicy', 'Policy', 'PolicyV1') and 'mode' not in config
        value = config.get('name') if is_plain else config.get('mode', json.dumps(value))
    return 'float' if value is None or FLOATS.fullmatch(str(value)) else str(value)


def _as_tuples(value: Any) -> Any:
    return tuple(map(_as_tuples, value)) if isinstance(value, list) else value


def is_number(value: Any) -> bool:
    """Whether a value from JSON is a number; true and false are not."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)
