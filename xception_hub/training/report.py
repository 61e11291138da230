"""A page with the results of a training: metrics, curves, classes, mistakes.

It is one file that needs no other file, no network and no scripts, so that it can be printed and passed on.
"""

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from matplotlib.ticker import MaxNLocator
from PIL import Image

from ..errors import ModelError, printable_lines
from .metrics import PerClass, Predictions, summary

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
    history: Sequence[Mapping[str, Any]],
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
        facts: The evaluated model, its data and its machine, in a few words each, by name.
        settings: All of them, by name.
        history: For each epoch `phase`, `epoch` (from 1 in each phase), `learning_rate`, `train_loss`, the figures of
            `metrics.summary`, and `best` of the best one. Any figure may be missing. Empty if nothing was trained.
        thumbnail: Makes the picture of a row of the split. If it raises an error, the page shows the error instead.
        name: Function from a row to its file name.
        warnings: Sentences that a reader has to know before believing the figures.
        usage: Python code that loads the model.
        heat: Function from a row and the number of a class to a heat map of the class. For what raises a ModelError
            there is none.

    Returns:
        The page, the same for the same arguments.
    """
    names, count = np.array(class_names, object), len(class_names)
    figures, per_class = summary(predictions, count), PerClass.of(predictions, count)
    wrong, series = predictions.worst(len(predictions)), _series(history)
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
        phases=[(phase, len(list(epochs))) for phase, epochs in groupby(row['phase'] for row in history)],
        charts=[_chart(title, keys, series, history) for title, keys in CHARTS.items() if series.keys() & keys],
        epochs=_epochs(series, history),
        class_table=_class_table(per_class, names),
        unmeasured=list(names[per_class.support == 0]),
        confusion=None if predictions.multi_label else _confusion(predictions, names),
        num_wrong=len(wrong),
        mistakes=[_mistake(predictions, index, names, thumbnail, name, heat) for index in wrong[:MISTAKES]],
        calibration_error=figures['calibration_error'],
        accuracy=figures['top1'],
        confidence=np.nan_to_num(predictions.probabilities.max(1)).mean(dtype=float),
    )
    return page.encode('utf-8', 'backslashreplace').decode()  # file names need not be Unicode


def _series(history: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """The figures [E] that are known of an epoch, by key; NaN for what is missing or not finite."""
    values = {key: np.array([row.get(key) for row in history], float) for key in EPOCH_FIGURES}
    finite = {key: np.where(np.isfinite(own), own, np.nan) for key, own in values.items()}
    return {key: own for key, own in finite.items() if not np.isnan(own).all()}


def _epochs(series: Mapping[str, np.ndarray], history: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The table of epochs, from figures [E] by key."""
    rows = []
    for number, row in enumerate(history):
        values = [(own[number], EPOCH_FIGURES[key][1]) for key, own in series.items()]
        figures = ('-' if np.isnan(value) else format(value, spec) for value, spec in values)
        rows.append([row['phase'], f'{"best " * bool(row.get("best"))}{row["epoch"]}', *figures])
    best = next((number for number, row in enumerate(history) if row.get('best')), None)
    return dict(columns=['Phase', 'Epoch', *(EPOCH_FIGURES[key][0] for key in series)], rows=rows, best=best)


def _chart(
    title: str, labels: Mapping[str, str], series: Mapping[str, np.ndarray], history: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """The parts of a chart of figures [E], in the coordinates of its drawing."""
    keys, count = [key for key in labels if key in series], len(history)
    values = np.stack([series[key] for key in keys])  # [lines, E]
    low = np.nanmin(values) if title == 'Accuracy' else 0.0
    ticks = np.asarray(MaxNLocator(5, steps=[1, 2, 5, 10]).tick_values(low, np.nanmax(values)))
    x = LEFT + (RIGHT - LEFT) * (np.arange(count) + 0.5) / count
    scale = (BOTTOM - TOP) / (ticks[-1] - ticks[0])
    y, tick_y = BOTTOM - scale * (values - ticks[0]), BOTTOM - scale * (ticks - ticks[0])
    lines = []
    for key, heights in zip(keys, y):
        points = [(x[i], heights[i], history[i].get('best')) for i in np.flatnonzero(np.isfinite(heights)).tolist()]
        path = 'M' + ' '.join(f'{across:.1f} {height:.1f}' for across, height, _ in points)
        lines.append(dict(label=labels[key], first=key != [*labels][-1], path=path, points=points))
    every = -(-count // 12)  # at most 12 numbers of epochs are written
    return dict(
        title=title,
        lines=lines,
        radius=2.5 if count <= 40 else 0.8,  # not 0: a single epoch has no line
        ticks=[(at, f'{100 * tick:.3g}%' if title == 'Accuracy' else f'{tick:.3g}') for at, tick in zip(tick_y, ticks)],
        epochs=[(x[i], row['epoch']) for i, row in enumerate(history) if row['epoch'] % every == 0],
        borders=[(x[i] + x[i + 1]) / 2 for i in range(count - 1) if history[i]['phase'] != history[i + 1]['phase']],
    )


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
