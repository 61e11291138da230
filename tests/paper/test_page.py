"""The page to play with: its numbers are those of the networks, and a browser shows them."""

import itertools
import json
import re
import shutil
from collections.abc import Iterator
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


class Browser:
    """Chromium on the page."""

    def __init__(self, page: Path, profile: Path) -> None:
        webdriver = pytest.importorskip('selenium.webdriver')
        chromium = shutil.which('chromium') or shutil.which('google-chrome')
        chromedriver = shutil.which('chromedriver')
        if not chromium or not chromedriver:
            pytest.skip('The page is tried in Chromium, which needs chromium and chromedriver on the PATH.')
        options = webdriver.ChromeOptions()
        options.binary_location = chromium
        options.set_capability('goog:loggingPrefs', {'browser': 'ALL'})
        for switch in (
            'headless', 'no-sandbox', 'disable-gpu', 'no-first-run', 'disable-background-networking',
            'disable-component-update', 'disable-sync', 'lang=en-US', f'user-data-dir={profile}',
        ):  # fmt: skip
            options.add_argument(f'--{switch}')
        service = webdriver.chrome.service.Service(chromedriver)
        self.driver = webdriver.Chrome(options=options, service=service)
        self.keys, self.actions = webdriver.Keys, webdriver.ActionChains(self.driver)
        self.driver.get(page.as_uri())

    def find(self, selector: str) -> Any:
        return self.driver.find_element('css selector', selector)

    def layer(self, name: str) -> Any:
        """The box of a layer, in the middle of the window."""
        box = self.find(f'[id="{name}"] path')
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", box)
        return box

    def read(self, selector: str) -> str:
        return self.find(selector).text

    def show(self, width: int, scheme: str) -> None:
        screen = dict(width=width, height=800, deviceScaleFactor=1, mobile=False)
        self.driver.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', screen)
        feature = dict(name='prefers-color-scheme', value=scheme)
        self.driver.execute_cdp_cmd('Emulation.setEmulatedMedia', dict(features=[feature]))

    def run(self, script: str) -> Any:
        return self.driver.execute_script(script)


@pytest.fixture
def browser(page: Path, tmp_path: Path) -> Iterator[Browser]:
    browser = Browser(page, tmp_path)
    yield browser
    messages = browser.driver.get_log('browser')
    browser.driver.quit()
    assert not messages


def test_in_a_browser(browser: Browser, data: dict[str, Any]) -> None:
    """Sliders are moved, layers clicked, languages switched, by mouse and by keyboard; no text leaves a phone."""
    right, left = browser.keys.ARROW_RIGHT, browser.keys.ARROW_LEFT
    assert browser.read('#parameters') == '147,456' and 'does not divide' in browser.read('#network-macs')
    browser.find('#segments').send_keys(right)
    assert browser.read('#parameters') == f'{data["modules"]["4/pointwise_first/relu"]["parameters"]:,}'
    assert browser.read('#network-parameters') == '72,318,584'
    assert len(re.findall('3x3 conv', browser.read('#picture'))) == 4
    browser.find('#orders').send_keys(left)
    browser.find('#activations').send_keys(right)
    assert browser.read('#network-parameters') == '62,890,616' and 'ELU' in browser.read('#picture')
    assert 'future work' in browser.read('#meaning')
    browser.find('#presets > :last-child').click()
    assert browser.read('#network-parameters') == f'{PARAMETERS:,}' and 'no non-linearity' in browser.read('#picture')
    browser.find('#activations').send_keys(right)
    assert 'figure 10' in browser.read('#meaning')
    browser.find('[data-to=figure_1]').click()
    assert '3x3 average' in browser.read('#picture') and browser.read('output') == '-'

    browser.layer('exit_flow.1.stack.conv2').click()
    assert all(text in browser.read('#layer') for text in ('block14_sepconv2', 'conv4', '3,159,552', '10x10x2048'))
    browser.run("document.getElementById('middle_flow.0.stack.bn1').focus()")
    browser.actions.send_keys(browser.keys.ENTER).perform()
    assert 'block5_sepconv1_bn' in browser.read('#layer') and 'to middle_flow.7' in browser.read('#layer')

    colours = []
    for width, scheme in ((1200, 'light'), (360, 'dark')):
        browser.show(width, scheme)
        for language in ('en', 'zh'):
            browser.find(f'#{language}').click()
            assert browser.run('return document.documentElement.scrollWidth <= innerWidth')
        assert '图 5' in browser.read('section h2') and 'Figure' not in browser.read('body')
        assert '输入, 192' in browser.read('#picture') and '入口流' in browser.read('#columns')
        colours.append(browser.run('return getComputedStyle(document.body).backgroundColor'))
    assert colours == ['rgb(255, 255, 255)', 'rgb(21, 24, 28)']
