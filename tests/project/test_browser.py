"""What Chromium shows of each kind of page: nothing is wider than a phone, and a browser has nothing to complain of."""

import io
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from demo_page import demo
from patience import patience
from PIL import Image
from port_a_keras_model import Checkpoint

from xception_hub.paper.page import write_page
from xception_hub.training.metrics import Predictions
from xception_hub.training.report import render

CHROMIUM, DRIVER = shutil.which('chromium') or shutil.which('google-chrome'), shutil.which('chromedriver')
pytestmark = [
    pytest.mark.needs('selenium'),
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason='needs chromium and chromedriver on the PATH'),
]


class Browser:
    """Chromium."""

    def __init__(self, profile: Path) -> None:
        from selenium import webdriver

        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        flags = 'headless=new no-sandbox disable-gpu disable-quic no-first-run disable-background-networking'
        for flag in [*flags.split(), 'disable-component-update', 'disable-sync', f'user-data-dir={profile}']:
            options.add_argument(f'--{flag}')
        options.set_capability('goog:loggingPrefs', {'browser': 'ALL'})
        self.driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
        self.keys, self.actions = webdriver.Keys, webdriver.ActionChains(self.driver)
        self.run: Any = self.driver.execute_script

    def open(self, address: str) -> None:
        self.driver.get(address)

    def find(self, selector: str) -> Any:
        return self.driver.find_element('css selector', selector)

    def read(self, selector: str) -> str:
        return self.find(selector).text

    def show(self, width: int, scheme: str = 'light') -> None:
        screen = dict(width=width, height=800, deviceScaleFactor=1, mobile=False)
        self.driver.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', screen)
        feature = dict(name='prefers-color-scheme', value=scheme)
        self.driver.execute_cdp_cmd('Emulation.setEmulatedMedia', dict(features=[feature]))

    def fits(self) -> bool:
        return self.run('return document.documentElement.scrollWidth <= innerWidth')

    def complaints(self) -> list[Any]:
        return self.driver.get_log('browser')


@pytest.fixture(scope='module')
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    browser = Browser(tmp_path_factory.mktemp('chromium'))
    yield browser
    browser.driver.quit()


@pytest.mark.slow
def test_page_of_the_paper(browser: Browser, tmp_path: Path) -> None:
    """Sliders are moved, layers clicked, languages switched, by mouse and by keyboard; no text leaves a phone."""
    write_page(tmp_path / 'page.html')
    browser.open((tmp_path / 'page.html').as_uri())
    browser.show(1200)
    right, left = browser.keys.ARROW_RIGHT, browser.keys.ARROW_LEFT
    assert browser.read('#parameters') == '147,456' and 'does not divide' in browser.read('#network-macs')
    browser.find('#segments').send_keys(right)
    assert browser.read('#network-parameters') == '72,318,584'
    assert len(re.findall('3x3 conv', browser.read('#picture'))) == 4
    browser.find('#orders').send_keys(left)
    browser.find('#activations').send_keys(right)
    assert browser.read('#network-parameters') == '62,890,616' and 'ELU' in browser.read('#picture')
    assert 'future work' in browser.read('#meaning')
    browser.find('#presets > :last-child').click()
    assert browser.read('#network-parameters') == '22,855,952' and 'no non-linearity' in browser.read('#picture')
    browser.find('#activations').send_keys(right)
    assert 'figure 10' in browser.read('#meaning')
    browser.find('[data-to=figure_1]').click()
    assert '3x3 average' in browser.read('#picture') and browser.read('output') == '-'

    box = browser.find('[id="exit_flow.1.stack.conv2"] path')
    browser.run("arguments[0].scrollIntoView({block: 'center'})", box)
    box.click()
    assert all(text in browser.read('#layer') for text in ('block14_sepconv2', 'conv4', '3,159,552', '10x10x2048'))
    browser.run("document.getElementById('middle_flow.0.stack.bn1').focus()")
    browser.actions.send_keys(browser.keys.ENTER).perform()
    assert 'block5_sepconv1_bn' in browser.read('#layer') and 'to middle_flow.7' in browser.read('#layer')

    colours = []
    for width, scheme in ((1200, 'light'), (360, 'dark')):
        browser.show(width, scheme)
        for language in ('en', 'zh'):
            browser.find(f'#{language}').click()
            assert browser.fits()
        assert '图 5' in browser.read('section h2') and 'Figure' not in browser.read('body')
        colours.append(browser.run('return getComputedStyle(document.body).backgroundColor'))
    assert colours == ['rgb(255, 255, 255)', 'rgb(21, 24, 28)']
    assert not browser.complaints()


def test_report(browser: Browser, tmp_path: Path) -> None:
    """Of forty classes with long names, on a phone and in a window."""
    logits = torch.randn(1000, 40, generator=torch.Generator().manual_seed(0))
    labels = torch.from_numpy(np.arange(1000) % 40)
    epochs = [dict(phase='all', epoch=i, learning_rate=1e-3, train_loss=2 / i, loss=3 / i, top1=0.5) for i in (1, 2)]
    source = render(
        Predictions.of(logits, labels, torch.arange(1000)),
        class_names=['<b>', '"><img src=x>', 'very_long_' * 30, *(f'class number {number}' for number in range(37))],
        title='very_long_' * 30,
        facts=dict(Model='xception'),
        settings=dict(epochs=2),
        history=epochs,
        warnings=[],
        thumbnail=lambda row: Image.new('RGB', (300, 200), (row % 256, 0, 0)),
        name=lambda row: f'{"directory/" * 10}{row}.jpg',
        usage='x = ' + 'f(' * 100,
    )
    (tmp_path / 'report.html').write_text(source, encoding='utf-8')
    for width in (390, 1200):
        browser.show(width)
        browser.open((tmp_path / 'report.html').as_uri())
        assert browser.fits()
    assert not browser.complaints()


@pytest.mark.slow
@pytest.mark.needs('gradio')
def test_demo(browser: Browser, converted: Path, checkpoint: Checkpoint, tmp_path: Path) -> None:
    """A visitor chooses a photo and reads; nothing comes from elsewhere, and a phone shows the whole.

    PICTURES=docs keeps what the browser shows there: demo.webp, which the docs have, and demo_narrow.webp.
    """
    pictures = Path(os.environ.get('PICTURES', tmp_path))
    photo = next(photo for photo in checkpoint.photos if photo.stem in checkpoint.labels)
    with demo(tmp_path, converted) as address:
        browser.show(400)
        browser.open(address)
        browser.driver.implicitly_wait(patience(60))
        browser.find('input[type=file]').send_keys(str(photo))
        assert browser.read('article.photo li span') == checkpoint.labels[photo.stem]
        assert browser.fits()
        for name, width in (('demo_narrow', 400), ('demo', 900)):
            browser.show(width)
            with Image.open(io.BytesIO(browser.driver.get_screenshot_as_png())) as picture:
                assert len(picture.convert('RGB').getcolors(2**24) or []) > 1000  # with the photo
                picture.save(pictures / f'{name}.webp', quality=80)
        loaded = browser.run('return performance.getEntriesByType("resource").map(r => r.name)')
        assert [name for name in loaded if not name.startswith((address, 'data:', 'blob:'))] == []
        browser.find('body').send_keys(browser.keys.TAB * 2)
        assert 'file' in (browser.driver.switch_to.active_element.get_attribute('aria-label') or '').lower()
