"""A model directory becomes a Keras file, whose arrays are read back and compared bit by bit."""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import timm
import torch

from ..errors import ToKerasError, listed
from ..network import Xception
from ..weights.arguments import NUMERICS, VARIANTS
from ..weights.pretrained import SAME_NETWORK
from . import keras_model
from .array_places import layout_of
from .formats import open_source
from .keras_head import FINAL_ACTIVATIONS
from .keras_model import POOLING_LAYERS, import_keras, structure_of
from .layer_settings import refusals_of
from .port import port, read_layers
from .preprocessing import Rescaling

# What Keras' Xception is; a network with other arguments has no counterpart there, but for other values of some.
KERAS_ARGUMENTS = dict(NUMERICS, **VARIANTS, output_stride=32)
ANY_VALUE = ('bn_eps', 'act_layer')
SUFFIXES = ('.keras', '.weights.h5')


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
    size = network.pretrained_cfg['input_size'][1:]
    try:
        model = keras_model.build(network, tuple(size), activation, _rescaling(original.get('rescaling', (1.0, 0.0))))
    except ValueError as e:
        raise ToKerasError(f'{directory}: {e}') from e
    return model, network


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
        file = Path(folder) / f'model{suffix}'
        if suffix == '.keras':
            model.save(file)
            written = port(file).tensors
        else:
            model.save_weights(file)
            with open_source(file) as opened, refusals_of(file):
                written, _, _ = read_layers(structure_of(model), layout_of(opened.weights))
        expected = {name: t for name, t in network.state_dict().items() if not name.endswith('num_batches_tracked')}
        different = [name for name, t in expected.items() if name not in written or not torch.equal(written[name], t)]
        if different or len(written) != len(expected):
            raise ToKerasError(f'{output} was not written: Keras saved something else for {listed(different)}.')
        os.replace(file, output)
    return len(expected)


def _rescaling(recorded: Any) -> Rescaling:
    """Scale and offset from JSON, each a number or a list of one for each channel."""
    scale, offset = (tuple(value) if isinstance(value, list) else value for value in recorded)
    return scale, offset
