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
    randomised,
    rewritten_config,
    shards,
    weights_h5_without_names,
    weights_of_keras2,
    whole_h5,
    whole_h5_of_keras2,
)

from xception_hub.errors import KerasFileError
from xception_hub.porting.port import port
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


@pytest.mark.parametrize('kind', ['ImageClassifier', 'Backbone'])
def test_preset(kind: str, tmp_path: Path) -> None:
    """One of KerasHub is refused; the line that the error names makes a file of it, which Keras reads by itself."""
    folder = tmp_path / 'preset'
    folder.mkdir()
    file = folder / ('task.json' if kind == 'ImageClassifier' else 'config.json')
    file.write_text('{"module": "keras_hub.src.models.xception"}')
    with pytest.raises(KerasFileError, match='a preset of KerasHub') as error:
        port(folder)
    code = str(error.value).partition('keras_hub: ')[2].partition(' Convert')[0]
    file.write_text('{}')
    with pytest.raises(KerasFileError, match='is a directory. A source is'):
        port(folder)
    keras_hub = pytest.importorskip('keras_hub')  # pip install --no-deps keras-hub kagglehub kagglesdk
    filters = [[32, 64], [128] * 2, [256] * 2, [728] * 2, *[[728] * 3] * 8, [728, 1024], [1536, 2048]]
    pooling = [False, True, True, True, *[False] * 8, True, False]
    model = keras_hub.models.XceptionBackbone(filters, pooling)
    if kind == 'ImageClassifier':
        model = keras_hub.models.XceptionImageClassifier(model, num_classes=7, activation='softmax')
    model.save_to_preset(folder)
    exec(code.replace('"model.keras"', repr(str(tmp_path / 'model.keras'))))
    ported = port(tmp_path / 'model.keras')
    assert ported.model_args['num_classes'] == (7 if kind == 'ImageClassifier' else 0)
    assert_computes_the_same(ported)


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
    ],
    ids=lambda value: getattr(value, '__name__', str(value)),
)
def test_parity(kind: str, write: Writer, reading: str, tmp_path: Path) -> None:
    """Keras computes the same; it reads by itself whatever it can, and the proof says if it didn't."""
    proof = assert_computes_the_same(port(write(randomised(MODELS[kind]()), tmp_path)), reading)
    assert list(proof.differences) == TAPS  # pooled features are compared as the model's output, too
