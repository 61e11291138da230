"""The network is that of Keras: on the real weights, on photos, after every module, at every size."""

import numpy as np
import pytest
from port_a_keras_model import Checkpoint

from xception_hub import Xception
from xception_hub.porting.parity import TOLERANCES, compare_with_keras, torch_taps
from xception_hub.porting.port import Port
from xception_hub.porting.preprocessing import photo_batch
from xception_hub.porting.reference import KerasReference
from xception_hub.topology import TAPS

# Keras' smallest; its users' and the paper's usual; one that meets odd and even maps in either direction.
SIZES = [(71, 71), (150, 150), (224, 224), (299, 299), (331, 331), (180, 251)]


@pytest.fixture(scope='module')
def model(ported: Port) -> Xception:
    return ported.model()


@pytest.fixture(scope='module', params=TOLERANCES)
def reference(request: pytest.FixtureRequest, ported: Port) -> KerasReference:
    return KerasReference(ported, request.param)


@pytest.mark.parametrize('size', SIZES, ids=lambda size: f'{size[0]}x{size[1]}')
def test_equals_keras(
    model: Xception, reference: KerasReference, size: tuple[int, int], checkpoint: Checkpoint
) -> None:
    """Relative difference at most 1e-12 after every module in float64, 5e-6 after pooling in float32."""
    proof = compare_with_keras(reference, model, size, checkpoint.photos[:1])
    assert proof.first_wrong is None, proof
    assert list(proof.differences) == (TAPS if proof.dtype == 'float64' else ['head.global_pool'])


def test_photos_are_classified_as_in_keras(model: Xception, ported: Port, checkpoint: Checkpoint) -> None:
    """The logits of all 18 photos, in float32."""
    images = np.concatenate([photo_batch([photo], (150, 150)) for photo in checkpoint.photos]).astype(np.float32)
    expected, found = KerasReference(ported, 'float32')(images)['head'], torch_taps(model, images, 'float32')['head']
    np.testing.assert_allclose(found, expected, atol=1e-4)
