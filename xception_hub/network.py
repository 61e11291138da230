"""Xception: figure 5 of the paper as the constructor of one class, with the numerics of Keras.

Paper: François Chollet, "Xception: Deep Learning with Depthwise Separable Convolutions", arXiv:1610.02357.
Reference implementation: `keras.applications.Xception`, whose equal this network is at every input size
that Keras accepts.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from timm.layers import DropPath, create_act_layer, get_act_layer, get_device_dtype
from timm.models._features import feature_take_indices
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .head import HEAD_LAYERS, Head, HeadLayer, is_head_layer
from .layers import BN_EPS, BN_MOMENTUM, MIN_IMG_SIZE, ORDERS, MaxPool2dSame, SeparableConv2d, check_input, init_weights

__all__ = ['Xception']

STEM_SIZE = 7  # pixels; the stem's two VALID convolutions have no output below

GLOBAL_POOLS = ('', 'avg', 'max', 'avgmax', 'catavgmax', 'fast', 'fastavg', 'fastmax', 'fastavgmax', 'fastcatavgmax')
OUTPUT_STRIDES = (8, 16, 32)
POOL_PADDINGS = ('same', 'symmetric')
SEGMENTS = (None, 1, 2, 4, 8)  # of the channels, all of which they divide
WIDTH_MULTIPLE = 8  # of channels: what all of the paper's widths have in common
MIN_WIDTH_MULTIPLIER = WIDTH_MULTIPLE / 2 / 32  # which rounds the narrowest, the stem's 32 channels, to zero

ActLayer = str | type[nn.Module]


class Stem(nn.Module):
    """Module 1 of the paper: two regular 3x3 convolutions without padding, the first with stride 2."""

    def __init__(
        self,
        in_chans: int,
        widths: tuple[int, int],
        min_img_size: int,
        act_layer: ActLayer,
        bn_eps: float,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        self.in_chans = in_chans
        self.min_img_size = min_img_size
        self.conv1 = nn.Conv2d(in_chans, widths[0], 3, stride=2, bias=False, **dd)
        self.bn1 = nn.BatchNorm2d(widths[0], eps=bn_eps, momentum=BN_MOMENTUM, **dd)
        self.act1 = create_act_layer(act_layer, inplace=True)
        self.conv2 = nn.Conv2d(widths[0], widths[1], 3, bias=False, **dd)
        self.bn2 = nn.BatchNorm2d(widths[1], eps=bn_eps, momentum=BN_MOMENTUM, **dd)
        self.act2 = create_act_layer(act_layer, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = check_input(x, self.in_chans, self.min_img_size)
        x = self.act1(self.bn1(self.conv1(x)))
        return self.act2(self.bn2(self.conv2(x)))


@contextmanager
def _fixed_statistics(norms: list[nn.BatchNorm2d]) -> Iterator[None]:
    """Keeps the recomputation from counting a batch twice in the moving statistics."""
    states = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, state in zip(norms, states):
            norm.momentum, norm.num_batches_tracked = state


class XceptionModule(nn.Module):
    """Modules 2 to 14: a stack of separable convolutions, each with its batch normalization and activation.

    Args:
        in_chs: Channels in.
        widths: Channels out of each separable convolution.
        pool_stride: Stride of the max pooling that ends the stack and of the 1x1 convolution beside it; 0 for neither.
        conv_layer: Makes a separable convolution: in_chs, out_chs, and by keyword dilation, act, device, dtype.
        residual: A linear connection around the stack (all modules but the first and the last have one).
        act_first: The activation stands before its convolution (modules 2 to 13) rather than after its normalization.
        act_at_start: With `act_first`, whether the stack starts with one (module 2 follows one already).
        mid_act_layer: An activation within each separable convolution, between its two operations; None for none.
    """

    def __init__(
        self,
        in_chs: int,
        widths: Sequence[int],
        pool_stride: int = 0,
        dilation: int = 1,
        conv_layer: Callable[..., nn.Module] = SeparableConv2d,
        residual: bool = True,
        act_first: bool = True,
        act_at_start: bool = True,
        act_layer: ActLayer = 'relu',
        mid_act_layer: ActLayer | None = None,
        bn_eps: float = BN_EPS,
        pool_padding: str = 'same',
        drop_path: float = 0.0,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        batch_norm: Callable[[int], nn.Module] = partial(nn.BatchNorm2d, eps=bn_eps, momentum=BN_MOMENTUM, **dd)

        self.stack = nn.Sequential()
        chs = in_chs
        for i, width in enumerate(widths, start=1):
            if act_first and (i > 1 or act_at_start):
                # the first one must leave the module's input to the residual connection
                self.stack.add_module(f'act{i}', create_act_layer(act_layer, inplace=i > 1))
            mid_act = create_act_layer(mid_act_layer, inplace=True) if mid_act_layer else None
            self.stack.add_module(f'conv{i}', conv_layer(chs, width, dilation=dilation, act=mid_act, **dd))
            self.stack.add_module(f'bn{i}', batch_norm(width))
            if not act_first:
                self.stack.add_module(f'act{i}', create_act_layer(act_layer, inplace=True))
            chs = width
        if pool_stride:
            self.stack.add_module('pool', MaxPool2dSame(pool_stride, dilation, pool_padding))

        self.shortcut: nn.Module | None = None
        if residual:
            self.shortcut = nn.Identity()
            if pool_stride:
                self.shortcut = nn.Sequential()
                self.shortcut.add_module('conv', nn.Conv2d(in_chs, chs, 1, stride=pool_stride, bias=False, **dd))
                self.shortcut.add_module('bn', batch_norm(chs))
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        self.grad_checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return self._forward_checkpointed(x)
        return self._forward(x)

    def _forward(self, x: Tensor) -> Tensor:
        out = self.stack(x)
        if self.shortcut is not None:
            out = self.drop_path(out) + self.shortcut(x)
        return out

    @torch.jit.ignore
    def _forward_checkpointed(self, x: Tensor) -> Tensor:
        """Computes the module now and, instead of keeping its activations, once more in the backward pass."""
        if torch.compiler.is_compiling():  # the compiler recomputes without side effects, and takes no contexts
            return checkpoint(self._forward, x, use_reentrant=False)
        norms = [module for module in self.modules() if isinstance(module, nn.BatchNorm2d)]
        return checkpoint(
            self._forward, x, use_reentrant=False, context_fn=lambda: (nullcontext(), _fixed_statistics(norms))
        )


class Xception(nn.Module):
    """Xception of the paper's figure 5, in the exact numerics of `keras.applications.Xception`.

    The variants that the paper compares it with are arguments: `fc_widths` (figures 7 and 8), `residual` (figure 9),
    `mid_act_layer` (figure 10), `segments` and `order` (figures 1 to 4). There are pretrained weights for none of them.

    Args:
        num_classes: Width of the logits, 0 for none.
        in_chans: Channels of the images.
        global_pool: 'avg' (Keras' and the paper's), 'max', 'avgmax', 'catavgmax', or '' for feature maps.
        output_stride: 32, or 16 or 8 to dilate the last one or two strides: the same function at the positions they
            share with the strided network.
        fc_widths: Widths of fully connected layers between pooling and classifier; the paper tries (4096, 4096).
        head_layers: For heads of more kinds than `fc_widths` gives, in order: {'fc': width}, optionally with
            'bias': False; {'bn': eps}, optionally with Keras' 'momentum'; {'act': timm's name}; {'drop': rate}.
        drop_rate: Dropout before the classifier, in [0, 1). The paper uses 0.5 on ImageNet.
        drop_path_rate: Stochastic depth of the last residual module, in [0, 1), falling linearly towards the first.
        act_layer: timm's name of an activation, or its class; a KeyError if timm has none of the name.
        bn_eps: 1e-3 as in Keras; 1e-5 for checkpoints trained in the legacy torch lineage.
        pool_padding: 'same' as in Keras; 'symmetric' for checkpoints trained in the legacy torch lineage.
        min_img_size: Smallest height and width that `forward` takes, in pixels: 71 as in Keras, down to 7.
        residual: Linear connections around modules 2 to 13.
        mid_act_layer: An activation between the depthwise and the pointwise convolution: 'relu', 'elu', or another
            name of timm's or class; None for none, as the paper recommends.
        segments: Of the channels, each with a 3x3 convolution of its own within modules 2 to 14: 1, 2, 4, 8, or None
            for one per channel, the depthwise convolution. See `xception_hub.layers.SeparableConv2d`.
        order: 'depthwise_first', or 'pointwise_first' as in Inception.
        width_multiplier: Of all channels but the images' and the head's, rounded to multiples of 8, so that all
            `segments` divide them; above 0.125, at which the stem's 32 channels would round to zero.
        device: Of the parameters.
        dtype: Of the parameters.

    Raises:
        ValueError: An argument has none of the values listed here.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = 'avg',
        output_stride: int = 32,
        fc_widths: Sequence[int] = (),
        head_layers: Sequence[HeadLayer] = (),
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        act_layer: ActLayer = 'relu',
        bn_eps: float = BN_EPS,
        pool_padding: str = 'same',
        min_img_size: int = MIN_IMG_SIZE,
        residual: bool = True,
        mid_act_layer: ActLayer | None = None,
        segments: int | None = None,
        order: str = 'depthwise_first',
        width_multiplier: float = 1.0,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        _check_choice('num_classes', num_classes, num_classes >= 0, 'at least 0')
        _check_choice('in_chans', in_chans, in_chans >= 1, 'at least 1')
        _check_choice('global_pool', global_pool, global_pool in GLOBAL_POOLS, f'one of {GLOBAL_POOLS}')
        _check_choice('output_stride', output_stride, output_stride in OUTPUT_STRIDES, f'one of {OUTPUT_STRIDES}')
        _check_choice('pool_padding', pool_padding, pool_padding in POOL_PADDINGS, f'one of {POOL_PADDINGS}')
        _check_choice('fc_widths', fc_widths, all(width >= 1 for width in fc_widths), 'a list of positive widths')
        _check_choice(
            'head_layers',
            head_layers,
            all(map(is_head_layer, head_layers)) and not (fc_widths and head_layers),
            f'a list of dicts, each with one of {HEAD_LAYERS}, and no fc_widths beside it',
        )
        _check_choice('drop_rate', drop_rate, 0 <= drop_rate < 1, 'in [0, 1)')
        _check_choice('drop_path_rate', drop_path_rate, 0 <= drop_path_rate < 1, 'in [0, 1)')
        _check_choice('bn_eps', bn_eps, bn_eps > 0, 'positive (Keras: 1e-3; legacy torch lineage: 1e-5)')
        _check_choice('min_img_size', min_img_size, min_img_size >= STEM_SIZE, f'at least {STEM_SIZE} pixels')
        _check_choice(
            'residual',
            residual,
            residual or not drop_path_rate,
            'True with a drop_path_rate, which drops what is beside the residual connections',
        )
        _check_choice(
            'mid_act_layer',
            mid_act_layer,
            mid_act_layer is None or _is_act_layer(mid_act_layer),
            "None, timm's name of an activation such as 'relu' or 'elu', or a class of modules",
        )
        _check_choice('segments', segments, segments in SEGMENTS, f'one of {SEGMENTS}; None is one per channel')
        _check_choice('order', order, order in ORDERS, f'one of {ORDERS}')
        _check_choice(
            'width_multiplier',
            width_multiplier,
            MIN_WIDTH_MULTIPLIER < width_multiplier < math.inf,
            f"above {MIN_WIDTH_MULTIPLIER}, for the stem's 32 channels would round to zero",
        )
        dd = {'device': device, 'dtype': dtype}
        width = partial(_scaled, multiplier=width_multiplier)
        layers = dict(
            conv_layer=partial(SeparableConv2d, segments=segments, order=order),
            residual=residual,
            act_layer=act_layer,
            mid_act_layer=mid_act_layer,
            bn_eps=bn_eps,
            pool_padding=pool_padding,
            **dd,
        )

        def module(in_chs: int, widths: Sequence[int], **kwargs: Any) -> nn.Module:
            return XceptionModule(width(in_chs), [width(chs) for chs in widths], **{**layers, **kwargs})

        drop_path = [drop_path_rate * i / 11 for i in range(12)]  # modules 2 to 13
        # strides beyond output_stride become dilation: that of the stride to 16, then that of the stride to 32
        stride16, dilation16 = (2, 1) if output_stride > 8 else (1, 2)
        stride32, dilation32 = 2 if output_stride > 16 else 1, 32 // output_stride

        # Figure 5 of the paper, and the size of the maps for images of 299x299
        self.stem = Stem(in_chans, (width(32), width(64)), min_img_size, act_layer, bn_eps, **dd)  # 149, 147
        self.entry_flow = nn.Sequential(
            module(64, (128, 128), pool_stride=2, act_at_start=False, drop_path=drop_path[0]),  # 74
            module(128, (256, 256), pool_stride=2, drop_path=drop_path[1]),  # 37
            module(256, (728, 728), pool_stride=stride16, drop_path=drop_path[2]),  # 19
        )
        self.middle_flow = nn.Sequential(
            *(
                module(728, (728, 728, 728), dilation=dilation16, drop_path=drop_path[3 + i])  # 19
                for i in range(8)
            )
        )
        self.exit_flow = nn.Sequential(
            module(728, (728, 1024), pool_stride=stride32, dilation=dilation16, drop_path=drop_path[11]),  # 10
            module(1024, (1536, 2048), dilation=dilation32, residual=False, act_first=False),  # 10
        )
        self.apply(init_weights)
        fc_layers = [layer for units in fc_widths for layer in ({'fc': units}, {'act': act_layer})]
        self.head = Head(width(2048), num_classes, global_pool, fc_layers or head_layers, drop_rate, **dd)

        self.num_classes = num_classes
        self.in_chans = in_chans
        self.num_features = width(2048)
        self.head_hidden_size = self.head.num_features
        self.drop_rate = drop_rate
        self.feature_info = [
            dict(num_chs=width(64), reduction=2, module='stem'),
            dict(num_chs=width(128), reduction=4, module='entry_flow.0'),
            dict(num_chs=width(256), reduction=8, module='entry_flow.1'),
            dict(num_chs=width(728), reduction=min(16, output_stride), module='middle_flow.7'),
            dict(num_chs=width(2048), reduction=output_stride, module='exit_flow.1'),
        ]

    init_weights = staticmethod(init_weights)

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        index = r'' if coarse else r'\.(\d+)'
        return dict(
            stem=r'^stem',
            entry_flow=rf'^entry_flow{index}',
            middle_flow=rf'^middle_flow{index}',
            exit_flow=rf'^exit_flow{index}',
        )

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        for module in (*self.entry_flow, *self.middle_flow, *self.exit_flow):
            module.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        self.num_classes = num_classes
        self.head.reset(num_classes, global_pool, self.num_features, **get_device_dtype(self))
        self.head_hidden_size = self.head.num_features

    def forward_features(self, x: Tensor) -> Tensor:  # [B, C, H, W]
        x = self.stem(x)  # [B, 64, ~H/2, ~W/2]
        x = self.entry_flow(x)  # [B, 728, ~H/16, ~W/16]
        x = self.middle_flow(x)  # [B, 728, ~H/16, ~W/16]
        return self.exit_flow(x)  # [B, 2048, ~H/32, ~W/32]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        return self.head(x, pre_logits=pre_logits)  # [B, num_classes]

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = 'NCHW',
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The network's output and the feature maps of `feature_info`.

        Args:
            x: Images [B, C, H, W].
            indices: Which maps: the last n if an int, all if None. 0 is the stem, 1 and 2 are modules 2 and 3, 3 is the
                middle flow, 4 the exit flow.
            norm: Without effect; there is no final normalization.
            stop_early: Leave out what the maps don't need.
            output_fmt: 'NCHW' only.
            intermediates_only: Return the maps alone.
        """
        assert output_fmt == 'NCHW', f"output_fmt must be 'NCHW', not '{output_fmt}'."
        take_indices, max_index = feature_take_indices(5, indices)
        end = max_index if stop_early else 4
        intermediates: list[Tensor] = []

        x = self.stem(x)
        if 0 in take_indices:
            intermediates.append(x)
        for i, module in enumerate(self.entry_flow, start=1):
            if end >= i:
                x = module(x)
                if i < 3 and i in take_indices:
                    intermediates.append(x)
        if end >= 3:
            x = self.middle_flow(x)
            if 3 in take_indices:
                intermediates.append(x)
        if end >= 4:
            x = self.exit_flow(x)
            if 4 in take_indices:
                intermediates.append(x)

        if intermediates_only:
            return intermediates
        return x, intermediates

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Removes the modules after the last of the chosen feature maps, and with them (or on request) the head."""
        take_indices, max_index = feature_take_indices(5, indices)
        for flow, keep in ((self.entry_flow, max_index), (self.middle_flow, 8 * (max_index > 2))):
            del flow[min(keep, len(flow)) :]
        if max_index < 4:
            del self.exit_flow[:]
            self.num_features = self.feature_info[max_index]['num_chs']
        if prune_head or max_index < 4:
            self.reset_classifier(0, '')
        return take_indices


def _is_act_layer(act_layer: ActLayer) -> bool:
    try:
        return get_act_layer(act_layer) is not None
    except KeyError:
        return False


def _scaled(width: int, multiplier: float) -> int:
    return round(width * multiplier / WIDTH_MULTIPLE) * WIDTH_MULTIPLE


def _check_choice(name: str, value: object, valid: bool, choices: str) -> None:
    if not valid:
        raise ValueError(f'{name}={value!r} is not possible: it must be {choices}.')
