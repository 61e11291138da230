"""The page to play with: its numbers are those of the networks, and a browser shows them."""

import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest

from xception_hub import Xception
from xception_hub.paper.page import ACTIVATIONS, CHANNELS, CHOICES, ORDERS, write_page

PARAMETERS, MACS = 22_855_952, 8_357_403_496  # of Xception, see test_paper.py
REPEATS = 8  # of the middle flow, which is drawn once


@pytest.fixture(scope='module')
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp('page') / 'page.html'
    write_page(path)
    return path


@pytest.fixture(scope='module')
def data(page: Path) -> dict[str, Any]:
    embedded = re.search(
        r'<script type="application/json" id="data">(.*?)</script>', page.read_text('utf-8'), re.DOTALL
    )
    assert embedded
    return json.loads(embedded[1])


def test_every_setting_has_its_numbers(data: dict[str, Any]) -> None:
    """By the formulas of `SeparableConv2d`, whose two orders differ only in which channels the segments divide."""
    for segments, order, act in itertools.product(CHOICES, ORDERS, ACTIVATIONS):
        module = data['modules'][f'{segments}/{order}/{act}']
        assert module['parameters'] == CHANNELS**2 + 9 * CHANNELS**2 // segments
        assert module['macs'] == module['parameters'] * 35**2
        assert ('ReLU' in module['svg'], 'ELU' in module['svg'].replace('ReLU', '')) == (act == 'relu', act == 'elu')
        assert module['svg'].count('3x3 ') == min(segments, 3 if segments > 4 else 4)
    assert data['modules']['figure_2']['parameters'] == data['modules']['3/pointwise_first/relu']['parameters']
    assert data['networks'].keys() == {
        f'{segments}/{order}' for segments in CHOICES if segments != 3 for order in ORDERS
    }
    assert data['networks'][f'{CHANNELS}/depthwise_first'] == {'parameters': PARAMETERS, 'macs': MACS}
    wide = Xception(segments=4, order='pointwise_first', mid_act_layer='elu', device='meta')
    assert data['networks']['4/pointwise_first']['parameters'] == sum(p.numel() for p in wide.parameters())


def test_the_layers_are_the_whole_network(data: dict[str, Any]) -> None:
    """What the layers cost adds up to what the network does, and each can be clicked."""
    total = dict(parameters=0, macs=0)
    for name, layer in data['layers'].items():
        for cost in total:
            total[cost] += layer[cost] * (REPEATS if name.startswith('middle_flow.') else 1)
        assert sum(f'id="{name}"' in svg for svg in data['columns']) == 1
        assert bool(layer['keras']) == bool(layer['legacy']) == bool(layer['parameters']), name
    assert total == dict(parameters=PARAMETERS, macs=MACS)
    assert data['layers']['entry_flow.0.stack.conv1']['legacy'] == 'block1.rep.0'


def test_nothing_is_fetched(page: Path) -> None:
    """The only addresses are those of XML's namespaces and the link to the paper."""
    hosts = set(re.findall(r'https?://([^/"\\]+)', page.read_text('utf-8')))
    assert hosts == {'arxiv.org', 'www.w3.org'}
    assert not re.search(r'\ssrc=|@import|url\((?!#)', page.read_text('utf-8'))
