"""The pictures of the paper's figures say what the modules are that they are drawn from."""

import itertools
from collections import Counter
from pathlib import Path

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image
from torch import nn

from xception_hub import Xception
from xception_hub.layers import SeparableConv2d
from xception_hub.paper.drawing import (
    WIDTH,
    draw_all,
    draw_continuum,
    draw_inception,
    draw_network,
    draw_segments,
    draw_separable,
)
from xception_hub.paper.inception import InceptionModule, SegmentTowers, simplified_towers

MIN_FONT = 8.5  # points, at which a page that is 800 pixels wide shows it with 10 or more
PIXELS = (WIDTH * 150, 2000)  # width, and the most that a picture is high
MIDDLE_REPEATS = 8
INCEPTIONS = {
    'figure 1': lambda: InceptionModule(192),
    'figure 1 with BN': lambda: InceptionModule(8, norm_layer=nn.BatchNorm2d, act_layer=nn.ELU),
    'figure 2': lambda: InceptionModule(192, simplified_towers(3, 64)),
    'five towers': lambda: InceptionModule(16, simplified_towers(5, 24), act_layer=None),
}
NETWORKS = {
    'the paper': dict(),
    'narrow': dict(width_multiplier=0.5, in_chans=1),
    'not residual': dict(residual=False),
    'with an activation': dict(mid_act_layer='elu'),
    'segments': dict(segments=4, order='pointwise_first'),
    'dilated': dict(output_stride=8, fc_widths=(4096, 2048)),
    'features': dict(num_classes=0, global_pool='', drop_path_rate=0.2),
}


def written(figure: Figure) -> list[Text]:
    return [text for text in figure.findobj(Text) if text.get_text()]


def texts(figure: Figure) -> Counter[str]:
    """What the picture says, and how often; lines are joined."""
    return Counter(text.get_text().replace('\n', ' ') for text in written(figure))


def check_legible(figure: Figure) -> None:
    """No text is cut, none lies on another, none is tiny."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    places = [(text.get_text(), text.get_window_extent(renderer)) for text in written(figure)]
    for name, place in places:
        assert figure.bbox.x0 <= place.x0 and place.x1 <= figure.bbox.x1, name
        assert figure.bbox.y0 <= place.y0 and place.y1 <= figure.bbox.y1, name
    for (name, place), (other, there) in itertools.combinations(places, 2):
        assert not place.overlaps(there), (name, other)
    assert min(text.get_fontsize() for text in written(figure)) >= MIN_FONT


def said(counts: Counter[str], *words: str) -> Counter[str]:
    return Counter({text: count for text, count in counts.items() if any(word in text for word in words)})


def name(conv: nn.Conv2d) -> str:
    """What the picture must call a convolution without groups."""
    size, stride = conv.kernel_size[0], conv.stride[0]
    return f'{size}x{size} conv, {conv.out_channels}' + (f', stride {stride}' if stride > 1 else '')


def convs(*modules: nn.Module) -> Counter[str]:
    return Counter(name(conv) for module in modules for conv in module.modules() if isinstance(conv, nn.Conv2d))


@pytest.fixture(scope='module')
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return draw_all(tmp_path_factory.mktemp('drawings') / 'new')


def test_draw_all(paths: list[Path]) -> None:
    names = ['figure_1', 'figure_2', 'figure_3', 'figure_4', 'separable', 'continuum', 'figure_5']
    assert [path.name for path in paths] == [f'{name}.png' for name in names]
    for path in paths:
        with Image.open(path) as image:
            image.load()
            assert image.format == 'PNG'
            assert image.width == PIXELS[0] and 300 < image.height < PIXELS[1], path
            assert image.convert('RGB').getpixel((0, 0)) == (255, 255, 255)
            assert len(image.getcolors(1 << 20)) > 20, path


@pytest.mark.parametrize('make', INCEPTIONS.values(), ids=INCEPTIONS)
def test_inception(make) -> None:
    module = make()
    figure = draw_inception(module)
    counts = texts(figure)
    check_legible(figure)
    assert said(counts, 'conv') == convs(module)
    assert said(counts, 'pool') == Counter({'3x3 average pool': str(module.layout).count('avg_pool')}) + Counter()
    for kind, label in ((nn.BatchNorm2d, 'BN'), (nn.ReLU, 'ReLU'), (nn.ELU, 'ELU')):
        assert counts[label] == sum(isinstance(layer, kind) for layer in module.modules())
    assert counts[f'input, {module.in_chs}'] == counts[f'concat, {module.out_chs}'] == 1


@pytest.mark.parametrize(('in_chs', 'out_chs', 'segments'), [(192, 192, 3), (8, 8, None), (5, 12, 4), (6, 10, 1)])
def test_segments(in_chs: int, out_chs: int, segments: int | None) -> None:
    module = SegmentTowers(in_chs, out_chs, segments, nn.ReLU())
    figure = draw_segments(module)
    counts = texts(figure)
    check_legible(figure)
    assert said(counts, 'conv') == convs(module)
    assert counts['ReLU'] == 1 and texts(draw_segments(module, after=nn.ReLU()))['ReLU'] == 2
    assert said(counts, 'channel').total() == (segments or out_chs)
    # the same in two convolutions is the same picture
    two = SeparableConv2d(in_chs, out_chs, segments=segments, order='pointwise_first', act=nn.ReLU())
    assert texts(draw_segments(two)) == counts


def test_the_order_of_the_picture_is_that_of_the_module() -> None:
    def height(module: SeparableConv2d, text: str) -> float:
        figure = draw_segments(module)
        return next(artist.get_position()[1] for artist in figure.axes[0].texts if artist.get_text().startswith(text))

    for order, sign in (('depthwise_first', 1), ('pointwise_first', -1)):
        module = SeparableConv2d(8, 8, order=order)
        assert (height(module, '1x1') - height(module, '3x3')) * sign > 0, order
        assert (height(module, '1x1') - height(module, 'no non-linearity')) * sign > 0, order


def test_separable() -> None:
    extreme, separable = SegmentTowers(4, 4, None, nn.ReLU()), SeparableConv2d(4, 4)
    figure = draw_separable(extreme, separable, after=nn.ReLU())
    counts = texts(figure)
    check_legible(figure)
    assert said(counts, ' conv,') == Counter({'1x1 conv, 4': 2, '3x3 conv, 1': 8})
    assert counts['ReLU'] == 2 and counts['no non-linearity'] == 1


def test_left_out_segments() -> None:
    """Of many, the first, the last, and dots; the numbers below and beside them are the module's own."""
    module = SeparableConv2d(192, 192, order='pointwise_first')
    figure = draw_segments(module, note='A note of some length, which goes over to a second line.', page=4.6, most=4)
    check_legible(figure)
    assert {'channel 1', 'channel 2', '...', 'channel 192', 'concat, 192'} <= set(texts(figure))
    assert said(texts(figure), '3x3') == Counter({'3x3 conv, 1': 3})
    assert {'channels 1 to 64', 'channels 129 to 192'} <= set(texts(draw_segments(SegmentTowers(192, 192, 3), most=3)))


def test_no_room() -> None:
    with pytest.raises(ValueError, match='towers or segments'):
        draw_segments(SegmentTowers(64, 64))


def test_continuum() -> None:
    figure = draw_continuum()
    dotted, network, pair = (dict(zip(*map(list, line.get_data()))) for line in figure.axes[0].lines[:3])
    assert [*dotted] == [8, 728] and [*network] == [1, 2, 4, 8]  # there is no network in between
    assert network | dotted == {1: 183_616_904, 2: 103_132_712, 4: 62_890_616, 8: 42_769_568, 728: 22_855_952}
    assert pair == {i: 9 * 728**2 // i + 728**2 for i in range(1, 729) if 728 % i == 0}
    assert {'184', '22.9', '5.3', '0.537'} <= set(texts(figure))


@pytest.mark.parametrize('kwargs', NETWORKS.values(), ids=NETWORKS)
def test_network(kwargs: dict[str, object]) -> None:
    model = Xception(device='meta', **kwargs)
    figure = draw_network(model)
    counts = texts(figure)
    del model.middle_flow[1:]  # drawn once
    pairs = [layer for layer in model.modules() if isinstance(layer, SeparableConv2d)]
    shortcuts = [
        module.shortcut
        for module in (*model.entry_flow, *model.middle_flow, *model.exit_flow)
        if module.shortcut is not None
    ]

    assert said(counts, 'repeated') == Counter([f'repeated {MIDDLE_REPEATS} times'])
    assert counts['+'] == len(shortcuts) == (5 if kwargs.get('residual', True) else 0)
    drawn = said(counts, 'conv', 'separable')
    plain = convs(model.stem, *shortcuts)
    assert {text: drawn[text] for text in plain} == plain
    assert drawn.total() - plain.total() == len(pairs) == 13
    assert counts['BN'] == sum(isinstance(layer, nn.BatchNorm2d) for layer in model.modules())
    linear = [f'fully connected, {layer.out_features}' for layer in model.modules() if isinstance(layer, nn.Linear)]
    optional = said(counts, '(optional)')
    assert said(counts, 'connected') == Counter(linear) + optional
    assert optional.total() == (len(linear) == 1)  # where the layers are there, they are drawn

    for text, count in Counter(map(expected, pairs)).items():
        assert counts[text] == count, text
    check_legible(figure)


def test_map_sizes_are_those_of_the_paper() -> None:
    counts = texts(draw_network(Xception(device='meta')))
    for size in ('299x299x3', '149x149x32', '147x147x64', '74x74x128', '10x10x1024', '2048 values'):
        assert counts[size] == 1, size
    assert counts['37x37x256'] == 2  # where the entry flow goes on in another column
    assert counts['19x19x728'] == 3  # where the middle flow begins and ends, and the exit flow begins
    assert texts(draw_network(Xception(device='meta'), pixels=150))['5x5x1024'] == 1


def test_a_pruned_network_has_the_columns_that_are_left() -> None:
    model = Xception(device='meta')
    model.prune_intermediate_layers([1])
    counts = texts(draw_network(model))
    assert said(counts, 'separable') == Counter({'separable 3x3, 128': 2})
    assert not said(counts, 'repeated', 'connected')


def test_the_model_stays_as_it_is() -> None:
    model = Xception(num_classes=3, width_multiplier=0.25).train()
    draw_network(model)
    assert all(tensor.device.type == 'cpu' for tensor in model.state_dict().values())
    assert all(module.training and not module._forward_hooks for module in model.modules())
    assert model.stem.bn1.num_batches_tracked == 0


def expected(pair: SeparableConv2d) -> str:
    """What the picture must call a separable convolution."""
    dw, width = pair.conv_dw, pair.conv_pw.out_channels
    dilation = f', dilation {dw.dilation[0]}' if dw.dilation[0] > 1 else ''
    if pair.order == 'pointwise_first':
        return f'1x1 conv, {width} → 3x3 conv in {dw.groups} segments, {width}'
    if isinstance(pair.act, nn.ELU):
        return f'3x3 conv per channel, {dw.in_channels} → ELU → 1x1 conv, {width}'
    return f'separable 3x3, {width}{dilation}'
