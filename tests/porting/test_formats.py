"""Every file in which Keras has kept an Xception gives the same tensors, those that Keras' own objects hold."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import pytest
import torch
from keras_files import (
    MODELS,
    SIZE,
    WEIGHTS_ALONE,
    WITH_CONFIG,
    archive,
    archive_without_names,
    assert_computes_the_same,
    assert_same,
    preset,
    randomised,
    remove_names,
    rewritten_config,
    shards,
    weights_h5_without_names,
    weights_of_keras2,
    whole_h5,
    whole_h5_of_keras2,
)

from xception_hub.errors import KerasFileError
from xception_hub.porting.declared import choose_preprocessing
from xception_hub.porting.port import port
from xception_hub.porting.preset import OF_BACKBONE, OF_CLASSIFIER, WAY_OUT
from xception_hub.porting.reference import BY_KERAS, BY_PORT, WEIGHTS_BY_KERAS
from xception_hub.topology import TAPS

Writer = Callable[[Any, Path], Path]

PLAIN = dict(global_pool='avg', in_chans=3)
HIDDEN = [
    {'bn': 1e-3, 'momentum': 0.9}, {'drop': 0.3}, {'fc': 128, 'bias': False}, {'bn': 1e-5}, {'act': 'relu'},
    {'fc': 128}, {'act': 'gelu'},
]  # fmt: skip
# Model -> arguments of the network, final activation.
HEADS: dict[str, tuple[dict[str, Any], str]] = {
    'flat_with_top': (dict(PLAIN, num_classes=7), 'softmax'),
    'flat_without_top': (dict(PLAIN, num_classes=0), 'linear'),
    'flat_with_head': (dict(PLAIN, num_classes=3, drop_rate=0.5, head_layers=HIDDEN), 'softmax'),
    'nested': (dict(PLAIN, num_classes=1, global_pool='max', drop_rate=0.2), 'sigmoid'),
    'sequential': (dict(PLAIN, num_classes=5, fc_widths=[64, 64]), 'softmax'),
}


@pytest.fixture(scope='module', params=MODELS)
def model(request: pytest.FixtureRequest) -> Any:
    model = randomised(MODELS[request.param]())
    model.kind = request.param
    return model


@pytest.fixture(scope='module')
def flat_top() -> Any:
    return randomised(MODELS['flat_with_top']())


@pytest.mark.parametrize('write', WITH_CONFIG, ids=lambda f: f.__name__)
def test_with_config(write: Writer, model: Any, tmp_path: Path) -> None:
    """Whole models say everything of their heads."""
    ported = port(write(model, tmp_path))
    assert_same(ported, model)
    assert (ported.model_args, ported.final_activation) == HEADS[model.kind]
    assert ported.image_size == (None if model.kind == 'flat_without_top' else (SIZE, SIZE))
    assert set(ported.left_out.values()) <= {"the optimizer's state", 'the state of a random generator'}
    rescaled = model.kind in ('nested', 'sequential')
    assert ported.structure.rescaling == (pytest.approx((1 / 127.5, -1)) if rescaled else (1, 0))


@pytest.mark.parametrize('write', WEIGHTS_ALONE, ids=lambda f: f.__name__)
def test_weights_with_config_beside(write: Writer, model: Any, tmp_path: Path) -> None:
    """The old way: `model.to_json()` in one file, the weights in another."""
    (tmp_path / 'model.json').write_text(model.to_json())
    ported = port(write(model, tmp_path), tmp_path / 'model.json')
    assert_same(ported, model)
    assert (ported.model_args, ported.final_activation) == HEADS[model.kind]


@pytest.mark.parametrize('write', WEIGHTS_ALONE, ids=lambda f: f.__name__)
def test_weights_alone(write: Writer, model: Any, tmp_path: Path) -> None:
    """They are enough where only one head is possible; else the error names what is missing."""
    file = write(model, tmp_path)
    if model.kind in ('flat_with_head', 'sequential'):
        with pytest.raises(KerasFileError, match='Pass --config FILE'):
            port(file)
        return
    ported = port(file)
    assert_same(ported, model)
    assert ported.final_activation == ('linear' if model.kind == 'flat_without_top' else 'unknown')
    assert ported.image_size is None


def test_preset(flat_top: Any, tmp_path: Path) -> None:
    """Head, size, range and interpolation come from the files of a KerasHub preset."""
    ported = port(preset(flat_top, tmp_path))
    assert_same(ported, flat_top)
    assert ported.model_args == dict(num_classes=7, global_pool='avg', in_chans=3, drop_rate=0.1)
    assert (ported.final_activation, ported.keras_version) == ('softmax', '3.15.1')
    assert ported.notes() == ["Left out: the optimizer's state, 1 arrays from optimizer/vars/0 on"]
    found = choose_preprocessing(ported)
    assert (found.image_size, found.interpolation, found.crop_mode) == ((SIZE, SIZE), 'bilinear', 'center')
    assert found.mean_and_std() == ((0.5,) * 3, (0.5,) * 3)
    assert ported.structure.rescaling == (1, 0)  # the converter scales the images, not the model


@pytest.fixture(scope='module')
def whole_preset(flat_top: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return preset(flat_top, tmp_path_factory.mktemp('whole'))


DEEPLAB = dict(module='keras_hub.src.models.deeplab_v3.deeplab_v3_backbone', class_name='DeepLabV3Backbone')
TO_KERAS = r'.* In Python with keras_hub: .*Convert model.keras'


@pytest.mark.parametrize(
    ('file', 'change', 'error'),
    [
        ('config', DEEPLAB, "its backbone is a 'DeepLabV3Backbone'"),
        (
            'config',
            dict(module='as_keras_hub'),
            "a 'XceptionBackbone' of 'as_keras_hub', no XceptionBackbone of KerasHub",
        ),
        ('config', dict(config={}), 'has stackwise_conv_filters None'),
        ('config/config', dict(stackwise_pooling=[True] * 14), 'has stackwise_pooling .*in Keras'),
        ('config/config', dict(stackwise_conv_filters=[[32, 64]]), 'has stackwise_conv_filters .*in Keras'),
        ('config/config', dict(rate=2), 'has rate=2, which is not known to change nothing'),
        ('config/config', dict(stackwise_pooling=None), 'has stackwise_pooling None'),
        ('config', dict(config=[]), 'are not those of a preset'),
        ('task/config', dict(backbone=DEEPLAB), "its backbone is a 'DeepLabV3Backbone'"),
        ('task', dict(class_name='XceptionSegmenter'), "its task is a 'XceptionSegmenter'" + TO_KERAS),
        ('task/config', dict(pooling='max'), "pooling 'max', .* have pooling 'avg'" + TO_KERAS),
        ('task/config', dict(activation='hard_tanh'), "activation 'hard_tanh'" + TO_KERAS),
        ('task/config', dict(dropout=float('nan')), 'dropout nan' + TO_KERAS),
        ('image_converter/config', dict(pad_to_aspect_ratio=True), 'pads the images' + TO_KERAS),
        ('image_converter/config', dict(scale=float('nan')), 'its image converter needs a finite number, .*nan'),
        ('image_converter/config', dict(scale=[1.0] * 4), 'rescales 3 channels'),
        ('image_converter/config', dict(image_size=[8, 8]), 'images are 8x8'),
        ('image_converter/config', dict(image_size='ab'), 'are not those of a preset'),
    ],
)
def test_presets_that_are_refused(
    file: str, change: dict[str, Any], error: str, whole_preset: Path, tmp_path: Path
) -> None:
    name, *keys = file.split('/')
    for path in whole_preset.iterdir():
        (tmp_path / path.name).symlink_to(path)
    content = json.loads((tmp_path / f'{name}.json').read_text())
    changed = content
    for key in keys:
        changed = changed[key]
    changed |= change
    (tmp_path / f'{name}.json').unlink()
    (tmp_path / f'{name}.json').write_text(json.dumps(content))
    with pytest.raises(KerasFileError, match=error) as raised:
        port(tmp_path)
    assert str(tmp_path) in str(raised.value)


@pytest.mark.parametrize(
    ('lost', 'error'),
    [
        ('config.json', 'is a directory. A source is'),
        ('model.weights.h5', 'there is no file .*model.weights.h5'),
        ('task.weights.h5', 'there is no file .*task.weights.h5'),
        ('names', 'do not name their layers' + TO_KERAS),
    ],
)
def test_incomplete_presets(lost: str, error: str, whole_preset: Path, tmp_path: Path) -> None:
    """Files of one are missing, or the names that Keras before 3.6 did not write."""
    for path in whole_preset.iterdir():
        if path.name != lost:
            (tmp_path / path.name).symlink_to(path)
    if lost == 'names':
        weights = tmp_path / 'model.weights.h5'
        content = weights.read_bytes()
        weights.unlink()
        weights.write_bytes(content)
        with h5py.File(weights, 'r+') as f:
            remove_names(f)
    with pytest.raises(KerasFileError, match=error):
        port(tmp_path)


def test_options_that_a_preset_does_not_take(whole_preset: Path) -> None:
    with pytest.raises(KerasFileError, match='leave out --output-layer'):
        port(whole_preset, output_layer='pooler')
    with pytest.raises(KerasFileError, match='holds the config of its model; leave out'):
        port(whole_preset, whole_preset / 'config.json')


@pytest.mark.parametrize('kind', ['ImageClassifier', 'Backbone'])
def test_preset_of_kerashub(kind: str, tmp_path: Path) -> None:
    """As KerasHub writes it, and by the lines that errors name, with the same outputs."""
    keras_hub = pytest.importorskip('keras_hub')  # pip install --no-deps keras-hub kagglehub kagglesdk
    filters = [[32, 64], [128] * 2, [256] * 2, [728] * 2, *[[728] * 3] * 8, [728, 1024], [1536, 2048]]
    pooling = [False, True, True, True, *[False] * 8, True, False]
    model = keras_hub.models.XceptionBackbone(filters, pooling)
    if kind == 'ImageClassifier':
        model = keras_hub.models.XceptionImageClassifier(model, num_classes=7, activation='softmax')
    model.save_to_preset(tmp_path)
    ported = port(tmp_path)
    assert ported.model_args['num_classes'] == (7 if kind == 'ImageClassifier' else 0)
    code = WAY_OUT.format(path=str(tmp_path), **(OF_CLASSIFIER if kind == 'ImageClassifier' else OF_BACKBONE))
    code = code.partition('keras_hub: ')[2].partition('. Convert')[0]
    exec(code.replace('"model.keras"', repr(str(tmp_path / 'model.keras'))))
    of_keras = port(tmp_path / 'model.keras')
    assert_computes_the_same(of_keras)
    assert (of_keras.model_args, of_keras.final_activation) == (ported.model_args, ported.final_activation)
    assert all(torch.equal(tensor, ported.tensors[name]) for name, tensor in of_keras.tensors.items())


def test_layers_with_other_names(tmp_path: Path) -> None:
    """Someone's copy of Xception: its layers are known by their classes and wires, and Keras reads it by itself."""
    model = randomised(MODELS['flat_with_head']())
    file = rewritten_config(archive_without_names(model, tmp_path), lambda text: text.replace('"block', '"stage'))
    ported = port(file)
    assert_same(ported, model)
    assert ported.model_args == HEADS['flat_with_head'][0]
    assert_computes_the_same(ported)


def test_early_sequential(tmp_path: Path) -> None:
    """Until Keras 2.2.3 a Sequential's config was the bare list of its layers, and a functional one a 'Model'."""
    model = randomised(MODELS['sequential']())
    file = whole_h5_of_keras2(model, tmp_path)
    with h5py.File(file, 'r+') as f:
        config = json.loads(f.attrs['model_config'])
        config['config'] = config['config']['layers']
        f.attrs['model_config'] = json.dumps(config).replace('"Functional"', '"Model"')
    ported = port(file)
    assert_same(ported, model)
    assert ported.model_args == HEADS['sequential'][0]


@pytest.mark.parametrize('dtype', ['float16', 'bfloat16'])
def test_half_precision_keeps_its_values(dtype: str, tmp_path: Path) -> None:
    """Arrays in 16 bits, as a model in that precision saves them."""
    import keras

    keras.config.set_dtype_policy(dtype)
    try:
        model = MODELS['flat_with_top']()
    finally:
        keras.config.set_dtype_policy('float32')
    ported = port(archive(model, tmp_path))
    values = [keras.ops.convert_to_numpy(keras.ops.cast(weight, 'float32')) for weight in model.layers[-1].weights]
    assert ported.tensors['head.fc.weight'].dtype == torch.float32
    assert torch.equal(ported.tensors['head.fc.weight'], torch.from_numpy(values[0].T.copy()))
    assert torch.equal(ported.tensors['head.fc.bias'], torch.from_numpy(values[1]))
    assert ported.tensors['stem.conv1.weight'].abs().sum() > 0


# Keras as the judge


@pytest.mark.parametrize(
    ('kind', 'write', 'reading'),
    [
        ('flat_with_head', archive, BY_KERAS),
        ('nested', archive, BY_KERAS),
        pytest.param('sequential', archive, BY_KERAS, marks=pytest.mark.slow),
        pytest.param('flat_with_head', whole_h5, BY_KERAS, marks=pytest.mark.slow),
        pytest.param('sequential', whole_h5_of_keras2, BY_KERAS, marks=pytest.mark.slow),
        ('nested', whole_h5_of_keras2, BY_KERAS),  # Keras 3 writes x / 127.5 into .h5, and reads it from a clean config
        pytest.param('flat_with_top', weights_h5_without_names, WEIGHTS_BY_KERAS, marks=pytest.mark.slow),
        pytest.param('flat_without_top', shards, WEIGHTS_BY_KERAS, marks=pytest.mark.slow),
        ('flat_with_top', weights_of_keras2, BY_PORT),
        ('flat_with_top', preset, BY_PORT),
    ],
    ids=lambda value: getattr(value, '__name__', str(value)),
)
def test_parity(kind: str, write: Writer, reading: str, tmp_path: Path) -> None:
    """Keras computes the same; it reads by itself whatever it can, and the proof says if it didn't."""
    proof = assert_computes_the_same(port(write(randomised(MODELS[kind]()), tmp_path)), reading)
    assert list(proof.differences) == TAPS  # pooled features are compared as the model's output, too
