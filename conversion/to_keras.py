"""python -m conversion.to_keras DIR -o model.keras

Builds the Keras model of a directory that timm loads, and writes it as a Keras 3 archive (.keras) or its weights alone
(.weights.h5). The arrays are read back and compared bit by bit before the file takes its place.
"""
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import h5py
import timm
import torch
from cyclopts import App, Parameter

import xception_hub  # noqa: F401  registers the model
from xception_hub import WeightsError, Xception

from .hdf5 import KerasFileError, WeightFile
from .names import LAYERS, to_keras
from .port import head_layers, port, read_layers
from .reference import import_keras
from .structure import FINAL_ACTIVATIONS, Structure, parse

__all__ = ['ToKerasError', 'build', 'write']

# What Keras' Xception is; a network with other arguments has no counterpart there.
KERAS_ARGUMENTS = dict(bn_eps=1e-3, pool_padding='same', act_layer='relu', output_stride=32)
POOLING_LAYERS = {'avg': 'GlobalAveragePooling2D', 'max': 'GlobalMaxPooling2D'}
SUFFIXES = ('.keras', '.weights.h5')

app = App(name='python -m conversion.to_keras', help=__doc__, version_flags=[])


class ToKerasError(ValueError):
    """The network or the file name has no counterpart in Keras; the message says which argument, value and choices."""


def build(directory: Path) -> tuple[Any, Xception]:
    """The Keras model of a directory, of the kind that Keras' guide to transfer learning builds.

    Args:
        directory: With config.json and model.safetensors; config.json's `keras.final_activation` is restored.

    Returns:
        A `keras.Model` (the backbone as one layer, pooling, dense layers, dropout before the last), and the network.

    Raises:
        ToKerasError: The network has arguments that Keras' Xception doesn't know.
        WeightsError: The directory's weights don't fit its config.
        ImportError: Keras is not installed.
    """
    keras = import_keras()
    config = _read_config(directory)
    args = config.get('model_args') or {}
    for name, value in KERAS_ARGUMENTS.items():
        if args.get(name, value) != value:
            raise ToKerasError(f'{directory}: {name}={args[name]!r}, but Keras\' Xception has {name}={value!r}.')
    network = timm.create_model(f'local-dir:{directory}', pretrained=True)
    pool = network.head.global_pool.pool_type
    if pool not in POOLING_LAYERS:
        raise ToKerasError(f'{directory}: global_pool={pool!r}, but Keras has one of {tuple(POOLING_LAYERS)}.')
    activation = (config.get('keras') or {}).get('final_activation', 'linear')
    if activation not in FINAL_ACTIVATIONS:
        raise ToKerasError(f'{directory}: final_activation={activation!r}; it must be one of {FINAL_ACTIVATIONS}.')

    _, height, width = network.pretrained_cfg['input_size']
    inputs = keras.Input((height, width, network.in_chans))
    backbone = keras.applications.Xception(
        weights=None, include_top=False, input_shape=(height, width, network.in_chans))
    x = getattr(keras.layers, POOLING_LAYERS[pool])()(backbone(inputs, training=False))
    for units in network.head.fc_widths:
        x = keras.layers.Dense(units, activation='relu')(x)
    if network.head.drop.p:
        x = keras.layers.Dropout(network.head.drop.p)(x)
    if network.num_classes:
        x = keras.layers.Dense(network.num_classes, activation=activation)(x)
    model = keras.Model(inputs, x)
    _set_weights(model, backbone, network)
    return model, network


def _read_config(directory: Path) -> dict[str, Any]:
    try:
        config = json.loads((directory / 'config.json').read_text(encoding='utf-8'))
    except (OSError, ValueError) as e:
        raise ToKerasError(f'{directory} has no config.json that can be read ({e}).') from e
    if config.get('architecture') != 'xception_paper':
        raise ToKerasError(f"{directory}: its architecture is {config.get('architecture')!r}, not 'xception_paper'.")
    return config


def _set_weights(model: Any, backbone: Any, network: Xception) -> None:
    """Finds each layer as the port does, in the config that the model would be saved with."""
    structure, tensors = _structure(model), network.state_dict()
    for name, placed in structure.layers.items():
        backbone.get_layer(placed.name).set_weights(to_keras(LAYERS[name], tensors))
    for layer, dense in zip(head_layers(structure.dense), structure.dense):
        model.get_layer(dense.layer.name).set_weights(to_keras(layer, tensors))


def _structure(model: Any) -> Structure:
    return parse(json.loads(model.to_json()), 'the Keras model')


def write(model: Any, network: Xception, output: Path) -> int:
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
            with h5py.File(file, 'r') as weights:
                written, _, _ = read_layers(_structure(model), WeightFile(weights, file))
        expected = {name: t for name, t in network.state_dict().items() if not name.endswith('num_batches_tracked')}
        different = [name for name, t in expected.items() if name not in written or not torch.equal(written[name], t)]
        if different or len(written) != len(expected):
            raise ToKerasError(f'{output} was not written: Keras saved something else for {different[:6]}.')
        os.replace(file, output)
    return len(expected)


@app.default
def main(directory: Path, /, *, output: Annotated[Path, Parameter(alias='-o')]) -> None:
    """Writes the Keras model of DIRECTORY.

    Args:
        directory: A model directory, such as `python -m conversion.convert` or a fine-tuning writes.
        output: A file that ends in .keras or .weights.h5.
    """
    try:
        model, network = build(directory)
        count = write(model, network, output)
    except (ToKerasError, KerasFileError, WeightsError, OSError, ImportError) as e:
        sys.exit(f'error: {e}')
    print(f'Written: {output}. Read back, its {count} arrays are bit-identical to those of {directory}.')


if __name__ == '__main__':
    app()
