"""Files as only Keras of other eras wrote them, of models of today's, and heads that people put on Xception.

What they change is made of what this Keras writes: names, groups, attributes and configs.
"""

import json
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
from keras_files import SIZE, randomised

from xception_hub.porting.array_places import KERAS1_VARIABLES
from xception_hub.porting.names import KERAS1_NAMES, LAYERS

Change = Callable[[str], str]
MAP = 71  # pixels, of images whose maps have 3x3 places


def renamed(file: Path, group: Change = str, owner: Change = str) -> Path:
    """Other names for the groups of layers, and for the parts between them and the arrays."""
    old = file.with_suffix('.old')
    file.rename(old)
    with h5py.File(old) as source, h5py.File(file, 'w') as target:
        for name, value in source.attrs.items():
            target.attrs[name] = value
        from_, to = source, target
        if 'model_weights' in source:
            from_, to = source['model_weights'], target.create_group('model_weights')
        names = [text.decode() if isinstance(text, bytes) else text for text in from_.attrs['layer_names']]
        to.attrs['layer_names'] = [group(name).encode() for name in names]
        for name in names:
            new = to.create_group(group(name))
            listed: list[Any] = []
            for part in sorted(key for key in from_[name].attrs if key.startswith('weight_names')):
                listed += list(from_[name].attrs[part])
            arrays = []
            for array in (text.decode() if isinstance(text, bytes) else text for text in listed):
                path, _, last = array.rpartition('/')
                arrays.append(f'{owner(path)}/{last}')
                new[arrays[-1]] = from_[name][array][()]
            new.attrs['weight_names'] = np.array([array.encode() for array in arrays])
    old.unlink()
    return file


def again(name: str) -> str:
    """What TensorFlow 1 made of a name that was taken: a model was built a second time."""
    return f'{name}_1'


def shifted(name: str, by: int = 5) -> str:
    """What Keras calls a layer without a name later in a session."""
    stem, _, number = name.rpartition('_')
    if name in ('conv2d', 'batch_normalization', 'dense'):
        return f'{name}_{by}'
    return f'{stem}_{int(number) + by}' if stem in ('conv2d', 'batch_normalization', 'dense') else name


def keras1_file(model: Any, folder: Path, start: int, named: bool = False) -> Path:
    """Weights of Keras 1.2: layers are numbered from `start` on, in the order of creation; or only the unnamed ones."""
    groups = {'dense': 'predictions' if named else 'dense_3'}
    for kind, stem in KERAS1_NAMES.items():
        names = [name for name, layer in LAYERS.items() if layer.kind == kind and (not named or 'residual' in name)]
        groups |= {name: f'{stem}_{number}' for number, name in enumerate(names, start)}
    unnamed = {
        'Conv2D': iter([name for name in LAYERS if name.endswith('residual_conv')]),
        'BatchNormalization': iter([name for name in LAYERS if name.endswith('residual_bn')]),
        'Dense': iter(['dense']),
    }
    file, listed = folder / 'weights.h5', []
    with h5py.File(file, 'w') as f:
        for layer in model.layers:
            class_name = type(layer).__name__
            if layer.weights:
                name = layer.name if layer.name in LAYERS else next(unnamed[class_name])
                group = groups.get(name, name)
                arrays = [f'{group}_{KERAS1_VARIABLES.get(weight.name, weight.name)}:0' for weight in layer.weights]
            elif class_name == 'GlobalAveragePooling2D':
                group, arrays = 'globalaveragepooling2d_1', []
            else:
                continue
            f.create_group(group).attrs['weight_names'] = np.array([array.encode() for array in arrays])
            for array, value in zip(arrays, layer.get_weights()):
                f[f'{group}/{array}'] = value
            listed.append(group.encode())
        f.attrs.update(layer_names=listed, keras_version=b'1.2.2')
    return file


def with_operations(*operations: tuple[str, dict[str, float]]) -> str:
    """The config of a nested model behind operations of TensorFlow 2.0 to 2.3."""
    config = json.loads(nested_for_operations().to_json())
    layers = config['config']['layers']
    last = layers[0]['config']['name']
    made = []
    for number, (operation, constants) in enumerate(operations):
        name = f'tf_op_layer_{operation}_{number}'
        node = {'name': operation, 'op': operation, 'input': ['a', 'b'], 'attr': {'T': {'type': 'DT_FLOAT'}}}
        made.append({
            'class_name': 'TensorFlowOpLayer', 'name': name, 'inbound_nodes': [[[last, 0, 0, {}]]],
            'config': {'name': operation, 'trainable': True, 'dtype': 'float32',
                       'node_def': json.dumps(node) if number % 2 else node, 'constants': constants},
        })  # fmt: skip
        last = name
    text = json.dumps(layers[1:]).replace(
        f'"keras_history": ["{layers[0]["config"]["name"]}"', f'"keras_history": ["{last}"'
    )
    config['config']['layers'] = [layers[0], *made, *json.loads(text)]
    return json.dumps(config)


def nested_for_operations() -> Any:
    base = keras.applications.Xception(weights=None, include_top=False, input_shape=(SIZE, SIZE, 3), pooling='avg')
    inputs = keras.Input((SIZE, SIZE, 3))
    return keras.Model(inputs, keras.layers.Dense(2)(base(inputs)))


def head_of(*layers: Any) -> Any:
    base = keras.applications.Xception(weights=None, include_top=False, input_shape=(MAP, MAP, 3))
    x = base.output
    for layer in layers:
        x = layer(x)
    return randomised(keras.Model(base.input, x))


L = keras.layers
HEADS: dict[str, tuple[Callable[[], list[Any]], dict[str, Any]]] = {
    'norm before pooling': (
        lambda: [L.BatchNormalization(), L.GlobalAveragePooling2D(), L.Dense(3)], dict(head_layers=[{'bn': 1e-3}])),
    'dropout and relu before pooling': (
        lambda: [L.Dropout(0.5), L.ReLU(), L.SpatialDropout2D(0.1), L.GlobalMaxPooling2D(), L.Dense(3)],
        dict(global_pool='max')),
    'pooling of the whole map': (lambda: [L.AveragePooling2D((3, 3)), L.Flatten(), L.Dense(3)], {}),
    'ends in relu': (lambda: [L.GlobalAveragePooling2D(), L.Dense(3, activation='relu')], {}),
    'ends in tanh': (lambda: [L.GlobalAveragePooling2D(), L.Dropout(1.0), L.Dense(3), L.Activation('tanh')], {}),
    'hidden softmax': (
        lambda: [L.GlobalAveragePooling2D(), L.Dense(8, activation='softmax'), L.Dense(3)],
        dict(head_layers=[{'fc': 8}, {'act': 'softmax'}])),
    'flattened': (lambda: [L.Flatten(), L.Dense(3, activation='softmax')], dict(head_layers=[{'flatten': [3, 3]}])),
    'flattened with hidden layers': (
        lambda: [L.Dropout(0.2), L.Flatten(), L.Dense(16, activation='relu'), L.BatchNormalization(), L.Dense(3)],
        dict(head_layers=[{'flatten': [3, 3]}, {'fc': 16}, {'act': 'relu'}, {'bn': 1e-3}])),
}  # fmt: skip


ONLY_KERAS3 = ('optional', 'synchronized', 'quantization_config')


def as_keras2(entry: dict[str, Any], models: Collection[str] = ()) -> dict[str, Any]:
    """A config as tf.keras 2.12 writes it, of one that the Keras of today does; `models` are layers."""
    config = dict(entry['config'])
    if 'layers' in config:
        inner = [layer['config']['name'] for layer in config['layers'] if 'layers' in layer['config']]
        config['layers'] = [as_keras2(layer, inner) for layer in config['layers']]
        for key in ('input_layers', 'output_layers'):
            if key in config:
                config[key] = [config[key]] if isinstance(config[key][0], str) else config[key]
    else:
        for key, value in config.items():
            if isinstance(value, dict) and key.endswith(('_initializer', '_regularizer', '_constraint')):
                inner = {name: of for name, of in value['config'].items() if not name.endswith('_axes')}
                config[key] = {'class_name': value['class_name'], 'config': inner}
        config = {key: value for key, value in config.items() if key not in ONLY_KERAS3 and 'renorm' not in key}
        config['dtype'] = 'float32'
        if entry['class_name'] == 'InputLayer':
            config['batch_input_shape'] = config.pop('batch_shape')
        elif entry['class_name'] == 'BatchNormalization':
            config['axis'] = [3] if config['axis'] == -1 else config['axis']
        elif entry['class_name'] == 'SeparableConv2D':
            more = ('kernel_regularizer', 'kernel_constraint')
            glorot = {'class_name': 'GlorotUniform', 'config': {'seed': None}}
            config |= dict.fromkeys(more) | {'groups': 1, 'kernel_initializer': glorot}
        elif entry['class_name'] == 'Dense':
            config['activity_regularizer'] = None
    made = {'class_name': entry['class_name'], 'config': config}
    if 'inbound_nodes' in entry:
        made['name'] = entry['name']
        made['inbound_nodes'] = [_node_of_keras2(node, models) for node in entry['inbound_nodes']]
    return made


def _node_of_keras2(node: dict[str, Any], models: Collection[str]) -> list[Any]:
    kwargs = {name: value for name, value in node['kwargs'].items() if value is not None}
    tensors = node['args'][0] if isinstance(node['args'][0], list) else node['args'][:1]
    histories = [tensor['config']['keras_history'] for tensor in tensors]
    # a model has a call of its own before it is called
    return [[name, number + (name in models), index, dict(kwargs)] for name, number, index in histories]
