"""The pictures of the paper's figures say what the modules are that they are drawn from."""

import itertools
from collections import Counter
from functools import partial

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from torch import nn

from xception_hub import Xception
from xception_hub.layers import SeparableConv2d
from xception_hub.paper.drawing import draw_continuum, draw_module, draw_network, draw_separable
from xception_hub.paper.inception import InceptionModule, simplified_towers

MIN_FONT = 8.5  # points, at which a page that is 800 pixels wide shows it with 10 or more
INCEPTIONS = {
    'figure 1': lambda: InceptionModule(192),
    'figure 1 with BN': lambda: InceptionModule(8, norm_layer=nn.BatchNorm2d, act_layer=nn.ELU),
    'five towers': lambda: InceptionModule(16, simplified_towers(5, 24), act_layer=None),
}
NETWORKS = {
    'the paper': dict(),
    'narrow and not residual': dict(width_multiplier=0.5, in_chans=1, residual=False),
    'with an activation': dict(mid_act_layer='elu'),
    'segments': dict(segments=4, order='pointwise_first'),
    'dilated': dict(output_stride=8, fc_widths=(4096, 2048)),
    'features': dict(num_classes=0, global_pool='', drop_path_rate=0.2),
}
pointwise_first = partial(SeparableConv2d, order='pointwise_first')


def texts(figure: Figure) -> Counter[str]:
    """What the picture says, and how often; lines are joined. No text is cut, none lies on another, none is tiny."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    written = [text for text in figure.findobj(Text) if text.get_text()]
    places = [(text.get_text(), text.get_window_extent(renderer)) for text in written]
    for name, place in places:
        assert figure.bbox.x0 <= place.x0 and place.x1 <= figure.bbox.x1, name
        assert figure.bbox.y0 <= place.y0 and place.y1 <= figure.bbox.y1, name
    for (name, place), (other, there) in itertools.combinations(places, 2):
        assert not place.overlaps(there), (name, other)
    assert min(text.get_fontsize() for text in written) >= MIN_FONT
    return Counter(text.get_text().replace('\n', ' ') for text in written)


def said(counts: Counter[str], *words: str) -> Counter[str]:
    return Counter({text: count for text, count in counts.items() if any(word in text for word in words)})


def convs(*modules: nn.Module) -> Counter[str]:
    """What the picture must call the convolutions, which have no groups."""
    return Counter(
        f'{conv.kernel_size[0]}x{conv.kernel_size[0]} conv, {conv.out_channels}'
        + (f', stride {conv.stride[0]}' if conv.stride[0] > 1 else '')
        for module in modules
        for conv in module.modules()
        if isinstance(conv, nn.Conv2d)
    )


@pytest.mark.parametrize('make', INCEPTIONS.values(), ids=INCEPTIONS)
def test_inception(make) -> None:
    module = make()
    counts = texts(draw_module(module))
    assert said(counts, 'conv') == convs(module)
    assert counts['3x3 average pool'] == str(module.layout).count('avg_pool')
    for kind, label in ((nn.BatchNorm2d, 'BN'), (nn.ReLU, 'ReLU'), (nn.ELU, 'ELU')):
        assert counts[label] == sum(isinstance(layer, kind) for layer in module.modules())
    assert counts[f'input, {module.in_chs}'] == counts[f'concat, {module.out_chs}'] == 1


@pytest.mark.parametrize(('in_chs', 'out_chs', 'segments'), [(192, 192, 3), (8, 8, None), (6, 10, 1)])
def test_segments(in_chs: int, out_chs: int, segments: int | None) -> None:
    module = pointwise_first(in_chs, out_chs, segments=segments, act=nn.ReLU())
    counts, count = texts(draw_module(module, after=nn.ReLU())), segments or out_chs
    expected = {f'1x1 conv, {out_chs}': 1, f'3x3 conv, {out_chs // count}': count}
    assert said(counts, 'conv') == Counter(expected) and counts['ReLU'] == 2
    assert said(counts, 'channel').total() == count


@pytest.mark.parametrize(('order', 'sign'), [('depthwise_first', 1), ('pointwise_first', -1)])
def test_the_order_of_the_picture_is_that_of_the_module(order: str, sign: int) -> None:
    drawn = draw_module(SeparableConv2d(8, 8, order=order)).axes[0].texts
    heights = {text.get_text()[:3]: text.get_position()[1] for text in drawn}
    assert (heights['1x1'] - heights['no ']) * sign > 0 > (heights['3x3'] - heights['no ']) * sign


def test_separable() -> None:
    counts = texts(draw_separable(pointwise_first(4, 4, act=nn.ReLU()), SeparableConv2d(4, 4), after=nn.ReLU()))
    assert said(counts, ' conv,') == Counter({'1x1 conv, 4': 2, '3x3 conv, 1': 8})
    assert counts['ReLU'] == 2 and counts['no non-linearity'] == 1


def test_left_out_segments() -> None:
    """Of many, the first, the last, and dots; the numbers below and beside them are the module's own."""
    note = 'A note of some length, which goes over to a second line, on a narrow page.'
    counts = texts(draw_module(pointwise_first(192, 192), note=note, page=4.6, most=4))
    assert {'channel 1', 'channel 2', '...', 'channel 192', 'concat, 192', note} <= set(counts)
    assert said(counts, '3x3') == Counter({'3x3 conv, 1': 3})
    figure = draw_module(pointwise_first(192, 192, segments=3), most=3)
    assert {'channels 1 to 64', 'channels 129 to 192'} <= set(texts(figure))


def test_no_room() -> None:
    with pytest.raises(ValueError, match='towers or segments'):
        draw_module(SeparableConv2d(64, 64))


def test_continuum() -> None:
    network, pair = (dict(zip(*map(list, line.get_data()))) for line in draw_continuum().axes[0].lines)
    assert network == {1: 183_616_904, 2: 103_132_712, 4: 62_890_616, 8: 42_769_568, 728: 22_855_952}
    assert pair == {i: 9 * 728**2 // i + 728**2 for i in range(1, 729) if 728 % i == 0}


@pytest.mark.parametrize('kwargs', NETWORKS.values(), ids=NETWORKS)
def test_network(kwargs: dict[str, object]) -> None:
    """Every layer is drawn, those of the middle flow once."""
    model = Xception(device='meta', **kwargs)
    counts = texts(draw_network(model))
    del model.middle_flow[1:]
    pairs = [layer for layer in model.modules() if isinstance(layer, SeparableConv2d)]
    modules = (*model.entry_flow, *model.middle_flow, *model.exit_flow)
    shortcuts = [module.shortcut for module in modules if module.shortcut is not None]

    assert said(counts, 'repeated') == Counter(['repeated 8 times'])
    assert counts['+'] == len(shortcuts) == (5 if kwargs.get('residual', True) else 0)
    drawn, plain = said(counts, 'conv', 'separable'), convs(model.stem, *shortcuts)
    assert {text: drawn[text] for text in plain} == plain
    assert drawn.total() - plain.total() == len(pairs) == 13
    for text, count in Counter(map(expected, pairs)).items():
        assert counts[text] == count, text
    assert counts['BN'] == sum(isinstance(layer, nn.BatchNorm2d) for layer in model.modules())
    linear = [f'fully connected, {layer.out_features}' for layer in model.modules() if isinstance(layer, nn.Linear)]
    optional = said(counts, '(optional)')
    assert said(counts, 'connected') == Counter(linear) + optional
    assert optional.total() == (len(linear) == 1)  # where the layers are there, they are drawn


def expected(pair: SeparableConv2d) -> str:
    """What the picture must call a separable convolution."""
    dw, width = pair.conv_dw, pair.conv_pw.out_channels
    dilation = f', dilation {dw.dilation[0]}' if dw.dilation[0] > 1 else ''
    if pair.order == 'pointwise_first':
        return f'1x1 conv, {width} → 3x3 conv in {dw.groups} segments, {width}'
    if isinstance(pair.act, nn.ELU):
        return f'3x3 conv per channel, {dw.in_channels} → ELU → 1x1 conv, {width}'
    return f'separable 3x3, {width}{dilation}'


def test_map_sizes_are_those_of_the_paper() -> None:
    counts = texts(draw_network(Xception(device='meta')))
    for size in ('299x299x3', '149x149x32', '147x147x64', '74x74x128', '10x10x1024', '2048 values'):
        assert counts[size] == 1, size
    assert counts['37x37x256'] == 2  # where the entry flow goes on in another column
    assert counts['19x19x728'] == 3  # before and in the middle flow, and where the exit flow begins
    assert texts(draw_network(Xception(device='meta'), pixels=150))['5x5x1024'] == 1


def test_the_model_stays_as_it_is() -> None:
    """A pruned one, of which the columns that are left are drawn."""
    model = Xception(num_classes=3, width_multiplier=0.25).train()
    model.prune_intermediate_layers([1])
    counts = texts(draw_network(model))
    assert said(counts, 'separable') == Counter({'separable 3x3, 32': 2}) and not said(counts, 'repeated', 'connected')
    assert all(tensor.device.type == 'cpu' for tensor in model.state_dict().values())
    assert all(module.training and not module._forward_hooks for module in model.modules())
