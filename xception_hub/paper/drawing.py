"""The paper's figures 1 to 5, drawn from live modules: a picture shows what the module computes.

Every function returns a matplotlib Figure, and writes it as PNG if it is given a path. Colours tell what an operation
reads: orange for the neighbourhood (3x3), blue for all channels of one position (1x1). A box with both reads both, in
that order.

Paper: François Chollet, "Xception: Deep Learning with Depthwise Separable Convolutions", arXiv:1610.02357.
"""

import copy
import itertools
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyBboxPatch, Rectangle
from timm.layers import DropPath, SelectAdaptivePool2d
from torch import nn

from ..head import Head
from ..layers import MaxPool2dSame, SeparableConv2d
from ..modules import XceptionModule
from ..network import SEGMENTS, Xception
from .inception import InceptionModule, SegmentTowers, simplified_towers

DPI = 150
WIDTH = 8.8  # width of a figure; all lengths here are in inches
MARGIN, GAP, SPACE = 0.12, 0.2, 0.3  # around the figure, between boxes along the flow, between columns
LINE, PADDING, CHAR = 0.155, 0.14, 0.074  # height of a line of text, space around all lines, mean width of a letter
SMALL_CHAR = 0.062  # mean width of a letter of a note
CHIP = 0.32  # width of a normalization, drawn at the end of the layer before it
NARROW, MIN_COLUMN = 1.2, 0.7  # columns below these widths have no room for chips, or for anything
STACK, SHORTCUT, COLUMNS = 1.8, 0.82, 0.2  # figure 5: widths of layers and of shortcuts, space between columns
COLUMN = (WIDTH - 2 * MARGIN - 2 * COLUMNS) / 3
PLUS, FRAME = 0.1, 0.14  # radius of an addition; space between modules and around repeated ones
TITLE, FONT, SMALL = 10.5, 9.5, 8.5  # points

# tints of the palette of Okabe and Ito, which colour-blind people can tell apart
INK, GREY, WHITE = '#1c1c1c', '#5c5c5c', '#ffffff'
SPATIAL, POINTWISE, ACT, POOL, NORM = '#f7d9a3', '#b9dcf3', '#c2e5d8', '#ecd0e1', '#e6e6e6'
STRONG_SPATIAL, STRONG_POINTWISE = '#b86e00', '#0072b2'

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm)
UNITS = (SeparableConv2d, SelectAdaptivePool2d)  # modules with children, drawn as one box
Segmented = SegmentTowers | SeparableConv2d
Sizes = dict[nn.Module, tuple[torch.Size, torch.Size]]  # shapes of the maps before and after each layer


NETWORK_NOTE = (
    "Images of {pixels} pixels; sizes of maps are height x width x channels. Drawn in addition to the paper's figure: "
    'batch normalization (BN). Not drawn: dropout. The optional layers belong to the experiments on JFT.'
)

# The vocabulary: boxes, arrows and columns of layers.


class Drawing:
    """A sheet that grows downwards. Coordinates are inches from its top left corner.

    Args:
        width: Of the sheet.
        names: Names of layers. In an SVG, the element over the box of a layer has its name as id.
    """

    def __init__(self, width: float = WIDTH, names: Mapping[nn.Module, str] | None = None) -> None:
        self.figure = Figure(figsize=(width, 1), facecolor=WHITE)
        self.axes = self.figure.add_axes((0, 0, 1, 1))
        self.axes.set_axis_off()
        self.width, self.bottom, self.told, self.names = width, 0.0, '', names or {}

    def text(self, x: float, y: float, text: str, **style: Any) -> None:
        style = dict[str, Any](ha='center', va='center', color=INK, fontsize=FONT, linespacing=1.15) | style
        self.axes.text(x, y, text, **style)
        self.bottom = max(self.bottom, y + LINE / 2)

    def box(
        self,
        x: float,
        y: float,
        width: float,
        text: str,
        fills: Sequence[str] = (WHITE,),
        chips: Sequence[str] = (),
        rounded: bool = False,
        dashed: bool = False,
    ) -> float:
        """Draws a box with its top left corner at x, y and chips at its right end; returns the y of its lower edge."""
        free = width - len(chips) * CHIP
        lines = textwrap.wrap(text, max(int((free - 0.06) / CHAR), 1), break_long_words=False)
        height = len(lines) * LINE + (PADDING / 2 if rounded else PADDING)
        style = dict[str, Any](edgecolor=INK, linestyle=(0, (3, 2)) if dashed else '-', zorder=3)
        outline = self.outline(x, y, width, height, 0.1 if rounded else 0, **style)
        parts = [(free / len(fills), fill, '') for fill in fills] + [(CHIP, NORM, chip) for chip in chips]
        left = x
        for part, fill, chip in parts:
            patch = self.axes.add_patch(Rectangle((left, y), part, height, facecolor=fill, linewidth=0, zorder=2))
            patch.set_clip_path(outline)
            if chip:
                self.axes.plot([left, left], [y, y + height], color=INK, linewidth=0.8, zorder=3)
                self.text(left + part / 2, y + height / 2, chip, fontsize=SMALL, zorder=4)
            left += part
        self.text(x + free / 2, y + height / 2, '\n'.join(lines), zorder=4, color=GREY if dashed else INK)
        self.bottom = max(self.bottom, y + height)
        return y + height

    def name(self, x: float, y: float, width: float, height: float, layer: nn.Module) -> None:
        if layer in self.names:
            place = Rectangle((x, y), width, height, facecolor='none', linewidth=0, zorder=5, gid=self.names[layer])
            self.axes.add_patch(place)

    def outline(self, x: float, y: float, width: float, height: float, rounding: float, **style: Any) -> FancyBboxPatch:
        shape = f'round,pad=0,rounding_size={rounding}' if rounding else 'square,pad=0'
        patch = FancyBboxPatch((x, y), width, height, boxstyle=shape, facecolor='none', linewidth=1, **style)
        self.axes.add_patch(patch)
        return patch

    def plus(self, x: float, y: float) -> float:
        self.axes.add_patch(Circle((x, y + PLUS), PLUS, facecolor=WHITE, edgecolor=INK, linewidth=1, zorder=3))
        self.text(x, y + PLUS - 0.012, '+', fontsize=FONT + 2, zorder=4)
        return y + 2 * PLUS

    def line(self, *points: tuple[float, float]) -> None:
        self.axes.plot(*zip(*points), color=INK, linewidth=1, snap=False, zorder=1)

    def arrow(self, *points: tuple[float, float]) -> None:
        """Draws lines through these points, with an arrowhead at the last."""
        self.line(*points[:-1])
        style = dict(arrowstyle='-|>,head_width=0.16,head_length=0.32', color=INK, linewidth=1, shrinkA=0, shrinkB=0)
        self.axes.annotate('', points[-1], points[-2], arrowprops=style, zorder=1)

    def down(self, x: float, y: float, length: float = GAP) -> float:
        self.arrow((x, y), (x, y + length))
        return y + length

    def column(
        self, x: float, y: float, width: float, layers: Iterable[nn.Module], sizes: Sizes | None = None
    ) -> float:
        """Draws layers from top to bottom, with an arrow to each, and beside it the size of the maps if it is new."""
        if width < MIN_COLUMN:
            raise ValueError(
                f'There is no room for so many towers or segments side by side: each would be {width:.2f} '
                f'inches wide, and must be at least {MIN_COLUMN}.'
            )
        layers, above = list(layers), None
        while layers:
            layer = layers.pop(0)
            if above and sizes:
                self.size(x + width / 2, y, above, sizes)
            norms = []
            while width >= NARROW and layers and isinstance(layers[0], NORMS):
                norms.append(layers.pop(0))
            top = self.down(x + width / 2, y)
            y = self.box(x, top, width, label(layer), fills(layer), [*map(label, norms)], rounded=fills(layer) == [ACT])
            free = width - len(norms) * CHIP
            self.name(x, top, free, y - top, layer)
            for i, norm in enumerate(norms):
                self.name(x + free + i * CHIP, top, CHIP, y - top, norm)
            above = layer
        return y

    def size(self, x: float, y: float, layer: nn.Module, sizes: Sizes) -> None:
        """Writes the size of a layer's maps beside the arrow from it, if the layer changes it and it is new."""
        before, after = sizes[layer]
        if before[2:] != after[2:] and size_text(after) != self.told:
            self.told = size_text(after)
            self.text(x + 0.08, y + GAP / 2 - 0.02, self.told, ha='left', fontsize=SMALL, color=GREY)

    def note(self, text: str) -> None:
        """Writes the conditions of a picture below it."""
        text = textwrap.fill(text, int((self.width - 2 * MARGIN) / SMALL_CHAR))
        height = (text.count('\n') + 1) * LINE
        self.bottom += GAP + height
        self.text(MARGIN, self.bottom - height / 2, text, ha='left', fontsize=SMALL, color=GREY)

    def finish(self, path: Path | None, note: str = '') -> Figure:
        if note:
            self.note(note)
        height = self.bottom + MARGIN
        self.axes.set(xlim=(0, self.width), ylim=(height, 0))
        self.figure.set_size_inches(self.width, height)
        return _save(self.figure, path)


def _save(figure: Figure, path: Path | None) -> Figure:
    if path is not None:
        figure.savefig(path, format='png', dpi=DPI)
    return figure


def layers_of(module: nn.Module) -> list[nn.Module]:
    """The layers of a module in order, without those that do nothing in inference."""
    if isinstance(module, (nn.Identity, nn.Dropout, DropPath)) or getattr(module, 'pool_type', None) == '':
        return []
    children = list(module.children())
    if isinstance(module, UNITS) or not children:
        return [] if isinstance(module, nn.Sequential) else [module]
    return [layer for child in children for layer in layers_of(child)]


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
        return f'separable {_square(dw)}, {layer.conv_pw.out_channels}{_apart(dw)}'
    if isinstance(layer, nn.Conv2d):
        groups = '' if layer.groups == 1 else f' in {layer.groups} segments'
        groups = ' per channel' if 1 < layer.groups == layer.in_channels else groups
        return f'{_square(layer)} conv{groups}, {layer.out_channels}{_apart(layer)}'
    if isinstance(layer, nn.Linear):
        return f'fully connected, {layer.out_features}'
    if isinstance(layer, nn.AvgPool2d):
        return f'{layer.kernel_size}x{layer.kernel_size} average pool'
    if isinstance(layer, MaxPool2dSame):
        return f'3x3 max pool, stride {layer.stride}' + (f', dilation {layer.dilation}' if layer.dilation > 1 else '')
    if isinstance(layer, SelectAdaptivePool2d):
        return f'global {"average" if layer.pool_type == "avg" else layer.pool_type} pool'
    return 'BN' if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)) else type(layer).__name__


def fills(layer: nn.Module) -> list[str]:
    """Colours of a box from left to right."""
    if isinstance(layer, SeparableConv2d):
        return [fill for step in steps_of(layer) for fill in fills(step)]
    if isinstance(layer, nn.Conv2d):
        return [SPATIAL if layer.kernel_size[0] > 1 else POINTWISE]
    if isinstance(layer, (nn.AvgPool2d, MaxPool2dSame, SelectAdaptivePool2d)):
        return [POOL]
    return [POINTWISE] if isinstance(layer, nn.Linear) else [NORM] if isinstance(layer, NORMS) else [ACT]


def _square(conv: nn.Conv2d) -> str:
    return f'{conv.kernel_size[0]}x{conv.kernel_size[1]}'


def _apart(conv: nn.Conv2d) -> str:
    stride = f', stride {conv.stride[0]}' if conv.stride[0] > 1 else ''
    return stride + (f', dilation {conv.dilation[0]}' if conv.dilation[0] > 1 else '')


# Figures 1 to 4, and the separable convolution.


def draw_inception(module: InceptionModule, path: Path | None = None, note: str = '', page: float = WIDTH) -> Figure:
    """Figures 1 and 2: towers side by side, between their common input and the concatenation.

    Args:
        module: The module to draw.
        path: The PNG file to write.
        note: Text below the picture.
        page: Width of the picture in inches.

    Raises:
        ValueError: There are more towers than a page has room for.
    """
    drawing, count = Drawing(page), len(module.towers)
    width = min(1.8, (drawing.width - 2 * MARGIN - (count - 1) * SPACE) / count)
    total = count * width + (count - 1) * SPACE
    left = (drawing.width - total) / 2
    y = drawing.box(left, MARGIN, total, f'input, {module.in_chs}')
    places = [left + i * (width + SPACE) for i in range(count)]
    ends = [drawing.column(x, y, width, layers_of(tower)) for x, tower in zip(places, module.towers)]
    bottom = max(ends) + GAP
    for x, end in zip(places, ends):
        drawing.down(x + width / 2, end, bottom - end)
    drawing.box(left, bottom, total, f'concat, {module.out_chs}')
    return drawing.finish(path, note)


def draw_segments(
    module: Segmented,
    path: Path | None = None,
    after: nn.Module | None = None,
    note: str = '',
    page: float = WIDTH,
    most: int | None = None,
) -> Figure:
    """Figures 3 and 4: a 1x1 convolution, then a 3x3 convolution for each segment of its channels.

    Args:
        module: The module as the paper draws it, or as two convolutions, drawn in their order.
        path: The PNG file to write.
        after: Layer after the module; None for none.
        note: Text below the picture.
        page: Width of the picture in inches.
        most: Segments that are drawn, of which one stands for all those that are not; None for no limit.

    Raises:
        ValueError: There are more segments than a page has room for.
    """
    drawing = Drawing(page)
    _segments(drawing, MARGIN, MARGIN, drawing.width - 2 * MARGIN, module, after, most)
    return drawing.finish(path, note)


def draw_separable(
    extreme: Segmented, separable: Segmented, path: Path | None = None, after: nn.Module | None = None, note: str = ''
) -> Figure:
    """Section 1.2: the extreme module, followed by `after`, beside the depthwise separable convolution.

    Raises:
        ValueError: There are more segments than half a page has room for.
    """
    drawing = Drawing()
    width = (drawing.width - 2 * MARGIN - 2 * SPACE) / 2
    panels = (
        (MARGIN, '"Extreme" Inception module', extreme, after),
        (drawing.width - MARGIN - width, 'Depthwise separable convolution', separable, None),
    )
    for x, title, module, following in panels:
        drawing.text(x + width / 2, MARGIN + LINE / 2, title, fontweight='bold', fontsize=TITLE)
        _segments(drawing, x, MARGIN + 2 * LINE, width, module, following)
    return drawing.finish(path, note)


def _segments(
    drawing: Drawing,
    x: float,
    y: float,
    width: float,
    module: Segmented,
    after: nn.Module | None,
    most: int | None = None,
) -> None:
    order = 'pointwise_first'
    if isinstance(module, SegmentTowers):
        convs = [conv for conv in module.convs if isinstance(conv, nn.Conv2d)]
    else:
        order, dw = module.order, module.conv_dw
        convs = [
            nn.Conv2d(dw.in_channels // dw.groups, dw.out_channels // dw.groups, dw.kernel_size[0], device='meta')
            for _ in range(dw.groups)
        ]
    steps: list[Any] = [convs, module.act, module.conv_pw]
    y = drawing.box(x, y, width, f'input, {module.conv_pw.in_channels}')
    for step in (steps if order == 'depthwise_first' else steps[::-1]) + ([] if after is None else [after]):
        if step is convs:
            y = _towers(drawing, x, y, width, step, most or len(convs))
        elif layers_of(step):
            y = drawing.column(x, y, width, layers_of(step))
        else:
            y = drawing.down(x + width / 2, y)
            y = drawing.box(x, y, width, 'no non-linearity', rounded=True, dashed=True)


def _towers(drawing: Drawing, x: float, y: float, width: float, convs: Sequence[nn.Conv2d], most: int) -> float:
    """Draws the segments of the channels, a convolution for each, and the concatenation."""
    drawn = [*convs] if len(convs) <= most else [*convs[: most - 2], None, convs[-1]]  # None: those that are left out
    part, chs = width / len(drawn), convs[0].in_channels
    y = drawing.down(x + width / 2, y)
    ends = {}
    for i, conv in enumerate(drawn):
        left = x + i * part
        if conv is None:
            drawing.text(left + part / 2, y + LINE, '...')
            continue
        last = chs * (len(convs) if i == most - 1 else i + 1)
        bottom = drawing.box(left, y, part, f'channels {last - chs + 1} to {last}' if chs > 1 else f'channel {last}')
        ends[left + part / 2] = drawing.column(left + 0.05, bottom, part - 0.1, [conv])
    bottom = max(ends.values()) + GAP
    for center, end in ends.items():
        drawing.down(center, end, bottom - end)
    return drawing.box(x, bottom, width, f'concat, {sum(conv.out_channels for conv in convs)}')


# From a regular to a depthwise separable convolution.


def draw_continuum(path: Path | None = None, width: int = 728) -> Figure:
    """Parameters by number of segments, for a 3x3 and a 1x1 convolution of `width` channels and for the network."""
    divisors = [i for i in range(1, width + 1) if width % i == 0]
    pair = {i: parameters(SeparableConv2d(width, width, segments=i, device='meta')) for i in divisors}
    network = {i or width: parameters(Xception(segments=i, device='meta')) for i in SEGMENTS}
    figure = Figure(figsize=(WIDTH, 5), facecolor=WHITE, layout='constrained')
    axes = figure.add_subplot()
    for name, counts, colour, marker in (
        ('the network, dotted where none exists', network, STRONG_SPATIAL, 's'),
        (f'a 3x3 and a 1x1 convolution, {width} to {width} channels', pair, STRONG_POINTWISE, 'o'),
    ):
        points, exist = sorted(counts.items()), len(SEGMENTS) - 1  # no network between 8 and one per channel
        line = dict[str, Any](color=colour, marker=marker, linewidth=1.5, markersize=5)
        if counts is network:
            axes.plot(*zip(*points[exist - 1 :]), **line | dict(linestyle=(0, (1, 3))))
            points = points[:exist]
        axes.plot(*zip(*points), **line)
        for i in network:
            text = f'{counts[i] / 1e6:.3g}'
            axes.annotate(text, (i, counts[i]), (3, 7), textcoords='offset points', color=colour, fontsize=FONT)
        axes.annotate(name, (16, max(count for i, count in counts.items() if i >= 8)), color=colour, fontsize=FONT + 1)
    for at, name in ((1, 'regular\nconvolution'), (3.5, 'Inception:\n3 or 4'), (width, 'depthwise\nseparable')):
        axes.text(at, 4.2e8, name, ha='center', va='center', color=INK, fontsize=FONT)
        axes.axvline(at, ymax=0.89, color=GREY, linewidth=0.8, linestyle=(0, (2, 4)), zorder=0)
    axes.set(xscale='log', yscale='log', xlim=(0.55, 1.6 * width), ylim=(3e5, 7e8))
    ticks = [2**i for i in range(9)]
    axes.set_xticks([*ticks, width], [*map(str, ticks), 'one per\nchannel'])
    axes.set_yticks([1e6, 1e7, 1e8], ['1', '10', '100'])
    axes.tick_params(which='minor', bottom=False)
    axes.set_xlabel('segments of the channels, each with a 3x3 convolution of its own', fontsize=FONT)
    axes.set_ylabel('million parameters', fontsize=FONT)
    axes.spines[['top', 'right']].set_visible(False)
    return _save(figure, path)


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# Figure 5, the network.


def map_sizes(model: Xception, pixels: int) -> Sizes:
    """Sizes of all maps, from one pass through a network on the meta device."""
    sizes: Sizes = {}
    for module in model.modules():
        module.register_forward_hook(lambda module, args, output: sizes.update({module: (args[0].shape, output.shape)}))
    model(torch.empty(1, model.in_chans, pixels, pixels, device='meta'))
    return sizes


def size_text(shape: torch.Size) -> str:
    channels, *size = shape[1:]
    return 'x'.join(map(str, [*size, channels])) if size else f'{channels} values'


def columns_of(model: Xception) -> list[list[tuple[str, list[nn.Module]]]]:
    """The parts of figure 5 with their titles, in three columns of about the same height."""
    entry = [*model.entry_flow]
    return [
        [('Entry flow', [model.stem, *entry[:2]])],
        [('Entry flow, continued', entry[2:]), ('Middle flow', [*model.middle_flow])],
        [('Exit flow', [*model.exit_flow, model.head])],
    ]


def draw_network(model: Xception, path: Path | None = None, pixels: int = 299) -> Figure:
    """Figure 5: layers, widths, residual connections and sizes of the maps, in three columns.

    Consecutive modules that are alike are drawn once. Dropout and stochastic depth are left out (training only).

    Args:
        model: The network to draw. It is not changed.
        path: The PNG file to write.
        pixels: Height and width of the images in pixels.

    Raises:
        ValueError: The network does not take images of this size.
    """
    model = copy.deepcopy(model).to('meta').eval()
    sizes, drawing = map_sizes(model, pixels), Drawing()
    for number, parts in enumerate(columns_of(model)):
        draw_column(drawing, MARGIN + number * (COLUMN + COLUMNS), parts, sizes)
    return drawing.finish(path, NETWORK_NOTE.format(pixels=f'{pixels}x{pixels}'))


def draw_column(drawing: Drawing, x: float, parts: list[tuple[str, list[nn.Module]]], sizes: Sizes) -> None:
    """Draws one of `columns_of` with its left edge at x."""
    center, y = x + COLUMN - STACK / 2, MARGIN
    parts = [part for part in parts if part[1]]  # flows without modules are those of a pruned network
    for title, modules in parts:
        drawing.text(center, y + LINE, title, va='baseline', fontweight='bold', fontsize=TITLE)
        drawing.text(center, y + 2 * LINE, size_text(sizes[modules[0]][0]))
        y += 2.5 * LINE
        above: nn.Module | None = None
        for _, alike in itertools.groupby(modules, key=_look):
            module, *others = alike
            if above is not None:
                drawing.size(center, y, above, sizes)
            drawing.line((center, y), (center, y + FRAME))
            bottom = _module(drawing, center, y + FRAME, module, sizes)
            if others:
                frame = (x - 0.04, y + FRAME / 2, COLUMN + 0.08, bottom - y)
                drawing.outline(*frame, 0.08, edgecolor=GREY, linestyle=(0, (4, 3)))
                drawing.text(x, bottom + FRAME + LINE, f'repeated {1 + len(others)} times', ha='left')
            y, above = bottom, (module, *others)[-1]
        y = drawing.down(center, y, GAP + FRAME)
        if title != parts[-1][0]:  # the size stands below the next title
            y += GAP / 2
        elif above is not None:
            drawing.text(center, y + LINE / 2, size_text(sizes[above][1]))


def _module(drawing: Drawing, center: float, y: float, module: nn.Module, sizes: Sizes) -> float:
    """Draws the layers of a module from top to bottom, with its residual connection to their left."""
    left = center - STACK / 2
    if isinstance(module, Head) and isinstance(module.fc, nn.Linear) and not len(module.layers):
        pool = layers_of(module.global_pool)
        y = drawing.column(left, y, STACK, pool, sizes)
        if pool:
            drawing.size(center, y, pool[-1], sizes)
        y = drawing.box(left, drawing.down(center, y), STACK, 'fully connected layers (optional)', dashed=True)
        return drawing.column(left, y, STACK, [module.fc], sizes)
    if not isinstance(module, XceptionModule) or module.shortcut is None:
        return drawing.column(left, y, STACK, layers_of(getattr(module, 'stack', module)), sizes)
    start, beside = y, left - 0.1 - SHORTCUT / 2
    y = drawing.down(center, drawing.column(left, y, STACK, layers_of(module.stack)))
    end = drawing.plus(center, y)
    middle, layers = (y + end) / 2, layers_of(module.shortcut)
    if not layers:
        drawing.arrow((center, start), (beside, start), (beside, middle), (center - PLUS, middle))
        return end
    drawing.line((center, start), (beside, start))
    below = drawing.column(beside - SHORTCUT / 2, start, SHORTCUT, layers)
    drawing.arrow((beside, below), (beside, middle), (center - PLUS, middle))
    return end


def _look(module: nn.Module) -> tuple[bool, list[str]]:
    """Everything that a picture shows of a module; equal for modules that look alike."""
    return getattr(module, 'shortcut', None) is None, [label(layer) for layer in layers_of(module)]


# All of them.


def draw_all(folder: Path) -> list[Path]:
    """Writes the pictures of the documentation into a folder, which is created if missing; returns their paths.

    The widths of figures 1 and 2 are those of Inception V3's first module, and figure 3 computes the same as
    figure 2. Figure 4 and the separable convolution have as few channels as a page has room for.
    """
    folder.mkdir(parents=True, exist_ok=True)
    relu, like_inception = nn.ReLU(), "Widths: those of Inception V3's first module."
    figures: dict[str, Callable[[Path], Figure]] = {
        'figure_1': lambda path: draw_inception(
            InceptionModule(192),
            path,
            f"{like_inception} The 5x5 convolution of Inception's first version became two of 3x3 (third tower).",
        ),
        'figure_2': lambda path: draw_inception(
            InceptionModule(192, simplified_towers(3, 64)), path, f'{like_inception}'
        ),
        'figure_3': lambda path: draw_segments(
            SegmentTowers(192, 192, 3, relu), path, relu, 'The same function as figure 2, with all of its weights.'
        ),
        'figure_4': lambda path: draw_segments(
            SegmentTowers(8, 8, None, relu), path, relu, 'With eight channels, for all of them to be drawn.'
        ),
        'separable': lambda path: draw_separable(
            SegmentTowers(4, 4, None, relu),
            SeparableConv2d(4, 4),
            path,
            relu,
            'With four channels, for all to be drawn.',
        ),
        'continuum': draw_continuum,
        'figure_5': lambda path: draw_network(Xception(device='meta'), path),
    }
    paths = [folder / f'{name}.png' for name in figures]
    for draw, path in zip(figures.values(), paths):
        draw(path)
    return paths
