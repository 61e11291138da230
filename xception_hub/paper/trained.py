"""The pictures of trained networks. The caption of each states data, length and number of the trainings."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from .experiments import ACTIVATIONS, FIGURES, SEGMENTS
from .intervals import CONFIDENCE, differences, interval, top1

GRID = tuple(name + suffix for name in SEGMENTS for suffix in ACTIVATIONS)
# Picture -> its title and its networks. The differences are those between the first network and each other.
SPECTRUM_PICTURE = 'spectrum.png'
PICTURES: dict[str, tuple[str, tuple[str, ...]]] = {
    'figure_6.png': ('Figure 6 at a small scale: Xception and Inception V3', ('xception', 'inception_v3')),
    'figure_9.png': ('Figure 9 at a small scale: residual connections', ('xception', 'no_residual')),
    'figure_10.png': (
        'Figure 10 at a small scale: between depthwise and pointwise',
        ('xception', 'mid_relu', 'mid_elu'),
    ),
    SPECTRUM_PICTURE: ('From regular to depthwise convolutions, at equal parameters', GRID),
}
LEAST_RANGE = 5  # points on each side of zero: an axis of differences shows no less, so that noise looks like noise

# Colours of Okabe and Ito, which stay apart for the colour-blind.
COLOURS = {
    'xception': '#0072B2',
    'inception_v3': '#009E73',
    'no_residual': '#D55E00',
    'mid_relu': '#E69F00',
    'mid_elu': '#CC79A7',
    '': '#0072B2',
    '_relu': '#E69F00',
}


def caption(found: Mapping[str, Any], names: Sequence[str]) -> str:
    """Data, scale, updates and seeds of the networks in a picture, in three lines."""
    s, networks = found['settings'], [found['networks'][name] for name in names]
    sizes = sorted(network['parameters'] / 1e6 for network in networks)
    size = ' to '.join(dict.fromkeys(f'{count:.2f}' for count in (sizes[0], sizes[-1])))
    pixels = ' and '.join(dict.fromkeys(f'{network["image_size"]}x{network["image_size"]}' for network in networks))
    seeds = ' or '.join(map(str, sorted({len(network['runs']) for network in networks})))
    rates = [*dict.fromkeys(f'{network["learning_rate"]:g}' for network in networks)]
    rate = f'learning rate{"s" * (len(rates) > 1)} {" and ".join(rates)}'
    chosen = ', chosen on images kept aside from training' if networks[0]['tried'] else ''
    return (
        f'{Path(s["dataset"]).name}: {found["train_images"]:,} training images, {s["epochs"]} '
        f'{"epoch" if s["epochs"] == 1 else "epochs"}, {found["updates"]:,} updates of {s["batch_size"]}, '
        f'{seeds} seeds; top-1 of {found["judged_on"]:,} images not trained on.\n'
        f'{pixels} pixels, networks of {size} million parameters, '
        f'{rate}{chosen}.\n'
        f'Dots: single seeds. Bars: means with their {CONFIDENCE:.0%} t-intervals. Differences are those of the same '
        f'seed: the same images in the same order.'
    )


def pictures(found: Mapping[str, Any]) -> dict[str, Figure]:
    """Name -> picture, for those whose networks a result has."""
    drawn = {}
    for picture, (title, names) in PICTURES.items():
        if {*names} <= {*found['networks']}:
            drawn[picture] = figure = new_figure(title)
            spectrum(found, *figure.axes) if picture == SPECTRUM_PICTURE else compared(found, names, *figure.axes)
            figure.supxlabel(caption(found, names), fontsize=7, x=0.01, ha='left', color='0.25')
    return drawn


def write(found: Mapping[str, Any], folder: Path) -> list[Path]:
    """Writes the pictures, and their caption into the files' metadata, too."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = {folder / name: figure for name, figure in pictures(found).items()}
    for path, figure in drawn.items():
        figure.savefig(path, dpi=150, metadata={'Description': figure.get_supxlabel()})
    return list(drawn)


def new_figure(title: str) -> Figure:
    """A picture with two axes: for accuracies, from 0 to 100 %, and for differences."""
    figure = Figure(figsize=(9, 4.2), layout='constrained')
    figure.suptitle(title, fontsize=11)
    accuracy, difference = figure.subplots(1, 2)
    for ax in (accuracy, difference):
        ax.grid(alpha=0.3, axis='y')
        ax.spines[['top', 'right']].set_visible(False)
    accuracy.set_ylim(0, 1)
    accuracy.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    accuracy.set_title('top-1', fontsize=9)
    difference.axhline(0, color='0.3', linewidth=0.8)
    return figure


def column(ax: Axes, x: float, values: Sequence[float], colour: str, label: str = '') -> None:
    """Draws single seeds, and to their right their mean with its interval."""
    mean, low, high = interval(values)
    error = None if math.isinf(low) else [[mean - low], [high - mean]]
    ax.plot([x - 0.06] * len(values), values, 'o', color=colour, markersize=4, alpha=0.6, markeredgewidth=0)
    ax.errorbar(x + 0.06, mean, error, fmt='_', color=colour, markersize=14, capsize=4, linewidth=1.8, label=label)


def finish(accuracy: Axes, difference: Axes, columns: Sequence[Sequence[str]], title: str) -> None:
    """Names the columns of both axes, and centres the axis of differences at zero."""
    for ax, names in zip((accuracy, difference), columns):
        ax.set_xticks(range(len(names)), names, fontsize=8)
        ax.set_xlim(-0.5, len(names) - 0.5)
    reach = max(LEAST_RANGE, 1.15 * max(map(abs, difference.dataLim.intervaly)))  # of values and intervals
    difference.set_ylim(-reach, reach)
    difference.set_title(title, fontsize=9)


def compared(found: Mapping[str, Any], names: Sequence[str], accuracy: Axes, difference: Axes) -> None:
    """Draws the accuracy of each network, and the differences of the first one from the others."""
    first, *others = names
    for x, name in enumerate(names):
        column(accuracy, x, list(top1(found, name).values()), COLOURS[name])
    for x, name in enumerate(others):
        column(difference, x, [100 * value for value in differences(found, first, name)], COLOURS[name])
    labels = [FIGURES[name].label for name in names]
    finish(accuracy, difference, (labels, labels[1:]), f'{labels[0]} minus the other, in points')


def spectrum(found: Mapping[str, Any], accuracy: Axes, difference: Axes) -> None:
    """Draws accuracies with and without ReLU by the number of segments, and their difference."""
    for x, name in enumerate(SEGMENTS):
        for offset, suffix, label in ((-0.15, '', 'no activation in between'), (0.15, '_relu', 'ReLU in between')):
            values = list(top1(found, name + suffix).values())
            column(accuracy, x + offset, values, COLOURS[suffix], label if x == 0 else '')
        points = [100 * value for value in differences(found, f'{name}_relu', name)]
        column(difference, x, points, COLOURS['_relu'])
    accuracy.legend(fontsize=8, frameon=False, loc='lower right')
    labels = ['one per\nchannel' if number is None else str(number) for number, _ in SEGMENTS.values()]
    finish(accuracy, difference, (labels, labels), 'ReLU minus no activation, in points')
    for ax in (accuracy, difference):
        ax.set_xlabel('segments', fontsize=8)
