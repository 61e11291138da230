"""The report of real predictions: complete, well-formed, harmless whatever the data is called, and in one file."""

import base64
import functools
import io
import itertools
import math
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from xception_hub.errors import ModelError
from xception_hub.training.metrics import PerClass, Predictions, calibration_error, summary
from xception_hub.training.report import render

NAMES = ['zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine']
HOSTILE = [
    '<script>alert(1)</script>',
    '"><img src=http://example.org/x onerror=alert(1)>',
    "' onclick='x",
    '$x_1^{2$ %d',
]
HOSTILE += ['\u05e9\u05dc\u05d5\u05dd', '\N{CAT FACE}', '{{ 7 * 7 }}', '&amp;', '\udcff', 'very long ' * 30]
VOID = {'meta', 'link', 'img', 'br', 'hr', 'input'}


class Page(HTMLParser):
    """Reads a page; fails where a tag is closed that isn't open, or left open.

    Attributes:
        text: Of the whole page, in one line.
        rows: Texts of the cells of each table's rows.
        tags: Names and attributes of all elements.
    """

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.open: list[str] = []
        self.pieces: list[str] = []
        self.feed(source)
        self.close()
        assert self.open == []
        self.text = ' '.join(''.join(self.pieces).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        assert len(dict(attrs)) == len(attrs)
        if tag not in VOID:
            self.open.append(tag)
        if tag == 'tr':
            self.rows.append([])
        if tag in ('td', 'th'):
            self.rows[-1].append('')

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert 'svg' in self.open
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if 'style' in self.open:
            return
        self.pieces.append(data)
        if 'td' in self.open or 'th' in self.open:
            self.rows[-1][-1] += data

    def of_class(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for _, attributes in self.tags if name in (attributes.get('class') or '').split()]


def epoch(number: int, phase: str = 'all', **figures: Any) -> dict[str, Any]:
    falling = dict(learning_rate=1e-3 / number, train_loss=2 / number, loss=3 / number)
    rising = dict(top1=1 - 0.5 / number, macro_f1=1 - 0.6 / number)
    return dict(dict(phase=phase, epoch=number, **falling, **rising), **figures)


HISTORY = [epoch(1, 'head'), epoch(2, 'head'), epoch(1), epoch(2, best=True), epoch(3)]


def page_of(predictions: Predictions, class_names: Sequence[str] = NAMES, **given: Any) -> str:
    defaults: dict[str, Any] = dict(
        title='Digits',
        facts=dict(Model='xception'),
        settings=dict(epochs=3, mixup=None),
        history=HISTORY,
        thumbnail=lambda row: Image.new('RGB', (300, 200), (row % 256, 0, 0)),
        name=lambda row: f'{row}.png',
        warnings=(),
        usage='import timm\n',
    )
    return render(predictions, class_names=class_names, **{**defaults, **given})


def random_predictions(classes: int, images: int = 400, multi_label: bool = False, right: float = 2.0) -> Predictions:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(classes, (images,), generator=generator)
    logits = torch.randn(images, classes, generator=generator)
    logits[torch.arange(images), labels] += right
    if multi_label:
        labels = (torch.rand(images, classes, generator=generator) < 0.3).long()
        logits = torch.randn(images, classes, generator=generator) + 3 * labels - 1.5
    return Predictions.of(logits, labels, torch.arange(images))


@pytest.fixture(scope='module')
def digits() -> Predictions:
    """What a linear model makes of the second half of the digits; rows count from the first."""
    data = load_digits()
    model = LogisticRegression(C=0.01).fit(data.data[:900] / 16, data.target[:900])
    rows = np.arange(900, len(data.target))
    logits = model.decision_function(data.data[rows] / 16)
    return Predictions.of(torch.from_numpy(logits), torch.from_numpy(data.target[rows]), torch.from_numpy(rows))


@functools.cache
def digit(row: int) -> Image.Image:
    return Image.fromarray((load_digits().images[row] * 15).astype(np.uint8))


@pytest.fixture(scope='module')
def source(digits: Predictions) -> str:
    return page_of(digits, thumbnail=digit, warnings=['2 images were left out.'])


@pytest.fixture(scope='module')
def page(source: str) -> Page:
    return Page(source)


def test_order(source: str, page: Page, digits: Predictions) -> None:
    """All sections, and the figures that `summary` computes."""
    assert source.startswith('<!DOCTYPE html>')
    figures = summary(digits, 10)
    texts = [f'{figures[name]:{spec}}' for name, spec in (('top1', '.2%'), ('top5', '.2%'), ('loss', '.4f'))]
    headings = 'Load the model,Training,Learning rate,Classes,Confusions,Worst mistakes,Calibration,Settings'
    expected = ['Digits', *texts, '897', 'xception', '2 images were left out.', *headings.split(','), 'mixup', 'None']
    assert re.search('.*'.join(map(re.escape, expected)), page.text)
    check_nothing_is_loaded(source)
    assert "default-src 'none'" in source


def check_nothing_is_loaded(source: str) -> None:
    for tag, attributes in Page(source).tags:
        assert tag not in ('script', 'iframe', 'object', 'embed', 'base', 'audio', 'video')
        assert not [name for name in attributes if name.startswith('on')]
        assert not {'srcset', 'poster', 'data', 'action', 'background'} & attributes.keys()
        assert (attributes.get('src') or 'data:').startswith('data:')
        for name in ('href', 'xlink:href'):
            assert (attributes.get(name) or '#').startswith(('#', 'data:'))
        assert '//' not in (attributes.get('style') or '')
    assert all(target.startswith('#') for target in re.findall(r'url\(\s*["\']?([^)]*)', source))
    assert '@import' not in source


def pictures(page: Page) -> list[tuple[str, Image.Image]]:
    """The texts for those who do not see the pictures of a page, and the pictures."""
    images = [attributes for tag, attributes in page.tags if tag == 'img']
    decoded = [base64.b64decode((image['src'] or '').split(',')[1]) for image in images]
    assert not any(b'secret' in content for content in decoded)
    return [(image['alt'] or '', Image.open(io.BytesIO(content))) for image, content in zip(images, decoded)]


def test_mistakes(page: Page, digits: Predictions) -> None:
    """The pictures are those of the worst, and the right answer is marked where it is among three."""
    worst = digits.worst(24)
    for (name, shown), index in zip(pictures(page), worst, strict=True):
        assert name == f'{digits.indices[index]}.png'
        difference = np.asarray(shown.convert('L'), float) - np.asarray(digit(digits.indices[index]), float)
        assert shown.size == (8, 8) and np.abs(difference).mean() < 10
    assert len(page.of_class('guess')) == 3 * 24
    right = [card for card in page.of_class('guess') if 'right' in (card['class'] or '')]
    assert len(right) == digits.hits[worst, :3].sum()
    assert f'{len(digits.worst(1000))} images of 897 are wrong' in page.text
    first = worst[0]
    guesses = ' '.join(
        f'{NAMES[number]}{probability:.1%}'
        for number, probability in zip(digits.classes[first][:3], digits.probabilities[first])
    )
    assert f'label{NAMES[digits.labels[first]]} predicted {guesses}' in page.text
    assert f'{digits.indices[first]}.pngloss {digits.losses[first]:.3f}' in page.text.replace('png loss', 'pngloss')


def test_large_pictures() -> None:
    """160 pixels at most, in whatever mode; what a camera wrote into them is not passed on."""

    def photo(row: int) -> Image.Image:
        image = Image.new(['RGBA', 'L', 'P', 'CMYK'][row % 4], (1000, 500))
        image.info['comment'] = b'secret'
        return image

    page = Page(page_of(random_predictions(10), thumbnail=photo))
    assert [shown.size for _, shown in pictures(page)] == [(160, 80)] * 24


def test_failing_pictures(digits: Predictions) -> None:
    """Of 24 images, one cannot be read, and the network has no heat map of another; the reason is shown, harmless."""
    worst = digits.worst(24)
    unreadable, mapless = digits.indices[worst[[1, 2]]]

    def thumbnail(row: int) -> Image.Image:
        if row == unreadable:
            raise ValueError('damaged: <b>')
        return digit(row)

    def heat(row: int, number: int) -> Image.Image:
        if row == mapless:
            raise ModelError('no maps')
        return Image.new('RGB', (100, 100), (number * 20, 0, 0))

    page = Page(page_of(digits, thumbnail=thumbnail, heat=heat))
    maps = [(name, shown) for name, shown in pictures(page) if name.startswith('heat map of')]
    assert len(pictures(page)) == 23 + 22 and 'no picture: damaged: <b>' in page.text and 'Grad-CAM' in page.text
    for (name, shown), index in zip(maps, np.delete(worst, [1, 2]), strict=True):
        assert name == f'heat map of {NAMES[digits.classes[index, 0]]}'
        assert np.asarray(shown)[..., 0].mean() == pytest.approx(digits.classes[index, 0] * 20, abs=4)


def test_classes(page: Page, digits: Predictions) -> None:
    """The weakest first."""
    per_class = PerClass.of(digits, 10)
    shares = np.stack([per_class.precision, per_class.recall, per_class.f1], 1)
    expected = [
        [NAMES[number], str(per_class.support[number]), *map('{:.1%}'.format, shares[number]), '']
        for number in np.argsort(per_class.f1, kind='stable')
    ]
    start = page.rows.index(['Class', 'Images', 'Precision', 'Recall', 'F1', ''])
    assert page.rows[start + 1 : start + 11] == expected


def test_classes_without_images() -> None:
    """Are named, and not the weakest."""
    predictions = Predictions.of(torch.eye(10)[:8], torch.arange(8), torch.arange(8))
    page = Page(page_of(predictions))
    assert 'The weakest first, by F1. 2 classes have no image here: eight, nine.' in page.text
    start = page.rows.index(['Class', 'Images', 'Precision', 'Recall', 'F1', ''])
    assert len([row for row in page.rows[start + 1 :] if len(row) == 6]) == 8


def test_confusion(page: Page, digits: Predictions) -> None:
    """Rows are labels, and columns predictions; in blue is what is right."""
    matrix = digits.confusion(10)
    start = page.rows.index(['label', *NAMES])
    for number, row in enumerate(page.rows[start + 1 : start + 11]):
        assert row == [NAMES[number], *(str(count) if count else '' for count in matrix[number])]
    right = [attributes['style'] for tag, attributes in page.tags if tag == 'td' and attributes.get('class') == 'right']
    assert right == [f'--share:{(count / total) ** 0.5:.3f}' for count, total in zip(matrix.diagonal(), matrix.sum(1))]


@pytest.mark.parametrize('classes', [40, 41, 60, 61])
def test_many_classes(classes: int) -> None:
    names = [f'class {number}' for number in range(classes)]
    predictions = random_predictions(classes, 3000)
    source = page_of(predictions, names)
    page = Page(source)
    matrix = predictions.confusion(classes)
    assert (['label', *names] in page.rows) == (classes <= 40)
    sentence = f'The weakest first, by F1. These are 60 of {classes} classes.'
    assert (sentence in page.text) == (classes > 60)
    start = page.rows.index(['Class', 'Images', 'Precision', 'Recall', 'F1', ''])
    listed = [row[0] for row in page.rows[start + 1 : start + 2 + min(classes, 60)] if len(row) == 6]
    order = np.argsort(PerClass.of(predictions, classes).f1, kind='stable')
    assert listed == [names[number] for number in order[:60]]
    if classes > 40:
        start = page.rows.index(['Label', 'Predicted as', 'Images', 'Share of the label'])
        pairs = page.rows[start + 1 : start + 31]
        support = matrix.sum(1)
        np.fill_diagonal(matrix, 0)
        assert [int(pair[2]) for pair in pairs] == sorted(matrix.ravel(), reverse=True)[:30]
        for label, found, count, share in pairs:
            row, column = names.index(label), names.index(found)
            assert int(count) == matrix[row, column]
            assert share == f'{matrix[row, column] / support[row]:.1%}'
    check_nothing_is_loaded(source)


@pytest.mark.parametrize('classes', [2, 100])
def test_no_mistakes(classes: int) -> None:
    logits = 9 * torch.eye(classes)
    predictions = Predictions.of(logits, torch.arange(classes), torch.arange(classes))
    page = Page(page_of(predictions, [str(number) for number in range(classes)]))
    assert f'There are no mistakes: all {classes} images are right.' in page.text
    assert not page.of_class('cards')
    assert ('Confusions None.' in page.text) == (classes > 40)
    assert ('Top-5' in page.text.split('Load the model')[0]) == (classes > 5)


@pytest.mark.parametrize('classes', [2, 100])
def test_multi_label(classes: int) -> None:
    """Labels are sets; there is no matrix; probabilities are those of the classes, in the order of their numbers."""
    names = [f'class {number}' for number in range(classes)]
    predictions = random_predictions(classes, multi_label=True)
    source = page_of(predictions, names)
    page = Page(source)
    figures = summary(predictions, classes)
    assert f'mAP{figures["mean_average_precision"]:.2%}' in page.text
    assert f'Micro F1{figures["micro_f1"]:.2%}' in page.text
    assert 'Confusions' not in page.text
    first = predictions.worst(1)[0]
    labels = ', '.join(names[number] for number in np.flatnonzero(predictions.labels[first])) or 'none'
    guesses = ' '.join(
        f'{names[number]}{predictions.probabilities[first, number]:.1%}' for number in predictions.classes[first][:3]
    )
    assert f'labels{labels} predicted {guesses}' in page.text
    if classes == 2:
        assert 'labelsnone predicted' in page.text
    check_nothing_is_loaded(source)


def test_hostile_names(digits: Predictions) -> None:
    """Foreign text is text, wherever it comes from."""
    source = page_of(
        digits,
        HOSTILE,
        title=HOSTILE[0],
        facts={HOSTILE[1]: HOSTILE[0]},
        settings={HOSTILE[2]: HOSTILE, 'b': HOSTILE[1]},
        history=[epoch(1, HOSTILE[0]), epoch(1, HOSTILE[1])],
        name=lambda row: HOSTILE[row % 10],
        warnings=HOSTILE,
        usage=HOSTILE[0],
    )
    check_nothing_is_loaded(source)
    source.encode()  # a lone surrogate, as of a file name in another encoding, is none any more
    page = Page(source)
    assert [row for row in page.rows if row and row[0] == HOSTILE[0]]
    for name in HOSTILE[:8]:
        assert page.text.count(name) >= 3
    assert '\\udcff' in page.text
    assert ('bdi', dict(title=HOSTILE[4])) in page.tags  # so that it doesn't turn what is beside it


def epoch_rows(page: Page) -> list[list[str]]:
    start = next(number for number, row in enumerate(page.rows) if row[:2] == ['Phase', 'Epoch'])
    return [*itertools.takewhile(lambda row: len(row) == len(page.rows[start]), page.rows[start:])]


def test_epochs(page: Page) -> None:
    rows = epoch_rows(page)
    assert rows[0] == ['Phase', 'Epoch', 'Training loss', 'Learning rate', 'Top-1', 'Macro F1', 'Loss']
    assert rows[1] == ['head', '1', '2.0000', '1.00e-03', '50.00%', '40.00%', '3.0000']
    assert [' '.join(row[:2]) for row in rows[1:]] == ['head 1', 'head 2', 'all 1', 'all best 2', 'all 3']
    assert 'head (2 epochs), all (3 epochs). Rings mark the best epoch.' in page.text


def chart_of(source: str, name: str) -> ElementTree.Element:
    found = re.search(f'<svg[^>]*aria-label="{name}".*?</svg>', source, re.DOTALL)
    assert found
    return ElementTree.fromstring(found[0])


def curves(source: str, name: str) -> list[list[tuple[float, float]]]:
    """Points [(x, y)] of each line of a chart, in its drawing."""
    lines = []
    for group in chart_of(source, name).findall('./g'):
        circles = [circle for circle in group.findall('circle') if circle.get('class') != 'best']
        points = [(float(circle.get('cx', '')), float(circle.get('cy', ''))) for circle in circles]
        path = re.findall(r'([\d.]+) ([\d.]+)', group[0].get('d', ''))
        assert [(float(x), float(y)) for x, y in path] == points and points
        lines.append(points)
    return lines


def test_curves(source: str) -> None:
    """Points of all epochs where the ticks place them, a ring around the best, a dashed line between the phases."""
    for name, key in dict(Loss='loss', Accuracy='top1').items():
        chart = chart_of(source, name)
        texts = [
            (float(text.get('x', '')), float(text.get('y', '')), text.text or '') for text in chart.findall('text')
        ]
        ticks = [(y - 4, float(label.rstrip('%')) / (100 if '%' in label else 1)) for x, y, label in texts if x == 40]
        (low, first), (high, last) = ticks[0], ticks[-1]
        assert 2 <= len(ticks) <= 7
        for (_, y), row in zip(curves(source, name)[1], HISTORY):
            value = first + (y - low) / (high - low) * (last - first)
            assert value == pytest.approx(row[key], abs=0.01 * last)
        assert [label for _, y, label in texts if y == 166] == ['1', '2', '1', '2', '3']
        assert len(chart.findall("./g/circle[@class='best']")) == 2
        assert len(chart.findall("./path[@class='border']")) == 1
    assert len(curves(source, 'Learning rate')[0]) == 5


def test_evaluation_only(digits: Predictions) -> None:
    page = Page(page_of(digits, history=[], facts={}, settings={}))
    assert not re.search('Training|epoch|Settings', page.text)
    assert not [tag for tag, _ in page.tags if tag == 'svg']


@pytest.mark.parametrize(('epochs', 'is_open'), [(1, True), (20, True), (21, False), (300, False)])
def test_many_epochs(epochs: int, is_open: bool, digits: Predictions) -> None:
    """Of many, only round numbers are written below the curves."""
    history = [epoch(1, 'head')] + [epoch(number) for number in range(1, epochs)]
    source = page_of(digits, history=history)
    assert ('<details open>' in source) == is_open
    assert [text.get('y') for text in chart_of(source, 'Accuracy').findall('text')].count('166') <= 13
    assert len(epoch_rows(Page(source))) == epochs + 1
    assert ('dashed line divides' in source, 'Rings mark' in source) == (epochs > 1, False)


@pytest.mark.parametrize('nothing', [None, math.nan, math.inf])
def test_nothing_in_the_history(nothing: float | None, digits: Predictions) -> None:
    """An epoch without a figure has no point; a figure of no epoch has no line."""
    history = [epoch(1, train_loss=nothing), epoch(2, loss=nothing, learning_rate=nothing), epoch(3, top1=nothing)]
    source = page_of(digits, history=history)
    rows = epoch_rows(Page(source))
    assert rows[1][2] == rows[2][3] == rows[2][6] == rows[3][4] == '-'
    assert [len(line) for line in curves(source, 'Loss')] == [2, 2]
    figures = ('train_loss', 'learning_rate', 'macro_f1')
    page = Page(page_of(digits, history=[epoch(1, **dict.fromkeys(figures, nothing))] * 2))
    assert epoch_rows(page)[0] == ['Phase', 'Epoch', 'Top-1', 'Loss']
    assert [attributes['aria-label'] for tag, attributes in page.tags if tag == 'svg'] == ['Loss', 'Accuracy']
    assert len(page.of_class('key')) == 2


@pytest.mark.parametrize('sure', [False, True])
def test_calibration(sure: bool, digits: Predictions) -> None:
    """The linear model is less sure than it could be; one that guesses is too sure."""
    predictions = random_predictions(10, right=0) if sure else digits
    text = Page(page_of(predictions)).text
    assert f'The expected calibration error is {calibration_error(predictions):.1%}' in text
    assert ('it is too sure of itself' in text, 'it is less sure than it could be' in text) == (sure, not sure)
    assert f'gives it a probability of {predictions.probabilities[:, 0].mean(dtype=float):.1%} on average' in text


def test_not_a_number() -> None:
    """A network that overflowed has a report too."""
    logits = torch.randn(20, 10, generator=torch.Generator().manual_seed(0))
    logits[3] = math.nan
    page = Page(page_of(Predictions.of(logits, torch.zeros(20, dtype=torch.long), torch.arange(20))))
    assert 'Lossnan' in page.text
