"""From Inception to Xception: the modules of the paper's figures 1 to 4, and the steps between them as functions.

- Figure 1, an Inception V3 module: `InceptionModule(in_chs)`.
- Figure 2, towers that are all a 1x1 and a 3x3 convolution: `InceptionModule(in_chs, simplified_towers(count, width))`.
- Figure 3, which computes the same as figure 2: one large 1x1, then a 3x3 for each segment of its channels, in two
  convolutions: `SeparableConv2d(in_chs, out_chs, segments=count, order='pointwise_first')`.
- Figure 4, the "extreme" module: figure 3 with one segment per channel (`segments=None`).
- The depthwise separable convolution, Xception's building block: figure 4 in the other order.

Paper: François Chollet, "Xception: Deep Learning with Depthwise Separable Convolutions", arXiv:1610.02357, sections 1.1
and 1.2.
"""

import copy
import itertools
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from ..layers import SeparableConv2d, check_argument

__all__ = ['FIGURE_1', 'InceptionModule', 'exchange_order', 'merge_towers', 'simplified_towers']

TowerLayer = tuple[int, int] | str  # (kernel size, width) of a convolution, or 'avg_pool'
Towers = Sequence[Sequence[TowerLayer]]

# The widths are those of Inception V3's first module; as published, its second tower has a 5x5 instead of the 3x3.
FIGURE_1: Towers = (((1, 64),), ((1, 48), (3, 64)), ((1, 64), (3, 96), (3, 96)), ('avg_pool', (1, 32)))


def simplified_towers(count: int, width: int) -> Towers:
    """Figure 2: `count` towers (the paper draws three) of a 1x1 and a 3x3 convolution, each `width` channels wide."""
    return (((1, width), (3, width)),) * count


class InceptionModule(nn.Module):
    """Figures 1 and 2: towers that read the same channels; their outputs are concatenated.

    Args:
        in_chs: Number of input channels.
        towers: Layers of each tower in order: (kernel size, width) of a convolution, or 'avg_pool', which is 3x3.
        norm_layer: Makes the normalization after each convolution from its width; None leaves it out.
        act_layer: Makes the activation after that ("both operations are followed by a ReLU"); None leaves it out.
        count_include_pad: Average zeros beyond the border too. timm and torchvision do; TensorFlow and Keras do not.

    Raises:
        ValueError: A width is below 1, a kernel size is even, a tower is empty, or a layer is of another kind.
    """

    def __init__(
        self,
        in_chs: int,
        towers: Towers = FIGURE_1,
        norm_layer: Callable[[int], nn.Module] | None = None,
        act_layer: Callable[[], nn.Module] | None = nn.ReLU,
        count_include_pad: bool = False,
    ) -> None:
        super().__init__()
        check_argument('in_chs', in_chs, in_chs >= 1, 'at least 1')
        self.layout = tuple(tuple(tower) for tower in towers)
        check_argument(
            'towers',
            towers,
            len(towers) > 0 and all(tower and all(map(_is_layer, tower)) for tower in self.layout),
            "one or more towers, each of (odd kernel size, width of at least 1) or 'avg_pool'",
        )
        self.in_chs, self.out_chs = in_chs, 0
        self.norm_layer, self.act_layer = norm_layer, act_layer
        self.towers = nn.ModuleList()
        for tower in self.layout:
            layers, chs = nn.Sequential(), in_chs
            for layer in tower:
                if isinstance(layer, str):
                    layers.append(nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=count_include_pad))
                else:
                    kernel_size, width = layer
                    conv = nn.Conv2d(chs, width, kernel_size, padding=kernel_size // 2, bias=False)
                    layers.append(nn.Sequential(conv, self.norm_act(width)))
                    chs = width
            self.towers.append(layers)
            self.out_chs += chs

    def norm_act(self, chs: int) -> nn.Sequential:
        """The normalization and activation after a convolution of `chs` channels."""
        norm = [self.norm_layer(chs)] if self.norm_layer else []
        act = [self.act_layer()] if self.act_layer else []
        return nn.Sequential(*norm, *act)

    def forward(self, x: Tensor) -> Tensor:  # [B, in_chs, H, W]
        return torch.cat([tower(x) for tower in self.towers], 1)  # [B, out_chs, H, W]


def merge_towers(module: InceptionModule) -> nn.Sequential:
    """Turns figure 2 into figure 3, its strictly equivalent form. The towers must be those of `simplified_towers`.

    Returns:
        A `SeparableConv2d` with one segment per tower, and the normalization and activation of its output.

    Raises:
        ValueError: The module has other towers.
    """
    count = len(module.layout)
    check_argument(
        'towers',
        module.layout,
        module.layout == simplified_towers(count, module.out_chs // count),
        'simplified_towers(count, width)',
    )
    act, norm_act = module.norm_act(module.out_chs), module.norm_act(module.out_chs)
    conv = SeparableConv2d(module.in_chs, module.out_chs, segments=count, order='pointwise_first', act=act)
    merged = nn.Sequential(conv, norm_act).to(next(module.parameters())).train(module.training)
    for target, layer in ((conv.conv_pw, '0.0'), (conv.act, '0.1'), (conv.conv_dw, '1.0'), (norm_act, '1.1')):
        target.load_state_dict(_side_by_side(tower.get_submodule(layer) for tower in module.towers))
    return merged


def exchange_order(stack: Sequence[SeparableConv2d], act: nn.Module | None = None) -> nn.Sequential:
    """Turns a stack in Inception's order into one in Xception's order: in a stack, the order is unimportant.

    Only the grouping changes: (1x1, 3x3), (1x1, 3x3), ... is 1x1, (3x3, 1x1), ..., 3x3. What was within a module is now
    between two modules, and what was between two modules is now within one.

    Args:
        stack: Modules in the order 'pointwise_first'. Each takes the channels of the one before.
        act: Layer after each module of the stack; None for none.

    Returns:
        A network that computes the same, with a copy of the weights: the first 1x1 convolution, one module fewer than
        before in the order 'depthwise_first', and the last 3x3 convolution. Each is followed by its activation.

    Raises:
        ValueError: The stack is empty, or a module has the other order.
    """
    orders = [module.order for module in stack]
    check_argument('stack', orders, set(orders) == {'pointwise_first'}, "modules in the order 'pointwise_first'")
    modules = copy.deepcopy(list(stack))
    exchanged = nn.Sequential(modules[0].conv_pw, modules[0].act)
    for left, right in itertools.pairwise(modules):
        module = SeparableConv2d(
            left.conv_pw.out_channels, right.conv_pw.out_channels, segments=left.conv_dw.groups, act=copy.deepcopy(act)
        )
        module.conv_dw, module.conv_pw = left.conv_dw, right.conv_pw
        exchanged.append(module).append(right.act)
    exchanged.append(modules[-1].conv_dw).append(copy.deepcopy(act) or nn.Identity())
    return exchanged.train(modules[0].training)


def _side_by_side(modules: Iterable[nn.Module]) -> dict[str, Tensor]:
    """Joins the tensors of equal layers along the output channels: [O, ...] each -> [sum of all O, ...]."""
    first, *others = [module.state_dict() for module in modules]
    # a scalar is BatchNorm's count of batches, the same for all
    return {
        name: torch.cat([tensor, *(other[name] for other in others)]) if tensor.dim() else tensor
        for name, tensor in first.items()
    }


def _is_layer(layer: object) -> bool:
    if isinstance(layer, tuple) and len(layer) == 2:
        kernel_size, width = layer
        return kernel_size >= 1 and kernel_size % 2 == 1 and width >= 1
    return layer == 'avg_pool'
