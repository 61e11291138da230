"""The ablations: real trainings of a few images, what is said of them, and what the docs show of the large run."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from commands import call
from conftest import ROOT
from handwritten_digits import handwritten_digits
from PIL import Image

from xception_hub.paper import ablations

COMMITTED = ROOT / 'docs' / 'paper' / 'ablations.json'


@pytest.mark.slow
def test_run(tmp_path: Path) -> None:
    """Two variants, one seed: settings of each, figures of each epoch, curves. Once more, it finds all of it done."""
    digits = handwritten_digits(tmp_path / 'digits', per_class=8)
    arguments = (
        tmp_path / 'runs',
        '--dataset',
        digits,
        '--variants',
        'xception',
        'no_residual',
        '--seeds',
        1,
        '--epochs',
        1,
    )
    result = subprocess.run(
        [sys.executable, ROOT / 'benchmarks' / 'ablations.py', *map(str, arguments)], text=True, capture_output=True
    )
    assert result.returncode == 0, result.stderr
    found = json.loads((tmp_path / 'runs' / 'ablations.json').read_text())
    assert {name: entry['arguments'] for name, entry in found['variants'].items()} == {
        'xception': {},
        'no_residual': {'residual': False},
    }
    assert [found['variants'][name]['parameters'] for name in ('xception', 'no_residual')] == [772_250, 737_274]
    for name, entry in found['variants'].items():
        (run,) = entry['runs']
        (epoch,) = run['epochs']
        config = json.loads((tmp_path / 'runs' / f'{name}-0' / 'config.json').read_text())
        assert entry['arguments'].items() <= config['model_args'].items()
        assert config['model_args']['width_multiplier'] == 0.1875
        assert epoch['top1'] == json.loads((tmp_path / 'runs' / f'{name}-0' / 'metrics.json').read_text())['top1']
        assert f'{epoch["top1"]:.4f}' in result.stdout
    (picture,) = (tmp_path / 'runs').glob('*.png')  # there are no networks for the others
    assert picture.name == 'figure_9.png'
    with Image.open(picture) as image:
        assert image.size == (1320, 540)

    weights = (tmp_path / 'runs' / 'no_residual-0' / 'model.safetensors').stat().st_mtime_ns
    assert call(ablations.app, *arguments).returncode == 0
    assert (tmp_path / 'runs' / 'no_residual-0' / 'model.safetensors').stat().st_mtime_ns == weights
    assert json.loads((tmp_path / 'runs' / 'ablations.json').read_text())['variants'] == found['variants']


@pytest.mark.slow
def test_failed_run(tmp_path: Path) -> None:
    """It is named with its reason, and the exit status tells."""
    result = call(
        ablations.app, tmp_path / 'runs', '--dataset', tmp_path / 'nothing', '--variants', 'xception', '--seeds', 1
    )
    assert result.returncode == 1
    assert 'xception-0' in result.stdout and 'FAILED: error: ' in result.stdout
    assert '1 of 1 runs have failed' in result.stderr


@pytest.mark.parametrize(
    ('arguments', 'named'),
    [
        (('--variants', 'no_residuals'), 'no_residuals'),
        (('--seeds', 0), '--seeds'),
        (('--jobs', 0), '--jobs'),
        (('--scale', 'huge'), '"small", "paper"'),
    ],
)
def test_bad_input(arguments: tuple[Any, ...], named: str, tmp_path: Path) -> None:
    result = call(ablations.app, tmp_path / 'runs', '--dataset', 'digits', *arguments)
    assert result.returncode
    assert named in result.stdout + result.stderr
    assert not (tmp_path / 'runs').exists()


def test_full_scale() -> None:
    """The paper's network, its recipe untouched but for looking at all images once before each run."""
    settings = ablations.settings_of('paper', 'mid_elu', 2, 'ILSVRC/imagenet-1k', None)
    assert settings == dict(
        image_size=299,
        scan=False,
        model_args={'mid_act_layer': 'elu'},
        dataset='ILSVRC/imagenet-1k',
        recipe='paper-imagenet',
        model='xception_paper',
        seed=2,
    )


def result_of(**finals: list[float]) -> dict[str, Any]:
    """A result whose variants end at these top-1 accuracies, seed by seed."""
    return dict(
        images_judged_on=100,
        variants={
            variant: dict(
                parameters=1,
                runs=[
                    dict(
                        seed=seed,
                        epochs=[dict(epoch=1, top1=0.0, train_loss=2.0), dict(epoch=2, top1=top1, train_loss=1.0)],
                    )
                    for seed, top1 in enumerate(values)
                ],
            )
            for variant, values in finals.items()
        },
    )


@pytest.mark.parametrize(
    ('finals', 'verdict'),
    [
        (dict(xception=[0.9, 0.8], no_residual=[0.7, 0.5]), 'the same in all 2 seeds (+25.0 points, +20.0 to +30.0)'),
        (
            dict(xception=[0.7, 0.5], no_residual=[0.9, 0.8]),
            'THE OPPOSITE in all 2 seeds (-25.0 points, -30.0 to -20.0)',
        ),
        (dict(xception=[0.9, 0.5], no_residual=[0.7, 0.8]), 'not decided: the same in 1 of 2 seeds'),
        (dict(xception=[0.9, 0.5], no_residual=[0.9, 0.5]), 'not decided: the same in 0 of 2 seeds'),
        (dict(xception=[0.9, 0.8], no_residual=[0.7]), 'the same in all 1 seeds (+20.0 points, +20.0 to +20.0)'),
    ],
)
def test_verdict(finals: dict[str, list[float]], verdict: str) -> None:
    """Of seeds that both have; a claim holds, or its opposite does, if all of them agree."""
    (line,) = [line for line in ablations.verdicts(result_of(**finals)) if line.startswith('figure 9')]
    assert verdict in line


def test_curves() -> None:
    """The mean of the seeds, between the lowest and the highest."""
    figure = ablations.curves(result_of(xception=[0.2, 0.3, 0.7]), ('xception',), 'A title')
    accuracy, loss = figure.axes
    (line,) = accuracy.lines
    assert line.get_xydata().tolist() == [[1, 0], [2, pytest.approx(0.4)]]
    (band,) = accuracy.collections
    assert band.get_datalim(accuracy.transData).get_points()[:, 1].tolist() == [0, pytest.approx(0.7)]
    assert loss.lines[0].get_ydata().tolist() == [2, 1]


def test_pictures(tmp_path: Path) -> None:
    """Of a whole result; the last one has a point for each seed, and the mean of each network."""
    found = result_of(**{variant: [0.5, 0.7] for variant in ablations.VARIANTS})
    (tmp_path / 'ablations.json').write_text(json.dumps(found))
    ablations.draw(tmp_path / 'ablations.json', folder=tmp_path / 'pictures')
    assert {path.name for path in (tmp_path / 'pictures').iterdir()} == {*ablations.CURVES, 'continuum_trained.png'}
    points, mean = ablations.continuum(found).axes[1].lines[:2]
    assert (list(points.get_ydata()), list(mean.get_ydata())) == ([0.5, 0.7], [pytest.approx(0.6)] * 2)


def test_committed_result() -> None:
    """All variants, three seeds, eight epochs, by the command that the page shows, on real images."""
    found = json.loads(COMMITTED.read_text())
    assert list(found['variants']) == list(reversed(ablations.VARIANTS))
    for variant, entry in found['variants'].items():
        assert entry['arguments'] == ablations.VARIANTS[variant]
        assert [run['seed'] for run in entry['runs']] == [0, 1, 2]
        assert all([row['epoch'] for row in run['epochs']] == list(range(1, 9)) for run in entry['runs'])
    assert found['settings'] == ablations.settings_of('small', 'xception', 0, 'fashion', None)
    assert found['minutes'] < 60
    for page in ('the_paper.md', 'the_paper.zh.md'):
        text = (ROOT / 'docs' / page).read_text()
        assert found['command'] in text
        for line in ablations.verdicts(found):
            assert line in text
