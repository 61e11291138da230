"""`python -m conversion.prove`: with Keras and without, on directories that are right and on one that is not."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch
from commands import call
from PIL import Image
from port_a_keras_model import Checkpoint

from conversion.prove import app
from xception_hub.porting.consistency import MOST, check_consistency
from xception_hub.porting.port import Port
from xception_hub.porting.preprocessing import photo_batch


@pytest.fixture
def no_keras(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where it is not installed."""
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, 'find_spec', lambda name, package=None: None if name == 'keras' else find(name, package)
    )


@pytest.fixture
def directory(converted: Path, tmp_path: Path) -> Path:
    """A copy of the converted directory, to write to."""
    return Path(shutil.copytree(converted, tmp_path / 'model'))


@pytest.fixture
def wrong_directory(directory: Path) -> Path:
    """The residual BatchNorm of module 3 confused with the last of its stack."""
    file = directory / 'model.safetensors'
    tensors = safetensors.torch.load(file.read_bytes())
    for kind in ('weight', 'bias', 'running_mean', 'running_var'):
        a, b = f'entry_flow.1.shortcut.bn.{kind}', f'entry_flow.1.stack.bn2.{kind}'
        tensors[a], tensors[b] = tensors[b], tensors[a]
    safetensors.torch.save_file(tensors, file)
    return directory


def test_with_keras(checkpoint: Checkpoint, directory: Path) -> None:
    """A row for each of 16 taps, a report that keeps the source, and a plot."""
    result = call(app, checkpoint.model, directory, '--images', checkpoint.model.parent, '--sizes', 71, 96)
    assert result.returncode == 0, result.stderr
    flows = ('stem', 'entry_flow', 'middle_flow', 'exit_flow', 'head')
    assert sum(line.startswith(flows) for line in result.stdout.splitlines()) == 16
    report = json.loads((directory / 'parity.json').read_text())
    assert report['passed']
    assert report['source']['keras_version'] == '3.3.3'
    sizes = {tuple(proof['size']) for proof in report['proofs'] if proof['proof'] == 'Keras'}
    assert sizes == {(150, 150), (71, 71), (96, 96)}
    with Image.open(directory / 'parity.png') as picture:
        assert picture.size == (1350, 675)


@pytest.mark.slow
def test_wrong_network(checkpoint: Checkpoint, wrong_directory: Path) -> None:
    """The exit status, the report and the screen say that it is another network, and where it begins to be."""
    result = call(app, checkpoint.model, wrong_directory, '--sizes', 71)
    assert result.returncode == 1
    assert 'DIFFERENT from entry_flow.1 on' in result.stdout
    assert 'The proof failed' in result.stderr
    assert not json.loads((wrong_directory / 'parity.json').read_text())['passed']


def test_without_keras(checkpoint: Checkpoint, directory: Path, no_keras: None) -> None:
    """It says that the computation was not compared, and what was shown instead."""
    result = call(app, checkpoint.model, directory, '--images', checkpoint.model.parent)
    assert result.returncode == 0, result.stderr
    assert 'NOT compared' in result.stdout
    assert '238 of 238 tensors are bit-identical to the arrays of the file' in result.stdout
    assert '234 of 234 tensors of the backbone are bit-identical' in result.stdout
    report = json.loads((directory / 'parity.json').read_text())
    assert report['reference'] is None
    assert {proof['proof'] for proof in report['proofs'] if proof['decisive']} == {
        'tensors',
        'moving statistics',
        'residual normalizations',
        'class names',
        'input',
    }


def test_wrong_network_without_keras(checkpoint: Checkpoint, wrong_directory: Path, no_keras: None) -> None:
    result = call(app, checkpoint.model, wrong_directory, '--images', checkpoint.model.parent)
    assert result.returncode == 1
    assert 'wrong from entry_flow.1.' in result.stdout
    result = call(app, checkpoint.model, wrong_directory, '--images', checkpoint.model.parent, '--json')
    assert (result.returncode, json.loads(result.stdout)['passed']) == (1, False)


def test_without_photos(checkpoint: Checkpoint, directory: Path, tmp_path: Path, no_keras: None) -> None:
    (tmp_path / 'empty').mkdir()
    result = call(app, checkpoint.model, directory, '--images', tmp_path / 'empty')
    assert (result.returncode, 'holds no file that ends in' in result.stderr) == (1, True)


def test_sizes_below_the_limit(checkpoint: Checkpoint, directory: Path) -> None:
    result = call(app, checkpoint.model, directory, '--sizes', 71, 32)
    assert result.returncode != 0
    assert 'Must be >= 71' in result.stderr


def test_consistency_of_the_genuine_network(ported: Port, checkpoint: Checkpoint) -> None:
    found, _ = check_consistency(ported.model(), photo_batch(checkpoint.photos, (150, 150)))
    assert (len(found.figures['deviations']), found.passed) == (40, True)
    assert max(found.figures['deviations'].values()) < MOST / 1.5


@pytest.mark.parametrize('block', ['entry_flow.0', 'entry_flow.1', 'entry_flow.2', 'exit_flow.0'])
def test_consistency_finds_confused_norms(block: str, ported: Port, checkpoint: Checkpoint) -> None:
    """Each pair that only its values tell apart."""
    model = ported.model()
    shortcut, stack = (model.get_submodule(f'{block}.{name}') for name in ('shortcut.bn', 'stack.bn2'))
    state = {name: tensor.clone() for name, tensor in shortcut.state_dict().items()}
    shortcut.load_state_dict(stack.state_dict())
    stack.load_state_dict(state)
    found, _ = check_consistency(model, photo_batch(checkpoint.photos, (150, 150)))
    assert not found.passed and found.figures['first_wrong'].startswith(block)


def test_consistency_leaves_the_network_as_it_was(ported: Port, checkpoint: Checkpoint) -> None:
    model = ported.model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    check_consistency(model, photo_batch(checkpoint.photos[:2], (71, 71)))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())
