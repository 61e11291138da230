"""From a directory that timm loads back to Keras: the same arrays bit by bit, and the same function."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from commands import call
from keras_files import archive, randomised, sequential
from port_a_keras_model import Checkpoint
from random_model import images, random_model

from conversion.convert import convert
from conversion.to_keras import app
from xception_hub.errors import ToKerasError
from xception_hub.porting.declared import choose_preprocessing
from xception_hub.porting.keras_model import build_keras, write_keras
from xception_hub.porting.port import Port, port

FLOAT32 = dict(rtol=1e-4, atol=1e-4)
HIDDEN: list[dict[str, Any]] = [
    {'bn': 1e-3, 'momentum': 0.9}, {'fc': 24, 'bias': False}, {'bn': 1e-5}, {'act': 'silu'}, {'drop': 0.25},
    {'fc': 24}, {'act': 'tanh'},
]  # fmt: skip


def saved(folder: Path, **kwargs: Any) -> Path:
    """The directory of a network with random weights."""
    timm.models.save_for_hf(random_model(**kwargs), folder, safe_serialization=True)
    return folder


# the original takes its image in a list, or warns
@pytest.mark.filterwarnings(r'ignore:[\s\S]*structure of .inputs. does:UserWarning')
def test_keras_to_torch_to_keras(converted: Path, ported: Port, checkpoint: Checkpoint, tmp_path: Path) -> None:
    """All arrays of the original archive return, and Keras predicts the same."""
    import keras

    write_keras(*build_keras(converted), tmp_path / 'model.keras')
    back = port(tmp_path / 'model.keras')
    assert back.tensors.keys() == ported.tensors.keys()
    assert all(torch.equal(back.tensors[name], tensor) for name, tensor in ported.tensors.items())
    assert back.model_args == ported.model_args
    assert (back.image_size, back.final_activation) == (ported.image_size, ported.final_activation)
    x = images(150, 150).permute(0, 2, 3, 1).numpy()
    models = [keras.models.load_model(path, compile=False) for path in (checkpoint.model, tmp_path / 'model.keras')]
    expected, found = (keras.ops.convert_to_numpy(model(x, training=False).detach()) for model in models)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    'kwargs',
    [
        pytest.param(dict(num_classes=5), marks=pytest.mark.slow),
        pytest.param(dict(num_classes=5, fc_widths=(32, 16)), marks=pytest.mark.slow),
        pytest.param(dict(num_classes=0), marks=pytest.mark.slow),
        pytest.param(dict(num_classes=2, global_pool='max', in_chans=1), marks=pytest.mark.slow),
        dict(num_classes=3, head_layers=HIDDEN),
    ],
    ids=str,
)
def test_torch_to_keras_to_torch(kwargs: dict[str, Any], tmp_path: Path) -> None:
    """Heads of all kinds; the reloaded network computes the same bit by bit, and Keras the same within rounding."""
    import keras

    directory = saved(tmp_path / 'network', **kwargs)
    write_keras(*build_keras(directory), tmp_path / 'model.keras')
    network = timm.create_model(f'local-dir:{directory}', pretrained=True).eval()
    ported = port(tmp_path / 'model.keras')
    assert ported.model_args == {
        **dict(global_pool='avg', in_chans=3),
        **{key: list(value) if isinstance(value, tuple) else value for key, value in kwargs.items()},
    }
    again = ported.model()
    x = images(96, 107, chans=network.in_chans)
    with torch.inference_mode():
        assert torch.equal(again(x), network(x))
        keras_model = keras.models.load_model(tmp_path / 'model.keras', compile=False)
        square = images(299, 299, chans=network.in_chans)
        found = keras_model(square.permute(0, 2, 3, 1).numpy(), training=False)
        torch.testing.assert_close(found.detach(), network(square), **FLOAT32)


@pytest.mark.slow
def test_rescaling_returns(tmp_path: Path) -> None:
    """A model that took bytes takes bytes again."""
    model = randomised(sequential())
    ported = port(archive(model, tmp_path))
    preprocessing = choose_preprocessing(ported, interpolation='bilinear')
    assert (preprocessing.input_range, preprocessing.mean_and_std()) == ('raw', ((0.5,) * 3, (0.5,) * 3))
    convert(ported, tmp_path / 'network', preprocessing)
    write_keras(*build_keras(tmp_path / 'network'), tmp_path / 'back.keras')
    back = port(tmp_path / 'back.keras')
    assert back.structure.rescaling == ported.structure.rescaling
    assert (back.model_args, back.final_activation) == (ported.model_args, 'softmax')
    assert all(torch.equal(back.tensors[name], tensor) for name, tensor in ported.tensors.items())


@pytest.mark.slow
def test_trained_on_in_keras(tmp_path: Path) -> None:
    """A network of torch is a layer of a new functional model there, which trains, is saved and loaded, and returns."""
    import keras

    directory = saved(tmp_path / 'network', num_classes=4, pretrained_cfg_overlay=dict(input_size=(3, 71, 71)))
    write_keras(*build_keras(directory), tmp_path / 'model.keras')
    loaded = keras.models.load_model(tmp_path / 'model.keras')
    backbone = next(layer for layer in loaded.layers if isinstance(layer, keras.Model))
    inputs = keras.Input((71, 71, 3))
    features = keras.layers.GlobalAveragePooling2D()(backbone(inputs))
    model = keras.Model(inputs, keras.layers.Dense(2)(features))
    model.compile('sgd', keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    x = images(71, 71, batch=2).permute(0, 2, 3, 1).numpy()
    before = [weight.copy() for weight in backbone.get_weights()]
    model.fit(x, np.array([0, 1]), verbose=0)
    changed = [not np.array_equal(*pair) for pair in zip(before, backbone.get_weights())]
    assert len(changed) == 234 and all(changed)
    model.save(tmp_path / 'trained.keras')
    again = keras.models.load_model(tmp_path / 'trained.keras')
    np.testing.assert_array_equal(again.predict(x, verbose=0), model.predict(x, verbose=0))
    network = port(tmp_path / 'trained.keras').model().eval()
    with torch.inference_mode():
        found = network(torch.from_numpy(x).permute(0, 3, 1, 2))
    torch.testing.assert_close(found, torch.from_numpy(model.predict(x, verbose=0)), **FLOAT32)


def test_weights_alone(converted: Path, tmp_path: Path) -> None:
    """A .weights.h5 that Keras loads into the same model."""
    model, network = build_keras(converted)
    assert write_keras(model, network, tmp_path / 'model.weights.h5') == 238
    expected = model.get_weights()
    for weight in model.weights:
        weight.assign(weight * 0)
    model.load_weights(tmp_path / 'model.weights.h5')
    for a, b in zip(model.get_weights(), expected):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize('activation', ['softmax', 'sigmoid'])
def test_final_activation_returns(activation: str, converted: Path, tmp_path: Path) -> None:
    """Keras' own ending, which the network leaves to its user."""
    shutil.copytree(converted, tmp_path / 'network')
    config = json.loads((converted / 'config.json').read_text())
    config['keras']['final_activation'] = activation
    (tmp_path / 'network' / 'config.json').write_text(json.dumps(config))
    write_keras(*build_keras(tmp_path / 'network'), tmp_path / 'model.keras')
    assert port(tmp_path / 'model.keras').final_activation == activation


@pytest.mark.parametrize(
    ('kwargs', 'reason'),
    [
        (dict(segments=4), "segments=4, but Keras' Xception has segments=None"),
        (dict(pool_padding='symmetric'), "pool_padding='symmetric'"),
        (dict(output_stride=16), 'output_stride=16'),
        (dict(act_layer='leaky_relu'), "act_layer has the activation 'leaky_relu', but Keras has one of"),
        (dict(global_pool='fast'), "global_pool='fast'"),
    ],
)
def test_what_keras_does_not_know(kwargs: dict[str, Any], reason: str, tmp_path: Path) -> None:
    with pytest.raises(ToKerasError, match=reason):
        build_keras(saved(tmp_path, num_classes=2, **kwargs))


def test_the_pyramid_is_the_same_network(tmp_path: Path) -> None:
    """Its name stands for what features_only returns, of which a Keras file knows nothing."""
    directory = saved(tmp_path / 'network', num_classes=2)
    config = json.loads((directory / 'config.json').read_text())
    config['architecture'] = 'xception_paper_pyramid'
    (directory / 'config.json').write_text(json.dumps(config))
    write_keras(*build_keras(directory), tmp_path / 'model.weights.h5')  # compares all arrays
    config['architecture'] = 'xception_paper_mid_elu'
    (directory / 'config.json').write_text(json.dumps(config))
    with pytest.raises(ToKerasError, match="architecture is 'xception_paper_mid_elu', not 'xception_paper'"):
        build_keras(directory)


def test_a_mistake_is_not_written(converted: Path, tmp_path: Path) -> None:
    """A Keras model that isn't the network, and a name that says no format, leave nothing behind."""
    model, network = build_keras(converted)
    model.layers[-1].set_weights([w + 1 for w in model.layers[-1].get_weights()])
    with pytest.raises(ToKerasError, match='something else for head.fc.weight, head.fc.bias'):
        write_keras(model, network, tmp_path / 'model.keras')
    with pytest.raises(ToKerasError, match='must end in one of'):
        write_keras(model, network, tmp_path / 'model.h5')
    assert list(tmp_path.iterdir()) == []


def test_command(converted: Path, tmp_path: Path) -> None:
    result = call(app, converted, '-o', tmp_path / 'model.keras')
    assert result.returncode == 0, result.stderr
    assert '238 arrays are bit-identical' in result.stdout
    result = call(app, tmp_path, '-o', tmp_path / 'other.keras')
    assert (result.returncode, 'has no config.json' in result.stderr) == (1, True)
