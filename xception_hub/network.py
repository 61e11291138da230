"""Xception: figure 5 of the paper as the constructor of one class, with the numerics of Keras.

Paper: François Chollet, "Xception: Deep Learning with Depthwise Separable Convolutions", arXiv:1610.02357.
Reference: `keras.applications.Xception`, which computes the same at every image size that Keras accepts.
"""

import json
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from timm.layers import get_device_dtype
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from .head import HEAD_LAYERS, Head, HeadLayer, are_head_layers, is_act_layer
from .layers import BN_EPS, MIN_IMG_SIZE, ORDERS, STEM_SIZE, SeparableConv2d, check_argument, init_weights
from .modules import ActLayer, Stem, XceptionModule

__all__ = ['Xception']


class Xception(nn.Module):
    """Xception as in figure 5, with exactly the numerics of Keras. Arguments select the paper's variants.

    Args:
        num_classes: Width of the logits; 0 for no classifier.
        in_chans: Channels of the images.
        global_pool: 'avg' (Keras' and the paper's), 'max', 'avgmax', 'catavgmax', or '' for feature maps.
        output_stride: 32; 16 or 8 replace the last one or two strides by dilation, equal at shared positions.
        fc_widths: Widths of fully connected layers before the classifier (figure 8: 4096, 4096).
        head_layers: Other layers before the classifier; `xception_hub.head` lists the kinds.
        drop_rate: Dropout before the classifier, in [0, 1). The paper uses 0.5 on ImageNet.
        drop_path_rate: Stochastic depth of the last residual module, in [0, 1), falling linearly towards the first.
        act_layer: timm's name of an activation, or its class.
        bn_eps: 1e-3 as in Keras; 1e-5 for checkpoints trained in the legacy torch lineage.
        pool_padding: 'same' as in Keras; 'symmetric' for checkpoints trained in the legacy torch lineage.
        stem_padding: 0 as in Keras; 1 for segmentation_models_pytorch, where 32n pixels give maps of 16n, 8n, ..., n.
        min_img_size: Smallest height and width of the images in pixels: 71 as in Keras, down to 7.
        residual: Whether modules 2 to 13 have residual connections; False is the network without them of figure 9.
        mid_act_layer: Activation between depthwise and pointwise convolution (figure 10); None as in figure 5.
        segments: Number of groups of the 3x3 convolutions: 1, 2, 4, 8, or None for one per channel.
        order: 'depthwise_first', or 'pointwise_first' as in Inception.
        width_multiplier: Factor of all widths except those of the images and the head; results are multiples of 8.
        device: Device of the parameters.
        dtype: Data type of the parameters.

    Raises:
        ValueError: An argument has a value that this list excludes.
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
        stem_padding: int = 0,
        min_img_size: int = MIN_IMG_SIZE,
        residual: bool = True,
        mid_act_layer: ActLayer | None = None,
        segments: int | None = None,
        order: str = 'depthwise_first',
        width_multiplier: float = 1.0,
        device=None,
        dtype=None,
    ) -> None:
        given = {name: value for name, value in locals().items() if name in CHOICES}
        check_arguments(given)
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        width = partial(_scaled, multiplier=width_multiplier)
        separable_conv = partial(SeparableConv2d, segments=segments, order=order)
        drop_path = [drop_path_rate * i / 11 for i in range(12)]  # modules 2 to 13
        # output_stride 16 replaces the stride to 32 by dilation; output_stride 8 replaces the stride to 16, too
        stride16, dilation16 = (2, 1) if output_stride > 8 else (1, 2)
        stride32, dilation32 = 2 if output_stride > 16 else 1, 32 // output_stride

        def module(in_chs: int, *widths: int, residual: bool = residual, **kwargs: Any) -> XceptionModule:
            return XceptionModule(
                width(in_chs), [width(chs) for chs in widths], separable_conv, residual=residual, act_layer=act_layer,
                mid_act_layer=mid_act_layer, bn_eps=bn_eps, pool_padding=pool_padding, **dd, **kwargs,
            )  # fmt: skip

        # Figure 5. The comments give height and width of the maps for images of 299x299 pixels.
        # fmt: off
        self.stem = Stem(in_chans, (width(32), width(64)), min_img_size, act_layer, bn_eps, stem_padding, **dd)  # 147
        self.entry_flow = nn.Sequential(
            module(64, 128, 128, pool_stride=2, acts='between', drop_path=drop_path[0]),                    # 74
            module(128, 256, 256, pool_stride=2, drop_path=drop_path[1]),                                   # 37
            module(256, 728, 728, pool_stride=stride16, drop_path=drop_path[2]),                            # 19
        )
        self.middle_flow = nn.Sequential(*(
            module(728, 728, 728, 728, dilation=dilation16, drop_path=drop_path[3 + i]) for i in range(8)   # 19
        ))
        self.exit_flow = nn.Sequential(
            module(728, 728, 1024, pool_stride=stride32, dilation=dilation16, drop_path=drop_path[11]),     # 10
            module(1024, 1536, 2048, dilation=dilation32, residual=False, acts='after'),                    # 10
        )
        # fmt: on
        self.apply(init_weights)
        fc_layers = [layer for units in fc_widths for layer in ({'fc': units}, {'act': act_layer})]
        self.head = Head(width(2048), num_classes, global_pool, fc_layers or head_layers, drop_rate, **dd)

        self.arguments = {name: value for name, value in given.items() if name in STORED and value != STORED[name]}
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

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        """Stores the arguments that the tensors depend on in the state dict's metadata."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if hasattr(destination, '_metadata'):
            head = dict(global_pool=self.head.global_pool.pool_type, head_layers=[*self.head.layers])
            recorded = {**self.arguments, **{name: value for name, value in head.items() if value not in ('avg', [])}}
            destination._metadata[prefix[:-1]]['xception_hub'] = json.dumps(recorded, default=str)

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
        for module in (self.stem, *self.entry_flow, *self.middle_flow, *self.exit_flow):
            module.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        self.num_classes = num_classes
        self.__dict__.pop('final_activation', None)  # of the classifier that a file had
        self.head.reset(num_classes, global_pool, self.num_features, **get_device_dtype(self))
        self.head_hidden_size = self.head.num_features

    def forward_features(self, x: Tensor) -> Tensor:  # [B, C, H, W]
        x = self.stem(x)  # [B, 64, ~H/2, ~W/2]
        x = self.entry_flow(x)  # [B, 728, ~H/16, ~W/16]
        x = self.middle_flow(x)  # [B, 728, ~H/16, ~W/16]
        return self.exit_flow(x)  # [B, 2048, ~H/32, ~W/32]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:  # [B, 2048, ~H/32, ~W/32]
        return self.head(x, pre_logits=pre_logits)  # [B, num_classes]

    def forward(self, x: Tensor) -> Tensor:  # [B, C, H, W]
        return self.forward_head(self.forward_features(x))  # [B, num_classes]

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = 'NCHW',
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Returns the last feature map [B, 2048, ~H/32, ~W/32] and the maps of `feature_info`.

        Args:
            x: Images [B, C, H, W].
            indices: Numbers of the maps to return; an int n means the last n, None all. 0 is the stem, 1 and 2 are
                modules 2 and 3, 3 is the middle flow, 4 is the exit flow.
            norm: No effect, because the network has no final normalization.
            stop_early: Skip the modules after the last of these maps.
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
        """Removes the modules after the last of these maps; also the head, if any is removed or with `prune_head`."""
        take_indices, max_index = feature_take_indices(5, indices)
        for flow, keep in ((self.entry_flow, max_index), (self.middle_flow, 8 * (max_index > 2))):
            del flow[min(keep, len(flow)) :]
        if max_index < 4:
            del self.exit_flow[:]
            self.num_features = self.feature_info[max_index]['num_chs']
        if prune_head or max_index < 4:
            self.reset_classifier(0, '')
        return take_indices


GLOBAL_POOLS = ('', 'avg', 'max', 'avgmax', 'catavgmax', 'fast', 'fastavg', 'fastmax', 'fastavgmax', 'fastcatavgmax')
OUTPUT_STRIDES = (8, 16, 32)
POOL_PADDINGS = ('same', 'symmetric')
STEM_PADDINGS = (0, 1)
SEGMENTS = (None, 1, 2, 4, 8)  # each divides all of the paper's widths
WIDTH_MULTIPLE = 8  # channels, the greatest common divisor of the paper's widths
MIN_WIDTH_MULTIPLIER = WIDTH_MULTIPLE / 2 / 32  # rounds the narrowest width, the stem's 32 channels, to zero


CHOICES: dict[str, tuple[Callable[[Any], bool], str]] = {  # argument -> test of a value, and what it must be
    'num_classes': (lambda count: count >= 0, 'at least 0'),
    'in_chans': (lambda count: count >= 1, 'at least 1'),
    'global_pool': (GLOBAL_POOLS.__contains__, f'one of {GLOBAL_POOLS}'),
    'output_stride': (OUTPUT_STRIDES.__contains__, f'one of {OUTPUT_STRIDES}'),
    'stem_padding': (STEM_PADDINGS.__contains__, f'one of {STEM_PADDINGS}'),
    'pool_padding': (POOL_PADDINGS.__contains__, f'one of {POOL_PADDINGS}'),
    'fc_widths': (lambda widths: all(width >= 1 for width in widths), 'a list of positive widths'),
    'head_layers': (are_head_layers, f'a list of dicts, each with one of {HEAD_LAYERS}, and fc_widths must be empty'),
    'drop_rate': (lambda rate: 0 <= rate < 1, 'in [0, 1)'),
    'drop_path_rate': (lambda rate: 0 <= rate < 1, 'in [0, 1)'),
    'act_layer': (is_act_layer, "timm's name of an activation such as 'relu' or 'elu', or a class of modules"),
    'bn_eps': (lambda eps: eps > 0, 'positive (Keras: 1e-3; legacy torch lineage: 1e-5)'),
    'min_img_size': (lambda size: size >= STEM_SIZE, f'at least {STEM_SIZE} pixels'),
    'residual': (lambda residual: True, 'True if drop_path_rate is positive, because that skips residual blocks'),
    'mid_act_layer': (
        lambda layer: layer is None or is_act_layer(layer),
        "None, timm's name of an activation such as 'relu' or 'elu', or a class of modules",
    ),
    'segments': (SEGMENTS.__contains__, f'one of {SEGMENTS}; None is one per channel'),
    'order': (ORDERS.__contains__, f'one of {ORDERS}'),
    'width_multiplier': (
        lambda factor: MIN_WIDTH_MULTIPLIER < factor < math.inf,
        f"above {MIN_WIDTH_MULTIPLIER}, because the stem's 32 channels would round to zero",
    ),
}


# Arguments that change what the tensors compute, with their defaults.
STORED = dict(
    output_stride=32, act_layer='relu', bn_eps=BN_EPS, pool_padding='same', stem_padding=0, min_img_size=MIN_IMG_SIZE,
    residual=True, mid_act_layer=None, segments=None, order='depthwise_first', width_multiplier=1.0,
)  # fmt: skip


def check_arguments(given: dict[str, Any]) -> None:
    """Raises a ValueError for an impossible value or combination. `given` must have all keys of `CHOICES`."""
    for name, (valid, choices) in CHOICES.items():
        value = given[name]
        check_argument(name, value, valid(value), choices)
    for name, excluded in (('head_layers', given['fc_widths']), ('residual', given['drop_path_rate'])):
        together = bool(given[name]) != (name == 'residual')
        check_argument(name, given[name], not (excluded and together), CHOICES[name][1])


def _scaled(width: int, multiplier: float) -> int:
    return round(width * multiplier / WIDTH_MULTIPLE) * WIDTH_MULTIPLE
