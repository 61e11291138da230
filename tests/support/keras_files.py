"""Xceptions in Keras with random arrays, and the files that Keras of any age would write of them.

What only TensorFlow's Keras writes is made of what this Keras writes: the same groups, with other names.
"""

import io
import json
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import torch
from torch import Tensor, from_numpy

from xception_hub.porting.names import LAYERS, numbered
from xception_hub.porting.parity import Comparison, compare_with_keras
from xception_hub.porting.port import Port
from xception_hub.porting.reference import BY_KERAS, KerasReference

SIZE = 96  # pixels


# Models, built by Keras, or by tf_keras if that is given


def flat_with_top(k: Any = keras) -> Any:
    """Keras' own, with a classifier."""
    return k.applications.Xception(weights=None, classes=7, input_shape=(SIZE, SIZE, 3))


def flat_without_top(k: Any = keras) -> Any:
    return k.applications.Xception(weights=None, include_top=False)


def flat_with_head(k: Any = keras) -> Any:
    """`Model(base.input, Dense(GAP(base.output)))`, with normalizations that are shaped like the residual ones."""
    base = k.applications.Xception(weights=None, include_top=False, input_shape=(SIZE, SIZE, 3))
    x = k.layers.GlobalAveragePooling2D()(base.output)
    x = k.layers.BatchNormalization(momentum=0.9)(x)
    x = k.layers.Dropout(0.3)(x)
    x = k.layers.Dense(128, use_bias=False)(x)
    x = k.layers.BatchNormalization(epsilon=1e-5)(x)
    x = k.layers.Activation('relu')(x)
    x = k.layers.Dense(128, activation='gelu')(x)
    x = k.layers.Dropout(0.5)(x)
    return k.Model(base.input, k.layers.Dense(3, activation='softmax')(x))


def nested(k: Any = keras) -> Any:
    """Keras' guide to transfer learning: arithmetic before, a backbone of which a part is frozen, max pooling."""
    base = k.applications.Xception(weights=None, include_top=False, input_shape=(SIZE, SIZE, 3))
    for layer in base.layers[40:]:
        layer.trainable = False
    inputs = k.Input((SIZE, SIZE, 3))
    x = k.applications.xception.preprocess_input(k.layers.RandomFlip()(inputs))
    x = k.layers.GlobalMaxPooling2D()(base(x, training=False))
    return k.Model(inputs, k.layers.Dense(1, activation='sigmoid')(k.layers.Dropout(0.2)(x)))


def sequential(k: Any = keras) -> Any:
    """A backbone with its own pooling in a Sequential, with augmentation in another, and a rescaling."""
    augmentation = k.Sequential([k.layers.RandomFlip('horizontal'), k.layers.RandomRotation(0.1)])
    base = k.applications.Xception(weights=None, include_top=False, pooling='avg', input_shape=(SIZE, SIZE, 3))
    base.trainable = False
    return k.Sequential(
        [
            k.Input((SIZE, SIZE, 3)),
            augmentation,
            k.layers.Rescaling(1 / 127.5, offset=-1),
            base,
            k.layers.Flatten(),
            k.layers.Dense(64, activation='relu'),
            k.layers.Dense(64, activation='relu'),
            k.layers.Dense(5),
            k.layers.Activation('softmax'),
        ]
    )


MODELS: dict[str, Callable[..., Any]] = {
    f.__name__: f for f in (flat_with_top, flat_without_top, flat_with_head, nested, sequential)
}


def randomised(model: Any, seed: int = 0) -> Any:
    """The model with arrays none of which is like another: as built, most are zeros and ones."""
    generator = np.random.default_rng(seed)
    for layer in flat(model):
        values = layer.get_weights()
        if any(value.dtype.kind == 'f' for value in values):
            layer.set_weights(
                [value + generator.uniform(0.1, 0.5, value.shape) if value.ndim == 1 else value for value in values]
            )
    return model


def flat(model: Any) -> Iterator[Any]:
    for layer in model.layers:
        if hasattr(layer, 'layers'):
            yield from flat(layer)
        else:
            yield layer


def expected_tensors(model: Any) -> dict[str, Tensor]:
    """The tensors that a port has to give, from Keras' own objects: by name, and the unnamed in order of creation."""
    layers = list(flat(model))
    end = [layer.name for layer in layers].index('block14_sepconv2_act')
    found: dict[str, Tensor] = {}

    def put(layer: Any, name: str) -> None:
        values = [np.asarray(value) for value in layer.get_weights()]
        match type(layer).__name__:
            case 'Conv2D':
                found[f'{name}.weight'] = from_numpy(values[0].transpose(3, 2, 0, 1).copy())
            case 'SeparableConv2D':
                found[f'{name}.conv_dw.weight'] = from_numpy(values[0].transpose(2, 3, 0, 1).copy())
                found[f'{name}.conv_pw.weight'] = from_numpy(values[1].transpose(3, 2, 0, 1).copy())
            case 'BatchNormalization':
                for kind, value in zip(('weight', 'bias', 'running_mean', 'running_var'), values):
                    found[f'{name}.{kind}'] = from_numpy(value)
            case 'Dense':
                found[f'{name}.weight'] = from_numpy(values[0].T.copy())
                found.update({f'{name}.bias': from_numpy(value) for value in values[1:]})

    unnamed: dict[str, list[Any]] = {}
    for layer in layers[:end]:
        if layer.name in LAYERS:
            put(layer, LAYERS[layer.name].torch)
        elif layer.weights and type(layer).__name__ in ('Conv2D', 'BatchNormalization'):
            unnamed.setdefault(type(layer).__name__, []).append(layer)
    for kind, of_kind in unnamed.items():
        numbers = sorted(
            of_kind,
            key=lambda layer: (
                int(layer.name.rpartition('_')[2]) if layer.name[-1].isdigit() and not layer.name.endswith('2d') else -1
            ),
        )
        for module, layer in zip(('entry_flow.0', 'entry_flow.1', 'entry_flow.2', 'exit_flow.0'), numbers):
            put(layer, f'{module}.shortcut.{"conv" if kind == "Conv2D" else "bn"}')
    head = [layer for layer in layers[end:] if type(layer).__name__ in ('Dense', 'BatchNormalization')]
    counts = dict(fc=0, bn=0)
    for layer in head:
        kind = 'fc' if type(layer).__name__ == 'Dense' else 'bn'
        counts[kind] += 1
        put(layer, 'head.fc' if layer is head[-1] else f'head.fc_layers.{kind}{counts[kind]}')
    return found


def assert_same(ported: Port, model: Any) -> None:
    """The tensors are the arrays of Keras' objects."""
    expected = expected_tensors(model)
    assert ported.tensors.keys() == expected.keys()
    assert [name for name, tensor in expected.items() if not torch.equal(ported.tensors[name], tensor)] == []


def assert_computes_the_same(ported: Port, reading: str = BY_KERAS) -> Comparison:
    """As Keras does, after every module; `reading` is how Keras gets the file."""
    reference = KerasReference(ported)
    assert reference.reading.startswith(reading)
    proof = compare_with_keras(reference, ported.model(), ported.image_size or (71, 78))
    assert proof.first_wrong is None, proof
    return proof


# Files


def archive(model: Any, folder: Path) -> Path:
    """Keras since 3.6."""
    model.save(folder / 'model.keras')
    return folder / 'model.keras'


def archive_without_names(model: Any, folder: Path) -> Path:
    """Keras up to 3.5, and tf_keras: no layer's name beside its arrays."""
    file = archive(model, folder)

    def without_names(weights: bytes) -> bytes:
        buffer = io.BytesIO(weights)
        with h5py.File(buffer, 'r+') as f:
            remove_names(f)
        return buffer.getvalue()

    return _rewritten(file, 'model.weights.h5', without_names)


def rewritten_config(file: Path, change: Callable[[str], str]) -> Path:
    """An archive whose config is changed as text."""
    return _rewritten(file, 'config.json', lambda content: change(content.decode()).encode())


def _rewritten(file: Path, member: str, change: Callable[[bytes], bytes]) -> Path:
    with zipfile.ZipFile(file) as old:
        members = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(file, 'w') as new:
        for name, content in members.items():
            new.writestr(name, change(content) if name == member else content)
    return file


def whole_h5(model: Any, folder: Path) -> Path:
    """A whole model in HDF5, as Keras 3 still writes it."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        model.save(folder / 'model.h5')
    return folder / 'model.h5'


def whole_h5_of_keras2(model: Any, folder: Path) -> Path:
    """The same, with the names of Keras 2, an optimizer's state, and attributes in parts."""
    file = whole_h5(model, folder)
    with h5py.File(file, 'r+') as f:
        _to_keras2(f['model_weights'])
        f.create_dataset('optimizer_weights/Adam/iteration:0', data=np.int64(3))
    return file


def weights_h5(model: Any, folder: Path) -> Path:
    """`save_weights('x.weights.h5')` of Keras since 3.6."""
    model.save_weights(folder / 'model.weights.h5')
    return folder / 'model.weights.h5'


def weights_h5_without_names(model: Any, folder: Path) -> Path:
    """The same of Keras up to 3.5 and of tf_keras."""
    file = weights_h5(model, folder)
    with h5py.File(file, 'r+') as f:
        remove_names(f)
    return file


def weights_h5_of_tensorflow_2_12(model: Any, folder: Path) -> Path:
    """The same of the version in which its groups had another name, and which counted each layer with arrays twice."""
    file = weights_h5_without_names(model, folder)
    with h5py.File(file, 'r+') as f:
        homes: list[str] = []
        f.visit(lambda path: homes.append(path) if path.rpartition('/')[2] == 'layers' else None)
        for home in sorted(homes, key=len, reverse=True):
            counts: dict[str, int] = {}
            for name in sorted(f[home], key=numbered):
                stem, group = numbered(name)[0], f[home][name]
                arrays: list[Any] = []
                group.visititems(lambda _, node, a=arrays: a.append(node) if isinstance(node, h5py.Dataset) else None)
                counts[stem] = counts.get(stem, -1) + 1
                f.move(f'{home}/{name}', f'{home}/new {stem}' + (f'_{counts[stem]}' if counts[stem] else ''))
                counts[stem] += bool(arrays)
            for name in [*f[home]]:
                f.move(f'{home}/{name}', f'{home}/{name.removeprefix("new ")}')
            f.move(home, home.removesuffix('layers') + '_layer_checkpoint_dependencies')
    return file


def weights_of_keras2(model: Any, folder: Path) -> Path:
    """`save_weights('x.h5')` of Keras 2."""
    from keras.src.legacy.saving import legacy_h5_format

    with h5py.File(folder / 'weights.h5', 'w') as f:
        legacy_h5_format.save_weights_to_hdf5_group(f, model)
        _to_keras2(f)
    return folder / 'weights.h5'


def shards(model: Any, folder: Path) -> Path:
    """`save_weights('x.weights.json', max_shard_size=...)`."""
    model.save_weights(folder / 'model.weights.json', max_shard_size=0.03)
    assert len(list(folder.glob('*.weights.h5'))) > 2
    return folder / 'model.weights.json'


def preset(model: Any, folder: Path) -> Path:
    """A KerasHub preset with a classifier: its backbone's layers, residual ones included, all have names."""
    backbone = weights_h5(keras.Model(model.input, model.get_layer('block14_sepconv2_act').output), folder)
    names = {'conv2d': 'conv', 'batch_normalization': 'bn'}
    directory = folder / 'preset'
    directory.mkdir()
    with h5py.File(backbone, 'r+') as f:
        for group in f['layers'].values():
            for stem, kind in names.items():
                name = group['vars'].attrs['name']
                if name.startswith(stem):
                    width = group['vars/0'].shape[-1]
                    block = {128: 2, 256: 3, 728: 4, 1024: 13}[width]
                    group['vars'].attrs['name'] = f'block{block}_residual_{kind}'
    backbone.rename(directory / 'model.weights.h5')
    with h5py.File(directory / 'task.weights.h5', 'w') as f:
        for i, value in enumerate(model.layers[-1].get_weights()):
            f[f'layers/dense/vars/{i}'] = value
        f['layers/dense/vars'].attrs['name'] = 'predictions'
        f.create_group('layers/global_average_pooling2d/vars').attrs['name'] = 'pooler'
        f.create_group('layers/dropout/vars').attrs['name'] = 'output_dropout'
        f['optimizer/vars/0'] = np.int64(1)
    config = {
        'module': 'keras_hub.src.models.xception.xception_backbone',
        'class_name': 'XceptionBackbone',
        'config': {
            'name': 'xception_backbone',
            'stackwise_conv_filters': [
                [32, 64],
                [128] * 2,
                [256] * 2,
                [728] * 2,
                *[[728] * 3] * 8,
                [728, 1024],
                [1536, 2048],
            ],
            'stackwise_pooling': [False, True, True, True, *[False] * 8, True, False],
            'image_shape': [None, None, 3],
        },
    }
    task = {
        'class_name': 'XceptionImageClassifier',
        'config': {'backbone': config, 'num_classes': 7, 'pooling': 'avg', 'activation': 'softmax', 'dropout': 0.1},
    }
    converter = {
        'class_name': 'XceptionImageConverter',
        'config': {
            'image_size': [SIZE, SIZE],
            'scale': 1 / 127.5,
            'offset': -1,
            'interpolation': 'bilinear',
            'crop_to_aspect_ratio': True,
        },
    }
    files = {'config': config, 'task': task, 'image_converter': converter, 'metadata': {'keras_version': '3.15.1'}}
    for name, content in files.items():
        (directory / f'{name}.json').write_text(json.dumps(content))
    return directory


WITH_CONFIG = (archive, archive_without_names, whole_h5, whole_h5_of_keras2)
WEIGHTS_ALONE = (weights_h5, weights_h5_without_names, weights_h5_of_tensorflow_2_12, weights_of_keras2, shards)


def remove_names(file: h5py.File) -> None:
    def remove(path: str, node: Any) -> None:
        node.attrs.pop('name', None)

    file.visititems(remove)


def _to_keras2(root: h5py.Group) -> None:
    """Arrays are called `kernel:0`, and their list is in parts, as it is if it is long."""
    arrays: list[str] = []
    root.visititems(lambda path, node: arrays.append(path) if isinstance(node, h5py.Dataset) else None)
    for path in arrays:
        root.move(path, f'{path}:0')
    for group in root.values():
        names = [f'{name.decode() if isinstance(name, bytes) else name}:0' for name in group.attrs['weight_names']]
        if len(names) > 100:
            del group.attrs['weight_names']
            group.attrs['weight_names0'] = [name.encode() for name in names[:100]]
            group.attrs['weight_names1'] = [name.encode() for name in names[100:]]
        elif names:
            group.attrs['weight_names'] = [name.encode() for name in names]
