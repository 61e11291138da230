"""timm's Inception V3 with a width multiplier, to compare Xception with at a small scale.

timm's network has one width. All of its layers have a multiple of 16 channels, so that sixteenths of them fit together
where towers are joined.
"""

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.inception_v3 import InceptionV3
from torch import nn

from ..layers import check_argument
from ..xception_paper import base_cfg

WIDTH_MULTIPLE = 16  # channels: the greatest number that divides all widths of Inception V3

default_cfgs = generate_default_cfgs(
    {
        'inception_v3_narrow.untrained': base_cfg(
            min_input_size=(3, 75, 75), pool_size=(8, 8), first_conv='Conv2d_1a_3x3.conv', classifier='fc',
            paper_name='Rethinking the Inception Architecture for Computer Vision', paper_ids='arXiv:1512.00567',
        )
    }
)  # fmt: skip


class NarrowInceptionV3(InceptionV3):
    """timm's Inception V3 with a share of the channels in each layer, without an auxiliary tower.

    Args:
        width_multiplier: Factor of all widths but those of images and logits, in sixteenths up to 1.
        **kwargs: Arguments of timm's network.

    Raises:
        ValueError: The widths would not be whole numbers of channels.
    """

    def __init__(self, width_multiplier: float = 1.0, **kwargs: Any) -> None:
        sixteenths = WIDTH_MULTIPLE * width_multiplier
        possible = sixteenths in range(1, WIDTH_MULTIPLE + 1)
        check_argument('width_multiplier', width_multiplier, possible, 'in sixteenths (0.0625, 0.125, ...) up to 1')
        super().__init__(**kwargs)

        def narrow(width: int) -> int:
            return width * int(sixteenths) // WIDTH_MULTIPLE

        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                layer.out_channels = narrow(layer.out_channels)
                if layer is not self.Conv2d_1a_3x3.conv:
                    layer.in_channels = narrow(layer.in_channels)
                part: tuple[slice, ...] = (slice(layer.out_channels), slice(layer.in_channels))
            elif isinstance(layer, nn.BatchNorm2d):
                layer.num_features = narrow(layer.num_features)
                part = (slice(layer.num_features),)
            else:
                continue
            for tensor in (*layer.parameters(recurse=False), *layer.buffers(recurse=False)):
                if tensor.dim():  # initial values are all drawn alike, so the first ones do
                    tensor.data = tensor.data[part].clone()
        for info in self.feature_info:
            info['num_chs'] = narrow(info['num_chs'])
        self.num_features: int = narrow(self.num_features)
        self.reset_classifier(self.num_classes)


@register_model
def inception_v3_narrow(pretrained: bool = False, **kwargs) -> nn.Module:
    """timm's Inception V3 with `width_multiplier`, without weights, for images [B, 3, H, W] in [-1, 1], H, W >= 75."""
    return build_model_with_cfg(NarrowInceptionV3, 'inception_v3_narrow', pretrained, **kwargs)
