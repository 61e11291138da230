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
    expected_tensors,
    preset,
    randomised,
    rewritten_config,
    shards,
    weights_h5,
    weights_h5_without_names,
    weights_of_keras2,
    whole_h5,
    whole_h5_of_keras2,
)

from xception_hub.errors import KerasFileError
from xception_hub.porting.declared import choose_preprocessing
from xception_hub.porting.parity import compare_with_keras
from xception_hub.porting.port import Port, port
from xception_hub.porting.reference import BY_KERAS, KerasReference
from xception_hub.topology import TAPS

Writer = Callable[[Any, Path], Path]

HEAD_ARGS: dict[str, dict[str, Any]] = {
    'flat_with_top': dict(num_classes=7, global_pool='avg', in_chans=3),
    'flat_without_top': dict(num_classes=0, global_pool='avg', in_chans=3),
    'flat_with_head': dict(
        num_classes=3,
        global_pool='avg',
        in_chans=3,
        drop_rate=0.5,
        head_layers=[
            {'bn': 1e-3, 'momentum': 0.9},
            {'drop': 0.3},
            {'fc': 128, 'bias': False},
            {'bn': 1e-5},
            {'act': 'relu'},
            {'fc': 128},
            {'act': 'gelu'},
        ],
    ),
    'nested': dict(num_classes=1, global_pool='max', in_chans=3, drop_rate=0.2),
    'sequential': dict(num_classes=5, global_pool='avg', in_chans=3, fc_widths=[64, 64]),
}
FINAL = dict(
    flat_with_top='softmax', flat_without_top='linear', flat_with_head='softmax', nested='sigmoid', sequential='softmax'
)


@pytest.fixture(scope='module', params=MODELS)
def model(request: pytest.FixtureRequest) -> Any:
    model = randomised(MODELS[request.param]())
    model.kind = request.param
    return model


@pytest.fixture(scope='module')
def flat_top() -> Any:
    return randomised(MODELS['flat_with_top']())


def assert_same(ported: Port, model: Any) -> None:
    expected = expected_tensors(model)
    assert ported.tensors.keys() == expected.keys()
    different = [name for name, tensor in expected.items() if not torch.equal(ported.tensors[name], tensor)]
    assert different == []


@pytest.mark.parametrize('write', WITH_CONFIG, ids=lambda f: f.__name__)
def test_with_config(write: Writer, model: Any, tmp_path: Path) -> None:
    """Whole models say everything of their heads."""
    ported = port(write(model, tmp_path))
    assert_same(ported, model)
    assert ported.model_args == HEAD_ARGS[model.kind]
    assert ported.final_activation == FINAL[model.kind]
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
    assert (ported.model_args, ported.final_activation) == (HEAD_ARGS[model.kind], FINAL[model.kind])


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
    """Head, size, range and interpolation come from the preset's files."""
    ported = port(preset(flat_top, tmp_path))
    assert_same(ported, flat_top)
    assert ported.model_args == dict(num_classes=7, global_pool='avg', in_chans=3, drop_rate=0.1)
    assert (ported.final_activation, ported.structure.residuals_by) == ('softmax', 'name')
    found = choose_preprocessing(ported)
    assert (found.image_size, found.interpolation, found.crop_mode) == ((SIZE, SIZE), 'bilinear', 'center')
    assert found.mean_and_std() == ((0.5,) * 3, (0.5,) * 3)
    assert ported.left_out == {'optimizer/vars/0': "the optimizer's state"}


def test_what_tells_the_residuals(flat_top: Any, tmp_path: Path) -> None:
    assert port(archive(flat_top, tmp_path)).structure.residuals_by == 'graph'
    assert port(weights_h5(flat_top, tmp_path)).structure.residuals_by == 'order'


def test_layers_with_other_names(tmp_path: Path) -> None:
    """Someone's copy of Xception: its layers are known by their classes and wires, and Keras reads it by itself."""
    model = randomised(MODELS['flat_with_head']())
    file = rewritten_config(archive_without_names(model, tmp_path), lambda text: text.replace('"block', '"stage'))
    ported = port(file)
    assert_same(ported, model)
    assert (ported.structure.residuals_by, ported.model_args) == ('graph', HEAD_ARGS['flat_with_head'])
    reference = KerasReference(ported)
    assert reference.reading == BY_KERAS
    assert compare_with_keras(reference, ported.model(), (71, 71)).first_wrong is None


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
    assert ported.model_args == HEAD_ARGS['sequential']


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
    ('kind', 'write', 'by_keras'),
    [
        ('flat_with_head', archive, True),
        ('nested', archive, True),
        pytest.param('sequential', archive, True, marks=pytest.mark.slow),
        pytest.param('flat_with_head', whole_h5, True, marks=pytest.mark.slow),
        pytest.param('sequential', whole_h5_of_keras2, True, marks=pytest.mark.slow),
        ('nested', whole_h5_of_keras2, True),  # Keras 3 writes x / 127.5 into .h5, and reads it from a clean config
        pytest.param('flat_with_top', weights_h5_without_names, True, marks=pytest.mark.slow),
        pytest.param('flat_without_top', shards, True, marks=pytest.mark.slow),
        pytest.param('flat_with_top', weights_of_keras2, False, marks=pytest.mark.slow),
        ('flat_with_top', preset, False),
    ],
    ids=lambda value: getattr(value, '__name__', str(value)),
)
def test_parity(kind: str, write: Writer, by_keras: bool, tmp_path: Path) -> None:
    """Keras computes the same; it reads by itself whatever it can, and the proof says if it didn't."""
    ported = port(write(randomised(MODELS[kind]()), tmp_path))
    reference = KerasReference(ported)
    assert reference.by_keras == by_keras, reference.reading
    proof = compare_with_keras(reference, ported.model(), (71, 78))
    assert proof.first_wrong is None, proof
    assert list(proof.differences) == TAPS  # pooled features are compared as the model's output, too
