"""This network as a Keras model: Keras' own Xception with the head that the network has, and the network's arrays.

A model directory becomes such a model and its file, whose arrays are read back and compared bit by bit.
"""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch

from .. import Xception
from ..errors import ToKerasError, listed
from ..weights.arguments import NUMERICS, VARIANTS
from ..weights.pretrained import SAME_NETWORK
from .keras_head import FINAL_ACTIVATIONS, JOINS, POOLS
from .layer_settings import ACTIVATIONS
from .names import LAYERS, to_keras
from .port import port
from .preprocessing import Rescaling
from .structure import Structure, parse

# What Keras' Xception is; a network with other arguments has no counterpart there, but for other values of some.
KERAS_ARGUMENTS = dict(NUMERICS, **VARIANTS, output_stride=32)
ANY_VALUE = ('bn_eps', 'act_layer')
SUFFIXES = ('.keras', '.weights.h5')

# timm's name of a pooling -> Keras' layers of it; several are joined by another
POOLING_LAYERS = {kind: [name] for name, kind in POOLS.items()} | {kind: list(POOLS) for kind in JOINS.values()}
JOINING_LAYERS = {kind: name for name, kind in JOINS.items()}


def import_keras() -> Any:
    """Keras, on the backend that KERAS_BACKEND names, or on torch if it names none.

    Raises:
        ImportError: Keras or the backend is not installed; the message says what to do.
    """
    os.environ.setdefault('KERAS_BACKEND', 'torch')
    try:
        import keras
    except ImportError as e:
        raise ImportError(f"{e}. Install the keras extra: pip install 'xception-hub[keras]'.") from e
    return keras


def build(
    network: Xception,
    image_size: tuple[int | None, int | None] = (None, None),
    final_activation: str = 'linear',
    rescaling: Rescaling = (1.0, 0.0),
) -> Any:
    """A model of the kind that Keras' guide to transfer learning builds: the backbone as one layer, then the head.

    Args:
        network: Whose pooling is a key of `POOLING_LAYERS`, and whose head's activations are Keras' too.
        image_size: Height and width, in pixels; None for any.
        final_activation: Applied to the logits.
        rescaling: Scale and offset of a Rescaling layer before the backbone; (1, 0) for none.

    Returns:
        A `keras.Model`.

    Raises:
        ImportError: Keras is not installed.
        ToKerasError: The network has an activation that Keras doesn't have.
    """
    keras = import_keras()
    shape = (*image_size, network.in_chans)
    x = inputs = keras.Input(shape)
    if rescaling != (1.0, 0.0):
        x = keras.layers.Rescaling(*map(_plain, rescaling))(x)
    backbone = _backbone(keras, network, shape)
    x = backbone(x, training=False)
    if not network.head.flattens:
        kind = network.head.global_pool.pool_type
        pooled = [getattr(keras.layers, name)()(x) for name in POOLING_LAYERS[kind]]
        x = getattr(keras.layers, JOINING_LAYERS[kind])()(pooled) if kind in JOINING_LAYERS else pooled[0]
    for layer in network.head.layers:
        x = _head_layer(keras, layer)(x)
    if network.head.drop.p:
        x = keras.layers.Dropout(network.head.drop.p)(x)
    if network.num_classes:
        x = keras.layers.Dense(network.num_classes, activation=final_activation)(x)
    model = keras.Model(inputs, x)
    _set_weights(model, backbone, network)
    return model


def _plain(value: Any) -> Any:
    return np.array(value) if isinstance(value, (tuple, list)) else value


def _head_layer(keras: Any, layer: dict[str, Any]) -> Any:
    if 'flatten' in layer:
        return keras.layers.Flatten()
    if 'fc' in layer:
        return keras.layers.Dense(layer['fc'], use_bias=layer.get('bias', True))
    if 'bn' in layer:
        return keras.layers.BatchNormalization(epsilon=layer['bn'], momentum=layer.get('momentum', 0.99))
    if 'drop' in layer:
        return keras.layers.Dropout(layer['drop'])
    return keras.layers.Activation(_activation('head_layers', layer['act']))


def _activation(argument: str, name: Any) -> str:
    """Keras' name of an activation of timm."""
    names = {timm_name: keras_name for keras_name, timm_name in reversed(ACTIVATIONS.items())}
    if name not in names:
        raise ToKerasError(f'{argument} has the activation {name!r}, but Keras has one of {tuple(names)}.')
    return names[name]


def _backbone(keras: Any, network: Xception, shape: tuple[int | None, ...]) -> Any:
    """Keras' own Xception, with the epsilon and the activation that the network has."""
    backbone = keras.applications.Xception(weights=None, include_top=False, input_shape=shape)
    changes = {}
    if 'bn_eps' in network.arguments:
        changes['epsilon'] = network.arguments['bn_eps']
    if 'act_layer' in network.arguments:
        changes['activation'] = _activation('act_layer', network.arguments['act_layer'])
    if changes:
        config = backbone.get_config()
        for layer in config['layers']:
            # convolutions have an activation, too, which is none
            own = {name: value for name, value in changes.items() if layer['config'].get(name, 'linear') != 'linear'}
            layer['config'].update(own)
        backbone = keras.Model.from_config(config)
    return backbone


def _set_weights(model: Any, backbone: Any, network: Xception) -> None:
    """Finds each layer as the port does, in the config that the model would be saved with."""
    structure, tensors = structure_of(model), network.state_dict()
    for name, file_layer in structure.layers.items():
        backbone.get_layer(file_layer.name).set_weights(to_keras(LAYERS[name], tensors))
    for layer, file_layer in structure.head.layers_with_arrays():
        model.get_layer(file_layer.name).set_weights(to_keras(layer, tensors))


def structure_of(model: Any) -> Structure:
    """What the port makes of a Keras model's config."""
    return parse(json.loads(model.to_json()), 'the Keras model')


def build_keras(directory: Path) -> tuple[Any, Xception]:
    """The Keras model of a directory.

    Args:
        directory: Directory with config.json and model.safetensors. The final activation and the rescaling of images
            that config.json records under `keras` are restored.

    Returns:
        A `keras.Model` (the backbone as one layer, pooling, the head's layers), and the network.

    Raises:
        ToKerasError: The network has arguments that Keras' Xception doesn't know.
        WeightsError: The directory's weights don't fit its config.
        ImportError: Keras is not installed.
    """
    import_keras()
    config = _read_config(directory)
    args, original = config.get('model_args') or {}, config.get('keras') or {}
    for name, value in KERAS_ARGUMENTS.items():
        if name not in ANY_VALUE and args.get(name, value) != value:
            raise ToKerasError(f"{directory}: {name}={args[name]!r}, but Keras' Xception has {name}={value!r}.")
    network = timm.create_model(f'local-dir:{directory}', pretrained=True)
    pool = network.head.global_pool.pool_type
    if pool not in POOLING_LAYERS:
        raise ToKerasError(f'{directory}: global_pool={pool!r}, but Keras has one of {tuple(POOLING_LAYERS)}.')
    activation = original.get('final_activation', 'linear')
    activation = 'linear' if activation == 'unknown' else activation
    if activation not in FINAL_ACTIVATIONS:
        raise ToKerasError(f'{directory}: final_activation={activation!r}; it must be one of {FINAL_ACTIVATIONS}.')
    scale, offset = original.get('rescaling', (1.0, 0.0))
    return build(network, network.pretrained_cfg['input_size'][1:], activation, (scale, offset)), network


def _read_config(directory: Path) -> dict[str, Any]:
    try:
        config = json.loads((directory / 'config.json').read_text(encoding='utf-8'))
    except (OSError, ValueError) as e:
        raise ToKerasError(f'{directory} has no config.json that can be read ({e}).') from e
    architecture = str(config.get('architecture'))
    if architecture.removesuffix(SAME_NETWORK) != 'xception_paper':
        raise ToKerasError(f"{directory}: its architecture is {architecture!r}, not 'xception_paper'.")
    return config


def write_keras(model: Any, network: Xception, output: Path) -> int:
    """Saves the model, reads the file back, compares every tensor bit by bit, and only then puts it in its place.

    Returns:
        How many tensors were compared.

    Raises:
        ToKerasError: The file's name has another ending, or Keras wrote something else than the network.
    """
    suffix = next((suffix for suffix in SUFFIXES if output.name.endswith(suffix)), None)
    if suffix is None:
        raise ToKerasError(f'{output} must end in one of {SUFFIXES}.')
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent) as folder:
        file, config = Path(folder, f'model{suffix}'), Path(folder, 'config.json')
        if suffix == '.keras':
            model.save(file)
            written = port(file).tensors
        else:
            model.save_weights(file)
            config.write_text(model.to_json(), encoding='utf-8')
            written = port(file, config).tensors
        expected = {name: t for name, t in network.state_dict().items() if not name.endswith('num_batches_tracked')}
        different = [name for name, t in expected.items() if name not in written or not torch.equal(written[name], t)]
        if different or len(written) != len(expected):
            raise ToKerasError(f'{output} was not written: Keras saved something else for {listed(different)}.')
        os.replace(file, output)
    return len(expected)
