"""The benchmarks run, each at a size that only shows that it does."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from commands import words
from conftest import ROOT
from forked import run_script
from random_model import save_small

NUMBERS = r'( +[\d.]+)'
SMALL = '--model test_resnet --image-size 32 --photos 80 --batch-size 8 --recipes full --precisions no --workers 0'
# Script -> its options, and patterns of lines that it prints.
SLOW = {  # each in a process of its own, because it measures that process
    'load.py': ('--repeats 0', [r'.*xception_paper.*\d']),
    'convert.py': ('--repeats 1', ['.*without Keras']),
    'train.py': (
        '--size 71 --batch-size 2 --repeats 1 --threads 1 --memory-runs 1 --photos 16',
        ['.*gradient checkpointing', '.*images/s'],
    ),
    # images, seconds, and what memory grows by
    'data.py': ('--rows 300 --files 200', [rf'table +300{NUMBERS}+$', rf'folder +200{NUMBERS}+$']),
    'gpu.py': (f'{SMALL} --epochs 4', [rf'full +no +0{NUMBERS}{{2}}$', r'0 of \d+ tensors differ after an interrup']),
    'kerashub.py': ('--sizes 71', [r'\| 71 \| \d\.\de-1[4-6] \|$']),  # where KerasHub is, which brings TensorFlow
}
FAST = {  # a row of a table whose kinds are all tested elsewhere
    'checkpoints.py': ('--only Cadene --sizes 96', [r'\| Cadene \|  \| 0 \|$']),
    'keras_mutants.py': ('--every 150', [r'\| tf.keras 2.12 \| wire \|']),
}


@pytest.mark.slow
@pytest.mark.parametrize('script', SLOW)
def test_in_a_process(script: str) -> None:
    if script == 'kerashub.py' and not importlib.util.find_spec('keras_hub'):
        pytest.skip('needs KerasHub')
    options, patterns = SLOW[script]
    command = [sys.executable, ROOT / 'benchmarks' / script, *words(options)]
    result = subprocess.run(command, env={**os.environ, 'PYTHONPATH': str(ROOT)}, text=True, capture_output=True)
    assert result.returncode == 0, result.stderr
    assert all(re.search(f'^{pattern}', result.stdout, re.MULTILINE) for pattern in patterns), result.stdout


def run(script: str, *arguments: object) -> str:
    """In less time, for a benchmark that measures nothing of its process and starts no others."""
    return run_script(ROOT / 'benchmarks' / script, *words(*arguments))


@pytest.mark.parametrize('script', FAST)
def test_forked(script: str) -> None:
    options, patterns = FAST[script]
    text = run(script, options)
    assert all(re.search(f'^{pattern}', text, re.MULTILINE) for pattern in patterns), text


def test_keras_eras() -> None:
    """Not among the others for the space in its option's value."""
    rows = run('keras_eras.py', '--only', 'Keras 1.2').splitlines()
    assert re.fullmatch(r'\| Keras 1.2 \| weights \| \d+e-0[678] \|', rows[2])


@pytest.mark.slow
def test_numerics() -> None:
    """At 71 pixels both paddings agree, and at 96 they do not."""
    rows = re.findall(
        rf'^ +(\d+)((?:{NUMBERS}| +-[\d.]+)+)$', run('numerics.py', '--photos 1 --sizes 71 96'), re.MULTILINE
    )
    errors = {int(size): [float(value) for value in values.split()] for size, values, *_ in rows}
    assert errors.keys() == {71, 96}
    assert errors[71][0] == 0 and errors[71][1] > 0.01 and errors[96][0] > 0.05


@pytest.mark.slow
def test_explanations(converted: Path) -> None:
    """The maps depend on the weights, and those of pixels add up to the logit."""
    text = run(
        'explanations.py', '--photos 1 --image-size 96 --methods gradcam integrated-gradients --model', converted
    )
    rows = {row.split()[0]: row.split()[1:] for row in text.splitlines()[1:]}
    assert rows['gradcam'][1] == '-' and float(rows['integrated-gradients'][1]) < 0.1
    assert all(abs(float(row[-1])) < 0.8 for row in rows.values())


def test_predict(tmp_path: Path) -> None:
    """With what decoding and network cost alone."""
    model = save_small(tmp_path, list('abcd'))
    text = run('predict.py', '--photos 3 --batch-size 2 --repeats 1 --model', model)
    assert re.search(rf'^decoding{NUMBERS}{{3}}\nnetwork{NUMBERS}{{3}}\nboth{NUMBERS}{{3}}$', text, re.MULTILINE)


@pytest.mark.slow
def test_inference(tmp_path: Path) -> None:
    """Every contender that is installed, of a small network."""
    small = '--model test_resnet --sizes 71 --batch-sizes 2 --repeats 1 --threads 1 --precisions fp32 --layers'
    text = run('inference.py', small, '--json-file', tmp_path / 'results.json', '--plot', tmp_path / 'results.png')
    shapes = json.loads((tmp_path / 'results.json').read_text())['results']
    assert [*shapes] == ['71 pixels, batch 2']
    results = shapes['71 pixels, batch 2']
    assert {'legacy_xception', 'channels_last', 'folded, onnxruntime, fp32'} < results.keys()
    assert results['legacy_xception']['ratio'] == 1 and all(result['of_peak'] > 0 for result in results.values())
    assert re.search(rf'^optimize: \w+, fp32{NUMBERS}{{4}}$', text, re.MULTILINE)
    assert re.search(rf'^regular convolutions{NUMBERS}{{2}}$', text, re.MULTILINE)
    assert (tmp_path / 'results.png').stat().st_size > 10_000
