"""The network is that of Keras: on the real weights, on photos, after every module, at every size."""
import copy

import numpy as np
import pytest
import torch
from port_a_keras_model import Checkpoint
from torch import nn

from conversion.parity import TOLERANCES, compare_taps, compare_with_keras, torch_taps
from conversion.photos import photo_batch
from conversion.port import Port
from conversion.reference import TAPS, KerasReference
from xception_hub import Xception

# Keras' smallest; its users' and the paper's usual; one that meets odd and even maps in either direction.
SIZES = [(71, 71), (150, 150), (224, 224), (299, 299), (331, 331), (180, 251)]
MUTANT_SIZE = (98, 107)  # small; the first pooling meets an even height
MUTANTS_CAUGHT_AT = 1e-3  # relative difference: a mutant is wrong by far more than a tolerance


@pytest.fixture(scope='module')
def model(ported: Port) -> Xception:
    return ported.model()


@pytest.fixture(scope='module', params=TOLERANCES)
def reference(request: pytest.FixtureRequest, ported: Port) -> KerasReference:
    return KerasReference(ported, request.param)


@pytest.mark.parametrize('size', SIZES, ids=lambda size: f'{size[0]}x{size[1]}')
def test_equals_keras(
        model: Xception, reference: KerasReference, size: tuple[int, int], checkpoint: Checkpoint) -> None:
    """Relative difference at most 1e-12 after every module in float64, 5e-6 after pooling in float32."""
    proof = compare_with_keras(reference, model, size, checkpoint.photos[:1])
    assert proof.first_wrong is None, proof
    assert list(proof.differences) == (TAPS if proof.dtype == 'float64' else ['head.global_pool'])


def test_photos_are_classified_as_in_keras(model: Xception, ported: Port, checkpoint: Checkpoint) -> None:
    """The logits of all 18 photos, in float32."""
    images = np.concatenate([photo_batch([photo], (150, 150)) for photo in checkpoint.photos]).astype(np.float32)
    expected, found = KerasReference(ported, 'float32')(images)['head'], torch_taps(model, images, 'float32')['head']
    np.testing.assert_allclose(found, expected, atol=1e-4)


class Mutants:
    """Networks that are wrong in one thing, and what Keras computes."""

    def __init__(self, ported: Port, model: Xception, checkpoint: Checkpoint) -> None:
        self.ported = ported
        self.model = model
        self.images = photo_batch(checkpoint.photos[:1], MUTANT_SIZE).astype(np.float32)
        self.expected = KerasReference(ported, 'float64')(self.images)

    def first_wrong(self, mutant: Xception) -> str:
        """Where the verifier finds the mutant; fails if it doesn't."""
        proof = compare_taps(self.expected, torch_taps(mutant, self.images, 'float64'), 'float64', MUTANT_SIZE, '')
        assert proof.first_wrong is not None, 'the mutant was not found'
        assert proof.worst > MUTANTS_CAUGHT_AT
        return proof.first_wrong

    def with_arguments(self, **kwargs: object) -> Xception:
        self.ported.model_args.update(kwargs)
        try:
            return self.ported.model()
        finally:
            for name in kwargs:
                del self.ported.model_args[name]


@pytest.fixture(scope='module')
def mutants(ported: Port, model: Xception, checkpoint: Checkpoint) -> Mutants:
    return Mutants(ported, model, checkpoint)


def test_wrong_eps_is_found(mutants: Mutants) -> None:
    assert mutants.first_wrong(mutants.with_arguments(bn_eps=1e-5)) == 'stem'


def test_wrong_padding_is_found(mutants: Mutants) -> None:
    assert mutants.first_wrong(mutants.with_arguments(pool_padding='symmetric')) == 'entry_flow.0'


def test_wrong_activation_is_found(mutants: Mutants) -> None:
    assert mutants.first_wrong(mutants.with_arguments(act_layer='leaky_relu')) == 'stem'


NORMS = [name for name, module in Xception(device='meta').named_modules() if isinstance(module, nn.BatchNorm2d)]
assert len(NORMS) == 40


@pytest.mark.parametrize('name', NORMS)
def test_wrong_batch_norm_is_found(name: str, mutants: Mutants) -> None:
    """Each BatchNorm, confused with its residual counterpart or the next of its shape, is found in its module."""
    mutant = copy.deepcopy(mutants.model)
    norm = mutant.get_submodule(name)
    same_shape = [n for n in NORMS if n != name and mutant.get_submodule(n).num_features == norm.num_features]
    if same_shape:
        counterpart = name.replace('stack.bn2', 'shortcut.bn') if 'stack.bn2' in name else same_shape[0]
        other = mutant.get_submodule(counterpart if counterpart in same_shape else same_shape[0])
        norm.load_state_dict(other.state_dict())
    else:
        with torch.no_grad():
            norm.weight, norm.bias = nn.Parameter(norm.bias.clone()), nn.Parameter(norm.weight.clone())
    module = 'stem' if name.startswith('stem') else '.'.join(name.split('.')[:2])
    assert mutants.first_wrong(mutant) == module


@pytest.mark.parametrize(('name', 'axes'), [
    ('middle_flow.3.stack.conv1.conv_dw.weight', (0, 1, 3, 2)), ('stem.conv1.weight', (0, 1, 3, 2)),
    ('middle_flow.7.stack.conv3.conv_pw.weight', (1, 0, 2, 3)),
])
def test_wrong_axes_are_found(name: str, axes: tuple[int, ...], mutants: Mutants) -> None:
    mutant = copy.deepcopy(mutants.model)
    with torch.no_grad():
        mutant.get_parameter(name).copy_(mutant.get_parameter(name).permute(axes).clone())
    assert mutants.first_wrong(mutant) == ('stem' if 'stem' in name else '.'.join(name.split('.')[:2]))


def test_wrong_classifier_is_found(mutants: Mutants) -> None:
    """Two classes exchanged, which no comparison of features can see."""
    mutant = copy.deepcopy(mutants.model)
    with torch.no_grad():
        for parameter in mutant.head.fc.parameters():
            parameter.copy_(parameter[[1, 0, 2, 3, 4, 5]].clone())
    assert mutants.first_wrong(mutant) == 'head'
