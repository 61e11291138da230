"""The verifier verified: whatever is known to go wrong in ports of Xception is rejected, where it is wrong.

Of most of these networks the top-1 predictions on photos are still those of Keras.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from keras_files import archive, randomised
from port_a_keras_model import Checkpoint
from torch import nn

from conversion.prove import prove
from xception_hub import Xception
from xception_hub.porting.consistency import Finding
from xception_hub.porting.declared import check_declared
from xception_hub.porting.parity import compare_taps, compare_with_keras, torch_taps
from xception_hub.porting.port import Port, port
from xception_hub.porting.preprocessing import photo_batch
from xception_hub.porting.reference import KerasReference

SIZE = (98, 107)  # small; the first pooling meets an even height
CAUGHT_AT = 1e-3  # relative difference: a mutant is wrong by far more than a tolerance
RESIDUAL_MODULES = ('entry_flow.0', 'entry_flow.1', 'entry_flow.2', 'exit_flow.0')


class Judge:
    """Compares networks with what Keras computes of one photo, tap by tap, in float64."""

    def __init__(self, ported: Port, checkpoint: Checkpoint) -> None:
        self.ported = ported
        self.images = photo_batch(checkpoint.photos[:1], SIZE).astype(np.float32)
        self.expected = KerasReference(ported, 'float64')(self.images)

    def first_wrong(self, mutant: Xception) -> str:
        """Where the verifier finds the mutant; fails if it doesn't."""
        proof = compare_taps(self.expected, torch_taps(mutant, self.images, 'float64'), 'float64', SIZE, '')
        assert proof.first_wrong is not None, 'the mutant survived'
        assert proof.worst > CAUGHT_AT
        return proof.first_wrong


@pytest.fixture(scope='module')
def judge(ported: Port, checkpoint: Checkpoint) -> Judge:
    return Judge(ported, checkpoint)


@pytest.fixture
def mutant(ported: Port) -> Xception:
    """The right network, to be made wrong."""
    return ported.model()


def test_the_right_network_passes(judge: Judge, mutant: Xception) -> None:
    """Or nothing below would mean anything."""
    proof = compare_taps(judge.expected, torch_taps(mutant, judge.images, 'float64'), 'float64', SIZE, '')
    assert proof.first_wrong is None


# Networks


def with_arguments(mutant: Xception, ported: Port, **kwargs: Any) -> Xception:
    other = Xception(**{**ported.model_args, **kwargs})
    other.load_state_dict(mutant.state_dict())
    return other.eval()


@pytest.mark.parametrize(
    ('kwargs', 'place'),
    [
        (dict(pool_padding='symmetric'), 'entry_flow.0'),
        (dict(bn_eps=1e-5), 'stem'),
        (dict(act_layer='leaky_relu'), 'stem'),
    ],
    ids=str,
)
def test_numerics(kwargs: dict[str, Any], place: str, judge: Judge, mutant: Xception, ported: Port) -> None:
    assert judge.first_wrong(with_arguments(mutant, ported, **kwargs)) == place


def test_padding_with_zeros(judge: Judge, mutant: Xception) -> None:
    """Batch normalization's outputs can be negative, so that zeros win where nothing should."""

    class ZeroPadded(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            height, width = x.shape[2:]
            return F.max_pool2d(F.pad(x, (width % 2, 1, height % 2, 1)), 3, 2)

    for module in (*mutant.entry_flow, mutant.exit_flow[0]):
        module.stack.pool = ZeroPadded()
    assert judge.first_wrong(mutant) == 'entry_flow.0'


def exchange(a: nn.Module, b: nn.Module) -> None:
    state = {name: tensor.clone() for name, tensor in a.state_dict().items()}
    a.load_state_dict(b.state_dict())
    b.load_state_dict(state)


@pytest.mark.parametrize('module', RESIDUAL_MODULES)
def test_residual_normalization_exchanged(module: str, judge: Judge, mutant: Xception) -> None:
    """With the last one of its module, which has its shape."""
    exchange(mutant.get_submodule(f'{module}.shortcut.bn'), mutant.get_submodule(f'{module}.stack.bn2'))
    assert judge.first_wrong(mutant) == module


NORMS = [name for name, module in Xception(device='meta').named_modules() if isinstance(module, nn.BatchNorm2d)]
assert len(NORMS) == 40


def module_of(name: str) -> str:
    return 'stem' if name.startswith('stem') else '.'.join(name.split('.')[:2])


@pytest.mark.parametrize('name', NORMS)
def test_wrong_normalization(name: str, judge: Judge, mutant: Xception) -> None:
    """Each of the 40: with the tensors of another of its shape, or its own exchanged."""
    norm = mutant.get_submodule(name)
    other = next((n for n in NORMS if n != name and mutant.get_submodule(n).num_features == norm.num_features), None)
    if other:
        norm.load_state_dict(mutant.get_submodule(other).state_dict())
    else:
        with torch.no_grad():
            norm.weight, norm.bias = nn.Parameter(norm.bias.clone()), nn.Parameter(norm.weight.clone())
    assert judge.first_wrong(mutant) == module_of(name)


def root_of_variances(norm: nn.BatchNorm2d) -> None:
    norm.running_var.sqrt_()


def no_statistics(norm: nn.BatchNorm2d) -> None:
    norm.running_mean.zero_()
    norm.running_var.fill_(1)


@pytest.mark.parametrize('change', [root_of_variances, no_statistics], ids=lambda f: f.__name__)
def test_statistics(change: Callable[[nn.BatchNorm2d], None], judge: Judge, mutant: Xception) -> None:
    """Keras 1 called the variance `running_std`."""
    for name in NORMS:
        change(mutant.get_submodule(name))
    assert judge.first_wrong(mutant) == 'stem'


@pytest.mark.parametrize(
    ('suffix', 'axes', 'place'),
    [
        ('conv_dw.weight', (0, 1, 3, 2), 'entry_flow.0'),
        ('stem.conv1.weight', (0, 1, 3, 2), 'stem'),
        ('middle_flow.7.stack.conv3.conv_pw.weight', (1, 0, 2, 3), 'middle_flow.7'),
    ],
)
def test_axes_exchanged(suffix: str, axes: tuple[int, ...], place: str, judge: Judge, mutant: Xception) -> None:
    with torch.no_grad():
        for name, parameter in mutant.named_parameters():
            if name.endswith(suffix):
                parameter.copy_(parameter.permute(axes).clone())
    assert judge.first_wrong(mutant) == place


def test_blue_green_red(judge: Judge, mutant: Xception) -> None:
    """Colours in the other order are the first convolution's input channels in the other order."""
    with torch.no_grad():
        mutant.stem.conv1.weight.copy_(mutant.stem.conv1.weight.flip(1).clone())
    assert judge.first_wrong(mutant) == 'stem'


# Classifiers


@pytest.mark.parametrize('order', [[1, 0, 2, 3, 4, 5], [1, 2, 0, 3, 4, 5], [5, 4, 3, 2, 1, 0]], ids=str)
def test_classes_in_another_order(order: list[int], judge: Judge, mutant: Xception) -> None:
    """Of two, of three, of all: no comparison of features sees any."""
    with torch.no_grad():
        for parameter in mutant.head.fc.parameters():
            parameter.copy_(parameter[order].clone())
    assert judge.first_wrong(mutant) == 'head'


def test_dense_layers_exchanged(tmp_path: Path) -> None:
    """Two hidden layers of the same shape."""
    import keras

    base = keras.applications.Xception(weights=None, include_top=False, pooling='avg')
    dense = [keras.layers.Dense(32, activation='relu') for _ in range(3)]
    ported = port(archive(randomised(keras.Sequential([base, *dense, keras.layers.Dense(3)])), tmp_path))
    reference, network = KerasReference(ported), ported.model()
    assert compare_with_keras(reference, network, (71, 71)).first_wrong is None
    exchange(network.head.fc_layers.fc2, network.head.fc_layers.fc3)
    assert compare_with_keras(reference, network, (71, 71)).first_wrong == 'head'


# Directories: how images are prepared, and what classes are called


@pytest.fixture
def directory(converted: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(converted, tmp_path / 'model'))


def change_config(directory: Path, **changes: Any) -> None:
    """Changes fields of a directory's pretrained cfg, or of config.json itself."""
    file = directory / 'config.json'
    config = json.loads(file.read_text())
    for name, value in changes.items():
        (config if name in config else config['pretrained_cfg'])[name] = value
    file.write_text(json.dumps(config))


def failed(checks: list[Finding]) -> dict[str, str]:
    return {check.proof: check.summary for check in checks if not check.passed and check.decisive}


@pytest.mark.parametrize(
    'changes',
    [
        dict(mean=[0.0, 0.0, 0.0], std=[1.0, 1.0, 1.0]),
        dict(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]),
        dict(interpolation='bilinear'),
        dict(interpolation='bicubic'),
        dict(crop_pct=0.875),
        dict(crop_mode='center'),
        dict(input_size=[3, 160, 160]),
    ],
    ids=str,
)
def test_preprocessing(changes: dict[str, Any], directory: Path) -> None:
    """0..1, ImageNet's mean and deviation, another resampling, crop or size."""
    assert failed(check_declared(directory)) == {}
    change_config(directory, **changes)
    assert next(iter(changes)) in failed(check_declared(directory))['input']


def test_class_names(directory: Path) -> None:
    change_config(directory, label_names=['fork', 'cup', 'glass', 'knife', 'plate', 'spoon'])
    assert failed(check_declared(directory)) == {'class names': 'NOT as they were declared'}


@pytest.mark.slow
def test_verify_brings_all_together(directory: Path, ported: Port, checkpoint: Checkpoint) -> None:
    """A directory that is wrong in three ways fails in three proofs, each of which says where."""
    change_config(
        directory,
        label_names=None,
        interpolation='bilinear',
        model_args={**ported.model_args, 'pool_padding': 'symmetric'},
    )
    parity = prove(ported, directory, (), checkpoint.photos)
    assert not parity.passed
    assert {proof.first_wrong for proof in parity.proofs} == {'entry_flow.0', 'head.global_pool'}
    assert failed(parity.checks).keys() == {'class names', 'input'}
    assert 'DIFFERENT from entry_flow.0 on' in parity.report()
    assert [check.proof for check in parity.checks if check.passed and check.decisive] == ['tensors']


@pytest.mark.filterwarnings('error')
@pytest.mark.parametrize(('value', 'is_equal'), [(0.0, True), (1e-9, False)])
def test_network_without_a_signal(value: float, is_equal: bool) -> None:
    """Where Keras returns nothing but zeros, as after a dead ReLU, the network has to return zeros too."""
    expected, found = {'head.global_pool': np.zeros((2, 4))}, {'head.global_pool': np.full((2, 4), value)}
    assert (compare_taps(expected, found, 'float64', SIZE, '').first_wrong is None) is is_equal
