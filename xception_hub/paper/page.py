"""The interactive page: one HTML file that needs neither server nor network.

Its pictures are those of `drawing`, as SVG. This module counts the numbers of each setting that the page offers.

Paper: François Chollet, "Xception: Deep Learning with Depthwise Separable Convolutions", arXiv:1610.02357.
"""

import io
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from torch import nn

from .. import topology
from ..layers import ORDERS, SeparableConv2d
from ..network import SEGMENTS, Xception
from . import drawing
from .checks import IMAGE_SIZE, Sizes, count_macs, count_parameters, map_sizes
from .inception import FIGURE_1, InceptionModule, simplified_towers

TEMPLATE = Path(__file__).with_name('page.html')
CHANNELS, MAP_SIZE = 192, 35  # those of Inception V3's first module
CHOICES = (1, 2, 3, 4, 8, CHANNELS)  # segments
ACTIVATIONS: dict[str, type[nn.Module] | None] = {'none': None, 'relu': nn.ReLU, 'elu': nn.ELU}
TOWERS = {'figure_1': FIGURE_1, 'figure_2': simplified_towers(3, CHANNELS // 3)}
PAGE, MOST = 4.8, 4  # width in inches, and segments side by side, that a phone has room for
# The classifier, which `topology` leaves out: names in Keras and in the legacy torch lineage.
HEAD_NAMES = {'head.fc': ('predictions', 'fc')}
COLOURS = {getattr(drawing, name): f'var(--{name.lower()})' for name in (
    'INK', 'GREY', 'WHITE', 'SPATIAL', 'POINTWISE', 'ACT', 'POOL', 'NORM',
)}  # fmt: skip


def as_svg(figure: Figure) -> str:
    """A picture as SVG, with text as text and colours as CSS variables. Its only ids are those of named layers."""
    with matplotlib.rc_context({'svg.fonttype': 'none'}):
        none = dict.fromkeys(('Creator', 'Date', 'Format', 'Type'))
        figure.savefig(file := io.StringIO(), format='svg', metadata=none)
    svg = file.getvalue()
    svg = svg[svg.index('<svg') :]
    svg = re.sub(r' id="(?:figure|axes|patch|line2d|text)_\d+"', '', svg)
    for colour, variable in COLOURS.items():
        svg = svg.replace(colour, variable)
    return re.sub(r'\s*\n\s*', ' ', svg)


def count(network: nn.Module, size: int, chs: int = 3) -> dict[str, int]:
    """Parameters, and multiply-adds for one image of `chs` channels and `size` x `size` pixels."""
    return dict(parameters=count_parameters(network), macs=count_macs(network.to('meta'), size, chs)[''])


def modules() -> Iterator[tuple[str, dict[str, Any]]]:
    """Figures 1 and 2, and the module of each setting, by 'segments/order/activation'."""
    for name, towers in TOWERS.items():
        inception = InceptionModule(CHANNELS, towers)
        svg = as_svg(drawing.draw_module(inception, page=PAGE))
        yield name, dict(svg=svg, **count(inception, MAP_SIZE, CHANNELS))
    for segments, order, (name, act) in itertools.product(CHOICES, ORDERS, ACTIVATIONS.items()):
        module = SeparableConv2d(CHANNELS, CHANNELS, segments=segments, order=order, act=act() if act else None)
        key = f'{segments}/{order}/{name}'
        svg = as_svg(drawing.draw_module(module, page=PAGE, most=MOST))
        yield key, dict(svg=svg, **count(module, MAP_SIZE, CHANNELS))


def networks() -> Iterator[tuple[str, dict[str, int]]]:
    """The networks of those settings that have one, by 'segments/order'. Activations have neither weights nor MACs."""
    for segments, order in itertools.product(SEGMENTS, ORDERS):
        network = Xception(segments=segments, order=order, device='meta').eval()
        yield f'{segments or CHANNELS}/{order}', count(network, IMAGE_SIZE)


def layers(network: Xception, drawn: dict[nn.Module, str], sizes: Sizes) -> Iterator[tuple[str, dict[str, Any]]]:
    """What the page shows of each layer of figure 5, by its name in this network."""
    macs = count_macs(network)
    names = {layer.torch: (layer.keras, layer.legacy) for layer in topology.LAYERS} | HEAD_NAMES
    numbers = {module.torch: module.number for module in topology.MODULES}
    for layer, name in drawn.items():
        keras, legacy = names.get(name, (None, None))
        before, after = (drawing.size_text(shape) for shape in sizes[layer])
        yield name, dict(
            label=drawing.label(layer), module=next((n for m, n in numbers.items() if name.startswith(f'{m}.')), None),
            keras=keras, legacy=legacy, before=before, after=after, parameters=count_parameters(layer),
            macs=macs.get(name, 0), weights={key: [*weight.shape] for key, weight in layer.named_parameters()},
        )  # fmt: skip


def figure_5() -> dict[str, Any]:
    """The columns of figure 5 as SVG, whose ids are the names of layers, and the facts about these layers."""
    network = Xception(device='meta').eval()
    sizes = map_sizes(network)
    names = {module: name for name, module in network.named_modules() if module in sizes}
    columns, drawn = [], dict[nn.Module, str]()
    for parts in drawing.columns_of(network, sizes, names):
        sheet = drawing.Sheet(drawing.COLUMN + 2 * drawing.MARGIN)
        sheet.column(parts, drawing.MARGIN + drawing.COLUMN - drawing.STACK, drawing.MARGIN, drawing.STACK, [])
        columns.append(svg := as_svg(sheet.finish()))
        drawn |= {layer: name for layer, name in names.items() if f'id="{name}"' in svg}
    return dict(columns=columns, layers=dict(layers(network, drawn, sizes)))


def data() -> dict[str, Any]:
    """All pictures and numbers of the page."""
    return dict(
        segments=CHOICES, orders=ORDERS, activations=[*ACTIVATIONS], channels=CHANNELS, size=MAP_SIZE,
        pixels=IMAGE_SIZE, modules=dict(modules()), networks=dict(networks()), **figure_5(),
    )  # fmt: skip


def write_page(path: Path) -> None:
    """Writes the page."""
    text = json.dumps(data(), separators=(',', ':')).replace('</', '<\\/')  # which would end the script
    path.write_text(TEMPLATE.read_text('utf-8').replace('"DATA"', text), 'utf-8')
