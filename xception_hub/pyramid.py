"""Feature maps whose sizes halve from stage to stage, for decoders that join the maps of two stages."""

from typing import Any

import torch
import torch.nn.functional as F
from timm.models import FeatureListNet
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from .network import Xception


class XceptionPyramid(Xception):
    """Xception whose `forward_intermediates` pads the maps that it returns as `PyramidNet` does.

    Pruned to one of the first four maps, its features are that map, padded, as in timm's pruned models.
    """

    __constants__ = ('end_reduction',)  # for TorchScript
    end_reduction = 0  # of the map to which the network was pruned; 0 without padding

    def prune_intermediate_layers(self, indices: int | list[int] = 1, *args: Any, **kwargs: Any) -> list[int]:
        taken = super().prune_intermediate_layers(indices, *args, **kwargs)
        if max(taken) < 4:
            reduction: Any = self.feature_info[max(taken)]['reduction']
            self.end_reduction = reduction
        return taken

    def forward_features(self, x: Tensor) -> Tensor:  # [B, C, H, W]
        features = self.exit_flow(self.middle_flow(self.entry_flow(self.stem(x))))  # TorchScript knows no super()
        return padded(features, x, self.end_reduction) if self.end_reduction else features

    def forward_intermediates(
        self, x: Tensor, indices: int | list[int] | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        result = super().forward_intermediates(x, indices, *args, **kwargs)
        maps = result if isinstance(result, list) else result[1]
        for i, index in enumerate(sorted(feature_take_indices(5, indices)[0])):
            maps[i] = padded(maps[i], x, self.feature_info[index]['reduction'])
        if isinstance(result, list) or not self.end_reduction:
            return result
        return padded(result[0], x, self.end_reduction), maps


class PyramidNet(FeatureListNet):
    """timm's `features_only` network whose maps [B, C, ceil(H / reduction), ceil(W / reduction)] are an exact pyramid.

    The stem has no padding, so that the maps of figure 5 are smaller: 125, 63, 32, 16 and 8 for 256 pixels. What lacks
    is added to each map that is returned, see `padded`; the network itself computes what it computes without it.
    Where the sides are multiples of 32, position k stands for pixel 2k + 1, 4k + 3, 8k + 3, 16k + 7 and 32k + 15: the
    middle between a residual connection's pixel and the pooling windows' in the last two. That is 1.5 pixels off the
    middle of the position's 4x4 pixels in the second map, and half a pixel in the others.

    Args:
        model: The network.
        **kwargs: As timm's class has them.
    """

    reductions: list[int]  # in the order of the maps

    def __init__(self, model: nn.Module, **kwargs) -> None:
        super().__init__(model, **kwargs)
        self.reductions = sorted(self.feature_info.reduction())

    def forward(self, x: Tensor) -> list[Tensor]:  # [B, C, H, W]
        maps = list(self._collect(x).values())
        for i, reduction in enumerate(self.reductions):
            maps[i] = padded(maps[i], x, reduction)
        return maps


@torch.fx.wrap
def padded(features: Tensor, images: Tensor, reduction: int) -> Tensor:
    """Repeats the outermost values of `features` until their height and width are ceil(those of `images` / reduction).

    Half of what lacks, rounded down, is added above and to the left, the rest below and to the right: for even sizes 1
    and 2 positions in the first map, none and 1 in the second.
    """
    rows = (images.shape[2] + reduction - 1) // reduction - features.shape[2]
    columns = (images.shape[3] + reduction - 1) // reduction - features.shape[3]
    pad = [columns // 2, columns - columns // 2, rows // 2, rows - rows // 2]
    return F.pad(features, pad, mode='replicate')
