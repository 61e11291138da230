"""Files that tf_keras itself writes. `pip install tensorflow tf_keras`, then `pytest -m tensorflow`."""
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from keras_files import SIZE, expected_tensors, randomised

from conversion.parity import compare_with_keras
from conversion.port import port
from conversion.reference import KerasReference

pytestmark = [
    pytest.mark.tensorflow,
    pytest.mark.filterwarnings('ignore'),  # TensorFlow's own, of which there are many
]


@pytest.fixture(scope='module')
def tf_keras() -> Any:
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
    return pytest.importorskip('tf_keras')


def top(k: Any) -> Any:
    return k.applications.Xception(weights=None, classes=9, input_shape=(SIZE, SIZE, 3))


def nested(k: Any) -> Any:
    """With `preprocess_input` in the graph, which leaves TFOpLambda layers, and an optimizer's state."""
    base = k.applications.Xception(weights=None, include_top=False, input_shape=(SIZE, SIZE, 3))
    for layer in base.layers[60:]:
        layer.trainable = False
    inputs = k.Input((SIZE, SIZE, 3))
    x = k.applications.xception.preprocess_input(k.layers.RandomFlip()(inputs))
    x = k.layers.GlobalAveragePooling2D()(base(x, training=False))
    x = k.layers.Dense(16, activation='relu')(k.layers.BatchNormalization()(x))
    return k.Model(inputs, k.layers.Dense(3, activation='softmax')(k.layers.Dropout(0.2)(x)))


def sequential(k: Any) -> Any:
    base = k.applications.Xception(weights=None, include_top=False, pooling='max', input_shape=(SIZE, SIZE, 3))
    base.trainable = False
    return k.Sequential([
        k.layers.Rescaling(1 / 127.5, offset=-1, input_shape=(SIZE, SIZE, 3)), base, k.layers.Dense(2)])


@pytest.fixture(scope='module', params=[top, nested, sequential], ids=lambda f: f.__name__)
def model(request: pytest.FixtureRequest, tf_keras: Any) -> Any:
    model = randomised(request.param(tf_keras))
    classes = model.output_shape[-1]
    model.compile('adam', 'mse')
    model.fit(np.zeros((1, SIZE, SIZE, 3)), np.zeros((1, classes)), verbose=0)
    return model


WRITERS: dict[str, Callable[[Any, Path], Any]] = {
    'model.keras': lambda model, path: model.save(path),
    'model.h5': lambda model, path: model.save(path),
    'weights.h5': lambda model, path: model.save_weights(path),
    'model.weights.h5': lambda model, path: model.save_weights(path),
}


@pytest.mark.parametrize('name', WRITERS)
def test_file(name: str, model: Any, tmp_path: Path) -> None:
    """The tensors are those of tf_keras' objects, and the network computes what tf_keras does."""
    WRITERS[name](model, tmp_path / name)
    (tmp_path / 'model.json').write_text(model.to_json())
    ported = port(tmp_path / name, tmp_path / 'model.json' if 'weights' in name else None)
    expected = expected_tensors(model)
    assert ported.tensors.keys() == expected.keys()
    assert all(torch.equal(ported.tensors[key], tensor) for key, tensor in expected.items())

    images = np.random.default_rng(0).uniform(0, 255, (2, SIZE, SIZE, 3)).astype(np.float32)
    scale, offset = ported.structure.rescaling
    with torch.inference_mode():
        found = ported.model()(torch.from_numpy(images.transpose(0, 3, 1, 2)) * scale + offset)
    if ported.final_activation == 'softmax':
        found = found.softmax(1)
    np.testing.assert_allclose(found, model.predict(images, verbose=0), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize('name', ['model.keras', 'model.h5'])
def test_parity(name: str, model: Any, tmp_path: Path) -> None:
    """Keras 3 confirms them, whether it can read the file or not."""
    WRITERS[name](model, tmp_path / name)
    ported = port(tmp_path / name)
    reference = KerasReference(ported)
    assert compare_with_keras(reference, ported.model(), (71, 78)).first_wrong is None, reference.reading
