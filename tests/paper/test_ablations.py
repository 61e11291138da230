"""The ablations: real trainings of a few images, what is said of them, and what the docs show of the large run."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from commands import call
from conftest import ROOT
from handwritten_digits import handwritten_digits
from PIL import Image
from scipy import stats

from xception_hub.paper import ablations, experiments, intervals, trained
from xception_hub.paper.checks import count_parameters

DOCS = ROOT / 'docs' / 'paper'
COMMITTED = [DOCS / f'{experiment}.json' for experiment in experiments.NETWORKS]


@pytest.mark.slow
def test_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rate for each of two networks, and a picture. Once more, all of it is done; other settings are refused."""
    digits = handwritten_digits(tmp_path / 'digits', per_class=8)
    arguments = ('--dataset', digits, '--variants', 'xception', 'inception_v3', '--seeds', 1, '--rates', 0.01, 0.03)
    monkeypatch.setattr(ablations, 'MOST_RATES', 2)
    result = call(ablations.app, tmp_path / 'runs', *arguments)
    assert result.returncode == 0, result.stdout + result.stderr
    found = json.loads((tmp_path / 'runs' / 'figures.json').read_text())
    assert [network['parameters'] for network in found['networks'].values()] == [772_250, 775_126]
    assert [network['weight_decay'] for network in found['networks'].values()] == [1e-5, 4e-5]
    for name, network in found['networks'].items():
        assert network['tried'][str(network['learning_rate'])] == max(network['tried'].values())
        assert network['tried'].keys() == {'0.01', '0.03'}
        for run in network['runs']:
            folder = tmp_path / 'runs' / f'{name}-{run["seed"]}'
            assert run['epochs'][-1]['top1'] == json.loads((folder / 'metrics.json').read_text())['top1']
            config = json.loads((folder / 'config.json').read_text())
            assert config['model_args']['width_multiplier'] == 0.1875
    assert (found['train_images'], found['judged_on'], found['updates']) == (60, 20, 1)
    assert 'figure 6: Xception is above Inception V3' in result.stdout
    assert [path.name for path in (tmp_path / 'runs').glob('*.png')] == ['figure_6.png']  # of the others are none
    settings = (tmp_path / 'runs' / 'xception-rate-0.01' / 'settings.yaml').read_text()
    assert 'seed: 1000' in settings and "validation_split: ''" in settings

    before = {path: path.stat().st_mtime_ns for path in (tmp_path / 'runs').glob('*/*')}
    again = call(ablations.app, tmp_path / 'runs', *arguments)
    assert again.returncode == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / 'runs').glob('*/*')} == before
    assert json.loads((tmp_path / 'runs' / 'figures.json').read_text())['networks'] == found['networks']
    other = call(ablations.app, tmp_path / 'runs', *arguments[:4], '--seeds', 1, '--rates', 0.01, '--epochs', 2)
    assert other.returncode == 1 and 'contains a run with other settings' in other.stdout


@pytest.mark.slow
def test_failed_run(tmp_path: Path) -> None:
    """It is named with its reason, and the exit status tells; one without a rate is not trained."""
    arguments = ('--dataset', tmp_path / 'nothing', '--variants', 'xception', '--seeds', 1)
    result = call(ablations.app, tmp_path / 'runs', *arguments)
    assert result.returncode == 1
    assert result.stdout.count('FAILED: error: ') == 1 and 'xception-rate-0.015' in result.stdout
    assert '1 of 1 runs have failed' in result.stderr


@pytest.mark.parametrize(
    ('arguments', 'named'),
    [
        (('--variants', 'no_residuals'), "'no_residuals' is not a network of --experiment figures. It has: xception"),
        (('--experiment', 'spectrum', '--variants', 'xception'), 'segments_1, segments_1_relu'),
        (('--seeds', 0), '--seeds'),
        (('--rates', 0), '--rates'),
        (('--scale', 'huge'), '"small", "gpu", "paper"'),
    ],
)
def test_bad_input(arguments: tuple[Any, ...], named: str, tmp_path: Path) -> None:
    result = call(ablations.app, tmp_path / 'runs', '--dataset', 'digits', *arguments)
    assert result.returncode
    assert named in ' '.join((result.stdout + result.stderr).replace('│', ' ').split())
    assert not (tmp_path / 'runs').exists()


def test_full_scale() -> None:
    """The paper's networks and its recipe, untouched but for looking at all images once before each run."""
    settings = experiments.settings_of('mid_elu', scale='paper', experiment='figures', dataset='imagenet', seed=2)
    names = dict(recipe='paper-imagenet', dataset='imagenet', model='xception_paper')
    assert settings == dict(
        names, image_size=299, scan=False, model_args={'mid_act_layer': 'elu'}, weight_decay=1e-5, seed=2
    )


@pytest.mark.parametrize('scale', experiments.SCALES)
def test_equal_parameters(scale: Any) -> None:
    """All networks of the spectrum have as many within 5 %, whatever the widths are rounded to."""
    counts = []
    for name in experiments.SPECTRUM:
        args = experiments.settings_of(name, scale=scale, experiment='spectrum', dataset='')['model_args']
        with torch.device('meta'):
            counts.append(count_parameters(timm.create_model('xception_paper', num_classes=10, **args)))
    assert max(counts) / min(counts) < 1.05


class Recorded:
    """Runs whose top-1 is a function of the rate: None of one that diverges, -1 of one that fails otherwise."""

    def __init__(self, top1: Any) -> None:
        self.top1 = top1

    def run(self, name: str, settings: dict[str, Any]) -> str:
        self.last = self.top1(settings['learning_rate'])
        return (
            'FAILED: error: The training has diverged' if self.last is None else '' if self.last >= 0 else 'FAILED: x'
        )

    def read(self, name: str, file: str) -> list[dict[str, Any]]:
        return [dict(top1=self.last)]


@pytest.mark.parametrize(
    ('top1', 'tried', 'best'),
    [
        (lambda rate: 1 - abs(rate - 0.1), [0.03, 0.1, 0.3], 0.1),
        (lambda rate: rate, [0.03, 0.1, 0.3, 0.9, 2.7], 2.7),  # no more than five
        (lambda rate: 1 - rate, [0.00333, 0.01, 0.03, 0.1, 0.3], 0.00333),
        (lambda rate: rate if rate < 0.2 else None, [0.03, 0.1, 0.3], 0.1),
    ],
)
def test_rates(top1: Any, tried: list[float], best: float) -> None:
    """Further ones are tried while the best is at an edge; one that diverges is the worst."""
    found = ablations.tried_rates(Recorded(top1), 'xception', {}, [0.03, 0.1, 0.3])  # type: ignore[arg-type]
    assert found is not None
    assert [*sorted(found)] == pytest.approx(tried, rel=0.02)
    assert ablations.best_of(found) == pytest.approx(best, rel=0.02)


def test_rate_of_a_run_that_fails() -> None:
    """It does not count as a bad rate."""
    assert ablations.tried_rates(Recorded(lambda rate: -1), 'xception', {}, [0.03, 0.1]) is None  # type: ignore[arg-type]


def result_of(**finals: list[float]) -> dict[str, Any]:
    """A result whose networks end at these top-1 accuracies, seed by seed."""
    return dict(
        settings=dict(dataset='photos/of-clothes', epochs=1, batch_size=64),
        train_images=60_000,
        updates=938,
        judged_on=10_000,
        networks={
            name: dict(
                parameters=772_250, image_size=75 if name == 'inception_v3' else 56, macs=1, learning_rate=0.1,
                tried={'0.1': 0.5, '0.3': 0.4},
                runs=[
                    dict(seed=seed, epochs=[dict(top1=top1, images_per_second=64)]) for seed, top1 in enumerate(values)
                ],
            )
            for name, values in finals.items()
        },
    )  # fmt: skip


def test_interval() -> None:
    """Student's, as SciPy has it; of one seed it says nothing."""
    values = [0.7, 0.75, 0.71, 0.8, 0.78]
    found = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert intervals.interval(values) == pytest.approx((sum(values) / 5, found.low, found.high))
    assert intervals.interval([0.7]) == (0.7, -math.inf, math.inf)


@pytest.mark.parametrize(
    ('finals', 'verdict'),
    [
        (([0.9, 0.8, 0.7], [0.7, 0.59, 0.51]), r'confirmed \(\+20.0 points, 95% interval \+17.5'),
        (([0.7, 0.59, 0.51], [0.9, 0.8, 0.7]), r'contradicted \(-20.0 points'),
        (([0.9, 0.7, 0.8], [0.7, 0.8, 0.6]), r'undecided \(\+10.0 points'),
        (([0.9, 0.8], [0.7]), r'undecided \(\+20.0 points, 95% interval -inf to \+inf, 1 seeds\)'),
    ],
)
def test_verdict(finals: tuple[list[float], list[float]], verdict: str) -> None:
    """By the interval of the differences, of seeds that both have."""
    result = result_of(xception=finals[0], no_residual=finals[1])
    assert re.search(f'^figure 9.*: {verdict}', '\n'.join(intervals.verdicts(result)), re.MULTILINE)


@pytest.mark.parametrize(
    ('second', 'verdict'), [([0.7, 0.59, 0.51], 'depthwise_first is'), ([1.1, 1.0, 0.91], 'one_per_channel is')]
)
def test_verdict_on_equality(second: list[float], verdict: str) -> None:
    lines = intervals.verdicts(result_of(depthwise_first=[0.9, 0.8, 0.7], one_per_channel=second))
    assert [verdict in line for line in lines if line.startswith('section 1.2')] == [True]


WHOLE = {name: [0.5, 0.7, 0.65] for network in experiments.NETWORKS.values() for name in network}


@pytest.mark.parametrize('picture', trained.PICTURES)
def test_picture(picture: str, tmp_path: Path) -> None:
    """It says its data, scale, updates and seeds. Accuracies are from 0 to 1, differences at least +-5 points."""
    names = trained.PICTURES[picture][1]
    figure = trained.pictures(result_of(**WHOLE))[picture]
    text = figure.get_supxlabel()
    pixels = '56x56 and 75x75 pixels' if 'inception_v3' in names else '56x56 pixels'
    for said in ('of-clothes', '60,000 training', '938 updates of 64', '3 seeds', '10,000 images', pixels, '0.77'):
        assert said in text
    accuracy, difference = figure.axes
    assert accuracy.get_ylim() == (0, 1) and difference.get_ylim() == (-5, 5)
    dots = [line for line in accuracy.lines if line.get_marker() == 'o']
    assert [list(line.get_ydata()) for line in dots] == [WHOLE[name] for name in names]
    (path,) = trained.write(result_of(**{name: WHOLE[name] for name in names}), tmp_path)
    with Image.open(path) as image:
        assert image.info['Description'] == text


def test_large_differences() -> None:
    """They fit, with their intervals; a single seed has none."""
    figures = [
        trained.pictures(result_of(xception=first, no_residual=other))['figure_9.png']
        for first, other in (([0.9, 0.8], [0.3, 0.1]), ([0.9], [0.3]))
    ]
    assert figures[0].axes[1].get_ylim()[1] > 100 * intervals.interval([0.6, 0.7]).high
    assert 60 < figures[1].axes[1].get_ylim()[1] < 100


def test_no_result(tmp_path: Path) -> None:
    (tmp_path / 'old.json').write_text('{"variants": {}}')
    result = call(ablations.app, 'draw', tmp_path / 'old.json')
    assert result.returncode == 1 and 'old.json is not a result of xception-hub ablations' in result.stderr


@pytest.mark.parametrize('file', COMMITTED, ids=lambda file: file.stem)
def test_committed_result(file: Path) -> None:
    """All networks, five seeds, by the command that the pages show; and the pictures are those of this result."""
    found = json.loads(file.read_text())
    assert {*found['networks']} == {*experiments.NETWORKS[file.stem]}
    for name, network in found['networks'].items():
        assert [run['seed'] for run in network['runs']] == [0, 1, 2, 3, 4]
        planned = experiments.settings_of(name, scale='small', experiment=file.stem, dataset='fashion')
        assert all({**found['settings'], **network, 'seed': 0}[setting] == planned[setting] for setting in planned)
        assert network['tried'][str(network['learning_rate'])] == max(network['tried'].values())
    images, updates = {'figures': (60_000, 938), 'spectrum': (12_800, 200)}[file.stem]
    assert (found['train_images'], found['updates'], found['judged_on']) == (images, updates, 10_000)
    for page in ('the_paper.md', 'the_paper.zh.md'):
        text = (ROOT / 'docs' / page).read_text()
        for line in (found['command'], *intervals.table(found), *intervals.verdicts(found)):
            assert line in text
    for name, figure in trained.pictures(found).items():
        with Image.open(DOCS / name) as image:
            assert image.info['Description'] == figure.get_supxlabel()
