"""What stands around Xception in a Keras model: each setting is reproduced or refused by name; ways out are true."""

import inspect
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import torch
from conftest import ROOT
from keras_files import archive, assert_computes_the_same, randomised, weights_h5, whole_h5, whole_h5_of_keras2
from keras_heads import ENSEMBLES, MAP, POOLED, augmented, joined

from xception_hub.errors import KerasFileError
from xception_hub.porting.keras_head import HEAD, STEPS
from xception_hub.porting.keras_model import build_keras, write_keras
from xception_hub.porting.names import AUGMENTATIONS
from xception_hub.porting.output import write
from xception_hub.porting.parity import Parity
from xception_hub.porting.port import port
from xception_hub.porting.preprocessing import Preprocessing
from xception_hub.porting.reference import BY_KERAS, BY_PORT
from xception_hub.porting.structure import Structure, parse

L = keras.layers
IMAGES = np.random.default_rng(0).uniform(-1, 1, (2, MAP, MAP, 3)).astype(np.float32)


@pytest.fixture(scope='module')
def base() -> Any:
    return randomised(keras.applications.Xception(weights=None, include_top=False, input_shape=(MAP, MAP, 3)))


def config_of(base: Any, before: list[Any], after: list[Any]) -> dict[str, Any]:
    x = inputs = keras.Input((MAP, MAP, 3))
    for layer in [*before, base, *after]:
        x = layer(x)
    return json.loads(keras.Model(inputs, x).to_json())


def changed(config: dict[str, Any], name: str, **settings: Any) -> dict[str, Any]:
    """A model's config in which a layer has other settings."""
    (layer,) = (layer for layer in config['config']['layers'] if layer['config'].get('name') == name)
    layer['config'].update(settings)
    return config


def refused(config: dict[str, Any], *reasons: str) -> str:
    with pytest.raises(KerasFileError) as error:
        parse(config, 'model')
    assert all(reason in str(error.value) for reason in reasons), error.value
    return str(error.value)


def assert_option_works(config: dict[str, Any], error: str) -> list[Structure]:
    """Each value of --output-layer that an error names gives a model that converts."""
    values = error.rpartition('--output-layer')[2].partition(' to ')[0].strip(' :.').split(', ')
    return [parse(config, 'model', value) for value in values]


# Settings

X = 'x'  # name of the layer whose setting is changed
PLAIN: dict[str, Callable[[], tuple[list[Any], list[Any]]]] = {
    'GlobalAveragePooling2D': lambda: ([], [L.GlobalAveragePooling2D(name=X), L.Dense(2)]),
    'GlobalMaxPooling2D': lambda: ([], [L.GlobalMaxPooling2D(name=X), L.Dense(2)]),
    'AveragePooling2D': lambda: ([], [L.AveragePooling2D(3, name=X), L.Flatten(), L.Dense(2)]),
    'MaxPooling2D': lambda: ([], [L.MaxPooling2D(3, name=X), L.Flatten(), L.Dense(2)]),
    'Flatten': lambda: ([], [L.Flatten(name=X), L.Dense(2)]),
    'Reshape': lambda: ([], [L.GlobalAveragePooling2D(), L.Reshape((2048,), name=X), L.Dense(2)]),
    'Dense': lambda: ([], [L.GlobalAveragePooling2D(), L.Dense(8, name=X), L.Dense(2)]),
    'Dropout': lambda: ([], [L.GlobalAveragePooling2D(), L.Dropout(0.1, name=X), L.Dense(2)]),
    'BatchNormalization': lambda: ([], [L.GlobalAveragePooling2D(), L.BatchNormalization(name=X), L.Dense(2)]),
    'Activation': lambda: ([], [L.GlobalAveragePooling2D(), L.Activation('tanh', name=X), L.Dense(2)]),
    'ReLU': lambda: ([], [L.GlobalAveragePooling2D(), L.Dense(8), L.ReLU(name=X), L.Dense(2)]),
    'ELU': lambda: ([], [L.GlobalAveragePooling2D(), L.Dense(8), L.ELU(name=X), L.Dense(2)]),
    'Softmax': lambda: ([], [L.GlobalAveragePooling2D(), L.Dense(2), L.Softmax(name=X)]),
    'Rescaling': lambda: ([L.Rescaling(2.0, name=X)], [L.GlobalAveragePooling2D(), L.Dense(2)]),
    'Normalization': lambda: ([L.Normalization(mean=1.0, variance=4.0, name=X)], [L.GlobalAveragePooling2D()]),
}
# A class, and a change of one of its settings -> the arguments or the scale and offset that it must lead to, or None.
CHANGES: list[tuple[str, dict[str, Any], Any]] = [
    ('GlobalAveragePooling2D', dict(data_format='channels_first'), None),
    ('GlobalAveragePooling2D', dict(keepdims=True), None),  # a Dense layer on a map
    ('GlobalMaxPooling2D', dict(data_format='channels_first'), None),
    ('GlobalMaxPooling2D', dict(keepdims=True), None),
    ('AveragePooling2D', dict(pool_size=[2, 2]), None),
    ('AveragePooling2D', dict(padding='same'), None),
    ('AveragePooling2D', dict(strides=[1, 1]), dict(global_pool='avg')),  # one place, whatever the stride
    ('AveragePooling2D', dict(data_format='channels_first'), None),
    ('MaxPooling2D', dict(pool_size=[3, 2]), None),
    ('MaxPooling2D', dict(padding='same'), None),
    ('MaxPooling2D', dict(data_format='channels_first'), None),
    ('Flatten', dict(data_format='channels_first'), None),
    ('Reshape', dict(target_shape=[2, 1024]), None),
    ('Reshape', dict(target_shape=[-1]), {}),
    ('Dense', dict(units=9), dict(head_layers=[{'fc': 9}])),
    ('Dense', dict(units=0), None),
    ('Dense', dict(use_bias=False), dict(head_layers=[{'fc': 8, 'bias': False}])),
    ('Dense', dict(activation='selu'), dict(head_layers=[{'fc': 8}, {'act': 'selu'}])),
    ('Dense', dict(activation='hard_sigmoid'), None),
    ('Dense', dict(activation={'class_name': 'function', 'config': 'mine'}), None),
    ('Dense', dict(activation={'class_name': 'LeakyReLU', 'config': {}}), None),
    ('Dense', dict(dtype='int8_from_float32'), None),
    ('Dense', dict(dtype={'class_name': 'QuantizedDTypePolicy', 'config': {'mode': 'int8'}}), None),
    ('Dense', dict(quantization_config={'class_name': 'Int8QuantizationConfig', 'config': {}}), None),
    ('Dense', dict(dtype='mixed_bfloat16'), {}),
    ('Dense', dict(dtype={'class_name': 'Policy', 'config': {'name': 'mixed_float16'}}), {}),
    ('Dense', dict(kernel_regularizer={'class_name': 'L2', 'config': {}}), {}),
    ('Dropout', dict(rate=0.5), dict(drop_rate=0.5)),
    ('Dropout', dict(rate=-1), None),
    ('Dropout', dict(noise_shape=[None, 1]), {}),
    ('BatchNormalization', dict(axis=1), {}),
    ('BatchNormalization', dict(axis=[0]), None),
    ('BatchNormalization', dict(epsilon=0.1), dict(head_layers=[{'bn': 0.1}])),
    ('BatchNormalization', dict(momentum=0.5), dict(head_layers=[{'bn': 1e-3, 'momentum': 0.5}])),
    ('BatchNormalization', dict(center=False), None),
    ('BatchNormalization', dict(scale=False), None),
    ('BatchNormalization', dict(renorm=True), None),
    ('BatchNormalization', dict(virtual_batch_size=4), None),
    ('Activation', dict(activation='mish'), dict(head_layers=[{'act': 'mish'}])),
    ('Activation', dict(activation='leaky_relu'), None),
    ('ReLU', dict(max_value=6.0), dict(head_layers=[{'fc': 8}, {'act': 'relu6'}])),
    ('ReLU', dict(max_value=1.0), None),
    ('ReLU', dict(negative_slope=0.1), None),
    ('ReLU', dict(threshold=0.5), None),
    ('ELU', dict(alpha=0.5), None),
    ('Softmax', dict(axis=1), {}),
    ('Softmax', dict(axis=0), None),
    ('Rescaling', dict(scale=3.0), (3.0, 0.0)),
    ('Rescaling', dict(offset=1.0), (2.0, 1.0)),
    ('Rescaling', dict(offset='x'), None),
    ('Normalization', dict(mean=3.0), (0.5, -1.5)),
    ('Normalization', dict(variance=1.0), (1.0, -1.0)),
    ('Normalization', dict(axis=1), None),
    ('Normalization', dict(invert=True), None),
]  # fmt: skip


@pytest.fixture(scope='module')
def plain(base: Any) -> dict[str, str]:
    return {name: json.dumps(config_of(base, *layers())) for name, layers in PLAIN.items()}


@pytest.mark.parametrize(('kind', 'change', 'expected'), CHANGES, ids=lambda value: str(value)[:40])
def test_a_changed_setting(kind: str, change: dict[str, Any], expected: Any, plain: dict[str, str]) -> None:
    """Leads to other arguments of the network, or to an error that names it."""
    before = parse(json.loads(plain[kind]), 'model')
    config = changed(json.loads(plain[kind]), X, **change)
    if expected is None:
        (value,) = change.values()
        error = refused(config)  # with the layer, and the setting's name or what it leads to
        named = (*change, *(value.values() if isinstance(value, dict) else [value]))
        assert f"'{X}'" in error or 'keepdims' in change  # which leaves a map to the next layer
        assert any(str(text) in error for text in (*named, 'window', 'Flatten'))
        if kind not in STEPS:
            assert_option_works(config, error)
        return
    after = parse(config, 'model')
    if isinstance(expected, tuple):
        assert (after.steps[0].scale, after.steps[0].offset) == expected
    else:
        args = before.head.model_args()
        if 'head_layers' in expected:
            args.pop('fc_widths', None)
        assert after.head.model_args() == {**args, **expected}


@pytest.mark.parametrize('kind', PLAIN)
def test_a_setting_of_tomorrow(kind: str, plain: dict[str, str]) -> None:
    """Is refused by name, unless it is off; each class of the tables is among those tried."""
    assert set(PLAIN) == {*HEAD, *STEPS} - {'operation', 'Concatenate', 'Average'}
    parse(changed(json.loads(plain[kind]), X, surprise=None), 'model')
    refused(changed(json.loads(plain[kind]), X, surprise=2), 'has surprise=2')


@pytest.mark.parametrize(
    ('after', 'expected'),
    [
        (lambda: [L.GlobalAveragePooling2D(keepdims=True), L.Dropout(0.1), L.Flatten(), L.Dense(2)],
         dict(head_layers=[], drop_rate=0.1)),
        (lambda: [L.GlobalMaxPooling2D(keepdims=True), L.Reshape((2048,)), L.Dense(2)], dict(global_pool='max')),
        (lambda: [L.GlobalAveragePooling2D(), L.Reshape((1, 1, 2048)), L.Flatten(), L.Dense(2)], {}),
        (lambda: [L.Reshape((-1,)), L.Dense(2)], dict(head_layers=[{'flatten': [3, 3]}])),
        (lambda: [L.GlobalAveragePooling2D(), L.Dense(2), L.Dropout(0.3)], {}),
        (lambda: [L.GlobalAveragePooling2D(), L.Identity(), L.ActivityRegularization(0.1), L.Dense(2)], {}),
        (lambda: [L.BatchNormalization(axis=3), L.GlobalAveragePooling2D(), L.Dense(2)],
         dict(head_layers=[{'bn': 1e-3}])),
        (lambda: [L.BatchNormalization(axis=1), L.GlobalAveragePooling2D(), L.Dense(2)], 'before the pooling has axis'),
        (lambda: [L.BatchNormalization(), L.Flatten(), L.Dense(2)], 'before the pooling cannot'),
        (lambda: [L.BatchNormalization(), L.GlobalMaxPooling2D()], 'before the pooling cannot'),
        (lambda: [L.Conv2D(8, 1), L.GlobalAveragePooling2D(), L.Dense(2)], 'before the pooling cannot'),
        (lambda: [L.GlobalAveragePooling2D(keepdims=True), L.Softmax(axis=1), L.Flatten(), L.Dense(2)], 'of one place'),
        (lambda: [L.AveragePooling2D((3, 3)), L.Dense(2)], 'one place cannot be converted: put a Flatten layer before'),
        (lambda: [L.GlobalAveragePooling2D(), L.LayerNormalization(), L.Dense(2)], 'in the head cannot'),
        (lambda: [L.GlobalAveragePooling2D(), L.Dense(2), L.BatchNormalization()], 'after the classifier cannot'),
        (lambda: [L.GlobalAveragePooling2D(), L.Dense(2, use_bias=False)], 'is the classifier and has no bias'),
        (lambda: [L.Permute((2, 1, 3)), L.GlobalAveragePooling2D(), L.Dense(2)], 'before the pooling cannot'),
        (lambda: [L.GlobalAveragePooling2D(keepdims=True)], 'ends in maps of one place'),
    ],
)  # fmt: skip
def test_order_of_layers(after: Callable[[], list[Any]], expected: dict[str, Any] | str, base: Any) -> None:
    """The same layer is another function elsewhere; a refusal says where it stands."""
    config = config_of(base, [], after())
    if isinstance(expected, str):
        (found,) = assert_option_works(config, refused(config, expected))
        assert (found.head.num_classes, found.head.layers) == (0, [])
    else:
        plain = dict(num_classes=2, global_pool='avg')
        found_args = parse(config, 'model').head.model_args()
        assert {**plain, **found_args, 'head_layers': found_args.get('head_layers', [])} == {
            **plain, 'head_layers': [], **expected
        }  # fmt: skip


# Layers for training alone

ARGUMENTS: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(('CenterCrop', 'RandomCrop', 'Resizing'), (40, 40)), 'RandomTranslation': (0.2, 0.2),
    'RandomColorJitter': ((0, 255), 0.2, 0.2, 0.2, 0.2), 'RandomShear': (0.2, 0.2), 'RandomPosterization': (4,),
    'Solarization': ((0.0, 0.3), (0.0, 0.3)), 'MaxNumBoundingBoxes': (3,), 'Rescaling': (2.0,), 'Pipeline': ([],),
    **dict.fromkeys(('RandomRotation', 'RandomZoom', 'RandomContrast', 'RandomBrightness', 'RandomHue',
                     'RandomSaturation', 'RandomColorDegeneration', 'RandomSharpness', 'GaussianNoise',
                     'GaussianDropout', 'AlphaDropout', 'SpatialDropout2D', 'ActivityRegularization'), (0.2,)),
}  # fmt: skip
# Those of this Keras that are for boxes, cannot be in a model, do what is in them, or do something in Keras 2.
ELSEWHERE = ('MaxNumBoundingBoxes', 'Equalization', 'Pipeline', 'RandomCrop')


def test_each_of_them_does_nothing_in_evaluation() -> None:
    """All that prepares images in this Keras was run: what changes nothing is in the table, and nothing else."""
    images = np.random.default_rng(0).uniform(0, 255, (2, MAP, MAP, 3)).astype(np.float32)
    preparing = keras.src.layers.preprocessing.image_preprocessing.base_image_preprocessing_layer
    kinds = {name: kind for name, kind in inspect.getmembers(L, inspect.isclass)
             if issubclass(kind, preparing.BaseImagePreprocessingLayer) or name in AUGMENTATIONS}  # fmt: skip
    neutral = set()
    for name, kind in kinds.items():
        layer = kind(*ARGUMENTS.get(name, ()))
        evaluation = {'training': False} if 'training' in inspect.signature(layer.call).parameters else {}
        found = keras.ops.convert_to_numpy(layer(images, **evaluation))
        if found.shape == images.shape and (found == images).all():
            neutral.add(name)
    assert neutral - {*ELSEWHERE} == {*AUGMENTATIONS} & {*kinds}
    assert {*AUGMENTATIONS} - {*kinds} == {'RandomHeight', 'RandomWidth'}  # of Keras 2
    assert len(neutral) > 25


def in_front(base: Any, *layers: Any) -> Any:
    x = inputs = keras.Input((MAP, MAP, 3))
    for layer in (*layers, base, L.GlobalAveragePooling2D(), L.Dense(2)):
        x = layer(x)
    return keras.Model(inputs, x)


@pytest.mark.parametrize('write_file', [archive, whole_h5_of_keras2], ids=lambda f: f.__name__)
def test_augmentation_in_front(write_file: Callable[[Any, Path], Path], tmp_path: Path) -> None:
    """RandAugment and its kind have states of random generators, and are reported; Keras computes the same."""
    ported = port(write_file(augmented(), tmp_path))
    assert ported.structure.ignored == ['rand', 'mix', 'drop']
    assert 'rand, mix, drop' in ported.notes()[0]
    assert ported.structure.rescaling == pytest.approx((1 / 127.5, -1))
    if write_file is archive:
        assert_computes_the_same(ported)


@pytest.mark.parametrize(
    'name', ['AutoContrast', 'Pipeline', 'ContrastLimitedAdaptiveHistogramEqualization', 'RandomCrop', 'CenterCrop']
)
def test_what_changes_images_in_evaluation(name: str, base: Any) -> None:
    """Is refused; without it the model converts, by the code that the error names."""
    arguments = {'RandomCrop': (MAP, MAP), 'CenterCrop': (MAP, MAP), 'Pipeline': ([L.RandomFlip()],)}
    layer = getattr(L, name)(*arguments.get(name, ()), name='prepare')
    model = in_front(base, layer)
    error = refused(json.loads(model.to_json()), f'{name} layer')
    code = error.partition('in Keras, save ')[2].rpartition(', which')[0]
    without = eval(code, dict(keras=keras, model=model))
    assert parse(json.loads(without.to_json()), 'model').head.num_classes == 2


# Poolings joined


@pytest.mark.parametrize('kind', POOLED)
def test_pooled_twice(kind: str, base: Any, tmp_path: Path) -> None:
    """Means and maxima, side by side in both orders, or averaged: there and back, and the same function."""
    join, pools, hidden, expected = POOLED[kind]
    model = joined(base, join, pools, *hidden())
    ported = port(archive(model, tmp_path))
    assert ported.model_args['global_pool'] == expected
    assert_computes_the_same(ported)
    with torch.inference_mode():
        logits = ported.model()(torch.from_numpy(IMAGES.transpose(0, 3, 1, 2)))
    np.testing.assert_allclose(logits.softmax(1), model.predict(IMAGES, verbose=0), rtol=1e-4, atol=1e-6)
    preprocessing = Preprocessing('tf', (MAP, MAP), 'bilinear')
    write(tmp_path / 'network', ported, ported.model(), Parity(None, None, [], []), preprocessing, None)
    back_model, network = build_keras(tmp_path / 'network')
    write_keras(back_model, network, tmp_path / 'back.keras')
    back = port(tmp_path / 'back.keras')
    assert (back.model_args, back.final_activation) == (ported.model_args, ported.final_activation)
    assert all(torch.equal(tensor, back.tensors[name]) for name, tensor in ported.tensors.items())
    np.testing.assert_allclose(
        back_model.predict(IMAGES, verbose=0), model.predict(IMAGES, verbose=0), rtol=1e-4, atol=1e-6
    )


def test_pooled_otherwise(base: Any) -> None:
    """Sums, three poolings, a pooling twice, another axis, maxima first without a Dense layer: not this network's."""

    def pooled(join: Any, *pools: Any, after: tuple[Any, ...] = (L.Dense,)) -> dict[str, Any]:
        inputs = keras.Input((MAP, MAP, 3))
        maps = base(inputs)
        x = join([pool()(maps) for pool in pools])
        for layer in after:
            x = layer(2)(x)
        return json.loads(keras.Model(inputs, x).to_json())

    mean, most = L.GlobalAveragePooling2D, L.GlobalMaxPooling2D
    for config in (
        pooled(L.Add(), mean, most), pooled(L.Maximum(), mean, most), pooled(L.Concatenate(), mean, most, L.Flatten),
        pooled(L.Concatenate(), mean, mean), pooled(L.Average(), most, most), pooled(L.Average(), mean, most, mean),
        pooled(L.Concatenate(), most, mean, after=()),
        pooled(L.Concatenate(axis=0), mean, most), pooled(L.Multiply(), mean, most),
    ):  # fmt: skip
        for found in assert_option_works(config, refused(config)):
            assert found.head.num_classes == 0


# Several networks, several inputs


@pytest.mark.parametrize('kind', ENSEMBLES)
def test_the_part_that_converts(kind: str, base: Any, tmp_path: Path) -> None:
    """Each choice that the error names converts, and computes what Keras has at that layer."""
    model = ENSEMBLES[kind](base)
    file = archive(model, tmp_path)
    with pytest.raises(KerasFileError, match='--output-layer') as error:
        port(file)
    choices = str(error.value).rpartition('--output-layer')[2].strip(' :.').split(', ')
    for choice in choices:
        ported = port(file, output_layer=choice)
        if kind == 'features_and_answer':
            assert_computes_the_same(ported, BY_KERAS if choice == 'answer' else BY_PORT)
        if choice not in {layer.name for layer in model.layers}:  # the features, of a model within
            assert ported.model_args['num_classes'] == 0
            continue
        (image,) = (tensor for tensor in model.inputs if len(tensor.shape) == 4)
        part = keras.Model(image, model.get_layer(choice)._inbound_nodes[-1].output_tensors[0])
        expected = part.predict(IMAGES, verbose=0)
        with torch.inference_mode():
            found = ported.model()(torch.from_numpy(IMAGES.transpose(0, 3, 1, 2))).numpy()
        if expected.ndim == 4:
            expected = expected.mean((1, 2))
        found = keras.ops.convert_to_numpy(keras.activations.get(ported.final_activation)(found))
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


# Quantized

QUANTIZE = pytest.mark.filterwarnings('ignore:Layer .* does not have a `quantize` method:UserWarning')


@QUANTIZE
@pytest.mark.parametrize('write_file', [archive, whole_h5], ids=lambda f: f.__name__)
def test_quantized(write_file: Callable[[Any, Path], Path], base: Any, tmp_path: Path) -> None:
    """The file is refused as what it is; what the lines of the docs make of it converts, with the file's kernels."""
    inputs = keras.Input((MAP, MAP, 3))
    head = keras.Sequential([L.GlobalAveragePooling2D(), L.Dense(8, activation='relu'), L.Dense(3, use_bias=True)])
    model = randomised(keras.Model(inputs, head(base(inputs))))
    model.quantize('int8')
    file = write_file(model, tmp_path)
    with pytest.raises(KerasFileError, match=r'(?i)int8.*quantize\(\).*Quantized') as error:
        port(file)
    assert 'docs/port_your_keras_model.md' in str(error.value)
    if write_file is whole_h5:
        return
    page = (ROOT / 'docs' / 'port_your_keras_model.md').read_text().partition('### Quantized')[2]
    (code,) = re.findall(r'```python\n(.*?)```', page, re.DOTALL)
    names = {f"'{name}.keras'": f"'{tmp_path}/{name}.keras'" for name in ('model', 'floating')}
    for name, path in names.items():
        code = code.replace(name, path)
    exec(code, {})
    ported = port(tmp_path / 'floating.keras')
    for tensor, layer in zip(('head.fc_layers.fc1', 'head.fc'), head.layers[1:]):
        kernel, scale = map(keras.ops.convert_to_numpy, (layer.kernel, layer.kernel_scale))
        assert kernel.dtype == np.int8
        np.testing.assert_array_equal(ported.tensors[f'{tensor}.weight'].T, kernel / scale)
    assert_computes_the_same(ported)
    with torch.inference_mode():
        found = ported.model()(torch.from_numpy(IMAGES.transpose(0, 3, 1, 2))).numpy()
    expected = model.predict(IMAGES, verbose=0)
    assert 0 < np.abs(found - expected).max() < 0.02 * np.abs(expected).max()  # that is what rounding inputs does


@QUANTIZE
def test_quantized_weights_alone(base: Any, tmp_path: Path) -> None:
    """They have an array more than a Dense layer."""
    inputs = keras.Input((MAP, MAP, 3))
    model = keras.Model(inputs, L.Dense(3)(L.GlobalAveragePooling2D()(base(inputs))))
    config = tmp_path / 'config.json'
    config.write_text(model.to_json())
    model.quantize('int8')
    file = weights_h5(model, tmp_path)
    with pytest.raises(KerasFileError, match=r'layers/dense/vars/2.*quantize\(\), such as int8'):
        port(file, config)
