"""`python -m xception_hub.paper`: what is counted, that each check can fail, and what is refused."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import call
from conftest import ROOT
from forked import run_code
from torch import nn

from xception_hub import Xception
from xception_hub.paper import __main__ as command
from xception_hub.paper import checks, quoted, speed

TINY = ('--image-size', 80, '--batch-size', 2, '--repeats', 1, '--steps', 1)
COLUMNS = 100  # of a terminal


def xception(**kwargs: Any) -> nn.Module:
    return Xception(device='meta', **kwargs).eval()


@pytest.fixture(scope='module')
def counts() -> checks.Counts:
    return checks.count()


@pytest.fixture(scope='module')
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    """What a whole run, speed included, prints and writes."""
    path = tmp_path_factory.mktemp('paper') / 'paper.json'
    result = call(command.app, *TINY, '--json', path)
    assert result.returncode == 0, result.stderr
    return result.stdout, json.loads(path.read_text())


def failing(counts: checks.Counts) -> set[str]:
    return {claim.claim for claim in checks.check(counts) if not claim.holds}


def with_xception(network: nn.Module, counts: checks.Counts) -> checks.Counts:
    """What is counted if this is the Xception."""
    return counts._replace(
        parameters=dict(counts.parameters, Xception=checks.count_parameters(network)),
        modules=checks.count_modules(network),
        macs=dict(counts.macs, Xception=checks.count_macs(network)['']),
    )


def test_figures(measured: tuple[str, dict[str, Any]]) -> None:
    output, written = measured
    assert written['parameters'] == {'Xception': 22_855_952, 'Inception V3': 23_626_728}
    assert len(written['checks']) == 14 and all(check['holds'] for check in written['checks'])
    assert sum(module['layers'] for module in written['modules']) == 36
    assert sum(module['parameters'] for module in written['modules']) == 22_855_952
    assert sum(module['macs'] for module in written['modules']) == written['macs']['Xception'] == 8_357_403_496
    assert written['macs']['Inception V3'] == 5_713_216_096
    assert written['quoted']['table 1, ImageNet']['Xception'] == {'top-1': 0.790, 'top-5': 0.945}
    assert 'All 14 checks hold.' in output
    assert re.search(r'QUOTED from the paper, not measured', output)
    assert max(map(len, output.splitlines())) <= COLUMNS


def test_speed(measured: tuple[str, dict[str, Any]]) -> None:
    output, written = measured
    speeds = written['speed']['steps_per_second']
    assert written['speed']['settings'] == {'image_size': 80, 'batch_size': 2, 'repeats': 1, 'steps': 1}
    assert written['speed']['ratio'] == pytest.approx(speeds['Xception'] / speeds['Inception V3'])
    assert all(0 < value < 1e4 for value in speeds.values())
    assert re.search(r'^ratio +0\.90 +\d', output, re.MULTILINE)
    assert not any('steps' in check['claim'] for check in written['checks'])


def test_training_is_that_of_the_paper() -> None:
    """One step of SGD on the network itself moves its weights, with the weight decay of the network."""
    training = speed.Training('Xception', speed.workload(75, 2))
    group = training.optimizer.param_groups[0]
    assert (group['lr'], group['momentum'], group['weight_decay']) == (0.045, 0.9, 1e-5)
    assert training.network.head.drop.p == 0.5
    weight = training.network.stem.conv1.weight
    before = weight.detach().clone()
    training.step()
    assert not torch.equal(weight, before)


def test_counting_and_figures(tmp_path: Path) -> None:
    pytest.importorskip('matplotlib')
    result = call(command.app, '--no-speed', '--figures', tmp_path / 'figures')
    assert result.returncode == 0 and not result.stderr, result.stderr
    assert 'All 14 checks hold.' in result.stdout and ', measured' not in result.stdout
    written = re.findall(r'^written: (.+)$', result.stdout, re.MULTILINE)
    assert written and all(Path(path).stat().st_size for path in written)


def test_inception_of_the_paper() -> None:
    """It is a network that computes, and narrower than the published one."""
    inception = checks.create('Inception V3')
    changes = [step.parameters for step in checks.paper_inception(inception)]
    assert changes == [23_834_568, 23_677_256, 23_609_608, 23_626_728]
    assert inception(torch.empty(1, 3, 299, 299, device='meta')).shape == (1, 1000)
    assert checks.count_macs(inception)[''] < 5_713_216_096


def test_macs_by_hand(counts: checks.Counts) -> None:
    """Every weight of a convolution is used once at each position of the map that leaves it."""
    network, expected = xception(), 0

    def add(layer: nn.Module, _inputs: object, output: torch.Tensor) -> None:
        nonlocal expected
        expected += layer.weight.numel() * output.shape[2:].numel()

    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(add)
    network(torch.empty(1, 3, 299, 299, device='meta'))
    assert counts.macs['Xception'] == expected


@pytest.mark.parametrize(
    ('kwargs', 'claims'),
    [
        ({'residual': False}, {'linear residual', 'parameters', 'difference', 'GMACs'}),
        ({'segments': 4}, {'depthwise separable', 'parameters', 'difference', 'GMACs'}),
        ({'num_classes': 10}, {'parameters', 'difference'}),
        ({'mid_act_layer': 'relu'}, set()),
    ],
)
def test_variants_fail(kwargs: dict[str, Any], claims: set[str], counts: checks.Counts) -> None:
    failed = failing(with_xception(xception(**kwargs), counts))
    assert all(any(claim in text for text in failed) for claim in claims), failed
    assert len(failed) == len(claims), failed


def test_missing_module_fails(counts: checks.Counts) -> None:
    network = xception()
    del network.middle_flow[7]
    failed = failing(with_xception(network, counts))
    assert {
        'section 3: convolutional layers',
        'section 3: modules',
        'figure 5: depthwise separable ones',
        'section 3: modules with a linear residual connection',
    } <= failed


def test_unused_or_nonlinear_shortcut_is_none(counts: checks.Counts) -> None:
    network = xception()
    network.middle_flow[0].shortcut = nn.Sequential(nn.Identity(), nn.ReLU())
    network.middle_flow[1].forward = lambda x: network.middle_flow[1].stack(x)
    residual = [module.residual for module in checks.count_modules(network)]
    assert [number for number, found in enumerate(residual, start=1) if found] == [2, 3, 4, 7, 8, 9, 10, 11, 12, 13]


def test_status_of_a_failure(tmp_path: Path) -> None:
    """The command itself, on a network that lacks a module and a residual connection."""
    code = """
from xception_hub import Xception
original = Xception.__init__
def damaged(self, *args, **kwargs):
    original(self, *args, **kwargs)
    del self.middle_flow[7]
    self.middle_flow[3].shortcut = None
Xception.__init__ = damaged
from xception_hub.paper.__main__ import app
app(['--no-speed'])
"""
    status, text = run_code(code, tmp_path, tmp_path / 'log')
    assert status == 1
    assert re.search(r'^\d+ of 14 checks fails?: .*section 3: modules; ', text, re.MULTILINE)
    assert 'Traceback' not in text
    assert re.search(r'^FAILS  section 3: modules: 14, found 13$', text, re.MULTILINE)
    assert re.search(
        r'^FAILS  section 3: modules with a linear residual connection: .*, found 2 3 4 5 6 7 9 10 11 12$',
        text,
        re.MULTILINE,
    )


def test_one_failure_is_enough(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    create = checks.create

    def damaged(name: str) -> nn.Module:
        network = create(name)
        if name == 'Xception':
            network.middle_flow[3].shortcut = None  # which has neither parameters nor multiply-adds
        return network

    monkeypatch.setattr(checks, 'create', damaged)
    with pytest.raises(SystemExit, match='1 of 14.*section 3'):
        command.app(['--no-speed'])
    assert capsys.readouterr().out.count('FAILS') == 1


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (('--batch-size', 0), 'batch_size=0 is not possible: it must be at least 2'),
        (('--image-size', 74), 'image_size=74 is not possible: it must be at least 75 pixels'),
        (('--repeats', 0), 'repeats=0 is not possible: it must be at least 1'),
        (('--steps', -1), 'steps=-1 is not possible: it must be at least 1'),
        (
            ('--json', 'nowhere/paper.json'),
            "json='nowhere/paper.json' is not possible: there must be a folder 'nowhere'",
        ),
        (('--json', 'tests'), "json='tests' is not possible: it is a folder"),
        (('--page', 'tests'), "page='tests' is not possible: it is a folder"),
        (('--figures', 'README.md'), "figures='README.md' is not possible: it is a file"),
    ],
)
def test_bad_input(
    args: tuple[object, ...], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line, before anything is counted."""
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit, match=re.escape(f'error: {message}')) as raised:
        command.app(list(map(str, args)))
    assert '\n' not in str(raised.value.code)
    assert not capsys.readouterr().out


def test_minimum_size_is_true() -> None:
    """Inception V3 takes 75 pixels, and no less."""
    inception = checks.create('Inception V3')
    assert checks.count_macs(inception, speed.MIN_IMAGE_SIZE)[''] > 0
    with pytest.raises(RuntimeError):
        checks.count_macs(inception, speed.MIN_IMAGE_SIZE - 1)


def test_no_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command.importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(SystemExit, match='pip install matplotlib'):
        command.app(['--no-speed', '--figures', 'figures'])


def test_quoted() -> None:
    """The paper's own sums: 4.3% on JFT, and sizes within 3.5%."""
    assert quoted.JFT['Xception'][1] / quoted.JFT['Inception V3'][1] == pytest.approx(1.043, abs=5e-4)
    assert 1 - quoted.PARAMETERS['Xception'] / quoted.PARAMETERS['Inception V3'] < 0.035
