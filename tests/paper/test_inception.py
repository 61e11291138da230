"""The paper's way from Inception to Xception: its figures compute what it says they do, in float64."""

import re
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timm.layers import ConvNormAct
from timm.models.inception_v3 import InceptionA
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from xception_hub.layers import SeparableConv2d
from xception_hub.paper.inception import FIGURE_1, InceptionModule, exchange_order, merge_towers, simplified_towers

# Two computations of the same in float64, relative and absolute; the values are of the order of 1.
FLOAT64 = dict(rtol=1e-11, atol=1e-12)

BATCH_NORM = partial(nn.BatchNorm2d, eps=1e-3)
NORMS = [None, BATCH_NORM]
NONLINEARITIES = [None, nn.ReLU, nn.ELU]
ORDERS = ['depthwise_first', 'pointwise_first']


def randomised(module: nn.Module) -> Any:
    """The module in float64, with random values in all its tensors that keep the size of what flows through."""
    generator = torch.Generator().manual_seed(0)
    module.double()
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if name.endswith('running_var'):
                tensor.uniform_(0.5, 2, generator=generator)
            elif tensor.is_floating_point():
                tensor.normal_(generator=generator).div_(max(tensor[0].numel(), 1) ** 0.5)
    return module


def maps(chs: int, batch: int = 2) -> Tensor:
    """Random feature maps of an odd and an even side, which want a gradient."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, chs, 7, 6, dtype=torch.float64, generator=generator).requires_grad_()


def values_and_gradients(module: Callable[[Tensor], Tensor], chs: int) -> tuple[Tensor, Tensor]:
    """Output, and the gradient of a random linear function of it with respect to the input; weights get theirs too."""
    x = maps(chs)
    out = module(x)
    generator = torch.Generator().manual_seed(2)
    out.backward(torch.randn(out.shape, dtype=out.dtype, generator=generator))
    assert x.grad is not None
    return out.detach(), x.grad


def assert_same_function(one: nn.Module, other: nn.Module, chs: int) -> None:
    """Equal outputs and input gradients, on outputs that are neither zeros nor the input."""
    results = values_and_gradients(one, chs)
    torch.testing.assert_close(values_and_gradients(other, chs), results, **FLOAT64)
    assert results[0].abs().mean() > 0.01


def assert_same_gradients(towers: list[nn.Module], merged: nn.Module) -> None:
    """Each tower's weight gradient is its part of that of the merged convolution."""
    expected = torch.cat([tower.weight.grad for tower in towers])
    torch.testing.assert_close(merged.weight.grad, expected, **FLOAT64)
    assert expected.abs().mean() > 0.01


def assert_own_weights(new: nn.Module, old: nn.Module) -> None:
    """Training the one doesn't change the other; both are in the same mode."""
    assert not {id(p) for p in new.parameters()} & {id(p) for p in old.parameters()}
    assert {module.training for module in new.modules()} == {old.training}


def act(layer: type[nn.Module] | None) -> nn.Module | None:
    return layer() if layer else None


# Figure 1: an Inception V3 module


def test_figure_1() -> None:
    """Its towers from left to right, each convolution with its ReLU, and Inception V3's first width."""
    module = InceptionModule(192, FIGURE_1)
    layers = [[m for m in tower.modules() if not [*m.children()]] for tower in module.towers]
    names = [[m.kernel_size[0] if isinstance(m, nn.Conv2d) else type(m).__name__ for m in tower] for tower in layers]
    assert names == [[1, 'ReLU'], [1, 'ReLU', 3, 'ReLU'], [1, 'ReLU', 3, 'ReLU', 3, 'ReLU'], ['AvgPool2d', 1, 'ReLU']]
    assert module(torch.zeros(1, 192, 5, 4)).shape == (1, 64 + 64 + 96 + 32, 5, 4)


@pytest.mark.parametrize(('in_chs', 'pool_width'), [(192, 32), (288, 64)])
def test_inception_v3(in_chs: int, pool_width: int) -> None:
    """With its widths, its 5x5 and its BatchNorm it is Inception V3's module, as timm has it."""
    timm_module = randomised(
        InceptionA(in_chs, pool_width, conv_block=partial(ConvNormAct, padding=0, norm_layer=BATCH_NORM))
    ).eval()
    towers = (FIGURE_1[0], ((1, 48), (5, 64)), FIGURE_1[2], ('avg_pool', (1, pool_width)))
    module = InceptionModule(in_chs, towers, BATCH_NORM, count_include_pad=True).double().eval()
    names = dict(
        branch1x1='0.0', branch5x5_1='1.0', branch5x5_2='1.1', branch3x3dbl_1='2.0', branch3x3dbl_2='2.1',
        branch3x3dbl_3='2.2', branch_pool='3.1', conv='0', bn='1.0',
    )  # fmt: skip
    state = {}
    for key, tensor in timm_module.state_dict().items():
        branch, kind, name = key.split('.')
        state[f'towers.{names[branch]}.{names[kind]}.{name}'] = tensor
    module.load_state_dict(state)
    assert_same_function(timm_module, module, in_chs)


def test_average_pool() -> None:
    """By default the average is TensorFlow's, of what lies inside."""
    pool = InceptionModule(3, [['avg_pool']])
    x = maps(3)
    inside = F.avg_pool2d(torch.ones_like(x), 3, 1, 1)
    torch.testing.assert_close(pool(x), F.avg_pool2d(x, 3, 1, 1) / inside, **FLOAT64)
    assert pool.out_chs == 3


# Figures 2 to 4: the strict equivalences


@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('norm', NORMS)
@pytest.mark.parametrize('count', [1, 3])
def test_figure_2_is_figure_3(count: int, norm: Callable[[int], nn.Module] | None, training: bool) -> None:
    """'One large 1x1 convolution followed by spatial convolutions on non-overlapping segments of its channels.'"""
    figure_2 = randomised(InceptionModule(10, simplified_towers(count, 6), norm)).train(training)
    figure_3 = merge_towers(figure_2)
    conv = figure_3[0]
    assert (conv.conv_pw.weight.shape, conv.conv_dw.weight.shape) == ((6 * count, 10, 1, 1), (6 * count, 6, 3, 3))
    assert_same_function(figure_2, figure_3, 10)
    assert_own_weights(figure_3, figure_2)
    for layer, merged in enumerate([conv.conv_pw, conv.conv_dw]):
        assert_same_gradients([tower[layer][0] for tower in figure_2.towers], merged)


@pytest.mark.parametrize('segments', [3, None])
def test_figures_3_and_4(segments: int | None) -> None:
    """The convolutions that are drawn, one for each segment of the channels, are one grouped convolution."""
    grouped = randomised(SeparableConv2d(10, 12, segments=segments, order='pointwise_first', act=nn.ReLU()))
    parts = grouped.conv_pw(maps(10)).relu().chunk(segments or 12, 1)
    weights = grouped.conv_dw.weight.chunk(segments or 12)
    drawn = torch.cat([F.conv2d(part, weight, padding=1) for part, weight in zip(parts, weights)], 1)
    torch.testing.assert_close(grouped(maps(10)), drawn, **FLOAT64)


def test_one_segment() -> None:
    """The other end: a 1x1 followed by a regular convolution, whose product is one regular convolution."""
    conv = randomised(SeparableConv2d(10, 12, segments=1, order='pointwise_first'))
    product = nn.Conv2d(10, 12, 3, padding=1, bias=False).double()
    product.weight.data = torch.einsum('omhw,mi->oihw', conv.conv_dw.weight, conv.conv_pw.weight[:, :, 0, 0]).detach()
    assert_same_function(conv, product, 10)


# The depthwise separable convolution


@pytest.mark.parametrize('dilation', [1, 2])
def test_separable_convolution(dilation: int) -> None:
    """Figure 4 with the order exchanged is a depthwise separable convolution, to the bit."""
    depthwise = nn.Conv2d(10, 10, 3, padding=dilation, dilation=dilation, groups=10, bias=False)
    separable = nn.Sequential(OrderedDict(conv_dw=depthwise, conv_pw=nn.Conv2d(10, 12, 1, bias=False)))
    conv = SeparableConv2d(10, 12, dilation=dilation)
    assert [tuple(tensor.shape) for tensor in conv.state_dict().values()] == [(10, 1, 3, 3), (12, 10, 1, 1)]
    results = values_and_gradients(randomised(separable), 10), values_and_gradients(randomised(conv), 10)
    torch.testing.assert_close(*results, rtol=0, atol=0)


@pytest.mark.parametrize('segments', [1, 5])
def test_segments_in_the_other_order(segments: int) -> None:
    """Towers of a 3x3 and a 1x1 on segments of the input, added up."""
    conv = randomised(SeparableConv2d(10, 12, segments=segments, act=nn.ReLU()))
    x = maps(10)
    towers = zip(x.chunk(segments, 1), conv.conv_dw.weight.chunk(segments), conv.conv_pw.weight.chunk(segments, 1))
    expected = sum(
        F.conv2d(F.conv2d(part, spatial, padding=1).relu(), pointwise) for part, spatial, pointwise in towers
    )
    torch.testing.assert_close(conv(x), expected, **FLOAT64)


@pytest.mark.parametrize('order', ORDERS)
@pytest.mark.parametrize('act_layer', NONLINEARITIES)
def test_act_stands_between(act_layer: type[nn.Module] | None, order: str) -> None:
    """Figure 10's three variants, in both orders; without a non-linearity nothing is there."""
    conv = randomised(SeparableConv2d(10, 12, order=order, act=act(act_layer)))
    layers = [conv.conv_dw, act(act_layer), conv.conv_pw]
    layers = layers if order == 'depthwise_first' else layers[::-1]
    assert_same_function(nn.Sequential(*filter(None, layers)), conv, 10)
    assert list(conv.state_dict()) == ['conv_dw.weight', 'conv_pw.weight']


@pytest.mark.parametrize(('within', 'after'), [(None, nn.ReLU), (nn.LeakyReLU, None), (nn.LeakyReLU, nn.ReLU)])
@pytest.mark.parametrize('segments', [2, None])
@pytest.mark.parametrize('depth', [1, 3])
def test_order_is_unimportant_in_stacks(
    depth: int, segments: int | None, after: type[nn.Module] | None, within: Callable[[float], nn.Module] | None
) -> None:
    """All but the ends of a stack of figure 3 or 4 is a stack of the other order, whatever the non-linearities."""
    chs = [10, 12, 8, 6][: depth + 1]
    stack = []
    for i in range(depth):  # no two of them are the same
        args = dict(segments=segments, order='pointwise_first', dilation=i + 1, act=within and within(0.2 * i))
        stack.append(SeparableConv2d(chs[i], chs[i + 1], **args))
    inception = randomised(nn.Sequential(*(nn.Sequential(conv, act(after) or nn.Identity()) for conv in stack))).eval()
    exchanged = exchange_order(stack, act(after))
    modules = [m for m in exchanged if isinstance(m, SeparableConv2d)]
    assert [m.order for m in modules] == ['depthwise_first'] * (depth - 1)
    assert [m.conv_dw.groups for m in modules] == [segments or width for width in chs[1:-1]]
    assert_same_function(inception, exchanged, 10)
    assert_own_weights(exchanged, inception)


# The number of segments


@pytest.mark.parametrize('order', ORDERS)
@pytest.mark.parametrize(('in_chs', 'out_chs'), [(24, 24), (16, 36)])
def test_cost(in_chs: int, out_chs: int, order: str) -> None:
    """Parameters and multiply-adds are the closed formula's and fall from one segment to one per channel."""
    height, width = 19, 18
    chs = in_chs if order == 'depthwise_first' else out_chs
    costs = []
    for segments in [i for i in range(1, chs + 1) if chs % i == 0]:
        conv = SeparableConv2d(in_chs, out_chs, segments=segments, order=order, device='meta')
        with FlopCounterMode(display=False) as counter:
            conv(torch.empty(1, in_chs, height, width, device='meta'))
        parameters = sum(p.numel() for p in conv.parameters())
        assert parameters == in_chs * out_chs + 9 * chs**2 // segments
        assert counter.get_total_flops() == 2 * parameters * height * width  # a multiplication and an addition
        costs.append(parameters)
    assert costs == sorted(set(costs), reverse=True)
    extreme = SeparableConv2d(in_chs, out_chs, order=order, device='meta')
    assert sum(p.numel() for p in extreme.parameters()) == costs[-1] == in_chs * out_chs + 9 * chs


# Errors


@pytest.mark.parametrize(
    ('arguments', 'choices'),
    [
        (dict(segments=5), r'a divisor of in_chs=12, one of [1, 2, 3, 4, 6, 12]'),
        (dict(segments=4, order='pointwise_first'), r'a divisor of out_chs=10, one of [1, 2, 5, 10]'),
        (dict(segments=0), 'one of [1, 2, 3, 4, 6, 12]'),
        (dict(order='spatial_first'), "one of ('depthwise_first', 'pointwise_first')"),
        (dict(in_chs=0), 'at least 1'),
        (dict(out_chs=-1), 'at least 1'),
        (dict(act='relu'), 'a module, such as nn.ReLU()'),
        (dict(act=nn.ReLU), 'a module, such as nn.ReLU()'),
    ],
    ids=str,
)
def test_bad_argument(arguments: dict[str, Any], choices: str) -> None:
    """The error names the argument, its value and the choices."""
    name, value = next(iter(arguments.items()))
    with pytest.raises(ValueError, match=f'{re.escape(f"{name}={value!r}")}.*{re.escape(choices)}'):
        SeparableConv2d(**dict(dict(in_chs=12, out_chs=10), **arguments))


@pytest.mark.parametrize(
    'towers',
    [*([], [[]], [[(2, 8)]], [[(3, 0)]], [['max_pool']], [[8]], [[(1, 8, 8)]]), simplified_towers(0, 8)],
    ids=str,
)
def test_bad_towers(towers: Any) -> None:
    with pytest.raises(ValueError, match=re.escape(f'towers={towers!r}')):
        InceptionModule(10, towers)
    with pytest.raises(ValueError, match='in_chs=0.*at least 1'):
        InceptionModule(0)


@pytest.mark.parametrize(
    'towers',
    [FIGURE_1, [[(1, 8), (3, 8)], [(1, 4), (3, 4)]], [[(1, 8), (5, 8)]], [[(1, 4), (3, 8)]], [[(3, 8), (1, 8)]]],
    ids=str,
)
def test_towers_that_are_not_figure_2(towers: Any) -> None:
    """Figure 3 has a segment for towers of a 1x1 and a 3x3 of one width, and for no others."""
    with pytest.raises(ValueError, match=re.escape('simplified_towers(count, width)')):
        merge_towers(InceptionModule(10, towers))


@pytest.mark.parametrize('orders', [[], ['depthwise_first'], ORDERS])
def test_stack_that_is_not_inceptions(orders: list[str]) -> None:
    with pytest.raises(ValueError, match=re.escape(f'stack={orders!r}')):
        exchange_order([SeparableConv2d(8, 8, order=order) for order in orders])
