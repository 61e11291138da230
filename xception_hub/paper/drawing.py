"""The paper's figures 1 to 5, drawn from the modules that compute.

A picture is a list of parts (boxes, rows of columns, modules), which `Sheet` draws from top to bottom. Orange reads a
neighbourhood (3x3), blue all channels of one position (1x1). A box with both colours does both, in that order. Every
function `draw_...` returns a matplotlib Figure.

Paper: François Chollet, "Xception: Deep Learning with Depthwise Separable Convolutions", arXiv:1610.02357.
"""

import copy
import itertools
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure
from matplotlib.patches import Circle, Rectangle
from timm.layers import DropPath, SelectAdaptivePool2d
from torch import nn

from ..head import Head
from ..layers import MaxPool2dSame, SeparableConv2d
from ..network import SEGMENTS, Xception
from .checks import Sizes, count_parameters, map_sizes
from .inception import InceptionModule, simplified_towers

WIDTH = 8.8  # of a figure; all lengths are in inches
MARGIN, GAP, SPACE = 0.12, 0.2, 0.24  # around the figure, between boxes along the flow, between columns
LINE, PADDING, CHAR = 0.155, 0.14, 0.074  # height of a line of text, space around all lines, mean width of a letter
CHIP = 0.32  # width of a normalization, drawn at the end of the layer before it
NARROW, MIN_COLUMN = 1.2, 0.7  # columns below these widths have no room for chips, or for anything
STACK, SHORTCUT, COLUMNS = 1.8, 0.82, 0.2  # widths of layers and of shortcuts; space between the columns of figure 5
COLUMN = (WIDTH - 2 * MARGIN - 2 * COLUMNS) / 3
PLUS, FRAME = 0.1, 0.14  # radius of an addition; space between modules
TITLE, FONT, SMALL = 10.5, 9.5, 8.5  # points

# tints of the palette of Okabe and Ito, which colour-blind people can tell apart
INK, GREY, WHITE = '#1c1c1c', '#5c5c5c', '#ffffff'
SPATIAL, POINTWISE, ACT, POOL, NORM = '#f7d9a3', '#b9dcf3', '#c2e5d8', '#ecd0e1', '#e6e6e6'
STRONG_SPATIAL, STRONG_POINTWISE = '#b86e00', '#0072b2'

NOTHING = (nn.Identity, nn.Dropout, DropPath)  # in inference
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm)
UNITS = (SeparableConv2d, SelectAdaptivePool2d)  # modules with children, drawn as one box
Names = Mapping[nn.Module, str]

# What a picture is made of.


@dataclass
class Box:
    """A layer, or channels between layers: one text or several side by side, on colours from left to right.

    Attributes:
        name: In an SVG, the id of the outline.
        below: Text at the right of the arrow to the next part.
        norms: Normalizations after the layer, drawn at the right end of its box.
    """

    texts: Sequence[str]
    fills: Sequence[str] = (WHITE,)
    name: str = ''
    below: str = ''
    dashed: bool = False
    norms: 'list[Box]' = field(default_factory=list)


class Title(NamedTuple):
    """A title, and below it the size of the maps, from which an arrow leads to the next part."""

    text: str
    size: str = ''


class Row(NamedTuple):
    """Columns side by side, with a gap around each. A column that is None is left out."""

    columns: 'Sequence[list[Part] | None]'
    gap: float = SPACE


class Module(NamedTuple):
    """Layers, with a residual connection at their left if `shortcut` is not None; drawn once for `times` modules."""

    stack: 'list[Part]'
    shortcut: 'list[Part] | None'
    times: int = 1


Part = Box | Title | Row | Module
Ends = list[tuple[float, float]]  # lower ends of a part, from which arrows lead to the next one


class Sheet:
    """Paper that grows downwards. Coordinates are inches from its top left corner."""

    def __init__(self, width: float = WIDTH) -> None:
        self.figure = Figure(figsize=(width, 1), facecolor=WHITE)
        self.axes = self.figure.add_axes((0, 0, 1, 1))
        self.axes.set_axis_off()
        self.width, self.bottom = width, 0.0

    def column(self, parts: Iterable[Part], x: float, y: float, width: float, ends: Ends) -> Ends:
        """Draws parts from top to bottom, with arrows to the first part from `ends`; returns the lower ends."""
        if parts and width < MIN_COLUMN:
            raise ValueError(
                f'There is no room for so many towers or segments: each would be {width:.2f} inches wide, and must be '
                f'at least {MIN_COLUMN}.'
            )
        for part in parts:
            y = max((end for _, end in ends), default=y)
            if isinstance(part, Row):
                each, above, ends = width / len(part.columns), ends, []
                for i, column in enumerate(part.columns):
                    if column is not None:
                        left, start = x + i * each, [(x + (i + 0.5) * each, y)] if above else []
                        ends += self.column(column, left + part.gap / 2, y, each - part.gap, start)
            elif isinstance(part, Module):
                ends = self.module(part, x, y, width)
            else:
                y += GAP if ends else 0
                for center, end in ends:
                    self.arrow((center, end), (center, y))
                y = self.box(part, x, y, width) if isinstance(part, Box) else self.title(part, x + width / 2, y)
                ends = [] if isinstance(part, Title) and not part.size else [(x + width / 2, y)]
        return ends

    def box(self, box: Box, x: float, y: float, width: float, height: float = 0) -> float:
        """Draws a box with its top left corner at x, y; returns the y of its lower edge."""
        free = width - CHIP * len(box.norms)
        most = max(int((free / len(box.texts) - 0.06) / CHAR), 2)
        texts = [textwrap.fill(text, most, break_long_words=False) for text in box.texts]
        height = height or LINE * max(text.count('\n') + 1 for text in texts) + PADDING
        for i, fill in enumerate(box.fills):
            part = free / len(box.fills)
            self.rectangle(x + i * part, y, part, height, facecolor=fill, linewidth=0, zorder=2)
        for i, text in enumerate(texts):
            self.text(x + (i + 0.5) * free / len(texts), y + height / 2, text, zorder=4)
        line = (0, (3, 2)) if box.dashed else '-'
        self.rectangle(x, y, free, height, facecolor='none', linestyle=line, zorder=3, gid=box.name or None)
        for i, norm in enumerate(box.norms):
            self.box(norm, x + free + i * CHIP, y, CHIP, height)
        right, middle = x + width / 2 + 0.08, y + height + GAP / 2 - 0.02
        self.text(right, middle, box.below, ha='left', fontsize=SMALL, color=GREY)
        return y + height

    def title(self, title: Title, center: float, y: float) -> float:
        self.text(center, y + LINE / 2, title.text, fontweight='bold', fontsize=TITLE)
        y += 1.2 * LINE
        self.text(center, y + LINE / 2, title.size)
        return y + LINE

    def module(self, module: Module, x: float, y: float, width: float) -> Ends:
        """Draws a module below y, with the residual connection and the frame of repeated modules at its left."""
        center, top = x + width / 2, y + FRAME
        self.line((center, y), (center, top))
        ends = self.column(module.stack, x, top, width, [(center, top)])
        if module.shortcut is not None:
            plus = ends[0][1] + GAP + PLUS
            self.arrow(ends[0], (center, plus - PLUS))
            self.patch(Circle, (center, plus), PLUS, facecolor=WHITE, zorder=3)
            self.text(center, plus - 0.012, '+', fontsize=FONT + 2, zorder=4)
            side = x - 0.1 - SHORTCUT / 2
            self.line((center, top), (side, top))
            below = self.column(module.shortcut, side - SHORTCUT / 2, top, SHORTCUT, [(side, top)])
            self.line(*below, (side, plus))
            self.arrow((side, plus), (center - PLUS, plus))
            ends = [(center, plus + PLUS)]
        if module.times > 1:
            left, bottom = x + width - COLUMN, ends[0][1] + FRAME / 2
            size, line = (COLUMN + 0.08, bottom - y), (0, (4, 3))
            self.rectangle(left - 0.04, y + FRAME / 2, *size, facecolor='none', edgecolor=GREY, linestyle=line)
            self.text(left, bottom + FRAME / 2 + LINE, f'repeated {module.times} times', ha='left')
        return ends

    def rectangle(self, x: float, y: float, width: float, height: float, **style: Any) -> None:
        self.patch(Rectangle, (x, y), width, height, **style)
        self.bottom = max(self.bottom, y + height)

    def patch(self, kind: type, *place: Any, **style: Any) -> None:
        self.axes.add_patch(kind(*place, **{'edgecolor': INK, 'linewidth': 1, **style})).set_clip_on(False)

    def line(self, *points: tuple[float, float]) -> None:
        self.axes.plot(*zip(*points), color=INK, linewidth=1, snap=False, clip_on=False, zorder=1)

    def arrow(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        style = dict(arrowstyle='-|>,head_width=0.16,head_length=0.32', color=INK, linewidth=1, shrinkA=0, shrinkB=0)
        self.axes.annotate('', end, start, arrowprops=style, zorder=1)

    def text(self, x: float, y: float, text: str, **style: Any) -> None:
        if text:
            style = dict[str, Any](ha='center', va='center', color=INK, fontsize=FONT, linespacing=1.15) | style
            self.axes.text(x, y, text, **style)
            self.bottom = max(self.bottom, y + LINE / 2)

    def finish(self, note: str = '') -> Figure:
        """Writes the conditions of a picture below it, and returns the figure, as high as what is drawn."""
        text = textwrap.fill(note, int((self.width - 2 * MARGIN) / 0.062))
        height = LINE * (text.count('\n') + 1)
        self.text(MARGIN, self.bottom + GAP + height / 2, text, ha='left', fontsize=SMALL, color=GREY)
        size = self.width, self.bottom + height / 2 + MARGIN
        self.axes.set(xlim=(0, size[0]), ylim=(size[1], 0))
        self.figure.set_size_inches(size)
        return self.figure


def picture(parts: Iterable[Part], note: str = '', page: float = WIDTH, most: float = WIDTH) -> Figure:
    """Draws one column in the middle of a page of this width, which takes at most `most` of it."""
    sheet, width = Sheet(page), min(page - 2 * MARGIN, most)
    sheet.column(parts, (page - width) / 2, MARGIN, width, [])
    return sheet.finish(note)


# Layers as boxes.


def layers_of(module: nn.Module) -> list[nn.Module]:
    """The layers of a module in order, without those that do nothing in inference."""
    if isinstance(module, NOTHING) or getattr(module, 'pool_type', None) == '':
        return []
    if isinstance(module, UNITS) or not (isinstance(module, nn.Sequential) or [*module.children()]):
        return [module]
    return [layer for child in module.children() for layer in layers_of(child)]


def boxes(
    module: nn.Module, width: float = STACK, sizes: Sizes | None = None, names: Names | None = None
) -> list[Part]:
    """Boxes of the layers of a module for a column of this width. A normalization joins the layer before it."""
    found: list[Part] = []
    for layer in layers_of(module):
        before, after = (sizes or {}).get(layer, ((), ()))
        below = size_text(after) if before[2:] != after[2:] else ''
        box = Box([label(layer)], fills(layer), (names or {}).get(layer, ''), below)
        if found and width >= NARROW and isinstance(layer, NORMS) and isinstance(found[-1], Box):
            found[-1].norms.append(box)
        else:
            found.append(box)
    return found


def steps_of(module: SeparableConv2d) -> list[nn.Module]:
    """The two convolutions in their order, and the activation between them."""
    steps = [module.conv_dw, *layers_of(module.act), module.conv_pw]
    return steps if module.order == 'depthwise_first' else steps[::-1]


def label(layer: nn.Module) -> str:
    """The text of a box: kernel and width of a convolution, and whatever is unusual."""
    if isinstance(layer, SeparableConv2d):
        dw, steps = layer.conv_dw, steps_of(layer)
        if dw.groups < dw.in_channels or len(steps) > 2 or layer.order != 'depthwise_first':
            return ' → '.join(map(label, steps))
        return f'separable 3x3, {layer.conv_pw.out_channels}{_apart(dw)}'
    if isinstance(layer, nn.Conv2d):
        groups = '' if layer.groups == 1 else f' in {layer.groups} segments'
        groups = ' per channel' if 1 < layer.groups == layer.in_channels else groups
        return f'{layer.kernel_size[0]}x{layer.kernel_size[1]} conv{groups}, {layer.out_channels}{_apart(layer)}'
    return next((text(layer) for kind, text in TEXTS.items() if isinstance(layer, kind)), type(layer).__name__)


TEXTS: dict[Any, Callable[[Any], str]] = {
    nn.Linear: lambda layer: f'fully connected, {layer.out_features}',
    nn.AvgPool2d: lambda layer: f'{layer.kernel_size}x{layer.kernel_size} average pool',
    MaxPool2dSame: lambda layer: f'3x3 max pool{_apart(layer)}',
    SelectAdaptivePool2d: lambda layer: f'global {"average" if layer.pool_type == "avg" else layer.pool_type} pool',
    (nn.BatchNorm1d, nn.BatchNorm2d): lambda layer: 'BN',
}


def _apart(layer: Any) -> str:
    """Stride and dilation of a layer, where they are not 1."""
    values = {name: getattr(layer, name) for name in ('stride', 'dilation')}
    values = {name: value if isinstance(value, int) else value[0] for name, value in values.items()}
    return ''.join(f', {name} {value}' for name, value in values.items() if value > 1)


def fills(layer: nn.Module) -> list[str]:
    """Colours of a box from left to right."""
    if isinstance(layer, SeparableConv2d):
        return [fill for step in steps_of(layer) for fill in fills(step)]
    if isinstance(layer, nn.Conv2d) and layer.kernel_size[0] > 1:
        return [SPATIAL]
    return next(([fill] for kinds, fill in FILLS.items() if isinstance(layer, kinds)), [ACT])


FILLS = {(nn.Conv2d, nn.Linear): POINTWISE, (nn.AvgPool2d, MaxPool2dSame, SelectAdaptivePool2d): POOL, NORMS: NORM}


# Figures 1 to 4, and the separable convolution.


def segments_of(module: SeparableConv2d, after: nn.Module | None, most: int | None = None) -> list[Part]:
    """A 3x3 convolution for each segment of the channels, and the 1x1 convolution, in their order."""
    conv = module.conv_dw
    count, chs = conv.groups, conv.in_channels // conv.groups
    drawn = [*range(count)] if most is None or count <= most else [*range(most - 2), None, count - 1]
    texts = [
        '...' if i is None else f'channels {i * chs + 1} to {(i + 1) * chs}' if chs > 1 else f'channel {i + 1}'
        for i in drawn
    ]
    tower: list[Part] = [Box([f'3x3 conv, {conv.out_channels // count}'], [SPATIAL])]
    towers = Row([None if i is None else tower for i in drawn], gap=0.1)
    between = boxes(module.act) or [Box(['no non-linearity'], dashed=True)]
    steps: list[list[Part]] = [
        [Box(texts), towers, Box([f'concat, {conv.out_channels}'])],
        between,
        boxes(module.conv_pw),
    ]
    steps = steps if module.order == 'depthwise_first' else steps[::-1]
    last = [] if after is None else boxes(after)
    return [Box([f'input, {module.conv_pw.in_channels}']), *itertools.chain(*steps), *last]


def draw_module(
    module: InceptionModule | SeparableConv2d,
    after: nn.Module | None = None,
    note: str = '',
    page: float = WIDTH,
    most: int | None = None,
) -> Figure:
    """Figures 1 to 4: towers side by side, or a 3x3 convolution for each segment and a 1x1 convolution in their order.

    Args:
        module: The module to draw.
        after: Layer after a `SeparableConv2d`; None for none.
        note: Text below the picture.
        page: Width of the picture in inches.
        most: Segments that are drawn, of which one stands for all those that are not; None for no limit.

    Raises:
        ValueError: There are more towers or segments than a page has room for.
    """
    if isinstance(module, SeparableConv2d):
        return picture(segments_of(module, after, most), note, page)
    count = len(module.towers)
    width = min(count * (STACK + SPACE), page - 2 * MARGIN)
    towers = Row([boxes(tower, width / count - SPACE) for tower in module.towers])
    return picture([Box([f'input, {module.in_chs}']), towers, Box([f'concat, {module.out_chs}'])], note, page, width)


def draw_separable(
    extreme: SeparableConv2d, separable: SeparableConv2d, after: nn.Module | None = None, note: str = ''
) -> Figure:
    """Section 1.2: the extreme module, followed by `after`, and the depthwise separable convolution side by side.

    Raises:
        ValueError: There are more segments than half a page has room for.
    """
    left: list[Part] = [Title('"Extreme" Inception module'), *segments_of(extreme, after)]
    right: list[Part] = [Title('Depthwise separable convolution'), *segments_of(separable, None)]
    return picture([Row([left, right])], note)


def draw_continuum(width: int = 728) -> Figure:
    """Parameters by number of segments, for a 3x3 and a 1x1 convolution of `width` channels and for the network."""
    divisors = [i for i in range(1, width + 1) if width % i == 0]
    pair = {i: count_parameters(SeparableConv2d(width, width, segments=i, device='meta')) for i in divisors}
    network = {i or width: count_parameters(Xception(segments=i, device='meta')) for i in SEGMENTS}
    figure = Figure(figsize=(WIDTH, 5), facecolor=WHITE, layout='constrained')
    axes = figure.add_subplot()
    for name, counts, style, colour in (
        ('the network', network, 's', STRONG_SPATIAL),
        (f'a 3x3 and a 1x1 convolution, {width} to {width} channels', pair, 'o-', STRONG_POINTWISE),
    ):
        axes.loglog(*zip(*sorted(counts.items())), style, color=colour, markersize=5, label=name)
        for i in network:
            text = f'{counts[i] / 1e6:.3g}'
            axes.annotate(text, (i, counts[i]), (3, 7), textcoords='offset points', color=colour, fontsize=FONT)
    ticks = {1: '1\nregular\nconvolution', 2: '2', 4: '4\n(Inception:\n3 or 4)', 8: '8', 32: '32', 128: '128'}
    axes.set_xticks([*ticks, width], [*ticks.values(), 'one per channel\n(depthwise\nseparable)'])
    axes.set_yticks([1e6, 1e7, 1e8], ['1', '10', '100'])
    axes.minorticks_off()
    axes.set(xlabel='segments of the channels, each with a 3x3 convolution of its own', ylabel='million parameters')
    axes.legend(frameon=False, fontsize=FONT)
    axes.spines[['top', 'right']].set_visible(False)
    return figure


# Figure 5, the network.


def size_text(shape: Sequence[int]) -> str:
    channels, *size = shape[1:]
    return 'x'.join(map(str, [*size, channels])) if size else f'{channels} values'


def columns_of(model: Xception, sizes: Sizes, names: Names | None = None) -> list[list[Part]]:
    """Figure 5 in three columns of about the same height, without flows that have no modules."""
    entry = [*model.entry_flow]
    columns = [
        {'Entry flow': [model.stem, *entry[:2]]},
        {'Entry flow, continued': entry[2:], 'Middle flow': [*model.middle_flow]},
        {'Exit flow': [*model.exit_flow, model.head]},
    ]
    return [[part for flow in column.items() for part in flow_of(*flow, sizes, names)] for column in columns]


def flow_of(title: str, modules: list[nn.Module], sizes: Sizes, names: Names | None = None) -> list[Part]:
    """A flow with its title; consecutive modules that look alike are drawn once."""
    groups = [[*alike] for _, alike in itertools.groupby(modules, lambda module: module_of(module, sizes))]
    parts = [module_of(alike[0], sizes, names)._replace(times=len(alike)) for alike in groups]
    return [Title(title, size_text(sizes[modules[0]][0])), *parts] if modules else []


def module_of(module: nn.Module, sizes: Sizes, names: Names | None = None) -> Module:
    """A module of figure 5, or the head. Without names, modules that look alike are equal."""
    if isinstance(module, Head) and isinstance(module.fc, nn.Linear) and not module.layers:
        pool, fc = (boxes(layer, STACK, sizes, names) for layer in (module.global_pool, module.fc))
        return Module([*pool, Box(['fully connected layers (optional)'], dashed=True), *fc], None)
    shortcut = getattr(module, 'shortcut', None)
    stack = boxes(getattr(module, 'stack', module), STACK, sizes, names)
    return Module(stack, None if shortcut is None else boxes(shortcut, SHORTCUT, names=names))


def draw_network(model: Xception, pixels: int = 299) -> Figure:
    """Figure 5: layers, widths, residual connections and sizes of the maps, in three columns.

    Args:
        model: The network to draw. It is not changed.
        pixels: Height and width of the images in pixels.

    Raises:
        ValueError: The network does not take images of this size.
    """
    model, sheet = copy.deepcopy(model).to('meta').eval(), Sheet()
    for number, parts in enumerate(columns_of(model, map_sizes(model, pixels, model.in_chans))):
        sheet.column(parts, MARGIN + number * (COLUMN + COLUMNS) + COLUMN - STACK, MARGIN, STACK, [])
    return sheet.finish(
        f'Images of {pixels}x{pixels} pixels; sizes of maps are height x width x channels. Drawn in addition to the '
        "paper's figure: batch normalization (BN). Not drawn: dropout. The optional layers belong to the experiments "
        'on JFT.'
    )


def draw_all(folder: Path) -> list[Path]:
    """Writes the pictures of the documentation into a folder, which is created if missing; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    relu, widths = nn.ReLU(), "Widths: those of Inception V3's first module."
    inception_order = partial(SeparableConv2d, order='pointwise_first', act=relu)
    figures = {
        'figure_1': draw_module(
            InceptionModule(192),
            note=f"{widths} The 5x5 convolution of Inception's first version became two of 3x3 (third tower).",
        ),
        'figure_2': draw_module(InceptionModule(192, simplified_towers(3, 64)), note=widths),
        'figure_3': draw_module(
            inception_order(192, 192, segments=3), relu, 'The same function as figure 2, with all of its weights.'
        ),
        'figure_4': draw_module(inception_order(8, 8), relu, 'Drawn with eight channels, so that all of them fit.'),
        'separable': draw_separable(
            inception_order(4, 4), SeparableConv2d(4, 4), relu, 'Drawn with four channels, so that all of them fit.'
        ),
        'continuum': draw_continuum(),
        'figure_5': draw_network(Xception(device='meta')),
    }
    paths = {folder / f'{name}.png': figure for name, figure in figures.items()}
    for path, figure in paths.items():
        figure.savefig(path, dpi=150)
    return [*paths]
