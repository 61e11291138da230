"""A page with the results of a training: metrics, curves, classes, mistakes.

It is one file that needs no other file, no network and no scripts, so that it can be printed and passed on.
"""

import base64
import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import groupby
from numbers import Real
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from PIL import Image

from ..errors import ModelError, printable_lines
from .metrics import Calibration, PerClass, Predictions, summary

MISTAKES = 24
GUESSES = 3  # classes shown of each mistake
THUMBNAIL = 160  # pixels of the longer side
TINY = 64  # below which enlarged pixels look better than blurred ones
HEAT_MAP_CLASSES = 40  # at most; of more classes the most frequent confusions are listed
CONFUSIONS = 30
LISTED_CLASSES = 60  # at most, the worst
LEFT, RIGHT, TOP, BOTTOM = 44, 314, 8, 150  # edges of a chart's curves, in a drawing of 320 x 180

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

ENVIRONMENT = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    finalize=lambda value: printable_lines(value) if type(value) is str else value,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_percent = ENVIRONMENT.filters['percent'] = '{:.1%}'.format


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
        name: Function from a row to its file name.
        warnings: What a reader has to know before believing the figures.
        usage: Python code that loads the model.
        heat: Function from a row and the number of a class to a heat map of the class. For what raises a ModelError
            there is none.

    Returns:
        The page, the same for the same arguments.
    """
    names, count = np.array(class_names, object), len(class_names)
    figures, per_class, calibration = (
        summary(predictions, count),
        PerClass.of(predictions, count),
        Calibration.of(predictions),
    )
    wrong, filled = predictions.worst(len(predictions)), calibration.count > 0
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
        charts=[_chart(title, names, history) for title, names in CHARTS.items() if _has(history, names)],
        epochs=_epochs(history),
        class_table=_class_table(per_class, names),
        unmeasured=list(names[per_class.support == 0]),
        confusion=None if predictions.multi_label else _confusion(predictions, names),
        num_wrong=len(wrong),
        mistakes=[_mistake(predictions, index, names, thumbnail, name, heat) for index in wrong[:MISTAKES]],
        calibration=dict(error=calibration.error, accuracy=[*calibration.accuracy[filled]]),
        bins=[
            (_percent(probability), _percent(right), f'{images:,}')
            for probability, right, images in zip(calibration.confidence, calibration.accuracy, calibration.count)
            if images
        ],
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


def _has(history: Sequence[Mapping[str, object]], keys: Iterable[str]) -> bool:
    """Whether one of these figures is known of an epoch."""
    return not all(math.isnan(_value(row, key)) for row in history for key in keys)


def _epochs(history: Sequence[Mapping[str, object]]) -> dict[str, Any]:
    """The table of epochs, without columns in which there is nothing."""
    shown = {key: column for key, column in EPOCH_FIGURES.items() if _has(history, [key])}
    rows = []
    for row in history:
        values = [(_value(row, key), spec) for key, (_, spec) in shown.items()]
        figures = ('-' if math.isnan(value) else format(value, spec) for value, spec in values)
        rows.append([row.get('phase', ''), f'{"best " * bool(row.get("best"))}{row.get("epoch", "")}', *figures])
    best = next((number for number, row in enumerate(history) if row.get('best')), None)
    return dict(columns=['Phase', 'Epoch', *(label for label, _ in shown.values())], rows=rows, best=best)


def _chart(title: str, names: Mapping[str, str], history: Sequence[Mapping[str, object]]) -> dict[str, Any]:
    """What a chart consists of, in the coordinates of its drawing."""
    series = np.array([[_value(row, key) for row in history] for key in names])  # [lines, E]
    count, phases, epochs = len(history), _phases(history), [str(row.get('epoch', '')) for row in history]
    ticks = _ticks(np.nanmin(series) if title == 'Accuracy' else 0.0, np.nanmax(series))
    scale = (TOP - BOTTOM) / (ticks[-1] - ticks[0])
    x, y = LEFT + (RIGHT - LEFT) * (np.arange(count) + 0.5) / count, BOTTOM + scale * (series - ticks[0])
    every = next(step for step in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, count) if count / step <= 12)
    lines = []
    for number, (label, heights) in enumerate(zip(names.values(), y)):
        drawn = np.flatnonzero(np.isfinite(heights)).tolist()
        starts = {*drawn} - {i + 1 for i in drawn}  # of a curve, or behind a gap
        path = ' '.join(f'{"M" if i in starts else "L"}{x[i]:.1f} {heights[i]:.1f}' for i in drawn)
        points = [(x[i], heights[i], history[i].get('best')) for i in drawn]
        if points:
            lines.append(dict(label=label, first=number == 0 and len(names) > 1, path=path, points=points))
    return dict(
        title=title,
        lines=lines,
        radius=2.5 if count <= 40 else 0.8,  # not 0: between gaps there may be single epochs
        ticks=[
            (BOTTOM + scale * (tick - ticks[0]), f'{100 * tick:.3g}%' if title == 'Accuracy' else f'{tick:.3g}')
            for tick in ticks
        ],
        epochs=[(x[i], epoch) for i, epoch in enumerate(epochs) if epoch.isdecimal() and int(epoch) % every == 0],
        borders=[(x[i] + x[i + 1]) / 2 for i in range(count - 1) if phases[i] != phases[i + 1]],
    )


def _ticks(low: float, high: float) -> np.ndarray:
    """[2 to 7] round numbers whose range contains both."""
    span = (high - low) or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / 5))
    step = next(factor * power for factor in (1, 2, 5, 10) if span / (factor * power) <= 5)
    return np.arange(math.floor(low / step), math.floor(high / step) + 2) * step


def _class_table(per_class: PerClass, names: np.ndarray) -> dict[str, Any]:
    """Lists classes [C] that have images, the lowest F1 first."""
    measured = np.flatnonzero(per_class.support)
    shown = measured[np.argsort(per_class.f1[measured], kind='stable')][:LISTED_CLASSES]
    shares = np.stack([per_class.precision, per_class.recall, per_class.f1], 1)[shown]
    rows = [
        [name, f'{support:,}', *map(_percent, own)]
        for name, support, own in zip(names[shown], per_class.support[shown], shares)
    ]
    return dict(rows=rows, shares=[*shares[:, 2]], count=len(measured))


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
    shares = map(_percent, counts / support[labels])
    return dict(rows=[], pairs=[*zip(names[labels], names[found], counts, shares)])


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
