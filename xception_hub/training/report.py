"""A page with the results of a training: metrics, curves, classes, mistakes.

It is one file that needs no other file, no network and no scripts, so that it can be printed and passed on.
"""

import base64
import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import groupby
from numbers import Real
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter
from PIL import Image

from ..errors import ModelError, printable_lines
from .metrics import Calibration, PerClass, Predictions, summary

MISTAKES = 24
GUESSES = 3  # classes shown of each mistake
THUMBNAIL = 160  # pixels of the longer side
TINY = 64  # below which enlarged pixels look better than blurred ones
HEAT_MAP_CLASSES = 40  # at most; of more classes the most frequent confusions are listed
CONFUSIONS = 30
LISTED_CLASSES = 60  # at most; of more classes the worst and the best half of these
MARKED_EPOCHS = 40  # at most, for markers that can be told apart

# Figure of an epoch -> its name, how it is written, and what it is.
FIGURES = {
    'top1': ('Top-1', '.2%', 'the most probable class is right'),
    'top5': ('Top-5', '.2%', 'one of the five most probable is right'),
    'macro_f1': ('Macro F1', '.2%', 'mean over the classes'),
    'micro_f1': ('Micro F1', '.2%', 'all labels together'),
    'mean_average_precision': ('mAP', '.2%', 'average precision, mean over the classes'),
    'map_at_100': ('MAP@100', '.2%', 'average precision of the 100 most probable, mean over the images'),
    'loss': ('Loss', '.4f', 'mean cross-entropy'),
    'calibration_error': ('Calibration error', '.2%', 'between probability and accuracy'),
    'num_samples': ('Images', ',', 'evaluated'),
}
EPOCH_FIGURES = {
    'train_loss': ('Training loss', '.4f'),
    'learning_rate': ('Learning rate', '.2e'),
    **{key: (name, spec) for key, (name, spec, _) in FIGURES.items() if key != 'num_samples'},
}
# Title of a chart -> figures in it, and their names in its key; of two the first is the orange one.
CHARTS = {
    'Loss': {'train_loss': 'training', 'loss': 'validation'},
    'Accuracy': {'macro_f1': 'macro F1', 'top1': 'top-1'},
    'Learning rate': {'learning_rate': ''},
}

# Charts are drawn in these colours, which the page replaces by its own, of light or dark mode.
INK, GRID, FIRST, SECOND, PAPER = '#010101', '#020202', '#030303', '#040404', '#050505'
COLOURS = {INK: 'muted', GRID: 'line', FIRST: 'orange', SECOND: 'blue', PAPER: 'surface'}
STYLE = {
    'svg.fonttype': 'none',
    'font.size': 9,
    'text.color': INK,
    'text.parse_math': False,
    'axes.labelcolor': INK,
    'axes.edgecolor': GRID,
    'axes.spines.top': False,
    'axes.spines.right': False,
    'axes.spines.left': False,
    'axes.grid': True,
    'axes.grid.axis': 'y',
    'axes.axisbelow': True,
    'grid.color': GRID,
    'xtick.color': GRID,
    'ytick.color': GRID,
    'xtick.labelcolor': INK,
    'ytick.labelcolor': INK,
    'ytick.left': False,
}


def _percent(value: float) -> str:
    return f'{value:.1%}'


ENVIRONMENT = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    finalize=lambda value: printable_lines(value) if type(value) is str else value,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
ENVIRONMENT.filters['percent'] = _percent


def render(
    predictions: Predictions,
    *,
    class_names: Sequence[str],
    title: str,
    facts: Mapping[str, str],
    settings: Mapping[str, object],
    history: Sequence[Mapping[str, object]],
    thumbnail: Callable[[int], Image.Image],
    name: Callable[[int], str],
    warnings: Sequence[str],
    usage: str,
    heat: Callable[[int, int], Image.Image] | None = None,
) -> str:
    """Renders the report of a split as an HTML page.

    Args:
        predictions: Predictions on the split.
        class_names: Names in the order of the class numbers.
        title: Title of the page.
        facts: What was evaluated, on what: in a few words each, by name.
        settings: All of them, by name.
        history: For each epoch `phase`, `epoch` (from 1 in each phase), `learning_rate`, `train_loss`, the figures of
            `metrics.summary`, and `best` of the best one. What is missing is left out; empty where nothing was trained.
        thumbnail: Makes the picture of a row of the split. What it raises is shown instead.
        name: Tells the file name of a row.
        warnings: What a reader has to know before believing the figures.
        usage: Python code that loads the model.
        heat: Makes a picture of what spoke for a class in a row of the split, from the row and the class' number. For
            what raises a ModelError there is none.

    Returns:
        The page, the same for the same arguments.
    """
    names, count = np.array(class_names, object), len(class_names)
    figures, per_class, calibration = (
        summary(predictions, count),
        PerClass.of(predictions, count),
        Calibration.of(predictions),
    )
    wrong = predictions.worst(len(predictions))
    with style.context(STYLE, after_reset=True):
        charts, reliability = _charts(history), _reliability(calibration)
    page = ENVIRONMENT.get_template('report.html.jinja').render(
        title=title,
        facts=facts,
        settings=settings,
        warnings=warnings,
        usage=usage.strip(),
        multi_label=predictions.multi_label,
        class_names=class_names,
        num_images=len(predictions),
        figures=[
            (label, format(figures[key], spec), meaning)
            for key, (label, spec, meaning) in FIGURES.items()
            if key in figures
        ],
        phases=[(phase, len(list(epochs))) for phase, epochs in groupby(_phases(history))],
        charts=charts,
        epochs=_epochs(history),
        class_table=_class_table(per_class, names),
        unmeasured=list(names[per_class.support == 0]),
        confusion=None if predictions.multi_label else _confusion(predictions, names),
        num_wrong=len(wrong),
        mistakes=[_mistake(predictions, index, names, thumbnail, name, heat) for index in wrong[:MISTAKES]],
        reliability=reliability,
        calibration_error=calibration.error,
        accuracy=figures['top1'],
        confidence=np.nansum(calibration.confidence * calibration.count) / len(predictions),
    )
    return page.encode('utf-8', 'backslashreplace').decode()  # file names need not be Unicode


def _phases(history: Sequence[Mapping[str, object]]) -> list[str]:
    return [str(row.get('phase', '')) for row in history]


def _value(row: Mapping[str, object], key: str) -> float:
    """NaN for what is missing or not finite."""
    value = row.get(key)
    return float(value) if isinstance(value, Real) and math.isfinite(value) else math.nan


def _epochs(history: Sequence[Mapping[str, object]]) -> dict[str, Any]:
    """The table of epochs, without columns in which there is nothing."""
    shown = {
        key: label
        for key, (label, _) in EPOCH_FIGURES.items()
        if not all(math.isnan(_value(row, key)) for row in history)
    }
    rows = []
    for row in history:
        values = {key: _value(row, key) for key in shown}
        rows.append(
            dict(
                phase=row.get('phase', ''),
                epoch=row.get('epoch', ''),
                best=row.get('best'),
                figures=[
                    '-' if math.isnan(value) else format(value, EPOCH_FIGURES[key][1]) for key, value in values.items()
                ],
            )
        )
    return dict(columns=list(shown.values()), rows=rows)


def _charts(history: Sequence[Mapping[str, object]]) -> list[dict[str, Any]]:
    """Title, names in the key, and drawing of each chart."""
    charts = []
    for title, names in CHARTS.items():
        series = np.array([[_value(row, key) for row in history] for key in names])
        drawn = np.isfinite(series).any(1)
        if drawn.any():
            key = [(label, number == 0) for number, label in enumerate(names.values()) if drawn[number] and label]
            charts.append(dict(title=title, key=key, svg=_svg(_curves(title, series, history), title)))
    return charts


def _curves(title: str, series: np.ndarray, history: Sequence[Mapping[str, object]]) -> Figure:  # [lines, E]
    figure = Figure(figsize=(3.9, 2.4), layout='constrained')
    axes = figure.add_subplot()
    x = np.arange(len(history))
    best = [number for number, row in enumerate(history) if row.get('best')]
    size = 4 if len(history) <= MARKED_EPOCHS else 1.2  # not 0: between gaps there may be single epochs
    for values, colour in zip(series, [FIRST, SECOND] if len(series) > 1 else [SECOND]):
        axes.plot(x, values, color=colour, marker='o', markersize=size, linewidth=1.5, clip_on=False, zorder=3)
        axes.plot(x[best], values[best], 'o', color=colour, markersize=9, fillstyle='none', clip_on=False, zorder=4)
    phases = _phases(history)
    for number in np.flatnonzero([new != old for new, old in zip(phases[1:], phases)]):
        axes.axvline(number + 0.5, color=INK, linewidth=1, linestyle=(0, (3, 3)))
    axes.set_xlim(-0.5, len(history) - 0.5)
    _label_epochs(axes, [str(row.get('epoch', '')) for row in history])
    axes.locator_params(axis='y', nbins=5)
    if title == 'Accuracy':
        axes.yaxis.set_major_formatter(PercentFormatter(1))
    elif title == 'Learning rate':
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f'{value:g}'))
    return figure


def _label_epochs(axes: Axes, epochs: Sequence[str]) -> None:
    """Numbers below a chart as in the table, where each phase starts at 1; of many only round ones."""
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, len(epochs)) if len(epochs) / step <= 12)
    shown = [number for number, epoch in enumerate(epochs) if epoch.isdecimal() and int(epoch) % step == 0]
    axes.set_xticks(shown, [epochs[number] for number in shown])
    axes.set_xlabel('epoch')


def _reliability(calibration: Calibration) -> str:
    """Draws accuracy over confidence, and the number of images of each point."""
    figure = Figure(figsize=(4.2, 4.2), layout='constrained')
    axes, counts = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    filled = calibration.count > 0
    confidence, accuracy = calibration.confidence[filled], calibration.accuracy[filled]
    edges = np.linspace(0, 1, len(filled) + 1)
    axes.plot([0, 1], [0, 1], color=INK, linewidth=1, linestyle=(0, (3, 3)))
    axes.vlines(confidence, confidence, accuracy, color=FIRST, linewidth=2)
    axes.plot(confidence, accuracy, 'o', color=SECOND, markersize=6)
    axes.set(ylabel='accuracy', xlim=(0, 1), ylim=(-0.03, 1.03))
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    counts.bar(edges[:-1], calibration.count, width=edges[1], align='edge', color=SECOND, edgecolor=PAPER, linewidth=1)
    counts.set(ylabel='images', xlabel='probability of the most probable class')
    counts.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    counts.xaxis.set_major_formatter(PercentFormatter(1))
    return _svg(figure, 'Reliability')


def _svg(figure: Figure, name: str) -> str:
    """Converts a drawing into an element of the page, in its colours and font."""
    buffer = io.StringIO()
    with matplotlib.rc_context({'svg.hashsalt': name}):  # the same for each run, and other names than other drawings
        figure.savefig(
            buffer, format='svg', transparent=True, metadata=dict.fromkeys(['Creator', 'Date', 'Format', 'Type'])
        )
    svg = buffer.getvalue()
    svg = svg[svg.index('<svg') :]
    svg = re.sub(r'<defs>\s*<style.*?</style>\s*</defs>', '', svg, flags=re.DOTALL)  # it would hold for all the page
    svg = re.sub(r'<g id="[^"]*"', '<g', svg)
    svg = re.sub(r'font-family: [^;"]*;?', '', svg)
    for colour, variable in COLOURS.items():
        svg = svg.replace(colour, f'var(--{variable})')
    return svg.replace('<svg', f'<svg role="img" aria-label="{name}"', 1)


def _class_table(per_class: PerClass, names: np.ndarray) -> dict[str, Any]:
    """Lists classes [C] that have images, the lowest F1 first; of many only both ends."""
    measured = np.flatnonzero(per_class.support)
    order = measured[np.argsort(per_class.f1[measured], kind='stable')]
    cut = max(0, len(order) - LISTED_CLASSES)
    half = LISTED_CLASSES // 2
    shown = np.concatenate([order[:half], order[-half:]]) if cut else order
    columns = (names, per_class.support, per_class.precision, per_class.recall, per_class.f1)
    return dict(rows=list(zip(*(column[shown] for column in columns))), cut=cut, half=half, count=len(order))


def _confusion(predictions: Predictions, names: np.ndarray) -> dict[str, Any]:
    """Returns the whole matrix [C, C] for few classes, else the most frequent confusions."""
    count = len(names)
    if count <= HEAT_MAP_CLASSES:
        matrix = predictions.confusion(count)
        shares = matrix / matrix.sum(1, keepdims=True).clip(1)
        return dict(rows=[list(zip(*row)) for row in zip(matrix, shares)], pairs=[])
    labels, found = predictions.labels, predictions.classes[:, 0]
    support = np.bincount(labels, minlength=count)
    pairs, counts = np.unique(np.stack([labels, found])[:, labels != found], axis=1, return_counts=True)
    order = np.argsort(-counts, kind='stable')[:CONFUSIONS]
    labels, found, counts = pairs[0, order], pairs[1, order], counts[order]
    return dict(rows=[], pairs=list(zip(names[labels], names[found], counts, counts / support[labels])))


def _mistake(
    predictions: Predictions,
    index: int,
    names: np.ndarray,
    thumbnail: Callable[[int], Image.Image],
    name: Callable[[int], str],
    heat: Callable[[int, int], Image.Image] | None,
) -> dict[str, Any]:
    """Makes the card of a mistake; `names` are those of the classes, [C]."""
    row = int(predictions.indices[index])
    label, classes = predictions.labels[index], predictions.classes[index]
    probabilities = predictions.probabilities[index]
    if predictions.multi_label:
        label, probabilities = np.flatnonzero(label), probabilities[classes]
    card = dict(
        name=name(row),
        labels=list(names[np.atleast_1d(label)]),
        loss=predictions.losses[index],
        picture=None,
        heat=None,
        guesses=list(zip(names[classes[:GUESSES]], probabilities, predictions.hits[index])),
    )
    try:
        card['picture'] = _picture(thumbnail(row))
        with suppress(ModelError):  # a network without feature maps
            card['heat'] = heat and _picture(heat(row, int(classes[0])))
    except Exception as e:  # whatever a file leads to: the other pictures are still worth showing
        card['reason'] = str(e) or type(e).__name__
    return card


def _picture(image: Image.Image) -> dict[str, Any]:
    image = image.convert('RGB')
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    image.save(buffer, 'JPEG', quality=80, optimize=True, comment=b'')  # not what a camera or a person wrote into it
    return dict(
        width=image.width,
        height=image.height,
        tiny=max(image.size) < TINY,
        data=base64.b64encode(buffer.getvalue()).decode(),
    )
