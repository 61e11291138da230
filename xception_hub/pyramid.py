"""Feature maps whose sizes halve from stage to stage, for decoders that join the maps of two stages."""

from typing import Any

import torch
import torch.nn.functional as F
from timm.models import FeatureListNet
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from .network import Xception


class XceptionPyramid(Xception):
    """Xception whose `forward_intermediates` pads the returned maps as `PyramidNet` does.

    A network pruned to one of the first four maps returns that map, padded, as timm's pruned models do.
    """

    __constants__ = ('end_reduction',)  # for TorchScript
    end_reduction = 0  # of the map to which the network was pruned; 0 without padding

    def prune_intermediate_layers(self, indices: int | list[int] = 1, *args: Any, **kwargs: Any) -> list[int]:
        taken = super().prune_intermediate_layers(indices, *args, **kwargs)
        if max(taken) < 4:
            reduction: Any = self.feature_info[max(taken)]['reduction']
            self.end_reduction = reduction
        return taken

    def forward_features(self, x: Tensor) -> Tensor:  # [B, C, H, W] -> the last map, padded if it is not the fifth
        features = self.exit_flow(self.middle_flow(self.entry_flow(self.stem(x))))  # TorchScript knows no super()
        return padded(features, x, self.end_reduction) if self.end_reduction else features

    def forward_intermediates(
        self, x: Tensor, indices: int | list[int] | None = None, *args: Any, **kwargs: Any
    ) -> Any:  # as in Xception; maps [B, C, ceil(H / reduction), ceil(W / reduction)]
        result = super().forward_intermediates(x, indices, *args, **kwargs)
        maps = result if isinstance(result, list) else result[1]
        for i, index in enumerate(sorted(feature_take_indices(5, indices)[0])):
            maps[i] = padded(maps[i], x, self.feature_info[index]['reduction'])
        if isinstance(result, list) or not self.end_reduction:
            return result
        return padded(result[0], x, self.end_reduction), maps


class PyramidNet(FeatureListNet):
    """timm's `features_only` network whose maps [B, C, ceil(H / reduction), ceil(W / reduction)] are an exact pyramid.

    The stem has no padding, so the maps of figure 5 are smaller: 125, 63, 32, 16 and 8 for 256 pixels. `padded` pads
    each returned map to the expected size; the network computes the same as without it. For sides that are multiples
    of 32, position k of the maps is centred on pixel 2k + 1, 4k + 3, 8k + 3, 16k + 7 and 32k + 15. In the last two
    maps, this is the middle between the centres of the residual connection and of the pooling window. The centre is
    1.5 pixels away from the middle of the position's 4x4 pixels in the second map, and half a pixel in the others.

    Args:
        model: The network.
        **kwargs: Arguments of timm's `FeatureListNet`.
    """

    reductions: list[int]  # in the order of the maps

    def __init__(self, model: nn.Module, **kwargs) -> None:
        super().__init__(model, **kwargs)
        self.reductions = sorted(self.feature_info.reduction())

    def forward(self, x: Tensor) -> list[Tensor]:  # [B, C, H, W] -> maps [B, C, ceil(H / reduction), ...]
        maps = list(self._collect(x).values())
        for i, reduction in enumerate(self.reductions):
            maps[i] = padded(maps[i], x, reduction)
        return maps


@torch.fx.wrap
def padded(features: Tensor, images: Tensor, reduction: int) -> Tensor:
    """Pads `features` [B, C, h, w] of `images` [B, 3, H, W] to [B, C, ceil(H / reduction), ceil(W / reduction)].

    The padding repeats the outermost values. Half of it, rounded down, is above and to the left, the rest below and to
    the right: for even sizes 1 and 2 positions in the first map, 0 and 1 in the second.
    """
    rows = (images.shape[2] + reduction - 1) // reduction - features.shape[2]
    columns = (images.shape[3] + reduction - 1) // reduction - features.shape[3]
    pad = [columns // 2, columns - columns // 2, rows // 2, rows - rows // 2]
    return F.pad(features, pad, mode='replicate')
