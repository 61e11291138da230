"""The benchmarks run, each at a size that only shows that it does."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT


def run(script: str, *arguments: object) -> str:
    result = subprocess.run(
        [sys.executable, ROOT / 'benchmarks' / script, *map(str, arguments)],
        env={**os.environ, 'PYTHONPATH': str(ROOT)},
        text=True,
        capture_output=True,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_numerics() -> None:
    """At 71 pixels both paddings agree, and at 96 they do not."""
    rows = re.findall(r'^ +(\d+)((?: +-?[\d.]+)+)$', run('numerics.py', '--photos', 1, '--sizes', 71, 96), re.MULTILINE)
    errors = {int(size): [float(value) for value in values.split()] for size, values in rows}
    assert errors.keys() == {71, 96}
    assert errors[71][0] == 0 and errors[71][1] > 0.01 and errors[96][0] > 0.05


def test_checkpoints() -> None:
    """A row of the table; tests/weights runs every kind."""
    rows = run('checkpoints.py', '--only', 'Cadene', '--sizes', 96).splitlines()
    assert rows[2:] == ['| Cadene |  | 0 |']


def test_keras_eras() -> None:
    """A row of the table; tests/porting/test_eras.py runs every kind."""
    rows = run('keras_eras.py', '--only', 'Keras 1.2').splitlines()
    assert re.fullmatch(r'\| Keras 1.2 \| weights \| \d+e-0[678] \|', rows[2])


@pytest.mark.slow
def test_load() -> None:
    assert re.search(r'xception_paper.*\d', run('load.py', '--repeats', 1))


@pytest.mark.slow
def test_convert() -> None:
    assert 'without Keras' in run('convert.py', '--repeats', 1)


@pytest.mark.slow
def test_train() -> None:
    text = run('train.py', '--size', 71, '--batch-size', 2, '--repeats', 1, '--threads', 1)
    assert 'gradient checkpointing' in text and 'images/s' in text


@pytest.mark.slow
def test_gpu() -> None:
    """On the CPU, where precision stays as it is."""
    small = ('--model', 'test_resnet', '--image-size', 32, '--photos', 200, '--batch-size', 8, '--recipes', 'full')
    text = run('gpu.py', *small, '--precisions', 'no', '--workers', 0, '--epochs', 6)
    assert re.search(r'^full +no +0 +[\d.]+ +[\d.]+$', text, re.MULTILINE)
    assert re.search(r'^0 of \d+ tensors differ after an interruption$', text, re.MULTILINE)


def test_ablations(tmp_path: Path) -> None:
    """The door in benchmarks/; what is behind it is tested in tests/paper."""
    text = run('ablations.py', 'draw', ROOT / 'docs' / 'paper' / 'ablations.json', '--folder', tmp_path)
    assert 'figure 9: residual connections help' in text
    assert {path.name for path in tmp_path.iterdir()} == {'figure_9.png', 'figure_10.png', 'continuum_trained.png'}
