"""The benchmarks run, each at a size that only shows that it does."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from forked import run_script
from random_model import random_model

from xception_hub.models import classifier
from xception_hub.models.build import Transforms


def run(script: str, *arguments: object) -> str:
    result = subprocess.run(
        [sys.executable, ROOT / 'benchmarks' / script, *map(str, arguments)],
        env={**os.environ, 'PYTHONPATH': str(ROOT)},
        text=True,
        capture_output=True,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def run_forked(script: str, *arguments: object) -> str:
    """The same in less time, for a benchmark that measures nothing of its process and starts no others."""
    return run_script(ROOT / 'benchmarks' / script, *arguments)


def test_numerics() -> None:
    """At 71 pixels both paddings agree, and at 96 they do not."""
    text = run_forked('numerics.py', '--photos', 1, '--sizes', 71, 96)
    rows = re.findall(r'^ +(\d+)((?: +-?[\d.]+)+)$', text, re.MULTILINE)
    errors = {int(size): [float(value) for value in values.split()] for size, values in rows}
    assert errors.keys() == {71, 96}
    assert errors[71][0] == 0 and errors[71][1] > 0.01 and errors[96][0] > 0.05


@pytest.mark.slow
def test_explanations(converted: Path) -> None:
    """The maps depend on the weights, and those of pixels add up to the logit."""
    small = ('--photos', 1, '--image-size', 96, '--model', converted, '--methods', 'gradcam', 'integrated-gradients')
    rows = {row.split()[0]: row.split()[1:] for row in run_forked('explanations.py', *small).splitlines()[1:]}
    assert rows['gradcam'][1] == '-' and float(rows['integrated-gradients'][1]) < 0.1
    assert all(abs(float(row[-1])) < 0.8 for row in rows.values())


def test_checkpoints() -> None:
    """A row of the table; tests/weights runs every kind."""
    rows = run_forked('checkpoints.py', '--only', 'Cadene', '--sizes', 96).splitlines()
    assert rows[2:] == ['| Cadene |  | 0 |']


def test_keras_eras() -> None:
    """A row of the table; tests/porting/test_eras.py runs every kind."""
    rows = run_forked('keras_eras.py', '--only', 'Keras 1.2').splitlines()
    assert re.fullmatch(r'\| Keras 1.2 \| weights \| \d+e-0[678] \|', rows[2])


def test_keras_mutants() -> None:
    """A sample of the table; tests/porting/test_wiring.py has more, and all of them where slow tests run."""
    assert '| tf.keras 2.12 | wire |' in run_forked('keras_mutants.py', '--every', 150)


@pytest.mark.slow
def test_kerashub() -> None:
    """Where the first command of its docstring was run: KerasHub is no requirement, since it brings TensorFlow."""
    pytest.importorskip('keras_hub')
    row = re.search(r'^\| 71 \| (\S+) \|$', run('kerashub.py', '--sizes', 71), re.MULTILINE)
    assert row and 0 < float(row[1]) < 1e-13


@pytest.mark.slow
def test_load() -> None:
    assert re.search(r'xception_paper.*\d', run('load.py', '--repeats', 0))


@pytest.mark.slow
def test_convert() -> None:
    assert 'without Keras' in run('convert.py', '--repeats', 1)


@pytest.mark.slow
def test_train() -> None:
    small = ('--size', 71, '--batch-size', 2, '--repeats', 1, '--threads', 1, '--memory-runs', 1, '--photos', 16)
    text = run('train.py', *small)
    assert 'gradient checkpointing' in text and 'images/s' in text


def test_data() -> None:
    """A row for the table and one for the folder: images, seconds, and what memory grows by."""
    rows = [line.split() for line in run('data.py', '--rows', 300, '--files', 200).splitlines()[1:]]
    assert [(name, int(images)) for name, images, *_ in rows] == [('table', 300), ('folder', 200)]
    assert all(float(figure) >= 0 for row in rows for figure in row[2:])


def test_predict(tmp_path: Path) -> None:
    """With what decoding and network cost alone."""
    model = random_model(num_classes=4, width_multiplier=0.25, min_img_size=32)
    classifier.save(tmp_path, model, Transforms(model, 48).config, list('abcd'), False)
    text = run_forked('predict.py', '--model', tmp_path, '--photos', 3, '--batch-size', 2, '--repeats', 1)
    assert re.search(r'^decoding( +[\d.]+){3}\nnetwork( +[\d.]+){3}\nboth( +[\d.]+){3}$', text, re.MULTILINE)


@pytest.mark.slow
def test_gpu() -> None:
    """On the CPU, where precision stays as it is."""
    small = ('--model', 'test_resnet', '--image-size', 32, '--photos', 80, '--batch-size', 8, '--recipes', 'full')
    text = run('gpu.py', *small, '--precisions', 'no', '--workers', 0, '--epochs', 4)
    assert re.search(r'^full +no +0 +[\d.]+ +[\d.]+$', text, re.MULTILINE)
    assert re.search(r'^0 of \d+ tensors differ after an interruption$', text, re.MULTILINE)


def test_ablations(tmp_path: Path) -> None:
    """The door in benchmarks/; what is behind it is tested in tests/paper."""
    text = run_forked('ablations.py', 'draw', ROOT / 'docs' / 'paper' / 'figures.json', '--folder', tmp_path)
    assert 'figure 9: residual connections help' in text
    assert {path.name for path in tmp_path.iterdir()} == {'figure_6.png', 'figure_9.png', 'figure_10.png'}


def test_inference(tmp_path: Path) -> None:
    """Every contender that is installed, of a small network."""
    small = ('--model', 'test_resnet', '--sizes', 71, '--batch-sizes', 2, '--repeats', 1, '--threads', 1)
    small += ('--precisions', 'fp32', '--layers')
    small += ('--json-file', tmp_path / 'results.json', '--plot', tmp_path / 'results.png')
    text = run_forked('inference.py', *small)
    shapes = json.loads((tmp_path / 'results.json').read_text())['results']
    assert [*shapes] == ['71 pixels, batch 2']
    results = shapes['71 pixels, batch 2']
    assert {'legacy_xception', 'channels_last', 'folded, onnxruntime, fp32'} < results.keys()
    assert results['legacy_xception']['ratio'] == 1 and all(result['of_peak'] > 0 for result in results.values())
    assert re.search(r'^optimize: \w+, fp32( +[\d.]+){4}$', text, re.MULTILINE)
    assert re.search(r'^regular convolutions( +[\d.]+){2}$', text, re.MULTILINE)
    assert (tmp_path / 'results.png').stat().st_size > 10_000
