"""`python -m xception_hub.paper`: what it counts, prints and writes, that each check can fail, and what it refuses."""

import itertools
import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from commands import call
from conftest import ROOT
from PIL import Image
from torch import nn

from xception_hub import Xception
from xception_hub.layers import ORDERS
from xception_hub.paper import __main__ as command
from xception_hub.paper import checks, claims, page, quoted, speed
from xception_hub.training.recipes import RECIPES
from xception_hub.training.settings import ModelSettings, Optimization

TINY = '--image-size 80 --batch-size 2'
PARAMETERS, MACS = 22_855_952, 8_357_403_496
PIXELS = (1320, 2000)  # width of a picture, and the most that it is high


class Result(NamedTuple):
    """What a whole run prints and writes."""

    printed: str
    written: dict[str, Any]
    figures: Path
    page: str


@pytest.fixture(scope='module')
def result(tmp_path_factory: pytest.TempPathFactory) -> Result:
    folder = tmp_path_factory.mktemp('paper')
    files = [folder / name for name in ('paper.json', 'figures', 'page.html')]
    arguments = itertools.chain(*zip(('--json', '--figures', '--page'), files))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(speed, 'REPEATS', 1)
        done = call(command.app, TINY, *arguments)
    assert done.returncode == 0, done.stderr
    return Result(done.stdout, json.loads(files[0].read_text()), files[1], files[2].read_text('utf-8'))


@pytest.fixture(scope='module')
def data(result: Result) -> dict[str, Any]:
    """What the page shows."""
    embedded = re.search(r'<script type="application/json" id="data">(.*?)</script>', result.page, re.DOTALL)
    assert embedded
    return json.loads(embedded[1])


@pytest.fixture(scope='module')
def counts() -> checks.Counts:
    return checks.count()


def xception(**kwargs: Any) -> nn.Module:
    return Xception(device='meta', **kwargs).eval()


# What is counted, printed and written


def test_counts(result: Result) -> None:
    found = result.written
    assert found['parameters'] == {'Xception': PARAMETERS, 'Inception V3': 23_626_728}
    assert len(found['checks']) == 14 and all(check['holds'] for check in found['checks'])
    assert sum(module['layers'] for module in found['modules']) == 36
    assert sum(module['parameters'] for module in found['modules']) == PARAMETERS
    assert sum(module['macs'] for module in found['modules']) == found['macs']['Xception'] == MACS
    assert found['macs']['Inception V3'] == 5_713_216_096
    assert 'All 14 checks hold.' in result.printed
    assert 'Xception 0.790, 0.945: quoted' in ' '.join(result.printed.split())
    assert max(map(len, result.printed.splitlines())) <= command.COLUMNS + len(str(result.figures))


def test_speed(result: Result) -> None:
    found = result.written['speed']
    assert found['settings'].items() >= dict(image_size=80, batch_size=2).items()
    speeds = found['steps_per_second']
    assert found['ratio'] == pytest.approx(speeds['Xception'] / speeds['Inception V3'])
    assert all(0 < value < 1e4 for value in speeds.values())
    assert re.search(r'^ratio +0\.90 +\d', result.printed, re.MULTILINE)


def test_training_is_that_of_the_paper(monkeypatch: pytest.MonkeyPatch) -> None:
    """One step of SGD on the network itself moves its weights, with the weight decay of the network."""
    made: list[Any] = []
    create = speed.timm.create_model
    monkeypatch.setattr(speed.timm, 'create_model', lambda *a, **k: made.append(create(*a, **k)) or made[-1])
    sgd = torch.optim.SGD
    monkeypatch.setattr(torch.optim, 'SGD', lambda *a, **k: made.append(k) or sgd(*a, **k))
    step = speed.training_step('Xception', 75, 2)
    network, settings = made
    assert settings == dict(lr=0.045, momentum=0.9, weight_decay=1e-5) and network.head.drop.p == 0.5
    before = network.stem.conv1.weight.detach().clone()
    step()
    assert not torch.equal(network.stem.conv1.weight, before)


def test_pictures(result: Result) -> None:
    names = ['continuum', 'figure_1', 'figure_2', 'figure_3', 'figure_4', 'figure_5', 'separable']
    paths = sorted(result.figures.iterdir())
    assert [path.stem for path in paths] == names
    assert all(f'written: {path}' in result.printed for path in paths)
    for path in paths:
        with Image.open(path) as image:
            assert image.width == PIXELS[0] and 300 < image.height < PIXELS[1], path
            assert len(image.convert('RGB').getcolors(1 << 20) or []) > 20, path


def test_inception_of_the_paper() -> None:
    """It is a network that computes, and narrower than the published one."""
    inception = checks.create('Inception V3')
    changes = [step.parameters for step in checks.paper_inception(inception)]
    assert changes == [23_834_568, 23_677_256, 23_609_608, 23_626_728]
    assert inception(torch.empty(1, 3, 299, 299, device='meta')).shape == (1, 1000)
    assert checks.count_macs(inception)[''] < 5_713_216_096
    assert checks.count_macs(inception, speed.MIN_IMAGE_SIZE)[''] > 0
    with pytest.raises(RuntimeError):
        checks.count_macs(inception, speed.MIN_IMAGE_SIZE - 1)


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


# The paper's sentences


def test_sentences(counts: checks.Counts) -> None:
    """What is counted has a check, each of the paper's checks has a sentence, and the page of the docs has them all."""
    checked = {claim.claim: claim.holds for claim in checks.check(counts)}
    shown = [name for sentence in claims.SENTENCES for name in sentence.checks]
    assert all(checked[name] for name in shown)
    assert all(sentence.checks for sentence in claims.SENTENCES if sentence.how == 'counted')
    of_others = ('Keras: ', 'timm: ', 'sum of the modules')  # what the paper does not state
    assert {name for name in checked if not name.startswith(of_others)} == set(shown)
    text = (ROOT / 'docs' / 'the_paper.md').read_text()
    rows = [f'| {sentence.place} | {sentence.text} | {sentence.how} |' for sentence in claims.SENTENCES]
    assert '\n'.join(rows) in text
    assert all(f'*{how}*: {meaning}' in text for how, meaning in claims.HOW.items())


def recipe(name: str) -> dict[str, Any]:
    """All settings of a recipe that concern the training."""
    return {**asdict(Optimization()), **asdict(ModelSettings()), **RECIPES[name]}


def test_recipes_are_those_of_the_paper() -> None:
    """What is called reproduced of sections 4.2 and 4.3."""
    imagenet, jft = recipe('paper-imagenet'), recipe('paper-jft')
    common = dict(momentum=quoted.MOMENTUM, weight_decay=quoted.WEIGHT_DECAY['Xception'])
    assert imagenet.items() >= dict(
        common, optimizer='sgd', learning_rate=quoted.LEARNING_RATE, decay_rate=quoted.DECAY_RATE,
        decay_epochs=quoted.DECAY_EPOCHS, drop_rate=quoted.DROPOUT,
    ).items()  # fmt: skip
    assert jft.items() >= dict(
        common, optimizer='rmsproptf', learning_rate=quoted.JFT_LEARNING_RATE, decay_rate=quoted.JFT_DECAY_RATE,
        decay_images=quoted.JFT_DECAY_IMAGES, drop_rate=0,
    ).items()  # fmt: skip
    assert 0 < imagenet['ema_decay'] < 1 and 0 < jft['ema_decay'] < 1


def test_quoted() -> None:
    """The paper's own sums: 4.3% on JFT, and sizes within 3.5%."""
    assert quoted.JFT['Xception'][1] / quoted.JFT['Inception V3'][1] == pytest.approx(1.043, abs=5e-4)
    assert 1 - quoted.PARAMETERS['Xception'] / quoted.PARAMETERS['Inception V3'] < 0.035


# Each check can fail


def failing(network: nn.Module, counts: checks.Counts) -> set[str]:
    """The checks that fail if this is the Xception."""
    counted = counts._replace(
        parameters=dict(counts.parameters, Xception=checks.count_parameters(network)),
        modules=checks.count_modules(network),
        macs=dict(counts.macs, Xception=checks.count_macs(network)['']),
    )
    return {claim.claim for claim in checks.check(counted) if not claim.holds}


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
    failed = failing(xception(**kwargs), counts)
    assert all(any(claim in text for text in failed) for claim in claims), failed
    assert len(failed) == len(claims), failed


def test_missing_module_fails(counts: checks.Counts) -> None:
    network = xception()
    del network.middle_flow[7]
    for part in ('convolutional layers', 'modules', 'depthwise separable ones', 'linear residual connection'):
        assert any(part in claim for claim in failing(network, counts))


def test_unused_or_nonlinear_shortcut_is_none(counts: checks.Counts) -> None:
    network = xception()
    network.middle_flow[0].shortcut = nn.Sequential(nn.Identity(), nn.ReLU())
    network.middle_flow[1].forward = lambda x: network.middle_flow[1].stack(x)
    residual = [module.residual for module in checks.count_modules(network)]
    assert [number for number, found in enumerate(residual, start=1) if found] == [2, 3, 4, 7, 8, 9, 10, 11, 12, 13]


def test_another_function_is_no_equivalence(monkeypatch: pytest.MonkeyPatch) -> None:
    def damaged(module: nn.Module) -> nn.Sequential:
        merged = merge(module)
        merged[0].conv_pw.weight.data[0] += 1e-9
        return merged

    merge = checks.merge_towers
    monkeypatch.setattr(checks, 'merge_towers', damaged)
    assert [claim.holds for claim in checks.equivalences()] == [False, True]


def test_status_of_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command, on a network that lacks a residual connection, which has neither parameters nor multiply-adds."""
    create = checks.create

    def damaged(name: str) -> nn.Module:
        network = create(name)
        if name == 'Xception':
            network.middle_flow[3].shortcut = None
        return network

    monkeypatch.setattr(checks, 'create', damaged)
    result = call(command.app, '--no-speed')
    assert result.returncode == 1 and re.search('1 of 14 checks fail.*section 3', result.stderr)
    assert re.findall('^FAILS .*$', result.stdout, re.MULTILINE)[0].endswith('found 2 3 4 5 6 7 9 10 11 12 13')


# What is refused


@pytest.mark.parametrize(
    'arguments',
    [
        *('--batch-size 1', '--image-size 74'),
        *('--json nowhere/paper.json', '--json tests', '--page tests', '--figures README.md'),
    ],
)
def test_bad_input(arguments: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is counted, with the argument and its value."""
    monkeypatch.chdir(ROOT)
    result = call(command.app, arguments)
    name, value = arguments.split()
    assert result.returncode and 'counted' not in result.stdout
    printed = result.stdout + result.stderr
    assert name in printed and value in printed


def test_no_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command.importlib.util, 'find_spec', lambda name: None)
    assert 'pip install matplotlib' in call(command.app, '--no-speed', '--figures', 'figures').stderr


# The page


def test_page_has_the_numbers_of_every_setting(data: dict[str, Any]) -> None:
    """By the formulas of `SeparableConv2d`, whose two orders differ only in which channels the segments divide."""
    chs = page.CHANNELS
    for segments, order, act in itertools.product(page.CHOICES, ORDERS, page.ACTIVATIONS):
        module = data['modules'][f'{segments}/{order}/{act}']
        assert module['parameters'] == chs**2 + 9 * chs**2 // segments
        assert module['macs'] == module['parameters'] * 35**2
        assert ('ReLU' in module['svg'], 'ELU' in module['svg'].replace('ReLU', '')) == (act == 'relu', act == 'elu')
        assert module['svg'].count('3x3 ') == min(segments, 3 if segments > 4 else 4)
    assert data['modules']['figure_2']['parameters'] == data['modules']['3/pointwise_first/relu']['parameters']
    assert {*data['networks']} == {f'{count}/{order}' for count in page.CHOICES if count != 3 for order in ORDERS}
    assert data['networks'][f'{chs}/depthwise_first'] == {'parameters': PARAMETERS, 'macs': MACS}
    wide = checks.count_parameters(xception(segments=4, order='pointwise_first', mid_act_layer='elu'))
    assert data['networks']['4/pointwise_first']['parameters'] == wide


def test_layers_of_the_page_are_the_whole_network(data: dict[str, Any]) -> None:
    """What the layers cost adds up to what the network does, and each can be clicked."""
    total = dict(parameters=0, macs=0)
    for name, layer in data['layers'].items():
        for cost in total:
            total[cost] += layer[cost] * (8 if name.startswith('middle_flow.') else 1)  # drawn once
        assert sum(f'id="{name}"' in svg for svg in data['columns']) == 1
        assert bool(layer['keras']) == bool(layer['legacy']) == bool(layer['parameters']), name
    assert total == dict(parameters=PARAMETERS, macs=MACS)
    assert data['layers']['entry_flow.0.stack.conv1']['legacy'] == 'block1.rep.0'


def test_page_fetches_nothing(result: Result) -> None:
    """The only addresses are those of XML's namespaces and the link to the paper."""
    assert set(re.findall(r'https?://([^/"\\]+)', result.page)) == {'arxiv.org', 'www.w3.org'}
    assert not re.search(r'\ssrc=|@import|url\((?!#)', result.page)
