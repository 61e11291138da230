"""A proof that needs no Keras: on photos, what enters each batch normalization has about the mean that it remembers.

It finds normalizations and kernels that were confused, and images in another range or order of colours. It does not see
pool padding, nor a wrong classifier, so it is no proof of parity and is never called one.
"""
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ['Consistency', 'check_consistency']

# Median over the channels of |mean of the input - moving mean| / moving standard deviation. The genuine weights reach
# 0.5 on few photos; a confused normalization is at 3 and more.
MOST = 1.


@dataclass(frozen=True)
class Consistency:
    """How far each normalization's input is from what it remembers.

    Attributes:
        deviations: Layer -> median deviation in standard deviations, in the order of computation.
        images: How many were fed.
    """

    deviations: dict[str, float]
    images: int

    @property
    def first_wrong(self) -> str | None:
        return next((name for name, value in self.deviations.items() if not value <= MOST), None)

    @property
    def worst(self) -> float:
        return max(self.deviations.values())


@torch.no_grad()
def check_consistency(model: nn.Module, images: np.ndarray) -> Consistency:
    """Feeds images [B, H, W, C], prepared as in training, and looks at what enters each of the 40 normalizations."""
    deviations: dict[str, float] = {}
    handles = []
    for name, norm in model.named_modules():
        if isinstance(norm, nn.BatchNorm2d):
            def hook(module: nn.BatchNorm2d, inputs: tuple[Tensor], name: str = name) -> None:
                mean, variance = module.get_buffer('running_mean'), module.get_buffer('running_var')
                z = (inputs[0].mean((0, 2, 3)) - mean) / (variance + module.eps).sqrt()
                deviations[name] = z.abs().median().item()
            handles.append(norm.register_forward_pre_hook(hook))
    try:
        model.eval()(torch.from_numpy(images.transpose(0, 3, 1, 2)).float())
    finally:
        for handle in handles:
            handle.remove()
    return Consistency(deviations, len(images))
