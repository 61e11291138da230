"""Files that tf_keras itself writes. `pip install tensorflow tf_keras`, then `pytest -m tensorflow`."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from keras_files import MODELS, SIZE, expected_tensors, randomised

from xception_hub.porting.parity import compare_with_keras
from xception_hub.porting.port import port
from xception_hub.porting.reference import KerasReference

pytestmark = [
    pytest.mark.tensorflow,
    pytest.mark.filterwarnings('ignore'),  # TensorFlow's own, of which there are many
]


@pytest.fixture(scope='module')
def tf_keras() -> Any:
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
    return pytest.importorskip('tf_keras')


@pytest.fixture(scope='module', params=MODELS)
def model(request: pytest.FixtureRequest, tf_keras: Any) -> Any:
    """With an optimizer's state."""
    model = randomised(MODELS[request.param](tf_keras))
    images = np.zeros((1, SIZE, SIZE, 3))
    model.compile('adam', 'mse')
    model.fit(images, np.zeros_like(model.predict(images, verbose=0)), verbose=0)
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
    network = ported.model()
    with torch.inference_mode():
        features = network.forward_features(torch.from_numpy(images.transpose(0, 3, 1, 2)) * scale + offset)
        found = network.forward_head(features) if ported.structure.head.global_pool else features.permute(0, 2, 3, 1)
    if ported.final_activation != 'linear':
        found = found.softmax(1) if ported.final_activation == 'softmax' else found.sigmoid()
    np.testing.assert_allclose(found, model.predict(images, verbose=0), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize('name', ['model.keras', 'model.h5'])
def test_parity(name: str, model: Any, tmp_path: Path) -> None:
    """Keras 3 confirms them, whether it can read the file or not."""
    WRITERS[name](model, tmp_path / name)
    ported = port(tmp_path / name)
    reference = KerasReference(ported)
    assert compare_with_keras(reference, ported.model(), (71, 78)).first_wrong is None, reference.reading
